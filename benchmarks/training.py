"""How long a whole training takes against a plain PyTorch loop over the same images: `make bench`.

Both do the same work: every epoch trains on the augmented training part and validates on the validation part, and
at the end the test part is judged; same network, freezing, batches, accumulation and number of threads. The loop is
what one writes by hand: files decoded and transformed by torchvision for each epoch in two loader processes, frozen
layers without gradients and in eval mode. Ours starts with empty caches each time and writes its whole run folder.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.console import terminal
from deepfake.training import catalogue, train

SIZE = 224


class Files(Dataset):
    """What everyone writes: open, transform, label."""

    def __init__(self, paths: list[Path], labels: list[int], augmented: bool) -> None:
        normalise = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]
        augment = [T.RandomAffine(15, (0.1, 0.1)), T.RandomHorizontalFlip(), T.ColorJitter(0.2)]
        self.paths, self.labels = paths, labels
        self.transform = T.Compose([T.Resize((SIZE, SIZE)), *(augment if augmented else []), *normalise])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


def plain_loop(cfg: TrainConfig, parts: dict[str, tuple[list[Path], list[int]]]) -> None:
    """The study's loop, without its mistakes."""
    network = timm.create_model(cfg.model.timm, num_classes=2)
    frozen: list[nn.Module] = []
    if cfg.unfreeze != "all":
        stages = [network.conv_stem, network.bn1, *network.blocks, nn.Sequential(network.conv_head, network.bn2)]
        frozen = stages[: len(stages) - int(cfg.unfreeze)]
    for module in frozen:
        module.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=cfg.lr)
    loaders = {
        part: DataLoader(Files(*files, part == "train"), cfg.batch_size, shuffle=part == "train", num_workers=2)
        for part, files in parts.items()
    }

    def judge(part: str) -> None:
        network.eval()
        with torch.no_grad():
            for images, _ in loaders[part]:
                network(images)

    for _ in range(cfg.epochs):
        network.train()
        for module in frozen:
            module.eval()
        for number, (images, labels) in enumerate(loaders["train"], start=1):
            loss = nn.functional.cross_entropy(network(images), labels) / cfg.accumulate
            loss.backward()
            if number % cfg.accumulate == 0 or number == len(loaders["train"]):
                optimizer.step()
                optimizer.zero_grad()
        judge("val")
    judge("test")


def main() -> None:
    """Measure and print one line for each freezing policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each, in turn; the median counts (3)")
    parser.add_argument("--epochs", type=int, default=3, help="of each training (3)")
    parser.add_argument("--images", type=int, default=30, help="of each of the six built-in sources (30)")
    parser.add_argument("--unfreeze", nargs="+", default=["0", "2", "all"], help="policies (0 2 all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = Table("unfreeze", "plain loop, s", "ours, s", "plain / ours", title=f"{torch.get_num_threads()} threads")
    for unfreeze in options.unfreeze:
        pairs = [_pair(unfreeze, options.epochs, options.images) for _ in range(options.repeats)]
        plain, ours = zip(*pairs, strict=True)
        ratios = [a / b for a, b in pairs]
        table.add_row(
            unfreeze,
            f"{statistics.median(plain):.1f}",
            f"{statistics.median(ours):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    terminal().print(table)


def _pair(unfreeze: str, epochs: int, images: int) -> tuple[float, float]:
    """Seconds of the plain loop and of ours, one after the other, so that a slow moment hits both."""
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(conf_dir(), version_base="1.3"):
        overrides = [
            "model=efficientnet_lite", "model.weights=none", f"unfreeze={unfreeze}", f"epochs={epochs}",
            "patience=null", f"data.images_per_source={images}", f"output_dir={folder}", "trainer=cpu",
            "trainer.progress=false",
        ]  # fmt: skip
        cfg = parse_train(compose("train", overrides))
        manifest, _, root = catalogue(cfg)
        parts = {
            part: ([root / path for path in rows["path"]], rows["label"].tolist())
            for part, rows in manifest.groupby("split")
        }
        began = time.perf_counter()
        plain_loop(cfg, parts)
        plain = time.perf_counter() - began
        began = time.perf_counter()
        train(cfg)
        return plain, time.perf_counter() - began


if __name__ == "__main__":
    main()
