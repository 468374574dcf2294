"""Who acknowledges, and when that changes; since decision 0089 also when nobody does. Same view in, same record out.

The safety of a change lies in the record, not in the judgement: who was named before stays in `former`, so that a failover
needs its word too, until it is proven that it acts on the older record no more. So another site is named at once, on
suspicion; a wrong suspicion costs a change and nothing else. Nobody is named back because it is nearer: two sites that
fail in turn would play ping-pong with every commit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cluster.position import Position
from cluster.records import Acks, Durability, DurabilityRecord, EpochRecord, groups_of
from controller.model import ReplicatorFacts, View
from controller.plan import NameAckers, ReturnToSync, SettleAckers

HOLD_MS = 10_000
"""After a change nothing is changed again for so long, unless somebody named is gone."""
RENEWAL_LATE_MS = 300
"""A record may reach us so much later than it was written."""
LEVEL_BEHIND_MAX = 1_000
"""Transactions: a site further behind is not taken in, or commits would wait while it catches up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps a named site from acknowledging, and for how long it has done so."""

    why: str
    ms: float
    gone: bool
    """Nothing comes from it at all; otherwise it lives and says itself that it does not acknowledge."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who should be named, and why."""

    acks: Acks
    ackers: tuple[str, ...]
    why: str


# -- the rule that a failover obeys ----------------------------------------------------------------------------------


