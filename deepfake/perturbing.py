"""One robustness test from settings to its report: the same images as they are, and after each perturbation."""

import hashlib
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from deepfake import runs
from deepfake.config import EvaluateConfig, RobustnessConfig
from deepfake.console import interval, log, logging_to_terminal, named, progress, terminal, visible
from deepfake.data.catalog import limit_images, safe_csv
from deepfake.data.images import UnreadableImage
from deepfake.data.perturbations import Perturbation, grid, perturb
from deepfake.errors import UserError
from deepfake.evaluating import SEEN, UNJUDGED, Images, catalogued_pixels, images_to_judge, output_folder
from deepfake.evaluation.robustness import BIASED, one_sided_flips, robustness_table, summary
from deepfake.files import as_json, write_json, write_text
from deepfake.judging import Detector
from deepfake.predicting import _weights
from deepfake.reporting import board
from deepfake.reporting.evaluation_figures import robustness_figure
from deepfake.reporting.figures import save
from deepfake.reporting.run_page import write_run_page
from deepfake.untrusted import expect_file

RECOMPRESSION = Perturbation("jpeg", 95)  # what is done to one class alone; high enough not to be seen

_FORMAT = 1  # of a part; another number has all images judged again
_KEPT = 10**9  # bytes of decoded originals; what is beyond is decoded anew for each perturbation
_COLUMNS = ("path", "source", "label", "sha256", "status", "reason", "margin", "probability")


def judge_perturbed(cfg: RobustnessConfig) -> int:
    """See `deepfake.robustness.run`."""
    began = time.monotonic()
    folder = Path(cfg.run).expanduser()
    with logging_to_terminal():
        runs.expect_complete(folder)
        images = images_to_judge(EvaluateConfig(data=cfg.data, run=str(folder), progress=cfg.progress), [folder])
        output = output_folder(cfg.output, "robustness", folder, images, cfg.tta)
        runs.expect_writable(output, "output")
        status = images.table["status"]
        table = limit_images(images.table[~status.isin(("unreadable", SEEN))], cfg.limit)
        detector = Detector.load(folder, cfg.engine, cfg.tta)
        parts = output / "parts" / _key(cfg, folder, table)
        try:
            clean, answers = _answers(cfg, detector, images, table, parts)
        except OSError as error:
            raise runs.unwritable(output, error.strerror, "output") from error
        lost = clean["status"] != "ok"
        if lost.all():
            raise UserError(
                f"{images.root}: expected images that can be judged, found none among {len(images.table)}. Name "
                f"others with data.root=FOLDER."
            )
        before = status[status.isin(("unreadable", SEEN))]
        not_judged = pd.concat([before, clean.loc[lost, "status"]]).value_counts().to_dict()
        report = _report(cfg, detector, clean, answers) | {
            "run": folder.name,
            "data": {"root": str(images.root.absolute()), "what": images.of, "limit": cfg.limit},
            "not_judged": not_judged,
            "tta": cfg.tta,
            "answers": str(parts.relative_to(output)),
            "seconds": round(time.monotonic() - began, 1),
            "command": shlex.join(["python", "-m", "deepfake.robustness", *sys.argv[1:]]),
        }
        picture = _write(output, report, f"{images.of}, {folder.name}", folder if cfg.output is None else None)
        if (dashboard := board.dashboard(folder)) is not None:
            try:
                _to_tensorboard(dashboard, output.name, report["summary"], picture)
            except OSError as error:
                raise runs.unwritable(dashboard, error.strerror, "run") from error
        return UNJUDGED if set(not_judged) - {SEEN} else 0


def _key(cfg: RobustnessConfig, folder: Path, table: pd.DataFrame) -> str:
    """Eight hexadecimal digits of all that decides an answer: parts of another key are never taken for these."""
    images = list(zip(table["path"], table["sha256"], strict=True))
    decided = [_FORMAT, _weights(folder), images, cfg.tta, cfg.engine]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:8]


# --------------------------------------------------------------------------------------------------------- answers


@dataclass
class _Originals:
    """Decoded images, kept while there is room, for each is perturbed many times. Several threads may ask."""

    images: Images
    room: int = _KEPT
    _kept: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pixels(self, path: str, sha256: str) -> NDArray[np.uint8]:
        if path in self._kept:
            return self._kept[path]
        pixels = catalogued_pixels(self.images, path, sha256)
        with self._lock:
            if pixels.nbytes <= self.room and path not in self._kept:
                self.room -= pixels.nbytes
                self._kept[path] = pixels
        return pixels


