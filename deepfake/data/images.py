"""One way to read an image file, for every command: full decode or a typed error, never a guess."""

import contextlib
import ctypes
import hashlib
import io
import logging
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import ExifTags, Image

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
# What Pillow and libtiff say of a file comes without its name, between our own lines; our reasons say what matters.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
with contextlib.suppress(AttributeError, OSError):  # libtiff has a name of its own in every wheel, and may be absent
    ctypes.CDLL(str(Image.core.__file__)).TIFFSetErrorHandler(None)

_MAX_BYTES = 2**30  # no image is larger; what is (a video, a disk image) is not read into memory
_MAX_SIDE = 65_535  # pixels; a JPEG has no more, and shrinking a line of millions takes more memory than there is
_MAX_SCANS = 100  # of a JPEG; each costs a pass over all pixels, and a progressive one has about ten
_MAX_EXIF = 200  # parts in a JPEG; Pillow copies what it has for each, and cameras write one
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
    reason: str  # empty, or what is suspicious, such as "several frames, first one used"


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


def read_catalogued(path: Path, sha256: str, max_megapixels: float) -> np.ndarray:
    """Pixels, as `read_image` gives them, of a file that is still what a catalogue says.

    Raises:
        UnreadableImage: as `read_image`; also where its content has another sha256.
    """
    pixels, file = read_image(path, max_megapixels)
    if file.sha256 != sha256:
        raise UnreadableImage("has changed since it was catalogued")
    return pixels


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
        _expect_openable(content, max_megapixels)
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


def _expect_openable(content: bytes, max_megapixels: float) -> None:
    """Refuse what takes Pillow memory or time already when it opens the file.

    Raises:
        UnreadableImage: says why.
    """
    if content.startswith(b"GIF8"):
        expect_decodable(*_first_frame_of_gif(content), max_megapixels)  # cleared at once where the frame asks for it
    elif content.startswith(b"RIFF") and content[8:16] == b"WEBPVP8X":
        width, height = (1 + int.from_bytes(content[place : place + 3], "little") for place in (24, 27))
        expect_decodable(width, height, max_megapixels)  # two canvases are made of it
    elif content.startswith(b"\xff\xd8"):
        if (parts := content.count(b"Exif\0\0")) > _MAX_EXIF:
            raise UnreadableImage(f"damaged: EXIF in {parts} parts, more than {_MAX_EXIF}")
        scans = sum(marker == 0xDA for marker, _ in _markers_of_jpeg(content))
        if scans > _MAX_SCANS:
            raise UnreadableImage(f"damaged: {scans} scans, more than {_MAX_SCANS}")


def expect_decodable(width: int, height: int, max_megapixels: float, of: str = "") -> None:
    """Refuse a picture, or a part of one that is decoded as a whole, for its size.

    Raises:
        TooLargeImage: it has too many pixels, or too many on a side.
    """
    if width * height > max_megapixels * 1e6:
        raise TooLargeImage(f"{of}{width} x {height} pixels, more than {max_megapixels:g} megapixels")
    if max(width, height) > _MAX_SIDE:
        raise TooLargeImage(f"{of}{width} x {height} pixels, more than {_MAX_SIDE} on a side")


def _decode(image: Image.Image, content: bytes, suffix: str, max_megapixels: float) -> tuple[np.ndarray, ImageFile]:
    expect_decodable(image.width, image.height, max_megapixels)
    tags = getattr(image, "tag_v2", {})
    expect_decodable(tags.get(322, 0), tags.get(323, 0), max_megapixels, "tiles of ")  # of a TIFF
    # Not how many frames: a file of megabytes may have more than can be counted in a minute.
    file_format, mode, animated = str(image.format), image.mode, getattr(image, "is_animated", False)
    luma = _luma_table(image)
    image.load()
    orientation = _orientation(image)
    shown, transparent = _to_rgb(_turned(image, orientation))
    pixels = np.ascontiguousarray(shown)
    height, width = pixels.shape[:2]

    reasons = []
    # An MPO is a photograph with a preview behind it: no reason to warn.
    if animated and file_format != "MPO":
        reasons.append("several frames, first one used")
    content_format = "JPEG" if file_format == "MPO" else file_format
    if _FORMAT_OF.get(suffix.lower(), content_format) != content_format:
        reasons.append(f"{content_format} content under the name {suffix.lower()}")
    if after := _bytes_after_end(content, file_format):
        reasons.append(f"{after} bytes after the end of the image")
    if orientation is None:
        reasons.append("EXIF that cannot be read, shown as it is stored")
    if transparent:
        reasons.append("transparent pixels, shown white")
    if min(width, height) < _MIN_SIDE:
        reasons.append(f"{width} x {height} pixels, smaller than {_MIN_SIDE} on a side")
    if _is_flat(pixels):
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


