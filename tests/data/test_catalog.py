"""A folder becomes a table, one row a file: what each holds, or why it cannot be read, and nothing is read twice."""

import hashlib
import os
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepfake.console import log, one_at_a_time
from deepfake.data import catalog
from deepfake.data.catalog import (
    COLUMNS,
    limit_images,
    read_catalogue,
    refuse_two_labels,
    scan,
    write_catalogue,
)
from deepfake.errors import UserError
from tests.data.hostile import make_hostile


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def age(path: Path, seconds: int = 60) -> None:
    """Make a file that much older."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each class, each its own, written a minute ago."""
    root = tmp_path / "images"
    for seed, name in enumerate(["0-a/1.png", "0-a/2.png", "1-b/1.png", "1-b/2.png"]):
        age(save(root / name, seed))
    return root


def listing(root: Path) -> pd.DataFrame:
    """The files in folders named 0-NAME and 1-NAME, as a scan wants them."""
    paths = sorted(p.relative_to(root).as_posix() for p in root.glob("[01]-*/*") if not p.is_dir())
    rows = [(path, int(path[0]), path.split("/")[0], "", "train", "") for path in paths]
    return pd.DataFrame(rows, columns=COLUMNS[:6])


# --------------------------------------------------------------------------------------------------------- scan


def test_scan_says_what_each_file_holds_in_the_order_given(faces: Path) -> None:
    table = listing(faces).sample(frac=1, random_state=0)
    found = scan(table, faces)
    assert list(found.columns) == COLUMNS
    pd.testing.assert_frame_equal(found[COLUMNS[:6]], table)
    assert found["sha256"].tolist() == [
        hashlib.sha256((faces / path).read_bytes()).hexdigest() for path in table["path"]
    ]
    assert found["phash"].tolist() == [str(imagehash.phash(Image.open(faces / path))) for path in table["path"]]
    assert set(zip(found["width"], found["height"], found["mode"], strict=True)) == {(48, 40, "RGB")}
    assert found["bytes"].tolist() == [(faces / path).stat().st_size for path in table["path"]]
    jpeg = table["path"].str.endswith(".jpg")
    assert found["format"].tolist() == jpeg.map({True: "JPEG", False: "PNG"}).tolist()
    assert found["jpeg_quality"].tolist() == jpeg.map({True: 75, False: -1}).tolist()
    assert ((found["jpeg_luma"] > 0) == jpeg).all()
    assert set(found["status"]) == {"ok"}
    assert set(found["reason"]) == {""}


@pytest.mark.parametrize("cached", [False, True])
def test_progress_moves_once_a_file(root: Path, tmp_path: Path, cached: bool) -> None:
    calls: list[int] = []
    for looked in (4, 8):
        scan(listing(root), root, cache=tmp_path if cached else None, advance=lambda: calls.append(1))
        assert len(calls) == looked


def test_the_unreadable_keep_their_rows(root: Path) -> None:
    (root / "0-a/empty.jpg").touch()
    cut = save(root / "1-b/cut.png", 5)
    cut.write_bytes(cut.read_bytes()[:100])
    table = listing(root)
    (root / "0-a/2.png").unlink()
    found = scan(table, root)
    assert found["path"].tolist() == table["path"].tolist()
    assert found["status"].tolist() == ["ok", "unreadable", "unreadable", "ok", "ok", "unreadable"]
    assert found["split"].tolist() == ["train", "", "", "train", "train", ""]
    rows = found.set_index("path")
    absent, empty, damaged = rows.loc["0-a/2.png"], rows.loc["0-a/empty.jpg"], rows.loc["1-b/cut.png"]
    nothing = {"phash": "", "width": 0, "height": 0, "mode": "", "format": "", "jpeg_quality": -1, "jpeg_luma": -1.0}
    for row in (absent, empty, damaged):
        assert row[list(nothing)].to_dict() == nothing
    assert absent[["sha256", "bytes", "reason"]].tolist() == ["", 0, "cannot be read: No such file or directory"]
    assert empty[["sha256", "bytes", "reason"]].tolist() == [hashlib.sha256().hexdigest(), 0, "file is empty"]
    assert damaged[["sha256", "bytes"]].tolist() == [hashlib.sha256(cut.read_bytes()).hexdigest(), 100]
    assert damaged["reason"].startswith("damaged: ")


