"""Networks as a sequence of stages and a head.

A `Backbone` holds one timm network, unchanged, and an ordered list of its stages. Freezing, the stored trunk,
layer-wise learning rates and the Grad-CAM layer are all an index into that list.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Self

import timm
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models._manipulate import group_with_matcher
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from deepfake.errors import UserError
from deepfake.inputs import InputSpec
from deepfake.models.freezing import eval_frozen, is_member
from deepfake.models.weights import load_weights

CLASSES = 2  # real, generated
_LARGEST = 2048  # pixels a side of what a network takes


@dataclass(frozen=True)
class Stage:
    """One of the ordered parts of a network: a view on the network's own modules, holding none of them."""

    name: str
    """For people, e.g. "blocks.6" or "conv_head+bn2"."""
    members: tuple[str, ...]
    """The network's submodules and parameters that belong to it, by name, each with everything inside it."""
    run: Callable[[nn.Module, Tensor], Tensor]
    """Takes the network and the output of the stage before, returns the output of this one."""


class _MeanOnce(nn.AdaptiveAvgPool2d):
    """The mean over a map. What `Backbone.trunk` has pooled it lets pass: PyTorch would take long over one place."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.shape[-2:] == (1, 1) else super().forward(features)


class Backbone(nn.Module):
    """A timm network seen as a sequence of stages and a head.

    Args:
        network: a timm network with its final classifier in place.
        architecture: its timm name.
        input_spec: what it takes.
        weights_origin: where its first weights came from, for the record.

    Attributes:
        stages: first to last; every parameter and buffer is in exactly one of them or in the head.
        head_members: names of the submodules and parameters that make the head: final norm and classifier.
        splittable: whether stages can be run one by one; not if known only by timm's parameter groups.
        trunk_depth: how many of the first stages are frozen. Set by `freezing.freeze`.

    Raises:
        UserError: the stages and the head do not share out the network's tensors.
    """

    def __init__(
        self, network: nn.Module, architecture: str, input_spec: InputSpec, weights_origin: str = "unknown"
    ) -> None:
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.input_spec = input_spec
        self.weights_origin = weights_origin
        self.trunk_depth = 0
        self.head_members = _head_members(network)
        pool: Any = getattr(network, "global_pool", None)
        if isinstance(pool, SelectAdaptivePool2d) and isinstance(pool.pool, nn.AdaptiveAvgPool2d):
            pool.pool = _MeanOnce(1)  # type: ignore[assignment]
        self.splittable = type(network) in _STAGES
        self.stages = _STAGES.get(type(network), _grouped_stages)(network)
        _check_shared_out(network, self.stages, self.head_members, architecture)

    def features(self, images: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run `stages[start:stop]`.

        Args:
            images: (N, 3, H, W) normalised images, or what stage `start - 1` returned.

        Returns:
            What the last of these stages returns; of all stages, what `network.forward_features` returns.

        Raises:
            UserError: only some stages are asked of a network that can only be run as a whole.
        """
        wanted = self.stages[start:stop]
        if self.splittable:
            for stage in wanted:
                images = stage.run(self.network, images)
            return images
        if len(wanted) == len(self.stages):
            return self.network.forward_features(images)  # type: ignore[operator]
        raise UserError(
            f"stages {start}..{stop} of {self.architecture} were to be run alone: only networks of "
            f"{', '.join(sorted(kind.__name__ for kind in _STAGES))} can be run stage by stage; choose one "
            "of these, or turn off what needs single stages"
        )

    def trunk(self, images: Tensor, depths: Sequence[int], start: int = 0) -> list[Tensor]:
        """What stands after each of these numbers of first stages, without gradients.

        Args:
            images: (N, 3, H, W) normalised images, or what the first `start` stages made of them.
            depths: ascending, each from `start` + 1 to the number of stages.
            start: stages that have been run.

        Returns:
            For each depth the output of its last stage. That of all stages is pooled, where that changes nothing for
            the head: a fiftieth of the size.
        """
        outputs, begin = [], start
        with torch.no_grad():
            for depth in depths:
                images = self.features(images, begin, depth)
                outputs.append(self._pooled(images) if depth == len(self.stages) else images)
                begin = depth
        return outputs

    def _pooled(self, features: Tensor) -> Tensor:
        """One place of a map or one token, float32, of which the head makes what it makes of the whole."""
        network: Any = self.network
        pool = getattr(network, "global_pool", None)
        if isinstance(pool, SelectAdaptivePool2d) and pool.pool_type == "avg" and features.ndim == 4:
            # The mean of one place is that place.
            return F.adaptive_avg_pool2d(features.float(), 1)
        if isinstance(network, VisionTransformer) and pool == "token" and network.attn_pool is None:
            return features[:, :1].float()
        return features.float()

    def head(self, features: Tensor) -> Tensor:
        """Pooling, final norm and classifier: what the last stage made, pooled or not, to logits (N, 2), float32."""
        # Full precision under autocast too: rounded to eight bits, the scores of many images would tie.
        with torch.autocast(features.device.type, enabled=False):
            return self.network.forward_head(features.float())  # type: ignore[operator]

    def forward(self, images: Tensor, start: int = 0) -> Tensor:
        """Normalised images (N, 3, H, W), or what the first `start` stages made of them, to logits (N, 2).

        No gradient passes below the first stage that trains.
        """
        if start == len(self.stages):
            return self.head(images)
        if not self.splittable:
            return self.network(images)
        if start < self.trunk_depth:
            with torch.no_grad():
                images = self.features(images, start, self.trunk_depth)
        return self.head(self.features(images, start=max(start, self.trunk_depth)))

    def weights_hash(self, depths: Sequence[int]) -> dict[int, str]:
        """Of each of these numbers of first stages, the sha256 of all their parameters and buffers.

        Args:
            depths: each from 0 to the number of stages.
        """
        tensors = self.network.state_dict()
        running = hashlib.sha256()
        found = {0: running.hexdigest()} if 0 in depths else {}
        for number, stage in enumerate(self.stages[: max(depths)], start=1):
            for name, tensor in tensors.items():
                if is_member(name, stage.members):
                    running.update(name.encode())
                    running.update(tensor.cpu().contiguous().numpy().data)
            if number in depths:
                found[number] = running.copy().hexdigest()
        return found

    def frozen_names(self) -> set[str]:
        """Names in the network's state dict of all tensors of the frozen stages."""
        members = [member for stage in self.stages[: self.trunk_depth] for member in stage.members]
        return {name for name in self.network.state_dict() if is_member(name, members)}

    def train(self, mode: bool = True) -> Self:
        """As any module's, except that frozen stages stay in eval mode."""
        super().train(mode)
        eval_frozen(self)
        return self


