"""What is done for closed files while the replicator runs: each gets its index on disk, and one that does not hold is made anew.

Runs in a thread of its own beside the writer. A file that is cut or opened to grow meanwhile gets no index: the segment's
lock and generation tell. A file that is not what was written gets none: it is marked, for `mending` to fetch it again.
"""

import hashlib
import threading
from collections.abc import Callable
from contextlib import closing

from cluster.errors import OscarHaError
from replicator import indexes, segments, stored
from replicator.archive import Archive
from replicator.frames import Damaged
from replicator.indexes import Index
from replicator.segments import Segment
from replicator.stored import Sums


class Keeper:
    """Looks after the closed files of one archive. For one thread at a time."""

    def __init__(self, archive: Archive, stopping: threading.Event) -> None:
        self._archive, self._stopping = archive, stopping

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
        try:
            return write_index(segment, self._stopping.is_set)
        except FileNotFoundError:
            segments.found_damaged(segment, generation, "it is missing")
            return False
        except OscarHaError as error:
            segments.found_damaged(segment, generation, error.message)
            return False


def lacks_index(segment: Segment) -> bool:
    """Return whether a segment should have an index and has none. What ends in the midst of a group is read at the start."""
    whole = segment.damage is None and segment.size == segment.boundary
    return segment.closed and not segment.indexed and whole


def write_index(segment: Segment, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Write the index of a closed segment; return whether it was: not when the file changed, or we were stopped.

    What is in memory since it was received is not read again, only summed. Raises MalformedStream, OSError.
    """
    generation, size = segment.generation, segment.boundary
    known = segment
    if segment.index is None or not segment.time:
        known = segments.scan(segment.stored, segment.start)
        if known.boundary != size or known.damage is not None:
            raise Damaged(segment.identity, known.boundary, known.damage or f"it ends before {size}")
    marks = list(known.index or ())
    summed = summed_up(segment, size, lambda _: not stopped())
    if summed is None:
        return False
    digest, sums = summed
    plain = not segment.stored.framed
    with segment.lock:
        if segment.removed or (segment.generation, segment.boundary, segment.closed) != (generation, size, True):
            return False
        segment.first_time, segment.time, segment.next_file = known.first_time, known.time, known.next_file
        segment.position = known.position
        indexes.save(segment.stored, _index_of(segment, digest, sums if plain else Sums()), marks)
        segment.sums = sums if plain else None
        segment.index, segment.indexed = marks, True
    return True


def _index_of(segment: Segment, digest: str, sums: Sums) -> Index:
    return Index(
        version=indexes.VERSION, size=segment.boundary, sha256=digest, start=str(segment.start),
        position=str(segment.position), next_file=segment.next_file, first_time=segment.first_time or None,
        last_time=segment.time or None, sums=indexes.sums_text(sums.whole),
        stored_size=segment.path.stat().st_size,
    )  # fmt: skip


def summed_up(segment: Segment, size: int, more: Callable[[int], bool] = lambda _: True) -> tuple[str, Sums] | None:
    """Return SHA-256 and block sums of a segment's bytes; None when `more`, which is told of every piece, says to stop.

    What a writer or an index has summed is proved on the way. Raises Damaged, OSError.
    """
    digest, sums = hashlib.sha256(), Sums()
    with closing(segment.open()) as reader:
        for piece in stored.pieces(reader, 0, size, name=segment.identity):
            if not more(len(piece)):
                return None
            digest.update(piece)
            sums.add(piece)
    sums.end()
    return digest.hexdigest(), sums
