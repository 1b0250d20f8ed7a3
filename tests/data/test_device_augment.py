"""Batches on the device get the views that OpenCV makes: to the byte, but for its rounding of coordinates."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from deepfake.data.augment import Augmentation, augment, drawn, random_for
from deepfake.data.device_augment import augment_batch, supported

STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
VIEWS = range(60)
IDENTITIES = [f"image {number}" for number in range(8)]
ALWAYS, NEVER = -1.0, 1.0  # drawn for the mirror image


def noise(height: int = 32, width: int = 24, count: int = 1) -> Tensor:
    """The hardest there is to interpolate: uint8 (count, 3, height, width), channels last as a loader gives them."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def natural(side: int = 96) -> np.ndarray:
    """Like a photograph: detail at every scale, the less the finer. uint8 (side, side, 3)."""
    random = np.random.default_rng(1)
    layers = [cv2.resize(random.normal(size=(n, n, 3)), (side, side)) * 160 / n for n in (4, 8, 16, 32, side)]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def numbers(angle: float = 0, right: float = 0, down: float = 0, mirror: float = NEVER, light: float = 0) -> Tensor:
    """Draws of one image: nothing but what is asked for."""
    return torch.tensor([[angle, right, down, mirror, light]], dtype=torch.float64)


def draws_of(views: range, sha256: str = "content", seed: int = 0) -> Tensor:
    return torch.from_numpy(np.stack([drawn(seed, sha256, view) for view in views]))


def both(pixels: np.ndarray, how: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """All views of an image, by batches and one by one: int64 (views, height, width, 3)."""
    images = torch.from_numpy(pixels).permute(2, 0, 1).repeat(len(VIEWS), 1, 1, 1)
    found = augment_batch(images, draws_of(VIEWS), how).permute(0, 2, 3, 1).numpy()
    return found.astype(int), np.stack([augment(pixels, how, 0, "content", view) for view in VIEWS]).astype(int)


# -------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("view", range(5))
def test_numbers_are_those_that_an_image_alone_is_augmented_by(view: int) -> None:
    """Read off the views themselves: the mirror image, and the factor, which one gray level tells to 1/160."""
    _, _, _, mirror, light = drawn(3, "abc", view)
    ramp = np.repeat(np.arange(24, dtype=np.uint8)[None, :, None], 3, axis=2)
    mirrored = augment(ramp, Augmentation(flip=0.5), 3, "abc", view)[0, 0, 0] == 23
    assert mirrored == (mirror < 0)
    gray = augment(np.full((1, 1, 3), 160, np.uint8), Augmentation(brightness=0.5), 3, "abc", view)
    assert gray[0, 0, 0] / 160 == pytest.approx(1 + 0.5 * light, abs=0.51 / 160)


def test_numbers_stay_what_they_were() -> None:
    """Rows that are stored depend on it: five uniform numbers, from this stream, in one call."""
    assert np.array_equal(drawn(3, "abc", 7), random_for("augment", 3, "abc", 7).uniform(-1, 1, 5))
    assert drawn(3, "abc", 7).dtype == np.float64


def test_numbers_depend_on_seed_content_and_view() -> None:
    keys = [(3, "abc", 7), (4, "abc", 7), (3, "abd", 7), (3, "abc", 8)]
    assert len({drawn(*key).tobytes() for key in keys}) == 4


# ------------------------------------------------------------------------------------ the same as one by one


@pytest.mark.parametrize(
    "how",
    [
        *(Augmentation(flip=p) for p in (0.3, 1.0)),
        *(Augmentation(brightness=b) for b in (0.2, 0.9)),
        Augmentation(flip=0.5, brightness=0.2),
        Augmentation(),
    ],
)
def test_mirror_images_and_brightness_are_the_same_to_the_byte(how: Augmentation) -> None:
    every_byte = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 3)).reshape(16, 16, 3)
    found, expected = both(every_byte, how)
    assert np.array_equal(found, expected)


