"""MariaDB's own physical backup: the command lines, the files it leaves, and how a copy is told where it stands.

Measured on 10.11.19; the reasons are in docs/decisions/0035 and 0036. No password is on a command line: `mariadb-backup`
reads it from a file that exists only in memory.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pymysql

from cluster.connection import QuickConnection
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.position import Position

PROGRAMS: Mapping[str, str] = {
    "mariadb-backup": "mariadb-backup", "mbstream": "mariadb-backup", "mariadbd": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}  # fmt: skip
"""What a donor and a receiver run, and the Debian package that brings it."""
INFO_FILES = ("mariadb_backup_binlog_info", "xtrabackup_binlog_info")
"""Its name changed between versions (TRAPS.md 40)."""
LOCK_WAIT_SECONDS_MAX = 60
SQL_SECONDS_MAX = 30
PRINT_SECONDS_MAX = 10
PRIVATE_LOG = "log.err"
"""Where a private server writes; it would add such an ending to a name without one."""
PREPARED = re.compile(r"Found \d+ prepared transactions!")
"""What a server says that does not start because of them."""
REFUSES_ITS_TAIL = re.compile(r"Cannot truncate the binary log")
"""What a server says that does not start because it cannot take back its unacknowledged tail (decision 0010)."""
OPTION_GROUPS = ("mysqld", "server", "mariadb", "mariadbd", "mysqld-10.11", "mariadb-10.11", "mariadbd-10.11")
INSIDE = frozenset((
    "log_bin", "log_bin_index", "relay_log", "relay_log_index", "relay_log_info_file", "master_info_file",
    "innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path",
))  # fmt: skip
"""Must be plain names: a copy that is started beside the old directory would otherwise write into the old one."""


def give_command(defaults: str, scratch: Path) -> tuple[str, ...]:
    """Return what writes a copy of the running server to its standard output."""
    return (
        "mariadb-backup", f"--defaults-file={defaults}", "--backup", "--stream=mbstream",
        f"--target-dir={scratch}", f"--startup-wait-timeout={LOCK_WAIT_SECONDS_MAX}",
    )  # fmt: skip


def unpack_command(directory: Path) -> tuple[str, ...]:
    """Return what makes files of such a stream."""
    return ("mbstream", "-x", "-C", str(directory))


def prepare_command(directory: Path) -> tuple[str, ...]:
    """Return what makes the files consistent."""
    return ("mariadb-backup", "--prepare", f"--target-dir={directory}")


def private_command(option_file: Path, directory: Path, rooms: Path) -> tuple[str, ...]:
    """Return what starts a server on a copy: nobody but us can reach it, and it disturbs nobody.

    A server that starts removes the temporary tables in its `tmpdir`, and one beside it that uses them there crashes
    (decision 0060).
    """
    return (
        "mariadbd", f"--defaults-file={option_file}", f"--datadir={directory}", f"--socket={rooms / 'socket'}",
        f"--pid-file={rooms / 'pid'}", f"--log-error={rooms / PRIVATE_LOG}", "--skip-networking", "--skip-slave-start",
        "--event-scheduler=OFF", "--read-only=ON", f"--tmpdir={rooms}",
    )  # fmt: skip


def rollback_command(option_file: Path, directory: Path, rooms: Path) -> tuple[str, ...]:
    """Return what rolls back the transactions that the donor had prepared and not yet written to its binlog.

    A standby that applies in parallel has such ones at any moment (decision 0036). It ends by itself, never with 0.
    """
    return (*private_command(option_file, directory, rooms), "--tc-heuristic-recover=ROLLBACK")


def keep_tail_command(option_file: Path, directory: Path, rooms: Path) -> tuple[str, ...]:
    """Return what starts a crashed server privately and keeps, and commits, what nobody acknowledged (decision 0010)."""
    return (*private_command(option_file, directory, rooms), "--init-rpl-role=MASTER")


def defaults_text(user: str, password: str, socket: Path, data_directory: Path) -> str:
    """Return an option file for `mariadb-backup`."""
    values = {"user": user, "password": password, "socket": str(socket), "datadir": str(data_directory)}
    return "[mariadb-backup]\n" + "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())


def read_position(directory: Path) -> str:
    """Return the GTID position of an unpacked backup; empty is a fact. Raises OscarHaError when it is not told."""
    for name in INFO_FILES:
        path = directory / name
        if path.exists():
            return parse_info(path.read_text(encoding="utf-8", errors="replace"))
    raise OscarHaError(f"the copy has none of {', '.join(INFO_FILES)}", hint="has the donor a binary log?")


def parse_info(text: str) -> str:
    """Return the position of `binlog.000001 1952 0-1-9`. Raises OscarHaError."""
    fields = text.split(maxsplit=2)
    if len(fields) < 2 or not fields[1].isdigit():
        raise OscarHaError(f"the copy's binlog position cannot be read: {text[:80]!r}")
    return str(Position.parse("".join(fields[2].split()))) if len(fields) > 2 else ""


def read_options(option_file: Path) -> Mapping[str, str]:
    """Return what a server reads from an option file, names with `_`. Raises BadInput."""
    try:
        done = subprocess.run(
            ("my_print_defaults", f"--defaults-file={option_file}", *OPTION_GROUPS),
            capture_output=True, text=True, check=False, timeout=PRINT_SECONDS_MAX,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"option_file {option_file} cannot be read: {error}", hint="mend option_file") from error
    if done.returncode != 0:
        raise BadInput(f"option_file {option_file} cannot be read: {done.stderr.strip()}", hint="mend option_file")
    return parse_options(done.stdout)


def parse_options(text: str) -> Mapping[str, str]:
    """Return `--name=value` lines as a table; the last of a name wins."""
    pairs = (line[2:].partition("=") for line in text.splitlines() if line.startswith("--"))
    return {name.replace("-", "_"): value for name, _, value in pairs}


def problems(options: Mapping[str, str], data_directory: Path) -> list[str]:
    """Return why a copy could not take the place of the data directory, each a sentence."""
    found = [
        f"{name}={options[name]} is a path: it must be a plain name, inside the data directory"
        for name in sorted(INSIDE & options.keys())
        if "/" in options[name].removeprefix("./")
    ]
    datadir = options.get("datadir")
    if datadir is not None and Path(datadir) != data_directory:
        found.append(f"its datadir is {datadir}, the settings say {data_directory}")
    return found


def tell_position(socket: Path, user: str, password: str, backup: str, directory: Path) -> str:
    """Tell the server on a copy where it stands, before anybody else speaks to it (TRAPS.md 26); return the position.

    Its binary log begins with that position, so that a replicator may ask it for what follows as soon as it is promoted.
    """
    with closing(_connect(socket, user, password)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@datadir, @@log_bin_basename, @@gtid_slave_pos")
        place, binlog, applied = (str(value or "") for value in cursor.fetchone() or ("", "", ""))
        if Path(place) != directory or Path(binlog).parent != directory:
            raise Refused(f"the copy would use {place} and {binlog}", hint="use plain names in the option file")
        position = held(backup, applied)
        cursor.execute("SET SESSION sql_log_bin = 0")
        cursor.execute("RESET MASTER")
        if position:
            cursor.execute("SET GLOBAL gtid_binlog_state = %s", (position,))
            cursor.execute("SET GLOBAL gtid_slave_pos = %s", (position,))
        cursor.execute("FLUSH BINARY LOGS")
        cursor.execute("SHOW MASTER STATUS")
        newest = str((cursor.fetchone() or ("",))[0])
        cursor.execute("PURGE BINARY LOGS TO %s", (newest,))
        cursor.execute("SELECT @@gtid_binlog_pos, @@gtid_slave_pos")
        told = tuple(str(Position.parse(str(value or ""))) for value in cursor.fetchone() or ())
        if told != (position, position):
            raise Refused(f"the copy was told {position or 'nothing'} and says {told}")
        cursor.execute("SHUTDOWN")
    return position


def held(backup: str, applied: str) -> str:
    """Return where a copy stands: what the donor's binlog had, or what it had applied before its binlog began."""
    one, other = Position.parse(backup), Position.parse(applied)
    return str(Position.of([*other.last.values(), *one.last.values()]))


def missing_programs(which: Sequence[str | None]) -> str:
    """Return the names in PROGRAMS whose place is not known, as a sentence; empty when all are there."""
    absent = [name for name, place in zip(PROGRAMS, which, strict=True) if place is None]
    packages = " ".join(sorted({PROGRAMS[name] for name in absent}))
    return f"not installed: {', '.join(absent)} (apt-get install {packages})" if absent else ""


def _connect(socket: Path, user: str, password: str) -> "pymysql.Connection[pymysql.cursors.Cursor]":
    return QuickConnection(
        unix_socket=str(socket), user=user, password=password, autocommit=True, charset="utf8mb4",
        connect_timeout=SQL_SECONDS_MAX, read_timeout=SQL_SECONDS_MAX, write_timeout=SQL_SECONDS_MAX,
    )  # fmt: skip


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
