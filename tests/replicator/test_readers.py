"""Unmodified standbys in every parallel mode read from us."""

import threading

import pytest

from tests.replicator.house import House
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers
MODES = ("none", "minimal", "conservative", "optimistic", "aggressive")


def load(primary: MariaDBServer, begin: int, count: int = 60) -> None:
    """Write groups that a parallel standby may apply at once: two tables, three sessions."""

    def write(shift: int) -> None:
        connection = primary.connect()
        with connection.cursor() as cursor:
            for number in range(begin + shift, begin + count, 3):
                cursor.execute("INSERT INTO d.t VALUES (%s, REPEAT('x', 200))", (number,))
                cursor.execute("UPDATE d.t SET b = CONCAT(b, 'u') WHERE a = %s", (number - 3,))
        connection.close()

    threads = [threading.Thread(target=write, args=(shift,)) for shift in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_standbys_in_every_parallel_mode_end_with_the_same_rows(house: House) -> None:
    """`slave_parallel_threads` 0 and 4, each mode, one pair of servers; rotations between."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    modes = [("optimistic", 0), *((mode, 4) for mode in MODES)]
    for number, (mode, threads) in enumerate(modes):
        standby.run("STOP SLAVE", f"SET GLOBAL slave_parallel_threads = {threads}",
                    f"SET GLOBAL slave_parallel_mode = {mode}", "START SLAVE")  # fmt: skip
        load(primary, 100 * number)
        primary.run("FLUSH BINARY LOGS")
        house.await_applied("toronto", house.position("clinic"))

        assert standby.value("CHECKSUM TABLE d.t") == primary.value("CHECKSUM TABLE d.t"), (mode, threads)
