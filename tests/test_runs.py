"""A run's name says what is learned; a run folder is complete or not, and nothing of it is ever deleted."""

import copy
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from deepfake import runs
from deepfake.config import (
    CosineConfig,
    ModelConfig,
    PlateauConfig,
    SyntheticConfig,
    TrainConfig,
)
from deepfake.errors import UserError

# A setting in this list changes where a run goes or how fast it is, never what it learns.
INCIDENTAL = {
    "output_dir", "name", "force", "resume", "cache", "cache_max_gb", "audit", "logger.name", "logger.tensorboard",
    "logger.image_grid",
    "data.cache.enabled", "data.cache.dir", "data.cache.max_gb", "data.workers", "trainer.name", "trainer.progress",
    "trainer.strategy", "trunk.keep", "trunk.threads",
}  # fmt: skip


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig("resnet18", "resnet18"), scheduler=PlateauConfig(), data=SyntheticConfig(), **settings
    )


def names(section: Any, prefix: str = "") -> list[str]:
    """Every plain setting, such as data.workers."""
    found = []
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            found += names(value, f"{prefix}{field.name}.")
        else:
            found.append(prefix + field.name)
    return found


def changed(cfg: TrainConfig, name: str) -> TrainConfig:
    cfg = copy.deepcopy(cfg)
    *path, last = name.split(".")
    section: Any = cfg
    for part in path:
        section = getattr(section, part)
    value = getattr(section, last)
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, int | float):
        other = value + 1
    elif isinstance(value, list):
        other = value[::-1] or ["1-gan"]
    else:
        other = f"{value}-other"
    setattr(section, last, other)
    return cfg


# ------------------------------------------------------------------------------------------------- key and name


def test_the_list_of_incidental_settings_names_real_ones() -> None:
    assert set(names(config())) >= INCIDENTAL


@pytest.mark.parametrize("name", names(config()))
def test_key_changes_with_every_setting_that_changes_what_is_learned(name: str) -> None:
    same = runs.run_key(config()) == runs.run_key(changed(config(), name))
    assert same == (name in INCIDENTAL)


@pytest.mark.parametrize("scheduler", [CosineConfig(), CosineConfig(warmup_epochs=2)])
def test_key_changes_with_the_scheduler(scheduler: CosineConfig) -> None:
    other = config()
    other.scheduler = scheduler
    assert runs.run_key(other) not in {runs.run_key(config()), runs.run_key(changed(other, "scheduler.final_factor"))}


def test_key_is_eight_digits_and_leaves_the_settings_alone() -> None:
    cfg = config()
    assert int(runs.run_key(cfg), 16) < 16**8
    assert len(runs.run_key(cfg)) == 8
    assert cfg == config()


def test_name_is_readable_and_ends_in_the_key() -> None:
    cfg = config(unfreeze=2, seed=7)
    assert runs.run_name(cfg) == f"resnet18-u2-plateau-s7-{runs.run_key(cfg)}"
    named = config(unfreeze=2, seed=7, name="mine")
    assert runs.run_name(named) == f"mine-{runs.run_key(cfg)}"


def test_name_of_any_timm_network_is_one_folder_name() -> None:
    cfg = config()
    cfg.model = ModelConfig("timm", "hub/convnext_tiny.in12k")
    assert runs.run_name(cfg).startswith("hub_convnext_tiny.in12k-u0-")
    assert runs.run_folder(cfg).parent == Path("outputs")


def test_folder_is_below_the_output_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    cfg = config(output_dir="~/runs")
    assert runs.run_folder(cfg) == Path("/home/someone/runs") / runs.run_name(cfg)


# ------------------------------------------------------------------------------------------------------- status


def test_status_follows_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "run"
    assert runs.read_status(folder) is None
    runs.begin(folder)
    assert runs.read_status(folder) == "running"
    runs.note(folder, "failed", "disk full")
    assert json.loads((folder / runs.STATUS).read_text()) == {"status": "failed", "message": "disk full"}
    assert not runs.is_complete(folder)
    runs.note(folder, "complete")
    assert runs.is_complete(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3", b"\xff\xfe"])
def test_a_status_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / runs.STATUS).write_bytes(content)
    assert runs.read_status(tmp_path) is None
    assert not runs.is_complete(tmp_path)


def test_begin_sets_every_earlier_folder_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for number in range(4):  # within one second, as jobs that fail at once do
        runs.begin(folder)
        assert [file.name for file in folder.iterdir()] == [runs.STATUS]
        (folder / "kept.txt").write_text(str(number))
    aside = list((tmp_path / ".replaced").iterdir())
    assert sorted((old / "kept.txt").read_text() for old in aside) == ["0", "1", "2"]
    assert all(old.name.startswith("run-") for old in aside)


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match=r"^output_dir: expected a folder that can be written, found .*outputs \(.+$"):
        runs.begin(tmp_path / "outputs" / "run")
    assert (tmp_path / "outputs").read_text() == "a file"


def test_a_run_folder_that_cannot_be_set_aside_stays(tmp_path: Path) -> None:
    runs.begin(tmp_path / "run")
    (tmp_path / ".replaced").write_text("a file in the way")
    with pytest.raises(UserError, match="output_dir: expected a folder"):
        runs.begin(tmp_path / "run")
    assert runs.read_status(tmp_path / "run") == "running"


# -------------------------------------------------------------------------------------------------- environment


def test_environment_names_versions_and_can_be_written_as_json() -> None:
    import numpy
    import torch

    found = json.loads(json.dumps(runs.environment(), allow_nan=False))
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["packages"]["numpy"] == numpy.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert {"lightning", "torchvision", "timm", "hydra-core", "pillow"} <= set(found["packages"])


def test_environment_says_so_where_a_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise runs.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(runs.metadata, "version", absent)
    assert set(runs.environment()["packages"].values()) == {"not installed as a package"}
