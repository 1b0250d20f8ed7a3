"""The pictures of an evaluation: how well fakes are told from reals, at which thresholds, and where it goes wrong.

Like `figures`, plain functions from arrays and tables to a `Figure`; draw them to a file with `figures.save`. Labels
are 0 (real) and 1 (fake), a probability is always P(fake). Every name may come from a stranger's folder: texts are
taken literally (`$` is a dollar), made printable and shortened to the room there is.
"""

from __future__ import annotations

import itertools
import math
import textwrap
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from sklearn.metrics import precision_recall_curve, roc_curve

from deepfake.evaluation.metrics import BINS, scores
from deepfake.reporting.figures import BAND, FAINT, FAKE, INK, REAL, RULE, _inches, _title, shorten

Curves = Mapping[str, tuple[NDArray, NDArray]]
Points = Mapping[str, tuple[float, float]]

# Out of the colour-blind safe scheme "muted" of Paul Tol (2021), neither blue nor orange, which mean real and fake.
# Each colour comes solid, dashed and dotted: 18 curves can be told apart.
_COLOURS = ("#882255", "#44AA99", "#999933", "#AA4499", "#117733", "#88CCEE")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)))
_MARKERS = "oDs^vPX"
_WIDTH = 9.0  # inches; readable at 800 pixels

_RATE_TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)


def roc_figure(curves: Curves, of: str, points: Points | None = None) -> Figure:
    """Receiver operating characteristic: the share of fakes found against the share of reals called fake.

    Args:
        curves: name -> (labels, P(fake)), each of shape (N,). The first, drawn strongest, holds all images and
            gives the title its numbers; the others are usually one fake source each against all reals. Up to 19
            curves are told apart. A curve of one class has no line, and the key says so.
        of: what was judged, by which run and epoch; ends the title.
        points: name of a threshold -> (FPR, TPR) on the images of the first curve; NaN where undefined. The key says
            that they were chosen on validation.

    Raises:
        ValueError: no curves; labels or probabilities that `metrics.scores` refuses; a rate outside [0, 1].
    """
    figure, axes, beside = _square("ROC", curves, of, points)
    _percent_axes(axes, "FPR: reals called fake", "TPR: fakes called fake")
    key: list[Line2D] = []
    for name, labels, p, style in _styled(curves):
        facts = scores(labels, p)
        fpr, tpr = _roc(labels, p)
        key += axes.plot(fpr, tpr, label=_entry(facts["auroc"], name, facts), **style)
    key += axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="chance: 0.500")
    key += _marked(axes, _rates(points), "FPR, TPR")
    _key_beside(beside, key, "AUROC")
    return figure


def precision_recall_figure(curves: Curves, of: str, points: Points | None = None) -> Figure:
    """Precision against recall, as steps, so that the area under a curve is its average precision.

    Chance is a curve's share of fakes, its precision when everything is called fake: a dotted line for the first
    curve, the end at recall 1 for the others. Curves with different shares cannot be compared by AP alone.

    Args:
        curves, of: as in `roc_figure`.
        points: as in `roc_figure`. Precision follows from (FPR, TPR) and the first curve's share of fakes, and is
            undefined where nothing is called fake.

    Raises:
        ValueError: as `roc_figure`.
    """
    figure, axes, beside = _square("Precision and recall", curves, of, points)
    _percent_axes(axes, "recall: fakes called fake", "precision: fakes among those called fake")
    key: list[Line2D] = []
    for name, labels, p, style in _styled(curves):
        facts = scores(labels, p)
        recall, precision = np.empty((2, 0))
        if np.isfinite(facts["ap"]):
            precision, recall, _ = precision_recall_curve(labels, p)
            precision[-1] = precision[-2]  # scikit-learn ends in a made-up point of precision 1
        key += axes.plot(recall, precision, drawstyle="steps-post", label=_entry(facts["ap"], name, facts), **style)
    prevalence = scores(*next(iter(curves.values())))["prevalence"]
    chance = f"chance: {prevalence:.3f} for the first; each curve ends in its own"
    key.append(axes.axhline(prevalence, color=FAINT, linewidth=1, linestyle=":", label=chance))
    found = {name: (tpr, _precision(fpr, tpr, prevalence)) for name, (fpr, tpr) in _rates(points).items()}
    key += _marked(axes, found, "recall, precision")
    _key_beside(beside, key, "AP")
    return figure


