"""A plan carried on in thought: the production decisions over a simulated continuation of the view. Pure.

Everybody does at once what he is told and has what he last reported; who is silent stays silent, and time passes only
where the plan waits. So a rehearsal says what the plan would do, and what it would wait for, if nothing else happens.
"""

from dataclasses import dataclass, replace

from cluster.errors import Bug
from cluster.position import Position
from cluster.records import Database, Role
from controller import plan as steps
from controller.ackers import gone
from controller.advance import Outcome, failed, next_step, progress
from controller.choose import is_ours
from controller.invariants import check_step
from controller.model import Kind, NodeFacts, PlanRecord, Promoted, ReplicatorFacts, Sealed, Stage, View, newest
from controller.plan import GiveUp, Step, Wait

WAIT_STEP_MS = 500.0
PATIENCE_MS = 30_000.0
"""What is still waited for then does not come by itself: every lease has ended, every grace is over."""
ROUNDS_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One stage that the plan went through, and for how long it waited before."""

    stage: Stage
    step: Step
    waited_ms: float = 0.0
    waited_for: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How far the plan came."""

    plan: PlanRecord
    done: tuple[Done, ...]
    holds: str | None
    """Why it does not come to its end; None: it does."""


@dataclass(slots=True)
class _Stand:
    view: View
    plan: PlanRecord
    ms: float = 0.0
    waited_ms: float = 0.0
    waited_for: str | None = None

    def wait(self, why: str) -> None:
        self.view, self.ms = later(self.view, WAIT_STEP_MS), self.ms + WAIT_STEP_MS
        self.waited_ms, self.waited_for = self.waited_ms + WAIT_STEP_MS, why


def rehearse(view: View, plan: PlanRecord) -> Rehearsal:
    """Carry a plan on until it ends, gives up or waits for what does not come."""
    now, done = _Stand(_who_answers(view, plan), plan), list[Done]()
    for _ in range(ROUNDS_MAX):
        step = next_step(now.view, now.plan, "")
        match step:
            case Wait(why=why):
                now.wait(why)
                if now.plan.kind is Kind.SWITCHOVER and now.plan.stage is Stage.CHOOSE:
                    now.view = _caught_up(now.view)
            case GiveUp(why=why):
                now.plan = failed(now.plan, why)
                if now.plan.rolled_back or plan.accepts != now.plan.accepts:
                    return Rehearsal(plan=now.plan, done=tuple(done), holds=why)
            case steps.Record():
                return Rehearsal(plan=now.plan, done=tuple(done), holds=None)
            case _:
                try:
                    check_step(now.view, now.plan, step)
                except Bug as error:
                    return Rehearsal(plan=now.plan, done=tuple(done), holds=error.message)
                done += _do(now, step)
        if now.waited_ms >= PATIENCE_MS:
            break
    return Rehearsal(plan=now.plan, done=tuple(done), holds=now.waited_for or now.plan.waiting or "it does not end")


def _who_answers(view: View, plan: PlanRecord) -> View:
    """Return the view without the reports that outlive their replicators: who is dead, or has not answered the plan's seals."""
    sealed = {one.site for one in plan.sealed}
    asked = bool(sealed) and plan.waiting is not None and plan.stage is Stage.SEAL

    def silent(one: ReplicatorFacts) -> bool:
        unheard = asked and one.site not in sealed
        return one.report is not None and (unheard or gone(one, view.policy.acker_deadline_ms) is not None)

    ones = tuple(replace(one, report=None, absent_ms=0.0) if silent(one) else one for one in view.replicators)
    return replace(view, replicators=ones)


def _do(now: _Stand, step: Step) -> list[Done]:
    """Do one step; it is none of the timeline's if the plan stays where it is."""
    before = now.plan.stage
    now.plan = progress(now.view, now.plan, step, _answer(now, step))
    if isinstance(step, steps.Open):
        now.view = replace(now.view, epoch=step.record, durability=step.durability)
    if now.plan.stage is before:
        now.wait(now.plan.waiting or "")
        return []
    done = Done(stage=before, step=step, waited_ms=now.waited_ms, waited_for=now.waited_for)
    now.waited_ms, now.waited_for = 0.0, None
    return [done]


