"""Batches of faces for Lightning: training images augmented, validation and test images clean."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deepfake.console import log
from deepfake.data.augment import Augmentation, augment, crop_place, drawn, random_for
from deepfake.data.device_augment import augment_batch
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.errors import UserError
from deepfake.inputs import InputSpec
from deepfake.ranks import Ranks

PARTS = ("train", "val", "test")
_PIECE_BYTES = 64e6  # of stored rows handed out at a time
_VIEWS = 1  # raise it when augmentation or random crops give other pixels of the same numbers
_LAST_SECONDS = 10  # that a loader process goes on for when it is told to end
_BLOCK = 1024  # images handed to the threads at a time, so that the list of those waiting stays short


class Rows(Protocol):
    """One row for each image of a part, in memory or not: an array, or what can be asked like one."""

    def __getitem__(self, places: np.ndarray, /) -> np.ndarray:
        """A copy of the rows at these places, int (n,): (n, ...)."""


class Faces(Dataset):
    """One part of the manifest; an item is asked for by (view, index), so that it depends on nothing else.

    Args:
        rows: of the part.
        root: what their paths are below.
        images: where they are read.
        how: augmentation; None where images are shown as they are.
        seed: of crops and augmentation.
        device_augment: whether images are augmented later, in batches: then an item has what is drawn for it instead.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        root: Path,
        images: PreparedImages,
        how: Augmentation | None,
        seed: int,
        device_augment: bool = False,
    ) -> None:
        self.root, self.paths = root, rows["path"].tolist()
        self.sha256 = rows["sha256"].tolist()
        self.labels = rows["label"].tolist()
        self.images, self.how, self.seed, self.device_augment = images, how, seed, device_augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, ...]:
        """Pixels uint8 (size, size, 3), label, index; where they are augmented later, what `drawn` gives."""
        view, index = item
        # Training images alone are augmented, and cropped at random.
        random_crop = self.how is not None and self.images.preparation.mode == "crop"
        place = crop_place(self.seed, self.sha256[index], view) if random_crop else None
        try:
            pixels = self.images.read(self.root / self.paths[index], self.sha256[index], place)
        except UnreadableImage as error:
            raise UserError(
                f"{str(self.root / self.paths[index])!r} was readable when the run began and is not any more: "
                f"{error}. Put it back, or start again."
            ) from error
        if self.how is None:
            return pixels, self.labels[index], index
        if self.device_augment:
            return pixels, self.labels[index], index, drawn(self.seed, self.sha256[index], view)
        return augment(pixels, self.how, self.seed, self.sha256[index], view), self.labels[index], index


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (view, index) in an order that depends on (seed, epoch) alone; Lightning calls `set_epoch`.

    Args:
        length: images.
        seed: of the order.
        shuffle: whether there is another order each epoch, or none.
        views: how many there are of each image, shown one an epoch, in turn; None: another each epoch.
        begun: an epoch, and how many of its first images are left out, for they have had their turn.
        batch_size: images of a batch, of which each rank has a share.
        ranks: that train together; alone, a share is all.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        shuffle: bool,
        views: int | None = None,
        begun: tuple[int, int] = (0, 0),
        batch_size: int = 1,
        ranks: Ranks = Ranks(),  # noqa: B008 - alone
    ) -> None:
        self.length, self.seed, self.shuffle, self.views, self.epoch = length, seed, shuffle, views, 0
        self.begun, self.batch_size, self.ranks = begun, batch_size, ranks

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.length - self._left_out, self.batch_size)
        return full * self.ranks.share(self.batch_size) + self.ranks.share(rest)

    def order(self) -> np.ndarray:
        """Indices of the images, int (n,), in the order of the epoch."""
        if self.shuffle:
            return random_for("order", self.seed, self.epoch).permutation(self.length)[self._left_out :]
        return np.arange(self._left_out, self.length)

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every batch of the epoch's order this rank's share: every so many-th image.

        All ranks have equally many. Where a batch cannot be parted evenly, its first image fills up, and is not to be
        counted.

        Returns:
            The images, int (n,), and of each how many there are in its whole batch, 0 where it is not to be counted.
        """
        rank, order = self.ranks.rank, self.order()
        images, sizes = [order[:0]], [order[:0]]
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            own = batch[rank :: self.ranks.world]
            lacking = self.ranks.share(len(batch)) - len(own)
            images += [own, batch[:lacking]]
            sizes += [np.full(len(own), len(batch)), np.zeros(lacking, int)]
        return np.concatenate(images), np.concatenate(sizes)

    @property
    def _left_out(self) -> int:
        return self.begun[1] if self.epoch == self.begun[0] else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        view = view_of(self.epoch, self.views)
        return ((view, int(index)) for index in self.shares()[0])


def view_of(epoch: int, views: int | None) -> int:
    """Number of the view of every training image that an epoch shows; see `EpochSampler`."""
    return epoch if views is None else epoch % views


class _Loader(DataLoader):
    """Batches of images by as many processes as asked for."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        if not (isinstance(self.sampler, EpochSampler) and self.sampler.ranks.world > 1):
            yield from self._loaded()
            return
        start, sizes = 0, torch.from_numpy(self.sampler.shares()[1])
        for batch in self._loaded():
            end = start + len(batch["label"])
            yield batch | {"batch_size": sizes[start:end]}
            start = end

    def _loaded(self) -> Iterator[dict[str, Tensor]]:
        # A process hands an error over as text with its stack trace; a user is told the message alone.
        try:
            yield from super().__iter__()
        except UserError as error:
            prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
            raise UserError(str(error).splitlines()[-1].removeprefix(prefix)) from error


