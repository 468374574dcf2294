"""Retention with a live primary, three replicators and two standbys, one of which stands still; and `kill -9` in its midst."""

import json
import random
import subprocess
import threading
from contextlib import suppress

import pytest

from cluster.position import Position
from cluster.records import Database, NodeReport, Role
from tests.replicator.house import SITES, House, until
from tests.replicator.test_archive_command import COMMAND
from tests.servers.mariadb import MariaDBServer

pytestmark = pytest.mark.servers
MIB = 2**20
KILLS = 4


def write(primary: MariaDBServer, files: int) -> None:
    """Fill binlog files of about half a megabyte."""
    for _ in range(files):
        primary.run("INSERT INTO d.t (b) VALUES (REPEAT('x', 400000))", "FLUSH BINARY LOGS")


def report(house: House, site: str) -> None:
    """Say what the watchdog of a site would."""
    server, role = house.servers[site], Role.PRIMARY if site == "clinic" else Role.STANDBY
    house.put(f"nodes/{site}", NodeReport(
        node=site, site=site, server_id=server.server_id, role=role, database=Database.UP, epoch=1, sealed_epoch=0,
        read_only=None, position=str(server.value("SELECT @@gtid_slave_pos")) or house.position(site), lag_ms=None,
        lease_epoch=None, resumable=False, generation="", server_version=None, replicating=None, why="", url="",
    ))  # fmt: skip


def archive(house: House, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, "archive", command, *arguments, "--settings", str(house.settings), "--site", "toronto"],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


def oldest(house: House) -> tuple[str, int]:
    """Return the file that toronto's archive begins with, and how many there are."""
    names = sorted(path.name for path in (house.archive("toronto") / "epochs").glob("*/binlog.??????"))
    return names[0], len(names)


def begun(house: House) -> MariaDBServer:
    """Start everything: what the archive may be is three megabytes."""
    house.archive_rules(max_bytes=3 * MIB)
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    for site in SITES:
        house.replicator(site)
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT AUTO_INCREMENT PRIMARY KEY, b LONGTEXT)")
    for site in ("toronto", "montreal"):
        house.database(site)
        house.follow(site, position="")
    return primary


def settled(house: House, *standbys: str) -> None:
    """Wait until everybody has everything, and has said so."""
    for site in SITES:
        house.await_durable(site, house.position("clinic"))
    for site in standbys:
        house.await_applied(site, house.position("clinic"))
        report(house, site)
    report(house, "clinic")


def test_nothing_goes_that_a_stopped_standby_needs_and_all_goes_when_it_follows_again(house: House) -> None:
    primary = begun(house)
    write(primary, 3)
    settled(house, "toronto", "montreal")
    house.servers["montreal"].run("STOP SLAVE")
    stopped = Position.parse(str(house.servers["montreal"].value("SELECT @@gtid_slave_pos")))
    write(primary, 10)
    settled(house, "toronto")
    held = until(lambda: (house.post("toronto", "/v1/prune")[1] or {}).get("held_back"), what="held back")
    rounds = json.loads(archive(house, "prune", "--dry-run", "--json").stdout)
    staying = [one for one in rounds["files"] if one["fate"] != "goes"]

    assert "node montreal needs it" in held
    assert len(staying) >= 10
    assert [one["who"] for one in rounds["floors"] if one["keeps"]] == ["node montreal"]
    assert "is a standby at " + str(stopped) in archive(house, "prune", "--dry-run").stdout
    assert "node montreal needs it" in archive(house, "ls").stdout
    house.await_health("toronto", lambda one: "node montreal" in one.why, what="says who holds it back")

    house.servers["montreal"].run("START SLAVE")
    settled(house, "toronto", "montreal")
    until(lambda: not house.post("toronto", "/v1/prune")[1].get("held_back"), what="old files go")
    first, count = oldest(house)
    assert count <= 3 * MIB // 400_000 + 1
    assert first > "binlog.000005"
    verified = archive(house, "verify")
    assert verified.returncode == 0, verified.stdout
    checksums = {str(house.servers[site].value("CHECKSUM TABLE d.t")) for site in SITES}
    assert len(checksums) == 1

    house.servers["montreal"].run("STOP SLAVE", "RESET MASTER")
    house.follow("montreal", position="", source="toronto")
    told = until(lambda: house.slave_status("montreal")["Last_IO_Error"], what="told that it is too old")
    assert "1236" in told
    assert "oscar-ha reinitialize" in told


def test_a_replicator_killed_in_the_midst_of_pruning_leaves_an_archive_that_verifies(house: House) -> None:
    primary, chance = begun(house), random.Random(7)
    for _ in range(KILLS):
        write(primary, 9)
        settled(house, "toronto", "montreal")

        def prune() -> None:
            with suppress(OSError):
                house.post("toronto", "/v1/prune")

        asking = threading.Thread(target=prune)
        asking.start()
        asking.join(chance.uniform(0.0, 0.08))
        house.replicators["toronto"].kill()
        asking.join()
        verified = archive(house, "verify")
        assert verified.returncode == 0, verified.stdout
        house.replicator("toronto")
    settled(house, "toronto", "montreal")
    assert str(house.servers["toronto"].value("CHECKSUM TABLE d.t")) == str(primary.value("CHECKSUM TABLE d.t"))
