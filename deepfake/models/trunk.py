"""What is frozen is computed once: the trunk's output for every image and view, stored and shared by all runs.

A frozen trunk is a pure function of the image, and an augmented image is a pure function of (seed, image, view). So
what one run computed serves every other of the same weights and views, whichever images it takes and however it
splits them: only what is missing is computed.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from deepfake.console import log, progress
from deepfake.files import write_bytes
from deepfake.models.backbones import Backbone
from deepfake.models.freezing import is_member

# The last stages are cheap beside the trunk. Storing below them lets unfreeze=0, 1 and 2 share one store.
SHARED_BY = 2

_PACK_ROWS, _PACK_BYTES = 512, 64e6  # a pack is written when it holds so much: what an interruption loses
_ABANDONED = 3600.0  # seconds after which what belongs to nothing is taken for a dead process's


def stored_depth(backbone: Backbone) -> int:
    """How many of the first stages are computed once; 0 where nothing can be."""
    if not backbone.splittable:
        return 0
    return min(backbone.trunk_depth, max(len(backbone.stages) - SHARED_BY, 0))


class StoredRows:
    """The outputs for a list of images: `rows[places]` copies those at these places, int (n,), to an array (n, ...).

    Straight from the maps: what was used before lies in the system's memory already, and a copy of all rows would
    take longer to make than it saves.

    Args:
        packs: arrays (rows, ...), of one type and shape of row; mapped, not read.
        pack: int (N,), which of them holds each image; -1: none.
        row: int (N,), and where in it.
    """

    def __init__(self, packs: Sequence[np.ndarray], pack: np.ndarray, row: np.ndarray) -> None:
        self._packs, self._pack, self._row = packs, pack, row

    @property
    def missing(self) -> np.ndarray:
        """Places of the images that are not stored, ascending."""
        return np.flatnonzero(self._pack < 0)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        pack, row = self._pack[places], self._row[places]
        rows = np.empty((len(places), *self._packs[0].shape[1:]), self._packs[0].dtype)
        for number in np.unique(pack):
            mine = pack == number
            rows[mine] = self._packs[number][row[mine]]
        return rows


class TrunkStore:
    """One row for each (image, view): the output of the first `depth` stages.

    A folder holds what shares weights, architecture, depth, precision, input and kind of device; its name is their
    hash. In it are packs of rows, plain .npy files that are written whole or not at all, and `index.sqlite`, which
    says where each row lies. Any number of processes may use it at once, and any file may be deleted at any time.

    Args:
        backbone: frozen at least up to `depth`.
        depth: stages that are stored.
        root: of all these folders, shared by all runs.
        precision: of the computation, for rounding differs.
        max_gb: of all of them, in 10^9 bytes. When a run needs room, the packs unused for longest go, but none that
            this run itself has found or written.
    """

    def __init__(self, backbone: Backbone, depth: int, root: Path, precision: str, max_gb: float) -> None:
        self.backbone, self.depth, self.root, self.max_bytes = backbone, depth, root, max_gb * 1e9
        self._identity = [
            backbone.architecture,
            depth,
            precision,
            asdict(backbone.input_spec),
            self._weights(),
        ]
        self._needed: set[Path] = set()  # packs that this run has found or written

    def _weights(self) -> str:
        """Hash of every parameter and buffer of the stored stages."""
        digest = hashlib.sha256()
        members = tuple(m for stage in self.backbone.stages[: self.depth] for m in stage.members)
        for name, tensor in self.backbone.network.state_dict().items():
            if is_member(name, members):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def folder(self) -> Path:
        """Where the rows lie that are the same as those computed here and now."""
        # The kind of device too: a graphics card rounds otherwise than a processor.
        return self.root / _digest([*self._identity, self.device.type])

    def compute(self, images: Tensor) -> Tensor:
        """Outputs of the stored stages for a batch of normalised images."""
        with torch.no_grad():
            return self.backbone.features(images, stop=self.depth)

    def find(self, images: Sequence[str], view: Any) -> StoredRows:
        """What is stored for these images; it is marked as used now.

        Args:
            images: sha256 of each file.
            view: plain data that decides the pixels, with the image: augmentation, seed, number.

        Raises:
            OSError, sqlite3.Error: the folder cannot be used.
        """
        with self._index() as index:
            asked = index.execute("SELECT image, pack, row FROM rows WHERE view = ?", [_digest(view)])
            known = {image: (pack, row) for image, pack, row in asked}
        places = [known.get(image, ("", -1)) for image in images]
        row = np.array([row for _, row in places], dtype=np.int64)
        names, code = np.unique([name for name, _ in places], return_inverse=True)
        packs: list[np.ndarray] = []
        pack = np.full(len(images), -1)
        for number, name in enumerate(names):
            mine = code == number
            rows = self._mapped(self.folder / name) if name else None
            if rows is None or row[mine].max() >= len(rows) or (packs and not _alike(rows, packs[0])):
                continue
            pack[mine] = len(packs)
            packs.append(rows)
        return StoredRows(packs, pack, row)

    def add(self, images: Sequence[str], view: Any, batches: Iterable[Tensor]) -> None:
        """Store the outputs for these images, pack by pack, in constant memory.

        Args:
            images: sha256 of each file, each once.
            view: as for `find`.
            batches: the outputs in the same order, in pieces of any size.

        Raises:
            OSError, sqlite3.Error: the disk is full, the limit reached or the folder cannot be written. The packs
                that were written before are kept.
        """
        done = 0
        waiting: list[np.ndarray] = []
        for batch in batches:
            waiting.append(to_numpy(batch))
            if sum(map(len, waiting)) >= _PACK_ROWS or sum(block.nbytes for block in waiting) >= _PACK_BYTES:
                done += self._write(images[done:], view, np.concatenate(waiting))
                waiting = []
        if waiting:
            done += self._write(images[done:], view, np.concatenate(waiting))
        if done != len(images):
            raise OSError(f"expected {len(images)} rows, found {done}")

    def claim(self, wanted: Iterable[tuple[Sequence[str], Any]]) -> int:
        """Keep from now on what is stored of all that this run wants, and remove what dead processes left.

        Args:
            wanted: images and view, as for `find`.

        Returns:
            How many rows are missing.

        Raises:
            OSError, sqlite3.Error: the folder cannot be used.
        """
        self._clean()
        return sum(len(self.find(images, view).missing) for images, view in wanted)

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        # Opened anew each time: a connection that is kept would go on writing into a file that was deleted.
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "index.sqlite"
        with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as index:
            # Readers do not wait for a writer. A crash of the machine may lose the last packs, never the file.
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("PRAGMA synchronous = NORMAL")
            index.execute(
                "CREATE TABLE IF NOT EXISTS rows (view TEXT, image TEXT, pack TEXT, row INTEGER, "
                "PRIMARY KEY (view, image)) WITHOUT ROWID"
            )
            yield index

    def _mapped(self, path: Path) -> np.ndarray | None:
        """A pack, marked as used now; None where it is gone or damaged."""
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                start, size = file.tell(), os.fstat(file.fileno()).st_size
            if not shape or size != start + math.prod(shape) * dtype.itemsize:
                raise ValueError("cut short")
            os.utime(path)
            # np.memmap would keep a file open for each pack, and large stores have more packs than a process may.
            content = torch.from_file(str(path), size=size, dtype=torch.uint8).numpy()
        except (FileNotFoundError, RuntimeError):  # deleted, before or just now
            return None
        except ValueError:
            path.unlink(missing_ok=True)  # so that it takes no room: its rows are made again, in another
            return None
        self._needed.add(path)
        return content[start:].view(dtype).reshape(shape)

    def _write(self, images: Sequence[str], view: Any, rows: np.ndarray) -> int:
        """Store a pack of the first of these images; returns how many they are."""
        content = io.BytesIO()
        np.save(content, rows)
        self._make_room(content.tell())
        path = self.folder / f"{secrets.token_hex(8)}.npy"
        # By writing, not through a map: on a full disk writing into a map kills the process. Durable, because a
        # crash of the machine may leave a file of the right length with nothing in it.
        write_bytes(path, content.getvalue())
        self._needed.add(path)
        view = _digest(view)
        with self._index() as index:
            index.execute("BEGIN IMMEDIATE")
            with index:  # commits, or rolls back
                index.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                    [(view, image, path.name, row) for row, image in enumerate(images[: len(rows)])],
                )
        return len(rows)

    def _make_room(self, size: int) -> None:
        packs = _files(self.root, ".npy")
        excess = size + sum(taken for _, taken, _ in packs) - self.max_bytes
        for _, taken, path in packs:
            if excess <= 0:
                return
            if path not in self._needed:
                path.unlink(missing_ok=True)  # whoever has it mapped keeps it until done
                excess -= taken
        if excess > 0:
            raise OSError(f"cache_max_gb={self.max_bytes / 1e9:g} is used up by what this run needs")

    def _clean(self) -> None:
        """Remove unfinished files, packs that the index does not know, and from the index packs that are gone."""
        long_ago = time.time() - _ABANDONED
        packs = _files(self.folder, ".npy")
        with self._index() as index:
            known = {pack for (pack,) in index.execute("SELECT DISTINCT pack FROM rows")}
            # Looked up one by one, after the index was read: there, a pack comes before its rows.
            gone = [pack for pack in known if not (self.folder / pack).exists()]
            if gone:
                index.execute("DELETE FROM rows WHERE pack IN (SELECT value FROM json_each(?))", [json.dumps(gone)])
        unknown = [(used, size, path) for used, size, path in packs if path.name not in known]
        for used, _, path in [*unknown, *_files(self.root, ".tmp")]:
            if used < long_ago:
                path.unlink(missing_ok=True)


def _digest(content: Any) -> str:
    """32 hexadecimal digits for plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _files(folder: Path, suffix: str) -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of all files of that kind in a folder and below, unused for longest first."""
    files = []
    for path in folder.rglob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):  # another run made room at the same time
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    return sorted(files)


def _alike(rows: np.ndarray, others: np.ndarray) -> bool:
    return rows.dtype == others.dtype and rows.shape[1:] == others.shape[1:]


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

    Where the store does not fit or fails, a line says so, and the run goes on with images.

    Args:
        store: shared.
        epochs: at most, for the estimate of the store's size.
        show: whether to show a bar.
    """

    def __init__(self, store: TrunkStore, epochs: int, show: bool) -> None:
        self.store, self.epochs, self.show = store, epochs, show
        self._on: bool | None = None  # not known before the network is where it will be trained
        self._held: dict[str, tuple[Any, StoredRows]] = {}  # of each part, (view, rows)

    def fits(self, data: Any) -> bool:
        """Say how much the store will take at most, and whether that fits.

        Raises:
            OSError, sqlite3.Error: the store cannot be used.
        """
        size = data.spec.size
        row = self.store.compute(torch.zeros(1, 3, size, size, device=self.store.device)).nbytes
        parts = {part: data.rows(part)["sha256"].unique().tolist() for part in ("train", "val", "test")}
        views = {json.dumps(key): key for key in (data.view_key("train", data.view(e)) for e in range(self.epochs))}
        wanted = [(parts["train"], key) for key in views.values()]
        wanted += [(parts[part], data.view_key(part, 0)) for part in ("val", "test")]
        total = sum(len(images) for images, _ in wanted)
        missing = total
        self.store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.store.root).free
        fits = row * total < self.store.max_bytes
        if fits:
            missing = self.store.claim(wanted)
            fits = row * missing < 0.8 * free
        log.info(
            "trunk      first %d stages computed once for each image and view, at most %.2f GB, %.0f%% of it there%s",
            self.store.depth,
            row * total / 1e9,
            100 * (1 - missing / total),
            "" if fits else f": more than cache_max_gb or the disk allow ({free / 1e9:.1f} GB free), so not stored",
        )  # fmt: skip
        return fits

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "train", trainer.current_epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "val", 0)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._provide(trainer, "test", 0)

    def _provide(self, trainer: L.Trainer, part: str, epoch: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        key = data.view_key(part, data.view(epoch))
        if self._on is not False and (part not in self._held or self._held[part][0] != key):
            self._held.pop(part, None)
            try:
                if self._on is None:
                    self._on = self.fits(data)
                if self._on:
                    self._hold(trainer, part, epoch, key)
            except (OSError, sqlite3.Error) as error:
                self._on = False
                log.warning("trunk output is not stored in %s: %s. The run goes on without.", self.store.root, error)
        data.provide(part, self._held[part][1] if part in self._held else None)

    def _hold(self, trainer: L.Trainer, part: str, epoch: int, key: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.rows(part)["sha256"].tolist()
        rows = self.store.find(images, key)
        if len(rows.missing):
            # Equal files have one row.
            missing = {images[place]: place for place in reversed(rows.missing.tolist())}
            places = sorted(missing.values())
            self.store.add([images[p] for p in places], key, self._computed(trainer, part, epoch, places))
            rows = self.store.find(images, key)
        if len(rows.missing):
            log.warning("trunk output of this epoch was deleted just now: the epoch goes on without.")
        else:
            self._held[part] = key, rows

    def _computed(self, trainer: L.Trainer, part: str, epoch: int, places: list[int]) -> Iterator[Tensor]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.image_batches(part, data.view(epoch), places)
        with progress(f"trunk, {part} view {data.view(epoch)}", len(batches), self.show) as advance:
            for batch in batches:
                images = data.normalised({"image": batch["image"].to(self.store.device)})
                with trainer.precision_plugin.forward_context():
                    features = self.store.compute(images)
                yield features
                advance()
