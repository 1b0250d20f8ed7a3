"""report.html of a run: what it found, whether to believe it, where it fails, how to use it, on one page.

The page is a function of what lies in the run's folder, and that others may have made: whatever is missing or is not
what a run writes, its part of the page says so, and the rest stands.
"""

import json
import math
import os
import re
import reprlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from deepfake.console import visible
from deepfake.data.images import UnreadableImage, read_image
from deepfake.evaluation.calibration import Calibration
from deepfake.evaluation.metrics import bootstrap_intervals, scores, wilson_interval
from deepfake.evaluation.sources import by_source
from deepfake.files import write_bytes
from deepfake.reporting.charts import Curve, Scale, line_chart, reliability_chart
from deepfake.reporting.comparison import count, number, share
from deepfake.reporting.figures import shorten
from deepfake.reporting.pages import THUMBNAIL, Figure, data_address, flat, percent, render, span
from deepfake.runs import ENSEMBLE, ENVIRONMENT, SUMMARY
from deepfake.untrusted import expect_file, read_json, read_yaml

REPORT = "report.html"

# The page shows so many and counts the rest, for the files have more.
SOURCES = 200
FINDINGS = 12
MISTAKES = 4  # of each kind
_SETTINGS = 400
_PERTURBATIONS = 100

# Training waits for this page: less than `evaluate` tells.
_RESAMPLES = 200
_FEW_SOURCES = 50  # of more, the AUROC is left to `evaluate`
_POINTS = 10_000  # of a curve
_TABLE_BYTES = 2**27  # of a CSV; a million predictions have less
_SHEET_BYTES = 450_000  # of a sheet of heat maps within the page
_LONGEST = 1500  # characters of a sentence or a setting
_LEVELS = ("note", "warning", "loud")

# What whoever reads a file that anybody may have made must reckon with.
_UNUSABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, NotImplementedError)


