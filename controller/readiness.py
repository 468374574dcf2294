"""Whether a failover would work now and, if not, why: said all the time, days before it is needed (TRAPS.md 37).

Each reason has a code that never changes, for alerts; a sentence that may, for people; and what to do about it.
"""

from dataclasses import dataclass
from enum import StrEnum

from cluster.position import Position
from cluster.records import DurabilityRecord
from controller.ackers import acts_on
from controller.decide import Judgement, Reach, deaf, is_current, is_deaf, judge_primary
from controller.model import NodeFacts, View
from controller.proof import at_risk
from controller.rehearse import loses_primary


class Code(StrEnum):
    """Why a failover would not work, as a label of `oscar_ha_failover_ready`. New ones may come, none changes."""

    NO_EPOCH = "no_epoch"
    PAUSED = "paused"
    NO_ZOOKEEPER = "no_zookeeper"
    TOO_MANY_FAILOVERS = "too_many_failovers"
    PRIMARY_NOT_UP = "primary_not_up"
    PRIMARY_CUT_OFF = "primary_cut_off"
    PRIMARY_UNSAFE = "primary_unsafe"
    PRIMARY_FAILED = "primary_failed"
    PRIMARY_DEAF = "primary_deaf"
    DEGRADED = "degraded"
    NO_CURRENT_STANDBY = "no_current_standby"
    NO_ACKER = "no_acker"
    ACKER_SILENT = "acker_silent"
    ACKERS_NOT_SETTLED = "ackers_not_settled"
    WOULD_WAIT = "would_wait"


