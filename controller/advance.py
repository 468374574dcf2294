"""How a running plan goes on: from its record and a view to the next step, from an outcome to the next record.

Nothing here waits or talks. A controller that dies leaves only the record behind, and that is all its successor needs.
"""

from dataclasses import dataclass, replace

from cluster.errors import Refused
from cluster.position import Position
from cluster.records import Database, Durability, DurabilityRecord, EpochRecord, Isolation, LineageEntry, Role
from controller import plan as steps
from controller.accepted import Accepted, excess
from controller.ackers import ackers_of_epoch
from controller.choose import Candidate, forbids_grants, incomplete, is_ours, may_acknowledge, rank, reachable_target
from controller.loss import expected_loss
from controller.model import ORDER, POINT_OF_NO_RETURN, Kind, PlanRecord, Promoted, Proof, Sealed, Stage, StepDone, View
from controller.plan import GiveUp, Step, Wait
from controller.proof import BY_WORD, is_fenced, lease_end_proves_nothing, must_reach, stands_at

LINEAGE_MAX = 1_000
"""Epochs remembered in the record; older archives are found by their own names."""
STEPS_MAX = 100
"""Lines of timeline kept of a plan that tries again and again."""
SWITCHOVER_SEAL_MS = 4_000.0
"""A switchover whose archives have not got what the fenced primary wrote last by then is rolled back: clinics wait."""
SWITCHOVER_BEHIND_MAX = 1_000
"""Transactions, most of them by the reports' different ages: a candidate further behind would keep the clinics waiting."""
SWITCHOVER_LAG_MAX_MS = 3_000.0
"""One transaction may take long: the heartbeats say so. They come once a second, and so do the reports of them."""
CATCH_UP_MS = 15_000.0
"""So long a switchover waits for its candidate, while the primary is written to, before it is given up."""
SEAL_PATIENCE_MS = 4_000.0
"""With a loss accepted: so long a replicator that reports may take to seal before what it has is given up."""
ACCEPTING_STAGES = (Stage.SEAL, Stage.FENCE, Stage.CHOOSE)
"""A failover here has chosen nobody yet: an operator may still accept a loss."""
UNWRITTEN_STAGES = (Stage.FENCE, Stage.SEAL, Stage.LEVEL, Stage.APPLY, Stage.PROMOTE)
"""From the fence of a switchover to its opening clinics wait: what is done here is written by the opening itself."""
CANDIDATE_STAGES = (Stage.LEVEL, Stage.APPLY, Stage.PROMOTE, Stage.OPEN)
"""What fails here fails for this candidate; another one may do better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step brought, when, and for how long it took (milliseconds since the fault was seen)."""

    ms: float
    took_ms: float
    detail: str = ""
    position: str | None = None
    """Fence: where the database stopped."""
    how: str | None = None
    """Fence: by what."""
    vouched: bool = False
    """Fence: the watchdog knows that no commit was answered alone without a record of that."""
    sealed: tuple[Sealed, ...] = ()
    promoted: Promoted | None = None


def next_step(view: View, plan: PlanRecord, now_text: str) -> Step | Wait | GiveUp:
    """Return the step that the plan's cursor stands at."""
    ending = plan.epoch - 1
    if _is_past_return(plan) and plan.stage is not Stage.RECORD and _is_gone(view, _candidate(plan)):
        return GiveUp(why=f"the database of {plan.candidate} is gone again")
    if plan.stage is Stage.PROMOTE and _was_never_closed(view, plan):
        return steps.Record(epoch=plan.epoch)
    if plan.accepts is not None and plan.stage in CANDIDATE_STAGES and (may := may_acknowledge(view, plan)):
        return GiveUp(why=may)  # it has come back, perhaps with all that would be lost
    match plan.stage:
        case Stage.CHOOSE:
            return _choose(view, plan)
        case Stage.FENCE:
            return _fence(view, plan)
        case Stage.SEAL:
            return _seal(view, plan)
        case Stage.LEVEL:
            return _level(view, plan)
        case Stage.APPLY:
            return steps.Apply(node=_candidate(plan), epoch=ending, until=plan.target or "")
        case Stage.PROMOTE:
            return steps.Promote(node=_candidate(plan), epoch=plan.epoch)
        case Stage.OPEN:
            return _open(view, plan, now_text)
        case Stage.ADMIT:
            return steps.Admit(node=_candidate(plan), epoch=plan.epoch)
        case Stage.REPOINT:
            return steps.Repoint(node=_candidate(plan), epoch=plan.epoch)
        case Stage.VERIFY:
            return steps.Verify(node=_candidate(plan), epoch=plan.epoch)
        case Stage.RECORD:
            return steps.Record(epoch=plan.epoch)


