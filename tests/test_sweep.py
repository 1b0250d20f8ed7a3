"""A sweep finishes every job, says at the end what is missing, and makes up only that when run again."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from deepfake import runs, training
from deepfake import sweep as sweeping
from deepfake.errors import UserError
from deepfake.models.trunk import Trunk
from deepfake.signals import Stopped
from deepfake.train import main

SETTINGS = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=16",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "trainer.progress=false", "logger=none",
)  # fmt: skip


class Sweep:
    """The command with -m, in this process; `trained` lists the run folders that were really made."""

    def __init__(self, faces: Path, output: Path) -> None:
        self.faces, self.output, self.folder = faces, output, output / "sweeps" / "one"

    def __call__(self, *overrides: str) -> int:
        """The command's exit status."""
        self.trained: list[Path] = []
        fit = training._fit_and_judge

        def counted(cfg: Any, folder: Path, *arguments: Any) -> float:
            self.trained.append(folder)
            return fit(cfg, folder, *arguments)

        where = (f"data.root={self.faces}", f"output_dir={self.output}", f"hydra.sweep.dir={self.folder}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "_fit_and_judge", counted)
            patch.setattr(sys, "argv", ["deepfake-train", "-m", *SETTINGS, *where, *overrides])
            try:
                main()
            except SystemExit as ended:
                return int(ended.code or 0)
            return 0

    @property
    def compared(self) -> list[str]:
        return sorted(pd.read_csv(self.folder / "comparison.csv")["run"])


@pytest.fixture
def sweep(faces: Path, tmp_path: Path) -> Sweep:
    return Sweep(faces, tmp_path / "outputs")


def test_a_bad_job_stops_no_other_and_is_all_that_is_run_again(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep("unfreeze=0,99,1") == 1
    first = list(sweep.trained)
    assert [folder.name.split("-")[1] for folder in first] == ["u0", "u1"]
    assert all(runs.is_complete(folder) for folder in first)
    told = capfd.readouterr()
    assert "Traceback" not in told.err
    *_, count, listed, advice = told.err.splitlines()
    assert count == "error: 1 of 3 jobs failed; the others are complete."
    assert "unfreeze=99: unfreeze must be 0..5 or all: found 99" in listed
    assert advice.endswith("Run the same command again: only what is missing is run.")
    assert {path.name for path in sweep.folder.iterdir()} >= {
        "comparison.csv", "comparison.md", "comparison.png", "report.html",
    }  # fmt: skip
    assert "unfreeze must be 0..5 or all: found 99" in (sweep.folder / "report.html").read_text()
    assert sweep.compared == sorted(folder.name for folder in first)
    assert "test_resnet" in told.out

    # The mistake is mended: that job alone is run, in the same place.
    assert sweep("unfreeze=0,2,1") == 0
    assert [folder.name.split("-")[1] for folder in sweep.trained] == ["u2"]
    assert sweep.compared == sorted(folder.name for folder in first + sweep.trained)

    # All are complete: nothing is run, and the table is there all the same.
    (sweep.folder / "comparison.csv").unlink()
    capfd.readouterr()
    assert sweep("unfreeze=0,2,1") == 0
    assert sweep.trained == []
    assert len(sweep.compared) == 3
    assert "error" not in capfd.readouterr().err


def test_settings_that_cannot_be_composed_refuse_every_job_before_the_first(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep("scheduler=none,platau") == 2
    assert sweep.trained == []
    assert capfd.readouterr().err.startswith("error: scheduler=platau is refused: expected one of cosine, none, plat")


def test_a_setting_that_one_job_does_not_know_is_told_in_one_line_and_stops_no_other(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep("+epoch=2", "seed=0,1") == 1
    assert sweep.trained == []
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert [line for line in told.splitlines() if line.startswith("error: unknown")] == [
        "error: unknown setting epoch: did you mean epochs?"
    ] * 2


@pytest.mark.parametrize(("error", "status"), [(UserError("no folder"), 2), (RuntimeError("boom"), 1)])
def test_a_comparison_that_fails_is_no_success(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(sweeping, "compare", fail)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "0.json").write_text('{"overrides": "", "run": "a", "status": "complete", "message": ""}')
    with pytest.raises(SystemExit) as ended:
        sweeping.Comparison().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert ended.value.code == status
    assert str(error) in capfd.readouterr().err.splitlines()[-1]


def test_what_an_earlier_sweep_left_in_the_folder_does_not_count(sweep: Sweep) -> None:
    assert sweep("unfreeze=0,98,99") == 1
    assert sweep("unfreeze=0,1") == 0
    assert len(sweep.compared) == 2


def test_a_job_that_breaks_is_told_with_its_trace_and_run_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> None:
            raise RuntimeError("boom")

        patch.setattr(training, "_fit_and_judge", broken)
        assert sweep("seed=0,1") == 1
    told = capfd.readouterr().err
    assert "Traceback" in told
    assert "2 of 2 jobs failed" in told
    assert told.count("RuntimeError('boom')") == 2
    assert not (sweep.folder / "comparison.csv").exists()
    assert [runs.read_status(folder) for folder in sweep.trained] == ["failed", "failed"]
    assert sweep("seed=0,1") == 0
    assert len(sweep.trained) == len(sweep.compared) == 2


def test_an_interrupted_sweep_ends_at_once_and_goes_on_where_it_was(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = training._fit_and_judge

    def interrupted(cfg: Any, *arguments: Any) -> float:
        if cfg.seed == 1:
            raise Stopped(signal.SIGINT)
        return fit(cfg, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_and_judge", interrupted)
        assert sweep("seed=0,1,2") == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(sweep.trained) == 2
    told = capfd.readouterr().err
    count, first, second, last = told.splitlines()[-4:]
    assert count == "error: 2 of 3 jobs are missing; the others are complete."
    assert first.endswith("seed=1: interrupted")
    assert second.endswith("seed=2: not run")
    assert last.startswith("error: stopped by SIGINT. Run the same command again")
    assert "Traceback" not in told
    assert json.loads((sweep.folder / "jobs" / "1.json").read_text())["status"] == "interrupted"
    assert sweep("seed=0,1,2") == 0
    assert len(sweep.trained) == 2
    assert len(sweep.compared) == 3


def test_the_same_job_twice_is_one_run(sweep: Sweep) -> None:
    assert sweep("lr=1e-3,0.001") == 0
    assert len(sweep.trained) == len(sweep.compared) == 1


@pytest.mark.parametrize("order", ["0,2,all", "2,0,all"])
def test_the_trunk_runs_once_for_all_jobs(
    order: str, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    compute = Trunk.compute
    monkeypatch.setattr(Trunk, "compute", lambda self, images: passed.append(len(images)) or compute(self, images))
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    same = (f"model.weights={weights}", "views=1", "epochs=2")
    assert sweep(*same, f"unfreeze={order}", "trunk.precision=float32") == 0
    assert len(sweep.trained) == 3
    assert sum(passed) == 48, "each image once, in validation and test too"


def test_a_sweep_over_experiments_is_looked_into(sweep: Sweep) -> None:
    given = ("experiment=report/resnet18,report/efficientnet_2", "views=1")
    assert sweep(*given) == 0
    plan = json.loads((sweep.folder / "plan.json").read_text())
    assert sorted(network["unfreeze"] for network in plan["networks"]) == [0, 2]
    assert len({json.dumps(network["model"]) for network in plan["networks"]}) == 1
    for folder in sweep.trained:
        assert OmegaConf.load(folder / "config.yaml").trunk.keep == [0, 2]
