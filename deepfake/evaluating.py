"""One evaluation from settings to a folder of figures: of a run, of an ensemble, or of several runs side by side.

Temperature, thresholds and an ensemble's weights come from validation parts alone: nothing here can be chosen on the
images that are judged, and images that a run was trained or calibrated on are never among them.
"""

import hashlib
import itertools
import json
import math
import reprlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from deepfake import runs
from deepfake.analysis.shortcuts import Shortcut, metadata_shortcuts, spectrum_shortcut
from deepfake.analysis.spectra import gray, power_spectrum, radial_profile
from deepfake.checkpoints import copy_checkpoint
from deepfake.config import EvaluateConfig, SyntheticConfig
from deepfake.console import log, logging_to_terminal, named, progress, terminal, visible
from deepfake.data.catalog import parents, read_catalogue, refuse_two_labels, safe_csv, write_catalogue
from deepfake.data.datamodule import normalise
from deepfake.data.groups import near_to
from deepfake.data.images import UnreadableImage, read_catalogued, read_image
from deepfake.data.prepared import Preparation, PreparedImages
from deepfake.dataset import cache_folder, catalogue
from deepfake.errors import UserError
from deepfake.evaluation import sources
from deepfake.evaluation.calibration import Calibration, calibrate
from deepfake.evaluation.differences import delong, mcnemar, paired_bootstrap
from deepfake.evaluation.metrics import INTERVALS, MEASURES, bootstrap_intervals, scores, wilson_interval
from deepfake.files import as_json, write_json, write_text
from deepfake.judging import MEMBERS, Detector, Judged, Member, combination
from deepfake.models.backbones import build_backbone
from deepfake.models.trunk import Inference
from deepfake.reporting import board
from deepfake.reporting import evaluation_figures as drawn
from deepfake.reporting.comparison import read_summary
from deepfake.reporting.figures import confusion_figure, save
from deepfake.reporting.record import predictions
from deepfake.reporting.run_page import write_run_page
from deepfake.untrusted import expect_file, read_json, read_yaml

UNJUDGED = 3  # exit status: done, with images that could not be judged
SEEN = "seen"  # status of an image that a run was trained or calibrated on
_IN_A_PART = "in the training or validation part of the run"
_NEAR_A_PART = "nearly the same picture as one in the training or validation part of the run"
_AT_THRESHOLD = ("accuracy", "balanced_accuracy", "precision", "recall", "f1")
_PARTS = {"val": "validation", "test": "test"}
_PROJECTED = 2000  # images at most in TensorBoard's projector, whose projections a browser computes

Interval = tuple[float, float]


@dataclass(frozen=True)
class Images:
    """What is to be judged.

    Attributes:
        table: a catalogue; status is "unreadable" or `SEEN` where an image is not to be judged, with the reason.
        root: what the paths are below.
        of: for titles.
        own: whether it is the run's own test part.
        max_megapixels: larger images are not decoded.
    """

    table: pd.DataFrame
    root: Path
    of: str
    own: bool
    max_megapixels: float

    @property
    def key(self) -> str:
        """For names of folders: two folders of one name in different places are not the same images."""
        return f"{self.of}-{hashlib.sha256(str(self.root.absolute()).encode()).hexdigest()[:6]}"


def evaluate(cfg: EvaluateConfig) -> int:
    """See `deepfake.evaluate.run`."""
    began = time.monotonic()
    given = [Path(run).expanduser() for run in (cfg.run if isinstance(cfg.run, list) else [cfg.run])]
    with logging_to_terminal():
        for folder in given:
            runs.expect_complete(folder)
        if cfg.ensemble is not None:
            given = [ensemble(cfg, given)]
        images = images_to_judge(cfg, given)
        return _compare(cfg, given, images) if len(given) > 1 else _report(cfg, given[0], images, began)


# -------------------------------------------------------------------------------------------------- what is judged


def images_to_judge(cfg: EvaluateConfig, folders: Sequence[Path]) -> Images:
    """The images to judge; those that any of the runs was trained or calibrated on are marked.

    Raises:
        UserError: no data, or no test part that the runs share.
    """
    manifests = [read_catalogue(folder / "manifest.parquet") for folder in folders]
    if isinstance(cfg.data, SyntheticConfig) or cfg.data.root is not None:
        return _other_images(cfg, manifests)
    tests = [manifest[manifest["split"] == "test"].reset_index(drop=True) for manifest in manifests]
    for folder, test in zip(folders, tests, strict=True):
        if sorted(test["sha256"]) != sorted(tests[0]["sha256"]):
            raise UserError(
                f"run={[str(folder) for folder in folders]}: expected runs of one test part, found another in "
                f"{folder.name}. Name images that none was trained on with data.root=FOLDER."
            )
    data = run_settings(folders[0])["data"]
    return Images(tests[0], Path(data["root"]), "test part", True, float(data["max_megapixels"]))


def _other_images(cfg: EvaluateConfig, manifests: Sequence[pd.DataFrame]) -> Images:
    found = catalogue(cfg.data, cfg.progress, split=False)
    table = found.table
    if (table["split"] == "test").any():  # as who made the split meant it; without a test part all are judged
        table = table[table["split"].isin(("test", ""))].reset_index(drop=True)
    refuse_two_labels(table)
    used = pd.concat([manifest[manifest["split"].isin(("train", "val"))] for manifest in manifests])
    there = table["status"] != "unreadable"
    same = there & table["sha256"].isin(used["sha256"])
    near = there & ~same & near_to(table["phash"], used["phash"])
    for which, what in ((same, _IN_A_PART), (near, _NEAR_A_PART)):
        if which.any():
            log.warning("%d of %d images are %s: not judged", which.sum(), len(table), what)
        table = table.assign(status=table["status"].mask(which, SEEN), reason=table["reason"].mask(which, what))
    return Images(table, found.root, found.root.absolute().name, False, cfg.data.max_megapixels)


