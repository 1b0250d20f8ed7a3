"""The command as a user gives it: a run folder that stands alone, honest figures, mistakes told in one line."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from sklearn import metrics as sklearn

from deepfake import runs, training
from deepfake.checkpoints import LAST
from deepfake.config import TrainConfig, conf_dir, parse_train
from deepfake.data.catalog import read_catalogue
from deepfake.data.datamodule import FaceDataModule
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.dataset import catalogue
from deepfake.errors import UserError
from deepfake.models.backbones import build_backbone
from deepfake.models.detector import DetectorModule
from deepfake.reporting.recorder import Recorder
from deepfake.runs import BEST
from deepfake.train import main, run
from deepfake.training import build_detector, data_module

TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=8",
    "trunk.engine=eager", "trunk.precision=float32", "accumulate=1", "lr=1e-2", "trainer=cpu",
    "trainer.progress=false", "logger.image_grid=4",
)  # fmt: skip
EPOCHS = 3
CONF = Path(conf_dir())


def settings(*overrides: str) -> TrainConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return parse_train(compose("train", overrides=list(overrides)))


def train(faces: Path, output: Path, *overrides: str) -> Path:
    """Train a tiny network; the run's folder."""
    cfg = settings(*TINY, f"data.root={faces}", f"output_dir={output}", *overrides)
    run(cfg)
    return runs.run_folder(cfg)


