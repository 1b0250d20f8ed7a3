"""Temperature, thresholds and band against logistic regression, exhaustive search and simulated validation parts."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from deepfake.evaluation.calibration import (
    THRESHOLDS,
    Calibration,
    Threshold,
    calibrate,
    fit_band,
    fit_temperature,
    fit_thresholds,
)


def drawn(n: int, temperature: float = 1.0, seed: int = 0, prevalence: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and margins that are calibrated once divided by the temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(np.log(prevalence / (1 - prevalence)), 2, n)
    labels = (generator.random(n) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, logits * temperature


@pytest.mark.parametrize("true", [0.2, 1.0, 4.0])
def test_temperature_is_the_logistic_regression_without_an_intercept(true: float) -> None:
    labels, margins = drawn(500, true)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = 1 / model.fit(margins[:, np.newaxis], labels).coef_[0, 0]
    found = fit_temperature(labels, margins)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(true, rel=0.25)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-30, 30)), min_size=2, max_size=30))
def test_no_other_temperature_has_a_lower_loss(rows: list[tuple[int, float]]) -> None:
    labels, margins = (np.array(column) for column in zip(*rows, strict=True))
    assume(0 < labels.sum() < len(labels))

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, np.where(labels == 1, -margins, margins) / temperature).mean())

    found = fit_temperature(labels, margins)
    assert 0.05 <= found <= 20
    assert loss(found) <= min(loss(t) for t in np.geomspace(0.05, 20, 200)) + 1e-9


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_perfect_separation_gives_the_lowest_temperature(scale: float) -> None:
    assert fit_temperature(np.array([0, 0, 1]), scale * np.array([-2.0, -1.0, 0.5])) == 0.05


@pytest.mark.parametrize("margins", [[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [1e5, 1e5, -1e5]])
def test_margins_that_tell_nothing_give_the_highest_temperature(margins: list[float]) -> None:
    assert fit_temperature(np.array([0, 0, 1]), np.array(margins)) == 20


# Multiples of an eighth, 0 and 1 among them, make ties; neighbours one rounding step apart leave nothing between.
probability = st.one_of(st.integers(0, 8).map(lambda k: k / 8), st.floats(0, 1), st.just(np.nextafter(0.5, 1)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), probability), min_size=2, max_size=40))
def test_thresholds_against_every_possible_cut(rows: list[tuple[int, float]]) -> None:
    labels, p = (np.array(column) for column in zip(*rows, strict=True))
    assume(0 < labels.sum() < len(labels))
    # Above each image's own p, above 1, and above 0: no threshold in [0, 1] calls an image of p = 0 fake.
    rates = []
    for cut in {0.0, 1.0, *p.tolist()}:
        said = p > cut
        rates.append((said[labels == 0].mean(), said[labels == 1].mean()))
    found = fit_thresholds(labels, p)
    assert tuple(found) == THRESHOLDS
    for each in found.values():
        said = p > each.value
        assert each.fpr == pytest.approx(said[labels == 0].mean())
        assert each.tpr == pytest.approx(said[labels == 1].mean())
        assert each.balanced_accuracy == pytest.approx((each.tpr + 1 - each.fpr) / 2)
    assert found["half"].value == 0.5
    best = found["balanced_accuracy"].balanced_accuracy
    assert best == pytest.approx(max((tpr + 1 - fpr) / 2 for fpr, tpr in rates))
    gap = abs(found["eer"].fpr - (1 - found["eer"].tpr))
    assert gap == pytest.approx(min(abs(fpr - (1 - tpr)) for fpr, tpr in rates))
    for name, limit in (("fpr_1", 0.01), ("fpr_5", 0.05)):
        assert found[name].fpr <= limit
        assert found[name].tpr == pytest.approx(max(tpr for fpr, tpr in rates if fpr <= limit))


def test_thresholds_lie_halfway_between_neighbours() -> None:
    found = fit_thresholds(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]))
    for name in ("eer", "balanced_accuracy", "fpr_1", "fpr_5"):
        assert found[name].value == pytest.approx(0.4)
        assert (found[name].fpr, found[name].tpr) == (0, 1)


@pytest.mark.parametrize("below", [0.5, np.nextafter(0.5, 1)])
def test_a_single_rounding_step_still_parts_two_images(below: float) -> None:
    """The middle is rounded down between the first pair, up between the second."""
    found = fit_thresholds(np.array([0, 1]), np.array([below, np.nextafter(below, 1)]))["eer"]
    assert (found.fpr, found.tpr) == (0, 1)


def test_of_equal_thresholds_the_highest() -> None:
    # Above .3 and above .7 both give balanced accuracy .75; the higher accuses no real image.
    found = fit_thresholds(np.array([0, 1, 0, 1]), np.array([0.2, 0.4, 0.6, 0.8]))["balanced_accuracy"]
    assert found.value == pytest.approx(0.7)
    assert found.balanced_accuracy == pytest.approx(0.75)


@pytest.mark.parametrize(("tied", "allowed"), [(1, 1), (2, 0)])
def test_one_percent_of_a_hundred_is_one_image_and_ties_stay_together(tied: int, allowed: int) -> None:
    """Of 100 reals the highest `tied` are level at .8: one may be accused, of two that are level neither."""
    reals = np.concatenate([np.full(tied, 0.8), np.linspace(0.1, 0.5, 100 - tied)])
    found = fit_thresholds(np.array([0] * 100 + [1] * 2), np.concatenate([reals, [0.75, 0.9]]))["fpr_1"]
    assert found.fpr == allowed / 100
    assert found.tpr == (1 if allowed else 0.5)


@pytest.mark.parametrize(
    ("reals", "warned"), [(19, {"fpr_1", "fpr_5"}), (20, {"fpr_1"}), (99, {"fpr_1"}), (100, set())]
)
def test_too_few_real_images_for_a_rate_are_warned_of(reals: int, warned: set[str]) -> None:
    found = fit_thresholds(np.array([0] * reals + [1]), np.linspace(0.1, 0.9, reals + 1))
    assert {name for name, each in found.items() if each.warning} == warned
    if "fpr_1" in warned:
        assert found["fpr_1"].warning == f"expected at least 100 real validation images for 1 %, found {reals}"


def test_where_no_fake_can_be_caught_none_is_called_fake() -> None:
    found = fit_thresholds(np.array([0, 1]), np.array([1.0, 0.5]))["fpr_1"]
    assert (found.value, found.fpr, found.tpr) == (1, 0, 0)


def one_band(generator: np.random.Generator, shift: float, n_real: int, n_fake: int, error: float) -> tuple:
    """A band from one validation part; and how often new images would end up beyond it on the wrong side."""

    def squashed(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    real, fake = generator.normal(-shift, 1, n_real), generator.normal(shift, 1, n_fake)
    labels = np.array([0] * n_real + [1] * n_fake)
    low, high = fit_band(labels, squashed(np.concatenate([real, fake])), error)
    new_real = squashed(generator.normal(-shift, 1, 400))
    new_fake = squashed(generator.normal(shift, 1, 400))
    return np.mean(new_real > high), np.mean(new_fake < low)


@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_band_keeps_its_promise_for_both_classes(shift: float) -> None:
    """On the average over validation parts, and not by being far too wide where the classes overlap.

    29 real images allow 3 / 30 = .1 exactly, 35 fake ones 3 / 36.
    """
    generator = np.random.default_rng(5)
    wrong = np.array([one_band(generator, shift, 29, 35, 0.1) for _ in range(1500)])
    chance = 4 * wrong.std(axis=0) / np.sqrt(len(wrong))
    assert (wrong.mean(axis=0) <= 0.1 + chance).all()
    if shift < 1:
        assert wrong.mean(axis=0) == pytest.approx([3 / 30, 3 / 36], abs=chance.max())


def test_band_by_hand() -> None:
    """Nine of each class: k = 1, so real up to its largest, fake from its smallest on."""
    labels = np.array([0] * 9 + [1] * 9)
    overlapping = np.concatenate([np.linspace(0.1, 0.6, 9), np.linspace(0.4, 0.9, 9)])
    assert fit_band(labels, overlapping) == pytest.approx((0.4, 0.6))
    apart = np.concatenate([np.linspace(0.1, 0.3, 9), np.linspace(0.7, 0.9, 9)])
    assert fit_band(labels, apart) == pytest.approx((0.3, 0.7))
    # k = 2: the second largest and the second smallest.
    assert fit_band(labels, overlapping, 0.2) == pytest.approx((0.4 + 0.0625, 0.6 - 0.0625))


def test_too_few_images_leave_everything_in_doubt() -> None:
    labels = np.array([0] * 8 + [1] * 8)
    assert fit_band(labels, np.linspace(0.1, 0.9, 16)) == (0, 1)


def test_band_does_not_depend_on_the_temperature() -> None:
    labels, margins = drawn(200)
    cold, hot = (fit_band(labels, 1 / (1 + np.exp(-margins / t))) for t in (0.5, 3))
    # The same images end the band, whatever the scale.
    logit = np.log(np.divide(cold, 1 - np.array(cold))) * 0.5, np.log(np.divide(hot, 1 - np.array(hot))) * 3
    assert logit[0] == pytest.approx(logit[1], abs=1e-6)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(*drawn(400, 2.5, prevalence=0.6))


def test_calibrate_fits_all_three_on_the_calibrated_probabilities(calibration: Calibration) -> None:
    labels, margins = drawn(400, 2.5, prevalence=0.6)
    p = calibration.probabilities(margins)
    assert calibration.temperature == fit_temperature(labels, margins)
    assert p == pytest.approx(1 / (1 + np.exp(-margins / calibration.temperature)))
    assert calibration.thresholds == fit_thresholds(labels, p)
    assert calibration.band == fit_band(labels, p, 0.1)
    assert (calibration.n_real, calibration.n_fake) == ((labels == 0).sum(), (labels == 1).sum())
    assert log_loss(labels, p) < log_loss(labels, 1 / (1 + np.exp(-margins)))


def test_verdict_is_fake_strictly_above_the_threshold(calibration: Calibration) -> None:
    p = np.array([[0.5, 0.51], [0.49, 1.0]])
    assert calibration.verdict(p).tolist() == [["real", "fake"], ["real", "fake"]]
    cut = calibration.thresholds["fpr_5"].value
    at = np.array([cut, np.nextafter(cut, 1)])
    assert calibration.verdict(at, "fpr_5").tolist() == ["real", "fake"]


def test_uncertain_is_the_band_and_what_lies_between_it_and_the_threshold(calibration: Calibration) -> None:
    fitted = calibration.thresholds
    moved = {"fpr_1": replace(fitted["fpr_1"], value=0.95), "eer": replace(fitted["eer"], value=0.2)}
    known = replace(calibration, band=(0.4, 0.7), thresholds={**fitted, **moved})
    p = np.array([0.19, 0.2, 0.39, 0.4, 0.7, 0.71, 0.95, 0.96])
    assert p[known.uncertain(p)].tolist() == [0.4, 0.7]
    assert p[known.uncertain(p, "fpr_1")].tolist() == [0.4, 0.7, 0.71, 0.95]
    assert p[known.uncertain(p, "eer")].tolist() == [0.2, 0.39, 0.4, 0.7]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_at_any_threshold_few_new_images_are_confidently_wrong(name: str) -> None:
    """The band's promise, as a user meets it; the network, margins four times too large, is the same throughout."""
    wrong = []
    for seed in range(60):
        fitted = calibrate(*drawn(160, 4, seed=seed))
        labels, margins = drawn(400, 4, seed=1000 + seed)
        p = fitted.probabilities(margins)
        sure_and_wrong = ~fitted.uncertain(p, name) & ((fitted.verdict(p, name) == "fake") != (labels == 1))
        wrong.append([sure_and_wrong[labels == label].mean() for label in (0, 1)])
    chance = 4 * np.std(wrong, axis=0) / np.sqrt(len(wrong))
    assert (np.mean(wrong, axis=0) <= 0.1 + chance).all()


