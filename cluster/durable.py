"""The few file operations whose effect must survive a crash: each ends with the syncs it needs (TRAPS.md 16)."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path


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


def replace_file(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a small file so that after a crash it is the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)  # it may be of a crash, and with another mode
    with open(draft, "xb", opener=_opener(mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    rename(draft, path)


def _opener(mode: int | None) -> Callable[[str, int], int]:
    return partial(os.open, mode=0o666 if mode is None else mode)


def truncate(path: Path, size: int) -> None:
    """Cut a file to `size` bytes, durably."""
    handle = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def append(handle: int, data: bytes, size: int) -> None:
    """Add to a file of `size` bytes all or nothing: what was written in part is cut again. Raises OSError."""
    view = memoryview(data)
    try:
        while len(view):
            view = view[os.write(handle, view) :]
    except OSError:
        os.ftruncate(handle, size)
        raise


def rename(draft: Path, target: Path) -> None:
    """Let a draft that is synced take the place of a file."""
    draft.replace(target)
    sync_directory(target.parent)


def remove(path: Path) -> None:
    """Remove a file, durably."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder into another folder of the same file system, durably."""
    source.rename(target)
    sync_directory(target.parent)
    sync_directory(source.parent)


def empty(directory: Path) -> None:
    """Remove everything in a folder, if there is one. Safe to repeat."""
    for path in directory.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file, durably; safe to repeat."""
    draft = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    rename(draft, target)


def remove_drafts(directory: Path) -> None:
    """Remove what a crash left half written: a draft takes its place by a rename, or was never anything."""
    for path in directory.glob(".*"):
        path.unlink()


def free_bytes(directory: Path) -> int:
    """Return how much may still be written to the file system of `directory`."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
