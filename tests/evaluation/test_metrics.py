"""The figures against scikit-learn, SciPy, torchmetrics and slow loops."""

import math
import subprocess
import sys
import tracemalloc
import warnings
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from deepfake.evaluation.metrics import (
    MEASURES,
    bootstrap_intervals,
    checked_labels,
    epoch_scores,
    resampled_scores,
    scores,
    wilson_interval,
)

OF_TWO_CLASSES = ("balanced_accuracy", "auroc", "ap", "eer", "tpr_at_fpr1", "tpr_at_fpr5")


def drawn(
    n: int, seed: int = 0, separation: float = 1.0, decimals: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlapping scores; `decimals` rounds the scores, which makes ties."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    normal = generator.normal(separation * (labels - 0.5), 1)
    probabilities = np.array([NormalDist().cdf(x) for x in normal])
    return labels, probabilities if decimals is None else probabilities.round(decimals)


def by_sklearn(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    said = (probabilities > threshold).astype(int)
    tn, fp, fn, tp = reference.confusion_matrix(labels, said, labels=[0, 1]).ravel()
    expected = {
        "n": len(labels),
        "prevalence": np.mean(labels),
        "majority": max(np.mean(labels), 1 - np.mean(labels)),
        "accuracy": reference.accuracy_score(labels, said),
        "precision": reference.precision_score(labels, said, zero_division=0),
        "recall": reference.recall_score(labels, said, zero_division=0),
        "f1": reference.f1_score(labels, said, zero_division=0),
        "nll": reference.log_loss(labels, np.clip(probabilities, 1e-7, 1 - 1e-7), labels=[0, 1]),
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
        "brier": np.mean((probabilities - labels) ** 2),
        "ece": plain_ece(labels, probabilities),
        "adaptive_ece": plain_adaptive_ece(labels, probabilities),
        **dict.fromkeys(OF_TWO_CLASSES, np.nan),
    }
    if len(set(np.asarray(labels).tolist())) == 2:
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(labels, said)
        expected["auroc"] = reference.roc_auc_score(labels, probabilities)
        expected["ap"] = reference.average_precision_score(labels, probabilities)
        fpr, tpr, _ = reference.roc_curve(labels, probabilities, drop_intermediate=False)
        expected["eer"] = plain_eer(labels, probabilities)
        expected["tpr_at_fpr1"] = max(t for f, t in zip(fpr, tpr, strict=True) if f <= 0.01)
        expected["tpr_at_fpr5"] = max(t for f, t in zip(fpr, tpr, strict=True) if f <= 0.05)
    return expected


def plain_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Bin by bin, as it is defined."""
    total = 0.0
    for k in range(15):
        inside = (probabilities >= k / 15) & ((probabilities < (k + 1) / 15) | (k == 14))
        if inside.any():
            total += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    return total


def plain_adaptive_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Every image cut into 15 pieces, so that N pieces make a bin; pieces of equal p have the mean label."""
    order = np.argsort(probabilities)
    p, y = probabilities[order], labels[order].astype(float)
    for value in np.unique(p):
        y[p == value] = y[p == value].mean()
    pieces_p, pieces_y = np.repeat(p, 15).reshape(15, -1), np.repeat(y, 15).reshape(15, -1)
    return float(np.abs(pieces_p.mean(axis=1) - pieces_y.mean(axis=1)).mean())


def plain_eer(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Along the ROC curve from (0, 0), in exact fractions, to where FPR + TPR = 1."""
    reals, fakes = probabilities[labels == 0], probabilities[labels == 1]
    before = Fraction(0), Fraction(0)
    for cut in sorted(set(probabilities.tolist()), reverse=True):
        after = Fraction(int((reals >= cut).sum()), len(reals)), Fraction(int((fakes >= cut).sum()), len(fakes))
        if sum(after) >= 1:
            way = (1 - sum(before)) / (sum(after) - sum(before))
            return float(before[0] + way * (after[0] - before[0]))
        before = after
    raise AssertionError("the curve ends in (1, 1)")


# A coarse grid makes ties, 0, 1 and the threshold itself common; the fine one makes ties rare.
probability = st.one_of(st.integers(0, 8).map(lambda k: k / 8), st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), probability), min_size=1, max_size=40),
    st.one_of(st.just(0.5), probability),
)
def test_scores_equal_scikit_learn(rows: list[tuple[int, float]], threshold: float) -> None:
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([p for _, p in rows])
    found = scores(labels, probabilities, threshold)
    expected = by_sklearn(labels, probabilities, threshold)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
        assert isinstance(found[name], float)


def test_scores_by_hand() -> None:
    # Fakes .9 .5 .5, reals .5 .2: wins 1+1 + (1/2+1) + (1/2+1) = 5 of 6; AP = 1/3 x 1 + 2/3 x 3/4.
    found = scores(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.5, 0.5, 0.5, 0.2]))
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["ap"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
    # .5 is not above .5: two fakes are missed and the real one is let through.
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (2, 0, 2, 1)
    assert found["majority"] == pytest.approx(0.6)
    assert found["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_eer_equals_scipys_root(decimals: int | None) -> None:
    labels, probabilities = drawn(301, decimals=decimals)
    fpr, tpr, _ = reference.roc_curve(labels, probabilities)
    expected = brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1)
    assert scores(labels, probabilities)["eer"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("strategy", "name"), [("uniform", "ece"), ("quantile", "adaptive_ece")])
def test_calibration_errors_equal_scikit_learns_bins(strategy: Any, name: str) -> None:
    """Scores that fill each bin and no edge, and for the quantiles 600 of them, 40 a bin."""
    labels, probabilities = drawn(600)
    share, mean = calibration_curve(labels, probabilities, n_bins=15, strategy=strategy)
    expected = np.abs(share - mean).mean()
    if strategy == "uniform":
        weights = np.histogram(probabilities, np.linspace(0, 1, 16))[0] / 600
        expected = (weights * np.abs(share - mean)).sum()
    assert scores(labels, probabilities)[name] == pytest.approx(expected, abs=1e-6)


def test_eer_by_hand() -> None:
    # Perfect, reversed, all level; then FPR 0, 0, 1/2, 1 and TPR 0, 1/3, 2/3, 1: from (0, 1/3) to (1/2, 2/3) the
    # sum rises from 1/3 to 7/6 and is 1 after 4/5 of the way.
    assert scores(np.array([0, 1]), np.array([0.1, 0.9]))["eer"] == 0
    assert scores(np.array([0, 1]), np.array([0.9, 0.1]))["eer"] == 1
    assert scores(np.array([0, 1, 1]), np.array([0.3, 0.3, 0.3]))["eer"] == 0.5
    found = scores(np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.5, 0.5, 0.2, 0.2]))
    assert found["eer"] == pytest.approx(2 / 5)


def test_tpr_at_fpr_by_hand() -> None:
    """Of 100 reals the k-th highest scores 1 - k/200; fakes between them, and one level with the second real."""
    reals = 1 - np.arange(1, 101) / 200
    fakes = np.array([0.999, 0.993, 0.99, 0.983, 0.978, 0.973, 0.968])
    labels = np.array([0] * 100 + [1] * 7)
    found = scores(labels, np.concatenate([reals, fakes]))
    # Above the first real 1 fake, above the second 2; the third comes only with the second real, FPR 2 %.
    assert found["tpr_at_fpr1"] == pytest.approx(2 / 7)
    # Five reals are exactly 5 %: all fakes above the sixth, .97.
    assert found["tpr_at_fpr5"] == pytest.approx(6 / 7)
    # Of 99 reals one is more than 1 %.
    assert scores(labels[1:], np.concatenate([reals[1:], fakes]))["tpr_at_fpr1"] == pytest.approx(2 / 7)
    assert scores(np.array([0, 1]), np.array([1.0, 1.0]))["tpr_at_fpr5"] == 0


@pytest.mark.parametrize("k", range(16))
def test_ece_bins_begin_at_their_edge_and_the_last_is_closed(k: int) -> None:
    """An image on an edge, k / 15, is judged with the images above it; 1 with those below."""
    neighbour = min(k / 15 + 0.03, 1 - 0.03)
    found = scores(np.array([0, 1]), np.array([k / 15, neighbour]))
    assert found["ece"] == pytest.approx(abs(k / 15 + neighbour - 1) / 2)


def test_calibration_errors_by_hand() -> None:
    # 30 images in two bins: ten at .2, a fifth of them fake, and 20 at .9, half of them fake.
    labels = np.array([1] * 2 + [0] * 8 + [1] * 10 + [0] * 10)
    probabilities = np.array([0.2] * 10 + [0.9] * 20)
    found = scores(labels, probabilities)
    assert found["ece"] == pytest.approx(20 / 30 * 0.4)
    # Two images a bin: equal scores share their labels evenly, in whatever order they come.
    assert found["adaptive_ece"] == pytest.approx(20 / 30 * 0.4)
    assert found["brier"] == pytest.approx((2 * 0.64 + 8 * 0.04 + 10 * 0.01 + 10 * 0.81) / 30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), probability), min_size=1, max_size=40), st.randoms())
def test_no_figure_depends_on_the_order_of_the_images(rows: list[tuple[int, float]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    found, again = (scores(*(np.array(column) for column in zip(*each, strict=True))) for each in (rows, shuffled))
    assert found == pytest.approx(again, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40))
def test_ranking_figures_depend_on_the_order_of_the_scores_alone(rows: list[tuple[int, int]]) -> None:
    labels, ranks = (np.array(column) for column in zip(*rows, strict=True))
    found, bent = scores(labels, ranks / 8), scores(labels, (ranks / 8) ** 3)
    for name in ("auroc", "ap", "eer", "tpr_at_fpr1", "tpr_at_fpr5"):
        assert found[name] == pytest.approx(bent[name], abs=1e-12, nan_ok=True), name
    if np.isfinite(found["eer"]):
        # Both classes mirrored: the curve mirrored at its falling diagonal.
        assert scores(1 - labels, 1 - ranks / 8)["eer"] == pytest.approx(found["eer"], abs=1e-12)
        assert 0 <= found["tpr_at_fpr1"] <= found["tpr_at_fpr5"] <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), probability), min_size=1, max_size=40))
def test_calibration_errors_are_between_the_mean_bias_and_the_mean_error(rows: list[tuple[int, float]]) -> None:
    """Binning takes away some of the errors that cancel, never more than one bin would."""
    labels, probabilities = (np.array(column) for column in zip(*rows, strict=True))
    bias, error = abs(np.mean(probabilities - labels)), np.mean(abs(probabilities - labels))
    found = scores(labels, probabilities)
    for name in ("ece", "adaptive_ece"):
        assert bias - 1e-12 <= found[name] <= error + 1e-12


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined_not_a_number(label: int) -> None:
    labels, probabilities = np.full(5, label), np.linspace(0.1, 0.9, 5)
    found = scores(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, metrics=MEASURES, resamples=20)
    for name in MEASURES:
        assert np.isnan(found[name]) == (name in OF_TWO_CLASSES), name
        assert np.isnan(intervals[name]).all() == (name in OF_TWO_CLASSES), name
    assert found["majority"] == 1


def test_no_image_called_fake_gives_precision_zero() -> None:
    found = scores(np.array([0, 1]), np.array([0.1, 0.2]))
    assert found["precision"] == found["recall"] == found["f1"] == 0


def test_certain_and_wrong_stays_finite() -> None:
    assert scores(np.array([1, 0]), np.array([0.0, 1.0]))["nll"] == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, np.float32])
def test_label_types(dtype: Any) -> None:
    labels, probabilities = drawn(30)
    assert scores(labels.astype(dtype), probabilities) == scores(labels, probabilities)


@pytest.mark.parametrize("decimals", [None, 1])
def test_torchmetrics_agrees(decimals: int | None) -> None:
    labels, probabilities = drawn(203, decimals=decimals)
    probabilities = probabilities.astype(np.float32)
    found = scores(labels, probabilities)
    computed = epoch_scores(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert {*computed} == {"accuracy", "precision", "recall", "f1", "auroc", "ap", "tn", "fp", "fn", "tp"}
    for name, value in computed.items():
        assert value == pytest.approx(found[name], abs=1e-6), name


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.1, np.nan], "found nan"),
        ([0, 1], [0.1, np.inf], "found inf"),
        ([0, 1], [0.1, 1.5], r"\[0, 1\], found 1.5"),
        ([0, 1], [-0.1, 0.5], "found -0.1"),
        ([0, 1, 1], [0.1, 0.5], "flat shape"),
        ([[0, 1]], [[0.1, 0.5]], "flat shape"),
        ([0, 2], [0.1, 0.5], "labels: .*2"),
        ([0, np.nan], [0.1, 0.5], "labels: .*nan"),
        ([-1, 1], [0.1, 0.5], "labels: .*-1"),
        ([], [], "at least one image"),
    ],
)
def test_bad_input_is_refused(labels: list, probabilities: list, message: str) -> None:
    for function in (scores, bootstrap_intervals):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels), np.array(probabilities))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.2}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"metrics": ["auc"]}, "found auc"),
        ({"resamples": 0}, "resamples"),
        ({"level": 1.0}, "level"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(np.array([0, 1]), np.array([0.1, 0.9]), **arguments)


def test_bootstrap_equals_a_slow_loop() -> None:
    """Another generator, another order of work, scikit-learn's metrics: the same intervals up to chance."""
    labels, probabilities = drawn(90, decimals=2)  # some ties
    labels[:20] = 0  # unequal classes
    generator = np.random.default_rng(99)
    reals, fakes = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    samples: dict[str, list[float]] = {name: [] for name in ("accuracy", "f1", "auroc", "ap")}
    for _ in range(700):
        rows = np.concatenate([generator.choice(reals, len(reals)), generator.choice(fakes, len(fakes))])
        y, p = labels[rows], probabilities[rows]
        samples["accuracy"].append(float(np.mean((p > 0.4) == y)))
        samples["f1"].append(2 * np.sum((p > 0.4) & (y == 1)) / (np.sum(p > 0.4) + np.sum(y)))
        samples["auroc"].append(reference.roc_auc_score(y, p))
        samples["ap"].append(reference.average_precision_score(y, p))
    found = bootstrap_intervals(labels, probabilities, 0.4, metrics=list(samples), resamples=4000)
    for name, values in samples.items():
        low, high = np.quantile(values, [0.025, 0.975])
        width = high - low
        assert found[name] == pytest.approx((low, high), abs=0.18 * width), name


def test_each_resample_is_measured_as_a_data_set_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very images of every resample, listed and measured one data set at a time, ties and all."""
    labels, probabilities = drawn(37, decimals=1)
    drawn_images: list[np.ndarray] = []
    original = np.random.default_rng

    class Watched:
        def __init__(self, seed: int) -> None:
            self.generator = original(seed)

        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            drawn_images.append(self.generator.integers(high, size=size))
            return drawn_images[-1]

    monkeypatch.setattr(np.random, "default_rng", Watched)
    (found,) = resampled_scores(labels, [(probabilities, 0.4)], MEASURES, resamples=25)
    reals, fakes = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    assert [table.shape for table in drawn_images] == [(25, len(reals)), (25, len(fakes))]
    for k in range(25):
        images = np.concatenate([reals[drawn_images[0][k]], fakes[drawn_images[1][k]]])
        expected = by_sklearn(labels[images], probabilities[images], 0.4)
        for name in MEASURES:
            assert found[name][k] == pytest.approx(expected[name], abs=1e-6), name


def test_predictions_are_resampled_together() -> None:
    labels, probabilities = drawn(50)
    same, halved = resampled_scores(labels, [(probabilities, 0.5), (probabilities / 2, 0.25)], ("auroc", "f1"))
    assert same["auroc"].std() > 0
    for name in ("auroc", "f1"):
        np.testing.assert_array_equal(same[name], halved[name])


def test_no_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions: expected at least one"):
        resampled_scores(np.array([0, 1]), [], ("auroc",))


def test_labels_alone_are_checked() -> None:
    with pytest.raises(ValueError, match=r"labels: expected a flat shape \(N,\), found \(1, 2\)"):
        checked_labels(np.array([[0, 1]]))


def test_bootstrap_keeps_class_sizes() -> None:
    """With no error and no tie inside a class, only a change of the class sizes could move these."""
    labels = np.array([0] * 5 + [1] * 20)
    right = labels * 1.0
    assert bootstrap_intervals(labels, right, metrics=["accuracy", "auroc"]) == {
        "accuracy": (1, 1),
        "auroc": (1, 1),
    }
    # Everything called fake: accuracy is the share of fakes, 20 of 25, in every single resample.
    all_fake = bootstrap_intervals(labels, np.full(25, 0.9), metrics=["accuracy", "precision"])
    assert all_fake["accuracy"] == pytest.approx((0.8, 0.8))
    assert all_fake["precision"] == pytest.approx((0.8, 0.8))


def test_bootstrap_depends_on_the_seed_alone() -> None:
    labels, probabilities = drawn(60)
    first = bootstrap_intervals(labels, probabilities, seed=3)
    assert first == bootstrap_intervals(labels, probabilities, seed=3)
    assert first != bootstrap_intervals(labels, probabilities, seed=4)
    assert set(first) == {"accuracy", "precision", "recall", "f1", "auroc", "ap"}


def test_bootstrap_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large data are measured a few resamples at a time; the interval may change only by chance."""
    labels, probabilities = drawn(100)
    whole = bootstrap_intervals(labels, probabilities, resamples=3000)["auroc"]
    monkeypatch.setattr("deepfake.evaluation.metrics.BLOCK", 700)
    blocks = bootstrap_intervals(labels, probabilities, resamples=3000)["auroc"]
    assert blocks == pytest.approx(whole, abs=0.01)


def test_a_wider_level_gives_a_wider_interval() -> None:
    labels, probabilities = drawn(100)
    narrow = bootstrap_intervals(labels, probabilities, metrics=["auroc"], level=0.5)["auroc"]
    wide = bootstrap_intervals(labels, probabilities, metrics=["auroc"], level=0.99)["auroc"]
    assert wide[0] < narrow[0] < scores(labels, probabilities)["auroc"] < narrow[1] < wide[1]


def test_interval_covers_the_truth() -> None:
    """Two normal distributions one deviation apart: AUROC is Phi(1 / sqrt 2) in the population."""
    truth = NormalDist().cdf(1 / math.sqrt(2))
    inside = 0
    for seed in range(200):
        labels, probabilities = drawn(200, seed=seed)
        low, high = bootstrap_intervals(labels, probabilities, metrics=["auroc"], resamples=200)["auroc"]
        inside += low <= truth <= high
    # Found: 188. A correct interval leaves these bounds with odds of 1 to 4,000, one that covers 85 % with
    # odds of 15 to 1, one that covers 99.9 % with odds of 4 to 1.
    assert 178 <= inside <= 199


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole table of (resamples, images) takes 13 and 10 MB here, against blocks of 0.16 MB."""
    monkeypatch.setattr("deepfake.evaluation.metrics.BLOCK", 20_000)
    peaks = []
    for n in (400, 20_000):
        labels, probabilities = drawn(n)
        tracemalloc.start()
        bootstrap_intervals(labels, probabilities, metrics=MEASURES, resamples=4_000 if n < 1000 else 60)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 20_000 * 8 * 20
    assert peaks[1] < 20_000 * 8 * 40


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_intervals(np.array([0, 0]), np.array([0.0, 1.0]), metrics=MEASURES, resamples=5)
        scores(np.array([1]), np.array([0.0]))


def test_numpy_part_needs_no_torch() -> None:
    code = "import sys, deepfake.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SATURATED = (np.array([0, 1, 0, 1, 1, 0]), np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]))
THEIR_MARGINS = np.array([40.0, 50.0, 45.0, 60.0, -800.0, -900.0])


def test_margins_order_images_whose_probabilities_have_saturated() -> None:
    labels, p = SATURATED
    by_margin = scores(labels, p, margins=THEIR_MARGINS)
    assert by_margin["auroc"] == pytest.approx(reference.roc_auc_score(labels, THEIR_MARGINS))
    assert by_margin["ap"] == pytest.approx(reference.average_precision_score(labels, THEIR_MARGINS))
    assert scores(labels, p)["auroc"] == pytest.approx(reference.roc_auc_score(labels, p)) != by_margin["auroc"]


def test_margins_change_no_figure_of_the_probabilities() -> None:
    labels, p = SATURATED
    without, by_margin = scores(labels, p), scores(labels, p, margins=THEIR_MARGINS)
    for name in ("accuracy", "balanced_accuracy", "f1", "nll", "brier", "ece", "adaptive_ece", "tp"):
        assert by_margin[name] == pytest.approx(without[name], rel=1e-12), name


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), probability), min_size=1, max_size=40))
def test_margins_of_the_same_order_change_nothing(rows: list[tuple[int, float]]) -> None:
    labels, p = (np.array(column) for column in zip(*rows, strict=True))
    found = scores(labels, p, margins=7 * p - 3)
    assert found == pytest.approx(scores(labels, p), nan_ok=True)


def test_the_bootstrap_orders_by_margins() -> None:
    labels, p = (np.tile(column, 20) for column in SATURATED)
    margins = np.tile(THEIR_MARGINS, 20)
    found = bootstrap_intervals(labels, p, metrics=("auroc", "adaptive_ece"), margins=margins)
    ranked = (np.argsort(np.argsort(THEIR_MARGINS)) / 5)[np.arange(120) % 6]
    assert found["auroc"] == bootstrap_intervals(labels, ranked, metrics=("auroc",))["auroc"]
    assert found["adaptive_ece"] == bootstrap_intervals(labels, p, metrics=("adaptive_ece",))["adaptive_ece"]


@pytest.mark.parametrize(
    ("margins", "message"), [([0.0, np.nan], "margins: expected numbers"), ([0.0], "margins: expected one for each")]
)
def test_bad_margins_are_refused(margins: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(np.array([0, 1]), np.array([0.2, 0.8]), margins=np.array(margins))


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (3, 10), (7, 7), (480, 500)])
def test_wilson_interval(part: int, whole: int) -> None:
    expected = binomtest(part, whole).proportion_ci(method="wilson")
    assert wilson_interval(part, whole) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_wilson_interval_of_nothing() -> None:
    assert np.isnan(wilson_interval(0, 0)).all()
