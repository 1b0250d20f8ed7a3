"""A stored trunk changes nothing but the time: same figures, same weights, and the run goes on where it fails."""

import errno
import logging
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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


@pytest.fixture(scope="module")
def manifest(faces: Path) -> pd.DataFrame:
    table = scan(find_images(faces), faces)
    return table.assign(split=split(table))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """Everything the project has logged so far."""
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger=log.name):
        yield lambda: caplog.text
    log.removeHandler(caplog.handler)


@dataclass
class Fitted:
    history: pd.DataFrame
    figures: dict[str, float]  # of the test part
    weights: dict[str, Tensor]
    passes: int  # images that went through the first stage


Fit = Callable[..., Fitted]


@pytest.fixture
def fit(manifest: pd.DataFrame, faces: Path, tmp_path: Path) -> Fit:
    """Trains for three epochs, validates and tests, with a store or without."""

    def fit(name: str, unfreeze: int, store: Path | None = None, precision: Any = "32-true") -> Fitted:
        L.seed_everything(0, verbose=False)
        module = Detector(build_backbone(name, "none", SIZE), unfreeze, lr=1e-3)
        data = data_of(manifest, faces, module.backbone, provided=store is not None)
        callbacks: list[L.Callback] = [Recorder(tmp_path)]
        if store is not None:
            kept = TrunkStore(module.backbone, stored_depth(module.backbone), store, precision, max_gb=1)
            callbacks.append(StoredTrunk(kept, EPOCHS, show=False))
        passes = 0

        def count(_: Any, arguments: tuple[Tensor]) -> None:
            nonlocal passes
            passes += len(arguments[0])

        first = module.backbone.stages[0].members[0]
        module.backbone.network.get_submodule(first).register_forward_pre_hook(count)
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            max_epochs=EPOCHS,
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
    provided: bool = True,
) -> FaceDataModule:
    return FaceDataModule(manifest, faces, backbone.input_spec, how, seed, batch_size=8, provided=provided)


def expect_same(one: Fitted, other: Fitted) -> None:
    pd.testing.assert_frame_equal(one.history, other.history, rtol=0, atol=1e-6)
    assert one.figures == pytest.approx(other.figures, abs=1e-6)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


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
    assert len(list((tmp_path / "trunk").iterdir())) == EPOCHS + 2, "a file for each view, and nothing else"


def test_in_half_precision_too(fit: Fit, tmp_path: Path) -> None:
    expect_same(fit(TINY, 1, tmp_path, "bf16-mixed"), fit(TINY, 1, None, "bf16-mixed"))
    assert {np.load(file).dtype for file in tmp_path.glob("*.npy")} == {np.dtype(np.uint16)}


def test_what_is_damaged_or_gone_is_made_again(fit: Fit, tmp_path: Path) -> None:
    before = fit(TINY, 0, tmp_path / "trunk")
    files = sorted((tmp_path / "trunk").iterdir())
    content = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(content[1][:-1])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"no array" * 1000)
    again = fit(TINY, 0, tmp_path / "trunk")
    expect_same(again, before)
    assert 0 < again.passes < before.passes
    assert [file.read_bytes() for file in files] == content


def test_on_a_full_disk_the_run_goes_on_without(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    computed = fit(TINY, 0)
    monkeypatch.setattr(TrunkStore, "write", full)
    expect_same(fit(TINY, 0, tmp_path / "trunk"), computed)
    assert "not stored: [Errno 28] No space left on device. The run goes on without." in said()


# ------------------------------------------------------------------------------------------------- the store


def store(
    folder: Path, backbone: Backbone | None = None, max_gb: float = 1.0, precision: str = "32-true"
) -> TrunkStore:
    if backbone is None:
        torch.manual_seed(0)
        backbone = build_backbone(TINY, "none", SIZE)
    return TrunkStore(backbone, 3, folder, precision, max_gb)


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    kept, rows = store(tmp_path), torch.ones(1, 100_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            kept.write(kept.path(["a"], "clean"), 4, [rows] * 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_disk_space_is_taken_by_writing_not_by_a_map(tmp_path: Path) -> None:
    """On a full disk a write fails with an error; a page of a memory map that finds no room kills the process."""
    kept, taken = store(tmp_path), []

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.ones(1, 500_000)
            taken.extend(file.stat().st_size for file in tmp_path.glob("*.tmp"))

    kept.write(kept.path(["a"], "clean"), 3, batches())
    assert taken == sorted(set(taken)), "the file grows with what is in it"


@pytest.mark.parametrize("count", [0, 3])
def test_a_store_of_too_few_rows_is_refused_and_leaves_nothing(tmp_path: Path, count: int) -> None:
    kept = store(tmp_path)
    with pytest.raises(OSError, match=f"expected 4 rows, found {count}"):
        kept.write(kept.path(["a"], "clean"), 4, [torch.ones(1, 8)] * count)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)

    def batches() -> Iterator[Tensor]:
        yield torch.ones(2, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.write(kept.path(["a"], "clean"), 4, batches())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15, (6, 4, 5, 3, 2), dtype=torch.int16)
    features = bits[..., 0] if dtype != torch.float32 else bits
    features = features.contiguous().view(dtype).reshape(6, 4, 5, 3)
    # Laid out as convolutions leave them.
    features = features.contiguous(memory_format=torch.channels_last)
    kept = store(tmp_path)
    path = kept.path(["a"], "clean")
    kept.write(path, 6, [features[:4], features[4:]])
    rows = kept.read(path)
    assert rows is not None
    back = restored(torch.from_numpy(np.array(rows)))
    assert back.dtype == dtype
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert to_numpy(back).tobytes() == to_numpy(features).tobytes()


def test_tokens_come_back_as_they_are() -> None:
    tokens = torch.randn(2, 5, 3).bfloat16()
    assert torch.equal(restored(torch.from_numpy(to_numpy(tokens))), tokens)


def test_the_limit_is_kept_and_what_was_used_least_recently_goes(tmp_path: Path) -> None:
    kept = store(tmp_path, max_gb=3 * 5000 / 1e9)  # room for three files of 4,128 bytes
    paths = [kept.path([image], "clean") for image in "abcd"]
    for age, path in zip((30, 20, 10), paths, strict=False):
        kept.write(path, 1, [torch.ones(1, 1000)])
        past = path.stat().st_mtime - age
        os.utime(path, (past, past))
    assert kept.read(paths[0]) is not None  # the oldest, used just now
    kept.write(paths[3], 1, [torch.ones(1, 1000)])
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= kept.max_bytes


def test_what_was_written_just_now_stays_even_beyond_the_limit(tmp_path: Path) -> None:
    kept = store(tmp_path, max_gb=1e-9)
    for image in "ab":
        kept.write(kept.path([image], "clean"), 1, [torch.ones(1, 1000)])
    assert list(tmp_path.iterdir()) == [kept.path(["b"], "clean")]


def test_another_run_may_make_room_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)
    gone = kept.path(["gone"], "clean")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([gone, *folder.iterdir()]))
    kept.write(kept.path(["a"], "clean"), 1, [torch.ones(1, 8)])
    assert kept.read(kept.path(["a"], "clean")) is not None


