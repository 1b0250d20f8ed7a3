"""Near duplicates are all found, groups come from names or from content, and what lies in two parts is told."""

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake.data import groups
from deepfake.data.groups import assign_groups, leaks, near_pairs, near_to, refuse_leaks
from deepfake.errors import UserError

# A chain of hashes: neighbours are 3, 4, 5, 4 and 1 bits apart, others more.
CHAIN = [(1 << bits) - 1 for bits in (0, 3, 7, 12, 16, 17)]
FAR = 0xFFFF_FFFF_0000_0000


def sha(content: object) -> str:
    return hashlib.sha256(str(content).encode()).hexdigest()


def texts(hashes: list[int | None]) -> list[str]:
    return ["" if value is None else f"{value:016x}" for value in hashes]


def bits_between(one: str, other: str) -> int:
    """Hamming distance; 64 where a hash is undefined."""
    return (int(one, 16) ^ int(other, 16)).bit_count() if one and other else 64


def brute_force(phash: list[str], distance: int) -> list[tuple[int, int, int]]:
    """As `near_pairs` promises it: first rows of distinct hashes with each other, other rows with their first."""
    first: dict[int, int] = {}
    pairs = []
    for row, text in enumerate(phash):
        if text and first.setdefault(int(text, 16), row) != row:
            pairs.append((first[int(text, 16)], row, 0))
    for (one, a), (other, b) in itertools.combinations(first.items(), 2):
        if (bits := (one ^ other).bit_count()) <= distance:
            pairs.append((a, b, bits))
    return sorted(pairs)


def merged(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest row that each row is linked to, found the slow way."""
    least = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            least[a] = least[b] = min(least[a], least[b])
    return least


def as_tuples(pairs: pd.DataFrame) -> list[tuple[int, int, int]]:
    return list(pairs[["a", "b", "distance"]].itertuples(index=False, name=None))


def refusal(call, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- near pairs

flipped = st.builds(
    lambda base, bits: base ^ sum(1 << bit for bit in bits),
    st.sampled_from([0, FAR, 0x0123456789ABCDEF]),
    st.sets(st.integers(0, 63), max_size=4),
)
hashes = st.lists(st.one_of(st.none(), flipped, st.sampled_from(CHAIN)), max_size=40).map(texts)


@given(hashes, st.integers(0, 9))
def test_every_pair_within_the_distance_is_found_once(phash: list[str], distance: int) -> None:
    pairs = near_pairs(phash, distance)
    assert as_tuples(pairs) == brute_force(phash, distance)
    assert pairs.dtypes.tolist() == [np.dtype("int64")] * 3


@given(hashes, st.integers(0, 9))
def test_the_pairs_link_whatever_near_duplicates_link(phash: list[str], distance: int) -> None:
    everything = [
        (a, b)
        for a, b in itertools.combinations(range(len(phash)), 2)
        if bits_between(phash[a], phash[b]) <= distance
    ]
    found = [(a, b) for a, b, _ in as_tuples(near_pairs(phash, distance))]
    assert merged(len(phash), found) == merged(len(phash), everything)


def planted(count: int, mask: int, seed: int) -> list[str]:
    """Random hashes within the bits of the mask; every second is a copy of the one before with a few bits changed."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 2**64, count, dtype=np.uint64)
    for row in range(1, count, 2):
        values[row] = values[row - 1]
        for bit in random.integers(0, 64, random.integers(0, 7)):
            values[row] ^= np.uint64(1) << np.uint64(bit)
    return texts([int(value) for value in values & np.uint64(mask)])


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(2**64 - 1, id="spread"),
        pytest.param(2**64 - 2**26, id="many bits always 0"),
        pytest.param(2**14 - 1, id="crowded, so that bands tell nothing apart"),
    ],
)
def test_pairs_among_many_are_those_of_an_exhaustive_search(mask: int) -> None:
    phash = planted(1200, mask, seed=0)
    expected = brute_force(phash, 4)
    assert sum(bits > 0 for *_, bits in expected) > 100
    assert as_tuples(near_pairs(phash)) == expected


