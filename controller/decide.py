"""The whole failover policy. Same view in, same decision out.

Level-triggered: a decision depends on where the cluster is, never on how it got there. A running plan is part of the
view of `controller/advance.py`; here nothing is running.
"""

from dataclasses import dataclass
from enum import Enum

from cluster.lineage import History, judge_history
from cluster.orders import Obeying, duration
from cluster.position import Position
from cluster.records import Acks, Database, EpochRecord, Health, NodeReport, Role, SeedPhase
from controller.ackers import acker_repair, outside, repair_while_lost
from controller.isolation import isolation_repair
from controller.model import Kind, NodeFacts, View
from controller.plan import Follow, Repair
from controller.proof import why_not_by_itself

DEAF_MS = 5_000.0
"""A watchdog that has not answered for so long has not only just restarted."""
STANDBY_LAG_MAX_MS = 10_000
"""A standby further behind does not count as current: a failover would make the clinics wait for it."""


class Reach(Enum):
    """How the primary is. UNKNOWN is not DOWN: silence is not death."""

    UP = "up"
    UNKNOWN = "unknown"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Judgement:
    """How the primary is, and why we think so."""

    reach: Reach
    why: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Name nobody, for this reason; what is to be recorded meanwhile."""

    why: str
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a plan that names a new primary."""

    kind: Kind
    old: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Mend:
    """The primary is well; these repairs are due. Empty: nothing is to be done."""

    repairs: tuple[Repair, ...]
    why: str


Decision = Hold | Start | Mend


def decide(view: View, since: str) -> Decision:
    """Return what to do while no plan is running. `since` is the wall time that a new record would show."""
    if view.paused:
        return Hold("paused: no automatic action")
    if view.epoch is None:
        return _begin(view)
    judgement = judge_primary(view, view.epoch)
    lost = repair_while_lost(view, view.epoch, since)
    meanwhile = () if lost is None else (lost,)
    match judgement.reach:
        case Reach.UP:
            return Mend(_repairs(view, view.epoch, since), judgement.why)
        case Reach.UNKNOWN:
            return Hold(f"primary unknown: {judgement.why}", meanwhile)
        case Reach.DOWN if view.flapping is not None:
            return Hold(f"{judgement.why}; {view.flapping}", meanwhile)
        case Reach.DOWN if (why := why_not_by_itself(view, view.node(view.epoch.primary))) is not None:
            return Hold(f"{judgement.why}; {why}", meanwhile)
        case Reach.DOWN:
            return Start(Kind.FAILOVER, view.epoch.primary, f"{view.epoch.primary} lost: {judgement.why}")


def judge_primary(view: View, epoch: EpochRecord) -> Judgement:
    """Return how the primary of `epoch` is. Dead means: its watchdog says so, or its lease ended (invariant 6)."""
    primary = view.node(epoch.primary)
    if primary is None:
        return Judgement(Reach.UNKNOWN, f"{epoch.primary} is not in the settings")
    if primary.report is None:
        return _judge_silence(view, epoch, primary)
    return _judge_report(view, epoch, primary.report)


def _judge_report(view: View, epoch: EpochRecord, report: NodeReport) -> Judgement:
    match report.database:
        case Database.DOWN:
            return Judgement(Reach.DOWN, "the server process is gone")
        case Database.HUNG:
            return Judgement(Reach.DOWN, "the server answers nothing")
        case Database.UNKNOWN:
            return Judgement(Reach.UNKNOWN, "its watchdog has not probed it yet")
        case Database.UP:
            pass
    if report.role is Role.PRIMARY and report.lease_epoch == epoch.epoch:
        return _judge_health(view, epoch, report.health)
    if report.resumable:
        return Judgement(Reach.UNKNOWN, f"it opens again by itself: {report.why}")
    if report.epoch < epoch.epoch:
        return Judgement(Reach.UNKNOWN, f"its watchdog has not seen epoch {epoch.epoch} yet")
    return Judgement(Reach.DOWN, f"it is {report.role.value} and does not open by itself: {report.why}")


