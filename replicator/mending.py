"""A damaged closed file is fetched again, proved, and put in its place; nobody has to be awake.

What proves a fetched file: the SHA-256 in our index of it, if that holds. Otherwise both its ends: it begins after what
the file before ends with and ends with what the next one begins after, has the bytes between in events whose
checksums are right, and names the next file. What is not proved takes no place. The damaged file stays where it
is, served up to its damage, until the whole one replaces it by a rename; then it lies in `damaged/`.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from cluster import clock, durable
from cluster.binlog.events import file_number
from cluster.clock import Nanos
from cluster.errors import BadInput, DeadlinePassed, Diverged, MalformedStream, OscarHaError, Refused, Unreachable
from cluster.position import Position
from cluster.records import DamagedFile
from cluster.settings import Settings, Timing
from replicator import indexes, scrubbing, segments
from replicator.archive import MENDING, Archive, DiskFull, EpochArchive
from replicator.epoch_file import EpochStart
from replicator.intake import fetch
from replicator.keeping import summed_up, write_index
from replicator.metrics import Metrics
from replicator.segments import Segment
from replicator.source import Target

LOOK_EVERY_MS = 5_000
RETRY_FIRST_MS, RETRY_MAX_MS = 2_000, 300_000
FETCH_DEADLINE_MS = 3_600_000
KEPT_MAX = 8
"""So many damaged files are kept after they were replaced by whole ones."""
REPORTED_MAX = 20
GROWS = (
    "it is the newest file: restart this replicator while the primary is up, it fetches the damaged end again;"
    " otherwise it is fetched again when the primary begins the next file"
)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who may have a file: another replicator, or a database that wrote it."""

    name: str
    target: Target
    is_replicator: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a file must be, as far as something here proves it. What is not known is None."""

    start: Position | None
    position: Position | None
    next_file: str | None
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What a fetched file is."""

    start: Position
    position: Position
    next_file: str | None
    size: int
    sha256: str


def objection(expected: Expected, got: Got) -> str | None:
    """Return why a fetched file may not take the place of the damaged one; None when it is proved to be what was there."""
    if expected.sha256 is not None:
        same = (got.size, got.sha256) == (expected.size, expected.sha256)
        return None if same else "it is not the file whose SHA-256 is in our index"
    if expected.start is None or expected.position is None:
        return "nothing here proves where it begins and ends"
    if got.start != expected.start:
        return f"it begins after {got.start}, not {expected.start}"
    if got.position != expected.position:
        return f"it ends at {got.position}, not {expected.position}"
    if None not in (got.next_file, expected.next_file) and got.next_file != expected.next_file:
        return f"it goes on in {got.next_file}, not {expected.next_file}"
    return None


def expected_of(one: EpochArchive, segment: Segment) -> Expected:
    """Return what proves a file: its index, or its neighbours in the chain."""
    index = indexes.head(segment.stored)
    if index is not None:
        return Expected(start=Position.parse(index.start), position=Position.parse(index.position),
                        next_file=index.next_file, size=index.size, sha256=index.sha256)  # fmt: skip
    here = list(one.segments)
    at = next(number for number, other in enumerate(here) if other is segment)
    before, after = here[at - 1] if at else None, here[at + 1] if at + 1 < len(here) else None
    start = end = following = None
    if before is None and segment.file == one.start.file and not one.start.rebuilt:
        start = one.begin
    elif before is not None and _known(before) and file_number(before.file) + 1 == file_number(segment.file):
        start = before.position
    if after is None:
        end = one.end
    elif _known(after) and file_number(after.file) == file_number(segment.file) + 1:
        end, following = after.start, after.file
    return Expected(start=start, position=end, next_file=following)


def _known(segment: Segment) -> bool:
    return segment.damage is None or indexes.head(segment.stored) is not None


def fetched(one: EpochArchive, segment: Segment, expected: Expected, source: Source, folder: Path, timing: Timing,
            metrics: Metrics, stop: threading.Event) -> Segment:  # fmt: skip
    """Fetch a whole file into `folder`; return it as a segment. Raises what the source says, DiskFull."""
    if expected.start is None:
        raise Refused("nothing here proves where the file begins", hint=by_hand(segment))
    durable.empty(folder)
    staged = folder / one.directory.name
    durable.make_directory(staged)
    start = EpochStart(epoch=one.epoch, server_id=one.start.server_id, file=segment.file, position=str(expected.start))
    scratch = EpochArchive(staged, start, one.keys, one.reserve_bytes)

    def enough() -> bool:
        first = scratch.segments[0] if scratch.segments else None
        return first is not None and (first.next_file is not None or len(scratch.segments) > 1)

    fetch(scratch, source.target, timing, metrics, enough=enough, deadline=clock.after(clock.now(), FETCH_DEADLINE_MS),
          stop=stop, from_replicator=source.is_replicator)  # fmt: skip
    if not scratch.segments or scratch.segments[0].file != segment.file:
        raise Refused(f"{source.name} sends nothing of it")
    made = scratch.segments[0]
    made.known, made.closed = None, True
    return made


