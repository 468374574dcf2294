"""What a watchdog must remember over its own death: a small file beside the server's pid file, written before the effect.

It binds what was opened or promoted to one run of the server process (`generation`): a new process is born fenced and
owes nothing to the file, only the seal outlives it.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster import records
from cluster.dialect import Promoted
from cluster.errors import OscarHaError


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The content of the file."""

    generation: str = ""
    sealed_epoch: int = 0
    opened_epoch: int | None = None
    """The epoch this server process was opened for, and not fenced from by anybody's command since."""
    promoted_epoch: int | None = None
    promoted: Promoted | None = None
    """What `promote` answered, so that it answers the same again."""

    def for_generation(self, generation: str) -> "Memory":
        """Return this memory for a server process: unchanged for the one it is of, else only the seal."""
        if generation == self.generation:
            return self
        return Memory(generation=generation, sealed_epoch=self.sealed_epoch)

    def sealed(self, epoch: int) -> "Memory":
        """Return this memory with `epoch` and all older ones never to be opened again."""
        keep = self.opened_epoch is not None and self.opened_epoch > epoch
        return replace(
            self,
            sealed_epoch=max(self.sealed_epoch, epoch),
            opened_epoch=self.opened_epoch if keep else None,
        )


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
