"""Train, validation and test parts: by source, by group, from content alone. A leaf: no other room is imported."""

import difflib
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


def assign_parts(
    table: pd.DataFrame,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    held_out: Sequence[str] = (),
) -> pd.Series:
    """The part of every image: as it is given, otherwise as `split` assigns it.

    A given part is kept row by row, whatever the groups are. Where no image is given for validation, for test, or for
    both, these are cut out of the given training part, each in its share relative to training's. Held-out sources
    change nothing else: every other image has the part that it has without them, so that the real test images are
    the same whichever generator is left out.

    Args:
        table: columns source, group (empty = none) and sha256; if there, split (the given parts; all empty = none is
            given) and status.
        fractions: shares of train, validation and test, summing to 1.
        seed: another seed gives another split of what is not given.
        held_out: sources whose images all go to the test part.

    Returns:
        "train", "val" or "test" for each row, indexed as the table; "" for files that cannot be read, and for images
        without a part in a split that is given for others.

    Raises:
        UserError: a split is given without a training part, a held-out source is not there.
    """
    _expect_sources(held_out, table["source"])
    usable = _usable(table)
    parts = _given(table)
    if (parts != "").any():
        _fill_missing(parts, table, fractions, seed)
    else:
        parts[usable] = split(table[usable], fractions, seed)
    parts[usable & table["source"].isin(held_out)] = "test"
    return parts


def cut_out(table: pd.DataFrame) -> list[str]:
    """The parts that `assign_parts` cuts out of the given training part, because no image is given for them.

    Args:
        table: as for `assign_parts`.

    Returns:
        Of "val" and "test", none if no split is given.
    """
    given = set(_given(table))
    return [part for part in PARTS if part not in given] if "train" in given else []


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
    group = _groups(table)
    content, contents = pd.factorize(table["sha256"], sort=True)
    least = np.full(group.max(initial=-1) + 1, len(contents))
    np.minimum.at(least, group, content)
    first = contents[least].tolist()  # hash of each group
    source, names = pd.factorize(table["source"], sort=True)
    totals = np.bincount(source, minlength=len(names)).tolist()
    sizes = _sizes(group, source, len(first), len(names))
    order = sorted(
        # Large groups first: they are the hardest to place, and small ones even out what they leave.
        (-sum(size for _, size in sizes[g]), unit_hash("split", seed, first[g]), first[g], g)
        for g in range(len(first))
    )
    taken = [[0.0] * len(PARTS) for _ in totals]
    part_of = np.empty(len(first), dtype=int)
    for *_, g in order:
        # Plain numbers: for a few parts and sources, arrays would take ten times as long.
        lag = [
            sum((share - taken[s][part] / totals[s]) * size for s, size in sizes[g])
            for part, share in enumerate(fractions)
        ]
        part_of[g] = part = lag.index(max(lag))
        for s, size in sizes[g]:
            taken[s][part] += size
    return pd.Series(np.array(PARTS)[part_of[group]], table.index, dtype=str, name="split")


