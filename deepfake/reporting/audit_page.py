"""The page of the data audit: one HTML file that needs nothing else, for people who decide whether to train.

Here is worked out what goes onto the page: axes and marks of the charts, thumbnails, what is left out so that the
file stays small. How it looks is `templates/audit.html`.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deepfake.analysis.shortcuts import LOUD, WARNING
from deepfake.files import write_text
from deepfake.reporting.pages import flat, render, thumbnail

# The page shows so many and counts the rest, for audit.json and the catalogue have more.
FILES = 200
SOURCES = 200
PANELS = 12  # sources of each class, the largest
GROUPS = 24  # of duplicates
MEMBERS = 4  # images of one group

# Small multiples: the plot, in units of an SVG of 200 x 132. The template draws the frame at these numbers.
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 190, 10, 110
_BINS = 26
_CELLS = 18  # bubbles a side
_BUBBLE = 12.0  # radius if all images of a source have one size

Item = TypeVar("Item")

_KINDS = ("classes", "parts", "within")  # of duplicates, worst first


def write_page(file: Path, audit: dict[str, Any], table: pd.DataFrame, root: Path) -> None:
    """Write the page, whole or not at all; it holds its pictures, and asks for nothing over the network.

    Args:
        file: where, such as audit.html.
        audit: what audit.json holds: `deepfake.analysis.audit.report` with root, settings, seconds and command.
        table: the catalogue (`deepfake.data.catalog.COLUMNS`) that the audit is of.
        root: what its paths are below; thumbnails of duplicates are read from there, and a file that has gone or
            cannot be read gets a placeholder.
    """
    readable = table[table["status"] != "unreadable"]
    content = render(
        "audit.html",
        audit=audit,
        sources=audit["sources"][:SOURCES],
        shortcuts=_shortcuts(audit["shortcuts"]),
        panels=_panels(audit["sources"], readable),
        duplicates=_duplicates(audit["duplicates"], root),
        files=audit["files"][:FILES],
        settings=list(flat(audit["settings"])),
    )
    write_text(file, content)


# ------------------------------------------------------------------------------------------------ shortcuts


def _shortcuts(shortcuts: dict[str, Any]) -> dict[str, Any]:
    """Bars of balanced accuracy from chance, points of AUROC; all places in percent of the axis.

    The axis ends at 1 and begins at .4, or lower where something lies there. A shortcut without figures has no bar.
    """
    rows = list(shortcuts["metadata"])
    if shortcuts["spectrum"]:
        rows.append({**shortcuts["spectrum"], "level": None})  # no fault of the data by itself
    figures = [[*row["interval"], row["auroc"]] for row in rows if row["balanced_accuracy"] is not None]
    least = min([0.4, *(value for values in figures for value in values)])
    low = math.floor(10 * least) / 10

    def place(value: float) -> float:
        return round(100 * (value - low) / (1 - low), 2)

    def span(start: float, end: float) -> tuple[float, float]:
        """Where it starts, and its width."""
        return place(start), round(place(end) - place(start), 2)

    for number, row in enumerate(rows):
        value = row["balanced_accuracy"]
        bar = None if value is None else span(min(value, 0.5), max(value, 0.5))
        rows[number] = {**row, "bar": bar}
        if bar:
            rows[number].update(point=place(value), ring=place(row["auroc"]), whisker=span(*row["interval"]))
    lines = ((0.5, "chance"), (WARNING, "warning"), (LOUD, "loud"), (1, "certain"))
    return {
        "rows": rows,
        "lines": [(place(value), f"{value:g}".lstrip("0"), word) for value, word in lines],
        "spectrum": shortcuts["spectrum"] is not None,
    }


# ------------------------------------------------------------------------------------------- small multiples


@dataclass(frozen=True)
class _Axis:
    """Where values stand between the ends of a plot, on a linear or a logarithmic axis."""

    low: float
    high: float
    logarithmic: bool
    ticks: list[float]

    @classmethod
    def of(cls, values: pd.Series, logarithmic: bool, steps: Sequence[float]) -> "_Axis":
        """From the least to the greatest value, with a margin; ticks at `steps`, or at both ends if less than two."""
        least, greatest = float(values.min()), float(values.max())
        low, high = (math.log(least), math.log(greatest)) if logarithmic else (least, greatest)
        margin = max(0.15 * (high - low), 0.02 if logarithmic else 0.5)
        ticks = [step for step in steps if least <= step <= greatest]
        ticks = ticks[:: math.ceil(len(ticks) / 4)] if len(ticks) > 1 else sorted({least, greatest})
        return cls(low - margin, high + margin, logarithmic, ticks)

    def share(self, values: NDArray) -> NDArray:
        """Float64 in 0..1, of the same shape."""
        scaled = np.log(values) if self.logarithmic else np.asarray(values, dtype=float)
        return (scaled - self.low) / (self.high - self.low)

    def marks(self, start: float, end: float) -> list[tuple[float, str]]:
        """Ticks as (place between `start` and `end`, text)."""
        places = start + (end - start) * self.share(np.array(self.ticks))
        return [(round(float(place), 1), f"{tick:.4g}") for place, tick in zip(places, self.ticks, strict=True)]


def _panels(sources: Sequence[dict[str, Any]], readable: pd.DataFrame) -> dict[str, Any]:
    """One small panel a source and a question, on the same axes, before all images together in the background.

    Returns:
        sources: those shown; left_out: how many are not; charts: title, axes and marks of each question; formats: the
        share of each file format. None of the last two without a readable image.
    """
    largest = sorted(range(len(sources)), key=lambda i: -sources[i]["images"])
    chosen = {i for label in (0, 1) for i in [i for i in largest if sources[i]["label"] == label][:PANELS]}
    shown = [sources[i] for i in sorted(chosen, key=lambda i: (sources[i]["label"], i))]
    panels: dict[str, Any] = {"sources": shown, "left_out": len(sources) - len(shown), "charts": [], "formats": []}
    if readable.empty or not shown:
        return panels
    density = readable["bytes"] / (readable["width"] * readable["height"])
    readable = readable.assign(density=density)
    parts = [readable[readable["source"] == source["source"]] for source in shown]
    panels["charts"].append(_size_chart(readable, parts))
    panels["charts"].append(
        _histogram(
            "Bytes per pixel",
            "Size of the file over its pixels, on a logarithmic axis: how strongly it is compressed.",
            "density",
            _Axis.of(density, True, [m * 10.0**e for e in range(-5, 3) for m in (1, 2, 5)]),
            readable,
            parts,
        )
    )
    jpeg = readable["jpeg_quality"] > 0
    if jpeg.any():
        quality = readable.loc[jpeg, "jpeg_quality"]
        steps = MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]).tick_values(quality.min(), quality.max())
        panels["charts"].append(
            _histogram(
                "JPEG quality",
                "Estimated from the quantisation table; shares are of the source's JPEG files.",
                "jpeg_quality",
                _Axis.of(quality, False, list(steps)),
                readable[jpeg],
                [part[part["jpeg_quality"] > 0] for part in parts],
            )
        )
    formats = readable["format"].value_counts().index
    panels["formats"] = [
        [(str(name), _percent((part["format"] == name).mean() if len(part) else 0.0)) for name in formats]
        for part in parts
    ]
    return panels


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def _size_chart(readable: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> dict[str, Any]:
    # One axis for both sides, so that square images lie on the diagonal.
    sides = pd.concat([readable["width"], readable["height"]])
    axis = _Axis.of(sides, True, [2.0**e for e in range(20)])
    return {
        "kind": "bubbles",
        "title": "Width and height",
        "note": "Pixels, on logarithmic axes; the larger a dot, the more of the source's images have that size. "
        "Square images lie on the line.",
        "across": axis.marks(_LEFT, _RIGHT),
        "up": axis.marks(_BOTTOM, _TOP),
        "all": _bubbles(readable, axis),
        "panels": [_bubbles(part, axis) for part in parts],
        "empty": "no readable image",
    }


def _bubbles(images: pd.DataFrame, axis: _Axis) -> list[tuple[float, float, float]]:
    """Images of about the same size as one (x, y, radius), its area their share."""
    x, y = axis.share(images["width"].to_numpy()), axis.share(images["height"].to_numpy())
    _, cells = np.unique(np.floor(_CELLS * x) * _CELLS + np.floor(_CELLS * y), return_inverse=True)
    count = np.bincount(cells)
    across = _LEFT + (_RIGHT - _LEFT) * np.bincount(cells, x) / count
    up = _BOTTOM + (_TOP - _BOTTOM) * np.bincount(cells, y) / count
    radius = np.maximum(_BUBBLE * np.sqrt(count / len(images)), 1.2)
    return [tuple(bubble) for bubble in np.column_stack([across, up, radius]).round(1).tolist()]


def _histogram(
    title: str, note: str, column: str, axis: _Axis, readable: pd.DataFrame, parts: Sequence[pd.DataFrame]
) -> dict[str, Any]:
    """Shares in equal bins of the axis; the fullest bin of any panel reaches the top."""

    def shares(images: pd.DataFrame) -> NDArray:
        counts, _ = np.histogram(axis.share(images[column].to_numpy()), _BINS, (0, 1))
        return counts / max(len(images), 1)

    together, each = shares(readable), [shares(part) for part in parts]
    top = max(float(bins.max()) for bins in (together, *each))
    return {
        "kind": "bars",
        "title": title,
        "note": note,
        "across": axis.marks(_LEFT, _RIGHT),
        "up": [(_BOTTOM, "0"), (_TOP, f"{100 * top:.0f} %")],
        "all": _bars(together, top),
        "panels": [_bars(bins, top) for bins in each],
        "empty": "no JPEG" if column == "jpeg_quality" else "no readable image",
    }


def _bars(shares: NDArray, top: float) -> str:
    """The outline of the bars as an SVG path; empty where there is nothing."""
    step = (_RIGHT - _LEFT) / _BINS
    heights = (_BOTTOM - _TOP) * shares / top if top else shares
    return "".join(
        f"M{_LEFT + step * i:.1f} {_BOTTOM}v{-height:.1f}h{step:.1f}v{height:.1f}z"
        for i, height in enumerate(heights)
        if height > 0
    )


# ----------------------------------------------------------------------------------------------- duplicates


def _duplicates(duplicates: dict[str, Any], root: Path) -> dict[str, list[dict[str, Any]]]:
    """The groups to show under "exact" and "near": across classes first, then across parts, both lists in turns."""
    found = [{**group, "list": name} for name in ("exact", "near") for group in duplicates[name]]
    found = _in_turns(found, lambda group: (group["list"], group["kind"]))
    found.sort(key=lambda group: _KINDS.index(group["kind"]))
    shown: dict[str, list[dict[str, Any]]] = {"exact": [], "near": []}
    for group in found[:GROUPS]:
        members = zip(group["paths"], group["labels"], group["splits"], strict=True)
        # In turns, so that whatever the group crosses is among the few that are seen.
        chosen = _in_turns(members, lambda member: member[1:])[:MEMBERS]
        images = [
            {"path": path, "label": label, "split": split, "thumbnail": thumbnail(root / path)}
            for path, label, split in chosen
        ]
        shown[group["list"]].append({**group, "images": images, "left_out": len(group["paths"]) - len(images)})
    return shown


def _in_turns(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[Item]:
    """The first of every key, then the second of every key, and so on; otherwise in their order."""
    met: Counter[Hashable] = Counter()
    turns = []
    for item in items:
        turns.append((met[key(item)], item))
        met[key(item)] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]
