"""SIGTERM and Ctrl-C: the step under way is finished and kept, then the process ends with 143 or 130."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_TWICE = 1.0  # seconds: who asks again after so long does not want to wait; within it, one press came as two signals


class Stopped(SystemExit):
    """The user or the system asked the process to end.

    Attributes:
        name: of the signal.
        at_step: whether it was raised between two steps, so that the state of the training is one to go on from.
    """

    def __init__(self, number: int, at_step: bool = False) -> None:
        super().__init__(128 + number)
        self.name, self.at_step = signal.Signals(number).name, at_step

    def __str__(self) -> str:
        return f"stopped by {self.name}"


class Stopping:
    """While it lasts, a signal to end raises `Stopped`: at once, or where the training says that it can be left.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        answers: False in a process that another answers for: then a signal is taken, and nothing follows.

    Attributes:
        waits: set by who is in the middle of something that would be lost and calls `here` when it is not.
        asked: the signal, once there was one.
        agree: makes of a number the one that all processes of a training know, each of which must call it then.
    """

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.agree: Callable[[int], int] = lambda number: number
        self.waits = False
        self.asked: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def install(self) -> None:
        """Take the signals; again, where a library has taken them since."""
        if threading.current_thread() is threading.main_thread():
            for number in self._before:
                signal.signal(number, self._handle)

    def here(self) -> None:
        """Called where the training can be left.

        Raises:
            Stopped: that was asked for.
        """
        if number := self.agreed():
            raise Stopped(number, at_step=True)

    def agreed(self) -> int:
        """The signal to end for, or 0; the same in every process of a training."""
        return self.agree(self.asked or 0)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.answers or os.getpid() != self._process:  # a forked process: whoever started it ends it
            return
        if not self.waits or (self.asked is not None and time.monotonic() - self._since > _TWICE):
            raise Stopped(number)
        if self.asked is None:
            self.asked, self._since = number, time.monotonic()
