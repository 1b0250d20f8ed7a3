"""What does a network know of generators that it has never seen? Tables from the predictions of several trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.evaluation.metrics import BLOCK, bootstrap_intervals, scores, wilson_interval

ALL, WITHOUT, ALONE = "all generators", "leave_one_out", "train_one"  # protocols
WORST = {  # of each figure, which end is the worst
    **dict.fromkeys(("auroc", "ap", "accuracy_half", "accuracy_threshold"), "min"),
    **dict.fromkeys(("fnr", "fpr"), "max"),
}
COLUMNS = (
    *("protocol", "trained_on", "tested", "parent", "seen", "images", "reals", "prevalence", "majority", "threshold"),
    *(f"{name}{end}" for name in WORST for end in ("", "_low", "_high")),
    *(f"{name}_{what}" for name in WORST for what in ("in_distribution", "same_images", "gap")),
)


@dataclass(frozen=True)
class Fold:
    """One training and what it said of its test part.

    Attributes:
        protocol: `ALL` (in distribution), `WITHOUT` (one generator left out) or `ALONE` (trained on one).
        generator: the one left out or trained on; "" for `ALL`.
        threshold: of P(fake), chosen on its validation part.
        predictions: one row a test image: path, source, label (0 real, 1 fake), probability (P(fake) in [0, 1]) and,
            if there, margin, which orders images of equal probability.
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
        larger class, of both together. auroc, ap and the accuracies at .5 and at the fold's threshold with 95 %
        bootstrap intervals, fnr (of the source) and fpr (of the reals) at the fold's threshold with Wilson's (1927).
        NAME_gap = NAME_in_distribution - NAME_same_images, both of the reals and of the source's images that the
        fold in distribution was tested on too, for the others it may have been trained on, each fold at its own
        threshold: what is lost, of fnr and fpr with a minus. NaN without that fold or without such images.

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
            rows.append(row | _gap(reference, source, images, reals, fold.threshold))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"parent": "str"})


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC against all reals, of `generators_table`: a row a fold, a column a tested fake source, NaN where none."""
    whole = table[table["parent"].isna()]
    found = whole.pivot_table(index="trained_on", columns="tested", values="auroc")
    found = found.reindex(whole["trained_on"].unique()).sort_index(axis="columns")
    return found.rename_axis(index="trained on", columns="tested on")


def summary(
    table: pd.DataFrame, folds: Sequence[Fold] = (), resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """For each protocol that met unseen generators, over its cells, a fold and an unseen source against all reals.

    Args:
        table: of `generators_table`.
        folds: those of the table, for the intervals of `mean_intervals`, which are left out without them.
        resamples, seed: as in `mean_intervals`.

    Returns:
        folds and cells (how many), and of each figure of `WORST` NAME_mean; NAME_min or NAME_max, whichever is the
        worst, with NAME_min_trained_on and NAME_min_tested, where it is; NAME_gap_mean to the fold in distribution on
        the same images (None if it is not there). Every cell counts the same. auroc_gap_max is the largest loss;
        auroc_mean_low, auroc_mean_high, auroc_gap_mean_low and auroc_gap_mean_high are the ends of 95 % intervals.
    """
    intervals = mean_intervals(folds, resamples, seed) if folds else {}
    found = {}
    unseen = table[table["parent"].isna() & ~table["seen"].astype(bool)]
    for protocol, rows in unseen.dropna(subset="auroc").groupby("protocol", sort=False):
        entry: dict[str, Any] = {"folds": int(rows["trained_on"].nunique()), "cells": len(rows)}
        for name, end in WORST.items():
            worst = rows.sort_values(name, kind="stable", ascending=end == "min").iloc[0]
            entry |= {f"{name}_mean": float(rows[name].mean()), f"{name}_{end}": float(worst[name])}
            entry |= {f"{name}_{end}_{where}": str(worst[where]) for where in ("trained_on", "tested")}
            gaps = rows[f"{name}_gap"].dropna()
            entry[f"{name}_gap_mean"] = float(gaps.mean()) if len(gaps) else None
        entry["auroc_gap_max"] = float(rows["auroc_gap"].max()) if rows["auroc_gap"].notna().any() else None
        for name, (low, high) in intervals.get(str(protocol), {}).items():
            entry |= {f"{name}_low": low, f"{name}_high": high}
        found[str(protocol)] = entry
    return found


def mean_intervals(
    folds: Sequence[Fold], resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % percentile intervals of the mean AUROC on unseen generators, and of its mean gap, by the bootstrap.

    The test images are resampled with replacement: the real ones by themselves and those of each fake source by
    themselves, so that each cell keeps both its numbers. A resample is the same in every fold and in the fold in
    distribution, which pairs them. The gap's is of the images that both were tested on.

    They hold how far the means would move with other images of these cameras and these generators. They do not hold
    what other generators, another training seed or another split would change: generators and trainings are taken as
    they are, and images as independent of each other, whatever identity or video they share.

    Args:
        folds: as in `generators_table`.
        resamples: how many, at least 1.
        seed: the same seed gives the same intervals.

    Returns:
        of each protocol that met unseen generators (low, high) of auroc_mean and, where there is a fold in
        distribution and images that it was tested on too, of auroc_gap_mean. Nothing without real images.

    Raises:
        ValueError: as `generators_table`; no resamples.
    """
    _expect_same_reals(folds)
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, found {resamples}")
    reals = tuple(sorted(_of(folds[0].predictions, 0)["path"]))
    if not reals:
        return {}
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // max(len(fold.predictions) for fold in folds))
    parts = [
        _resampled_means(folds, reals, min(block, resamples - start), generator)
        for start in range(0, resamples, block)
    ]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for protocol, name in parts[0]:
        low, high = np.quantile(np.concatenate([part[protocol, name] for part in parts]), (0.025, 0.975))
        found.setdefault(protocol, {})[name] = (float(low), float(high))
    return found


