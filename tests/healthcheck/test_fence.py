"""The fence on real servers: nobody writes any more, and nobody who waited is told OK."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pymysql
import pytest

from tests.healthcheck.site import DatabaseNode, Site, eventually

pytestmark = pytest.mark.servers
WRITERS = 12
LOCKED = 4151
WAITING = (
    "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for semi-sync%' OR STATE = 'Commit'"
)


@dataclass
class Writers:
    """Clients that write one row each, every third in a transaction of its own, and note what they were told."""

    server: DatabaseNode
    told: dict[int, str] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, count: int = WRITERS) -> None:
        self.threads = [threading.Thread(target=self._write, args=(row,), daemon=True) for row in range(1, count + 1)]
        for thread in self.threads:
            thread.start()

    def wait(self) -> None:
        for thread in self.threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self.threads), "a client still waits"

    def _write(self, row: int) -> None:
        try:
            client = self.server.client()
        except pymysql.Error as error:  # on a busy machine the fence may come before the login
            self.told[row] = str(error)
            return
        try:
            with client.cursor() as cursor:
                if row % 3 == 0:
                    cursor.execute("BEGIN")
                cursor.execute(f"INSERT INTO {'log' if row % 5 == 0 else 'chart'} VALUES ({row})")
                if row % 3 == 0:
                    cursor.execute("COMMIT")
            self.told[row] = "OK"
        except pymysql.Error as error:
            self.told[row] = str(error)
        finally:
            client._force_close()  # type: ignore[attr-defined]  # the server may be frozen


def is_closed(server: DatabaseNode) -> bool:
    try:
        return bool(server.value("SELECT @@read_only") == 1)
    except pymysql.Error:
        return False  # our own session was killed by the fence: ask again


def test_a_fenced_primary_refuses_root(site: Site) -> None:
    """root writes under read_only (OSCAR's shipped default login): so it must not even come in."""
    site.start()
    site.make_primary()
    site.one.connect("root", "").close()
    answer = site.watchdog_one.done("fence", epoch=1, polite=False, deadline_ms=2000)

    assert answer["how"] == "read_only"
    with pytest.raises(pymysql.OperationalError) as refusal:
        site.one.connect("root", "")
    assert refusal.value.args[0] == LOCKED


@pytest.mark.parametrize("round_number", range(3))
def test_waiting_commits_are_never_told_ok_by_a_fence(site: Site, round_number: int) -> None:
    """Killing the leader of a group of commits releases the others of its group as OK (decision 0012)."""
    site.start()
    site.make_primary()  # nobody acknowledges: every commit waits
    writers = Writers(site.one)
    writers.start()
    eventually(lambda: site.one.value(WAITING) >= 3, what="no commit waits")
    time.sleep(0.02 * round_number)
    answer = site.watchdog_one.done("fence", epoch=1)
    writers.wait()

    assert "OK" not in writers.told.values()
    assert answer["how"] == "read_only", site.watchdog_one.log_tail()
    assert is_closed(site.one)
    assert site.one.value("SELECT @@rpl_semi_sync_master_enabled") == 1, (
        "switching it off would have released them (TRAPS.md 6)"
    )


def test_an_idle_session_is_gone_after_the_fence(site: Site) -> None:
    """OSCAR's pool checks with `select 1`, which a read-only server answers: it would never leave."""
    site.start()
    site.make_primary()
    with site.one.client() as client, client.cursor() as cursor:
        cursor.execute("SELECT 1")
        site.watchdog_one.done("fence", epoch=1)
        with pytest.raises(pymysql.Error):
            cursor.execute("SELECT 1")


def test_a_fence_does_not_wait_for_clients_that_come_again_and_again(site: Site) -> None:
    """HAProxy still sends them here for a moment. They meet a read-only server, and the next primary waits for the fence."""
    site.start()
    site.make_primary()
    ended, came = threading.Event(), []

    def come_again() -> None:
        while not ended.is_set():
            with suppress(pymysql.Error), site.one.client() as client, client.cursor() as cursor:
                cursor.execute("SELECT SLEEP(0.05)")
                came.append(1)

    clients = [threading.Thread(target=come_again) for _ in range(6)]
    for one in clients:
        one.start()
    eventually(lambda: len(came) > 6, what="nobody comes")
    answer = site.watchdog_one.done("fence", epoch=1, polite=True, deadline_ms=2000)
    there = len(came)
    eventually(lambda: len(came) > there + 6, what="nobody comes any more")
    ended.set()
    for one in clients:
        one.join(5)

    assert answer["how"] == "read_only", site.watchdog_one.log_tail()
    assert is_closed(site.one)


def test_a_polite_fence_lets_running_writes_end(site: Site) -> None:
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    told: list[str] = []

    def write() -> None:
        try:
            with site.one.client() as client, client.cursor() as cursor:
                cursor.execute("INSERT INTO chart SELECT 7 + SLEEP(0.4)")
                told.append("OK")
        except pymysql.Error as error:
            told.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    eventually(
        lambda: site.one.value("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User sleep'") == 1
    )
    answer = site.watchdog_one.done("fence", epoch=1, polite=True, deadline_ms=2000)
    writer.join(5)

    assert told == ["OK"]
    assert answer["how"] == "read_only"
    eventually(lambda: site.two.value("SELECT MAX(id) FROM oscar.chart") == 7)
    assert answer["position"] == site.two.value("SELECT @@gtid_slave_pos"), "the position of a fence is final"


def test_fencing_twice_gives_the_same_answer_and_the_seal_is_kept(site: Site) -> None:
    site.start()
    site.make_primary()
    first = site.watchdog_one.done("fence", epoch=1)
    second = site.watchdog_one.done("fence", epoch=1)

    assert first == second
    status, answer = site.watchdog_one.tell("open", epoch=1)
    assert status == 409
    assert answer["error"]["code"] == "fenced_out"
    site.watchdog_one.kill()
    site.watchdog_one.start()
    assert site.watchdog_one.wait_for(database="up")["sealed_epoch"] == 1
    assert not site.watchdog_one.is_primary()


def test_a_frozen_server_is_hung_and_the_fence_kills_it(site: Site) -> None:
    site.start()
    site.make_primary()
    site.one.freeze()
    site.watchdog_one.wait_for(database="hung")
    assert not site.watchdog_one.is_primary()
    answer = site.watchdog_one.done("fence", epoch=1)

    assert answer == {"fenced": True, "position": None, "how": "killed", "vouches": 1}
    eventually(lambda: not site.one.alive)
    assert site.watchdog_one.done("fence", epoch=1)["how"] == "process dead"


def test_a_server_that_freezes_during_the_fence_is_killed(site: Site) -> None:
    """It is not known to be hung yet: the fence finds out by its own deadline."""
    site.start()
    site.make_primary()
    site.one.freeze()
    answer = site.watchdog_one.done("fence", epoch=1, deadline_ms=500)

    assert answer["how"] == "killed"


def test_a_dead_server_is_fenced_at_once(site: Site) -> None:
    site.start()
    site.make_primary()
    site.one.kill()
    site.watchdog_one.wait_for(database="down")

    answer = site.watchdog_one.done("fence", epoch=1)
    assert answer == {"fenced": True, "position": None, "how": "process dead", "vouches": 1}


def test_a_primary_closes_when_a_newer_epoch_names_another(site: Site) -> None:
    site.start()
    site.make_primary()
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": ""})
    report = site.watchdog_one.wait_for(role="fenced", epoch=2, read_only=True)

    assert report["sealed_epoch"] == 1
    assert report["resumable"] is False


def test_a_standby_that_somebody_opened_is_closed_again(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up", role="fenced")
    site.one.run("SET GLOBAL read_only = 0")

    eventually(lambda: is_closed(site.one))


def test_a_fence_of_an_older_epoch_is_refused(site: Site) -> None:
    site.start()
    site.make_primary(epoch=3)
    status, answer = site.watchdog_one.tell("fence", epoch=2)

    assert status == 409
    assert answer["error"]["code"] == "fenced_out"
    assert site.watchdog_one.is_primary()
