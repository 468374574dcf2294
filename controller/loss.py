"""What would be lost if the most advanced archive that answers were promoted now: pure.

Where `incomplete` is None nothing is. Otherwise somebody who acknowledged is gone, and what he alone had is bounded:
- in transactions, when the old primary still tells where it stands: nothing was acknowledged beyond it;
- in seconds, from the newest heartbeat that a standby has applied (what was committed before it is here) to the moment
  from which on nothing can have been acknowledged: its server is dead, or a lease has ended without which nobody could.
  The ages are those on our own clock, so a controller that has just begun bounds too much, never too little.
"""

from cluster.position import Position
from cluster.records import Database
from controller.accepted import Loss
from controller.choose import incomplete, is_ours, reachable_target
from controller.model import NodeFacts, PlanRecord, View
from controller.proof import alone, may_be_missing

REPORT_LATE_MS = 300
"""A report may reach us so much later than it was made."""


def expected_loss(view: View, plan: PlanRecord) -> Loss:
    """Return what promoting the most advanced sealed archive would un-say."""
    target = reachable_target(view, plan)
    missing = incomplete(view, plan) or may_be_missing(view, plan, target)
    told = str(target) if target is not None else None
    if missing is None:
        return Loss(target=told, transactions=0, at_least=0, seconds=0.0, why=_proof(view, plan))
    if target is None:
        return Loss(target=None, transactions=None, at_least=0, seconds=None, why=missing)
    exact = None if plan.old_position is None else target.distance(Position.parse(plan.old_position))
    if exact == 0:
        why = f"the old primary was fenced at {plan.old_position}, and nobody acknowledged beyond that"
        return Loss(target=told, transactions=0, at_least=0, seconds=0.0, why=why)
    least = max((target.distance(Position.parse(one)) for one in _known(view, plan)), default=0)
    return Loss(
        target=told, transactions=exact, at_least=least if exact is None else min(least, exact),
        seconds=_seconds(view, plan, target, least), why=_who(view, plan, target),
    )  # fmt: skip


def _proof(view: View, plan: PlanRecord) -> str:
    record = view.durability
    sealed = {one.site: one.durable for one in plan.sealed if one.durable is not None}
    spoke = [f"{site} at {sealed[site]}" for group in (record.groups if record else ())
             for site in group if site in sealed]  # fmt: skip
    return f"who acknowledged has sealed ({', '.join(dict.fromkeys(spoke))}), and the new primary has all of that"


def lost_groups(view: View, plan: PlanRecord) -> list[tuple[str, ...]]:
    """Return the groups of which no sealed member tells what it acknowledged."""
    sealed = {one.site for one in plan.sealed if one.durable is not None and is_ours(view, one.durable)}
    groups = view.durability.groups if view.durability else ()
    return [group for group in groups if not sealed & set(group)]


def _known(view: View, plan: PlanRecord) -> list[str]:
    """Return positions that somebody is known to have had."""
    lost = {site for group in lost_groups(view, plan) for site in group}
    found = [one.last.position for one in view.replicators if one.site in lost and one.last is not None]
    floor = [view.durability.floor] if view.durability else []
    old = view.node(plan.old or "")
    own = [old.last.position] if alone(view, plan) is not None and old is not None and old.last is not None else []
    return [one for one in (*found, *floor, *own) if one is not None and is_ours(view, one)]


def _seconds(view: View, plan: PlanRecord, target: Position, least: int) -> float | None:
    starts = [
        age_ms + REPORT_LATE_MS
        for node in view.nodes
        if node.report is not None and node.report.position is not None and (age_ms := _heartbeat_ms(node)) is not None
        and is_ours(view, node.report.position) and target.covers(Position.parse(node.report.position))
    ]  # fmt: skip
    if not starts:
        return None
    within_ms = min(starts) - _over_ms(view, plan)
    if within_ms <= 0 < least:
        return None  # the servers' clocks say that there was no time for what is known to be missing
    return round(max(0.0, within_ms) / 1000, 3)


def _heartbeat_ms(node: NodeFacts) -> float | None:
    """Return how old the newest heartbeat is that a node is known to have; None when it does not tell."""
    report = node.report
    if report is None or report.lag_ms is None or report.lag_age_ms is None or node.stale_ms is None:
        return None
    return report.lag_ms + report.lag_age_ms + node.stale_ms


def _over_ms(view: View, plan: PlanRecord) -> float:
    """Return for how long nothing can have been acknowledged any more; below zero: in so long certainly not."""
    old = view.node(plan.old or "")
    bounds = []
    if old is not None and old.report is not None and old.report.database is Database.DOWN:
        bounds.append(old.down_ms)
    if alone(view, plan) is not None:
        return max(bounds, default=0.0)  # nobody acknowledges, and no lease keeps a primary from telling its clients OK
    leases = [] if old is None or old.absent_ms is None else [old.absent_ms]
    groups = [[one.absent_ms or 0.0 for site in group if (one := view.replicator(site)) is not None]
              for group in lost_groups(view, plan)]  # fmt: skip
    if groups and all(groups):
        leases.append(min(max(group) for group in groups))
    if leases:
        bounds.append(min(max(leases), _ungranted_ms(view, plan)) - view.policy.lease_margin_ms)
    return max(bounds, default=0.0)


def _ungranted_ms(view: View, plan: PlanRecord) -> float:
    """Return for how long nobody can have written by the grants of all (decision 0078).

    That needs every replicator outside the primary's site, and one that has been seen all the time was without ZooKeeper
    for less than a session, and bound by a grant for one more.
    """
    old = view.node(plan.old or "")
    there = [
        one.present_ms
        for site in (sealed.site for sealed in plan.sealed)
        if (one := view.replicator(site)) is not None and one.present_ms is not None and old and one.site != old.site
    ]
    return max(there, default=0.0) - 2 * view.policy.session_ttl_ms


def _who(view: View, plan: PlanRecord, target: Position) -> str:
    gone = []
    for site in dict.fromkeys(site for group in lost_groups(view, plan) for site in group):
        one = view.replicator(site)
        last = one.last if one is not None else None
        heard = f"last heard of at {last.at}, at {last.position}" if last is not None else "not heard of"
        gone.append(f"{site}, which acknowledged, is gone ({heard})")
    missing = may_be_missing(view, plan, target)
    who = "; ".join([*gone, *([missing] if missing else [])]) or incomplete(view, plan) or ""
    return f"{who}; the archives that answer end at {target or 'nothing'}"
