"""Row events without their values: which table, which kind of change, how many rows. Pure, and cheap.

A row has no length of its own: it is found by walking its columns, whose lengths the table map's types and metadata
tell. What the walk needs is compiled once for a table and once for a pattern of NULLs; a row of fixed columns is then
one addition. A walk that does not end exactly at the end of its event is not believed. Formats: MariaDB's `log_event.h`
and `rpl_utility.cc`.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from struct import Struct

from cluster.binlog.events import Kind
from cluster.binlog.framing import CRC_BYTES, EVENT_BYTES_MAX, HEADER_BYTES, KIB, EventHeader, an_event
from cluster.errors import MalformedStream


class Change(StrEnum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


CHANGES: Mapping[int, Change] = {
    kind: change
    for change, kinds in {
        Change.INSERT: (Kind.WRITE_ROWS_V1, Kind.WRITE_ROWS, Kind.WRITE_ROWS_COMPRESSED_V1, Kind.WRITE_ROWS_COMPRESSED),
        Change.UPDATE: (Kind.UPDATE_ROWS_V1, Kind.UPDATE_ROWS, Kind.UPDATE_ROWS_COMPRESSED_V1, Kind.UPDATE_ROWS_COMPRESSED),
        Change.DELETE: (Kind.DELETE_ROWS_V1, Kind.DELETE_ROWS, Kind.DELETE_ROWS_COMPRESSED_V1, Kind.DELETE_ROWS_COMPRESSED),
    }.items()
    for kind in map(int, kinds)
}  # fmt: skip
"""Every kind of event that holds rows."""
PLAIN: Mapping[int, int] = {
    Kind.QUERY_COMPRESSED: Kind.QUERY,
    Kind.WRITE_ROWS_COMPRESSED_V1: Kind.WRITE_ROWS_V1,
    Kind.UPDATE_ROWS_COMPRESSED_V1: Kind.UPDATE_ROWS_V1,
    Kind.DELETE_ROWS_COMPRESSED_V1: Kind.DELETE_ROWS_V1,
    Kind.WRITE_ROWS_COMPRESSED: Kind.WRITE_ROWS,
    Kind.UPDATE_ROWS_COMPRESSED: Kind.UPDATE_ROWS,
    Kind.DELETE_ROWS_COMPRESSED: Kind.DELETE_ROWS,
}
"""What a compressed kind is when it is not compressed."""
ROWS_V2 = frozenset({Kind.WRITE_ROWS, Kind.UPDATE_ROWS, Kind.DELETE_ROWS,
                     Kind.WRITE_ROWS_COMPRESSED, Kind.UPDATE_ROWS_COMPRESSED, Kind.DELETE_ROWS_COMPRESSED})  # fmt: skip
"""Their header has a length and as many extra bytes."""
TABLE_ID_OFFSET, FLAGS_OFFSET = HEADER_BYTES, HEADER_BYTES + 6
COLUMNS_MAX = 4_096
"""No table of the server has more."""
PLANS_MAX = 1_024
"""So many patterns of NULLs are kept for a table."""
QUERY_BYTES_MAX = 256 * KIB
"""So much of a statement's text is read: the names of what it changes stand near its beginning, behind comments."""

_TABLE_ID = Struct("<IH")
_U16 = Struct("<H")
_QUERY = Struct("<IIBHH")
_LOAD_BYTES = 13
"""Of the header of a LOAD DATA, behind that of any other statement."""
_STATUS_SQL_MODE, _STATUS_CHARSET, _STATUS_CATALOG = 1, 4, 6
_STATUS_BYTES = {0: 4, 1: 8, 3: 4, 4: 6}
"""Code -> bytes of the facts of a session that stand before, or are, those we want."""
_ANSI_QUOTES, _NO_BACKSLASH_ESCAPES = 1 << 2, 1 << 20
"""Of a session's `sql_mode`."""
_LATIN1 = frozenset({5, 8, 15, 31, 47, 48, 49, 94})
"""The collations of `latin1`, by their numbers; every other text is read as UTF-8."""
_COMPRESSED_MARK, _LENGTH_BYTES_MASK, _ALGORITHM_MASK = 0x80, 0x07, 0x70

