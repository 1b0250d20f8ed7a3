"""Finished runs judged: the figures of their own verdict, on other data, as an ensemble and against each other."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from deepfake import runs
from deepfake.config import conf_dir, parse_train
from deepfake.data.catalog import read_catalogue, write_catalogue
from deepfake.evaluate import main
from deepfake.evaluation.calibration import THRESHOLDS, calibrate
from deepfake.judging import Detector
from deepfake.reporting.comparison import comparison_table, load_runs
from deepfake.training import train
from tests.test_predict import TINY

FIGURES = {"roc", "precision_recall", "det", "reliability", "scores", "confusion", "mistakes"}


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    output = tmp_path_factory.mktemp("outputs")

    def folder(*overrides: str) -> Path:
        given = [*TINY, f"data.root={faces}", f"output_dir={output}", *overrides]
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            cfg = parse_train(compose("train", overrides=given))
        train(cfg)
        return runs.run_folder(cfg)

    return folder


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path]) -> Path:
    return trained()


@pytest.fixture(scope="module")
def other(trained: Callable[..., Path]) -> Path:
    """Of another seed and another input size, on the same parts."""
    return trained("seed=1", "model.input_size=48")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other data: three images of each class that nobody was trained on, and one that is broken."""
    root = tmp_path_factory.mktemp("elsewhere") / "unseen"
    for source, seed in (("0-camera", 1), ("1-new", 2)):
        (root / source).mkdir(parents=True)
        for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(root / source / f"{number}.png")
    (root / "1-new" / "broken.png").write_bytes(b"none")
    return root


def evaluate(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-evaluate", "progress=false", "engine=eager", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def told(folder: Path, name: str = "evaluation.json") -> dict[str, Any]:
    content = json.loads((folder / name).read_text())
    assert isinstance(content, dict)
    return content


def table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, na_values={"probability": "", "margin": ""})


# --------------------------------------------------------------------------------------------------- the test part


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report")
    assert evaluate(f"run={run}", f"output={output}", "pairs={1-gan: 0-phone}", "batch_size=5") == 0
    return output


def test_the_runs_own_predictions_are_reproduced(run: Path, report: Path) -> None:
    stored, found = table(run / "test_predictions.csv"), table(report / "predictions.csv")
    assert found["path"].tolist() == stored["path"].tolist()
    assert found["label"].tolist() == stored["label"].tolist()
    assert found["margin"].to_numpy() == pytest.approx(stored["margin"].to_numpy(), abs=1e-4)
    assert found["probability"].to_numpy() == pytest.approx(stored["probability"].to_numpy(), abs=1e-5)
    assert set(found["status"]) == {"ok"}


