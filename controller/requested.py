"""What an operator asks for, as a plan; refused with every reason before anything is touched."""

from dataclasses import dataclass, replace

from cluster import clock
from cluster.errors import Conflict, Refused
from controller.accepted import Accepted, needed
from controller.advance import ACCEPTING_STAGES, accepting
from controller.choose import Candidate, rank
from controller.model import ORDER, Kind, PlanRecord, StepDone, View
from controller.proof import BY_WORD, lease_end_proves_nothing, must_reach, stands_at
from controller.rehearse import rehearse
from controller.world import plan_id

REQUEST_BEHIND_MAX = 10_000
"""Transactions: a plan waits a moment until its standby is about level, but not for one that is further behind."""


@dataclass(slots=True)
class Wanted:
    """What an operator asked for."""

    kind: Kind
    to: str | None
    why: str
    accepts: Accepted | None = None
    primary_is_off: bool = False


def new_plan(
    view: View,
    kind: Kind,
    why: str,
    *,
    old: str | None = None,
    candidate: str | None = None,
    requested: str | None = None,
    accepts: Accepted | None = None,
    primary_is_off: bool = False,
    automatic: bool = False,
) -> PlanRecord:
    """Return a plan at its first stage, for the epoch after the view's."""
    epoch = (view.epoch.epoch if view.epoch else 0) + 1
    primary = view.node(old) if old else None
    started = clock.utc_now()
    seen = "requested" if kind is Kind.SWITCHOVER else "detected"
    return PlanRecord(
        id=plan_id(epoch, kind.value, started),
        kind=kind,
        epoch=epoch,
        stage=ORDER[kind][0],
        why=why,
        started=started,
        old=old,
        old_generation=primary.report.generation if primary and primary.report else None,
        candidate=candidate,
        requested=requested,
        accepts=accepts,
        primary_is_off=primary_is_off,
        automatic=automatic,
        steps=(StepDone(name=seen, ms=0.0, took_ms=0.0, detail=why),),
    )


def requested_plan(
    view: View, wanted: Wanted, running: PlanRecord | None = None, ms: float = 0.0, *, provable: bool = True
) -> PlanRecord:
    """Return the plan that an operator asked for. Raises Refused or Conflict with every reason.

    A failover that waits for proof is `running`, and goes on `ms` after its fault was seen by his word. Unless it has to be
    `provable` it may be one that could only wait for another word of his.
    """
    if view.epoch is None:
        raise Refused("no epoch is open yet", hint="wait until the first primary is open")
    if wanted.to is not None and view.node(wanted.to) is None:
        names = ", ".join(node.name for node in view.nodes)
        raise Refused(f"there is no node {wanted.to!r}", hint=f"one of: {names}")
    if running is not None:
        plan = _joined(running, wanted, ms)
    else:
        plan = new_plan(
            view, wanted.kind, wanted.why, old=view.epoch.primary, requested=wanted.to, accepts=wanted.accepts,
            primary_is_off=wanted.primary_is_off,
        )  # fmt: skip
    if plan.kind is Kind.SWITCHOVER:
        _require_switchable(view, plan)
    elif provable:
        _require_provable(view, plan)
    if plan.accepts is not None:
        _require_accepted(view, plan)
    return plan


def _joined(running: PlanRecord, wanted: Wanted, ms: float) -> PlanRecord:
    if wanted.kind is Kind.FAILOVER and wanted.accepts is not None:
        joined = accepting(running, wanted.accepts, wanted.to, wanted.why, ms)
        return replace(joined, primary_is_off=running.primary_is_off or wanted.primary_is_off)
    waits = f", it waits: {running.waiting}" if running.waiting else ""
    can = running.kind is Kind.FAILOVER and running.stage in ACCEPTING_STAGES
    hint = "'oscar-ha failover --dry-run' says what could be done" if can else "see GET /v1/plan"
    raise Conflict(f"a {running.kind.value} is running{waits}: one plan at a time", hint=hint)


def _require_provable(view: View, plan: PlanRecord) -> None:
    """Refuse a failover that could only wait for a word which its operator has not given (decision 0089)."""
    old = view.node(plan.old or "")
    silent = old is None or old.report is None
    unproven = lease_end_proves_nothing(view)
    if silent and unproven is not None and not plan.primary_is_off:
        raise Refused(f"{plan.old} is silent, and {unproven}", hint=BY_WORD)
    if must_reach(view, plan) and stands_at(old) is None:
        raise Refused(
            f"{view.alone}: what was written since may be on {plan.old} alone",
            hint="while it is up 'oscar-ha switchover' loses nothing; if it never comes back: --allow-data-loss",
        )


def _require_accepted(view: View, plan: PlanRecord) -> None:
    """The plan itself looks again once all is sealed; here nothing has been touched yet."""
    unbounded = Accepted(transactions=None, seconds=None)
    found = rehearse(view, plan)
    if found.plan.accepts is None and found.holds is not None:
        loss = rehearse(view, accepting_all(plan, unbounded)).plan.loss
        value = f"--allow-data-loss {needed(loss).text}" if loss is not None else "oscar-ha failover --dry-run"
        raise Refused(found.holds, hint=f"nothing was done; to go on all the same: {value}")


def accepting_all(plan: PlanRecord, unbounded: Accepted) -> PlanRecord:
    """Return a plan as if any loss were accepted: to see what would be lost, never to be executed."""
    return accepting(plan, unbounded, None, "", 0.0)


def _require_switchable(view: View, plan: PlanRecord) -> None:
    if plan.requested == plan.old:
        raise Refused(f"{plan.old} is the primary already", hint="name another node")
    chosen = best(rank(view, plan), plan)
    node = view.node(chosen.node)
    if node is None or node.report is None or not node.report.replicating:
        raise Refused(f"{chosen.node} does not replicate", hint="see 'oscar-ha status'")
    if chosen.behind is None or chosen.behind > REQUEST_BEHIND_MAX:
        raise Refused(f"{chosen.node} is {chosen.behind} transactions behind", hint="wait until it has caught up")


def best(ranking: tuple[Candidate, ...], plan: PlanRecord) -> Candidate:
    """Return who would be promoted. Raises Refused with the reasons against each."""
    able = [one for one in ranking if one.able and plan.requested in (None, one.node)]
    if not able:
        reasons = "; ".join(f"{one.node}: {', '.join(one.against) or 'not asked for'}" for one in ranking)
        raise Refused(f"nobody can be promoted now ({reasons})", hint="see 'oscar-ha status'")
    return able[0]
