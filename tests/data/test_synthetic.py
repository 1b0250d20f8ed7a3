"""The made-up pictures: the same bytes always, nothing but the planted traces between the classes."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepfake.data import synthetic
from deepfake.data.synthetic import SHORTCUTS, SOURCES, TRACES, make_face, make_faces, save_face
from deepfake.errors import UserError

CAMERAS = [source for source in SOURCES if source.startswith("0-")]
GENERATORS = [source for source in SOURCES if source.startswith("1-")]


def contents(root: Path) -> dict[str, bytes]:
    """{"folder/name": bytes} of all files under `root`."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(make_faces(tmp_path_factory.mktemp("faces") / "small", 8, 64, seed=3, workers=0))


def of_class(files: dict[str, bytes], label: str) -> list[dict[str, bytes]]:
    """One {name: bytes} per source of the class."""
    sources = CAMERAS if label == "0" else GENERATORS
    return [{name.split("/")[1]: data for name, data in files.items() if name.startswith(s)} for s in sources]


def decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def luminance_table(data: bytes) -> bytes:
    """The quantisation table of a JPEG file, which tells its quality."""
    start = data.index(b"\xff\xdb")
    return data[start + 5 : start + 5 + 64]


# ------------------------------------------------------------------------------------- determinism and files


def test_bytes_depend_on_neither_call_nor_workers(small, tmp_path, monkeypatch):
    processes = []
    pool = synthetic.ProcessPoolExecutor
    monkeypatch.setattr(
        synthetic, "ProcessPoolExecutor", lambda n, **options: processes.append(n) or pool(n, **options)
    )
    assert contents(make_faces(tmp_path / "two", 8, 64, seed=3, workers=2)) == small
    assert processes == [2]


def test_pictures_do_not_depend_on_how_many_are_made(small, tmp_path):
    fewer = contents(make_faces(tmp_path / "fewer", 3, 64, seed=3))
    assert len(fewer) == 3 * len(SOURCES)
    assert fewer.items() <= small.items()


def test_every_picture_is_its_own(small, tmp_path):
    other_seed = contents(make_faces(tmp_path / "other", 8, 64, seed=4, workers=0))
    assert other_seed.keys() == small.keys()
    assert len({*small.values(), *other_seed.values()}) == 2 * len(small)


def test_seed_trains_other_generators():
    def kernel(seed: int) -> np.ndarray:
        synthetic._trained_layers.cache_clear()
        return synthetic._trained_layers(SOURCES["1-Nearest"], 2, seed)[0].keywords["kernel"]

    assert np.array_equal(kernel(0), kernel(0))
    assert not np.array_equal(kernel(0), kernel(1))


def test_layout_sizes_and_formats_are_the_same_in_every_source(small):
    assert sorted({name.split("/")[0] for name in small}) == sorted(SOURCES)
    assert len(CAMERAS) >= 2
    assert len(GENERATORS) >= 4
    assert {decode(data).shape for data in small.values()} == {(64, 64, 3)}
    sources = of_class(small, "0") + of_class(small, "1")
    for files in sources:
        assert files.keys() == sources[0].keys()
        assert sorted(Path(name).suffix for name in files) == [".jpg"] * 4 + [".png"] * 4
        for name, data in files.items():
            assert data.startswith(b"\x89PNG" if name.endswith("png") else b"\xff\xd8")
            if name.endswith("jpg"):
                assert luminance_table(data) == luminance_table(sources[0][name])


# ------------------------------------------------------------------------------------------------- shortcuts


def test_shortcut_size_makes_fakes_smaller_and_nothing_else(small, tmp_path):
    files = contents(make_faces(tmp_path / "size", 8, 64, seed=3, shortcut="size", workers=0))
    assert files.keys() == small.keys()  # so the formats are those without a shortcut
    for name, data in files.items():
        if name.startswith("0-"):
            assert data == small[name]
        else:
            assert decode(data).shape == (56, 56, 3)
            if name.endswith("jpg"):
                assert luminance_table(data) == luminance_table(small[name])


