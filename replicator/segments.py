"""One file of the archive: exactly the bytes of one binlog file of one primary, as far as we have them.

What a segment is known to be lies in memory and is found again by reading it: `scan` walks its events, checks them,
and says where the last whole group ends. A segment whose Gtid_list is not there yet counts as empty.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from cluster.binlog.events import (
    FIRST_OFFSET,
    OUTSIDE_GROUPS,
    GroupTracker,
    Kind,
    Mark,
    position_of_list,
    require_known,
    rotate_target,
)
from cluster.binlog.framing import (
    CRC_BYTES,
    EVENT_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MIB,
    EventHeader,
    checked_event,
)
from cluster.errors import MalformedStream, Refused
from cluster.position import Position
from replicator import indexes
from replicator.frames import Damaged
from replicator.keys import NO_KEYS, Keys
from replicator.receiving import INDEX_EVERY_BYTES, U32_MASK
from replicator.stored import FrameMap, Readable, Reader, StoredFile, Sums, Survey

log = structlog.get_logger()
SCAN_BYTES = 4 * MIB
HEAD_BYTES_MAX = 64 * MIB
"""A Gtid_list names every server that ever wrote; this is far above any real one."""


@dataclass(slots=True)
class Segment:
    """A file and what is known of it. Only its writer changes it; readers may read up to `boundary` at any time."""

    path: Path
    start: Position
    boundary: int = FIRST_OFFSET
    """Everything before it is durable and whole groups."""
    position: Position = field(default_factory=Position)
    """The position at the boundary."""
    size: int = FIRST_OFFSET
    """Everything before it is durable."""
    next_file: str | None = None
    closed: bool = False
    """Another file of the same epoch follows, or the epoch has ended: nothing will be added."""
    index: list[Mark] | None = field(default_factory=list)
    """Group boundaries, about every INDEX_EVERY_BYTES. None: not read yet."""
    keys: Keys = NO_KEYS
    first_time: int = 0
    """When the first group was committed; 0: not known."""
    time: int = 0
    """When the latest group was committed."""
    indexed: bool = False
    """The index on disk is of this very content."""
    removed: bool = False
    """It is, or is about to be, no longer on disk. Who has it open reads on."""
    generation: int = 0
    """Grows when bytes were cut or the file was replaced by another: who has it open opens it anew."""
    sums: Sums | None = None
    known: Survey | None = None
    """Where everything is on disk, up to the boundary; None: not known, or being written."""
    frames: FrameMap | None = None
    damage: str | None = None
    """What is wrong with it; what is torn at its end is not damaged. What holds of it is served up to there."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held while the file is replaced, and while it is opened."""

    @property
    def file(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def identity(self) -> str:
        return self.stored.identity

    @property
    def stored(self) -> StoredFile:
        """Return the file on disk, with what opens it."""
        return StoredFile(self.path, self.keys)

    def open(self) -> Reader:
        """Open it for reading. Raises OSError, Damaged, or BadInput for a key that we have not."""
        with self.lock:
            try:
                return self.stored.open(sums=self.sums, known=self.frames)
            except FileNotFoundError:
                if self.damage is None:
                    raise
                raise Damaged(self.identity, 0, self.damage) from None

    def forget(self) -> None:
        """Forget what was known of the bytes on disk: they change. Readers open the file anew."""
        self.generation += 1
        self.known = self.frames = None
        self.indexed = False
        indexes.remove(self.stored)  # also one that is not used: it may be of what the file was at an earlier start


def found_damaged(segment: Segment, generation: int, why: str) -> bool:
    """Mark a closed file, unless it changed since `generation`; return whether that is news."""
    with segment.lock:
        if segment.generation != generation or not segment.closed:
            return False
        known, segment.damage = segment.damage, why
    if known is None:
        log.error("archive.damaged", file=segment.identity, error=why)
    return known is None


@contextmanager
def replacing(segment: Segment) -> Iterator[None]:
    """Change what a segment's file holds on disk: nobody opens it meanwhile, and who has it open opens it anew.

    Raises Refused when it was removed: nothing may take its place.
    """
    with segment.lock:
        if segment.removed:
            raise Refused(f"{segment.identity} was removed")
        known = segment.known
        segment.forget()
        segment.known = known
        yield


@dataclass(frozen=True, slots=True)
class Walked:
    """One event met by `walk`: where it ends, and whether that is a boundary."""

    header: EventHeader
    offset: int
    end: int
    boundary: bool


def walk(
    where: Path | Readable, tracker: GroupTracker, *, begin: int = FIRST_OFFSET, until: int, check: bool = False
) -> Iterator[Walked]:
    """Yield the events of a file from the boundary `begin` to `until`; the tracker follows them.

    Ends before an event that is cut off. Raises MalformedStream, with `check` also for a wrong checksum.
    """
    for header, offset, event in events_of(where, begin=begin, until=until):
        if check:
            checked_event(event)
        require_known(header)
        boundary = tracker.follow(header, event)
        yield Walked(header, offset, offset + header.size, boundary)


def events_of(
    where: Path | Readable, *, begin: int = FIRST_OFFSET, until: int
) -> Iterator[tuple[EventHeader, int, memoryview]]:
    """Yield header, offset and bytes of every whole event between two offsets, reading in large pieces.

    Give a segment or a `StoredFile`; a bare path is enough for what is not encrypted. Raises MalformedStream.
    """
    wanted, offset = SCAN_BYTES, begin
    source = StoredFile(where) if isinstance(where, Path) else where
    with closing(source.open()) as reader:
        while until - offset >= HEADER_BYTES:
            data = memoryview(reader.read(offset, min(wanted, until - offset)))
            at, have = 0, len(data)
            wanted = SCAN_BYTES
            while have - at >= HEADER_BYTES:
                header = EventHeader._make(HEADER.unpack_from(data, at))
                if not HEADER_BYTES <= header.size <= EVENT_BYTES_MAX:
                    raise Damaged(source.identity, offset + at, f"an event of {header.size} bytes")
                if have - at < header.size:
                    wanted = max(SCAN_BYTES, header.size)
                    break
                yield header, offset + at, data[at : at + header.size]
                at += header.size
            if at == 0 and have < wanted:
                return
            offset += at


def head_of(where: Path | Readable, *, until: int) -> tuple[memoryview, Position | None]:
    """Return the format description and the position a file begins at, None when its Gtid_list is not there yet."""
    description = memoryview(b"")
    for header, _, event in events_of(where, until=min(until, HEAD_BYTES_MAX)):
        if header.kind in (Kind.FORMAT_DESCRIPTION, Kind.GTID_LIST):
            checked_event(event)
        if header.kind == Kind.FORMAT_DESCRIPTION:
            description = memoryview(bytes(event))
        elif header.kind == Kind.GTID_LIST:
            return description, position_of_list(event)
        else:
            break
    return description, None


def scan(file: StoredFile, fallback: Position) -> Segment:
    """Read a whole file, check every event, and return what it holds; `fallback` is the position when it has no list.

    A torn or damaged tail is not an error: the boundary is before it, and the bytes behind are to be fetched again.
    Frames cannot be cut in their midst: of them a boundary is where a group and a frame end together, as after every batch.
    """
    segment = Segment(file.path, fallback, position=fallback, keys=file.keys)
    try:
        survey = file.survey()
        if survey.size < FIRST_OFFSET or not _has_magic(file):
            return segment
        segment.known, segment.frames = survey, survey.map
        start = head_of(segment, until=survey.size)[1]
        if start is not None:
            segment.start = start
            _scan_events(segment, survey)
        segment.damage = segment.damage or survey.damage
    except MalformedStream as error:
        # From here on the bytes are not what the primary sent: the boundary is before them.
        segment.damage = error.message
    segment.size = segment.boundary
    if segment.boundary > FIRST_OFFSET and not file.framed:
        segment.sums = _summed(file, segment.boundary)
    return segment


def _scan_events(segment: Segment, survey: Survey) -> None:
    tracker, marker = GroupTracker(segment.start), Marker()
    segment.index = marker.marks
    for event in walk(segment, tracker, until=survey.size, check=True):
        if not event.boundary or event.header.kind == Kind.FORMAT_DESCRIPTION:
            continue
        marker.pass_boundary(event, tracker)
        if not survey.ends_frame(event.end):
            continue
        segment.boundary, segment.position = event.end, tracker.position
        segment.first_time, segment.time = marker.first_time, marker.time
        if event.header.kind == Kind.ROTATE:
            segment.next_file = next_file_of(segment, event)


class Marker:
    """Makes the sparse index of a file from its boundaries in order."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.first_time = self.time = 0
        self._marked = FIRST_OFFSET

    def pass_boundary(self, event: Walked, tracker: GroupTracker) -> None:
        """Take the next event that ends at a boundary."""
        if event.header.kind not in OUTSIDE_GROUPS:
            self.first_time = self.first_time or event.header.timestamp
            self.time = max(self.time, event.header.timestamp)
        if event.end - self._marked >= INDEX_EVERY_BYTES:
            self._marked = event.end
            self.marks.append(Mark(event.end, tracker.position, self.time))


def marks_of(segment: Segment) -> list[Mark]:
    """Read a segment and return its sparse index. Raises MalformedStream."""
    tracker, marker = GroupTracker(segment.start), Marker()
    for event in walk(segment, tracker, until=segment.boundary):
        if event.boundary:
            marker.pass_boundary(event, tracker)
    return marker.marks


def _summed(file: StoredFile, size: int) -> Sums:
    """Return the sums of a plain file's first bytes."""
    sums = Sums()
    with closing(file.open()) as reader:
        for offset in range(0, size, SCAN_BYTES):
            sums.add(reader.read(offset, min(SCAN_BYTES, size - offset)))
    return sums


def glance(file: StoredFile, fallback: Position) -> Segment:
    """Return a closed file as a segment: from its index, or from its ends when they are in order, or by reading it."""
    segment = indexed(file) or short(file)
    if segment is not None:
        return segment
    try:
        return _judged(file, fallback)
    except MalformedStream as error:
        made = unknown(file, fallback, error.message)
        made.size = made.boundary = max(made.size, file.path.stat().st_size)
        return made


def unknown(file: StoredFile, start: Position, damage: str) -> Segment:
    """Return a closed file of which nothing is known but that it is damaged, or that it was here."""
    size = FIRST_OFFSET + 1
    return Segment(file.path, start, boundary=size, position=start, size=size, closed=True, index=None, keys=file.keys,
                   damage=damage)  # fmt: skip


def short(file: StoredFile) -> Segment | None:
    """Return a file of which its index, which holds, says that it has another size: then it is the file that is damaged."""
    segment = described(file)
    try:
        size = _size_of(file)
    except (MalformedStream, OSError):
        size = 0
    if segment is None or segment.size == size:
        return None
    segment.damage = f"it holds {size} bytes, its index says {segment.size}"
    return segment


def _judged(file: StoredFile, fallback: Position) -> Segment:
    size = _size_of(file)
    if size > FIRST_OFFSET and _has_magic(file) and ends_closed(file, size):
        start = head_of(file, until=size)[1]
        if start is not None:
            return Segment(
                file.path, start, boundary=size, position=start, size=size, closed=True, index=None, keys=file.keys
            )
    segment = scan(file, fallback)
    segment.size, segment.closed = size, True
    if segment.damage is not None:
        segment.boundary = size
    return segment


def indexed(file: StoredFile) -> Segment | None:
    """Return a closed file as a segment without reading it, None when it has no index that holds."""
    index, segment = indexes.head(file), described(file)
    if index is None or segment is None:
        return None
    sizes = (index.size,) if segment.sums is not None else (index.stored_size, index.packed_size)
    if file.path.stat().st_size not in sizes:
        return None
    segment.indexed = True
    return segment


def described(file: StoredFile) -> Segment | None:
    """Return a closed file as its index describes it, whatever lies on disk; None when it has no index that holds."""
    index, plain = indexes.head(file), not (file.path.exists() and file.framed)
    if index is None:
        return None
    return Segment(
        file.path, Position.parse(index.start), boundary=index.size, position=Position.parse(index.position),
        size=index.size, next_file=index.next_file, closed=True, index=None, keys=file.keys,
        first_time=index.first_time or 0, time=index.last_time or 0,
        sums=Sums(indexes.sums_of(index)) if plain else None,
    )  # fmt: skip


def next_file_of(where: Readable, rotate: Walked) -> str:
    """Return the file a Rotate event names."""
    with closing(where.open()) as reader:
        return rotate_target(memoryview(reader.read(rotate.offset, rotate.header.size)))[0]


def _size_of(file: StoredFile) -> int:
    return file.survey().size if file.framed else file.path.stat().st_size


def _has_magic(where: Readable) -> bool:
    with closing(where.open()) as reader:
        return reader.read(0, len(MAGIC)) == MAGIC


def ends_closed(where: Readable, size: int) -> bool:
    """Return whether a file ends with a Rotate or a Stop event, as its primary ends it in order."""
    rotate_bytes = HEADER_BYTES + 8 + len(where.name) + CRC_BYTES
    with closing(where.open()) as reader:
        for kind, length in ((Kind.STOP, HEADER_BYTES + CRC_BYTES), (Kind.ROTATE, rotate_bytes)):
            if size - length < FIRST_OFFSET:
                continue
            header = EventHeader._make(HEADER.unpack(reader.read(size - length, HEADER_BYTES)))
            if header.kind == kind and header.size == length and header.end_position == size & U32_MASK:
                return True
    return False
