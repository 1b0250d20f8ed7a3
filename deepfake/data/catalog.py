"""A folder of images as one table: one row a file, with what it holds, or why it cannot be read."""

import contextlib
import csv
import hashlib
import io
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from deepfake.console import log, one_at_a_time
from deepfake.data.images import UnreachableImage, UnreadableImage, decode_image, perceptual_hash, read_content
from deepfake.data.split import unit_hash
from deepfake.errors import UserError
from deepfake.files import write_bytes
from deepfake.untrusted import expect_file

# Which file it is; what its content is; what was found in it.
_FILE = {"path": "str", "label": "int64", "source": "str", "group": "str", "split": "str", "parent": "str"}
_FACTS = {
    "phash": "str",
    "width": "int64",
    "height": "int64",
    "mode": "str",
    "format": "str",
    "bytes": "int64",
    "jpeg_quality": "int64",
    "jpeg_luma": "float64",
    "status": "str",
    "reason": "str",
}
_TYPES = {**_FILE, "sha256": "str", **_FACTS}
COLUMNS = list(_TYPES)

# What a catalogue may say where it decides which files are opened and how they count.
_ALLOWED = {
    "path": re.compile(r"(?!/|(?:.*/)?\.\.(?:/|\Z))[^\0]+", re.DOTALL),  # below root
    "label": re.compile("[01]"),
    "split": re.compile("(?:train|val|test)?"),
    "sha256": re.compile("(?:[0-9a-f]{64})?"),
    "phash": re.compile("(?:[0-9a-f]{16})?"),
}

_Facts = tuple[object, ...]  # as _FACTS, in that order
_Row = tuple[object, ...]  # sha256 and _Facts
_T = TypeVar("_T")

_BATCH = 256  # files after which what was found is written down: what an interruption loses


