"""The ladder applied to what a controller sees: which node gets which rung, and the repairs that are due. Pure.

One node is built anew or started at a time, only while the primary is certainly well, and each attempt is written before it is made: a
controller that dies between two of them leaves its successor all that it must know.
"""

from dataclasses import replace

from cluster.errors import OscarHaError
from cluster.records import Database, SeedPhase
from controller.decide import Reach, history_of, is_current, judge_primary
from controller.model import MS_PER_HOUR, MS_PER_MINUTE, NodeFacts, RejoinEvent, View
from controller.plan import NoteRejoin, Reseed, Restart
from controller.rejoin import Facts, Rung, Step, ladder
from controller.seed import SeedPlan, plan_seeding

BEGUN_MS = 60_000.0
"""An attempt that nobody sees begun for so long did not begin: its controller died, or the node's watchdog."""
BACKOFF_MS, BACKOFF_MAX_MS = 1.0 * MS_PER_MINUTE, 60.0 * MS_PER_MINUTE
"""After a failed attempt; twice as long after each further one."""
FAILURES_MAX = 10
"""More make no pause longer."""
DONE = "done"
NEVER_BEGAN = "failed: it never began"
MS_PER_SECOND = 1000


def rungs(view: View, *, plan_runs: bool) -> dict[str, Step]:
    """Return what every node but the primary needs, by name; empty before the first epoch."""
    if view.epoch is None:
        return {}
    return {node.name: ladder(facts_of(view, node, plan_runs=plan_runs))
            for node in view.nodes if node.name != view.epoch.primary}  # fmt: skip


def repairs(view: View, since: str, fresh_id: str) -> tuple[Reseed | Restart | NoteRejoin, ...]:
    """Return what is to be done while no plan runs and the primary is well: ends to be noted, and at most one attempt."""
    if view.epoch is None:
        return ()
    epoch = view.epoch.epoch
    ended = tuple(NoteRejoin(node=node.name, epoch=epoch, event=event)
                  for node in view.nodes if (event := ended_event(node, since)) is not None)  # fmt: skip
    for node in view.nodes:
        step = ladder(facts_of(view, node, plan_runs=False))
        if step.rung in (Rung.RESEED, Rung.RESTART) and node.name not in {one.node for one in ended}:
            event = _next_event(view, node, step, since, fresh_id)
            return (*ended, _reseed(view, node, event) if step.rung is Rung.RESEED
                    else Restart(node=node.name, epoch=epoch, event=event))  # fmt: skip
    return ended


def facts_of(view: View, node: NodeFacts, *, plan_runs: bool) -> Facts:
    """Return what decides about one node."""
    report, epoch = node.report, view.epoch
    position = report.position if report else None
    known = epoch is not None and position is not None
    return Facts(
        role=report.role if report else None,
        database=report.database if report else Database.UNKNOWN,
        is_primary=epoch is not None and epoch.primary == node.name,
        current=report is not None and epoch is not None and report.epoch >= epoch.epoch,
        resumable=report is not None and report.resumable,
        position=position,
        history=history_of(view, epoch, position or "") if known and epoch is not None else None,
        rescue=report.rescue if report else None,
        seeding=report.seeding if report else None,
        restart=report.restart if report else None,
        stuck=report.stuck if report else "",
        crashed=report is not None and report.crashed,
        left_ms=view.policy.restart_after_ms - node.down_ms,
        can_restart=f"its settings lack {', '.join(node.missing_to_receive)}" if node.missing_to_receive else "",
        can_seed=why_not_seed(view, node),
        spent=why_not_again(view, node),
        automatic=view.policy.rejoin_automatic,
        maintenance=node.maintenance is not None,
        paused=view.paused,
        plan_runs=plan_runs,
        primary_up=epoch is not None and judge_primary(view, epoch).reach is Reach.UP,
    )


def why_not_seed(view: View, node: NodeFacts) -> str:
    """Return why a node cannot be seeded now; empty when it can."""
    busy = [one.name for one in view.nodes if one.name != node.name and is_being_seeded(one)]
    if busy:
        return f"{', '.join(busy)} is being seeded, one at a time"
    try:
        plan = plan_seeding(view, node.name, requested=None, force=False)
    except OscarHaError as error:
        return error.message
    giver = view.node(plan.donor)
    missing = {node.name: node.missing_to_receive, plan.donor: giver.missing_to_give if giver else ()}
    lacks = [f"the settings of {name} lack {', '.join(names)}" for name, names in missing.items() if names]
    return "; ".join(lacks) or _stalls(view, plan)


