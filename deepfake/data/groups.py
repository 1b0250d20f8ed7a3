"""Which images belong together: names of groups, near duplicates, and what of that lies in two parts.

Plain functions on tables and arrays, above `split` alone. Near duplicates are images whose 64-bit perceptual hashes
differ in at most `DISTANCE` bits: the same picture after resizing or recompression.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from deepfake.data.split import PARTS, join
from deepfake.errors import UserError

DISTANCE = 4  # bits
NEAR = "near-"  # begins the names of groups that were found, not given

_BLOCK = 1 << 20  # pairs that are held in memory at a time
_Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # int positions a and b, Hamming distance

# A counterpart is one number, distance * _STEP + row, so that the least is the nearest and of these the first.
_STEP = 1 << 40
_NONE = np.iinfo(np.int64).max


def near_pairs(phash: Sequence[str] | pd.Series, distance: int = DISTANCE) -> pd.DataFrame:
    """Rows whose perceptual hashes differ in at most `distance` bits.

    Of equal hashes only the first row is compared with others. The other rows each make one pair with it, of
    distance 0: a star, so that thousands of equal images do not make millions of pairs. Up to that, all pairs are
    found, and rows that a chain of near duplicates links are linked by these pairs too.

    Args:
        phash: 16 hexadecimal digits each; "" (undefined) is near to nothing.
        distance: bits, 0 to 64.

    Returns:
        int columns a and b (positions of rows, a < b) and distance (bits), sorted by a and b.
    """
    known, hashes, code = _hashes(phash)
    first = known[np.unique(code, return_index=True)[1]]  # row of each hash
    again = known != first[code]
    star = (first[code[again]], known[again], np.zeros(again.sum(), dtype=np.int64))
    blocks = [star, *((first[a], first[b], bits) for a, b, bits in _close(hashes, distance))]
    a, b, bits = (np.concatenate(column) for column in zip(*blocks, strict=True))
    pairs = pd.DataFrame({"a": np.minimum(a, b), "b": np.maximum(a, b), "distance": bits})
    return pairs.sort_values(["a", "b"], ignore_index=True)


def near_to(phash: Sequence[str] | pd.Series, others: Sequence[str] | pd.Series) -> np.ndarray:
    """Which images are near duplicates of one of the others.

    Args:
        phash, others: as in `near_pairs`.

    Returns:
        bool, one for each of `phash`.
    """
    theirs, own = sorted(set(others) - {""}), sorted(set(phash) - {""})
    both = [*theirs, *own]
    pairs = near_pairs(both)
    across = pairs[(pairs["a"] < len(theirs)) & (pairs["b"] >= len(theirs))]
    near = {both[position] for position in across["b"]}
    return np.array([each in near for each in phash], dtype=bool)


def assign_groups(table: pd.DataFrame, pattern: str | None = None, distance: int = DISTANCE) -> pd.Series:
    """The group of every image, which a split never parts.

    A given group is what `pattern` finds in the file name or, without a pattern, the column group. Images without
    one are joined with their near duplicates, directly or through others. Such a cluster takes the name of the given
    group that it touches, otherwise one made from its content. If it touches several given groups, these become one
    under the smallest of their names: kept apart, an image without a group would have a near duplicate in another
    part. Near duplicates that both have a given group leave the groups as they are: who gave them knew better.

    Args:
        table: columns path, group (empty = none), sha256 ("" if unreadable), phash and, if there, status.
        pattern: regular expression, searched in each file's name without folders or, if there is a / in the pattern,
            in its path below root; its first group, or all that it matches if it has none, names the group. Files
            where it finds nothing have no given group.
        distance: bits in which the perceptual hashes of near duplicates differ at most.

    Returns:
        Names, indexed as the table; "" for an image alone and for files that cannot be read. They depend on the
        content and the given names, not on the order of the rows.

    Raises:
        UserError: the pattern is no regular expression, or finds nothing in any file.
    """
    rows = _readable(table)
    given = rows["group"].to_numpy(dtype=object) if pattern is None else _from_names(rows["path"], pattern)
    known, hashes, code = _hashes(rows["phash"])
    named = np.flatnonzero(given != "")
    names, name = np.unique(given[named].astype(str), return_inverse=True)

    # What is joined: rows, from 0; distinct hashes, from `base`; given names, from `base + len(hashes)`.
    base = len(rows)
    label = np.arange(base + len(hashes) + len(names))
    label = join(label, named, base + len(hashes) + name)
    # A pair counts if one of its images has no given group; so a pair of hashes counts if such an image has one of
    # the two, and then all images of both are joined.
    free = np.zeros(len(hashes), dtype=bool)
    free[code[given[known] == ""]] = True
    joined = free.copy()
    for a, b, _ in _close(hashes, distance):
        counts = free[a] | free[b]
        a, b = a[counts], b[counts]
        joined[a] = joined[b] = True
        label = join(label, base + a, base + b)
    member = joined[code]
    cluster = join(label, known[member], base + code[member])[:base]

    content, contents = pd.factorize(rows["sha256"], sort=True)
    least_name, least_content = np.full(base, len(names)), np.full(base, len(contents))
    np.minimum.at(least_name, cluster[named], name)
    np.minimum.at(least_content, cluster, content)
    several = np.bincount(cluster, minlength=base) > 1
    found = [NEAR + contents[least_content[c]][:12] if several[c] else "" for c in cluster]
    group = np.where(least_name[cluster] < len(names), np.append(names, "")[least_name[cluster]], found)
    return pd.Series(group, rows.index, dtype=str, name="group").reindex(table.index, fill_value="")


def leaks(table: pd.DataFrame, distance: int = DISTANCE) -> pd.DataFrame:
    """What lies in two parts of a split and should not.

    One line for each image (kinds exact and near) and for each given group (kind group) of a later part that has a
    counterpart in an earlier one, where train comes before val before test: the earliest such part, and in it the
    nearest image, of equal ones the first by path. Groups that were found as near duplicates are told as these.

    Args:
        table: columns path, sha256, phash, group, split and, if there, status; rows without a part do not count.
        distance: bits, as for `near_pairs`.

    Returns:
        kind ("exact": equal files; "near": near duplicates that are not; "group": one given group), path_a and
        split_a (the earlier part), path_b and split_b, distance (bits; -1 for groups), group ("" but for groups).
        Sorted by kind in that order, then by path_b.
    """
    rows, part = _placed(table)
    exact = _nearest_equal(rows["sha256"], part)
    near = _nearest_close(rows["phash"], part, distance)
    near[exact < _NONE] = _NONE  # told already
    group = _nearest_equal(rows["group"], part)
    group[(rows["group"] == "") | rows["group"].str.startswith(NEAR)] = _NONE
    groups = _tell("group", rows, part, group).drop_duplicates("group")
    return pd.concat([_tell("exact", rows, part, exact), _tell("near", rows, part, near), groups], ignore_index=True)


def refuse_leaks(table: pd.DataFrame) -> None:
    """Refuse equal files in two parts; near duplicates and groups there are for the caller to tell, with `leaks`.

    Args:
        table: columns path, sha256, split and, if there, status.

    Raises:
        UserError: names two such files.
    """
    rows, part = _placed(table)
    for leak in _tell("exact", rows, part, _nearest_equal(rows["sha256"], part)).head(1).itertuples():
        raise UserError(
            f"the same image is in two parts: {leak.path_a!r} in {leak.split_a} and {leak.path_b!r} in "
            f"{leak.split_b}. Remove one of the two."
        )


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    readable = table["sha256"] != ""
    return table[readable & (table["status"] != "unreadable")] if "status" in table else table[readable]


def _hashes(phash: Sequence[str] | pd.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of rows that have a hash; the distinct hashes, uint64, sorted; which of them each such row has."""
    texts = list(phash)
    known = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
    values = np.array([int(texts[row], 16) for row in known], dtype=np.uint64)
    hashes, code = np.unique(values, return_inverse=True)
    return known, hashes, code


