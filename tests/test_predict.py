"""A finished run is asked about images: one row a file, the same probabilities as in its own verdict."""

import fcntl
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import roc_auc_score

from deepfake import predicting, runs
from deepfake.checkpoints import write_checkpoint
from deepfake.config import PredictConfig, conf_dir, parse_train
from deepfake.predict import main
from deepfake.train import run as train
from tests.data.hostile import make_hostile

TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=8",
    "trunk.engine=eager", "accumulate=1", "epochs=2", "lr=1e-2", "unfreeze=1", "trainer=cpu",
    "trainer.progress=false", "logger=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def folder(*overrides: str) -> Path:
        output = tmp_path_factory.mktemp("outputs")
        given = [*TINY, f"data.root={faces}", f"output_dir={output}", *overrides]
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            cfg = parse_train(compose("train", overrides=given))
        train(cfg)
        return runs.run_folder(cfg)

    return folder


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path]) -> Path:
    return trained()


def predict(*overrides: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-predict", "progress=false", "engine=eager", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, na_values={"probability": ""})


@pytest.mark.parametrize(
    "overrides",
    [[], ["data.preprocess=crop"], ["data.equalise=true"], ["unfreeze=0"], ["unfreeze=all"],
     ["trunk.precision=float32"], ["trunk.precision=bfloat16"]],
    ids=str,
)  # fmt: skip
def test_the_probabilities_are_those_of_the_runs_own_verdict(
    trained: Callable[..., Path], overrides: list[str], faces: Path, tmp_path: Path
) -> None:
    folder = trained(*overrides)
    assert predict(f"run={folder}", f"input={faces}", f"output={tmp_path}/p.csv", "batch_size=7") == 0
    found = table(tmp_path / "p.csv").set_index("path")["probability"]
    judged = pd.read_csv(folder / "test_predictions.csv")
    again = found[[str(faces / path) for path in judged["path"]]]
    assert again.to_numpy() == pytest.approx(judged["probability"].to_numpy(), abs=1e-5)
    assert len(found) == 48


def test_rows_are_in_the_order_given(run: Path, faces: Path, tmp_path: Path) -> None:
    files = [faces / "1-gan" / "01.png", faces / "0-phone" / "00.jpg", faces / "1-gan" / "01.png"]
    predict(f"run={run}", f"input=[{','.join(map(str, files))}]", f"output={tmp_path}/p.csv")
    assert table(tmp_path / "p.csv")["path"].tolist() == [str(file) for file in files]


def test_a_csv_names_images_beside_it(run: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copy(faces / "1-gan" / "01.png", tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,who\na.png,me\nabsent.png,you\n")
    assert predict(f"run={run}", f"input={tmp_path}/list.csv", f"output={tmp_path}/p.csv") == 3
    assert table(tmp_path / "p.csv")["status"].tolist() == ["ok", "unreadable"]


def test_hostile_files_get_one_row_each_with_a_reason(run: Path, tmp_path: Path) -> None:
    expected = make_hostile(tmp_path / "hostile")
    assert predict(f"run={run}", f"input={tmp_path}/hostile", f"output={tmp_path}/p.csv") == 3
    found = table(tmp_path / "p.csv")
    assert len(found) == len(expected)
    names = found["path"].map(lambda path: Path(path).name)
    unreadable = {name for name, status in expected.items() if status == "unreadable"}
    assert set(names[found["status"] != "ok"]) == unreadable
    assert set(names[found["status"] == "too large"]) == {"120_megapixels.png", "400_megapixels.png"}
    assert (found["reason"] != "")[found["status"] != "ok"].all()
    assert found.loc[found["status"] == "ok", "probability"].between(0, 1).all()
    assert found.loc[found["status"] != "ok", "probability"].isna().all()


@pytest.mark.parametrize("name", ["half", "eer", "fpr_1"])
def test_the_verdict_is_at_the_stored_threshold(
    name: str, run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    predict(f"run={run}", f"input={faces}", f"output={tmp_path}/p.csv", f"threshold={name}")
    held = torch.load(run / runs.BEST, weights_only=True)["deepfake"]["calibration"]
    value, (low, high) = held["thresholds"][name]["value"], held["band"]
    found = table(tmp_path / "p.csv")
    p = found["probability"]
    assert ((found["verdict"] == "fake") == (p > value)).all()
    assert (found["uncertain"] == p.between(min(low, value), max(high, value))).all()
    said = " ".join(capfd.readouterr().err.split())
    assert f"threshold={name}, {'a fixed one' if name == 'half' else 'chosen on the run' + chr(39)}" in said


def test_json_lines_hold_what_the_csv_holds(run: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("I am no image.")
    given = f"input=[{faces}/1-gan/01.png,{tmp_path}/text.png,{faces}/0-phone/00.jpg]"
    for name in ("p.csv", "p.jsonl"):
        assert predict(f"run={run}", given, f"output={tmp_path}/{name}") == 3
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["probability"] is None for row in rows] == [False, True, False]
    assert [list(row) for row in rows] == [list(table(tmp_path / "p.csv").columns)] * 3
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table(tmp_path / "p.csv"), check_dtype=False)


def test_what_cannot_be_judged_says_why(run: Path, faces: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000)).save(tmp_path / "large.png")
    given = f"input=[{tmp_path}/large.png,{tmp_path}/absent.png,{faces}/1-gan/01.png]"
    assert predict(f"run={run}", given, f"output={tmp_path}/p.csv", "max_megapixels=1") == 3
    found = table(tmp_path / "p.csv")
    assert found["status"].tolist() == ["too large", "unreadable", "ok"]
    assert found["reason"].tolist() == [
        "2000 x 1000 pixels, more than 1 megapixels", "cannot be read: No such file or directory", "",
    ]  # fmt: skip
    assert found["verdict"].tolist()[:2] == ["", ""]


# --------------------------------------------------------------------------------------------------- sheet and scores


def test_the_sheet_shows_the_first_that_were_judged(
    run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple] = []
    drawn = predicting.mistakes_sheet
    monkeypatch.setattr(
        predicting, "mistakes_sheet", lambda *args, **named: shown.append(args) or drawn(*args, **named)
    )
    files = [tmp_path / "absent.png", faces / "1-gan/01.png", faces / "0-phone/00.jpg", faces / "0-phone/01.png"]
    given = f"input=[{','.join(map(str, files))}]"
    assert predict(f"run={run}", given, f"output={tmp_path}/p.csv", "sheet=2") == 3
    ((images, captions, _),) = shown
    for image, caption, file, row in zip(
        images, captions, files[1:3], table(tmp_path / "p.csv").to_dict("records")[1:3], strict=True
    ):
        assert image.tobytes() == Image.open(file).convert("RGB").tobytes()
        assert caption[0].split(",")[0] == row["verdict"]
        assert caption[1:] == [f"P(fake) {row['probability']:.3f}", file.name]
    assert Image.open(tmp_path / "p_sheet.png").format == "PNG"


def test_the_sheet_shows_what_was_judged_whatever_came_meanwhile(
    run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = shutil.copytree(faces, tmp_path / "images")
    shown: list[tuple] = []
    drawn, finish = predicting.mistakes_sheet, predicting._finish
    monkeypatch.setattr(
        predicting, "mistakes_sheet", lambda *args, **named: shown.append(args) or drawn(*args, **named)
    )

    def meanwhile(*args: object) -> object:
        shutil.copy(images / "1-gan" / "01.png", images / "0-camera" / "00-and-a-half.png")
        (images / "0-camera" / "02.png").unlink()
        return finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "_finish", meanwhile)
    assert predict(f"run={run}", f"input={images}", f"output={tmp_path}/p.csv") == 0
    ((pictures, captions, _),) = shown
    names = ["00.jpg", "01.png", "03.jpg", "04.png", "05.png", "06.jpg"]  # 02 is gone
    assert [caption[-1] for caption in captions] == names
    found = table(tmp_path / "p.csv").set_index("path")["probability"]
    for picture, caption, name in zip(pictures, captions, names, strict=True):
        file = images / "0-camera" / name
        assert picture.tobytes() == Image.open(file).convert("RGB").tobytes()
        assert caption[1] == f"P(fake) {found[str(file)]:.3f}"


def test_the_sheet_is_no_image_of_the_next_prediction(run: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copy(faces / "1-gan" / "01.png", tmp_path / "a.png")
    for number in (1, 1, 0):  # the sheet of each lies beside the images of the next
        predict(f"run={run}", f"input={tmp_path}", f"output={tmp_path}/p.csv", f"sheet={number}")
        assert (tmp_path / "p_sheet.png").exists() == bool(number)
        assert len(table(tmp_path / "p.csv")) == 1


def new_images(faces: Path, folder: Path) -> Path:
    """The same pictures in other files, which no run was trained on."""
    images = shutil.copytree(faces, folder)
    for file in images.rglob("*.*g"):
        file.write_bytes(file.read_bytes() + b"\0")
    return images


def test_labels_in_folder_names_are_scored(
    run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = new_images(faces, tmp_path / "images")
    (images / "1-gan" / "text.png").write_text("I am no image.")
    assert predict(f"run={run}", f"input={images}", f"output={tmp_path}/p.csv", "threshold=eer") == 3
    told = json.loads((tmp_path / "p_scores.json").read_text())
    found = table(tmp_path / "p.csv").query("status == 'ok'")
    labels = found["path"].str.contains("/1-").astype(int)
    held = torch.load(run / runs.BEST, weights_only=True)["deepfake"]["calibration"]["thresholds"]["eer"]["value"]
    assert told["threshold"] == {"name": "eer", "value": held, "origin": "validation of the run"}
    assert {name: told["scores"][name] for name in ("n", "prevalence", "majority")} == {
        "n": 48, "prevalence": 0.5, "majority": 0.5,
    }  # fmt: skip
    assert told["scores"]["auroc"] == pytest.approx(roc_auc_score(labels, found["probability"]))
    assert told["scores"]["accuracy"] == pytest.approx(((found["verdict"] == "fake") == labels).mean())
    low, high = told["intervals"]["auroc"]
    assert low < told["scores"]["auroc"] < high
    assert [(row["source"], row["images"]) for row in told["sources"]] == [
        ("0-camera", 12), ("0-phone", 12), ("1-diffusion", 12), ("1-gan", 12),
    ]  # fmt: skip
    captured = capfd.readouterr()
    said = " ".join(captured.out.split())
    assert "1-diffusion" in said
    assert said.count("48 labelled images, 50.0% fake, majority-class baseline 0.500, threshold") == 2
    assert "(eer: validation of the run)" in said
    assert "trained or calibrated on" not in captured.err


@pytest.mark.parametrize("labelled", [True, False])
def test_images_of_the_run_itself_are_told_and_do_not_count(
    labelled: bool, run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(faces, tmp_path / "images") if labelled else faces / "1-gan"
    assert predict(f"run={run}", f"input={images}", f"output={tmp_path}/p.csv") == 0
    manifest = pd.read_csv(run / "manifest.csv")
    mine = manifest[manifest["path"].str.startswith("1-gan/") | labelled]
    learned = mine["split"].isin(["train", "val"]).sum()
    assert 0 < learned < len(mine)
    said = " ".join(capfd.readouterr().err.split())
    assert f"trained or calibrated on {learned} of these {len(mine)} files" in said
    found = table(tmp_path / "p.csv")
    assert found.columns.tolist() == ["path", "status", "reason", "probability", "verdict", "uncertain"]
    assert found["verdict"].isin(["real", "fake"]).all()
    if labelled:
        told = json.loads((tmp_path / "p_scores.json").read_text())
        judged = pd.read_csv(run / "test_predictions.csv")
        assert told["scores"]["n"] == len(judged)
        assert told["scores"]["auroc"] == pytest.approx(roc_auc_score(judged["label"], judged["margin"]))


def test_a_run_without_its_manifest_says_so(
    run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "manifest.parquet").unlink()
    assert predict(f"run={copy}", f"input={faces}/1-gan/01.png", f"output={tmp_path}/p.csv") == 0
    assert "whether the run was trained on an image is not known" in " ".join(capfd.readouterr().err.split())


def test_margins_order_what_is_certain(faces: Path, tmp_path: Path) -> None:
    margins = {"0-a": [800.0, 900.0], "1-b": [850.0, 1000.0]}  # each P(fake) is 1
    rows = [
        {"path": f"/x/{folder}/{n}.png", "status": "ok", "known": False, "probability": 1.0, "margin": margin}
        for folder, of in margins.items()
        for n, margin in enumerate(of)
    ]
    cfg = PredictConfig(run="outputs/a", input="/x")
    predicting._score(iter(rows), Path("/x"), tmp_path / "scores.json", cfg, 0.5)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["scores"]["auroc"] == 0.75
    assert told["threshold"]["origin"] == "fixed"
    assert [row["auroc"] for row in told["sources"] if row["label"]] == [0.75]


def test_one_class_that_cannot_be_judged_has_no_figure(run: Path, faces: Path, tmp_path: Path) -> None:
    new_images(faces / "0-phone", tmp_path / "images" / "real")
    (tmp_path / "images" / "fake").mkdir()
    (tmp_path / "images" / "fake" / "text.png").write_text("I am no image.")
    assert predict(f"run={run}", f"input={tmp_path}/images", f"output={tmp_path}/p.csv") == 3
    told = json.loads((tmp_path / "p_scores.json").read_text())
    assert told["scores"]["n"] == 12
    assert told["scores"]["auroc"] is None
    assert told["summary"]["fake_sources"] == 0


@pytest.mark.parametrize(
    ("folder", "label"),
    [("1-gan", 1), ("fake/gan", 1), ("gan/real", 0), ("real", 0), ("test/0_real", 0), ("1-gan/val", 1)],
)
def test_one_label_has_the_figures_that_one_class_allows(
    folder: str, label: int, run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new_images(faces / "1-gan", tmp_path / "images" / folder)
    shutil.copytree(faces / "0-phone", tmp_path / "images" / "unlabelled")
    assert predict(f"run={run}", f"input={tmp_path}/images", f"output={tmp_path}/p.csv") == 0
    told = json.loads((tmp_path / "p_scores.json").read_text())
    found = table(tmp_path / "p.csv").query("not path.str.contains('unlabelled')")
    right = (found["verdict"] == ("fake" if label else "real")).mean()
    assert told["scores"]["n"] == 12
    assert (told["scores"]["prevalence"], told["scores"]["majority"]) == (label, 1)
    assert told["scores"]["accuracy"] == pytest.approx(right)
    assert told["scores"]["recall"] == (pytest.approx(right) if label else None)
    for name in ("balanced_accuracy", "precision", "f1", "auroc", "ap", "eer"):
        assert told["scores"][name] is None
        assert told["intervals"][name] == [None, None]
    (source,) = told["sources"]
    assert source["label"] == label
    said = " ".join(capfd.readouterr().out.split())
    assert "12 labelled images" in said
    assert "nan" not in said


@pytest.mark.parametrize("name", ["unlabelled", "1", "holiday/0"])
def test_without_labels_there_is_no_score(name: str, run: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces / "1-gan", tmp_path / "images" / name)
    (tmp_path / "p_scores.json").write_text("of an earlier prediction")
    assert predict(f"run={run}", f"input={tmp_path}/images", f"output={tmp_path}/p.csv") == 0
    assert not (tmp_path / "p_scores.json").exists()


def test_a_checkpoint_with_a_flipped_bit_is_not_used(
    run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyTorch would load it without a word."""
    changed = shutil.copytree(run, tmp_path / "run")
    content = bytearray((changed / runs.BEST).read_bytes())
    content[len(content) // 2] ^= 1
    (changed / runs.BEST).write_bytes(content)
    torch.load(changed / runs.BEST, weights_only=True)
    assert predict(f"run={changed}", f"input={faces}", f"output={tmp_path}/p.csv") == 2
    assert "best.ckpt: expected the content whose sha256" in capfd.readouterr().err


def test_an_ensemble_is_judged_by_its_members(run: Path, faces: Path, tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    (ensemble / "members").mkdir(parents=True)
    for name in ("a.ckpt", "b.ckpt"):
        shutil.copy(run / runs.BEST, ensemble / "members" / name)
    calibration = torch.load(run / runs.BEST, weights_only=True)["deepfake"]["calibration"]
    told = {
        "members": ["a.ckpt", "b.ckpt"],
        "combine": "mean",
        "weights": [],
        "calibration": {**calibration, "temperature": 1.0},
    }
    (ensemble / runs.ENSEMBLE).write_text(json.dumps(told))
    (ensemble / runs.STATUS).write_text('{"status": "complete"}')
    for folder, name in ((run, "alone"), (ensemble, "together")):
        assert predict(f"run={folder}", f"input={faces}", f"output={tmp_path}/{name}.csv") == 0
    alone, together = table(tmp_path / "alone.csv"), table(tmp_path / "together.csv")
    assert together["probability"].to_numpy() == pytest.approx(alone["probability"].to_numpy(), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- heat maps


def pictures(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_each_judged_image_has_its_heat_map(run: Path, faces: Path, tmp_path: Path) -> None:
    images = shutil.copytree(faces / "1-gan", tmp_path / "images")
    (images / "02.png").write_text("I am no image.")
    folder = images / "p_explained"  # among the images, and yet none of them the next time
    folder.mkdir()
    for name in ("000099.png", ".000003.png.1-2.tmp", "mine.png"):  # two of an earlier prediction
        (folder / name).touch()
    for _ in range(2):
        assert predict(f"run={run}", f"input={images}", f"output={images}/p.csv", "explain=true", "batch_size=5") == 3
        numbers = [number for number in range(1, 13) if number != 3]
        names = [f"{number:06}.png" for number in numbers]
        assert pictures(folder) == [*names, "index.csv", "mine.png"]
        found = table(images / "p.csv")
        assert len(found) == 12
        index = pd.read_csv(folder / "index.csv")
        assert index["row"].tolist() == numbers
        assert index["picture"].tolist() == names
        assert index["path"].tolist() == found["path"][found["status"] == "ok"].tolist()
        for file, name in zip(index["path"], names, strict=True):
            picture = Image.open(folder / name).convert("RGB")
            assert picture.crop((0, 48, 48, 88)).tobytes() == Image.open(file).convert("RGB").tobytes()
    explained = (images / "p.csv").read_bytes()
    assert predict(f"run={run}", f"input={images}", f"output={images}/p.csv", "batch_size=5") == 3
    assert (images / "p.csv").read_bytes() == explained
    assert pictures(folder) == ["mine.png"]


def test_heat_maps_that_are_there_are_not_made_again(
    run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(run, faces / "1-gan", tmp_path / "p.csv", monkeypatch, 5, "explain=true")
    folder = tmp_path / "p_explained"
    made = {name: (folder / name).stat().st_mtime_ns for name in pictures(folder)[:5]}
    (folder / "000012.png").touch()
    assert predict(f"run={run}", f"input={faces}/1-gan", f"output={tmp_path}/p.csv", "explain=true") == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == made
    assert pictures(folder) == [*(f"{number:06}.png" for number in range(1, 13)), "index.csv"]
    assert Image.open(folder / "000012.png").format == "PNG"


def test_a_name_that_is_a_formula_is_none_in_the_index(tmp_path: Path) -> None:
    (tmp_path / "000001.png").touch()
    predicting._write_index(iter([{"path": "=1+1.png"}, {"path": "no picture"}]), tmp_path)
    assert (tmp_path / "index.csv").read_text() == '"row","path","picture"\n1,"./=1+1.png","000001.png"\n'


def test_heat_maps_need_the_extra(
    run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pytorch_grad_cam" else found(name, *rest)
    )
    monkeypatch.setattr(predicting.Detector, "load", lambda *_: pytest.fail("begun nevertheless"))
    capfd.readouterr()
    assert predict(f"run={run}", f"input={faces}", f"output={tmp_path}/p.csv", "explain=true") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "pip install 'deepfake[explain]'" in line


# ----------------------------------------------------------------------------------------------------- which files


def test_files_of_folders_come_sorted_and_links_in_circles_end(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a/1.png", "c.png", ".hidden/x.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "over").symlink_to(tmp_path / "b")
    (tmp_path / "itself.png").symlink_to("itself.png")
    found = [str(file.relative_to(tmp_path)) for file in predicting.input_files(str(tmp_path))]
    assert found == [
        ".hidden/x.png", "a/1.png", "b/10.JPG", "b/2.png", "c.png", "itself.png",
    ]  # fmt: skip


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("who,path\n" + "me,a.png\n" * 100_000)
    with file.open("ab") as stream:
        stream.write(b"you,\xff.png\n")
    files = predicting.input_files(str(file))
    assert next(files) == tmp_path / "a.png"  # the fault at the end is not yet seen
    with pytest.raises(predicting.UserError, match="expected a CSV in UTF-8 with the column path"):
        list(files)


def test_a_name_that_is_no_text_has_its_row(run: Path, faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    try:
        shutil.copy(faces / "1-gan" / "01.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert predict(f"run={run}", f"input={folder}", f"output={tmp_path}/p.csv") == 0
    assert table(tmp_path / "p.csv")["path"].tolist() == [f"{folder}/\\xff.png"]


# --------------------------------------------------------------------------------------------------------- going on


def unfinished(
    run: Path, faces: Path, output: Path, monkeypatch: pytest.MonkeyPatch, rows: int, *overrides: str
) -> list[bytes]:
    """Leave the first rows of a prediction that was ended by an error; returns the lines of the unfinished file."""
    judged = predicting._judged

    def ends(*args: object) -> object:
        for number, found in enumerate(judged(*args)):  # type: ignore[arg-type]
            if number == rows:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_judged", ends)
        assert predict(f"run={run}", f"input={faces}", f"output={output}", "batch_size=1", *overrides) == 130
    return output.with_name(f"{output.name}.partial").read_bytes().splitlines(keepends=True)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are judged from now on."""
    seen: list[Path] = []
    read = predicting.read_image
    monkeypatch.setattr(predicting, "read_image", lambda file, limit: seen.append(file) or read(file, limit))
    return seen


@pytest.mark.parametrize("torn", [b"", b'{"path": "/tm', b"\0\0\0"])
def test_it_goes_on_after_the_last_whole_row(
    torn: bytes, run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = unfinished(run, faces, tmp_path / "p.csv", monkeypatch, 20)
    assert len(lines) == 1 + 20
    with (tmp_path / "p.csv.partial").open("ab") as stream:
        stream.write(torn)
    seen = counted(monkeypatch)
    assert predict(f"run={run}", f"input={faces}", f"output={tmp_path}/p.csv", "sheet=0") == 0
    assert len(seen) == 28
    assert not (tmp_path / "p.csv.partial").exists()
    predict(f"run={run}", f"input={faces}", f"output={tmp_path}/whole.csv", "sheet=0")
    again, whole = table(tmp_path / "p.csv"), table(tmp_path / "whole.csv")
    assert again["path"].tolist() == whole["path"].tolist() == [str(file) for file in sorted(faces.rglob("*.*g"))]
    assert again["probability"].to_numpy() == pytest.approx(whole["probability"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize("other", ["threshold=eer", "tta=flip", "max_megapixels=1", "explain=true", "run"])
def test_other_settings_or_weights_begin_anew(
    other: str,
    run: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    unfinished(run, faces, tmp_path / "p.csv", monkeypatch, 20)
    if other == "run":
        changed = shutil.copytree(run, tmp_path / "run")
        held = torch.load(changed / runs.BEST, weights_only=True)
        next(weight for weight in held["state_dict"].values() if weight.is_floating_point()).mul_(2)
        write_checkpoint(changed / runs.BEST, held)
        settings = [f"run={changed}"]
    else:
        settings = [f"run={run}", other]
    seen = counted(monkeypatch)
    assert predict(*settings, f"input={faces}", f"output={tmp_path}/p.csv", "sheet=0") == 0
    assert len(set(seen)) == 48
    assert "begun with other settings or weights: begun anew" in " ".join(capfd.readouterr().err.split())


def test_other_files_are_judged_anew_from_the_first_of_them(
    run: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(faces, tmp_path / "images")
    unfinished(run, images, tmp_path / "p.csv", monkeypatch, 20)
    shutil.copy(images / "0-camera" / "11.png", images / "0-camera" / "09-and-a-half.png")
    seen = counted(monkeypatch)
    assert predict(f"run={run}", f"input={images}", f"output={tmp_path}/p.csv", "sheet=0") == 0
    assert len(seen) == 49 - 9
    assert table(tmp_path / "p.csv")["path"].tolist() == [str(file) for file in sorted(images.rglob("*.*g"))]
    assert "are others than before after the first 9" in " ".join(capfd.readouterr().err.split())


def test_two_predictions_do_not_write_one_file(
    run: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "p.csv.partial").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert predict(f"run={run}", f"input={faces}", f"output={tmp_path}/p.csv") == 2
    assert "expected a file that no other prediction writes" in capfd.readouterr().err


@pytest.mark.slow
def test_nothing_is_lost_or_repeated_after_a_kill(run: Path, faces: Path, tmp_path: Path) -> None:
    names = [str(faces / f"{source}/{n:02}.png") for source in ("0-phone", "1-gan") for n in (1, 2, 4, 5)] * 250
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    settings = [f"run={run}", f"input={tmp_path}/list.csv", f"output={tmp_path}/p.csv", "sheet=0", "batch_size=4"]
    command = [sys.executable, "-m", "deepfake.predict", "engine=eager", *settings]
    enough = random.randrange(1, 1000)  # noqa: S311 - rows, at the least, when it is killed
    partial = tmp_path / "p.csv.partial"
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") <= enough):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = partial.read_bytes().count(b"\n") - 1
    assert enough <= left < len(names)
    assert not (tmp_path / "p.csv").exists()
    assert predict(*settings) == 0
    found = table(tmp_path / "p.csv")
    assert found["path"].tolist() == names
    assert (found.groupby("path")["probability"].agg(lambda p: p.max() - p.min()) < 1e-5).all()


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run={tmp}", "input={faces}"], "expected the folder of a complete run, found none"),
        (["run={run}", "input={tmp}/nowhere"], "expected an image, a folder, a CSV or a list"),
        (["run={run}", "input={tmp}"], "expected images (.jpg, .jpeg, .jpe, ...), found none"),
        (["run={run}", "input={faces}", "output={faces}"], "expected a file name that ends in .csv, or in .jsonl"),
        (["run={run}", "input={faces}", "output={run}/config.yaml/p.csv"], "output: expected a file that can be"),
        (
            ["run={run}", "input=predictions.csv"],
            "another file, for the answers would replace the list",
        ),
        (["run={run}", "input={faces}", "threshold=best"], "threshold=best is refused"),
        (["run={run}", "input={faces}", "tta=mirror"], "tta=mirror is refused"),
        (["run={run}", "input={faces}", "device=tpu"], "device=tpu is refused"),
        (["run={run}", "input={faces}", "sheet=-1"], "sheet=-1 is refused"),
        (["run={run}", "input={faces}", "batch_size=0"], "batch_size=0 is refused"),
        (["run={run}", "input=3"], "input=3 is refused"),
        (["input={faces}"], "run"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    overrides: list[str],
    expected: str,
    run: Path,
    faces: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert predict(*(o.format(run=run, faces=faces, tmp=tmp_path) for o in overrides)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert expected in line


def test_a_checkpoint_that_runs_code_is_refused(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / run.name)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "marker",))

    write_checkpoint(copy / "checkpoints" / "best.ckpt", {"deepfake": Evil()})
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert predict(f"run={copy}", f"input={tmp_path}/a.png", f"output={tmp_path}/p.csv") == 2
    assert not (tmp_path / "marker").exists()
    assert "expected a checkpoint of this version" in capfd.readouterr().err
