"""Which transactions touched a table, or a row of it. Goes through archived events and decodes only what may match.

Most events are passed by their kind alone, rows of other tables by the name in their table map. Rows are decoded only when
a key or a value is asked for, and of those only the ones that hold the bytes of a wanted whole number.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from cluster.binlog.decoding import Decoder, Image, Row, Table, Value
from cluster.binlog.events import FIRST_OFFSET, GTID_STANDALONE, Kind, Mark, ends_transaction, gtid_of, position_of
from cluster.binlog.framing import CRC_BYTES, HEADER_BYTES, EventHeader
from cluster.binlog.rows import CHANGES, FLAGS_OFFSET, TABLE_ID_OFFSET, query_of, rows_of, table_map_of
from cluster.binlog.statements import Does, Statement, statement_of
from cluster.position import Gtid, Position

KEYS_SHOWN_MAX = 20
ROWS_SHOWN_MAX = 50
STATEMENT_CHARACTERS_MAX = 10_000
CLOCK_SLACK_SECONDS = 600
"""A file is passed over by its time only if it is this much outside of what is asked: clocks are set back."""
ROWS_COUNTED_MAX = 10**9
NULL, STATEMENT = "NULL", "statement"
Event = tuple[EventHeader, int, memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for; what is empty or None does not matter."""

    table: str | None = None
    """`table` or `database.table`."""
    key: tuple[str, ...] = ()
    """A value for each column of the primary key."""
    where: tuple[tuple[str, str], ...] = ()
    kinds: frozenset[str] = frozenset()
    """Of insert, update, delete, ddl."""
    since: int | None = None
    until: int | None = None
    """Unix seconds, as the primary's clock said; both are part of it."""
    first: Gtid | None = None
    last: Gtid | None = None
    """In the order of the archive; both are part of it."""

    def is_table(self, name: str) -> bool:
        """Return whether a table, or `database.*`, is or has the wanted one."""
        if self.table is None or self.table == name:
            return True
        database, table = name.split(".", 1)
        return self.table == table or (table == "*" and self.table.split(".", 1)[0] in (database, self.table))

    def is_statement(self, statement: Statement) -> bool:
        """Return whether a statement is of a wanted kind. One that changes rows as text may be any of them."""
        if statement.does in (Does.TRANSACTION, Does.OTHER):
            return False
        if not self.kinds:
            return True
        return bool(self.kinds - {"ddl"}) if statement.does is Does.CHANGE else "ddl" in self.kinds


@dataclass(slots=True)
class Touched:
    """What a transaction did to a table."""

    table: str
    kind: str
    rows: int | None = None
    """Those that match; None for a statement, which names no rows."""
    keys: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)


@dataclass(slots=True)
class Transaction:
    """One that was found."""

    epoch: int
    file: str
    offset: int
    gtid: Gtid
    before: Position
    """The position before it: to stop there is to be without it."""
    timestamp: int
    touched: dict[tuple[str, str], Touched] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a file before it is read."""

    epoch: int
    name: str
    start: Position | None
    """The position at its beginning; None when it says none, and holds nothing then."""
    created: int | None
    """When it was begun, as the primary's clock said."""
    latest: int | None = None
    """The latest commit time in it; None while it grows."""
    marks: Sequence[Mark] = ()


def worth_reading(files: Sequence[FileFacts], wanted: Wanted) -> list[bool]:
    """Return for each file, oldest first, whether what is wanted may be in it."""
    ends = [*files[1:], None]
    return [one.start is not None and _may_hold(one, after, wanted) for one, after in zip(files, ends, strict=True)]


def _may_hold(one: FileFacts, after: FileFacts | None, wanted: Wanted) -> bool:
    if wanted.since is not None and one.latest is not None and one.latest < wanted.since:
        return False
    end = after.created if after is not None else None
    if one.created is not None and (end is None or end >= one.created):
        if wanted.until is not None and one.created > wanted.until + CLOCK_SLACK_SECONDS:
            return False
        if wanted.since is not None and end is not None and end < wanted.since - CLOCK_SLACK_SECONDS:
            return False
    start = one.start or Position()
    if wanted.last is not None and start.sequence(wanted.last.domain) >= wanted.last.sequence:
        return False
    reached = after.start if after is not None else None
    return wanted.first is None or reached is None or reached.sequence(wanted.first.domain) >= wanted.first.sequence


