"""The mass-change alarm, by files made by hand and by files of a real MariaDB."""

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.binlog.events import Kind
from cluster.binlog.framing import HEADER, EventHeader, an_event
from cluster.binlog.rows import (
    QUERY_BYTES_MAX,
    Change,
    RowLengths,
    TableMap,
    decompressed,
    plain,
    rows_of,
    table_map_of,
)
from cluster.clock import NANOS_PER_SECOND, Nanos
from cluster.errors import MalformedStream
from cluster.position import Position
from cluster.settings import Alarm, TableAlarm
from replicator.changes import Changes, Raised, StreamTime
from replicator.segments import events_of
from tests.servers.mariadb import MariaDBServer

NOON = 1_700_000_000
ROWS = {Change.INSERT: Kind.WRITE_ROWS_V1, Change.UPDATE: Kind.UPDATE_ROWS_V1, Change.DELETE: Kind.DELETE_ROWS_V1}
TABLE_ID = bytes((7, 0, 0, 0, 0, 0))


class Stream:
    """Feeds events of transactions, each at its time."""

    def __init__(self, limits: Alarm, position: str = "0-1-9") -> None:
        self.changes = Changes(limits)
        self.changes.restart(Position.parse(position))
        self.sequence = 9
        self.seconds = 0.0
        """Of our own clock."""
        self.wall = NOON + 10_000

    def give(self, kind: int, body: bytes, *, at: float, flags: int = 0, exact: bool = True) -> None:
        event = memoryview(an_event(kind, body, server_id=1, timestamp=int(NOON + at), flags=flags))
        header = EventHeader._make(HEADER.unpack_from(event))
        now = Nanos(1 + int(self.seconds * NANOS_PER_SECOND))
        self.changes.follow(header, event, now=now, wall_seconds=self.wall, exact=exact)

    def begin(self, at: float) -> str:
        self.sequence += 1
        self.give(Kind.GTID, Struct("<QIB").pack(self.sequence, 0, 4) + bytes(6), at=at)
        return f"0-1-{self.sequence}"

    def rows(self, change: Change, count: int, *, at: float, table: str = "t", exact: bool = True) -> str:
        """One transaction; every row is one INT."""
        gtid = self.begin(at)
        name = b"\x01d\0" + bytes((len(table),)) + table.encode() + b"\0"
        self.give(Kind.TABLE_MAP, TABLE_ID + b"\x01\0" + name + b"\x01\x03\x00\x00", at=at)
        images = 2 if change is Change.UPDATE else 1
        row = b"\xfe" + bytes(4)
        body = TABLE_ID + b"\x01\0" + b"\x01" + b"\xff" * images + row * images * count
        self.give(ROWS[change], body, at=at, exact=exact)
        return gtid

    def query(self, text: str, *, at: float = 0, flags: int = 0) -> str:
        gtid = self.begin(at)
        self.give(Kind.QUERY, Struct("<IIBHH").pack(1, 0, 1, 0, 0) + b"d\0" + text.encode(), at=at, flags=flags)
        return gtid

    def alarms(self) -> list[tuple[str, str, int | None]]:
        return [(one.table, one.kind, one.rows) for one in self.standing()]

    def standing(self) -> tuple[Raised, ...]:
        return self.changes.alarms(Nanos(1 + int(self.seconds * NANOS_PER_SECOND)))


LIMITS = Alarm(changed_rows_per_minute=100, inserted_rows_per_minute=1_000)


def test_what_stays_within_the_limit_is_no_alarm() -> None:
    stream = Stream(LIMITS)
    for minute in range(10):
        stream.rows(Change.DELETE, 50, at=minute * 60)
        stream.rows(Change.UPDATE, 50, at=minute * 60 + 1)
        stream.rows(Change.INSERT, 1_000, at=minute * 60 + 2)

    assert stream.alarms() == []
    assert sum(stream.changes.take()[0].values()) == 11_000


def test_one_transaction_over_the_limit_names_itself_and_the_position_before() -> None:
    stream = Stream(LIMITS)
    stream.rows(Change.DELETE, 40, at=0)
    gtid = stream.rows(Change.DELETE, 9_000, at=5)
    (alarm,) = stream.standing()

    assert (alarm.table, alarm.kind, alarm.rows, alarm.estimated) == ("d.t", "delete", 9_040, False)
    assert (str(alarm.first), str(alarm.before), alarm.since) == (gtid, "0-1-10", NOON + 5)


