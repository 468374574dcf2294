"""What binlog events mean to an archive: which there are, what a file begins with, where a transaction group ends.

A group begins with a GTID event. A standalone group (DDL) ends with its one event that is not a helper; every other
ends with XID, XA PREPARE, or a query that says COMMIT or ROLLBACK. Only a group boundary is a place to start from or
to cut at (TRAPS.md 2). Source: MariaDB Knowledge Base, "Replication Protocol"; log_event.h.
"""

import re
from collections.abc import Mapping
from dataclasses import astuple
from enum import IntEnum
from struct import Struct
from typing import ClassVar, NamedTuple

from cluster.binlog.framing import CRC_BYTES, HEADER_BYTES, EventHeader, an_event
from cluster.errors import Diverged, MalformedStream
from cluster.position import Gtid, Position

NO_CHECKSUMS = (
    "what was written without checksums can never be archived, nor acknowledged, also when binlog_checksum=CRC32 is set again:"
    " 'oscar-ha failover' goes on without it"
)
FLAG_ARTIFICIAL = 0x20
FLAG_IGNORABLE = 0x80
GTID_STANDALONE = 0x01
CHECKSUM_CRC32 = 1
FIRST_OFFSET = 4
"""The first event of a file stands behind the four magic bytes."""
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.[0-9]{6,10}")

_GTID = Struct("<QIB")
GTID_BYTES_MIN = HEADER_BYTES + _GTID.size + CRC_BYTES
GTID_FLAGS_AT = HEADER_BYTES + _GTID.size - 1
_LIST_COUNT = Struct("<I")
_LIST_ENTRY = Struct("<IIQ")
_LIST_COUNT_MASK = 0x0FFFFFFF
LIST_UNTIL_REACHED = 1 << 28
"""In the count of a Gtid_list: a replica that was to come only so far stops here (log_event.h)."""
_ROTATE = Struct("<Q")
_LONG_POSITION = Struct("<Q")
END_POSITION_MAX = 0xFFFFFFFF
"""The last offset that an event's header can name."""
_QUERY = Struct("<IIBHH")
_CREATED_OFFSET = HEADER_BYTES + 2 + 50


class LostEvents(Diverged):
    """The primary says in its own binlog that it could not write something there: nobody has it, and nothing behind it is
    believed before a person has looked."""


class NotUnderstood(MalformedStream):
    """Well formed, but nothing that may be archived: a person must change the primary."""


class Kind(IntEnum):
    """The event types that may stand in a MariaDB 10.11 binlog, or come with its stream."""

    QUERY = 2
    STOP = 3
    ROTATE = 4
    INTVAR = 5
    APPEND_BLOCK = 9
    DELETE_FILE = 11
    RAND = 13
    USER_VAR = 14
    FORMAT_DESCRIPTION = 15
    XID = 16
    BEGIN_LOAD_QUERY = 17
    EXECUTE_LOAD_QUERY = 18
    TABLE_MAP = 19
    WRITE_ROWS_V1 = 23
    UPDATE_ROWS_V1 = 24
    DELETE_ROWS_V1 = 25
    INCIDENT = 26
    HEARTBEAT = 27
    WRITE_ROWS = 30
    UPDATE_ROWS = 31
    DELETE_ROWS = 32
    XA_PREPARE = 38
    ANNOTATE_ROWS = 160
    BINLOG_CHECKPOINT = 161
    GTID = 162
    GTID_LIST = 163
    QUERY_COMPRESSED = 165
    WRITE_ROWS_COMPRESSED_V1 = 166
    UPDATE_ROWS_COMPRESSED_V1 = 167
    DELETE_ROWS_COMPRESSED_V1 = 168
    WRITE_ROWS_COMPRESSED = 169
    UPDATE_ROWS_COMPRESSED = 170
    DELETE_ROWS_COMPRESSED = 171


KNOWN = frozenset(int(kind) for kind in Kind)
OUTSIDE_GROUPS = frozenset({Kind.FORMAT_DESCRIPTION, Kind.GTID_LIST, Kind.BINLOG_CHECKPOINT, Kind.ROTATE, Kind.STOP})
HELPERS = frozenset(
    {Kind.INTVAR, Kind.RAND, Kind.USER_VAR, Kind.ANNOTATE_ROWS, Kind.BEGIN_LOAD_QUERY, Kind.APPEND_BLOCK}
)

ROWS = frozenset(
    int(kind) for kind in Kind if kind.name.startswith(("ANNOTATE", "TABLE_MAP", "WRITE_", "UPDATE_", "DELETE_ROWS"))
)
"""They stand inside of a transaction and neither begin nor end one."""


