"""Source by source against scikit-learn on the chosen rows."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from deepfake.evaluation.metrics import bootstrap_intervals
from deepfake.evaluation.sources import by_source, summary

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


@pytest.mark.parametrize("source", ["ffhq", "celeba"])
def test_a_real_source_has_its_false_alarms_alone(source: str) -> None:
    table = predictions()
    found = row(by_source(table, 0.4, resamples=20), source)
    accused = table.loc[table["source"] == source, "probability"] > 0.4
    assert found["fpr"] == pytest.approx(accused.mean())
    assert (found["fpr_low"], found["fpr_high"]) == pytest.approx(wilson(accused.sum(), len(accused)))
    assert np.isnan(found[["auroc", "auroc_low", "ap", "fnr", "fnr_high"]].astype(float)).all()


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
    assert frame[["auroc", "auroc_low", "ap"]].isna().all(axis=None)
    assert frame["fnr"].notna().all()
    found = summary(frame)
    assert found["fake_sources"] == 3
    assert np.isnan([found["auroc_mean"], found["auroc_min"]]).all()
    assert found["auroc_min_source"] is None


def test_summary_counts_every_fake_source_once() -> None:
    table = predictions()
    frame = by_source(table, 0.5, {"sdxl": "celeba", "adm": "ffhq"}, resamples=20)
    areas = []
    for source in ("adm", "sdxl", "stylegan"):
        chosen = table[(table["label"] == 0) | (table["source"] == source)]
        areas.append(roc_auc_score(chosen["label"], chosen["probability"]))
    assert summary(frame) == {
        "fake_sources": 3,
        "auroc_mean": pytest.approx(np.mean(areas), abs=1e-9),
        "auroc_min": pytest.approx(min(areas), abs=1e-9),
        "auroc_min_source": "sdxl",
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