def got_of(made: Segment) -> Got:
    """Return what a fetched file is; it is read again for that. Raises Damaged."""
    summed = summed_up(made, made.size)
    assert summed is not None, "nobody says to stop"
    return Got(start=made.start, position=made.position, next_file=made.next_file, size=made.size, sha256=summed[0])


def install(archive: Archive, segment: Segment, made: Segment, generation: int) -> None:
    """Put a proved file in its place. Safe to repeat after a crash at any step. Raises Refused, OSError."""
    with segment.lock:
        if segment.generation != generation or not segment.closed or getattr(segment, "removed", False):
            raise Refused(f"{segment.identity} changed meanwhile")
        set_aside(archive, segment)
        if indexes.head(segment.stored) is None:
            indexes.remove(segment.stored)
        durable.sync_directory(made.path.parent)
        durable.rename(made.path, segment.path)
        segment.generation += 1
        segment.known = segment.frames = segment.damage = None
        segment.sums, segment.index, segment.indexed = made.sums, made.index, False
        segment.start, segment.position, segment.next_file = made.start, made.position, made.next_file
        segment.boundary, segment.size = made.boundary, made.size
        segment.first_time, segment.time = made.first_time, made.time


def set_aside(archive: Archive, segment: Segment) -> None:
    """Keep a damaged file under another name, and not too many of them. The file itself stays where it is."""
    folder = archive.directory / "damaged"
    if segment.path.exists():
        number = segment.path.stat().st_ino
        if not any(path.stat().st_ino == number for path in folder.iterdir()):
            target = folder / f"{segment.path.parent.name}.{segment.file}.replaced-{clock.utc_now()}"
            target.unlink(missing_ok=True)
            target.hardlink_to(segment.path)
            durable.sync_directory(folder)
    kept = sorted(folder.glob("*.replaced-*"), key=lambda path: path.name.partition(".replaced-")[2])
    for path in kept[:-KEPT_MAX]:
        durable.remove(path)


def by_hand(segment: Segment) -> str:
    """Return what a person does when nobody has a file."""
    return (f"put a whole {segment.file} into {segment.path.parent}, from a backup of an archive or of the primary's binlogs;"
            " if a standby waits for it: `oscar-ha reinitialize NODE`")  # fmt: skip


@dataclass(slots=True)
class _Attempt:
    """What was tried for a damaged file."""

    state: str = "it is fetched again"
    nobody: bool = False
    wait_ms: float = RETRY_FIRST_MS
    due: Nanos | None = None


