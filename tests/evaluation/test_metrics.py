"""The figures against scikit-learn, torchmetrics and slow loops."""

import math
import subprocess
import sys
import time
import warnings
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from deepfake.evaluation.metrics import MEASURES, bootstrap_intervals, confusion, metric_collection, scores


def drawn(
    n: int, seed: int = 0, separation: float = 1.0, decimals: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlapping scores; `decimals` rounds the scores, which makes ties."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    normal = generator.normal(separation * (labels - 0.5), 1)
    probabilities = np.array([NormalDist().cdf(x) for x in normal])
    return labels, probabilities if decimals is None else probabilities.round(decimals)


def by_sklearn(labels: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    said = (probabilities > threshold).astype(int)
    tn, fp, fn, tp = reference.confusion_matrix(labels, said, labels=[0, 1]).ravel()
    expected = {
        "n": len(labels),
        "prevalence": np.mean(labels),
        "majority": max(np.mean(labels), 1 - np.mean(labels)),
        "accuracy": reference.accuracy_score(labels, said),
        "precision": reference.precision_score(labels, said, zero_division=0),
        "recall": reference.recall_score(labels, said, zero_division=0),
        "f1": reference.f1_score(labels, said, zero_division=0),
        "nll": reference.log_loss(labels, np.clip(probabilities, 1e-7, 1 - 1e-7), labels=[0, 1]),
        "tn": tn,
        "fp": fp,
        "fn": fn,
        "tp": tp,
        "balanced_accuracy": np.nan,
        "auroc": np.nan,
        "ap": np.nan,
    }
    if len(set(np.asarray(labels).tolist())) == 2:
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(labels, said)
        expected["auroc"] = reference.roc_auc_score(labels, probabilities)
        expected["ap"] = reference.average_precision_score(labels, probabilities)
    return expected


# A coarse grid makes ties, 0, 1 and the threshold itself common; the fine one makes ties rare.
probability = st.one_of(st.integers(0, 8).map(lambda k: k / 8), st.floats(0, 1))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), probability), min_size=1, max_size=40),
    st.one_of(st.just(0.5), probability),
)
def test_scores_equal_scikit_learn(rows: list[tuple[int, float]], threshold: float) -> None:
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([p for _, p in rows])
    found = scores(labels, probabilities, threshold)
    expected = by_sklearn(labels, probabilities, threshold)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
        assert isinstance(found[name], float)


def test_scores_by_hand() -> None:
    # Fakes .9 .5 .5, reals .5 .2: wins 1+1 + (1/2+1) + (1/2+1) = 5 of 6; AP = 1/3 x 1 + 2/3 x 3/4.
    found = scores(np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.5, 0.5, 0.5, 0.2]))
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["ap"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)
    # .5 is not above .5: two fakes are missed and the real one is let through.
    assert (found["tn"], found["fp"], found["fn"], found["tp"]) == (2, 0, 2, 1)
    assert found["majority"] == pytest.approx(0.6)
    assert found["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined_not_a_number(label: int) -> None:
    labels, probabilities = np.full(5, label), np.linspace(0.1, 0.9, 5)
    found = scores(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, metrics=MEASURES, resamples=20)
    for name in ("auroc", "ap", "balanced_accuracy"):
        assert np.isnan(found[name])
        assert np.isnan(intervals[name]).all()
    assert found["majority"] == 1
    assert np.isfinite(intervals["accuracy"]).all()


def test_no_image_called_fake_gives_precision_zero() -> None:
    found = scores(np.array([0, 1]), np.array([0.1, 0.2]))
    assert found["precision"] == found["recall"] == found["f1"] == 0


def test_certain_and_wrong_stays_finite() -> None:
    assert scores(np.array([1, 0]), np.array([0.0, 1.0]))["nll"] == pytest.approx(-np.log(1e-7))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, np.float32])
def test_label_types(dtype: Any) -> None:
    labels, probabilities = drawn(30)
    assert scores(labels.astype(dtype), probabilities) == scores(labels, probabilities)


@pytest.mark.parametrize("decimals", [None, 1])
def test_torchmetrics_agrees(decimals: int | None) -> None:
    labels, probabilities = drawn(203, decimals=decimals)
    probabilities = probabilities.astype(np.float32)
    running, matrix = metric_collection("val/"), confusion()
    for part in np.array_split(np.arange(203), 7):
        batch = torch.from_numpy(probabilities[part]), torch.from_numpy(labels[part])
        running.update(*batch)
        matrix.update(*batch)
    found = scores(labels, probabilities)
    computed = {name: float(value) for name, value in running.compute().items()}
    assert set(computed) == {f"val/{name}" for name in ("accuracy", "precision", "recall", "f1", "auroc", "ap")}
    for name, value in computed.items():
        assert value == pytest.approx(found[name.removeprefix("val/")], abs=1e-6), name
    assert matrix.compute().tolist() == [[found["tn"], found["fp"]], [found["fn"], found["tp"]]]


