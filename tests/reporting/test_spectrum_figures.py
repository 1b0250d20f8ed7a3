"""The pictures of spectra: what they show, where their marks lie, and names that are taken literally."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from deepfake.analysis.peaks import Peak
from deepfake.analysis.spectra import MeanSpectrum, SpectrumMoments, decibel, power_spectrum
from deepfake.reporting.figures import FAKE, REAL
from deepfake.reporting.spectrum_figures import Row, image_figure, profile_figure, spectrum_sheet

HOSTILE = "$x^$ <b>{0}\n\x1b[31m" + "long " * 40


def mean(seed: int, size: int = 64) -> MeanSpectrum:
    random = np.random.default_rng(seed)
    moments = SpectrumMoments()
    for _ in range(3):
        moments.add(power_spectrum(random.random((size, size))))
    return moments.result()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    real = Row("all real", 0, mean(0), mean(1, 48), None, [], [])
    peak = Peak(0.25, -0.125, 9, 8, 10, 9, 8)
    fake = Row(HOSTILE, 1, mean(2), mean(3, 48), ("all real", real.before, real.after), [peak], [])
    return [real, fake]


def panels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_the_sheet_shows_every_mean_on_shared_colours(rows: list[Row]) -> None:
    figure = spectrum_sheet(rows, "6 images")
    real, fake = rows
    shown = panels(figure)
    expected = [
        real.before.log_magnitude, fake.before.log_magnitude,
        decibel(real.before.power), decibel(fake.before.power),
        decibel(fake.before.power) - decibel(real.before.power),
        decibel(real.after.power), decibel(fake.after.power),
        decibel(fake.after.power) - decibel(real.after.power),
    ]  # fmt: skip
    for values, wanted in zip(shown, expected, strict=True):
        np.testing.assert_allclose(values, wanted)
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert len(set(limits)) == 3
    assert limits[2] == limits[3] == limits[5] == limits[6]
    assert limits[4] == limits[7]
    assert limits[4][0] == -limits[4][1]


def test_a_peak_is_marked_where_it_is_and_at_its_mirror_image(rows: list[Row]) -> None:
    marks = [
        (line.get_xdata()[0], line.get_ydata()[0]) for axes in spectrum_sheet(rows, "").axes for line in axes.lines
    ]
    assert sorted(marks) == [(-0.125, 0.25), (0.125, -0.25)]


def test_a_single_frequency_is_a_dot_of_its_own(rows: list[Row]) -> None:
    """Nothing is smoothed, and each frequency has at least a dot: a trace may be one of them."""
    figure = spectrum_sheet(rows, "")
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert {image.get_interpolation() for image in images} == {"nearest"}
    box = images[0].axes.get_position()
    assert box.width * figure.get_figwidth() * 150 >= 64


def test_names_are_literal_and_on_one_line(rows: list[Row]) -> None:
    beside = [(HOSTILE, rows[1].before)]
    pixels = np.zeros((64, 64, 3), np.uint8)
    figures = [
        spectrum_sheet(rows, HOSTILE),
        profile_figure(rows, "before", HOSTILE),
        image_figure({"before": (pixels, rows[0].before.power, beside)}, HOSTILE),
    ]
    for figure in figures:
        figure.canvas.draw()
        assert "$x^$ <b>" in texts(figure)
        assert "\x1b" not in texts(figure)


@pytest.mark.parametrize("stage", ["before", "after"])
def test_profiles_show_the_mean_and_one_standard_deviation(rows: list[Row], stage: str) -> None:
    (axes,) = [axes for axes in profile_figure(rows, stage, "").axes if axes.lines]
    spectra = {REAL: getattr(rows[0], stage), FAKE: getattr(rows[1], stage)}
    for line, band in zip(axes.lines, axes.collections, strict=True):
        spectrum = spectra[line.get_color()]
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, spectrum.size // 2 + 1) / spectrum.size)
        np.testing.assert_allclose(line.get_ydata(), decibel(spectrum.profile[1:]))
        (path,) = band.get_paths()
        highest = (spectrum.profile_decibels + spectrum.profile_decibels_std)[1:].max()
        assert path.vertices[:, 1].max() == pytest.approx(highest)


def test_an_image_stands_beside_all_its_means(rows: list[Row]) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    power = rows[1].before.power
    stages = {
        "before": (pixels, power, [(row.name, row.before) for row in rows]),
        "after": (pixels[:48, :48], rows[1].after.power, [(row.name, row.after) for row in rows]),
    }
    shown = panels(image_figure(stages, "portrait.png"))
    assert [values.shape[0] for values in shown] == [64] * 4 + [48] * 4
    np.testing.assert_allclose(shown[1], decibel(power))


def test_one_class_alone_has_its_pictures_too(rows: list[Row]) -> None:
    assert len(panels(spectrum_sheet(rows[:1], ""))) == 3
    assert profile_figure(rows[:1], "before", "").axes[0].lines
