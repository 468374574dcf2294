"""A small file system of its own: to be filled, frozen, or made read-only by an error, as a broken disk makes it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MOUNT_SECONDS = 30
BALLAST_BYTES = 4096


@contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """Make `place` a file system of `size_bytes`; the test is skipped where nobody may mount one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place.mkdir(mode=0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(place)],
                          capture_output=True, text=True, timeout=MOUNT_SECONDS, check=False)  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: a server that is being stopped may hold a file there for a moment longer.
        subprocess.run(["umount", "--lazy", str(place)], timeout=MOUNT_SECONDS, check=True)


class Disk:
    """A file system that stands on a file, and the faults of its disk. `heal` undoes them all that can be undone."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.place, self._image = place, place.with_name(f"{place.name}.image")
        self._ballast = place / "ballast"
        self._frozen = False
        with self._image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        place.mkdir(mode=0o700)
        _run("mount", "-o", "loop", str(self._image), str(place))

    def hang(self) -> None:
        """Let every write wait, in the kernel and for ever, as a disk does that answers nothing any more."""
        _run("fsfreeze", "--freeze", str(self.place))
        self._frozen = True

    def fill(self) -> None:
        """Leave no free block."""
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(BALLAST_BYTES))

    def break_down(self) -> None:
        """Make it read-only under all open files, as ext4 does itself when its disk returns errors. Cannot be healed."""
        _run("mount", "-o", "remount,abort", str(self.place))

    def heal(self) -> None:
        """Let writes go on."""
        if self._frozen:
            _run("fsfreeze", "--unfreeze", str(self.place))
            self._frozen = False
        with suppress(OSError):
            self._ballast.unlink(missing_ok=True)


@contextmanager
def bad_disk(place: Path, size_bytes: int) -> Iterator[Disk]:
    """Make `place` a file system with faults; the test is skipped where nobody may mount one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    try:
        disk = Disk(place, size_bytes)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no file system on a file can be mounted here: {error}")
    try:
        yield disk
    finally:
        disk.heal()
        _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, timeout=MOUNT_SECONDS, check=True)
