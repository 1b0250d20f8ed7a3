"""The split parts no group, keeps every source's shares, and depends on content and seed alone."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake.data.split import PARTS, expect_both_classes, split, unit_hash
from deepfake.errors import UserError

SHARES = (0.7, 0.15, 0.15)


def table_of(rows: list[tuple[str, str, int]]) -> pd.DataFrame:
    """From (source, group, number of its content)."""
    table = pd.DataFrame(rows, columns=["source", "group", "content"])
    table["sha256"] = [hashlib.sha256(str(content).encode()).hexdigest() for content in table.pop("content")]
    return table


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
