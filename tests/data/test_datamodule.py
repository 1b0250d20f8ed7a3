"""The same batches to the bit whatever loads them; training images augmented, the others as they are."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from deepfake.data import datamodule
from deepfake.data.augment import Augmentation, augment, crop_place
from deepfake.data.datamodule import EpochSampler, FaceDataModule, collate, normalise
from deepfake.data.prepared import Preparation
from deepfake.errors import UserError
from deepfake.inputs import InputSpec

SPEC = InputSpec(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
BATCH = 5  # leaves an incomplete batch in every part


@pytest.fixture(scope="module")
def manifest(faces: Path) -> pd.DataFrame:
    """Six images of each source to train on, three to validate, three to test; and one that cannot be read."""
    rows = []
    for folder in sorted(faces.iterdir()):
        for number, path in enumerate(sorted(folder.iterdir())):
            part = ("train", "train", "val", "test")[number % 4]
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            rows.append((f"{folder.name}/{path.name}", int(folder.name[0]), folder.name, content, 48, 40, part))
    rows.append(("1-gan/damaged.png", 1, "1-gan", "", 0, 0, ""))
    return pd.DataFrame(rows, columns=["path", "label", "source", "sha256", "width", "height", "split"])


@pytest.fixture
def module(faces: Path, manifest: pd.DataFrame) -> Callable[..., FaceDataModule]:
    def module(root: Path = faces, how: Augmentation = STUDY, **options) -> FaceDataModule:
        return FaceDataModule(manifest, root, SPEC, how, **{"batch_size": BATCH, **options})

    return module


def epoch(loader: Iterable, number: int) -> list[dict[str, Tensor]]:
    """All batches of an epoch, as Lightning asks for them."""
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(loader)


def assert_equal(batches: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def images(batches: list[dict[str, Tensor]]) -> dict[int, np.ndarray]:
    """{index: pixels}."""
    return {int(i): x for batch in batches for i, x in zip(batch["index"], batch["image"].numpy(), strict=True)}


def read(path: Path) -> np.ndarray:
    """An image as the network gets it, by Pillow alone: uint8 (3, size, size)."""
    small = Image.open(path).convert("RGB").resize((SPEC.size, SPEC.size), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------ the same every time


CROP = Preparation("crop")
PREPARATIONS = pytest.mark.parametrize(
    "preparation", [Preparation(), CROP, Preparation("crop", equalise=30)], ids=["resize", "crop", "equalise"]
)


@pytest.mark.slow
@PREPARATIONS
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_batches_do_not_depend_on_the_number_of_workers(
    module, tmp_path, preparation: Preparation, workers: int, cached: bool
) -> None:
    several = module(workers=workers, preparation=preparation, cache=tmp_path if cached else None)
    several.prepare(several.unprepared())
    alone, loader = module(preparation=preparation).train_dataloader(), several.train_dataloader()
    assert loader.num_workers == workers
    for number in (0, 1, 5):
        assert_equal(epoch(loader, number), epoch(alone, number))


def test_loading_takes_no_random_number_of_the_network(module) -> None:
    before = torch.get_rng_state()
    epoch(module().train_dataloader(), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_can_be_repeated_without_those_before_it(module) -> None:
    loader = module().train_dataloader()
    epoch(loader, 0)
    assert_equal(epoch(loader, 3), epoch(module().train_dataloader(), 3))


def test_pixels_do_not_depend_on_the_batch_size(module) -> None:
    small, large = (images(epoch(module(batch_size=n).train_dataloader(), 1)) for n in (3, 100))
    assert small.keys() == large.keys()
    assert all(np.array_equal(small[index], large[index]) for index in small)


@PREPARATIONS
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_cache_does_not_change_a_pixel(module, tmp_path: Path, preparation: Preparation, part: str) -> None:
    stored = module(cache=tmp_path, preparation=preparation)
    stored.prepare(stored.unprepared())
    loaders = [getattr(data, f"{part}_dataloader")() for data in (stored, module(preparation=preparation))]
    assert_equal(*(epoch(loader, 2) for loader in loaders))


def test_another_seed_gives_another_order_of_the_same_views(module) -> None:
    zero, one = (epoch(module(seed=seed).train_dataloader(), 0) for seed in (0, 1))
    assert [b["index"].tolist() for b in zero] != [b["index"].tolist() for b in one]
    assert all(np.array_equal(images(zero)[index], pixels) for index, pixels in images(one).items())


@pytest.mark.parametrize("preparation", [Preparation(), CROP], ids=["resize", "crop"])
def test_another_view_seed_gives_other_views_in_the_same_order(module, preparation: Preparation) -> None:
    options = {"preparation": preparation, "how": Augmentation() if preparation == CROP else STUDY}
    zero, one = (epoch(module(view_seed=seed, **options).train_dataloader(), 0) for seed in (0, 1))
    assert [b["index"].tolist() for b in zero] == [b["index"].tolist() for b in one]
    assert any(not np.array_equal(images(zero)[index], pixels) for index, pixels in images(one).items())


# -------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_every_image_comes_once_an_epoch_and_the_last_batch_is_kept(module, part: str) -> None:
    data = module()
    batches = epoch(getattr(data, f"{part}_dataloader")(), 0)
    total = len(data.rows(part))
    assert total % BATCH
    assert [len(batch["label"]) for batch in batches] == [BATCH] * (total // BATCH) + [total % BATCH]
    indices = torch.cat([batch["index"] for batch in batches])
    assert sorted(indices.tolist()) == list(range(total))
    assert torch.cat([b["label"] for b in batches]).tolist() == data.rows(part)["label"].iloc[indices].tolist()


def test_training_is_shuffled_anew_every_epoch_and_the_rest_is_not() -> None:
    sampler = EpochSampler(30, seed=0, shuffle=True)
    orders = []
    for number in (0, 1):
        sampler.set_epoch(number)
        items = list(sampler)
        assert {view for view, _ in items} == {number}
        orders.append([index for _, index in items])
    assert orders[0] != orders[1]
    assert orders[0] != list(range(30))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert list(EpochSampler(4, seed=0, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert len(sampler) == 30


def test_views_come_in_turn_in_an_order_of_their_own() -> None:
    sampler = EpochSampler(30, seed=0, shuffle=True, views=2)
    orders = []
    for number in range(4):
        sampler.set_epoch(number)
        items = list(sampler)
        assert {view for view, _ in items} == {number % 2}
        orders.append([index for _, index in items])
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("how", [STUDY, Augmentation()], ids=["study", "crop alone"])
def test_views_in_turn_are_the_first_ones(module, how: Augmentation) -> None:
    preparation = CROP if how == Augmentation() else Preparation()
    loader = module(how=how, preparation=preparation, views=2).train_dataloader()
    all_views = module(how=how, preparation=preparation)
    for number in (1, 2, 3):
        turn, first = images(epoch(loader, number)), images(epoch(all_views.train_dataloader(), number % 2))
        assert all(np.array_equal(turn[index], pixels) for index, pixels in first.items())
        assert module(views=2).view(number) == number % 2
        assert module().view(number) == number


def test_order_comes_from_seed_and_epoch_alone() -> None:
    def order(seed: int, number: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(30, seed, shuffle=True)
        sampler.set_epoch(number)
        return list(sampler)

    first = order(0, 1)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - global state must not matter
    assert order(0, 1) == first
    assert [index for _, index in order(1, 1)] != [index for _, index in first]


class Probe(L.LightningModule):
    """Keeps what Lightning hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.images: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen[-1] += batch["index"].tolist()
        self.images.append(batch["image"])
        return self.weight * batch["image"].mean()


