"""The few file operations whose effect must survive a crash: each ends with the syncs it needs (TRAPS.md 16)."""

import os
from pathlib import Path

from replicator.framing import MIB

COPY_BYTES = MIB


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Make a directory whose parent exists, durably."""
    directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(directory.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file so that after a crash it is the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cut a file to `size` bytes, durably."""
    handle = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, durably."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def copy_tail(source: Path, offset: int, target: Path, head: bytes) -> None:
    """Write `head` and then the bytes of `source` from `offset` on to `target`, durably; safe to repeat."""
    draft = target.with_name(f".{target.name}.new")
    with source.open("rb") as taken, draft.open("wb") as given:
        given.write(head)
        taken.seek(offset)
        while data := taken.read(COPY_BYTES):
            given.write(data)
        given.flush()
        os.fsync(given.fileno())
    draft.replace(target)
    sync_directory(target.parent)
