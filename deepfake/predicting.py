"""One prediction from settings to a table: a finished run, any number of images, one row a file.

Rows go to OUTPUT.partial as they come, a line of JSON each, below a first line that says what they are answers to.
The same command goes on from there; only at the end OUTPUT is made of it. Nothing is held in memory that grows with
the files, but the names in one folder and, where folders say labels, eight bytes or so an image for the scores.
"""

import csv
import fcntl
import hashlib
import itertools
import json
import math
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deepfake.config import PredictConfig
from deepfake.console import log, logging_to_terminal, terminal
from deepfake.data.catalog import safe_csv
from deepfake.data.images import SUFFIXES, UnreadableImage
from deepfake.data.layouts import find_images, neutral_path
from deepfake.errors import UserError
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.evaluation.sources import by_source, summary
from deepfake.files import write_json
from deepfake.judging import Detector, Judged, pixels_of
from deepfake.reporting.evaluation_figures import mistakes_sheet
from deepfake.reporting.figures import save
from deepfake.runs import BEST, ENSEMBLE

UNJUDGED = 3  # exit status: done, with files that could not be judged
_FORMAT = 1  # raise when what a line of the unfinished file holds changes
_COLUMNS = ("path", "status", "reason", "probability", "verdict", "uncertain")
_CHUNK = 4096  # rows that become CSV at once
_SHOWN = 512  # pixels of the longer side of a picture in the sheet
_MEASURED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "ap", "eer")
_DRAWS = 20_000_000  # images drawn by the bootstrap in all: a thousand resamples of 20,000 images


def predict(cfg: PredictConfig) -> int:
    """See `deepfake.predict.run`."""
    with logging_to_terminal():
        expect_images(cfg.input)
        detector = Detector.load(cfg.run, cfg.engine, cfg.tta, cfg.device)
        return judge_files(detector, cfg, _weights(Path(cfg.run).expanduser()))


def judge_files(detector: Detector, cfg: PredictConfig, weights: Sequence[str]) -> int:
    """Judge every file of the input and write the table, the sheet and, where folders say labels, the scores.

    Args:
        detector: as loaded by these settings.
        cfg: what is to be judged and where the answers go.
        weights: what tells these weights from any others, such as hashes of their files.

    Returns:
        See `deepfake.predict.run`.

    Raises:
        UserError: as there.
    """
    output = Path(cfg.output).expanduser()
    threshold = detector.calibration.thresholds[cfg.threshold]
    sheet, scored = (output.with_name(f"{output.stem}_{name}") for name in ("sheet.png", "scores.json"))

    def files() -> Iterator[Path]:
        return (file for file in input_files(cfg.input) if file.name != sheet.name or not _same(file, sheet))

    partial = output.with_name(f"{output.name}.partial")
    try:
        with _unfinished(partial) as stream:
            log.info("%s", _told_threshold(cfg.threshold, threshold.value))
            if threshold.warning:
                log.warning("threshold=%s: %s", cfg.threshold, threshold.warning)
            done = _resume(stream, partial, _began_by(cfg, weights), files())
            coming = itertools.islice(files(), done, None)
            with _progress(files, done, cfg.progress) as advance:
                for rows in _judged(detector, coming, cfg):
                    stream.write(b"".join(_line(row) for row in rows))
                    stream.flush()
                    advance(len(rows))
            counts = _finish(stream, output)
            for earlier in (sheet, scored):
                earlier.unlink(missing_ok=True)
            if cfg.sheet:
                save(_sheet(_rows(stream), files(), cfg), sheet)
            if root := _root(cfg.input):
                _score(_rows(stream), root, scored, cfg, threshold.value)
            partial.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output: expected a file that can be written, found {output} ({reason}).") from error
    failed = {status: counts[status, ""] for status, _ in counts if status != "ok"}
    log.info(
        "%s: %d files, %d called fake, %d real, %d not judged%s",
        output, counts.total(), counts["ok", "fake"], counts["ok", "real"], sum(failed.values()),
        "".join(f"; {status}: {count}" for status, count in sorted(failed.items())),
    )  # fmt: skip
    return UNJUDGED if failed else 0


