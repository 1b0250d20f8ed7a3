import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from deepfake.errors import UserError
from deepfake.models.backbones import Backbone, InputSpec, build_backbone
from deepfake.models.freezing import freeze

EFFICIENTNET = ["stem", *(f"blocks.{n}" for n in range(7)), "conv_head+bn2"]
STAGES = {
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "efficientnet_b0": EFFICIENTNET,
    "tf_efficientnet_lite0": EFFICIENTNET,
    "mobilenetv2_100": EFFICIENTNET,
    "densenet121": [
        "stem",
        "denseblock1+transition1",
        "denseblock2+transition2",
        "denseblock3+transition3",
        "denseblock4+norm5",
    ],
    "vit_base_patch16_224": [
        "patch_embed+cls_token+pos_embed",
        *(f"blocks.{n}" for n in range(11)),
        "blocks.11+norm",
    ],
}
GENERIC = {
    "convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3"],
    "regnetx_002": ["stem", "s1", "s2", "s3", "s4"],
    # the norm that closes the stack is not a stage of its own
    "swin_tiny_patch4_window7_224": ["patch_embed", "layers.0", "layers.1", "layers.2", "layers.3+norm"],
}
SIZE = 64  # the least at which every one of these networks still has a map to pool


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    """One of each from random weights; a test that changes one must copy it."""
    torch.manual_seed(0)
    return {name: build_backbone(name, "none", input_size=SIZE).eval() for name in STAGES}


def images(count: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", STAGES)
def test_stages_in_turn_and_head_are_the_network(backbones: dict[str, Backbone], name: str) -> None:
    backbone = backbones[name]
    assert [stage.name for stage in backbone.stages] == STAGES[name]
    assert backbone.splittable
    with torch.no_grad():
        expected = backbone.network(images())
        features = images()
        for index in range(len(backbone.stages)):
            before = features.clone()
            following = backbone.features(features, index, index + 1)
            assert torch.equal(features, before), "a stage must not write into what it was given"
            features = following
        assert expected.shape == (2, 2)
        torch.testing.assert_close(backbone.head(features), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone(images()), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.features(images()), features, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "vit_base_patch16_224"])
def test_a_trunk_without_gradients_changes_no_logit(backbones: dict[str, Backbone], name: str) -> None:
    backbone = copy.deepcopy(backbones[name])
    expected = backbone(images())
    freeze(backbone, 1)
    logits = backbone(images())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    logits.sum().backward()
    with_gradient = {key for key, value in backbone.network.named_parameters() if value.grad is not None}
    assert with_gradient == {key for key, value in backbone.network.named_parameters() if value.requires_grad}


def pooled_as(backbone: Backbone) -> tuple[int, ...]:
    """Shape of what the trunk gives of one image at the end."""
    width = backbone.network.num_features
    return (1, width) if "vit" in backbone.architecture else (width, 1, 1)


@pytest.mark.parametrize("name", STAGES)
def test_a_trunk_is_its_stages_and_pooled_at_the_end(backbones: dict[str, Backbone], name: str) -> None:
    backbone = backbones[name]
    depths = range(1, len(backbone.stages) + 1)
    outputs = backbone.trunk(images(), depths)
    with torch.no_grad():
        for depth, output in zip(depths, outputs, strict=True):
            expected = backbone.features(images(), stop=depth)
            if depth < len(backbone.stages):
                assert torch.equal(output, expected)
            else:
                assert output.shape == (2, *pooled_as(backbone))
                torch.testing.assert_close(backbone.head(output), backbone.head(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone(outputs[-1], start=len(depths)), backbone(images()), atol=1e-5, rtol=0)
    assert not any(output.requires_grad for output in outputs)


def test_a_trunk_goes_on_from_where_another_ended(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["resnet18"]
    first, *others = backbone.trunk(images(), [2, 3, 5])
    for found, expected in zip(backbone.trunk(first, [3, 5], start=2), others, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "settings", "smaller"),
    [
        ("test_resnet", {}, True),
        ("test_resnet", {"global_pool": "max"}, False),
        ("test_resnet", {"global_pool": "catavgmax"}, False),
        ("test_vit", {}, True),
        ("test_vit", {"global_pool": "avg"}, False),
        ("test_vit", {"global_pool": "avg", "class_token": False}, False),
        ("test_vit2", {}, False),
        ("test_vit3", {}, False),
        ("ghostnet_100", {}, True),  # known by its parameter groups alone
        ("test_convnext", {}, False),
    ],
)
def test_pooling_changes_no_logit(name: str, settings: dict[str, Any], smaller: bool) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, **settings)
    size = network.default_cfg["input_size"][-1]
    backbone = Backbone(network, name, InputSpec(size, (0.5,) * 3, (0.5,) * 3, "bicubic")).eval()
    inputs = images(2, size)
    with torch.no_grad():
        whole = backbone.features(inputs)
        (pooled,) = backbone.trunk(inputs, [len(backbone.stages)])
        assert (pooled.numel() < whole.numel()) is smaller
        torch.testing.assert_close(backbone.head(pooled), network(inputs), atol=1e-6, rtol=1e-5)