def heirs(old: tuple[tuple[str, ...], ...], named: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of an older record that must be kept beside the newly `named` ones.

    One word of each group is needed. Where a named group lies within an older one, its word is a word of both.
    """
    kept = [group for group in old if not any(set(one) <= set(group) for one in named)]
    return tuple(dict.fromkeys(kept))


def acts_on(view: View, record: DurabilityRecord, site: str) -> bool:
    """Return whether a site certainly judges no acknowledgement by a record older than this one any more."""
    one = view.replicator(site)
    if one is None:
        return False
    if one.report is None:
        return view.lease_ended(one.absent_ms)
    return one.report.serial is not None and one.report.serial >= record.serial


def is_known_to_primary(view: View, epoch: EpochRecord, record: DurabilityRecord) -> bool:
    """Return whether the primary names no older record, should it ask for grants: by that somebody could acknowledge again.

    Whoever acts on an older record, and cannot reach ZooKeeper, is not proven to be gone; only that nobody confirms it.
    """
    node = view.node(epoch.primary)
    serial = node.report.serial if node is not None and node.report is not None else None
    return serial is not None and serial >= record.serial


# -- what is due now -------------------------------------------------------------------------------------------------


def acker_repair(view: View, epoch: EpochRecord, since: str) -> NameAckers | SettleAckers | ReturnToSync | None:
    """Return the change of the durability record that is due, None when there is none."""
    record = view.durability
    if record is None or record.epoch != epoch.epoch:
        return None
    if (held := _held_alone(view, epoch, record, since)) is not None:
        return held
    if record.is_degraded:
        return _while_degraded(view, epoch, record)
    wanted = _under_all(view, epoch, record) if view.policy.acks is Acks.ALL else _under_one(view, epoch, record)
    if wanted is None and (why := _nobody(view, epoch, record)) is not None:
        return _degraded(epoch, replace(record, since=since, why=why), ())
    if wanted is not None and (wanted.acks, wanted.ackers) != (record.acks, record.ackers):
        former = heirs(record.groups, groups_of(wanted.acks, wanted.ackers))
        named = replace(record, acks=wanted.acks, ackers=wanted.ackers, former=former, since=since, why=wanted.why,
                        serial=record.serial + 1)  # fmt: skip
        return NameAckers(node=epoch.primary, durability=named)
    done = [group for group in record.former if all(acts_on(view, record, site) for site in group)]
    if not done or not is_known_to_primary(view, epoch, record):
        return None
    left = tuple(group for group in record.former if group not in done)
    return SettleAckers(node=epoch.primary, durability=replace(record, former=left, serial=record.serial + 1))


def _under_one(view: View, epoch: EpochRecord, record: DurabilityRecord) -> Wanted | None:
    troubles = troubles_of(view, record)
    sound = [site for site in record.ackers if site not in troubles]
    ackers = (*_in_order(view, sound), *_others(view, epoch, record))[:1]
    if not ackers or (record.acks is Acks.ONE and not troubles):
        return None
    if record.acks is Acks.ALL:
        return Wanted(Acks.ONE, ackers, "the settings say acks = one")
    if not any(trouble.gone for trouble in troubles.values()) and view.durability_age_ms < HOLD_MS:
        return None
    return Wanted(Acks.ONE, ackers, told(troubles))


def _under_all(view: View, epoch: EpochRecord, record: DurabilityRecord) -> Wanted | None:
    troubles = troubles_of(view, record) if record.acks is Acks.ALL else {}
    sound = [site for site in record.ackers if site not in troubles]
    level = [site for site in _others(view, epoch, record) if is_level(view, record, sound, site)]
    ackers = _in_order(view, (*sound, *level))
    if record.acks is Acks.ONE:
        return Wanted(Acks.ALL, ackers, "the settings say acks = all")
    if not troubles:
        if not level or view.durability_age_ms < HOLD_MS:
            return _deaf(view, record)
        return Wanted(Acks.ALL, ackers, f"{' and '.join(level)} is level again")
    patience = view.policy.acks_all_degrade_after_ms
    patient = patience is None or any(trouble.ms < patience for trouble in troubles.values())
    if not ackers or (patient and len(ackers) < len(record.ackers)):
        return None
    return Wanted(Acks.ALL, ackers, told(troubles))


def _others(view: View, epoch: EpochRecord, record: DurabilityRecord) -> tuple[str, ...]:
    """Return who is not named and could be."""
    return tuple(
        site for site in outside(view, epoch.primary) if site not in record.ackers and is_able(view, epoch, site)
    )


def told(troubles: Mapping[str, Trouble]) -> str:
    """Return the troubles as people read them."""
    return "; ".join(f"{site}: {trouble.why}" for site, trouble in troubles.items())


def _deaf(view: View, record: DurabilityRecord) -> Wanted | None:
    """Sites that are all well and only do not hear each other: keep the nearest, if waiting has an end."""
    patience, facts = view.policy.acks_all_degrade_after_ms, [view.replicator(site) for site in record.ackers]
    waiting = [one for one in facts if one is not None and one.report is not None and one.report.waits_for]
    if patience is None or len(record.ackers) < 2 or len(waiting) < len(record.ackers):
        return None
    if any(one.idle_ms is None or min(one.idle_ms, view.durability_age_ms) < patience for one in waiting):
        return None
    return Wanted(Acks.ALL, _in_order(view, record.ackers)[:1], f"{' and '.join(record.ackers)} do not hear each other")


# -- when nobody can acknowledge (decision 0089) ---------------------------------------------------------------------


def _nobody(view: View, epoch: EpochRecord, record: DurabilityRecord) -> str | None:
    """Return why commits may wait no longer: nobody named has acknowledged for so long, and nobody else could."""
    patience, troubles = view.policy.degrade_after_ms, troubles_of(view, record)
    if patience is None or len(troubles) < len(record.ackers) or _others(view, epoch, record):
        return None
    return told(troubles) if all(trouble.ms >= patience for trouble in troubles.values()) else None


def _degraded(epoch: EpochRecord, record: DurabilityRecord, ackers: tuple[str, ...]) -> NameAckers:
    former = heirs(record.groups, groups_of(record.acks, ackers))
    new = replace(record, mode=Durability.DEGRADED, ackers=ackers, former=former, serial=record.serial + 1)
    return NameAckers(node=epoch.primary, durability=new)


def _while_degraded(view: View, epoch: EpochRecord, record: DurabilityRecord) -> NameAckers | ReturnToSync | None:
    """Name who has caught up, that commits may wait again; once they do, be in sync. Else go on without anybody.

    One site is enough to return, under `acks: all` too: the others are taken in afterwards.
    """
    near = [site for site in _others(view, epoch, record) if _is_near_primary(view, epoch, site)]
    if not record.ackers:
        return _degraded(epoch, record, tuple(near[:1])) if near else None
    troubles, patience = troubles_of(view, record), view.policy.degrade_after_ms
    if troubles and near:
        return _degraded(epoch, record, tuple(near[:1]))
    if troubles and patience is not None and all(trouble.ms >= patience for trouble in troubles.values()):
        return _degraded(epoch, record, ())
    node = view.node(epoch.primary)
    waits_by = node.report.waits_by if node is not None and node.report is not None else None
    if troubles or waits_by is None or waits_by < record.serial:
        return None
    if not all(acts_on(view, record, site) and _acknowledges(view, site) for site in record.ackers):
        return None
    back = replace(record, mode=Durability.SYNC, serial=record.serial + 1, why=f"{record.ackers[0]} has caught up")
    return ReturnToSync(node=epoch.primary, durability=back)


# -- when a primary holds while it is cut off (decision 0090) ---------------------------------------------------------


def _held_alone(view: View, epoch: EpochRecord, record: DurabilityRecord, since: str) -> NameAckers | None:
    """It is back and says that it has answered alone: that is recorded, and 0089 returns to sync from there."""
    node = view.node(epoch.primary)
    alone = node.report.alone if node is not None and node.report is not None else None
    if alone is None or alone.epoch != epoch.epoch or alone.is_covered(record):
        return None
    begun = record.since if record.is_degraded else alone.since or since
    return _degraded(epoch, replace(record, since=begun, why=alone.text), ())


def repair_while_lost(view: View, epoch: EpochRecord, since: str) -> NameAckers | None:
    """Return the record that a primary of which nobody hears anything may be answering alone; None when it is not due.

    While somebody's stream lives it is acknowledged, and naming nobody would be what sends it off alone.
    """
    record, primary = view.durability, view.node(epoch.primary)
    if not epoch.may_hold or record is None or record.epoch != epoch.epoch or record.is_degraded:
        return None
    if primary is None or primary.report is not None or not view.lease_ended(primary.absent_ms):
        return None
    if any(one.report and one.report.connected and one.report.epoch == epoch.epoch for one in view.replicators):
        return None
    why = f"{primary.name} is cut off or dead, and holds while it is cut off: it may be answering its clients alone"
    return _degraded(epoch, replace(record, since=since, why=why), ())


# -- how near they are -------------------------------------------------------------------------------------------------


def _acknowledges(view: View, site: str) -> bool:
    one = view.replicator(site)
    return one is not None and one.report is not None and one.report.acknowledging


def _is_near_primary(view: View, epoch: EpochRecord, site: str) -> bool:
    """Return whether commits that wait for this site would hardly notice it."""
    node, one = view.node(epoch.primary), view.replicator(site)
    if node is None or node.report is None or node.report.position is None:
        return False
    if one is None or one.report is None or one.report.durable is None:
        return False
    return Position.parse(one.report.durable).distance(Position.parse(node.report.position)) <= LEVEL_BEHIND_MAX


# -- how the sites are -----------------------------------------------------------------------------------------------


def troubles_of(view: View, record: DurabilityRecord) -> dict[str, Trouble]:
    """Return what is wrong with the named sites, of those with whom something is."""
    found = {site: trouble_of(view, site) for site in record.ackers}
    return {site: trouble for site, trouble in found.items() if trouble is not None}


def trouble_of(view: View, site: str) -> Trouble | None:
    """Return why a named site has failed, None when it has not, or when that is not known."""
    one = view.replicator(site)
    if one is None:
        return Trouble(why="it is not in the settings", ms=view.durability_age_ms, gone=True)
    if one.report is None:
        return None if one.absent_ms is None else Trouble(why="it does not report", ms=one.absent_ms, gone=True)
    if (lost := gone(one, view.policy.acker_deadline_ms)) is not None:
        return lost
    idle_ms = None if one.idle_ms is None else min(one.idle_ms, view.durability_age_ms)
    if idle_ms is None or idle_ms < view.policy.acker_deadline_ms or one.report.waits_for:
        return None
    return Trouble(why=one.report.why, ms=idle_ms, gone=False)


def gone(one: ReplicatorFacts, deadline_ms: float) -> Trouble | None:
    """A record outlives its process by a session's ttl; a host that refuses and a record that ages agree on its death."""
    if one.stale_ms is None:
        return None
    if one.refused_ms is not None and one.stale_ms + RENEWAL_LATE_MS >= one.refused_ms:
        return Trouble(why="its process is gone: its host refuses connections", ms=one.refused_ms, gone=True)
    if one.silent_ms is not None and min(one.silent_ms, one.stale_ms) >= deadline_ms:
        return Trouble(why=f"it has been silent for {deadline_ms / 1000:g} s", ms=one.silent_ms, gone=True)
    return None


def outside(view: View, primary: str) -> tuple[str, ...]:
    """Return the sites that could acknowledge at all: an acknowledgement means *in another city*."""
    node = view.node(primary)
    return _in_order(view, [one.site for one in view.replicators if node is None or one.site != node.site])


def is_able(view: View, epoch: EpochRecord, site: str) -> bool:
    """Return whether a site that is not named could acknowledge as soon as it is."""
    one = view.replicator(site)
    if one is None or one.report is None or gone(one, view.policy.acker_deadline_ms) is not None:
        return False
    report = one.report
    return report.connected and report.whole and report.epoch == epoch.epoch and report.sealed_epoch < epoch.epoch


def is_level(view: View, record: DurabilityRecord, with_sites: Iterable[str], site: str) -> bool:
    """Return whether a site is so near to those named that commits would hardly notice it, and is heard by them."""
    one = view.replicator(site)
    if one is None or one.report is None or one.report.durable is None:
        return False
    here = Position.parse(one.report.durable)
    for other in with_sites:
        facts = view.replicator(other)
        if facts is None or facts.report is None or facts.report.durable is None:
            return False
        if here.distance(Position.parse(facts.report.durable)) > LEVEL_BEHIND_MAX:
            return False
        heard = site in facts.report.hears and other in one.report.hears
        if record.acks is Acks.ALL and not heard:
            return False
    return True


# -- a new epoch -----------------------------------------------------------------------------------------------------


def ackers_of_epoch(view: View, primary: str, *, answered: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return who acknowledges in an epoch that is about to be opened.

    Who has `answered` in this very plan comes first: the report of a site that died outlives it by a session's ttl. If
    nobody reports the nearest is named all the same, that of the old primary last: it is the one that is known to have
    failed. Commits wait for it, and nothing unsafe is acknowledged.
    """
    reporting = [one for one in view.replicators if one.report is not None and one.site in outside(view, primary)]
    order = {site: rank for rank, site in enumerate(_in_order(view, [one.site for one in view.replicators]))}
    able = sorted(
        reporting, key=lambda one: (one.site not in answered, not (one.report and one.report.whole), order[one.site])
    )
    if not able:
        old = view.node(view.epoch.primary) if view.epoch is not None else None
        return tuple(sorted(outside(view, primary), key=lambda site: old is not None and site == old.site))[:1]
    if view.policy.acks is Acks.ONE:
        return (able[0].site,)
    here = [one.site for one in able if one.site in answered] or [one.site for one in able]
    return _in_order(view, here)


def _in_order(view: View, sites: Iterable[str]) -> tuple[str, ...]:
    order = {site: rank for rank, site in enumerate(view.policy.sites)}
    return tuple(sorted(dict.fromkeys(sites), key=lambda site: (order.get(site, len(order)), site)))
