"""A standby is built from a running server, under write load; whatever dies on the way, the node is as it was.

Node one gives, node two is built. A third server acknowledges, as a replicator does in a whole cluster.
One cluster for all: each test leaves node two a standby, and the last ones end the primary.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster import clock
from cluster.records import SeedPhase
from tests.conftest import require
from tests.healthcheck.site import WAIT_SECONDS, Site, eventually
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
SEED_SECONDS = 60.0
FENCE_MS_MAX = 2_000.0
WRITE_PAUSE_SECONDS = 0.05
"""A standby that applies with one thread must be able to catch up on a busy machine."""
TABLES = {
    "seed_innodb": "(id INT PRIMARY KEY AUTO_INCREMENT, note VARCHAR(100), KEY (note)) ENGINE=InnoDB",
    "seed_aria": "(id INT PRIMARY KEY AUTO_INCREMENT, note VARCHAR(100)) ENGINE=Aria",
    "seed_myisam": "(id INT PRIMARY KEY AUTO_INCREMENT, note VARCHAR(100)) ENGINE=MyISAM",
    "seed_no_key": "(id INT, note VARCHAR(100)) ENGINE=InnoDB",
    "seed_no_key_myisam": "(id INT, note VARCHAR(100)) ENGINE=MyISAM",
}


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, zookeeper: ZooKeeperServer, oscar_template: Path
) -> Iterator[Site]:
    """Node one is the primary, node two a standby that the tests destroy."""
    missing = [name for name in ("mariadb-backup", "mbstream") if shutil.which(name) is None]
    require(f"{', '.join(missing)} (package mariadb-backup)" if missing else "")
    site = Site(tmp_path_factory.mktemp("seeding"), zookeeper.address, "seeding", oscar_template)
    try:
        site.start(standby=True)
        site.make_primary()
        site.make_standby()
        site.make_acker()
        with site.one.client() as client, client.cursor() as cursor:
            for name, columns in TABLES.items():
                cursor.execute(f"CREATE TABLE {name} {columns}")
                cursor.execute(f"INSERT INTO {name} (note) VALUES ('first'), ('second')")
        yield site
    finally:
        site.close()


class Load:
    """A client for each table that writes until it is told to stop."""

    def __init__(self, site: Site) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(site, name)) for name in TABLES]
        self.written = dict.fromkeys(TABLES, 0)
        self.slowest_ms = 0.0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def _write(self, site: Site, table: str) -> None:
        with site.one.client() as client, client.cursor() as cursor:
            while not self._stop.wait(WRITE_PAUSE_SECONDS):
                began = clock.now()
                cursor.execute(f"INSERT INTO {table} (note) VALUES ('{self.written[table]}')")
                self.written[table] += 1
                self.slowest_ms = max(self.slowest_ms, clock.ms_between(began, clock.now()))


_ids = (f"seed-{number}" for number in range(1, 100))


def reinitialize(site: Site, seeding: str, *, donor: str = "one", **more: Any) -> tuple[int, dict[str, Any]]:
    return site.watchdog_two.tell("reinitialize", epoch=1, donor=donor, id=seeding, **more)


def begin(site: Site, **more: Any) -> str:
    """Begin a seeding, once the one before has left nothing to be done, and return its name."""
    seeding = next(_ids)

    def begun() -> bool:
        status, answer = reinitialize(site, seeding, **more)
        if status != 200 and not answer["error"]["retryable"]:
            raise AssertionError(answer)
        return status == 200

    eventually(begun, what="the one before does not end")
    return seeding


def wait_phase(site: Site, seeding: str, *phases: SeedPhase) -> Mapping[str, Any]:
    def there() -> Mapping[str, Any] | None:
        report = site.watchdog_two.health()["seeding"]
        return report if report and report["id"] == seeding and report["phase"] in phases else None

    try:
        found: Mapping[str, Any] = eventually(there, seconds=SEED_SECONDS, what=f"never {phases}")
    except AssertionError:
        raise AssertionError(f"never {phases}: {site.watchdog_two.health()}\n{site.watchdog_two.log_tail()}") from None
    return found


def wait_seeded(site: Site, seeding: str) -> Mapping[str, Any]:
    found = wait_phase(site, seeding, SeedPhase.DONE, SeedPhase.FAILED)
    assert found["phase"] == SeedPhase.DONE, (found, site.watchdog_two.log_tail())
    assert site.watchdog_two.health()["role"] == "standby"
    return found


def wait_standby_again(site: Site) -> None:
    """The server on the old data runs again; it follows by itself, or when it is told to, as a controller does."""
    report = site.watchdog_two.wait_for(database="up", epoch=1, seconds=SEED_SECONDS)
    if report["role"] == "fenced":
        site.watchdog_two.tell("follow", epoch=1)
    site.watchdog_two.wait_for(role="standby", seconds=SEED_SECONDS)


def require_equal(site: Site) -> None:
    """Both nodes hold the same at the same position."""
    head = site.one.value("SELECT @@gtid_binlog_pos")
    assert site.two.value(f"SELECT MASTER_GTID_WAIT('{head}', 30)") == 0, site.two.run("SHOW SLAVE STATUS")
    names = ", ".join(f"oscar.{name}" for name in (*TABLES, "chart", "log"))
    sums = [node.run(f"CHECKSUM TABLE {names}") for node in (site.one, site.two)]
    assert sums[0] == sums[1]
    assert all(checksum is not None for _, checksum in sums[0])


def leftovers(site: Site) -> list[str]:
    return sorted(path.name for path in (site.directory / "two").glob("data.*") if path.suffix != ".json")


def destroy(site: Site) -> None:
    site.two.kill()
    site.watchdog_two.wait_for(database="down")
    shutil.rmtree(site.two.datadir)


def test_a_destroyed_standby_is_built_anew_under_write_load_and_equals_the_primary(cluster: Site) -> None:
    with Load(cluster) as load:
        destroy(cluster)
        seeding = begin(cluster)
        copying = wait_phase(cluster, seeding, SeedPhase.COPYING)
        wait_phase(cluster, seeding, SeedPhase.CATCHING_UP, SeedPhase.DONE, SeedPhase.FAILED)
    done = wait_seeded(cluster, seeding)
    require_equal(cluster)
    assert min(load.written.values()) > 0
    assert copying["bytes_total"] > 1_000_000
    assert done["bytes"] > 1_000_000
    assert leftovers(cluster) == []
    assert cluster.two.value("SELECT @@read_only") == 1


def test_what_cannot_work_is_refused_before_anything_is_touched(cluster: Site) -> None:
    generation = cluster.watchdog_two.health()["generation"]
    good: dict[str, Any] = {"epoch": 1, "donor": "one", "id": "seed-0"}
    for wrong, reason in (
        ({"donor": "nobody"}, "there is no node"),
        ({"epoch": 0}, "epoch"),
        ({"id": "../x"}, "id"),
        ({"token": "x"}, "unauthorized"),
    ):
        status, answer = cluster.watchdog_two.tell("reinitialize", **(good | wrong))
        assert status >= 400, (wrong, answer)
        assert reason in str(answer), answer
    status, answer = cluster.watchdog_one.tell("reinitialize", epoch=1, donor="two", id="seed-0")
    assert (status, "primary" in str(answer)) == (409, True)
    assert cluster.watchdog_two.health()["generation"] == generation


def test_a_node_with_transactions_of_its_own_is_seeded_only_by_a_persons_word_and_they_are_kept(cluster: Site) -> None:
    """Nothing is thrown away. And its new binlog begins where the copy stands: it may be promoted at once (TRAPS.md 26)."""
    (cluster.directory / "two" / "rescue").write_text("a file, so that no rescue can be made")
    with cluster.two.connect() as own, own.cursor() as cursor:
        cursor.execute("STOP SLAVE")
        cursor.execute("RESET SLAVE ALL")
        cursor.execute("INSERT INTO oscar.chart VALUES (4711)")
    eventually(lambda: "ahead" in cluster.watchdog_two.health()["why"], what="it says that it is ahead")
    status, answer = reinitialize(cluster, "seed-0")
    assert (status, "ahead" in str(answer)) == (409, True)
    seeding = begin(cluster, force=True)
    done = wait_seeded(cluster, seeding)

    kept = cluster.two.datadir.with_name(f"data.before-seed-{seeding}")
    assert (done["kept"], (kept / "oscar" / "chart.ibd").exists()) == (str(kept), True)
    (oldest, *_), *_ = cluster.two.run("SHOW BINARY LOGS")
    _, gtid_list = cluster.two.run(f"SHOW BINLOG EVENTS IN '{oldest}' LIMIT 2")
    assert gtid_list[5] == f"[{done['position']}]"
    require_equal(cluster)
    shutil.rmtree(kept)


def test_a_watchdog_killed_at_any_phase_leaves_the_node_as_it_was_or_goes_on(cluster: Site) -> None:
    for phase in (SeedPhase.COPYING, SeedPhase.PREPARING, SeedPhase.STARTING):
        seeding = begin(cluster)
        wait_phase(cluster, seeding, phase, SeedPhase.CATCHING_UP, SeedPhase.DONE)
        cluster.watchdog_two.kill()
        cluster.watchdog_two.start()
        ended = wait_phase(cluster, seeding, SeedPhase.DONE, SeedPhase.FAILED)
        assert ended["phase"] == (SeedPhase.DONE if phase is SeedPhase.STARTING else SeedPhase.FAILED), (phase, ended)
        wait_standby_again(cluster)
        assert not (cluster.directory / "two" / "data.seeding").exists()
    require_equal(cluster)


def test_a_donor_that_dies_in_the_middle_leaves_the_node_as_it_was(cluster: Site) -> None:
    seeding = begin(cluster)
    wait_phase(cluster, seeding, SeedPhase.COPYING)
    cluster.watchdog_one.kill()  # the backup dies with it
    failed = wait_phase(cluster, seeding, SeedPhase.FAILED)
    cluster.watchdog_one.start()
    eventually(cluster.watchdog_one.is_primary, what="it takes over what it had opened")
    wait_standby_again(cluster)
    assert "the connection" in failed["why"], failed
    require_equal(cluster)


def test_a_donor_whose_database_hangs_does_not_hold_the_receiver_for_ever(cluster: Site) -> None:
    """Its process lives and says so every second: only its watchdog knows that nothing will come any more."""
    seeding = begin(cluster)
    wait_phase(cluster, seeding, SeedPhase.COPYING)
    os.kill(cluster.one.pid, signal.SIGSTOP)
    try:
        failed = wait_phase(cluster, seeding, SeedPhase.FAILED)
    finally:
        os.kill(cluster.one.pid, signal.SIGCONT)
    assert "reinitialize" in failed["why"]
    eventually(cluster.watchdog_one.is_primary, what="it is not the primary again")
    wait_standby_again(cluster)


def test_a_disk_that_takes_no_memory_ends_the_seeding_and_the_node_is_as_it_was(cluster: Site) -> None:
    """Also the word that it has failed cannot be written then: it is over all the same."""
    in_the_way = cluster.directory / "two" / "data.seed.json.new"
    in_the_way.mkdir()
    try:
        failed = wait_phase(cluster, begin(cluster), SeedPhase.FAILED)
    finally:
        in_the_way.rmdir()
    assert "cannot be written" in failed["why"]
    wait_standby_again(cluster)


def give(site: Site, receiver: str) -> tuple[int, str]:
    body = json.dumps({"epoch": 1, "receiver": receiver, "token": "ab" * 32}).encode()
    return site.watchdog_one.post("give", body)


def stopped_giving(site: Site, why: str) -> bool:
    lines = site.watchdog_one.log_path.read_text().splitlines()
    return any("seed.giving_stopped" in line and why in line for line in lines)


def test_a_copy_that_writes_wait_for_ends_and_who_asks_anew_is_given_anew(cluster: Site) -> None:
    """A receiver that went, or a wire that was cut, must not let commits of the primary wait (the locks are the backup's)."""
    assert give(cluster, "two")[0] == 200
    assert give(cluster, "two")[0] == 200, "the receiver is not there any more, or it would not ask"
    assert stopped_giving(cluster, "asks anew")
    status, said = give(cluster, "one")
    assert (status, "gives its data to two" in said) == (409, True)

    with cluster.one.connect() as backup, backup.cursor() as locks:
        for stage in ("START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"):
            locks.execute(f"BACKUP STAGE {stage}")
        with Load(cluster):
            eventually(lambda: stopped_giving(cluster, "writes of the clinics"), what=cluster.watchdog_one.log_tail())
            locks.execute("BACKUP STAGE END")


def test_a_node_that_is_promoted_while_its_donor_is_asked_is_not_replaced(cluster: Site) -> None:
    """A failover that chose it comes first, and what it is to open is not taken from under it."""
    answers: list[tuple[int, dict[str, Any]]] = []

    def answered() -> tuple[int, dict[str, Any]] | None:
        found = reinitialize(cluster, "seed-0")
        return None if "beginning" in str(found) else found  # the order that only looks, below, was first

    os.kill(cluster.watchdog_one.pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(eventually(answered)))
    asking.start()
    try:
        # An order that cannot be obeyed is refused for that, unless another one is beginning.
        eventually(lambda: "beginning" in str(reinitialize(cluster, "seed-0", donor="nobody")), what="it never asks")
        cluster.watchdog_two.done("promote", epoch=2)
    finally:
        os.kill(cluster.watchdog_one.pid, signal.SIGCONT)
        asking.join(WAIT_SECONDS)
    ((status, said),) = answers
    assert (status, "promoted for epoch 2" in str(said)) == (409, True), said
    assert reinitialize(cluster, "seed-0")[0] == 409
    assert cluster.watchdog_two.health()["database"] == "up"
    eventually(cluster.watchdog_one.is_primary, what="its lease is not back")
    cluster.watchdog_two.done("follow", epoch=1)
    cluster.watchdog_two.wait_for(role="standby")


def test_a_donor_that_is_fenced_drops_its_backup_first(cluster: Site) -> None:
    """A failover never waits for a repair (TRAPS.md 35). The last test: the primary is no more."""
    seeding = begin(cluster)
    wait_phase(cluster, seeding, SeedPhase.COPYING)
    began = clock.now()
    cluster.watchdog_one.done("fence", epoch=1)
    took_ms = clock.ms_between(began, clock.now())
    failed = wait_phase(cluster, seeding, SeedPhase.FAILED)
    backups = cluster.one.value("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'BACKUP%'")
    assert took_ms < FENCE_MS_MAX
    assert backups == 0
    assert "reinitialize" in failed["why"]
