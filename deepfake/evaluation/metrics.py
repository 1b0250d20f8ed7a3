"""How good are the probabilities? Accuracy, AUROC and their kin, with 95 % bootstrap intervals.

Labels are 0 (real) and 1 (fake); fake is the positive class and a probability is always P(fake).

During training the running figures come from `metric_collection`, which torchmetrics accumulates batch by
batch. The reported figures come from `scores` and `bootstrap_intervals`, which need only NumPy. Both agree
to rounding wherever a figure is defined. Where AUROC or AP is undefined, on a single class, torchmetrics may
say 0 with a warning; here it is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torchmetrics import MetricCollection
    from torchmetrics.classification import BinaryConfusionMatrix

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# What `bootstrap_intervals` can be asked for, and what it gives unasked.
MEASURES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "ap", "nll")
INTERVALS = ("accuracy", "precision", "recall", "f1", "auroc", "ap")

# Keeps log(p) finite for a network that is certain and wrong: at most 16.1 nats for one image.
CLIP = 1e-7

# Entries of one (resamples, images) array in `bootstrap_intervals`: 16 MB, however large the data are.
_BLOCK = 2_000_000


# torch and torchmetrics are imported inside the two factories: they take seconds to load, and the commands
# that only read finished results should not wait for them.


def metric_collection(prefix: str) -> MetricCollection:
    """Running metrics of one part of the data, named `<prefix>accuracy`, precision, recall, f1, auroc and ap.

    Update with P(fake), float32 of shape (B,) in [0, 1], and labels, integer of shape (B,), 0 or 1. Pass
    probabilities: torchmetrics applies a sigmoid of its own to any batch that leaves [0, 1]. AUROC and AP are
    exact (`thresholds=None`), so every score of the epoch is kept until `reset`.
    """
    from torchmetrics import MetricCollection
    from torchmetrics.classification import (
        BinaryAccuracy,
        BinaryAUROC,
        BinaryAveragePrecision,
        BinaryF1Score,
        BinaryPrecision,
        BinaryRecall,
    )

    return MetricCollection(
        {
            "accuracy": BinaryAccuracy(threshold=0.5),
            "precision": BinaryPrecision(threshold=0.5),
            "recall": BinaryRecall(threshold=0.5),
            "f1": BinaryF1Score(threshold=0.5),
            "auroc": BinaryAUROC(thresholds=None),
            "ap": BinaryAveragePrecision(thresholds=None),
        },
        prefix=prefix,
    )


def confusion() -> BinaryConfusionMatrix:
    """Running (2, 2) counts at threshold 0.5: rows are the truth, columns the answer; real, then fake."""
    from torchmetrics.classification import BinaryConfusionMatrix

    return BinaryConfusionMatrix(threshold=0.5)


def scores(labels: NDArray, probabilities: NDArray, threshold: float = 0.5) -> dict[str, float]:
    """Every figure of one set of predictions.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), integer, boolean or float.
        probabilities: shape (N,), P(fake) in [0, 1].
        threshold: an image is called fake when its probability is strictly greater, as in torchmetrics.

    Returns:
        n, prevalence (share of fakes), majority (accuracy of always answering with the larger class), tn, fp,
        fn, tp, and

        - accuracy; balanced_accuracy, the mean of the two classes' recalls;
        - precision, recall, f1: 0 where the denominator is 0, as torchmetrics and as scikit-learn's
          `zero_division=0`;
        - auroc: P(a fake scores above a real) + P(equal) / 2, the Mann-Whitney statistic
          (Hanley and McNeil, 1982);
        - ap: sum over distinct scores of (recall step) x precision, as scikit-learn's
          `average_precision_score`, without interpolation;
        - nll: mean of -log P(true class), in nats, probabilities clipped to [1e-7, 1 - 1e-7].

        balanced_accuracy, auroc and ap are undefined on a single class, and NaN there.

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label is not 0 or 1; a
            probability or the threshold is NaN or outside [0, 1].
    """
    fake, p = _checked(labels, probabilities, threshold)
    values, position = np.unique(p, return_inverse=True)
    real_counts = np.bincount(position[~fake], minlength=values.size)[np.newaxis]
    fake_counts = np.bincount(position[fake], minlength=values.size)[np.newaxis]
    prevalence = float(fake.mean())
    said_fake = p > threshold
    measured = _measure(values, real_counts, fake_counts, threshold)
    return {
        "n": float(p.size),
        "prevalence": prevalence,
        "majority": max(prevalence, 1 - prevalence),
        **{name: float(value[0]) for name, value in measured.items()},
        "tn": float((~fake & ~said_fake).sum()),
        "fp": float((~fake & said_fake).sum()),
        "fn": float((fake & ~said_fake).sum()),
        "tp": float((fake & said_fake).sum()),
    }


def bootstrap_intervals(
    labels: NDArray,
    probabilities: NDArray,
    threshold: float = 0.5,
    metrics: Sequence[str] = INTERVALS,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the stratified bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Real and fake images are resampled with replacement apart, so every resample keeps both class sizes. The
    interval tells how far a figure would move with other images of the same kind; it does not tell how far it
    would move with another training seed or another generator.

    Args:
        labels, probabilities, threshold: as in `scores`.
        metrics: names out of `MEASURES`.
        resamples: how many, at least 1.
        seed: the same seed gives the same intervals.
        level: share of the resamples inside the interval, in (0, 1).

    Returns:
        (low, high) for each of `metrics`; NaN where the figure itself is undefined.

    Raises:
        ValueError: as `scores`; also for an unknown metric, no resamples, or a level outside (0, 1).
    """
    fake, p = _checked(labels, probabilities, threshold)
    unknown = sorted(set(metrics) - set(MEASURES))
    if unknown:
        raise ValueError(f"metrics: expected names out of {', '.join(MEASURES)}; found {', '.join(unknown)}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, found {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")

    values, position = np.unique(p, return_inverse=True)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // p.size)
    measured = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        real_counts = _resampled(position[~fake], values.size, rows, generator)
        fake_counts = _resampled(position[fake], values.size, rows, generator)
        measured.append(_measure(values, real_counts, fake_counts, threshold))

    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name in metrics:
        low, high = np.quantile(np.concatenate([part[name] for part in measured]), tails)
        intervals[name] = (float(low), float(high))
    return intervals


