"""A folder of images as one table: what is there, what it is labelled, what can be read."""

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from deepfake.data.images import SUFFIXES, UnreadableImage, read_image
from deepfake.data.split import unit_hash
from deepfake.errors import UserError

COLUMNS = ["path", "label", "source", "group", "sha256", "width", "height", "format", "mode", "bytes", "note"]

_SOURCE = re.compile(r"[01][-_].", re.DOTALL)


def find_images(root: Path) -> pd.DataFrame:
    """Images in folders named 0-NAME (real) and 1-NAME (generated), each file once.

    Args:
        root: the folder that holds those folders.

    Returns:
        One row a file, sorted: path (below root, with /), label (0 real, 1 generated), source (folder name),
        group (empty).

    Raises:
        UserError: no such folder, no labelled folder, a class without files.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is no folder: expected one that holds 0-NAME and 1-NAME folders.")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and _SOURCE.match(entry.name))
    if not folders:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
        raise UserError(
            f"data.root={root}: expected folders named 0-NAME (real) and 1-NAME (generated), found {found}. "
            f"Rename your folders, or name a CSV with the columns path and label as data.manifest."
        )
    rows = []
    # Links may lead to a file twice. Under the other label it is kept, for `scan` to refuse.
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    for folder in folders:
        label = int(folder.name[0])
        for path in _walk(folder, root, seen[label]):
            _expect_unicode(path)
            rows.append((path.relative_to(root).as_posix(), label, folder.name, ""))
    table = pd.DataFrame(rows, columns=["path", "label", "source", "group"])
    _expect_both_classes(table, str(root))
    return table


def read_manifest(root: Path, manifest: str) -> pd.DataFrame:
    """Images named in a CSV below root, with at least the columns path and label.

    Returns:
        As `find_images`; source defaults to the first folder of the path, marked with the label, group to empty.

    Raises:
        UserError: the file or a column is missing, a label is not 0 or 1, a path leads out of root, is empty or
            has both labels.
    """
    file = root / manifest
    if not file.is_file():
        raise UserError(f"data.manifest={manifest}: expected a CSV file below {root}, found none there.")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, not UTF-8, rows of unequal length
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: expected a CSV file in UTF-8, found one that cannot be read: {reason}.") from error
    for column in ("path", "label"):
        if column not in table:
            raise UserError(
                f"{file}: expected a column {column}, found {', '.join(table.columns)}. Add it to the file."
            )
    wrong = table[~table["label"].isin(["0", "1"])]
    if len(wrong):
        raise UserError(
            f"{file}: expected labels 0 (real) or 1 (generated), found {wrong['label'].iloc[0]!r} "
            f"for {wrong['path'].iloc[0]!r}."
        )
    for path in table["path"]:
        if not path or "\0" in path:
            raise UserError(f"{file}: expected the path of an image in every row, found {path!r}.")
    table["path"] = [Path(os.path.relpath(root / path, root)).as_posix() for path in table["path"]]
    inside = _real(root)
    for path in table["path"]:
        if not Path(_real(root / path)).is_relative_to(inside):
            raise UserError(f"{file}: {path!r} leads out of {root}. Paths must stay below data.root.")
    table["label"] = table["label"].astype(int)
    if "source" not in table:
        table["source"] = [_source(p, label) for p, label in zip(table["path"], table["label"], strict=True)]
    if "group" not in table:
        table["group"] = ""
    for path in table.loc[table.groupby("path")["label"].transform("nunique") > 1, "path"].head(1):
        raise UserError(f"{file}: {path!r} is labelled both real and generated. Remove the wrong row.")
    table = table.drop_duplicates("path").sort_values("path", ignore_index=True)
    _expect_both_classes(table, str(file))
    return table[["path", "label", "source", "group"]]


def scan(
    table: pd.DataFrame,
    root: Path,
    max_megapixels: float = 64.0,
    advance: Callable[[], object] = lambda: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every image once; keep what can be read.

    Args:
        table: as `find_images` returns.
        root: what the paths are below.
        max_megapixels: larger images count as unreadable.
        advance: called once a file, for a progress bar.

    Returns:
        Readable images with `COLUMNS`, and unreadable ones (path, source, reason).

    Raises:
        UserError: the same file content under both labels.
    """

    def look(path: str) -> dict[str, object]:
        try:
            return asdict(read_image(root / path, max_megapixels)[1])
        except UnreadableImage as error:
            return {"reason": str(error)}
        finally:
            advance()

    # Threads: decoding and hashing release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        facts = pd.DataFrame(list(pool.map(look, table["path"])), index=table.index)
    facts = facts.reindex(columns=[*COLUMNS[4:], "reason"])
    full = table.join(facts)
    bad = facts["reason"].notna()
    readable = full.loc[~bad, COLUMNS].astype({"width": int, "height": int, "bytes": int}).reset_index(drop=True)
    _refuse_two_labels(readable)
    return readable, full.loc[bad, ["path", "source", "reason"]].reset_index(drop=True)


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


def _real(path: str | Path) -> str:
    return os.path.realpath(path)  # unlike Path.resolve, no error for a link to itself


def _walk(folder: Path, root: Path, seen: set[str]) -> Iterable[Path]:
    above = {_real(root), *map(str, Path(_real(root)).parents), *map(str, Path(_real(folder)).parents)}
    for parent, names, files in os.walk(folder, followlinks=True):
        real = _real(parent)
        if real in seen or real in above:
            names.clear()  # a link back to where we were, or up the tree and so into other folders
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            target = _real(path)
            if target not in seen:
                seen.add(target)
                yield path


def _source(path: str, label: int) -> str:
    parts = Path(path).parts
    name = parts[0] if len(parts) > 1 else "images"
    return name if _SOURCE.match(name) and int(name[0]) == label else f"{label}-{name}"


def _expect_unicode(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected file names in UTF-8, found {str(path)!r}. Rename that file.") from error


def _expect_both_classes(table: pd.DataFrame, where: str) -> None:
    for label, kind in ((0, "real"), (1, "generated")):
        if not (table["label"] == label).any():
            raise UserError(
                f"{where}: expected images of both classes, found {len(table)} in all and none that is {kind}. "
                f"Put some into a folder named {label}-NAME (file names end in {', '.join(SUFFIXES[:3])}, ...)."
            )


def _refuse_two_labels(table: pd.DataFrame) -> None:
    labels = table.groupby("sha256")["label"].nunique()
    for sha256 in labels.index[labels > 1]:
        same = table[table["sha256"] == sha256].drop_duplicates("label")["path"].tolist()
        raise UserError(
            f"the same image is labelled real and generated: {same[0]!r} and {same[1]!r}. Remove the wrong one."
        )
