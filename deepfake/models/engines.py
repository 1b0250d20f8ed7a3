"""What runs a frozen trunk: PyTorch as it is ("eager"), or another runtime that gives the same numbers sooner.

An engine takes the trunk's weights as they are when it is built. Before it is used it must give what eager gives for
one batch, up to rounding. An engine that cannot be built, or gives something else, is replaced by eager with a
warning: a run then takes longer and comes to the same result.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from deepfake.config import ENGINES
from deepfake.console import log
from deepfake.errors import UserError
from deepfake.models.backbones import Backbone

_PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}

# What "auto" takes the first of that is installed. An order and not a race on the machine at hand: in a race, what
# else the machine does would decide who wins, and with that the last digits of every result. onnxruntime computes in
# float32 alone, which is slower than eager where the processor has bfloat16. "compile" is in neither: compiling takes
# half a minute, in which many a trunk is already done.
_FASTEST_FIRST = {"float32": ("openvino", "onnxruntime"), "bfloat16": ("openvino",)}

# How far an engine may be from eager PyTorch in float32: for each image, the length of the difference as a share of
# the length of eager's output. Where both are right, another order of summation makes at most 1e-6 of it in float32,
# and the 8 bits of bfloat16 make .003 to .02 in the networks of the study (benchmarks/engines.py prints it).
_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
_OPENVINO_TYPES = {"float32": "f32", "bfloat16": "bf16"}

_IMAGES, _BATCH = "images", "batch"  # of an ONNX model: the name of what it takes, and of that one's first dimension
_CHECKED = 8  # images that an engine is checked on: eager PyTorch takes seconds for a batch of a large network

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Engine:
    """Runs the first stages of a backbone.

    Called with float32 (N, 3, S, S) normalised images of any number N and the size it was built for, it returns what
    `Backbone.trunk(images, depths)` returns for the depths it was built for: same shapes, maps laid out channels
    last, tokens contiguous, without gradients, on the images' device. In bfloat16 that is also their type, save for
    what is pooled: that is float32 always.
    """

    name: str
    """eager | compile | onnxruntime | openvino."""
    precision: str
    """float32 | bfloat16: the type that convolutions and products are computed in."""
    tolerance: float
    """How far its output may be from that of eager PyTorch in float32, as a share of its length; 0: it is that."""
    run: Run
    depths: tuple[int, ...] = ()
    """Numbers of first stages whose output it gives, ascending."""
    lasting: bool = True
    """False where it takes the place of one that could not be built, which may be otherwise another time."""

    def __call__(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [_laid_out(output) for output in self.run(images)]


def planned(name: str, precision: str, device: torch.device) -> tuple[str, str]:
    """The engine and the precision that these settings mean on a device, nothing built yet.

    Args:
        name: one of `config.ENGINES`; "auto" for the fastest that is installed: on the processor openvino, then, in
            float32, onnxruntime, then eager; on any other device eager.
        precision: one of `config.PRECISIONS`; "auto" for bfloat16 where the device computes in it, else float32.
        device: of the network.

    Raises:
        UserError: there is no such engine, its packages are not installed, or it does not run on that device.
    """
    if precision == "auto":
        # onnxruntime has no convolution of bfloat16 for the processor.
        precision = "bfloat16" if _has_bfloat16(device) and name != "onnxruntime" else "float32"
    if name == "auto":
        order = _FASTEST_FIRST[precision] if device.type == "cpu" else ()
        return next((name for name in order if not _missing(name)), "eager"), precision
    return _checked_name(name, device), precision


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many threads for PyTorch, and for the engines that are built meanwhile; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions(name: str) -> list[str]:
    """Of the packages that decide the bits of what an engine gives."""
    return [f"{package} {metadata.version(package)}" for package in ("torch", "timm", *_PACKAGES.get(name, ()))]


def build_engine(
    backbone: Backbone,
    depths: Sequence[int],
    name: str,
    precision: str,
    sample: Tensor,
    start: int = 0,
    needed: Sequence[int] | None = None,
    leeway: float = 1.0,
) -> Engine:
    """The engine of that name for the first stages, checked against eager float32 on the sample.

    Args:
        backbone: frozen at least up to the last depth.
        depths: numbers of first stages whose output is wanted, ascending, 1 or more.
        name, precision: as `planned` returned them.
        sample: a batch as those to come, float32 (N, 3, S, S), on the device of the backbone. All engines but eager
            work in batches of just this size and fill up smaller ones, so it should be the usual batch.
        start: stages that have been run; then their output takes the place of images.
        needed: those of the depths that decide whether the engine is used; all if None. Of the others, what does not
            agree is left out.
        leeway: how many times the tolerance is allowed.

    Returns:
        That engine, or with a warning the nearest that gives what it should: the same in float32, eager in float32.
    """
    plain = _in_precision(_Trunk(backbone, depths, start).forward, "float32")
    eager = Engine("eager", "float32", 0.0, plain, tuple(depths))
    if (name, precision) == ("eager", "float32"):
        return eager
    few = sample[:_CHECKED]
    expected = eager(few)
    dtypes = [
        _stored_type(output, depth == len(backbone.stages), precision)
        for output, depth in zip(expected, depths, strict=True)
    ]
    try:
        # A copy: exporters and compilers switch modes, fold weights and leave traces in modules.
        trunk = _Trunk(copy.deepcopy(backbone), depths, start).eval()
        run = _BUILDERS[name](trunk, sample, precision)
        if name != "eager":
            run = _in_batches(run, len(sample))
        engine = Engine(name, precision, leeway * _TOLERANCES[precision], _of_types(run, dtypes), tuple(depths))
        return _agreeing(engine, few, expected, depths if needed is None else needed)
    except Exception as error:  # whatever a foreign compiler may raise: the run does not depend on it
        nearest = ("eager" if precision == "float32" else name, "float32")
        log.warning("trunk      %s in %s is not used, but %s in %s: %s", name, precision, *nearest, _told(error))
        found = build_engine(backbone, depths, *nearest, sample, start, needed, leeway)
        return replace(found, lasting=found.lasting and isinstance(error, Disagreement))


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than imitating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def _stored_type(output: Tensor, pooled: bool, precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" and not pooled else output.dtype


def _checked_name(name: str, device: torch.device) -> str:
    if name not in ENGINES:
        raise UserError(
            f"the trunk's engine must be one of {', '.join(ENGINES)}: found {name!r}; choose one of these"
        )
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


class Disagreement(ValueError):
    """An engine gives something else than eager PyTorch."""


def _agreeing(engine: Engine, sample: Tensor, expected: Sequence[Tensor], needed: Sequence[int]) -> Engine:
    """The engine, without those of its depths that are not needed and where it does not give what eager float32 gave.

    Raises:
        Disagreement: it gives something else at one that is.
    """
    kept = []
    for place, (depth, found, right) in enumerate(zip(engine.depths, engine(sample), expected, strict=True)):
        try:
            _check(found, right, engine.tolerance)
            kept.append(place)
        except Disagreement:
            if depth in needed:
                raise
    if len(kept) == len(engine.depths):
        return engine
    return replace(
        engine,
        run=lambda images: [output for place, output in enumerate(engine.run(images)) if place in kept],
        depths=tuple(engine.depths[place] for place in kept),
    )


def _check(found: Tensor, right: Tensor, tolerance: float) -> None:
    if found.shape != right.shape:
        raise Disagreement(f"expected an output of shape {tuple(right.shape)}, found {tuple(found.shape)}")
    distance = relative_distance(found, right)
    if not distance <= tolerance:  # not ">": no comparison holds for nan
        raise Disagreement(
            f"its output is {distance:.2g} of its length away from that of eager PyTorch in float32: expected at "
            f"most {tolerance:g}"
        )


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Of the image where it is largest: the length of the difference as a share of the length of what is expected.

    Args:
        found, expected: (N, ...), of any types.
    """
    found, expected = found.flatten(1).double(), expected.flatten(1).double()
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


