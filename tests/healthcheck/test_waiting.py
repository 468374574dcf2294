"""Commits stop waiting by the record alone, those that wait then are told OK, and they wait again by it (decision 0089)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster import records
from cluster.records import Durability, DurabilityRecord
from healthcheck.judge import commits_wait
from tests.healthcheck.site import Site

SEMI_SYNC = "SELECT @@rpl_semi_sync_master_enabled"
SYNC = DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("toronto",), since="then", serial=1)


def degraded(serial: int, *ackers: str, epoch: int = 1) -> DurabilityRecord:
    return DurabilityRecord(epoch=epoch, mode=Durability.DEGRADED, ackers=ackers, since="then", serial=serial)


@pytest.mark.parametrize(
    ("record", "waits"),
    [(None, True), (SYNC, True), (degraded(2), False), (degraded(3, "toronto"), True), (degraded(2, epoch=2), True)],
)
def test_commits_wait_unless_the_record_of_this_epoch_names_nobody(
    record: DurabilityRecord | None, waits: bool
) -> None:
    assert commits_wait(record, 1) is waits


def write(site: Site, record: DurabilityRecord) -> None:
    path, data = site.path("durability"), records.encode(record)
    if site.zookeeper.exists(path):
        site.zookeeper.set(path, data)
    else:
        site.zookeeper.create(path, data, makepath=True)


@contextmanager
def committing(site: Site, chart: int) -> Iterator[threading.Event]:
    """A client commits; the event is set once it was told OK."""
    told = threading.Event()

    def commit() -> None:
        with site.one.client() as client, client.cursor() as cursor:
            cursor.execute(f"INSERT INTO chart VALUES ({chart})")
            told.set()

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        yield told
    finally:
        thread.join(timeout=30)


@pytest.mark.servers
def test_who_waits_is_told_ok_once_it_is_recorded_that_nobody_acknowledges(site: Site) -> None:
    site.start()
    write(site, SYNC)
    site.make_primary()
    site.watchdog_one.wait_for(waits_by=1)
    with committing(site, 1) as told:
        assert not told.wait(1.5), "nobody acknowledges, and nothing is recorded yet"
        write(site, degraded(2))
        assert told.wait(5.0)
    report = site.watchdog_one.wait_for(waits_by=None, serial=2, unmet=[])
    assert "degraded since then" in report["why"]
    assert site.watchdog_one.is_primary()

    site.watchdog_one.kill()
    site.watchdog_one = site.watchdog("one")
    site.watchdog_one.start()
    site.watchdog_one.wait_for(role="primary", serial=2, unmet=[])
    assert site.one.value(SEMI_SYNC) == 0, "a watchdog that restarts acts by the record too"

    write(site, degraded(3, "toronto"))
    site.watchdog_one.wait_for(waits_by=3)
    with committing(site, 2) as told:
        assert not told.wait(1.0), "it waits for who is named"
        site.make_acker()
        assert told.wait(10.0)
    write(site, DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("toronto",), since="now", serial=4))
    site.watchdog_one.wait_for(waits_by=4, unmet=[])
