"""How good are the probabilities? Accuracy, AUROC, calibration and their kin, with 95 % bootstrap intervals.

Labels are 0 (real) and 1 (fake); fake is the positive class and a probability is always P(fake).

During training the figures of an epoch come from `epoch_scores`, by torchmetrics. The reported figures come from
`scores` and `bootstrap_intervals`, which need only NumPy. Both agree to rounding wherever a figure is defined. Where
AUROC or AP is undefined, on a single class, torchmetrics may say 0 with a warning; here it is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# What `bootstrap_intervals` can be asked for, and what it gives unasked.
MEASURES = (
    *("accuracy", "balanced_accuracy", "precision", "recall", "f1"),  # at the threshold
    *("auroc", "ap", "eer", "tpr_at_fpr1", "tpr_at_fpr5"),  # of the order alone
    *("nll", "brier", "ece", "adaptive_ece"),  # of the probabilities themselves
)
INTERVALS = ("accuracy", "precision", "recall", "f1", "auroc", "ap")

# Keeps log(p) finite for a network that is certain and wrong: at most 16.1 nats for one image.
CLIP = 1e-7

BINS = 15  # of both calibration errors

# Entries of one (resamples, images) array of the bootstrap: 16 MB, however large the data are.
BLOCK = 2_000_000


def epoch_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of one epoch by torchmetrics: accuracy, precision, recall, f1, auroc, ap, tn, fp, fn and tp at .5.

    Args:
        probabilities: P(fake), float32 (N,), in [0, 1]: torchmetrics would apply a sigmoid to any others.
        labels: integer (N,), 0 or 1.
    """
    # Here, for they take seconds to load, and the commands that only read finished results should not wait.
    from torchmetrics.functional import classification as measure

    figures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "accuracy": measure.binary_accuracy,
        "precision": measure.binary_precision,
        "recall": measure.binary_recall,
        "f1": measure.binary_f1_score,
        "auroc": measure.binary_auroc,  # exact, as is the next: of all scores, not of so many thresholds
        "ap": measure.binary_average_precision,
    }
    counts = measure.binary_confusion_matrix(probabilities, labels).ravel().tolist()  # truth by answer
    found = {name: float(figure(probabilities, labels)) for name, figure in figures.items()}
    return found | dict(zip(("tn", "fp", "fn", "tp"), counts, strict=True))


