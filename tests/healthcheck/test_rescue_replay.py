"""Rescued rows come back exactly, or are told to be in conflict: on real servers, every type of column."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import settings
from cluster.command import application
from cluster.errors import BadInput, OscarHaError, Refused, Unauthorized, Unreachable
from controller.replay import Chosen, Replay, Report, undecided
from controller.replay_target import Target
from controller.rescue_source import FolderSource, WatchdogSource
from healthcheck.rescuing import Mark
from tests.healthcheck.site import OSCAR_HA, SECRETS, Site, eventually
from tests.healthcheck.test_rescue import fork, rescued
from tests.servers.process import ServerProcess

pytestmark = pytest.mark.servers
COLUMNS = {
    "TINYINT UNSIGNED": ("200", "0"), "SMALLINT": ("-300",), "MEDIUMINT": ("-70000",), "INT UNSIGNED": ("4000000000",),
    "BIGINT UNSIGNED": ("18446744073709551615",), "BIGINT": ("-9223372036854775808",), "FLOAT": ("0.1", "16777217"),
    "DOUBLE": ("0.1", "1e300"), "DECIMAL(10,2)": ("-12345.67",), "DECIMAL(65,30)": ("-123.456", "0"), "DATE": ("'0000-00-00'", "'2024-02-31'"),
    "DATETIME(3)": ("'2024-02-29 01:02:03.450'", "'2024-05-00 01:02:03.5'"), "TIMESTAMP NULL": ("'2024-02-29 01:02:03'", "0"),
    "TIMESTAMP(6) NULL DEFAULT NULL ON UPDATE CURRENT_TIMESTAMP(6)": ("'2024-02-29 01:02:03.000007'",),
    "TIME(6)": ("'-11:12:13.000001'", "'838:59:59.999999'"), "YEAR": ("0", "2024"), "CHAR(10) CHARACTER SET latin1": ("'Côté'", "''"),
    "VARCHAR(40) CHARACTER SET utf8mb4": ("'Ωmega 😀'", "'trailing  '"), "TEXT CHARACTER SET utf8mb4": ("'it''s \\\\ a % \\n'",),
    "BLOB": ("x'00ff10'", "''"), "BINARY(6)": ("x'aabb'",), "VARBINARY(9)": ("x'ccdd00'",), "ENUM('a','it''s')": ("'it''s'",),
    "SET('p','q','r')": ("'p,r'", "''"), "JSON": ("'{\"a\": [1, \"é\"]}'",), "BIT(13)": ("b'1010101010101'",), "BIT(64)": ("~0",),
    "UUID": ("'123e4567-e89b-42d3-a456-426655440000'",), "INET6": ("'2001:db8::ff00:42:8329'",), "INET4": ("'192.0.2.1'",),
    "POINT": ("ST_GeomFromText('POINT(1 2)')",), "BOOLEAN": ("TRUE",),
}  # fmt: skip
GENERATED = "twice INT AS (id * 2) VIRTUAL, thrice INT AS (id * 3) STORED"
NAMES = [f"c{number}" for number in range(len(COLUMNS))]
TABLE = (f"CREATE TABLE oscar.every (id INT PRIMARY KEY, {', '.join(map(' '.join, zip(NAMES, COLUMNS, strict=True)))}, {GENERATED})")  # fmt: skip


def row_of(number: int, turn: int) -> str:
    values = [values[turn % len(values)] for values in COLUMNS.values()]
    return f"INSERT INTO oscar.every (id, {', '.join(NAMES)}) VALUES ({number}, {', '.join(values)})"


Run = Callable[..., Report]


@pytest.fixture
def replayed(site: Site) -> Run:
    """Replay the rescue of node one to node two, which stands for the new primary."""
    secrets = settings.read_secrets(site.settings)

    def run(*, dry_run: bool = False, overwrite: bool = False, **chosen: Any) -> Report:
        folder, record = rescued(site)
        source = FolderSource(folder.parent)
        report = Report(rescue=record.id, to="two", dry_run=dry_run)
        with Target.connect(site.settings.node("two"), site.settings, secrets) as target:
            replay = Replay(source, target, report, overwrite=overwrite)
            return replay.run(Chosen(**chosen), undecided(source.lines(record.id)))

    return run


def open_two(site: Site, *statements: str) -> None:
    """Start node two as if it were the primary."""
    site.two.start()
    with closing(site.two.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_log_bin = 0")
        cursor.execute("SET GLOBAL read_only = 0")
        cursor.execute("CREATE DATABASE IF NOT EXISTS oscar_ha")
        for statement in ("SET NAMES utf8mb4", "SET sql_mode = 'ALLOW_INVALID_DATES'", *statements):
            cursor.execute(statement)


def every_row(server: Any) -> list[Any]:
    with closing(server.connect(conv={}, charset="utf8mb4")) as connection, connection.cursor() as cursor:
        cursor.execute("SET time_zone = '-05:00'")
        cursor.execute("SELECT * FROM oscar.every ORDER BY id")
        return list(cursor.fetchall())


def test_every_type_of_column_comes_back_exactly(site: Site, replayed: Run) -> None:
    rows = [row_of(number, number) for number in (1, 2, 3)]
    fork(site, "SET sql_mode = 'ALLOW_INVALID_DATES'", TABLE, *rows, "INSERT INTO oscar.every (id) VALUES (4)",
         "UPDATE oscar.every SET c0 = 7, c1 = NULL WHERE id = 2", "UPDATE oscar.every SET id = 30 WHERE id = 3",
         "DELETE FROM oscar.every WHERE id = 1")  # fmt: skip
    open_two(site, TABLE)
    would, did = replayed(dry_run=True, table="every"), replayed(table="every")

    assert not [one for one in did.told if one.kind != "ddl"], did.told
    assert (would.applied, did.applied, did.conflicts) == (7, 7, 0)
    assert every_row(site.two) == every_row(site.one)
    again = replayed(table="every")
    assert (again.applied, again.present, again.done_before, again.conflicts) == (0, 0, 7, 0)


CHARTS = "CREATE TABLE oscar.person (id INT PRIMARY KEY, name VARCHAR(20) CHARACTER SET utf8mb4, number INT UNIQUE)"
VISITS = "CREATE TABLE oscar.visit (who INT, note VARCHAR(20))"


def test_what_somebody_changed_since_is_told_and_left_alone_unless_overwriting_is_asked_for(
    site: Site, replayed: Run
) -> None:
    common = [CHARTS, "INSERT INTO oscar.person VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4)"]
    fork(site, *common, "UPDATE oscar.person SET name = 'new a' WHERE id = 1", "UPDATE oscar.person SET name = 'new b' WHERE id = 2",
         "DELETE FROM oscar.person WHERE id = 3", "INSERT INTO oscar.person VALUES (5, 'e', 50)", "INSERT INTO oscar.person VALUES (6, 'f', 60)")  # fmt: skip
    open_two(site, *common, "UPDATE oscar.person SET name = 'by Toronto' WHERE id = 2", "DELETE FROM oscar.person WHERE id = 3",
             "INSERT INTO oscar.person VALUES (7, 'g', 60)")  # fmt: skip
    first = replayed(table="oscar.person")

    # 3 is inserted and deleted again, as it was; of 2 and 6 the cluster has other rows.
    assert (first.applied, first.present, first.conflicts, first.left) == (4, 2, 3, 1), first
    assert dict(site.two.run("SELECT id, name FROM oscar.person")) == {
        1: "new a",
        2: "by Toronto",
        4: "d",
        5: "e",
        7: "g",
    }
    assert any("changed since: name" in one.why for one in first.told)
    assert any("refuses it: error 1062" in one.why for one in first.told)
    second = replayed(table="oscar.person", key=("2",), overwrite=True)
    assert (second.overwritten, second.applied) == (1, 1)
    assert site.two.value("SELECT name FROM oscar.person WHERE id = 2") == "new b"
    third = replayed(table="oscar.person")
    assert (third.applied, third.present, third.overwritten, third.conflicts, third.done_before) == (0, 0, 0, 1, 8)


def test_rows_without_a_key_come_back_once_and_triggers_are_left_to_a_person(site: Site, replayed: Run) -> None:
    fork(site, VISITS, CHARTS, "INSERT INTO oscar.visit VALUES (1, 'A'), (2, 'x'), (3, NULL)", "UPDATE oscar.visit SET note = 'B' WHERE who = 1",
         "DELETE FROM oscar.visit WHERE who = 2", "INSERT INTO oscar.person VALUES (1, 'a', 1)",
         "XA START 'x'", "INSERT INTO oscar.visit VALUES (9, 'never decided')", "XA END 'x'", "XA PREPARE 'x'")  # fmt: skip
    open_two(site, VISITS, CHARTS, "INSERT INTO oscar.visit VALUES (1, 'a'), (8, 'other')",
             "CREATE TRIGGER oscar.t AFTER INSERT ON oscar.person FOR EACH ROW INSERT INTO oscar.visit VALUES (0, 'twice')")  # fmt: skip
    first, again = replayed(), replayed()

    assert set(site.two.run("SELECT who, note FROM oscar.visit")) == {(1, "a"), (8, "other"), (1, "B"), (3, None)}
    assert (first.applied, again.applied) == (5, 0)
    assert any("has triggers" in one.why for one in first.told)
    assert any("never decided" in one.why for one in first.told)
    assert not first.clean


class _DiesBeforeItIsWrittenDown(FolderSource):
    def mark(self, rescue: str, marks: Sequence[Mark]) -> None:
        raise Unreachable(f"died with {len(marks)} marks of {rescue}")


def test_a_replay_that_died_after_its_commit_does_nothing_twice_and_a_closed_server_is_refused(
    site: Site, replayed: Run
) -> None:
    fork(
        site,
        VISITS,
        "INSERT INTO oscar.visit VALUES (1, 'a')",
        "UPDATE oscar.visit SET note = 'b'",
        "UPDATE oscar.visit SET note = 'c'",
    )
    open_two(site, VISITS)
    folder, record = rescued(site)
    source = _DiesBeforeItIsWrittenDown(folder.parent)
    secrets = settings.read_secrets(site.settings)
    report = Report(rescue=record.id, to="two", dry_run=False)
    with (
        Target.connect(site.settings.node("two"), site.settings, secrets) as target,
        pytest.raises(Unreachable, match="died"),
    ):
        Replay(source, target, report, overwrite=False).run(Chosen(table="visit"), {})
    then = replayed(table="visit")

    assert (report.applied, then.done_before, then.applied, then.conflicts) == (1, 1, 2, 0)
    assert site.two.run("SELECT who, note FROM oscar.visit") == ((1, "c"),)
    site.two.run("SET GLOBAL read_only = 1")
    with pytest.raises(Refused, match="no longer the primary"):
        replayed(table="visit")


def test_an_operator_sees_and_replays_over_http_and_nobody_without_the_token(site: Site, tmp_path: Path) -> None:
    fork(site, VISITS, CHARTS, "INSERT INTO oscar.person VALUES (1, 'Ωmega', 1)", "UPDATE oscar.person SET name = 'b'")
    open_two(site, VISITS, CHARTS)
    _, record = rescued(site)
    source = WatchdogSource(site.settings.node("one"), SECRETS["token"])
    stranger = WatchdogSource(site.settings.node("one"), "wrong")
    asked: list[Callable[[], object]] = [stranger.listed, lambda: list(stranger.lines(record.id)),
                                         lambda: stranger.done(record.id), lambda: stranger.mark(record.id, [Mark(number=1, outcome="applied", at="")])]  # fmt: skip
    for ask in asked:
        with pytest.raises(Unauthorized):
            ask()
    for name in ("../../etc", "2-two-20260101T000000Z", record.id + "x"):
        with pytest.raises(BadInput):
            list(source.lines(name))
    controller = ServerProcess("controller", tmp_path / "controller.log")
    site.zookeeper.create(site.path("pause"), json.dumps({"why": "the test does it all", "since": "now"}).encode())
    controller.launch([OSCAR_HA, "controller", "run", "--settings", str(site.settings_path), "--name", "nobody"])
    try:
        eventually(
            lambda: '"primary": "two"' in oscar("status", site, "--json")[1], what="the controller knows of epoch 2"
        )
        operate(site, record.id)
    finally:
        controller.kill()
    assert sum(last - first + 1 for first, last in source.done(record.id)) == 2


def operate(site: Site, rescue: str) -> None:
    """Do what the status tells an operator to do."""
    status = oscar("status", site)[1]
    assert f"oscar-ha rescue show {rescue}, then oscar-ha rescue replay {rescue} --to two --dry-run" in status
    assert rescue in oscar("rescue ls", site)[1]
    shown = oscar("rescue show", site, rescue, "--table", "person")[1]
    assert "name: Ωmega -> b" in shown
    assert len(oscar("rescue show", site, rescue, "--json", "--key", "1")[1].splitlines()) == 2
    replay = ("rescue replay", site, rescue, "--table", "person", "--json")
    assert oscar(*replay, "--to", "one", "--yes")[0] == 2
    assert oscar(*replay, "--to", "two", "--yes", "--table", "nothing")[0] == 2
    would = oscar(*replay, "--to", "two", "--dry-run")
    assert (would[0], json.loads(would[1])["applied"], site.two.value("SELECT COUNT(*) FROM oscar.person")) == (3, 2, 0)
    did = oscar(*replay, "--to", "two", "--yes")
    assert (did[0], json.loads(did[1])["applied"]) == (3, 2), did
    assert site.two.run("SELECT * FROM oscar.person") == ((1, "b", 1),)
    assert oscar("rescue replay", site, rescue, "--gtid", "0-1-1", "--to", "two", "--yes")[0] == 2
    site.watchdog_one.wait_for(role="fenced")
    assert site.watchdog_one.health()["rescue"]["replayed"] == 2


def oscar(verb: str, site: Site, *arguments: str) -> tuple[int, str]:
    """Run the command as an operator does; return its exit code and what it says."""
    words = verb.split()
    done = CliRunner().invoke(application(words[0]), [*words, *arguments, "--settings", str(site.settings_path)],
                              env={"COLUMNS": "300"})  # fmt: skip
    if isinstance(done.exception, OscarHaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.stdout