def test_what_is_pooled_is_float32(backbones: dict[str, Backbone]) -> None:
    for name in ("resnet18", "vit_base_patch16_224"):
        backbone = backbones[name]
        stages = len(backbone.stages)
        with torch.autocast("cpu", torch.bfloat16):
            before, pooled = backbone.trunk(images(), [stages - 1, stages])
        assert (before.dtype == torch.float32) is ("vit" in name), "the residual stream of a transformer stays whole"
        assert pooled.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18", "ghostnet_100"])
def test_the_hash_of_the_first_stages_is_of_their_weights_alone(name: str) -> None:
    backbone = build_backbone(name, "none", SIZE)
    before = backbone.weights_hash(range(len(backbone.stages) + 1))
    assert len(set(before.values())) == len(before)
    assert backbone.weights_hash([2, 4]) == {depth: before[depth] for depth in (2, 4)}
    with torch.no_grad():
        next(backbone.network.get_submodule(backbone.stages[2].members[-1]).parameters()).add_(1)
        backbone.network.get_classifier().weight.add_(1)  # type: ignore[operator]
    after = backbone.weights_hash(range(len(backbone.stages) + 1))
    assert [depth for depth in before if before[depth] == after[depth]] == [0, 1, 2]


@pytest.mark.parametrize("name", STAGES)
def test_loss_at_step_0_is_that_of_a_coin(backbones: dict[str, Backbone], name: str) -> None:
    backbone = copy.deepcopy(backbones[name])
    inputs, labels = images(16), torch.arange(16) % 2
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average: random networks have no statistics for eval mode yet
        norm.reset_running_stats()
    ln2 = torch.tensor(2.0).log().item()
    with torch.no_grad():
        assert F.cross_entropy(backbone.train()(inputs), labels).item() == pytest.approx(ln2, abs=0.15)
        assert F.cross_entropy(backbone.eval()(inputs), labels).item() == pytest.approx(ln2, abs=0.15)


@pytest.mark.parametrize("name", STAGES)
def test_the_classifier_is_a_plain_linear_layer(backbones: dict[str, Backbone], name: str) -> None:
    classifier = backbones[name].network.get_classifier()
    assert type(classifier) is nn.Linear
    assert classifier.out_features == 2
    assert classifier.weight.abs().max() <= classifier.in_features**-0.5


@pytest.mark.parametrize("name", STAGES)
def test_state_dict_keys_are_those_of_timm(backbones: dict[str, Backbone], name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    assert list(backbones[name].state_dict()) == [f"network.{key}" for key in theirs]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "densenet121"])
def test_copies_and_pickles_are_of_their_own(backbones: dict[str, Backbone], name: str) -> None:
    original = backbones[name]
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):  # noqa: S301
        assert [stage.name for stage in twin.stages] == STAGES[name]
        with torch.no_grad():
            assert torch.equal(twin(images()), original(images()))
            for parameter in twin.parameters():
                parameter.zero_()
            assert not torch.equal(twin(images()), original(images()))


@pytest.mark.parametrize("name", GENERIC)
def test_any_other_network_gets_stages_from_its_parameter_groups(name: str) -> None:
    backbone = build_backbone(name, "none").eval()
    assert [stage.name for stage in backbone.stages] == GENERIC[name]
    assert not backbone.splittable
    inputs = images(1, 224 if "swin" in name else SIZE)
    with torch.no_grad():
        expected = backbone.network(inputs)
        assert torch.equal(backbone(inputs), expected)
        assert torch.equal(backbone.head(backbone.features(inputs)), expected)
    with pytest.raises(UserError, match=rf"stages 0\.\.1 of {name} were to be run alone: only networks of DenseNet"):
        backbone.features(inputs, 0, 1)


