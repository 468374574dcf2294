"""What a watchdog must remember over its own death: a small file beside the server's pid file, written before the effect.

It binds what was opened or promoted to one run of the server process (`generation`): a new process is born fenced and
owes nothing to the file, only the seal outlives it.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from cluster import records
from cluster.errors import OscarHaError
from healthcheck.judge import Memory


class MemoryFile:
    """Reads and writes the file; a write that returned is on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Memory:
        """Return what was remembered, nothing when there is no file. Raises BadInput for a damaged one."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            raise OscarHaError(f"{self.path} cannot be read: {error.strerror}", hint="run as its owner") from error
        return records.decode(Memory, text, where=f"the watchdog's memory {self.path} (remove it while fenced)")

    def write(self, memory: Memory) -> None:
        """Replace the file as a whole and make it durable, the directory too."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                json.dump(asdict(memory), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise OscarHaError(
                f"{self.path} cannot be written: {error.strerror}", hint="free disk space, or mend its permissions"
            ) from error
