"""How many images a second the trunk takes in each engine at hand: `python -m benchmarks.engines`.

The trunk is what a run with `unfreeze=0` stores: all stages, pooled. Every repeat runs each engine once, in turn,
over the same batches, so that a slow moment hits all; a ratio is of one repeat, the engine over eager PyTorch in
float32. "Distance" is that of its output from eager PyTorch in float32, for the image where it is largest: the length
of the difference as a share of the output's length. "Ready after" is how long it takes to export or compile the trunk
and to check it, the packages' first import included. Images are random, and weights if not asked for: the time does
not depend on them, the distance does.
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

from deepfake.config import ENGINES
from deepfake.console import terminal
from deepfake.models.backbones import build_backbone
from deepfake.models.engines import Engine, build_engine, planned, relative_distance
from deepfake.models.freezing import freeze

NETWORKS = ("tf_efficientnet_lite0", "resnet18")
_REFERENCE = ("eager", "float32")


def main() -> None:
    """Measure and print one line for each network, precision and engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn; the median counts (5)")
    parser.add_argument("--batches", type=int, default=4, help="of each repeat (4)")
    parser.add_argument("--batch-size", type=int, default=32, help="images (32)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the square images (224)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"timm names ({' '.join(NETWORKS)})")
    parser.add_argument("--precisions", nargs="+", default=_precisions(), help="those the processor computes in")
    parser.add_argument("--engines", nargs="+", default=_at_hand(), help="those installed; eager is always measured")
    parser.add_argument(
        "--weights", default="none", help="as model.weights: none, package, pretrained, a file (none)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("deepfake").addHandler(logging.StreamHandler())  # an engine that is not used says why
    table = Table(
        "network", "engine", "precision", "images a second", "of eager float32", "distance", "ready after, s",
        title=f"batches of {options.batch_size}, {options.size} pixels, {torch.get_num_threads()} threads, "
        f"median of {options.repeats} (lowest to highest)",
    )  # fmt: skip
    for network in options.networks:
        for row in _rows(network, options):
            table.add_row(network, *row)
    terminal().print(table)


def _at_hand() -> list[str]:
    found = {
        "compile": shutil.which("g++") is not None,
        "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
        "openvino": importlib.util.find_spec("openvino") is not None,
    }
    return [name for name in ENGINES if found.get(name)]


def _precisions() -> list[str]:
    _, fastest = planned("eager", "auto", torch.device("cpu"))
    return ["float32"] if fastest == "float32" else ["float32", fastest]


def _rows(network: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Of each engine and precision that can be built: both, images a second, ratio to eager in float32, distance from
    it, seconds until it was ready.
    """
    torch.manual_seed(0)
    backbone = build_backbone(network, options.weights, options.size)
    freeze(backbone, 0)
    images = torch.randn(options.batch_size, 3, options.size, options.size)
    images = images.contiguous(memory_format=torch.channels_last)
    wanted = [(name, precision) for name in ("eager", *options.engines) for precision in options.precisions]
    engines: dict[tuple[str, str], tuple[Engine, float]] = {}
    for kind in dict.fromkeys([_REFERENCE, *wanted]):
        if kind == ("onnxruntime", "bfloat16"):
            continue  # for the processor it has no convolution of bfloat16
        began = time.perf_counter()
        engine = build_engine(backbone, [len(backbone.stages)], *kind, images)
        engine(images)  # the first batch of any engine takes longer
        if (engine.name, engine.precision) == kind:  # none in its place
            engines[kind] = engine, time.perf_counter() - began

    (expected,) = engines[_REFERENCE][0](images)
    rates: dict[tuple[str, str], list[float]] = {kind: [] for kind in engines}
    for _ in range(options.repeats):
        for kind, (engine, _) in engines.items():
            began = time.perf_counter()
            for _ in range(options.batches):
                engine(images)
            rates[kind].append(options.batches * len(images) / (time.perf_counter() - began))
    rows: list[tuple[str, ...]] = []
    for kind, (engine, ready) in engines.items():
        ratios = [mine / eager for mine, eager in zip(rates[kind], rates[_REFERENCE], strict=True)]
        (output,) = engine(images)
        distance = relative_distance(output, expected)
        rows.append((*kind, _spread(rates[kind], ".0f"), _spread(ratios, ".2f"), f"{distance:.1e}", f"{ready:.1f}"))
    return rows


def _spread(values: list[float], digits: str) -> str:
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


if __name__ == "__main__":
    main()
