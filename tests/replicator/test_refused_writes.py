"""A write to the archive that fails is an acknowledgement that is not sent; a name alone names no file (TRAPS.md 16, 17)."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import clock
from cluster.binlog.framing import KIB, MIB
from replicator.service import FILL_EVERY_MS
from tests.replicator.house import House, until
from tests.replicator.test_acknowledging import BLOCKED_SECONDS, Writer, primary_of
from tests.replicator.test_interrupted import archived, without_flag

pytestmark = pytest.mark.servers

FILE_BYTES_MAX = 64 * KIB


def limit_files(pid: int, bytes_max: int) -> None:
    """Let every write of a process beyond this size of a file fail with EFBIG: as good as a disk that takes no more."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))


ROUNDS_MAX = 5
"""Of asking the other sites, within two pauses and what the start takes."""


def test_a_write_that_fails_is_an_acknowledgement_that_is_not_sent(house: House) -> None:
    """The commit waits, the replicator says why, and both go on by themselves once writes succeed again."""
    primary = primary_of(house, "toronto")
    process = house.replicator("toronto")
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    limit_files(process.pid, FILE_BYTES_MAX)
    writer = Writer(primary)
    writer.start()
    house.await_health("toronto", lambda report: "be written" in report.why, what="a write fails, and it says so")
    told = len(writer.acknowledged)
    time.sleep(BLOCKED_SECONDS)
    promised = len(writer.acknowledged)

    assert promised == told, "no commit returns while nothing can be written"
    assert archived(house)[-1].stat().st_size <= FILE_BYTES_MAX
    limit_files(process.pid, MIB * KIB)
    until(lambda: len(writer.acknowledged) > promised + 20, what="commits go on")
    writer.stopped.set()
    writer.join()
    house.await_durable("toronto", house.position("clinic"))
    for path in archived(house):
        assert without_flag(path.read_bytes()) == without_flag((primary.datadir / path.name).read_bytes())


def test_two_servers_files_of_one_name_are_two_files(house: House) -> None:
    """Names begin at 000001 on every server; each is kept under its epoch, and a bare name that means two is refused."""
    first = house.database("clinic")
    first.run("RESET MASTER", "CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    second = house.database("toronto", rpl_semi_sync_slave_enabled="ON")
    second.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)", "RESET MASTER")
    house.follow("toronto", position=house.lineage[0].position)
    first.run("INSERT INTO d.t VALUES (1)")
    house.await_applied("toronto", house.position("clinic"))
    first.kill()
    second.run("STOP SLAVE", "RESET SLAVE ALL")
    house.begin_epoch("toronto")
    second.run("INSERT INTO d.t VALUES (2)")
    house.await_durable("toronto", house.position("toronto"))
    (name,) = {entry.file for entry in house.lineage}
    bare, named = cat(house, name), cat(house, name, "--epoch", "2")

    assert bare.returncode == 2
    assert b"2 files" in bare.stderr
    assert without_flag(named.stdout) == without_flag((second.datadir / name).read_bytes())
    assert without_flag(cat(house, name, "--epoch", "1").stdout) == without_flag((first.datadir / name).read_bytes())


def cat(house: House, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = str(Path(sys.executable).parent / "oscar-ha")
    return subprocess.run([command, "archive", "cat", *arguments, "--archive", str(house.archive("toronto"))],
                          capture_output=True, check=False, timeout=30)  # fmt: skip


def test_a_primary_whose_binlog_was_reset_is_not_followed_further(house: House) -> None:
    """RESET MASTER makes another history under the same names: nothing of it is appended to ours (TRAPS.md 11, 17)."""
    primary = house.database("clinic")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY)")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run(*[f"INSERT INTO d.t VALUES ({number})" for number in range(20)])
    house.await_durable("toronto", house.position("clinic"))
    before = {path.name: path.read_bytes() for path in archived(house)}
    house.replicators["toronto"].kill()
    primary.run(
        "RESET MASTER", "FLUSH BINARY LOGS", *[f"INSERT INTO d.t VALUES ({number})" for number in range(50, 99)]
    )
    house.replicator("toronto")
    report = house.await_health(
        "toronto", lambda report: not report.connected and "no answer yet" in report.why, what="refused"
    )
    looked = clock.after(clock.now(), 2 * FILL_EVERY_MS)
    said = set[str]()
    while clock.seconds_left(looked) > 0:  # it is stopped and started again meanwhile, to ask the other replicators
        said.add(house.await_health("toronto", lambda _: True, what="a report").why)

    assert {path.name: path.read_bytes() for path in archived(house)} == before
    assert report.durable == "0-1-22"
    assert said == {report.why}, "what is wrong is said all the time"
    log = (house.directory / "toronto.log").read_text()
    assert log.count("pull.ended") == 1, "and logged once"
    assert 2 <= log.count("fill.failed") <= 2 * ROUNDS_MAX, "the two other sites are asked now and then"