def _judged(detector: Detector, files: Iterator[Path], cfg: PredictConfig) -> Iterator[list[dict[str, Any]]]:
    """Rows of the files, some at a time."""
    asked, answered = itertools.tee(files)  # apart by what is read ahead, no more
    answers = detector.judge(asked, lambda file: pixels_of(file, cfg.max_megapixels), cfg.batch_size)
    while chunk := list(itertools.islice(answers, cfg.batch_size)):
        yield _as_rows(detector, chunk, itertools.islice(answered, len(chunk)), cfg.threshold)


def _as_rows(
    detector: Detector, judged: Sequence[Judged], files: Iterable[Path], threshold: str
) -> list[dict[str, Any]]:
    table = detector.table(judged, threshold)
    table.insert(0, "path", [_shown_path(file) for file in files])
    columns = [table[name].tolist() for name in _COLUMNS]
    return [_finite(dict(zip(_COLUMNS, values, strict=True))) for values in zip(*columns, strict=True)]


def _told_threshold(name: str, value: float) -> str:
    chosen = "a fixed one" if name == "half" else "chosen on the run's validation images"
    return f'"fake" is said above P(fake) = {value:.4g}: threshold={name}, {chosen}; probabilities calibrated there'


# ----------------------------------------------------------------------------------------------------- what is judged


def input_files(given: str | Sequence[str]) -> Iterator[Path]:
    """The files that are meant, in the order given; none of them need be there.

    Args:
        given: an image, a CSV with the column path, or a list of images; or a folder: then all files below it that
            end as images do, links followed, sorted by path, with no more than one folder's names in memory.

    Raises:
        UserError: the CSV cannot be read.
    """
    if not isinstance(given, str):
        return (Path(file).expanduser() for file in given)
    place = Path(given).expanduser()
    if place.is_dir():
        return _below(str(place), (os.path.realpath(place),))
    if place.suffix.lower() == ".csv":
        return _named_in(place)
    return iter([place])


def expect_images(given: str | Sequence[str]) -> None:
    """Refuse early an input that names nothing.

    Raises:
        UserError: names it.
    """
    if isinstance(given, str) and not Path(given).expanduser().exists():
        raise UserError(f"input={given}: expected an image, a folder, a CSV or a list [A,B], found nothing there.")
    if next(input_files(given), None) is None:
        raise UserError(f"input={given}: expected images ({', '.join(SUFFIXES[:3])}, ...), found none.")


def _below(folder: str, above: tuple[str, ...]) -> Iterator[Path]:
    """Images below a folder; `above` holds where that and the folders above it really are."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    names.append(entry.name)
    except OSError:
        yield Path(folder)  # a row says that it cannot be read
        return
    for name in sorted(names):
        path = f"{folder}/{name}"
        if name not in folders:
            yield Path(path)
        elif (real := os.path.realpath(path)) not in above:  # a link back up would lead around for ever
            yield from _below(path, (*above, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _named_in(table: Path) -> Iterator[Path]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                yield table.parent / (row["path"] or "")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise UserError(f"input={table}: expected a CSV in UTF-8 with the column path, found {error!r}.") from error


def _root(given: str | Sequence[str]) -> Path | None:
    """Below which names of folders may say labels."""
    if not isinstance(given, str):
        return None
    place = Path(given).expanduser()
    if place.is_dir():
        return place
    return place.parent if place.suffix.lower() == ".csv" else None


def _shown_path(file: Path) -> str:
    """As a table can hold it: bytes that are no UTF-8 as \\xNN."""
    return neutral_path(os.fsencode(file).decode("utf-8", "backslashreplace"))


def _same(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


# ------------------------------------------------------------------------------------------------- unfinished answers


@contextmanager
def _unfinished(file: Path) -> Iterator[BinaryIO]:
    """The rows so far, to be read and written by this process alone.

    Raises:
        UserError: another process is at it.
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"output: expected a file that no other prediction writes, found {file} in use. Wait, or name "
                f"another with output=..."
            ) from error
        yield stream


