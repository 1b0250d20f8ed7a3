"""Run folders: where a run lives, and whether it is complete."""

import errno
import hashlib
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from deepfake.config import TrainConfig
from deepfake.console import in_turn
from deepfake.errors import UserError
from deepfake.files import write_json
from deepfake.untrusted import read_json

# Settings that do not change what is learned: the same run with another value is the same run.
_INCIDENTAL = {
    "": ("output_dir", "name", "force", "resume", "logger", "cache", "cache_max_gb", "audit"),
    "data": ("cache", "workers"),
    "trainer": ("name", "progress", "strategy"),
    "trunk": ("keep", "threads"),
}

_PACKAGES = (
    "deepfake", "torch", "torchvision", "lightning", "torchmetrics", "timm", "hydra-core", "omegaconf", "numpy",
    "pandas", "pillow", "opencv-python-headless", "ImageHash", "scikit-learn",
)  # fmt: skip

STATUS, SUMMARY, ENVIRONMENT = "status.json", "summary.json", "environment.json"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
BEST = f"{CHECKPOINTS}/best.ckpt"
ENSEMBLE = "ensemble.json"  # only in the folder of an ensemble


def run_key(cfg: TrainConfig) -> str:
    """Eight hexadecimal digits of the sha256 of every setting that changes what is learned."""
    settings = asdict(cfg)
    for section, names in _INCIDENTAL.items():
        for name in names:
            (settings[section] if section else settings).pop(name)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def run_name(cfg: TrainConfig) -> str:
    """Readable part and key, such as efficientnet-u2-plateau-s0-1a2b3c4d."""
    model = cfg.model.timm if cfg.model.name == "timm" else cfg.model.name
    readable = cfg.name or f"{model}-u{cfg.unfreeze}-{cfg.scheduler.name}-s{cfg.seed}"
    return f"{readable}-{run_key(cfg)}".replace("/", "_")


def run_folder(cfg: TrainConfig) -> Path:
    return Path(cfg.output_dir).expanduser() / run_name(cfg)


def is_complete(folder: Path) -> bool:
    return read_status(folder) == "complete"


def expect_complete(folder: Path) -> None:
    """Refuse a folder that a command was given as that of a finished run.

    Raises:
        UserError: it is none.
    """
    if not is_complete(folder):
        raise UserError(
            f"run={folder}: expected the folder of a complete run, found none. Train it, or name another."
        )


def read_status(folder: Path) -> str | None:
    """running, stopped, failed, complete, or None where there is no readable status."""
    try:
        return str(read_json(folder / STATUS)["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def expect_writable(folder: Path, setting: str = "output_dir") -> None:
    """Refuse early, before images are read, an output folder that cannot be made or written.

    Args:
        folder: it, or what it will be in.
        setting: that names it.

    Raises:
        UserError: names both.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise unwritable(folder, os.strerror(errno.ENOTDIR), setting)
    if not os.access(there, os.W_OK | os.X_OK):
        raise unwritable(folder, os.strerror(errno.EACCES), setting)


def unwritable(folder: Path, reason: str | None, setting: str = "output_dir") -> UserError:
    """The refusal of an output folder."""
    return UserError(
        f"{setting}: expected a folder that can be written, found {folder} ({reason}). "
        f"Name another with {setting}=..."
    )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """What only one process at a time does in a run folder; another waits, and says so. A dead process holds nothing.

    Raises:
        UserError: the folder it lies in cannot be written.
    """
    lock = FileLock(folder.parent / ".locks" / f"{folder.name}.lock")
    with ExitStack() as held:
        try:
            held.enter_context(in_turn(lock, f"another process works on {folder}"))
        except OSError as error:
            raise unwritable(folder.parent, error.strerror) from error
        yield


def begin(folder: Path) -> None:
    """Make a fresh run folder; what an earlier run left that is not gone on from is set aside, not deleted.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        if folder.exists():
            aside = (
                folder.parent / ".replaced" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
            )
            aside.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(aside)
            _hide_events(aside / TENSORBOARD)
        folder.mkdir(parents=True)
        note(folder, "running")
    except OSError as error:
        raise unwritable(folder.parent, error.strerror) from error


def _hide_events(folder: Path) -> None:
    """Rename what TensorBoard, which looks into every folder, would show beside the run that comes next."""
    if not folder.is_symlink():
        for events in folder.glob("*tfevents*"):
            events.rename(events.with_name(events.name.replace("tfevents", "replaced")))


def note(folder: Path, status: str, message: str = "") -> None:
    """Record how a run stands; "complete" comes last of all files."""
    write_json(folder / STATUS, {"status": status, "message": message})


def other_versions(folder: Path) -> str:
    """Packages that a run was begun with in other versions than there are now, in words; "" where there are none."""
    try:
        before = dict(read_json(folder / ENVIRONMENT)["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    now = _versions()
    return ", ".join(
        f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    )


def environment() -> dict[str, Any]:
    """Versions and hardware, as they were when the run was made."""
    import torch  # only where a run is really made

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions
