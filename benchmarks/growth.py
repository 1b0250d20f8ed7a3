"""How time and memory grow with the number of images: `python -m benchmarks.growth`.

Each size goes through the commands of a first day with a data set, one process after the other, as a user runs them:
the audit without spectra on an empty cache, which looks at every file for the first time; the same again, which finds
what it knows; the audit with spectra; the spectra of every source; a training of the classifier alone on a tiny
network, three epochs of one view, random weights; and a prediction for every image by that run. Start and imports
count. Every repeat begins without a cache; the images are drawn once into a folder and found there again: 64 pixels,
half PNG, half JPEG, some hundred thousand files for the largest size.

"Peak" is resident memory, the highest of all repeats: the kernel's own mark of a command's largest process or, where
that is more, what several of its processes together were seen to hold. Pages of mapped files, such as stored rows,
are in it, although the system may take them back at any time.

"Exponent" is the slope of log(seconds) over log(images): 1 is linear. What is fixed, such as imports, pulls it down
over all sizes; the slope between the two largest shows best what comes next.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from deepfake.console import terminal
from deepfake.data.synthetic import SOURCES, make_faces
from deepfake.files import write_json
from deepfake.runs import SUMMARY

PIXELS = 64  # side of the images
_LOOK_EVERY = 0.05  # seconds
_AUDITED = (0, 3, 4)  # exit statuses of an audit: clean, doubtful, loud


class Cost(NamedTuple):
    """What one command took."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Measure and print one line for each command and size, then how each command grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="images, two or more")
    parser.add_argument("--repeats", type=int, default=5, help="the median of the seconds counts (5)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/growth"), help="of the images (outputs/growth)")
    parser.add_argument("--limit-gb", type=float, default=2.0, help="of memory, that the peaks are held against (2)")
    parser.add_argument("--out", type=Path, help="JSON of every single measurement")
    options = parser.parse_args()
    if len(set(options.sizes)) < 2 or min(options.sizes) < len(SOURCES):
        parser.error(f"--sizes: expected two or more, each of at least {len(SOURCES)} images, found {options.sizes}")
    folders = dict(_drawn(options.folder.absolute(), images) for images in sorted(set(options.sizes)))
    costs: dict[tuple[str, int], list[Cost]] = {}
    for repeat, (images, root) in itertools.product(range(options.repeats), folders.items()):
        for command, cost in _one_day(root).items():
            costs.setdefault((command, images), []).append(cost)
        print(f"repeat {repeat + 1} of {options.repeats}, {images} images: done", file=sys.stderr)
    exponents = {command: _exponents(costs, command, list(folders)) for command, _ in costs}
    _print(costs, exponents, options)
    if options.out is not None:
        write_json(options.out, _plain(costs, exponents))


def _drawn(folder: Path, images: int) -> tuple[int, Path]:
    """How many images there are, a multiple of the sources, and where."""
    each = images // len(SOURCES)
    return each * len(SOURCES), make_faces(folder / f"{PIXELS}px-{each}", each, PIXELS)


