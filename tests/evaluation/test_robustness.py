"""Tables of robustness, against scikit-learn and counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

from deepfake.evaluation.robustness import BIASED, COLUMNS, one_sided_flips, robustness_table, summary


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1], (60, 40))
    clean = np.clip(random.normal(0.35 + 0.3 * labels, 0.2), 0, 1)
    return labels, clean, np.clip(clean + random.normal(-0.1, 0.15, 100), 0, 1)


def test_figures_equal_scikit_learns(judged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, clean, p = judged
    table = robustness_table(labels, clean, {("jpeg", 30): p}, 0.4, resamples=50)
    assert tuple(table.columns) == COLUMNS
    for row, probabilities in zip(table.to_dict("records"), (clean, p), strict=True):
        (tn, fp), (fn, tp) = confusion_matrix(labels, probabilities > 0.4)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, probabilities))
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, probabilities > 0.4))
        assert (row["tpr"], row["fpr"]) == pytest.approx((tp / (tp + fn), fp / (fp + tn)))
        assert (row["images"], row["prevalence"], row["majority"]) == (100, 0.4, 0.6)
        for name in ("auroc", "accuracy", "tpr", "fpr"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    changed = table.iloc[1]
    for name in ("auroc", "accuracy", "tpr", "fpr"):
        assert changed[f"{name}_change"] == pytest.approx(table[name].iloc[1] - table[name].iloc[0])


@given(st.lists(st.floats(0, 1), min_size=4, max_size=30), st.floats(0, 1))
def test_answers_that_stay_change_nothing(p: list[float], threshold: float) -> None:
    labels = np.arange(len(p)) % 2
    row = robustness_table(labels, np.array(p), {("flip", 1): np.array(p)}, threshold, resamples=5).iloc[1]
    changes = row[[name for name in COLUMNS if "_change" in name]]
    assert (changes.astype(float) == 0).all()
    assert one_sided_flips(labels, np.array(p), np.array(p), threshold)["both"]["flips"] == 0


def test_a_change_is_never_one_of_the_images() -> None:
    labels, clean = np.array([0, 0, 1, 1]), np.array([0.9, 0.1, 0.8, 0.7])
    lost_the_mistake = np.array([np.nan, 0.1, 0.8, 0.7])
    row = robustness_table(labels, clean, {("crop", 0.8): lost_the_mistake}, 0.5, resamples=5).iloc[1]
    assert (row["images"], row["lost"]) == (3, 1)
    assert (row["accuracy"], row["accuracy_change"], row["fpr_change"], row["auroc_change"]) == (1, 0, 0, 0)


def test_an_image_not_judged_clean_is_in_no_row() -> None:
    table = robustness_table(
        np.array([0, 1, 1]), np.array([0.1, np.nan, 0.9]), {("flip", 1): np.array([0.2, 0.8, 0.7])}, 0.5, resamples=5
    )
    assert table["images"].tolist() == [2, 2]
    assert table["lost"].tolist() == [0, 0]


def test_what_one_class_leaves_undefined_is_nan() -> None:
    table = robustness_table(np.zeros(3), np.full(3, 0.2), {("flip", 1): np.full(3, 0.6)}, 0.5, resamples=5)
    row = table.iloc[1]
    assert np.isnan([row["auroc"], row["tpr"], row["auroc_change"], row["tpr_change"], row["tpr_change_low"]]).all()
    assert (row["fpr"], row["fpr_change"], row["fpr_change_low"]) == (1, 1, 1)
    assert summary(table)["lowest_auroc"] is None


def test_the_interval_of_a_change_is_of_the_paired_difference(
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, clean, _ = judged
    fakes_lower = np.where(labels == 1, clean * 0.999, clean)  # hardly another order: far less than either varies
    row = robustness_table(labels, clean, {("jpeg", 90): fakes_lower}, 0.5).iloc[1]
    assert row["auroc_change_high"] - row["auroc_change_low"] < (row["auroc_high"] - row["auroc_low"]) / 10


def test_the_intervals_of_changed_rates_equal_a_paired_bootstrap_by_hand(
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, clean, p = judged
    row = robustness_table(labels, clean, {("jpeg", 30): p}, 0.4, resamples=4000).iloc[1]
    random = np.random.default_rng(17)
    for name, label in (("tpr", 1), ("fpr", 0)):
        before, after = clean[labels == label] > 0.4, p[labels == label] > 0.4
        drawn = random.integers(len(before), size=(4000, len(before)))
        low, high = np.quantile(after[drawn].mean(axis=1) - before[drawn].mean(axis=1), (0.025, 0.975))
        step = 1 / len(before)  # a share of so many images has no finer one
        assert (row[f"{name}_change_low"], row[f"{name}_change_high"]) == pytest.approx((low, high), abs=1.01 * step)
        assert low < row[f"{name}_change"] < high
        unpaired = after[drawn].mean(axis=1) - before[drawn[::-1]].mean(axis=1)
        assert np.ptp(np.quantile(unpaired, (0.025, 0.975))) > high - low + 2 * step


def test_margins_order_what_probabilities_no_longer_tell_apart(
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, clean, p = (values.copy() for values in judged)
    p[:3] = np.nan
    margins = {None: 50 + clean, ("jpeg", 30): 50 + p}
    certain = np.where(np.isnan(p), np.nan, 1.0)
    table = robustness_table(labels, np.ones(100), {("jpeg", 30): certain}, 0.5, resamples=200, margins=margins)
    assert table["auroc"].iloc[0] == pytest.approx(roc_auc_score(labels, clean))
    changed = table.iloc[1]
    assert changed["auroc"] == pytest.approx(roc_auc_score(labels[3:], p[3:]))
    assert changed["auroc_change"] == pytest.approx(changed["auroc"] - roc_auc_score(labels[3:], clean[3:]))
    assert 0.5 < changed["auroc_low"] < changed["auroc"] < changed["auroc_high"]


def test_the_mean_counts_every_perturbation_once_and_never_the_clean_row(
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, clean, p = judged
    table = robustness_table(labels, clean, {("jpeg", 30): p, ("blur", 2): 1 - clean}, 0.5, resamples=5)
    found = summary(table)
    expected = (roc_auc_score(labels, p) + roc_auc_score(labels, 1 - clean)) / 2
    assert found["mean"]["auroc"] == pytest.approx(expected)
    assert found["mean_change"]["auroc"] == pytest.approx(expected - roc_auc_score(labels, clean))
    assert found["clean"]["auroc"] == pytest.approx(roc_auc_score(labels, clean))
    assert (found["perturbations"], found["lowest_auroc"]["kind"]) == (2, "blur")


def test_flips_are_shares_of_the_images_that_were_perturbed() -> None:
    labels = np.repeat([0, 1], (10, 30))
    clean, after = np.full(40, 0.2), np.full(40, 0.2)
    after[:2] = 0.9  # two reals of ten are called fake now
    clean[-3:], after[-3:] = 0.9, 0.2  # three fakes of thirty are called real now
    found = one_sided_flips(labels, clean, after, 0.5)
    counted = ("images", "flips", "to_fake", "to_real", "share")
    for name, expected in (
        ("reals only", (10, 2, 2, 0, 0.2)),
        ("fakes only", (30, 3, 0, 3, 0.1)),
        ("both", (40, 5, 2, 3, 0.125)),
    ):
        assert tuple(found[name][key] for key in counted) == expected
        images, flips, *_, share = expected
        z = norm.ppf(0.975)  # the shares that lie 1.96 standard errors, their own, from what was found
        roots = np.roots([1 + z**2 / images, -(2 * flips / images + z**2 / images), share**2])
        assert (found[name]["share_low"], found[name]["share_high"]) == pytest.approx((min(roots), max(roots)))
    assert found["difference"] == pytest.approx(0.075)
    assert found["biased"]
    assert not found["certain"]  # of forty images


def test_the_interval_of_the_difference_equals_a_bootstrap_over_images() -> None:
    random = np.random.default_rng(5)
    labels = np.repeat([0, 1], (200, 300))
    clean = np.full(500, 0.2)
    flips = random.random(500) < np.where(labels == 1, 0.25, 0.1)
    found = one_sided_flips(labels, clean, np.where(flips, 0.9, clean), 0.5, resamples=4000)
    reals, fakes = flips[labels == 0], flips[labels == 1]
    sample = []
    for _ in range(4000):
        of_reals, of_fakes = random.choice(reals, 200), random.choice(fakes, 300)
        both = np.concatenate([of_reals, of_fakes]).mean()
        sample.append(max(abs(of_reals.mean() - both), abs(of_fakes.mean() - both)))
    low, high = np.quantile(sample, (0.025, 0.975))
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((low, high), abs=0.006)
    assert low < found["difference"] < high
    again = one_sided_flips(labels, clean, np.where(flips, 0.9, clean), 0.5, resamples=4000)
    assert again == found


@pytest.mark.parametrize(
    ("images", "reals_flip", "fakes_flip", "biased", "certain"),
    [
        (1000, 100, 300, True, True),  # 10 points of either side from both
        (1000, 100, 220, True, False),  # 6 points, give or take 1.6
        (1000, 100, 180, False, False),
        (1000, 100, 110, False, True),
        (40, 2, 38, True, True),
        (72, 0, 0, False, False),  # no flip of so few is compatible with more than one in twenty
        (74, 0, 0, False, True),
    ],
)
def test_what_is_certain_is_told_from_what_is_not(
    images: int, reals_flip: int, fakes_flip: int, biased: bool, certain: bool
) -> None:
    labels, clean = np.repeat([0, 1], images), np.full(2 * images, 0.2)
    after = clean.copy()
    after[:reals_flip] = after[images : images + fakes_flip] = 0.9
    found = one_sided_flips(labels, clean, after, 0.5)
    assert (found["biased"], found["certain"]) == (biased, certain)
    if images == 1000:
        assert certain != (found["difference_low"] <= BIASED <= found["difference_high"])


def test_one_class_alone_tells_nothing_of_bias() -> None:
    found = one_sided_flips(np.ones(20), np.full(20, 0.2), np.full(20, 0.9), 0.5)
    assert np.isnan([found["difference"], found["difference_low"], found["reals only"]["share_low"]]).all()
    assert (found["both"]["share"], found["biased"], found["certain"]) == (1, False, False)


def test_frailty_that_both_classes_share_is_no_bias() -> None:
    labels, clean = np.repeat([0, 1], 10), np.full(20, 0.2)
    found = one_sided_flips(labels, clean, np.tile([0.9, 0.2], 10), 0.5)
    assert found["both"]["share"] == 0.5
    assert not found["biased"]


@pytest.mark.parametrize(
    ("clean", "perturbed", "message"),
    [
        ([0.1], [0.1, 0.2], r"clean: expected one probability for each of 2 labels, found the shape \(1,\)"),
        ([0.1, 0.2], [0.1], r"flip 1: expected one probability for each of 2 labels, found the shape \(1,\)"),
        ([0.1, 1.2], [0.1, 0.2], r"probabilities: expected numbers in \[0, 1\], found 1.2"),
        ([0.1, np.nan], [np.nan, 0.2], "flip 1: expected at least one image judged clean and perturbed, found none"),
    ],
)
def test_what_cannot_be_measured_is_refused(clean: list[float], perturbed: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness_table(np.array([0, 1]), np.array(clean), {("flip", 1): np.array(perturbed)}, 0.5, resamples=2)