def test_a_run_in_mixed_precision_is_calibrated_in_that_of_its_judging(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    mixed = trained("trainer.precision=bf16-mixed", "unfreeze=all")
    assert evaluate(f"run={mixed}", f"output={tmp_path}", "baselines=false", "mistakes=0") == 0
    stored, found = table(mixed / "test_predictions.csv"), table(tmp_path / "predictions.csv")
    assert found["margin"].to_numpy() == pytest.approx(stored["margin"].to_numpy(), abs=1e-4)


def test_the_figures_are_those_of_the_predictions(report: Path) -> None:
    found, facts = table(report / "predictions.csv"), told(report)
    labels, p = found["label"].to_numpy(), found["probability"].to_numpy()
    assert (facts["n"], facts["prevalence"]) == (len(found), labels.mean())
    assert facts["majority"] == max(labels.mean(), 1 - labels.mean())
    assert facts["auroc"] == pytest.approx(roc_auc_score(labels, p))
    assert facts["ap"] == pytest.approx(average_precision_score(labels, p))
    for measure, (low, high) in facts["intervals"].items():
        assert low <= high, measure
    for at in facts["thresholds"].values():
        assert at["accuracy"] == pytest.approx(((p > at["value"]) == labels).mean())
        assert at["fpr"] == pytest.approx((p[labels == 0] > at["value"]).mean())
        fpr = binomtest(int(at["fp"]), int((labels == 0).sum())).proportion_ci(method="wilson")
        assert at["intervals"]["fpr"] == pytest.approx([fpr.low, fpr.high])


def test_thresholds_and_temperature_are_those_of_the_checkpoint(run: Path, report: Path) -> None:
    stored, facts = told(run, "summary.json")["calibration"], told(report)
    assert facts["temperature"] == stored["temperature"]
    assert {name: facts["thresholds"][name]["value"] for name in THRESHOLDS} == {
        name: stored["thresholds"][name]["value"] for name in THRESHOLDS
    }


def test_sources_and_pairs(report: Path) -> None:
    found, by_source = table(report / "predictions.csv"), table(report / "sources.csv")
    assert by_source["source"].tolist() == ["0-camera", "0-phone", "1-diffusion", "1-gan", "1-gan"]
    pair = by_source.iloc[-1]
    assert pair["parent"] == "0-phone"
    rows = found[found["source"].isin(["1-gan", "0-phone"])]
    assert float(pair["auroc"]) == pytest.approx(roc_auc_score(rows["label"], rows["probability"]))
    assert set(by_source["threshold_from"]) == {f"validation of {told(report)['run']}"}
    assert set(by_source["n"]) == {len(found)}


def test_baselines_stand_beside_it(report: Path) -> None:
    facts = told(report)
    named = {row["name"]: row for row in facts["baselines"]}
    assert list(named) == [
        "majority class", "metadata tree", "spectrum, logistic", "frozen features, logistic", "this run",
    ]  # fmt: skip
    assert named["majority class"]["accuracy"] == facts["majority"]
    assert named["this run"]["auroc"] == facts["auroc"]
    for name in ("metadata tree", "spectrum, logistic", "frozen features, logistic"):
        low, high = named[name]["intervals"]["auroc"]
        assert 0 <= low <= named[name]["auroc"] <= high <= 1
        assert named[name]["test_images"] == facts["n"]


def test_figures_are_pictures(report: Path) -> None:
    assert {file.stem for file in (report / "figures").iterdir()} == FIGURES
    for file in (report / "figures").iterdir():
        with Image.open(file) as picture:
            picture.load()


def test_an_image_that_has_changed_is_a_row_that_says_so(
    trained: Callable[..., Path], faces: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    run = trained(f"data.root={root}", "epochs=1")
    changed = table(run / "test_predictions.csv")["path"].iloc[0]
    Image.new("RGB", (48, 40)).save(root / changed)
    assert evaluate(f"run={run}", "baselines=false") == 3
    row = table(run / "evaluation" / "predictions.csv").iloc[0]
    assert (row["status"], row["reason"]) == ("unreadable", "has changed since it was catalogued")
    assert told(run / "evaluation")["not_judged"] == {"unreadable": 1}


# ---------------------------------------------------------------------------------------------------- other data


def test_other_data_are_judged_whole_but_for_what_cannot_be(run: Path, elsewhere: Path) -> None:
    before = (run / runs.BEST).read_bytes()
    assert evaluate(f"run={run}", f"data.root={elsewhere}", "baselines=false", "tta=flip", "threshold=eer") == 3
    (folder,) = run.glob("evaluation-unseen-*-flip")
    found, facts = table(folder / "predictions.csv"), told(folder)
    assert found["status"].value_counts().to_dict() == {"ok": 6, "unreadable": 1}
    assert facts["n"] == 6
    assert facts["threshold"]["value"] == told(run, "summary.json")["calibration"]["thresholds"]["eer"]["value"]
    again = Detector.load(run, "eager", "flip").predict([elsewhere / path for path in found["path"]])
    assert found["probability"].to_numpy() == pytest.approx(again["probability"].to_numpy(), abs=1e-5, nan_ok=True)
    assert (run / runs.BEST).read_bytes() == before


def test_what_a_run_was_trained_on_is_not_judged(run: Path, faces: Path, tmp_path: Path) -> None:
    assert evaluate(f"run={run}", f"data.root={faces}", "baselines=false", f"output={tmp_path}") == 0
    found = table(tmp_path / "predictions.csv")
    judged = found.loc[found["status"] == "ok", "path"]
    assert sorted(judged) == sorted(table(run / "test_predictions.csv")["path"])
    assert set(found["status"]) == {"ok", "seen"}


def test_a_resized_copy_of_what_a_run_was_trained_on_is_not_judged(
    run: Path, faces: Path, elsewhere: Path, tmp_path: Path
) -> None:
    shutil.copytree(elsewhere, tmp_path / "data")
    manifest = read_catalogue(run / "manifest.parquet")
    path = Path(manifest.loc[manifest["split"] == "train", "path"].iloc[0])
    with Image.open(faces / path) as image:
        image.resize((image.width * 2, image.height * 2)).save(tmp_path / "data" / "0-camera" / "copy.png")
    given = [f"run={run}", f"data.root={tmp_path / 'data'}", "baselines=false", f"output={tmp_path / 'report'}"]
    assert evaluate(*given) == 3
    found = table(tmp_path / "report" / "predictions.csv").set_index("path")
    assert found.loc["0-camera/copy.png", "status"] == "seen"
    assert found.loc["0-camera/copy.png", "reason"].startswith("nearly the same picture")
    assert (found["status"] == "ok").sum() == 6


@pytest.mark.parametrize(("part", "judged"), [("test", 2), ("train", 6)])
def test_a_given_split_is_never_made_anew(part: str, judged: int, run: Path, elsewhere: Path, tmp_path: Path) -> None:
    rows = [f"{file.relative_to(elsewhere)},{int(file.parent.name[0])}" for file in sorted(elsewhere.rglob("?.png"))]
    parts = [part if row.split(",")[0].endswith("0.png") else "train" for row in rows]
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,split\n" + "".join(f"{row},{of}\n" for row, of in zip(rows, parts, strict=True)))
    given = [f"run={run}", f"data.root={elsewhere}", f"data.manifest={listed}", f"output={tmp_path / 'report'}"]
    assert evaluate(*given, "baselines=false") == 0
    assert told(tmp_path / "report")["n"] == judged


@pytest.mark.parametrize("source", ["0-camera", "1-new"])
def test_images_of_one_class_are_judged_without_what_needs_two(
    source: str, run: Path, elsewhere: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(elsewhere / source, data / source, ignore=shutil.ignore_patterns("broken*"))
    assert evaluate(f"run={run}", f"data.root={data}", f"output={tmp_path / 'report'}") == 0
    facts = told(tmp_path / "report")
    assert (facts["n"], facts["auroc"], facts["eer"], facts["baselines"]) == (3, None, None, [])
    half = facts["thresholds"]["half"]
    known, unknown = ("tpr", "fpr") if source[0] == "1" else ("fpr", "tpr")
    assert half[unknown] is None
    assert half[known] == half["fp" if known == "fpr" else "tp"] / 3


def test_a_parent_in_the_manifest_is_a_pair(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    rows = [f"{file.relative_to(elsewhere)},{file.parent.name[0]}" for file in sorted(elsewhere.rglob("?.png"))]
    listed = tmp_path / "list.csv"
    named = [f"{row},{'0-camera' if row[0] == '1' else ''}" for row in rows]
    listed.write_text("path,label,parent\n" + "\n".join(named) + "\n")
    given = [f"run={run}", f"data.root={elsewhere}", f"data.manifest={listed}", f"output={tmp_path / 'report'}"]
    assert evaluate(*given, "baselines=false") == 0
    found = table(tmp_path / "report" / "sources.csv")
    assert found.loc[found["parent"] != "", ["source", "parent"]].to_numpy().tolist() == [["1-new", "0-camera"]]


def test_folders_of_one_name_do_not_write_over_each_other(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(elsewhere, tmp_path / place / "faces")
        assert evaluate(f"run={run}", f"data.root={tmp_path / place / 'faces'}", "baselines=false") == 3
    assert len(list(run.glob("evaluation-faces-*"))) == 2


# ------------------------------------------------------------------------------------------------------- ensembles


def test_what_any_member_was_trained_on_an_ensemble_has_seen(
    run: Path, other: Path, elsewhere: Path, tmp_path: Path
) -> None:
    shutil.copytree(other, tmp_path / "other")
    manifest = read_catalogue(other / "manifest.parquet")
    image = elsewhere / "0-camera" / "0.png"
    more = manifest[manifest["split"] == "train"].head(1)
    more = more.assign(path="more.png", sha256=hashlib.sha256(image.read_bytes()).hexdigest(), phash="")
    write_catalogue(pd.concat([manifest, more], ignore_index=True), tmp_path / "other" / "manifest.csv")
    given = [f"run=[{run},{tmp_path / 'other'}]", "ensemble=mean", f"output_dir={tmp_path}", "baselines=false"]
    assert evaluate(*given, f"data.root={elsewhere}", f"output={tmp_path / 'report'}") == 3
    found = table(tmp_path / "report" / "predictions.csv").set_index("path")
    assert found.loc["0-camera/0.png", "status"] == "seen"


def test_a_member_without_its_checkpoint_is_one_line(
    run: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(other, tmp_path / "other")
    (tmp_path / "other" / runs.BEST).unlink()
    assert evaluate(f"run=[{run},{tmp_path / 'other'}]", "ensemble=mean", f"output_dir={tmp_path}") == 2
    assert "expected a checkpoint in each member" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("how", ["mean", "logit_mean", "stacked"])
def test_an_ensemble_is_a_run_fitted_on_validation_alone(how: str, run: Path, other: Path, tmp_path: Path) -> None:
    given = [f"run=[{run},{other}]", f"ensemble={how}", f"output_dir={tmp_path}", "baselines=false", "mistakes=0"]
    assert evaluate(*given) == 0
    (folder,) = tmp_path.glob("ensemble-*")
    parts = {part: [table(member / f"{part}_predictions.csv") for member in (run, other)] for part in ("val", "test")}
    heats = [told(member, "summary.json")["calibration"]["temperature"] for member in (run, other)]
    logits = {
        part: np.stack([each["margin"] / heat for each, heat in zip(both, heats, strict=True)], axis=1)
        for part, both in parts.items()
    }
    labels = parts["val"][0]["label"].to_numpy()
    if how == "stacked":
        fitted = LogisticRegression(max_iter=1000).fit(logits["val"], labels)
        margins = {part: fitted.decision_function(each) for part, each in logits.items()}
    elif how == "mean":
        margins = {part: logit(expit(each).mean(axis=1)) for part, each in logits.items()}
    else:
        margins = {part: each.mean(axis=1) for part, each in logits.items()}
    expected = calibrate(labels, margins["val"])
    stored = told(folder, "ensemble.json")
    assert stored["calibration"]["temperature"] == pytest.approx(expected.temperature, rel=1e-4)
    p = expected.probabilities(margins["test"])
    for file in (folder / "test_predictions.csv", folder / "evaluation" / "predictions.csv"):
        assert table(file)["probability"].to_numpy() == pytest.approx(p, abs=1e-4)
    summaries = load_runs([folder, run])
    assert {summary["run"] for summary in summaries} == {folder.name, run.name}
    assert len(comparison_table(summaries)) == 2
    made = (folder / "ensemble.json").stat().st_mtime_ns
    assert evaluate(*given) == 0
    assert (folder / "ensemble.json").stat().st_mtime_ns == made, "it is made once"


def test_members_must_share_their_validation_images(
    run: Path, trained: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    apart = trained("data.split_seed=1", "epochs=1")
    capfd.readouterr()
    assert evaluate(f"run=[{run},{apart}]", "ensemble=mean", f"output_dir={tmp_path}") == 2
    assert f"run={apart}: expected the validation images of {run.name}, found others" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ comparison


def test_two_runs_on_the_same_images(
    run: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(f"run=[{run},{other}]", f"output={tmp_path}") == 0
    found = told(tmp_path, "comparison.json")
    a, b = (table(folder / "test_predictions.csv") for folder in (run, other))
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == (run.name, other.name)
    areas = [roc_auc_score(each["label"], each["probability"]) for each in (a, b)]
    assert [pair["delong"]["auc_a"], pair["delong"]["auc_b"]] == pytest.approx(areas)
    difference, low, high = pair["bootstrap"]["auroc"]
    assert difference == pytest.approx(areas[0] - areas[1])
    assert low <= high
    right = [(each["prediction"] == each["label"]).to_numpy() for each in (a, b)]
    assert pair["mcnemar"]["n10"] == int((right[0] & ~right[1]).sum())
    shown = capfd.readouterr().out
    for needed in ("McNemar p", "DeLong p", "majority-class baseline", "95 % intervals"):
        assert needed in shown


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run={tmp}"], "expected the folder of a complete run, found none"),
        (["run={run}", "ensemble=mean"], "expected a list run=[A,B] of at least two runs"),
        (["run=[{run},{run}]"], "expected each run once"),
        (["run={run}", "ensemble=best"], "ensemble=best is refused: expected one of mean, logit_mean, stacked"),
        (["run={run}", "tta=ten"], "tta=ten is refused: expected one of none, flip, crops"),
        (["run={run}", "threshold=best"], "threshold=best is refused: expected one of half, eer"),
        (["run={run}", "data.limit=3"], "data.limit=3 is refused: expected data.root=FOLDER beside it"),
        (["run={run}", "data.root={faces}", "data.equalise=true"], "data.equalise=True is refused"),
        (["run={run}", "pairs={{1-gan: 0-none}}", "baselines=false"], "real sources out of 0-camera, 0-phone"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(
    overrides: list[str], expected: str, run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert evaluate(*(given.format(run=run, tmp=tmp_path, faces=faces) for given in overrides)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
