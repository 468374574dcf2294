"""What a failover may rest on: when an ended lease proves a fence, and what degraded durability asks for. Pure.

A lease binds the watchdog, and the seals bind the commits: a primary whose watchdog died goes on writing, and nobody is told OK.
While no commit waits there is no such second fence, so an ended lease proves nothing: either the watchdog says that the
database is closed or dead, or an operator says that nothing of the old primary runs (decision 0089). The same holds where a
primary that is cut off is to go on, of which nobody else can know whether it let commits go (decision 0090).
"""

from cluster.position import Position
from cluster.records import Database, NodeReport, Role
from controller.model import Kind, NodeFacts, PlanRecord, View

BY_WORD = "'oscar-ha failover --primary-is-off' once nothing of it runs any more"


def lease_end_proves_nothing(view: View) -> str | None:
    """Return why the ended lease of a silent primary is no proof that it accepts nothing; None when it is one."""
    if view.degraded_since is not None:
        return "its commits do not wait for anybody (durability is degraded): the end of its lease is no proof of fence"
    if view.epoch is not None and view.epoch.may_hold:
        return "it is cut off or dead, and it holds while it is cut off (on_isolation): the end of its lease is no proof of fence"
    return None


def alone(view: View, plan: PlanRecord) -> str | None:
    """Return why what clinics were told may be on the old primary alone; None when it is not, as its fence has told perhaps."""
    if view.degraded_since is not None or plan.vouched is None or view.epoch is None or not view.epoch.may_hold:
        return view.alone
    return (
        None
        if plan.vouched
        else view.alone or f"the watchdog that fenced {plan.old} does not vouch that it was never alone"
    )


def is_fenced(view: View, plan: PlanRecord) -> bool:
    """Return whether the old primary's watchdog has fenced it for good, and what it told alone is known by that."""
    holds = view.epoch is not None and view.epoch.may_hold and plan.kind is Kind.FAILOVER
    return holds and plan.vouched is not None and (plan.vouched or plan.fenced_position is not None)


def must_reach(view: View, plan: PlanRecord) -> bool:
    """Return whether a failover must have everything that the old primary wrote: clinics were told OK by it alone."""
    allowed = plan.accepts is not None or view.policy.loses_while_degraded
    return plan.kind is Kind.FAILOVER and not allowed and alone(view, plan) is not None


def stands_at(node: NodeFacts | None) -> str | None:
    """Return the position of a server that is up and closed: it is final. None when it is not known."""
    report = node.report if node is not None else None
    return report.position if report is not None and _is_closed(report) else None


def _is_closed(report: NodeReport) -> bool:
    return report.database is Database.UP and report.role is not Role.PRIMARY and report.read_only is True


def lost_if_promoted(view: View, plan: PlanRecord, target: Position | None) -> str | None:
    """Return why what clinics were told while nobody acknowledged may be missing; None if it is not, or the settings allow it."""
    if plan.kind is Kind.FAILOVER and view.policy.loses_while_degraded:
        return None
    return may_be_missing(view, plan, target)


def may_be_missing(view: View, plan: PlanRecord, target: Position | None) -> str | None:
    """Return why what clinics were told while nobody acknowledged may be missing, whoever allows it; None when it is not."""
    why = alone(view, plan)
    if why is None:
        return None
    reached = plan.fenced_position is not None and target is not None
    if reached and target is not None and target.covers(Position.parse(plan.fenced_position or "")):
        return None
    return f"{why}: what was written since may be on {plan.old} alone"


def why_not_by_itself(view: View, primary: NodeFacts | None) -> str | None:
    """Return why a failover from `primary` needs an operator's word now; None when it may begin by itself."""
    report = primary.report if primary is not None else None
    if report is None and (why := lease_end_proves_nothing(view)) is not None:
        return f"{why}; {BY_WORD}"
    if view.alone is None or view.policy.loses_while_degraded or stands_at(primary) is not None:
        return None
    return (f"{view.alone}, and what was written since may be on it alone: start its server"
            " again, or 'oscar-ha failover --allow-data-loss'")  # fmt: skip


def at_risk(view: View, head: Position | None) -> str | None:
    """Return what would be lost with the primary at this moment; None while durability is in sync."""
    if view.alone is None or view.durability is None or view.epoch is None:
        return None
    primary = view.node(view.epoch.primary)
    if view.degraded_since is None and (primary is None or primary.report is None):
        return None  # nobody knows anything of it: that is another sentence
    elsewhere = [
        Position.parse(one.report.durable)
        for one in view.replicators
        if one.report is not None and one.report.durable is not None and (primary is None or one.site != primary.site)
    ]
    missing = min((one.distance(head) for one in elsewhere), default=None) if head is not None else None
    amount = "everything written since" if missing is None else f"{missing} transactions"
    because = f" ({view.durability.why})" if view.degraded_since is not None else ""
    return f"{view.alone}: {amount} would be lost with {view.epoch.primary}{because}"
