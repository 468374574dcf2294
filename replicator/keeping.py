"""What is done for closed files while the replicator runs: each gets its index on disk, and one that does not hold is made anew.

Runs in a thread of its own beside the writer. A file that is cut or opened to grow meanwhile gets no index: the segment's
lock and generation tell. A file that is not what was written is reported once and left as it is.
"""

import hashlib
import threading
from collections.abc import Callable
from contextlib import closing

import structlog

from cluster.errors import OscarHaError
from replicator import indexes, segments, stored
from replicator.archive import Archive
from replicator.frames import Damaged
from replicator.indexes import Index
from replicator.segments import Segment
from replicator.stored import Sums

log = structlog.get_logger()


class Keeper:
    """Looks after the closed files of one archive. For one thread at a time."""

    def __init__(self, archive: Archive, stopping: threading.Event) -> None:
        self._archive, self._stopping = archive, stopping
        self._given_up: dict[str, int] = {}
        """Of damaged files the generation that was looked at: another one is looked at again."""

    @property
    def damaged(self) -> int:
        """Return how many closed files were found damaged since the start, and still are what they were."""
        return len(self._given_up)

    def tick(self) -> int:
        """Write the indexes that are missing, oldest file first; return how many. Raises OSError."""
        made = 0
        for one in self._archive.epochs.values():
            for segment in list(one.segments):
                if not self._stopping.is_set() and lacks_index(segment):
                    made += self._index(segment)
        return made

    def _index(self, segment: Segment) -> bool:
        generation = segment.generation
        if self._given_up.get(segment.identity) == generation:
            return False
        self._given_up.pop(segment.identity, None)
        try:
            return write_index(segment, self._stopping.is_set)
        except OscarHaError as error:
            if segment.generation == generation:
                self._given_up[segment.identity] = generation
                log.error("archive.damaged", file=segment.identity, error=str(error))
            return False


def lacks_index(segment: Segment) -> bool:
    """Return whether a segment should have an index and has none. What ends in the midst of a group is read at the start."""
    return segment.closed and not segment.indexed and segment.size == segment.boundary


def write_index(segment: Segment, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Write the index of a closed segment; return whether it was: not when the file changed, or we were stopped.

    What is in memory since it was received is not read again, only summed. Raises MalformedStream, OSError.
    """
    generation, size = segment.generation, segment.boundary
    known = segment
    if segment.index is None or not segment.time:
        known = segments.scan(segment.stored, segment.start)
        if known.boundary != size:
            raise Damaged(segment.identity, known.boundary, known.damage or f"it ends before {size}")
    marks = list(known.index or ())
    summed = _summed(segment, size, stopped)
    if summed is None:
        return False
    digest, sums = summed
    plain = not segment.stored.framed
    with segment.lock:
        if (segment.generation, segment.boundary, segment.closed) != (generation, size, True):
            return False
        segment.first_time, segment.time, segment.next_file = known.first_time, known.time, known.next_file
        indexes.save(segment.stored, _index_of(segment, digest, sums if plain else Sums()), marks)
        segment.sums = sums if plain else None
        segment.index, segment.indexed = marks, True
    return True


def _index_of(segment: Segment, digest: str, sums: Sums) -> Index:
    return Index(
        version=indexes.VERSION, size=segment.boundary, sha256=digest, start=str(segment.start),
        position=str(segment.position), next_file=segment.next_file, first_time=segment.first_time or None,
        last_time=segment.time or None, sums=indexes.sums_text(sums.whole),
    )  # fmt: skip


def _summed(segment: Segment, size: int, stopped: Callable[[], bool]) -> tuple[str, Sums] | None:
    """Return SHA-256 and block sums of a segment's bytes; None when stopped. What a writer summed is proved on the way."""
    digest, sums = hashlib.sha256(), Sums()
    with closing(segment.open()) as reader:
        for piece in stored.pieces(reader, 0, size, name=segment.identity):
            if stopped():
                return None
            digest.update(piece)
            sums.add(piece)
    sums.end()
    return digest.hexdigest(), sums
