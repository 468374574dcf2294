"""Which hooks are due, what they are told, and what their end means: pure.

A hook is told, never asked: only one that must succeed before a switchover, where nothing has been touched yet, can stop anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.clock import Nanos, ms_between
from cluster.rules import Hook, HookEvent, Must
from controller.model import ORDER, HistoryRecord, HookRun, Kind, PlanRecord

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TEXT_MAX = 2_000
BEFORE: Mapping[Kind, HookEvent] = {
    Kind.FAILOVER: HookEvent.BEFORE_FAILOVER,
    Kind.SWITCHOVER: HookEvent.BEFORE_SWITCHOVER,
}
AFTER: Mapping[Kind, HookEvent] = {
    Kind.FAILOVER: HookEvent.AFTER_FAILOVER,
    Kind.SWITCHOVER: HookEvent.AFTER_SWITCHOVER,
}
DONE = "done"


def of_event(hooks: Iterable[Hook], event: HookEvent | None) -> tuple[Hook, ...]:
    """Return the hooks of an event."""
    return tuple(hook for hook in hooks if event is not None and event in hook.on)


def due_before(hooks: Iterable[Hook], plan: PlanRecord) -> tuple[Hook, ...]:
    """Return what is to be run before the plan's first step, and has not ended yet under this leader or another."""
    if plan.stage is not ORDER[plan.kind][0] or len(plan.steps) > 1:
        return ()
    ended = {one.name for one in plan.hooks}
    return tuple(hook for hook in of_event(hooks, BEFORE.get(plan.kind)) if hook.name not in ended)


def refusal(hooks: Iterable[Hook], runs: Iterable[HookRun]) -> str | None:
    """Return why the switchover must not begin, None when it may."""
    must = {hook.name for hook in hooks if hook.must is Must.MUST_SUCCEED}
    return next((f"hook {one.name} {one.outcome}" for one in runs if one.name in must and one.outcome != DONE), None)


def expected_after(hooks: Iterable[Hook], plan: PlanRecord) -> tuple[HookRun, ...]:
    """Return the runs that the end of a plan brings: written with it, so that a next leader knows of them."""
    event = AFTER.get(plan.kind)
    return tuple(HookRun(event=event.value, name=hook.name) for hook in of_event(hooks, event) if event is not None)


def due_after(hooks: Iterable[Hook], done: HistoryRecord) -> tuple[Hook, ...]:
    """Return what a finished plan still has to have run."""
    waiting = {one.name for one in done.hooks if one.outcome is None}
    return tuple(hook for hook in of_event(hooks, AFTER.get(done.kind)) if hook.name in waiting)


def ended(known: tuple[HookRun, ...], runs: Iterable[HookRun]) -> tuple[HookRun, ...]:
    """Return the runs with those that have ended by now."""
    by_name = {(one.event, one.name): one for one in runs}
    return tuple(by_name.get((one.event, one.name), one) for one in known)


def environment(
    cluster: str, hook: Hook, event: HookEvent, key: str, facts: Mapping[str, str | None]
) -> dict[str, str]:
    """Return everything that a hook's process gets: nothing of our own environment, and no secret."""
    told = {
        "CLUSTER": cluster,
        "EVENT": event.value,
        "HOOK": hook.name,
        "KEY": f"{key}/{event.value}/{hook.name}",
        **facts,
    }
    ours = {f"OSCAR_HA_{name}": _clean(value) for name, value in told.items() if value is not None}
    return {"PATH": PATH, "LANG": "C.UTF-8", **ours}


def facts_of(plan: PlanRecord | HistoryRecord) -> dict[str, str | None]:
    """Return what of a plan its hooks are told."""
    outcome = plan.outcome if isinstance(plan, HistoryRecord) else None
    new = plan.new if isinstance(plan, HistoryRecord) else plan.candidate or plan.requested
    return {
        "PLAN": plan.id, "KIND": plan.kind.value, "EPOCH": str(plan.epoch), "OLD": plan.old, "NEW": new, "WHY": plan.why,
        "AUTOMATIC": "1" if plan.automatic else "0", "OUTCOME": outcome,
    }  # fmt: skip


def _clean(value: str) -> str:
    return value.replace("\0", "")[:TEXT_MAX]


@dataclass(frozen=True, slots=True)
class Edge:
    """Whether something is so, as last told, and since when it has been otherwise. `told` None: nobody has looked yet."""

    told: bool | None = None
    otherwise: Nanos | None = None


def look(before: Edge, is_so: bool, now: Nanos, hold_ms: float) -> tuple[Edge, bool]:
    """Return what is known now, and whether it has just changed: for good, not for a moment."""
    if before.told is None or before.told == is_so:
        return Edge(is_so if before.told is None else before.told), False
    since = now if before.otherwise is None else before.otherwise
    if ms_between(since, now) < hold_ms:
        return Edge(before.told, since), False
    return Edge(is_so), True
