"""The spectrum of one image beside those of the sources that a network was trained on."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepfake.reporting.figures import FAINT, FAKE, INK, REAL, RULE, shorten

_NAMED = 12  # sources; of more, no line could be told from the next, and the key counts them instead
_NAME = 24  # characters of one
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.5, 1), (6, 1.5, 1, 1.5))


def profile_figure(
    own: NDArray[np.float64],
    profiles: NDArray[np.float64],
    sources: NDArray[np.str_],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> Figure:
    """Power over spatial frequency in dB: one image as a strong line, the mean of each source behind it.

    Args:
        own: (size // 2 + 1,), dB, entry k of k cycles a picture; k = 0 is not drawn, for the mean was taken away.
        profiles: (sources, size // 2 + 1), dB.
        sources, labels, counts: (sources,), names, 0 real or 1 fake, images that each profile is the mean of.
    """
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    frequency = np.arange(1, own.size) / (2 * (own.size - 1))
    for label, colour, word in ((0, REAL, "real"), (1, FAKE, "generated")):
        rows = np.flatnonzero(labels == label)
        named = len(sources) <= _NAMED
        for place, row in enumerate(rows):
            told = f"{word}: {shorten(str(sources[row]), _NAME)}, n = {counts[row]:,}" if named else None
            if place == 0 and not named:
                told = f"{word}: {len(rows)} sources, n = {counts[rows].sum():,}"
            axes.plot(
                frequency, profiles[row, 1:], color=colour, linewidth=1.2, alpha=0.9, label=told,
                dashes=_DASHES[place % len(_DASHES)],
            )  # fmt: skip
    axes.plot(frequency, own[1:], color=INK, linewidth=2, label="this image")
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("spatial frequency, cycles a pixel as the network sees it: coarse to fine", color=FAINT, size=9)
    axes.set_ylabel("power, dB", color=FAINT, size=9)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.grid(color=RULE, linewidth=0.6)
    axes.spines[:].set_visible(False)
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
