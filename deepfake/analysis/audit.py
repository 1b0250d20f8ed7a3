"""What a person should know about a data set before trusting any result on it: findings from the catalogue.

Plain data in, plain data out: `report` returns what audit.json holds, and every sentence in it stands alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deepfake.analysis.shortcuts import TELLING, Shortcut, metadata_shortcuts
from deepfake.data.groups import leaks, near_pairs
from deepfake.data.split import PARTS, held_out_leaks

LEVELS = ("note", "warning", "loud")
VERDICTS = {"note": "clean", "warning": "doubtful", "loud": "loud"}

# Findings show so many examples; the counts beside them are of all.
_EXAMPLES = 200
_KINDS = ["classes", "parts", "within"]  # across which duplicates lie, the worst first
_FEW = 30  # images of a class in the test part, below which an interval spans tens of points
# Width, height, their pair and their ratio are one fact: the strongest of them speaks.
_FAMILY = {"width": "size", "height": "size", "aspect": "size"}
_WORDS = {
    "width": "image size alone tells",
    "height": "image size alone tells",
    "size": "image size alone tells",
    "aspect": "the ratio of width to height alone tells",
    "format": "the file format alone tells",
    "mode": "the colour mode alone tells",
    "bytes per pixel": "the number of bytes a pixel alone tells",
    "jpeg_luma": "JPEG compression alone tells",
    "all metadata": "sizes, formats and compression together tell",
}
_MANY_SOURCES, _FEW_IMAGES = 10, 100  # of a class, and of the median source, that look like videos or people
_LOPSIDED = 0.9  # share of the larger class from which accuracy says little


def report(
    table: pd.DataFrame,
    equalised: int | None = None,
    spectrum: Shortcut | None = None,
    held_out: Sequence[str] = (),
    said: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that the table tells, most severe first.

    Args:
        table: a catalogue (`deepfake.data.catalog.COLUMNS`) with groups and parts.
        equalised: side in pixels to which all images are made equal before training, None if they are not.
        spectrum: what the power spectrum alone tells, if it was asked.
        held_out: sources that only the test part holds, on purpose.
        said: warnings from when the files were found and split; each is a note.

    Returns:
        images, unreadable, suspicious, verdict (clean, doubtful, loud), sentence, findings, sources, parts, files,
        duplicates, shortcuts: plain values, ready for JSON.
    """
    readable = table[table["status"] != "unreadable"]
    metadata = metadata_shortcuts(readable) if _judgeable(readable) else []
    exact, near = _copies(readable), near_duplicates(readable)
    findings = [
        *(_shortcut_findings(metadata) if equalised is None else _equalised_findings(metadata, equalised)),
        *_spectrum_findings(spectrum),
        *_duplicate_findings(exact, near, readable, held_out),
        *_balance_findings(readable),
        *(_finding("files.found", "note", sentence) for sentence in said),
        *_file_findings(table),
    ]
    findings.sort(key=lambda finding: -LEVELS.index(finding["level"]))  # stable: most severe first
    worst = max((LEVELS.index(finding["level"]) for finding in findings), default=0)
    verdict = VERDICTS[LEVELS[worst]]
    return {
        "images": len(table),
        "unreadable": int((table["status"] == "unreadable").sum()),
        "suspicious": int((table["status"] == "suspicious").sum()),
        "verdict": verdict,
        "sentence": _sentence(verdict, findings),
        "findings": findings,
        "sources": [_source(str(name), rows) for name, rows in readable.groupby("source", sort=True)],
        "parts": [_part(part, readable[readable["split"] == part]) for part in PARTS],
        "files": table.loc[table["status"] != "ok", ["path", "status", "reason"]].to_dict("records"),
        "duplicates": {
            "exact": exact[:_EXAMPLES],
            "near": [_pair(row) for row in near.head(_EXAMPLES).itertuples()],
            "exact_total": len(exact),
            "near_total": len(near),
        },
        "shortcuts": {
            "metadata": [] if equalised else [shortcut.as_dict() for shortcut in metadata],
            "spectrum": spectrum.as_dict() if spectrum else None,
        },
    }


def _sentence(verdict: str, findings: Sequence[dict[str, str]]) -> str:
    if verdict == "clean":
        return "Nothing was found that would put a result on this data in doubt."
    serious = [finding for finding in findings if finding["level"] != "note"]
    more = f" (and {len(serious) - 1} more)" if len(serious) > 1 else ""
    return serious[0]["sentence"][0].upper() + serious[0]["sentence"][1:] + more


