"""Where the marks of the pages' charts stand, in units of an inline SVG; `templates/charts.html` draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deepfake.evaluation.metrics import BINS
from deepfake.reporting.pages import Figure, span

# A line chart's frame, in an SVG of 360 x 236, and a row of a table's: the template draws at these numbers.
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 12, 200
ROW = (6, 144)  # of 150

_TEXT = 28  # width of a tick's text
_DOTS = 60  # a curve of more points is a line alone: dots that touch tell nothing
_WIDEST = 1e300  # of an axis: beyond it ticks overflow


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: for the key, and for what is told of a point.
        kind: its class in the style, which decides colour and dashes.
        x, y: floats; a gap where y is NaN.
        intervals: ends of y's 95 % intervals as (low, high) for each point, or nothing.
    """

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float]] = ()


def line_chart(
    title: str,
    across: str,
    curves: Sequence[Curve],
    level: tuple[float, str] | None = None,
    marked: tuple[float, str] | None = None,
    whole: bool = False,
    logarithmic: bool = False,
) -> dict[str, Any]:
    """Curves on common axes.

    Args:
        title: what the y axis tells.
        across: what the x axis tells.
        curves: at least one point of them is finite.
        level: a horizontal line and its name.
        marked: a vertical line and its name.
        whole: x counts something; no tick lies between.
        logarithmic: x is, with ticks at the first curve's points.

    Raises:
        ValueError: there is no point at all, or none above 0 on a logarithmic axis, or figures are too large to be
            parted into ticks.
    """
    if logarithmic:
        curves = [replace(curve, x=[math.log(x) for x in curve.x]) for curve in curves]
    points = [(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    if not points:
        raise ValueError(f"{title}: no finite figure")
    ends = [end for curve in curves for interval in curve.intervals for end in interval if math.isfinite(end)]
    heights = [*(y for _, y in points), *ends, *([level[0]] if level else [])]
    low, high = _widened(min(heights), max(heights))
    places = [x for curve in curves for x in curve.x if math.isfinite(x)]
    first, last = _widened(min(places), max(places), 0.5 if whole else 0.0)
    if not (0 < last - first < _WIDEST and 0 < high - low < _WIDEST):
        raise ValueError(f"{title}: figures too large to be drawn")

    def shown(x: float) -> str:
        return f"{math.exp(x) if logarithmic else x:g}"

    def x_of(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - first) / (last - first), 1)

    def y_of(y: float) -> float:
        return round(BOTTOM + (TOP - BOTTOM) * (y - low) / (high - low), 1)

    drawn = []
    for curve in curves:
        told = list(zip(curve.x, curve.y, curve.intervals or [(math.nan, math.nan)] * len(curve.x), strict=True))
        there = [(x, y, ends) for x, y, ends in told if math.isfinite(y)]
        drawn.append(
            {
                "name": curve.name,
                "kind": curve.kind,
                "path": _path([(x_of(x), y_of(y)) if math.isfinite(y) else None for x, y, _ in told]),
                "whiskers": [
                    (x_of(x), y_of(ends[0]), y_of(ends[1])) for x, _, ends in there if all(map(math.isfinite, ends))
                ],
                "dots": [
                    (
                        x_of(x),
                        y_of(y),
                        f"{curve.name}, {across} {shown(x)}: {y:.3f} {span(Figure(y, *ends))}".rstrip(),
                    )
                    for x, y, ends in (there if len(there) <= _DOTS else [])
                ],
            }
        )
    ticks = curves[0].x if logarithmic else _ticks(first, last, 8, whole)
    return {
        "title": title,
        "across": across,
        "curves": drawn,
        "x_ticks": [(x_of(x), shown(x)) for x in _apart(ticks, x_of)],
        "y_ticks": [(y_of(tick), f"{tick:g}") for tick in _ticks(low, high, 6)],
        "level": level and {"y": y_of(level[0]), "name": level[1]},
        "marked": marked and first <= marked[0] <= last and {"x": x_of(marked[0]), "name": marked[1]},
    }


def reliability_chart(title: str, labels: NDArray, p: NDArray) -> dict[str, Any]:
    """Of each of 15 equal bins of P(fake), the share of fakes, the mean P(fake) and how many images it holds.

    Args:
        title: of the chart.
        labels: shape (N,), 0 or 1.
        p: shape (N,), P(fake) in [0, 1].
    """
    bins = np.digitize(p, np.arange(1, BINS) / BINS)
    counts = np.bincount(bins, minlength=BINS)
    fakes, sums = np.bincount(bins, labels, BINS), np.bincount(bins, p, BINS)
    wide, high = (RIGHT - LEFT) / BINS, BOTTOM - TOP
    rows = []
    for number in np.flatnonzero(counts):
        count, share, mean = int(counts[number]), fakes[number] / counts[number], sums[number] / counts[number]
        rows.append(
            {
                "x": round(LEFT + wide * number, 1),
                "width": round(wide - 1, 1),
                "y": round(BOTTOM - high * share, 1),
                "height": round(high * share, 1),
                "mean": round(BOTTOM - high * mean, 1),
                # On a root scale, as the few images in the middle of a certain network would vanish.
                "depth": round(26 * math.sqrt(count / counts.max()), 1),
                "told": f"P(fake) {number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count:,} images, "
                f"{100 * share:.1f} % fake, mean P(fake) {mean:.3f}",
            }
        )
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    return {
        "title": title,
        "bins": rows,
        "x_ticks": [(round(LEFT + (RIGHT - LEFT) * tick, 1), f"{tick:g}") for tick in ticks],
        "y_ticks": [(round(BOTTOM - high * tick, 1), f"{tick:g}") for tick in ticks],
    }


@dataclass(frozen=True)
class Scale:
    """The common axis of the small charts in a table's column.

    Attributes:
        low, high: its ends.
        level: where a line stands to compare with, NaN for none.
    """

    low: float
    high: float
    level: float = math.nan

    @classmethod
    def of(cls, figures: Sequence[Figure], level: float = math.nan, least: float = 0, most: float = 1) -> "Scale":
        """Out to the next twentieth beyond every figure, interval and the level, within `least` and `most`."""
        found = [end for figure in figures for end in figure if math.isfinite(end)]
        found += [level] if math.isfinite(level) else []
        if not found:
            return cls(least, most)
        # The rounding keeps 0.85 / 0.05 = 16.999... from becoming 16.
        low = max(math.floor(round(20 * min(found), 6)) / 20, least)
        high = min(math.ceil(round(20 * max(found), 6)) / 20, most)
        return cls(low, high, level) if high > low else cls(max(low - 0.05, least), min(high + 0.05, most), level)

    def mark(self, figure: Figure) -> dict[str, Any] | None:
        """Places of the figure, its interval and the level in a row; None for an undefined figure."""
        if not math.isfinite(figure.value):
            return None
        known = math.isfinite(figure.low) and math.isfinite(figure.high)
        return {
            "x": self._place(figure.value),
            "whisker": (self._place(figure.low), self._place(figure.high)) if known else None,
            "level": self._place(self.level) if math.isfinite(self.level) else None,
            "told": f"{figure.value:.3f} {span(figure)}".rstrip(),
        }

    @property
    def told(self) -> str:
        return f"from {self.low:g} to {self.high:g}"

    def _place(self, value: float) -> float:
        start, end = ROW
        inside = min(max(value, self.low), self.high)
        return round(start + (end - start) * (inside - self.low) / (self.high - self.low), 1)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines from point to point, interrupted where there is none."""
    steps, before = [], None
    for point in points:
        if point:
            steps.append(f"{'L' if before else 'M'}{point[0]} {point[1]}")
        before = point
    return "".join(steps)


def _widened(low: float, high: float, margin: float = 0.0) -> tuple[float, float]:
    """With a margin; where both ends are one, so that there is an axis all the same."""
    if margin == 0 and high == low:
        margin = max(0.05, 0.05 * abs(low))
    elif margin == 0:
        margin = 0.04 * (high - low)
    return low - margin, high + margin


def _apart(places: Sequence[float], x_of: Callable[[float], float]) -> list[float]:
    """Those of some places, ascending, whose texts do not touch."""
    kept: list[float] = []
    for place in places:
        if not kept or x_of(place) - x_of(kept[-1]) >= _TEXT:
            kept.append(place)
    return kept


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    steps = MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [round(float(step), 9) for step in steps if low <= step <= high]
