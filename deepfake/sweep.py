"""Many jobs on one command line: every job finishes, then the comparison and the list of what is missing.

A job trains in a worker, a process that is kept from job to job: what kills a job, such as memory that runs out,
leaves the sweep alive. The launcher says which process a job comes to, the command's own (Hydra's basic launcher) or
one that it starts (joblib, submitit): each of them has its worker.

A sweep's jobs know of each other in one thing: the first that runs a trunk keeps its output for all of them.
"""

import json
import math
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import filelock
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from deepfake.command import errors_ending_here
from deepfake.config import TrainConfig, parse_train
from deepfake.console import named, say_error, terminal
from deepfake.errors import UserError
from deepfake.files import write_json
from deepfake.recap import compare
from deepfake.runs import run_folder
from deepfake.signals import Stopped, Stopping
from deepfake.worker import Died, Worker

_JOBS = "jobs"  # folder in the sweep's: one file a job, so that it works whatever process ran the job
_PLAN = "plan.json"  # beside it: what each job will be; the networks of all: which, and what of them trains; threads
_LOCK = ".lock"  # beside it: held while the sweep runs
_NO_PLAN: dict[str, Any] = {"jobs": [], "networks": [], "threads": None}
_DECIDING = ("experiment", "model", "unfreeze")  # settings that say which network trains how far
_SIDE_BY_SIDE = "JoblibLauncher"  # gives each job its share of the cores
_NOT_RUN = "not run"


@dataclass
class _Sweep:
    folder: Path
    held: ExitStack  # to be given back when the command ends
    told: bool = False  # what it came to


@dataclass
class _Failure:
    message: str
    mistake: bool  # a user's, that is: nothing broke


_sweep: _Sweep | None = None  # that this process has started
_worker: Worker | None = None  # where this process trains


# ------------------------------------------------------------------------------------------------------- one job


def job(composed: DictConfig) -> float:
    """Run one job of a sweep.

    A failure of any kind, being killed included, is written down, the value is NaN, and the next job starts;
    `Comparison` ends the sweep with the list. Settings that Hydra cannot compose never come here: it composes those
    of every job before the first, and refuses them all.

    Raises:
        Stopped: that ends the sweep.
    """
    hydra_cfg = HydraConfig.get()
    overrides = " ".join(hydra_cfg.overrides.task)
    record = Path(hydra_cfg.sweep.dir, _JOBS, f"{hydra_cfg.job.num}.json")
    entry: dict[str, Any] = {
        "overrides": overrides,
        "status": "running",
        "run": None,
        "message": "ended abruptly",
    }
    try:
        write_json(record, entry)
        terminal(stderr=True).rule(named(f"job {hydra_cfg.job.num}: {overrides}"), align="left")
        cfg = parse_train(composed)
        plan = _read_plan(Path(hydra_cfg.sweep.dir))
        cfg.trunk.keep = _kept_for_others(cfg, plan["networks"])
        if hydra_cfg.launcher._target_.endswith(_SIDE_BY_SIDE):
            cfg.trunk.threads = cfg.trunk.threads or plan["threads"]
        if not hydra_cfg.launcher._target_.endswith(BasicLauncher.__name__):
            cfg.trainer.progress = False  # the bars of several jobs would write over each other
        entry["run"] = str(run_folder(cfg))
        outcome = _train_apart(cfg)
    except Exception as error:
        outcome = _told(error)
    except BaseException as ended:
        write_json(record, entry | {"status": "interrupted", "message": "interrupted"})
        # Where a launcher has started this process for its jobs, only this job was ended: the others go on.
        if _sweep is None and isinstance(ended, Stopped):
            return math.nan
        raise
    if isinstance(outcome, _Failure):
        write_json(record, entry | {"status": "failed", "message": outcome.message})
        return math.nan
    write_json(record, entry | {"status": "complete", "message": ""})
    return outcome


