"""The page of the data audit, read as a browser would: what stands where, and what may not be in it."""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.reporting import audit_page
from deepfake.reporting.audit_page import write_page

HOSTILE = "1-gan/<img src=x onerror=\"alert(1)\">\n'&amp;' \N{GRINNING FACE} \N{RIGHT-TO-LEFT OVERRIDE}gnp.png"
SHOWN = "1-gan/<img src=x onerror=\"alert(1)\">\\n'&amp;' \N{GRINNING FACE} \\u202egnp.png"
SECTIONS = ("findings", "shortcuts", "sources", "balance", "panels", "duplicates", "files", "made")
VOID = {"meta", "link", "img", "br"}
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """Every element with its attributes; what each element with an id holds, and its text, a space at every tag."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.inside: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.unclosed: list[tuple[str, str | None]] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_data(" ")
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        for _, name in self.unclosed:
            if name:
                self.inside[name].append((tag, attributes))
        if tag not in VOID:
            name = attributes.get("id")
            self.unclosed.append((tag, name))
            if name:
                assert name not in self.texts, f"two elements are called {name}"
                self.texts[name], self.inside[name] = "", []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed, f"</{tag}> closes nothing"
        self.handle_data(" ")
        assert self.unclosed.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.unclosed:
            if name:
                self.texts[name] += data

    def text(self, section: str) -> str:
        return " ".join(self.texts[section].split())

    def of_class(self, name: str, section: str) -> list[dict[str, str]]:
        return [given for _, given in self.inside[section] if name in given.get("class", "").split()]

    def sources_of_images(self, section: str) -> list[str]:
        return [given["src"] for tag, given in self.inside[section] if tag == "img"]


Write = Callable[..., Page]


def row(path: str, **changes: Any) -> dict[str, Any]:
    """A row of the catalogue."""
    label = int(path[0])
    return {
        "path": path,
        "label": label,
        "source": path.split("/")[0],
        "group": "",
        "split": "train",
        "sha256": "0" * 64,
        "phash": "",
        "width": 256,
        "height": 256,
        "mode": "RGB",
        "format": "JPEG",
        "bytes": 20_000,
        "jpeg_quality": 90,
        "jpeg_luma": 10.0,
        "status": "ok",
        "reason": "",
        **changes,
    }


def source(name: str, images: int = 10, **changes: Any) -> dict[str, Any]:
    return {
        "source": name,
        "label": int(name[0]),
        "images": images,
        "train": images - 3,
        "val": 1,
        "test": 2,
        "width": [200.0, 256.0, 1024.0],
        "height": [256.0, 256.0, 256.0],
        "formats": {"JPEG": images - 1, "PNG": 1},
        "modes": {"RGB": images},
        "jpeg_quality": [75.0, 90.0, 96.0],
        "bytes_per_pixel": [0.105, 0.305, 1.2],
        **changes,
    }


def shortcut(name: str, value: float | None, **changes: Any) -> dict[str, Any]:
    interval = [None, None] if value is None else [round(value - 0.05, 3), round(value + 0.04, 3)]
    return {
        "name": name,
        "balanced_accuracy": value,
        "interval": interval,
        "auroc": value,
        "auroc_interval": interval,
        "level": None,
        "train_images": 1400,
        "test_images": 300,
        "rule": "width <= 200 -> real (9 real, 1 fake); width > 200 -> fake (0 real, 8 fake)",
        **changes,
    }


def group(paths: list[str], splits: list[str], kind: str, **changes: Any) -> dict[str, Any]:
    return {"paths": paths, "labels": [int(path[0]) for path in paths], "splits": splits, "kind": kind, **changes}


def audit(**changes: Any) -> dict[str, Any]:
    """An audit that found nothing at all, of no images."""
    return {
        "root": "/data/faces",
        "images": 0,
        "unreadable": 0,
        "suspicious": 0,
        "verdict": "clean",
        "sentence": "nothing was found",
        "findings": [],
        "sources": [],
        "parts": [{"split": part, "images": 0, "real": 0, "fake": 0} for part in ("train", "val", "test")],
        "files": [],
        "duplicates": duplicates(),
        "shortcuts": {"metadata": [], "spectrum": None},
        "settings": {},
        "seconds": 3.21,
        "command": "python -m deepfake.audit data=folder",
        **changes,
    }


def duplicates(*exact: dict[str, Any], near: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"exact": list(exact), "near": list(near), "exact_total": len(exact), "near_total": len(near)}


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """The page of an audit and a catalogue, read."""

    def write(content: dict[str, Any], *rows: dict[str, Any]) -> Page:
        table = pd.DataFrame(rows, columns=list(row("0-camera/a.png")))
        write_page(tmp_path / "audit.html", content, table, tmp_path)
        return Page(tmp_path / "audit.html")

    return write


def full() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An audit with something in every section, every name in it hostile."""
    rows = [row("0-camera/a.jpg"), row(HOSTILE, width=300, jpeg_quality=-1, format="PNG")]
    finding = {"key": "duplicates.exact.classes", "level": "loud", "sentence": f"1 image is both, such as {HOSTILE}"}
    content = audit(
        root=f"/data/{HOSTILE}",
        images=1234,
        unreadable=1,
        suspicious=1,
        verdict="loud",
        sentence=finding["sentence"],
        findings=[finding, {"key": "files.suspicious", "level": "note", "sentence": "one file is suspicious"}],
        sources=[source("0-camera", 30), source("1-gan", 40, formats={HOSTILE: 40}), source(f"1-{HOSTILE}", 50)],
        parts=[
            {"split": "train", "images": 80, "real": 20, "fake": 60},
            {"split": "val", "images": 20, "real": 5, "fake": 15},
            {"split": "test", "images": 20, "real": 5, "fake": 15},
        ],
        files=[{"path": HOSTILE, "status": "unreadable", "reason": f"damaged: {HOSTILE}"}],
        duplicates=duplicates(
            group(["0-camera/a.jpg", HOSTILE], ["train", "test"], "classes"),
            near=(group(["1-gan/b.jpg", HOSTILE], ["train", "test"], "parts", distance=3),),
        ),
        shortcuts={
            "metadata": [shortcut("size", 0.84, level="loud", rule=HOSTILE), shortcut("mode", 0.5)],
            "spectrum": shortcut("spectrum", 0.7, level="warning"),
        },
        settings={"data": {"root": HOSTILE, "seed": 0}, "spectrum": True},
        command=f"deepfake-audit {HOSTILE}",
    )
    return content, rows