def beginning(one: FileFacts, wanted: Wanted) -> tuple[int, Position]:
    """Return where in a file to begin, and the position there: everything before it is too early."""
    found = (FIRST_OFFSET, one.start or Position())
    for mark in one.marks:
        too_old = wanted.since is not None and mark.time < wanted.since
        first = wanted.first
        if too_old or (first is not None and mark.position.sequence(first.domain) < first.sequence):
            found = (mark.offset, mark.position)
    return found


class Search:
    """Goes through files in order. Afterwards it knows what it could not do."""

    def __init__(self, wanted: Wanted, decoder: Decoder, *, show: bool = False) -> None:
        self.wanted = wanted
        self.met: set[str] = set()
        """Tables whose rows or statements matched by name."""
        self.passed: set[str] = set()
        """Other tables."""
        self.unnamed: set[str] = set()
        """Tables of those whose columns have no names here."""
        self.without: set[str] = set()
        """Tables of those that have no such column, or another primary key, or none that is known."""
        self.usable = False
        """The key or the columns asked for were there at least once."""
        self._decoder, self._show = decoder, show
        self._last: dict[int, tuple[int, int]] = {}
        self._maps: dict[bytes, Table | None] = {}
        self._known: dict[bytes, Table | None] = {}
        self._statement: memoryview | None = None
        self._standalone = self._whole = False
        """Of the transaction that comes: whether it is a statement alone, and whether its end was met."""

    def file(self, facts: FileFacts, position: Position, events: Iterable[Event]) -> Generator[Transaction]:
        """Yield what is found in the events of a file, which begin at a boundary where the position is that."""
        self._last = {gtid.domain: (gtid.server, gtid.sequence) for gtid in position.last.values()}
        first, last = self.wanted.first, self.wanted.last
        begun = first is None or position.sequence(first.domain) >= first.sequence
        found: Transaction | None = None
        for header, offset, event in events:
            if header.kind == Kind.GTID:
                if found is not None and found.touched:
                    yield found
                found = self._begin(facts, header, offset, event)
                begun = begun or (first is not None and _reaches(found.gtid, first))
                if last is not None and _passed(found.gtid, last):
                    return
                if not begun or not self._in_time(header.timestamp):
                    found = None
            elif found is not None:
                self._event(found, header, event)
        if found is not None and found.touched and self._whole:
            yield found

    def _in_time(self, timestamp: int) -> bool:
        since, until = self.wanted.since, self.wanted.until
        return (since is None or timestamp >= since) and (until is None or timestamp <= until)

    def _begin(self, facts: FileFacts, header: EventHeader, offset: int, event: memoryview) -> Transaction:
        sequence, domain, flags = gtid_of(event)
        self._standalone, self._whole = bool(flags & GTID_STANDALONE), False
        before = position_of(self._last)
        self._last[domain] = (header.server_id, sequence)
        self._maps.clear()
        self._statement = None
        gtid = Gtid(domain, header.server_id, sequence)
        return Transaction(facts.epoch, facts.name, offset, gtid, before, header.timestamp)

    def _event(self, found: Transaction, header: EventHeader, event: memoryview) -> None:
        kind = header.kind
        if kind == Kind.TABLE_MAP:
            self._map(event)
        elif kind in CHANGES:
            table = self._maps.get(bytes(event[TABLE_ID_OFFSET:FLAGS_OFFSET]))
            if table is not None and (not self.wanted.kinds or CHANGES[kind] in self.wanted.kinds):
                self._rows(found, table, header, event)
        elif kind == Kind.ANNOTATE_ROWS:
            self._statement = event
        elif kind in (Kind.QUERY, Kind.QUERY_COMPRESSED, Kind.EXECUTE_LOAD_QUERY):
            self._whole = self._standalone or (kind == Kind.QUERY and ends_transaction(event))
            self._query(found, header, event)
        elif kind in (Kind.XID, Kind.XA_PREPARE):
            self._whole = True

    def _map(self, event: memoryview) -> None:
        body = bytes(event[FLAGS_OFFSET:-CRC_BYTES])
        if body in self._known:
            table = self._known[body]
        else:
            table = self._known[body] = self._met(event)
        self._maps[bytes(event[TABLE_ID_OFFSET:FLAGS_OFFSET])] = table

    def _met(self, event: memoryview) -> Table | None:
        """Return the table that a map describes, None when it is not wanted."""
        name = table_map_of(event).name
        if not self.wanted.is_table(name):
            self.passed.add(name)
            return None
        table = self._decoder.table(event)
        self.met.add(table.name)
        if not table.named:
            self.unnamed.add(table.name)
        if self._asked(table) is None:
            self.without.add(table.name)
        else:
            self.usable = True
        return table

    def _asked(self, table: Table) -> list[tuple[str, str]] | None:
        """Return the columns and values asked for, None when this table does not have them."""
        key, where = self.wanted.key, self.wanted.where
        if (key and len(key) != len(table.key)) or any(column not in table.columns for column, _ in where):
            return None
        return [*zip(table.key, key, strict=False), *where]

    def _rows(self, found: Transaction, table: Table, header: EventHeader, event: memoryview) -> None:
        asked = self._asked(table)
        if asked is None:
            return
        change = CHANGES[header.kind].value
        touched = found.touched.get((table.name, change)) or Touched(table.name, change, 0)
        if asked:
            matching = self._matching(table, asked, header, event)
            rows = len(matching)
        else:
            counted = table.lengths.count(rows_of(header, event), most=ROWS_COUNTED_MAX)
            wanted = KEYS_SHOWN_MAX if table.key else 0
            few = len(touched.keys) < wanted or (self._show and len(touched.images) < ROWS_SHOWN_MAX)
            matching = self._decoder.rows(table, header, event) if few or counted is None else []
            rows = counted[0] if counted is not None else len(matching)
        if not rows:
            return
        touched.rows = (touched.rows or 0) + rows
        found.touched[table.name, change] = touched
        touched.keys += [_key_text(table, one) for one in matching[: KEYS_SHOWN_MAX - len(touched.keys)] if table.key]
        if self._show:
            touched.images += matching[: ROWS_SHOWN_MAX - len(touched.images)]
            self._tell_statement(found)

    def _matching(
        self, table: Table, asked: Sequence[tuple[str, str]], header: EventHeader, event: memoryview
    ) -> list[Image]:
        data = rows_of(header, event).data
        for column, text in asked:
            number = _whole(text)
            needle = None if number is None else table.bytes_of(column, number)
            if needle is not None and needle not in data:
                return []
        return [one for one in self._decoder.rows(table, header, event) if _fits(one, asked)]

    def _query(self, found: Transaction, header: EventHeader, event: memoryview) -> None:
        query = query_of(header, event)
        statement = statement_of(query)
        if not self.wanted.is_statement(statement):
            return
        for name in (*statement.tables, *statement.others):
            if self.wanted.is_table(name):
                self.met.add(name)
                kind = STATEMENT if statement.does is Does.CHANGE else statement.does.value
                found.touched[name, kind] = Touched(name, kind)
                if self._show and (text := query.text[:STATEMENT_CHARACTERS_MAX]) not in found.statements:
                    found.statements.append(text)

    def _tell_statement(self, found: Transaction) -> None:
        if self._statement is not None:
            text = bytes(self._statement[HEADER_BYTES:-CRC_BYTES]).decode(errors="replace")
            found.statements.append(text[:STATEMENT_CHARACTERS_MAX])
            self._statement = None


