"""The steps of a plan, as data. One interpreter (`controller/world.py`) executes them; each is safe to repeat."""

from dataclasses import dataclass
from typing import ClassVar

from cluster.records import DurabilityRecord, EpochRecord
from controller.accepted import Loss
from controller.model import Proof, RejoinEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    """Name the candidate and what it must have applied. Changes nothing but the plan."""

    node: str
    epoch: int
    target: str | None
    reasons: tuple[str, ...]
    loss: Loss | None = None
    """What naming it un-says; a switchover's is known only once its primary is fenced: None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptLeaseEnd:
    """Take the ended lease of a silent primary as the proof of fence. Changes nothing but the plan."""

    node: str
    epoch: int
    proof: ClassVar[Proof] = Proof.LEASE_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptWord:
    """Take an operator's word that a silent primary is off as the proof of fence. Changes nothing but the plan."""

    node: str
    epoch: int
    proof: ClassVar[Proof] = Proof.OPERATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Have the watchdog of `node` fence its database: nothing of `epoch` or older is ever opened again there."""

    node: str
    epoch: int
    polite: bool
    candidate: str | None = None
    """Who must first have applied what the primary had a moment ago: clinics wait only for what comes after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Have the replicators of `sites` acknowledge nothing more of `epoch`, once they reached `until` if given."""

    sites: tuple[str, ...]
    epoch: int
    until: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Have the replicator of `site` fetch up to `until` of `epoch` from the replicator of `source`."""

    site: str
    source: str
    epoch: int
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Have `node` replicate from its site's replicator until it has applied `until`."""

    node: str
    epoch: int
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Have `node` stop replicating and begin a binlog file; it stays read-only."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Name the new primary: one compare-and-set of epoch, durability and plan. The point of no return."""

    record: EpochRecord
    durability: DurabilityRecord
    previous: int
    """The epoch that must still be the newest, 0 for none."""

    @property
    def epoch(self) -> int:
        return self.record.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Have the watchdog of `node` take the lease of `epoch` and make its database writable."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repoint:
    """Tell every clinic's HAProxy at once that `node` is the primary."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Write through every clinic's HAProxy and see that `node` took it."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Move the plan to the history."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Have a fenced node that is not ahead replicate from its site's replicator."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NameAckers:
    """Record other acknowledging sites for the epoch that goes on; they begin only once this is written."""

    node: str
    """The primary."""
    durability: DurabilityRecord

    @property
    def epoch(self) -> int:
        return self.durability.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAckers:
    """Former ackers act on an older record no more: raise the floor to the primary's position, and let them go."""

    node: str
    """The primary: its position, read after that, bounds what the former ones acknowledged."""
    durability: DurabilityRecord
    """The record to write, but for its floor."""

    @property
    def epoch(self) -> int:
        return self.durability.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnToSync:
    """Commits wait again, and who is named has all that was written before: record that nothing is degraded any more."""

    node: str
    """The primary: its position, read while its commits wait, bounds what was answered OK without anybody."""
    durability: DurabilityRecord
    """The record to write, but for its floor."""

    @property
    def epoch(self) -> int:
        return self.durability.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class NameIsolation:
    """Record for the epoch that goes on what its primary does when it is cut off: it acts on the record alone."""

    node: str
    """The primary."""
    record: EpochRecord

    @property
    def epoch(self) -> int:
        return self.record.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Reseed:
    """Have the data of a node that cannot follow replaced by a copy of another node's; first write that it is done."""

    node: str
    epoch: int
    donor: str
    event: RejoinEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Have the crashed server of a node started: what nobody acknowledged is taken back by that, or kept to be rescued."""

    node: str
    epoch: int
    event: RejoinEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRejoin:
    """Write how something ended that was done by itself to a node that came back. Changes nothing else."""

    node: str
    epoch: int
    event: RejoinEvent


Step = (
    Choose
    | AcceptLeaseEnd
    | AcceptWord
    | Fence
    | Seal
    | Level
    | Apply
    | Promote
    | Open
    | Admit
    | Repoint
    | Verify
    | Record
)
Repair = Follow | NameAckers | SettleAckers | ReturnToSync | NameIsolation | Reseed | Restart | NoteRejoin


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The plan cannot go on now; look again later. The reason is shown to people."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The candidate or the whole plan has failed before the point of no return."""

    why: str
