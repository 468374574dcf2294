"""What an attack proved. Pure: what clinics and controllers saw in, verdicts out; beside those of `chaos/history.py`.

One process sends all and sees all answers, by one clock. An event happened somewhere between the sending and the answer,
so one thing was certainly before another only if its answer came before the other was sent. Nothing else is judged.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from chaos.history import Finding, Outcome, Verdict, Write, named, writers_per_epoch

UNPLACED_SHARE_MAX = 0.01
"""So many writes may not know their epoch: a connection that broke before its new primary had written the number down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """One value added to a list; no value is added twice."""

    register: str
    value: int
    invoked_at: int
    answered_at: int | None
    """None unless acknowledged."""
    outcome: Outcome

    @property
    def acknowledged(self) -> bool:
        return self.outcome is Outcome.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Everything that one list held, as a clinic read it."""

    clinic: str
    register: str
    invoked_at: int
    answered_at: int
    values: Set[int]
    server_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What all accounts held together, in one read."""

    clinic: str
    invoked_at: int
    amount: int
    server_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How a round ended. None: not within its deadline."""

    what: str
    writing_ms: float | None
    """From the last heal until every clinic had written again."""
    whole_ms: float | None
    """From the last heal until every part did its work again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A finished plan, as `GET /v1/history` tells it."""

    epoch: int
    kind: str
    new: str | None
    proof: str | None
    outcome: str

    @property
    def rolled_back(self) -> bool:
        """It gave up: the old primary goes on, in the epoch before or in this one."""
        return self.outcome.startswith("rolled back")


def one_epoch_at_a_time(history: Sequence[Write]) -> Finding:
    """Judge that no server acknowledged what was sent after a newer epoch of another had already acknowledged something.

    A clinic's HAProxy that stood still may hand over an old answer late: so the sending is judged, not the answer.
    """
    writers = writers_per_epoch(history)
    two = [f"epoch {epoch}: servers {ids}" for epoch, ids in writers.items() if epoch is not None and len(ids) > 1]
    if two:
        return Finding(verdict=Verdict.BROKEN, why=f"two writers in one epoch: {named(two)}")
    placed = [write for write in history if write.acknowledged_at is not None and write.epoch is not None]
    begun: dict[int, tuple[int, int | None]] = {}
    for write in placed:
        epoch, at = write.epoch or 0, write.acknowledged_at or 0
        if epoch not in begun or at < begun[epoch][0]:
            begun[epoch] = (at, write.server_id)
    late = [write for write in placed if _is_late(write, begun)]
    if late:
        names = named([f"{write.token} (epoch {write.epoch}, server {write.server_id})" for write in late])
        return Finding(verdict=Verdict.BROKEN, why=f"{len(late)} acknowledged in an older epoch, sent after a newer one's first: {names}")  # fmt: skip
    if not placed:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="no acknowledged write names its epoch")
    acknowledged = [write for write in history if write.acknowledged]
    unplaced = sum(1 for write in acknowledged if write.epoch is None or write.server_id is None)
    told = f", {unplaced} of {len(acknowledged)} acknowledged writes name no epoch or no server" if unplaced else ""
    if unplaced > UNPLACED_SHARE_MAX * len(acknowledged):
        return Finding(verdict=Verdict.PROVED_NOTHING, why=told.removeprefix(", "))
    return Finding(verdict=Verdict.KEPT, why=f"{len(begun)} epochs, one after the other{told}")


def _is_late(write: Write, begun: Mapping[int, tuple[int, int | None]]) -> bool:
    """The same server may go on under the older number: a switchover that was rolled back opens it again."""
    return any(
        epoch > (write.epoch or 0) and write.invoked_at > first and server_id != write.server_id
        for epoch, (first, server_id) in begun.items()
    )


def no_append_lost(appends: Sequence[Append], final: Mapping[str, Set[int]]) -> Finding:
    """Judge that every acknowledged value is in its list at the end."""
    promised = [one for one in appends if one.acknowledged]
    if not promised:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="no append was acknowledged")
    missing = [f"{one.value} of {one.register}" for one in promised if one.value not in final.get(one.register, ())]
    if missing:
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(missing)} of {len(promised)} acknowledged appends lost: {named(missing)}"
        )
    return Finding(verdict=Verdict.KEPT, why=f"all {len(promised)} acknowledged appends are there")


def acknowledged_is_visible(appends: Sequence[Append], reads: Sequence[Read]) -> Finding:
    """Judge that every read holds what had been acknowledged, to anybody, before it was sent."""
    known: dict[str, list[tuple[int, int]]] = {}
    for append in appends:
        if append.answered_at is not None:
            known.setdefault(append.register, []).append((append.answered_at, append.value))
    looked, stale = 0, []
    for read in reads:
        due = {value for at, value in known.get(read.register, ()) if at < read.invoked_at}
        looked += bool(due)
        missing = sorted(due - read.values)
        if missing:
            stale.append(f"{read.clinic} at server {read.server_id} did not see {missing[0]} of {read.register}")
    if stale:
        return Finding(verdict=Verdict.BROKEN, why=f"{len(stale)} of {len(reads)} reads are stale: {named(stale)}")
    if not looked:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="no list was read after something was acknowledged in it")
    return Finding(verdict=Verdict.KEPT, why=f"{looked} reads saw all that had been acknowledged")


def what_was_read_stays(reads: Sequence[Read], final: Mapping[str, Set[int]]) -> Finding:
    """Judge that nothing that a clinic was shown has gone: also what was never acknowledged may not be un-said."""
    shown = {(read.register, value) for read in reads for value in read.values}
    if not shown:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="no read saw a value")
    gone = [f"{value} of {name}" for name, value in sorted(shown) if value not in final.get(name, ())]
    if gone:
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(gone)} values were shown to a clinic and are gone: {named(gone)}"
        )
    return Finding(verdict=Verdict.KEPT, why=f"all {len(shown)} values that were read are there")


def totals_constant(totals: Sequence[Total], wanted: int, *, transfers: int) -> Finding:
    """Judge that money was moved and none was made or lost, in any read. `transfers` is how many were acknowledged."""
    wrong = [f"{one.amount} at {one.clinic}, server {one.server_id}" for one in totals if one.amount != wanted]
    if wrong:
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(wrong)} of {len(totals)} totals are not {wanted}: {named(wrong)}"
        )
    if not totals or not transfers:
        return Finding(verdict=Verdict.PROVED_NOTHING, why=f"{transfers} transfers, {len(totals)} totals read")
    return Finding(verdict=Verdict.KEPT, why=f"{wanted} in each of {len(totals)} totals, through {transfers} transfers")


def history_tells(history: Sequence[Write], records: Sequence[Record], nodes: Mapping[int, str]) -> Finding:
    """Judge that the controllers' history names every epoch that clinics wrote in: who was opened, and by which proof.

    `nodes` is server id -> node. The first epoch was named when the cluster began; no plan opened it.
    """
    writers = {epoch: ids for epoch, ids in writers_per_epoch(history).items() if epoch is not None and epoch > 1}
    if not writers:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="nobody wrote in a second epoch")
    wrong = []
    for epoch, ids in writers.items():
        wrote = [nodes.get(one, f"server {one}") for one in ids]
        wrong += _untold([record for record in records if record.epoch == epoch], epoch, wrote)
    if wrong:
        return Finding(verdict=Verdict.BROKEN, why=named(wrong))
    return Finding(verdict=Verdict.KEPT, why=f"each of {len(writers)} epochs after the first has its record")


def _untold(records: Sequence[Record], epoch: int, wrote: Sequence[str]) -> list[str]:
    """Return what is wrong with the records of one epoch; what was rolled back may have had its number before."""
    opened = [record for record in records if not record.rolled_back]
    if len(opened) > 1:
        return [f"epoch {epoch} has two records"]
    if [record.new for record in opened] == wrote:
        return [] if opened[0].proof else [f"epoch {epoch} was opened without a proof"]
    if not opened and wrote in [[record.new] for record in records]:
        return []
    told = named([str(record.new) for record in records]) or "nobody"
    return [f"epoch {epoch}: the records name {told}, {named(wrote)} wrote"]


def recovers_by_itself(rounds: Sequence[Recovery], *, writing_ms_max: float, whole_ms_max: float) -> Finding:
    """Judge that after every round clinics wrote and the cluster was whole in bounded time, without a person."""
    if not rounds:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="there was no fault to recover from")
    late = [
        f"{one.what}: {what} after {'never' if ms is None else f'{ms:.0f} ms'}"
        for one in rounds
        for what, ms, most in (("writing", one.writing_ms, writing_ms_max), ("whole", one.whole_ms, whole_ms_max))
        if ms is None or ms > most
    ]
    if late:
        return Finding(verdict=Verdict.BROKEN, why=f"{len(late)} not in time: {named(late)}")
    slowest = max(one.whole_ms or 0.0 for one in rounds)
    return Finding(
        verdict=Verdict.KEPT, why=f"after each of {len(rounds)} rounds, the slowest whole after {slowest:.0f} ms"
    )