def test_skewed_hashes_are_found_among_others() -> None:
    """Most images nearly alike in half of the bits, as on one background."""
    phash = planted(600, 2**64 - 1, seed=1) + planted(600, 2**32 - 1, seed=2)
    assert as_tuples(near_pairs(phash)) == brute_force(phash, 4)


def test_equal_hashes_make_a_star() -> None:
    pairs = near_pairs(texts([5, 9] + [7 << 40] * 5000 + [None] * 10))
    assert len(pairs) == 1 + 4999
    star = pairs[pairs["a"] == 2]
    assert star["b"].tolist() == list(range(3, 5002))
    assert set(star["distance"]) == {0}


def test_no_hash_is_near_to_nothing() -> None:
    assert near_pairs(pd.Series(["", "", "0" * 16])).empty


def test_pairs_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    phash = planted(400, 2**20 - 1, seed=3)
    at_once = near_pairs(phash)
    monkeypatch.setattr(groups, "_BLOCK", 7)
    pd.testing.assert_frame_equal(near_pairs(phash), at_once)


# ------------------------------------------------------------------------------------------------------- groups


def images(rows: list[tuple[str, int | None]]) -> pd.DataFrame:
    """From (group, hash): files of their own content, named by their row."""
    table = pd.DataFrame({"group": [group for group, _ in rows], "phash": texts([value for _, value in rows])})
    table["path"] = [f"0-a/{row:03}.png" for row in range(len(rows))]
    table["sha256"] = [sha(row) for row in range(len(rows))]
    return table.astype(str)


def near_name(*rows: int) -> str:
    return "near-" + min(sha(row) for row in rows)[:12]


tables = st.lists(
    st.tuples(st.sampled_from(["", "", "", "g", "h", "i"]), st.one_of(st.none(), st.sampled_from(CHAIN), flipped)),
    max_size=25,
).map(images)


def slow_groups(table: pd.DataFrame) -> list[str]:
    """What `assign_groups` promises, from all pairs of rows."""
    given, phash = table["group"].tolist(), table["phash"].tolist()
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(table)), 2)
        if (given[a] and given[a] == given[b])
        or (bits_between(phash[a], phash[b]) <= 4 and not (given[a] and given[b]))
    ]
    least = merged(len(table), pairs)
    names = []
    for root in least:
        rows = [row for row, other in enumerate(least) if other == root]
        named = [given[row] for row in rows if given[row]]
        names.append(min(named) if named else near_name(*rows) if len(rows) > 1 else "")
    return names


@given(tables)
def test_groups_are_those_of_all_pairs_of_rows(table: pd.DataFrame) -> None:
    found = assign_groups(table)
    assert found.tolist() == slow_groups(table)
    assert found.name == "group"


