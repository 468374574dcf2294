"""Framing without IO: bytes in, packets and checked events out, or `NEED_DATA`.

No length is believed before it is bounded, no event before its own length and checksum agree with what came.
Source of the formats: MariaDB Knowledge Base, "Clientserver Protocol" and "Replication Protocol".
"""

from collections.abc import Iterator
from enum import Enum
from struct import Struct
from typing import Literal, NamedTuple
from zlib import crc32

from cluster.errors import MalformedStream

KIB, MIB, GIB = 2**10, 2**20, 2**30
PACKET_HEADER_BYTES = 4
PART_BYTES_MAX = 0xFFFFFF
"""A packet part of exactly this size is followed by another, possibly empty, part."""
EVENT_BYTES_MAX = GIB + 64 * KIB
"""MariaDB's largest max_allowed_packet, and room for headers."""
BUFFER_BYTES = MIB
MAGIC = b"\xfebin"
HEADER = Struct("<IBIIIH")
HEADER_BYTES = HEADER.size
EVENT_SIZE = Struct("<9xI")
"""Of a header the size alone, for a loop that is hot."""
CRC_BYTES = 4
EVENT_BYTES_MIN = HEADER_BYTES + CRC_BYTES
CRC_RESIDUE = 0x2144DF1C
"""The CRC32 of anything that ends with its own CRC32, lowest byte first."""
_U32 = Struct("<I")


class Need(Enum):
    """What a framer wants before it can say more."""

    DATA = "data"


NEED_DATA: Literal[Need.DATA] = Need.DATA


class EventHeader(NamedTuple):
    """The 19 bytes every binlog event begins with. `end_position` is 32 bits wide and wraps (TRAPS.md 3)."""

    timestamp: int
    kind: int
    server_id: int
    size: int
    end_position: int
    flags: int


class PacketFramer:
    """Cuts a byte stream into packets of the client-server protocol, joining those that were split at 16 MiB.

    A packet is a view that is valid until the next `space` or `feed`.
    """

    def __init__(self, *, packet_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._packet_bytes_max = packet_bytes_max
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0

    @property
    def pending_bytes(self) -> int:
        """Return how many bytes wait for the rest of their packet, or to be asked for."""
        return self._end - self._begin

    def space(self) -> memoryview:
        """Return room to receive into; say with `filled` how much of it was used."""
        if self._begin == self._end and len(self._buffer) == BUFFER_BYTES:
            self._begin = self._end = 0
        elif len(self._buffer) - self._end < BUFFER_BYTES // 2:
            self._make_room()
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """Note that the first `count` bytes of the last `space` are received."""
        self._end += count

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        while data:
            room = self.space()
            taken = min(len(room), len(data))
            room[:taken] = data[:taken]
            self.filled(taken)
            data = data[taken:]

    def next_packet(self) -> memoryview | Literal[Need.DATA]:
        """Return the payload of the next whole packet. Raises MalformedStream when it says to be too long."""
        begin, buffered = self._begin, self._end - self._begin
        if buffered < PACKET_HEADER_BYTES:
            return NEED_DATA
        size = _U32.unpack_from(self._buffer, begin)[0] & PART_BYTES_MAX
        if size == PART_BYTES_MAX:
            return self._split_packet()
        if size > self._packet_bytes_max:
            raise MalformedStream(f"a packet of {size} bytes, at most {self._packet_bytes_max} are taken")
        if buffered < PACKET_HEADER_BYTES + size:
            return NEED_DATA
        self._begin = begin + PACKET_HEADER_BYTES + size
        return self._view[begin + PACKET_HEADER_BYTES : self._begin]

    @property
    def window(self) -> tuple[bytearray, memoryview, int, int]:
        """Return the buffer, a view of it, and where in it the bytes that wait begin and end: for a loop that is hot."""
        return self._buffer, self._view, self._begin, self._end

    def taken(self, begin: int) -> None:
        """Note that whole packets up to `begin` were taken from the `window`."""
        self._begin = begin

    def _split_packet(self) -> memoryview | Literal[Need.DATA]:
        at, total, parts = self._begin, 0, list[memoryview]()
        size = PART_BYTES_MAX
        while size == PART_BYTES_MAX:
            if self._end - at < PACKET_HEADER_BYTES:
                return NEED_DATA
            size = _U32.unpack_from(self._buffer, at)[0] & PART_BYTES_MAX
            total += size
            if total > self._packet_bytes_max:
                raise MalformedStream(f"a split packet of {total} bytes, at most {self._packet_bytes_max} are taken")
            at += PACKET_HEADER_BYTES
            if self._end - at < size:
                return NEED_DATA
            parts.append(self._view[at : at + size])
            at += size
        self._begin = at
        return memoryview(b"".join(parts))

    def _make_room(self) -> None:
        """Move what is pending to the front of a buffer that is at least twice its size."""
        pending = self._view[self._begin : self._end]
        capacity = max(BUFFER_BYTES, 2 * len(pending))
        # A new buffer, because somebody may still hold a view of the old one.
        self._buffer = bytearray(capacity)
        self._view = memoryview(self._buffer)
        self._view[: len(pending)] = pending
        self._begin, self._end = 0, len(pending)


def checked_event(event: memoryview) -> EventHeader:
    """Return the header of one whole event. Raises MalformedStream unless its length and its CRC32 are right."""
    if len(event) < EVENT_BYTES_MIN:
        raise MalformedStream(f"an event of {len(event)} bytes, the shortest has {EVENT_BYTES_MIN}")
    header = EventHeader._make(HEADER.unpack_from(event))
    if header.size != len(event):
        raise MalformedStream(f"an event of {len(event)} bytes says it has {header.size}")
    if crc32(event) != CRC_RESIDUE:
        raise MalformedStream(f"wrong checksum: event of type {header.kind}, {header.size} bytes")
    return header


def whole_events(buffer: memoryview, *, event_bytes_max: int = EVENT_BYTES_MAX) -> Iterator[tuple[int, EventHeader]]:
    """Yield offset and header of every event that lies whole in `buffer`, which begins with an event.

    Lengths are bounded, checksums are not looked at. Raises MalformedStream.
    """
    offset, end, unpack = 0, len(buffer), HEADER.unpack_from
    while end - offset >= HEADER_BYTES:
        header = EventHeader._make(unpack(buffer, offset))
        if not EVENT_BYTES_MIN <= header.size <= event_bytes_max:
            raise MalformedStream(f"an event says it has {header.size} bytes")
        if end - offset < header.size:
            return
        yield offset, header
        offset += header.size


def packet(payload: bytes, sequence: int) -> bytes:
    """Return `payload` as packets, split where it must be."""
    parts = []
    for begin in range(0, len(payload) + 1, PART_BYTES_MAX):
        part = payload[begin : begin + PART_BYTES_MAX]
        parts.append(_U32.pack(len(part))[:3] + bytes((sequence & 0xFF,)) + part)
        sequence += 1
    return b"".join(parts)


def an_event(
    kind: int,
    body: bytes,
    *,
    server_id: int,
    end_position: int = 0,
    flags: int = 0,
    timestamp: int = 0,
    checksum: bool = True,
) -> bytes:
    """Return an event of our own making, checksum included; without a timestamp unless one is given."""
    size = HEADER_BYTES + len(body) + (CRC_BYTES if checksum else 0)
    data = HEADER.pack(timestamp, kind, server_id, size, end_position & 0xFFFFFFFF, flags) + body
    return data + _U32.pack(crc32(data)) if checksum else data