def write_run_page(folder: Path) -> Path:
    """Write RUN/report.html, whole or not at all; it holds its pictures, and asks for nothing over the network.

    Args:
        folder: of a run or of an ensemble. A link that leads out of it is not followed; only images of the data that
            the run tells of are looked for elsewhere, and shown if their sha256 is the manifest's.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    run = _Run(Path(folder))
    content = render(
        "run.html",
        name=run.folder.name,
        place=str(run.folder),
        ensemble=_tried(run.members),
        answer=_tried(_answer, run),
        audit=_tried(_audit, run),
        baselines=_tried(_baselines, run),
        sources=_tried(_sources, run),
        mistakes=_tried(_mistakes, run),
        certainty=_tried(_certainty, run),
        deletion=_tried(_deletion, run),
        frequencies=_tried(_frequencies, run),
        sheets=_tried(_sheets, run),
        robustness=_tried(_robustness, run),
        network=_tried(_network, run),
        curves=_tried(_curves, run),
        seconds=_tried(_seconds, run),
        environment=_tried(_environment, run),
        settings=_tried(_settings, run),
        commands=_commands(run),
    )
    # Not waited for until it is on the disk: it can be made again, and training waits.
    write_bytes(run.folder / REPORT, content.encode(), durable=False)
    return run.folder / REPORT


# ------------------------------------------------------------------------------------------- what is in the folder


@dataclass(frozen=True)
class _Part:
    """A part of the page: its content, or why there is none."""

    content: Any = None
    problem: str = ""
    absent: bool = False  # its file is not there, as before the command that makes it


def _tried(build: Callable[..., Any], *given: Any) -> _Part:
    try:
        return _Part(build(*given))
    except FileNotFoundError as error:
        return _Part(problem=f"{Path(error.filename).name} is not there", absent=True)
    except _UNUSABLE as error:
        return _Part(problem=" ".join(str(error).split()) or type(error).__name__)


class _Run:
    """The files of a run's folder as plain data.

    What reads one of them raises OSError or ValueError where it is none that a run writes, and KeyError, TypeError
    and their like may come of what it holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._real = Path(os.path.realpath(folder))

    def file(self, name: str) -> Path:
        """A file of the folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a link leads to another place.
        """
        file = self.folder / name
        if not Path(os.path.realpath(file)).is_relative_to(self._real):
            raise ValueError(f"{name}: expected a file of the run, found a link out of its folder")
        expect_file(file)
        return file

    def json(self, name: str) -> dict[str, Any]:
        found = self._read(read_json, name)
        if not isinstance(found, dict):
            raise ValueError(f"{name}: expected a table, found {reprlib.repr(found)}")
        return found

    def table(self, name: str, columns: dict[str, type]) -> pd.DataFrame:
        """Columns of a CSV, each of its type; texts as they were before `safe_csv`."""
        file = self.file(name)
        if file.stat().st_size > _TABLE_BYTES:
            raise ValueError(f"{name}: more than {_TABLE_BYTES} bytes")
        missing = dict.fromkeys((column for column, kind in columns.items() if kind is float), "")
        table = self._read(
            lambda path: pd.read_csv(
                path, usecols=list(columns), dtype=columns, keep_default_na=False, na_values=missing
            ),
            name,
        )
        for column in (column for column, kind in columns.items() if kind is str):
            table[column] = table[column].str.removeprefix("'")
        return table

    def _read(self, reader: Callable[[Path], Any], name: str) -> Any:
        file = self.file(name)
        try:
            return reader(file)
        except _UNUSABLE as error:
            raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self.json(SUMMARY)

    @cached_property
    def settings(self) -> dict[str, Any]:
        found = self._read(read_yaml, "config.yaml")
        if not isinstance(found, dict):
            raise ValueError(f"config.yaml: expected a table, found {reprlib.repr(found)}")
        return found

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Of the test part: path, source, label, margin, probability."""
        columns = {"path": str, "source": str, "label": int, "margin": float, "probability": float}
        table = self.table("test_predictions.csv", columns)
        scores(table["label"].to_numpy(), table["probability"].to_numpy(), margins=table["margin"].to_numpy())
        return table

    def members(self) -> list[str]:
        """Of an ensemble."""
        self.file(ENSEMBLE)
        return [str(member) for member in self.summary["members"]]


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected texts, found {reprlib.repr(values)}")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {reprlib.repr(value)}")
    return value


def _words(value: Any) -> str:
    """A text to be read, not longer than anybody would."""
    return shorten(visible(_text(value)), _LONGEST)


def _measured(block: dict[str, Any], name: str) -> Figure:
    """A share with its interval, as summary.json and evaluation.json tell it."""
    low, high = (block.get("intervals") or {}).get(name) or (None, None)
    return Figure(share(block.get(name)), share(low), share(high))


def _columns(row: Mapping[Any, Any], name: str, low: float = 0, high: float = 1) -> Figure:
    """A figure with its interval in columns beside it."""
    value, *ends = (number(row[f"{name}{end}"], low - 1e-6, high + 1e-6) for end in ("", "_low", "_high"))
    return Figure(value, *ends)


def _rate(part: float, whole: float) -> Figure:
    """A share with its 95 % interval."""
    return Figure(part / whole if whole else math.nan, *wilson_interval(part, whole))


def _in_percent(figure: Figure) -> str:
    """88.1 % [85.6, 90.3]"""
    return f"{percent(figure.value)} {span(figure, 1, 100)}".rstrip()


# ------------------------------------------------------------------------------------------------------ the answer


def _answer(run: _Run) -> dict[str, Any]:
    """Of the test part at P(fake) > .5, in one sentence; whether it is worth anything, and the figures."""
    told = run.summary["test"]
    n, prevalence, majority = count(told["n"]), share(told["prevalence"]), share(told["majority"])
    right, auroc = _measured(told, "accuracy"), _measured(told, "auroc")
    larger = "fake" if prevalence >= 0.5 else "real"
    tn, fp, fn, tp = (count(told[name]) for name in ("tn", "fp", "fn", "tp"))
    accused, missed = _rate(fp, fp + tn), _rate(fn, fn + tp)
    sentence = (
        f"On {n:,.0f} test images, {percent(prevalence)} fake, it is right in {_in_percent(right)}; always saying "
        f"{larger} would be right in {percent(majority)}."
    )
    better = math.isfinite(right.low) and right.low > majority
    level, word = "clean", f"Better than always saying {larger}"
    if not better:
        level, word = "doubtful", f"Not shown to be better than always saying {larger}"
    audit = _tried(_audit, run).content
    if audit and audit["verdict"] != "clean":
        level = "loud" if "loud" in (audit["verdict"], level) else "doubtful"
        word += ", and the data may give the answer away" if better else "; and the data may give the answer away"
    return {
        "level": level,
        "word": word,
        "sentence": sentence,
        "auroc": auroc,
        "doubt": audit["sentence"] if audit and audit["verdict"] != "clean" else "",
        "facts": [
            ("right", percent(right.value), span(right, 1, 100)),
            ("AUROC", f"{auroc.value:.3f}" if math.isfinite(auroc.value) else "undefined", span(auroc)),
            ("of the real called fake", percent(accused.value), span(accused, 1, 100)),
            ("of the fake called real", percent(missed.value), span(missed, 1, 100)),
            ("test images", f"{n:,.0f}", ""),
            ("of them fake", percent(prevalence), ""),
            (f"right by always saying {larger}", percent(majority), ""),
            ("trained weights", f"{count(run.summary['trained_weights']):,.0f}", ""),
        ],
    }


# --------------------------------------------------------------------------------------------------- can I trust it


def _audit(run: _Run) -> dict[str, Any]:
    audit = run.json("audit.json")
    if audit["verdict"] not in ("clean", "doubtful", "loud"):
        raise ValueError(f"audit.json: expected a verdict, found {reprlib.repr(audit['verdict'])}")
    findings = [
        {name: _words(finding[name]) for name in ("level", "sentence", "key")} for finding in audit["findings"]
    ]
    for finding in findings:
        if finding["level"] not in _LEVELS:
            raise ValueError(f"audit.json: expected a level, found {reprlib.repr(finding['level'])}")
    return {
        "verdict": audit["verdict"],
        "sentence": _words(audit["sentence"]),
        "findings": findings[:FINDINGS],
        "more": max(len(findings) - FINDINGS, 0),
        "exact": count(audit["duplicates"]["exact_total"]),
        "near": count(audit["duplicates"]["near_total"]),
        "leaks": sum(
            finding["key"].startswith(("duplicates.", "leaks.")) and finding["level"] != "note"
            for finding in findings
        ),
    }


def _baselines(run: _Run) -> dict[str, Any]:
    """The run beside shallower judges: those of `evaluate`, or what the audit's metadata tree reaches alone."""
    try:
        beside = run.json("evaluation/evaluation.json")["baselines"]
    except FileNotFoundError:
        beside = None
    rows: list[dict[str, Any]]
    if beside:
        rows = [
            {
                "name": _words(row["name"]),
                "balanced": _measured(row, "balanced_accuracy"),
                "auroc": _measured(row, "auroc"),
                "rule": _words(row.get("rule", "")),
            }
            for row in beside
        ]
    else:
        rows = [
            {"name": "majority class", "balanced": Figure(0.5), "auroc": Figure(0.5)},
            *(_tried(_metadata_tree, run).content or []),
            {"name": "this run", "balanced": _balanced(run), "auroc": _measured(run.summary["test"], "auroc")},
        ]
    return {
        "rows": rows,
        "scale": Scale.of([row[name] for row in rows for name in ("balanced", "auroc")], 0.5, least=0),
        "whole": bool(beside),
    }


