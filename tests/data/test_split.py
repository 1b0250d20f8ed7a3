"""The split parts no group, keeps every source's shares, and depends on content and seed alone; a given one stays."""

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake.data.groups import assign_groups
from deepfake.data.split import (
    PARTS,
    assign_parts,
    cut_out,
    expect_both_classes,
    held_out_leaks,
    join,
    split,
    unit_hash,
)
from deepfake.errors import UserError

SHARES = (0.7, 0.15, 0.15)

few = settings(max_examples=40)  # of whole catalogues, which take longer


def table_of(rows: list[tuple[str, str, int]]) -> pd.DataFrame:
    """From (source, group, number of its content)."""
    table = pd.DataFrame(rows, columns=["source", "group", "content"])
    table["sha256"] = [hashlib.sha256(str(content).encode()).hexdigest() for content in table.pop("content")]
    return table


def refusal(call: Callable, *arguments: object) -> str:
    """The message with which a call refuses its arguments: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Few groups and contents, so that they often meet, within a source and across sources.
mixed = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "g", "h", "i", "j"]), st.integers(0, 25)),
    min_size=1,
    max_size=60,
).map(table_of)

# Every group and every content lies inside one source, as in real folders of images.
separate = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 40)), min_size=1, max_size=80
).map(lambda rows: table_of([(s, f"{s}{g}" if g < 6 else "", ord(s) * 1000 + c * 13 + g) for s, g, c in rows]))


def linked(table: pd.DataFrame) -> list[set[int]]:
    """Rows that must stay together, found the slow way: sets that meet are merged until none do."""
    clusters: list[tuple[set[int], set[str]]] = []
    for row, (sha256, group) in enumerate(zip(table["sha256"], table["group"], strict=True)):
        rows, names = {row}, {sha256, f"group {group}"} if group else {sha256}
        for other in [c for c in clusters if c[1] & names]:
            rows, names = rows | other[0], names | other[1]
            clusters.remove(other)
        clusters.append((rows, names))
    return [rows for rows, _ in clusters]


def catalogue_of(rows: list[tuple[str, str, int]], apart: bool) -> pd.DataFrame:
    """From (source, given group, number of its content): a catalogue with groups, half of them near duplicates.

    Of four contents in a row, the first has no perceptual hash and the others are two bits apart.

    Args:
        apart: equal numbers in two sources are two contents.
    """
    keys = [(source if apart else "", content) for source, _, content in rows]
    table = pd.DataFrame(
        {
            "path": [f"{source}/{row:03}.png" for row, (source, _, _) in enumerate(rows)],
            "label": [ord(source) % 2 for source, _, _ in rows],
            "source": [source for source, _, _ in rows],
            "given": [group and f"{group}{source if apart else ''}" for source, group, _ in rows],
            "sha256": [hashlib.sha256(f"{source}:{content}".encode()).hexdigest() for source, content in keys],
        }
    )
    bases = [hashlib.sha256(f"{source}/{content // 4}".encode()).digest()[:8] for source, content in keys]
    table["phash"] = [
        f"{int.from_bytes(base) ^ (1 << content % 4):016x}" if content % 4 else ""
        for base, (_, content) in zip(bases, keys, strict=True)
    ]
    return grouped(table)


def grouped(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(group=assign_groups(table.assign(group=table["given"])))


def catalogues(sources: str = "abc", apart: bool = False) -> st.SearchStrategy[pd.DataFrame]:
    row = st.tuples(st.sampled_from(sources), st.sampled_from(["", "", "", "g", "h"]), st.integers(0, 40))
    return st.lists(row, min_size=1, max_size=50).map(lambda rows: catalogue_of(rows, apart))


@st.composite
def given_splits(draw: st.DrawFn) -> pd.DataFrame:
    """A catalogue in which some parts are given, training among them, and some files cannot be read."""
    table = draw(catalogues())
    parts = draw(st.sampled_from([("train",), ("train", "val"), ("train", "test"), PARTS]))
    rows = {"min_size": len(table), "max_size": len(table)}
    table["split"] = draw(st.lists(st.sampled_from([*parts, "train"]), **rows))
    table["status"] = draw(st.lists(st.sampled_from(["ok", "ok", "suspicious", "unreadable"]), **rows))
    table.loc[0, ["split", "status"]] = "train", "ok"
    return table


# ----------------------------------------------------------------------------------------------------- promises


@given(mixed)
def test_no_group_and_no_duplicate_is_parted(table: pd.DataFrame) -> None:
    parts = split(table)
    assert set(parts) <= set(PARTS)
    assert parts.name == "split"
    for rows in linked(table):
        assert len(set(parts.iloc[list(rows)])) == 1


@settings(max_examples=200)
@given(separate, st.sampled_from([SHARES, (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)]))
def test_every_source_has_its_shares_within_one_group(table: pd.DataFrame, shares: tuple[float, ...]) -> None:
    parts = split(table, shares)
    largest: dict[str, int] = {}
    for rows in linked(table):
        source = table["source"].iloc[min(rows)]
        largest[source] = max(largest.get(source, 0), len(rows))
    for source, of_source in parts.groupby(table["source"]):
        for part, share in zip(PARTS, shares, strict=True):
            assert abs((of_source == part).sum() - share * len(of_source)) < largest[source] + 1e-9


@given(mixed, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(table: pd.DataFrame, random) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = split(table.iloc[order])
    assert shuffled.index.tolist() == order
    pd.testing.assert_series_equal(shuffled.sort_index(), split(table))


@given(mixed)
def test_names_do_not_matter(table: pd.DataFrame) -> None:
    renamed = table.assign(
        path=[f"/elsewhere/{n}.png" for n in range(len(table))],
        group=table["group"].where(table["group"] == "", "person " + table["group"]),
    )
    pd.testing.assert_series_equal(split(renamed), split(table.assign(path="here.png")))


@given(separate)
def test_sources_that_share_nothing_do_not_matter(table: pd.DataFrame) -> None:
    here = table["source"] == "a"
    assert split(table)[here].to_dict() == split(table[here]).to_dict()


def test_single_images_are_split_to_the_unit() -> None:
    table = table_of([(source, "", ord(source) * 1000 + n) for source in "ab" for n in range(100)])
    counts = split(table).groupby(table["source"]).value_counts()
    assert counts.to_dict() == {(s, p): n for s in "ab" for p, n in zip(PARTS, (70, 15, 15), strict=True)}


def test_single_images_even_out_what_a_large_group_leaves() -> None:
    for seed in range(5):
        table = table_of([("a", "video" if n < 14 else "", n) for n in range(100)])
        counts = split(table, seed=seed).value_counts()
        assert [counts[part] for part in PARTS] == [70, 15, 15]


def test_another_seed_gives_another_split_of_the_same_sizes() -> None:
    table = table_of([("a", "", n) for n in range(100)])
    zero, one = split(table, seed=0), split(table, seed=1)
    assert zero.value_counts().to_dict() == one.value_counts().to_dict()
    # Two independent splits agree on .7^2 + 2 x .15^2 = 53 % of the images.
    assert 0.35 < (zero == one).mean() < 0.72
    pd.testing.assert_series_equal(split(table, seed=0), zero)


def test_a_group_across_classes_stays_whole() -> None:
    """A real face and what was generated from it."""
    rows = [(source, f"person {n}", ord(source) * 1000 + n) for source in "rf" for n in range(40)]
    parts = split(table_of(rows)).to_numpy()
    assert (parts[:40] == parts[40:]).all()
    assert [int((parts[:40] == part).sum()) for part in PARTS] == [28, 6, 6]


def test_index_of_the_table_is_kept() -> None:
    table = table_of([("a", "", n) for n in range(10)]).set_index(pd.Index(range(100, 110)))
    assert split(table).index.tolist() == list(range(100, 110))


def test_the_split_of_a_catalogue_is_the_same_in_every_version() -> None:
    """Figures of two versions are compared on the same test images."""
    groups = [f"g{n % 7}{n % 4}" if n % 3 else "" for n in range(60)]
    rows = [(source, group, ord(source) * 1000 + n % 50) for source in "abc" for n, group in enumerate(groups)]
    parts = split(table_of(rows), seed=3)
    assert parts.value_counts().to_dict() == {"train": 126, "val": 27, "test": 27}
    digest = hashlib.sha256(",".join(parts).encode()).hexdigest()
    assert digest == "512403f3ff0b8485dd6cb53e8726c9c35ee798c71abecf30936fb24b31056fbb"


@few
@given(catalogues())
def test_no_near_duplicate_is_parted_from_an_image_without_a_given_group(table: pd.DataFrame) -> None:
    parts = assign_parts(table)
    for rows in linked(table):
        assert len(set(parts.iloc[list(rows)])) == 1
    # In `catalogue_of`, a near duplicate is one of the same four contents.
    for _, same in table[table["phash"] != ""].groupby(table["phash"].str[:15]):
        if (same["given"] == "").any():
            assert len(set(parts[same.index])) == 1


@few
@given(catalogues("ab", apart=True))
def test_a_catalogue_has_its_shares_within_one_group(table: pd.DataFrame) -> None:
    parts = assign_parts(table, SHARES)
    largest: dict[str, int] = {}
    for rows in linked(table):
        source = table["source"].iloc[min(rows)]
        largest[source] = max(largest.get(source, 0), len(rows))
    for source, of_source in parts.groupby(table["source"]):
        for part, share in zip(PARTS, SHARES, strict=True):
            assert abs((of_source == part).sum() - share * len(of_source)) < largest[source] + 1e-9


@few
@given(catalogues("ab", apart=True))
def test_a_catalogue_is_split_alike_beside_unrelated_sources(table: pd.DataFrame) -> None:
    here = table["source"] == "a"
    assert assign_parts(table)[here].to_dict() == assign_parts(grouped(table[here])).to_dict()


# -------------------------------------------------------------------------------------------------- given splits


@few
@given(catalogues())
def test_where_nothing_is_given_the_parts_are_those_of_the_split(table: pd.DataFrame) -> None:
    expected = split(table, SHARES, seed=5)
    pd.testing.assert_series_equal(assign_parts(table, SHARES, 5), expected)
    pd.testing.assert_series_equal(assign_parts(table.assign(split="", status="ok"), SHARES, 5), expected)


@few
@given(given_splits())
def test_given_rows_never_move(table: pd.DataFrame) -> None:
    parts = assign_parts(table)
    readable = table["status"] != "unreadable"
    assert set(parts[~readable]) <= {""}
    given_parts = set(table.loc[readable, "split"])
    for part in given_parts - {"train"}:
        assert (parts[readable & (table["split"] == part)] == part).all()
    of_train = parts[readable & (table["split"] == "train")]
    assert set(of_train) <= {"train"} | (set(PARTS) - given_parts)


@few
@given(given_splits())
def test_what_is_cut_out_of_training_parts_no_group(table: pd.DataFrame) -> None:
    train = table[(table["split"] == "train") & (table["status"] != "unreadable")]
    parts = assign_parts(table)[train.index]
    for rows in linked(train):
        assert len(set(parts.iloc[list(rows)])) == 1


@few
@given(given_splits(), st.randoms(use_true_random=False))
def test_given_splits_do_not_depend_on_order_and_paths(table: pd.DataFrame, random) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    moved = table.assign(path="elsewhere/" + table["path"]).iloc[order]
    pd.testing.assert_series_equal(assign_parts(moved).sort_index(), assign_parts(table))


@few
@given(catalogues())
def test_a_training_part_alone_is_split_as_ever(table: pd.DataFrame) -> None:
    pd.testing.assert_series_equal(assign_parts(table.assign(split="train"), SHARES, 2), split(table, SHARES, 2))


@pytest.mark.parametrize(
    ("present", "missing", "expected"),
    [("test", "val", (800, 200)), ("val", "test", (900, 100))],
)
def test_a_missing_part_is_cut_out_of_training_in_its_relative_share(
    present: str, missing: str, expected: tuple[int, int]
) -> None:
    table = table_of([("a", "", n) for n in range(1050)])
    table["split"] = ["train"] * 1000 + [present] * 50
    parts = assign_parts(table, (0.72, 0.18, 0.08))
    assert (parts[1000:] == present).all()
    assert ((parts[:1000] == "train").sum(), (parts[:1000] == missing).sum()) == expected


def test_images_without_a_part_in_a_given_split_are_left_out() -> None:
    table = table_of([("a", "", n) for n in range(4)]).assign(split=["train", "val", "test", ""])
    assert assign_parts(table).tolist() == ["train", "val", "test", ""]


def test_a_group_in_two_given_parts_stays_as_given() -> None:
    table = table_of([("a", "g", n) for n in range(3)]).assign(split=list(PARTS))
    assert assign_parts(table).tolist() == list(PARTS)


def test_files_that_cannot_be_read_do_not_count() -> None:
    table = table_of([("a", "", n) for n in range(120)])
    bad = table.index >= 100
    table["status"] = np.where(bad, "unreadable", "ok")
    parts = assign_parts(table)
    assert set(parts[bad]) == {""}
    assert [int((parts == part).sum()) for part in PARTS] == [70, 15, 15]


def test_a_given_split_without_training_is_refused() -> None:
    table = table_of([("a", "", n) for n in range(5)]).assign(split=["val", "test", "test", "val", "test"])
    assert refusal(assign_parts, table) == (
        "the given split has no training part: expected images in train, found test (3 images), val (2 images). "
        "Give some the split train, or give no split at all."
    )


@pytest.mark.parametrize(
    ("parts", "status", "cut"),
    [
        (["train", "train", "train", "train"], "ok", ["val", "test"]),
        (["train", "test", "test", ""], "ok", ["val"]),
        (["train", "val", "train", "test"], "ok", []),
        (["train", "val", "train", "test"], "unreadable", ["test"]),
        (["", "", "", ""], "ok", []),
        (["val", "val", "val", "val"], "ok", []),
    ],
)
def test_what_is_cut_out_of_training_can_be_told(parts: list[str], status: str, cut: list[str]) -> None:
    table = table_of([("a", "", n) for n in range(4)]).assign(split=parts, status=["ok"] * 3 + [status])
    assert cut_out(table) == cut


def test_nothing_is_cut_out_where_no_split_is_given() -> None:
    assert cut_out(table_of([("a", "", 0)])) == []


@few
@given(given_splits())
def test_only_what_is_told_is_cut_out(table: pd.DataFrame) -> None:
    parts = assign_parts(table)
    readable = table["status"] != "unreadable"
    assert set(parts[readable & (table["split"] == "train")]) <= {"train", *cut_out(table)}


# ------------------------------------------------------------------------------------------------ held-out sources


@few
@given(st.one_of(given_splits(), catalogues()), st.sets(st.sampled_from("abc")))
def test_holding_out_changes_nothing_else(table: pd.DataFrame, chosen: set[str]) -> None:
    held_out = sorted(chosen & set(table["source"]))
    held = table["source"].isin(held_out)
    before, after = assign_parts(table), assign_parts(table, held_out=held_out)
    pd.testing.assert_series_equal(after[~held], before[~held])
    readable = table["status"] != "unreadable" if "status" in table else held | True
    assert (after[held] == np.where(readable[held], "test", "")).all()


def test_holding_out_every_fake_source_is_refused_for_want_of_a_class() -> None:
    table = table_of([(source, "", n) for source in ("0-a", "1-b") for n in range(20)])
    table["label"] = table["source"].str[0].astype(int)
    table["split"] = assign_parts(table, held_out=["1-b"])
    with pytest.raises(UserError, match="the train part has no generated image"):
        expect_both_classes(table)


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    table = table_of([("0-ffhq", "", 0), ("1-stylegan2", "", 1), ("1-sdxl", "", 2)])
    assert refusal(assign_parts, table, SHARES, 0, ["1-sdxl", "stylegan"]) == (
        "data.hold_out: expected sources of this data, found 'stylegan'. Did you mean '1-stylegan2'? "
        "There are 0-ffhq, 1-sdxl, 1-stylegan2."
    )


def shared(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """From (source, group, part); the label is the source's first digit."""
    table = table_of([(source, group, row) for row, (source, group, _) in enumerate(rows)])
    table["path"] = [f"{source}/{row}.png" for row, (source, _, _) in enumerate(rows)]
    return table.assign(label=table["source"].str[0].astype(int), split=[part for *_, part in rows])


