"""A view is a pure function of (seed, content, view), and each knob moves its own effect alone."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from deepfake.data.augment import Augmentation, augment, crop_place, random_for

STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
VIEWS = range(200)
SIZE = 41  # odd: one pixel is the centre


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 24, 3), dtype=np.uint8)


def view(pixels: np.ndarray, number: int, sha256: str = "content", seed: int = 0, **how: float) -> np.ndarray:
    return augment(pixels, Augmentation(**how), seed, sha256, number)


def dot(x: int, y: int) -> np.ndarray:
    """A blurred dot on black; its centre of mass is (x, y) to a small part of a pixel, wherever it is moved."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    return np.repeat(np.rint(spot).astype(np.uint8)[:, :, None], 3, axis=2)


def centre(pixels: np.ndarray) -> tuple[float, float]:
    weight = pixels[:, :, 0].astype(float)
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return float((columns * weight).sum() / weight.sum()), float((rows * weight).sum() / weight.sum())


def is_mirrored(number: int) -> bool:
    return not np.array_equal(view(picture(), number, flip=0.5), picture())


def factor(number: int, brightness: float) -> float:
    """What a view multiplies its pixels by, to a few parts in a thousand."""
    return view(np.full((2, 2, 3), 160, np.uint8), number, brightness=brightness)[0, 0, 0] / 160


# ------------------------------------------------------------------------------------------------------- purity


def test_same_keys_give_the_same_pixels_whatever_came_before() -> None:
    expected = augment(picture(), STUDY, 3, "abc", 7)
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    for number in range(5):
        augment(picture(1), STUDY, 3, "other", number)
    assert np.array_equal(augment(picture(), STUDY, 3, "abc", 7), expected)


@pytest.mark.parametrize("keys", [(4, "abc", 7), (3, "abd", 7), (3, "abc", 8)])
def test_another_seed_content_or_view_gives_other_pixels(keys: tuple[int, str, int]) -> None:
    assert not np.array_equal(augment(picture(), STUDY, *keys), augment(picture(), STUDY, 3, "abc", 7))


def test_keys_do_not_run_into_each_other() -> None:
    assert random_for("a", 1, 23).random() != random_for("a", 12, 3).random()


def test_the_original_is_not_written_into() -> None:
    original = picture()
    for number in range(5):
        result = augment(original, STUDY, 0, "x", number)
        assert result.shape == original.shape
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous
    assert np.array_equal(original, picture())


def test_no_strength_leaves_the_image_as_it_is() -> None:
    for number in range(20):
        assert np.array_equal(augment(picture(), Augmentation(), 0, "x", number), picture())


# ------------------------------------------------------------------------------------------------- single knobs


def test_flip_mirrors_left_and_right_or_nothing() -> None:
    mirrored = 0
    for number in VIEWS:
        result = view(picture(), number, flip=0.5)
        if np.array_equal(result, picture()[:, ::-1]):
            mirrored += 1
        else:
            assert np.array_equal(result, picture())
    assert 70 < mirrored < 130  # 100 +- 4 standard deviations


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, len(VIEWS))])
def test_flip_is_a_probability(probability: float, expected: int) -> None:
    flips = [np.array_equal(view(picture(), n, flip=probability), picture()[:, ::-1]) for n in VIEWS]
    assert sum(flips) == expected


def test_brightness_multiplies_every_pixel_by_one_bounded_factor() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    factors = []
    for number in VIEWS:
        result = view(ramp, number, brightness=0.2).astype(float)
        plain = ramp.astype(float)
        scale = result[5, 0, 0] / plain[5, 0, 0]  # the value 80, which is never clipped; known to 1/160
        inside = result < 255
        assert np.abs(result - scale * plain)[inside].max() <= 0.5 + 255 / 160
        assert (np.diff(result[:, :, 0].ravel()) >= 0).all()
        factors.append(scale)
    assert 0.8 - 1 / 160 <= min(factors) < 0.83
    assert 1.17 < max(factors) <= 1.2 + 1 / 160


def test_brightness_rounds_and_clips() -> None:
    bright = next(n for n in VIEWS if factor(n, 0.5) > 1.3)
    result = view(np.array([[[0, 100, 250]]], np.uint8), bright, brightness=0.5)
    assert result[0, 0].tolist()[::2] == [0, 255]
    assert 130 <= result[0, 0, 1] <= 150


def test_translation_moves_the_whole_image_to_either_side() -> None:
    moves = np.array([centre(view(dot(20, 20), n, translation=0.2)) for n in VIEWS]) - 20
    assert np.abs(moves).max() <= 0.2 * SIZE + 0.1
    for axis in (0, 1):
        assert moves[:, axis].min() < -0.17 * SIZE
        assert moves[:, axis].max() > 0.17 * SIZE
    other = np.array([centre(view(dot(14, 25), n, translation=0.2)) for n in range(20)]) - (14, 25)
    assert np.abs(other - moves[:20]).max() < 0.15


