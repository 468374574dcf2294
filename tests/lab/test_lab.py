"""The whole lab: up, healthy, broken and mended by its commands, down, and no trace."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from chaos import lab_file
from tests.conftest import require
from tests.lab.running import COMMAND, await_true, document, lab, missing, processes_in

pytestmark = pytest.mark.servers
PROBE = """CREATE TABLE probe (id INT PRIMARY KEY, text VARCHAR(20));
LOAD DATA LOCAL INFILE 'rows.txt' INTO TABLE probe;
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab with two clinics and a file loaded, whose data file is named relative to it."""
    require(missing())
    files = tmp_path_factory.mktemp("files")
    (files / "probe.sql").write_text(PROBE)
    (files / "rows.txt").write_text("1\tone\n2\ttwo\n")
    directory = tmp_path_factory.mktemp("whole") / "build" / "lab"
    done = lab("up", "--clinics", "2", "--load", str(files / "probe.sql"), directory=directory)
    try:
        assert done.returncode == 0, done.stderr
        assert "The lab is up" in done.stdout
        yield directory
    finally:
        ended = lab("down", directory=directory)
    assert ended.returncode == 0, ended.stderr
    assert not processes_in(directory)
    assert not directory.parent.exists()


def rows(port: int, user: str, password: str) -> int:
    connection = pymysql.connect(
        host="127.0.0.1", port=port, user=user, password=password, database="oscar", connect_timeout=5, read_timeout=10
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM probe")
        return int((cursor.fetchone() or (0,))[0])


def state(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab("status", "--json", directory=place).stdout)
    return found


def test_every_clinic_reads_what_was_loaded_and_every_database_has_it(place: Path) -> None:
    found = lab_file.load(place)

    assert [rows(one.port, one.user, one.password) for one in found.clinics] == [2, 2]
    assert [rows(one.port, one.admin_user, one.admin_password) for one in found.nodes] == [2, 2, 2]


def test_all_passwords_are_for_the_owner_alone(place: Path) -> None:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (place / "lab.json", *(place / "secrets").iterdir())]

    assert set(modes) == {0o600}
    assert all(
        secret.read_text().strip() not in line
        for secret in (place / "secrets").iterdir()
        for line in processes_in(place)
    )


def test_everything_runs_and_status_says_so_on_one_screen(place: Path) -> None:
    found = state(place)

    assert found["ready"], found["reasons"]
    assert {one["life"] for one in found["processes"].values()} == {"running"}
    shown = lab("status", directory=place).stdout
    assert "primary db-clinic, epoch 1" in shown
    assert len(shown.splitlines()) < 24


def test_a_second_lab_in_the_same_folder_is_refused(place: Path) -> None:
    before = document(place)["processes"]

    done = lab("up", directory=place)

    assert done.returncode == 2
    assert "lab down" in done.stderr
    assert document(place)["processes"] == before


def test_a_site_dies_and_comes_back(place: Path) -> None:
    assert lab("kill", "site:montreal", directory=place).returncode == 0
    assert {name for name, one in state(place)["processes"].items() if one["life"] == "ended"} == {
        "db-montreal",
        "watchdog-montreal",
        "replicator-montreal",
        "controller-montreal",
    }

    done = lab("start", "site:montreal", directory=place)

    assert done.returncode == 0, done.stderr
    await_true(lambda: bool(state(place)["ready"]), "ready again")


def test_the_command_works_from_the_folder_above_without_naming_it(place: Path) -> None:
    done = subprocess.run(
        [COMMAND, "lab", "status"], cwd=place.parent.parent, capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "db-clinic" in done.stdout
