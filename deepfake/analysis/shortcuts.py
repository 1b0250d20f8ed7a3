"""What tells the classes apart without looking at a face: file metadata, and the power spectrum alone.

Where the real images are JPEG files of 256 pixels and the fakes PNG files of 1024, a network can be right without
having seen one trace of a generator. So the shallowest judges there are, a small decision tree on the metadata and
a logistic regression on the spectrum, learn from the train part and are judged on the test part like any network.

The two say different things. Metadata are never what a detector is for: what they tell is a fault of the data. A
spectrum holds generators' traces, which a detector is for, as well as each source's processing, and cannot tell the
two apart: what it tells is how far a shallow look at the pixels gets, the mark for a network to beat.

A flag means that balanced accuracy or AUROC on the test part is above .60 ("warning") or .80 ("loud"), and that it
is hardly chance: the 95 % interval of the balanced accuracy lies above .5, and labels dealt at random would fit the
answers as well in fewer than 1 of 200 deals (Fisher's exact test). The interval alone would not do, since nine are
looked at and it is too narrow on few images: among 300 tables with shuffled labels and 10 to 40 test images, up to
20 % had a flag by it, and with two test images, where it has no width, 67 %. With both, at most 3 % had at any size.
Neither knows that images of one video or one folder are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from deepfake.analysis.spectra import decibel
from deepfake.evaluation.metrics import bootstrap_intervals, scores

WARNING, LOUD = 0.60, 0.80  # balanced accuracy or AUROC above it
CHANCE = 0.005
TELLING = 10  # test images of a class from which a shortcut that is there will be seen

# Each of these is tried alone. A size is a pair, because many widths and heights are usual where their pairs are not.
FEATURES = {
    "width": ("width",),
    "height": ("height",),
    "size": ("width", "height"),
    "aspect": ("aspect",),
    "format": ("format",),
    "mode": ("mode",),
    "bytes per pixel": ("bytes per pixel",),
    "jpeg_luma": ("jpeg_luma",),
    "all metadata": ("width", "height", "aspect", "format", "mode", "bytes per pixel", "jpeg_luma"),
}
_CATEGORIES = ("format", "mode")
_WHOLE_NUMBERS = ("width", "height")

_DEPTH = 3  # at most 8 leaves: a rule that a person can read, not a memory of the files
# A leaf holds at least this share of as many training images as the smaller class has, and 5: what a smaller leaf
# says can move a balanced accuracy by .025 at most, and a rule made of many such leaves nobody reads.
_LEAF, _FEWEST = 0.05, 5


@dataclass(frozen=True)
class Shortcut:
    """How well one thing alone tells real from fake: learned on the train part, judged on the test part.

    All figures are NaN, and `rule` says why, where one of the two parts lacks a class.
    """

    name: str
    balanced_accuracy: float  # of calling an image fake where P(fake) > .5, classes weighted alike in the fit
    interval: tuple[float, float]  # 95 %, stratified bootstrap over test images
    auroc: float
    auroc_interval: tuple[float, float]
    level: Literal["warning", "loud"] | None
    train_images: int
    test_images: int
    rule: str  # what was learned, in one line

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by the names above: intervals are lists, and NaN is None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def metadata_shortcuts(table: pd.DataFrame, seed: int = 0) -> list[Shortcut]:
    """What file metadata tell: each of `FEATURES` alone, and all together, by a decision tree of depth 3.

    Args:
        table: a catalogue: label (0, 1), split, width, height, bytes (integers), mode, format (text), jpeg_luma
            (mean of the luma quantisation table, -1 without one). Rows outside "train" and "test" are ignored. Not
            even the order of the rows matters, and paths are never read.
        seed: of the bootstrap, and of the tree's choice among features that part the train images equally well.

    Returns:
        One for each of `FEATURES`, highest balanced accuracy first, undefined ones last. A category is compared with
        those of the train part: one that is new in the test part is none of them.
    """
    rows = table[table["split"].isin(("train", "test"))]
    facts = pd.DataFrame(
        {
            "label": rows["label"],
            "split": rows["split"],
            "width": rows["width"],
            "height": rows["height"],
            "aspect": rows["width"] / rows["height"],
            "format": rows["format"],
            "mode": rows["mode"],
            "bytes per pixel": rows["bytes"] / (rows["width"] * rows["height"]),
            "jpeg_luma": rows["jpeg_luma"],
        }
    )
    # Rows that are equal in all of these are one as good as the other, so this order is the images' own.
    facts = facts.sort_values(list(facts.columns), ignore_index=True)
    found = [_by_tree(name, facts, columns, seed) for name, columns in FEATURES.items()]
    return sorted(found, key=lambda shortcut: -np.nan_to_num(shortcut.balanced_accuracy, nan=-1.0))


def spectrum_shortcut(profiles: ArrayLike, labels: ArrayLike, splits: ArrayLike, seed: int = 0) -> Shortcut:
    """What the radial power spectrum tells: a logistic regression on its standardised decibels.

    A high figure says that a shallow look at the spectrum separates the classes, by traces of the generators or by
    what the sources' cameras, resizing and compression did. It is no fault of the data by itself.

    Args:
        profiles: float (N, K), power at 0 ... K-1 cycles an image, as `spectra.radial_profile` returns; of the
            images as the network gets them.
        labels: (N,), 0 or 1.
        splits: (N,), text; rows outside "train" and "test" are ignored. The order of the rows does not matter.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths that differ, or power that is negative or not finite.
    """
    power, fake, parts = np.asarray(profiles, dtype=np.float64), np.asarray(labels), np.asarray(splits)
    if power.ndim != 2 or not len(power) == len(fake) == len(parts):
        raise ValueError(
            f"expected profiles (N, K) and N labels and splits, found {power.shape}, {fake.shape} and {parts.shape}"
        )
    if not (np.isfinite(power) & (power >= 0)).all():
        raise ValueError("profiles: expected finite power of at least 0, found other values")
    order = np.lexsort((*power.T, fake))
    decibels, fake, parts = decibel(power[order]), fake[order], parts[order]
    # The strength of the penalty is scikit-learn's own, C = 1, and never chosen by looking at the test part.
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return _judged("spectrum", model, decibels, fake, parts, _widest_gap, seed)


def _by_tree(name: str, facts: pd.DataFrame, columns: tuple[str, ...], seed: int) -> Shortcut:
    train = facts[facts["split"] == "train"]
    encoded: dict[str, pd.Series] = {}
    for column in columns:
        if column in _CATEGORIES:
            for value in sorted(train[column].unique()):
                encoded[f"{column} is {value}"] = facts[column] == value
        elif not any(np.array_equal(facts[column], earlier) for earlier in encoded.values()):
            # Where all images are square, a rule that mixes width and height would say nothing more.
            encoded[column] = facts[column]
    features = pd.DataFrame(encoded, index=facts.index).astype(float).to_numpy()
    smaller = int(np.bincount(train["label"], minlength=2).min())
    tree = DecisionTreeClassifier(
        max_depth=_DEPTH,
        min_samples_leaf=max(_FEWEST, int(_LEAF * smaller)),
        class_weight="balanced",
        random_state=seed,
    )

    def rule(learned: NDArray[np.float64], fake: NDArray[np.int64]) -> str:
        return _leaves(tree, list(encoded), learned, fake)

    return _judged(name, tree, features, facts["label"].to_numpy(), facts["split"].to_numpy(), rule, seed)


def _judged(
    name: str,
    model: Any,
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    splits: NDArray,
    rule: Callable[[NDArray[np.float64], NDArray[np.int64]], str],
    seed: int,
) -> Shortcut:
    """Fit a scikit-learn classifier on the train rows and judge it on the test rows; `rule` gets the train rows."""
    train, test = splits == "train", splits == "test"
    for part, rows in (("train", train), ("test", test)):
        for label, kind in ((0, "real"), (1, "fake")):
            if not (labels[rows] == label).any():
                none = (math.nan, math.nan)
                why = f"undefined: no {kind} image in the {part} part"
                return Shortcut(name, math.nan, none, math.nan, none, None, int(train.sum()), int(test.sum()), why)
    model.fit(features[train], labels[train])
    probabilities = model.predict_proba(features[test])[:, 1]
    found = scores(labels[test], probabilities)
    measured = ("balanced_accuracy", "auroc")
    intervals = bootstrap_intervals(labels[test], probabilities, metrics=measured, seed=seed)
    return Shortcut(
        name=name,
        balanced_accuracy=found["balanced_accuracy"],
        interval=intervals["balanced_accuracy"],
        auroc=found["auroc"],
        auroc_interval=intervals["auroc"],
        level=_level(found, intervals["balanced_accuracy"][0]),
        train_images=int(train.sum()),
        test_images=int(test.sum()),
        rule=rule(features[train], labels[train]),
    )


def _level(found: Mapping[str, float], low: float) -> Literal["warning", "loud"] | None:
    """The flag for `scores` of the test part, where `low` is where the interval of the balanced accuracy begins."""
    strength = max(found["balanced_accuracy"], found["auroc"])
    if low <= 0.5 or strength <= WARNING or _chance(found) >= CHANCE:
        return None
    return "loud" if strength > LOUD else "warning"


def _chance(found: Mapping[str, float]) -> float:
    """Fisher's exact test, one-sided: the probability that as many fakes or more are called fake, when as many images
    are called fake as were and the labels are dealt at random. Sums the hypergeometric distribution."""
    tn, fp, fn, tp = (int(found[name]) for name in ("tn", "fp", "fn", "tp"))
    total = _log_ways(tn + fp + fn + tp, tp + fp)
    return sum(
        math.exp(_log_ways(tp + fn, hits) + _log_ways(tn + fp, tp + fp - hits) - total)
        for hits in range(tp, min(tp + fn, tp + fp) + 1)
    )


def _log_ways(n: int, k: int) -> float:
    """log of n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# ------------------------------------------------------------------------------------------------------ rules


