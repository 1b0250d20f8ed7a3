"""Checkpoints that are whole or not used, and all that a run goes on from, to the bit.

Beside the checkpoints lies `SHA256SUMS`, as `sha256sum --check` reads it. A hash is written there before the file it
belongs to takes its place, so that at no instant a whole file has none; what has none is not used.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import Tensor

from deepfake.console import log
from deepfake.errors import UserError
from deepfake.files import replacing, write_bytes, write_text
from deepfake.models.detector import DetectorModule
from deepfake.models.weights import read_checkpoint
from deepfake.ranks import Ranks
from deepfake.signals import Stopped, Stopping
from deepfake.untrusted import expect_file

if TYPE_CHECKING:  # whoever only reads checkpoints need not wait for TensorBoard
    from deepfake.reporting.recorder import Recorder

SUMS = "SHA256SUMS"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # what a run goes on from, and the one before
_FORMAT = 1  # raise it when `Keeper` writes something else
_SHARE = 0.05  # of a training's time that may go into writing what it could go on from


def write_checkpoint(path: Path, content: dict[str, Any], previous: str | None = None) -> None:
    """Write a checkpoint, durable, and its hash.

    Args:
        path: where.
        content: tensors and plain data.
        previous: name that an earlier file is kept under.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier file is left as it was.
    """
    folder = path.parent
    sums = _sums(folder)
    with replacing(path) as stream:
        hashed = _Hashed(stream)
        try:
            torch.save(content, hashed)  # type: ignore[arg-type]
        except RuntimeError as error:  # what PyTorch makes of any failure to write
            raise hashed.failure or error from None
        new = hashed.sha256.hexdigest(), path.name
        _write_sums(folder, [*sums, new])
        if previous is not None and path.exists():
            path.replace(folder / previous)
            sums = [(digest, name) for digest, name in sums if name != previous]
            sums = [(digest, previous if name == path.name else name) for digest, name in sums]
    _write_sums(folder, [*((digest, name) for digest, name in sums if name != path.name), new])


def is_whole(path: Path) -> bool | None:
    """Whether a checkpoint is what was written; None where that is not known, for nothing tells its hash."""
    told = {digest for digest, _ in _sums(path.parent)}
    if not told:
        return None
    try:
        expect_file(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() in told
    except OSError:
        return False


def expect_whole(path: Path) -> None:
    """Refuse a checkpoint whose bytes have changed since it was written.

    Raises:
        UserError: says so.
    """
    if is_whole(path) is False:
        raise UserError(
            f"{path}: expected the content whose sha256 {path.parent / SUMS} tells, found another: the file is "
            f"damaged. Run the command that made it again: from what is beside it, it is made anew."
        )


def read_last(folder: Path) -> dict[str, Any] | None:
    """What a run goes on from: the last state that is whole; None where there is none.

    Args:
        folder: of the checkpoints.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if is_whole(path):
            try:
                state = read_checkpoint(path)
                if isinstance(state, dict) and state.get("format") == _FORMAT:
                    return state
            except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
                log.warning("checkpoint %s cannot be read: %s", path, error)
                continue
        log.warning("checkpoint %s is damaged, or of another version: not used", path)
    return None


def drop_previous(folder: Path) -> None:
    """Remove the state before the last, of a training that is over."""
    _write_sums(folder, [(digest, name) for digest, name in _sums(folder) if name != PREVIOUS])
    (folder / PREVIOUS).unlink(missing_ok=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """A copy, durable, whose hash is told beside it; of one that is whole, see `expect_whole`."""
    content = source.read_bytes()
    _write_sums(target.parent, [*_sums(target.parent), (hashlib.sha256(content).hexdigest(), target.name)])
    write_bytes(target, content)


class _Hashed:
    """A stream that takes down the hash of what is written, and why that failed."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        try:
            return self.stream.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.stream.flush()


def _sums(folder: Path) -> list[tuple[str, str]]:
    """(sha256, name) of the files of a folder."""
    try:
        expect_file(folder / SUMS)
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [(digest, name) for digest, _, name in (line.partition("  ") for line in lines) if name]


def _write_sums(folder: Path, sums: list[tuple[str, str]]) -> None:
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for digest, name in sums))


@contextmanager
def _expecting_own(folder: Path) -> Iterator[None]:
    """Whatever a state of another version, or of somebody else, leads to."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder / LAST}: expected a state that this version has written, found another "
            f"({type(error).__name__}: {str(error)[:200]}). resume=never begins anew."
        ) from error


