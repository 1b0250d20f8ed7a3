"""One training run from settings to a finished folder: data, network, fit, verdict, record."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from deepfake import runs
from deepfake.analysis.audit import report
from deepfake.config import PlateauConfig, TrainConfig
from deepfake.console import log, logging_to_file, logging_to_terminal, progress, remembering
from deepfake.data.augment import Augmentation
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.prepared import Preparation
from deepfake.dataset import (
    Catalogue,
    cache_folder,
    catalogue,
    expect_trainable,
    left_out,
    preparation,
    say_left_out,
)
from deepfake.errors import UserError
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import Detector
from deepfake.models.trunk import StoredTrunk, TrunkStore, stored_depth
from deepfake.reporting import record
from deepfake.reporting.recorder import Recorder


def train(cfg: TrainConfig) -> float:
    """See `deepfake.train.run`."""
    folder = runs.run_folder(cfg)
    with logging_to_terminal():
        runs.expect_writable(folder.parent)
        began = time.monotonic()
        # Data and network first: most mistakes show here, before a folder is made.
        with remembering() as said:
            found = catalogue(cfg.data, cfg.trainer.progress)
            say_left_out(found.table)
            expect_trainable(found, cfg.data.hold_out)
            how = preparation(cfg.data, found.table)
            audit = look_for_shortcuts(cfg, found, how)
            if runs.is_complete(folder) and not cfg.force:
                change = record.what_changed(folder, found.table)
                if not change:
                    log.info("%s is complete: skipped. force=true trains it again.", folder)
                    return float(json.loads((folder / runs.SUMMARY).read_text())["best_value"])
                log.warning("complete, but %s since: trained again, the earlier run set aside.", change)
            L.seed_everything(cfg.seed, verbose=False)
            detector = build_detector(cfg)
        runs.begin(folder)
        with logging_to_file(folder / "train.log", said):
            try:
                value = _fit_and_judge(cfg, folder, found, how, audit, detector, began)
            except BaseException as error:
                runs.finish(folder, "failed", str(error) or type(error).__name__)
                if not isinstance(error, UserError | KeyboardInterrupt):
                    log.error("failed", exc_info=True)
                raise
            runs.finish(folder, "complete")
        return value


def look_for_shortcuts(cfg: TrainConfig, found: Catalogue, how: Preparation) -> dict[str, Any] | None:
    """The audit that costs no decoding; None where it was not asked for.

    Raises:
        UserError: audit=strict and something that puts any result in doubt.
    """
    if cfg.audit == "off":
        return None
    audit = report(found.table, how.equalise, held_out=cfg.data.hold_out)
    serious = _serious(audit)
    if serious and cfg.audit == "strict":
        raise UserError(
            f"audit=strict refuses this data: {serious[0]}. python -m deepfake.audit shows all {len(serious)} "
            f"serious findings."
        )
    return audit


def _serious(audit: dict[str, Any]) -> list[str]:
    return [finding["sentence"] for finding in audit["findings"] if finding["level"] != "note"]


def build_detector(cfg: TrainConfig) -> Detector:
    """The network with its weights and freezing, as the settings say.

    Raises:
        UserError: no such network, weights that do not fit, an `unfreeze` beyond the stages.
    """
    model = cfg.model
    backbone = build_backbone(model.timm, model.weights, model.input_size, model.drop_rate)
    settings = {"model": model.name, "unfreeze": cfg.unfreeze, "seed": cfg.seed}
    return Detector(backbone, cfg.unfreeze, cfg.lr, cfg.scheduler, cfg.epochs, settings)


def _fit_and_judge(
    cfg: TrainConfig,
    folder: Path,
    found: Catalogue,
    how: Preparation,
    audit: dict[str, Any] | None,
    detector: Detector,
    began: float,
) -> float:
    data, found = _data_module(cfg, found, how, detector)
    record.write_inputs(folder, cfg, found.table, found.root, audit)
    _announce(cfg, folder, found, audit, detector, how)
    detector.record["preparation"] = asdict(how)
    trunk = _stored_trunk(cfg, detector)
    board = TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    recorder = Recorder(folder, cfg.logger.image_grid)
    best = _fit(cfg, folder, detector, data, [recorder, *trunk], board if cfg.logger.tensorboard else None)

    # Every figure reported from here on is of the best checkpoint.
    best_epoch = int(torch.load(best.best_model_path, weights_only=True, map_location="cpu")["epoch"])
    verdicts = _judge(cfg, folder, detector, data, trunk, best.best_model_path, best_epoch)
    history = recorder.history()
    curves = record.write_curves(folder, history, best_epoch)
    summary = record.summary(cfg, folder, detector.backbone, detector.freezing, history, best_epoch) | {
        "monitor": detector.monitor,
        "best_value": float(best.best_model_score),  # type: ignore[arg-type]
        "preparation": asdict(how) | {"size": data.spec.size},
        "seconds": round(time.monotonic() - began, 1),
        **verdicts,
    }
    record.write_summary(folder, summary)
    if cfg.logger.tensorboard:
        record.log_final(board, cfg, summary, curves)
    _say(summary)
    return float(summary["best_value"])


def _announce(
    cfg: TrainConfig,
    folder: Path,
    found: Catalogue,
    audit: dict[str, Any] | None,
    detector: Detector,
    how: Preparation,
) -> None:
    manifest, freezing = found.table[found.table["split"] != ""], detector.freezing
    parts = manifest["split"].value_counts()
    log.info("run folder %s", folder)
    log.info(
        "data       %d images of %d sources, %.1f%% generated; train %d, validation %d, test %d",
        len(manifest), manifest["source"].nunique(), 100 * manifest["label"].mean(),
        parts["train"], parts["val"], parts["test"],
    )  # fmt: skip
    if audit is not None:
        for sentence in _serious(audit):
            log.warning("audit      %s", sentence)
        if not _serious(audit):
            log.info("audit      sizes, formats and duplicates put no result in doubt")
    if how.equalise:
        log.info("equalised  centre square, %d pixels, JPEG of one quality, for every image", how.equalise)
    log.info("weights    %s", detector.backbone.weights_origin)
    log.info("frozen     %s", ", ".join(freezing.frozen) or "nothing")
    log.info(
        "trained    %s: %s of %s weights",
        ", ".join(freezing.trained), f"{freezing.trained_weights:,}", f"{freezing.total_weights:,}",
    )  # fmt: skip
    if cfg.data.preprocess == "crop" and (cfg.augment.rotation or cfg.augment.translation):
        log.warning(
            "augment    rotation and translation resample the crops, which blurs the traces that "
            "data.preprocess=crop keeps: augment=native does neither."
        )
    plateau = cfg.scheduler
    if isinstance(plateau, PlateauConfig) and cfg.patience == plateau.patience + 1:
        # So in the study: the scheduler acts one bad epoch after its patience is used up, the stopping at once.
        log.warning(
            "scheduler  patience=%d stops the training in the very epoch in which scheduler.patience=%d would "
            "lower the learning rate: raise patience for the scheduler to act.",
            cfg.patience, plateau.patience,
        )  # fmt: skip


def _data_module(
    cfg: TrainConfig, found: Catalogue, how: Preparation, detector: Detector
) -> tuple[FaceDataModule, Catalogue]:
    """The loaders, every image prepared; and the catalogue, with what could not be prepared left out.

    Raises:
        UserError: what is left has a part without a class.
    """
    data = FaceDataModule(
        found.table,
        found.root,
        detector.backbone.input_spec,
        Augmentation(**{k: v for k, v in asdict(cfg.augment).items() if k != "name"}),
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        workers=cfg.data.workers,
        cache=cache_folder(cfg.data),
        max_megapixels=cfg.data.max_megapixels,
        preparation=how,
        cache_gb=cfg.data.cache.max_gb,
        views=None if cfg.views == "all" else cfg.views,
    )
    rows = data.unprepared()
    with progress("preparing images", len(rows), cfg.trainer.progress) as advance:
        unusable = data.prepare(rows, advance)
    if len(unusable):
        table = left_out(found.table, unusable)
        lost = table[table["path"].isin(unusable["path"])]
        say_left_out(lost)
        # One class losing more than the other is a shortcut of its own.
        counts = lost["source"].value_counts()
        log.warning("left out by source: %s", ", ".join(f"{source} {count}" for source, count in counts.items()))
        found = found._replace(table=table)
        expect_trainable(found, cfg.data.hold_out)
        data.manifest = table
    return data, found


def _stored_trunk(cfg: TrainConfig, detector: Detector) -> list[L.Callback]:
    """The callback that computes what is frozen once, or nothing."""
    depth = stored_depth(detector.backbone)
    # A try of a few batches an epoch needs only those: there is nothing to share.
    if cfg.cache == "off" or depth == 0 or cfg.trainer.max_batches is not None:
        return []
    root = Path(cfg.data.cache.dir).expanduser() / "trunk"
    store = TrunkStore(detector.backbone, depth, root, cfg.trainer.precision, cfg.cache_max_gb)
    return [StoredTrunk(store, cfg.epochs, cfg.trainer.progress)]


def _fit(
    cfg: TrainConfig,
    folder: Path,
    detector: Detector,
    data: FaceDataModule,
    callbacks: list[L.Callback],
    board: TensorBoardLogger | None,
) -> ModelCheckpoint:
    """Train until the epochs or the patience end; returns who knows the best checkpoint.

    Raises:
        UserError: no epoch had a finite validation loss.
        KeyboardInterrupt: the user stopped it.
    """
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, filename="best", monitor=detector.monitor, mode=detector.mode, enable_version_counter=False
    )
    # One of its own: with `save_last` the best would write it, only when there is a better one.
    last = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    callbacks = [*callbacks, best, last]
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(detector.monitor, mode=detector.mode, patience=cfg.patience))
    if board is not None:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    trainer = _trainer(
        cfg,
        callbacks,
        logger=board or False,
        max_epochs=cfg.epochs,
        accumulate_grad_batches=cfg.accumulate,
    )
    try:
        trainer.fit(detector, datamodule=data)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt("interrupted") from error
    if best.best_model_score is None or not math.isfinite(float(best.best_model_score)):
        raise UserError(
            f"{detector.monitor} was never a finite number: expected at least one epoch with one. "
            f"Lower lr (now {cfg.lr:g})."
        )
    return best


def _judge(
    cfg: TrainConfig,
    folder: Path,
    detector: Detector,
    data: FaceDataModule,
    trunk: list[L.Callback],
    checkpoint: str,
    epoch: int,
) -> dict[str, Any]:
    """Figures of one checkpoint on validation and test, written and returned as {"val": ..., "test": ...}."""
    # A trainer without the dashboard, so that the curves of the fit are not written over.
    trainer = _trainer(cfg, trunk, logger=False, enable_checkpointing=False)
    verdicts = {}
    for part, look in (("val", trainer.validate), ("test", trainer.test)):
        look(detector, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        probability, _, index = (torch.cat(column).numpy() for column in zip(*detector.outputs, strict=True))
        predictions = record.predictions(data.rows(part), index, probability)
        loss = float(trainer.callback_metrics[f"{part}/loss"])
        verdicts[part] = record.write_verdict(folder, part, predictions, loss, epoch)
    return verdicts


def _trainer(cfg: TrainConfig, callbacks: list[L.Callback], **how: Any) -> L.Trainer:
    t = cfg.trainer
    bar: list[L.Callback] = [RichProgressBar(leave=False)] if t.progress and Console().is_terminal else []
    try:
        return L.Trainer(
            accelerator=t.accelerator,
            devices=t.devices,
            precision=t.precision,  # type: ignore[arg-type]
            deterministic=t.deterministic,
            limit_train_batches=t.max_batches,
            limit_val_batches=t.max_batches,
            limit_test_batches=t.max_batches,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=bool(bar),
            enable_model_summary=False,
            callbacks=[*callbacks, *bar],
            **how,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.accelerator={t.accelerator}: expected one that this machine has, found: {reason} "
            f"Use trainer=auto or trainer=cpu."
        ) from error


def _say(summary: dict[str, Any]) -> None:
    for part, name in (("val", "validation"), ("test", "test")):
        v = summary[part]
        (low, high), (a_low, a_high) = v["intervals"]["accuracy"], v["intervals"]["auroc"]
        log.info(
            "%-10s accuracy %.3f [%.3f, %.3f], AUROC %.3f [%.3f, %.3f] on %d images, %.0f%% generated "
            "(always the larger class: %.3f)",
            name, v["accuracy"], low, high, v["auroc"], a_low, a_high, v["n"], 100 * v["prevalence"],
            v["majority"],
        )  # fmt: skip
    log.info(
        "           figures of the epoch with the best %s: %d (from 0) of %d trained; %.0f s in all",
        summary["monitor"], summary["best_epoch"], summary["epochs_run"], summary["seconds"],
    )  # fmt: skip
