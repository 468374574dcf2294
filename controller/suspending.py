"""What a person suspends for a while: all automatic action (a pause), or what is done to one node (its maintenance).

How long is left is counted down by the leader on its own clock and written now and then: a successor goes on from there, and no
wall clock that jumps ends or prolongs it (TRAPS.md 38). While nobody leads nothing happens by itself anyway.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from cluster import clock
from cluster.errors import BadInput, Conflict, OscarHaError, Refused
from cluster.orders import DELAY_SECONDS_MAX
from cluster.records import Suspension
from controller.decide import is_current
from controller.model import PlanRecord, View
from controller.world import World

COUNT_SECONDS = 10.0
"""What a change of the leader may give in addition."""
LOOK_SECONDS = 1.0
MS_PER_SECOND = 1000
TEXT_MAX = 200
log = structlog.get_logger()


def requested(body: Mapping[str, Any], *, why: str, peer: str | None) -> Suspension:
    """Return what a request `{why?, who?, for_seconds?}` asks for. Raises BadInput."""
    seconds, who = body.get("for_seconds"), body.get("who") or peer or ""
    if seconds is not None and (type(seconds) is not int or not 1 <= seconds <= DELAY_SECONDS_MAX):
        raise BadInput(
            f"for_seconds is {seconds!r}", hint=f"a whole number from 1 to {DELAY_SECONDS_MAX}, or leave it out"
        )
    if not isinstance(who, str):
        raise BadInput(f"who is {who!r}", hint="give a name as text")
    until = None if seconds is None else clock.utc_text(clock.utc_seconds() + seconds)
    return Suspension(why=why, since=clock.utc_now(), who=who[:TEXT_MAX], until=until, left_seconds=seconds)


def require_maintainable(view: View, plan: PlanRecord | None, name: str, *, force: bool) -> None:
    """Raise BadInput, Refused or Conflict when somebody must not begin to work on a node now, with what to do first."""
    node = view.node(name)
    if node is None:
        raise BadInput(f"there is no node {name!r}", hint=f"one of: {', '.join(one.name for one in view.nodes)}")
    if plan is not None and name in (plan.candidate, plan.old):
        raise Conflict(f"a {plan.kind.value} is running that needs {name}", hint="see 'oscar-ha status'")
    primary = view.epoch.primary if view.epoch is not None else None
    if name == primary:
        others = [one.name for one in view.nodes if one.name != name and is_current(one)]
        to = others[0] if others else "NODE"
        raise Refused(f"{name} is the primary: its clinics would stand still",
                      hint=f"oscar-ha switchover --to {to}, then oscar-ha maintenance {name} on")  # fmt: skip
    others = [one.name for one in view.nodes if one.name not in (name, primary) and is_current(one)]
    if is_current(node) and not others and not force:
        raise Refused(f"{name} is the only standby that is current: until it is back a failover would not work",
                      hint="--force puts it in maintenance all the same")  # fmt: skip


class Countdown:
    """Ends what has an end; `run` it beside the loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._counted: dict[str, tuple[int, clock.Nanos]] = {}
        """The version that we know, and when we began to count from what it says."""

    async def run(self) -> None:
        """Count for ever."""
        while True:
            try:
                await self.look()
            except OscarHaError as error:
                log.info("suspension.not_counted", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Count once, while we lead."""
        if not self._world.leadership.valid():
            self._counted = {}
            return
        mirror = self._world.mirror
        for path in ("pause", *(f"maintenance/{node.name}" for node in self._world.settings.nodes)):
            found, version = mirror.get(Suspension, path), mirror.version(path)
            if found is None or found.left_seconds is None or version is None:
                self._counted.pop(path, None)
                continue
            known, began = self._counted.setdefault(path, (version, clock.now()))
            if known != version:
                self._counted[path] = (version, clock.now())
                continue
            await self._count(path, found, version, clock.ms_between(began, clock.now()) / MS_PER_SECOND)

    async def _count(self, path: str, found: Suspension, version: int, elapsed: float) -> None:
        left = (found.left_seconds or 0.0) - elapsed
        if left <= 0:
            await self._world.end_suspension(path, version)
            log.warning("suspension.over", path=path, why=found.why, who=found.who, since=found.since)
        elif elapsed >= COUNT_SECONDS:
            await self._world.suspend(path, replace(found, left_seconds=round(left, 1)))
