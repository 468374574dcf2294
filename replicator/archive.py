"""The archive: every epoch's binlog files as their primary wrote them, and the seal. One process owns the directory.

    lock                         held by the one writer
    owner.json                   the cluster and the site whose archive it is (replicator/owner.py)
    seal.json                    nothing of this epoch or older is ever acknowledged again
    epochs/0000000001-1/         one folder for an epoch and the server that was its primary
        epoch.json               where the epoch begins, and where it ended once that is known
        binlog.000001            the primary's bytes, as they are or encrypted (replicator/stored.py)
        binlog.000001.index      what a closed file holds (replicator/indexes.py)
    orphans/                     tails that no later primary had; never served
    damaged/                     files that were not what had been written, as they were found; never served
    mending/                     what is fetched anew, until it is proved to be what had been written
    holds/                       what somebody has asked to keep (replicator/holds.py)
    removed/                     epochs of which nothing is kept any more, on their way out

File names restart on every server: the key is epoch, server and file together (TRAPS.md 17).
"""

import errno
import fcntl
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Self

import structlog

from cluster import clock, durable
from cluster.binlog.events import FILE_NAME, FIRST_OFFSET, GroupTracker, checked_file, file_number
from cluster.binlog.framing import MAGIC, MIB
from cluster.errors import BadInput, Bug, MalformedStream, Refused
from cluster.position import Position
from cluster.records import LineageEntry
from replicator import epoch_file, segments, stored
from replicator.epoch_file import EPOCH_FILE, EpochStart
from replicator.frames import Damaged
from replicator.keys import NO_KEYS, Keys
from replicator.receiving import Batch, Chunk, Reply
from replicator.segments import Segment
from replicator.stored import Appender, StoredFile, Survey

DISK_RESERVE_BYTES = 64 * MIB
"""Below this much free space nothing is received any more: say so before the disk is full (TRAPS.md 18)."""
ROOM_LOOK_BYTES, ROOM_LOOK_MS = MIB, 50.0
"""The room is looked at again after so many bytes, or so much later: not for every commit."""
RESERVE_MARGIN_BYTES = 8 * MIB
"""So much more must be free before receiving goes on: a batch fits, and a disk at the brink does not flutter."""
SEAL_FILE, LOCK_FILE, MENDING, REMOVED = "seal.json", "lock", "mending", "removed"
MISSING_MAX = 1_000
"""So many files between two others are listed as missing at most."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on receiving, and the position there."""

    file: str
    offset: int
    position: Position


class DiskFull(Refused):
    """There is no room: nothing is received or acknowledged until there is. It is looked for again all the time."""


class Gone(Refused):
    """What a reader needs next was here, and was removed because nobody was known to need it."""


def gone(segment: Segment) -> Gone:
    """Return the error for a reader of a segment that was removed."""
    return Gone(f"what comes behind {segment.position} of {segment.file} is not in this archive any more",
                hint="it was older than the archive keeps: `oscar-ha reinitialize NODE` builds a standby anew")  # fmt: skip