def det_figure(curves: Curves, of: str, points: Points | None = None) -> Figure:
    """Detection error trade-off (Martin et al., 1997): both error rates, both axes in normal deviates.

    Scores of two normal distributions of equal variance give a straight line. A rate below 0.1 % or above 99.9 %
    lies outside the picture; a threshold there is marked at the edge.

    Args:
        curves, of, points: as in `roc_figure`.

    Raises:
        ValueError: as `roc_figure`.
    """
    figure, axes, beside = _square("DET", curves, of, points)
    for set_scale in (axes.set_xscale, axes.set_yscale):
        set_scale("function", functions=(_deviate, ndtr))
    _percent_axes(axes, "FPR: reals called fake", "FNR: fakes called real", _RATE_TICKS)
    key: list[Line2D] = []
    for name, labels, p, style in _styled(curves):
        facts = scores(labels, p)
        fpr, tpr = _roc(labels, p)
        key += axes.plot(fpr, 1 - tpr, label=_entry(facts["eer"], name, facts), **style)
    ends = np.linspace(_RATE_TICKS[0], _RATE_TICKS[-1], 2)
    key += axes.plot(ends, 1 - ends, color=FAINT, linewidth=1, linestyle=":", label="chance: 0.500")
    key += _marked(axes, {name: (fpr, 1 - tpr) for name, (fpr, tpr) in _rates(points).items()}, "FPR, FNR")
    _key_beside(beside, key, "EER")
    return figure


