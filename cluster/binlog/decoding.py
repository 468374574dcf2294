"""Rows as values, for a person or a check: `pymysqlreplication` decodes, this file feeds it and mends what it loses.

It is driven with the bytes of archived events, without a connection. What is mended: compressed events; text in any
character set (it is read byte for byte, and decoded here); dates that Python has no value for; ENUM and SET without their
names. It costs about 100 us a row: only what somebody asked for is decoded.
"""

import codecs
import datetime
import decimal
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pymysql.charset import charset_by_name
from pymysqlreplication import row_event
from pymysqlreplication.constants import FIELD_TYPE, NONE_SOURCE
from pymysqlreplication.packet import BinLogPacketWrapper

from cluster.binlog.framing import EventHeader
from cluster.binlog.rows import FLAGS_OFFSET, RowLengths, TableMap, plain, rows_of, table_id_of, table_map_of
from cluster.errors import MalformedStream

Value = str | int | float | bytes | decimal.Decimal | None
"""A value as a person reads it; times are text, bytes are what is not text."""
Row = Mapping[str, Value]

SERVER_VERSION = (10, 11, 0)
TABLES_MAX = 4_096
BYTES_AS_TEXT = "iso8859-1"
"""Every byte is one character of it, so nothing is lost; no character set of the database has this name."""
BINARY = "binary"
ENUM_NUMBERS = range(65_536)
SET_NUMBERS = range(64)
ZERO_TIMESTAMP = datetime.datetime(1970, 1, 1)  # noqa: DTZ001  # the library's values have no zone, they are UTC
YEAR_ZERO, ZERO_TIME = 1900, "0000-00-00 00:00:00"
_LISTED, _QUOTED = re.compile(r"(?:enum|set)\(", re.IGNORECASE), re.compile(r"'((?:[^']|'')*)'")
_EVENTS = (row_event.TableMapEvent, row_event.WriteRowsEvent, row_event.UpdateRowsEvent, row_event.DeleteRowsEvent)
_OUT_OF_RANGE = frozenset(
    {NONE_SOURCE.OUT_OF_DATE_RANGE, NONE_SOURCE.OUT_OF_DATETIME_RANGE, NONE_SOURCE.OUT_OF_DATETIME2_RANGE}
)
_ITS_ERRORS = (MalformedStream, NotImplementedError, LookupError, ValueError, TypeError, ArithmeticError, struct.error)
"""What the library raises for bytes that it does not understand."""
_UNCOMPRESSED_TYPES = bytes.maketrans(bytes((140, 141)), bytes((FIELD_TYPE.BLOB, FIELD_TYPE.VARCHAR)))
_WHOLE_NUMBERS = {
    FIELD_TYPE.TINY: 1,
    FIELD_TYPE.SHORT: 2,
    FIELD_TYPE.INT24: 3,
    FIELD_TYPE.LONG: 4,
    FIELD_TYPE.LONGLONG: 8,
}
_DATETIME_BIAS, _DATETIME_BYTES, _TIME_BIAS, _TIME_BYTES = 0x8000000000, 5, 0x800000, 3


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """What a running server says of a column."""

    name: str
    charset: str | None
    """None for what is not text."""
    unsigned: bool
    values: tuple[str, ...] = ()
    """Of an ENUM or SET."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a running server says of a table."""

    columns: tuple[ColumnDefinition, ...]
    key: tuple[str, ...]


def definitions_of(
    columns: Iterable[tuple[str, str, str, str | None, str]], keys: Iterable[tuple[str, str, str]]
) -> dict[str, Definition]:
    """Return definitions by `database.table` from a server's columns and primary keys, each in order."""
    found, key_columns = dict[str, list[ColumnDefinition]](), dict[str, list[str]]()
    for database, table, column, charset, sql_type in columns:
        values = tuple(one.replace("''", "'") for one in _QUOTED.findall(sql_type)) if _LISTED.match(sql_type) else ()
        defined = ColumnDefinition(column, charset, "unsigned" in sql_type.lower(), values)
        found.setdefault(f"{database}.{table}", []).append(defined)
    for database, table, column in keys:
        key_columns.setdefault(f"{database}.{table}", []).append(column)
    return {name: Definition(tuple(ours), tuple(key_columns.get(name, ()))) for name, ours in found.items()}


