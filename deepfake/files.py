"""Files that are whole or absent: a reader, or a crash, finds the old content or the new, never a part."""

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content takes the file's place when the context ends without an error; parent folders are made.

    Args:
        path: where.
        durable: wait until it is on the disk. False for what can be made again, such as a cache.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because only a rename within one file system is atomic. Not through `tempfile`, whose
    # files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is lost with the power until then."""
    with suppress(PermissionError):  # Windows opens no folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a whole file, as `replacing` does."""
    with replacing(path, durable) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """As `write_text`; a number that is not finite is an error, for it is no JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def as_json(value: Any) -> Any:
    """As JSON can hold it: what is undefined is null."""
    match value:
        case dict():
            return {str(key): as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value