def _is_flat(pixels: np.ndarray) -> bool:
    # Squares about their mean in every 16th row alone are no more than those of all rows: most often they will do.
    rows = pixels[::16]
    if len(rows) * cv2.meanStdDev(rows)[1].max() ** 2 >= len(pixels) * _FLAT**2:
        return False
    return bool(cv2.meanStdDev(pixels)[1].max() < _FLAT)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image, uint8 (height, width, 3), as a file with the same content would give them.

    Raises:
        UnreadableImage: it cannot be shown in 8 bits.
    """
    return np.ascontiguousarray(_to_rgb(_turned(image, _orientation(image)))[0])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int | None:
    """How the stored picture lies, 1 to 8 as EXIF says it; None where EXIF is there and cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as with pixels, whatever the parser of damaged tags does
        return None


def _turned(image: Image.Image, orientation: int | None) -> Image.Image:
    """Upright. Unlike Pillow's own function it writes no EXIF anew, for which that of many a camera is too odd."""
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Pixels, and whether anything shines through them."""
    if image.mode.startswith("I"):
        # 16-bit gray: Pillow's own conversion clips everything above 255 to white.
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImage("32-bit integer pixels, expected at most 16 bits")
        gray = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded; 65535 = 255 * 257
        return np.repeat(gray[:, :, None], 3, axis=2), False
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not known")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*BACKGROUND, 255))
        transparent = layered.getchannel("A").getextrema() != (255, 255)
        return np.asarray(Image.alpha_composite(canvas, layered).convert("RGB")), transparent
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), False


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


# The next marker of a JPEG: neither a byte of the picture (FF 00) nor one that has no length, as a restart or fill.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


def _markers_of_jpeg(content: bytes) -> Iterator[tuple[int, int]]:
    """Each marker's byte and the place behind it, up to the end of the image; what a segment holds is skipped."""
    place = 2
    while found := _JPEG_MARKER.search(content, place):
        place = found.end()
        yield found[0][1], place
        if found[0] == b"\xff\xd9":
            return
        place += int.from_bytes(content[place : place + 2])


def _bytes_after_end(content: bytes, file_format: str) -> int:
    """Bytes that no decoder looks at, padding with zeros apart: leftovers, or another file hidden behind."""
    end = {"JPEG": _end_of_jpeg, "PNG": _end_of_png}.get(file_format, len)(content)
    return len(content[end:].rstrip(b"\0"))


def _end_of_jpeg(content: bytes) -> int:
    return next((place for marker, place in _markers_of_jpeg(content) if marker == 0xD9), len(content))


def _end_of_png(content: bytes) -> int:
    place = 8
    while place + 12 <= len(content):
        kind = content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4])
        if kind == b"IEND":
            return place
    return len(content)


def _first_frame_of_gif(content: bytes) -> tuple[int, int]:
    """Its width and height; none where there is no frame. Steps over blocks as Pillow does, right or wrong."""
    stream = io.BytesIO(content)

    def block() -> bytes:
        return stream.read(ord(stream.read(1) or b"\0"))

    flags = content[10] if len(content) > 10 else 0
    stream.seek(13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    while (kind := stream.read(1)) not in (b"", b";", b","):
        if kind == b"!":
            label, data = stream.read(1), block()
            if label == b"\xff" and data.startswith(b"NETSCAPE2.0"):
                block()
            if data or label != b"\xfe":
                while block():
                    pass
    place = stream.tell() + 4
    width, height = content[place : place + 2], content[place + 2 : place + 4]
    return int.from_bytes(width, "little"), int.from_bytes(height, "little")


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
