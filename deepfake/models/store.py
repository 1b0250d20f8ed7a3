"""Rows on the disk, one for each (image, view), found by content: nothing that stands here is computed twice."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from deepfake.files import write_bytes

_PACK_ROWS, _PACK_BYTES = 512, 64e6  # a pack is written when it holds so much: what an interruption loses
_ABANDONED = 3600.0  # seconds after which what belongs to nothing is taken for a dead process's
_PACK = re.compile(r"[0-9a-f]{16}\.npy")  # its name: what an index calls otherwise is no file of the store
# What NumPy writes before plain numbers. Its own reader also takes objects, which are addresses in memory.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f[248]|<u2)', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}(?:, \d{1,9})*),?\), \} *\n",
    re.DOTALL,
)
_HEADER_BYTES = 128  # as NumPy fills them up


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
    """One row for each (image, view): what a trunk makes of it.

    A folder holds rows that were made in the same way. In it are packs of rows, plain .npy files that are written
    whole or not at all, and `index.sqlite`, which says where each row lies. Any number of processes may use it at
    once, and any file may be deleted at any time.

    Args:
        root: of all these folders, shared by all runs.
        identity: plain data that decides, with image and view, every bit of a row; the folder's name is its hash.
        max_gb: of all of them, in 10^9 bytes. When a run needs room, the packs unused for longest go, but none that
            this run itself has found or written.
        needed: which these are, for several stores of one run to share.
    """

    def __init__(self, root: Path, identity: Any, max_gb: float, needed: set[Path] | None = None) -> None:
        self.root, self.folder, self.max_bytes = root, root / digest(identity), max_gb * 1e9
        self._needed = set() if needed is None else needed

    def find(self, images: Sequence[str], view: Any) -> StoredRows:
        """What is stored for these images; it is marked as used now.

        Args:
            images: sha256 of each file.
            view: plain data that decides the pixels, with the image: augmentation, seed, number.

        Raises:
            OSError, sqlite3.Error: the folder cannot be used.
        """
        with self._index() as index:
            asked = index.execute("SELECT image, pack, row FROM rows WHERE view = ?", [digest(view)])
            known = {image: (pack, row) for image, pack, row in asked if _is_place(pack, row)}
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

    @contextlib.contextmanager
    def filling(self, view: Any) -> Iterator[Callable[[Sequence[str], Tensor], None]]:
        """Gives out what stores rows of that view: (sha256 of each file, rows (n, ...)), in pieces of any size.

        Pack by pack, in constant memory; the last one when the context ends without an error.

        Raises:
            OSError, sqlite3.Error: the disk is full, the limit reached or the folder cannot be written. The packs
                that were written before are kept.
        """
        images: list[str] = []
        waiting: list[np.ndarray] = []

        def append(more: Sequence[str], rows: Tensor) -> None:
            if len(more) != len(rows):
                raise ValueError(f"expected {len(more)} rows, found {len(rows)}")
            images.extend(more)
            waiting.append(to_numpy(rows))
            if len(images) >= _PACK_ROWS or sum(block.nbytes for block in waiting) >= _PACK_BYTES:
                write()

        def write() -> None:
            self._write(images, view, np.concatenate(waiting))
            images.clear()
            waiting.clear()

        yield append
        if images:
            write()

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

    def removable_bytes(self) -> int:
        """How much the packs of all stores take that nothing of this run needs."""
        return sum(taken for _, taken, path in _files(self.root, ".npy") if path not in self._needed)

    def alone(self) -> filelock.BaseFileLock:
        """A context that one process at a time is in; a process that dies leaves it.

        Raises (on entering):
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.folder / "filling.lock")

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        # Opened anew each time: a connection that is kept would go on writing into a file that was deleted.
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "index.sqlite"
        with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as index:
            # A crash of the machine may lose the last packs, never the file. No write-ahead log: to turn it on or
            # off beside another process fails at once, where all else waits for its turn.
            index.execute("PRAGMA synchronous = NORMAL")
            if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'rows'").fetchone():
                index.execute("BEGIN IMMEDIATE")  # to begin as a reader and go on as a writer would not wait either
                with index:  # commits, or rolls back
                    index.execute(
                        "CREATE TABLE IF NOT EXISTS rows (view TEXT, image TEXT, pack TEXT, row INTEGER, "
                        "PRIMARY KEY (view, image)) WITHOUT ROWID"
                    )
            yield index

    def _mapped(self, path: Path) -> np.ndarray | None:
        """A pack, marked as used now; None where it is gone or damaged."""
        if not path.is_file():  # a pipe would keep us waiting
            return None
        try:
            with path.open("rb") as file:
                header, size = _HEADER.match(file.read(_HEADER_BYTES)), os.fstat(file.fileno()).st_size
            if header is None:
                raise ValueError("not rows")
            start, dtype, shape = header.end(), np.dtype(header[1].decode()), tuple(map(int, header[2].split(b",")))
            if size != start + math.prod(shape) * dtype.itemsize:
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

    def _write(self, images: Sequence[str], view: Any, rows: np.ndarray) -> None:
        """Store a pack."""
        content = io.BytesIO()
        np.save(content, rows)
        self._make_room(content.tell())
        path = self.folder / f"{secrets.token_hex(8)}.npy"
        # By writing, not through a map: on a full disk writing into a map kills the process. Durable, because a
        # crash of the machine may leave a file of the right length with nothing in it.
        write_bytes(path, content.getvalue())
        self._needed.add(path)
        view = digest(view)
        with self._index() as index:
            index.execute("BEGIN IMMEDIATE")
            with index:  # commits, or rolls back
                index.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
                    [(view, image, path.name, row) for row, image in enumerate(images)],
                )

    def _make_room(self, size: int) -> None:
        packs = _files(self.root, ".npy")
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        excess = max(size + sum(taken for _, taken, _ in packs) - self.max_bytes, size - free)
        for _, taken, path in packs:
            if excess <= 0:
                return
            if path not in self._needed:
                path.unlink(missing_ok=True)  # whoever has it mapped keeps it until done
                excess -= taken
        if excess > 0:
            raise OSError(f"cache_max_gb={self.max_bytes / 1e9:g} or the disk is used up by what this run needs")

    def _clean(self) -> None:
        """Remove unfinished files, packs that the index does not know, and from the index packs that are gone."""
        long_ago = time.time() - _ABANDONED
        packs = _files(self.folder, ".npy")
        with self._index() as index:
            known = {pack for (pack,) in index.execute("SELECT DISTINCT pack FROM rows") if _is_place(pack, 0)}
            # Looked up one by one, after the index was read: there, a pack comes before its rows.
            gone = [pack for pack in known if not (self.folder / pack).exists()]
            if gone:
                index.execute("DELETE FROM rows WHERE pack IN (SELECT value FROM json_each(?))", [json.dumps(gone)])
        unknown = [(used, size, path) for used, size, path in packs if path.name not in known]
        for used, _, path in [*unknown, *_files(self.root, ".tmp")]:
            if used < long_ago:
                path.unlink(missing_ok=True)


def _is_place(pack: Any, row: Any) -> bool:
    """Whether that can be where a row lies; SQLite keeps whatever was written, of any type."""
    return isinstance(pack, str) and _PACK.fullmatch(pack) is not None and type(row) is int and row >= 0


def digest(content: Any) -> str:
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
