"""What a run proved. Pure: writes in, verdicts out.

Three verdicts: KEPT, BROKEN, and PROVED_NOTHING, because a run in which nothing happened is not a pass. A write whose
answer never came is UNKNOWN: it may be there or not, both are right.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

NANOS_PER_MS = 1_000_000
NAMED_MAX = 5
"""How many writes or tables a sentence names before it says how many more there are."""


class Outcome(StrEnum):
    """OK: the database said so. FAILED: it refused, certainly nothing was done. UNKNOWN: no answer came."""

    OK = "OK"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


class Verdict(StrEnum):
    KEPT = "kept"
    BROKEN = "broken"
    PROVED_NOTHING = "proved nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One statement of a clinic: when it was sent, when it was acknowledged, by whom, in which epoch."""

    clinic: str
    sequence: int
    """The clinic's own count, from 1."""
    token: str
    kind: str
    table: str
    invoked_at: int
    """Nanoseconds of `cluster.clock`."""
    acknowledged_at: int | None
    """None unless the outcome is OK."""
    outcome: Outcome
    server_id: int | None = None
    epoch: int | None = None
    changes: str | None = None
    """The token of the row that this write changed; None for a write that made a row."""
    error: str = ""

    @property
    def acknowledged(self) -> bool:
        return self.outcome is Outcome.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a database holds at the end: how often each token, and the last change of each row that has been changed."""

    tokens: Mapping[str, int]
    touched: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A verdict, and the sentence that says why."""

    verdict: Verdict
    why: str

    @property
    def kept(self) -> bool:
        return self.verdict is Verdict.KEPT


def lost(history: Iterable[Write], found: Found) -> tuple[Write, ...]:
    """Return the acknowledged writes that are not in `found`. A row changed again later keeps only its last change."""
    return tuple(write for write in history if write.acknowledged and not _is_there(write, found))


def no_acknowledged_write_lost(
    history: Sequence[Write], found: Found, *, tables: Collection[str] | None = None
) -> Finding:
    """Judge that every acknowledged write is there; only the writes to `tables`, when given."""
    promised = [write for write in history if write.acknowledged and (tables is None or write.table in tables)]
    if not promised:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="nothing was acknowledged")
    missing = lost(promised, found)
    if missing:
        names = named([f"{write.token} ({write.table})" for write in missing])
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(missing)} of {len(promised)} acknowledged writes lost: {names}"
        )
    return Finding(verdict=Verdict.KEPT, why=f"all {len(promised)} acknowledged writes are there")


def nothing_applied_twice(history: Sequence[Write], found: Found) -> Finding:
    """Judge that no write made its row more than once; a table without a primary key would take it."""
    ours = {write.token for write in history if write.changes is None}
    there = ours & found.tokens.keys()
    if not there:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="no row of this run is there")
    twice = sorted(token for token in there if found.tokens[token] > 1)
    if twice:
        return Finding(verdict=Verdict.BROKEN, why=f"{len(twice)} writes are there more than once: {named(twice)}")
    return Finding(verdict=Verdict.KEPT, why=f"each of {len(there)} rows is there once")


def writers_per_epoch(history: Iterable[Write]) -> dict[int | None, tuple[int, ...]]:
    """Return the servers that acknowledged in each epoch; None collects those whose epoch is not known."""
    servers: dict[int | None, set[int]] = {}
    for write in history:
        if write.acknowledged and write.server_id is not None:
            servers.setdefault(write.epoch, set()).add(write.server_id)
    return {
        epoch: tuple(sorted(servers[epoch])) for epoch in sorted(servers, key=lambda epoch: (epoch is None, epoch or 0))
    }


def one_writer_per_epoch(history: Sequence[Write]) -> Finding:
    """Judge that one server alone acknowledged in each epoch, and none of an older epoch after a newer one."""
    writers = writers_per_epoch(history)
    two = [
        f"epoch {epoch}: servers {_listed(ids)}" for epoch, ids in writers.items() if epoch is not None and len(ids) > 1
    ]
    if two:
        return Finding(verdict=Verdict.BROKEN, why=f"two writers in one epoch: {'; '.join(two)}")
    late = late_acknowledgements(history)
    if late:
        names = named([f"{write.token} (epoch {write.epoch}, server {write.server_id})" for write in late])
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(late)} acknowledged by an older epoch after a newer one: {names}"
        )
    unplaced = sum(1 for write in history if write.acknowledged and (write.epoch is None or write.server_id is None))
    if unplaced or not writers:
        return Finding(verdict=Verdict.PROVED_NOTHING, why=f"{unplaced} acknowledged writes name no epoch or no server")
    told = named([f"epoch {epoch}: server {_listed(ids)}" for epoch, ids in writers.items()])
    return Finding(verdict=Verdict.KEPT, why=told)