def command(*overrides: str) -> None:
    """What the terminal does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake-train", *overrides])
        main()


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in another folder than the project's."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as the tests themselves: another number rounds otherwise
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def _weights(file: Path) -> dict[str, Any]:
    held = torch.load(file, weights_only=True)
    return held["network" if file.name == LAST else "state_dict"]


def digest(folder: Path) -> dict[str, str]:
    """sha256 of the weights in both checkpoints."""
    found = {}
    for file in sorted((folder / "checkpoints").glob("*.ckpt")):
        hashed = hashlib.sha256()
        for name, tensor in sorted(_weights(file).items()):
            hashed.update(name.encode() + tensor.numpy().tobytes())
        found[file.name] = hashed.hexdigest()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """A run whose last epoch is spoilt, so that it is not the best."""
    with pytest.MonkeyPatch.context() as patch:
        start = DetectorModule.on_validation_epoch_start

        def spoilt(module: DetectorModule) -> None:
            start(module)
            if module.trainer.state.fn == "fit" and module.current_epoch == EPOCHS - 1:
                module.backbone.network.get_classifier().weight.data.mul_(1000)  # type: ignore[operator]

        patch.setattr(DetectorModule, "on_validation_epoch_start", spoilt)
        output = tmp_path_factory.mktemp("spoilt")
        return train(faces, output, f"epochs={EPOCHS}", "unfreeze=1", "scheduler=plateau", "data.limit=40")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """A run of two epochs, alone in its output folder."""
    return train(faces, tmp_path_factory.mktemp("plain"), "epochs=2", "unfreeze=2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_without_a_graphics_card_no_step_looks_for_one(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for it takes as long as the rest of a classifier's step."""
    looked: list[int] = []
    count = torch.cuda.device_count
    monkeypatch.setattr(torch.cuda, "device_count", lambda: looked.append(1) or count())
    numbers = []
    for epochs in (1, 5):
        looked.clear()
        monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning leaves it
        train(faces, tmp_path, f"epochs={epochs}", "batch_size=2")
        numbers.append(len(looked))
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("cached", [True, False])
def test_runs_that_begin_together_prepare_each_image_once(
    cached: bool, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of a sweep, side by side; without a cache there is nothing to wait for."""
    cfg = settings(*TINY, f"data.root={faces}", f"output_dir={tmp_path}", f"data.cache.enabled={cached}")
    found = catalogue(cfg.data, show=False)
    both, asked, prepared = threading.Barrier(2), threading.local(), []
    unprepared, prepare = FaceDataModule.unprepared, PreparedImages.prepare

    def both_asking(self: FaceDataModule) -> Any:
        rows = unprepared(self)
        if not hasattr(asked, "before"):
            asked.before = True
            both.wait(60)
        return rows

    def counted(self: PreparedImages, path: Path, sha256: str | None) -> Any:
        prepared.append(sha256)
        return prepare(self, path, sha256)

    monkeypatch.setattr(FaceDataModule, "unprepared", both_asking)
    monkeypatch.setattr(PreparedImages, "prepare", counted)

    def begin(_: int) -> FaceDataModule:
        return data_module(cfg, found, Preparation(), build_detector(cfg), torch.device("cpu"))[0]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(begin, range(2)))
    assert sorted(prepared) == (sorted(found.table["sha256"]) if cached else [])


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_folder_holds_everything_and_nothing_else(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    board = {file for file in files if file.startswith("tensorboard/")}
    assert any("events.out.tfevents" in file for file in board)
    assert files - board == {
        "config.yaml", "manifest.csv", "manifest.parquet", "audit.json", "environment.json", "metrics.csv",
        "summary.json", "status.json", "train.log",
        "val_predictions.csv", "test_predictions.csv", "confusion_val.csv", "confusion_test.csv",
        "figures/loss.png", "figures/accuracy.png", "figures/confusion_val.png", "figures/confusion_test.png",
        "figures/augmented.jpg", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "checkpoints/SHA256SUMS", "seconds.csv", "report.html",
    }  # fmt: skip
    for picture in (folder / "figures").iterdir():
        with Image.open(picture) as image:
            image.load()
    assert json.loads((folder / "status.json").read_text())["status"] == "complete"


def test_its_settings_are_whole_and_give_the_same_run_again(folder: Path, faces: Path) -> None:
    held = yaml.safe_load((folder / "config.yaml").read_text())
    again = parse_train(OmegaConf.create(held))
    assert runs.run_folder(again) == folder
    assert again.scheduler.name == "plateau"
    assert again.data.root == str(faces)


def test_its_manifest_names_every_image_with_its_hash_and_part(folder: Path, faces: Path) -> None:
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    assert len(manifest) == 40
    for row in manifest.itertuples():
        assert hashlib.sha256((faces / str(row.path)).read_bytes()).hexdigest() == row.sha256
        assert row.label == int(str(row.path)[0])
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_its_environment_tells_command_and_versions(folder: Path) -> None:
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == metadata.version("torch")
    assert environment["packages"]["deepfake"] == metadata.version("deepfake")
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_its_log_tells_what_was_done_and_the_result(folder: Path) -> None:
    told = (folder / "train.log").read_text()
    figures = summary(folder)
    assert "40 images of 4 sources, 50.0% generated" in told
    assert "frozen     stem, layer1, layer2, layer3" in told
    assert f"trained    layer4, head: {figures['trained_weights']:,} of {figures['total_weights']:,} weights" in told
    assert "test       accuracy" in told
    assert f"best val/loss: {figures['best_epoch']} (from 0) of {EPOCHS} trained" in told


def test_a_run_on_the_built_in_data_tells_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = settings(*TINY, "data.images_per_source=8", "data.size=64", "epochs=1", "logger=none")
    run(cfg)
    folder = runs.run_folder(cfg).absolute()
    monkeypatch.chdir("/")
    root = Path(yaml.safe_load((folder / "config.yaml").read_text())["data"]["root"])
    assert root.is_relative_to(tmp_path)
    for path in pd.read_csv(folder / "manifest.csv")["path"]:
        assert (root / path).is_file()


# ------------------------------------------------------------------------------------------------- honest figures


@pytest.mark.parametrize("part", ["val", "test"])
def test_figures_are_those_of_the_predictions(folder: Path, part: str) -> None:
    told = summary(folder)[part]
    predictions = pd.read_csv(folder / f"{part}_predictions.csv")
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False).query("split == @part")
    assert predictions["path"].tolist() == manifest["path"].tolist()
    assert predictions["label"].tolist() == manifest["label"].tolist()

    labels, p = predictions["label"], predictions["probability"]
    # The network's own probabilities, before the temperature.
    raw = 1 / (1 + np.exp(-predictions["margin"]))
    temperature = summary(folder)["calibration"]["temperature"]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-predictions["margin"] / temperature)), rtol=1e-6)
    said = predictions["prediction"]
    assert (said == (p > 0.5)).all()
    tn, fp, fn, tp = sklearn.confusion_matrix(labels, said).ravel()
    expected = {
        "n": len(labels),
        "prevalence": labels.mean(),
        "accuracy": sklearn.accuracy_score(labels, said),
        "precision": sklearn.precision_score(labels, said, zero_division=0),
        "recall": sklearn.recall_score(labels, said, zero_division=0),
        "f1": sklearn.f1_score(labels, said, zero_division=0),
        "auroc": sklearn.roc_auc_score(labels, p),
        "ap": sklearn.average_precision_score(labels, p),
        "loss": sklearn.log_loss(labels, raw),
        "nll": sklearn.log_loss(labels, p),
        **{"tn": tn, "fp": fp, "fn": fn, "tp": tp},
    }
    assert {name: told[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    for name, (low, high) in told["intervals"].items():
        assert 0 <= low <= told[name] <= high <= 1

    counts = pd.read_csv(folder / f"confusion_{part}.csv", index_col="truth")
    assert counts.loc[["real", "fake"], ["predicted real", "predicted fake"]].to_numpy().tolist() == [
        [tn, fp],
        [fn, tp],
    ]


def test_figures_are_of_the_best_epoch_and_say_so(folder: Path) -> None:
    rows, told = pd.read_csv(folder / "metrics.csv"), summary(folder)
    best = int(rows["val/loss"].idxmin())
    assert told["epochs_run"] == EPOCHS
    assert best != EPOCHS - 1, "the last epoch is the best: the test sees nothing"
    assert told["best_epoch"] == best
    assert told["best_value"] == pytest.approx(rows["val/loss"].min(), rel=1e-6)
    for part in ("train", "val"):
        names = [name.removeprefix(f"{part}/") for name in rows if name.startswith(f"{part}/")]
        expected = {name: rows.loc[best, f"{part}/{name}"] for name in names}
        assert {name: told[part][name] for name in names} == pytest.approx(expected, rel=1e-5)
    best_held, last_held = (torch.load(folder / name, weights_only=True) for name in (BEST, f"checkpoints/{LAST}"))
    assert best_held["epoch"] == last_held["best"]["epoch"] == best
    assert last_held["epoch"] == EPOCHS  # the next, were there one


def test_predictions_are_the_best_checkpoints_on_clean_images(folder: Path, faces: Path) -> None:
    held = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    spec = held["deepfake"]["input"]
    module = DetectorModule(build_backbone(held["deepfake"]["architecture"], "none", spec["size"])).eval()
    module.load_state_dict(held["state_dict"])
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec["interpolation"]]
    predictions = pd.read_csv(folder / "test_predictions.csv")
    images = []
    for path in predictions["path"]:
        with Image.open(faces / path) as image:
            pixels = np.asarray(image.convert("RGB").resize((spec["size"], spec["size"]), method)) / 255
        images.append((pixels - spec["mean"]) / spec["std"])
    batch = torch.tensor(np.stack(images), dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(predictions["margin"], module.margins(batch), atol=1e-4)


def test_one_place_says_what_better_means(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectorModule, "monitor", "val/auroc")
    monkeypatch.setattr(DetectorModule, "mode", "max")
    stops: list[Any] = []
    early = training.EarlyStopping
    monkeypatch.setattr(training, "EarlyStopping", lambda *a, **k: stops.append(early(*a, **k)) or stops[-1])
    folder = train(faces, tmp_path, "epochs=3", "logger=none")
    rows, told = pd.read_csv(folder / "metrics.csv"), summary(folder)
    assert told["monitor"] == "val/auroc"
    assert told["best_epoch"] == rows["val/auroc"].idxmax()
    assert told["best_value"] == told["val"]["auroc"] == pytest.approx(rows["val/auroc"].max())
    assert [(stop.monitor, stop.mode) for stop in stops] == [("val/auroc", "max")]
    assert float(stops[0].best_score) == pytest.approx(rows["val/auroc"].max())


def test_early_stopping_ends_training_after_epochs_that_were_not_better(faces: Path, tmp_path: Path) -> None:
    folder = train(faces, tmp_path, "epochs=9", "patience=2", "lr=1e-20", "logger=none")  # nothing is learned
    values = pd.read_csv(folder / "metrics.csv")["val/loss"].tolist()
    assert values == [values[0]] * 3
    assert summary(folder)["best_epoch"] == 0


# ------------------------------------------------------------------------------------------------- again


def test_the_same_command_from_anywhere_gives_the_same_weights(plain: Path, faces: Path, tmp_path: Path) -> None:
    done = python("-m", "deepfake.train", *TINY, f"data.root={faces}", "epochs=2", "unfreeze=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not re.search("Traceback|[Ww]arn", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    again = tmp_path / "outputs" / plain.name
    assert runs.is_complete(again)
    assert digest(again) == digest(plain)
    assert digest(plain)["best.ckpt"]
    command = json.loads((again / "environment.json").read_text())["command"]
    assert command[1:] == [*TINY, f"data.root={faces}", "epochs=2", "unfreeze=2"]


def test_the_stored_trunk_changes_no_figure(plain: Path, faces: Path, tmp_path: Path) -> None:
    off = train(faces, tmp_path, "epochs=2", "unfreeze=2", "cache=off")
    assert off.name == plain.name, "the cache is no part of what is learned"
    ours, theirs = (pd.read_csv(folder / "metrics.csv") for folder in (off, plain))
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-6)
    assert any((plain.parent / ".cache" / "trunk").iterdir())
    assert not (tmp_path / ".cache" / "trunk").exists()
    assert "trunk " in (plain / "train.log").read_text()
    assert "trunk " not in (off / "train.log").read_text()


@pytest.mark.parametrize("override", ["trainer.max_batches=1", "unfreeze=all"])
def test_the_trunk_is_not_stored_where_that_is_no_use(faces: Path, tmp_path: Path, override: str) -> None:
    folder = train(faces, tmp_path, "epochs=1", "logger=none", override)
    assert runs.is_complete(folder)
    assert not (tmp_path / ".cache" / "trunk").exists()
    assert "trunk " not in (folder / "train.log").read_text()


def test_a_store_that_would_be_too_large_is_left_and_loader_processes_work_again(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    module = training.FaceDataModule
    monkeypatch.setattr(training, "FaceDataModule", lambda *a, **k: made.append(module(*a, **k)) or made[-1])
    folder = train(faces, tmp_path, "epochs=1", "logger=none", "cache_max_gb=1e-6", "data.workers=1")
    assert "so not stored" in (folder / "train.log").read_text()
    assert list((tmp_path / ".cache" / "trunk").rglob("*.npy")) == []
    assert made[0].train_dataloader().num_workers == 1


def test_a_complete_run_is_skipped(plain: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "build_detector", never)
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    cfg = settings(*TINY, f"data.root={faces}", f"output_dir={plain.parent}", "epochs=2", "unfreeze=2")
    assert run(cfg) == summary(plain)["best_value"]
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


def test_force_sets_the_earlier_run_aside_and_trains_again(plain: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / plain.name)
    (tmp_path / plain.name / "note.txt").write_text("mine")
    folder = train(faces, tmp_path, "epochs=2", "unfreeze=2", "force=true")
    (aside,) = (tmp_path / ".replaced").iterdir()
    assert (aside / "note.txt").read_text() == "mine"
    assert not (folder / "note.txt").exists()
    assert runs.is_complete(folder)
    assert digest(folder) == digest(aside) == digest(plain)


def test_a_run_that_did_not_end_is_not_complete_and_is_made_again(faces: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("boom")

    cfg = settings(*TINY, f"data.root={faces}", f"output_dir={tmp_path}", "epochs=1", "logger=none")
    folder = runs.run_folder(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "on_train_epoch_end", fail)
        with pytest.raises(RuntimeError, match="boom"):
            run(cfg)
    assert runs.read_status(folder) == "failed"
    assert not (folder / "summary.json").exists()
    assert json.loads((folder / "status.json").read_text())["message"] == "boom"
    assert "Traceback" in (folder / "train.log").read_text()
    run(cfg)
    assert runs.is_complete(folder)
    (aside,) = (tmp_path / ".replaced").iterdir()
    assert runs.read_status(aside) == "failed"


# ------------------------------------------------------------------------------------------------- the study's six


@pytest.mark.parametrize(
    ("experiment", "trained"),
    [
        ("resnet18", 1_026),
        ("efficientnet", 2_562),
        ("densenet121", 2_050),
        ("vit", 1_538),
        ("efficientnet_2", 1_131_954),  # the study's own count
        ("efficientnet_3", 1_131_954),
    ],
)
def test_every_row_of_the_study_trains_a_step(experiment: str, trained: int, faces: Path, tmp_path: Path) -> None:
    command(
        f"experiment=report/{experiment}", "model.weights=none", "model.input_size=32", f"data.root={faces}",
        "trunk.engine=eager", f"output_dir={tmp_path}", "trainer.max_batches=2", "epochs=1", "batch_size=8",
        "trainer=cpu", "trainer.progress=false", "logger=none",
    )  # fmt: skip
    folder = next(path.parent for path in tmp_path.glob("*/summary.json"))
    assert folder.name.startswith(f"report-{experiment}-")
    assert runs.is_complete(folder)
    assert summary(folder)["trained_weights"] == trained
    rows = pd.read_csv(folder / "metrics.csv")
    assert rows["step"].tolist() == [1]
    # Four batches a step: both batches were seen by the first weights, which must know nothing.
    assert rows["train/loss"][0] == pytest.approx(math.log(2), abs=0.2)
    shutil.rmtree(tmp_path)  # a vision transformer is large


# ------------------------------------------------------------------------------------------------- mistakes


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


def nothing_there(root: Path) -> list[str]:
    return [f"data.root={root / 'nowhere'}"]


def empty_class(root: Path) -> list[str]:
    picture(root / "1-gan" / "0.png", 0)
    (root / "0-camera").mkdir()
    return [f"data.root={root}"]


def one_class(root: Path) -> list[str]:
    for number in range(4):
        picture(root / "1-gan" / f"{number}.png", number)
    return [f"data.root={root}"]


def three_images(root: Path) -> list[str]:
    for number, source in enumerate(("0-camera", "0-camera", "1-gan")):
        picture(root / source / f"{number}.png", number)
    return [f"data.root={root}"]


def no_weights(root: Path) -> list[str]:
    root.mkdir()
    (root / "net.pth").write_bytes(b"no weights")
    return [f"model.weights={root / 'net.pth'}"]


def other_weights(root: Path) -> list[str]:
    root.mkdir()
    torch.save({"conv1.weight": torch.zeros(1)}, root / "net.pth")
    return [f"model.weights={root / 'net.pth'}"]


def file_for_a_folder(root: Path) -> list[str]:
    root.write_text("a file")
    return [f"output_dir={root / 'outputs'}"]


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (nothing_there, r"data\.root=\S+nowhere is no folder: expected one that holds folders such as real and fake"),
        (empty_class, r"expected images of both classes, found 1 .* none that is real\. Put some into .* 0-NAME"),
        (one_class, r"expected images of both classes, found 4 .* none that is real\. Put some into .* 0-NAME"),
        (three_images, r"the \w+ part has no \w+ image: expected at least one, found \d .* all 3\. Add \w+ images"),
        (no_weights, r"net\.pth could not be read as weights: .*; save the network's state_dict\(\)"),
        (other_weights, r"net\.pth must hold test_resnet's \d+ tensors, classifier aside: found .*; .* another file"),
        (file_for_a_folder, r"output_dir: expected a folder that can be written, found .* Name another with"),
        ("model.timm=resnet19", r"no network named 'resnet19'; the nearest names are .*resnet18"),
        ("unfreeze=6", r"unfreeze must be 0\.\.5 or all: found 6; .* stem, layer1, layer2, layer3, layer4"),
        ("model.weights=nowhere.pth", r"weights: there is no file /\S+/nowhere\.pth; check model\.weights"),
        ("model.weights=pretrained", r"could not be fetched .* Three ways out: .* model\.weights=none"),
        ("model.timm=test_vit model.input_size=33", r"input_size=33 .*; leave it out for the network's own"),
        ("epochs=0", r"epochs=0 is refused: expected a whole number of at least 1"),
        ("trainer.accelerator=abacus", r"trainer\.accelerator=abacus.*expected .* found: .* trainer=cpu"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    mistake: str | Callable[[Path], list[str]],
    expected: str,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    wrong = mistake.split() if isinstance(mistake, str) else mistake(tmp_path / "wrong")
    output = tmp_path / "outputs"
    with pytest.raises(SystemExit) as ended:
        command(*TINY, f"data.root={faces}", f"output_dir={output}", "epochs=1", "logger=none", *wrong)
    assert ended.value.code == 2
    told = capfd.readouterr()
    assert told.out == ""
    *before, line = told.err.splitlines()
    assert re.search(f"^error: .*{expected}", line), told.err
    assert not before or "run folder" in before[0]  # what shows only after the run has begun
    assert "Traceback" not in told.err
    assert [path for path in output.rglob("status.json") if runs.is_complete(path.parent)] == []


def test_a_mistake_in_a_fresh_interpreter(tmp_path: Path) -> None:
    done = python("-m", "deepfake.train", "data.root=nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: data.root={tmp_path / 'nowhere'} is no folder")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_ends_the_run(
    faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(*TINY, f"data.root={faces}", f"output_dir={tmp_path}", "lr=1e30", "unfreeze=all", "logger=none")
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert re.search(r"^error: the training loss is \w+ at epoch \d+, batch \d+: expected a finite", told, re.M)
    (status,) = tmp_path.glob("*/status.json")
    assert runs.read_status(status.parent) == "failed"
    assert "the training loss is" in json.loads(status.read_text())["message"]


def test_an_interruption_is_told_in_one_line(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Recorder, "on_train_epoch_end", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        command(*TINY, f"data.root={faces}", f"output_dir={tmp_path}", "logger=none")
    assert ended.value.code == 130
    told = capfd.readouterr().err
    assert told.splitlines()[-1].startswith("error: stopped by SIGINT. Run the same command again")
    assert "Traceback" not in told


def test_unreadable_files_are_listed_and_left_out(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    whole = (root / "0-phone" / "00.jpg").read_bytes()
    (root / "0-phone" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "1-gan" / "empty.png").write_bytes(b"")
    folder = train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    manifest = read_catalogue(folder / "manifest.csv").set_index("path")
    assert len(manifest) == 50
    unreadable = manifest[manifest["status"] == "unreadable"]
    assert set(unreadable.index) == {"0-phone/cut.jpg", "1-gan/empty.png"}
    assert unreadable["reason"]["1-gan/empty.png"] == "file is empty"
    assert set(unreadable["split"]) == {""}
    assert runs.is_complete(folder)


# ------------------------------------------------------------------------------------------------- data


def test_crops_train_at_native_resolution(faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = train(faces, tmp_path, "epochs=1", "logger=none", "data.preprocess=crop", "augment=native")
    assert runs.is_complete(folder)
    assert "resample the crops" not in capfd.readouterr().err


def test_crops_that_augmentation_resamples_are_told(
    faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(faces, tmp_path, "epochs=1", "logger=none", "data.preprocess=crop")
    assert "rotation and translation resample the crops" in " ".join(capfd.readouterr().err.split())


def test_equalising_is_recorded_and_leaves_the_originals_alone(
    faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in faces.rglob("*") if path.is_file()}
    folder = train(faces, tmp_path, "epochs=1", "logger=none", "data.equalise=true")
    assert {path: path.read_bytes() for path in faces.rglob("*") if path.is_file()} == before
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["equalise"] is True
    assert summary(folder)["preparation"] == {"mode": "resize", "equalise": 40, "margin": 0.3, "size": 32}
    told = " ".join(capfd.readouterr().err.split())
    assert "equalised centre square, 40 pixels" in told
    assert "shrinks every image to 40 pixels, as small as '0-camera/00.jpg'" in told


def test_a_source_held_out_is_in_the_test_part_alone(faces: Path, tmp_path: Path) -> None:
    folder = train(faces, tmp_path, "epochs=1", "logger=none", "data.hold_out=[1-gan]")
    manifest = read_catalogue(folder / "manifest.csv")
    assert set(manifest.loc[manifest["source"] == "1-gan", "split"]) == {"test"}
    assert {"train", "val", "test"} == set(manifest.loc[manifest["source"] == "1-diffusion", "split"])


def test_groups_from_file_names_are_never_parted(faces: Path, tmp_path: Path) -> None:
    folder = train(faces, tmp_path, "epochs=1", "logger=none", r"data.group='(\d+)\..*'")
    manifest = read_catalogue(folder / "manifest.csv")
    assert set(manifest["group"]) == {f"{number:02}" for number in range(12)}
    assert manifest.groupby("group")["split"].nunique().max() == 1


def test_a_given_split_is_kept(faces: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    for number, file in enumerate(sorted(faces.rglob("*.*"))):
        part = ("train", "train", "val", "test")[number % 4]
        copy = root / part / ("fake" if file.parent.name[0] == "1" else "real") / f"{file.parent.name}-{file.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    folder = train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    manifest = read_catalogue(folder / "manifest.csv")
    assert (manifest["split"] == manifest["path"].str.split("/").str[0]).all()


def test_a_given_split_without_validation_says_where_it_was_cut_out(faces: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    for number, file in enumerate(sorted(faces.rglob("*.*"))):
        part = ("train", "train", "test")[number % 3]
        copy = root / part / ("fake" if file.parent.name[0] == "1" else "real") / f"{file.parent.name}-{file.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    folder = train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    told = "the given split has no part val: cut out of the given training part"
    assert told in (folder / "train.log").read_text()
    manifest = read_catalogue(folder / "manifest.csv")
    assert set(manifest.loc[manifest["split"] == "val", "path"].str.split("/").str[0]) == {"train"}


def sizes_tell(root: Path) -> None:
    """Fakes are smaller than reals."""
    random = np.random.default_rng(0)
    for name, side in (("real", 48), ("fake", 40)):
        (root / name).mkdir(parents=True)
        for number in range(70):
            Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
                root / name / f"{number}.png"
            )


def test_strict_audit_refuses_a_shortcut_before_a_folder_is_made(tmp_path: Path) -> None:
    sizes_tell(tmp_path / "faces")
    cfg = settings(*TINY, f"data.root={tmp_path / 'faces'}", f"output_dir={tmp_path / 'outputs'}", "audit=strict")
    with pytest.raises(UserError, match="audit=strict refuses this data: image size alone tells real from fake"):
        run(cfg)
    assert not runs.run_folder(cfg).exists()


def test_a_complete_run_is_trained_again_when_its_images_have_changed(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    folder = train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    first = (folder / "status.json").stat().st_mtime_ns
    train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    assert (folder / "status.json").stat().st_mtime_ns == first
    (root / "1-gan" / "03.jpg").unlink()
    train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    assert len(read_catalogue(folder / "manifest.csv")) == 47
    assert len(list((tmp_path / "outputs" / ".replaced").iterdir())) == 1
    assert re.search(
        r"complete, but \d+ images or their parts have changed, such as '", (folder / "train.log").read_text()
    )
    assert (folder / "train.log").read_text().count("have changed, such as") == 1


def test_strict_audit_refuses_what_an_earlier_run_let_pass(tmp_path: Path) -> None:
    sizes_tell(tmp_path / "faces")
    train(tmp_path / "faces", tmp_path / "outputs", "epochs=1", "logger=none")
    with pytest.raises(UserError, match="audit=strict refuses"):
        train(tmp_path / "faces", tmp_path / "outputs", "epochs=1", "logger=none", "audit=strict")


def test_what_is_said_before_there_is_a_folder_stands_in_its_log(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    (root / "1-gan" / "empty.png").write_bytes(b"")
    folder = train(root, tmp_path / "outputs", "epochs=1", "logger=none")
    assert "left out: '1-gan/empty.png': file is empty" in (folder / "train.log").read_text()


# ------------------------------------------------------------------------------------------------- help


def test_help_lists_every_choice_and_needs_no_torch(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-m", "deepfake.train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "deepfake.config" in imported
    assert not imported & {"torch", "lightning", "timm", "pandas", "matplotlib", "cv2"}
    # os.walk, for conf/experiment is a link
    files = [Path(place, name) for place, _, names in os.walk(CONF, followlinks=True) for name in names]
    groups = [file for file in files if file.suffix == ".yaml" and file.parent != CONF]
    choices = [(file.parent.relative_to(CONF).as_posix(), file.stem) for file in groups]
    assert {"model", "scheduler", "experiment/report"} <= {group for group, _ in choices}
    for group, choice in choices:
        assert re.search(rf"^{group}: .*\b{choice}\b", done.stdout, re.MULTILINE), f"{group}={choice}"
    assert list(tmp_path.iterdir()) == []
