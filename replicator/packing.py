"""Compressing closed files, in a thread of its own that mostly rests: what lies there for weeks takes less room.

A packed file is made beside the one it replaces, read back and compared by SHA-256, and takes its place by one rename;
its index names both sizes before that, so that a crash between the two costs nothing. Who reads the old one opens the
new one at the same offset: offsets are the primary's. Nearly all time is spent where the interpreter's lock is free.
"""

import hashlib
import os
import threading
from contextlib import closing
from dataclasses import dataclass, replace

import structlog
import zstandard

from cluster import clock, durable
from cluster.binlog.events import Mark
from cluster.clock import NANOS_PER_SECOND, Nanos
from cluster.errors import OscarHaError
from cluster.settings import ArchiveRules
from replicator import frames, indexes, retention, stored
from replicator.archive import Archive, EpochArchive
from replicator.frames import Damaged
from replicator.indexes import Index
from replicator.metrics import Metrics
from replicator.segments import Segment
from replicator.stored import Form, Readable, StoredFile

LOOK_SECONDS = 15.0
WORK_SHARE = 0.2
"""Of one core, while there is something to compress."""
REST_SECONDS_MAX = 0.5
JOIN_DEADLINE_SECONDS = 5.0
GAIN_MIN = 0.1
"""Less than this is not worth a file in another form: the primary compressed it already, or it cannot be."""
NOT_WORTH_IT = 0
"""What an index says of a file whose packed form was not kept."""
SECONDS_PER_MINUTE = 60
log = structlog.get_logger()


class Stopped(Exception):
    """The process ends: what was begun is left, and removed by the next start."""


class Share:
    """A share of one core: works for a while, then rests in proportion."""

    def __init__(self, stopping: threading.Event, share: float = WORK_SHARE) -> None:
        self._stopping, self._share = stopping, share
        self._began: Nanos = clock.now()

    def rest(self) -> None:
        """Rest for what was done since the last rest. Raises Stopped."""
        worked = (clock.now() - self._began) / NANOS_PER_SECOND
        if self._stopping.wait(min(REST_SECONDS_MAX, worked * (1 - self._share) / self._share)):
            raise Stopped
        self._began = clock.now()


@dataclass(frozen=True, slots=True)
class Due:
    """A file that is old enough to be packed."""

    segment: Segment
    generation: int
    index: Index