class Mark(NamedTuple):
    """A group boundary of a file, for the sparse index."""

    offset: int
    position: Position
    """The position there."""
    time: int
    """The latest commit time of what is before it in the file: seconds since 1970, on the primary's clock."""


class GroupTracker:
    """Follows the events of a file in order; knows the position, and whether a group is open."""

    _ENDS: ClassVar = frozenset({Kind.XID, Kind.XA_PREPARE})

    def __init__(self, position: Position) -> None:
        self._last: dict[int, tuple[int, int]] = {}
        self._position: Position | None = None
        self._open: tuple[int, int, int] | None = None
        self._standalone = False
        self.restart(position)

    @property
    def position(self) -> Position:
        """Return the position after the last whole group."""
        if self._position is None:
            self._position = position_of(self._last)
        return self._position

    @property
    def in_group(self) -> bool:
        """Return whether a group is open."""
        return self._open is not None

    @property
    def in_transaction(self) -> bool:
        """Return whether a group is open that only XID, XA PREPARE, COMMIT or ROLLBACK ends."""
        return self._open is not None and not self._standalone

    def begin_group(self, server_id: int, event: memoryview) -> None:
        """Take a GTID event, outside of any group."""
        sequence, domain, flags = gtid_of(event)
        self._open = (domain, server_id, sequence)
        self._standalone = bool(flags & GTID_STANDALONE)

    def end_group(self) -> None:
        """Take the event that ends the open group."""
        assert self._open is not None, "only an open group ends"
        domain, server, sequence = self._open
        self._last[domain] = (server, sequence)
        self._open = self._position = None

    def begin_file(self) -> None:
        """Forget an open group: no group spans two files, so the primary crashed in the midst of this one."""
        self._open = None

    def restart(self, position: Position) -> None:
        """Go on from `position`, outside of any group."""
        self._last = {gtid.domain: (gtid.server, gtid.sequence) for gtid in position.last.values()}
        self._open, self._position = None, None

    def follow(self, header: EventHeader, event: memoryview) -> bool:
        """Take the next event; return whether a group or nothing at all is open behind it: a boundary."""
        kind = header.kind
        if self._open is None:
            return self._outside(header, event)
        if self._standalone:
            ends = kind not in HELPERS
        else:
            ends = kind in self._ENDS or (kind == Kind.QUERY and ends_transaction(event))
        if kind in OUTSIDE_GROUPS or kind == Kind.GTID:
            raise MalformedStream(f"event of type {kind} inside transaction {self._open}")
        if ends:
            self.end_group()
        return ends

    def _outside(self, header: EventHeader, event: memoryview) -> bool:
        if header.kind == Kind.GTID:
            self.begin_group(header.server_id, event)
            return False
        if header.kind in OUTSIDE_GROUPS or header.flags & FLAG_IGNORABLE:
            return True
        raise MalformedStream(f"event of type {header.kind} outside of any transaction")


def require_known(header: EventHeader) -> None:
    """Raise for an event that must not be passed over in silence (TRAPS.md 9)."""
    if header.kind == Kind.INCIDENT:
        raise LostEvents("the primary wrote an incident: a change that it made is not in its binlog",
                         hint="look into its error log; 'oscar-ha failover' goes on without that change, and without what"
                              " came behind it and was acknowledged to nobody")  # fmt: skip
    if header.kind not in KNOWN and not header.flags & FLAG_IGNORABLE:
        raise NotUnderstood(f"unknown event of type {header.kind}",
                              hint="the primary is newer than this replicator, or its binlog is encrypted")  # fmt: skip


def position_of(last: Mapping[int, tuple[int, int]]) -> Position:
    """Return a position from raw numbers, domain -> (server, sequence)."""
    return Position({domain: Gtid(domain, server, sequence) for domain, (server, sequence) in last.items()})


def gtid_of(event: memoryview) -> tuple[int, int, int]:
    """Return sequence, domain and flags of a GTID event. Raises MalformedStream."""
    if len(event) < GTID_BYTES_MIN:
        raise MalformedStream(f"a GTID event of {len(event)} bytes")
    sequence, domain, flags = _GTID.unpack_from(event, HEADER_BYTES)
    return sequence, domain, flags