MENDS: dict[Code, str] = {
    Code.NO_EPOCH: "start the database, the watchdog and the replicators that the sentence names",
    Code.PAUSED: "oscar-ha resume, when the work is done",
    Code.NO_ZOOKEEPER: "start ZooKeeper, or mend the network between it and this controller",
    Code.TOO_MANY_FAILOVERS: "find out why it fails again and again, then oscar-ha resume",
    Code.PRIMARY_NOT_UP: "if nothing happens by itself within a minute: oscar-ha failover --dry-run says what is waited for",
    Code.PRIMARY_CUT_OFF: "ask the clinic whether it works. If it does: mend its line. If its server is dead: have it off for good,"
    " then oscar-ha failover --primary-is-off; --dry-run says what would be lost",
    Code.PRIMARY_UNSAFE: "its watchdog puts the setting back; find out who changed it",
    Code.PRIMARY_FAILED: "mend what the sentence names on the primary, or on a standby, that it can take over",
    Code.PRIMARY_DEAF: "mend the network between the leading controller and that watchdog",
    Code.DEGRADED: "start a replicator outside the primary's site: it is in sync again by itself",
    Code.NO_CURRENT_STANDBY: "oscar-ha status says how each standby is; oscar-ha reinitialize NODE builds one anew",
    Code.NO_ACKER: "start a replicator outside the primary's site",
    Code.ACKER_SILENT: "start that replicator, or mend the network to it; another site is named by itself if one can",
    Code.ACKERS_NOT_SETTLED: "start the replicator of one of these sites; it settles by itself",
    Code.WOULD_WAIT: "mend what it would wait for; oscar-ha failover --dry-run says more",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason why a failover would not work now."""

    code: Code
    why: str

    @property
    def mend(self) -> str:
        """Return what a person does about it."""
        return MENDS[self.code]


def readiness(view: View) -> tuple[Reason, ...]:
    """Return why a failover would not work now; empty when it would. Asked now and then: a rehearsal takes milliseconds."""
    return findings(view) or _rehearsed(view)


def findings(view: View) -> tuple[Reason, ...]:
    """Return what is known to keep a failover from working. Cheap: for whoever asks at every round."""
    if view.epoch is None:
        return (Reason(code=Code.NO_EPOCH, why="no epoch is open yet"),)
    reasons = []
    if view.paused:
        paused = f"automatic action is paused{f' {view.pause.text}' if view.pause else ''}"
        reasons.append(Reason(code=Code.PAUSED, why=paused))
    if not view.sighted:
        blind = "ZooKeeper is not seen from here: no failover is possible, and the rest is of before"
        reasons.append(Reason(code=Code.NO_ZOOKEEPER, why=blind))
    if view.flapping is not None:
        reasons.append(Reason(code=Code.TOO_MANY_FAILOVERS, why=view.flapping))
    judgement = judge_primary(view, view.epoch)
    if (cut_off := held(view, judgement)) is not None:
        reasons.append(Reason(code=Code.PRIMARY_CUT_OFF, why=cut_off))
    elif judgement.reach is not Reach.UP:
        reasons.append(Reason(code=Code.PRIMARY_NOT_UP, why=f"the primary is {judgement.reach.value}: {judgement.why}"))
    primary = view.node(view.epoch.primary)
    if primary is not None and primary.report is not None:
        unmet = [f"on {primary.name} {one}" for one in primary.report.unmet]
        reasons += [Reason(code=Code.PRIMARY_UNSAFE, why=one) for one in unmet]
        if judgement.reach is Reach.UP and primary.report.health is not None and primary.report.health.failed:
            failed = f"{primary.name} has failed, and nothing is done by itself: {judgement.why}"
            reasons.append(Reason(code=Code.PRIMARY_FAILED, why=failed))
    if primary is not None and is_deaf(primary):
        reasons.append(Reason(code=Code.PRIMARY_DEAF, why=f"{deaf(primary)}: a failover would wait for its fence"))
    standbys = [node for node in view.nodes if node.name != view.epoch.primary and not node.no_promotion]
    if not any(is_current(node) for node in standbys):
        ordered = [f"{node.name} is {node.order.text}" for node in standbys if node.order and node.order.in_force]
        ordered += [f"{node.name} is in maintenance" for node in standbys if node.maintenance is not None]
        why = f"no standby is current{': ' * bool(ordered)}{'; '.join(ordered)}"
        reasons.append(Reason(code=Code.NO_CURRENT_STANDBY, why=why))
    if primary is not None and (risk := at_risk(view, _head_of(primary))) is not None:
        return (*reasons, Reason(code=Code.DEGRADED, why=risk))
    if view.durability is None or not view.durability.ackers:
        return (*reasons, Reason(code=Code.NO_ACKER, why="nobody is named to acknowledge"))
    return (*reasons, *_unproven(view, view.durability))


def held(view: View, judgement: Judgement) -> str | None:
    """Return that a primary is waited for which is cut off or dead, and may be serving its clinic; None when none is."""
    primary = view.node(view.epoch.primary) if view.epoch is not None else None
    if view.epoch is None or not view.epoch.may_hold or primary is None or primary.report is not None:
        return None
    if not view.lease_ended(primary.absent_ms):
        return None
    return (f"{primary.name} is cut off or dead ({judgement.why}): it holds, so nobody is promoted but on proof that it is"
            " dead, or by an operator's word")  # fmt: skip


def _head_of(node: NodeFacts) -> Position | None:
    report = node.report
    return None if report is None or report.position is None else Position.parse(report.position)


def _rehearsed(view: View) -> tuple[Reason, ...]:
    """Nothing is known to be wrong: so the failover itself is carried on in thought, as if the primary's site were gone."""
    found = loses_primary(view)
    if found is None or found.holds is None:
        return ()
    what = "the primary's server" if view.epoch is not None and view.epoch.may_hold else "the primary's site"
    return (Reason(code=Code.WOULD_WAIT, why=f"if {what} were lost now the failover would wait: {found.holds}"),)


def sentences(reasons: tuple[Reason, ...]) -> list[str]:
    """Return the reasons as people read them."""
    return [reason.why for reason in reasons]


def _unproven(view: View, record: DurabilityRecord) -> list[Reason]:
    """Return what is missing for commits to go on, and for a failover to know what was acknowledged."""
    found = []
    for site in record.ackers:
        one = view.replicator(site)
        if one is None or one.report is None or not one.report.acknowledging:
            because = f" ({one.report.why})" if one is not None and one.report is not None and one.report.why else ""
            why = f"the acknowledging site {site} does not acknowledge: commits wait{because}"
            found.append(Reason(code=Code.ACKER_SILENT, why=why))
    for group in record.former:
        facts = [view.replicator(site) for site in group]
        if not any(one is not None and one.report is not None and acts_on(view, record, one.site) for one in facts):
            why = f"what {' and '.join(group)} acknowledged before the change is not yet known to be elsewhere"
            found.append(Reason(code=Code.ACKERS_NOT_SETTLED, why=why))
    return found