def _metadata_tree(run: _Run) -> list[dict[str, Any]]:
    for row in run.json("audit.json")["shortcuts"]["metadata"]:
        if row["name"] == "all metadata":
            balanced = Figure(share(row["balanced_accuracy"]), *map(share, row["interval"]))
            auroc = Figure(share(row["auroc"]), *map(share, row["auroc_interval"]))
            return [{"name": "metadata tree", "balanced": balanced, "auroc": auroc, "rule": _words(row["rule"])}]
    return []


def _balanced(run: _Run) -> Figure:
    """With the interval of a quick bootstrap, for the summary has none of it."""
    table = run.predictions
    labels, p, margins = (table[column].to_numpy() for column in ("label", "probability", "margin"))
    ends = bootstrap_intervals(labels, p, metrics=("balanced_accuracy",), resamples=_RESAMPLES, margins=margins)
    return Figure(scores(labels, p, margins=margins)["balanced_accuracy"], *ends["balanced_accuracy"])


# ------------------------------------------------------------------------------------------------ where does it fail


def _sources(run: _Run) -> dict[str, Any]:
    """The table of `evaluate`, or the same of the run's own predictions at P(fake) > .5."""
    figures = [f"{name}{end}" for name in ("fnr", "fpr", "auroc") for end in ("", "_low", "_high")]
    columns: dict[str, type] = {"source": str, "label": int, "parent": str, "images": int, "threshold": float}
    columns |= dict.fromkeys(figures, float)
    try:
        table, evaluated = run.table("evaluation/sources.csv", columns), True
    except FileNotFoundError:
        few = run.predictions["source"].nunique() <= _FEW_SOURCES
        found = by_source(run.predictions, 0.5, resamples=_RESAMPLES, measures=("auroc",) if few else ())
        table, evaluated = found.assign(threshold=0.5, parent=found["parent"].fillna(""))[list(columns)], False
    if table.empty or not table["label"].isin((0, 1)).all():
        raise ValueError("evaluation/sources.csv: expected rows with labels 0 and 1")
    rows: list[dict[str, Any]] = []
    for row in table.head(SOURCES).to_dict("records"):
        fake = row["label"] == 1
        rows.append(
            {
                "source": row["source"],
                "label": int(fake),
                "against": row["parent"],
                "images": count(row["images"]),
                "wrong": _columns(row, "fnr" if fake else "fpr"),
                "auroc": _columns(row, "auroc") if fake else Figure(math.nan),
            }
        )
    return {
        "rows": rows,
        "more": len(table) - len(rows),
        "threshold": share(float(table["threshold"].iloc[0])),
        "evaluated": evaluated,
        "images": int(table.loc[table["parent"] == "", "images"].sum()),
        "wrong": Scale.of([row["wrong"] for row in rows]),
        "auroc": Scale.of([row["auroc"] for row in rows], 0.5),
    }


