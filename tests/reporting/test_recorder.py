"""metrics.csv and the dashboard tell the same, once: every epoch, every figure, pictures, hyper-parameters."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from deepfake.config import conf_dir, parse_train
from deepfake.training import train

EPOCHS = 3
MEASURES = ("loss", "accuracy", "precision", "recall", "f1", "auroc", "ap")
COUNTS = ("tn", "fp", "fn", "tp")


def trained(output: Path, faces: Path, *overrides: str) -> Path:
    """The folder of a tiny run."""
    settings = [
        "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", f"data.root={faces}",
        "trunk.engine=eager",
        f"output_dir={output}", f"epochs={EPOCHS}", "batch_size=8", "lr=1e-2", "trainer=cpu",
        "trainer.progress=false", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=settings))
    train(cfg)
    return next(path.parent for path in output.glob("*/summary.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    output = tmp_path_factory.mktemp("outputs")
    return trained(output, faces, "scheduler=cosine", "unfreeze=2", "accumulate=2", "logger.image_grid=6")


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")


@pytest.fixture(scope="module")
def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def test_one_row_an_epoch_with_every_figure_of_both_parts(rows: pd.DataFrame) -> None:
    figures = [f"{part}/{name}" for part in ("train", "val") for name in MEASURES + COUNTS]
    assert list(rows.columns) == ["epoch", "step", "lr", *figures]
    assert rows["epoch"].tolist() == list(range(EPOCHS))
    assert rows.notna().all(axis=None)


def test_how_long_an_epoch_took_stands_apart(folder: Path) -> None:
    """Another run of the same settings has the same metrics.csv."""
    seconds = pd.read_csv(folder / "seconds.csv")
    assert seconds["epoch"].tolist() == list(range(EPOCHS))
    assert seconds["seconds"].gt(0).all()


def test_steps_and_learning_rates_are_those_of_the_epochs_end(rows: pd.DataFrame, folder: Path) -> None:
    batches = -(-(pd.read_csv(folder / "manifest.csv")["split"] == "train").sum() // 8)
    steps = -(-batches // 2)
    assert rows["step"].tolist() == [steps * (epoch + 1) for epoch in range(EPOCHS)]
    assert rows["lr"].iloc[0] == pytest.approx(1e-2)  # warmed up
    assert rows["lr"].iloc[-1] == pytest.approx(1e-4)  # fallen to a hundredth
    assert rows["lr"].is_monotonic_decreasing


def test_counts_are_of_every_image_once_and_agree_with_the_rates(rows: pd.DataFrame, folder: Path) -> None:
    parts = pd.read_csv(folder / "manifest.csv").groupby("split")["label"]
    for part in ("train", "val"):
        tn, fp, fn, tp = (rows[f"{part}/{name}"] for name in COUNTS)
        labels = parts.get_group(part)
        assert (tn + fp == (labels == 0).sum()).all()
        assert (fn + tp == (labels == 1).sum()).all()
        np.testing.assert_allclose(rows[f"{part}/accuracy"], (tn + tp) / len(labels), atol=1e-6)
        np.testing.assert_allclose(rows[f"{part}/recall"], tp / (fn + tp), atol=1e-6)


def test_the_dashboard_has_the_names_and_values_of_the_file(rows: pd.DataFrame, board: EventAccumulator) -> None:
    names = set(rows.columns) - {"epoch", "step"}
    scalars = set(board.Tags()["scalars"])
    assert names <= scalars
    assert {name for name in scalars - names if not name.startswith("final/")} == {"seconds"}
    for name in names:
        events = board.Scalars(name)
        assert [event.step for event in events] == rows["epoch"].tolist(), name
        np.testing.assert_allclose([event.value for event in events], rows[name], rtol=1e-6, err_msg=name)


def test_the_dashboard_has_the_pictures_of_the_folder(board: EventAccumulator, folder: Path) -> None:
    names = {
        "data/augmented": "augmented.jpg",
        "val/confusion": "confusion_val.png",
        "test/confusion": "confusion_test.png",
        "curves/loss": "loss.png",
        "curves/accuracy": "accuracy.png",
    }
    for name, file in names.items():
        (shown,) = board.Images(name)
        assert shown.encoded_image_string == (folder / "figures" / file).read_bytes(), name
        with Image.open(io.BytesIO(shown.encoded_image_string)) as picture:
            assert (shown.width, shown.height) == picture.size, name


def test_the_dashboard_has_hyper_parameters_beside_the_final_figures(board: EventAccumulator) -> None:
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    values = {name: value.string_value or value.number_value for name, value in told.items()}
    assert values["model"] == "test_resnet"
    assert values["unfreeze"] == "2"
    assert values["scheduler"] == "cosine"
    assert values["batch"] == 16
    assert values["lr"] == pytest.approx(1e-2)
    assert {"final/val_accuracy", "final/test_accuracy", "final/test_loss"} <= set(board.Tags()["scalars"])


def test_the_training_images_are_a_picture_in_the_folder_too(folder: Path) -> None:
    with Image.open(folder / "figures" / "augmented.jpg") as image:
        image.load()
        assert min(image.size) > 100


def test_without_dashboard_the_file_is_there_all_the_same(tmp_path: Path, faces: Path) -> None:
    folder = trained(tmp_path, faces, "logger=none", "epochs=1")
    assert len(pd.read_csv(folder / "metrics.csv")) == 1
    assert not (folder / "tensorboard").exists()
    assert not (folder / "figures" / "augmented.jpg").exists()
