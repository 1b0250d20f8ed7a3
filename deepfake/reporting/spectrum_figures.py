"""The pictures of spectra: one sheet of all means, the radial profiles, one image beside its source.

Like `figures`, plain functions from arrays to a `Figure`; texts are taken literally and shortened to their room.
Zero frequency is in the middle of every spectrum, half a cycle a pixel at its edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deepfake.analysis.peaks import Peak
from deepfake.analysis.spectra import MeanSpectrum, decibel, radial_profile
from deepfake.reporting.evaluation_figures import _fitted, _key_below, _line, _panel_title, _panels, _plain
from deepfake.reporting.figures import FAINT, FAKE, INK, REAL, TRAIN, _title

_DPI = 150  # of `figures.save`
_LARGEST = 1.75  # inches of a panel
_GAP, _NAMES, _EDGE = 0.1, 1.55, 0.15  # inches
# Few steps, each a decibel or two wide: what differs by less is noise, and would make the file ten times as large.
_POWER = matplotlib.colormaps["magma"].resampled(48)
_DIFFERENCE = matplotlib.colormaps["PuOr_r"].resampled(33)  # orange: more than in the real images
_OUTLIERS = 0.5  # percent at each end that the colours do not tell apart
_LEAST = 3.0  # decibels that the colours of differences span at least, to either side


class Row(NamedTuple):
    """A source or a class, as it is drawn."""

    name: str
    label: int
    before: MeanSpectrum
    after: MeanSpectrum
    against: tuple[str, MeanSpectrum, MeanSpectrum] | None  # what it is held against: its name, before and after
    peaks: Sequence[Peak]
    peaks_after: Sequence[Peak]


@dataclass(frozen=True)
class _Scale:
    """Colours that all panels of a kind share."""

    of: str
    colours: Colormap
    low: float
    high: float

    @property
    def mapped(self) -> dict[str, Any]:
        return {"cmap": self.colours, "vmin": self.low, "vmax": self.high}


# Of the sheet: title, a panel a row, their colours, and the peaks that are marked.
_Column = tuple[str, Sequence[NDArray[np.float64] | None], _Scale, Sequence[Sequence[Peak]]]


def spectrum_sheet(rows: Sequence[Row], of: str) -> Figure:
    """All means on shared colours, a row a source: the study's picture, then before and after the preparation.

    Args:
        rows: at least one.
        of: how many images, and how they are looked at; ends the title.
    """
    magnitudes = [row.before.log_magnitude for row in rows]
    before = [decibel(row.before.power) for row in rows]
    after = [decibel(row.after.power) for row in rows]
    gaps = [_difference(row.before, row.against and row.against[1]) for row in rows]
    gaps_after = [_difference(row.after, row.against and row.against[2]) for row in rows]
    study = _spread("log(1 + |F|), mean", _POWER, magnitudes)
    power = _spread("mean power, dB", _POWER, before + after)
    difference = _around_zero([gap for gap in gaps + gaps_after if gap is not None])
    none: list[Sequence[Peak]] = [()] * len(rows)
    kinds: tuple[_Column, ...] = (
        ("log(1 + |F|), before", magnitudes, study, none),
        ("power, before", before, power, none),
        ("difference, before", gaps, difference, [row.peaks for row in rows]),
        ("power, after", after, power, none),
        ("difference, after", gaps_after, difference, [row.peaks_after for row in rows]),
    )

    side = _side(max(rows[0].before.size, rows[0].after.size))
    head, foot = 1.0, 0.75
    width = _NAMES + len(kinds) * (side + _GAP) + _EDGE
    height = head + len(rows) * (side + _GAP) + foot
    figure = Figure(figsize=(width, height))

    def place(column: float, row: float) -> tuple[float, float]:
        """Of a panel's left bottom corner, as shares of the figure."""
        return (_NAMES + column * (side + _GAP)) / width, 1 - (head + (row + 1) * (side + _GAP) - _GAP) / height

    for column, (title, panels, scale, marks) in enumerate(kinds):
        for number, (panel, peaks) in enumerate(zip(panels, marks, strict=True)):
            axes = figure.add_axes((*place(column, number), side / width, side / height))
            _spectrum(axes, panel, scale, peaks)
            if number == 0:
                _panel_title(axes, title)
    for number, row in enumerate(rows):
        left, bottom = place(0, number)
        lines = [
            _fitted(row.name, _NAMES - 0.25, 10),
            f"{'fake' if row.label else 'real'}, {row.before.images:,} images",
            *([] if row.against is None else ["difference to", _fitted(row.against[0], _NAMES - 0.25, 8)]),
        ]
        colour = FAKE if row.label else REAL
        top = bottom + side / height
        for line, text in enumerate(lines):
            how: dict[str, Any] = (
                {"size": 8, "color": INK} if line else {"size": 10, "color": colour, "weight": "bold"}
            )
            at = 0.15 / width, top - (0.1 + 0.2 * line) / height
            figure.text(*at, text, va="top", parse_math=False, **how)
    for column, scale in ((0, study), (1, power), (2, difference)):
        left, bottom = place(column, len(rows) - 1)
        bar = figure.add_axes((left + 0.07 * side / width, bottom - 0.28 / height, 0.86 * side / width, 0.1 / height))
        _bar(figure, bar, scale)
    left, bottom = place(3, len(rows) - 1)
    told = "circles: single frequencies that stand out\nas in no real source; orange: more than there"
    figure.text(left, bottom - 0.2 / height, told, size=8, color=FAINT, va="top")
    _title(figure, _line(f"Mean spectra: {of}", 300), width=int(9 * width))
    return figure


