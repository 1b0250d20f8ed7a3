"""A prepared image is the original at the network's size; the cache saves work and can do no harm."""

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepfake.data import prepared
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import PreparedImages
from deepfake.inputs import InputSpec

SPEC = InputSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected(path: Path, spec: InputSpec = SPEC) -> np.ndarray:
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    return np.asarray(Image.open(path).convert("RGB").resize((spec.size, spec.size), how))


def only_file(cache: Path) -> Path:
    (file,) = [path for path in cache.rglob("*") if path.is_file()]
    return file


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("cached", [True, False])
def test_pixels_are_the_original_at_the_networks_size(original, tmp_path, interpolation: str, cached: bool) -> None:
    spec = InputSpec(20, SPEC.mean, SPEC.std, interpolation)
    images = PreparedImages(spec, tmp_path / "cache" if cached else None, 64)
    for _ in range(2):
        pixels = images.read(original, sha256(original))
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, expected(original, spec))


def test_the_second_reading_does_not_need_the_original(original, tmp_path, decoded) -> None:
    content, pixels = sha256(original), expected(original)
    PreparedImages(SPEC, tmp_path / "cache", 64).read(original, content)
    assert decoded == [original]
    original.unlink()
    again = PreparedImages(SPEC, tmp_path / "cache", 64)  # another run
    assert np.array_equal(again.read(original, content), pixels)
    assert decoded == [original]


def test_equal_files_share_one_entry_and_other_sizes_have_their_own(original, tmp_path, decoded) -> None:
    copy = Path(shutil.copy(original, tmp_path / "copy.png"))
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    images.read(original, sha256(original))
    images.read(copy, sha256(copy))
    assert decoded == [original]
    for other in (
        InputSpec(24, SPEC.mean, SPEC.std, "bilinear"),
        InputSpec(16, SPEC.mean, SPEC.std, "bicubic"),
    ):
        pixels = PreparedImages(other, tmp_path / "cache", 64).read(original, sha256(original))
        assert np.array_equal(pixels, expected(original, other))
    assert decoded == [original] * 3


def saved(array: np.ndarray) -> Callable[[Path], None]:
    return lambda file: np.save(file, array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:200]),
        lambda file: file.write_bytes(b"no array"),
        lambda file: file.write_bytes(b"PK\x03\x04" + b"\0" * 40),  # begins as a zip archive
        lambda file: file.write_bytes(b"\x80\x04\x95" + b"\0" * 40),  # begins as a pickle
        saved(np.zeros((16, 16, 2), np.uint8)),
        saved(np.zeros((8, 8, 3), np.uint8)),
        saved(np.zeros((16, 16, 3), np.float32)),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["empty", "cut", "text", "zip", "pickle", "channels", "size", "type", "folder"],
)
def test_a_damaged_entry_is_made_again(original, tmp_path, decoded, damage: Callable[[Path], object]) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    images.read(original, sha256(original))
    file = only_file(tmp_path / "cache")
    damage(file)
    assert np.array_equal(images.read(original, sha256(original)), expected(original))
    assert decoded == [original] * 2
    if not file.is_dir():
        assert np.array_equal(np.load(file), expected(original))


def test_damage_anywhere_in_the_header_is_survived(original, tmp_path) -> None:
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    content = sha256(original)
    images.read(original, content)
    file = only_file(tmp_path / "cache")
    whole = file.read_bytes()
    for place in range(128):  # the header; what follows are pixels
        for flip in (1, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            pixels = images.read(original, content)
            assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)


def test_a_cache_that_cannot_be_written_costs_speed_alone(original, tmp_path, decoded) -> None:
    (tmp_path / "file").write_text("in the way of the folder")
    images = PreparedImages(SPEC, tmp_path / "file" / "cache", 64)
    for _ in range(2):
        assert np.array_equal(images.read(original, sha256(original)), expected(original))
    assert decoded == [original] * 2


def test_a_full_disk_leaves_no_entry_and_costs_speed_alone(original, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    images = PreparedImages(SPEC, tmp_path / "cache", 64)
    assert np.array_equal(images.read(original, sha256(original)), expected(original))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_many_readers_at_once_all_see_the_whole_image(faces: Path, tmp_path) -> None:
    paths = sorted(faces.rglob("*.png"))[:6]
    jobs = [(path, sha256(path)) for path in paths] * 8
    readers = [PreparedImages(SPEC, tmp_path / "cache", 64) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda n: readers[n % 2].read(*jobs[n]), range(len(jobs))))
    for (path, _), pixels in zip(jobs, read, strict=True):
        assert np.array_equal(pixels, expected(path))
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(f"{sha256(path)}.npy" for path in paths)


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
