"""Deletion curves: what is hidden, in which order, and what follows from the areas under the curves."""

import numpy as np
import pytest

from deepfake.analysis.deletion import FEWEST, FRACTIONS, by_place, compare, cover, hide, hottest_first, moved, shifts


def image(size: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, size, size)).astype(np.float32)


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_hottest_places_come_first() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[:4, 4:], heat[4:, 4:], heat[4:, :4] = 0.9, 0.5, 0.1
    assert hottest_first(by_place(heat, (2, 2)), random()).tolist() == [[3, 0], [2, 1]]


def test_a_place_is_as_hot_as_its_mean() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1  # the hottest pixel, in a place that is cold
    heat[4:, 4:] = 0.5
    assert hottest_first(by_place(heat, (2, 2)), random())[1, 1] == 0


def test_places_that_speak_for_nothing_stand_in_random_order() -> None:
    orders = {tuple(hottest_first(np.zeros((4, 4)), np.random.default_rng(seed)).flat) for seed in range(5)}
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


def test_places_may_be_more_rows_than_columns() -> None:
    heat = np.zeros((12, 12), np.float32)
    heat[8:, 6:] = 1
    assert by_place(heat, (3, 2)).tolist() == [[0, 0], [0, 0], [0, 1]]


def curves(
    lower: float, than_common: float | None = None, images: int = 40
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Straight ones from .9 to .5, the hot ones lower in the middle by about so much than each control; labels."""
    generator = random()
    straight = np.linspace(0.9, 0.5, len(FRACTIONS))
    bump = np.sin(np.pi * np.array(FRACTIONS))
    spread = generator.normal(0, 0.2 * abs(lower) + 0.001, (images, 1))
    hot = straight - (lower + spread) * bump
    common = straight - (lower - (lower if than_common is None else than_common)) * bump
    chance = np.broadcast_to(straight, (images, 3, len(FRACTIONS)))
    return hot, chance, np.broadcast_to(common, hot.shape), np.arange(images) % 2


def test_areas_are_those_under_straight_pieces() -> None:
    hot, chance, usual, labels = curves(0.1, 0.02)
    found = compare(hot, chance, usual, labels)
    assert found.auc_random == pytest.approx(0.7)
    by_hand = (hot[:, :-1] + hot[:, 1:]).mean(axis=1) / 2
    assert found.auc_hot == pytest.approx(by_hand.mean())
    assert found.difference == pytest.approx(found.auc_random - found.auc_hot)
    assert found.auc_common == pytest.approx((usual[:, :-1] + usual[:, 1:]).mean() / 2)
    assert found.difference_common == pytest.approx(found.auc_common - found.auc_hot)
    assert found.difference > 3 * found.difference_common > 0
    assert found.hot == pytest.approx(hot.mean(axis=0))
    assert found.common == pytest.approx(usual[0])


@pytest.mark.parametrize(
    ("lower", "than_common", "faithful", "begins", "taken"),
    [
        (0.1, 0.1, True, "Faithful: ", ("more", "and more")),
        (-0.1, -0.1, False, "Not faithful: ", ("less", "and less")),
        (0.1, -0.1, False, "Not faithful: ", ("more", "but less")),
        (-0.1, 0.1, False, "Not faithful: ", ("less", "but more")),
        (0.0, 0.0, False, "Not shown to be faithful: ", ("perhaps hardly more", "and perhaps hardly more")),
        (0.1, 0.0, False, "Not shown to be faithful: ", ("more", "but perhaps hardly more")),
        (0.0, 0.1, False, "Not shown to be faithful: ", ("perhaps hardly more", "but more")),
        # More than by chance, but next to nothing.
        (0.006, 0.006, False, "Not shown to be faithful: ", ("perhaps hardly more", "and perhaps hardly more")),
    ],
)
def test_the_sentence_follows_from_both_intervals(
    lower: float, than_common: float, faithful: bool, begins: str, taken: tuple[str, str]
) -> None:
    found = compare(*curves(lower, than_common))
    assert found.faithful is faithful
    assert found.sentence.startswith(begins)
    first, second = found.sentence.split(" than hiding the places that are hot on average")[0].split("elsewhere (")
    assert f"takes {taken[0]}" in first
    assert f"), {taken[1]}" in second
    for difference, interval in (
        (found.difference, found.interval),
        (found.difference_common, found.interval_common),
    ):
        assert interval is not None
        assert interval[0] < difference < interval[1]
        assert f"{difference:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}])" in found.sentence
    assert found.sentence.endswith("40 images, 50.0% fake.")
    assert found.as_dict()["sentence"] == found.sentence


def test_what_is_not_shown_is_not_called_absent() -> None:
    """A large difference, of images too unlike each other to be sure of it."""
    straight = np.full((12, 3, len(FRACTIONS)), 0.5)
    hot = straight[:, 0] - np.where(np.arange(12) < 3, 0.4, 0)[:, np.newaxis]
    found = compare(hot, straight, straight[:, 0], np.ones(12))
    assert found.interval is not None
    assert found.interval[0] < 0.005 < 0.09 < found.difference
    assert "takes perhaps hardly more, or no more, of the confidence" in found.sentence


def test_the_interval_covers_the_mean_of_many_images_as_often_as_it_says() -> None:
    generator, inside = random(), 0
    for seed in range(200):
        shift = generator.normal(0.03, 0.05, (60, 1))
        chance = np.full((60, 1, len(FRACTIONS)), 0.5)
        found = compare(chance[:, 0] - shift, chance, chance[:, 0], np.arange(60) % 2, 400, seed)
        assert found.interval is not None
        inside += found.interval[0] <= 0.03 <= found.interval[1]
    assert 0.9 <= inside / 200 <= 0.985


def test_classes_are_resampled_apart() -> None:
    """Where images of one class are all alike, no resample moves the mean."""
    hot, chance, usual, labels = curves(0.1)
    hot = np.where(labels[:, np.newaxis] == 1, 0.2, 0.6) * np.ones(len(FRACTIONS))
    assert compare(hot, chance, usual, labels).interval == pytest.approx((0.3, 0.3))


def test_too_few_images_tell_nothing() -> None:
    found = compare(*(each[: FEWEST - 1] for each in curves(0.3)))
    assert found.interval is found.interval_common is None
    assert not found.faithful
    assert f"on {FEWEST - 1} images, 44.4% fake, too few" in found.sentence


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image, found none"):
        compare(*(each[:0] for each in curves(0)))
