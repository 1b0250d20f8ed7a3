"""What the docs name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_names_a_test_that_there_is() -> None:
    told = re.findall(r"`([^`]*\btest_\w+(?:\.py)?)`", (ROOT / "docs" / "reliability.md").read_text())
    files = [ROOT / name.split("::")[0] for name in told if name.startswith("tests/")]
    tests = {name.split("::")[-1] for name in told if not name.endswith(".py")}
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(tests) > 50
    assert tests - defined == set()
    assert [file for file in files if not file.is_file()] == []
