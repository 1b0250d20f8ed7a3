"""Several processes that train one network: what they tell each other, how they are started and how they end.

The process that was asked to train is rank 0. It starts the others, each as a fresh interpreter that is handed a
function and its arguments: whether it is the command itself, the worker of a sweep or a script makes no difference.
They live no longer than it does, and what ends one of them ends all. All are of one machine and listen on its
loopback address alone.

Each rank computes the gradient of its share of a batch; the sum over the ranks is that of the whole batch. It is
taken once a step, over all gradients at once, and not by `DistributedDataParallel`: that would take the mean, over
every batch of a step, and would not know how many images of it are to be counted.
"""

import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from deepfake.errors import UserError
from deepfake.signals import Stopped

_HOST = "127.0.0.1"
_PARTED = 3  # exit status of a rank that another left alone
_AT_MOST = timedelta(days=365)  # that rank 0 may take for what the others wait for
_SECONDS = 30.0  # after which a rank that should have ended is ended


class Parted(Exception):
    """Another rank is gone."""


class Ranks:
    """One rank among those that train together; by default alone, which says all of it to nobody.

    Every method but `share` must be called by all ranks, in the same order.

    Args:
        rank: this one, from 0.
        world: how many there are.
        store: that all of them reach.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: dist.Store | None = None) -> None:
        self.rank, self.world, self.store = rank, world, store

    def share(self, count: int) -> int:
        """Of a batch of so many images, how many each rank has."""
        return -(-count // self.world)

    def add_up(self, parameters: Iterable[Tensor]) -> None:
        """Put the sum over the ranks in the place of each gradient."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """Their sum over the ranks, in place."""
        _told(dist.all_reduce, values)
        return values

    def agreed(self, number: int) -> int:
        """The largest that any of them says."""
        if self.world == 1:
            return number
        numbers = torch.tensor(number)
        _told(dist.all_reduce, numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def of_first(self, value: Any) -> Any:
        """What rank 0 says."""
        if self.world == 1:
            return value
        said = [value]
        _told(dist.broadcast_object_list, said, 0)
        return said[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each of them says."""
        if self.world == 1:
            return [value]
        said = [None] * self.world
        _told(dist.all_gather_object, said, value)
        return said

    @contextmanager
    def first_alone(self, what: str) -> Iterator[None]:
        """Let rank 0 do what follows, however long it takes, and the others only then."""
        if self.store is not None and self.rank > 0:
            self.store.wait([what], _AT_MOST)
        yield
        if self.store is not None and self.rank == 0:
            self.store.set(what, "done")

    def seed(self, seed: int, step: int) -> None:
        """Have what is drawn at a step be another on each rank, and the same whenever the step is taken."""
        if self.world > 1:
            digest = hashlib.sha256(f"{seed} {self.rank} {step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:4], "big"))


def _told(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise Parted from error


# --------------------------------------------------------------------------------------------------- as rank 0


@contextmanager
def together(world: int, function: Callable[..., Any], *arguments: Any) -> Iterator[Ranks]:
    """Train as rank 0 of so many, each of the others in a process of its own that calls a function.

    Args:
        world: how many ranks there are. With 1 nothing is started.
        function: importable; called with `arguments`, which can be pickled, and its `Ranks`.

    Raises:
        UserError: another rank was killed, or ended with one.
        RuntimeError: another rank ended otherwise.
    """
    if world == 1:
        yield Ranks()
        return
    listening = socket.create_server((_HOST, 0))
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        _HOST, port, world, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )
    threads = torch.get_num_threads()
    others: list[subprocess.Popen[bytes]] = []
    ended_well = False
    try:
        for rank in range(1, world):
            others.append(_started(rank, world, port))
        call = pickle.dumps((function, arguments, max(1, threads // world)))
        for other in others:
            _hand(other, call)
        with _watched(others):
            _await(store, others)
            torch.set_num_threads(max(1, threads // world))
            with _joined(Ranks(0, world, store)) as ranks:
                yield ranks
        ended_well = True
    except Stopped as stopped:
        ended_well = stopped.at_step  # then all ranks are
        raise
    except Parted as error:
        raise _cause(store, others) from error
    finally:
        torch.set_num_threads(threads)
        for other in others:
            _end(other, ended_well)


def _started(rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    # Not by multiprocessing, which imports the main module anew: a script without a guard would begin anew with it.
    serve = f"from deepfake.ranks import _serve; _serve({rank}, {world}, {port})"
    code = f"import sys; sys.path[:] = {sys.path!r}; {serve}"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)  # noqa: S603 - our own code


def _hand(process: subprocess.Popen[bytes], call: bytes) -> None:
    """Tell it what to call. Its input is left open: the end of that tells it that this process is gone."""
    assert process.stdin is not None  # noqa: S101 - for the type checker
    with suppress(BrokenPipeError):  # it has ended: whoever waits for it finds out
        process.stdin.write(call)
        process.stdin.flush()


def _await(store: dist.Store, others: Sequence[subprocess.Popen[bytes]]) -> None:
    while not store.check([f"ready {rank}" for rank in range(1, len(others) + 1)]):
        if any(other.poll() is not None for other in others):
            raise Parted
        time.sleep(0.02)


@contextmanager
def _watched(others: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """A rank that ends is noticed at once, and not when it is next needed: rank 0 may be busy for long."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, watching = signal.getsignal(signal.SIGCHLD), True

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        if watching and any(other.poll() not in (None, 0) for other in others):
            raise Parted

    signal.signal(signal.SIGCHLD, handle)
    try:
        yield
    finally:
        watching = False
        if signal.getsignal(signal.SIGCHLD) is handle:  # PyTorch's, which it sets once, may have come before it
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _cause(store: dist.Store, others: Sequence[subprocess.Popen[bytes]]) -> Exception:
    """Why the ranks are parted: of those that have ended, not one that was left alone."""
    until = time.monotonic() + _SECONDS
    waiting = True
    while waiting and time.monotonic() < until:
        waiting = any(other.poll() is None for other in others)
        for rank, other in enumerate(others, 1):
            status = other.poll()
            if store.check([f"mistake {rank}"]):
                return UserError(store.get(f"mistake {rank}").decode())
            if status is not None and status < 0:
                how = signal.Signals(-status).name
                return UserError(
                    f"trainer.devices={len(others) + 1}: the process of rank {rank} was ended by {how}. Often the "
                    f"memory was used up: lower batch_size, data.workers or trainer.devices. What was trained is "
                    f"kept: the same command goes on from there."
                )
            if status not in (None, 0, _PARTED):
                return RuntimeError(f"the process of rank {rank} ended with status {status}; its trace is above")
        time.sleep(0.05)
    return RuntimeError(f"the ranks lost each other; they ended with {[other.poll() for other in others]}")


def _end(process: subprocess.Popen[bytes], ended_well: bool) -> None:
    try:
        process.wait(_SECONDS if ended_well else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdin is not None:
            process.stdin.close()


# ------------------------------------------------------------------------------------------------ as another rank


def _serve(rank: int, world: int, port: int) -> NoReturn:
    """Call what rank 0 asks for, in a process of its own."""
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0's to answer, for all: Ctrl-C reaches every process
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        function, arguments, threads = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started it
        threading.Thread(target=_end_with_first, daemon=True).start()
        store = dist.TCPStore(_HOST, port, world, is_master=False, wait_for_workers=False)
        torch.set_num_threads(threads)
        try:
            store.set(f"ready {rank}", "")
            with _joined(Ranks(rank, world, store)) as ranks:
                function(*arguments, ranks)
            status = 0
        except UserError as error:
            store.set(f"mistake {rank}", str(error))
    except Parted:
        status = _PARTED
    except Stopped:
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.exit(status)


def _end_with_first() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(_PARTED)


@contextmanager
def _joined(ranks: Ranks) -> Iterator[Ranks]:
    """All of them are there and hear each other."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):  # else gloo listens where the machine's own name leads
            os.environ["GLOO_SOCKET_IFNAME"] = name
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _told(lambda: dist.init_process_group(backend, store=ranks.store, rank=ranks.rank, world_size=ranks.world))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