def profile_figure(rows: Sequence[Row], stage: str, of: str) -> Figure:
    """Power by distance from zero, each source over what it is held against.

    Lines are of the mean power; bands reach one standard deviation to either side of the mean of the images' own
    decibels, and so need not have the line in their middle.

    Args:
        rows: as of `spectrum_sheet`; one that is held against nothing has no panel, if others are.
        stage: before or after.
        of: how many images, and how they are looked at; ends the title.
    """
    shown = [row for row in rows if row.against is not None] or list(rows)
    figure, panels = _panels(len(shown), 2.5, "cycles a pixel")
    for axes, row in zip(panels, shown, strict=True):
        if row.against is not None:
            _, *references = row.against
            _profile(axes, references[stage == "after"], REAL if row.label else TRAIN)
        _profile(axes, row.after if stage == "after" else row.before, FAKE if row.label else REAL)
        _panel_title(axes, _fitted(f"{row.name} ({row.before.images:,})", 2.6, 9.5))
        _plain(axes)
        axes.set_xlim(0, 0.5)
    for axes in panels[::3]:
        axes.set_ylabel("mean power, dB", size=9, color=FAINT)
    against = sorted({row.against[0] for row in shown if row.against is not None})
    key = [
        Line2D([], [], color=FAKE, label="fake source"),
        Line2D([], [], color=REAL, label="real source, and behind a fake one what it is held against"),
        Line2D([], [], color=TRAIN, label="all real, behind a real source"),
    ]
    _key_below(figure, key)
    held = f", held against {', '.join(against)}" if against else ""
    _title(figure, _line(f"Radial profiles {stage} the preparation, bands of 1 sd{held}: {of}", 400), width=88)
    return figure


