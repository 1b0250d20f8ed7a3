"""A view is a pure function of (seed, content, view), and each knob moves its own effect alone."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from scipy import ndimage

from deepfake.config import conf_dir
from deepfake.data.augment import Augmentation, augment, crop_place, random_for
from deepfake.data.perturbations import Perturbation, perturb

STUDY = Augmentation(rotation=15, translation=0.1, flip=0.5, brightness=0.2)
REST = Augmentation(blur=0.3, shrink=0.3, noise=0.3, jpeg=0.3)
ROBUST = replace(STUDY, blur=0.3, shrink=0.3, noise=0.3, jpeg=0.3)
KINDS = ("blur", "shrink", "noise", "jpeg")
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


@pytest.mark.parametrize("how", [STUDY, REST, ROBUST], ids=["study", "rest", "robust"])
def test_the_original_is_not_written_into(how: Augmentation) -> None:
    original = picture()
    for number in range(20):
        result = augment(original, how, 0, "x", number)
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


# Of each knob of `ROBUST` another value.
OTHER = {
    **dict.fromkeys(("rotation", "translation", "flip", "brightness", *KINDS), 0.0),
    **{"blur_min": 1.0, "blur_max": 4.0, "shrink_min": 0.2, "shrink_max": 0.8, "noise_min": 0.05, "noise_max": 0.2},
    **{"jpeg_min": 50, "jpeg_max": 60},
}


@pytest.mark.parametrize("knob", [field.name for field in fields(Augmentation)])
def test_every_knob_has_an_effect(knob: str) -> None:
    hows = ROBUST, replace(ROBUST, **{knob: OTHER[knob]})
    views = [{n: augment(picture(), how, 0, "x", n).tobytes() for n in range(20)} for how in hows]
    assert views[0] != views[1]


def test_every_view_of_an_image_is_another() -> None:
    assert len({augment(picture(), STUDY, 0, "x", number).tobytes() for number in VIEWS}) == len(VIEWS)


# --------------------------------------------------------------------------- what happens to images on their way


def textured(side: int = 64) -> np.ndarray:
    """Detail at every scale, none of it near black or white."""
    random = np.random.default_rng(2)
    layers = [ndimage.zoom(random.normal(size=(n, n, 3)), (side / n, side / n, 1), order=1) for n in (4, 16, side)]
    return np.clip(128 + 20 * sum(layers), 20, 235).astype(np.uint8)


def alone(kind: str, strength: float, number: int, pixels: np.ndarray) -> np.ndarray:
    """A view in which one thing happens, at one strength."""
    return view(pixels, number, **{kind: 1, f"{kind}_min": strength, f"{kind}_max": strength})


@pytest.mark.parametrize("number", range(40))
def test_the_study_draws_what_it_drew_before_there_was_more(number: int) -> None:
    """Its five numbers come first, in this order, from this stream, whatever else an augmentation may do."""
    angle, right, down, mirror, light = random_for("augment", 5, "abc", number).uniform(-1, 1, 5)
    pixels = picture()
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 15 * angle, 1.0)
    matrix[:, 2] += 0.1 * right * width, 0.1 * down * height
    expected = cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if (mirror + 1) / 2 < 0.5:
        expected = expected[:, ::-1]
    expected = np.clip(np.rint(expected * (1 + 0.2 * light)), 0, 255)
    assert np.array_equal(augment(pixels, STUDY, 5, "abc", number), expected)


@pytest.mark.parametrize("number", range(40))
def test_the_rest_happens_to_what_the_study_shows(number: int) -> None:
    studied = augment(picture(), STUDY, 5, "abc", number)
    assert np.array_equal(augment(picture(), ROBUST, 5, "abc", number), augment(studied, REST, 5, "abc", number))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.3, 34, 86), (1.0, 200, 200)])
def test_a_probability_says_how_often(kind: str, probability: float, least: int, most: int) -> None:
    """Within four standard deviations."""
    visible = {"blur_min": 1, "shrink_max": 0.8, "noise_min": 0.05, "jpeg_max": 60}
    changed = [not np.array_equal(view(picture(), n, **{kind: probability}, **visible), picture()) for n in VIEWS]
    assert least <= sum(changed) <= most


@pytest.mark.parametrize(
    ("kind", "same", "strength"), [("blur", "blur", 2.5), ("shrink", "resize", 0.6), ("jpeg", "jpeg", 45)]
)
def test_it_is_what_robustness_is_judged_by(kind: str, same: str, strength: float) -> None:
    for number in range(3):
        expected = perturb(textured(), Perturbation(same, strength), "content")
        assert np.array_equal(alone(kind, strength, number, textured()), expected)


def test_noise_has_the_deviation_asked_for_and_is_another_in_each_view() -> None:
    gray = np.full((100, 100, 3), 128, np.uint8)
    noises = np.array([(alone("noise", 0.05, number, gray) - 128.0).ravel() for number in range(4)])
    assert noises.std(axis=1) / 255 == pytest.approx(0.05, rel=0.02)
    assert np.abs(np.corrcoef(noises) - np.eye(4)).max() < 4.5 / math.sqrt(gray.size)


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """What happens in a view, {kind: strength}, in its order; `draw` is the number that its noise begins with."""
    seen: dict[str, float] = {}

    def spy(kind: str) -> Callable[..., np.ndarray]:
        def operation(pixels: np.ndarray, strength: float, *random: np.random.Generator) -> np.ndarray:
            seen[kind] = strength
            if random:
                seen["draw"] = random[0].random()
            return pixels

        return operation

    for kind, name in zip(KINDS, ("blur", "resize_and_restore", "add_noise", "compress"), strict=True):
        monkeypatch.setattr(f"deepfake.data.augment.{name}", spy(kind))

    def of(number: int, **how: float) -> dict[str, float]:
        seen.clear()
        view(picture(), number, **how)
        return dict(seen)

    return of


EVEN = dict.fromkeys(KINDS, 0.5)
ALWAYS = dict.fromkeys(KINDS, 1.0)


def test_strengths_fill_their_range_evenly(happened) -> None:
    ranges = {"blur": (1, 3), "shrink": (0.5, 0.9), "noise": (0.04, 0.1), "jpeg": (70, 75)}
    ends = {f"{kind}_{end}": ranges[kind][place] for kind in KINDS for place, end in enumerate(("min", "max"))}
    views = [happened(number, **ALWAYS, **ends) for number in range(1000)]
    for kind, (low, high) in ranges.items():
        drawn = [seen[kind] for seen in views]
        assert low <= min(drawn)
        assert max(drawn) <= high
        counts = np.histogram(drawn, 6, (low, high))[0]
        # Six counts of about 167: chi squared of 5 degrees exceeds 20.5 once in a thousand.
        assert ((counts - 1000 / 6) ** 2 / (1000 / 6)).sum() < 20.5


def test_every_quality_of_the_range_comes_up(happened) -> None:
    assert {happened(n, jpeg=1, jpeg_min=70, jpeg_max=75)["jpeg"] for n in VIEWS} == set(range(70, 76))
    assert {happened(n, jpeg=1, jpeg_min=70, jpeg_max=70)["jpeg"] for n in VIEWS} == {70}


def test_compression_comes_last(happened) -> None:
    assert list(happened(0, **ALWAYS)) == ["blur", "shrink", "noise", "draw", "jpeg"]


def test_what_happens_does_not_depend_on_what_else_may(happened) -> None:
    for number in VIEWS:
        each: dict[str, float] = {}
        for kind in KINDS:
            each |= happened(number, **{kind: 0.5})
        assert happened(number, **EVEN) == each


def test_each_happens_and_is_as_strong_independently_of_the_others(happened) -> None:
    numbers = range(1000)
    whether = [[kind in happened(number, **EVEN) for kind in KINDS] for number in numbers]
    strengths = [[happened(number, **ALWAYS)[kind] for kind in KINDS] for number in numbers]
    study = [random_for("augment", 0, "content", number).random(5) for number in numbers]
    related = np.corrcoef(np.hstack([whether, strengths, study]).astype(float).T)
    assert np.abs(related - np.eye(13)).max() < 4.5 / math.sqrt(len(numbers))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 2)])
def test_small_images_come_back_whole(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 90, np.uint8)
    for number in range(40):
        result = augment(pixels, ROBUST, 0, "x", number)
        assert result.shape == pixels.shape
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous


@pytest.mark.parametrize(("choice", "how"), [("none", Augmentation()), ("study", STUDY), ("robust", ROBUST)])
def test_what_is_shipped_is_what_is_tested_here(choice: str, how: Augmentation) -> None:
    """That `none` equals no augmentation at all is also what lets all epochs share one view of an image."""
    shipped = yaml.safe_load(Path(conf_dir(), "augment", f"{choice}.yaml").read_text(encoding="utf-8"))
    assert shipped.pop("name") == choice
    assert Augmentation(**shipped) == how


def test_an_augmentation_is_plain_data() -> None:
    assert Augmentation(**json.loads(json.dumps(asdict(ROBUST)))) == ROBUST