def test_types_are_the_same_whatever_is_in_the_table(root: Path) -> None:
    table = listing(root)
    types = scan(table, root).dtypes
    pd.testing.assert_series_equal(scan(table.head(0), root).dtypes, types)
    unreadable = scan(table, root, max_megapixels=1e-6)
    pd.testing.assert_series_equal(unreadable.dtypes, types)
    assert unreadable["reason"].unique().tolist() == ["40 x 40 pixels, more than 1e-06 megapixels"]


def test_every_fault_has_its_row_its_status_and_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_hostile(tmp_path / "0-a")
    load, decoded = Image.Image.load, []

    def loading(image: Image.Image) -> Any:
        decoded.append(image.width * image.height)
        return load(image)

    monkeypatch.setattr(Image.Image, "load", loading)
    found = scan(listing(tmp_path), tmp_path, max_megapixels=64)
    assert dict(zip(found["path"].str.removeprefix("0-a/"), found["status"], strict=True)) == expected
    assert ((found["reason"] == "") == (found["status"] == "ok")).all()
    assert decoded
    assert max(decoded) < 1e6  # of the huge ones, not one pixel


# -------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Work:
    """What scans had to do: files read, and images decoded."""

    def __init__(self) -> None:
        self.read, self.decoded = 0, 0

    def since(self) -> tuple[int, int]:
        done = (self.read, self.decoded)
        self.read = self.decoded = 0
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    read_content, decode_image = catalog.read_content, catalog.decode_image

    def reading(path: Path) -> bytes:
        work.read += 1
        return read_content(path)

    def decoding(*arguments: Any) -> Any:
        work.decoded += 1
        return decode_image(*arguments)

    monkeypatch.setattr(catalog, "read_content", reading)
    monkeypatch.setattr(catalog, "decode_image", decoding)
    return work


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings so far."""
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    return messages


def test_a_second_scan_reads_nothing_and_says_the_same(root: Path, cache: Path, work: Work) -> None:
    for name in make_hostile(root / "1-hostile"):
        if not (root / "1-hostile" / name).is_symlink():
            age(root / "1-hostile" / name)
    table = listing(root)
    first = scan(table, root, cache=cache)
    assert work.since() == (len(table), len(table) - 2)
    second = scan(table, root, cache=cache)
    assert work.since() == (2, 0)  # the links to nothing may lead somewhere by now
    pd.testing.assert_frame_equal(second, first)


def test_scans_that_begin_together_read_each_file_once(
    root: Path, cache: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of a sweep, side by side."""
    both, asked, unchanged = threading.Barrier(2), threading.local(), catalog._Known.unchanged

    def both_asking(self: Any, files: Any) -> Any:
        found = unchanged(self, files)
        if not hasattr(asked, "before"):
            asked.before = True
            both.wait(60)
        return found

    monkeypatch.setattr(catalog._Known, "unchanged", both_asking)
    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(lambda _: scan(listing(root), root, cache=cache), range(2)))
    assert work.since() == (4, 4)
    pd.testing.assert_frame_equal(*tables)


def test_a_scan_waits_for_no_scan_of_other_images(root: Path, cache: Path, work: Work, tmp_path: Path) -> None:
    other = save(tmp_path / "others" / "0-c" / "1.png").parents[1]
    with one_at_a_time(cache, "reads", other):
        scan(listing(root), root, cache=cache)
    assert work.since() == (4, 4)


def test_where_no_turn_can_be_taken_a_scan_does_not_wait_for_one(root: Path, cache: Path, work: Work) -> None:
    scan(listing(root), root, cache=cache)
    (lock,) = cache.glob("*.lock")
    lock.unlink()
    lock.mkdir()
    (cache / "catalogue.sqlite").unlink()
    work.since()
    scan(listing(root), root, cache=cache)
    assert work.since() == (4, 4)
    scan(listing(root), root, cache=cache)
    assert work.since() == (0, 0)


def test_without_a_cache_everything_is_read(root: Path, work: Work) -> None:
    for _ in range(2):
        scan(listing(root), root)
        assert work.since() == (4, 4)