@given(light=st.floats(-1, 1), brightness=st.floats(0, 0.999))
def test_brightness_is_the_table_of_every_factor(light: float, brightness: float) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    found = augment_batch(every_byte, numbers(light=light), Augmentation(brightness=brightness))
    table = np.clip(np.rint(np.arange(256) * (1 + light * brightness)), 0, 255)
    assert np.array_equal(found[0, 1].ravel().numpy(), table)


@pytest.mark.parametrize(
    "how",
    [STUDY, Augmentation(rotation=15), Augmentation(translation=0.1), Augmentation(rotation=180, translation=0.9)],
)
def test_a_natural_image_is_opencvs_to_a_fraction_of_a_gray_level(how: Augmentation) -> None:
    found, expected = both(natural(), how)
    # Another order of the operations or another sign would show: the views differ by much more from the image.
    assert np.abs(expected - natural()).mean() > 5
    assert np.abs(found - expected).mean(axis=(1, 2, 3)).max() < 0.5
    assert np.abs(found - expected).max() <= 5


def test_on_average_it_is_neither_brighter_nor_darker_than_opencvs() -> None:
    found, expected = both(natural(), STUDY)
    assert abs((found - expected).mean()) < 0.02


# ------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("shape", [(32, 24), (31, 47)])
@pytest.mark.parametrize(("angle", "right", "down"), [(0.3, 0.5, -0.8), (-1, 0.1, 1), (0.9, 0, 0), (0, -1, 0.3)])
def test_it_goes_by_opencvs_matrix_without_rounding_coordinates(
    shape: tuple[int, int], angle: float, right: float, down: float
) -> None:
    """Against SciPy in float64, on noise, where a hundredth of a pixel shows."""
    height, width = shape
    how = Augmentation(rotation=40, translation=0.3)
    image = noise(*shape)
    found = augment_batch(image, numbers(angle=angle, right=right, down=down), how)[0].numpy().astype(float)
    forward = np.eye(3)
    forward[:2] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 40 * angle, 1.0)
    forward[:2, 2] += 0.3 * right * width, 0.3 * down * height
    rows, columns = np.mgrid[:height, :width]
    x, y, _ = np.linalg.inv(forward) @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    for channel in range(3):
        source = image[0, channel].numpy().astype(float)
        exact = ndimage.map_coordinates(source, [y, x], order=1, mode="mirror").reshape(shape)
        assert np.abs(found[channel] - exact).max() < 0.5 + 0.01  # rounded, and nothing else


@pytest.mark.parametrize("turns", [-2, -1, 1, 2])
def test_quarter_turns_are_exact(turns: int) -> None:
    image = noise(31, 31)
    found = augment_batch(image, numbers(angle=turns / 2), Augmentation(rotation=180))
    assert np.array_equal(found[0, 0].numpy(), np.rot90(image[0, 0].numpy(), turns))  # counter-clockwise


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-5, 0), (0, 4), (0, -7), (6, -2), (23, 31), (-20, 30)])
def test_whole_pixels_are_a_shift_with_mirrored_borders(right: int, down: int) -> None:
    image = noise(32, 24)
    draws = numbers(right=right / 24, down=down / 32)
    found = augment_batch(image, draws, Augmentation(translation=1.0))[0, 0].numpy()
    padded = np.pad(image[0, 0].numpy(), ((31, 31), (23, 23)), mode="reflect")
    assert np.array_equal(found, padded[31 - down : 63 - down, 23 - right : 47 - right])


@pytest.mark.parametrize("side", [1, 2, 31, 224])
def test_no_turn_and_no_move_is_the_image_itself(side: int) -> None:
    image = noise(side, side)
    assert torch.equal(augment_batch(image, numbers(), replace(STUDY, flip=0)), image)


@pytest.mark.parametrize(("mirror", "flip", "happens"), [(-0.4, 0.3, False), (-0.4, 0.31, True), (0.5, 0.75, False)])
def test_a_flip_happens_below_its_probability(mirror: float, flip: float, happens: bool) -> None:
    image = noise()
    found = augment_batch(image, numbers(mirror=mirror), Augmentation(flip=flip))
    assert torch.equal(found, image.flip(3) if happens else image)


