"""From summary.json files to the table, and from the table to what people and programs read."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from deepfake.errors import UserError
from deepfake.evaluation.differences import delong
from deepfake.reporting import comparison
from deepfake.reporting.comparison import comparison_table, load_runs, to_markdown, to_rich, write_comparison

MEASURES = ("accuracy", "precision", "recall", "f1", "auroc", "ap")


def part(loss: float, n: int, value: float) -> dict[str, Any]:
    measured = {name: value + k / 100 for k, name in enumerate(MEASURES)}
    intervals = {name: [figure - 0.03, figure + 0.02] for name, figure in measured.items()}
    return {"loss": loss, **measured, "n": n, "prevalence": 0.5, "majority": 0.5, "intervals": intervals}


def summary(run: str = "efficientnet-u2-plateau-s0-1a2b3c4d", loss: float = 0.31, **changes: Any) -> dict[str, Any]:
    train = {"loss": 0.25, **dict.fromkeys(MEASURES, 0.94)}
    return {
        "run": run,
        "model": "efficientnet",
        "weights": "imagenet",
        "unfreeze": 2,
        "scheduler": "plateau",
        "seed": 0,
        "trained_weights": 1131954,
        "total_weights": 4010110,
        "epochs_run": 12,
        "best_epoch": 8,
        "seconds": 431.2,
        "monitor": "val/loss",
        "train": train,
        "val": part(loss, 400, 0.9),
        "test": part(loss, 350, 0.8),
        **changes,
    }


def written(folder: Path, content: Any = None) -> Path:
    folder.mkdir(parents=True)
    text = content if isinstance(content, str) else json.dumps(content or summary(folder.name))
    (folder / "summary.json").write_text(text)
    return folder


def names(summaries: list[dict[str, Any]]) -> list[str]:
    return [found["run"] for found in summaries]


def test_load_a_run_and_a_tree_of_runs(tmp_path: Path) -> None:
    written(tmp_path / "sweep" / "b")
    written(tmp_path / "sweep" / "deeper" / "still" / "a")
    (tmp_path / "sweep" / "unfinished").mkdir()
    single = written(tmp_path / "single")
    assert names(load_runs([single, tmp_path / "sweep"])) == ["single", "b", "a"]


def test_load_passes_over_hidden_folders_and_what_lies_inside_a_run(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    written(tmp_path / ".replaced" / "old")
    written(run / ".cache" / "other")
    written(run / "figures" / "nested")
    assert names(load_runs([tmp_path])) == ["run"]
    # Named outright, a hidden folder is what the user wants.
    assert names(load_runs([tmp_path / ".replaced"])) == ["old"]


def test_load_takes_each_run_once(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    assert names(load_runs([tmp_path, run, run / ".." / "run"])) == ["run"]


def test_load_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected completed runs.*found none.*Train first") as error:
        load_runs([tmp_path])
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="found no folder"):
        load_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="found none"):
        load_runs([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected the summary of a run"),
        ("[1]", "found none of run, model"),
        ({"run": "x"}, "found none of model"),
        (summary(val=None), "val as a table"),
    ],
)
def test_load_refuses_a_damaged_summary(tmp_path: Path, content: Any, message: str) -> None:
    written(tmp_path / "damaged", content)
    with pytest.raises(UserError, match=message) as error:
        load_runs([tmp_path])
    assert str(tmp_path / "damaged" / "summary.json") in str(error.value)


def test_table_columns_and_values() -> None:
    table = comparison_table([summary()])
    assert list(table.columns) == [
        "run", "model", "unfreeze", "scheduler", "seed", "trained_weights", "epochs", "best_epoch", "monitor",
        "train_loss", "train_accuracy", "val_loss",
        "val_accuracy", "val_accuracy_low", "val_accuracy_high",
        "val_precision", "val_precision_low", "val_precision_high",
        "val_recall", "val_recall_low", "val_recall_high",
        "val_f1", "val_f1_low", "val_f1_high",
        "val_auroc", "val_auroc_low", "val_auroc_high",
        "test_accuracy", "test_accuracy_low", "test_accuracy_high",
        "test_auroc", "test_auroc_low", "test_auroc_high",
        "n_val", "val_prevalence", "val_majority", "n_test", "test_prevalence", "test_majority", "seconds",
        "against_best", "p_accuracy", "p_auroc",
    ]  # fmt: skip
    row = table.iloc[0]
    assert (row["unfreeze"], row["epochs"], row["best_epoch"]) == ("2", 12, 8)
    assert row["train_loss"] == 0.25
    assert row["val_auroc"] == pytest.approx(0.94)
    assert (row["val_auroc_low"], row["val_auroc_high"]) == pytest.approx((0.91, 0.96))
    assert row["test_accuracy"] == 0.8
    assert (row["n_val"], row["n_test"], row["seconds"]) == (400, 350, 431.2)


def judged(folder: Path, name: str, loss: float, p: list[float], prefix: str = "") -> dict[str, Any]:
    """A run in a folder, with P(fake) of as many real as fake validation images."""
    run = written(folder / name, summary(name, loss))
    labels = [0] * (len(p) // 2) + [1] * (len(p) // 2)
    rows = [
        f"{prefix}{i}.png,x,{label},0,{q},{int(q > 0.5)}" for i, (label, q) in enumerate(zip(labels, p, strict=True))
    ]
    (run / "val_predictions.csv").write_text("\n".join(["path,source,label,margin,probability,prediction", *rows]))
    (found,) = load_runs([run])
    return found


def test_differences_from_the_best_run_that_are_noise_are_marked(tmp_path: Path) -> None:
    good = [0.1] * 20 + [0.9] * 20
    one_other = [0.2] * 19 + [0.8] + [0.9] * 20  # one image of 40: McNemar's p is 1
    poor = [0.1] * 10 + [0.9] * 20 + [0.1] * 10  # 20 of 40 the wrong way round: 2 * .5^20
    runs = [
        judged(tmp_path, "worst", 0.4, poor),
        judged(tmp_path, "best", 0.1, good),
        judged(tmp_path, "alike", 0.2, one_other),
        judged(tmp_path, "elsewhere", 0.3, good, prefix="other"),
        summary("nowhere", 0.5),
    ]
    table = comparison_table(runs).set_index("run")
    assert table["against_best"].to_dict() == {
        "best": "best", "alike": "not told apart", "elsewhere": "", "worst": "told apart", "nowhere": "",
    }  # fmt: skip
    assert table.loc["alike", "p_accuracy"] == 1
    assert table.loc["worst", "p_accuracy"] == pytest.approx(2 * 0.5**20)
    labels = np.repeat([0, 1], 20)
    assert table.loc["alike", "p_auroc"] == delong(labels, np.array(one_other), np.array(good)).p_value
    assert table.loc[["best", "elsewhere", "nowhere"], ["p_accuracy", "p_auroc"]].isna().all(axis=None)
    text = to_markdown(comparison_table(runs))
    assert "| not told apart | 1.000 |" in text
    assert "(McNemar)" in text


def test_predictions_that_cannot_be_read_are_compared_with_nothing(tmp_path: Path) -> None:
    runs = [judged(tmp_path, name, 0.1, [0.1, 0.9]) for name in ("a", "b")]
    (tmp_path / "b" / "val_predictions.csv").write_text("path,label\na,1\n")
    assert comparison_table(runs)["against_best"].tolist() == ["best", ""]


def test_an_ensemble_has_no_epochs() -> None:
    table = comparison_table([summary("a"), summary("ensemble", 0.9, epochs_run=None, best_epoch=None, train={})])
    assert "12 (8)" in to_markdown(table)
    assert cells(to_markdown(table).splitlines()[3])[2] == "\N{EN DASH}"


def test_table_order_is_validation_loss_then_name() -> None:
    runs = [summary("c", 0.4), summary("b", 0.3), summary("a", 0.4), summary("d", math.nan)]
    assert comparison_table(runs)["run"].tolist() == ["b", "a", "c", "d"]
    assert comparison_table(runs[::-1])["run"].tolist() == ["b", "a", "c", "d"]


def test_table_with_undefined_and_missing_figures() -> None:
    val = part(0.3, 10, 0.9)
    val["auroc"], val["intervals"]["auroc"] = None, [None, None]
    row = comparison_table([summary(val=val, test=None, unfreeze="all")]).iloc[0]
    assert row[["val_auroc", "val_auroc_low", "test_accuracy", "n_test"]].isna().all()
    assert row["val_accuracy"] == 0.9
    assert row["unfreeze"] == "all"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown() -> None:
    lines = to_markdown(comparison_table([summary("a", 0.3), summary("b", 0.4)])).splitlines()
    head, rule, first, second = lines[:4]
    assert len(cells(head)) == len(cells(rule)) == len(cells(first)) == len(cells(second)) == 17
    row = dict(zip(cells(head), cells(first), strict=True))
    assert row == {
        "run": "a",
        "trained weights": "1,131,954",
        "epochs (best)": "12 (8)",
        "train loss": "0.250",
        "train acc": "0.940",
        "val loss": "0.300",
        "val acc [95 %]": "0.900 [0.870, 0.920]",
        "precision": "0.910",
        "recall": "0.920",
        "F1 [95 %]": "0.930 [0.900, 0.950]",
        "AUROC [95 %]": "0.940 [0.910, 0.960]",
        "test acc": "0.800",
        "test AUROC": "0.840",
        "s": "431",
        "against the best": "best",
        "p acc": "\N{EN DASH}",
        "p AUROC": "\N{EN DASH}",
    }
    assert lines[4] == ""
    notes = "\n".join(lines[5:])
    assert "Validation: 400 images, 50.0 % fake, majority-class baseline 0.500." in notes
    assert "Test: 350 images" in notes
    for needed in ("best epoch by val/loss", "threshold 0.5", "95 % stratified bootstrap interval"):
        assert needed in notes
    assert "compare with care" not in notes


def test_markdown_warns_where_images_or_monitors_differ() -> None:
    other = summary("b", monitor="val/auroc", val=part(0.3, 300, 0.9))
    text = to_markdown(comparison_table([summary("a"), other]))
    assert "300 images, 50.0 % fake, majority-class baseline 0.500; or 400 images" in text
    assert text.count("compare with care") == 1
    assert "val/auroc or val/loss" in text


def test_markdown_escapes_run_names() -> None:
    text = to_markdown(comparison_table([summary("a|b\nc\\|<i>`*x")]))
    line = text.splitlines()[2]
    assert line.startswith(r"| a\|b c\\\|\<i>\`\*x | 1,131,954 |")


def test_undefined_figures_are_dashes() -> None:
    val = part(0.3, 10, 0.9)
    val["auroc"], val["intervals"]["auroc"] = None, [None, None]
    text = to_markdown(comparison_table([summary(val=val, test=None)]))
    assert cells(text.splitlines()[2])[10:13] == ["\N{EN DASH}"] * 3
    assert "nan" not in text
    assert "Test: not told." in text


@pytest.mark.parametrize("width", [100, 120])
def test_terminal_table_fits(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    awkward = summary("[red]markup[/red]-\x1b[2J-" + "long" * 20, 0.5)
    console.print(to_rich(comparison_table([summary(), awkward])))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for needed in (
        "1.13 M",
        "12 (8)",
        "0.310",
        "0.900",
        "[0.870, 0.920]",
        "[0.910, 0.960]",
        "0.800",
        "431",
        "[red]",
    ):
        assert needed in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "\x1b[2J" not in text
    # The usual run name takes no more than two lines.
    assert text.index("1a2b3c4d") < text.index("[red]")
    first = next(i for i, line in enumerate(text.splitlines()) if "efficientnet" in line)
    assert "1a2b3c4d" in "".join(text.splitlines()[first : first + 2])


def test_write_comparison(tmp_path: Path) -> None:
    runs = [summary("a", 0.3), summary("b", 0.2)]
    files = write_comparison(runs, tmp_path / "new")
    assert files == {kind: tmp_path / "new" / f"comparison.{kind}" for kind in ("csv", "md", "png")}
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(files.values())
    back = pd.read_csv(files["csv"], dtype={"unfreeze": str}).fillna({"against_best": ""})
    pd.testing.assert_frame_equal(back, comparison_table(runs), check_dtype=False)
    assert files["md"].read_text() == to_markdown(comparison_table(runs))
    with Image.open(files["png"]) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_csv_holds_no_formulas(tmp_path: Path, start: str) -> None:
    danger = f'{start}HYPERLINK("x")'
    val = part(-0.5, 400, 0.9)
    files = write_comparison([summary(danger, model=danger, val=val)], tmp_path)
    (row,) = csv.DictReader(files["csv"].read_text().splitlines())
    assert row["run"] == row["model"] == "'" + danger
    assert row["val_loss"] == "-0.5"  # a number is a number


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one completed run"):
        write_comparison([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_needs_no_torch() -> None:
    code = f"import sys, {comparison.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