def test_lightning_sets_the_epoch_and_normalises(module, tmp_path: Path) -> None:
    data, probe = module(), Probe()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    for number in (0, 1):
        expected = epoch(module().train_dataloader(), number)
        assert probe.seen[number] == torch.cat([b["index"] for b in expected]).tolist()
    last = epoch(module().train_dataloader(), 1)[-1]["image"]
    assert torch.equal(probe.images[-1], normalise(last, SPEC))


# ------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("part", ["val", "test"])
def test_validation_and_test_images_are_clean_in_every_epoch(module, faces: Path, part: str) -> None:
    data = module()
    loader = getattr(data, f"{part}_dataloader")()
    for number in (0, 3):
        found = images(epoch(loader, number))
        for index, path in enumerate(data.rows(part)["path"]):
            assert np.array_equal(found[index], read(faces / path))


def test_training_images_are_augmented_as_of_the_epoch(module, faces: Path) -> None:
    data = module(view_seed=4)
    for number in (0, 1):
        found = images(epoch(data.train_dataloader(), number))
        for index, row in data.rows("train").iterrows():
            clean = np.ascontiguousarray(read(faces / row["path"]).transpose(1, 2, 0))
            view = augment(clean, STUDY, 4, row["sha256"], number)
            assert np.array_equal(found[index], view.transpose(2, 0, 1))
    assert any(not np.array_equal(found[i], read(faces / p)) for i, p in enumerate(data.rows("train")["path"]))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("preparation", [Preparation(), CROP], ids=["resize", "crop"])
