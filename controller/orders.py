"""What may be ordered of a standby, and what the order is: pure, with every reason of a refusal.

A delayed standby is promoted only when nobody else can be, a held one never; so who would leave the cluster without a
standby that is current needs `force`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import BadInput, Refused
from cluster.orders import Hold, Obedience, Obeying, Order, duration
from cluster.position import Gtid, Position
from controller.choose import is_ours
from controller.decide import is_current
from controller.model import NodeFacts, View

OTHERWISE = "no standby is still before it: that takes a restore to a point in time, from a backup and the archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the replicator of a node's site says of the transaction to stop before."""

    gtid: str
    position: str
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An order that may be given."""

    node: str
    order: Order
    warnings: tuple[str, ...] = ()


def plan_delay(view: View, name: str, seconds: int, *, force: bool, since: str, why: str) -> Plan:
    """Return the order to stay so far behind, 0 for no longer. A hold stays. Raises BadInput, Refused."""
    node = _orderable(view, name)
    dangers = _dangers(view, node) if seconds else []
    _require_forced(name, dangers, force=force)
    hold = node.order.hold if node.order is not None else None
    order = Order(serial=_serial(node), since=since, why=why, delay_seconds=seconds, hold=hold)
    return Plan(node=name, order=order, warnings=(*dangers, *([f"{name} stays {hold.text}"] if hold else [])))


def plan_hold(view: View, name: str, place: Place | None, *, force: bool, since: str, why: str) -> Plan:
    """Return the order to stop before a transaction, None for where the node stands. The delay stays. Raises as above."""
    node = _orderable(view, name)
    if place is not None:
        _require_before(view, node, place)
    dangers = _dangers(view, node)
    _require_forced(name, dangers, force=force)
    hold = Hold(before=None, position=None) if place is None else Hold(before=place.gtid, position=place.position)
    delay_seconds = node.order.delay_seconds if node.order is not None else 0
    order = Order(serial=_serial(node), since=since, why=why, delay_seconds=delay_seconds, hold=hold)
    return Plan(node=name, order=order, warnings=tuple(dangers))


def plan_release(view: View, name: str, *, since: str, why: str) -> Plan:
    """Return the order to go on. The delay stays. Raises Refused when the node is not held."""
    node = view.node(name)
    if node is None:
        raise _unknown(view, name)
    if node.order is None or node.order.hold is None:
        raise Refused(f"{name} is not held", hint="see 'oscar-ha status'")
    delay_seconds = node.order.delay_seconds
    more = [f"{name} stays delayed {duration(delay_seconds)}"] if delay_seconds else []
    order = Order(serial=_serial(node), since=since, why=why, delay_seconds=delay_seconds)
    return Plan(node=name, order=order, warnings=tuple(more))


def describe(plan: Plan, place: Place | None, *, dry_run: bool) -> dict[str, Any]:
    """Return the answer of an HTTP call."""
    return {
        "node": plan.node, "dry_run": dry_run, "order": asdict(plan.order), "text": plan.order.text,
        "place": None if place is None else asdict(place), "warnings": list(plan.warnings),
    }  # fmt: skip


def in_force(node: Mapping[str, Any]) -> str | None:
    """Return the order of a node of `GET /v1/cluster` as a person says it, None when nothing is ordered."""
    return str(node["ordered_text"]) if node.get("ordered_text") else None


def obeyed(told: Obedience | None, order: Order) -> Obeying | None:
    """Return how far a watchdog is with this order, None while it has not read it."""
    return told.state if told is not None and told.serial is not None and told.serial >= order.serial else None


# -- below ------------------------------------------------------------------------------------------------------------


def _unknown(view: View, name: str) -> BadInput:
    return BadInput(f"there is no node {name!r}", hint=f"one of: {', '.join(one.name for one in view.nodes)}")


def _serial(node: NodeFacts) -> int:
    return 1 + (node.order.serial if node.order is not None else 0)


def _orderable(view: View, name: str) -> NodeFacts:
    node = view.node(name)
    if node is None:
        raise _unknown(view, name)
    if view.epoch is None:
        raise Refused("no epoch is open yet", hint="wait until the first primary is open")
    if view.epoch.primary == name:
        raise Refused(f"{name} is the primary: it cannot stay behind", hint="name a standby: oscar-ha status")
    if node.report is None:
        raise Refused(f"the watchdog of {name} does not report", hint="start it: it does the work")
    return node


def _dangers(view: View, node: NodeFacts) -> list[str]:
    """Return what the cluster would lose, each a sentence."""
    others = [one for one in view.nodes if view.epoch and one.name not in (node.name, view.epoch.primary)]
    if is_current(node) and not any(is_current(one) for one in others):
        return ["it is the only standby that is current: a failover would have to wait for it, or would not work"]
    return []


def _require_forced(name: str, dangers: list[str], *, force: bool) -> None:
    if dangers and not force:
        raise Refused(f"{name}: {'; '.join(dangers)}", hint="--force orders it all the same")


def _require_before(view: View, node: NodeFacts, place: Place) -> None:
    """Refuse what the node has applied already; say how far it is, and who is still before it."""
    stop, gtid = Position.parse(place.position), Gtid.parse(place.gtid)
    here = node.report.position if node.report is not None else None
    if here is None:
        raise Refused(f"the position of {node.name} is not known", hint="see 'oscar-ha status'")
    if not is_ours(view, here):
        raise Refused(f"{node.name} has another history ({here})", hint=f"oscar-ha reinitialize {node.name}")
    applied = Position.parse(here)
    if stop.covers(applied):
        return
    primary = view.epoch.primary if view.epoch else ""
    able = [one.name for one in view.nodes if one.name not in (primary, node.name) and one.report is not None
            and one.report.position is not None and stop.covers(Position.parse(one.report.position))]  # fmt: skip
    further = stop.distance(applied) - 1
    raise Refused(
        f"{node.name} has applied {gtid} already: it stands at {here}, {further:,} transactions after it",
        hint=f"oscar-ha hold {able[0]} --before {gtid}" if able else OTHERWISE,
    )
