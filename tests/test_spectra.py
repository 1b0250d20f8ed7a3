"""The command as a user gives it: means by source, what stands out, pictures, and an exit status for scripts."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake import analysing
from deepfake.data.catalog import read_catalogue
from deepfake.spectra import main

SIDE = 64


class Left(NamedTuple):
    """What the command left."""

    status: int
    report: dict[str, Any]  # spectra.json
    means: dict[str, np.ndarray]  # spectra.npz
    folder: Path

    def source(self, name: str) -> dict[str, Any]:
        return next(source for source in self.report["sources"] if source["name"] == name)

    def mean(self, name: str, what: str) -> np.ndarray:
        return self.means[what][self.means["names"].tolist().index(name)]


def spectra(folder: Path, *overrides: str, pictures: bool = False) -> Left:
    """Run the command in this process; without its pictures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(analysing, "_draw", lambda *_: None)
        given = ["progress=false", "size=48", f"output={folder}", f"data.cache.dir={folder.parent / 'cache'}"]
        patch.setattr(sys, "argv", ["deepfake-spectra", *given, *overrides])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    report, means = folder / "spectra.json", folder / "spectra.npz"
    return Left(
        status,
        json.loads(report.read_text()) if report.exists() else {},
        dict(np.load(means, allow_pickle=False)) if means.exists() else {},
        folder,
    )


