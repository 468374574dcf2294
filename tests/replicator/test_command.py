"""Bad input: one clear message, exit code 2, nothing started; and a clean end."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import clock
from tests.replicator.house import House

pytestmark = pytest.mark.servers
COMMAND = str(Path(sys.executable).parent / "oscar-ha")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)


def complaint_of(house: House, site: str = "toronto") -> str:
    done = run("replicator", "run", "--settings", str(house.settings), "--site", site)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_a_port_in_use_is_named(house: House, number: int) -> None:
    port = house.ports["toronto"][number]
    with socket.create_server(("127.0.0.1", port)):
        assert f"127.0.0.1:{port} cannot be listened on" in complaint_of(house)


def test_wrong_settings_are_named(house: House) -> None:
    assert "there is no replicator at site 'nowhere'" in complaint_of(house, "nowhere")
    house.settings.write_text(house.settings.read_text().replace("sites", "cites"))
    assert "cites" in complaint_of(house)


def test_without_zookeeper_it_does_not_start(house: House) -> None:
    house.settings.write_text(house.settings.read_text().replace(house.zookeeper, "127.0.0.1:1"))
    assert "no ZooKeeper answers at 127.0.0.1:1" in complaint_of(house)


def test_a_second_replicator_of_the_same_archive_does_not_start(house: House) -> None:
    house.replicator("toronto")
    assert "in use by another replicator" in complaint_of(house)


def test_it_ends_within_two_seconds_of_sigterm(house: House) -> None:
    house.database("clinic")
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    house.await_health("toronto", lambda report: report.connected, what="connected")
    began = clock.now()
    process.send(signal.SIGTERM)
    process.stop()

    assert clock.ms_between(began, clock.now()) < 2000
    assert house.client.exists(f"{house.root}/replicators/toronto") is None
    assert '"stopped"' in process.log_tail()


def test_calls_without_the_token_or_with_a_wrong_body_are_refused(house: House) -> None:
    house.replicator("toronto")
    status, answer = house.post("toronto", "/v1/seal", epoch=0, until="x", deadline_ms=5, other=1)

    assert status == 400
    assert "epoch" in answer["error"]["message"]
    assert house.post("toronto", "/v1/seal", epoch=1, until="x", deadline_ms=5)[0] == 400


def test_archive_ls_shows_what_is_there(house: House) -> None:
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d")
    house.await_durable("toronto", house.position("clinic"))
    archive = str(house.archive("toronto"))

    assert "binlog.000002" in run("archive", "ls", "--archive", archive).stdout
    assert '"epoch": 1' in run("archive", "ls", "--archive", archive, "--json").stdout
    assert run("archive", "cat", "nothing", "--archive", archive).returncode == 2
    assert run("archive", "ls", "--archive", "/nowhere").returncode == 2
