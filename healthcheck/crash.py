"""A server that is down: whether it ended in order, and how to make it startable when it cannot cut its own tail.

A server marks the binlog file that it writes as in use, and takes the mark away when it ends in order. It cannot start where
its unacknowledged tail holds what cannot be taken back (decision 0010); started once so that it keeps the tail it can, and
is ahead. Nobody can reach it while it does that, and it is born fenced as always.
"""

import os
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pymysql
import structlog

from cluster import clock, mariadb_backup
from cluster.binlog.framing import MAGIC
from cluster.connection import QuickConnection
from cluster.errors import DeadlinePassed, OscarHaError
from healthcheck.seed_orders import last_words

INDEX = "binlog.index"
"""As every node must have it (`cluster/mariadb.py`)."""
INDEX_BYTES_MAX = 2**24
FLAGS_AT = len(MAGIC) + 17
IN_USE = 0x01
RECOVER_SECONDS_MAX = 600.0
"""A recovery reads the whole redo log."""
SQL_SECONDS_MAX = 30
LOOK_SECONDS = 0.1
MS_PER_SECOND = 1000
log = structlog.get_logger()


def crashed(data: Path) -> bool:
    """Return whether the server that wrote `data` did not end in order; False when that cannot be told."""
    try:
        names = (data / INDEX).read_bytes()[-INDEX_BYTES_MAX:].splitlines()
        newest = data / os.fsdecode(names[-1])
        with newest.open("rb") as file:
            head = file.read(FLAGS_AT + 1)
    except (OSError, IndexError, ValueError):
        return False
    return head.startswith(MAGIC) and len(head) > FLAGS_AT and bool(head[FLAGS_AT] & IN_USE)


def recover(option_file: Path, data: Path, user: str, password: str) -> bool:
    """Let a server recover `data` where nobody can reach it, and end; return whether it had to keep its tail.

    Blocks, and must run in a thread that lives as long as it does. Raises OscarHaError with the server's own words.
    """
    rooms = data.with_name(f"{data.name}.recovery")
    try:
        return _recover(option_file, data, rooms, user, password)
    except OSError as error:
        raise OscarHaError(
            f"{rooms}: {error.strerror or error}", hint="free disk space, or mend the permissions"
        ) from error
    finally:
        shutil.rmtree(rooms, ignore_errors=True)


def _recover(option_file: Path, data: Path, rooms: Path, user: str, password: str) -> bool:
    usual = mariadb_backup.private_command(option_file, data, rooms)
    said = _once(usual, data, rooms, user, password)
    if said is None:
        return False
    if not mariadb_backup.REFUSES_ITS_TAIL.search(said):
        raise OscarHaError(f"no server starts on {data}: {last_words(_newest(rooms))}", hint="see the server's own log")
    log.warning("crash.tail_kept", why="it cannot be cut", data=str(data))
    keeps = mariadb_backup.keep_tail_command(option_file, data, rooms)
    if _once(keeps, data, rooms, user, password) is not None:
        raise OscarHaError(f"no server starts on {data}, not even with its tail: {last_words(_newest(rooms))}")
    return True


def _once(command: Sequence[str], data: Path, rooms: Path, user: str, password: str) -> str | None:
    """Start a server and let it end in order: None. What it said, when it does not start."""
    shutil.rmtree(rooms, ignore_errors=True)
    rooms.mkdir(mode=0o700)
    owner = data.stat()
    os.chown(rooms, owner.st_uid, owner.st_gid)
    deadline = clock.after(clock.now(), RECOVER_SECONDS_MAX * MS_PER_SECOND)
    with _started(command, rooms / "output") as server:
        while not (rooms / "socket").exists():
            if server.poll() is not None:
                return _said(rooms)
            _pause(deadline, "start")
        _shut_down(rooms / "socket", user, password)
        while server.poll() is None:
            _pause(deadline, "end")
        if server.returncode != 0:
            raise OscarHaError(f"the server ended with {server.returncode}: {last_words(_newest(rooms))}")
    return None


def _newest(rooms: Path) -> Path:
    log = rooms / mariadb_backup.PRIVATE_LOG
    return log if log.exists() else rooms / "output"


def _said(rooms: Path) -> str:
    texts = (rooms / name for name in ("output", mariadb_backup.PRIVATE_LOG))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in texts if path.exists())


def _shut_down(socket: Path, user: str, password: str) -> None:
    try:
        with closing(QuickConnection(unix_socket=str(socket), user=user, password=password,
                                     connect_timeout=SQL_SECONDS_MAX, read_timeout=SQL_SECONDS_MAX)) as connection:  # fmt: skip
            connection.cursor().execute("SHUTDOWN")
    except pymysql.MySQLError as error:
        raise OscarHaError(f"the recovered server cannot be ended: {error.args[-1]}") from error


@contextmanager
def _started(command: Sequence[str], output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server; it has ended when this ends, and it dies with us."""
    with output.open("wb") as said:  # before it opens its log
        server = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", *command), stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def _pause(deadline: clock.Nanos, what: str) -> None:
    if clock.seconds_left(deadline) == 0.0:
        raise DeadlinePassed(f"the recovered server does not {what} within {RECOVER_SECONDS_MAX:.0f} s")
    select.select([], [], [], LOOK_SECONDS)
