"""An interrupted run goes on and ends, to the bit, as one that was not."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import multiprocessing
import os
import pydoc
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from deepfake import checkpoints, runs, training
from deepfake.checkpoints import LAST, PREVIOUS, SUMS, Keeper, read_last, write_checkpoint
from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.errors import UserError
from deepfake.models.detector import DetectorModule
from deepfake.models.trunk import Trunk
from deepfake.signals import Stopped, Stopping
from deepfake.training import train

EPOCHS = 4


class Crash(BaseException):
    """As with kill -9, nothing gets to write because of it."""


def settings(output: Path, faces: Path, *overrides: str) -> TrainConfig:
    common = [
        "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "trunk.engine=eager",
        f"data.root={faces}", f"output_dir={output}", f"epochs={EPOCHS}", "batch_size=4", "lr=1e-2", "trainer=cpu",
        "trainer.progress=false", "logger=none", "audit=off", "patience=null",
    ]  # fmt: skip
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse_train(compose("train", [*common, *overrides]))


def outcome(folder: Path) -> tuple[str, bytes, bytes]:
    """Hash of the best checkpoint's weights, the metrics of every epoch, the predictions."""
    weights = torch.load(folder / runs.BEST, weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    metrics, predictions = (folder / "metrics.csv").read_bytes(), (folder / "test_predictions.csv").read_bytes()
    return digest.hexdigest(), metrics, predictions


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something happen in a step of the optimizer, counted from 1 in this process, or after so many epochs."""
    real_end = Keeper.on_train_epoch_end

    def arrange(
        happens: Callable[[], object], step: int | None = None, epochs: int | None = None, **when: bool
    ) -> None:
        count = {"steps": 0, "epochs": 0}

        def before_step(*_: Any) -> None:
            count["steps"] += 1
            if count["steps"] == step:
                happens()

        def end(self: Keeper, trainer: Any, module: Any) -> None:
            count["epochs"] += 1
            if when.get("before_writing") and count["epochs"] == epochs:
                happens()
            real_end(self, trainer, module)
            if not when.get("before_writing") and count["epochs"] == epochs:
                happens()

        monkeypatch.setattr(DetectorModule, "on_before_optimizer_step", before_step)
        monkeypatch.setattr(Keeper, "on_train_epoch_end", end)

    return arrange


def crash() -> None:
    raise Crash


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


HOW = {
    "head, stored rows": ["accumulate=2"],
    "stages, stored rows, plateau, patience": [
        "unfreeze=1",
        "scheduler=plateau",
        "scheduler.patience=0",
        "patience=2",
        "lr=3e-2",
    ],
    "stages, images, cosine": ["unfreeze=1", "cache=off", "accumulate=3", "scheduler=cosine"],
    "two workers, everything trains": ["unfreeze=all", "data.workers=2", "model.drop_rate=.3"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> dict[str, tuple[str, bytes, bytes]]:
    """What uninterrupted runs come to."""
    found = {}
    for name, overrides in HOW.items():
        cfg = settings(tmp_path_factory.mktemp("whole"), faces, *overrides)
        train(cfg)
        found[name] = outcome(runs.run_folder(cfg))
    metrics = found["stages, stored rows, plateau, patience"][1].decode()
    assert len(metrics.splitlines()) == EPOCHS, "a run with patience that does not end early shows nothing"
    return found


ENDS = [
    (crash, {"step": 5}),
    (crash, {"epochs": 2}),
    (terminate, {"step": 6}),
    (terminate, {"epochs": 2, "before_writing": True}),
    (crash, {"step": 2}),
    (crash, {"epochs": 2, "before_writing": True}),
    (terminate, {"step": 1}),
]


@pytest.mark.parametrize(
    ("how", "what", "when"),
    # Every end of one way to train; of the others one of each kind.
    [(how, *end) for number, how in enumerate(HOW) for end in ENDS[: 3 if number else None]],
    ids=lambda value: (
        value.__name__
        if callable(value)
        else value
        if isinstance(value, str)
        else "-".join(map(str, value)) + str(next(iter(value.values())))
    ),
)
def test_what_was_interrupted_ends_as_if_it_had_not_been(
    tmp_path: Path, faces: Path, whole: Any, at_step: Any, how: str, what: Callable[[], None], when: dict[str, Any]
) -> None:
    cfg = settings(tmp_path, faces, *HOW[how])
    folder = runs.run_folder(cfg)
    at_step(what, **when)
    with pytest.raises((Crash, Stopped)):
        train(cfg)
    assert not runs.is_complete(folder)
    at_step(lambda: None)
    train(cfg)
    assert outcome(folder) == whole[how]
    assert not (tmp_path / ".replaced").exists() or when == {"step": 2}, "it went on, and did not begin anew"


PLAIN = "head, stored rows"


@pytest.fixture
def interrupted(tmp_path: Path, faces: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run that ended abruptly after its second epoch, of four; both were written."""
    monkeypatch.setattr(checkpoints, "_SHARE", math.inf)
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    at_step(crash, epochs=2)
    with pytest.raises(Crash):
        train(cfg)
    at_step(lambda: None)
    return cfg


@pytest.mark.parametrize(
    "place",
    [
        "deepfake.training.calibrate",
        "deepfake.training.write_checkpoint",
        "deepfake.training.record.write_verdict",
        "deepfake.training.record.write_curves",
        "deepfake.training.record.write_summary",
        "deepfake.training.runs.note",
    ],
)
def test_an_end_while_judging_costs_no_epoch(
    tmp_path: Path, faces: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    with monkeypatch.context() as patched:
        real = pydoc.locate(place)

        def crashes(*arguments: Any, **more: Any) -> Any:
            if place.endswith("note") and arguments[1] != "complete":
                return real(*arguments, **more)  # type: ignore[operator]
            raise Crash

        patched.setattr(place, crashes)
        with pytest.raises(Crash):
            train(cfg)
    assert not runs.is_complete(runs.run_folder(cfg))
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained once more"))
    train(cfg)
    assert outcome(runs.run_folder(cfg)) == whole[PLAIN]


def test_an_end_in_the_first_pass_of_the_trunk_loses_nothing(
    tmp_path: Path, faces: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    with monkeypatch.context() as patched:
        patched.setattr("deepfake.models.store._PACK_ROWS", 8)
        real, calls = Trunk.compute, []

        def compute(self: Trunk, images: torch.Tensor) -> list[torch.Tensor]:
            calls.append(len(images))
            if len(calls) == 5:
                raise Crash
            return real(self, images)

        patched.setattr(Trunk, "compute", compute)
        with pytest.raises(Crash):
            train(cfg)
    computed = []
    monkeypatch.setattr(
        Trunk,
        "compute",
        lambda self, images: computed.append(len(images)) or real(self, images),  # type: ignore[func-returns-value]
    )
    train(cfg)
    assert outcome(runs.run_folder(cfg)) == whole[PLAIN]
    assert 0 < sum(computed) <= 48 - 8, "what was stored is not computed again"


def test_a_damaged_state_gives_way_to_the_one_before(interrupted: TrainConfig, whole: Any, caplog: Any) -> None:
    folder = runs.run_folder(interrupted)
    last = folder / runs.CHECKPOINTS / LAST
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # PyTorch would load it without a word
    last.write_bytes(content)
    train(interrupted)
    assert "goes on from epoch 1 " in (folder / "train.log").read_text()
    assert outcome(folder) == whole[PLAIN]


def test_without_a_whole_state_it_begins_anew_and_keeps_the_folder(interrupted: TrainConfig, whole: Any) -> None:
    folder = runs.run_folder(interrupted)
    for name in (LAST, PREVIOUS):
        (folder / runs.CHECKPOINTS / name).write_bytes(b"nothing")
    train(interrupted)
    assert outcome(folder) == whole[PLAIN]
    assert len(list((folder.parent / ".replaced").iterdir())) == 1


def test_a_damaged_best_checkpoint_of_a_complete_run_is_made_anew(
    tmp_path: Path, faces: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    train(cfg)
    best = runs.run_folder(cfg) / runs.BEST
    content = best.read_bytes()
    best.write_bytes(content[:-1])
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained once more"))
    train(cfg)
    assert outcome(runs.run_folder(cfg)) == whole[PLAIN]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state.pop("rows"),
        lambda state: state.update(epoch="os.system"),
        lambda state: state.update(network={"backbone": {"_target_": "os.system"}}),
        lambda state: state.update(random={"_target_": "os.system"}),
        lambda state: state.update(schedulers=[{"_target_": "os.system"}]),
        lambda state: state["deepfake"].update(frozen=3),
    ],
)
def test_a_state_that_says_what_none_of_ours_does_is_refused(interrupted: TrainConfig, change: Any) -> None:
    last = runs.run_folder(interrupted) / runs.CHECKPOINTS / LAST
    state = torch.load(last, weights_only=True)
    change(state)
    write_checkpoint(last, state)
    with pytest.raises(
        UserError, match=r"expected a state that this version has written|other weights in the frozen"
    ):
        train(interrupted)


def test_other_images_are_not_gone_on_with(tmp_path: Path, faces: Path, at_step: Any) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    cfg = settings(tmp_path / "out", root, *HOW[PLAIN])
    at_step(crash, epochs=2)
    with pytest.raises(Crash):
        train(cfg)
    at_step(lambda: None)
    shutil.copyfile(root / "1-gan" / "01.png", root / "1-gan" / "99.png")
    Image.fromarray(255 - np.array(Image.open(root / "1-gan" / "01.png"))).save(root / "1-gan" / "01.png")
    with pytest.raises(UserError, match=r"resume=must: expected an interrupted run .*found 2 images or their parts"):
        train(dataclasses.replace(cfg, resume="must"))
    train(cfg)
    assert len(list((tmp_path / "out" / ".replaced").iterdir())) == 1


def test_must_and_never(interrupted: TrainConfig, tmp_path: Path, whole: Any) -> None:
    other = dataclasses.replace(interrupted, output_dir=str(tmp_path / "other"), resume="must")
    with pytest.raises(UserError, match=r"resume=must: expected an interrupted run in .*, found no checkpoint"):
        train(other)
    assert not runs.run_folder(other).exists()
    folder = runs.run_folder(interrupted)
    train(dataclasses.replace(interrupted, resume="never"))
    assert "goes on from" not in (folder / "train.log").read_text()
    assert outcome(folder) == whole[PLAIN]


def test_a_complete_run_is_not_resumed(interrupted: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(dataclasses.replace(interrupted, resume="must"))
    before = {file: file.stat().st_mtime_ns for file in runs.run_folder(interrupted).rglob("*")}
    train(dataclasses.replace(interrupted, resume="must"))
    assert "is complete: skipped" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in runs.run_folder(interrupted).rglob("*")} == before


def test_other_versions_are_told(interrupted: TrainConfig) -> None:
    folder = runs.run_folder(interrupted)
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    environment["packages"]["torch"] = "2.0.0"
    (folder / runs.ENVIRONMENT).write_text(json.dumps(environment))
    train(interrupted)
    assert "other versions, so not to the bit: torch 2.0.0, now " in (folder / "train.log").read_text()


def test_the_hashes_are_those_of_sha256sum(interrupted: TrainConfig) -> None:
    folder = runs.run_folder(interrupted) / runs.CHECKPOINTS

    def told() -> dict[str, str]:
        lines = (folder / SUMS).read_text().splitlines()
        return {name: digest for digest, name in (line.split("  ") for line in lines)}

    def found() -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.ckpt")}

    assert told() == found()
    assert sorted(found()) == [LAST, PREVIOUS]
    train(interrupted)
    assert told() == found()
    assert sorted(found()) == ["best.ckpt", LAST]


# ------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("previous", [PREVIOUS, None])
@pytest.mark.parametrize("call", range(1, 12))
def test_whenever_writing_is_cut_off_a_whole_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, previous: str | None
) -> None:
    """The process may end before any rename or sync that a checkpoint is made of."""
    calls = 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Crash
            return real(*arguments, **more)

        return called

    for number in range(3):
        write_checkpoint(tmp_path / LAST, {"format": 1, "epoch": number}, previous)
    with monkeypatch.context() as patched:
        for name in ("replace", "fsync"):
            patched.setattr(os, name, cut(getattr(os, name)))
        patched.setattr(Path, "replace", cut(Path.replace))
        with contextlib.suppress(Crash):
            write_checkpoint(tmp_path / LAST, {"format": 1, "epoch": 3}, previous)
    assert (tmp_path / LAST).exists() or previous is not None
    assert checkpoints.is_whole(tmp_path / LAST) or not (tmp_path / LAST).exists()
    state = read_last(tmp_path)
    assert state is not None
    assert state["epoch"] in (2, 3)
    write_checkpoint(tmp_path / LAST, {"format": 1, "epoch": 4}, previous)
    assert read_last(tmp_path) == {"format": 1, "epoch": 4}


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_best(tmp_path: Path, faces: Path, at_step: Any) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    modules: list[DetectorModule] = []
    real = training.build_detector

    def poison() -> None:
        with torch.no_grad():
            modules[0].backbone.network.get_classifier().bias[0] = torch.nan  # type: ignore[operator]

    training.build_detector, undo = lambda c: modules.append(real(c)) or modules[0], real  # type: ignore[func-returns-value]
    try:
        at_step(poison, step=5)
        with pytest.raises(UserError, match=r"the training loss is nan at epoch 1, .*Lower lr"):
            train(cfg)
    finally:
        training.build_detector = undo
    folder = runs.run_folder(cfg)
    kept = torch.load(folder / runs.BEST, weights_only=True)
    assert kept["epoch"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in kept["state_dict"].values() if tensor.is_floating_point())
    assert runs.read_status(folder) == "failed"
    state = read_last(folder / runs.CHECKPOINTS)
    assert state is not None
    assert state["epoch"] == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_at_the_step_with_its_status(
    tmp_path: Path, faces: Path, at_step: Any, number: signal.Signals, status: int
) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    at_step(twice, step=6)
    with pytest.raises(SystemExit) as ended:
        train(cfg)
    assert ended.value.code == status
    state = read_last(runs.run_folder(cfg) / runs.CHECKPOINTS)
    assert state is not None
    assert (state["epoch"], state["steps"], len(state["seen"]["label"])) == (1, 6, 16)
    assert runs.read_status(runs.run_folder(cfg)) == "stopped"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_who_asks_again_after_a_while_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stopping() as stopping:
        stopping.waits = True
        terminate()
        terminate()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 5)
        with pytest.raises(Stopped) as ended:
            terminate()
        assert not ended.value.at_step