def test_a_group_shared_under_the_same_label_is_told() -> None:
    table = shared(("1-held", "p", "test"), ("1-held", "p", "test"), ("1-other", "p", "val"), ("1-held", "q", "test"))
    assert held_out_leaks(table, ["1-held"]) == [
        (
            True,
            "held-out images whose group has training or validation images of the same label: 2, such as "
            "'1-held/0.png' with '1-other/2.png': figures on them will be too good. Hold out the other source too, "
            "or remove these images",
        )
    ]


def test_a_group_shared_under_the_other_label_is_told_as_harmless() -> None:
    table = shared(("0-real", "p", "train"), ("1-held", "p", "test"))
    assert held_out_leaks(table, ["1-held"]) == [
        (
            False,
            "held-out images whose group has training or validation images of the other label: 1, such as "
            "'1-held/1.png' with '0-real/0.png': no advantage, what was learned of the group is wrong for them",
        )
    ]


def test_an_equal_file_is_told_as_a_shared_group() -> None:
    table = shared(("1-held", "", "test"), ("1-other", "", "train"))
    table["sha256"] = table["sha256"].iloc[0]
    assert len(held_out_leaks(table, ["1-held"])) == 1


@pytest.mark.parametrize(
    "other",
    [("1-other", "p", "test"), ("1-other", "p", ""), ("1-other", "q", "train")],
    ids=["in test", "in no part", "in another group"],
)
def test_nothing_is_told_where_nothing_learned_is_shared(other: tuple[str, str, str]) -> None:
    assert held_out_leaks(shared(("1-held", "p", "test"), other), ["1-held"]) == []