def _judge_health(view: View, epoch: EpochRecord, health: Health | None) -> Judgement:
    """It answers. A failed one is replaced only where another one would certainly do better."""
    if health is None or not health.failed:
        return Judgement(Reach.UP, "the primary is up")
    if not view.policy.health_failover:
        return Judgement(Reach.UP, f"{health.text}; [health] failover is false: nothing is done by itself")
    if not any(would_do_better(node) for node in view.nodes if node.name != epoch.primary):
        return Judgement(Reach.UP, f"{health.text}; no other node would do better")
    return Judgement(Reach.DOWN, health.text)


def would_do_better(node: NodeFacts) -> bool:
    """Return whether a node certainly has not what a failed primary has: a standby that is sound and follows.

    Its lag says nothing here: it is measured by heartbeats, which a failed primary does not write.
    """
    report = node.report
    if report is None or report.health is None or report.health.failed or not report.replicating:
        return False
    if node.maintenance is not None:
        return False
    ordered = node.order is not None and node.order.in_force
    return report.role is Role.STANDBY and report.database is Database.UP and not ordered


def _judge_silence(view: View, epoch: EpochRecord, primary: NodeFacts) -> Judgement:
    if not view.lease_ended(primary.absent_ms):
        return Judgement(Reach.UNKNOWN, "its watchdog is silent, its lease may still hold")
    absent_ms = primary.absent_ms or 0.0
    live = [
        one.site for one in view.replicators if one.report and one.report.connected and one.report.epoch == epoch.epoch
    ]
    nobody = not any(one.report for one in view.replicators)
    if not live and not nobody:
        return Judgement(Reach.DOWN, "its lease ended and no replicator hears from it")
    if nobody and absent_ms < view.policy.watchdog_grace_ms:
        # As in the first seconds after ZooKeeper was gone: who is not back says nothing about whom it hears.
        return Judgement(Reach.UNKNOWN, "its lease ended, and no replicator is there to say whether it lives")
    if not live:
        return Judgement(Reach.DOWN, "its lease ended, and nobody came to say that it lives")
    if absent_ms < view.policy.watchdog_grace_ms:
        return Judgement(Reach.UNKNOWN, f"its watchdog is gone, {', '.join(live)} still hears from the database")
    # Clinics are cut off already: HAProxy finds no /primary. Sealing makes the change safe.
    return Judgement(Reach.DOWN, "its lease ended and its watchdog did not return")


def _begin(view: View) -> Decision:
    """Open the first epoch once everybody who should be there is there."""
    first = view.node(view.policy.initial_primary)
    if first is None or first.report is None or first.report.database is not Database.UP:
        return Hold(f"waiting for the database {view.policy.initial_primary} to open epoch 1")
    if first.report.position is None:
        return Hold(f"waiting for the position of {first.name}")
    here = Position.parse(first.report.position)
    for node in view.nodes:
        if node.report and node.report.position and not here.covers(Position.parse(node.report.position)):
            return Hold(f"{node.name} has transactions that {first.name} has not: seed it anew, or name it first")
    if not any(one.report for one in view.replicators if one.site != first.site):
        return Hold("waiting for a replicator outside the primary's site: nobody could acknowledge")
    return Start(Kind.BOOTSTRAP, None, f"no epoch yet: {first.name} is the first primary by the settings")


def _repairs(view: View, epoch: EpochRecord, since: str) -> tuple[Repair, ...]:
    due = (acker_repair(view, epoch, since), isolation_repair(view, epoch))
    return (*(one for one in due if one is not None), *_follow_repairs(view, epoch))


def _follow_repairs(view: View, epoch: EpochRecord) -> list[Repair]:
    return [
        Follow(node=node.name, epoch=epoch.epoch)
        for node in view.nodes
        if node.name != epoch.primary and node.maintenance is None and may_follow(view, epoch, node)
    ]


def may_follow(view: View, epoch: EpochRecord, node: NodeFacts) -> bool:
    """Return whether a node is up, fenced, and its history is a beginning of the cluster's."""
    report = node.report
    if report is None or report.database is not Database.UP or report.role is not Role.FENCED:
        return False
    if report.position is None or report.epoch < epoch.epoch:
        return False
    return history_of(view, epoch, report.position) is History.EQUAL_OR_BEHIND


