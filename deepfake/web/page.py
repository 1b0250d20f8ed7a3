"""The page, top to bottom; Streamlit runs it for every visitor, and again after every change."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from deepfake.console import visible
from deepfake.data.catalog import safe_csv
from deepfake.data.images import SUFFIXES
from deepfake.evaluation.calibration import Calibration
from deepfake.inspecting import Inspection, Inspector, table_of
from deepfake.serving import Served, served

RARE = 0.01  # share of generated images, for which the probability is worked out anew


def show(what: Served) -> None:
    """All of the page."""
    st.set_page_config(page_title="Real or generated?", page_icon="🔎", layout="centered")
    st.html(_templates().get_template("style.html").render())
    st.title("Real or generated?")
    where = "this computer" if what.local else "the computer that serves this page"
    st.write(
        "Drop pictures of faces, and a trained network says whether they look like photographs or like the work of a "
        f"generator. It is an estimate, **never a proof**. The pictures stay in the memory of {where}; nothing is "
        "written to disk or sent on."
    )
    files = st.file_uploader(
        f"Up to {what.max_files} images of at most {what.max_megabytes} MB each",
        type=[suffix.removeprefix(".") for suffix in SUFFIXES],
        accept_multiple_files=True,
    )
    inspections = _inspected(files[: what.max_files], what.inspector)
    if len(files) > what.max_files:
        st.warning(f"At most {what.max_files} images at once: the others were not looked at.")
    if inspections:
        st.download_button(
            "Answers as a table (CSV)",
            safe_csv(table_of(inspections)),
            "answers.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
    for inspection in inspections:
        _card(inspection, what.inspector)
    _explanation(what)


def _inspected(files: Sequence[UploadedFile], inspector: Inspector) -> list[Inspection]:
    """Of each file, in order; what was looked at before is kept as long as its file is."""
    kept: dict[str, Inspection] = st.session_state.setdefault("inspections", {})
    new = [file for file in files if file.file_id not in kept]
    if new:
        bar = st.progress(0.0, "Looking at the images")
        for number, file in enumerate(new, start=1):
            kept[file.file_id] = inspector.inspect(file.name, file.getvalue())
            bar.progress(number / len(new), f"Looked at {number} of {len(new)}")
        bar.empty()
    for gone in kept.keys() - {file.file_id for file in files}:
        del kept[gone]
    return [kept[file.file_id] for file in files]


def _card(inspection: Inspection, inspector: Inspector) -> None:
    row = inspection.row
    calibration = inspector.detector.calibration
    cut, band = calibration.thresholds[inspector.threshold].value, calibration.band
    with st.container(border=True):
        picture, words = st.columns([1, 3], vertical_alignment="top")
        if inspection.thumbnail:
            picture.image(inspection.thumbnail, width="stretch")
        words.html(
            _templates()
            .get_template("card.html")
            .render(row=row, warnings=inspection.warnings, cut=cut, low=min(band[0], cut), high=max(band[1], cut))
        )
        if row["status"] != "ok":
            return
        with st.expander("What the number means"):
            st.write(_meaning(float(row["probability"]), calibration))
        if inspection.heat_map:
            with st.expander("Where the network looks"):
                st.image(inspection.heat_map)
                st.caption(
                    "Left the image, right what in it speaks for generated (Grad-CAM), or, of the last features of a "
                    "transformer, what it looks at. The strongest place is red, however little it weighs: the map "
                    "shows where the network looks, not whether it is right."
                )
        if inspection.spectrum:
            with st.expander("Its spectrum, beside those of the training images"):
                st.image(inspection.spectrum)
                st.caption(
                    "How strong coarse and fine patterns are. Generators, and programs that shrink or compress, "
                    "leave traces among the fine ones, on the right. One image scatters about the means of many: a "
                    "line among the others, or away from them, proves nothing."
                )


def _meaning(p: float, calibration: Calibration) -> str:
    images = calibration.n_real + calibration.n_fake
    prevalence = calibration.n_fake / images
    p = min(max(p, 1e-6), 1 - 1e-6)  # 0 and 1 as floats: no image is certainly the one or the other
    return (
        f"Of the {images:,} images that the network was calibrated on, {_percent(prevalence)} were generated; of "
        f"those with a number like {_percent(p)}, about {_percent(p)} were. Where generated images are rarer it "
        f"means less: where one in a hundred is, an image with this number is generated with a probability of "
        f"{_told(at_prevalence(p, prevalence, RARE))}. For images from other sources, and of generators that the "
        f"network never saw, the number may be far off."
    )


def at_prevalence(p: float, prevalence: float, other: float) -> float:
    """P(fake) where the share of fakes is another (Saerens, Latinne and Decaestecker, 2002), all in [0, 1]."""
    fake, real = p * other / prevalence, (1 - p) * (1 - other) / (1 - prevalence)
    return fake / (fake + real)


def _explanation(what: Served) -> None:
    inspector = what.inspector
    calibration = inspector.detector.calibration
    threshold, (low, high) = calibration.thresholds[inspector.threshold], calibration.band
    chosen = "a fixed one" if inspector.threshold == "half" else f"{inspector.threshold}, chosen on validation images"
    with st.expander("How to read the answers"):
        st.markdown(
            f"- **Looks generated** is said above {_percent(threshold.value)} (the threshold: {chosen}). On the "
            f"{calibration.n_real:,} real and {calibration.n_fake:,} generated validation images that called "
            f"{_percent(threshold.fpr)} of the real ones generated, and found {_percent(threshold.tpr)} of the "
            f"generated ones; new images fare a little worse.\n"
            f"- **Uncertain** is what lies between {_percent(min(low, threshold.value))} and "
            f"{_percent(max(high, threshold.value))}. Outside of it at most {_percent(calibration.band_error)} of "
            f"either kind of validation images was on the wrong side. Take it as no answer.\n"
            f"- **It is no proof.** The network knows the generators that it was trained on; of others it may notice "
            f"nothing. Editing, shrinking and compressing change the answer. Do not accuse anyone on its word.\n"
            f"- The images are kept in memory alone. They are forgotten some time after this page is closed, at the "
            f"latest when the program that serves it ends."
        )
        st.html(_templates().get_template("run.html").render(name=what.name, untold=inspector.untold))


def _percent(share: float) -> str:
    """In whole per cent, and a tenth of one where that would be none or all."""
    if 0.01 <= share <= 0.99 or share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{100 * min(max(share, 0.001), 0.999):.1f} %"


def _told(p: float) -> str:
    """A probability in tenths of a per cent; no image is certainly the one or the other."""
    return "under 0.1 %" if p < 0.001 else "over 99.9 %" if p > 0.999 else f"{100 * p:.1f} %"


@st.cache_resource
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    templates.filters.update(visible=visible, percent=lambda p: f"{100 * p:.1f}", told=_told)
    return templates


if __name__ == "__main__":  # as Streamlit runs it
    show(served())