def test_translation_of_whole_pixels_is_a_shift() -> None:
    """Against NumPy: a move by a whole number of pixels needs no interpolation."""
    for number in range(3):
        move = np.array(centre(view(dot(20, 20), number, translation=0.2))) - 20
        right, down = (int(v) for v in np.rint(move))
        smooth = dot(20, 20).astype(int) + dot(12, 28)
        result = view(smooth.astype(np.uint8), number, translation=0.2).astype(int)
        shifted = np.roll(smooth, (down, right), axis=(0, 1))
        inside = slice(9, -9)
        # Half a pixel is the most that rounding the move changes; the dot's steepest slope is 75 a pixel.
        assert np.abs(result - shifted)[inside, inside].max() < 75


def test_rotation_turns_about_the_centre_to_either_side() -> None:
    angles = []
    for number in VIEWS:
        x, y = centre(view(dot(28, 20), number, rotation=30))
        assert math.hypot(x - 20, y - 20) == pytest.approx(8, abs=0.05)
        angles.append(math.degrees(math.atan2(y - 20, x - 20)))
        assert centre(view(dot(20, 20), number, rotation=30)) == pytest.approx((20, 20), abs=0.05)
    assert -30.5 <= min(angles) < -28
    assert 28 < max(angles) <= 30.5


def test_pixels_from_outside_are_mirrored_in() -> None:
    flat = np.full((SIZE, SIZE, 3), 130, np.uint8)
    for number in range(20):
        assert (view(flat, number, rotation=40, translation=0.3) == 130).all()


# -------------------------------------------------------------------------------------------- places for a crop


def test_a_place_depends_on_seed_content_and_view_alone() -> None:
    place = crop_place(3, "abc", 7)
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    assert crop_place(3, "abc", 7) == place
    assert len({place, crop_place(4, "abc", 7), crop_place(3, "abd", 7), crop_place(3, "abc", 8)}) == 4


def test_places_fill_the_room_evenly_and_are_drawn_apart_from_the_augmentation() -> None:
    views = range(1000)
    places = np.array([crop_place(0, "content", number) for number in views])
    assert places.min() >= 0
    assert places.max() < 1
    counts = np.histogram2d(*places.T, bins=4, range=[(0, 1)] * 2)[0]
    # Sixteen counts of about 62.5: chi squared of 15 degrees exceeds 37.7 once in a thousand.
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 37.7
    mirrored = [is_mirrored(number) for number in views]
    assert np.abs(np.corrcoef(mirrored, places.T)[0, 1:]).max() < 4 / math.sqrt(len(views))


# ------------------------------------------------------------------------------------------------- independence


@pytest.mark.parametrize("number", range(12))
def test_a_knob_moves_no_other(number: int) -> None:
    pixels = picture()
    placed = augment(pixels, replace(STUDY, flip=0, brightness=0), 0, "content", number)
    mirrored = placed[:, ::-1] if is_mirrored(number) else placed
    assert np.array_equal(augment(pixels, replace(STUDY, brightness=0), 0, "content", number), mirrored)
    lit = augment(pixels, STUDY, 0, "content", number).astype(float)
    assert np.abs(lit - np.clip(mirrored * factor(number, 0.2), 0, 255)).max() <= 0.5 + 255 / 320


def test_strengths_are_drawn_apart() -> None:
    drawn = [
        (
            is_mirrored(number),
            factor(number, 0.2),
            *centre(view(dot(20, 20), number, translation=0.2)),
            centre(view(dot(28, 20), number, rotation=30))[1],
        )
        for number in VIEWS
    ]
    related = np.corrcoef(np.array(drawn, float).T) - np.eye(5)
    assert np.abs(related).max() < 4 / math.sqrt(len(VIEWS))  # four standard deviations


def test_rotation_does_not_change_the_move() -> None:
    for number in range(20):
        turned = centre(view(dot(20, 20), number, rotation=30, translation=0.1))
        assert turned == pytest.approx(centre(view(dot(20, 20), number, translation=0.1)), abs=0.1)


@pytest.mark.parametrize("knob", [field.name for field in fields(Augmentation)])
def test_every_knob_of_the_study_has_an_effect(knob: str) -> None:
    hows = STUDY, replace(STUDY, **{knob: 0.0})
    views = [{n: augment(picture(), how, 0, "x", n).tobytes() for n in range(10)} for how in hows]
    assert views[0] != views[1]


def test_every_view_of_an_image_is_another() -> None:
    assert len({augment(picture(), STUDY, 0, "x", number).tobytes() for number in VIEWS}) == len(VIEWS)
