"""The pictures: plain functions from numbers to a `Figure`, and `save`.

Figures are built with matplotlib's object interface. pyplot would keep every figure alive in global state and
choose a window system; a `Figure` of its own draws with Agg, also inside a training process.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from deepfake.files import write_bytes

# Out of the colour-blind safe palette of Okabe and Ito (2008). Blue and orange always mean real and fake, so
# anything else (training, validation, runs) takes another colour.
REAL = "#0072B2"
FAKE = "#E69F00"
TRAIN = "#8A8A8A"
VALIDATION = "#009E73"
INK = "#222222"
FAINT = "#666666"
RULE = "#D9D9D9"
BAND = "#F4F5F6"

_DPI = 150  # of what is saved


def confusion_figure(counts: NDArray, title: str) -> Figure:
    """Counts and row percentages: how many of the real, and of the fake images, were called what.

    Args:
        counts: shape (2, 2), integers >= 0; rows are the truth, columns the prediction, both real then fake.
        title: one line, taken literally.

    Raises:
        ValueError: `counts` has another shape, or a negative entry.
    """
    counts = np.asarray(counts)
    if counts.shape != (2, 2) or not (counts >= 0).all():
        raise ValueError(f"counts: expected shape (2, 2), none negative; found {counts.tolist()}")
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, np.newaxis]

    # Each row is tinted in the colour of its class, the stronger the larger its share.
    colours = np.array([to_rgb(REAL), to_rgb(FAKE)])[:, np.newaxis, :]
    strength = 0.08 + 0.82 * shares[:, :, np.newaxis]
    cells = 1 - strength * (1 - colours)

    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(cells)
    for row in range(2):
        for column in range(2):
            dark = row == 0 and strength[row, column, 0] > 0.6  # orange stays light enough for dark text
            colour = "white" if dark else INK
            share = f"{100 * shares[row, column]:.1f} %" if totals[row] else "no images"
            axes.text(
                column,
                row - 0.04,
                f"{counts[row, column]:,.0f}",
                ha="center",
                va="bottom",
                size=20,
                weight="bold",
                color=colour,
            )
            axes.text(column, row + 0.06, share, ha="center", va="top", size=12, color=colour)
    axes.set_xticks([0, 1], ["real", "fake"], size=11, color=INK)
    axes.set_yticks(
        [0, 1],
        [f"{name}\n{total:,.0f}" for name, total in zip(("real", "fake"), totals, strict=True)],
        size=11,
        color=INK,
    )
    axes.set_xlabel("predicted", size=11, color=FAINT)
    axes.set_ylabel("truth", size=11, color=FAINT)
    axes.set_xticks([0.5], minor=True)
    axes.set_yticks([0.5], minor=True)
    axes.grid(which="minor", color="white", linewidth=4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    _title(figure, title, width=38)
    return figure


def curve_figure(history: pd.DataFrame, metric: str, best_epoch: int | None, title: str) -> Figure:
    """A metric on the training and the validation part, epoch by epoch.

    Args:
        history: column "epoch" (integers from 0) and "train/<metric>", "val/<metric>" or one of them. An
            epoch may be spread over several rows with gaps, as Lightning's CSV logger writes it.
        metric: the name after the slash, such as "loss" or "auroc".
        best_epoch: the epoch to mark, or None.
        title: one line, taken literally.

    Raises:
        ValueError: `history` has no epoch, or neither column.
    """
    names = [name for name in (f"train/{metric}", f"val/{metric}") if name in history]
    if "epoch" not in history or history.empty or not names:
        raise ValueError(
            f"history: expected rows with epoch and train/{metric} or val/{metric}, "
            f"found {len(history)} rows with {', '.join(map(str, history.columns)) or 'no columns'}"
        )
    # `last` passes over gaps, so the several rows of one epoch become one; inf has no place on an axis.
    curves = history[["epoch", *names]].replace([np.inf, -np.inf], np.nan).groupby("epoch").last()
    epochs = curves.index.to_numpy()

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        train = name.startswith("train/")
        axes.plot(
            epochs,
            curves[name].to_numpy(),
            label="training" if train else "validation",
            color=TRAIN if train else VALIDATION,
            linestyle="--" if train else "-",
            linewidth=2,
            marker="s" if train else "o",
            markersize=5,
        )
    if best_epoch is not None:
        axes.axvline(
            best_epoch,
            color=INK,
            linewidth=1,
            linestyle=(0, (4, 3)),
            label=f"best epoch: {best_epoch}",
            zorder=1,
        )
        if best_epoch in epochs:
            axes.plot(
                [best_epoch],
                curves.loc[[best_epoch], names[-1]].to_numpy(),
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.6,
            )
    # Half an epoch on each side, so that a single epoch has an axis too.
    axes.set_xlim(float(epochs.min()) - 0.5, float(epochs.max()) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("epoch (from 0)", size=11, color=FAINT)
    axes.set_ylabel(metric, size=11, color=FAINT, parse_math=False)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.legend(frameon=False, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=INK, labelsize=10)
    _title(figure, title, width=62)
    return figure


def image_grid(images: NDArray[np.uint8], titles: Sequence[str], columns: int = 8, title: str = "") -> Figure:
    """Images in reading order, each under its title.

    Args:
        images: shape (N, H, W, 3), uint8, RGB, N >= 1.
        titles: N texts, taken literally; long ones are wrapped.
        columns: how many images stand side by side, at most.
        title: above the whole, or empty.

    Raises:
        ValueError: the images have another shape or type, there is not one title for each, or columns < 1.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"images: expected uint8 of shape (N, H, W, 3), found {images.dtype} of {images.shape}")
    if len(titles) != len(images) or columns < 1:
        raise ValueError(
            f"expected a title for each image and columns >= 1, "
            f"found {len(images)} images, {len(titles)} titles, columns={columns}"
        )
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    wrapped = ["\n".join(textwrap.fill(line, 22) for line in text.splitlines()) for text in titles]
    lines = max(text.count("\n") + 1 for text in wrapped)
    side, line = 1.6, 0.14  # inches
    tall = side * images.shape[1] / images.shape[2]
    row = tall + line * lines + 0.1
    # Two columns are the least that leaves room for the title.
    wide = side * max(columns, 2)
    heading = "\n".join(textwrap.wrap(title, int(8.5 * wide)))
    head = 0.1 + 0.25 * (heading.count("\n") + 1) * bool(heading)
    high = row * rows + head
    # One pair of axes in inches: to lay out one for each image takes seconds.
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(high, 0))
    axes.set_axis_off()
    for number, (image, text) in enumerate(zip(images, wrapped, strict=True)):
        left, top = side * (number % columns) + 0.03, head + row * (number // columns)
        centre = left + side / 2 - 0.03, top + line * lines + 0.02
        axes.text(*centre, text, size=8, color=INK, ha="center", va="bottom", parse_math=False)
        bottom = top + row - 0.03
        axes.imshow(image, extent=(left, left + side - 0.06, bottom, bottom - tall + 0.04), aspect="auto")
    axes.set(xlim=(0, wide), ylim=(high, 0))
    if heading:
        axes.text(wide / 2, 0.05, heading, size=12, weight="bold", color=INK, ha="center", va="top", parse_math=False)
    return figure


def comparison_figure(table: pd.DataFrame) -> Figure:
    """Validation accuracy, F1 and AUROC of every run, dots with 95 % whiskers, one row per run.

    Args:
        table: one row per run, in the order to draw; columns run, trained_weights and, for each m of
            accuracy, f1 and auroc, val_m, val_m_low and val_m_high (fractions; NaN leaves a dash). The
            caption tells n_val, val_prevalence and val_majority where the table has them.

    Raises:
        ValueError: the table is empty.
    """
    if table.empty:
        raise ValueError("table: expected at least one run, found none")
    names = [shorten(str(name)) for name in table["run"]]
    weights = [count_text(number) for number in table["trained_weights"]]
    panels = (("accuracy", "accuracy"), ("f1", "F1"), ("auroc", "AUROC"))
    rows = len(table)

    # The picture is laid out in inches, from the measured width of the names: every row has the same height
    # and nothing can be cut off, whether there is one run or forty.
    row, top, bottom, edge = 0.32, 1.15, 0.62, 0.2
    name_width = max(_inches(text, 10) for text in [*names, "run"])
    weights_end = edge + name_width + 0.2 + max(_inches(text, 10) for text in [*weights, "trained weights"])
    panel, number = 1.75, 0.72  # a plot, and the figure beside it
    starts = [weights_end + 0.3 + k * (panel + number) for k in range(len(panels))]
    width = starts[-1] + panel + 0.52 + edge
    height = top + row * rows + bottom
    figure = Figure(figsize=(width, height))

    def add_axes(left: float, inches: float) -> Axes:
        axes = figure.add_axes((left / width, bottom / height, inches / width, row * rows / height), facecolor="none")
        axes.set_ylim(rows - 0.5, -0.5)
        return axes

    # Behind the panels lies a table as wide as the picture, whose x axis counts inches.
    page = add_axes(0, width)
    page.set_xlim(0, width)
    page.set_axis_off()
    for line in range(0, rows, 2):
        page.axhspan(line - 0.5, line + 0.5, xmin=edge / 2 / width, xmax=1 - edge / 2 / width, color=BAND)
    heading = -0.5 - 0.1 / row  # a tenth of an inch above the first row
    page.text(edge, heading, "run", size=10, color=FAINT, va="bottom")
    page.text(weights_end, heading, "trained weights", size=10, color=FAINT, ha="right", va="bottom")
    for line, (name, weight) in enumerate(zip(names, weights, strict=True)):
        page.text(edge, line, name, size=10, color=INK, va="center_baseline", parse_math=False)
        page.text(weights_end, line, weight, size=10, color=INK, ha="right", va="center_baseline")

    limits = _limits(table, [metric for metric, _ in panels])
    for start, (metric, label) in zip(starts, panels, strict=True):
        value = table[f"val_{metric}"].to_numpy(dtype=float)
        low = table[f"val_{metric}_low"].to_numpy(dtype=float)
        high = table[f"val_{metric}_high"].to_numpy(dtype=float)
        axes = add_axes(start, panel)
        axes.hlines(np.arange(rows), low, high, color=VALIDATION, linewidth=3.5, alpha=0.4)
        # The axis may end at 1, where a perfect run has its dot: draw that dot whole.
        axes.scatter(value, np.arange(rows), s=42, color=VALIDATION, zorder=3, clip_on=False)
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="x", length=0, labelsize=9, labelcolor=FAINT)
        page.text(start + panel / 2, heading, label, size=10, weight="bold", color=INK, ha="center", va="bottom")
        for line in range(rows):
            text = f"{value[line]:.3f}" if np.isfinite(value[line]) else "\N{EN DASH}"
            page.text(start + panel + 0.52, line, text, size=9, color=INK, ha="right", va="center_baseline")

    inch = 1 / height
    figure.text(
        edge / width,
        1 - 0.18 * inch,
        "Validation results by run",
        size=13,
        weight="bold",
        color=INK,
        va="top",
    )
    figure.text(edge / width, 1 - 0.48 * inch, _part_caption(table), size=9, color=FAINT, va="top")
    figure.text(
        edge / width,
        0.12 * inch,
        "Dots: best epoch, threshold 0.5. Bars: 95 % stratified bootstrap interval over the images.",
        size=9,
        color=FAINT,
        va="bottom",
    )
    return figure


