"""One prediction from settings to a table: a finished run, any number of images, one row a file.

Rows go to OUTPUT.partial as they come, a line of JSON each, below a first line that says what they are answers to.
The same command goes on from there; only at the end OUTPUT is made of it. Nothing is held in memory that grows with
the files, but the names in one folder and, where folders say labels, some thirty bytes an image for the scores; and
the hashes of the images that the run knows already.
"""

import csv
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import re
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
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
from deepfake.console import log, logging_to_terminal, named, terminal
from deepfake.data.catalog import read_catalogue, safe_csv
from deepfake.data.images import SUFFIXES, UnreadableImage, read_image
from deepfake.data.layouts import find_images, neutral_path
from deepfake.errors import UserError
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.evaluation.sources import by_source, summary
from deepfake.explaining import Explainer, expect_explainable, shrunk
from deepfake.files import as_json, write_bytes, write_json
from deepfake.judging import Detector, Judged
from deepfake.reporting.evaluation_figures import mistakes_sheet
from deepfake.reporting.figures import save
from deepfake.runs import BEST, ENSEMBLE

UNJUDGED = 3  # exit status: done, with files that could not be judged
_FORMAT = 3  # raise when what a line of the unfinished file holds changes
_DECISIVE = ("threshold", "tta", "engine", "device", "max_megapixels", "explain")  # for a row or its picture
_COLUMNS = ("path", "status", "reason", "probability", "verdict", "uncertain")
_CHUNK = 4096  # rows that become CSV at once
_PICTURE = re.compile(r"\.?(\d{6,})\.png(\..+\.tmp)?")  # of a row, by its number from 1; also one left half done
_INDEX = "index.csv"
_MEASURED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "ap", "eer")
_OF_ONE_CLASS = {0.0: ("accuracy",), 1.0: ("accuracy", "recall")}  # what has a meaning without fakes, without reals
_DRAWS = 20_000_000  # images drawn by the bootstrap in all: a thousand resamples of 20,000 images


def predict(cfg: PredictConfig) -> int:
    """See `deepfake.predict.run`."""
    with logging_to_terminal():
        expect_images(cfg.input)
        if cfg.explain:
            expect_explainable()
        detector = Detector.load(cfg.run, cfg.engine, cfg.tta, cfg.device)
        run = Path(cfg.run).expanduser()
        return judge_files(detector, cfg, _weights(run), _known(run))


def judge_files(
    detector: Detector, cfg: PredictConfig, weights: Sequence[str], known: Collection[str] = frozenset()
) -> int:
    """Judge every file of the input and write the table, the pictures and, where folders say labels, the scores.

    Args:
        detector: as loaded by these settings.
        cfg: what is to be judged and where the answers go.
        weights: what tells these weights from any others, such as hashes of their files.
        known: sha256 of the files that the detector was trained or calibrated on.

    Returns:
        See `deepfake.predict.run`.

    Raises:
        UserError: as there.
    """
    output = Path(cfg.output).expanduser()
    threshold = detector.calibration.thresholds[cfg.threshold]
    explainer = Explainer(detector.members) if cfg.explain else None
    sheet, scored, explained = (
        output.with_name(f"{output.stem}_{name}") for name in ("sheet.png", "scores.json", "explained")
    )

    def files() -> Iterator[Path]:
        """Of the input, without what a prediction itself leaves."""
        ours = {sheet.name: sheet, explained.name: explained}
        for file in input_files(cfg.input):
            if not any(place.name in ours and _same(place, ours[place.name]) for place in (file, file.parent)):
                yield file

    partial = output.with_name(f"{output.name}.partial")
    try:
        with _unfinished(partial) as stream:
            log.info("%s", _told_threshold(cfg.threshold, threshold.value))
            if threshold.warning:
                log.warning("threshold=%s: %s", cfg.threshold, threshold.warning)
            done = _resume(stream, partial, _began_by(cfg, weights), files())
            _remove_pictures(explained, after=done if explainer else 0)
            coming = itertools.islice(files(), done, None)
            with _progress(files, done, cfg.progress) as advance:
                for rows in _judged(detector, coming, cfg, known):
                    if explainer:  # before the rows are written: a row that is there has its picture
                        _explain(explainer, rows, done, explained, cfg.max_megapixels)
                    stream.write(b"".join(_line(row) for row in rows))
                    stream.flush()
                    done += len(rows)
                    advance(len(rows))
            counts, memorised = _finish(stream, output)
            for earlier in (sheet, scored):
                earlier.unlink(missing_ok=True)
            if cfg.sheet:
                save(_sheet(_rows(stream), cfg), sheet)
            if explainer:
                _write_index(_rows(stream), explained)
            if memorised:
                log.warning(
                    "the run was trained or calibrated on %d of these %d files: its verdicts on them are no test of "
                    "it, and no score counts them", memorised, counts.total(),
                )  # fmt: skip
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


