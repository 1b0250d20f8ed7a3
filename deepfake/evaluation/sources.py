"""Which generators does a network catch, and which cameras does it accuse? The same predictions, source by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from deepfake.evaluation.metrics import MEASURES, bootstrap_intervals, scores, wilson_interval

FIRST = ("auroc", "ap", "fnr", "fpr")  # what is asked of a source first; the other measures follow
COLUMNS = (
    *("source", "label", "parent", "images", "reals"),
    *(
        f"{name}{end}"
        for name in (*FIRST, *(measure for measure in MEASURES if measure not in FIRST))
        for end in ("", "_low", "_high")
    ),
)

# What one class alone allows, besides the shares that the threshold decides. Precision and F1 there tell the class.
_OF_ONE_CLASS = ("nll", "brier", "ece", "adaptive_ece")


def by_source(
    table: pd.DataFrame,
    threshold: float,
    parents: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    measures: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """How well each source is told from the other class, one row a source; rows of a parent come last.

    Args:
        table: one row an image, columns source (text), label (0 real, 1 fake) and probability (P(fake) in [0, 1]);
            if there, margin, which orders images of equal probability. A source may have images of both classes, it
            is then two sources.
        threshold: an image is called fake when its probability is strictly greater.
        parents: {fake source: the real source it was made from}. Gives such a fake source a second row, against its
            parent alone: without it, a network that only tells the parent from other cameras would look good.
        resamples, seed: of the bootstrap, as in `bootstrap_intervals`.
        measures: which of `MEASURES` are wanted besides the shares of wrong verdicts; the others are NaN.

    Returns:
        columns source, label, parent (missing: against all real images), images (of the source), reals (real images
        it was held against, 0 for a real source), and, as in `metrics.scores`,

        - for a fake source fnr, the share called real, and every measure of it and those reals together; where there
          are none, what is defined of the fakes alone: recall and accuracy (1 - fnr), nll, brier, ece, adaptive_ece;
        - for a real source fpr, the share called fake, accuracy (1 - fpr), nll, brier, ece, adaptive_ece;

        with 95 % intervals NAME_low and NAME_high: of fnr, fpr and what is 1 minus them Wilson's (1927), which keeps
        its width where no image is wrong, of all else by the stratified bootstrap. NaN where a figure is undefined.

    Raises:
        ValueError: a column is missing or no row is there, a source has no name, labels, probabilities or threshold
            are not as in `scores`, or `parents` names a source that the table does not have in that class.
    """
    for column in ("source", "label", "probability"):
        if column not in table:
            raise ValueError(f"table: expected a column {column}, found {', '.join(map(str, table.columns))}")
    if table["source"].isna().any():
        raise ValueError(f"source: expected a name for each image, found {int(table['source'].isna().sum())} without")
    labels, p, margins = _told(table)
    scores(labels, p, threshold, margins)  # refuses what is wrong, at once
    real, fake = table[table["label"] == 0], table[table["label"] == 1]

    how = threshold, measures, resamples, seed
    rows = [_of_real(str(source), images, *how) for source, images in real.groupby("source")]
    for source, images in fake.groupby("source"):
        rows.append(_of_fake(str(source), images, None, real, *how))
    for source, parent in sorted((parents or {}).items()):
        images = _named(fake, source, "fake")
        rows.append(_of_fake(source, images, parent, _named(real, parent, "real"), *how))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"source": "str", "parent": "str"})


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Mean and worst over the sources of `by_source`.

    Over fake sources, each against all real images: fake_sources (how many), auroc_mean, auroc_min, fnr_mean, fnr_min
    and fnr_max. Over real sources: real_sources, fpr_mean and fpr_max. Besides the worst auroc_min, fnr_max and
    fpr_max stands whose it is, as auroc_min_source (of equals the first by name).

    Every source counts the same, however many images it has. Where a figure is defined nowhere, it is NaN and the
    source is None.
    """
    fakes, reals = frame[(frame["label"] == 1) & frame["parent"].isna()], frame[frame["label"] == 0]
    return {
        "fake_sources": len(fakes),
        "auroc_mean": float(fakes["auroc"].mean()),
        **_extreme(fakes, "auroc", "min"),
        "fnr_mean": float(fakes["fnr"].mean()),
        "fnr_min": float(fakes["fnr"].min()),
        **_extreme(fakes, "fnr", "max"),
        "real_sources": len(reals),
        "fpr_mean": float(reals["fpr"].mean()),
        **_extreme(reals, "fpr", "max"),
    }


def _extreme(rows: pd.DataFrame, name: str, which: str) -> dict[str, Any]:
    value = float(rows[name].agg(which))
    sources = sorted(rows.loc[rows[name] == value, "source"])
    return {f"{name}_{which}": value, f"{name}_{which}_source": sources[0] if sources else None}


def _of_real(
    source: str, images: pd.DataFrame, threshold: float, measures: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    false_alarms = int((images["probability"] > threshold).sum())
    return {
        **{"source": source, "label": 0, "parent": None, "images": len(images), "reals": 0},
        **_rate("fpr", false_alarms, len(images)),
        **_rate("accuracy", len(images) - false_alarms, len(images)),
        **_figures(images, threshold, _of_one_class(measures), resamples, seed),
    }


def _of_fake(
    source: str,
    images: pd.DataFrame,
    parent: str | None,
    real: pd.DataFrame,
    threshold: float,
    measures: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    caught = int((images["probability"] > threshold).sum())
    row = {"source": source, "label": 1, "parent": parent, "images": len(images), "reals": len(real)}
    if real.empty:
        row |= _figures(images, threshold, _of_one_class(measures), resamples, seed)
        row |= _rate("accuracy", caught, len(images))
    else:
        row |= _figures(pd.concat([real, images]), threshold, measures, resamples, seed)
    return row | _rate("fnr", len(images) - caught, len(images)) | _rate("recall", caught, len(images))


def _of_one_class(measures: Sequence[str]) -> list[str]:
    return [measure for measure in _OF_ONE_CLASS if measure in measures]


def _figures(
    images: pd.DataFrame, threshold: float, measures: Sequence[str], resamples: int, seed: int
) -> dict[str, float]:
    """Each of `measures` with its bootstrap interval."""
    if not measures:
        return {}
    labels, p, margins = _told(images)
    found = scores(labels, p, threshold, margins)
    intervals = bootstrap_intervals(labels, p, threshold, measures, resamples, seed, margins=margins)
    row: dict[str, float] = {}
    for name, (low, high) in intervals.items():
        row |= {name: found[name], f"{name}_low": low, f"{name}_high": high}
    return row


def _told(images: pd.DataFrame) -> tuple[NDArray, NDArray, NDArray | None]:
    """Labels, P(fake) and, where there are any, the margins that order images of equal probability."""
    margins = images["margin"].to_numpy() if "margin" in images else None
    return images["label"].to_numpy(), images["probability"].to_numpy(), margins


def _rate(name: str, part: int, images: int) -> dict[str, float]:
    low, high = wilson_interval(part, images)
    return {name: part / images, f"{name}_low": low, f"{name}_high": high}


def _named(images: pd.DataFrame, source: str, kind: str) -> pd.DataFrame:
    chosen = images[images["source"] == source]
    if chosen.empty:
        known = ", ".join(sorted(map(str, images["source"].unique()))) or "none"
        raise ValueError(f"parents: expected {kind} sources out of {known}; found {source}")
    return chosen