def build_backbone(timm_name: str, weights: str, input_size: int | None = None, drop_rate: float = 0.0) -> Backbone:
    """A timm network with a fresh classifier of two classes.

    Args:
        timm_name: as timm knows it, e.g. "resnet18" or "resnet18.a1_in1k".
        weights: "pretrained", "package", "none" or a file; see `weights.load_weights`.
        input_size: height and width in pixels; what the network was pretrained at if None.
        drop_rate: dropout before the classifier, 0..1.

    Raises:
        UserError: timm does not know the name, the weights cannot be had or do not fit, the size does not, or what
            the network hands to its head is not one tensor.
    """
    network = _create(timm_name, drop_rate)
    origin = load_weights(network, timm_name, weights)
    _replace_classifier(network, timm_name)
    config = timm.data.resolve_model_data_config(network)
    size = config["input_size"][-1]
    if input_size is not None and input_size != size:
        _resize_input(network, timm_name, input_size, native=size)
        size = input_size
    spec = InputSpec(size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    backbone = Backbone(network, timm_name, spec, origin)
    if not backbone.splittable:
        _expect_one_tensor(network, timm_name, size)
    return backbone


def _create(timm_name: str, drop_rate: float) -> nn.Module:
    # A look-up first: create_model would take "hf-hub:..." for an order to download.
    if not timm.is_model(timm_name):
        told = timm_name[:100]  # the name may be a checkpoint's, of any length
        nearest = difflib.get_close_matches(told, timm.list_models(), n=3, cutoff=0.0)
        raise UserError(f"timm has no network named {told!r}; the nearest names are {', '.join(nearest)}")
    try:
        return timm.create_model(timm_name, pretrained=False, drop_rate=drop_rate)
    except (RuntimeError, ValueError) as error:  # the name's tag, after the dot, is unknown or none
        architecture = timm_name.split(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UserError(
            f"timm cannot build {timm_name!r} ({error}); use {architecture} or one of {', '.join(tags)}"
        ) from error


def _replace_classifier(network: Any, timm_name: str) -> None:
    network.reset_classifier(CLASSES)
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"the classifier of {timm_name} must be one linear layer, found {type(classifier).__name__}; "
            "choose another network"
        )
    # Whatever rule the network has for its own classifier: logits must start small, the loss near ln 2.
    classifier.reset_parameters()


def _resize_input(network: Any, timm_name: str, size: int, native: int) -> None:
    """Make the network take images of that size, after its weights have been loaded at its native size."""
    try:
        if size > _LARGEST:  # before it fills the memory: it may be a checkpoint's
            raise ValueError(f"more than {_LARGEST} pixels a side")
        if hasattr(network, "set_input_size"):  # transformers: interpolates the position embedding
            patch = max(network.patch_embed.patch_size)
            if size % patch:
                raise ValueError(f"not a multiple of its {patch}-pixel patches")
            network.set_input_size((size, size))
        _on_zeros(network, network.forward, size)
    # Networks refuse a size each in its own way: assertions, failed reshapes, empty maps.
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{timm_name} does not take input_size={size} ({reason}); leave it out for the network's own {native}"
        ) from error