def _train_apart(cfg: TrainConfig) -> float | _Failure:
    """As `_train`, in the worker. A process that has threads cannot have one: it trains itself."""
    global _worker
    if _worker is None or not _worker.alive():
        if "torch" in sys.modules or threading.active_count() > 1:
            return _train(cfg)
        _worker = Worker()
    try:
        outcome = _worker.call(_train, cfg)
    except Died as died:
        raise _cause(died.status) from None
    if isinstance(outcome, _Failure) and not outcome.mistake:
        _worker.end()  # it may have lost its accelerator, or keep memory that the next job needs
    return outcome


def _train(cfg: TrainConfig) -> float | _Failure:
    """The value of a training, or why there is none, in this process."""
    from deepfake.training import train  # imports torch

    try:
        return train(cfg)
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> _Failure:
    """What failed, said at once: a user's mistake in one line, all else with its trace."""
    if isinstance(error, UserError):
        say_error(str(error))
        return _Failure(str(error), mistake=True)
    traceback.print_exc()
    return _Failure(repr(error), mistake=False)


def _cause(status: int) -> BaseException:
    """What to raise for a worker that ended in a job."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if status in (128 + number, -number):
            return Stopped(number)
    if status == -signal.SIGKILL:
        return UserError(
            "killed (SIGKILL), as the system does where memory runs out: lower batch_size, data.workers or the "
            "number of jobs at a time."
        )
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return UserError(f"the training process ended {how}; train.log in its run folder says how far it came.")


# ------------------------------------------------------------------------------------------------------ all jobs


class Comparison(Callback):
    """At the end of a sweep: the comparison of its runs, and status 1 with a list if a job is missing."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep
        try:
            _sweep = _claimed(Path(config.hydra.sweep.dir))
        except OmegaConfBaseException:
            return  # a folder that cannot be resolved: Hydra refuses it next
        # Every job is composed anew, wherever it runs: all shall have this folder, in a sweep over output_dir too.
        with read_write(config):
            config.hydra.sweep.dir = folder = str(_sweep.folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={QuotedString(folder, Quote.single).with_quotes()}")
        # An earlier sweep in the same folder may have had more jobs, and failed ones.
        shutil.rmtree(_sweep.folder / _JOBS, ignore_errors=True)
        with suppress(Exception):  # settings that cannot be composed: Hydra refuses them next
            (_sweep.folder / _PLAN).unlink(missing_ok=True)
            write_json(_sweep.folder / _PLAN, _plan(config))
            if "submitit_folder" in config.hydra.launcher:
                _say(f"what the jobs say is in {config.hydra.launcher.submitit_folder}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if _sweep is not None:
            _sweep.told = True
        with errors_ending_here():
            _tell(Path(config.hydra.sweep.dir))


@contextmanager
def supervised() -> Iterator[None]:
    """Around a command that sweeps: a sweep that does not come to its end says all the same what is missing."""
    global _sweep
    try:
        yield
    except BaseException as error:
        if _sweep is not None and not _sweep.told:
            _tell_early(_sweep.folder, error)
        raise
    finally:
        if _sweep is not None:
            _sweep.held.close()
            _sweep = None


def _claimed(wanted: Path) -> _Sweep:
    """Its folder is this sweep's alone: beside one that another sweep is in, one with a number is made."""
    held = ExitStack()
    held.enter_context(Stopping())
    held.callback(_end_worker)
    folder, numbers = wanted, count(2)
    while not _lock(folder, held):
        folder = wanted.absolute().with_name(f"{wanted.absolute().name}-{next(numbers)}")
    if folder != wanted:
        _say(f"{wanted} is the folder of a sweep that is running: this one's is {folder}")
    return _Sweep(folder, held)


def _say(text: str) -> None:
    terminal(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _lock(folder: Path, held: ExitStack) -> bool:
    """False: another sweep is in there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(filelock.FileLock(folder / _LOCK).acquire(blocking=False))
    except filelock.Timeout:
        return False
    except (OSError, NotImplementedError):
        pass  # a file system without locks; or a folder that cannot be made, which Hydra refuses next
    return True


def _end_worker() -> None:
    if _worker is not None:
        _worker.end()


def _plan(config: DictConfig) -> dict[str, Any]:
    """The overrides of each job, and network and `unfreeze`, each pair once; none of a sweeper that decides later."""
    sweeper = config.hydra.sweeper
    plan: dict[str, Any] = _NO_PLAN | {"threads": _cores()}
    if not sweeper._target_.endswith(BasicSweeper.__name__):
        return plan
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *config.hydra.overrides.task])
    jobs = [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    # Composing takes a tenth of a second: only for those that differ in what is looked for.
    deciding = {tuple(o for o in job if o.lstrip("+").split("=")[0].split(".")[0] in _DECIDING): job for job in jobs}
    networks = []
    for _, choices in sorted(deciding.items()):
        with suppress(UserError):  # the job itself will say it
            composed = loader.load_sweep_config(config, list(choices))
            cfg = parse_train(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
            networks.append({"model": asdict(cfg.model), "unfreeze": cfg.unfreeze})
    return plan | {"jobs": [" ".join(job) for job in jobs], "networks": networks}


def _cores() -> int:
    """As many as this command may use; its jobs side by side are each given fewer."""
    with suppress(KeyError, ValueError):
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((folder / _PLAN).read_text())
    except OSError:
        return _NO_PLAN
    return plan


def _kept_for_others(cfg: TrainConfig, networks: Sequence[dict[str, Any]]) -> list[int]:
    """The values of `unfreeze` that other jobs of this sweep have for the same network."""
    others = {network["unfreeze"] for network in networks if network["model"] == asdict(cfg.model)}
    return sorted({*cfg.trunk.keep, *(n for n in others if isinstance(n, int))})


# ----------------------------------------------------------------------------------------------- what it came to


def _records(folder: Path) -> list[dict[str, Any]]:
    """Of each job, by number, what is known."""
    records = {
        number: {"overrides": overrides, "status": _NOT_RUN, "run": None, "message": _NOT_RUN}
        for number, overrides in enumerate(_read_plan(folder)["jobs"])
    }
    for file in (folder / _JOBS).glob("*.json"):
        records[int(file.stem)] = json.loads(file.read_text())
    return [{"number": number} | record for number, record in sorted(records.items())]


def _tell(folder: Path) -> None:
    """What a sweep in `folder` came to."""
    jobs = _records(folder)
    complete = [Path(job["run"]) for job in jobs if job["status"] == "complete"]
    try:
        if complete:
            missing = [job for job in jobs if job["status"] != "complete"]
            _compare(list(dict.fromkeys(complete)), folder, missing)
    finally:
        if len(complete) < len(jobs):
            _list_missing(jobs)
            say_error("Run the same command again: only what is missing is run.")
    if len(complete) < len(jobs):
        sys.exit(1)


def _tell_early(folder: Path, error: BaseException) -> None:
    """As `_tell`, of a sweep that an error of its launcher or a signal ended."""
    jobs = _records(folder)
    begun = any(job["status"] != _NOT_RUN for job in jobs)  # else Hydra has refused them all
    if isinstance(error, Exception) and begun:
        say_error(f"{type(error).__name__} ended the sweep: {' '.join(str(error).split())}")
        with errors_ending_here():
            _tell(folder)
    elif begun:
        _list_missing(jobs)


def _list_missing(jobs: Sequence[dict[str, Any]]) -> None:
    missing = [job for job in jobs if job["status"] != "complete"]
    how = "failed" if all(job["status"] == "failed" for job in missing) else "are missing"
    say_error(f"{len(missing)} of {len(jobs)} jobs {how}; the others are complete.")
    for job in missing:
        say_error(f"  job {job['number']}: {job['overrides']}: {' '.join(job['message'].split())}")


def _compare(runs: Sequence[Path], folder: Path, missing: Sequence[dict[str, Any]]) -> None:
    """In the worker, where there is one: it has imported already what a comparison needs."""
    if _worker is not None and _worker.alive():
        try:
            _worker.call(_compare_or_end, runs, folder, missing)
            return
        except Died as died:
            if died.status > 0:
                sys.exit(died.status)  # it has said why
    compare(runs, folder, missing)


def _compare_or_end(runs: Sequence[Path], folder: Path, missing: Sequence[dict[str, Any]]) -> None:
    with errors_ending_here():
        compare(runs, folder, missing)