def _finding(key: str, level: str, sentence: str) -> dict[str, str]:
    return {"key": key, "level": level, "sentence": sentence}


def _judgeable(readable: pd.DataFrame) -> bool:
    """Both classes in the part that a shortcut is learned on and in the part that it is judged on."""
    return all(readable.loc[readable["split"] == part, "label"].nunique() == 2 for part in ("train", "test"))


# ------------------------------------------------------------------------------------------------- shortcuts


def _strongest(metadata: Sequence[Shortcut]) -> dict[str, Shortcut]:
    """The flagged shortcuts by family, the strongest first."""
    strongest: dict[str, Shortcut] = {}
    for shortcut in metadata:  # strongest first
        if shortcut.level:
            strongest.setdefault(_FAMILY.get(shortcut.name, shortcut.name), shortcut)
    if len(strongest) > 1 and next(iter(strongest)) != "all metadata":
        strongest.pop("all metadata", None)  # adds nothing to what one of them says alone
    return strongest


def _shortcut_findings(metadata: Sequence[Shortcut]) -> list[dict[str, str]]:
    findings = []
    for family, shortcut in _strongest(metadata).items():
        consequence = (
            "any result on this data is in doubt"
            if shortcut.level == "loud"
            else "a part of any result may be this and not the faces"
        )
        findings.append(
            _finding(
                f"shortcut.{family.replace(' ', '_')}",
                str(shortcut.level),
                f"{_WORDS[shortcut.name]} real from fake with {_figure(shortcut)}: {consequence}; "
                f"data.equalise=true removes it from the files, not wholly from the pixels",
            )
        )
    return findings


def _equalised_findings(metadata: Sequence[Shortcut], side: int) -> list[dict[str, str]]:
    """Equal files tell nothing, but pixels keep traces of how they were resized and compressed before."""
    findings = [
        _finding(
            "shortcut.equalised",
            "note",
            f"every image is made {side} x {side} pixels, of one compression, before training: what the files alone "
            f"tell is gone",
        )
    ]
    for family, shortcut in _strongest(metadata).items():
        findings.append(
            _finding(
                f"shortcut.before.{family.replace(' ', '_')}",
                "warning" if shortcut.level == "loud" else "note",
                f"before equalising, {_WORDS[shortcut.name]} real from fake with {_figure(shortcut)}: pixels keep "
                f"traces of resizing and compression that equalising cannot remove",
            )
        )
    return findings


def _figure(shortcut: Shortcut) -> str:
    low, high = shortcut.interval
    return (
        f"{_two(shortcut.balanced_accuracy)} balanced accuracy [{_two(low)}, {_two(high)}], "
        f"AUROC {_two(shortcut.auroc)}, on {shortcut.test_images} test images"
    )


