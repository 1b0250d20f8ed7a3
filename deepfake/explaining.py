"""What in an image speaks for a verdict, as a heat map laid over the image.

Grad-CAM (Selvaraju et al., 2017) of the margin says which places raise logit(fake) - logit(real), or lower it, by way
of the last features that still have places. Attention rollout (Abnar and Zuidema, 2020) says from which places of the
image the last features of a vision transformer come, and not for which class they speak. A map is as coarse as the
features, and relative: the strongest place of each image is red, however little it weighs. It shows where a network
looks, not whether it is right; `python -m deepfake.explain` measures whether that is so.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deepfake.analysis.attribution import rollout
from deepfake.errors import UserError
from deepfake.judging import Member
from deepfake.models.backbones import Backbone

Pixels = NDArray[np.uint8]
Maps = NDArray[np.float32]

_SHOWN = 512  # pixels of the longer side of a picture, at most
_IMAGE_WEIGHT = 0.6  # of the image under the map
_GAP, _LETTERS, _TITLE = 8, 16, 48  # pixels: between pictures, of the letters, of the two lines above
_NARROWEST = 280  # pixels that these lines take


def expect_explainable(asked: str = "explain=true") -> None:
    """Refuse early what needs the extra.

    Args:
        asked: the setting that needs it.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UserError(f"{asked}: expected the package grad-cam, found none. Run: pip install 'deepfake[explain]'")


class Explainer:
    """Draws what speaks for a verdict: the mean of the maps of all networks that judge an image.

    They run in eager PyTorch and float32, for no other engine gives gradients or attention, on one view, whatever tta
    says.

    Args:
        members: of the detector.
        method: grad-cam, rollout, or auto: Grad-CAM, which every network has that keeps places, and which alone knows
            for which class a place speaks.
        asked: the setting that asked for maps, for refusals.

    Attributes:
        method: grad-cam or rollout.
        layers: of each member, the stage whose output is looked at, or what else is.
        places: rows and columns of the finest map.

    Raises:
        UserError: the extra is not installed, a network keeps no places, or has no attention where its rollout is
            asked for.
    """

    def __init__(self, members: Sequence[Member], method: str = "auto", asked: str = "explain=true") -> None:
        expect_explainable(asked)
        self.method = "rollout" if method == "rollout" else "grad-cam"
        make: type[_GradCam | _Rollout] = _Rollout if self.method == "rollout" else _GradCam
        self._maps: list[tuple[Member, _Method]] = [(each, make(each.module.backbone, asked)) for each in members]
        self.layers = [found.layer for _, found in self._maps]
        rows, columns = zip(*(found.places for _, found in self._maps), strict=True)
        self.places = max(rows), max(columns)

    def heat(self, images: Sequence[NDArray[np.float32]], fake: NDArray[np.bool_]) -> dict[Hashable, Maps]:
        """What speaks for a verdict on some images: the mean map of all members that are shown the same part of them.

        Args:
            images: of each member what it is shown, float32 (n, 3, size, size), normalised.
            fake: (n,), of which verdict; attention knows none.

        Returns:
            By `part_of` the members float32 (n, size, size) in [0, 1]: the strongest place of each member is 1, or
            all are 0 where none speaks for the verdict.
        """
        maps: dict[Hashable, list[Maps]] = defaultdict(list)
        for (member, found), own in zip(self._maps, images, strict=True):
            maps[part_of(member)].append(found(torch.from_numpy(own).to(member.module.device), fake))
        return {part: _mean(of_part) for part, of_part in maps.items()}

    def overlays(self, pixels: Pixels, fake: bool = True) -> tuple[list[Pixels], str]:
        """The image under the map, once for each part of it that a network is shown, and what red means there.

        Args:
            pixels: uint8 (height, width, 3).
            fake: what speaks for this verdict is shown, else what speaks for real.

        Raises:
            UnreadableImage: the image cannot be prepared.
        """
        images = [member.prepared(pixels, "none") for member, _ in self._maps]
        shown: dict[Hashable, Pixels] = {}
        for (member, _), image in zip(self._maps, images, strict=True):
            part = part_of(member)
            shown[part] = shrunk(pixels) if part is None else _denormalised(image[0], member)
        means = self.heat(images, np.array([fake]))
        # More than one only where members were trained on different parts of the images.
        pictures = [_under(shown[part], heat[0]) for part, heat in means.items()]
        verdict = "fake" if fake else "real"
        if self.method == "rollout":
            key = "red: where the attention is"
        elif any(map(np.any, means.values())):
            key = f"red: what speaks for {verdict}"
        else:
            key = f"no place speaks for {verdict}"
        return pictures, key

    def picture(self, pixels: Pixels, verdict: str) -> Pixels:
        """The image and, beside it, under the map of what speaks for fake.

        Args:
            pixels: uint8 (height, width, 3).
            verdict: the title.

        Raises:
            UnreadableImage: the image cannot be prepared.
        """
        pictures, key = self.overlays(pixels)
        return _side_by_side([shrunk(pixels), *pictures], f"{verdict}\n{key}")


