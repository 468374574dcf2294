"""Where a node's data lies while it is replaced, and what is remembered over our own death. Nothing is thrown away.

A copy grows beside the data directory, never in it. It takes its place by rename, once it is whole, and the old one
keeps existing until the node is a standby again. Every step can be repeated: a watchdog that died goes on or goes back.
"""

import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster import clock, records
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.records import SeedPhase, SeedReport

NOT_KNOWN = "unknown"
LOCKED_BY_A_SERVER = ("ibdata1", "aria_log_control")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedMemory:
    """What the file beside the data directory says of a seeding."""

    report: SeedReport
    ran: bool = False
    """A server ran on the old data: it is started again if the seeding fails."""
    keep: bool = True
    """The old data directory stays even when the node is a standby again."""

    def reported(self, **changes: object) -> "SeedMemory":
        """Return this memory with another report."""
        return replace(self, report=replace(self.report, **changes))  # type: ignore[arg-type]  # fields of SeedReport


class Places:
    """The directories of one node."""

    def __init__(self, data_directory: Path) -> None:
        self.data = data_directory
        self.fresh = data_directory.with_name(f"{data_directory.name}.seeding")
        self.start_log = data_directory.with_name(f"{data_directory.name}.seed-start.log")
        self.memory_file = data_directory.with_name(f"{data_directory.name}.seed.json")

    def before(self, seeding: str) -> Path:
        """Return where the old data directory goes."""
        return self.data.with_name(f"{self.data.name}.before-seed-{seeding}")

    def problems(self) -> list[str]:
        """Return why nothing can be put in the place of the data directory, each a sentence with the mend."""
        parent = self.data.parent
        if not parent.is_dir():
            return [f"data_directory {self.data}: there is no folder {parent}"]
        if os.path.ismount(self.data):
            return [f"data_directory {self.data} is a mount point, it cannot be renamed: use a folder in it"]
        if not os.access(parent, os.W_OK | os.X_OK):
            return [f"we may not write into {parent}: run the watchdog as the owner of the data directory"]
        return []

    def in_use(self) -> bool:
        """Return whether a server, also one that does not listen yet, holds the old data directory."""
        return any(_is_locked(self.data / name) for name in LOCKED_BY_A_SERVER)

    def clear(self) -> None:
        """Remove what an earlier attempt left half-made."""
        if self.fresh.exists():
            shutil.rmtree(self.fresh)

    def swap(self, seeding: str) -> str | None:
        """Put the copy in the place of the data directory; return where the old one went. Does what is left to do."""
        before = self.before(seeding)
        if self.fresh.exists():
            if self.data.exists():
                if before.exists():
                    raise Refused(f"{before} exists already", hint="move it away")
                self.data.rename(before)
            self.fresh.rename(self.data)
            _sync(self.data.parent)
        return str(before) if before.exists() else None

    def tidy(self, seeding: str, *, keep: bool) -> None:
        """The node is a standby again: remove what is of no use any more, the old data too unless `keep`."""
        self.start_log.unlink(missing_ok=True)
        before = self.before(seeding)
        if keep:
            return
        if before.exists():
            shutil.rmtree(before)

    def recall(self) -> SeedMemory | None:
        """Return what is remembered, None when there is nothing. What cannot be read is a seeding that failed."""
        try:
            return records.decode(SeedMemory, self.memory_file.read_bytes(), where=f"{self.memory_file}")
        except FileNotFoundError:
            return None
        except (OSError, BadInput) as error:
            why = f"the memory of a seeding is damaged ({error}): run 'oscar-ha reinitialize' again unless it is a standby"
            report = SeedReport(id=NOT_KNOWN, donor=NOT_KNOWN, phase=SeedPhase.FAILED, began=clock.utc_now(), why=why)
            return SeedMemory(report=report)

    def remember(self, memory: SeedMemory) -> None:
        """Write it down durably, before the effect."""
        fresh = self.memory_file.with_name(self.memory_file.name + ".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                json.dump(asdict(memory), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.memory_file)
            _sync(self.memory_file.parent)
        except OSError as error:
            raise OscarHaError(
                f"{self.memory_file} cannot be written: {error.strerror}",
                hint="free disk space, or mend its permissions",
            ) from error


def interrupted(memory: SeedMemory) -> SeedMemory | None:
    """Return what a seeding is that its watchdog left unfinished; None when it goes on by itself.

    Up to the moment in which the whole and proven copy takes its place nothing of the node was changed: it is given up.
    """
    if memory.report.phase.over or memory.report.phase in (SeedPhase.STARTING, SeedPhase.CATCHING_UP):
        return None
    why = f"the watchdog ended while the data was {memory.report.phase.value}"
    return memory.reported(phase=SeedPhase.FAILED, why=f"{why}: run 'oscar-ha reinitialize' again")


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
