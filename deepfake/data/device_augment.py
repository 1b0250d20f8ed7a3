"""Augmentation of whole batches where the network runs: what `augment` does to images one by one with OpenCV.

The same numbers decide the same view. Mirror images and brightness are the same to the byte. Rotation and translation
are the same up to OpenCV's rounding: it interpolates at multiples of 1/32 of a pixel, here it is done in between.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from deepfake.data.augment import Augmentation


def supported(how: Augmentation) -> bool:
    """Whether `augment_batch` can do all of it: blur, shrinking, noise and JPEG stay on the processor."""
    return not (how.blur or how.shrink or how.noise or how.jpeg)


def augment_batch(images: Tensor, draws: Tensor, how: Augmentation) -> Tensor:
    """One augmented view of each image, all of them at once.

    Args:
        images: uint8 (N, 3, H, W), on any device that knows float64, laid out in memory in any order.
        draws: float64 (N, 5), on the same device: what `drawn` gives for each image.
        how: strengths.

    Returns:
        uint8 of the same shape and layout. Pixels from outside are mirrored in, the outermost not repeated.

    Raises:
        ValueError: augmentation that is not `supported`, or draws that are not five float64 for each image.
    """
    if not supported(how):
        raise ValueError(f"expected an augmentation without blur, shrink, noise and jpeg, found {how}: use augment")
    if draws.shape != (len(images), 5) or draws.dtype != torch.float64:
        expected = f"draws of shape {(len(images), 5)}, torch.float64"
        raise ValueError(f"expected {expected}, found {tuple(draws.shape)}, {draws.dtype}: stack what drawn gives")
    angle, right, down, mirror, light = draws.unbind(1)
    if how.rotation or how.translation:
        images = _turn(images, angle * how.rotation, right * how.translation, down * how.translation)
    if how.flip:
        images = torch.where(_each((mirror + 1) / 2 < how.flip), images.flip(3), images)
    if how.brightness:
        # In float64, as the table of `augment` is made: less would round some bytes to the other side.
        images = (images * _each(1 + light * how.brightness)).round_().clamp_(0, 255).to(torch.uint8)
    return images


def _turn(images: Tensor, degrees: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Each image as `augment.turn` does it; angles and shares (N,)."""
    height, width = images.shape[2:]
    # Where each pixel comes from: moved back, then turned back, counted from the centre.
    x = _centred(width, right).unsqueeze(1)
    y = _centred(height, down).unsqueeze(2)
    cos, sin = (f(torch.deg2rad(degrees)).float()[:, None, None] for f in (torch.cos, torch.sin))
    # No matrix product, which a graphics card may be allowed to compute to ten bits.
    from_x, from_y = cos * x - sin * y, sin * x + cos * y
    # `grid_sample` counts in halves of the way between the outermost pixels' centres, which a single pixel lacks.
    grid = torch.stack([from_x / (max(width - 1, 1) / 2), from_y / (max(height - 1, 1) / 2)], dim=3)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return torch.empty_like(images).copy_(turned.round_())  # `grid_sample` does not keep the layout


def _centred(size: int, move: Tensor) -> Tensor:
    """Pixels along a side, counted from the centre, moved back by shares (N,) of the side: float32 (N, size)."""
    pixels = torch.arange(size, dtype=move.dtype, device=move.device) - (size - 1) / 2
    return (pixels - size * move[:, None]).float()


def _each(values: Tensor) -> Tensor:
    """(N,), one of each image, shaped to meet its pixels."""
    return values[:, None, None, None]
