"""Images read as the commands read them, by a process of its own: what kills it is an answer like any other."""

import contextlib
import faulthandler
import io
import json
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

MODES = ("resize", "crop", "equalise", "face")
_ADDRESSES = 4 * 2**30  # bytes that the process may ask for, whether or not it uses them


class Answer(NamedTuple):
    """What came of some bytes."""

    status: str  # ok, refused, or what went wrong
    reason: str = ""  # or what is suspicious
    said: str = ""  # on standard error


class Reader:
    """A process that decodes, hashes and prepares; where one ended, another begins.

    Args:
        max_megapixels: as in the settings.
        megabytes: by which it may grow.
        seconds: of its processor's time for one file, after which it ends itself and tells where it was.
    """

    def __init__(self, max_megapixels: float, megabytes: float = 100.0, seconds: float = 5.0) -> None:
        self._limits, self._megabytes = [str(max_megapixels), str(seconds)], megabytes
        self._said = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - as long as this
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, content: bytes, suffix: str = "", mode: str = "resize") -> Answer:
        """One file, prepared in one of `MODES`."""
        start = self._said.seek(0, io.SEEK_END)
        status, reason, grown = self._ask(content, suffix, mode)
        if grown > self._megabytes:
            self.close()  # what it has grown by once it would tell of all that follow
            status = f"grew by {grown:.0f} megabytes"
        self._said.seek(start)
        return Answer(status, reason, self._said.read().decode(errors="replace"))

    def close(self) -> None:
        """End the process; another begins when it is needed."""
        if self._process:
            self._process.communicate()
            self._process = None

    def _ask(self, content: bytes, suffix: str, mode: str) -> tuple[str, str, float]:
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-m", "tests.data.reader", *self._limits],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([len(content), suffix, mode]).encode() + b"\n" + content)
            process.stdin.flush()
        if line := process.stdout.readline():
            status, reason, grown = json.loads(line)
            return status, reason, grown
        ended = process.wait()
        self._process = None
        return (f"ended by {signal.Signals(-ended).name}" if ended < 0 else f"ended with status {ended}"), "", 0.0


def _serve(max_megapixels: float, seconds: float) -> None:
    import cv2
    import numpy as np
    from PIL import Image

    from deepfake.data.images import UnreadableImage, decode_image, perceptual_hash
    from deepfake.data.prepared import Preparation, prepare, square
    from deepfake.inputs import InputSpec

    size = 64
    spec = InputSpec(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    ways = {
        "resize": Preparation("resize"), "crop": Preparation("crop"), "equalise": Preparation("crop", equalise=32),
        "face": Preparation("face"),
    }  # fmt: skip

    def read(content: bytes, suffix: str, mode: str) -> tuple[str, str]:
        try:
            pixels, file = decode_image(content, suffix, max_megapixels)
            perceptual_hash(pixels)
            shown = square(prepare(pixels, spec, ways[mode]), size)
        except UnreadableImage as error:
            return "refused", str(error)
        except BaseException as error:
            return f"raised {type(error).__name__}", str(error)
        whole = pixels.shape == (file.height, file.width, 3) and shown.shape == (size, size, 3)
        return "ok" if whole and pixels.dtype == shown.dtype == np.uint8 else "wrong shape", file.reason

    Image.init()  # else the first file would pay for it
    cv2.setNumThreads(1)
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    begun = 0.0
    while header := sys.stdin.buffer.readline():
        length, suffix, mode = json.loads(header)
        content = sys.stdin.buffer.read(length)
        begun = begun or _peak()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = read(content, suffix, mode)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([*answer, _peak() - begun]), flush=True)


def _peak() -> float:
    """Megabytes that the process had at most."""
    if sys.platform == "linux":  # whose getrusage counts in what the parent had when it began this process
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    _serve(*map(float, sys.argv[1:]))
