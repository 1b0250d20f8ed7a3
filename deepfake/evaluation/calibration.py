"""From a network's margins to probabilities, thresholds and a band of doubt, all chosen on validation images alone.

The margin of an image is logit(fake) - logit(real). Labels are 0 (real) and 1 (fake); an image is called fake when
its P(fake) is strictly greater than the threshold. Everything is fitted once, on images that neither trained the
network nor will be reported on, and kept as plain data beside the weights.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from deepfake.evaluation.metrics import Floats, checked_labels, checked_probabilities

COLDEST, HOTTEST = 0.05, 20.0  # bounds of the temperature
THRESHOLDS = ("half", "eer", "balanced_accuracy", "fpr_1", "fpr_5")


@dataclass(frozen=True)
class Threshold:
    """An image is called fake when its P(fake) is strictly greater than `value`.

    `fpr`, `tpr` and `balanced_accuracy` are what that reached on the validation images it was chosen on, all in
    [0, 1]: a little better than what new images will show. `warning` says why not to lean on it, None where nothing
    does.

    Raises:
        ValueError: a field does not hold what it must; the message names it.
    """

    value: float
    fpr: float
    tpr: float
    balanced_accuracy: float
    warning: str | None = None

    def __post_init__(self) -> None:
        for name in ("value", "fpr", "tpr", "balanced_accuracy"):
            _check_number(name, getattr(self, name), 0, 1)
        if self.warning is not None and not isinstance(self.warning, str):
            raise ValueError(f"warning: expected a text or None, found {reprlib.repr(self.warning)}")


@dataclass(frozen=True)
class Calibration:
    """What turns margins into probabilities and verdicts, and what it was fitted on.

    Raises:
        ValueError: a field does not hold what it must; the message names it.
    """

    temperature: float  # p = sigmoid(margin / temperature)
    thresholds: Mapping[str, Threshold]  # of p, one for each name in `THRESHOLDS`
    band: tuple[float, float]  # of p: doubtful from the first to the second, both included
    band_error: float  # share of each class that may end up beyond the band on the wrong side
    n_real: int  # validation images
    n_fake: int

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, COLDEST, HOTTEST)
        if set(self.thresholds) != set(THRESHOLDS):
            raise ValueError(f"thresholds: expected {', '.join(THRESHOLDS)}; found {', '.join(self.thresholds)}")
        low, high = self.band
        _check_number("band", low, 0, 1)
        _check_number("band", high, low, 1)
        _check_number("band_error", self.band_error, 0, 1)
        for name in ("n_real", "n_fake"):
            count = getattr(self, name)
            if type(count) is not int or count < 1:
                raise ValueError(f"{name}: expected a number of images, at least 1; found {reprlib.repr(count)}")

    def probabilities(self, margins: NDArray) -> Floats:
        """P(fake) = sigmoid(margin / temperature), float64 in [0, 1], of the margins' shape.

        Raises:
            ValueError: a margin is NaN or infinite.
        """
        return expit(_finite(margins) / self.temperature)

    def verdict(self, p: NDArray, threshold_name: str = "half") -> NDArray[np.str_]:
        """For each probability "real" or "fake", of the same shape.

        Raises:
            ValueError: a probability is NaN or outside [0, 1], or no threshold has this name.
        """
        return np.where(checked_probabilities(p) > self._threshold(threshold_name), "fake", "real")

    def uncertain(self, p: NDArray, threshold_name: str = "half") -> NDArray[np.bool_]:
        """Whether to doubt the verdict at the same threshold, of the same shape.

        What lies in the band is doubtful, and so is what lies between the band and the threshold, where the verdict
        is not the class that the band leaves. So the promise of `fit_band` holds for the verdict at any threshold.

        Raises:
            ValueError: as `verdict`.
        """
        cut, (low, high) = self._threshold(threshold_name), self.band
        p = checked_probabilities(p)
        return (p >= min(low, cut)) & (p <= max(high, cut))

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures should know, a sentence each."""
        found = [f"{name}: {each.warning}" for name, each in self.thresholds.items() if each.warning]
        if self.temperature in (COLDEST, HOTTEST):
            found.append(
                f"temperature: {self.temperature:g}, the end of its range: the best one lies beyond, and the "
                f"probabilities are not calibrated"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Dicts, lists, texts and numbers only, as a checkpoint or JSON can hold them."""
        thresholds = {name: asdict(each) for name, each in self.thresholds.items()}
        return {**vars(self), "thresholds": thresholds, "band": list(self.band)}

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """What `as_dict` gave.

        Raises:
            ValueError: a field is missing, unknown or does not hold what it must; the message names it.
        """
        _check_fields("calibration", data, cls)
        if not isinstance(data["thresholds"], dict):
            raise ValueError(f"thresholds: expected a dict of thresholds, found {reprlib.repr(data['thresholds'])}")
        thresholds = {}
        for name, threshold in data["thresholds"].items():
            _check_fields(f"thresholds.{name}", threshold, Threshold)
            try:
                thresholds[name] = Threshold(**threshold)
            except ValueError as error:
                raise ValueError(f"thresholds.{name}.{error}") from None
        band = data["band"]
        if not isinstance(band, list | tuple) or len(band) != 2:
            raise ValueError(f"band: expected two numbers, found {reprlib.repr(band)}")
        return cls(**{**data, "thresholds": thresholds, "band": tuple(band)})

    def _threshold(self, name: str) -> float:
        if name not in self.thresholds:
            raise ValueError(f"threshold: expected one of {', '.join(self.thresholds)}; found {name}")
        return self.thresholds[name].value


def calibrate(labels: NDArray, margins: NDArray, band_error: float = 0.1) -> Calibration:
    """Temperature, then thresholds and band of the calibrated probabilities, all on the same validation images.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), both present.
        margins: shape (N,), logit(fake) - logit(real).
        band_error: as `error` of `fit_band`.

    Raises:
        ValueError: as `fit_temperature` and `fit_band`.
    """
    temperature = fit_temperature(labels, margins)
    p = expit(_finite(margins) / temperature)
    n_fake = int(np.count_nonzero(labels))
    return Calibration(
        temperature=temperature,
        thresholds=fit_thresholds(labels, p),
        band=fit_band(labels, p, band_error),
        band_error=band_error,
        n_real=len(p) - n_fake,
        n_fake=n_fake,
    )


def fit_temperature(labels: NDArray, margins: NDArray) -> float:
    """T in [0.05, 20] that minimises the mean -log P(true class), where P(fake) = sigmoid(margin / T).

    Temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017). The loss is convex in 1 / T, so that the sign of its
    slope finds the only minimum, or the end of the range that is nearest to it. Where no margin has the wrong sign,
    the loss falls for ever as T goes to 0, and the answer is exactly 0.05: it then says nothing about how certain to
    be. Margins that order the classes the wrong way round, or are all 0, give exactly 20. No image is clipped.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), both present.
        margins: shape (N,), logit(fake) - logit(real).

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label is not 0 or 1; one class is
            missing; a margin is NaN or infinite.
    """
    fake, m = _both_classes(labels, margins), _finite(margins)
    towards_truth = np.where(fake, m, -m)

    def slope(log_temperature: float) -> float:  # of the loss by 1 / T, times N
        return -float((towards_truth * expit(-towards_truth / math.exp(log_temperature))).sum())

    coldest, hottest = math.log(COLDEST), math.log(HOTTEST)
    # The slope says so too, but of large margins nothing is left of it in floating point.
    never_wrong = towards_truth.min() >= 0 and towards_truth.max() > 0
    if never_wrong or slope(coldest) < 0:
        return COLDEST
    if slope(hottest) >= 0:
        return HOTTEST
    return math.exp(brentq(slope, coldest, hottest))


def fit_thresholds(labels: NDArray, p: NDArray) -> dict[str, Threshold]:
    """Five ways to cut, chosen on validation images.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), both present.
        p: shape (N,), P(fake) in [0, 1], calibrated.

    Returns:
        - half: 0.5;
        - eer: where the false positive and the false negative rate differ least;
        - balanced_accuracy: where the mean of both classes' recalls is highest;
        - fpr_1, fpr_5: where the TPR is highest among those with FPR <= 1 % (5 %) on these very images.

        Of equals always the highest threshold, the one that accuses the fewest real images. But for half, a threshold
        lies halfway between two neighbouring distinct probabilities (0 and 1 count as such), so that rounding cannot
        move an image across it; images of equal probability always fall on the same side. With fewer than 100 real
        images (20 for fpr_5) the threshold allows no false alarm at all, and carries a warning.

    Raises:
        ValueError: the arrays are empty, differ in length or are not flat; a label is not 0 or 1; one class is
            missing; a probability is NaN or outside [0, 1].
    """
    fake, p = _both_classes(labels, p), checked_probabilities(p)
    cuts = np.append(_cuts(p), 0.5)
    real_p, fake_p = np.sort(p[~fake]), np.sort(p[fake])
    reals, fakes = real_p.size, fake_p.size
    fp = reals - np.searchsorted(real_p, cuts, side="right")
    tp = fakes - np.searchsorted(fake_p, cuts, side="right")

    def threshold(at: int, warning: str | None = None) -> Threshold:
        fpr, tpr = float(fp[at] / reals), float(tp[at] / fakes)
        return Threshold(float(cuts[at]), fpr, tpr, (tpr + 1 - fpr) / 2, warning)

    def at_most(percent: int) -> Threshold:
        allowed = 100 * fp[:-1] <= percent * reals
        warning = f"expected at least {100 // percent} real validation images for {percent} %, found {reals}"
        return threshold(_last_highest(np.where(allowed, tp[:-1], -1)), warning if percent * reals < 100 else None)

    # Compared as whole numbers, so that equals are equal: all rates times reals x fakes.
    false_positives, false_negatives = fp[:-1] * fakes, (fakes - tp[:-1]) * reals
    return {
        "half": threshold(-1),
        "eer": threshold(_last_highest(-np.abs(false_positives - false_negatives))),
        "balanced_accuracy": threshold(_last_highest(-false_positives - false_negatives)),
        "fpr_1": at_most(1),
        "fpr_5": at_most(5),
    }


def fit_band(labels: NDArray, p: NDArray, error: float = 0.1) -> tuple[float, float]:
    """The band of P(fake), both ends included, inside which a verdict is doubtful.

    Split conformal prediction, each class by itself (Vovk, Gammerman and Shafer, 2005, "Mondrian"; Sadinle, Lei and
    Wasserman, 2019). Real is plausible up to the k-th largest probability of the n real images, fake from the k-th
    smallest of the n fake ones on, k = floor((n + 1) x error); where k is 0, too few images to exclude anything,
    everything is plausible. Between these two ends either both classes are plausible, or, where the classes lie far
    apart, neither is.

    The promise: new images of the same kind, exchangeable with these, have P(a real one lies above the band) <= error
    and P(a fake one lies below it) <= error, on the average over validation parts, whatever the network. It says
    nothing of generators that were never seen, and the share among the images called fake depends on how many fakes
    there are. A choice made on the same images that keeps their order, such as the temperature, costs nothing; the
    choice of a checkpoint does, a little.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake), both present.
        p: shape (N,), P(fake) in [0, 1].
        error: in (0, 1).

    Raises:
        ValueError: as `fit_thresholds`; also for an error outside (0, 1).
    """
    if not 0 < error < 1:
        raise ValueError(f"error: expected a number between 0 and 1, found {error}")
    fake, p = _both_classes(labels, p), checked_probabilities(p)
    # 0 and 1 stand for the n + 1st image, as far on the wrong side as can be.
    reals, fakes = np.sort(np.append(p[~fake], 1.0)), np.sort(np.append(p[fake], 0.0))
    real_up_to = float(reals[-1 - math.floor(reals.size * error)])
    fake_from = float(fakes[math.floor(fakes.size * error)])
    return min(real_up_to, fake_from), max(real_up_to, fake_from)


def _cuts(p: Floats) -> Floats:
    """Every way to part p into greater and not greater, rising: halfway between neighbours, and 1, above all."""
    edges = np.unique(np.concatenate([[0.0], p, [1.0]]))
    below, above = edges[:-1], edges[1:]
    halfway = below + (above - below) / 2
    # Neighbours one rounding step apart have nothing between them, and the lower one still parts them.
    return np.append(np.where(halfway < above, halfway, below), 1.0)


def _last_highest(figures: NDArray) -> int:
    return int(np.flatnonzero(figures == figures.max())[-1])


def _both_classes(labels: NDArray, figures: NDArray) -> NDArray[np.bool_]:
    """Whether each image is fake, shape (N,), where both classes are there and there is one figure an image."""
    fake = checked_labels(labels)
    if np.shape(figures) != fake.shape:
        raise ValueError(f"expected one figure for each of {fake.size} labels, found the shape {np.shape(figures)}")
    if fake.all() or not fake.any():
        present, missing = ("fake", "real") if fake.all() else ("real", "fake")
        raise ValueError(f"labels: expected real and fake images, found {fake.size} {present} and no {missing} ones")
    return fake


def _finite(margins: NDArray) -> Floats:
    m = np.asarray(margins, dtype=np.float64)
    if not np.isfinite(m).all():
        raise ValueError(f"margins: expected finite numbers, found {m[~np.isfinite(m)][0]}")
    return m


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], found {reprlib.repr(value)}")


def _check_fields(name: str, data: Any, kind: type) -> None:
    """ValueError unless `data` is a dict with just the fields of the dataclass `kind`."""
    if not isinstance(data, dict):
        raise ValueError(f"{name}: expected a dict, found {reprlib.repr(data)}")
    expected = {field.name for field in fields(kind)}
    for problem, names in (("missing", expected - set(data)), ("unknown", set(data) - expected)):
        if names:
            raise ValueError(f"{name}: {problem} field {', '.join(sorted(map(str, names)))}")
