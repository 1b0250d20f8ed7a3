"""Every engine gives what eager float32 gives, or another takes its place and says so."""

import copy
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepfake.config import ENGINES
from deepfake.console import log
from deepfake.errors import UserError
from deepfake.models import engines
from deepfake.models import trunk as trunk_module
from deepfake.models.backbones import Backbone, build_backbone
from deepfake.models.engines import Engine, build_engine, planned, relative_distance
from deepfake.models.freezing import freeze
from deepfake.models.trunk import Inference

SIZE = 64
TINY = "test_resnet"  # timm's own for tests
EXTRAS = ("onnxruntime", "openvino")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The project's warnings so far."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)


def network(name: str = TINY) -> Backbone:
    """Random weights, and norms that are not the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "none", SIZE)
    for key, buffer in backbone.network.named_buffers():
        if key.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    freeze(backbone, 0)
    return backbone


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def eager(backbone: Backbone, depths: Sequence[int], batch: Tensor) -> list[Tensor]:
    """The stages as anyone would run them; what all of them give is pooled."""
    with torch.no_grad():
        outputs = [backbone.features(batch, stop=depth) for depth in depths]
        whole = [depth == len(backbone.stages) for depth in depths]
        return [pooled(output) if all_of else output for output, all_of in zip(outputs, whole, strict=True)]


def pooled(output: Tensor) -> Tensor:
    return output.mean((2, 3), keepdim=True) if output.ndim == 4 else output[:, :1]


def expect_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Of float32 outputs."""
    for mine, right in zip(found, expected, strict=True):
        assert mine.dtype == right.dtype
        torch.testing.assert_close(mine, right, rtol=0, atol=tolerance * right.abs().max().item())


def need(name: str) -> None:
    if absent := engines._missing(name):
        pytest.skip(f"{name} needs {' and '.join(absent)}: pip install 'deepfake[{name}]'")


# ------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    ("architecture", "depths"),
    [(TINY, (1, 3, 5)), ("test_efficientnet", (1, 3, 5)), ("test_vit", (1, 4, 6, 7)), ("densenet121", (2, 5))],
)
def test_engines_agree_with_eager(name: str, architecture: str, depths: Sequence[int], said: list[str]) -> None:
    need(name)
    backbone = network(architecture)
    engine = build_engine(backbone, depths, name, "float32", images(4))
    assert said == []
    assert (engine.name, engine.precision, engine.tolerance) == (name, "float32", 1e-4)
    for count in (4, 1, 3, 9):
        expected = eager(backbone, depths, images(count))
        found = engine(images(count))
        expect_close(found, expected, 1e-5)
        for output in found:
            layout = torch.channels_last if output.ndim == 4 else torch.contiguous_format
            assert output.is_contiguous(memory_format=layout)


