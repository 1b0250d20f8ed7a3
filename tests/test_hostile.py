"""Folders full of broken and odd files: every command gives each file one row with a reason, and goes on."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from deepfake import audit as audit_command
from deepfake import runs
from deepfake.config import conf_dir, parse_audit, parse_train
from deepfake.data.catalog import read_catalogue
from deepfake.data.layouts import neutral_path
from deepfake.train import run as train
from tests.data.hostile import make_hostile

TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=8",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "trainer.progress=false", "logger=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder, and the status that each path below it must get."""
    root = tmp_path_factory.mktemp("hostile")
    expected = {}
    for seed, source in enumerate(("0-real", "1-fake")):
        for name, status in make_hostile(root / source, seed).items():
            expected[neutral_path(f"{source}/{name}")] = status
    return root, expected


def one_row_a_file(table: pd.DataFrame, expected: dict[str, str]) -> None:
    assert table["path"].is_unique
    assert dict(zip(table["path"], table["status"], strict=True)) == expected
    assert (table["reason"] != "")[table["status"] != "ok"].all()
    assert (table.loc[table["status"] == "unreadable", "split"] == "").all()


def test_audit(hostile: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, expected = hostile
    overrides = [f"data.root={root}", "size=32", "progress=false", f"output={tmp_path}", f"output_dir={tmp_path}/o"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        audit_command.run(parse_audit(compose("audit", overrides=overrides)))
    one_row_a_file(read_catalogue(tmp_path / "catalogue.csv"), expected)
    one_row_a_file(read_catalogue(tmp_path / "catalogue.parquet"), expected)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert {file["path"]: file["status"] for file in found["files"]} == {
        path: status for path, status in expected.items() if status != "ok"
    }
    assert all(file["reason"] for file in found["files"])
    page = (tmp_path / "audit.html").read_text()
    assert "<b>&amp;.png" not in page
    HTMLParser().feed(page)


def test_train(hostile: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, expected = hostile
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = parse_train(compose("train", overrides=[*TINY, f"data.root={root}", f"output_dir={tmp_path}"]))
    train(cfg)
    folder = runs.run_folder(cfg)
    assert runs.is_complete(folder)
    manifest = read_catalogue(folder / "manifest.csv")
    one_row_a_file(manifest, expected)
    judged = [pd.read_csv(folder / f"{part}_predictions.csv") for part in ("val", "test")]
    asked = manifest.loc[manifest["split"].isin(("val", "test")), "path"]
    assert sorted(pd.concat(judged)["path"]) == sorted(asked)