def scores(
    labels: NDArray, probabilities: NDArray, threshold: float = 0.5, margins: NDArray | None = None
) -> dict[str, float]:
    """Every figure of one set of predictions.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), integer, boolean or float.
        probabilities: shape (N,), P(fake) in [0, 1].
        threshold: an image is called fake when its probability is strictly greater, as in torchmetrics.
        margins: shape (N,), such as logit(fake) - logit(real). They order images of equal probability, as those of
            a network that is so certain that its probabilities are all 1; without them such images are ties.

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
        - eer: the equal error rate, where FPR = 1 - TPR on the ROC curve with straight lines between the points
          of neighbouring distinct scores;
        - tpr_at_fpr1, tpr_at_fpr5: the highest TPR among the ROC curve's own points with FPR <= 1 % (5 %), that
          is, what a threshold can reach on these images, nothing interpolated; 0 where only the point (0, 0)
          qualifies. Below 100 (20) real images this is the TPR without any false alarm;
        - nll: mean of -log P(true class), in nats, probabilities clipped to [1e-7, 1 - 1e-7];
        - brier: mean of (p - label)^2 (Brier, 1950), in [0, 1];
        - ece: the expected calibration error (Naeini, Cooper and Hauskrecht, 2015) of P(fake), the sum over bins
          of (share of the images) x |mean p - share of fakes|, over the bins [k/15, (k+1)/15) and [14/15, 1];
        - adaptive_ece: the same over 15 bins that hold N/15 images each, in the order of p. An image that lies
          on an edge counts for its share in both bins, and images of equal p share alike: the figure depends
          neither on the order of the rows nor on whether 15 divides N.

        balanced_accuracy, auroc, ap, eer and the TPRs at an FPR are undefined on a single class, and NaN there.

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label is not 0 or 1; a
            probability or the threshold is NaN or outside [0, 1]; a margin is NaN.
    """
    fake, p = _checked(labels, probabilities, threshold)
    values, position = _distinct(p, margins)
    counted = _Counted(
        values=values,
        real=np.bincount(position[~fake], minlength=values.size)[np.newaxis],
        fake=np.bincount(position[fake], minlength=values.size)[np.newaxis],
        threshold=threshold,
    )
    prevalence = float(fake.mean())
    said_fake = p > threshold
    return {
        "n": float(p.size),
        "prevalence": prevalence,
        "majority": max(prevalence, 1 - prevalence),
        **{name: float(value[0]) for name, value in counted.measured(MEASURES).items()},
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
    margins: NDArray | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the stratified bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Real and fake images are resampled with replacement apart, so every resample keeps both class sizes. The
    interval tells how far a figure would move with other images of the same kind; it does not tell how far it
    would move with another training seed or another generator.

    Args:
        labels, probabilities, threshold, margins: as in `scores`.
        metrics: names out of `MEASURES`.
        resamples: how many, at least 1.
        seed: the same seed gives the same intervals.
        level: share of the resamples inside the interval, in (0, 1).

    Returns:
        (low, high) for each of `metrics`; NaN where the figure itself is undefined.

    Raises:
        ValueError: as `scores`; also for an unknown metric, no resamples, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    (found,) = resampled_scores(labels, [(probabilities, threshold, margins)], metrics, resamples, seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, sample in found.items():
        low, high = np.quantile(sample, tails)
        intervals[name] = (float(low), float(high))
    return intervals


def resampled_scores(
    labels: NDArray,
    predictions: Sequence[tuple[NDArray, float] | tuple[NDArray, float, NDArray | None]],
    metrics: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Floats]]:
    """The figures of every resample of the stratified bootstrap, of one or several predictions for the same images.

    All predictions are measured on the same resampled images, so that their figures can be paired.

    Args:
        labels: as in `scores`.
        predictions: for each, (probabilities, threshold) or (probabilities, threshold, margins) as in `scores`.
        metrics, resamples, seed: as in `bootstrap_intervals`.

    Returns:
        for each prediction, float64 of shape (resamples,) for each of `metrics`.

    Raises:
        ValueError: as `bootstrap_intervals`; also without any prediction.
    """
    unknown = sorted(set(metrics) - set(MEASURES))
    if unknown:
        raise ValueError(f"metrics: expected names out of {', '.join(MEASURES)}; found {', '.join(unknown)}")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, found {resamples}")
    if not predictions:
        raise ValueError("predictions: expected at least one, found none")
    sorted_scores = []
    for probabilities, threshold, *margins in predictions:
        is_fake, p = _checked(labels, probabilities, threshold)
        sorted_scores.append((*_distinct(p, *margins), threshold))

    reals, fakes = np.flatnonzero(~is_fake), np.flatnonzero(is_fake)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // is_fake.size)
    parts: list[list[dict[str, Floats]]] = [[] for _ in predictions]
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn_reals, drawn_fakes = _drawn(reals, rows, generator), _drawn(fakes, rows, generator)
        for part, (values, position, threshold) in zip(parts, sorted_scores, strict=True):
            real, fake = _counts(position[drawn_reals], values.size), _counts(position[drawn_fakes], values.size)
            part.append(_Counted(values, real, fake, threshold).measured(metrics))
    return [{name: np.concatenate([found[name] for found in part]) for name in metrics} for part in parts]


def wilson_interval(part: float, whole: float) -> tuple[float, float]:
    """95 % interval of the share part / whole of counts, which keeps its width at 0 and 1; NaN of nothing.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not whole:
        return float("nan"), float("nan")
    z, p = 1.959963984540054, part / whole  # SciPy has it too, and takes half a millisecond, thirty times a page
    middle, square = p + z * z / (2 * whole), z * z / whole
    half = z * math.sqrt(p * (1 - p) / whole + square / (4 * whole))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def checked_labels(labels: NDArray) -> NDArray[np.bool_]:
    """Whether each image is fake, shape (N,).

    Raises:
        ValueError: the array is empty or not flat, or a label is not 0 or 1.
    """
    y = np.asarray(labels)
    if y.ndim != 1:
        raise ValueError(f"labels: expected a flat shape (N,), found {y.shape}")
    if y.size == 0:
        raise ValueError("expected at least one image, found none")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"labels: expected 0 (real) or 1 (fake), found {y[~np.isin(y, (0, 1))][0]!r}")
    return y == 1


def checked_probabilities(probabilities: NDArray) -> Floats:
    """The same numbers as float64, of any shape.

    Raises:
        ValueError: one is NaN or outside [0, 1].
    """
    p = np.asarray(probabilities, dtype=np.float64)
    # Written so that NaN, which compares false with everything, fails too.
    outside = ~((p >= 0) & (p <= 1))
    if outside.any():
        raise ValueError(
            f"probabilities: expected numbers in [0, 1], found {p[outside][0]} "
            f"and {int(outside.sum()) - 1} more like it"
        )
    return p


def _checked(labels: NDArray, probabilities: NDArray, threshold: float) -> tuple[NDArray[np.bool_], Floats]:
    """Fake or not, shape (N,), and P(fake) as float64, shape (N,); ValueError as promised by `scores`."""
    y_shape, p_shape = np.shape(labels), np.shape(probabilities)
    if y_shape != p_shape or len(y_shape) != 1:
        raise ValueError(f"expected labels and probabilities of one flat shape (N,), found {y_shape} and {p_shape}")
    fake, p = checked_labels(labels), checked_probabilities(probabilities)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    return fake, p


def _distinct(p: Floats, margins: NDArray | None = None) -> tuple[Floats, Counts]:
    """Of each distinct score its probability, rising, shape (U,), and which of them each image has, shape (N,)."""
    if margins is None:
        values, position = np.unique(p, return_inverse=True)
        return values, position
    m = np.asarray(margins, dtype=np.float64)
    if m.shape != p.shape:
        raise ValueError(f"margins: expected one for each of {p.size} probabilities, found the shape {m.shape}")
    if np.isnan(m).any():
        raise ValueError(f"margins: expected numbers, found {int(np.isnan(m).sum())} NaN")
    order = np.lexsort((m, p))
    first = np.ones(p.size, dtype=bool)
    first[1:] = (np.diff(p[order]) > 0) | (m[order][1:] != m[order][:-1])
    position = np.empty(p.size, dtype=np.int64)
    position[order] = first.cumsum() - 1
    return p[order][first], position


def _drawn(images: Counts, rows: int, generator: np.random.Generator) -> Counts:
    """`rows` resamples of the images of one class, shape (rows, images)."""
    if images.size == 0:
        return np.zeros((rows, 0), dtype=np.int64)
    return images[generator.integers(images.size, size=(rows, images.size))]


def _counts(position: Counts, size: int) -> Counts:
    """How many images of each row have each of `size` distinct scores, shape (R, size).

    `position`, shape (R, n), tells for every image which distinct score it has.
    """
    rows = position.shape[0]
    flat = position + size * np.arange(rows)[:, np.newaxis]
    return np.bincount(flat.ravel(), minlength=rows * size).reshape(rows, size)


@dataclass(frozen=True)
class _Counted:
    """R data sets at once, and their `MEASURES`, each of shape (R,), by methods of the same names.

    A data set is told by how many real and how many fake images have each of the distinct scores. Counting images
    per distinct score, instead of listing them, is what makes ties come out right and lets one sort serve all
    resamples.
    """

    values: Floats  # (U,), P(fake) of the distinct scores, in their order
    real: Counts  # (R, U)
    fake: Counts  # (R, U)
    threshold: float

    def measured(self, names: Sequence[str]) -> dict[str, Floats]:
        return {name: getattr(self, name)() for name in names}

    @cached_property
    def reals(self) -> Counts:
        return self.real.sum(axis=1)

    @cached_property
    def fakes(self) -> Counts:
        return self.fake.sum(axis=1)

    @cached_property
    def images(self) -> Counts:
        return self.reals + self.fakes

    @cached_property
    def fp(self) -> Counts:
        return self.real[:, self.values > self.threshold].sum(axis=1)

    @cached_property
    def tp(self) -> Counts:
        return self.fake[:, self.values > self.threshold].sum(axis=1)

    # How many real and fake images score at least values[u], shape (R, U): the points of the ROC curve but (0, 0).
    @cached_property
    def real_above(self) -> Counts:
        return self.real[:, ::-1].cumsum(axis=1)[:, ::-1]

    @cached_property
    def fake_above(self) -> Counts:
        return self.fake[:, ::-1].cumsum(axis=1)[:, ::-1]

    @cached_property
    def excess(self) -> Floats:
        """Sum of (p - label) over the images of each distinct score, shape (R, U)."""
        return (self.real + self.fake) * self.values - self.fake

    def accuracy(self) -> Floats:
        return _share(self.tp + self.reals - self.fp, self.images)

    def balanced_accuracy(self) -> Floats:
        specificity = _share(self.reals - self.fp, self.reals)
        return self._of_two_classes((_share(self.tp, self.fakes) + specificity) / 2)

    def precision(self) -> Floats:
        return _share(self.tp, self.tp + self.fp)

    def recall(self) -> Floats:
        return _share(self.tp, self.fakes)

    def f1(self) -> Floats:
        return _share(2 * self.tp, self.tp + self.fp + self.fakes)

    def auroc(self) -> Floats:
        # A fake beats every real below it, and half of those level with it.
        beaten = self.reals[:, np.newaxis] - self.real_above + self.real / 2
        return self._of_two_classes(_share((self.fake * beaten).sum(axis=1), self.reals * self.fakes))

    def ap(self) -> Floats:
        # Precision when all images scoring at least values[u] are called fake.
        precision = _share(self.fake_above, self.fake_above + self.real_above)
        return self._of_two_classes(_share((self.fake * precision).sum(axis=1), self.fakes))

    def eer(self) -> Floats:
        # FPR - FNR falls with u, from 1 at u = 0. Its last point that is not negative, and the one after it with
        # the images of values[u] no longer called fake, hold the crossing between them.
        reals, fakes = self.reals[:, np.newaxis], self.fakes[:, np.newaxis]
        before = (self.real_above * fakes >= (fakes - self.fake_above) * reals).sum(axis=1) - 1
        fpr_step = _share(_entry(self.real, before), self.reals)
        tpr_step = _share(_entry(self.fake, before), self.fakes)
        fpr_after = _share(_entry(self.real_above, before), self.reals) - fpr_step
        fnr_after = 1 - _share(_entry(self.fake_above, before), self.fakes) + tpr_step
        # On a single class there is no crossing, and maybe no step to divide by.
        steps = np.where(self._both, fpr_step + tpr_step, 1)
        return self._of_two_classes(fpr_after + (fnr_after - fpr_after) / steps * fpr_step)

    def tpr_at_fpr1(self) -> Floats:
        return self._tpr_at_fpr(1)

    def tpr_at_fpr5(self) -> Floats:
        return self._tpr_at_fpr(5)

    def nll(self) -> Floats:
        p = np.clip(self.values, CLIP, 1 - CLIP)
        return _share(-(self.fake @ np.log(p)) - self.real @ np.log1p(-p), self.images)

    def brier(self) -> Floats:
        return _share(self.fake @ (1 - self.values) ** 2 + self.real @ self.values**2, self.images)

    def ece(self) -> Floats:
        # n_b |mean p - mean label| is the absolute sum of (p - label) over the bin.
        bins = np.digitize(self.values, np.arange(1, BINS) / BINS)
        sums = self.excess @ (bins[:, np.newaxis] == np.arange(BINS))
        return _share(np.abs(sums).sum(axis=1), self.images)

    def adaptive_ece(self) -> Floats:
        # The running sum of (p - label) as a function of the running number of images, straight within a distinct
        # probability; a bin's sum is the difference between its edges.
        starts = np.flatnonzero(np.diff(self.values, prepend=-1))
        if starts.size < self.values.size:  # of equal probability, told apart by their margins
            real, fake = (np.add.reduceat(counts, starts, axis=1) for counts in (self.real, self.fake))
            return _Counted(self.values[starts], real, fake, self.threshold).adaptive_ece()
        together = self.real + self.fake
        counts, sums = together.cumsum(axis=1), self.excess.cumsum(axis=1)
        images = self.images[:, np.newaxis]
        edges = np.arange(1, BINS + 1) * images / BINS
        # Each row's counts are lifted to go on where those of the row before it end: one search serves all rows.
        row = np.arange(len(counts))[:, np.newaxis]
        lift = row * images
        column = np.searchsorted((counts + lift).ravel(), edges + lift) - row * self.values.size
        beyond = (counts[row, column] - edges) / together[row, column] * self.excess[row, column]
        at_edges = sums[row, column] - beyond
        return _share(np.abs(np.diff(at_edges, axis=1, prepend=0)).sum(axis=1), self.images)

    @cached_property
    def _both(self) -> NDArray[np.bool_]:
        return (self.reals > 0) & (self.fakes > 0)

    def _of_two_classes(self, figures: Floats) -> Floats:
        return np.where(self._both, figures, np.nan)

    def _tpr_at_fpr(self, percent: int) -> Floats:
        # In whole numbers, so that 5 of 100 is 5 % whatever 0.05 is in binary.
        too_many = (100 * self.real_above > percent * self.reals[:, np.newaxis]).sum(axis=1)
        called_fake = np.pad(self.fake_above, ((0, 0), (0, 1)))  # the last point calls none fake
        return self._of_two_classes(_share(_entry(called_fake, too_many), self.fakes))


def _entry(table: NDArray, column: Counts) -> NDArray:
    """One entry of each row, shape (R,)."""
    return table[np.arange(len(table)), column]


def _share(part: NDArray, whole: Counts) -> Floats:
    """part / whole, and 0 where the whole is 0 (the part is 0 there too)."""
    return part / np.maximum(whole, 1)