def test_a_moved_file_is_read_but_not_decoded(root: Path, cache: Path, work: Work) -> None:
    first = scan(listing(root), root, cache=cache)
    work.since()
    moved = root.rename(root.with_name("moved"))
    (moved / "0-a/1.png").rename(moved / "0-a/3.png")
    second = scan(listing(moved), moved, cache=cache)
    assert work.since() == (4, 0)
    assert second["path"].tolist() == ["0-a/2.png", "0-a/3.png", "1-b/1.png", "1-b/2.png"]
    assert second["sha256"].tolist() == first["sha256"].iloc[[1, 0, 2, 3]].tolist()


def test_a_file_that_was_touched_is_read_but_not_decoded(root: Path, cache: Path, work: Work) -> None:
    scan(listing(root), root, cache=cache)
    work.since()
    age(root / "0-a/1.png")
    scan(listing(root), root, cache=cache)
    assert work.since() == (1, 0)
    scan(listing(root), root, cache=cache)
    assert work.since() == (0, 0)


def test_a_changed_file_is_seen(root: Path, cache: Path, work: Work) -> None:
    before = scan(listing(root), root, cache=cache)
    work.since()
    age(save(root / "0-a/1.png", 77), seconds=30)
    after = scan(listing(root), root, cache=cache)
    assert work.since() == (1, 1)
    assert (after["sha256"] != before["sha256"]).tolist() == [True, False, False, False]
    pd.testing.assert_frame_equal(after, scan(listing(root), root))


def test_another_file_of_the_same_size_and_age_in_its_place_is_seen(root: Path, cache: Path) -> None:
    path = root / "0-a/1.png"
    scan(listing(root), root, cache=cache)
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert scan(listing(root), root, cache=cache)["sha256"].iloc[0] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("seconds", [0, 1, -3600])
def test_a_file_just_written_is_not_trusted(root: Path, cache: Path, work: Work, seconds: int) -> None:
    age(save(root / "0-a/1.png"), seconds)
    scan(listing(root), root, cache=cache)
    work.since()
    scan(listing(root), root, cache=cache)
    assert work.since() == (1, 0)


def test_a_name_may_change_what_is_found(root: Path, cache: Path, work: Work) -> None:
    scan(listing(root), root, cache=cache)
    work.since()
    (root / "0-a/1.png").rename(root / "0-a/1.jpg")
    found = scan(listing(root), root, cache=cache)
    assert work.since() == (1, 1)
    assert found["reason"].iloc[0] == "PNG content under the name .jpg"
    (root / "0-a/1.jpg").rename(root / "0-a/1.PNG")
    assert scan(listing(root), root, cache=cache)["reason"].iloc[0] == ""
    assert work.since() == (1, 0)


def test_the_limit_changes_what_is_found(root: Path, cache: Path) -> None:
    for limit, status in [(64, "ok"), (1e-6, "unreadable"), (64, "ok")]:
        assert set(scan(listing(root), root, limit, cache)["status"]) == {status}


def test_what_another_version_found_does_not_count(
    root: Path, cache: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(listing(root), root, cache=cache)
    monkeypatch.setattr(catalog, "_FORMAT", catalog._FORMAT + 1)
    work.since()
    scan(listing(root), root, cache=cache)
    assert work.since() == (4, 4)
    scan(listing(root), root, cache=cache)
    assert work.since() == (0, 0)


def test_a_file_that_comes_back_is_read(root: Path, cache: Path) -> None:
    table = listing(root)
    away = (root / "0-a/1.png").rename(root / "away.png")
    assert scan(table, root, cache=cache)["status"].iloc[0] == "unreadable"
    away.rename(root / "0-a/1.png")
    assert scan(table, root, cache=cache)["status"].iloc[0] == "ok"


def test_a_lack_of_memory_is_not_remembered(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Image.Image) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", full)
        found = scan(listing(root), root, cache=cache)
    assert set(found["reason"]) == {"cannot be read: not enough memory"}
    assert found["sha256"].iloc[0] == hashlib.sha256((root / "0-a/1.png").read_bytes()).hexdigest()
    assert set(scan(listing(root), root, cache=cache)["status"]) == {"ok"}


def test_an_interrupted_scan_keeps_what_it_saw(
    root: Path, cache: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_BATCH", 3)

    def interrupt() -> None:
        if work.decoded == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(listing(root), root, cache=cache, advance=interrupt)
    work.since()
    scan(listing(root), root, cache=cache)
    assert work.since() == (1, 1)


def test_jobs_share_one_cache(root: Path, cache: Path, said: list[str]) -> None:
    for seed in range(40):
        age(save(root / f"0-a/many{seed}.png", 100 + seed))
    table = listing(root)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: scan(table, root, cache=cache), range(8)))
    for other in found[1:]:
        pd.testing.assert_frame_equal(other, found[0])
    assert said == []


