"""What happens to images on their way to us, one kind at a time, to see how an answer bears it.

A perturbation acts on the decoded original, before anything is done to it for the network, on both classes alike, and
is the same whenever it is applied to the same file.
"""

from dataclasses import dataclass

import numpy as np

from deepfake.data.augment import add_noise, blur, compress, random_for, resize_and_restore, turn

# Kinds in the order of the grid: the strengths it holds; the least and the greatest allowed, in words.
_GRID: dict[str, tuple[float, ...]] = {
    "jpeg": (100, 90, 80, 70, 60, 50, 40, 30),
    "blur": (1, 2, 3, 4),
    "resize": (0.5, 0.75, 1.25, 1.5, 2.0),
    "noise": (0.01, 0.03, 0.05, 0.1),
    "rotation": (-15, 15, 90),
    "flip": (1,),
    "crop": (0.9, 0.8),
}
_LIMITS: dict[str, tuple[float, float, str]] = {
    "jpeg": (1, 100, "a whole quality from 1 to 100"),
    "blur": (0, 100, "a standard deviation from 0 to 100 pixels"),
    "resize": (0.1, 10, "a factor from 0.1 to 10"),
    "noise": (0, 1, "a standard deviation from 0 to 1, where black is 0 and white is 1"),
    "rotation": (-180, 180, "degrees from -180 to 180"),
    "flip": (1, 1, "1, for a mirror image has no strength"),
    "crop": (0.1, 1, "a share of the sides from 0.1 to 1"),
}
_UNITS = {"blur": " px", "rotation": " deg"}

_LONGEST = 32_766  # pixels a side; OpenCV turns no longer image


@dataclass(frozen=True)
class Perturbation:
    """One kind at one strength.

    - jpeg: through JPEG of this quality, 1 to 100, with colour at half the resolution (4:2:0). No quality leaves an
      image as it is.
    - blur: Gaussian, standard deviation in pixels.
    - resize: the sides times this factor and back again, both bilinear with antialias.
    - noise: Gaussian, drawn apart for every pixel and channel, standard deviation where black is 0 and white is 1.
    - rotation: degrees, counter-clockwise, about the centre. A multiple of 90 moves pixels and makes none, so that
      width and height of 90 change places; any other angle is bilinear in the image's own frame, with what
      lies outside mirrored in.
    - flip: left and right change places; its strength is always 1.
    - crop: the middle part, this share of width and of height; it is not enlarged again.

    Raises:
        ValueError: there is no such kind, or not at that strength.
    """

    kind: str
    strength: float

    def __post_init__(self) -> None:
        if self.kind not in _LIMITS:
            raise ValueError(f"kind: expected one of {', '.join(_LIMITS)}, found {self.kind!r}")
        least, most, expected = _LIMITS[self.kind]
        # Written so that NaN, which compares false with everything, fails too.
        if not least <= self.strength <= most or (self.kind == "jpeg" and self.strength % 1):
            raise ValueError(f"{self.kind}: expected {expected}, found {self.strength}")

    @property
    def name(self) -> str:
        """As tables show it: jpeg 70, blur 2 px, resize 0.5, noise 0.05, rotation -15 deg, flip, crop 0.9."""
        return "flip" if self.kind == "flip" else f"{self.kind} {self.strength:g}{_UNITS.get(self.kind, '')}"


def grid() -> tuple[Perturbation, ...]:
    """Every perturbation that robustness is judged by."""
    return tuple(Perturbation(kind, strength) for kind, strengths in _GRID.items() for strength in strengths)


def perturb(pixels: np.ndarray, perturbation: Perturbation, sha256: str) -> np.ndarray:
    """The image as it would have come with this perturbation.

    Args:
        pixels: uint8 (height, width, 3), RGB, of the decoded original; not written to.
        perturbation: what happens to it.
        sha256: of the image's file; equal files get equal noise.

    Returns:
        uint8, contiguous, of the same shape, apart from a rotation by 90 degrees, which swaps height and width, and
        a crop, which leaves that share of each, rounded, at least one pixel.

    Raises:
        ValueError: pixels of another type or shape, none at all, or more than 32,766 a side.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels: expected uint8 of shape (height, width, 3), found {pixels.dtype} {pixels.shape}")
    if max(pixels.shape) > _LONGEST:
        raise ValueError(f"pixels: expected at most {_LONGEST} a side, found {pixels.shape[1]} x {pixels.shape[0]}")
    return np.ascontiguousarray(_perturbed(pixels, perturbation.kind, perturbation.strength, sha256))


def _perturbed(pixels: np.ndarray, kind: str, strength: float, sha256: str) -> np.ndarray:
    match kind:
        case "jpeg":
            return compress(pixels, int(strength))
        case "blur":
            return blur(pixels, strength)
        case "resize":
            return resize_and_restore(pixels, strength)
        case "noise":
            # As a float, for 1 and 1.0 are the same strength and not the same key.
            return add_noise(pixels, strength, random_for("perturb", kind, float(strength), sha256))
        case "rotation" if strength % 90 == 0:
            return np.rot90(pixels, int(strength // 90))
        case "rotation":
            return turn(pixels, strength)
        case "flip":
            return pixels[:, ::-1]
        case _:  # crop
            return _middle(pixels, strength)


def _middle(pixels: np.ndarray, share: float) -> np.ndarray:
    height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