def test_batches_are_augmented_where_they_are_normalised(module, preparation: Preparation, workers: int) -> None:
    """Flip and brightness, which come out the same to the byte, show that each image has its own numbers."""
    options = {"how": Augmentation(flip=0.5, brightness=0.2), "preparation": preparation, "view_seed": 4}
    later, at_once = module(device_augment=True, workers=workers, **options), module(**options)
    for number in (0, 1):
        batches = epoch(later.train_dataloader(), number), epoch(at_once.train_dataloader(), number)
        assert any(not torch.equal(raw["image"], done["image"]) for raw, done in zip(*batches, strict=True))
        for raw, done in zip(*batches, strict=True):
            found, expected = (of.on_after_batch_transfer(b, 0) for of, b in ((later, raw), (at_once, done)))
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_provided_is_augmented_as_what_is_loaded(module) -> None:
    data = module(device_augment=True)
    loaded = {
        int(index): image
        for batch in epoch(data.train_dataloader(), 2)
        for index, image in zip(batch["index"], data.normalised(batch), strict=True)
    }
    for batch in data.image_batches("train", 2, [0, 3, 4, 8, 9, 10, 11]):
        for index, image in zip(batch["index"], data.normalised(batch), strict=True):
            assert torch.equal(image, loaded[int(index)])


@pytest.mark.parametrize("part", ["val", "test"])
def test_validation_and_test_images_are_augmented_nowhere(module, part: str) -> None:
    batches = [epoch(getattr(module(device_augment=on), f"{part}_dataloader")(), 1) for on in (False, True)]
    assert_equal(*batches)


def test_no_augmentation_leaves_training_images_clean(module, faces: Path) -> None:
    data = module(how=Augmentation())
    found = images(epoch(data.train_dataloader(), 1))
    for index, path in enumerate(data.rows("train")["path"]):
        assert np.array_equal(found[index], read(faces / path))


@pytest.mark.parametrize("how", [STUDY, Augmentation()], ids=["study", "none"])
def test_training_images_are_cropped_at_random_before_they_are_augmented(module, faces: Path, how) -> None:
    data = module(view_seed=4, how=how, preparation=CROP)
    for number in (0, 1):
        found = images(epoch(data.train_dataloader(), number))
        for index, row in data.rows("train").iterrows():
            whole = np.asarray(Image.open(faces / row["path"]).convert("RGB"))
            down, right = crop_place(4, row["sha256"], number)
            top, left = int(down * 25), int(right * 33)  # of 40 x 48 pixels
            view = augment(whole[top : top + 16, left : left + 16], how, 4, row["sha256"], number)
            assert np.array_equal(found[index], view.transpose(2, 0, 1))


@pytest.mark.parametrize("part", ["val", "test"])
def test_validation_and_test_images_are_cropped_in_the_middle(module, faces: Path, part: str) -> None:
    data = module(preparation=CROP)
    found = images(epoch(getattr(data, f"{part}_dataloader")(), 3))
    for index, path in enumerate(data.rows(part)["path"]):
        whole = np.asarray(Image.open(faces / path).convert("RGB"))
        assert np.array_equal(found[index], whole[12:28, 16:32].transpose(2, 0, 1))


def test_parts_share_no_image(module, manifest: pd.DataFrame) -> None:
    paths = [path for part in ("train", "val", "test") for path in module().rows(part)["path"]]
    assert sorted(paths) == sorted(manifest.loc[manifest["split"] != "", "path"])


def test_a_batch_holds_bytes_in_the_order_of_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    batch = collate([(pixels[0], 1, 7), (pixels[1], 0, 3)])
    assert batch["image"].dtype == torch.uint8
    assert np.array_equal(batch["image"].numpy(), pixels.transpose(0, 3, 1, 2))
    assert (batch["label"].tolist(), batch["index"].tolist()) == ([1, 0], [7, 3])
    assert batch["label"].dtype == batch["index"].dtype == torch.int64


