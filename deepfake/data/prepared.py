"""Images at the network's size, decoded once: one small file an image, named by content, shared by all runs."""

import os
import tempfile
from pathlib import Path

import numpy as np

from deepfake.data.images import UnreadableImage, read_image, resize
from deepfake.inputs import InputSpec

_FORMAT = 1  # raise when decoding or resizing changes, so that old files are not mistaken for new ones


class PreparedImages:
    """Reads an image at the network's size, from the cache if it is there; deleting the cache is always safe."""

    def __init__(self, spec: InputSpec, cache: Path | None, max_megapixels: float) -> None:
        self.spec = spec
        self.max_megapixels = max_megapixels
        self.cache = cache / f"images-{spec.size}-{spec.interpolation}-v{_FORMAT}" if cache else None

    def read(self, path: Path, sha256: str) -> np.ndarray:
        """Pixels, uint8 (size, size, 3).

        Args:
            path: the original.
            sha256: of its content, as catalogued.

        Raises:
            UnreadableImage: the original is gone, damaged, or no longer what was catalogued.
        """
        if self.cache is None:
            return self._prepare(path, sha256)
        file = self.cache / sha256[:2] / f"{sha256}.npy"
        try:
            return np.load(file)
        except FileNotFoundError:
            pass
        except (ValueError, EOFError, OSError):
            pass  # a damaged cache file is made again
        pixels = self._prepare(path, sha256)
        try:
            _write_whole(file, pixels)
        except OSError:
            pass  # a full or read-only disk costs speed, not the run
        return pixels

    def _prepare(self, path: Path, sha256: str) -> np.ndarray:
        pixels, file = read_image(path, self.max_megapixels)
        if file.sha256 != sha256:
            raise UnreadableImage(f"{path} has changed since it was catalogued")
        return resize(pixels, self.spec.size, self.spec.interpolation)


def _write_whole(file: Path, pixels: np.ndarray) -> None:
    """Another process sees the whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, pixels)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