def part_of(member: Member) -> Hashable:
    """Which part of an image a network is shown, the same for the same part; None: all of it."""
    preparation = member.preparation
    if preparation.mode == "resize" and preparation.equalise is None:
        return None
    return preparation, member.module.backbone.input_spec.size


class _Method(Protocol):
    """Of one network."""

    layer: str
    places: tuple[int, int]

    def __call__(self, images: Tensor, fake: NDArray[np.bool_]) -> Maps:
        """Float32 (n, size, size) in [0, 1] of normalised images (n, 3, size, size)."""
        ...


class _GradCam:
    """Which places raise the margin, or lower it, as far as its gradient at the last features with places says."""

    def __init__(self, backbone: Backbone, asked: str) -> None:
        from pytorch_grad_cam import GradCAM

        network = _InTwo(backbone, asked)
        self.cam = GradCAM(network, [network.split], network.as_map)
        self.layer, self.places = backbone.stages[network.depth - 1].name, network.places

    def __call__(self, images: Tensor, fake: NDArray[np.bool_]) -> Maps:
        return self.cam(images, [_margin if each else _minus_margin for each in fake])


class _Rollout:
    """From which places the tokens come that the classifier reads."""

    def __init__(self, backbone: Backbone, asked: str) -> None:
        network: Any = backbone.network
        layers = [block.attn for block in network.blocks] if type(network) is VisionTransformer else []
        first = 0 if getattr(network, "pool_include_prefix", False) else getattr(network, "num_prefix_tokens", 0)
        pools = {"token": slice(0, 1), "avg": slice(first, None)}
        if {type(layer) for layer in layers} != {Attention} or network.global_pool not in pools:
            raise UserError(
                f"{asked}: expected a vision transformer whose classifier reads its class token or the mean of its "
                f"patches, found {backbone.architecture}. Choose method=grad-cam, or name another run."
            )
        self.layer, self.places = f"all {len(layers)} blocks", network.patch_embed.grid_size
        self.pooled = pools[network.global_pool]
        # Fused attention gives no weights. A copy of the modules, with the same parameters, does without it, so that
        # the network itself is never touched, and may judge other images meanwhile.
        tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, tensors)
        self.attention: list[NDArray[np.float32]] = []
        for block in self.network.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(self._note)

    def __call__(self, images: Tensor, fake: NDArray[np.bool_]) -> Maps:
        from pytorch_grad_cam.utils.image import scale_cam_image

        self.attention.clear()
        with torch.inference_mode():
            self.network.forward_features(images)
        rows, columns = self.places
        read = rollout(self.attention)[:, self.pooled].mean(axis=1)
        places = read[:, -rows * columns :].reshape(-1, rows, columns).astype(np.float32)
        return scale_cam_image(places, images.shape[:1:-1])

    def _note(self, module: nn.Module, given: Any, weights: Tensor) -> None:
        self.attention.append(weights.mean(dim=1).cpu().numpy())


class _InTwo(nn.Module):
    """A network as two halves, with a module between them that the features pass which still have places.

    The hook of Grad-CAM is on that module, which nothing else runs: the network may judge other images meanwhile. No
    gradient is taken of the first half, whether or not it was frozen.
    """

    def __init__(self, backbone: Backbone, asked: str) -> None:
        super().__init__()
        self.backbone, self.split = backbone, nn.Identity()
        stages = len(backbone.stages)
        for depth in range(stages, 0, -1) if backbone.splittable else (stages,):
            if places := self._places(depth):
                self.depth, self.places = depth, places
                return
        raise UserError(
            f"{asked}: expected a network whose classifier is reached by features that have places, found "
            f"{backbone.architecture}, where none are left. Do without maps, or name another run."
        )

    def forward(self, images: Tensor) -> Tensor:
        return self._second(self.split(self._first(images, self.depth)), self.depth)

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

    def _places(self, depth: int) -> tuple[int, int] | None:
        """Rows and columns of what the classifier depends on: of the last tokens, it may read but the first."""
        size, device = self.backbone.input_spec.size, next(self.backbone.parameters()).device
        image = torch.linspace(-2, 2, 3 * size * size, device=device).view(1, 3, size, size)
        features = self._first(image, depth)
        (gradient,) = torch.autograd.grad(_margin(self._second(features, depth)[0]), features)
        if gradient.ndim not in (3, 4):
            return None
        places = self.as_map(gradient)
        rows, columns = places.shape[2:]
        return (rows, columns) if rows * columns > 1 and bool(places.any()) else None


def _margin(logits: Tensor) -> Tensor:
    return logits[1] - logits[0]


def _minus_margin(logits: Tensor) -> Tensor:
    return logits[0] - logits[1]


def _mean(maps: Sequence[Maps]) -> Maps:
    """Of maps (n, size, size) of one part of the same images, in whichever sizes its networks take it."""
    largest = max(found.shape[1] for found in maps)
    same = [[cv2.resize(each, (largest, largest)) for each in found] for found in maps]
    return np.mean(same, axis=0, dtype=np.float32)


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