def _on_zeros(network: nn.Module, run: Callable[[Tensor], Any], size: int) -> Any:
    """What comes of one image of so many pixels a side, with the network in eval mode and then as it was."""
    training = network.training
    network.eval()
    with torch.no_grad():
        found = run(torch.zeros(1, 3, size, size))
    network.train(training)
    return found


def _expect_one_tensor(network: Any, timm_name: str, size: int) -> None:
    """Refuse a network whose head takes several tensors: what is frozen could be neither stored nor exported."""
    found = _on_zeros(network, network.forward_features, size)
    if not isinstance(found, Tensor):
        raise UserError(
            f"what {timm_name} hands to its classifier must be one tensor, found a {type(found).__name__}; "
            "choose another network"
        )


def _stages_of_resnet(network: nn.Module) -> tuple[Stage, ...]:
    layers = ("layer1", "layer2", "layer3", "layer4")
    return (_chain("stem", "conv1", "bn1", "act1", "maxpool"), *(_chain(layer, layer) for layer in layers))


def _stages_of_efficientnet(network: nn.Module) -> tuple[Stage, ...]:
    stages = [_chain("stem", "conv_stem", "bn1")]
    stages += [_chain(name, name) for name in _children(network, "blocks")]
    closing = _present(network, "conv_head", "bn2")
    if closing:
        stages.append(_chain("+".join(closing), *closing))
    return tuple(stages)


def _stages_of_densenet(network: nn.Module) -> tuple[Stage, ...]:
    parts = _children(network, "features")
    blocks = [index for index, part in enumerate(parts) if "denseblock" in part]
    stages = [_chain("stem", *parts[: blocks[0]])]
    for first, following in zip(blocks, [*blocks[1:], len(parts)], strict=True):
        members = parts[first:following]  # a dense block and the transition, or the last norm, that closes it
        stages.append(_chain("+".join(member.split(".")[-1] for member in members), *members))
    return tuple(stages)


def _stages_of_vision_transformer(network: nn.Module) -> tuple[Stage, ...]:
    named = _present(network, "patch_embed", "cls_token", "reg_token", "pos_embed")
    unnamed = _present(network, "pos_drop", "patch_drop", "norm_pre")
    stages = [Stage("+".join(named), (*named, *unnamed), _embed)]
    blocks = _children(network, "blocks")
    stages += [_chain(block, block) for block in blocks[:-1]]
    closing = (blocks[-1], *_present(network, "norm"))
    return (*stages, _chain("+".join(closing), *closing))


_STAGES: dict[type[nn.Module], Callable[[nn.Module], tuple[Stage, ...]]] = {
    # By exact class: a subclass may run its parts in another order.
    ResNet: _stages_of_resnet,
    EfficientNet: _stages_of_efficientnet,
    DenseNet: _stages_of_densenet,
    VisionTransformer: _stages_of_vision_transformer,
}


def _chain(name: str, *modules: str) -> Stage:
    """A stage that runs the network's submodules of these names one after the other."""
    return Stage(name, modules, partial(_run_in_turn, modules))


def _run_in_turn(modules: Sequence[str], network: nn.Module, features: Tensor) -> Tensor:
    for module in modules:
        features = network.get_submodule(module)(features)
    return features


