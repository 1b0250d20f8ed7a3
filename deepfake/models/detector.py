"""The LightningModule: a backbone, what of it trains, and how."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from deepfake.config import CosineConfig, PlateauConfig, SchedulerConfig
from deepfake.errors import UserError
from deepfake.evaluation.metrics import epoch_scores
from deepfake.models.backbones import Backbone
from deepfake.models.batchnorm import WholeBatch
from deepfake.models.engines import threads
from deepfake.models.freezing import freeze, is_member
from deepfake.models.store import restored
from deepfake.ranks import Ranks

PARTS = ("train", "val", "test")
MEASURES = ("accuracy", "precision", "recall", "f1", "auroc", "ap")
_PREFIX = "backbone.network."  # of the network's tensors in the detector's state dict


class DetectorModule(L.LightningModule):
    """Real (0) or generated (1): cross-entropy over two outputs, Adam on what is not frozen.

    `monitor` and `mode` are the one place that says what "better" means; scheduler, early stopping and checkpoint
    read them from here.

    A batch holds images, or what the frozen stages made of them. Such rows come in pieces of many batches, for
    which Lightning's loop would take longer than the classifier; so the steps are taken here (Lightning calls that
    manual optimization), on images in the same way.

    Where several ranks train, a batch holds this one's share of it, and "batch_size" of each image how many there are
    in all of its batch, 0 for one that only fills up.

    Args:
        backbone: the network with its stages.
        unfreeze: last stages that train beside the classifier, or "all".
        lr: Adam's learning rate.
        scheduler: none, plateau or cosine.
        epochs: the length of the cosine.
        batch_size: images whose loss is averaged.
        accumulate: batches whose gradients are averaged into one step. The last step of an epoch may have fewer;
            each counts as much as in a full one.
        record: plain settings stored in every checkpoint, so that it can be read without the run folder.

    Attributes:
        trunk: runs the frozen stages, if anything else than the backbone itself shall.
        after_step: called after every step of the optimizer.
        ranks: that train together.
        seen: of each part, logits, label and index of the batches of the epoch under way, or of the last.
        figures: of each part, what came out of its last epoch: loss and `epoch_scores`.
        steps_in_all: of a training that nothing ends early, as the cosine counts them.
    """

    monitor = "val/loss"
    mode: Literal["min", "max"] = "min"
    automatic_optimization = False

    def __init__(
        self,
        backbone: Backbone,
        unfreeze: int | str = 0,
        lr: float = 1e-4,
        scheduler: SchedulerConfig | None = None,
        epochs: int = 20,
        batch_size: int = 32,
        accumulate: int = 1,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.batch_size, self.accumulate = batch_size, accumulate
        self.trunk: Callable[[Tensor], Tensor] | None = None
        self.freezing = freeze(backbone, unfreeze)
        # Then the batches of a step may as well be run at once.
        self._apart = backbone.trunk_depth == len(backbone.stages) and _images_stand_alone(backbone)
        self.lr, self.scheduler, self.epochs = lr, scheduler or SchedulerConfig(), epochs
        self.record = record or {}
        self.after_step: Callable[[], object] = lambda: None
        self.seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {part: [] for part in PARTS}
        self.figures: dict[str, dict[str, float]] = {}
        self.steps_in_all: int | None = None
        self.ranks = Ranks()
        self._goes_on = False  # whether the epoch to begin was begun before

    def forward(self, images: Tensor) -> Tensor:
        """P(fake), float32 (N,), of normalised images float32 (N, 3, H, W)."""
        return self.backbone(*self._inputs({"image": images})).float().softmax(1)[:, 1]

    def margins(self, images: Tensor) -> Tensor:
        """logit(fake) - logit(real), float32 (N,), of normalised images float32 (N, 3, H, W)."""
        logits = self.backbone(*self._inputs({"image": images})).float()
        return logits[:, 1] - logits[:, 0]

    def on_train_epoch_start(self) -> None:
        if not self._goes_on:
            self.seen["train"].clear()
        self._goes_on = False
        self._draw_anew()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # What a classifier computes of one batch of rows is too little to share: other threads only cost time.
        with threads(1 if self._apart and "features" in batch else None):
            self._step_through(batch, batch_idx)
        if self.trainer.is_last_batch:
            self._measure("train")

    def _step_through(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        inputs, start = self._inputs(batch)
        losses: list[Tensor] = []
        sizes = self._sizes(batch)
        for piece, last in self._pieces(batch, batch_idx):
            with self._normalising(sizes[piece]):
                logits = self.backbone(inputs[piece], start).float()
            each = F.cross_entropy(logits, batch["label"][piece], reduction="none")
            self.manual_backward((each * self._weights(sizes[piece])).sum())
            self._see("train", logits.detach(), batch, piece)
            losses.append(each.detach())
            if last:
                self.ranks.add_up(self.parameters())
                optimizer.step()
                optimizer.zero_grad()
                if isinstance(self.scheduler, CosineConfig):
                    self._scheduler.step()
                self._draw_anew()
                # After the last step of an epoch there is no rest of it to go on with: its end is soon there.
                if not (self.trainer.is_last_batch and piece.stop in (None, len(batch["label"]))):
                    self._leave_here(losses, batch_idx)
        self._expect_finite(losses, batch_idx)

    def _leave_here(self, losses: list[Tensor], batch_idx: int) -> None:
        try:
            self.after_step()
        except BaseException:
            self._expect_finite(losses, batch_idx)  # else it would be kept to go on from
            raise

    def _expect_finite(self, losses: list[Tensor], batch_idx: int) -> None:
        loss = torch.cat(losses).mean()
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx}: expected a "
                f"finite number. Lower lr (now {self.lr:g}) or use trainer.precision=32-true; the best checkpoint "
                f"so far is kept."
            )

    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """What the backbone goes on from, and after how many of its stages."""
        if "features" in batch:
            return restored(batch["features"]).float(), self.backbone.trunk_depth
        if self.trunk is not None:
            return self.trunk(batch["image"]).float(), self.backbone.trunk_depth
        return batch["image"], 0

    def _pieces(self, batch: dict[str, Tensor], batch_idx: int) -> Iterator[tuple[slice, bool]]:
        """What of a batch is to be run at once, and whether a step ends with it."""
        if "image" in batch:
            yield slice(None), (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
            return
        # Rows: whole steps, of which the last of the epoch may be smaller.
        share = self.ranks.share(self.batch_size)
        count, step = len(batch["label"]), share * self.accumulate
        size = step if self._apart else share
        for start in range(0, count, size):
            end = min(start + size, count)
            yield slice(start, end), end % step == 0 or end == count

    def _sizes(self, batch: dict[str, Tensor]) -> Tensor:
        """Of each image, how many there are in its batch; 0 for one that is not to be counted."""
        if "batch_size" in batch:
            return batch["batch_size"]
        number = torch.arange(len(batch["label"]), device=batch["label"].device) // self.batch_size
        return torch.bincount(number)[number]

    def _weights(self, sizes: Tensor) -> Tensor:
        """Of each image, its share in the gradient: the mean over its batch, over a step's batches."""
        return torch.where(sizes > 0, 1.0 / (sizes * self.accumulate), 0.0)

    def _normalising(self, sizes: Tensor) -> AbstractContextManager[Any]:
        # What fills up is the last of a share, and a piece is one share wherever there is a batch to normalise.
        return WholeBatch(self.ranks, int((sizes > 0).sum())) if self.ranks.world > 1 else nullcontext()

    def _see(self, part: str, logits: Tensor, batch: dict[str, Tensor], piece: slice = slice(None)) -> None:
        seen = logits, batch["label"][piece], batch["index"][piece]
        if self.ranks.world > 1:
            counted = batch["batch_size"][piece] > 0
            seen = seen[0][counted], seen[1][counted], seen[2][counted]
        self.seen[part].append(seen)

    def _draw_anew(self) -> None:
        self.ranks.seed(self.record.get("seed", 0), self.trainer.global_step)

    def on_train_epoch_end(self) -> None:
        # After the epoch's validation, and before the checkpoint is written.
        if isinstance(self.scheduler, PlateauConfig):
            self._scheduler.step(self.trainer.callback_metrics[self.monitor])

    @property
    def _scheduler(self) -> Any:
        return self.lr_schedulers()

    def on_validation_epoch_start(self) -> None:
        self.seen["val"].clear()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._judge("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    def on_test_epoch_start(self) -> None:
        self.seen["test"].clear()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._judge("test", batch)

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _judge(self, part: str, batch: dict[str, Tensor]) -> None:
        inputs, start = self._inputs(batch)
        # Rows come in pieces of many batches, which would be too many for the memory of stages that train.
        logits = torch.cat([self.backbone(piece, start).float() for piece in inputs.split(self.batch_size)])
        self._see(part, logits, batch)

    def seen_so_far(self, part: str) -> dict[str, Tensor]:
        """logits float32 (n, 2), label and index int64 (n,) of the images of the epoch, on the processor.

        Of all ranks, each of which must ask.
        """
        own = [torch.cat(column).cpu() for column in zip(*self.seen[part], strict=True)]
        columns = [torch.cat(column) for column in zip(*self.ranks.gathered(own), strict=True)]
        if self.ranks.world > 1:
            order = columns[-1].argsort()
            columns = [column[order] for column in columns]
        return dict(zip(("logits", "label", "index"), columns, strict=True))

    def go_on_with(self, seen: dict[str, Tensor]) -> None:
        """Have the next epoch be the rest of one that was begun: `seen_so_far` of its training part."""
        # To be gathered from all ranks with the rest of the epoch, so only one of them has it.
        took = slice(None if self.ranks.rank == 0 else 0)
        self.seen["train"] = [(seen["logits"][took], seen["label"][took], seen["index"][took])]
        self._goes_on = True

    def outputs(self, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Margin float32, label and index int64, each (n,), of every image of a part that was judged."""
        seen = self.seen_so_far(part)
        return seen["logits"][:, 1] - seen["logits"][:, 0], seen["label"], seen["index"]

    def _measure(self, part: str) -> None:
        """Figures of the whole epoch at once: they do not depend on how it came in batches."""
        if not self.seen[part]:
            return
        seen = self.seen_so_far(part)
        logits, labels = seen["logits"], seen["label"]
        probabilities = logits.softmax(1)[:, 1]
        figures = {"loss": F.cross_entropy(logits, labels).item()} | epoch_scores(probabilities, labels)
        # The same on all ranks, to the bit, for they decide by them what comes next.
        said = self.figures[part] = self.ranks.of_first(figures)
        # Not to the dashboard: `Recorder` writes there, by epoch. Lightning would write a second time, by step.
        how: Any = {"on_step": False, "on_epoch": True, "logger": False, "batch_size": len(labels)}
        self.log(f"{part}/loss", said["loss"], prog_bar=True, **how)
        self.log_dict({f"{part}/{name}": said[name] for name in MEASURES}, **how)

    def configure_optimizers(self) -> Any:
        """Adam over what trains, and the scheduler in Lightning's form."""
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr, fused=True)
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
            steps = self.steps_in_all = self.steps_in_all or self._steps()
            warmup = round(steps * s.warmup_epochs / self.epochs)
            cosine = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_factor(step, steps, warmup, s.final_factor)
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
        return optimizer

    def _steps(self) -> int:
        """Of the whole training, if nothing ends it early."""
        batches = int(self.trainer.estimated_stepping_batches) // self.epochs  # Lightning takes each for a step
        rows = getattr(self.trainer.train_dataloader, "order", None)
        if rows is not None:  # pieces of many batches
            batches = math.ceil(len(rows) / self.ranks.share(self.batch_size))
        return max(1, self.epochs * math.ceil(batches / self.accumulate))

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without what is frozen: that never changes and may be a hundred times as much."""
        frozen = {_PREFIX + name for name in self._frozen_names}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_trained(self, state: dict[str, Tensor], frozen: str) -> None:
        """Take on a `trained_state`.

        Args:
            state: of a module of the same settings.
            frozen: the hash of its frozen weights, as `description` tells it.

        Raises:
            UserError: they are others than these.
        """
        self._expect_frozen(frozen)
        self.load_state_dict(self.state_dict() | state)

    def description(self) -> dict[str, Any]:
        """The architecture, how an image must be prepared, and what is frozen, told by its hash: plain data."""
        spec = self.backbone.input_spec
        return {
            "architecture": self.backbone.architecture,
            "classes": ["real", "fake"],
            "input": {
                "size": spec.size,
                "mean": list(spec.mean),
                "std": list(spec.std),
                "interpolation": spec.interpolation,
            },
            "frozen": self._frozen_hash,
            "frozen_stages": self.backbone.trunk_depth,
            "trunk_precision": getattr(self.trunk, "precision", "float32"),
            **self.record,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside what trains, plain data that says what it is; see `complete`."""
        checkpoint["deepfake"] = self.description()
        checkpoint["state_dict"] = self.trained_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.complete(checkpoint)

    def complete(self, checkpoint: dict[str, Any]) -> None:
        """Put into a checkpoint of a run of these settings what was left out of it.

        Raises:
            UserError: it was made with other frozen weights than these.
        """
        self._expect_frozen(checkpoint["deepfake"]["frozen"])
        own = self.backbone.network.state_dict()
        checkpoint["state_dict"] |= {_PREFIX + name: own[name] for name in self._frozen_names}

    def _expect_frozen(self, found: str) -> None:
        if found != self._frozen_hash:
            raise UserError(
                f"the checkpoint was made with other weights in the frozen stages (sha256 {found[:8]}...) than "
                f"model.weights gives now ({self._frozen_hash[:8]}...): name the file that it was made with."
            )

    @functools.cached_property
    def _frozen_names(self) -> set[str]:
        return self.backbone.frozen_names()

    @functools.cached_property
    def _frozen_hash(self) -> str:
        depth = self.backbone.trunk_depth
        return self.backbone.weights_hash([depth])[depth]


def _images_stand_alone(backbone: Backbone) -> bool:
    """Whether in the head no image has a part in what another comes to, nor chance."""
    network = backbone.network
    inside = [module for name, module in network.named_modules() if is_member(name, backbone.head_members)]
    mixing = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in inside)
    dropping = any(isinstance(module, torch.nn.Dropout) and module.p for module in inside)
    return not (mixing or dropping or getattr(network, "drop_rate", False))


def cosine_factor(step: int, steps: int, warmup: int, final: float) -> float:
    """Share of the learning rate at a step: linear rise, then half a cosine down to `final`.

    After Loshchilov and Hutter, SGDR (2017), eq. 5, with one cycle.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
