"""OSCAR's real schema through the stream: primary, replicator, archive, standby, in the three flavours clinics run."""

from pathlib import Path

import pytest

from tests.oscar.conftest import MakeHouse
from tests.oscar.loading import (
    DATABASE,
    DEFINITIONS,
    FLAVOURS,
    checksums,
    cluster,
    definitions,
    engines,
    load,
    tables,
)
from tests.replicator.house import until
from tests.replicator.test_interrupted import archived, without_flag

pytestmark = pytest.mark.servers

TABLES = 555
ENGINES = {
    "InnoDB": {"InnoDB": 550, "MyISAM": 5},
    "Aria": {"Aria": 545, "InnoDB": 5, "MyISAM": 5},
    "32K pages": {"InnoDB": 550, "MyISAM": 5},
}
APPLY_DEADLINE_MS = 60_000
ROW_TOO_LARGE = 1118


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_real_schema_arrives_whole(oscar_house: MakeHouse, oscar_sql: Path, flavour: str) -> None:
    """Every table by definition and by the checksum of its rows; the archive by its bytes."""
    house = oscar_house(flavour)
    cluster(house, FLAVOURS[flavour], {"slave_parallel_threads": 4})
    primary, standby = house.servers["clinic"], house.servers["toronto"]
    load(primary, oscar_sql)
    house.await_durable("toronto", house.position("clinic"))
    house.await_applied("toronto", house.position("clinic"), deadline_ms=APPLY_DEADLINE_MS)

    assert len(tables(primary)) == TABLES
    assert dict(engines(primary)) == ENGINES[flavour]
    assert definitions(standby) == definitions(primary)
    found = checksums(primary)
    assert None not in found.values()
    assert checksums(standby) == found
    for path in archived(house):
        assert without_flag(path.read_bytes()) == without_flag((primary.datadir / path.name).read_bytes())


def test_a_standby_with_other_settings_stops_or_drifts_and_both_are_seen(
    oscar_house: MakeHouse, oscar_sql: Path
) -> None:
    """The binlog carries neither `innodb_strict_mode` nor `default_storage_engine`: a standby needs its primary's.

    The first stops it with an error that names itself. The second goes unnoticed by every checksum of rows; only a
    comparison of definitions shows it.
    """
    house = oscar_house("InnoDB")
    cluster(house, {}, {"innodb_strict_mode": "ON"})
    primary, standby = house.servers["clinic"], house.servers["toronto"]
    load(primary, oscar_sql, DEFINITIONS)
    status = until(lambda: _stopped(house.slave_status("toronto")), what="the standby stops at a wide table")
    assert status["Last_SQL_Errno"] == ROW_TOO_LARGE

    standby.run("SET GLOBAL innodb_strict_mode=OFF", "SET GLOBAL default_storage_engine=Aria", "START SLAVE")
    primary.run(
        f"CREATE TABLE {DATABASE}.ERT_1 (a INT PRIMARY KEY, b TEXT)", f"INSERT INTO {DATABASE}.ERT_1 VALUES (1, 'x')"
    )
    house.await_applied("toronto", house.position("clinic"), deadline_ms=APPLY_DEADLINE_MS)
    here, there = definitions(primary), definitions(standby)

    assert checksums(standby) == checksums(primary), "the rows are equal: no checksum tells"
    assert here.keys() == there.keys()
    drifted = {table for table in here if here[table] != there[table]}
    assert "ERT_1" in drifted
    assert "ENGINE=Aria" in there["ERT_1"]


def _stopped(status: dict[str, object]) -> dict[str, object] | None:
    return status if status["Slave_SQL_Running"] == "No" and status["Last_SQL_Errno"] else None
