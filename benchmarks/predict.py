"""How many images a second are judged, from files to the finished table: `python -m benchmarks.predict`.

Beside that the loop that everyone writes (Pillow, torchvision's transforms, eager PyTorch), over the same files with
the same network and batches; the engine alone, on batches that lie ready in memory, which nothing can beat; reading
alone, by all cores; and bare reading, the least that any reader does: OpenCV's decoder, its resize without
antialiasing, normalising, and no look at what else is in the file. Ours does all that a prediction does but the start
of the process and the building of the engine: find, read, check, judge, calibrate, write the rows as they come and
then the table. Every repeat runs each of the five once, in turn, so that a slow moment hits all; a ratio is of one
repeat.

Where engine and reading share the cores, no pipeline can take less than both together; "of both bounds" says how near
to that ours comes, and the last line how near to the engine alone the barest reader could. A graphics card leaves the
cores to reading, and then it may be above 1.
"""

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from PIL import Image
from rich.table import Table
from torchvision import transforms as T

from deepfake.config import ENGINES, PredictConfig
from deepfake.console import terminal
from deepfake.data.prepared import Preparation
from deepfake.data.synthetic import make_faces
from deepfake.evaluation.calibration import calibrate
from deepfake.judging import Detector, Member, pixels_of
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule
from deepfake.models.engines import planned
from deepfake.models.trunk import Inference
from deepfake.predicting import input_files, judge_files

ENGINE, READING, BARE = "engine alone", "reading alone", "bare reading"


def plain_loop(
    network: torch.nn.Module, files: list[Path], batch_size: int, transform: T.Compose, device: torch.device
) -> None:
    """P(fake) of all files, as a tutorial has it."""
    found = []
    with torch.no_grad():
        for start in range(0, len(files), batch_size):
            images = [transform(Image.open(file).convert("RGB")) for file in files[start : start + batch_size]]
            found.append(network(torch.stack(images).to(device)).softmax(1)[:, 1].cpu())
    assert len(torch.cat(found)) == len(files)


def detector_of(name: str, engine: str, device: torch.device) -> Detector:
    """A network as a run with a frozen trunk leaves it, in the precision that such a run takes here; untrained."""
    backbone = build_backbone(name, "none")
    module = DetectorModule(backbone).eval().to(device)
    module.trunk = Inference(backbone, len(backbone.stages), engine, planned(engine, "auto", device)[1], device)
    calibration = calibrate(np.array([0, 1]), np.array([-1.0, 1.0]))
    member = Member(module, Preparation(), calibration, {})
    return Detector([member], lambda margins: margins[0], calibration, "none")


def barely_read(file: Path, size: int) -> np.ndarray:
    """Float32 (size, size, 3), in some order of colours and some range."""
    pixels = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    return cv2.LUT(cv2.resize(pixels, (size, size)), np.linspace(-2, 2, 256, dtype=np.float32))


def ready_batches(member: Member, files: list[Path], batch_size: int) -> list[np.ndarray]:
    """What the engine is shown of the first files: a few batches, which it is then given again and again."""
    images = [member.prepared(pixels_of(file), "none") for file in files[: 4 * batch_size]]
    return [np.stack(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]


def main() -> None:
    """Measure and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="the median counts (5)")
    parser.add_argument("--images", type=int, default=300, help="at most (300)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the built-in images (256)")
    parser.add_argument("--folder", type=Path, help="of images to judge instead of built-in ones")
    parser.add_argument("--network", default="efficientnet_b0", help="as timm knows it (efficientnet_b0)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of ours (auto)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--batch-size", type=int, default=32, help="images (32)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder or make_faces(Path(folder, "faces"), -(-options.images // 6), options.size, workers=0)
        files = list(itertools.islice(input_files(str(root)), options.images))
        seconds = _measured(files, Path(folder, "predictions.csv"), options)
    _print(seconds, len(files), options)


def _measured(files: list[Path], output: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way, for all files, a figure a repeat."""
    device = torch.device(options.device)
    detector = detector_of(options.network, options.engine, device)
    (member,) = detector.members
    spec = member.module.backbone.input_spec
    network = timm.create_model(options.network, num_classes=2).eval().to(device)
    transform = T.Compose([T.Resize((spec.size, spec.size)), T.ToTensor(), T.Normalize(spec.mean, spec.std)])
    batches = ready_batches(member, files, options.batch_size)
    cfg = PredictConfig(
        run="benchmark", input=[str(file) for file in files], output=str(output), sheet=0, progress=False,
        batch_size=options.batch_size,
    )  # fmt: skip

    def engine_alone() -> None:
        judged = 0
        for batch in itertools.cycle(batches):
            member.margins(batch)
            judged += len(batch)
            if judged >= len(files):
                break

    def reading_alone() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda file: member.prepared(pixels_of(file), "none"), files):
                pass

    def bare_reading() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda file: barely_read(file, spec.size), files):
                pass

    ways: dict[str, Callable[[], object]] = {
        "plain loop": lambda: plain_loop(network, files, options.batch_size, transform, device),
        ENGINE: engine_alone,
        READING: reading_alone,
        BARE: bare_reading,
        "files to table": lambda: judge_files(detector, cfg, ["benchmark"]),
    }
    for way in (engine_alone, ways["files to table"]):  # builds the engine, and fills the system's cache of files
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _print(seconds: dict[str, list[float]], images: int, options: argparse.Namespace) -> None:
    title = f"{options.network}, {images} files, {options.repeats} repeats, {torch.get_num_threads()} threads"
    table = Table("way", "images a second", "times the plain loop", "of the engine", "of both bounds", title=title)
    both = np.array(seconds[ENGINE]) + np.array(seconds[READING])
    for name, found in seconds.items():
        own = np.array(found)
        table.add_row(
            name,
            _spread(images / own, ".0f"),
            _spread(np.array(seconds["plain loop"]) / own, ".2f"),
            _spread(np.array(seconds[ENGINE]) / own, ".2f"),
            _spread(both / own, ".2f"),
        )
    terminal().print(table)
    bound = np.array(seconds[ENGINE]) / (np.array(seconds[ENGINE]) + np.array(seconds[BARE]))
    terminal().print(
        f"a pipeline of engine and bare reading on the same cores: {_spread(bound, '.2f')} of the engine"
    )


def _spread(values: np.ndarray, form: str) -> str:
    return f"{statistics.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


if __name__ == "__main__":
    main()
