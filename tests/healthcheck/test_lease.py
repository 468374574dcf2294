"""The lease, on the watchdog's own clock: its end closes the database without anybody's help, its return opens it again."""

import json
import time
from collections.abc import Callable

import pymysql
import pytest
from kazoo.client import KazooClient

from cluster import clock
from cluster.clock import Nanos
from tests.healthcheck.site import TIMING, Site, eventually

pytestmark = pytest.mark.servers
LEASE_SECONDS = (TIMING["session_ttl_ms"] - TIMING["lease_margin_ms"]) / 1000
QUIET_SECONDS = 1.0
CRASHES_MAX, CRASH_KNOWN_MS = 5, 250.0


def is_open(site: Site) -> bool:
    """Whether it takes writes still; a look that the fence itself cut off saw it being closed."""
    try:
        return not read_only(site)
    except pymysql.err.OperationalError:
        return True


def read_only(site: Site) -> bool:
    return bool(site.one.value("SELECT @@read_only") == 1)


def last_yes(question: Callable[[], bool], *, what: str) -> Nanos:
    """Ask until the answer is no; return when the last question was *sent* that was answered yes.

    The answer was true then or later. When it came back says more of how busy the machine is.
    """
    last = clock.now()

    def says_no() -> bool:
        nonlocal last
        sent = clock.now()
        if not question():
            return True
        last = sent
        return False

    eventually(says_no, what=what)
    return last


def test_the_end_of_the_lease_closes_the_database_without_zookeeper(lonely_site: Site, own_zookeeper: object) -> None:
    site = lonely_site
    site.start()
    site.make_primary()
    own_zookeeper.freeze()  # type: ignore[attr-defined]  # a fixture's class of another file
    frozen = clock.now()
    said_yes = clock.ms_between(frozen, last_yes(site.watchdog_one.is_primary, what="/primary never says no")) / 1000
    was_open = clock.ms_between(frozen, last_yes(lambda: is_open(site), what="never closed")) / 1000
    report = site.watchdog_one.wait_for(role="fenced", resumable=True)
    own_zookeeper.thaw()  # type: ignore[attr-defined]  # as above

    assert said_yes <= LEASE_SECONDS
    assert was_open <= LEASE_SECONDS + TIMING["lease_margin_ms"] / 1000, (
        "it must be closed before others may believe so"
    )
    assert "lease" in report["why"]
    eventually(site.watchdog_one.is_primary, what=f"never opened again: {site.watchdog_one.log_tail()}")
    assert not read_only(site)
    site.one.connect("root", "").close()


def test_it_does_not_open_again_while_a_plan_runs(lonely_site: Site, own_zookeeper: object) -> None:
    site = lonely_site
    site.start()
    site.make_primary()
    site.zookeeper.create(site.path("plan"), b"{}")
    own_zookeeper.freeze()  # type: ignore[attr-defined]  # a fixture's class of another file
    site.watchdog_one.wait_for(role="fenced", read_only=True)
    own_zookeeper.thaw()  # type: ignore[attr-defined]  # as above
    report = site.watchdog_one.wait_for(role="fenced", resumable=True, database="up")
    eventually(lambda: published(site).get("role") == "fenced")
    time.sleep(QUIET_SECONDS)  # nothing is to happen: there is no event to wait for

    assert report["read_only"] is True
    assert read_only(site)
    site.zookeeper.delete(site.path("plan"))
    eventually(site.watchdog_one.is_primary)


def test_a_watchdog_that_was_killed_returns_and_the_primary_stays_open(site: Site) -> None:
    site.start()
    site.make_primary()
    with site.one.client() as client, client.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        site.watchdog_one.kill()
        site.watchdog_one.start()
        eventually(site.watchdog_one.is_primary, what=f"never primary again: {site.watchdog_one.log_tail()}")

        cursor.execute("SELECT @@read_only")  # the session lives: nothing was closed in between
        assert cursor.fetchone() == (0,)
    assert site.watchdog_one.health()["lease_epoch"] == 1


def test_a_watchdog_that_returns_too_late_closes(site: Site) -> None:
    """Another was named while it was away."""
    site.start()
    site.make_primary()
    site.watchdog_one.kill()
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": ""})
    site.watchdog_one.start()
    site.watchdog_one.wait_for(role="fenced", database="up", read_only=True)

    assert read_only(site)
    assert not site.watchdog_one.health()["resumable"]


def test_a_frozen_watchdog_says_no_when_it_wakes(site: Site) -> None:
    """Its first answer after the thaw must already know that the lease is over."""
    site.start()
    site.make_primary()
    site.watchdog_one.freeze()
    gone = clock.after(clock.now(), TIMING["session_ttl_ms"] + 1500)
    eventually(lambda: not site.zookeeper.exists(site.path("nodes/one")), what="the lease never ended in ZooKeeper")
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": ""})
    site.watchdog_one.thaw()

    assert site.watchdog_one.ask("/primary")[0] == 503
    assert clock.seconds_left(gone) > 0, "ZooKeeper took longer than it may"
    site.watchdog_one.wait_for(role="fenced", read_only=True, epoch=2)


def test_a_crash_of_the_server_is_known_at_once(site: Site) -> None:
    """The soonest news of a few crashes: what comes on top of that in a single one is how busy the machine is."""
    site.start()
    site.make_primary()
    watcher = KazooClient(hosts=site.settings.zookeeper[0])
    watcher.start(timeout=10)
    took_ms = list[float]()
    try:
        while len(took_ms) < CRASHES_MAX and not (took_ms and min(took_ms) < CRASH_KNOWN_MS):
            if not site.one.alive:
                site.one.start()
            site.watchdog_one.wait_for(database="up")
            eventually(lambda: published(site).get("database") == "up", what="it is published that it is up")
            took_ms.append(crash_known_ms(site, watcher))
    finally:
        watcher.stop()
        watcher.close()

    assert min(took_ms) < CRASH_KNOWN_MS, f"milliseconds from the kill to the news: {took_ms}"


def crash_known_ms(site: Site, watcher: KazooClient) -> float:
    """Kill the server; return how long it took until ZooKeeper told us."""
    known = list[Nanos]()

    def changed(data: bytes | None, _: object) -> None:
        if data and json.loads(data)["database"] == "down":
            known.append(clock.now())

    watcher.DataWatch(site.path("nodes/one"))(changed)
    began = clock.now()
    site.one.process.kill()
    eventually(lambda: known, what="the death was never published")
    return clock.ms_between(began, known[0])


def published(site: Site) -> dict[str, object]:
    found = site.zookeeper.get(site.path("nodes/one"))[0] if site.zookeeper.exists(site.path("nodes/one")) else b"{}"
    report: dict[str, object] = json.loads(found)
    return report
