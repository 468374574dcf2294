"""What a backup says and what an option file allows."""

from pathlib import Path

import pytest

from cluster import mariadb_backup
from cluster.errors import BadInput, OscarHaError

DATA = Path("/data/mysql")


def test_a_private_server_writes_where_its_words_are_read() -> None:
    """MariaDB adds .err to a name without an ending: what a server said that does not start was never found."""
    command = mariadb_backup.private_command(Path("/o.cnf"), Path("/data"), Path("/rooms"))

    assert f"--log-error=/rooms/{mariadb_backup.PRIVATE_LOG}" in command
    assert Path(mariadb_backup.PRIVATE_LOG).suffix


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("binlog.000001\t1952\t0-1-9\n", "0-1-9"),
        ("binlog.000001\t1952\t0-1-9,1-2-5\n", "0-1-9,1-2-5"),
        ("binlog.000001\t1952\t0-1-9,\n1-2-5\n", "0-1-9,1-2-5"),
        ("binlog.000001\t328\t\n", ""),
        ("binlog.000001\t328\n", ""),
    ],
)
def test_the_position_of_a_backup_is_read(text: str, position: str) -> None:
    assert mariadb_backup.parse_info(text) == position


@pytest.mark.parametrize("text", ["", "binlog.000001", "binlog.000001 x 0-1-9", "binlog.000001 4 nonsense"])
def test_a_position_that_cannot_be_read_is_an_error_never_an_empty_one(text: str) -> None:
    with pytest.raises(OscarHaError):
        mariadb_backup.parse_info(text)


@pytest.mark.parametrize("name", mariadb_backup.INFO_FILES)
def test_the_file_with_the_position_has_two_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("binlog.000001\t4\t0-1-9\n")

    assert mariadb_backup.read_position(tmp_path) == "0-1-9"


def test_a_copy_without_a_position_is_no_copy(tmp_path: Path) -> None:
    with pytest.raises(OscarHaError, match="has none of"):
        mariadb_backup.read_position(tmp_path)


def test_a_copy_stands_where_its_donor_stood_also_if_that_had_only_applied() -> None:
    assert mariadb_backup.held("0-1-9", "") == "0-1-9"
    assert mariadb_backup.held("", "0-1-7") == "0-1-7"
    assert mariadb_backup.held("0-2-12", "0-1-9") == "0-2-12"


def test_what_would_be_written_outside_the_copy_is_named() -> None:
    options = {
        "log_bin": "/var/log/mysql/binlog",
        "relay_log": "relay",
        "innodb_log_group_home_dir": "./",
        "datadir": "/elsewhere",
        "log_error": "/var/log/mysql/error.log",
    }
    found = mariadb_backup.problems(options, DATA)

    assert len(found) == 2
    assert found[0].startswith("log_bin=/var/log/mysql/binlog")
    assert "/elsewhere" in found[1]


def test_options_are_read_as_a_server_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "server.cnf"
    file.write_text("[client]\nuser=x\n[mysqld]\nlog-bin=one\n[mariadbd]\nlog_bin=two\nskip-name-resolve\n")
    options = mariadb_backup.read_options(file)

    assert options == {"log_bin": "two", "skip_name_resolve": ""}
    with pytest.raises(BadInput, match="cannot be read"):
        mariadb_backup.read_options(tmp_path / "missing.cnf")


def test_a_server_on_a_copy_keeps_its_hands_off_the_temporary_tables_of_all_others() -> None:
    """One that starts removes every `#sql*` in its tmpdir; a server that uses them there crashes (decision 0060)."""
    commands = (mariadb_backup.private_command, mariadb_backup.rollback_command)

    assert all("--tmpdir=/rooms" in command(Path("/x.cnf"), DATA, Path("/rooms")) for command in commands)


def test_a_password_of_any_letters_survives_the_option_file() -> None:
    text = mariadb_backup.defaults_text("o", 'a"b\\c #d', Path("/s"), DATA)

    assert text.splitlines()[:3] == ["[mariadb-backup]", 'user="o"', 'password="a\\"b\\\\c #d"']
