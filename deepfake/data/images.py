"""One way to read an image file, for every command: full decode or a typed error, never a guess."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow opens by content, not by name; whatever is not in this list (EPS would start Ghostscript) is refused.
# (MPO, a photograph with its preview behind it, opens as JPEG.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
)
BACKGROUND = (255, 255, 255)  # shown through transparent pixels

# Pillow's own limit, a warning at 89 megapixels and an error at twice that, gives way to `max_megapixels`.
Image.MAX_IMAGE_PIXELS = None

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadableImage(Exception):
    """A file that is no image, is cut short, or is too large; the message says which, without the file's name."""


@dataclass(frozen=True)
class ImageFile:
    """What a file holds besides its pixels."""

    sha256: str
    width: int  # pixels, as shown (after EXIF rotation)
    height: int
    format: str  # Pillow's name, from the content
    mode: str  # Pillow's name, before conversion to RGB
    bytes: int
    note: str  # empty, or what a user should know, such as "2 frames, first one used"


def read_image(path: Path, max_megapixels: float = 64.0) -> tuple[np.ndarray, ImageFile]:
    """Decode a file fully to upright RGB.

    Args:
        path: any of `FORMATS`, recognised by content.
        max_megapixels: larger images are refused before they are decoded.

    Returns:
        Pixels, uint8 of shape (height, width, 3), and what else the file says.

    Raises:
        UnreadableImage: the file cannot be read, is empty, no image, cut short or too large.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error
    if not content:
        raise UnreadableImage("file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _decode(image, content, max_megapixels)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("not an image in a known format") from error
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        raise UnreadableImage(f"damaged: {str(error) or type(error).__name__}") from error


def _decode(image: Image.Image, content: bytes, max_megapixels: float) -> tuple[np.ndarray, ImageFile]:
    if image.width * image.height > max_megapixels * 1e6:
        raise UnreadableImage(f"{image.width} x {image.height} pixels, more than {max_megapixels:g} megapixels")
    frames = getattr(image, "n_frames", 1)
    # An MPO is a photograph with a preview behind it: no reason to warn.
    note = f"{frames} frames, first one used" if frames > 1 and image.format != "MPO" else ""
    file_format, mode = str(image.format), image.mode
    image.load()
    upright = ImageOps.exif_transpose(image)
    file = ImageFile(
        sha256=hashlib.sha256(content).hexdigest(),
        width=upright.width,
        height=upright.height,
        format=file_format,
        mode=mode,
        bytes=len(content),
        note=note,
    )
    return np.ascontiguousarray(_to_rgb(upright)), file


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips everything above 255 to white.
        deep = np.asarray(image).astype(np.float64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImage("32-bit integer pixels, expected at most 16 bits")
        gray = np.rint(deep / 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not known")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*BACKGROUND, 255))
        return np.asarray(Image.alpha_composite(canvas, layered).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def resize(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Squash to a square, as the study did; antialiased.

    Args:
        pixels: uint8 (height, width, 3).
        size: side in pixels.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (size, size, 3).
    """
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), _RESAMPLING[interpolation]))
