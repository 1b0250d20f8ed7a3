"""Folders and tables become rows: each file once, rightly labelled; what could be read in two ways is answered."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from deepfake.console import log
from deepfake.data.catalog import COLUMNS as CATALOGUE
from deepfake.data.catalog import parents, write_catalogue
from deepfake.data.images import SUFFIXES
from deepfake.data.layouts import CLASSES, COLUMNS, LAYOUTS, SPLITS, find_images, neutral_path, read_manifest
from deepfake.errors import UserError

# Nothing here opens an image.


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def found(root: Path) -> dict[str, tuple[int, str, str]]:
    """Label, source and split of each path."""
    table = find_images(root)
    return dict(zip(table["path"], zip(table["label"], table["source"], table["split"], strict=True), strict=True))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each class in folders of the study."""
    return put(tmp_path, "0-a/1.png", "0-a/2.png", "1-b/1.png", "1-b/2.png")


@pytest.fixture
def manifest(root: Path) -> Callable[[str], pd.DataFrame]:
    """Reads a CSV of that content below the root."""

    def read(text: str | bytes) -> pd.DataFrame:
        (root / "list.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return read_manifest(root, "list.csv")

    return read


@pytest.fixture
def parquet(root: Path) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Reads a Parquet file of that content below the root."""

    def read(table: pd.DataFrame) -> pd.DataFrame:
        table.to_parquet(root / "list.parquet")
        return read_manifest(root, "list.parquet")

    return read


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was warned of."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, log.name)
    return lambda: [record.getMessage() for record in caplog.records]


def refusal(call: Callable, *arguments: object) -> str:
    """The message with which a call refuses its arguments: one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ----------------------------------------------------------------------------------------------- folders of the study


def test_each_file_stands_in_the_table_with_its_label_and_source(faces: Path) -> None:
    table = find_images(faces)
    files = sorted(p.relative_to(faces).as_posix() for p in faces.rglob("*") if p.is_file())
    assert list(table.columns) == COLUMNS
    assert table["path"].tolist() == files
    assert table["label"].tolist() == [int(path[0]) for path in files]
    assert table["source"].tolist() == [path.split("/")[0] for path in files]
    assert set(table["group"]) == {""}
    assert set(table["split"]) == {""}


def test_deep_folders_and_any_name_are_found(root: Path) -> None:
    names = ["0-a/x/y/3.PNG", "0_c/Grüße 🙂.jpeg", "1-b/two\nlines.png", "1-d\ne/=1+1.webp"]
    put(root, *names)
    assert set(names) < set(find_images(root)["path"])


@pytest.mark.parametrize("deep", ["real", "0", "1", "1-b", "x/train", "x/val/y"])
def test_what_a_folder_of_the_study_holds_are_just_folders(root: Path, deep: str) -> None:
    put(root, f"0-a/{deep}/1.png")
    assert found(root)[f"0-a/{deep}/1.png"] == (0, "0-a", "")


def test_below_a_part_of_the_study_are_just_folders_too(tmp_path: Path) -> None:
    put(tmp_path, "0-a/train/x/test/1.png", "1-b/val/1.png")
    assert found(tmp_path) == {"0-a/train/x/test/1.png": (0, "0-a", "train"), "1-b/val/1.png": (1, "1-b", "val")}


# --------------------------------------------------------------------------------------------------- every layout


@pytest.mark.parametrize("roles", LAYOUTS, ids="/".join)
def test_every_layout_gives_label_source_and_split(tmp_path: Path, roles: tuple[str, ...]) -> None:
    expected = {}
    for label, kind, generator in [(0, "real", "ffhq"), (1, "fake", "gan")]:
        for part in ("train", "val", "test"):
            folders = {"0-NAME": f"{label}-{generator}", "class": kind, "part": part, "name": generator}
            path = "/".join([*(folders[role] for role in roles), f"{part}.png"])
            source = generator if {"0-NAME", "name"} & set(roles) else kind
            expected[path] = (label, f"{label}-{source}", part if "part" in roles else "")
    put(tmp_path, *expected)
    assert found(tmp_path) == expected


@pytest.mark.parametrize("roles", LAYOUTS, ids="/".join)
def test_the_picture_of_a_layout_is_of_that_layout(tmp_path: Path, roles: tuple[str, ...]) -> None:
    picture = LAYOUTS[roles].removesuffix(" ...")
    put(tmp_path, *(path.replace("*", "1") for path in picture.split()))
    read = found(tmp_path)
    assert [label for label, _, _ in read.values()] in ([0, 1], [1, 0])
    assert {split for _, _, split in read.values()} == ({"train"} if "part" in roles else {""})
    assert all(path.count("/") == len(roles) for path in read)


@pytest.mark.parametrize(("name", "label"), CLASSES.items())
def test_every_class_name_is_understood_in_capitals_too(tmp_path: Path, name: str, label: int) -> None:
    other = "1_fake" if label == 0 else "0_real"
    put(tmp_path, f"{name}/1.png", f"{name.upper().replace('_', '-')}/2.png", f"{other}/1.png")
    read = found(tmp_path)
    assert read[f"{name}/1.png"][0] == label
    assert read[f"{name.upper().replace('_', '-')}/2.png"][0] == label


def test_no_class_name_contradicts_its_number() -> None:
    assert all(CLASSES[name] == int(name[0]) for name in CLASSES if name[0] in "01")


@pytest.mark.parametrize(("name", "split"), SPLITS.items())
def test_every_name_of_a_part_is_understood_in_capitals_too(tmp_path: Path, name: str, split: str) -> None:
    put(tmp_path, f"{name}/real/1.png", f"{name.title()}/fake/2.png")
    assert {row[2] for row in found(tmp_path).values()} == {split}


# -------------------------------------------------------------------------------- data sets as they can be downloaded


def test_cifake(tmp_path: Path) -> None:
    put(tmp_path, "train/REAL/0000.jpg", "train/FAKE/0001.jpg", "test/REAL/0002.jpg", "test/FAKE/0003.jpg")
    assert found(tmp_path) == {
        "test/FAKE/0003.jpg": (1, "1-FAKE", "test"),
        "test/REAL/0002.jpg": (0, "0-REAL", "test"),
        "train/FAKE/0001.jpg": (1, "1-FAKE", "train"),
        "train/REAL/0000.jpg": (0, "0-REAL", "train"),
    }


def test_genimage(tmp_path: Path) -> None:
    put(tmp_path, "ADM/train/ai/1.PNG", "ADM/val/nature/1.JPEG", "BigGAN/train/nature/2.JPEG", "BigGAN/val/ai/2.PNG")
    assert found(tmp_path) == {
        "ADM/train/ai/1.PNG": (1, "1-ADM", "train"),
        "ADM/val/nature/1.JPEG": (0, "0-ADM", "val"),
        "BigGAN/train/nature/2.JPEG": (0, "0-BigGAN", "train"),
        "BigGAN/val/ai/2.PNG": (1, "1-BigGAN", "val"),
    }


def test_folders_of_a_detector_of_cnn_images(tmp_path: Path) -> None:
    put(tmp_path, "ADM/0_real/1.png", "ADM/1_fake/1.png", "Glide/0_real/1.png", "Glide/1_fake/1.png")
    assert set(found(tmp_path).values()) == {
        (0, "0-ADM", ""),
        (1, "1-ADM", ""),
        (0, "0-Glide", ""),
        (1, "1-Glide", ""),
    }


def test_faceforensics(tmp_path: Path) -> None:
    put(tmp_path, "original_sequences/youtube/c23/frames/000/1.png")
    put(tmp_path, "manipulated_sequences/Deepfakes/c23/frames/000_003/1.png")
    assert list(found(tmp_path).values()) == [(1, "1-Deepfakes", ""), (0, "0-youtube", "")]


# -------------------------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize(
    ("real", "fake", "sources"),
    [
        ("real", "fake", {"0-real", "1-fake"}),
        ("0_real", "1_fake", {"0_real", "1_fake"}),
        ("0-real", "1-fake", {"0-real", "1-fake"}),
        ("0", "1", {"0-0", "1-1"}),
        ("Real Images", "AI-Generated", {"0-Real Images", "1-AI-Generated"}),
    ],
)
def test_a_source_without_generator_is_named_by_label_and_folder(
    tmp_path: Path, real: str, fake: str, sources: set[str]
) -> None:
    put(tmp_path, f"{real}/1.png", f"{fake}/1.png")
    assert {source for _, source, _ in found(tmp_path).values()} == sources


