"""The two ways in which a study like the one in experiments/report is usually written, to be measured against.

- `by_hand` and `plain_loop`: a dataset class, a network of torchvision and a PyTorch loop, as the study describes
  its own, without its mistakes;
- `from_folder` and `lightning_loop`: torchvision's ImageFolder, a network of timm and a LightningModule.

Both decode every image and run the frozen stages in every epoch anew, in float32, and train on another augmented
view of each image in each epoch. Frozen stages have no gradients and are in eval mode. Neither writes a file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics.classification import BinaryAccuracy
from torchvision import models
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from deepfake.inputs import InputSpec

LEARNING_RATE, BATCH_SIZE, ACCUMULATE = 1e-4, 32, 4  # the study's
FACTOR, PATIENCE = 0.5, 2  # of its plateau scheduler
IMAGENET = InputSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")

Parts = Mapping[str, Sequence[tuple[Path, int]]]  # train, val, test: files and labels
Loaders = Mapping[str, Iterable[tuple[Tensor, Tensor]]]  # images (N, 3, H, W), labels (N,), int64


@dataclass(frozen=True)
class Training:
    """One of the study's."""

    name: str  # of its experiment in experiments/report
    torchvision: str
    timm: str
    last_two: bool = False  # whether the last two entries of the feature stack train beside the classifier
    plateau: bool = False


STUDY = (
    Training("resnet18", "resnet18", "resnet18"),
    Training("efficientnet", "efficientnet_b0", "efficientnet_b0"),
    Training("densenet121", "densenet121", "densenet121"),
    Training("vit", "vit_b_16", "vit_base_patch16_224"),
    Training("efficientnet_2", "efficientnet_b0", "efficientnet_b0", last_two=True),
    Training("efficientnet_3", "efficientnet_b0", "efficientnet_b0", last_two=True, plateau=True),
)


@dataclass(frozen=True)
class Network:
    """A network of two classes and those of its modules that train; the others take no gradient."""

    whole: nn.Module
    trained: tuple[nn.Module, ...]

    def train(self) -> None:
        """Train mode for what trains, eval mode for what is frozen."""
        self.whole.eval()
        for module in self.trained:
            module.train()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.whole.parameters() if p.requires_grad], lr=LEARNING_RATE)


@dataclass(frozen=True)
class Verdict:
    """Of one part of the data, in the order of its loader."""

    loss: float  # mean cross-entropy
    labels: np.ndarray  # int64 (N,)
    probabilities: np.ndarray  # float32 (N,), P(fake)


# ---------------------------------------------------------------------------------------------------- by hand


class Files(Dataset):
    """What everyone writes: open, transform, label."""

    def __init__(self, files: Sequence[tuple[Path, int]], transform: T.Compose) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


Images = Files | Subset


def by_hand(parts: Parts, spec: InputSpec = IMAGENET) -> dict[str, Files]:
    """The parts as datasets, the training part augmented."""
    return {part: Files(files, _transform(spec, part == "train")) for part, files in parts.items()}


def torchvision_network(training: Training) -> Network:
    """The study's, with random weights."""
    whole = models.get_model(training.torchvision, weights=None)
    name, old = [(name, module) for name, module in whole.named_modules() if isinstance(module, nn.Linear)][-1]
    classifier = nn.Linear(old.in_features, 2)
    whole.set_submodule(name, classifier)
    return _frozen_but(whole, classifier, *(whole.features[-2:] if training.last_two else []))


def plain_loop(network: Network, loaders: Loaders, epochs: int, plateau: bool = False) -> Verdict:
    """Train and validate for so many epochs, then judge the test part where there is one.

    Returns:
        On validation, of the epoch with the lowest validation loss.
    """
    device = _device()
    network.whole.to(device)
    optimizer = network.optimizer()
    scheduler = ReduceLROnPlateau(optimizer, factor=FACTOR, patience=PATIENCE) if plateau else None
    verdicts = []
    for _ in range(epochs):
        network.train()
        number, losses = 0, 0.0
        for number, (images, labels) in enumerate(loaders["train"], start=1):
            loss = F.cross_entropy(network.whole(images.to(device)), labels.to(device))
            (loss / ACCUMULATE).backward()
            losses += loss.item()  # the true loss, for the log
            if number % ACCUMULATE == 0:
                optimizer.step()
                optimizer.zero_grad()
        if number % ACCUMULATE:
            optimizer.step()
            optimizer.zero_grad()
        verdicts.append(_judge(network.whole, loaders["val"], device))
        if scheduler is not None:
            scheduler.step(verdicts[-1].loss)
    if "test" in loaders:
        _judge(network.whole, loaders["test"], device)
    return min(verdicts, key=lambda verdict: verdict.loss)


