"""The curves of an explanation: what is drawn is what was found, and gaps stay gaps."""

from pathlib import Path

import numpy as np
import pytest

from deepfake.analysis.deletion import FRACTIONS, Deletion
from deepfake.analysis.frequencies import Curve
from deepfake.reporting.explanation_figures import deletion_figure, frequencies_figure
from deepfake.reporting.figures import save

CUTOFFS = [0.02, 0.1, 0.4]


def deletion(interval: tuple[float, float] | None) -> Deletion:
    hot, common, random = (np.linspace(0.9, end, len(FRACTIONS)) for end in (0.4, 0.44, 0.5))
    to_common = None if interval is None else (0.01, 0.03)
    return Deletion(FRACTIONS, hot, random, common, 0.65, 0.7, 0.67, 0.05, interval, 0.02, to_common, 100, 0.6)


def curve(*auroc: float, change: tuple[float, ...] = ()) -> Curve:
    return Curve(auroc, [(value - 0.05, value + 0.05) for value in auroc], change)


def texts(figure: object) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        (
            (0.02, 0.08),
            "Faithful: difference to elsewhere +0.050 [+0.020, +0.080], on average +0.020 [+0.010, +0.030]",
        ),
        (
            (-0.02, 0.08),
            "Not shown to be faithful: difference to elsewhere +0.050 [-0.020, +0.080], on average +0.020",
        ),
        (None, "Not shown to be faithful: difference to elsewhere +0.050 too few images, on average +0.020 too few"),
    ],
)
def test_deletion_curves_stand_under_their_verdict(
    interval: tuple[float, float] | None, told: str, tmp_path: Path
) -> None:
    found = deletion(interval)
    figure = deletion_figure(found, "nothing", "100 images, 60.0% fake; $a$ map")
    axes = figure.axes[0]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.lines}
    assert drawn["the hottest first: area 0.650"] == pytest.approx(found.hot)
    assert drawn["the same pattern elsewhere: area 0.700"] == pytest.approx(found.random)
    assert drawn["the hottest on average first: area 0.670"] == pytest.approx(found.common)
    assert told in texts(figure)
    assert "Is the map faithful? 100 images, 60.0% fake; $a$ map" in texts(figure).replace("\n", " ")
    assert save(figure, tmp_path / "deletion.png")[:4] == b"\x89PNG"


def test_each_filter_has_its_curves(tmp_path: Path) -> None:
    curves = {
        "low_pass": curve(0.5, 0.7, 0.9, change=(0.3, 0.2, 0.1)),
        "high_pass": curve(0.9, 0.6, 0.55, change=(0.1, 0.2, 0.4)),
        "probe_low": curve(0.5, 0.55, 0.6),
        "probe_high": curve(0.8, 0.81, 0.82),
    }
    figure = frequencies_figure(CUTOFFS, 0.91, (0.88, 0.94), curves, "400 images, 58.0% fake")
    for axes, kept in zip(figure.axes, ("low", "high"), strict=False):
        drawn = {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in axes.lines}
        assert drawn["the network, filtered images"] == list(curves[f"{kept}_pass"].auroc)
        assert drawn["linear probe on the spectrum's same bands"] == list(curves[f"probe_{kept}"].auroc)
    assert list(figure.axes[3].lines[0].get_ydata()) == [0.1, 0.2, 0.4]
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == [".02", ".1", ".4"]
    assert save(figure, tmp_path / "frequencies.png")


def test_what_is_undefined_or_missing_is_not_drawn(tmp_path: Path) -> None:
    nothing = Curve([np.nan] * 3, [(np.nan, np.nan)] * 3, (0.1, 0.2, 0.3))
    figure = frequencies_figure(
        CUTOFFS, np.nan, (np.nan, np.nan), {"low_pass": nothing, "high_pass": nothing}, "3 images, 100.0% fake"
    )
    assert "unfiltered" not in texts(figure)
    assert "probe" not in texts(figure)
    assert save(figure, tmp_path / "frequencies.png")
