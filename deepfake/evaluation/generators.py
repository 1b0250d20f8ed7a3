"""What does a network know of generators that it has never seen? Tables from the predictions of several trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from deepfake.evaluation.metrics import bootstrap_intervals, scores

ALL, WITHOUT, ALONE = "all generators", "leave_one_out", "train_one"  # protocols
COLUMNS = (
    *("protocol", "trained_on", "tested", "parent", "seen", "images", "reals", "prevalence", "majority"),
    *("auroc", "auroc_low", "auroc_high", "ap", "ap_low", "ap_high"),
    *("accuracy_half", "accuracy_half_low", "accuracy_half_high", "threshold"),
    *("accuracy_threshold", "accuracy_threshold_low", "accuracy_threshold_high"),
    *("fnr", "fnr_low", "fnr_high", "fpr", "fpr_low", "fpr_high"),
    *("auroc_in_distribution", "auroc_same_images", "gap"),
)


@dataclass(frozen=True)
class Fold:
    """One training and what it said of its test part.

    Attributes:
        protocol: `ALL` (in distribution), `WITHOUT` (one generator left out) or `ALONE` (trained on one).
        generator: the one left out or trained on; "" for `ALL`.
        threshold: of P(fake), chosen on its validation part.
        predictions: one row a test image: path, source, label (0 real, 1 fake), probability (P(fake) in [0, 1]).
    """

    protocol: str
    generator: str
    threshold: float
    predictions: pd.DataFrame

    @property
    def name(self) -> str:
        return {ALL: ALL, WITHOUT: f"all but {self.generator}", ALONE: f"{self.generator} alone"}[self.protocol]

    def has_seen(self, source: str) -> bool:
        """Whether it was trained on images of this fake source."""
        return {ALL: True, WITHOUT: source != self.generator, ALONE: source == self.generator}[self.protocol]


def generators_table(
    folds: Sequence[Fold], parents: Mapping[str, str] | None = None, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """A row a fold and tested fake source, against all real test images; rows against a parent alone follow.

    Args:
        folds: at least one; each has the same real test images.
        parents: {fake source: the real source it was made from}.
        resamples, seed: of the bootstrap, as in `metrics.bootstrap_intervals`.

    Returns:
        `COLUMNS`: parent is missing where all reals are held against the source; seen, whether the fold was trained
        on the source. images (of the source) and reals; prevalence and majority, the accuracy of always naming the
        larger class, of both together. auroc, ap and the accuracies with 95 % bootstrap intervals, fnr (of the
        source) and fpr (of the reals) at the fold's threshold with Wilson's (1927). gap = auroc_in_distribution -
        auroc_same_images, both of the source's images that the fold in distribution was tested on too, for the
        others it may have been trained on; NaN without that fold or without such images.

    Raises:
        ValueError: no fold, real test images that are not the same, a parent that is not there, or what
            `metrics.scores` refuses.
    """
    _expect_same_reals(folds)
    reference = next((fold for fold in folds if fold.protocol == ALL), None)
    rows = []
    for fold in folds:
        for source, parent, images, reals in _pairs(fold.predictions, parents or {}):
            row: dict[str, Any] = {"protocol": fold.protocol, "trained_on": fold.name}
            row |= {"tested": source, "parent": parent}
            row |= {"seen": fold.has_seen(source), **_figures(images, reals, fold.threshold, resamples, seed)}
            rows.append(row | _gap(reference, source, images, reals))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"parent": "str"})


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC against all reals, of `generators_table`: a row a fold, a column a tested fake source, NaN where none."""
    whole = table[table["parent"].isna()]
    found = whole.pivot_table(index="trained_on", columns="tested", values="auroc")
    found = found.reindex(whole["trained_on"].unique()).sort_index(axis="columns")
    return found.rename_axis(index="trained on", columns="tested on")


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """For each protocol that met unseen generators: folds, cells (a fold and an unseen source), the mean and minimum
    of their AUROC, where the minimum is, and the mean gap to the fold in distribution on the same images (None if it
    is not there)."""
    found = {}
    unseen = table[table["parent"].isna() & ~table["seen"].astype(bool)]
    for protocol, rows in unseen.dropna(subset="auroc").groupby("protocol", sort=False):
        worst = rows.sort_values("auroc", kind="stable").iloc[0]
        gaps = rows["gap"].dropna()
        found[str(protocol)] = {
            "folds": int(rows["trained_on"].nunique()),
            "cells": len(rows),
            "auroc_mean": float(rows["auroc"].mean()),
            "auroc_min": float(worst["auroc"]),
            "auroc_min_trained_on": str(worst["trained_on"]),
            "auroc_min_tested": str(worst["tested"]),
            "gap_mean": float(gaps.mean()) if len(gaps) else None,
            "gap_max": float(gaps.max()) if len(gaps) else None,
        }
    return found


