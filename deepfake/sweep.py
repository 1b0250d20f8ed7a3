"""One job and many: errors a person can read, a sweep that finishes every job and then says what is missing."""

import json
import math
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from deepfake.command import errors_ending_here
from deepfake.config import TrainConfig, parse_train
from deepfake.console import say_error, terminal
from deepfake.errors import UserError
from deepfake.files import write_json
from deepfake.recap import compare
from deepfake.runs import run_folder

_JOBS = "jobs"  # folder in the sweep's: one file a job, so that it works whatever process ran the job


def job(composed: DictConfig, run: Callable[[TrainConfig], float]) -> float:
    """Run one job of a command line.

    Alone, its errors are the command's. In a sweep a failure of any kind is written down, the value is NaN, and the
    next job starts; `Comparison` ends the sweep with the list. Settings that Hydra cannot compose never come here:
    it composes those of every job before the first, and refuses them all.
    """
    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode != RunMode.MULTIRUN:
        return run(parse_train(composed))

    overrides = " ".join(hydra_cfg.overrides.task)
    record = Path(hydra_cfg.sweep.dir, _JOBS, f"{hydra_cfg.job.num}.json")
    entry: dict[str, Any] = {
        "overrides": overrides,
        "status": "running",
        "run": None,
        "message": "ended abruptly",
    }
    write_json(record, entry)
    terminal(stderr=True).rule(f"job {hydra_cfg.job.num}: {overrides}", align="left")
    try:
        cfg = parse_train(composed)
        entry["run"] = str(run_folder(cfg))
        value = run(cfg)
    except Exception as error:
        entry |= {"status": "failed", "message": f"{error}" if isinstance(error, UserError) else repr(error)}
        write_json(record, entry)
        if isinstance(error, UserError):
            say_error(str(error))
        else:
            traceback.print_exc()
        return math.nan
    write_json(record, entry | {"status": "complete", "message": ""})
    return value


class Comparison(Callback):
    """At the end of a sweep: the comparison of its runs, and status 1 with a list if a job is missing."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # An earlier sweep in the same folder may have had more jobs, and failed ones.
        with suppress(OmegaConfBaseException):  # a folder that cannot be resolved: Hydra refuses it next
            shutil.rmtree(Path(config.hydra.sweep.dir, _JOBS), ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with errors_ending_here():
            _tell(Path(config.hydra.sweep.dir))


def _tell(folder: Path) -> None:
    """What a sweep in `folder` came to."""
    files = sorted((folder / _JOBS).glob("*.json"), key=lambda f: int(f.stem))
    jobs = [json.loads(file.read_text()) for file in files]
    complete = [Path(job["run"]) for job in jobs if job["status"] == "complete"]
    failed = [job for job in jobs if job["status"] != "complete"]
    if complete:
        compare(list(dict.fromkeys(complete)), folder)
    if failed:
        say_error(f"{len(failed)} of {len(jobs)} jobs failed; the others are complete.")
        for job in failed:
            say_error(f"  {job['overrides']}: {job['message']}")
        say_error("Run the same command again: only what is missing is run.")
        sys.exit(1)
