"""Bytes that are nearly images: whole files of every format and kind, damaged by chance and on purpose."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.formats import bmp, chunk, encoded, gif, parts_of, png, repaired, segment, tiled_tiff

Draw = Callable[[st.SearchStrategy], Any]

# ------------------------------------------------------------------------------------------------------ whole files

_random = np.random.default_rng(0)
_BLOCKS = _random.integers(0, 256, (6, 5, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
_FACE = Image.fromarray(_BLOCKS)
_GRAY16 = _BLOCKS[:, :, 0].astype(np.uint16) * 257


def exif(orientation: int = 1) -> Image.Exif:
    """As a camera writes it, with folders of its own."""
    found = Image.Exif()
    found[0x0112], found[0x010F], found[0x011A] = orientation, "camera", 72.0
    found.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    found.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    return found


def _whole_files() -> dict[str, bytes]:
    frames = [_FACE.rotate(90 * turn) for turn in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    alpha = _FACE.convert("RGBA")
    alpha.putalpha(Image.fromarray(_BLOCKS[:, :, 1]))
    palette = _FACE.quantize(16)
    profile = b"\0" * 36 + b"acsp" + bytes(500)
    return {
        "jpeg": encoded(_FACE, "JPEG", comment=b"a comment", icc_profile=profile, dpi=(72, 72)),
        "progressive jpeg": encoded(_FACE, "JPEG", progressive=True),
        "jpeg with restarts": encoded(_FACE, "JPEG", restart_marker_blocks=1, subsampling=0),
        "gray jpeg": encoded(_FACE.convert("L"), "JPEG"),
        "cmyk jpeg": encoded(_FACE.convert("CMYK"), "JPEG"),
        **{f"jpeg turned {n}": encoded(_FACE, "JPEG", exif=exif(n)) for n in range(1, 9)},
        "jpeg with a thumbnail": _with_segment(0xE1, b"Exif\0\0" + b"MM\0*" + bytes(4) + encoded(_FACE, "JPEG")),
        "jpeg with xmp": _with_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
        "jpeg with photoshop's": _with_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)),
        "mpo": encoded(_FACE, "MPO", **several),
        "animated webp": encoded(_FACE, "WEBP", **several, duration=100),
        "lossy webp": encoded(_FACE, "WEBP", exif=exif(6), icc_profile=profile),
        "lossless webp": encoded(alpha, "WEBP", lossless=True),
        "animated gif": encoded(palette, "GIF", save_all=True, append_images=[f.quantize(8) for f in frames]),
        "gif with a hole": encoded(palette, "GIF", transparency=0, comment=b"a comment"),
        "gif that clears": gif(40, 48, (1, 1), disposal=2, frames=2),
        "rgb png": encoded(_FACE, "PNG", exif=exif(8), icc_profile=profile, dpi=(72, 72)),
        "gray png": encoded(_FACE.convert("L"), "PNG"),
        "one-bit png": encoded(_FACE.convert("1"), "PNG"),
        "palette png": encoded(palette, "PNG", transparency=0),
        "rgba png": encoded(alpha, "PNG"),
        "gray and alpha png": encoded(alpha.convert("LA"), "PNG"),
        "16-bit png": encoded(_GRAY16, "PNG"),
        "animated png": encoded(_FACE, "PNG", **several, default_image=True),
        **{
            f"png {depth} {colour} {'adam' * adam}": png(40, 48, depth, colour, interlaced=adam)
            for depth, colour in ((1, 0), (2, 0), (4, 3), (8, 3), (8, 2), (16, 2), (16, 4), (16, 6))
            for adam in (False, True)
        },
        "png with texts": png(
            40, 48, 8, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1000)))
            + chunk(b"iTXt", b"b\0\x01\0\0\0" + zlib.compress(b"text")) + chunk(b"tEXt", b"c\0text"),
        ),
        **{f"tiff {how}": encoded(_FACE, "TIFF", compression=how) for how in (
            "raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma",
        )},
        **{f"fax {how}": encoded(_FACE.convert("1"), "TIFF", compression=how) for how in (
            "group3", "group4", "tiff_ccitt",
        )},
        "tiff of several": encoded(_FACE, "TIFF", **several, compression="tiff_lzw"),
        "tiff turned": encoded(_FACE, "TIFF", exif=exif(6), compression="tiff_deflate"),
        "ycbcr tiff": encoded(_FACE.convert("YCbCr"), "TIFF", compression="tiff_jpeg"),
        "lab tiff": encoded(_FACE.convert("LAB"), "TIFF"),
        "cmyk tiff": encoded(_FACE.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "alpha tiff": encoded(alpha, "TIFF"),
        "palette tiff": encoded(palette, "TIFF"),
        "16-bit tiff": encoded(_GRAY16, "TIFF", compression="tiff_lzw"),
        "32-bit tiff": encoded(_BLOCKS[:, :, 0].astype(np.int32), "TIFF"),
        "float tiff": encoded(_BLOCKS[:, :, 0].astype(np.float32), "TIFF"),
        "big tiff": encoded(_FACE, "TIFF", big_tiff=True),
        "tiled tiff": tiled_tiff(40, 48, 16),
        "rgb bmp": encoded(_FACE, "BMP"),
        "gray bmp": encoded(_FACE.convert("L"), "BMP"),
        "one-bit bmp": encoded(_FACE.convert("1"), "BMP"),
        "rgba bmp": encoded(alpha, "BMP"),
        "4-bit bmp": bmp(40, 48, 4, 0, bytes(range(20)) * 48),
        "16-bit bmp": bmp(40, 48, 16, 0, bytes(range(80)) * 48),
        "bmp in runs": bmp(40, 48, 8, 1, (b"\x14\x05\0\x14" + bytes(range(20)) + b"\0\0") * 48 + b"\0\x01"),
        "4-bit bmp in runs": bmp(40, 48, 4, 2, (b"\x14\x51\x14\x37\0\0") * 47 + b"\0\x02\x02\x01" + b"\0\x01"),
        "ppm": encoded(_FACE, "PPM"),
        "pgm": encoded(_FACE.convert("L"), "PPM"),
        "16-bit pgm": encoded(_BLOCKS[:, :, 0].astype(np.int32), "PPM"),
        "pbm": encoded(_FACE.convert("1"), "PPM"),
        "pfm": encoded(_BLOCKS[:, :, 0].astype(np.float32), "PPM"),
        "plain ppm": b"P3 # a comment\n8 8\n7\n" + b"1 2 3 " * 64,
        "plain pgm": b"P2 8 8 65535\n" + b"300 " * 64,
        "plain pbm": b"P1 8 8\n" + b"01" * 32,
        "ppm of few levels": b"P6 8 8 100\n" + bytes(range(96)) * 2,
    }  # fmt: skip


def _with_segment(kind: int, data: bytes) -> bytes:
    whole = encoded(_FACE, "JPEG")
    return whole[:2] + segment(kind, data) + whole[2:]


WHOLE = _whole_files()

# ---------------------------------------------------------------------------------------------------------- damages

_LARGE = [zlib.compress(bytes(size), 9) for size in (1000, 2**20, 2**25)]
_NUMBERS = [0, 1, 2, 3, 8, 15, 16, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def _place(draw: Draw, content: bytes) -> int:
    """Behind the first bytes, which say the format: without them nothing is tried at all."""
    return draw(st.integers(min(6, len(content) - 1), len(content) - 1))


def _flip(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[_place(draw, content)] ^= draw(st.integers(1, 255))
    return bytes(changed)


def _cut(draw: Draw, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def _write_number(draw: Draw, content: bytes) -> bytes:
    """Counts, lengths and sizes are numbers of some bytes; those at the beginning are the ones that matter most."""
    width = draw(st.sampled_from([1, 2, 3, 4, 8]))
    place = _place(draw, content[: draw(st.sampled_from([60, 300, len(content)]))])
    number = draw(st.sampled_from(_NUMBERS)) % 256**width
    written = number.to_bytes(width, draw(st.sampled_from(["big", "little"])))
    return content[:place] + written + content[place + width :]


def _drop(draw: Draw, content: bytes) -> bytes:
    place = _place(draw, content)
    return content[:place] + content[place + draw(st.integers(1, 64)) :]


def _repeat(draw: Draw, content: bytes) -> bytes:
    place = _place(draw, content)
    part = content[place : place + draw(st.integers(1, 512))]
    return content[:place] + part * draw(st.sampled_from([2, 3, 50])) + content[place:]


def _insert(draw: Draw, content: bytes) -> bytes:
    place = _place(draw, content)
    return content[:place] + draw(st.binary(min_size=1, max_size=64)) + content[place:]


def _splice(draw: Draw, content: bytes) -> bytes:
    other = draw(st.sampled_from(list(WHOLE.values())))
    return content[: _place(draw, content)] + other[_place(draw, other) :]


def _move_parts(draw: Draw, content: bytes) -> bytes:
    """Segments of a JPEG, chunks of a PNG or WebP, entries of a TIFF: lost, twice, exchanged, or another file's."""
    parts = parts_of(content)
    if len(parts) < 2:
        return content
    others = parts_of(
        draw(st.sampled_from([file for file in WHOLE.values() if file[:4] == content[:4]] or [content]))
    )
    at, to = draw(st.integers(1, len(parts) - 1)), draw(st.integers(1, len(parts) - 1))
    match draw(st.sampled_from(["drop", "twice", "exchange", "other"])):
        case "drop":
            del parts[at]
        case "twice":
            parts.insert(to, parts[at])
        case "exchange":
            parts[at], parts[to] = parts[to], parts[at]
        case "other":
            parts.insert(at, draw(st.sampled_from(others or parts)))
    return b"".join(parts)


