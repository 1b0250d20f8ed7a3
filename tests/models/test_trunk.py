"""A stored trunk changes nothing but the time: same figures, same weights, and the run goes on where it fails."""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from deepfake.console import log
from deepfake.data.augment import Augmentation
from deepfake.data.catalog import scan
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.layouts import find_images
from deepfake.data.split import split
from deepfake.models import trunk
from deepfake.models.backbones import Backbone, build_backbone
from deepfake.models.detector import Detector
from deepfake.models.freezing import freeze
from deepfake.models.trunk import StoredTrunk, TrunkStore, restored, stored_depth, to_numpy
from deepfake.reporting.recorder import Recorder

# What is frozen is in eval mode on purpose.
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
SIZE = 32
TINY = "test_resnet"  # timm's own for tests
STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
EPOCHS = 3
BATCH = 8


@pytest.fixture(scope="module")
def manifest(faces: Path) -> pd.DataFrame:
    table = scan(find_images(faces), faces)
    return table.assign(split=split(table))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Everything the project has logged so far."""
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger=log.name):
        # By identity: where the logger propagates, each record comes twice.
        yield lambda: "".join(f"{r.getMessage()}\n" for r in {id(r): r for r in caplog.records}.values())
    log.removeHandler(caplog.handler)


@dataclass
class Fitted:
    history: pd.DataFrame
    figures: dict[str, float]  # of the test part
    weights: dict[str, Tensor]
    passes: int  # images that went through the first stage


Fit = Callable[..., Fitted]


@pytest.fixture
def fit(manifest: pd.DataFrame, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Trains, validates and tests, with a store or without."""
    # Some gradients are zero but for rounding, such as that of a bias which the next norm subtracts again. Adam
    # divides a gradient by its own size and so makes of a rounding a whole step: there, two runs whose trunks were
    # computed in other batches differ, in numbers that change no output. A larger epsilon leaves small what is small.
    monkeypatch.setattr(torch.optim, "Adam", partial(torch.optim.Adam, eps=1e-3))

    def fit(
        name: str,
        unfreeze: int,
        root: Path | None = None,
        precision: Any = "32-true",
        epochs: int = EPOCHS,
        table: pd.DataFrame = manifest,
        callback: L.Callback | None = None,
        drop_rate: float = 0.0,
        **options: Any,
    ) -> Fitted:
        L.seed_everything(0, verbose=False)
        module = Detector(build_backbone(name, "none", SIZE, drop_rate), unfreeze, lr=1e-3)
        data = data_of(table, faces, module.backbone, **options)
        callbacks: list[L.Callback] = [Recorder(tmp_path), *([callback] if callback else [])]
        if root is not None:
            kept = TrunkStore(module.backbone, stored_depth(module.backbone), root, precision, max_gb=1)
            callbacks.append(StoredTrunk(kept, epochs, show=False))
        passes = 0

        def count(_: Any, arguments: tuple[Tensor]) -> None:
            nonlocal passes
            passes += len(arguments[0]) if arguments[0].any() else 0  # zeros only measure a row

        first = module.backbone.stages[0].members[0]
        module.backbone.network.get_submodule(first).register_forward_pre_hook(count)
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic=True,
        )
        trainer.fit(module, datamodule=data)
        history = pd.read_csv(tmp_path / "metrics.csv").drop(columns="seconds")
        trainer.test(module, datamodule=data, verbose=False)
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        return Fitted(history, figures, module.backbone.network.state_dict(), passes)

    return fit


def data_of(
    manifest: pd.DataFrame,
    faces: Path,
    backbone: Backbone,
    how: Augmentation = STUDY,
    seed: int = 0,
    **options: Any,
) -> FaceDataModule:
    return FaceDataModule(manifest, faces, backbone.input_spec, how, seed, batch_size=BATCH, **options)


