"""What the packets of a binlog stream become: chunks of bytes to append, and at most one acknowledgement. No IO.

Bytes are counted here, the 32-bit end position of an event is only compared. Artificial events (flag 0x20, heartbeats,
a format description without a position) steer the stream and are never archived (TRAPS.md 2, 3).
"""

from dataclasses import dataclass, field
from struct import Struct
from zlib import crc32

from cluster.binlog.events import (
    FIRST_OFFSET,
    FLAG_ARTIFICIAL,
    GTID_BYTES_MIN,
    GTID_FLAGS_AT,
    GTID_STANDALONE,
    OUTSIDE_GROUPS,
    ROWS,
    GroupTracker,
    Kind,
    Mark,
    position_of_list,
    require_crc32,
    require_known,
    rotate_target,
)
from cluster.binlog.framing import (
    CRC_RESIDUE,
    HEADER_BYTES,
    PACKET_HEADER_BYTES,
    PART_BYTES_MAX,
    EventHeader,
    PacketFramer,
    checked_event,
)
from cluster.errors import Diverged, MalformedStream, OscarHaError
from cluster.position import Position
from replicator.remedy import error_for

PACKET_OK, PACKET_EOF, PACKET_ERROR = 0x00, 0xFE, 0xFF
EOF_BYTES_MAX = 8
SEMI_SYNC_MARK = 0xEF
INDEX_EVERY_BYTES = 256 * 1024
U32_MASK = 0xFFFFFFFF
_ERROR = Struct("<BH")
_AHEAD = {1: Struct("<I1sIBIIIH"), 3: Struct("<I3sIBIIIH")}
"""All that stands before an event's body, by the size of its lead: length and number of the packet, lead, header."""
_QUIET = {1: b"\0", 3: b"\0\xef\0"}
"""The lead of an event that asks for no reply."""
_ASKING = {1: b"", 3: b"\0\xef\1"}
"""The lead of one that does: the end of a transaction for which somebody waits."""
_GTID, _XID = int(Kind.GTID), int(Kind.XID)


@dataclass(slots=True)
class Chunk:
    """Consecutive events of one file, to be written at `offset`; what the file is known to be afterwards."""

    file: str
    offset: int
    start: Position
    """The position before the file's first event, as its Gtid_list says."""
    parts: list[memoryview] = field(default_factory=list)
    size: int = 0
    boundary: int = 0
    """The last group boundary in the file; 0 while it has none, so that it is begun again."""
    position: Position = field(default_factory=Position)
    """The position at the boundary."""
    marks: list[Mark] = field(default_factory=list)
    """New entries of the sparse index."""
    first_time: int = 0
    """When the file's first group was committed, 0 while that is not known."""
    time: int = 0
    """When the latest group of the file was committed, as far as this stream has seen it."""
    next_file: str | None = None
    events: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An acknowledgement that the primary asked for."""

    file: str
    offset: int
    position: Position


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything received together."""

    chunks: tuple[Chunk, ...]
    reply: Reply | None


