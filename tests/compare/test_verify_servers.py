"""`oscar-ha verify` against a whole cluster under load: what is equal, what is found, what is repaired, what it costs.

One lab for all; a test that damages a standby ends with all equal again.
"""

import json
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection

from chaos.lab import build, remove
from chaos.lab.layout import Request
from chaos.lab_remote import RemoteLab
from cluster import clock
from tests.conftest import require
from tests.lab.running import COMMAND, await_true, missing

pytestmark = pytest.mark.servers

STANDBY, OTHER = "db-toronto", "db-montreal"
READY_MS, VERIFY_SECONDS = 60_000.0, 150
WRITE_PAUSE_SECONDS = 0.05
ROWS = 1_500
BEFORE_SECONDS = 2.0
LATENCY_RATIO_MAX, LATENCY_MORE_MS = 5.0, 25.0
MOMENTS_MAX = 10
"""Far above what is measured alone on this machine: a test is not a benchmark."""
MEMBERS = ",".join(f"'m{number}'" for number in range(1, 65))
TABLES = (
    "CREATE TABLE hot (id INT AUTO_INCREMENT PRIMARY KEY, n INT NOT NULL, t DATETIME(3)) ENGINE=InnoDB",
    "CREATE TABLE hot_myisam (id INT AUTO_INCREMENT PRIMARY KEY, n INT NOT NULL) ENGINE=MyISAM",
    "CREATE TABLE hot_aria (id INT AUTO_INCREMENT PRIMARY KEY, n INT NOT NULL) ENGINE=Aria",
    "CREATE TABLE one_bit (id INT PRIMARY KEY, content LONGBLOB) ENGINE=InnoDB",
    "CREATE TABLE one_space (id INT PRIMARY KEY, name VARCHAR(40) CHARACTER SET latin1) ENGINE=InnoDB",
    "CREATE TABLE one_case (id INT PRIMARY KEY, name VARCHAR(40)) ENGINE=InnoDB",
    "CREATE TABLE null_or_empty (id INT PRIMARY KEY, a VARCHAR(9), b VARCHAR(9)) ENGINE=InnoDB",
    "CREATE TABLE moved (id INT PRIMARY KEY, a VARCHAR(9), b VARCHAR(9)) ENGINE=InnoDB",
    "CREATE TABLE one_double (id INT PRIMARY KEY, f FLOAT, d DOUBLE, b BIT(11), e ENUM('','x'), y YEAR,"
    f" s SET({MEMBERS})) ENGINE=InnoDB",
    "CREATE TABLE keyless (note VARCHAR(20), n INT) ENGINE=InnoDB",
    "CREATE TABLE row_missing (code VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci, seen DATE, v INT,"
    " PRIMARY KEY (code, seen)) ENGINE=InnoDB",
    "CREATE TABLE row_extra (k VARBINARY(8) PRIMARY KEY, v DECIMAL(9,3)) ENGINE=InnoDB",
    "CREATE TABLE negative (k INT PRIMARY KEY, v TIMESTAMP NULL) ENGINE=InnoDB",
    "CREATE TABLE in_myisam (id INT PRIMARY KEY, name VARCHAR(20)) ENGINE=MyISAM",
)
FILL = (
    f"INSERT INTO one_bit SELECT seq, REPEAT(CHAR(seq MOD 256), 300) FROM seq_1_to_{ROWS}",
    f"INSERT INTO one_space SELECT seq, CONCAT('name\xe9', seq) FROM seq_1_to_{ROWS}",
    f"INSERT INTO one_case SELECT seq, CONCAT('Name', seq) FROM seq_1_to_{ROWS}",
    "INSERT INTO null_or_empty VALUES (1, NULL, 'x'), (2, '', 'x')",
    "INSERT INTO moved VALUES (1, 'ab', 'c'), (2, 'a', 'bc')",
    "INSERT INTO one_double VALUES (1, 0.1, 0.1, b'10000000001', 'zz', 0, 'm1,m64'), (2, 1e10, 1e300, b'1', '', 2026, '')",
    f"INSERT INTO keyless SELECT 'same', seq MOD 7 FROM seq_1_to_{ROWS}",
    f"INSERT INTO row_missing SELECT CONCAT(IF(seq MOD 2, 'A', 'a'), CHAR(228 USING latin1), seq), '0000-00-00', seq FROM seq_1_to_{ROWS}",
    f"INSERT INTO row_extra SELECT UNHEX(LPAD(HEX(seq), 8, '0')), seq / 7 FROM seq_1_to_{ROWS}",
    f"INSERT INTO negative SELECT CAST(seq AS SIGNED) - {ROWS // 2}, '2026-03-08 07:30:00' FROM seq_1_to_{ROWS}",
    "INSERT INTO in_myisam SELECT seq, 'x' FROM seq_1_to_500",
)
DAMAGE = {
    "one_bit": "UPDATE one_bit SET content = INSERT(content, 200, 1, CHAR(ORD(MID(content, 200, 1)) ^ 1)) WHERE id = 1200",
    "one_space": "UPDATE one_space SET name = CONCAT(name, ' ') WHERE id = 900",
    "one_case": "UPDATE one_case SET name = LOWER(name) WHERE id = 1400",
    "null_or_empty": "UPDATE null_or_empty SET a = '' WHERE id = 1",
    "moved": "UPDATE moved SET a = 'a', b = 'bc' WHERE id = 1",
    "one_double": "UPDATE one_double SET f = 0.10000001 WHERE id = 1",
    "keyless": "INSERT INTO keyless VALUES ('same', 3)",
    "row_missing": "DELETE FROM row_missing WHERE v = 1234",
    "row_extra": "INSERT INTO row_extra VALUES (x'ff00', 1)",
    "negative": "UPDATE negative SET v = '2026-03-08 08:30:00' WHERE k = -700",
    "in_myisam": "UPDATE in_myisam SET name = 'X' WHERE id = 77",
}
NAMED = {
    "one_bit": "(1200)", "one_space": "(900)", "one_case": "(1400)", "null_or_empty": "(1)", "moved": "(1)",
    "one_double": "(1)", "row_extra": "(0xff00)", "negative": "(-700)", "in_myisam": "(77)",
}  # fmt: skip


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


