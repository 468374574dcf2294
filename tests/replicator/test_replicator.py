"""The whole replicator against real servers."""

import pytest

from tests.replicator.house import House

pytestmark = pytest.mark.servers


def test_the_archive_has_the_primarys_bytes(house: House) -> None:
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    primary.run(*[f"INSERT INTO d.t VALUES ({n}, REPEAT('x', 3000))" for n in range(300)])
    primary.run("FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (1000, 'y')")
    house.await_durable("toronto", house.position("clinic"))

    files = sorted((house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*"))
    for path in files:
        assert path.read_bytes()[30:] == (primary.datadir / path.name).read_bytes()[30:]
    assert len(files) == 2


def checksums(house: House, site: str, *tables: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in house.servers[site].run(f"CHECKSUM TABLE {', '.join(tables)}")]


@pytest.mark.parametrize("threads", [0, 4])
def test_a_standby_replicates_natively_from_the_archive(house: House, threads: int) -> None:
    """Over a rotation, a restart of the primary, and a restart of the standby itself."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto", slave_parallel_threads=threads, slave_parallel_mode="optimistic")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)",
                "CREATE TABLE d.m (a INT, b TEXT) ENGINE=MyISAM")  # fmt: skip
    primary.run(*[f"INSERT INTO d.t VALUES ({n}, REPEAT('x', 300))" for n in range(200)], "FLUSH BINARY LOGS",
                "INSERT INTO d.m VALUES (1, 'a')", "UPDATE d.t SET b = 'u' WHERE a < 50")  # fmt: skip
    house.await_applied("toronto", house.position("clinic"))
    primary.restart()
    primary.run("INSERT INTO d.t VALUES (1000, 'after the restart')", "XA START 'x'", "INSERT INTO d.t VALUES (1001, 'xa')",
                "XA END 'x'", "XA PREPARE 'x'", "XA COMMIT 'x'")  # fmt: skip
    house.await_applied("toronto", house.position("clinic"))
    standby.restart()
    primary.run("DELETE FROM d.t WHERE a > 100")
    standby.run("START SLAVE")
    house.await_applied("toronto", house.position("clinic"))

    assert checksums(house, "clinic", "d.t", "d.m") == checksums(house, "toronto", "d.t", "d.m")
