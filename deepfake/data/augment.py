"""Augmentation as a pure function of (seed, image, view): the same pixels whatever loads them, and in what order."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """The study's: each drawn anew for every image and view."""

    rotation: float = 0.0  # degrees to either side, uniform
    translation: float = 0.0  # share of the side, to either side, uniform
    flip: float = 0.0  # probability of a mirror image
    brightness: float = 0.0  # factor uniform within 1 +- this


def random_for(*keys: object) -> np.random.Generator:
    """A random generator that depends on the keys alone: no state is shared between images, workers or epochs."""
    digest = hashlib.sha256(":".join(map(str, keys)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def crop_place(seed: int, sha256: str, view: int) -> tuple[float, float]:
    """Where a view's crop lies in the room that the image leaves it: shares (down, right), each uniform in [0, 1).

    Args:
        seed: of the run.
        sha256: of the image's file; equal files get equal places.
        view: number of the view, the epoch for instance.
    """
    down, right = random_for("crop", seed, sha256, view).random(2)
    return float(down), float(right)


def augment(pixels: np.ndarray, how: Augmentation, seed: int, sha256: str, view: int) -> np.ndarray:
    """One augmented view of an image.

    Args:
        pixels: uint8 (height, width, 3).
        how: strengths.
        seed: of the run.
        sha256: of the image's file; equal files get equal views.
        view: number of the view, the epoch for instance.

    Returns:
        uint8 of the same shape. Pixels from outside are mirrored in.
    """
    random = random_for("augment", seed, sha256, view)
    angle, right, down, mirror, light = random.uniform(-1, 1, 5)  # always five, so that one knob moves no other
    height, width = pixels.shape[:2]
    if how.rotation or how.translation:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle * how.rotation, 1.0)
        matrix[:, 2] += right * how.translation * width, down * how.translation * height
        pixels = cv2.warpAffine(
            pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
    if (mirror + 1) / 2 < how.flip:
        pixels = pixels[:, ::-1]
    if how.brightness:
        # A table of 256 values is the fastest way to scale bytes with rounding and clipping.
        table = np.clip(np.rint(np.arange(256) * (1 + light * how.brightness)), 0, 255).astype(np.uint8)
        pixels = table[pixels]
    return np.ascontiguousarray(pixels)
