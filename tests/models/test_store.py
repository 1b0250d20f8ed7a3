"""Rows come back bit for bit, survive whatever happens to process and disk, and take no more room than allowed."""

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepfake.models import store as store_module
from deepfake.models.store import TrunkStore, digest, restored, to_numpy

PACK = 128 + 4000  # bytes of a pack of one row


def store(root: Path, identity: Any = "trunk", max_gb: float = 1.0) -> TrunkStore:
    return TrunkStore(root, identity, max_gb)


def rows_of(images: Sequence[str]) -> Tensor:
    """A row of 1,000 numbers for each letter."""
    return torch.stack([torch.full((1000,), float(ord(image))) for image in images])


def fill(kept: TrunkStore, images: str, view: Any = "clean", size: int = 2) -> None:
    """Store the rows of these images, in pieces of that size."""
    with kept.filling(view) as append:
        for start in range(0, len(images), size):
            append(images[start : start + size], rows_of(images[start : start + size]))


def fill_with(kept: TrunkStore, images: str, *pieces: Tensor) -> None:
    """Store these rows."""
    with kept.filling("clean") as append:
        for rows in pieces:
            append(images[: len(rows)], rows)
            images = images[len(rows) :]


def missing(kept: TrunkStore, images: str, view: Any = "clean") -> str:
    return "".join(images[place] for place in kept.find(images, view).missing)


