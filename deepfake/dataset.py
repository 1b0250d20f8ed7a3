"""From the data settings to a catalogue: find the files, read each once, group them, split them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import pandas as pd

from deepfake.config import DataConfig, SyntheticConfig
from deepfake.console import log, progress
from deepfake.data.catalog import limit_images, refuse_two_labels, scan
from deepfake.data.groups import assign_groups, refuse_leaks
from deepfake.data.layouts import find_images, read_manifest
from deepfake.data.prepared import Preparation, smallest_common_size
from deepfake.data.split import assign_parts, cut_out, expect_both_classes
from deepfake.data.synthetic import make_faces
from deepfake.errors import UserError

_SMALL, _TINY = 128, 32  # pixels, below which equalising costs much of a face, or all of it


class Catalogue(NamedTuple):
    """What is there to learn from."""

    table: pd.DataFrame  # `deepfake.data.catalog.COLUMNS`, one row a file; split is "" where it cannot be read
    root: Path  # what the paths are below
    given: bool  # the parts were


def catalogue(data: DataConfig, show: bool = True, split: bool = True) -> Catalogue:
    """Find, read, group and split; nothing is refused that an audit should show.

    Args:
        data: checked settings.
        show: a progress bar while files are read.
        split: False is for images that no one is going to train on: groups and parts are left as they are given, and
            one class is enough.

    Raises:
        UserError: no data, or settings that do not fit it.
    """
    root = _synthetic_root(data) if isinstance(data, SyntheticConfig) else Path(str(data.root))
    one_class = not split
    found = read_manifest(root, data.manifest, one_class) if data.manifest else find_images(root, one_class)
    found = limit_images(found, data.limit)
    with progress("reading images", len(found), show) as advance:
        table = scan(found, root, data.max_megapixels, cache_folder(data), advance)
    given = bool((table["split"] != "").any())
    if not split:
        return Catalogue(table, root, given)
    table["group"] = assign_groups(table, data.group)
    if cut := cut_out(table):
        log.warning("the given split has no part %s: cut out of the given training part", " and ".join(cut))
    table["split"] = assign_parts(table, data.fractions, data.split_seed, data.hold_out)
    unplaced = int(((table["status"] != "unreadable") & (table["split"] == "")).sum())
    if unplaced:
        log.warning("%d images have no part in the given split and are left out", unplaced)
    return Catalogue(table, root, given)


def expect_trainable(found: Catalogue, held_out: Sequence[str] = ()) -> None:
    """Refuse what would make every figure wrong.

    Raises:
        UserError: one image under two labels or in two parts, a part without a class, nothing that can be read.
    """
    readable = found.table[found.table["status"] != "unreadable"]
    if readable.empty:
        raise UserError(
            f"{found.root}: expected images, found {len(found.table)} files of which none can be read "
            f"(the first: {found.table['path'].iloc[0]!r}, {found.table['reason'].iloc[0]})."
        )
    refuse_two_labels(readable)
    refuse_leaks(readable)
    expect_both_classes(readable, found.given, held_out)


def say_left_out(table: pd.DataFrame) -> None:
    """One line for each of the first files that cannot be used, and the number of all in the table."""
    unreadable = table[table["status"] == "unreadable"]
    for row in unreadable.head(10).itertuples():
        log.warning("left out: %r: %s", row.path, row.reason)
    if len(unreadable):
        log.warning("%d files cannot be used and are left out.", len(unreadable))


def preparation(data: DataConfig, table: pd.DataFrame) -> Preparation:
    """How each image becomes the network's input, as the settings say."""
    size = smallest_common_size(table) if data.equalise else None
    if size is not None and size < _SMALL:
        readable = table[table["status"] != "unreadable"].set_index("path")
        smallest = readable[["width", "height"]].min(axis=1).idxmin()
        told = f"data.equalise=true shrinks every image to {size} pixels, as small as {smallest!r}"
        if size < _TINY:
            raise UserError(f"{told}: expected at least {_TINY}. Leave the smallest images out.")
        log.warning("%s. Leave the smallest images out to keep more.", told)
    mode = cast(Literal["resize", "crop", "face"], data.preprocess)  # as checked with the settings
    return Preparation(mode, size, data.face_margin)


def left_out(table: pd.DataFrame, unusable: pd.DataFrame) -> pd.DataFrame:
    """The catalogue with some files marked unreadable, each with its reason; the others keep their parts.

    Args:
        table: a catalogue.
        unusable: path and reason.
    """
    reasons = table["path"].map(unusable.set_index("path")["reason"])
    there = reasons.isna()
    return table.assign(
        status=table["status"].where(there, "unreadable"),
        reason=table["reason"].where(there, reasons),
        split=table["split"].where(there, ""),
    )


def cache_folder(data: DataConfig) -> Path | None:
    return Path(data.cache.dir).expanduser() if data.cache.enabled else None


def _synthetic_root(data: SyntheticConfig) -> Path:
    """Built-in data, made once for each setting of it."""
    key = f"n{data.images_per_source}-{data.size}px-{data.shortcut or 'plain'}-s{data.seed}"
    root = Path(data.cache.dir).expanduser() / "synthetic" / key
    if not root.exists():
        log.info("making the built-in data in %s", root)
    return make_faces(root, data.images_per_source, data.size, data.seed, data.shortcut)
