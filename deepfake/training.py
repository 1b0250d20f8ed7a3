"""One training run from settings to a finished folder: data, network, fit, verdict, record."""

import errno
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from deepfake import runs
from deepfake.analysis.audit import report
from deepfake.checkpoints import Keeper, drop_previous, is_whole, read_last, write_checkpoint
from deepfake.config import PlateauConfig, TrainConfig
from deepfake.console import log, logging_to_file, logging_to_terminal, one_at_a_time, progress, remembering
from deepfake.data.augment import Augmentation
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.device_augment import supported
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
from deepfake.evaluation.calibration import Calibration, calibrate
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule
from deepfake.models.trunk import StoredTrunk, Trunk, storable
from deepfake.ranks import Ranks, together
from deepfake.reporting import record
from deepfake.reporting.recorder import Recorder
from deepfake.reporting.run_page import write_run_page
from deepfake.signals import Stopped, Stopping
from deepfake.untrusted import read_json

# Augmented views of each training image, by measurement on real faces (experiments/README.md): a classifier alone
# learns the same from one as from another in every epoch, the last stages learn less from one and the same from four.
VIEWS_FOR_THE_CLASSIFIER, VIEWS_FOR_STAGES = 1, 4

_ENDED_LOADER = re.compile(r"DataLoader worker .*?(killed by signal: [\w ]+|exited unexpectedly)")  # PyTorch's words
_audited: dict[tuple[Any, ...], dict[str, Any]] = {}  # findings by images and settings, of this process


def train(cfg: TrainConfig) -> float:
    """See `deepfake.train.run`."""
    folder = runs.run_folder(cfg)
    with logging_to_terminal(), Stopping() as stopping:
        runs.expect_writable(folder.parent)
        began = time.monotonic()
        # Data and network first: most mistakes show here, before a folder is made.
        with remembering() as said:
            found = catalogue(cfg.data, cfg.trainer.progress)
            say_left_out(found.table)
            expect_trainable(found, cfg.data.hold_out)
            how = preparation(cfg.data, found.table)
            audit = look_for_shortcuts(cfg, found, how)
            complete = runs.is_complete(folder)
            if (value := _complete_value(cfg, folder, found)) is not None:
                return value
            L.seed_everything(cfg.seed, verbose=False)
            detector, device = build_detector(cfg), device_of(cfg)
        with runs.alone(folder):
            if not complete and (value := _complete_value(cfg, folder, found)) is not None:
                return value  # another process has made it meanwhile
            with remembering() as also_said:
                state = _state_to_go_on_from(cfg, folder, found)
            if state is None:
                runs.begin(folder)
            else:
                runs.note(folder, "running")
            with logging_to_file(folder / "train.log", [*said, *also_said]):
                try:
                    with _told_to_users(cfg, folder):
                        value = _fit_and_judge(
                            cfg, folder, found, how, audit, detector, device, began, stopping, state
                        )
                except BaseException as error:
                    if not isinstance(error, UserError | Stopped):
                        log.error("failed", exc_info=True)
                    with suppress(OSError):  # the disk may be what failed
                        status = "stopped" if isinstance(error, Stopped) else "failed"
                        runs.note(folder, status, str(error) or type(error).__name__)
                    raise
                runs.note(folder, "complete")
            return value