def _mistakes(run: _Run) -> dict[str, Any]:
    """The mistakes at P(fake) > .5 that are furthest from the truth, of both kinds."""
    table = run.predictions
    called_fake = table["probability"] > 0.5
    wrong = {
        "real called fake": table[(table["label"] == 0) & called_fake].sort_values("margin", ascending=False),
        "fake called real": table[(table["label"] == 1) & ~called_fake].sort_values("margin"),
    }
    shown = {kind: rows.head(MISTAKES) for kind, rows in wrong.items()}
    pictures = _tried(_thumbnails, run, [path for rows in shown.values() for path in rows["path"]])
    kinds = [
        {
            "kind": kind,
            "label": int(kind.startswith("fake")),
            "of": len(wrong[kind]),
            "images": [
                {
                    "path": row["path"],
                    "source": row["source"],
                    "probability": row["probability"],
                    "thumbnail": (pictures.content or {}).get(row["path"]),
                }
                for row in rows.to_dict("records")
            ],
        }
        for kind, rows in shown.items()
    ]
    return {"kinds": kinds, "images": len(table), "problem": pictures.problem}


def _thumbnails(run: _Run, paths: Sequence[str]) -> dict[str, str | None]:
    """By path, small; None for those that are no longer what was judged.

    Only an image of the sha256 in the manifest is shown: whoever made the folder could name any other picture of this
    machine, but not what it holds.
    """
    root = Path(_text(run.settings["data"]["root"]))
    limit = number(run.settings["data"].get("max_megapixels", 64), 0, 1000)
    file = run.file("manifest.parquet")
    known = pd.read_parquet(file, columns=["path", "sha256"], partitioning=None)
    hashes = known[known["path"].isin(paths)].set_index("path")["sha256"].to_dict()
    with ThreadPoolExecutor() as pool:
        pictures = pool.map(lambda path: _thumbnail(root, path, hashes.get(path), limit), paths)
        return dict(zip(paths, pictures, strict=True))


def _thumbnail(root: Path, path: str, sha256: str | None, limit: float) -> str | None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        return None
    try:
        pixels, found = read_image(root / path, limit)
    except UnreadableImage:
        return None
    return data_address(pixels, (THUMBNAIL, THUMBNAIL)) if found.sha256 == sha256 else None


# -------------------------------------------------------------------------------------------------- how sure is it


