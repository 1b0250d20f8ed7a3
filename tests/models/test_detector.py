"""What trains, what is logged and what a checkpoint holds, each against plain PyTorch or scikit-learn."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from deepfake.config import CosineConfig, PlateauConfig, SchedulerConfig
from deepfake.errors import UserError
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule, cosine_factor
from deepfake.models.freezing import is_member

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),  # what is frozen is, on purpose
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]
SIZE = 32
TINY = "test_resnet"  # timm's own for tests


def detector(name: str = TINY, unfreeze: int | str = 0, **settings: Any) -> DetectorModule:
    torch.manual_seed(0)
    return DetectorModule(build_backbone(name, "none", input_size=SIZE), unfreeze, **settings)


def loader(images: int, batch_size: int = 4, seed: int = 0) -> DataLoader:
    """Noise with labels 0 and 1 in turn, in batches as the data module makes them."""
    noise = torch.randn(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return DataLoader(
        [{"image": noise[i], "label": i % 2, "index": i} for i in range(images)],  # type: ignore[arg-type]
        batch_size=batch_size,
    )


def fit(
    module: DetectorModule,
    train: DataLoader,
    val: DataLoader | None = None,
    epochs: int = 1,
    callbacks: list[L.Callback] | None = None,
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True,
    )
    trainer.fit(module, train, val)
    return trainer


class Watch(L.Callback):
    """Looks at every training batch before its step, and takes down each epoch's figures."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []  # logits and labels of the epoch under way
        self.epochs: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen = []
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.seen.append((pl_module.backbone.network(batch["image"]), batch["label"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        logits, labels = (torch.cat(column) for column in zip(*self.seen, strict=True))
        self.epochs.append(
            {
                "lr": self.lr,
                "steps": trainer.global_step,
                "loss": F.cross_entropy(logits.double(), labels).item(),
                "labels": labels.numpy(),
                "probabilities": logits.softmax(1)[:, 1].numpy(),
                "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
            }
        )


def by_sklearn(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    said = probabilities > 0.5
    return {
        "accuracy": sklearn.accuracy_score(labels, said),
        "precision": sklearn.precision_score(labels, said, zero_division=0),
        "recall": sklearn.recall_score(labels, said, zero_division=0),
        "f1": sklearn.f1_score(labels, said, zero_division=0),
        "auroc": sklearn.roc_auc_score(labels, probabilities),
        "ap": sklearn.average_precision_score(labels, probabilities),
    }


# ------------------------------------------------------------------------------------------------- loss and steps


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_logged_loss_is_the_mean_over_images_whatever_is_accumulated(accumulate: int) -> None:
    watch = Watch()
    # The last batch is smaller, so that the mean over batches is not the mean over images.
    fit(detector(lr=1e-2, accumulate=accumulate), loader(26), loader(6), epochs=2, callbacks=[watch])
    for epoch in watch.epochs:
        assert epoch["logged"]["train/loss"] == pytest.approx(epoch["loss"], rel=1e-5)
    assert abs(watch.epochs[0]["loss"] - watch.epochs[1]["loss"]) > 1e-4, "nothing was learned: the test sees nothing"


def test_leftover_batches_step_and_leak_nothing_into_the_next_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam divides a gradient by its own size and so makes of a rounding a whole step: a larger epsilon leaves small
    # what is small.
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(torch.optim.Adam, eps=1e-3))
    watch, module, batches = Watch(), detector(unfreeze=1, lr=1e-2, accumulate=4), loader(28)
    fit(module, batches, epochs=2, callbacks=[watch])
    assert len(batches) == 7
    assert [epoch["steps"] for epoch in watch.epochs] == [2, 4]

    # The same in plain PyTorch: steps after batches 4 and 7, gradients cleared after each.
    plain = detector(unfreeze=1, lr=1e-2)
    optimizer = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        for number, batch in enumerate(batches):
            (F.cross_entropy(plain.backbone(batch["image"]), batch["label"]) / 4).backward()
            if number in (3, 6):
                optimizer.step()
                optimizer.zero_grad()
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_training_and_says_what_to_do(value: float) -> None:
    module = detector(lr=1e-2)
    with torch.no_grad():
        module.backbone.network.get_classifier().bias[0] = value  # type: ignore[operator]
    with pytest.raises(UserError, match=r"loss is \w+ at epoch 0, batch 0: expected a finite number\. Lower lr"):
        fit(module, loader(8))


# ------------------------------------------------------------------------------------------------- what trains


@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
def test_the_optimizer_holds_exactly_what_trains(unfreeze: int | str) -> None:
    module = detector(unfreeze=unfreeze)
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    stages = module.backbone.stages
    last = stages if unfreeze == "all" else stages[len(stages) - int(unfreeze) :]
    members = [member for stage in last for member in stage.members] + list(module.backbone.head_members)
    named = module.backbone.network.named_parameters()
    assert held == {id(p) for name, p in named if is_member(name, members)}


@pytest.mark.parametrize("unfreeze", [0, 1, 2])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "vit_tiny_patch16_224"])
def test_after_a_fit_what_is_frozen_has_the_same_bytes_and_the_rest_has_not(name: str, unfreeze: int) -> None:
    module = detector(name, unfreeze, lr=1e-2)
    network = module.backbone.network

    def content() -> dict[str, bytes]:
        return {key: tensor.numpy().tobytes() for key, tensor in network.state_dict().items()}

    before = content()
    fit(module, loader(8), loader(4, seed=1), epochs=2)  # validation lies between the epochs
    frozen = [member for stage in module.backbone.stages[: module.backbone.trunk_depth] for member in stage.members]
    changed = {key for key, value in content().items() if value != before[key]}
    assert changed == {key for key in before if not is_member(key, frozen)}


def test_the_vision_transformer_of_the_study() -> None:
    module = DetectorModule(build_backbone("vit_base_patch16_224", "none"), 0)
    spec = module.backbone.input_spec
    assert (spec.size, spec.mean, spec.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert module.freezing.trained_weights == 768 * 2 + 2
    assert len(module.freezing.frozen) == 13  # patch embedding and twelve blocks


# ------------------------------------------------------------------------------------------------- learning rate


class Told(DetectorModule):
    """A detector whose validation losses are told beforehand, epoch by epoch."""

    losses: tuple[float, ...] = ()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.losses[self.current_epoch])


def rates(losses: tuple[float, ...], scheduler: SchedulerConfig) -> list[float]:
    """The learning rate of each epoch."""
    module = Told(build_backbone(TINY, "none", input_size=SIZE), 0, lr=1.0, scheduler=scheduler)
    module.losses, watch = losses, Watch()
    fit(module, loader(2), loader(2), epochs=len(losses), callbacks=[watch])
    return [epoch["lr"] for epoch in watch.epochs]


def test_plateau_halves_after_more_than_two_epochs_that_were_not_better() -> None:
    losses = (1.0, 1.1, 1.0, 1.2, 0.9, 1.0, 0.95, 1.0, 1.0)
    assert rates(losses, PlateauConfig()) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_counts_as_better_what_early_stopping_and_the_checkpoint_do() -> None:
    assert rates(tuple(1 - n * 1e-6 for n in range(6)), PlateauConfig()) == [1.0] * 6


@pytest.mark.parametrize(("patience", "seen"), [(3, [1, 1, 1, 1]), (4, [1, 1, 1, 1, 0.5])])
def test_plateau_acts_only_where_early_stopping_waits_longer(patience: int, seen: list[float]) -> None:
    """With the study's own 2 and 3 the rate falls in the epoch that ends the training."""
    module = Told(build_backbone(TINY, "none", input_size=SIZE), 0, lr=1.0, scheduler=PlateauConfig())
    module.losses, watch = (1.0,) + (2.0,) * 9, Watch()
    stop = L.pytorch.callbacks.EarlyStopping(module.monitor, mode=module.mode, patience=patience)
    fit(module, loader(2), loader(2), epochs=10, callbacks=[watch, stop])
    assert [epoch["lr"] for epoch in watch.epochs] == seen


def test_without_scheduler_the_rate_stays() -> None:
    assert rates((1.0, 2.0, 3.0, 4.0), SchedulerConfig()) == [1.0] * 4


def test_the_scheduler_looks_at_what_the_detector_calls_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectorModule, "monitor", "val/auroc")
    monkeypatch.setattr(DetectorModule, "mode", "max")
    setup = detector(scheduler=PlateauConfig()).configure_optimizers()["lr_scheduler"]
    assert (setup["monitor"], setup["scheduler"].mode) == ("val/auroc", "max")