# --------------------------------------------------------------------------------------------------------- join


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30), st.integers(0, 30))
def test_join_labels_what_is_linked_by_its_smallest_member(edges: list[tuple[int, int]], first: int) -> None:
    ends = np.array(edges, dtype=int).reshape(-1, 2)
    expected = list(range(20))
    for _ in range(20):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    start = np.arange(20)
    assert join(start, ends[:, 0], ends[:, 1]).tolist() == expected
    # The same in two steps.
    assert join(join(start, *ends[:first].T), *ends[first:].T).tolist() == expected
    assert start.tolist() == list(range(20))


def test_join_follows_long_chains() -> None:
    order = np.random.default_rng(0).permutation(5000)
    assert set(join(np.arange(5000), order[:-1], order[1:])) == {0}


# ---------------------------------------------------------------------------------------------------- unit_hash


def test_unit_hash_is_the_same_on_every_machine_and_evenly_spread() -> None:
    digest = hashlib.sha256(b"split:0:abc").digest()
    expected = sum(byte / 256 ** (k + 1) for k, byte in enumerate(digest[:6]))
    assert unit_hash("split", 0, "abc") == pytest.approx(expected, abs=1e-15)
    values = np.array([unit_hash("x", n) for n in range(2000)])
    assert ((values >= 0) & (values < 1)).all()
    assert np.abs(np.histogram(values, 10, (0, 1))[0] - 200).max() < 60  # 4.5 standard deviations


