"""What a sweep costs over what its trunks cost: `python -m benchmarks.sweep`.

A sweep that trains heads alone has to run each backbone once over every image in every view that its jobs show of it;
the rest is overhead. This measures both, in one run:

- the whole sweep as a user starts it, `python -m deepfake.train -m model=... lr=... seed=...`, in one process, from
  an empty output folder on to the comparison at its end; Python's start and imports count. With `--jobs 1 2` another
  sweep follows whose jobs run two at a time (`hydra/launcher=joblib`): a core for each, and all of them for a pass;
- the trunk passes alone, in this process: the same rows, computed and stored in another folder from the same
  settings, with the images catalogued and prepared and the engines built before the clock starts. That these are the
  sweep's rows, no more and no fewer, is checked in the two stores.

Each backbone has one set of random weights in a file, as `model.weights=FILE` takes it, and every job shows the same
views, so that all learning rates and seeds share its passes. Early stopping is off. The images are drawn before.
Every repeat measures all in turn, so that a slow moment hits all; a ratio is of one repeat. The overhead is mostly
so much a job, whatever the number of images: fewer images make the ratio worse. `--images 445` is the study's size.
Further settings are given as to `deepfake.train`, such as `views=4` or `augment=none`.
"""

import argparse
import csv
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import NamedTuple

import timm
import torch
from hydra import compose, initialize_config_dir
from rich.table import Table
from safetensors.torch import save_file

from deepfake import runs
from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.console import terminal
from deepfake.data.datamodule import PARTS
from deepfake.data.synthetic import make_faces
from deepfake.dataset import catalogue, preparation
from deepfake.models.trunk import StoredTrunk, Trunk
from deepfake.runs import environment
from deepfake.training import build_detector, data_module, device_of

SHARES = (
    "outside the jobs: Python, imports, composing, comparison",
    "catalogue, preparation, network",
    "passes, engines built and checked",
    "epochs of the heads",
    "judging, figures, records",
)

_Rows = set[tuple[str, str, str]]  # (what makes it, view, image)


class Measured(NamedTuple):
    """One repeat."""

    sweeps: dict[int, float]  # with so many jobs at a time, seconds
    shares: dict[str, float]  # of the one with a job at a time, seconds
    passes: dict[str, float]  # of each backbone, seconds
    rows: int  # of all backbones

    def ratio(self, jobs: int) -> float:
        return self.sweeps[jobs] / sum(self.passes.values())


