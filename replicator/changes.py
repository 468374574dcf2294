"""How many rows of which table change, counted from the stream's own events, and when that is an alarm. Pure.

Fed with every event of an archive, whole groups, in order. No value is decoded: rows are walked by their lengths, and
where that would take too long their number is estimated from the bytes of earlier rows of the same table.

The minute of a change is judged by a time of the stream's own (`StreamTime`): while an archive catches up it follows
the events' timestamps, or a day that comes in a minute would be an alarm; it never runs slower than our own clock and
never ahead of wall time, so nobody hides a mass change behind `SET timestamp` or a wrong clock (TRAPS.md 38).
"""

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from cluster.binlog.events import Kind, ends_transaction, gtid_of, position_of
from cluster.binlog.framing import CRC_BYTES, EventHeader
from cluster.binlog.rows import (
    CHANGES,
    FLAGS_OFFSET,
    TABLE_ID_OFFSET,
    Change,
    RowLengths,
    query_of,
    row_bytes_of,
    rows_of,
    table_map_of,
)
from cluster.binlog.statements import LOSES_ROWS, Does, Statement, statement_of
from cluster.clock import NANOS_PER_SECOND, Nanos
from cluster.position import Gtid, Position
from cluster.settings import Alarm as Limits
from cluster.settings import TableAlarm

WINDOW_SECONDS, BUCKET_SECONDS = 60, 10
SECONDS_PER_MINUTE = 60
EXACT_ROWS_MAX = 10_000
"""So many rows of one event are walked; the rest of it is estimated from them."""
UNKNOWN_ROW_BYTES = 100
"""A row of a table whose rows cannot be walked."""
TABLES_MAX = 8_192
"""So many tables are remembered; then it begins anew."""
ALARMS_MAX = 32
"""So many stand at once; who changes more tables is seen by these."""
FLAG_THREAD_SPECIFIC = 0x04
STATEMENT, TEMPORARY_TABLE, LOAD_DATA, UNREAD = "statement", "temporary_table", "load_data", "unread"
"""What a stream of rows should not hold (TRAPS.md 19), and a statement that is hidden behind too much text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm: what changes, since when, and where to stop before it."""

    table: str
    kind: str
    """`insert`, `update`, `delete`; a `Does` of `LOSES_ROWS`; or what should not be in a stream of rows."""
    rows: int | None
    """None: nobody counted them."""
    estimated: bool
    first: Gtid
    before: Position
    """Everything before the first transaction of it: to stop there is to lose nothing else."""
    since: int
    """Unix seconds, as the primary's clock said."""
    seen: float
    """Stream time of the newest change that belongs to it."""
    single: bool = False
    """`first` alone is over the limit: it is the one to stop before."""