def _certainty(run: _Run) -> dict[str, Any]:
    """Calibration, the stored thresholds and the band of doubt on the test part."""
    table = run.predictions
    labels, p, margins = (table[column].to_numpy() for column in ("label", "probability", "margin"))
    told: dict[str, Any] = {
        "n": len(table),
        "prevalence": float(labels.mean()),
        "after": scores(labels, p)["ece"],
        "charts": [reliability_chart("Calibrated", labels, p)],
        "calibration": None,
    }
    if run.summary.get("calibration") is None:
        return told
    calibration = Calibration.from_dict(run.summary["calibration"])
    before = expit(margins)
    doubtful = calibration.uncertain(p)
    right = (p > 0.5) == (labels == 1)
    told["charts"] = [reliability_chart("Before temperature", labels, before), *told["charts"]]
    return told | {
        "before": scores(labels, before)["ece"],
        "calibration": calibration,
        "band": (min(calibration.band[0], 0.5), max(calibration.band[1], 0.5)),  # as `Calibration.uncertain`
        "thresholds": [
            {"name": name, "threshold": threshold, **_at(labels, p, threshold.value)}
            for name, threshold in calibration.thresholds.items()
        ],
        "doubtful": _in_percent(_rate(int(doubtful.sum()), len(p))),
        "right_within": _in_percent(_rate(int(right[doubtful].sum()), int(doubtful.sum()))),
        "right_outside": _in_percent(_rate(int(right[~doubtful].sum()), int((~doubtful).sum()))),
    }


def _at(labels: NDArray, p: NDArray, threshold: float) -> dict[str, Figure]:
    said, fake = p > threshold, labels == 1
    return {
        "accuracy": _rate(int((said == fake).sum()), len(p)),
        "fpr": _rate(int((said & ~fake).sum()), int((~fake).sum())),
        "tpr": _rate(int((said & fake).sum()), int(fake.sum())),
    }


# ---------------------------------------------------------------------------------------------- what does it look at


def _explanation(run: _Run) -> dict[str, Any]:
    return run.json("explanation/explanation.json")


def _deletion(run: _Run) -> dict[str, Any]:
    explanation = _explanation(run)
    told = explanation["deletion"]
    fractions = _figures(told["fractions"])
    curves = [
        Curve(f"{name}, area {number(told[area]):.3f}", kind, fractions, _figures(told[key], len(fractions)))
        for name, kind, key, area in (
            ("hot first", "first", "hot", "auc_hot"),
            ("as much elsewhere", "second dashed", "random", "auc_random"),
            ("hot on average first", "second", "common", "auc_common"),
        )
        if key in told
    ]
    return {
        "chart": line_chart("Confidence in the verdict", "share of the places hidden", curves),
        "images": count(told["images"]),
        "hidden_as": _words(told["hidden_as"]),
        "one_control": "common" not in told,
        "by_verdict": {
            verdict: _words(told["by_verdict"][verdict]["sentence"])
            for verdict in ("fake", "real")
            if verdict in told.get("by_verdict", {})
        },
        "sentence": _words(told["sentence"]),
        "method": _words(explanation["method"]),
        "layer": _words(str(explanation.get("layer") or "")),
    }


def _frequencies(run: _Run) -> dict[str, Any]:
    told = _explanation(run)["frequencies"]
    cutoffs = _figures(told["cutoffs"])
    curves = [
        Curve(
            name,
            kind,
            cutoffs,
            _figures(told[key]["auroc"], len(cutoffs)),
            [(low, high) for low, high in map(_figures, told[key].get("interval") or [])],
        )
        for key, name, kind in (
            ("low_pass", "what lies below is left", "first"),
            ("high_pass", "what lies above is left", "second"),
            ("probe_low", "spectrum alone, below", "first dashed"),
            ("probe_high", "spectrum alone, above", "second dashed"),
        )
        if key in told
    ]
    whole = number(told.get("unfiltered", {}).get("auroc"))
    level = (whole, "unfiltered") if math.isfinite(whole) else (0.5, "chance")
    chart = line_chart("AUROC", "cutoff, cycles a pixel", curves, level, logarithmic=True)
    return {
        "chart": chart,
        "images": count(told["images"]),
        "prevalence": share(told.get("prevalence")),
        "sentence": _words(told["sentence"]),
    }


def _figures(values: Any, length: int | None = None) -> list[float]:
    """Numbers, NaN where one is undefined."""
    if not isinstance(values, list) or len(values) > _POINTS or length not in (None, len(values)):
        raise ValueError(f"expected {length or 'some'} numbers, found {reprlib.repr(values)}")
    return [number(value) for value in values]


