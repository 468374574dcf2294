"""An encrypted archive against real servers: its bytes, its crash, its reader, and its commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.replicator.house import House, until

pytestmark = pytest.mark.servers
COMMAND = str(Path(sys.executable).parent / "oscar-ha")
PATIENT = "Doe, Jane, 1970-01-01"


def test_an_encrypted_archive_is_the_primarys_bytes_for_a_standby_through_kills(house: House) -> None:
    keys = house.encrypt()
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    house.database("toronto")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    for round_number in range(3):
        first = 1000 * round_number
        primary.run(*[f"INSERT INTO d.t VALUES ({first + n}, '{PATIENT}')" for n in range(50)])
        primary.run(f"INSERT INTO d.t VALUES ({first + 500}, REPEAT('x', 3000000))", "FLUSH BINARY LOGS")
        process.kill()
        house.replicator("toronto")
    primary.run("INSERT INTO d.t VALUES (9999, 'end')")
    house.await_durable("toronto", house.position("clinic"))
    house.await_applied("toronto", house.position("clinic"))

    files = sorted((house.archive("toronto") / "epochs" / "0000000001-1").glob("binlog.*[0-9]"))
    assert len(files) == 4
    for path in files:
        assert house.archived("toronto", path.name, keys=keys)[30:] == (primary.datadir / path.name).read_bytes()[30:]
        assert PATIENT.encode() not in path.read_bytes()
    check_the_commands(house, files[0].name)
    until(lambda: len(list(files[0].parent.glob("*.index"))) == 3, what="the closed files have an index")
    where = ("--settings", str(house.settings), "--site", "toronto")
    verified = subprocess.run(
        [COMMAND, "archive", "verify", *where], capture_output=True, text=True, timeout=60, check=False
    )

    assert verified.returncode == 0, verified.stdout
    assert "4 files" in verified.stdout


def check_the_commands(house: House, file: str) -> None:
    where = ("--settings", str(house.settings), "--site", "toronto")
    shown = subprocess.run(
        [COMMAND, "archive", "cat", file, *where], capture_output=True, timeout=30, check=True
    ).stdout
    decoded = subprocess.run(
        ["mariadb-binlog", "--verbose", "-"], input=shown, capture_output=True, timeout=30, check=True
    )
    without = subprocess.run([COMMAND, "archive", "cat", file, "--archive", str(house.archive("toronto"))],
                             capture_output=True, text=True, timeout=30, check=False)  # fmt: skip

    assert PATIENT.encode() in decoded.stdout
    assert without.returncode == 2
    assert "key_file" in without.stderr


def test_a_replicator_without_its_key_does_not_start_and_says_which(house: House) -> None:
    house.encrypt()
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    primary.run("CREATE DATABASE d")
    house.await_durable("toronto", house.position("clinic"))
    process.kill()
    lines = house.settings.read_text().splitlines()
    house.settings.write_text("\n".join(line for line in lines if "key_file" not in line) + "\n")
    with pytest.raises(Exception, match="ended before answering"):
        house.replicator("toronto")
    until(lambda: not process.alive, what="the replicator ends")

    assert "which we have not" in process.log_tail()