def reliability_figure(labels: NDArray, before: NDArray, after: NDArray, of: str) -> Figure:
    """Reliability before and after temperature: is P(fake) the share of fakes?

    Above, a bar for each of 15 equal-width bins of P(fake), the last closed, as high as the share of fakes in it, and
    a dash at the mean P(fake). The gaps between the two, weighted by the counts, add up to the expected calibration
    error (ECE) of `metrics.scores`. Below, how many images each bin holds.

    Args:
        labels: shape (N,), 0 or 1.
        before, after: shape (N,), P(fake) without and with temperature.
        of: what was judged, by which run and epoch; ends the title.

    Raises:
        ValueError: labels or probabilities that `metrics.scores` refuses.
    """
    figure = _figure(5.4)
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    edges = np.arange(BINS + 1) / BINS
    for column, (name, p) in enumerate((("before temperature", before), ("after temperature", after))):
        ece = scores(labels, p)["ece"]
        top, bottom = grid[:, column]
        counts, _ = np.histogram(p, edges)
        filled = counts > 0
        weight = np.maximum(counts, 1)
        share = np.histogram(p, edges, weights=np.asarray(labels, float))[0] / weight
        mean = np.histogram(p, edges, weights=np.asarray(p, float))[0] / weight

        left = edges[:-1]
        bars = {"width": 1 / BINS, "align": "edge", "edgecolor": "white"}
        key = [
            top.bar(left[filled], share[filled], color=_COLOURS[1], label="share of fakes", **bars),
            top.hlines(mean[filled], left[filled], edges[1:][filled], color=INK, linewidth=2.5, label="mean P(fake)"),
            *top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="calibrated"),
        ]
        top.set_title(name, size=11, color=INK)
        top.legend(handles=key, title=f"ECE {ece:.3f}", loc="upper left", alignment="left", fontsize=9, frameon=False)
        bottom.bar(left, counts, color=FAINT, **bars)
        for axes in (top, bottom):
            _plain(axes)
            axes.grid(axis="y", color=RULE, linewidth=0.8)
        bottom.set_xlabel("P(fake)", size=10, color=FAINT)
    _root_scale(grid[1, 0])
    grid[1, 0].yaxis.set_major_locator(MaxNLocator(3, integer=True))
    grid[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    grid[0, 0].set(xlim=(0, 1), ylim=(0, 1.02))
    grid[0, 0].set_ylabel("share of fakes", size=10, color=FAINT)
    grid[1, 0].set_ylabel("images\n(root scale)", size=10, color=FAINT)
    _title(figure, _heading("Reliability", labels, before, of), width=80)
    return figure


def score_histograms(
    table: pd.DataFrame,
    of: str,
    thresholds: Mapping[str, float] | None = None,
    uncertain: tuple[float, float] | None = None,
) -> Figure:
    """How P(fake) is spread in every source: one panel each, reals first, 20 bins.

    Bars are shares of the panel's real or fake images. Heights are drawn on a root scale, as the few mistakes of a
    good network would vanish on a linear one.

    Args:
        table: one row per image; columns source (text), label (0 or 1), probability (P(fake)).
        of: what was judged, by which run and epoch; ends the title.
        thresholds: name -> threshold, drawn in every panel.
        uncertain: the band (low, high) in which no answer is given, or None.

    Raises:
        ValueError: labels or probabilities that `metrics.scores` refuses; a threshold or an end of the band is
            outside [0, 1], or the band's ends are in the wrong order.
    """
    heading = _heading("P(fake) by source", table["label"].to_numpy(), table["probability"].to_numpy(), of)
    thresholds = dict(thresholds or {})
    low, high = uncertain or (0.0, 0.0)
    if not all(0 <= limit <= 1 for limit in (*thresholds.values(), low, high)) or low > high:
        raise ValueError(
            f"expected thresholds and the ends of the uncertain band, low first, in [0, 1]; "
            f"found {thresholds} and {uncertain}"
        )
    groups = sorted(
        table.groupby("source", dropna=False), key=lambda group: (group[1]["label"].mean(), str(group[0]))
    )
    figure, panels = _panels(len(groups), height=1.55, x="P(fake)")
    lines = [
        (_fitted(name, 1.3, 9), limit, colour, line)
        for (name, limit), (line, colour) in zip(
            sorted(thresholds.items(), key=lambda named: named[1]),
            itertools.cycle(itertools.product(_LINES, (INK, *_COLOURS[:2]))),
            strict=False,
        )
    ]
    for axes, (source, rows) in zip(panels, groups, strict=True):
        if uncertain:
            axes.axvspan(low, high, color=RULE, zorder=0)
        for label, colour in ((0, REAL), (1, FAKE)):
            p = rows.loc[rows["label"] == label, "probability"].to_numpy(float)
            if p.size:
                axes.hist(p, bins=20, range=(0, 1), weights=np.full(p.size, 1 / p.size), color=colour, alpha=0.75)
        for _, limit, colour, line in lines:
            axes.axvline(limit, color=colour, linestyle=line, linewidth=1.3)
        _plain(axes)
        _root_scale(axes, (0, 1))
        axes.set_yticks([0.01, 0.1, 0.5, 1], ["1 %", "10 %", "50 %", "100 %"])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.set_xlim(0, 1)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        fakes = int(rows["label"].sum())
        _panel_title(axes, f"{_fitted(source, 2.3, 9.5)}\n{_class_counts(len(rows) - fakes, fakes)}")
    figure.supylabel("share of images (root scale)", size=10, color=FAINT)
    key: list[Artist] = [Patch(color=REAL, alpha=0.75, label="real"), Patch(color=FAKE, alpha=0.75, label="fake")]
    if uncertain:
        key.append(Patch(color=RULE, label=f"uncertain: {low:.3g} to {high:.3g}"))
    for name, limit, colour, line in lines:
        key.append(Line2D([], [], color=colour, linestyle=line, label=f"threshold {limit:.3g}: {name}"))
    _key_below(figure, key)
    _title(figure, heading, width=80)
    return figure


def mistakes_sheet(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[Sequence[str]], title: str, columns: int = 4
) -> Figure:
    """Pictures in reading order, each whole in a square, its caption under it.

    Args:
        images: each of shape (H, W, 3), uint8, RGB; sizes may differ. None at all is a sheet that says so.
        captions: for each image the lines of its caption, such as source, P(fake) and truth. A line stays one line:
            what is in it is made printable and shortened to the width of the picture.
        title: what is shown, of how many images, by which run and epoch.
        columns: how many pictures stand side by side, at most.

    Raises:
        ValueError: an image has another shape or type, there is not one caption for each, a caption is a text where
            a sequence of lines belongs, or columns < 1.
    """
    for image in images:
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"images: expected uint8 of shape (H, W, 3), found {image.dtype} of {image.shape}")
    if len(images) != len(captions) or columns < 1 or any(isinstance(caption, str) for caption in captions):
        raise ValueError(
            f"expected the lines of a caption for each image and columns >= 1; found {len(images)} images, "
            f"{len(captions)} captions, texts among them: {any(isinstance(c, str) for c in captions)}, "
            f"columns={columns}"
        )
    # Laid out in inches: no caption, however long or strange, moves or covers anything.
    side, gap, line, edge = 2.1, 0.15, 0.17, 0.15
    columns = min(columns, max(len(images), 2))
    rows = math.ceil(len(images) / columns)
    under = line * max((len(caption) for caption in captions), default=0) + 0.08
    width = 2 * edge + columns * side + (columns - 1) * gap
    heading = textwrap.wrap(_line(title, 300), int(8.9 * width))
    top = 0.22 * len(heading) + 0.25
    height = top + rows * (side + under + gap) + (0 if rows else 0.5)
    figure = Figure(figsize=(width, height))

    for position, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(position, columns)
        left = edge + column * (side + gap)
        below = height - top - row * (side + under + gap) - side
        picture = figure.add_axes((left / width, below / height, side / width, side / height))
        picture.imshow(image)
        picture.set_axis_off()
        picture.set_anchor("S")
        # Axes of its own clip the caption: stacked accents would reach into other pictures.
        words = figure.add_axes((left / width, (below - under) / height, side / width, under / height))
        words.set_axis_off()
        words.set(xlim=(0, side), ylim=(under, 0))
        for number, text in enumerate(caption):
            words.text(
                side / 2,
                line * (number + 1),
                _fitted(text, side, 9),
                size=9,
                color=INK if number == 0 else FAINT,
                ha="center",
                va="baseline",
                parse_math=False,
                clip_on=True,
            )
    figure.text(
        edge / width,
        1 - 0.1 / height,
        "\n".join(heading),
        size=12.5,
        weight="bold",
        color=INK,
        va="top",
        parse_math=False,
    )
    if not rows:
        figure.text(edge / width, 0.2 / height, "There is no such image.", size=11, color=FAINT)
    return figure


