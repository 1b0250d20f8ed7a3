"""Tables of generalisation, against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from deepfake.evaluation import generators
from deepfake.evaluation.generators import (
    ALL,
    ALONE,
    COLUMNS,
    WITHOUT,
    WORST,
    Fold,
    generators_table,
    matrix,
    mean_intervals,
    summary,
)


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
    figures = []
    for rows, threshold in ((both, 0.5), (same, 0.45)):
        labels, p = rows["label"].to_numpy(), rows["probability"].to_numpy()
        figures.append(
            {
                "auroc": roc_auc_score(labels, p),
                "ap": average_precision_score(labels, p),
                "accuracy_half": accuracy_score(labels, p > 0.5),
                "accuracy_threshold": accuracy_score(labels, p > threshold),
                "fnr": (p[labels == 1] <= threshold).mean(),
                "fpr": (p[labels == 0] > threshold).mean(),
            }
        )
    assert list(figures[0]) == list(WORST)
    for name in WORST:
        before, now = (found[name] for found in figures)
        assert row[f"{name}_in_distribution"].item() == pytest.approx(before)
        assert row[f"{name}_same_images"].item() == pytest.approx(now)
        assert row[f"{name}_gap"].item() == pytest.approx(before - now)
        assert (table.loc[table["protocol"] == ALL, f"{name}_gap"] == 0).all()


def test_without_a_fold_in_distribution_there_is_no_gap(folds: list[Fold]) -> None:
    found = generators_table(folds[1:], resamples=5)
    assert found[[f"{name}_gap" for name in WORST]].isna().all(axis=None)
    told = summary(found, folds[1:], resamples=5)[WITHOUT]
    assert [told[f"{name}_gap_mean"] for name in WORST] == [None] * len(WORST)
    assert "auroc_gap_mean_low" not in told
    assert "auroc_mean_low" in told


def test_margins_order_what_probabilities_no_longer_tell_apart(folds: list[Fold]) -> None:
    def certain(fold: Fold) -> Fold:
        told = fold.predictions
        return Fold(fold.protocol, fold.generator, 0.5, told.assign(margin=50 + told["probability"], probability=1.0))

    same, other = generators_table(folds, resamples=5), generators_table(list(map(certain, folds)), resamples=5)
    for name in ("auroc", "auroc_low", "auroc_high", "ap", "auroc_same_images", "auroc_gap", "ap_gap"):
        assert other[name].to_numpy() == pytest.approx(same[name].to_numpy()), name
    assert (other["fpr"] == 1).all()
    assert mean_intervals(list(map(certain, folds)), 20) == mean_intervals(folds, 20)


def test_the_matrix_has_a_row_a_fold_in_their_order(table: pd.DataFrame) -> None:
    found = matrix(table)
    assert found.index.tolist() == ["all generators", "all but 1-gan", "1-sd alone"]
    assert found.columns.tolist() == ["1-gan", "1-sd"]
    row = table[(table["trained_on"] == "1-sd alone") & (table["tested"] == "1-sd")]
    assert found.loc["1-sd alone", "1-sd"] == row["auroc"].item()
    assert (found.index.name, found.columns.name) == ("trained on", "tested on")


def test_the_summary_counts_unseen_generators_alone(folds: list[Fold], table: pd.DataFrame) -> None:
    found = summary(table, folds, resamples=20)
    assert set(found) == {WITHOUT, ALONE}
    unseen = table[(table["trained_on"] == "1-sd alone") & (table["tested"] == "1-gan")].iloc[0]
    assert found[ALONE]["cells"] == 1
    assert found[ALONE]["auroc_mean"] == found[ALONE]["auroc_min"] == unseen["auroc"]
    assert found[ALONE]["auroc_gap_mean"] == found[ALONE]["auroc_gap_max"] == unseen["auroc_gap"]
    assert (found[ALONE]["auroc_mean_low"], found[ALONE]["auroc_mean_high"]) == mean_intervals(folds, 20)[ALONE][
        "auroc_mean"
    ]
    assert "auroc_mean_low" not in summary(table)[ALONE]
    assert (found[ALONE]["auroc_min_trained_on"], found[ALONE]["auroc_min_tested"]) == ("1-sd alone", "1-gan")


def test_the_summary_has_mean_worst_and_gap_of_every_figure() -> None:
    folds = [
        Fold(ALL, "", 0.5, predictions(0, {**REALS, "1-gan": 6, "1-sd": 5})),
        Fold(WITHOUT, "1-gan", 0.45, predictions(1, {**REALS, "1-gan": 40, "1-sd": 5})),
        Fold(WITHOUT, "1-sd", 0.35, predictions(4, {**REALS, "1-gan": 6, "1-sd": 25})),
    ]
    table = generators_table(folds, {"1-gan": "0-b"}, resamples=5)
    found = summary(table)[WITHOUT]
    cells = {
        "all but 1-gan": table[(table["trained_on"] == "all but 1-gan") & (table["tested"] == "1-gan")].iloc[0],
        "all but 1-sd": table[(table["trained_on"] == "all but 1-sd") & (table["tested"] == "1-sd")].iloc[0],
    }
    for name in ("auroc", "ap", "accuracy_half", "accuracy_threshold", "fnr", "fpr"):
        values = {fold: float(row[name]) for fold, row in cells.items()}
        assert len(set(values.values())) == 2, name
        end, pick = ("max", max) if name in ("fnr", "fpr") else ("min", min)
        worst = pick(values, key=values.__getitem__)
        assert found[f"{name}_mean"] == pytest.approx(sum(values.values()) / 2)
        assert found[f"{name}_{end}"] == values[worst]
        assert (found[f"{name}_{end}_trained_on"], found[f"{name}_{end}_tested"]) == (worst, f"1-{worst[10:]}")
        gaps = [float(row[f"{name}_gap"]) for row in cells.values()]
        assert found[f"{name}_gap_mean"] == pytest.approx(sum(gaps) / 2)


def paired_by_hand(folds: list[Fold], resamples: int) -> dict[str, np.ndarray]:
    """Mean AUROC on unseen sources and mean gap in each resample, pair by pair of images: the same reals for all."""
    random = np.random.default_rng(11)
    before, *others = (fold.predictions.set_index("path")["probability"] for fold in folds)
    reals = [path for path in before.index if path.startswith("0-")]
    cells = []
    for fold, now in zip(folds[1:], others, strict=True):
        whole = [path for path in now.index if path.startswith(fold.generator)]
        both = [path for path in whole if path in before.index]
        asked = ((now, reals), (now, whole), (now, both), (before, reals), (before, both))
        cells.append([p.loc[rows].to_numpy() for p, rows in asked])
    means, gaps = np.empty((2, resamples, len(cells)))
    for row in range(resamples):
        drawn = random.integers(len(reals), size=len(reals))
        for column, (now_reals, now_whole, now_both, before_reals, before_both) in enumerate(cells):
            means[row, column] = area(now_reals[drawn], random.choice(now_whole, len(now_whole)))
            same = random.integers(len(now_both), size=len(now_both))
            gaps[row, column] = area(before_reals[drawn], before_both[same]) - area(now_reals[drawn], now_both[same])
    return {"auroc_mean": means.mean(axis=1), "auroc_gap_mean": gaps.mean(axis=1)}


def area(reals: np.ndarray, fakes: np.ndarray) -> float:
    above = fakes[:, np.newaxis] - reals
    return float((np.sign(above).mean() + 1) / 2)


def test_intervals_of_the_means_equal_a_bootstrap_by_hand() -> None:
    # Few reals: were they not the same in every fold, the interval of the mean would be half as wide.
    reals, sources = {"0-a": 12}, ("1-gan", "1-sd", "1-flux", "1-vae")
    folds = [Fold(ALL, "", 0.5, predictions(0, {**reals, **dict.fromkeys(sources, 25)}))]
    for source in sources:
        kept = folds[0].predictions  # a fold whose answers resemble those in distribution, so that pairing tells
        more = predictions(7, {source: 50}).iloc[25:]
        both = pd.concat([kept.assign(probability=0.7 * kept["probability"] + 0.1), more])
        noise = np.random.default_rng(len(source)).normal(0, 0.1, len(both))
        folds.append(Fold(WITHOUT, source, 0.5, both.assign(probability=np.clip(both["probability"] + noise, 0, 1))))
    found, expected = mean_intervals(folds, 2000)[WITHOUT], paired_by_hand(folds, 1500)
    for name, sample in expected.items():
        low, high = np.quantile(sample, (0.025, 0.975))
        assert found[name] == pytest.approx((low, high), abs=0.15 * (high - low)), name


def test_the_same_answers_as_in_distribution_have_no_gap_in_any_resample(folds: list[Fold]) -> None:
    twin = Fold(WITHOUT, "1-gan", 0.5, folds[0].predictions)
    assert mean_intervals([folds[0], twin], 50)[WITHOUT]["auroc_gap_mean"] == (0, 0)


def test_blocks_and_the_order_of_the_rows_change_nothing(folds: list[Fold], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_intervals(folds, 300)
    shuffled = [Fold(f.protocol, f.generator, f.threshold, f.predictions.sample(frac=1)) for f in folds]
    assert mean_intervals(shuffled, 300) == whole
    monkeypatch.setattr(generators, "BLOCK", 1000)
    in_blocks = mean_intervals(folds, 300)
    for protocol, entry in whole.items():
        for name, (low, high) in entry.items():
            assert in_blocks[protocol][name] == pytest.approx((low, high), abs=0.3 * (high - low))


def test_without_reals_there_is_no_interval_and_no_resample_is_refused(folds: list[Fold]) -> None:
    fakes = [Fold(f.protocol, f.generator, 0.5, f.predictions.query("label == 1")) for f in folds]
    assert mean_intervals(fakes) == {}
    assert summary(generators_table(fakes, resamples=5), fakes) == {}
    with pytest.raises(ValueError, match="resamples: expected at least 1, found 0"):
        mean_intervals(folds, 0)


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