def _complete_value(cfg: TrainConfig, folder: Path, found: Catalogue) -> float | None:
    """What the command returns for a run that is complete; None where it is to be trained, or trained on."""
    if cfg.force or not runs.is_complete(folder):
        return None
    if change := record.what_changed(folder, found.table):
        log.warning("complete, but %s since: trained again, the earlier run set aside.", change)
        return None
    if is_whole(folder / runs.BEST) is False:
        log.warning("complete, but %s is damaged since: made anew.", folder / runs.BEST)
        return None
    try:
        value = float(read_json(folder / runs.SUMMARY)["best_value"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("complete, but %s is damaged since (%s): made anew.", folder / runs.SUMMARY, error)
        return None
    log.info("%s is complete: skipped. force=true trains it again.", folder)
    return value


def _state_to_go_on_from(cfg: TrainConfig, folder: Path, found: Catalogue) -> dict[str, Any] | None:
    """What an interrupted run of these settings and images has kept; None where it begins anew.

    Raises:
        UserError: resume=must, and there is nothing.
    """
    if cfg.force or cfg.resume == "never":
        return None
    why = "no checkpoint that is whole"
    if state := read_last(folder / runs.CHECKPOINTS):
        if not (change := record.what_changed(folder, found.table)):
            if versions := runs.other_versions(folder):
                log.warning("gone on from what was made with other versions, so not to the bit: %s", versions)
            log.info(
                "goes on from epoch %s%s of %s",
                state["epoch"], f", image {len(state['seen']['label'])}" if state["seen"] else "", folder,
            )  # fmt: skip
            return state
        why = change
        if not runs.is_complete(folder):  # of one that is, the same was said
            log.warning("not gone on from, for %s since: begins anew, the earlier run set aside.", change)
    if cfg.resume == "must":
        raise UserError(
            f"resume=must: expected an interrupted run in {folder} to go on from, found {why}. "
            f"resume=auto begins anew."
        )
    return None


@contextmanager
def _told_to_users(cfg: TrainConfig, folder: Path) -> Iterator[None]:
    """What a machine lacks, as an error that says what to do.

    Raises:
        UserError: memory, or the disk, is used up, or a loader process was killed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise UserError(
            f"output_dir: expected room to write in {folder}, found: {error.strerror}. What was kept before is "
            f"whole: make room, or the folder writable, and run the same command again."
        ) from error
    except (MemoryError, RuntimeError) as error:  # of which torch.OutOfMemoryError is one
        if ended := _ENDED_LOADER.search(str(error)):
            raise UserError(
                f"a loader process ended: {ended[1]}. Often the memory was used up: lower data.workers (now "
                f"{cfg.data.workers}) or batch_size. What was trained is kept: the same command goes on from there."
            ) from error
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        raise UserError(
            f"the memory of the device is used up: lower batch_size (now {cfg.batch_size}) and raise accumulate (now "
            f"{cfg.accumulate}) by as much, which trains the same, or unfreeze fewer stages. What was kept is whole."
        ) from error


def look_for_shortcuts(cfg: TrainConfig, found: Catalogue, how: Preparation) -> dict[str, Any] | None:
    """The audit that costs no decoding; None where it was not asked for.

    Raises:
        UserError: audit=strict and something that puts any result in doubt.
    """
    if cfg.audit == "off":
        return None
    # The jobs of a sweep have the same images: of those that were looked at last, the findings are kept.
    content = pd.util.hash_pandas_object(found.table, index=False).to_numpy().tobytes()
    key = content, how.equalise, tuple(cfg.data.hold_out)
    if key not in _audited:
        _audited.clear()
        _audited[key] = report(found.table, how.equalise, held_out=cfg.data.hold_out)
    audit = _audited[key]
    serious = _serious(audit)
    if serious and cfg.audit == "strict":
        raise UserError(
            f"audit=strict refuses this data: {serious[0]}. python -m deepfake.audit shows all {len(serious)} "
            f"serious findings."
        )
    return audit


def _serious(audit: dict[str, Any]) -> list[str]:
    return [finding["sentence"] for finding in audit["findings"] if finding["level"] != "note"]


def build_detector(cfg: TrainConfig) -> DetectorModule:
    """The network with its weights and freezing, as the settings say.

    Raises:
        UserError: no such network, weights that do not fit, an `unfreeze` beyond the stages.
    """
    model = cfg.model
    backbone = build_backbone(model.timm, model.weights, model.input_size, model.drop_rate)
    settings = {"model": model.name, "unfreeze": cfg.unfreeze, "seed": cfg.seed}
    return DetectorModule(
        backbone, cfg.unfreeze, cfg.lr, cfg.scheduler, cfg.epochs, cfg.batch_size, cfg.accumulate, settings
    )


def _fit_and_judge(
    cfg: TrainConfig,
    folder: Path,
    found: Catalogue,
    how: Preparation,
    audit: dict[str, Any] | None,
    detector: DetectorModule,
    device: torch.device,
    began: float,
    stopping: Stopping,
    state: dict[str, Any] | None,
) -> float:
    data, found = data_module(cfg, found, how, detector, device)
    record.write_inputs(folder, cfg, found.table, found.root, audit)
    _announce(cfg, folder, found, audit, detector, how)
    detector.record["preparation"] = asdict(how)
    recorder = Recorder(folder, cfg.logger.image_grid, cfg.logger.tensorboard)
    trunk = _run_trunk_once(cfg, detector, data, device)
    keeper = Keeper(folder / runs.CHECKPOINTS, recorder, stopping, state)
    if not keeper.finished:
        with together(cfg.trainer.devices, _follow, cfg, folder, found, how) as ranks:
            ranks.of_first(state)  # what all of them go on from
            _fit(cfg, folder, detector, data, keeper, ranks)
    if keeper.best is None:
        raise UserError(
            f"{detector.monitor} was never a finite number: expected at least one epoch with one. "
            f"Lower lr (now {cfg.lr:g})."
        )

    # Every figure reported from here on is of the best checkpoint.
    best_epoch = keeper.best["epoch"]
    recorder.write()
    verdicts, pictures = _judge(cfg, folder, detector, data, keeper.best)
    history = recorder.history()
    pictures |= record.write_curves(folder, history, best_epoch)
    summary = record.summary(cfg, folder, detector.backbone, detector.freezing, history, best_epoch) | {
        "monitor": detector.monitor,
        "best_value": keeper.best_value,
        "preparation": asdict(how) | {"size": data.spec.size},
        "trunk": None
        if trunk is None
        else {"engine": trunk.engine, "precision": trunk.precision, "views": data.views},
        "seconds": round(time.monotonic() - began, 1),
        **verdicts,
    }
    record.write_summary(folder, summary)
    drop_previous(folder / runs.CHECKPOINTS)
    if cfg.logger.tensorboard:
        record.log_final(folder, cfg, summary, pictures)
    write_run_page(folder)
    _say(summary)
    return float(summary["best_value"])


def _announce(
    cfg: TrainConfig,
    folder: Path,
    found: Catalogue,
    audit: dict[str, Any] | None,
    detector: DetectorModule,
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
    if cfg.trainer.devices > 1:
        log.info("devices    %d processes, each with its share of every batch", cfg.trainer.devices)
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


def data_module(
    cfg: TrainConfig, found: Catalogue, how: Preparation, detector: DetectorModule, device: torch.device
) -> tuple[FaceDataModule, Catalogue]:
    """The loaders, every image prepared; and the catalogue, with what could not be prepared left out.

    Raises:
        UserError: what is left has a part without a class.
    """
    data = _loaders(cfg, found, how, detector, device)
    rows = data.unprepared()
    with ExitStack() as held:
        if (stored := data.images.folder) and len(rows):
            held.enter_context(one_at_a_time(stored.parent, f"prepares {stored.name} of", found.root))
            rows = data.unprepared()
        advance = held.enter_context(progress("preparing images", len(rows), cfg.trainer.progress))
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


def _loaders(
    cfg: TrainConfig, found: Catalogue, how: Preparation, detector: DetectorModule, device: torch.device
) -> FaceDataModule:
    augmentation = Augmentation(**{k: v for k, v in asdict(cfg.augment).items() if k != "name"})
    return FaceDataModule(
        found.table,
        found.root,
        detector.backbone.input_spec,
        augmentation,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        workers=cfg.data.workers,
        cache=cache_folder(cfg.data),
        max_megapixels=cfg.data.max_megapixels,
        preparation=how,
        cache_gb=cfg.data.cache.max_gb,
        views=_views(cfg, detector),
        view_seed=cfg.view_seed,
        step=cfg.batch_size * cfg.accumulate,
        # A graphics card takes images faster than a processor augments them one by one.
        device_augment=device.type == "cuda" and supported(augmentation),
    )


def _views(cfg: TrainConfig, detector: DetectorModule) -> int | None:
    """How many views of a training image there are; None: another each epoch."""
    if cfg.views == "auto":
        if not storable(detector.backbone):
            return None  # nothing can be computed once: a view that was seen before would save nothing
        alone = detector.backbone.trunk_depth == len(detector.backbone.stages)
        return VIEWS_FOR_THE_CLASSIFIER if alone else VIEWS_FOR_STAGES
    return None if cfg.views == "all" else int(cfg.views)


def _run_trunk_once(
    cfg: TrainConfig, detector: DetectorModule, data: FaceDataModule, device: torch.device
) -> Trunk | None:
    """Have what is frozen run in its engine and, where it can be, stored. None: every batch runs as a whole."""
    # A try of a few batches is over before an engine is built.
    if not storable(detector.backbone) or cfg.trainer.max_batches is not None:
        return None
    stages = len(detector.backbone.stages)
    kept = cfg.trunk.keep if cfg.cache == "auto" else []
    depths = [stages - unfreeze for unfreeze in kept if unfreeze < stages]
    trunk = detector.trunk = Trunk(detector.backbone, depths, cfg.trunk.engine, cfg.trunk.precision, device)
    if cfg.cache == "auto":
        root = Path(cfg.data.cache.dir).expanduser() / "trunk"
        stored = StoredTrunk(trunk, root, cfg.cache_max_gb, cfg.epochs, cfg.trainer.progress, cfg.trunk.threads)
        data.provider = stored.rows
    return trunk


def _fit(
    cfg: TrainConfig,
    folder: Path,
    detector: DetectorModule,
    data: FaceDataModule,
    keeper: Keeper,
    ranks: Ranks,
) -> None:
    """Train, as one of the ranks, until the epochs or the patience end.

    Raises:
        UserError: the loss is no finite number; the best epoch so far is written.
        Stopped: the user or the system stopped it.
    """
    if not torch.cuda.is_available():
        # Adam asks for a graphics card at every step. Lightning has PyTorch ask the driver's own library, and where
        # there is none, looking for it takes as long as the rest of a classifier's step.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    callbacks: list[L.Callback] = [keeper] if ranks.rank else [keeper.recorder, keeper]
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(detector.monitor, mode=detector.mode, patience=cfg.patience))
    trainer = _trainer(
        cfg,
        callbacks,
        ranks.rank,
        logger=False,
        max_epochs=cfg.epochs,
        # Each epoch has rows of its own; and after the rest of an epoch comes a whole one.
        reload_dataloaders_every_n_epochs=1 if data.provider or keeper.within_epoch else 0,
    )
    detector.ranks = data.ranks = keeper.ranks = ranks
    keeper.stopping.agree = ranks.agreed
    keeper.prepare(trainer, detector, data)
    if ranks.world > 1:
        state, frozen = ranks.of_first((detector.trained_state(), detector.description()["frozen"]))
        detector.load_trained(state, frozen)
    try:
        trainer.fit(detector, datamodule=data)
    except BaseException as error:
        # Lightning has ended the loader processes of what failed, training or validation, but not the other's: who
        # cleans up after it, some jobs later, would wait for half a minute.
        with suppress(Exception):
            trainer.fit_loop.teardown()
        if isinstance(error, Exception):
            with suppress(OSError):  # the disk may be what failed
                keeper.write_best(folder / runs.BEST)
        raise
    finally:
        detector.ranks = data.ranks = keeper.ranks = alone = Ranks()
        keeper.stopping.agree = alone.agreed


def _follow(cfg: TrainConfig, folder: Path, found: Catalogue, how: Preparation, ranks: Ranks) -> None:
    """What every rank but the first does: its share of the training. It shows and writes nothing."""
    logging.disable()
    warnings.simplefilter("ignore")
    cfg.trainer.progress = False
    with _told_to_users(cfg, folder), Stopping(answers=False) as stopping:
        L.seed_everything(cfg.seed, verbose=False)
        detector = build_detector(cfg)
        device = device_of(cfg, ranks.rank)
        data = _loaders(cfg, found, how, detector, device)
        _run_trunk_once(cfg, detector, data, device)
        keeper = Keeper(folder / runs.CHECKPOINTS, Recorder(folder), stopping, ranks.of_first(None))
        _fit(cfg, folder, detector, data, keeper, ranks)


def _judge(
    cfg: TrainConfig, folder: Path, detector: DetectorModule, data: FaceDataModule, kept: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of the best checkpoint on validation and test, {"val": ..., "test": ...}, and pictures, by name.

    Between the two, temperature and thresholds are fitted on validation, and the checkpoint is written: nothing of
    the test part has been looked at by then.
    """
    best = kept | {"state_dict": dict(kept["state_dict"]), "deepfake": dict(kept["deepfake"])}
    detector.complete(best)
    detector.load_state_dict(best["state_dict"])
    # A trainer without the dashboard, so that the curves of the fit are not written over; in the precision in which
    # every later command judges, so that what is fitted on these margins holds for theirs.
    trainer = _trainer(cfg, [], logger=False, enable_checkpointing=False, precision="32-true")
    verdicts, pictures = {}, {}
    calibration = None
    for part, look in (("val", trainer.validate), ("test", trainer.test)):
        look(detector, datamodule=data, verbose=False)
        margin, label, index = (column.numpy() for column in detector.outputs(part))
        if part == "val":
            calibration = _calibrated(label, margin)
            best["deepfake"]["calibration"] = calibration and calibration.as_dict()
            write_checkpoint(folder / runs.BEST, best)
        predictions = record.predictions(data.rows(part), index, margin, calibration)
        loss = detector.figures[part]["loss"]
        verdicts[part], pictures[f"{part}/confusion"] = record.write_verdict(
            folder, part, predictions, loss, best["epoch"]
        )
    verdicts["calibration"] = best["deepfake"]["calibration"]
    return verdicts, pictures


def _calibrated(labels: Any, margins: Any) -> Calibration | None:
    try:
        found = calibrate(labels, margins)
    except ValueError as error:  # a try of a few batches, all of one class
        log.warning("calibrated not, for the validation images that were judged do not allow it: %s", error)
        return None
    thresholds = ", ".join(f"{name} {threshold.value:.3f}" for name, threshold in found.thresholds.items())
    log.info("calibrated on validation: temperature %.2f; thresholds %s", found.temperature, thresholds)
    return found


def _trainer(cfg: TrainConfig, callbacks: list[L.Callback], rank: int = 0, **how: Any) -> L.Trainer:
    t = cfg.trainer
    # Of each rank its own: what they tell each other is not Lightning's to know.
    devices = [rank] if rank and t.accelerator != "cpu" and torch.cuda.is_available() else 1
    bar: list[L.Callback] = [RichProgressBar(leave=False)] if t.progress and Console().is_terminal else []
    try:
        return L.Trainer(
            accelerator=t.accelerator,
            devices=devices,
            deterministic=t.deterministic,
            limit_train_batches=t.max_batches,
            limit_val_batches=t.max_batches,
            limit_test_batches=t.max_batches,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=bool(bar),
            enable_model_summary=False,
            callbacks=[*callbacks, *bar],
            **{"precision": t.precision} | how,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.accelerator={t.accelerator}: expected one that this machine has, found: {reason} "
            f"Use trainer=auto or trainer=cpu."
        ) from error


def device_of(cfg: TrainConfig, rank: int = 0) -> torch.device:
    """Where the network will be trained.

    Raises:
        UserError: this machine has fewer such devices than processes are to train.
    """
    device = _trainer(cfg, [], rank, logger=False, enable_checkpointing=False).strategy.root_device
    there = {"cpu": cfg.trainer.devices, "cuda": torch.cuda.device_count()}.get(device.type, 1)
    if cfg.trainer.devices > there:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: expected no more than this machine has, found {there} of the "
            f"kind {device.type}. On the processor any number of processes can train: trainer=cpu."
        )
    return device


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