def matrix_figure(frame: pd.DataFrame, title: str, label: str) -> Figure:
    """Heat map of what was trained on against what was tested on, the figure in every cell.

    The colours run from 0 to 1 whatever the values, white at .5, which is chance for AUROC.

    Args:
        frame: floats in [0, 1], NaN where nothing was or can be measured (hatched). Index and columns name the
            rows and columns, the names of both, if any, the axes.
        title: what is shown, of how many images, by which runs.
        label: what the figures are, such as "AUROC".

    Raises:
        ValueError: the frame has no cell, or a value outside [0, 1].
    """
    values = frame.to_numpy(dtype=float)
    if not values.size or ((values < 0) | (values > 1)).any():
        raise ValueError(f"frame: expected at least one cell, in [0, 1] or NaN; found\n{frame}")
    rows, columns = values.shape
    cell = min(0.6, 5.4 / columns)
    figure = _figure(2.9 + max(cell * rows, 1.8))
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="PRGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=BAND, edgecolor="#AAAAAA", hatch="///", lw=0)
            )
        else:
            colour = "white" if abs(value - 0.5) > 0.36 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=9, color=colour)
    axes.set_xticks(
        range(columns),
        [_fitted(name, 1.9, 9) for name in frame.columns],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set_yticks(range(rows), [_fitted(name, 1.9, 9) for name in frame.index], parse_math=False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    for set_label, name in ((axes.set_xlabel, frame.columns.name), (axes.set_ylabel, frame.index.name)):
        set_label(_line(name or "", 44), size=10, color=FAINT, parse_math=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5 chance", "0.75", "1"])
    bar.set_label(_line(label, 44), size=10, color=FAINT, parse_math=False)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    if np.isnan(values).any():
        _key_below(
            figure,
            [Patch(facecolor=BAND, edgecolor="#AAAAAA", hatch="///", lw=0, label="not measured, or undefined")],
        )
    _title(figure, _line(title, 300), width=80)
    return figure


def robustness_figure(frame: pd.DataFrame, title: str) -> Figure:
    """What each kind of perturbation costs: AUROC above, TPR, FPR and accuracy at the clean threshold below.

    Strengths stand in the frame's order at equal distances. Dashed lines are the values on clean images.

    Args:
        frame: one row per perturbation, columns kind, strength, auroc, auroc_low, auroc_high, accuracy, tpr and fpr
            (fractions, NaN where undefined), and one row of kind "clean", whose strength is not read.
        title: what is shown, of how many images, by which run and epoch.

    Raises:
        ValueError: there is not exactly one clean row, or no other.
    """
    clean = frame[frame["kind"] == "clean"]
    kinds = list(frame[frame["kind"] != "clean"].groupby("kind", sort=False))
    if len(clean) != 1 or not kinds:
        raise ValueError(
            f"frame: expected one row of kind clean and at least one other, "
            f"found {len(clean)} and {len(frame) - len(clean)}"
        )
    lowest = float(np.nanmin([0.5, *frame["auroc"], *frame["auroc_low"]]))
    # Where a block of two rows of panels stands, its AUROC lies above its rates.
    across = min(4, len(kinds))
    blocks = math.ceil(len(kinds) / across)
    figure = _figure(1.2 + 3.1 * blocks)
    grid = figure.subplots(2 * blocks, across, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    rates = (("tpr", "TPR: fakes called fake", FAKE, "s"), ("fpr", "FPR: reals called fake", REAL, "^"))
    for position, (kind, rows) in enumerate(kinds):
        block, column = divmod(position, across)
        top, bottom = grid[2 * block, column], grid[2 * block + 1, column]
        at = np.arange(len(rows))
        low, value, high = (rows[name].to_numpy(float) for name in ("auroc_low", "auroc", "auroc_high"))
        top.vlines(at, low, high, color=_COLOURS[4], linewidth=1)
        for end in (low, high):
            top.plot(at, end, color=_COLOURS[4], marker="_", markersize=6, linestyle="")
        top.plot(at, value, color=_COLOURS[4], marker="o", markersize=3, linewidth=1)
        top.axhline(clean["auroc"].item(), color=_COLOURS[4], linewidth=1.2, linestyle="--")
        top.axhline(0.5, color=FAINT, linewidth=1, linestyle=":")
        top.set_ylim(lowest - 0.05, 1.03)
        for name, _, colour, marker in (*rates, ("accuracy", "", INK, "")):
            bottom.plot(
                at,
                rows[name].to_numpy(float),
                color=colour,
                marker=marker or None,
                markersize=4,
                linewidth=1.5 if marker else 1,
            )
            bottom.axhline(clean[name].item(), color=colour, linewidth=1.2 if marker else 0.8, linestyle="--")
        bottom.set_ylim(-0.04, 1.04)
        for axes, names in ((top, ("auroc",)), (bottom, ("tpr", "fpr", "accuracy"))):
            undefined = [name.upper() for name in names if rows[name].isna().all()]
            if undefined:
                text = f"{', '.join(undefined)} undefined"
                axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", size=9, color=FAINT)
            axes.set_visible(True)
            _plain(axes)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
            axes.set_xlim(-0.6, len(rows) - 0.4)
        top.set_xticks(at)
        top.tick_params(labelbottom=False)
        bottom.set_xticks(at, [f"{strength:g}" for strength in rows["strength"]])
        _panel_title(top, _fitted(kind, 7 / across, 9.5))
        for axes, name in ((top, "AUROC"), (bottom, "at the threshold")):
            axes.tick_params(labelleft=column == 0, labelsize=8)
            axes.set_ylabel(name if column == 0 else "", size=9, color=FAINT)
    key = [
        Line2D([], [], color=_COLOURS[4], marker="o", label="AUROC, 95 % interval"),
        *(Line2D([], [], color=colour, marker=marker, label=label) for _, label, colour, marker in rates),
        Line2D([], [], color=INK, linewidth=1, label="accuracy"),
        Line2D([], [], color=FAINT, linestyle="--", label="dashed: on clean images"),
        Line2D([], [], color=FAINT, linestyle=":", linewidth=1, label="chance"),
    ]
    _key_below(figure, key)
    _title(figure, _line(title, 300), width=80)
    return figure


def _square(what: str, curves: Curves, of: str, points: Points | None) -> tuple[Figure, Axes, Axes]:
    """A figure with a title, a square plot and, beside it, room for the key, as tall as its lines take."""
    if not curves:
        raise ValueError("curves: expected at least one, found none")
    figure = _figure(max(5.5, 1.5 + 0.2 * (len(curves) + len(points or {}))))
    axes, beside = figure.subplots(1, 2, width_ratios=(1, 0.92))
    axes.set_box_aspect(1)
    axes.set_anchor("NW")
    beside.set_axis_off()
    _title(figure, _heading(what, *next(iter(curves.values())), of), width=80)
    return figure, axes, beside


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr,call-arg]
    return figure


def _heading(what: str, labels: NDArray, p: NDArray, of: str) -> str:
    facts = scores(labels, p)
    return f"{what}: {facts['n']:,.0f} images, {100 * facts['prevalence']:.1f} % fake; {_line(of, 200)}"


def _styled(curves: Curves) -> Iterator[tuple[str, NDArray, NDArray, dict[str, Any]]]:
    """Each curve with its line: the first black and broad, the others by colour, then by dashes."""
    first: dict[str, Any] = {"color": INK, "linestyle": "-", "linewidth": 2.6, "zorder": 3}
    others: list[dict[str, Any]] = [{"color": c, "linestyle": d, "linewidth": 1.6} for d in _LINES for c in _COLOURS]
    styles = itertools.chain([first], itertools.cycle(others))
    for (name, (labels, p)), style in zip(curves.items(), styles, strict=False):
        yield name, labels, p, style


def _roc(labels: NDArray, p: NDArray) -> tuple[NDArray, NDArray]:
    """FPR and TPR from (0, 0) to (1, 1); empty on a single class."""
    if len(np.unique(labels)) < 2:
        return np.empty(0), np.empty(0)
    fpr, tpr, _ = roc_curve(labels, p)
    return fpr, tpr


def _entry(value: float, name: str, facts: Mapping[str, float]) -> str:
    """One line of the key: the figure, whose it is, and on how many images of each class."""
    reals, fakes = int(facts["tn"] + facts["fp"]), int(facts["fn"] + facts["tp"])
    figure = f"{value:.3f}" if np.isfinite(value) else "undefined"
    return f"{figure}  {_fitted(name, 1.9, 9)}: {_class_counts(reals, fakes)}"


def _class_counts(reals: int, fakes: int) -> str:
    found = [f"{number:,} {name}" for number, name in ((reals, "real"), (fakes, "fake")) if number]
    return ", ".join(found)


def _rates(points: Points | None) -> Points:
    """`points`, none of them outside [0, 1]."""
    for name, rates in (points or {}).items():
        if not all(math.isnan(rate) or 0 <= rate <= 1 for rate in rates):
            raise ValueError(f"points: expected rates in [0, 1] or NaN, found FPR, TPR = {rates} for {name!r}")
    return points or {}


def _precision(fpr: float, tpr: float, prevalence: float) -> float:
    """Share of fakes among those called fake (Bayes); NaN where nothing is called fake."""
    found, false = prevalence * tpr, (1 - prevalence) * fpr
    return found / (found + false) if found + false > 0 else math.nan


def _percent(share: float) -> str:
    return "undefined" if math.isnan(share) else f"{100 * share:.1f} %"


def _marked(axes: Axes, points: Points, coordinates: str) -> list[Line2D]:
    """A marker for each point (x, y), at the edge if it lies outside; and their heading in the key before them."""
    heading = f"Thresholds chosen on validation: {coordinates}"
    drawn = [Line2D([], [], linestyle="", label=heading)] if points else []
    for (name, (x, y)), marker in zip(points.items(), itertools.cycle(_MARKERS), strict=False):
        drawn += axes.plot(
            np.clip([x], *axes.get_xlim()),
            np.clip([y], *axes.get_ylim()),
            linestyle="",
            marker=marker,
            markersize=8,
            markerfacecolor="white",
            markeredgecolor=INK,
            markeredgewidth=1.6,
            zorder=4,
            clip_on=False,
            label=f"{_fitted(name, 2, 9)}: {_percent(x)}, {_percent(y)}",
        )
    return drawn


def _percent_axes(axes: Axes, x: str, y: str, ticks: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1)) -> None:
    names = [f"{100 * tick:g} %" for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set_xlim(ticks[0], ticks[-1])
    axes.set_ylim(ticks[0], ticks[-1])
    _plain(axes)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_xlabel(x, size=10, color=FAINT)
    axes.set_ylabel(y, size=10, color=FAINT)


def _deviate(rate: NDArray) -> NDArray:
    """Normal deviate of a rate; 0 and 1, which have none, are put far outside the picture."""
    return ndtri(np.clip(rate, 1e-6, 1 - 1e-6))


def _root_scale(axes: Axes, limits: tuple[float, float | None] = (0, None)) -> None:
    axes.set_yscale("function", functions=(lambda height: np.sqrt(np.maximum(height, 0)), np.square))
    axes.set_ylim(*limits)


def _panels(number: int, height: float, x: str) -> tuple[Figure, list[Axes]]:
    """`number` panels in rows of up to three, with the same axes; those of the last row name x."""
    across = min(3, number)
    down = math.ceil(number / across)
    figure = _figure(1.6 + height * down)
    grid = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[number:]:
        axes.set_visible(False)
    for axes in grid[max(0, number - across) : number]:
        axes.tick_params(labelbottom=True)
    for axes in grid[(down - 1) * across : number]:
        axes.set_xlabel(x, size=10, color=FAINT)
    return figure, grid[:number]


def _panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, size=9.5, color=INK, parse_math=False)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=INK, labelsize=9)


def _key_beside(axes: Axes, lines: Sequence[Line2D], value: str) -> None:
    """The key in axes of its own, a line a curve, under the name of the value."""
    legend = axes.legend(
        handles=lines,
        loc="upper left",
        title=value,
        alignment="left",
        fontsize=9,
        frameon=False,
        borderaxespad=0,
        handlelength=2.4,
    )
    _literal(legend)


def _key_below(figure: Figure, handles: Sequence[Artist]) -> None:
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=min(3, len(handles)), fontsize=9, frameon=False
    )
    _literal(legend)


def _literal(legend: Legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


def _line(text: object, longest: int) -> str:
    """`text` as one printable line of at most `longest` characters, no more than two marks on a letter.

    Marks pile up without end, and would push everything else out of the picture.
    """
    marks = [bool(unicodedata.combining(character)) for character in str(text)]
    piled = [all(marks[max(0, at - 2) : at + 1]) and at > 1 for at in range(len(marks))]
    return shorten("".join(itertools.compress(str(text), (not mark for mark in piled))), longest)


def _fitted(text: object, inches: float, size: float) -> str:
    """`text` as one printable line, shortened until it is no wider than `inches`."""
    longest = 60
    if _inches(_line(text, longest), size) <= inches:
        return _line(text, longest)
    lengths = range(2, longest)
    fitting = bisect_right(lengths, inches, key=lambda length: _inches(_line(text, length), size))
    return _line(text, lengths[max(fitting - 1, 0)])
