"""One controller leads: an election as kazoo's, without its thread, watched with our own lease.

Whose znode below `election/` is the oldest leads; everybody else watches the one before its own. Names and order are
kazoo's, so that controllers of either kind elect together.

Leading is a right that ends by our own clock: before every effect `valid` is asked, and every write to ZooKeeper also
checks our election node in the same transaction (DESIGN.md invariant 4).
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from cluster import clock
from cluster.coordination import Coordination
from cluster.errors import OscarHaError, Unreachable

RETRY_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 5.0
"""Who is before us is looked at again, should a watch ever be lost."""
ELECTION, BETWEEN = "election", "__lock__"
SEQUENCE_DIGITS = 10
SESSION_BITS = 64
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads, as the others read it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Who stands in the queue."""

    name: str


class Leadership:
    """Take part in the election until `stop`. `changed` is set when leading begins or ends."""

    def __init__(self, coordination: Coordination, name: str) -> None:
        self.changed = asyncio.Event()
        self._coordination = coordination
        self._name = name
        self._mine = ""
        self._node: str | None = None
        self._session = 0
        self._news = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        coordination.listen(lambda _: self._news.set())

    def start(self) -> "asyncio.Task[None]":
        """Begin to take part; the task ends only by an error that nobody foresaw."""
        self._running = asyncio.create_task(self._run(), name="election")
        return self._running

    async def stop(self) -> None:
        """Give up leading and leave: the session may be that of many, and go on."""
        self._set(None)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._mine and self._session == self._coordination.session_id:
            await self._coordination.give_up(self._mine)

    @property
    def node(self) -> str | None:
        """The full path of our election node while we lead."""
        return self._node if self._session == self._coordination.session_id else None

    def valid(self) -> bool:
        """Return whether we lead and our session certainly lives."""
        return self.node is not None and self._coordination.lease_valid(clock.now())

    # -- below ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._take_part()
            except OscarHaError as error:
                log.warning("election.interrupted", error=str(error))
            if self.node is None:
                self._set(None)
            await asyncio.sleep(RETRY_SECONDS)

    async def _take_part(self) -> None:
        """Stand in the queue, and lead while nobody is before us. Returns when our node or our session is gone."""
        if self._session != self._coordination.session_id:
            self._set(None)
            await self._stand()
        while True:
            self._news.clear()
            names = in_order(await self._coordination.children(ELECTION))
            mine = next((name for name in names if name.startswith(prefix_of(self._session))), None)
            if mine is None or self._session != self._coordination.session_id:
                self._set(None)
                self._session = 0
                return
            self._mine = f"{ELECTION}/{mine}"
            ahead = names[: names.index(mine)]
            if not ahead and self._node is None:
                self._set(self._coordination.path(f"{ELECTION}/{mine}"))
            await self._coordination.get(f"{ELECTION}/{ahead[-1] if ahead else mine}", self._news.set)
            await self._pause()

    async def _stand(self) -> None:
        """Make our node. It is named for our session: one whose making was never answered is found, and is ours."""
        self._session = self._coordination.session_id
        if self._session == 0:
            raise Unreachable("ZooKeeper is not connected")
        prefix = prefix_of(self._session)
        if not any(name.startswith(prefix) for name in await self._coordination.children(ELECTION)):
            path = f"{ELECTION}/{prefix}"
            await self._coordination.create(path, Contender(name=self._name), sequence=True, ephemeral=True)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return

    def _set(self, node: str | None) -> None:
        if self._node != node:
            self._node = node
            self.changed.set()


def prefix_of(session: int) -> str:
    """Return how the election node of a session begins. In one process one controller serves a cluster."""
    return f"{session % 2**SESSION_BITS:032x}{BETWEEN}"


def in_order(names: Iterable[str]) -> list[str]:
    """Return the nodes of an election, the oldest first; what is none is left out."""
    return sorted(
        (name for name in names if name[-SEQUENCE_DIGITS:].isdigit()), key=lambda name: name[-SEQUENCE_DIGITS:]
    )