def _resampled_means(
    folds: Sequence[Fold], reals: tuple[str, ...], resamples: int, generator: np.random.Generator
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(protocol, auroc_mean or auroc_gap_mean): their values in each resample, shape (resamples,)."""

    @cache  # the same images are drawn the same number of times, whichever fold is asked
    def times(paths: tuple[str, ...]) -> NDArray[np.int64]:
        """How many times each image is drawn, shape (resamples, images)."""
        drawn = generator.integers(len(paths), size=(resamples, len(paths)))
        drawn += len(paths) * np.arange(resamples)[:, np.newaxis]
        return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)

    reference = next((_Resampled(fold, reals, times) for fold in folds if fold.protocol == ALL), None)
    samples: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for fold in folds:
        resampled = _Resampled(fold, reals, times)
        for source, images in _of(fold.predictions, 1).groupby("source"):
            if fold.has_seen(str(source)):
                continue
            paths = tuple(sorted(images["path"]))
            samples.setdefault((fold.protocol, "auroc_mean"), []).append(resampled.auroc(paths))
            both = tuple(path for path in paths if reference is not None and path in reference.ranks)
            if reference is not None and both:
                gap = reference.auroc(both) - resampled.auroc(both)
                samples.setdefault((fold.protocol, "auroc_gap_mean"), []).append(gap)
    return {key: np.mean(cells, axis=0) for key, cells in samples.items()}


class _Resampled:
    """What a fold said of images that are drawn several times or never."""

    def __init__(
        self, fold: Fold, reals: tuple[str, ...], times: Callable[[tuple[str, ...]], NDArray[np.int64]]
    ) -> None:
        self.times = times
        table = fold.predictions
        by = ["probability", "margin"] if "margin" in table else ["probability"]
        self.ranks = dict(zip(table["path"], table.groupby(by).ngroup(), strict=True))
        ranks = np.array([self.ranks[path] for path in reals])
        order = np.argsort(ranks)
        self.reals = ranks[order]
        self.below = np.pad(times(reals)[:, order].cumsum(axis=1), ((0, 0), (1, 0)))  # how many reals, up to each

    def auroc(self, fakes: tuple[str, ...]) -> NDArray[np.float64]:
        """Of these fakes against all reals, in each resample; a fake beats every real below it, and half its like."""
        ranks = np.array([self.ranks[path] for path in fakes])
        lower, level = (np.searchsorted(self.reals, ranks, side) for side in ("left", "right"))
        beaten = (self.below[:, lower] + self.below[:, level]) / 2
        return (self.times(fakes) * beaten).sum(axis=1) / (len(fakes) * len(self.reals))


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
    labels, p, margins = _together(images, reals)
    facts = scores(labels, p, threshold)
    row = {"images": len(images), "reals": len(reals), "threshold": threshold}
    row |= {name: facts[name] for name in ("prevalence", "majority")} | _values(images, reals, threshold)
    intervals = bootstrap_intervals(labels, p, 0.5, ("auroc", "ap", "accuracy"), resamples, seed, margins=margins)
    intervals["accuracy_half"] = intervals.pop("accuracy")
    at = bootstrap_intervals(labels, p, threshold, ("accuracy",), resamples, seed)
    intervals["accuracy_threshold"] = at["accuracy"]
    for name, wrong, of in (("fnr", facts["fn"], len(images)), ("fpr", facts["fp"], len(reals))):
        intervals[name] = wilson_interval(wrong, of)
    for name, (low, high) in intervals.items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _values(images: pd.DataFrame, reals: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Each figure of `WORST`."""
    labels, p, margins = _together(images, reals)
    half, at = scores(labels, p, 0.5, margins), scores(labels, p, threshold)
    return {
        **{name: half[name] for name in ("auroc", "ap")},
        "accuracy_half": half["accuracy"],
        "accuracy_threshold": at["accuracy"],
        "fnr": at["fn"] / len(images) if len(images) else np.nan,
        "fpr": at["fp"] / len(reals) if len(reals) else np.nan,
    }


def _gap(
    reference: Fold | None, source: str, images: pd.DataFrame, reals: pd.DataFrame, threshold: float
) -> dict[str, float]:
    if reference is None:
        return {}
    theirs = _of(reference.predictions, 1, source)
    theirs = theirs[theirs["path"].isin(images["path"])]
    if theirs.empty or reals.empty:
        return {}
    ours = images[images["path"].isin(theirs["path"])]
    their_reals = _of(reference.predictions, 0)
    their_reals = their_reals[their_reals["path"].isin(reals["path"])]
    before, now = _values(theirs, their_reals, reference.threshold), _values(ours, reals, threshold)
    return {
        f"{name}_{what}": value
        for name in WORST
        for what, value in (
            ("in_distribution", before[name]),
            ("same_images", now[name]),
            ("gap", before[name] - now[name]),
        )
    }


def _together(images: pd.DataFrame, reals: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray | None]:
    """Labels, P(fake) and, where there are any, margins."""
    both = pd.concat([reals, images])
    margins = both["margin"].to_numpy() if "margin" in both else None
    return both["label"].to_numpy(), both["probability"].to_numpy(), margins