def _two(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else "1.00"


def _spectrum_findings(spectrum: Shortcut | None) -> list[dict[str, str]]:
    if spectrum is None or not spectrum.level:
        return []
    # Generators do leave traces in the spectrum, and finding them is a detector's work: no fault by itself.
    return [
        _finding(
            "shortcut.spectrum",
            "note",
            f"a logistic regression on the power spectrum alone tells real from fake with {_figure(spectrum)}: "
            f"generators' traces or the sources' processing; a network must do better than this to have learned more",
        )
    ]


# ------------------------------------------------------------------------------------------------ duplicates


def _copies(readable: pd.DataFrame) -> list[dict[str, Any]]:
    """Equal files together, those across classes first, then those across parts."""
    found = []
    for _, rows in readable[readable.duplicated("sha256", keep=False)].groupby("sha256"):
        labels, splits = rows["label"].tolist(), rows["split"].tolist()
        kind = "classes" if len(set(labels)) > 1 else "parts" if len(set(splits)) > 1 else "within"
        found.append({"paths": rows["path"].tolist(), "labels": labels, "splits": splits, "kind": kind})
    return sorted(found, key=lambda item: (_KINDS.index(item["kind"]), item["paths"]))


def near_duplicates(readable: pd.DataFrame) -> pd.DataFrame:
    """Pairs of near duplicates that are not equal files, in the same order: there may be a million of them.

    Columns path, label, source and split of each (suffixes _a, _b), distance in bits, kind, and crossing (two parts).
    """
    found = near_pairs(readable["phash"])
    rows = readable[["path", "label", "source", "split", "sha256"]].reset_index(drop=True)
    pairs = pd.concat(
        [rows.iloc[found[side].to_numpy()].reset_index(drop=True).add_suffix(f"_{side}") for side in ("a", "b")],
        axis=1,
    ).assign(distance=found["distance"])
    pairs = pairs[pairs["sha256_a"] != pairs["sha256_b"]].drop(columns=["sha256_a", "sha256_b"])
    pairs["crossing"] = pairs["split_a"] != pairs["split_b"]
    across = pairs["label_a"] != pairs["label_b"]
    pairs["kind"] = np.select([across, pairs["crossing"]], _KINDS[:2], _KINDS[2])
    order = pairs["kind"].map(_KINDS.index)
    ordered = pairs.assign(order=order).sort_values(["order", "distance", "path_a", "path_b"], ignore_index=True)
    return ordered.drop(columns="order")


def _pair(row: Any) -> dict[str, Any]:
    """A row of `near_duplicates` for JSON."""
    return {
        "paths": [row.path_a, row.path_b],
        "labels": [int(row.label_a), int(row.label_b)],
        "splits": [row.split_a, row.split_b],
        "kind": row.kind,
        "distance": int(row.distance),
    }


def _duplicate_findings(
    exact: list[dict[str, Any]], near: pd.DataFrame, readable: pd.DataFrame, held_out: Sequence[str]
) -> list[dict[str, str]]:
    findings = []

    def example(found: list[dict[str, Any]] | pd.DataFrame, differ: str = "paths") -> str:
        """Two of the first find, that differ in their labels or splits where that is the point."""
        if isinstance(found, pd.DataFrame):
            one, other = found.iloc[0][["path_a", "path_b"]]
        else:
            values, paths = found[0][differ], found[0]["paths"]
            one, other = paths[0], next(p for p, value in zip(paths, values, strict=True) if value != values[0])
        return f"such as {one!r} and {other!r}"

    both = [item for item in exact if item["kind"] == "classes"]
    if both:
        findings.append(
            _finding(
                "duplicates.exact.classes",
                "loud",
                f"{_many(len(both), 'image is', 'images are')} labelled both real and fake, "
                f"{example(both, 'labels')}: remove the wrong ones; training refuses them",
            )
        )
    across = [item for item in exact if len(set(item["splits"])) > 1]
    if across:
        findings.append(
            _finding(
                "duplicates.exact.parts",
                "loud",
                f"{_many(len(across), 'image is', 'images are')} in two parts, {example(across, 'splits')}: "
                f"what is tested was trained on; training refuses them",
            )
        )
    within = [item for item in exact if item["kind"] == "within"]
    if within:
        spare = sum(len(item["paths"]) - 1 for item in within)
        findings.append(
            _finding(
                "duplicates.exact.within",
                "note",
                f"{_many(spare, 'file is a copy', 'files are copies')} of another of the same class, "
                f"{example(within)}: kept in one part",
            )
        )
    # A fake that is held out while its photograph is in training was chosen, and flatters no figure.
    held = near["source_a"].isin(held_out) | near["source_b"].isin(held_out)
    crossing = near[near["crossing"] & ~(held & (near["kind"] == "classes"))]
    if len(crossing):
        findings.append(
            _finding(
                "duplicates.near.parts",
                "warning",
                f"{_many(len(crossing), 'pair', 'pairs')} of near duplicates lie in two parts, {example(crossing)}: "
                f"what is tested may have been trained on",
            )
        )
    edits = near[(near["kind"] == "classes") & ~near["crossing"]]
    if len(edits):
        findings.append(
            _finding(
                "duplicates.near.classes",
                "note",
                f"{_many(len(edits), 'pair', 'pairs')} of a real and a fake image are near duplicates, "
                f"{example(edits)}: edits of a photograph, it seems; each pair is kept in one part",
            )
        )
    series = near[near["kind"] == "within"]
    if len(series):
        findings.append(
            _finding(
                "duplicates.near.within",
                "note",
                f"{_many(len(series), 'pair', 'pairs')} of near duplicates lie within a class and a part, "
                f"{example(series)}: fewer independent images than the count says",
            )
        )
    for same_label, sentence in held_out_leaks(readable, held_out):
        findings.append(_finding("leaks.held_out", "warning" if same_label else "note", sentence))
    learned = readable[~readable["source"].isin(held_out)]
    groups = [leak for leak in leaks(learned).itertuples() if leak.kind == "group"]
    if groups:
        findings.append(
            _finding(
                "leaks.groups",
                "warning",
                f"{_many(len(groups), 'group lies', 'groups lie')} in two parts, such as {groups[0].path_a!r} and "
                f"{groups[0].path_b!r}: what is tested may have been trained on",
            )
        )
    return findings


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


# --------------------------------------------------------------------------------------------- balance, files


def _balance_findings(readable: pd.DataFrame) -> list[dict[str, str]]:
    findings = []
    few = []
    for part in PARTS:
        labels = readable.loc[readable["split"] == part, "label"]
        for label, kind in ((0, "real"), (1, "fake")):
            count = int((labels == label).sum())
            if count == 0:
                findings.append(
                    _finding("balance.part", "loud", f"the {part} part has no {kind} image: training refuses this")
                )
            elif part != "train" and count < _FEW:
                few.append(f"{count} {kind} in {part}")
    test = readable.loc[readable["split"] == "test", "label"].value_counts()
    if 0 < test.min() < TELLING:
        findings.append(
            _finding(
                "shortcut.unseen",
                "warning",
                f"too few test images to tell whether files give the classes away ({test.get(0, 0)} real, "
                f"{test.get(1, 0)} fake): expected at least {TELLING} of each",
            )
        )
    for label, kind in ((0, "real"), (1, "fake")):
        of_class = readable.loc[readable["label"] == label, "source"].value_counts()
        if len(of_class) >= _MANY_SOURCES and of_class.median() < _FEW_IMAGES:
            findings.append(
                _finding(
                    "balance.sources",
                    "note",
                    f"{len(of_class)} sources of {kind} images with {of_class.median():.0f} images each, such as "
                    f"{of_class.index[0]!r}: if these are videos or people, data.group keeps each in one part",
                )
            )
    if few:
        findings.append(
            _finding("balance.few", "note", f"few images ({', '.join(few)}): figures will have wide intervals")
        )
    prevalence = float(readable["label"].mean()) if len(readable) else 0.5
    if max(prevalence, 1 - prevalence) >= _LOPSIDED:
        larger = "fake" if prevalence > 0.5 else "real"
        findings.append(
            _finding(
                "balance.classes",
                "warning",
                f"{max(prevalence, 1 - prevalence):.0%} of the images are {larger}: always answering {larger} is as "
                f"accurate as that",
            )
        )
    return findings


def _file_findings(table: pd.DataFrame) -> list[dict[str, str]]:
    findings = []
    for status, level, words in (
        ("unreadable", "warning", "cannot be used and are left out"),
        ("suspicious", "note", "are usable but suspicious"),
    ):
        rows = table[table["status"] == status]
        if len(rows):
            share = len(rows) / len(table)
            findings.append(
                _finding(
                    f"files.{status}",
                    # A few broken files are everyday; many say that something went wrong on the way.
                    level if share > 0.01 else "note",
                    f"{len(rows):,} of {len(table):,} files {words} ({(rows['label'] == 0).sum():,} real, "
                    f"{(rows['label'] == 1).sum():,} fake), such as {rows['path'].iloc[0]!r}: "
                    f"{rows['reason'].iloc[0]}",
                )
            )
    return findings


def _source(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    parts = rows["split"].value_counts()
    quality = rows.loc[rows["jpeg_quality"] > 0, "jpeg_quality"]
    return {
        "source": name,
        "label": int(rows["label"].iloc[0]),
        "images": len(rows),
        **{part: int(parts.get(part, 0)) for part in PARTS},
        "width": _spread(rows["width"]),
        "height": _spread(rows["height"]),
        "formats": {str(k): int(v) for k, v in rows["format"].value_counts().items()},
        "modes": {str(k): int(v) for k, v in rows["mode"].value_counts().items()},
        "jpeg_quality": _spread(quality) if len(quality) else None,
        "bytes_per_pixel": [round(v, 3) for v in _spread(rows["bytes"] / (rows["width"] * rows["height"]))],
    }


def _spread(values: pd.Series) -> list[float]:
    """Least, median, greatest."""
    return [float(v) for v in np.quantile(values.to_numpy(dtype=float), (0, 0.5, 1))]


def _part(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    fake = int((rows["label"] == 1).sum())
    return {"split": name, "images": len(rows), "real": len(rows) - fake, "fake": fake}