def _sheets(run: _Run) -> list[dict[str, Any]]:
    told = _explanation(run)["sheets"]
    sheets = []
    for key, title, label in (
        ("true_fake", "fake, called fake", 1),
        ("false_fake", "real, called fake", 0),
        ("true_real", "real, called real", 0),
        ("false_real", "fake, called real", 1),
    ):
        if key not in told:
            continue
        found = told[key]
        picture = _tried(_sheet, run, _text(found["file"])) if found.get("shown") else _Part()
        shown, of = count(found["shown"]), count(found["of"])
        sheets.append(
            {"title": title, "label": label, "shown": shown, "of": of, "file": found["file"], "picture": picture}
        )
    if not sheets:
        raise ValueError("explanation.json tells of no sheet")
    return sheets


def _sheet(run: _Run, name: str) -> str:
    """As a data address that is not too long; the file beside the page has it in full."""
    places = [f"explanation/{name}", f"explanation/figures/{PurePosixPath(name).name}"]
    file = next((run.file(place) for place in places if (run.folder / place).is_file()), None)
    if file is None:
        raise FileNotFoundError(2, "no such file", name)
    try:
        pixels, _ = read_image(file)
    except UnreadableImage as error:
        raise ValueError(f"{name}: {error}") from error
    for width in (1400, 1000, 700):
        address = data_address(pixels, (width, 3 * width))
        if len(address) <= _SHEET_BYTES:
            return address
    raise ValueError(f"{name} is too large for this page")


def _robustness(run: _Run) -> dict[str, Any]:
    told = run.json("robustness/robustness.json")
    rows: list[dict[str, Any]] = []
    for row in told["rows"][:_PERTURBATIONS]:
        kind, clean = _words(row["kind"]), row["kind"] == "clean"
        rows.append(
            {
                "name": "clean" if clean else f"{kind} {number(row['strength']):g}",
                "images": count(row["images"]),
                **{name: _columns(row, name) for name in ("auroc", "accuracy", "tpr", "fpr")},
                "change": Figure(math.nan) if clean else _columns(row, "auroc_change", -1),
            }
        )
    if not rows:
        raise ValueError("robustness.json: expected rows, found none")
    again, tested = told["recompression"], rows[1:]
    sides = [
        (side, _in_percent(_columns(again[side], "share")), count(again[side]["images"]))
        for side in ("fakes only", "reals only", "both")
        if again[side]["images"]
    ]
    return {
        "rows": rows,
        "more": max(len(told["rows"]) - len(rows), 0),
        "scale": Scale.of([row["auroc"] for row in rows], rows[0]["auroc"].value),
        "threshold": (_words(told["threshold"]["name"]), share(told["threshold"]["value"])),
        "prevalence": share(told["rows"][0]["prevalence"]),
        "majority": share(told["rows"][0]["majority"]),
        "mean": sum(row["auroc"].value for row in tested) / len(tested) if tested else math.nan,
        "worst": min(tested, key=lambda row: row["auroc"].value) if tested else rows[0],
        "perturbation": _words(again["perturbation"]),
        "sides": sides,
        "bias": "a bias" if again["biased"] else "no sign of bias",
        "certain": bool(again["certain"]),
    }


# ---------------------------------------------------------------------------------------------- how was it trained


def _network(run: _Run) -> list[tuple[str, str]]:
    """What was trained, as (name, text)."""
    told = run.summary
    weights = f"{count(told['trained_weights']):,.0f} of {count(told['total_weights']):,.0f}"
    facts: list[tuple[str, Any]] = [("network", told["model"]), ("weights", told.get("weights", "not told"))]
    if not (run.folder / ENSEMBLE).exists():
        best = f"best by {told['monitor']}: {count(told['best_epoch']):.0f} (from 0)"
        facts += [
            ("trained", ", ".join(_texts(told["trained"]))),
            ("frozen", ", ".join(_texts(told["frozen"])) or "nothing"),
            ("trained weights", weights),
            ("epochs", f"{count(told['epochs_run']):.0f}; {best}"),
            ("engine of what is frozen", _engine(told["trunk"])),
        ]
    how = told["preparation"] or {}
    images = ", ".join(f"{name} {value}" for name, value in how.items() if value not in (None, False))
    facts += [("scheduler", told["scheduler"]), ("seed", told["seed"]), ("images", images)]
    return _readable([*facts, ("seconds in all", f"{number(told['seconds']):,.0f}")])