def test_a_module_without_weights_goes_with_what_it_feeds() -> None:
    stages = build_backbone("ghostnet_100", "none").stages
    assert [stage.members for stage in stages[:2]] == [("conv_stem", "bn1"), ("act1", "blocks.0")]


def test_a_buffer_that_closes_the_stack_is_no_stage_of_its_own() -> None:
    assert build_backbone("eva02_tiny_patch14_224", "none").stages[-1].members == (
        "pos_drop",
        "rope",
        "blocks.11",
    )


def test_input_spec_is_that_of_the_pretrained_network(backbones: dict[str, Backbone]) -> None:
    half = (0.5, 0.5, 0.5)
    assert build_backbone("vit_tiny_patch16_224", "none").input_spec == InputSpec(224, half, half, "bicubic")
    assert build_backbone("densenet121.tv_in1k", "none").input_spec == InputSpec(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic"
    )
    assert {backbone.input_spec.size for backbone in backbones.values()} == {SIZE}


def test_a_vit_of_another_size_keeps_its_weights() -> None:
    torch.manual_seed(0)
    small = build_backbone("test_vit", "none", input_size=64)
    torch.manual_seed(0)
    native = build_backbone("test_vit", "none")
    assert native.input_spec.size == 160
    ours, theirs = small.network.state_dict(), native.network.state_dict()
    assert [key for key in ours if ours[key].shape != theirs[key].shape] == ["pos_embed"]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != "pos_embed")
    assert small(images()).shape == (2, 2)


def test_drop_rate_acts_before_the_classifier_in_train_mode_alone() -> None:
    backbone = build_backbone("test_resnet", "none", input_size=64, drop_rate=0.5)
    freeze(backbone, 0)
    assert not torch.equal(backbone(images()), backbone(images()))
    backbone.eval()
    assert torch.equal(backbone(images()), backbone(images()))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"timm has no network named 'resnet_18'; the nearest names are .*resnet18"):
        build_backbone("resnet_18", "none")


def test_a_name_that_would_download() -> None:
    with pytest.raises(UserError, match="timm has no network named 'hf-hub:someone/something'"):
        build_backbone("hf-hub:someone/something", "none")


def test_unknown_tag() -> None:
    with pytest.raises(UserError, match=r"timm cannot build 'resnet18\.in99k'.*use resnet18 or one of resnet18\."):
        build_backbone("resnet18.in99k", "none")


@pytest.mark.parametrize(("name", "size"), [("test_vit", 100), ("densenet121", 16), ("pvt_v2_b0", -1)])
def test_a_size_the_network_does_not_take(name: str, size: int) -> None:
    with pytest.raises(
        UserError, match=rf"{name} does not take input_size={size} \(.+\); leave it out for .* own \d"
    ):
        build_backbone(name, "none", input_size=size)


def test_a_head_that_takes_several_tensors() -> None:
    with pytest.raises(UserError, match="what coat_tiny hands to its classifier must be one tensor, found a"):
        build_backbone("coat_tiny", "none")


def test_a_classifier_that_is_not_one_linear_layer() -> None:
    with pytest.raises(UserError, match="classifier of resnetv2_18 must be one linear layer, found Conv2d"):
        build_backbone("resnetv2_18", "none")


def test_a_network_without_parameter_groups() -> None:
    with pytest.raises(UserError, match="parameter groups: found none for PoolingVisionTransformer"):
        build_backbone("pit_ti_224", "none")


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_a_tensor_outside_every_stage(kind: str) -> None:
    network = timm.create_model("test_resnet", num_classes=2)
    stray = torch.zeros(1)
    if kind == "parameter":
        network.register_parameter("stray", nn.Parameter(stray))
    else:
        network.register_buffer("stray", stray)
    spec = InputSpec(160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    with pytest.raises(UserError, match=r"test_resnet: stray must belong to exactly one stage .* found none"):
        Backbone(network, "test_resnet", spec)
