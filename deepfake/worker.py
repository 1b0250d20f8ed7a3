"""A process to call functions in: what kills a call leaves the caller alive."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn

from deepfake.signals import Stopped, Stopping

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, str], str]  # also the environment and the folder


class Died(Exception):
    """The worker ended in the middle of a call.

    Attributes:
        status: what it exited with; negative: the number of the signal that ended it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Worker:
    """A forked process that is kept from call to call: what one imports, the next finds imported.

    It ends when the process that made it does, whatever ends that one. Only a process of one thread may make one: a
    lock that another thread holds at that moment would stay locked in the worker for ever.
    """

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._connection.close()
            _serve(theirs)
        theirs.close()
        os.setpgid(self._pid, self._pid)  # here too: whoever comes first
        self._status: int | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns in the worker, which has the folder and the environment of here.

        Function and arguments must be picklable. What interrupts this process meanwhile (Ctrl-C, SIGTERM) is passed
        on, and raised when the worker has ended.

        Raises:
            Died: the worker did, by an exception of `function` or without one.
        """
        with Stopping(), _on(signal.SIGTSTP, self._suspend):
            try:
                self._connection.send((function, arguments, dict(os.environ), os.getcwd()))
                return self._connection.recv()
            except (EOFError, ConnectionError):
                raise Died(self._reap() or 0) from None
            except Stopped as stopped:
                self.end(signal.Signals[stopped.name])
                raise
            except BaseException:
                self.end()
                raise

    def alive(self) -> bool:
        return self._reap(os.WNOHANG) is None

    def end(self, how: int = signal.SIGTERM) -> None:
        """Ask it to end and wait until it has; who asks again is passed on again."""
        while self.alive():
            os.kill(self._pid, how)
            try:
                self._reap()
            except Stopped as again:
                how = signal.Signals[again.name]

    def _reap(self, options: int = 0) -> int | None:
        """Its exit status, if it has ended; what it started and left behind ends too."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, options)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._connection.close()
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
        return self._status

    def _suspend(self, *_: Any) -> None:
        """Ctrl-Z, and afterwards `fg`."""
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGCONT)


@contextmanager
def _on(which: signal.Signals, handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    before = signal.signal(which, handler)
    try:
        yield
    finally:
        signal.signal(which, before)


# ------------------------------------------------------------------------------------------------- in the worker


def _serve(connection: Connection) -> NoReturn:
    """Answer calls until one raises or the caller is gone."""
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C reaches the caller, who passes it on: else it would come twice
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN)  # the caller's to answer
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        multiprocessing.set_start_method(None, force=True)  # a launcher's way is not known to what is started here
        # A process of the worker's, such as one that loads images, shall not hide that the worker is gone.
        os.register_at_fork(after_in_child=connection.close)
        calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=_receive, args=(connection, calls), daemon=True).start()
        while True:
            function, arguments, environment, folder = calls.get()
            os.environ.update(environment)
            os.chdir(folder)
            connection.send(function(*arguments))
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else status
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the caller's is unwound


def _receive(connection: Connection, calls: SimpleQueue[_Call]) -> None:
    """Reads even during a call, for that is how the worker learns that its caller is gone."""
    try:
        with suppress(EOFError, ConnectionError):
            while True:
                calls.put(connection.recv())
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
