"""A finished run is explained: what was planted in the images is found, by place and by frequency."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deepfake import probing, runs
from deepfake.config import conf_dir, parse_explain, parse_train
from deepfake.data.images import read_image
from deepfake.data.prepared import Preparation
from deepfake.errors import UserError
from deepfake.explain import main
from deepfake.explaining import Explainer
from deepfake.judging import Detector
from deepfake.train import run as train

SIDE, PATCH = 128, 32  # pixels; of 4 x 4 places, one each
TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "batch_size=4", "accumulate=1", "lr=3e-3",
    "patience=null", "unfreeze=all", "augment=none", "trunk.engine=eager", "trainer=cpu", "trainer.progress=false",
    "logger.image_grid=0", "data.fractions=[0.5,0.1,0.4]", f"model.input_size={SIDE}", "epochs=6",
)  # fmt: skip
FEW = ("images=4", "shifts=1", "filtered=4", "cutoffs=[0.1,0.3]", "probed=20", "sheet=1")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coarse noise; in each fake, at one of 16 places, a chessboard of single pixels: all that tells it."""
    root = tmp_path_factory.mktemp("planted")
    random, board = np.random.default_rng(0), np.indices((PATCH, PATCH)).sum(axis=0) % 2 * 2 - 1
    for source, fake in (("0-plain", False), ("1-planted", True)):
        (root / source).mkdir()
        for number in range(40):
            image = 128 + 20 * np.kron(random.standard_normal((8, 8, 3)), np.ones((16, 16, 1)))
            row, column = random.integers(0, SIDE // PATCH, 2)
            if fake:
                top, left = PATCH * row, PATCH * column
                image[top : top + PATCH, left : left + PATCH] += 60 * board[..., np.newaxis]
            name = f"{number:02}_{row}{column}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / source / name)
    return root


@pytest.fixture(scope="module")
def run(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [*TINY, f"data.root={planted}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    train(cfg)
    return runs.run_folder(cfg)


def explain(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-explain", "progress=false", "engine=eager", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr(probing, "_draw", lambda *given: ({}, {}))


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explanation.json").read_text())


@pytest.fixture(scope="module")
def sheets() -> list[tuple[list[str], str]]:
    """Of each sheet that the report drew, the names of its images, and its title."""
    return []


@pytest.fixture(scope="module")
def report(run: Path, sheets: list[tuple[list[str], str]]) -> Path:
    drawn = probing.mistakes_sheet

    def noting(pictures: Any, captions: Any, title: str, columns: int) -> Any:
        assert len(pictures) == len(captions)
        sheets.append(([caption[2] for caption in captions[::2]], title))
        return drawn(pictures, captions, title, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "mistakes_sheet", noting)
        assert explain(f"run={run}", "filtered=100", "cutoffs=[0.05,0.2,0.35]", "shifts=2", "sheet=3") == 0
    return run / "explanation"


@pytest.fixture(scope="module")
def own(run: Path) -> pd.DataFrame:
    """The run's own verdict on its test part."""
    return pd.read_csv(run / "test_predictions.csv", float_precision="round_trip")


# ------------------------------------------------------------------------------------------ what was planted is found


def test_the_hottest_place_is_where_the_chessboard_is(run: Path, planted: Path, own: pd.DataFrame) -> None:
    (member,) = Detector.load(run, "eager").members
    explainer = Explainer([member])
    fakes = own[(own["label"] == 1) & (own["margin"] > 0)]["path"]
    images = np.concatenate([member.prepared(read_image(planted / path)[0], "none") for path in fakes])
    heat = explainer.heat([images], np.full(len(images), True))[None]
    hottest = heat.reshape(-1, 4, PATCH, 4, PATCH).mean(axis=(2, 4)).reshape(-1, 16).argmax(axis=1)
    planted_at = [4 * int(path[-6]) + int(path[-5]) for path in fakes]
    assert len(fakes) > 10
    assert (hottest == planted_at).mean() > 0.8


def test_the_maps_are_shown_to_be_faithful(report: Path) -> None:
    found = told(report)["deletion"]
    assert found["faithful"]
    assert found["interval"][0] > 0.02
    assert found["interval_common"][0] > 0.02
    assert found["sentence"].startswith("Faithful: hiding the hottest places first")
    assert found["auc_hot"] < min(found["auc_random"], found["auc_common"])
    assert found["hidden_as"].startswith("a Gaussian blur")


@pytest.mark.usefixtures("undrawn")
def test_maps_of_something_else_are_not(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each image's neighbour in the batch."""
    heat = Explainer.heat

    def others(self: Explainer, *given: Any) -> Any:
        return {part: np.roll(maps, 1, axis=0) for part, maps in heat(self, *given).items()}

    monkeypatch.setattr(Explainer, "heat", others)
    assert explain(f"run={run}", f"output={tmp_path}", *FEW, "images=100") == 0
    found = told(tmp_path)["deletion"]
    assert not found["faithful"]
    assert found["sentence"].startswith("Not ")


@pytest.mark.usefixtures("undrawn")
def test_a_map_that_knows_nothing_of_its_image_is_not_either(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of all images of a verdict: against their own mean there is no difference at all."""
    spot = np.exp(-((np.indices((SIDE, SIDE)) - SIDE / 2) ** 2).sum(axis=0) / 2000).astype(np.float32)
    monkeypatch.setattr(
        Explainer,
        "heat",
        lambda self, images, fake: {None: np.where(fake[:, np.newaxis, np.newaxis], spot, 1 - spot)},
    )
    assert explain(f"run={run}", f"output={tmp_path}", *FEW, "images=100") == 0
    found = told(tmp_path)["deletion"]
    assert found["common"] == pytest.approx(found["hot"], abs=1e-6)
    assert found["interval_common"] == pytest.approx([0, 0], abs=1e-6)
    assert not found["faithful"]
    assert found["sentence"].startswith("Not ")


@pytest.mark.usefixtures("undrawn")
def test_elsewhere_alone_does_not_make_a_map_faithful(
    run: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes whose chessboard is at one place only: a map that knows that place, whatever the image, is no better."""
    for source, number in (("0-plain", 20), ("1-planted", 20)):
        (tmp_path / "data" / source).mkdir(parents=True)
        for file in sorted((planted / source).iterdir())[:number]:
            pixels = np.array(Image.open(file))
            if source == "1-planted":
                row, column = int(file.stem[-2]), int(file.stem[-1])
                pixels = np.roll(pixels, (PATCH * (1 - row), PATCH * (1 - column)), axis=(0, 1))
            Image.fromarray(pixels).save(tmp_path / "data" / source / file.name)
    place = np.zeros((SIDE, SIDE), np.float32)
    place[PATCH : 2 * PATCH, PATCH : 2 * PATCH] = 1
    monkeypatch.setattr(Explainer, "heat", lambda self, images, fake: {None: np.stack([place] * len(fake))})
    data = (f"data.root={tmp_path}/data", f"data.cache.dir={tmp_path}/cache", f"output={tmp_path}/report")
    assert explain(f"run={run}", *data, *FEW, "images=100", "shifts=2") == 0
    found = told(tmp_path / "report")["deletion"]
    assert found["by_verdict"]["fake"]["interval"][0] > 0.02  # elsewhere takes less
    assert not found["by_verdict"]["fake"]["faithful"]
    assert "more of the confidence" in found["by_verdict"]["fake"]["sentence"]
    assert (
        "but perhaps hardly more, or no more, than hiding the places that are hot on average"
        in (found["by_verdict"]["fake"]["sentence"])
    )


def test_the_run_hangs_on_the_frequencies_of_the_chessboard(report: Path) -> None:
    found = told(report)["frequencies"]
    assert found["unfiltered"]["auroc"] > 0.95
    assert min(found["high_pass"]["auroc"]) > 0.95
    assert max(found["low_pass"]["auroc"]) < 0.75
    assert "more than half is left by what is finer than 0.35 cycles a pixel" in found["sentence"]
    assert found["probe_low"]["auroc"][0] < 0.75
    assert min(found["probe_high"]["auroc"]) > 0.95


# -------------------------------------------------------------------------------------------------- what stands in it


def test_the_curves_begin_at_the_runs_own_verdict(report: Path, own: pd.DataFrame) -> None:
    found = told(report)
    assert found["images"] == found["deletion"]["images"] == found["frequencies"]["images"] == len(own)
    p = own["probability"]
    first = np.maximum(p, 1 - p).mean()
    assert found["deletion"]["hot"][0] == pytest.approx(first, abs=1e-5)
    for control in ("random", "common"):
        assert found["deletion"][control][0] == pytest.approx(first, abs=1e-5)
        assert found["deletion"]["hot"][-1] == pytest.approx(found["deletion"][control][-1])  # all is hidden
    assert found["deletion"]["hot"][5] != found["deletion"]["random"][5]
    assert found["frequencies"]["unfiltered"]["auroc"] == pytest.approx(roc_auc_score(own["label"], own["margin"]))


def test_of_the_same_verdicts_the_curves_are_told_apart(report: Path, own: pd.DataFrame) -> None:
    found = told(report)["deletion"]["by_verdict"]
    called = (own["probability"] > 0.5).sum()
    assert {name: part["images"] for name, part in found.items()} == {"fake": called, "real": len(own) - called}


@pytest.mark.usefixtures("undrawn")
def test_a_curve_of_hidden_places_is_what_the_detector_says_of_them(
    run: Path, own: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hide and judge by hand, from the pixels: half of the places, the hottest first."""
    drawn: list[np.ndarray] = []
    ranked = probing.deletion.hottest_first
    monkeypatch.setattr(
        probing.deletion, "hottest_first", lambda *given: drawn.append(ranked(*given)) or drawn[-1]  # type: ignore[func-returns-value]
    )  # fmt: skip
    kept: list[pd.DataFrame] = []
    limited = probing.limit_images
    monkeypatch.setattr(probing, "limit_images", lambda *given: kept.append(limited(*given)) or kept[-1])  # type: ignore[func-returns-value]
    assert explain(f"run={run}", f"output={tmp_path}", *FEW, "hide=mean") == 0
    detector = Detector.load(run, "eager")
    (member,) = detector.members
    confidence = []
    root = json.loads((tmp_path / "explanation.json").read_text())["data"]["root"]
    for ranks, row in zip(drawn[::2], kept[0].to_dict("records"), strict=True):
        (image,) = member.prepared(read_image(Path(root, row["path"]))[0], "none")
        covered = image.mean(axis=(1, 2))
        for row_of_places, column in np.argwhere(ranks < 8):
            place = (slice(32 * row_of_places, 32 * row_of_places + 32), slice(32 * column, 32 * column + 32))
            image[:, *place] = covered[:, np.newaxis, np.newaxis]
        p = detector.calibration.probabilities(member.margins(image[np.newaxis, np.newaxis]))[0]
        confidence.append(p if row["verdict"] == "fake" else 1 - p)
    assert told(tmp_path)["deletion"]["hot"][5] == pytest.approx(np.mean(confidence), abs=1e-5)


@pytest.mark.parametrize(
    ("number", "kind", "label", "called"),
    [(0, "true_fake", 1, True), (1, "false_fake", 0, True), (2, "true_real", 0, False), (3, "false_real", 1, False)],
)
def test_sheets_hold_the_most_confident_of_each_kind(
    number: int,
    kind: str,
    label: int,
    called: bool,
    report: Path,
    sheets: list[tuple[list[str], str]],
    own: pd.DataFrame,
) -> None:
    rows = own[(own["label"] == label) & ((own["probability"] > 0.5) == called)]
    expected = rows.sort_values("margin", ascending=not called)["path"][:3]
    names, title = sheets[number]
    assert names == [Path(path).name for path in expected]
    assert title.startswith(f"The {len(names)} most confident of {len(rows):,} ")
    assert told(report)["sheets"][kind] == {"file": f"figures/{kind}.jpg", "shown": len(names), "of": len(rows)}
    with Image.open(report / "figures" / f"{kind}.jpg") as picture:
        assert picture.width > 400


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_says_the_same_whatever_the_size_of_the_batch(run: Path, tmp_path: Path) -> None:
    for name, size in (("a", 32), ("b", 32), ("c", 3)):
        assert explain(f"run={run}", f"output={tmp_path}/{name}", *FEW, f"batch_size={size}") == 0
    first, again, other = (told(tmp_path / name) | {"seconds": 0, "command": ""} for name in "abc")
    assert first == again
    for curve in ("hot", "random", "common"):
        assert first["deletion"][curve] == pytest.approx(other["deletion"][curve], abs=1e-5)
    assert first["frequencies"]["low_pass"]["change"] == pytest.approx(other["frequencies"]["low_pass"]["change"])


def test_the_dashboard_and_the_page_show_it(run: Path, report: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()
    names = ("deletion", "frequencies", "true_fake", "false_fake", "true_real", "false_real")
    assert {f"explanation/{name}" for name in names} <= set(events.Tags()["images"])
    for measure in ("difference", "difference_common"):
        (point,) = events.Scalars(f"explanation/{measure}")
        assert point.value == pytest.approx(told(report)["deletion"][measure])
    assert told(report)["deletion"]["sentence"] in (run / "report.html").read_text()


# ---------------------------------------------------------------------------------------- other images, other methods


@pytest.mark.usefixtures("undrawn")
def test_of_an_ensemble_each_member_is_hidden_and_filtered_in_what_it_is_shown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that counts, beside another that is shown other pixels: as if it were alone."""
    one = Detector.load(run, "eager")
    (second,) = one.members
    first = replace(second, preparation=Preparation(equalise=SIDE // 2))
    detectors = {
        "alone": Detector([second], lambda margins: margins[0], one.calibration, "none"),
        "beside": Detector([first, second], lambda margins: margins[1], one.calibration, "none"),
    }
    for name, detector in detectors.items():
        monkeypatch.setattr(Detector, "load", lambda *given, detector=detector: detector)
        assert explain(f"run={run}", f"output={tmp_path}/{name}", *FEW) == 0
    alone, beside = (told(tmp_path / name) | {"seconds": 0, "command": ""} for name in detectors)
    assert beside["deletion"] == alone["deletion"]
    for curve in ("low_pass", "high_pass"):
        assert beside["frequencies"][curve] == alone["frequencies"][curve]


@pytest.mark.usefixtures("undrawn")
def test_images_that_have_gone_or_changed_are_left_out_and_told_of(
    run: Path, planted: Path, own: pd.DataFrame, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone, changed = (planted / path for path in own["path"][:2])
    kept = gone.read_bytes(), changed.read_bytes()
    try:
        gone.unlink()
        changed.write_bytes(kept[0])
        assert explain(f"run={run}", f"output={tmp_path}", *FEW) == 3
    finally:
        gone.write_bytes(kept[0])
        changed.write_bytes(kept[1])
    assert told(tmp_path)["not_judged"] == {"unreadable": 2}
    assert told(tmp_path)["images"] == len(own) - 2
    assert "not judged: 2 unreadable" in capfd.readouterr().err


def test_images_that_go_while_it_looks_are_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*given: Any) -> Any:
        raise probing.UnreadableImage("gone")

    monkeypatch.setattr(probing, "catalogued_pixels", nothing)
    assert explain(f"run={run}", f"output={tmp_path}", *FEW) == 2
    assert not (tmp_path / "explanation.json").exists()


def test_other_images_of_one_class_have_no_auroc(
    run: Path, planted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "1-new").mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "1-new" / f"{number}.png")
    data = (f"data.root={tmp_path}/data", f"data.cache.dir={tmp_path}/cache")
    assert explain(f"run={run}", *data, *FEW) == 0
    (folder,) = run.glob("explanation-data-*")
    found = told(folder)["frequencies"]
    assert found["unfiltered"] == {"auroc": None, "interval": [None, None]}
    assert found["low_pass"]["change"][0] > 0
    assert found["sentence"].startswith("Not told: AUROC is undefined")
    assert "probe_low" not in found
    assert "what a linear probe reaches is not told" in capfd.readouterr().err
    shutil.rmtree(folder)


@pytest.mark.usefixtures("undrawn")
def test_without_training_images_the_probe_is_not_told(
    run: Path, planted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    random = np.random.default_rng(1)
    for source in ("0-a", "1-b"):
        (tmp_path / "data" / source).mkdir()
        for number in range(4):
            pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / source / f"{number}.png")
    data = (f"data.root={tmp_path}/data", f"data.cache.dir={tmp_path}/cache", f"output={tmp_path}/report")
    aside = planted.rename(planted.with_name("aside"))
    try:
        assert explain(f"run={run}", *data, *FEW) == 0
    finally:
        aside.rename(planted)
    assert "probe_low" not in told(tmp_path / "report")["frequencies"]
    assert "expected training and test images of both classes" in capfd.readouterr().err


def test_nothing_is_written_through_a_link(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("explanation*"))
    (tmp_path / "elsewhere").mkdir()
    (copied / "explanation").mkdir()
    (copied / "explanation" / "figures").symlink_to(tmp_path / "elsewhere")
    assert explain(f"run={copied}", *FEW) == 2
    assert "expected a folder in the run, found a link" in capfd.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_rollout_without_attention_is_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert explain(f"run={run}", "method=rollout") == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "error: method=rollout: expected a vision transformer" in err
    assert "found test_resnet. Choose method=grad-cam, or name another run." in err


def test_a_run_that_is_not_there_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert explain(f"run={tmp_path}/none") == 2
    assert "expected the folder of a complete run, found none" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=lime", "method=lime is refused: expected one of auto, grad-cam, rollout"),
        ("hide=black", "hide=black is refused: expected one of blur, mean"),
        ("threshold=best", "threshold=best is refused: expected one of half, eer"),
        ("engine=gpu", "engine=gpu is refused: expected one of auto, eager"),
        ("images=0", "images=0 is refused: expected a whole number of at least 1"),
        ("shifts=0", "shifts=0 is refused"),
        ("filtered=0", "filtered=0 is refused"),
        ("probed=0", "probed=0 is refused"),
        ("batch_size=0", "batch_size=0 is refused"),
        ("sheet=-1", "sheet=-1 is refused: expected 0 or more pictures"),
        ("cutoffs=[0.1]", r"cutoffs=\[0.1\] is refused: expected at least two frequencies"),
        ("cutoffs=[0.2,0.1]", r"cutoffs=\[0.2, 0.1\] is refused"),
        ("cutoffs=[0.0,0.1]", r"cutoffs=\[0.0, 0.1\] is refused"),
        ("cutoffs=[0.1,0.6]", r"cutoffs=\[0.1, 0.6\] is refused: .* in \(0, .5\] cycles a pixel, ascending"),
        ("data.limit=5", "data.limit=5 is refused: expected data.root=FOLDER beside it"),
        ("run=''", "run= is refused: expected the folder of a run"),
    ],
)
def test_mistakes_are_refused(override: str, message: str) -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        composed = compose("explain", overrides=["run=somewhere", override])
    with pytest.raises(UserError, match=message):
        parse_explain(composed)