def run_settings(folder: Path) -> dict[str, Any]:
    """What of a run's settings is used here: names and numbers, never objects."""
    expected: dict[str, dict[str, Any]] = {
        "data": {"root": str, "max_megapixels": (int, float)},
        "model": {"timm": str, "weights": str, "input_size": (int, NoneType)},
    }
    try:
        settings = read_yaml(folder / "config.yaml")
        for section, kinds in expected.items():
            for name, kind in kinds.items():
                value = settings[section][name]
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise ValueError(f"{section}.{name}={reprlib.repr(value)}")
        if not 0 < settings["data"]["max_megapixels"] < math.inf:
            raise ValueError(f"data.max_megapixels={settings['data']['max_megapixels']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'config.yaml'}: expected the settings of a run, found {error!r}.") from error
    return {section: {name: settings[section][name] for name in kinds} for section, kinds in expected.items()}


def judge_images(cfg: EvaluateConfig, detector: Detector, images: Images) -> pd.DataFrame:
    """One row an image: path, source, label, status, reason, margin, probability, verdict, uncertain.

    Raises:
        UserError: not one image could be judged.
    """
    table = images.table
    wanted = ~table["status"].isin(("unreadable", SEEN))
    coming = zip(table.loc[wanted, "path"], table.loc[wanted, "sha256"], strict=True)
    answers = []
    with progress("images", int(wanted.sum()), cfg.progress) as advance:
        for answer in detector.judge(coming, lambda image: catalogued_pixels(images, *image), cfg.batch_size):
            answers.append(answer)
            advance()
    answered = iter(answers)
    judged = [
        next(answered) if want else Judged(math.nan, status, reason)
        for want, status, reason in zip(wanted, table["status"], table["reason"], strict=True)
    ]
    found = table[["path", "source", "label"]].reset_index(drop=True)
    found = pd.concat([found, detector.table(judged, cfg.threshold)], axis=1)
    found["margin"] = [answer.margin for answer in judged]
    if not (found["status"] == "ok").any():
        why = f" ({found['path'].iloc[0]!r}: {found['reason'].iloc[0]})" if len(found) else ""
        raise UserError(
            f"{images.root}: expected images that can be judged, found none among {len(found)}{why}. Name others "
            f"with data.root=FOLDER."
        )
    return found


def catalogued_pixels(images: Images, path: str, sha256: str) -> NDArray[np.uint8]:
    return read_catalogued(images.root / path, sha256, images.max_megapixels)


# ------------------------------------------------------------------------------------------------- one run's report


def _report(cfg: EvaluateConfig, folder: Path, images: Images, began: float) -> int:
    output = output_folder(cfg.output, "evaluation", folder, images, cfg.tta)
    runs.expect_writable(output, "output")
    detector = Detector.load(folder, cfg.engine, cfg.tta)
    settings = run_settings(folder) if cfg.baselines else {}
    dashboard = board.dashboard(folder)
    # One network and one view: of others there is no one input of the head.
    projected = dashboard is not None and images.own and cfg.tta == "none" and len(detector.members) == 1
    shown = _evenly(len(images.table), _PROJECTED if projected else 0)
    with _head_inputs(detector.members[0].module.backbone.network, shown) as features:
        table = judge_images(cfg, detector, images)
    there = (table["status"] == "ok").to_numpy()
    judged = table[there].reset_index(drop=True)
    facts = _facts(judged, detector.calibration, cfg.threshold)
    pairs = parents(images.table[there]) if cfg.pairs is None else cfg.pairs
    by_source = _by_source(judged, facts["threshold"]["value"], pairs)
    how = detector.members[0].preparation
    beside = _baselines(cfg, folder, settings, how, images, images.table[there], facts) if cfg.baselines else []
    not_judged = table.loc[~there, "status"].value_counts().to_dict()
    content = {
        "run": folder.name,
        "data": {"root": str(images.root.absolute()), "what": images.of, "images": len(table)},
        "not_judged": not_judged,
        "tta": cfg.tta,
        **facts,
        "sources": sources.summary(by_source),
        "baselines": beside,
        "seconds": round(time.monotonic() - began, 1),
        "command": shlex.join(["python", "-m", "deepfake.evaluate", *sys.argv[1:]]),
    }
    caption = _caption(facts, folder.name)
    try:
        write_text(output / "predictions.csv", safe_csv(table))
        told = {name: facts[name] for name in ("n", "prevalence", "majority")}
        at = {"threshold": facts["threshold"]["value"], "threshold_from": f"validation of {folder.name}"}
        write_text(output / "sources.csv", safe_csv(by_source.assign(**told, **at)))
        pictures = _figures(cfg, output / "figures", f"{images.of}, {folder.name}", detector, judged, facts, images)
        write_json(output / "evaluation.json", as_json(content))
        if cfg.output is None:
            write_run_page(folder)
    except OSError as error:
        raise runs.unwritable(output, error.strerror, "output") from error
    if dashboard is not None:
        try:
            _to_tensorboard(dashboard, output.name, facts, judged, pictures)
            if projected:
                _to_projector(cfg, dashboard, output.name, detector.members[0], table, images, shown, features)
        except OSError as error:
            raise runs.unwritable(dashboard, error.strerror, "run") from error
    _print(facts, by_source, beside, caption, f"{images.of}, {folder.name}")
    if not_judged:
        log.warning("not judged: %s", ", ".join(f"{count} {status}" for status, count in not_judged.items()))
    log.info("%s", output)
    return UNJUDGED if set(not_judged) - {SEEN} else 0


