"""Is a heat map faithful? Hide the places it calls hot and see whether the answer suffers more than by chance.

The deletion curve of Petsiuk et al. (2018, "RISE", section 4.2): the confidence in a verdict, as a growing share of
the places is hidden, the hottest first. The area under it is small where the map names what the verdict hangs on. A
small area alone says little, for any hole may throw a network off: so the same pattern of places is hidden elsewhere
in the same image, by the same means, and only the difference counts. Places scattered at random would make another
pattern, with more edges, and a map would be judged by what edges do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FRACTIONS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(11))  # of the places that are hidden
FEWEST = 10  # images from which on a bootstrap tells more than the accident of which they are
LEAST = 0.005  # difference of areas: half a point of confidence. A network without confidence has none to lose
COVERS = {
    "blur": "a Gaussian blur with a standard deviation of 1/28 of the side",
    "mean": "the image's mean colour",
}
ELSEWHERE = "the same pattern of places, moved by a random amount"
_BLUR = 1 / 28  # 8 of 224 pixels: of a wave of 23 pixels a tenth is left


def cover(image: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    """What hides a place of an image: the image itself without detail.

    A blur leaves light and colours where they are, so that no edge appears which the network never saw, and takes
    away fine detail, where generators leave their traces. The mean colour takes away all of it, and makes such edges.

    Args:
        image: float32 (3, S, S), in any units.
        how: a key of `COVERS`.

    Returns:
        float32 (3, S, S).
    """
    if how == "mean":
        return np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape).astype(np.float32)
    sigma = _BLUR * image.shape[-1]
    planes = [cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for plane in image]
    return np.stack(planes)


def hottest_first(heat: NDArray, places: tuple[int, int], random: np.random.Generator) -> NDArray[np.int64]:
    """The rank of each place, 0 the hottest; equal ones, such as all that speak for nothing, stand in random order.

    Args:
        heat: float (S, S).
        places: into how many rows and columns it is parted.
        random: decides among equal ones.

    Returns:
        int64 of shape `places`.
    """
    mean = cv2.resize(np.asarray(heat, np.float32), places[::-1], interpolation=cv2.INTER_AREA).ravel()
    return _ranks(np.lexsort((random.permutation(mean.size), -mean))).reshape(places)


def shifts(places: tuple[int, int], count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """By how many rows and columns a pattern of places is moved, never by none of both."""
    return [divmod(by, places[1]) for by in random.integers(1, places[0] * places[1], count).tolist()]


def moved(ranks: NDArray[np.int64], by: tuple[int, int]) -> NDArray[np.int64]:
    """The same pattern elsewhere: what leaves at one edge enters at the opposite one."""
    return np.roll(ranks, by, axis=(0, 1))


def hide(
    image: NDArray[np.float32], covered: NDArray[np.float32], ranks: NDArray[np.int64], share: float
) -> NDArray[np.float32]:
    """The image with the first places hidden.

    Args:
        image: float32 (3, S, S).
        covered: of the same shape, what is seen of a hidden place.
        ranks: int64 (rows, columns), as `hottest_first` gives.
        share: of the places, in [0, 1]; rounded to a whole number of them.
    """
    first = (ranks < round(share * ranks.size)).astype(np.uint8)
    mask = cv2.resize(first, image.shape[:0:-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return np.where(mask, covered, image)


@dataclass(frozen=True)
class Deletion:
    """What hiding did, means over images.

    Attributes:
        fractions: of the places that are hidden.
        hot, random: confidence in the verdict at each of them: the hottest hidden first, the same pattern elsewhere.
        auc_hot, auc_random: areas under these curves, in [0, 1].
        difference: `auc_random` - `auc_hot`, above 0 where hot places matter more.
        interval: of the difference, 95 %, paired bootstrap over images of each class apart; None of too few images.
        images: how many.
        prevalence: share of fakes among them.
    """

    fractions: tuple[float, ...]
    hot: Floats
    random: Floats
    auc_hot: float
    auc_random: float
    difference: float
    interval: tuple[float, float] | None
    images: int
    prevalence: float

    @property
    def faithful(self) -> bool:
        """Whether the interval of the difference lies above `LEAST`."""
        return self.interval is not None and self.interval[0] > LEAST

    @property
    def sentence(self) -> str:
        """What follows from the interval."""
        areas = f"mean deletion AUC {self.auc_hot:.3f} against {self.auc_random:.3f}"
        if self.interval is None:
            return f"Not shown to be faithful: {areas} on {self.images} images, too few (expected {FEWEST}) to tell."
        low, high = self.interval
        told = f"{areas}, difference {self.difference:+.3f} [{low:+.3f}, {high:+.3f}] on {self.images:,} images"
        told += f", {self.prevalence:.1%} fake"
        if low > LEAST:
            return (
                f"Faithful: hiding the hottest places first takes more of the confidence in the verdicts than hiding "
                f"the same pattern elsewhere, {told}."
            )
        if high < -LEAST:
            return (
                f"Not faithful: hiding the hottest places first takes less of the confidence in the verdicts than "
                f"hiding the same pattern elsewhere, {told}."
            )
        return (
            f"Not shown to be faithful: hiding the hottest places first takes no more of the confidence in the "
            f"verdicts than hiding the same pattern elsewhere, or hardly more, {told}."
        )

    def as_dict(self) -> Mapping[str, Any]:
        """Plain values by these names, for JSON."""
        return {
            "fractions": list(self.fractions),
            "hot": self.hot.tolist(),
            "random": self.random.tolist(),
            "auc_hot": self.auc_hot,
            "auc_random": self.auc_random,
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "images": self.images,
            "prevalence": self.prevalence,
            "faithful": self.faithful,
            "sentence": self.sentence,
        }


def compare(hot: Floats, random: Floats, labels: NDArray, resamples: int = 2000, seed: int = 0) -> Deletion:
    """Deletion curves of a map against those of the same pattern elsewhere, image by image.

    Args:
        hot: (N, len(FRACTIONS)), confidence in each image's verdict as its hottest places are hidden.
        random: (N, shifts, len(FRACTIONS)), as the same pattern is hidden at random places.
        labels: (N,), 0 or 1: images of each class are resampled apart.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no image.
    """
    if not len(hot):
        raise ValueError("expected the curves of at least one image, found none")
    areas = np.trapezoid(hot, FRACTIONS, axis=1), np.trapezoid(random.mean(axis=1), FRACTIONS, axis=1)
    difference = areas[1] - areas[0]
    return Deletion(
        fractions=FRACTIONS,
        hot=hot.mean(axis=0),
        random=random.mean(axis=(0, 1)),
        auc_hot=float(areas[0].mean()),
        auc_random=float(areas[1].mean()),
        difference=float(difference.mean()),
        interval=_interval(difference, np.asarray(labels), resamples, seed),
        images=len(hot),
        prevalence=float(np.mean(labels)),
    )


def _interval(values: Floats, labels: NDArray, resamples: int, seed: int) -> tuple[float, float] | None:
    """95 % percentile interval of the mean (Efron and Tibshirani, 1993, chapter 13)."""
    if len(values) < FEWEST:
        return None
    random = np.random.default_rng(seed)
    sums = np.zeros(resamples)
    for label in np.unique(labels):
        of_class = values[labels == label]
        sums += random.choice(of_class, (resamples, len(of_class))).sum(axis=1)
    low, high = np.quantile(sums / len(values), [0.025, 0.975])
    return float(low), float(high)


def _ranks(order: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks
