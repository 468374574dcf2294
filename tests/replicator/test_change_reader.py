"""The mass-change alarm of a running replicator, with a real MariaDB."""

import json
import urllib.request
from collections.abc import Iterator

import pytest

from cluster.records import MassChange, ReplicatorReport
from tests.replicator.house import House
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers
SEQUENCE = "SELECT seq, REPEAT(MD5(seq), 3), NOW(), NULL FROM seq_1_to_20000"
TABLE = "(a INT PRIMARY KEY, b VARCHAR(200), c DATETIME, d TEXT)"


def metrics(house: House, site: str) -> dict[str, float]:
    """Return the series of a replicator's metrics that say something of changes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{house.ports[site][1]}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("oscar_ha_replicator_"): float(value) for name, value in pairs}


def logged(house: House, site: str) -> Iterator[dict[str, object]]:
    """Yield what a replicator has said."""
    for line in (house.directory / f"{site}.log").read_text().splitlines():
        if line.startswith('{"') and '"mass_change"' in line:
            yield json.loads(line)


def alarm(report: ReplicatorReport, table: str, kind: str) -> MassChange | None:
    return next((one for one in report.mass_changes if (one.table, one.kind) == (table, kind)), None)


def a_clinic(house: House, **options: object) -> MariaDBServer:
    """A primary that runs as every day, and the archive of it."""
    primary = house.database("clinic", **options)
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d", f"CREATE TABLE d.t {TABLE}", f"CREATE TABLE d.u {TABLE} ENGINE=MyISAM")
    primary.run("USE d", f"INSERT INTO t {SEQUENCE}", f"INSERT INTO u {SEQUENCE}")
    return primary


@pytest.mark.parametrize("compressed", ["OFF", "ON"])
def test_everything_that_is_changed_or_deleted_is_an_alarm_that_says_where_to_stop(
    house: House, compressed: str
) -> None:
    """An UPDATE of all rows is what a virus that encrypts does; both tables are told apart."""
    primary = a_clinic(house, log_bin_compress=compressed)
    primary.run(*[f"UPDATE d.t SET b = 'a visit' WHERE a = {number}" for number in range(1, 200)])
    house.await_durable("toronto", house.position("clinic"))
    before_update = house.position("clinic")
    primary.run("UPDATE d.u SET b = REVERSE(b)")
    before_delete = house.position("clinic")
    primary.run("DELETE FROM d.t")
    report = house.await_health("toronto", lambda told: len(told.mass_changes) == 2, what="two alarms")
    updated, deleted = alarm(report, "d.u", "update"), alarm(report, "d.t", "delete")
    assert updated is not None
    assert deleted is not None

    assert (updated.rows, updated.estimated, updated.before) == (20_000, False, before_update)
    assert (deleted.rows, deleted.estimated, deleted.before) == (20_199, False, before_delete)
    assert deleted.first == house.position("clinic")
    assert {(one["table"], one["kind"]) for one in logged(house, "toronto")} == {("d.u", "update"), ("d.t", "delete")}
    series = metrics(house, "toronto")
    assert series['changed_rows_total{kind="delete",site="toronto",table="d.t"}'] == 20_000
    assert series['changed_rows_total{kind="insert",site="toronto",table="d.t"}'] == 20_000
    assert series['mass_change{kind="update",site="toronto",table="d.u"}'] == 1


def test_an_alarm_outlives_its_replicator_and_a_dropped_table_is_one(house: House) -> None:
    """TRAPS.md 19 too: a statement in a stream of rows is told."""
    primary = a_clinic(house)
    before = house.position("clinic")
    primary.run("DROP TABLE d.t", "SET SESSION binlog_format = STATEMENT", "DELETE FROM d.u WHERE a < 5")
    house.await_health("toronto", lambda told: len(told.mass_changes) == 2, what="two alarms")
    house.replicators["toronto"].kill()
    house.replicator("toronto")
    report = house.await_health("toronto", lambda told: len(told.mass_changes) == 2, what="two alarms again")
    dropped, statement = alarm(report, "d.t", "drop"), alarm(report, "d.u", "statement")
    assert dropped is not None

    assert (dropped.rows, dropped.before, dropped.first) == (None, before, "0-1-6")
    assert statement is not None
    assert metrics(house, "toronto")['unsafe_events_total{kind="statement",site="toronto"}'] == 1