def image_figure(
    stages: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.float64], Sequence[tuple[str, MeanSpectrum]]]],
    of: str,
) -> Figure:
    """One image, its spectrum, the means it is held against and the profiles of all; a row before, a row after.

    Args:
        stages: name -> (square of the image, its power (N, N), name and mean of each source or class beside it).
        of: which image; ends the title.
    """
    pooled = [
        decibel(each) for _, power, beside in stages.values() for each in (power, *(m.power for _, m in beside))
    ]
    scale = _spread("power, dB", _POWER, pooled)
    across = 3 + max(len(beside) for *_, beside in stages.values())
    figure = Figure(figsize=(2.45 * across + 0.6, 2.5 * len(stages) + 1.0), layout="constrained")
    grid = figure.subplots(len(stages), across, squeeze=False, width_ratios=[*[1.0] * (across - 1), 1.35])
    for line, (stage, (pixels, power, beside)) in zip(grid, stages.items(), strict=True):
        line[0].imshow(pixels, interpolation="nearest")
        line[0].set_axis_off()
        _panel_title(line[0], f"{stage}: {pixels.shape[1]} x {pixels.shape[0]} px")
        _spectrum(line[1], decibel(power), scale, ())
        _panel_title(line[1], "its power")
        for axes, (name, mean) in zip(line[2:-1], beside, strict=True):
            _spectrum(axes, decibel(mean.power), scale, ())
            _panel_title(axes, _fitted(f"{name}, mean of {mean.images:,}", 2.2, 9.5))
        profile = decibel(radial_profile(power))
        for number, (name, mean) in enumerate(beside):
            colour = (REAL, FAKE)[number] if len(beside) > 1 else TRAIN
            _profile(line[-1], mean, colour, _fitted(name, 1.6, 8))
        frequencies = np.arange(1, profile.size) / power.shape[0]
        line[-1].plot(frequencies, profile[1:], color=INK, linewidth=1, label="the image")
        legend = line[-1].legend(fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        line[-1].set_xlabel("cycles a pixel", size=9, color=FAINT)
        _panel_title(line[-1], "radial profiles, dB")
        _plain(line[-1])
    shown = ScalarMappable(Normalize(scale.low, scale.high), scale.colours)
    bar = figure.colorbar(shown, ax=grid[:, :-1], shrink=0.4, location="bottom", aspect=40, pad=0.01)
    bar.set_label("power, dB; bands: one standard deviation of the images' own decibels", size=9, color=FAINT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    _title(figure, _line(f"The spectrum of {of}", 300), width=int(10 * figure.get_figwidth()))
    return figure


# ----------------------------------------------------------------------------------------------------------- panels


def _difference(spectrum: MeanSpectrum, reference: MeanSpectrum | None) -> NDArray[np.float64] | None:
    return None if reference is None else decibel(spectrum.power) - decibel(reference.power)


def _spread(of: str, colours: Colormap, panels: Sequence[NDArray[np.float64]]) -> _Scale:
    """From the lowest to the highest, but for some outliers: zero frequency is removed, and near nothing."""
    low, high = np.percentile(np.concatenate([panel.ravel() for panel in panels]), [_OUTLIERS, 100 - _OUTLIERS])
    return _Scale(of, colours, float(low), float(max(high, low + 1)))


def _around_zero(panels: Sequence[NDArray[np.float64]]) -> _Scale:
    ends = [np.percentile(np.abs(panel), 100 - _OUTLIERS) for panel in panels]
    most = float(max([_LEAST, *ends]))
    return _Scale("difference, dB", _DIFFERENCE, -most, most)


def _side(size: int) -> float:
    """Inches of a panel, a dot for each frequency where there is room."""
    return min(max(size / _DPI, 1.2), _LARGEST)


def _spectrum(axes: Axes, values: NDArray[np.float64] | None, scale: _Scale, peaks: Sequence[Peak]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if values is None:
        axes.set_axis_off()
        return
    # Dots are neither joined nor left out: a trace may be a single one.
    axes.imshow(values, interpolation="nearest", extent=(-0.5, 0.5, 0.5, -0.5), **scale.mapped)
    for peak in peaks:
        for sign in (1, -1):
            axes.plot(
                sign * peak.across, sign * peak.down, marker="o", markersize=7, markerfacecolor="none",
                markeredgecolor=INK, markeredgewidth=0.9, clip_on=False,
            )  # fmt: skip
    axes.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))


def _profile(axes: Axes, spectrum: MeanSpectrum, colour: str, label: str = "") -> None:
    frequencies = np.arange(1, spectrum.profile.size) / spectrum.size  # without zero, which is removed
    mean, std = spectrum.profile_decibels[1:], spectrum.profile_decibels_std[1:]
    axes.fill_between(frequencies, mean - std, mean + std, color=colour, alpha=0.22, linewidth=0)
    axes.plot(frequencies, decibel(spectrum.profile[1:]), color=colour, linewidth=1.5, label=label)


def _bar(figure: Figure, axes: Axes, scale: _Scale) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high), scale.colours), cax=axes, orientation="horizontal"
    )
    bar.set_label(scale.of, size=8, color=FAINT)
    bar.locator = MaxNLocator(3)
    bar.outline.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
