"""Paired tests against slow loops, exact counting and simulated runs that do not differ."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from sklearn.metrics import roc_auc_score

from deepfake.evaluation.differences import delong, mcnemar, paired_bootstrap
from deepfake.evaluation.metrics import MEASURES, bootstrap_intervals, scores


def two_runs(
    n: int, seed: int = 0, strengths: tuple[float, float] = (1.5, 1.0), shared: float = 0.7, decimals: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and scores of two runs whose errors go together as far as `shared`."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    common = generator.normal(size=n)
    noises = [math.sqrt(shared) * common + math.sqrt(1 - shared) * generator.normal(size=n) for _ in strengths]
    a, b = (norm.cdf(s * (labels - 0.5) + noise) for s, noise in zip(strengths, noises, strict=True))
    return labels, a.round(decimals), b.round(decimals)


def pairs_won(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for each pair: rows the fakes, columns the reals."""
    fakes, reals = p[labels == 1][:, np.newaxis], p[labels == 0]
    return (fakes > reals) + (fakes == reals) / 2


def slow_delong(labels: np.ndarray, p_a: np.ndarray, p_b: np.ndarray) -> tuple[float, float, float]:
    """As the paper has it: the kernel of every pair, structural components, both covariance matrices, a contrast."""
    aucs, by_fake, by_real = [], [], []
    for p in (p_a, p_b):
        kernel = pairs_won(labels, p)
        by_fake.append(kernel.mean(axis=1))
        by_real.append(kernel.mean(axis=0))
        aucs.append(kernel.mean())
    covariance = np.cov(by_fake) / len(by_fake[0]) + np.cov(by_real) / len(by_real[0])
    contrast = np.array([1, -1])
    return aucs[0], aucs[1], (aucs[0] - aucs[1]) / math.sqrt(contrast @ covariance @ contrast)


@pytest.mark.parametrize("decimals", [12, 1])
def test_delong_equals_the_papers_formula(decimals: int) -> None:
    labels, p_a, p_b = two_runs(80, decimals=decimals)
    found = delong(labels, p_a, p_b)
    auc_a, auc_b, z = slow_delong(labels, p_a, p_b)
    assert found[:3] == pytest.approx((auc_a, auc_b, z), abs=1e-9)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), abs=1e-9)
    assert found.auc_a == pytest.approx(roc_auc_score(labels, p_a), abs=1e-9)


def test_delong_by_hand() -> None:
    """Reals .2 .4, fakes .3 .5 for a, AUC 3/4; b is level everywhere, AUC 1/2.

    a's kernel is 1 0 / 1 1, its components 1/2 and 1 of the fakes and 1 and 1/2 of the reals, b's all 1/2: the
    variances of the differences are 1/8 and 1/8, over two each 1/8 in all, and z = (1/4) / sqrt(1/8) = 1 / sqrt 2.
    """
    found = delong(np.array([0, 0, 1, 1]), np.array([0.2, 0.4, 0.3, 0.5]), np.full(4, 0.5))
    assert found == pytest.approx((0.75, 0.5, 1 / math.sqrt(2), math.erfc(0.5)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=20))
def test_delong_is_antisymmetric_and_always_a_number(rows: list[tuple[int, int]]) -> None:
    labels = np.arange(len(rows)) % 2
    p_a, p_b = (np.array(column) / 4 for column in zip(*rows, strict=True))
    found, swapped = delong(labels, p_a, p_b), delong(labels, p_b, p_a)
    assert (swapped.auc_b, swapped.auc_a, -swapped.z) == (found.auc_a, found.auc_b, found.z)
    assert 0 <= found.p_value <= 1
    assert found.p_value == swapped.p_value
    assert (found.z == 0) == (abs(found.auc_a - found.auc_b) < 1e-12)


def test_delong_of_the_same_order_is_one() -> None:
    labels, p_a, _ = two_runs(60)
    assert delong(labels, p_a, p_a)[2:] == (0, 1)
    assert delong(labels, p_a, p_a**3)[2:] == (0, 1)


def test_delong_where_every_image_agrees() -> None:
    """Perfect against reversed: no spread at all."""
    labels = np.array([0, 0, 1, 1])
    assert delong(labels, labels * 1.0, 1.0 - labels) == (1, 0, math.inf, 0)


def test_delong_p_value_is_even_where_the_runs_do_not_differ() -> None:
    p_values = [delong(*two_runs(150, seed, (1.0, 1.0))).p_value for seed in range(300)]
    assert kstest(p_values, "uniform").pvalue > 0.001


def test_delong_needs_two_images_of_each_class() -> None:
    with pytest.raises(ValueError, match="at least 2 real and 2 fake images, found 2 and 1"):
        delong(np.array([0, 0, 1]), np.full(3, 0.5), np.full(3, 0.5))


def test_delong_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match=r"one score for each of 4 labels, found the shape \(3,\)"):
        delong(np.array([0, 0, 1, 1]), np.full(4, 0.5), np.full(3, 0.5))


