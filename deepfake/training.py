"""One training run from settings to a finished folder: data, network, fit, verdict, record."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from deepfake import runs
from deepfake.config import SyntheticConfig, TrainConfig
from deepfake.console import log, logging_to_file, logging_to_terminal, progress
from deepfake.data.augment import Augmentation
from deepfake.data.catalog import find_images, limit_images, read_manifest, scan
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.split import expect_both_classes, split
from deepfake.data.synthetic import make_faces
from deepfake.errors import UserError
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.files import write_json, write_text
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import Detector
from deepfake.models.trunk import StoredTrunk, TrunkStore, stored_depth
from deepfake.reporting import figures
from deepfake.reporting.recorder import Recorder

CHECKPOINTS, BEST, LAST = "checkpoints", "best.ckpt", "last.ckpt"


def train(cfg: TrainConfig) -> float:
    """See `deepfake.train.run`."""
    folder = runs.run_folder(cfg)
    with logging_to_terminal():
        if runs.is_complete(folder) and not cfg.force:
            log.info("%s is complete: skipped. force=true trains it again.", folder)
            return float(json.loads((folder / runs.SUMMARY).read_text())["best_value"])
        began = time.monotonic()
        # Data and network first: most mistakes show here, before a folder is made.
        manifest, unreadable, root = catalogue(cfg)
        L.seed_everything(cfg.seed, verbose=False)
        detector = build_detector(cfg)
        runs.begin(folder)
        with logging_to_file(folder / "train.log"):
            try:
                value = _fit_and_judge(cfg, folder, manifest, unreadable, root, detector, began)
            except BaseException as error:
                runs.finish(folder, "failed", str(error) or type(error).__name__)
                if not isinstance(error, UserError):
                    log.error("failed", exc_info=True)
                raise
            runs.finish(folder, "complete")
        return value


def catalogue(cfg: TrainConfig) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """The manifest with its split, the unreadable files, and the folder that their paths are below.

    Raises:
        UserError: no data, a class or part without images, one image under two labels.
    """
    data = cfg.data
    root = _synthetic_root(data) if isinstance(data, SyntheticConfig) else Path(str(data.root))
    found = read_manifest(root, data.manifest) if data.manifest else find_images(root)
    found = limit_images(found, data.limit)
    with progress("reading images", len(found), cfg.trainer.progress) as advance:
        table, unreadable = scan(found, root, data.max_megapixels, advance)
    for row in unreadable.head(10).itertuples():
        log.warning("left out: %r: %s", row.path, row.reason)
    if len(unreadable):
        log.warning("%d of %d files cannot be read and are left out.", len(unreadable), len(found))
    table["split"] = split(table, data.fractions, data.split_seed)
    expect_both_classes(table)
    return table, unreadable, root


def _synthetic_root(data: SyntheticConfig) -> Path:
    """Built-in data, made once for each setting of it."""
    key = f"n{data.images_per_source}-{data.size}px-{data.shortcut or 'plain'}-s{data.seed}"
    root = Path(data.cache_dir).expanduser() / "synthetic" / key
    if not root.exists():
        log.info("making the built-in data in %s", root)
    return make_faces(root, data.images_per_source, data.size, data.seed, data.shortcut)


def build_detector(cfg: TrainConfig) -> Detector:
    """The network with its weights and freezing, as the settings say.

    Raises:
        UserError: no such network, weights that do not fit, an `unfreeze` beyond the stages.
    """
    model = cfg.model
    backbone = build_backbone(model.timm, model.weights, model.input_size, model.drop_rate)
    record = {"model": model.name, "unfreeze": cfg.unfreeze, "seed": cfg.seed}
    return Detector(backbone, cfg.unfreeze, cfg.lr, cfg.scheduler, cfg.epochs, record)


def _fit_and_judge(
    cfg: TrainConfig,
    folder: Path,
    manifest: pd.DataFrame,
    unreadable: pd.DataFrame,
    root: Path,
    detector: Detector,
    began: float,
) -> float:
    _write_inputs(cfg, folder, manifest, unreadable, root)
    freezing = detector.freezing
    log.info("run folder %s", folder)
    log.info("data       %s", _describe(manifest))
    log.info("weights    %s", detector.backbone.weights_origin)
    log.info("frozen     %s", ", ".join(freezing.frozen) or "nothing")
    log.info(
        "trained    %s: %s of %s weights",
        ", ".join(freezing.trained),
        f"{freezing.trained_weights:,}",
        f"{freezing.total_weights:,}",
    )

    depth = stored_depth(detector.backbone)
    # A try of a few batches an epoch needs only those: there is nothing to share.
    share = cfg.cache == "auto" and depth > 0 and cfg.trainer.max_batches is None
    how = Augmentation(**{k: v for k, v in asdict(cfg.augment).items() if k != "name"})
    data = FaceDataModule(
        manifest,
        root,
        detector.backbone.input_spec,
        how,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        workers=cfg.data.workers,
        cache=Path(cfg.data.cache_dir).expanduser() if cfg.data.cache else None,
        max_megapixels=cfg.data.max_megapixels,
        provided=share,
    )
    if cfg.data.cache:
        _prepare(cfg, data)
    stored: list[L.Callback] = []
    if share:
        store = TrunkStore(
            detector.backbone,
            depth,
            Path(cfg.data.cache_dir).expanduser() / "trunk",
            cfg.trainer.precision,
            cfg.cache_max_gb,
        )
        trunk = StoredTrunk(store, cfg.epochs, cfg.trainer.progress)
        stored = [trunk] if trunk.fits(data) else []

    recorder = Recorder(folder, cfg.logger.image_grid)
    board = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
    best = ModelCheckpoint(
        folder / CHECKPOINTS,
        filename=Path(BEST).stem,
        monitor=detector.monitor,
        mode=detector.mode,
        save_last=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    callbacks: list[L.Callback] = [recorder, *stored, best]
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(detector.monitor, mode=detector.mode, patience=cfg.patience))
    if cfg.logger.tensorboard:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    trainer = _trainer(
        cfg,
        logger=board if cfg.logger.tensorboard else False,
        callbacks=callbacks,
        max_epochs=cfg.epochs,
        accumulate_grad_batches=cfg.accumulate,
    )
    trainer.fit(detector, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if best.best_model_score is None or not math.isfinite(float(best.best_model_score)):
        raise UserError(
            f"{detector.monitor} was never a finite number: expected at least one epoch with one. "
            f"Lower lr (now {cfg.lr:g})."
        )
    fit_seconds = time.monotonic() - began

    # Every figure reported from here on is of the best checkpoint. Its own trainer: no dashboard, so that the
    # curves of the fit are not written over.
    judge = _trainer(cfg, logger=False, callbacks=stored, enable_checkpointing=False)
    verdicts: dict[str, Any] = {}
    best_epoch = int(torch.load(best.best_model_path, weights_only=True, map_location="cpu")["epoch"])
    for part, look in (("val", judge.validate), ("test", judge.test)):
        look(detector, datamodule=data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)
        predictions = _predictions(detector, data.rows(part))
        write_text(folder / f"{part}_predictions.csv", predictions.to_csv(index=False, float_format="%.9g"))
        verdicts[part] = _verdict(predictions, float(judge.callback_metrics[f"{part}/loss"]))
        _write_confusion(folder, part, verdicts[part], best_epoch)

    history = recorder.history()
    for measure in ("loss", "accuracy"):
        figure = figures.curve_figure(history, measure, best_epoch, f"{measure}, {folder.name}")
        figures.save(figure, folder / "figures" / f"{measure}.png")
    best_row = history.loc[history["epoch"] == best_epoch].iloc[0]
    summary = {
        "run": folder.name,
        "model": cfg.model.timm if cfg.model.name == "timm" else cfg.model.name,
        "architecture": detector.backbone.architecture,
        "weights": detector.backbone.weights_origin,
        "unfreeze": cfg.unfreeze,
        "scheduler": cfg.scheduler.name,
        "seed": cfg.seed,
        "trained": list(freezing.trained),
        "frozen": list(freezing.frozen),
        "trained_weights": freezing.trained_weights,
        "total_weights": freezing.total_weights,
        "epochs_run": len(history),
        "best_epoch": best_epoch,
        "monitor": detector.monitor,
        "best_value": float(best.best_model_score),
        "seconds": round(time.monotonic() - began, 1),
        "fit_seconds": round(fit_seconds, 1),
        "train": {k.removeprefix("train/"): float(v) for k, v in best_row.items() if k.startswith("train/")},
        **verdicts,
    }
    write_json(folder / runs.SUMMARY, _without_nan(summary))
    if cfg.logger.tensorboard:
        _log_hparams(board, cfg, summary, verdicts, best_epoch)
    _say(summary, folder)
    return float(best.best_model_score)


def _trainer(cfg: TrainConfig, **how: Any) -> L.Trainer:
    t = cfg.trainer
    bar = [RichProgressBar(leave=False)] if t.progress and Console().is_terminal else []
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
        **{**how, "callbacks": [*how["callbacks"], *bar]},
    )


def _write_inputs(
    cfg: TrainConfig, folder: Path, manifest: pd.DataFrame, unreadable: pd.DataFrame, root: Path
) -> None:
    settings = asdict(cfg)
    settings["data"]["root"] = str(root)
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    write_json(folder / "environment.json", runs.environment())
    write_text(folder / "manifest.csv", manifest.to_csv(index=False))
    if len(unreadable):
        write_text(folder / "unreadable.csv", unreadable.to_csv(index=False))


def _describe(manifest: pd.DataFrame) -> str:
    parts = manifest["split"].value_counts()
    return (
        f"{len(manifest)} images of {manifest['source'].nunique()} sources, {manifest['label'].mean():.1%} "
        f"generated; train {parts['train']}, validation {parts['val']}, test {parts['test']}"
    )


def _prepare(cfg: TrainConfig, data: FaceDataModule) -> None:
    """Decode all images once, with every core, before the first step needs them."""
    jobs = [(data.root / row.path, row.sha256) for row in data.manifest.itertuples()]
    with (
        progress("preparing images", len(jobs), cfg.trainer.progress) as advance,
        ThreadPoolExecutor() as pool,
    ):
        for _ in pool.map(lambda job: data.images.read(*job), jobs):
            advance()


def _predictions(detector: Detector, rows: pd.DataFrame) -> pd.DataFrame:
    """path, source, label, probability of being generated, prediction at .5; in the manifest's order."""
    probability, _, index = (torch.cat(column).numpy() for column in zip(*detector.outputs, strict=True))
    table = rows.iloc[index][["path", "source", "label"]].copy()
    table["probability"] = probability.astype(np.float64)
    table["prediction"] = (table["probability"] > 0.5).astype(int)
    return table.sort_index()