def progress(view: View, plan: PlanRecord, step: Step, outcome: Outcome) -> PlanRecord:
    """Return the plan after `step` was done with `outcome`: facts kept, cursor moved, one line of timeline added."""
    done = StepDone(
        name=plan.stage.value,
        ms=round(outcome.ms, 1),
        took_ms=round(outcome.took_ms, 1),
        detail=outcome.detail,
    )
    plan = replace(_with_facts(view, plan, step, outcome), waiting=None)
    if isinstance(step, steps.Fence) and plan.stage is Stage.SEAL:
        return replace(plan, steps=(*plan.steps, replace(done, name=Stage.FENCE.value))[-STEPS_MAX:])
    if isinstance(step, steps.Seal) and (missing := _unsealed(view, plan, outcome)) is not None:
        return _stalled(plan, missing, outcome)
    if isinstance(step, steps.Fence) and must_reach(view, plan) and plan.fenced_position is None:
        return replace(plan, waiting=f"the server of {plan.old} is down: it alone knows what it wrote last")
    stage = Stage.CHOOSE if plan.stage is Stage.SEAL and is_fenced(view, plan) else _after(plan)
    return replace(plan, stage=stage, stalled_ms=None, steps=(*plan.steps, done)[-STEPS_MAX:])


def waiting(plan: PlanRecord, why: str, ms: float) -> PlanRecord:
    """Return the plan that waits at its cursor: a switchover has touched nothing yet, and does not wait for ever."""
    since_ms = plan.stalled_ms if plan.stalled_ms is not None else ms
    if plan.kind is Kind.SWITCHOVER and plan.stage is Stage.CHOOSE:
        if ms - since_ms >= CATCH_UP_MS:
            return failed(replace(plan, stalled_ms=None), why)
        return replace(plan, waiting=why, stalled_ms=round(since_ms, 1))
    return replace(plan, waiting=why)


def may_stay_unwritten(before: PlanRecord, after: PlanRecord) -> bool:
    """Return whether the next step may begin before `after` is written: whoever succeeds us does again what was done.

    Each write waits for ZooKeeper's disk. A fence, a seal, a levelling, an applying and a promotion that are asked for again
    answer the same, and the opening writes them all, in the transaction that names the new primary. So does whatever
    fails or has to wait. A failover writes each: its fence may rest on what nobody can be asked again.
    """
    if after.waiting is not None or after.stage is before.stage or after.rolled_back is not None:
        return False
    if before.stage is Stage.ADMIT:
        return True
    return before.kind is Kind.SWITCHOVER and before.stage in UNWRITTEN_STAGES


def _missing_after_seals(view: View, plan: PlanRecord) -> str | None:
    """Return what the sealed archives lack; where a failover must reach a primary, that is judged once it is fenced."""
    if must_reach(view, plan):
        fenced = plan.fenced_position or stands_at(view.node(plan.old or ""))
        return incomplete(view, replace(plan, fenced_position=fenced))
    return incomplete(
        view, replace(plan, fenced_position=None if plan.kind is Kind.FAILOVER else plan.fenced_position)
    ) or _short(view, plan)


def _unsealed(view: View, plan: PlanRecord, outcome: Outcome) -> str | None:
    """Return what the seals have not brought yet, None when the plan may go on.

    Who accepts a loss still loses nothing that somebody has who is there: everybody who reports is waited for, for a while.
    And whoever may still acknowledge is waited for as ever: without that two primaries could both be acknowledged.
    """
    if plan.accepts is None:
        return _missing_after_seals(view, plan)
    if (may := may_acknowledge(view, plan)) is not None:
        return may
    sealed = {one.site for one in plan.sealed}
    unheard = [one.site for one in view.replicators if one.report is not None and one.site not in sealed]
    if not unheard or outcome.ms - _stalled_since(plan, outcome) >= SEAL_PATIENCE_MS:
        return None
    return f"{' and '.join(unheard)} reports and has not sealed yet"


