"""The LightningModule: a backbone, what of it trains, and how."""

import math
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from deepfake.config import CosineConfig, PlateauConfig, SchedulerConfig
from deepfake.errors import UserError
from deepfake.evaluation.metrics import confusion, metric_collection
from deepfake.models.backbones import Backbone
from deepfake.models.freezing import freeze
from deepfake.models.trunk import restored, stored_depth

PARTS = ("train", "val", "test")


class Detector(L.LightningModule):
    """Real (0) or generated (1): cross-entropy over two outputs, Adam on what is not frozen.

    `monitor` and `mode` are the one place that says what "better" means; scheduler, early stopping and checkpoint
    read them from here.

    Args:
        backbone: the network with its stages.
        unfreeze: last stages that train beside the classifier, or "all".
        lr: Adam's learning rate.
        scheduler: none, plateau or cosine.
        epochs: the length of the cosine.
        record: plain settings stored in every checkpoint, so that it can be read without the run folder.
    """

    monitor = "val/loss"
    mode: Literal["min", "max"] = "min"

    def __init__(
        self,
        backbone: Backbone,
        unfreeze: int | str = 0,
        lr: float = 1e-4,
        scheduler: SchedulerConfig | None = None,
        epochs: int = 20,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.freezing = freeze(backbone, unfreeze)
        self.lr, self.scheduler, self.epochs = lr, scheduler or SchedulerConfig(), epochs
        self.record = record or {}
        # Modules, so that they follow the device; under names of their own, for "train" is a module's method.
        self.metrics = torch.nn.ModuleDict({f"{part}_metrics": metric_collection(f"{part}/") for part in PARTS})
        self.confusions = torch.nn.ModuleDict({f"{part}_confusion": confusion() for part in PARTS})
        # P(fake), label and index of every image of the part that was last validated or tested.
        self.outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """P(fake), float32 (N,), of normalised images float32 (N, 3, H, W)."""
        return self.backbone(images).float().softmax(1)[:, 1]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, _ = self._step(batch, "train")
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx}: expected a "
                f"finite number. Lower lr (now {self.lr:g}) or use trainer.precision=32-true; the best checkpoint "
                f"so far is kept."
            )
        return loss

    def on_validation_epoch_start(self) -> None:
        self.outputs.clear()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        _, probabilities = self._step(batch, "val")
        self.outputs.append((probabilities.cpu(), batch["label"].cpu(), batch["index"].cpu()))

    def on_test_epoch_start(self) -> None:
        self.outputs.clear()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        _, probabilities = self._step(batch, "test")
        self.outputs.append((probabilities.cpu(), batch["label"].cpu(), batch["index"].cpu()))

    def _step(self, batch: dict[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
        if "features" in batch:
            logits = self.backbone(restored(batch["features"]), start=stored_depth(self.backbone))
        else:
            logits = self.backbone(batch["image"])
        logits = logits.float()
        # The mean over the batch's images, as is: Lightning divides a copy of it for gradient accumulation.
        loss = F.cross_entropy(logits, batch["label"])
        probabilities = logits.detach().softmax(1)[:, 1]
        metrics: Any = self.metrics[f"{part}_metrics"]
        metrics.update(probabilities, batch["label"])
        counts: Any = self.confusions[f"{part}_confusion"]
        counts.update(probabilities, batch["label"])
        # Not to the dashboard: `Recorder` writes there, by epoch. Lightning would write a second time, by step.
        how: Any = {"on_step": False, "on_epoch": True, "logger": False}
        self.log(f"{part}/loss", loss, batch_size=len(logits), prog_bar=True, **how)
        self.log_dict(metrics, **how)
        return loss, probabilities

    def configure_optimizers(self) -> Any:
        """Adam over what trains, and the scheduler in Lightning's form."""
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        s = self.scheduler
        if isinstance(s, PlateauConfig):
            # PyTorch's default threshold would call small progress none that early stopping and the checkpoint call
            # better.
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode=self.mode, factor=s.factor, patience=s.patience, threshold=0.0
            )
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor, "interval": "epoch"},
            }
        if isinstance(s, CosineConfig):
            steps = max(1, int(self.trainer.estimated_stepping_batches))
            warmup = round(steps * s.warmup_epochs / self.epochs)
            cosine = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_factor(step, steps, warmup, s.final_factor)
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the weights: the architecture and how an image must be prepared, as plain data."""
        spec = self.backbone.input_spec
        checkpoint["deepfake"] = {
            "architecture": self.backbone.architecture,
            "classes": ["real", "fake"],
            "input": {
                "size": spec.size,
                "mean": list(spec.mean),
                "std": list(spec.std),
                "interpolation": spec.interpolation,
            },
            **self.record,
        }


def cosine_factor(step: int, steps: int, warmup: int, final: float) -> float:
    """Share of the learning rate at a step: linear rise, then half a cosine down to `final`.

    After Loshchilov and Hutter, SGDR (2017), eq. 5, with one cycle.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
