"""What of a command is not the network: `python -m benchmarks.overhead`.

- How long `--help` of every command takes, over Python's own start.
- How long a training takes from the command to the end of its first step, over the imports of torch, Lightning and
  timm alone: with empty caches, and with everything stored by an earlier run.
- Where the seconds of such runs go. "Network" is the trunk in its engine and the steps of what trains, validation
  and test included, with their loss and metrics; everything else is what a run costs beside it.

Each measurement is a process of its own, as a user starts it, on built-in images drawn before, with random weights.
Every repeat takes each once, in turn; a ratio is of one repeat.
"""

import argparse
import functools
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from deepfake.console import terminal
from deepfake.data.synthetic import SOURCES, make_faces

COMMANDS = ("train", "audit", "evaluate", "robustness", "generalise", "predict", "recap")
NETWORK = "network"
# What a call belongs to, the calls within it excepted that have an entry of their own.
PLACES = {
    ("deepfake.training", "catalogue"): "catalogue, audit",
    ("deepfake.training", "look_for_shortcuts"): "catalogue, audit",
    ("deepfake.training", "build_detector"): "network built",
    ("deepfake.data.datamodule", "FaceDataModule.prepare"): "images prepared",
    ("deepfake.models.trunk", "StoredTrunk.rows"): "trunk's images awaited and normalised, rows stored and found",
    ("deepfake.models.trunk", "build_engine"): "engine built and checked",
    ("deepfake.models.engines", "Engine.__call__"): NETWORK,
    ("deepfake.models.detector", "DetectorModule.training_step"): NETWORK,
    ("deepfake.models.detector", "DetectorModule.validation_step"): NETWORK,
    ("deepfake.models.detector", "DetectorModule.test_step"): NETWORK,
    ("lightning", "Trainer.fit"): "Lightning's loops, checkpoints, metrics.csv",
    ("deepfake.training", "_fit_and_judge"): "judging, figures, records",
}
IMPORTS, REST, FIRST_STEP = "imports", "settings composed, logs, the rest", "first step"
SHARES = (IMPORTS, *dict.fromkeys(PLACES.values()), REST)


def main() -> None:
    """Measure, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn; the median counts (5)")
    parser.add_argument("--images", type=int, default=2667, help="in all (2667)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the images (256)")
    parser.add_argument("--model", default="efficientnet", help="choice of model= (efficientnet)")
    parser.add_argument("--inside", nargs="+", metavar="SETTING", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _measure_inside(*options.inside)
        return
    helps: dict[str, list[float]] = {name: [] for name in ("python -c pass", *COMMANDS)}
    bare: list[float] = []
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        faces = make_faces(Path(folder, "faces"), options.images // len(SOURCES), options.size)
        for repeat in range(options.repeats):
            helps["python -c pass"].append(_seconds([sys.executable, "-c", "pass"]))
            for name in COMMANDS:
                helps[name].append(_seconds([sys.executable, "-m", f"deepfake.{name}", "--help"]))
            bare.append(_seconds([sys.executable, "-c", "import torch, lightning, timm"]))
            for name, found in _runs(faces, Path(folder, str(repeat)), options.model).items():
                runs.setdefault(name, []).append(found)
            print(f"repeat {repeat + 1} of {options.repeats}: done", file=sys.stderr)
    _print(helps, bare, runs, options)


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def _runs(faces: Path, output: Path, model: str) -> dict[str, dict[str, float]]:
    common = [
        f"data.root={faces}", f"output_dir={output}", f"model={model}", "model.weights=none", "patience=null",
        "trainer=cpu", "trainer.progress=false",
    ]  # fmt: skip
    kinds = {
        "classifier alone, empty caches": [],
        "classifier alone, everything stored": ["lr=1e-3"],
        "last two stages, images prepared": ["unfreeze=2"],
        "last two stages, everything stored": ["unfreeze=2", "lr=1e-3"],
    }
    return {name: _run([*common, *settings]) for name, settings in kinds.items()}


def _run(settings: Sequence[str]) -> dict[str, float]:
    """Seconds of each share of a training, and from its command to the end of its first step."""
    with tempfile.NamedTemporaryFile() as out:
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.overhead", "--inside", out.name, str(began), *settings]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.time() - began
        if ended.returncode:
            sys.exit(f"{settings} ended with status {ended.returncode}:\n{ended.stderr[-4000:]}")
        found: dict[str, float] = json.loads(Path(out.name).read_text())
    step = found.pop(FIRST_STEP)
    return {**found, REST: seconds - sum(found.values()), FIRST_STEP: step}


# -------------------------------------------------------------------------------------- in the measured process


class Shares:
    """Seconds by what they belong to: of nested calls the innermost counts."""

    def __init__(self, began: float) -> None:
        self.seconds = dict.fromkeys(SHARES, 0.0)
        del self.seconds[REST]
        self.began, self.first_step = began, 0.0
        self._inside: list[str] = []
        self._since = time.perf_counter()

    def counted(self, function: Callable[..., Any], share: str) -> Callable[..., Any]:
        """The function, its time counted."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._inside.append(share)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._inside.pop()
                if function.__name__ == "training_step" and not self.first_step:
                    self.first_step = time.time() - self.began

        return call

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now


def _measure_inside(out: str, began: str, *settings: str) -> None:
    """Run a training in this process and write the shares of its time."""
    shares = Shares(float(began))
    import deepfake.training  # noqa: F401 - what it imports is what a training imports

    # Python's start and what this file imports, which a training needs too, count as imports.
    shares.seconds[IMPORTS] = time.time() - float(began)
    for (module, name), share in PLACES.items():
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, shares.counted(getattr(owner, last), share))
    from deepfake.train import main as train

    sys.argv = ["train", *settings]
    train()
    Path(out).write_text(json.dumps({**shares.seconds, FIRST_STEP: shares.first_step}))


# ------------------------------------------------------------------------------------------------------- tables


def _print(
    helps: dict[str, list[float]],
    bare: list[float],
    runs: dict[str, list[dict[str, float]]],
    options: argparse.Namespace,
) -> None:
    how = f"median of {options.repeats} (lowest to highest)"
    table = Table("command", "seconds", "over Python's start", title=f"--help, {how}")
    for name, seconds in helps.items():
        ratios = [mine / python for mine, python in zip(seconds, helps["python -c pass"], strict=True)]
        table.add_row(name, _spread(seconds, ".2f"), _spread(ratios, ".0f"))
    terminal().print(table)

    table = Table("from the command to the end of the first step", "seconds", "over the imports alone", title=how)
    table.add_row("import torch, lightning, timm", _spread(bare, ".1f"), "1")
    for name, found in runs.items():
        steps = [one[FIRST_STEP] for one in found]
        table.add_row(name, _spread(steps, ".1f"), _spread([s / b for s, b in zip(steps, bare, strict=True)], ".1f"))
    terminal().print(table)

    table = Table(
        "seconds",
        *runs,
        title=f"{options.model}, {options.images:,} images of {options.size} pixels, 20 epochs; {how}",
    )
    for share in SHARES:
        table.add_row(share, *(_spread([one[share] for one in found], ".1f") for found in runs.values()))
    whole = {name: [sum(one[share] for share in SHARES) for one in found] for name, found in runs.items()}
    table.add_row("in all", *(_spread(seconds, ".1f") for seconds in whole.values()))
    beside = {
        name: [100 * (1 - one[NETWORK] / seconds) for one, seconds in zip(found, whole[name], strict=True)]
        for name, found in runs.items()
    }
    table.add_row("not the network, %", *(_spread(shares, ".0f") for shares in beside.values()))
    terminal().print(table)


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
