"""What is frozen is computed once: the trunk's output for every image and view, stored and shared by all runs.

A frozen trunk is a pure function of the image, and an augmented image is a pure function of (seed, image, view).
So an epoch of one run, and the same epoch of any other run that shares weights, images and seed, need one pass.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import numpy as np
import torch
from torch import Tensor

from deepfake.console import log, progress
from deepfake.models.backbones import Backbone
from deepfake.models.freezing import is_member

# The last stages are cheap beside the trunk. Storing below them lets unfreeze=0, 1 and 2 share one store.
SHARED_BY = 2


def stored_depth(backbone: Backbone) -> int:
    """How many of the first stages are computed once; 0 where nothing can be."""
    if not backbone.splittable:
        return 0
    return min(backbone.trunk_depth, max(len(backbone.stages) - SHARED_BY, 0))


class TrunkStore:
    """One file for each list of images and view: the outputs of the first `depth` stages, memory-mapped.

    Files are named by a hash of everything that decides their content and are written whole or not at all, so
    that jobs at the same time agree and the folder can be deleted at any time.

    Args:
        backbone: frozen at least up to `depth`.
        depth: stages that are stored.
        folder: shared by all runs.
        precision: of the computation, for rounding differs.
        max_gb: when the files take more, those unused for longest go.
    """

    def __init__(self, backbone: Backbone, depth: int, folder: Path, precision: str, max_gb: float) -> None:
        self.backbone, self.depth, self.folder, self.max_bytes = backbone, depth, folder, max_gb * 1e9
        self._identity = [
            backbone.architecture,
            depth,
            precision,
            asdict(backbone.input_spec),
            self._weights(),
        ]

    def _weights(self) -> str:
        """Hash of every parameter and buffer of the stored stages."""
        digest = hashlib.sha256()
        members = tuple(m for stage in self.backbone.stages[: self.depth] for m in stage.members)
        for name, tensor in self.backbone.network.state_dict().items():
            if is_member(name, members):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def path(self, images: Iterable[str], view: Any) -> Path:
        """Where the outputs for these images lie.

        Args:
            images: sha256 of each file, in order.
            view: plain data that decides the pixels, with the images: augmentation, seed, number.
        """
        key = json.dumps([self._identity, view, list(images)], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"

    def row(self, images: Tensor) -> Tensor:
        """Outputs of the stored stages for a batch of normalised images."""
        with torch.no_grad():
            return self.backbone.features(images, stop=self.depth)

    def read(self, path: Path) -> np.ndarray | None:
        """The outputs, one row an image, or None where they are not stored."""
        try:
            rows = np.load(path, mmap_mode="r")
            path.touch()  # used just now
        except (OSError, ValueError, EOFError):
            return None
        return rows

    def write(self, path: Path, count: int, batches: Iterable[Tensor]) -> None:
        """Store the outputs for all images, batch by batch, in constant memory.

        Raises:
            OSError: the disk is full or cannot be written; nothing is left.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{id(self)}-{np.random.default_rng().integers(2**32)}.tmp")
        try:
            # A plain file, not a memory map: on a full disk writing into a map kills the process.
            with temporary.open("wb") as file:
                found = 0
                for batch in batches:
                    block = to_numpy(batch)
                    if not found:
                        _write_header(file, block.dtype, (count, *block.shape[1:]))
                    file.write(block.tobytes())
                    found += len(block)
            if found != count:
                raise OSError(f"expected {count} rows, found {found}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._evict(keep=path)

    def _evict(self, keep: Path) -> None:
        files = []
        for file in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another run made room at the same time
                files.append((file.stat().st_mtime, file.stat().st_size, file))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, file in sorted(files):
            if excess <= 0:
                return
            if file != keep:
                excess -= size
                file.unlink(missing_ok=True)  # whoever has it mapped keeps it until done


def _write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def to_numpy(features: Tensor) -> np.ndarray:
    """NumPy has no bfloat16: its bits travel as uint16."""
    features = features.detach().cpu().contiguous()
    return features.view(torch.uint16).numpy() if features.dtype == torch.bfloat16 else features.numpy()


def restored(rows: Tensor) -> Tensor:
    """The inverse of `to_numpy` for a batch; maps come back laid out channels last, as the trunk had them."""
    features = rows.view(torch.bfloat16) if rows.dtype == torch.uint16 else rows
    return features.contiguous(memory_format=torch.channels_last) if features.ndim == 4 else features


class StoredTrunk(L.Callback):
    """Fills the store with what the coming epoch needs and hands the data module the rows instead of images.

    Args:
        store: shared.
        epochs: at most, for the estimate of the store's size.
        show: whether to show a bar.
    """

    def __init__(self, store: TrunkStore, epochs: int, show: bool) -> None:
        self.store, self.epochs, self.show = store, epochs, show

    def fits(self, data: Any) -> bool:
        """Say how much the store will take at most, and whether that fits."""
        image = data.image_batches("val", 0)
        row = self.store.row(data.normalised(next(iter(image)))[:1].to(self._device()))
        views = len({json.dumps(data.view_key("train", epoch)) for epoch in range(self.epochs)})
        counts = {part: len(data.rows(part)) for part in ("train", "val", "test")}
        size = row.nbytes * (counts["train"] * views + counts["val"] + counts["test"])
        self.store.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.store.folder).free
        fits = size < min(self.store.max_bytes, 0.8 * free)
        log.info(
            "trunk      first %d stages computed once for each image and view, at most %.2f GB%s",
            self.store.depth,
            size / 1e9,
            "" if fits else f": more than cache_max_gb or the disk allow ({free / 1e9:.1f} GB free), so not stored",
        )  # fmt: skip
        return fits

    def _device(self) -> torch.device:
        return next(self.store.backbone.parameters()).device

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "train", trainer.current_epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "val", 0)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "test", 0)

    def _provide(self, trainer: L.Trainer, part: str, view: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.rows(part)["sha256"]
        path = self.store.path(images, data.view_key(part, view))
        rows = self.store.read(path)
        if rows is None:
            try:
                self.store.write(path, len(images), self._computed(trainer, data, part, view))
            except OSError as error:
                log.warning("trunk output is not stored: %s. The run goes on without.", error)
            rows = self.store.read(path)
        data.provide(part, rows)

    def _computed(self, trainer: L.Trainer, data: Any, part: str, view: int) -> Iterable[Tensor]:
        batches = data.image_batches(part, view)
        with progress(f"trunk, {part} view {view}", len(batches), self.show) as advance:
            for batch in batches:
                with trainer.precision_plugin.forward_context():
                    yield self.store.row(data.normalised(batch).to(self._device()))
                advance()
