"""kill -9 of the replicator under load, again and again: what a client was told is on disk, and the bytes are the primary's."""

import random
import re
import threading
import time
from pathlib import Path

import pymysql
import pytest

from tests.replicator.house import House, until
from tests.replicator.test_acknowledging import primary_of
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers

KILLS, WRITERS, SEED = 20, 4, 7
LIVES_SECONDS_MAX = 0.35
TOKEN = re.compile(rb"token-\d-\d{7}")
IN_USE_FLAG = slice(21, 23)


class TokenWriter(threading.Thread):
    """Inserts rows with tokens of its own until stopped; `acknowledged` are those whose commit returned."""

    def __init__(self, server: MariaDBServer, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.number = server, number
        self.acknowledged, self.stopped = list[bytes](), threading.Event()

    def run(self) -> None:
        connection = self.server.connect()
        try:
            with connection.cursor() as cursor:
                for count in range(10**7):
                    if self.stopped.is_set():
                        return
                    token = f"token-{self.number}-{count:07d}"
                    cursor.execute("INSERT INTO d.t VALUES (%s, %s)", (self.number * 10**7 + count, token))
                    self.acknowledged.append(token.encode())
        except pymysql.Error:
            pass
        finally:
            connection.close()


class Rotator(threading.Thread):
    """Begins new binlog files now and then."""

    def __init__(self, server: MariaDBServer, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.server, self.chance, self.stopped = server, chance, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(self.chance.uniform(0.1, 0.9)):
            self.server.run("FLUSH BINARY LOGS")


def archived(house: House, site: str = "toronto") -> list[Path]:
    return sorted((house.archive(site) / "epochs" / "0000000001-1").glob("binlog.*[0-9]"))


def without_flag(data: bytes) -> bytes:
    return data[: IN_USE_FLAG.start] + data[IN_USE_FLAG.stop :]


def test_nothing_is_acknowledged_before_it_is_on_disk_whenever_the_replicator_is_killed(house: House) -> None:
    """Looked at after every kill, before anything is mended: the promise must hold in that very moment."""
    chance = random.Random(SEED)
    primary = primary_of(house, "toronto", binlog_annotate_row_events="OFF")  # a token stands in its row alone
    process = house.replicator("toronto")
    writers = [TokenWriter(primary, number) for number in range(WRITERS)]
    rotator = Rotator(primary, random.Random(SEED + 1))
    for thread in (*writers, rotator):
        thread.start()
    until(lambda: all(writer.acknowledged for writer in writers), what="every client is answered")
    for kill in range(KILLS):
        promised = sum(len(writer.acknowledged) for writer in writers)
        if kill % 4:  # else it dies while it starts
            until(lambda: sum(len(one.acknowledged) for one in writers) > promised, what="commits go on")  # noqa: B023 - called before the next kill
        time.sleep(chance.uniform(0.0, LIVES_SECONDS_MAX))
        process.kill()
        told = {token for writer in writers for token in tuple(writer.acknowledged)}
        there = {token for path in archived(house) for token in TOKEN.findall(path.read_bytes())}
        assert told <= there, f"kill {kill}: told the client, not archived: {sorted(told - there)[:5]}"
        house.replicator("toronto", wait=False)
    until(lambda: house.health("toronto"), what="the replicator answers")
    rotator.stopped.set()
    for writer in writers:
        writer.stopped.set()
    for thread in (*writers, rotator):
        thread.join()
    house.await_durable("toronto", house.position("clinic"))

    assert [path.name for path in archived(house)] == [path.name for path in primary.binlogs[-len(archived(house)) :]]
    for path in archived(house):
        assert without_flag(path.read_bytes()) == without_flag((primary.datadir / path.name).read_bytes()), path.name
    rows = primary.value("SELECT COUNT(*) FROM d.t")
    tokens = [token for path in archived(house) for token in TOKEN.findall(path.read_bytes())]
    assert len(tokens) == len(set(tokens)) == rows, "once each: nothing doubled, nothing lost"
