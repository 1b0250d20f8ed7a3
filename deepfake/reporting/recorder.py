"""Writes what happened in each epoch, once for every reader: metrics.csv, TensorBoard and the training images."""

import io
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from deepfake.files import write_bytes
from deepfake.reporting import figures


class Recorder(L.Callback):
    """One row an epoch, with the same names in the file and on the dashboard.

    Args:
        folder: the run's.
        image_grid: training images shown once, after augmentation.
    """

    def __init__(self, folder: Path, image_grid: int = 0) -> None:
        self.folder, self.image_grid = folder, image_grid
        self.rows: list[dict[str, float]] = []
        self.seconds: list[float] = []  # each epoch took
        self._began = 0.0

    def history(self) -> pd.DataFrame:
        """metrics.csv as a table."""
        return pd.DataFrame(self.rows)

    def write(self) -> None:
        """metrics.csv, the same in every run of the same settings, and seconds.csv, which is not."""
        # Not waited for: the rows are in the checkpoint too. Nine digits give a float32 back exactly.
        metrics = self.history().to_csv(index=False, float_format="%.9g")
        write_bytes(self.folder / "metrics.csv", metrics.encode(), durable=False)
        seconds = pd.DataFrame({"epoch": [row["epoch"] for row in self.rows], "seconds": self.seconds})
        write_bytes(self.folder / "seconds.csv", seconds.to_csv(index=False).encode(), durable=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board, data = _board(trainer), getattr(trainer, "datamodule", None)
        if data is None or not self.image_grid:
            return
        dataset = data.dataset("train")
        # Evenly spaced, so that every source of the sorted manifest is seen.
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(self.image_grid, len(dataset))).astype(int))
        images = np.stack([dataset[0, int(index)][0] for index in chosen])
        sources = data.rows("train")["source"]
        grid = figures.image_grid(
            images,
            [sources[int(i)] for i in chosen],
            title="training images of epoch 0, as the network sees them",
        )
        picture = figures.save(grid, self.folder / "figures" / "augmented.jpg")
        if board is not None:
            show(board.experiment, "data/augmented", picture)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning calls this after validation, so that both parts' figures are there."""
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        figures: Any = pl_module.figures
        for part in ("train", "val"):
            row |= {f"{part}/{name}": value for name, value in figures[part].items()}
        self.rows.append(row)
        self.seconds.append(round(time.monotonic() - self._began, 3))
        self.write()

        board = _board(trainer)
        if board is not None:
            scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
            scalars["seconds"] = self.seconds[-1]
            board.log_metrics({k: v for k, v in scalars.items() if math.isfinite(v)}, step=trainer.current_epoch)


def show(board: SummaryWriter, name: str, encoded: bytes, step: int = 0) -> None:
    """Put a picture file, PNG or JPEG, on the dashboard as it is: `add_image` would encode it once more."""
    width, height = Image.open(io.BytesIO(encoded)).size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=encoded)
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _board(trainer: L.Trainer) -> TensorBoardLogger | None:
    return next((log for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)