def test_many_small_transactions_over_the_limit_name_the_first_of_the_minute() -> None:
    stream = Stream(LIMITS)
    stream.rows(Change.UPDATE, 1, at=0)
    for number in range(200):
        stream.rows(Change.UPDATE, 1, at=100 + number / 10)
    (alarm,) = stream.standing()

    assert (alarm.kind, alarm.rows, str(alarm.first), str(alarm.before)) == ("update", 200, "0-1-11", "0-1-10")


def test_each_table_counts_for_itself_and_inserts_have_their_own_limit() -> None:
    stream = Stream(LIMITS)
    for number in range(10):
        stream.rows(Change.DELETE, 90, at=0, table=f"t{number}")
    stream.rows(Change.INSERT, 900, at=0, table="t0")
    assert stream.alarms() == []
    stream.rows(Change.INSERT, 900, at=1, table="t0")

    assert stream.alarms() == [("d.t0", "insert", 1_800)]


def test_a_table_may_have_other_limits() -> None:
    tables = (TableAlarm(tables="d.log*", changed_rows_per_minute=10_000, drops=False),)
    stream = Stream(Alarm(changed_rows_per_minute=100, tables=tables))
    stream.rows(Change.DELETE, 5_000, at=0, table="log1")
    stream.query("TRUNCATE log1")
    stream.rows(Change.DELETE, 101, at=0, table="t")

    assert stream.alarms() == [("d.t", "delete", 101)]


def test_an_alarm_stands_for_some_minutes_and_then_ends() -> None:
    stream = Stream(Alarm(changed_rows_per_minute=100, keep_minutes=5))
    stream.wall = NOON
    stream.rows(Change.DELETE, 101, at=0)
    stream.seconds = 299.0
    assert stream.alarms()
    stream.seconds = 301.0

    assert not stream.alarms()


def test_a_day_that_comes_in_a_second_is_no_alarm() -> None:
    """While the archive catches up our own clock hardly moves."""
    stream = Stream(LIMITS)
    for minute in range(160):
        stream.rows(Change.DELETE, 100, at=minute * 60)

    assert stream.alarms() == []


def test_a_false_clock_hides_nothing() -> None:
    """SET timestamp=... before each chunk, into the past and into the future."""
    for step in (-3_600, 3_600):
        stream = Stream(LIMITS)
        stream.wall = NOON
        stream.rows(Change.DELETE, 1, at=0)
        for number in range(10):
            stream.seconds += 1
            stream.wall += 1
            stream.rows(Change.DELETE, 50, at=number * step)

        assert stream.alarms()[0][:2] == ("d.t", "delete")


@given(some.lists(some.tuples(some.integers(0, 2**32 - 1), some.integers(0, 10**6), some.integers(0, 2**32))))
def test_stream_time_never_goes_back(steps: list[tuple[int, int, int]]) -> None:
    time, now, last = StreamTime(), 1, 0.0
    for timestamp, passed, wall in steps:
        now += passed
        seconds = time.at(timestamp, Nanos(now), wall)
        assert seconds >= last
        last = seconds


