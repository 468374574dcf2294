"""The acknowledgement: only after the disk, only by who is named, and never after the seal."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pymysql
import pytest

from cluster import clock
from cluster.position import Position
from cluster.records import Acks
from tests.replicator.house import House, until
from tests.servers.mariadb import SEMI_SYNC_FOREVER_MS, MariaDBServer
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers

SEMI_SYNC = {
    "rpl_semi_sync_master_enabled": "ON",
    "rpl_semi_sync_master_wait_point": "AFTER_SYNC",
    "rpl_semi_sync_master_timeout": SEMI_SYNC_FOREVER_MS,
    "rpl_semi_sync_master_wait_no_slave": "ON",
}
BLOCKED_SECONDS = 0.5
SEALS_MAX, SEAL_MS = 5, 100.0


class Writer(threading.Thread):
    """Inserts 1, 2, 3, ... one by one until stopped; `acknowledged` are those whose commit returned."""

    def __init__(self, server: MariaDBServer) -> None:
        super().__init__(daemon=True)
        self.server, self.acknowledged, self.stopped = server, list[int](), threading.Event()

    def run(self) -> None:
        connection = self.server.connect()
        try:
            with connection.cursor() as cursor:
                number = 0
                while not self.stopped.is_set():
                    number += 1
                    cursor.execute("INSERT INTO d.t VALUES (%s, REPEAT('x', 500))", (number,))
                    self.acknowledged.append(number)
        except pymysql.Error:
            pass
        finally:
            connection.close()


def primary_of(house: House, *ackers: str, acks: Acks = Acks.ONE, **options: object) -> MariaDBServer:
    primary = house.database("clinic", **SEMI_SYNC, **options)
    primary.run("SET GLOBAL rpl_semi_sync_master_enabled=OFF", "CREATE DATABASE d",
                "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)", "SET GLOBAL rpl_semi_sync_master_enabled=ON")  # fmt: skip
    house.begin_epoch("clinic", ackers=ackers, acks=acks)
    return primary


def test_a_commit_waits_for_the_named_acker_and_for_nobody_else(house: House) -> None:
    primary = primary_of(house, "toronto")
    house.replicator("clinic")
    house.replicator("montreal")
    house.await_health("montreal", lambda report: report.connected, what="connected")
    writer = Writer(primary)
    writer.start()
    time.sleep(BLOCKED_SECONDS)
    waiting = list(writer.acknowledged)
    house.await_durable("montreal", house.position("clinic"))
    house.replicator("toronto")
    until(lambda: len(writer.acknowledged) > 10, what="commits go on")
    writer.stopped.set()
    writer.join()

    assert waiting == []
    assert house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging").connected
    assert not house.await_health("montreal", lambda _: True, what="any").acknowledging


@pytest.mark.parametrize("acks", [Acks.ONE, Acks.ALL])
def test_a_named_acker_in_the_primarys_own_site_acknowledges_nothing(house: House, acks: Acks) -> None:
    primary = primary_of(house, "clinic", acks=acks)
    house.replicator("clinic")
    report = house.await_health("clinic", lambda report: report.connected, what="connected")
    writer = Writer(primary)
    writer.start()
    time.sleep(BLOCKED_SECONDS)

    assert writer.acknowledged == []
    assert "own site" in report.why


def together(house: House) -> tuple[MariaDBServer, Writer]:
    """Return a primary whose commits Toronto and Montreal acknowledge together, and a writer that writes."""
    primary = primary_of(house, "toronto", "montreal", acks=Acks.ALL)
    for site in ("toronto", "montreal"):
        house.replicator(site)
    writer = Writer(primary)
    writer.start()
    until(lambda: len(writer.acknowledged) > 10, what="commits")
    for site in ("toronto", "montreal"):
        house.await_health(site, lambda report: report.acknowledging, what="acknowledging")
    return primary, writer


def has_stopped(writer: Writer) -> bool:
    """Return whether no commit was acknowledged for a while, after one that was just being."""
    time.sleep(BLOCKED_SECONDS)
    count = len(writer.acknowledged)
    time.sleep(BLOCKED_SECONDS)
    return len(writer.acknowledged) == count


def test_under_all_a_commit_waits_for_every_named_site_until_a_narrower_set_is_recorded(house: House) -> None:
    """Frozen, not dead: its connections stay open, and what it said before is not what it has now."""
    _, writer = together(house)
    house.replicators["montreal"].freeze()
    waited = has_stopped(writer)
    stopped_at = len(writer.acknowledged)
    report = house.await_health("toronto", lambda report: report.waits_for, what="waiting for a word")
    serial = house.name_ackers("toronto", epoch=1, acks=Acks.ALL)
    until(lambda: len(writer.acknowledged) > stopped_at + 10, what="commits go on with the narrower set")
    house.await_health("toronto", lambda report: report.serial == serial, what="acting on the new record")
    house.replicators["montreal"].thaw()
    house.name_ackers("toronto", "montreal", epoch=1, acks=Acks.ALL)
    house.await_health("montreal", lambda report: report.acknowledging, what="acknowledging again")
    count = len(writer.acknowledged)
    until(lambda: len(writer.acknowledged) > count + 10, what="commits with the full set")

    assert waited
    assert report.waits_for == ("montreal",)
    assert "montreal" in report.why


def test_under_all_the_word_of_a_sealed_acker_counts_no_more(house: House) -> None:
    """Sealing one of them is the fence: the other, that nobody can reach, acknowledges nothing more by itself."""
    primary, writer = together(house)
    status, answer = house.post("montreal", "/v1/seal", epoch=1, until=None, deadline_ms=5000)
    stopped = has_stopped(writer)
    acknowledged = len(writer.acknowledged)
    writer.stopped.set()
    sealed = Position.parse(str(answer["durable"]))
    report = house.health("toronto")

    assert (status, stopped) == (200, True)
    assert report is not None
    assert report.acknowledged is not None
    assert sealed.covers(Position.parse(report.acknowledged)), "one sealed acker has all that was acknowledged"
    assert acknowledged > 0
    assert primary.alive


def test_under_all_every_acker_has_everything_acknowledged_after_kill_9_of_both_under_load(house: House) -> None:
    _, writer = together(house)
    until(lambda: len(writer.acknowledged) > 200, what="commits")
    for site in ("toronto", "montreal"):
        house.replicators[site].kill()
    time.sleep(BLOCKED_SECONDS)
    promised = len(writer.acknowledged)
    counts = {}
    for site in ("toronto", "montreal"):
        files = sorted((house.archive(site) / "epochs" / "0000000001-1").glob("binlog.*[0-9]"))
        counts[site] = archived_inserts(house, files, site=site)

    assert min(counts.values()) >= promised


def test_a_change_of_ackers_moves_the_acknowledgements(house: House) -> None:
    primary = primary_of(house, "toronto")
    for site in ("toronto", "montreal"):
        house.replicator(site)
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    house.name_ackers("montreal", epoch=1)
    house.await_health("montreal", lambda report: report.acknowledging, what="acknowledging")
    house.await_health("toronto", lambda report: not report.acknowledging, what="no longer acknowledging")
    primary.run("INSERT INTO d.t VALUES (1, 'x')")

    report = house.await_health("montreal", lambda report: report.acknowledged == report.durable, what="acknowledged")
    assert report.acknowledged == house.position("clinic")


def test_a_sealed_replicator_acknowledges_nothing_more(house: House) -> None:
    """Nor after a restart: the promise is on disk."""
    primary = primary_of(house, "toronto")
    house.replicator("toronto")
    primary.run("INSERT INTO d.t VALUES (-1, 'acknowledged')")
    position = house.position("clinic")
    status, answer = house.post("toronto", "/v1/seal", epoch=1, until=position, deadline_ms=5000)
    writer = Writer(primary)
    writer.start()
    time.sleep(BLOCKED_SECONDS)
    house.replicators["toronto"].kill()
    house.replicator("toronto")
    time.sleep(BLOCKED_SECONDS)

    assert (status, answer) == (200, {"sealed": 1, "durable": position})
    assert writer.acknowledged == []
    assert house.post("toronto", "/v1/seal", epoch=1, until=None, deadline_ms=100) == (200, answer)


def test_an_idle_seal_is_fast(house: House) -> None:
    """A failover waits for it. The quickest of a few: what comes on top in a single one is how busy the machine is."""
    primary = primary_of(house, "toronto")
    house.replicator("toronto")
    took_ms = list[float]()
    while len(took_ms) < SEALS_MAX and not (took_ms and min(took_ms) < SEAL_MS):
        if took_ms:
            house.begin_epoch("clinic", ackers=("toronto",))
        epoch = len(took_ms) + 1
        primary.run(f"INSERT INTO d.t VALUES ({epoch}, 'acknowledged')")
        position = house.position("clinic")
        began = clock.now()
        status, answer = house.post("toronto", "/v1/seal", epoch=epoch, until=position, deadline_ms=5000)
        took_ms.append(clock.ms_between(began, clock.now()))
        assert (status, answer) == (200, {"sealed": epoch, "durable": position})

    assert min(took_ms) < SEAL_MS, took_ms


def test_a_seal_outlives_kill_9_right_after_its_answer(house: House) -> None:
    """It was durable before it was answered: the next process knows it before it has read anything else."""
    primary_of(house, "toronto")
    house.replicator("toronto")
    house.await_health("toronto", lambda report: report.epoch == 1, what="knows the epoch")
    status, _ = house.post("toronto", "/v1/seal", epoch=1, until=None, deadline_ms=5000)
    house.replicators["toronto"].kill()
    house.replicator("toronto")
    report = house.health("toronto")

    assert status == 200
    assert report is not None
    assert (report.sealed_epoch, report.acknowledging) == (1, False)


def test_a_seal_that_waits_in_vain_promises_nothing(house: House) -> None:
    primary = primary_of(house, "toronto")
    house.replicator("toronto")
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    status, answer = house.post("toronto", "/v1/seal", epoch=1, until="0-1-999", deadline_ms=200)
    primary.run("INSERT INTO d.t VALUES (1, 'still acknowledged')")

    assert (status, answer["error"]["code"]) == (504, "deadline_passed")


def test_a_replicator_without_zookeeper_stops_acknowledging_when_its_lease_ends(
    house: House, own_zookeeper: ZooKeeperServer
) -> None:

    alone = House(house.directory / "alone", own_zookeeper.address, "/oscar-ha/alone", house.template)
    try:
        primary = primary_of(alone, "toronto")
        alone.replicator("toronto")
        primary.run("INSERT INTO d.t VALUES (-1, 'acknowledged')")
        own_zookeeper.freeze()
        alone.await_health("toronto", lambda report: not report.acknowledging, what="the lease ended")
        writer = Writer(primary)
        writer.start()
        time.sleep(BLOCKED_SECONDS)
        blocked = list(writer.acknowledged)
        own_zookeeper.thaw()
        until(lambda: writer.acknowledged, what="the pending acknowledgement is sent when the lease is back")
        writer.stopped.set()
        writer.join()

        assert blocked == []
    finally:
        own_zookeeper.thaw()
        alone.close()


def test_everything_acknowledged_survives_kill_9_of_the_replicator_under_load(house: House) -> None:
    """And the archive stays the primary's bytes, readable by the database's own tool."""
    primary = primary_of(house, "toronto")
    process = house.replicator("toronto")
    writer = Writer(primary)
    writer.start()
    for step in range(1, 5):
        until(lambda: len(writer.acknowledged) > 150 * step, what="commits")  # noqa: B023 - called before the next step
        process.kill()
        house.replicator("toronto")
    writer.stopped.set()
    writer.join()
    process.kill()
    promised = len(writer.acknowledged)
    files = sorted((house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*[0-9]"))

    assert archived_inserts(house, files) >= promised
    for path in files:
        ours = path.read_bytes()
        assert (primary.datadir / path.name).read_bytes()[: len(ours)][30:] == ours[30:]


def archived_inserts(house: House, files: list[Path], *, site: str = "toronto") -> int:
    """Return how many rows the database's own tool finds in archived files, read through `oscar-ha archive cat`."""
    command = str(Path(sys.executable).parent / "oscar-ha")
    count = 0
    for path in files:
        data = subprocess.run([command, "archive", "cat", path.name, "--archive", str(house.archive(site))],
                              capture_output=True, check=True, timeout=30).stdout  # fmt: skip
        shown = subprocess.run(["mariadb-binlog", "--verify-binlog-checksum", "--base64-output=decode-rows", "-v", "-"],
                               input=data, capture_output=True, check=True, timeout=60).stdout  # fmt: skip
        count += shown.count(b"### INSERT INTO `d`.`t`")
    return count
