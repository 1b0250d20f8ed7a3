"""Train, validation and test parts: by source, by group, from content alone. A leaf: no other room is imported."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepfake.errors import UserError

PARTS = ("train", "val", "test")


def unit_hash(*keys: object) -> float:
    """A number in [0, 1) that depends on the keys alone, the same on every machine."""
    digest = hashlib.sha256(":".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split(table: pd.DataFrame, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0) -> pd.Series:
    """Assign every image to a part.

    Images of one `group` are never parted; equal files (same sha256) are one group too. Groups are taken in the
    order of a hash of (seed, content) and each goes to the part that lags furthest behind its share of the group's
    sources. So the result does not depend on the order of the rows, on file names or on unrelated sources.

    Args:
        table: columns source, group (empty = none) and sha256, one row an image.
        fractions: shares of train, validation and test, summing to 1.
        seed: another seed gives another split.

    Returns:
        "train", "val" or "test" for each row, indexed as the table.
    """
    groups = _groups(table)
    shares = np.asarray(fractions)
    totals = table["source"].value_counts().to_dict()
    taken = {source: np.zeros(3) for source in totals}
    members = {group: (min(rows["sha256"]), rows["source"].value_counts()) for group, rows in table.groupby(groups)}
    part_of = {}
    # Large groups first: they are the hardest to place, and small ones even out what they leave.
    for group in sorted(
        members, key=lambda g: (-members[g][1].sum(), unit_hash("split", seed, members[g][0]), members[g][0])
    ):
        sizes = members[group][1]
        lag = sum((shares - taken[s] / totals[s]) * size for s, size in sizes.items())
        part = int(np.argmax(lag))
        part_of[group] = PARTS[part]
        for source, size in sizes.items():
            taken[source][part] += size
    return groups.map(part_of).rename("split")


def _groups(table: pd.DataFrame) -> pd.Series:
    """One name a group: rows that share a group name or a content hash, directly or through others."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for sha256, group in zip(table["sha256"], table["group"], strict=True):
        root = find("sha256:" + sha256)
        if group:
            parent[root] = find("group:" + group)
    return table["sha256"].map(lambda sha256: find("sha256:" + sha256))


def expect_both_classes(table: pd.DataFrame) -> None:
    """Refuse a split in which a part lacks a class: no metric could be computed on it.

    Args:
        table: columns label and split.

    Raises:
        UserError: names the part, the class, the counts and the fix.
    """
    for part in PARTS:
        for label, kind in ((0, "real"), (1, "generated")):
            if not ((table["split"] == part) & (table["label"] == label)).any():
                total = int((table["label"] == label).sum())
                raise UserError(
                    f"the {part} part has no {kind} image: expected at least one, found {total} {kind} images in "
                    f"all {len(table)}. Add {kind} images (ten or more), or raise that share in data.fractions."
                )