def _close(hashes: np.ndarray, distance: int) -> Iterator[_Pairs]:
    """All pairs of hashes that differ in at most `distance` bits, each once, in blocks of about `_BLOCK`.

    The 64 bits are cut into distance + 1 bands. Two hashes that differ in no more than `distance` bits agree in one
    band whole, so that only those with equal bits in a band are compared.

    Args:
        hashes: uint64 (N,), distinct.
        distance: bits.

    Yields:
        Positions a and b in `hashes`, and the distance of each pair in bits, int64.
    """
    if len(hashes) < 2:
        return
    block: list[_Pairs] = []
    bands = _bands(hashes, distance)
    for number, band in enumerate(bands):
        _, bucket, sizes = np.unique(hashes & band, return_inverse=True, return_counts=True)
        # Buckets side by side, large ones first: those that still have members `step` apart are one slice.
        order = np.lexsort((bucket, -sizes[bucket]))
        ordered, size = hashes[order], sizes[bucket[order]]
        for step in range(1, sizes.max()):
            end = int(np.searchsorted(-size, -step))  # of the buckets with more members than `step`
            differ = ordered[step:end] ^ ordered[: end - step]
            bits = np.bitwise_count(differ)
            at = np.flatnonzero(bits <= distance)
            # Two of one bucket, and not found in an earlier band.
            at = at[differ[at] & band == 0]
            for earlier in bands[:number]:
                at = at[differ[at] & earlier != 0]
            if len(at):
                block.append((order[at], order[at + step], bits[at].astype(np.int64)))
            if sum(len(a) for a, _, _ in block) >= _BLOCK:
                yield _joined(block)
                block = []
    if block:
        yield _joined(block)