@pytest.mark.parametrize(
    ("text", "alarm"),
    {
        "a drop": ("DROP TABLE `a`", ("d.a", "drop", None)),
        "a truncate": ("TRUNCATE a", ("d.a", "truncate", None)),
        "a database": ("DROP DATABASE x", ("x.*", "drop", None)),
        "a database made anew": ("CREATE OR REPLACE DATABASE x", ("x.*", "drop", None)),
        "a partition": ("ALTER TABLE a TRUNCATE PARTITION p", ("d.a", "truncate", None)),
        "or replace": ("CREATE OR REPLACE TABLE a (b INT)", ("d.a", "drop", None)),
        "behind a comment": (f"TRUNCATE /* {'x' * 5_000} */ a", ("d.a", "truncate", None)),
        "in a comment that counts": ("/*!50001 DROP */ /*M!100100 TABLE */ a", ("d.a", "drop", None)),
        "another name": ("RENAME TABLE a TO b", ("d.a", "rename", None)),
        "another name by ALTER": ("ALTER TABLE a RENAME TO b", ("d.a", "rename", None)),
        "a column": ("ALTER TABLE a ADD b INT, DROP c", ("d.a", "drop_column", None)),
        "no tablespace": ("ALTER TABLE a DISCARD TABLESPACE", ("d.a", "truncate", None)),
        "a small character set": ("ALTER TABLE a CONVERT TO CHARACTER SET ascii", ("d.a", "rewrite", None)),
        "without duplicates": ("ALTER IGNORE TABLE a ADD UNIQUE (b)", ("d.a", "rewrite", None)),
        "no engine to speak of": ("ALTER TABLE a ENGINE=BLACKHOLE", ("d.a", "rewrite", None)),
        "a statement": ("DELETE FROM a", ("d.a", "statement", None)),
        "a function that does anything": ("SELECT f()", ("*", "statement", None)),
        "more than is read": (f"/* {'x' * QUERY_BYTES_MAX} */ DROP TABLE a", ("*", "unread", None)),
        "a temporary table": ("DROP TEMPORARY TABLE a", ("d.a", "temporary_table", None)),
    }.values(),
)
def test_what_loses_a_table_or_does_not_belong_there_is_an_alarm_by_itself(
    text: str, alarm: tuple[str, str, None]
) -> None:
    stream = Stream(LIMITS)
    gtid = stream.query(text)

    assert stream.alarms() == [alarm]
    assert str(stream.standing()[0].first) == gtid


def test_a_table_that_never_had_rows_may_go() -> None:
    stream = Stream(LIMITS)
    stream.query("CREATE TABLE t (a INT)")
    stream.query("DROP TABLE t")
    stream.query("CREATE TABLE t (a INT)")
    stream.rows(Change.INSERT, 5, at=0)
    stream.rows(Change.DELETE, 5, at=0)
    stream.query("TRUNCATE t")
    assert stream.alarms() == []
    stream.rows(Change.INSERT, 1, at=0)
    stream.query("DROP TABLE t")

    assert stream.alarms() == [("d.t", "drop", None)]


def test_every_table_of_a_list_is_told() -> None:
    stream = Stream(LIMITS)
    stream.query("DROP TABLE a, e.b, c")
    stream.query("ALTER TABLE g EXCHANGE PARTITION p WITH TABLE h")

    assert [one[:2] for one in stream.alarms()] == [
        ("d.a", "drop"), ("e.b", "drop"), ("d.c", "drop"), ("d.g", "exchange"), ("d.h", "exchange")]  # fmt: skip


def test_two_tables_that_change_their_names_are_told_and_the_name_between_is_not() -> None:
    stream = Stream(LIMITS)
    stream.query("RENAME TABLE a TO x, b TO a, x TO b")

    assert stream.alarms() == [("d.a", "rename", None), ("d.b", "rename", None)]


def test_a_table_that_is_gone_may_be_dropped_and_made_again() -> None:
    """As an update of OSCAR does."""
    stream = Stream(Alarm(changed_rows_per_minute=100, keep_minutes=1))
    stream.query("DROP TABLE IF EXISTS a")
    stream.seconds = 61.0
    assert stream.alarms() == []
    stream.query("DROP TABLE IF EXISTS a")
    stream.query("CREATE TABLE IF NOT EXISTS a (b INT)")
    stream.query("ALTER TABLE a ADD c INT, DROP b")
    stream.query("CREATE OR REPLACE TABLE a (b INT)")

    assert stream.alarms() == []


def test_an_empty_table_lends_its_name_to_nobody() -> None:
    """A table whose making was seen goes silently; one that has got its name does not."""
    for exchange in (
        "RENAME TABLE b TO c, a TO b",
        "ALTER TABLE a RENAME TO c",
        "ALTER TABLE b EXCHANGE PARTITION p WITH TABLE a",
    ):
        stream = Stream(LIMITS)
        stream.query("CREATE TABLE b (a INT)")
        stream.query("CREATE TABLE c (a INT)")
        stream.query("DROP TABLE c")
        stream.query(exchange)
        told = len(stream.alarms())
        stream.query("DROP TABLE b, c")

        assert len(stream.alarms()) == told + 1, exchange