def test_whatever_decides_the_rows_decides_the_path(tmp_path: Path, manifest: pd.DataFrame, faces: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    other_weights = build_backbone(TINY, "none", SIZE)  # drawn after, so others
    other_statistics = build_backbone(TINY, "none", SIZE)
    other_statistics.network.load_state_dict(backbone.network.state_dict())
    other_statistics.network.get_buffer("bn1.running_mean").add_(1)
    other_input = build_backbone(TINY, "none", 64)
    other_input.network.load_state_dict(backbone.network.state_dict())
    images = list(manifest["sha256"])

    def view(part: str = "train", number: int = 0, how: Augmentation = STUDY, seed: int = 0) -> Any:
        return data_of(manifest, faces, backbone, how, seed).view_key(part, number)

    kept = store(tmp_path, backbone)
    paths = [
        kept.path(images, view()),
        kept.path(images, view(number=1)),
        kept.path(images, view(seed=1)),
        kept.path(images, view(how=replace(STUDY, rotation=16))),
        kept.path(images, view("val")),
        kept.path(images[1:], view()),
        kept.path(images[::-1], view()),
        store(tmp_path, other_weights).path(images, view()),
        store(tmp_path, other_statistics).path(images, view()),
        store(tmp_path, other_input).path(images, view()),
        store(tmp_path, backbone, precision="bf16-mixed").path(images, view()),
        TrunkStore(backbone, 2, tmp_path, "32-true", 1).path(images, view()),
    ]
    assert len(set(paths)) == len(paths)


def test_what_does_not_decide_the_rows_does_not_decide_the_path(
    tmp_path: Path, manifest: pd.DataFrame, faces: Path
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    data = data_of(manifest, faces, backbone)
    before = store(tmp_path, backbone).path(["a"], data.view_key("val", 0))
    with torch.no_grad():
        backbone.network.get_classifier().weight.add_(1)  # type: ignore[operator]
        backbone.network.get_parameter("layer4.0.conv1.weight").add_(1)  # above what is stored
    other = data_of(manifest, faces, backbone, seed=1)
    assert store(tmp_path, backbone, max_gb=9).path(["a"], other.view_key("val", 7)) == before
    plain = data_of(manifest, faces, backbone, Augmentation())
    assert plain.view_key("train", 0) == plain.view_key("train", 5) == plain.view_key("val", 0)


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


@pytest.mark.parametrize(("how", "views"), [(STUDY, EPOCHS), (Augmentation(), 1)])
def test_the_estimate_is_what_is_stored_and_it_is_said(
    manifest: pd.DataFrame, faces: Path, tmp_path: Path, said: Callable[[], str], how: Augmentation, views: int
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(TINY, "none", SIZE)
    data = data_of(manifest, faces, backbone, how)
    parts = manifest["split"].value_counts()
    row = 4 * backbone.features(torch.zeros(1, 3, SIZE, SIZE), stop=3).numel()
    size = row * (parts["train"] * views + parts["val"] + parts["test"])
    assert estimate(data, backbone, tmp_path, max_gb=(size + 1) / 1e9)
    assert f"first 3 stages computed once for each image and view, at most {size / 1e9:.2f} GB\n" in said()
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