@dataclass
class _Asked:
    """A file that is to be judged."""

    file: Path
    # Said when the file is read.
    known: bool = False  # to the run, from its training or validation part
    reason: str = ""  # what is suspicious about it, as that its first frame alone was judged


def _judged(
    detector: Detector, files: Iterator[Path], cfg: PredictConfig, known: Collection[str]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the files, some at a time."""

    def read(asked: _Asked) -> NDArray[np.uint8]:
        pixels, file = read_image(asked.file, cfg.max_megapixels)
        asked.known, asked.reason = file.sha256 in known, file.reason
        return pixels

    asked, answered = itertools.tee(map(_Asked, files))  # apart by what is read ahead, no more
    answers = detector.judge(asked, read, cfg.batch_size)
    while chunk := list(itertools.islice(answers, cfg.batch_size)):
        yield _as_rows(detector, chunk, list(itertools.islice(answered, len(chunk))), cfg.threshold)


def _as_rows(
    detector: Detector, judged: Sequence[Judged], asked: Sequence[_Asked], threshold: str
) -> list[dict[str, Any]]:
    """What is kept of each file until the end: `_COLUMNS`, with its path as it is, margin and known."""
    table = detector.table(judged, threshold)
    columns = {
        "path": [str(each.file) for each in asked],  # pandas takes no path with bytes that are no UTF-8
        **{name: table[name].tolist() for name in _COLUMNS[1:]},
        "reason": [answer.reason or each.reason for answer, each in zip(judged, asked, strict=True)],
        "margin": [each.margin for each in judged],
        "known": [each.known for each in asked],
    }
    return [as_json(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _known(folder: Path) -> frozenset[str]:
    """sha256 of the images that a run was trained, or its thresholds were chosen, on."""
    file = folder / "manifest.parquet"
    if not file.exists():
        log.warning("%s: found no such file: whether the run was trained on an image is not known", file)
        return frozenset()
    table = read_catalogue(file)
    return frozenset(table.loc[table["split"].isin(("train", "val")), "sha256"])


def _told_threshold(name: str, value: float) -> str:
    chosen = "a fixed one" if name == "half" else "chosen on the run's validation images"
    return f'"fake" is said above P(fake) = {value:.4g}: threshold={name}, {chosen}; probabilities calibrated there'


def _origin(threshold: str) -> str:
    return "fixed" if threshold == "half" else "validation of the run"


# ----------------------------------------------------------------------------------------------------- what is judged


def input_files(given: str | Sequence[str]) -> Iterator[Path]:
    """The files that are meant, in the order given; none of them need be there.

    Args:
        given: an image, a CSV with the column path, or a list of images; or a folder: then all files below it that
            end as images do, links followed, each once, sorted by path, with no more than the names of one folder and
            of those above it in memory.

    Raises:
        UserError: the CSV cannot be read.
    """
    if not isinstance(given, str):
        return (Path(file).expanduser() for file in given)
    place = Path(given).expanduser()
    if place.is_dir():
        return _below(str(place))
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


def _below(root: str) -> Iterator[Path]:
    """Images below a folder, each once, though links lead to its folder again or around in circles."""
    here = os.path.realpath(root)
    elsewhere: set[str] = set()  # folders that links led to, and those below them

    def walk(folder: str, real: str, trail: tuple[str, ...]) -> Iterator[Path | tuple[str, str, tuple[str, ...]]]:
        """Images of a folder, and what to walk between them; links led from each place of the trail to the next."""
        if len(trail) > 1:
            if real in elsewhere:
                return
            elsewhere.add(real)
        names, folders = [], {}  # of those, whether each is a link
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        folders[entry.name] = entry.is_symlink()
                    elif not entry.name.lower().endswith(SUFFIXES):
                        continue
                    names.append(entry.name)
        except OSError:
            yield Path(folder)  # a row says that it cannot be read
            return
        for name in sorted(names):
            path = f"{folder}/{name}"
            if name not in folders:
                yield Path(path)
            elif not folders[name]:
                yield path, f"{real}/{name}", trail
            else:
                target = os.path.realpath(path)
                # What lies below the root comes under its own name; a link up leads around, or out to other folders.
                if not _holds(here, target) and not any(_holds(target, place) for place in trail):
                    yield path, target, (*trail, target)

    walks = [walk(root, here, (here,))]  # not by recursion: folders may be nested deeper than calls
    while walks:
        for found in walks[-1]:
            if not isinstance(found, Path):
                walks.append(walk(*found))
                break
            yield found
        else:
            walks.pop()


def _holds(folder: str, place: str) -> bool:
    return os.path.commonpath((folder, place)) == folder


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


def _shown_path(file: str) -> str:
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
    """All that decides a row and its picture, but the files' contents."""
    given = [cfg.input] if isinstance(cfg.input, str) else cfg.input
    return {
        "format": _FORMAT,
        "weights": list(weights),
        "input": [os.path.abspath(Path(path).expanduser()) for path in given],
        **{name: getattr(cfg, name) for name in _DECISIVE},
    }


def _weights(folder: Path) -> list[str]:
    """Hashes of what a run or an ensemble judges by."""
    files = [folder / BEST]
    if (folder / ENSEMBLE).exists():
        files = [folder / ENSEMBLE, *sorted(filter(Path.is_file, (folder / "members").glob("*.ckpt")))]
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
        if not line.endswith(b"\n") or _path_in(line) != str(file):
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
    # A path may hold bytes that are no UTF-8, which Python has as surrogates; json.loads takes them back.
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"


def _rows(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """All rows, from the first."""
    stream.seek(0)
    stream.readline()
    return map(json.loads, stream)


def _finish(stream: BinaryIO, output: Path) -> tuple[Counter[tuple[str, str]], int]:
    """Make the output of the rows, as its suffix says.

    Returns:
        How many have each status and verdict, and how many are of images that the run knows.
    """
    counts: Counter[tuple[str, str]] = Counter()
    memorised = 0
    temporary = output.with_name(f"{output.name}.tmp")
    rows = _rows(stream)
    with temporary.open("wb") as target:
        first = True
        while chunk := list(itertools.islice(rows, _CHUNK)):
            counts.update((row["status"], row["verdict"]) for row in chunk)
            memorised += sum(row["known"] for row in chunk)
            shown = [{name: row[name] for name in _COLUMNS} | {"path": _shown_path(row["path"])} for row in chunk]
            target.write(b"".join(map(_line, shown)) if output.suffix == ".jsonl" else _csv(shown, header=first))
            first = False
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, output)
    return counts, memorised


def _csv(rows: Sequence[dict[str, Any]], header: bool) -> bytes:
    table = pd.DataFrame(rows)
    if "probability" in table:
        table = table.astype({"probability": float})
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


# ----------------------------------------------------------------------------------------------------------- pictures


def _sheet(rows: Iterator[dict[str, Any]], cfg: PredictConfig) -> Any:
    """The first images that were judged, with what was said of them."""
    images: list[NDArray[np.uint8]] = []
    captions = []
    for row in rows:
        if len(images) == cfg.sheet:
            break
        if row["status"] != "ok":
            continue
        file = Path(row["path"])
        try:
            images.append(shrunk(read_image(file, cfg.max_megapixels)[0]))
        except UnreadableImage:  # gone meanwhile
            continue
        captions.append([_told_verdict(row), f"P(fake) {row['probability']:.3f}", file.name])
    title = f"The first {len(images)} images judged by {Path(cfg.run).expanduser().name}, threshold={cfg.threshold}"
    return mistakes_sheet(images, captions, title, columns=3)


def _told_verdict(row: dict[str, Any]) -> str:
    return f"{row['verdict']}, uncertain" if row["uncertain"] else row["verdict"]


def _explain(explainer: Explainer, rows: Sequence[dict[str, Any]], done: int, folder: Path, limit: float) -> None:
    """A picture for each row that has a verdict, by its number; `done` rows were before these."""
    for number, row in enumerate(rows, done + 1):
        if row["status"] != "ok":
            continue
        try:
            pixels = read_image(Path(row["path"]), limit)[0]
            picture = explainer.picture(pixels, f"{_told_verdict(row)}, P(fake) {row['probability']:.3f}")
        except UnreadableImage:  # gone meanwhile
            continue
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "PNG", compress_level=1)  # a quarter of the time, a tenth more bytes
        write_bytes(folder / f"{number:06}.png", content.getvalue(), durable=False)


