"""What a real MariaDB writes when somebody takes rows without deleting them, and the alarm's word for it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.binlog.events import Kind
from cluster.binlog.framing import HEADER, EventHeader
from cluster.binlog.rows import QUERY_BYTES_MAX, Change, query_of
from cluster.clock import Nanos
from cluster.position import Position
from cluster.settings import Alarm
from replicator.changes import Changes
from replicator.segments import events_of
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers
LATER = 4_000_000_000
HASTE = {"debug_no_sync": True, "sync_binlog": 0, "innodb_flush_log_at_trx_commit": 2, "innodb_flush_method": "nosync"}
"""Nothing here needs to survive anything."""
PARTS = "PARTITION BY RANGE (a) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20))"
SETUP = (
    "DROP DATABASE IF EXISTS d", "DROP DATABASE IF EXISTS `dossier médical`", "CREATE DATABASE d CHARACTER SET utf8mb4", "USE d",
    "CREATE TABLE t (a INT PRIMARY KEY, b VARCHAR(40), c INT)", "INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 2)",
    "CREATE TABLE u LIKE t", "INSERT INTO u SELECT * FROM t",
    f"CREATE TABLE p (a INT PRIMARY KEY) {PARTS}", "INSERT INTO p VALUES (1), (11)",
    "CREATE TABLE q (a INT PRIMARY KEY)", "INSERT INTO q VALUES (2)",
    "CREATE PROCEDURE wipe() BEGIN SELECT 1; TRUNCATE TABLE t; END", "CREATE FUNCTION gone() RETURNS INT DETERMINISTIC BEGIN DELETE FROM t; RETURN 1; END",
    "CREATE VIEW v AS SELECT * FROM t", "CREATE TRIGGER g BEFORE DELETE ON u FOR EACH ROW SET @x = 1", "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1",
)  # fmt: skip
COMMENT = f"/* {'x' * 5_000} */"
STATEMENT = "SET SESSION binlog_format = STATEMENT"


class Case(NamedTuple):
    """Statements in a session of their own, and the alarms that they raise as `table kind`."""

    statements: tuple[str, ...]
    alarms: set[str]
    charset: str = "utf8mb4"


T_TRUNCATED = {"d.t truncate"}
LOSSES: dict[str, Case] = {
    "a list of tables": Case(("DROP TABLE t, u, p",), {"d.t drop", "d.u drop", "d.p drop"}),
    "a list with one that is not there": Case(("DROP TABLE IF EXISTS t, nothing",), {"d.t drop", "d.nothing drop"}),
    "a database": Case(("DROP DATABASE d",), {"d.* drop"}),
    "a database made anew": Case(("CREATE OR REPLACE DATABASE d",), {"d.* drop"}),
    "truncate": Case(("TRUNCATE t",), T_TRUNCATED),
    "behind a long comment": Case((f"TRUNCATE {COMMENT} t",), T_TRUNCATED),
    "behind comments of every sort": Case(("/**/ # DROP\n -- it's\n--\n TRUNCATE/* ` */TABLE\v# '\n`t` -- end",), T_TRUNCATED),
    "in comments that count": Case(("/*!50001 TRUNCATE /* inner */ */ /*M!100100 TABLE*/ t",), T_TRUNCATED),
    "in a comment that does not": Case(("/*!99999 DROP TABLE u, */ TRUNCATE /*M!999999 u */ t",), T_TRUNCATED),
    "in a procedure": Case(("CALL wipe()",), T_TRUNCATED),
    "prepared": Case(("EXECUTE IMMEDIATE 'TRUNCATE t'",), T_TRUNCATED),
    "in a compound": Case(("BEGIN NOT ATOMIC IF 1 THEN TRUNCATE t; END IF; END",), T_TRUNCATED),
    "with settings of its own": Case(("SET STATEMENT lock_wait_timeout = 5 FOR TRUNCATE t",), T_TRUNCATED),
    "with a wait": Case(("TRUNCATE t WAIT 5", "ALTER TABLE u NOWAIT DROP COLUMN c"), {*T_TRUNCATED, "d.u drop_column"}),
    "in double quotes": Case(("SET sql_mode = 'ANSI_QUOTES'", 'TRUNCATE "t"', 'ALTER TABLE "u" DROP "c"'), {*T_TRUNCATED, "d.u drop_column"}),
    "a backslash that is none": Case(("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"ALTER TABLE t ALTER b SET DEFAULT '\', DROP c"), {"d.t drop_column"}),
    "names of any letters": Case(("CREATE DATABASE `dossier médical`", "RENAME TABLE t TO `dossier médical`.`l'``été`", "TRUNCATE `dossier médical`.`l'``été`"),
                                 {"d.t rename", "dossier médical.l'`été truncate"}),
    "names in latin1": Case(("CREATE TABLE été SELECT * FROM t", "TRUNCATE\xa0été"), {"d.été truncate"}, "latin1"),
    "another name": Case(("RENAME TABLE t TO elsewhere",), {"d.t rename"}),
    "names that change places": Case(("RENAME TABLE t TO x, u TO t, x TO u",), {"d.t rename", "d.u rename"}),
    "another name by ALTER": Case(("ALTER TABLE t ADD z INT, RENAME elsewhere",), {"d.t rename"}),
    "made anew": Case(("CREATE OR REPLACE TABLE t (a INT)",), {"d.t drop"}),
    "made anew from another": Case(("CREATE OR REPLACE TABLE t SELECT * FROM u",), {"d.t drop"}),
    "a column": Case(("ALTER TABLE t DROP b",), {"d.t drop_column"}),
    "a small character set": Case(("ALTER TABLE t CONVERT TO CHARACTER SET ascii",), {"d.t rewrite"}),
    "an engine that forgets": Case(("ALTER TABLE t COMMENT 'x' ENGINE = MEMORY",), {"d.t rewrite"}),
    "without duplicates": Case(("ALTER IGNORE TABLE t ADD z INT DEFAULT 1, ADD UNIQUE (z)",), {"d.t rewrite"}),
    "its tablespace": Case(("ALTER TABLE t DISCARD TABLESPACE",), T_TRUNCATED),
    "a partition dropped": Case(("ALTER TABLE p DROP PARTITION p0",), {"d.p truncate"}),
    "a partition emptied": Case(("ALTER TABLE p TRUNCATE PARTITION p0, p1",), {"d.p truncate"}),
    "a partition exchanged": Case(("ALTER TABLE p EXCHANGE PARTITION p0 WITH TABLE q",), {"d.p exchange", "d.q exchange"}),
    "a partition that becomes a table": Case(("ALTER TABLE p CONVERT PARTITION p0 TO TABLE z",), {"d.p exchange", "d.z exchange"}),
    "a table that becomes a partition": Case(("UPDATE q SET a = 22", "ALTER TABLE p DROP PARTITION p0", "ALTER TABLE p CONVERT TABLE q TO PARTITION p2 VALUES LESS THAN (30)"),
                                             {"d.p truncate", "d.p exchange", "d.q exchange"}),
    "history": Case(("ALTER TABLE t ADD SYSTEM VERSIONING", "ALTER TABLE t DROP SYSTEM VERSIONING"), T_TRUNCATED),
    "a DELETE as text": Case((STATEMENT, "DELETE FROM t"), {"d.t statement"}),
    "a function as text": Case((STATEMENT, "SELECT gone()"), {"* statement"}),
    "a long INSERT as text": Case((STATEMENT, f"INSERT INTO t SELECT 7, {COMMENT} 'z', LENGTH('{'x' * QUERY_BYTES_MAX}')"), {"d.t statement"}),
    "more text than is read": Case((f"TRUNCATE /* {'x' * QUERY_BYTES_MAX} */ t",), {"* unread"}),
}  # fmt: skip
"""Every one with the tables of `SETUP`, whose making the alarm has not seen."""
QUIET: dict[str, tuple[str, ...]] = {
    "columns and keys": ("ALTER TABLE t ADD COLUMN d INT DEFAULT 0, ADD engine VARCHAR(9), ADD KEY k (b, c)", "ALTER TABLE t DROP KEY k, DROP PRIMARY KEY",
                         "CREATE INDEX i ON t (b)", "DROP INDEX i ON t"),
    "other types": ("ALTER TABLE t MODIFY b VARCHAR(255) NULL", "ALTER TABLE t CHANGE b bb TEXT, MODIFY c BIGINT", "ALTER TABLE t RENAME COLUMN bb TO b"),
    "a wider character set": ("ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",),
    "a table that is used for a while": ("CREATE TABLE z (a INT)", "INSERT INTO z VALUES (1)", "DELETE FROM z", "ALTER TABLE z DROP COLUMN a, ADD b INT",
                                         "RENAME TABLE z TO y", "DROP TABLE y", "DROP TABLE IF EXISTS y", "CREATE OR REPLACE TABLE y (a INT)"),
    "a few rows": ("UPDATE t SET b = 'z' WHERE a = 1", "DELETE FROM t WHERE a = 2", "REPLACE INTO t VALUES (1, 'q', 1)"),
    "what holds no rows": ("DROP VIEW v", "DROP TRIGGER g", "DROP PROCEDURE wipe", "DROP FUNCTION gone", "DROP EVENT e", "CREATE SEQUENCE s", "DROP SEQUENCE s"),
    "care": ("OPTIMIZE TABLE t", "ANALYZE TABLE t", "ALTER TABLE t FORCE", "ALTER TABLE t ENGINE=InnoDB ROW_FORMAT=DYNAMIC", "FLUSH TABLES"),
    "partitions": ("ALTER TABLE p ADD PARTITION (PARTITION p2 VALUES LESS THAN (30))", "ALTER TABLE p REORGANIZE PARTITION p0, p1 INTO (PARTITION p0 VALUES LESS THAN (20))",
                   "ALTER TABLE p REMOVE PARTITIONING"),
    "temporary": ("CREATE TEMPORARY TABLE tmp SELECT * FROM t", "DELETE FROM tmp", "TRUNCATE tmp", "DROP TEMPORARY TABLE tmp"),
    "rolled back": ("BEGIN", "DELETE FROM t", "ROLLBACK"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mariadb_template: Path) -> Iterator[MariaDBServer]:
    with MariaDBServer(tmp_path_factory.mktemp("losses") / "db", 1, template=mariadb_template, **HASTE) as one:
        yield one


def written(
    server: MariaDBServer, statements: tuple[str, ...], *, charset: str = "utf8mb4", compressed: bool = False
) -> Path:
    """Run statements with the tables of `SETUP`, and return the binlog file that holds these alone."""
    server.run(
        f"SET GLOBAL log_bin_compress = {compressed:d}, log_bin_compress_min_len = 10", *SETUP, "FLUSH BINARY LOGS"
    )
    path = server.binlogs[-1]
    connection = server.connect(charset=charset, database="d")
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            cursor.fetchall()
    connection.close()
    server.run("FLUSH BINARY LOGS")
    return path


def followed(path: Path) -> Changes:
    changes = Changes(Alarm())
    changes.restart(Position())
    for header, _, event in events_of(path, until=path.stat().st_size):
        changes.follow(header, event, now=Nanos(1), wall_seconds=LATER, exact=True)
    return changes


def alarms(path: Path) -> set[str]:
    return {f"{one.table} {one.kind}" for one in followed(path).alarms(Nanos(1))}


@pytest.mark.parametrize("name", LOSSES)
def test_what_takes_rows_without_deleting_them_is_an_alarm(server: MariaDBServer, name: str) -> None:
    case = LOSSES[name]

    assert alarms(written(server, case.statements, charset=case.charset)) == case.alarms


@pytest.mark.parametrize(
    "name",
    [
        "behind a long comment",
        "in double quotes",
        "names in latin1",
        "a column",
        "a DELETE as text",
        "more text than is read",
    ],
)
def test_compressed_it_is_the_same_alarm(server: MariaDBServer, name: str) -> None:
    case = LOSSES[name]

    assert alarms(written(server, case.statements, charset=case.charset, compressed=True)) == case.alarms


@pytest.mark.parametrize("name", QUIET)
def test_ordinary_maintenance_is_none(server: MariaDBServer, name: str) -> None:
    assert alarms(written(server, QUIET[name])) == set()


def test_what_a_foreign_key_deletes_is_in_no_event(server: MariaDBServer) -> None:
    """So it cannot be counted: only the rows of the parent are. docs/operating.md says what to do about that."""
    path = written(server, (
        "CREATE TABLE child (a INT PRIMARY KEY, t INT, FOREIGN KEY (t) REFERENCES t (a) ON DELETE CASCADE) ENGINE=InnoDB",
        "INSERT INTO child SELECT seq, 1 FROM seq_1_to_100", "DELETE FROM t WHERE a = 1",
    ))  # fmt: skip

    assert server.value("SELECT COUNT(*) FROM d.child") == 0
    assert followed(path).take()[0] == Counter({("d.child", Change.INSERT): 100, ("d.t", Change.DELETE): 1})


def test_a_statement_that_was_compressed_is_inflated_no_further_than_it_is_read(server: MariaDBServer) -> None:
    path = written(server, (f"TRUNCATE t /* {'x' * 3 * QUERY_BYTES_MAX} */",), compressed=True)
    (event,) = (
        bytes(event)
        for header, _, event in events_of(path, until=path.stat().st_size)
        if header.kind == Kind.QUERY_COMPRESSED
    )
    query = query_of(EventHeader._make(HEADER.unpack_from(event)), memoryview(event))

    assert (len(query.text), query.whole) == (QUERY_BYTES_MAX, False)
