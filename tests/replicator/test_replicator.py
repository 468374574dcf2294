"""The whole replicator against real servers."""

import pytest

from tests.replicator.house import House, until

pytestmark = pytest.mark.servers


def test_the_archive_has_the_primarys_bytes(house: House) -> None:
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    primary.run(*[f"INSERT INTO d.t VALUES ({n}, REPEAT('x', 3000))" for n in range(300)])
    primary.run("FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (1000, 'y')")
    house.await_durable("toronto", house.position("clinic"))

    files = sorted((house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*[0-9]"))
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


def test_rows_of_many_megabytes_pass_through(house: House) -> None:
    """Packets above 16 MiB are split on both sides, and one event is far larger than any buffer."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto", rpl_semi_sync_slave_enabled="ON")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT) ENGINE=MyISAM")
    for number, size in enumerate((2**24 - 100, 2**24 + 5, 40 * 2**20)):
        primary.run(f"INSERT INTO d.t VALUES ({number}, REPEAT('x', {size}))")
    house.await_applied("toronto", house.position("clinic"))

    assert standby.run("SELECT LENGTH(b) FROM d.t") == ((2**24 - 100,), (2**24 + 5,), (40 * 2**20,))


def test_another_replica_with_our_server_id_ends_the_replicator(house: House) -> None:
    """Two would disconnect each other for ever; the message says why."""
    house.database("clinic")
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    house.await_health("toronto", lambda report: report.connected, what="connected")
    house.database("montreal")
    house.servers["montreal"].run(
        "SET GLOBAL server_id = 102",
        f"CHANGE MASTER TO master_host='127.0.0.1', master_port={house.servers['clinic'].port},"
        " master_user='oscar_ha_repl', master_password='replication-secret', master_use_gtid=slave_pos",
        "START SLAVE",
    )
    until(lambda: not process.alive, what="the replicator ends")

    assert "another replica uses our server_id" in process.log_tail()


def test_what_the_primary_has_purged_comes_from_another_replicator(house: House) -> None:
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run(
        "CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)", "FLUSH BINARY LOGS", "INSERT INTO d.t VALUES (1)"
    )
    house.await_durable("toronto", house.position("clinic"))
    primary.run("PURGE BINARY LOGS TO 'binlog.000003'")
    house.replicator("montreal")
    primary.run("INSERT INTO d.t VALUES (2)")
    house.await_durable("montreal", house.position("clinic"))
    house.await_durable("toronto", house.position("clinic"))

    for path in (house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*[0-9]"):
        copy = house.archive("montreal") / "epochs" / "0000000001-1" / path.name
        assert copy.read_bytes() == path.read_bytes()
