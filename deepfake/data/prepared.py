"""Images at the network's size, decoded once: one small file an image, named by content, shared by all runs."""

import contextlib
import io
from pathlib import Path

import numpy as np

from deepfake.data.images import UnreadableImage, read_image, resize
from deepfake.files import write_bytes
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
        with contextlib.suppress(Exception):  # absent, or damaged in any way: it is made again
            cached = np.load(file)
            if cached.shape == (self.spec.size, self.spec.size, 3) and cached.dtype == np.uint8:
                return cached
        pixels = self._prepare(path, sha256)
        content = io.BytesIO()
        np.save(content, pixels)
        with contextlib.suppress(OSError):  # a full or read-only disk costs speed, not the run
            write_bytes(file, content.getvalue(), durable=False)
        return pixels

    def _prepare(self, path: Path, sha256: str) -> np.ndarray:
        pixels, file = read_image(path, self.max_megapixels)
        if file.sha256 != sha256:
            raise UnreadableImage("has changed since it was catalogued")
        return resize(pixels, self.spec.size, self.spec.interpolation)