def test_plain_data_and_back(calibration: Calibration, tmp_path: Any) -> None:
    data = calibration.as_dict()
    assert Calibration.from_dict(data) == calibration
    assert Calibration.from_dict(json.loads(json.dumps(data, allow_nan=False))) == calibration
    torch.save(data, tmp_path / "data.pt")
    assert Calibration.from_dict(torch.load(tmp_path / "data.pt", weights_only=True)) == calibration


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["temperature"], 0.01, r"^temperature: expected a number in \[0.05, 20\], found 0.01"),
        (["temperature"], "1", "^temperature: .*found '1'"),
        (["temperature"], float("nan"), "^temperature: .*found nan"),
        (["band"], [0.2], r"^band: expected two numbers, found \[0.2\]"),
        (["band"], [0.6, 0.4], r"^band: expected a number in \[0.6, 1\], found 0.4"),
        (["band"], [-0.1, 0.4], "^band: .*found -0.1"),
        (["band_error"], None, "^band_error: .*found None"),
        (["n_real"], 0, "^n_real: .*found 0"),
        (["n_fake"], 2.5, "^n_fake: .*found 2.5"),
        (["thresholds"], [], r"^thresholds: expected a dict of thresholds, found \[\]"),
        (["thresholds", "half"], 0.5, "^thresholds.half: expected a dict, found 0.5"),
        (["thresholds", "eer", "value"], 1.5, "^thresholds.eer.value: .*found 1.5"),
        (["thresholds", "eer", "fpr"], True, "^thresholds.eer.fpr: .*found True"),
        (["thresholds", "eer", "warning"], 3, "^thresholds.eer.warning: expected a text or None, found 3"),
        (["thresholds", "eer", "colour"], 3, "^thresholds.eer: unknown field colour"),
        (["thresholds", "best"], Threshold(0.5, 0, 1, 1).__dict__, "^thresholds: expected half, eer, .*best"),
        (["sharpness"], 3, "^calibration: unknown field sharpness"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    calibration: Calibration, path: list[str], value: Any, message: str
) -> None:
    data = json.loads(json.dumps(calibration.as_dict()))
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        Calibration.from_dict(data)