def main() -> None:
    """Measure, print one line for each repeat, and in the end the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of all, in turn; the median counts (5)")
    parser.add_argument("--models", default="resnet18,efficientnet,densenet121,vit", help="choices of model=")
    parser.add_argument("--lrs", default="1e-4,3e-4,1e-3,3e-3,1e-2", help="learning rates")
    parser.add_argument("--seeds", default="0,1,2", help="seeds")
    parser.add_argument("--images", type=int, default=1667, help="of each of the six built-in sources (1667)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the built-in images (256)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1], help="at a time, a sweep for each number (1)")
    parser.add_argument("settings", nargs="*", help="further ones of deepfake.train, NAME=VALUE")
    options = parser.parse_intermixed_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        faces = make_faces(Path(folder, "faces"), options.images, options.size)
        weights = _random_weights(Path(folder), options.models.split(","))
        for repeat in range(options.repeats):
            found = _measure(faces, weights, Path(folder, str(repeat)), options)
            seconds = sum(found.passes.values())
            for jobs, sweep in found.sweeps.items():
                told = f"{jobs} at a time {sweep:.1f} s, trunk passes {seconds:.1f} s, ratio {found.ratio(jobs):.2f}"
                print(told, flush=True)
            measured.append(found)
    _print(measured, options)


def _random_weights(folder: Path, models: Sequence[str]) -> str:
    """One file for each backbone; returns the setting that names the one of any."""
    torch.manual_seed(0)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for model in models:
            name = compose("train", [f"model={model}"]).model.timm
            save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return f"model.weights={folder}/${{model.timm}}.safetensors"


def _measure(faces: Path, weights: str, folder: Path, options: argparse.Namespace) -> Measured:
    common = [
        f"data.root={faces}", weights, "patience=null", "trainer.progress=false", *options.settings,
    ]  # fmt: skip
    chosen = [f"model={options.models}", f"lr={options.lrs}", f"seed={options.seeds}"]
    sweeps = {}
    for jobs in options.jobs:
        beside = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"] if jobs > 1 else []
        sweeps[jobs] = _seconds_of_sweep([*chosen, *common, *beside, f"output_dir={folder / f'sweep{jobs}'}"])
    passed = folder / "passes"
    passes: dict[str, float] = {}
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for model in options.models.split(","):
            settings = [f"model={model}", *common, f"output_dir={passed}"]
            passes[model] = _seconds_of_passes(parse_train(compose("train", settings)))
    rows = _stored(passed)
    for jobs in sweeps:
        swept = _stored(folder / f"sweep{jobs}")
        if rows != swept:
            both = len(rows & swept)
            sys.exit(f"the sweep stored {len(swept)} rows, the passes {len(rows)}, {both} of them in both")
    shares = _shares(folder / "sweep1", sweeps[1]) if 1 in sweeps else {}
    return Measured(sweeps, shares, passes, len(rows))


def _seconds_of_sweep(settings: Sequence[str]) -> float:
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "deepfake.train", "-m", *settings], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if ended.returncode != 0:
        sys.exit(f"the sweep ended with status {ended.returncode}:\n{ended.stderr[-4000:]}")
    return seconds


def _seconds_of_passes(cfg: TrainConfig) -> float:
    """How long the trunk of a run takes to compute and store the rows that its epochs need and the store lacks."""
    found = catalogue(cfg.data, show=False)
    detector = build_detector(cfg)
    device = device_of(cfg)
    data, _ = data_module(cfg, found, preparation(cfg.data, found.table), detector, device)
    trunk = Trunk(detector.backbone, (), cfg.trunk.engine, cfg.trunk.precision, device)
    first = range(min(cfg.batch_size, len(data.rows("train"))))
    for batch in data.image_batches("train", 0, first):
        trunk.build(data.normalised({name: values.to(device) for name, values in batch.items()}))
    stored = StoredTrunk(trunk, Path(cfg.data.cache.dir, "trunk"), cfg.cache_max_gb, cfg.epochs, show=False)
    began = time.perf_counter()
    for part in PARTS:
        for view in range(min(cfg.epochs, data.views or cfg.epochs) if part == "train" else 1):
            stored.rows(data, part, view)
    return time.perf_counter() - began


def _stored(output: Path) -> _Rows:
    """Every row in the stores of an output folder."""
    rows: _Rows = set()
    for index in Path(output, ".cache", "trunk").glob("*/index.sqlite"):
        with closing(connect(index)) as database:
            rows.update((index.parent.name, *row) for row in database.execute("SELECT view, image FROM rows"))
    return rows


def _shares(output: Path, sweep: float) -> dict[str, float]:
    """Where a sweep's seconds went, by what its jobs wrote and when."""
    shares = dict.fromkeys(SHARES, 0.0)
    shares[SHARES[0]] = sweep
    for summary in output.glob(f"*/{runs.SUMMARY}"):
        run = summary.parent
        seconds = json.loads(summary.read_text())["seconds"]
        with (run / "seconds.csv").open(newline="") as stream:
            epochs = [float(row["seconds"]) for row in csv.DictReader(stream)]
        # Written when everything is ready, when the last epoch is over, and in the end.
        ready, fitted, done = ((run / name).stat().st_mtime for name in ("config.yaml", "seconds.csv", runs.STATUS))
        heads = len(epochs) * statistics.median(epochs)  # an epoch that waits for a pass is longer
        parts = (-seconds, seconds - (done - ready), fitted - ready - heads, heads, done - fitted)
        for share, part in zip(SHARES, parts, strict=True):
            shares[share] += part
    return shares


def _print(measured: Sequence[Measured], options: argparse.Namespace) -> None:
    counts = [len(values.split(",")) for values in (options.models, options.lrs, options.seeds)]
    table = Table(
        "seconds", "median (lowest to highest)",
        title=f"{counts[0]} backbones x {counts[1]} learning rates x {counts[2]} seeds, {6 * options.images} images, "
        f"{torch.get_num_threads()} threads, "
        f"{' '.join(environment()['gpus']) or 'no GPU'}, {len(measured)} repeats",
    )  # fmt: skip
    for jobs in options.jobs:
        table.add_row(f"the whole sweep, {jobs} at a time", _spread([m.sweeps[jobs] for m in measured], ".1f"))
        for share in measured[0].shares if jobs == 1 else ():  # what runs side by side adds up to more than the whole
            table.add_row(f"  {share}", _spread([m.shares[share] for m in measured], ".1f"))
    passes = [sum(m.passes.values()) for m in measured]
    table.add_row(f"the trunk passes alone, {measured[0].rows:,} rows", _spread(passes, ".1f"))
    for model in measured[0].passes:
        table.add_row(f"  {model}", _spread([m.passes[model] for m in measured], ".1f"))
    for jobs in options.jobs:
        table.add_row(f"sweep / trunk passes, {jobs} at a time", _spread([m.ratio(jobs) for m in measured], ".2f"))
    terminal().print(table)


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