def _leaves(
    tree: DecisionTreeClassifier, names: list[str], train: NDArray[np.float64], fake: NDArray[np.int64]
) -> str:
    """A fitted tree in one line, such as "width <= 640 -> real (90 real, 2 fake); width > 640 -> fake (0 real, 88
    fake)", with its train images. Leaves that lie together and give the same answer are one."""
    nodes = tree.tree_
    inside = tree.decision_path(train)  # (images, nodes), sparse
    fakes, images = inside.T @ fake, inside.T @ np.ones_like(fake)

    def leaves(node: int, bounds: Mapping[str, tuple[float, float]]) -> list[tuple[str, str]]:
        """(answer, text) of every leaf below a node that images within `bounds` reach."""
        weights = nodes.value[node][0]
        answer = "fake" if weights[1] / weights.sum() > 0.5 else "real"
        if nodes.children_left[node] >= 0:
            column, threshold = names[nodes.feature[node]], nodes.threshold[node]
            low, high = bounds.get(column, (-math.inf, math.inf))
            below = leaves(nodes.children_left[node], {**bounds, column: (low, threshold)})
            above = leaves(nodes.children_right[node], {**bounds, column: (threshold, high)})
            answers = {given for given, _ in below + above}
            if len(answers) == 2:
                return below + above
            answer = answers.pop()
        where = " and ".join(_condition(column, *pair) for column, pair in bounds.items()) or "every image"
        return [(answer, f"{where} -> {answer} ({images[node] - fakes[node]} real, {fakes[node]} fake)")]

    return "; ".join(text for _, text in leaves(0, {}))