def test_flat_images_and_folders_of_generators_mix(tmp_path: Path) -> None:
    put(tmp_path, "real/1.png", "real/ffhq/1.png", "fake/gan/1.png", "fake/gan/deep/er/1.png")
    assert {path: row[1] for path, row in found(tmp_path).items()} == {
        "fake/gan/1.png": "1-gan",
        "fake/gan/deep/er/1.png": "1-gan",
        "real/1.png": "0-real",
        "real/ffhq/1.png": "0-ffhq",
    }


def test_an_absent_generator_below_leaves_the_part_where_it_is(tmp_path: Path) -> None:
    put(tmp_path, "real/train/1.png", "fake/gan/train/1.png", "fake/gan/test/1.png")
    assert found(tmp_path) == {
        "fake/gan/test/1.png": (1, "1-gan", "test"),
        "fake/gan/train/1.png": (1, "1-gan", "train"),
        "real/train/1.png": (0, "0-real", "train"),
    }


def test_a_generators_name_that_has_its_label_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "real/0-ffhq/1.png", "fake/1_gan/1.png", "fake/0-gan/1.png")
    assert [row[1] for row in found(tmp_path).values()] == ["1-0-gan", "1_gan", "0-ffhq"]


def test_class_names_win_over_the_pattern_of_the_study(tmp_path: Path) -> None:
    put(tmp_path, "0_real/ffhq/1.png", "1_fake/gan/1.png")
    assert {row[1] for row in found(tmp_path).values()} == {"0-ffhq", "1-gan"}


