"""Is one run better than another on the same images, or is it chance?

Every test here is paired: both runs judged the same images, which takes out how hard these images happen to be. None
of them tells how much another training seed would have changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

from deepfake.evaluation.metrics import INTERVALS, checked_labels, resampled_scores, scores


class DeLong(NamedTuple):
    auc_a: float
    auc_b: float
    z: float  # positive where a has the larger area
    p_value: float  # two-sided


class McNemar(NamedTuple):
    n01: int  # images that a got wrong and b right
    n10: int  # images that a got right and b wrong
    p_value: float  # two-sided


def paired_bootstrap(
    labels: NDArray,
    p_a: NDArray,
    p_b: NDArray,
    metrics: Sequence[str] = INTERVALS,
    resamples: int = 1000,
    seed: int = 0,
    thresholds: tuple[float, float] = (0.5, 0.5),
    margins: tuple[NDArray | None, NDArray | None] = (None, None),
) -> dict[str, tuple[float, float, float]]:
    """Figures of a minus figures of b, with 95 % percentile intervals of the stratified, paired bootstrap.

    As `bootstrap_intervals`, but every resample of the images is given to both runs, and the interval is that of the
    difference (Efron and Tibshirani, 1993, chapter 13).

    Args:
        labels: shape (N,), 0 (real) or 1 (fake).
        p_a, p_b: shape (N,), each run's P(fake) in [0, 1] of the same images.
        metrics: names out of `metrics.MEASURES`.
        resamples: how many, at least 1.
        seed: the same seed gives the same intervals.
        thresholds: of a and of b; an image is called fake above it.
        margins: of a and of b, as in `scores`.

    Returns:
        (difference, low, high) for each of `metrics`; NaN where the figure itself is undefined.

    Raises:
        ValueError: as `bootstrap_intervals`.
    """
    runs = list(zip((p_a, p_b), thresholds, margins, strict=True))
    samples_a, samples_b = resampled_scores(labels, runs, metrics, resamples, seed)
    whole_a, whole_b = (scores(labels, *run) for run in runs)
    found = {}
    for name in metrics:
        low, high = np.quantile(samples_a[name] - samples_b[name], [0.025, 0.975])
        found[name] = (whole_a[name] - whole_b[name], float(low), float(high))
    return found


def delong(labels: NDArray, scores_a: NDArray, scores_b: NDArray) -> DeLong:
    """The two areas under the ROC curve, and whether they differ (DeLong, DeLong and Clarke-Pearson, 1988).

    By mid-ranks (Sun and Xu, 2014), so that ties count half and the time is that of sorting. The variance is that of
    the difference between the runs, image by image, which equals the paper's contrast of the covariance matrix.
    z is 0 where the areas are equal; it is infinite where they differ and every image agrees by how much. The test
    leans on the normal distribution: below some 30 images of a class, or near an area of 1, take `paired_bootstrap`.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), at least two of each.
        scores_a, scores_b: shape (N,), each run's of the same images, higher for fakes: margins or probabilities.

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label is not 0 or 1; a class has fewer
            than two images; a score is NaN.
    """
    fake = checked_labels(labels)
    reals, fakes = int((~fake).sum()), int(fake.sum())
    if min(reals, fakes) < 2:
        raise ValueError(f"labels: expected at least 2 real and 2 fake images, found {reals} and {fakes}")
    (real_a, fake_a), (real_b, fake_b) = (_placements(fake, _one_each(fake, each)) for each in (scores_a, scores_b))
    auc_a, auc_b = fake_a.mean() / reals, fake_b.mean() / reals
    by_fake, by_real = (fake_a - fake_b) / reals, (real_a - real_b) / fakes
    variance = by_fake.var(ddof=1) / fakes + by_real.var(ddof=1) / reals
    # The sum of whole and half numbers: exactly 0 where the areas are equal.
    difference = (fake_a - fake_b).sum() / (reals * fakes)
    if difference == 0:
        z = 0.0
    elif variance == 0:
        z = math.copysign(math.inf, difference)
    else:
        z = difference / math.sqrt(variance)
    return DeLong(float(auc_a), float(auc_b), float(z), math.erfc(abs(z) / math.sqrt(2)))


def mcnemar(labels: NDArray, said_a: NDArray, said_b: NDArray) -> McNemar:
    """Whether two runs are right equally often: McNemar's test (1947), exact.

    Only the images that one run gets right and the other wrong matter: if the runs are equally good, each of these
    is a fair coin.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake).
        said_a, said_b: shape (N,), each run's verdict on the same images, 0 (real) or 1 (fake).

    Returns:
        the two counts and the two-sided binomial p-value, 1 where the runs never differ.

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label or a verdict is not 0 or 1.
    """
    fake = checked_labels(labels)
    right_a, right_b = (
        _verdicts(name, said, fake) == fake for name, said in (("said_a", said_a), ("said_b", said_b))
    )
    n01, n10 = int((~right_a & right_b).sum()), int((right_a & ~right_b).sum())
    p_value = float(binomtest(n01, n01 + n10).pvalue) if n01 + n10 else 1.0
    return McNemar(n01, n10, p_value)


def _placements(fake: NDArray[np.bool_], score: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many fakes each real lies below, and how many reals each fake lies above, ties counting half; exact."""
    ranks = rankdata(score)
    above_fakes = ranks[~fake] - rankdata(score[~fake])
    return fake.sum() - above_fakes, ranks[fake] - rankdata(score[fake])


def _one_each(fake: NDArray[np.bool_], score: NDArray) -> NDArray[np.float64]:
    found = np.asarray(score, dtype=np.float64)
    if found.shape != fake.shape:
        raise ValueError(f"expected one score for each of {fake.size} labels, found the shape {found.shape}")
    if np.isnan(found).any():
        raise ValueError(f"expected scores that are numbers, found {int(np.isnan(found).sum())} NaN")
    return found


def _verdicts(name: str, said: NDArray, fake: NDArray[np.bool_]) -> NDArray[np.bool_]:
    said = np.asarray(said)
    if said.shape != fake.shape:
        raise ValueError(f"{name}: expected one verdict for each of {fake.size} labels, found the shape {said.shape}")
    if not np.isin(said, (0, 1)).all():
        raise ValueError(f"{name}: expected 0 (real) or 1 (fake), found {said[~np.isin(said, (0, 1))][0]!r}")
    return said == 1