class RowBlocks:
    """An epoch of stored rows, in pieces of many batches: no process, no copy of single rows.

    Args:
        rows: one for each image of the part.
        labels: int64 (N,), of all of them.
        order: int (n,), the images to show, in the order of the epoch.
        size: rows of a piece; the last may be smaller.
        sizes: int (n,), of each image, as `EpochSampler.shares` has it; None for one rank alone.
    """

    def __init__(
        self, rows: Rows, labels: Tensor, order: np.ndarray, size: int, sizes: np.ndarray | None = None
    ) -> None:
        self.rows, self.labels, self.order, self.size, self.sizes = rows, labels, order, size, sizes

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.order), self.size):
            piece = slice(start, start + self.size)
            places = self.order[piece]
            index = torch.from_numpy(places)
            batch = {"features": torch.from_numpy(self.rows[places]), "label": self.labels[index], "index": index}
            yield batch if self.sizes is None else batch | {"batch_size": torch.from_numpy(self.sizes[piece])}


class FaceDataModule(L.LightningDataModule):
    """Train, validation and test loaders over a manifest.

    Args:
        manifest: columns path, label, sha256, width and height in pixels, split; rows whose split is none of
            `PARTS` are left alone.
        root: what the paths are below.
        spec: the network's input.
        how: augmentation of the training part.
        seed: of the order.
        batch_size: images.
        workers: loader processes.
        cache: folder of prepared images, None for none. Filled by `prepare`.
        max_megapixels: as the catalogue was scanned.
        preparation: what is done to an image before it is augmented.
        cache_gb: limit of the cache, as `PreparedImages` has it; None for none.
        views: how many views of a training image there are, as `EpochSampler` has it.
        view_seed: of crops and augmentation: which views there are.
        step: images of one optimizer step: where rows are provided, they come in pieces of whole steps.
        device_augment: whether training images are augmented in batches where they are normalised, and not one by
            one as they are read. `how` must be `device_augment.supported`.

    Attributes:
        begun: an epoch of the training, and how many of its first images are left out, as `EpochSampler` has it.
        ranks: that train together, each on its share of every batch.
        provider: whoever computes something once for every image and view. Asked at the beginning of each epoch with
            the module, the part and the epoch, it returns rows for the batches to hold in place of images, or None.

    Raises:
        UserError: faces are to be found and the extra `face` is not installed.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        root: Path,
        spec: InputSpec,
        how: Augmentation,
        seed: int = 0,
        batch_size: int = 32,
        workers: int = 0,
        cache: Path | None = None,
        max_megapixels: float = 64.0,
        preparation: Preparation = Preparation(),  # noqa: B008 - immutable
        cache_gb: float | None = None,
        views: int | None = None,
        view_seed: int = 0,
        step: int | None = None,
        device_augment: bool = False,
    ) -> None:
        super().__init__()
        self.manifest, self.root, self.spec, self.how = manifest, root, spec, how
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.views, self.view_seed = views, view_seed
        self.preparation, self.step, self.device_augment = preparation, step or batch_size, device_augment
        self.images = PreparedImages(spec, cache, max_megapixels, preparation, cache_gb)
        self.provider: Callable[[FaceDataModule, str, int], Rows | None] | None = None
        self.begun = 0, 0
        self.ranks = Ranks()
        self._parts: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}

    def rows(self, part: str) -> pd.DataFrame:
        """The part's rows of the manifest; a batch's `index` counts them from 0."""
        of, rows = self._parts.get(part, (None, None))
        if rows is None or of is not self.manifest:
            rows = self.manifest[self.manifest["split"] == part].reset_index(drop=True)
            self._parts[part] = self.manifest, rows
        return rows

    def unprepared(self) -> pd.DataFrame:
        """Rows of the manifest that `prepare` has to look at: with a cache, those that are not stored; without one,
        those that may turn out unusable. Reads no image.
        """
        rows = self.manifest[self.manifest["split"].isin(PARTS)]
        if self.images.folder is None:
            return rows if self.preparation.can_fail else rows.iloc[:0]
        return rows[rows["sha256"].isin(self.images.missing(rows["sha256"]))]

    def prepare(self, rows: pd.DataFrame, advance: Callable[[], object] = lambda: None) -> pd.DataFrame:
        """Prepare images with every core before the first step needs them, and store those that there is room for.

        To be called even without rows: it marks what is stored as used, so that other runs keep it.

        Args:
            rows: as `unprepared` returned them.
            advance: called once a row, for a progress bar.

        Returns:
            path and reason of those that cannot be prepared, such as pictures without a face. They are to be taken
            out of the manifest: asked for in training, they end it.
        """
        # The test part is seen once, the others in every epoch.
        room = self.images.make_room(pd.concat([self.rows(part) for part in PARTS]), rows["sha256"])
        unstored: list[OSError] = []

        def look(path: str, sha256: str) -> str:
            try:
                if sha256 in room or self.preparation.can_fail:
                    pixels = self.images.prepare(self.root / path, sha256)
                if sha256 in room:
                    self.images.store(sha256, pixels)
            except UnreadableImage as error:
                return str(error)
            except OSError as error:
                unstored.append(error)
            finally:
                advance()
            return ""

        reasons: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: decoding releases the interpreter lock
            for start in range(0, len(rows), _BLOCK):
                block = rows.iloc[start : start + _BLOCK]
                reasons += pool.map(look, block["path"], block["sha256"])
        if unstored:
            log.warning(
                "cache      %d images could not be stored in %s and are decoded each time: %s",
                len(unstored), self.images.folder, unstored[0].strerror,
            )  # fmt: skip
        found = pd.DataFrame({"path": rows["path"].to_numpy(), "reason": reasons})
        return found[found["reason"] != ""].reset_index(drop=True)

    def dataset(self, part: str, device_augment: bool = False) -> Faces:
        how = self.how if part == "train" else None
        return Faces(self.rows(part), self.root, self.images, how, self.view_seed, device_augment)

    def train_dataloader(self) -> DataLoader | RowBlocks:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader | RowBlocks:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader | RowBlocks:
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader | RowBlocks:
        training = part == "train"
        begun = self.begun if training else (0, 0)
        sampler = EpochSampler(
            len(self.rows(part)), self.seed, training, self.views, begun, self.batch_size, self.ranks
        )
        # Where rows are provided or an epoch was begun before, the trainer asks anew for every epoch.
        epoch = self.trainer.current_epoch if self.trainer and training else 0
        sampler.set_epoch(epoch)
        if self.provider is not None:
            with self.ranks.first_alone(f"rows {part} {epoch}"):  # the others find what the first has stored
                rows = self.provider(self, part, epoch)
            if rows is not None:
                labels = torch.tensor(self.rows(part)["label"].to_numpy(np.int64))
                share = self.ranks.share(self.batch_size) * (self.step // self.batch_size)
                steps = max(1, int(_PIECE_BYTES // (rows[np.arange(1)].nbytes * share)))
                order, sizes = sampler.shares()
                return RowBlocks(rows, labels, order, steps * share, sizes if self.ranks.world > 1 else None)
        return self._batches(part, sampler, self.ranks.share(self.batch_size))

    def _batches(self, part: str, sampler: EpochSampler | Sequence[tuple[int, int]], batch_size: int) -> DataLoader:
        return _Loader(
            self.dataset(part, self.device_augment),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=collate,
            worker_init_fn=_set_up_worker,
            # Of its own: a loader takes a number from it each epoch, and from PyTorch's own it would take dropout's,
            # so that a run would depend on whether its images are loaded or its rows provided.
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augment and normalise on the device: bytes travel, floats do not."""
        return {**batch, "image": self.normalised(batch)} if "image" in batch else batch

    def normalised(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's images as the network wants them, float32 (N, 3, size, size); augmented, if not yet done."""
        images = batch["image"]
        if "draws" in batch:
            images = augment_batch(images, batch["draws"], self.how)
        return normalise(images, self.spec)

    # What follows serves the provider.

    def view_key(self, part: str, view: int) -> Any:
        """Plain data that decides, with an image's content, the pixels of its view."""
        prepared = [self.images.name, self.spec.size]
        if part != "train" or (self.how == Augmentation() and self.preparation.mode != "crop"):
            return prepared
        # OpenCV's pixels are not quite the device's.
        by = ["device"] if self.device_augment and self.how != Augmentation() else []
        return [_VIEWS, *prepared, asdict(self.how), self.view_seed, view, *by]

    def view(self, epoch: int) -> int:
        """Number of the view that an epoch shows of every training image."""
        return view_of(epoch, self.views)

    def image_batches(self, part: str, view: int, places: Sequence[int]) -> DataLoader:
        """The images at these places of a part's rows, in that order, as they are in one view."""
        return self._batches(part, [(view, place) for place in places], self.batch_size)


def collate(items: list[tuple[Any, ...]]) -> dict[str, Tensor]:
    """Images uint8 (N, 3, H, W) laid out channels last; label and index int64 (N,); draws, if any, float64 (N, 5)."""
    images, labels, indices, *draws = zip(*items, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    batch = {"image": pixels, "label": torch.tensor(labels), "index": torch.tensor(indices)}
    if draws:
        batch["draws"] = torch.from_numpy(np.stack(draws[0]))
    return batch


def normalise(images: Tensor, spec: InputSpec) -> Tensor:
    """uint8 (N, 3, H, W) in [0, 255] to float32 of zero mean and unit deviation by the network's own figures."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)
    # In place: new memory for each step takes longer than the steps.
    return images.float().div_(255).sub_(mean).div_(std)


def _set_up_worker(_: Any) -> None:
    cv2.setNumThreads(1)  # a loader process is one thread among its siblings
    # Ctrl-C and many a scheduler reach every process. The training ends by itself, after its step, for which it needs
    # its loaders; and it ends them, or they would be waited for when it has failed to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_SECONDS))
