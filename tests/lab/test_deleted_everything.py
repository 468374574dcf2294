"""Somebody deletes everything: the whole lab, the commands as an operator types them, and what is on the standbys then.

One lab for all; the tests are one story, in their order.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection

from chaos.lab import build, control, remove
from chaos.lab.layout import Request
from chaos.lab_remote import RemoteLab
from chaos.run_folder import keep_logs
from tests.conftest import require
from tests.lab.running import COMMAND, await_true, missing

pytestmark = pytest.mark.servers

DELAYED, CURRENT, FIRST = "db-montreal", "db-toronto", "db-clinic"
ROWS, LATER = 6_000, 7
"""More than `alarm.changed_rows_per_minute` allows."""
READY_MS, PLAN_MS, COMMAND_SECONDS = 60_000.0, 60_000.0, 150
COUNT = "SELECT COUNT(*) FROM oscar.patients"


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


class Story:
    """The lab of the story."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.lab = directory, RemoteLab(directory)
        self.deletion = ""

    def clinic(self, *statements: str) -> Any:
        """Run statements as OSCAR does, through HAProxy."""
        one = self.lab.file.clinics[0]
        return run(pymysql.connect(host=one.host, port=one.port, user=one.user, password=one.password,
                                   database=one.database, autocommit=True, read_timeout=30), *statements)  # fmt: skip

    def node(self, name: str, *statements: str) -> Any:
        one = self.lab.file.node(name)
        return run(pymysql.connect(host=one.host, port=one.admin_port or one.port, user=one.admin_user,
                                   password=one.admin_password, autocommit=True, read_timeout=30), *statements)  # fmt: skip

    def count(self, name: str, query: str = COUNT) -> int:
        return int(self.node(name, query)[0][0])

    def oscar_ha(self, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command; it must end with `code`."""
        done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS,
                              env={"OSCAR_HA_SETTINGS": str(self.directory / "cluster.toml"), "PATH": "/usr/bin:/bin",
                                   "COLUMNS": "300"})  # fmt: skip
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def report(self, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.lab.cluster()["nodes"] if one["node"] == name)
        return dict(found)

    def await_level(self, name: str) -> None:
        head = self.node(self.lab.primary()[0], "SELECT @@gtid_binlog_pos")[0][0]
        assert self.node(name, f"SELECT MASTER_GTID_WAIT('{head}', 20)")[0][0] == 0


def run(where: "Connection[Any]", *statements: str) -> Any:
    with closing(where) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Story]:
    require(missing())
    failed_before = request.session.testsfailed
    directory = tmp_path_factory.mktemp("deleted") / "lab"
    build.up(Request(directory=directory), Quiet())
    try:
        one = Story(directory)
        one.lab.wait_ready(deadline_ms=READY_MS)
        one.clinic("CREATE TABLE patients (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(40)) ENGINE=InnoDB",
                   f"INSERT INTO patients (name) SELECT CONCAT('patient ', seq) FROM seq_1_to_{ROWS}")  # fmt: skip
        one.await_level(DELAYED)
        yield one
    finally:
        if request.session.testsfailed > failed_before:
            keep_logs(directory, Path("build") / "test-logs")
        remove.down(directory, keep=False)


def test_the_alarm_names_the_command_and_the_command_brings_the_rows_back(story: Story) -> None:
    """The clinic worked until the deletion and goes on after it: the one is on the standby, the other is not."""
    story.oscar_ha("delay", DELAYED, "--hours", "1", "--why", "a test")
    assert "delayed 1 h as ordered" in story.oscar_ha("status").stdout
    story.clinic(*[f"INSERT INTO patients (name) VALUES ('new {number}')" for number in range(LATER)])
    story.clinic("DELETE FROM patients")
    story.clinic("INSERT INTO patients (name) VALUES ('after')")
    alarm = re.compile(rf"oscar.patients: delete of .* oscar-ha (hold {DELAYED} --before \S+)")
    await_true(lambda: alarm.search(story.oscar_ha("status").stdout) is not None, "the alarm")
    (command,) = alarm.findall(story.oscar_ha("status").stdout)
    story.deletion = command.split()[-1]
    story.oscar_ha(*command.split(), "--dry-run")
    assert story.report(DELAYED)["order"]["state"] == "delayed"
    said = story.oscar_ha(*command.split()).stdout

    assert f"stands still just before {story.deletion}" in said
    assert story.count(DELAYED) == ROWS + LATER
    assert story.count(DELAYED, f"{COUNT} WHERE name = 'after'") == 0
    assert (story.count(CURRENT), story.count(FIRST)) == (1, 1)
    assert story.node(DELAYED, "SELECT @@gtid_slave_pos")[0][0] == "-".join(
        [*story.deletion.split("-")[:2], str(int(story.deletion.split("-")[2]) - 1)])  # fmt: skip
    assert story.lab.cluster()["ready"]


def test_a_held_standby_is_left_alone_by_every_other_command(story: Story) -> None:
    state = json.loads(story.oscar_ha("status", "--json").stdout)
    refused = story.oscar_ha("switchover", "--to", DELAYED, "--yes", code=1).stderr
    assert f"oscar-ha release {DELAYED}" in refused
    assert "held before" in story.oscar_ha("reinitialize", DELAYED, "--yes", code=1).stderr
    late = story.oscar_ha("hold", CURRENT, "--before", story.deletion, code=1).stderr
    assert "has applied" in late
    assert f"oscar-ha hold {DELAYED} --before" in late
    report = json.loads(story.oscar_ha("verify", "--table", "oscar.patients", "--json", "-").stdout)

    assert state["warnings"] == []
    assert (report["verdict"], report["nodes"]) == ("equal", [CURRENT])
    assert "held before" in report["by_order"][0]


def test_a_held_standby_is_not_promoted_when_the_primary_dies_and_holds_on_through_everything(story: Story) -> None:
    _, epoch = story.lab.primary()
    control.kill(story.directory, DELAYED)
    control.kill(story.directory, DELAYED.replace("db-", "watchdog-"))
    control.kill(story.directory, FIRST)
    control.start(story.directory, DELAYED)
    control.start(story.directory, DELAYED.replace("db-", "watchdog-"))
    story.lab.wait_plan(epoch, deadline_ms=PLAN_MS)
    assert story.lab.primary() == (CURRENT, epoch + 1)
    await_true(lambda: (story.report(DELAYED).get("order") or {}).get("state") == "held", "it is held again")
    assert story.count(DELAYED) == ROWS + LATER

    assert "1 h behind" in story.oscar_ha("release", DELAYED).stdout
    assert story.count(DELAYED) == ROWS + LATER, "the delay counts again"


def test_with_only_a_delayed_standby_left_a_failover_catches_up_and_loses_nothing(story: Story) -> None:
    """The old primary is still away; what was acknowledged meanwhile is on the standby's site, not in its database."""
    _, epoch = story.lab.primary()
    story.clinic(*[f"INSERT INTO patients (name) VALUES ('last {number}')" for number in range(LATER)])
    assert "delayed 1 h" in story.lab.cluster()["reasons"][0]
    assert story.count(DELAYED) == ROWS + LATER
    control.kill(story.directory, CURRENT)
    record = story.lab.wait_plan(epoch, deadline_ms=PLAN_MS)

    assert record["outcome"] == "done", record
    assert story.lab.primary()[0] == DELAYED
    assert [row[0] for row in story.clinic("SELECT name FROM patients ORDER BY id")] == [
        "after", *(f"last {number}" for number in range(LATER))]  # fmt: skip
