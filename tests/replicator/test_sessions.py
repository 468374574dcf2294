"""What a session may write: whatever it is, the archive has the primary's bytes, and a standby behind it the same rows."""

import threading
from pathlib import Path

import pymysql
import pytest

from cluster import clock
from tests.replicator.house import House
from tests.replicator.test_acknowledging import SEMI_SYNC
from tests.replicator.test_interrupted import archived, without_flag
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers

ROWS = "INSERT INTO d.t VALUES "
STATEMENT = "SET binlog_format = STATEMENT"
LOOKED_MS = 1_500
"""So long a report is looked at: longer than a stream must last to be believed."""
INCIDENT_BYTES = 4_096


def xa(name: str, row: int, *ends: str) -> tuple[str, ...]:
    return (f"XA START '{name}'", f"{ROWS}({row}, 'xa')", f"XA END '{name}'", f"XA PREPARE '{name}'", *ends)


SESSIONS: dict[str, tuple[str, ...]] = {
    "XA, decided at once": (*xa("a", 1, "XA COMMIT 'a'"), *xa("b", 2, "XA ROLLBACK 'b'")),
    "XA, undecided": (*xa("later", 3), "XA END 'none'"),
    "XA as statements": (STATEMENT, *xa("c", 4, "XA COMMIT 'c'")),
    "XA in one phase": ("XA START 'd'", f"{ROWS}(5, 'xa')", "XA END 'd'", "XA COMMIT 'd' ONE PHASE"),
    "savepoints over two engines": (
        "BEGIN", f"{ROWS}(10, 'x')", "SAVEPOINT s", "INSERT INTO d.m VALUES (1)", f"{ROWS}(11, 'x')", "ROLLBACK TO s",
        "COMMIT"),
    "a rollback that leaves something": (STATEMENT, "BEGIN", f"{ROWS}(12, 'x')", "INSERT INTO d.m VALUES (2)", "ROLLBACK"),
    "a table made of rows": ("CREATE TABLE d.copy SELECT * FROM d.m", "CREATE OR REPLACE TABLE d.copy SELECT 1 AS a"),
    "temporary tables": (
        STATEMENT, "CREATE TEMPORARY TABLE d.tt (a INT)", "INSERT INTO d.tt VALUES (20)", "INSERT INTO d.t SELECT a, 'x' FROM d.tt"),
    "a file, as a statement": (STATEMENT, "LOAD DATA INFILE '{file}' INTO TABLE d.t"),
    "values that a statement needs": (STATEMENT, "SET @a = 40", f"{ROWS}(@a, RAND(7))", "INSERT INTO d.ai (b) VALUES (1), (2)"),
    "an ALTER TABLE in two phases": ("SET binlog_alter_two_phase = 1", "ALTER TABLE d.ai ADD c INT", "ALTER TABLE d.ai ADD UNIQUE (c, b)"),
    "another domain": ("SET gtid_domain_id = 7", f"{ROWS}(50, 'x')", "FLUSH BINARY LOGS", f"{ROWS}(51, 'x')"),
    "numbers left out": ("SET gtid_seq_no = 5000", f"{ROWS}(52, 'x')"),
    "the id of another server": ("SET server_id = 99", f"{ROWS}(53, 'x')", "SET server_id = 2", f"{ROWS}(54, 'x')"),
    "compressed": ("SET GLOBAL log_bin_compress = ON", f"{ROWS}(55, REPEAT('x', 9000))", STATEMENT, f"{ROWS}(56, '{'y' * 9000}')"),
}  # fmt: skip


def run(server: MariaDBServer, statements: tuple[str, ...]) -> None:
    """Run a session; what the server refuses of it is part of it."""
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                try:
                    cursor.execute(statement)
                except pymysql.MySQLError:
                    continue
    finally:
        connection.close()


def test_whatever_a_session_writes_arrives_and_an_incident_stops_the_stream_and_says_so(
    house: House, tmp_path: Path
) -> None:
    """XA is decided after a rotation, a restart of the replicator and a new epoch. What an incident says is lost stands in
    nobody's binlog: no commit behind it is acknowledged, and that is said all the time (TRAPS.md 9)."""
    primary = house.database("clinic", **SEMI_SYNC)
    house.begin_epoch("clinic", ackers=("toronto",))
    house.replicator("toronto")
    standby = house.database("toronto", rpl_semi_sync_slave_enabled="ON")
    house.follow("toronto", position="")
    rows = tmp_path / "rows"
    rows.write_text("".join(f"{number}\tloaded\n" for number in range(1000, 9000)))
    rows.chmod(0o644)
    tmp_path.chmod(0o755)
    run(primary, ("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)", "CREATE TABLE d.m (a INT) ENGINE=MyISAM",
                  "CREATE TABLE d.ai (a INT AUTO_INCREMENT PRIMARY KEY, b INT)"))  # fmt: skip
    for statements in SESSIONS.values():
        run(primary, tuple(statement.replace("{file}", str(rows)) for statement in statements))
    house.await_applied("toronto", house.position("clinic"))
    house.replicators["toronto"].kill()
    primary.run("FLUSH BINARY LOGS")
    house.begin_epoch("clinic", ackers=("toronto",))
    house.replicator("toronto")
    primary.run("XA COMMIT 'later'")
    house.await_applied("toronto", house.position("clinic"))
    for path in archived(house):
        written = without_flag((primary.datadir / path.name).read_bytes())
        assert written.startswith(without_flag(path.read_bytes())), path.name
    tables = "CHECKSUM TABLE d.t, d.m, d.copy, d.ai EXTENDED"
    assert standby.run(tables) == primary.run(tables)
    assert standby.value("SELECT COUNT(*) FROM d.t") == 8014
    suffer_an_incident(house, primary)


def suffer_an_incident(house: House, primary: MariaDBServer) -> None:
    """A change of a table without transactions is made, and finds no room in the binlog's cache."""
    primary.run(f"SET GLOBAL max_binlog_stmt_cache_size = {INCIDENT_BYTES}")
    with pytest.raises(pymysql.MySQLError, match="1705"):
        primary.run("INSERT INTO d.m VALUES " + ", ".join(f"({number})" for number in range(INCIDENT_BYTES)))
    writer = threading.Thread(target=run, args=(primary, (f"{ROWS}(99, 'behind the incident')",)))
    writer.start()
    house.await_health("toronto", lambda report: "incident" in report.why, what="the incident is named")
    looked, told = clock.after(clock.now(), LOOKED_MS), set[tuple[bool, bool]]()
    while clock.seconds_left(looked) > 0:
        report = house.await_health("toronto", lambda _: True, what="a report")
        told.add((report.connected, report.acknowledging))
        assert "'oscar-ha failover' goes on without" in report.why

    assert told == {(False, False)}
    assert writer.is_alive(), "its commit is acknowledged by nobody"
    primary.kill()
    writer.join()
