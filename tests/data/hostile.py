"""One file for every fault that folders of images were seen to have, for any test that must stand them."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.formats import encoded, gif, jpeg_of_scans, png, segment, tiff, tiled_tiff, webp_canvas


def make_hostile(folder: Path, seed: int = 0) -> dict[str, str]:
    """Write the files; each is named so that it counts as an image.

    Args:
        folder: made if it is not there.
        seed: the same faults with other pixels, so that they can stand under both labels.

    Returns:
        The status that the catalogue must give each file: "ok", "suspicious" or "unreadable".
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)

    def face(height: int = 48, width: int = 40) -> np.ndarray:
        """Blocks of colour that survive a JPEG, never the same twice."""
        blocks = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        return blocks.repeat(8, axis=0).repeat(8, axis=1)

    def png() -> bytes:
        return encoded(face(), "PNG")

    def jpeg(**options: Any) -> bytes:
        return encoded(face(), "JPEG", **options)

    ok = {
        "whole.jpg": jpeg(),
        "whole.png": png(),
        "gray_16_bits.png": encoded(face()[:, :, 0].astype(np.uint16) * 257, "PNG"),
        "palette.png": encoded(Image.fromarray(face()).quantize(16), "PNG"),
        "opaque.png": encoded(Image.fromarray(face()).convert("RGBA"), "PNG"),
        "cmyk.jpg": encoded(Image.fromarray(face()).convert("CMYK"), "JPEG"),
        "rotated_by_exif.jpg": jpeg(exif=_rotated()),
        "photograph_and_preview.jpg": encoded(
            Image.fromarray(face()), "MPO", save_all=True, append_images=[Image.fromarray(face(24, 16))]
        ),
        "padded.jpg": jpeg() + bytes(100),
        "Grüße 猫.png": png(),
        "smile 🙂.png": png(),
        "two\nlines.png": png(),
        "carriage\rreturn.png": png(),
        "=1+1.png": png(),
        "+1.png": png(),
        "-1.png": png(),
        "@sum.png": png(),
        "\ttab.png": png(),
        "'quoted', \"twice\".png": png(),
        "<b>&amp;.png": png(),
        "#?%20.png": png(),
        "=cmd|' !A1'.png": png(),
        "[bold]not bold.png": png(),
        "$x^$ {0} %s.png": png(),
        "back\\slash, and comma; semicolon.png": png(),
        "\x1b[31mred.png": png(),
        "\u202egnp.png": png(),
        f"{'long ' * 28}.png": png(),
    }
    suspicious = {
        "png_named.jpg": png(),
        "jpeg_named.png": jpeg(),
        "half_transparent.png": encoded(np.dstack([face(), face()[:, :, :1]]), "PNG"),
        "palette_with_hole.png": encoded(Image.fromarray(face()).quantize(16), "PNG", transparency=0),
        "animated.gif": _animated([face(), face()], "GIF"),
        "animated.webp": _animated([face(), face()], "WEBP"),
        "animated.png": _animated([face(), face()], "PNG"),
        "of_two_pages.tiff": _animated([face(), face()], "TIFF"),
        "exif_of_no_camera.webp": encoded(face(), "WEBP", exif=b"no EXIF at all"),
        "appended.jpg": jpeg() + b"PK\x03\x04 another file",
        "appended.png": png() + jpeg(),
        "one_colour.png": encoded(np.full((40, 40, 3), random.integers(0, 256, 3, dtype=np.uint8)), "PNG"),
        "icon.png": encoded(face(16, 16), "PNG"),
    }
    unreadable = {
        "no_bytes.jpg": b"",
        "<img src=x onerror=alert(1)>.png": b"",
        "text.jpg": b"I am no image.",
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "eps_named.png": encoded(face(), "EPS"),
        "drawing_named.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "first_bytes.jpg": jpeg()[:3],
        "truncated.jpg": cut(jpeg()),
        "truncated_progressive.jpg": cut(jpeg(progressive=True)),
        "truncated.png": cut(png()),
        "truncated.webp": cut(encoded(face(), "WEBP")),
        "corrupt_header.jpg": jpeg().replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x02"),
        "corrupt_header.png": png().replace(b"IHDR", b"IHDR\xff"),
        "flipped_bit.png": flipped(png()),
        "floating_point.tiff": encoded(face()[:, :, 0].astype(np.float32), "TIFF"),
        "120_megapixels.png": white_png(12_000, 10_000),
        "400_megapixels.png": white_png(20_000, 20_000),
    }
    expected = {}
    for status, files in (("ok", ok), ("suspicious", suspicious), ("unreadable", unreadable)):
        for name, content in files.items():
            (folder / name).write_bytes(content)
            expected[name] = status
    for name, target in (("link_to_itself.png", "link_to_itself.png"), ("link_to_nothing.png", "absent.png")):
        (folder / name).symlink_to(target)
        expected[name] = "unreadable"
    return expected


def bombs() -> dict[str, bytes]:
    """Small files that claim, unpack to or repeat what no reader must take memory or time for."""
    face = encoded(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8), "JPEG")
    return {
        "huge_canvas.webp": webp_canvas(65_535, 65_535),
        "huge_frame_cleared.gif": gif(64, 64, (65_535, 65_535), disposal=2),
        "huge_tiles.tiff": tiled_tiff(64, 64, 8_192),
        "long_line.png": png(63_000_000, 1, 1, 0),
        "many_scans.jpg": jpeg_of_scans(640, 480, 1_000),
        "exif_in_many_parts.jpg": face[:2] + segment(0xE1, b"Exif\0\0" + bytes(100)) * 300 + face[2:],
    }


def noisy() -> dict[str, bytes]:
    """Files that Pillow warns of, writes into its log, and has libtiff print on standard error."""
    photograph = encoded(Image.new("RGB", (40, 48), "red"), "JPEG")
    tile = tiled_tiff(64, 64, 64)
    return {
        "exif_cut_short.jpg": photograph[:2] + segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09") + photograph[2:],
        "hundred_samples.tiff": tiff({256: ("I", [64]), 257: ("I", [64]), 277: ("H", [100])}),
        "wrong_checksum.tiff": tile[:-1] + bytes([tile[-1] ^ 1]),
    }


def cut(content: bytes) -> bytes:
    """Without its last fifth."""
    return content[: len(content) * 4 // 5]


def flipped(content: bytes) -> bytes:
    """With one bit flipped, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def white_png(width: int, height: int) -> bytes:
    """A whole PNG of that size, in a thousandth of a byte a pixel."""
    rows = zlib.compressobj(1)
    row = b"\0" + b"\xff" * (-(-width // 8))
    pixels = b"".join(rows.compress(row * 100) for _ in range(height // 100)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def _animated(frames: list[np.ndarray], file_format: str) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    return encoded(images[0], file_format, save_all=True, append_images=images[1:])


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
