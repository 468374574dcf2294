"""A small cluster for tests of the watchdog: real servers, real watchdog processes, a ZooKeeper that tests speak to.

Node `one` may be primary; node `two` replicates from it directly and acknowledges, in the place of a replicator. What a
controller would do is done here by hand: `make_primary` promotes, records the epoch and opens.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pymysql
from kazoo.client import KazooClient
from pymysql.connections import Connection

from cluster import clock, settings
from cluster.dialect import dialect_of
from cluster.records import EpochRecord, LineageEntry
from cluster.settings import Node, Secrets, Settings
from tests.servers import mariadb
from tests.servers.mariadb import MariaDBServer, own_tmpdir
from tests.servers.process import ServerProcess, free_port

OSCAR_HA = str(Path(sys.executable).with_name("oscar-ha"))
ACKER_HOST = "127.0.0.2"
PORTS = 16
ACKERS = (
    "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Rpl_semi_sync_master_clients'"
)
"""How many acknowledge."""
POLL_SECONDS = 0.005
WAIT_SECONDS = 30.0
SEED_MEGABYTES_PER_SECOND = 12
"""An empty server has about 18: long enough to be caught in the middle."""
WRITES_WAIT_SECONDS = 3
TIMING = {
    "session_ttl_ms": 3000,
    "lease_margin_ms": 500,
    "renew_interval_ms": 500,
    "call_deadline_ms": 1000,
    "probe_interval_ms": 50,
    "probe_deadline_ms": 1000,
    "heartbeat_interval_ms": 500,
    "stream_deadline_ms": 2000,
    "fence_deadline_ms": 2900,
    "step_deadline_ms": 8000,
}
HEALTH = {
    "storage_hung_ms": 2000,
    "write_refused_ms": 1500,
    "silent_busy_ms": 20_000,
    "late_ms": 500,
    "disk_warning_bytes": 64 * 2**20,
    "disk_full_bytes": 8 * 2**20,
}
"""As by default, but sooner, and for small disks."""
SECRETS = {"admin": "admin'secret", "replication": "replication-secret", "verify": "verify-secret", "token": "token"}
CLIENT, CLIENT_PASSWORD = "oscar", "oscar"
LOG_FILE_SIZE = "--innodb-log-file-size=16M"


def eventually(condition: Callable[[], Any], *, seconds: float = WAIT_SECONDS, what: str = "") -> Any:
    """Poll until `condition` is true and return its value; fail with `what` at the deadline."""
    deadline = clock.after(clock.now(), seconds * 1000)
    while not (value := condition()):
        assert clock.seconds_left(deadline) > 0, what or "never became true"
        time.sleep(POLL_SECONDS)
    return value


def make_settings(directory: Path, zookeeper: str, name: str, **timing: int) -> tuple[Settings, Path]:
    """Write secrets and a settings file of two nodes; return both."""
    distinct: set[int] = set()
    while len(distinct) < PORTS:
        distinct.add(free_port())
    ports = iter(distinct)
    for secret, value in SECRETS.items():
        (directory / secret).write_text(value + "\n")
        (directory / secret).chmod(0o600)
    node_ports = {"one": next(ports), "two": next(ports)}
    raw: dict[str, Any] = {
        "name": name, "zookeeper": [zookeeper], "initial_primary": "one", "sites": ["clinic", "toronto"],
        "token_file": str(directory / "token"),
        "accounts": {f"{kind}_password_file": str(directory / kind) for kind in ("admin", "replication", "verify")},
        "timing": TIMING | timing,
        "health": HEALTH,
        "nodes": [
            {"name": node, "site": site, "server_id": number, "port": node_ports[node], "admin_port": next(ports),
             "pid_file": str(directory / node / "server.pid"), "watchdog_port": next(ports),
             "data_directory": str(directory / node / "data"), "socket": str(directory / node / "s.sock"),
             "option_file": str(directory / node / "server.cnf"),
             # A server that a watchdog starts is nobody's child when that watchdog is killed: so its life is limited.
             "start_command": ["timeout", "300", "mariadbd", f"--defaults-file={directory / node / 'server.cnf'}"]}
            for number, (node, site) in enumerate((("one", "clinic"), ("two", "toronto")), start=1)
        ],
        "replicators": [
            {"site": site, "server_id": 10 + number, "host": ACKER_HOST, "port": node_ports["one"] if site == "toronto" else next(ports),
             "http_port": next(ports), "archive": str(directory / site)}
            for number, site in enumerate(("clinic", "toronto"))
        ],
        "seeding": {"megabytes_per_second_max": SEED_MEGABYTES_PER_SECOND, "writes_wait_seconds_max": WRITES_WAIT_SECONDS},
        "controllers": [{"name": "nobody", "site": "clinic", "port": next(ports)}],
    }  # fmt: skip
    path = directory / "cluster.toml"
    path.write_text(_toml(raw))
    return settings.load(path), path


def _toml(raw: Mapping[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in raw.items() if not _is_table(value)]
    for key, value in raw.items():
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, dict):
                head = f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
                lines += [head, *(f"{name} = {json.dumps(one)}" for name, one in table.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def make_template(directory: Path, some: Settings, secrets: Secrets) -> Path:
    """Make a data directory with our accounts, a root without password as OSCAR has it, and an ordinary client."""
    mariadb.install(directory, LOG_FILE_SIZE)
    statements = [
        "FLUSH PRIVILEGES",
        *dialect_of(some).account_statements(some, secrets),
        f"CREATE USER '{CLIENT}'@'%' IDENTIFIED BY '{CLIENT_PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON oscar.* TO '{CLIENT}'@'%'",
        "CREATE USER gone IDENTIFIED BY 'g' ACCOUNT LOCK", "GRANT ALL ON *.* TO gone",
        "CREATE DATABASE oscar",
        "CREATE TABLE oscar.chart (id INT PRIMARY KEY) ENGINE=InnoDB",
        "CREATE TABLE oscar.log (id INT PRIMARY KEY) ENGINE=MyISAM",
    ]  # fmt: skip
    text = ";\n".join(" ".join(one.split()) for one in statements) + ";\n"
    mariadb.bootstrap(directory, text.encode(), LOG_FILE_SIZE)
    return directory


class DatabaseNode(MariaDBServer):
    """A server as the cluster wants it; tests speak to it as our own administrator."""

    def __init__(self, node: Node, some: Settings, directory: Path, template: Path, **options: object) -> None:
        init_file = directory / "born-fenced.sql"
        directory.mkdir(parents=True, exist_ok=True)
        init_file.write_text(dialect_of(some).born_fenced_init_file(some))
        super().__init__(directory, node.server_id, template=template)
        required = dialect_of(some).server_options(node, some)
        ours = {"init_file": str(init_file), "bind_address": f"127.0.0.1,{ACKER_HOST}"}
        self.options |= {name.replace("_", "-"): value for name, value in {**required, **ours, **options}.items()}
        self.port = node.port
        self._write_option_file(directory / "server.cnf")

    def _write_option_file(self, path: Path) -> None:
        """Write what `start` gives on the command line, for a server that a watchdog starts."""
        own = {"datadir": self.datadir, "socket": self.socket, "pid-file": self.pid_file, "port": self.port}
        options = {
            **self.options,
            **own,
            "log-error": self.directory / "started.log",
            "tmpdir": own_tmpdir(self.datadir),
        }
        lines = [name if value is True else f"{name}={value}" for name, value in options.items()
                 if value is not None and value is not False]  # fmt: skip
        path.write_text("\n".join(["[mariadbd]", *lines]) + "\n")

    def kill(self) -> None:
        """Kill the server, also one that a watchdog started."""
        super().kill()
        with suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            if str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    def connect(self, user: str = "oscar_ha", password: str = SECRETS["admin"], **arguments: Any) -> "Connection[Any]":
        where: dict[str, Any] = {"unix_socket": str(self.socket)}
        if user == CLIENT:
            where = {"host": "127.0.0.1", "port": self.port, "database": "oscar"}
        defaults = {"autocommit": True, "connect_timeout": 5, "read_timeout": 30, "write_timeout": 30}
        return pymysql.connect(user=user, password=password, **(where | defaults | arguments))

    def client(self) -> "Connection[Any]":
        """Return a connection as OSCAR makes it."""
        return self.connect(CLIENT, CLIENT_PASSWORD)


class WatchdogProcess(ServerProcess):
    """`oscar-ha watchdog run` as a process, and its HTTP."""

    def __init__(self, node: Node, settings_path: Path, log_path: Path) -> None:
        super().__init__(f"watchdog {node.name}", log_path)
        self.node = node
        self.settings_path = settings_path

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch([OSCAR_HA, "watchdog", "run", "--settings", str(self.settings_path), "--node", self.node.name])
        self.wait_until(lambda: self._answers(), deadline_ms=WAIT_SECONDS * 1000, what="answering")

    def ask(self, path: str) -> tuple[int, str]:
        """GET `path`; return status and text."""
        return self._http(urllib.request.Request(self.node.watchdog_url + path))

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ask("/health")[1])
        return answer

    def tell(self, verb: str, token: str = SECRETS["token"], **body: Any) -> tuple[int, dict[str, Any]]:
        """POST a command; return status and answer."""
        status, text = self.post(verb, json.dumps(body).encode(), token)
        return status, json.loads(text)

    def post(self, verb: str, body: bytes, token: str = SECRETS["token"]) -> tuple[int, str]:
        """POST any body; return status and text."""
        headers = {"Authorization": f"Bearer {token}"}
        return self._http(urllib.request.Request(f"{self.node.watchdog_url}/v1/{verb}", data=body, headers=headers))

    def done(self, verb: str, **body: Any) -> dict[str, Any]:
        """POST a command that must succeed."""
        status, answer = self.tell(verb, **body)
        assert status == 200, answer
        return answer

    def wait_for(self, *, seconds: float = WAIT_SECONDS, **expected: Any) -> dict[str, Any]:
        """Wait until the report carries these values."""

        def there() -> dict[str, Any] | None:
            report = self.health()
            return report if all(report[name] == value for name, value in expected.items()) else None

        try:
            found: dict[str, Any] = eventually(there, seconds=seconds, what=f"never {expected}")
        except AssertionError:
            raise AssertionError(f"never {expected}: {self.health()}\n{self.log_tail()}") from None
        return found

    def is_primary(self) -> bool:
        return self.ask("/primary")[0] == 200

    def _answers(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def _http(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


class Site:
    """Two nodes and the hand of a controller."""

    def __init__(self, directory: Path, zookeeper: str, name: str, template: Path, **timing: int) -> None:
        self.directory = directory
        self.settings, self.settings_path = make_settings(directory, zookeeper, name, **timing)
        self.one = DatabaseNode(self.settings.node("one"), self.settings, directory / "one", template)
        self.two = DatabaseNode(self.settings.node("two"), self.settings, directory / "two", template)
        self._template, self._acker = template, list[MariaDBServer]()
        self.watchdog_one = self.watchdog("one")
        self.watchdog_two = self.watchdog("two")
        self.zookeeper = KazooClient(hosts=zookeeper, timeout=10)

    def watchdog(self, name: str) -> WatchdogProcess:
        return WatchdogProcess(self.settings.node(name), self.settings_path, self.directory / f"watchdog-{name}.log")

    def start(self, *, standby: bool = False) -> None:
        """Start node one and its watchdog; with `standby` node two as well."""
        self.zookeeper.start(timeout=10)
        self.one.start()
        self.watchdog_one.start()
        if standby:
            self.two.start()
            self.watchdog_two.start()

    def close(self) -> None:
        for process in (self.watchdog_one, self.watchdog_two, self.one, self.two):
            process.kill()
        for acker in self._acker:
            acker.kill()
        self.zookeeper.stop()
        self.zookeeper.close()

    def path(self, path: str) -> str:
        return f"{self.settings.root}/{path}"

    def record_epoch(self, epoch: int, primary: str, promoted: Mapping[str, Any], **more: Any) -> None:
        """Do what a controller does at the point of no return; `more` is what else the record says."""
        entry = LineageEntry(epoch=epoch, **promoted)
        record = EpochRecord(
            epoch=epoch,
            primary=primary,
            **promoted,
            since=clock.utc_now(),
            proof="test",
            lineage=(*self.lineage(), entry),
            **more,
        )
        data = json.dumps(asdict(record)).encode()
        self.zookeeper.ensure_path(self.settings.root)
        if self.zookeeper.exists(self.path("epoch")):
            self.zookeeper.set(self.path("epoch"), data)
        else:
            self.zookeeper.create(self.path("epoch"), data)

    def lineage(self) -> tuple[LineageEntry, ...]:
        if not self.zookeeper.exists(self.path("epoch")):
            return ()
        return tuple(LineageEntry(**one) for one in json.loads(self.zookeeper.get(self.path("epoch"))[0])["lineage"])

    def make_primary(self, epoch: int = 1, watchdog: WatchdogProcess | None = None, **record: Any) -> None:
        """Promote, record and open; node one unless another is given."""
        watchdog = watchdog or self.watchdog_one
        watchdog.wait_for(database="up")
        promoted = watchdog.done("promote", epoch=epoch)
        self.record_epoch(epoch, watchdog.node.name, promoted, **record)
        watchdog.done("open", epoch=epoch)
        eventually(watchdog.is_primary, what=f"never primary: {watchdog.log_tail()}")

    def make_standby(self, epoch: int = 1) -> None:
        """Let node two follow node one and acknowledge."""
        self.watchdog_two.wait_for(database="up", epoch=epoch)
        self.watchdog_two.done("follow", epoch=epoch)
        self.watchdog_two.wait_for(role="standby", replicating=True)
        eventually(lambda: self.one.value(ACKERS) == "1", what="nobody acknowledges")

    def make_acker(self) -> None:
        """Let a third server acknowledge as well, as a replicator does: then node two may stand still, or be destroyed."""
        before = int(self.one.value(ACKERS))
        acker = MariaDBServer(self.directory / "acker", 3, template=self._template)
        self._acker.append(acker)
        acker.start()
        acker.run(
            "SET GLOBAL rpl_semi_sync_slave_enabled = ON",
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {self.one.port}, MASTER_USE_GTID = slave_pos,"
            f" MASTER_USER = '{self.settings.accounts.replication_user}', MASTER_PASSWORD = '{SECRETS['replication']}'",
            "START SLAVE IO_THREAD",
        )
        eventually(lambda: int(self.one.value(ACKERS)) > before, what="the third server does not acknowledge")

    def silence_acker(self) -> None:
        """End the third server: from then on nobody acknowledges."""
        for acker in self._acker:
            acker.kill()
        eventually(lambda: self.one.value(ACKERS) == "0", what="somebody acknowledges")
