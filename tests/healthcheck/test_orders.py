"""A standby that is ordered to stay behind, or to stop: real servers, killed as they like, and a plan that needs it."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
from kazoo.exceptions import NoNodeError

from cluster import clock, records
from cluster.orders import Hold, Order
from cluster.position import Gtid, Position
from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers
DELAY_SECONDS, LONG_SECONDS = 3, 3_600
COUNT = "SELECT COUNT(*) FROM oscar.chart"
SERIALS = iter(range(1, 1_000))


@pytest.fixture
def pair(site: Site) -> Site:
    """A primary and a standby that follows it. A third server acknowledges as well: commits go on while the standby stands."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.make_acker()
    return site


def put(site: Site, data: bytes) -> None:
    try:
        site.zookeeper.set(site.path("orders/two"), data)
    except NoNodeError:
        site.zookeeper.create(site.path("orders/two"), data, makepath=True)


def order(site: Site, state: str, *, delay: int = 0, hold: Hold | None = None, seconds: float = 20.0) -> dict[str, Any]:
    """Write an order as a controller does; wait until the watchdog says that it is so far."""
    one = Order(serial=next(SERIALS), since=clock.utc_now(), delay_seconds=delay, hold=hold)
    put(site, records.encode(one))
    return obeys(site, state, serial=one.serial, seconds=seconds)


def obeys(site: Site, state: str, *, serial: int | None = None, seconds: float = 20.0) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        report = site.watchdog_two.health()
        told = report["order"]
        return report if told["state"] == state and serial in (None, told["serial"]) else None

    try:
        found: dict[str, Any] = eventually(there, seconds=seconds)
    except AssertionError:
        raise AssertionError(f"never {state}: {site.watchdog_two.health()}\n{site.watchdog_two.log_tail()}") from None
    return found


def has_rows(site: Site, count: int) -> bool:
    return bool(site.two.value(COUNT) == count)


def write(site: Site, first: int, count: int = 1) -> None:
    with closing(site.one.client()) as connection, connection.cursor() as cursor:
        for number in range(first, first + count):
            cursor.execute("INSERT INTO chart VALUES (%s)", (number,))


