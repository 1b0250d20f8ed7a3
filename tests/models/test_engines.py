"""Every engine gives what eager gives, or eager takes its place and says so."""

import copy
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepfake.console import log
from deepfake.errors import UserError
from deepfake.models import engines
from deepfake.models.backbones import Backbone, build_backbone
from deepfake.models.engines import NAMES, build_engine
from deepfake.models.freezing import freeze

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


def eager(backbone: Backbone, depth: int, batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The stages as anyone would run them."""
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return backbone.features(batch, stop=depth)


def expect_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def need(name: str) -> None:
    if absent := engines._missing(name):
        pytest.skip(f"{name} needs {' and '.join(absent)}: pip install 'deepfake[{name}]'")


# ------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    ("architecture", "depth"),
    [
        *((TINY, depth) for depth in (1, 3, 5)),
        *(("test_efficientnet", depth) for depth in (1, 3, 5)),
        *(("test_vit", depth) for depth in (1, 4, 6)),
        *(("densenet121", depth) for depth in (2, 3)),
    ],
)
def test_engines_agree_with_eager(name: str, architecture: str, depth: int, said: list[str]) -> None:
    need(name)
    backbone = network(architecture)
    engine = build_engine(backbone, depth, name, images(4), "32-true")
    assert said == []
    assert (engine.name, engine.tolerance) == (name, 1e-4)
    for count in (4, 1, 3, 9):
        expected = eager(backbone, depth, images(count))
        found = engine(images(count))
        expect_close(found, expected, 1e-5)
        layout = torch.channels_last if expected.ndim == 4 else torch.contiguous_format
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.slow
def test_the_compiled_trunk_agrees_with_eager(said: list[str]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("compile needs a C++ compiler, g++")
    backbone = network()
    engine = build_engine(backbone, 1, "compile", images(4), "32-true")
    assert said == []
    assert engine.name == "compile"
    for count in (4, 3, 9):
        expect_close(engine(images(count)), eager(backbone, 1, images(count)), 1e-5)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
@pytest.mark.parametrize("architecture", [TINY, "test_vit"])
def test_in_half_precision(name: str, architecture: str, said: list[str]) -> None:
    need(name)
    backbone = network(architecture)
    engine = build_engine(backbone, 3, name, images(4), "bf16-mixed")
    assert said == []
    assert engine.name == name
    for count in (4, 3):
        expect_close(engine(images(count)), eager(backbone, 3, images(count), torch.bfloat16), 0.02)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_the_precision_is_the_engines_own(name: str) -> None:
    """Whoever builds it or calls it may be within autocast."""
    need(name)
    backbone = network()
    with torch.autocast("cpu", torch.bfloat16):
        engine = build_engine(backbone, 3, name, images(4), "32-true")
        found = engine(images(4))
    expect_close(found, eager(backbone, 3, images(4)), 1e-5)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_engines_may_be_built_where_no_gradient_is_known(name: str, said: list[str]) -> None:
    need(name)
    backbone = network()
    with torch.inference_mode():
        engine = build_engine(backbone, 3, name, images(4), "32-true")
        found = engine(images(4))
    assert said == []
    expect_close(found, eager(backbone, 3, images(4)), 1e-5)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_a_batch_stays_when_the_next_one_comes(name: str) -> None:
    need(name)
    engine = build_engine(network(), 3, name, images(4), "32-true")
    first = engine(images(4))
    before = first.clone()
    engine(images(4).neg())
    assert torch.equal(first, before)


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_no_gradient_comes_from_an_engine(name: str) -> None:
    need(name)
    backbone = network()
    backbone.requires_grad_(True)
    assert not build_engine(backbone, 3, name, images(4), "32-true")(images(4)).requires_grad


@pytest.mark.parametrize("name", ["eager", *EXTRAS])
def test_the_network_stays_as_it_was(name: str) -> None:
    need(name)
    backbone = network()
    backbone.train()

    def state(of: Backbone) -> Any:
        tensors = [(key, value.stride(), value.clone()) for key, value in of.state_dict().items()]
        return tensors, [module.training for module in of.modules()], [p.requires_grad for p in of.parameters()]

    tensors, *modes = state(backbone)
    build_engine(backbone, 3, name, images(4), "32-true")(images(3))
    tensors_after, *modes_after = state(backbone)
    assert modes_after == modes
    for (key, stride, value), (key_after, stride_after, value_after) in zip(tensors, tensors_after, strict=True):
        assert (key, stride) == (key_after, stride_after)
        assert torch.equal(value, value_after), key


# ------------------------------------------------------------------------------------------------- eager instead


def expect_eager_instead(
    monkeypatch: pytest.MonkeyPatch, said: list[str], builder: Callable[..., Any], reason: str
) -> None:
    """Of an engine made by `builder`."""
    monkeypatch.setitem(engines._BUILDERS, "compile", builder)
    backbone = network()
    engine = build_engine(backbone, 3, "compile", images(4), "32-true")
    assert (engine.name, engine.tolerance) == ("eager", 0)
    assert torch.equal(engine(images(5)), eager(backbone, 3, images(5).to(memory_format=torch.channels_last)))
    (warning,) = said
    assert "the engine compile is not used, eager PyTorch takes its place: " in warning
    assert reason in warning
    assert "\n" not in warning


def failing(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Builds a trunk that does this to its output."""
    return lambda trunk, sample, dtype: lambda batch: change(trunk(batch))


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
    reason = "away from eager's, whose largest value is"
    expect_eager_instead(monkeypatch, said, failing(change), reason)


def test_an_output_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    reason = "expected an output of shape (4, 48, 8, 8), found (4, 48, 64)"
    expect_eager_instead(monkeypatch, said, failing(lambda right: right.flatten(2)), reason)


def test_an_engine_that_cannot_be_built_is_not_used(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler found:\n  tried g++\n\nSet VERBOSE=1 for more")

    expect_eager_instead(monkeypatch, said, broken, "place: RuntimeError: no compiler found: tried g++")
    assert said[0].endswith("g++")


def test_in_half_precision_a_wrong_engine_is_not_used_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines._BUILDERS, "compile", failing(lambda right: right.flip(0)))
    assert build_engine(network(), 3, "compile", images(4), "bf16-mixed").name == "eager"


@pytest.mark.parametrize("name", EXTRAS)
def test_a_network_that_cannot_be_exported_runs_in_eager(name: str, said: list[str]) -> None:
    need(name)

    class Bessel(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.special.bessel_j0(features)  # not in ONNX

    backbone = network()
    backbone.network.act1 = Bessel()
    assert build_engine(backbone, 3, name, images(4), "32-true").name == "eager"
    (warning,) = said
    assert f"the engine {name} is not used, eager PyTorch takes its place: UnsupportedOperatorError" in warning


# ------------------------------------------------------------------------------------------------- which one


@pytest.mark.parametrize(
    ("precision", "absent", "chosen"),
    [
        ("32-true", (), "openvino"),
        ("32-true", ("openvino",), "onnxruntime"),
        ("32-true", ("openvino", "onnxruntime"), "eager"),
        ("bf16-mixed", (), "openvino"),
        ("bf16-mixed", ("openvino",), "eager"),
    ],
)
def test_auto_takes_the_fastest_at_hand(
    precision: str, absent: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(engines, "_missing", lambda name: [name] if name in absent else [])
    for name in EXTRAS:
        monkeypatch.setitem(engines._BUILDERS, name, failing(lambda right: right))
    assert build_engine(network(), 3, "auto", images(4), precision).name == chosen
    assert said == []


def test_auto_is_eager_on_other_devices() -> None:
    backbone = network().to("meta")
    assert build_engine(backbone, 3, "auto", images(4).to("meta"), "32-true").name == "eager"


@pytest.mark.parametrize("name", EXTRAS)
def test_what_runs_on_the_processor_alone_is_refused_on_other_devices(name: str) -> None:
    with pytest.raises(UserError, match=f"^the engine {name} runs on the processor: found the network on meta; "):
        build_engine(network(), 3, name, images(4).to("meta"), "32-true")


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("package", ["onnx", "its own"])
def test_an_engine_that_is_not_installed_is_refused(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = name if package == "its own" else package
    for other in ("onnx", name):
        # A name that can be imported without being heavy, for one that may or may not be there.
        monkeypatch.setitem(sys.modules, other, copy)
    monkeypatch.setitem(sys.modules, package, None)  # to the import system: not there
    with pytest.raises(UserError) as refused:
        build_engine(network(), 3, name, images(4), "32-true")
    assert str(refused.value) == (
        f"the engine {name} needs onnx and {name}: found no {package}; pip install 'deepfake[{name}]', or choose auto"
    )


@pytest.mark.parametrize("name", ["", "tensorrt", "OpenVINO"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^the trunk's engine must be one of {', '.join(NAMES)}: found '{name}'; "):
        build_engine(network(), 3, name, images(4), "32-true")


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
    assert build_engine(network(), 1, "onnxruntime", images(2), "32-true").name == "onnxruntime"
    assert threads == [3]


@pytest.mark.parametrize(("precision", "hint"), [("32-true", "f32"), ("bf16-mixed", "bf16")])
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

    monkeypatch.setattr(openvino, "Core", Core)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert build_engine(network(), 1, "openvino", images(2), precision).name == "openvino"
    (settings,) = told
    assert (settings["INFERENCE_NUM_THREADS"], settings["INFERENCE_PRECISION_HINT"]) == (3, hint)
