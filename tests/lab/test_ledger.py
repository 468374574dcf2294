"""`lab.json`: what others read, and what the lab remembers."""

import json
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from chaos import lab_file
from chaos.lab import identity, ledger, process
from chaos.lab.identity import Identity, Life
from chaos.lab.layout import Layout, Request
from chaos.lab.ledger import Busy, Ledger, Started
from chaos.lab.preflight import choose_ports, is_free, programs
from cluster.errors import BadInput

ENDED = Started(name="db-clinic", pid=2**22, started=1, command=("mariadbd", "--x"), log_offset=7)
LAB = Ledger(
    lab_id="abc",
    state="up",
    clinics=1,
    zookeepers=1,
    boot=identity.boot(),
    owner=Identity(1, 2),
    made=("/tmp/a", "/tmp/a/b"),
    ports={"prometheus": 9},
    public={
        "clinics": [
            {"name": "clinic-1", "host": "127.0.0.1", "port": 1, "user": "u", "password": "secret", "database": "oscar"}
        ],
        "nodes": [
            {"name": "db-clinic", "site": "clinic", "host": "127.0.0.1", "port": 2, "socket": "/s", "admin_user": "a",
             "admin_password": "secret", "pid": None, "watchdog_url": "http://127.0.0.1:3"}
        ],
        "controllers": [{"url": "http://127.0.0.1:4"}],
        "token": "secret",
    },
).with_started(ENDED)  # fmt: skip


def test_what_is_written_is_read_back_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    os.umask(0o022)
    ledger.write(Layout(tmp_path), LAB)

    found = ledger.read(Layout(tmp_path))

    assert found is not None
    assert replace(found, public={}) == replace(LAB, public={})
    assert stat.S_IMODE((tmp_path / "lab.json").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["lab.json"]


def test_those_who_measure_can_read_it(tmp_path: Path) -> None:
    ledger.write(Layout(tmp_path), LAB)

    found = lab_file.load(tmp_path)

    assert found.processes == {"db-clinic": ENDED.pid}
    assert found.nodes[0].pid == ENDED.pid
    assert found.clinics[0].password == "secret"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"lab": {}}', '{"lab": {"version": 99}}', '"x"'])
def test_a_file_that_is_not_a_labs_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "lab.json").write_text(text)

    with pytest.raises(BadInput, match=r"lab\.json is not a lab's"):
        ledger.read(Layout(tmp_path))


def test_a_process_that_is_gone_is_not_alive() -> None:
    assert ENDED.life is Life.ENDED
    assert LAB.alive == ()


def test_after_a_reboot_nothing_of_the_lab_lives_whatever_has_its_pid_now(tmp_path: Path) -> None:
    now = identity.identify(os.getpid())
    assert now is not None
    ourselves = replace(ENDED, pid=now.pid, started=now.started)
    ledger.write(Layout(tmp_path), LAB.with_started(ourselves))
    assert len(ledger.require(Layout(tmp_path)).alive) == 1

    ledger.write(Layout(tmp_path), replace(LAB.with_started(ourselves), boot="another"))

    assert ledger.require(Layout(tmp_path)).alive == ()


def test_two_commands_cannot_hold_one_folder(tmp_path: Path) -> None:
    with ledger.locked(tmp_path), pytest.raises(Busy) as raised, ledger.locked(tmp_path):
        pass

    assert raised.value.exit_code == 2
    with ledger.locked(tmp_path):
        pass


def test_no_lab_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="lab up"):
        ledger.require(Layout(tmp_path))


def test_every_missing_package_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.lab.preflight.SYSTEM_FOLDERS", ())

    with pytest.raises(BadInput) as raised:
        programs(str(tmp_path))

    assert "apt-get install" in raised.value.hint
    assert all(name in raised.value.hint for name in ("mariadb-server", "mariadb-client", "haproxy", "prometheus"))


def test_a_forced_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)

        with pytest.raises(BadInput, match=rf"port in use: .*{port} \(clinic-1/runtime\)"):
            choose_ports(Request(directory=tmp_path, base_port=port - 1))


def test_chosen_ports_are_free_and_different(tmp_path: Path) -> None:
    ports = choose_ports(Request(directory=tmp_path, clinics=20, zookeepers=3))

    assert len(set(ports.values())) == len(ports)
    assert max(ports.values()) < 32_768


def test_a_log_over_its_limit_keeps_its_newest_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 1000)
    monkeypatch.setattr(process, "LOG_KEPT_BYTES", 100)
    log = tmp_path / "x.log"
    with log.open("a") as appending:
        for number in range(500):
            print(f"line {number}", file=appending, flush=True)

        process.trim(log)
        print("after", file=appending, flush=True)

    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 499", "after"]
    assert 2 < len(lines) < 20


def test_the_cause_is_said_and_not_the_last_word() -> None:
    text = (
        "2026 [Note] starting\n2026 [ERROR] unknown variable 'x=1'\n2026 [ERROR] Aborting\n\n"
        "2026 [Note] Shutdown complete\n"
    )

    assert process.choose_error(text).endswith("unknown variable 'x=1'")
    assert process.choose_error("one\ntwo\n\n") == "two"
    assert process.choose_error("") == ""


def test_little_is_inherited() -> None:
    given = {"PATH": "/bin", "MYSQL_HOST": "elsewhere", "PYTHONPATH": "/evil", "HOME": "/root"}

    found = process.environment("abc", given)

    assert found["OSCAR_HA_LAB"] == "abc"
    assert not {"MYSQL_HOST", "PYTHONPATH"} & set(found)


def test_the_document_is_json_with_the_stable_part_first() -> None:
    found = json.loads(json.dumps(ledger.document(LAB)))

    assert list(found) == [*LAB.public, "processes", "lab"]