def _stalled_since(plan: PlanRecord, outcome: Outcome) -> float:
    return plan.stalled_ms if plan.stalled_ms is not None else outcome.ms - outcome.took_ms


def _stalled(plan: PlanRecord, missing: str, outcome: Outcome) -> PlanRecord:
    """Wait for what the archives still miss; a switchover does not, for its primary is well and could be writing."""
    since_ms = _stalled_since(plan, outcome)
    if plan.kind is Kind.SWITCHOVER and outcome.ms - since_ms >= SWITCHOVER_SEAL_MS:
        return failed(replace(plan, stalled_ms=None), f"{plan.stage.value}: {missing}")
    return replace(plan, waiting=missing, stalled_ms=round(since_ms, 1))


def failed(plan: PlanRecord, why: str) -> PlanRecord:
    """Return the plan after its step failed for good: another candidate, a rollback, or on without it."""
    plan = replace(plan, trouble=why)
    if _is_past_return(plan):
        # The watchdog opens by itself and HAProxy asks it: what is left may still succeed, so go on and verify.
        return replace(plan, stage=_after(plan), waiting=why)
    if plan.rolled_back is not None:
        # The old primary cannot be opened again either: from here on it is a failover.
        return replace(
            plan, kind=Kind.FAILOVER, stage=Stage.SEAL, candidate=None, promoted=None, rolled_back=None,
            why=f"{plan.why}; then {why}", waiting=why,
        )  # fmt: skip
    if plan.kind is Kind.SWITCHOVER:
        return _rolled_back(plan, why)
    if plan.stage is Stage.CHOOSE and plan.accepts is not None:
        return _withdrawn(plan, why)
    if plan.stage in CANDIDATE_STAGES and plan.kind is Kind.FAILOVER:
        excluded = tuple(dict.fromkeys((*plan.excluded, _candidate(plan))))
        # From the seals on: what an archive said of itself may be the reason.
        return replace(plan, stage=Stage.SEAL, candidate=None, promoted=None, excluded=excluded, waiting=why)
    return replace(plan, waiting=why)


def accepting(plan: PlanRecord, accepts: Accepted, requested: str | None, why: str, ms: float) -> PlanRecord:
    """Return a failover that waits, after an operator has accepted a loss: from here on it is his. Raises Refused."""
    if plan.kind is not Kind.FAILOVER or plan.stage not in ACCEPTING_STAGES:
        raise Refused(f"the {plan.kind.value} that runs is past the point of accepting a loss", hint="see GET /v1/plan")
    line = StepDone(name="loss accepted", ms=round(ms, 1), took_ms=0.0, detail=f"{accepts.text}; why: {why}")
    return replace(
        plan, stage=Stage.SEAL, accepts=accepts, automatic=False, requested=requested or plan.requested, waiting=None,
        stalled_ms=None, steps=(*plan.steps, line)[-STEPS_MAX:],
    )  # fmt: skip


def _withdrawn(plan: PlanRecord, why: str) -> PlanRecord:
    """What would be lost is more than was accepted: nobody is chosen, and the plan waits as if nothing were accepted."""
    ms = plan.steps[-1].ms if plan.steps else 0.0
    line = StepDone(name="loss refused", ms=ms, took_ms=0.0, detail=why)
    return replace(plan, stage=Stage.SEAL, accepts=None, waiting=why, steps=(*plan.steps, line)[-STEPS_MAX:])


def outcome_of(plan: PlanRecord) -> str:
    """Return how a plan at its end is told."""
    if plan.rolled_back is not None:
        return f"rolled back: {plan.rolled_back}"
    if plan.waiting is not None:
        return f"unverified: {plan.waiting}"
    return "done"


def is_automatic_failover(plan: PlanRecord) -> bool:
    """Return whether a plan that ends counts as one more failover that nobody asked for."""
    return plan.automatic and plan.kind is Kind.FAILOVER and plan.rolled_back is None