def _engine(trunk: Any) -> str:
    if trunk is None:
        return "PyTorch, with what trains"
    views = (
        "another view of an image each epoch" if trunk["views"] is None else f"views of an image: {trunk['views']}"
    )
    return f"{trunk['engine']}, {trunk['precision']}; {views}"


def _readable(facts: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(_words(name), _words(str(value))) for name, value in facts]


def _curves(run: _Run) -> list[dict[str, Any]]:
    measures = {"loss": "Loss", "accuracy": "Accuracy", "auroc": "AUROC"}
    columns: dict[str, type] = {f"{part}/{measure}": float for part in ("train", "val") for measure in measures}
    table = run.table("metrics.csv", {"epoch": float} | columns)
    if len(table) > _POINTS:
        raise ValueError(f"metrics.csv: more than {_POINTS} epochs")
    table = table[np.isfinite(table["epoch"])].replace([np.inf, -np.inf], np.nan)
    best = count(run.summary["best_epoch"])
    epochs = table["epoch"].tolist()
    return [
        line_chart(
            title,
            "epoch",
            [
                Curve("training", "train dashed", epochs, table[f"train/{measure}"].tolist()),
                Curve("validation", "validation", epochs, table[f"val/{measure}"].tolist()),
            ],
            marked=(best, f"best epoch {best:.0f}"),
            whole=True,
        )
        for measure, title in measures.items()
    ]


def _seconds(run: _Run) -> dict[str, float]:
    seconds = run.table("seconds.csv", {"epoch": float, "seconds": float})["seconds"]
    if seconds.empty or not seconds.between(0, 1e9).all():
        raise ValueError("seconds.csv: expected seconds")
    return {"median": float(seconds.median()), "least": float(seconds.min()), "most": float(seconds.max())}


def _environment(run: _Run) -> list[tuple[str, str]]:
    told = run.json(ENVIRONMENT)
    packages = [f"{name} {version}" for name, version in told["packages"].items()]
    facts = [
        ("command", shlex.join(["python", "-m", "deepfake.train", *_texts(told["command"])[1:]])),
        ("Python", told["python"]),
        ("system", told["platform"]),
        ("processor", f"{told['processor']}, {told['cores']} cores, {told['threads']} threads"),
        ("graphics cards", ", ".join(_texts(told["gpus"])) or "none"),
        ("packages", ", ".join(packages)),
    ]
    return _readable(facts)


def _settings(run: _Run) -> dict[str, Any]:
    # YAML has dates, which JSON has not.
    settings = list(flat(json.loads(json.dumps(run.settings, default=str))))
    return {"rows": _readable(settings[:_SETTINGS]), "more": max(len(settings) - _SETTINGS, 0)}


# --------------------------------------------------------------------------------------------------- how to use it


def _commands(run: _Run) -> dict[str, str]:
    """What can be done with the run, to be typed as it is."""
    name = setting("run", str(run.folder))

    def command(what: str, *settings: str) -> str:
        return shlex.join(["python", "-m", f"deepfake.{what}", *settings])

    data = _tried(lambda: run.settings["data"]).content
    given = [
        setting(f"data.{key}", value)
        for key in ("root", "manifest")
        if isinstance(data, dict) and isinstance(value := data.get(key), str)
    ]
    return {
        "predict": command("predict", name, "input=/my/images", "output=predictions.csv"),
        "evaluate": command("evaluate", name),
        "elsewhere": command("evaluate", name, "data.root=/other/faces"),
        "explain": command("explain", name),
        "robustness": command("robustness", name),
        "app": command("app", name),
        "audit": command("audit", *(given or ["data.root=/my/faces"])),
        "report": command("report", name),
    }


def setting(name: str, value: str) -> str:
    """NAME=VALUE as Hydra's grammar takes it: in quotes where the value has what that grammar knows."""
    if re.fullmatch(r"[\w/.+@%:-]+", value, re.ASCII):
        return f"{name}={value}"
    from hydra.core.override_parser.types import Quote, QuotedString  # only for such names: it takes a while

    return f"{name}={QuotedString(value, Quote.single).with_quotes()}"