def _condition(column: str, low: float, high: float) -> str:
    if column.startswith(tuple(f"{name} is " for name in _CATEGORIES)):
        return column.replace(" is ", " is not ", 1) if low == -math.inf else column
    if low == -math.inf:
        return f"{column} <= {_number(column, high)}"
    if high == math.inf:
        return f"{column} > {_number(column, low)}"
    return f"{_number(column, low)} < {column} <= {_number(column, high)}"


def _number(column: str, value: float) -> str:
    # Between 255 and 256 the threshold is 255.5, which rounds to what is on its other side.
    return str(math.floor(value)) if column in _WHOLE_NUMBERS else f"{value:.3g}"


def _widest_gap(train: NDArray[np.float64], fake: NDArray[np.int64]) -> str:
    """Where the classes of the train part lie furthest apart, in their own standard deviations."""
    gap = train[fake == 1].mean(axis=0) - train[fake == 0].mean(axis=0)
    spread = np.sqrt((train[fake == 1].var(axis=0) + train[fake == 0].var(axis=0)) / 2)
    cycles = int(np.argmax(np.abs(gap) / (spread + 1e-9)))  # entries that never vary have no gap either
    return f"widest gap at {cycles} cycles an image: fakes {gap[cycles]:+.1f} dB against reals, on average"


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
