"""A primary that holds while it is cut off: it serves on, remembers what it told alone, and lets go of what is newer (0090)."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from cluster import records
from cluster.records import Durability, DurabilityRecord, Isolation
from healthcheck.command import memory_path
from tests.healthcheck.site import OSCAR_HA, TIMING, Site, WatchdogProcess, eventually
from tests.healthcheck.test_waiting import SEMI_SYNC, SYNC, committing, write
from tests.servers.proxy import Proxy
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
HOLDS = '\n[failover]\non_isolation = "hold"\n\n[durability]\npolicy = "available"\ndegrade_after_seconds = 2\n'
BEYOND_SECONDS = (TIMING["session_ttl_ms"] + 2_000) / 1000
"""Longer than a lease and the patience of the settings."""


@pytest.fixture
def cut_off(tmp_path: Path, zookeeper: ZooKeeperServer, oscar_template: Path) -> Iterator[tuple[Site, Proxy]]:
    """A site that holds, whose watchdog reaches ZooKeeper through a proxy; the test itself reaches it always."""
    with Proxy(zookeeper.port) as proxy:
        site = Site(tmp_path, f"127.0.0.1:{proxy.port}", "holding", oscar_template)
        with site.settings_path.open("a") as settings:
            settings.write(HOLDS)
        site.zookeeper = KazooClient(hosts=zookeeper.address, timeout=10)
        try:
            yield site, proxy
        finally:
            if site.zookeeper.connected and site.zookeeper.exists(site.settings.root):
                site.zookeeper.delete(site.settings.root, recursive=True)
            site.close()


def begin(site: Site, isolation: Isolation = Isolation.HOLD) -> WatchdogProcess:
    """Let node one be a primary that is acknowledged, and knows what it has to do when it is cut off."""
    site.start()
    write(site, SYNC)
    site.make_primary(on_isolation=isolation, revision=1)
    site.make_acker()
    site.watchdog_one.wait_for(waits_by=1, revision=1, vouches=1, alone=None)
    site.watchdog_one.kill()  # who is started anew knows the record as well, once it has written
    site.watchdog_one.start()
    site.watchdog_one.wait_for(waits_by=1, revision=1, vouches=1, role="primary")
    return site.watchdog_one


def cut(site: Site, proxy: Proxy) -> None:
    proxy.__exit__(None, None, None)
    eventually(lambda: not site.zookeeper.exists(site.path("nodes/one")), what="its record does not go")


def test_it_serves_on_and_goes_alone_only_once_nobody_acknowledges(cut_off: tuple[Site, Proxy]) -> None:
    site, proxy = cut_off
    watchdog = begin(site)
    cut(site, proxy)
    held = watchdog.wait_for(holds=True, role="primary", read_only=False)
    time.sleep(BEYOND_SECONDS)  # nothing is to happen: there is no event to wait for
    assert watchdog.is_primary()
    assert watchdog.health()["alone"] is None, "somebody acknowledges: nothing is told alone"
    with committing(site, 1) as told:
        assert told.wait(5.0)

    site.silence_acker()
    with committing(site, 2) as told:
        assert told.wait(20.0)
    alone = watchdog.health()
    remembered = json.loads(memory_path(site.settings.node("one")).read_text())["alone"]
    metrics = watchdog.ask("/metrics")[1]
    with Proxy(proxy.target, port=proxy.port):
        eventually(lambda: site.zookeeper.exists(site.path("nodes/one")), what="its record is not made anew")
        back = watchdog.wait_for(holds=False, role="primary")
        with committing(site, 3) as told:
            assert told.wait(5.0), "no record says anything yet: it goes on as it does"
        write(site, DurabilityRecord(epoch=1, mode=Durability.DEGRADED, ackers=(), since="then", serial=2))
        recorded = watchdog.wait_for(alone=None, serial=2, vouches=1)
        assert site.one.value(SEMI_SYNC) == 0
        watchdog.wait_for(unmet=[])
    forgotten = json.loads(memory_path(site.settings.node("one")).read_text())["alone"]

    assert "nobody is promoted meanwhile" in held["why"]
    assert (alone["alone"]["epoch"], alone["alone"]["serial"], alone["vouches"]) == (1, 1, None)
    assert remembered == alone["alone"]
    assert "has answered its clients alone since" in alone["why"]
    assert 'oscar_ha_watchdog_holding{node="one"} 1.0' in metrics
    assert 'oscar_ha_watchdog_alone{node="one"} 1.0' in metrics
    assert back["alone"] == alone["alone"]
    assert recorded["role"] == "primary"
    assert forgotten is None


def test_it_closes_at_once_when_it_hears_of_somebody_newer(cut_off: tuple[Site, Proxy]) -> None:
    """An operator has promoted another one by his word: it did run after all, and lets go as soon as it can know that."""
    site, proxy = cut_off
    watchdog = begin(site)
    cut(site, proxy)
    watchdog.wait_for(holds=True)
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": ""}, revision=2)
    with Proxy(proxy.target, port=proxy.port):
        report = watchdog.wait_for(role="fenced", read_only=True, resumable=False)

    assert report["epoch"] == 2


def test_it_lets_go_when_it_hears_that_a_later_plan_runs(cut_off: tuple[Site, Proxy]) -> None:
    """The plan waits for it to be closed; by itself it would hold for ever."""
    site, proxy = cut_off
    watchdog = begin(site)
    cut(site, proxy)
    watchdog.wait_for(holds=True)
    site.zookeeper.create(site.path("plan"), records.encode(records.PlannedEpoch(epoch=2)))
    with Proxy(proxy.target, port=proxy.port):
        report = watchdog.wait_for(role="fenced", read_only=True, resumable=True)
        site.zookeeper.delete(site.path("plan"))
        watchdog.wait_for(role="primary", holds=False)

    assert "plan for a later epoch" in report["why"]


def test_a_server_that_is_restarted_while_it_is_cut_off_stays_closed_and_what_it_told_alone_is_known(
    cut_off: tuple[Site, Proxy],
) -> None:
    """Nobody knows then whether an operator has promoted another one meanwhile."""
    site, proxy = cut_off
    watchdog = begin(site)
    cut(site, proxy)
    site.silence_acker()
    with committing(site, 1) as told:
        assert told.wait(20.0)
    alone = watchdog.health()["alone"]
    site.one.kill()
    watchdog.wait_for(database="down")
    site.one.start()
    closed = watchdog.wait_for(role="fenced", database="up", read_only=True)
    with Proxy(proxy.target, port=proxy.port):
        eventually(lambda: site.zookeeper.exists(site.path("nodes/one")), what="its record is not made anew")
        back = watchdog.wait_for(role="fenced", resumable=False, epoch=1)

    assert "stays closed until the line is mended" in closed["why"]
    assert back["alone"] == alone
    assert back["vouches"] is None


def test_a_watchdog_that_is_restarted_while_it_is_cut_off_answers_nobody_until_zookeeper_is_heard(
    cut_off: tuple[Site, Proxy],
) -> None:
    site, proxy = cut_off
    watchdog = begin(site)
    cut(site, proxy)
    site.silence_acker()
    with committing(site, 1) as told:
        assert told.wait(20.0)
    watchdog.kill()
    again = subprocess.run(
        [OSCAR_HA, "watchdog", "run", "--settings", str(site.settings_path), "--node", "one"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    closed = site.one.value("SELECT @@read_only")
    with Proxy(proxy.target, port=proxy.port):
        watchdog.start()
        back = watchdog.wait_for(role="primary", holds=False)

    assert closed == 1, "nobody watches it: it must not answer anybody alone"
    assert back["alone"] is not None
    assert again.returncode == 2, again.stderr
    assert "no ZooKeeper answers" in again.stdout + again.stderr


@pytest.mark.parametrize("isolation", [Isolation.PROMOTE, Isolation.HOLD_ENDS])
def test_without_the_record_it_closes_when_its_lease_ends_whatever_the_settings_say(
    cut_off: tuple[Site, Proxy], isolation: Isolation
) -> None:
    site, proxy = cut_off
    watchdog = begin(site, isolation)
    proxy.__exit__(None, None, None)

    assert "lease ended" in watchdog.wait_for(role="fenced", read_only=True, resumable=True)["why"]