def output_folder(asked: str | None, what: str, folder: Path, images: Images, tta: str = "none") -> Path:
    """Where the answers go: as asked, or into the run's own folder.

    Raises:
        UserError: there a link stands in for it, which whoever made the run may have laid to anywhere.
    """
    if asked is not None:
        return Path(asked).expanduser()
    parts = [what, *([] if images.own else [images.key]), *([] if tta == "none" else [tta])]
    output = folder / "-".join(parts)
    for place in (output, output / "figures", output / "parts"):
        if place.is_symlink():
            raise UserError(
                f"output: expected a folder in the run, found a link {place}. Name one with output=FOLDER."
            )
    return output


def _facts(judged: pd.DataFrame, calibration: Calibration, threshold: str) -> dict[str, Any]:
    """Every figure of the images that were judged, with 95 % intervals, at each stored threshold and without one."""
    labels, p, margins = (judged[column].to_numpy() for column in ("label", "probability", "margin"))
    at = {}
    for name, stored in calibration.thresholds.items():
        found = scores(labels, p, stored.value)
        at[name] = {
            "value": stored.value,
            "from": "validation of the run" if name != "half" else "fixed",
            "warning": stored.warning,
            **{measure: found[measure] for measure in (*_AT_THRESHOLD, "tn", "fp", "fn", "tp")},
            "fpr": _share(found["fp"], found["fp"] + found["tn"]),
            "tpr": _share(found["tp"], found["tp"] + found["fn"]),
            "intervals": bootstrap_intervals(labels, p, stored.value, _AT_THRESHOLD)
            | {"fpr": wilson_interval(found["fp"], found["fp"] + found["tn"])},
        }
    overall = scores(labels, p, margins=margins)
    free = [measure for measure in MEASURES if measure not in _AT_THRESHOLD]
    doubtful = judged["uncertain"].to_numpy(dtype=bool)
    right = (judged["verdict"] == "fake").to_numpy() == (labels == 1)
    before = expit(margins)
    return {
        "n": len(judged),
        "prevalence": overall["prevalence"],
        "majority": overall["majority"],
        "threshold": {"name": threshold, "value": at[threshold]["value"], "from": at[threshold]["from"]},
        **{measure: overall[measure] for measure in free},
        "intervals": bootstrap_intervals(labels, p, metrics=free, margins=margins),
        "thresholds": at,
        "temperature": calibration.temperature,
        "before_temperature": {name: scores(labels, before)[name] for name in ("nll", "brier", "ece")},
        "uncertain": {
            "band": list(calibration.band),
            "share": float(doubtful.mean()),
            "accuracy_of_the_others": _share(right[~doubtful].sum(), (~doubtful).sum()),
        },
        "warnings": calibration.warnings,
    }


def _by_source(judged: pd.DataFrame, threshold: float, pairs: Mapping[str, str]) -> pd.DataFrame:
    try:
        return sources.by_source(judged, threshold, pairs)
    except ValueError as error:
        raise UserError(f"pairs={dict(pairs)} is refused: {error}.") from error


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _figures(
    cfg: EvaluateConfig,
    folder: Path,
    of: str,
    detector: Detector,
    judged: pd.DataFrame,
    facts: Mapping[str, Any],
    images: Images,
) -> dict[str, bytes]:
    """Draw and write them; the files returned by name."""
    labels, p = judged["label"].to_numpy(), judged["probability"].to_numpy()
    curves = {"all images": (labels, p)}
    reals, fakes = judged[judged["label"] == 0], judged[judged["label"] == 1]
    if len(reals):
        for source, rows in fakes.groupby("source"):
            together = pd.concat([reals, rows])
            curves[str(source)] = together["label"].to_numpy(), together["probability"].to_numpy()
    at = facts["thresholds"]
    points = {("half (fixed)" if name == "half" else name): (e["fpr"], e["tpr"]) for name, e in at.items()}
    stored = {name: entry["value"] for name, entry in at.items()}
    chosen = at[cfg.threshold]
    counts = np.array([[chosen["tn"], chosen["fp"]], [chosen["fn"], chosen["tp"]]], dtype=np.int64)
    figures = {
        "roc": drawn.roc_figure(curves, of, points),
        "precision_recall": drawn.precision_recall_figure(curves, of, points),
        "det": drawn.det_figure(curves, of, points),
        "reliability": drawn.reliability_figure(labels, expit(judged["margin"].to_numpy()), p, of),
        "scores": drawn.score_histograms(judged, of, stored, detector.calibration.band),
        "confusion": confusion_figure(counts, f"{len(judged):,} images, P(fake) > {chosen['value']:.3f}"),
    }
    pictures = {name: save(figure, folder / f"{name}.png") for name, figure in figures.items()}
    return pictures | {"mistakes": save(_mistakes(cfg.mistakes, of, judged, images), folder / "mistakes.jpg")}