def packs(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.npy"))


# ------------------------------------------------------------------------------------------------- what comes back


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    pack_rows=st.integers(1, 8),
    order=st.lists(st.integers(0, 25), max_size=40),
)
def test_rows_come_in_the_order_asked_for_from_any_pack(
    sizes: list[int], pack_rows: int, order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = "abcdefghijklmnopqrstuvwxyz0123456789"[: sum(sizes)]
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_PACK_ROWS", pack_rows)
        kept = store(root)
        fill_with(kept, images, *rows_of(images).split(sizes))
    asked = images[::-1]
    rows = kept.find(asked, "clean")
    assert len(rows.missing) == 0
    places = np.array([place for place in order if place < len(asked)], dtype=np.int64)
    expected = np.array([ord(asked[place]) for place in places], dtype=np.float32)
    assert np.array_equal(rows[places], np.repeat(expected[:, None], 1000, axis=1))


def test_a_pack_is_written_when_it_has_enough_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PACK_ROWS", 3)
    fill(store(tmp_path), "abcdefghi")
    assert sorted(len(np.load(pack)) for pack in packs(tmp_path)) == [1, 4, 4]


def test_a_pack_is_written_when_it_is_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PACK_BYTES", 3 * 4000)
    fill(store(tmp_path), "abcdefghi")
    assert sorted(len(np.load(pack)) for pack in packs(tmp_path)) == [1, 4, 4]


def test_where_nothing_is_appended_nothing_is_written(tmp_path: Path) -> None:
    with store(tmp_path).filling("clean"):
        pass
    assert list(tmp_path.rglob("*")) == []


def test_a_view_of_an_image_is_not_another(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill(kept, "ab", ["study", 0])
    assert missing(kept, "abc", ["study", 0]) == "c"
    assert missing(kept, "abc", ["study", 1]) == "abc"


def test_one_identity_does_not_see_what_another_has(tmp_path: Path) -> None:
    fill(store(tmp_path, ["resnet18", 4]), "a")
    assert missing(store(tmp_path, ["resnet18", 4]), "a") == ""
    assert missing(store(tmp_path, ["resnet18", 5]), "a") == "a"


def test_the_digest_of_equal_data_is_equal_in_every_process() -> None:
    expected = hashlib.sha256(b'{"a": 1, "b": [2, null]}').hexdigest()[:32]
    assert digest({"b": [2, None], "a": 1}) == digest({"a": 1, "b": (2, None)}) == expected


def test_what_is_made_again_takes_the_place_of_what_was(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill_with(kept, "a", torch.zeros(1, 8))
    fill_with(kept, "a", torch.ones(1, 8))
    assert np.array_equal(kept.find("a", "clean")[np.array([0, 0])], np.ones((2, 8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**15), 2**15, (6, 4, 5, 3, 2), dtype=torch.int16)
    features = bits[..., 0] if dtype != torch.float32 else bits
    features = features.contiguous().view(dtype).reshape(6, 4, 5, 3)
    # Laid out as convolutions leave them.
    features = features.contiguous(memory_format=torch.channels_last)
    kept = store(tmp_path)
    fill_with(kept, "abcdef", features[:4], features[4:])
    back = restored(torch.from_numpy(kept.find("abcdef", "clean")[np.arange(6)]))
    assert back.dtype == dtype
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert to_numpy(back).tobytes() == to_numpy(features).tobytes()


def test_tokens_come_back_as_they_are() -> None:
    tokens = torch.randn(2, 5, 3).bfloat16()
    assert torch.equal(restored(torch.from_numpy(to_numpy(tokens))), tokens)


def test_rows_of_another_type_are_not_mixed_in(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill_with(kept, "a", torch.ones(1, 8))
    fill_with(kept, "b", torch.ones(1, 8).half())
    fill_with(kept, "c", torch.ones(1, 9))
    assert len(missing(kept, "abc")) == 2


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_rows_are_an_error(tmp_path: Path, count: int) -> None:
    with (
        pytest.raises(ValueError, match=f"expected 2 rows, found {count}"),
        store(tmp_path).filling("clean") as append,
    ):
        append("ab", torch.ones(count, 8))


def test_a_pack_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = store(tmp_path)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        fill(kept, "ab")
    assert packs(tmp_path) == list(tmp_path.rglob("*.tmp")) == []
    assert missing(kept, "ab") == "ab"


def test_after_an_error_full_packs_stay_and_no_other_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PACK_ROWS", 2)
    kept = store(tmp_path)

    def failing() -> None:
        with kept.filling("clean") as append:
            append("ab", rows_of("ab"))
            append("c", rows_of("c"))
            raise RuntimeError("the trunk failed")

    with pytest.raises(RuntimeError, match="the trunk failed"):
        failing()
    assert missing(kept, "abc") == "c"


@pytest.mark.parametrize("content", [None, b"", b"no array" * 1000, "one byte less"])
def test_a_pack_that_is_gone_or_damaged_is_missing_and_takes_no_room(
    tmp_path: Path, content: bytes | str | None
) -> None:
    kept = store(tmp_path)
    fill(kept, "ab")
    (pack,) = packs(tmp_path)
    fill(kept, "cd")
    if content is None:
        pack.unlink()
    else:
        pack.write_bytes(pack.read_bytes()[:-1] if isinstance(content, str) else content)
    assert missing(kept, "abcd") == "ab"
    assert not pack.exists()
    fill(kept, "ab")
    assert np.array_equal(kept.find("abcd", "clean")[np.arange(4)], rows_of("abcd").numpy())


def test_rows_beyond_the_end_of_a_pack_are_missing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill(kept, "abcd", size=4)
    (pack,) = packs(tmp_path)
    np.save(pack, np.load(pack)[:2])
    assert missing(kept, "ab") == ""
    assert missing(kept, "abcd") == "abcd"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_packs_are_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PACK_ROWS", 1)
    kept = store(tmp_path)
    fill(kept, "abcdefgh", size=1)
    before = len(os.listdir("/proc/self/fd"))
    rows = kept.find("abcdefgh", "clean")
    assert len(packs(tmp_path)) == 8
    assert len(os.listdir("/proc/self/fd")) == before
    for pack in packs(tmp_path):
        pack.unlink()
    assert np.array_equal(rows[np.arange(8)], rows_of("abcdefgh").numpy()), "what is mapped outlives its file"


# ------------------------------------------------------------------------------------------------- several processes


def in_another_process(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PACK_ROWS", 4)
    kept = store(tmp_path)

    def killed() -> None:
        with kept.alone(), kept.filling("clean") as append:
            for piece in ("ab", "cd", "ef", "gh", "ij"):
                append(piece, rows_of(piece))
            os.kill(os.getpid(), signal.SIGKILL)

    process = in_another_process(killed)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert missing(kept, "abcdefghijkl") == "ijkl", "the last pack was not full"
    with kept.alone().acquire(timeout=10):  # the dead process has left it
        fill(kept, "ijkl")
    rows = kept.find("abcdefghijkl", "clean")
    assert np.array_equal(rows[np.arange(12)], rows_of("abcdefghijkl").numpy())


@pytest.mark.slow
def test_processes_may_fill_the_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PACK_ROWS", 2)
    kept = store(tmp_path)
    shares = ["abcdefghijklmnop", "abcdefghijklmnop", "ponmlkjihgfedcba", "mnopqrstuvwxyz"]

    def work(share: str) -> None:
        kept.claim([(share, "clean")])
        fill(kept, share)

    processes = [in_another_process(partial(work, share)) for share in shares]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(shares)
    images = "abcdefghijklmnopqrstuvwxyz"
    assert missing(kept, images) == ""
    assert np.array_equal(kept.find(images, "clean")[np.arange(26)], rows_of(images).numpy())


def test_one_at_a_time_is_alone_in_a_folder(tmp_path: Path) -> None:
    one, same, other = store(tmp_path), store(tmp_path), store(tmp_path, "other")
    with one.alone():
        with pytest.raises(filelock.Timeout), same.alone().acquire(timeout=0):
            pass
        with other.alone().acquire(timeout=0):
            pass
    with same.alone().acquire(timeout=0):
        pass


# ------------------------------------------------------------------------------------------------- its limit


def age(root: Path, seconds: float) -> None:
    past = time.time() - seconds
    for path in root.rglob("*"):
        if path.is_file() and path.stat().st_mtime > past:
            os.utime(path, (past, past))


def test_the_limit_is_kept_and_what_was_unused_for_longest_goes(tmp_path: Path) -> None:
    for seconds, image, identity in ((30, "a", "trunk"), (20, "b", "other"), (10, "c", "trunk")):
        before = set(packs(tmp_path))
        fill(store(tmp_path, identity), image)
        for path in set(packs(tmp_path)) - before:
            age(path.parent, seconds)
    kept = store(tmp_path, max_gb=3 * PACK / 1e9)
    assert missing(store(tmp_path), "a") == ""  # the oldest, used by another run just now
    fill(kept, "d")
    assert missing(kept, "acd") == ""
    assert missing(store(tmp_path, "other"), "b") == "b", "the limit is of all folders together"
    assert sum(path.stat().st_size for path in packs(tmp_path)) <= kept.max_bytes


def test_what_this_run_needs_stays_and_the_rest_is_not_stored(tmp_path: Path) -> None:
    for image in "abcd":
        fill(store(tmp_path), image)
        age(tmp_path, 10)
    kept = store(tmp_path, max_gb=4 * PACK / 1e9)
    assert kept.claim([("abc", "clean"), ("ab", "other")]) == 2
    age(tmp_path, 3000)  # and others may have been used since
    fill(kept, "e")
    with pytest.raises(OSError, match="used up by what this run needs"):
        fill(kept, "f")
    assert missing(kept, "abcdef") == "df"


def test_what_another_store_of_this_run_needs_stays_too(tmp_path: Path) -> None:
    needed: set[Path] = set()
    shallow, deep = (TrunkStore(tmp_path, depth, 2 * PACK / 1e9, needed) for depth in (3, 5))
    fill(shallow, "a")
    age(tmp_path, 10)
    fill(store(tmp_path, "another run's"), "b")  # used later
    fill(deep, "c")
    assert (missing(shallow, "a"), missing(deep, "c")) == ("", "")
    with pytest.raises(OSError, match="used up by what this run needs"):
        fill(deep, "d")


def test_another_run_may_make_room_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: iter([folder / "gone.npy", *rglob(folder, pattern)]))
    kept = store(tmp_path)
    fill(kept, "a")
    assert missing(kept, "a") == ""


def test_what_dead_processes_left_is_removed_after_a_while(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill(kept, "a")
    left = [kept.folder / "unknown.npy", kept.folder / ".unfinished.npy.1-1.tmp", tmp_path / "other" / ".x.1-1.tmp"]
    left[2].parent.mkdir()
    for path in left:
        path.touch()
    kept.claim([])
    assert all(path.exists() for path in left), "they may be of a process that lives"
    age(tmp_path, 3700)
    kept.claim([])
    assert not any(path.exists() for path in left)
    assert missing(kept, "a") == "", "old, but known"


def test_the_index_forgets_packs_that_are_gone(tmp_path: Path) -> None:
    kept = store(tmp_path)
    fill(kept, "a")
    fill(kept, "b")
    packs(tmp_path)[0].unlink()
    kept.claim([])
    with kept._index() as index:
        assert index.execute("SELECT count(*) FROM rows").fetchall() == [(1,)]