class StreamReader:
    """Follows one stream that begins at `file` and `offset`, where the position is `position`.

    With `dropped_until` the events before that offset come again and are dropped: a dump command cannot name an
    offset above 4 GiB, so such a file is read from its beginning.
    """

    def __init__(self, file: str, offset: int, position: Position, *, semi_sync: bool, dropped_until: int = 0) -> None:
        self._tracker = GroupTracker(position)
        self._file, self._offset = file, offset
        self._dropped_until = dropped_until
        self._expected, self._again = position, GroupTracker(Position())
        self._lead = 3 if semi_sync else 1
        self._semi_sync = semi_sync
        self._confirmed = False
        """The source has said that it begins where we asked."""
        self._start = position
        self._listed = offset > FIRST_OFFSET or dropped_until > 0
        """The file's Gtid_list was seen."""
        self._boundary = offset if self._listed else 0
        self._marked = offset
        self._first_time = self._time = 0
        self._chunks: list[Chunk] = []
        self._reply: Reply | None = None
        self.ended = False
        self.batch_bytes = 0

    def accept(self, packet: memoryview) -> None:
        """Take the next packet. Raises what the source says is wrong, or MalformedStream."""
        if len(packet) == 0:
            raise MalformedStream("an empty packet in a binlog stream")
        if packet[0] != PACKET_OK:
            self._no_event(packet)
            return
        if self._semi_sync and (len(packet) < self._lead or packet[1] != SEMI_SYNC_MARK):
            raise MalformedStream("an event without its semi-synchronous mark")
        event = packet[self._lead :]
        header = checked_event(event)
        described_only = header.kind == Kind.FORMAT_DESCRIPTION and header.end_position == 0
        if header.flags & FLAG_ARTIFICIAL or header.kind == Kind.HEARTBEAT or described_only:
            self._artificial(header, event)
        else:
            self._real(header, event)
            if self._semi_sync and packet[2]:
                self._reply = Reply(self._file, self._offset, self._tracker.position)

    def accept_transactions(self, framer: PacketFramer) -> None:
        """Take packets as long as they are what nearly all are: a GTID, rows, an XID, whole, in order, undamaged.

        Whatever is not exactly that is left where it is, for `accept` to judge. This loop is what a stream costs: for
        each event it makes one tuple, one view and one checksum, and calls nothing of ours.
        """
        buffer, view, at, end = framer.window
        lead = self._lead
        head, last = PACKET_HEADER_BYTES + lead, end - PACKET_HEADER_BYTES - lead - HEADER_BYTES
        if at > last or not self._in_step:
            return
        chunk, tracker = self._chunk(), self._tracker
        unpack, quiet, asking, append = _AHEAD[lead].unpack_from, _QUIET[lead], _ASKING[lead], chunk.parts.append
        opened, offset, boundary, before = tracker.in_group, self._offset, chunk.boundary, len(chunk.parts)
        while at <= last:
            word, led, timestamp, kind, server_id, size, end_position, flags = unpack(buffer, at)
            stop = at + head + size
            strange = led != quiet and (led != asking or kind != _XID)
            if strange or stop > end or word & PART_BYTES_MAX != lead + size or flags & FLAG_ARTIFICIAL:
                break
            event = view[at + head : stop]
            if crc32(event) != CRC_RESIDUE or (end_position and end_position != (offset + size) & U32_MASK):
                break
            if opened and kind in ROWS:
                pass
            elif opened and kind == _XID:
                opened, boundary = False, offset + size
                self._commit(chunk, boundary, timestamp, asked=led != quiet)
            elif not opened and kind == _GTID and size >= GTID_BYTES_MIN and not event[GTID_FLAGS_AT] & GTID_STANDALONE:
                tracker.begin_group(server_id, event)
                opened = True
            else:
                break
            append(event)
            at, offset = stop, offset + size
        framer.taken(at)
        self._boundary = chunk.boundary = boundary
        self._grow(chunk, offset - self._offset, len(chunk.parts) - before)
        if not chunk.parts:
            self._chunks.pop()  # nothing was for us

    def take(self) -> Batch:
        """Return what was received since the last call."""
        batch = Batch(tuple(self._chunks), self._reply)
        for chunk in batch.chunks[-1:]:
            chunk.position = self._tracker_position(chunk)
        self._chunks, self._reply, self.batch_bytes = [], None, 0
        return batch

    def keep(self) -> None:
        """Copy what was received, so that the buffer it lies in can be used again."""
        for chunk in self._chunks:
            chunk.parts = [memoryview(b"".join(chunk.parts))]

    @property
    def reply_wanted(self) -> bool:
        """Return whether the primary waits for an acknowledgement of something received."""
        return self._reply is not None

    @property
    def in_group(self) -> bool:
        """Return whether the last event received was inside a group."""
        return self._tracker.in_group

    # -- below ------------------------------------------------------------------------------------------------------

    @property
    def _in_step(self) -> bool:
        """Whether the stream is in the midst of a file's transactions, and they are to be archived."""
        plain = self._tracker.in_transaction or not self._tracker.in_group
        return plain and self._confirmed and self._listed and self._offset >= self._dropped_until

    def _tracker_position(self, chunk: Chunk) -> Position:
        return self._tracker.position if chunk.boundary else chunk.start

    def _no_event(self, packet: memoryview) -> None:
        if packet[0] == PACKET_EOF and len(packet) <= EOF_BYTES_MAX:
            self.ended = True
            return
        if packet[0] == PACKET_ERROR and len(packet) >= _ERROR.size:
            raise error_of(packet)
        raise MalformedStream(f"a packet that begins with 0x{packet[0]:02x} in a binlog stream")

    def _artificial(self, header: EventHeader, event: memoryview) -> None:
        if header.kind == Kind.FORMAT_DESCRIPTION:
            require_crc32(event)
        if header.kind != Kind.ROTATE:
            return
        file, offset = rotate_target(event)
        if not self._confirmed or file == self._file:
            if (file, offset) != (self._file, self._offset):
                raise Diverged(f"the source begins at {file}:{offset} instead of {self._file}:{self._offset}")
            self._confirmed = True
            return
        if offset != FIRST_OFFSET:
            raise MalformedStream(f"the source goes on in {file} at {offset}")
        self._begin_file(file)

    def _begin_file(self, file: str) -> None:
        self._finish_chunk()
        self._tracker.begin_file()
        self._file, self._offset, self._boundary = file, FIRST_OFFSET, 0
        self._dropped_until = 0  # what comes again is of one file only
        self._start, self._listed, self._marked = self._tracker.position, False, FIRST_OFFSET
        self._first_time = self._time = 0

    def _finish_chunk(self) -> None:
        if self._chunks:
            self._chunks[-1].position = self._tracker_position(self._chunks[-1])

    def _real(self, header: EventHeader, event: memoryview) -> None:
        if not self._confirmed:
            raise MalformedStream("events before the source said where it begins")
        end = self._offset + header.size
        if header.end_position and header.end_position != end & U32_MASK:
            raise MalformedStream(
                f"{self._file}:{self._offset}: the event ends at {end}, it says {header.end_position}"
            )
        if self._offset < self._dropped_until:
            self._pass_again(header, event, end)
            self._offset = end
            return
        require_known(header)
        if header.kind == Kind.FORMAT_DESCRIPTION:
            require_crc32(event)
        chunk = self._chunk()
        boundary = self._tracker.follow(header, event)
        chunk.parts.append(event)
        self._grow(chunk, header.size, 1)
        if header.kind == Kind.GTID_LIST:
            self._check_list(chunk, event)
        if boundary and self._listed:
            self._at_boundary(header, event, chunk)

    def _pass_again(self, header: EventHeader, event: memoryview, end: int) -> None:
        """Follow what comes again and is dropped: where that ends, the source must be where our archive is.

        Nothing else can tell: BINLOG_GTID_POS() has no room for an offset above 4 GiB either, and answers NULL.
        """
        if header.kind == Kind.GTID_LIST:
            self._again.restart(position_of_list(event))
        elif header.kind != Kind.FORMAT_DESCRIPTION:
            self._again.follow(header, event)
        if end >= self._dropped_until and (end, self._again.position) != (self._dropped_until, self._expected):
            raise Diverged(f"at {self._file}:{end} the source is at {self._again.position or 'nothing'}, our archive at"
                           f" {self._expected or 'nothing'} at {self._dropped_until}",
                           hint="the two histories are not one; nothing is rewound by itself")  # fmt: skip

    def _at_boundary(self, header: EventHeader, event: memoryview, chunk: Chunk) -> None:
        self._boundary = chunk.boundary = self._offset
        if header.kind not in OUTSIDE_GROUPS:
            self._committed_at(header.timestamp)
        if header.kind == Kind.ROTATE:
            chunk.next_file = rotate_target(event)[0]
        self._mark(chunk, self._offset)

    def _commit(self, chunk: Chunk, boundary: int, timestamp: int, *, asked: bool) -> None:
        """Take the XID that ends the open group at `boundary`."""
        self._tracker.end_group()
        self._committed_at(timestamp)
        self._mark(chunk, boundary)
        if asked:
            self._reply = Reply(self._file, boundary, self._tracker.position)

    def _committed_at(self, timestamp: int) -> None:
        self._first_time = self._first_time or timestamp
        self._time = max(self._time, timestamp)

    def _mark(self, chunk: Chunk, boundary: int) -> None:
        chunk.first_time, chunk.time = self._first_time, self._time
        if boundary - self._marked >= INDEX_EVERY_BYTES:
            self._marked = boundary
            chunk.marks.append(Mark(boundary, self._tracker.position, self._time))

    def _grow(self, chunk: Chunk, size: int, events: int) -> None:
        chunk.size += size
        chunk.events += events
        self.batch_bytes += size
        self._offset += size

    def _chunk(self) -> Chunk:
        if not self._chunks or self._chunks[-1].file != self._file:
            self._chunks.append(Chunk(self._file, self._offset, self._start, boundary=self._boundary))
        return self._chunks[-1]

    def _check_list(self, chunk: Chunk, event: memoryview) -> None:
        """The file says what stands before it: that must be what we have, or bytes are missing between."""
        stated = position_of_list(event)
        if stated != self._start:
            raise Diverged(
                f"{self._file} begins after {stated or 'nothing'}, our archive ends after {self._start or 'nothing'}"
            )
        self._listed = True
        chunk.start = stated


def error_of(packet: memoryview) -> OscarHaError:
    """Return the error that an error packet of the source stands for."""
    code = _ERROR.unpack_from(packet)[1]
    text = bytes(packet[_ERROR.size :]).decode(errors="replace")
    return error_for(code, text[6:] if text.startswith("#") else text)
