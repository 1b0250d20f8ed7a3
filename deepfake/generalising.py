"""One generalisation test from settings to its matrix: many trainings, all tested on the same real images."""

import copy
import hashlib
import json
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from deepfake import runs
from deepfake.config import GeneraliseConfig, TrainConfig
from deepfake.console import log, logging_to_terminal, say_error, terminal
from deepfake.data.catalog import safe_csv
from deepfake.dataset import catalogue
from deepfake.errors import UserError
from deepfake.evaluating import _plain
from deepfake.evaluation.generators import ALL, ALONE, WITHOUT, Fold, generators_table, matrix, summary
from deepfake.files import write_json, write_text
from deepfake.reporting.evaluation_figures import matrix_figure
from deepfake.reporting.figures import save
from deepfake.training import train

FAILED = 1  # exit status: some trainings are missing


def generalise(cfg: GeneraliseConfig) -> int:
    """See `deepfake.generalise.run`."""
    began = time.monotonic()
    with logging_to_terminal():
        generators = _generators(cfg)
        output = _output(cfg)
        runs.expect_writable(output)
    planned = _planned(cfg, generators)
    folds, told, failed = [], [], []
    for number, (protocol, generator, held_out) in enumerate(planned, start=1):
        name = Fold(protocol, generator, 0.5, pd.DataFrame()).name
        terminal(stderr=True).rule(f"training {number} of {len(planned)}: {name}", align="left")
        started = time.monotonic()
        settings = _training(cfg, held_out)
        try:
            train(settings)
            folds.append(_fold(cfg, protocol, generator, runs.run_folder(settings)))
        except Exception as error:  # whatever it is, the other trainings are worth having
            failed.append(
                {"trained_on": name, "message": str(error) if isinstance(error, UserError) else repr(error)}
            )
            if isinstance(error, UserError):
                say_error(str(error))
            else:
                traceback.print_exc()
            continue
        seconds = round(time.monotonic() - started, 1)
        told.append({"trained_on": name, "run": str(runs.run_folder(settings)), "seconds": seconds})
    with logging_to_terminal():
        if folds:
            report = {"trainings": told, "failed": failed, "seconds": round(time.monotonic() - began, 1)}
            _report(cfg, output, folds, report)
    for entry in failed:
        say_error(f"{entry['trained_on']}: {entry['message']}")
    if failed:
        say_error(f"{len(failed)} of {len(planned)} trainings failed; the others are complete.")
        say_error("Run the same command again: only what is missing is run.")
    return FAILED if failed else 0


def _generators(cfg: GeneraliseConfig) -> list[str]:
    """The fake sources.

    Raises:
        UserError: there are fewer than two, or `pairs` names a source that is not there.
    """
    table = catalogue(cfg.data, cfg.trainer.progress).table
    table = table[table["status"] != "unreadable"]
    reals, fakes = (sorted(set(table.loc[table["label"] == label, "source"])) for label in (0, 1))
    if len(fakes) < 2:
        raise UserError(
            f"data: expected at least two fake sources, one to leave out and one to train on, found {len(fakes)}: "
            f"{', '.join(fakes)}. Give each generator a folder of its own."
        )
    for fake, real in (cfg.pairs or {}).items():
        for kind, name, known in (("fake", fake, fakes), ("real", real, reals)):
            if name not in known:
                raise UserError(
                    f"pairs={cfg.pairs} is refused: expected {kind} sources out of {', '.join(known)}, found {name}."
                )
    return fakes