_FIXED = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 0, 7: 4, 8: 8, 9: 3, 10: 3, 11: 3, 12: 8, 13: 1, 14: 3}
"""Type code -> bytes of a value, for the types whose metadata does not matter."""
_METADATA_BYTES = {4: 1, 5: 1, 15: 2, 16: 2, 17: 1, 18: 1, 19: 1, 140: 1, 141: 2, 245: 1, 246: 2, 247: 2, 248: 2,
                   249: 1, 250: 1, 251: 1, 252: 1, 253: 2, 254: 2, 255: 1}  # fmt: skip
_VARCHAR, _BIT, _VARCHAR_COMPRESSED, _NEWDECIMAL, _ENUM, _SET, _STRING = 15, 16, 141, 246, 247, 248, 254
_TEMPORAL = {17: 4, 18: 5, 19: 3}
"""TIMESTAMP, DATETIME and TIME with fractions: bytes before the fraction."""
_BLOBS = frozenset({140, 245, 249, 250, 251, 252, 255})
_DIGITS_PER_WORD, _BYTES_OF_DIGITS = 9, (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


@dataclass(frozen=True, slots=True)
class TableMap:
    """A table as its map in the stream describes it."""

    table_id: int
    database: str
    table: str
    types: bytes
    metadata: bytes
    types_offset: int
    """Of the types, in the body."""
    body: bytes
    """Everything behind the table id: equal bodies describe equal tables."""

    @property
    def name(self) -> str:
        """Return `database.table`."""
        return f"{self.database}.{self.table}"


def table_id_of(event: memoryview) -> int:
    """Return the table id of a table map or of a rows event."""
    if len(event) < FLAGS_OFFSET + 2 + CRC_BYTES:
        raise MalformedStream(f"a rows event of {len(event)} bytes")
    low, high = _TABLE_ID.unpack_from(event, TABLE_ID_OFFSET)
    return int(low | high << 32)


def table_map_of(event: memoryview) -> TableMap:
    """Return what a table map event says. Raises MalformedStream."""
    table_id = table_id_of(event)
    body = bytes(event[FLAGS_OFFSET:-CRC_BYTES])
    try:
        database, at = _short_text(body, 2)
        table, at = _short_text(body, at)
        count, types_offset = _packed(body, at)
        types = body[types_offset : types_offset + count]
        size, at = _packed(body, types_offset + count)
        metadata = body[at : at + size]
    except (IndexError, ValueError) as error:
        raise MalformedStream(f"a table map of {len(event)} bytes that ends too early") from error
    if count > COLUMNS_MAX or len(types) != count or len(metadata) != size:
        raise MalformedStream(f"a table map of {len(event)} bytes with {count} columns")
    return TableMap(table_id, database, table, types, metadata, types_offset, body)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one event: for an update each has two images, `before` and `after`."""

    change: Change
    width: int
    present: tuple[bytes, ...]
    """Which columns each image of a row has, as bitmaps."""
    data: bytes


def rows_of(header: EventHeader, event: memoryview) -> Rows:
    """Return the rows of an event, decompressed. Raises MalformedStream."""
    change = CHANGES[header.kind]
    width, at, end = _rows_begin(header, event)
    bitmap, images = (width + 7) // 8, 2 if change is Change.UPDATE else 1
    present = tuple(bytes(event[at + number * bitmap : at + (number + 1) * bitmap]) for number in range(images))
    at += images * bitmap
    if at > end:
        raise MalformedStream(f"a rows event of {len(event)} bytes for {width} columns")
    data = event[at:end]
    return Rows(change, width, present, decompressed(data) if header.kind in PLAIN else bytes(data))


def _rows_begin(header: EventHeader, event: memoryview) -> tuple[int, int, int]:
    """Return the number of columns, where the bitmaps begin, and where the rows end."""
    at, end = FLAGS_OFFSET + 2, len(event) - CRC_BYTES
    try:
        if header.kind in ROWS_V2:
            at += _U16.unpack_from(event, at)[0]
        width, at = _packed(event, at)
    except (IndexError, ValueError) as error:
        raise MalformedStream(f"a rows event of {len(event)} bytes that ends too early") from error
    if width > COLUMNS_MAX:
        raise MalformedStream(f"a rows event for {width} columns")
    return width, at, end


def row_bytes_of(header: EventHeader, event: memoryview) -> int:
    """Return how many bytes the rows of an event have once decompressed, without doing that."""
    width, at, end = _rows_begin(header, event)
    at += (width + 7) // 8 * (2 if CHANGES[header.kind] is Change.UPDATE else 1)
    return _plain_size(event[at:end])[0] if header.kind in PLAIN else max(0, end - at)


def plain(header: EventHeader, event: memoryview) -> memoryview:
    """Return a compressed event as the server would have written it without compression; any other as it is."""
    kind = PLAIN.get(header.kind)
    if kind is None:
        return event
    if kind == Kind.QUERY:
        at = _query_text_offset(event)
    else:
        width, at, _ = _rows_begin(header, event)
        at += (width + 7) // 8 * (2 if CHANGES[kind] is Change.UPDATE else 1)
    body = bytes(event[HEADER_BYTES:at]) + decompressed(event[at : len(event) - CRC_BYTES])
    made = an_event(kind, body, server_id=header.server_id, end_position=header.end_position, flags=header.flags,
                    timestamp=header.timestamp)  # fmt: skip
    return memoryview(made)


@dataclass(frozen=True, slots=True)
class Query:
    """What a Query event says: a statement's text, and what it meant to the session that wrote it."""

    database: str
    """The default one."""
    text: str
    whole: bool = True
    """False: the text goes on."""
    backslash: bool = True
    """Whether a backslash escapes what is behind it, in a string."""
    ansi_quotes: bool = False
    """Whether what stands in double quotes is a name."""


def query_of(header: EventHeader, event: memoryview) -> Query:
    """Return what a Query event, or that of a LOAD DATA, says; no more than `QUERY_BYTES_MAX` are read or inflated.

    Raises MalformedStream.
    """
    load = _LOAD_BYTES if header.kind == Kind.EXECUTE_LOAD_QUERY else 0
    begin = _query_text_offset(event) + load
    if begin > len(event) - CRC_BYTES:
        raise MalformedStream(f"a Query event of {len(event)} bytes that ends too early")
    database_bytes = event[HEADER_BYTES + 8]
    mode, charset = _session_of(bytes(event[HEADER_BYTES + _QUERY.size + load : begin - 1 - database_bytes]))
    data = event[begin:-CRC_BYTES]
    compressed = header.kind == Kind.QUERY_COMPRESSED
    found = decompressed(data, most=QUERY_BYTES_MAX) if compressed else bytes(data[:QUERY_BYTES_MAX])
    return Query(
        bytes(event[begin - 1 - database_bytes : begin - 1]).decode(errors="replace"),
        found.decode("cp1252" if charset in _LATIN1 else "utf-8", errors="replace"),
        len(found) == (_plain_size(data)[0] if compressed else len(data)),
        not mode & _NO_BACKSLASH_ESCAPES,
        bool(mode & _ANSI_QUOTES),
    )


def _session_of(status: bytes) -> tuple[int, int]:
    """Return the SQL mode and the client's character set (the number of a collation); 0 where it is not said."""
    at, mode, charset = 0, 0, 0
    while at + 1 < len(status):
        code = status[at]
        size = 1 + status[at + 1] if code == _STATUS_CATALOG else _STATUS_BYTES.get(code)
        if size is None:
            break  # what stands behind these is nothing we need
        value = status[at + 1 : at + 1 + size]
        if code == _STATUS_SQL_MODE:
            mode = int.from_bytes(value, "little")
        if code == _STATUS_CHARSET:
            charset = int.from_bytes(value[:2], "little")
        at += 1 + size
    return mode, charset


def _query_text_offset(event: memoryview) -> int:
    if len(event) < HEADER_BYTES + _QUERY.size + CRC_BYTES:
        raise MalformedStream(f"a Query event of {len(event)} bytes")
    _, _, database_bytes, _, status_bytes = _QUERY.unpack_from(event, HEADER_BYTES)
    return HEADER_BYTES + _QUERY.size + int(status_bytes) + int(database_bytes) + 1


def decompressed(data: memoryview, *, most: int = EVENT_BYTES_MAX) -> bytes:
    """Return what MariaDB's `log_bin_compress` made of some bytes; no more than `most` of it. Raises MalformedStream."""
    size, at = _plain_size(data)
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data[at:], min(size + 1, most))
    except zlib.error as error:
        raise MalformedStream(f"a compressed event: {error}") from None
    if len(found) != min(size, most):
        raise MalformedStream(f"a compressed event of {size} bytes that has {len(found)} or more")
    return found


