"""What is known of the server process and its database: looked at by the loop, asked in a thread, never decided upon."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import clock
from cluster.clock import Nanos
from cluster.dialect import Load, Probe, Replication, Session
from cluster.errors import OscarHaError
from cluster.records import Database
from cluster.rules import HealthRules
from cluster.settings import Node, Timing
from healthcheck import server
from healthcheck.judge import Sighting, judge_database
from healthcheck.server import Processor, Server
from healthcheck.worker import Worker

Connect = Callable[[float], Session]


@dataclass(frozen=True, slots=True)
class SlowFacts:
    """What is looked at less often."""

    replication: Replication | None
    lag_ms: float | None
    unmet: tuple[str, ...]
    """Requirements on an open primary that somebody has broken; empty when it was not asked as one."""
    load: Load | None = None


class Prober:
    """Holds the server process and one probing session."""

    def __init__(
        self, node: Node, timing: Timing, rules: HealthRules, connect: Connect, died: Callable[[], None]
    ) -> None:
        self._node = node
        self._timing, self._rules = timing, rules
        self._connect = connect
        self._died = died
        self._worker = Worker("probe")
        self._session: Session | None = None
        self._answered: Nanos | None = None
        self._looked = False
        self._newborn = False
        self._expected = 0
        self.server: Server | None = None
        self.probe: Probe | None = None
        self._probed_at: Nanos | None = None
        self.slow: SlowFacts | None = None
        self._slow_at: Nanos | None = None
        self.server_version: str | None = None
        self.places: tuple[Path, ...] = ()
        """Where it writes, as it says itself."""
        self.worked: Nanos | None = None
        """When it certainly wrote something last, as healthcheck/condition.py saw."""
        self._processor = Processor()
        self._asked: Nanos | None = None
        self.commits_wait = True
        """Whether it is required of an open primary that its commits wait: not while durability is degraded."""
        self.trouble: str | None = None
        """Why the last look or probe failed, None after one that worked."""

    @property
    def generation(self) -> str:
        """Return the identity of the server process, empty when there is none."""
        return self.server.generation if self.server is not None else ""

    @property
    def session_numbers(self) -> frozenset[int]:
        """Return the number of the probing session, which a fence need not end."""
        session = self._session
        return frozenset() if session is None else frozenset({session.number})

    def database(self) -> Database:
        """Return the state of the database now."""
        sighting = Sighting(
            looked=self._looked,
            alive=self.server is not None,
            newborn=self._newborn,
            seen_since=self.server.seen if self.server is not None else clock.now(),
            answered=self._answered,
            refused=self.trouble is not None,
            worked=self.worked,
            busy=self._processor.busy,
        )
        return judge_database(sighting, clock.now(), self._timing, self._rules)

    def asking_ms(self) -> float | None:
        """Return for how long the question has been under way that is asked now, None when none is."""
        return None if self._asked is None else clock.ms_between(self._asked, clock.now())

    def look(self) -> None:
        """Find the server process if none is known. From then on its death is known at once."""
        first, self._looked = not self._looked, True
        if self.server is not None:
            self._processor.look(self.server)
            return
        try:
            found = server.find(self._node)
        except OscarHaError as error:
            # There is a server, and we could not end it: that is neither up nor down.
            self.trouble, self._looked = str(error), False
            return
        if found is not None:
            self.server, self.trouble = found, None
            # One that began before us may have answered others; only one that we saw begin is certainly fenced.
            self._newborn = not first
            asyncio.get_running_loop().add_reader(found.pidfd, self._on_death, found)

    async def ask(self, *, slow: bool, opened: bool, writer: int | None = None) -> bool:
        """Ask the database. Returns whether it answered; an answer of a process that ended meanwhile does not count."""
        asked, expected, asked_at = self.server, self._expected, clock.now()
        if asked is None:
            return False
        self._asked = asked_at
        try:
            probe, more = await self._worker.run(self._ask, slow, opened, writer)
        except OscarHaError as error:
            self.trouble = str(error)
            return False
        finally:
            self._asked = None
        if self.server is not asked:
            return False
        self._answered, self._newborn, self.trouble = clock.now(), False, None
        if self._expected != expected:
            return False  # asked before something was changed: an answer of the past
        self.probe, self._probed_at = probe, asked_at
        if more is not None:
            self.slow, self._slow_at = more, asked_at
        return True

    def age_ms(self) -> float | None:
        """Return how long ago what `probe` says was asked for, None when there is none."""
        if self.probe is None or self._probed_at is None:
            return None
        return clock.ms_between(self._probed_at, clock.now())

    def slow_age_ms(self) -> float | None:
        """Return how long ago what `slow` says was asked for, None when there is none."""
        return None if self.slow is None or self._slow_at is None else clock.ms_between(self._slow_at, clock.now())

    def expect(self, *, read_only: bool, position: str | None = None) -> None:
        """Take over what a command has just brought about; answers asked for before it do not count."""
        self._expected += 1
        if self.probe is not None:
            self.probe = Probe(read_only=read_only, position=self.probe.position if position is None else position)

    def doubt(self) -> None:
        """What is being asked at this moment does not count: it may see something that is so only for an instant."""
        self._expected += 1

    def forget_slow(self) -> None:
        """Replication was just changed: what was seen before says nothing of it."""
        self._expected += 1
        self.slow = None

    def _ask(self, slow: bool, opened: bool, writer: int | None) -> tuple[Probe, SlowFacts | None]:
        """Runs in the thread."""
        try:
            if self._session is None:
                self._session = self._connect(self._timing.probe_deadline_ms)
                self.server_version = self._session.server_version
                self.places = self._session.places()
            probe = self._session.probe()
            more = _slow_facts(self._session, opened, self.commits_wait, writer) if slow else None
        except OscarHaError:
            self._hang_up()
            raise
        return probe, more

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _on_death(self, ended: Server) -> None:
        asyncio.get_running_loop().remove_reader(ended.pidfd)
        ended.close()
        self.server = self._answered = self.probe = self.slow = self.trouble = self.worked = None
        self._processor = Processor()
        self._died()

    def close(self) -> None:
        """Let go of everything; the process lives on."""
        if self.server is not None:
            asyncio.get_running_loop().remove_reader(self.server.pidfd)
            self.server.close()
            self.server = None


def _slow_facts(session: Session, opened: bool, waits: bool, writer: int | None) -> SlowFacts:
    load = session.load(writer) if opened else None  # first: what comes after it may read from the disk
    unmet = session.unmet(waits=waits) if opened else ()
    return SlowFacts(session.replication(), session.heartbeat_age_ms(), unmet, load)