def history_of(view: View, epoch: EpochRecord, position: str) -> History:
    """Return how a node's position stands to the cluster's history."""
    primary = view.node(epoch.primary)
    head = primary.report.position if primary and primary.report else None
    return judge_history(Position.parse(position), epoch.lineage, Position.parse(head) if head is not None else None)


def is_deaf(node: NodeFacts) -> bool:
    """Return whether a watchdog reports and does not answer us: the way between is cut in one direction."""
    return node.report is not None and node.deaf_ms is not None and node.deaf_ms >= DEAF_MS


def deaf(node: NodeFacts) -> str:
    return f"the watchdog of {node.name} reports to ZooKeeper, but does not answer the leading controller"


def is_current(node: NodeFacts) -> bool:
    """Return whether a standby applies what the primary writes at once. An unknown lag is not current."""
    report = node.report
    if node.maintenance is not None or (node.order is not None and node.order.in_force):
        return False
    if report is None or report.role is not Role.STANDBY or report.lag_ms is None:
        return False
    return report.lag_ms <= STANDBY_LAG_MAX_MS


def warnings(view: View) -> tuple[str, ...]:
    """Return what a person should mend by day though a failover would work now; empty when all is as it should be."""
    nodes = [node for node in view.nodes if node.maintenance is None]
    found = [f"{node.name}: {why}" for node in nodes if node.report is not None and node.report.health is not None
             for why in node.report.health.reasons]  # fmt: skip
    primary = view.epoch.primary if view.epoch else None
    found += [f"{deaf(node)}: it could not be promoted" for node in nodes if is_deaf(node) and node.name != primary]
    for node in nodes:
        if node.report is None:
            found.append(f"{node.name}: its watchdog does not report")
        elif node.report.role not in (Role.PRIMARY, Role.STANDBY):
            found.append(f"{node.name} is {node.report.role.value}: {node.report.why}")
            seeding = node.report.seeding
            if seeding is not None and seeding.phase is SeedPhase.FAILED and seeding.why not in node.report.why:
                found.append(f"{node.name}: seeding it from {seeding.donor} failed: {seeding.why}")
        elif node.order is not None and node.order.in_force:
            found += _disobeyed(node, node.report)
        elif node.report.role is Role.STANDBY and not is_current(node):
            lag = "an unknown time" if node.report.lag_ms is None else f"{node.report.lag_ms / 1000:.0f} s"
            found.append(f"{node.name} is {lag} behind: {node.report.why}")
    for one in view.replicators:
        if one.report is None:
            found.append(f"the replicator of {one.site} does not report: its standby falls behind")
        elif not one.report.connected:
            found.append(f"the replicator of {one.site} hears nothing from the primary: {one.report.why}")
        if one.report is not None:
            found += [f"the archive of {one.site} is damaged: {file.file}: {file.why}; {file.state}"
                      for file in one.report.damaged]  # fmt: skip
    return (*found, *_narrow(view))


def _disobeyed(node: NodeFacts, report: NodeReport) -> list[str]:
    """An ordered delay is no lag, and an ordered stop no fault. Return what is not as ordered."""
    told = report.order
    if told is not None and told.state is Obeying.LATE:
        return [
            f"{node.name} was to stop before {told.before} but had applied it: it stands still at {report.position}"
        ]
    if report.role is not Role.STANDBY or node.held is not None:
        return []
    if report.lag_ms is None or report.lag_ms > node.delay_seconds * 1000 + STANDBY_LAG_MAX_MS:
        lag = "an unknown time" if report.lag_ms is None else duration(report.lag_ms / 1000)
        return [f"{node.name} is {lag} behind, {duration(node.delay_seconds)} are ordered: {report.why}"]
    return []


def _narrow(view: View) -> list[str]:
    """Return which sites an acknowledgement does not mean though the settings say all."""
    record = view.durability
    if record is None or record.acks is not Acks.ALL or view.epoch is None:
        return []
    left_out = [site for site in outside(view, view.epoch.primary) if site not in record.ackers]
    return [f"acks = all leaves out {' and '.join(left_out)}: {record.why or 'not there when the epoch began'}"
            ] if left_out else []  # fmt: skip
