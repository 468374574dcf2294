"""A transaction that is rescued as lines of JSON: one for each row or statement, exact, and readable by a person.

Numbers are numbers; decimals, dates and times are text as the database writes them; what is not text is
`{"base64": ...}`. What cannot be told is told to be so, with the reason: the raw events beside the lines have it.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal

from pydantic import TypeAdapter, ValidationError

from cluster import clock
from cluster.binlog.decoding import Decoder, Image, Row, Table, Value
from cluster.binlog.events import GTID_STANDALONE, Kind, gtid_of
from cluster.binlog.framing import MIB, EventHeader
from cluster.binlog.rows import (
    CHANGES,
    FLAGS_OFFSET,
    TABLE_ID_OFFSET,
    query_of,
    row_bytes_of,
    table_map_of,
)
from cluster.binlog.statements import Does, statement_of
from cluster.errors import BadInput, MalformedStream
from cluster.position import Gtid
from cluster.records import describe

Json = None | int | float | str | dict[str, str]
JsonRow = Mapping[str, Json]
EVENT_BYTES_DECODED_MAX = 128 * MIB
"""A larger event of rows is kept as it is, and not decoded: its values would need many times its size of memory."""
COMPRESSED_TYPES = frozenset({140, 141})
"""Columns that are COMPRESSED, in a table map."""
GTID_DDL, GTID_PREPARED_XA, GTID_COMPLETED_XA = 0x20, 0x40, 0x80
BASE64 = "base64"
ROW_KINDS = frozenset({"insert", "update", "delete"})
OWN_TABLES = "oscar_ha."
RAW_ONLY = "only in the raw events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row change, or one statement, of a transaction."""

    number: int
    """Counts all lines of a rescue, from 1."""
    gtid: str
    time: str
    """Of the commit, as the server's clock said."""
    kind: str
    """insert, update, delete; ddl, statement; xa, rollback, empty: what a transaction was that has no row to show."""
    table: str = ""
    """`database.table`; of a statement the tables it names, with commas, as far as that is understood."""
    key: dict[str, Json] | None = None
    """The primary key of the row, before the change; None where the table has none, or it is not known."""
    before: dict[str, Json] | None = None
    after: dict[str, Json] | None = None
    statement: str = ""
    database: str = ""
    """The default database of a statement."""
    rows: int | None = None
    """How many rows a line stands for whose rows are not told."""
    prepared: str = ""
    """The XA transaction that this is a part of. It was prepared, not committed: only its owner knows what it is to be."""
    why: str = ""
    """Why something is not told, or must not be applied."""


_ADAPTER = TypeAdapter(Line)