def test_shortcut_jpeg_saves_real_as_poor_jpeg_and_fakes_as_png(small, tmp_path):
    files = contents(make_faces(tmp_path / "jpeg", 8, 64, seed=3, shortcut="jpeg", workers=0))
    assert {Path(name).suffix for name in files if name.startswith("0-")} == {".jpg"}
    assert {Path(name).suffix for name in files if name.startswith("1-")} == {".png"}
    assert {decode(data).shape for data in files.values()} == {(64, 64, 3)}
    coarsest = max(sum(luminance_table(data)) for name, data in small.items() if name.endswith("jpg"))
    assert all(sum(luminance_table(data)) > coarsest for name, data in files.items() if name.startswith("0-"))
    for name, data in files.items():  # the pictures themselves are those without a shortcut
        if name in small and name.startswith("1-"):
            assert data == small[name]


# ---------------------------------------------------------------------------------------------------- traces

PICTURES = 24
SIZE = 128


def power_spectrum(picture: np.ndarray) -> np.ndarray:
    """(SIZE, SIZE) power of the grey picture, mean removed, under a Hann window."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
    window = np.hanning(SIZE + 1)[:-1]
    return np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(window, window))) ** 2


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[np.ndarray]]:
    return {source: [make_face(source, i, SIZE, seed=0) for i in range(PICTURES)] for source in SOURCES}


@pytest.fixture(scope="module")
def spectra(pictures) -> dict[str, np.ndarray]:
    return {source: np.mean([power_spectrum(p) for p in made], axis=0) for source, made in pictures.items()}


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def height(spectrum: np.ndarray, fy: float, fx: float) -> float:
    """How far the bin at (fy, fx) stands above the median of the bins 3 to 6 away, in dB."""
    y, x = round(fy * SIZE), round(fx * SIZE)
    around = [
        spectrum[(y + i) % SIZE, (x + j) % SIZE]
        for i in range(-6, 7)
        for j in range(-6, 7)
        if max(abs(i), abs(j)) >= 3
    ]
    return decibels(spectrum[y % SIZE, x % SIZE] / np.median(around))


ALL_TRACES = sorted({frequency for listed in TRACES.values() for frequency in listed})


@pytest.mark.parametrize(("source", "frequency"), [(s, f) for s in TRACES for f in TRACES[s]])
def test_traced_peaks_stand_8_db_above_the_cameras(spectra, source, frequency):
    y, x = (round(f * SIZE) % SIZE for f in frequency)
    assert decibels(spectra[source][y, x] / max(spectra[camera][y, x] for camera in CAMERAS)) > 8
    assert height(spectra[source], *frequency) > 8


@pytest.mark.parametrize("source", [source for source in SOURCES if source not in TRACES])
@pytest.mark.parametrize("frequency", ALL_TRACES)
def test_other_sources_have_no_such_peaks(spectra, source, frequency):
    # At (1/2, 1/2) the cameras' mosaic has a peak of its own; the test above bounds it by the generators'.
    if frequency != (0.5, 0.5) or source not in CAMERAS:
        assert height(spectra[source], *frequency) < 6


def test_pixel_shuffle_has_no_peaks_of_period_4(spectra):
    for frequency in set(TRACES["1-Transposed"]) - set(TRACES["1-PixelShuffle"]):
        assert height(spectra["1-PixelShuffle"], *frequency) < 5


def test_traces_survive_jpeg():
    def saved(source: str, index: int) -> np.ndarray:
        _, data = cv2.imencode(".jpg", make_face(source, index, SIZE, 0), [cv2.IMWRITE_JPEG_QUALITY, 93])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)

    power = {
        source: np.mean([power_spectrum(saved(source, i)) for i in range(PICTURES)], axis=0)
        for source in (*CAMERAS, *TRACES)
    }
    for source, listed in TRACES.items():
        for fy, fx in listed:
            y, x = round(fy * SIZE) % SIZE, round(fx * SIZE) % SIZE
            assert decibels(power[source][y, x] / np.mean([power[c][y, x] for c in CAMERAS])) > 6


def test_nearest_and_bilinear_leave_what_the_docstring_says(spectra):
    cameras = np.mean([spectra[camera] for camera in CAMERAS], axis=0)
    fy, fx = np.abs(np.fft.fftfreq(SIZE))[:, None], np.abs(np.fft.fftfreq(SIZE))[None, :]

    def above_cameras(source: str, where: np.ndarray) -> float:
        return decibels(spectra[source][where].mean() / cameras[where].mean())

    beside = (fy > 0.44) & (fy < 0.49) & (fx < 0.06) | (fx > 0.44) & (fx < 0.49) & (fy < 0.06)
    high, corner = np.hypot(fy, fx) > 0.25, (fy > 0.45) & (fx > 0.45)
    assert above_cameras("1-Nearest", beside) > 6
    assert above_cameras("1-Bilinear", beside) < 0
    assert above_cameras("1-Bilinear", high) < -1.5
    assert above_cameras("1-Bilinear", corner) < -4


def test_content_does_not_separate_the_classes(pictures):
    """Of each figure, the classes' means differ by less than 0.5 of its spread between pictures."""

    def figures(picture: np.ndarray) -> list[float]:
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        small = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
        return [*picture.mean((0, 1)), picture.std(), small.std(), hsv[..., 1].mean()]

    classes = [np.array([figures(p) for s in group for p in pictures[s]]) for group in (CAMERAS, GENERATORS)]
    effect = (classes[0].mean(0) - classes[1].mean(0)) / classes[0].std(0)
    assert np.abs(effect).max() < 0.5
    assert classes[0].std(0).min() > 1  # and they do vary


