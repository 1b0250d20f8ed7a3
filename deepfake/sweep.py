"""One job and many: errors a person can read, a sweep that finishes every job and then says what is missing.

A sweep's jobs know of each other in one thing: the first that runs a trunk keeps its output for all of them.
"""

import json
import math
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepfake.command import errors_ending_here
from deepfake.config import TrainConfig, parse_train
from deepfake.console import say_error, terminal
from deepfake.errors import UserError
from deepfake.files import write_json
from deepfake.recap import compare
from deepfake.runs import run_folder

_JOBS = "jobs"  # folder in the sweep's: one file a job, so that it works whatever process ran the job
_PLAN = "plan.json"  # beside it: of each job, its network and what of it trains
_DECIDING = ("experiment", "model", "unfreeze")  # settings that say which network trains how far


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
        cfg.trunk.keep = _kept_for_others(cfg, Path(hydra_cfg.sweep.dir, _PLAN))
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
            folder = Path(config.hydra.sweep.dir)
            shutil.rmtree(folder / _JOBS, ignore_errors=True)
        with suppress(Exception):  # settings that cannot be composed: Hydra refuses them next
            write_json(folder / _PLAN, _plan(config))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with errors_ending_here():
            _tell(Path(config.hydra.sweep.dir))


def _plan(config: DictConfig) -> list[dict[str, Any]]:
    """Network and `unfreeze` of the jobs of a sweep, each pair once; empty for sweepers that decide as they go."""
    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(BasicSweeper.__name__):
        return []
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *config.hydra.overrides.task])
    jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    # Composing takes a tenth of a second: only for those that differ in what is looked for.
    deciding = {tuple(o for o in job if o.lstrip("+").split("=")[0].split(".")[0] in _DECIDING): job for job in jobs}
    plan = []
    for _, choices in sorted(deciding.items()):
        with suppress(UserError):  # the job itself will say it
            composed = loader.load_sweep_config(config, list(choices))
            cfg = parse_train(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
            plan.append({"model": asdict(cfg.model), "unfreeze": cfg.unfreeze})
    return plan


def _kept_for_others(cfg: TrainConfig, plan: Path) -> list[int]:
    """The values of `unfreeze` that other jobs of this sweep have for the same network."""
    try:
        jobs = json.loads(plan.read_text())
    except OSError:
        return cfg.trunk.keep
    others = {job["unfreeze"] for job in jobs if job["model"] == asdict(cfg.model)}
    return sorted({*cfg.trunk.keep, *(n for n in others if isinstance(n, int))})


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
