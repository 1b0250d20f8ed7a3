"""The page of runs compared: what is best, what is noise, what failed, and where the pages of the runs are."""

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from deepfake.reporting.sweep_page import write_sweep_page
from tests.reporting.test_audit_page import Page
from tests.reporting.test_comparison import judged, summary

HOSTILE = "<img src=x onerror=alert(1)>\n\N{RIGHT-TO-LEFT OVERRIDE}"
SHOWN = "<img src=x onerror=alert(1)>\\n\\u202e"


def three(folder: Path) -> list[dict[str, Any]]:
    """The best run, one that is not told apart from it, and one that is."""
    good = [0.1] * 20 + [0.9] * 20
    return [
        judged(folder, "worst", 0.4, [0.1] * 10 + [0.9] * 20 + [0.1] * 10),
        judged(folder, "best", 0.1, good),
        judged(folder, "alike", 0.2, [0.2] * 19 + [0.8] + [0.9] * 20),
    ]


def rows(page: Page) -> list[str]:
    """The text of each row of the table of runs."""
    body = page.source.split("<tbody>")[1].split("</tbody>")[0]
    return [" ".join(re.sub(r"<title>.*?</title>|<[^>]+>", " ", row).split()) for row in body.split("<tr")[1:]]


def test_runs_stand_best_first_and_what_is_noise_is_grey(tmp_path: Path) -> None:
    page = Page(write_sweep_page(three(tmp_path / "runs"), tmp_path / "sweep"))
    assert not page.unclosed
    assert "3 runs compared" in page.source
    best, alike, worst = rows(page)
    assert re.search(r"best best 0\.900 \[0\.870, 0\.920\] \N{EN DASH} \N{EN DASH} 0\.940", best)
    assert re.search(r"alike not told apart 0\.900 .* \+0\.000 1\.000 0\.940", alike)
    assert "< 0.001" in worst.replace("&lt;", "<")
    assert worst.count("told apart") == 1
    kinds = re.findall(r'<tr(?: class="(\w+)")?><th scope="row">', page.source)
    assert kinds == ["chosen", "noise", ""]
    assert "1 in grey is not told apart from the best" in page.text("runs")
    assert "Validation: 400 images, 50.0 % fake" in page.text("notes")


def test_every_figure_with_an_interval_has_its_whisker_on_one_axis(tmp_path: Path) -> None:
    runs = [summary("a", 0.1), summary("b", 0.2)]
    runs[1]["val"]["intervals"]["accuracy"] = [0.5, 0.95]
    page = Page(write_sweep_page(runs, tmp_path))
    assert "Validation axes from 0.5 to 1" in page.text("runs")
    (whisker,) = re.findall(
        r'<title>0\.900 \[0\.500, 0\.950\]</title>.*?class="whisker" d="M([\d.]+) 8H([\d.]+)M', page.source
    )
    assert np.allclose([float(place) for place in whisker], [6, 6 + 0.9 * 138], atol=0.1)


def test_seconds_that_nobody_told_are_a_dash(tmp_path: Path) -> None:
    runs = [summary("a", 0.1) | {"seconds": math.nan}, summary("b", 0.2)]
    first, _ = rows(Page(write_sweep_page(runs, tmp_path)))
    assert first.endswith("\N{EN DASH}")


def links(page: Page) -> list[str]:
    return [given["href"] for tag, given in page.elements if tag == "a" and not given["href"].startswith("#")]


def test_runs_that_have_a_page_are_linked_wherever_all_of_them_are_moved(tmp_path: Path) -> None:
    runs = three(tmp_path / "runs")
    (tmp_path / "runs" / "best" / "report.html").touch()
    page = write_sweep_page(runs, tmp_path / "sweeps" / "one")
    (link,) = links(Page(page))
    assert link == "../../runs/best/report.html"
    assert (page.parent / link).resolve() == tmp_path / "runs" / "best" / "report.html"


def test_no_name_of_a_run_is_markup_or_another_kind_of_address(tmp_path: Path) -> None:
    runs = [judged(tmp_path, f"{name}", 0.1, [0.1, 0.9]) for name in ("javascript:alert(1)", HOSTILE, '"onclick=x')]
    for run in runs:
        (Path(run["folder"]) / "report.html").touch()
        run["model"] = run["seed"] = HOSTILE
    jobs = [{"number": 0, "overrides": HOSTILE, "status": "failed", "message": HOSTILE}]
    page = Page(write_sweep_page(runs, tmp_path, jobs))
    assert "<img src=x" not in page.source
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    assert page.text("runs").count(SHOWN) >= 4
    assert page.text("missing").count(SHOWN) == 2
    assert len(links(page)) == 3
    for link in links(page):
        assert ":" not in link
        assert (tmp_path / unquote(link)).is_file()


def test_jobs_without_a_run_are_listed_with_what_they_said(tmp_path: Path) -> None:
    jobs = [
        {"number": 3, "overrides": "unfreeze=99", "status": "failed", "message": "unfreeze must be 0..5"},
        {"number": 4, "overrides": "seed=1", "status": "not run", "message": "not run"},
    ]
    page = Page(write_sweep_page([summary()], tmp_path, jobs))
    assert "1 run compared, 2 missing" in page.source
    assert "Job 3 , failed: unfreeze=99 unfreeze must be 0..5" in page.text("missing")
    assert "missing" not in Page(write_sweep_page([summary()], tmp_path)).texts


def test_undefined_figures_are_dashes_and_sort_below_all_others(tmp_path: Path) -> None:
    val = summary()["val"] | {"auroc": None}
    page = Page(write_sweep_page([summary(epochs_run=None, best_epoch=None, test=None, val=val)], tmp_path))
    assert page.source.count('data-value="-Infinity"') >= 8
    assert "nan" not in re.sub(r"[\w-]*nan[\w-]+", "", page.text("runs"))


def test_in_a_runs_own_folder_its_page_stays(tmp_path: Path) -> None:
    run = judged(tmp_path, "run", 0.1, [0.1, 0.9])
    (tmp_path / "run" / "report.html").write_text("of the run")
    assert write_sweep_page([run], tmp_path / "run") == tmp_path / "run" / "comparison.html"
    assert (tmp_path / "run" / "report.html").read_text() == "of the run"
    assert write_sweep_page([run], tmp_path) == tmp_path / "report.html"
