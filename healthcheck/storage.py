"""The disk under a database, looked at past the database: a small write that must become durable, free space, growth.

Each look runs in a thread of its own that a hung disk may keep; the next one begins only when it has ended.
"""

import asyncio
import errno
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import clock
from cluster.clock import Nanos
from healthcheck.worker import Worker

PROBE_FILE = "oscar-ha.probe"
PROBE_BYTES = 512
"""Overwritten in place: it needs no new block, and nothing of the file system's own has to be written."""
INDEX = "binlog.index"
INDEX_TAIL_BYTES = 1024
BROKEN = {
    errno.EROFS: "its file system is read-only",
    errno.EIO: "its disk cannot be written to",
    errno.ENODEV: "its disk is gone",
    errno.ENXIO: "its disk is gone",
}
"""What is no fault of ours. Not to be allowed to write there says nothing of the disk."""


@dataclass(frozen=True, slots=True)
class Space:
    """What the file systems say of themselves; the worst of several."""

    free: int | None = None
    read_only: bool = False
    binlog: tuple[str, int] | None = None
    """The newest file of the binary log, and its size."""


class Storage:
    """What is known of the disk of one server."""

    def __init__(self) -> None:
        self._writer, self._reader = Worker("disk-write"), Worker("disk-look")
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked: Nanos | None = None
        self.pending: Nanos | None = None
        """When the write began that has not ended."""
        self.broken: str = ""
        """What the last write that ended said of the disk."""
        self.known = False
        """A write has ended well."""
        self.space = Space()
        self.grew: Nanos | None = None
        """The newest instant after which the binary log has certainly grown."""

    def look(self, places: Sequence[Path]) -> None:
        """Begin a look, as far as the one before has ended."""
        if self.pending is None and places:
            self.pending = clock.now()
            self._begin(self._write(tuple(places)))
        if not self._reader.busy and places:
            self._begin(self._read(tuple(places)))

    def forget(self) -> None:
        """Another server process: what the binary log did before says nothing of it."""
        self.grew = self._looked = None

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, places: tuple[Path, ...]) -> None:
        found = await self._writer.run(_write_all, places)
        self.pending, self.broken = None, BROKEN.get(found, "") if found else ""
        self.known = self.known or not found

    async def _read(self, places: tuple[Path, ...]) -> None:
        began, before = clock.now(), self.space
        self.space = await self._reader.run(_read_all, places)
        if before.binlog is not None and self.space.binlog not in (None, before.binlog) and self._looked is not None:
            self.grew = self._looked  # it happened since then
        self._looked = began


def _write_all(places: tuple[Path, ...]) -> int:
    """Runs in the thread. Return 0, or the number of the first error."""
    try:
        for place in places:
            with os.fdopen(os.open(place / PROBE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", 0) as file:
                os.pwrite(file.fileno(), b"oscar-ha looks whether this disk takes writes\n".ljust(PROBE_BYTES), 0)
                os.fdatasync(file.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _read_all(places: tuple[Path, ...]) -> Space:
    """Runs in the thread."""
    free, read_only, binlog = list[int](), False, None
    for place in places:
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        free.append(found.f_bavail * found.f_frsize)
        read_only = read_only or bool(found.f_flag & os.ST_RDONLY)
        binlog = binlog or _newest_binlog(place)
    return Space(min(free, default=None), read_only, binlog)


def _newest_binlog(place: Path) -> tuple[str, int] | None:
    try:
        with (place / INDEX).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - INDEX_TAIL_BYTES))
            name = os.fsdecode(file.read().splitlines()[-1])
        return name, (place / name).stat().st_size
    except (OSError, IndexError, ValueError):
        return None
