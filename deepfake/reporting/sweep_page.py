"""report.html of runs compared: all of them in one table that sorts, what is noise in grey, what failed and why."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from deepfake.console import visible
from deepfake.files import write_text
from deepfake.reporting.charts import Scale
from deepfake.reporting.comparison import ALIKE, APART, BEST, compared, epochs_told, notes
from deepfake.reporting.figures import count_text
from deepfake.reporting.pages import Figure, render
from deepfake.reporting.run_page import REPORT
from deepfake.runs import SUMMARY

_FIGURES = ("val_accuracy", "val_f1", "val_auroc", "test_accuracy", "test_auroc")
_MESSAGE = 2000  # characters of what a job says of its failure


def write_sweep_page(
    summaries: list[dict[str, Any]], folder: Path, missing: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write the page of some runs, whole or not at all; it asks for nothing over the network.

    Args:
        summaries: at least one, as from `comparison.load_runs`.
        folder: where the page goes. Of a run that has its own page in its folder there is a link to it, relative, so
            that all of them can be moved together.
        missing: jobs of a sweep without a completed run: number, overrides, status and message.

    Returns:
        The file: report.html, or comparison.html where the folder is itself that of a run, whose report.html is its
        own.

    Raises:
        OSError: it cannot be written.
    """
    table = compared(summaries)
    best = table.iloc[0]
    rows = []
    for row in table.to_dict("records"):
        judged = {name: Figure(*(row[f"{name}{end}"] for end in ("", "_low", "_high"))) for name in _FIGURES}
        compared_to_best = row["against_best"] in (ALIKE, APART)
        differences = {
            f"{name}_difference": Figure(row[name] - best[name] if compared_to_best else math.nan)
            for name in ("val_accuracy", "val_auroc")
        }
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **judged,
                **differences,
                "kind": {BEST: "chosen", ALIKE: "noise"}.get(row["against_best"], ""),
                "weights": count_text(row["trained_weights"]),
                "epochs_told": epochs_told(row),
                "epochs_sortable": math.nan if pd.isna(row["epochs"]) else float(row["epochs"]),
                "link": _link(row["folder"], folder),
            }
        )
    content = render(
        "sweep.html",
        place=str(Path(folder).absolute()),
        rows=rows,
        scale=Scale.of([row[name] for row in rows for name in ("val_accuracy", "val_auroc")]),
        test_scale=Scale.of([row[name] for row in rows for name in ("test_accuracy", "test_auroc")]),
        notes=notes(table),
        missing=[
            {name: visible(str(job[name]))[:_MESSAGE] for name in ("number", "overrides", "status", "message")}
            for job in missing
        ],
    )
    file = Path(folder) / ("comparison.html" if (Path(folder) / SUMMARY).exists() else REPORT)
    write_text(file, content)
    return file


def _link(run: str, folder: Path) -> str:
    """Address of a run's page as seen from `folder`; "" where it has none."""
    page = Path(run) / REPORT
    # In percent codes whatever a folder is called, it cannot become another kind of address.
    return quote(os.path.relpath(page, folder)) if run and page.is_file() else ""