def test_beside_folders_of_the_study_a_class_name_with_a_number_is_one(tmp_path: Path) -> None:
    put(tmp_path, "0-real/x/1.png", "1-gan/x/1.png")
    assert {row[1] for row in found(tmp_path).values()} == {"0-real", "1-gan"}


def test_numbered_folders_below_a_class_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "real/ffhq/0/1.png", "real/ffhq/1/1.png", "fake/gan/0/1.png", "fake/gan/1/1.png")
    assert {row[:2] for row in found(tmp_path).values()} == {(0, "0-ffhq"), (1, "1-gan")}


# ------------------------------------------------------------------------------------------------------ left out


def test_what_is_hidden_or_no_image_is_not_looked_at(root: Path, warnings: Callable) -> None:
    before = find_images(root)
    put(root, "0-a/.hidden.png", "0-a/.cache/1.png", ".git/real/1.png", "0-a/notes.txt", "MANIFEST.csv", "png")
    pd.testing.assert_frame_equal(find_images(root), before)
    assert warnings() == []


def test_images_without_a_label_are_left_out_with_one_warning(root: Path, warnings: Callable) -> None:
    before = find_images(root)
    put(root, "2-c/1.png", "figures/val/1.png", "figures/x/1.png", "zoo.png")
    pd.testing.assert_frame_equal(find_images(root), before)
    assert warnings() == ["left out: 4 images outside labelled folders, the first is '2-c/1.png'"]


def test_files_with_other_ends_in_labelled_folders_are_told_in_one_warning(root: Path, warnings: Callable) -> None:
    before = find_images(root)
    put(
        root,
        "1-b/3.AVIF",
        "1-b/x/4.avif",
        "0-a/5.heic",
        "0-a/6",
        "0-a/.7.heic",
        "8.heic",
        "0-a/9.Json",
        "0-a/10.html",
    )
    pd.testing.assert_frame_equal(find_images(root), before)
    assert warnings() == [
        f"left out: 4 files that do not end in {', '.join(SUFFIXES)} (2 '.avif', 1 without a suffix, 1 '.heic'), "
        "the first is '0-a/5.heic'"
    ]


def test_of_many_ends_the_commonest_are_told(root: Path, warnings: Callable) -> None:
    put(root, "0-a/x.mp4", "0-a/y.mp4", *(f"0-a/x.{number}" for number in range(9)))
    find_images(root)
    assert "(2 '.mp4', 1 '.0', 1 '.1', 1 '.2', 1 '.3', ...)" in warnings()[0]


def test_other_ends_are_told_where_they_leave_a_class_empty(tmp_path: Path, warnings: Callable) -> None:
    assert "none that is generated" in refusal(find_images, put(tmp_path, "0-a/1.png", "1-b/1.jxl"))
    assert "(1 '.jxl'), the first is '1-b/1.jxl'" in warnings()[0]


def test_the_file_behind_a_linked_image_is_not_told(root: Path, warnings: Callable) -> None:
    put(root, "0-a/store/abc")
    (root / "0-a/3.png").symlink_to("store/abc")
    assert "0-a/3.png" in found(root)
    assert warnings() == []


# --------------------------------------------------------------------------------------------------------- links


def test_links_lead_to_each_file_once(root: Path, warnings: Callable) -> None:
    before = find_images(root)
    (root / "0-a/again.png").symlink_to(root / "0-a/1.png")
    (root / "0-a/loop").symlink_to(root / "0-a", target_is_directory=True)
    (root / "0-other").symlink_to(root / "0-a", target_is_directory=True)
    (root / "all").symlink_to(root / "0-a", target_is_directory=True)
    pd.testing.assert_frame_equal(find_images(root), before)
    assert warnings() == []


