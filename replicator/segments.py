"""One file of the archive: exactly the bytes of one binlog file of one primary, as far as we have them.

What a segment is known to be lies in memory and is found again by reading it: `scan` walks its events, checks them,
and says where the last whole group ends. A segment whose Gtid_list is not there yet counts as empty.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import MalformedStream
from cluster.position import Position
from replicator.events import FIRST_OFFSET, GroupTracker, Kind, position_of_list, require_known, rotate_target
from replicator.framing import CRC_BYTES, EVENT_BYTES_MAX, HEADER, HEADER_BYTES, MAGIC, MIB, EventHeader, checked_event
from replicator.receiving import INDEX_EVERY_BYTES, U32_MASK

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
    index: list[tuple[int, Position]] | None = field(default_factory=list)
    """Group boundaries, about every INDEX_EVERY_BYTES, and the position there. None: not read yet."""

    @property
    def file(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class Walked:
    """One event met by `walk`: where it ends, and whether that is a boundary."""

    header: EventHeader
    offset: int
    end: int
    boundary: bool


def walk(
    path: Path, tracker: GroupTracker, *, begin: int = FIRST_OFFSET, until: int, check: bool = False
) -> Iterator[Walked]:
    """Yield the events of a file from the boundary `begin` to `until`; the tracker follows them.

    Ends before an event that is cut off. Raises MalformedStream, with `check` also for a wrong checksum.
    """
    for header, offset, event in events_of(path, begin=begin, until=until):
        if check:
            checked_event(event)
        require_known(header)
        boundary = tracker.follow(header, event)
        yield Walked(header, offset, offset + header.size, boundary)


def events_of(path: Path, *, begin: int = FIRST_OFFSET, until: int) -> Iterator[tuple[EventHeader, int, memoryview]]:
    """Yield header, offset and bytes of every whole event between two offsets, reading in large pieces."""
    wanted, offset = SCAN_BYTES, begin
    handle = os.open(path, os.O_RDONLY)
    try:
        while until - offset >= HEADER_BYTES:
            data = memoryview(os.pread(handle, min(wanted, until - offset), offset))
            at, have = 0, len(data)
            wanted = SCAN_BYTES
            while have - at >= HEADER_BYTES:
                header = EventHeader._make(HEADER.unpack_from(data, at))
                if not HEADER_BYTES <= header.size <= EVENT_BYTES_MAX:
                    raise MalformedStream(f"{path.name}:{offset + at}: an event of {header.size} bytes")
                if have - at < header.size:
                    wanted = max(SCAN_BYTES, header.size)
                    break
                yield header, offset + at, data[at : at + header.size]
                at += header.size
            if at == 0 and have < wanted:
                return
            offset += at
    finally:
        os.close(handle)


def head_of(path: Path, *, until: int) -> tuple[memoryview, Position | None]:
    """Return the format description and the position a file begins at, None when its Gtid_list is not there yet."""
    description = memoryview(b"")
    for header, _, event in events_of(path, until=min(until, HEAD_BYTES_MAX)):
        if header.kind == Kind.FORMAT_DESCRIPTION:
            description = memoryview(bytes(event))
        elif header.kind == Kind.GTID_LIST:
            return description, position_of_list(event)
        else:
            break
    return description, None


def scan(path: Path, fallback: Position) -> Segment:
    """Read a whole file, check every event, and return what it holds; `fallback` is the position when it has no list.

    A torn or damaged tail is not an error: the boundary is before it, and the bytes behind are to be fetched again.
    """
    size = path.stat().st_size
    segment = Segment(path, fallback, position=fallback)
    if size < FIRST_OFFSET or not _has_magic(path):
        return segment
    start = head_of(path, until=size)[1]
    if start is None:
        return segment
    segment.start, tracker, marked = start, GroupTracker(start), FIRST_OFFSET
    segment.index = []
    try:
        for event in walk(path, tracker, until=size, check=True):
            if not event.boundary or event.header.kind == Kind.FORMAT_DESCRIPTION:
                continue
            segment.boundary, segment.position = event.end, tracker.position
            if event.header.kind == Kind.ROTATE:
                segment.next_file = next_file_of(path, event)
            if event.end - marked >= INDEX_EVERY_BYTES:
                marked = event.end
                segment.index.append((event.end, segment.position))
    except MalformedStream:
        pass  # from here on the bytes are not what the primary sent: the boundary is before them
    segment.size = segment.boundary
    return segment


def glance(path: Path, fallback: Position) -> Segment:
    """Return a file that another follows as a segment: only its ends are read when they are in order."""
    size = path.stat().st_size
    if size > FIRST_OFFSET and _has_magic(path) and ends_closed(path):
        start = head_of(path, until=size)[1]
        if start is not None:
            return Segment(path, start, boundary=size, position=start, size=size, closed=True, index=None)
    segment = scan(path, fallback)
    segment.size, segment.closed = size, True
    return segment


def next_file_of(path: Path, rotate: Walked) -> str:
    """Return the file a Rotate event of `path` names."""
    with path.open("rb") as file:
        file.seek(rotate.offset)
        return rotate_target(memoryview(file.read(rotate.header.size)))[0]


def _has_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def ends_closed(path: Path) -> bool:
    """Return whether a file ends with a Rotate or a Stop event, as its primary ends it in order."""
    size = path.stat().st_size
    rotate_bytes = HEADER_BYTES + 8 + len(path.name) + CRC_BYTES
    with path.open("rb") as file:
        for kind, length in ((Kind.STOP, HEADER_BYTES + CRC_BYTES), (Kind.ROTATE, rotate_bytes)):
            if size - length < FIRST_OFFSET:
                continue
            file.seek(size - length)
            header = EventHeader._make(HEADER.unpack(file.read(HEADER_BYTES)))
            if header.kind == kind and header.size == length and header.end_position == size & U32_MASK:
                return True
    return False