def save(figure: Figure, path: Path) -> bytes:
    """Write `figure` at 150 dpi; parent folders are made, the file appears whole or not at all.

    Args:
        figure: to draw.
        path: ends in .png, or in .jpg for a sheet of photographs: a tenth of the bytes, in a quarter of the time.

    Returns:
        What the file holds, for whoever shows it elsewhere: to draw and encode it again would take long.
    """
    content = encoded(figure, Path(path).suffix)
    write_bytes(Path(path), content)
    return content


def encoded(figure: Figure, suffix: str = ".png") -> bytes:
    """What `save` writes under a name of that end."""
    # By the canvas: `savefig` gives the same pixels, but draws everything twice, the first time for the layout alone.
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    content = io.BytesIO()
    if suffix == ".jpg":
        picture.save(content, "JPEG", quality=90, dpi=(_DPI, _DPI))
    else:
        # The first level of compression: a sixth of the time is saved, a tenth of the bytes added.
        picture.save(content, "PNG", compress_level=1, dpi=(_DPI, _DPI))
    return content.getvalue()


def shorten(text: str, longest: int = 44) -> str:
    """One printable line of at most `longest` characters; the middle goes, run names differ at the ends."""
    line = "".join(character if character.isprintable() else " " for character in text)
    if len(line) <= longest:
        return line
    tail = (longest - 1) // 2
    return f"{line[: longest - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"


