"""Filters do to waves what their formulas say, and the sentence says what the curves do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d

from deepfake.analysis.frequencies import Curve, filtered, half_cutoff, high_pass, low_pass, sentence, spectrum_of

CUTOFFS = [0.02, 0.04, 0.08, 0.16, 0.32]


def wave(size: int, half_cycles: int, axis: int) -> np.ndarray:
    """A cosine of so many half cycles over the image: one of those that the mirrored continuation leaves whole."""
    line = np.cos(np.pi * half_cycles * (np.arange(size) + 0.5) / size)
    return np.broadcast_to(line[:, np.newaxis] if axis == 0 else line, (3, size, size)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("half_cycles", [4, 16, 40])
def test_a_wave_is_left_by_its_gain(half_cycles: int, axis: int) -> None:
    size, cutoff = 64, 0.125
    frequency = half_cycles / (2 * size)
    gain = 1 / (1 + (frequency / cutoff) ** 8)
    given_wave = wave(size, half_cycles, axis)
    low = filtered(spectrum_of(given_wave), low_pass(size, cutoff))
    high = filtered(spectrum_of(given_wave), high_pass(size, cutoff))
    assert low == pytest.approx(gain * given_wave, abs=1e-5)
    assert high == pytest.approx((1 - gain) * given_wave, abs=1e-5)
    assert low.dtype == high.dtype == np.float32


def test_at_the_cutoff_half_is_left_in_every_direction() -> None:
    gain = low_pass(50, 0.3)
    assert gain[0, 30] == gain[30, 0] == pytest.approx(0.5)
    assert gain[18, 24] == pytest.approx(0.5)  # 18 and 24 make 30
    assert (np.diff(gain[0]) <= 0).all()


@given(size=st.integers(8, 40), cutoff=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_the_two_parts_make_the_image_and_keep_its_mean(size: int, cutoff: float, seed: int) -> None:
    image = np.random.default_rng(seed).normal(0.3, 1, (3, size, size)).astype(np.float32)
    parts = [filtered(spectrum_of(image), make(size, cutoff)) for make in (low_pass, high_pass)]
    mean = image.mean(axis=(1, 2), keepdims=True)
    for part in parts:
        assert part.mean(axis=(1, 2)) == pytest.approx(mean.ravel(), abs=1e-4)
    assert sum(parts) == pytest.approx(image + mean, abs=1e-4)


def test_the_filter_is_a_convolution_of_the_mirrored_image() -> None:
    """Done the long way: the filter's own kernel, over an image that is continued by its mirror image."""
    size = 32
    noise = np.random.default_rng(0).normal(size=(size,)).astype(np.float32)
    lines = np.broadcast_to(noise, (1, size, size)).astype(np.float32)  # all rows alike: what counts is one axis
    frequencies = np.fft.fftfreq(2 * size)
    kernel = np.fft.ifft(1 / (1 + (frequencies / 0.1) ** 8)).real
    kernel = np.roll(kernel, size)  # of odd length, its middle in the middle
    kernel = np.append(kernel, kernel[0])
    kernel[[0, -1]] /= 2
    expected = convolve1d(noise.astype(np.float64), kernel, mode="reflect")
    assert filtered(spectrum_of(lines), low_pass(size, 0.1))[0, 0] == pytest.approx(expected, abs=1e-5)


def curve(*auroc: float, width: float = 0.05) -> Curve:
    return Curve(auroc, [(value - width, value + width) for value in auroc])


def test_half_of_the_lead_goes_between_two_cutoffs() -> None:
    # Of .9, half of the lead is left at .7: midway between .04 and .08 by the logarithm.
    assert half_cutoff(CUTOFFS, [0.5, 0.6, 0.8, 0.9, 0.9], 0.9, "low") == pytest.approx(0.04 * 2**0.5)
    assert half_cutoff(CUTOFFS, [0.9, 0.9, 0.8, 0.6, 0.5], 0.9, "high") == pytest.approx(0.08 * 2**0.5)


