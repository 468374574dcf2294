"""Whether a server's history is a beginning of the cluster's: pure, by the lineage that the epoch record carries.

Sequence numbers alone do not tell: an old primary that wrote 0-1-101 after the cluster went on with 0-2-101 is not
behind, it has another history. A transaction of sequence n belongs to the last epoch that starts before n, and only
that epoch's primary can have written it.
"""

from collections.abc import Sequence
from enum import Enum

from cluster.position import Gtid, Position
from cluster.records import LineageEntry


class History(Enum):
    """How a server's position stands to the cluster's history."""

    EQUAL_OR_BEHIND = "equal or behind"
    AHEAD = "ahead"
    DIVERGED = "diverged"


def judge_history(position: Position, lineage: Sequence[LineageEntry], head: Position | None) -> History:
    """Return how `position` stands to `lineage`, whose newest epoch has reached `head` (None: not known)."""
    if any(not _belongs(gtid, lineage) for gtid in position.last.values()):
        return History.DIVERGED
    if head is not None and not head.covers(position):
        return History.AHEAD
    return History.EQUAL_OR_BEHIND


def _belongs(gtid: Gtid, lineage: Sequence[LineageEntry]) -> bool:
    """What lies before the oldest epoch we remember cannot be judged by it, and is not held against the server."""
    for entry in reversed(lineage):
        if Position.parse(entry.position).sequence(gtid.domain) < gtid.sequence:
            return entry.server_id == gtid.server
    return True
