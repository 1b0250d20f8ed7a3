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
from deepfake.console import interval, log, logging_to_terminal, named, say_error, terminal
from deepfake.data.catalog import parents, safe_csv
from deepfake.dataset import catalogue
from deepfake.errors import UserError
from deepfake.evaluation.generators import ALL, ALONE, WITHOUT, WORST, Fold, generators_table, matrix, summary
from deepfake.files import as_json, write_json, write_text
from deepfake.reporting.evaluation_figures import matrix_figure
from deepfake.reporting.figures import save
from deepfake.training import train
from deepfake.untrusted import read_json

FAILED = 1  # exit status: some trainings are missing


def generalise(cfg: GeneraliseConfig) -> int:
    """See `deepfake.generalise.run`."""
    began = time.monotonic()
    with logging_to_terminal():
        generators, cfg.pairs = _sources(cfg)
        output = _output(cfg)
        runs.expect_writable(output)
    planned = _planned(cfg, generators)
    folds, told, failed = [], [], []
    for number, (protocol, generator, held_out) in enumerate(planned, start=1):
        name = Fold(protocol, generator, 0.5, pd.DataFrame()).name
        terminal(stderr=True).rule(named(f"training {number} of {len(planned)}: {name}"), align="left")
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


def _sources(cfg: GeneraliseConfig) -> tuple[list[str], dict[str, str]]:
    """The fake sources, and each one's real source as `pairs` or else the manifest says.

    Raises:
        UserError: there are fewer than two, or `pairs` names a source that is not there, or not in the test part.
    """
    table = catalogue(cfg.data, cfg.trainer.progress).table
    table = table[table["status"] != "unreadable"]
    reals, fakes = (sorted(set(table.loc[table["label"] == label, "source"])) for label in (0, 1))
    if len(fakes) < 2:
        raise UserError(
            f"data: expected at least two fake sources, one to leave out and one to train on, found {len(fakes)}: "
            f"{', '.join(fakes)}. Give each generator a folder of its own."
        )
    # Every training tests what the one on all generators tests, and whole generators that are held out besides.
    tested = table[table["split"] == "test"]
    if cfg.pairs is None:
        named = parents(table).items()
        return fakes, {fake: real for fake, real in named if {fake, real} <= set(tested["source"])}
    for fake, real in cfg.pairs.items():
        for label, kind, name, known in ((1, "fake", fake, fakes), (0, "real", real, reals)):
            refused = f"pairs={cfg.pairs} is refused: expected {kind} sources"
            if name not in known:
                raise UserError(f"{refused} out of {', '.join(known)}, found {name}.")
            there = sorted(set(tested.loc[tested["label"] == label, "source"]))
            if name not in there:
                raise UserError(
                    f"{refused} with images in the test part ({', '.join(there) or 'none'}), found {name}, whose "
                    f"images are all in others. Leave the pair out, or give {name} more images or a split with some."
                )
    return fakes, cfg.pairs


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
    calibration = read_json(run / runs.SUMMARY)["calibration"]
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
    found, means = matrix(table), summary(table, folds)
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
        write_json(output / "summary.json", as_json(content))
    except OSError as error:
        raise runs.unwritable(output, error.strerror) from error
    at = "P(fake) > .5" if cfg.threshold == "half" else f"{cfg.threshold} of each training's validation"
    _print(
        table, f"{of}; threshold: {at}; majority: accuracy of always naming the larger class; [ ]: 95 %, over images"
    )
    for protocol, entry in means.items():
        log.info("%s: %s", protocol, told(entry))
    log.info("%s", output)


def told(entry: Mapping[str, Any]) -> str:
    """In one sentence, what a protocol found of generators that its trainings had not seen (`summary`)."""
    gap = entry["auroc_gap_mean"]
    lost = "" if gap is None else f" (gap to in distribution {gap:+.3f}{interval(entry, 'auroc_gap_mean', '+.3f')})"
    return (
        f"AUROC on unseen generators {entry['auroc_mean']:.3f}{interval(entry, 'auroc_mean')} on average{lost}; "
        f"lowest {entry['auroc_min']:.3f} on {entry['auroc_min_tested']}, trained on "
        f"{entry['auroc_min_trained_on']}; [ ]: 95 %, over images, not over generators or seeds"
    )


def _print(table: pd.DataFrame, caption: str) -> None:
    """Seen sources of one fold alone are left to the file: what is asked is what was never seen."""
    shown = Table(
        title=Text("Generators"), title_justify="left", box=box.SIMPLE_HEAD, caption=Text(caption),
        caption_justify="left", padding=0,
    )  # fmt: skip
    for name in ("trained on", "tested on"):
        shown.add_column(name)
    for name in ("images\nfake", "majority\nthreshold", "AUROC", "AP", "acc .5", "acc val", "FNR", "FPR", "gap"):
        shown.add_column(name, justify="right")
    for row in table.to_dict("records"):
        if row["seen"] and row["protocol"] != ALL:
            continue
        shown.add_row(named(row["trained_on"]), named(_tested(row)), *_cells(row))
    terminal().print(shown)


def _tested(row: Mapping[Any, Any]) -> str:
    return str(row["tested"]) if pd.isna(row["parent"]) else f"{row['tested']} against {row['parent']}"


def _cells(row: Mapping[Any, Any]) -> list[Text]:
    cells = [f"{row['images']:,} / {row['reals']:,}\n{row['prevalence']:.1%}"]
    cells += [f"{row['majority']:.3f}\n{row['threshold']:.3f}"]
    for name in WORST:
        short = interval(row, name).replace("0.", ".")  # so that two lines are enough
        cells.append("-" if pd.isna(row[name]) else f"{row[name]:.3f}\n{short.strip()}")
    cells.append("" if pd.isna(row["auroc_gap"]) else f"{row['auroc_gap']:+.3f}")
    return [Text(cell) for cell in cells]  # a plain string would be read as markup