def test_outside_a_step_a_signal_ends_at_once() -> None:
    with Stopping(), pytest.raises(Stopped):
        terminate()


def test_a_killed_loader_process_is_told_and_costs_no_epoch(
    tmp_path: Path, faces: Path, whole: Any, at_step: Any
) -> None:
    how = "two workers, everything trains"
    cfg = settings(tmp_path, faces, *HOW[how])

    def kill_one() -> None:
        workers = [child for child in multiprocessing.active_children() if "Process-" in child.name]
        os.kill(int(str(workers[0].pid)), signal.SIGKILL)
        workers[0].join()

    at_step(kill_one, step=3)
    with pytest.raises(
        UserError,
        match=r"a loader process ended: (killed by signal: Killed|exited unexpectedly).*data\.workers \(now 2\)",
    ):
        train(cfg)
    at_step(lambda: None)
    train(cfg)
    assert outcome(runs.run_folder(cfg)) == whole[how]


def test_what_fails_leaves_no_loader_process(tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the training nor of the validation: who cleans up after them later would wait for long."""

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DetectorModule, "validation_step", breaks)
    with pytest.raises(ZeroDivisionError):
        train(settings(tmp_path, faces, *HOW["two workers, everything trains"]))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_which_knob_to_turn(tmp_path: Path, faces: Path, at_step: Any, error: Exception) -> None:
    def lacks() -> None:
        raise error

    at_step(lacks, step=2)
    with pytest.raises(UserError, match=r"memory of the device is used up: lower batch_size \(now 4\)"):
        train(settings(tmp_path, faces, *HOW[PLAIN]))


def test_a_full_disk_is_told_and_costs_no_epoch(
    tmp_path: Path, faces: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    with monkeypatch.context() as patched:
        real, syncs = os.fsync, 0

        def full(handle: int) -> None:
            nonlocal syncs
            syncs += 1
            if syncs > 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"expected room to write in .*No space left on device.*make room"):
            train(cfg)
    train(cfg)
    assert outcome(runs.run_folder(cfg)) == whole[PLAIN]


def test_a_run_that_another_process_works_on_is_waited_for(tmp_path: Path, faces: Path) -> None:
    cfg = settings(tmp_path, faces, *HOW[PLAIN])
    errors: list[BaseException] = []

    def work() -> None:
        try:
            train(cfg)
        except BaseException as error:
            errors.append(error)

    with runs.alone(runs.run_folder(cfg)):
        other = threading.Thread(target=work)
        other.start()
        other.join(timeout=3)
        assert other.is_alive(), "it waits"
        assert not runs.run_folder(cfg).exists()
    other.join()
    assert not errors
    assert runs.is_complete(runs.run_folder(cfg))