def refused(capfd: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """The one line with which it ends."""
    assert spectra(folder, *overrides).status == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def draw(path: Path, seed: int, side: int = SIDE, pattern: float = 0.0, **how: Any) -> None:
    """A smooth picture, and on it what a transposed convolution by 4 may leave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(60, 196, (8, 8, 3), dtype=np.uint8))
    picture = np.asarray(blocks.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    row, column = np.indices((side, side))
    picture += random.normal(0, 2, picture.shape) + pattern * ((row % 4 == 0) & (column % 4 == 0))[:, :, None]
    Image.fromarray(picture.round().clip(0, 255).astype(np.uint8)).save(path, **how)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real sources, a fake one with a pattern of period 4, and one without."""
    root = tmp_path_factory.mktemp("sources")
    for number in range(18):
        draw(root / "0-camera" / f"{number:02}.png", number)
        draw(root / "0-phone" / f"{number:02}.png", 100 + number)
        draw(root / "1-gan" / f"{number:02}.png", 200 + number, pattern=12)
        draw(root / "1-smooth" / f"{number:02}.png", 300 + number)
    return root


@pytest.fixture(scope="module")
def left(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return spectra(tmp_path_factory.mktemp("report") / "spectra", f"data.root={root}", pictures=True)


def test_it_leaves_pictures_means_and_the_catalogue_and_ends_with_status_0(left: Left, root: Path) -> None:
    assert left.status == 0
    assert {file.name for file in left.folder.iterdir()} == {
        "sheet.png", "profiles_before.png", "profiles_after.png", "peaks.csv", "spectra.json", "spectra.npz",
        "catalogue.csv", "catalogue.parquet",
    }  # fmt: skip
    assert len(read_catalogue(left.folder / "catalogue.csv")) == 72
    assert left.report["images"] == 72
    assert left.report["prevalence"] == 0.5
    assert [(source["name"], source["images"]) for source in left.report["sources"]] == [
        ("all real", 36), ("all fake", 36), ("0-camera", 18), ("0-phone", 18), ("1-gan", 18), ("1-smooth", 18),
    ]  # fmt: skip
    assert left.report["settings"]["data"]["root"] == str(root)


@pytest.mark.parametrize("window", [False, True])
def test_means_equal_an_independent_computation_from_the_files(window: bool, root: Path, tmp_path: Path) -> None:
    left = spectra(tmp_path / "spectra", f"data.root={root}", "square=40", f"window={window}")

    def slow(picture: Image.Image) -> np.ndarray:
        red, green, blue = np.moveaxis(np.asarray(picture), 2, 0) / 255
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(len(light)) / len(light))
        light = (light - light.mean()) * (np.outer(taper, taper) if window else 1)
        return np.abs(np.fft.fftshift(np.fft.fft2(light)))

    pictures = [Image.open(file) for file in sorted((root / "1-gan").iterdir())]
    cut = np.array([slow(picture.crop((12, 12, 52, 52))) for picture in pictures])
    shrunk = np.array([slow(picture.resize((48, 48), Image.Resampling.BICUBIC)) for picture in pictures])
    for stage, magnitude in (("before", cut), ("after", shrunk)):
        power = magnitude**2 / magnitude.shape[-1] ** 4
        expected = {
            "power": power.mean(axis=0),
            "power_std": power.std(axis=0),
            "log_magnitude": np.log(1 + magnitude).mean(axis=0),
            "decibels": (10 * np.log10(power + 1e-12)).mean(axis=0),
        }
        for name, values in expected.items():
            nothing = 1e-12 * abs(values).max()  # as the zero frequency, whose mean was removed
            np.testing.assert_allclose(left.mean("1-gan", f"{stage}_{name}"), values, rtol=1e-6, atol=nothing)
    assert left.means["hann_window"] == window
    assert left.report["definition"]["window"] == ("Hann" if window else "none")


def test_the_mean_of_a_class_is_over_its_images(left: Left) -> None:
    sources = [left.mean(name, "before_power") for name in ("1-gan", "1-smooth")]
    np.testing.assert_allclose(left.mean("all fake", "before_power"), np.mean(sources, axis=0), rtol=1e-5)


def test_the_pattern_of_a_generator_is_named_and_followed_through_the_resize(left: Left) -> None:
    gan = left.source("1-gan")
    assert {(peak["down"], peak["across"]) for peak in gan["peaks"]} >= {(0, 0.25), (0.25, 0), (0.25, 0.25)}
    assert any("period 4 px" in told and "nearest or transposed upsampling by 4" in told for told in gan["sentences"])
    after = {(peak["down"], peak["across"]): peak["after"] for peak in gan["peaks"]}
    # 1/4 of a cycle of 64 pixels is 1/3 of one of 48; 1/2 is 2/3, which comes back as -1/3.
    for before, moved in ((0.25, 1 / 3), (0.5, -1 / 3)):
        assert (after[0, before]["down"], after[0, before]["across"]) == pytest.approx((0, moved))
    assert after[0, 0.25]["above"] > 6
    assert (0, 1 / 3) in {(peak["down"], peak["across"]) for peak in gan["peaks_after"]}
    assert "after the resize to 48 px" in gan["sentences"][-1]
    with (left.folder / "peaks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["source"] for row in rows} == {"1-gan"}
    assert {row["stage"] for row in rows} == {"before", "after"}


def test_a_trace_that_the_resize_takes_away_is_not_told_as_one() -> None:
    eye = analysing._Eye(
        64, False, analysing.InputSpec(48, (0.0,) * 3, (1.0,) * 3, "bicubic"), analysing.Preparation()
    )
    left = {"down": 0.0, "across": 0.25, "above": -3.0}
    told = "after the resize to 48 px they stand out no further than in the real sources"
    assert analysing._told_left([left, left], eye, True) == told
    assert "up to 7 dB above" in analysing._told_left([left, left | {"above": 7.0}], eye, True)
    assert "the 1 of 2 that can be followed stand out no further" in analysing._told_left([left, None], eye, True)
    assert "all of them to below 8 cycles an image" in analysing._told_left([None], eye, True)
    assert "it moves those of each image elsewhere" in analysing._told_left([None], eye, False)


def test_a_peak_that_the_resize_folds_onto_the_steep_spectrum_is_not_followed(root: Path, tmp_path: Path) -> None:
    """1/4 of a cycle of 64 pixels is half of one of 32; 1/2 is a whole one, which comes back at zero."""
    gan = spectra(tmp_path / "spectra", f"data.root={root}", "size=32").source("1-gan")
    after = {(peak["down"], peak["across"]): peak["after"] for peak in gan["peaks"]}
    assert after[0, 0.25] is not None
    assert after[0, 0.5] is None
    assert "that can be followed" in gan["sentences"][-1]


@pytest.mark.parametrize("single", ["1-gan", "0-phone"])
def test_of_a_single_image_there_is_no_interval(single: str, root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(root, tmp_path / "faces")
    for file in sorted((copied / single).iterdir())[1:]:
        file.unlink()
    left = spectra(tmp_path / "spectra", f"data.root={copied}", "pairs={1-gan: 0-phone}")
    gan = left.source("1-gan")
    assert gan["images"] == (1 if single == "1-gan" else 18)
    for stage in ("before", "after"):
        assert gan["high_frequencies_db"][stage]["low"] is gan["high_frequencies_db"][stage]["high"] is None
    assert gan["peaks"]
    assert {(peak["low"], peak["high"]) for peak in gan["peaks"] + gan["peaks_after"]} == {(None, None)}
    table = pd.read_csv(left.folder / "peaks.csv")
    assert table.loc[table["source"] == "1-gan", ["low", "high"]].isna().all(axis=None)
    other = left.source("1-smooth")["high_frequencies_db"]["before"]
    assert other["low"] < other["value"] < other["high"]


def test_images_that_are_all_the_same_have_no_interval_of_width_zero(root: Path, tmp_path: Path) -> None:
    for source in ("0-camera", "1-gan"):
        (tmp_path / "faces" / source).mkdir(parents=True)
        for number in range(3):
            shutil.copy(root / source / "00.png", tmp_path / "faces" / source / f"{number}.png")
    gan = spectra(tmp_path / "spectra", f"data.root={tmp_path}/faces").source("1-gan")
    assert gan["high_frequencies_db"]["before"]["low"] is None
    assert {(peak["low"], peak["high"]) for peak in gan["peaks"]} == {(None, None)}


def test_what_is_real_or_has_no_pattern_has_no_peaks(left: Left) -> None:
    assert left.source("1-smooth")["sentences"] == []
    assert "peaks" not in left.source("0-camera")


def test_each_fake_source_is_held_against_its_own_real_one(root: Path, tmp_path: Path) -> None:
    pairs = spectra(tmp_path / "asked", f"data.root={root}", "pairs={1-gan: 0-phone}")
    assert [pairs.source(name)["against"] for name in ("1-gan", "1-smooth", "0-phone")] == [
        "0-phone", "all real", "all real",
    ]  # fmt: skip
    table = [(f"{file.parent.name}/{file.name}", int(file.parent.name[0])) for file in sorted(root.rglob("*.png"))]
    rows = [[path, label, path.split("/")[0], "0-camera" if label else ""] for path, label in table]
    columns = ["path", "label", "source", "parent"]
    copied = shutil.copytree(root, tmp_path / "faces")
    pd.DataFrame(rows, columns=columns).to_csv(copied / "labels.csv", index=False)
    told = spectra(tmp_path / "told", f"data.root={copied}", "data.manifest=labels.csv")
    assert [told.source(name)["against"] for name in ("1-gan", "1-smooth")] == ["0-camera"] * 2


def test_a_pair_that_is_not_there_is_refused(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysing, "_means", lambda *_: pytest.fail("refused only after all images were looked at"))
        line = refused(capfd, tmp_path / "spectra", f"data.root={root}", "pairs={1-gan: 0-film}")
    assert "expected real sources out of 0-camera, 0-phone; found 0-film" in line


def test_files_that_cannot_be_used_have_a_reason_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(root, tmp_path / "faces")
    (copied / "1-gan" / "text.png").write_text("no picture")
    draw(copied / "1-gan" / "small.png", 0, side=40)
    left = spectra(tmp_path / "spectra", f"data.root={copied}", "square=64")
    assert left.status == 3
    assert (left.report["left_out"], left.report["too_small"], left.source("1-gan")["images"]) == (2, 1, 18)
    reasons = read_catalogue(left.folder / "catalogue.csv").set_index("path")["reason"]
    assert reasons["1-gan/text.png"] == "not an image in a known format"
    assert reasons["1-gan/small.png"] == "40 x 40 pixels, smaller than the square of 64 x 64"


def test_a_file_that_changes_meanwhile_is_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(root, tmp_path / "faces")
    found = analysing.catalogue

    def slow(*given: Any, **named: Any) -> Any:
        table = found(*given, **named)
        shutil.copy(copied / "1-gan" / "00.png", copied / "1-gan" / "01.png")
        return table

    monkeypatch.setattr(analysing, "catalogue", slow)
    left = spectra(tmp_path / "spectra", f"data.root={copied}")
    assert left.status == 3
    reasons = read_catalogue(left.folder / "catalogue.csv").set_index("path")["reason"]
    assert reasons["1-gan/01.png"] == "has changed since it was catalogued"


@pytest.mark.parametrize(("sides", "chosen"), [([300, 300], 256), ([75, 300], 72), ([224, 240], 224)])
def test_the_square_is_as_large_as_all_sources_allow(sides: list[int], chosen: int, tmp_path: Path) -> None:
    for source, side in zip(("real", "fake"), sides, strict=True):
        for number in range(3):
            draw(tmp_path / "faces" / source / f"{number}.png", number + side, side)
    left = spectra(tmp_path / "spectra", f"data.root={tmp_path / 'faces'}")
    assert left.report["definition"]["before"]["square"] == chosen
    assert left.means["before_power"].shape[1:] == (chosen, chosen)
    assert left.means["after_power"].shape[1:] == (48, 48)
    assert left.status == 0


def test_one_tiny_image_among_hundreds_does_not_decide_the_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysing, "_HELD", 0.05)
    for number in range(20):
        draw(tmp_path / "faces" / "real" / f"{number}.png", number, 33 if number == 0 else 80)
        draw(tmp_path / "faces" / "fake" / f"{number}.png", 100 + number, 80)
    left = spectra(tmp_path / "spectra", f"data.root={tmp_path / 'faces'}")
    assert left.report["definition"]["before"]["square"] == 80
    assert (left.status, left.report["too_small"]) == (3, 1)


def test_images_too_small_to_say_anything_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for source in ("real", "fake"):
        draw(tmp_path / "faces" / source / "1.png", 0, side=20)
    line = refused(capfd, tmp_path / "spectra", f"data.root={tmp_path / 'faces'}")
    assert "as small as 20 pixels: expected at least 32" in line


def test_a_square_larger_than_every_image_is_refused(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(capfd, tmp_path / "spectra", f"data.root={root}", "square=65")
    assert "expected images of at least 65 pixels a side" in line


def test_the_means_are_the_same_whatever_the_number_of_threads(
    root: Path, tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysing.os, "cpu_count", lambda: 7)
    monkeypatch.setattr(analysing, "_CHUNK", 16)
    again = spectra(tmp_path / "spectra", f"data.root={root}")
    for name, values in left.means.items():
        np.testing.assert_array_equal(again.means[name], values, err_msg=name)


def test_the_largest_sources_are_shown_and_all_count_in_the_classes(
    root: Path, tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(analysing, "SHOWN", 3)
    few = spectra(tmp_path / "spectra", f"data.root={root}")
    assert "4 sources: the 3 largest are shown" in " ".join(capfd.readouterr().err.split())
    assert few.means["names"].tolist() == ["all real", "all fake", "0-camera", "0-phone", "1-gan"]
    np.testing.assert_array_equal(few.mean("all fake", "after_power"), left.mean("all fake", "after_power"))


def test_one_class_has_means_and_no_peaks(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for source in ("1-gan", "1-smooth"):
        shutil.copytree(root / source, tmp_path / "faces" / source)
    left = spectra(tmp_path / "spectra", f"data.root={tmp_path / 'faces'}")
    assert left.status == 0
    assert [source["name"] for source in left.report["sources"]] == ["all fake", "1-gan", "1-smooth"]
    assert left.source("1-gan")["against"] is None
    assert "no peak was looked for" in " ".join(capfd.readouterr().err.split())


def test_images_are_looked_at_as_they_are_prepared(root: Path, tmp_path: Path) -> None:
    left = spectra(tmp_path / "spectra", f"data.root={root}", "data.preprocess=crop")
    assert left.report["definition"]["after"]["mode"] == "crop"
    assert "cannot be followed" in left.source("1-gan")["sentences"][-1]
    # Nothing is resampled, so that the pattern is where it was.
    assert {(peak["down"], peak["across"]) for peak in left.source("1-gan")["peaks_after"]} >= {(0, 0.25)}


# ---------------------------------------------------------------------------------------------------------- one image


def test_an_image_stands_beside_the_mean_of_its_source(root: Path, tmp_path: Path) -> None:
    left = spectra(tmp_path / "spectra", f"data.root={root}", f"image={root}/1-gan/03.png")
    assert left.report["image"] == {"file": f"{root}/1-gan/03.png", "beside": ["1-gan"]}
    assert (left.folder / "image.png").stat().st_size > 10_000
    again = spectra(tmp_path / "spectra", f"data.root={root}")
    assert again.report["image"] is None
    assert not (left.folder / "image.png").exists()


def test_an_image_from_elsewhere_stands_beside_both_classes(root: Path, tmp_path: Path) -> None:
    draw(tmp_path / "$x^$ <b>.png", 7, side=100)
    left = spectra(tmp_path / "spectra", f"data.root={root}", f"image='{tmp_path}/$x^$ <b>.png'")
    assert left.report["image"]["beside"] == ["all real", "all fake"]
    assert (left.folder / "image.png").exists()


def test_an_image_that_cannot_be_looked_at_is_refused(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [tmp_path / "spectra", f"data.root={root}"]
    assert "expected an image that can be read, found: cannot be read" in refused(capfd, *given, "image=absent.png")
    draw(tmp_path / "small.png", 0, side=50)
    line = refused(capfd, *given, f"image={tmp_path}/small.png")
    assert "found: 50 x 50 pixels, smaller than the square of 64 x 64" in line
    assert not (tmp_path / "spectra").exists()


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("square=8", "at least 16 pixels, or null to choose"),
        ("size=16", "at least 32 pixels"),
        ("square=1025", "at most 1,024, for each source keeps a dozen spectra of that size in memory"),
        ("size=4096", "at most 1,024, for each source keeps a dozen spectra of that size in memory"),
        ("interpolation=nearest", "bicubic or bilinear"),
        ("image=''", "an image"),
        ("data.hold_out=1-gan", "to leave it out, for nothing is split here"),
        ("data.split_seed=3", "to leave it out, for nothing is split here"),
        ("squares=64", "did you mean square?"),
    ],
)
def test_a_setting_that_says_nothing_here_is_refused(
    override: str, expected: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capfd, tmp_path / "spectra", f"data.root={root}", override)


def test_an_output_that_cannot_be_written_is_refused(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capfd, tmp_path / "file" / "spectra", f"data.root={root}", f"data.cache.dir={tmp_path}")
    assert "output: expected a folder that can be written" in line


def test_no_readable_image_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("real", "fake"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        (tmp_path / "faces" / name / "1.png").write_text("no picture")
    line = refused(capfd, tmp_path / "spectra", f"data.root={tmp_path / 'faces'}")
    assert "found 2 files and none that can be read" in line


def test_two_ways_to_look_at_a_folder_are_two_reports(root: Path, tmp_path: Path) -> None:
    for square in (32, 40):
        spectra(
            tmp_path / "unused", f"data.root={root}", f"square={square}", "output=null", f"output_dir={tmp_path}/o"
        )
    assert len(list((tmp_path / "o" / "spectra").iterdir())) == 2
