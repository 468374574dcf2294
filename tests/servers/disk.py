"""A small file system of its own, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MOUNT_SECONDS = 30


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
