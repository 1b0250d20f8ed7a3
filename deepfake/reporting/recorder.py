"""Writes what happened in each epoch, once for every reader: metrics.csv, TensorBoard and the training images."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from deepfake import runs
from deepfake.files import write_bytes
from deepfake.reporting import board, figures


class Recorder(L.Callback):
    """One row an epoch, with the same names in the file and on the dashboard.

    Args:
        folder: the run's.
        image_grid: training images shown once, after augmentation.
        tensorboard: whether there is a dashboard.
    """

    def __init__(self, folder: Path, image_grid: int = 0, tensorboard: bool = False) -> None:
        self.folder, self.image_grid, self.tensorboard = folder, image_grid, tensorboard
        self.rows: list[dict[str, float]] = []
        self.seconds: list[float] = []  # each epoch took
        self._began = 0.0
        self._board: SummaryWriter | None = None

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
        if self.tensorboard:
            # Of a run that goes on, also the epochs before: their events, and more that was not kept, are removed.
            self._board = board.part(self.folder / runs.TENSORBOARD, "epochs")
            for number in range(len(self.rows)):
                self._show(number)
        data = getattr(trainer, "datamodule", None)
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
        if self._board is not None:
            board.add_picture(self._board, "data/augmented", picture)

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

        self._show(len(self.rows) - 1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, number: int) -> None:
        """A row on the dashboard, at the time at which it was made."""
        if self._board is None:
            return
        row = self.rows[number]
        scalars = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        ended = time.time() - sum(self.seconds[number + 1 :])
        board.add_scalars(self._board, scalars | {"seconds": self.seconds[number]}, int(row["epoch"]), ended)

    def _close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