def _checked(labels: NDArray, probabilities: NDArray, threshold: float) -> tuple[NDArray[np.bool_], Floats]:
    """Fake or not, shape (N,), and P(fake) as float64, shape (N,); ValueError as promised by `scores`."""
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if y.ndim != 1 or p.ndim != 1 or y.size != p.size:
        raise ValueError(f"expected labels and probabilities of one flat shape (N,), found {y.shape} and {p.shape}")
    if y.size == 0:
        raise ValueError("expected at least one image, found none")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels: expected 0 (real) or 1 (fake), found {y[~np.isin(y, (0, 1))][0]!r}")
    # Written so that NaN, which compares false with everything, fails too.
    outside = ~((p >= 0) & (p <= 1))
    if outside.any():
        raise ValueError(
            f"probabilities: expected numbers in [0, 1], found {p[outside][0]} "
            f"and {int(outside.sum()) - 1} more like it"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    return y == 1, p


def _resampled(position: Counts, size: int, rows: int, generator: np.random.Generator) -> Counts:
    """Counts of the `size` distinct scores in `rows` resamples of one class, shape (rows, size).

    `position`, shape (n,), tells for every image of the class which distinct score it has.
    """
    if position.size == 0:
        return np.zeros((rows, size), dtype=np.int64)
    drawn = position[generator.integers(position.size, size=(rows, position.size))]
    flat = drawn + size * np.arange(rows)[:, np.newaxis]
    return np.bincount(flat.ravel(), minlength=rows * size).reshape(rows, size)


def _measure(values: Floats, real: Counts, fake: Counts, threshold: float) -> dict[str, Floats]:
    """`MEASURES` of R data sets at once, each of shape (R,).

    A data set is told by how many real and how many fake images have each of the distinct scores `values`,
    shape (U,), rising: `real` and `fake` have shape (R, U). Counting images per distinct score, instead of
    listing them, is what makes ties come out right and lets one sort serve all resamples.
    """
    said_fake = values > threshold
    reals, fakes = real.sum(axis=1), fake.sum(axis=1)
    fp, tp = real[:, said_fake].sum(axis=1), fake[:, said_fake].sum(axis=1)
    tn, fn = reals - fp, fakes - tp
    both = (reals > 0) & (fakes > 0)

    # A fake beats every real below it, and half of those level with it.
    beaten = real.cumsum(axis=1) - real / 2
    auroc = _share((fake * beaten).sum(axis=1), reals * fakes)

    # Precision when all images scoring at least values[u] are called fake.
    real_above = real[:, ::-1].cumsum(axis=1)[:, ::-1]
    fake_above = fake[:, ::-1].cumsum(axis=1)[:, ::-1]
    ap = _share((fake * _share(fake_above, fake_above + real_above)).sum(axis=1), fakes)

    clipped = np.clip(values, CLIP, 1 - CLIP)
    surprise = -(fake @ np.log(clipped)) - real @ np.log1p(-clipped)
    return {
        "accuracy": _share(tp + tn, reals + fakes),
        "balanced_accuracy": np.where(both, (_share(tp, fakes) + _share(tn, reals)) / 2, np.nan),
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, fakes),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "auroc": np.where(both, auroc, np.nan),
        "ap": np.where(both, ap, np.nan),
        "nll": _share(surprise, reals + fakes),
    }


def _share(part: NDArray, whole: Counts) -> Floats:
    """part / whole, and 0 where the whole is 0 (the part is 0 there too)."""
    return part / np.maximum(whole, 1)
