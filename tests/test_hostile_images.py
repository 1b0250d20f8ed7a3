"""Folders of hostile images: every command answers each file with one row, writes its name so that it comes back, and
goes on."""

import contextlib
import csv
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from deepfake import audit, predict, predicting, runs, spectra, train
from deepfake.config import conf_dir, parse_audit, parse_predict, parse_spectra, parse_train
from deepfake.data.catalog import read_catalogue
from deepfake.data.images import TooLargeImage
from deepfake.errors import UserError
from deepfake.judging import pixels_of
from tests.data import fuzz
from tests.data.formats import encoded
from tests.data.hostile import bombs, make_hostile, noisy

# Pillow's, which the commands do not show: a test sees them all.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\..*")

FUZZED = max(40, int(os.environ.get("DEEPFAKE_FUZZ", "0")))

TINY = (
    "model=timm", "model.timm=test_resnet", "model.weights=none", "model.input_size=32", "batch_size=8",
    "trunk.engine=eager", "accumulate=1", "epochs=1", "trainer=cpu", "trainer.progress=false", "logger=none",
)  # fmt: skip


def settings(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(name, overrides=list(overrides))


# --------------------------------------------------------------------------------------------------------- the folder


SOURCES = REAL, FAKE = "=1+1/real", "=1+1/fake"


class Folder(NamedTuple):
    root: Path  # also holds list.csv, of all paths below it
    expected: dict[str, str]  # by path below root: ok, suspicious, unreadable, or "" where any will do
    twins: list[tuple[str, str]]  # files that show the same


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("hostile")
    expected = {}
    fuzzed = list(dict.fromkeys(fuzz.some(FUZZED)))
    for seed, source in enumerate(SOURCES):
        expected |= {f"{source}/{name}": status for name, status in make_hostile(root / source, seed).items()}
        any_answer = {f"fuzzed{number:05}.png": content for number, content in enumerate(fuzzed[seed::2])}
        if seed:
            any_answer |= noisy()
        for name, content in (bombs() | any_answer).items():
            (root / source / name).write_bytes(content)
            expected[f"{source}/{name}"] = "" if name in any_answer else "unreadable"
    links = root / "@links" / "fake"
    links.mkdir(parents=True)
    (links / "one.png").write_bytes(encoded(blocks(99), "PNG"))
    expected["@links/fake/one.png"] = "ok"
    circles = {"up": "../..", "around": "../over", "itself": ".", "../over": "fake", "../../all": "."}
    for link, target in circles.items():
        (links / link).symlink_to(target)
    twins = []
    for name, (content, plain) in _twins().items():
        for suffix, same in (("", content), (".plain", encoded(plain, "PNG"))):
            (root / REAL / f"twin of {name}{suffix}.png").write_bytes(same)
            expected[f"{REAL}/twin of {name}{suffix}.png"] = ""
        twins.append((f"{REAL}/twin of {name}.png", f"{REAL}/twin of {name}.plain.png"))
    with (root / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path"], *([path] for path in expected)])
    return Folder(root, expected, twins)


def blocks(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return small.repeat(8, axis=0).repeat(8, axis=1)


def _twins() -> dict[str, tuple[bytes, np.ndarray]]:
    """Of each fault that readers disagree on the file, and what it shows."""
    faces = [blocks(seed) for seed in range(10, 16)]
    hole = np.full(faces[1].shape[:2], 255, np.uint8)
    hole[:24] = 0
    on_white = faces[1].copy()
    on_white[:24] = 255
    gray = faces[3][:, :, 0]
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "alpha": (encoded(np.dstack([faces[1], hole]), "PNG"), on_white),
        "exif": (encoded(np.ascontiguousarray(np.rot90(faces[2])), "PNG", exif=turned), faces[2]),
        "16 bits": (encoded(gray.astype(np.uint16) * 257, "PNG"), np.dstack([gray] * 3)),
        "frames": (
            encoded(faces[4], "WEBP", save_all=True, append_images=[Image.fromarray(faces[5])], lossless=True),
            faces[4],
        ),
    }


# ------------------------------------------------------------------------------------------------------- the commands


class Left(NamedTuple):
    """What a command left of a folder."""

    rows: pd.DataFrame  # path below root, readable, reason, and what it saw in the file, to be compared
    place: Path  # all that it wrote


def of_audit(root: Path, place: Path, run: Path) -> Left:
    given = [f"data.root={root}", "size=32", "progress=false", f"output={place}", f"data.cache.dir={place}_cache"]
    audit.run(parse_audit(settings("audit", *given)))
    return Left(_catalogued(place / "catalogue.csv"), place)


def of_spectra(root: Path, place: Path, run: Path) -> Left:
    given = [f"data.root={root}", "square=16", "size=32", f"output={place}", f"data.cache.dir={place}_cache"]
    assert spectra.run(parse_spectra(settings("spectra", *given, "progress=false"))) == 3
    return Left(_catalogued(place / "catalogue.csv"), place)


def of_train(root: Path, place: Path, run: Path) -> Left:
    return Left(_catalogued(run / "manifest.csv"), run)


def _catalogued(file: Path) -> pd.DataFrame:
    table = read_catalogue(file)
    pd.testing.assert_frame_equal(table, read_catalogue(file.with_suffix(".parquet")))
    seen = list(zip(table["phash"], table["width"], table["height"], strict=True))
    return pd.DataFrame(
        {
            "path": [os.path.normpath(path) for path in table["path"]],
            "readable": table["status"] != "unreadable",
            "reason": table["reason"],
            "seen": seen,
        }
    )


def of_predict(root: Path, place: Path, run: Path) -> Left:
    given = [f"run={run}", f"input={root}", "engine=eager", "progress=false"]
    for name in ("p.csv", "p.jsonl"):
        assert predict.run(parse_predict(settings("predict", *given, f"output={place / name}"))) == 3
    table = pd.read_csv(place / "p.csv", keep_default_na=False, na_values={"probability": ""})
    lines = pd.DataFrame([json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()])
    pd.testing.assert_frame_equal(lines, table, check_dtype=False)
    with contextlib.chdir(root):
        given[1] = "input=list.csv"
        assert predict.run(parse_predict(settings("predict", *given, f"output={place}/listed.csv"))) == 3
    rows = pd.DataFrame(
        {
            "path": [os.path.relpath(path, root) for path in table["path"]],
            "readable": table["status"] == "ok",
            "reason": table["reason"],
            "seen": table["probability"].round(5),
        }
    )
    return Left(rows, place)


COMMANDS: dict[str, Callable[[Path, Path, Path], Left]] = {
    "audit": of_audit,
    "spectra": of_spectra,
    "train": of_train,
    "predict": of_predict,
}


@pytest.fixture(scope="module")
def run(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the folder."""
    output = tmp_path_factory.mktemp("outputs")
    cfg = parse_train(settings("train", *TINY, f"data.root={folder.root}", f"output_dir={output}"))
    train.run(cfg)
    return runs.run_folder(cfg)


@pytest.fixture(scope="module", params=COMMANDS)
def left(request: pytest.FixtureRequest, folder: Folder, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return COMMANDS[request.param](folder.root, tmp_path_factory.mktemp(request.param), run)


# ---------------------------------------------------------------------------------------------------- what they leave


def test_every_file_has_one_row_and_what_cannot_be_read_a_reason(left: Left, folder: Folder) -> None:
    rows = left.rows.set_index("path")
    assert rows.index.is_unique
    assert sorted(rows.index) == sorted(folder.expected)
    assert (rows["reason"] != "")[~rows["readable"]].all()
    known = {path: status != "unreadable" for path, status in folder.expected.items() if status}
    assert rows["readable"][list(known)].to_dict() == known


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("animated.gif", "several frames, first one used"),
        ("animated.webp", "several frames, first one used"),
        ("of_two_pages.tiff", "several frames, first one used"),
        ("half_transparent.png", "transparent pixels, shown white"),
        ("png_named.jpg", "PNG content under the name .jpg"),
        ("appended.jpg", "17 bytes after the end of the image"),
        ("no_bytes.jpg", "file is empty"),
        ("text.jpg", "not an image in a known format"),
        ("eps_named.png", "not an image in a known format"),
        ("120_megapixels.png", "12000 x 10000 pixels, more than 64 megapixels"),
        ("400_megapixels.png", "20000 x 20000 pixels, more than 64 megapixels"),
        ("huge_frame_cleared.gif", "65535 x 65535 pixels, more than 64 megapixels"),
    ],
)
def test_what_is_wrong_is_told_with_each_file(left: Left, name: str, reason: str) -> None:
    rows = left.rows.set_index("path")["reason"]
    assert [rows[f"{source}/{name}"] for source in SOURCES] == [reason] * 2


def test_what_readers_disagree_on_is_seen_as_it_is_meant(left: Left, folder: Folder) -> None:
    seen = left.rows.set_index("path")["seen"]
    for odd, plain in folder.twins:
        assert seen[odd] == seen[plain], odd
    assert len({seen[plain] for _, plain in folder.twins}) == len(folder.twins)


def test_names_come_back_from_every_table(left: Left, folder: Folder) -> None:
    names = set(folder.expected)
    tables = 0
    for file in left.place.rglob("*.csv"):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for column in table.columns[table.columns.str.startswith("path")]:
            tables += 1
            found = {os.path.normpath(os.path.relpath(folder.root / path, folder.root)) for path in table[column]}
            assert found <= names, file
    assert tables


def test_no_cell_is_a_formula(left: Left) -> None:
    cells = 0
    for file in left.place.rglob("*.csv"):
        with file.open(newline="") as stream:
            for cell in (cell for row in csv.reader(stream) for cell in row):
                cells += 1
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or _is_number(cell), (file, cell)
    assert cells


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.attributes = "", set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_names_and_does_not_do_what_they_say(folder: Folder, run: Path, tmp_path: Path) -> None:
    page = _Page()
    page.feed((of_audit(folder.root, tmp_path, run).place / "audit.html").read_text())
    assert "<img src=x onerror=alert(1)>.png" in page.text
    assert "class" in page.attributes
    assert "onerror" not in page.attributes


def test_an_opened_image_is_limited_as_its_file_is() -> None:
    with pytest.raises(TooLargeImage, match=r"^1 x 65536 pixels, more than 65535 on a side$"):
        pixels_of(Image.new("L", (1, 65_536)))


def test_the_terminal_hears_of_files_from_us_alone(folder: Folder, run: Path, tmp_path: Path) -> None:
    given = [f"run={run}", f"input={folder.root}", "engine=eager", f"output={tmp_path}/p.csv"]
    done = subprocess.run(
        [sys.executable, "-m", "deepfake.predict", *given], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 3
    assert "files, " in done.stderr
    for of_others in ("Warning", "PIL", "samples per pixel", "Decode", "TIFF"):
        assert of_others not in done.stderr


# -------------------------------------------------------------------------------------------- which files are judged


def input_files(root: Path) -> list[str]:
    return [os.path.relpath(file, root) for file in predicting.input_files(str(root))]


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_folders_linked_with_each_other_are_read_once(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(12)]  # with a link each to the others, 12! ways to walk them
    root = make(tmp_path, *(f"{name}/a.png" for name in names))
    for one in names:
        for other in names:
            (root / one / f"to {other}").symlink_to(f"../{other}")
    assert input_files(root) == [f"{name}/a.png" for name in names]


def test_a_folder_elsewhere_is_read_once_however_links_lead_there(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "a.png", "deep/b.png", "deep/deeper/c.png")
    root = make(tmp_path / "root", "z.png")
    for name, target in (("1", "deep"), ("2", "."), ("3", "deep/deeper"), ("4", ".")):
        (root / name).symlink_to(f"../elsewhere/{target}")
    (tmp_path / "elsewhere" / "deep" / "around").symlink_to("..")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(root)
    assert input_files(root) == ["1/b.png", "1/deeper/c.png", "2/a.png", "z.png"]


def test_a_link_up_leads_to_no_other_folders(tmp_path: Path) -> None:
    make(tmp_path, "others/a.png")
    root = make(tmp_path / "root", "b.png")
    (root / "up").symlink_to("..")
    assert input_files(root) == ["b.png"]


def test_folders_may_be_nested_deeper_than_calls(tmp_path: Path) -> None:
    deep = "/".join("a" * 300)
    make(tmp_path, f"{deep}/a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        assert input_files(tmp_path) == [f"{deep}/a.png"]
    finally:
        sys.setrecursionlimit(limit)


# --------------------------------------------------------------------------------------- what training does not begin


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        train.run(parse_train(settings("train", *TINY, f"data.root={root}", f"output_dir={root}-outputs")))
    assert [file.name for file in Path(f"{root}-outputs").iterdir()] == [".cache"]  # what was read, and no run
    (line,) = str(caught.value).splitlines()
    return line


def test_one_image_in_two_classes_is_refused_by_both_names(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    shutil.copy(root / "0-phone" / "01.png", root / "1-gan" / "again.png")
    line = refused(root)
    assert "'0-phone/01.png' and '1-gan/again.png'" in line


def parts(faces: Path, root: Path) -> Path:
    """A given split: of each source some images in each part."""
    for number, file in enumerate(sorted(faces.rglob("*.*g"))):
        copy = root / ("train", "val", "test")[number % 3] / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return root


def test_one_image_in_two_parts_is_refused_by_both_names(faces: Path, tmp_path: Path) -> None:
    root = parts(faces, tmp_path / "faces")
    first = next((root / "train" / "1-gan").iterdir())
    shutil.copy(first, root / "test" / "1-gan" / f"again{first.suffix}")
    line = refused(root)
    assert f"'train/1-gan/{first.name}'" in line
    assert f"'test/1-gan/again{first.suffix}'" in line


def test_a_class_missing_from_validation_is_refused(faces: Path, tmp_path: Path) -> None:
    root = parts(faces, tmp_path / "faces")
    for source in ("1-gan", "1-diffusion"):
        shutil.rmtree(root / "val" / source)
    assert "the val part has no generated image: expected at least one" in refused(root)