def test_a_file_keeps_its_own_name_beside_a_link_that_sorts_first(tmp_path: Path) -> None:
    put(tmp_path, "test/real/2.png", "test/fake/1.png", "train/fake/1.png", "train/real/0.png")
    (tmp_path / "train/real/1.png").symlink_to(tmp_path / "test/real/2.png")
    (tmp_path / "a").symlink_to(tmp_path / "test", target_is_directory=True)
    assert list(found(tmp_path)) == ["test/fake/1.png", "test/real/2.png", "train/fake/1.png", "train/real/0.png"]


def test_a_link_up_the_tree_leads_to_no_other_class(root: Path) -> None:
    before = find_images(root)
    (root / "0-a/up").symlink_to("..", target_is_directory=True)
    (root / "1-b/way_up").symlink_to(root.parent, target_is_directory=True)
    pd.testing.assert_frame_equal(find_images(root), before)


def test_a_linked_folder_elsewhere_is_read(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = put(tmp_path_factory.mktemp("elsewhere"), "1.png", "deep/2.png")
    (elsewhere / "back").symlink_to(root, target_is_directory=True)
    (elsewhere / "deep/up").symlink_to(elsewhere.parent, target_is_directory=True)
    (root / "1-elsewhere").symlink_to(elsewhere, target_is_directory=True)
    new = set(find_images(root)["path"]) - {"0-a/1.png", "0-a/2.png", "1-b/1.png", "1-b/2.png"}
    assert new == {"1-elsewhere/1.png", "1-elsewhere/deep/2.png"}


def test_a_link_in_a_linked_folder_leads_not_above_where_it_began(root: Path, tmp_path_factory) -> None:
    outer = put(tmp_path_factory.mktemp("outer"), "secret.png", "folder/1.png")
    other = put(tmp_path_factory.mktemp("other"), "2.png")
    (outer / "folder/on").symlink_to(other, target_is_directory=True)
    (other / "back").symlink_to(outer, target_is_directory=True)
    (root / "1-linked").symlink_to(outer / "folder", target_is_directory=True)
    new = [path for path in found(root) if path.startswith("1-linked")]
    assert new == ["1-linked/1.png", "1-linked/on/2.png"]


def test_folders_made_of_links_alone_are_read(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = put(tmp_path_factory.mktemp("elsewhere"), "photos/1.png", "made/1.png")
    (tmp_path / "real").symlink_to(elsewhere / "photos", target_is_directory=True)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/1.png").symlink_to(elsewhere / "made/1.png")
    assert found(tmp_path) == {"fake/1.png": (1, "1-fake", ""), "real/1.png": (0, "0-real", "")}


def test_the_order_of_the_disk_does_not_matter(root: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = put(tmp_path_factory.mktemp("elsewhere"), "1.png")
    for name in "abc":
        (root / f"0-a/{name}.png").symlink_to(elsewhere / "1.png")
    scandir = os.scandir
    for backwards in (False, True):
        monkeypatch.setattr(
            os, "scandir", lambda f, r=backwards: nullcontext(sorted(scandir(f), key=lambda e: e.name, reverse=r))
        )
        assert [path for path in found(root) if path.startswith("0-a")] == ["0-a/1.png", "0-a/2.png", "0-a/a.png"]


def test_folders_linked_with_each_other_are_read_once_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "abcde"
    put(root, *(f"0-a/{name}/1.png" for name in names))
    for name in names:
        for other in set(names) - {name}:
            (root / f"0-a/{name}/to-{other}").symlink_to(root / f"0-a/{other}", target_is_directory=True)
    read = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: read.append(folder) or scandir(folder))
    assert len(found(root)) == 4 + len(names)
    assert len(read) == len({"root", "0-a", "1-b"}) + len(names)


def test_links_that_lead_nowhere_are_listed(root: Path) -> None:
    (root / "0-a/broken.png").symlink_to("absent.png")
    (root / "0-a/self.png").symlink_to("self.png")
    assert {"0-a/broken.png", "0-a/self.png"} < set(find_images(root)["path"])


def test_a_file_linked_into_the_other_class_is_listed_in_both(root: Path) -> None:
    (root / "1-b/same.png").symlink_to(root / "0-a/1.png")
    (root / "1-b/all").symlink_to(root / "0-a", target_is_directory=True)
    read = found(root)
    assert read["0-a/1.png"][0] == 0
    assert (root / "1-b/same.png").resolve() in {(root / path).resolve() for path, row in read.items() if row[0] == 1}
    assert read["1-b/all/2.png"][0] == 1


# ------------------------------------------------------------------------------------------------- refused folders


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = refusal(find_images, tmp_path / "absent")
    assert message == (
        f"data.root={tmp_path / 'absent'} is no folder: expected one that holds folders such as real and fake."
    )


@pytest.mark.parametrize(
    ("paths", "shapes"),
    [
        (["0-a/1.png", "real/1.png", "fake/1.png"], "class (2, such as 'fake/1.png'), 0-NAME (1, such as"),
        (["real/1.png", "fake/1.png", "ADM/fake/1.png"], "class (2, such as 'fake/1.png'), name/class (1"),
        (["real/1.png", "fake/1.png", "real/fake/2.png"], "class/class (1, such as 'real/fake/2.png')"),
        (["0-a/1.png", "1-b/1.png", "1-b/deep/nature/2.png"], "0-NAME/name/class (1, such as"),
        (["real/1.png", "fake/1.png", "deepfake/real/2.png"], "class/class (1, such as 'deepfake/real/2.png')"),
        (["train/real/1.png", "train/fake/1.png", "fake/1.png"], "part/class (2, such as"),
        (["0-a/train/1.png", "1-b/1.png"], "0-NAME (1, such as '1-b/1.png')"),
        (["0-a/1.png", "1-b/1.png", "train/1-b/2.png"], "part/0-NAME (1, such as 'train/1-b/2.png')"),
        (["0-a/1.png", "1-b/1.png", "x/1-b/2.png"], "name/0-NAME (1, such as 'x/1-b/2.png')"),
        (["train/0-a/test/1.png", "train/1-b/test/1.png"], "part/0-NAME/part (2, such as"),
        (["0-a/train/test/1.png", "1-b/train/test/1.png"], "0-NAME/part/part (2, such as"),
        (["train/real/test/1.png", "train/fake/test/1.png"], "part/class/part (2, such as"),
        (["real/train/test/1.png", "fake/train/test/1.png"], "class/part/part (2, such as"),
        (["ADM/real/x/1.png", "ADM/fake/x/1.png"], "name/class/name (2, such as"),
        (["a/b/real/1.png", "a/b/fake/1.png"], "name/name/class (2, such as"),
        (["real/a/train/1.png", "fake/train/b/1.png"], "class/name/part (1, such as 'real/a/train/1.png')"),
        (["real/a/train/1.png", "fake/b/1.png"], "class/name (1, such as 'fake/b/1.png')"),
        (["0/1.png", "1/1.png", "2/1.png"], "name (1, such as '2/1.png')"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, paths: list[str], shapes: str) -> None:
    message = refusal(find_images, put(tmp_path, *paths))
    assert f"data.root={tmp_path}: expected images in one known layout of folders, found " in message
    assert shapes in message


@pytest.mark.parametrize(
    ("paths", "shapes"),
    [
        ([], "found no image (file names end in .jpg, "),
        (["real/notes.txt"], "found no image"),
        (["1.png", "2.png"], "found no folder (2, such as '1.png')."),
        (["cats/1.png", "dogs/1.png", "dogs/2.png"], "found name (3, such as 'cats/1.png')."),
        (["train/a/1.png", "x/2.png", "x/y/z/1.png", "3.png", "3/train/1.png"], "), others. The nearest"),
    ],
)
def test_folders_without_a_label_are_answered_with_what_is_there(
    tmp_path: Path, paths: list[str], shapes: str
) -> None:
    message = refusal(find_images, put(tmp_path, *paths))
    assert shapes in message
    assert "a CSV or Parquet file with the columns path and label as data.manifest" in message


@pytest.mark.parametrize(
    ("paths", "nearest"),
    [
        (["1.png"], [("class",), ("part", "class"), ("0-NAME",)]),
        (["ffhq/1.png", "gan/1.png"], [("class",), ("0-NAME",), ("part", "class")]),
        (["train/x/1.png", "val/x/1.png"], [("part", "class"), ("part", "0-NAME"), ("name", "part", "class")]),
        (
            ["a/b/train/real/1.png"],
            [("name", "part", "class"), ("part", "class"), ("name", "class")],
        ),
        (["real/train/test/1.png"], [("class", "part"), ("class", "part", "name"), ("class", "name", "part")]),
    ],
)
def test_the_three_nearest_layouts_are_shown(tmp_path: Path, paths: list[str], nearest: list) -> None:
    message = refusal(find_images, put(tmp_path, *paths))
    shown = message.split("The nearest layouts are: ")[1].split(". Rename or move")[0]
    assert shown.split(", ") == [repr(LAYOUTS[roles]) for roles in nearest]


def test_an_example_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    assert r"'a\nb/1.png'" in refusal(find_images, put(tmp_path, "a\nb/1.png"))


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(("label", "kind"), [(0, "real"), (1, "generated")])
def test_a_class_without_images_is_named(tmp_path: Path, label: int, kind: str, empty: bool) -> None:
    put(tmp_path, f"{1 - label}-there/1.png")
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


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(folder: str) -> object:
        if folder.endswith("1-b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    message = refusal(find_images, root)
    assert f"expected a folder that can be read, found '{root / '1-b'}': Permission denied." in message


# ----------------------------------------------------------------------------------------------------- manifest


def test_a_manifest_with_two_columns_is_enough(manifest) -> None:
    table = manifest("label,path,extra\n1,1-b/1.png,x\n0,0-a/2.png,y\n0,0-a/1.png,z\n")
    assert table.to_dict("list") == {
        "path": ["0-a/1.png", "0-a/2.png", "1-b/1.png"],
        "label": [0, 0, 1],
        "source": ["0-a", "0-a", "1-b"],
        "group": ["", "", ""],
        "split": ["", "", ""],
        "parent": ["", "", ""],
    }


def test_a_generated_source_may_name_the_real_one_it_was_made_from(manifest) -> None:
    table = manifest("path,label,source,parent\na.png,0,cam,\nb.png,1,swap,cam\nc.png,1,swap,\nd.png,1,new,\n")
    assert parents(table) == {"swap": "cam"}
    both = manifest("path,label,source,parent\na.png,0,dfdc,\nb.png,1,dfdc,dfdc\n")
    assert parents(both) == {"1-dfdc": "0-dfdc"}, "sources that are marked by their class"


def test_a_source_says_its_class_and_is_not_the_file(manifest) -> None:
    table = manifest("path,label\nfaces/a.png,0\nfaces/b.png,1\nc.png,0\nd.png,1\n0-e/f.png,1\n=g/h.png,0\n")
    assert dict(zip(table["path"], table["source"], strict=True)) == {
        "faces/a.png": "0-faces",
        "faces/b.png": "1-faces",
        "c.png": "0-images",
        "d.png": "1-images",
        "0-e/f.png": "1-0-e",
        "./=g/h.png": "0-=g",
    }


def test_a_manifests_own_sources_and_groups_are_kept(manifest) -> None:
    table = manifest("path,label,source,group\na.png,0,NA,007\nb.png,1,null,\nc/d.png,1,,1.0\n")
    assert table["source"].tolist() == ["NA", "null", "1-c"]
    assert table["group"].tolist() == ["007", "", "1.0"]


def test_a_source_of_both_labels_becomes_two(manifest) -> None:
    table = manifest("path,label,source\na,0,DFDC\nb,1,DFDC\nc,0,ffhq\nd,1,1-gan\ne,0,0-x\nf,1,0-x\n")
    assert table["source"].tolist() == ["0-DFDC", "1-DFDC", "ffhq", "1-gan", "0-x", "1-0-x"]


def test_a_mark_that_makes_a_source_of_the_other_label_is_told_apart_too(manifest) -> None:
    table = manifest("path,label,source\na,0,x\nb,1,x\nc,1,0-x\n0-y/d,0,\ne,1,0-0-y\n")
    assert table.set_index("path")["source"].to_dict() == {
        "0-y/d": "0-y",
        "a": "0-x",
        "b": "1-x",
        "c": "1-0-x",
        "e": "0-0-y",
    }


def test_labels_may_be_words(manifest) -> None:
    table = manifest("path,label\na.png,Real\nb.png,FAKE\nc.png,0\nd.png,ai-generated\n")
    assert table["label"].tolist() == [0, 1, 0, 1]


def test_splits_may_be_any_name_of_a_part(manifest) -> None:
    table = manifest("path,label,split\na.png,0,train\nb.png,1,Validation\nc.png,0,testing\n")
    assert table["split"].tolist() == ["train", "val", "test"]


def test_a_column_of_empty_splits_is_none(manifest) -> None:
    assert manifest("path,label,split\na.png,0,\nb.png,1,\n")["split"].tolist() == ["", ""]


def test_a_file_named_twice_counts_once(manifest) -> None:
    text = "path,label\n0-a/1.png,0\n0-a/1.png,0\n./0-a/1.png,0\n0-a/../0-a/1.png,0\n1-b/1.png,1\n"
    assert manifest(text)["path"].tolist() == ["0-a/1.png", "1-b/1.png"]


def test_a_manifest_from_a_spreadsheet_is_read(manifest) -> None:
    table = manifest('\ufeffpath,label\r\n"0-a/with, comma.png",0\r\n1-b/1.png,1\r\n')
    assert table["path"].tolist() == ["0-a/with, comma.png", "1-b/1.png"]


@pytest.mark.parametrize(("name", "kind"), [("absent.csv", "CSV"), ("absent.parquet", "Parquet")])
def test_a_missing_manifest_is_named(root: Path, name: str, kind: str) -> None:
    message = refusal(read_manifest, root, name)
    assert message == f"data.manifest={name}: expected a {kind} file below {root}, found none there."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,0\n", "expected a column path, found file, label."),
        ("path,class\na,0\n", "expected a column label, found path, class."),
        ("path,label\na.png,maybe\n", "expected labels 0 (real) or 1 (generated), found 'maybe' for 'a.png'."),
        ("path,label\na.png,\n", "found '' for 'a.png'."),
        ("path,label\na.png,2\n", "found '2' for 'a.png'."),
        ("path,label\n../a.png,0\n", "'../a.png' leads out of"),
        ("path,label\n..,0\n", "'..' leads out of"),
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
        ("path,label,split\na,0,dev\nb,1,train\n", "expected a split of train, val or test, found 'dev' for 'a'."),
        (
            "path,label,split\na,0,train\nb,1,\nc,1,\n",
            "expected a split in every row or in none, found 2 of 3 without, the first for 'b'.",
        ),
        ("path,label,split\na,0,train\na,0,test\nb,1,test\n", "expected one split for 'a', found test and train."),
        (
            "path,label,parent\na.png,0,x\nb.png,1,\n",
            "expected a parent for generated images alone, found 'x' for 'a.png'",
        ),
        ("path,label,parent\n0-a/a.png,0,\n1-b/b.png,1,0-c\n", "expected real sources as parents (0-a), found '0-c'"),
        (
            "path,label,parent\n0-a/a.png,0,\n0-c/a.png,0,\n1-b/b.png,1,0-a\n1-b/c.png,1,0-c\n",
            "expected one parent for the source '1-b', found 0-a, 0-c",
        ),
    ],
)
def test_a_wrong_manifest_is_answered(root: Path, manifest, text: str | bytes, message: str) -> None:
    said = refusal(manifest, text)
    assert message in said
    assert said.startswith(str(root / "list.csv"))


def test_a_link_in_a_manifest_must_not_lead_out(root: Path, manifest, tmp_path_factory) -> None:
    secret = put(tmp_path_factory.mktemp("secret"), "1.png")
    (root / "0-a/out").symlink_to(secret, target_is_directory=True)
    assert "'0-a/out/1.png' leads out of" in refusal(manifest, "path,label\n0-a/out/1.png,0\n1-b/1.png,1\n")


def test_a_linked_file_in_a_manifest_must_not_lead_out(root: Path, manifest, tmp_path_factory) -> None:
    (root / "0-a/out.png").symlink_to(put(tmp_path_factory.mktemp("secret"), "1.png") / "1.png")
    assert "'0-a/out.png' leads out of" in refusal(manifest, "path,label\n0-a/out.png,0\n1-b/1.png,1\n")


# ---------------------------------------------------------------------------------------- the manifest of a run


@pytest.fixture
def catalogue() -> pd.DataFrame:
    """As a run writes it; the fourth file could not be read."""
    table = pd.DataFrame(
        {
            "path": ["'1.png", "./=2.png", "0-a/3.png", "1-b/4.png", "1-b/5.png"],
            "label": [0, 0, 0, 1, 1],
            "source": ["0-a", "=real", "0-a", "1-b", "1-b"],
            "group": ["-g", "'g", "", "", "@"],
            "split": ["train", "val", "test", "", "train"],
            "status": ["ok", "suspicious", "ok", "unreadable", "ok"],
        }
    )
    numbers = dict.fromkeys(("width", "height", "bytes", "jpeg_quality", "jpeg_luma"), 0)
    return table.assign(**numbers).reindex(columns=CATALOGUE, fill_value="")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_catalogue_is_read_without_what_is_unreadable(
    root: Path, catalogue: pd.DataFrame, suffix: str, warnings: Callable
) -> None:
    write_catalogue(catalogue, root / "list.csv")
    expected = catalogue.loc[[0, 1, 2, 4], COLUMNS].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_manifest(root, f"list{suffix}"), expected, check_dtype=False)
    assert warnings() == [
        f"left out: 1 files that {root / 'list'}{suffix} calls unreadable, the first is '1-b/4.png'"
    ]


def test_in_any_other_table_an_apostrophe_and_a_status_mean_nothing(manifest) -> None:
    table = manifest("path,label,source,status\n'a.png,0,'s,unreadable\nb.png,1,t,ok\n")
    assert table["path"].tolist() == ["'a.png", "b.png"]
    assert table["source"].tolist() == ["'s", "t"]


# ------------------------------------------------------------------------------------------------ manifest in Parquet


def test_parquet_is_read_as_csv_is(parquet, manifest) -> None:
    columns = {"path": ["0-a/1.png", "1-b/1.png"], "label": [0, 1], "group": ["g", ""], "split": ["val", "test"]}
    table = pd.DataFrame(columns)
    pd.testing.assert_frame_equal(parquet(table), manifest(table.to_csv(index=False)))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([7, 12], ["7", "12"]),
        ([7.0, None], ["7", ""]),
        (pd.array([2**60 + 1, None], dtype="Int64"), [str(2**60 + 1), ""]),
        ([1.5, None], ["1.5", ""]),
        (["007", None], ["007", ""]),
        (pd.Categorical(["x", None]), ["x", ""]),
        ([None, None], ["", ""]),
    ],
)
def test_groups_in_parquet_come_out_as_text(parquet, values: object, texts: list[str]) -> None:
    table = parquet(pd.DataFrame({"path": ["a.png", "b.png"], "label": ["real", "fake"], "group": values}))
    assert table["group"].tolist() == texts


