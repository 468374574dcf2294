"""A standby that stands still for a comparison: exactly where it is told to, for a moment, and never against a plan."""

import threading
from contextlib import closing

import pytest

from cluster.position import Position
from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers
LONG_MS, SHORT_MS = 20_000, 500


@pytest.fixture
def pair(site: Site) -> Site:
    """A primary and a standby that follows it."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    return site


def write(site: Site, first: int, count: int) -> None:
    with closing(site.one.client()) as connection, connection.cursor() as cursor:
        for number in range(first, first + count):
            cursor.execute("INSERT INTO chart VALUES (%s)", (number,))


def applied(site: Site) -> Position:
    return Position.parse(str(site.two.value("SELECT @@gtid_slave_pos")))


def test_a_standby_stands_still_exactly_where_the_primarys_snapshot_is(pair: Site) -> None:
    """Under load, again and again: the snapshot's place in the binary log is its position to the transaction."""
    stop = threading.Event()

    def load() -> None:
        with closing(pair.one.client()) as connection, connection.cursor() as cursor:
            while not stop.wait(0.002):
                cursor.execute("INSERT IGNORE INTO chart VALUES (FLOOR(RAND() * 1000000000))")

    threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        moments = [moment(pair) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert all(ours == theirs for ours, theirs in moments)
    assert len({ours for ours, _ in moments}) > 2, "nothing was written meanwhile"
    eventually(lambda: applied(pair).covers(Position.parse(pair.one.value("SELECT @@gtid_binlog_pos"))))


def moment(site: Site) -> tuple[object, object]:
    """Return what both servers hold at one position."""
    halt = site.watchdog_two.done("halt", epoch=1, for_ms=LONG_MS)["halt"]
    with closing(site.one.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        cursor.execute("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'")
        place = {str(name).lower(): value for name, value in cursor.fetchall()}
        file, offset = place["binlog_snapshot_file"], int(place["binlog_snapshot_position"])
        cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (file, offset))
        row = cursor.fetchone()
        assert row is not None
        here = site.watchdog_two.done("halt-at", halt=halt, file=file, offset=offset, position=row[0])["applied"]
        assert Position.parse(here) == Position.parse(row[0])
        query = "SELECT COUNT(*), SUM(CRC32(id)) FROM oscar.chart"
        cursor.execute(query)
        ours = cursor.fetchone()
        theirs = site.two.run(query)[0]
    site.watchdog_two.done("continue", halt=halt)
    return ours, theirs


def test_a_halt_that_nobody_ends_ends_by_itself(pair: Site) -> None:
    halt = pair.watchdog_two.done("halt", epoch=1, for_ms=SHORT_MS)["halt"]
    write(pair, 1, 3)
    eventually(lambda: pair.two.value("SELECT COUNT(*) FROM oscar.chart") == 3, what="it stands still for ever")
    status, answer = pair.watchdog_two.tell("continue", halt=halt)

    assert (status, "ended" in answer["error"]["message"]) == (409, True)


def test_a_plan_that_needs_the_node_ends_the_halt_at_once(pair: Site) -> None:
    """Repairs yield to a failover (TRAPS.md 35): the drain of a plan applies what is there."""
    halt = pair.watchdog_two.done("halt", epoch=1, for_ms=LONG_MS)["halt"]
    write(pair, 1, 3)
    head = pair.one.value("SELECT @@gtid_binlog_pos")
    pair.watchdog_two.done("drain", epoch=1, position=head, deadline_ms=5_000)

    assert pair.watchdog_two.tell("continue", halt=halt)[0] == 409
    assert pair.watchdog_two.tell("halt-at", halt=halt, file="binlog.000001", offset=4, position=head)[0] == 409


def test_a_watchdog_killed_during_a_halt_leaves_nothing_stopped(pair: Site) -> None:
    pair.watchdog_two.done("halt", epoch=1, for_ms=LONG_MS)
    pair.watchdog_two.kill()
    pair.watchdog_two.start()
    write(pair, 1, 3)

    eventually(lambda: pair.two.value("SELECT COUNT(*) FROM oscar.chart") == 3, what="it stays stopped")


def test_only_one_may_halt_a_standby_and_only_in_the_newest_epoch(pair: Site) -> None:
    pair.watchdog_two.done("halt", epoch=1, for_ms=LONG_MS)

    assert pair.watchdog_two.tell("halt", epoch=1, for_ms=LONG_MS)[0] == 409
    assert pair.watchdog_two.tell("halt", epoch=2, for_ms=LONG_MS)[1]["error"]["code"] == "fenced_out"
    assert pair.watchdog_one.tell("halt", epoch=1, for_ms=LONG_MS)[1]["error"]["code"] == "refused"
    assert pair.watchdog_two.health()["replicating"] is True