def count_text(number: float) -> str:
    """A count in three figures: 820, 12.3 k, 1.13 M, 2.05 G; a dash for NaN."""
    if not np.isfinite(number):
        return "\N{EN DASH}"
    if number < 1000:
        return f"{number:.0f}"
    for unit in ("k", "M", "G"):
        number /= 1000
        # 999.95 would be written as 1000: let it go to the next unit.
        if number < 999.5 or unit == "G":
            break
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f} {unit}"


def _title(figure: Figure, title: str, width: int) -> None:
    """A bold title at the left edge, wrapped at `width` characters; `$` is a dollar, not mathematics."""
    lines = "\n".join(textwrap.wrap(title, width))
    figure.suptitle(lines, x=0.02, ha="left", size=12.5, weight="bold", color=INK, parse_math=False)


def _inches(text: str, size: float) -> float:
    """Width of one line of text, in inches."""
    figure = Figure(dpi=100)
    canvas = FigureCanvasAgg(figure)
    drawn = Text(0, 0, text, size=size, parse_math=False, figure=figure)
    return drawn.get_window_extent(canvas.get_renderer()).width / figure.dpi


def _limits(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[float, float]:
    """One x range for all panels, so that they compare: every dot and whisker, out to the next 0.05."""
    columns = [f"val_{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    found = table[columns].to_numpy(dtype=float)
    found = found[np.isfinite(found)]
    if not found.size:
        return 0.0, 1.0
    # The rounding keeps 0.85 / 0.05 = 16.999... from becoming 16.
    low = math.floor(round(20 * found.min(), 6)) / 20
    high = math.ceil(round(20 * found.max(), 6)) / 20
    # At least 0.1 wide: a smaller range would magnify differences of single images.
    if high - low < 0.1:
        low, high = (high - 0.1, high) if high >= 0.1 else (0.0, 0.1)
    return low, high


def _part_caption(table: pd.DataFrame) -> str:
    """Number of validation images, prevalence and majority baseline, as far as the table tells them."""
    if not {"n_val", "val_prevalence", "val_majority"} <= set(table.columns):
        return ""
    parts = table[["n_val", "val_prevalence", "val_majority"]].dropna().drop_duplicates()
    if len(parts) > 1:
        return f"Runs were judged on {len(parts)} different validation parts: compare with care."
    return "".join(
        f"{n:,.0f} validation images, {100 * prevalence:.1f} % fake; "
        f"always answering the larger class has accuracy {majority:.3f}."
        for n, prevalence, majority in parts.itertuples(index=False)
    )
