"""One way to read an image file, for every command: full decode or a typed error, never a guess."""

import hashlib
import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image, ImageOps

# Pillow opens by content, not by name; whatever is not in this list (EPS would start Ghostscript) is refused.
# (MPO, a photograph with its preview behind it, opens as JPEG.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_FORMAT_OF = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
SUFFIXES = tuple(_FORMAT_OF)
BACKGROUND = (255, 255, 255)  # shown through transparent pixels

# Pillow's own limit, a warning at 89 megapixels and an error at twice that, gives way to `max_megapixels`.
Image.MAX_IMAGE_PIXELS = None

_MAX_BYTES = 2**30  # no image is larger; what is (a video, a disk image) is not read into memory
_MIN_SIDE = 32  # pixels; less is no face but an icon
# Standard deviation in levels of 255. Of real faces whose contrast was taken down to this, about one in twelve
# changes its perceptual hash by more than 4 bits when saved as JPEG; below, what is hashed is the noise.
_FLAT = 2.0

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadableImage(Exception):
    """A file that is no image, is cut short, or is too large; the message says which, without the file's name."""


class TooLargeImage(UnreadableImage):
    """More pixels than are decoded; a small file can hold a huge picture."""


class UnreachableImage(UnreadableImage):
    """A file that could not be read this time, whatever it holds: absent, forbidden, too large for the memory."""


@dataclass(frozen=True)
class ImageFile:
    """What a file holds besides its pixels."""

    sha256: str
    width: int  # pixels, as shown (after EXIF rotation)
    height: int
    format: str  # Pillow's name, from the content
    mode: str  # Pillow's name, before conversion to RGB
    bytes: int
    jpeg_quality: int  # 1 to 100, see `jpeg_quality`; -1: no JPEG
    jpeg_luma: float  # mean of the 64 entries of the luma quantisation table; -1.0: no JPEG
    reason: str  # empty, or what is suspicious, such as "2 frames, first one used"


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
    return decode_image(read_content(path), path.suffix, max_megapixels)