def _mistakes(most: int, of: str, judged: pd.DataFrame, images: Images) -> Any:
    """The sheet of those mistakes whose P(fake) is furthest from the truth."""
    wrong = judged[(judged["verdict"] == "fake") != (judged["label"] == 1)]
    # By the margin where the probabilities are rounded to the same 0 or 1.
    towards_truth = wrong["margin"].where(wrong["label"] == 1, -wrong["margin"])
    worst = wrong.loc[towards_truth.sort_values(kind="stable").index[:most]]
    pixels, captions = [], []
    for row in worst.to_dict("records"):
        try:
            pixels.append(read_image(images.root / row["path"], images.max_megapixels)[0])
        except UnreadableImage:
            continue  # gone since it was judged a moment ago
        truth = "real" if row["label"] == 0 else "fake"
        captions.append((row["source"], f"P(fake) {row['probability']:.3f}, is {truth}", Path(row["path"]).name))
    title = (
        f"The {len(pixels)} most confident of {len(wrong):,} mistakes on {len(judged):,} images, "
        f"{100 * judged['label'].mean():.1f} % fake; {of}"
    )
    return drawn.mistakes_sheet(pixels, captions, title)


# --------------------------------------------------------------------------------------------------- on the dashboard


def _to_tensorboard(
    dashboard: Path, name: str, facts: Mapping[str, Any], judged: pd.DataFrame, pictures: Mapping[str, bytes]
) -> None:
    figures = {measure: facts[measure] for measure in MEASURES if measure not in _AT_THRESHOLD}
    at = facts["thresholds"][facts["threshold"]["name"]]
    figures |= {measure: at[measure] for measure in _AT_THRESHOLD}
    with board.part(dashboard, name) as writer:
        board.add_scalars(writer, {f"{visible(name)}/{measure}": value for measure, value in figures.items()})
        board.add_pr_curves(writer, visible(name), judged, by_source=True)
        for picture, encoded in pictures.items():
            board.add_picture(writer, f"{visible(name)}/{picture}", encoded)


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    """Evenly spaced numbers below `count`, at most so many: of rows in order of sources, some of each."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


@contextmanager
def _head_inputs(network: nn.Module, numbers: NDArray[np.int64]) -> Iterator[list[NDArray[np.float32]]]:
    """Takes down what a network's classifier is given while it judges.

    Args:
        network: of timm.
        numbers: ascending, of which images, counted from the first that it is shown.

    Yields:
        A list that grows by float32 (features,) of each of them.
    """
    kept: list[NDArray[np.float32]] = []
    seen = 0

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        batch = given[0].flatten(1)
        of_batch = numbers[(seen <= numbers) & (numbers < seen + len(batch))] - seen
        kept.extend(batch[torch.from_numpy(of_batch)].float().cpu().numpy())
        seen += len(batch)

    hook = network.get_classifier().register_forward_pre_hook(keep)  # type: ignore[operator]
    try:
        yield kept
    finally:
        hook.remove()


def _to_projector(
    cfg: EvaluateConfig,
    dashboard: Path,
    name: str,
    member: Member,
    table: pd.DataFrame,
    images: Images,
    numbers: NDArray[np.int64],
    features: Sequence[NDArray[np.float32]],
) -> None:
    """What the classifier was given of the images `numbers`, with what was said of each and a thumbnail."""
    judged = table.assign(sha256=images.table["sha256"].to_numpy())
    judged = judged[judged["status"].isin(("ok", "no number"))]  # what the network was shown
    judged = judged.iloc[numbers[numbers < len(judged)]]
    finite = np.isfinite(features).all(axis=1) & (judged["status"] == "ok").to_numpy()
    if not finite.any():
        return
    judged = judged[finite]
    prepared = PreparedImages(
        member.module.backbone.input_spec, cache_folder(cfg.data), images.max_megapixels, member.preparation
    )

    def thumbnail(path: str, sha256: str) -> NDArray[np.uint8] | None:
        try:
            pixels = prepared.read(images.root / path, sha256)
        except UnreadableImage:  # gone since it was judged a moment ago
            return None
        return cv2.resize(pixels, (board.THUMBNAIL, board.THUMBNAIL), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

    with ThreadPoolExecutor() as pool:
        thumbnails = list(pool.map(thumbnail, judged["path"], judged["sha256"]))
    about = judged[["source", "label", "probability", "verdict", "path"]].assign(
        label=judged["label"].map({0: "real", 1: "fake"}), probability=judged["probability"].map("{:.4f}".format)
    )
    board.write_embedding(dashboard, name, np.stack(features)[finite], about, thumbnails)


# ------------------------------------------------------------------------------------------------------- baselines


def _baselines(
    cfg: EvaluateConfig,
    folder: Path,
    settings: Mapping[str, Any],
    how: Preparation,
    images: Images,
    judged: pd.DataFrame,
    facts: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What shallower judges reach on the same images, then the run: name, balanced accuracy and AUROC with intervals.

    Each learns on the run's own training part, with its classes weighted alike, and calls an image fake above .5.
    """
    if not {0, 1} <= set(judged["label"]):
        log.warning("baselines  not told: the images are of one class")
        return []
    manifest = read_catalogue(folder / "manifest.parquet")
    train = manifest[manifest["split"] == "train"]
    together = pd.concat([train.assign(split="train"), judged.assign(split="test")], ignore_index=True)
    roots = [Path(settings["data"]["root"])] * len(train) + [images.root] * len(judged)
    at = facts["thresholds"][facts["threshold"]["name"]]
    (metadata,) = (found for found in metadata_shortcuts(together) if found.name == "all metadata")
    rows = [
        {"name": "majority class", "balanced_accuracy": 0.5, "auroc": 0.5, "accuracy": facts["majority"]},
        _of_shortcut("metadata tree", metadata),
    ]
    try:
        profiles, features, kept = _looked_at(cfg, settings, how, together, roots, images)
    except UserError as error:  # the original weights or the training images are not at hand
        log.warning("baselines  spectrum and frozen features are not told: %s", error)
    else:
        parts, labels = together.loc[kept, "split"].to_numpy(), together.loc[kept, "label"].to_numpy()
        rows.append(_of_shortcut("spectrum, logistic", spectrum_shortcut(profiles, labels, parts)))
        rows.append(_of_features(features, labels, parts))
    run = {"name": "this run", "balanced_accuracy": at["balanced_accuracy"], "auroc": facts["auroc"]}
    run["intervals"] = {
        "accuracy": at["intervals"]["accuracy"],
        "balanced_accuracy": at["intervals"]["balanced_accuracy"],
        "auroc": facts["intervals"]["auroc"],
    }
    return [*rows, run | {"accuracy": at["accuracy"], "test_images": facts["n"]}]


