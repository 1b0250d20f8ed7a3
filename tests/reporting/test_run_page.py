"""The page of a run: what it says of a folder, and that there is one whatever lies in the folder."""

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from deepfake.evaluation.calibration import Calibration
from deepfake.evaluation.sources import by_source
from deepfake.reporting import run_page
from deepfake.reporting.run_page import setting, write_run_page
from tests.reporting.made import add_evaluation, add_explanation, add_robustness, change, make_run, write
from tests.reporting.test_audit_page import MEGABYTE, Page

HOSTILE = "<img src=x onerror=\"alert(1)\">\n'&amp;' \N{RIGHT-TO-LEFT OVERRIDE}gnp"
SHOWN = "<img src=x onerror=\"alert(1)\">\\n'&amp;' \\u202egnp"
SECTIONS = ("trust", "failures", "certainty", "looks", "training", "use")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "faces"


@pytest.fixture
def run(tmp_path: Path, root: Path) -> Path:
    return make_run(tmp_path / "runs" / "resnet18-u1-none-s0-1a2b3c4d", root)


@pytest.fixture
def full(run: Path) -> Path:
    add_evaluation(run)
    add_robustness(run)
    add_explanation(run)
    return run


def page(run: Path) -> Page:
    return Page(write_run_page(run))


# ------------------------------------------------------------------------------------------------------- what it says


def test_the_answer_is_one_sentence_with_interval_prevalence_and_baseline(run: Path) -> None:
    test = pd.read_csv(run / "test_predictions.csv")
    right = 100 * (test["prediction"] == test["label"]).mean()
    low, high = (100 * end for end in json.loads((run / "summary.json").read_text())["test"]["intervals"]["accuracy"])
    answer = page(run).text("answer")
    assert (
        f"On 48 test images, 50.0 % fake, it is right in {right:.1f} % [{low:.1f}, {high:.1f}]; always saying fake "
        f"would be right in 50.0 %." in answer
    )
    assert re.search(r"AUROC 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", answer)


def test_the_answer_says_what_puts_it_in_doubt(run: Path) -> None:
    assert "Better than always saying fake, and the data may give the answer away" in page(run).text("answer")
    assert "The file format alone tells real from fake." in page(run).text("answer")
    change(run / "audit.json", "verdict", value="clean")
    change(run / "summary.json", "test", "intervals", "accuracy", value=[0.49, 0.6])
    assert "Not shown to be better than always saying fake On 48" in page(run).text("answer")


def test_a_test_part_of_one_class_has_no_auroc_and_still_a_page(tmp_path: Path, root: Path) -> None:
    run = make_run(tmp_path / "run", root)
    test = pd.read_csv(run / "test_predictions.csv")
    test[test["label"] == 1].to_csv(run / "test_predictions.csv", index=False)
    change(run / "summary.json", "test", "auroc", value=None)
    change(run / "summary.json", "test", "intervals", "auroc", value=[None, None])
    told = page(run)
    assert "AUROC \N{EN DASH} ." in told.text("answer")
    assert "1-gan" in told.text("failures")


def test_trust_tells_the_audit_its_leaks_and_the_metadata_tree_beside_the_run(run: Path) -> None:
    trust = page(run).text("trust")
    assert "The data: doubtful. The file format alone tells real from fake." in trust
    assert "Copies of images lie where none may" in trust
    assert "metadata tree width <= 212 -> real 0.710 [0.660, 0.750]" in trust
    assert "this run 0." in trust
    assert "The spectrum and the frozen features as baselines are not measured yet." in trust


def test_a_group_in_two_parts_is_a_leak(run: Path) -> None:
    finding = {"key": "leaks.groups", "level": "warning", "sentence": "2 groups lie in two parts"}
    change(run / "audit.json", "findings", value=[finding])
    assert "No leak was found" not in page(run).text("trust")
    change(run / "audit.json", "findings", value=[finding | {"key": "balance.few"}])
    assert "No leak was found" in page(run).text("trust")


def test_trust_tells_the_baselines_of_an_evaluation(full: Path) -> None:
    trust = page(full).text("trust")
    assert re.search(r"metadata tree 0\.600 \[0\.500, 0\.900\] .*frozen features, logistic .*this run 0\.800", trust)
    assert "not measured yet" not in trust


