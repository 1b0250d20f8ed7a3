"""What a person should know about a data set before trusting any result on it: findings from the catalogue.

Plain data in, plain data out: `report` returns what audit.json holds, and every sentence in it stands alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deepfake.analysis.shortcuts import Shortcut, metadata_shortcuts
from deepfake.data.groups import leaks, near_pairs
from deepfake.data.split import PARTS

LEVELS = ("note", "warning", "loud")
VERDICTS = {"note": "clean", "warning": "doubtful", "loud": "loud"}

# Findings show so many examples; the counts beside them are of all.
_EXAMPLES = 200
_KINDS = ["classes", "parts", "within"]  # across which duplicates lie, the worst first
_FEW = 30  # images of a class in the test part, below which an interval spans tens of points
# Width, height, their pair and their ratio are one fact: the strongest of them speaks.
_FAMILY = {"width": "size", "height": "size", "aspect": "size"}
_COMPRESSION = ("format", "jpeg_luma")  # what pixels remember
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
_LOPSIDED = 0.9  # share of the larger class from which accuracy says little


def report(table: pd.DataFrame, equalised: bool = False, spectrum: Shortcut | None = None) -> dict[str, Any]:
    """Everything that the table tells, most severe first.

    Args:
        table: a catalogue (`deepfake.data.catalog.COLUMNS`) with groups and parts.
        equalised: sizes and formats are made equal before training, so that they tell nothing.
        spectrum: what the power spectrum alone tells, if it was asked.

    Returns:
        images, unreadable, suspicious, verdict (clean, doubtful, loud), sentence, findings, sources, parts, files,
        duplicates, shortcuts: plain values, ready for JSON.
    """
    readable = table[table["status"] != "unreadable"]
    metadata = metadata_shortcuts(readable) if _judgeable(readable) else []
    exact, near = _copies(readable), _near(readable)
    findings = [
        *(_equalised_findings(metadata) if equalised else _shortcut_findings(metadata)),
        *_spectrum_findings(spectrum),
        *_duplicate_findings(exact, near, readable),
        *_balance_findings(readable),
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
                f"data.equalise=true {'compresses all alike' if family == 'bytes per pixel' else 'removes it'}",
            )
        )
    return findings


def _equalised_findings(metadata: Sequence[Shortcut]) -> list[dict[str, str]]:
    """Equal files tell nothing, but pixels keep traces of how they were compressed before."""
    findings = [
        _finding(
            "shortcut.equalised",
            "note",
            "sizes, formats and compression of the files are made equal before training: they tell nothing any more",
        )
    ]
    before = [shortcut for family, shortcut in _strongest(metadata).items() if family in _COMPRESSION]
    if before:
        loud = any(shortcut.level == "loud" for shortcut in before)
        findings.append(
            _finding(
                "shortcut.compressed_before",
                "warning" if loud else "note",
                f"before equalising, {_WORDS[before[0].name]} real from fake with {_figure(before[0])}: an earlier "
                f"JPEG compression leaves traces in the pixels that equalising cannot take away",
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


def _near(readable: pd.DataFrame) -> pd.DataFrame:
    """Pairs of near duplicates that are not equal files, in the same order: there may be a million of them.

    Columns path, label and split of each (suffixes _a, _b), distance in bits, kind, and crossing (two parts).
    """
    found = near_pairs(readable["phash"])
    rows = readable[["path", "label", "split", "sha256"]].reset_index(drop=True)
    pairs = pd.concat(
        [rows.iloc[found[side].to_numpy()].reset_index(drop=True).add_suffix(f"_{side}") for side in ("a", "b")],
        axis=1,
    ).assign(distance=found["distance"])
    pairs = pairs[pairs["sha256_a"] != pairs["sha256_b"]].drop(columns=["sha256_a", "sha256_b"])
    pairs["crossing"] = pairs["split_a"] != pairs["split_b"]
    across = pairs["label_a"] != pairs["label_b"]
    pairs["kind"] = np.select([across, pairs["crossing"]], _KINDS[:2], _KINDS[2])
    order = pairs["kind"].map(_KINDS.index)
    return pairs.assign(order=order).sort_values(["order", "distance", "path_a", "path_b"], ignore_index=True)


def _pair(row: Any) -> dict[str, Any]:
    """A row of `_near` for JSON."""
    return {
        "paths": [row.path_a, row.path_b],
        "labels": [int(row.label_a), int(row.label_b)],
        "splits": [row.split_a, row.split_b],
        "kind": row.kind,
        "distance": int(row.distance),
    }


def _duplicate_findings(
    exact: list[dict[str, Any]], near: pd.DataFrame, readable: pd.DataFrame
) -> list[dict[str, str]]:
    findings = []

    def example(found: list[dict[str, Any]] | pd.DataFrame) -> str:
        pair = found.iloc[0][["path_a", "path_b"]] if isinstance(found, pd.DataFrame) else found[0]["paths"]
        one, other = list(pair)[:2]
        return f"such as {one!r} and {other!r}"

    both = [item for item in exact if item["kind"] == "classes"]
    if both:
        findings.append(
            _finding(
                "duplicates.exact.classes",
                "loud",
                f"{_many(len(both), 'image is', 'images are')} labelled both real and fake, {example(both)}: remove "
                f"the wrong ones; training refuses them",
            )
        )
    across = [item for item in exact if len(set(item["splits"])) > 1]
    if across:
        findings.append(
            _finding(
                "duplicates.exact.parts",
                "loud",
                f"{_many(len(across), 'image is', 'images are')} in two parts of the given split, {example(across)}: "
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
    crossing = near[near["crossing"]]
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
    groups = [leak for leak in leaks(readable).itertuples() if leak.kind == "group"]
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
                    f"{len(rows):,} of {len(table):,} files {words}, such as {rows['path'].iloc[0]!r}: "
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