# ------------------------------------------------------------------------------------------ expect_both_classes


def labelled(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["split", "label"])


FULL = [(part, label) for part in PARTS for label in (0, 1)]


def test_both_classes_in_every_part_are_accepted() -> None:
    expect_both_classes(labelled(*FULL))


@pytest.mark.parametrize("missing", FULL)
def test_a_part_without_a_class_is_named_with_the_counts(missing: tuple[str, int]) -> None:
    part, label = missing
    kind = ("real", "generated")[label]
    with pytest.raises(UserError) as caught:
        expect_both_classes(labelled(*(row for row in FULL if row != missing)))
    assert str(caught.value) == (
        f"the {part} part has no {kind} image: expected at least one, found 2 {kind} images in all 5. "
        f"Add {kind} images (ten or more), or raise that share in data.fractions."
    )


def test_three_images_in_all_are_refused() -> None:
    table = table_of([("0-a", "", 0), ("0-a", "", 1), ("1-b", "", 2)]).assign(label=[0, 0, 1])
    table["split"] = split(table)
    with pytest.raises(UserError, match=r"part has no .* in all 3"):
        expect_both_classes(table)


def test_ten_images_of_a_class_are_enough() -> None:
    table = table_of([(source, "", ord(source[0]) * 100 + n) for source in ("0-a", "1-b") for n in range(10)])
    table["label"] = table["source"].str[0].astype(int)
    table["split"] = split(table)
    expect_both_classes(table)


