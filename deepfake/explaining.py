"""What in an image speaks for fake: Grad-CAM (Selvaraju et al., 2017) of the margin, laid over the image.

A map says which places raise logit(fake) - logit(real) by way of the last features that still have places. It is as
coarse as they are, and relative: the strongest place of each image is red, however little it weighs. It shows where a
network looks, not whether it is right.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Hashable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from deepfake.errors import UserError
from deepfake.judging import Member
from deepfake.models.backbones import Backbone

Pixels = NDArray[np.uint8]

_SHOWN = 512  # pixels of the longer side of a picture, at most
_IMAGE_WEIGHT = 0.6  # of the image under the map
_GAP, _LETTERS, _TITLE = 8, 16, 48  # pixels: between pictures, of the letters, of the two lines above
_NARROWEST = 280  # pixels that these lines take


def expect_explainable() -> None:
    """Refuse early what needs the extra.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UserError(
            "explain=true: expected the package grad-cam, found none. Run: pip install 'deepfake[explain]'"
        )


class Explainer:
    """Draws what speaks for fake: the mean of the maps of all networks that judge an image.

    They run in eager PyTorch and float32, for no other engine gives gradients, on one view, whatever tta says.

    Args:
        members: of the detector.

    Raises:
        UserError: the extra is not installed, or a network keeps no places.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        expect_explainable()
        from pytorch_grad_cam import GradCAM

        self._maps = []
        for member in members:
            network = _InTwo(member.module.backbone)
            self._maps.append((member, GradCAM(network, [network.places], network.as_map)))

    def picture(self, pixels: Pixels, verdict: str) -> Pixels:
        """The image and, beside it, the same under the map; where a network was shown but a part of it, that part.

        Args:
            pixels: uint8 (height, width, 3).
            verdict: the title.

        Raises:
            UnreadableImage: the image cannot be prepared.
        """
        original = shrunk(pixels)
        shown: dict[Hashable, Pixels] = {}
        maps: dict[Hashable, list[NDArray[np.float32]]] = defaultdict(list)
        for member, grad_cam in self._maps:
            prepared = member.prepared(pixels, "none")
            part = _part(member)
            shown[part] = original if part is None else _denormalised(prepared[0], member)
            maps[part] += [*grad_cam(torch.from_numpy(prepared), [_margin])]
        # More than two pictures only where members were trained on different parts of the images.
        means = {part: np.stack(of_part).mean(axis=0) for part, of_part in maps.items()}
        key = "red: what speaks for fake" if any(map(np.any, means.values())) else "no place speaks for fake"
        return _side_by_side([original, *(_under(shown[part], means[part]) for part in means)], f"{verdict}\n{key}")


class _InTwo(nn.Module):
    """A network as two halves, with a module between them that the features pass which still have places.

    The hook of Grad-CAM is on that module, which nothing else runs: the network may judge other images meanwhile. No
    gradient is taken of the first half, whether or not it was frozen.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.places = backbone, nn.Identity()
        stages = len(backbone.stages)
        depths = range(stages, 0, -1) if backbone.splittable else (stages,)
        depth = next((depth for depth in depths if self._has_places(depth)), None)
        if depth is None:
            raise UserError(
                f"explain=true: expected a network whose classifier is reached by features that have places, found "
                f"{backbone.architecture}, where none are left. Leave explain out, or name another run."
            )
        self.depth = depth

    def forward(self, images: Tensor) -> Tensor:
        return self._second(self.places(self._first(images, self.depth)), self.depth)

    def _first(self, images: Tensor, depth: int) -> Tensor:
        with torch.no_grad():
            return self.backbone.features(images, 0, depth).requires_grad_()

    def _second(self, features: Tensor, depth: int) -> Tensor:
        return self.backbone.head(self.backbone.features(features, depth) if self.backbone.splittable else features)

    def as_map(self, features: Tensor) -> Tensor:
        """Features or their gradients (N, C, H, W), of tokens those of the patches, the last of them."""
        network = self.backbone.network
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features
        height, width = getattr(getattr(network, "patch_embed", None), "grid_size", (1, 1))
        return features[:, -height * width :].mT.unflatten(2, (height, width))

    def _has_places(self, depth: int) -> bool:
        """Whether there are, and the classifier depends on them: of the last tokens, it may read but the first."""
        size, device = self.backbone.input_spec.size, next(self.backbone.parameters()).device
        image = torch.linspace(-2, 2, 3 * size * size, device=device).view(1, 3, size, size)
        features = self._first(image, depth)
        (gradient,) = torch.autograd.grad(_margin(self._second(features, depth)[0]), features)
        if gradient.ndim not in (3, 4):
            return False
        places = self.as_map(gradient)
        return places[0, 0].numel() > 1 and bool(places.any())


def _margin(logits: Tensor) -> Tensor:
    return logits[1] - logits[0]


def _part(member: Member) -> Hashable:
    """Which part of an image a network is shown, the same for the same part; None: all of it."""
    preparation = member.preparation
    if preparation.mode == "resize" and preparation.equalise is None:
        return None
    return preparation, member.module.backbone.input_spec.size


def _denormalised(image: NDArray[np.float32], member: Member) -> Pixels:
    """What `Member.prepared` made of it, as pixels again."""
    spec = member.module.backbone.input_spec
    return np.rint((image.transpose(1, 2, 0) * spec.std + spec.mean) * 255).clip(0, 255).astype(np.uint8)


def shrunk(pixels: Pixels) -> Pixels:
    """A picture to be looked at: the longer side of at most 512 pixels."""
    factor = _SHOWN / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _under(pixels: Pixels, heat: NDArray[np.float32]) -> Pixels:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    height, width = pixels.shape[:2]
    heat = np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    return show_cam_on_image(np.float32(pixels) / 255, heat, use_rgb=True, image_weight=_IMAGE_WEIGHT)


def _side_by_side(pictures: Sequence[Pixels], title: str) -> Pixels:
    width = sum(picture.shape[1] + _GAP for picture in pictures) - _GAP
    height = max(picture.shape[0] for picture in pictures)
    sheet = Image.new("RGB", (max(width, _NARROWEST), _TITLE + height), "white")
    ImageDraw.Draw(sheet).text((4, 2), title, fill="black", font=ImageFont.load_default(_LETTERS))
    left = 0
    for picture in pictures:
        sheet.paste(Image.fromarray(picture), (left, _TITLE))
        left += picture.shape[1] + _GAP
    return np.asarray(sheet)
