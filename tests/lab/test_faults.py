"""Faults in the midst of something else, on a whole lab whose archives are encrypted, while a clinic writes.

One lab for all; every test leaves it whole.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection

from chaos import checks
from chaos.history import all_kept
from chaos.lab import build, control, remove
from chaos.lab.layout import Layout, Request
from chaos.lab.names import SITES, node_name
from chaos.lab_remote import RemoteLab, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from cluster.position import Position
from tests.conftest import require
from tests.lab.running import COMMAND, await_true, missing

pytestmark = pytest.mark.servers

READY_MS, WRITE_MS, REJOIN_MS, CHECK_MS = 90_000.0, 45_000.0, 60_000.0, 60_000.0
ROLLED_BACK_MS = 15_000.0
COMMAND_SECONDS = 90
TRAFFIC_SECONDS_MAX = 600.0
SMALL_DISK_MIB, BALLAST_MIB = 128, 80
"""An archive stops at a reserve of 64 MiB and goes on with 8 more: full with the ballast, with room without it."""
MIB = 1024 * 1024
ROWS = {"big_innodb": 6_000, "big_myisam": 2_400}
"""Three pieces of a repair, and two: each costs a MyISAM table several standstills."""
FILL = "INSERT INTO {table} SELECT seq, REPEAT(CHAR(97 + seq MOD 26), 400) FROM seq_1_to_{rows}"
SNAPSHOTS = (
    "SELECT COUNT(*) FROM information_schema.INNODB_TRX AS open JOIN information_schema.PROCESSLIST AS session"
    " ON session.ID = open.trx_mysql_thread_id WHERE session.USER = 'oscar_ha'"
)
"""Only a comparison opens transactions with our account: seen between two pieces too, not only in the midst of one."""
SNAPSHOTS_POLL_SECONDS = 0.25
"""InnoDB shows the same transactions again to who asks within 100 ms of the last question."""


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


@dataclass
class Faulty:
    """The lab and its traffic."""

    directory: Path
    lab: RemoteLab
    traffic: Traffic
    fresh: dict[str, Any] = field(default_factory=dict)
    """What the controllers said when all was ready for the first time."""

    def ready(self) -> None:
        self.lab.wait_ready(deadline_ms=READY_MS)
        wait_until(self._not_replicating, deadline_ms=REJOIN_MS, what="not every other node is a standby")
        self.goes_on()

    def _not_replicating(self) -> str:
        nodes = self.lab.cluster()["nodes"]
        return ", ".join(f"{one['node']} is {one.get('role')}: {one.get('why')}" for one in nodes
                         if one.get("role") != "primary" and not (one.get("role") == "standby" and one.get("replicating")))  # fmt: skip

    def goes_on(self) -> None:
        wait_writing(self.traffic, after=clock.now(), deadline_ms=WRITE_MS)

    def report(self, site: str) -> dict[str, Any]:
        return next(one for one in self.lab.cluster()["replicators"] if one["site"] == site)

    def ackers(self) -> list[str]:
        return list(self.lab.cluster()["durability"]["ackers"])

    def make_acker(self, site: str) -> None:
        """Let the others fail until it is this one's turn, and return when all are well."""
        for other in self.ackers():
            if other != site:
                control.kill(self.directory, f"replicator-{other}")
                wait_until(
                    lambda: "" if self.ackers() == [site] else str(self.ackers()), deadline_ms=WRITE_MS, what=site
                )
                control.start(self.directory, f"replicator-{other}")
        self.ready()
        assert self.ackers() == [site]

    def node(self, name: str) -> "Connection[Any]":
        """Return an administrator's session whose changes are in no binary log."""
        one = self.lab.file.node(name)
        return pymysql.connect(host=one.host, port=one.admin_port or one.port, user=one.admin_user, read_timeout=60,
                               password=one.admin_password, database="oscar", autocommit=True,
                               init_command="SET SESSION sql_log_bin = 0")  # fmt: skip

    def value(self, name: str, query: str, *arguments: object) -> Any:
        with closing(self.node(name)) as connection, connection.cursor() as cursor:
            cursor.execute(query, arguments)
            row = cursor.fetchone()
            return row[0] if row else None

    def clinic(self, *statements: str) -> None:
        one = self.lab.file.clinics[0]
        with closing(pymysql.connect(host=one.host, port=one.port, user=one.user, password=one.password, read_timeout=60,
                                     database=one.database, autocommit=True)) as connection, connection.cursor() as cursor:  # fmt: skip
            for statement in statements:
                cursor.execute(statement)

    def level(self) -> None:
        """Every standby has applied all that the primary has now: nothing stands still."""
        primary, _ = self.lab.primary()
        head = self.value(primary, "SELECT @@gtid_binlog_pos")
        for name in map(node_name, SITES):
            if name != primary:
                assert self.value(name, "SELECT MASTER_GTID_WAIT(%s, 40)", head) == 0, f"{name} did not apply {head}"

    def verify(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [COMMAND, "verify", "--settings", str(Layout(self.directory).settings), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def await_insert(self, node: str, process: "subprocess.Popen[str]") -> None:
        """Return when a repair has written its first rows to a standby: what replication applies does not count here."""
        count = "SHOW GLOBAL STATUS LIKE 'Com_insert'"
        deadline = clock.after(clock.now(), WRITE_MS)
        with closing(self.node(node)) as connection, connection.cursor() as cursor:

            def inserts() -> int:
                cursor.execute(count)
                row = cursor.fetchone()
                return int(row[1]) if row else 0

            before = inserts()
            while inserts() == before:
                assert process.poll() is None, process.communicate()
                assert clock.seconds_left(deadline) > 0.0, "the repair writes nothing"

    def standby(self) -> str:
        primary, _ = self.lab.primary()
        return next(name for name in ("db-montreal", "db-toronto") if name != primary)


def ended(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a command said, once it has ended; it does not outlive the test."""
    try:
        return process.communicate(timeout=COMMAND_SECONDS)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Faulty]:
    require(missing())
    failed_before = request.session.testsfailed
    directory = tmp_path_factory.mktemp("faults") / "lab"
    build.up(Request(directory=directory, encrypt_archive=True), Quiet())
    try:
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(directory.parent / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            one = Faulty(directory, lab, traffic)
            one.ready()
            one.fresh = lab.cluster()
            for table, engine in zip(ROWS, ("InnoDB", "MyISAM"), strict=True):
                one.clinic(f"CREATE TABLE {table} (id INT PRIMARY KEY, content TEXT) ENGINE={engine}",
                           FILL.format(table=table, rows=ROWS[table]))  # fmt: skip
            yield one
    finally:
        if request.session.testsfailed > failed_before:
            keep_logs(directory, Path("build") / "test-logs")
        remove.down(directory, keep=False)


@pytest.fixture
def small_archive(faulty: Faulty) -> Iterator[tuple[str, Path]]:
    """The archive of the acknowledging site on a small disk of its own; the site, and a file that fills that disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    faulty.ready()
    (site,) = faulty.ackers()
    place, aside = Layout(faulty.directory).archive(site), faulty.directory / "data" / "aside"
    control.kill(faulty.directory, f"replicator-{site}")
    place.rename(aside)
    place.mkdir(mode=0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m,mode=700", "tmpfs", str(place)],
                          capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    if done.returncode == 0:
        shutil.copytree(aside, place, dirs_exist_ok=True)
    control.start(faulty.directory, f"replicator-{site}")
    try:
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        yield site, place / "ballast"
    finally:
        control.kill(faulty.directory, f"replicator-{site}")
        if done.returncode == 0:
            shutil.rmtree(aside)
            shutil.copytree(place, aside)
            subprocess.run(["umount", "--lazy", str(place)], timeout=30, check=True)
        place.rmdir()
        aside.rename(place)
        control.start(faulty.directory, f"replicator-{site}")


def test_a_new_lab_rings_no_alarm(faulty: Faulty) -> None:
    """It used to begin with one: that its own check of the clinics' way had dropped a table."""
    assert {one["site"]: one["mass_changes"] for one in faulty.fresh["replicators"]} == {site: [] for site in SITES}


def test_an_acker_whose_disk_is_full_hands_over_and_goes_on_when_there_is_room(
    faulty: Faulty, small_archive: tuple[str, Path]
) -> None:
    """TRAPS.md 18: it says so and acknowledges nothing; commits pause, and another site acknowledges them."""
    site, ballast = small_archive
    faulty.ready()
    faulty.make_acker(site)
    ballast.write_bytes(bytes(BALLAST_MIB * MIB))
    wait_until(lambda: "" if "reserve" in str(faulty.report(site)["why"]) else str(faulty.report(site)["why"]),
               deadline_ms=WRITE_MS, what=f"{site} does not say that its disk is full")  # fmt: skip
    faulty.goes_on()
    wait_until(
        lambda: "" if faulty.ackers() != [site] else f"{site} is named", deadline_ms=WRITE_MS, what="no takeover"
    )
    faulty.goes_on()
    ballast.unlink()
    head = Position.parse(faulty.value(faulty.lab.primary()[0], "SELECT @@gtid_binlog_pos"))

    def behind() -> str:
        durable = faulty.report(site)["durable"]
        return "" if Position.parse(durable or "").covers(head) else f"{site} has {durable}, not {head}"

    wait_until(behind, deadline_ms=WRITE_MS, what="it does not go on by itself")
    faulty.ready()


@pytest.mark.parametrize("table", ROWS)
def test_a_repair_killed_in_its_midst_leaves_rows_old_or_new_and_the_standby_replicating(
    faulty: Faulty, table: str
) -> None:
    faulty.ready()
    faulty.level()
    node = faulty.standby()
    with closing(faulty.node(node)) as connection, connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET content = REVERSE(CONCAT('x', content))")
    repair = ("--table", f"oscar.{table}", "--node", node, "--repair", "table", "--yes", "--load", "100")
    process = faulty.verify(*repair)
    faulty.await_insert(node, process)
    process.send_signal(signal.SIGKILL)
    ended(process)

    faulty.level()
    if table == "big_innodb":
        assert faulty.value(node, f"SELECT COUNT(*) FROM {table}") == ROWS[table], (
            "a piece is replaced whole or not at all"
        )
    again = faulty.verify(*repair, "--json", "-")
    told, said = ended(again)
    assert (again.returncode, json.loads(told)["verdict"]) == (0, "equal"), said
    faulty.ready()


def test_a_failover_amid_a_comparison_ends_it_with_a_word_and_leaves_nothing_stopped(faulty: Faulty) -> None:
    """And the old primary comes back, levelled and following, out of encrypted archives."""
    faulty.ready()
    process = faulty.verify("--load", "2", "--piece-ms", "10")  # rests for a minute: the failover comes before its end
    node = faulty.standby()
    await_true(
        lambda: process.poll() is not None or faulty.value(node, SNAPSHOTS) > 0,
        "it is read",
        poll_seconds=SNAPSHOTS_POLL_SECONDS,
    )
    assert process.poll() is None, process.communicate()
    fault = faulty.lab.crash_primary()
    wait_writing(faulty.traffic, after=fault.end, deadline_ms=WRITE_MS)
    record = faulty.lab.wait_plan(fault.epoch, deadline_ms=WRITE_MS)
    told, said = ended(process)

    assert record["outcome"] == "done", record
    assert process.returncode == 3, (process.returncode, told, said)
    assert "Traceback" not in told + said
    assert "run it again" in " ".join((told + said).split()), (told, said)
    rejoin = faulty.lab.come_back(fault.node, deadline_ms=REJOIN_MS)
    assert rejoin.rejoined, rejoin
    faulty.ready()
    faulty.level()


def test_a_switchover_whose_acker_freezes_under_way_is_rolled_back_and_the_clinics_write_on(faulty: Faulty) -> None:
    """What its primary wrote last is in no archive that answers: the plan used to wait for that, with the primary closed."""
    faulty.ready()
    (site,) = faulty.ackers()
    primary, epoch = faulty.lab.primary()
    other = next(name for name in map(node_name, SITES) if name not in (primary, node_name(site)))
    control.freeze(faulty.directory, f"replicator-{site}")
    try:
        record = faulty.lab.switchover(other)
        assert record["outcome"].startswith("rolled back"), record
        assert record["total_ms"] < ROLLED_BACK_MS, record
        faulty.goes_on()
    finally:
        control.thaw(faulty.directory, f"replicator-{site}")
    assert faulty.lab.primary() == (primary, epoch + 1)
    faulty.ready()
    faulty.level()


def test_after_all_of_it_nothing_is_lost_and_every_archive_is_whole(faulty: Faulty) -> None:
    faulty.ready()
    faulty.traffic.stop()
    findings = checks.judge(faulty.traffic.history, faulty.lab.file, deadline_ms=CHECK_MS)

    assert all_kept(findings.values()), findings
    for site in SITES:
        done = subprocess.run(
            [COMMAND, "archive", "verify", "--settings", str(Layout(faulty.directory).settings), "--site", site],
            capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (site, done.stdout, done.stderr)
