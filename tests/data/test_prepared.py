"""A prepared image is a known function of the original; the cache saves work, keeps its limit and can do no harm."""

import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepfake.data import prepared
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import Preparation, PreparedImages, smallest_common_size
from deepfake.errors import UserError
from deepfake.inputs import InputSpec

SPEC = InputSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
CROP = Preparation("crop")
FILE = 128 + 16 * 16 * 3  # bytes of one in the cache
GB = 1e-9  # of one byte


@pytest.fixture
def original(faces: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(faces / "0-camera" / "01.png", tmp_path / "original.png"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files decoded so far."""
    paths: list[Path] = []
    read_image = prepared.read_image
    monkeypatch.setattr(prepared, "read_image", lambda path, *limit: paths.append(path) or read_image(path, *limit))
    return paths


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("deepfake"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def expected(path: Path, spec: InputSpec = SPEC) -> np.ndarray:
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    return np.asarray(Image.open(path).convert("RGB").resize((spec.size, spec.size), how))


def fill(images: PreparedImages, *paths: Path) -> None:
    for path in paths:
        images.store(sha256(path), images.prepare(path, sha256(path)))


def files_in(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def only_file(cache: Path) -> Path:
    (file,) = files_in(cache)
    return file


def saved_picture(path: Path, width: int, height: int) -> Path:
    random = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(random).save(path)
    return path


# -------------------------------------------------------------------------------------------------------- resize


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("cached", [True, False])
def test_pixels_are_the_original_at_the_networks_size(original, tmp_path, interpolation: str, cached: bool) -> None:
    spec = InputSpec(20, SPEC.mean, SPEC.std, interpolation)
    images = PreparedImages(spec, tmp_path / "cache", 64)
    if cached:
        fill(images, original)
    pixels = images.read(original, sha256(original))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected(original, spec))


@pytest.mark.parametrize("preparation", [Preparation(), CROP], ids=["resize", "crop"])
def test_what_is_read_may_be_written_into(original, tmp_path, preparation: Preparation) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, preparation)
    fill(images, original)
    pixels = images.read(original, sha256(original))
    before = pixels.copy()
    pixels[:] = 255 - pixels
    assert np.array_equal(images.read(original, sha256(original)), before)


# ---------------------------------------------------------------------------------------------------------- crop


def cropped(path: Path, images: PreparedImages, place: tuple[float, float] | None = None) -> np.ndarray:
    return images.read(path, sha256(path), place)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("place", "top", "left"),
    [
        (None, 12, 16),  # the middle of 40 x 48
        ((0.0, 0.0), 0, 0),
        ((0.9999, 0.9999), 24, 32),
        ((0.5, 0.0), 12, 0),
        ((0.0, 0.5), 0, 16),
        ((0.2, 0.8), 5, 26),
    ],
)
def test_a_crop_is_a_part_of_the_original_pixel_by_pixel(original, tmp_path, cached, place, top, left) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, CROP)
    if cached:
        fill(images, original)
    whole = pixels_of(original)
    assert whole.shape == (40, 48, 3)
    assert np.array_equal(cropped(original, images, place), whole[top : top + 16, left : left + 16])


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    place=st.none() | st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_a_crop_holds_nothing_but_the_image_and_its_reflection(tmp_path_factory, width, height, place) -> None:
    path = saved_picture(tmp_path_factory.getbasetemp() / "picture.png", width, height)
    found = cropped(path, PreparedImages(SPEC, None, 64, CROP), place)
    missing = max(16 - height, 0), max(16 - width, 0)
    padding = [(m // 2, m - m // 2) for m in missing]
    whole = np.pad(pixels_of(path), [*padding, (0, 0)], mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(whole, (16, 16, 3))[:, :, 0]
    assert (views == found).all(axis=(2, 3, 4)).any()


def test_the_first_and_the_last_place_reach_the_edges(tmp_path) -> None:
    path = saved_picture(tmp_path / "picture.png", 19, 300)
    images = PreparedImages(SPEC, None, 64, CROP)
    almost_one = float(np.nextafter(1, 0))
    assert np.array_equal(cropped(path, images, (0.0, 0.0)), pixels_of(path)[:16, :16])
    assert np.array_equal(cropped(path, images, (almost_one, almost_one)), pixels_of(path)[-16:, -16:])


def test_crops_of_all_networks_share_one_whole_image(original, tmp_path, decoded) -> None:
    fill(PreparedImages(SPEC, tmp_path / "cache", 64, CROP), original)
    for size, interpolation in ((24, "bilinear"), (16, "bicubic"), (64, "bicubic")):
        spec = InputSpec(size, SPEC.mean, SPEC.std, interpolation)
        again = PreparedImages(spec, tmp_path / "cache", 64, CROP)
        fresh = PreparedImages(spec, None, 64, CROP)
        assert again.missing([sha256(original)]) == []
        assert np.array_equal(cropped(original, again, (0.3, 0.6)), cropped(original, fresh, (0.3, 0.6)))
    assert len(decoded) == 1 + 3


# ------------------------------------------------------------------------------------------------------ equalise


@pytest.mark.parametrize(("width", "height"), [(160, 128), (128, 160), (128, 128)])
def test_equalised_is_the_middle_square_averaged_and_through_jpeg(tmp_path, width: int, height: int) -> None:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 16, (height, width, 3), dtype=np.uint8) * 16
    Image.fromarray(pixels).save(path)
    images = PreparedImages(InputSpec(32, SPEC.mean, SPEC.std, "bilinear"), None, 64, Preparation(equalise=32))
    top, left = (height - 128) // 2, (width - 128) // 2
    square = pixels[top : top + 128, left : left + 128].astype(int)
    averaged = (square.reshape(32, 4, 32, 4, 3).sum(axis=(1, 3)) // 16).astype(
        np.uint8
    )  # sixteenths: nothing is lost
    through = io.BytesIO()
    Image.fromarray(averaged).save(through, "JPEG", quality=96, subsampling="4:2:0")
    assert np.array_equal(images.read(path, sha256(path)), np.asarray(Image.open(through)))


def test_equal_pixels_are_the_same_whatever_their_file_was(tmp_path) -> None:
    png = saved_picture(tmp_path / "a.png", 40, 40)
    bmp = saved_picture(tmp_path / "a.bmp", 40, 40)
    images = PreparedImages(SPEC, None, 64, Preparation(equalise=24))
    assert np.array_equal(images.read(png, sha256(png)), images.read(bmp, sha256(bmp)))


def test_an_image_of_the_common_size_is_still_compressed(tmp_path) -> None:
    path = saved_picture(tmp_path / "picture.png", 16, 16)
    found = PreparedImages(SPEC, None, 64, Preparation(equalise=16)).read(path, sha256(path))
    through = io.BytesIO()
    Image.open(path).save(through, "JPEG", quality=96, subsampling="4:2:0")
    assert np.array_equal(found, np.asarray(Image.open(through)))


def test_equalising_comes_before_the_crop(tmp_path) -> None:
    path = saved_picture(tmp_path / "picture.png", 100, 80)
    images = PreparedImages(SPEC, tmp_path / "cache", 64, Preparation("crop", equalise=40))
    fill(images, path)
    assert np.load(only_file(tmp_path / "cache")).shape == (40, 40, 3)


def test_equalising_never_enlarges(tmp_path) -> None:
    path = saved_picture(tmp_path / "picture.png", 31, 60)
    images = PreparedImages(SPEC, None, 64, Preparation(equalise=32))
    with pytest.raises(UnreadableImage, match=r"^31 x 60 pixels, too small to be equalised to 32 x 32$"):
        images.read(path, sha256(path))


def test_the_smallest_common_size_is_of_those_that_can_be_read() -> None:
    table = pd.DataFrame({"width": [300, 0, 120, 90], "height": [200, 0, 110, 400]})
    assert smallest_common_size(table) == 90
    with pytest.raises(UserError, match="expected an image that can be read"):
        smallest_common_size(table.iloc[[1]])


# --------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("preparation", [Preparation(), CROP, Preparation(equalise=24)], ids=str)
def test_a_stored_image_does_not_need_the_original(original, tmp_path, decoded, preparation) -> None:
    content = sha256(original)
    first = PreparedImages(SPEC, tmp_path / "cache", 64, preparation)
    fill(first, original)
    pixels = PreparedImages(SPEC, None, 64, preparation).read(original, content)
    original.unlink()
    again = PreparedImages(SPEC, tmp_path / "cache", 64, preparation)  # another run
    assert np.array_equal(again.read(original, content), pixels)
    assert len(decoded) == 2


def test_reading_alone_stores_nothing(original, tmp_path) -> None:
    PreparedImages(SPEC, tmp_path / "cache", 64).read(original, sha256(original))
    assert not (tmp_path / "cache").exists()


def test_whatever_decides_the_pixels_has_an_entry_of_its_own(original, tmp_path) -> None:
    others = [
        (SPEC, Preparation()),
        (InputSpec(24, SPEC.mean, SPEC.std, "bilinear"), Preparation()),
        (InputSpec(16, SPEC.mean, SPEC.std, "bicubic"), Preparation()),
        (SPEC, Preparation(equalise=24)),
        (SPEC, Preparation(equalise=32)),
        (SPEC, CROP),
        (SPEC, Preparation("crop", equalise=24)),
    ]
    for spec, preparation in others:
        images = PreparedImages(spec, tmp_path / "cache", 64, preparation)
        assert images.missing([sha256(original)]) == [sha256(original)]
        fill(images, original)
    for spec, preparation in others:
        stored = PreparedImages(spec, tmp_path / "cache", 64, preparation)
        fresh = PreparedImages(spec, None, 64, preparation)
        assert np.array_equal(cropped(original, stored), cropped(original, fresh))


@pytest.mark.parametrize("preparation", [Preparation(), CROP, Preparation("crop", equalise=24)], ids=str)
def test_an_entry_takes_as_many_bytes_as_was_said(original, tmp_path, preparation: Preparation) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, preparation)
    fill(images, original)
    assert only_file(tmp_path / "cache").stat().st_size == images.stored_bytes(48, 40)


@pytest.mark.parametrize("shape", [(1, 1, 3), (99_999, 1, 3), (1, 99_999, 3)])
def test_entries_of_any_size_are_read_back(tmp_path, shape: tuple[int, ...]) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, CROP)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images.store("00", pixels)
    left = max(shape[1] - 16, 0) // 2
    found = images.read(tmp_path / "absent.png", "00")
    assert found[8, 8 if shape[1] == 1 else 0].tolist() in pixels[:, left].tolist()
    assert only_file(tmp_path / "cache").stat().st_size == images.stored_bytes(shape[1], shape[0])


def saved(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: np.save(file, array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:200]),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: file.write_bytes(b"no array"),
        lambda file: file.write_bytes(b"PK\x03\x04" + b"\0" * 40),  # begins as a zip archive
        lambda file: file.write_bytes(b"\x80\x04\x95" + b"\0" * 40),  # begins as a pickle
        saved(np.zeros((16, 16, 2), np.uint8)),
        saved(np.zeros((8, 8, 3), np.uint8)),
        saved(np.zeros((16, 16, 3), np.float32)),
        saved(np.asfortranarray(np.zeros((16, 16, 3), np.uint8))),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=[
        "empty",
        "cut",
        "one less",
        "one more",
        "text",
        "zip",
        "pickle",
        "channels",
        "size",
        "type",
        "order",
        "folder",
    ],
)
def test_a_damaged_entry_is_made_again(original, tmp_path, decoded, damage: Callable[[Path], object]) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    fill(images, original)
    file = only_file(tmp_path / "cache")
    damage(file)
    assert np.array_equal(images.read(original, sha256(original)), expected(original))
    assert decoded == [original] * 2
    if not file.is_dir():
        assert np.array_equal(np.load(file), expected(original))


@pytest.mark.parametrize("preparation", [Preparation(), CROP], ids=["resize", "crop"])
def test_damage_anywhere_in_the_header_is_survived(original, tmp_path, preparation: Preparation) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, preparation)
    fill(images, original)
    content, clean = sha256(original), images.read(original, sha256(original))
    file = only_file(tmp_path / "cache")
    whole = file.read_bytes()
    for place in range(128):  # the header; what follows are pixels
        for flip in (1, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            assert np.array_equal(images.read(original, content), clean)


def test_a_cache_that_cannot_be_written_costs_speed_alone(original, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way of the folder")
    images = PreparedImages(SPEC, tmp_path / "file" / "cache", 64)
    assert images.missing([sha256(original)]) == [sha256(original)]
    assert np.array_equal(images.read(original, sha256(original)), expected(original))


def test_a_full_disk_leaves_no_entry(original, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    with pytest.raises(OSError, match="no space left"):
        fill(images, original)
    assert files_in(tmp_path / "cache") == []
    assert np.array_equal(images.read(original, sha256(original)), expected(original))


def test_many_writers_and_readers_at_once_all_see_the_whole_image(faces: Path, tmp_path) -> None:
    paths = sorted(faces.rglob("*.png"))[:6]
    jobs = paths * 16
    images = [PreparedImages(SPEC, tmp_path / "cache", 64) for _ in range(2)]

    def job(number: int) -> np.ndarray:
        if number % 4 == 0:
            fill(images[0], jobs[number])
        elif number % 4 == 1:  # the cache is deleted at the same time
            for file in files_in(tmp_path / "cache"):
                if file.suffix == ".npy":
                    file.unlink(missing_ok=True)
        return images[1].read(jobs[number], sha256(jobs[number]))

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(job, range(len(jobs))))
    for path, pixels in zip(jobs, read, strict=True):
        assert np.array_equal(pixels, expected(path))


@pytest.mark.parametrize("cached", [True, False])
def test_an_original_that_changed_is_refused_and_not_stored(faces, original, tmp_path, cached: bool) -> None:
    content = sha256(original)
    shutil.copy(faces / "0-camera" / "02.png", original)
    images = PreparedImages(SPEC, tmp_path / "cache" if cached else None, 64)
    with pytest.raises(UnreadableImage, match=r"^has changed since it was catalogued$"):
        images.read(original, content)
    assert not (tmp_path / "cache").exists()


def test_an_original_that_is_gone_or_too_large_is_refused(original, tmp_path) -> None:
    content = sha256(original)
    with pytest.raises(UnreadableImage, match=r"more than 0\.001 megapixels"):
        PreparedImages(SPEC, None, 0.001).read(original, content)
    original.unlink()
    with pytest.raises(UnreadableImage, match="cannot be read"):
        PreparedImages(SPEC, tmp_path / "cache", 64).read(original, content)


# ------------------------------------------------------------------------------------------- what is missing, limit


@pytest.fixture
def paths(faces: Path) -> list[Path]:
    """Twenty different images."""
    return sorted(faces.rglob("*.png"))[:20]


def room_for(images: PreparedImages, paths: list[Path]) -> set[str]:
    rows = pd.DataFrame({"sha256": names(paths), "width": 48, "height": 40})
    return images.make_room(rows, images.missing(names(paths)))


def names(paths: list[Path]) -> list[str]:
    return [sha256(path) for path in paths]


def stored_in(cache: Path) -> set[str]:
    return {file.stem for file in files_in(cache)}


def unused_for(file: Path | str, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(file, (then, then))


def test_missing_are_those_without_a_file_in_the_order_given(paths, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    assert images.missing(names(paths)) == names(paths)
    fill(images, *paths[5:9])
    assert images.missing(names(paths)) == names(paths[:5] + paths[9:])
    assert images.missing(names(paths[5:9])) == []


def test_missing_reads_no_file(original, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    fill(images, original)
    only_file(tmp_path / "cache").write_bytes(b"")
    assert images.missing([sha256(original)]) == []


def test_without_a_limit_all_are_to_be_stored_and_nothing_goes(paths, tmp_path) -> None:
    fill(PreparedImages(SPEC, tmp_path / "cache", 64, CROP), *paths)
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    assert room_for(images, paths) == set(names(paths))
    assert len(files_in(tmp_path / "cache")) == len(paths)


def test_a_limit_of_nothing_is_no_cache(original, tmp_path) -> None:
    fill(PreparedImages(SPEC, tmp_path / "cache", 64), original)
    only_file(tmp_path / "cache").write_bytes(b"not looked at, not mended")
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=0)
    assert room_for(images, [original]) == set()
    assert np.array_equal(images.read(original, sha256(original)), expected(original))
    assert only_file(tmp_path / "cache").read_bytes() == b"not looked at, not mended"


def test_what_was_unused_for_longest_goes_first(paths, tmp_path) -> None:
    old = PreparedImages(InputSpec(16, SPEC.mean, SPEC.std, "bicubic"), tmp_path / "cache", 64)
    fill(old, *paths[:4])
    for hours, path in zip((5, 9, 2, 7), paths[:4], strict=True):
        unused_for(old._file(sha256(path)), hours)
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=5 * FILE * GB)
    assert room_for(images, paths[10:13]) == set(names(paths[10:13]))
    assert stored_in(tmp_path / "cache") == {sha256(paths[0]), sha256(paths[2])}


def test_nothing_goes_while_there_is_room(paths, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=5 * FILE * GB)
    fill(images, *paths[:3])
    assert room_for(images, paths[3:5]) == set(names(paths[3:5]))
    assert stored_in(tmp_path / "cache") == set(names(paths[:3]))


def test_what_a_run_needs_is_touched_and_stays(paths, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=4 * FILE * GB)
    fill(images, *paths[:4])
    for path in paths[:4]:
        unused_for(images._file(sha256(path)), 10)
    unused_for(images._file(sha256(paths[0])), 1)  # of another run, and used since
    began = time.time() - 60
    assert room_for(images, paths[1:5]) == {sha256(paths[4])}
    assert stored_in(tmp_path / "cache") == set(names(paths[1:4]))
    assert all(Path(images._file(sha256(path))).stat().st_mtime > began for path in paths[1:4])


def test_a_complete_set_is_touched_too(paths, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=4 * FILE * GB)
    fill(images, paths[0])
    unused_for(only_file(tmp_path / "cache"), 10)
    assert room_for(images, paths[:1]) == set()
    assert only_file(tmp_path / "cache").stat().st_mtime > time.time() - 60


def test_of_a_set_that_does_not_fit_the_first_are_stored_and_one_warning_says_so(paths, tmp_path, warnings) -> None:
    other = PreparedImages(SPEC, tmp_path / "cache", 64, CROP)
    fill(other, *paths[:2])
    images = PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=6.5 * FILE * GB)
    fill(images, paths[19])
    room = room_for(images, paths)
    assert room == set(names(paths[:5]))
    fill(images, *paths[:5])
    assert sum(file.stat().st_size for file in files_in(tmp_path / "cache")) <= 6.5 * FILE
    (warning,) = warnings()
    assert "20 prepared images would take" in warning
    assert "14 of them are not stored" in warning
    assert room_for(PreparedImages(SPEC, tmp_path / "cache", 64, max_gb=6.5 * FILE * GB), paths) == set()


def test_unfinished_files_go_an_hour_after_their_writer_died(original, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    folder = Path(images._file(sha256(original))).parent
    folder.mkdir(parents=True)
    for name, hours in (("old", 1.1), ("young", 0.9)):
        (folder / f".{name}.npy.1-2.tmp").write_bytes(b"half")
        unused_for(folder / f".{name}.npy.1-2.tmp", hours)
    room_for(images, [original])
    assert [path.name for path in files_in(tmp_path / "cache")] == [".young.npy.1-2.tmp"]


def test_other_things_in_the_cache_are_left_alone(paths, tmp_path) -> None:
    cache = tmp_path / "cache"
    for path in (cache / "trunk" / "ab" / "x.npy", cache / "images.txt", cache / "images-old-v1" / "ab" / "x.npy"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * FILE)
        unused_for(path, 100)
    room_for(PreparedImages(SPEC, cache, 64, max_gb=FILE * GB), paths[:1])
    assert [path.name for path in files_in(cache)] == ["images.txt", "x.npy"]
    assert not (cache / "images-old-v1" / "ab" / "x.npy").exists()
