"""Which standby, and is its data complete: pure, with the reasons that `dry_run` prints."""

import re
from collections.abc import Iterator
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
    notes: tuple[str, ...] = ()
    """What puts it behind others though it is able."""
    older: bool = False
    """Its server is older than the primary's."""

    @property
    def text(self) -> str:
        """Return the reasons for and against it as people read them."""
        return f"{self.node}: {', '.join(self.against or ('able', *self.notes))}"


def rank(view: View, plan: PlanRecord) -> tuple[Candidate, ...]:
    """Return every node, the best first: able, not failed in this plan, asked for, not older, by site, then by position."""
    target = reachable_target(view, plan)
    judged = {node.name: _judge(view, plan, node, target) for node in view.nodes}

    def key(node: NodeFacts) -> tuple[object, ...]:
        one = judged[node.name]
        sites = view.policy.sites
        return (
            not one.able,
            node.name in plan.excluded,
            node.name != plan.requested,
            one.older,  # never before one that is not: what was upgraded stays so while there is a choice
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
    if plan.kind is Kind.BOOTSTRAP:
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


def may_acknowledge(view: View, plan: PlanRecord) -> str | None:
    """Return who might still acknowledge a commit of the ending epoch, None when certainly nobody does.

    Of each group one member has sealed, or the leases of all have ended; whoever comes back later looks for this plan first.
    """
    sealed = {one.site for one in plan.sealed}
    for group in view.durability.groups if view.durability else ():
        facts = [view.replicator(site) for site in group]
        ended = all(one is None or (one.report is None and view.lease_ended(one.absent_ms)) for one in facts)
        if not sealed & set(group) and not ended:
            return f"{' and '.join(group)} may still acknowledge: neither sealed nor without a lease"
    return None


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
    if node.no_promotion and plan.requested != node.name:
        against.append("the settings say no_promotion: only where an operator names it")
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
    if report is not None and report.health is not None and report.health.failed:
        against.append(f"it has failed: {report.health.text}")
    older = _older(view, node)
    if older is not None and plan.kind is Kind.SWITCHOVER:
        against.append(older)
    return Candidate(
        node=node.name, able=not against, against=tuple(against), behind=behind, older=older is not None,
        notes=tuple(_notes(view, plan, node, older)),
    )  # fmt: skip


def _notes(view: View, plan: PlanRecord, node: NodeFacts, older: str | None) -> Iterator[str]:
    if node.name in plan.excluded:
        yield "it failed in this plan already"
    if older is not None:
        yield f"{older}: only while nobody else is able"
    if node.delay_seconds:
        yield f"it is delayed {duration(node.delay_seconds)} as ordered: only while nobody else is able"
    if node.name == plan.old:
        yield "it is the old primary"
    if node.site in view.policy.sites:
        yield f"site {node.site} is number {view.policy.sites.index(node.site) + 1} of the settings"


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


def _older(view: View, node: NodeFacts) -> str | None:
    """Return that a node's server is older than the primary's is, or was when it was last heard of; None if it is not."""
    primary = view.node(view.epoch.primary) if view.epoch else None
    reference = primary.version if primary else None
    if node.version is None or reference is None or numbers_of(node.version) >= numbers_of(reference):
        return None
    return f"its server {node.version} is older than the primary's {reference}"


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers of a server's version, so that they can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _head(view: View) -> Position | None:
    primary = view.node(view.epoch.primary) if view.epoch else None
    if primary is None or primary.report is None or primary.report.position is None:
        return None
    return Position.parse(primary.report.position)
