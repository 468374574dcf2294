"""One controller leads: kazoo's election, in a thread of its own, watched with our own lease.

Leading is a right that ends by our own clock: before every effect `valid` is asked, and every write to ZooKeeper also
checks our election node in the same transaction (DESIGN.md invariant 4).
"""

import asyncio
import threading
from dataclasses import dataclass

import structlog
from kazoo.exceptions import KazooException
from kazoo.protocol.states import KazooState

from cluster import clock
from cluster.coordination import Coordination

RETRY_SECONDS = 0.5
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads, as the others read it."""

    name: str
    url: str


class Leadership:
    """Take part in the election until `stop`. `changed` is set in the loop when leading begins or ends."""

    def __init__(self, coordination: Coordination, name: str) -> None:
        self.changed = asyncio.Event()
        self._coordination = coordination
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._node: str | None = None
        self._step_down = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)
        coordination.client.add_listener(self._on_state)

    def start(self) -> None:
        """Begin to take part."""
        self._thread.start()

    def stop(self) -> None:
        """Give up leading and leave; the session's end removes our election node."""
        self._stopping.set()
        self._step_down.set()

    @property
    def node(self) -> str | None:
        """The full path of our election node while we lead."""
        return self._node

    def valid(self) -> bool:
        """Return whether we lead and our session certainly lives."""
        return self._node is not None and self._coordination.lease_valid(clock.now())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                election = self._coordination.client.Election(self._coordination.path("election"), self._name)
                election.run(self._lead, election)
            except KazooException as error:
                log.warning("election.interrupted", error=repr(error))
            self._stopping.wait(RETRY_SECONDS)

    def _lead(self, election: object) -> None:
        lock = election.lock  # type: ignore[attr-defined]  # kazoo ships no types
        self._step_down.clear()
        self._set(f"{lock.path}/{lock.node}")
        try:
            self._step_down.wait()
        finally:
            self._set(None)

    def _set(self, node: str | None) -> None:
        self._node = node
        try:
            self._loop.call_soon_threadsafe(self.changed.set)
        except RuntimeError:
            self._stopping.set()  # the loop is gone: so are we

    def _on_state(self, state: str) -> None:
        if state == KazooState.LOST:
            self._step_down.set()
