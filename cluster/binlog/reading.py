"""The events of a binlog file as it lies on the server's own disk. Reads in large pieces; a torn tail ends it, quietly."""

from collections.abc import Iterator
from pathlib import Path

from cluster.binlog.events import FIRST_OFFSET, OUTSIDE_GROUPS, Kind, position_of_list, require_crc32
from cluster.binlog.framing import HEADER, HEADER_BYTES, MAGIC, MIB, EventHeader, checked_event, whole_events
from cluster.errors import MalformedStream
from cluster.position import Position

READ_BYTES = 4 * MIB
START_ENCRYPTION = 164
FLAG_IN_USE = 0x01
"""Of the format description of a file that is being written, or was when its server died; its CRC32 is that without."""
_FLAGS_AT = HEADER_BYTES - 2
HEAD_EVENTS_MAX = 8


def events_of(path: Path, *, until: int) -> Iterator[tuple[EventHeader, int, memoryview]]:
    """Yield header, offset and bytes of every whole event below `until`, each checked. Raises MalformedStream."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise MalformedStream(f"{path.name} does not begin as a binlog file does")
        offset, wanted = FIRST_OFFSET, READ_BYTES
        while until - offset >= HEADER_BYTES:
            file.seek(offset)
            data = memoryview(file.read(min(wanted, until - offset)))
            end = 0
            for begin, header in whole_events(data):
                end = begin + header.size
                yield checked(path, offset + begin, data[begin:end])
            if not end and len(data) < wanted:
                return
            wanted = READ_BYTES if end else max(READ_BYTES, HEADER.unpack_from(data)[3])
            offset += end


def checked(path: Path, offset: int, event: memoryview) -> tuple[EventHeader, int, memoryview]:
    """Return an event with its header. Raises MalformedStream for a wrong checksum, or what cannot be read at all."""
    header = EventHeader._make(HEADER.unpack_from(event))
    if header.kind == START_ENCRYPTION:
        raise MalformedStream(f"{path.name} is encrypted", hint="unset encrypt_binlog")
    if header.kind == Kind.FORMAT_DESCRIPTION:
        closed = bytearray(event)
        closed[_FLAGS_AT] &= ~FLAG_IN_USE
        event = memoryview(bytes(closed))
        require_crc32(event)
    try:
        return checked_event(event), offset, event
    except MalformedStream as error:
        raise MalformedStream(f"{path.name} at offset {offset}: {error.message}") from None


def head_of(path: Path, *, until: int) -> Position:
    """Return the position a file begins at. Raises MalformedStream when it says none."""
    for number, (header, _, event) in enumerate(events_of(path, until=until)):
        if header.kind == Kind.GTID_LIST:
            return position_of_list(event)
        if header.kind not in OUTSIDE_GROUPS or number >= HEAD_EVENTS_MAX:
            break
    raise MalformedStream(f"{path.name} does not say at which position it begins")