def read_content(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        UnreachableImage: there is no such file, it must not be read, or is no file that ends.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreachableImage("cannot be read: not a regular file")  # a pipe would keep us waiting for ever
        if status.st_size > _MAX_BYTES:
            raise UnreachableImage(f"cannot be read: {status.st_size} bytes, more than {_MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise UnreachableImage(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # no file can be called that: a table may hold any name
        raise UnreachableImage(f"cannot be read: {error}") from error


def decode_image(content: bytes, suffix: str, max_megapixels: float = 64.0) -> tuple[np.ndarray, ImageFile]:
    """As `read_image`, from the bytes of the file and the end of its name (with the dot)."""
    if not content:
        raise UnreadableImage("file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _decode(image, content, suffix, max_megapixels)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("not an image in a known format") from error
    except MemoryError as error:
        raise UnreachableImage("cannot be read: not enough memory") from error
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"damaged: {reason}") from error


def _decode(image: Image.Image, content: bytes, suffix: str, max_megapixels: float) -> tuple[np.ndarray, ImageFile]:
    if image.width * image.height > max_megapixels * 1e6:
        raise TooLargeImage(f"{image.width} x {image.height} pixels, more than {max_megapixels:g} megapixels")
    file_format, mode, frames = str(image.format), image.mode, getattr(image, "n_frames", 1)
    luma = _luma_table(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    shown, transparent = _to_rgb(image)
    pixels = np.ascontiguousarray(shown)
    height, width = pixels.shape[:2]

    reasons = []
    # An MPO is a photograph with a preview behind it: no reason to warn.
    if frames > 1 and file_format != "MPO":
        reasons.append(f"{frames} frames, first one used")
    content_format = "JPEG" if file_format == "MPO" else file_format
    if _FORMAT_OF.get(suffix.lower(), content_format) != content_format:
        reasons.append(f"{content_format} content under the name {suffix.lower()}")
    if after := _bytes_after_end(content, file_format):
        reasons.append(f"{after} bytes after the end of the image")
    if transparent:
        reasons.append("transparent pixels, shown white")
    if min(width, height) < _MIN_SIDE:
        reasons.append(f"{width} x {height} pixels, smaller than {_MIN_SIDE} on a side")
    if cv2.meanStdDev(pixels)[1].max() < _FLAT:
        reasons.append("all pixels are of nearly one colour")

    file = ImageFile(
        sha256=hashlib.sha256(content).hexdigest(),
        width=width,
        height=height,
        format=file_format,
        mode=mode,
        bytes=len(content),
        jpeg_quality=-1 if luma is None else jpeg_quality(luma),
        jpeg_luma=-1.0 if luma is None else float(luma.mean()),
        reason="; ".join(reasons),
    )
    return pixels, file


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image, uint8 (height, width, 3), as a file with the same content would give them.

    Raises:
        UnreadableImage: it cannot be shown in 8 bits.
    """
    return np.ascontiguousarray(_to_rgb(ImageOps.exif_transpose(image))[0])


def _to_rgb(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Pixels, and whether anything shines through them."""
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips everything above 255 to white.
        deep = np.asarray(image).astype(np.float64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImage("32-bit integer pixels, expected at most 16 bits")
        gray = np.rint(deep / 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2), False
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not known")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*BACKGROUND, 255))
        transparent = layered.getchannel("A").getextrema() != (255, 255)
        return np.asarray(Image.alpha_composite(canvas, layered).convert("RGB")), transparent
    return np.asarray(image.convert("RGB")), False


# The luminance table of the JPEG standard (ITU-T T.81, annex K.1), row by row, and what libjpeg makes of it for each
# quality from 1 to 100 (`jpeg_quality_scaling` and `jpeg_add_quant_table` of jcparam.c).
_STANDARD_LUMA = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
_SCALES = np.array([5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)])
_LUMA_OF_QUALITY = np.clip((_STANDARD_LUMA * _SCALES[:, None] + 50) // 100, 1, 255)


def jpeg_quality(luma: np.ndarray) -> int:
    """The quality setting of libjpeg, 1 to 100, whose luma table is nearest.

    Exact for what libjpeg wrote (Pillow, OpenCV, most software); for the own tables of a camera or an editor, the
    quality that costs about as much detail.

    Args:
        luma: the 64 entries of the quantisation table, row by row.
    """
    # Each entry over its standard is a measurement of the same scale.
    differences = (_LUMA_OF_QUALITY - luma) / _STANDARD_LUMA
    return int(np.square(differences).sum(axis=1).argmin()) + 1


def _luma_table(image: Image.Image) -> np.ndarray | None:
    tables, components = getattr(image, "quantization", None), getattr(image, "layer", None)
    if not tables or not components or components[0][3] not in tables:
        return None
    return np.array(tables[components[0][3]])


# The next marker of a JPEG: neither a byte of the picture (FF 00) nor a restart or fill within it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _bytes_after_end(content: bytes, file_format: str) -> int:
    """Bytes that no decoder looks at, padding with zeros apart: leftovers, or another file hidden behind."""
    end = {"JPEG": _end_of_jpeg, "PNG": _end_of_png}.get(file_format, len)(content)
    return len(content[end:].rstrip(b"\0"))


def _end_of_jpeg(content: bytes) -> int:
    place = 2
    while found := _JPEG_MARKER.search(content, place):
        place = found.end()
        if found[0] == b"\xff\xd9":
            return place
        place += int.from_bytes(content[place : place + 2])  # a thumbnail within a segment has an end of its own
    return len(content)


def _end_of_png(content: bytes) -> int:
    place = 8
    while place + 12 <= len(content):
        kind = content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4])
        if kind == b"IEND":
            return place
    return len(content)


def perceptual_hash(pixels: np.ndarray) -> str:
    """64-bit pHash: which of the 8 x 8 lowest frequencies of a 32 x 32 thumbnail lie above their median.

    Saving as JPEG or resizing changes few of the bits (of 500 real faces: at most 4, down to a quality of 30 or, with
    antialiasing, a quarter of the size); two faces taken at random differ in about half of them.

    Args:
        pixels: uint8 (height, width, 3).

    Returns:
        16 hexadecimal digits, as the package `imagehash` writes them; empty where the thumbnail is nearly flat, for
        there the bits are noise and any two such images would count as equal.
    """
    thumbnail = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    if np.std(np.asarray(thumbnail)) < _FLAT:
        return ""
    return str(imagehash.phash(thumbnail, hash_size=8))


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
