"""Clinics against one real MariaDB that is killed, frozen, fenced or locked: what they record is what happened."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chaos import checks, history, traffic, traffic_journal
from chaos.history import Outcome, Verdict, Write
from chaos.lab_file import Clinic, Node
from chaos.traffic import Traffic
from chaos.traffic_journal import Journal
from chaos.traffic_script import NON_TRANSACTIONAL
from cluster import clock
from cluster.errors import BadInput, Unreachable
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer

pytestmark = pytest.mark.servers

SECONDS_MAX = 30
DEADLINE_MS = 10_000
FREEZES_MAX = 5
ASKS_FIRST = "bill"
USER, PASSWORD, DATABASE = "oscar", "clinic-secret", "oscar"
ACCOUNT = f"{USER}@'%'"


@pytest.fixture
def server(tmp_path: Path, mariadb_template: Path) -> Iterator[MariaDBServer]:
    with MariaDBServer(tmp_path / "server", 7, template=mariadb_template) as running:
        running.run(
            f"CREATE DATABASE {DATABASE} DEFAULT CHARACTER SET utf8mb3",
            f"CREATE USER {ACCOUNT} IDENTIFIED BY '{PASSWORD}'",
            f"GRANT ALL ON {DATABASE}.* TO {ACCOUNT}",
            f"GRANT SELECT ON *.* TO {ACCOUNT}",
            "CREATE DATABASE oscar_ha",
            "CREATE TABLE oscar_ha.epoch (epoch BIGINT PRIMARY KEY, primary_node VARCHAR(63))",
            "INSERT INTO oscar_ha.epoch VALUES (2, 'db-toronto'), (3, 'db-clinic')",
        )
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path / "journal.jsonl")
    yield one
    one.close()


def clinic_of(server: MariaDBServer, name: str = "north", **changes: str) -> Clinic:
    account = {"user": USER, "password": PASSWORD, "database": DATABASE} | changes
    return Clinic(name=name, host=server.host, port=server.port, **account)


def clinics_of(server: MariaDBServer) -> list[Clinic]:
    return [clinic_of(server, "north"), clinic_of(server, "south")]


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = clock.after(clock.now(), DEADLINE_MS)
    pause = threading.Event()
    while not ready():
        assert clock.now() < deadline, f"not {what} within {DEADLINE_MS} ms"
        pause.wait(0.01)


def acknowledged(run: Traffic, after: int = 0) -> list[Write]:
    return [write for write in run.history if (write.acknowledged_at or 0) > after]


def test_a_killed_server_leaves_unknown_writes_and_loses_none_that_it_acknowledged(
    server: MariaDBServer, journal: Journal
) -> None:
    clinics = clinics_of(server)
    traffic.prepare(clinics[0], deadline_ms=DEADLINE_MS)
    with Traffic(clinics, journal, seconds=SECONDS_MAX, writes_per_second=400) as run:
        wait_until(lambda: len(acknowledged(run)) > 300, "writing")
        before = clock.now()
        server.kill()
        after = clock.now()
        server.start()
        wait_until(lambda: len({w.clinic for w in acknowledged(run, after)}) == 2, "writing again")
        run.stop()
    found = checks.found_through(clinics[0])
    writes = run.history

    refused = [write for write in writes if write.outcome is Outcome.FAILED]
    assert not [write for write in refused if write.token in found.tokens], "failed: it was certainly not done"
    assert len(refused) <= len(clinics), "only a write whose first question was cut off, before it was sent"
    assert history.no_acknowledged_write_lost(writes, found).verdict is Verdict.KEPT
    assert history.no_acknowledged_write_lost(writes, found, tables=NON_TRANSACTIONAL).verdict is Verdict.KEPT
    assert history.nothing_applied_twice(writes, found).verdict is Verdict.KEPT
    assert history.writers_per_epoch(writes) == {3: (7,)}
    for clinic in clinics:
        assert 50 < (history.outage_ms(writes, clinic.name, start=before, end=after) or 0) < DEADLINE_MS
    assert sorted(traffic_journal.read(journal.path), key=lambda w: w.token) == sorted(writes, key=lambda w: w.token)


def test_a_write_without_an_answer_is_unknown_and_never_failed(server: MariaDBServer, journal: Journal) -> None:
    """A frozen server may still do what it was asked: the kernel keeps the statement for it."""
    clinic = clinic_of(server)
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)
    for _ in range(FREEZES_MAX):
        if not server.alive:
            server.start()
        with Traffic([clinic], journal, seconds=SECONDS_MAX, writes_per_second=200) as run:
            wait_until(lambda: len(acknowledged(run)) > 20, "writing")
            server.freeze()
            threading.Event().wait(0.2)
            server.kill()
            wait_until(lambda: run.writers[0].refused_connections > 0, "noticed")
        assert {write.outcome for write in run.history if write.kind != ASKS_FIRST} <= {Outcome.OK, Outcome.UNKNOWN}
        if run.history[-1].outcome is Outcome.UNKNOWN:
            break  # else the freeze met no write, or only the question before one, which was then never sent

    assert run.history[-1].outcome is Outcome.UNKNOWN


def test_a_read_only_server_refuses_and_the_clinic_keeps_its_connection(
    server: MariaDBServer, journal: Journal
) -> None:
    """OSCAR's pool only asks `select 1`, which a read-only server answers: nothing but a killed session moves it."""
    clinic = clinic_of(server)
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)
    with Traffic([clinic], journal, seconds=SECONDS_MAX, writes_per_second=200) as run:
        wait_until(lambda: len(acknowledged(run)) > 20, "writing")
        server.run("SET GLOBAL read_only = 1")
        wait_until(lambda: run.history[-1].outcome is Outcome.FAILED, "refused")
        server.run("SET GLOBAL read_only = 0")
        opened = clock.now()
        wait_until(lambda: bool(acknowledged(run, opened)), "writing again")

    refused = [write for write in run.history if not write.acknowledged]
    assert {write.outcome for write in refused} == {Outcome.FAILED}
    assert all(write.error.startswith("1290 ") for write in refused)
    assert run.writers[0].refused_connections == 0