def test_a_missing_source_or_split_in_parquet_is_empty(parquet) -> None:
    columns = {"path": ["a/1.png", "b/1.png"], "label": [0.0, 1.0], "source": ["s", None], "split": [None, None]}
    table = parquet(pd.DataFrame(columns))
    assert table["label"].tolist() == [0, 1]
    assert table["source"].tolist() == ["s", "1-b"]
    assert table["split"].tolist() == ["", ""]


def test_an_index_of_paths_is_a_column(parquet) -> None:
    table = pd.DataFrame({"path": ["a.png", "b.png"], "label": [0, 1]}).set_index("path")
    assert parquet(table)["path"].tolist() == ["a.png", "b.png"]


def test_the_name_of_a_folder_above_becomes_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "split=train"
    folder.mkdir()
    pd.DataFrame({"path": ["a.png", "b.png"], "label": [0, 1]}).to_parquet(folder / "list.parquet")
    assert read_manifest(folder, "list.parquet")["split"].tolist() == ["", ""]


def test_what_is_no_parquet_is_named(root: Path) -> None:
    (root / "list.parquet").write_text("path,label\n")
    message = refusal(read_manifest, root, "list.parquet")
    assert message.startswith(f"{root / 'list.parquet'}: expected a Parquet file, found one that cannot be read: ")


