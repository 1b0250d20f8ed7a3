"""One prediction from settings to a table: a run's best checkpoint, any images, one row a file."""

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deepfake.config import PredictConfig
from deepfake.console import log, logging_to_terminal, progress
from deepfake.data.catalog import safe_csv
from deepfake.data.datamodule import normalise
from deepfake.data.images import SUFFIXES, UnreadableImage
from deepfake.data.layouts import neutral_path
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.errors import UserError
from deepfake.files import write_text
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import Detector
from deepfake.runs import is_complete

UNJUDGED = 3  # exit status: done, with files that could not be judged


def predict(cfg: PredictConfig) -> int:
    """See `deepfake.predict.run`."""
    with logging_to_terminal():
        files = _files(cfg.input)
        detector, how = load(Path(cfg.run).expanduser())
        images = PreparedImages(detector.backbone.input_spec, None, cfg.max_megapixels, how)
        with progress("images", len(files), cfg.progress) as advance:
            rows: list[tuple[Any, ...]] = []
            for start in range(0, len(files), cfg.batch_size):
                rows += _judged(detector, images, files[start : start + cfg.batch_size])
                for _ in files[start : start + cfg.batch_size]:
                    advance()
        table = pd.DataFrame(rows, columns=["path", "status", "reason", "probability", "prediction"])
        table["prediction"] = table["prediction"].astype("Int64")
        output = Path(cfg.output).expanduser()
        try:
            write_text(output, safe_csv(table))
        except OSError as error:
            raise UserError(
                f"output: expected a file that can be written, found {output} ({error.strerror})."
            ) from error
        judged = table["status"] == "ok"
        log.info(
            "%s: %d files, %d called fake, %d real, %d not judged",
            output, len(table), (table["prediction"] == 1).sum(), (table["prediction"] == 0).sum(), (~judged).sum(),
        )  # fmt: skip
    return 0 if judged.all() else UNJUDGED


def load(run: Path) -> tuple[Detector, Preparation]:
    """A finished run's network at its best epoch, in eval mode, and how its images are prepared.

    Only plain data are read from the checkpoint: names are looked up, never executed.

    Raises:
        UserError: no complete run, a checkpoint that cannot be read or does not fit.
    """
    if not is_complete(run):
        raise UserError(f"run={run}: expected the folder of a complete run, found none. Train it, or name another.")
    file = run / "checkpoints" / "best.ckpt"
    try:
        held: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        about = held["deepfake"]
        backbone = build_backbone(about["architecture"], "none", about["input"]["size"])
        detector = Detector(backbone)
        detector.load_state_dict(held["state_dict"], strict=True)
        how = Preparation(**about["preparation"])
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the readers raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: expected a checkpoint of this version, found one that cannot be used: {reason}"
        ) from error
    return detector.eval(), how


def _files(given: str | Sequence[str]) -> list[Path]:
    """The images that are meant, in the order given; of a folder all that end as images do, sorted."""
    if not isinstance(given, str):
        return [Path(file).expanduser() for file in given]
    place = Path(given).expanduser()
    if place.is_dir():
        found = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
        if not found:
            raise UserError(f"input={place}: expected images ({', '.join(SUFFIXES[:3])}, ...), found none.")
        return found
    if place.suffix.lower() == ".csv":
        try:
            with place.open(newline="", encoding="utf-8") as stream:
                return [place.parent / row["path"] for row in csv.DictReader(stream)]
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise UserError(
                f"input={place}: expected a CSV in UTF-8 with the column path, found {error!r}."
            ) from error
    if not place.exists():
        raise UserError(f"input={place}: expected an image, a folder, a CSV or a list [A,B], found nothing there.")
    return [place]


def _judged(detector: Detector, images: PreparedImages, files: Sequence[Path]) -> Iterator[tuple[Any, ...]]:
    """One row a file."""

    def prepared(file: Path) -> np.ndarray | str:
        try:
            return images.read(file, None)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor() as pool:  # threads: decoding releases the interpreter lock
        found = list(pool.map(prepared, files))
    pixels = [item for item in found if isinstance(item, np.ndarray)]
    probabilities: Iterator[float] = iter(())
    if pixels:
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            probabilities = iter(detector(normalise(batch, images.spec)).tolist())
    for file, item in zip(files, found, strict=True):
        path = neutral_path(str(file))
        if isinstance(item, str):
            yield path, "unreadable", item, None, None
        else:
            probability = float(f"{next(probabilities):.9g}")
            yield path, "ok", "", probability, int(probability > 0.5)
