"""Tables of generalisation, against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from deepfake.evaluation.generators import ALL, ALONE, COLUMNS, WITHOUT, Fold, generators_table, matrix, summary


def predictions(seed: int, counts: dict[str, int]) -> pd.DataFrame:
    """So many images of each source, named 0-... or 1-..., P(fake) by chance, fakes a little higher."""
    random = np.random.default_rng(seed)
    rows = [(f"{source}/{n}.png", source, int(source[0])) for source, count in counts.items() for n in range(count)]
    table = pd.DataFrame(rows, columns=["path", "source", "label"])
    return table.assign(probability=np.clip(random.normal(0.4 + 0.2 * table["label"], 0.2), 0, 1))


REALS = {"0-a": 20, "0-b": 30}


@pytest.fixture(scope="module")
def folds() -> list[Fold]:
    return [
        Fold(ALL, "", 0.5, predictions(0, {**REALS, "1-gan": 6, "1-sd": 5})),
        Fold(WITHOUT, "1-gan", 0.45, predictions(1, {**REALS, "1-gan": 40, "1-sd": 5})),
        Fold(ALONE, "1-sd", 0.4, predictions(2, {**REALS, "1-gan": 40, "1-sd": 5})),
    ]


@pytest.fixture(scope="module")
def table(folds: list[Fold]) -> pd.DataFrame:
    return generators_table(folds, {"1-gan": "0-b"}, resamples=50)


def test_figures_equal_scikit_learns(folds: list[Fold], table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    told = table[(table["trained_on"] == "all but 1-gan") & (table["tested"] == "1-gan")].to_dict("records")
    assert len(told) == 2
    judged = folds[1].predictions
    for row, sources in zip(told, (["0-a", "0-b", "1-gan"], ["0-b", "1-gan"]), strict=True):
        rows = judged[judged["source"].isin(sources)]
        labels, p = rows["label"], rows["probability"]
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, p))
        assert row["ap"] == pytest.approx(average_precision_score(labels, p))
        assert row["accuracy_half"] == pytest.approx(accuracy_score(labels, p > 0.5))
        assert row["accuracy_threshold"] == pytest.approx(accuracy_score(labels, p > 0.45))
        assert row["fnr"] == pytest.approx((p[labels == 1] <= 0.45).mean())
        assert row["fpr"] == pytest.approx((p[labels == 0] > 0.45).mean())
        assert (row["images"], row["reals"], row["threshold"]) == (40, (labels == 0).sum(), 0.45)
        assert row["prevalence"] == pytest.approx(labels.mean())
        for name in ("auroc", "ap", "accuracy_half", "accuracy_threshold", "fnr", "fpr"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_each_fold_says_which_generators_it_was_trained_on(table: pd.DataFrame) -> None:
    seen = table[table["parent"].isna()].set_index(["trained_on", "tested"])["seen"].to_dict()
    assert seen == {
        ("all generators", "1-gan"): True, ("all generators", "1-sd"): True,
        ("all but 1-gan", "1-gan"): False, ("all but 1-gan", "1-sd"): True,
        ("1-sd alone", "1-gan"): False, ("1-sd alone", "1-sd"): True,
    }  # fmt: skip


def test_the_gap_is_on_the_images_that_both_were_tested_on(folds: list[Fold], table: pd.DataFrame) -> None:
    row = table[(table["trained_on"] == "all but 1-gan") & (table["tested"] == "1-gan") & table["parent"].isna()]
    both = folds[0].predictions[folds[0].predictions["source"] != "1-sd"]
    same = folds[1].predictions.set_index("path").loc[both["path"]]
    expected = roc_auc_score(both["label"], both["probability"]) - roc_auc_score(same["label"], same["probability"])
    assert row["gap"].item() == pytest.approx(expected)
    assert (table.loc[table["protocol"] == ALL, "gap"] == 0).all()


def test_without_a_fold_in_distribution_there_is_no_gap(folds: list[Fold]) -> None:
    found = generators_table(folds[1:], resamples=5)
    assert found["gap"].isna().all()
    assert summary(found)[WITHOUT]["gap_mean"] is None


def test_the_matrix_has_a_row_a_fold_in_their_order(table: pd.DataFrame) -> None:
    found = matrix(table)
    assert found.index.tolist() == ["all generators", "all but 1-gan", "1-sd alone"]
    assert found.columns.tolist() == ["1-gan", "1-sd"]
    row = table[(table["trained_on"] == "1-sd alone") & (table["tested"] == "1-sd")]
    assert found.loc["1-sd alone", "1-sd"] == row["auroc"].item()
    assert (found.index.name, found.columns.name) == ("trained on", "tested on")


def test_the_summary_counts_unseen_generators_alone(table: pd.DataFrame) -> None:
    found = summary(table)
    assert set(found) == {WITHOUT, ALONE}
    unseen = table[(table["trained_on"] == "1-sd alone") & (table["tested"] == "1-gan")].iloc[0]
    assert found[ALONE]["cells"] == 1
    assert found[ALONE]["auroc_mean"] == found[ALONE]["auroc_min"] == unseen["auroc"]
    assert found[ALONE]["gap_mean"] == unseen["gap"]
    assert (found[ALONE]["auroc_min_trained_on"], found[ALONE]["auroc_min_tested"]) == ("1-sd alone", "1-gan")


def test_other_real_images_in_one_fold_are_refused(folds: list[Fold]) -> None:
    other = Fold(WITHOUT, "1-sd", 0.5, predictions(3, {"0-a": 20, "0-b": 29, "1-sd": 9}))
    with pytest.raises(ValueError, match="found 1 that only 'all generators' or only 'all but 1-sd' has"):
        generators_table([folds[0], other], resamples=2)


@pytest.mark.parametrize(
    ("parents", "message"),
    [({"1-flux": "0-a"}, "fake sources of the test part, found 1-flux"), ({"1-sd": "0-c"}, "real .* found 0-c")],
)
def test_a_pair_that_is_not_there_is_refused(folds: list[Fold], parents: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generators_table(folds, parents, resamples=2)


def test_no_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="folds: expected at least one, found none"):
        generators_table([])
