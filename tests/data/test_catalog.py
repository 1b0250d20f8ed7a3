"""A folder becomes a table: each file once, rightly labelled, the unreadable apart; a wrong folder is answered."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.data.catalog import COLUMNS, find_images, limit_images, read_manifest, scan
from deepfake.data.split import expect_both_classes, split
from deepfake.errors import UserError


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each class, each its own."""
    for seed, name in enumerate(["0-a/1.png", "0-a/2.png", "1-b/1.png", "1-b/2.png"]):
        save(tmp_path / name, seed)
    return tmp_path


@pytest.fixture
def manifest(root: Path) -> Callable[[str], pd.DataFrame]:
    """Reads a CSV of that content below the root."""

    def read(text: str | bytes) -> pd.DataFrame:
        (root / "list.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return read_manifest(root, "list.csv")

    return read


def refusal(call: Callable, *arguments: object) -> str:
    """The message with which a call refuses its arguments: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- folder


def test_each_file_stands_in_the_table_with_its_label_and_source(faces: Path) -> None:
    table = find_images(faces)
    files = sorted(p.relative_to(faces).as_posix() for p in faces.rglob("*") if p.is_file())
    assert table["path"].tolist() == files
    assert table["label"].tolist() == [int(path[0]) for path in files]
    assert table["source"].tolist() == [path.split("/")[0] for path in files]
    assert set(table["group"]) == {""}


def test_deep_folders_and_any_name_are_found(root: Path) -> None:
    names = ["0-a/x/y/3.PNG", "0_c/Grüße 🙂.jpeg", "1-b/two\nlines.png", "1-d\ne/=1+1.webp"]
    for seed, name in enumerate(names):
        save(root / name, 10 + seed)
    table = find_images(root)
    assert set(names) < set(table["path"])
    readable, unreadable = scan(table, root)
    assert len(readable) == 8
    assert unreadable.empty


def test_what_is_hidden_or_no_image_or_not_labelled_is_left_out(root: Path) -> None:
    before = find_images(root)
    hidden = ["0-a/.hidden.png", "0-a/.cache/1.png"]
    for name in [*hidden, "0-a/notes.txt", "2-c/1.png", "real/1.png", "0/1.png", "1.png"]:
        save(root / name, 99)
    pd.testing.assert_frame_equal(find_images(root), before)


def test_links_lead_to_each_file_once(root: Path) -> None:
    before = find_images(root)
    (root / "0-a/again.png").symlink_to(root / "0-a/1.png")
    (root / "0-a/loop").symlink_to(root / "0-a", target_is_directory=True)
    (root / "0-other").symlink_to(root / "0-a", target_is_directory=True)
    pd.testing.assert_frame_equal(find_images(root), before)


def test_a_link_up_the_tree_leads_to_no_other_class(root: Path) -> None:
    before = find_images(root)
    (root / "0-a/up").symlink_to("..", target_is_directory=True)
    (root / "1-b/way_up").symlink_to(root.parent, target_is_directory=True)
    pd.testing.assert_frame_equal(find_images(root), before)


def test_a_linked_folder_elsewhere_is_read(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "1.png", 20)
    (elsewhere / "back").symlink_to(root, target_is_directory=True)
    (root / "1-elsewhere").symlink_to(elsewhere, target_is_directory=True)
    table = find_images(root)
    assert table["path"].tolist() == ["0-a/1.png", "0-a/2.png", "1-b/1.png", "1-b/2.png", "1-elsewhere/1.png"]


def test_links_that_lead_nowhere_are_listed_as_unreadable(root: Path) -> None:
    (root / "0-a/broken.png").symlink_to("absent.png")
    (root / "0-a/self.png").symlink_to("self.png")
    _, unreadable = scan(find_images(root), root)
    assert unreadable["path"].tolist() == ["0-a/broken.png", "0-a/self.png"]


def test_a_file_linked_into_the_other_class_is_refused(root: Path) -> None:
    (root / "1-b/same.png").symlink_to(root / "0-a/1.png")
    message = refusal(scan, find_images(root), root)
    assert "0-a/1.png" in message
    assert "1-b/same.png" in message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = refusal(find_images, tmp_path / "absent")
    assert message == (
        f"data.root={tmp_path / 'absent'} is no folder: expected one that holds 0-NAME and 1-NAME folders."
    )


@pytest.mark.parametrize(("folders", "found"), [(["fake", "real"], "fake, real"), ([], "nothing")])
def test_a_folder_without_labels_is_answered_with_what_is_there(tmp_path: Path, folders: list, found: str) -> None:
    for name in folders:
        save(tmp_path / name / "1.png")
    message = refusal(find_images, tmp_path)
    assert f"expected folders named 0-NAME (real) and 1-NAME (generated), found {found}." in message
    assert "data.manifest" in message


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(("label", "kind"), [(0, "real"), (1, "generated")])
def test_a_class_without_images_is_named(tmp_path: Path, label: int, kind: str, empty: bool) -> None:
    save(tmp_path / f"{1 - label}-there" / "1.png")
    if empty:
        (tmp_path / f"{label}-empty").mkdir()
    message = refusal(find_images, tmp_path)
    assert f"expected images of both classes, found 1 in all and none that is {kind}." in message
    assert f"{label}-NAME" in message


def test_a_name_that_is_no_unicode_is_named(root: Path) -> None:
    try:
        shutil.copy(os.fsencode(root / "0-a/1.png"), os.fsencode(root / "0-a") + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has no such names")
    assert "expected file names in UTF-8, found" in refusal(find_images, root)


# ----------------------------------------------------------------------------------------------------- manifest


def test_a_manifest_with_two_columns_is_enough(manifest) -> None:
    table = manifest("label,path,extra\n1,1-b/1.png,x\n0,0-a/2.png,y\n0,0-a/1.png,z\n")
    assert table.to_dict("list") == {
        "path": ["0-a/1.png", "0-a/2.png", "1-b/1.png"],
        "label": [0, 0, 1],
        "source": ["0-a", "0-a", "1-b"],
        "group": ["", "", ""],
    }


def test_a_source_says_its_class_and_is_not_the_file(manifest) -> None:
    table = manifest("path,label\nfaces/a.png,0\nfaces/b.png,1\nc.png,0\nd.png,1\n0-e/f.png,1\n")
    assert dict(zip(table["path"], table["source"], strict=True)) == {
        "faces/a.png": "0-faces",
        "faces/b.png": "1-faces",
        "c.png": "0-images",
        "d.png": "1-images",
        "0-e/f.png": "1-0-e",
    }


def test_a_manifests_own_sources_and_groups_are_kept(manifest) -> None:
    table = manifest("path,label,source,group\na.png,0,NA,007\nb.png,1,null,\n")
    assert table["source"].tolist() == ["NA", "null"]
    assert table["group"].tolist() == ["007", ""]


def test_a_file_named_twice_counts_once(manifest) -> None:
    text = "path,label\n0-a/1.png,0\n0-a/1.png,0\n./0-a/1.png,0\n0-a/../0-a/1.png,0\n1-b/1.png,1\n"
    assert manifest(text)["path"].tolist() == ["0-a/1.png", "1-b/1.png"]


def test_a_manifest_from_a_spreadsheet_is_read(manifest) -> None:
    table = manifest('\ufeffpath,label\r\n"0-a/with, comma.png",0\r\n1-b/1.png,1\r\n')
    assert table["path"].tolist() == ["0-a/with, comma.png", "1-b/1.png"]


def test_a_missing_manifest_is_named(root: Path) -> None:
    message = refusal(read_manifest, root, "absent.csv")
    assert message == f"data.manifest=absent.csv: expected a CSV file below {root}, found none there."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,0\n", "expected a column path, found file, label."),
        ("path,class\na,0\n", "expected a column label, found path, class."),
        ("path,label\na.png,fake\n", "expected labels 0 (real) or 1 (generated), found 'fake' for 'a.png'."),
        ("path,label\na.png,\n", "found '' for 'a.png'."),
        ("path,label\na.png,2\n", "found '2' for 'a.png'."),
        ("path,label\n../a.png,0\n", "'../a.png' leads out of"),
        ("path,label\n0-a/../../a.png,0\n", "'../a.png' leads out of"),
        ("path,label\n/etc/passwd,0\n", "leads out of"),
        ("path,label\n,0\nb.png,1\n", "expected the path of an image in every row, found ''."),
        ("path,label\na\0.png,0\nb.png,1\n", "expected the path of an image in every row"),
        ("path,label\na.png,0\nb.png,1\na.png,1\n", "'a.png' is labelled both real and generated."),
        ("path,label\na.png,0\n", "expected images of both classes, found 1 in all and none that is generated."),
        ("path,label\n", "expected images of both classes, found 0 in all and none that is real."),
        ("", "expected a CSV file in UTF-8, found one that cannot be read"),
        (b"path,label\n\xff.png,0\n", "expected a CSV file in UTF-8, found one that cannot be read"),
        ("path,label\na,0\nb,1,2,3\n", "expected a CSV file in UTF-8, found one that cannot be read"),
        ('path,label\n"a,0\n', "expected a CSV file in UTF-8, found one that cannot be read"),
    ],
)
def test_a_wrong_manifest_is_answered(root: Path, manifest, text: str | bytes, message: str) -> None:
    said = refusal(manifest, text)
    assert message in said
    assert said.startswith(str(root / "list.csv"))


def test_a_link_in_a_manifest_must_not_lead_out(root: Path, manifest, tmp_path_factory) -> None:
    secret = save(tmp_path_factory.mktemp("secret") / "1.png")
    (root / "0-a/out").symlink_to(secret.parent, target_is_directory=True)
    assert "'0-a/out/1.png' leads out of" in refusal(manifest, "path,label\n0-a/out/1.png,0\n1-b/1.png,1\n")


# --------------------------------------------------------------------------------------------------------- scan


def test_scan_says_what_each_file_holds_in_the_order_given(faces: Path) -> None:
    table = find_images(faces).sample(frac=1, random_state=0)
    calls: list[int] = []
    readable, unreadable = scan(table, faces, advance=lambda: calls.append(1))
    assert list(readable.columns) == COLUMNS
    assert readable["path"].tolist() == table["path"].tolist()
    assert readable["sha256"].tolist() == [
        hashlib.sha256((faces / path).read_bytes()).hexdigest() for path in table["path"]
    ]
    assert set(zip(readable["width"], readable["height"], strict=True)) == {(48, 40)}
    assert readable["bytes"].tolist() == [(faces / path).stat().st_size for path in table["path"]]
    assert set(readable["format"]) == {"JPEG", "PNG"}
    assert unreadable.empty
    assert len(calls) == len(table)


def test_scan_sets_the_unreadable_apart_with_the_reason(root: Path) -> None:
    (root / "0-a/empty.jpg").touch()
    (root / "0-a/text.jpg").write_text("no image")
    cut = save(root / "1-b/cut.png", 5)
    cut.write_bytes(cut.read_bytes()[:100])
    table = find_images(root)
    (root / "0-a/2.png").unlink()
    readable, unreadable = scan(table, root)
    assert readable["path"].tolist() == ["0-a/1.png", "1-b/1.png", "1-b/2.png"]
    assert readable[["width", "height", "bytes"]].dtypes.tolist() == [int] * 3
    reasons = dict(zip(unreadable["path"], unreadable["reason"], strict=True))
    assert reasons.pop("1-b/cut.png").startswith("damaged: ")
    assert reasons == {
        "0-a/2.png": "cannot be read: No such file or directory",
        "0-a/empty.jpg": "file is empty",
        "0-a/text.jpg": "not an image in a known format",
    }
    assert unreadable["source"].tolist() == ["0-a"] * 3 + ["1-b"]


def test_scan_survives_a_folder_of_nothing_readable(root: Path) -> None:
    readable, unreadable = scan(find_images(root), root, max_megapixels=1e-6)
    assert list(readable.columns) == COLUMNS
    assert readable.empty
    assert unreadable["reason"].unique().tolist() == ["8 x 8 pixels, more than 1e-06 megapixels"]


def test_the_same_content_under_both_labels_is_refused_with_both_names(root: Path) -> None:
    shutil.copy(root / "0-a/2.png", root / "1-b/copy.png")
    message = refusal(scan, find_images(root), root)
    assert message == (
        "the same image is labelled real and generated: '0-a/2.png' and '1-b/copy.png'. Remove the wrong one."
    )


def test_the_same_content_twice_in_one_class_is_kept(root: Path) -> None:
    shutil.copy(root / "0-a/2.png", root / "0-a/copy.png")
    readable, _ = scan(find_images(root), root)
    assert len(readable) == 5
    assert readable["sha256"].nunique() == 4


# -------------------------------------------------------------------------------------------------------- limit


def sources(**sizes: int) -> pd.DataFrame:
    rows = [(f"{source}/{n}.png", source) for source, size in sizes.items() for n in range(size)]
    return pd.DataFrame(rows, columns=["path", "source"])


@pytest.mark.parametrize("limit", [None, 48, 1000])
def test_no_limit_keeps_all(faces: Path, limit: int | None) -> None:
    table = find_images(faces)
    pd.testing.assert_frame_equal(limit_images(table, limit), table)


@pytest.mark.parametrize("limit", [1, 7, 12, 25, 47])
def test_a_limit_keeps_each_source_in_its_share(faces: Path, limit: int) -> None:
    kept = limit_images(find_images(faces), limit)
    assert len(kept) == limit
    counts = kept["source"].value_counts().reindex(find_images(faces)["source"].unique(), fill_value=0)
    assert (abs(counts - limit / 4) < 1).all()


def test_many_small_sources_are_not_lost_beside_a_large_one() -> None:
    table = sources(large=90, **{f"small{n}": 1 for n in range(10)})
    large = (limit_images(table, 50)["source"] == "large").sum()
    assert large == 45


def test_a_limit_keeps_the_order_and_is_a_prefix_of_a_higher_limit(faces: Path) -> None:
    table = find_images(faces)
    few, more = limit_images(table, 10), limit_images(table, 20)
    assert set(few["path"]) < set(more["path"])
    assert more["path"].tolist() == [path for path in table["path"] if path in set(more["path"])]
    assert more.index.tolist() == list(range(20))
    pd.testing.assert_frame_equal(limit_images(table, 20), more)


def test_a_limit_does_not_take_the_first_names(faces: Path) -> None:
    table = find_images(faces)
    kept = set(limit_images(table, 24)["path"])
    assert kept != set(table.groupby("source").head(6)["path"])


# -------------------------------------------------------------------------------------------------- the real faces


@pytest.mark.real
def test_real_faces_are_read_and_every_part_has_both_classes(assets: Path) -> None:
    root = assets / "faces"
    table = limit_images(find_images(root), 500)
    assert set(table["source"]) == {folder.name for folder in root.iterdir() if folder.is_dir()}
    readable, unreadable = scan(table, root)
    assert unreadable.empty
    expect_both_classes(readable.assign(split=split(readable)))
