"""Finished runs side by side: as a table, Markdown, CSV, a picture, and in the terminal.

Needs no torch, so that looking at results starts fast.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from deepfake.errors import UserError
from deepfake.evaluation.differences import delong, mcnemar
from deepfake.evaluation.metrics import scores
from deepfake.files import write_text
from deepfake.reporting.figures import comparison_figure, count_text, save
from deepfake.runs import SUMMARY
from deepfake.untrusted import expect_file, read_json

# What the training command writes and every table needs.
_NEEDED = (
    "run", "model", "unfreeze", "scheduler", "seed", "trained_weights", "epochs_run", "best_epoch", "seconds",
    "monitor", "train", "val",
)  # fmt: skip

# Every cell that a spreadsheet would take for a formula starts with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_NONE = "\N{EN DASH}"
_HUGE = 1e15  # no figure of a run is larger

# What `against_best` says, and below which p-value two runs are told apart.
BEST, ALIKE, APART = "best", "not told apart", "told apart"
_CHANCE = 0.05
_AGAINST = (
    "Not told apart: on the same validation images neither the accuracy (McNemar) nor the AUROC (DeLong) differs "
    "from the best run's with p < .05. The p-values are not corrected for the number of runs, and tell nothing of "
    "other seeds."
)


def load_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Summaries of the completed runs in some folders, in the order given and then by path, each run once.

    Beside what stands in its file, each has "folder", where it was found.

    Args:
        folders: run folders, or folders that hold run folders at any depth. Hidden folders below them are
            passed over (caches, replaced runs), and so are links and run folders without a summary.

    Raises:
        UserError: a folder is missing, a summary cannot be used, or there is no completed run at all.
    """
    summaries: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"runs: expected a run folder or a folder of runs, found no folder {folder}. Check the path."
            )
        for file in _summary_files(folder):
            summaries.setdefault(file.resolve(), read_summary(file))
    if not summaries:
        raise UserError(
            f"runs: expected completed runs ({SUMMARY}) in {', '.join(map(str, folders)) or 'some folder'}, "
            f"found none. Train first, or name the folder that the runs were written to."
        )
    return list(summaries.values())