def _with_facts(view: View, plan: PlanRecord, step: Step, outcome: Outcome) -> PlanRecord:
    match step:
        case steps.Choose():
            return replace(plan, candidate=step.node, target=step.target, loss=step.loss, ranking=step.reasons)
        case steps.AcceptLeaseEnd() | steps.AcceptWord():
            return replace(plan, proof=step.proof.value)
        case steps.Fence():
            proof = Proof.PROCESS_DEAD if outcome.how == "process dead" else Proof.WATCHDOG
            plan = replace(plan, vouched=outcome.vouched)
            position = outcome.position if step.polite or must_reach(view, plan) else None
            stood = outcome.position if proof is Proof.WATCHDOG and _was_open(view, plan) else None
            known = plan.old_position if _is_same_server(view, plan) else None
            return replace(plan, proof=proof.value, fenced_position=position, old_position=stood or known)
        case steps.Seal():
            plan = replace(plan, sealed=_merge(plan.sealed, outcome.sealed))
            target = reachable_target(view, plan)
            return replace(plan, target=str(target)) if target is not None else plan
        case steps.Promote():
            return replace(plan, promoted=outcome.promoted)
        case _:
            return plan


def _merge(old: tuple[Sealed, ...], new: tuple[Sealed, ...]) -> tuple[Sealed, ...]:
    """A sealed archive changes only by being levelled or by losing a dead tail: the newer answer counts."""
    known = {one.site: one for one in old}
    for one in new:
        if one.durable is not None or one.site not in known:
            known[one.site] = one
    return tuple(known[site] for site in sorted(known))


def _short(view: View, plan: PlanRecord) -> str | None:
    """Return why the sealed archives do not reach the fenced primary, None when they do."""
    target = reachable_target(view, plan)
    if plan.fenced_position is None or (target and target.covers(Position.parse(plan.fenced_position))):
        return None
    return f"the sealed archives end at {target}, the fenced primary at {plan.fenced_position}"


def _after(plan: PlanRecord) -> Stage:
    order = ORDER[plan.kind]
    return order[min(order.index(plan.stage) + 1, len(order) - 1)]


def _candidate(plan: PlanRecord) -> str:
    return plan.candidate or ""


def _is_past_return(plan: PlanRecord) -> bool:
    order = ORDER[plan.kind]
    return order.index(plan.stage) > order.index(POINT_OF_NO_RETURN)


def _is_same_server(view: View, plan: PlanRecord) -> bool:
    old = view.node(plan.old or "")
    return old is not None and old.report is not None and old.report.generation == plan.old_generation


def _was_never_closed(view: View, plan: PlanRecord) -> bool:
    """Return whether a rollback finds the old primary open, because its fence did not arrive: then nothing is to be undone.

    It cannot be promoted while it is the primary, and a failover instead would close it. Should the fence arrive later,
    it closes, and the next decision is about that.
    """
    if plan.rolled_back is None or plan.fenced_position is not None or plan.sealed:
        return False
    old = view.node(plan.old or "")
    report = old.report if old is not None else None
    return report is not None and report.role is Role.PRIMARY and report.lease_epoch == plan.epoch - 1


def _was_open(view: View, plan: PlanRecord) -> bool:
    """Return whether the server that is closed is the very run that clinics wrote to in the ending epoch.

    One that was restarted before the plan began stands where it stood then at most: a restart cuts the tail (decision 0010).
    """
    old = view.node(plan.old or "")
    if old is None or old.report is None or not _is_same_server(view, plan):
        return False
    opened = old.report.role is Role.PRIMARY and old.report.lease_epoch == plan.epoch - 1
    return opened or old.report.resumable


def _is_gone(view: View, name: str) -> bool:
    node = view.node(name)
    return node is not None and node.report is not None and node.report.database is Database.DOWN


def _rolled_back(plan: PlanRecord, why: str) -> PlanRecord:
    """Open the old primary again. What has sealed stays sealed, so it opens in the plan's new epoch."""
    if plan.stage is Stage.CHOOSE:
        return replace(plan, stage=Stage.RECORD, rolled_back=why, candidate=plan.old)
    return replace(
        plan, stage=Stage.PROMOTE, rolled_back=why, candidate=plan.old, target=None, promoted=None,
        proof=plan.proof or Proof.WATCHDOG.value,
    )  # fmt: skip


