"""The trap of the own server id: a returned old primary must apply its *own* transactions that it has lost.

They are lost when crash recovery cuts them (`--init-rpl-role=SLAVE`), or when the server is restored from a backup. A
MariaDB replica skips events of its own server id in silence, unless it connects as a semi-synchronous replica.
"""

import shutil

import pytest

from tests.replicator.house import House

pytestmark = pytest.mark.servers


def return_without_the_last_transactions(house: House, **options: object) -> str:
    """Let the primary come back as it was earlier, and follow the archive; return the position it should reach."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("clinic")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)", "INSERT INTO d.t VALUES (1), (2)")
    earlier = house.position("clinic")
    primary.stop()
    shutil.copytree(primary.datadir, house.directory / "earlier")
    primary.start()
    primary.run("INSERT INTO d.t VALUES (3)", "INSERT INTO d.t VALUES (4)")
    wanted = house.position("clinic")
    house.await_durable("clinic", wanted)
    primary.kill()
    shutil.rmtree(primary.datadir)
    shutil.copytree(house.directory / "earlier", primary.datadir)
    primary.start(**options)
    house.follow("clinic", position=earlier)
    house.await_applied("clinic", wanted)
    return wanted


@pytest.mark.parametrize("threads", [0, 4])
def test_a_returned_primary_applies_its_own_lost_transactions(house: House, threads: int) -> None:
    wanted = return_without_the_last_transactions(
        house, rpl_semi_sync_slave_enabled="ON", slave_parallel_threads=threads
    )

    assert house.servers["clinic"].value("SELECT COUNT(*) FROM d.t") == 4
    assert house.position("clinic") == wanted


def test_without_the_semi_synchronous_option_they_are_skipped_in_silence(house: House) -> None:
    """Why the option is required of every node: the day MariaDB mends this, we may drop the option."""
    wanted = return_without_the_last_transactions(house)

    assert house.servers["clinic"].value("SELECT COUNT(*) FROM d.t") == 2
    assert house.position("clinic") != wanted
