"""Every image that can be read comes out upright, 8 bits, RGB; every other file is refused with its reason."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import GifImagePlugin, Image, ImageFilter, JpegPresets, TiffImagePlugin

from deepfake.data.images import (
    FORMATS,
    SUFFIXES,
    ImageFile,
    TooLargeImage,
    UnreachableImage,
    UnreadableImage,
    decode_image,
    jpeg_quality,
    perceptual_hash,
    read_image,
    resize,
)
from tests.data.formats import (
    encoded,
    gif,
    jpeg_of_scans,
    png,
    repaired,
    segment,
    tiled_tiff,
    webp_canvas,
)
from tests.data.hostile import noisy

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def picture(height: int = 12, width: int = 18, seed: int = 0) -> np.ndarray:
    """Blocks of colour that survive a JPEG."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 6), -(-width // 6), 3), dtype=np.uint8)
    return blocks.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[np.ndarray, ImageFile]]:
    """Reads some bytes as a file of that name."""

    def read(content: bytes, name: str = "image.jpg", **options: Any) -> tuple[np.ndarray, ImageFile]:
        path = tmp_path / name
        path.write_bytes(content)
        return read_image(path, **options)

    return read


# --------------------------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(read, file_format: str, options: dict[str, Any]) -> None:
    content = encoded(picture(36, 48), file_format, **options)
    pixels, file = read(content, "without_suffix")  # the content counts
    assert np.array_equal(pixels, picture(36, 48))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    sha256 = hashlib.sha256(content).hexdigest()
    assert file == ImageFile(sha256, 48, 36, file_format, "RGB", len(content), -1, -1.0, "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_gives_nearly_the_pixels_back(read, options: dict[str, Any]) -> None:
    pixels, file = read(encoded(picture(), "JPEG", quality=95, subsampling=0, **options))
    assert np.abs(pixels.astype(int) - picture()).max() <= 12
    assert file.format == "JPEG"


def test_formats_and_suffixes_fit_together(read) -> None:
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(SUFFIXES) <= known


def test_gray_one_bit_and_gray_with_alpha_are_shown_as_gray(read) -> None:
    gray = picture()[:, :, 0]
    for mode, expected in (("L", gray), ("1", np.where(gray > 127, 255, 0)), ("LA", gray)):
        image = Image.fromarray(gray)
        image = image.point(lambda v: 255 * (v > 127), "1") if mode == "1" else image.convert(mode)
        pixels, file = read(encoded(image, "PNG"))
        assert file.mode == mode
        assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("file_format", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.int32)])
def test_sixteen_bits_are_scaled_not_clipped(read, file_format: str, dtype: type) -> None:
    deep = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], dtype)
    pixels, _ = read(encoded(deep, file_format))
    # 65535 / 255 = 257: a value v of 8 bits is 257 v of 16.
    assert pixels[:, :, 1].tolist() == [[0, 0, 1, 1], [4, 128, 254, 255]]
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((4, 4), 70_000, np.int32), "32-bit integer pixels"),
        (np.full((4, 4), -1, np.int32), "32-bit integer pixels"),
        (np.ones((4, 4), np.float32), "floating-point pixels"),
    ],
)
def test_pixels_of_unknown_range_are_refused(read, pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read(encoded(pixels, "TIFF"))


def test_cmyk_is_shown_in_its_colours(read) -> None:
    pixels, file = read(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95))
    assert file.mode == "CMYK"
    assert np.abs(pixels.astype(int) - RED).max() <= 4


def half_transparent() -> Image.Image:
    """Left column opaque red, middle column half red, right column hidden blue."""
    rgba = np.array([[(*RED, 255), (*RED, 128), (*BLUE, 0)]] * 3, np.uint8)
    return Image.fromarray(rgba)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_transparent_pixels_show_white_and_no_hidden_colour(read, file_format: str) -> None:
    pixels, _ = read(encoded(half_transparent(), file_format))
    assert pixels[0].tolist() == [list(RED), [255, 127, 127], list(WHITE)]


