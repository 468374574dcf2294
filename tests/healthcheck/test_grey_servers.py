"""Grey failures on real servers, each fault injected: what is failed, what is only degraded, and what a fence does then."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pymysql
import pytest

from cluster import clock
from tests.healthcheck.site import CLIENT, CLIENT_PASSWORD, HEALTH, Site, eventually
from tests.servers.disk import Disk, bad_disk
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
MIB = 2**20
DISK_BYTES = 320 * MIB
FENCE_MS_MAX = 5_000.0
LONGER_THAN_A_HANG_MS = HEALTH["storage_hung_ms"] + 1_500.0
CONNECTIONS = 20
BUSY_SECONDS = 6.0
BUSY_CLIENTS = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """The disk under node one."""
    (tmp_path / "site").mkdir()
    with bad_disk(tmp_path / "site" / "one", DISK_BYTES) as one:
        yield one


@pytest.fixture
def disk_site(
    tmp_path: Path, disk: Disk, zookeeper: ZooKeeperServer, zookeeper_root: str, oscar_template: Path
) -> Iterator[Site]:
    """A primary on a bad disk, whose writes are acknowledged by a server on a good one."""
    one = Site(tmp_path / "site", zookeeper.address, zookeeper_root.rpartition("/")[2], oscar_template)
    try:
        one.start()
        one.make_acker()
        one.make_primary()
        one.watchdog_one.wait_for(health={"condition": "healthy", "reasons": []})
        yield one
    finally:
        disk.heal()
        one.close()


def condition(site: Site) -> tuple[str, str]:
    found = site.watchdog_one.health()["health"] or {"condition": "unknown", "reasons": ()}
    return found["condition"], "; ".join(found["reasons"])


def wait_condition(site: Site, wanted: str, reason: str) -> None:
    eventually(
        lambda: condition(site)[0] == wanted and reason in condition(site)[1],
        what=f"never {wanted} because {reason}, but {condition(site)}: {site.watchdog_one.log_tail()}",
    )


def fenced_how(site: Site) -> str:
    """Fence the primary as a failover does; return how it was reached."""
    began = clock.now()
    answer = site.watchdog_one.done("fence", epoch=1)

    assert clock.ms_between(began, clock.now()) <= FENCE_MS_MAX
    assert not site.watchdog_one.is_primary()
    return str(answer["how"])


def test_a_primary_whose_disk_hangs_has_failed_and_is_certainly_fenced(disk_site: Site, disk: Disk) -> None:
    """It answers every question meanwhile. Its threads hang in the kernel: SIGKILL is the fence, though no process ends."""
    told: list[str] = []

    def write() -> None:
        try:
            with closing(disk_site.one.client()) as client, client.cursor() as cursor:
                disk.hang()
                cursor.execute("INSERT INTO chart VALUES (1)")
            told.append("OK")
        except pymysql.Error as error:
            told.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    wait_condition(disk_site, "failed", "its disk hangs")
    assert disk_site.watchdog_one.health()["database"] in ("up", "hung")
    how = fenced_how(disk_site)

    assert how.startswith("killed")
    assert not told, "nobody may be told that a write is durable that is not"
    disk.heal()
    writer.join(10)
    assert told not in ([], ["OK"])
    disk_site.watchdog_one.wait_for(database="down")


def test_a_primary_whose_disk_is_full_has_failed(disk_site: Site, disk: Disk) -> None:
    disk.fill()
    wait_condition(disk_site, "failed", "MiB free")
    assert disk_site.watchdog_one.health()["disk_free_bytes"] < HEALTH["disk_full_bytes"]

    assert fenced_how(disk_site)


def test_a_primary_whose_file_system_became_read_only_has_failed(disk_site: Site, disk: Disk) -> None:
    disk.break_down()

    def told() -> bool:
        """It may end by itself first: InnoDB does when it cannot write its log."""
        return condition(disk_site)[0] == "failed" or disk_site.watchdog_one.health()["database"] == "down"

    eventually(told, what=f"not failed: {condition(disk_site)}")
    assert fenced_how(disk_site)


def test_a_write_that_waits_for_an_acknowledgement_or_for_a_lock_is_no_hung_disk(site: Site) -> None:
    """A write that does not end: no disk hangs, and another server would do no better."""
    site.start()
    site.make_acker()
    site.make_primary()
    locker = site.one.connect()
    locker.cursor().execute("FLUSH TABLES WITH READ LOCK")
    wait_condition(site, "degraded", "wait for a lock")
    stays_degraded(site)
    locker.cursor().execute("UNLOCK TABLES")
    locker.close()
    wait_condition(site, "healthy", "")
    site.silence_acker()
    wait_condition(site, "degraded", "wait for an acknowledgement")
    stays_degraded(site)
    assert site.watchdog_one.health()["database"] == "up"


def stays_degraded(site: Site) -> None:
    """For longer than a disk may hang it is not failed."""
    deadline = clock.after(clock.now(), LONGER_THAN_A_HANG_MS)
    eventually(lambda: condition(site)[0] == "failed" or clock.seconds_left(deadline) == 0.0)
    assert condition(site)[0] == "degraded"
    assert site.watchdog_one.is_primary()


def test_a_primary_that_somebody_made_read_only_has_failed(site: Site) -> None:
    """It answers SELECT 1, and takes writes of an administrator, but of no clinic."""
    site.start()
    site.make_acker()
    site.make_primary()
    site.one.run("SET GLOBAL read_only = 1")

    wait_condition(site, "failed", "read-only")
    assert fenced_how(site) == "read_only"


def test_clinics_that_use_up_all_connections_are_named_and_nothing_else_happens(site: Site) -> None:
    site.one.options["max-connections"] = CONNECTIONS
    site.start()
    site.make_acker()
    site.make_primary()
    with ExitStack() as stack:
        with suppress(pymysql.OperationalError):
            for _ in range(CONNECTIONS + 2):
                stack.enter_context(closing(site.one.connect(CLIENT, CLIENT_PASSWORD)))
        with pytest.raises(pymysql.OperationalError, match="Too many connections"):
            site.one.client()
        wait_condition(site, "degraded", f"{CONNECTIONS} connections are used up, most of them by {CLIENT}@127.0.0.1")
        stays_degraded(site)
        assert site.watchdog_one.health()["database"] == "up"
    wait_condition(site, "healthy", "")


def test_an_overloaded_primary_is_never_hung(site: Site) -> None:
    """Its probes come late: it uses the processor, and writes. A failover would only move its clients to the next one."""
    site.start()
    site.make_acker()
    site.make_primary()
    before = site.one.value("SELECT @@gtid_binlog_pos")
    with_clients = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(BUSY_CLIENTS), str(BUSY_SECONDS), str(site.one.port), CLIENT, CLIENT_PASSWORD]
    )
    wrong = list[str]()
    try:
        while with_clients.poll() is None:
            report = site.watchdog_one.health()
            if report["database"] != "up" or (report["health"] or {}).get("condition") == "failed":
                wrong.append(f"{report['database']}: {report['why']}")
    finally:
        with_clients.kill()
        with_clients.wait()

    assert not wrong, wrong[:5]
    assert site.watchdog_one.is_primary()
    assert site.one.value("SELECT @@gtid_binlog_pos") != before


BUSY = """
import sys, threading, time, pymysql
clients, seconds, port, user, password = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
end = time.monotonic() + seconds
def work(number):
    with pymysql.connect(host="127.0.0.1", port=port, user=user, password=password, database="oscar", autocommit=True) as one:
        row = number * 100_000
        while time.monotonic() < end:
            with one.cursor() as cursor:
                cursor.execute("SELECT BENCHMARK(100000, MD5('chart'))")
                cursor.execute("INSERT INTO chart VALUES (%s)", (row,))
            row += 1
threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