def join(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Merge clusters along edges: what is linked, directly or through others, comes to have one label.

    Each round hooks the root of every cluster to the smallest root that it is linked to, then shortens all paths.

    Args:
        label: int (N,), the smallest member of each item's cluster; `np.arange(N)` where nothing is joined yet.
        a: int (E,), items at one end of the edges.
        b: int (E,), items at the other.

    Returns:
        int (N,), the smallest member of each item's cluster. It does not depend on the order of the edges.
    """
    label = label.copy()
    while True:
        a, b = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
        a, b = a[a < b], b[a < b]
        if not len(a):
            return label
        np.minimum.at(label, b, a)
        while (label[label] != label).any():
            label = label[label]


def held_out_leaks(table: pd.DataFrame, held_out: Sequence[str]) -> list[tuple[bool, str]]:
    """What to tell of groups (and equal files) that held-out images share with images that are learned from.

    Under the same label they make figures too good: the network has seen the face, and learned what to say of it.
    Under the other label, such as a photograph in training and a fake made from it that is held out, what was
    learned is wrong for the held-out image, so it flatters nothing.

    Args:
        table: columns path, label, source, group, sha256 and split, as `assign_parts` made it.
        held_out: as it was given to `assign_parts`.

    Returns:
        Whether the label is the same, and a sentence; none if nothing is shared.
    """
    rows = table[table["split"] != ""]
    group = _groups(rows)
    label = rows["label"].to_numpy()
    held = rows["source"].isin(held_out).to_numpy()
    learned = rows["split"].isin(("train", "val")).to_numpy()
    sentences = []
    for kind, seen_as, meaning in (
        (
            "the same",
            label,
            "figures on them will be too good. Hold out the other source too, or remove these images",
        ),
        ("the other", 1 - label, "no advantage, what was learned of the group is wrong for them"),
    ):
        # A label is 0 or 1, so this numbers every (group, label).
        shared = held & np.isin(2 * group + seen_as, (2 * group + label)[learned])
        if shared.any():
            one = int(np.flatnonzero(shared)[0])
            other = np.flatnonzero(learned & (2 * group + label == 2 * group[one] + seen_as[one]))[0]
            sentences.append(
                (
                    kind == "the same",
                    f"held-out images whose group has training or validation images of {kind} label: {shared.sum()}, "
                    f"such as {rows['path'].iloc[one]!r} with {rows['path'].iloc[other]!r}: {meaning}",
                )
            )
    return sentences


def expect_both_classes(table: pd.DataFrame, given: bool = False, held_out: Sequence[str] = ()) -> None:
    """Refuse a split in which a part lacks a class: no metric could be computed on it.

    Args:
        table: columns label and split and, to tell the cause, source, group and sha256.
        given: the split came with the data, at least in part.
        held_out: as it was given to `assign_parts`.

    Raises:
        UserError: names the part, the class, the counts and the fix.
    """
    if table.empty:
        raise UserError("expected images in the parts train, val and test, found none left. Add images.")
    for part in PARTS:
        for label, kind in ((0, "real"), (1, "generated")):
            of_class = table[table["label"] == label]
            if not (of_class["split"] == part).any():
                found, fix = _why_missing(of_class, part, kind, given, held_out)
                raise UserError(
                    f"the {part} part has no {kind} image: expected at least one, found {len(of_class)} {kind} "
                    f"images in all {len(table)}{found}. {fix}"
                )


def _why_missing(
    of_class: pd.DataFrame, part: str, kind: str, given: bool, held_out: Sequence[str]
) -> tuple[str, str]:
    """What more was found of a class that a part lacks, and what to do: the first cause that applies."""
    if of_class.empty:
        return "", f"Add {kind} images."
    found, free = "", of_class
    if held_out and of_class["source"].isin(held_out).any():
        free = of_class[~of_class["source"].isin(held_out)]
        found = f", {len(of_class) - len(free)} of them held out for the test part"
        if free.empty:
            return found, f"Leave one of their sources out of data.hold_out, or add {kind} images of another."
    if given:
        return found, f"Give {kind} images the split {part}, or give no split at all."
    what, enough = "images", "ten or more"
    if {"source", "group", "sha256"} <= set(free):
        sizes, sources = np.bincount(_groups(free)), free["source"].nunique()
        if len(sizes) < min(len(free), 10 * sources):
            found += f", in {len(sizes)} groups that are never parted, the largest of {sizes.max()} images"
            what, enough = "images of other groups", "ten groups or more"
        if sources > 1:
            found += f", from {sources} sources that are each split by themselves"
            enough += " of one source"
            if 10 <= len(sizes) <= sources:  # such as folders of videos: each goes to training as a whole
                return found, (
                    f"Make fewer {kind} sources: move their folders into one (as NAME/FOLDER/1.png below the class), "
                    f"or name one for all in the column source of data.manifest."
                )
    return found, f"Add {kind} {what} ({enough}), or raise that share in data.fractions."


def _given(table: pd.DataFrame) -> pd.Series:
    """The part that each row is given, "" for files that cannot be read."""
    parts = pd.Series("", table.index, dtype=str, name="split")
    if "split" in table:
        usable = _usable(table)
        parts[usable] = table.loc[usable, "split"]
    return parts


def _usable(table: pd.DataFrame) -> pd.Series:
    return table["status"] != "unreadable" if "status" in table else pd.Series(True, table.index)


def _groups(table: pd.DataFrame) -> np.ndarray:
    """Numbers 0, 1, ... of groups: rows that share a group name or a content hash, directly or through others."""
    content, contents = pd.factorize(table["sha256"])
    name, names = pd.factorize(table["group"])
    named = table["group"].to_numpy() != ""
    items = np.arange(len(contents) + len(names))
    label = join(items, content[named], len(contents) + name[named])
    return np.unique(label[content], return_inverse=True)[1]


def _sizes(group: np.ndarray, source: np.ndarray, groups: int, sources: int) -> list[list[tuple[int, int]]]:
    """Of each group, (source, number of images), most images first."""
    pairs, counts = np.unique(group * sources + source, return_counts=True)
    sizes: list[list[tuple[int, int]]] = [[] for _ in range(groups)]
    # Equal counts in the order of the sources: sums of floats depend on their order, and rows must not.
    for at in np.lexsort((pairs, -counts)).tolist():
        sizes[pairs[at] // sources].append((int(pairs[at] % sources), int(counts[at])))
    return sizes


def _fill_missing(parts: pd.Series, table: pd.DataFrame, fractions: Sequence[float], seed: int) -> None:
    """Cut the parts that no image is given for out of the given training part."""
    found = parts[parts != ""].value_counts()
    if "train" not in found:
        told = ", ".join(f"{part} ({count} images)" for part, count in found.items())
        raise UserError(
            f"the given split has no training part: expected images in train, found {told}. "
            f"Give some the split train, or give no split at all."
        )
    given = [part in found and part != "train" for part in PARTS]
    if not all(given[1:]):
        shares = np.where(given, 0.0, fractions)
        train = parts == "train"
        parts[train] = split(table[train], (shares / shares.sum()).tolist(), seed)


def _expect_sources(held_out: Sequence[str], sources: pd.Series) -> None:
    known = sorted(set(sources))
    for name in held_out:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            raise UserError(
                f"data.hold_out: expected sources of this data, found {name!r}. Did you mean {nearest[0]!r}? "
                f"There are {', '.join(known)}."
            )