def late_acknowledgements(history: Iterable[Write]) -> tuple[Write, ...]:
    """Return writes acknowledged in an epoch after another server had acknowledged the first of a newer one.

    The same server may go on: a switchover that was rolled back opens it again, and who kept a connection from before
    still calls it by the older epoch.
    """
    newest, writer = 0, None
    late: list[Write] = []
    for write in in_order(history):
        if write.epoch is None:
            continue
        if write.epoch < newest and write.server_id != writer:
            late.append(write)
        elif write.epoch > newest:
            newest, writer = write.epoch, write.server_id
    return tuple(late)


def acknowledged_by(history: Iterable[Write], server_id: int, *, after: int) -> tuple[Write, ...]:
    """Return what `server_id` acknowledged after the instant `after`."""
    return tuple(write for write in in_order(history) if write.server_id == server_id and _when(write) > after)


def outage_ms(history: Iterable[Write], clinic: str, *, start: int, end: int) -> float | None:
    """Return the longest gap between two acknowledgements of a clinic that overlaps `start`..`end`.

    None when there is no acknowledgement before `start` or none after it: then the length is not known, not 0.
    """
    times = [_when(write) for write in in_order(history) if write.clinic == clinic]
    gaps = [later - earlier for earlier, later in pairwise(times) if later >= start and earlier <= end]
    if not gaps or times[0] > start:
        return None
    return max(gaps) / NANOS_PER_MS


def writes_again(history: Iterable[Write], clinics: Iterable[str], *, after: int) -> Finding:
    """Judge that every clinic had a write acknowledged after the instant `after`."""
    wanted = sorted(set(clinics))
    if not wanted:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="there are no clinics")
    writing = {write.clinic for write in history if _when(write) > after}
    silent = [clinic for clinic in wanted if clinic not in writing]
    if silent:
        return Finding(verdict=Verdict.BROKEN, why=f"no acknowledged write again at {named(silent)}")
    return Finding(verdict=Verdict.KEPT, why=f"{named(wanted)} write")


def equal_checksums(checksums: Mapping[str, Mapping[str, int | None]]) -> Finding:
    """Judge node -> table -> checksum: every table on every node, with one and the same known checksum."""
    if len(checksums) < 2:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="fewer than two databases were compared")
    tables = sorted(set().union(*checksums.values()))
    if not tables:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="there was no table to compare")
    different = differing(checksums)
    if different:
        return Finding(
            verdict=Verdict.BROKEN, why=f"{len(different)} of {len(tables)} tables differ: {named(different)}"
        )
    return Finding(verdict=Verdict.KEPT, why=f"{len(tables)} tables are equal on {named(sorted(checksums))}")


def differing(checksums: Mapping[str, Mapping[str, int | None]]) -> tuple[str, ...]:
    """Return the tables that are not the same everywhere. A missing table or an unknown checksum is a difference."""
    tables = sorted(set().union(*checksums.values())) if checksums else []
    return tuple(table for table in tables if not _same(table, checksums))


def all_kept(findings: Iterable[Finding]) -> bool:
    """Return whether there is something to judge and all of it is kept: to prove nothing is not to pass."""
    verdicts = [finding.verdict for finding in findings]
    return bool(verdicts) and all(verdict is Verdict.KEPT for verdict in verdicts)


def in_order(history: Iterable[Write]) -> list[Write]:
    """Return the acknowledged writes in the order in which they were acknowledged."""
    return sorted((write for write in history if write.acknowledged_at is not None), key=_when)


def outcomes(history: Iterable[Write]) -> Counter[Outcome]:
    """Return how many writes ended how."""
    return Counter(write.outcome for write in history)


def named(names: Sequence[str]) -> str:
    """Return a few names, and how many more there are."""
    text = ", ".join(names[:NAMED_MAX])
    return text if len(names) <= NAMED_MAX else f"{text} and {len(names) - NAMED_MAX} more"


def _is_there(write: Write, found: Found) -> bool:
    if write.changes is None:
        return found.tokens.get(write.token, 0) > 0
    return found.touched.get(write.changes, 0) >= write.sequence


def _when(write: Write) -> int:
    return -1 if write.acknowledged_at is None else write.acknowledged_at


def _same(table: str, checksums: Mapping[str, Mapping[str, int | None]]) -> bool:
    values = {tables.get(table) for tables in checksums.values()}
    return len(values) == 1 and None not in values


def _listed(ids: Iterable[int]) -> str:
    return " and ".join(str(one) for one in ids)