def test_collections_do_not_share_state() -> None:
    first, second = metric_collection("train/"), metric_collection("val/")
    first.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
    second.update(torch.tensor([0.9, 0.1]), torch.tensor([0, 1]))
    assert first.compute()["train/accuracy"] == 1
    assert second.compute()["val/accuracy"] == 0


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [0.1, np.nan], "found nan"),
        ([0, 1], [0.1, np.inf], "found inf"),
        ([0, 1], [0.1, 1.5], r"\[0, 1\], found 1.5"),
        ([0, 1], [-0.1, 0.5], "found -0.1"),
        ([0, 1, 1], [0.1, 0.5], "flat shape"),
        ([[0, 1]], [[0.1, 0.5]], "flat shape"),
        ([0, 2], [0.1, 0.5], "labels: .*2"),
        ([0, np.nan], [0.1, 0.5], "labels: .*nan"),
        ([-1, 1], [0.1, 0.5], "labels: .*-1"),
        ([], [], "at least one image"),
    ],
)
def test_bad_input_is_refused(labels: list, probabilities: list, message: str) -> None:
    for function in (scores, bootstrap_intervals):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels), np.array(probabilities))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.2}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"metrics": ["auc"]}, "found auc"),
        ({"resamples": 0}, "resamples"),
        ({"level": 1.0}, "level"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(np.array([0, 1]), np.array([0.1, 0.9]), **arguments)


def test_bootstrap_equals_a_slow_loop() -> None:
    """Another generator, another order of work, scikit-learn's metrics: the same intervals up to chance."""
    labels, probabilities = drawn(90, decimals=2)  # some ties
    labels[:20] = 0  # unequal classes
    generator = np.random.default_rng(99)
    reals, fakes = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    samples: dict[str, list[float]] = {name: [] for name in ("accuracy", "f1", "auroc", "ap")}
    for _ in range(700):
        rows = np.concatenate([generator.choice(reals, len(reals)), generator.choice(fakes, len(fakes))])
        y, p = labels[rows], probabilities[rows]
        samples["accuracy"].append(float(np.mean((p > 0.4) == y)))
        samples["f1"].append(2 * np.sum((p > 0.4) & (y == 1)) / (np.sum(p > 0.4) + np.sum(y)))
        samples["auroc"].append(reference.roc_auc_score(y, p))
        samples["ap"].append(reference.average_precision_score(y, p))
    found = bootstrap_intervals(labels, probabilities, 0.4, metrics=list(samples), resamples=4000)
    for name, values in samples.items():
        low, high = np.quantile(values, [0.025, 0.975])
        width = high - low
        assert found[name] == pytest.approx((low, high), abs=0.18 * width), name


def test_bootstrap_keeps_class_sizes() -> None:
    """With no error and no tie inside a class, only a change of the class sizes could move these."""
    labels = np.array([0] * 5 + [1] * 20)
    right = labels * 1.0
    assert bootstrap_intervals(labels, right, metrics=["accuracy", "auroc"]) == {
        "accuracy": (1, 1),
        "auroc": (1, 1),
    }
    # Everything called fake: accuracy is the share of fakes, 20 of 25, in every single resample.
    all_fake = bootstrap_intervals(labels, np.full(25, 0.9), metrics=["accuracy", "precision"])
    assert all_fake["accuracy"] == pytest.approx((0.8, 0.8))
    assert all_fake["precision"] == pytest.approx((0.8, 0.8))


def test_bootstrap_depends_on_the_seed_alone() -> None:
    labels, probabilities = drawn(60)
    first = bootstrap_intervals(labels, probabilities, seed=3)
    assert first == bootstrap_intervals(labels, probabilities, seed=3)
    assert first != bootstrap_intervals(labels, probabilities, seed=4)
    assert set(first) == {"accuracy", "precision", "recall", "f1", "auroc", "ap"}


def test_bootstrap_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large data are measured a few resamples at a time; the interval may change only by chance."""
    labels, probabilities = drawn(100)
    whole = bootstrap_intervals(labels, probabilities, resamples=3000)["auroc"]
    monkeypatch.setattr("deepfake.evaluation.metrics._BLOCK", 700)
    blocks = bootstrap_intervals(labels, probabilities, resamples=3000)["auroc"]
    assert blocks == pytest.approx(whole, abs=0.01)


def test_a_wider_level_gives_a_wider_interval() -> None:
    labels, probabilities = drawn(100)
    narrow = bootstrap_intervals(labels, probabilities, metrics=["auroc"], level=0.5)["auroc"]
    wide = bootstrap_intervals(labels, probabilities, metrics=["auroc"], level=0.99)["auroc"]
    assert wide[0] < narrow[0] < scores(labels, probabilities)["auroc"] < narrow[1] < wide[1]


def test_interval_covers_the_truth() -> None:
    """Two normal distributions one deviation apart: AUROC is Phi(1 / sqrt 2) in the population."""
    truth = NormalDist().cdf(1 / math.sqrt(2))
    inside = 0
    for seed in range(200):
        labels, probabilities = drawn(200, seed=seed)
        low, high = bootstrap_intervals(labels, probabilities, metrics=["auroc"], resamples=200)["auroc"]
        inside += low <= truth <= high
    # Found: 188. A correct interval leaves these bounds with odds of 1 to 4,000, one that covers 85 % with
    # odds of 15 to 1, one that covers 99.9 % with odds of 4 to 1.
    assert 178 <= inside <= 199


def test_bootstrap_is_fast() -> None:
    labels, probabilities = drawn(750)
    start = time.process_time()
    bootstrap_intervals(labels, probabilities, metrics=MEASURES)
    assert time.process_time() - start < 2


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_intervals(np.array([0, 0]), np.array([0.0, 1.0]), metrics=MEASURES, resamples=5)
        scores(np.array([1]), np.array([0.0]))


def test_numpy_part_needs_no_torch() -> None:
    code = "import sys, deepfake.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