def _one_day(root: Path) -> dict[str, Cost]:
    """The cost of each command on the images below `root`, in the order of their use, from an empty cache on."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        data = [f"data.root={root}", f"data.cache.dir={folder}/cache"]
        audit = ["audit", *data, f"output={folder}/audit", "progress=false"]
        network = ["model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32"]
        training = ["epochs=3", "views=1", "patience=null", "trainer=cpu", "trainer.progress=false"]
        costs = {
            "catalogue, first look": measure([*audit, "spectrum=false"], _AUDITED),
            "catalogue, second look": measure([*audit, "spectrum=false"], _AUDITED),
            "audit with spectra": measure([*audit, "spectrum=true"], _AUDITED),
            "spectra of every source": measure(["spectra", *data, f"output={folder}/spectra", "progress=false"]),
            "training": measure(["train", *data, *network, *training, f"output_dir={folder}/runs"]),
        }
        (summary,) = Path(folder, "runs").glob(f"*/{SUMMARY}")
        predict = [
            "predict",
            f"run={summary.parent}",
            f"input={root}",
            f"output={folder}/predictions.csv",
            "progress=false",
        ]
        return costs | {"prediction": measure(predict)}


def measure(command: Sequence[str], expected: Sequence[int] = (0,)) -> Cost:
    """Run a command of the package to its end.

    Args:
        command: its name and its settings.
        expected: exit statuses of success.

    Raises:
        SystemExit: it ended otherwise; with what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        name, *settings = command
        process = subprocess.Popen(
            [sys.executable, "-m", f"deepfake.{name}", *settings], stdout=said, stderr=subprocess.STDOUT
        )
        together = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            together = max(together, _together_bytes(process.pid))
            time.sleep(_LOOK_EVERY)
        seconds = time.perf_counter() - began
        _, wait_status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(wait_status)
        if process.returncode not in expected:
            said.seek(0)
            sys.exit(f"deepfake.{' '.join(command)} ended with status {process.returncode}:\n{said.read()[-4000:]}")
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux kilobytes
    return Cost(seconds, max(together, largest))


def _together_bytes(pid: int) -> int:
    """What a process and those below it hold now; 0 where it is alone, has just ended, or there is no /proc."""
    try:
        tree = _tree(pid)
        return sum(_share_bytes(member) for member in tree) if len(tree) > 1 else 0
    except OSError:
        return 0


def _tree(pid: int) -> list[int]:
    children = [
        int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()
    ]
    return [pid, *itertools.chain.from_iterable(_tree(child) for child in children)]


def _share_bytes(pid: int) -> int:
    """Resident memory, shared pages in equal parts: what was just forked holds little of its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _exponents(costs: dict[tuple[str, int], list[Cost]], command: str, sizes: Sequence[int]) -> tuple[float, float]:
    """Slope of log(median seconds) over log(images), by least squares over all sizes and between the two largest."""
    images = np.log(sizes)
    seconds = np.log([_seconds(costs[command, size]) for size in sizes])
    overall, _ = np.polyfit(images, seconds, 1)
    return float(overall), float(np.diff(seconds)[-1] / np.diff(images)[-1])


def _seconds(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _peak_gb(costs: Sequence[Cost]) -> float:
    return max(cost.peak_bytes for cost in costs) / 1e9


def _print(
    costs: dict[tuple[str, int], list[Cost]],
    exponents: dict[str, tuple[float, float]],
    options: argparse.Namespace,
) -> None:
    limit = options.limit_gb
    title = f"{PIXELS} pixels, {os.cpu_count()} cores, median of {options.repeats} (lowest to highest)"
    table = Table("command", "images", "seconds", "images a second", "peak, GB", f"under {limit:g} GB", title=title)
    for (command, images), found in sorted(costs.items(), key=lambda item: list(exponents).index(item[0][0])):
        seconds = [cost.seconds for cost in found]
        spread = f"{_seconds(found):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        peak = _peak_gb(found)
        row = spread, f"{images / _seconds(found):,.0f}", f"{peak:.2f}", "yes" if peak < limit else "NO"
        table.add_row(command, f"{images:,}", *row)
    terminal().print(table)
    grows = Table("command", "exponent", "between the two largest", title="seconds ~ images ^ exponent")
    for command, (overall, last) in exponents.items():
        grows.add_row(command, f"{overall:.2f}", f"{last:.2f}")
    terminal().print(grows)


def _plain(costs: dict[tuple[str, int], list[Cost]], exponents: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "pixels": PIXELS,
        "measured": [
            {"command": command, "images": images, **cost._asdict()}
            for (command, images), found in costs.items()
            for cost in found
        ],
        "exponents": {
            command: {"all": overall, "two_largest": last} for command, (overall, last) in exponents.items()
        },
    }


if __name__ == "__main__":
    main()
