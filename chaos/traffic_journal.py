"""The journal of a run: one JSON line for every write, appended as soon as its outcome is known.

A torn last line is what a killed generator leaves behind; the write it was about was never told to anybody.
"""

import json
import threading
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path

from chaos.history import Outcome, Write
from cluster import records
from cluster.errors import BadInput


class Journal:
    """Appends writes; shared by the writers of all clinics."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIOWrapper = path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadInput(
                f"journal {path} cannot be written: {error.strerror}", hint="give another --journal"
            ) from error
        self._lock = threading.Lock()

    def append(self, write: Write) -> None:
        """Append one line and hand it to the operating system: it outlives this process."""
        line = json.dumps(asdict(write), separators=(",", ":"))
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file. Safe to repeat."""
        self._file.close()


def read(path: Path) -> list[Write]:
    """Return the writes of a journal. Raises BadInput naming the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"journal {path} cannot be read: {error}", hint="give the file that --journal wrote") from error
    return [parse(line, where=f"{path}:{number}") for number, line in enumerate(lines[:-1], start=1)]


def parse(line: str, *, where: str) -> Write:
    """Return the write of one line. Raises BadInput."""
    write = records.decode(Write, line, where=where)
    if (write.outcome is Outcome.OK) != (write.acknowledged_at is not None):
        raise BadInput(f"{where}: outcome {write.outcome} contradicts acknowledged_at {write.acknowledged_at}")
    return write
