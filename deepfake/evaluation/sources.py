"""Which generators does a network catch, and which cameras does it accuse? The same predictions, source by source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from deepfake.evaluation.metrics import bootstrap_intervals, scores

COLUMNS = (
    *("source", "label", "parent", "images", "reals"),
    *("auroc", "auroc_low", "auroc_high", "ap", "ap_low", "ap_high"),
    *("fnr", "fnr_low", "fnr_high", "fpr", "fpr_low", "fpr_high"),
)


def by_source(
    table: pd.DataFrame,
    threshold: float,
    parents: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each source is told from the other class, one row a source; rows of a parent come last.

    Args:
        table: one row an image, columns source (text), label (0 real, 1 fake) and probability (P(fake) in [0, 1]).
            A source may have images of both classes, it is then two sources.
        threshold: an image is called fake when its probability is strictly greater.
        parents: {fake source: the real source it was made from}. Gives such a fake source a second row, against its
            parent alone: without it, a network that only tells the parent from other cameras would look good.
        resamples, seed: of the bootstrap, as in `bootstrap_intervals`.

    Returns:
        columns source, label, parent (missing: against all real images), images (of the source), reals (real images
        it was held against, 0 for a real source), and in [0, 1]

        - for a fake source auroc, ap and fnr, the share called real;
        - for a real source fpr, the share called fake;

        with 95 % intervals NAME_low and NAME_high: of auroc and ap by the stratified bootstrap, of the shares
        Wilson's (1927), which keeps its width where no image is wrong. NaN where a figure has no meaning, and for
        auroc and ap where there is no real image.

    Raises:
        ValueError: a column is missing or no row is there, a source has no name, labels, probabilities or threshold
            are not as in `scores`, or `parents` names a source that the table does not have in that class.
    """
    for column in ("source", "label", "probability"):
        if column not in table:
            raise ValueError(f"table: expected a column {column}, found {', '.join(map(str, table.columns))}")
    if table["source"].isna().any():
        raise ValueError(f"source: expected a name for each image, found {int(table['source'].isna().sum())} without")
    scores(table["label"].to_numpy(), table["probability"].to_numpy(), threshold)  # refuses what is wrong, at once
    real, fake = table[table["label"] == 0], table[table["label"] == 1]

    rows = [_of_real(str(source), images, threshold) for source, images in real.groupby("source")]
    for source, images in fake.groupby("source"):
        rows.append(_of_fake(str(source), images, None, real, threshold, resamples, seed))
    for source, parent in sorted((parents or {}).items()):
        images = _named(fake, source, "fake")
        rows.append(_of_fake(source, images, parent, _named(real, parent, "real"), threshold, resamples, seed))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"source": "str", "parent": "str"})


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Over the fake sources of `by_source`, each against all real images: fake_sources (how many), auroc_mean,
    auroc_min and auroc_min_source, the one that is caught worst (of equals the first by name).

    Every source counts the same, however many images it has. Where no AUROC is defined, the figures are NaN and the
    source is None.
    """
    fakes = frame[(frame["label"] == 1) & frame["parent"].isna()]
    defined = fakes.dropna(subset="auroc")
    lowest = float(defined["auroc"].min())
    worst = sorted(defined.loc[defined["auroc"] == lowest, "source"])
    return {
        "fake_sources": len(fakes),
        "auroc_mean": float(defined["auroc"].mean()),
        "auroc_min": lowest,
        "auroc_min_source": worst[0] if worst else None,
    }


def _of_real(source: str, images: pd.DataFrame, threshold: float) -> dict[str, Any]:
    false_alarms = int((images["probability"] > threshold).sum())
    return {
        **{"source": source, "label": 0, "parent": None, "images": len(images), "reals": 0},
        **_rate("fpr", false_alarms, len(images)),
    }


def _of_fake(
    source: str,
    images: pd.DataFrame,
    parent: str | None,
    real: pd.DataFrame,
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    together = pd.concat([real, images])
    labels, p = together["label"].to_numpy(), together["probability"].to_numpy()
    found = scores(labels, p, threshold)
    intervals = bootstrap_intervals(labels, p, threshold, ("auroc", "ap"), resamples, seed)
    row = {"source": source, "label": 1, "parent": parent, "images": len(images), "reals": len(real)}
    for name, (low, high) in intervals.items():
        row |= {name: found[name], f"{name}_low": low, f"{name}_high": high}
    return row | _rate("fnr", int(found["fn"]), len(images))


def _rate(name: str, wrong: int, images: int) -> dict[str, float]:
    interval = binomtest(wrong, images).proportion_ci(method="wilson")
    return {name: wrong / images, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def _named(images: pd.DataFrame, source: str, kind: str) -> pd.DataFrame:
    chosen = images[images["source"] == source]
    if chosen.empty:
        known = ", ".join(sorted(map(str, images["source"].unique()))) or "none"
        raise ValueError(f"parents: expected {kind} sources out of {known}; found {source}")
    return chosen