@pytest.mark.parametrize("field", ["temperature", "thresholds", "band", "band_error", "n_real", "n_fake"])
def test_missing_fields_are_refused_by_name(calibration: Calibration, field: str) -> None:
    data = calibration.as_dict()
    del data[field]
    with pytest.raises(ValueError, match=f"^calibration: missing field {field}"):
        Calibration.from_dict(data)


def test_what_is_not_a_dict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^calibration: expected a dict, found None"):
        Calibration.from_dict(None)


def test_warnings_name_what_not_to_lean_on(calibration: Calibration) -> None:
    assert replace(calibration, temperature=1.0).warnings == []
    separable = calibrate(np.array([0] * 30 + [1] * 30), np.repeat([-3.0, 3.0], 30))
    assert [warning.split(":")[0] for warning in separable.warnings] == ["fpr_1", "temperature"]


@pytest.mark.parametrize(
    ("labels", "figures", "message"),
    [
        ([0, 0], [0.1, 0.2], "found 2 real and no fake ones"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "found 3 fake and no real ones"),
        ([0, 1], [0.1, 0.2, 0.3], r"one figure for each of 2 labels, found the shape \(3,\)"),
        ([0, 2], [0.1, 0.2], "labels: expected 0"),
        ([], [], "at least one image"),
        ([[0, 1]], [[0.1, 0.2]], "flat shape"),
        ([0, 1], [0.1, np.nan], "found nan"),
        ([0, 1], [0.1, np.inf], "found inf"),
    ],
)
def test_bad_input_is_refused(labels: list, figures: list, message: str) -> None:
    for function in (fit_temperature, fit_thresholds, fit_band, calibrate):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels), np.array(figures))


@pytest.mark.parametrize("error", [0.0, 1.0, float("nan")])
def test_an_error_outside_0_and_1_is_refused(error: float) -> None:
    with pytest.raises(ValueError, match="error: expected a number between 0 and 1"):
        fit_band(np.array([0, 1]), np.array([0.1, 0.9]), error)


def test_unknown_thresholds_and_impossible_numbers_are_refused(calibration: Calibration) -> None:
    for method in (calibration.verdict, calibration.uncertain):
        with pytest.raises(ValueError, match=r"threshold: expected one of half, eer, .*; found best"):
            method(np.array([0.5]), "best")
        with pytest.raises(ValueError, match=r"probabilities: .*found nan"):
            method(np.array([np.nan]))
    with pytest.raises(ValueError, match="margins: expected finite numbers, found nan"):
        calibration.probabilities(np.array([np.nan]))