def comparison_table(summaries: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, the lowest validation loss first; equal losses by name, undefined ones last.

    Args:
        summaries: as from `load_runs`; "test" and "folder" may be absent.

    Returns:
        Columns run, model, unfreeze (text), scheduler, seed, trained_weights, epochs (run), best_epoch,
        monitor, train_loss, train_accuracy, val_loss; val_m, val_m_low, val_m_high for m of accuracy,
        precision, recall, f1 and auroc; test_m, test_m_low, test_m_high for accuracy and auroc; n_val,
        val_prevalence, val_majority, n_test, test_prevalence, test_majority, seconds; against_best,
        p_accuracy and p_auroc. Figures are fractions, the intervals are the 95 % ones of the summary; what is
        missing or undefined is NaN.

        against_best is "best" in the first row; "not told apart" where, on the same validation images, neither
        McNemar's test of the accuracy nor DeLong's of the AUROC has a p-value below .05 against the best run;
        otherwise "told apart". It is "" where the validation images are not the best run's, or the predictions
        are not in "folder".
    """
    return compared(summaries).drop(columns="folder")


def compared(summaries: list[dict[str, Any]]) -> pd.DataFrame:
    """As `comparison_table`, with the column folder: where each run was found, "" where that is not told."""
    whole = ("epochs", "best_epoch", "n_val", "n_test")  # and may be missing
    table = pd.DataFrame([_row(summary) for summary in summaries]).astype(dict.fromkeys(whole, "Int64"))
    table["folder"] = [summary.get("folder", "") for summary in summaries]
    table = table.sort_values(["val_loss", "run"], ignore_index=True)
    return pd.concat([table, _against_best(table["folder"].tolist())], axis=1)


def to_markdown(table: pd.DataFrame) -> str:
    """The table of `comparison_table` for people, with what one must know to read it below."""
    heads = (
        "run", "trained weights", "epochs (best)", "train loss", "train acc", "val loss", "val acc [95 %]",
        "precision", "recall", "F1 [95 %]", "AUROC [95 %]", "test acc", "test AUROC", "s", "against the best",
        "p acc", "p AUROC",
    )  # fmt: skip
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for row in table.to_dict("records"):
        cells = (
            _escaped(row["run"]),
            f"{row['trained_weights']:,}",
            epochs_told(row),
            _decimal(row["train_loss"]),
            _decimal(row["train_accuracy"]),
            _decimal(row["val_loss"]),
            _interval(row, "val_accuracy"),
            _decimal(row["val_precision"]),
            _decimal(row["val_recall"]),
            _interval(row, "val_f1"),
            _interval(row, "val_auroc"),
            _decimal(row["test_accuracy"]),
            _decimal(row["test_auroc"]),
            _decimal(row["seconds"], 0),
            row["against_best"] or _NONE,
            _decimal(row["p_accuracy"]),
            _decimal(row["p_auroc"]),
        )
        lines.append(_line(cells))
    said = [f"- {note}" for note in notes(table)]
    return "\n".join([*lines, "", *said, ""])


def to_rich(table: pd.DataFrame) -> Table:
    """The table of `comparison_table` for a terminal of 100 columns or more; long run names are folded."""
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=Text("\n".join(notes(table))),
        caption_justify="left",
    )
    shown.add_column("run", overflow="fold", min_width=14)
    for head in (
        "trained\nweights",
        "epochs\n(best)",
        "val\nloss",
        "val acc",
        "F1",
        "AUROC",
        "test\nacc",
        "s",
    ):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        # Run names and intervals hold brackets, which a plain string would turn into markup.
        alike = "\n= not told apart" if row["against_best"] == ALIKE else ""
        shown.add_row(
            Text(_printable(row["run"]) + alike),
            count_text(row["trained_weights"]),
            epochs_told(row),
            _decimal(row["val_loss"]),
            Text(_interval(row, "val_accuracy", between="\n")),
            _decimal(row["val_f1"]),
            Text(_interval(row, "val_auroc", between="\n")),
            _decimal(row["test_accuracy"]),
            _decimal(row["seconds"], 0),
        )
    return shown


def write_comparison(summaries: list[dict[str, Any]], folder: Path) -> dict[str, Path]:
    """Write comparison.csv, comparison.md and comparison.png; each appears whole or not at all.

    Returns:
        The files, under "csv", "md" and "png".

    Raises:
        UserError: there is nothing to compare.
    """
    if not summaries:
        raise UserError("runs: expected at least one completed run, found none. Train first.")
    table = comparison_table(summaries)
    files = {kind: Path(folder) / f"comparison.{kind}" for kind in ("csv", "md", "png")}
    # The byte order mark that spreadsheets like would hide the first column's name from other readers.
    csv = table.map(_harmless).to_csv(index=False, lineterminator="\n")
    write_text(files["csv"], csv)
    write_text(files["md"], to_markdown(table))
    save(comparison_figure(table), files["png"])
    return files


def _summary_files(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        if SUMMARY in names:
            yield Path(place) / SUMMARY
            below.clear()  # runs do not nest
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_summary(file: Path) -> dict[str, Any]:
    """One summary, and in "folder" where it was found.

    Raises:
        UserError: it is unreadable, or lacks or does not hold what every table needs.
    """
    advice = "Delete that run folder and train again, or leave it out."
    try:
        summary = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected the summary of a run, found {error}. {advice}") from error
    missing = [key for key in _NEEDED if key not in summary] if isinstance(summary, dict) else list(_NEEDED)
    missing += [
        f"{part} as a table" for part in ("train", "val") if not missing and not isinstance(summary[part], dict)
    ]
    if missing:
        raise UserError(f"{file}: expected the summary of a run, found none of {', '.join(missing)}. {advice}")
    try:
        _row(summary)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: expected the summary of a run, found {error}. {advice}") from error
    return {**summary, "folder": str(file.parent)}


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    """Of a summary what the table has, but for the comparison with the others.

    Raises:
        AttributeError, TypeError, ValueError: a figure is none.
    """
    train, val, test = summary["train"], summary["val"], summary.get("test") or {}
    return {
        "run": str(summary["run"]),
        "model": str(summary["model"]),
        "unfreeze": str(summary["unfreeze"]),
        "scheduler": str(summary["scheduler"]),
        "seed": summary["seed"],
        "trained_weights": int(count(summary["trained_weights"])),
        "epochs": count(summary["epochs_run"]),
        "best_epoch": count(summary["best_epoch"]),
        "monitor": str(summary["monitor"]),
        "train_loss": number(train.get("loss")),
        "train_accuracy": share(train.get("accuracy")),
        "val_loss": number(val.get("loss")),
        **_measured("val", val, ("accuracy", "precision", "recall", "f1", "auroc")),
        **_measured("test", test, ("accuracy", "auroc")),
        "n_val": count(val.get("n")),
        "val_prevalence": share(val.get("prevalence")),
        "val_majority": share(val.get("majority")),
        "n_test": count(test.get("n")),
        "test_prevalence": share(test.get("prevalence")),
        "test_majority": share(test.get("majority")),
        "seconds": number(summary["seconds"]),
    }


def _against_best(folders: Sequence[str]) -> pd.DataFrame:
    """against_best, p_accuracy and p_auroc of runs in their folders ("": none), the best one first."""
    judged = [_predictions(folder) for folder in folders]
    best, rows = judged[0] if judged else None, []
    for place, run in enumerate(judged):
        if place == 0:
            rows.append((BEST, math.nan, math.nan))
        elif best is None or run is None or not run[["path", "label"]].equals(best[["path", "label"]]):
            rows.append(("", math.nan, math.nan))
        else:
            labels = run["label"].to_numpy()
            accuracy = mcnemar(labels, run["prediction"].to_numpy(), best["prediction"].to_numpy()).p_value
            area = math.nan
            if min(np.bincount(labels, minlength=2)) >= 2:
                area = delong(labels, run["probability"].to_numpy(), best["probability"].to_numpy()).p_value
            rows.append((APART if np.nanmin([accuracy, area]) < _CHANCE else ALIKE, accuracy, area))
    return pd.DataFrame(rows, columns=["against_best", "p_accuracy", "p_auroc"])


def _predictions(folder: str) -> pd.DataFrame | None:
    """What a run said of its validation images, in the order of their paths; None where that cannot be read."""
    if not folder:
        return None
    columns = {"path": str, "label": int, "probability": float, "prediction": int}
    try:
        expect_file(Path(folder) / "val_predictions.csv")
        table = pd.read_csv(
            Path(folder) / "val_predictions.csv", usecols=list(columns), dtype=columns, keep_default_na=False
        )
        scores(table["label"].to_numpy(), table["probability"].to_numpy())  # refuses what is no prediction
    except (OSError, ValueError, OverflowError):
        return None
    if not table["prediction"].isin((0, 1)).all():
        return None
    return table.sort_values("path", ignore_index=True)


def _measured(part: str, block: dict[str, Any], measures: Sequence[str]) -> dict[str, float]:
    """part_m, part_m_low and part_m_high for each measure m."""
    columns = {}
    intervals = block.get("intervals") or {}
    for measure in measures:
        low, high = intervals.get(measure) or (None, None)
        columns[f"{part}_{measure}"] = share(block.get(measure))
        columns[f"{part}_{measure}_low"] = share(low)
        columns[f"{part}_{measure}_high"] = share(high)
    return columns


def number(value: Any, low: float = -_HUGE, high: float = _HUGE) -> float:
    """JSON has null where a figure is undefined; a table of numbers has NaN.

    Raises:
        ValueError: it is something else, or outside of what such a figure can be.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{reprlib.repr(value)} where a number is expected")
    return float(value)


def share(value: Any) -> float:
    """A number in [0, 1], or NaN, as `number`."""
    return number(value, -1e-6, 1 + 1e-6)  # as far as rounding goes


def count(value: Any) -> float:
    """A whole number of at least 0, or NaN, as `number`."""
    found = number(value, 0)
    if found % 1 > 0:  # not so of NaN, which stays
        raise ValueError(f"{found} where a whole number is expected")
    return found


def notes(table: pd.DataFrame) -> list[str]:
    """What one must know to read the figures."""
    monitors = " or ".join(sorted(map(_escaped, set(table["monitor"]))))
    return [
        _images(table, "val", "Validation"),
        _images(table, "test", "Test"),
        f"Figures of the best epoch by {monitors}, epochs counted from 0, lowest validation loss first; the "
        f"train columns are running averages of that epoch.",
        "Fake is the positive class, threshold 0.5; [ ]: 95 % stratified bootstrap interval over the images, "
        "which does not hold the spread between seeds.",
        *([_AGAINST] if (table["against_best"] == ALIKE).any() or (table["against_best"] == APART).any() else []),
    ]


def _images(table: pd.DataFrame, part: str, name: str) -> str:
    """Number of images, prevalence and majority baseline of one part; a warning where runs differ in it."""
    columns = [f"n_{part}", f"{part}_prevalence", f"{part}_majority"]
    parts = table[columns].drop_duplicates().dropna()
    told = "; or ".join(
        f"{n:,.0f} images, {100 * prevalence:.1f} % fake, majority-class baseline {majority:.3f}"
        for n, prevalence, majority in parts.itertuples(index=False)
    )
    warning = " The runs were not judged on the same images: compare with care." if len(parts) > 1 else ""
    return f"{name}: {told or 'not told'}.{warning}"


def epochs_told(row: dict[Any, Any]) -> str:
    """12 (8): how many, and the best; a dash for what was never trained itself, such as an ensemble."""
    return _NONE if pd.isna(row["epochs"]) else f"{row['epochs']} ({row['best_epoch']})"


def _decimal(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}" if math.isfinite(value) else _NONE


def _interval(row: dict[Any, Any], column: str, between: str = " ") -> str:
    """0.913 [0.884, 0.938], without the bracket where there is no interval."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    bracket = f"{between}[{_decimal(low)}, {_decimal(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return _decimal(row[column]) + bracket


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _printable(text: str) -> str:
    """One line, without the control characters that would move a terminal's cursor or end a table row."""
    return "".join(character if character.isprintable() else " " for character in text)


def _escaped(text: str) -> str:
    """For a Markdown cell: a pipe would end it, and the others would start markup."""
    return re.sub(r"([\\|`*<\[])", r"\\\1", _printable(text))


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