def test_the_epoch_is_unknown_where_no_database_tells_it(server: MariaDBServer) -> None:
    server.run("DROP TABLE oscar_ha.epoch")
    connection, peer = traffic.connect(clinic_of(server))
    connection.close()

    assert (peer.server_id, peer.epoch) == (7, None)


def test_the_epoch_is_not_believed_before_the_database_says_that_it_is_its_own(
    server: MariaDBServer, journal: Journal
) -> None:
    """A server that was opened a moment ago still has the row of the epoch before; it counts for the connection later."""
    clinic, nodes = clinic_of(server), [node_of("db-montreal", server)]
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)
    with Traffic([clinic], journal, seconds=SECONDS_MAX, writes_per_second=200, nodes=nodes) as run:
        wait_until(lambda: run.writers[0].newest is not None, "writing")
        assert run.history == []
        server.run("INSERT INTO oscar_ha.epoch VALUES (4, 'db-montreal')")
        wait_until(lambda: len(acknowledged(run)) > 20, "placed")

    assert history.writers_per_epoch(run.history) == {4: (7,)}
    assert sorted(write.sequence for write in run.history) == list(range(1, len(run.history) + 1))


def test_the_clock_ends_a_run_whose_server_never_answers(server: MariaDBServer, journal: Journal) -> None:
    clinic = clinic_of(server)
    server.kill()
    started = clock.now()
    with Traffic([clinic], journal, seconds=1.5) as run:
        run.wait()

    assert clock.ms_between(started, clock.now()) < DEADLINE_MS
    assert run.history == []
    assert run.writers[0].refused_connections > 5


def test_no_primary_is_said_in_words_with_what_to_do(server: MariaDBServer) -> None:
    with pytest.raises(Unreachable, match=r"north: no tables could be made at 127\.0\.0\.1:\d+: 1045 "):
        traffic.prepare(clinic_of(server, password="wrong"), deadline_ms=10)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": 1e9}, "seconds is 1e"),
        ({"seconds": 1, "writes_per_second": 0}, "rate"),
    ],
)
def test_a_run_without_bounds_is_refused(journal: Journal, arguments: dict[str, float], told: str) -> None:
    clinic = Clinic(name="north", host="127.0.0.1", port=1, user="u", password="p", database="d")
    with pytest.raises(BadInput, match=told):
        Traffic([clinic], journal, **arguments)  # type: ignore[arg-type]


