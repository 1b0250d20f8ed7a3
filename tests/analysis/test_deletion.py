"""Deletion curves: what is hidden, in which order, and what follows from the areas under the curves."""

import numpy as np
import pytest

from deepfake.analysis.deletion import FEWEST, FRACTIONS, compare, cover, hide, hottest_first, moved, shifts


def image(size: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, size, size)).astype(np.float32)


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_hottest_places_come_first() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[:4, 4:], heat[4:, 4:], heat[4:, :4] = 0.9, 0.5, 0.1
    assert hottest_first(heat, (2, 2), random()).tolist() == [[3, 0], [2, 1]]


def test_a_place_is_as_hot_as_its_mean() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1  # the hottest pixel, in a place that is cold
    heat[4:, 4:] = 0.5
    assert hottest_first(heat, (2, 2), random())[1, 1] == 0


def test_places_that_speak_for_nothing_stand_in_random_order() -> None:
    orders = {tuple(hottest_first(np.zeros((8, 8)), (4, 4), np.random.default_rng(seed)).flat) for seed in range(5)}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(16)) for order in orders)


def test_the_same_pattern_is_hidden_elsewhere() -> None:
    ranks = np.arange(12).reshape(3, 4)
    assert moved(ranks, (1, 2)).tolist() == [[10, 11, 8, 9], [2, 3, 0, 1], [6, 7, 4, 5]]


def test_it_is_moved_anywhere_but_to_where_it_is() -> None:
    found = shifts((3, 4), 500, random())
    assert set(found) == {(row, column) for row in range(3) for column in range(4)} - {(0, 0)}
    assert found == shifts((3, 4), 500, random())


@pytest.mark.parametrize("how", ["blur", "mean"])
def test_just_the_first_places_are_hidden(how: str) -> None:
    original = image()
    covered = cover(original, how)
    ranks = np.arange(49).reshape(7, 7)
    found = hide(original, covered, ranks, 0.3)  # 15 places of 8 x 8 pixels: two rows and one more
    hidden = np.zeros((56, 56), bool)
    hidden[:16], hidden[16:24, :8] = True, True
    assert (found[:, hidden] == covered[:, hidden]).all()
    assert (found[:, ~hidden] == original[:, ~hidden]).all()
    assert (covered != original).all()


def test_from_nothing_to_everything_is_hidden() -> None:
    original, ranks = image(), random().permutation(49).reshape(7, 7)
    covered = cover(original, "blur")
    assert (hide(original, covered, ranks, 0) == original).all()
    assert (hide(original, covered, ranks, 1) == covered).all()
    counts = [(hide(original, covered, ranks, share) == covered).all(axis=0).sum() / 64 for share in FRACTIONS]
    assert counts == [round(49 * share) for share in FRACTIONS]


def test_a_blur_keeps_what_is_coarse_and_the_mean_colour_nothing() -> None:
    steps = np.arange(224)
    coarse, fine = (np.cos(2 * np.pi * frequency * steps) for frequency in (1 / 224, 1 / 8))
    waves = np.broadcast_to(coarse + fine + 3, (3, 224, 224)).astype(np.float32)
    blurred = cover(waves, "blur")[:, :, 50:-50]
    assert blurred == pytest.approx(np.broadcast_to(coarse + 3, (3, 224, 224))[:, :, 50:-50], abs=0.04)
    assert cover(waves, "mean") == pytest.approx(3, abs=1e-3)


def curves(lower: float, images: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight ones from .9 to .5, the hot ones lower in the middle by about so much; labels."""
    generator = random()
    straight = np.linspace(0.9, 0.5, len(FRACTIONS))
    bump = np.sin(np.pi * np.array(FRACTIONS))
    hot = straight - (lower + generator.normal(0, 0.2 * abs(lower) + 0.001, (images, 1))) * bump
    return hot, np.broadcast_to(straight, (images, 3, len(FRACTIONS))), np.arange(images) % 2


def test_areas_are_those_under_straight_pieces() -> None:
    hot, chance, labels = curves(0.1)
    found = compare(hot, chance, labels)
    assert found.auc_random == pytest.approx(0.7)
    by_hand = (hot[:, :-1] + hot[:, 1:]).mean(axis=1) / 2
    assert found.auc_hot == pytest.approx(by_hand.mean())
    assert found.difference == pytest.approx(found.auc_random - found.auc_hot)
    assert found.hot == pytest.approx(hot.mean(axis=0))


@pytest.mark.parametrize(
    ("lower", "faithful", "begins"),
    [
        (0.1, True, "Faithful: "),
        (-0.1, False, "Not faithful: "),
        (0.0, False, "Not shown to be faithful: "),
        (0.006, False, "Not shown to be faithful: "),  # more than by chance, but next to nothing
    ],
)
def test_the_sentence_follows_from_the_interval(lower: float, faithful: bool, begins: str) -> None:
    found = compare(*curves(lower))
    assert found.interval is not None
    low, high = found.interval
    assert low < found.difference < high
    assert found.faithful is faithful
    assert found.sentence.startswith(begins)
    assert f"{found.difference:+.3f} [{low:+.3f}, {high:+.3f}] on 40 images, 50.0% fake" in found.sentence
    assert found.as_dict()["sentence"] == found.sentence


def test_the_interval_covers_the_mean_of_many_images_as_often_as_it_says() -> None:
    generator, inside = random(), 0
    for seed in range(200):
        shift = generator.normal(0.03, 0.05, (60, 1))
        chance = np.full((60, 1, len(FRACTIONS)), 0.5)
        found = compare(chance[:, 0] - shift, chance, np.arange(60) % 2, resamples=400, seed=seed)
        assert found.interval is not None
        inside += found.interval[0] <= 0.03 <= found.interval[1]
    assert 0.9 <= inside / 200 <= 0.985


def test_classes_are_resampled_apart() -> None:
    """Where images of one class are all alike, no resample moves the mean."""
    hot, chance, labels = curves(0.1)
    hot = np.where(labels[:, np.newaxis] == 1, 0.2, 0.6) * np.ones(len(FRACTIONS))
    assert compare(hot, chance, labels).interval == pytest.approx((0.3, 0.3))


def test_too_few_images_tell_nothing() -> None:
    found = compare(*(each[: FEWEST - 1] for each in curves(0.3)))
    assert found.interval is None
    assert not found.faithful
    assert f"on {FEWEST - 1} images, too few" in found.sentence


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image, found none"):
        compare(*(each[:0] for each in curves(0)))