@settings(max_examples=50)
@given(tables, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(table: pd.DataFrame, random) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    pd.testing.assert_series_equal(assign_groups(table.iloc[order]).sort_index(), assign_groups(table))


@settings(max_examples=50)
@given(tables)
def test_groups_of_groups_are_the_same_groups(table: pd.DataFrame) -> None:
    """As when a run's manifest is read again."""
    once = table.assign(group=assign_groups(table))
    assert assign_groups(once).tolist() == once["group"].tolist()


def test_near_duplicates_are_named_by_their_content() -> None:
    table = images([("", CHAIN[0]), ("", CHAIN[1]), ("", CHAIN[2]), ("", FAR), ("", None), ("", None)])
    name = near_name(0, 1, 2)
    assert assign_groups(table).tolist() == [name, name, name, "", "", ""]


def test_a_near_duplicate_of_one_given_group_takes_its_name() -> None:
    table = images([("video 1", CHAIN[0]), ("", CHAIN[1]), ("video 1", FAR)])
    assert assign_groups(table).tolist() == ["video 1"] * 3


def test_an_image_near_two_given_groups_merges_them() -> None:
    table = images([("b", CHAIN[0]), ("", CHAIN[1]), ("a", CHAIN[2]), ("b", FAR), ("c", FAR)])
    assert assign_groups(table).tolist() == ["a", "a", "a", "a", "c"]


def test_an_image_equal_to_one_and_near_to_another_given_group_merges_them() -> None:
    """The first row of a hash may have a group where a later one has none."""
    table = images([("a", 0), ("b", 1), ("c", 1), ("", 0)])
    assert assign_groups(table).tolist() == ["a"] * 4


def test_near_duplicates_with_given_groups_stay_apart() -> None:
    table = images([("a", 0), ("b", 0), ("c", 1)])
    assert assign_groups(table).tolist() == ["a", "b", "c"]


def test_distance_is_in_bits() -> None:
    table = images([("", 0), ("", 0b11111)])
    assert assign_groups(table, distance=4).tolist() == ["", ""]
    assert assign_groups(table, distance=5).tolist() == [near_name(0, 1)] * 2


def test_what_cannot_be_read_has_no_group() -> None:
    table = images([("a", 0), ("a", 0), ("", 0), ("", 0)])
    table["status"] = ["ok", "unreadable", "suspicious", "ok"]
    table.loc[3, "sha256"] = ""
    assert assign_groups(table).tolist() == ["a", "", "a", ""]


def test_index_of_the_table_is_kept() -> None:
    table = images([("a", 0), ("", 1)]).set_index(pd.Index([7, 3]))
    assert assign_groups(table).to_dict() == {7: "a", 3: "a"}


# -------------------------------------------------------------------------------------------- groups from names


def named(*paths: str, group: str = "") -> pd.DataFrame:
    return images([(group, None)] * len(paths)).assign(path=list(paths))


def test_the_first_group_of_the_pattern_names_the_group() -> None:
    table = named("0-a/id7_01.png", "1-b/deep/id7_02.png", "0-a/id8_01.png", "0-a/other.png")
    assert assign_groups(table, r"id(\d+)_(\d+)").tolist() == ["7", "7", "8", ""]


def test_a_pattern_without_groups_names_by_all_it_matches() -> None:
    assert assign_groups(named("a/id7_01.png", "a/x_id7.png"), r"id\d+").tolist() == ["id7", "id7"]


def test_the_pattern_is_searched_in_the_file_name_alone() -> None:
    table = named("person1/a.png", "person2/b.png", "person2/person3.png")
    assert assign_groups(table, r"person\d").tolist() == ["", "", "person3"]


FRAMES = ["fake/000_003/0001.png", "./=x/000_003/0002.png", "fake/001.png", "real/000/0001.png"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r"(\d+)_\d+/", ["000", "000", "", ""]),
        (r"^.*/", ["fake/000_003/", "=x/000_003/", "fake/", "real/000/"]),
        ("([^/]+)/[^/]*$", ["000_003", "000_003", "fake", "000"]),
    ],
)
def test_a_pattern_with_a_slash_is_searched_in_the_path_below_root(pattern: str, names: list[str]) -> None:
    assert assign_groups(named(*FRAMES), pattern).tolist() == names


def test_a_group_that_took_no_part_in_the_match_names_nothing() -> None:
    assert assign_groups(named("a/x1.png", "a/y.png"), r"x(\d)|y").tolist() == ["1", ""]


def test_the_pattern_wins_over_the_column() -> None:
    table = named("a/1_x.png", "a/2_x.png", "a/x.png", group="given")
    assert assign_groups(table, r"\d").tolist() == ["1", "2", ""]


def test_what_the_pattern_does_not_name_is_joined_with_its_near_duplicates() -> None:
    table = images([("", 0), ("", 1), ("", FAR), ("", FAR)]).assign(path=["1_a.png", "b.png", "c.png", "d.png"])
    assert assign_groups(table, r"^\d").tolist() == ["1", "1", near_name(2, 3), near_name(2, 3)]


