"""How many images a second the trunk takes in each engine at hand: `python -m benchmarks.engines`.

The trunk is what a run stores: all stages but the last ones that a policy may train. Every repeat runs each engine
once, in turn, over the same batches, so that a slow moment hits all; a ratio is of one repeat, the engine over eager
PyTorch. "Ready after" is how long it takes to export or compile the trunk and to check it, the packages' first
import included. Weights and images are random: they make no difference to the time.
"""

import argparse
import importlib.util
import logging
import shutil
import statistics
import time
import warnings

import torch
from rich.table import Table

from deepfake.console import terminal
from deepfake.models.backbones import build_backbone
from deepfake.models.engines import NAMES, Engine, build_engine
from deepfake.models.freezing import freeze
from deepfake.models.trunk import stored_depth

NETWORKS = ("tf_efficientnet_lite0", "resnet18")


def main() -> None:
    """Measure and print one line for each network, precision and engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn; the median counts (5)")
    parser.add_argument("--batches", type=int, default=4, help="of each repeat (4)")
    parser.add_argument("--batch-size", type=int, default=32, help="images (32)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the square images (224)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"timm names ({' '.join(NETWORKS)})")
    parser.add_argument("--precisions", nargs="+", default=["32-true"], help="32-true, bf16-mixed (32-true)")
    parser.add_argument("--engines", nargs="+", default=_at_hand(), help="those installed; eager is always measured")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("deepfake").addHandler(logging.StreamHandler())  # an engine that is not used says why
    table = Table(
        "network", "precision", "engine", "images a second", "of eager", "ready after, s",
        title=f"batches of {options.batch_size}, {options.size} pixels, {torch.get_num_threads()} threads, "
        f"median of {options.repeats} (lowest to highest)",
    )  # fmt: skip
    for network in options.networks:
        for precision in options.precisions:
            for row in _rows(network, precision, options):
                table.add_row(network, precision, *row)
    terminal().print(table)


def _at_hand() -> list[str]:
    found = {
        "compile": shutil.which("g++") is not None,
        "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
        "openvino": importlib.util.find_spec("openvino") is not None,
    }
    return [name for name in NAMES if found.get(name)]


def _rows(network: str, precision: str, options: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """Of each engine that can be built: name, images a second, ratio to eager, seconds until it was ready."""
    torch.manual_seed(0)
    backbone = build_backbone(network, "none", options.size)
    freeze(backbone, 0)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    images = images.contiguous(memory_format=torch.channels_last)
    engines: dict[str, tuple[Engine, float]] = {}
    for name in ["eager", *options.engines]:
        began = time.perf_counter()
        engine = build_engine(backbone, stored_depth(backbone), name, images, precision)
        engine(images)  # the first batch of any engine takes longer
        if engine.name == name:  # not eager in its place
            engines[name] = engine, time.perf_counter() - began

    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.repeats):
        for name, (engine, _) in engines.items():
            began = time.perf_counter()
            for _ in range(options.batches):
                engine(images)
            rates[name].append(options.batches * len(images) / (time.perf_counter() - began))
    ratios = {name: [mine / eager for mine, eager in zip(rates[name], rates["eager"], strict=True)] for name in rates}
    return [
        (name, _spread(rates[name], ".0f"), _spread(ratios[name], ".2f"), f"{ready:.1f}")
        for name, (_, ready) in engines.items()
    ]


def _spread(values: list[float], digits: str) -> str:
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


if __name__ == "__main__":
    main()
