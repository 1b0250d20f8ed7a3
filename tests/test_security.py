"""Files from others: pickles, archives, stored targets and names are data or are refused, and nothing in them runs.

Every attack would leave a trace: a file in a folder that must stay empty, or the loss of one that must stay.
"""

import copy
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import pydoc
import re
import reprlib
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from hydra import compose, initialize_config_dir
from torch import nn

from deepfake import Detector, runs
from deepfake.checkpoints import write_checkpoint
from deepfake.config import EvaluateConfig, conf_dir, parse_train
from deepfake.data.catalog import read_catalogue, scan
from deepfake.data.layouts import find_images, read_manifest
from deepfake.data.prepared import Preparation, PreparedImages, square
from deepfake.errors import UserError
from deepfake.evaluating import _looked_at, run_settings
from deepfake.inputs import InputSpec
from deepfake.models.backbones import build_backbone
from deepfake.models.store import TrunkStore, digest
from deepfake.models.weights import load_weights
from deepfake.training import train

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=16",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "trainer.progress=false", "logger=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, read only."""
    output = tmp_path_factory.mktemp("outputs")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=[*TINY, f"data.root={faces}", f"output_dir={output}"]))
    train(cfg)
    return runs.run_folder(cfg)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be made hostile by someone who leaves out the hashes."""
    left_out = shutil.ignore_patterns("SHA256SUMS", "last.ckpt", "figures")
    return Path(shutil.copytree(finished, tmp_path / "outputs" / finished.name, ignore=left_out))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Where an attack that succeeds leaves a file."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


class Line:
    """Command lines in this process; what the last one said on standard error is in `err`."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd, self.err = capfd, ""

    def __call__(self, command: str, *arguments: str) -> int:
        """The exit status; a stack trace fails the test."""
        module = __import__(f"deepfake.{command}", fromlist=["main"])
        self.capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"deepfake-{command}", *arguments])
            try:
                module.main()
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
        self.err = self.capfd.readouterr().err
        assert "Traceback" not in self.err
        return status

    def refuses(self, command: str, *arguments: str) -> str:
        """The one line it says, with status 2."""
        assert self(command, *arguments) == 2, self.err
        (said,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return said


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Line:
    monkeypatch.chdir(tmp_path)
    return Line(capfd)


JUDGING = ("progress=false", "engine=eager")
PREDICT = (*JUDGING, "sheet=0", "output=answers/predictions.csv")


@dataclass
class Touch:
    """Once it is unpickled, there is a file."""

    file: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.file}'",)


# ---------------------------------------------------------------------------------------------------- environment


def commands() -> list[str]:
    scripts = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["scripts"]
    return [entry.removeprefix("deepfake.").removesuffix(":main") for entry in scripts.values()]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("seed=0",)])
@pytest.mark.parametrize("command", commands())
def test_no_command_runs_where_checkpoints_could(
    line: Line, monkeypatch: pytest.MonkeyPatch, command: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    monkeypatch.setenv(UNSAFE, "1")
    assert UNSAFE in line.refuses(command, *arguments)
    assert len(line.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom deepfake.predict import main\nsys.argv = ['predict']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    env = {**os.environ, UNSAFE: "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {UNSAFE}")
    assert len(done.stderr.splitlines()) == 1


def test_python_loads_nothing_where_checkpoints_could_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNSAFE, "true")
    with pytest.raises(UserError, match=UNSAFE):
        Detector.load(run)
    for harmless in ("0", ""):
        monkeypatch.setenv(UNSAFE, harmless)
        Detector.load(run, engine="eager")


# ------------------------------------------------------------------------------------------------- stored targets

Node = dict[str, Any]


def targets(place: Path, tools: Path) -> dict[str, Node]:
    """By target a node of settings; each would leave a file in `place`, if it were ever called."""
    files = (str(place / str(number)) for number in itertools.count())
    script, pickled, array = str(tools / "marking_script.py"), str(tools / "evil.pkl"), str(tools / "evil.npy")
    (tools / "repository").mkdir(parents=True)
    marks = f"open({str(place / 'script')!r}, 'w').close()\n"
    Path(script).write_text(marks)
    (tools / "repository/hubconf.py").write_text(f"{marks}def model():\n    return 0\n")
    Path(pickled).write_bytes(pickle.dumps(Touch(str(place / "pickle"))))
    np.save(array, np.array([Touch(str(place / "array"))], dtype=object), allow_pickle=True)

    def path() -> Node:
        return {"_target_": "pathlib.Path", "_args_": [next(files)]}

    def code() -> str:
        return f"open({next(files)!r}, 'w').close()"

    def touch() -> list[str]:
        return ["touch", next(files)]

    arguments: dict[str, list[Any]] = {
        "os.system": [f"touch {next(files)}"],
        "posix.system": [f"touch {next(files)}"],
        "os.popen": [f"touch {next(files)}"],
        "os.spawnlp": [os.P_WAIT, "touch", *touch()],
        "os.open": [next(files), os.O_CREAT],
        "os.mkdir": [next(files)],
        "os.makedirs": [next(files)],
        "os.mkfifo": [next(files)],
        "os.symlink": [".", next(files)],
        "os.link": [script, next(files)],
        "subprocess.run": [touch()],
        "subprocess.call": [touch()],
        "subprocess.check_call": [touch()],
        "subprocess.check_output": [touch()],
        "subprocess.Popen": [touch()],
        "subprocess.getoutput": [f"touch {next(files)}"],
        "subprocess.getstatusoutput": [f"touch {next(files)}"],
        "builtins.exec": [code()],
        "builtins.eval": [code()],
        "builtins.open": [next(files), "w"],
        "io.open": [next(files), "w"],
        "io.FileIO": [next(files), "w"],
        "pathlib.Path.touch": [path()],
        "pathlib.Path.mkdir": [path()],
        "pathlib.Path.write_text": [path(), "text"],
        "shutil.copyfile": [script, next(files)],
        "shutil.copy": [script, next(files)],
        "shutil.copytree": [str(tools / "repository"), next(files)],
        "importlib.import_module": ["marking_script"],
        "pydoc.importfile": [script],
        "runpy.run_path": [script],
        "timeit.timeit": [code()],
        "logging.FileHandler": [next(files)],
        "zipfile.ZipFile": [next(files), "w"],
        "tarfile.open": [next(files), "w"],
        "gzip.open": [next(files), "w"],
        "urllib.request.urlretrieve": [Path(script).as_uri(), next(files)],
        "pickle.load": [{"_target_": "io.BytesIO", "_args_": [Path(pickled).read_bytes()]}],
        "pandas.read_pickle": [pickled],
        "numpy.load": [array],
        "numpy.save": [next(files), [0]],
        "torch.save": [0, next(files)],
        "torch.load": [pickled],
        "torch.hub.load": [str(tools / "repository"), "model"],
        "deepfake.files.write_text": [path(), "text"],
    }
    options: dict[str, Node] = {
        "timeit.timeit": {"number": 1},
        "numpy.load": {"allow_pickle": True},
        "torch.load": {"weights_only": False},
        "torch.hub.load": {"source": "local"},
    }
    return {name: {"_target_": name, "_args_": given, **options.get(name, {})} for name, given in arguments.items()}


def obeyed(node: Any) -> Any:
    """What comes of a node where targets are called: Hydra's `instantiate` without its list of forbidden names."""
    match node:
        case {"_target_": name, "_args_": given, **options}:
            return pydoc.locate(name)(*obeyed(given), **options)  # type: ignore[operator]
        case list():
            return [obeyed(each) for each in node]
    return node


