"""What a person sees in the terminal, and the copy of it in a run's log."""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

log = logging.getLogger("deepfake")
_lightning = logging.getLogger("lightning.pytorch")


def visible(text: str) -> str:
    """Text on one line, with codes for what gives orders to a terminal or turns the direction of writing.

    A file's name may hold any of that.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def named(text: object) -> Text:
    """A name as a cell of a table has it: on one line, and never taken for markup."""
    return Text(visible(str(text)))


class _Console(Console):
    """Whatever is shown, the orders to the terminal are Rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None:
                segment = segment._replace(text="\n".join(map(visible, segment.text.split("\n"))))
            yield segment


def terminal(stderr: bool = False) -> Console:
    """A console as wide as the terminal; where there is none (a pipe, a log), wide enough for our lines."""
    console = _Console(stderr=stderr)
    return console if console.is_terminal else _Console(stderr=stderr, width=140)


def say_error(message: str) -> None:
    """One line on standard error, never interpreted as markup."""
    console = _Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(f"error: {visible(' '.join(message.splitlines()))}", style="bold red", markup=False)


def _on_one_line(record: logging.LogRecord) -> bool:
    """A name that a message tells must not begin a line of its own in a log."""
    record.msg, record.args = visible(record.getMessage()), None
    return True


log.addFilter(_on_one_line)


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


@contextmanager
def in_turn(lock: BaseFileLock, waiting: str) -> Iterator[None]:
    """Hold a lock; who has to wait for it says so. A dead process holds none.

    Raises (on entering):
        OSError: the folder that it lies in cannot be made or written.
    """
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: waiting for it", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def one_at_a_time(cache: Path | None, what: str, root: Path) -> Iterator[None]:
    """Of runs that share a cache and begin together, one does what the others then find done.

    Without a cache, or where no lock can be had, each does it for itself.

    Args:
        cache: folder of the lock.
        what: is done, such as "reads"; each has a lock of its own.
        root: of the images that it is done with; others wait for nothing.
    """
    with ExitStack() as held:
        if cache is not None:
            images = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:8]
            lock = FileLock(cache / f"{what.replace(' ', '-')}-{images}.lock")
            with suppress(OSError, NotImplementedError):
                held.enter_context(in_turn(lock, f"another run {what} {visible(str(root))}"))
        yield


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
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
