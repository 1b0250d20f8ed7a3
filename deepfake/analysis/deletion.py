"""Is a heat map faithful? Hide the places it calls hot and see whether the answer suffers more than by chance.

The deletion curve of Petsiuk et al. (2018, "RISE", section 4.2): the confidence in a verdict, as a growing share of
the places is hidden, the hottest first. The area under it is small where the map names what the verdict hangs on. A
small area alone says little, for any hole may throw a network off: so other places are hidden in the same image, by
the same means, and only the differences count. There are two controls. The same pattern of places, moved elsewhere:
places scattered at random would make another pattern, with more edges, and a map would be judged by what edges do.
And the places that are hot on average: elsewhere is often background, and a spot in the middle of every picture,
which knows nothing of the image, takes more than that. Another fixed pattern may take more than the mean map.
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
COMMON = "the places that are hot in the mean of the maps of all examined images with the same verdict"
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


def by_place(heat: NDArray, places: tuple[int, int]) -> NDArray[np.float32]:
    """The mean heat of each place.

    Args:
        heat: float (S, S).
        places: into how many rows and columns it is parted.

    Returns:
        float32 of shape `places`.
    """
    mean = cv2.resize(np.asarray(heat, np.float32), places[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(mean, np.float32).reshape(places)


def hottest_first(heat: NDArray, random: np.random.Generator) -> NDArray[np.int64]:
    """The rank of each place, 0 the hottest; equal ones, such as all that speak for nothing, stand in random order.

    Args:
        heat: float (rows, columns), of the places.
        random: decides among equal ones.

    Returns:
        int64 (rows, columns).
    """
    return _ranks(np.lexsort((random.permutation(heat.size), -heat.ravel()))).reshape(heat.shape)


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
        hot, random, common: confidence in the verdict at each of them: the hottest hidden first, the same pattern
            elsewhere, the hottest on average first.
        auc_hot, auc_random, auc_common: areas under these curves, in [0, 1].
        difference: `auc_random` - `auc_hot`, above 0 where hot places matter more.
        interval: of the difference, 95 %, paired bootstrap over images of each class apart; None of too few images.
        difference_common: `auc_common` - `auc_hot`, above 0 where it matters which image's map it is.
        interval_common: of it, likewise.
        images: how many.
        prevalence: share of fakes among them.
    """

    fractions: tuple[float, ...]
    hot: Floats
    random: Floats
    common: Floats
    auc_hot: float
    auc_random: float
    auc_common: float
    difference: float
    interval: tuple[float, float] | None
    difference_common: float
    interval_common: tuple[float, float] | None
    images: int
    prevalence: float

    @property
    def faithful(self) -> bool:
        """Whether the intervals of both differences lie above `LEAST`."""
        return _taken(self.interval) == _taken(self.interval_common) == "more"

    @property
    def sentence(self) -> str:
        """What follows from the intervals."""
        n = f"{self.images:,} images, {self.prevalence:.1%} fake"
        areas = f"{self.auc_random:.3f} and {self.auc_common:.3f}"
        if self.interval is None or self.interval_common is None:
            return (
                f"Not shown to be faithful: mean deletion AUC {self.auc_hot:.3f} against {areas} on {n}, too few "
                f"(expected {FEWEST}) to tell."
            )
        taken = _taken(self.interval), _taken(self.interval_common)
        verdict = "Faithful" if self.faithful else "Not faithful" if "less" in taken else "Not shown to be faithful"
        joined = "and" if taken[0] == taken[1] else "but"
        return (
            f"{verdict}: hiding the hottest places first takes {taken[0]} of the confidence in the verdicts than "
            f"hiding the same pattern elsewhere (difference of mean deletion AUC "
            f"{_told(self.difference, self.interval)}), {joined} {taken[1]} than hiding the places that are hot on "
            f"average in the images of the same verdict ({_told(self.difference_common, self.interval_common)}); "
            f"mean deletion AUC {self.auc_hot:.3f} against {areas}, {n}."
        )

    def as_dict(self) -> Mapping[str, Any]:
        """Plain values by these names, for JSON."""
        return {
            "fractions": list(self.fractions),
            "hot": self.hot.tolist(),
            "random": self.random.tolist(),
            "common": self.common.tolist(),
            "auc_hot": self.auc_hot,
            "auc_random": self.auc_random,
            "auc_common": self.auc_common,
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "difference_common": self.difference_common,
            "interval_common": None if self.interval_common is None else list(self.interval_common),
            "images": self.images,
            "prevalence": self.prevalence,
            "faithful": self.faithful,
            "sentence": self.sentence,
        }


def compare(
    hot: Floats, random: Floats, common: Floats, labels: NDArray, resamples: int = 2000, seed: int = 0
) -> Deletion:
    """Deletion curves of a map against those of both controls, image by image.

    Args:
        hot: (N, len(FRACTIONS)), confidence in each image's verdict as its hottest places are hidden.
        random: (N, shifts, len(FRACTIONS)), as the same pattern is hidden at random places.
        common: (N, len(FRACTIONS)), as the places that are hot on average are hidden.
        labels: (N,), 0 or 1: images of each class are resampled apart.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no image.
    """
    if not len(hot):
        raise ValueError("expected the curves of at least one image, found none")
    of_hot, of_random, of_common = (
        np.asarray(np.trapezoid(curves, FRACTIONS, axis=1)) for curves in (hot, random.mean(axis=1), common)
    )
    labels = np.asarray(labels)
    return Deletion(
        fractions=FRACTIONS,
        hot=hot.mean(axis=0),
        random=random.mean(axis=(0, 1)),
        common=common.mean(axis=0),
        auc_hot=float(of_hot.mean()),
        auc_random=float(of_random.mean()),
        auc_common=float(of_common.mean()),
        difference=float((of_random - of_hot).mean()),
        interval=_interval(of_random - of_hot, labels, resamples, seed),
        difference_common=float((of_common - of_hot).mean()),
        interval_common=_interval(of_common - of_hot, labels, resamples, seed),
        images=len(hot),
        prevalence=float(np.mean(labels)),
    )


def _taken(interval: tuple[float, float] | None) -> str:
    """How much hiding what is hot takes, compared with something else, as far as the interval shows."""
    if interval is not None and interval[0] > LEAST:
        return "more"
    if interval is not None and interval[1] < -LEAST:
        return "less"
    return "perhaps hardly more, or no more,"


def _told(difference: float, interval: tuple[float, float]) -> str:
    return f"{difference:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


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