def _plain_size(data: memoryview) -> tuple[int, int]:
    """Return the size before compression, and where the compressed bytes begin."""
    mark = data[0] if len(data) else 0
    length_bytes = mark & _LENGTH_BYTES_MASK
    size = int.from_bytes(data[1 : 1 + length_bytes], "big")
    if not mark & _COMPRESSED_MARK or mark & _ALGORITHM_MASK or not 1 <= length_bytes <= 4 or size > EVENT_BYTES_MAX:
        raise MalformedStream(f"a compressed event that begins with 0x{mark:02x} and says {size} bytes")
    return size, 1 + length_bytes


# -- how long a row is --------------------------------------------------------------------------------------------------

Plan = tuple[tuple[tuple[int, int], ...], int]
"""Steps of (bytes to pass, bytes of the length that follows), and the bytes behind the last of them."""


class RowLengths:
    """Counts the rows of one table, as its table map describes it."""

    def __init__(self, table: TableMap) -> None:
        self._columns = column_lengths(table.types, table.metadata)
        self._plans: dict[bytes, dict[bytes, Plan]] = {}
        """Which columns an image has -> which of them are NULL -> how to pass it."""

    def count(self, rows: Rows, *, most: int) -> tuple[int, int] | None:
        """Return the rows counted, at most `most`, and the bytes they have; None when the walk fails."""
        if self._columns is None or len(self._columns) != rows.width:
            return None
        images = [(present, *self._known(present)) for present in rows.present]
        data, at, end, counted = rows.data, 0, len(rows.data), 0
        try:
            while at < end and counted < most:
                for present, null_bytes, plans in images:
                    nulls = data[at : at + null_bytes]
                    plan = plans.get(nulls) or self._planned(plans, present, nulls)
                    at = _passed(plan, data, at + null_bytes)
                counted += 1
        except IndexError:
            return None
        believed = at == end or (0 < at < end and counted == most)
        return (counted, at) if believed else None

    def values(self, rows: Rows) -> list[list[dict[int, bytes]]]:
        """Return the bytes of every value: row, image, column. Raises MalformedStream when the walk fails."""
        found, at, data = list[list[dict[int, bytes]]](), 0, rows.data
        while at < len(data):
            found.append([])
            for present in rows.present:
                values, at = self._image_values(data, at, present)
                found[-1].append(values)
        if at != len(data):
            raise MalformedStream("rows that do not end where their event ends")
        return found

    def _image_values(self, data: bytes, at: int, present: bytes) -> tuple[dict[int, bytes], int]:
        nulls = data[at : at + self._known(present)[0]]
        values, at, place = dict[int, bytes](), at + len(nulls), 0
        for number, (fixed, length_bytes) in enumerate(self._columns or ()):
            if not _bit(present, number):
                continue
            if place >= len(nulls) * 8:
                raise MalformedStream("a row that ends too early")
            if not _bit(nulls, place):
                size = int.from_bytes(data[at : at + length_bytes], "little") if length_bytes else fixed
                values[number] = data[at + length_bytes : at + length_bytes + size]
                at += length_bytes + size
            place += 1
        return values, at

    def _known(self, present: bytes) -> tuple[int, dict[bytes, Plan]]:
        plans = self._plans.setdefault(present, {})
        return (int.from_bytes(present, "little").bit_count() + 7) // 8, plans

    def _planned(self, plans: dict[bytes, Plan], present: bytes, nulls: bytes) -> Plan:
        steps, passed = list[tuple[int, int]](), 0
        for fixed, length_bytes in self._values(present, nulls):
            passed += fixed
            if length_bytes:
                steps.append((passed, length_bytes))
                passed = 0
        if len(plans) >= PLANS_MAX:
            plans.clear()
        plans[nulls] = tuple(steps), passed
        return plans[nulls]

    def _values(self, present: bytes, nulls: bytes) -> Iterator[tuple[int, int]]:
        at = 0
        for number, lengths in enumerate(self._columns or ()):
            if not _bit(present, number):
                continue
            if not _bit(nulls, at):
                yield lengths
            at += 1