def _claim(draw: Draw, content: bytes) -> bytes:
    """Another size, where the format says it."""
    width, height = (draw(st.sampled_from([0, 1, 100, 5000, 2**15, 2**16 - 1, 2**24, 2**32 - 1])) for _ in "wh")
    changed = bytearray(content)

    def say(place: int, code: str) -> None:
        bits = 8 * struct.calcsize(code)
        if place >= 0 and place + 2 * bits // 8 <= len(changed):
            struct.pack_into(f"{code[0]}2{code[1]}", changed, place, width % 2**bits, height % 2**bits)

    match content[:4]:
        case b"\x89PNG":
            say(16, ">I")
        case b"GIF8":
            say(6, "<H")
            if draw(st.booleans()):
                say(content.find(b",") + 5, "<H")
        case b"RIFF":
            changed[24:30] = (width % 2**24).to_bytes(3, "little") + (height % 2**24).to_bytes(3, "little")
        case b"II*\0":
            for tag in draw(st.sampled_from([(256, 257), (322, 323), (278,), (279,), (325,), (258, 277)])):
                place = content.find(struct.pack("<H", tag), 8)
                if 0 <= place <= len(content) - 12:
                    said = draw(st.sampled_from([width, height]))
                    changed[place + 2 : place + 12] = struct.pack("<HII", 4, 1, said)
        case b"P6\n4" | b"P5\n4" | b"P4\n4":
            return content.replace(b"40 48", b"%d %d" % (width, height), 1)
        case _ if content[:2] == b"BM":
            say(18, "<I")
        case _ if content[:2] == b"\xff\xd8":
            say(max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2")) + 5, ">H")
    return bytes(changed)


def _stuff(draw: Draw, content: bytes) -> bytes:
    """Something beside the pixels that is small in the file and large when it is unpacked."""
    large = draw(st.sampled_from(_LARGE))
    kinds = [(b"iCCP", b"p\0\0"), (b"zTXt", b"t\0\0"), (b"iTXt", b"t\0\x01\0\0\0"), (b"eXIf", b""), (b"IDAT", b"")]
    kind, start = draw(st.sampled_from(kinds))
    match content[:2]:
        case b"\x89P":
            place = draw(st.sampled_from([33, max(33, len(content) - 12)]))
            return content[:place] + chunk(kind, start + large) * draw(st.sampled_from([1, 20])) + content[place:]
        case b"\xff\xd8":
            data = draw(st.sampled_from([b"Exif\0\0", b"ICC_PROFILE\0\x01\x01", b"MPF\0"])) + _overlapping(draw)
            marker = draw(st.sampled_from([0xE1, 0xE2, 0xED, 0xFE]))
            return content[:2] + segment(marker, data) * draw(st.sampled_from([1, 50])) + content[2:]
        case b"RI":
            data = _overlapping(draw)
            return content + b"EXIF" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return content + large


def _overlapping(draw: Draw) -> bytes:
    """A folder of tags each of which says that it has all the bytes."""
    tags = draw(st.sampled_from([1, 50, 2000]))
    kind, count = draw(st.sampled_from([(2, 30_000), (5, 4_000), (7, 30_000), (12, 4_000), (13, 8)]))
    entries = b"".join(struct.pack("<HHII", 0x0100 + number, kind, count, 8) for number in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(30_000)


_DAMAGES = [
    _flip, _flip, _cut, _write_number, _write_number, _drop, _repeat, _insert, _splice, _move_parts, _claim, _stuff,
]  # fmt: skip


@st.composite
def damaged(draw: Draw) -> bytes:
    """The bytes of a file that was an image."""
    content = draw(st.sampled_from(list(WHOLE.values())))
    for damage in draw(st.lists(st.sampled_from(_DAMAGES), min_size=1, max_size=3)):
        content = damage(draw, content) or b"\0"
    return repaired(content) if draw(st.booleans()) else content


def some(number: int) -> list[bytes]:
    """The same ones at any time."""
    found: list[bytes] = []

    @settings(
        max_examples=number, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged())
    def gather(content: bytes) -> None:
        found.append(content)

    gather()
    return found
