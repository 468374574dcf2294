"""A real MariaDB 10.11 in its own directory on free loopback ports, for tests.

Its data directory is copied from a template that is made once (`make_template`, or the session fixture
`mariadb_template`). The options are those a node of ours needs; give others as keyword arguments, `None` removes one.
Everything ends with the process that started it, also when that process is killed: so start servers from the main
thread, because the kernel ends them with the *thread* that started them.
"""

import getpass
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.connections import Connection

from tests.servers.process import ServerFailed, ServerProcess, free_port

START_DEADLINE_MS = 60_000
MAKE_SECONDS = 100
SEMI_SYNC_FOREVER_MS = 2**63 - 1
ADMIN = "root"
REPLICATION_USER, REPLICATION_PASSWORD = "oscar_ha_repl", "replication-secret"

DEFAULTS: dict[str, object] = {
    "user": getpass.getuser(),
    "bind-address": "127.0.0.1",
    "skip-name-resolve": True,
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "binlog-checksum": "CRC32",
    "gtid-strict-mode": "ON",
    "log-slave-updates": "ON",
    "sync-binlog": 1,
    "slave-net-timeout": 4,
    "slave-max-allowed-packet": "1G",
    "max-allowed-packet": "256M",
    "performance-schema": "OFF",
    "innodb-buffer-pool-size": "64M",
    "innodb-log-file-size": "16M",
    "aria-log-file-size": "8M",
    "skip-slave-start": True,
}


def make_template(directory: Path, **options: object) -> Path:
    """Make a data directory with an administrator `root` without password and a replication account."""
    more = _arguments({name.replace("_", "-"): value for name, value in options.items()})
    more += ["--innodb-log-file-size=16M", "--aria-log-file-size=8M"]
    install(directory, *more)
    accounts = directory.parent / f"{directory.name}.accounts.sql"
    accounts.write_text(
        "FLUSH PRIVILEGES;\n"
        f"CREATE USER {REPLICATION_USER}@'%' IDENTIFIED BY '{REPLICATION_PASSWORD}';\n"
        f"GRANT REPLICATION SLAVE, BINLOG MONITOR, REPLICATION SLAVE ADMIN ON *.* TO {REPLICATION_USER}@'%';\n"
    )
    bootstrap(directory, accounts.read_bytes(), *more)
    return directory


def install(directory: Path, *options: str) -> None:
    """Make a data directory with an administrator `root` without password. Raises ServerFailed with what was said."""
    _run("mariadb-install-db", directory, "--skip-test-db", "--auth-root-authentication-method=normal", *options)


def bootstrap(directory: Path, statements: bytes, *options: str) -> None:
    """Run statements in a data directory of which no server runs. Raises ServerFailed with what was said."""
    _run("mariadbd", directory, "--bootstrap", *options, statements=statements)


def own_tmpdir(directory: Path) -> Path:
    """Make and return the folder for the temporary tables of one server: one that starts removes those of all others
    in the same folder, and they crash or fail with error 6 (decision 0060)."""
    made = directory.with_name(f"tmp-{directory.name}")
    made.mkdir(parents=True, exist_ok=True)
    return made


def _run(program: str, directory: Path, *options: str, statements: bytes = b"") -> None:
    command = [program, "--no-defaults", f"--datadir={directory}", f"--user={getpass.getuser()}",
               f"--tmpdir={own_tmpdir(directory)}", *options]  # fmt: skip
    done = subprocess.run(
        command, input=statements, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=MAKE_SECONDS, check=False
    )
    if done.returncode != 0:
        raise ServerFailed(f"{program} ended with {done.returncode}:\n{done.stdout.decode(errors='replace')}")


class MariaDBServer:
    """One server process. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, directory: Path, server_id: int, *, template: Path | None = None, **options: object) -> None:
        self.directory = directory
        self.server_id = server_id
        self.host = "127.0.0.1"
        self.port = free_port()
        self.options = DEFAULTS | {"server-id": server_id} | {
            name.replace("_", "-"): value for name, value in options.items()
        }  # fmt: skip
        self.datadir = directory / "data"
        self.socket = directory / "s.sock"
        self.pid_file = directory / "server.pid"
        self.process = ServerProcess(f"mariadbd {server_id}", directory / "server.log")
        directory.mkdir(parents=True, exist_ok=True)
        if not self.datadir.exists():
            if template is None:
                make_template(self.datadir)
            else:
                shutil.copytree(template, self.datadir)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def binlogs(self) -> list[Path]:
        """Return the binlog files, oldest first."""
        return sorted(self.datadir.glob("binlog.[0-9]*"))

    def start(self, **more: object) -> None:
        """Start and wait until it answers. `more` options count for this start only."""
        options = self.options | {name.replace("_", "-"): value for name, value in more.items()}
        command = ["mariadbd", "--no-defaults", f"--datadir={self.datadir}", f"--socket={self.socket}",
                   f"--pid-file={self.pid_file}", f"--port={self.port}", f"--tmpdir={own_tmpdir(self.datadir)}",
                   *_arguments(options)]  # fmt: skip
        self.process.launch(command)
        self.process.wait_until(self._answers, deadline_ms=START_DEADLINE_MS, what="answering")

    def stop(self) -> None:
        """Ask it to end and wait; kill it when it does not."""
        self.process.stop()

    def kill(self) -> None:
        """Kill -9 and wait until the process is gone. Safe to repeat."""
        self.process.kill()

    def restart(self, **more: object) -> None:
        """Stop and start again with the same data and port."""
        self.stop()
        self.start(**more)

    def freeze(self) -> None:
        """Send SIGSTOP: the sockets stay open and nothing answers."""
        self.process.freeze()

    def thaw(self) -> None:
        """Send SIGCONT."""
        self.process.thaw()

    def connect(self, user: str = ADMIN, password: str = "", **arguments: Any) -> "Connection[Any]":
        """Return a connection over the socket for the administrator, over TCP for everybody else; autocommit."""
        where: dict[str, Any] = (
            {"unix_socket": str(self.socket)} if user == ADMIN else {"host": self.host, "port": self.port}
        )
        defaults = {"autocommit": True, "connect_timeout": 5, "read_timeout": 60, "write_timeout": 60}
        return pymysql.connect(user=user, password=password, **(where | defaults | arguments))

    def run(self, *statements: str) -> Any:
        """Run statements as the administrator in one connection; return the rows of the last."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchall()
        finally:
            connection.close()

    def value(self, query: str) -> Any:
        """Return the first column of the first row, None when there is none."""
        rows = self.run(query)
        return rows[0][0] if rows else None

    def _answers(self) -> bool:
        # PyMySQL leaves its socket open when it is refused: so look first whether anybody listens.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)) != 0:
                return False
        try:
            self.connect().close()
        except pymysql.Error:
            return False
        return True


def _arguments(options: dict[str, object]) -> list[str]:
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not None and value is not False
    ]