def two_classes(real: list[tuple[str, str]], fake: list[tuple[str, str]]) -> pd.DataFrame:
    """From (source, group) of each image, with its content alone."""
    table = table_of([(*row, number) for number, row in enumerate(real + fake)])
    return table.assign(label=[0] * len(real) + [1] * len(fake))


MANY = [("0-a", "")] * 40


def test_a_class_in_too_few_groups_is_told_as_that() -> None:
    table = two_classes(MANY, [("1-b", "video 1")] * 38 + [("1-b", "video 2")] * 2)
    table["split"] = split(table)
    assert refusal(expect_both_classes, table) == (
        "the test part has no generated image: expected at least one, found 40 generated images in all 80, in 2 "
        "groups that are never parted, the largest of 38 images. Add generated images of other groups (ten groups "
        "or more), or raise that share in data.fractions."
    )


def test_a_class_of_many_small_sources_is_told_as_that() -> None:
    table = two_classes(MANY, [(f"1-{n // 4}", f"video {n // 2}") for n in range(60)])
    table["split"] = split(table)
    assert refusal(expect_both_classes, table) == (
        "the val part has no generated image: expected at least one, found 60 generated images in all 100, in 30 "
        "groups that are never parted, the largest of 2 images, from 15 sources that are each split by themselves. "
        "Add generated images of other groups (ten groups or more of one source), or raise that share in "
        "data.fractions."
    )


