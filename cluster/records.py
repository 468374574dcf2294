"""What is written to ZooKeeper and said over HTTP: frozen records, checked on the way in.

`decode` refuses what does not fit and names the field; a record from a newer version may carry fields that we do not
know, they are ignored. Unknown values are `None`.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from cluster.errors import BadInput
from cluster.orders import Obedience

Record = TypeVar("Record")
RECORD_BYTES_MAX = 900_000
"""ZooKeeper refuses more than 1 MiB (jute.maxbuffer)."""


class Role(StrEnum):
    """What a node is."""

    PRIMARY = "primary"
    STANDBY = "standby"
    FENCED = "fenced"
    JOINING = "joining"
    FAILED = "failed"


class Database(StrEnum):
    """What the watchdog knows of the server process. UNKNOWN is not DOWN."""

    UP = "up"
    DOWN = "down"
    HUNG = "hung"
    UNKNOWN = "unknown"


class Condition(StrEnum):
    """How a server is that is there. DEGRADED: a person should look. FAILED: another one would do better."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The condition of a server, and everything that speaks for it, the worst first."""

    condition: Condition = Condition.HEALTHY
    reasons: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.condition is Condition.FAILED

    @property
    def text(self) -> str:
        """Return it as a person reads it."""
        return "; ".join(self.reasons) or self.condition.value


class Durability(StrEnum):
    """SYNC: an acknowledgement means on disk in another city. DEGRADED: it does not, and that is recorded."""

    SYNC = "sync"
    DEGRADED = "degraded"


class DurabilityPolicy(StrEnum):
    """What commits do while no site can acknowledge. STRICT: they wait. AVAILABLE: they wait so long, then no more."""

    STRICT = "strict"
    AVAILABLE = "available"


class Isolation(StrEnum):
    """What a primary does that hears no ZooKeeper and has no grants. PROMOTE: it closes, and another one is promoted."""

    PROMOTE = "promote"
    HOLD = "hold"
    """It goes on serving, and the end of its lease proves nothing: nobody is promoted by that (decision 0090)."""
    HOLD_ENDS = "hold-ends"
    """It must not hold any more. Until it says that it has read that it may still, so its lease still proves nothing."""


class Acks(StrEnum):
    """Whose disk an acknowledgement means. ONE: that of the one named site. ALL: those of all named sites."""

    ONE = "one"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEntry:
    """Where one epoch begins: its primary's server id, the first binlog file, the position before its first event."""

    epoch: int
    server_id: int
    file: str
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """Who the primary is. Changed by compare-and-set only; `lineage` ends with this very epoch."""

    epoch: int
    primary: str
    server_id: int
    file: str
    position: str
    since: str
    proof: str
    lineage: tuple[LineageEntry, ...]
    on_isolation: Isolation = Isolation.PROMOTE
    revision: int = 0
    """Grows by one with every change of the record, over all epochs: of two of one epoch the newer one counts."""

    @property
    def may_hold(self) -> bool:
        """Return whether the primary may be serving though its lease has ended."""
        return self.on_isolation is not Isolation.PROMOTE


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEpoch:
    """What a watchdog needs to know of the running plan: the epoch that it will open."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DurabilityRecord:
    """Which sites acknowledge in `epoch`, and how. Written before the first of them does; everybody acts on the record.

    What was acknowledged in the epoch lies at or below `floor`, or one member of each of `groups` has it. While `mode` is
    degraded that holds only for what was acknowledged before: without `ackers` no commit waits, with them they wait again, and
    `sync` is written once they do (decision 0089).
    """

    epoch: int
    mode: Durability
    ackers: tuple[str, ...]
    since: str
    floor: str = ""
    """Everything acknowledged by ackers that neither `ackers` nor `former` names lies at or below this position: an
    archive that has not reached it may miss acknowledged writes, whoever is named here."""
    acks: Acks = Acks.ONE
    former: tuple[tuple[str, ...], ...] = ()
    """Groups of earlier records of this epoch that may still acknowledge, until it is proven that they act on this
    record or that their leases have ended; then `floor` is raised and they go."""
    serial: int = 0
    """Grows by one with every change. A replicator reports the serial that it acts on."""
    why: str = ""
    """Why these sites are named."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Return whose word a failover needs: of every group one member's, because each member has what it promised."""
        return (*groups_of(self.acks, self.ackers), *self.former)

    @property
    def is_degraded(self) -> bool:
        """Return whether a commit may have been answered OK that is on no other disk."""
        return self.mode is Durability.DEGRADED


