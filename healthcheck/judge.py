"""What the facts mean: the state of the database, the right to be primary, what HAProxy hears. Pure.

Time is an argument. Unknown is a value: nothing here takes silence for health or for death.
"""

from dataclasses import dataclass, replace

from cluster.clock import Nanos, ms_between
from cluster.records import Alone, Database, DurabilityRecord, EpochRecord, Isolation, Role
from cluster.rules import HealthRules
from cluster.settings import Timing

MS_PER_SECOND = 1000
DEFAULT_MAX_LAG_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What is known of the server process and its answers."""

    looked: bool
    """Whether the process was looked for at all since this watchdog began."""
    alive: bool
    newborn: bool
    """This very process has never answered anybody: it is still starting."""
    seen_since: Nanos
    """When this process was first seen."""
    answered: Nanos | None
    """When it last answered a probe; None: never, to us."""
    refused: bool
    """The last probe failed. Without that its silence may be our own: we may have been frozen ourselves."""
    worked: Nanos | None = None
    """When it certainly wrote something last, as we saw without asking it."""
    busy: bool = False
    """It has been using the processor in the last second."""


def judge_database(sighting: Sighting, now: Nanos, timing: Timing, rules: HealthRules) -> Database:
    """Return the state of the database. A server that starts is DOWN: it serves nobody and is born fenced.

    One that does not answer but works is overloaded: a failover would throw its clients on the next one.
    """
    if not sighting.looked:
        return Database.UNKNOWN
    if not sighting.alive or sighting.newborn:
        return Database.DOWN
    answered = sighting.answered if sighting.answered is not None else sighting.seen_since
    silent_since = answered if sighting.worked is None else max(answered, sighting.worked)
    patience_ms = rules.silent_busy_ms if sighting.busy else timing.probe_deadline_ms
    if sighting.refused and ms_between(silent_since, now) >= patience_ms:
        return Database.HUNG
    return Database.UNKNOWN if sighting.answered is None else Database.UP


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What was promised about one run of the server process; kept in a file by healthcheck/memory.py."""

    generation: str = ""
    sealed_epoch: int = 0
    opened_epoch: int | None = None
    """The epoch this server process was opened for, and not fenced from by anybody's command since."""
    promoted_epoch: int | None = None
    promoted_file: str = ""
    promoted_position: str = ""
    """What `promote` answered, so that it answers the same again."""
    watched_epoch: int = 0
    """The newest epoch for which this node was promoted: of what was answered in it all is known here. It outlives the server."""
    alone: Alone | None = None
    """Commits were let go while it was cut off, and no durability record says so yet."""

    @property
    def vouches(self) -> int | None:
        """Return the epoch in which certainly no commit was answered alone without a record of that; None: of none."""
        known = max(self.watched_epoch, self.opened_epoch or 0)
        return None if not known or (self.alone is not None and self.alone.epoch == known) else known

    def for_generation(self, generation: str) -> "Memory":
        """Return this memory for a server process: unchanged for the one it is of, else only the seal."""
        if generation == self.generation:
            return self
        return Memory(
            generation=generation,
            sealed_epoch=self.sealed_epoch,
            watched_epoch=max(self.watched_epoch, self.opened_epoch or 0),
            alone=self.alone,
        )

    def promoted(self, epoch: int, file: str, position: str) -> "Memory":
        """Return this memory of a server that was made ready for `epoch`; nothing older may be opened by itself."""
        return replace(self, opened_epoch=None, promoted_epoch=epoch, promoted_file=file, promoted_position=position,
                       watched_epoch=epoch, alone=None)  # fmt: skip

    def sealed(self, epoch: int) -> "Memory":
        """Return this memory with `epoch` and all older ones never to be opened again."""
        keep = self.opened_epoch is not None and self.opened_epoch > epoch
        return replace(
            self,
            sealed_epoch=max(self.sealed_epoch, epoch),
            opened_epoch=self.opened_epoch if keep else None,
            watched_epoch=max(self.watched_epoch, self.opened_epoch or 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything that decides whether a node may accept writes."""

    node: str
    role: Role
    database: Database
    read_only: bool | None
    lease_valid: bool
    """Or all replicators have granted that it goes on without one (decision 0078), or it holds (0090)."""
    record: EpochRecord | None
    memory: Memory


def why_not_primary(standing: Standing) -> str | None:
    """Return why `/primary` must say no, None when it may say yes."""
    record = standing.record
    if standing.role is not Role.PRIMARY:
        return f"role is {standing.role.value}"
    if not standing.lease_valid:
        return "the lease ended"
    if record is None or record.primary != standing.node or record.epoch != standing.memory.opened_epoch:
        return "the epoch is not ours"
    if record.epoch <= standing.memory.sealed_epoch:
        return f"epoch {record.epoch} is sealed"
    if standing.database is not Database.UP:
        return f"the database is {standing.database.value}"
    if standing.read_only is not False:
        return "the database is read-only"
    return None


def why_not_open(node: str, generation: str, record: EpochRecord | None, memory: Memory) -> str | None:
    """Return why this server may not be open now, None when the record names it and it was made ready for that."""
    if record is None:
        return "no epoch is known"
    if record.primary != node:
        return f"epoch {record.epoch} names {record.primary}"
    if record.epoch <= memory.sealed_epoch:
        return f"epoch {record.epoch} is sealed"
    if memory.generation != generation or record.epoch not in (memory.opened_epoch, memory.promoted_epoch):
        return f"this server process was not promoted for epoch {record.epoch}"
    return None


def commits_wait(record: DurabilityRecord | None, opened_epoch: int | None) -> bool:
    """Return whether the commits of an open primary must wait for an acknowledgement. What is not known: they must."""
    if record is None or record.epoch != opened_epoch:
        return True
    return not record.is_degraded or bool(record.ackers)


def may_hold(record: EpochRecord | None, memory: Memory, certain: int | None) -> bool:
    """Return whether what is open may stay open with neither lease nor grants (decision 0090).

    `certain` is the revision of the newest record that this watchdog has read behind a write of its own: an older one may
    still say that it holds after somebody before us has said that he does no more.
    """
    if record is None or record.epoch != memory.opened_epoch or record.epoch <= memory.sealed_epoch:
        return False
    return record.on_isolation is Isolation.HOLD and certain is not None and certain >= record.revision


def must_fence(node: str, record: EpochRecord | None, memory: Memory) -> str | None:
    """Return why a primary must close at once because of the epoch's record, None when it need not."""
    if record is None:
        return None  # a record that vanished names nobody else
    if record.primary != node:
        return f"epoch {record.epoch} names {record.primary}"
    if record.epoch != memory.opened_epoch:
        return f"epoch {record.epoch} began"
    return None


def why_not_standby(
    role: Role, database: Database, replicating: bool | None, lag_ms: float | None, max_lag_ms: float
) -> str | None:
    """Return why `/standby` must say no, None when it may say yes. An unknown lag is a no."""
    if role is not Role.STANDBY:
        return f"role is {role.value}"
    if database is not Database.UP:
        return f"the database is {database.value}"
    if not replicating:
        return "replication does not run"
    if lag_ms is None:
        return "the lag is not known"
    if lag_ms > max_lag_ms:
        return f"{lag_ms / MS_PER_SECOND:.1f} s behind, more than {max_lag_ms / MS_PER_SECOND:.1f} s"
    return None