def test_a_flip_mirrors_left_and_right() -> None:
    image = noise()
    found = augment_batch(image, numbers(mirror=ALWAYS), Augmentation(flip=0.5))
    assert np.array_equal(found.numpy(), image.numpy()[..., ::-1])


def test_turned_then_mirrored_then_lit() -> None:
    image, draws = noise(), numbers(angle=0.7, right=0.4, down=-0.6, mirror=ALWAYS, light=0.9)
    in_turn = image
    for how in (replace(STUDY, flip=0, brightness=0), Augmentation(flip=0.5), Augmentation(brightness=0.2)):
        in_turn = augment_batch(in_turn, draws, how)
    assert torch.equal(augment_batch(image, draws, STUDY), in_turn)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 2)])
def test_small_images_stay_within_what_they_hold(shape: tuple[int, int]) -> None:
    gray = torch.full((len(VIEWS), 3, *shape), 90, dtype=torch.uint8)
    found = augment_batch(gray, draws_of(VIEWS), replace(STUDY, rotation=180, translation=0.9, brightness=0))
    assert torch.equal(found, gray)


# ---------------------------------------------------------------------------------------------------- batches


def test_an_image_is_the_same_in_any_batch() -> None:
    images = noise(count=len(IDENTITIES))
    draws = torch.from_numpy(np.stack([drawn(0, sha256, 2) for sha256 in IDENTITIES]))
    together = augment_batch(images, draws, STUDY)
    alone = [augment_batch(images[n : n + 1], draws[n : n + 1], STUDY) for n in range(len(images))]
    assert torch.equal(together, torch.cat(alone))
    assert len({image.numpy().tobytes() for image in together}) == len(images)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    "how", [STUDY, Augmentation(rotation=15), Augmentation(flip=0.5), Augmentation(brightness=0.2)]
)
def test_bytes_come_out_laid_out_as_they_came_in(how: Augmentation, layout: torch.memory_format) -> None:
    images = noise(count=3).contiguous(memory_format=layout)
    before = images.clone()
    found = augment_batch(images, draws_of(range(3)), how)
    assert (found.dtype, found.shape, found.stride()) == (torch.uint8, images.shape, images.stride())
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", ["blur", "shrink", "noise", "jpeg"])
def test_what_stays_on_the_processor_is_refused(kind: str) -> None:
    how = replace(STUDY, **{kind: 0.3})
    assert not supported(how)
    with pytest.raises(ValueError, match=f"without blur, shrink, noise and jpeg, found .*{kind}=0.3"):
        augment_batch(noise(), numbers(), how)


@pytest.mark.parametrize("how", [STUDY, Augmentation(), Augmentation(flip=0.5)])
def test_what_the_study_does_is_supported(how: Augmentation) -> None:
    assert supported(how)


@pytest.mark.parametrize(
    ("draws", "found"),
    [
        (numbers().float(), r"\(1, 5\), torch.float32"),  # what a trainer in half precision might make of them
        (numbers()[0], r"\(5,\), torch.float64"),
        (numbers().repeat(2, 1), r"\(2, 5\), torch.float64"),
    ],
)
def test_other_draws_are_refused(draws: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=rf"expected draws of shape \(1, 5\), torch.float64, found {found}"):
        augment_batch(noise(), draws, STUDY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_a_graphics_card_makes_what_the_processor_makes() -> None:
    images = torch.from_numpy(natural()).permute(2, 0, 1).repeat(len(VIEWS), 1, 1, 1)
    draws = draws_of(VIEWS)
    exact = replace(STUDY, rotation=0, translation=0)
    assert torch.equal(augment_batch(images.cuda(), draws.cuda(), exact).cpu(), augment_batch(images, draws, exact))
    found, expected = augment_batch(images.cuda(), draws.cuda(), STUDY).cpu(), augment_batch(images, draws, STUDY)
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1  # where rounding is a close thing
    assert (apart > 0).float().mean() < 1e-3