def cosine_of_torch(steps: int, final: float) -> list[float]:
    """Factors by PyTorch's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=final)
    found = []
    for _ in range(steps + 1):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("steps", "warmup", "final"), [(10, 0, 0.01), (40, 7, 0.0), (9, 3, 1.0), (5, 4, 0.2)])
def test_cosine_rises_linearly_and_falls_as_pytorch_does(steps: int, warmup: int, final: float) -> None:
    found = [cosine_factor(step, steps, warmup, final) for step in range(steps + 1)]
    assert found[:warmup] == pytest.approx(np.linspace(0, 1, warmup + 2)[1:-1])
    assert found[warmup:] == pytest.approx(cosine_of_torch(steps - warmup, final))
    assert cosine_factor(10 * steps, steps, warmup, final) == pytest.approx(final)


def test_cosine_counts_optimizer_steps() -> None:
    used: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            used.append(optimizer.param_groups[0]["lr"])

    scheduler = CosineConfig(warmup_epochs=1, final_factor=0.1)
    module = detector(lr=0.5, scheduler=scheduler, epochs=4, batch_size=2, accumulate=2)
    fit(module, loader(10, batch_size=2), epochs=4, callbacks=[Rates()])
    assert len(used) == 12  # five batches an epoch, two a step
    assert used == pytest.approx([0.5 * cosine_factor(step, 12, 3, 0.1) for step in range(12)])


# ------------------------------------------------------------------------------------------------- figures


def test_metrics_of_every_epoch_are_those_of_sklearn() -> None:
    watch, module = Watch(), detector(lr=1e-2)
    validated: list[tuple[np.ndarray, np.ndarray]] = []

    class Validated(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            margins, labels, index = (column.numpy() for column in module.outputs("val"))
            probabilities = 1 / (1 + np.exp(-margins))
            assert index.tolist() == list(range(14))
            validated.append((labels, probabilities))

    fit(module, loader(22), loader(14, seed=1), epochs=3, callbacks=[watch, Validated()])
    assert len(watch.epochs) == len(validated) == 3
    for epoch, (labels, probabilities) in zip(watch.epochs, validated, strict=True):
        for part, figures in (
            ("train", by_sklearn(epoch["labels"], epoch["probabilities"])),
            ("val", by_sklearn(labels, probabilities)),
        ):
            assert {m: epoch["logged"][f"{part}/{m}"] for m in figures} == pytest.approx(figures, abs=1e-6)
        assert epoch["logged"]["val/loss"] == pytest.approx(sklearn.log_loss(labels, probabilities), rel=1e-5)
    assert len({tuple(probabilities) for _, probabilities in validated}) == 3


# ------------------------------------------------------------------------------------------------- checkpoint


def scalars_only(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and scalars_only(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(scalars_only, value))
    return value is None or isinstance(value, str | int | float)


@pytest.mark.parametrize("scheduler", [SchedulerConfig, PlateauConfig, CosineConfig])
def test_a_checkpoint_is_plain_data_that_says_what_it_is(
    tmp_path: Path, scheduler: Callable[[], SchedulerConfig]
) -> None:
    module = detector(unfreeze=1, scheduler=scheduler(), epochs=2, record={"seed": 3})
    trainer = fit(module, loader(8), loader(4), epochs=2)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    held = torch.load(tmp_path / "any.ckpt", weights_only=True)
    left_out = {f"backbone.network.{name}" for name in module.backbone.frozen_names()}
    assert left_out
    assert not left_out & held["state_dict"].keys(), "what is frozen is left out"
    module.complete(held)

    about = held["deepfake"]
    assert scalars_only(about)
    assert about["architecture"] == TINY
    assert about["classes"] == ["real", "fake"]
    assert about["seed"] == 3
    spec = module.backbone.input_spec
    assert about["input"] == {
        "size": SIZE,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
    }
    # What it says is enough to build the network again and have the same answers.
    fresh = DetectorModule(build_backbone(about["architecture"], "none", about["input"]["size"]))
    fresh.load_state_dict(held["state_dict"])
    images = torch.randn(4, 3, SIZE, SIZE)
    assert torch.equal(fresh.eval()(images), module.eval()(images))
    assert torch.equal(module(images), module.backbone(images).softmax(1)[:, 1])


def test_a_checkpoint_of_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    module = detector(unfreeze=1)
    fit(module, loader(8)).save_checkpoint(tmp_path / "any.ckpt")
    held = torch.load(tmp_path / "any.ckpt", weights_only=True)
    torch.manual_seed(1)
    other = DetectorModule(build_backbone(TINY, "none", input_size=SIZE), 1)
    with pytest.raises(UserError, match=r"made with other weights in the frozen stages \(sha256 \w{8}\.\.\.\)"):
        other.complete(held)
