"""The pictures of an explanation: what hiding places did, and what filters did. See `figures` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from deepfake.analysis.deletion import Deletion
from deepfake.analysis.frequencies import Curve, Interval
from deepfake.reporting.evaluation_figures import _COLOURS, _figure, _key_below, _line, _plain
from deepfake.reporting.figures import FAINT, INK, RULE, _title


def deletion_figure(found: Deletion, hidden: str, of: str) -> Figure:
    """Mean confidence in the verdict as places are hidden: the hottest first, and both controls.

    Args:
        found: the curves.
        hidden: what is seen of a hidden place.
        of: how many images, which map, of which run; ends the title.
    """
    figure = _figure(4.6)
    axes = figure.add_subplot()
    x = 100 * np.asarray(found.fractions)
    curves = (
        (found.random, found.auc_random, "the same pattern elsewhere", FAINT, "s", "--"),
        (found.common, found.auc_common, "the hottest on average first", _COLOURS[1], "^", "-."),
        (found.hot, found.auc_hot, "the hottest first", _COLOURS[0], "o", "-"),
    )
    for y, area, name, colour, marker, line in curves:
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": line,
            "linewidth": 2,
            "markersize": 5,
        }
        axes.plot(x, y, label=f"{name}: area {area:.3f}", **style)
    axes.fill_between(x, found.hot, found.random, color=RULE, zorder=0)
    _plain(axes)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set(xlim=(0, 100), ylim=(0, 1.02))
    axes.set_xlabel(f"places hidden, % (what is seen of them: {hidden})", size=10, color=FAINT)
    axes.set_ylabel("confidence in the verdict", size=10, color=FAINT)
    told = [
        f"{control} {difference:+.3f} " + ("too few images" if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]")
        for control, difference, ends in (
            ("elsewhere", found.difference, found.interval),
            ("on average", found.difference_common, found.interval_common),
        )
    ]
    verdict = found.sentence.split(":")[0]
    axes.set_title(f"{verdict}: difference to {', '.join(told)}", size=10.5, color=INK, loc="left")
    _key_below(figure, axes.get_legend_handles_labels()[0])
    _title(figure, _line(f"Is the map faithful? {of}", 300), width=80)
    return figure


def frequencies_figure(
    cutoffs: Sequence[float], whole: float, interval: Interval, curves: Mapping[str, Curve], of: str
) -> Figure:
    """Images without their fine detail, on the left, and without their coarse detail, on the right.

    Above AUROC, below how far P(fake) moves on average.

    Args:
        cutoffs: ascending, in cycles a pixel.
        whole, interval: AUROC of the unfiltered images.
        curves: low_pass and high_pass of the network, probe_low and probe_high of the spectrum alone where there are.
        of: how many images, of which run; ends the title.
    """
    figure = _figure(5.8)
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    ends = [end for curve in curves.values() for pair in curve.interval for end in pair if math.isfinite(end)]
    for column, (network, probe, title) in enumerate(
        (
            ("low_pass", "probe_low", "low-pass: only what is coarser is left"),
            ("high_pass", "probe_high", "high-pass: only what is finer is left"),
        )
    ):
        top, bottom = grid[:, column]
        if math.isfinite(whole):
            top.axhspan(*interval, color=RULE, zorder=0)
            top.axhline(
                whole, color=_COLOURS[0], linewidth=1.2, linestyle="--", label="the network, unfiltered, 95 %"
            )
        top.axhline(0.5, color=FAINT, linewidth=1, linestyle=":", label="chance")
        _drawn(top, cutoffs, curves[network], _COLOURS[0], "o", "the network, filtered images")
        if probe in curves:
            _drawn(top, cutoffs, curves[probe], _COLOURS[1], "s", "linear probe on the spectrum's same bands")
        bottom.plot(cutoffs, curves[network].change, color=_COLOURS[0], marker="o", markersize=4)
        for axes in (top, bottom):
            _plain(axes)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
        top.set_title(title, size=10.5, color=INK, loc="left")
        top.set_ylim(min([0.5, *ends]) - 0.03, 1.03)
        bottom.set_ylim(0, None)
        bottom.set_xscale("log")
        bottom.xaxis.set_minor_locator(NullLocator())
        bottom.set_xticks(cutoffs, [f"{cutoff:.2g}".lstrip("0") for cutoff in cutoffs])
        bottom.set_xlabel("cutoff, cycles a pixel", size=10, color=FAINT)
    grid[0, 0].set_ylabel("AUROC", size=10, color=FAINT)
    grid[1, 0].set_ylabel("mean change\nof P(fake)", size=10, color=FAINT)
    _key_below(figure, grid[0, 0].get_legend_handles_labels()[0])
    _title(figure, _line(f"Which frequencies decide? {of}", 300), width=80)
    return figure


def _drawn(axes: Axes, cutoffs: Sequence[float], curve: Curve, colour: str, marker: str, name: str) -> None:
    low, high = np.asarray(curve.interval).T
    axes.vlines(cutoffs, low, high, color=colour, linewidth=1.2, alpha=0.6)
    axes.plot(cutoffs, curve.auroc, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name)
