"""Augmentation as a pure function of (seed, image, view): the same pixels whatever loads them, and in what order.

The operations it is made of are plain functions, which `perturbations` uses too.
"""

import hashlib
import io
import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """Each drawn anew for every image and view."""

    # The study's.
    rotation: float = 0.0  # degrees to either side, uniform
    translation: float = 0.0  # share of the side, to either side, uniform
    flip: float = 0.0  # probability of a mirror image
    brightness: float = 0.0  # factor uniform within 1 +- this
    # What happens to images on their way, each with its own probability; its strength is uniform from min to max.
    blur: float = 0.0  # probability of Gaussian blur
    blur_min: float = 0.0  # its standard deviation, in pixels of the image as the network takes it
    blur_max: float = 3.0
    shrink: float = 0.0  # probability of being shrunk and enlarged again
    shrink_min: float = 0.5  # factor of the sides
    shrink_max: float = 1.0
    noise: float = 0.0  # probability of Gaussian noise
    noise_min: float = 0.0  # its standard deviation, where black is 0 and white is 1
    noise_max: float = 0.1
    jpeg: float = 0.0  # probability of going through JPEG
    jpeg_min: int = 30  # quality
    jpeg_max: int = 100


def random_for(*keys: object) -> np.random.Generator:
    """A random generator that depends on the keys alone: no state is shared between images, workers or epochs."""
    digest = hashlib.sha256(":".join(map(str, keys)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def crop_place(seed: int, sha256: str, view: int) -> tuple[float, float]:
    """Where a view's crop lies in the room that the image leaves it: shares (down, right), each uniform in [0, 1).

    Args:
        seed: of the views.
        sha256: of the image's file; equal files get equal places.
        view: number of the view, the epoch for instance.
    """
    down, right = random_for("crop", seed, sha256, view).random(2)
    return float(down), float(right)


def drawn(seed: int, sha256: str, view: int) -> np.ndarray:
    """What decides a view of the study's augmentation: float64 (5,), each uniform in [-1, 1).

    In their order: rotation, move to the right, move down, mirror image, brightness. Always all five, so that one
    knob moves no other.

    Args:
        seed: of the views.
        sha256: of the image's file; equal files get equal numbers.
        view: number of the view, the epoch for instance.
    """
    return random_for("augment", seed, sha256, view).uniform(-1, 1, 5)


def augment(pixels: np.ndarray, how: Augmentation, seed: int, sha256: str, view: int) -> np.ndarray:
    """One augmented view of an image.

    Args:
        pixels: uint8 (height, width, 3).
        how: strengths.
        seed: of the views.
        sha256: of the image's file; equal files get equal views.
        view: number of the view, the epoch for instance.

    Returns:
        uint8 of the same shape. Pixels from outside are mirrored in.
    """
    angle, right, down, mirror, light = drawn(seed, sha256, view)
    if how.rotation or how.translation:
        pixels = turn(pixels, angle * how.rotation, right * how.translation, down * how.translation)
    if (mirror + 1) / 2 < how.flip:
        pixels = cv2.flip(pixels, 1)
    if how.brightness:
        # A table of 256 values is the fastest way to scale bytes with rounding and clipping.
        table = np.clip(np.rint(np.arange(256) * (1 + light * how.brightness)), 0, 255).astype(np.uint8)
        pixels = cv2.LUT(pixels, table)
    if how.blur or how.shrink or how.noise or how.jpeg:
        # A stream of its own: what the study's knobs draw stays what it was without these.
        pixels = _degraded(pixels, how, random_for("degrade", seed, sha256, view))
    return np.ascontiguousarray(pixels)


def _degraded(pixels: np.ndarray, how: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Compressed last, as the copies that travel are."""
    happens, strength = random.random((2, 4))  # always eight, so that one knob moves no other; the noise comes after
    if happens[0] < how.blur:
        pixels = blur(pixels, how.blur_min + strength[0] * (how.blur_max - how.blur_min))
    if happens[1] < how.shrink:
        pixels = resize_and_restore(pixels, how.shrink_min + strength[1] * (how.shrink_max - how.shrink_min))
    if happens[2] < how.noise:
        pixels = add_noise(pixels, how.noise_min + strength[2] * (how.noise_max - how.noise_min), random)
    if happens[3] < how.jpeg:
        pixels = compress(pixels, how.jpeg_min + int(strength[3] * (how.jpeg_max - how.jpeg_min + 1)))
    return pixels


def turn(pixels: np.ndarray, degrees: float, right: float = 0.0, down: float = 0.0) -> np.ndarray:
    """Turn about the centre, counter-clockwise, then move by shares of the sides; bilinear.

    Args:
        pixels: uint8 (height, width, 3).
        degrees: of the rotation.
        right, down: of the move, as shares of width and height.

    Returns:
        uint8 of the same shape. Pixels from outside are mirrored in, the outermost not repeated.
    """
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += right * width, down * height
    return cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of so many pixels' standard deviation, cut off after four of them: uint8 of the same shape.

    Pixels from outside are mirrored in, the outermost not repeated.
    """
    size = 2 * math.ceil(4 * sigma) + 1
    # In floating point, for OpenCV's blur of bytes rounds the kernel itself to 1/256.
    blurred = cv2.GaussianBlur(pixels.astype(np.float32), (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
    return _to_bytes(blurred)


def resize_and_restore(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Sides times the factor, then back to what they were; both bilinear with antialias: uint8 of the same shape."""
    height, width = pixels.shape[:2]
    other = max(1, round(width * factor)), max(1, round(height * factor))
    resized = Image.fromarray(pixels).resize(other, Image.Resampling.BILINEAR)
    return np.asarray(resized.resize((width, height), Image.Resampling.BILINEAR))


def add_noise(pixels: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, drawn apart for every pixel and channel: uint8 of the same shape.

    Args:
        pixels: uint8 (height, width, 3).
        sigma: standard deviation, where black is 0 and white is 1.
        random: drawn from.
    """
    noise = random.standard_normal(pixels.shape, np.float32)
    return _to_bytes(pixels + np.float32(255 * sigma) * noise)


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """What is left after JPEG of that quality, 1 to 100, with colour at half the resolution (4:2:0).

    Args:
        pixels: uint8 (height, width, 3), at most 65,500 pixels a side.
        quality: of libjpeg.

    Returns:
        uint8 of the same shape.
    """
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(content))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
