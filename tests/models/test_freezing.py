from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from deepfake.errors import UserError
from deepfake.models.backbones import Backbone, InputSpec, build_backbone
from deepfake.models.freezing import freeze, is_member, stage_parameters, trained_stages

SIZE = 32
NETWORKS = [
    "resnet18",
    "efficientnet_b0",
    "densenet121",
    "vit_tiny_patch16_224",
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "ghostnet_100",  # known by its parameter groups alone
]


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy(force=True).tobytes() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_after_steps_in_train_mode_what_is_frozen_has_the_same_bytes(name: str, unfreeze: int | str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, "none", input_size=SIZE)
    freezing = freeze(backbone, unfreeze)
    before = bytes_of(backbone.network)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        backbone.train()
        loss = F.cross_entropy(backbone(torch.randn(4, 3, SIZE, SIZE)), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = bytes_of(backbone.network)

    frozen = [stage for stage in backbone.stages if stage.name in freezing.frozen]
    still = {key for key in before if any(is_member(key, stage.members) for stage in frozen)}
    changed = {key for key in before if before[key] != after[key]}
    assert not changed & still
    assert changed == before.keys() - still


@pytest.mark.parametrize(
    ("name", "unfreeze", "trained"),
    [
        ("efficientnet_b0", 2, 1_131_954),  # the study's
        ("efficientnet_b0", 0, 1280 * 2 + 2),
        ("resnet18", 0, 512 * 2 + 2),
        ("densenet121", "all", 6_955_906),
        ("vit_base_patch16_224", 1, 7_087_872 + 2 * 768 + 768 * 2 + 2),  # a block, the last norm, the head
    ],
)
def test_trained_weights(name: str, unfreeze: int | str, trained: int) -> None:
    backbone = build_backbone(name, "none")
    freezing = freeze(backbone, unfreeze)
    assert freezing.trained_weights == trained
    assert freezing.total_weights == sum(p.numel() for p in backbone.parameters())
    assert trained == sum(p.numel() for p in backbone.parameters() if p.requires_grad)


def test_freezing_names_what_trains() -> None:
    backbone = build_backbone("resnet18", "none")
    freezing = freeze(backbone, 2)
    assert freezing.trained == ("layer3", "layer4", "head")
    assert freezing.frozen == ("stem", "layer1", "layer2")
    assert backbone.trunk_depth == 3
    assert freeze(backbone, "all").frozen == ()


def test_frozen_stages_are_in_eval_mode_whatever_is_called() -> None:
    backbone = build_backbone("test_resnet", "none")
    freeze(backbone, 1)

    def modes() -> list[bool]:
        return [backbone.network.get_submodule(name).training for name in ("bn1", "layer1", "layer4", "fc")]

    assert modes() == [False, False, True, True]
    nn.Sequential(backbone).eval()
    assert modes() == [False] * 4
    nn.Sequential(backbone).train()  # as a module that holds the backbone does
    assert modes() == [False, False, True, True]


def test_a_stage_that_thaws_trains_again() -> None:
    backbone = build_backbone("test_resnet", "none")
    freeze(backbone, 0)
    freeze(backbone, "all")
    assert all(module.training for module in backbone.modules())
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    backbone.eval()
    freeze(backbone, 1)
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("dropout", [{"pos_drop_rate": 0.5}, {"proj_drop_rate": 0.5}, {"drop_path_rate": 0.9}])
def test_dropout_of_frozen_stages_is_off(dropout: dict[str, Any]) -> None:
    spec = InputSpec(160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    backbone = Backbone(timm.create_model("test_vit", num_classes=2, **dropout), "test_vit", spec)
    images = torch.randn(4, 3, 160, 160)
    assert not torch.equal(backbone(images), backbone(images))
    freeze(backbone, 0)
    assert torch.equal(backbone(images), backbone(images))


def test_stage_parameters_share_out_the_network() -> None:
    backbone = build_backbone("test_vit", "none")
    of_stages = [name for stage in backbone.stages for name, _ in stage_parameters(backbone.network, stage)]
    of_head = ["head.weight", "head.bias"]
    assert sorted(of_stages + of_head) == sorted(name for name, _ in backbone.network.named_parameters())
    # whole names only: blocks.1 is not the beginning of blocks.10
    assert not is_member("blocks.10.norm1.weight", ["blocks.1"])


def test_trained_stages() -> None:
    stages = build_backbone("test_resnet", "none").stages
    assert [trained_stages(stages, unfreeze) for unfreeze in (0, 3, 5, "all")] == [0, 3, 5, 5]


@pytest.mark.parametrize("unfreeze", [6, -1, "last", "2", 1.0, True, None])
def test_an_unfreeze_out_of_range(unfreeze: Any) -> None:
    backbone = build_backbone("test_resnet", "none")
    with pytest.raises(
        UserError, match=rf"unfreeze must be 0\.\.5 or all: found {unfreeze!r}; .*stem, layer1, .*layer4"
    ):
        freeze(backbone, unfreeze)
