"""Which stages of a backbone train: one index into its ordered list of stages.

Plain functions. `unfreeze=n` trains the last n stages and the head, `0` the head alone, `all` everything.
What is frozen takes no gradient and stays in eval mode, so that not one of its bytes changes in a fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from deepfake.errors import UserError

if TYPE_CHECKING:
    from deepfake.models.backbones import Backbone, Stage


@dataclass(frozen=True)
class Freezing:
    """What a freezing policy came down to, for logs and reports."""

    trained: tuple[str, ...]
    """Names of the stages that train, first to last, then "head"."""
    frozen: tuple[str, ...]
    """Names of the stages that do not, first to last."""
    trained_weights: int
    """How many numbers take a gradient."""
    total_weights: int
    """How many numbers the network's parameters hold."""


def trained_stages(stages: Sequence[Stage], unfreeze: int | str) -> int:
    """How many of the last stages train under a policy.

    Args:
        stages: a backbone's stages, first to last.
        unfreeze: how many of them train, from the last; "all" for every one.

    Raises:
        UserError: `unfreeze` is neither "all" nor a whole number from 0 to the number of stages.
    """
    if unfreeze == "all":
        return len(stages)
    # True and False are integers to Python, never to a user.
    if isinstance(unfreeze, int) and not isinstance(unfreeze, bool) and 0 <= unfreeze <= len(stages):
        return unfreeze
    raise UserError(
        f"unfreeze must be 0..{len(stages)} or all: found {unfreeze!r}; unfreeze=n trains the head and "
        f"the last n of this backbone's stages, which are {', '.join(stage.name for stage in stages)}"
    )


def freeze(backbone: Backbone, unfreeze: int | str) -> Freezing:
    """Make the last `unfreeze` stages and the head trainable, and everything before them constant.

    May be called again with another number, as gradual unfreezing does.

    Raises:
        UserError: as `trained_stages`.
    """
    depth = len(backbone.stages) - trained_stages(backbone.stages, unfreeze)
    backbone.network.requires_grad_(True)
    for stage in backbone.stages[:depth]:
        for _, parameter in stage_parameters(backbone.network, stage):
            parameter.requires_grad_(False)
    backbone.trunk_depth = depth
    # Stages thawed since the last call follow the mode again; the frozen ones stay in eval.
    backbone.train(backbone.training)

    parameters = list(backbone.network.parameters())
    return Freezing(
        trained=(*(stage.name for stage in backbone.stages[depth:]), "head"),
        frozen=tuple(stage.name for stage in backbone.stages[:depth]),
        trained_weights=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total_weights=sum(parameter.numel() for parameter in parameters),
    )


def eval_frozen(backbone: Backbone) -> None:
    """Put the frozen stages in eval mode: BatchNorm keeps its statistics, dropout lets everything pass.

    Gradients are not enough: a BatchNorm without gradients still moves its running mean in train mode.
    To be called after every `.train()`.
    """
    modules = dict(backbone.network.named_modules())
    for stage in backbone.stages[: backbone.trunk_depth]:
        for member in stage.members:
            if member in modules:  # the others are bare parameters, such as a class token
                modules[member].eval()


def stage_parameters(network: nn.Module, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one stage with their names in the network, e.g. to give them a learning rate."""
    for name, parameter in network.named_parameters():
        if is_member(name, stage.members):
            yield name, parameter


def is_member(name: str, members: Sequence[str]) -> bool:
    """Whether a parameter, buffer or submodule of that name is one of `members` or lies inside one."""
    return any(name == member or name.startswith(f"{member}.") for member in members)
