"""A stored trunk changes nothing but the time: same figures, same weights, and the run goes on where it fails."""

import errno
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from deepfake.data import datamodule
from deepfake.data.augment import Augmentation
from deepfake.data.catalog import scan
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.layouts import find_images
from deepfake.data.split import split
from deepfake.errors import UserError
from deepfake.models import engines, store, trunk
from deepfake.models.backbones import Backbone, build_backbone
from deepfake.models.detector import DetectorModule
from deepfake.models.engines import Engine
from deepfake.models.freezing import freeze
from deepfake.models.store import TrunkStore
from deepfake.models.trunk import StoredTrunk, Trunk, storable
from deepfake.reporting.recorder import Recorder

# What is frozen is in eval mode on purpose.
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
SIZE = 32
TINY = "test_resnet"  # timm's own for tests: a stem and four stages
STAGES = 5
STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
EPOCHS = 3
BATCH = 8
RANKS = ("/auroc", "/ap")


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


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of an engine has had, whichever engine it was."""
    counts: list[int] = []
    build = trunk.build_engine

    def counting(*arguments: Any, **options: Any) -> Engine:
        engine = build(*arguments, **options)

        def run(images: Tensor) -> Sequence[Tensor]:
            counts.append(len(images))
            return engine.run(images)

        return replace(engine, run=run)

    monkeypatch.setattr(trunk, "build_engine", counting)
    return counts


@dataclass
class Fitted:
    history: pd.DataFrame
    figures: dict[str, float]  # of the test part
    margins: Tensor  # of the test part, in its order
    weights: dict[str, Tensor]
    passes: int  # images that went through the first stage in PyTorch


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
        engine: str | None = "eager",
        precision: str = "float32",
        keep: Sequence[int] = (),
        epochs: int = EPOCHS,
        table: pd.DataFrame = manifest,
        callback: L.Callback | None = None,
        drop_rate: float = 0.0,
        batch: int = BATCH,
        accumulate: int = 1,
        mixed: str = "32-true",
        **options: Any,
    ) -> Fitted:
        """Without a root nothing is stored; without an engine the network runs as a whole."""
        L.seed_everything(0, verbose=False)
        backbone = build_backbone(name, "none", SIZE, drop_rate)
        module = DetectorModule(backbone, unfreeze, lr=1e-3, batch_size=batch, accumulate=accumulate)
        data = data_of(table, faces, backbone, batch_size=batch, step=batch * accumulate, **options)
        if engine is not None:
            module.trunk = trunk_of(backbone, keep, engine, precision)
            if root is not None:
                data.provider = StoredTrunk(module.trunk, root, max_gb=1, epochs=epochs, show=False).rows
        passes = 0

        def count(_: Any, arguments: tuple[Tensor]) -> None:
            nonlocal passes
            passes += len(arguments[0]) if arguments[0].any() else 0  # zeros only measure a row

        backbone.network.get_submodule(backbone.stages[0].members[0]).register_forward_pre_hook(count)
        trainer = L.Trainer(
            accelerator="cpu",
            precision=mixed,  # type: ignore[arg-type]
            max_epochs=epochs,
            callbacks=[Recorder(tmp_path), *([callback] if callback else [])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1 if data.provider else 0,
            deterministic=True,
        )
        trainer.fit(module, datamodule=data)
        history = pd.read_csv(tmp_path / "metrics.csv")
        trainer.test(module, datamodule=data, verbose=False)
        figures = {key: float(value) for key, value in trainer.callback_metrics.items()}
        margins, _, index = module.outputs("val")
        assert index.tolist() == list(range(len(data.rows("test"))))
        return Fitted(history, figures, margins, backbone.network.state_dict(), passes)

    return fit


def data_of(
    manifest: pd.DataFrame,
    faces: Path,
    backbone: Backbone,
    how: Augmentation = STUDY,
    seed: int = 0,
    batch_size: int = BATCH,
    **options: Any,
) -> FaceDataModule:
    return FaceDataModule(manifest, faces, backbone.input_spec, how, seed, batch_size=batch_size, **options)


def backbone_of(name: str = TINY, unfreeze: int | str = 0) -> Backbone:
    """Of the same weights each time."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "none", SIZE)
    freeze(backbone, unfreeze)
    return backbone


