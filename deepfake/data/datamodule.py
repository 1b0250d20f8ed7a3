"""Batches of faces for Lightning: training images augmented, validation and test images clean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deepfake.data.augment import Augmentation, augment, random_for
from deepfake.data.images import UnreadableImage
from deepfake.data.prepared import PreparedImages
from deepfake.errors import UserError
from deepfake.inputs import InputSpec


class Faces(Dataset):
    """One part of the manifest; an item is asked for by (view, index), so that it depends on nothing else."""

    def __init__(
        self, rows: pd.DataFrame, root: Path, images: PreparedImages, how: Augmentation | None, seed: int
    ) -> None:
        self.paths = [root / path for path in rows["path"]]
        self.sha256 = rows["sha256"].tolist()
        self.labels = rows["label"].tolist()
        self.images, self.how, self.seed = images, how, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        """Pixels uint8 (size, size, 3), label, index."""
        view, index = item
        try:
            pixels = self.images.read(self.paths[index], self.sha256[index])
        except UnreadableImage as error:
            raise UserError(
                f"{self.paths[index]} was readable when the run began and is not any more: {error}. "
                f"Put it back, or start again."
            ) from error
        if self.how is not None:
            pixels = augment(pixels, self.how, self.seed, self.sha256[index], view)
        return pixels, self.labels[index], index


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends on (seed, epoch) alone; Lightning calls `set_epoch`."""

    def __init__(self, length: int, seed: int, shuffle: bool) -> None:
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            order = random_for("order", self.seed, self.epoch).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


class FaceDataModule(L.LightningDataModule):
    """Train, validation and test loaders over a manifest.

    Args:
        manifest: columns path, label, sha256, split ("train", "val", "test").
        root: what the paths are below.
        spec: the network's input.
        how: augmentation of the training part.
        seed: of order and augmentation.
        batch_size: images.
        workers: loader processes.
        cache: folder of decoded images, None for none.
        max_megapixels: as the catalogue was scanned.
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
    ) -> None:
        super().__init__()
        self.manifest, self.root, self.spec, self.how = manifest, root, spec, how
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.images = PreparedImages(spec, cache, max_megapixels)

    def rows(self, part: str) -> pd.DataFrame:
        """The part's rows of the manifest; a batch's `index` counts them from 0."""
        return self.manifest[self.manifest["split"] == part].reset_index(drop=True)

    def dataset(self, part: str) -> Faces:
        return Faces(self.rows(part), self.root, self.images, self.how if part == "train" else None, self.seed)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader:
        dataset = self.dataset(part)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(dataset), self.seed, shuffle=part == "train"),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=collate,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Normalise on the device: bytes travel, floats do not."""
        return {**batch, "image": normalise(batch["image"], self.spec)}


def collate(items: list[tuple[np.ndarray, int, int]]) -> dict[str, Tensor]:
    """Images uint8 (N, 3, H, W) laid out channels last, labels and indices int64 (N,)."""
    pixels, labels, indices = zip(*items, strict=True)
    return {
        "image": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2),
        "label": torch.tensor(labels),
        "index": torch.tensor(indices),
    }


def normalise(images: Tensor, spec: InputSpec) -> Tensor:
    """uint8 (N, 3, H, W) in [0, 255] to float32 of zero mean and unit deviation by the network's own figures."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def _one_thread(_: Any) -> None:
    cv2.setNumThreads(1)  # a loader process is one thread among its siblings