@dataclass(slots=True)
class Table:
    """A table as the stream and, where that says too little, a running server describe it."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    """The columns of the primary key; empty when there is none, or when it is not known."""
    named: bool
    """The names are the real ones, not @1, @2."""
    charsets: tuple[str | None, ...]
    """None: not known."""
    lengths: RowLengths
    dates: frozenset[int]
    """Which columns are a DATE: the library is told that these are numbers, as it has no value for 31 February."""
    described: Any = field(repr=False)
    """The library's own object."""

    def bytes_of(self, column: str, number: int) -> bytes | None:
        """Return how a column of whole numbers holds that one; None for other columns, or when it cannot."""
        width = _WHOLE_NUMBERS.get(self.described.columns[self.columns.index(column)].type)
        if width is None or not -(1 << 8 * width - 1) <= number < 1 << 8 * width:
            return None
        return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")


@dataclass(frozen=True, slots=True)
class Image:
    """A row before and after a change; None where there is none."""

    before: Row | None
    after: Row | None


class Decoder:
    """Decodes row events. `definitions` are taken where the stream names no columns, if their number fits."""

    def __init__(self, definitions: Mapping[str, Definition] | None = None) -> None:
        self._definitions = definitions or {}
        self._tables: dict[bytes, Table] = {}

    def table(self, event: memoryview) -> Table:
        """Return what a table map event describes. Raises MalformedStream."""
        body = table_map_of(event).body
        known = self._tables.get(body)
        if known is None:
            if len(self._tables) >= TABLES_MAX:
                self._tables.clear()
            known = self._tables[body] = self._described(event)
        return known

    def rows(self, table: Table, header: EventHeader, event: memoryview) -> list[Image]:
        """Return the rows of an event. Raises MalformedStream."""
        decoded = _fed(plain(header, event), {table_id_of(event): table.described})
        found = []
        try:
            rows = decoded.rows
        except _ITS_ERRORS as error:
            raise MalformedStream(f"rows of {table.name} cannot be decoded: {error!r}") from error
        raw = _Raw(table, header, event)
        for number, row in enumerate(rows):
            if "values" in row:
                one = self._image(table, row["values"], row["none_sources"], raw, (number, 0))
                inserted = isinstance(decoded, row_event.WriteRowsEvent)
                found.append(Image(None, one) if inserted else Image(one, None))
            else:
                found.append(Image(
                    self._image(table, row["before_values"], row["before_none_sources"], raw, (number, 0)),
                    self._image(table, row["after_values"], row["after_none_sources"], raw, (number, 1)),
                ))  # fmt: skip
        return found

    def _image(
        self, table: Table, values: Mapping[str, Any], sources: Mapping[str, str], raw: "_Raw", place: tuple[int, int]
    ) -> Row:
        found: dict[str, Value] = {}
        for number, (name, value) in enumerate(values.items()):
            source = sources.get(name) if value is None else None
            column = table.described.columns[number]
            digits = getattr(column, "fsp", 0)
            if source == NONE_SOURCE.COLS_BITMAP:
                continue  # this image does not have the column
            if number in table.dates and isinstance(value, int):
                found[name] = date_text(value)
            elif source in _OUT_OF_RANGE:
                found[name] = impossible_date(column.type, raw.value(*place, number), digits)
            elif source == NONE_SOURCE.EMPTY_SET:
                found[name] = ""
            elif isinstance(value, datetime.timedelta) and value < datetime.timedelta():
                found[name] = negative_time(raw.value(*place, number), digits)
            else:
                found[name] = None if value is None else _readable(value, column, table.charsets[number])
        return found

    def _described(self, event: memoryview) -> Table:
        ours = table_map_of(event)
        described = _fed(_without_column_compression(ours, event), {})
        table, metadata = described.table_obj, described.optional_metadata
        definition = self._definitions.get(ours.name)
        columns = table.columns
        named = bool(metadata.column_name_list)
        if not named and definition is not None and len(definition.columns) == len(columns):
            named = True
            _define(columns, definition)
            key = definition.key
        else:
            numbers = [*metadata.simple_primary_key_list, *metadata.primary_keys_with_prefix]
            key = tuple(str(columns[number].name) for number in numbers) if named else ()
        if not named:
            for number, column in enumerate(columns, 1):
                column.name = f"@{number}"
        charsets = tuple(
            None if column.character_set_name is None else str(column.character_set_name) for column in columns
        )
        for column in columns:
            column.character_set_name = BYTES_AS_TEXT
            column.enum_values = column.enum_values or ENUM_NUMBERS
            column.set_values = column.set_values or SET_NUMBERS
        names = tuple(str(column.name) for column in columns)
        dates = frozenset(number for number, column in enumerate(columns) if column.type == FIELD_TYPE.DATE)
        for number in dates:
            columns[number].type, columns[number].unsigned = FIELD_TYPE.INT24, True
        return Table(ours.name, names, key, named, charsets, RowLengths(ours), dates, table)