def _remove_pictures(folder: Path, after: int) -> None:
    """What an earlier prediction left there of rows beyond these."""
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        picture = _PICTURE.fullmatch(file.name)
        if file.name == _INDEX or (picture and int(picture[1]) > after):
            file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write_index(rows: Iterator[dict[str, Any]], folder: Path) -> None:
    """Which picture is of which file."""
    folder.mkdir(exist_ok=True)
    numbered = (
        {"row": number, "path": _shown_path(row["path"]), "picture": f"{number:06}.png"}
        for number, row in enumerate(rows, 1)
    )
    with (folder / _INDEX).open("wb") as target:
        first = True
        while chunk := list(itertools.islice(numbered, _CHUNK)):
            pictured = [line for line in chunk if (folder / str(line["picture"])).exists()]
            if pictured:
                target.write(_csv(pictured, header=first))
                first = False


# ------------------------------------------------------------------------------------------------------------- scores


def _score(rows: Iterator[dict[str, Any]], root: Path, file: Path, cfg: PredictConfig, threshold: float) -> None:
    """Where names of folders say what is real, how right the verdicts were: on the terminal and as a file."""
    table = _labelled(rows, root)
    if table.empty:
        return
    labels, p, margins = (table[name].to_numpy() for name in ("label", "probability", "margin"))
    resamples = max(100, min(1000, _DRAWS // len(table)))
    found = scores(labels, p, threshold, margins)
    defined = _OF_ONE_CLASS.get(found["prevalence"], _MEASURED)
    found |= dict.fromkeys(set(_MEASURED) - set(defined), math.nan)
    intervals = dict.fromkeys(_MEASURED, (math.nan, math.nan)) | bootstrap_intervals(
        labels, p, threshold, defined, resamples, margins=margins
    )
    sources = by_source(table, threshold, resamples=resamples)
    write_json(
        file,
        as_json(
            {
                "run": str(Path(cfg.run).expanduser()),
                "threshold": {"name": cfg.threshold, "value": threshold, "origin": _origin(cfg.threshold)},
                "resamples": resamples,
                "scores": found,
                "intervals": {name: list(ends) for name, ends in intervals.items()},
                "sources": sources.to_dict("records"),
                "summary": summary(sources),
            }
        ),
    )
    title = (
        f"{len(table):,} labelled images, {found['prevalence']:.1%} fake, majority-class baseline "
        f"{found['majority']:.3f}, threshold {threshold:.4g} ({cfg.threshold}: {_origin(cfg.threshold)})"
    )
    console = terminal()
    console.print(_score_table(found, intervals, title))
    console.print(_source_table(sources, title))
    console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)


def _labelled(rows: Iterator[dict[str, Any]], root: Path) -> pd.DataFrame:
    """source, label, probability and margin of what was judged below labelled folders and is new to the run."""
    numbers: dict[str, int] = {}  # of folders below root
    folders, figures = array("q"), array("d")
    for row in rows:
        folder, _ = os.path.split(os.path.relpath(_shown_path(row["path"]), root))
        if folder and not folder.startswith(".."):
            number = numbers.setdefault(folder, len(numbers))
            if row["status"] == "ok" and not row["known"]:
                folders.append(number)
                figures.extend((row["probability"], row["margin"]))
    known = _labels(numbers)
    of_folder = [known.get(folder, (-1, "")) for folder in numbers]
    place = np.asarray(folders)
    probabilities, margins = np.asarray(figures).reshape(-1, 2).T
    table = pd.DataFrame(
        {
            "source": np.array([source for _, source in of_folder], dtype=object)[place],
            "label": np.array([label for label, _ in of_folder], dtype=np.int8)[place],
            "probability": probabilities,
            "margin": margins,
        }
    )
    return table[table["label"] >= 0]


def _labels(folders: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Label and source of each folder that has one, by the rules for data to train on.

    Those rules read a tree of files. This one has the same folders and one file in each, so that it stays small
    however many images there are.
    """
    told = list(folders)
    with tempfile.TemporaryDirectory() as place:
        for folder in told:
            Path(place, folder).mkdir(parents=True, exist_ok=True)
            Path(place, folder, "0.png").touch()
        try:
            found = find_images(Path(place), one_class=True)
        except UserError:  # no labelled folders, or in no known layout
            return {}
    if len(set(found["label"])) == 1 and {"0", "1"} & {name for folder in told for name in folder.split("/")}:
        return {}  # a folder named 1 says "fake" beside one named 0, and nothing alone
    read = zip(found["path"], found["label"], found["source"], strict=True)
    sources = {os.path.dirname(os.path.normpath(path)): (int(label), str(source)) for path, label, source in read}
    return {folder: sources[folder] for folder in told if folder in sources}


def _score_table(found: dict[str, float], intervals: dict[str, tuple[float, float]], title: str) -> Table:
    table = Table("figure", "value", "95 % interval", title=title)
    for name in _MEASURED:
        table.add_row(name, _figure(found[name]), _interval(*intervals[name]))
    return table


def _source_table(sources: pd.DataFrame, title: str) -> Table:
    table = Table("source", "images", "AUROC against all real", "judged wrong", "95 % interval", title=title)
    for row in sources.to_dict("records"):
        wrong = "fnr" if row["label"] else "fpr"
        table.add_row(
            named(row["source"]),
            f"{row['images']:,}",
            _figure(row["auroc"]) if row["label"] else "",
            _figure(row[wrong]),
            _interval(row[f"{wrong}_low"], row[f"{wrong}_high"]),
        )
    return table


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "\N{EN DASH}"  # undefined, as an AUROC of one class


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else "\N{EN DASH}"