def _of_shortcut(name: str, found: Shortcut) -> dict[str, Any]:
    return {
        "name": name,
        "balanced_accuracy": found.balanced_accuracy,
        "auroc": found.auroc,
        "intervals": {"balanced_accuracy": found.interval, "auroc": found.auroc_interval},
        "train_images": found.train_images,
        "test_images": found.test_images,
        "rule": found.rule,
    }


def _of_features(features: NDArray[np.float32], labels: NDArray, parts: NDArray) -> dict[str, Any]:
    train, test = parts == "train", parts == "test"
    # The strength of the penalty is scikit-learn's own, C = 1, and never chosen.
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    p = model.fit(features[train], labels[train]).predict_proba(features[test])[:, 1]
    measured = ("balanced_accuracy", "auroc", "accuracy")
    return {
        "name": "frozen features, logistic",
        **{measure: scores(labels[test], p)[measure] for measure in measured},
        "intervals": bootstrap_intervals(labels[test], p, metrics=measured),
        "train_images": int(train.sum()),
        "test_images": int(test.sum()),
    }


def _looked_at(
    cfg: EvaluateConfig,
    settings: Mapping[str, Any],
    how: Preparation,
    table: pd.DataFrame,
    roots: Sequence[Path],
    images: Images,
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
    """Spectra, features of the original weights, and which rows of the table could be read.

    Raises:
        UserError: the weights are not at hand, or not one training image of a class is.
    """
    model = settings["model"]
    backbone = build_backbone(model["timm"], model["weights"], model["input_size"]).eval()
    spec, network = backbone.input_spec, Inference(backbone, 0, cfg.engine, "float32", torch.device("cpu"))
    prepared = PreparedImages(spec, cache_folder(cfg.data), images.max_megapixels, how)

    def look(row: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
        try:
            pixels = prepared.read(roots[row] / table["path"].iloc[row], table["sha256"].iloc[row])
        except UnreadableImage:
            return None
        return pixels, radial_profile(power_spectrum(gray(pixels)))

    profiles, features, kept = [], [], []
    with progress("baselines", len(table), cfg.progress) as advance, ThreadPoolExecutor() as pool:
        for start in range(0, len(table), cfg.batch_size):
            batch = range(start, min(start + cfg.batch_size, len(table)))
            there = [(row, found) for row, found in zip(batch, pool.map(look, batch), strict=True) if found]
            if there:
                pixels = torch.from_numpy(np.stack([found[0] for _, found in there])).permute(0, 3, 1, 2)
                with torch.inference_mode():
                    pooled = network(normalise(pixels, spec))
                    features.append(backbone.network.forward_head(pooled, pre_logits=True).numpy())  # type: ignore[operator]
                profiles += [found[1] for _, found in there]
                kept += [row for row, _ in there]
            for _ in batch:
                advance()
    rows = table.iloc[kept]
    if len(rows[["split", "label"]].drop_duplicates()) < 4:
        raise UserError("expected training images of both classes, found none of one: they are no longer there.")
    if len(kept) < len(table):
        log.warning("baselines  %d images can no longer be read and are left out of them", len(table) - len(kept))
    return np.stack(profiles), np.concatenate(features), np.array(kept)


# ------------------------------------------------------------------------------------------------- on the terminal


def _caption(facts: Mapping[str, Any], run: str) -> str:
    at = facts["threshold"]
    origin = "fixed" if at["from"] == "fixed" else f"chosen on the validation part of {run}"
    return (
        f"{facts['n']:,} images, {100 * facts['prevalence']:.1f} % fake, majority-class baseline "
        f"{facts['majority']:.3f}; threshold {at['name']}, P(fake) > {at['value']:.3f}, {origin}; temperature "
        f"{facts['temperature']:.2f}, fitted on validation; [ ]: 95 % intervals over the images."
    )


def _print(
    facts: Mapping[str, Any],
    by_source: pd.DataFrame,
    beside: Sequence[Mapping[str, Any]],
    caption: str,
    of: str,
) -> None:
    console = terminal()
    console.print(_overall_table(facts, caption, of))
    console.print(_threshold_table(facts, caption))
    console.print(_source_table(by_source, caption))
    if beside:
        console.print(_baseline_table(beside, caption))


def _overall_table(facts: Mapping[str, Any], caption: str, of: str) -> Table:
    table = _table(f"Without a threshold: {of}", ("measure", "value [95 %]"), caption)
    for measure, interval in facts["intervals"].items():
        table.add_row(measure, _figure(facts[measure], interval))
    before = facts["before_temperature"]
    table.add_row("ece before temperature", _figure(before["ece"]))
    return table


def _threshold_table(facts: Mapping[str, Any], caption: str) -> Table:
    heads = ("threshold", "P(fake) >", "from", "accuracy", "balanced", "precision", "recall", "FPR")
    table = _table("At each stored threshold", heads, caption)
    for name, at in facts["thresholds"].items():
        shown = ("accuracy", "balanced_accuracy", "precision", "recall", "fpr")
        figures = [_figure(at[measure], at["intervals"][measure], between="\n") for measure in shown]
        origin = "fixed" if at["from"] == "fixed" else "validation"
        table.add_row(name, f"{at['value']:.3f}", origin, *figures)
    return table


def _source_table(by_source: pd.DataFrame, caption: str) -> Table:
    table = _table("By source", ("source", "against", "images", "AUROC", "AP", "FNR", "FPR"), caption)
    for row in by_source.to_dict("records"):
        against = "" if row["label"] == 0 else ("all reals" if pd.isna(row["parent"]) else str(row["parent"]))
        figures = [_figure(row[m], (row[f"{m}_low"], row[f"{m}_high"])) for m in ("auroc", "ap", "fnr", "fpr")]
        # Names of sources come from folders: a plain string would be read as markup.
        table.add_row(named(row["source"]), named(against), f"{row['images']:,}", *figures)
    told = sources.summary(by_source)
    table.add_section()
    mean = [
        Text("") if name is None else _figure(told[name]) for name in ("auroc_mean", None, "fnr_mean", "fpr_mean")
    ]
    table.add_row("mean of the sources", "all of the other", "", *mean)
    worst = (("auroc", "min"), None, ("fnr", "max"), ("fpr", "max"))
    table.add_row("worst", "", "", *(Text("") if each is None else _worst(told, *each) for each in worst))
    return table


def _worst(told: Mapping[str, Any], measure: str, which: str) -> Text:
    source = told[f"{measure}_{which}_source"]
    return _figure(told[f"{measure}_{which}"]) + named(f" {source}" if source else "")


def _baseline_table(beside: Sequence[Mapping[str, Any]], caption: str) -> Table:
    heads = ("judge", "accuracy", "balanced accuracy", "AUROC")
    table = _table("Beside baselines, which call an image fake above .5", heads, caption)
    for row in beside:
        intervals = row.get("intervals", {})
        figures = [
            _figure(row.get(m, math.nan), intervals.get(m)) for m in ("accuracy", "balanced_accuracy", "auroc")
        ]
        table.add_row(str(row["name"]), *figures)
    return table


def _table(title: str, heads: Sequence[str], caption: str) -> Table:
    table = Table(
        title=named(title), title_justify="left", box=box.SIMPLE_HEAD, caption=named(caption), caption_justify="left"
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    return table


def _figure(value: float, interval: Interval | None = None, between: str = " ") -> Text:
    """0.913 [0.884, 0.938]; a dash where it is undefined."""
    if not math.isfinite(value):
        return Text("\N{EN DASH}")
    known = interval is not None and all(map(math.isfinite, interval))
    return Text(f"{value:.3f}" + (f"{between}[{interval[0]:.3f}, {interval[1]:.3f}]" if known and interval else ""))


def _p_value(p: float) -> Text:
    return Text("< 0.001") if p < 0.001 else _figure(p)


# ------------------------------------------------------------------------------------------------ several runs as one


def ensemble(cfg: EvaluateConfig, members: Sequence[Path]) -> Path:
    """The folder of the ensemble of some runs, made where it is not there yet.

    Weights and calibration are fitted on the members' validation predictions alone; every figure in its summary comes
    from their stored predictions.

    Raises:
        UserError: a member is no run, or the members' parts differ; the folder cannot be written.
    """
    for member in members:
        if (member / runs.ENSEMBLE).exists():
            raise UserError(f"run={member}: expected a run as a member, found an ensemble. Name its members instead.")
    if len(members) > MEMBERS:
        raise UserError(f"run: expected at most {MEMBERS} members of an ensemble, found {len(members)}.")
    try:
        for member in members:
            expect_file(member / runs.BEST)
        digests = [hashlib.sha256((member / runs.BEST).read_bytes()).hexdigest() for member in members]
    except OSError as error:
        raise UserError(
            f"run: expected a checkpoint in each member, found that {error.filename} cannot be read "
            f"({error.strerror}). Train that run again with force=true."
        ) from error
    how = str(cfg.ensemble)
    key = hashlib.sha256(json.dumps([how, sorted(digests)]).encode()).hexdigest()[:8]
    folder = Path(cfg.output_dir).expanduser() / f"ensemble-{how}-{key}"
    if runs.is_complete(folder):
        log.info("%s is complete", folder)
        return folder
    runs.expect_writable(folder.parent)
    parts = {part: _shared_part(members, part) for part in _PARTS}
    calibrations = [_calibration(member) for member in members]
    validation, margins = parts["val"]
    try:
        weights = _stacked(validation["label"].to_numpy(), margins, calibrations) if how == "stacked" else []
        combine = combination(how, calibrations, weights)
        calibration = calibrate(validation["label"].to_numpy(), combine(margins))
    except ValueError as error:
        raise UserError(f"run: expected validation images that an ensemble can be fitted on: {error}.") from error
    summary = _ensemble_summary(folder, members, how)
    runs.begin(folder)
    names = [f"{number}-{member.name}.ckpt" for number, member in enumerate(members)]
    try:
        (folder / "members").mkdir()
        for member, name in zip(members, names, strict=True):
            copy_checkpoint(member / runs.BEST, folder / "members" / name)
        shutil.copyfile(members[0] / "config.yaml", folder / "config.yaml")
        write_catalogue(_together([read_catalogue(member / "manifest.parquet") for member in members]),
                        folder / "manifest.csv")  # fmt: skip
        told = {"members": names, "sha256": digests, "combine": how, "weights": weights}
        write_json(folder / runs.ENSEMBLE, told | {"calibration": calibration.as_dict()})
        verdicts = {}
        for part, (rows, each) in parts.items():
            table = predictions(rows, np.arange(len(rows)), combine(each), calibration)
            write_text(folder / f"{part}_predictions.csv", safe_csv(table))
            verdicts[part] = _verdict(table)
        summary |= verdicts | {"calibration": calibration.as_dict()}
        write_json(folder / runs.SUMMARY, as_json(summary))
        runs.note(folder, "complete")
    except OSError as error:
        runs.note(folder, "failed", str(error))
        raise runs.unwritable(folder, error.strerror) from error
    log.info("ensemble   %s of %d runs in %s", how, len(members), folder)
    return folder


def _together(manifests: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The first member's manifest and what others were trained on beside it: none of that may ever be judged."""
    first, *others = manifests
    known = set(first.loc[first["split"] != "", "sha256"])
    more = [other[(other["split"] == "train") & ~other["sha256"].isin(known)] for other in others]
    return pd.concat([first, *more]).drop_duplicates(["path", "sha256", "split"], ignore_index=True)


def _shared_part(members: Sequence[Path], part: str) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """The images of a part that all members share, in the first one's order, and their margins (members, N).

    Raises:
        UserError: they do not.
    """
    tables = [_predicted(member, part) for member in members]
    identity = [table.sort_values(["sha256", "label"])[["sha256", "label"]].to_numpy().tolist() for table in tables]
    for member, found in zip(members[1:], identity[1:], strict=True):
        if found != identity[0]:
            raise UserError(
                f"run={member}: expected the {_PARTS[part]} images of {members[0].name}, found others "
                f"({len(found)} beside {len(identity[0])}): runs of one ensemble share the split. Train them on the "
                f"same data with the same data.split_seed."
            )
    # Equal files have equal margins, so that it does not matter which of them is which.
    first = tables[0].sort_values(["sha256", "label"], kind="stable")
    margins = np.stack([table.sort_values(["sha256", "label"], kind="stable")["margin"] for table in tables])
    order = np.argsort(first.index.to_numpy())
    return tables[0], margins[:, order]


def _predicted(member: Path, part: str) -> pd.DataFrame:
    """A part of a run's manifest with the stored margins."""
    manifest = read_catalogue(member / "manifest.parquet")
    rows = manifest[manifest["split"] == part].reset_index(drop=True)
    file = member / f"{part}_predictions.csv"
    try:
        expect_file(file)
        stored = pd.read_csv(file, dtype={"path": str}, keep_default_na=False, float_precision="round_trip")
        # A CSV has an apostrophe before what a spreadsheet would take for a formula.
        names = [table["path"].str.removeprefix("'").tolist() for table in (stored, rows)]
        if names[0] != names[1]:
            raise ValueError(f"{len(stored)} rows that are not those of its manifest ({len(rows)})")
        margins = stored["margin"].to_numpy(np.float64)
        if not np.isfinite(margins).all():
            raise ValueError("margins that are no finite numbers")
        return rows.assign(margin=margins)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: expected the run's predictions, found {error}") from error


def _calibration(member: Path) -> Calibration:
    try:
        return Calibration.from_dict(read_json(member / runs.SUMMARY)["calibration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{member / runs.SUMMARY}: expected a calibrated run, found {error}. Train it whole."
        ) from error


def _stacked(labels: NDArray, margins: NDArray[np.float64], calibrations: Sequence[Calibration]) -> list[float]:
    """Bias, and one weight a member, of a logistic regression on the calibrated logits."""
    logits = margins.T / np.array([calibration.temperature for calibration in calibrations])
    fitted = LogisticRegression(max_iter=1000).fit(logits, labels)
    return [float(fitted.intercept_[0]), *map(float, fitted.coef_[0])]


def _verdict(table: pd.DataFrame) -> dict[str, Any]:
    """As a training run's summary holds it; the loss is that of the margins as they are."""
    labels, p, margins = (table[column].to_numpy() for column in ("label", "probability", "margin"))
    loss = float(np.logaddexp(0, np.where(labels == 1, -table["margin"], table["margin"])).mean())
    intervals = bootstrap_intervals(labels, p, metrics=INTERVALS, margins=margins)
    return {"loss": loss, **scores(labels, p, margins=margins), "n": len(table), "intervals": intervals}


def _ensemble_summary(folder: Path, members: Sequence[Path], how: str) -> dict[str, Any]:
    """What `deepfake.recap` shows of it. Epochs and a training part it has none.

    Raises:
        UserError: a member's summary cannot be used.
    """
    told = [read_summary(member / runs.SUMMARY) for member in members]

    def each(key: str) -> str:
        return "+".join(dict.fromkeys(str(summary[key]) for summary in told))

    return {
        "run": folder.name,
        "model": f"{how} of {each('model')}",
        "members": [member.name for member in members],
        "unfreeze": each("unfreeze"),
        "scheduler": each("scheduler"),
        "seed": each("seed"),
        "trained_weights": sum(summary["trained_weights"] for summary in told),
        "total_weights": sum(count for summary in told if type(count := summary.get("total_weights")) is int),
        "epochs_run": None,
        "best_epoch": None,
        "seconds": sum(summary["seconds"] or 0 for summary in told),
        "monitor": told[0]["monitor"],
        "preparation": told[0].get("preparation"),
        "train": {},
    }


# ------------------------------------------------------------------------------------------- several runs compared


def _compare(cfg: EvaluateConfig, folders: Sequence[Path], images: Images) -> int:
    key = hashlib.sha256("\n".join(str(folder.absolute()) for folder in folders).encode()).hexdigest()[:8]
    name = f"comparison-{key}" if images.own else f"comparison-{key}-{images.key}"
    output = Path(cfg.output).expanduser() if cfg.output else Path(cfg.output_dir).expanduser() / name
    runs.expect_writable(output, "output")
    detectors = [Detector.load(folder, cfg.engine, cfg.tta) for folder in folders]
    tables = [judge_images(cfg, detector, images) for detector in detectors]
    # What one of them could not judge, none is judged on.
    there = np.logical_and.reduce([table["status"] == "ok" for table in tables])
    if not there.any():
        raise UserError(f"{images.root}: expected images that every run can judge, found none.")
    labels = tables[0].loc[there, "label"].to_numpy()
    p, margins = ([table.loc[there, column].to_numpy() for table in tables] for column in ("probability", "margin"))
    cuts = [detector.calibration.thresholds[cfg.threshold].value for detector in detectors]
    each = [scores(labels, *judged) for judged in zip(p, cuts, margins, strict=True)]
    content = {
        "data": {"root": str(images.root.absolute()), "what": images.of, "images": len(there)},
        "n": int(there.sum()),
        "prevalence": each[0]["prevalence"],
        "majority": each[0]["majority"],
        "threshold": cfg.threshold,
        "runs": [
            {
                "run": folder.name,
                "threshold": cut,
                **{measure: found[measure] for measure in MEASURES},
                "intervals": bootstrap_intervals(labels, judged, cut, margins=margin),
            }
            for folder, judged, cut, margin, found in zip(folders, p, cuts, margins, each, strict=True)
        ],
        "pairs": [
            {
                "a": folders[a].name,
                "b": folders[b].name,
                **_difference(labels, (p[a], p[b]), (cuts[a], cuts[b]), (margins[a], margins[b])),
            }
            for a, b in itertools.combinations(range(len(folders)), 2)
        ],
    }
    try:
        write_json(output / "comparison.json", as_json(content))
    except OSError as error:
        raise runs.unwritable(output, error.strerror, "output") from error
    _print_comparison(content)
    log.info("%s", output / "comparison.json")
    return UNJUDGED if any(set(table["status"]) - {"ok", SEEN} for table in tables) else 0


def _difference(
    labels: NDArray, p: tuple[NDArray, NDArray], cuts: tuple[float, float], margins: tuple[NDArray, NDArray]
) -> dict[str, Any]:
    """Paired, of a minus b; DeLong's test is left out where a class has fewer than two images."""
    said = [judged > cut for judged, cut in zip(p, cuts, strict=True)]
    two_of_each = min(np.bincount(labels, minlength=2)) >= 2
    return {
        "bootstrap": paired_bootstrap(labels, *p, thresholds=cuts, margins=margins),
        "delong": delong(labels, *margins)._asdict() if two_of_each else None,
        "mcnemar": mcnemar(labels, *said)._asdict(),
    }


def _print_comparison(content: Mapping[str, Any]) -> None:
    caption = (
        f"{content['n']:,} images, {100 * content['prevalence']:.1f} % fake, majority-class baseline "
        f"{content['majority']:.3f}; threshold {content['threshold']} of each run, from its own validation; "
        f"[ ]: 95 % intervals over the images, of the differences paired. The p-values are not corrected for the "
        f"number of pairs, and tell nothing of other training seeds."
    )
    console = terminal()
    table = _table("Runs on the same images", ("run", "P(fake) >", "accuracy", "F1", "AUROC", "AP"), caption)
    for row in content["runs"]:
        figures = [_figure(row[measure], row["intervals"][measure]) for measure in ("accuracy", "f1", "auroc", "ap")]
        table.add_row(named(row["run"]), f"{row['threshold']:.3f}", *figures)
    console.print(table)
    heads = ("a - b", "accuracy", "McNemar p", "AUROC", "DeLong p")
    table = _table("Differences", heads, caption)
    for pair in content["pairs"]:
        accuracy, auroc = (pair["bootstrap"][measure] for measure in ("accuracy", "auroc"))
        test = pair["delong"]
        table.add_row(
            named(f"{pair['a']} - {pair['b']}"),
            _figure(accuracy[0], accuracy[1:]),
            _p_value(pair["mcnemar"]["p_value"]),
            _figure(auroc[0], auroc[1:]),
            _p_value(test["p_value"] if test else math.nan),
        )
    console.print(table)