def expect_same(one: Fitted, other: Fitted) -> None:
    pd.testing.assert_frame_equal(one.history, other.history, rtol=0, atol=1e-6)
    assert one.figures == pytest.approx(other.figures, abs=1e-6)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def packs(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npy"))


# ------------------------------------------------------------------------------------------------- the same run


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "vit_tiny_patch16_224"])
def test_stored_and_computed_trunks_train_the_same_network(
    name: str, fit: Fit, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    parts = manifest["split"].value_counts()
    every = parts["train"] * EPOCHS + parts["val"] + parts["test"]
    for unfreeze in (0, 1, 2):
        computed = fit(name, unfreeze)
        stored = fit(name, unfreeze, tmp_path / "trunk")
        expect_same(stored, computed)
        assert computed.passes == parts["train"] * EPOCHS + parts["val"] * EPOCHS + parts["test"]
        # The first fills the store; those that train the last stages too find everything there.
        assert stored.passes == (every if unfreeze == 0 else 0)
    assert len(packs(tmp_path / "trunk")) == EPOCHS + 2, "each view of these few images is one pack"


def test_in_half_precision_too(fit: Fit, tmp_path: Path) -> None:
    expect_same(fit(TINY, 1, tmp_path, "bf16-mixed"), fit(TINY, 1, None, "bf16-mixed"))
    assert {np.load(file).dtype for file in packs(tmp_path)} == {np.dtype(np.uint16)}


def test_views_in_turn_are_computed_once_and_are_those_of_the_images(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    parts = manifest["split"].value_counts()
    stored = fit(TINY, 1, tmp_path / "trunk", epochs=4, views=2)
    assert stored.passes == parts["train"] * 2 + parts["val"] + parts["test"]
    expect_same(stored, fit(TINY, 1, epochs=4, views=2))


def test_dropout_drops_the_same(fit: Fit, tmp_path: Path) -> None:
    computed = fit(TINY, 0, drop_rate=0.5)
    for _ in ("filled", "found"):
        expect_same(fit(TINY, 0, tmp_path / "trunk", drop_rate=0.5), computed)


def test_rows_of_several_packs_train_the_same_network(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk, "_PACK_ROWS", 2 * BATCH)
    expect_same(fit(TINY, 1, tmp_path / "trunk"), fit(TINY, 1))


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_loader_processes(fit: Fit, tmp_path: Path) -> None:
    alone = fit(TINY, 1, tmp_path / "alone")
    several = fit(TINY, 1, tmp_path / "several", workers=2)
    assert several.passes == alone.passes
    expect_same(several, alone)
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")


def contents(root: Path) -> list[bytes]:
    return sorted(pack.read_bytes() for pack in packs(root))


# ---------------------------------------------------------------------------------- only what is missing is computed


def test_fewer_images_and_another_split_need_no_pass(fit: Fit, manifest: pd.DataFrame, tmp_path: Path) -> None:
    fit(TINY, 0, tmp_path / "trunk")
    fewer = manifest.groupby(["split", "label"]).head(3)
    swapped = manifest.assign(split=manifest["split"].replace({"val": "test", "test": "val"}))
    for table in (fewer, swapped):
        stored = fit(TINY, 0, tmp_path / "trunk", table=table)
        assert stored.passes == 0
        expect_same(stored, fit(TINY, 0, table=table))


def test_of_more_images_only_the_new_ones_are_computed(fit: Fit, manifest: pd.DataFrame, tmp_path: Path) -> None:
    fewer = manifest.drop(manifest.index[manifest["split"] == "train"][::2])
    fit(TINY, 0, tmp_path / "trunk", table=fewer)
    stored = fit(TINY, 0, tmp_path / "trunk")
    assert stored.passes == (len(manifest) - len(fewer)) * EPOCHS
    expect_same(stored, fit(TINY, 0))


def test_equal_files_are_computed_once(fit: Fit, manifest: pd.DataFrame, tmp_path: Path) -> None:
    train = manifest[manifest["split"] == "train"]
    table = pd.concat([manifest, train.head(5)])
    stored = fit(TINY, 0, tmp_path / "trunk", epochs=1, table=table)
    assert stored.passes == len(manifest)
    expect_same(stored, fit(TINY, 0, epochs=1, table=table))


def test_what_is_damaged_or_gone_is_made_again(fit: Fit, tmp_path: Path) -> None:
    before = fit(TINY, 0, tmp_path / "trunk")
    files = packs(tmp_path / "trunk")
    stored = contents(tmp_path / "trunk")
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"no array" * 1000)
    again = fit(TINY, 0, tmp_path / "trunk")
    expect_same(again, before)
    assert 0 < again.passes < before.passes
    assert contents(tmp_path / "trunk") == stored


class Deleting(L.Callback):
    """Deletes at the end of every epoch."""

    def __init__(self, root: Path, what: str) -> None:
        self.root, self.what = root, what

    def on_train_epoch_end(self, *_: Any) -> None:
        for path in [self.root] if self.what == "everything" else self.root.rglob(self.what):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("what", ["*.npy", "index.sqlite", "everything"])
def test_the_store_may_be_deleted_between_two_epochs(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path, what: str, said: Callable[[], str]
) -> None:
    root = tmp_path / "trunk"
    full = fit(TINY, 1, root)
    parts = manifest["split"].value_counts()
    again = fit(TINY, 1, root, callback=Deleting(root, what))
    expect_same(again, full)
    assert again.passes == parts["train"] * (EPOCHS - 1) + parts["test"], "the first epoch found its rows"
    assert "not stored" not in said()


# ------------------------------------------------------------------------------------------ the run goes on without


def test_on_a_full_disk_the_run_goes_on_without(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    computed = fit(TINY, 0)
    monkeypatch.setattr(trunk, "write_bytes", full)
    expect_same(fit(TINY, 0, tmp_path / "trunk"), computed)
    (line,) = [line for line in said().splitlines() if "not stored" in line]
    assert line.endswith(
        f"not stored in {tmp_path / 'trunk'}: [Errno 28] No space left on device. The run goes on without."
    )


def test_without_a_usable_index_the_run_goes_on_without(fit: Fit, tmp_path: Path, said: Callable[[], str]) -> None:
    computed = fit(TINY, 0, tmp_path / "trunk")
    (index,) = tmp_path.glob("trunk/*/index.sqlite")
    index.write_bytes(b"no database" * 1000)
    expect_same(fit(TINY, 0, tmp_path / "trunk"), computed)
    (line,) = [line for line in said().splitlines() if "not stored" in line]
    assert line.endswith("file is not a database. The run goes on without.")


# ------------------------------------------------------------------------------------------------- the store


def store(
    root: Path, backbone: Backbone | None = None, max_gb: float = 1.0, precision: str = "32-true"
) -> TrunkStore:
    if backbone is None:
        torch.manual_seed(0)
        backbone = build_backbone(TINY, "none", SIZE)
    return TrunkStore(backbone, 3, root, precision, max_gb)


def rows_of(images: str) -> Tensor:
    """A row of 1,000 numbers for each letter."""
    return torch.stack([torch.full((1000,), float(ord(image))) for image in images])


def batches(images: str, size: int = 2) -> Iterator[Tensor]:
    return (rows_of(images[start : start + size]) for start in range(0, len(images), size))


def missing(kept: TrunkStore, images: str, view: Any = "clean") -> str:
    return "".join(images[place] for place in kept.find(images, view).missing)


PACK = 128 + 4000  # bytes of a pack of one row


def test_rows_come_in_the_order_asked_for_from_any_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_PACK_ROWS", 3)
    kept = store(tmp_path)
    kept.add("abcdefgh", "clean", batches("abcdefgh"))
    assert len(packs(tmp_path)) == 2
    rows = kept.find("hgabcc", "clean")
    places = np.array([5, 0, 2, 2, 4, 1])
    assert np.array_equal(rows[places], rows_of("chaacg").numpy())


def test_a_pack_is_written_when_it_is_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_PACK_BYTES", 3 * 4000)
    store(tmp_path).add("abcdefghi", "clean", batches("abcdefghi"))
    assert sorted(len(np.load(pack)) for pack in packs(tmp_path)) == [1, 4, 4]


def test_a_view_of_an_image_is_not_another(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("ab", ["study", 0], batches("ab"))
    assert missing(kept, "abc", ["study", 0]) == "c"
    assert missing(kept, "abc", ["study", 1]) == "abc"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_too_few_or_too_many_rows_are_an_error(tmp_path: Path, count: int) -> None:
    with pytest.raises(OSError, match=f"expected 4 rows, found {count}"):
        store(tmp_path).add("abcd", "clean", [torch.ones(1, 8)] * count)


def test_a_pack_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = store(tmp_path)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        kept.add("ab", "clean", batches("ab"))
    assert packs(tmp_path) == list(tmp_path.rglob("*.tmp")) == []
    assert missing(kept, "ab") == "ab"


def in_another_process(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_PACK_ROWS", 4)
    kept = store(tmp_path)

    def killed() -> Iterator[Tensor]:
        yield from batches("abcdefghij")
        os.kill(os.getpid(), signal.SIGKILL)

    process = in_another_process(lambda: kept.add("abcdefghijkl", "clean", killed()))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert missing(kept, "abcdefghijkl") == "ijkl", "the last pack was not full"
    kept.add("ijkl", "clean", batches("ijkl"))
    rows = kept.find("abcdefghijkl", "clean")
    assert np.array_equal(rows[np.arange(12)], rows_of("abcdefghijkl").numpy())


@pytest.mark.slow
def test_processes_may_fill_the_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_PACK_ROWS", 2)
    kept = store(tmp_path)
    shares = ["abcdefghijklmnop", "abcdefghijklmnop", "ponmlkjihgfedcba", "mnopqrstuvwxyz"]

    def fill(share: str) -> None:
        kept.claim([(share, "clean")])
        kept.add(share, "clean", batches(share))

    processes = [in_another_process(partial(fill, share)) for share in shares]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(shares)
    images = "abcdefghijklmnopqrstuvwxyz"
    assert missing(kept, images) == ""
    assert np.array_equal(kept.find(images, "clean")[np.arange(26)], rows_of(images).numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15, (6, 4, 5, 3, 2), dtype=torch.int16)
    features = bits[..., 0] if dtype != torch.float32 else bits
    features = features.contiguous().view(dtype).reshape(6, 4, 5, 3)
    # Laid out as convolutions leave them.
    features = features.contiguous(memory_format=torch.channels_last)
    kept = store(tmp_path)
    kept.add("abcdef", "clean", [features[:4], features[4:]])
    back = restored(torch.from_numpy(kept.find("abcdef", "clean")[np.arange(6)]))
    assert back.dtype == dtype
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert to_numpy(back).tobytes() == to_numpy(features).tobytes()


def test_tokens_come_back_as_they_are() -> None:
    tokens = torch.randn(2, 5, 3).bfloat16()
    assert torch.equal(restored(torch.from_numpy(to_numpy(tokens))), tokens)


def test_rows_of_another_type_are_not_mixed_in(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("a", "clean", [torch.ones(1, 8)])
    kept.add("b", "clean", [torch.ones(1, 8).half()])
    kept.add("c", "clean", [torch.ones(1, 9)])
    assert len(missing(kept, "abc")) == 2


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_packs_are_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "_PACK_ROWS", 1)
    kept = store(tmp_path)
    kept.add("abcdefgh", "clean", batches("abcdefgh", 1))
    before = len(os.listdir("/proc/self/fd"))
    rows = kept.find("abcdefgh", "clean")
    assert len(packs(tmp_path)) == 8
    assert len(os.listdir("/proc/self/fd")) == before
    for pack in packs(tmp_path):
        pack.unlink()
    assert np.array_equal(rows[np.arange(8)], rows_of("abcdefgh").numpy()), "what is mapped outlives its file"


# ------------------------------------------------------------------------------------------------- its limit


def age(root: Path, seconds: float) -> None:
    past = time.time() - seconds
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_mtime > past:
            os.utime(path, (past, past))


def test_the_limit_is_kept_and_what_was_unused_for_longest_goes(tmp_path: Path) -> None:
    for image, precision in zip("abc", ("32-true", "bf16-mixed", "32-true"), strict=True):
        store(tmp_path, precision=precision).add(image, "clean", batches(image))
        age(tmp_path, 10)
        time.sleep(0.01)
    kept = store(tmp_path, max_gb=3 * PACK / 1e9)
    assert missing(store(tmp_path), "a") == ""  # the oldest, used by another run just now
    kept.add("d", "clean", batches("d"))
    assert missing(kept, "abcd") == "b"
    assert missing(store(tmp_path, precision="bf16-mixed"), "b") == "b", "the limit is of all folders together"
    assert sum(path.stat().st_size for path in packs(tmp_path)) <= kept.max_bytes


def test_what_this_run_needs_stays_and_the_rest_is_not_stored(tmp_path: Path) -> None:
    for image in "abcd":
        store(tmp_path).add(image, "clean", batches(image))
        age(tmp_path, 10)
    kept = store(tmp_path, max_gb=4 * PACK / 1e9)
    assert kept.claim([("abc", "clean"), ("ab", "other")]) == 2
    age(tmp_path, 3000)  # and others may have been used since
    kept.add("e", "clean", batches("e"))
    with pytest.raises(OSError, match="used up by what this run needs"):
        kept.add("f", "clean", batches("f"))
    assert missing(kept, "abcdef") == "df"


def test_another_run_may_make_room_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: iter([folder / "gone.npy", *rglob(folder, pattern)]))
    kept = store(tmp_path)
    kept.add("a", "clean", batches("a"))
    assert missing(kept, "a") == ""


def test_what_dead_processes_left_is_removed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)
    kept.add("a", "clean", batches("a"))
    left = [kept.folder / "unknown.npy", kept.folder / ".unfinished.npy.1-1.tmp", tmp_path / "other" / ".x.1-1.tmp"]
    left[2].parent.mkdir()
    for path in left:
        path.touch()
    kept.claim([])
    assert all(path.exists() for path in left), "they may be of a process that lives"
    age(tmp_path, 3700)
    kept.claim([])
    assert not any(path.exists() for path in left)
    assert missing(kept, "a") == "", "old, but known"


def test_the_index_forgets_packs_that_are_gone(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("a", "clean", batches("a"))
    kept.add("b", "clean", batches("b"))
    packs(tmp_path)[0].unlink()
    kept.claim([])
    with kept._index() as index:
        assert index.execute("SELECT count(*) FROM rows").fetchall() == [(1,)]


# ------------------------------------------------------------------------------------------------- its names


def test_whatever_decides_the_rows_decides_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    other_weights = build_backbone(TINY, "none", SIZE)  # drawn after, so others
    other_statistics = build_backbone(TINY, "none", SIZE)
    other_statistics.network.load_state_dict(backbone.network.state_dict())
    other_statistics.network.get_buffer("bn1.running_mean").add_(1)
    other_input = build_backbone(TINY, "none", 64)
    other_input.network.load_state_dict(backbone.network.state_dict())
    folders = [
        store(tmp_path, backbone).folder,
        store(tmp_path, other_weights).folder,
        store(tmp_path, other_statistics).folder,
        store(tmp_path, other_input).folder,
        store(tmp_path, backbone, precision="bf16-mixed").folder,
        TrunkStore(backbone, 2, tmp_path, "32-true", 1).folder,
    ]
    monkeypatch.setattr(TrunkStore, "device", torch.device("cuda"))
    folders.append(store(tmp_path, backbone).folder)
    assert len(set(folders)) == len(folders)


def test_what_does_not_decide_the_rows_does_not_decide_where_they_lie(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    before = store(tmp_path, backbone).folder
    with torch.no_grad():
        backbone.network.get_classifier().weight.add_(1)  # type: ignore[operator]
        backbone.network.get_parameter("layer4.0.conv1.weight").add_(1)  # above what is stored
    assert store(tmp_path, backbone, max_gb=9).folder == before


@pytest.mark.parametrize(
    ("name", "unfreeze", "depth"),
    [
        (TINY, 0, 3),
        (TINY, 2, 3),  # the same as for 0: the store is shared
        (TINY, 3, 2),
        (TINY, 5, 0),
        (TINY, "all", 0),
        ("ghostnet_100", 0, 0),  # known by its parameter groups alone
    ],
)
def test_stored_depth(name: str, unfreeze: int | str, depth: int) -> None:
    backbone = build_backbone(name, "none", SIZE)
    freeze(backbone, unfreeze)
    assert stored_depth(backbone) == depth


# ------------------------------------------------------------------------------------------------- the estimate


def estimate(data: FaceDataModule, backbone: Backbone, folder: Path, max_gb: float) -> bool:
    freeze(backbone, 0)
    return StoredTrunk(store(folder, backbone, max_gb), EPOCHS, show=False).fits(data)


@pytest.mark.parametrize(
    ("how", "turns", "views"), [(STUDY, None, EPOCHS), (STUDY, 9, EPOCHS), (STUDY, 2, 2), (Augmentation(), None, 1)]
)
def test_the_estimate_is_what_is_stored_and_it_is_said(
    manifest: pd.DataFrame,
    faces: Path,
    tmp_path: Path,
    said: Callable[[], str],
    how: Augmentation,
    turns: int | None,
    views: int,
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    data = data_of(manifest, faces, backbone, how, views=turns)
    parts = manifest["split"].value_counts()
    row = 4 * backbone.features(torch.zeros(1, 3, SIZE, SIZE), stop=3).numel()
    size = row * (parts["train"] * views + parts["val"] + parts["test"])
    assert estimate(data, backbone, tmp_path, max_gb=(size + 1) / 1e9)
    assert f"computed once for each image and view, at most {size / 1e9:.2f} GB, 0% of it there\n" in said()
    assert not estimate(data, backbone, tmp_path, max_gb=size / 1e9)
    assert "more than cache_max_gb or the disk allow" in said()


def test_a_small_disk_refuses(
    manifest: pd.DataFrame,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    class Usage:
        free = 1000

    backbone = build_backbone(TINY, "none", SIZE)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    assert not estimate(data_of(manifest, faces, backbone), backbone, tmp_path, max_gb=1)
    assert "(0.0 GB free), so not stored" in said()


def test_a_small_disk_is_enough_for_what_is_there(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    class Usage:
        free = 1000

    fit(TINY, 0, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    assert fit(TINY, 0, tmp_path).passes == 0
    assert "100% of it there\n" in said()
