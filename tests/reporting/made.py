"""A run's folder as its commands leave it, made without a network; the page's tests change what they ask about."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from scipy.special import expit

from deepfake.data.catalog import COLUMNS, safe_csv, write_catalogue
from deepfake.evaluation.calibration import calibrate
from deepfake.evaluation.metrics import bootstrap_intervals, scores
from deepfake.evaluation.sources import by_source

SOURCES = ("0-camera", "0-phone", "1-diffusion", "1-gan")


def predicted(images: int, seed: int, sources: tuple[str, ...] = SOURCES) -> pd.DataFrame:
    """Answers of a network that is right more often than not, `images` of each source."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        [(f"{source}/{number:02}.png", source, int(source[0])) for source in sources for number in range(images)],
        columns=["path", "source", "label"],
    )
    table["margin"] = random.normal(2 * table["label"] - 1, 1.5).round(6)
    table["probability"] = expit(table["margin"])
    table["prediction"] = (table["probability"] > 0.5).astype(int)
    return table


def verdict(table: pd.DataFrame) -> dict[str, Any]:
    """Of predictions what summary.json holds."""
    labels, p = table["label"].to_numpy(), table["probability"].to_numpy()
    intervals = {name: list(ends) for name, ends in bootstrap_intervals(labels, p, resamples=100).items()}
    return {"loss": 0.4, **scores(labels, p), "n": len(table), "intervals": intervals}


def make_run(folder: Path, root: Path, sources: tuple[str, ...] = SOURCES) -> Path:
    """What `train` leaves, in `folder`, and the images of the test part below `root`."""
    folder.mkdir(parents=True)
    validation, test = predicted(20, 0, sources), predicted(12, 1, sources)
    random = np.random.default_rng(2)
    rows = []
    for row in test.to_dict("records"):
        file = root / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(file)
        content = file.read_bytes()
        rows.append(
            {"path": row["path"], "label": row["label"], "source": row["source"], "group": "", "split": "test",
             "parent": "", "sha256": hashlib.sha256(content).hexdigest(), "phash": "", "width": 32, "height": 24,
             "mode": "RGB", "format": "PNG", "bytes": len(content), "jpeg_quality": -1, "jpeg_luma": -1.0,
             "status": "ok", "reason": ""}
        )  # fmt: skip
    write_catalogue(pd.DataFrame(rows)[list(COLUMNS)], folder / "manifest.csv")
    (folder / "test_predictions.csv").write_text(safe_csv(test))
    (folder / "val_predictions.csv").write_text(safe_csv(validation))
    calibration = calibrate(validation["label"].to_numpy(), validation["margin"].to_numpy())
    write(
        folder / "summary.json",
        {
            "run": folder.name, "model": "resnet18", "architecture": "resnet18", "weights": "imagenet",
            "unfreeze": 1, "scheduler": "none", "seed": 0, "trained": ["layer4", "head"],
            "frozen": ["stem", "layer1", "layer2", "layer3"], "trained_weights": 1234, "total_weights": 56789,
            "epochs_run": 3, "best_epoch": 1, "train": {"loss": 0.3, "accuracy": 0.9}, "monitor": "val/loss",
            "best_value": 0.4, "preparation": {"mode": "resize", "equalise": None, "margin": 0.3, "size": 224},
            "trunk": {"engine": "openvino", "precision": "float32", "views": 4}, "seconds": 61.2,
            "val": verdict(validation), "test": verdict(test), "calibration": calibration.as_dict(),
        },
    )  # fmt: skip
    write(folder / "status.json", {"status": "complete", "message": ""})
    write(
        folder / "environment.json",
        {
            "command": ["train.py", f"data.root={root}", "epochs=3"], "python": "3.11.7", "platform": "Linux",
            "processor": "x86_64", "cores": 2, "threads": 2, "gpus": [], "packages": {"torch": "2.10", "timm": "1.0"},
        },
    )  # fmt: skip
    write(
        folder / "audit.json",
        {
            "verdict": "doubtful", "sentence": "The file format alone tells real from fake",
            "findings": [
                {"key": "shortcut.format", "level": "warning", "sentence": "the file format alone tells"},
                {"key": "duplicates.near.parts", "level": "warning", "sentence": "2 pairs lie across parts"},
            ],
            "duplicates": {"exact_total": 3, "near_total": 14},
            "shortcuts": {
                "metadata": [
                    {"name": "all metadata", "balanced_accuracy": 0.71, "interval": [0.66, 0.75], "auroc": 0.74,
                     "auroc_interval": [0.7, 0.79], "rule": "width <= 212 -> real"}
                ],
                "spectrum": None,
            },
        },
    )  # fmt: skip
    settings = {"data": {"root": str(root), "manifest": None, "max_megapixels": 64.0}, "seed": 0, "lr": 1e-4}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    epochs = {"epoch": range(3), "lr": 1e-4}
    curves = {f"{p}/{m}": [0.6, 0.5, 0.55] for p in ("train", "val") for m in ("loss", "accuracy", "auroc")}
    pd.DataFrame(epochs | curves).to_csv(folder / "metrics.csv", index=False)
    pd.DataFrame({"epoch": range(3), "seconds": [4.0, 2.0, 3.0]}).to_csv(folder / "seconds.csv", index=False)
    return folder