def _embed(network: Any, images: Tensor) -> Tensor:
    tokens = network._pos_embed(network.patch_embed(images))
    return network.norm_pre(network.patch_drop(tokens))


def _children(network: nn.Module, parent: str) -> list[str]:
    return [f"{parent}.{name}" for name, _ in network.get_submodule(parent).named_children()]


def _present(network: nn.Module, *names: str) -> tuple[str, ...]:
    """Those of the names under which the network has something to compute with."""
    return tuple(name for name in names if not isinstance(getattr(network, name, None), nn.Identity | None))


def _head_members(network: Any) -> tuple[str, ...]:
    classifier = next(name for name, module in network.named_modules() if module is network.get_classifier())
    # Where the classifier is part of a module "head", all of that runs after the features.
    return _present(network, "attn_pool", "fc_norm", "head_drop", classifier.split(".")[0])


def _grouped_stages(network: nn.Module) -> tuple[Stage, ...]:
    """The stages of a network of any other class, from the parameter groups that timm itself gives it."""
    try:
        matcher = network.group_matcher(coarse=True)  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:  # a few networks have none, or only a fine one
        raise UserError(
            f"a network's stages come from timm's parameter groups: found none for {type(network).__name__}; "
            "choose another network"
        ) from error
    head = _head_members(network)
    tensors = [(name, tensor) for name, tensor in _tensors(network) if not is_member(name, head)]
    groups = group_with_matcher(iter(tensors), matcher)
    ordered = [groups[number] for number in sorted(groups)]
    while len(ordered) > 1 and _only_closes(network, ordered[-1]):
        closing = ordered.pop()
        ordered[-1] += closing

    owner = {name: number for number, names in enumerate(ordered) for name in names}
    members = _largest_members(network, owner)
    weights = [name for name, _ in network.named_parameters()]
    stages = []
    for number in range(len(ordered)):
        mine = tuple(member for member, of in members if of == number)
        weighted = [member for member in mine if any(is_member(name, [member]) for name in weights)]
        name = "+".join(weighted) if len(weighted) <= 3 else f"{weighted[0]}+...+{weighted[-1]}"
        stages.append(Stage(name, mine, _run_whole_only))
    return tuple(stages)


def _run_whole_only(network: nn.Module, features: Tensor) -> Tensor:
    raise NotImplementedError("this network is known by its parameter groups and runs only as a whole")


def _only_closes(network: nn.Module, names: Sequence[str]) -> bool:
    """Whether a group holds no weights but those of norms: training it alone would be next to nothing."""
    owners = {name.rpartition(".")[0] for name, _ in network.named_parameters() if name in names}
    return all("norm" in type(network.get_submodule(owner)).__name__.lower() for owner in owners)


def _largest_members(network: nn.Module, owner: dict[str, int]) -> list[tuple[str, int]]:
    """The largest submodules whose tensors all have one owner, and the bare parameters between them.

    A submodule without tensors, such as dropout, goes with the one it feeds: the next in the network.

    Args:
        owner: of each tensor, by name; a tensor of the head is not among them.

    Returns:
        (name, owner) in the network's own order.
    """
    found: list[tuple[str, int | None]] = []
    head = -1

    def visit(module: nn.Module, prefix: str) -> None:
        for name, _ in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            found.append((prefix + name, owner.get(prefix + name, head)))
        for child_name, child in module.named_children():
            name = prefix + child_name
            owners = {owner.get(f"{name}.{tensor}", head) for tensor, _ in _tensors(child)}
            if len(owners) > 1:
                visit(child, f"{name}.")
            else:
                found.append((name, owners.pop() if owners else None))

    visit(network, "")
    resolved: list[tuple[str, int]] = []
    following = head
    for name, of in reversed(found):
        following = following if of is None else of
        resolved.append((name, following))
    return [(name, of) for name, of in reversed(resolved) if of != head]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _check_shared_out(
    network: nn.Module, stages: Sequence[Stage], head_members: Sequence[str], architecture: str
) -> None:
    """Every tensor in exactly one place: else freezing would miss one, or count it twice."""
    places = [(stage.name, stage.members) for stage in stages] + [("head", tuple(head_members))]
    for name, _ in _tensors(network):
        owners = [place for place, members in places if is_member(name, members)]
        if len(owners) != 1:
            raise UserError(
                f"{architecture}: {name} must belong to exactly one stage or to the head, "
                f"found {' and '.join(owners) or 'none'}; choose another network"
            )