@pytest.mark.parametrize("pattern", ["(", "*x", "a{99999999999999999999}", "(\n"])
def test_a_faulty_pattern_is_refused_with_a_file(pattern: str) -> None:
    message = refusal(assign_groups, named("0-a/id7_01.png"), pattern)
    assert message.startswith(f"data.group={pattern!r}: expected a regular expression, found a fault in it: ")
    assert message.endswith("Mend it; the first file is '0-a/id7_01.png'.")


@pytest.mark.parametrize("pattern", ["0-a", "x*", "z(.*)"])
def test_a_pattern_that_names_nothing_is_refused_with_a_file(pattern: str) -> None:
    message = refusal(assign_groups, named("0-a/id7_01.png", "0-a/2.png"), pattern)
    assert message == (
        f"data.group={pattern!r}: expected a pattern that finds a name for a group in file names, found none in "
        "all 2. Mend it or, to search in the paths, put a / into it as in '([^/]+)/[^/]*$'; the first file is "
        "'0-a/id7_01.png'."
    )


def test_a_pattern_with_a_slash_that_names_nothing_is_refused_with_a_path() -> None:
    assert refusal(assign_groups, named("0-a/id7_01.png", "0-a/2.png"), r"id\d/") == (
        "data.group='id\\\\d/': expected a pattern that finds a name for a group in paths, found none in all 2. "
        "Mend it; the first file is '0-a/id7_01.png'."
    )


def test_a_pattern_for_files_that_cannot_be_read_is_not_at_fault() -> None:
    assert assign_groups(named("0-a/1.png").assign(status="unreadable"), "z").tolist() == [""]


# -------------------------------------------------------------------------------------------------------- leaks


def placed(rows: list[tuple[str, str, str, int | None, int]]) -> pd.DataFrame:
    """From (path, split, group, hash, content)."""
    table = pd.DataFrame(rows, columns=["path", "split", "group", "phash", "content"], dtype=object)
    table["phash"] = texts(table["phash"].tolist())
    table["sha256"] = [sha(content) for content in table.pop("content")]
    return table.astype(str)


@st.composite
def splits(draw: st.DrawFn) -> pd.DataFrame:
    """Equal content has an equal hash; paths in any order."""
    chosen = draw(st.lists(st.integers(0, 9), max_size=14))
    paths = draw(st.permutations([f"{number:02}.png" for number in range(len(chosen))]))
    hashes = [*CHAIN, CHAIN[0], FAR, None, None]
    split = st.sampled_from(["train", "train", "val", "test", ""])
    group = st.sampled_from(["", "", "g", "h", "near-1"])
    return placed([(path, draw(split), draw(group), hashes[c], c) for path, c in zip(paths, chosen, strict=True)])


def slow_leaks(table: pd.DataFrame) -> list[tuple[str, str, str, int]]:
    """(kind, path_a, path_b, distance) from all pairs of rows."""
    order = ["train", "val", "test"]
    rows = [row for row in table.sort_values("path").itertuples() if row.split]
    found: dict[str, list[tuple[str, str, str, int]]] = {"exact": [], "near": [], "group": []}
    told_groups = set()
    for b in rows:
        exact, near, group = [], [], []
        for a in rows:
            earlier = order.index(a.split)
            if earlier >= order.index(b.split):
                continue
            bits = bits_between(a.phash, b.phash)
            if a.sha256 == b.sha256:
                exact.append((earlier, 0, a.path))
            elif bits <= 4 and not any(o.sha256 == b.sha256 and o.split == a.split for o in rows):
                near.append((earlier, bits, a.path))
            if a.group == b.group and b.group in ("g", "h") and b.group not in told_groups:
                group.append((earlier, -1, a.path))
        for kind, leak in (("exact", exact), ("near", near), ("group", group)):
            if leak:
                _, distance, path = min(leak)
                found[kind].append((kind, path, b.path, distance))
        if group:
            told_groups.add(b.group)
    return [*found["exact"], *found["near"], *found["group"]]


