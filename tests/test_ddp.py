"""Several processes train what one trains; whatever ends one of them ends all, and loses nothing."""

import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from deepfake import ranks, runs, training
from deepfake.checkpoints import Keeper, read_last
from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.data.datamodule import EpochSampler
from deepfake.errors import UserError
from deepfake.ranks import Ranks, together
from deepfake.training import train

IMAGES = 32  # of the training part


def settings(output: Path, faces: Path, *overrides: str) -> TrainConfig:
    common = [
        "model=timm", "model.weights=none", "model.input_size=32", "trunk.engine=eager", f"data.root={faces}",
        f"output_dir={output}", f"data.cache.dir={output}/cache", "epochs=3", "lr=1e-3", "trainer=cpu",
        "trainer.progress=false", "logger=none", "audit=off", "patience=null",
    ]  # fmt: skip
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse_train(compose("train", [*common, *overrides]))


def table(cfg: TrainConfig, name: str) -> pd.DataFrame:
    return pd.read_csv(runs.run_folder(cfg) / name)


def outcome(cfg: TrainConfig) -> tuple[str, bytes, bytes]:
    """Hash of the best checkpoint's weights, the metrics of every epoch, the predictions."""
    folder = runs.run_folder(cfg)
    weights = torch.load(folder / runs.BEST, weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest(), *((folder / name).read_bytes() for name in ("metrics.csv", "test_predictions.csv"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that were started, none of which may be left."""
    processes: list[subprocess.Popen[bytes]] = []
    real = ranks._started

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        processes.append(real(*arguments))
        return processes[-1]

    monkeypatch.setattr(ranks, "_started", start)
    yield processes
    assert processes
    assert all(process.poll() is not None for process in processes)


# ------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("length", "batch_size"), [(32, 8), (33, 8), (32, 5), (31, 3), (3, 4)])
def test_every_image_has_one_rank_and_all_ranks_have_equally_many(length: int, batch_size: int, world: int) -> None:
    samplers = [
        EpochSampler(length, 0, shuffle=True, batch_size=batch_size, ranks=Ranks(rank, world))
        for rank in range(world)
    ]
    order = samplers[0].order()
    counted = []
    for sampler in samplers:
        images, sizes = sampler.shares()
        assert [index for _, index in sampler] == images.tolist()
        assert len(images) == len(sampler) == len(samplers[0])
        counted += images[sizes > 0].tolist()
        share = sampler.ranks.share(batch_size)
        for number, start in enumerate(range(0, length, batch_size)):
            batch, mine = order[start : start + batch_size], slice(number * share, (number + 1) * share)
            assert set(images[mine]) <= set(batch)
            assert set(sizes[mine]) <= {len(batch), 0}
    assert sorted(counted) == list(range(length))


def test_what_is_drawn_depends_on_the_rank_and_the_step_alone() -> None:
    def drawn(rank: int, step: int) -> float:
        Ranks(rank, 2).seed(7, step)
        return float(torch.rand(()))

    numbers = [drawn(rank, step) for rank in (0, 1) for step in (0, 1)]
    assert len(set(numbers)) == 4
    torch.rand(5)
    assert drawn(0, 1) == numbers[1]


# ------------------------------------------------------------------------------------------------- the same figures

HOW = {
    # A last batch of one image, of which the other rank has none.
    "head, stored rows": ["model.timm=test_vit", "unfreeze=0", "batch_size=31", "accumulate=1"],
    # A last batch of two, in a step of its own.
    "stages, images": ["model.timm=test_vit", "unfreeze=1", "cache=off", "batch_size=5", "accumulate=2"],
    # Shares of two images and of one, normalised over all three; the stored rows in pieces of two steps.
    "BatchNorm, plateau": ["model.timm=test_resnet", "unfreeze=1", "batch_size=3", "scheduler=plateau", "patience=3"],
}


@pytest.mark.slow
@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("how", HOW)
def test_two_processes_have_the_figures_of_one(tmp_path: Path, faces: Path, how: str) -> None:
    one, two = (settings(tmp_path, faces, *HOW[how], f"trainer.devices={n}", "trainer.strategy=ddp") for n in (1, 2))
    train(one)
    train(two)
    expected, found = table(one, "metrics.csv"), table(two, "metrics.csv")
    assert len(expected) == 3
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-5)
    assert (found[["train/tn", "train/fp", "train/fn", "train/tp"]].sum(axis=1) == IMAGES).all()
    for name in ("val_predictions.csv", "test_predictions.csv"):
        images, told = table(one, name), table(two, name)
        assert told["path"].is_unique
        pd.testing.assert_frame_equal(told, images, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------ what ends one ends all


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something happen when rank 0 is to ask for the so many-th time whether to stop."""
    real = Keeper.prepare

    def arrange(step: int, happens: Callable[[], None]) -> None:
        count = 0

        def prepare(self: Keeper, trainer: Any, module: Any, data: Any) -> None:
            real(self, trainer, module, data)
            go_on = module.after_step

            def after_step() -> None:
                nonlocal count
                count += 1
                if count == step:
                    happens()
                go_on()

            module.after_step = after_step

        monkeypatch.setattr(Keeper, "prepare", prepare)

    return arrange


@pytest.mark.slow
def test_stopped_and_then_killed_it_ends_as_if_it_had_not_been(
    tmp_path: Path, faces: Path, at_step: Any, started: list[subprocess.Popen[bytes]]
) -> None:
    how = [*HOW["stages, images"], "trainer.devices=2", "model.drop_rate=.3"]
    whole, cfg = settings(tmp_path / "whole", faces, *how), settings(tmp_path / "parts", faces, *how)
    checkpoints = runs.run_folder(cfg) / runs.CHECKPOINTS
    at_step(1, lambda: os.kill(started[-1].pid, signal.SIGTERM))  # rank 0 alone answers
    train(whole)

    def terminate() -> None:  # every process, as a scheduler may
        os.kill(started[-1].pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(2, terminate)
    with pytest.raises(SystemExit) as ended:
        train(cfg)
    assert ended.value.code == 143
    assert started[-1].poll() == 0, "the other has ended by itself, at the same step"
    state = read_last(checkpoints)
    assert state is not None
    assert (state["epoch"], state["steps"]) == (0, 2)
    assert len(state["seen"]["index"].unique()) == len(state["seen"]["index"]) == 2 * 2 * 5

    def kill() -> None:
        started[-1].kill()
        os.waitid(os.P_PID, started[-1].pid, os.WEXITED | os.WNOWAIT)

    at_step(4, kill)  # in the second epoch, of four steps each; after the last of each nobody is asked
    with pytest.raises(UserError, match=r"the process of rank 1 was ended by SIGKILL.*the same command goes on"):
        train(cfg)
    assert runs.read_status(runs.run_folder(cfg)) == "failed"
    state = read_last(checkpoints)
    assert state is not None
    assert state["epoch"] in (0, 1), "of the first epoch, or the step before"

    at_step(0, lambda: None)
    train(cfg)
    assert outcome(cfg) == outcome(whole)
    assert not (tmp_path / "parts" / ".replaced").exists(), "it went on each time, and did not begin anew"


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that other processes can import, too."""
    (tmp_path / "others.py").write_text(
        "import os, signal, time\n"
        "from deepfake.errors import UserError\n"
        "def dies(ranks): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def mistakes(ranks): raise UserError('data.root: gone')\n"
        "def breaks(ranks): raise ZeroDivisionError\n"
        "def waits(ranks): ranks.agreed(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("others")
    del sys.modules["others"]


def patiently() -> None:
    """Something long that needs no other rank."""
    for _ in range(6000):
        time.sleep(0.01)
    pytest.fail("nobody noticed")


@pytest.mark.slow
@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("what", "busy", "error", "message"),
    [
        ("dies", True, UserError, "rank 1 was ended by SIGKILL"),
        ("mistakes", False, UserError, "^data.root: gone$"),
        ("breaks", True, RuntimeError, "rank 1 ended with status 1"),
    ],
)
def test_what_ends_another_rank_is_told(
    others: Any, what: str, busy: bool, error: type[Exception], message: str
) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(error, match=message), together(2, getattr(others, what)) as joined:
        patiently() if busy else joined.agreed(0)
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.slow
def test_a_mistake_of_rank_0_ends_the_others(others: Any, started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(UserError, match=r"^mine$"), together(2, others.waits):
        raise UserError("mine")
    assert started[0].poll() == -signal.SIGKILL


@pytest.mark.slow
def test_a_rank_outlives_not_the_first(others: Any, started: list[subprocess.Popen[bytes]]) -> None:
    def leave() -> None:
        assert started[0].stdin is not None
        started[0].stdin.close()  # as when rank 0 is gone, however that came about
        patiently()

    with pytest.raises(RuntimeError, match="lost each other"), together(2, others.waits):
        leave()


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("trainer.strategy=fsdp", r"^trainer.strategy=fsdp is refused: expected one of auto, ddp"),
        ("trainer.devices=0", r"^trainer.devices=0 is refused: expected a whole number of at least 1"),
        ("trainer.devices=9 batch_size=8", r"^trainer.devices=9 with batch_size=8 is refused"),
        ("trainer.devices=2 trainer.accelerator=mps", r"^trainer.devices=2 with trainer.accelerator=mps is refused"),
    ],
)
def test_what_contradicts_is_refused_by_name(tmp_path: Path, faces: Path, overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(tmp_path, faces, "model.timm=test_vit", *overrides.split())


def test_more_cards_than_there_are_are_refused_before_a_folder_is_made(
    tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strategy:
        root_device = torch.device("cuda")

    monkeypatch.setattr(training, "_trainer", lambda *_, **__: type("Trainer", (), {"strategy": Strategy}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = settings(tmp_path, faces, "model.timm=test_vit", "trainer.devices=2")
    with pytest.raises(UserError, match=r"^trainer.devices=2: expected no more than this machine has, found 1 of"):
        train(cfg)
    assert not runs.run_folder(cfg).exists()


def test_the_number_of_processes_is_part_of_a_runs_name_and_the_strategy_is_not(tmp_path: Path, faces: Path) -> None:
    one, same, two = (
        runs.run_key(settings(tmp_path, faces, "model.timm=test_vit", *more))
        for more in ([], ["trainer.strategy=ddp"], ["trainer.devices=2"])
    )
    assert one == same != two
