"""What TensorBoard is told of runs: read back from the files, then looked at in a browser."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from google.protobuf import text_format
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray

from deepfake import evaluate, evaluating, robustness, runs
from deepfake.checkpoints import Keeper
from deepfake.config import conf_dir, parse_train
from deepfake.reporting import board
from deepfake.training import train
from tests.test_predict import TINY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "1-<img src=x onerror=\"document.title='run'\">"  # the name of a source
ODD = "tab\there\nand a line.png"  # of a file
EPOCHS = 2  # as TINY says
FINAL = ("loss", "accuracy", "f1", "auroc", "ap")
SETTINGS = {"model": "test_resnet", "unfreeze": "1", "scheduler": "none", "lr": 1e-2, "seed": 0, "batch": 8}


class Crash(BaseException):
    """As with kill -9, nothing gets to write because of it."""


@pytest.fixture(scope="module")
def images(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The faces, some with names that are more than a name."""
    root = Path(shutil.copytree(faces, tmp_path_factory.mktemp("named") / "faces"))
    (root / "1-gan").rename(root / HOSTILE)
    for folder in root.iterdir():
        for file in sorted(folder.glob("*.png")):
            file.rename(file.with_name(f"{file.stem} {ODD}"))
    return root


def trained(images: Path, output: Path, *overrides: str) -> Path:
    given = [*TINY, "logger=tensorboard", f"data.root={images}", f"output_dir={output}", *overrides]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=given))
    train(cfg)
    return runs.run_folder(cfg)


def judged(command: Any, *overrides: str) -> int:
    """Have a command judge; returns its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command.__name__, "progress=false", "engine=eager", *overrides])
        try:
            command.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def output(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of which one was trained again, was evaluated twice and perturbed; and an ensemble of them."""
    output = tmp_path_factory.mktemp("outputs")
    for again in ("false", "true"):
        first = trained(images, output, f"force={again}", "name=first")
    second = trained(images, output, "seed=1", "unfreeze=2", "lr=1e-3", "name=second")
    for _ in range(2):
        assert judged(evaluate, f"run={first}", "baselines=false") == 0
        assert judged(robustness, f"run={first}", "perturbations=[flip]") == 0
    together = f"run=[{first},{second}]", "ensemble=mean", f"output_dir={output}", "baselines=false"
    assert judged(evaluate, *together) == 0
    return output


@pytest.fixture(scope="module")
def first(output: Path) -> Path:
    (folder,) = output.glob("first-*")
    return folder


@pytest.fixture(scope="module")
def events(first: Path) -> EventAccumulator:
    return told(first)