def add_evaluation(run: Path, threshold: float = 0.4) -> None:
    """What `evaluate` leaves there, at another threshold than .5."""
    test = pd.read_csv(run / "test_predictions.csv")
    table = by_source(test, threshold, {"1-gan": "0-phone"} if "1-gan" in set(test["source"]) else {}, resamples=50)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "sources.csv").write_text(safe_csv(table.assign(threshold=threshold)))
    judges = [
        {"name": name, "balanced_accuracy": 0.5 + 0.1 * place, "auroc": 0.55 + 0.1 * place,
         "intervals": {"balanced_accuracy": [0.5, 0.9], "auroc": [0.5, 0.95]}}
        for place, name in enumerate(("majority class", "metadata tree", "frozen features, logistic", "this run"))
    ]  # fmt: skip
    write(run / "evaluation" / "evaluation.json", {"baselines": judges})


def add_robustness(run: Path) -> None:
    """What `robustness` leaves there."""

    def row(kind: str, strength: float | None, change: float) -> dict[str, Any]:
        figures = {
            f"{name}{end}": 0.8 + change + shift
            for name in ("auroc", "accuracy", "tpr", "fpr")
            for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.05))
        }
        changes = {
            f"{name}_change{end}": change + shift
            for name in ("auroc",)
            for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.05))
        }
        told = {"kind": kind, "strength": strength, "images": 48, "prevalence": 0.5, "majority": 0.5}
        return told | figures | (changes if kind != "clean" else dict.fromkeys(changes))

    share = {"images": 24, "flips": 2, "share": 0.083, "share_low": 0.02, "share_high": 0.26}
    write(
        run / "robustness" / "robustness.json",
        {
            "rows": [row("clean", None, 0), row("jpeg", 30, -0.2), row("flip", 1, 0.01)],
            "threshold": {"name": "half", "value": 0.5, "from": "fixed"},
            "recompression": {"perturbation": "jpeg 95", "fakes only": share, "reals only": share, "both": share,
                              "biased": False, "certain": False},
        },
    )  # fmt: skip


def add_explanation(run: Path, sheet: tuple[int, int] = (300, 200)) -> None:
    """What `explain` leaves there."""
    figures = run / "explanation" / "figures"
    figures.mkdir(parents=True)
    kinds = ("true_fake", "false_fake", "true_real", "false_real")
    random = np.random.default_rng(0)
    for kind in kinds:
        noise = random.integers(0, 256, (sheet[1], sheet[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(figures / f"{kind}.png")
    filtered = {"auroc": [0.5, 0.7, None], "interval": [[0.4, 0.6], [0.6, 0.8], [None, None]]}
    write(
        run / "explanation" / "explanation.json",
        {
            "run": run.name, "part": "test part", "images": 48, "method": "grad-cam", "layer": "layer4",
            "command": "explain", "seconds": 3.0,
            "deletion": {"fractions": [0.0, 0.5, 1.0], "hot": [0.9, 0.4, 0.3], "random": [0.9, 0.7, 0.3],
                         "auc_hot": 0.5, "auc_random": 0.65, "difference": 0.15, "interval": [0.1, 0.2],
                         "common": [0.9, 0.5, 0.3], "auc_common": 0.55, "difference_common": 0.05,
                         "interval_common": [0.02, 0.08], "by_verdict": {"real": {"sentence": "Not shown: too few"}},
                         "images": 48, "hidden_as": "blurred", "faithful": True, "sentence": "Faithful: it is so"},
            "frequencies": {"cutoffs": [0.01, 0.1, 0.4], "low_pass": filtered, "high_pass": filtered,
                            "images": 48, "prevalence": 0.5, "sentence": "Most lies in the middle"},
            "sheets": {kind: {"file": f"figures/{kind}.png", "shown": 4, "of": 20} for kind in kinds},
        },
    )  # fmt: skip


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def change(file: Path, *keys: str | int, value: Any) -> None:
    """Put a value into a JSON file, at a place below the top."""
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content))
