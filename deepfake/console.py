"""What a person sees in the terminal, and the copy of it in a run's log."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("deepfake")
_lightning = logging.getLogger("lightning.pytorch")


def terminal(stderr: bool = False) -> Console:
    """A console as wide as the terminal; where there is none (a pipe, a log), wide enough for our lines."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=140)


def say_error(message: str) -> None:
    """One line on standard error, never interpreted as markup."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {message}", style="bold red", markup=False)


@contextmanager
def progress(what: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on standard error; the function given is called once for each piece of work done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = terminal(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def logging_to_terminal() -> Iterator[None]:
    """The project's own messages on standard error, with the time."""
    handler = RichHandler(
        console=terminal(stderr=True), show_path=False, show_level=False, log_time_format="%H:%M:%S"
    )
    # Lightning's remarks (which device, tips) go into the run's log, not on the terminal.
    _lightning.handlers.clear()
    with _handled(log, handler):
        yield


@contextmanager
def remembering() -> Iterator[list[logging.LogRecord]]:
    """Keeps what the project says while it lasts, for a file that is not there yet."""
    said: list[logging.LogRecord] = []
    with _handled(log, _Memory(said)):
        yield said


class _Memory(logging.Handler):
    def __init__(self, said: list[logging.LogRecord]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record)


def interval(row: Mapping[Any, Any], name: str, digits: str = ".3f") -> str:
    """ " [0.884, 0.938]" of NAME_low and NAME_high, to stand behind the figure; "" where it is undefined."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if math.isnan(low) else f" [{low:{digits}}, {high:{digits}}]"


@contextmanager
def logging_to_file(file: Path, said_before: Iterable[logging.LogRecord] = ()) -> Iterator[None]:
    """Everything said while it lasts, warnings and Lightning's remarks included, in a file; first what was before."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for record in said_before:
        handler.handle(record)
    logging.captureWarnings(True)
    try:
        with (
            _handled(log, handler),
            _handled(_lightning, handler),
            _handled(logging.getLogger("py.warnings"), handler),
        ):
            yield
    finally:
        logging.captureWarnings(False)
        handler.close()


@contextmanager
def _handled(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