def _answer(now: _Stand, step: Step) -> Outcome:
    outcome = Outcome(ms=now.ms, took_ms=0.0)
    match step:
        case steps.Fence(node=name):
            node = now.view.node(name)
            report = node.report if node is not None else None
            up = report is not None and report.database is Database.UP
            dead = report is not None and report.database is Database.DOWN
            return replace(
                outcome, how="process dead" if dead else "closed", position=report.position if up and report else None,
                vouched=report is not None and report.vouches == step.epoch,
            )  # fmt: skip
        case steps.Seal(sites=sites, until=until):
            found = [one for site in sites if (one := now.view.replicator(site)) is not None]
            return replace(outcome, sealed=tuple(_sealed(now.view, one, until) for one in found))
        case steps.Promote(node=name):
            node = now.view.node(name)
            position = now.plan.target or (node.report.position if node and node.report else None) or ""
            server_id = node.server_id if node is not None else 0
            return replace(outcome, promoted=Promoted(server_id=server_id, file="", position=position))
        case _:
            return outcome


def _sealed(view: View, one: ReplicatorFacts, until: str | None) -> Sealed:
    """Its report may be a second old: it has what its standby has, and while it hears from the primary what must be there."""
    report = one.report
    known = [report.durable if report is not None else None]
    if report is not None and report.durable is not None:
        known += [node.report.position for node in view.nodes if node.site == one.site
                  and node.report is not None and node.report.role is Role.STANDBY]  # fmt: skip
        if report.connected:
            known += [until, view.durability.floor if view.durability and report.acknowledging else None]
    ours = [text for text in known if text is not None and is_ours(view, text)]
    best = newest(tuple(Position.parse(text) for text in ours))
    return Sealed(site=one.site, durable=report.durable if best is None and report else str(best), how="sealed")


# -- the view, carried on --------------------------------------------------------------------------------------------


def later(view: View, ms: float) -> View:
    """Return the view `ms` later, when nobody has come and nobody has gone."""

    def aged(age_ms: float | None) -> float | None:
        return None if age_ms is None else age_ms + ms

    return replace(
        view,
        nodes=tuple(replace(one, absent_ms=aged(one.absent_ms), stale_ms=aged(one.stale_ms),
                            down_ms=one.down_ms + ms if _is_down(one) else 0.0) for one in view.nodes),
        replicators=tuple(replace(one, absent_ms=aged(one.absent_ms), present_ms=aged(one.present_ms))
                          for one in view.replicators),
    )  # fmt: skip


def _caught_up(view: View) -> View:
    """Return the view once every standby that replicates has applied what the primary has by now."""
    primary = view.node(view.epoch.primary) if view.epoch else None
    head = primary.report.position if primary is not None and primary.report is not None else None

    def there(node: NodeFacts) -> NodeFacts:
        if node.report is None or head is None or not node.report.replicating or node.report.position is None:
            return node
        behind = is_ours(view, node.report.position)
        return replace(node, report=replace(node.report, position=head, lag_ms=0.0)) if behind else node

    return replace(view, nodes=tuple(there(one) for one in view.nodes))


def _is_down(node: NodeFacts) -> bool:
    return node.report is not None and node.report.database is Database.DOWN


def loses_primary(view: View) -> Rehearsal | None:
    """Rehearse what would happen if the site of the primary were gone in this moment; None where there is no primary.

    Where a primary that is cut off holds, a lost site waits for a person by intent: there its server dies, and its watchdog
    says so.
    """
    primary = view.node(view.epoch.primary) if view.epoch else None
    if view.epoch is None or primary is None:
        return None
    if view.epoch.may_hold and primary.report is not None:
        dead = replace(
            primary, report=replace(primary.report, database=Database.DOWN, role=Role.FENCED, lease_epoch=None)
        )
        return rehearse(
            replace(view, nodes=tuple(dead if node is primary else node for node in view.nodes)), _lost(view)
        )
    gone = replace(primary, report=None, absent_ms=0.0)
    lost = replace(
        view,
        nodes=tuple(gone if node is primary else node for node in view.nodes),
        replicators=tuple(replace(one, report=None, absent_ms=0.0) if one.site == primary.site else one
                          for one in view.replicators),
    )  # fmt: skip
    return rehearse(lost, _lost(view))


def _lost(view: View) -> PlanRecord:
    epoch, old = (view.epoch.epoch, view.epoch.primary) if view.epoch is not None else (0, None)
    return PlanRecord(id="", kind=Kind.FAILOVER, epoch=epoch + 1, stage=Stage.SEAL, why="", started="", old=old,
                      automatic=True)  # fmt: skip
