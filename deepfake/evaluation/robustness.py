"""How well do answers bear what happens to images on their way? Tables from answers; nothing is judged here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepfake.evaluation.metrics import (
    checked_labels,
    checked_probabilities,
    resampled_scores,
    scores,
    wilson_interval,
)

COLUMNS = (
    *("kind", "strength", "images", "prevalence", "majority", "lost"),
    *(
        f"{name}{what}{end}"
        for what in ("", "_change")
        for name in ("auroc", "accuracy", "tpr", "fpr")
        for end in ("", "_low", "_high")
    ),
)
BIASED = 0.05  # difference between shares of flips from which on recompression of one class alone is told as bias

_RESAMPLED = ("auroc", "accuracy")
_MEANT = ("auroc", "accuracy", "tpr", "fpr")
_ENDS = (0.025, 0.975)


def robustness_table(
    labels: NDArray,
    clean: NDArray,
    perturbed: Mapping[tuple[str, float], NDArray],
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
    margins: Mapping[tuple[str, float] | None, NDArray] | None = None,
) -> pd.DataFrame:
    """Clean images in the first row, then a row a perturbation, in their order.

    Args:
        labels: shape (N,), 0 (real) or 1 (fake).
        clean: shape (N,), P(fake) in [0, 1], NaN where the image could not be judged.
        perturbed: {(kind, strength): P(fake) of the same images, perturbed}, as `clean`.
        threshold: an image is called fake when its probability is strictly greater; the clean one, for all rows.
        resamples, seed: of the stratified, paired bootstrap, as in `metrics.bootstrap_intervals`.
        margins: {None: shape (N,), of the clean images, (kind, strength): of the perturbed}; they order images of
            equal probability, as in `metrics.scores`.

    Returns:
        `COLUMNS`: kind ("clean" in the first row) and strength (NaN there); images judged, with their prevalence of
        fakes and the accuracy of always naming the larger class; lost, the images judged clean but not perturbed.
        auroc and accuracy with 95 % bootstrap intervals, tpr and fpr with Wilson's (1927). NAME_change is the row's
        figure minus that of the same images clean, with the bootstrap interval of the paired difference. All figures
        in [0, 1], changes in [-1, 1], NaN where undefined.

    Raises:
        ValueError: no image was judged, clean or under some perturbation; shapes differ; labels, probabilities or
            threshold are not as in `metrics.scores`.
    """
    fake, p_clean = checked_labels(labels), _with_gaps("clean", clean, len(labels))
    m = margins or {}
    clean_answers = (p_clean, m.get(None))
    rows = [_row("clean", np.nan, fake, clean_answers, clean_answers, threshold, resamples, seed)]
    for (kind, strength), probabilities in perturbed.items():
        answers = (_with_gaps(f"{kind} {strength:g}", probabilities, len(fake)), m.get((kind, strength)))
        rows.append(_row(kind, strength, fake, clean_answers, answers, threshold, resamples, seed))
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


def one_sided_flips(
    labels: NDArray, clean: NDArray, perturbed: NDArray, threshold: float, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Whether the same perturbation of one class alone changes other answers than that of both.

    Each share is of the images that were perturbed: one that bears it as badly for reals as for fakes is fragile, not
    biased, and has three equal shares.

    Args:
        labels, clean, perturbed, threshold: as in `robustness_table`; images judged both times count.
        resamples, seed: of the stratified bootstrap over the images.

    Returns:
        For "fakes only", "reals only" and "both": images (perturbed), flips, to_fake and to_real (which way), share
        (flips / images; NaN of no image) with Wilson's 95 % interval share_low and share_high (1927). Besides these
        difference, the largest between one side and both, NaN without images of both classes; difference_low and
        difference_high, its 95 % bootstrap interval; biased, whether the difference is more than `BIASED`; certain,
        whether the images are enough to tell: the interval lies on one side of `BIASED`.

        The difference has no sign and its resamples scatter upwards of 0, so that an interval that begins above 0
        shows no bias; what it is held against is `BIASED`. Where no image of a class flips, no resample of it does:
        an interval below `BIASED` is certain only with so many images of each class that Wilson's of no flip lies
        below it too (73).

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
        found[name] = {"images": images, "flips": up + down, "to_fake": up, "to_real": down}
        found[name] |= _rate("share", up + down, images)
    fakes, reals = found["fakes only"], found["reals only"]
    if not (fakes["images"] and reals["images"]):
        undefined = dict.fromkeys(("difference", "difference_low", "difference_high"), float("nan"))
        return found | undefined | {"biased": False, "certain": False}

    # Of images drawn with replacement, so many flip as of as many coins that fall with the class's share.
    generator = np.random.default_rng(seed)
    drawn_fakes, drawn_reals = (
        generator.binomial(side["images"], side["share"], size=resamples) for side in (fakes, reals)
    )
    difference = float(_apart(fakes["flips"], reals["flips"], fakes["images"], reals["images"]))
    interval = _interval("difference", difference, _apart(drawn_fakes, drawn_reals, fakes["images"], reals["images"]))
    low, high = interval["difference_low"], interval["difference_high"]
    enough = _rate("share", 0, min(fakes["images"], reals["images"]))["share_high"] < BIASED
    certain = low > BIASED or (high < BIASED and enough)
    return found | interval | {"biased": difference > BIASED, "certain": certain}


def _apart(fake_flips: NDArray | int, real_flips: NDArray | int, fakes: int, reals: int) -> NDArray[np.float64]:
    """The largest difference of shares of flips between one side and both."""
    both = (fake_flips + real_flips) / (fakes + reals)
    return np.maximum(np.abs(fake_flips / fakes - both), np.abs(real_flips / reals - both))


def _row(
    kind: str,
    strength: float,
    fake: NDArray[np.bool_],
    clean: tuple[NDArray[np.float64], NDArray | None],
    perturbed: tuple[NDArray[np.float64], NDArray | None],
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of the images judged both times, so that a change is never one of the images."""
    there = ~(np.isnan(clean[0]) | np.isnan(perturbed[0]))
    if not there.any():
        raise ValueError(f"{kind} {strength:g}: expected at least one image judged clean and perturbed, found none")
    y = fake[there].astype(np.int64)
    answers = [(p[there], threshold, None if m is None else np.asarray(m)[there]) for p, m in (clean, perturbed)]
    was, now = (scores(y, *answer) for answer in answers)
    before, after = resampled_scores(y, answers, _RESAMPLED, resamples, seed)
    row: dict[str, Any] = {"kind": kind, "strength": strength, "images": int(there.sum())}
    row |= {"prevalence": now["prevalence"], "majority": now["majority"]}
    row["lost"] = int((~np.isnan(clean[0])).sum()) - row["images"]
    for name in _RESAMPLED:
        row |= _interval(name, now[name], after[name])
        row |= _interval(f"{name}_change", now[name] - was[name], after[name] - before[name])
    said_before, said_now = (p > threshold for p, *_ in answers)
    generator = np.random.default_rng(seed)
    for name, of in (("tpr", y == 1), ("fpr", y == 0)):
        row |= _rate(name, int(said_now[of].sum()), int(of.sum()))
        row |= _rate_change(f"{name}_change", said_before[of], said_now[of], resamples, generator)
    return row


def _rate_change(
    name: str,
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, float]:
    """Of images of one class, the share called fake after minus before, with the paired bootstrap's interval.

    An image changes to fake, to real or not at all. How many of each a resample holds is all that matters.
    """
    images, up, down = len(before), int((after & ~before).sum()), int((before & ~after).sum())
    if not images:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    drawn = generator.multinomial(images, np.array([up, down, images - up - down]) / images, size=resamples)
    return _interval(name, (up - down) / images, (drawn[:, 0] - drawn[:, 1]) / images)


def _interval(name: str, value: float, sample: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(sample, _ENDS)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _rate(name: str, part: int, whole: int) -> dict[str, float]:
    low, high = wilson_interval(part, whole)
    return {name: part / whole if whole else float("nan"), f"{name}_low": low, f"{name}_high": high}


def _with_gaps(name: str, probabilities: NDArray, images: int) -> NDArray[np.float64]:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (images,):
        raise ValueError(f"{name}: expected one probability for each of {images} labels, found the shape {p.shape}")
    checked_probabilities(p[~np.isnan(p)])
    return p
