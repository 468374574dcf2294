"""Which epochs an archive should hold, and which one to pull. Same facts in, same answer out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cluster.position import Position
from cluster.records import EpochRecord, LineageEntry


@dataclass(frozen=True, slots=True)
class PastEpoch:
    """An epoch that has ended, and where: at the start of the next one."""

    entry: LineageEntry
    end: Position


def epoch_to_pull(record: EpochRecord | None, sealed_epoch: int) -> tuple[int | None, str]:
    """Return the epoch to pull and why, or None and why not."""
    if record is None:
        return None, "no epoch is recorded yet"
    if record.epoch <= sealed_epoch:
        return None, f"epoch {record.epoch} is sealed: waiting for the next one"
    return record.epoch, f"epoch {record.epoch}"


def past_epochs(lineage: Sequence[LineageEntry], archived: Sequence[int]) -> tuple[PastEpoch, ...]:
    """Return the ended epochs this archive should hold: from the first it has, or none when it is empty.

    The start of an epoch is the end of the one before, also when several were missed.
    """
    if not archived:
        return ()
    pairs = pairwise(lineage)
    return tuple(
        PastEpoch(entry, Position.parse(following.position))
        for entry, following in pairs
        if entry.epoch >= min(archived)
    )