class Packer:
    """Packs the closed files of one archive, oldest first."""

    def __init__(self, archive: Archive, rules: ArchiveRules, metrics: Metrics) -> None:
        self._archive, self._rules, self._metrics = archive, rules, metrics
        self._stopping = threading.Event()
        self._done: dict[str, int] = {}
        """By file the generation that was looked at to its end: it is as it should be, or cannot be packed."""
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="pack", daemon=True)

    def start(self) -> None:
        """Begin, unless the settings say that nothing is compressed."""
        if self._rules.compress:
            self._thread.start()

    def stop(self) -> None:
        """End, and wait for that. Safe to call when it never began."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_DEADLINE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS if self._rules.compress_after_minutes else 1.0):
            try:
                self.tick()
                self._trouble = ""
            except Stopped:
                return
            except OSError as error:  # a full or failing disk: the report says so; the next look comes
                if self._trouble != str(error):
                    self._trouble = str(error)
                    log.warning("archive.pack_failed", error=str(error))
            except Exception:  # a bug of ours must be seen; it is no reason to receive nothing
                log.exception("archive.pack_failed")

    def tick(self) -> int:
        """Pack what is due; return how many files took another form. Raises OSError, Stopped."""
        packed = 0
        for one in list(self._archive.epochs.values()):
            for segment in list(one.segments):
                due = self._due(one, segment)
                if due is not None:
                    packed += self._pack(due)
        self._done = {name: generation for name, generation in self._done.items() if self._known(name)}
        return packed

    def _known(self, identity: str) -> bool:
        return any(
            segment.identity == identity for one in self._archive.epochs.values() for segment in list(one.segments)
        )

    def _due(self, one: EpochArchive, segment: Segment) -> Due | None:
        """Return a file that is closed for good, proved by an index, old enough, and not packed yet."""
        generation = segment.generation
        last = not one.segments or one.segments[-1] is segment
        if not _settled(segment) or (last and not one.complete):
            return None
        if self._done.get(segment.identity) == generation or not self._old_enough(segment):
            return None
        try:
            index, form = indexes.head(segment.stored), stored.form_of(segment.path)
        except FileNotFoundError:
            return None
        if index is None or form is Form.PACKED or index.packed_size == NOT_WORTH_IT:
            self._done[segment.identity] = generation
            return None
        # The draft takes room beside the file: what is received needs it more.
        if durable.free_bytes(segment.path.parent) < self._archive.reserve_bytes + 2 * index.size:
            return None
        return Due(segment, generation, index)

    def _old_enough(self, segment: Segment) -> bool:
        times = [one.time or None for own in list(self._archive.epochs.values()) for one in list(own.segments)]
        now = retention.now_of(clock.utc_seconds(), times)
        after = self._rules.compress_after_minutes * SECONDS_PER_MINUTE
        return now is None or not segment.time or now - segment.time >= after

    def _pack(self, due: Due) -> bool:
        draft = due.segment.stored.draft("packed")
        try:
            size = written(due.segment, draft, due.index, Share(self._stopping))
            before = due.segment.path.stat().st_size
            worth = size <= before * (1 - GAIN_MIN)
            done = installed(due, draft, size) if worth else noted(due)
        except OscarHaError as error:
            # It is not what it was when it was indexed: that is for whoever looks after damage, not for us to replace.
            log.warning("archive.not_packed", file=due.segment.identity, error=str(error))
            worth, done = False, True
        finally:
            draft.path.unlink(missing_ok=True)
        if done:
            self._done[due.segment.identity] = due.segment.generation
        if worth and done:
            log.info(
                "archive.packed", file=due.segment.identity, bytes=due.index.size, before=before, stored_bytes=size
            )
            self._metrics.packed_bytes.inc(due.index.size)
        return worth and done


def written(source: Readable, draft: StoredFile, index: Index, share: Share) -> int:
    """Write the packed form of a file, durably, and prove it by reading it back; return its size on disk.

    Raises Damaged when the file, or what was written, is not what its index says; OSError, Stopped.
    """
    draft.path.unlink(missing_ok=True)
    handle = os.open(draft.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = _compressed(source, handle, draft, index, share)
        os.fsync(handle)
    finally:
        os.close(handle)
    if _digest(draft, index.size, share) != index.sha256:
        raise Damaged(draft.identity, 0, "its packed form does not give it back")
    return size


def _compressed(source: Readable, handle: int, draft: StoredFile, index: Index, share: Share) -> int:
    compressor = zstandard.ZstdCompressor(level=frames.ZSTD_LEVEL)
    header, run = frames.new_run(draft.keys.newest, draft.identity, 0, 0)
    durable.append(handle, header, 0)
    entries, offset, place, digest = list[tuple[int, int]](), 0, len(header), hashlib.sha256()
    with closing(source.open()) as reader:
        for piece in stored.pieces(reader, 0, index.size, name=draft.identity, count=frames.PACKED_FRAME_BYTES):
            digest.update(piece)
            made = frames.frame(run, len(entries), offset, bytes(piece), compressor=compressor)
            durable.append(handle, made, place)
            entries.append((offset, place))
            offset, place = offset + len(piece), place + len(made)
            share.rest()
    if digest.hexdigest() != index.sha256:
        raise Damaged(draft.identity, 0, "its SHA-256 is not the one in its index")
    last = frames.index_frame(run, len(entries), index.size, entries, place)
    durable.append(handle, last, place)
    return place + len(last)


def _digest(file: Readable, size: int, share: Share) -> str:
    digest = hashlib.sha256()
    with closing(file.open()) as reader:
        for piece in stored.pieces(reader, 0, size, name=file.identity):
            digest.update(piece)
            share.rest()
    return digest.hexdigest()


def installed(due: Due, draft: StoredFile, size: int) -> bool:
    """Let a proved packed file take the place of the one it was made of; False when that changed meanwhile. Raises OSError."""
    segment = due.segment
    with segment.lock:
        marks = _marks_of(due)
        if marks is None:
            return False
        # First the index, which then holds for either file; so a crash between the two is none.
        indexes.save(segment.stored, replace(due.index, packed_size=size), marks)
        durable.rename(draft.path, segment.path)
        segment.generation += 1
        segment.known = segment.frames = segment.sums = None
    return True


def noted(due: Due) -> bool:
    """Note in a file's index that packing it gains too little. Raises OSError."""
    with due.segment.lock:
        marks = _marks_of(due)
        if marks is not None:
            indexes.save(due.segment.stored, replace(due.index, packed_size=NOT_WORTH_IT), marks)
    return marks is not None


def _marks_of(due: Due) -> list[Mark] | None:
    """Return the marks of a file's index, None when the file is not the one that was looked at. Whoever calls has its lock."""
    segment = due.segment
    if segment.generation != due.generation or not _settled(segment):
        return None
    return segment.index if segment.index is not None else indexes.marks(segment.stored)


def _settled(segment: Segment) -> bool:
    """Return whether a file is closed, proved by an index, and neither damaged nor removed."""
    return segment.closed and segment.indexed and segment.damage is None and not segment.removed