def test_a_damaged_cache_is_told_once_and_does_no_harm(root: Path, cache: Path, said: list[str], work: Work) -> None:
    cache.mkdir()
    (cache / "catalogue.sqlite").write_bytes(b"no database" * 1000)
    assert set(scan(listing(root), root, cache=cache)["status"]) == {"ok"}
    assert work.since() == (4, 4)
    assert said == [
        f"{cache / 'catalogue.sqlite'}: expected a cache that can be read and written, found: file is not a "
        "database. Images are read again; delete that file if this is said again."
    ]


def test_a_cache_that_cannot_be_made_does_no_harm(root: Path, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    assert set(scan(listing(root), root, cache=tmp_path / "file" / "cache")["status"]) == {"ok"}
    assert len(said) == 1
    assert "expected a cache that can be read and written, found: " in said[0]


def test_a_cache_that_fails_midway_does_no_harm(root: Path, cache: Path, said: list[str]) -> None:
    scan(listing(root), root, cache=cache)
    with sqlite3.connect(cache / "catalogue.sqlite") as database:
        database.execute(f"ALTER TABLE facts_v{catalog._FORMAT} RENAME COLUMN phash TO other")
    assert set(scan(listing(root), root, cache=cache)["status"]) == {"ok"}
    assert len(said) == 1
    assert "no such column: phash" in said[0]


def test_a_folder_whose_name_is_no_unicode_is_remembered(tmp_path: Path, root: Path, cache: Path, work: Work) -> None:
    try:
        odd = root.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    except OSError:
        pytest.skip("this file system has no such names")
    scan(listing(odd), odd, cache=cache)
    assert work.since() == (4, 4)
    scan(listing(odd), odd, cache=cache)
    assert work.since() == (0, 0)


# --------------------------------------------------------------------------------------------------- two labels


def test_the_same_content_under_both_labels_is_refused_with_both_names(root: Path) -> None:
    shutil.copy(root / "0-a/2.png", root / "1-b/copy\n.png")
    with pytest.raises(UserError) as caught:
        refuse_two_labels(scan(listing(root), root))
    assert str(caught.value) == (
        r"the same image is labelled real and generated: '0-a/2.png' and '1-b/copy\n.png'. Remove the wrong one."
    )


def test_the_same_content_twice_in_one_class_is_kept(root: Path) -> None:
    shutil.copy(root / "0-a/2.png", root / "0-a/copy.png")
    refuse_two_labels(scan(listing(root), root))


def test_what_cannot_be_read_is_not_the_same_image(root: Path) -> None:
    for folder in ("0-a", "1-b"):
        (root / folder / "empty.png").touch()
        (root / folder / "absent.png").symlink_to("nowhere.png")
    refuse_two_labels(scan(listing(root), root))


# -------------------------------------------------------------------------------------------------------- limit


def sources(**sizes: int) -> pd.DataFrame:
    rows = [(f"{source}/{n}.png", source) for source, size in sizes.items() for n in range(size)]
    return pd.DataFrame(rows, columns=["path", "source"])


@pytest.mark.parametrize("limit", [None, 48, 1000])
def test_no_limit_keeps_all(faces: Path, limit: int | None) -> None:
    table = listing(faces)
    pd.testing.assert_frame_equal(limit_images(table, limit), table)


@pytest.mark.parametrize("limit", [1, 7, 12, 25, 47])
def test_a_limit_keeps_each_source_in_its_share(faces: Path, limit: int) -> None:
    kept = limit_images(listing(faces), limit)
    assert len(kept) == limit
    counts = kept["source"].value_counts().reindex(listing(faces)["source"].unique(), fill_value=0)
    assert (abs(counts - limit / 4) < 1).all()


def test_many_small_sources_are_not_lost_beside_a_large_one() -> None:
    table = sources(large=90, **{f"small{n}": 1 for n in range(10)})
    large = (limit_images(table, 50)["source"] == "large").sum()
    assert large == 45


def test_a_limit_keeps_the_order_and_is_a_prefix_of_a_higher_limit(faces: Path) -> None:
    table = listing(faces)
    few, more = limit_images(table, 10), limit_images(table, 20)
    assert set(few["path"]) < set(more["path"])
    assert more["path"].tolist() == [path for path in table["path"] if path in set(more["path"])]
    assert more.index.tolist() == list(range(20))
    pd.testing.assert_frame_equal(limit_images(table, 20), more)


def test_a_limit_does_not_take_the_first_names(faces: Path) -> None:
    table = listing(faces)
    kept = set(limit_images(table, 24)["path"])
    assert kept != set(table.groupby("source").head(6)["path"])


# -------------------------------------------------------------------------------------------------------- files


TEXTS = ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "'a", "'=a", "''"]
TEXTS += ['"a"', "a,b", "a\nb", "a\r\nb", "NA", "猫", "🙂", " "]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A catalogue of every fault and name, with texts that spreadsheets and parsers stumble over. Read only."""
    root = tmp_path_factory.mktemp("odd")
    make_hostile(root / "0-a")
    table = scan(listing(root), root)
    table.loc[: len(TEXTS) - 1, ["source", "group"]] = [[text, text] for text in TEXTS]
    table.loc[len(table) - 1, "path"] = "./=1+1.png"
    return table


@pytest.mark.parametrize("name", ["catalogue.csv", "catalogue.parquet"])
def test_what_is_written_is_read_back(odd: pd.DataFrame, tmp_path: Path, name: str) -> None:
    write_catalogue(odd, tmp_path / "new" / "catalogue.csv")
    pd.testing.assert_frame_equal(read_catalogue(tmp_path / "new" / name), odd)


@pytest.mark.parametrize("name", ["catalogue.csv", "catalogue.parquet"])
def test_an_empty_catalogue_is_read_back(odd: pd.DataFrame, tmp_path: Path, name: str) -> None:
    write_catalogue(odd.head(0), tmp_path / "catalogue.csv")
    pd.testing.assert_frame_equal(read_catalogue(tmp_path / name), odd.head(0))


def test_no_cell_is_a_formula(odd: pd.DataFrame, tmp_path: Path) -> None:
    write_catalogue(odd, tmp_path / "catalogue.csv")
    table = pd.read_csv(tmp_path / "catalogue.csv", dtype=str, keep_default_na=False)
    texts = table[["path", "source", "group", "mode", "reason"]].to_numpy().ravel().tolist()
    assert len(texts) == 5 * len(odd)
    assert not [text for text in texts if text.startswith(tuple("=+-@\t\r"))]
    assert table["path"].iloc[-1] == "./=1+1.png"


def test_a_catalogue_that_lacks_a_column_is_refused(odd: pd.DataFrame, tmp_path: Path) -> None:
    odd.drop(columns="phash").to_csv(tmp_path / "a.csv", index=False)
    odd.drop(columns="phash").to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(UserError, match=r"expected a catalogue, found none that can be read: .*phash"):
            read_catalogue(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"\xff\xfe\x00", b"path,label\na,b\n"])
def test_what_is_no_catalogue_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="expected a catalogue, found none that can be read: ") as caught:
        read_catalogue(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


# -------------------------------------------------------------------------------------------------- the real faces


@pytest.mark.real
def test_real_faces_can_all_be_read_and_none_has_two_labels(assets: Path, tmp_path: Path) -> None:
    table = limit_images(listing(assets / "faces"), 500)
    found = scan(table, assets / "faces", cache=tmp_path)
    assert (found["status"] != "unreadable").all()
    assert (found["phash"] != "").all()
    refuse_two_labels(found)
