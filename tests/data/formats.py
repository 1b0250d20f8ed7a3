"""Image files as no library writes them: any depth, any claim, parts that come again and again."""

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    """As Pillow writes it."""
    stream = io.BytesIO()
    # Copies, for Pillow leaves options of one format in an image that go wrong in another.
    if "append_images" in options:
        options["append_images"] = [other.copy() for other in options["append_images"]]
    (image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A whole PNG of any depth and type of colour, of one colour in squeezed rows.

    Args:
        width, height: pixels.
        depth: bits a sample.
        colour: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGBA.
        before: chunks that come before the pixels.
        interlaced: in the seven passes of Adam.
    """
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    packer = zlib.compressobj(9)
    pixels = b""
    for left, top, across, down in passes:
        columns = -(-(width - left) // across)
        row = b"\0" + bytes([0x5A]) * (-(-columns * bits // 8))
        pixels += b"".join(packer.compress(row) for _ in range(top, height, down)) if columns > 0 else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + before
        + chunk(b"IDAT", pixels + packer.flush()) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(tags: dict[int, tuple[str, list[int]]], data: bytes = b"") -> bytes:
    """A TIFF of one folder with any tags.

    Args:
        tags: for each number the letter of `struct` for its type (B, H or I), and its values; where strips or tiles
            lie is counted from the beginning of the data.
        data: strips or tiles.
    """
    kinds = {"B": 1, "H": 3, "I": 4}
    begin = 8 + 2 + 12 * len(tags) + 4
    begin_of_data = begin + sum(
        size for letter, values in tags.values() if (size := struct.calcsize(f"<{len(values)}{letter}")) > 4
    )
    folder, far = struct.pack("<H", len(tags)), b""
    for tag, (letter, values) in sorted(tags.items()):
        shift = begin_of_data if tag in (273, 324) else 0
        value = struct.pack(f"<{len(values)}{letter}", *(value + shift for value in values))
        if len(value) > 4:
            far, value = far + value, struct.pack("<I", begin + len(far))
        folder += struct.pack("<HHI", tag, kinds[letter], len(values)) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + folder + bytes(4) + far + data


def tiled_tiff(width: int, height: int, tile: int) -> bytes:
    """RGB of one colour in squeezed square tiles; the file holds but one, for all of them are the same."""
    packer = zlib.compressobj(9)
    row = b"\x5a" * (3 * tile)
    data = b"".join(packer.compress(row) for _ in range(tile)) + packer.flush()
    tiles = -(-width // tile) * -(-height // tile)
    return tiff(
        {
            256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8, 8, 8]), 259: ("H", [8]), 262: ("H", [2]),
            277: ("H", [3]), 322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", [0] * tiles),
            325: ("I", [len(data)] * tiles),
        },
        data,
    )  # fmt: skip


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    """A BMP of any depth, the shallow ones with a palette; compression 1 and 2 are run lengths of 8 and 4 bits."""
    palette = b"".join(bytes([n, 255 - n, n // 2, 0]) for n in range(2**bits)) if bits <= 8 else b""
    begin = 54 + len(palette)
    colours = len(palette) // 4
    return (
        b"BM" + struct.pack("<IHHI", begin + len(data), 0, 0, begin)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, colours)
        + palette + data
    )  # fmt: skip


def gif(width: int, height: int, frame: tuple[int, int], disposal: int = 0, frames: int = 1) -> bytes:
    """A GIF whose frames may claim another size than the whole; disposal 2 clears a frame's place after it."""
    control = b"\x21\xf9\x04" + bytes([disposal << 2]) + bytes(4)
    one = control + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\0\0\0\0\xff" + one * frames + b";"


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of one small frame on a canvas of any size."""

    def three(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(3, "little") for number in numbers)

    def part(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data

    small = encoded(Image.new("RGB", (32, 32), "red"), "WEBP")[12:]
    frame = part(b"ANMF", three(0, 0, 31, 31, 100) + b"\0" + small)
    header = part(b"VP8X", b"\x02\0\0\0" + three(width - 1, height - 1)) + part(b"ANIM", bytes(6))
    return b"RIFF" + struct.pack("<I", 4 + len(header) + len(frame)) + b"WEBP" + header + frame


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last pass over the picture comes again and again; gray of one level."""
    whole = encoded(Image.new("L", (width, height), 90), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    more = scans - whole.count(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * more + whole[-2:]


def segment(kind: int, data: bytes) -> bytes:
    """Of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data


def parts_of(content: bytes) -> list[bytes]:
    """Segments before the picture of a JPEG, chunks of a PNG or WebP, entries of a TIFF; together all of the file."""
    ends = [0]
    match content[:4]:
        case b"\x89PNG":
            ends.append(8)
            while ends[-1] + 12 <= len(content):
                ends.append(ends[-1] + 12 + int.from_bytes(content[ends[-1] : ends[-1] + 4]))
        case b"RIFF":
            ends.append(12)
            while ends[-1] + 8 <= len(content):
                ends.append(ends[-1] + 8 + int.from_bytes(content[ends[-1] + 4 : ends[-1] + 8], "little"))
        case b"II*\0":
            begin = int.from_bytes(content[4:8], "little") + 2
            ends += [begin + 12 * n for n in range(int.from_bytes(content[begin - 2 : begin], "little") + 1)]
        case _ if content[:2] == b"\xff\xd8":
            ends.append(2)
            while content[ends[-1] : ends[-1] + 1] == b"\xff" and content[ends[-1] + 1 : ends[-1] + 2] != b"\xda":
                ends.append(ends[-1] + 2 + int.from_bytes(content[ends[-1] + 2 : ends[-1] + 4]))
        case _:
            ends += range(4, 64, 4)
    ends = [end for end in ends if end < len(content)] + [len(content)]
    return [content[a:b] for a, b in itertools.pairwise(ends)]


def repaired(content: bytes) -> bytes:
    """With checksums and lengths that agree with what was done to it, so that a decoder goes on."""
    match content[:4]:
        case b"\x89PNG":
            first, *chunks = parts_of(content)
            return first + b"".join(chunk(part[4:8], part[8:-4]) if len(part) >= 12 else part for part in chunks)
        case b"RIFF":
            return content[:4] + struct.pack("<I", max(0, len(content) - 8)) + content[8:]
    return content