def test_sources_are_those_of_the_own_predictions_until_evaluate_was_run(run: Path) -> None:
    expected = by_source(pd.read_csv(run / "test_predictions.csv"), 0.5).set_index("source")
    told = page(run).text("failures")
    for source, wrong in (("0-phone", "fpr"), ("1-gan", "fnr")):
        row = expected.loc[source]
        assert re.search(rf"{source} (real|fake) 12 {row[wrong]:.3f} \[{row[f'{wrong}_low']:.3f}, ", told)
    assert f"{expected.loc['1-gan', 'auroc']:.3f} [" in told
    assert "called fake where P(fake) is above 0.500" in told
    assert "evaluate run=" in told
    add_evaluation(run)
    told = page(run).text("failures")
    assert "called fake where P(fake) is above 0.400" in told
    assert "48 test images, called fake" in told  # a row against a parent counts no image twice
    assert "1-gan against 0-phone alone fake 12" in told
    assert "evaluate run=" not in told


def test_the_most_confident_mistakes_are_shown_each_kind_apart(run: Path) -> None:
    test = pd.read_csv(run / "test_predictions.csv")
    wrong = test[test["prediction"] != test["label"]]
    for label, kind in ((0, "real called fake"), (1, "fake called real")):
        rows = wrong[wrong["label"] == label].sort_values("margin", ascending=label == 1)
        paths = rows["path"].head(run_page.MISTAKES).tolist()
        told = page(run).text("failures").split(f"{kind}: {len(rows)} of 48 test images")[1]
        assert re.findall(r"\d-\w+/\d+\.png", told)[: len(paths)] == paths


def pictures(told: Page) -> list[Image.Image]:
    sources = told.sources_of_images("failures")
    return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]


def test_only_the_images_that_were_judged_are_shown(run: Path, root: Path) -> None:
    before = pictures(page(run))
    assert len(before) >= 4
    assert {image.size for image in before} == {(32, 24)}
    test = pd.read_csv(run / "test_predictions.csv")
    worst = test[test["prediction"] != test["label"]].query("label == 0").sort_values("margin")["path"].iloc[-1]
    Image.new("RGB", (32, 24)).save(root / worst)
    told = page(run)
    assert len(pictures(told)) == len(before) - 1
    assert "no longer at hand" in told.text("failures")


def test_no_path_leads_to_a_picture_outside_of_the_data(run: Path, root: Path) -> None:
    """Not even where the manifest has its hash: a page is sent to others."""
    test = pd.read_csv(run / "test_predictions.csv")
    manifest = pd.read_parquet(run / "manifest.parquet")
    wrong = test["prediction"] != test["label"]
    (root / "secret").mkdir()
    for number, path in enumerate(test.loc[wrong, "path"]):
        other = f"../faces/{path}" if number % 2 else str(root / path)
        test.loc[test["path"] == path, "path"] = other
        manifest.loc[manifest["path"] == path, "path"] = other
    test.to_csv(run / "test_predictions.csv", index=False)
    manifest.to_parquet(run / "manifest.parquet")
    assert pictures(page(run)) == []


def test_without_the_data_names_alone_are_told(run: Path) -> None:
    (run / "manifest.parquet").unlink()
    told = page(run)
    assert "Names only: manifest.parquet is not there." in told.text("failures")
    assert pictures(told) == []


def test_thresholds_tell_what_they_do_on_the_test_part(run: Path) -> None:
    calibration = Calibration.from_dict(json.loads((run / "summary.json").read_text())["calibration"])
    test = pd.read_csv(run / "test_predictions.csv")
    told = page(run).text("certainty")
    for name, threshold in calibration.thresholds.items():
        said = test["probability"] > threshold.value
        fpr, tpr = said[test["label"] == 0].mean(), said[test["label"] == 1].mean()
        found = rf"{name} .*?{threshold.value:.3f} {threshold.fpr:.3f} {fpr:.3f} \[.*?\] {tpr:.3f} \["
        assert re.search(found, told), name
    low, high = calibration.band
    inside = test["probability"].between(low, high) | test["probability"].between(*sorted((low, 0.5)))
    assert f"from {low:.3f} to {high:.3f} are marked uncertain" in told
    assert f"{100 * inside.mean():.1f} %" in told


@pytest.mark.parametrize(("band", "low", "high"), [([0.6, 0.7], 0.5, 0.7), ([0.3, 0.4], 0.3, 0.5)])
def test_the_band_that_is_told_is_the_one_that_is_counted(
    band: list[float], low: float, high: float, run: Path
) -> None:
    """What lies between it and the threshold is uncertain too."""
    change(run / "summary.json", "calibration", "band", value=band)
    test = pd.read_csv(run / "test_predictions.csv")
    share = 100 * test["probability"].between(low, high).mean()
    assert f"from {low:.3f} to {high:.3f} are marked uncertain: {share:.1f} %" in page(run).text("certainty")


