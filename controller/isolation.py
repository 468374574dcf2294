"""What a primary does that is cut off, and how that is changed under one that runs (decision 0090). Pure.

A primary acts on the epoch's record alone. It may hold as soon as it has read that; that it holds no more counts only once
it has said that it has read *that*. So in between the stricter rule counts: the end of its lease proves nothing.
"""

from dataclasses import replace

from cluster.records import EpochRecord, Isolation, NodeReport
from controller.model import View
from controller.plan import NameIsolation


def isolation_repair(view: View, epoch: EpochRecord) -> NameIsolation | None:
    """Return the change of the epoch's record that the settings ask for, None when there is none, or not yet."""
    wanted = _next(view, epoch)
    if wanted is epoch.on_isolation:
        return None
    record = replace(epoch, on_isolation=wanted, revision=epoch.revision + 1)
    return NameIsolation(node=epoch.primary, record=record)


def has_let_go(report: NodeReport | None, epoch: EpochRecord) -> bool:
    """Return whether the primary certainly holds no more: it acts on the record, and has nothing that it told alone."""
    known = report is not None and report.revision is not None and report.revision >= epoch.revision
    return known and report is not None and report.lease_epoch == epoch.epoch and report.alone is None


def _next(view: View, epoch: EpochRecord) -> Isolation:
    if view.policy.holds:
        return Isolation.HOLD
    if epoch.on_isolation is Isolation.HOLD:
        return Isolation.HOLD_ENDS
    node = view.node(epoch.primary)
    report = node.report if node is not None else None
    if epoch.on_isolation is Isolation.HOLD_ENDS and not has_let_go(report, epoch):
        return Isolation.HOLD_ENDS
    return Isolation.PROMOTE
