"""The spectrum of one image beside those of the training sources: what each line is, and what the key says."""

import numpy as np
from matplotlib.figure import Figure

from deepfake.reporting.figures import FAKE, INK, REAL
from deepfake.reporting.profile_figure import profile_figure


def drawn(sources: int) -> tuple[Figure, np.ndarray, np.ndarray]:
    own, profiles = np.arange(9.0), np.arange(9.0) + 100 * np.arange(1, sources + 1)[:, None]
    names = np.array([f"$x_{number}" for number in range(sources)])
    labels, counts = np.arange(sources) % 2, np.full(sources, 1000)
    return profile_figure(own, profiles, names, labels, counts), own, profiles


def key(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_each_source_is_a_line_of_its_class_and_the_image_the_last_on_top() -> None:
    figure, own, profiles = drawn(2)
    real, fake, image = figure.axes[0].lines
    assert [line.get_color() for line in (real, fake, image)] == [REAL, FAKE, INK]
    for line, expected in ((real, profiles[0]), (fake, profiles[1]), (image, own)):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 9) / 16)  # up to half a cycle a pixel
        np.testing.assert_array_equal(line.get_ydata(), expected[1:])
    assert key(figure) == ["real: $x_0, n = 1,000", "generated: $x_1, n = 1,000", "this image"]


def test_many_sources_are_counted_in_the_key() -> None:
    figure, _, _ = drawn(13)
    assert len(figure.axes[0].lines) == 14
    assert key(figure) == ["real: 7 sources, n = 7,000", "generated: 6 sources, n = 6,000", "this image"]