def told(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def value(events: EventAccumulator, tag: str) -> float:
    (event,) = events.Scalars(tag)
    return event.value


def embedding(folder: Path) -> Any:
    config = text_format.Parse((folder / "tensorboard/projector_config.pbtxt").read_text(), ProjectorConfig())
    (found,) = config.embeddings
    return found


# ------------------------------------------------------------------------------------------------ scalars, pictures


def test_all_scalars_are_under_one_naming(events: EventAccumulator) -> None:
    groups: dict[str, set[str]] = {}
    for tag in events.Tags()["scalars"]:
        group, _, measure = tag.rpartition("/")
        groups.setdefault(group, set()).add(measure)
    assert set(groups) == {"", "train", "val", "final", "evaluation", "robustness"}
    assert groups[""] == {"lr", "seconds"}
    assert groups["train"] == groups["val"] >= set(FINAL)
    assert groups["final"] == {f"{part}_{measure}" for part in ("val", "test") for measure in FINAL}
    assert groups["evaluation"] >= {"accuracy", "f1", "auroc", "ap", "eer", "ece"}
    assert groups["robustness"] >= {"mean_auroc", "mean_auroc_change", "lowest_auroc"}


def test_what_is_written_twice_is_there_once(events: EventAccumulator) -> None:
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == (list(range(EPOCHS)) if tag.partition("/")[0] in ("train", "val", "lr", "seconds") else [0])
    for kind, of in (("images", events.Images), ("tensors", events.Tensors)):
        for tag in events.Tags()[kind]:
            assert len(of(tag)) == 1, tag


def test_final_figures_are_those_of_the_summary(first: Path, events: EventAccumulator) -> None:
    summary = json.loads((first / "summary.json").read_text())
    for part in ("val", "test"):
        for measure in FINAL:
            assert value(events, f"final/{part}_{measure}") == pytest.approx(summary[part][measure], rel=1e-6)


def test_figures_of_an_evaluation_are_those_of_its_file(first: Path, events: EventAccumulator) -> None:
    found = json.loads((first / "evaluation/evaluation.json").read_text())
    assert value(events, "evaluation/ece") == pytest.approx(found["ece"], rel=1e-6)
    assert value(events, "evaluation/f1") == pytest.approx(found["thresholds"]["half"]["f1"], rel=1e-6)
    assert "evaluation/roc" in events.Tags()["images"]


def test_figures_of_robustness_are_those_of_its_file(first: Path, events: EventAccumulator) -> None:
    found = json.loads((first / "robustness/robustness.json").read_text())["summary"]
    assert value(events, "robustness/mean_auroc") == pytest.approx(found["mean"]["auroc"], rel=1e-6)
    assert value(events, "robustness/mean_fpr_change") == pytest.approx(found["mean_change"]["fpr"], abs=1e-6)
    (picture,) = events.Images("robustness/grid")
    assert picture.encoded_image_string == (first / "robustness/robustness.png").read_bytes()


def test_a_run_that_was_trained_again_is_shown_alone(output: Path) -> None:
    assert list((output / ".replaced").iterdir())
    shown = {file.relative_to(output).parts[0] for file in output.rglob("*tfevents*")}
    assert {name.partition("-")[0] for name in shown} == {"first", "second", "ensemble"}


def test_a_run_that_goes_on_has_each_epoch_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Keeper.on_train_epoch_end

    def crash(self: Keeper, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 2:  # the recorder has shown it, and nothing is kept of it
            raise Crash
        keep(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_epoch_end", crash)
        with pytest.raises(Crash):
            trained(images, tmp_path, "epochs=4", "patience=null")
    folder = trained(images, tmp_path, "epochs=4", "patience=null", "resume=must")
    rows, events = pd.read_csv(folder / "metrics.csv"), told(folder)
    shown = events.Scalars("val/loss")
    assert [event.step for event in shown] == [0, 1, 2, 3]
    np.testing.assert_allclose([event.value for event in shown], rows["val/loss"], rtol=1e-6)
    times = [event.wall_time for event in shown]
    assert times == sorted(times)


def test_where_there_is_no_dashboard_none_is_made(tmp_path: Path) -> None:
    for name in ("trained", "without", "linked", "ensemble"):
        (tmp_path / name).mkdir()
    (tmp_path / "trained/tensorboard").mkdir()
    (tmp_path / "linked/tensorboard").symlink_to(tmp_path / "trained/tensorboard")
    (tmp_path / "ensemble" / runs.ENSEMBLE).touch()
    found = {name: board.dashboard(tmp_path / name) for name in ("trained", "without", "linked", "ensemble")}
    assert {name for name, folder in found.items() if folder is not None} == {"trained", "ensemble"}


# ------------------------------------------------------------------------------------------------- hyper-parameters


def test_each_run_is_one_row_of_hyper_parameters(output: Path, first: Path) -> None:
    rows = {}
    for folder in output.glob("*/tensorboard"):
        events = told(folder.parent)
        if "_hparams_/session_start_info" in events.summary_metadata:
            content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
            rows[folder.parent.name.partition("-")[0]] = HParamsPluginData.FromString(content).session_start_info
    assert set(rows) == {"first", "second"}  # the ensemble was not trained
    values = {name: value.string_value or value.number_value for name, value in rows["first"].hparams.items()}
    assert SETTINGS.items() <= values.items()
    assert values["trained_weights"] == json.loads((first / "summary.json").read_text())["trained_weights"]


def test_the_table_begins_with_what_one_would_vary(events: EventAccumulator) -> None:
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert first == {"model", "unfreeze", "scheduler", "lr", "seed"}  # TensorBoard shows five
    assert {info.name.tag for info in experiment.metric_infos} == {
        f"final/{part}_{measure}" for part in ("val", "test") for measure in FINAL
    }


# -------------------------------------------------------------------------------------------------------- PR curves


@pytest.mark.parametrize("name", ["val", "test", "evaluation", "evaluation/1-diffusion", f"evaluation/{HOSTILE}"])
def test_precision_and_recall_are_those_of_scikit_learn(first: Path, events: EventAccumulator, name: str) -> None:
    part, _, source = name.partition("/")
    file = "evaluation/predictions.csv" if part == "evaluation" else f"{part}_predictions.csv"
    table = pd.read_csv(first / file, float_precision="round_trip")
    if source:
        table = table[(table["label"] == 0) | (table["source"] == source)]
    (event,) = events.Tensors(f"pr/{name}")
    shown = make_ndarray(event.tensor_proto)
    labels, p = table["label"].to_numpy(), table["probability"].to_numpy()
    assert {0, 1} == set(labels)
    for number in range(0, 127, 9):
        said = p >= number / 126
        assert shown[4, number] == pytest.approx(precision_score(labels, said, zero_division=0.0), rel=1e-5)
        assert shown[5, number] == pytest.approx(recall_score(labels, said), rel=1e-5)


def test_of_one_class_there_is_no_curve(tmp_path: Path) -> None:
    table = pd.DataFrame({"label": [1, 1], "probability": [0.2, 0.9], "source": ["a", "b"]})
    with board.part(tmp_path, "x") as writer:
        board.add_pr_curves(writer, "x", table, by_source=True)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] == []


# -------------------------------------------------------------------------------------------------------- projector


def features(folder: Path) -> np.ndarray:
    found = embedding(folder)
    raw = np.fromfile(folder / "tensorboard" / found.tensor_path, np.float32)
    return raw.reshape(found.tensor_shape)


def margins(folder: Path, features: np.ndarray) -> np.ndarray:
    """What the run's classifier makes of its inputs."""
    state = torch.load(folder / runs.BEST, weights_only=True)["state_dict"]
    weight, bias = (state[f"backbone.network.fc.{name}"].numpy() for name in ("weight", "bias"))
    return features @ (weight[1] - weight[0]) + (bias[1] - bias[0])


def metadata(folder: Path) -> list[list[str]]:
    lines = (folder / "tensorboard" / embedding(folder).metadata_path).read_text().split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


def test_the_projector_shows_the_classifiers_inputs_of_the_test_part(first: Path) -> None:
    table = pd.read_csv(first / "evaluation/predictions.csv", float_precision="round_trip")
    np.testing.assert_allclose(margins(first, features(first)), table["margin"], atol=1e-4)


def test_beside_them_stand_names_that_are_no_table(first: Path) -> None:
    table = pd.read_csv(first / "evaluation/predictions.csv", float_precision="round_trip")
    head, *rows = metadata(first)
    assert head == ["source", "label", "probability", "verdict", "path"]
    assert [row[0] for row in rows] == table["source"].tolist()
    assert [row[1] for row in rows] == ["fake" if label else "real" for label in table["label"]]
    assert [float(row[2]) for row in rows] == pytest.approx(table["probability"].tolist(), abs=1e-4)
    assert any(r"tab\there\nand a line.png" in row[4] for row in rows)


def test_a_thumbnail_stands_at_its_images_place(first: Path, images: Path) -> None:
    found = embedding(first)
    _, *rows = metadata(first)
    side = math.ceil(math.sqrt(len(rows)))
    with Image.open(first / "tensorboard" / found.sprite.image_path) as sheet:
        assert sheet.size == (side * 64, side * 64)
        assert list(found.sprite.single_image_dim) == [64, 64]
        for number, row in enumerate(rows):
            left, top = 64 * (number % side), 64 * (number // side)
            tile = np.asarray(sheet.crop((left, top, left + 64, top + 64)), float)
            name = row[4].replace(r"\t", "\t").replace(r"\n", "\n")
            with Image.open(images / name) as original:
                expected = np.asarray(original.convert("RGB").resize((32, 32)).resize((64, 64)), float)
            assert np.corrcoef(tile.ravel(), expected.ravel())[0, 1] > 0.9, name


def test_of_many_images_some_of_each_source_are_shown_whatever_is_gone(
    first: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moved = Path(shutil.copytree(first, tmp_path / "run")), tmp_path / "faces"
    shutil.copytree(images, moved)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(images), str(moved)))
    margin = pd.read_csv(run / "evaluation/predictions.csv").set_index("path")["margin"]
    (moved / margin.index[1]).unlink()
    monkeypatch.setattr(evaluating, "_PROJECTED", 5)
    assert judged(evaluate, f"run={run}", "baselines=false", "batch_size=2") == evaluating.UNJUDGED
    _, *rows = metadata(run)
    assert [row[0] for row in rows] == [
        "0-camera",
        "0-phone",
        HOSTILE,
        "1-diffusion",
    ]  # 5 of 8, one beyond the 7 left
    names = [row[4].replace(r"\t", "\t").replace(r"\n", "\n") for row in rows]
    np.testing.assert_allclose(margins(run, features(run)), margin[names], atol=1e-4)


def test_other_embeddings_stay_and_one_of_the_name_is_replaced(tmp_path: Path) -> None:
    about = pd.DataFrame({"source": ["a", "b"]})
    for name, width in (("one", 3), ("two", 3), ("one", 4)):
        board.write_embedding(tmp_path, name, np.ones((2, width), np.float32), about, [None, None])
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    shapes = [(each.tensor_name, list(each.tensor_shape)) for each in config.embeddings]
    assert shapes == [("two", [2, 3]), ("one", [2, 4])]
    assert not any(each.sprite.image_path for each in config.embeddings)  # no image was at hand


def test_features_of_nothing_but_zeros_are_not_taken_for_text(tmp_path: Path) -> None:
    """TensorBoard reads numbers as bytes only where they are no text."""
    zeros = np.zeros((2, 3), np.float32)
    board.write_embedding(tmp_path, "one", zeros, pd.DataFrame({"source": ["a", "b"]}), [None, None])
    (file,) = tmp_path.glob("*.bytes")
    with pytest.raises(UnicodeDecodeError):
        file.read_text(encoding="utf-8")
    assert (np.fromfile(file, np.float32) == 0).all()


@pytest.mark.parametrize(
    "content", [b"no such field: 1", b"\xff\xfe", b'embeddings { tensor_name: "y" }' * 40_000], ids=len
)
def test_a_projector_file_that_cannot_be_read_gives_way(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "projector_config.pbtxt").write_bytes(content)
    board.write_embedding(tmp_path, "x", np.ones((1, 2), np.float32), pd.DataFrame({"source": ["a"]}), [None])
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [each.tensor_name for each in config.embeddings] == ["x"]


def test_a_name_may_be_too_long_for_a_file_and_hold_anything(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n" + b"x" * 240)
    for _ in range(2):
        with board.part(tmp_path, name) as writer:
            board.add_scalars(writer, {"x": 1.0, "nan": math.nan})
    assert [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("x")] == [1.0]


# ----------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def served(output: Path, browser: "Browser") -> Iterator[str]:
    """Address of a TensorBoard that has read all runs."""
    where = ("--logdir", str(output), "--host", "127.0.0.1", "--port", "0", "--reload_interval", "1")
    command = [sys.executable, "-m", "tensorboard.main", *where]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        waiting = threading.Event()
        for _ in range(300):
            with urllib.request.urlopen(f"{address}/data/plugins_listing") as answer:  # noqa: S310 - our own
                listed = json.load(answer)
            with urllib.request.urlopen(f"{address}/data/runs") as answer:  # noqa: S310
                found = json.load(answer)
            tabs = ("timeseries", "scalars", "images", "pr_curves", "hparams", "projector")
            if len(found) == 3 and all(listed[tab]["enabled"] for tab in tabs):
                break
            waiting.wait(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(served: str, browser: "Browser") -> "Iterator[Page]":
    """A page on which no request fails, none leaves this computer, and no name is taken for markup."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("requestfailed", lambda request: wrong.append(f"{request.url}: {request.failure}"))
    page.on("response", lambda answer: answer.status < 400 or wrong.append(f"{answer.url}: {answer.status}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (served, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(own) or wrong.append(request.url))
    yield page
    assert page.title() == "TensorBoard"
    page.close()
    assert wrong == []


RUN_NAMES = ("first-", "second-", "ensemble-mean-")


@pytest.mark.browser
def test_figures_of_all_runs_stand_side_by_side(page: "Page", served: str, first: Path) -> None:
    summary = json.loads((first / "summary.json").read_text())
    page.goto(f"{served}/?tagFilter=auroc#timeseries")
    for tag, names in (("final/test_auroc", RUN_NAMES[:2]), ("evaluation/auroc", ("first-", "ensemble-mean-"))):
        card = page.locator("scalar-card", has=page.locator(f"[title='{tag}']"))
        card.locator("line-chart canvas").first.wait_for()
        for name in names:
            card.locator("tb-data-table-content-row", has_text=name).wait_for()
    figure = f"{summary['test']['auroc']:.4g}"
    page.locator("tb-data-table-content-row", has_text="first-").filter(has_text=figure).first.wait_for()
    for name in RUN_NAMES:
        page.locator("runs-data-table", has_text=name).wait_for()


@pytest.mark.browser
def test_scalars_of_an_evaluation(page: "Page", served: str) -> None:
    page.goto(f"{served}/#scalars")
    page.locator("tf-scalar-card", has_text="evaluation/auroc").locator("svg").first.wait_for()
    for name in RUN_NAMES:
        page.locator("tf-runs-selector", has_text=name).wait_for()


@pytest.mark.browser
def test_pictures(page: "Page", served: str) -> None:
    page.goto(f"{served}/#images")
    page.locator("tf-image-loader", has_text="curves/accuracy").first.wait_for()
    image = page.locator("tf-image-loader img").first.element_handle(timeout=60_000)
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=image)


@pytest.mark.browser
def test_precision_recall_curves(page: "Page", served: str) -> None:
    page.goto(f"{served}/#pr_curves")
    page.locator("tf-pr-curve-card", has_text="pr/evaluation/1-diffusion").first.wait_for()
    page.locator("tf-pr-curve-card", has_text=f"pr/evaluation/{HOSTILE}").first.wait_for()
    line = page.locator("tf-pr-curve-card path.line").first.element_handle(timeout=60_000)
    page.wait_for_function("line => (line.getAttribute('d') || '').length > 20", arg=line)


@pytest.mark.browser
def test_a_row_of_hyper_parameters_for_each_run(page: "Page", served: str) -> None:
    page.goto(f"{served}/#hparams")
    table = page.locator("tf-hparams-table-view")
    for text in ("first-", "second-", "test_resnet", "unfreeze", "final/val_loss"):
        table.locator("vaadin-grid-cell-content", has_text=text).first.wait_for()
    assert table.locator("vaadin-grid-cell-content", has_text="test_resnet").count() == 2


@pytest.mark.browser
def test_the_projector_in_colours_of_the_sources(page: "Page", served: str, first: Path) -> None:
    page.goto(f"{served}/#projector")
    projector = page.frame_locator("iframe").frame_locator("iframe")
    projector.locator("span.numDataPoints", has_text=str(len(features(first)))).wait_for()
    colours = projector.locator("vz-projector-data-panel paper-dropdown-menu[label='Color by']")
    colours.click()
    colours.locator("paper-item", has_text="source").click()
    for source in ("0-camera", "0-phone", "1-diffusion", HOSTILE):
        projector.locator("vz-projector-legend", has_text=source).wait_for()
    assert projector.locator("canvas").count() >= 1