class StreamTime:
    """Seconds that only go forward; see the module."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, Nanos(0)

    def at(self, timestamp: int, now: Nanos, wall_seconds: int) -> float:
        """Return the time of an event with that timestamp, met `now`, when wall time is `wall_seconds`."""
        passed = self.now(now)
        self._seconds, self._last = max(passed, float(min(timestamp, wall_seconds))), now
        return self._seconds

    def now(self, now: Nanos) -> float:
        """Return the time without an event."""
        return self._seconds + (max(0, now - self._last) / NANOS_PER_SECOND if self._last else 0.0)


@dataclass(frozen=True, slots=True)
class _Group:
    """The transaction whose events come."""

    gtid: Gtid
    before: dict[int, tuple[int, int]]
    timestamp: int
    seconds: float


@dataclass(slots=True)
class _Bucket:
    """The changes of one table in some seconds."""

    begin: float
    first: _Group
    changed: int = 0
    inserted: int = 0


@dataclass(slots=True)
class _Table:
    """What is known of a table."""

    name: str
    limits: TableAlarm
    lengths: RowLengths
    seen: dict[Change, tuple[int, int]] = field(default_factory=dict)
    """Bytes and rows that were walked last."""


@dataclass(slots=True)
class _Window:
    """The last minute of a table."""

    buckets: deque[_Bucket] = field(default_factory=deque)
    group: _Group | None = None
    group_rows: Counter[Change] = field(default_factory=Counter)
    """Of the transaction that comes, or came last."""

    def add(self, group: _Group, change: Change, rows: int) -> int:
        """Count, and return the rows of this sort in the last minute."""
        if self.group is not group:
            self.group = group
            self.group_rows.clear()
        self.group_rows[change] += rows
        buckets = self.buckets
        while buckets and buckets[0].begin + WINDOW_SECONDS <= group.seconds:
            buckets.popleft()
        if not buckets or buckets[-1].begin + BUCKET_SECONDS <= group.seconds:
            buckets.append(_Bucket(group.seconds, group))
        if change is Change.INSERT:
            buckets[-1].inserted += rows
            return sum(bucket.inserted for bucket in buckets)
        buckets[-1].changed += rows
        return sum(bucket.changed for bucket in buckets)

    def in_group(self, change: Change) -> int:
        """Return the rows of this sort in the present transaction."""
        if change is Change.INSERT:
            return self.group_rows[Change.INSERT]
        return self.group_rows[Change.UPDATE] + self.group_rows[Change.DELETE]


class Changes:
    """Counts, and raises alarms."""

    def __init__(self, limits: Limits) -> None:
        self._counts: tuple[Counter[tuple[str, Change]], Counter[str]] = (Counter(), Counter())
        self._limits = limits
        self._time = StreamTime()
        self._last: dict[int, tuple[int, int]] = {}
        self._group: _Group | None = None
        self._maps: dict[bytes, _Table] = {}
        self._tables: dict[bytes, _Table] = {}
        self._windows: dict[str, _Window] = {}
        self._born: dict[str, int] = {}
        """Tables whose making we saw, and the rows they have since."""
        self._raised: dict[tuple[str, str], Raised] = {}

    def restart(self, position: Position) -> None:
        """Go on at a boundary where the position is that."""
        self._last = {gtid.domain: (gtid.server, gtid.sequence) for gtid in position.last.values()}
        self._group = None
        self._maps.clear()

    def follow(self, header: EventHeader, event: memoryview, *, now: Nanos, wall_seconds: int, exact: bool) -> None:
        """Take the next event; with `exact` its rows are walked. Raises MalformedStream."""
        kind = header.kind
        if kind == Kind.GTID:
            self._begin(header, event, now, wall_seconds)
        elif self._group is None:
            return
        elif kind == Kind.TABLE_MAP:
            self._map(event)
        elif kind in CHANGES:
            self._rows(self._group, header, event, exact)
        elif kind in (Kind.QUERY, Kind.QUERY_COMPRESSED):
            self._query(self._group, header, event)
        elif kind == Kind.BEGIN_LOAD_QUERY:
            self._unsafe(self._group, LOAD_DATA, "*")

    def take(self) -> tuple[Counter[tuple[str, Change]], Counter[str]]:
        """Return what was counted since the last call: rows by table and change, and what should not be there by sort."""
        taken, self._counts = self._counts, (Counter(), Counter())
        return taken

    def alarms(self, now: Nanos) -> tuple[Raised, ...]:
        """Return the alarms that stand, the oldest first; those that are over long enough are forgotten."""
        oldest = self._time.now(now) - self._limits.keep_minutes * SECONDS_PER_MINUTE
        self._raised = {key: one for key, one in self._raised.items() if one.seen > oldest}
        return tuple(self._raised.values())

    # -- below ------------------------------------------------------------------------------------------------------

    def _begin(self, header: EventHeader, event: memoryview, now: Nanos, wall_seconds: int) -> None:
        sequence, domain, _ = gtid_of(event)
        before = dict(self._last)
        self._last[domain] = (header.server_id, sequence)
        self._maps.clear()  # a table id means nothing beyond its group (TRAPS.md 8)
        seconds = self._time.at(header.timestamp, now, wall_seconds)
        self._group = _Group(Gtid(domain, header.server_id, sequence), before, header.timestamp, seconds)

    def _map(self, event: memoryview) -> None:
        body = bytes(event[FLAGS_OFFSET:-CRC_BYTES])
        table = self._tables.get(body)
        if table is None:
            described = table_map_of(event)
            if len(self._tables) >= TABLES_MAX:
                self._tables.clear()
            table = _Table(described.name, limits_of(described.name, self._limits), RowLengths(described))
            self._tables[body] = table
        self._maps[bytes(event[TABLE_ID_OFFSET:FLAGS_OFFSET])] = table

    def _rows(self, group: _Group, header: EventHeader, event: memoryview, exact: bool) -> None:
        table = self._maps.get(bytes(event[TABLE_ID_OFFSET:FLAGS_OFFSET]))
        if table is None:
            return  # the closing event of a statement names no table
        change = CHANGES[header.kind]
        rows, estimated = _counted(table, change, header, event, exact)
        self._counts[0][table.name, change] += rows
        if table.name in self._born:
            self._born[table.name] += {Change.INSERT: rows, Change.UPDATE: 0, Change.DELETE: -rows}[change]
        window = self._windows.get(table.name) or self._window(table.name)
        in_window = window.add(group, change, rows)
        inserts = change is Change.INSERT
        limit = table.limits.inserted_rows_per_minute if inserts else table.limits.changed_rows_per_minute
        if limit is not None and in_window > limit:
            self._over(group, limit, window, _raise(group, table.name, change, rows, estimated), in_window)

    def _window(self, name: str) -> _Window:
        if len(self._windows) >= TABLES_MAX:
            self._windows.clear()
        return self._windows.setdefault(name, _Window())

    def _over(self, group: _Group, limit: int, window: _Window, event: Raised, in_window: int) -> None:
        """Raise the alarm of a table and sort of change, or let it grow. `event` tells what came last."""
        key = (event.table, "insert" if event.kind == Change.INSERT else "change")
        standing = self._raised.get(key)
        if standing is None:
            first = window.buckets[0].first
            grown = replace(_raise(first, event.table, event.kind, in_window, event.estimated), seen=event.seen)
        else:
            grown = replace(standing, kind=event.kind, rows=(standing.rows or 0) + (event.rows or 0), seen=event.seen,
                            estimated=standing.estimated or event.estimated)  # fmt: skip
        if not grown.single and window.in_group(Change(event.kind)) > limit:
            grown = replace(
                grown, first=group.gtid, before=position_of(group.before), since=group.timestamp, single=True
            )
        self._stand(key, grown)

    def _query(self, group: _Group, header: EventHeader, event: memoryview) -> None:
        if header.kind == Kind.QUERY and ends_transaction(event):
            return  # what most are: the end of every change of a table without transactions
        statement = statement_of(query_of(header, event))
        if statement.does is Does.TRANSACTION:
            return
        changes = statement.does is Does.CHANGE
        if statement.temporary or (changes and header.flags & FLAG_THREAD_SPECIFIC):
            self._unsafe(group, TEMPORARY_TABLE, *statement.tables[:1])
        elif changes:
            self._unsafe(group, STATEMENT, *statement.tables[:1])
        elif statement.does is Does.UNREAD:
            self._unsafe(group, UNREAD, *statement.tables[:1])
        else:
            self._definition(group, statement)

    def _definition(self, group: _Group, statement: Statement) -> None:
        loses = statement.does in LOSES_ROWS
        for number, table in enumerate(statement.tables):
            # A name that this very statement gave is that of a table that was named before.
            named_here = table in statement.others[:number]
            if loses and not named_here and limits_of(table, self._limits).drops and self._born.get(table) != 0:
                self._tell(group, table, statement.does)
            if statement.does is Does.RENAME:
                self._moved(table, statement.others[number])
        if statement.does is Does.EXCHANGE:
            self._forget(*statement.tables)
        elif statement.does is not Does.RENAME:
            self._forget(*statement.others)
        for table in statement.tables if statement.empty_after else ():
            self._set_born(table, 0)

    def _moved(self, table: str, new: str) -> None:
        """A table has another name: what is known of its rows goes with it, and the old name has none."""
        rows = self._born.get(table)
        self._set_born(table, 0)
        if rows is None:
            self._forget(new)
        else:
            self._set_born(new, rows)

    def _set_born(self, table: str, rows: int) -> None:
        if len(self._born) >= TABLES_MAX:
            self._born.clear()
        self._born[table] = rows

    def _forget(self, *tables: str) -> None:
        for table in tables:
            self._born.pop(table, None)

    def _unsafe(self, group: _Group, kind: str, table: str = "*") -> None:
        self._counts[1][kind] += 1
        self._born.clear()  # it may have put rows anywhere
        self._tell(group, table, kind)

    def _tell(self, group: _Group, table: str, kind: str) -> None:
        """Raise an alarm without a number of rows; while it stands, its first transaction is the one to stop before."""
        standing = self._raised.get((table, kind))
        now = _raise(group, table, kind, None, False)
        self._stand((table, kind), now if standing is None else replace(standing, seen=now.seen))

    def _stand(self, key: tuple[str, str], raised: Raised) -> None:
        if key in self._raised or len(self._raised) < ALARMS_MAX:
            self._raised[key] = raised


def limits_of(table: str, limits: Limits) -> TableAlarm:
    """Return what holds for a table: of the first pattern that fits, else the general ones."""
    found = next((one for one in limits.tables if fnmatchcase(table, one.tables)), None)
    general = TableAlarm(tables="*", changed_rows_per_minute=limits.changed_rows_per_minute,
                         inserted_rows_per_minute=limits.inserted_rows_per_minute, drops=limits.drops)  # fmt: skip
    if found is None:
        return general
    return TableAlarm(
        tables=found.tables,
        changed_rows_per_minute=found.changed_rows_per_minute or general.changed_rows_per_minute,
        inserted_rows_per_minute=found.inserted_rows_per_minute or general.inserted_rows_per_minute,
        drops=general.drops if found.drops is None else found.drops,
    )


def _raise(group: _Group, table: str, kind: str, rows: int | None, estimated: bool) -> Raised:
    return Raised(table=table, kind=kind, rows=rows, estimated=estimated, first=group.gtid,
                  before=position_of(group.before), since=group.timestamp, seen=group.seconds)  # fmt: skip


def _counted(table: _Table, change: Change, header: EventHeader, event: memoryview, exact: bool) -> tuple[int, bool]:
    """Return the rows of an event, and whether that is an estimate."""
    known = table.seen.get(change)
    if known is not None and not exact:
        return max(1, round(row_bytes_of(header, event) * known[1] / known[0])), True
    rows = rows_of(header, event)
    walked = table.lengths.count(rows, most=EXACT_ROWS_MAX)
    size = len(rows.data)
    if walked is None:
        return max(1, size // UNKNOWN_ROW_BYTES), True
    counted, passed = walked
    if counted:
        table.seen[change] = passed, counted
    return (counted, False) if passed == size else (round(counted * size / passed), True)
