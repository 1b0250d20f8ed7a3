"""Heat maps: where the evidence is, for every kind of network, over the part of the image that was shown."""

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
    ((_, cam),) = explainer._maps
    if stage is not None:
        assert member.module.backbone.stages[cam.model.depth - 1].name == stage
    (gradient,) = cam.activations_and_grads.gradients
    assert gradient.shape[2] * gradient.shape[3] == places
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
