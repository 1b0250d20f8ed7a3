"""Spectra against slow sums, pure waves and known resampling."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepfake.analysis.spectra import (
    Moments,
    SpectrumMoments,
    centre_square,
    decibel,
    gray,
    log_magnitude,
    power_spectrum,
    radial_profile,
)
from deepfake.errors import UserError


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((size, size))


def wave(size: int, across: int, down: int = 0, amplitude: float = 0.4) -> np.ndarray:
    """A cosine of whole cycles, between 0 and 1."""
    steps = np.arange(size)
    return 0.5 + amplitude * np.cos(2 * np.pi * (across * steps + down * steps[:, None]) / size + 0.3)


def slow_power(image: np.ndarray, window: bool) -> np.ndarray:
    """The Fourier sum, written out frequency by frequency."""
    size = len(image)
    centred = image - image.mean()
    if window:
        hann = [0.5 - 0.5 * math.cos(2 * math.pi * i / size) for i in range(size)]
        centred = np.array([[centred[y, x] * hann[y] * hann[x] for x in range(size)] for y in range(size)])
    y, x = np.mgrid[:size, :size]
    power = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            v, u = row - size // 2, column - size // 2
            term = (centred * np.exp(-2j * np.pi * (u * x + v * y) / size)).sum()
            power[row, column] = abs(term) ** 2 / size**4
    return power


def slow_profile(power: np.ndarray) -> np.ndarray:
    size = len(power)
    rings: list[list[float]] = [[] for _ in range(size // 2 + 1)]
    for row in range(size):
        for column in range(size):
            radius = round(math.sqrt((row - size // 2) ** 2 + (column - size // 2) ** 2))
            if radius <= size // 2:
                rings[radius].append(power[row, column])
    return np.array([math.fsum(ring) / len(ring) for ring in rings])


@pytest.mark.parametrize("size", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("window", [False, True])
def test_power_and_profile_equal_slow_sums(size: int, window: bool) -> None:
    image = noise(size)
    power = power_spectrum(image, window)
    np.testing.assert_allclose(power, slow_power(image, window), rtol=1e-6, atol=1e-18)
    profile = radial_profile(power)
    assert profile.shape == (size // 2 + 1,)
    np.testing.assert_allclose(profile, slow_profile(power), rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize(
    ("size", "cycles"),
    [(size, k) for size in (16, 17, 224, 225) for k in {1, 2, 3, size // 4, size // 2 - 1, size // 2}],
)
def test_a_pure_cosine_falls_into_its_own_radius_alone(size: int, cycles: int) -> None:
    for image in (wave(size, cycles), wave(size, 0, cycles)):
        profile = radial_profile(power_spectrum(image))
        assert profile.argmax() == cycles
        assert np.delete(profile, cycles).max() < 1e-20


def test_a_slanted_cosine_falls_into_the_nearest_radius() -> None:
    profile = radial_profile(power_spectrum(wave(64, 9, 14)))
    assert profile.argmax() == round(math.hypot(9, 14))


@pytest.mark.parametrize("size", [32, 33, 100])
def test_power_of_a_cosine_is_a_quarter_of_its_squared_amplitude(size: int) -> None:
    power = power_spectrum(wave(size, 5, amplitude=0.3))
    middle = size // 2
    assert power[middle, middle + 5] == pytest.approx(0.3**2 / 4)
    assert power[middle, middle - 5] == pytest.approx(0.3**2 / 4)


@pytest.mark.parametrize("size", [32, 33])
def test_power_sums_to_the_variance(size: int) -> None:
    assert power_spectrum(noise(size)).sum() == pytest.approx(noise(size).var())


def test_the_mean_leaves_no_trace() -> None:
    power = power_spectrum(noise(32))
    assert power[16, 16] < 1e-30
    np.testing.assert_allclose(power_spectrum(noise(32) + 0.2), power, atol=1e-15)


def test_white_noise_is_flat_and_the_window_lowers_it_by_9_64ths() -> None:
    images = [noise(64, seed) for seed in range(40)]
    plain = np.mean([radial_profile(power_spectrum(image)) for image in images], axis=0)
    windowed = np.mean([radial_profile(power_spectrum(image, window=True)) for image in images], axis=0)
    np.testing.assert_allclose(plain[5:], noise(64).var() / 64**2, rtol=0.15)
    assert (windowed[5:].mean() / plain[5:].mean()) == pytest.approx(9 / 64, rel=0.03)


def test_the_window_takes_away_the_cross_that_edges_leave() -> None:
    ramp = np.linspace(0, 1, 64)[None, :].repeat(64, axis=0)
    assert radial_profile(power_spectrum(ramp, window=True))[20] < 1e-4 * radial_profile(power_spectrum(ramp))[20]


@pytest.mark.parametrize("cycles", [3, 5, 11])
def test_nearest_upsampling_by_2_leaves_a_replica_of_known_height(cycles: int) -> None:
    # A wave of k cycles in n samples, each sample shown twice: frequencies k and n - k, weighed by
    # cos^2(pi k / 2n) and sin^2(pi k / 2n).
    small = wave(32, cycles)
    profile = power_spectrum(small.repeat(2, axis=0).repeat(2, axis=1))[32]
    quarter = 0.4**2 / 4
    assert profile[32 + cycles] == pytest.approx(quarter * math.cos(math.pi * cycles / 64) ** 2)
    assert profile[32 + 32 - cycles] == pytest.approx(quarter * math.sin(math.pi * cycles / 64) ** 2)
    rings = radial_profile(power_spectrum(small.repeat(2, axis=0).repeat(2, axis=1)))
    assert set(np.flatnonzero(rings > 1e-15)) == {cycles, 32 - cycles}


def test_nearest_upsampling_lifts_high_frequencies_that_smooth_upsampling_does_not() -> None:
    falling = np.cumsum(np.cumsum(noise(32) - 0.5, axis=0), axis=1)
    small = Image.fromarray(((falling - falling.min()) / np.ptp(falling) * 255).astype(np.uint8))
    profiles = {}
    for name, method in (("nearest", Image.Resampling.NEAREST), ("bicubic", Image.Resampling.BICUBIC)):
        shown = np.asarray(small.resize((64, 64), method).convert("RGB"))
        profiles[name] = decibel(radial_profile(power_spectrum(gray(shown), window=True)))
    difference = profiles["nearest"] - profiles["bicubic"]
    assert difference[26:32].min() > 6
    assert abs(difference[1:8]).max() < 1


def test_gray_is_the_luma() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255] * 3, [0] * 3, [51] * 3]], dtype=np.uint8)
    found = gray(pixels)
    np.testing.assert_allclose(found, [[0.299, 0.587, 0.114], [1, 0, 0.2]], atol=1e-12)
    assert found.dtype == np.float64
    assert found.max() == 1


@pytest.mark.parametrize(
    "pixels", [np.ones((4, 4, 3)), np.ones((4, 4), np.uint8), np.ones((4, 4, 4), np.uint8)], ids=str
)
def test_gray_refuses_other_pixels(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 pixels \(H, W, 3\), found"):
        gray(pixels)


def test_centre_square_cuts_evenly() -> None:
    image = np.arange(7 * 10).reshape(7, 10)
    assert (centre_square(image, 4) == image[1:5, 3:7]).all()
    assert (centre_square(image, 7) == image[:, 1:8]).all()
    coloured = np.zeros((7, 10, 3), np.uint8)
    assert centre_square(coloured, 5).shape == (5, 5, 3)


def test_centre_square_refuses_a_small_image() -> None:
    with pytest.raises(UserError, match=r"at least 8 x 8 pixels, found 10 x 7.*1 to 7 pixels"):
        centre_square(np.zeros((7, 10)), 8)


@pytest.mark.parametrize("call", [power_spectrum, radial_profile])
def test_only_squares_have_a_spectrum(call) -> None:
    with pytest.raises(ValueError, match=r"expected a square .* found \(7, 10\)"):
        call(np.zeros((7, 10)))


def test_decibel_has_a_floor() -> None:
    np.testing.assert_allclose(decibel(np.array([1.0, 0.1, 0.0])), [0, -10, -120], atol=1e-6)


def test_a_profile_can_be_changed_without_changing_the_next() -> None:
    power = power_spectrum(noise(16))
    first = radial_profile(power)
    first[:] = 0
    assert (radial_profile(power)[1:] > 0).all()


# ---------------------------------------------------------------------------------------------------- many images


def independent(images: list[np.ndarray], window: bool) -> dict[str, np.ndarray]:
    """All means at once, from the definition, with none of the code that is tested."""
    size = len(images[0])
    taper = np.outer(*[0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)] * 2) if window else 1.0
    transformed = np.stack([np.abs(np.fft.fftshift(np.fft.fft2((i - i.mean()) * taper))) for i in images])
    power = transformed**2 / size**4
    distance = np.rint(np.hypot(*np.meshgrid(*[np.arange(size) - size // 2] * 2)))
    profiles = np.array([[one[distance == k].mean() for k in range(size // 2 + 1)] for one in power])
    return {
        "power": power.mean(axis=0),
        "power_std": power.std(axis=0),
        "log_magnitude": np.log(1 + transformed).mean(axis=0),
        "log_magnitude_std": np.log(1 + transformed).std(axis=0),
        "decibels": (10 * np.log10(power + 1e-12)).mean(axis=0),
        "profile": profiles.mean(axis=0),
        "profile_decibels": (10 * np.log10(profiles + 1e-12)).mean(axis=0),
        "profile_decibels_std": (10 * np.log10(profiles + 1e-12)).std(axis=0),
    }


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("window", [False, True])
def test_means_equal_an_independent_computation(size: int, window: bool) -> None:
    images = [noise(size, seed) * (1 + seed) / 9 for seed in range(9)]
    moments = SpectrumMoments()
    for image in images:
        moments.add(power_spectrum(image, window))
    result = moments.result()
    assert result.images == 9
    assert result.size == size
    for name, expected in independent(images, window).items():
        np.testing.assert_allclose(getattr(result, name), expected, rtol=1e-6, atol=1e-15, err_msg=name)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
def test_parts_that_were_added_up_apart_are_merged_to_the_same(parts: list[int]) -> None:
    images = [power_spectrum(noise(12, seed)) for seed in range(sum(parts))]
    whole, merged = SpectrumMoments(), SpectrumMoments()
    for image in images:
        whole.add(image)
    start = 0
    for length in parts:
        part = SpectrumMoments()
        for image in images[start : start + length]:
            part.add(image)
        merged.merge(part)
        start += length
    for name in ("images", "power", "power_std", "decibels", "log_magnitude_std", "profile_decibels_std"):
        np.testing.assert_allclose(
            getattr(merged.result(), name), getattr(whole.result(), name), rtol=1e-9, atol=1e-18
        )


def test_deviations_of_large_numbers_are_not_lost() -> None:
    moments = Moments()
    for value in (1e9 + 1, 1e9 + 2, 1e9 + 3):
        moments.add(np.array([value]))
    assert moments.std == pytest.approx(math.sqrt(2 / 3))


def test_what_is_held_does_not_grow_with_the_images() -> None:
    moments = SpectrumMoments()
    moments.add(power_spectrum(noise(32)))
    held = len(pickle.dumps(moments))
    for seed in range(50):
        moments.add(power_spectrum(noise(32, seed)))
    assert len(pickle.dumps(moments)) == held


def test_a_mean_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one image, found none"):
        SpectrumMoments().result()


def test_the_studys_picture_is_the_logarithm_of_one_plus_the_magnitude() -> None:
    image = noise(24)
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(image - image.mean())))
    np.testing.assert_allclose(log_magnitude(power_spectrum(image)), np.log(1 + magnitude), rtol=1e-6)