@pytest.mark.parametrize("group", ["video", ""])
def test_a_class_of_one_group_a_source_is_told_as_that(group: str) -> None:
    """Folders of videos, taken for folders of generators."""
    table = two_classes(
        MANY, [(f"1-{n}", group and f"{group} {n}") for n in range(30) for _ in range(2 if group else 1)]
    )
    table["split"] = split(table)
    message = refusal(expect_both_classes, table)
    assert message.startswith("the val part has no generated image: ")
    assert message.endswith(
        ", from 30 sources that are each split by themselves. Make fewer generated sources: move their folders into "
        "one (as NAME/FOLDER/1.png below the class), or name one for all in the column source of data.manifest."
    )


def test_a_few_sources_of_one_group_are_too_few_groups() -> None:
    table = two_classes(MANY, [(f"1-{n}", "") for n in range(9)])
    table["split"] = split(table)
    assert refusal(expect_both_classes, table).endswith(
        "found 9 generated images in all 49, from 9 sources that are each split by themselves. "
        "Add generated images (ten or more of one source), or raise that share in data.fractions."
    )


def test_a_class_in_many_groups_may_lack_a_share() -> None:
    table = two_classes([("0-a", "twins" if n < 2 else "") for n in range(40)], [("1-b", "")] * 40)
    table["split"] = split(table, (0.998, 0.001, 0.001))
    assert refusal(expect_both_classes, table).endswith(
        "found 40 real images in all 80. Add real images (ten or more), or raise that share in data.fractions."
    )


def test_a_class_that_is_held_out_is_told_as_that() -> None:
    table = two_classes(MANY, [("1-b", "")] * 15 + [("1-c", "")] * 5)
    table["split"] = assign_parts(table, held_out=["1-b", "1-c"])
    assert refusal(expect_both_classes, table, False, ["1-b", "1-c"]) == (
        "the train part has no generated image: expected at least one, found 20 generated images in all 60, 20 of "
        "them held out for the test part. Leave one of their sources out of data.hold_out, or add generated images "
        "of another."
    )


def test_what_is_held_out_is_not_counted_as_enough() -> None:
    table = two_classes(MANY, [("1-b", "")] * 20 + [("1-c", "")])
    table["split"] = assign_parts(table, held_out=["1-b"])
    assert refusal(expect_both_classes, table, False, ["1-b"]) == (
        "the val part has no generated image: expected at least one, found 21 generated images in all 61, 20 of "
        "them held out for the test part. Add generated images (ten or more), or raise that share in data.fractions."
    )


@pytest.mark.parametrize("group", ["", "one video"])
def test_a_class_that_a_given_split_lacks_is_told_as_that(group: str) -> None:
    table = two_classes(MANY, [("1-b", group)] * 20)
    table["split"] = ["train", "val", "test", "train"] * 10 + ["train", "test"] * 10
    assert refusal(expect_both_classes, table, True, ["0-x"]) == (
        "the val part has no generated image: expected at least one, found 20 generated images in all 60. "
        "Give generated images the split val, or give no split at all."
    )


def test_a_class_without_images_is_told_as_that() -> None:
    table = two_classes(MANY, [])
    table["split"] = split(table)
    assert refusal(expect_both_classes, table, True, ["0-a"]) == (
        "the train part has no generated image: expected at least one, found 0 generated images in all 40. "
        "Add generated images."
    )


def test_no_image_at_all_is_told_as_that() -> None:
    assert refusal(expect_both_classes, labelled()) == (
        "expected images in the parts train, val and test, found none left. Add images."
    )