class _Trunk(nn.Module):
    """Stages of a backbone as a module of their own, which is what exporters and compilers take."""

    def __init__(self, backbone: Backbone, depths: Sequence[int], start: int) -> None:
        super().__init__()
        self.backbone, self.depths, self.start = backbone, depths, start

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.backbone.trunk(images, self.depths, self.start)


# Each of the following returns what runs a batch of just the sample's size.


def _eager(trunk: nn.Module, sample: Tensor, precision: str) -> Run:
    return _in_precision(trunk, precision)


def _compile(trunk: nn.Module, sample: Tensor, precision: str) -> Run:
    # The whole graph or an error, so that what cannot be compiled does not run half compiled unsaid.
    return _in_precision(torch.compile(trunk, fullgraph=True, dynamic=False), precision)


def _onnxruntime(trunk: nn.Module, sample: Tensor, precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between two batches its threads would wait in a loop, on the cores that prepare the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name(_BATCH, len(sample))
    session = onnxruntime.InferenceSession(_onnx(trunk, sample), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        # In float32 whatever the precision: for the processor it has no convolution of bfloat16.
        return [torch.from_numpy(output) for output in session.run(None, {_IMAGES: images.contiguous().numpy()})]

    return run


def _openvino(trunk: nn.Module, sample: Tensor, precision: str) -> Run:

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # threads tied to cores stand still where something else has the core
        # Said always: where the processor has bfloat16, that is what it would take of its own accord.
        "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[precision],
    }
    core = _openvino_core()
    # From ONNX, not by openvino.convert_model, which reports its use to the maker.
    model = core.read_model(_onnx(trunk, sample))
    model.reshape(list(sample.shape))
    graph = core.compile_model(model, "CPU", settings)

    def run(images: Tensor) -> list[Tensor]:
        outputs = graph(images.contiguous().numpy(), share_inputs=True)  # copies, so the next batch may come
        return [torch.from_numpy(outputs[number]) for number in range(len(outputs))]

    return run


@functools.cache
def _openvino_core() -> Any:
    """The one core of this process, which outlives every engine.

    A core gives the thread a stack of its own for signals and, when it goes, puts back the one it had found. Of two
    that go in the order they came, the second puts back the first one's, which is no longer there: the next signal
    (a loader process that ends sends one) then kills the process without a word.
    """
    import openvino

    return openvino.Core()


_BUILDERS: dict[str, Callable[[nn.Module, Tensor, str], Run]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _onnx(trunk: nn.Module, sample: Tensor) -> bytes:
    """The trunk and its weights as an ONNX model in float32, for batches of any size or of just the sample's.

    It passes through a folder that nobody else can write to and is gone at once: no model is ever read from a file
    that someone else made.
    """
    # Of what it cannot export, PyTorch prints the whole graph, thousands of lines, unless kept from turning that on.
    silent = mock.patch.object(torch._C, "_jit_set_onnx_log_enabled", create=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), silent:
        # The exporter by tracing has a successor, which takes ten times as long for the same graph.
        warnings.simplefilter("ignore")
        file = Path(folder, "trunk.onnx")
        # Whoever asks may be within autocast, which would put its casts into the graph.
        with torch.autocast(sample.device.type, enabled=False):
            # It runs the trunk to see what it does: of more images it would see the same, only later.
            two, any_number = (sample[:2].contiguous(),), {_IMAGES: {0: _BATCH}}
            how: Any = {"dynamo": False, "input_names": [_IMAGES]}
            try:
                torch.onnx.export(trunk, two, file, dynamic_axes=any_number, **how)
            except Exception:  # whatever the exporter raises where it has to know the number
                torch.onnx.export(trunk, (sample.contiguous(),), file, **how)
        return file.read_bytes()


def _in_precision(run: Run, precision: str) -> Run:
    """With images channels last, and under autocast to bfloat16 or under none."""

    def precise(images: Tensor) -> Sequence[Tensor]:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return run(images.contiguous(memory_format=torch.channels_last))

    return precise


def _laid_out(features: Tensor) -> Tensor:
    """Maps channels last, tokens contiguous."""
    layout = torch.channels_last if features.ndim == 4 else torch.contiguous_format
    return features.contiguous(memory_format=layout)


def _of_types(run: Run, dtypes: Sequence[torch.dtype]) -> Run:
    """With each output in its type."""
    return lambda images: [output.to(dtype) for output, dtype in zip(run(images), dtypes, strict=True)]


def _in_batches(run: Run, size: int) -> Run:
    """From what runs batches of one size, what takes any number of images.

    The last batch is filled up with zeros. Graphs of one size are faster than those of any.
    """

    def run_all(images: Tensor) -> list[Tensor]:
        outputs = []
        for batch in images.split(size):
            filling = batch.new_zeros(size - len(batch), *batch.shape[1:])
            full = torch.cat([batch, filling]) if len(filling) else batch
            outputs.append([output[: len(batch)] for output in run(full)])
        return [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*outputs, strict=True)]

    return run_all
