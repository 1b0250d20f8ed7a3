"""Files that are whole or absent: a reader, or a crash, finds the old content or the new, never a part."""

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file atomically; parent folders are made.

    Args:
        path: where.
        content: all of it.
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
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """As `write_text`; a number that is not finite is an error, for it is no JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
