"""The comparison of finished runs as a command: what it writes, what it prints, what it says when there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from scipy.stats import binomtest

from deepfake import recap, runs
from deepfake.config import conf_dir, parse_train
from deepfake.training import train

SETTINGS = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=16",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "trainer.progress=false", "logger=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """A folder of two runs that are complete and one that is not."""
    output = tmp_path_factory.mktemp("outputs")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for unfreeze in (0, 2):
            overrides = [*SETTINGS, f"data.root={faces}", f"output_dir={output}", f"unfreeze={unfreeze}"]
            train(parse_train(compose("train", overrides=overrides)))
    runs.begin(output / "unfinished")
    return output


def command(*overrides: str) -> int:
    """The exit status of what the terminal does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-recap", *overrides])
        try:
            recap.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0


def test_two_runs_side_by_side(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(f"runs={output}") == 0
    table = pd.read_csv(output / "comparison.csv").set_index("run")
    summaries = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/summary.json")}
    assert len(summaries) == 2
    assert set(table.index) == set(summaries)
    assert table["val_loss"].is_monotonic_increasing
    assert table["against_best"].iloc[0] == "best"
    assert table["against_best"].iloc[1] in ("not told apart", "told apart")
    assert table["p_accuracy"].iloc[1] == pytest.approx(_binomial(output, list(table.index)))
    for run, told in summaries.items():
        row = table.loc[run]
        assert row["trained_weights"] == told["trained_weights"]
        assert row["val_loss"] == pytest.approx(told["val"]["loss"])
        assert row["test_accuracy"] == pytest.approx(told["test"]["accuracy"])
        assert [row["val_auroc_low"], row["val_auroc_high"]] == pytest.approx(told["val"]["intervals"]["auroc"])
        assert run in (output / "comparison.md").read_text()
    with Image.open(output / "comparison.png") as picture:
        picture.load()
    told = capfd.readouterr()
    assert told.err == ""
    for file in ("comparison.csv", "comparison.md", "comparison.png", "report.html"):
        assert f"  {output / file}\n" in told.out


def _binomial(output: Path, runs: list[str]) -> float:
    """p of McNemar's exact test, from SciPy, on what stands in the folders."""
    right = []
    for run in runs:
        stored = pd.read_csv(output / run / "val_predictions.csv")
        right.append((stored["prediction"] == stored["label"]).to_numpy())
    either, both = int((right[0] ^ right[1]).sum()), int((right[0] & ~right[1]).sum())
    return float(binomtest(both, either).pvalue) if either else 1.0


def test_chosen_runs_into_another_folder(output: Path, tmp_path: Path) -> None:
    one = next(path.parent for path in output.glob("*/summary.json"))
    assert command(f"runs=[{one},{output}]", f"output={tmp_path / 'new'}") == 0
    assert len(pd.read_csv(tmp_path / "new" / "comparison.csv")) == 2, "each run once"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("runs={}", "runs: expected completed runs (summary.json) in {}, found none. Train first"),
        ("runs={}/nowhere", "runs: expected a run folder or a folder of runs, found no folder {}/nowhere."),
        ("+run={}", "unknown setting run: did you mean runs?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    setting: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs.begin(tmp_path / "unfinished")
    before = sorted(tmp_path.rglob("*"))
    assert command(setting.format(tmp_path)) == 2
    told = capfd.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: " + message.format(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_help_tells_every_value(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    told = capfd.readouterr().out
    assert "python -m deepfake.recap runs=outputs" in told
    for name in ("runs", "output"):
        assert f"\n{name} " in told


def test_as_a_module_from_another_folder_and_without_torch(output: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['recap', 'runs=' + sys.argv[1], 'output=here'];"
        "runpy.run_module('deepfake.recap', run_name='__main__');"
        "sys.exit(bool({'torch', 'lightning', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(output)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "comparison.csv", "comparison.md", "comparison.png", "report.html",
    }  # fmt: skip