def _answers(
    cfg: RobustnessConfig, detector: Detector, images: Images, table: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, dict[Perturbation, pd.DataFrame]]:
    """Answers to the images as they are and after each perturbation, asked for where `folder` has them not yet.

    Raises:
        OSError: they cannot be written.
    """
    wanted = [each for each in grid() if cfg.perturbations is None or each.kind in cfg.perturbations]
    wanted = [*wanted, *([] if RECOMPRESSION in wanted else [RECOMPRESSION])]
    originals = _Originals(images)
    with progress("images", len(table) * (1 + len(wanted)), cfg.progress) as advance:

        def ask(perturbation: Perturbation | None) -> pd.DataFrame:
            file = folder / (f"{perturbation.kind}_{perturbation.strength:g}.csv" if perturbation else "clean.csv")
            found = _read_part(file, table)
            if found is None:
                found = _judged(detector, originals, table, perturbation, cfg.batch_size, advance)
                write_text(file, safe_csv(found))
            else:
                for _ in range(len(table)):
                    advance()
            return found

        return ask(None), {perturbation: ask(perturbation) for perturbation in wanted}


def _judged(
    detector: Detector,
    originals: _Originals,
    table: pd.DataFrame,
    perturbation: Perturbation | None,
    batch_size: int,
    advance: Callable[[], None],
) -> pd.DataFrame:
    """One row an image, `_COLUMNS`."""

    def read(image: tuple[str, str]) -> NDArray[np.uint8]:
        path, sha256 = image
        pixels = originals.pixels(path, sha256)
        if perturbation is None:
            return pixels
        try:
            return perturb(pixels, perturbation, sha256)
        except ValueError as error:
            raise UnreadableImage(f"cannot be perturbed: {error}") from error

    answers = []
    coming = zip(table["path"], table["sha256"], strict=True)
    for answer in detector.judge(coming, read, batch_size):
        answers.append(answer)
        advance()
    found = table[["path", "source", "label", "sha256"]].reset_index(drop=True)
    found = found.assign(margin=[answer.margin for answer in answers])
    return pd.concat([found, detector.table(answers)], axis=1)[list(_COLUMNS)]


def _read_part(file: Path, table: pd.DataFrame) -> pd.DataFrame | None:
    """What an earlier test wrote of these very images; None where there is nothing whole."""
    numbers = {"margin": float, "probability": float}
    try:
        expect_file(file)
        found = pd.read_csv(file, keep_default_na=False, dtype=numbers, na_values=dict.fromkeys(numbers, ""),
                            float_precision="round_trip")[list(_COLUMNS)]  # fmt: skip
    except (OSError, ValueError, KeyError):
        return None
    same = all(found[column].tolist() == table[column].tolist() for column in ("sha256", "label"))
    return found if same and found["probability"].dropna().between(0, 1).all() else None


# ---------------------------------------------------------------------------------------------------------- report


def _report(
    cfg: RobustnessConfig, detector: Detector, clean: pd.DataFrame, answers: Mapping[Perturbation, pd.DataFrame]
) -> dict[str, Any]:
    threshold = detector.calibration.thresholds[cfg.threshold].value
    labels = clean["label"].to_numpy()
    p = {each: found["probability"].to_numpy() for each, found in answers.items()}
    recompressed = p.pop(RECOMPRESSION)
    lost = [each.name for each, found in p.items() if np.isnan(found).all()]
    if lost:
        log.warning("no image can be judged after %s: left out of the table", ", ".join(lost))
    told = {(each.kind, each.strength): found for each, found in p.items() if each.name not in lost}
    before = clean["probability"].to_numpy()
    margins: dict[tuple[str, float] | None, NDArray] = {None: clean["margin"].to_numpy()}
    margins |= {(each.kind, each.strength): found["margin"].to_numpy() for each, found in answers.items()}
    table = robustness_table(labels, before, told, threshold, margins=margins)
    return {
        "threshold": {
            "name": cfg.threshold,
            "value": threshold,
            "from": "fixed" if cfg.threshold == "half" else "validation of the run",
        },
        "summary": summary(table),
        "recompression": {"perturbation": RECOMPRESSION.name}
        | one_sided_flips(labels, before, recompressed, threshold),
        "rows": table.to_dict("records"),
    }


