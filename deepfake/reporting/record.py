"""What a finished run leaves in its folder: inputs, predictions, figures of the best checkpoint, summary."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.special import expit

from deepfake import runs
from deepfake.config import TrainConfig
from deepfake.data.catalog import read_catalogue, safe_csv, write_catalogue
from deepfake.errors import UserError
from deepfake.evaluation.calibration import Calibration
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.files import as_json, write_json, write_text
from deepfake.models.backbones import Backbone
from deepfake.models.freezing import Freezing
from deepfake.reporting import board, figures

_NAMES = {"val": "validation", "test": "test"}


def write_inputs(
    folder: Path, cfg: TrainConfig, table: pd.DataFrame, root: Path, audit: dict[str, Any] | None
) -> None:
    """config.yaml, environment.json, manifest.csv and .parquet (every file, also what is left out), audit.json."""
    settings = asdict(cfg)
    settings["data"]["root"] = str(root.absolute())  # to be found from anywhere
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    write_json(folder / runs.ENVIRONMENT, runs.environment())
    write_catalogue(table, folder / "manifest.csv")
    if audit is not None:
        write_json(folder / "audit.json", audit)


def what_changed(folder: Path, table: pd.DataFrame) -> str:
    """How the images differ from those that a run was made of, in words; "" if they do not.

    Args:
        folder: of a complete run.
        table: the catalogue as it is now.
    """
    try:
        before = read_catalogue(folder / "manifest.parquet")
    except UserError:
        return "its manifest cannot be read"
    columns = ["path", "sha256", "label", "group"]
    # What the run could not use, such as a picture without a face, has no part there.
    now = table[table["path"].isin(before.loc[before["split"] != "", "path"])]
    used = before[before["split"] != ""]
    changed = _rows(table, columns) ^ _rows(before, columns)
    changed |= _rows(now, ["path", "split"]) ^ _rows(used, ["path", "split"])
    if not changed:
        return ""
    return f"{len({row[0] for row in changed}):,} images or their parts have changed, such as {min(changed)[0]!r},"


def _rows(table: pd.DataFrame, columns: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(table[column].astype(str) for column in columns), strict=True))


def predictions(rows: pd.DataFrame, index: NDArray, margin: NDArray, calibration: Calibration | None) -> pd.DataFrame:
    """One row an image, in the manifest's order.

    Args:
        rows: a part of the manifest.
        index: int (N,), which of the rows were judged.
        margin: float (N,), logit(fake) - logit(real) of each.
        calibration: of the run; None: probabilities are as the network gives them.

    Returns:
        path, source, label, margin, probability (P(fake), calibrated), prediction (1 where it is above .5).
    """
    table = rows.iloc[index][["path", "source", "label"]].copy()
    table["margin"] = margin = margin.astype(np.float64)
    table["probability"] = expit(margin) if calibration is None else calibration.probabilities(margin)
    table["prediction"] = (table["probability"] > 0.5).astype(int)
    return table.sort_index()


def write_verdict(
    folder: Path, part: str, table: pd.DataFrame, loss: float, epoch: int
) -> tuple[dict[str, Any], bytes]:
    """Predictions and confusion matrix of one part; returns its figures with 95 % intervals, and the picture."""
    # Nine digits give a float32 back exactly.
    rounded = table.assign(**{c: [float(f"{p:.9g}") for p in table[c]] for c in ("margin", "probability")})
    write_text(folder / f"{part}_predictions.csv", safe_csv(rounded))
    labels, p, margins = (table[column].to_numpy() for column in ("label", "probability", "margin"))
    verdict = {
        "loss": loss,
        **scores(labels, p, margins=margins),
        "n": len(table),
        "intervals": {k: list(v) for k, v in bootstrap_intervals(labels, p, margins=margins).items()},
    }
    counts = _counts(verdict)
    matrix = pd.DataFrame(counts, index=["real", "fake"], columns=["predicted real", "predicted fake"])
    write_text(folder / f"confusion_{part}.csv", matrix.to_csv(index_label="truth"))
    figure = figures.confusion_figure(counts, f"{_NAMES[part]}, best checkpoint (epoch {epoch})")
    return verdict, figures.save(figure, folder / "figures" / f"confusion_{part}.png")


def write_curves(folder: Path, history: pd.DataFrame, best_epoch: int) -> dict[str, bytes]:
    """Loss and accuracy over the epochs, as pictures; returned by name for the dashboard."""
    return {
        f"curves/{measure}": figures.save(
            figures.curve_figure(history, measure, best_epoch, f"{measure}, {folder.name}"),
            folder / "figures" / f"{measure}.png",
        )
        for measure in ("loss", "accuracy")
    }


def summary(
    cfg: TrainConfig, folder: Path, backbone: Backbone, freezing: Freezing, history: pd.DataFrame, best_epoch: int
) -> dict[str, Any]:
    """What was trained and how far, as plain data; the train figures are the best epoch's running averages."""
    best_row = history.loc[history["epoch"] == best_epoch].iloc[0]
    return {
        "run": folder.name,
        "model": cfg.model.timm if cfg.model.name == "timm" else cfg.model.name,
        "architecture": backbone.architecture,
        "weights": backbone.weights_origin,
        "unfreeze": cfg.unfreeze,
        "scheduler": cfg.scheduler.name,
        "seed": cfg.seed,
        **asdict(freezing),
        "epochs_run": len(history),
        "best_epoch": best_epoch,
        "train": {
            str(k).removeprefix("train/"): float(v) for k, v in best_row.items() if str(k).startswith("train/")
        },
    }


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """summary.json, which every later command reads."""
    write_json(folder / runs.SUMMARY, as_json(content))


def log_final(folder: Path, cfg: TrainConfig, content: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """On the dashboard: hyper-parameters beside the final figures, curves of the predictions, pictures by name."""
    params = {
        "model": content["model"],
        "unfreeze": str(cfg.unfreeze),
        "scheduler": cfg.scheduler.name,
        "augment": cfg.augment.name,
        "preprocess": cfg.data.preprocess,
        "lr": cfg.lr,
        "batch": cfg.batch_size * cfg.accumulate,
        "seed": cfg.seed,
        "trained_weights": content["trained_weights"],
    }
    final = {
        f"final/{part}_{measure}": float(content[part][measure])
        for part in _NAMES
        for measure in ("loss", "accuracy", "f1", "auroc", "ap")
    }
    with board.part(folder / runs.TENSORBOARD, "final") as writer:
        board.add_hparams(writer, params, final, first=("model", "unfreeze", "scheduler", "lr", "seed"))
        for part in _NAMES:
            judged = pd.read_csv(folder / f"{part}_predictions.csv", usecols=["label", "probability"])
            board.add_pr_curves(writer, part, judged, content["best_epoch"])
        for name, picture in pictures.items():
            board.add_picture(writer, name, picture, content["best_epoch"])


def _counts(verdict: dict[str, Any]) -> NDArray[np.int64]:
    return np.array([[verdict["tn"], verdict["fp"]], [verdict["fn"], verdict["tp"]]], dtype=np.int64)