class Load:
    """Two clinics' sessions that write all the time; it knows how long each commit took."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.commits: list[tuple[clock.Nanos, float]] = []
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        await_true(lambda: len(self.commits) > 20, "the load writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        with closing(self._cluster.clinic()) as connection, connection.cursor() as cursor:
            while not self._stop.wait(WRITE_PAUSE_SECONDS):
                began = clock.now()
                cursor.execute("INSERT INTO hot (n, t) VALUES (%s, NOW(3))", (number,))
                self.commits.append((began, clock.ms_between(began, clock.now())))
                cursor.execute("UPDATE hot SET n = n + 1 WHERE id = %s", (number + 1,))
                cursor.execute("INSERT INTO hot_myisam (n) VALUES (1)")
                cursor.execute("UPDATE hot_aria SET n = n + 1 WHERE id = %s", (number,))
                cursor.execute("INSERT INTO hot_aria (n) VALUES (1)")

    def median_ms(self, start: clock.Nanos, end: clock.Nanos) -> float:
        return statistics.median(took for began, took in self.commits if start <= began < end)


class Cluster:
    """The lab, seen by these tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lab = RemoteLab(directory)

    def clinic(self) -> "Connection[Any]":
        one = self.lab.file.clinics[0]
        return pymysql.connect(host=one.host, port=one.port, user=one.user, password=one.password, charset="utf8mb4",
                               database=one.database, autocommit=True, read_timeout=30, init_command="SET sql_mode=''")  # fmt: skip

    def node(self, name: str) -> "Connection[Any]":
        """Return an administrator's session whose changes are in no binary log."""
        one = self.lab.file.node(name)
        return pymysql.connect(host=one.host, port=one.admin_port or one.port, user=one.admin_user, charset="utf8mb4",
                               password=one.admin_password, database="oscar", autocommit=True, read_timeout=30,
                               init_command="SET SESSION sql_log_bin = 0, sql_mode = '', time_zone = '+00:00'")  # fmt: skip

    def run(self, where: "Connection[Any]", *statements: str) -> Any:
        with closing(where) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall()

    def verify(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command to its end; return its exit code and its report."""
        done = subprocess.run(self.command(*arguments, "--json", "-"), capture_output=True, text=True, check=False,
                              timeout=VERIFY_SECONDS)  # fmt: skip
        assert done.returncode in (0, 1, 3), done.stderr
        return done.returncode, json.loads(done.stdout)

    def command(self, *arguments: str) -> list[str]:
        return ["env", "--default-signal=INT,TERM", COMMAND, "verify", "--settings",
                str(self.directory / "cluster.toml"), "--load", "100", *arguments]  # fmt: skip

    def await_level(self) -> None:
        """Wait until both standbys have applied all that the primary has now."""
        head = self.run(self.node("db-clinic"), "SELECT @@gtid_binlog_pos")[0][0]
        for name in (STANDBY, OTHER):
            waited = self.run(self.node(name), f"SELECT MASTER_GTID_WAIT('{head}', 20)")
            assert waited[0][0] == 0, f"{name} did not apply {head}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require(missing())
    directory = tmp_path_factory.mktemp("verify") / "lab"
    build.up(Request(directory=directory), Quiet())
    try:
        one = Cluster(directory)
        one.lab.wait_ready(deadline_ms=READY_MS)
        one.run(one.clinic(), *TABLES, *FILL)
        one.await_level()
        yield one
    finally:
        remove.down(directory, keep=False)


@pytest.fixture(scope="module")
def load(cluster: Cluster) -> Iterator[Load]:
    with Load(cluster) as one:
        yield one


def told(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["table"].removeprefix("oscar."): one for one in report["tables"] if one["verdict"] != "equal"}


def test_equal_nodes_are_equal_under_load_and_nothing_of_it_is_in_the_binary_log(cluster: Cluster, load: Load) -> None:
    """Tables that change all the time are compared at one position, so they are equal; the clinics do not notice."""
    before = clock.now()
    time.sleep(BEFORE_SECONDS)
    file, offset = cluster.run(cluster.node("db-clinic"), "SHOW MASTER STATUS")[0][:2]
    start = clock.now()
    code, report = cluster.verify()
    quiet, busy = load.median_ms(before, start), load.median_ms(start, clock.now())
    written = binlog_of(cluster, file, int(offset))

    print(f"commit: {quiet:.2f} ms before, {busy:.2f} ms while compared; stood still {report['halted_ms_max']} ms")
    assert (code, report["verdict"], report["undecided"]) == (0, "equal", []), (report["undecided"], told(report))
    assert set(report["nodes"]) == {STANDBY, OTHER}
    assert {one["how"] for one in report["tables"] if "hot_" in one["table"]} == {"standstill"}
    assert set(re.findall(r"Table_map: `(\w+)`\.`(\w+)`", written)) <= {
        ("oscar", "hot"), ("oscar", "hot_myisam"), ("oscar", "hot_aria"), ("oscar_ha", "heartbeat")}  # fmt: skip
    assert not re.findall(r"\tQuery\t.*\n(?:SET.*\n)*(?!START|BEGIN|COMMIT|SET|/\*)\w", written)
    assert busy <= quiet * LATENCY_RATIO_MAX + LATENCY_MORE_MS


def binlog_of(cluster: Cluster, file: str, offset: int) -> str:
    """Return what the primary's binary log has from a place on, as text."""
    one = next(path for path in cluster.directory.rglob(file) if "db-clinic" in str(path) and path.is_file())
    done = subprocess.run(["mariadb-binlog", "--base64-output=DECODE-ROWS", "-v", f"--start-position={offset}", str(one)],
                          capture_output=True, check=True, timeout=30)  # fmt: skip
    return done.stdout.decode(errors="replace")


@pytest.mark.timeout(400)  # a comparison, a repair of eleven tables and a comparison, on a machine that does much else
@pytest.mark.usefixtures("load")
def test_every_small_damage_is_found_and_named_and_repaired(cluster: Cluster) -> None:
    cluster.run(cluster.node(STANDBY), *DAMAGE.values())
    code, report = cluster.verify("--show-columns")
    found = told(report)

    assert (code, set(found)) == (1, set(DAMAGE))
    assert {node for one in found.values() for node in one["nodes"]} == {STANDBY}
    named = {table: [example["key"] for example in found[table]["examples"]] for table in NAMED}
    assert named == {table: [key] for table, key in NAMED.items()}
    assert [one["what"] for one in found["keyless"]["examples"]] == ["extra"]
    assert "1234" in found["row_missing"]["examples"][0]["key"]
    assert found["row_missing"]["examples"][0]["what"] == "missing"
    assert found["one_bit"]["examples"][0]["columns"] == ["content"]
    assert found["moved"]["examples"][0]["columns"] == ["a", "b"]

    written = cluster.run(cluster.node(STANDBY), "SHOW MASTER STATUS")[0][0]
    code, report = cluster.verify("--node", STANDBY, "--repair", "table", "--yes")
    assert (code, report["verdict"]) == (0, "equal"), told(report)
    assert cluster.run(cluster.node(STANDBY), "SHOW MASTER STATUS")[0][0] == written
    cluster.await_level()


@pytest.mark.usefixtures("load")
def test_a_difference_found_in_one_table_is_the_result_that_status_shows(cluster: Cluster) -> None:
    cluster.run(cluster.node(STANDBY), "UPDATE moved SET a = 'zz' WHERE id = 2")
    code, report = cluster.verify("--table", "oscar.moved")
    assert (code, report["verdict"]) == (1, "different")
    assert cluster.lab.cluster()["verify"]["different"] == ["oscar.moved"]

    code, report = cluster.verify("--table", "oscar.moved", "--node", STANDBY, "--repair", "table", "--yes")
    assert (code, report["verdict"]) == (0, "equal"), told(report)
    assert cluster.lab.cluster()["verify"]["result"] == "different", "only a comparison of everything says equal"
    cluster.await_level()


DEFINED = (
    "CREATE VIEW seen AS SELECT id FROM moved",
    "CREATE VIEW same AS SELECT id FROM moved",
    "CREATE TRIGGER acts BEFORE INSERT ON moved FOR EACH ROW SET NEW.a = 'x'",
    "CREATE PROCEDURE does() SELECT 1",
    "CREATE EVENT ticks ON SCHEDULE EVERY 1 DAY DO SET @a = 1",
)
REDEFINED = (
    "ALTER TABLE moved MODIFY a VARCHAR(9) CHARACTER SET latin1",
    "CREATE TABLE stray (id INT PRIMARY KEY)",
    "CREATE OR REPLACE VIEW seen AS SELECT id + 1 AS id FROM moved",
    "DROP TRIGGER acts",
    "CREATE OR REPLACE PROCEDURE does() SELECT 2",
    "ALTER EVENT ticks ON SCHEDULE EVERY 2 DAY",
    "CREATE DATABASE oscar_stray",
)


@pytest.mark.usefixtures("load")
def test_a_definition_that_differs_and_a_table_too_many_are_told(cluster: Cluster) -> None:
    """Whoever is promoted serves with its own triggers, views and routines: they are the same too, or it is said."""
    written = "SET SESSION sql_log_bin = 1"
    cluster.run(cluster.node("db-clinic"), written, *DEFINED)
    cluster.await_level()
    cluster.run(cluster.node(OTHER), *REDEFINED)
    code, report = cluster.verify()
    cluster.run(cluster.node(OTHER), "DROP TABLE stray", "ALTER TABLE moved MODIFY a VARCHAR(9)",
                "DROP DATABASE oscar_stray", "CREATE TRIGGER acts BEFORE INSERT ON moved FOR EACH ROW SET @a = 1")  # fmt: skip
    cluster.run(cluster.node("db-clinic"), written, "DROP VIEW seen, same", "DROP TRIGGER acts", "DROP PROCEDURE does",
                "DROP EVENT ticks")  # fmt: skip

    found = told(report)
    assert code == 1
    assert set(found) == {"moved", "stray", "view oscar.seen", "trigger oscar.acts", "procedure oscar.does",
                          "event oscar.ticks", "database oscar_stray"}  # fmt: skip
    assert "definition differs" in found["moved"]["why"]
    assert "the primary has no such table" in found["stray"]["why"]
    assert f"{OTHER} has no such trigger" in found["trigger oscar.acts"]["why"]
    assert {node for one in found.values() for node in one["nodes"]} == {OTHER}


@pytest.mark.usefixtures("load")
def test_a_table_changed_while_it_is_compared_waits_for_nobody(cluster: Cluster) -> None:
    """A snapshot keeps a table's definition in use: whoever waits for that ends the snapshot."""
    process = subprocess.Popen(cluster.command("--snapshot-seconds", "600", "--json", "-"), stdout=subprocess.PIPE)
    times = []
    for number in range(3):
        began = clock.now()
        cluster.run(cluster.clinic(), f"ALTER TABLE negative ADD COLUMN more{number} INT")
        times.append(clock.ms_between(began, clock.now()))
    out, _ = process.communicate(timeout=VERIFY_SECONDS)

    assert process.returncode == 0, out
    assert max(times) < 5_000.0


def await_reading(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    """Return when the comparison reads the standby, or has ended."""
    reading = (
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'oscar_ha' AND INFO LIKE '%%hash_count%%'"
    )
    with closing(cluster.node(STANDBY)) as connection, connection.cursor() as cursor:

        def seen() -> bool:
            cursor.execute(reading)
            row = cursor.fetchone()
            return bool(row and row[0] > 1) or process.poll() is not None

        await_true(seen, "the standby is read")


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_comparison_leaves_nothing_stopped(cluster: Cluster, number: signal.Signals) -> None:
    for _ in range(MOMENTS_MAX):
        process = subprocess.Popen(cluster.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        await_reading(cluster, process)
        process.send_signal(number)
        process.communicate(timeout=30)
        if process.returncode != 0:
            break  # else it had compared the small database before it was seen reading

    assert process.returncode != 0
    cluster.await_level()
    nodes = {one["node"]: one for one in cluster.lab.cluster()["nodes"]}
    assert (nodes[STANDBY]["role"], nodes[STANDBY]["replicating"]) == ("standby", True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "nothing"], "names no database"),
        (["--node", "db-clinic"], "is the primary"),
        (["--node", "db-nowhere"], "no node 'db-nowhere'"),
        (["--repair", "table"], "--node"),
        (["--repair", "node", "--node", STANDBY], "reinitialize"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(cluster: Cluster, arguments: list[str], said: str) -> None:
    done = subprocess.run(cluster.command(*arguments), capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in done.stderr.replace("\n", " ")


@pytest.mark.usefixtures("load")
def test_a_table_that_is_not_there_is_not_decided(cluster: Cluster) -> None:
    code, report = cluster.verify("--table", "oscar.nothing")

    assert code == 3
    assert report["undecided"] == ["there is no table oscar.nothing"]