class SeedPhase(StrEnum):
    """How far the seeding of a node is."""

    CONNECTING = "connecting"
    COPYING = "copying"
    PREPARING = "preparing"
    PROVING = "proving"
    """The copy is started once, by itself, and told its position."""
    STARTING = "starting"
    CATCHING_UP = "catching up"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Return whether nothing more happens by itself."""
        return self in (SeedPhase.DONE, SeedPhase.FAILED)

    @property
    def replaces(self) -> bool:
        """Return whether the node's data is being replaced: nobody may use its server."""
        return not self.over and self is not SeedPhase.CATCHING_UP


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedReport:
    """The seeding of a node that runs, or the last one that ended."""

    id: str
    donor: str
    phase: SeedPhase
    began: str
    bytes: int = 0
    bytes_total: int | None = None
    """About what will come; the donor goes on growing."""
    bytes_per_second: float | None = None
    position: str | None = None
    """Where the copy stands in the history, once that is known."""
    kept: str | None = None
    """Where the old data directory was put."""
    why: str = ""

    @property
    def percent(self) -> float | None:
        """Return how much of the data has come; None while nobody knows how much there is."""
        if self.phase is SeedPhase.COPYING:
            return min(99.9, 100 * self.bytes / self.bytes_total) if self.bytes_total else None
        return 0.0 if self.phase is SeedPhase.CONNECTING else 100.0


class RescueState(StrEnum):
    """How far the rescue is of what only one node has."""

    RUNNING = "running"
    COMPLETE = "complete"
    """Every transaction is on disk, read back and counted."""
    INCOMPLETE = "incomplete"
    """What can be read is on disk; a person must look at the rest, for which the node's data is needed."""
    FAILED = "failed"
    """Nothing is on disk. It is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RescueReport:
    """The rescue of what a node has and the cluster has not: the one that runs, or the newest."""

    id: str
    state: RescueState
    position: str
    """Everything the node had. While that is what it has, the rescue is about it."""
    transactions: int = 0
    rows: int = 0
    replayed: int = 0
    """Rows that are in the cluster by now, or were judged."""
    path: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartReport:
    """The start of a crashed server by its watchdog: the one that runs, or the last."""

    id: str
    runs: bool
    why: str = ""
    """Why the server is not up; empty when it is, or while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A primary that was cut off let commits go without anybody's word (decision 0090). Written before the first of them."""

    epoch: int
    serial: int
    """The newest durability record that it knew then: one that says degraded and is newer covers it."""
    since: str
    position: str
    """Where it stood."""

    @property
    def text(self) -> str:
        """Return it as a person reads it."""
        return f"it was cut off and has answered its clients alone since {self.since}, from {self.position or 'the beginning'} on"

    def is_covered(self, record: DurabilityRecord | None) -> bool:
        """Return whether a durability record says by now that commits may be on no other disk."""
        return record is not None and record.epoch == self.epoch and record.is_degraded and record.serial > self.serial


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a watchdog saw of its database, and what it does about it."""

    node: str
    site: str
    server_id: int
    role: Role
    database: Database
    epoch: int
    """The newest epoch this watchdog has seen; commands of an older one are refused."""
    sealed_epoch: int
    """Nothing of this epoch or older is ever opened again by this watchdog."""
    read_only: bool | None
    position: str | None
    """`gtid_binlog_pos`: everything this server has."""
    lag_ms: float | None
    """Age of the newest heartbeat row, for a standby."""
    lease_epoch: int | None
    """The epoch whose lease this watchdog holds, if any."""
    resumable: bool
    """Fenced only because the lease ran out: it will open again by itself if nothing else happened."""
    generation: str
    """Changes with every start of the server process."""
    server_version: str | None
    replicating: bool | None
    """Both replication threads run."""
    why: str
    url: str
    position_age_ms: float | None = None
    """How long ago `position` was read; it may have grown since."""
    lag_age_ms: float | None = None
    """How long ago `lag_ms` was read; None: not known."""
    seeding: SeedReport | None = None
    order: Obedience | None = None
    """What of its order it obeys; None: it is too old to know of orders."""
    unmet: tuple[str, ...] = ()
    """What commits of an open primary rely on, and somebody has switched off; the watchdog puts it back."""
    rescue: RescueReport | None = None
    """What it had and the cluster had not, if it ever did."""
    serial: int | None = None
    """The durability record that it knows, and would name if it asked for grants."""
    granted_by: tuple[str, ...] = ()
    """Sites by whose grants it writes, because ZooKeeper is gone."""
    waits_by: int | None = None
    """The durability record by which the commits of an open primary certainly wait; None: perhaps they do not."""
    stuck: str = ""
    """What its applier meets in the data at the same place again and again: no waiting mends it."""
    crashed: bool = False
    """The server is down, and its binlog says that it did not end in order."""
    restart: RestartReport | None = None
    health: Health | None = None
    """None: not known yet, or the watchdog is too old to judge it."""
    disk_free_bytes: int | None = None
    """Where the data lies; the least of several file systems."""
    revision: int | None = None
    """The revision of the epoch's record that a primary acts on."""
    holds: bool = False
    """It serves with neither lease nor grants."""
    alone: Alone | None = None
    """It answered commits alone, and knows of no durability record that says so."""
    vouches: int | None = None
    """The epoch of which it certainly knows that no commit was answered alone without a record of that; None: of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MassChange:
    """A change of so many rows that a person must hear of it, as a replicator sees it in the stream."""

    table: str
    """`database.table`."""
    kind: str
    """`insert`, `update`, `delete`; `drop`, `truncate`, `rename`, `exchange`, `drop_column`, `rewrite`; `statement`,
    `temporary_table`, `load_data`; `unread`. What each means: docs/operating.md and decision 0065."""
    rows: int | None
    """None: not counted."""
    estimated: bool
    first: str
    """The GTID of its first transaction."""
    before: str
    """The position before that: to stop a standby, or to restore, there is to be without it."""
    since: str
    """When that was, as the primary's clock said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """Something that does not happen by itself for a while, by a person's word: a pause, or a node's maintenance."""

    why: str
    since: str
    who: str = ""
    until: str | None = None
    """For people only; what counts is `left_seconds`."""
    left_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Counted down by the leading controller on its own clock; None: until it is taken back."""

    @property
    def text(self) -> str:
        """Return why, by whom and until when, as a person says it."""
        by = f" by {self.who}" if self.who else ""
        return f"since {self.since}{by}, until {self.until or 'it is taken back'}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile:
    """A closed file of an archive that is not what was written."""

    file: str
    """As `epoch-server/file`."""
    why: str
    state: str
    """What is done about it."""
    nobody: bool
    """Everybody who could have it was asked and has not: a person must act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatorReport:
    """What a replicator has, and what it may do."""

    site: str
    epoch: int
    """The epoch being pulled, 0 before the first."""
    sealed_epoch: int
    connected: bool
    """The stream from the source is alive: an event or a heartbeat came within the read deadline."""
    acknowledging: bool
    received: str | None
    durable: str | None
    acknowledged: str | None
    orphans: int
    """Tails set aside because no primary ever had them."""
    server_version: str | None
    why: str
    host: str
    port: int
    url: str
    mass_changes: tuple[MassChange, ...] = ()
    """The alarms that stand."""
    serial: int | None = None
    """The durability record this replicator acts on: it judges no acknowledgement by an older one any more."""
    whole: bool = True
    """Nothing of the epochs before is missing here, or nobody has it any more."""
    waits_for: tuple[str, ...] = ()
    """Named sites whose word is missing at this moment: without it nothing is acknowledged here (`acks` is all)."""
    hears: tuple[str, ...] = ()
    """Sites whose word comes in at this moment (`acks` is all)."""
    damaged: tuple[DamagedFile, ...] = ()
    """What is damaged in the archive, the first few, until it is mended."""
    damaged_files: int = 0
    granted: bool = False
    """A grant of ours may still be relied on: a seal is answered only after its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessRecord:
    """How far the archive of a site certainly once was; it outlives the replicator, and the archive."""

    site: str
    epoch: int
    durable: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What one acker tells the others: what of `epoch` is durable there. Unknown, or not to be relied on, is None."""

    site: str
    epoch: int
    durable: str | None
    sealed_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An instant on the clock of one run of a replicator; whoever repeats it spoke later than that."""

    run: str
    at: int
    """Nanoseconds since the boot of its machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """A primary that sees no ZooKeeper asks a replicator to confirm it."""

    epoch: int
    serial: int
    """The durability record that it knows."""
    mark: Mark | None = None
    """The newest that it got of this replicator."""
    left_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How much is left, at the moment of asking, of the grants by which it writes; 0: it has not got all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A replicator's word: it sees no ZooKeeper, has not sealed the epoch, and will tell nobody that it has for a while."""

    site: str
    epoch: int
    serial: int
    mark: Mark


