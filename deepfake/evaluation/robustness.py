"""How well do answers bear what happens to images on their way? Tables from answers; nothing is judged here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from deepfake.evaluation.metrics import checked_labels, checked_probabilities, resampled_scores, scores

COLUMNS = (
    *("kind", "strength", "images", "prevalence", "majority", "lost"),
    *("auroc", "auroc_low", "auroc_high", "accuracy", "accuracy_low", "accuracy_high"),
    *("tpr", "tpr_low", "tpr_high", "fpr", "fpr_low", "fpr_high"),
    *("auroc_change", "auroc_change_low", "auroc_change_high"),
    *("accuracy_change", "accuracy_change_low", "accuracy_change_high", "tpr_change", "fpr_change"),
)
BIASED = 0.05  # difference between shares of flips from which on recompression of one class alone is told as bias

_RESAMPLED = ("auroc", "accuracy")
_MEANT = ("auroc", "accuracy", "tpr", "fpr")


def robustness_table(
    labels: NDArray,
    clean: NDArray,
    perturbed: Mapping[tuple[str, float], NDArray],
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Clean images in the first row, then a row a perturbation, in their order.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake).
        clean: shape (N,), P(fake) in [0, 1], NaN where the image could not be judged.
        perturbed: {(kind, strength): P(fake) of the same images, perturbed}, as `clean`.
        threshold: an image is called fake when its probability is strictly greater; the clean one, for all rows.
        resamples, seed: of the stratified, paired bootstrap, as in `metrics.bootstrap_intervals`.

    Returns:
        `COLUMNS`: kind ("clean" in the first row) and strength (NaN there); images judged, with their prevalence of
        fakes and the accuracy of always naming the larger class; lost, the images judged clean but not perturbed.
        auroc and accuracy with 95 % bootstrap intervals, tpr and fpr with Wilson's (1927). NAME_change is the row's
        figure minus that of the same images clean, with the interval of the paired difference. All figures in
        [0, 1], changes in [-1, 1], NaN where undefined.

    Raises:
        ValueError: no image was judged, clean or under some perturbation; shapes differ; labels, probabilities or
            threshold are not as in `metrics.scores`.
    """
    fake, p_clean = checked_labels(labels), _with_gaps("clean", clean, len(labels))
    rows = [_row("clean", np.nan, fake, p_clean, p_clean, threshold, resamples, seed)]
    for (kind, strength), probabilities in perturbed.items():
        p = _with_gaps(f"{kind} {strength:g}", probabilities, len(fake))
        rows.append(_row(kind, strength, fake, p_clean, p, threshold, resamples, seed))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"kind": "str"})


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Of `robustness_table`: clean figures, their means over the grid (every perturbation counts the same), the
    lowest AUROC and where it is. NaN and None where undefined, or where there is no perturbation."""
    clean, grid = table.iloc[0], table.iloc[1:]
    worst = None
    if grid["auroc"].notna().any():
        row = grid.sort_values("auroc", kind="stable").iloc[0]
        worst = {"kind": str(row["kind"]), "strength": float(row["strength"]), "auroc": float(row["auroc"])}
    return {
        "perturbations": len(grid),
        "clean": {name: float(clean[name]) for name in _MEANT},
        "mean": {name: float(grid[name].mean()) for name in _MEANT},
        "mean_change": {name: float(grid[f"{name}_change"].mean()) for name in _MEANT},
        "lowest_auroc": worst,
    }


def one_sided_flips(labels: NDArray, clean: NDArray, perturbed: NDArray, threshold: float) -> dict[str, Any]:
    """Whether the same perturbation of one class alone changes other answers than that of both.

    Each share is of the images that were perturbed: one that bears it as badly for reals as for fakes is fragile, not
    biased, and has three equal shares.

    Args:
        labels, clean, perturbed, threshold: as in `robustness_table`; images judged both times count.

    Returns:
        For "fakes only", "reals only" and "both": images (perturbed), flips, to_fake and to_real (which way), share
        (flips / images; NaN of no image). Besides these difference, the largest between one side and both, and
        biased, whether it is more than `BIASED`.

    Raises:
        ValueError: as `robustness_table`.
    """
    fake = checked_labels(labels)
    before, after = _with_gaps("clean", clean, len(fake)), _with_gaps("perturbed", perturbed, len(fake))
    there = ~(np.isnan(before) | np.isnan(after))
    to_fake = there & ~(before > threshold) & (after > threshold)
    to_real = there & (before > threshold) & ~(after > threshold)
    found: dict[str, Any] = {}
    for name, touched in (("fakes only", fake), ("reals only", ~fake), ("both", np.ones_like(fake))):
        images, up, down = (int((flags & touched).sum()) for flags in (there, to_fake, to_real))
        share = (up + down) / images if images else float("nan")
        found[name] = {"images": images, "flips": up + down, "to_fake": up, "to_real": down, "share": share}
    apart = [abs(found[side]["share"] - found["both"]["share"]) for side in ("fakes only", "reals only")]
    difference = float(np.fmax(*apart))
    return found | {"difference": difference, "biased": difference > BIASED}


def _row(
    kind: str,
    strength: float,
    fake: NDArray[np.bool_],
    clean: NDArray[np.float64],
    p: NDArray[np.float64],
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of the images judged both times, so that a change is never one of the images."""
    there = ~(np.isnan(clean) | np.isnan(p))
    if not there.any():
        raise ValueError(f"{kind} {strength:g}: expected at least one image judged clean and perturbed, found none")
    y = fake[there].astype(np.int64)
    was, now = scores(y, clean[there], threshold), scores(y, p[there], threshold)
    before, after = resampled_scores(
        y, [(clean[there], threshold), (p[there], threshold)], _RESAMPLED, resamples, seed
    )
    row: dict[str, Any] = {"kind": kind, "strength": strength, "images": int(there.sum())}
    row |= {"prevalence": now["prevalence"], "majority": now["majority"]}
    row["lost"] = int((~np.isnan(clean)).sum()) - row["images"]
    for name in _RESAMPLED:
        row |= _interval(name, now[name], after[name])
        row |= _interval(f"{name}_change", now[name] - was[name], after[name] - before[name])
    for name, hit, miss in (("tpr", "tp", "fn"), ("fpr", "fp", "tn")):
        of_class = int(now[hit] + now[miss])
        row |= _rate(name, int(now[hit]), of_class)
        row[f"{name}_change"] = (now[hit] - was[hit]) / of_class if of_class else np.nan
    return row


def _interval(name: str, value: float, sample: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(sample, (0.025, 0.975))
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _rate(name: str, part: int, whole: int) -> dict[str, float]:
    if not whole:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    found = binomtest(part, whole).proportion_ci(method="wilson")
    return {name: part / whole, f"{name}_low": float(found.low), f"{name}_high": float(found.high)}


def _with_gaps(name: str, probabilities: NDArray, images: int) -> NDArray[np.float64]:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (images,):
        raise ValueError(f"{name}: expected one probability for each of {images} labels, found the shape {p.shape}")
    checked_probabilities(p[~np.isnan(p)])
    return p
