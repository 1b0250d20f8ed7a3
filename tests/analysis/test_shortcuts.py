"""Planted shortcuts are found, chance is not, and every figure is scikit-learn's."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from deepfake.analysis.shortcuts import FEATURES, Shortcut, metadata_shortcuts, spectrum_shortcut
from deepfake.analysis.spectra import power_spectrum, radial_profile


def catalogue(train: int = 100, test: int = 40, seed: int = 0) -> pd.DataFrame:
    """So many images of each class in the two parts, whose metadata have nothing to do with the class."""
    random = np.random.default_rng(seed)
    images = 2 * (train + test)
    return pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(images)],
            "label": np.arange(images) % 2,
            "split": ["train"] * 2 * train + ["test"] * 2 * test,
            "width": random.integers(100, 1000, images),
            "height": random.integers(100, 1000, images),
            "mode": random.choice(["RGB", "L"], images),
            "format": random.choice(["JPEG", "PNG", "WEBP"], images),
            "bytes": random.integers(5_000, 500_000, images),
            "jpeg_luma": random.choice([-1.0, 5.77, 29.03], images),
        }
    )


def tabled(**counts: dict[object, tuple[int, int]]) -> pd.DataFrame:
    """A catalogue that differs in `width` or `format` alone, from {value: (real, fake)} for each part."""
    column = "format" if isinstance(next(iter(counts["train"])), str) else "width"
    rows = [
        {"split": part, "label": label, column: value}
        for part, values in counts.items()
        for value, numbers in values.items()
        for label in (0, 1)
        for _ in range(numbers[label])
    ]
    same = {"width": 256, "height": 256, "mode": "RGB", "format": "JPEG", "bytes": 9_000, "jpeg_luma": 5.77}
    table = pd.DataFrame(rows)
    return table.assign(**{name: value for name, value in same.items() if name != column})


def named(found: list[Shortcut]) -> dict[str, Shortcut]:
    return {shortcut.name: shortcut for shortcut in found}


# -------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    ("feature", "column", "real", "fake", "rule"),
    [
        (
            "width",
            "width",
            256,
            1024,
            "width <= 640 -> real (100 real, 0 fake); width > 640 -> fake (0 real, 100 fake)",
        ),
        (
            "height",
            "height",
            255,
            256,
            "height <= 255 -> real (100 real, 0 fake); height > 255 -> fake (0 real, 100 fake)",
        ),
        (
            "jpeg_luma",
            "jpeg_luma",
            29.03,
            5.77,
            "jpeg_luma <= 17.4 -> fake (0 real, 100 fake); jpeg_luma > 17.4 -> real (100 real, 0 fake)",
        ),
    ],
)
def test_a_planted_number_is_found(feature: str, column: str, real: float, fake: float, rule: str) -> None:
    table = catalogue()
    table[column] = np.where(table["label"] == 1, fake, real)
    found = metadata_shortcuts(table)
    assert found[0].name == feature
    assert found[0].balanced_accuracy == found[0].auroc == 1
    assert found[0].level == "loud"
    assert found[0].rule == rule
    assert named(found)["all metadata"].level == "loud"


@pytest.mark.parametrize(("column", "real", "fake"), [("format", "JPEG", "PNG"), ("mode", "RGB", "L")])
def test_a_planted_category_is_found(column: str, real: str, fake: str) -> None:
    table = catalogue()
    table[column] = np.where(table["label"] == 1, fake, real)
    found = metadata_shortcuts(table)
    assert found[0].name == column
    assert found[0].level == "loud"
    assert {leaf.split(" (")[0] for leaf in found[0].rule.split("; ")} in (
        {f"{column} is {real} -> real", f"{column} is not {real} -> fake"},
        {f"{column} is {fake} -> fake", f"{column} is not {fake} -> real"},
    )
    assert {name for name, shortcut in named(found).items() if shortcut.level} == {column, "all metadata"}


def test_a_planted_density_is_found() -> None:
    table = catalogue()
    table["bytes"] = table["width"] * table["height"] * np.where(table["label"] == 1, 2, 1)
    found = metadata_shortcuts(table)
    assert found[0].name == "bytes per pixel"
    assert found[0].level == "loud"
    assert found[0].rule.startswith("bytes per pixel <= 1.5 -> real")


def test_a_planted_aspect_is_found() -> None:
    table = catalogue()
    table["width"] = table["height"] * np.where(table["label"] == 1, 2, 1)
    found = named(metadata_shortcuts(table))
    assert found["aspect"].balanced_accuracy == 1
    assert found["aspect"].level == "loud"
    assert found["height"].level is None


def test_a_size_can_tell_where_its_width_and_height_do_not() -> None:
    table = catalogue()
    landscape = np.random.default_rng(1).random(len(table)) < 0.5
    table["width"] = np.where(landscape, 640, 480)
    table["height"] = np.where(landscape == (table["label"] == 1), 640, 480)
    # One pair more often than the other: a tree of single steps sees nothing in a balanced cross.
    found = named(metadata_shortcuts(table.drop(table.index[landscape & (table["label"] == 1)][::2])))
    assert found["size"].balanced_accuracy == 1
    assert max(found["width"].balanced_accuracy, found["height"].balanced_accuracy) < 0.8


def test_every_feature_is_judged_strongest_first() -> None:
    found = metadata_shortcuts(catalogue())
    assert {shortcut.name for shortcut in found} == set(FEATURES)
    assert len(found) == len(FEATURES)
    strengths = [shortcut.balanced_accuracy for shortcut in found]
    assert strengths == sorted(strengths, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_chance_raises_no_flag(seed: int) -> None:
    # Of 300 tables of this size, 1 had a flag on any of the nine.
    found = metadata_shortcuts(catalogue(train=500, test=100, seed=seed))
    assert [shortcut.name for shortcut in found if shortcut.level] == []


def test_few_images_raise_no_flag_however_well_chance_sorts_them() -> None:
    found = [s for seed in range(8) for s in metadata_shortcuts(catalogue(train=20, test=1, seed=seed))]
    assert sum(shortcut.interval == (1, 1) for shortcut in found) > 2
    assert not any(shortcut.level for shortcut in found)


@pytest.mark.parametrize(
    ("images", "level"), [(4, None), (5, "loud"), (40, "loud")], ids=["p=1/70", "p=1/252", "many"]
)
def test_a_perfect_answer_counts_when_chance_would_hardly_give_it(images: int, level: str | None) -> None:
    parts = {200: (images, 0), 300: (0, images)}
    width = named(metadata_shortcuts(tabled(train={200: (50, 0), 300: (0, 50)}, test=parts)))["width"]
    assert width.balanced_accuracy == 1
    assert width.level == level


def test_an_interval_that_holds_a_half_raises_no_flag() -> None:
    # Fisher's p is .002, but 3 of 5 reals are wrong: with other reals like these it may well be 5 of 5.
    width = named(metadata_shortcuts(tabled(train={200: (50, 0), 300: (0, 50)}, test={200: (2, 0), 300: (3, 100)})))[
        "width"
    ]
    assert width.balanced_accuracy == pytest.approx(0.7)
    assert width.interval[0] == 0.5
    assert width.level is None


@pytest.mark.parametrize("right", range(25, 30))
def test_the_flag_follows_fishers_exact_test(right: int) -> None:
    # 40 of each class in the test part, and as many right in both.
    test = {200: (right, 40 - right), 300: (40 - right, right)}
    width = named(metadata_shortcuts(tabled(train={200: (50, 0), 300: (0, 50)}, test=test)))["width"]
    p = fisher_exact([[right, 40 - right], [40 - right, right]], alternative="greater").pvalue
    assert width.balanced_accuracy == right / 40
    assert (width.level is not None) == (p < 0.005)


@pytest.mark.parametrize(
    ("right", "level"),
    [(118, None), (122, "warning"), (158, "warning"), (162, "loud")],
    ids=[".59", ".61", ".79", ".81"],
)
def test_levels(right: int, level: str | None) -> None:
    test = {200: (right, 200 - right), 300: (200 - right, right)}
    width = named(metadata_shortcuts(tabled(train={200: (50, 0), 300: (0, 50)}, test=test)))["width"]
    assert width.balanced_accuracy == right / 200
    assert width.interval[0] > 0.5
    assert width.level == level


def test_an_auroc_above_80_is_loud_where_one_threshold_cannot_show_it() -> None:
    # The smallest are all real and the largest all fake; between them the images cannot be told apart.
    part = {200: (40, 0), 256: (60, 58), 300: (0, 42)}
    width = named(metadata_shortcuts(tabled(train=part, test=part)))["width"]
    assert width.balanced_accuracy == pytest.approx((1 + 0.42) / 2)
    assert width.auroc == pytest.approx(0.4 + 0.6 * (0.42 + 0.58 / 2))
    assert width.level == "loud"


def test_a_stump_by_hand() -> None:
    found = named(
        metadata_shortcuts(tabled(train={"JPEG": (30, 10), "PNG": (5, 25)}, test={"JPEG": (17, 5), "PNG": (3, 15)}))
    )["format"]
    # With one step, (true positive rate + true negative rate) / 2 is both the balanced accuracy and the AUROC.
    assert found.balanced_accuracy == pytest.approx((17 / 20 + 15 / 20) / 2)
    assert found.auroc == pytest.approx((17 / 20 + 15 / 20) / 2)
    deviation = math.sqrt(0.85 * 0.15 / 20 + 0.75 * 0.25 / 20) / 2
    assert found.interval == pytest.approx((0.8 - 1.96 * deviation, 0.8 + 1.96 * deviation), abs=0.03)
    assert (found.train_images, found.test_images) == (70, 40)
    assert "(30 real, 10 fake)" in found.rule
    assert "(5 real, 25 fake)" in found.rule


def test_figures_equal_a_tree_made_by_hand() -> None:
    table = catalogue(train=150, test=60)
    table["width"] += 150 * table["label"]
    table["jpeg_luma"] = np.where(np.random.default_rng(2).random(len(table)) < 0.3, 40.0, table["jpeg_luma"])
    table = table.drop(table.index[(table["label"] == 1) & (table["split"] == "train")][::3])
    columns = pd.DataFrame(
        {
            "width": table["width"],
            "height": table["height"],
            "aspect": table["width"] / table["height"],
            **{f"is {value}": table["format"] == value for value in ("JPEG", "PNG", "WEBP")},
            **{f"is {value}": table["mode"] == value for value in ("L", "RGB")},
            "density": table["bytes"] / table["width"] / table["height"],
            "luma": table["jpeg_luma"],
        }
    ).astype(float)
    train, test = table["split"] == "train", table["split"] == "test"
    found = named(metadata_shortcuts(table))
    for name, used in (
        ("all metadata", list(columns)),
        ("width", ["width"]),
        ("format", ["is JPEG", "is PNG", "is WEBP"]),
    ):
        # Five hundredths of the 100 fakes left in the train part are 5.
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, class_weight="balanced", random_state=0)
        tree.fit(columns.loc[train, used].to_numpy(), table.loc[train, "label"])
        p = tree.predict_proba(columns.loc[test, used].to_numpy())[:, 1]
        truth = table.loc[test, "label"]
        assert found[name].balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, p > 0.5))
        assert found[name].auroc == pytest.approx(roc_auc_score(truth, p))
        assert found[name].interval[0] < found[name].balanced_accuracy < found[name].interval[1]
        assert found[name].auroc_interval[0] < found[name].auroc < found[name].auroc_interval[1]


def test_row_order_index_and_file_names_change_nothing() -> None:
    table = catalogue()
    table["width"] += 100 * table["label"]
    shuffled = table.sample(frac=1, random_state=3)
    shuffled["path"] = [f"1-fake/{number}.png" for number in range(len(table))]
    assert metadata_shortcuts(shuffled) == metadata_shortcuts(table)


def test_the_table_is_left_as_it_was() -> None:
    table = catalogue()
    before = table.copy()
    metadata_shortcuts(table)
    pd.testing.assert_frame_equal(table, before)


def test_only_train_and_test_count() -> None:
    table = catalogue()
    others = catalogue(seed=1).assign(split="val")
    unreadable = catalogue(seed=2).assign(split="", width=0, height=0, bytes=7, format="", mode="", jpeg_luma=-1.0)
    assert metadata_shortcuts(pd.concat([others, table, unreadable])) == metadata_shortcuts(table)


def test_a_category_that_the_train_part_lacks_is_none_of_its_own() -> None:
    found = named(
        metadata_shortcuts(
            tabled(train={"JPEG": (50, 0), "PNG": (0, 50)}, test={"JPEG": (20, 0), "PNG": (0, 20), "BMP": (20, 20)})
        )
    )["format"]
    assert "BMP" not in found.rule
    # Whatever it is taken for, one of the two BMP halves is right.
    assert found.balanced_accuracy == pytest.approx(0.75)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("label", "kind"), [(0, "real"), (1, "fake")])
def test_a_part_with_one_class_is_undefined(part: str, label: int, kind: str) -> None:
    table = catalogue()
    table = table[(table["split"] != part) | (table["label"] != label)]
    for shortcut in metadata_shortcuts(table):
        assert math.isnan(shortcut.balanced_accuracy)
        assert math.isnan(shortcut.auroc)
        assert np.isnan([*shortcut.interval, *shortcut.auroc_interval]).all()
        assert shortcut.level is None
        assert shortcut.rule == f"undefined: no {kind} image in the {part} part"
        assert (shortcut.train_images, shortcut.test_images) == ((100, 80) if part == "train" else (200, 40))


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_part_is_undefined(part: str) -> None:
    table = catalogue()
    found = metadata_shortcuts(table[table["split"] != part])
    assert {shortcut.rule for shortcut in found} == {f"undefined: no real image in the {part} part"}


# ----------------------------------------------------------------------------------------------------- rules


def test_a_rule_joins_neighbours_that_give_the_same_answer() -> None:
    sizes = {200: (60, 0), 256: (40, 60), 512: (0, 40), 1024: (30, 0)}
    width = named(metadata_shortcuts(tabled(train=sizes, test=sizes)))["width"]
    assert width.rule == (
        "width <= 228 -> real (60 real, 0 fake); 228 < width <= 768 -> fake (40 real, 100 fake); "
        "width > 768 -> real (30 real, 0 fake)"
    )


def test_a_rule_on_square_images_names_the_width_alone() -> None:
    table = catalogue()
    table["width"] = table["height"] = table["width"] + 300 * table["label"]
    found = named(metadata_shortcuts(table))
    assert found["size"] == replace(found["width"], name="size")
    assert "height" not in found["all metadata"].rule


def test_nothing_to_go_by_is_a_rule_too() -> None:
    alike = named(metadata_shortcuts(tabled(train={256: (30, 50)}, test={256: (20, 10)})))["width"]
    assert alike.rule in ("every image -> real (30 real, 50 fake)", "every image -> fake (30 real, 50 fake)")
    assert alike.balanced_accuracy == alike.auroc == 0.5
    assert alike.level is None


def test_a_handful_of_odd_images_makes_no_leaf() -> None:
    # 7 are fewer than a twentieth of the 193 reals.
    part = {256: (186, 200), 999: (7, 0)}
    width = named(metadata_shortcuts(tabled(train=part, test=part)))["width"]
    assert width.rule.startswith("every image")
    assert width.balanced_accuracy == 0.5


# ---------------------------------------------------------------------------------------------------- plain


def test_as_dict_is_json() -> None:
    table = catalogue()
    for shortcut in metadata_shortcuts(table):
        plain = shortcut.as_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["interval"] == list(shortcut.interval)
        assert plain["balanced_accuracy"] == shortcut.balanced_accuracy


def test_as_dict_says_none_where_undefined() -> None:
    plain = metadata_shortcuts(catalogue().query("label == 1"))[0].as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["balanced_accuracy"] is plain["auroc"] is plain["level"] is None
    assert plain["interval"] == plain["auroc_interval"] == [None, None]


# -------------------------------------------------------------------------------------------------- spectrum


def profiles(images: int, entries: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Falling spectra that have nothing to do with their labels, half of them for training."""
    random = np.random.default_rng(seed)
    power = 10 ** random.normal(-3 - 0.2 * np.arange(entries), 0.3, (images, entries))
    return power, np.arange(images) % 2, np.where(np.arange(images) < images // 2, "train", "test")


def test_the_spectrum_equals_a_regression_made_by_hand() -> None:
    power, labels, splits = profiles(240)
    power[labels == 1, 5] *= 1.6
    keep = (labels == 0) | (np.arange(240) % 3 > 0)
    power, labels, splits = power[keep], labels[keep], splits[keep]
    decibels = 10 * np.log10(power + 1e-12)
    train, test = splits == "train", splits == "test"
    mean, deviation = decibels[train].mean(axis=0), decibels[train].std(axis=0)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    model.fit((decibels[train] - mean) / deviation, labels[train])
    p = model.predict_proba((decibels[test] - mean) / deviation)[:, 1]
    found = spectrum_shortcut(power, labels, splits)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels[test], p > 0.5))
    assert found.auroc == pytest.approx(roc_auc_score(labels[test], p))
    assert 0.5 < found.auroc_interval[0] < found.auroc < found.auroc_interval[1]
    assert (found.train_images, found.test_images) == (train.sum(), test.sum())