def test_rows_that_nobody_counted_are_not_forgotten() -> None:
    for unseen in ("INSERT INTO a SELECT * FROM b", "ALTER TABLE a IMPORT TABLESPACE", "SELECT f()"):
        stream = Stream(LIMITS)
        stream.query("CREATE TABLE a (b INT)")
        stream.query(unseen)
        stream.query("TRUNCATE a")

        assert ("d.a", "truncate", None) in stream.alarms(), unseen


def test_the_first_of_several_losses_is_the_one_to_stop_before() -> None:
    stream = Stream(LIMITS)
    first = stream.query("TRUNCATE a")
    stream.rows(Change.INSERT, 5, at=1, table="a")
    stream.query("TRUNCATE a", at=2)
    (alarm,) = stream.standing()

    assert (str(alarm.first), alarm.since, alarm.seen) == (first, NOON, NOON + 2)


def test_statements_temporary_tables_and_loads_are_counted_by_sort() -> None:
    """TRAPS.md 19."""
    stream = Stream(LIMITS)
    stream.query("INSERT INTO a VALUES (1)")
    stream.query("INSERT INTO a SELECT * FROM tmp", flags=0x04)
    stream.query("CREATE TEMPORARY TABLE tmp (a INT)", flags=0x04)
    stream.query("DROP TABLE b", flags=0x04)  # so MariaDB marks any DROP TABLE
    stream.begin(0)
    stream.give(Kind.BEGIN_LOAD_QUERY, bytes(20), at=0)

    assert stream.changes.take()[1] == {"statement": 1, "temporary_table": 2, "load_data": 1}


def test_rows_are_estimated_from_earlier_ones_when_there_is_no_time() -> None:
    stream = Stream(LIMITS)
    stream.rows(Change.DELETE, 10, at=0)
    stream.rows(Change.DELETE, 5_000, at=1, exact=False)
    (alarm,) = stream.standing()

    assert (alarm.rows, alarm.estimated) == (5_010, True)


def test_an_event_with_more_rows_than_are_walked_is_estimated() -> None:
    stream = Stream(LIMITS)
    stream.rows(Change.UPDATE, 25_000, at=1)
    (alarm,) = stream.standing()

    assert (alarm.rows, alarm.estimated) == (25_000, True)


@given(some.binary(max_size=80), some.binary(max_size=200), some.sampled_from(sorted(map(int, ROWS.values()))))
def test_damaged_rows_are_refused_or_not_believed(described: bytes, body: bytes, kind: int) -> None:
    try:
        table = table_map_of(memoryview(an_event(Kind.TABLE_MAP, described, server_id=1)))
        lengths = RowLengths(table)
        event = memoryview(an_event(kind, body, server_id=1))
        rows = rows_of(EventHeader._make(HEADER.unpack_from(event)), event)
    except MalformedStream:
        return
    counted = lengths.count(rows, most=100)

    assert counted is None or counted[1] <= len(rows.data)


@given(some.binary(max_size=40))
def test_what_is_not_compressed_by_the_server_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedStream):
        decompressed(memoryview(b"\x81\x05" + data))


def test_a_table_with_a_type_nobody_knows_is_counted_by_its_bytes() -> None:
    table = TableMap(1, "d", "t", b"\x99", b"", 0, b"")

    assert RowLengths(table).count(rows_of(*_an_insert(b"\xfe" + bytes(500))), most=10) is None


def _an_insert(data: bytes) -> tuple[EventHeader, memoryview]:
    event = memoryview(an_event(Kind.WRITE_ROWS_V1, TABLE_ID + b"\x01\0\x01\xff" + data, server_id=1))
    return EventHeader._make(HEADER.unpack_from(event)), event


# -- with a real server -------------------------------------------------------------------------------------------------

