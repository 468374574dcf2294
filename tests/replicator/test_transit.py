"""A byte damaged on the way: whoever receives it says no, fetches again, and ends with the very same bytes or rows."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.binlog.events import Kind
from cluster.position import Position
from tests.replicator.house import House, until
from tests.replicator.test_acknowledging import primary_of
from tests.replicator.test_interrupted import TokenWriter, archived, without_flag
from tests.servers.mariadb import MariaDBServer
from tests.servers.process import free_port
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.servers

DAMAGES, SEED = 12, 11
BYTES_MAX = 3_000
LENGTH_HIGHEST_AT, KIND_AT = 2, 11
"""In a semi-synchronous packet: 4 bytes of header, 3 of marks, then the event, whose fifth byte is its type."""
DAMAGE_DEADLINE_MS = 20_000


@contextmanager
def writing(primary: MariaDBServer, count: int = 2) -> Iterator[list[TokenWriter]]:
    writers = [TokenWriter(primary, number) for number in range(count)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.join()


def acknowledged(writers: list[TokenWriter]) -> int:
    return sum(len(writer.acknowledged) for writer in writers)


def test_a_byte_damaged_between_primary_and_replicator_is_refused_and_fetched_again(house: House) -> None:
    """Semi-synchronous: a commit in which the damage lies is acknowledged only by the stream that brings it whole."""
    chance = random.Random(SEED)
    house.hidden_ports["clinic"] = free_port()
    with Proxy(house.hidden_ports["clinic"], port=house.node_ports["clinic"]) as proxy:
        primary = primary_of(house, "toronto")
        house.replicator("toronto")
        with writing(primary) as writers:
            until(lambda: acknowledged(writers) > 10, what="commits")
            for number in range(DAMAGES):
                proxy.damage(after=chance.randrange(BYTES_MAX), flip=chance.randrange(1, 256))
                until(lambda: proxy.damaged, what="the byte has passed", deadline_ms=DAMAGE_DEADLINE_MS)
                before = acknowledged(writers)
                until(lambda: acknowledged(writers) > before + 20, what=f"commits after damage {number}",  # noqa: B023 - called before the next round
                      deadline_ms=DAMAGE_DEADLINE_MS)  # fmt: skip
        house.await_durable("toronto", house.position("clinic"))

        assert proxy.connections > DAMAGES / 2, "most of the damages ended a stream"
        for path in archived(house):
            written = (primary.datadir / path.name).read_bytes()
            assert without_flag(path.read_bytes()) == without_flag(written), path.name


def test_a_length_that_promises_too_much_does_not_hold_a_commit_for_ever(house: House) -> None:
    """What is waited for never comes, while heartbeats do: a stream that brings nothing whole is a dead one."""
    house.hidden_ports["clinic"] = free_port()
    with Proxy(house.hidden_ports["clinic"], port=house.node_ports["clinic"]) as proxy:
        primary = primary_of(house, "toronto")
        house.replicator("toronto")
        house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")

        def promise_more(piece: bytearray) -> bool:
            if len(piece) <= KIND_AT or piece[KIND_AT] != Kind.GTID:
                return False
            piece[LENGTH_HIGHEST_AT] |= 0x40
            return True

        proxy.damage_by(promise_more)
        writer = TokenWriter(primary, 1)
        writer.start()
        until(lambda: writer.acknowledged, what="the commit is acknowledged", deadline_ms=DAMAGE_DEADLINE_MS)
        writer.stopped.set()
        writer.join()


def test_a_byte_damaged_between_replicator_and_standby_is_refused_and_fetched_again(house: House) -> None:
    """MariaDB checks every event itself; its receiver stops or connects again, and what it applies is what was written."""
    chance = random.Random(SEED)
    primary = house.database("clinic")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    house.database("toronto", slave_parallel_threads=4).run(
        "CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b TEXT)", "RESET MASTER"
    )
    refused = 0
    with Proxy(house.ports["toronto"][0]) as proxy:
        house.follow("toronto", position=house.lineage[0].position, port=proxy.port)
        with writing(primary, 1):
            for _ in range(DAMAGES):
                proxy.damage(after=chance.randrange(BYTES_MAX), flip=chance.randrange(1, 256))
                until(lambda: proxy.damaged, what="the byte has passed", deadline_ms=DAMAGE_DEADLINE_MS)
                house.await_durable("toronto", house.position("clinic"))
                refused += receives_again(house, house.position("clinic"))
        house.await_applied("toronto", house.position("clinic"))

        assert refused > 0, "at least one damage stopped the receiver"
    sums = {house.servers[site].run("CHECKSUM TABLE d.t EXTENDED")[0][1] for site in ("clinic", "toronto")}
    assert len(sums) == 1
    assert primary.value("SELECT COUNT(*) FROM d.t") > 0


def receives_again(house: House, position: str) -> bool:
    """Start the receiver as its watchdog would until it has `position`; return whether it had stopped."""
    stopped = False

    def received() -> bool:
        nonlocal stopped
        status = house.slave_status("toronto")
        if status["Slave_IO_Running"] == "No":
            stopped = True
            house.servers["toronto"].run("START SLAVE IO_THREAD")
        return _covers(str(status["Gtid_IO_Pos"]), position)

    until(received, what=f"the standby has received {position}", deadline_ms=DAMAGE_DEADLINE_MS)
    return stopped


def _covers(here: str, wanted: str) -> bool:
    return Position.parse(here).covers(Position.parse(wanted))