def test_normalisation_equals_torchvisions() -> None:
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(SPEC.mean, SPEC.std)])
    found = normalise(batch, SPEC)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(batch), atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------- rows provided in place of images


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["train", "val"])
def test_chosen_images_come_in_their_order_as_of_one_view(module, part: str, workers: int) -> None:
    places = [0, 3, 4, 8, 9, 10, 11]
    batches = list(module(workers=workers).image_batches(part, 2, places))
    assert [b["index"].tolist() for b in batches] == [places[:BATCH], places[BATCH:]]
    expected = images(epoch(getattr(module(), f"{part}_dataloader")(), 2))
    assert all(np.array_equal(pixels, expected[index]) for index, pixels in images(batches).items())


def test_a_views_key_holds_all_that_decides_its_pixels(module) -> None:
    keys = [
        module().view_key("train", 0),
        module().view_key("train", 1),
        module(view_seed=1).view_key("train", 0),
        module(how=Augmentation(flip=0.5)).view_key("train", 0),
        module(device_augment=True).view_key("train", 0),
        module().view_key("val", 0),
        module(preparation=Preparation(equalise=30)).view_key("val", 0),
        module(preparation=CROP).view_key("val", 0),
        module(preparation=CROP).view_key("train", 0),
        module(preparation=CROP, how=Augmentation()).view_key("train", 0),
        module(preparation=CROP, how=Augmentation()).view_key("train", 1),
        module(preparation=CROP, how=Augmentation(), view_seed=1).view_key("train", 0),
    ]
    assert len({json.dumps(key) for key in keys}) == len(keys)


def test_views_that_are_the_same_have_one_key(module) -> None:
    plain = Augmentation()
    assert module().view_key("val", 0) == module(view_seed=1).view_key("test", 3)
    assert module().view_key("val", 0) == module(how=plain, view_seed=2).view_key("train", 3)
    assert module().view_key("train", 1) == module(seed=1).view_key("train", 1)
    assert module(preparation=CROP).view_key("val", 0) == module(preparation=CROP, how=plain).view_key("test", 3)
    assert module(device_augment=True).view_key("val", 0) == module().view_key("val", 0)
    options = {"preparation": CROP, "how": plain}
    assert module(device_augment=True, **options).view_key("train", 1) == module(**options).view_key("train", 1)


@pytest.mark.parametrize("workers", [0, 2])  # for images alone: rows are handed out by this process
@pytest.mark.parametrize("pieces", [2, 3])
def test_provided_rows_come_in_place_of_the_images_in_pieces_of_whole_steps(
    module, monkeypatch: pytest.MonkeyPatch, workers: int, pieces: int
) -> None:
    data = module(workers=workers, step=2 * BATCH)
    rows = np.random.default_rng(0).normal(size=(len(data.rows("train")), 7)).astype(np.float32)
    monkeypatch.setattr(datamodule, "_PIECE_BYTES", 5 * BATCH * rows[0].nbytes if pieces == 2 else 1)
    data.provider = lambda of, part, epoch: rows if (of, part, epoch) == (data, "train", 0) else None
    loader, plain = data.train_dataloader(), epoch(module().train_dataloader(), 0)
    batches = list(loader)
    assert len(batches) == len(loader) == pieces
    assert [len(batch["label"]) for batch in batches] == ([20, 4] if pieces == 2 else [10, 10, 4])
    for name in ("index", "label"):
        assert torch.equal(*(torch.cat([batch[name] for batch in those]) for those in (batches, plain)))
    for batch in batches:
        assert batch.keys() == {"features", "label", "index"}
        assert np.array_equal(batch["features"].numpy(), rows[batch["index"]])
        assert data.on_after_batch_transfer(batch, 0) is batch


def test_where_none_are_provided_images_come(module) -> None:
    data = module()
    data.provider = lambda of, part, epoch: None
    assert_equal(epoch(data.train_dataloader(), 2), epoch(module().train_dataloader(), 2))


# ------------------------------------------------------------------------------------- prepared before training


