"""What the terminal and the log show of names that hold orders to a terminal, markup or line breaks."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from deepfake.console import log, logging_to_file, logging_to_terminal, progress, say_error, terminal, visible

TITLE, CLEAR, EIGHT_BIT = "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x9b31m"
NAME = f"face{TITLE}{CLEAR}{EIGHT_BIT}\u202e[bold]x[/bold][/y] :smile:.png"
SHOWN = r"face\x1b]0;owned\x1b[2J\x1b[H\x9b31m\u202e[bold]x[/bold][/y] :smile:.png"


def table() -> Table:
    found = Table("source", title=Text(NAME), caption=Text(NAME))
    found.add_row(Text(NAME))
    return found


def warn() -> None:
    with logging_to_terminal():
        log.warning("left out by source: %s", NAME)


@pytest.mark.parametrize(
    "shows",
    [
        lambda: say_error(NAME),
        lambda: terminal().print(Text(NAME)),
        lambda: terminal().print(NAME, markup=False, emoji=False),
        lambda: terminal().print(table()),
        lambda: terminal(stderr=True).rule(Text(NAME)),
        warn,
    ],
)
@pytest.mark.parametrize("colours", [False, True])
def test_a_name_gives_the_terminal_no_orders(
    shows: Callable[[], None], colours: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    shows()
    told = "".join(capfd.readouterr())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)  # what is left of Rich's own are colours
    assert plain.replace("\n", "").isprintable()
    assert SHOWN in plain.replace(r"\x07", "")  # Rich leaves the bell out itself, where it lays out text


@pytest.mark.parametrize("name", ["two\nlines", "carriage\rreturn", "next\x85line", "line\u2028separator"])
def test_a_mistake_is_told_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    say_error(f"expected an image, found {name}: see there")
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_name_begins_no_line_of_its_own_in_a_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "face\n2030-01-01 00:00:00,000 ERROR deepfake: forged\r.png"
    with logging_to_terminal(), logging_to_file(tmp_path / "run.log"):
        log.warning("left out: %s, 100%% of it", name)
    (line,) = (tmp_path / "run.log").read_bytes().splitlines()
    assert line.decode().endswith(r"left out: face\n2030-01-01 00:00:00,000 ERROR deepfake: forged\r.png, 100% of it")
    assert r"face\n2030" in capfd.readouterr().err


def test_names_that_can_be_read_stay_as_they_are() -> None:
    for name in ("Grüße 猫 🙂.png", "=1+1 'quoted' <b>&amp;.png", ""):
        assert visible(name) == name
    assert visible("\ud800") == r"\ud800"


def test_a_bar_still_draws_itself(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("reading images", 3) as advance:
        advance()
    told = capfd.readouterr().err
    assert "reading images" in told
    assert "\x1b[?25l" in told  # Rich's own order: hide the cursor
    assert r"\x1b" not in told