def _reaches(gtid: Gtid, wanted: Gtid) -> bool:
    return gtid.domain == wanted.domain and gtid.sequence >= wanted.sequence


def _passed(gtid: Gtid, wanted: Gtid) -> bool:
    return gtid.domain == wanted.domain and gtid.sequence > wanted.sequence


def _fits(image: Image, asked: Sequence[tuple[str, str]]) -> bool:
    rows = [row for row in (image.before, image.after) if row is not None]
    return any(all(column in row and same(row[column], text) for column, text in asked) for row in rows)


def _key_text(table: Table, image: Image) -> str:
    row: Row = image.before or image.after or {}
    return ", ".join(shown(row.get(column)) for column in table.key)


def same(value: Value, text: str) -> bool:
    """Return whether a value is what somebody typed: numbers by number, text by letter, bytes as text or 0x..."""
    if value is None:
        return text == NULL
    if isinstance(value, str):
        return value == text
    if isinstance(value, bytes):
        return text.lower() == f"0x{value.hex()}" or value in (text.encode(), text.encode("latin-1", "replace"))
    try:
        return Decimal(text) == (value if isinstance(value, int | Decimal) else Decimal(repr(value)))
    except InvalidOperation:
        return False


def shown(value: Value) -> str:
    """Return a value as a person reads it."""
    if value is None:
        return NULL
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
