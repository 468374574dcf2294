"""One controller of one cluster, put together: its session, its copy of the records, its election, its HTTP, its loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from cluster import clock, http, settings
from cluster.clock import Nanos
from cluster.coordination import Coordination, in_order
from cluster.errors import Conflict, OscarHaError
from cluster.settings import Secrets, Settings, Timing
from cluster.zookeeper import Session
from controller.api import Api
from controller.hearing import Hearing
from controller.leadership import Leader, Leadership
from controller.loop import Loop
from controller.metrics import Metrics
from controller.mirror import Mirror
from controller.suspending import Countdown
from controller.world import World

START_DEADLINE_MS = 5_000
CONTROLLER_TTL_MS = 2_000
"""A controller holds no database: its session may end sooner than a watchdog's, so that the next one leads sooner."""
CONTROLLER_MARGIN_MS = 400
CONTROLLER_RENEW_SECONDS = 0.5
LEADER_RENEW_SECONDS = 5.0
"""Who leads is written when that changes; again only should somebody have deleted it."""
events = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are done that are done again and again, by a process that may do them for many clusters."""

    renew_seconds: float = CONTROLLER_RENEW_SECONDS
    ask_pause_ms: Callable[[], float] = lambda: 0.0


ALONE = Pace()


@asynccontextmanager
async def controller(
    loaded: Settings,
    secret: Secrets,
    own: settings.Controller,
    shared: Session | None = None,
    pace: Pace = ALONE,
) -> AsyncIterator[Loop]:
    """Give a controller that is connected, takes part in the election and answers HTTP; its loop is yours to run."""
    timing = _timing(loaded)
    async with AsyncExitStack() as stack:
        members = in_order(loaded.zookeeper, own.host)
        session = shared or await stack.enter_async_context(a_session(members, timing.session_ttl_ms))
        coordination = Coordination(loaded.zookeeper, loaded.root, timing, session)
        await coordination.start(deadline_ms=START_DEADLINE_MS)
        stack.push_async_callback(coordination.stop)
        mirror = Mirror(coordination, loaded)
        leadership = Leadership(coordination, own.name)
        stack.push_async_callback(leadership.stop)
        world = await stack.enter_async_context(World(loaded, secret, coordination, mirror, leadership))
        client = await stack.enter_async_context(http.Client(secret.token))
        loop = Loop(world, Metrics(loaded.name, mirror.view, leadership.valid))
        api = Api(loaded, secret.token, own.name, loop, client)
        runner = await http.serve(api.app, own.host, own.port, what=f"controller {own.name}")
        stack.push_async_callback(runner.cleanup)
        beside = (
            leadership.start(),
            asyncio.create_task(Countdown(world).run()),
            asyncio.create_task(Hearing(loaded, mirror, leadership, client, pace.ask_pause_ms).run()),
            asyncio.create_task(_renew(coordination, leadership, Leader(name=own.name, url=own.url), pace)),
        )
        for task in beside:
            task.add_done_callback(lambda _: loop.stop())
            stack.push_async_callback(_cancelled, task)
        yield loop
        for task in beside:
            if task.done():
                task.result()  # it never ends by itself: an error that nobody foresaw ends the controller


@asynccontextmanager
async def a_session(hosts: Sequence[str], ttl_ms: int) -> AsyncIterator[Session]:
    """Give a session that its user starts; it is closed at the end."""
    session = Session(hosts, ttl_ms)
    try:
        yield session
    finally:
        await session.stop()


def _timing(loaded: Settings) -> Timing:
    """Return the deadlines of a controller: shorter than those of whoever holds a database."""
    return replace(
        loaded.timing,
        session_ttl_ms=session_ttl_ms(loaded),
        lease_margin_ms=min(CONTROLLER_MARGIN_MS, loaded.timing.lease_margin_ms),
        call_deadline_ms=min(CONTROLLER_TTL_MS - CONTROLLER_MARGIN_MS, loaded.timing.call_deadline_ms),
    )


def session_ttl_ms(loaded: Settings) -> int:
    """Return how long the session of a cluster's controller lives without its process."""
    return min(CONTROLLER_TTL_MS, loaded.timing.session_ttl_ms)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _renew(coordination: Coordination, leadership: Leadership, leader: Leader, pace: Pace) -> None:
    """Keep our own lease: the right to act for as long as our session certainly lives."""
    leading = False
    told_at: Nanos | None = None
    while True:
        leadership.changed.clear()
        try:
            await coordination.publish(f"controllers/{leader.name}", leader)
            if leadership.node is None:
                await coordination.withdraw("leader")
                told_at = None
            elif told_at is None or clock.ms_between(told_at, clock.now()) >= LEADER_RENEW_SECONDS * 1000:
                await coordination.publish("leader", leader)
                told_at = clock.now()
        except Conflict as error:
            events.warning("leader.superseded", error=str(error))
        except OscarHaError as error:
            events.warning("lease.not_renewed", error=str(error))
        if leading != leadership.valid():
            leading = leadership.valid()
            events.info("leading.changed", leading=leading)
        try:
            async with asyncio.timeout(pace.renew_seconds):
                await leadership.changed.wait()
        except TimeoutError:
            continue