def _choose(view: View, plan: PlanRecord) -> Step | Wait | GiveUp:
    loss = expected_loss(view, plan) if plan.kind is Kind.FAILOVER else None
    if loss is not None and (why := incomplete(view, plan)):
        if plan.accepts is None:
            return Wait(why=why)
        if (may := may_acknowledge(view, plan)) is not None:
            return GiveUp(why=may)
        if (more := excess(loss, plan.accepts)) is not None:
            return GiveUp(why=more)
    if plan.kind is Kind.SWITCHOVER and (why := _unarchived(view)):
        return GiveUp(why=why)
    ranking = rank(view, plan)
    able = [one for one in ranking if one.able]
    if plan.kind is Kind.SWITCHOVER and plan.requested is not None:
        able = [one for one in able if one.node == plan.requested]
    if not able:
        against = "; ".join(one.text for one in ranking if one.against)
        why = f"no node can be promoted ({against})"
        return GiveUp(why=why) if plan.kind is Kind.SWITCHOVER else Wait(why=why)
    if plan.kind is Kind.SWITCHOVER and (behind := _catching_up(view, able[0])) is not None:
        return Wait(why=behind)
    reasons = tuple(one.text for one in ranking)
    return steps.Choose(node=able[0].node, epoch=plan.epoch, target=plan.target, reasons=reasons, loss=loss)


def _catching_up(view: View, candidate: Candidate) -> str | None:
    """Return why clinics would wait for what the candidate has still to apply; None when it is about where the primary is."""
    node, old = view.node(candidate.node), view.node(view.epoch.primary) if view.epoch else None
    if old is None or old.report is None or old.report.database is not Database.UP:
        return None  # nobody writes: no moment is better than this one
    lag_ms = node.report.lag_ms if node is not None and node.report is not None else None
    if candidate.behind is not None and candidate.behind > SWITCHOVER_BEHIND_MAX:
        return f"{candidate.node} catches up first: it is {candidate.behind} transactions behind"
    if lag_ms is not None and lag_ms > SWITCHOVER_LAG_MAX_MS:
        return f"{candidate.node} catches up first: it is {lag_ms / 1000:.0f} s behind"
    return None


def _unarchived(view: View) -> str | None:
    """Return why what the primary has written last could not be sealed: a switchover would wait for that with it closed."""
    for site in view.durability.ackers if view.durability else ():
        one = view.replicator(site)
        if one is not None and one.report is not None and not one.report.connected:
            return f"the acknowledging site {site} hears nothing from the primary: {one.report.why}"
    return None


def _fence(view: View, plan: PlanRecord) -> Step | Wait:
    old = view.node(plan.old or "")
    if old is None:
        return Wait(why=f"{plan.old} is not in the settings: nothing can prove that it is fenced")
    if old.report is not None:
        polite = plan.kind is Kind.SWITCHOVER
        return steps.Fence(
            node=old.name, epoch=plan.epoch - 1, polite=polite, candidate=plan.candidate if polite else None
        )
    if plan.kind is Kind.FAILOVER and not forbids_grants(view, plan):
        return Wait(why=f"no replicator outside {old.site} has sealed: {old.name} may be writing by their grants")
    if not view.lease_ended(old.absent_ms):
        return Wait(why=f"the lease of {old.name} may still hold")
    if plan.primary_is_off:
        return steps.AcceptWord(node=old.name, epoch=plan.epoch - 1)
    if (why := lease_end_proves_nothing(view)) is not None:
        return Wait(why=f"{old.name} is silent, and {why}; {BY_WORD}")
    return steps.AcceptLeaseEnd(node=old.name, epoch=plan.epoch - 1)