def _expect_same_reals(folds: Sequence[Fold]) -> None:
    if not folds:
        raise ValueError("folds: expected at least one, found none")
    first, *others = (set(_of(fold.predictions, 0)["path"]) for fold in folds)
    for fold, reals in zip(folds[1:], others, strict=True):
        if reals != first:
            raise ValueError(
                f"folds: expected the same real test images in each, found {len(reals ^ first)} that only "
                f"{folds[0].name!r} or only {fold.name!r} has"
            )


def _of(predictions: pd.DataFrame, label: int, source: str | None = None) -> pd.DataFrame:
    chosen = predictions[predictions["label"] == label]
    return chosen if source is None else chosen[chosen["source"] == source]


def _pairs(
    predictions: pd.DataFrame, parents: Mapping[str, str]
) -> Iterator[tuple[str, str | None, pd.DataFrame, pd.DataFrame]]:
    """Fake source, parent, images of the first, reals to hold against it."""
    reals = _of(predictions, 0)
    for source, images in _of(predictions, 1).groupby("source"):
        yield str(source), None, images, reals
    for source, parent in sorted(parents.items()):
        images, own = _of(predictions, 1, source), _of(predictions, 0, parent)
        for kind, name, found in (("fake", source, images), ("real", parent, own)):
            if found.empty:
                raise ValueError(f"parents: expected {kind} sources of the test part, found {name}")
        yield source, parent, images, own


def _figures(
    images: pd.DataFrame, reals: pd.DataFrame, threshold: float, resamples: int, seed: int
) -> dict[str, float]:
    labels, p = _together(images, reals)
    half, at = scores(labels, p), scores(labels, p, threshold)
    row = {"images": len(images), "reals": len(reals), "threshold": threshold}
    row |= {name: half[name] for name in ("prevalence", "majority", "auroc", "ap")}
    row |= {"accuracy_half": half["accuracy"], "accuracy_threshold": at["accuracy"]}
    intervals = bootstrap_intervals(labels, p, 0.5, ("auroc", "ap", "accuracy"), resamples, seed)
    intervals["accuracy_half"] = intervals.pop("accuracy")
    intervals["accuracy_threshold"] = bootstrap_intervals(labels, p, threshold, ("accuracy",), resamples, seed)[
        "accuracy"
    ]
    for name, wrong, of in (("fnr", at["fn"], len(images)), ("fpr", at["fp"], len(reals))):
        row[name] = wrong / of if of else np.nan
        found = binomtest(int(wrong), of).proportion_ci(method="wilson") if of else None
        intervals[name] = (float(found.low), float(found.high)) if found else (np.nan, np.nan)
    for name, (low, high) in intervals.items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _gap(reference: Fold | None, source: str, images: pd.DataFrame, reals: pd.DataFrame) -> dict[str, float]:
    if reference is None:
        return {}
    theirs = _of(reference.predictions, 1, source)
    theirs = theirs[theirs["path"].isin(images["path"])]
    if theirs.empty or reals.empty:
        return {}
    ours = images[images["path"].isin(theirs["path"])]
    their_reals = _of(reference.predictions, 0)
    their_reals = their_reals[their_reals["path"].isin(reals["path"])]
    before, now = (scores(*_together(*pair))["auroc"] for pair in ((theirs, their_reals), (ours, reals)))
    return {"auroc_in_distribution": before, "auroc_same_images": now, "gap": before - now}


def _together(images: pd.DataFrame, reals: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    both = pd.concat([reals, images])
    return both["label"].to_numpy(), both["probability"].to_numpy()
