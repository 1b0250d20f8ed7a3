"""The pages in a browser: they ask for nothing, sort, fit, can be read in the light and in the dark, and on paper."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from deepfake.reporting import audit_page
from deepfake.reporting.run_page import write_run_page
from deepfake.reporting.sweep_page import write_sweep_page
from tests.reporting.made import add_evaluation, add_explanation, add_robustness, make_run
from tests.reporting.test_audit_page import full as full_audit
from tests.reporting.test_audit_page import row
from tests.reporting.test_comparison import judged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="alert(1)">\n\N{RIGHT-TO-LEFT OVERRIDE}' + "long" * 20

# Of every text that is seen: what it is, and its contrast to what lies behind it (WCAG 2.2, relative luminance).
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => [0, 1, 2].map(i => c[i] / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const c = channels(getComputedStyle(element).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return channels(getComputedStyle(document.body).backgroundColor);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("script, title")) continue;
    const svg = element.namespaceURI.endsWith("svg");
    const [a, b] = [light(channels(svg ? style.fill : style.color)), light(behind(element))];
    found.push([walker.currentNode.data.trim().slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, with something in every section and hostile names wherever there is one."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / f"run {HOSTILE}".replace("/", ""), folder / "faces", ("0-camera", f"1-{HOSTILE}"))
    add_evaluation(run)
    add_robustness(run)
    add_explanation(run)
    content, rows = full_audit()
    audit_page.write_page(folder / "audit.html", content, pd.DataFrame(rows, columns=list(row("0-a/b"))), folder)
    good = [0.1] * 20 + [0.9] * 20
    runs = [
        judged(folder, "best", 0.1, good),
        judged(folder, f"alike {HOSTILE}", 0.2, [0.2] * 19 + [0.8] + [0.9] * 20),
        judged(folder, "worst", 0.3, [0.1] * 10 + [0.9] * 20 + [0.1] * 10),
    ]
    jobs = [{"number": 3, "overrides": HOSTILE, "status": "failed", "message": HOSTILE}]
    return {
        "run": write_run_page(run),
        "untold": write_run_page(make_run(folder / "plain", folder / "other")),
        "audit": folder / "audit.html",
        "sweep": write_sweep_page(runs, folder / "sweep", jobs),
    }


@pytest.fixture
def opened(browser: "Browser", pages: dict[str, Path]) -> Callable[..., Any]:
    """A page, open; what it says, asks for and does beside showing itself is a failure."""

    @contextmanager
    def opening(kind: str, width: int = 1280, **how: Any) -> Iterator["Page"]:
        context = browser.new_context(viewport={"width": width, "height": 900}, **how)
        page = context.new_page()
        address, done = pages[kind].as_uri(), []
        page.on("console", lambda message: done.append(message.text))
        page.on("pageerror", lambda error: done.append(str(error)))
        page.on("dialog", lambda dialog: (done.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: done.append(asked.url) if asked.url[:5] != "data:" else None)
        page.goto(address)
        yield page
        assert [each for each in done if each != address] == []
        context.close()

    return opening


KINDS = ("run", "untold", "audit", "sweep")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_shows_itself_fits_and_can_be_read(kind: str, scheme: str, opened: Callable[..., Any]) -> None:
    with opened(kind, color_scheme=scheme) as page:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        for details in page.locator("details").all():
            details.locator("summary").click()
        told = page.evaluate(CONTRASTS)
        assert len(told) > 50
        assert [(text, round(ratio, 2)) for text, ratio in told if ratio < 4.5] == []
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)"
        )
        assert page.locator("img[src=x]").count() == 0


def column(page: "Page", table: int, number: int) -> list[str]:
    cells = page.locator("table.sortable").nth(table).locator(f"tbody tr > :nth-child({number + 1})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value ?? cell.textContent.trim())")


@pytest.mark.parametrize(("kind", "table"), [("run", 1), ("run", 3), ("audit", 0), ("sweep", 0)])
def test_every_column_sorts_by_a_click_numbers_by_value_and_names_by_letter(
    kind: str, table: int, opened: Callable[..., Any]
) -> None:
    with opened(kind) as page:
        heads = page.locator("table.sortable").nth(table).locator("thead th")
        for number in range(heads.count()):
            before = column(page, table, number)
            if "number" in (heads.nth(number).get_attribute("class") or ""):
                ascending = sorted(before, key=lambda value: float(value.replace("Infinity", "inf")))
                expected = [ascending[::-1], ascending]  # the largest first
            else:
                ascending = page.evaluate("names => [...names].sort((a, b) => a.localeCompare(b))", before)
                expected = [ascending, ascending[::-1]]
            for wanted in expected:
                heads.nth(number).locator("button").click()
                assert column(page, table, number) == wanted


def test_a_mark_goes_where_its_row_goes(opened: Callable[..., Any]) -> None:
    with opened("sweep") as page:
        rows = page.locator("table.sortable tbody tr")
        before = {
            row.locator("th").inner_text(): row.locator("svg.mark title").all_inner_texts() for row in rows.all()
        }
        page.locator("thead button").nth(2).click()
        for row in rows.all():
            assert row.locator("svg.mark title").all_inner_texts() == before[row.locator("th").inner_text()]


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_all_is_there_but_sorting(kind: str, opened: Callable[..., Any]) -> None:
    with opened(kind) as page:
        with_script = page.locator("body").inner_text()
    with opened(kind, java_script_enabled=False) as page:
        assert page.locator("table.sortable button").count() == 0
        assert page.locator("body").inner_text().split() == with_script.split()


@pytest.mark.parametrize("kind", KINDS)
def test_on_paper_nothing_is_asked_for_a_click(kind: str, opened: Callable[..., Any]) -> None:
    with opened(kind, color_scheme="dark") as page:
        page.emulate_media(media="print")
        paper = 1040 if kind == "sweep" else 720  # A4 with margins of a centimetre; the one lies
        page.set_viewport_size({"width": paper, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == paper
        assert page.locator("nav").is_hidden()
        assert page.locator("details:visible").count() == 0
        arrows = page.locator("th button").evaluate_all(
            "buttons => buttons.map(button => getComputedStyle(button, '::after').display)"
        )
        assert set(arrows) <= {"none"}
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf()[:4] == b"%PDF"


def test_a_point_tells_its_figure(opened: Callable[..., Any]) -> None:
    with opened("run") as page:
        assert "validation, epoch 1: 0.500" in page.locator("#training circle title").all_text_contents()
