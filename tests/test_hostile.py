"""Folders full of broken and odd files: every command gives each file one row with a reason, and goes on."""

import csv
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from deepfake import audit as audit_command
from deepfake import evaluate, predict, recap, robustness, runs
from deepfake import train as train_command
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


# Names of sources that would be a formula, an order to the terminal, or markup of a page, a report or a figure.
SOURCES = (
    "real/=1+1|' C'!A0", "real/<img src=x onerror=alert(1)>", "real/@sum\n2030-01-01 ERROR forged",
    "fake/\x1b]0;owned\x07\x1b[2J[bold]x[-] :smile:", "fake/$\\frac{$ `a` |b| [c](javascript:d)",
    "fake/+1\t\u202egnp",
)  # fmt: skip


class Tags(HTMLParser):
    """What a page holds besides text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts, self.handlers = 0, 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.handlers += any(name.startswith("on") for name, _ in attrs)


def command(main: Callable[[], None], *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deepfake", *arguments])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def test_names_of_sources_are_text_in_every_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = [["path", "label", "source", "group"]]
    for source in SOURCES:
        (tmp_path / "faces" / source).mkdir(parents=True)
        kind, name = source.split("/")
        for number in range(8):
            blocks = random.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(blocks).save(tmp_path / "faces" / source / f"=1+{number}.png")
            rows.append([f"{source}/=1+{number}.png", kind, name, f"{name}{number}"])
    with (tmp_path / "faces/list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    data, judging = ("data.root=faces", "data.manifest=list.csv"), ("engine=eager", "progress=false")
    command(audit_command.main, *data, "size=32", "progress=false", "output=audit")
    assert command(train_command.main, *data, *TINY) == 0
    (run,) = (status.parent for status in Path("outputs").glob("*/status.json"))
    assert command(evaluate.main, f"run={run}", *judging) == 0
    assert command(robustness.main, f"run={run}", "perturbations=flip", *judging) == 0
    assert command(predict.main, f"run={run}", "input=faces", "output=answers/p.csv", *judging) == 0
    assert command(recap.main, "runs=outputs") == 0
    told = "".join(capfd.readouterr())
    assert r"\x1b]0;owned" in told
    assert "[bold]x" in told
    assert all(text.isprintable() for text in told.split("\n"))
    assert not re.search(r"^\s*2030-", told, re.MULTILINE)
    assert not re.search(r"^2030-", (run / "train.log").read_text(), re.MULTILINE)
    page = Tags(Path("audit/audit.html").read_text())
    assert (page.scripts, page.handlers) == (1, 0)  # its own
    tables = [*run.rglob("*.csv"), *Path("audit").glob("*.csv"), *Path("answers").glob("*.csv")]
    names = {file.name for file in tables}
    assert {"manifest.csv", "catalogue.csv", "predictions.csv", "sources.csv", "p.csv"} <= names
    for file in tables:
        with file.open(newline="", encoding="utf-8") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=+@\t\r]|-(?![\d.])", cell)], file
    assert len(list((run / "evaluation/figures").glob("*.png"))) > 5
