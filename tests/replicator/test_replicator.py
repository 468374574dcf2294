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
