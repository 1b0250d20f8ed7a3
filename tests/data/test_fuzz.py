"""Whatever the bytes are, reading them gives pixels or the one error, in bounded time and memory, and says nothing.

DEEPFAKE_FUZZ=10000 pytest tests/data/test_fuzz.py    # that many new cases, at random; minutes
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepfake.data.images import SUFFIXES
from tests.data import fuzz
from tests.data.formats import bmp, png
from tests.data.hostile import bombs
from tests.data.reader import MODES, Answer, Reader

BOMBS = bombs()
CASES = int(os.environ.get("DEEPFAKE_FUZZ", "0"))


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """Reads pictures of a quarter of a megapixel, which take some ten megabytes."""
    reader = Reader(max_megapixels=0.25)
    yield reader
    reader.close()


@pytest.mark.parametrize("name", fuzz.WHOLE)
def test_what_is_damaged_below_was_an_image(reader: Reader, name: str) -> None:
    answer = reader.read(fuzz.WHOLE[name])
    expected = "refused" if name in ("float tiff", "pfm") else "ok"
    assert (answer.status, answer.said) == (expected, "")


@settings(
    max_examples=CASES or 300, derandomize=not CASES, database=None, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(fuzz.damaged(), st.sampled_from(["", *SUFFIXES]), st.sampled_from(MODES))
def test_damaged_bytes_give_pixels_or_the_one_error(reader: Reader, content: bytes, suffix: str, mode: str) -> None:
    answer = reader.read(content, suffix, mode)
    assert answer.status in ("ok", "refused"), answer
    assert (answer.status == "ok") or answer.reason
    assert len(answer.reason.splitlines()) <= 1
    assert answer.said == ""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_without_its_memory(name: str) -> None:
    reader = Reader(max_megapixels=64)
    answer = reader.read(BOMBS[name])
    reader.close()
    assert (answer.status, answer.said) == ("refused", "")
    assert "more than" in answer.reason


# -------------------------------------------------------------------------------------------------- the reader itself


def test_what_ends_the_process_is_told_and_another_begins() -> None:
    reader = Reader(max_megapixels=64, seconds=1.0)
    rows = bmp(65_535, 970, 8, 1, b"\x01\x05\x00\x00" * 970)  # each padded byte by byte
    answer = reader.read(rows)
    assert answer.status == "ended by SIGPROF"
    assert "BmpImagePlugin.py" in answer.said
    assert reader.read(fuzz.WHOLE["ppm"]) == Answer("ok")
    reader.close()


def test_memory_is_told_and_another_process_begins() -> None:
    reader = Reader(max_megapixels=64, megabytes=30)
    large = png(2_000, 2_000, 8, 6)
    for _ in range(2):
        assert reader.read(large).status.startswith("grew by ")
        assert reader.read(fuzz.WHOLE["ppm"]) == Answer("ok")
    reader.close()
