"""Whether the commits of an open primary wait for an acknowledgement: as the durability record says (decision 0089).

They stop waiting only by a record that says so, of the epoch that is open, and under a lease that counts. That they wait
again is told (`by`) only once the server has confirmed it; what is not known makes them wait. All by one loop: an order to
stop has ended, one way or the other, before an order to wait is given.

A primary that holds while it is cut off cannot be told (decision 0090): it lets them go by itself once nobody has
acknowledged for as long as the settings say, and writes that into its own memory first. Until a record says so, its report does.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

import structlog

from cluster import clock
from cluster.dialect import Session
from cluster.errors import OscarHaError, Refused
from cluster.log import Repeated
from cluster.records import Alone, DurabilityRecord
from cluster.settings import Settings
from healthcheck.heartbeat import Heartbeat
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
    heartbeat: Heartbeat

    @property
    def writes_epoch(self) -> int | None:
        """The epoch that we are the primary of, None when we are not."""

    async def ask(self, call: Callable[[Session], Result]) -> Result:
        """Ask the server. Raises Unreachable."""

    async def note_alone(self, alone: Alone | None) -> None:
        """Remember durably that commits are let go, or that a record says so now."""

    def tell_changes(self) -> None:
        """Publish what changed."""


class Waiting:
    """Of one watchdog."""

    def __init__(self, lender: Lender, settings: Settings) -> None:
        self._lender, self._timing = lender, settings.timing
        self._patience_ms = settings.durability.degrade_after_ms
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
        state, alone = (generation, record.serial), await self._alone(epoch, record)
        if alone is None and commits_wait(record, epoch):
            lender.prober.commits_wait = True
            if self._by != state and await lender.ask(lambda session: session.commits_wait_again()):
                self._tell(by=state, why="commits wait")
        elif self._stopped != state and self._may_stop(alone):
            self._by, lender.prober.commits_wait = None, False
            await lender.ask(self._stop)
            self._tell(stopped=state, why=record.why if alone is None else alone.text)

    async def _alone(self, epoch: int, record: DurabilityRecord) -> Alone | None:
        """Return since when commits go without a record of that; begin it when it is time, end it when a record says so."""
        lender, alone = self._lender, self._lender.memory.alone
        if alone is not None and alone.epoch == epoch:
            if not alone.is_covered(record):
                return alone
            await lender.note_alone(None)
            log.info("alone.recorded", serial=record.serial, since=alone.since)
        elif commits_wait(record, epoch) and self._is_unheard():
            probe = lender.prober.probe
            alone = Alone(
                epoch=epoch, serial=record.serial, since=clock.utc_now(), position=probe.position if probe else ""
            )
            await lender.note_alone(alone)
            log.warning("alone.begins", epoch=epoch, position=alone.position, why="cut off, and nobody acknowledges")
            return alone
        return None

    def _is_unheard(self) -> bool:
        """Return whether we hold, and a write has been waiting for as long as the settings let clinics wait."""
        since, now = self._lender.heartbeat.since, clock.now()
        if self._patience_ms is None or since is None or not self._lender.right.by_hold(now):
            return False
        return clock.ms_between(since, now) >= self._patience_ms

    def _may_stop(self, alone: Alone | None) -> bool:
        right, now = self._lender.right, clock.now()
        return right.by_lease(now) or (alone is not None and right.valid(now))

    def _stop(self, session: Session) -> None:
        """In the thread: the last look before the effect."""
        record, epoch, alone = self._lender.right.durability, self._lender.writes_epoch, self._lender.memory.alone
        remembered = alone if alone is not None and alone.epoch == epoch else None
        if epoch is None or (remembered is None and commits_wait(record, epoch)) or not self._may_stop(remembered):
            raise Refused("commits must wait after all")
        session.commits_stop_waiting()

    def _tell(self, *, by: tuple[str, int] | None = None, stopped: tuple[str, int] | None = None, why: str) -> None:
        self._by, self._stopped = by, stopped
        log.warning("commits.wait_no_more", why=why) if stopped else log.info("commits.wait", serial=by and by[1])
        self._lender.prober.forget_slow()
        self._lender.tell_changes()