@pytest.mark.slow
def test_the_compiled_trunk_agrees_with_eager(said: list[str]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("compile needs a C++ compiler, g++")
    backbone = network()
    engine = build_engine(backbone, [1, 2], "compile", "float32", images(4))
    assert said == []
    assert engine.name == "compile"
    for count in (4, 3, 9):
        expect_close(engine(images(count)), eager(backbone, [1, 2], images(count)), 1e-5)


@pytest.mark.parametrize("name", ["eager", "openvino"])
@pytest.mark.parametrize(("architecture", "stages"), [(TINY, 5), ("test_vit", 7)])
def test_in_bfloat16(name: str, architecture: str, stages: int, said: list[str]) -> None:
    need(name)
    backbone = network(architecture)
    assert len(backbone.stages) == stages
    engine = build_engine(backbone, [2, stages], name, "bfloat16", images(4))
    assert said == []
    assert (engine.name, engine.precision, engine.tolerance) == (name, "bfloat16", 0.05)
    for count in (4, 3):
        found = engine(images(count))
        assert [output.dtype for output in found] == [torch.bfloat16, torch.float32], "what is pooled stays whole"
        for output, expected in zip(found, eager(backbone, [2, stages], images(count)), strict=True):
            assert output.shape == expected.shape
            assert 1e-4 < relative_distance(output, expected) < 0.05, "it is computed in bfloat16"


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_the_precision_is_the_engines_own(name: str) -> None:
    """Whoever builds it or calls it may be within autocast."""
    need(name)
    backbone = network()
    with torch.autocast("cpu", torch.bfloat16):
        engine = build_engine(backbone, [3, 5], name, "float32", images(4))
        found = engine(images(4))
    expect_close(found, eager(backbone, [3, 5], images(4)), 1e-5)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_engines_may_be_built_where_no_gradient_is_known(name: str, said: list[str]) -> None:
    need(name)
    backbone = network()
    with torch.inference_mode():
        engine = build_engine(backbone, [3], name, "float32", images(4))
        found = engine(images(4))
    assert said == []
    expect_close(found, eager(backbone, [3], images(4)), 1e-5)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_a_batch_stays_when_the_next_one_comes(name: str) -> None:
    need(name)
    engine = build_engine(network(), [3], name, "float32", images(4))
    (first,) = engine(images(4))
    before = first.clone()
    engine(images(4).neg())
    assert torch.equal(first, before)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_no_gradient_comes_from_an_engine(name: str) -> None:
    need(name)
    backbone = network()
    backbone.requires_grad_(True)
    (output,) = build_engine(backbone, [3], name, "float32", images(4))(images(4))
    assert not output.requires_grad


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_the_network_stays_as_it_was(name: str) -> None:
    need(name)
    backbone = network()
    backbone.train()

    def state(of: Backbone) -> Any:
        tensors = [(key, value.stride(), value.clone()) for key, value in of.state_dict().items()]
        return tensors, [module.training for module in of.modules()], [p.requires_grad for p in of.parameters()]

    tensors, *modes = state(backbone)
    build_engine(backbone, [3], name, "float32", images(4))(images(3))
    tensors_after, *modes_after = state(backbone)
    assert modes_after == modes
    for (key, stride, value), (key_after, stride_after, value_after) in zip(tensors, tensors_after, strict=True):
        assert (key, stride) == (key_after, stride_after)
        assert torch.equal(value, value_after), key


# ------------------------------------------------------------------------------------------------- another instead


def expect_eager_instead(
    monkeypatch: pytest.MonkeyPatch, said: list[str], builder: Callable[..., Any], reason: str
) -> None:
    """Of an engine made by `builder`."""
    monkeypatch.setitem(engines._BUILDERS, "compile", builder)
    backbone = network()
    engine = build_engine(backbone, [3], "compile", "float32", images(4))
    assert (engine.name, engine.precision, engine.tolerance) == ("eager", "float32", 0)
    expect_eager(engine, backbone)
    (warning,) = said
    assert "compile in float32 is not used, but eager in float32: " in warning
    assert reason in warning
    assert "\n" not in warning


def expect_eager(engine: Engine, backbone: Backbone) -> None:
    (found,) = engine(images(5))
    assert torch.equal(found, *eager(backbone, [3], images(5).to(memory_format=torch.channels_last)))


def failing(change: Callable[[Tensor], Tensor], precision: str | None = None) -> Callable[..., Any]:
    """Builds a trunk that does this to its outputs, in that precision or in any."""

    def build(trunk: nn.Module, sample: Tensor, asked: str) -> engines.Run:
        return lambda batch: [change(right) if precision in (None, asked) else right for right in trunk(batch)]

    return build


@pytest.mark.parametrize(
    "change",
    [
        torch.randn_like,
        lambda right: right * 1.001,
        lambda right: right.flip(0),
        lambda right: right.index_fill(0, torch.tensor([3]), 0),
        lambda right: torch.where(right == right.max(), 0, right),
        lambda right: right * torch.nan,
        lambda right: right * torch.inf,
    ],
    ids=["noise", "a little more", "another order", "one image", "one value", "nan", "inf"],
)
def test_an_engine_that_gives_something_else_is_not_used(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    reason = "of its length away from that of eager PyTorch in float32: expected at most 0.0001"
    expect_eager_instead(monkeypatch, said, failing(change), reason)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_every_depth_is_checked(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(trunk: nn.Module, *_: Any) -> engines.Run:
        return lambda batch: [right.flip(0) if n == wrong else right for n, right in enumerate(trunk(batch))]

    monkeypatch.setitem(engines._BUILDERS, "compile", build)
    assert build_engine(network(), [1, 3, 5], "compile", "float32", images(4)).name == "eager"


@pytest.mark.parametrize(("wrong", "left"), [(0, (3, 5)), (2, (1, 3))])
def test_a_depth_that_is_not_needed_decides_nothing_and_is_left_out(
    wrong: int, left: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def build(trunk: nn.Module, *_: Any) -> engines.Run:
        return lambda batch: [right.flip(0) if n == wrong else right for n, right in enumerate(trunk(batch))]

    monkeypatch.setitem(engines._BUILDERS, "compile", build)
    backbone = network()
    engine = build_engine(backbone, [1, 3, 5], "compile", "float32", images(4), needed=[3])
    assert (engine.name, engine.depths, said) == ("compile", left, [])
    for found, right in zip(engine(images(4)), eager(backbone, left, images(4)), strict=True):
        torch.testing.assert_close(found, right)
    assert build_engine(backbone, [1, 3, 5], "compile", "float32", images(4), needed=[1, 5]).name == "eager"


def test_only_what_was_built_and_is_wrong_is_so_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler found")

    backbone = network()
    assert build_engine(backbone, [3], "eager", "float32", images(4)).lasting
    monkeypatch.setitem(engines._BUILDERS, "compile", failing(lambda right: right.flip(0)))
    assert build_engine(backbone, [3], "compile", "bfloat16", images(4)).lasting
    monkeypatch.setitem(engines._BUILDERS, "compile", broken)
    assert not build_engine(backbone, [3], "compile", "bfloat16", images(4)).lasting


def test_an_output_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    reason = "expected an output of shape (4, 48, 8, 8), found (4, 48, 64)"
    expect_eager_instead(monkeypatch, said, failing(lambda right: right.flatten(2)), reason)


def test_an_output_too_few_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(trunk: nn.Module, *_: Any) -> engines.Run:
        return lambda batch: trunk(batch)[1:]

    monkeypatch.setitem(engines._BUILDERS, "compile", build)
    assert build_engine(network(), [1, 3], "compile", "float32", images(4)).name == "eager"


def test_an_engine_that_cannot_be_built_is_not_used(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler found:\n  tried g++\n\nSet VERBOSE=1 for more")

    expect_eager_instead(monkeypatch, said, broken, "float32: RuntimeError: no compiler found: tried g++")
    assert said[0].endswith("g++")


def test_what_fails_in_bfloat16_may_be_right_in_float32(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setitem(engines._BUILDERS, "compile", failing(lambda right: right.flip(0), "bfloat16"))
    engine = build_engine(network(), [3], "compile", "bfloat16", images(4))
    assert (engine.name, engine.precision) == ("compile", "float32")
    (warning,) = said
    assert "compile in bfloat16 is not used, but compile in float32: Disagreement" in warning


def test_what_fails_in_both_is_eager_in_float32(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setitem(engines._BUILDERS, "compile", failing(lambda right: right.flip(0)))
    backbone = network()
    engine = build_engine(backbone, [3], "compile", "bfloat16", images(4))
    assert (engine.name, engine.precision) == ("eager", "float32")
    expect_eager(engine, backbone)
    assert len(said) == 2


def test_eager_in_bfloat16_that_loses_too_much_is_eager_in_float32(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setitem(engines._TOLERANCES, "bfloat16", 1e-6)
    backbone = network()
    engine = build_engine(backbone, [3], "eager", "bfloat16", images(4))
    assert (engine.name, engine.precision) == ("eager", "float32")
    expect_eager(engine, backbone)
    (warning,) = said
    assert "eager in bfloat16 is not used, but eager in float32: Disagreement" in warning


def test_the_distance_is_that_of_the_image_where_it_is_largest() -> None:
    expected = torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]]])
    found = expected + torch.tensor([[[0.0, 0.5]], [[0.5, 0.0]]])
    assert relative_distance(found, expected) == pytest.approx(0.1)
    assert relative_distance(found.flip(0), expected.flip(0)) == pytest.approx(0.1)
    assert relative_distance(expected.bfloat16(), expected) == 0


@pytest.mark.parametrize("name", EXTRAS)
def test_a_network_that_can_be_exported_for_one_number_of_images_alone(
    name: str, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    need(name)

    class Largest(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            count, channels, height, width = features.shape
            twice = features.unsqueeze(1).expand(count, 2, channels, height, width)
            return F.adaptive_max_pool2d(twice.reshape(count, 2 * channels, height, width), 4)[:, :channels]

    backbone, batch = network(), images(4)
    backbone.network.act1 = Largest()
    engine = build_engine(backbone, [3], name, "float32", batch)
    assert (engine.name, said) == (name, [])
    expect_close(engine(batch), eager(backbone, [3], batch), 1e-5)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", EXTRAS)
def test_a_network_that_cannot_be_exported_runs_in_eager(
    name: str, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    need(name)

    class Bessel(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.special.bessel_j0(features)  # not in ONNX

    backbone = network()
    backbone.network.act1 = Bessel()
    assert build_engine(backbone, [3], name, "float32", images(4)).name == "eager"
    (warning,) = said
    assert f"{name} in float32 is not used, but eager in float32: UnsupportedOperatorError" in warning
    assert capfd.readouterr().out == ""


# ------------------------------------------------------------------------------------------------- which one


CPU = torch.device("cpu")
META = torch.device("meta")


@pytest.mark.parametrize(
    ("precision", "absent", "chosen"),
    [
        ("float32", (), "openvino"),
        ("float32", ("openvino",), "onnxruntime"),
        ("float32", ("openvino", "onnxruntime"), "eager"),
        ("bfloat16", (), "openvino"),
        ("bfloat16", ("openvino",), "eager"),
    ],
)
def test_auto_takes_the_fastest_at_hand(
    precision: str, absent: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_missing", lambda name: [name] if name in absent else [])
    assert planned("auto", precision, CPU) == (chosen, precision)


@pytest.mark.parametrize("name", ["eager", "compile", "onnxruntime", "openvino"])
@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}, {}])
def test_auto_is_bfloat16_where_the_processor_and_the_engine_compute_in_it(
    name: str, able: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_missing", lambda name: [])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    half = name != "onnxruntime" and ("avx512_bf16" in able or "amx_bf16" in able)
    assert planned(name, "auto", CPU) == (name, "bfloat16" if half else "float32")


def test_auto_is_eager_on_other_devices() -> None:
    assert planned("auto", "auto", META) == ("eager", "float32")


@pytest.mark.parametrize("name", EXTRAS)
def test_what_runs_on_the_processor_alone_is_refused_on_other_devices(name: str) -> None:
    with pytest.raises(UserError, match=f"^the engine {name} runs on the processor: found the network on meta; "):
        planned(name, "float32", META)


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("package", ["onnx", "its own"])
def test_an_engine_that_is_not_installed_is_refused(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = name if package == "its own" else package
    for other in ("onnx", name):
        # A name that can be imported without being heavy, for one that may or may not be there.
        monkeypatch.setitem(sys.modules, other, copy)
    monkeypatch.setitem(sys.modules, package, None)  # to the import system: not there
    with pytest.raises(UserError) as refused:
        planned(name, "float32", CPU)
    assert str(refused.value) == (
        f"the engine {name} needs onnx and {name}: found no {package}; pip install 'deepfake[{name}]', or choose auto"
    )


@pytest.mark.parametrize("name", ["", "tensorrt", "OpenVINO"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^the trunk's engine must be one of {', '.join(ENGINES)}: found '{name}'; "):
        planned(name, "float32", CPU)


# ------------------------------------------------------------------------------------------------- threads


def test_onnxruntime_takes_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    import onnxruntime

    threads = []

    def session(model: bytes, options: Any, **rest: Any) -> Any:
        threads.append(options.intra_op_num_threads)
        return real(model, options, **rest)

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert build_engine(network(), [1], "onnxruntime", "float32", images(2)).name == "onnxruntime"
    assert threads == [3]


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_openvino_takes_threads_and_precision_as_told(
    precision: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    import openvino

    told: list[dict[str, Any]] = []

    class Core(openvino.Core):
        def compile_model(self, model: Any, device: str, settings: Any) -> Any:
            told.append(settings)
            return super().compile_model(model, device, settings)

    monkeypatch.setattr(engines, "_openvino_core", Core)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert build_engine(network(), [1], "openvino", precision, images(2)).name == "openvino"
    (settings,) = told
    assert (settings["INFERENCE_NUM_THREADS"], settings["INFERENCE_PRECISION_HINT"]) == (3, hint)


_TWO_OF_OPENVINO = """
import os, signal
import torch
from torch import nn
from deepfake.models import engines

trunk, sample = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(1, 3, 16, 16)
first = engines._openvino(trunk, sample, "float32")
second = engines._openvino(trunk, sample, "float32")
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.parametrize(("change", "used"), [(0.04, "bfloat16"), (0.08, "bfloat16"), (0.15, "float32")])
def test_judging_keeps_the_engine_of_the_training_where_it_is_not_broken(
    change: float, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines._BUILDERS, "compile", failing(lambda right: right * (1 + change), "bfloat16"))
    monkeypatch.setattr(engines, "planned", lambda name, precision, _: (name, precision))
    monkeypatch.setattr(trunk_module, "planned", lambda name, precision, _: (name, precision))
    backbone = network()
    inference = Inference(backbone, len(backbone.stages), "compile", "bfloat16", CPU)
    inference(images(4))
    assert [engine.precision for engine in inference._built] == [used]
    trained = build_engine(backbone, [len(backbone.stages)], "compile", "bfloat16", images(4))
    assert (trained.precision == "bfloat16") == (change <= 0.05)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal on this system")
def test_a_process_gets_its_signals_after_its_engines_are_gone() -> None:
    need("openvino")
    ended = subprocess.run([sys.executable, "-c", _TWO_OF_OPENVINO], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()) == (0, ["handled"]), ended.stderr
