"""The folder that a demo or a bench works in: one run at a time, and what is kept of a lab that is taken down."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import BadInput

LOG_BYTES_MAX = 5_000_000


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder for one run of `what`, as long as this process lives. Raises BadInput when another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"a {what} runs in {folder} already", hint="wait until it has ended") from error
        yield
    finally:
        os.close(descriptor)


def keep_logs(directory: Path, kept: Path) -> None:
    """Copy the ends of the lab's logs to where `lab down` does not remove them, replacing what was kept before."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in sorted((directory / "log").glob("*.log")):
        with log.open("rb") as source:
            source.seek(max(0, log.stat().st_size - LOG_BYTES_MAX))
            (kept / log.name).write_bytes(source.read(LOG_BYTES_MAX))