def _planned(cfg: GeneraliseConfig, generators: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Of each training its protocol, its generator and the sources that are held out."""
    planned: list[tuple[str, str, list[str]]] = [(ALL, "", [])]
    if cfg.protocol in (WITHOUT, "both"):
        planned += [(WITHOUT, one, [one]) for one in generators]
    if cfg.protocol in (ALONE, "both"):
        planned += [(ALONE, one, [other for other in generators if other != one]) for one in generators]
    return planned


def _training(cfg: GeneraliseConfig, held_out: list[str]) -> TrainConfig:
    """The very settings that `deepfake.train` would have, so that the same runs are found."""
    settings = TrainConfig(**{each.name: copy.deepcopy(getattr(cfg, each.name)) for each in fields(TrainConfig)})
    settings.data.hold_out = held_out
    return settings


def _fold(cfg: GeneraliseConfig, protocol: str, generator: str, run: Path) -> Fold:
    """What a finished training said of its test part.

    Raises:
        UserError: it was not calibrated.
    """
    calibration = json.loads((run / runs.SUMMARY).read_text())["calibration"]
    if calibration is None:
        raise UserError(f"{run}: expected a calibrated run, found a try of a few batches. Train it whole.")
    predictions = pd.read_csv(run / "test_predictions.csv", keep_default_na=False, float_precision="round_trip")
    for column in ("path", "source"):
        predictions[column] = predictions[column].str.removeprefix("'")  # which stands before a formula
    return Fold(protocol, generator, calibration["thresholds"][cfg.threshold]["value"], predictions)


def _output(cfg: GeneraliseConfig) -> Path:
    decided = [runs.run_key(_training(cfg, [])), cfg.protocol, cfg.threshold, cfg.pairs]
    key = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:8]
    return Path(cfg.output_dir).expanduser() / f"generalise-{key}"


# ---------------------------------------------------------------------------------------------------------- report


def _report(cfg: GeneraliseConfig, output: Path, folds: Sequence[Fold], report: dict[str, Any]) -> None:
    try:
        table = generators_table(folds, cfg.pairs)
    except ValueError as error:
        raise UserError(f"{output}: {error}. Train again with force=true.") from error
    found, means = matrix(table), summary(table)
    fewest, most = table["images"].min(), table["images"].max()
    of = f"{fewest:,} to {most:,} images a generator, {table['reals'].max():,} real test images, the same for all"
    content = {
        "protocol": cfg.protocol,
        "threshold": {"name": cfg.threshold, "from": "fixed" if cfg.threshold == "half" else "validation of each"},
        "summary": means,
        "test_reals": int(table["reals"].max()),
        **report,
        "command": shlex.join(["python", "-m", "deepfake.generalise", *sys.argv[1:]]),
    }
    try:
        write_text(output / "generators.csv", safe_csv(table))
        write_text(output / "matrix.csv", safe_csv(found.reset_index()))
        save(matrix_figure(found, f"AUROC by generator: {of}", "AUROC"), output / "matrix.png")
        write_json(output / "summary.json", _plain(content))
    except OSError as error:
        raise runs.unwritable(output, error.strerror) from error
    _print(table, of)
    for protocol, entry in means.items():
        gap = "" if entry["gap_mean"] is None else f" (gap to in distribution {entry['gap_mean']:+.3f})"
        log.info(
            "%s: AUROC on unseen generators %.3f on average%s; lowest %.3f on %s, trained on %s", protocol,
            entry["auroc_mean"], gap, entry["auroc_min"], entry["auroc_min_tested"], entry["auroc_min_trained_on"],
        )  # fmt: skip
    log.info("%s", output)


def _print(table: pd.DataFrame, of: str) -> None:
    """Seen sources of one fold alone are left to the file: what is asked is what was never seen."""
    shown = Table(title=Text("Generators"), title_justify="left", box=box.SIMPLE_HEAD, caption=Text(of))
    for name in ("trained on", "tested on"):
        shown.add_column(name)
    for name in ("images", "AUROC", "95 %", "AP", "acc .5", "acc val", "FNR", "FPR", "gap"):
        shown.add_column(name, justify="right")
    for row in table.to_dict("records"):
        if row["seen"] and row["protocol"] != ALL:
            continue
        shown.add_row(Text(str(row["trained_on"])), Text(_tested(row)), *_cells(row))
    terminal().print(shown)


def _tested(row: Mapping[Any, Any]) -> str:
    return str(row["tested"]) if pd.isna(row["parent"]) else f"{row['tested']} against {row['parent']}"


def _cells(row: Mapping[Any, Any]) -> list[str]:
    return [
        f"{row['images']:,} / {row['reals']:,}",
        f"{row['auroc']:.3f}",
        f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}",
        *(f"{row[name]:.3f}" for name in ("ap", "accuracy_half", "accuracy_threshold", "fnr", "fpr")),
        "" if pd.isna(row["gap"]) else f"{row['gap']:+.3f}",
    ]