def trunk_of(
    backbone: Backbone, keep: Sequence[int] = (), engine: str = "eager", precision: str = "float32"
) -> Trunk:
    """Keeping what runs with these values of `unfreeze` need."""
    return Trunk(backbone, [len(backbone.stages) - unfreeze for unfreeze in keep], engine, precision)


def expect_same(one: Fitted, other: Fitted, ranks: bool = True) -> None:
    """Same figures of every epoch, margins and weights.

    Args:
        ranks: whether figures that compare images with each other are to be the same too. Of a deep network with
            random weights so little arrives at the end that images differ by no more than rounding.
    """
    columns = [name for name in one.history if ranks or not name.endswith(RANKS)]
    pd.testing.assert_frame_equal(one.history[columns], other.history[columns], rtol=0, atol=1e-6)
    assert {key: one.figures[key] for key in one.figures if ranks or not key.endswith(RANKS)} == pytest.approx(
        {key: other.figures[key] for key in other.figures if ranks or not key.endswith(RANKS)}, abs=1e-6
    )
    torch.testing.assert_close(one.margins, other.margins, rtol=0, atol=1e-6)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def packs(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npy"))


def contents(root: Path) -> list[bytes]:
    return sorted(pack.read_bytes() for pack in packs(root))


def once(manifest: pd.DataFrame, views: int = EPOCHS) -> int:
    """How many (image, view) a run needs."""
    parts = manifest["split"].value_counts()
    return parts["train"] * views + parts["val"] + parts["test"]


def every_time(manifest: pd.DataFrame) -> int:
    """How many images a run passes through a trunk whose output it does not keep."""
    parts = manifest["split"].value_counts()
    return (parts["train"] + parts["val"]) * EPOCHS + parts["test"]


# ------------------------------------------------------------------------------------------------- the same run


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "vit_tiny_patch16_224"])
def test_stored_and_computed_trunks_train_the_same_network(
    name: str, fit: Fit, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    for unfreeze in (0, 1, 2):
        whole = fit(name, unfreeze, engine=None)
        assert whole.passes == every_time(manifest)
        stored = fit(name, unfreeze, tmp_path / "trunk", keep=(1, 2) if unfreeze == 0 else ())
        expect_same(stored, whole, ranks=False)
        # The first fills the store for all: those that train the last stages too find everything there.
        assert stored.passes == (once(manifest) if unfreeze == 0 else 0)
    assert len(packs(tmp_path / "trunk")) == 3 * (EPOCHS + 2), (
        "at each depth, each view of these few images is one pack"
    )


def test_stored_rows_are_of_images_as_the_device_augments_them(
    manifest: pd.DataFrame, faces: Path, tmp_path: Path
) -> None:
    made = trunk_of(backbone_of())
    data = data_of(manifest, faces, made.backbone, device_augment=True)
    rows = StoredTrunk(made, tmp_path, 1.0, EPOCHS, show=False).rows(data, "train", 1)
    assert rows is not None
    places = np.arange(len(data.rows("train")))
    batches = list(data.image_batches("train", 1, places.tolist()))
    augmented = torch.cat([made(data.normalised(batch)) for batch in batches])
    plain = torch.cat([made(data.normalised({"image": batch["image"]})) for batch in batches])
    found = torch.from_numpy(rows[places])
    torch.testing.assert_close(found, augmented, rtol=0, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3


def test_of_stages_that_a_run_trains_it_keeps_what_they_gave_before(fit: Fit, tmp_path: Path) -> None:
    fit(TINY, 2, tmp_path / "trunk", keep=(0, 1))
    for unfreeze in (0, 1):
        stored = fit(TINY, unfreeze, tmp_path / "trunk")
        assert stored.passes == 0, "one pass for a sweep, whichever of its jobs comes first"
        expect_same(stored, fit(TINY, unfreeze, engine=None))


def test_where_only_a_run_s_own_rows_fit_those_of_others_are_left_out(
    manifest: pd.DataFrame, faces: Path, tmp_path: Path
) -> None:
    made = trunk_of(backbone_of(), keep=[2])
    data = data_of(manifest, faces, made.backbone)
    own = made.row_bytes()[STAGES] * once(manifest)
    assert own < sum(made.row_bytes().values()) * once(manifest)
    assert StoredTrunk(made, tmp_path, 2 * own / 1e9, EPOCHS, show=False).rows(data, "val", 0) is not None
    assert made.depths == [STAGES]


def test_a_run_alone_stores_at_its_own_depth_alone(fit: Fit, manifest: pd.DataFrame, tmp_path: Path) -> None:
    fit(TINY, 1, tmp_path)
    assert len(list(tmp_path.glob("*/index.sqlite"))) == 1
    assert fit(TINY, 0, tmp_path).passes == once(manifest)


def test_without_a_store_the_same_engine_runs(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path, computed: list[int]
) -> None:
    without = fit(TINY, 1)
    assert without.passes == sum(computed) == every_time(manifest)
    expect_same(without, fit(TINY, 1, engine=None))
    computed.clear()
    expect_same(without, fit(TINY, 1, tmp_path / "trunk"))
    assert sum(computed) == once(manifest)


@pytest.mark.parametrize("unfreeze", [0, 1])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_another_engine_gives_the_same_run_stored_or_not(
    engine: str,
    unfreeze: int,
    fit: Fit,
    manifest: pd.DataFrame,
    tmp_path: Path,
    computed: list[int],
    said: Callable[[], str],
) -> None:
    if absent := engines._missing(engine):
        pytest.skip(f"{engine} needs {' and '.join(absent)}: pip install 'deepfake[{engine}]'")
    without = fit(TINY, unfreeze, engine=engine)
    assert sum(computed) == every_time(manifest)
    computed.clear()
    for _ in ("filled", "found"):
        expect_same(fit(TINY, unfreeze, tmp_path / "trunk", engine), without)
        assert sum(computed) == once(manifest)
    assert "is not used" not in said()


def test_a_network_known_by_its_parameter_groups_is_stored_as_a_whole(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    whole = fit("ghostnet_100", 0, engine=None)
    stored = fit("ghostnet_100", 0, tmp_path / "trunk", keep=(1, 2))
    expect_same(stored, whole)
    assert stored.passes == once(manifest)
    assert fit("ghostnet_100", 0, tmp_path / "trunk").passes == 0


def test_under_a_trainer_in_half_precision_too(fit: Fit, tmp_path: Path) -> None:
    expect_same(fit(TINY, 1, tmp_path, mixed="bf16-mixed"), fit(TINY, 1, mixed="bf16-mixed"))


@pytest.mark.parametrize(("unfreeze", "dtype"), [(0, np.float32), (1, np.uint16)])
def test_in_bfloat16_what_is_pooled_stays_whole(unfreeze: int, dtype: type, fit: Fit, tmp_path: Path) -> None:
    stored = fit(TINY, unfreeze, tmp_path, precision="bfloat16")
    expect_same(stored, fit(TINY, unfreeze, precision="bfloat16"))
    assert {np.load(file).dtype for file in packs(tmp_path)} == {np.dtype(dtype)}


def test_views_in_turn_are_computed_once_and_are_those_of_the_images(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    stored = fit(TINY, 1, tmp_path / "trunk", epochs=4, views=2)
    assert stored.passes == once(manifest, views=2)
    expect_same(stored, fit(TINY, 1, epochs=4, views=2))


@pytest.mark.parametrize(
    ("unfreeze", "drop_rate"),
    [(0, 0.0), (0, 0.5), (1, 0.0)],
    ids=["a step at once", "dropout: batch by batch", "norms: batch by batch"],
)
@pytest.mark.parametrize("piece_bytes", [1, 30_000])
def test_rows_in_pieces_take_the_steps_of_the_batches(
    unfreeze: int,
    drop_rate: float,
    piece_bytes: float,
    fit: Fit,
    manifest: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = (manifest["split"] == "train").sum()
    assert images % 3, "the last batch is not full"
    assert -(-images // 3) % 4, "nor the last step"
    monkeypatch.setattr(datamodule, "_PIECE_BYTES", piece_bytes)
    how: dict[str, Any] = {"batch": 3, "accumulate": 4, "drop_rate": drop_rate, "epochs": 2}
    expect_same(fit(TINY, unfreeze, tmp_path / "trunk", **how), fit(TINY, unfreeze, engine=None, **how))


class Watching(L.Callback):
    """Notes how many rows the last stage is shown at once."""

    def __init__(self) -> None:
        self.counts: set[int] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        last = pl_module.backbone.network.get_submodule(pl_module.backbone.stages[-1].members[0])
        last.register_forward_pre_hook(lambda _, arguments: self.counts.add(len(arguments[0])))


def test_stages_that_train_are_shown_a_batch_at_once_in_validation_too(fit: Fit, tmp_path: Path) -> None:
    """A piece of rows is 64 MB: what the stages make of all of it at once may be thirty times as much."""
    watching = Watching()
    fit(TINY, 1, tmp_path, batch=2, callback=watching)
    assert max(watching.counts) == 2


def test_dropout_drops_the_same(fit: Fit, tmp_path: Path) -> None:
    without = fit(TINY, 0, drop_rate=0.5)
    for _ in ("filled", "found"):
        expect_same(fit(TINY, 0, tmp_path / "trunk", drop_rate=0.5), without)


def test_rows_of_several_packs_train_the_same_network(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PACK_ROWS", 2 * BATCH)
    expect_same(fit(TINY, 1, tmp_path / "trunk"), fit(TINY, 1))


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_loader_processes(fit: Fit, tmp_path: Path) -> None:
    alone = fit(TINY, 1, tmp_path / "alone")
    several = fit(TINY, 1, tmp_path / "several", workers=2)
    assert several.passes == alone.passes
    expect_same(several, alone)
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")


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


def test_at_each_depth_only_what_is_missing_there_is_stored(fit: Fit, manifest: pd.DataFrame, tmp_path: Path) -> None:
    fewer = manifest.drop(manifest.index[manifest["split"] == "train"][::2])
    fit(TINY, 1, tmp_path / "trunk", table=fewer)
    fit(TINY, 0, tmp_path / "trunk", keep=(1,))
    rows = {folder: sum(len(np.load(pack)) for pack in folder.glob("*.npy")) for folder in tmp_path.glob("trunk/*")}
    assert list(rows.values()) == [once(manifest)] * 2
    assert fit(TINY, 1, tmp_path / "trunk").passes == 0


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
    # The test part is made with the first rows that are missing, deleted again, and made again.
    assert again.passes == parts["train"] * (EPOCHS - 1) + 2 * parts["test"], "the first epoch found its rows"
    assert "not stored" not in said()


class Gone(TrunkStore):
    """Whatever it stores is deleted at once."""

    def _write(self, images: Sequence[str], view: Any, rows: np.ndarray) -> None:
        super()._write(images, view, rows)
        for pack in self.folder.glob("*.npy"):
            pack.unlink()


def test_what_is_deleted_before_it_is_used_costs_the_epoch_no_more_than_time(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    without = fit(TINY, 0)
    monkeypatch.setattr(trunk, "TrunkStore", Gone)
    expect_same(fit(TINY, 0, tmp_path / "trunk"), without)
    assert "was deleted just now: the epoch goes on without" in said()


# ------------------------------------------------------------------------------------------ the run goes on without


@pytest.mark.parametrize("keep", [(), (1, 2)])
def test_on_a_full_disk_the_run_goes_on_without(
    keep: Sequence[int], fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    without = fit(TINY, 0)
    monkeypatch.setattr(store, "write_bytes", full)
    expect_same(fit(TINY, 0, tmp_path / "trunk", keep=keep), without)
    (line,) = [line for line in said().splitlines() if "not stored" in line]
    assert line.endswith(
        f"not stored in {tmp_path / 'trunk'}: [Errno 28] No space left on device. The run goes on without."
    )


def test_where_the_disk_is_full_after_training_images_later_epochs_show_their_own_views(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    """The training part of the first epoch is stored, then the validation part finds no room."""
    left = 1
    write = store.write_bytes

    def soon_full(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        write(*arguments)

    without = fit(TINY, 0)
    monkeypatch.setattr(store, "write_bytes", soon_full)
    stored = fit(TINY, 0, tmp_path / "trunk")
    expect_same(stored, without)
    in_vain = (manifest["split"] == "val").sum()
    assert stored.passes == every_time(manifest) + in_vain, "what was stored by then is used"
    assert said().count("not stored") == 1


def test_on_a_full_disk_what_is_stored_is_used(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fit(TINY, 0, tmp_path / "trunk", epochs=1)
    monkeypatch.setattr(store, "write_bytes", full)
    parts = manifest["split"].value_counts()
    # The view of the second epoch is one pass in vain, and one instead.
    assert fit(TINY, 0, tmp_path / "trunk", epochs=2).passes == 2 * parts["train"]
    expect_same(fit(TINY, 0, tmp_path / "trunk"), fit(TINY, 0))


def test_an_engine_that_could_not_be_built_is_tried_again(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setitem(engines._BUILDERS, "compile", broken)
    fit(TINY, 0, tmp_path / "trunk", "compile")
    assert not list(tmp_path.glob("trunk/*/instead.json"))
    monkeypatch.setitem(engines._BUILDERS, "compile", engines._BUILDERS["eager"])
    made = fit(TINY, 0, tmp_path / "trunk", "compile")
    assert said().count("is not used") == 1
    assert made.passes > 0, "the rows of eager are not taken for those of the engine that was asked for"


def test_what_other_jobs_need_does_not_decide_the_engine(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    def wrong_in_the_end(module: torch.nn.Module, *_: Any) -> Callable[[Tensor], list[Tensor]]:
        return lambda images: [2 * rows if rows.shape[-1] == 1 else rows for rows in module(images)]

    alone = fit(TINY, 2, tmp_path / "alone")
    monkeypatch.setitem(engines._BUILDERS, "compile", wrong_in_the_end)
    expect_same(fit(TINY, 2, tmp_path / "trunk", "compile", keep=(0,)), alone)
    assert "is not used" not in said()
    (folder,) = {pack.parent for pack in packs(tmp_path / "trunk")}
    kept = trunk_of(backbone_of(TINY, 2), engine="compile").identity(STAGES - 2)
    assert folder == TrunkStore(tmp_path / "trunk", kept, 1).folder


def test_without_a_usable_index_the_run_goes_on_without(fit: Fit, tmp_path: Path, said: Callable[[], str]) -> None:
    without = fit(TINY, 0, tmp_path / "trunk")
    (index,) = tmp_path.glob("trunk/*/index.sqlite")
    index.write_bytes(b"no database" * 1000)
    expect_same(fit(TINY, 0, tmp_path / "trunk"), without)
    (line,) = [line for line in said().splitlines() if "not stored" in line]
    assert line.endswith("file is not a database. The run goes on without.")


@pytest.mark.parametrize("root", [True, False], ids=["stored", "not stored"])
def test_an_engine_that_fails_its_check_is_replaced_and_that_is_said_once(
    root: bool,
    fit: Fit,
    manifest: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    computed: list[int],
    said: Callable[[], str],
) -> None:
    def wrong(module: torch.nn.Module, *_: Any) -> Callable[[Tensor], list[Tensor]]:
        return lambda images: [output.flip(0) for output in module(images)]

    monkeypatch.setitem(engines._BUILDERS, "compile", wrong)
    folder = tmp_path / "trunk" if root else None
    expect_same(fit(TINY, 0, folder, "compile"), fit(TINY, 0, engine=None))
    assert said().count("compile in float32 is not used, but eager in float32: ") == 1
    assert sum(computed) == (once(manifest) if root else every_time(manifest))
    if folder is None:
        return
    (pack_folder,) = {pack.parent for pack in packs(folder)}
    assert pack_folder == TrunkStore(folder, trunk_of(backbone_of()).identity(STAGES), 1).folder
    assert fit(TINY, 0, folder).passes == 0, "they are those of eager PyTorch"
    computed.clear()
    fit(TINY, 0, folder, "compile")
    assert computed == [], "and are found by whoever hopes for that engine again"
    assert said().count("is not used") == 1


def test_images_are_read_while_those_before_them_are_computed() -> None:
    read = threading.Event()

    def batches() -> Iterator[int]:
        yield 0
        read.set()
        yield 1
        raise UserError("unreadable")

    ahead = trunk._one_ahead(batches())
    assert next(ahead) == 0
    assert read.wait(10), "without being asked for the second"
    assert next(ahead) == 1
    with pytest.raises(UserError, match="unreadable"):
        next(ahead)


# --------------------------------------------------------------------------------------------- several processes


@pytest.mark.parametrize("number", [None, 3])
def test_a_pass_has_threads_of_its_own(
    number: int | None, manifest: pd.DataFrame, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job beside others: it has a core of its own, and all of them for a pass, for which the others wait."""
    seen = []
    build, compute = trunk.build_engine, Trunk.compute

    def building(*arguments: Any, **options: Any) -> Engine:
        seen.append(torch.get_num_threads())
        return build(*arguments, **options)

    def computing(self: Trunk, images: Tensor) -> list[Tensor]:
        seen.append(torch.get_num_threads())
        return compute(self, images)

    monkeypatch.setattr(trunk, "build_engine", building)
    monkeypatch.setattr(Trunk, "compute", computing)
    made = trunk_of(backbone_of())
    provider = StoredTrunk(made, tmp_path, 1, EPOCHS, show=False, threads=number)
    with engines.threads(2):
        assert provider.rows(data_of(manifest, faces, made.backbone), "val", 0) is not None
        assert torch.get_num_threads() == 2
    assert len(seen) > 1
    assert set(seen) == {number or 2}


class Threads(L.Callback):
    """Notes on how many the steps are taken."""

    def __init__(self) -> None:
        self.counts: set[int] = set()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.counts.add(torch.get_num_threads())


@pytest.mark.parametrize(("unfreeze", "expected"), [(0, {1}), (1, {2})])
def test_of_stored_rows_a_classifier_alone_trains_on_one_thread(
    unfreeze: int, expected: set[int], fit: Fit, tmp_path: Path
) -> None:
    watch = Threads()
    with engines.threads(2):
        fit(TINY, unfreeze, tmp_path / "trunk", callback=watch, epochs=1)
        assert torch.get_num_threads() == 2
    assert watch.counts == expected


@pytest.mark.slow
@pytest.mark.parametrize("unfreeze", [(0, 0), (0, 1)])
def test_of_two_processes_that_need_the_same_rows_one_computes_them(
    unfreeze: tuple[int, int], manifest: pd.DataFrame, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two jobs of a sweep do, each of which keeps what the other needs."""
    context = multiprocessing.get_context("fork")
    passed = context.SimpleQueue()
    begun, opened = context.Event(), context.Event()
    compute = Trunk.compute

    def counted(self: Trunk, images: Tensor) -> list[Tensor]:
        begun.set()
        assert opened.wait(60)
        passed.put(len(images))
        return compute(self, images)

    monkeypatch.setattr(Trunk, "compute", counted)

    def need(unfreeze: int) -> None:
        backbone = backbone_of(TINY, unfreeze)
        provider = StoredTrunk(trunk_of(backbone, (0, 1)), tmp_path, 1, EPOCHS, show=False)
        rows = provider.rows(data_of(manifest, faces, backbone), "train", 0)
        assert rows is not None
        assert len(rows.missing) == 0

    first, second = (context.Process(target=need, args=[n]) for n in unfreeze)
    first.start()
    assert begun.wait(60)
    second.start()  # while the first computes
    second.join(1)
    assert second.is_alive(), "it waits"
    opened.set()
    for process in (first, second):
        process.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    count = 0
    while not passed.empty():
        count += passed.get()
    assert count == len(manifest), "all parts, now that there is an engine"


# ------------------------------------------------------------------------------------------------- the trunk


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [TINY, "test_vit"])
def test_what_a_row_takes_is_told_before_one_is_made(name: str, precision: str) -> None:
    made = trunk_of(backbone_of(name, 1), (0, 1, 3), precision=precision)
    outputs = made.compute(torch.randn(2, 3, SIZE, SIZE))
    taken = {d: store.to_numpy(output[:1]).nbytes for d, output in zip(made.depths, outputs, strict=True)}
    assert made.row_bytes() == taken


def test_a_trunk_gives_what_stands_at_its_depths() -> None:
    backbone = backbone_of(TINY, 2)
    made = trunk_of(backbone, (0, 1, 3))
    assert made.depths == [2, 3, 4, 5]
    images = torch.randn(4, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    expected = backbone.eval().trunk(images, made.depths)
    # Training goes on: others need what stood after these stages before it.
    backbone.train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    for found, right in zip(made.compute(images), expected, strict=True):
        assert torch.equal(found, right)
    assert torch.equal(made(images), expected[1]), "its own"
    made.for_itself()
    (alone,) = made.compute(images)
    assert torch.equal(alone, expected[1])


@pytest.mark.parametrize(
    ("name", "unfreeze", "can"),
    [
        (TINY, 0, True),
        (TINY, 2, True),
        (TINY, STAGES, False),
        (TINY, "all", False),
        ("ghostnet_100", 0, True),
        ("ghostnet_100", 1, False),  # known by its parameter groups, it runs as a whole
    ],
)
def test_what_can_be_stored(name: str, unfreeze: int | str, can: bool) -> None:
    assert storable(backbone_of(name, unfreeze)) is can


# ------------------------------------------------------------------------------------------------- its names


def test_whatever_decides_the_rows_decides_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of()
    other_weights = build_backbone(TINY, "none", SIZE)  # drawn after, so others
    other_statistics = build_backbone(TINY, "none", SIZE)
    other_statistics.network.load_state_dict(backbone.network.state_dict())
    other_statistics.network.get_buffer("bn1.running_mean").add_(1)
    other_input = build_backbone(TINY, "none", 64)
    other_input.network.load_state_dict(backbone.network.state_dict())
    for other in (other_weights, other_statistics, other_input):
        freeze(other, 0)
    monkeypatch.setattr(engines, "_missing", lambda name: [])
    graphics_card = Trunk(backbone, (), "eager", "float32", torch.device("cuda"))
    identities = [
        trunk_of(backbone).identity(STAGES),
        *(trunk_of(other).identity(STAGES) for other in (other_weights, other_statistics, other_input)),
        trunk_of(backbone, precision="bfloat16").identity(STAGES),
        trunk_of(backbone, engine="openvino").identity(STAGES),
        trunk_of(backbone, keep=[1]).identity(STAGES - 1),
        graphics_card.identity(STAGES),
    ]
    assert len({store.digest(identity) for identity in identities}) == len(identities)


def test_what_does_not_decide_the_rows_does_not_decide_where_they_lie() -> None:
    backbone = backbone_of(TINY, 1)
    before = trunk_of(backbone).identity(STAGES - 1)
    assert trunk_of(backbone_of(TINY, 0), keep=(1, 2)).identity(STAGES - 1) == before
    with torch.no_grad():
        backbone.network.get_classifier().weight.add_(1)  # type: ignore[operator]
        backbone.network.get_parameter("layer4.0.conv1.weight").add_(1)  # above what is stored
    assert trunk_of(backbone).identity(STAGES - 1) == before


# ------------------------------------------------------------------------------------------------- the estimate


def estimate(data: FaceDataModule, made: Trunk, folder: Path, max_gb: float) -> bool:
    return StoredTrunk(made, folder, max_gb, EPOCHS, show=False).fits(data)


@pytest.mark.parametrize("keep", [(), (1, 2)])
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
    keep: Sequence[int],
) -> None:
    made = trunk_of(backbone_of(), keep)
    data = data_of(manifest, faces, made.backbone, how, views=turns)
    row = sum(output.nbytes for output in made.compute(torch.zeros(1, 3, SIZE, SIZE)))
    size = row * once(manifest, views)
    assert estimate(data, made, tmp_path, max_gb=(size + 1) / 1e9)
    assert f"computed once for each image and view, at most {size / 1e9:.2f} GB, 0% of it there\n" in said()
    assert not estimate(data, made, tmp_path, max_gb=size / 1e9)
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

    made = trunk_of(backbone_of())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    assert not estimate(data_of(manifest, faces, made.backbone), made, tmp_path, max_gb=1)
    assert "(0.0 GB free), so not stored" in said()


def test_what_nothing_needs_any_more_makes_room_on_a_small_disk(
    fit: Fit, manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(TINY, 2, tmp_path)  # whose rows are larger than those that come now
    stored = {pack: pack.stat().st_size for pack in packs(tmp_path)}
    capacity = sum(stored.values())

    class Usage:
        @property
        def free(self) -> int:
            return capacity - sum(pack.stat().st_size for pack in packs(tmp_path))

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage())
    assert fit(TINY, 0, tmp_path).passes == once(manifest)
    assert not stored.keys() <= set(packs(tmp_path)), "some of them went"


def test_a_small_disk_is_enough_for_what_is_there(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    class Usage:
        free = 1000

    fit(TINY, 0, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    assert fit(TINY, 0, tmp_path).passes == 0
    assert "100% of it there\n" in said()