def _without_column_compression(table: TableMap, event: memoryview) -> memoryview:
    """Name the types the library knows for columns that are COMPRESSED: their bytes are shown as they are."""
    changed, at = bytearray(event), FLAGS_OFFSET + table.types_offset
    changed[at : at + len(table.types)] = table.types.translate(_UNCOMPRESSED_TYPES)
    return memoryview(changed)


class _Raw:
    """The bytes of single values, cut out only when they are asked for."""

    def __init__(self, table: Table, header: EventHeader, event: memoryview) -> None:
        self._table, self._header, self._event = table, header, event
        self._rows: list[list[dict[int, bytes]]] | None = None

    def value(self, number: int, image: int, column: int) -> bytes:
        if self._rows is None:
            self._rows = self._table.lengths.values(rows_of(self._header, self._event))
        return self._rows[number][image].get(column, b"")


class _Connection:
    """What the library asks of a connection."""

    charset = "utf8mb4"

    def _get_dbms(self) -> str:
        return "mariadb"


class _Packet:
    """Bytes as the library reads them (it looks at the two fields too); too few are an error, not an empty answer."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def read(self, size: int) -> bytes:
        found = self._data[self._position : self._position + size]
        if len(found) != size:
            raise MalformedStream(f"an event that ends {size - len(found)} bytes too early")
        self._position += size
        return found

    def advance(self, size: int) -> None:
        self._position += size


def _fed(event: memoryview, tables: dict[int, Any]) -> Any:
    """Return the library's object for an event. Raises MalformedStream."""
    try:
        wrapped = BinLogPacketWrapper(
            _Packet(b"\0" + bytes(event)), tables, _Connection(), SERVER_VERSION, True, _EVENTS, None, None, None, None,
            False, False, False, True, False,
        )  # fmt: skip
    except _ITS_ERRORS as error:
        raise MalformedStream(f"an event cannot be decoded: {error!r}") from error
    if wrapped.event is None:
        raise MalformedStream("an event that holds no rows")
    return wrapped.event


def _define(columns: Sequence[Any], definition: Definition) -> None:
    for column, defined in zip(columns, definition.columns, strict=True):
        column.name, column.unsigned, column.character_set_name = defined.name, defined.unsigned, defined.charset
        if defined.charset is None:
            column.character_set_name = BINARY
        column.enum_values = ["", *defined.values] if column.type == FIELD_TYPE.ENUM else None
        column.set_values = list(defined.values) if column.type == FIELD_TYPE.SET else None


# -- values -------------------------------------------------------------------------------------------------------------