def _judge(network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Verdict:
    network.eval()
    with torch.no_grad():
        found = [(network(images.to(device)).cpu(), labels) for images, labels in loader]
    logits, labels = (torch.cat(column) for column in zip(*found, strict=True))
    probabilities = logits.softmax(dim=1)[:, 1]
    return Verdict(float(F.cross_entropy(logits, labels)), labels.numpy(), probabilities.numpy())


# -------------------------------------------------------------------------------------------------- Lightning


def from_folder(root: Path, parts: Parts) -> dict[str, Subset]:
    """The parts as subsets of an ImageFolder, the training part augmented."""
    return {part: _subset(root, files, _transform(IMAGENET, part == "train")) for part, files in parts.items()}


def _subset(root: Path, files: Sequence[tuple[Path, int]], transform: T.Compose) -> Subset:
    folder = ImageFolder(str(root), transform)
    folder.target_transform = lambda source: int(folder.classes[source][0])  # 0-FFHQ is real, 1-STYLEGAN is not
    place = {path: index for index, (path, _) in enumerate(folder.samples)}
    return Subset(folder, [place[str(path)] for path, _ in files])


def timm_network(training: Training) -> Network:
    """timm's of the same architecture, with random weights."""
    whole: Any = timm.create_model(training.timm, num_classes=2)
    last = [whole.blocks[-1], whole.conv_head, whole.bn2] if training.last_two else []
    return _frozen_but(whole, whole.get_classifier(), *last)


class Module(L.LightningModule):
    """What everyone writes."""

    def __init__(self, network: Network, plateau: bool) -> None:
        super().__init__()
        self.network, self.policy, self.plateau = network.whole, network, plateau
        self.train_accuracy, self.val_accuracy, self.test_accuracy = (BinaryAccuracy() for _ in range(3))

    def on_train_epoch_start(self) -> None:
        self.policy.train()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train", self.train_accuracy)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test", self.test_accuracy)

    def _step(self, batch: tuple[Tensor, Tensor], part: str, accuracy: BinaryAccuracy) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits.softmax(dim=1)[:, 1], labels)
        self.log(f"{part}/loss", loss, on_epoch=True, on_step=False, batch_size=len(labels))
        self.log(f"{part}/accuracy", accuracy, on_epoch=True, on_step=False, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.policy.optimizer()
        if not self.plateau:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=FACTOR, patience=PATIENCE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def lightning_loop(network: Network, loaders: Loaders, epochs: int, plateau: bool = False) -> None:
    """Train and validate for so many epochs, then judge the test part where there is one."""
    module = Module(network, plateau)
    trainer = L.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATE,
        accelerator="auto",
        devices=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loaders["train"], loaders["val"])
    if "test" in loaders:
        trainer.test(module, loaders["test"], verbose=False)


# ------------------------------------------------------------------------------------------------ what they share


def loader(images: Images, shuffle: bool, workers: int) -> DataLoader:
    """The stock one."""
    return DataLoader(images, BATCH_SIZE, shuffle, num_workers=workers, pin_memory=torch.cuda.is_available())


def _transform(spec: InputSpec, augmented: bool) -> T.Compose:
    """To the network's square, squashed; the study's augmentation."""
    augment = [T.RandomAffine(15, (0.1, 0.1)), T.RandomHorizontalFlip(), T.ColorJitter(0.2)]
    return T.Compose(
        [
            T.Resize((spec.size, spec.size), T.InterpolationMode(spec.interpolation)),
            *(augment if augmented else []),
            T.ToTensor(),
            T.Normalize(spec.mean, spec.std),
        ]
    )


def _frozen_but(whole: nn.Module, *trained: nn.Module) -> Network:
    whole.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    return Network(whole, trained)


def _device() -> torch.device:
    """Where Lightning puts a network too."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