def test_reliability_bars_are_shares_of_fakes(run: Path) -> None:
    test = pd.read_csv(run / "test_predictions.csv")
    top = test[test["probability"] >= 14 / 15]
    assert f"0.93 to 1.00: {len(top)} images, {100 * top['label'].mean():.1f} % fake" in page(run).text("certainty")


def test_a_run_that_could_not_be_calibrated_says_so(run: Path) -> None:
    change(run / "summary.json", "calibration", value=None)
    assert "The run is not calibrated" in page(run).text("certainty")


def test_what_it_looks_at_is_shown_with_sheets_curves_and_perturbations(full: Path) -> None:
    told = page(full)
    looks = told.text("looks")
    assert "Faithful: it is so. Of those called real: Not shown: too few. Heat maps by grad-cam at layer4" in looks
    for curve in ("hot first, area 0.500", "as much elsewhere, area 0.650", "hot on average first, area 0.550"):
        assert curve in looks
    assert "may pass this check too" not in looks
    assert "Most lies in the middle. 48 test images, 50.0 % fake" in looks
    assert "AUROC 0.705 in the mean of 2 perturbations" in looks
    assert "lowest after jpeg 30: 0.600 [0.550, 0.650]" in looks
    assert re.search(r"jpeg 30 0\.600 \[0\.550, 0\.650\] .* -0\.200 \[-0\.250, -0\.150\]", looks)
    assert "jpeg 95 on one class alone flips 8.3 % [2.0, 26.0] of 24 (fakes only)" in looks
    assert "no sign of bias, but not certain" in looks
    assert len(told.sources_of_images("looks")) == 4
    noisy = {given["data-value"] for given in told.of_class("noise", "looks")}
    assert noisy == {"0.01"}  # a change whose interval holds 0
    assert "run=" not in looks


def test_an_explanation_of_earlier_has_one_control_less(full: Path) -> None:
    file = full / "explanation" / "explanation.json"
    told = json.loads(file.read_text())
    for name in ("common", "auc_common", "difference_common", "interval_common", "by_verdict"):
        del told["deletion"][name]
    write(file, told)
    looks = page(full).text("looks")
    assert "as much elsewhere, area 0.650" in looks
    assert "hot on average" not in looks
    assert "A map that is hot in the middle of every picture, whatever is in it, may pass this check too." in looks


def test_how_it_was_trained_is_told_with_curves_and_settings(run: Path) -> None:
    told = page(run)
    training = told.text("training")
    for line in (
        "trained layer4, head frozen stem, layer1, layer2, layer3",
        "1,234 of 56,789",
        "3; best by val/loss: 1 (from 0)",
        "openvino, float32; views of an image: 4",
        "seed 0",
        "Seconds an epoch: 3 in the median, 2 to 4.",
        "validation, epoch 1: 0.500",
        "torch 2.10, timm 1.0",
        "All 5 settings",
        "lr 0.0001",
    ):
        assert line in training, line


def test_an_ensemble_has_members_and_no_training(run: Path) -> None:
    for name in ("metrics.csv", "seconds.csv", "audit.json", "environment.json"):
        (run / name).unlink()
    write(run / "ensemble.json", {})
    told = json.loads((run / "summary.json").read_text()) | {"members": ["a", "b"], "epochs_run": None}
    write(run / "summary.json", {key: value for key, value in told.items() if key not in ("trained", "trunk")})
    training = page(run).text("training")
    assert "It was not: it puts together what these runs say. a b" in training
    assert "metrics.csv" not in training


