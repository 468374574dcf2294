"""What a node that came back needs before it may be a standby again: the rungs, from the least to the most. Pure.

Nothing is thrown away: no rung below RESCUE is reached before a rescue is complete. Silence is not death, and what is not
known holds. What a crash leaves unacknowledged is cut by the server's start itself (decision 0010).
"""

from dataclasses import dataclass
from enum import StrEnum

from cluster.lineage import History
from cluster.position import Position
from cluster.records import Database, RescueReport, RescueState, RestartReport, Role, SeedReport

MS_PER_SECOND = 1000
FOLLOWING = (Role.STANDBY, Role.JOINING)


class Rung(StrEnum):
    """What is to be done with the node."""

    FOLLOW = "follow"
    """Its history is a beginning of the cluster's."""
    RESCUE = "rescue"
    """It has what the cluster has not, and that is not safe yet: its watchdog is at it."""
    RESTART = "restart"
    """Its server crashed and nobody has started it: the start cuts what nobody acknowledged, or it is kept and rescued."""
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
    current: bool
    """Its watchdog knows of the newest epoch."""
    resumable: bool
    """It opens again by itself."""
    position: str | None
    history: History | None
    """What its position is to the cluster's history; None: not known."""
    rescue: RescueReport | None
    seeding: SeedReport | None
    restart: RestartReport | None
    stuck: str
    """What its applier cannot pass; empty when there is no such thing."""
    crashed: bool
    """Its server is down and did not end in order."""
    left_ms: float
    """For how long yet whoever starts servers may start it."""
    can_restart: str
    """Why it cannot be started by its watchdog; empty when it can."""
    can_seed: str
    """Why it cannot be seeded now; empty when it can."""
    spent: str
    """Why no attempt may be made now after those that were; empty when one may."""
    automatic: bool
    maintenance: bool
    """Somebody works on it."""
    paused: bool
    plan_runs: bool
    primary_up: bool
    """The cluster has a primary that is certainly well."""


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
    if facts.database is Database.DOWN:
        return _restart(facts)
    if facts.role in FOLLOWING:
        return _replace(facts, f"its applier cannot go on ({facts.stuck})")
    if facts.history is History.EQUAL_OR_BEHIND:
        return Step(Rung.FOLLOW, "its history is a beginning of the cluster's")
    if not _safe(facts):
        return _rescue(facts.rescue)
    return _replace(facts, "what only it has is rescued")


def _restart(facts: Facts) -> Step:
    reason = "its server has crashed"
    if not facts.automatic:
        return Step(Rung.HOLD, f"{reason}, and [rejoin] automatic is false: start it")
    if facts.left_ms > 0:
        return Step(
            Rung.HOLD, f"{reason}: it is started in {facts.left_ms / MS_PER_SECOND:.0f} s if nobody does before"
        )
    if facts.spent or facts.can_restart:
        return Step(Rung.HOLD, f"{reason}, but {facts.spent or facts.can_restart}")
    return Step(Rung.RESTART, f"{reason} and nobody has started it")


def _replace(facts: Facts, reason: str) -> Step:
    """Its data is of no use any more: build it anew, unless something speaks against that."""
    if not facts.automatic:
        return Step(Rung.HOLD, f"{reason}, and [rejoin] automatic is false: 'oscar-ha reinitialize' builds it anew")
    if facts.spent:
        return Step(Rung.HOLD, f"{reason}, but {facts.spent}")
    if facts.can_seed:
        return Step(Rung.HOLD, f"{reason}, but it cannot be seeded now: {facts.can_seed}")
    return Step(Rung.RESEED, f"{reason}: its data is replaced by a copy")


def _holds(facts: Facts) -> str:
    """Return why nothing may be done, empty when something may."""
    if facts.is_primary:
        return "it is the primary"
    if facts.role is None:
        return "its watchdog does not report"
    if facts.plan_runs:
        return "a plan is running: a repair waits for it"
    if facts.maintenance:
        return "it is in maintenance: nothing is done to it by itself"
    if facts.paused:
        return "paused: no automatic action"
    if not facts.primary_up:
        return "the primary is not certainly well: a failover comes first"
    if facts.seeding is not None and not facts.seeding.phase.over:
        return f"it is being seeded from {facts.seeding.donor}: {facts.seeding.phase.value}"
    if facts.restart is not None and facts.restart.runs:
        return "its server is being started"
    if facts.role is Role.PRIMARY or (facts.role in FOLLOWING and not facts.stuck):
        return f"it is {facts.role.value}: nothing is to be done"
    return _unclear(facts)


def _unclear(facts: Facts) -> str:
    """Return what must be known or mended first of a node that is closed."""
    if not facts.current:
        return "its watchdog has not seen the newest epoch yet"
    if facts.database is Database.DOWN and facts.crashed:
        return ""
    if facts.database is not Database.UP:
        return f"its database is {facts.database.value}: nobody knows what it has"
    if facts.resumable:
        return "it opens again by itself"
    if facts.position is None or facts.history is None:
        return "its position is not known"
    if facts.role is Role.FAILED:
        return "its server lacks what a node must have"
    if facts.role in FOLLOWING and facts.history is not History.EQUAL_OR_BEHIND:
        return f"it follows with a history of its own, a person must look: {facts.stuck}"
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
