"""Which spatial frequencies decide: images without their fine, or without their coarse detail.

Frequencies are in cycles a pixel of the image that the network is shown: .5 is black and white in turn, each a pixel
wide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

Floats = NDArray[np.float64]
Interval = tuple[float, float]

ORDER = 4  # of the filter: an octave beyond the cutoff 1/257 is left


def low_pass(size: int, cutoff: float) -> NDArray[np.float32]:
    """Gain of a radial Butterworth filter, 1 / (1 + (f / cutoff)^(2 * 4)) (Gonzalez and Woods, 2008, section 4.8).

    It is 1 at frequency 0, so that the mean stays, and 1/2 at the cutoff. Its edge is soft because a sharp one (an
    ideal filter) leaves rings beside every edge of a picture, at just the cutoff.

    Args:
        size: side of the image in pixels.
        cutoff: in cycles a pixel, above 0.

    Returns:
        float32 (size, size), for the coefficients of a two-dimensional cosine transform (DCT-II): entry [v, u] is for
        frequency hypot(v, u) / (2 size).
    """
    steps = np.arange(size) / (2 * size)
    frequency = np.hypot(steps[:, np.newaxis], steps)
    return (1 / (1 + (frequency / cutoff) ** (2 * ORDER))).astype(np.float32)


def high_pass(size: int, cutoff: float) -> NDArray[np.float32]:
    """1 - `low_pass`, and 1 at frequency 0: the two parts of an image add up to it and its mean."""
    gain = 1 - low_pass(size, cutoff)
    gain[0, 0] = 1
    return gain


def spectrum_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine transform of each plane, float32 (C, S, S).

    It takes an image as continued by its mirror image. The Fourier transform would take it as repeated, and a filter
    would smear the jump from each edge to the opposite one over both.
    """
    return dctn(image, axes=(1, 2), norm="ortho")


def filtered(spectrum: NDArray[np.float32], gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image (C, S, S) of a `spectrum_of` times a gain (S, S). It may leave the range of the original."""
    return idctn(spectrum * gain, axes=(1, 2), norm="ortho")


@dataclass(frozen=True)
class Curve:
    """AUROC at each cutoff, with 95 % intervals; NaN where undefined."""

    auroc: Sequence[float]
    interval: Sequence[Interval]
    change: Sequence[float] = ()
    """Mean of |P(fake) after the filter - P(fake) before|; empty for what has no before."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values by these names, for JSON."""
        told = {"auroc": list(self.auroc), "interval": [list(ends) for ends in self.interval]}
        return told | ({"change": list(self.change)} if self.change else {})


def half_cutoff(
    cutoffs: Sequence[float], auroc: Sequence[float], whole: float, kept: Literal["low", "high"]
) -> float | None:
    """The cutoff at which half of the lead over chance, `whole` - .5, is gone, coming from the mildest filter.

    Between two cutoffs AUROC is taken for a straight line over the logarithm.

    Args:
        cutoffs: ascending.
        auroc: at each of them.
        whole: AUROC of the unfiltered images.
        kept: which frequencies the filter keeps, those below or those above the cutoff.

    Returns:
        None where it is gone at the mildest already, and where it is not gone at the strongest.
    """
    level = (whole + 0.5) / 2
    pairs = list(zip(cutoffs, auroc, strict=True))
    mildest_first = pairs[::-1] if kept == "low" else pairs
    if mildest_first[0][1] <= level:
        return None  # though it may come back at a stronger one, by chance
    for (milder, above), (stronger, below) in itertools.pairwise(mildest_first):
        if above > level >= below:
            part = (above - level) / (above - below)
            return math.exp((1 - part) * math.log(milder) + part * math.log(stronger))
    return None


def sentence(cutoffs: Sequence[float], whole: float, interval: Interval, curves: Mapping[str, Curve]) -> str:
    """What the curves of the network say, and where the spectrum alone holds more than the network takes from it.

    Args:
        cutoffs: ascending, in cycles a pixel.
        whole: AUROC of the unfiltered images.
        interval: its own.
        curves: low_pass and high_pass of the network; probe_low and probe_high of the spectrum where there are any.
    """
    if not math.isfinite(whole):
        return "Not told: AUROC is undefined on images of one class."
    told = f"AUROC {whole:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] on the unfiltered images"
    if interval[0] <= 0.5:
        return f"Not told: {told}, no better than chance."
    low = half_cutoff(cutoffs, curves["low_pass"].auroc, whole, "low")
    high = half_cutoff(cutoffs, curves["high_pass"].auroc, whole, "high")
    coarse, fine = (
        _half(what, at, cutoffs, mildest, curves[name].auroc, whole)
        for what, at, mildest, name in (("coarser", low, -1, "low_pass"), ("finer", high, 0, "high_pass"))
    )
    sentences = [f"Of the lead over chance, {told}, {coarse}, {fine}."]
    if low is not None and high is not None:
        if low < high:
            sentences.append("Either alone is enough for half: no narrow band decides.")
        else:
            sentences.append(f"What decides lies mostly between {high:.2g} and {low:.2g} cycles a pixel.")
    if "probe_low" in curves:
        more = [
            _more(what, cutoffs, curves[probe], curves[network])
            for what, probe, network in (
                ("coarser", "probe_low", "low_pass"),
                ("finer", "probe_high", "high_pass"),
            )
        ]
        sentences += [each for each in more if each] or [
            "Nowhere is a linear probe on the spectrum alone shown to tell more than the network."
        ]
    return " ".join(sentences)


def _half(
    what: str, at: float | None, cutoffs: Sequence[float], mildest: int, auroc: Sequence[float], whole: float
) -> str:
    if at is not None:
        return f"half is left by what is {what} than {at:.2g} cycles a pixel"
    if auroc[mildest] <= (whole + 0.5) / 2:
        return f"less than half is left by what is {what} than {cutoffs[mildest]:.2g} cycles a pixel"
    return f"more than half is left by what is {what} than {cutoffs[-1 - mildest]:.2g} cycles a pixel"


def _more(what: str, cutoffs: Sequence[float], probe: Curve, network: Curve) -> str:
    """Where the probe is furthest above the network, if their intervals lie apart; else nothing."""
    above = [
        (theirs - ours, number)
        for number, (theirs, ours) in enumerate(zip(probe.auroc, network.auroc, strict=True))
        if probe.interval[number][0] > network.interval[number][1]  # never of NaN
    ]
    if not above:
        return ""
    _, number = max(above)
    theirs, ours = (
        f"{curve.auroc[number]:.3f} [{curve.interval[number][0]:.3f}, {curve.interval[number][1]:.3f}]"
        for curve in (probe, network)
    )
    return (
        f"Of what is {what} than {cutoffs[number]:.2g} cycles a pixel, a linear probe on the spectrum alone tells "
        f"more, {theirs}, than the network on such images, {ours}."
    )