def test_the_page_is_well_formed_and_every_entry_of_its_navigation_leads_somewhere(written: Write) -> None:
    content, rows = full()
    page = written(content, *rows)
    assert not page.unclosed
    assert set(SECTIONS) <= page.texts.keys()
    targets = [given["href"] for tag, given in page.elements if tag in ("a", "use")]
    assert {f"#{section}" for section in SECTIONS} <= set(targets)
    assert {target.removeprefix("#") for target in targets} <= page.texts.keys()


def test_hostile_names_are_text_everywhere(written: Write) -> None:
    content, rows = full()
    page = written(content, *rows)
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    assert "<img src=x" not in page.source
    for section in ("verdict", "findings", "shortcuts", "sources", "panels", "duplicates", "files", "made"):
        assert " ".join(SHOWN.split()) in page.text(section), section


def test_a_name_that_no_utf8_file_can_hold_is_shown_by_its_code(written: Write) -> None:
    page = written(audit(files=[{"path": "1-gan/\udcff.png", "status": "unreadable", "reason": "file is empty"}]))
    assert "1-gan/\\udcff.png" in page.text("files")


def test_nothing_on_the_page_leads_out_of_it(written: Write, tmp_path: Path) -> None:
    content, rows = full()
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    content["duplicates"]["near"][0]["paths"][0] = "1.jpg"
    page = written(content, *rows)
    addresses = [given[name] for _, given in page.elements for name in ("src", "href", "srcset") if name in given]
    assert any(address.startswith("data:image/jpeg") for address in addresses)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|import\(", page.source)


def test_the_only_script_that_may_run_is_the_page_own(written: Write) -> None:
    page = written(audit())
    (policy,) = (g["content"] for _, g in page.elements if g.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


@pytest.mark.parametrize(
    ("verdict", "word"), [("clean", "Clean"), ("doubtful", "Doubtful"), ("loud", "Loud")], ids=lambda v: v
)
def test_the_verdict_comes_first_as_a_word_and_a_sentence(written: Write, verdict: str, word: str) -> None:
    page = written(audit(verdict=verdict, sentence="image size alone tells real from fake"))
    assert f"{word} Image size alone tells real from fake." in page.text("verdict")
    assert next(iter(page.texts)) == "verdict"
    assert any(given.get("class") == f"verdict {verdict}" for _, given in page.elements)


def test_the_sections_hold_the_numbers_of_the_audit(written: Write) -> None:
    content, rows = full()
    page = written(content, *rows)
    facts = " ".join(re.sub(r"<[^>]+>", " ", page.source.split("<dl")[1].split("</dl>")[0]).split())
    assert "files 1,234 real 30 fake 90 sources 3 unreadable 1 suspicious 1 groups of copies 1 near pairs 1" in facts
    assert re.search(r"Loud 1 image is both.*Note One file is suspicious\.", page.text("findings"))
    assert re.search(r"size 0\.84 \[0\.79, 0\.88\] mode 0\.50", page.text("shortcuts"))
    assert "AUROC images size ! Loud" in page.text("shortcuts")
    assert "1,400, 300" in page.text("shortcuts")
    assert "0-camera real 30 27 1 2 256 200 to 1024 256 JPEG 29, PNG 1 RGB 30 90 75 to 96 0.305 0.105 to 1.2" in (
        page.text("sources").replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "training 80: 20 real, 60 fake (75.0 %)" in page.text("balance")
    assert "distance 3 of 64 bits" in page.text("duplicates")
    assert "1 unreadable, left out of training; 1 suspicious, kept." in page.text("files")
    assert "In 3.2 s" in page.text("made")
    assert "data.seed 0 spectrum true" in page.text("made")


def test_every_section_without_content_says_none(written: Write) -> None:
    page = written(audit())
    for section in SECTIONS:
        assert "none" in page.text(section), section
    assert page.text("duplicates").count("none") == 2


def test_numbers_sort_by_value_and_not_by_how_they_are_written(written: Write) -> None:
    page = written(audit(sources=[source("0-camera", 1200, jpeg_quality=None)]), row("0-camera/a.jpg"))
    values = [given.get("data-value") for tag, given in page.inside["sources"] if tag == "td"]
    numeric = [number for number, value in enumerate(values) if value is not None]
    heads = [given.get("class") == "number" for tag, given in page.inside["sources"] if tag == "th"][1:12]
    assert numeric == [number for number, head in enumerate(heads) if head]
    assert [float(values[number] or "nan") for number in numeric] == [1200, 1197, 1, 2, 256, 256, -1, 0.305]


def percents(style: str) -> list[float]:
    return [float(number) for number in re.findall(r"(-?[\d.]+)%", style)]


@pytest.mark.parametrize(
    ("value", "bar"),
    [
        (0.8, [16.67, 50.0]),  # the axis is .4 to 1: from .5, up to .8
        (0.5, [16.67, 0.0]),
        (0.47, [11.67, 5.0]),  # below chance: to the left of it
    ],
)
def test_bars_start_at_chance(written: Write, value: float, bar: list[float]) -> None:
    page = written(audit(shortcuts={"metadata": [shortcut("size", value)], "spectrum": None}))
    (drawn,) = page.of_class("bar", "shortcuts")
    assert percents(drawn["style"]) == pytest.approx(bar, abs=0.01)
    lines = [percents(given["style"])[0] for given in page.of_class("line", "shortcuts")]
    assert lines == pytest.approx([16.67, 33.33, 66.67, 100], abs=0.01)


def test_the_axis_reaches_every_interval_and_every_auroc(written: Write) -> None:
    metadata = [shortcut("size", 0.6, interval=[0.13, 1.0]), shortcut("mode", 0.4, auroc=0.1)]
    page = written(audit(shortcuts={"metadata": metadata, "spectrum": None}))
    start, width = percents(page.of_class("whisker", "shortcuts")[0]["style"])
    assert (start, start + width) == pytest.approx((3.33, 100), abs=0.02)  # from .1
    assert percents(page.of_class("ring", "shortcuts")[1]["style"]) == [0]


def test_a_shortcut_without_figures_has_its_reason_and_no_bar(written: Write) -> None:
    undefined = shortcut("size", None, rule="undefined: no real image in the test part")
    page = written(audit(shortcuts={"metadata": [undefined], "spectrum": None}))
    assert not page.of_class("bar", "shortcuts")
    assert "undefined: no real image in the test part" in page.text("shortcuts")


def test_the_spectrum_is_no_fault_by_itself(written: Write) -> None:
    spectrum = shortcut("spectrum", 0.95, level="loud")
    page = written(audit(shortcuts={"metadata": [shortcut("size", 0.7, level="warning")], "spectrum": spectrum}))
    assert [given["class"] for given in page.of_class("row", "shortcuts")] == ["row warning", "row apart"]
    assert "The spectrum is no property of the file" in page.text("shortcuts")


def marks(page: Page) -> list[tuple[str, dict[str, str]]]:
    return [(tag, given) for tag, given in page.inside["panels"] if given.get("class") == "mark"]


def test_images_of_one_size_are_one_dot_in_the_middle_of_the_panel(written: Write) -> None:
    rows = [row(f"0-camera/{number}.jpg") for number in range(5)]
    page = written(audit(sources=[source("0-camera", 5)]), *rows)
    (dot,) = (given for tag, given in marks(page) if tag == "circle")
    assert (dot["cx"], dot["cy"], dot["r"]) == ("115.0", "60.0", "12.0")


def test_square_images_lie_on_the_diagonal_and_dots_have_the_area_of_their_share(written: Write) -> None:
    rows = [row("0-camera/a.jpg", width=64, height=64)]
    rows += [row(f"0-camera/{number}.jpg", width=1024, height=1024) for number in range(3)]
    page = written(audit(sources=[source("0-camera", 4)]), *rows)
    dots = [given for tag, given in marks(page) if tag == "circle"]
    for dot in dots:
        assert (float(dot["cx"]) - 40) / 150 == pytest.approx((110 - float(dot["cy"])) / 100, abs=0.002)
    assert [float(dot["r"]) ** 2 / 144 for dot in dots] == pytest.approx([0.25, 0.75], abs=0.01)


@pytest.mark.parametrize("sides", [[(1, 1)], [(1, 20_000), (20_000, 1)], [(255, 256), (256, 256)]], ids=str)
@pytest.mark.parametrize("size", [1, 10**9])
def test_marks_stay_inside_their_panel(written: Write, sides: list[tuple[int, int]], size: int) -> None:
    rows = [row(f"0-camera/{w}x{h}.jpg", width=w, height=h, bytes=size) for w, h in sides]
    page = written(audit(sources=[source("0-camera", len(rows))]), *rows)
    for tag, given in marks(page):
        if tag == "circle":
            x, y, radius = (float(given[name]) for name in ("cx", "cy", "r"))
            assert x - radius >= 40
            assert x + radius <= 190
            assert y - radius >= 10
            assert y + radius <= 110
        else:
            for left, height in re.findall(r"M([\d.]+) 110v(-[\d.]+)", given["d"]):
                assert 40 <= float(left) < 190
                assert -100 <= float(height) < 0


def test_panels_of_one_question_share_their_axes(written: Write) -> None:
    """Where all of the second source's images stand, half of the first's do: its bar is half as high."""
    rows = [row("0-camera/a.jpg", jpeg_quality=70), row("0-camera/b.jpg", jpeg_quality=95)]
    rows += [row("1-gan/a.jpg", jpeg_quality=95)]
    page = written(audit(sources=[source("0-camera", 2), source("1-gan", 1)]), *rows)
    camera, gan = [given["d"] for tag, given in marks(page) if tag == "path"][-2:]
    bar = re.compile(r"M([\d.]+) 110v-([\d.]+)")
    (_, first), (place, second) = bar.findall(camera)
    assert (float(first), float(second)) == (50, 50)
    assert bar.findall(gan) == [(place, "100.0")]


def test_a_source_without_jpeg_or_without_readable_images_says_so(written: Write) -> None:
    rows = [
        row("0-camera/a.jpg"),
        row("1-gan/a.png", format="PNG", jpeg_quality=-1),
        row("1-lost/a.png", width=0, height=0, format="", jpeg_quality=-1, status="unreadable"),
    ]
    page = written(audit(sources=[source("0-camera"), source("1-gan"), source("1-lost")]), *rows)
    # The lost one has no JPEG either, and no size and no bytes per pixel.
    assert page.text("panels").count("no JPEG") == 2
    assert page.text("panels").count("no readable image") == 2
    formats = page.text("panels").split("Formats")[1]
    assert re.findall(r"JPEG (\d+) % PNG (\d+) %", formats) == [("100", "0"), ("0", "100"), ("0", "0")]


def test_data_without_any_jpeg_has_no_panels_of_its_quality(written: Write) -> None:
    page = written(audit(sources=[source("0-camera")]), row("0-camera/a.png", format="PNG", jpeg_quality=-1))
    assert "JPEG quality" not in page.text("panels")


def test_of_many_sources_the_largest_of_each_class_have_panels(written: Write) -> None:
    sources = [source(f"0-camera{number:02}", images=100 + number) for number in range(20)] + [source("1-gan", 4)]
    page = written(audit(sources=sources), row("0-camera00/a.jpg"))
    sizes = page.text("panels").split("Bytes per pixel")[0]
    assert re.findall(r"0-camera(\d+)", sizes) == [f"{number:02}" for number in range(8, 20)]
    assert "1-gan" in sizes
    assert "8 more are in the background only" in page.text("panels")


def test_duplicates_show_their_pictures_small_and_in_proportion(written: Write, tmp_path: Path) -> None:
    Image.new("RGB", (300, 150), (200, 30, 30)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    page = written(audit(duplicates=duplicates(group(["0.png", "1.png"], ["train", "val"], "classes"))))
    (picture,) = page.sources_of_images("duplicates")
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
        assert (image.format, image.size) == ("JPEG", (96, 48))
        assert np.abs(np.asarray(image, dtype=int).mean((0, 1)) - (200, 30, 30)).max() < 5
    assert "cannot be read fake, validation 1.png" in page.text("duplicates")


def test_duplicates_across_classes_come_first_then_those_across_parts(written: Write) -> None:
    def pairs(name: str) -> list[dict[str, Any]]:
        kinds = ["within"] * 30 + ["parts"] * 8 + ["classes"]
        return [group([f"0-{name}/{i}", f"1-{name}/{i}"], ["train"] * 2, kind) for i, kind in enumerate(kinds)]

    near = tuple({**pair, "distance": 2} for pair in pairs("near"))
    page = written(audit(duplicates=duplicates(*pairs("exact"), near=near)))
    exact, nearly = page.text("duplicates").split("Nearly the same")
    for part, name in ((exact, "exact"), (nearly, "near")):
        # 24 in all, half of them of each list while there are enough of a kind.
        assert re.findall(rf"0-{name}/(\d+)", part) == ["38", *(str(i) for i in range(30, 38)), "0", "1", "2"]
        assert "39" in part
        assert "12 shown" in part


def test_the_few_images_shown_of_a_large_group_are_of_both_classes_and_of_all_parts(written: Write) -> None:
    paths = [f"0-camera/{i}.png" for i in range(500)] + ["1-gan/0.png", "1-gan/1.png"]
    splits = ["train"] * 499 + ["test", "train", "val"]
    page = written(audit(duplicates=duplicates(group(paths, splits, "classes"))))
    shown = re.findall(r"\d-\w+/\d+\.png", page.text("duplicates"))
    assert shown == ["0-camera/0.png", "0-camera/499.png", "1-gan/0.png", "1-gan/1.png"]
    assert "and 498 more" in page.text("duplicates")


def test_thousands_of_everything_stay_a_small_page(written: Write, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    long = "\N{RIGHT-TO-LEFT OVERRIDE}<'&\">" * 700
    sources = [source(f"{number % 2}-{number}-{long}") for number in range(1000)]
    names = [entry["source"] for entry in sources]
    sides = random.integers(64, 4096, (20_000, 2)).tolist()
    rows = [
        row(f"{names[i % 4]}/{i}.jpg", source=names[i % 24], width=w, height=h, bytes=w * h // (1 + i % 17))
        for i, (w, h) in enumerate(sides)
    ]
    twins = group(["0.png"] * 1000, ["train"] * 1000, "within")
    content = audit(
        sources=sources,
        files=[{"path": f"1-gan/{n}{long}", "status": "unreadable", "reason": long} for n in range(5000)],
        duplicates=duplicates(*[twins] * 2000, near=tuple({**twins, "distance": 1} for _ in range(2000))),
    )
    page = written(content, *rows)
    assert len(page.source.encode()) < 3 * MEGABYTE
    assert len(re.findall(r"1-gan/\d+", page.text("files"))) == audit_page.FILES
    assert "The first 200; 4,800 more are in audit.json." in page.text("files")
    assert "The first 200 of 1,000" in page.text("sources")
    assert len(page.sources_of_images("duplicates")) == audit_page.GROUPS * audit_page.MEMBERS


def test_the_same_audit_gives_the_same_page(written: Write) -> None:
    content, rows = full()
    assert written(content, *rows).source == written(content, *rows).source