def _verdict(predictions: pd.DataFrame, loss: float) -> dict[str, Any]:
    labels = predictions["label"].to_numpy()
    probabilities = predictions["probability"].to_numpy()
    figures_ = scores(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities)
    return {
        "loss": loss,
        **figures_,
        "n": len(labels),
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }


def _write_confusion(folder: Path, part: str, verdict: dict[str, Any], epoch: int) -> None:
    counts = np.array([[verdict["tn"], verdict["fp"]], [verdict["fn"], verdict["tp"]]], dtype=np.int64)
    table = pd.DataFrame(counts, index=["real", "fake"], columns=["predicted real", "predicted fake"])
    write_text(folder / f"confusion_{part}.csv", table.to_csv(index_label="truth"))
    name = {"val": "validation", "test": "test"}[part]
    figure = figures.confusion_figure(counts, f"{name}, best checkpoint (epoch {epoch})")
    figures.save(figure, folder / "figures" / f"confusion_{part}.png")


def _log_hparams(
    board: TensorBoardLogger, cfg: TrainConfig, summary: dict[str, Any], verdicts: dict[str, Any], epoch: int
) -> None:
    """Hyper-parameters beside the final figures, and the final pictures."""
    params = {
        "model": summary["model"],
        "unfreeze": str(cfg.unfreeze),
        "scheduler": cfg.scheduler.name,
        "augment": cfg.augment.name,
        "lr": cfg.lr,
        "batch": cfg.batch_size * cfg.accumulate,
        "seed": cfg.seed,
        "trained_weights": summary["trained_weights"],
    }
    final = {
        f"final/{part}_{measure}": float(verdicts[part][measure])
        for part in ("val", "test")
        for measure in ("loss", "accuracy", "f1", "auroc")
    }
    board.log_hyperparams(params, {name: value for name, value in final.items() if math.isfinite(value)})
    v = verdicts["test"]
    counts = np.array([[v["tn"], v["fp"]], [v["fn"], v["tp"]]], dtype=np.int64)
    board.experiment.add_figure(
        "test/confusion", figures.confusion_figure(counts, f"test, best checkpoint (epoch {epoch})"), epoch
    )
    board.finalize("success")


def _without_nan(value: Any) -> Any:
    """NaN is no JSON: what is undefined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(summary: dict[str, Any], folder: Path) -> None:
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
        "           figures of the best epoch by %s, %d of %d (from 0); %.0f s",
        summary["monitor"], summary["best_epoch"], summary["epochs_run"], summary["seconds"],
    )  # fmt: skip