COLUMNS = (
    "INT", "TINYINT UNSIGNED", "SMALLINT", "MEDIUMINT", "BIGINT UNSIGNED", "FLOAT", "DOUBLE", "DECIMAL(10,2)",
    "DECIMAL(65,30)", "DECIMAL(5,5)", "BIT(1)", "BIT(13)", "BIT(64)", "DATE", "DATETIME", "DATETIME(3)",
    "TIMESTAMP NULL", "TIMESTAMP(6) NULL", "TIME", "TIME(2)", "YEAR", "CHAR(10)", "CHAR(255) CHARACTER SET utf8mb4",
    "VARCHAR(40)", "VARCHAR(400) CHARACTER SET utf8mb4", "BINARY(20)", "VARBINARY(300)", "TINYBLOB", "BLOB",
    "MEDIUMTEXT", "LONGBLOB", "JSON", "ENUM('a','b')", "SET('p','q','r','s','t','u','v','w','x')", "INET6", "UUID",
    "POINT", "TEXT COMPRESSED", "VARCHAR(200) COMPRESSED",
)  # fmt: skip


def a_value(sql_type: str, chance: random.Random) -> str:
    """Return something that a column of that type takes."""
    if chance.random() < 0.3:
        return "NULL"
    number = chance.randrange(100)
    special = {"JSON": f"'[{number}]'", "INET6": f"'::{number}'", "ENUM": "'a'", "SET": "'p,x'", "YEAR": str(2000 + number),
               "UUID": "UUID()", "POINT": f"POINT({number}, 2)", "DATE": "'2024-02-29'", "TIME": "'-11:12:13.45'",
               "DECIMAL(5": "0.25", "BIT(1)": "1"}  # fmt: skip
    for beginning in ("DATETIME", "TIMESTAMP"):
        if sql_type.startswith(beginning):
            return "'2024-02-29 01:02:03.456789'"
    for beginning, value in special.items():
        if sql_type.startswith(beginning):
            return value
    if any(word in sql_type for word in ("CHAR", "TEXT", "BLOB", "BINARY")):
        return f"REPEAT('{number % 10}', {chance.randrange(10 if '(10)' in sql_type else 20)})"
    return str(number)


def fed(changes: Changes, paths: Iterable[Path]) -> Counter[tuple[str, Change]]:
    for path in paths:
        for header, _, event in events_of(path, until=path.stat().st_size):
            assert plain(header, event)
            changes.follow(header, event, now=Nanos(1), wall_seconds=NOON * 2, exact=True)
    return changes.take()[0]


@pytest.mark.servers
def test_rows_are_counted_exactly_whatever_the_columns(tmp_path: Path, mariadb_template: Path) -> None:
    chance, expected = random.Random(3), Counter[tuple[str, Change]]()
    with MariaDBServer(tmp_path / "db", 1, template=mariadb_template) as server:
        connection = server.connect()
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE d CHARACTER SET latin1")
            cursor.execute("USE d")
            for number in range(24):
                types = COLUMNS if number == 0 else chance.choices(COLUMNS, k=chance.randrange(1, 20))
                cursor.execute(f"SET GLOBAL log_bin_compress = {number % 2}, log_bin_compress_min_len = 10")
                cursor.execute(f"SET SESSION binlog_row_image = {chance.choice(('FULL', 'FULL', 'MINIMAL', 'NOBLOB'))}")
                engine = chance.choice(("InnoDB", "MyISAM", "Aria"))
                columns = ", ".join(f"c{at} {sql_type}" for at, sql_type in enumerate(types))
                cursor.execute(f"CREATE TABLE t{number} (id INT AUTO_INCREMENT PRIMARY KEY, {columns}) ENGINE={engine}")
                for _ in range(4):
                    rows = [f"(NULL, {', '.join(a_value(one, chance) for one in types)})" for _ in range(60)]
                    cursor.execute(f"INSERT INTO t{number} VALUES {', '.join(rows)}")
                    expected[f"d.t{number}", Change.INSERT] += cursor.rowcount
                cursor.execute(f"UPDATE t{number} SET c0 = {a_value(types[0], chance)} WHERE id % 3 = 0")
                expected[f"d.t{number}", Change.UPDATE] += cursor.rowcount
                cursor.execute(f"DELETE FROM t{number} WHERE id % 5 <> 0")
                expected[f"d.t{number}", Change.DELETE] += cursor.rowcount
        connection.close()
        server.run("FLUSH BINARY LOGS")
        counted = fed(Changes(Alarm()), server.binlogs)

    assert counted == +expected