def test_coming_from_the_mildest_filter_the_first_fall_counts() -> None:
    assert half_cutoff(CUTOFFS, [0.9, 0.5, 0.9, 0.5, 0.9], 0.9, "low") == pytest.approx(0.16 * 2**0.5)
    assert half_cutoff(CUTOFFS, [0.9, 0.5, 0.9, 0.5, 0.9], 0.9, "high") == pytest.approx(0.02 * 2**0.5)


def test_what_is_gone_at_the_mildest_does_not_come_back() -> None:
    assert half_cutoff(CUTOFFS, [0.5, 0.5, 0.9, 0.5, 0.5], 0.9, "low") is None
    assert half_cutoff(CUTOFFS, [0.5, 0.5, 0.9, 0.5, 0.5], 0.9, "high") is None


@pytest.mark.parametrize("auroc", [[0.9] * 5, [0.5] * 5])
def test_a_cutoff_outside_those_that_were_tried_is_not_told(auroc: list[float]) -> None:
    assert half_cutoff(CUTOFFS, auroc, 0.9, "low") is None
    assert half_cutoff(CUTOFFS, auroc, 0.9, "high") is None


def told(low: Curve, high: Curve, whole: float = 0.9, **probes: Curve) -> str:
    return sentence(CUTOFFS, whole, (whole - 0.05, whole + 0.05), {"low_pass": low, "high_pass": high, **probes})


def test_a_band_that_decides_is_named() -> None:
    found = told(curve(0.5, 0.5, 0.5, 0.5, 0.9), curve(0.9, 0.9, 0.5, 0.5, 0.5))
    assert found.startswith(
        "Of the lead over chance, AUROC 0.900 [0.850, 0.950] on the unfiltered images, half is left"
    )
    assert found.endswith("What decides lies mostly between 0.057 and 0.23 cycles a pixel.")


def test_evidence_at_both_ends_is_no_band() -> None:
    found = told(curve(0.5, 0.9, 0.9, 0.9, 0.9), curve(0.9, 0.9, 0.9, 0.9, 0.5))
    assert (
        "half is left by what is coarser than 0.028 cycles a pixel, half is left by what is finer than 0.23" in found
    )
    assert found.endswith("Either alone is enough for half: no narrow band decides.")


def test_evidence_outside_the_cutoffs_is_told_as_such() -> None:
    found = told(curve(*[0.5] * 5), curve(*[0.9] * 5))
    assert "less than half is left by what is coarser than 0.32 cycles a pixel" in found
    assert "more than half is left by what is finer than 0.32 cycles a pixel" in found


def test_what_the_spectrum_holds_and_the_network_does_not_use_is_told() -> None:
    low, high = curve(0.5, 0.6, 0.8, 0.9, 0.9), curve(0.9, 0.8, 0.7, 0.6, 0.5)
    probes = {"probe_low": curve(*[0.6] * 5), "probe_high": curve(0.8, 0.8, 0.8, 0.8, 0.65)}
    found = told(low, high, **probes)
    assert (
        "Of what is finer than 0.16 cycles a pixel, a linear probe on the spectrum alone tells more, 0.800 [0.750, "
        "0.850], than the network on such images, 0.600 [0.550, 0.650]." in found
    )
    assert "coarser than 0.02 cycles a pixel, a linear probe" not in found  # the intervals meet


def test_a_probe_that_is_nowhere_better_is_told_as_such() -> None:
    low, high = curve(0.5, 0.6, 0.8, 0.9, 0.9), curve(0.9, 0.8, 0.7, 0.6, 0.5)
    nothing = Curve([np.nan] * 5, [(np.nan, np.nan)] * 5)
    found = told(low, high, probe_low=curve(*[0.5] * 5), probe_high=nothing)
    assert found.endswith("Nowhere is a linear probe on the spectrum alone shown to tell more than the network.")


def test_chance_has_no_frequencies() -> None:
    assert told(curve(*[0.5] * 5), curve(*[0.5] * 5), whole=0.53) == (
        "Not told: AUROC 0.530 [0.480, 0.580] on the unfiltered images, no better than chance."
    )


def test_one_class_has_no_auroc() -> None:
    assert told(curve(*[np.nan] * 5), curve(*[np.nan] * 5), whole=np.nan).startswith("Not told: AUROC is undefined")