def _write(output: Path, report: Mapping[str, Any], of: str, run: Path | None) -> bytes | None:
    """The report, and the page of the run in whose folder it lies; returns the picture, where there is a curve."""
    table = pd.DataFrame(report["rows"])
    clean, threshold = table.iloc[0], report["threshold"]
    caption = (
        f"{clean['images']:,} images, {clean['prevalence']:.1%} fake, always the larger class "
        f"{clean['majority']:.3f}; threshold {threshold['name']} = {threshold['value']:.3f} ({threshold['from']})"
    )
    picture = None
    try:
        told = {"threshold": threshold["value"], "threshold_from": threshold["from"]}
        write_text(output / "robustness.csv", safe_csv(table.assign(**told)))
        write_json(output / "robustness.json", as_json(report))
        if len(table) > 1:
            picture = save(robustness_figure(table, f"Robustness, {of}: {caption}"), output / "robustness.png")
        if run is not None:
            write_run_page(run)
    except OSError as error:
        raise runs.unwritable(output, error.strerror, "output") from error
    _print(table, report["summary"], f"{caption}; [ ]: 95 % intervals over the images", of)
    log.info("%s", recompression_told(report["recompression"]))
    log.info("%s", output)
    return picture


def _to_tensorboard(dashboard: Path, name: str, found: Mapping[str, Any], picture: bytes | None) -> None:
    """Means over the grid and what they are away from clean images: a figure a run, to be compared by."""
    name = visible(name)
    figures = {f"{name}/mean_{measure}": value for measure, value in found["mean"].items()}
    figures |= {f"{name}/mean_{measure}_change": value for measure, value in found["mean_change"].items()}
    if found["lowest_auroc"] is not None:
        figures[f"{name}/lowest_auroc"] = found["lowest_auroc"]["auroc"]
    with board.part(dashboard, name) as writer:
        board.add_scalars(writer, figures)
        if picture is not None:
            board.add_picture(writer, f"{name}/grid", picture)


def recompression_told(found: Mapping[str, Any]) -> str:
    """In one sentence, what recompressing one class alone did (`one_sided_flips`)."""
    shares = ", ".join(
        f"{found[name]['share']:.1%}{interval(found[name], 'share', '.1%')} of {found[name]['images']:,} ({name})"
        for name in ("fakes only", "reals only", "both")
        if found[name]["images"]
    )
    flips = f"{found['perturbation']} flips {shares}"
    if np.isnan(found["difference"]):
        return f"{flips}; with images of one class alone, nothing is told of bias"
    low, difference, high = (100 * found[name] for name in ("difference_low", "difference", "difference_high"))
    points, limit = f"{difference:.1f} points [{low:.1f}, {high:.1f}] between one side and both", 100 * BIASED
    verdict = "no sign of bias"
    if found["biased"]:
        verdict = f"more than {limit:.0f}: the answers depend on which class was compressed, a bias"
    if not found["certain"]:
        why = f"the interval includes {limit:.0f}" if high >= limit else "too few images"
        verdict += f", but not certain: {why}"
    return f"{flips}; {points}, {verdict}"


def _figure(row: Mapping[Any, Any], name: str, digits: str) -> Text:
    """The figure and, on a line of its own without leading zeros, its interval; a dash where it is undefined."""
    if np.isnan(row[name]):
        return Text("\N{EN DASH}")
    short = interval(row, name, digits).replace("0.", ".").strip()
    return Text(f"{row[name]:{digits}}\n{short}")


def _print(table: pd.DataFrame, means: Mapping[str, Any], caption: str, of: str) -> None:
    shown = Table(
        title=named(f"Robustness, {of}"), title_justify="left", box=box.SIMPLE_HEAD, caption=named(caption),
        caption_justify="left", padding=0,
    )  # fmt: skip
    shown.add_column("perturbation")
    for name in ("images", "AUROC", "change", "accuracy", "change", "TPR", "change", "FPR", "change"):
        shown.add_column(name, justify="right")
    names = ("auroc", "accuracy", "tpr", "fpr")
    for row in table.to_dict("records"):
        clean = row["kind"] == "clean"
        cells: list[Text | str] = []
        for name in names:
            cells += [_figure(row, name, ".3f"), "" if clean else _figure(row, f"{name}_change", "+.3f")]
        called = "clean" if clean else Perturbation(row["kind"], row["strength"]).name
        shown.add_row(called, f"{row['images']:,}", *cells, end_section=clean)
    if means["perturbations"]:
        mean, change = means["mean"], means["mean_change"]
        shown.add_section()
        shown.add_row(
            f"mean of {means['perturbations']}",
            "",
            *(cell for name in names for cell in (f"{mean[name]:.3f}", f"{change[name]:+.3f}")),
        )
    terminal().print(shown)
