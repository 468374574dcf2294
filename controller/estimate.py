"""How long a plan would take: what each stage took before, by the history; pure.

A stage that was never done takes at most its deadline. What the rehearsal waited for comes on top, and so does what the
candidate has still to apply.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from cluster.settings import Timing
from controller.model import HistoryRecord, Kind, Stage, View
from controller.rehearse import Rehearsal

ESTIMATE_PLANS = 50
"""So many finished plans are looked at."""
VERIFY_DEADLINE_MS = 10_000
REPOINT_DEADLINE_MS = 1_000
HEARTBEAT_LAG_MS = 1_500
"""A standby is never known to be less behind: the heartbeat itself is up to so old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stage of a plan that did not happen yet."""

    name: str
    ms: float
    basis: str


def estimate(view: View, rehearsed: Rehearsal, past: Iterable[HistoryRecord], timing: Timing) -> tuple[Part, ...]:
    """Return the parts of the time that a plan would take, in order."""
    kind, known, parts = rehearsed.plan.kind, _took(past), list[Part]()
    for one in rehearsed.done:
        if one.waited_for is not None:
            parts.append(Part(name=f"wait before {one.stage.value}", ms=one.waited_ms, basis=one.waited_for))
        if one.stage is Stage.APPLY and (behind := _behind(view, rehearsed.plan.candidate)) is not None:
            parts.append(behind)
        parts.append(_stage(one.stage, kind, known, timing))
    return tuple(parts)


def dominated_by(parts: tuple[Part, ...]) -> str:
    """Return in words what takes longest."""
    longest = max(parts, key=lambda part: part.ms, default=None)
    return "" if longest is None else f"{longest.name}: {longest.ms:.0f} ms ({longest.basis})"


def _stage(stage: Stage, kind: Kind, known: Mapping[tuple[Kind, str], list[float]], timing: Timing) -> Part:
    for other in (kind, *(one for one in Kind if one is not kind)):
        found = known.get((other, stage.value))
        if found:
            plans = f"{other.value}{'' if len(found) == 1 else 's'}"
            return Part(name=stage.value, ms=round(median(found), 1), basis=f"median of {len(found)} {plans}")
    deadline_ms = _deadlines(timing)[stage]
    return Part(name=stage.value, ms=float(deadline_ms), basis="never done yet: at most its deadline")


def _took(past: Iterable[HistoryRecord]) -> dict[tuple[Kind, str], list[float]]:
    found: dict[tuple[Kind, str], list[float]] = {}
    for record in past:
        for step in record.steps if record.outcome == "done" else ():
            found.setdefault((record.kind, step.name), []).append(step.took_ms)
    return found


def _behind(view: View, candidate: str | None) -> Part | None:
    node = view.node(candidate or "")
    lag_ms = node.report.lag_ms if node is not None and node.report is not None else None
    if node is None or lag_ms is None or lag_ms <= HEARTBEAT_LAG_MS:
        return None
    return Part(name="applying", ms=lag_ms, basis=f"{node.name} is {lag_ms / 1000:.1f} s behind")


def _deadlines(timing: Timing) -> dict[Stage, int]:
    step, call = timing.step_deadline_ms, timing.call_deadline_ms
    return {
        Stage.CHOOSE: call, Stage.FENCE: timing.fence_deadline_ms, Stage.SEAL: call, Stage.LEVEL: step, Stage.APPLY: step,
        Stage.PROMOTE: step, Stage.OPEN: call, Stage.ADMIT: step, Stage.REPOINT: REPOINT_DEADLINE_MS,
        Stage.VERIFY: VERIFY_DEADLINE_MS, Stage.RECORD: call,
    }  # fmt: skip
