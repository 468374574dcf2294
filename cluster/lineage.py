"""Whether a server's position belongs to the cluster's history. Pure.

Every epoch owns a range of sequence numbers: those after the position it began at, up to where the next one began. A
transaction `domain-server-sequence` belongs to the history only if its server was the primary of the epoch that owns
its number. `gtid_strict_mode` makes the last transaction of a domain speak for all before it.
"""

from collections.abc import Sequence
from enum import StrEnum

from cluster.position import Gtid, Position
from cluster.records import LineageEntry


class History(StrEnum):
    """What a position is to the cluster's history."""

    EQUAL_OR_BEHIND = "equal_or_behind"
    """All of it is in the history: the server may follow."""
    AHEAD = "ahead"
    """It continues the history beyond its head."""
    DIVERGED = "diverged"
    """It has a transaction that the history has not and never will have."""


def judge_history(position: Position, lineage: Sequence[LineageEntry], head: Position | None) -> History:
    """Return what `position` is to the history. `head` is where the newest epoch is now, None when not known."""
    verdicts = {_judge(gtid, lineage, head) for gtid in position.last.values()}
    for worst in (History.DIVERGED, History.AHEAD):
        if worst in verdicts:
            return worst
    return History.EQUAL_OR_BEHIND


def is_foreign(gtid: Gtid, lineage: Sequence[LineageEntry]) -> bool:
    """Return whether a transaction is one that the history has not and never will have."""
    owner = _owner(gtid, lineage)
    return owner is not None and owner != gtid.server


def _judge(gtid: Gtid, lineage: Sequence[LineageEntry], head: Position | None) -> History:
    if is_foreign(gtid, lineage):
        return History.DIVERGED
    if head is not None and gtid.sequence > head.sequence(gtid.domain):
        return History.AHEAD
    return History.EQUAL_OR_BEHIND


def _owner(gtid: Gtid, lineage: Sequence[LineageEntry]) -> int | None:
    """Return the server that committed this number in our history, None when it is older than what we know."""
    for entry in reversed(lineage):
        start = Position.parse(entry.position).last.get(gtid.domain)
        if start is None or start.sequence < gtid.sequence:
            return entry.server_id
        if start.sequence == gtid.sequence:
            return start.server
    return None