def scan(
    table: pd.DataFrame,
    root: Path,
    max_megapixels: float = 64.0,
    cache: Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Decode every image once; a file that was seen before is not read again.

    Args:
        table: columns path, label, source, group, split and parent, as `find_images` returns.
        root: what the paths are below.
        max_megapixels: larger images count as unreadable.
        cache: folder of `catalogue.sqlite`, which remembers files and contents; None reads everything.
        advance: called once a file, from several threads, for a progress bar.

    Returns:
        The same rows with `COLUMNS`. An unreadable file has a reason, no split and no size, and a sha256 if its
        bytes could be read.
    """
    above = os.path.abspath(root)
    files = [os.path.join(above, path) for path in table["path"]]
    known = _Known(cache, max_megapixels)

    def look(file: str) -> _Look:
        try:
            return _look(file, max_megapixels, known)
        finally:
            advance()

    with contextlib.ExitStack() as held:
        held.callback(known.close)
        rows = known.unchanged(files)
        if None in rows:
            held.enter_context(one_at_a_time(cache, "reads", root))
            rows = known.unchanged(files)
        missing = [place for place, row in enumerate(rows) if row is None]
        for _ in range(len(files) - len(missing)):
            advance()
        # Threads: reading, hashing, decoding and shrinking, most of the work, release the interpreter lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(missing), _BATCH):
                places = missing[start : start + _BATCH]
                looks = list(pool.map(look, [files[place] for place in places]))
                known.remember(looks)
                for place, seen in zip(places, looks, strict=True):
                    rows[place] = (seen.sha256, *seen.facts)

    found = pd.DataFrame(rows, columns=["sha256", *_FACTS], index=table.index)
    full = pd.concat([table[list(_FILE)], found], axis=1).astype(_TYPES)
    full["split"] = full["split"].where(full["status"] != "unreadable", "")
    return full


class _Identity(NamedTuple):
    """What a file's status says; as long as it says the same, so does the file."""

    size: int
    mtime_ns: int
    ctime_ns: int  # also tells another file of the same age put in its place, as an archive unpacked anew does


class _Look(NamedTuple):
    """One file, read."""

    file: str
    identity: _Identity | None  # None: nothing here is to be remembered
    sha256: str
    facts: _Facts


def _look(file: str, max_megapixels: float, known: "_Known") -> _Look:
    # Asked before reading: a file that changes meanwhile then differs from what is remembered of it.
    identity = _identity(file)
    size, sha256 = 0, ""
    try:
        content = read_content(Path(file))
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        facts = known.facts(sha256, _suffix(file)) or _facts(content, _suffix(file), max_megapixels)
    except UnreachableImage as error:
        return _Look(file, None, sha256, _unreadable(error, size))
    return _Look(file, identity, sha256, facts)


def _identity(file: str) -> _Identity | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return _Identity(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _facts(content: bytes, suffix: str, max_megapixels: float) -> _Facts:
    try:
        pixels, file = decode_image(content, suffix, max_megapixels)
    except UnreachableImage:
        raise
    except UnreadableImage as error:
        return _unreadable(error, len(content))
    return (
        perceptual_hash(pixels),
        file.width,
        file.height,
        file.mode,
        file.format,
        file.bytes,
        file.jpeg_quality,
        file.jpeg_luma,
        "suspicious" if file.reason else "ok",
        file.reason,
    )


def _unreadable(error: UnreadableImage, size: int) -> _Facts:
    return ("", 0, 0, "", "", size, -1, -1.0, "unreadable", str(error))


# Raise it when `read_image` or `perceptual_hash` finds something else in a file than before.
_FORMAT = 2

_SETTLED_NS = 2_000_000_000  # the coarsest clock of a common file system (FAT)


class _Known:
    """What earlier scans saw, in one SQLite file that concurrent jobs share, like git's index.

    It names each file's content by size and times, and keeps what each content holds. Without it, or when it fails,
    everything is read; deleting it is always safe.
    """

    def __init__(self, folder: Path | None, max_megapixels: float) -> None:
        self._file = folder / "catalogue.sqlite" if folder else None
        self._limit = float(max_megapixels)
        # A file modified after this may be modified once more and show the same time: it is not remembered.
        self._settled = time.time_ns() - _SETTLED_NS
        self._files, self._contents = f"files_v{_FORMAT}", f"facts_v{_FORMAT}"
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        if self._file:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # Transactions are begun by hand, so that none is left open between two calls.
                self._database = sqlite3.connect(
                    self._file, timeout=60, isolation_level=None, check_same_thread=False
                )
            except (sqlite3.Error, OSError) as error:
                self._say(error)
        self._use(self._prepare, None)

    def unchanged(self, files: Sequence[str]) -> list[_Row | None]:
        """What each file holds, None where it must be read."""

        def ask(database: sqlite3.Connection) -> list[_Row | None]:
            wanted = (
                (place, os.fsencode(file), _suffix(file), *identity)
                for place, file in enumerate(files)
                if (identity := _identity(file))
            )
            database.execute("BEGIN")
            database.execute("DELETE FROM wanted")
            database.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?, ?, ?)", wanted)
            database.execute("COMMIT")
            rows: list[_Row | None] = [None] * len(files)
            for place, *row in database.execute(
                f"SELECT place, sha256, {', '.join(_FACTS)} FROM wanted "  # noqa: S608
                f"JOIN {self._files} USING (file, size, mtime_ns, ctime_ns) "
                f"JOIN {self._contents} USING (sha256, suffix) WHERE max_megapixels = ?",
                [self._limit],
            ):
                if _are_facts(row[1:]):
                    rows[place] = tuple(row)
            return rows

        return self._use(ask, [None] * len(files))

    def facts(self, sha256: str, suffix: str) -> _Facts | None:
        """What that content holds."""

        def ask(database: sqlite3.Connection) -> _Facts | None:
            rows = database.execute(
                f"SELECT {', '.join(_FACTS)} FROM {self._contents} "  # noqa: S608
                f"WHERE sha256 = ? AND suffix = ? AND max_megapixels = ?",
                [sha256, suffix, self._limit],
            ).fetchall()
            return rows[0] if rows and _are_facts(rows[0]) else None

        return self._use(ask, None)

    def remember(self, looks: Sequence[_Look]) -> None:
        """Write down what was read."""
        lasting = [(look, look.identity) for look in looks if look.identity]

        def write(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            with database:  # commits, or rolls back
                database.executemany(
                    f"INSERT OR REPLACE INTO {self._contents} VALUES (?, ?, ?{', ?' * len(_FACTS)})",  # noqa: S608
                    [(look.sha256, _suffix(look.file), self._limit, *look.facts) for look, _ in lasting],
                )
                database.executemany(
                    f"INSERT OR REPLACE INTO {self._files} VALUES (?, ?, ?, ?, ?)",  # noqa: S608
                    [
                        (os.fsencode(look.file), *identity, look.sha256)
                        for look, identity in lasting
                        if identity.mtime_ns < self._settled
                    ],
                )

        self._use(write, None)

    def close(self) -> None:
        self._use(sqlite3.Connection.close, None)
        self._database = None

    def _prepare(self, database: sqlite3.Connection) -> None:
        # A crash of the machine may lose the last batches, never the file. No write-ahead log: to turn it on or off
        # beside another process fails at once, where all else waits for its turn.
        database.execute("PRAGMA synchronous = NORMAL")
        # A transaction that begins as a reader's and goes on as a writer's would not wait either.
        database.execute("BEGIN IMMEDIATE")
        with database:  # commits, or rolls back
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {self._files} "
                "(file BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT) WITHOUT ROWID"
            )
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {self._contents} (sha256 TEXT, suffix TEXT, max_megapixels REAL, "
                f"{', '.join(_FACTS)}, PRIMARY KEY (sha256, suffix, max_megapixels)) WITHOUT ROWID"
            )
        database.execute(
            "CREATE TEMP TABLE wanted "
            "(place INTEGER PRIMARY KEY, file BLOB, suffix TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER)"
        )

    def _use(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Do it with the database; if that fails, say so once and go on without."""
        with self._lock:
            if self._database is None:
                return otherwise
            try:
                return work(self._database)
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.close()
                self._database = None
                self._say(error)
                return otherwise

    def _say(self, error: Exception) -> None:
        log.warning(
            "%s: expected a cache that can be read and written, found: %s. Images are read again; delete that file "
            "if this is said again.",
            self._file,
            error,
        )


def _are_facts(values: Sequence[object]) -> bool:
    """Whether they are of the types of `_FACTS`; SQLite keeps whatever was written."""
    kinds = {"str": str, "int64": int, "float64": float}
    return all(type(value) is kinds[kind] for value, kind in zip(values, _FACTS.values(), strict=True))


def refuse_two_labels(table: pd.DataFrame) -> None:
    """Refuse equal files that are labelled real and generated.

    Args:
        table: columns path, label, sha256 and status; unreadable files do not count.

    Raises:
        UserError: names one such file of each label.
    """
    readable = table[table["status"] != "unreadable"]
    labels = readable.groupby("sha256")["label"].nunique()
    for sha256 in labels.index[labels > 1]:
        same = readable[readable["sha256"] == sha256].drop_duplicates("label")["path"].tolist()
        raise UserError(
            f"the same image is labelled real and generated: {same[0]!r} and {same[1]!r}. Remove the wrong one."
        )


def limit_images(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most `limit` images, each source in its share, chosen by a hash of the path below root.

    Args:
        table: as `find_images` returns.
        limit: None keeps all.
    """
    if limit is None or limit >= len(table):
        return table
    order = table["path"].map(lambda path: unit_hash("limit", path)).groupby(table["source"])
    rank = (order.rank(method="first") - 0.5) / order.transform("size")
    # The images of smallest rank share over all sources: each source keeps the same share of its own.
    keep = rank.sort_values(kind="stable").index[:limit]
    return table.loc[table.index.isin(keep)].reset_index(drop=True)


def parents(table: pd.DataFrame) -> dict[str, str]:
    """{fake source: the real source it was made from}, as far as the catalogue says so."""
    named = table[table["parent"] != ""]
    return dict(zip(named["source"], named["parent"], strict=True))


def write_catalogue(table: pd.DataFrame, file: Path) -> None:
    """Write `COLUMNS` as CSV for people and, beside it, as Parquet for programs.

    The apostrophes that `safe_csv` puts in front `read_catalogue` takes away.

    Args:
        table: as `scan` returns.
        file: the CSV; its folder is made.

    Raises:
        OSError: the folder cannot be written.
    """
    table = table[COLUMNS].astype(_TYPES)
    parquet = io.BytesIO()
    table.to_parquet(parquet, index=False)
    write_bytes(file.with_suffix(".parquet"), parquet.getvalue())
    write_bytes(file, safe_csv(table).encode())


def safe_csv(table: pd.DataFrame) -> str:
    """CSV of any table, each text in quotes, for a line may end within a file's name.

    A text that a spreadsheet would take for a formula, and one that begins with an apostrophe, gets an apostrophe in
    front.
    """
    table = table.copy()
    for column in table.columns[[pd.api.types.is_string_dtype(kind) for kind in table.dtypes]]:
        formula = table[column].str.match(r"[=+\-@\t\r']")
        table[column] = table[column].where(~formula, "'" + table[column])
    return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def read_catalogue(file: Path) -> pd.DataFrame:
    """What `write_catalogue` wrote: `COLUMNS`, the same values and types from CSV and from Parquet.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        expect_file(file)
        if file.suffix == ".parquet":
            table = pd.read_parquet(file, partitioning=None)[COLUMNS].astype(_TYPES)
        else:
            table = pd.read_csv(
                file, dtype=_TYPES, usecols=COLUMNS, keep_default_na=False, float_precision="round_trip"
            )[COLUMNS]
            for column in _texts():
                table[column] = table[column].str.removeprefix("'")
        _expect_rows(table)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: expected a catalogue, found none that can be read: {reason}.") from error
    return table


def _expect_rows(table: pd.DataFrame) -> None:
    """Refuse what no scan writes: others may have made the file, and all that is read from it is believed.

    Raises:
        ValueError: names the first such value.
    """
    for column, allowed in _ALLOWED.items():
        for value in table[column].unique():
            if not allowed.fullmatch(str(value)):
                raise ValueError(f"{column} {str(value)!r}")
    sizes = table.loc[table["status"] != "unreadable", ["width", "height", "bytes"]]
    if (
        not sizes.gt(0).all(axis=None)
        or not sizes.lt(2**31).all(axis=None)
        or not table["jpeg_luma"].abs().lt(2**16).all()
    ):
        raise ValueError("sizes that no image has")


def _texts() -> list[str]:
    return [column for column, kind in _TYPES.items() if kind == "str"]
