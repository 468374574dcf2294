"""Giving an order to a standby: ask its archive where the transaction is, judge, write the record. Only the leader does.

The watchdog obeys; nobody waits here for that. A running plan is not disturbed: its own candidate gets no order.
"""

from collections.abc import Mapping
from typing import Any

from cluster import clock
from cluster.errors import BadInput, Conflict
from cluster.http import Client
from cluster.orders import DELAY_SECONDS_MAX
from cluster.position import Gtid
from cluster.records import decode
from controller import orders
from controller.model import PlanRecord
from controller.orders import Place, Plan
from controller.world import World

FIND_DEADLINE_MS = 60_000
"""The newest file of an archive has no index on disk: finding a place in it means reading it."""
SECONDS_MAX = 2**33


async def give(
    world: World, client: Client, verb: str, node: str, body: Mapping[str, Any], *, why: str
) -> dict[str, Any]:
    """Do `delay`, `hold` or `release` for a node; return what was ordered. Raises BadInput, Refused, Conflict."""
    await world.mirror.refresh()
    force, dry_run = _flag(body, "force"), _flag(body, "dry_run")
    place = await _place(world, client, node, body) if verb == "hold" else None
    await world.mirror.refresh()
    plan = _planned(world, verb, node, body, place, force=force, why=why)
    if not dry_run:
        _require_not_needed(world, node, verb)
        await world.give_order(node, plan.order)
    return orders.describe(plan, place, dry_run=dry_run)


def _planned(
    world: World, verb: str, node: str, body: Mapping[str, Any], place: Place | None, *, force: bool, why: str
) -> Plan:
    view, since = world.mirror.view(), clock.utc_now()
    match verb:
        case "delay":
            seconds = _whole(body, "seconds", DELAY_SECONDS_MAX)
            return orders.plan_delay(view, node, seconds, force=force, since=since, why=why)
        case "hold":
            return orders.plan_hold(view, node, place, force=force, since=since, why=why)
        case _:
            return orders.plan_release(view, node, since=since, why=why)


def _require_not_needed(world: World, node: str, verb: str) -> None:
    plan = world.mirror.get(PlanRecord, "plan")
    if plan is not None and plan.candidate == node and verb != "release":
        raise Conflict(f"a {plan.kind.value} is just promoting {node}", hint="see 'oscar-ha status'")


async def _place(world: World, client: Client, node: str, body: Mapping[str, Any]) -> Place | None:
    """Ask the archive that the node reads from; None for "now"."""
    before, time, now = body.get("before"), body.get("time"), _flag(body, "now")
    if (before is not None) + (time is not None) + now != 1:
        raise BadInput("say either before which transaction or time, or now", hint='{"before": "0-1-123"}')
    if now:
        return None
    if before is None:
        query = f"time={_whole(body, 'time', SECONDS_MAX)}"
    elif isinstance(before, str):
        query = f"gtid={Gtid.parse(before)}"
    else:
        raise BadInput(f"before is {before!r}", hint='a transaction as text: "0-1-123"')
    view = world.mirror.view()
    if view.node(node) is None:
        raise BadInput(f"there is no node {node!r}", hint=f"one of: {', '.join(one.name for one in view.nodes)}")
    url = f"{world.settings.replicator(world.settings.node(node).site).url}/v1/before?{query}"
    return decode(Place, await client.get(url, deadline_ms=FIND_DEADLINE_MS), where=url)


def _whole(body: Mapping[str, Any], field: str, most: int) -> int:
    value = body.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadInput(f"{field} is {value!r}", hint=f"a whole number from 0 to {most}")
    return value


def _flag(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field, False)
    if not isinstance(value, bool):
        raise BadInput(f"{field} is {value!r}", hint="true or false")
    return value
