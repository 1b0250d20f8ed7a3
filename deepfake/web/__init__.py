"""What the browser shows; apart, for Streamlit puts a script's folder first on the import path."""
