"""A finished run is asked about images: one row a file, the same probabilities as in its own verdict."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from deepfake import runs
from deepfake.config import conf_dir, parse_train
from deepfake.predict import main
from deepfake.train import run as train
from tests.data.hostile import make_hostile

TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=8",
    "accumulate=1", "epochs=2", "lr=1e-2", "unfreeze=1", "trainer=cpu", "trainer.progress=false", "logger=none",
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
        patch.setattr(sys, "argv", ["deepfake-predict", "progress=false", *overrides])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, na_values={"probability": "", "prediction": ""})


@pytest.mark.parametrize("overrides", [[], ["data.preprocess=crop"], ["data.equalise=true"]], ids=str)
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
    assert set(names[found["status"] == "unreadable"]) == unreadable
    assert (found["reason"] != "")[found["status"] == "unreadable"].all()
    assert found.loc[found["status"] == "ok", "probability"].between(0, 1).all()
    assert found.loc[found["status"] != "ok", "probability"].isna().all()


def test_the_prediction_is_at_one_half(run: Path, faces: Path, tmp_path: Path) -> None:
    predict(f"run={run}", f"input={faces}", f"output={tmp_path}/p.csv")
    found = table(tmp_path / "p.csv")
    assert (found["prediction"] == (found["probability"] > 0.5)).all()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run={tmp}", "input={faces}"], "expected the folder of a complete run, found none"),
        (["run={run}", "input={tmp}/nowhere"], "expected an image, a folder, a CSV or a list"),
        (["run={run}", "input={tmp}"], "expected images (.jpg, .jpeg, .jpe, ...), found none"),
        (["run={run}", "input={faces}", "output={faces}"], "output: expected a file that can be written"),
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

    torch.save({"deepfake": Evil()}, copy / "checkpoints" / "best.ckpt")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert predict(f"run={copy}", f"input={tmp_path}/a.png", f"output={tmp_path}/p.csv") == 2
    assert not (tmp_path / "marker").exists()
    assert "expected a checkpoint of this version" in capfd.readouterr().err
