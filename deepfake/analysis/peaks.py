"""Where a mean spectrum has what no real source has: single frequencies that stand out, and copies of the low ones.

A leaf: plain functions on mean spectra. What upsampling leaves (Odena et al., 2016; Zhang et al., 2019) is periodic,
so it lies at few, exact frequencies. Three things are no trace of a generator, and each is asked for:

- a spectrum that falls, and the cross that edges of images leave: a peak must stand out of its surroundings, those
  along its row and along its column too, so that no ridge is a peak;
- what cameras and files leave: it must stand out further than in every real source; and (1/2, 1/2) alone, where the
  mosaic in front of a sensor leaves its checkerboard, weaker or stronger by camera, is none;
- one odd picture, such as a striped shirt: it must stand out in the mean of the decibels too, which no single image
  rules.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, median_filter

from deepfake.analysis.spectra import Floats, MeanSpectrum, decibel

# Decibels above every real source. Of four collections of real faces, each held against the others, none stands out
# by more than 3.5; what the simulated generators leave on purpose starts at 13.
PEAK = 6.0
# The same for copies, which are medians over hundreds of frequencies: at most .2 for real faces and cameras, and 3 or
# more where pixels are repeated.
REPLICA = 2.0
_TYPICAL = 0.4  # share of a peak's height that the mean of the decibels must show
_NOISE = 6.0  # robust standard deviations over all frequencies that a peak must reach, for means of few images
_AROUND = 15  # frequencies across which surroundings are taken, odd
_LOWEST = 8  # cycles an image; below, the spectrum is too steep for surroundings
_LONGEST = 16  # pixels, the longest period that is named by its number

# Of copies, in cycles a pixel: how far around the point they lie, and where their surroundings begin and end.
_NEAR, _FROM, _TO = 0.07, 0.11, 0.2


class Relief(NamedTuple):
    """How far each frequency of a mean spectrum stands out of its surroundings, in decibels."""

    spectrum: MeanSpectrum
    height: Floats  # (N, N), of the mean power
    typical: Floats  # (N, N), of the mean of the images' decibels
    noise: float  # robust standard deviation of the height over all frequencies


@dataclass(frozen=True)
class Peak:
    """One frequency, and with it its mirror image through zero."""

    down: float  # cycles a pixel, 0 to 1/2
    across: float  # cycles a pixel, -1/2 to 1/2
    above: float  # decibels that it stands out further than in any real source
    low: float  # 95 % interval of that over the images, whose surroundings are taken for exact
    high: float
    height: float  # decibels that it stands out of its surroundings
    period: int | None  # smallest whole number of pixels after which it repeats in both directions, None above 16


@dataclass(frozen=True)
class Replica:
    """Copies of the low frequencies on both sides of a point on an axis."""

    down: float  # cycles a pixel, of the point
    across: float
    above: float  # decibels, against the real source that comes closest
    period: int  # pixels


def relief(spectrum: MeanSpectrum) -> Relief:
    """See `Relief`; the surroundings are the highest of three medians: all around, along the row, along the column.

    A spectrum is periodic, so what lies beyond an edge is on the opposite side.
    """
    height = _standing_out(decibel(spectrum.power))
    away = height[_away_from_zero(spectrum.size)]
    noise = 1.4826 * float(np.median(np.abs(away - np.median(away))))
    return Relief(spectrum, height, _standing_out(spectrum.decibels), noise)


def find_peaks(suspect: Relief, reals: Sequence[Relief]) -> list[Peak]:
    """Frequencies at which a source stands out as no real source does, the highest first.

    (1/2, 1/2) counts only beside another of period 2, see above.

    Args:
        suspect: of the source.
        reals: of every real source, of the same size; a frequency next to one of theirs counts as theirs. With none
            there are no peaks to be told from a camera's.

    Raises:
        ValueError: sizes differ.
    """
    size = suspect.spectrum.size
    if any(real.spectrum.size != size for real in reals):
        raise ValueError(f"expected spectra of one size, found {[size, *(real.spectrum.size for real in reals)]}")
    if not reals:
        return []
    theirs = np.stack([maximum_filter(real.height, 3, mode="wrap") for real in reals]).clip(0)
    nearest = theirs.argmax(axis=0)
    above = suspect.height - theirs.max(axis=0)
    least = max(PEAK, _NOISE * max(suspect.noise, *(real.noise for real in reals)))
    there = (
        (above >= least)
        & (suspect.typical >= _TYPICAL * suspect.height)
        & (suspect.height == maximum_filter(suspect.height, 5, mode="wrap"))
        & _away_from_zero(size)
    )
    found = {}
    for row, column in np.argwhere(there):
        down, across = _frequency(int(row), int(column), size)
        margin = 1.96 * math.hypot(
            _error(suspect.spectrum, row, column), _error(reals[nearest[row, column]].spectrum, row, column)
        )
        gap = float(above[row, column])
        found[down, across] = Peak(
            down / size, across / size, gap, gap - margin, gap + margin,
            float(suspect.height[row, column]), _period(down, across, size),
        )  # fmt: skip
    if [peak.period for peak in found.values()].count(2) == 1:
        found.pop((size // 2, size // 2), None)
    return sorted(found.values(), key=lambda peak: -peak.above)


def height_at(suspect: Relief, reals: Sequence[Relief], down: float, across: float) -> float:
    """Decibels that a source stands out further than any real source at a frequency, at most one step beside it.

    Args:
        suspect, reals: as in `find_peaks`, with at least one real source.
        down, across: cycles a pixel.
    """
    size = suspect.spectrum.size
    row, column = ((round(f * size) + size // 2) % size for f in (down, across))
    ours, *theirs = (maximum_filter(each.height, 3, mode="wrap")[row, column] for each in (suspect, *reals))
    return float(ours - max(0.0, *theirs))


def find_replicas(suspect: MeanSpectrum, reals: Sequence[MeanSpectrum]) -> list[Replica]:
    """Copies of the low frequencies, as repeating each pixel leaves them, the highest first.

    Around a point (0, 1/p) the difference in decibels to a real source must lie above that at the same distance from
    zero in other directions, and above that along the same axis before the copies begin: a sharper source is higher
    everywhere, and one with harder edges all along the axis. On the lines through the point themselves copies are
    zero, and single peaks lie there: they are left out. Medians throughout.

    Args:
        suspect: of the source.
        reals: of every real source, of the same size.
    """
    found = []
    for period in (2, 4):
        for down, across in ((0.0, 1 / period), (1 / period, 0.0)):
            above = min((_copied(suspect, real, down, across) for real in reals), default=-math.inf)
            if above >= REPLICA:
                found.append(Replica(down, across, above, period))
    return sorted(found, key=lambda replica: -replica.above)


def told(peaks: Sequence[Peak], replicas: Sequence[Replica], jpeg: float) -> list[str]:
    """What the finds mean, a sentence for each period, the highest first.

    Args:
        peaks, replicas: of one source.
        jpeg: share of its images that are JPEG files, whose blocks of 8 x 8 pixels leave traces of their own.
    """
    sentences = []
    families: dict[int | None, list[Peak]] = {}
    for peak in peaks:
        families.setdefault(peak.period, []).append(peak)
    beside = []
    for period, family in families.items():
        if period is None or not any(_fundamental(peak, period) for peak in family):
            beside += family
        else:
            sentences.append(f"{_measured(f'period {period} px', family)}: {_meaning(period, jpeg)}")
    if beside:
        what = "further peaks" if sentences else "peaks"
        sentences.append(f"{_measured(what, beside)}: {_products(beside, jpeg, bool(sentences))}")
    for replica in replicas:
        place = _places([replica])
        sentences.append(
            f"copies of the low frequencies beside {place}, {replica.above:.0f} dB above the real sources: nearest "
            f"upsampling by {replica.period}, or another that smooths as little"
        )
    return sentences


# --------------------------------------------------------------------------------------------------------- statistics


def _standing_out(decibels: Floats) -> Floats:
    around = ((_AROUND, _AROUND), (1, _AROUND), (_AROUND, 1))
    return decibels - np.maximum.reduce([median_filter(decibels, size=size, mode="wrap") for size in around])


def _away_from_zero(size: int) -> NDArray[np.bool_]:
    steps = np.arange(size) - size // 2
    return np.hypot(steps[:, np.newaxis], steps) >= min(_LOWEST, size // 4)


def _error(spectrum: MeanSpectrum, row: int, column: int) -> float:
    """Standard error of the mean power there, in decibels, to first order."""
    power, std = spectrum.power[row, column], spectrum.power_std[row, column]
    return float(10 / math.log(10) * std / (power * math.sqrt(spectrum.images))) if power > 0 else 0.0


def _copied(suspect: MeanSpectrum, real: MeanSpectrum, down: float, across: float) -> float:
    difference = decibel(suspect.power) - decibel(real.power)
    size = suspect.size
    steps = (np.arange(size) - size // 2) / size
    y, x = np.abs(steps)[:, np.newaxis], np.abs(steps)
    along, aside = (x, y) if across else (y, x)
    point = max(down, across)
    off_lines = (aside > 1.5 / size) & (np.abs(along - point) > 1.5 / size)
    distance = np.hypot(along - point, aside)
    copies = (distance < _NEAR) & off_lines
    far = np.hypot(y, x)
    elsewhere = (np.abs(far - point + _NEAR / 2) < _NEAR / 2) & (np.minimum(y, x) > _TO / 2)
    before = (point - along > _FROM) & (point - along < _TO) & (aside < _NEAR) & off_lines
    if not (copies.any() and elsewhere.any() and before.any()):
        return -math.inf
    surroundings = max(float(np.median(difference[where])) for where in (elsewhere, before))
    return float(np.median(difference[copies])) - surroundings


def _frequency(row: int, column: int, size: int) -> tuple[int, int]:
    """Cycles an image (down, across): of the two that are each other's mirror image, the one that points down."""
    down, across = (size // 2 if place == 0 and size % 2 == 0 else place - size // 2 for place in (row, column))
    edge_down, edge_across = (2 * place == size for place in (down, across))
    if down < 0:
        down, across = -down, across if edge_across else -across
    if across < 0 and (down == 0 or edge_down):
        across = -across
    return down, across


def _period(down: int, across: int, size: int) -> int | None:
    """Smallest whole number of pixels p with both frequencies within half a step of a multiple of 1/p."""
    for period in range(2, _LONGEST + 1):
        if all(abs(round(cycles * period / size) * size / period - cycles) <= 0.5 for cycles in (down, across)):
            return period
    return None


# -------------------------------------------------------------------------------------------------------------- words


def _fundamental(peak: Peak, period: int) -> bool:
    """Whether it is (0, 1/p), (1/p, 0) or (1/p, 1/p), which what repeats after p pixels has, and not a multiple."""
    return max(peak.down, abs(peak.across)) < 1.5 / period


def _meaning(period: int, jpeg: float) -> str:
    of_jpeg = f" ({100 * jpeg:.0f} % of its images are JPEG files)" if jpeg else ""
    match period:
        case 2:
            return "upsampling by 2, transposed, by pixel shuffle or nearest"
        case 8:
            return f"the blocks of JPEG{of_jpeg}, or upsampling by 8"
        case 3 | 4 | 16:
            return f"nearest or transposed upsampling by {period}"
    return "a pattern that repeats, of no common upsampling"


def _products(peaks: Sequence[Peak], jpeg: float, others: bool) -> str:
    if jpeg and all(peak.period is not None and 8 % peak.period == 0 for peak in peaks):
        with_others = "what the periods above and " if others else "what "
        return f"{with_others}the blocks of JPEG, 8 px wide, leave ({100 * jpeg:.0f} % of its images are JPEG files)"
    return "a pattern that repeats, or resampling by a ratio that is not whole"


def _measured(what: str, peaks: Sequence[Peak]) -> str:
    return f"{what}, {max(peak.above for peak in peaks):.0f} dB above the real sources at {_places(peaks)}"


def _places(found: Iterable[Peak | Replica], most: int = 7) -> str:
    places = [f"({_share(each.down)}, {_share(each.across)})" for each in found]
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + more


def _share(frequency: float) -> str:
    """As a fraction where it is one of a small number of pixels."""
    for period in (1, *range(2, 9), _LONGEST):
        if abs(frequency * period - round(frequency * period)) < 1e-9:
            cycles = round(frequency * period)
            return f"{cycles}/{period}" if cycles and period > 1 else f"{cycles}"
    return f"{frequency:.3f}"