class Mender:
    """Mends one archive. Its coroutines belong to one loop."""

    def __init__(
        self, archive: Archive, settings: Settings, metrics: Metrics, stop: threading.Event,
        sources: Callable[[EpochArchive], Awaitable[Sequence[Source]]],
        lock: Callable[[int], AbstractAsyncContextManager[object]], changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._archive, self._timing, self._metrics, self._stop = archive, settings.timing, metrics, stop
        self._sources, self._lock, self._changed = sources, lock, changed
        self._attempts: dict[str, _Attempt] = {}
        self._suspects: set[str] = set()
        self._now = asyncio.Event()

    def suspect(self, identity: str) -> None:
        """Look at a file soon: whoever read it found it damaged."""
        self._suspects.add(identity)
        self._now.set()

    def wake(self) -> None:
        """Look for damaged files soon."""
        self._now.set()

    @property
    def damaged(self) -> tuple[DamagedFile, ...]:
        """Return what is damaged, and what is done about it."""
        found = [segment for _, segment in self._archive.segments() if segment.damage is not None]
        fresh = {True: _Attempt(), False: _Attempt(state=GROWS, nobody=True)}
        attempts = [(one, self._attempts.get(one.identity) or fresh[one.closed]) for one in found]
        return tuple(DamagedFile(file=one.identity, why=one.damage or "", state=attempt.state, nobody=attempt.nobody)
                     for one, attempt in attempts)  # fmt: skip

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_MS / 1000):
                    await self._now.wait()
            self._now.clear()
            try:
                await self.tick()
            except (OSError, OscarHaError) as error:
                log.warning("mend.failed", error=str(error))

    async def tick(self) -> None:
        """Judge the files that are suspect, and try each damaged one whose turn it is."""
        while self._suspects:
            await asyncio.to_thread(self._judge, self._suspects.pop())
        damaged = [(one, segment) for one, segment in self._archive.segments()
                   if segment.damage is not None and segment.closed]  # fmt: skip
        names = {segment.identity for _, segment in damaged}
        self._attempts = {name: one for name, one in self._attempts.items() if name in names}
        for one, segment in damaged:
            attempt = self._attempts.setdefault(segment.identity, _Attempt())
            if attempt.due is None or clock.now() >= attempt.due:
                await self._attempt(one, segment, attempt)
                attempt.due = clock.after(clock.now(), attempt.wait_ms)
                attempt.wait_ms = min(RETRY_MAX_MS, 2 * attempt.wait_ms)
                self._changed()

    def _judge(self, identity: str) -> None:
        segment = self._archive.segment_of(identity)
        if segment is None or segment.damage is not None:
            return
        if not segment.closed:
            self._judge_growing(segment)
            return
        generation = segment.generation
        why = scrubbing.damage_of(segment, lambda _: not self._stop.is_set())
        if why is not None:
            segments.found_damaged(segment, generation, why)

    def _judge_growing(self, segment: Segment) -> None:
        """A file that grows is not replaced under its writer: it is mended when it is closed, or a person is faster."""
        generation = segment.generation
        try:
            summed_up(segment, segment.boundary, lambda _: not self._stop.is_set())
        except MalformedStream as error:
            with segment.lock:
                if segment.generation == generation:
                    segment.damage = error.message
                    log.error("archive.damaged", file=segment.identity, error=error.message, mend=GROWS)

    async def _attempt(self, one: EpochArchive, segment: Segment, attempt: _Attempt) -> None:
        if await asyncio.to_thread(self._whole_again, segment):
            return
        generation, expected = segment.generation, await asyncio.to_thread(expected_of, one, segment)
        refused, silent = list[str](), list[str]()
        for source in await self._sources(one):
            try:
                await self._mend(one, segment, expected, source, generation)
            except DiskFull as error:
                attempt.state, attempt.nobody = f"it cannot be fetched: {error}", False
                return
            except (Diverged, Refused, MalformedStream, BadInput) as error:
                refused.append(f"{source.name}: {error.message}")
            except (Unreachable, DeadlinePassed) as error:
                silent.append(f"{source.name}: {error.message}")
            else:
                return
            log.info("mend.refused", file=segment.identity, source=source.name, why=(refused + silent)[-1])
        if not silent and not attempt.nobody:
            log.error("archive.nobody_has_it", file=segment.identity, mend=by_hand(segment), answers=refused)
        attempt.nobody = not silent
        attempt.state = (f"it is asked for again soon: {'; '.join(silent)}" if silent else
                         f"nobody has it whole, a person must: {by_hand(segment)}")  # fmt: skip

    async def _mend(
        self, one: EpochArchive, segment: Segment, expected: Expected, source: Source, generation: int
    ) -> None:
        folder = self._archive.directory / MENDING
        made = await asyncio.to_thread(fetched, one, segment, expected, source, folder, self._timing, self._metrics,
                                       self._stop)  # fmt: skip
        why = objection(expected, await asyncio.to_thread(got_of, made))
        if why is not None:
            raise Refused(why)
        async with self._lock(one.epoch):
            damage = segment.damage
            await asyncio.to_thread(install, self._archive, segment, made, generation)
        log.info("archive.mended", file=segment.identity, source=source.name, damage=damage, bytes=made.size)
        self._metrics.mended_files.inc()
        self._changed()
        with suppress(OSError, OscarHaError):  # the keeper tries again
            await asyncio.to_thread(write_index, segment)
        await asyncio.to_thread(durable.empty, folder)

    def _whole_again(self, segment: Segment) -> bool:
        """Return whether a person has put a whole file there, and believe it: it is what our index says."""
        generation, index = segment.generation, indexes.head(segment.stored)
        if index is None or not segment.path.exists():
            return False
        with segment.lock:
            again = replace(segment, damage=None, sums=None, frames=None, known=None, lock=threading.Lock())
        if (
            stored_size(again) != index.size
            or scrubbing.damage_of(again, lambda _: not self._stop.is_set()) is not None
        ):
            return False
        with segment.lock:
            if segment.generation != generation or self._stop.is_set():
                return False
            segment.generation += 1
            segment.damage = segment.frames = segment.known = None
        log.info("archive.whole_again", file=segment.identity)
        self._changed()
        return True


def stored_size(segment: Segment) -> int | None:
    """Return how many of the primary's bytes lie on disk; None when that cannot be known."""
    try:
        return segment.stored.survey().size
    except (MalformedStream, OSError):
        return None