def test_pictures_are_neither_dark_nor_flat_nor_clipped(pictures):
    for made in pictures.values():
        for picture in made:
            assert picture.dtype == np.uint8
            assert 80 < picture.mean() < 180
            assert picture.std() > 10
            assert np.isin(picture, (0, 255)).mean() < 0.05


# -------------------------------------------------------------------------------- interruption, races, misuse


def test_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    made = []

    def stop_at_the_tenth(*args, **options):
        made.append(args)
        if len(made) == 10:
            raise KeyboardInterrupt
        save_face(*args, **options)

    monkeypatch.setattr(synthetic, "save_face", stop_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        make_faces(tmp_path / "faces", 2, 64, workers=0)
    assert len(made) == 10
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_at_root_before_all_is_made(tmp_path, monkeypatch):
    seen = []

    def look_then_save(*args, **options):
        seen.append((tmp_path / "faces").exists())
        save_face(*args, **options)

    monkeypatch.setattr(synthetic, "save_face", look_then_save)
    make_faces(tmp_path / "faces", 1, 64, workers=0)
    assert seen == [False] * len(SOURCES)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_loser_of_a_race_takes_what_the_winner_made(tmp_path, monkeypatch):
    root, winner = tmp_path / "faces", tmp_path / "winner"
    make_faces(winner, 1, 64, workers=0)

    def other_finishes_first(*args, **options):
        save_face(*args, **options)
        if not root.exists():
            shutil.copytree(winner, root)
            (root / "mark").write_text("the winner's")

    monkeypatch.setattr(synthetic, "save_face", other_finishes_first)
    assert make_faces(root, 1, 64, workers=0) == root
    assert (root / "mark").read_text() == "the winner's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "winner"]


def test_existing_root_is_returned_untouched_and_an_empty_one_filled(tmp_path):
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "a").write_text("kept")
    assert make_faces(full, 1, 64) == full
    assert contents(full) == {"a": b"kept"}
    assert len(contents(make_faces(empty, 1, 64))) == len(SOURCES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images_per_source": 0}, "images_per_source a whole number from 1, found 0"),
        ({"images_per_source": 2.5}, "images_per_source a whole number from 1, found 2.5"),
        ({"size": 100}, "size a multiple of 32 from 64 .* found 100"),
        ({"size": 32}, "size a multiple of 32 from 64 .* found 32"),
        ({"seed": -1}, "seed a whole number from 0, found -1"),
        ({"seed": True}, "seed a whole number from 0, found True"),
        ({"shortcut": "colour"}, f"shortcut {' or '.join(SHORTCUTS)} or None, found 'colour'"),
        ({"workers": -2}, "workers a whole number from 0 or None, found -2"),
    ],
)
def test_bad_arguments_are_told_in_one_line(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message) as error:
        make_faces(tmp_path / "faces", **{"images_per_source": 1, "size": 64, **wrong})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_at_root_is_refused(tmp_path):
    (tmp_path / "faces").write_text("mine")
    with pytest.raises(UserError, match=r"found the file .*faces: take another name"):
        make_faces(tmp_path / "faces", 1, 64)
    assert (tmp_path / "faces").read_text() == "mine"