def _began_by(cfg: PredictConfig, weights: Sequence[str]) -> dict[str, Any]:
    """All that decides an answer, but the files' contents."""
    given = [cfg.input] if isinstance(cfg.input, str) else cfg.input
    return {
        "format": _FORMAT,
        "weights": list(weights),
        "input": [os.path.abspath(Path(path).expanduser()) for path in given],
        **{name: getattr(cfg, name) for name in ("threshold", "tta", "engine", "device", "max_megapixels")},
    }


def _weights(folder: Path) -> list[str]:
    """Hashes of what a run or an ensemble judges by."""
    files = [folder / BEST]
    if (folder / ENSEMBLE).exists():
        files = [folder / ENSEMBLE, *sorted((folder / "members").glob("*.ckpt"))]
    found = []
    for file in files:
        with file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found


def _resume(stream: BinaryIO, partial: Path, began_by: dict[str, Any], files: Iterator[Path]) -> int:
    """How many files have their rows already. Cuts off all else, so that the next row can be written.

    Rows count as far as they are whole and name the files that come now, if the same settings made them.
    """
    header = json.dumps(began_by, sort_keys=True).encode() + b"\n"
    stream.seek(0)
    found = stream.readline()
    if found != header:
        if found:
            log.warning("%s was begun with other settings or weights: begun anew", partial)
        stream.seek(0)
        stream.truncate()
        stream.write(header)
        return 0
    done, end = 0, stream.tell()
    for line, file in zip(stream, files, strict=False):
        if not line.endswith(b"\n") or _path_in(line) != _shown_path(file):
            break
        done, end = done + 1, end + len(line)
    stream.seek(end)
    if stream.readline().endswith(b"\n"):  # a whole row, of another file
        log.warning("%s: the files are others than before after the first %d: judged anew from there", partial, done)
    stream.seek(end)
    stream.truncate()
    log.info("%s: goes on after %d files", partial, done)
    return done


def _path_in(line: bytes) -> str | None:
    try:
        return json.loads(line)["path"]
    except (ValueError, KeyError, TypeError):
        return None


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _rows(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """All rows, from the first."""
    stream.seek(0)
    stream.readline()
    return map(json.loads, stream)


def _finish(stream: BinaryIO, output: Path) -> Counter[tuple[str, str]]:
    """Make the output of the rows, as its suffix says; returns how many have each status and verdict."""
    counts: Counter[tuple[str, str]] = Counter()
    temporary = output.with_name(f"{output.name}.tmp")
    rows = _rows(stream)
    with temporary.open("wb") as target:
        first = True
        while chunk := list(itertools.islice(rows, _CHUNK)):
            counts.update((row["status"], row["verdict"]) for row in chunk)
            target.write(b"".join(map(_line, chunk)) if output.suffix == ".jsonl" else _csv(chunk, header=first))
            first = False
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, output)
    return counts


def _csv(rows: Sequence[dict[str, Any]], header: bool) -> bytes:
    table = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"probability": float})
    text = safe_csv(table)
    return (text if header else text.partition("\n")[2]).encode()


# ----------------------------------------------------------------------------------------------------------- progress


