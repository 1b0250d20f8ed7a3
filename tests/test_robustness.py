"""A finished run is asked about perturbed images: where nothing changes the same answers, in parts that are kept."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score

from deepfake import config, perturbing, runs
from deepfake.config import conf_dir, parse_robustness, parse_train
from deepfake.data.perturbations import Perturbation, grid, perturb
from deepfake.errors import UserError
from deepfake.evaluation.robustness import one_sided_flips
from deepfake.judging import Detector
from deepfake.robustness import main
from deepfake.train import run as train
from tests.test_predict import TINY


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [*TINY, f"data.root={faces}", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    train(cfg)
    return runs.run_folder(cfg)


def robustness(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-robustness", "progress=false", "engine=eager", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    assert robustness(f"run={run}", "threshold=balanced_accuracy") == 0
    return run / "robustness"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were judged in each pass."""
    passes: list[int] = []
    judge: Callable[..., Any] = Detector.judge

    def counting(self: Detector, sources: Any, *rest: Any) -> Any:
        images = list(sources)
        passes.append(len(images))
        return judge(self, images, *rest)

    monkeypatch.setattr(Detector, "judge", counting)
    return passes


def part(report: Path, name: str) -> pd.DataFrame:
    (file,) = report.glob(f"parts/*/{name}.csv")
    return pd.read_csv(file, float_precision="round_trip")


def test_the_clean_answers_are_the_runs_own_verdict(run: Path, report: Path) -> None:
    own = pd.read_csv(run / "test_predictions.csv").set_index("path")["margin"]
    clean = part(report, "clean")
    assert len(clean) == len(own)
    assert clean["margin"].to_numpy() == pytest.approx(own[clean["path"]].to_numpy(), abs=1e-5)


@pytest.mark.parametrize("perturbation", [Perturbation("jpeg", 30), Perturbation("rotation", 90)], ids=str)
def test_the_decoded_original_is_perturbed(run: Path, report: Path, faces: Path, perturbation: Perturbation) -> None:
    found = part(report, f"{perturbation.kind}_{perturbation.strength:g}")
    pixels = [np.asarray(Image.open(faces / path).convert("RGB")) for path in found["path"]]
    changed = [perturb(image, perturbation, sha256) for image, sha256 in zip(pixels, found["sha256"], strict=True)]
    expected = Detector.load(run, "eager").predict(changed)["probability"]
    assert found["probability"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert (found["probability"] != part(report, "clean")["probability"]).any()


def test_every_perturbation_of_the_grid_has_its_row(run: Path, report: Path) -> None:
    table = pd.read_csv(report / "robustness.csv")
    assert list(zip(table["kind"], table["strength"], strict=True))[1:] == [(p.kind, p.strength) for p in grid()]
    noisy = part(report, "noise_0.1")
    row = table[(table["kind"] == "noise") & (table["strength"] == 0.1)].iloc[0]
    stored = json.loads((run / runs.SUMMARY).read_text())["calibration"]["thresholds"]["balanced_accuracy"]["value"]
    assert row["auroc"] == pytest.approx(roc_auc_score(noisy["label"], noisy["margin"]))
    for name in ("auroc", "accuracy", "tpr", "fpr"):
        assert row[f"{name}_change_low"] <= row[f"{name}_change"] <= row[f"{name}_change_high"]
    assert row["threshold"] == stored
    assert row["tpr"] == pytest.approx((noisy.loc[noisy["label"] == 1, "probability"] > stored).mean())


def test_the_report_holds_means_and_one_sided_recompression(report: Path) -> None:
    told = json.loads((report / "robustness.json").read_text())
    table = pd.read_csv(report / "robustness.csv").iloc[1:]
    assert told["summary"]["mean"]["auroc"] == pytest.approx(table["auroc"].mean())
    clean, again = part(report, "clean")["probability"], part(report, "jpeg_95")["probability"]
    at = told["threshold"]["value"]
    assert told["recompression"]["both"]["flips"] == int(((clean > at) != (again > at)).sum())
    assert told["recompression"]["both"]["share_low"] <= told["recompression"]["both"]["share"]
    assert not told["recompression"]["certain"]  # of a handful of images
    assert not (table["strength"] == 95).any()  # it is no part of the grid
    with Image.open(report / "robustness.png") as picture:
        assert picture.width > 800


def test_margins_order_images_whose_probabilities_are_all_one(run: Path) -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_robustness(compose("robustness", overrides=[f"run={run}"]))
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], 20)

    def certain() -> pd.DataFrame:
        return pd.DataFrame({"label": labels, "margin": random.normal(60 + labels), "probability": 1.0})

    clean, answers = certain(), {each: certain() for each in (Perturbation("flip", 1), perturbing.RECOMPRESSION)}
    before, after = perturbing._report(cfg, Detector.load(run, "eager"), clean, answers)["rows"]
    assert before["auroc"] == pytest.approx(roc_auc_score(labels, clean["margin"]))
    assert after["auroc"] == pytest.approx(roc_auc_score(labels, answers[Perturbation("flip", 1)]["margin"]))
    assert after["auroc_change_low"] < after["auroc_change_high"]