def encode(line: Line) -> bytes:
    """Return a line; what is empty is left out."""
    told = {name: value for name, value in asdict(line).items() if value not in ("", None) or name == "number"}
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(data: bytes) -> Line:
    """Return the line that bytes are. Raises BadInput."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise BadInput(f"a line of a rescue is none: {describe(error)}") from error


def coded(value: Value) -> Json:
    """Return a value for JSON."""
    if isinstance(value, bytes):
        return {BASE64: base64.b64encode(value).decode()}
    return format(value, "f") if isinstance(value, Decimal) else value


def uncoded(value: Json) -> int | float | str | bytes | None:
    """Return what `coded` made; a decimal stays text, as exact. Raises BadInput."""
    if not isinstance(value, dict):
        return value
    try:
        return base64.b64decode(value[BASE64], validate=True)
    except (KeyError, binascii.Error) as error:
        raise BadInput(f"{value!r} is no value of a rescue", hint=f"bytes are {{{BASE64!r}: ...}}") from error


class Teller:
    """Makes lines of the events of transactions, in their order."""

    def __init__(self, decoder: Decoder, number: int = 0) -> None:
        self.number = number
        self._decoder = decoder
        self._gtid, self._time, self._flags, self._prepared = "", "", 0, ""
        self._tables: dict[bytes, tuple[str, Table | None, str]] = {}
        self._told = 0

    def begin(self, gtid: Gtid, header: EventHeader, event: memoryview) -> None:
        """Begin a transaction with its GTID event."""
        self._gtid, self._time, self._flags = str(gtid), clock.utc_text(header.timestamp), gtid_of(event)[2]
        self._prepared = str(gtid) if self._flags & GTID_PREPARED_XA else ""
        self._tables.clear()
        self._told = self.number

    def event(self, header: EventHeader, event: memoryview) -> Iterator[Line]:
        """Yield the lines of one event."""
        if header.kind == Kind.TABLE_MAP:
            self._map(event)
        elif header.kind in CHANGES:
            yield from self._rows(header, event)
        elif header.kind in (Kind.QUERY, Kind.QUERY_COMPRESSED, Kind.EXECUTE_LOAD_QUERY):
            yield from self._query(header, event)
        elif header.kind == Kind.XA_PREPARE:
            yield self._line("xa", statement="XA PREPARE", why="prepared: only its owner knows whether it is to be")

    def end(self) -> Iterator[Line]:
        """Yield a line for a transaction that has told none: nothing is left out."""
        if self._told == self.number:
            yield self._line("empty")

    def _line(self, kind: str, **more: object) -> Line:
        self.number += 1
        line = Line(number=self.number, gtid=self._gtid, time=self._time, kind=kind, prepared=self._prepared)
        return replace(line, **more)  # type: ignore[arg-type]  # fields of Line

    # -- rows -------------------------------------------------------------------------------------------------------

    def _map(self, event: memoryview) -> None:
        table = table_map_of(event)
        why = "its COMPRESSED columns are shown as they are stored" if COMPRESSED_TYPES & set(table.types) else ""
        try:
            described = self._decoder.table(event)
        except MalformedStream as error:
            described, why = None, f"{error.message}: {RAW_ONLY}"
        self._tables[_table_id(event)] = (table.name, described, why)

    def _rows(self, header: EventHeader, event: memoryview) -> Iterator[Line]:
        name, table, why = self._tables.get(_table_id(event), ("", None, f"no table is described for it: {RAW_ONLY}"))
        kind = CHANGES[header.kind].value
        images: list[Image] | None = None
        if table is not None:
            try:
                size = row_bytes_of(header, event)
                if size <= EVENT_BYTES_DECODED_MAX:
                    images = self._decoder.rows(table, header, event)
                else:
                    why = f"{size} bytes of rows: {RAW_ONLY}"
            except MalformedStream as error:
                why = f"{error.message}: {RAW_ONLY}"
        if table is None or images is None:
            yield self._line(kind, table=name, why=why)
            return
        why = why or ("" if table.named else "its columns have no names here: set binlog_row_metadata=FULL")
        for image in images:
            yield self._line(kind, table=name, key=_key(table, image), before=_row(image.before), after=_row(image.after), why=why)  # fmt: skip

    # -- statements ---------------------------------------------------------------------------------------------------

    def _query(self, header: EventHeader, event: memoryview) -> Iterator[Line]:
        query = query_of(header, event)
        text, does = query.text, statement_of(query)
        why = "" if query.whole else f"the whole statement is {RAW_ONLY}"
        words = text[:64].upper().split()
        if words[:1] == ["XA"] and self._flags & GTID_COMPLETED_XA:
            yield self._line("xa", statement=text, database=query.database)
        elif words[:1] == ["ROLLBACK"] and words[1:2] != ["TO"]:
            yield self._line("rollback", statement=text, why="rolled back; tables without transactions were changed")
        elif does.does is not Does.TRANSACTION:
            ddl = does.does not in (Does.CHANGE, Does.OTHER, Does.UNREAD) or bool(
                self._flags & (GTID_DDL | GTID_STANDALONE)
            )
            kind = "ddl" if ddl and does.does is not Does.CHANGE else "statement"
            tables = ",".join(dict.fromkeys((*does.tables, *does.others)))
            yield self._line(kind, table=tables, statement=text, database=query.database, why=why)


def _table_id(event: memoryview) -> bytes:
    return bytes(event[TABLE_ID_OFFSET:FLAGS_OFFSET])


def _row(row: Row | None) -> dict[str, Json] | None:
    return None if row is None else {name: coded(value) for name, value in row.items()}


def _key(table: Table, image: Image) -> dict[str, Json] | None:
    row = image.before or image.after or {}
    return {name: coded(row.get(name)) for name in table.key} or None