@pytest.fixture
def nodes(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    monkeypatch.syspath_prepend(tmp_path / "tools")
    return targets(empty, tmp_path / "tools")


def test_each_of_these_targets_would_leave_a_file_if_it_were_called(nodes: dict[str, Node], empty: Path) -> None:
    assert len(nodes) > 40
    for name, node in nodes.items():
        sys.modules.pop("marking_script", None)
        with suppress(Exception):  # what runs while something is loaded has run, whatever comes of the loading
            done = obeyed(node)
            (done.close if name == "os.popen" else done.wait)()
        left = list(empty.iterdir())
        assert left, name
        for trace in left:
            shutil.rmtree(trace) if trace.is_dir() and not trace.is_symlink() else trace.unlink()
    sys.modules.pop("marking_script", None)


def sow(settings: Any, nodes: dict[str, Node]) -> None:
    """Put all nodes into every table of some settings, as one more and in a list."""
    for name, value in list(settings.items()):
        if isinstance(value, dict) and name != "calibration":  # which has no room for more, see below
            sow(value, nodes)
    # Hydra refuses some of them, and with one of them all that comes after it: what it lets pass comes first.
    settings["more"] = {"deeper": {"deepest": list(reversed(nodes.values()))}}
    settings["callbacks"] = nodes
    settings |= nodes["os.mkdir"]


@pytest.fixture
def sown(run: Path, nodes: dict[str, Node]) -> Path:
    """A run with nodes wherever there is a place for them."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    sow(settings, nodes)
    (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for name in ("status.json", "summary.json", "audit.json", "environment.json"):
        told = json.loads((run / name).read_text())
        sow(told, nodes)
        (run / name).write_text(json.dumps(told, default=repr))
    held = torch.load(run / runs.BEST, weights_only=True)
    for name in ("hyper_parameters", "callbacks", "datamodule_hyper_parameters", "optimizer_states", "lr_schedulers"):
        held[name] = nodes
    held["deepfake"]["hparams"], held["deepfake"]["_target_"] = nodes, "os.system"
    write_checkpoint(run / runs.BEST, held)
    (run / "hparams.yaml").write_text(yaml.safe_dump(nodes))
    (run / "README.md").write_text(f"---\n{yaml.safe_dump(nodes)}---\n")
    return run


def test_no_command_calls_what_a_run_names(sown: Path, line: Line, empty: Path, faces: Path) -> None:
    other = Path(shutil.copytree(sown, sown.with_name("other")))
    both = f"run=[{sown},{other}]"
    assert line("predict", f"run={sown}", f"input={faces / '0-phone'}", *PREDICT) == 0
    assert line("evaluate", f"run={sown}", "baselines=true", *JUDGING) == 0
    assert line("evaluate", both, "ensemble=mean", "output_dir=together", "baselines=false", *JUDGING) == 0
    assert line("robustness", f"run={sown}", "perturbations=flip", *JUDGING) == 0
    assert line("recap", "runs=outputs") == 0
    assert line("train", *TINY, f"data.root={faces}", "output_dir=outputs") == 0  # finds it complete
    assert list(empty.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ checkpoints


def short(value: Any) -> str:
    return reprlib.repr(value)


def laughing() -> list[Any]:
    """A hundred lists in memory; written out, more than any machine holds."""
    nested: list[Any] = ["ha"]
    for _ in range(100):
        nested = [nested, nested]
    return nested


class Adds(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1


def raw_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Touch(str(mark)), protocol=2))


def pickle_in_an_archive(file: Path, mark: Path) -> None:
    torch.save({"state_dict": {}, "deepfake": Touch(str(mark))}, file)


def pickle_of_before(file: Path, mark: Path) -> None:
    torch.save({"state_dict": Touch(str(mark))}, file, _use_new_zipfile_serialization=False)


def pickle_in_a_tar(file: Path, mark: Path) -> None:
    content = pickle.dumps(Touch(str(mark)))
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("../link")
        link.type, link.linkname = tarfile.SYMTYPE, str(mark.parent)
        archive.addfile(link)
        for name in ("storages", "tensors", "pickle", "../link/out", str(mark)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def torchscript(file: Path, mark: Path) -> None:
    torch.jit.save(torch.jit.script(Adds()), file)


def exported(file: Path, mark: Path) -> None:
    """As torch.export writes it, with a pickle in every place that its reader unpickles."""
    plain = io.BytesIO()
    torch.export.save(torch.export.export(Adds(), (torch.zeros(1),)), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            evil = entry.filename.endswith(".pt") or "sample_inputs" in entry.filename or "weights" in entry.filename
            target.writestr(entry.filename, pickle.dumps(Touch(str(mark))) if evil else source.read(entry))


FOREIGN = [
    raw_pickle, pickle_in_an_archive, pickle_of_before, pickle_in_a_tar, torchscript, exported,
    lambda file, mark: os.mkfifo(file),
    lambda file, mark: file.mkdir(),
    lambda file, mark: file.symlink_to("/dev/zero"),
    lambda file, mark: file.symlink_to(file),
    lambda file, mark: file.write_bytes(b""),
    lambda file, mark: torch.save(laughing(), file),
]  # fmt: skip
NAMES = [
    "raw pickle", "pickle in an archive", "pickle as before", "tar", "torchscript", "pt2", "pipe", "folder",
    "device", "loop", "empty", "laughing",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that TorchScript is old
@pytest.mark.parametrize("put", FOREIGN, ids=NAMES)
def test_a_foreign_checkpoint_runs_nothing_and_is_refused(
    run: Path, empty: Path, put: Callable[[Path, Path], Any]
) -> None:
    (run / runs.BEST).unlink()
    put(run / runs.BEST, empty / "mark")
    with pytest.raises(UserError, match=r"best\.ckpt: expected a checkpoint of this version"):
        Detector.load(run)
    assert list(empty.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt2", ""])
@pytest.mark.parametrize("put", FOREIGN, ids=NAMES)
def test_a_foreign_weight_file_runs_nothing_and_is_refused(
    tmp_path: Path, empty: Path, put: Callable[[Path, Path], Any], suffix: str
) -> None:
    put(tmp_path / f"weights{suffix}", empty / "mark")
    with pytest.raises(UserError, match="weights"):
        load_weights(timm.create_model("test_resnet"), "test_resnet", str(tmp_path / f"weights{suffix}"))
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("how", ["compressed", "many names for one place"])
def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(run: Path, tmp_path: Path, how: str) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    for file in (run / runs.BEST, weights):
        content = file.read_bytes()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as source,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        if how != "compressed":
            file.write_bytes(content)
            with zipfile.ZipFile(file, "a") as archive:
                largest = max(archive.infolist(), key=lambda entry: entry.file_size)
                for number in range(100):
                    other = copy.copy(largest)
                    other.filename = f"{largest.filename}{number}"
                    archive.filelist.append(other)
                    archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"best\.ckpt: expected .* unpack to more than the file is"):
        Detector.load(run, engine="eager")
    with pytest.raises(UserError, match=r"weights\.pth could not be read as weights"):
        load_weights(timm.create_model("test_resnet"), "test_resnet", str(weights))


def safetensors(header: dict[str, Any] | bytes, length: int | None = None) -> bytes:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(told) if length is None else length) + told + bytes(8)


def entry(dtype: str = "F32", shape: Any = (2,), start: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**63),
        safetensors({}, length=2**40),
        safetensors(b"{"),
        safetensors(b'{"a":' * 100_000),
        safetensors({"a": entry(), "b": entry()}),  # both at one place
        safetensors({"a": entry(end=4), "b": entry(start=2, end=10)}),
        safetensors({"a": entry(shape=[2**40], end=2**42)}),
        safetensors({"a": entry(shape=[-2])}),
        safetensors({"a": entry(shape=[2**62, 2**62])}),
        safetensors({"a": entry(dtype="PICKLE")}),
        safetensors({"a": entry(), "__metadata__": {"_target_": ["os.system"]}}),
        safetensors({"a": entry()}),  # whole, but of another network
    ],
)
def test_an_absurd_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_weights(timm.create_model("test_resnet"), "test_resnet", str(tmp_path / "weights.safetensors"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.to_sparse,
        lambda weight: weight.to("meta"),
        lambda weight: weight.to(torch.complex64),
        torch.Tensor.bool,
        torch.Tensor.int,
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: laughing(),
    ],
    ids=["sparse", "claims a shape", "complex", "bool", "whole numbers", "quantized", "laughing"],
)
def test_weights_of_another_kind_are_refused(tmp_path: Path, change: Callable[[torch.Tensor], Any]) -> None:
    network = timm.create_model("test_resnet")
    state = network.state_dict()
    name = next(name for name in state if name.endswith("weight"))
    torch.save(state | {name: change(state[name])}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth must hold"):
        load_weights(network, "test_resnet", str(tmp_path / "weights.pth"))


HUB = ["hf-hub:x/y", "hf_hub:x/y", "local-dir:/tmp", "../../x", "timm/resnet18", "resnet18.hf-hub:x/y", "x" * 10**6]


@pytest.mark.parametrize("name", [*HUB, "", "os.system", "torch.hub.load"], ids=short)
def test_a_network_is_one_that_timm_has_in_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asks the network"))
    with pytest.raises(UserError, match="timm") as refused:
        build_backbone(name, "none")
    assert len(str(refused.value)) < 10_000


# What a checkpoint may say of itself, and what the refusal names.
SAID: list[tuple[tuple[str, ...], Any, str]] = [
    *((("architecture",), name, "timm") for name in HUB),
    *((("architecture",), value, "best.ckpt") for value in (None, 3, ["resnet18"], {"_target_": "x"}, laughing())),
    (("architecture",), "resnet18", "state_dict"),
    *(
        (("input", "size"), value, "input_size=")
        for value in ("10**9", 10**9, 10**30, 2080, -32, 0, 32.5, math.nan, [32])
    ),
    (("input",), laughing(), "best.ckpt"),
    *((("preparation", "mode"), value, "mode") for value in ("evil", None, ["resize"], {"_target_": "os.system"})),
    *((("preparation", "equalise"), value, "equalise") for value in (-1, 0, "64", 1.5, True)),
    *((("preparation", "margin"), value, "margin") for value in (math.nan, math.inf, -1, 1e9, "0.3", laughing())),
    (("preparation", "_target_"), "os.system", "_target_"),
    (("preparation",), laughing(), "best.ckpt"),
    *((("frozen_stages",), value, "frozen_stages") for value in (-1, 6, 10**9, 1.5, "5", True, None, laughing())),
    *((("trunk_precision",), value, "trunk_precision") for value in ("auto", "evil", None, 16, laughing())),
    (("calibration",), None, "calibrated"),
    (("calibration",), laughing(), "calibration"),
    *(
        (("calibration", "temperature"), value, "temperature")
        for value in (math.nan, math.inf, 0, -1, "1", None, True, 10**400, laughing())
    ),
    (("calibration", "thresholds"), {}, "thresholds"),
    (("calibration", "thresholds"), laughing(), "thresholds"),
    (("calibration", "thresholds", "half"), {"value": 0.5}, "half"),
    (("calibration", "thresholds", "half", "value"), math.nan, "half"),
    (("calibration", "thresholds", "half", "value"), "0.5", "half"),
    (("calibration", "thresholds", "half", "_target_"), "os.system", "half"),
    (("calibration", "band"), [0, 1, 2], "band"),
    (("calibration", "band"), [1, 0], "band"),
    (("calibration", "n_real"), -5, "n_real"),
    (("calibration", "_target_"), "os.system", "_target_"),
]


@pytest.fixture(scope="module")
def told(finished: Path) -> bytes:
    return pickle.dumps(torch.load(finished / runs.BEST, weights_only=True))


@pytest.mark.parametrize(("place", "value", "named"), SAID, ids=short)
def test_what_a_checkpoint_says_of_itself_is_checked(
    told: bytes, run: Path, place: tuple[str, ...], value: Any, named: str
) -> None:
    held = pickle.loads(told)  # noqa: S301 - our own
    *above, last = place
    node = held["deepfake"]
    for name in above:
        node = node[name]
    node[last] = value
    write_checkpoint(run / runs.BEST, held)
    with pytest.raises(UserError, match=named) as refused:
        Detector.load(run, engine="eager")
    assert len(str(refused.value)) < 10_000


def test_members_of_an_ensemble_are_few_files_in_its_own_folder(
    run: Path, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    asked = ("ensemble=stacked", "output_dir=together", "baselines=false", *JUDGING)
    assert line("evaluate", f"run=[{run},{other}]", *asked) == 0
    (folder,) = Path("together").glob("ensemble-*")
    whole = json.loads((folder / runs.ENSEMBLE).read_text())
    names, weights = whole["members"], whole["weights"]
    Detector.load(folder, engine="eager")
    for number in range(1000):
        (folder / "members" / f"{number}.ckpt").symlink_to(run / runs.BEST)
    changes: list[dict[str, Any]] = [
        {"members": [str(run / runs.BEST), names[1]]},
        {"members": [f"../../../{run.parent.name}/{run.name}/{runs.BEST}", names[1]]},
        {"members": [f"../{runs.ENSEMBLE}", names[1]]},
        *(
            {"members": [name, names[1]]}
            for name in ("..", ".", "", "a\0b", "x" * 5000, None, 0, ["x"], {"_target_": "x"})
        ),
        {"members": [names[0], names[0]]},
        {"members": [f"{number}.ckpt" for number in range(1000)]},
        *({"members": value} for value in ([], "ab", None, {"0": names[0]}, {"_target_": "os.system"})),
        *({"combine": value} for value in ("os.system", None, ["mean"], {"_target_": "os.system"}, "mean")),
        *({"weights": [0, 1, value]} for value in ("1", None, True, 10**400, [1], {"_target_": "x"})),
        *({"weights": value} for value in ([], weights[:2], None, 3, "abc")),
        *({"calibration": value} for value in (None, [], {}, {"_target_": "os.system"})),
    ]
    for text in (
        *(json.dumps(whole | change) for change in changes),
        *(json.dumps(whole).replace(repr(weights[0]), number) for number in ("NaN", "Infinity", "1e999")),
        "[" * 100_000,
        "",
        "[]",
        "\ud800",
    ):
        (folder / runs.ENSEMBLE).write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"ensemble\.json: expected an ensemble of this version") as refused:
            Detector.load(folder, engine="eager")
        assert len(str(refused.value)) < 1000
    everyone = ",".join(f"./{number}" for number in range(101))
    for number in range(101):
        Path(str(number)).symlink_to(run)
    assert "expected at most 100 members" in line.refuses("evaluate", f"run=[{everyone}]", *asked)


# -------------------------------------------------------------------------------------- settings, figures, catalogues

TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.check_output [[touch, '{mark}']]",
    "!!python/object/new:os.system ['touch {mark}']",
    "data: !!python/object/apply:builtins.open ['{mark}', w]",
    "data: {{root: !!python/object/apply:os.mkdir ['{mark}']}}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!evil {{}}",
    "[" * 10_000,
    "{{" * 10_000,
    "a: &a [x, x]\nb: &b [*a, *a]\ndata: &c [*b, *b]\nmodel: *c",
    "- " * 10_000,
    "\0",
    "",
    "data",
    "[1, 2]",
]


@pytest.mark.parametrize("text", TAGS, ids=short)
def test_settings_are_data(run: Path, line: Line, empty: Path, text: str) -> None:
    (run / "config.yaml").write_text(text.format(mark=empty / "mark"))
    assert "config.yaml: expected the settings of a run" in line.refuses("evaluate", f"run={run}", *JUDGING)
    assert len(line.err) < 2000
    assert list(empty.iterdir()) == []


SET: list[tuple[str, str, Any]] = [
    *(("data", "root", value) for value in (None, 3, ["/"], {"_target_": "pathlib.Path", "_args_": ["/"]})),
    *(
        ("data", "max_megapixels", value)
        for value in ("64", None, True, -1, 0, math.nan, math.inf, {"_target_": "x"})
    ),
    *(("model", "timm", value) for value in (None, 3, ["resnet18"], {"_target_": "timm.create_model"})),
    *(("model", "weights", value) for value in (None, 3, ["none"], {"_target_": "torch.load"})),
    *(("model", "input_size", value) for value in ("32", 1.5, True, [32], {"_target_": "os.getpid"})),
]


@pytest.mark.parametrize(("section", "name", "value"), SET, ids=short)
def test_settings_of_another_kind_are_refused(run: Path, line: Line, section: str, name: str, value: Any) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    said = line.refuses("evaluate", f"run={run}", *JUDGING)
    assert "config.yaml: expected the settings of a run" in said
    assert f"{section}.{name}=" in said


@pytest.mark.parametrize(
    ("timm_name", "weights", "size"),
    ids=short,
    argvalues=[
        *((name, "none", 32) for name in HUB),
        ("test_resnet", "none", 10**9),
        ("test_resnet", "{tmp}/evil.pth", 32),
        ("test_resnet", "{tmp}/evil.pt2", 32),
        ("test_resnet", "/dev/zero", 32),
        ("test_resnet", "a\0b.pth", 32),
        ("test_resnet", "x" * 5000 + ".pth", 32),
    ],
)
def test_baselines_are_of_networks_that_there_are_or_left_out(
    run: Path, line: Line, empty: Path, tmp_path: Path, timm_name: str, weights: str, size: int
) -> None:
    for suffix in ("pth", "pt2"):
        raw_pickle(tmp_path / f"evil.{suffix}", empty / "mark")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"] |= {"timm": timm_name, "weights": weights.format(tmp=tmp_path), "input_size": size}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError):
        _looked_at(EvaluateConfig(), run_settings(run), Preparation(), pd.DataFrame(), [], None)  # type: ignore[arg-type]
    assert list(empty.iterdir()) == []


def other_column(file: Path, name: str, value: Any) -> None:
    """A catalogue with one column that holds something else in all its rows."""
    table = pd.read_parquet(file)
    table[name] = pd.Series([value] * len(table), table.index)
    table.to_parquet(file)


CATALOGUE = [
    *((("path", path)) for path in ("../0-camera/00.png", "/etc/passwd", "..", "0-a/../../x.png", "", "a\0.png")),
    *((("label", label)) for label in (7, -1, 10**18, "real", [0], None)),
    *((("split", split)) for split in ("evil", "=cmd")),
    *((("sha256", sha256)) for sha256 in ("../../../../etc/passwd", "0" * 63, "A" * 64)),
    *((("phash", phash)) for phash in ("zz", "0" * 17, "../x")),
    *((("width", width)) for width in (0, -5, 2**62, "x", [1], None, {"a": 1})),
    *((("bytes", count)) for count in (0, -1, 2**62)),
    *((("jpeg_luma", luma)) for luma in (float("inf"), float("nan"), 1e300, "x")),
]


@pytest.mark.parametrize(("column", "value"), CATALOGUE, ids=short)
def test_a_foreign_catalogue_says_what_a_scan_says_or_is_refused(run: Path, column: str, value: Any) -> None:
    file = run / "manifest.parquet"
    other_column(file, column, value)
    with pytest.raises(UserError, match=r"manifest\.parquet: expected a catalogue") as refused:
        read_catalogue(file)
    assert len(str(refused.value)) < 1000


def test_a_catalogue_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "catalogue.csv")
    with pytest.raises(UserError, match="not a regular file"):
        read_catalogue(tmp_path / "catalogue.csv")


@pytest.mark.parametrize("command", ["predict", "evaluate", "robustness"])
@pytest.mark.parametrize(
    "put",
    [
        raw_pickle,
        lambda file, mark: file.mkdir(),
        lambda file, mark: os.mkfifo(file),
        lambda file, mark: file.symlink_to("/dev/zero"),
        lambda file, mark: file.write_bytes(b"PAR1" + bytes(4) + b"\xff\xff\xff\x7fPAR1"),
        lambda file, mark: pd.DataFrame({"path": ["a"]}).to_parquet(file),
    ],
    ids=["pickle", "folder", "pipe", "device", "damaged", "other columns"],
)
def test_a_manifest_that_is_something_else_is_refused(
    run: Path, line: Line, faces: Path, empty: Path, command: str, put: Callable[[Path, Path], Any]
) -> None:
    (run / "manifest.parquet").unlink()
    put(run / "manifest.parquet", empty / "mark")
    given = (f"input={faces}", *PREDICT) if command == "predict" else JUDGING
    assert "manifest.parquet: expected a catalogue" in line.refuses(command, f"run={run}", *given)
    assert list(empty.iterdir()) == []


SUMMARY: list[tuple[str, Any]] = [
    *(("trained_weights", value) for value in ("1", None, [1], 10**400, -1, 1.5, {"_target_": "x"})),
    *(("epochs_run", value) for value in ("1", [1], 10**400, 0.5, True)),
    *(("seconds", value) for value in ("1", [1], 10**400, math.inf, {"_target_": "x"})),
    *(("val", value) for value in (None, [], "x", {"loss": "x"}, {"loss": 10**400}, {"accuracy": 2}, {"n": 0.5})),
    *(
        ("val", {"intervals": value})
        for value in ([1], "x", {"accuracy": 3}, {"accuracy": [0, 1, 2]}, {"f1": ["x", 1]})
    ),
    *(("test", value) for value in ("x", [1], {"accuracy": "x"}, {"auroc": {"_target_": "os.system"}})),
    *(("train", value) for value in ("x", {"loss": "x"}, {"accuracy": 1e9})),
]


@pytest.mark.parametrize(("name", "value"), SUMMARY, ids=short)
def test_a_summary_of_other_figures_is_refused(run: Path, line: Line, name: str, value: Any) -> None:
    file = run / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert "summary.json: expected the summary of a run" in line.refuses("recap", "runs=outputs")
    assert len(line.err) < 2000


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xff", b"9" * 10_000, None],
    ids=short,
)
def test_a_summary_that_is_none_is_refused(run: Path, line: Line, content: bytes | None) -> None:
    whole = (run / "summary.json").read_bytes()
    (run / "summary.json").write_bytes(whole + b" " * 2**20 if content is None else content)
    assert "summary.json: expected the summary of a run" in line.refuses("recap", "runs=outputs")
    (run / "summary.json").unlink()
    os.mkfifo(run / "summary.json")  # which nobody writes to
    assert "summary.json: expected the summary of a run" in line.refuses("recap", "runs=outputs")


MARKUP = "<img src=x onerror=alert(1)>|[x](javascript:alert(1))`\n# h\x1b]0;owned\x07[bold]$\\frac{$"


def test_names_in_a_summary_are_text(run: Path, line: Line) -> None:
    file = run / "summary.json"
    texts = dict.fromkeys(("run", "model", "unfreeze", "scheduler", "monitor"), f"={MARKUP}")
    file.write_text(json.dumps(json.loads(file.read_text()) | texts))
    assert line("recap", "runs=outputs") == 0
    told = Path("outputs/comparison.md").read_text()
    assert told.count(r"\<img src=x onerror=alert(1)>\|\[x](javascript:alert(1))\` # h") == 2  # the run, and below it
    assert not re.search(r"(?<!\\)([<`]|\[(?![\d ]))", told)
    assert "\x1b" not in told
    row = pd.read_csv("outputs/comparison.csv").iloc[0]
    assert row["run"].startswith("'=")
    assert row["monitor"].startswith("'=")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("probability", "x"),
        ("probability", "2"),
        ("prediction", "7"),
        ("prediction", "9" * 30),
        ("label", "3"),
        ("path", "x"),
    ],
)
def test_foreign_predictions_are_compared_with_nothing(run: Path, line: Line, column: str, value: str) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    file = other / "val_predictions.csv"
    pd.read_csv(file, dtype=str, keep_default_na=False).assign(**{column: value}).to_csv(file, index=False)
    assert line("recap", "runs=outputs") == 0
    assert set(pd.read_csv("outputs/comparison.csv", keep_default_na=False)["against_best"]) == {"best", ""}


@pytest.mark.parametrize("value", ["x", "", "inf", "1e999", "nan"])
def test_an_ensemble_is_not_fitted_on_what_is_no_margin(run: Path, line: Line, value: str) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    file = other / "val_predictions.csv"
    pd.read_csv(file, dtype=str, keep_default_na=False).assign(margin=value).to_csv(file, index=False)
    said = line.refuses("evaluate", f"run=[{run},{other}]", "ensemble=mean", "output_dir=together", *JUDGING)
    assert "val_predictions.csv: expected the run's predictions" in said


@pytest.mark.parametrize(("command", "what"), [("evaluate", "evaluation"), ("robustness", "robustness")])
def test_answers_do_not_go_where_a_link_in_the_run_leads(
    run: Path, line: Line, empty: Path, command: str, what: str
) -> None:
    (run / what).symlink_to(empty)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    (run / "tensorboard").symlink_to(empty)
    assert "found a link" in line.refuses(command, f"run={run}", *JUDGING)
    if command == "evaluate":
        assert line(command, f"run={run}", "output=answers", "baselines=false", *JUDGING) == 0
    assert list(empty.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- caches


def rows_in(folder: Path) -> TrunkStore:
    """A store with the rows of two images."""
    kept = TrunkStore(folder, "trunk", 1.0)
    with kept.filling("view") as append:
        append(["a", "b"], torch.ones(2, 3))
    return kept


@pytest.mark.parametrize("pack", ["{victim}", "../../{name}", "..", "", 5, None, b"x", "0" * 16])
def test_an_index_of_rows_leads_to_no_file_elsewhere(tmp_path: Path, pack: Any) -> None:
    victim = tmp_path / "diary.npy"
    victim.write_text("not rows, and nobody's to remove")
    kept = rows_in(tmp_path / "cache")
    named = pack.format(victim=victim, name=victim.name) if isinstance(pack, str) else pack
    with sqlite3.connect(kept.folder / "index.sqlite") as index:
        index.execute("UPDATE rows SET pack = ? WHERE image = 'a'", [named])
    assert kept.find(["a", "b"], "view").missing.tolist() == [0]
    kept.claim([(["a", "b"], "view")])
    assert victim.exists()


@pytest.mark.parametrize("row", [-1, 2, 2**62, "x", None, 0.5, b"0"])
def test_a_row_is_one_of_its_pack(tmp_path: Path, row: Any) -> None:
    kept = rows_in(tmp_path / "cache")
    with sqlite3.connect(kept.folder / "index.sqlite") as index:
        index.execute("UPDATE rows SET row = ? WHERE image = 'a'", [row])
    assert 0 in kept.find(["a", "b"], "view").missing


def npy(header: str, content: bytes = bytes(24)) -> bytes:
    told = f"{header:<117}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(told)) + told + content


PACKS = [
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
    npy("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (3,), }"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 30000000000000), }"),
    npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", bytes(4)),
    npy("{'descr': '<f4', 'fortran_order': __import__('os').getpid(), 'shape': (2, 3), }"),
    npy("(" * 117),
    npy("-" * 117 + "1"),
    b"",
]


@pytest.mark.parametrize("content", [*PACKS, None], ids=short)
def test_a_pack_holds_numbers_or_is_made_again(tmp_path: Path, empty: Path, content: bytes | None) -> None:
    kept = rows_in(tmp_path / "cache")
    (pack,) = kept.folder.glob("*.npy")
    if content is None:
        np.save(pack, np.array([Touch(str(empty / "mark"))] * 2, dtype=object), allow_pickle=True)
    else:
        pack.write_bytes(content)
    assert kept.find(["a", "b"], "view").missing.tolist() == [0, 1]
    assert not pack.exists()
    assert list(empty.iterdir()) == []


def test_a_pack_that_is_a_pipe_is_passed_over(tmp_path: Path) -> None:
    kept = rows_in(tmp_path / "cache")
    (pack,) = kept.folder.glob("*.npy")
    pack.unlink()
    os.mkfifo(pack)
    assert kept.find(["a", "b"], "view").missing.tolist() == [0, 1]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="pickle"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (32, 32, 3), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 32, 3), }", b""),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (32, 32, 3), }", b""),
    ],
    ids=short,
)
@pytest.mark.parametrize("mode", ["resize", "crop"])
def test_a_prepared_image_is_pixels_or_made_again(
    tmp_path: Path, faces: Path, empty: Path, content: bytes | None, mode: Any
) -> None:
    image, spec = faces / "0-phone/01.png", InputSpec(32, (0.5,) * 3, (0.5,) * 3, "bilinear")
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    images = PreparedImages(spec, tmp_path / "cache", 64, Preparation(mode))
    whole = images.prepare(image, sha256)
    images.store(sha256, whole)
    (stored,) = (tmp_path / "cache").rglob("*.npy")
    if content is None:
        np.save(stored, np.array([Touch(str(empty / "mark"))], dtype=object), allow_pickle=True)
    else:
        stored.write_bytes(content)
    assert (images.read(image, sha256) == square(whole, 32)).all()
    assert list(empty.iterdir()) == []


def test_making_room_in_a_cache_deletes_nothing_behind_a_link(tmp_path: Path, empty: Path) -> None:
    spec = InputSpec(32, (0.5,) * 3, (0.5,) * 3, "bilinear")
    images = PreparedImages(spec, tmp_path / "cache", 64, max_gb=1e-6)
    images.store("0" * 64, np.zeros((32, 32, 3), np.uint8))
    victims = [empty / "diary.npy", empty / "left.tmp"]
    for victim in victims:
        victim.write_bytes(bytes(5000))
        os.utime(victim, (0, 0))
    (tmp_path / "cache" / f"images-{images.name}" / "ab").symlink_to(empty)
    (tmp_path / "cache/images-elsewhere").symlink_to(tmp_path)
    rows = pd.DataFrame({"sha256": ["1" * 64], "width": [32], "height": [32]})
    images.make_room(rows, ["1" * 64])
    assert all(victim.exists() for victim in victims)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(100), None], ids=short)
def test_an_index_that_is_no_database_is_done_without(
    tmp_path: Path, faces: Path, line: Line, content: bytes | None
) -> None:
    cache = tmp_path / "cache"
    files = [cache / "catalogue.sqlite", cache / "trunk" / digest("x") / "index.sqlite"]
    for file in files:
        if content is None:
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    found = find_images(faces)
    table = scan(found, faces, cache=cache)
    assert (table["status"] != "unreadable").all()
    with pytest.raises((OSError, sqlite3.Error)):  # which `StoredTrunk` takes for "go on without"
        TrunkStore(cache / "trunk", "x", 1.0).find(["a"], "view")
    assert files[0].is_dir() if content is None else files[0].read_bytes() == content


@pytest.mark.parametrize("value", ["x", None, b"1", 1.5, "1" * 30])
def test_what_a_cache_says_of_images_is_of_the_kind_that_a_scan_writes(
    tmp_path: Path, faces: Path, value: Any
) -> None:
    root = Path(shutil.copytree(faces, tmp_path / "faces"))
    found = find_images(root)
    for file in found["path"]:
        os.utime(root / file, (0, 0))  # what has changed just now is not remembered
    first = scan(found, root, cache=tmp_path)
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as database:
        (table,) = (
            name for (name,) in database.execute("SELECT name FROM sqlite_master") if name.startswith("facts")
        )
        database.execute(f"UPDATE {table} SET width = ?", [value])  # noqa: S608
    pd.testing.assert_frame_equal(scan(found, root, cache=tmp_path), first)


# --------------------------------------------------------------------------------------------- manifests and names


def test_a_manifest_with_a_path_that_is_no_file_has_a_row_with_a_reason(tmp_path: Path, faces: Path) -> None:
    root = Path(shutil.copytree(faces, tmp_path / "faces"))
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "device.png").symlink_to("/dev/null")
    (root / "list.csv").write_text("path,label\npipe.png,0\nfolder.png,1\n" + "x" * 5000 + "/y.png,1\n")
    table = scan(read_manifest(root, "list.csv"), root)
    assert (table["status"] == "unreadable").all()
    assert (table["reason"] != "").all()
    (root / "list.csv").write_text("path,label\ndevice.png,0\n")
    with pytest.raises(UserError, match="leads out of"):
        read_manifest(root, "list.csv")


def test_a_path_does_not_climb_over_a_linked_root(tmp_path: Path) -> None:
    (tmp_path / "data/faces").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data/faces")
    (tmp_path / "data/faces/list.csv").write_text("path,label\n../faces/a.png,0\nb.png,1\n")
    with pytest.raises(UserError, match="leads out of"):
        read_manifest(tmp_path / "link", "list.csv")


# ---------------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize("command", commands())
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["+x._target_=os.system", "+x.command='touch {mark}'"], "x"),
        (["+x={{_target_: os.system, _args_: ['touch {mark}']}}"], "x"),
        (["+_target_=os.system", "+_args_=['touch {mark}']"], "_target_"),
        (["_target_=os.system"], "_target_"),
    ],
)
def test_targets_on_a_command_line_are_unknown_settings(
    line: Line, empty: Path, command: str, arguments: list[str], named: str
) -> None:
    of_runs = ("app", "evaluate", "explain", "report", "robustness")
    required = {"predict": ["run=x", "input=x"], **{name: ["run=x"] for name in of_runs}}.get(command, [])
    given = [argument.format(mark=empty / "mark") for argument in arguments]
    assert line.refuses(command, *required, *given).startswith(f"error: unknown setting {named}")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["model._target_=os.system"],
        ["+model._target_=os.system", "+model._args_=['touch {mark}']"],
        ["+data.cache._target_=os.system", "+data.cache._args_=['touch {mark}']"],
        ["+scheduler.x={{_target_: os.system, _args_: ['touch {mark}']}}"],
        ["-m", "+model._target_=os.system,os.popen", "+model._args_=['touch {mark}']"],
    ],
)
def test_targets_below_known_settings_are_unknown(line: Line, empty: Path, arguments: list[str]) -> None:
    assert line("train", *(argument.format(mark=empty / "mark") for argument in arguments)) != 0
    assert re.search(r"unknown setting (model|data\.cache|scheduler)\.(_target_|_args_|x)", line.err)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("name", HUB[:-1])
def test_no_setting_has_a_network_fetched_by_another_name(line: Line, name: str, faces: Path) -> None:
    assert "timm" in line.refuses("train", *TINY, f"data.root={faces}", f'model.timm="{name}"', "output_dir=o")
