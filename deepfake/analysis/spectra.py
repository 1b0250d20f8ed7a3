"""How an image's power spreads over spatial frequencies, where generators and resizing leave their traces.

A leaf: plain functions on one image, and `SpectrumMoments`, the means over any number of them. The profile of a set
of images is `decibel(mean of radial_profile(power_spectrum(centre_square(gray(pixels), N))))`: average the power
first and take decibels last, because the mean of decibels is another quantity that a few dark images would rule.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepfake.errors import UserError

Floats = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # R, G, B as ITU-R BT.601 weighs them, and JPEG with it

# Keeps the logarithm finite: -120 dB. One gray level of 255 at one frequency is above it, at -54 dB.
FLOOR = 1e-12


def gray(pixels: NDArray[np.uint8]) -> Floats:
    """Luma, .299 R + .587 G + .114 B.

    Args:
        pixels: uint8 (H, W, 3), RGB.

    Returns:
        float64 (H, W) in [0, 1].

    Raises:
        ValueError: another shape or type; scaling what is in [0, 1] already would move every spectrum by 48 dB.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected uint8 pixels (H, W, 3), found {pixels.dtype} {pixels.shape}")
    return pixels @ LUMA / 255


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image, cut and never resized: resizing would change the spectrum.

    Args:
        image: (H, W) or (H, W, 3), any type.
        size: side of the square in pixels.

    Returns:
        (size, size) or (size, size, 3), a view. Where the margin is odd, the extra pixel is cut at the bottom or
        the right.

    Raises:
        UserError: the image is smaller than that.
    """
    height, width = image.shape[:2]
    if not 1 <= size <= min(height, width):
        raise UserError(
            f"expected an image of at least {size} x {size} pixels, found {width} x {height}. "
            f"Choose a square of 1 to {min(height, width)} pixels, or leave the image out."
        )
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def power_spectrum(gray: Floats, window: bool = False) -> Floats:
    """Power at every spatial frequency, zero frequency in the middle.

    P = |F|^2 / N^4 with F = fftshift(fft2(gray - mean)). A cosine of amplitude a has power a^2 / 4 at each of its two
    frequencies, whatever N is, and the sum of P is the variance of the image (Parseval).

    Args:
        gray: (N, N) in [0, 1], even or odd N.
        window: multiply by a Hann window after the mean is removed, which takes away the cross that the jump from
            each edge to the opposite one leaves. Not made up for: it lowers noise by 8.5 dB, (3/8)^2, and spreads
            a pure cosine over its neighbours. Say with every figure whether it was on.

    Returns:
        float64 (N, N), at least 0; [N//2 + v, N//2 + u] is v cycles down and u cycles across the image.

    Raises:
        ValueError: the image is not square.
    """
    if gray.ndim != 2 or gray.shape[0] != gray.shape[1] or gray.size == 0:
        raise ValueError(f"expected a square gray image (N, N), found {gray.shape}")
    size = gray.shape[0]
    centred = gray - gray.mean()
    if window:
        # The periodic Hann window, 0 at the first pixel only: the one whose transform has three non-zero terms.
        hann = np.hanning(size + 1)[:-1]
        centred = centred * np.outer(hann, hann)
    transformed = np.fft.fft2(centred)
    return np.fft.fftshift(transformed.real**2 + transformed.imag**2) / float(size) ** 4


def radial_profile(power: Floats) -> Floats:
    """Mean power at each distance from zero frequency.

    Every frequency belongs to the one radius r = rint(hypot(u, v)), so that a wave of k cycles along an axis falls
    into entry k and nowhere else. The corners, beyond N//2 cycles, are left out.

    Args:
        power: (N, N), zero frequency at [N//2, N//2], as `power_spectrum` returns.

    Returns:
        float64 (N//2 + 1,): entry k is the mean over r = k, in cycles an image.

    Raises:
        ValueError: the spectrum is not square.
    """
    if power.ndim != 2 or power.shape[0] != power.shape[1] or power.size == 0:
        raise ValueError(f"expected a square power spectrum (N, N), found {power.shape}")
    radius, counts = _rings(power.shape[0])
    return np.bincount(radius, weights=power.ravel())[: counts.size] / counts


def decibel(power: NDArray[np.floating]) -> Floats:
    """10 log10(P + 1e-12), for power of any shape; never below -120."""
    return 10 * np.log10(np.asarray(power, dtype=np.float64) + FLOOR)


def log_magnitude(power: Floats) -> Floats:
    """log(1 + |F|), the picture of a spectrum that the study drew; of power (N, N), in natural units, at least 0.

    F is that of `power_spectrum`, before it is divided by N^2. The 1 hides all that is below |F| = 1.
    """
    return np.log1p(np.sqrt(power) * float(power.shape[0]) ** 2)


class Moments:
    """Mean and standard deviation of arrays that come one by one; holds two arrays, however many come.

    Chan, Golub and LeVeque (1983): no difference of large sums, and parts that were added up apart can be merged.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(())
        self._squares: Floats = np.zeros(())  # sum of squared deviations from the mean

    def add(self, values: Floats) -> None:
        """One more array; all have one shape."""
        self._merge(1, values, 0.0)

    def merge(self, other: "Moments") -> None:
        """All that another one was given."""
        if other.count:
            self._merge(other.count, other.mean, other._squares)

    @property
    def std(self) -> Floats:
        """Of the arrays themselves (division by their number): 0 of a single one."""
        return np.sqrt(self._squares / max(self.count, 1))

    def _merge(self, count: int, mean: Floats, squares: Floats | float) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self._squares = self._squares + squares + difference**2 * (self.count * count / total)
        self.count = total


@dataclass(frozen=True)
class MeanSpectrum:
    """Means over images, with the standard deviation between them; (N, N), or (N//2 + 1,) by radius."""

    images: int
    power: Floats  # mean of P
    power_std: Floats
    log_magnitude: Floats  # mean of log(1 + |F|), the study's picture
    log_magnitude_std: Floats
    decibels: Floats  # mean of each image's own decibels: what most images show, whatever a few of them hold
    profile: Floats  # mean of the radial profiles of P
    profile_decibels: Floats  # mean of each image's own radial profile in decibels
    profile_decibels_std: Floats

    @property
    def size(self) -> int:
        """N."""
        return self.power.shape[0]


class SpectrumMoments:
    """What `MeanSpectrum` says, while spectra come one by one."""

    def __init__(self) -> None:
        self._moments = {name: Moments() for name in ("power", "log", "decibels", "profile", "profile_decibels")}

    def add(self, power: Floats) -> None:
        """One more image's `power_spectrum`, of the same size as the others."""
        profile = radial_profile(power)
        self._moments["power"].add(power)
        self._moments["log"].add(log_magnitude(power))
        self._moments["decibels"].add(decibel(power))
        self._moments["profile"].add(profile)
        self._moments["profile_decibels"].add(decibel(profile))

    def merge(self, other: "SpectrumMoments") -> None:
        """All images of another one."""
        for name, moments in self._moments.items():
            moments.merge(other._moments[name])

    @property
    def images(self) -> int:
        """How many there were."""
        return self._moments["power"].count

    def result(self) -> MeanSpectrum:
        """Of the images so far.

        Raises:
            ValueError: there were none.
        """
        if not self.images:
            raise ValueError("expected at least one image, found none")
        power, log, decibels, profile, profile_decibels = self._moments.values()
        return MeanSpectrum(
            self.images, power.mean, power.std, log.mean, log.std, decibels.mean,
            profile.mean, profile_decibels.mean, profile_decibels.std,
        )  # fmt: skip


@lru_cache(maxsize=8)
def _rings(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The radius of each of the size^2 frequencies, flat, and how many have radius 0 ... size//2."""
    steps = np.arange(size) - size // 2
    radius = np.rint(np.hypot(steps[:, np.newaxis], steps)).astype(np.int64).ravel()
    counts = np.bincount(radius)[: size // 2 + 1]
    radius.flags.writeable = counts.flags.writeable = False  # shared by every caller
    return radius, counts
