"""How many images a second reach the network's door, from files and from the cache: `python -m benchmarks.reading`.

Beside them the loop that everyone writes, torchvision's ImageFolder with Resize and ToTensor, over the same files.
All deliver batches of float tensors, ours normalised as well, and keep their loader processes from one pass to the
next. Every repeat runs each of them once, in turn, so that a slow moment hits all; a ratio is of one repeat, ours
over the plain loop with as many workers. Before the first repeat every file was read once.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from deepfake.console import terminal
from deepfake.data.augment import Augmentation
from deepfake.data.catalog import scan
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.layouts import find_images
from deepfake.data.synthetic import make_faces
from deepfake.inputs import InputSpec

SPEC = InputSpec(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
WORKERS = (0, 1, 2)
KINDS = ("plain loop", "files", "cache")


def plain_loop(root: Path, batch_size: int, workers: int) -> Iterable[torch.Tensor]:
    """Batches as a tutorial makes them."""
    images = ImageFolder(str(root), T.Compose([T.Resize((SPEC.size, SPEC.size)), T.ToTensor()]))
    loader = DataLoader(images, batch_size, num_workers=workers, persistent_workers=workers > 0)
    return Batches(loader, lambda batch: batch[0])


def ours(root: Path, cache: Path | None, batch_size: int, workers: int) -> Iterable[torch.Tensor]:
    """Batches of validation images, normalised as on the device."""
    manifest = scan(find_images(root), root)
    manifest["split"] = "val"
    data = FaceDataModule(manifest, root, SPEC, Augmentation(), batch_size=batch_size, workers=workers, cache=cache)
    data.prepare(data.unprepared())
    return Batches(data.val_dataloader(), lambda batch: data.on_after_batch_transfer(batch, 0)["image"])


class Batches:
    """A loader's batches as tensors, pass after pass."""

    def __init__(self, loader: DataLoader, tensor: Callable[[dict | list], torch.Tensor]) -> None:
        self.loader, self.tensor = loader, tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self.tensor, self.loader)


def main() -> None:
    """Measure and print one line for each kind of reading and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (5)")
    parser.add_argument("--images", type=int, default=200, help="of each of the six built-in sources (200)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the built-in images (256)")
    parser.add_argument("--batch-size", type=int, default=32, help="images (32)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = make_faces(Path(folder, "faces"), options.images, options.size)
        cache = Path(folder, "cache")
        loaders = {
            (kind, workers): plain_loop(root, options.batch_size, workers)
            if kind == "plain loop"
            else ours(root, cache if kind == "cache" else None, options.batch_size, workers)
            for kind in KINDS
            for workers in WORKERS
        }
        for loader in loaders.values():
            _rate(loader)  # starts the processes, and fills the system's own cache of files
        rates = {key: [] for key in loaders}
        for _ in range(options.repeats):
            for key, loader in loaders.items():
                rates[key].append(_rate(loader))
    _print(rates, options)


def _rate(loader: Iterable[torch.Tensor]) -> float:
    """Images a second in one pass."""
    began = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return count / (time.perf_counter() - began)


def _print(rates: dict[tuple[str, int], list[float]], options: argparse.Namespace) -> None:
    title = f"{6 * options.images} images of {options.size} pixels to {SPEC.size}, {options.repeats} repeats"
    table = Table("reading", "workers", "images a second", "over the plain loop", title=title)
    for (kind, workers), found in rates.items():
        ratios = np.array(found) / np.array(rates["plain loop", workers])
        table.add_row(kind, str(workers), _spread(found, ".0f"), _spread(ratios.tolist(), ".2f"))
    terminal().print(table)


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
