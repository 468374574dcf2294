"""`oscar-ha archive find`, on archives of a real MariaDB."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import clock
from cluster.binlog.decoding import Decoder, Row, definitions_of, text_of
from cluster.binlog.events import Mark
from cluster.binlog.rows import CHANGES, Query, table_id_of
from cluster.binlog.statements import statement_of
from cluster.errors import BadInput
from cluster.position import Gtid, Position
from cluster.records import LineageEntry
from replicator import archive_command
from replicator.archive import Archive
from replicator.find import FileFacts, Wanted, beginning, same, shown, worth_reading
from replicator.segments import events_of
from tests.replicator.house import House
from tests.servers.mariadb import MariaDBServer

Answer = tuple[int, list[dict[str, Any]], str]


def ask(*options: str | Path) -> Answer:
    """Return exit code, what was found (the totals last), and what was said beside it."""
    done = CliRunner().invoke(archive_command.app, ["find", *map(str, options), "--json"])
    if isinstance(done.exception, BadInput):
        return done.exception.exit_code, [], str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def touched(answer: Answer) -> list[tuple[str, str, int | None, list[str]]]:
    """Return (table, kind, rows, keys) of everything found."""
    return [(one["table"], one["kind"], one["rows"], one["keys"])
            for found in answer[1][:-1] for one in found["touched"]]  # fmt: skip


# -- pure ---------------------------------------------------------------------------------------------------------------


def a_file(number: int, start: str, created: int | None, latest: int | None = None) -> FileFacts:
    return FileFacts(epoch=1, name=f"b.{number}", start=Position.parse(start), created=created, latest=latest)


FILES = (a_file(1, "", 1_000, 4_999), a_file(2, "0-1-10", 5_000, 8_999), a_file(3, "0-1-20", 9_000))


@pytest.mark.parametrize(
    ("wanted", "read"),
    {
        "everything": (Wanted(), [True, True, True]),
        "later": (Wanted(since=6_000), [False, True, True]),
        "earlier": (Wanted(until=3_000), [True, False, False]),
        "between": (Wanted(since=6_000, until=7_000), [False, True, False]),
        "clocks are set back a little": (Wanted(until=4_500), [True, True, False]),
        "from a transaction": (Wanted(first=Gtid.parse("0-1-15")), [False, True, True]),
        "to a transaction": (Wanted(last=Gtid.parse("0-1-10")), [True, False, False]),
        "of another domain": (Wanted(first=Gtid.parse("7-1-1")), [False, False, True]),
    }.values(),
)
def test_files_that_cannot_hold_it_are_not_read(wanted: Wanted, read: list[bool]) -> None:
    assert worth_reading(FILES, wanted) == read


def test_a_clock_that_was_set_back_hides_no_file() -> None:
    files = (a_file(1, "", 100_000), a_file(2, "0-1-10", 1_000))

    assert worth_reading(files, Wanted(since=90_000)) == [True, True]


def test_a_file_is_begun_behind_what_is_too_early() -> None:
    marks = [Mark(100, Position.parse("0-1-3"), 10), Mark(200, Position.parse("0-1-6"), 20), Mark(300, Position.parse("0-1-9"), 30)]  # fmt: skip
    file = FileFacts(epoch=1, name="b.1", start=Position(), created=1, latest=40, marks=marks)

    assert beginning(file, Wanted())[0] == 4
    assert beginning(file, Wanted(since=20))[0] == 100
    assert beginning(file, Wanted(since=21))[0] == 200
    assert beginning(file, Wanted(first=Gtid.parse("0-1-6")))[0] == 100
    assert str(beginning(file, Wanted(first=Gtid.parse("0-1-7")))[1]) == "0-1-6"


@pytest.mark.parametrize(
    ("table", "names", "fits"),
    [
        ("t", "d.t", True), ("t", "e.t", True), ("d.t", "d.t", True), ("d.t", "e.t", False), ("T", "d.t", False),
        ("d.t", "d.*", True), ("d.t", "e.*", False), ("t", "d.*", True),
    ],
)  # fmt: skip
def test_a_table_is_named_with_or_without_its_database(table: str, names: str, fits: bool) -> None:
    assert Wanted(table=table).is_table(names) is fits


def test_a_statement_that_changes_rows_may_be_of_any_kind() -> None:
    delete, drop = statement_of(Query("d", "DELETE FROM t")), statement_of(Query("d", "DROP TABLE t"))

    assert [Wanted(kinds=frozenset(kinds)).is_statement(delete) for kinds in ((), ("insert",), ("ddl",))] == [True, True, False]  # fmt: skip
    assert [Wanted(kinds=frozenset(kinds)).is_statement(drop) for kinds in ((), ("insert",), ("ddl",))] == [True, False, True]  # fmt: skip


def test_what_is_typed_is_compared_as_the_column_is() -> None:
    assert same(5, "5")
    assert same(5, "5.0")
    assert not same(5, "five")
    assert same(None, "NULL")
    assert not same("", "NULL")
    assert same(b"\xff", "0xFF")
    assert same("Côté".encode("latin-1"), "Côté")


def test_latin1_loses_no_byte() -> None:
    assert text_of(b"C\xf4t\xe9 \x80", "latin1") == "Côté €"
    assert text_of(b"\x81", "latin1") == "\x81"
    assert text_of(b"\xff", None) == b"\xff"


@pytest.mark.parametrize(
    ("options", "says"),
    {
        "a key without a table": (("--key", "5"), "--table"),
        "no value": (("--table", "t", "--where", "a"), "--where last_name"),
        "no time": (("--from", "yesterday"), "2026-11-24T10:00"),
        "times turned round": (("--from", "2026-02-01", "--to", "2026-01-01"), "turn them round"),
        "no such kind": (("--kind", "change"), "ddl, delete, insert, update"),
        "no GTID": (("--from-gtid", "5"), "0-1-100"),
        "no archive": ((), "is not an archive"),
    }.values(),
)
def test_a_wrong_question_is_answered_with_the_mend(tmp_path: Path, options: Sequence[str], says: str) -> None:
    code, _, said = ask("--archive", tmp_path, *options)

    assert code == 2
    assert says in said


# -- with a real server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mariadb_template: Path) -> Iterator[MariaDBServer]:
    """One server for all; each test begins a new binlog and drops what it made."""
    options = {"binlog_row_metadata": "FULL", "sql_mode": "", "default_time_zone": "+00:00"}
    with MariaDBServer(tmp_path_factory.mktemp("find") / "db", 1, template=mariadb_template, **options) as made:
        yield made


Archived = Callable[[], Path]


@pytest.fixture
def archived(server: MariaDBServer, tmp_path: Path) -> Archived:
    """Begin a new binlog and a new database; what is returned makes an archive of them."""
    server.run("SET sql_log_bin = 0", "DROP DATABASE IF EXISTS d", "CREATE DATABASE d CHARACTER SET latin1",
               "SET GLOBAL log_bin_compress = 0, binlog_row_metadata = FULL", "RESET MASTER")  # fmt: skip

    def copied() -> Path:
        server.run("FLUSH BINARY LOGS")
        with closing(Archive.open(tmp_path / "archive")) as archive:
            one = archive.begin(LineageEntry(epoch=1, server_id=1, file="binlog.000001", position=""))
            for path in server.binlogs[:-1]:  # the newest has the mark of an open file, which no stream ever sends
                shutil.copy(path, one.directory)
        return tmp_path / "archive"

    return copied


@pytest.mark.servers
def test_a_row_is_found_by_its_key_with_the_position_before_each_change(
    server: MariaDBServer, archived: Archived
) -> None:
    server.run("USE d", "CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(30))", "INSERT INTO t SELECT seq, 'a' FROM seq_1_to_5000",
               "UPDATE t SET name = 'b' WHERE id IN (7, 8)", "DELETE FROM t WHERE id = 8", "FLUSH BINARY LOGS",
               "UPDATE t SET id = 9000 WHERE id = 7", "TRUNCATE t")  # fmt: skip
    answer = ask("--archive", archived(), "--table", "t", "--key", "7", "--show")

    assert answer[0] == 0
    assert touched(answer) == [
        ("d.t", "create", None, []), ("d.t", "insert", 1, ["7"]), ("d.t", "update", 1, ["7"]),
        ("d.t", "update", 1, ["7"]), ("d.t", "truncate", None, []),
    ]  # fmt: skip
    assert [(one["gtid"], one["before"]) for one in answer[1][:-1]] == [
        ("0-1-1", ""), ("0-1-2", "0-1-1"), ("0-1-3", "0-1-2"), ("0-1-5", "0-1-4"), ("0-1-6", "0-1-5")
    ]  # fmt: skip
    assert answer[1][3]["rows"] == [{"table": "d.t", "before": {"id": "7", "name": "b"}, "after": {"id": "9000", "name": "b"}}]  # fmt: skip
    assert "UPDATE t SET id = 9000 WHERE id = 7" in answer[1][3]["statements"]
    assert answer[1][-1] == {"transactions": 5, "totals": [
        {"table": "d.t", "kind": "create", "rows": 0}, {"table": "d.t", "kind": "insert", "rows": 1},
        {"table": "d.t", "kind": "update", "rows": 2}, {"table": "d.t", "kind": "truncate", "rows": 0},
    ]}  # fmt: skip


@pytest.mark.servers
def test_nothing_of_a_patient_is_shown_unless_asked_for(server: MariaDBServer, archived: Archived) -> None:
    server.run("USE d", "CREATE TABLE t (id INT PRIMARY KEY, name VARCHAR(30))", "INSERT INTO t VALUES (1, 'Jane Doe')")
    archive = archived()
    plain, told = (
        CliRunner().invoke(archive_command.app, ["find", "--archive", str(archive), "--table", "t", *more])
        for more in ((), ("--show",))
    )

    assert "Jane Doe" not in plain.output
    assert "before it: 0-1-1" in plain.output
    assert "oscar-ha hold NODE --before" in plain.output
    assert "Jane Doe" in told.output


@pytest.mark.servers
def test_composite_and_text_keys_and_rows_without_a_key_are_found(server: MariaDBServer, archived: Archived) -> None:
    server.run("USE d", "CREATE TABLE c (a INT, b VARCHAR(20) CHARACTER SET utf8mb4, v INT, PRIMARY KEY (b, a))",
               "CREATE TABLE n (who VARCHAR(20), born DATE, note TEXT) ENGINE=MyISAM",
               "SET GLOBAL log_bin_compress = 1, log_bin_compress_min_len = 10",
               "INSERT INTO c VALUES (1, 'Zoé', 1), (2, 'Zoé', 1), (1, 'Amir', 1)",
               "INSERT INTO n VALUES ('Côté', '0000-00-00', REPEAT('x', 100)), ('Li', NULL, NULL)",
               "UPDATE n SET note = 'gone' WHERE who = 'Li'", "DELETE FROM n WHERE who = 'Côté'")  # fmt: skip
    archive = archived()
    find = ("--archive", archive, "--kind", "insert", "--kind", "update", "--kind", "delete", "--table")

    assert touched(ask(*find, "c", "--key", "Zoé", "--key", "2")) == [("d.c", "insert", 1, ["Zoé, 2"])]
    assert touched(ask(*find, "n", "--where", "who=Côté")) == [("d.n", "insert", 1, []), ("d.n", "delete", 1, [])]
    assert touched(ask(*find, "n", "--where", "born=0000-00-00", "--kind", "delete"))[-1] == ("d.n", "delete", 1, [])
    assert touched(ask(*find, "n", "--where", "note=NULL", "--where", "who=Li")) == [("d.n", "insert", 1, []), ("d.n", "update", 1, [])]  # fmt: skip
    assert ask(*find, "n", "--where", "who=Nobody")[0] == 1
    assert ask(*find, "n", "--key", "1")[0] == 2
    assert "names count letter by letter" in ask(*find, "N")[2]
    assert "there is no such column" in ask(*find, "n", "--where", "name=Li")[2]


@pytest.mark.servers
def test_a_table_that_was_altered_in_between_is_read_as_it_was(server: MariaDBServer, archived: Archived) -> None:
    server.run("USE d", "CREATE TABLE t (id INT PRIMARY KEY, gone INT)", "INSERT INTO t VALUES (1, 5)",
               "ALTER TABLE t DROP COLUMN gone, ADD COLUMN code CHAR(4) FIRST", "INSERT INTO t VALUES ('x', 2)",
               "UPDATE t SET code = 'y' WHERE id = 1")  # fmt: skip
    archive = archived()
    by_key = ask("--archive", archive, "--table", "t", "--key", "1", "--kind", "insert", "--kind", "update")
    by_column = ask("--archive", archive, "--table", "t", "--where", "code=x", "--kind", "insert")

    assert touched(by_key) == [("d.t", "insert", 1, ["1"]), ("d.t", "update", 1, ["1"])]
    assert touched(by_column) == [("d.t", "insert", 1, ["2"])]
    assert "that part was not searched" in by_column[2]


@pytest.mark.servers
def test_transactions_are_chosen_by_gtid_time_and_number(server: MariaDBServer, archived: Archived) -> None:
    server.run("USE d", "CREATE TABLE t (id INT PRIMARY KEY)")
    began = int(server.value("SELECT UNIX_TIMESTAMP()"))
    for number in range(1, 7):
        server.run("USE d", f"SET timestamp = {began + number * 10}", f"INSERT INTO t VALUES ({number})")
        if number % 2 == 0:
            server.run("FLUSH BINARY LOGS")
    archive = archived()

    def keys(*options: str) -> list[str]:
        return [one[3][0] for one in touched(ask("--archive", archive, "--table", "t", "--kind", "insert", *options))]

    assert keys("--from-gtid", "0-1-4", "--to-gtid", "0-1-6") == ["3", "4", "5"]
    assert keys("--from", clock.utc_text(began + 30)) == ["3", "4", "5", "6"]
    assert keys("--limit", "2") == ["1", "2"]
    assert ask("--archive", archive, "--to", clock.utc_text(began + 9), "--kind", "insert")[0] == 1


@pytest.mark.servers
def test_statements_and_loads_are_found_too(server: MariaDBServer, archived: Archived, tmp_path: Path) -> None:
    """TRAPS.md 19: in a stream of rows they should not be, so somebody looks for them."""
    rows = tmp_path / "rows.txt"
    rows.write_text("1\n2\n")
    server.run("USE d", "CREATE TABLE t (id INT PRIMARY KEY)", "SET SESSION binlog_format = STATEMENT",
               f"LOAD DATA INFILE '{rows}' INTO TABLE t", "DELETE FROM t WHERE id = 1", "DROP TABLE t", "DROP DATABASE d")  # fmt: skip
    archive = archived()
    found = touched(ask("--archive", archive, "--table", "d.t", "--key", "1"))

    assert [one[:2] for one in found] == [("d.t", "create"), ("d.t", "statement"), ("d.t", "statement"), ("d.t", "drop"), ("d.*", "drop")]  # fmt: skip
    assert [one[1] for one in touched(ask("--archive", archive, "--table", "t", "--kind", "ddl"))] == ["create", "drop", "drop"]  # fmt: skip


COLUMNS = {
    "TINYINT UNSIGNED": ("200", "0"), "SMALLINT": ("-300",), "MEDIUMINT": ("-70000",), "INT UNSIGNED": ("4000000000",),
    "BIGINT UNSIGNED": ("18446744073709551615",), "BIGINT": ("-9223372036854775808",), "DOUBLE": ("2.5", "-0.125"),
    "DECIMAL(10,2)": ("-12345.67", "0.05", "99999999.99"), "DECIMAL(65,30)": ("-123.456",), "DECIMAL(5,5)": ("0.12345", "-0.00001"),
    "DECIMAL(20,0)": ("-1", "12345678901234567890"), "DATE": ("'0000-00-00'", "'2024-00-00'", "'2024-02-29'", "'2024-02-31'"),
    "DATETIME": ("'0000-00-00'", "'2024-05-00 01:02:03'", "'2023-02-30 01:02:03'", "'1969-12-31 23:59:59'"),
    "DATETIME(3)": ("'2024-02-29 01:02:03.450'", "'2024-05-00 01:02:03.5'"), "TIMESTAMP NULL": ("'2024-02-29 01:02:03'", "0"),
    "TIMESTAMP(6) NULL": ("'2024-02-29 01:02:03.000007'",), "TIME": ("'-11:12:13'", "'838:59:59'"),
    "TIME(2)": ("'-11:12:13.45'", "'-00:00:00.01'", "'01:02:03.5'"), "YEAR": ("0", "2024"), "CHAR(10)": ("'Côté'", "''"),
    "VARCHAR(300)": ("'€ naïve'",), "VARCHAR(40) CHARACTER SET utf8mb4": ("'Ωmega 😀'",), "TEXT": ("REPEAT('é', 300)",),
    "LONGTEXT CHARACTER SET utf8mb3": ("'ñ'",), "BLOB": ("x'00ff10'",), "BINARY(6)": ("x'aabb'",), "VARBINARY(9)": ("x'ccdd00'",),
    "ENUM('a','it''s')": ("'it''s'", "'a'"), "SET('p','q','r','s','t','u','v','w','x')": ("'p,x'", "''"), "JSON": ("'{\"a\": 1}'",),
    "BIT(13)": ("b'1010101010101'",),
}  # fmt: skip


@pytest.mark.servers
@pytest.mark.usefixtures("archived")
@pytest.mark.parametrize("metadata", ["FULL", "NO_LOG"])
def test_every_value_is_what_the_server_says(server: MariaDBServer, metadata: str) -> None:
    """Without metadata the definition is taken from a running server."""
    names = [f"c{number}" for number in range(len(COLUMNS))]
    made = ", ".join(f"{name} {sql_type}" for name, sql_type in zip(names, COLUMNS, strict=True))
    chance = random.Random(1)
    rows = [[values[number % len(values)] if chance.random() < 0.8 else "NULL" for values in COLUMNS.values()] for number in range(12)]  # fmt: skip
    server.run("SET NAMES utf8mb4", "SET sql_mode = 'ALLOW_INVALID_DATES'", "USE d", f"SET GLOBAL binlog_row_metadata = {metadata}",
               f"CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, {made})",
               *[f"INSERT INTO t VALUES (NULL, {', '.join(row)})" for row in rows], "FLUSH BINARY LOGS")  # fmt: skip
    connection = server.connect(conv={}, charset="utf8mb4")
    with closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM d.t ORDER BY id")
        expected = [dict(zip(["id", *names], row, strict=True)) for row in cursor.fetchall()]
    decoded = decoded_rows(server, {} if metadata == "FULL" else definitions_of(*definition(server)))

    assert len(decoded) == len(rows)
    for row, told in zip(decoded, expected, strict=True):
        assert {name: as_the_server_says(value) for name, value in row.items()} == told


def definition(server: MariaDBServer) -> tuple[Any, Any]:
    """Return what `MariaDbSession.columns` asks for."""
    columns = server.run("SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, CHARACTER_SET_NAME, COLUMN_TYPE"
                         " FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'd' ORDER BY ORDINAL_POSITION")  # fmt: skip
    return columns, [("d", "t", "id")]


def decoded_rows(server: MariaDBServer, definitions: Any) -> list[Row]:
    decoder, tables, found = Decoder(definitions), {}, list[Row]()
    for path in server.binlogs:
        for header, _, event in events_of(path, until=path.stat().st_size):
            if header.kind == 19:
                tables[table_id_of(event)] = decoder.table(event)
            elif header.kind in CHANGES:
                images = decoder.rows(tables[table_id_of(event)], header, event)
                found += [image.after for image in images if image.after is not None]
    return found


def as_the_server_says(value: Any) -> str | bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, int) and value == 0b1010101010101:
        return value.to_bytes(2, "big")
    return shown(value)


@pytest.mark.servers
def test_the_archive_of_a_running_replicator_is_searched_with_a_nodes_column_names(house: House) -> None:
    """Encrypted, and growing."""
    house.encrypt()
    primary = house.database("clinic", binlog_row_metadata="NO_LOG")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (name VARCHAR(20), id INT PRIMARY KEY)", "INSERT INTO d.t VALUES ('a', 1), ('b', 2)",
                "FLUSH BINARY LOGS", "DELETE FROM d.t WHERE id = 2", "CREATE USER oscar_ha@'127.0.0.1' IDENTIFIED BY 'x'",
                "GRANT ALL ON *.* TO oscar_ha@'127.0.0.1'")  # fmt: skip
    house.await_durable("toronto", house.position("clinic"))
    where = ("--settings", house.settings, "--site", "toronto", "--table", "d.t")

    unnamed = ask(*where, "--where", "@2=2", "--kind", "delete")
    assert touched(unnamed) == [("d.t", "delete", 1, [])]
    assert "binlog_row_metadata=FULL" in unnamed[2]
    assert ask(*where, "--key", "2")[0] == 2
    assert touched(ask(*where, "--key", "2", "--columns-from", "clinic", "--kind", "delete")) == [("d.t", "delete", 1, ["2"])]  # fmt: skip
