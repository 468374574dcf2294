"""Reading closed files again, slowly, all the time: what a disk has lost is found before somebody needs it.

A round goes through all closed files, oldest first, and compares each with its index: the SHA-256 of the primary's
bytes, and on the way the sums or tags of its parts. It goes on after a start where it was. A file whose index does not
hold gets a new one (`keeping`), which proves the file as well. What is found is marked; `mending` does the rest.
"""

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from cluster import clock, durable, records
from cluster.binlog.events import file_number
from cluster.clock import Nanos
from cluster.errors import BadInput, MalformedStream
from cluster.settings import ArchiveRules
from replicator import epoch_file, indexes, segments
from replicator.archive import Archive
from replicator.keeping import summed_up
from replicator.metrics import Metrics
from replicator.segments import Segment

STATE_FILE = "scrub.json"
LOOK_EVERY_SECONDS = 1.0
JOIN_DEADLINE_SECONDS = 5.0
SECONDS_PER_HOUR = 3_600
DAMAGED_MAX = 1_000
log = structlog.get_logger()
More = Callable[[int], bool]
"""Is told of every piece that was read; says whether to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far the round is, as `scrub.json` keeps it. Times are seconds since 1970."""

    began: int | None = None
    """None: between two rounds."""
    after: tuple[int, int] = (0, 0)
    """Epoch and number of the last file that was read."""
    files: int = 0
    bytes: int = 0
    finished: int | None = None
    """When the last whole round ended."""
    damaged: tuple[str, ...] = ()
    """Files that were known to be damaged: after a start they are looked at first."""


def damage_of(segment: Segment, more: More = lambda _: True) -> str | None:
    """Return what is wrong with a closed file; None when nothing is, when it changed meanwhile, or when told to stop.

    A file without an index that holds is not judged here: it gets a new one, and is proved for that.
    Raises OSError when that cannot be known, BadInput for a key that we have not.
    """
    generation = segment.generation
    index = indexes.head(segment.stored)
    if not segment.path.exists():
        return "it is missing" if generation == segment.generation else None
    if index is None:
        segment.indexed = False
        return None
    why: str | None = None
    _forget_pages(segment.path)
    try:
        summed = summed_up(segment, index.size, lambda size: more(size) and segment.generation == generation)
        if summed is None:
            return None
        if summed[0] != index.sha256:
            why = "its SHA-256 is not the one in its index"
    except MalformedStream as error:
        why = error.message
    _forget_pages(segment.path)
    return why if segment.generation == generation else None


def _forget_pages(path: Path) -> None:
    """Have it read from the disk, not from memory; and leave the memory to what needs it."""
    with suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def next_file(archive: Archive, after: tuple[int, int]) -> tuple[tuple[int, int], Segment] | None:
    """Return the first closed file behind a place, and its place; None at the end of the round."""
    places = (((one.epoch, file_number(segment.file)), segment) for one, segment in archive.segments())
    return min(
        (found for found in places if found[0] > after and found[1].closed), default=None, key=lambda one: one[0]
    )


class Scrubber:
    """A thread that reads an archive round after round; at most so many bytes a second."""

    def __init__(self, archive: Archive, rules: ArchiveRules, metrics: Metrics, found: Callable[[], None]) -> None:
        self._archive, self._metrics, self._found = archive, metrics, found
        self._rate = rules.scrub_bytes_per_second
        self._every_seconds = rules.scrub_every_hours * SECONDS_PER_HOUR
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self._path = archive.directory / STATE_FILE
        self._ahead = clock.now()
        self.state = read_state(self._path)
        self._due: Nanos = self._due_after(clock.now(), clock.utc_seconds())
        metrics.scrub_finished.set(self.state.finished or 0)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that. Safe to call when it never began."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_DEADLINE_SECONDS)

    def tick(self) -> bool:
        """Read the next file of a round that is due; return whether there was something to do. Raises OSError, BadInput."""
        if self.state.began is None:
            if clock.now() < self._due:
                return False
            self._keep(replace(self.state, began=clock.utc_seconds(), after=(0, 0), files=0, bytes=0))
            self._restore_starts()
        following = next_file(self._archive, self.state.after)
        if following is None:
            self._end_round()
            return False
        place, segment = following
        if segment.damage is None:
            self._judge(segment)
        if not self._stop.is_set():
            state = self.state
            self._keep(replace(state, after=place, files=state.files + 1, bytes=state.bytes + segment.size))
        return True

    # -- below ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.tick()
            except (OSError, BadInput) as error:
                log.warning("scrub.failed", error=str(error))
                busy = False
            except Exception:  # a bug of ours must be seen; it is no reason to archive nothing
                log.exception("scrub.failed")
                busy = False
            if not busy:
                self._stop.wait(LOOK_EVERY_SECONDS)

    def _judge(self, segment: Segment) -> None:
        generation, self._ahead = segment.generation, clock.now()
        why = damage_of(segment, self._paced)
        if why is not None and segments.found_damaged(segment, generation, why):
            self._found()

    def _paced(self, size: int) -> bool:
        """Rest as long as so many bytes may take, then say whether to go on."""
        self._metrics.scrubbed_bytes.inc(size)
        self._ahead = clock.after(max(self._ahead, clock.now()), size * 1000 / self._rate)
        return not self._stop.wait(clock.seconds_left(self._ahead))

    def _restore_starts(self) -> None:
        for one in list(self._archive.epochs.values()):
            if one.directory.is_dir() and epoch_file.read(one.directory) != one.start:
                log.error("archive.epoch_rebuilt", epoch=one.epoch, why="what was on disk is not what was written")
                one.save()

    def _end_round(self) -> None:
        state = self.state
        log.info("scrub.finished", files=state.files, bytes=state.bytes)
        self._keep(replace(state, began=None, finished=clock.utc_seconds()))
        self._due = clock.after(clock.now(), self._every_seconds * 1000)
        self._metrics.scrub_finished.set(self.state.finished or 0)

    def _due_after(self, now: Nanos, utc_seconds: int) -> Nanos:
        if self.state.finished is None:
            return now
        waited = max(0, utc_seconds - self.state.finished)  # a clock that was set back delays a round, no more
        return clock.after(now, max(0.0, self._every_seconds - waited) * 1000)

    def _keep(self, state: State) -> None:
        damaged = tuple(segment.identity for _, segment in self._archive.segments() if segment.damage is not None)
        self.state = state = replace(state, damaged=damaged[:DAMAGED_MAX])
        durable.replace_file(self._path, json.dumps(asdict(state)).encode() + b"\n")


def read_state(path: Path) -> State:
    """Return how far the scrubbing was; what cannot be read begins anew."""
    try:
        return records.decode(State, path.read_bytes(), where=str(path))
    except (OSError, BadInput):
        return State()
