"""One state of the model: a small cluster as frozen values.

A transaction is a number, `epoch * 10 + server id` of the server that wrote it, so that two servers never write the
same one; a log is what a binlog or an archive holds, in order.
"""

from dataclasses import dataclass, replace
from enum import Enum

from cluster.position import Position
from cluster.records import DurabilityRecord, EpochRecord, Isolation, LineageEntry, Role
from controller.model import PlanRecord
from controller.plan import Step
from healthcheck.judge import Memory
from replicator.permission import Confirmed

Log = tuple[int, ...]
NOTHING_REMEMBERED = Memory()
SITES = ("clinic", "toronto", "montreal")
NODES = tuple(f"db-{site}" for site in SITES)


class Lease(Enum):
    """A ZooKeeper session, as its holder and everybody else see it. Clocks differ by less than the margin."""

    HELD = "held"
    CUT = "cut off, still valid to its holder"
    LAPSED = "ended for its holder, the record is still there"
    LATE = "the record is gone, and the holder's slow clock still calls the lease valid"
    ENDED = "the record has been gone for the margin"

    @property
    def valid(self) -> bool:
        """Return whether the holder calls it valid."""
        return self in (Lease.HELD, Lease.CUT, Lease.LATE)

    @property
    def recorded(self) -> bool:
        """Return whether the holder's ephemeral record is there."""
        return self in (Lease.HELD, Lease.CUT, Lease.LAPSED)


@dataclass(frozen=True, slots=True)
class Node:
    """A database server and its watchdog."""

    log: Log = ()
    role: Role = Role.STANDBY
    up: bool = True
    open: bool = False
    """The database takes writes, whatever its watchdog thinks."""
    generation: int = 1
    watched: bool = True
    """The watchdog lives."""
    lease: Lease = Lease.HELD
    memory: Memory = NOTHING_REMEMBERED
    epoch: int = 1
    """The newest epoch whose record the watchdog has read."""
    commanded: int = 1
    """The newest epoch it has heard of at all."""
    counted: bool = True
    """No record of its lease was missing since it last looked for a plan of a later epoch."""
    durability: DurabilityRecord | None = None
    """Who acknowledges, as far as an open primary has read it."""
    waits: bool = True
    """Its commits wait for an acknowledgement."""
    grants: frozenset[str] = frozenset()
    """Sites whose grants it relies on."""
    isolation: Isolation = Isolation.PROMOTE
    revision: int = 0
    """What the epoch's record said of isolation when the watchdog read it, and which revision that was."""
    alone_told: bool = False
    """Its report says already that it answered alone: one that is cut off tells what was before."""

    @property
    def alone(self) -> bool:
        """Return whether it lets commits go without a record of that, and has remembered it."""
        return self.memory.alone is not None and self.memory.alone.epoch == self.memory.opened_epoch

    @property
    def resumable(self) -> bool:
        """Return what healthcheck/watchdog.py calls so."""
        remembered = self.memory.opened_epoch is not None and self.memory.generation == str(self.generation)
        return self.role is Role.FENCED and remembered and self.up


@dataclass(frozen=True, slots=True)
class Replicator:
    """A replicator: its archive and its seal are on disk, what it has read of ZooKeeper is not."""

    log: Log = ()
    sealed: int = 0
    up: bool = True
    lease: Lease = Lease.HELD
    epoch: int = 1
    """The newest epoch whose record it has read; 0 before the first."""
    durability: DurabilityRecord | None = None
    counted: bool = True
    """It has read who acknowledges, and looked for a plan of a later epoch, since its record was made."""
    promised: bool = False
    """Somebody may rely on a grant of it."""
    confirmed: Confirmed | None = None
    """What a primary with all grants permits it to acknowledge without a lease."""


@dataclass(frozen=True, slots=True)
class Request:
    """A step that was sent and neither done nor lost yet. `leader` and `plan` are what its transaction will check."""

    leader: int
    step: Step
    plan: PlanRecord
    record: PlanRecord
    """The plan as it stands in ZooKeeper, of which the leader may be ahead."""
    after: PlanRecord | None = None


@dataclass(frozen=True, slots=True)
class World:
    """Everything. `broken` is the promise that the last action broke."""

    nodes: tuple[Node, ...]
    replicators: tuple[Replicator, ...]
    epochs: tuple[EpochRecord, ...]
    durability: DurabilityRecord
    plan: PlanRecord | None = None
    """As its leader knows it."""
    written: PlanRecord | None = None
    """As it stands in ZooKeeper, when the leader is ahead of that; None: it is not."""
    leader: int = 1
    """How many controllers have led."""
    requests: tuple[Request, ...] = ()
    acked: Log = ()
    """The longest log of which a replicator has acknowledged the end: its clients may have been told."""
    told: Log = ()
    """The longest log whose end a client was told of though nobody had acknowledged it; a return to sync promises it."""
    holds: bool = False
    """The settings say that a primary holds while it is cut off."""
    available: bool = False
    """Commits do not wait for ever: that is recorded, and they wait no more."""
    writes: int = 0
    """Commits that clients may still begin."""
    faults: int = 0
    """Faults that may still happen."""
    switchovers: int = 0
    failovers: int = 0
    """What an operator may still ask for."""
    losses: int = 0
    """How often an operator may still accept whatever a failover loses."""
    outages: int = 0
    """How often ZooKeeper may still be gone for everybody."""
    gone: bool = False
    """It is."""
    thorough: bool = False
    """A watchdog that closes late, and what a primary has read of the ackers, are explored as well: a third more states."""
    broken: str = ""

    def reaches(self, holder: Node | Replicator) -> bool:
        """Return whether somebody's calls to ZooKeeper are answered."""
        return holder.lease is Lease.HELD and not self.gone

    @property
    def may_hold(self) -> bool:
        """Return whether anybody here may ever hold."""
        return self.holds or self.newest.may_hold

    @property
    def record(self) -> PlanRecord | None:
        """Return the plan as it stands in ZooKeeper: all that a successor knows."""
        return self.written or self.plan

    def succeeded(self) -> "World":
        """Return the world with another leader."""
        return replace(self, leader=self.leader + 1, plan=self.record, written=None)

    @property
    def newest(self) -> EpochRecord:
        """Return the record of the epoch."""
        return self.epochs[-1]


def position(log: Log) -> str:
    """Return the GTID position of a log."""
    return f"0-{log[-1] % 10}-{len(log)}" if log else ""


def length(text: str) -> int:
    """Return how many transactions lie before a position."""
    return Position.parse(text).sequence(0)


def is_prefix(short: Log, long: Log) -> bool:
    """Return whether `long` begins with `short`."""
    return long[: len(short)] == short


def lineage_entry(epoch: int, server_id: int, begins: str) -> LineageEntry:
    """Return an entry; the file's name plays no part here."""
    return LineageEntry(epoch=epoch, server_id=server_id, file="binlog.000001", position=begins)
