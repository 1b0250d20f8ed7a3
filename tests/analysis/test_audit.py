"""Each finding is there where its fault was planted, and nowhere else; the report is plain data."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from deepfake.analysis.audit import report
from deepfake.analysis.shortcuts import Shortcut
from deepfake.data.catalog import COLUMNS
from deepfake.data.split import split


def catalogue(images: int = 120) -> pd.DataFrame:
    """Two sources a class, alike in everything that a file says."""
    random = np.random.default_rng(0)
    rows = []
    for source in ("0-camera", "0-phone", "1-diffusion", "1-gan"):
        for number in range(images):
            sha256 = hashlib.sha256(f"{source}{number}".encode()).hexdigest()
            size = int(random.integers(200, 300))
            rows.append(
                {
                    "path": f"{source}/{number:03}.png", "label": int(source[0]), "source": source, "group": "",
                    "split": "", "parent": "", "sha256": sha256, "phash": sha256[:16], "width": size, "height": size,
                    "mode": "RGB",
                    "format": "PNG", "bytes": int(size * size * random.uniform(1, 2)), "jpeg_quality": -1,
                    "jpeg_luma": -1.0, "status": "ok", "reason": "",
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)[COLUMNS]
    table["split"] = split(table)
    return table


@pytest.fixture
def table() -> pd.DataFrame:
    return catalogue()


def levels(found: dict) -> dict[str, str]:
    return {finding["key"]: finding["level"] for finding in found["findings"]}


def serious(found: dict) -> set[str]:
    return {key for key, level in levels(found).items() if level != "note"}


def sentence(found: dict, key: str) -> str:
    return next(finding["sentence"] for finding in found["findings"] if finding["key"] == key)


def pick(table: pd.DataFrame, label: int, split: str, number: int = 0) -> int:
    return table.index[(table["label"] == label) & (table["split"] == split)][number]


def test_clean_data_has_a_clean_verdict(table: pd.DataFrame) -> None:
    found = report(table)
    assert found["verdict"] == "clean"
    assert serious(found) == set()
    assert found["images"] == 480
    assert found["duplicates"]["exact_total"] == found["duplicates"]["near_total"] == 0


def test_the_report_is_json(table: pd.DataFrame) -> None:
    table.loc[table["source"] == "1-gan", ["format", "jpeg_quality", "jpeg_luma"]] = ["JPEG", 90, 11.0]
    found = report(table)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_size_that_tells_the_classes_apart_is_loud_and_told_in_the_sentence_of_a_person(table: pd.DataFrame) -> None:
    table.loc[table["label"] == 1, ["width", "height"]] = 512
    found = report(table)
    assert found["verdict"] == "loud"
    told = sentence(found, "shortcut.size")
    assert told.startswith("image size alone tells real from fake with 1.00 balanced accuracy")
    assert "any result on this data is in doubt; data.equalise=true removes it from the files" in told
    # Width, height and their pair are one finding, and what all metadata add to them is nothing.
    assert sum(key.startswith("shortcut.") and "bytes" not in key for key in levels(found)) == 1


def test_equalised_data_have_no_shortcut_in_their_metadata(table: pd.DataFrame) -> None:
    table.loc[table["label"] == 1, ["width", "height"]] = 512
    found = report(table, equalised=200)
    assert levels(found)["shortcut.equalised"] == "note"
    assert levels(found)["shortcut.before.size"] == "warning"
    assert found["shortcuts"]["metadata"] == []


def test_an_earlier_compression_stays_in_equalised_pixels(table: pd.DataFrame) -> None:
    table.loc[table["label"] == 1, ["format", "jpeg_luma"]] = ["JPEG", 30.0]
    found = report(table, equalised=200)
    assert {levels(found)[f"shortcut.before.{name}"] for name in ("format", "jpeg_luma")} == {"warning"}
    assert "that equalising cannot remove" in sentence(found, "shortcut.before.format")
    assert found["shortcuts"]["metadata"] == []


def test_format_alone_is_found(table: pd.DataFrame) -> None:
    table.loc[table["label"] == 1, "format"] = "JPEG"
    assert levels(report(table))["shortcut.format"] == "loud"


def test_a_telling_spectrum_is_a_note(table: pd.DataFrame) -> None:
    spectrum = Shortcut("spectrum", 0.9, (0.8, 0.95), 0.95, (0.9, 1.0), "loud", 336, 72, "rule")
    found = report(table, spectrum=spectrum)
    assert levels(found)["shortcut.spectrum"] == "note"
    assert found["verdict"] == "clean"
    assert found["shortcuts"]["spectrum"]["balanced_accuracy"] == 0.9


def test_one_image_in_both_classes_is_loud(table: pd.DataFrame) -> None:
    real, fake = pick(table, 0, "train"), pick(table, 1, "train")
    table.loc[fake, "sha256"] = table.loc[real, "sha256"]
    found = report(table)
    assert levels(found)["duplicates.exact.classes"] == "loud"
    assert table.loc[real, "path"] in sentence(found, "duplicates.exact.classes")
    assert found["duplicates"]["exact"][0]["kind"] == "classes"


def test_one_image_in_two_parts_is_loud(table: pd.DataFrame) -> None:
    table.loc[pick(table, 0, "test"), "sha256"] = table.loc[pick(table, 0, "train"), "sha256"]
    assert levels(report(table))["duplicates.exact.parts"] == "loud"


def test_a_copy_within_a_part_is_a_note(table: pd.DataFrame) -> None:
    table.loc[pick(table, 0, "train", 1), "sha256"] = table.loc[pick(table, 0, "train"), "sha256"]
    found = report(table)
    assert levels(found)["duplicates.exact.within"] == "note"
    assert found["verdict"] == "clean"


def test_near_duplicates_in_two_parts_are_a_warning(table: pd.DataFrame) -> None:
    near = f"{int(table.loc[pick(table, 0, 'train'), 'phash'], 16) ^ 0b101:016x}"
    table.loc[pick(table, 0, "test"), "phash"] = near
    found = report(table)
    assert levels(found)["duplicates.near.parts"] == "warning"
    assert found["duplicates"]["near"][0]["distance"] == 2


def test_a_fake_made_from_a_photograph_in_the_same_part_is_a_note(table: pd.DataFrame) -> None:
    table.loc[pick(table, 1, "train"), "phash"] = table.loc[pick(table, 0, "train"), "phash"]
    assert levels(report(table))["duplicates.near.classes"] == "note"


def test_a_group_in_two_parts_is_a_warning(table: pd.DataFrame) -> None:
    table.loc[[pick(table, 0, "train"), pick(table, 0, "test")], "group"] = "person 1"
    assert levels(report(table))["leaks.groups"] == "warning"


def test_a_part_without_a_class_is_loud(table: pd.DataFrame) -> None:
    table.loc[(table["split"] == "val") & (table["label"] == 1), "split"] = "train"
    found = report(table)
    assert levels(found)["balance.part"] == "loud"
    assert "the val part has no fake image" in sentence(found, "balance.part")


def test_a_test_part_of_one_class_leaves_the_shortcuts_unasked(table: pd.DataFrame) -> None:
    table.loc[(table["split"] == "test") & (table["label"] == 1), "split"] = "train"
    assert report(table)["shortcuts"]["metadata"] == []


def test_few_test_images_are_a_note() -> None:
    found = report(catalogue(60))
    assert levels(found)["balance.few"] == "note"
    assert found["verdict"] == "clean"


def test_too_few_test_images_to_tell_are_a_warning() -> None:
    assert levels(report(catalogue(20)))["shortcut.unseen"] == "warning"


def test_many_small_sources_are_a_note(table: pd.DataFrame) -> None:
    table["source"] = table["source"].str[0] + "-video" + (table.groupby("label").cumcount() // 10).astype(str)
    assert levels(report(table))["balance.sources"] == "note"


def test_the_examples_of_copies_differ_where_they_should(table: pd.DataFrame) -> None:
    first, second, fake = pick(table, 0, "train"), pick(table, 0, "train", 1), pick(table, 1, "train")
    table.loc[[second, fake], "sha256"] = table.loc[first, "sha256"]
    told = sentence(report(table), "duplicates.exact.classes")
    assert table.loc[first, "path"] in told
    assert table.loc[fake, "path"] in told


def test_a_held_out_fake_whose_photograph_is_trained_on_is_a_note(table: pd.DataFrame) -> None:
    real, fake = pick(table, 0, "train"), pick(table, 1, "train")
    table.loc[table["source"] == table.loc[fake, "source"], "split"] = "test"
    table.loc[fake, "phash"] = table.loc[real, "phash"]
    table.loc[[real, fake], "group"] = "person 1"
    found = report(table, held_out=[table.loc[fake, "source"]])
    assert levels(found)["leaks.held_out"] == "note"
    assert serious(found) == set()


def test_a_held_out_fake_with_a_trained_fake_of_its_group_is_a_warning(table: pd.DataFrame) -> None:
    table.loc[table["source"] == "1-gan", "split"] = "test"
    trained = table.index[(table["source"] == "1-diffusion") & (table["split"] == "train")][0]
    table.loc[[trained, table.index[table["source"] == "1-gan"][0]], "group"] = "person 1"
    assert serious(report(table, held_out=["1-gan"])) == {"leaks.held_out"}


def test_what_was_said_while_files_were_found_is_a_note(table: pd.DataFrame) -> None:
    assert sentence(report(table, said=["left out: 3 images"]), "files.found") == "left out: 3 images"


def test_nearly_one_class_is_a_warning(table: pd.DataFrame) -> None:
    few = pd.concat([table[table["label"] == 0], table[table["label"] == 1].groupby("split").head(4)])
    assert levels(report(few))["balance.classes"] == "warning"


@pytest.mark.parametrize(("broken", "level"), [(3, "note"), (60, "warning")])
def test_broken_files_are_listed_and_many_are_a_warning(table: pd.DataFrame, broken: int, level: str) -> None:
    rows = table.index[table["split"] == "train"][:broken]
    table.loc[rows, ["status", "reason", "split", "sha256"]] = ["unreadable", "file is empty", "", ""]
    found = report(table)
    assert levels(found)["files.unreadable"] == level
    assert found["unreadable"] == broken
    assert len(found["files"]) == broken
    assert found["duplicates"]["exact_total"] == 0
    assert sum(source["images"] for source in found["sources"]) == 480 - broken


def test_suspicious_files_are_a_note(table: pd.DataFrame) -> None:
    table.loc[:9, ["status", "reason"]] = ["suspicious", "2 frames, first one used"]
    found = report(table)
    assert levels(found)["files.suspicious"] == "note"
    assert found["suspicious"] == 10


def test_sources_and_parts_are_counted(table: pd.DataFrame) -> None:
    found = report(table)
    camera = found["sources"][0]
    rows = table[table["source"] == "0-camera"]
    assert (camera["source"], camera["label"], camera["images"]) == ("0-camera", 0, 120)
    assert camera["width"] == [rows["width"].min(), rows["width"].median(), rows["width"].max()]
    assert camera["formats"] == {"PNG": 120}
    assert camera["jpeg_quality"] is None
    assert [camera[part] for part in ("train", "val", "test")] == [84, 18, 18]
    assert [(part["real"], part["fake"]) for part in found["parts"]] == [(168, 168), (36, 36), (36, 36)]