@pytest.mark.parametrize("identity", [("blur", 0), ("noise", 0), ("resize", 1), ("rotation", 0), ("crop", 1)])
def test_a_perturbation_that_changes_nothing_changes_no_answer(
    identity: tuple[str, float], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perturbing, "grid", lambda: (Perturbation(*identity),))
    assert robustness(f"run={run}", f"output={tmp_path}") == 0
    same = part(tmp_path, f"{identity[0]}_{identity[1]}")
    assert same["margin"].tolist() == part(tmp_path, "clean")["margin"].tolist()


def test_the_printed_table_shows_the_intervals_of_every_figure_and_change(
    run: Path, report: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert robustness(f"run={run}", "threshold=balanced_accuracy") == 0
    shown = capfd.readouterr().out.splitlines()
    row = pd.read_csv(report / "robustness.csv").set_index("kind").loc["flip"]
    at = next(number for number, line in enumerate(shown) if line.strip().startswith("flip"))
    for name in ("auroc", "accuracy", "tpr", "fpr"):
        assert f"{row[name]:.3f}" in shown[at]
        assert f"{row[f'{name}_change']:+.3f}" in shown[at]
        for figure, sign in ((name, ""), (f"{name}_change", "+")):
            low, high = (f"{row[f'{figure}_{end}']:{sign}.3f}".replace("0.", ".") for end in ("low", "high"))
            assert f"[{low}, {high}]" in shown[at + 1]


def test_parts_that_are_there_are_not_judged_again(run: Path, report: Path, asked: list[int]) -> None:
    before = (report / "robustness.csv").read_bytes()
    lost, cut = (next(report.glob(f"parts/*/{name}.csv")) for name in ("blur_2", "crop_0.8"))
    kept = lost.read_bytes(), cut.read_bytes()
    lost.unlink()
    cut.write_bytes(kept[1][: len(kept[1]) // 2])
    assert robustness(f"run={run}", "threshold=balanced_accuracy") == 0
    images = len(part(report, "clean"))
    assert asked == [images, images]
    assert (lost.read_bytes(), cut.read_bytes(), (report / "robustness.csv").read_bytes()) == (*kept, before)


def test_another_threshold_needs_no_answer_anew(run: Path, report: Path, asked: list[int], tmp_path: Path) -> None:
    (tmp_path / "parts").symlink_to(report / "parts")
    assert robustness(f"run={run}", "threshold=half", f"output={tmp_path}") == 0
    assert asked == []
    assert pd.read_csv(tmp_path / "robustness.csv")["threshold"].eq(0.5).all()


def test_a_limit_keeps_each_sources_share_and_kinds_can_be_chosen(
    run: Path, asked: list[int], tmp_path: Path
) -> None:
    assert robustness(f"run={run}", f"output={tmp_path}", "limit=4", "perturbations=flip") == 0
    assert asked == [4, 4, 4]  # clean, flip, recompression
    assert part(tmp_path, "clean")["source"].nunique() == 4
    assert pd.read_csv(tmp_path / "robustness.csv")["kind"].tolist() == ["clean", "flip"]


def test_other_data_is_judged_without_what_the_run_was_trained_on(run: Path, faces: Path, tmp_path: Path) -> None:
    for source in ("0-camera", "1-new"):
        (tmp_path / "data" / source).mkdir(parents=True)
    seen = pd.read_csv(run / "manifest.csv").query("split == 'train' and source == '0-camera'")["path"].iloc[0]
    (tmp_path / "data" / "0-camera" / "seen.png").write_bytes((faces / seen).read_bytes())
    random = np.random.default_rng(5)
    for name in ("0-camera/a.png", "1-new/a.png", "1-new/b.png"):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "1-new" / "broken.png").write_bytes(b"no image")
    given = (f"data.root={tmp_path}/data", f"data.cache.dir={tmp_path}/cache", f"output={tmp_path}/report")
    assert robustness(f"run={run}", *given, "perturbations=flip") == 3
    told = json.loads((tmp_path / "report" / "robustness.json").read_text())
    assert told["not_judged"] == {"seen": 1, "unreadable": 1}
    assert sorted(part(tmp_path / "report", "flip_1")["path"]) == ["0-camera/a.png", "1-new/a.png", "1-new/b.png"]


@pytest.mark.parametrize(
    ("interval", "difference", "biased", "certain", "ends"),
    [
        ((0.07, 0.13), 0.1, True, True, "more than 5: the answers depend on which class was compressed, a bias"),
        ((0.04, 0.13), 0.1, True, False, "a bias, but not certain: the interval includes 5"),
        ((0.01, 0.06), 0.03, False, False, "no sign of bias, but not certain: the interval includes 5"),
        ((0.0, 0.02), 0.01, False, True, "no sign of bias"),
        ((0.0, 0.0), 0.0, False, False, "no sign of bias, but not certain: too few images"),
    ],
)
def test_bias_is_told_in_one_sentence(
    interval: tuple[float, float], difference: float, biased: bool, certain: bool, ends: str
) -> None:
    sides = {"fakes only": 0.3, "reals only": 0.1, "both": 0.2}
    found: dict[str, Any] = {
        name: {"images": 10, "share": share, "share_low": share - 0.05, "share_high": share + 0.05}
        for name, share in sides.items()
    }
    found |= {"perturbation": "jpeg 95", "difference": difference, "biased": biased, "certain": certain}
    told = perturbing.recompression_told({**found, "difference_low": interval[0], "difference_high": interval[1]})
    assert "jpeg 95 flips 30.0% [25.0%, 35.0%] of 10 (fakes only), 10.0% [5.0%, 15.0%] of 10 (reals only)" in told
    assert f"{100 * difference:.1f} points [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" in told
    assert told.endswith(ends)


def test_one_class_alone_tells_nothing_of_bias() -> None:
    found = one_sided_flips(np.ones(2), np.full(2, 0.2), np.full(2, 0.9), 0.5)
    told = perturbing.recompression_told({**found, "perturbation": "jpeg 95"})
    assert told.endswith("of 2 (both); with images of one class alone, nothing is told of bias")


def test_the_kinds_in_the_settings_are_those_of_the_grid() -> None:
    assert tuple(dict.fromkeys(each.kind for each in grid())) == config.PERTURBATIONS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("perturbations=[jpeg,fog]", r"perturbations=\['jpeg', 'fog'\] is refused: expected some of jpeg, blur"),
        ("perturbations=[]", r"perturbations=\[\] is refused"),
        ("limit=0", "limit=0 is refused: expected a number of images, or null"),
        ("threshold=best", "threshold=best is refused: expected one of half, eer"),
        ("tta=many", "tta=many is refused: expected one of none, flip"),
        ("engine=gpu", "engine=gpu is refused: expected one of auto, eager"),
        ("batch_size=0", "batch_size=0 is refused"),
        ("data.limit=5", "data.limit=5 is refused: expected data.root=FOLDER beside it"),
        ("run=''", "run= is refused: expected the folder of a run"),
    ],
)
def test_mistakes_are_refused(override: str, message: str) -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        composed = compose("robustness", overrides=["run=somewhere", override])
    with pytest.raises(UserError, match=message):
        parse_robustness(composed)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert robustness(f"run={tmp_path}/none") == 2
    assert "expected the folder of a complete run, found none" in capfd.readouterr().err
