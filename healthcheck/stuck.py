"""Whether an applier stands before something that no waiting mends: the same place, for long. Pure."""

from dataclasses import dataclass

from cluster import clock
from cluster.clock import Nanos
from cluster.dialect import Replication

STUCK_MS = 30_000.0
"""It is started again every two seconds meanwhile."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """What the applier ended at, where, and since when."""

    position: str
    since: Nanos
    error: str


def look(before: Stuck | None, replication: Replication | None, position: str, now: Nanos) -> Stuck | None:
    """Return what it stands before now. Between two starts it seems to run: only another position says that it passed."""
    same = before is not None and before.position == position
    if replication is None:
        return None
    if replication.stuck and not same:
        return Stuck(position, now, replication.stuck)
    return before if same else None


def told(stuck: Stuck | None, now: Nanos) -> str:
    """Return what it cannot pass, empty while it may yet."""
    return stuck.error if stuck is not None and clock.ms_between(stuck.since, now) >= STUCK_MS else ""
