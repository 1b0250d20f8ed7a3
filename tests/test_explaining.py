"""Heat maps: where the evidence is, for every kind of network, over the part of the image that was shown."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepfake import explaining
from deepfake.data.prepared import Preparation
from deepfake.errors import UserError
from deepfake.evaluation.calibration import calibrate
from deepfake.explaining import Explainer
from deepfake.judging import Member
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule

CALIBRATION = calibrate(np.array([0, 1]), np.array([-1.0, 1.0]))


def member_of(
    name: str, size: int | None = None, preparation: Preparation | None = None, fake: bool = True
) -> Member:
    """A frozen network, for which all that it sees speaks for fake, or nothing."""
    module = DetectorModule(build_backbone(name, "none", size)).eval()
    classifier = module.backbone.network.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        classifier.weight[int(fake)].abs_().add_(0.01)
        classifier.weight[int(not fake)].zero_()
    return Member(module, preparation or Preparation(), CALIBRATION, {})


def noise(height: int = 96, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NDArray, NDArray]]:
    """What is laid over one another from now on: pictures and maps."""
    found: list[tuple[NDArray, NDArray]] = []
    under = explaining._under
    monkeypatch.setattr(explaining, "_under", lambda *both: found.append(both) or under(*both))
    return found


@pytest.mark.parametrize(
    ("name", "size", "stage", "places"),
    [
        ("test_resnet", 64, "layer4", 4),
        ("test_resnet", 32, "layer3", 4),  # one place alone is left after layer4
        ("test_efficientnet", 64, "conv_head+bn2", 4),
        ("densenet121", 64, "denseblock4+norm5", 4),
        ("test_vit", 160, "blocks.4", 100),  # of the last block the classifier reads the class token alone
        ("test_vit3", 160, "blocks.8+norm", 100),  # ... or all tokens
        ("test_convnext", 64, None, 4),  # runs as a whole
        ("swin_tiny_patch4_window7_224", 224, None, 49),  # channels last
    ],
)
def test_the_map_is_of_the_last_features_with_places(
    name: str, size: int, stage: str | None, places: int, laid: list
) -> None:
    member = member_of(name, size)
    explainer = Explainer([member])
    explainer.picture(noise(), "")
    if stage is not None:
        assert explainer.layers == [stage]
    ((_, found),) = explainer._maps
    (gradient,) = found.cam.activations_and_grads.gradients  # type: ignore[attr-defined]
    assert gradient.shape[2] * gradient.shape[3] == places
    assert gradient.shape[2:] == explainer.places
    assert gradient.any()
    ((_, heat),) = laid
    assert heat.shape == (size, size)
    assert (heat.min(), heat.max()) == pytest.approx((0, 1), abs=1e-4)


def test_a_map_is_what_each_place_adds_to_the_margin(laid: list) -> None:
    """As the head averages places and is linear, that is known without gradients (Selvaraju et al., 2017, 3.1)."""
    member = member_of("test_resnet", 128)
    Explainer([member]).picture(noise(), "")
    backbone = member.module.backbone
    with torch.no_grad():
        features = backbone.features(torch.from_numpy(member.prepared(noise(), "none")))[0]
        weight = backbone.network.get_classifier().weight  # type: ignore[operator]
        adds = torch.einsum("c,chw->hw", weight[1] - weight[0], features).clamp(min=0).numpy()
    ((_, heat),) = laid
    centres = heat[16::32, 16::32] + heat[15::32, 15::32]  # the map is enlarged from 4 x 4
    assert np.corrcoef(centres.ravel(), adds.ravel())[0, 1] > 0.999


def test_of_an_ensemble_the_maps_are_averaged(laid: list) -> None:
    members = [member_of("test_resnet", 64), member_of("test_efficientnet", 64)]
    for some in (members[:1], members[1:], members):
        Explainer(some).picture(noise(), "")
    (_, first), (_, second), (_, both) = laid
    assert not np.allclose(first, second, atol=0.1)
    assert both == pytest.approx((first + second) / 2)


def test_members_may_take_images_in_different_sizes(laid: list) -> None:
    members = [member_of("test_resnet", 128), member_of("test_resnet", 64)]
    for some in (members[:1], members[1:], members):
        Explainer(some).picture(noise(), "")
    (_, first), (_, second), (_, both) = laid
    assert both.shape == (128, 128)
    assert both == pytest.approx((first + cv2.resize(second, (128, 128))) / 2, abs=1e-6)
    assert Explainer(members).places == (4, 4)


def test_what_was_not_shown_to_the_network_is_under_no_map(laid: list) -> None:
    pixels = noise(96, 80)
    crop, whole = member_of("test_resnet", 64, Preparation("crop")), member_of("test_resnet", 64)
    picture = Explainer([crop, whole]).picture(pixels, "")
    assert laid[0][0].tolist() == pixels[16:80, 8:72].tolist()
    assert laid[1][0].tolist() == pixels.tolist()
    assert picture[48:, :80].tolist() == pixels.tolist()
    assert picture[48:112, 88:152].tolist() == explaining._under(*laid[0]).tolist()


def test_large_images_are_shown_small() -> None:
    picture = Explainer([member_of("test_resnet", 64)]).picture(noise(1000, 2000), "fake")
    assert picture.shape == (256 + 48, 512 + 8 + 512, 3)
    assert picture[:48].min() < 100  # the title


def test_red_is_what_speaks_for_fake() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    red, _, blue = np.moveaxis(explaining._under(np.full((40, 20, 3), 128, np.uint8), heat).astype(int), 2, 0)
    assert (red - blue)[:16, :8].min() > 50
    assert (blue - red)[24:, 12:].min() > 50


@pytest.mark.parametrize(("fake", "said"), [(True, "red: what speaks for fake"), (False, "no place speaks for fake")])
def test_a_map_without_evidence_says_so(fake: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    sheet = explaining._side_by_side
    monkeypatch.setattr(
        explaining, "_side_by_side", lambda pictures, title: titles.append(title) or sheet(pictures, title)
    )
    Explainer([member_of("test_resnet", 64, fake=fake)]).picture(noise(), "verdict")
    (title,) = titles
    assert title.startswith(f"verdict\n{said}")


def test_the_network_judges_as_before() -> None:
    member = member_of("test_vit", 160)
    images = member.prepared(noise(), "none")[np.newaxis]
    before = member.margins(images)
    explainer = Explainer([member])
    for _ in range(2):
        explainer.picture(noise(), "")
        assert member.margins(images) == before
    assert all(parameter.grad is None for parameter in member.module.backbone.network.blocks.parameters())  # type: ignore[union-attr,operator]


def test_a_network_that_keeps_no_places_is_refused() -> None:
    with pytest.raises(UserError, match=r"explain=true: expected a network .*test_convnext, where none are left"):
        Explainer([member_of("test_convnext", 32)])


def test_what_speaks_for_real_is_what_speaks_against_fake() -> None:
    """Of two networks whose classifiers are swapped, one's fake is the other's real."""
    torch.manual_seed(1)
    member = member_of("test_resnet", 64)
    classifier = member.module.backbone.network.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        classifier.weight[1].normal_()
    images = member.prepared(noise(), "none")
    explainer = Explainer([member])
    fake, real = (explainer.heat([images], np.array([verdict]))[None] for verdict in (True, False))
    assert not np.allclose(fake, real, atol=0.1)
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight.flip(0))
    assert explainer.heat([images], np.array([True]))[None] == pytest.approx(real, abs=1e-5)


def test_each_image_of_a_batch_has_the_map_it_has_alone() -> None:
    member = member_of("test_resnet", 64)
    images = np.concatenate([member.prepared(np.roll(noise(), 13 * number, axis=0), "none") for number in range(3)])
    explainer, fake = Explainer([member]), np.array([True, False, True])
    together = explainer.heat([images], fake)[None]
    for number in range(3):
        alone = explainer.heat([images[number : number + 1]], fake[number : number + 1])[None]
        assert together[number] == pytest.approx(alone[0], abs=1e-4)


# -------------------------------------------------------------------------------------------------- attention rollout


def rollout_by_hand(network: Any, image: torch.Tensor) -> NDArray[np.float64]:
    """In float64 and NumPy from the weights alone, but for what the blocks make of the tokens."""
    arrays = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    product = None
    with torch.no_grad():
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(image))))
        for number, block in enumerate(network.blocks):
            x = tokens[0].double().numpy()
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + block.norm1.eps)
            x = x * arrays[f"blocks.{number}.norm1.weight"] + arrays[f"blocks.{number}.norm1.bias"]
            mixed = x @ arrays[f"blocks.{number}.attn.qkv.weight"].T + arrays[f"blocks.{number}.attn.qkv.bias"]
            heads, width = block.attn.num_heads, mixed.shape[1] // 3
            mean = np.zeros((len(x), len(x)))
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                query, key = mixed[:, :width][:, part], mixed[:, width : 2 * width][:, part]
                scores = np.exp(query @ key.T / np.sqrt(width // heads))
                mean += scores / scores.sum(1, keepdims=True) / heads
            layer = (mean + np.eye(len(x))) / 2
            product = layer if product is None else layer @ product
            tokens = block(tokens)
    assert product is not None
    return product


@pytest.mark.parametrize(("name", "reads"), [("test_vit", slice(0, 1)), ("test_vit2", slice(1, None))])
def test_rollout_is_that_of_the_networks_attention(name: str, reads: slice) -> None:
    """Of the class token, or of the mean of the patches: what the classifier reads."""
    member = member_of(name, 160)
    with torch.no_grad():
        for block in member.module.backbone.network.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight.mul_(8)  # or all would attend to all alike  # type: ignore[union-attr,operator]
    images = member.prepared(noise(), "none")
    explainer = Explainer([member], "rollout")
    heat = explainer.heat([images], np.array([True]))[None][0]
    expected = rollout_by_hand(member.module.backbone.network, torch.from_numpy(images))[reads, 1:].mean(axis=0)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert explainer.places == (10, 10)
    assert heat == pytest.approx(cv2.resize(expected.reshape(10, 10).astype(np.float32), (160, 160)), abs=1e-3)
    assert heat.std() > 0.05


def test_rollout_leaves_the_network_as_it_was() -> None:
    member = member_of("test_vit", 160)
    network: Any = member.module.backbone.network
    images = member.prepared(noise(), "none")[np.newaxis]
    before, tensors = member.margins(images), {name: t.clone() for name, t in network.state_dict().items()}
    explainer = Explainer([member], "rollout")
    explainer.picture(noise(), "")
    ((_, found),) = explainer._maps
    assert all(block.attn.fused_attn for block in network.blocks)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    assert member.margins(images) == before
    copied = found.network.blocks[0].attn.qkv.weight  # type: ignore[attr-defined]
    assert copied.data_ptr() == network.blocks[0].attn.qkv.weight.data_ptr()  # no second copy of the weights


def test_a_rollout_knows_no_class() -> None:
    member = member_of("test_vit", 160)
    explainer = Explainer([member], "rollout")
    images = member.prepared(noise(), "none")
    fake, real = (explainer.heat([images], np.array([verdict]))[None] for verdict in (True, False))
    assert fake.tolist() == real.tolist()
    assert explainer.overlays(noise())[1] == "red: where the attention is"


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("test_vit3", 160), ("test_convnext", 64)])
def test_rollout_without_a_token_that_is_read_is_refused(name: str, size: int) -> None:
    expected = rf"method=rollout: expected a vision transformer .*, found {name}. Choose method=grad-cam"
    with pytest.raises(UserError, match=expected):
        Explainer([member_of(name, size)], "rollout", "method=rollout")
