"""Source by source against scikit-learn on the chosen rows."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from deepfake.evaluation.metrics import MEASURES, bootstrap_intervals
from deepfake.evaluation.sources import COLUMNS, by_source, summary

SIZES = {("ffhq", 0): 40, ("celeba", 0): 25, ("stylegan", 1): 30, ("sdxl", 1): 20, ("adm", 1): 12}


def predictions(seed: int = 0) -> pd.DataFrame:
    """Two real and three fake sources, ties among the scores, rows in no order; sdxl is the hardest."""
    generator = np.random.default_rng(seed)
    centres = {"ffhq": -0.5, "celeba": -1.0, "stylegan": 1.5, "sdxl": 0.1, "adm": 0.8}
    parts = [
        pd.DataFrame(
            {
                "source": source,
                "label": label,
                "probability": norm.cdf(generator.normal(centres[source], 1, n)).round(2),
            }
        )
        for (source, label), n in SIZES.items()
    ]
    return pd.concat(parts).sample(frac=1, random_state=seed)


def wilson(wrong: int, n: int) -> tuple[float, float]:
    """The two shares that lie 1.96 standard errors, their own, from what was found."""
    z, share = norm.ppf(0.975), wrong / n
    roots = np.roots([1 + z**2 / n, -(2 * share + z**2 / n), share**2])
    return min(roots), max(roots)


def row(frame: pd.DataFrame, source: str, parent: str | None = None) -> pd.Series:
    chosen = frame[
        (frame["source"] == source) & (frame["parent"].isna() if parent is None else frame["parent"] == parent)
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_every_source_has_one_row() -> None:
    frame = by_source(predictions(), 0.5, resamples=20)
    assert list(zip(frame["source"], frame["label"], strict=True)) == [
        *[("celeba", 0), ("ffhq", 0)],
        *[("adm", 1), ("sdxl", 1), ("stylegan", 1)],
    ]
    assert frame["parent"].isna().all()
    assert {(s, y): n for s, y, n in frame[["source", "label", "images"]].itertuples(index=False)} == SIZES
    assert frame["reals"].tolist() == [0, 0, 65, 65, 65]
    assert tuple(frame.columns) == COLUMNS


@pytest.mark.parametrize("source", ["stylegan", "sdxl", "adm"])
def test_a_fake_source_against_all_real_images(source: str) -> None:
    table = predictions()
    found = row(by_source(table, 0.6, resamples=200, seed=4), source)
    chosen = table[(table["label"] == 0) | (table["source"] == source)]
    assert found["auroc"] == pytest.approx(roc_auc_score(chosen["label"], chosen["probability"]), abs=1e-9)
    assert found["ap"] == pytest.approx(average_precision_score(chosen["label"], chosen["probability"]), abs=1e-9)
    missed = (chosen["probability"] <= 0.6)[chosen["label"] == 1]
    assert found["fnr"] == pytest.approx(missed.mean())
    assert (found["fnr_low"], found["fnr_high"]) == pytest.approx(wilson(missed.sum(), len(missed)))
    assert np.isnan(found[["fpr", "fpr_low", "fpr_high"]].astype(float)).all()
    reordered = chosen.sort_values("label", kind="stable")
    for name in ("auroc", "ap"):
        expected = bootstrap_intervals(
            reordered["label"].to_numpy(), reordered["probability"].to_numpy(), 0.6, [name], 200, seed=4
        )
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(expected[name])
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


@pytest.mark.parametrize(("source", "parent"), [("sdxl", None), ("sdxl", "celeba")])
def test_every_measure_equals_scikit_learns(source: str, parent: str | None) -> None:
    table = predictions()
    table["probability"] = table["probability"].clip(0.01, 0.99)
    found = row(by_source(table, 0.45, {"sdxl": "celeba"}, resamples=100), source, parent)
    real = table["label"] == 0 if parent is None else table["source"] == parent
    chosen = table[real | (table["source"] == source)]
    labels, p = chosen["label"], chosen["probability"]
    said = p > 0.45
    fpr, tpr, _ = roc_curve(labels, p, drop_intermediate=False)
    expected = {
        "accuracy": accuracy_score(labels, said),
        "balanced_accuracy": balanced_accuracy_score(labels, said),
        "precision": precision_score(labels, said),
        "recall": recall_score(labels, said),
        "f1": f1_score(labels, said),
        "auroc": roc_auc_score(labels, p),
        "ap": average_precision_score(labels, p),
        "tpr_at_fpr1": tpr[fpr <= 0.01].max(),
        "tpr_at_fpr5": tpr[fpr <= 0.05].max(),
        "nll": log_loss(labels, p),
        "brier": brier_score_loss(labels, p),
        "ece": binned_error(labels.to_numpy(), p.to_numpy()),
    }
    assert found[list(expected)].to_dict() == pytest.approx(expected)
    crossing = np.linspace(0, 1, 100_001)
    assert found["eer"] == pytest.approx(
        crossing[np.argmin(np.abs(np.interp(crossing, fpr, 1 - tpr) - crossing))], abs=1e-4
    )
    for name in MEASURES:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] or "ece" in name, name
        assert np.isfinite(found[[f"{name}_low", f"{name}_high"]].astype(float)).all(), name
    assert found["recall"] == pytest.approx(1 - found["fnr"])
    assert (found["recall_low"], found["recall_high"]) == pytest.approx((1 - found["fnr_high"], 1 - found["fnr_low"]))


def binned_error(labels: np.ndarray, p: np.ndarray) -> float:
    """The expected calibration error over 15 bins of equal width, bin by bin."""
    bins = np.minimum((p * 15).astype(int), 14)
    gaps = [abs(p[bins == b].mean() - labels[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
    return float(sum(gaps))


def test_margins_order_what_probabilities_no_longer_tell_apart() -> None:
    table = predictions()
    margin = 100 * (norm.ppf(table["probability"].clip(0.01, 0.99)) + 4)  # P(fake) is 1 of every image
    table = table.assign(margin=margin, probability=1.0)
    whole = row(by_source(table, 0.5, {"adm": "ffhq"}, resamples=50), "adm", "ffhq")
    chosen = table[table["source"].isin(["adm", "ffhq"])]
    assert whole["auroc"] == pytest.approx(roc_auc_score(chosen["label"], chosen["margin"]), abs=1e-9)
    assert whole["ap"] == pytest.approx(average_precision_score(chosen["label"], chosen["margin"]), abs=1e-9)
    assert 0.5 < whole["auroc_low"] < whole["auroc"]
    assert whole["tpr_at_fpr5"] > 0
    without = row(by_source(table.drop(columns="margin"), 0.5, resamples=50), "adm")
    assert (without["auroc"], without["auroc_low"], without["auroc_high"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("source", ["ffhq", "celeba"])
def test_a_real_source_has_its_false_alarms_alone(source: str) -> None:
    table = predictions()
    found = row(by_source(table, 0.4, resamples=20), source)
    accused = table.loc[table["source"] == source, "probability"] > 0.4
    assert found["fpr"] == pytest.approx(accused.mean())
    assert (found["fpr_low"], found["fpr_high"]) == pytest.approx(wilson(accused.sum(), len(accused)))
    assert found["accuracy"] == pytest.approx(1 - accused.mean())
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(
        (1 - found["fpr_high"], 1 - found["fpr_low"])
    )
    p = table.loc[table["source"] == source, "probability"]
    assert found["brier"] == pytest.approx((p**2).mean())
    assert found["nll"] == pytest.approx(-np.log1p(-p).mean())
    assert found["ece"] == pytest.approx(p.mean())
    undefined = {"fnr", *MEASURES} - {"accuracy", "nll", "brier", "ece", "adaptive_ece"}
    assert found[[f"{name}{end}" for name in undefined for end in ("", "_low", "_high")]].isna().all()


def test_against_its_own_parent_alone() -> None:
    table = predictions()
    frame = by_source(table, 0.5, {"stylegan": "ffhq"}, resamples=50)
    found = row(frame, "stylegan", "ffhq")
    chosen = table[table["source"].isin(["ffhq", "stylegan"])]
    assert found["auroc"] == pytest.approx(roc_auc_score(chosen["label"], chosen["probability"]), abs=1e-9)
    assert (found["images"], found["reals"]) == (30, 40)
    assert found["auroc"] != row(frame, "stylegan")["auroc"]
    assert len(frame) == 6
    # The parent's rows leave the others as they were.
    pd.testing.assert_frame_equal(frame.iloc[:5], by_source(table, 0.5, resamples=50))


def test_a_threshold_is_strict() -> None:
    table = pd.DataFrame({"source": ["a", "b"], "label": [0, 1], "probability": [0.5, 0.5]})
    frame = by_source(table, 0.5, resamples=5)
    assert (row(frame, "a")["fpr"], row(frame, "b")["fnr"]) == (0, 1)


def test_no_false_alarm_leaves_a_wide_interval() -> None:
    table = pd.DataFrame({"source": "a", "label": 0, "probability": np.zeros(20)})
    found = row(by_source(table, 0.5), "a")
    assert (found["fpr"], found["fpr_low"]) == (0, 0)
    assert found["fpr_high"] == pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-3)


def test_one_name_in_both_classes_is_two_sources() -> None:
    table = predictions()
    table["source"] = "adm"
    frame = by_source(table, 0.5, {"adm": "adm"}, resamples=20)
    assert frame[["label", "images", "reals"]].to_numpy().tolist() == [[0, 65, 0], [1, 62, 65], [1, 62, 65]]


def test_without_real_images_the_areas_are_undefined() -> None:
    table = predictions()
    frame = by_source(table[table["label"] == 1], 0.5, resamples=20)
    for name in ("auroc", "ap", "eer", "balanced_accuracy", "precision", "f1", "tpr_at_fpr5", "fpr"):
        assert frame[[name, f"{name}_low", f"{name}_high"]].isna().all(axis=None), name
    assert frame["fnr"].notna().all()
    assert (frame["accuracy"] == frame["recall"]).all()
    assert frame["brier"].notna().all()
    found = summary(frame)
    assert found["fake_sources"] == 3
    assert np.isnan([found["auroc_mean"], found["auroc_min"]]).all()
    assert found["auroc_min_source"] is None


def test_summary_counts_every_source_once() -> None:
    table = predictions()
    frame = by_source(table, 0.5, {"sdxl": "celeba", "adm": "ffhq"}, resamples=20)
    areas = []
    for source in ("adm", "sdxl", "stylegan"):
        chosen = table[(table["label"] == 0) | (table["source"] == source)]
        areas.append(roc_auc_score(chosen["label"], chosen["probability"]))
    called_fake = (table["probability"] > 0.5).groupby(table["source"]).mean()
    missed, accused = 1 - called_fake[["adm", "sdxl", "stylegan"]], called_fake[["celeba", "ffhq"]]
    assert summary(frame) == {
        "fake_sources": 3,
        "auroc_mean": pytest.approx(np.mean(areas), abs=1e-9),
        "auroc_min": pytest.approx(min(areas), abs=1e-9),
        "auroc_min_source": "sdxl",
        "fnr_mean": pytest.approx(missed.mean()),
        "fnr_min": pytest.approx(missed.min()),
        "fnr_max": pytest.approx(missed.max()),
        "fnr_max_source": missed.idxmax(),
        "real_sources": 2,
        "fpr_mean": pytest.approx(accused.mean()),
        "fpr_max": pytest.approx(accused.max()),
        "fpr_max_source": accused.idxmax(),
    }


def test_of_equally_bad_sources_the_first_by_name() -> None:
    table = pd.DataFrame({"source": ["r", "z", "b"], "label": [0, 1, 1], "probability": [0.5, 0.5, 0.5]})
    assert summary(by_source(table, 0.5, resamples=5))["auroc_min_source"] == "b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="probability"), "table: expected a column probability, found source, label"),
        (lambda t: t.assign(source=None), "source: expected a name for each image, found 127 without"),
        (lambda t: t.assign(label=2), "labels: expected 0"),
        (lambda t: t.assign(probability=np.nan), "probabilities: .*found nan"),
        (lambda t: t.assign(margin=np.nan), "margins: expected numbers, found 127 NaN"),
        (lambda t: t.iloc[:0], "at least one image"),
    ],
)
def test_bad_tables_are_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_source(change(predictions()), 0.5)


def test_a_threshold_outside_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold: .*found 1\.5"):
        by_source(predictions(), 1.5)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"dalle": "ffhq"}, "parents: expected fake sources out of adm, sdxl, stylegan; found dalle"),
        ({"ffhq": "celeba"}, "parents: expected fake sources .*; found ffhq"),
        ({"sdxl": "laion"}, "parents: expected real sources out of celeba, ffhq; found laion"),
    ],
)
def test_unknown_parents_are_refused(parents: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_source(predictions(), 0.5, parents, resamples=5)
