"""Whether the commits of an open primary wait for an acknowledgement: as the durability record says (decision 0089).

They stop waiting only by a record that says so, of the epoch that is open, and under a lease that counts. That they wait
again is told (`by`) only once the server has confirmed it; what is not known makes them wait. All by one loop: an order to
stop has ended, one way or the other, before an order to wait is given.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from cluster import clock
from cluster.dialect import Session
from cluster.errors import OscarHaError, Refused
from cluster.log import Repeated
from cluster.settings import Timing
from healthcheck.judge import Memory, commits_wait
from healthcheck.prober import Prober
from healthcheck.right import Right

MS_PER_SECOND = 1000
Result = TypeVar("Result")
log = structlog.get_logger()


class Lender(Protocol):
    """What is needed of the watchdog."""

    right: Right
    prober: Prober
    memory: Memory

    @property
    def writes_epoch(self) -> int | None:
        """The epoch that we are the primary of, None when we are not."""

    async def ask(self, call: Callable[[Session], Result]) -> Result:
        """Ask the server. Raises Unreachable."""

    def tell_changes(self) -> None:
        """Publish what changed."""


class Waiting:
    """Of one watchdog."""

    def __init__(self, lender: Lender, timing: Timing) -> None:
        self._lender, self._timing = lender, timing
        self._by: tuple[str, int] | None = None
        self._stopped: tuple[str, int] | None = None
        self._trouble = Repeated()

    @property
    def by(self) -> int | None:
        """Return the durability record by which commits certainly wait, None when perhaps they do not."""
        if self._by is None or self._lender.writes_epoch is None:
            return None
        generation, serial = self._by
        return serial if generation == self._lender.prober.generation else None

    def before_opening(self, session: Session) -> None:
        """Called in the thread that opens the server: what waits by record waits before the first write."""
        if commits_wait(self._lender.right.durability, self._lender.memory.opened_epoch):
            session.meet_requirements()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
                self._trouble.is_over("waiting")
            except OscarHaError as error:
                if self._trouble.is_news("waiting", str(error)):
                    log.warning("waiting.failed", error=str(error))
            await asyncio.sleep(self._timing.probe_interval_ms / MS_PER_SECOND)

    async def look(self) -> None:
        """Bring the server to what the record says. Raises Unreachable."""
        lender, epoch = self._lender, self._lender.writes_epoch
        record, generation = lender.right.durability, lender.prober.generation
        if epoch is None or record is None or not generation:
            self._by = self._stopped = None
            lender.prober.commits_wait = True
            return
        state = (generation, record.serial)
        if commits_wait(record, epoch):
            lender.prober.commits_wait = True
            if self._by != state and await lender.ask(lambda session: session.commits_wait_again()):
                self._tell(by=state, why="commits wait")
        elif self._stopped != state and lender.right.by_lease(clock.now()):
            self._by, lender.prober.commits_wait = None, False
            await lender.ask(self._stop)
            self._tell(stopped=state, why=record.why)

    def _stop(self, session: Session) -> None:
        """In the thread: the last look before the effect."""
        record, epoch = self._lender.right.durability, self._lender.writes_epoch
        if commits_wait(record, epoch) or not self._lender.right.by_lease(clock.now()):
            raise Refused("commits must wait after all")
        session.commits_stop_waiting()

    def _tell(self, *, by: tuple[str, int] | None = None, stopped: tuple[str, int] | None = None, why: str) -> None:
        self._by, self._stopped = by, stopped
        log.warning("commits.wait_no_more", why=why) if stopped else log.info("commits.wait", serial=by and by[1])
        self._lender.prober.forget_slow()
        self._lender.tell_changes()