def groups_of(acks: Acks, ackers: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the groups that `ackers` are: all of them together have everything under ALL, each only its own under ONE."""
    if acks is Acks.ALL:
        return (ackers,) if ackers else ()
    return tuple((site,) for site in ackers)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def encode(record: object) -> bytes:
    """Return the record as JSON bytes. Raises BadInput if ZooKeeper would refuse it."""
    data = json.dumps(asdict(record), separators=(",", ":")).encode()  # type: ignore[call-overload]  # every record is a dataclass
    if len(data) > RECORD_BYTES_MAX:
        raise BadInput(f"{type(record).__name__} of {len(data)} bytes is over {RECORD_BYTES_MAX}")
    return data


def decode(kind: type[Record], data: bytes | str | object, *, where: str) -> Record:
    """Return a record of `kind` from JSON text or an already parsed object. Raises BadInput naming each field."""
    adapter: TypeAdapter[Record] = _adapter(kind)  # type: ignore[arg-type]  # a class is hashable
    try:
        if isinstance(data, bytes | str):
            return adapter.validate_json(data)
        return adapter.validate_python(data)
    except ValidationError as error:
        raise BadInput(f"{where} is not a {kind.__name__}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """Return a pydantic error as one line: field, what is wrong, the value."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'the whole'}: {item['msg']} (it is {shorten(item['input'])})"
        for item in error.errors(include_url=False)
    )


def shorten(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
