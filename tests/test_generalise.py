"""Many trainings, one matrix: the same real test images everywhere, complete ones skipped, failed ones told."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score

from deepfake import generalising, runs
from deepfake.config import TrainConfig, conf_dir, parse_generalise, parse_train
from deepfake.errors import UserError
from deepfake.generalise import main
from tests.test_predict import TINY

SMALL = (*TINY, "epochs=1", "unfreeze=0")


def generalise(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-generalise", *SMALL, *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def output(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    assert generalise(f"data.root={faces}", f"output_dir={folder}", "pairs={1-gan: 0-phone}") == 0
    return folder


def report(output: Path) -> Path:
    (folder,) = output.glob("generalise-*")
    return folder


def manifests(output: Path) -> dict[str, pd.DataFrame]:
    told = json.loads((report(output) / "summary.json").read_text())["trainings"]
    return {entry["trained_on"]: pd.read_csv(Path(entry["run"]) / "manifest.csv") for entry in told}


FOLDS = ["all generators", "all but 1-diffusion", "all but 1-gan", "1-diffusion alone", "1-gan alone"]


def test_every_training_is_there_once(output: Path) -> None:
    assert list(manifests(output)) == FOLDS


def test_real_images_have_the_same_part_in_every_training(output: Path) -> None:
    first, *others = (
        table[table["label"] == 0].set_index("path")["split"].sort_index() for table in manifests(output).values()
    )
    assert set(first) == {"train", "val", "test"}
    for other in others:
        pd.testing.assert_series_equal(first, other)


@pytest.mark.parametrize(
    ("fold", "trained", "unseen"),
    [
        ("all but 1-gan", {"1-diffusion"}, "1-gan"),
        ("all but 1-diffusion", {"1-gan"}, "1-diffusion"),
        ("1-gan alone", {"1-gan"}, "1-diffusion"),
    ],
)
def test_what_is_left_out_is_tested_whole_and_never_trained_or_chosen_on(
    output: Path, fold: str, trained: set[str], unseen: str
) -> None:
    table = manifests(output)[fold]
    fakes = table[table["label"] == 1]
    assert set(fakes.loc[fakes["split"].isin(("train", "val")), "source"]) == trained
    assert (fakes.loc[fakes["source"] == unseen, "split"] == "test").all()


def test_figures_are_of_the_runs_own_predictions(output: Path) -> None:
    told = json.loads((report(output) / "summary.json").read_text())
    run = Path(next(entry["run"] for entry in told["trainings"] if entry["trained_on"] == "all but 1-gan"))
    judged = pd.read_csv(run / "test_predictions.csv").query("label == 0 or source == '1-gan'")
    table = pd.read_csv(report(output) / "generators.csv")
    rows = table[(table["trained_on"] == "all but 1-gan") & (table["tested"] == "1-gan")]
    whole, pair = rows[rows["parent"].isna()].iloc[0], rows[rows["parent"] == "0-phone"].iloc[0]
    assert whole["auroc"] == pytest.approx(roc_auc_score(judged["label"], judged["margin"]))
    stored = json.loads((run / runs.SUMMARY).read_text())["calibration"]["thresholds"]["balanced_accuracy"]["value"]
    assert whole["threshold"] == stored
    assert whole["fnr"] == pytest.approx((judged.query("label == 1")["probability"] <= stored).mean())
    assert whole["images"] == 12
    assert pair["reals"] < whole["reals"]


def test_the_matrix_and_its_picture(output: Path) -> None:
    found = pd.read_csv(report(output) / "matrix.csv", index_col=0)
    assert found.index.tolist() == FOLDS
    assert found.columns.tolist() == ["1-diffusion", "1-gan"]
    assert found.notna().all(axis=None)
    with Image.open(report(output) / "matrix.png") as picture:
        assert picture.width > 800


def test_the_same_command_again_trains_nothing(output: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = {file: file.stat().st_mtime_ns for file in output.glob("*/checkpoints/best.ckpt")}
    monkeypatch.setattr("deepfake.training._fit_and_judge", lambda *_: pytest.fail("trained again"))
    assert generalise(f"data.root={faces}", f"output_dir={output}", "pairs={1-gan: 0-phone}") == 0
    assert {file: file.stat().st_mtime_ns for file in output.glob("*/checkpoints/best.ckpt")} == stamps
    assert len(stamps) == 3  # of two generators, all but one is the other alone


def test_a_training_that_fails_does_not_stop_the_others(
    output: Path, faces: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = generalising.train

    def failing(cfg: TrainConfig) -> float:
        if cfg.data.hold_out == ["1-diffusion"]:
            raise UserError("the disk is full")
        return train(cfg)

    monkeypatch.setattr(generalising, "train", failing)
    assert generalise(f"data.root={faces}", f"output_dir={output}", "protocol=leave_one_out") == 1
    (folder,) = set(output.glob("generalise-*")) - {report_of_both(output)}
    told = json.loads((folder / "summary.json").read_text())
    assert told["failed"][0] == {"trained_on": "all but 1-diffusion", "message": "the disk is full"}
    assert pd.read_csv(folder / "matrix.csv", index_col=0).index.tolist() == ["all generators", "all but 1-gan"]
    assert "1 of 3 trainings failed" in capfd.readouterr().err
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def report_of_both(output: Path) -> Path:
    (folder,) = (
        file.parent for file in output.glob("generalise-*/summary.json")
        if json.loads(file.read_text())["protocol"] == "both"
    )  # fmt: skip
    return folder


def composed(*overrides: str) -> Any:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("generalise", overrides=[*SMALL, "data.root=/faces", *overrides])


def test_the_plain_training_is_the_one_of_the_train_command() -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        plain = parse_train(compose("train", overrides=[*SMALL, "data.root=/faces"]))
    assert generalising._training(parse_generalise(composed()), []) == plain


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol=none", "protocol=none is refused: expected one of leave_one_out, train_one, both"),
        ("threshold=best", "threshold=best is refused"),
        ("data.hold_out=1-gan", r"data.hold_out=\['1-gan'\] is refused: .* each generator is held out in its turn"),
        ("epochs=0", "epochs=0 is refused"),
        ("+epoch=3", "unknown setting epoch: did you mean epochs"),
    ],
)
def test_mistakes_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_generalise(composed(override))


def test_one_generator_alone_is_refused(faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for source in ("0-phone", "1-gan"):
        (tmp_path / source).symlink_to(faces / source)
    assert generalise(f"data.root={tmp_path}", f"output_dir={tmp_path}/out") == 2
    assert "expected at least two fake sources" in capfd.readouterr().err


def test_a_pair_that_is_not_there_is_refused(faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert generalise(f"data.root={faces}", f"output_dir={tmp_path}", "pairs={1-gan: 0-none}") == 2
    assert "expected real sources out of 0-camera, 0-phone, found 0-none" in capfd.readouterr().err


def test_a_pair_without_test_images_is_refused_before_the_first_training(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A given split whose test part has neither 1-gan nor 0-phone; held out, 1-gan would be tested all the same.
    parts = {"00": "train", "01": "train", "02": "val", "03": "val", "04": "test", "05": "test"}
    for file in sorted(faces.glob("*/*")):
        part = parts.get(file.stem, "train")
        if file.parent.name in ("0-phone", "1-gan") and part == "test":
            part = "train"
        copy = tmp_path / "data" / part / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(file)
    monkeypatch.setattr(generalising, "train", lambda _: pytest.fail("a training has started"))
    given = (f"data.root={tmp_path}/data", f"output_dir={tmp_path}/out", f"data.cache.dir={tmp_path}/cache")
    for pair, message in (
        ("{1-gan: 0-camera}", "fake sources with images in the test part (1-diffusion), found 1-gan, whose images"),
        (
            "{1-diffusion: 0-phone}",
            "real sources with images in the test part (0-camera), found 0-phone, whose images",
        ),
    ):
        assert generalise(*given, f"pairs={pair}") == 2
        assert message in capfd.readouterr().err
    assert not list((tmp_path / "out").glob("generalise-*/*"))


def test_pairs_are_as_the_manifest_says_where_none_are_given(faces: Path, tmp_path: Path) -> None:
    paths = sorted(file.relative_to(faces).as_posix() for file in faces.glob("*/*"))
    rows = [f"{path},{path[0]},{'0-phone' if path.startswith('1-gan') else ''}" for path in paths]
    (tmp_path / "list.csv").write_text("path,label,parent\n" + "\n".join(rows) + "\n")
    for source in faces.iterdir():
        shutil.copytree(source, tmp_path / source.name)
    given = [*SMALL, f"data.root={tmp_path}", "data.manifest=list.csv", f"data.cache.dir={tmp_path}/cache"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg, none = (
            parse_generalise(compose("generalise", overrides=[*given, *more])) for more in ([], ["pairs={}"])
        )
    assert generalising._sources(cfg) == (["1-diffusion", "1-gan"], {"1-gan": "0-phone"})
    assert generalising._sources(none)[1] == {}


def test_the_terminal_tells_prevalence_majority_threshold_and_intervals(
    output: Path, faces: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generalise(f"data.root={faces}", f"output_dir={output}", "pairs={1-gan: 0-phone}") == 0
    shown = capfd.readouterr()
    folder = report_of_both(output)
    row = pd.read_csv(folder / "generators.csv").query("trained_on == 'all but 1-gan' and tested == '1-gan'").iloc[0]
    lines = shown.out.splitlines()
    at = next(number for number, line in enumerate(lines) if "all but 1-gan" in line)
    assert f"{row['majority']:.3f}" in lines[at]
    assert f"{row['prevalence']:.1%}" in lines[at + 1]
    assert f"{row['threshold']:.3f}" in lines[at + 1]
    assert f"[{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]".replace("0.", ".") in lines[at + 1]
    told = json.loads((folder / "summary.json").read_text())["summary"]["leave_one_out"]
    assert told["auroc_mean_low"] <= told["auroc_mean"] <= told["auroc_mean_high"]
    said = " ".join(shown.err.split())
    assert f"{told['auroc_mean']:.3f} [{told['auroc_mean_low']:.3f}, {told['auroc_mean_high']:.3f}]" in said
    assert f"[{told['auroc_gap_mean_low']:+.3f}, {told['auroc_gap_mean_high']:+.3f}]" in said