def _passed(plan: Plan, data: bytes, at: int) -> int:
    """Return where the image that begins at `at`, behind its bitmap, ends."""
    steps, tail = plan
    for fixed, length_bytes in steps:
        at += fixed
        if length_bytes == 1:
            at += 1 + data[at]
        elif length_bytes == 2:
            at += 2 + data[at] + (data[at + 1] << 8)
        else:
            at += length_bytes + int.from_bytes(data[at : at + length_bytes], "little")
    return at + tail


def _bit(bitmap: bytes, number: int) -> bool:
    return bool(bitmap[number >> 3] >> (number & 7) & 1)


def column_lengths(types: bytes, metadata: bytes) -> tuple[tuple[int, int], ...] | None:
    """Return (fixed bytes, bytes of a length) of every column; one of the two is 0. None for a type we do not know."""
    found, at = list[tuple[int, int]](), 0
    for code in types:
        size = _METADATA_BYTES.get(code, 0)
        meta = metadata[at : at + size]
        at += size
        lengths = (_FIXED[code], 0) if code in _FIXED else _lengths(code, meta) if 0 < size == len(meta) else None
        if lengths is None:
            return None
        found.append(lengths)
    return tuple(found)


def _lengths(code: int, meta: bytes) -> tuple[int, int] | None:
    if code in (_VARCHAR, _VARCHAR_COMPRESSED):
        return 0, 1 if meta[1] == 0 else 2
    if code in _BLOBS:
        return (0, meta[0]) if 1 <= meta[0] <= 4 else None
    if code in _TEMPORAL:
        return _TEMPORAL[code] + (meta[0] + 1) // 2, 0
    if code == _NEWDECIMAL:
        return _decimal_bytes(meta[0], meta[1]), 0
    if code == _BIT:
        return meta[1] + (1 if meta[0] else 0), 0
    if code in (_ENUM, _SET) or meta[0] in (_ENUM, _SET):
        return meta[1], 0
    return (0, 1 if _char_bytes_max(meta) <= 0xFF else 2) if code == _STRING or code == 253 else None


def _char_bytes_max(meta: bytes) -> int:
    """Return how long a CHAR may be: its two high bits stand, inverted, in the type's byte."""
    return ((meta[0] & 0x30) ^ 0x30) << 4 | meta[1]


def _decimal_bytes(precision: int, decimals: int) -> int:
    whole = precision - decimals
    return sum(
        digits // _DIGITS_PER_WORD * 4 + _BYTES_OF_DIGITS[digits % _DIGITS_PER_WORD] for digits in (whole, decimals)
    )


def _packed(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return a length-coded number and where it ends."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first)
    if size is None or len(data) < at + 1 + size:
        raise ValueError(first)
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


def _short_text(body: bytes, at: int) -> tuple[str, int]:
    size = body[at]
    return body[at + 1 : at + 1 + size].decode(errors="replace"), at + size + 2