def _bands(hashes: np.ndarray, distance: int) -> list[np.uint64]:
    """Masks of bits to compare within; one empty mask, all in one bucket, where bands would not save comparisons."""
    ones = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").mean(axis=0)
    # Dealt from the most even bit to the most one-sided, so that no band is made of bits that hardly tell apart.
    dealt = np.argsort(np.abs(ones - 0.5), kind="stable").tolist()
    bands = [np.uint64(sum(1 << bit for bit in dealt[start :: distance + 1])) for start in range(distance + 1)]
    sizes = np.concatenate([np.unique(hashes & band, return_counts=True)[1] for band in bands])
    all_pairs = len(hashes) * (len(hashes) - 1) // 2
    return bands if (sizes * (sizes - 1) // 2).sum() < all_pairs else [np.uint64(0)]


def _joined(blocks: Sequence[_Pairs]) -> _Pairs:
    a, b, bits = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return a, b, bits


def _from_names(paths: pd.Series, pattern: str) -> np.ndarray:
    """What the pattern finds in each file's name or, with a / in the pattern, path; "" where nothing."""
    files = [PurePosixPath(path) for path in paths]  # without the "./" that only spreadsheets need
    example = f"the first file is {str(files[0])!r}" if files else "there is no file"
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.group={pattern!r}: expected a regular expression, found a fault in it: {reason}. "
            f"Mend it; {example}."
        ) from error
    # Names have no /, so a pattern with one is meant for paths. What other files are called does not count.
    matches = [expression.search(str(file) if "/" in pattern else file.name) for file in files]
    which = min(expression.groups, 1)
    groups = np.array([match[which] or "" if match else "" for match in matches], dtype=object)
    if len(groups) and not groups.any():
        where = "paths" if "/" in pattern else "file names"
        hint = "" if "/" in pattern else " or, to search in the paths, put a / into it as in '([^/]+)/[^/]*$'"
        raise UserError(
            f"data.group={pattern!r}: expected a pattern that finds a name for a group in {where}, found none in "
            f"all {len(files)}. Mend it{hint}; {example}."
        )
    return groups


def _placed(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Readable rows that have a part, sorted by path, and the number of the part of each."""
    rows = _readable(table)
    rows = rows[rows["split"].isin(PARTS)].sort_values("path", ignore_index=True)
    return rows, rows["split"].map({part: number for number, part in enumerate(PARTS)}).to_numpy(dtype=np.int64)


def _nearest_equal(values: pd.Series, part: np.ndarray) -> np.ndarray:
    """Of each row, the first row of equal value in each part: counterparts, int64 (N, 3)."""
    code, distinct = pd.factorize(values)
    return _first(code, part, np.arange(len(values)), len(distinct))[code]


def _nearest_close(phash: pd.Series, part: np.ndarray, distance: int) -> np.ndarray:
    """Of each row, the nearest row within the distance in each part: counterparts, int64 (N, 3)."""
    known, hashes, code = _hashes(phash)
    first = _first(code, part[known], known, len(hashes))
    nearest = first.copy()
    for a, b, bits in _close(hashes, distance):
        for here, there in ((a, b), (b, a)):
            pair, column = np.nonzero(first[there] < _NONE)
            np.minimum.at(nearest, (here[pair], column), bits[pair] * _STEP + first[there[pair], column])
    rows = np.full((len(phash), len(PARTS)), _NONE)
    rows[known] = nearest[code]
    return rows


def _first(code: np.ndarray, part: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """The least row of each code in each part, int64 (count, 3), _NONE where there is none."""
    first = np.full((count, len(PARTS)), _NONE)
    np.minimum.at(first, (code, part), row)
    return first


def _tell(kind: str, rows: pd.DataFrame, part: np.ndarray, counterparts: np.ndarray) -> pd.DataFrame:
    """One line for each row with a counterpart in an earlier part."""
    there = (counterparts < _NONE) & (np.arange(len(PARTS)) < part[:, None])
    later = np.flatnonzero(there.any(axis=1))
    counterpart = counterparts[later, there[later].argmax(axis=1)]
    a, b = rows.iloc[counterpart % _STEP], rows.iloc[later]
    return pd.DataFrame(
        {
            "kind": kind,
            "path_a": a["path"].to_numpy(),
            "split_a": a["split"].to_numpy(),
            "path_b": b["path"].to_numpy(),
            "split_b": b["split"].to_numpy(),
            "distance": -1 if kind == "group" else counterpart // _STEP,
            "group": b["group"].to_numpy() if kind == "group" else "",
        }
    )
