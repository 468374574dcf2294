"""The rows a primary writes so that others can see it: its epoch once, a heartbeat every second.

A commit that waits for its acknowledgement blocks here in a thread of its own. That is a fact to report, never a reason
to fence: the wait is what keeps an unacknowledged write from being promised.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from cluster import clock
from cluster.clock import Nanos
from cluster.dialect import Session
from cluster.errors import CannotWrite, OscarHaError, Refused
from cluster.settings import Timing
from healthcheck.worker import Worker

WRITE_DEADLINE_MS = 3_600_000.0
"""A write may wait this long for its acknowledgement before its session is given up."""
log = structlog.get_logger()


class Heartbeat:
    """Writes in a thread; healthcheck/condition.py judges what comes of it."""

    def __init__(self, node: str, timing: Timing, connect: Callable[[float], Session]) -> None:
        self._node = node
        self._timing = timing
        self._connect = connect
        self._worker = Worker("heartbeat")
        self._session: Session | None = None
        self._prepared: tuple[str, int] | None = None
        self.since: Nanos | None = None
        """When the write under way began, None when there is none."""
        self.written: Nanos | None = None
        """When a heartbeat was last written."""
        self.refused = self.failed = ""
        """Why the last write failed: the server can write nothing, or something else. Silence says nothing."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def number(self) -> int | None:
        """Return what the server calls the session that writes."""
        session = self._session
        return None if session is None else session.number

    def beat(self, generation: str, epoch: int) -> None:
        """Write one heartbeat of `epoch`, unless the one before is still under way."""
        if self.since is not None:
            return
        self.since = clock.now()
        task = asyncio.get_running_loop().create_task(self._beat(generation, epoch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _beat(self, generation: str, epoch: int) -> None:
        try:
            await self._worker.run(self._write, generation, epoch)
            self.written, self.refused, self.failed = clock.now(), "", ""
        except OscarHaError as error:
            self.refused = error.message if isinstance(error, CannotWrite) else ""
            self.failed = error.message if isinstance(error, Refused) and not self.refused else ""
            log.info("heartbeat.failed", error=str(error))
        finally:
            self.since = None

    def _write(self, generation: str, epoch: int) -> None:
        """Runs in the thread."""
        if self._prepared != (generation, epoch):
            self._drop()  # the fence that ended the epoch before killed this session too
        try:
            if self._session is None:
                self._session = self._connect(WRITE_DEADLINE_MS)
            if self._prepared != (generation, epoch):
                self._session.make_schema()
                self._session.write_epoch(epoch, self._node)
                self._prepared = (generation, epoch)
            self._session.write_heartbeat(epoch)
        except OscarHaError:
            self._drop()
            raise

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(OSError):
                session.close()
