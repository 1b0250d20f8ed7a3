"""Files that others may have made, read as plain data: nothing in them runs, and none keeps us waiting.

Code maps names to classes. What a file says, a stored `_target_` too, is never looked up as the name of an object.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from deepfake.errors import UserError

_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch.load runs what a file says, where not told otherwise
_MAX_BYTES = 2**20  # of settings or figures; those that a run writes have some thousand


def expect_safe_environment() -> None:
    """Refuse an environment in which a checkpoint can run a program.

    Raises:
        UserError: names the variable.
    """
    if os.environ.get(_UNSAFE, "") not in ("", "0"):
        raise UserError(
            f"{_UNSAFE} is set: expected an environment without it, for with it a checkpoint can run any program. "
            f"Unset it."
        )


def expect_file(path: Path) -> None:
    """Refuse what is no file that ends: a pipe would keep us waiting for ever.

    Raises:
        OSError: it is another thing, or not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or none that this project writes.
    """
    try:
        return json.loads(_text(path))
    except RecursionError as error:
        raise ValueError("lists in lists, too deep to be read") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: numbers, texts, lists and tables; a tag that asks for anything else is an error.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, or none that this project writes.
    """
    try:
        return yaml.safe_load(_text(path))
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _text(path: Path) -> str:
    expect_file(path)
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    return path.read_text(encoding="utf-8")
