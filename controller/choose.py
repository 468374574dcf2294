"""Which standby, and is its data complete: pure, with the reasons that `dry_run` prints."""

import re
from dataclasses import dataclass

from cluster.lineage import History, judge_history
from cluster.orders import duration
from cluster.position import Position
from cluster.records import Database, DurabilityRecord
from controller.model import Kind, NodeFacts, PlanRecord, View, newest
from controller.proof import lost_if_promoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One node as a possible primary. `against` is empty when it is able."""

    node: str
    able: bool
    against: tuple[str, ...]
    behind: int | None
    """Transactions that its site's archive or the primary has and it has not applied; None: not known."""


def rank(view: View, plan: PlanRecord) -> tuple[Candidate, ...]:
    """Return every node, the best first: able, not failed in this plan, asked for, by site, then by position."""
    target = reachable_target(view, plan)
    judged = {node.name: _judge(view, plan, node, target) for node in view.nodes}

    def key(node: NodeFacts) -> tuple[object, ...]:
        one = judged[node.name]
        sites = view.policy.sites
        return (
            not one.able,
            node.name in plan.excluded,
            node.name != plan.requested,
            node.delay_seconds > 0,  # it must catch up first: only when nobody else is able
            node.name == plan.old,  # it failed once already; the others have not
            sites.index(node.site) if node.site in sites else len(sites),
            one.behind if one.behind is not None else 2**64,
            node.name,
        )

    return tuple(judged[node.name] for node in sorted(view.nodes, key=key))


def reachable_target(view: View, plan: PlanRecord) -> Position | None:
    """Return the most advanced sealed archive, None when none is known or two of them contradict each other.

    An archive that ends with transactions no epoch ever had is not advanced, however high its numbers are: it holds a
    dead tail of an older epoch that its replicator has not cut yet.
    """
    known = [one.durable for one in plan.sealed if one.durable is not None]
    return newest(tuple(Position.parse(durable) for durable in known if is_ours(view, durable)))


def is_ours(view: View, position: str) -> bool:
    """Return whether a position lies in the cluster's history, as far as the lineage tells."""
    if view.epoch is None:
        return True
    return judge_history(Position.parse(position), view.epoch.lineage, None) is History.EQUAL_OR_BEHIND


def forbids_grants(view: View, plan: PlanRecord) -> bool:
    """Return whether a sealed replicator keeps the old primary from going on without ZooKeeper (decision 0078).

    For that it needs the grants of all replicators outside its own site, and whoever has told of its seal gives none.
    """
    old = view.node(plan.old or "")
    return any(old is None or one.site != old.site for one in plan.sealed)


def incomplete(view: View, plan: PlanRecord) -> str | None:
    """Return why promoting now could un-say an acknowledged write, None when it certainly cannot."""
    if plan.kind is Kind.BOOTSTRAP or plan.allow_data_loss:
        return None
    if view.durability is None:
        return "it is not recorded who acknowledged: nothing proves that the archives are complete"
    if (unproven := _unproven(view, plan, view.durability)) is not None:
        return unproven
    target = reachable_target(view, plan)
    if target is None:
        return "no sealed archive tells its position"
    if not target.covers(Position.parse(view.durability.floor)):
        return f"the archives end at {target or 'nothing'}, acknowledged is at least {view.durability.floor}"
    if plan.fenced_position is not None and not target.covers(Position.parse(plan.fenced_position)):
        return f"the archives end at {target or 'nothing'}, the fenced primary at {plan.fenced_position}"
    return lost_if_promoted(view, plan, target)


def _unproven(view: View, plan: PlanRecord, record: DurabilityRecord) -> str | None:
    """One sealed member of each group speaks for it: every member has what the group acknowledged (decision 0030)."""
    sealed = {one.site: one.durable for one in plan.sealed if one.durable is not None}
    for group in record.groups:
        told = [(site, sealed[site]) for site in group if site in sealed]
        if any(is_ours(view, durable) for _, durable in told):
            continue
        if told:
            site, durable = told[0]
            return f"the archive of {site} ends with a tail of a dead epoch ({durable}): it must cut that first"
        which = "site" if len(group) == 1 else "sites"
        return (f"the acknowledging {which} {' and '.join(group)} cannot be reached:"
                " what was acknowledged there alone would be lost")  # fmt: skip
    return None


def _judge(view: View, plan: PlanRecord, node: NodeFacts, target: Position | None) -> Candidate:
    report, against = node.report, []
    behind: int | None = None
    replicator = view.replicator(node.site)
    if plan.kind is Kind.SWITCHOVER and node.name == plan.old:
        against.append("it is the primary now")
    if node.maintenance is not None:
        against.append(f"it is in maintenance {node.maintenance.text}: oscar-ha maintenance {node.name} off")
    against += _judge_order(plan, node)
    if report is None:
        against.append("its watchdog does not report")
    elif report.database is not Database.UP:
        against.append(f"its database is {report.database.value}")
    elif report.seeding is not None and report.seeding.phase.replaces:
        against.append(f"its data is being replaced by a copy of {report.seeding.donor}'s")
    elif report.position is None:
        against.append("its position is not known")
    else:
        against += _judge_history(view, report.position, target)
        head = target or _head(view)
        behind = Position.parse(report.position).distance(head) if head is not None else None
    if replicator is None or replicator.report is None:
        against.append(f"the replicator of {node.site} does not report")
    if report is not None:
        against += _judge_version(view, report.server_version)
        if report.health is not None and report.health.failed:
            against.append(f"it has failed: {report.health.text}")
    return Candidate(node=node.name, able=not against, against=tuple(against), behind=behind)


def _judge_order(plan: PlanRecord, node: NodeFacts) -> list[str]:
    """A held node is promoted by nobody's plan; a delayed one never when there is a choice of the moment."""
    if node.held is not None:
        return [f"it is {node.held} as ordered: oscar-ha release {node.name}"]
    if node.delay_seconds and plan.kind is Kind.SWITCHOVER:
        return [f"it is delayed {duration(node.delay_seconds)} as ordered: oscar-ha delay {node.name} --off"]
    return []


def _judge_history(view: View, position: str, target: Position | None) -> list[str]:
    if view.epoch is None:
        return []
    here = Position.parse(position)
    # Before the archives are sealed the head moves, and the primary's report of it may be a second older than this one.
    match judge_history(here, view.epoch.lineage, target):
        case History.AHEAD:
            return [f"it is ahead ({position}): it has transactions that the cluster has not"]
        case History.DIVERGED:
            return [f"its history is another one ({position}): it must be rescued and reseeded"]
        case History.EQUAL_OR_BEHIND:
            return []


def _judge_version(view: View, version: str | None) -> list[str]:
    primary = view.node(view.epoch.primary) if view.epoch else None
    reference = primary.report.server_version if primary and primary.report else None
    if version is None or reference is None or numbers_of(version) >= numbers_of(reference):
        return []
    return [f"its server {version} is older than the primary's {reference}"]


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers of a server's version, so that they can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _head(view: View) -> Position | None:
    primary = view.node(view.epoch.primary) if view.epoch else None
    if primary is None or primary.report is None or primary.report.position is None:
        return None
    return Position.parse(primary.report.position)