def status(site: Site) -> dict[str, Any]:
    with closing(site.two.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW SLAVE STATUS")
        row = cursor.fetchone()
        return dict(zip([column[0] for column in cursor.description], row or (), strict=False))


def restart(site: Site) -> None:
    """Kill -9 the standby's server and its watchdog, start both; a controller lets it follow again."""
    site.watchdog_two.kill()
    site.two.kill()
    site.two.start()
    site.watchdog_two.start()
    site.watchdog_two.wait_for(database="up", epoch=1)
    eventually(lambda: site.watchdog_two.tell("follow", epoch=1)[0] == 200, what="it follows")


@contextmanager
def load(site: Site) -> Iterator[None]:
    stop = threading.Event()

    def insert() -> None:
        with closing(site.one.client()) as connection, connection.cursor() as cursor:
            while not stop.wait(0.002):
                cursor.execute("INSERT IGNORE INTO chart VALUES (1000 + FLOOR(RAND() * 1000000000))")

    threads = [threading.Thread(target=insert) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def applied(site: Site) -> str:
    return str(site.two.value("SELECT @@gtid_slave_pos"))


def test_a_delayed_standby_stays_so_far_behind_also_after_everything_was_killed(pair: Site) -> None:
    report = order(pair, "delayed", delay=DELAY_SECONDS)
    assert report["role"] == "standby"
    for first, kill in ((1, False), (2, True)):
        if kill:
            restart(pair)
            pair.watchdog_two.wait_for(role="standby", seconds=20)
        assert status(pair)["SQL_Delay"] == DELAY_SECONDS
        began = clock.now()
        write(pair, first)
        eventually(partial(has_rows, pair, first), what="it never comes")
        assert clock.ms_between(began, clock.now()) >= (DELAY_SECONDS - 1) * 1000, "the server counts whole seconds"
    report = pair.watchdog_two.health()
    assert f"delayed {DELAY_SECONDS} s as ordered" in report["why"]
    metrics = dict(line.rsplit(" ", 1) for line in pair.watchdog_two.ask("/metrics")[1].splitlines() if line[0] != "#")
    assert float(metrics['oscar_ha_watchdog_ordered_delay_seconds{node="two"}']) == DELAY_SECONDS
    assert float(metrics['oscar_ha_watchdog_behind_seconds{node="two"}']) > 1
    assert pair.watchdog_two.tell("halt", epoch=1, for_ms=1_000)[1]["error"]["hint"] == "oscar-ha delay two --off"

    order(pair, "free")
    write(pair, 3)
    began = clock.now()
    eventually(lambda: pair.two.value(COUNT) == 3)
    assert clock.ms_between(began, clock.now()) < DELAY_SECONDS * 1000
    assert pair.watchdog_two.health()["role"] == "standby"


def delete_everything(site: Site) -> tuple[str, str]:
    """Do it while others write; return the transaction and the position before it."""
    wanted = site.one.value(COUNT) + 50
    eventually(lambda: site.one.value(COUNT) > wanted, what="others write")
    with closing(site.one.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM oscar.chart")
        cursor.execute("SELECT @@last_gtid")
        (text,) = cursor.fetchone() or ("",)
    eventually(lambda: site.one.value(COUNT) > 20, what="others write on")
    gtid = Gtid.parse(text)
    return text, str(Gtid(gtid.domain, gtid.server, gtid.sequence - 1))


def test_a_hold_is_exact_under_load_and_nothing_moves_it_but_its_release(pair: Site) -> None:
    """An hour of delay is not waited out; the standby runs to just before the deletion, and stands there, readable."""
    order(pair, "delayed", delay=LONG_SECONDS)
    write(pair, 1, 20)
    with load(pair):
        text, before = delete_everything(pair)
        report = order(pair, "held", delay=LONG_SECONDS, hold=Hold(before=text, position=before))
        rows = pair.two.value(COUNT)
        assert (applied(pair), report["role"], report["replicating"]) == (before, "standby", False)
        restart(pair)
        obeys(pair, "held")
        pair.watchdog_two.wait_for(role="standby")
    assert rows > 20
    assert (applied(pair), pair.two.value(COUNT)) == (before, rows)
    assert pair.watchdog_two.health()["why"].startswith(f"held before {text} as ordered")
    assert pair.watchdog_two.ask("/standby") == (503, f"no: held before {text} as ordered\n")
    for verb, body in (
        ("promote", {"epoch": 2}),
        ("drain", {"epoch": 1, "position": text}),
        ("halt", {"epoch": 1, "for_ms": 9}),
    ):
        code, answer = pair.watchdog_two.tell(verb, **body)
        assert (code, answer["error"]["hint"]) == (409, "oscar-ha release two"), (verb, answer)

    order(pair, "free")
    head = pair.one.value("SELECT @@gtid_binlog_pos")
    eventually(lambda: Position.parse(applied(pair)).covers(Position.parse(head)), what="it follows again")
    late = order(pair, "late", hold=Hold(before=text, position=before))
    assert "had applied that already" in late["why"]
    order(pair, "held", hold=Hold(before=None, position=None))
    write(pair, 7_777)
    restart(pair)
    obeys(pair, "held")
    assert pair.two.value(f"{COUNT} WHERE id = 7777") == 0


def test_a_plan_lets_a_delayed_standby_catch_up_and_promotes_it_with_everything(pair: Site) -> None:
    order(pair, "delayed", delay=LONG_SECONDS)
    write(pair, 1, 50)
    head = pair.one.value("SELECT @@gtid_binlog_pos")
    assert pair.two.value(COUNT) == 0
    answer = pair.watchdog_two.done("drain", epoch=1, position=head, deadline_ms=8_000)
    assert Position.parse(answer["applied"]).covers(Position.parse(head))
    assert pair.two.value(COUNT) == 50
    obeys(pair, "lifted")
    pair.watchdog_one.done("fence", epoch=1)
    pair.make_primary(epoch=2, watchdog=pair.watchdog_two)

    assert pair.two.value("SELECT @@read_only") == 0


def test_while_an_order_cannot_be_read_nothing_that_stands_still_is_started(pair: Site) -> None:
    """Unknown is a value: it may be a hold."""
    pair.watchdog_two.kill()
    put(pair, b'{"serial": "many"}')
    pair.two.run("STOP SLAVE")
    pair.watchdog_two.start()
    write(pair, 1)
    report = obeys(pair, "unknown")
    pair.watchdog_two.wait_for(role="joining")
    eventually(lambda: "not known yet" in pair.watchdog_two.health()["why"])
    time.sleep(3)  # longer than the watchdog waits before it starts again what stopped

    assert status(pair)["Slave_SQL_Running"] == "No"
    assert report["order"]["serial"] is None
    put(pair, records.encode(Order(serial=next(SERIALS), since="")))
    eventually(lambda: pair.two.value(COUNT) == 1, what="it is started once the order is known")