def position_of_list(event: memoryview) -> Position:
    """Return the position a Gtid_list event states: of every domain the entry that is named last."""
    body = event[HEADER_BYTES:-CRC_BYTES]
    count = _LIST_COUNT.unpack_from(body)[0] & _LIST_COUNT_MASK if len(body) >= _LIST_COUNT.size else -1
    if count < 0 or len(body) < _LIST_COUNT.size + count * _LIST_ENTRY.size:
        raise MalformedStream(f"a Gtid_list event of {len(event)} bytes with {count} entries")
    entries = (_LIST_ENTRY.unpack_from(body, _LIST_COUNT.size + number * _LIST_ENTRY.size) for number in range(count))
    return position_of({domain: (server, sequence) for domain, server, sequence in entries})


def rotate_target(event: memoryview) -> tuple[str, int]:
    """Return file and offset a Rotate event points to. Raises MalformedStream for a name that is no file of ours."""
    body = bytes(event[HEADER_BYTES:-CRC_BYTES])
    if len(body) < _ROTATE.size:
        raise MalformedStream(f"a Rotate event of {len(event)} bytes")
    return checked_file(body[_ROTATE.size :].decode("ascii", errors="replace")), _ROTATE.unpack_from(body)[0]


def checked_file(name: str) -> str:
    """Return `name` if it can be the name of a binlog file. Raises MalformedStream."""
    if FILE_NAME.fullmatch(name) is None:
        raise MalformedStream(f"{name[:80]!r} is not the name of a binlog file")
    return name


def file_number(name: str) -> int:
    """Return the number a binlog file's name ends with; files of one server are in that order."""
    return int(name.rsplit(".", 1)[1])


def require_crc32(event: memoryview) -> None:
    """Raise MalformedStream unless a format description says that its file's events carry CRC32."""
    if len(event) <= HEADER_BYTES + CRC_BYTES or event[-CRC_BYTES - 1] != CHECKSUM_CRC32:
        raise NotUnderstood("the events of this file carry no CRC32", hint=NO_CHECKSUMS)


def ends_transaction(event: memoryview) -> bool:
    """Return whether a Query event is COMMIT or ROLLBACK, of an XA transaction too. Raises MalformedStream."""
    body = event[HEADER_BYTES:-CRC_BYTES]
    if len(body) < _QUERY.size:
        raise MalformedStream(f"a Query event of {len(event)} bytes")
    _, _, database_bytes, _, status_bytes = _QUERY.unpack_from(body)
    text = bytes(body[_QUERY.size + status_bytes + database_bytes + 1 :][:16]).upper()
    return text in (b"COMMIT", b"ROLLBACK") or text.startswith((b"XA COMMIT", b"XA ROLLBACK"))


def fake_rotate(file: str, offset: int, *, server_id: int, checksum: bool = True) -> bytes:
    """Return the artificial event that tells a replica which file and offset come next."""
    body = _ROTATE.pack(offset) + file.encode()
    return an_event(Kind.ROTATE, body, server_id=server_id, flags=FLAG_ARTIFICIAL, checksum=checksum)


def heartbeat(file: str, offset: int, *, server_id: int) -> bytes:
    """Return the event that says: nothing new behind `file` and `offset`, and I live.

    An offset that the header's 32 bits cannot hold stands in eight bytes before the file's name, and the header says 0: a
    replica that is told less than it has stops its receiver (MariaDB, `send_heartbeat_event`).
    """
    body = file.encode()
    if offset > END_POSITION_MAX:
        body, offset = _LONG_POSITION.pack(offset) + body, 0
    return an_event(Kind.HEARTBEAT, body, server_id=server_id, end_position=offset, flags=FLAG_ARTIFICIAL)


def until_reached(position: Position, *, server_id: int) -> bytes:
    """Return the event at which a replica that was started with `UNTIL master_gtid_pos` stops both of its threads."""
    entries = [_LIST_ENTRY.pack(*astuple(position.last[domain])) for domain in sorted(position.last)]
    body = _LIST_COUNT.pack(len(entries) | LIST_UNTIL_REACHED) + b"".join(entries)
    return an_event(Kind.GTID_LIST, body, server_id=server_id, flags=FLAG_ARTIFICIAL)


def described_again(format_description: bytes, *, server_id: int) -> bytes:
    """Return a format description for a start in the midst of a file: no position, no "the server started here".

    A replica takes one that says when the server started for a crash of its primary, and rolls back.
    """
    body = bytearray(format_description[HEADER_BYTES:-CRC_BYTES])
    at = _CREATED_OFFSET - HEADER_BYTES
    body[at : at + 4] = bytes(4)
    return an_event(Kind.FORMAT_DESCRIPTION, bytes(body), server_id=server_id)