def _readable(value: Any, column: Any, charset: str | None) -> Value:
    if isinstance(value, str):
        if column.type == FIELD_TYPE.BIT:
            return int(value, 2)
        return value if column.type == FIELD_TYPE.ENUM else _text(value.encode(BYTES_AS_TEXT), column, charset)
    if isinstance(value, set):
        return ",".join(str(one) for one in column.set_values if one in value)
    if isinstance(value, datetime.datetime):
        zero = value == ZERO_TIMESTAMP and column.type in (FIELD_TYPE.TIMESTAMP, FIELD_TYPE.TIMESTAMP2)
        whole = ZERO_TIME if zero else str(value.replace(microsecond=0))
        return whole + _fraction(value.microsecond, getattr(column, "fsp", 0))
    if isinstance(value, datetime.date):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return _time_text(value.days * 86_400 + value.seconds) + _fraction(
            value.microseconds, getattr(column, "fsp", 0)
        )
    if column.type == FIELD_TYPE.YEAR:
        return "0000" if value == YEAR_ZERO else int(value)
    if isinstance(value, int | float | bytes | decimal.Decimal):
        return value
    return str(value)


def _text(raw: bytes, column: Any, charset: str | None) -> str | bytes:
    found = text_of(raw, charset)
    if isinstance(found, bytes) and charset == BINARY and column.type == FIELD_TYPE.STRING:
        return found.ljust(column.max_length, b"\0")  # as the database pads it, and does not send it
    return found


def text_of(raw: bytes, charset: str | None) -> str | bytes:
    """Return text where the bytes are text of that character set, or of UTF-8 when it is not known."""
    encoding = "utf-8" if charset is None else _encoding(charset)
    if encoding is None:
        return raw
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        # The database's latin1 has all bytes, Windows' code page lacks five.
        return raw.decode(BYTES_AS_TEXT) if encoding == "cp1252" else raw


@cache
def _encoding(charset: str) -> str | None:
    known = charset_by_name(charset)
    name = charset if known is None else str(known.encoding)
    try:
        return codecs.lookup(name).name if name != BINARY else None
    except LookupError:
        return None


def _time_text(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _fraction(microseconds: int, digits: int) -> str:
    return f".{microseconds:06d}"[: digits + 1] if digits else ""


def negative_time(raw: bytes, digits: int) -> str:
    """Return a TIME below zero, whose fraction the library takes with the wrong sign."""
    fraction_bytes = len(raw) - _TIME_BYTES
    packed = (_TIME_BIAS << 8 * fraction_bytes) - int.from_bytes(raw, "big")
    whole, fraction = packed >> 8 * fraction_bytes, packed & ((1 << 8 * fraction_bytes) - 1)
    seconds = (whole >> 12 & 0x3FF) * 3600 + (whole >> 6 & 63) * 60 + (whole & 63)
    return f"-{_time_text(seconds)}{_fraction(fraction * 10 ** (6 - 2 * fraction_bytes), digits)}"


def date_text(number: int) -> str:
    """Return a DATE as the database writes it, whether a calendar has it or not."""
    return f"{number >> 9:04d}-{number >> 5 & 15:02d}-{number & 31:02d}"


def impossible_date(column_type: int, raw: bytes, digits: int) -> str:
    """Return a DATETIME that no calendar has, such as 0000-00-00 or 2024-05-00."""
    if column_type == FIELD_TYPE.DATETIME:
        text = f"{int.from_bytes(raw, 'little'):014d}"
        return f"{text[:4]}-{text[4:6]}-{text[6:8]} {text[8:10]}:{text[10:12]}:{text[12:]}"
    number = int.from_bytes(raw[:_DATETIME_BYTES], "big") - _DATETIME_BIAS
    fraction = int.from_bytes(raw[_DATETIME_BYTES:], "big") * 10 ** (6 - 2 * (len(raw) - _DATETIME_BYTES))
    days, seconds = number >> 17, number & 0x1FFFF
    months = days >> 5
    date = f"{months // 13:04d}-{months % 13:02d}-{days & 31:02d}"
    time = f"{seconds >> 12:02d}:{seconds >> 6 & 63:02d}:{seconds & 63:02d}"
    return f"{date} {time}{_fraction(fraction, digits)}"