def test_what_was_prepared_needs_no_original(own: Path, module, tmp_path: Path) -> None:
    expected = epoch(module().train_dataloader(), 1)
    data = module(root=own, cache=tmp_path / "cache")
    rows, calls = data.unprepared(), []
    assert sorted(rows["split"].unique()) == ["test", "train", "val"]
    assert len(rows) == 48
    assert data.prepare(rows, lambda: calls.append(None)).empty
    assert len(calls) == 48
    shutil.rmtree(own)
    again = module(root=own, cache=tmp_path / "cache")
    assert again.unprepared().empty
    assert again.prepare(again.unprepared()).empty
    assert_equal(epoch(again.train_dataloader(), 1), expected)
    for part in ("val", "test"):
        assert len(images(epoch(getattr(again, f"{part}_dataloader")(), 0))) == 12


def test_an_interrupted_preparation_goes_on_where_it_stopped(module, manifest, tmp_path: Path) -> None:
    first = module(cache=tmp_path)
    first.prepare(first.unprepared().iloc[:20])
    assert module(cache=tmp_path).unprepared()["path"].tolist() == manifest["path"][20:48].tolist()


def test_without_a_cache_only_what_may_fail_is_looked_at(module) -> None:
    assert module().unprepared().empty
    assert module(preparation=CROP).unprepared().empty
    assert len(module(preparation=Preparation(equalise=30)).unprepared()) == 48


@pytest.mark.parametrize("cached", [True, False])
def test_images_that_cannot_be_prepared_are_listed_with_the_reason(own: Path, module, tmp_path, cached: bool) -> None:
    data = module(root=own, preparation=Preparation(equalise=41), cache=tmp_path / "cache" if cached else None)
    failed = data.prepare(data.unprepared())
    assert failed["path"].tolist() == data.unprepared()["path"].tolist()
    assert failed["reason"].unique().tolist() == ["48 x 40 pixels, too small to be equalised to 41 x 41"]


def test_a_file_that_went_away_is_listed(own: Path, module, tmp_path: Path) -> None:
    data = module(root=own, cache=tmp_path / "cache")
    (own / "0-phone" / "03.jpg").unlink()
    (failed,) = data.prepare(data.unprepared()).itertuples(index=False)
    assert failed == ("0-phone/03.jpg", "cannot be read: No such file or directory")


def test_a_limited_cache_stores_training_images_first_and_changes_no_pixel(module, tmp_path: Path) -> None:
    file = 128 + 16 * 16 * 3
    data = module(cache=tmp_path, cache_gb=30 * file / 1e9)
    calls: list[None] = []
    assert data.prepare(data.unprepared(), lambda: calls.append(None)).empty
    assert len(calls) == 48
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) == 30 * file
    assert data.unprepared()["split"].value_counts().to_dict() == {"test": 12, "val": 6}
    for part in ("train", "val", "test"):
        loaders = [getattr(each, f"{part}_dataloader")() for each in (data, module())]
        assert_equal(*(epoch(loader, 0) for loader in loaders))


def test_a_full_disk_costs_speed_and_one_warning(module, tmp_path: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(logging.getLogger("deepfake"), "propagate", True)
    data = module(cache=tmp_path)
    assert data.prepare(data.unprepared()).empty
    (record,) = caplog.records
    assert "48 images could not be stored" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert_equal(epoch(data.val_dataloader(), 0), epoch(module().val_dataloader(), 0))


# -------------------------------------------------------------------------------------------- files that change


@pytest.fixture
def own(faces: Path, tmp_path: Path) -> Path:
    """A copy of the faces that a test may change."""
    return Path(shutil.copytree(faces, tmp_path / "own\nfaces"))


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["same process", "other processes"]
)
@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_file_that_changed_is_named_in_one_line(own: Path, module, change: str, workers: int) -> None:
    data = module(root=own, workers=workers)
    path = own / data.rows("val")["path"].iloc[3]
    if change == "gone":
        path.unlink()
        reason = "cannot be read: No such file or directory"
    else:
        shutil.copy(own / data.rows("train")["path"].iloc[0], path)
        reason = "has changed since it was catalogued"
    loader = data.val_dataloader()
    with pytest.raises(UserError) as caught:
        list(loader)
    if workers:
        loader._iterator._shutdown_workers()  # as Lightning does; the error's stack trace keeps them waiting
    assert str(caught.value) == (
        f"{str(path)!r} was readable when the run began and is not any more: {reason}. Put it back, or start again."
    )
    assert len(str(caught.value).splitlines()) == 1
