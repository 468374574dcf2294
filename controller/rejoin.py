"""What a node that came back needs before it may be a standby again: the rungs, from the least to the most. Pure.

Nothing is thrown away: no rung below RESCUE is reached before a rescue is complete. Silence is not death, and what is not
known holds.
"""

from dataclasses import dataclass
from enum import Enum

from cluster.lineage import History
from cluster.position import Position
from cluster.records import Database, RescueReport, RescueState, Role, SeedPhase, SeedReport


class Rung(Enum):
    """What is to be done with the node."""

    FOLLOW = "follow"
    """Its history is a beginning of the cluster's."""
    RESCUE = "rescue"
    """It has what the cluster has not, and that is not safe yet: its watchdog is at it."""
    CUT = "cut"
    """Its own tail can be taken back in place (`init_rpl_role=SLAVE` at a start, or flashback)."""
    RESEED = "reseed"
    """Its data is to be replaced by a copy."""
    HOLD = "hold"
    """Nothing, for now or until a person has looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that decides it."""

    role: Role | None
    """None: its watchdog does not report."""
    database: Database
    is_primary: bool
    resumable: bool
    """It opens again by itself."""
    position: str | None
    history: History | None
    """What its position is to the cluster's history; None: not known."""
    rescue: RescueReport | None
    seeding: SeedReport | None
    can_cut: bool
    """Its tail is known to be one that can be taken back in place."""
    can_seed: str
    """Why it cannot be seeded now; empty when it can."""
    reseed_automatic: bool
    paused: bool
    plan_runs: bool


@dataclass(frozen=True, slots=True)
class Step:
    """The rung, and why."""

    rung: Rung
    why: str


def ladder(facts: Facts) -> Step:
    """Return what to do now. The same facts, the same step."""
    why = _holds(facts)
    if why:
        return Step(Rung.HOLD, why)
    if facts.history is History.EQUAL_OR_BEHIND:
        return Step(Rung.FOLLOW, "its history is a beginning of the cluster's")
    if not _safe(facts):
        return _rescue(facts.rescue)
    if facts.can_cut:
        return Step(Rung.CUT, "what only it has is rescued, and can be taken back in place")
    if facts.can_seed:
        return Step(Rung.HOLD, f"what only it has is rescued, but it cannot be seeded now: {facts.can_seed}")
    if not facts.reseed_automatic:
        return Step(Rung.HOLD, "what only it has is rescued: reseed it with 'oscar-ha reinitialize'")
    return Step(Rung.RESEED, "what only it has is rescued: its data may be replaced")


def _holds(facts: Facts) -> str:
    """Return why nothing may be done, empty when something may."""
    if facts.is_primary:
        return "it is the primary"
    if facts.role is None:
        return "its watchdog does not report"
    if facts.plan_runs:
        return "a plan is running: a repair waits for it"
    if facts.paused:
        return "paused: no automatic action"
    if facts.seeding is not None and not facts.seeding.phase.over:
        return f"it is being seeded: {facts.seeding.phase.value}"
    if (
        facts.seeding is not None
        and facts.seeding.phase is SeedPhase.FAILED
        and facts.history is not History.EQUAL_OR_BEHIND
    ):
        return f"seeding it failed, a person must look: {facts.seeding.why}"
    if facts.role not in (Role.FENCED, Role.FAILED):
        return f"it is {facts.role.value}: nothing is to be done"
    if facts.database is not Database.UP:
        return f"its database is {facts.database.value}: nobody knows what it has"
    if facts.resumable:
        return "it opens again by itself"
    if facts.position is None or facts.history is None:
        return "its position is not known"
    if facts.role is Role.FAILED:
        return "its server lacks what a node must have"
    return ""


def _safe(facts: Facts) -> bool:
    rescue, position = facts.rescue, facts.position
    if rescue is None or rescue.state is not RescueState.COMPLETE or position is None:
        return False
    return Position.parse(rescue.position) == Position.parse(position)


def _rescue(rescue: RescueReport | None) -> Step:
    if rescue is not None and rescue.state is RescueState.INCOMPLETE:
        return Step(Rung.HOLD, f"not all of what only it has could be rescued, a person must look: {rescue.why}")
    if rescue is not None and rescue.state is RescueState.FAILED:
        return Step(Rung.RESCUE, f"it is tried again: {rescue.why}")
    return Step(Rung.RESCUE, "it has what the cluster has not")