def test_transparent_gray_shows_white(read) -> None:
    pixels, _ = read(encoded(Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8)), "PNG"))
    assert pixels[0].tolist() == [[100] * 3, [255] * 3]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry_shows_white(read, file_format: str) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).copy()
    image.putpalette([*RED, *BLUE])
    opaque, file = read(encoded(image, file_format))
    assert file.mode == "P"
    assert opaque[0].tolist() == [list(RED), list(BLUE)]
    pixels, _ = read(encoded(image, file_format, transparency=1))
    assert pixels[0].tolist() == [list(RED), list(WHITE)]


def test_one_transparent_colour_shows_white(read) -> None:
    pixels, _ = read(encoded(np.array([[RED, BLUE]], np.uint8), "PNG", transparency=BLUE))
    assert pixels[0].tolist() == [list(RED), list(WHITE)]


# Where the stored row 0 and column 0 lie in the picture as shown, from the EXIF standard.
ORIENTATIONS = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_rotation_is_undone(read, orientation: int, file_format: str) -> None:
    shown = picture()
    row_side, column_side = ORIENTATIONS[orientation]
    upright = row_side in ("top", "bottom")
    stored = np.empty(shown.shape if upright else (18, 12, 3), np.uint8)
    for row, column in np.ndindex(stored.shape[:2]):
        y, x = (row, column) if upright else (column, row)
        y = 11 - y if "bottom" in (row_side, column_side) else y
        x = 17 - x if "right" in (row_side, column_side) else x
        stored[row, column] = shown[y, x]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(file_format, {})
    pixels, file = read(encoded(stored, file_format, exif=exif, **options))
    assert (file.width, file.height) == (18, 12)
    assert np.abs(pixels.astype(int) - shown).max() <= (12 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("name", ["Grüße.png", "猫 🙂.png", "two\nlines.png", "=1+1.png", "#?%20.png", "no_suffix"])
def test_any_name_is_read(read, name: str) -> None:
    assert np.array_equal(read(encoded(picture(), "PNG"), name)[0], picture())


def odd_exif(orientation: int) -> Image.Exif:
    """Such as some cameras write: a text where Pillow expects a number and cannot write one."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = orientation, 72.0
    return exif


def test_exif_that_cannot_be_written_anew_is_read(read) -> None:
    content = encoded(picture(), "PNG", exif=odd_exif(6))
    tag = struct.pack(">HHI", 0x011A, 5, 1)
    assert tag in content
    content = repaired(content.replace(tag, struct.pack(">HHI", 0x011A, 2, 1)))
    pixels, file = read(content, "face.png")
    assert np.array_equal(pixels, np.rot90(picture(), -1))
    assert "EXIF" not in file.reason


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_a_picture_whose_exif_cannot_be_read_is_shown_as_it_is_stored(read, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    pixels, file = read(encoded(picture(36, 48), file_format, exif=b"no EXIF at all", **options), "face")
    assert np.array_equal(pixels, picture(36, 48))
    assert file.reason == "EXIF that cannot be read, shown as it is stored"


# ------------------------------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file is empty"),
        (b"I am no image.", "not an image in a known format"),
        (b"\xff\xd8\xff", "not an image"),
        (encoded(picture(), "EPS"), "not an image in a known format"),
        (encoded(picture(), "ICO"), "not an image in a known format"),
        (b"%PDF-1.4\n", "not an image in a known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in a known format"),
    ],
    ids=["empty", "text", "first bytes", "EPS", "ICO", "PDF", "SVG"],
)
def test_no_image_is_refused_whatever_its_name(read, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        read(content, "face.jpg")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_refused(read, file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(noise, file_format)
    with pytest.raises(UnreadableImage, match=r"damaged|not an image"):
        read(content[: int(len(content) * share)])


def test_a_progressive_jpeg_cut_short_is_refused(read) -> None:
    content = encoded(picture(96, 96), "JPEG", progressive=True)
    with pytest.raises(UnreadableImage, match=r"damaged: .*truncated"):
        read(content[: len(content) // 2])


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreachableImage, match="cannot be read: No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(UnreachableImage, match="cannot be read: not a regular file"):
        read_image(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(UnreachableImage, match="cannot be read: "):
        read_image(tmp_path / "loop.png")
    with pytest.raises(UnreachableImage, match="cannot be read: embedded null"):
        read_image(tmp_path / "a\0b.png")


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreachableImage, match="cannot be read: not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_a_file_too_long_for_an_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    with (tmp_path / "disk.png").open("wb") as stream:
        stream.truncate(2**30 + 1)
    with pytest.raises(UnreachableImage, match="cannot be read: 1073741825 bytes, more than 1073741824"):
        read_image(tmp_path / "disk.png")


def test_too_little_memory_is_no_fault_of_the_file(read, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(UnreachableImage, match="cannot be read: not enough memory"):
        read(encoded(picture(), "PNG"))


def test_a_reason_is_one_line(read, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(UnreadableImage, match=r"^damaged: two lines$"):
        read(encoded(picture(), "PNG"))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_100, 10_000, 40_000])  # above the limit; above Pillow's warning; above its error
def test_a_huge_picture_is_refused_before_it_is_decoded(read, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match=f"^{side} x {side} pixels, more than 64 megapixels$"):
        read(png_header(side, side))


@pytest.mark.parametrize("side", [20_000, 40_000])
def test_the_limit_is_the_only_one(read, recwarn: pytest.WarningsRecorder, side: int) -> None:
    with pytest.raises(UnreadableImage, match="damaged"):  # past the limit, on to the pixels that are not there
        read(png_header(side, 2_000_000_000 // side // 2), max_megapixels=1000)
    assert not recwarn.list


def test_the_limit_is_exact(read) -> None:
    content = encoded(picture(10, 20), "PNG")
    assert read(content, max_megapixels=200e-6)[0].shape == (10, 20, 3)
    with pytest.raises(UnreadableImage, match=r"20 x 10 pixels, more than 0\.000199 megapixels"):
        read(content, max_megapixels=199e-6)


@pytest.mark.parametrize(("width", "height"), [(65_536, 1), (1, 65_536), (63_000_000, 1)])
def test_no_side_is_longer_than_that_of_a_jpeg(read, width: int, height: int) -> None:
    with pytest.raises(TooLargeImage, match=f"^{width} x {height} pixels, more than 65535 on a side$"):
        read(png(width, height, 1, 0))


def test_the_longest_side_is_hashed_and_resized(read) -> None:
    pixels, _ = read(png(65_535, 2, 1, 0))
    assert pixels.shape == (2, 65_535, 3)
    assert perceptual_hash(pixels) == ""  # its stripes are gray from afar
    assert resize(pixels, 32, "bicubic").shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("content", "claim"),
    [
        (webp_canvas(65_535, 65_535), "65535 x 65535"),
        (webp_canvas(2**24, 4), "16777216 x 4"),
        (gif(64, 64, (65_535, 65_535), disposal=2), "65535 x 65535"),
        (gif(64, 64, (9_000, 8_000), disposal=3), "9000 x 8000"),
    ],
    ids=["canvas", "wide canvas", "frame cleared", "frame restored"],
)
def test_a_claim_that_pillow_believes_at_once_is_not_even_opened(
    read, monkeypatch: pytest.MonkeyPatch, content: bytes, claim: str
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(TooLargeImage, match=f"^{claim} pixels, more than 64 megapixels$"):
        read(content)


@pytest.mark.parametrize(
    "blocks",
    [
        b"\x21\xfe\x03abc\x02de\x00",  # a comment of two parts
        b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00",
        b"\x21\xff\x03abc\x01,\x00",  # a comma within
        b"\x21\xf9\x00\x02,,\x00",  # Pillow takes what follows an empty block for one more
        b"\x21\xfe\x00",
        b"\x21\xff\x0bNETSCAPE2.0\x00\x02,,\x00",
        b"\x00\x07",  # belongs to nothing
    ],
    ids=bytes.hex,
)
def test_the_first_frame_of_a_gif_is_found_where_pillow_finds_it(
    read, monkeypatch: pytest.MonkeyPatch, blocks: bytes
) -> None:
    content = gif(64, 64, (200, 100), disposal=2)
    place = content.index(b"\x21\xf9")
    content = content[:place] + blocks + content[place:]
    assert Image.open(io.BytesIO(content)).size == (200, 100)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(TooLargeImage, match=r"^200 x 100 pixels, more than 0\.01 megapixels$"):
        read(content, max_megapixels=0.01)


@pytest.mark.parametrize("content", [b"GIF89a", gif(64, 64, (8, 8))[:30], webp_canvas(64, 64)[:20]], ids=bytes.hex)
def test_what_ends_before_its_claim_is_refused(read, content: bytes) -> None:
    with pytest.raises(UnreadableImage, match=r"not an image|damaged"):
        read(content)


def test_tiles_are_limited_as_pictures_are(read, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiled_tiff(100, 50, 128)
    assert read(content, max_megapixels=0.0164)[0].shape == (50, 100, 3)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(TooLargeImage, match=r"^tiles of 128 x 128 pixels, more than 0\.0163 megapixels$"):
        read(content, max_megapixels=0.0163)


def test_a_jpeg_may_have_a_hundred_scans(read, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(jpeg_of_scans(40, 40, 100))[0].shape == (40, 40, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UnreadableImage, match=r"^damaged: 101 scans, more than 100$"):
        read(jpeg_of_scans(40, 40, 101))


@pytest.mark.parametrize("hidden", [b"\xff\x01\xff\xff", b"\xff\xd3\xff\xff"], ids=bytes.hex)
def test_no_scan_is_hidden_behind_a_marker_without_a_length(read, hidden: bytes) -> None:
    content = jpeg_of_scans(40, 40, 101)
    first = content.index(b"\xff\xda")
    with pytest.raises(UnreadableImage, match=r"^damaged: 101 scans, more than 100$"):
        read(content[:first] + hidden + content[first:])


def test_scans_of_thumbnails_and_of_what_comes_after_do_not_count(read) -> None:
    many = jpeg_of_scans(40, 40, 101)
    content = encoded(picture(), "JPEG")
    content = content[:2] + segment(0xE1, many) + content[2:] + many
    assert read(content)[0].shape == (12, 18, 3)


def test_exif_of_a_jpeg_may_be_in_200_parts(read, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = encoded(picture(), "JPEG"), segment(0xE1, b"Exif\0\0")
    assert read(whole[:2] + part * 200 + whole[2:])[0].shape == (12, 18, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UnreadableImage, match=r"^damaged: EXIF in 201 parts, more than 200$"):
        read(whole[:2] + part * 201 + whole[2:])


@pytest.mark.parametrize(
    "image",
    [picture(600, 600)[:, :, 0].astype(np.uint16) * 257, picture(600, 600)[:, :, 0].astype(np.int32)],
    ids=["I;16", "I"],
)
def test_sixteen_bits_take_no_more_memory_than_eight(image: np.ndarray) -> None:
    content = encoded(image, "TIFF")
    tracemalloc.start()
    decode_image(content, "")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / image.size < 13  # bytes a pixel, Pillow's own apart


@pytest.mark.parametrize("name", noisy())
def test_nothing_is_said_of_a_file_but_its_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(noisy()[name])
    program = (
        "import sys; from pathlib import Path; from deepfake.data.images import UnreadableImage, read_image\n"
        "try: read_image(Path(sys.argv[1]))\n"
        "except UnreadableImage: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / name], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.filterwarnings("error")
def test_threads_leave_the_warnings_of_the_process_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(240, 240), "PNG"))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# ---------------------------------------------------------------------------------------------- what is suspicious


def face(seed: int = 0) -> Image.Image:
    """A picture that nothing is wrong with."""
    return Image.fromarray(picture(36, 48, seed))


def test_a_sound_image_has_no_reason(read) -> None:
    for suffix in SUFFIXES:
        file_format = Image.registered_extensions()[suffix]
        assert read(encoded(face(), file_format), f"face{suffix.upper()}")[1].reason == ""


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_read_and_that_is_told(read, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    first, *others = (face(seed).quantize(8).convert("RGB") for seed in range(3))
    content = encoded(first, file_format, save_all=True, append_images=others, **options)
    pixels, file = read(content, "face")
    assert np.array_equal(pixels, np.asarray(first))
    assert file.reason == "several frames, first one used"


def test_a_photograph_with_its_preview_is_one_image(read) -> None:
    content = encoded(face(), "MPO", save_all=True, append_images=[Image.fromarray(picture(6, 6))])
    pixels, file = read(content)
    assert (pixels.shape, file.format, file.jpeg_quality, file.reason) == ((36, 48, 3), "MPO", 75, "")


@pytest.mark.parametrize("file_format", ["GIF", "TIFF"])
def test_frames_are_not_counted(read, monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    content = encoded(face(), file_format, save_all=True, append_images=[face(seed) for seed in range(1, 40)])
    kind = {"GIF": GifImagePlugin.GifImageFile, "TIFF": TiffImagePlugin.TiffImageFile}[file_format]
    seek, sought = kind._seek, []
    monkeypatch.setattr(kind, "_seek", lambda image, frame, *more: sought.append(frame) or seek(image, frame, *more))
    assert read(content, "face")[1].reason == "several frames, first one used"
    assert set(sought) <= {0, 1}


@pytest.mark.parametrize(
    ("file_format", "name", "reason"),
    [
        ("PNG", "a.jpg", "PNG content under the name .jpg"),
        ("JPEG", "a.PNG", "JPEG content under the name .png"),
        ("WEBP", "a.jpeg", "WEBP content under the name .jpeg"),
        ("PPM", "a.bmp", "PPM content under the name .bmp"),
        ("PNG", "a.dat", ""),
        ("PNG", "jpg", ""),
    ],
)
def test_a_name_that_says_another_format_is_told(read, file_format: str, name: str, reason: str) -> None:
    assert read(encoded(face(), file_format), name)[1].reason == reason


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_blocks": 1}), ("PNG", {})],
)
@pytest.mark.parametrize("added", [b"PK", encoded(picture(), "JPEG"), b"\0\0\0hidden\0\0"])
def test_what_stands_behind_the_image_is_told(read, file_format: str, options: dict[str, Any], added: bytes) -> None:
    reason = read(encoded(face(), file_format, **options) + added, "face")[1].reason
    assert reason == f"{len(added.rstrip(bytes(1)))} bytes after the end of the image"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_padding_behind_the_image_is_usual(read, file_format: str) -> None:
    assert read(encoded(face(), file_format) + bytes(512), "face")[1].reason == ""


def test_a_thumbnail_within_a_photograph_does_not_end_it(read) -> None:
    exif = Image.Exif()
    exif[0x010E] = encoded(picture(), "JPEG")  # a whole JPEG, its end mark included, where a description stands
    content = encoded(face(), "JPEG", exif=exif)
    assert content.count(b"\xff\xd9") == 2
    assert read(content)[1].reason == ""


@pytest.mark.parametrize(("alpha", "reason"), [(255, ""), (254, "transparent pixels, shown white")])
def test_pixels_that_shine_through_are_told(read, alpha: int, reason: str) -> None:
    image = face()
    image.putalpha(255)
    image.putpixel((3, 3), (10, 20, 30, alpha))
    assert read(encoded(image, "PNG"), "face")[1].reason == reason


@pytest.mark.parametrize(("height", "width"), [(31, 200), (200, 31), (1, 1)])
def test_less_than_a_face_is_told(read, height: int, width: int) -> None:
    reason = read(encoded(picture(200, 200)[:height, :width], "PNG"), "face")[1].reason
    assert f"{width} x {height} pixels, smaller than 32 on a side" in reason


def test_32_pixels_are_enough(read) -> None:
    assert read(encoded(picture(32, 32), "PNG"), "face")[1].reason == ""


ONE_COLOUR = "all pixels are of nearly one colour"


@pytest.mark.parametrize(("noise", "reason"), [(0, ONE_COLOUR), (1.5, ONE_COLOUR), (3, "")])
def test_one_colour_is_told_even_with_noise(read, noise: float, reason: str) -> None:
    flat = np.random.default_rng(0).normal((200, 100, 50), noise, (64, 64, 3))
    assert read(encoded(np.rint(flat).astype(np.uint8), "PNG"), "face")[1].reason == reason


@pytest.mark.parametrize("deviation", [0.4, 1.9, 2.1, 20])
@pytest.mark.parametrize("place", [0, 5, slice(None)], ids=["a row looked at first", "another row", "all rows"])
def test_where_the_differences_are_does_not_matter(read, place: int | slice, deviation: float) -> None:
    pixels = np.full((64, 100, 3), 128.0)
    rows = pixels[place]
    rows[..., ::2, :] += 1
    rows[..., 1::2, :] -= 1
    pixels = np.rint(128 + (pixels - 128) * deviation / pixels.std()).clip(0, 255).astype(np.uint8)
    expected = ONE_COLOUR if pixels.std(axis=(0, 1)).max() < 2 else ""
    assert read(encoded(pixels, "PNG"), "face")[1].reason == expected


def test_two_colours_of_equal_brightness_are_two(read) -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:32, :, 0], halves[32:, :, 2] = 76, 200
    assert read(encoded(halves, "PNG"), "face")[1].reason == ""


def test_several_reasons_are_all_told(read) -> None:
    assert read(encoded(np.zeros((8, 8, 3), np.uint8), "PNG") + b"more")[1].reason == (
        "PNG content under the name .jpg; 4 bytes after the end of the image; "
        "8 x 8 pixels, smaller than 32 on a side; all pixels are of nearly one colour"
    )


# ------------------------------------------------------------------------------------------------- JPEG compression


@pytest.mark.parametrize("quality", range(1, 101))
def test_the_quality_of_a_jpeg_is_found(read, quality: int) -> None:
    file = read(encoded(picture(), "JPEG", quality=quality))[1]
    assert file.jpeg_quality == quality


def test_the_luma_table_is_the_one_of_the_brightness(read) -> None:
    tables = [[table] * 64 for table in (7, 99)]
    for image in (Image.fromarray(picture()), Image.fromarray(picture()).convert("L")):
        assert read(encoded(image, "JPEG", qtables=tables))[1].jpeg_luma == 7
    standard = read(encoded(picture(), "JPEG", quality=50))[1]  # quality 50 is the standard's own table
    assert standard.jpeg_luma == 57.625


def test_the_luma_table_is_the_one_the_first_component_names(read) -> None:
    content = bytearray(encoded(picture(), "JPEG", qtables=[[7] * 64, [99] * 64]))
    tables = [place for place in range(len(content)) if content.startswith(b"\xff\xdb", place)]
    frame = content.index(b"\xff\xc0")
    for place in (tables[0] + 4, tables[1] + 4, *(frame + 12 + 3 * component for component in range(3))):
        content[place] ^= 1  # tables 0 and 1 change names, where they are defined and where they are used
    assert read(bytes(content))[1].jpeg_luma == 7


@pytest.mark.parametrize("quality", range(1, 25))
def test_the_quality_of_tables_beyond_8_bits_is_found(quality: int) -> None:
    standard = np.array(Image.open(io.BytesIO(encoded(picture(), "JPEG", quality=50))).quantization[0])
    assert jpeg_quality((standard * (5000 // quality) + 50) // 100) == quality


def test_other_tables_get_the_nearest_quality(read) -> None:
    names = ["web_low", "web_medium", "web_high", "web_very_high", "web_maximum"]
    found = [read(encoded(picture(), "JPEG", qtables=JpegPresets.presets[n]["quantization"]))[1] for n in names]
    qualities = [file.jpeg_quality for file in found]
    assert qualities == sorted(set(qualities))
    assert 1 <= qualities[0] < 50 < 90 < qualities[-1] <= 100


@settings(max_examples=50)
@given(st.integers(1, 100), st.integers(0, 1000))
def test_a_quality_is_found_near_when_its_table_is_disturbed(quality: int, seed: int) -> None:
    table = np.array(Image.open(io.BytesIO(encoded(picture(), "JPEG", quality=quality))).quantization[0])
    disturbed = np.clip(table * np.random.default_rng(seed).uniform(0.9, 1.1, 64), 1, 255)
    assert abs(jpeg_quality(disturbed) - quality) <= 4


@pytest.mark.parametrize(("entry", "quality"), [(1, 100), (255, 1), (65535, 1)])
def test_quality_stays_between_1_and_100(entry: int, quality: int) -> None:
    assert jpeg_quality(np.full(64, entry)) == quality


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_what_is_no_jpeg_has_no_quality(read, file_format: str) -> None:
    file = read(encoded(picture(), file_format))[1]
    assert (file.jpeg_quality, file.jpeg_luma) == (-1, -1.0)


# ------------------------------------------------------------------------------------------------- perceptual hash


def portrait(seed: int, size: int = 128) -> Image.Image:
    """Soft shapes with fine grain, as a photograph has."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    grain = random.normal(0, 4, (size, size, 1))
    return Image.fromarray(
        np.clip(np.asarray(shapes.resize((size, size), Image.Resampling.BICUBIC)) + grain, 0, 255).astype(np.uint8)
    )


def phash(image: Image.Image) -> str:
    return perceptual_hash(np.asarray(image))


def distance(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (200, 90)])
def test_the_hash_is_the_one_of_imagehash(size: tuple[int, int]) -> None:
    image = portrait(0).resize(size)
    found = phash(image)
    assert len(found) == 16
    assert found == str(imagehash.phash(image))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((64, 64), Image.Resampling.BILINEAR),
    "twice the size": lambda image: image.resize((256, 256), Image.Resampling.BICUBIC),
    "another shape": lambda image: image.resize((100, 160), Image.Resampling.LANCZOS),
    "JPEG at 75": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=75))),
    "JPEG at 50": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=50))),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "darker": lambda image: image.point(lambda value: value * 0.8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_stays_within_4_bits(change: str) -> None:
    for seed in range(20):
        assert distance(phash(portrait(seed)), phash(CHANGES[change](portrait(seed)).convert("RGB"))) <= 4


def test_other_pictures_are_far_apart() -> None:
    hashes = [phash(portrait(seed)) for seed in range(40)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 8


@pytest.mark.parametrize("noise", [0, 1, 1.9])
def test_what_is_nearly_flat_has_no_hash(noise: float) -> None:
    thumbnail = np.rint(np.random.default_rng(0).normal(128, noise, (32, 32, 1))).astype(np.uint8)
    assert perceptual_hash(thumbnail.repeat(3, axis=2)) == ""


def test_little_contrast_has_a_hash() -> None:
    ramp = np.linspace(120, 132, 64).astype(np.uint8)
    assert perceptual_hash(np.broadcast_to(ramp[:, None, None], (64, 64, 3)).copy()) != ""


@pytest.mark.real
def test_real_faces_keep_their_hash_when_they_are_saved_anew(assets: Path) -> None:
    files = sorted((assets / "faces").glob("*/*.jpg"))[::50]
    for file in files:
        pixels, _ = read_image(file)
        smaller = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BILINEAR)
        again = Image.open(io.BytesIO(encoded(smaller, "JPEG", quality=75)))
        assert distance(perceptual_hash(pixels), phash(again)) <= 4


# ------------------------------------------------------------------------------------------------------- resize


def test_resize_of_the_right_size_changes_nothing() -> None:
    square = picture(12, 12)
    assert np.array_equal(resize(square, 12, "bilinear"), square)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (6, 6)])
def test_resize_squashes_to_a_square_and_keeps_flat_colour(shape: tuple[int, int], interpolation: str) -> None:
    flat = np.broadcast_to(np.array([10, 100, 200], np.uint8), (*shape, 3))
    small = resize(np.ascontiguousarray(flat), 8, interpolation)
    assert small.shape == (8, 8, 3)
    assert (small == [10, 100, 200]).all()


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inside = resize(stripes, 8, "bilinear")[:, 1:-1].astype(int)
    # Each new pixel spans eight stripes of either colour; picking single pixels would give 0 or 255.
    assert np.abs(inside - 127.5).max() <= 2


def test_interpolations_differ() -> None:
    assert not np.array_equal(resize(picture(), 32, "bilinear"), resize(picture(), 32, "bicubic"))
