"""What a failover or a switchover would do, without doing it: its plan, rehearsed."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from cluster.settings import Timing
from controller.accepted import Accepted, Loss, needed
from controller.advance import ACCEPTING_STAGES
from controller.choose import Candidate, rank
from controller.estimate import dominated_by, estimate
from controller.model import HistoryRecord, Kind, PlanRecord, View
from controller.rehearse import Rehearsal, rehearse
from controller.requested import Wanted, accepting_all, requested_plan

ANYTHING = Accepted(transactions=None, seconds=None)


def dry_run(
    view: View, wanted: Wanted, *, running: PlanRecord | None, past: Iterable[HistoryRecord], timing: Timing
) -> dict[str, Any]:
    """Return what the change would do. Raises Refused or Conflict where the change would."""
    plan = _plan(view, wanted, running)
    found = rehearse(view, plan)
    loss = _loss(view, plan, found)
    ranking = rank(view, found.plan)
    parts = estimate(view, found, past, timing)
    needs = loss is not None and not loss.is_nothing and loss.target is not None
    return {
        "dry_run": True,
        "kind": plan.kind.value,
        "works": found.holds is None,
        "holds": found.holds,
        "joins": running is not None,
        "old": plan.old,
        "new": found.plan.candidate if found.holds is None else None,
        "epoch": plan.epoch,
        "proof": found.plan.proof,
        "steps": [asdict(part) for part in parts],
        "estimated_ms": round(sum(part.ms for part in parts), 1),
        "dominated_by": dominated_by(parts),
        "ranking": [_ranked(one) for one in ranking],
        "loss": _told(loss) if loss is not None else None,
        "allow_data_loss": needed(loss).as_fields() if loss is not None and needs else None,
    }


def _plan(view: View, wanted: Wanted, running: PlanRecord | None) -> PlanRecord:
    """A failover that waits is what a dry run looks at: without a loss accepted it would only go on waiting."""
    waits = running is not None and running.kind is Kind.FAILOVER and running.stage in ACCEPTING_STAGES
    if running is not None and waits and wanted.kind is Kind.FAILOVER and wanted.accepts is None:
        return replace(running, requested=wanted.to or running.requested)
    return requested_plan(view, wanted, running, provable=wanted.accepts is not None)


def _loss(view: View, plan: PlanRecord, found: Rehearsal) -> Loss | None:
    """Return what the change would lose; where it holds for want of proof, what going on all the same would."""
    if plan.kind is not Kind.FAILOVER or found.holds is None:
        return found.plan.loss
    return rehearse(view, accepting_all(plan, ANYTHING)).plan.loss


def _told(loss: Loss) -> dict[str, Any]:
    return {**asdict(loss), "nothing": loss.is_nothing, "text": loss.text}


def _ranked(one: Candidate) -> dict[str, Any]:
    return {
        "node": one.node,
        "able": one.able,
        "against": list(one.against),
        "notes": list(one.notes),
        "behind": one.behind,
    }