# ------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_a_path_that_looks_like_a_formula_is_made_text_and_still_leads_there(tmp_path: Path, first: str) -> None:
    assert neutral_path(f"{first}1+1/a.png") == f"./{first}1+1/a.png"
    put(tmp_path, f"{first}x/real/1.png", f"{first}x/fake/1.png")
    paths = list(found(tmp_path))
    assert paths == [f"./{first}x/fake/1.png", f"./{first}x/real/1.png"]
    assert all((tmp_path / path).is_file() for path in paths)


@pytest.mark.parametrize("path", ["a.png", "0-a/=1.png", "./=1.png", " =1.png", ".png"])
def test_any_other_path_stays_as_it_is(path: str) -> None:
    assert neutral_path(path) == path


def test_a_neutral_path_stays_neutral_through_a_manifest(manifest) -> None:
    table = manifest("path,label\n=a.png,0\n./=a.png,0\n./@b.png,1\nc.png,1\n")
    assert table["path"].tolist() == ["./=a.png", "./@b.png", "c.png"]


# -------------------------------------------------------------------------------------------------- the real faces


@pytest.mark.real
def test_real_faces_and_their_manifest_agree(assets: Path) -> None:
    root = assets / "faces"
    table, listed = find_images(root), read_manifest(root, "MANIFEST.csv")
    assert set(table["source"]) == {folder.name for folder in root.iterdir() if folder.is_dir()}
    columns = ["path", "label", "source", "split"]
    pd.testing.assert_frame_equal(table[columns], listed[columns])