def test_a_refused_write_is_told_from_one_that_was_taken(server: MariaDBServer) -> None:
    clinic, node = clinic_of(server), node_of("db-clinic", server)
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)

    assert checks.write_is_refused(node, clinic, read_timeout_s=2) == (False, "db-clinic took a write")
    server.run(f"ALTER USER {ACCOUNT} ACCOUNT LOCK")
    refused, how = checks.write_is_refused(node, clinic, read_timeout_s=2)
    assert refused
    assert how.startswith("4151 ")


def node_of(name: str, server: MariaDBServer) -> Node:
    # Not in the binlog: each of a pair has its own, and a standby writes nothing of its own.
    server.run(
        "SET sql_log_bin = 0",
        "CREATE USER IF NOT EXISTS inspector@'%' IDENTIFIED BY 'looks'",
        "GRANT ALL ON *.* TO inspector@'%'",
    )
    return Node(
        name=name, site=name, host=server.host, port=server.port, admin_user="inspector", admin_password="looks",
        watchdog_url="http://127.0.0.1:1",
    )  # fmt: skip


@pytest.fixture
def pair(
    server: MariaDBServer, tmp_path: Path, mariadb_template: Path
) -> Iterator[tuple[MariaDBServer, MariaDBServer]]:
    """A primary and a standby that follows it."""
    with MariaDBServer(tmp_path / "standby", 8, template=mariadb_template) as standby:
        standby.run(
            f"CHANGE MASTER TO master_host='{server.host}', master_port={server.port}, "
            f" master_user='{REPLICATION_USER}', master_password='{REPLICATION_PASSWORD}', master_use_gtid=slave_pos",
        )
        yield server, standby


def level(standby: MariaDBServer, primary: MariaDBServer) -> None:
    position = primary.value("SELECT @@gtid_current_pos")
    assert standby.value(f"SELECT MASTER_GTID_WAIT('{position}', 10)") == 0


def test_equal_databases_are_equal_while_a_heartbeat_goes_on(
    pair: tuple[MariaDBServer, MariaDBServer], journal: Journal
) -> None:
    primary, standby = pair
    follow(primary, standby)
    clinic = clinic_of(primary)
    nodes = [node_of("one", primary), node_of("two", standby)]
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)
    with Traffic([clinic], journal, seconds=1, writes_per_second=300) as run:
        run.wait()
    stop = threading.Event()
    beating = threading.Thread(target=beat, args=(primary, stop))
    beating.start()
    try:
        finding = checks.databases_equal(nodes, deadline_ms=DEADLINE_MS)
    finally:
        stop.set()
        beating.join()

    assert finding.verdict is Verdict.KEPT, finding.why
    assert "9 tables" in finding.why


def test_one_different_row_names_its_table(pair: tuple[MariaDBServer, MariaDBServer]) -> None:
    primary, standby = pair
    follow(primary, standby)
    traffic.prepare(clinic_of(primary), deadline_ms=DEADLINE_MS)
    nodes = [node_of("one", primary), node_of("two", standby)]
    level(standby, primary)
    standby.run("SET sql_log_bin=0", f"INSERT INTO {DATABASE}.log (action, ha_token) VALUES ('x', 'y')")

    finding = checks.databases_equal(nodes, deadline_ms=DEADLINE_MS)
    assert (finding.verdict, finding.why) == (Verdict.BROKEN, "1 of 9 tables differ: `oscar`.`log`")


def test_databases_that_never_become_level_are_told_apart_by_position(
    pair: tuple[MariaDBServer, MariaDBServer],
) -> None:
    primary, standby = pair
    nodes = [node_of("one", primary), node_of("two", standby)]

    finding = checks.databases_equal(nodes, deadline_ms=300)
    assert finding.verdict is Verdict.BROKEN
    assert finding.why.startswith("the databases did not become level: one 0-7-")


def test_a_database_that_is_down_is_not_equal(server: MariaDBServer) -> None:
    nodes = [node_of("one", server)]
    server.kill()

    assert checks.databases_equal(nodes, deadline_ms=300).verdict is Verdict.BROKEN


def follow(primary: MariaDBServer, standby: MariaDBServer) -> None:
    standby.run("START SLAVE")
    level(standby, primary)


def beat(primary: MariaDBServer, stop: threading.Event) -> None:
    """Write a row every 200 ms, as a watchdog does every second."""
    with closing(primary.connect()) as connection, connection.cursor() as cursor:
        number = 3
        while not stop.wait(0.2):
            number += 1
            cursor.execute("UPDATE oscar_ha.epoch SET epoch = %s ORDER BY epoch DESC LIMIT 1", (number,))