def test_delong_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="expected scores that are numbers, found 4 NaN"):
        delong(np.array([0, 0, 1, 1]), np.full(4, 0.5), np.full(4, np.nan))


def test_mcnemar_by_hand() -> None:
    # Both right, a alone wrong once, b alone wrong five times: 2 (1 + 6) / 2^6.
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    said_a = np.array([0, 1, 1, 1, 0, 1, 0, 1])
    said_b = np.array([0, 1, 0, 0, 1, 0, 1, 0])
    assert mcnemar(labels, said_a, said_b) == (1, 5, pytest.approx(14 / 64))


@pytest.mark.parametrize(("n01", "n10"), [(0, 0), (0, 1), (3, 3), (2, 9), (12, 4), (30, 31)])
def test_mcnemar_counts_every_way_the_coins_may_fall(n01: int, n10: int) -> None:
    n = n01 + n10
    as_rare = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= math.comb(n, n01))
    labels = np.zeros(n + 4, dtype=int)
    said_a, said_b = labels.copy(), labels.copy()
    said_a[:n01] = 1
    said_b[n01:n] = 1
    said_a[-1] = said_b[-1] = 1  # both wrong
    assert mcnemar(labels, said_a.astype(bool), said_b) == (n01, n10, pytest.approx(as_rare / 2**n))


@pytest.mark.parametrize(
    ("said_b", "message"),
    [([0, 1], r"said_b: expected one verdict for each of 3"), ([0, 0.7, 1], "said_b: expected 0 .*found .*0.7")],
)
def test_mcnemar_refuses_what_is_no_verdict(said_b: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mcnemar(np.array([0, 1, 1]), np.array([0, 1, 1]), np.array(said_b))


def test_paired_bootstrap_equals_a_slow_loop() -> None:
    """Another generator, one resample at a time: the same interval up to chance."""
    labels, p_a, p_b = two_runs(120, decimals=2)
    generator = np.random.default_rng(7)
    reals, fakes = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    samples: dict[str, list[float]] = {"auroc": [], "accuracy": []}
    for _ in range(800):
        rows = np.concatenate([generator.choice(reals, len(reals)), generator.choice(fakes, len(fakes))])
        y, a, b = labels[rows], p_a[rows], p_b[rows]
        samples["auroc"].append(pairs_won(y, a).mean() - pairs_won(y, b).mean())
        samples["accuracy"].append(np.mean((a > 0.4) == y) - np.mean((b > 0.6) == y))
    found = paired_bootstrap(labels, p_a, p_b, list(samples), 4000, thresholds=(0.4, 0.6))
    assert found["auroc"][0] == pytest.approx(roc_auc_score(labels, p_a) - roc_auc_score(labels, p_b))
    for name, values in samples.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name][1:] == pytest.approx((low, high), abs=0.18 * (high - low)), name


def test_pairing_narrows_the_interval() -> None:
    labels, p_a, p_b = two_runs(300, shared=0.95)
    _, low, high = paired_bootstrap(labels, p_a, p_b, ["auroc"])["auroc"]
    (low_a, high_a), (low_b, high_b) = (
        bootstrap_intervals(labels, p, metrics=["auroc"])["auroc"] for p in (p_a, p_b)
    )
    assert high - low < 0.6 * math.hypot(high_a - low_a, high_b - low_b)


def test_paired_bootstrap_agrees_with_delong() -> None:
    labels, p_a, p_b = two_runs(600)
    difference, low, high = paired_bootstrap(labels, p_a, p_b, ["auroc"], 4000)["auroc"]
    tested = delong(labels, p_a, p_b)
    assert difference == pytest.approx(tested.auc_a - tested.auc_b)
    assert (high - low) / (2 * 1.96) == pytest.approx(difference / tested.z, rel=0.1)


def test_a_run_does_not_differ_from_itself() -> None:
    labels, p_a, _ = two_runs(60)
    assert paired_bootstrap(labels, p_a, p_a, MEASURES, 50) == dict.fromkeys(MEASURES, (0, 0, 0))


def test_differences_of_one_class_are_undefined_where_the_figures_are() -> None:
    found = paired_bootstrap(np.ones(5), np.linspace(0.1, 0.9, 5), np.full(5, 0.7), ["auroc", "brier"], 20)
    assert np.isnan(found["auroc"]).all()
    expected = scores(np.ones(5), np.linspace(0.1, 0.9, 5))["brier"] - 0.09
    assert found["brier"][0] == pytest.approx(expected)
    assert found["brier"][1] <= found["brier"][0] <= found["brier"][2]


def test_paired_bootstrap_depends_on_the_seed_alone() -> None:
    runs = two_runs(60)
    assert paired_bootstrap(*runs, seed=3) == paired_bootstrap(*runs, seed=3)
    assert paired_bootstrap(*runs, seed=3) != paired_bootstrap(*runs, seed=4)


def test_paired_bootstrap_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="one flat shape"):
        paired_bootstrap(np.array([0, 1]), np.array([0.1, 0.2]), np.array([0.1, 0.2, 0.3]))