# ---------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("file", "section", "told"),
    [
        ("summary.json", "answer", "summary.json is not there"),
        ("audit.json", "trust", r"was not audited with this run. python -m deepfake.audit data.root=\S+/faces"),
        (
            "test_predictions.csv",
            "failures",
            r"test_predictions.csv is not there. python -m deepfake.evaluate run=\S+",
        ),
        ("test_predictions.csv", "certainty", "There are no predictions: test_predictions.csv is not there."),
        ("config.yaml", "training", "config.yaml is not there."),
        ("metrics.csv", "training", "There are no curves: metrics.csv is not there."),
        ("environment.json", "training", "environment.json is not there."),
        ("explanation", "looks", r"Not explained yet: .* python -m deepfake.explain run=\S+1a2b3c4d"),
        ("robustness", "looks", r"Not tested yet: .* python -m deepfake.robustness run=\S+1a2b3c4d"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_makes_it(
    run: Path, file: str, section: str, told: str
) -> None:
    (run / file).unlink(missing_ok=True)
    assert re.search(told, page(run).text(section))


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    told = page(tmp_path)
    assert not told.unclosed
    assert "summary.json is not there" in told.text("answer")


# ----------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "name", ["plain", "with space", "it's", "a,b=[c]", "$(touch x)", "{x}", 'quo"te', "back\\slash'", "ä~%+@:", "#1"]
)
def test_commands_hold_the_path_as_shell_and_hydra_take_it(name: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([setting("run", f"/runs/{name}")])
    assert override.value() == f"/runs/{name}"


def test_the_commands_are_to_be_typed_as_they_are(tmp_path: Path, root: Path) -> None:
    run = make_run(tmp_path / "it's (a) run", root)
    told = page(run).text("use")
    for name in ("predict", "app", "evaluate", "explain", "robustness", "report"):
        found = re.search(rf"python -m deepfake\.{name} (\S.*?)(?= python -m| input=| [A-Z]|$)", told)
        assert found, name
        (override,) = OverridesParser.create().parse_overrides(shlex.split(found[1])[:1])
        assert override.value() == str(run)


# ------------------------------------------------------------------------------------------------------------ hostile


def test_hostile_names_and_texts_stay_text(tmp_path: Path, root: Path) -> None:
    source = f"1-{HOSTILE}".replace("/", "")
    run = make_run(tmp_path / HOSTILE.replace("/", ""), root, ("0-camera", source))
    add_evaluation(run)
    add_explanation(run)
    add_robustness(run)
    for file, *keys in (
        ("summary.json", "model"),
        ("audit.json", "sentence"),
        ("environment.json", "packages", "torch"),
        ("evaluation/evaluation.json", "baselines", 0, "name"),
        ("explanation/explanation.json", "deletion", "sentence"),
        ("robustness/robustness.json", "rows", 1, "kind"),
    ):
        change(run / str(file), *keys, value=HOSTILE)
    told = page(run)
    assert "<img src=x" not in told.source
    assert not [name for _, given in told.elements for name in given if name.startswith("on")]
    for section in ("trust", "failures", "looks", "training"):
        assert SHOWN in told.text(section), section
    assert SHOWN.split("\\n")[0] in told.text("use")
    assert not re.search(r"https?:|url\(|@import|fetch\(", told.source)
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in told.source


def leaves(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a JSON file is, tables and lists too."""
    if above:
        yield above
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from leaves(content[key], (*above, key))


WRONG: tuple[Any, ...] = (None, "x", -1, 1e300, 10**400, float("nan"), [], {}, True, [[[]]], {"low": {}}, "\udcff")
FILES = (
    "summary.json", "audit.json", "environment.json", "evaluation/evaluation.json", "robustness/robustness.json",
    "explanation/explanation.json",
)  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_no_value_of_another_kind_keeps_the_page_from_being_written(full: Path, file: str) -> None:
    whole = (full / file).read_text()
    places = list(leaves(json.loads(whole)))
    drawn = np.random.default_rng(0)
    for place in drawn.choice(len(places), min(len(places), 8), replace=False):
        change(full / file, *places[place], value=WRONG[drawn.integers(len(WRONG))])
        told = page(full)
        assert not told.unclosed
        (full / file).write_text(whole)


OTHERS: list[Callable[[Path], Any]] = [
    os.mkfifo,
    Path.mkdir,
    lambda file: file.symlink_to("/dev/zero"),
    lambda file: file.symlink_to(file),
    lambda file: file.write_bytes(b"\xff\x00" * 50),
    lambda file: file.write_text("[" * 100_000),
    lambda file: file.write_text(" " * 2**21),
]


@pytest.mark.parametrize("put", OTHERS, ids=["pipe", "folder", "device", "loop", "bytes", "deep", "large"])
def test_whatever_stands_in_for_a_file_there_is_a_page(put: Callable[[Path], Any], run: Path) -> None:
    (run / "test_predictions.csv").unlink()
    put(run / "test_predictions.csv")
    told = page(run)
    assert not told.unclosed
    assert "cannot be shown" in told.text("certainty")
    assert "predict run=" in told.text("use")


def test_whatever_stands_in_for_all_files_there_is_a_page(full: Path) -> None:
    files = [file for file in full.rglob("*") if file.is_file()]
    for number, file in enumerate(sorted(files)):
        file.unlink()
        OTHERS[number % len(OTHERS)](file)
    told = page(full)
    assert not told.unclosed
    assert len(re.findall("cannot be shown", told.source)) > 5


def test_no_link_is_followed_out_of_the_folder(full: Path, tmp_path: Path) -> None:
    for name in ("audit.json", "config.yaml"):
        (full / name).rename(tmp_path / name)
        (full / name).symlink_to(tmp_path / name)
    (full / "explanation").rename(tmp_path / "explanation")
    (full / "explanation").symlink_to(tmp_path / "explanation")
    told = page(full)
    assert "found a link out of its folder" in told.text("trust")
    assert "found a link out of its folder" in told.text("looks")
    assert "format alone" not in told.source
    assert told.sources_of_images("looks") == []


def test_a_sheet_from_elsewhere_is_not_shown(full: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.png")
    for kind, file in (("true_fake", "../../../secret.png"), ("false_fake", str(tmp_path / "secret.png"))):
        change(full / "explanation" / "explanation.json", "sheets", kind, "file", value=file)
    (full / "explanation" / "figures" / "true_real.png").unlink()
    (full / "explanation" / "figures" / "true_real.png").symlink_to(tmp_path / "secret.png")
    assert len(page(full).sources_of_images("looks")) == 1


def test_a_link_in_place_of_the_page_is_replaced_and_not_written_through(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (run / "report.html").symlink_to(tmp_path / "mine.txt")
    write_run_page(run)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (run / "report.html").is_symlink()


# --------------------------------------------------------------------------------------------------------------- size


def test_large_sheets_and_many_long_names_stay_a_small_page(tmp_path: Path, root: Path) -> None:
    run = make_run(tmp_path / "run", root)
    add_explanation(run, (900, 800))  # noise, which no JPEG makes small
    sources = [f"{number % 2}-{'<&>' * 50}-{number}" for number in range(400)]
    rows = [(f"{s}/{'x' * 150}{i}.png", s, int(s[0]), 0.1 * i, 0.5 + 0.01 * i) for s in sources for i in range(3)]
    columns = ["path", "source", "label", "margin", "probability"]
    pd.DataFrame(rows, columns=columns).to_csv(run / "test_predictions.csv", index=False)
    (run / "config.yaml").write_text("\n".join(f"k{n}: '{'long ' * 300}'" for n in range(500)))
    told = page(run)
    assert len(told.source) < 3 * MEGABYTE
    assert "200 more are in the table of evaluate" in told.text("failures")
    assert len(told.sources_of_images("looks")) == 4
    with Image.open(io.BytesIO(base64.b64decode(told.sources_of_images("looks")[0].split(",")[1]))) as sheet:
        assert sheet.width < 900
    assert "and 100 more in config.yaml" in told.text("training")


def test_thousands_of_epochs_are_lines_without_dots(run: Path) -> None:
    curve = np.linspace(1, 0.5, 3000)
    columns = {f"{p}/{m}": curve for p in ("train", "val") for m in ("loss", "accuracy", "auroc")}
    pd.DataFrame({"epoch": range(3000)} | columns).to_csv(run / "metrics.csv", index=False)
    told = page(run)
    assert len(told.source) < MEGABYTE
    assert "validation, epoch" not in told.text("training")


def test_more_epochs_than_anybody_trains_are_not_drawn(run: Path) -> None:
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text() + "3,1e-4,0,0,0,0,0,0\n" * 20_000)
    told = page(run)
    assert len(told.source) < MEGABYTE
    assert "metrics.csv: more than 10000 epochs" in told.text("training")


@pytest.mark.parametrize("column", ["epoch", "val/loss"])
@pytest.mark.parametrize("others", [-1e308, 1e308])
def test_figures_beyond_all_bounds_have_no_chart(column: str, others: float, run: Path) -> None:
    table = pd.read_csv(run / "metrics.csv").assign(**{column: [1e308, others, others]})
    table.to_csv(run / "metrics.csv", index=False)
    assert not page(run).unclosed


def test_a_gap_in_a_curve_is_a_gap(run: Path) -> None:
    table = pd.read_csv(run / "metrics.csv")
    table.loc[1, "val/loss"] = np.inf
    table.to_csv(run / "metrics.csv", index=False)
    told = page(run)
    assert "validation, epoch 0: 0.600" in told.text("training")
    (curve,) = [g["d"] for g in told.of_class("validation", "training") if "curve" in g["class"] and "d" in g][1:2]
    assert curve.count("M") == 2


def test_the_same_folder_gives_the_same_page(full: Path) -> None:
    assert page(full).source == page(full).source


def test_needs_no_torch(full: Path) -> None:
    code = (
        "import sys; from deepfake.reporting.run_page import write_run_page; write_run_page(sys.argv[1]);"
        "sys.exit(bool({'torch', 'lightning', 'timm', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(full)], check=False).returncode == 0