@pytest.mark.parametrize(("factor", "gap"), [(10, "+10."), (0.1, "-10.")])
def test_a_planted_ring_is_found_and_named(factor: float, gap: str) -> None:
    power, labels, splits = profiles(400)
    power[labels == 1, 7] *= factor
    found = spectrum_shortcut(power, labels, splits)
    assert found.name == "spectrum"
    assert found.level == "loud"
    assert found.rule.startswith("widest gap at 7 cycles an image: fakes ")
    assert abs(float(found.rule.split("fakes ")[1].split(" dB")[0]) - float(gap)) < 1


def test_upsampled_images_are_told_from_others() -> None:
    random = np.random.default_rng(0)
    power = []
    for number in range(120):
        # Smooth pictures of equal detail; every second was made at half the size and shown large.
        side = 16 if number % 2 else 32
        picture = np.cumsum(np.cumsum(random.normal(size=(side, side)), axis=0), axis=1)
        power.append(radial_profile(power_spectrum(picture.repeat(32 // side, axis=0).repeat(32 // side, axis=1))))
    _, labels, splits = profiles(120)
    assert spectrum_shortcut(np.stack(power), labels, splits).level == "loud"


@pytest.mark.parametrize("seed", range(6))
def test_chance_in_spectra_raises_no_flag(seed: int) -> None:
    assert spectrum_shortcut(*profiles(200, seed=seed)).level is None


def test_entries_that_never_vary_do_no_harm() -> None:
    power, labels, splits = profiles(400)
    power[labels == 1, 7] *= 10
    power[:, 0] = 0  # the mean is removed
    found = spectrum_shortcut(power, labels, splits)
    assert found.level == "loud"
    assert found.rule.startswith("widest gap at 7 cycles")


def test_order_and_other_parts_change_no_spectrum() -> None:
    power, labels, splits = profiles(160)
    power[labels == 1, 3] *= 1.5
    expected = spectrum_shortcut(power, labels, splits)
    order = np.random.default_rng(1).permutation(320)
    more, others, _ = profiles(160, seed=1)
    parts = np.concatenate([splits, np.where(others == 1, "val", "")])
    everything = np.concatenate([power, more])[order], np.concatenate([labels, others])[order], parts[order]
    assert spectrum_shortcut(*everything) == expected


def test_columns_of_a_table_are_taken_by_position() -> None:
    power, labels, splits = profiles(80)
    table = pd.DataFrame({"label": labels, "split": splits}, index=np.arange(80)[::-1])
    assert spectrum_shortcut(power, table["label"], table["split"]) == spectrum_shortcut(power, labels, splits)


def test_a_spectrum_of_one_class_is_undefined() -> None:
    power, labels, splits = profiles(80)
    found = spectrum_shortcut(power, np.where(splits == "test", 1, labels), splits)
    assert math.isnan(found.balanced_accuracy)
    assert found.level is None
    assert found.rule == "undefined: no real image in the test part"


@pytest.mark.parametrize("wrong", [-1e-9, np.nan, np.inf])
def test_power_must_be_a_power(wrong: float) -> None:
    power, labels, splits = profiles(20)
    power[3, 4] = wrong
    with pytest.raises(ValueError, match="expected finite power of at least 0"):
        spectrum_shortcut(power, labels, splits)


def test_lengths_must_agree() -> None:
    power, labels, splits = profiles(20)
    with pytest.raises(ValueError, match=r"found \(20, 12\), \(19,\) and \(20,\)"):
        spectrum_shortcut(power, labels[1:], splits)
