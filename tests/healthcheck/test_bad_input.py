"""What is wrong at the start is said once, with the mend, and ends with code 2: no traceback, no secret."""

import socket
import subprocess
from pathlib import Path

import pytest

from cluster.mariadb import problems
from tests.healthcheck.site import OSCAR_HA, SECRETS, Site

SOUND = {
    "log_bin": "ON", "log_slave_updates": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL",
    "binlog_checksum": "CRC32", "gtid_strict_mode": "ON", "sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1",
    "rpl_semi_sync_master_wait_point": "AFTER_SYNC", "slave_run_triggers_for_rbr": "NO",
    "rpl_semi_sync_slave_enabled": "ON", "server_id": "7",
    "init_file": "/etc/born-fenced.sql",
}  # fmt: skip


def test_a_sound_server_has_no_problems() -> None:
    assert problems(SOUND, 7) == []


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("log_bin", "OFF", "set log_bin=ON"),
        ("binlog_format", "MIXED", "set binlog_format=ROW"),
        ("gtid_strict_mode", "OFF", "set gtid_strict_mode=ON"),
        ("binlog_checksum", "NONE", "set binlog_checksum=CRC32"),
        ("sync_binlog", "0", "set sync_binlog=1"),
        ("server_id", "8", "set server_id=7"),
        ("init_file", "", "set init_file"),
        ("binlog_storage_engine", "InnoDB", "remove the option"),
    ],
)
def test_each_problem_names_its_mend(name: str, value: str, mend: str) -> None:
    (problem,) = problems(SOUND | {name: value}, 7)

    assert name in problem
    assert mend in problem


def run(settings_path: Path, node: str = "one") -> tuple[int, str]:
    """Run the watchdog to its end; return its exit code and what it said."""
    ended = subprocess.run(
        [OSCAR_HA, "watchdog", "run", "--settings", str(settings_path), "--node", node],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    assert not any(secret in ended.stderr for secret in SECRETS.values() if secret != "token")
    return ended.returncode, ended.stderr


@pytest.mark.servers
def test_wrong_settings_and_nodes(site: Site) -> None:
    code, said = run(site.settings_path, "nowhere")
    assert code == 2
    assert "there is no node 'nowhere'" in said
    code, said = run(site.directory / "missing.toml")
    assert code == 2
    assert "cannot be read" in said


@pytest.mark.servers
def test_a_port_in_use(site: Site) -> None:
    node = site.settings.node("one")
    with socket.create_server((node.host, node.watchdog_port)):
        code, said = run(site.settings_path)
    assert code == 2
    assert str(node.watchdog_port) in said


@pytest.mark.servers
def test_no_zookeeper(site: Site) -> None:
    text = site.settings_path.read_text().replace(site.settings.zookeeper[0], "127.0.0.1:9")
    site.settings_path.write_text(text)
    code, said = run(site.settings_path)

    assert code == 2
    assert "no ZooKeeper answers at 127.0.0.1:9" in said


@pytest.mark.servers
def test_a_wrong_password_and_options(site: Site) -> None:
    site.one.start(binlog_format="MIXED", gtid_strict_mode="OFF")
    code, said = run(site.settings_path)
    assert code == 2
    assert "set binlog_format=ROW" in said
    assert "set gtid_strict_mode=ON" in said
    (site.directory / "admin").write_text("wrong\n")
    code, said = run(site.settings_path)

    assert code == 2
    assert "refuses the account 'oscar_ha'" in said


@pytest.mark.servers
def test_a_server_that_comes_back_wrong_stays_closed_and_says_why(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up", role="fenced")
    site.one.kill()
    site.one.start(sync_binlog=0)
    report = site.watchdog_one.wait_for(role="failed", read_only=True)

    assert "sync_binlog" in report["why"]
    assert site.watchdog_one.tell("promote", epoch=1)[0] == 409
