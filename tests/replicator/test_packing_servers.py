"""A compressed and encrypted archive with real servers: standbys, tools and other replicators read it, kills or not."""

import json
import random
import subprocess
import threading
from pathlib import Path

import pytest

from replicator.keys import add_key
from tests.replicator.house import House, until
from tests.replicator.test_archive_command import COMMAND
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer

pytestmark = pytest.mark.servers
KILLS = 2


def archive(house: House, command: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([COMMAND, "archive", command, *arguments, "--settings", str(house.settings), "--site", "toronto"],
                          capture_output=True, timeout=60, check=False)  # fmt: skip


def write(primary: MariaDBServer, files: int) -> None:
    for _ in range(files):
        for _ in range(3):
            primary.run("INSERT INTO d.t (b) VALUES (CONCAT(UUID(), REPEAT('x', 100000)))")
        primary.run("UPDATE d.t SET b = CONCAT(b, UUID())", "FLUSH BINARY LOGS")


def forms(house: House) -> list[str]:
    return [one["form"] for one in json.loads(archive(house, "ls", "--json").stdout)["files"]]


def read_remotely(house: House, first: str, files: list[Path]) -> list[bytes]:
    """Return what an unmodified `mariadb-binlog` gets of these files from the replicator."""
    subprocess.run(["mariadb-binlog", "--no-defaults", "--read-from-remote-server", "--host=127.0.0.1",
                    f"--port={house.ports['toronto'][0]}", f"--user={REPLICATION_USER}",
                    f"--password={REPLICATION_PASSWORD}", "--raw", f"--result-file={house.directory}/raw-", "--to-last-log",
                    first], check=True, timeout=60)  # fmt: skip
    return [(house.directory / f"raw-{path.name}").read_bytes() for path in files]


def killed_again_and_again(house: House, primary: MariaDBServer) -> None:
    """Write, and kill the replicator while it compresses what was written."""
    chance = random.Random(5)
    for _ in range(KILLS):
        write(primary, 3)
        threading.Event().wait(chance.uniform(0.2, 1.5))
        house.replicators["toronto"].kill()
        verified = archive(house, "verify")
        assert verified.returncode == 0, verified.stdout
        house.replicator("toronto")


@pytest.mark.timeout(240)
def test_what_is_compressed_and_encrypted_is_read_by_everybody_and_survives_kills(house: House) -> None:
    add_key(house.directory / "archive.keys")
    house.archive_rules(key_file=str(house.directory / "archive.keys"), compress_after_minutes=0)
    primary = house.database("clinic")
    first = house.begin_epoch("clinic").file
    house.replicator("toronto")
    standby = house.database("toronto")
    standby.run("SET GLOBAL slave_parallel_threads = 4")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT AUTO_INCREMENT PRIMARY KEY, b LONGTEXT)")
    killed_again_and_again(house, primary)
    house.await_durable("toronto", house.position("clinic"))
    until(lambda: set(forms(house)[:-1]) == {"compressed, encrypted"}, what="all closed files compressed")
    house.await_applied("toronto", house.position("clinic"))
    house.database("montreal")
    house.follow("montreal", position="", source="toronto")
    house.await_applied("montreal", house.position("clinic"))

    assert len({str(house.servers[one].value("CHECKSUM TABLE d.t")) for one in house.servers}) == 1
    closed = sorted(path for path in primary.datadir.glob("binlog.??????") if path.name >= first)[:-1]
    for path in closed[::4]:
        assert archive(house, "cat", path.name).stdout == path.read_bytes(), path.name
    assert read_remotely(house, first, closed) == [path.read_bytes() for path in closed]
    found = archive(house, "find", "--table", "d.t", "--where", "@1=1", "--json")
    assert found.returncode == 0, found.stderr

    primary.run(f"PURGE BINARY LOGS TO '{closed[-1].name}'")
    house.replicator("montreal")
    house.await_durable("montreal", house.position("clinic"))
    verified = archive(house, "verify")
    assert verified.returncode == 0, verified.stdout