@given(splits())
def test_leaks_are_those_of_all_pairs_of_rows(table: pd.DataFrame) -> None:
    found = leaks(table)
    told = list(found[["kind", "path_a", "path_b", "distance"]].itertuples(index=False, name=None))
    assert told == slow_leaks(table)
    split = table.set_index("path")["split"]
    assert found["split_a"].tolist() == [split[path] for path in found["path_a"]]
    assert found["split_b"].tolist() == [split[path] for path in found["path_b"]]


def test_each_kind_of_leak_is_told_with_both_files() -> None:
    table = placed(
        [
            ("1.png", "train", "", 0, 1),
            ("2.png", "test", "", 0, 1),
            ("3.png", "val", "", FAR, 3),
            ("4.png", "test", "", FAR ^ 7, 4),
            ("5.png", "train", "video", None, 5),
            ("6.png", "val", "video", None, 6),
        ]
    )
    assert leaks(table).to_dict("split")["data"] == [
        ["exact", "1.png", "train", "2.png", "test", 0, ""],
        ["near", "3.png", "val", "4.png", "test", 3, ""],
        ["group", "5.png", "train", "6.png", "val", -1, "video"],
    ]


def test_the_nearest_image_of_the_earliest_part_is_told() -> None:
    table = placed(
        [
            ("0.png", "val", "", 0, 0),
            ("1.png", "train", "", 0b1111, 1),
            ("2.png", "train", "", 0b0011, 2),
            ("3.png", "train", "", 0b1100, 3),
            ("4.png", "test", "", 0, 4),
        ]
    )
    found = leaks(table)
    assert found[found["path_b"] == "4.png"][["path_a", "distance"]].to_numpy().tolist() == [["2.png", 2]]


def test_a_group_is_told_once_and_a_found_one_by_its_near_duplicates() -> None:
    rows = [(f"{n}.png", ("train", "val", "test")[n % 3], "g" if n < 6 else "near-0", None, n) for n in range(12)]
    found = leaks(placed(rows))
    assert found[["kind", "group", "path_a", "path_b"]].to_numpy().tolist() == [["group", "g", "0.png", "1.png"]]


def test_nothing_leaks_within_a_part_nor_from_what_has_none() -> None:
    rows = [(f"{n}.png", "train", "g", 0, 0) for n in range(3)]
    table = placed([*rows, ("a.png", "", "g", 0, 0), ("b.png", "test", "g", 0, 0)])
    table["status"] = ["ok"] * 4 + ["unreadable"]
    assert leaks(table).empty
    refuse_leaks(table)


def test_the_same_image_in_two_parts_is_refused_with_both_names() -> None:
    table = placed([("new\nline.png", "test", "", 0, 1), ("a.png", "val", "", 0, 1), ("b.png", "val", "", 1, 2)])
    assert refusal(refuse_leaks, table) == (
        "the same image is in two parts: 'a.png' in val and 'new\\nline.png' in test. Remove one of the two."
    )


def test_near_duplicates_and_groups_in_two_parts_are_not_refused() -> None:
    table = placed([("a.png", "train", "g", 0, 1), ("b.png", "test", "g", 0, 2)])
    assert leaks(table)["kind"].tolist() == ["near", "group"]
    refuse_leaks(table)


def test_near_to_others() -> None:
    others = ["00000000000000ff", "", "00000000000000ff"]
    asked = ["00000000000000ff", "00000000000000f0", "00000000000000e0", "", "00000000000000f0", "ffffffffffffffff"]
    assert near_to(asked, others).tolist() == [True, True, False, False, True, False], "4 bits are near, 5 are not"
    assert not near_to(asked, []).any()