class EpochArchive:
    """The files of one epoch, oldest first."""

    def __init__(
        self, directory: Path, start: EpochStart, keys: Keys = NO_KEYS, reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self.directory = directory
        self.start = start
        self.keys = keys
        self.reserve_bytes = reserve_bytes
        self.segments: list[Segment] = []

    @property
    def epoch(self) -> int:
        return self.start.epoch

    @property
    def damaged(self) -> Path:
        """Return the folder for files that are not what was written, as they were found."""
        return self.directory.parent.parent / "damaged"

    @property
    def begin(self) -> Position:
        """Return the position before the epoch's first event."""
        return Position.parse(self.start.position)

    @property
    def end(self) -> Position | None:
        """Return where the epoch ended, None while it is the newest we know."""
        return None if self.start.end is None else Position.parse(self.start.end)

    @property
    def position(self) -> Position:
        """Return the position after everything that is here."""
        return self.segments[-1].position if self.segments else self.begin

    @property
    def complete(self) -> bool:
        """Return whether the epoch has ended and all of it is here."""
        return self.end is not None and self.position == self.end

    def resume(self) -> Resume:
        """Return where to go on receiving."""
        if not self.segments:
            return Resume(self.start.file, FIRST_OFFSET, self.begin)
        last = self.segments[-1]
        if last.next_file is not None:
            return Resume(last.next_file, FIRST_OFFSET, last.position)
        return Resume(last.file, last.boundary, last.position)

    def segment(self, file: str) -> Segment | None:
        """Return the segment of a file, None when there is none."""
        return next((segment for segment in list(self.segments) if segment.file == file), None)

    def follower(self, segment: Segment) -> Segment | None:
        """Return the segment after `segment` in this epoch, None when it is the last, or was cut off.

        Raises Gone when `segment` was removed, and what came behind it too; Damaged when a file between the two is
        missing: who went on would lose what was in it.
        """
        here = iter(list(self.segments))  # files are removed from its front by another thread
        for one in here:
            if one is segment:
                found = next(here, None)
                if found is not None and not is_next(segment.file, found.file):
                    raise Damaged(
                        segment.identity, segment.boundary, f"{found.file} follows, files between are missing"
                    )
                return found
        if not segment.removed:
            return None
        later = next((one for one in list(self.segments) if file_number(one.file) > file_number(segment.file)), None)
        if later is None or later.start != segment.position:
            raise gone(segment)
        return later

    def require_after(self, before: "EpochArchive") -> None:
        """Raise Damaged unless the first file here goes on where the epoch `before` ended."""
        first = self.segments[0]
        if self.begin != before.end or first.file != self.start.file:
            raise Damaged(first.identity, FIRST_OFFSET, f"it is not what follows the end of epoch {before.epoch}")

    def files(self) -> list[StoredFile]:
        """Return the files on disk in order, whether they are loaded or not."""
        return files_in(self.directory, self.keys) if self.directory.is_dir() else []  # it may have been removed

    def load(self) -> None:
        """Find the segments on disk; cut the torn tail of the last one (TRAPS.md 15). Raises BadInput for a wrong key."""
        durable.remove_drafts(self.directory)
        files, last = self.files(), None
        while files and last is None:  # without a file that had only begun, the one before is the last
            last = self._load_last(files.pop())
        self.segments = [segments.glance(file, self.begin) for file in files]
        if last is not None:
            self.segments.append(last)
        for before, after in pairwise(self.segments):
            _join(before, after)
        self._note_missing()
        for segment in self.segments:
            if segment.damage is not None:
                log.error("archive.damaged", file=segment.identity, error=segment.damage)

    def _note_missing(self) -> None:
        """Put into the chain what is known of files that are missing in its midst: nobody may be led past them."""
        for before, after in list(pairwise(self.segments)):
            stem, first = before.file.rpartition(".")[0], file_number(before.file)
            width, at = len(before.file) - len(stem) - 1, self.segments.index(after)
            for number in range(first + 1, min(file_number(after.file), first + 1 + MISSING_MAX)):
                file = StoredFile(self.directory / f"{stem}.{number:0{width}d}", self.keys)
                missing = segments.described(file) or segments.unknown(file, before.position, "")
                missing.damage, missing.sums = "it is missing", None
                missing.position = after.start if number + 1 == file_number(after.file) else missing.position
                self.segments.insert(at, missing)
                at += 1

    def _load_last(self, file: StoredFile) -> Segment | None:
        """Return the last file without its torn tail; None when nothing of it is left, and then it is removed."""
        known = None if self.end is None else segments.indexed(file) or segments.short(file)
        last = known or segments.scan(file, self.begin)
        if last.damage is not None and known is None:
            # Nothing is thrown away: what is cut now may be all that is left of it somewhere.
            durable.copy(file.path, self.damaged / f"{self.directory.name}.{file.name}.{last.boundary}")
            last.damage = None
        if last.boundary == FIRST_OFFSET:
            durable.remove(file.path)
            return None
        if known is None:
            last.known = cut_behind(last)
        last.closed = self.end is not None
        return last

    def save(self) -> None:
        """Write `epoch.json`."""
        epoch_file.save(self.directory, self.start)


class Archive:
    """All epochs of one directory."""

    def __init__(
        self, directory: Path, lock: IO[bytes] | None, keys: Keys = NO_KEYS, reserve_bytes: int = DISK_RESERVE_BYTES
    ) -> None:
        self.directory = directory
        self.keys, self.reserve_bytes = keys, reserve_bytes
        self._lock = lock
        self.sealed_epoch = 0
        self._sealing, self._changing = threading.Lock(), threading.Lock()
        self.epochs: dict[int, EpochArchive] = {}

    @classmethod
    def open(cls, directory: Path, keys: Keys = NO_KEYS, reserve_bytes: int = DISK_RESERVE_BYTES) -> Self:
        """Lock and load the archive; make it when there is none. Raises BadInput."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (directory / LOCK_FILE).open("ab")
            for name in ("epochs", "orphans", "damaged", MENDING, REMOVED):
                durable.make_directory(directory / name)
        except OSError as error:
            raise BadInput(f"archive {directory}: {error.strerror}", hint="give a folder we may write to") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise BadInput(f"archive {directory} is in use by another replicator",
                           hint="end that one, or give each its own folder") from None  # fmt: skip
        archive = cls(directory, lock, keys, reserve_bytes)
        try:
            archive.load()
        except BaseException:
            archive.close()
            raise
        return archive

    @classmethod
    def look(cls, directory: Path, keys: Keys = NO_KEYS) -> Self:
        """Return the archive for reading only, whoever owns it; no segment is read. Raises BadInput."""
        if not (directory / "epochs").is_dir():
            raise BadInput(f"{directory} is not an archive", hint="give the 'archive' folder of a replicator")
        archive = cls(directory, None, keys)
        archive.sealed_epoch = _read_seal(directory)
        archive.epochs = {one.epoch: one for one in archive.find()}
        return archive

    def close(self) -> None:
        """Give the directory free."""
        if self._lock is not None:
            self._lock.close()

    def load(self) -> None:
        """Read what is on disk; what was on its way out goes."""
        for name in (MENDING, REMOVED):
            durable.empty(self.directory / name)
        self.sealed_epoch = _read_seal(self.directory)
        for one in self.find():
            self._keep_start(one)
            one.load()
            self.epochs[one.epoch] = one

    def _keep_start(self, one: EpochArchive) -> None:
        """Write an `epoch.json` that was made anew; what it replaces is set aside."""
        if epoch_file.read(one.directory) is None:
            path = one.directory / EPOCH_FILE
            log.error("archive.epoch_rebuilt", epoch=one.epoch, server_id=one.start.server_id, file=one.start.file,
                      position=one.start.position, end=one.start.end)  # fmt: skip
            if path.exists():
                durable.copy(path, self.directory / "damaged" / f"{one.directory.name}.{EPOCH_FILE}")
            one.save()

    def segments(self) -> Iterator[tuple[EpochArchive, Segment]]:
        """Yield every file of every epoch, oldest first."""
        for one in list(self.epochs.values()):
            for segment in list(one.segments):
                yield one, segment

    def segment_of(self, identity: str) -> Segment | None:
        """Return the segment that messages call `identity`, None when there is none."""
        return next((segment for _, segment in self.segments() if segment.identity == identity), None)

    def find(self) -> list[EpochArchive]:
        """Return the epochs on disk in order, without their segments. Raises BadInput for two of one number."""
        folders = [path for path in sorted((self.directory / "epochs").iterdir()) if path.is_dir()]
        starts = {folder.name: epoch_file.read(folder) or epoch_file.rebuilt(folder, files_in(folder, self.keys))
                  for folder in folders}  # fmt: skip
        known = epoch_file.with_ends([start for start in starts.values() if start is not None])
        found = [self._epoch(self.directory / "epochs" / epoch_file.named(start), start) for start in known]
        if len({one.epoch for one in found}) != len(found):
            raise BadInput(f"archive {self.directory} holds an epoch twice, of two servers",
                           hint="move the folder of the wrong one away")  # fmt: skip
        return sorted(found, key=lambda one: one.epoch)

    def _epoch(self, directory: Path, start: EpochStart) -> EpochArchive:
        return EpochArchive(directory, start, self.keys, self.reserve_bytes)

    @property
    def position(self) -> Position | None:
        """Return the position after the newest epoch's last group, None when nothing was ever begun."""
        return self.epochs[max(self.epochs)].position if self.epochs else None

    @property
    def free_bytes(self) -> int:
        """Return how much room there is on its disk."""
        return durable.free_bytes(self.directory)

    @property
    def orphans(self) -> int:
        """Return how many tails were set aside."""
        return sum(1 for path in (self.directory / "orphans").iterdir() if not path.name.startswith("."))

    def seal(self, epoch: int) -> None:
        """Promise durably to acknowledge nothing of `epoch` or older. Safe to repeat."""
        with self._sealing:  # an older seal that ends later must not take the newer one back
            if epoch > self.sealed_epoch:
                durable.replace_file(self.directory / SEAL_FILE, json.dumps({"epoch": epoch}).encode() + b"\n")
                self.sealed_epoch = epoch

    def begin(self, entry: LineageEntry) -> EpochArchive:
        """Return the archive of an epoch, made when it is new. Raises Refused when it is of another server."""
        known = self.epochs.get(entry.epoch)
        if known is not None and known.start.rebuilt and known.start.server_id == entry.server_id:
            known.start = EpochStart(epoch=entry.epoch, server_id=entry.server_id, file=checked_file(entry.file),
                                     position=str(Position.parse(entry.position)), end=known.start.end)  # fmt: skip
            known.save()
        if known is not None:
            if (known.start.server_id, known.start.file) != (entry.server_id, entry.file):
                raise Refused(f"epoch {entry.epoch} is archived as {known.start.file} of server {known.start.server_id},"
                              f" ZooKeeper says {entry.file} of server {entry.server_id}",
                              hint="is this the archive of another cluster?")  # fmt: skip
            return known
        start = EpochStart(epoch=entry.epoch, server_id=entry.server_id, file=checked_file(entry.file),
                           position=str(Position.parse(entry.position)))  # fmt: skip
        directory = self.directory / "epochs" / epoch_file.named(start)
        durable.make_directory(directory)
        made = self._epoch(directory, start)
        made.save()
        made.load()  # files that are there already: `epoch.json` was lost, they were not
        with self._changing:
            self.epochs = dict(sorted({**self.epochs, entry.epoch: made}.items()))
        return made

    def forget(self, one: EpochArchive) -> None:
        """Know nothing of an epoch any more: nobody finds it from now on."""
        with self._changing:
            self.epochs = {number: other for number, other in self.epochs.items() if other is not one}

    def end(self, epoch: int, position: Position) -> None:
        """Record where an epoch ended, and set aside what stands behind it. Nobody may be writing to it."""
        one = self.epochs[epoch]
        if not position.covers(one.position):
            self._cut(one, position)
        if one.segments:
            last = one.segments[-1]
            # Of a group that is not whole here: whoever has it whole gives it again.
            last.known = cut_behind(last)
            last.closed = True
        if one.start.end != str(position):
            one.start = replace(one.start, end=str(position))
            one.save()

    def _cut(self, one: EpochArchive, position: Position) -> None:
        """Cut the epoch before its first group that is not part of `position`; last file first, so safe to repeat."""
        for segment in list(reversed(one.segments)):
            if position.covers(segment.position):
                return
            tracker, offset, reached = GroupTracker(segment.start), FIRST_OFFSET, segment.start
            if position.covers(segment.start):
                for event in segments.walk(segment, tracker, until=segment.boundary):
                    if not event.boundary:
                        continue
                    if not position.covers(tracker.position):
                        break
                    offset, reached = event.end, tracker.position
            self._set_aside(one, segment, offset, reached)

    def _set_aside(self, one: EpochArchive, segment: Segment, offset: int, position: Position) -> None:
        head = MAGIC
        if offset > FIRST_OFFSET:
            head += bytes(segments.head_of(segment, until=segment.size)[0])
        name = f"{one.directory.name}.{segment.file}.{offset}"
        stored.copy_tail(segment, offset, segment.size, StoredFile(self.directory / "orphans" / name, self.keys), head)
        if offset > FIRST_OFFSET:
            segment.boundary = offset
            segment.position, segment.next_file = position, None
            segment.index = None if segment.index is None else [mark for mark in segment.index if mark.offset <= offset]
            segment.known = cut_behind(segment)
        else:
            segment.boundary = segment.size = FIRST_OFFSET
            with segment.lock:
                segment.forget()
            one.segments.remove(segment)
            durable.remove(segment.path)


def is_next(file: str, after: str) -> bool:
    """Return whether a server writes the file `after` next behind `file`."""
    return file_number(after) == file_number(file) + 1


def files_in(directory: Path, keys: Keys) -> list[StoredFile]:
    """Return the binlog files of a folder in order."""
    found = [path for path in directory.iterdir() if FILE_NAME.fullmatch(path.name) and path.is_file()]
    return [StoredFile(path, keys) for path in sorted(found, key=lambda path: file_number(path.name))]


def _join(before: Segment, after: Segment) -> None:
    """Let a file that has no index end where the next one begins; what was read of it must agree."""
    if before.indexed or (before.index is None and before.damage is not None):
        return
    if not is_next(before.file, after.file):  # files are missing between: only its own events say where it ends
        before.position = segments.scan(before.stored, before.start).position
        return
    try:
        start = segments.head_of(after.stored, until=segments.HEAD_BYTES_MAX)[1]
    except (MalformedStream, OSError):
        return
    read = before.index is not None and before.damage is None
    if start is not None:
        if read and before.position != start:
            before.damage = f"it ends at {before.position}, the next file begins after {start}"
        before.position = start


def cut_behind(segment: Segment) -> Survey | None:
    """Cut what stands behind a segment's boundary, durably. Return where everything is on disk then, as far as known."""
    file = segment.stored
    if segment.size == segment.boundary and not _longer(segment):
        return segment.known
    with segment.lock:
        segment.forget()
        known = stored.cut(file, segment.boundary)
        segment.size = segment.boundary
        segment.sums = stored.sums_until(file, segment.sums, segment.boundary)
        segment.frames = known.map
    return known


def _longer(segment: Segment) -> bool:
    """Return whether the file on disk may hold more than is known of it."""
    known = segment.known
    size = segment.path.stat().st_size
    return size != segment.boundary if not segment.stored.framed else known is None or known.end != size


class EpochWriter:
    """Appends to one epoch: what a batch holds is durable when `write` returns. One at a time for an epoch."""

    def __init__(self, one: EpochArchive) -> None:
        self._epoch = one
        self._appender: Appender | None = None
        self._segment: Segment | None = None
        self._size = 0
        """The size of the file; the bytes behind the segment's boundary are of a group that is not whole."""
        self._look_at, self._unlooked_bytes = clock.now(), 0
        """When the room is looked at again, and what was written since it was."""

    def open(self) -> Resume:
        """Cut what is not whole, and return where to go on. Raises DiskFull."""
        self.close()
        self._require_room(RESERVE_MARGIN_BYTES)
        last = self._epoch.segments[-1] if self._epoch.segments else None
        if last is not None and last.boundary == FIRST_OFFSET:
            self._epoch.segments.pop()
            durable.remove(last.path)
            last = None if not self._epoch.segments else self._epoch.segments[-1]
        if last is not None:
            last.closed = False
        resume = self._epoch.resume()
        if last is not None:
            with segments.replacing(last):
                appender = stored.grow(last.stored, last.boundary, last.sums, last.known)
                last.size = last.boundary
                self._attach(last, appender, last.boundary)
        return resume

    def close(self) -> None:
        """Let the file go; everything written is durable already."""
        if self._appender is not None and self._segment is not None:
            self._segment.known = self._appender.until(self._segment.boundary)
            self._appender.close()
        self._appender = self._segment = None

    def write(self, batch: Batch) -> None:
        """Append and sync. Raises DiskFull when the disk is or is about to be full, Refused when a write fails."""
        if not batch.chunks:
            return
        self._unlooked_bytes += sum(chunk.size for chunk in batch.chunks)
        if self._unlooked_bytes >= ROOM_LOOK_BYTES or clock.now() >= self._look_at:
            self._require_room()
        try:
            for chunk in batch.chunks:
                if self._segment is None or chunk.file != self._segment.file:
                    self._begin_file(chunk)
                self._append(chunk)
                self._sync(chunk)
        except OSError as error:
            raise _cannot_write(error, self._epoch.directory) from error

    def require_archived(self, reply: Reply) -> None:
        """Raise Bug for an acknowledgement of what is not here: nobody is ever told that it is."""
        segment = self._segment
        if segment is not None and (file_number(reply.file), reply.offset) <= (file_number(segment.file), self._size):
            return
        here = "nothing" if segment is None else f"{segment.file}:{self._size}"
        raise Bug(f"{reply.file}:{reply.offset} would be acknowledged, the archive ends at {here}")

    def _require_room(self, margin: int = 0) -> None:
        free, reserve = durable.free_bytes(self._epoch.directory), self._epoch.reserve_bytes
        if free < reserve + margin:
            raise DiskFull(f"only {free // MIB} MiB are free in {self._epoch.directory}, the reserve is {reserve // MIB} MiB",
                           hint="make room: nothing is received or acknowledged until then")  # fmt: skip
        self._look_at, self._unlooked_bytes = clock.after(clock.now(), ROOM_LOOK_MS), 0

    def _begin_file(self, chunk: Chunk) -> None:
        if chunk.offset != FIRST_OFFSET:
            raise Bug(f"{chunk.file} would begin at {chunk.offset}")
        file = StoredFile(self._epoch.directory / chunk.file, self._epoch.keys)
        before = self._segment
        if before is not None and file_number(chunk.file) <= file_number(before.file):
            raise Refused(f"the source goes back from {before.file} to {chunk.file}",
                          hint="was RESET MASTER run on the primary?")  # fmt: skip
        self.close()
        appender = stored.begin(file)
        if before is not None:
            before.closed = True
            if before.sums is not None:
                before.sums.end()
        segment = Segment(file.path, chunk.start, position=chunk.start, keys=file.keys)
        self._attach(segment, appender, FIRST_OFFSET)
        self._epoch.segments.append(segment)

    def _attach(self, segment: Segment, appender: Appender, size: int) -> None:
        self._segment, self._appender, self._size = segment, appender, size
        segment.sums, segment.frames = appender.sums, appender.map

    def _append(self, chunk: Chunk) -> None:
        appender = self._appender
        if appender is None or chunk.offset != self._size:
            raise Bug(f"{chunk.file}: {chunk.size} bytes for {chunk.offset} come at {self._size}")
        data = b"".join(chunk.parts)
        appender.append(data, (*(mark.offset for mark in chunk.marks), chunk.boundary))
        self._size += len(data)

    def _sync(self, chunk: Chunk) -> None:
        """Only now do readers see it."""
        segment, appender = self._segment, self._appender
        assert segment is not None, "write() attached it"
        assert appender is not None, "write() attached it"
        appender.sync()
        if segment.boundary <= FIRST_OFFSET:
            segment.start = chunk.start  # of the file; a chunk that goes on after a resume begins further on
        segment.position = chunk.position
        if segment.index is not None:
            segment.index.extend(chunk.marks)
        segment.first_time, segment.time = segment.first_time or chunk.first_time, max(segment.time, chunk.time)
        segment.next_file = chunk.next_file
        segment.boundary = max(chunk.boundary, FIRST_OFFSET)
        segment.size = self._size


def _cannot_write(error: OSError, directory: Path) -> Refused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of {directory} is full", hint="make room: nothing is acknowledged until then")
    return Refused(
        f"{directory} cannot be written: {error.strerror}", hint="look at the disk and its cables, and at dmesg"
    )


def _read_seal(directory: Path) -> int:
    path = directory / SEAL_FILE
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_bytes())["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged: {error}", hint='write the epoch it sealed, as {"epoch": N}') from error