class _Rate(ProgressColumn):
    """Images a second, of late."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} a second")


@contextmanager
def _progress(files: Callable[[], Iterator[Path]], done: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error. How many files there are is counted meanwhile, by a thread of its own."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = terminal(stderr=True)
    shown = show and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("images", total=None, completed=done)

        def count() -> None:
            bar.update(task, total=sum(1 for _ in files()))

        if shown:
            threading.Thread(target=count, daemon=True).start()
        yield lambda rows: bar.advance(task, rows)


# --------------------------------------------------------------------------------------------------- sheet and scores


def _sheet(rows: Iterator[dict[str, Any]], files: Iterator[Path], cfg: PredictConfig) -> Any:
    """The first images that were judged, with what was said of them."""
    images: list[NDArray[np.uint8]] = []
    captions = []
    for row, file in zip(rows, files, strict=False):  # files may have come meanwhile
        if len(images) == cfg.sheet:
            break
        if row["status"] != "ok":
            continue
        try:
            images.append(_small(pixels_of(file, cfg.max_megapixels)))
        except UnreadableImage:  # gone meanwhile
            continue
        doubt = ", uncertain" if row["uncertain"] else ""
        captions.append([f"{row['verdict']}{doubt}", f"P(fake) {row['probability']:.3f}", file.name])
    title = f"The first {len(images)} images judged by {Path(cfg.run).expanduser().name}, threshold={cfg.threshold}"
    return mistakes_sheet(images, captions, title, columns=3)


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = _SHOWN / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _score(rows: Iterator[dict[str, Any]], root: Path, file: Path, cfg: PredictConfig, threshold: float) -> None:
    """Where names of folders say what is real, how right the verdicts were: on the terminal and as a file."""
    table = _labelled(rows, root)
    if table.empty:
        return
    labels, p = table["label"].to_numpy(), table["probability"].to_numpy()
    resamples = max(100, min(1000, _DRAWS // len(table)))
    found = scores(labels, p, threshold)
    intervals = bootstrap_intervals(labels, p, threshold, _MEASURED, resamples)
    sources = by_source(table, threshold, resamples=resamples)
    write_json(
        file,
        _finite(
            {
                "run": str(Path(cfg.run).expanduser()),
                "threshold": {"name": cfg.threshold, "value": threshold},
                "resamples": resamples,
                "scores": found,
                "intervals": {name: list(ends) for name, ends in intervals.items()},
                "sources": sources.to_dict("records"),
                "summary": summary(sources),
            }
        ),
    )
    console = terminal()
    console.print(f"{len(table):,} labelled images, {found['prevalence']:.1%} fake, threshold={cfg.threshold}:")
    console.print(_score_table(found, intervals))
    console.print(_source_table(sources))
    console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)


def _labelled(rows: Iterator[dict[str, Any]], root: Path) -> pd.DataFrame:
    """source, label and probability of what was judged below labelled folders; empty where there are none."""
    numbers: dict[str, int] = {}  # of folders below root
    folders, probabilities = [], []
    for row in rows:
        folder, _ = os.path.split(os.path.relpath(row["path"], root))
        if folder and not folder.startswith(".."):
            number = numbers.setdefault(folder, len(numbers))
            if row["status"] == "ok":
                folders.append(number)
                probabilities.append(row["probability"])
    known = _labels(numbers)
    of_folder = [known.get(folder, (-1, "")) for folder in numbers]
    place = np.array(folders, dtype=np.intp)
    table = pd.DataFrame(
        {
            "source": np.array([source for _, source in of_folder], dtype=object)[place],
            "label": np.array([label for label, _ in of_folder], dtype=np.int8)[place],
            "probability": np.array(probabilities, dtype=np.float64),
        }
    )
    return table[table["label"] >= 0]


def _labels(folders: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Label and source of each folder that has one, by the rules for data to train on.

    Those rules read a tree of files. This one has the same folders and one file in each, so that it stays small
    however many images there are.
    """
    with tempfile.TemporaryDirectory() as place:
        for folder in folders:
            Path(place, folder).mkdir(parents=True, exist_ok=True)
            Path(place, folder, "0.png").touch()
        try:
            found = find_images(Path(place))
        except UserError:  # no labelled folders, or not both classes
            return {}
    return {
        os.path.dirname(os.path.normpath(path)): (int(label), str(source))
        for path, label, source in zip(found["path"], found["label"], found["source"], strict=True)
    }


def _score_table(found: dict[str, float], intervals: dict[str, tuple[float, float]]) -> Table:
    table = Table("figure", "value", "95 % interval")
    for name in _MEASURED:
        low, high = intervals[name]
        table.add_row(name, f"{found[name]:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _source_table(sources: pd.DataFrame) -> Table:
    table = Table("source", "images", "AUROC against all real", "judged wrong", "95 % interval")
    for row in sources.to_dict("records"):
        wrong = "fnr" if row["label"] else "fpr"
        table.add_row(
            Text(str(row["source"])),
            f"{row['images']:,}",
            f"{row['auroc']:.3f}" if row["label"] else "",
            f"{row[wrong]:.3f}",
            f"{row[f'{wrong}_low']:.3f} to {row[f'{wrong}_high']:.3f}",
        )
    return table


def _finite(value: Any) -> Any:
    """With None for what is not a finite number, which JSON has not."""
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