def _seal(view: View, plan: PlanRecord) -> Step | Wait | GiveUp:
    """Seal everybody who answers. A group that is silent as a whole may still acknowledge until its leases ended.

    A failover waits for that. A switchover does not: its old primary has all that anybody acknowledged. A primary that may
    hold is fenced first: cut off meanwhile it would go on alone, and whoever has sealed could not fetch that any more.
    """
    if (first := _fence_first(view, plan)) is not None:
        return first
    sites = tuple(one.site for one in view.replicators if one.report is not None)
    for group in view.durability.groups if view.durability else ():
        silent = [one for site in group if (one := view.replicator(site)) is not None and one.report is None]
        holding = [one.site for one in silent if not view.lease_ended(one.absent_ms)]
        if holding and len(silent) == len(group):
            why = f"the lease of the acknowledging replicator {' and '.join(holding)} may still hold"
            return GiveUp(why=why) if plan.kind is Kind.SWITCHOVER else Wait(why=why)
    until = plan.fenced_position
    if until is None and must_reach(view, plan):
        until = stands_at(view.node(plan.old or ""))
        if until is None:  # who has sealed fetches nothing more
            return Wait(
                why=f"{plan.old} may have been written to alone: its server must be up and closed, for the archives to reach it"
            )
    return steps.Seal(sites=sites, epoch=plan.epoch - 1, until=until)


def _fence_first(view: View, plan: PlanRecord) -> steps.Fence | None:
    old = view.node(plan.old or "")
    if plan.kind is not Kind.FAILOVER or view.epoch is None or not view.epoch.may_hold or plan.vouched is not None:
        return None
    if old is None or old.report is None:
        return None
    return steps.Fence(node=old.name, epoch=plan.epoch - 1, polite=False)


def _level(view: View, plan: PlanRecord) -> Step | Wait | GiveUp:
    node = view.node(_candidate(plan))
    if node is None or plan.target is None:
        return GiveUp(why=f"{plan.candidate} cannot be levelled")
    target = Position.parse(plan.target)
    known = {one.site: one.durable for one in plan.sealed if one.durable is not None and is_ours(view, one.durable)}
    complete = [site for site, durable in known.items() if Position.parse(durable).covers(target)]
    if node.site in complete or not target.last:
        return steps.Level(site=node.site, source=node.site, epoch=plan.epoch - 1, until=plan.target)
    if not complete:
        return GiveUp(why=f"no sealed archive reaches {plan.target}")
    return steps.Level(site=node.site, source=complete[0], epoch=plan.epoch - 1, until=plan.target)


def _open(view: View, plan: PlanRecord, now_text: str) -> Step | GiveUp:
    promoted = plan.promoted
    if promoted is None:
        return GiveUp(why=f"{plan.candidate} did not say where its binlog begins")
    if plan.target is not None and Position.parse(promoted.position) != Position.parse(plan.target):
        return GiveUp(why=f"{plan.candidate} stands at {promoted.position}, the archives at {plan.target}")
    if plan.rolled_back is not None and not _is_same_server(view, plan):
        # A restart cuts the tail of the binlog, acknowledged transactions included (decision 0010).
        return GiveUp(why=f"the server of {plan.old} was restarted: it may lack what it had acknowledged")
    lineage = view.epoch.lineage if view.epoch else ()
    entry = LineageEntry(epoch=plan.epoch, server_id=promoted.server_id, file=promoted.file, position=promoted.position)
    record = EpochRecord(
        epoch=plan.epoch,
        primary=_candidate(plan),
        server_id=promoted.server_id,
        file=promoted.file,
        position=promoted.position,
        since=now_text,
        proof=plan.proof or Proof.NONE_NEEDED.value,
        lineage=(*lineage, entry)[-LINEAGE_MAX:],
        on_isolation=Isolation.HOLD if view.policy.holds else Isolation.PROMOTE,
        revision=(view.epoch.revision if view.epoch else 0) + 1,
    )
    durability = DurabilityRecord(
        epoch=plan.epoch,
        mode=Durability.SYNC,
        ackers=ackers_of_epoch(view, _candidate(plan), answered=tuple(one.site for one in plan.sealed)),
        since=now_text,
        floor=promoted.position,
        acks=view.policy.acks,
        serial=(view.durability.serial if view.durability else 0) + 1,
        why=f"named with epoch {plan.epoch}",
    )
    return steps.Open(record=record, durability=durability, previous=plan.epoch - 1)
