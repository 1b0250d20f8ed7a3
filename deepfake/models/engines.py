"""What runs a frozen trunk: PyTorch as it is ("eager"), or another runtime that gives the same numbers sooner.

An engine takes the trunk's weights as they are when it is built. Before it is used it must give what eager gives for
one batch, up to rounding. An engine that cannot be built, or gives something else, is replaced by eager with a
warning: a run then takes longer and comes to the same result.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepfake.console import log
from deepfake.errors import UserError
from deepfake.models.backbones import Backbone

NAMES = ("auto", "eager", "compile", "onnxruntime", "openvino")

_PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}

# What "auto" takes the first of that is installed. An order and not a race on the machine at hand: in a race, what
# else the machine does would decide who wins, and with that the last digits of every result. onnxruntime computes in
# float32 alone, which is slower than eager where the processor has bfloat16. "compile" is in neither: compiling takes
# half a minute, in which many a trunk is already done.
_FASTEST_FIRST = {torch.float32: ("openvino", "onnxruntime"), torch.bfloat16: ("openvino",)}

# Of each precision the type that convolutions and products are computed in, and how far an engine may be from eager,
# as a share of the largest value. Where both are right they are at most 3e-6 apart in float32, and .05 in bfloat16
# with its 8 bits, in which eager itself is .04 from the truth after the seven stages of an EfficientNet-Lite0.
_PRECISIONS = {
    "32-true": (torch.float32, 1e-4),
    "bf16-mixed": (torch.bfloat16, 0.1),
    "16-mixed": (torch.float16, 0.01),
}
_OPENVINO_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Engine:
    """Runs the first stages of a backbone.

    Called with float32 (N, 3, S, S) normalised images of any number N and the size it was built for, it returns what
    `Backbone.features(images, stop=depth)` returns under the precision it was built for: same shape, same type, maps
    laid out channels last, tokens contiguous, without gradients, on the images' device.
    """

    name: str
    """eager | compile | onnxruntime | openvino."""
    tolerance: float
    """How far its output may be from eager's, as a share of the largest value in eager's output."""
    run: Run

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.run(images)


def build_engine(backbone: Backbone, depth: int, name: str, sample: Tensor, precision: str) -> Engine:
    """The engine of that name for the first `depth` stages, checked against eager on the sample.

    Args:
        backbone: frozen at least up to `depth`.
        depth: stages to run, 1 or more.
        name: one of `NAMES`; "auto" for the fastest that is installed: on the processor openvino, then, in float32,
            onnxruntime, then eager; on any other device eager.
        sample: a batch as those to come, float32 (N, 3, S, S), on the device of the backbone. All engines but eager
            work in batches of just this size and fill up smaller ones, so it should be the usual batch.
        precision: as Lightning names it: 32-true, bf16-mixed or 16-mixed.

    Raises:
        UserError: there is no such engine, its packages are not installed, or it does not run on that device.
    """
    dtype, tolerance = _PRECISIONS[precision]
    chosen = _fastest(sample.device, dtype) if name == "auto" else _checked_name(name, sample.device)
    eager = Engine("eager", 0.0, _in_precision(_Trunk(backbone, depth).forward, dtype))
    if chosen == "eager":
        return eager
    expected = eager(sample)
    try:
        # A copy: exporters and compilers switch modes, fold weights and leave traces in modules.
        trunk = _Trunk(copy.deepcopy(backbone), depth).eval()
        run = _BUILDERS[chosen](trunk, sample, dtype)
        engine = Engine(chosen, tolerance, _in_batches(run, len(sample), expected.dtype))
        _check(engine, sample, expected)
    except Exception as error:  # whatever a foreign compiler may raise: the run does not depend on it
        log.warning("trunk      the engine %s is not used, eager PyTorch takes its place: %s", chosen, _told(error))
        return eager
    return engine


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    order = _FASTEST_FIRST.get(dtype, ()) if device.type == "cpu" else ()
    return next((name for name in order if not _missing(name)), "eager")


def _checked_name(name: str, device: torch.device) -> str:
    if name not in NAMES:
        raise UserError(f"the trunk's engine must be one of {', '.join(NAMES)}: found {name!r}; choose one of these")
    if name in _PACKAGES and device.type != "cpu":
        raise UserError(
            f"the engine {name} runs on the processor: found the network on {device.type}; "
            "choose auto, eager or compile"
        )
    if missing := _missing(name):
        raise UserError(
            f"the engine {name} needs {' and '.join(_PACKAGES[name])}: found no {' and no '.join(missing)}; "
            f"pip install 'deepfake[{name}]', or choose auto"
        )
    return name


def _missing(name: str) -> list[str]:
    """Packages an engine needs that are not installed."""
    return [package for package in _PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]


def _told(error: Exception) -> str:
    """In one line. After the first empty one compilers give advice to whoever mends them."""
    message = str(error).strip().split("\n\n")[0]
    return " ".join(f"{type(error).__name__}: {message}".split())[:300]


def _check(engine: Engine, sample: Tensor, expected: Tensor) -> None:
    """See that an engine gives what eager gave.

    Raises:
        ValueError: it does not.
    """
    found = engine(sample)
    if found.shape != expected.shape:
        raise ValueError(f"expected an output of shape {tuple(expected.shape)}, found {tuple(found.shape)}")
    scale = expected.abs().max().item()
    distance = (found.float() - expected.float()).abs().max().item()
    if not distance <= engine.tolerance * scale:  # not ">": no comparison holds for nan
        raise ValueError(
            f"its output is {distance:.2g} away from eager's, whose largest value is {scale:.2g}: "
            f"expected at most {engine.tolerance:g} of that"
        )


class _Trunk(nn.Module):
    """The first stages of a backbone as a module of their own, which is what exporters and compilers take."""

    def __init__(self, backbone: Backbone, depth: int) -> None:
        super().__init__()
        self.backbone, self.depth = backbone, depth

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.features(images, stop=self.depth)


# Each of the following returns what runs a batch of just the sample's size.


def _compile(trunk: nn.Module, sample: Tensor, dtype: torch.dtype) -> Run:
    # The whole graph or an error, so that what cannot be compiled does not run half compiled unsaid.
    return _in_precision(torch.compile(trunk, fullgraph=True, dynamic=False), dtype)


def _onnxruntime(trunk: nn.Module, sample: Tensor, dtype: torch.dtype) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between two batches its threads would wait in a loop, on the cores that prepare the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(_onnx(trunk, sample), options, providers=["CPUExecutionProvider"])
    (images_name,) = (node.name for node in session.get_inputs())

    def run(images: Tensor) -> Tensor:
        # In float32 whatever the precision: for the processor it has no convolution of bfloat16.
        (features,) = session.run(None, {images_name: images.contiguous().numpy()})
        return torch.from_numpy(features)

    return run


def _openvino(trunk: nn.Module, sample: Tensor, dtype: torch.dtype) -> Run:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # threads tied to cores stand still where something else has the core
        # Said always: where the processor has bfloat16, that is what it would take of its own accord.
        "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[dtype],
    }
    core = openvino.Core()
    # From ONNX, not by openvino.convert_model, which reports its use to the maker.
    graph = core.compile_model(core.read_model(_onnx(trunk, sample)), "CPU", settings)

    def run(images: Tensor) -> Tensor:
        features = graph(images.contiguous().numpy(), share_inputs=True)[0]  # a copy, so the next batch may come
        return torch.from_numpy(features)

    return run


_BUILDERS: dict[str, Callable[[nn.Module, Tensor, torch.dtype], Run]] = {
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _onnx(trunk: nn.Module, sample: Tensor) -> bytes:
    """The trunk and its weights as an ONNX model in float32, for batches of the sample's size.

    It passes through a folder that nobody else can write to and is gone at once: no model is ever read from a file
    that someone else made.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter by tracing has a successor, which takes ten times as long for the same graph.
        warnings.simplefilter("ignore")
        file = Path(folder, "trunk.onnx")
        # Whoever asks may be within autocast, which would put its casts into the graph.
        with torch.autocast(sample.device.type, enabled=False):
            torch.onnx.export(trunk, (sample.contiguous(),), file, dynamo=False)
        return file.read_bytes()


def _in_precision(run: Run, dtype: torch.dtype) -> Run:
    """With images channels last, and under autocast to that type, or to none where it is float32."""

    def precise(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return _laid_out(run(images.contiguous(memory_format=torch.channels_last)))

    return precise


def _laid_out(features: Tensor) -> Tensor:
    """Maps channels last, tokens contiguous."""
    layout = torch.channels_last if features.ndim == 4 else torch.contiguous_format
    return features.contiguous(memory_format=layout)


def _in_batches(run: Run, size: int, dtype: torch.dtype) -> Run:
    """From what runs batches of one size, what takes any number of images and returns that type.

    The last batch is filled up with zeros. Graphs of one size are simpler to make than those of any, and faster.
    """

    def run_all(images: Tensor) -> Tensor:
        features = []
        for batch in images.split(size):
            filling = batch.new_zeros(size - len(batch), *batch.shape[1:])
            full = torch.cat([batch, filling]) if len(filling) else batch
            features.append(run(full)[: len(batch)])
        return _laid_out((torch.cat(features) if len(features) > 1 else features[0]).to(dtype))

    return run_all