def _stalls(view: View, plan: SeedPlan) -> str:
    """Commits wait while a primary gives: by itself it does so only when nobody could take over from it anyway."""
    current = [one.name for one in view.nodes if is_current(one)]
    if view.epoch is None or plan.donor != view.epoch.primary or not current:
        return ""
    against = {one.node: ", ".join(one.against) for one in plan.donors}
    reasons = "; ".join(f"{name}: {against.get(name, '')}" for name in current)
    return f"a standby is to give, not the primary, and cannot yet ({reasons})"


def is_being_seeded(node: NodeFacts) -> bool:
    """Return whether a seeding of the node runs, or has just been ordered."""
    if node.report is not None and node.report.seeding is not None and not node.report.seeding.phase.over:
        return True
    attempt = node.rejoin.last_attempt if node.rejoin else None
    if attempt is None or attempt.rung != Rung.RESEED.value:
        return False
    return attempt.outcome is None and node.rejoin_age_ms < BEGUN_MS


def why_not_again(view: View, node: NodeFacts) -> str:
    """Return why no further attempt may be made now: the last has not ended, it is too soon, or there were too many."""
    last, policy = node.rejoin.last_attempt if node.rejoin else None, view.policy
    if last is None or node.rejoin_age_ms >= policy.rejoin_within_ms:
        return ""
    if last.outcome is None:
        return f"the end of what was ordered is not known yet: {last.rung}"
    if last.attempt >= policy.rejoin_attempts_max:
        hours = policy.rejoin_within_ms / MS_PER_HOUR
        return (f"{last.attempt} attempts were made within {hours:.0f} hours each of the one before, the last {last.outcome}:"
                " a person must look, then 'oscar-ha resume' or 'oscar-ha reinitialize'")  # fmt: skip
    left_ms = backoff_ms(failures(node)) - node.rejoin_age_ms
    if left_ms > 0:
        return f"the last attempt {last.outcome}: the next one comes in {left_ms / MS_PER_SECOND:.0f} s"
    return ""


def failures(node: NodeFacts) -> int:
    """Return how many of the newest attempts failed, one after the other."""
    attempts = [one for one in (node.rejoin.events if node.rejoin else ()) if one.attempt]
    well = [number for number, one in enumerate(reversed(attempts)) if one.outcome == DONE]
    return well[0] if well else len(attempts)


def backoff_ms(failed: int) -> float:
    """Return how long after so many failed attempts the next one may come, at the soonest."""
    return min(BACKOFF_MAX_MS, BACKOFF_MS * 2.0 ** (min(failed, FAILURES_MAX) - 1)) if failed else 0.0


def ended_event(node: NodeFacts, now: str) -> RejoinEvent | None:
    """Return the last attempt with its outcome when it has ended and nobody has written so; else None."""
    last = node.rejoin.last_attempt if node.rejoin else None
    if last is None or last.outcome is not None:
        return None
    known, outcome = _seen(node, last)
    if known:
        return replace(last, ended=now, outcome=outcome) if outcome else None
    return replace(last, ended=now, outcome=NEVER_BEGAN) if node.rejoin_age_ms >= BEGUN_MS else None


def _seen(node: NodeFacts, event: RejoinEvent) -> tuple[bool, str]:
    """Return whether the node knows of an attempt, and how it ended; empty while it runs."""
    seeding, restart = (node.report.seeding, node.report.restart) if node.report else (None, None)
    if seeding is not None and seeding.id == event.id:
        well = seeding.phase is SeedPhase.DONE
        return True, "" if not seeding.phase.over else DONE if well else f"failed: {seeding.why}"
    if restart is not None and restart.id == event.id:
        return True, "" if restart.runs else f"failed: {restart.why}" if restart.why else DONE
    return False, ""


def _next_event(view: View, node: NodeFacts, step: Step, since: str, fresh_id: str) -> RejoinEvent:
    last = node.rejoin.last_attempt if node.rejoin else None
    near = last is not None and node.rejoin_age_ms < view.policy.rejoin_within_ms
    return RejoinEvent(
        id=fresh_id, rung=step.rung.value, why=step.why, epoch=view.epoch.epoch if view.epoch else 0, began=since,
        attempt=last.attempt + 1 if last is not None and near else 1,
    )  # fmt: skip


def _reseed(view: View, node: NodeFacts, event: RejoinEvent) -> Reseed:
    plan = plan_seeding(view, node.name, requested=None, force=False)
    return Reseed(node=node.name, epoch=plan.epoch, donor=plan.donor, event=replace(event, donor=plan.donor))