class Keeper(Checkpoint):
    """Keeps the best epoch in memory and, on the disk, all that the training goes on from.

    That is written after an epoch when writing has taken less than `_SHARE` of the time so far, after the last, and
    when the training is stopped: what a crash costs is trained again, and comes out the same.

    Args:
        folder: of the checkpoints.
        recorder: its rows are kept along.
        stopping: asked after every step and epoch.
        state: what `read_last` found, to go on from.

    Attributes:
        best: a checkpoint to be used, as the module makes it; None before the first epoch with a finite figure.
        best_value: of what the detector monitors.
        ranks: that train together; the first of them writes.
    """

    def __init__(
        self, folder: Path, recorder: Recorder, stopping: Stopping, state: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.recorder, self.stopping, self._state = folder, recorder, stopping, state
        self.ranks = Ranks()
        self.best: dict[str, Any] | None = None
        self.best_value = math.nan
        self.finished = False
        self._began, self._writing = time.monotonic(), 0.0
        if state is not None:
            with _expecting_own(folder):
                self.best, self.best_value, self.finished = (
                    state["best"],
                    float(state["best_value"]),
                    state["finished"],
                )
                recorder.rows, recorder.seconds = list(state["rows"]), list(state["seconds"])

    @property
    def within_epoch(self) -> bool:
        """Whether it goes on from within an epoch."""
        return self._state is not None and self._state["seen"] is not None

    def prepare(self, trainer: L.Trainer, module: DetectorModule, data: Any) -> None:
        """Before the fit: have it begin where the state was taken.

        Raises:
            UserError: it was made with other frozen weights, or is none that this version has written.
        """
        module.after_step = self.stopping.here
        if self._state is not None:
            with _expecting_own(self.folder):
                self._begin_there(self._state, trainer, module, data)

    def _begin_there(self, state: dict[str, Any], trainer: L.Trainer, module: DetectorModule, data: Any) -> None:
        module.load_trained(state["network"], state["deepfake"]["frozen"])
        module.steps_in_all = state["steps_in_all"]
        epoch, steps = int(state["epoch"]), int(state["steps"])
        progress = trainer.fit_loop.epoch_progress
        for counted in (progress.current, progress.total):
            counted.ready = counted.started = counted.processed = counted.completed = epoch  # type: ignore[attr-defined]
        optimized = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        optimized.total.ready = optimized.total.completed = steps
        trainer.fit_loop.epoch_loop._batches_that_stepped = steps
        if state["seen"] is not None:
            module.go_on_with(state["seen"])
            data.begun = epoch, len(state["seen"]["label"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping.install()  # Lightning has taken the signals
        if (state := self._state) is None:
            return
        with _expecting_own(self.folder):
            trainer.optimizers[0].load_state_dict(state["optimizer"])
            for config, held in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
                config.scheduler.load_state_dict(held)
            for stop, held in zip(_early(trainer), state["stopping"], strict=True):
                stop.load_state_dict(held)
            trainer.precision_plugin.load_state_dict(state["precision"])
            _set_random_state(state["random"])
        self._state = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping.waits = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning calls this after the validation, the stopping and the scheduler have had their turn."""
        assert isinstance(pl_module, DetectorModule)  # noqa: S101 - for the type checker
        value = float(trainer.callback_metrics[pl_module.monitor])
        sign = 1 if pl_module.mode == "max" else -1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best_value):
            self.best, self.best_value = _snapshot(trainer, pl_module), value
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        asked = self.stopping.agreed()
        if self.finished or asked or self._writing <= _SHARE * (time.monotonic() - self._began):
            self._write(trainer, pl_module, trainer.current_epoch + 1, None)
        self.stopping.waits = False
        if asked:
            raise Stopped(asked)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, DetectorModule)  # noqa: S101 - for the type checker
        # Not of a try of a few batches: how many of them are left could not be told from the images seen.
        if isinstance(exception, Stopped) and exception.at_step and trainer.limit_train_batches == 1.0:
            self._write(trainer, pl_module, trainer.current_epoch, pl_module.seen_so_far("train"))
        self.stopping.waits = False

    def write_best(self, path: Path) -> None:
        """The best epoch so far, if there is one."""
        if self.best is not None and self.ranks.rank == 0:
            write_checkpoint(path, self.best)

    def _write(self, trainer: L.Trainer, module: DetectorModule, epoch: int, seen: dict[str, Tensor] | None) -> None:
        if self.ranks.rank > 0:
            return
        began = time.monotonic()
        state = {
            "format": _FORMAT,
            "epoch": epoch,  # the next, or the one that was begun
            "seen": seen,  # of that one: what its figures will be made of
            "steps": trainer.global_step,
            "steps_in_all": module.steps_in_all,
            "finished": self.finished,
            "network": module.trained_state(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "stopping": [stop.state_dict() for stop in _early(trainer)],
            "precision": trainer.precision_plugin.state_dict(),
            "random": _random_state(),
            "rows": self.recorder.rows,
            "seconds": self.recorder.seconds,
            "best": self.best,
            "best_value": self.best_value,
            "deepfake": module.description(),
        }
        write_checkpoint(self.folder / LAST, state, previous=PREVIOUS)
        self._writing += time.monotonic() - began


def _snapshot(trainer: L.Trainer, module: DetectorModule) -> dict[str, Any]:
    """The module as it is now: a checkpoint to be used, which is changed by no step to come."""
    return {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": L.__version__,
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in module.trained_state().items()},
        "deepfake": module.description(),
    }


def _early(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]


def _random_state() -> dict[str, Any]:
    """Of every generator that a step may draw from, as plain data."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - a library may use it
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
