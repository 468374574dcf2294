"""A standby's order, as its watchdog knows it: read from ZooKeeper, kept while ZooKeeper is away, obeyed for ever.

The order is a record of ZooKeeper, the delay a setting of the server, the hold a state of its threads: whatever is
restarted, the other two are compared again with the record.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from cluster import clock
from cluster.coordination import Coordination
from cluster.dialect import Replication, Session
from cluster.errors import BadInput, OscarHaError, Refused, Unreachable
from cluster.orders import Obedience, Obeying, Order, duration
from cluster.position import Position
from cluster.settings import Replicator
from healthcheck import obey
from healthcheck.obey import Act, Standing

REREAD_SECONDS = 5.0
RETRY_SECONDS = 0.25
LIFT_EXTRA_MS = 60_000.0
"""A plan that needs a delayed node comes again within this time, or has gone on without it."""
MS_PER_SECOND = 1000
log = structlog.get_logger()


class Orders:
    """The order of one node, and how far it is obeyed."""

    def __init__(self, node: str, coordination: Coordination, changed: Callable[[], None]) -> None:
        self._node, self._coordination, self._changed = node, coordination, changed
        self.known = False
        self.order: Order | None = None
        self.state = Obeying.UNKNOWN
        self.trouble = ""
        self._lifted_until: clock.Nanos | None = None
        self._running_to: tuple[str, str] | None = None
        self._news, self._watched = asyncio.Event(), False

    # -- knowing ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the order current: by watch, after every reconnect, and now and then for certainty."""
        self._coordination.listen(lambda _: self._on_news())
        while True:
            self._news.clear()
            pause = REREAD_SECONDS
            try:
                await self._read()
            except OscarHaError as error:
                pause = REREAD_SECONDS if self.known or isinstance(error, BadInput) else RETRY_SECONDS
                if str(error) != self.trouble:
                    log.warning("order.not_read", error=str(error))
                self.trouble = str(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    async def _read(self) -> None:
        # One watch at a time: kazoo keeps every one it is given until it fires.
        watch, self._watched = None if self._watched else self._on_news, True
        try:
            found = await self._coordination.read(Order, f"orders/{self._node}", watch)
        except BadInput:
            raise
        except OscarHaError:
            self._watched = False
            raise
        order = None if found is None else found[0]
        if order is not None and self.order is not None and order.serial < self.order.serial:
            return  # a member that lags behind the quorum answers with the past
        news, self.trouble = not self.known or order != self.order, ""
        self.known, self.order = True, order
        if news:
            self.state = Obeying.UNKNOWN
            log.info("order.known", order="none" if order is None else order.text or "none", serial=self.serial)
            if order is None or not order.delay_seconds:
                self._lifted_until = None
            self._changed()

    def _on_news(self) -> None:
        self._watched = False
        self._news.set()

    @property
    def serial(self) -> int | None:
        return None if self.order is None else self.order.serial

    @property
    def holds(self) -> bool:
        """Return whether the node is certainly ordered to stand still, or to run to where it is to stand."""
        return self.order is not None and self.order.hold is not None

    @property
    def report(self) -> Obedience:
        """Return what others are told."""
        if not self.known or self.order is None:
            return Obedience(state=Obeying.FREE if self.known else Obeying.UNKNOWN)
        hold = self.order.hold
        return Obedience(state=self.state, serial=self.order.serial, delay_seconds=self.order.delay_seconds,
                         before=None if hold is None else hold.before)  # fmt: skip

    def why(self, lag_ms: float | None) -> str | None:
        """Return what a person wants to know of a standby with an order, None without one."""
        if not self.known:
            return f"it is not known yet whether a delay or a hold is ordered: {self.trouble or 'ZooKeeper is asked'}"
        if self.trouble:
            return f"its order cannot be read, it obeys the last one: {self.trouble}"
        if self.order is None or not self.order.in_force:
            return None
        behind = "" if lag_ms is None else f" ({duration(lag_ms / MS_PER_SECOND)} behind)"
        match self.state:
            case Obeying.LATE:
                return f"it was to be {self.order.text}, but had applied that already: it stands still where it is"
            case Obeying.MOVING:
                return f"runs forward to be {self.order.text}{behind}"
            case Obeying.LIFTED:
                return f"{self.order.text}, but a failover needs it: it catches up{behind}"
            case _:
                return f"{self.order.text}{behind}"

    # -- what may be done ---------------------------------------------------------------------------------------------

    def require_free_to_move(self, what: str) -> None:
        """Raise Refused when the node is held, Unreachable while nobody knows."""
        if not self.known:
            raise Unreachable(f"it cannot {what}: {self.why(None)}", hint="try again")
        if self.order is not None and self.order.hold is not None:
            raise Refused(f"it cannot {what}: it is {self.order.text}", hint=f"oscar-ha release {self._node}")

    def require_nothing_ordered(self, what: str) -> None:
        """Raise Refused when the node is held or delayed, Unreachable while nobody knows."""
        self.require_free_to_move(what)
        if self.order is not None and self.order.in_force:
            raise Refused(f"it cannot {what}: it is {self.order.text}", hint=f"oscar-ha delay {self._node} --off")

    @property
    def lifted(self) -> bool:
        """Return whether the delay does not count at present because a failover needs the node."""
        return self._lifted_until is not None and clock.seconds_left(self._lifted_until) > 0

    def lift(self, wait_ms: float) -> bool:
        """Let the delay not count for a while; return whether there is one."""
        if self.order is None or not self.order.delay_seconds:
            return False
        if not self.lifted:
            log.warning("delay.lifted", why="a plan waits for it", delay_seconds=self.order.delay_seconds)
        self._lifted_until = clock.after(clock.now(), wait_ms + LIFT_EXTRA_MS)
        return True

    def forget(self) -> None:
        """The server process ended: what it was told to do is gone."""
        self.state, self._running_to = Obeying.UNKNOWN, None

    # -- obeying ------------------------------------------------------------------------------------------------------

    def look(self, replication: Replication, position: str, generation: str) -> Act:
        """Compare what is with what is ordered; return what is to be done."""
        to = self._running_to
        standing = Standing(
            known=self.known, order=self.order, lifted=self.lifted, replication=replication,
            applied=Position.parse(position), running_to=to[1] if to and to[0] == generation else None,
        )  # fmt: skip
        state, act = obey.judge(standing)
        if act is not Act.LEAVE:  # it is so only once that is done
            state = Obeying.MOVING if self.holds else Obeying.UNKNOWN
        if state is not self.state:
            log.info("order.state", state=state.value, was=self.state.value, position=position)
        self.state = state
        return act

    def is_caught_up(self, replication: Replication) -> bool:
        """Return whether a joining node is where it should be."""
        return obey.caught_up(self.state, replication, self.order)

    def apply(self, session: Session, source: Replicator, generation: str) -> None:
        """Replicate, or stand still, as ordered. Blocks. Raises Unreachable while the order is not known."""
        order = self.order
        if not self.known:
            raise Unreachable(f"it follows nobody: {self.why(None)}", hint="try again")
        if order is None or order.hold is None:
            self._running_to = None
            session.follow(source, delay_seconds=obey.delay_seconds(order, lifted=self.lifted))
            return
        session.hold(source, order.hold.position)
        self._running_to = None if order.hold.position is None else (generation, order.hold.position)
