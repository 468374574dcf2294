"""What the benches of replication run: databases, ZooKeeper and replicators of a lab, and nobody who decides.

The rig plays the controller: it writes the epoch and durability records itself. Everything is in one folder with a
`lab.json`, so whatever a killed bench left behind is taken down by the next one.
"""

import os
import pwd
import secrets as random_secrets
import shutil
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError
from pymysql.connections import Connection

from chaos.lab import database, health, identity, ledger, preflight, process, remove, render, seed
from chaos.lab.build import SECRET_BYTES, SECRETS, write_certificates, write_private
from chaos.lab.layout import FOLDERS, Layout, Option, Request, settings_of
from chaos.lab.ledger import STARTING, Ledger
from chaos.lab.names import SITES, Part, node_name
from chaos.processor_time import processor_seconds
from cluster import clock, records
from cluster import settings as cluster_settings
from cluster.dialect import dialect_of
from cluster.errors import OscarHaError, Unreachable
from cluster.position import Position
from cluster.records import Durability, DurabilityRecord, EpochRecord, LineageEntry, ReplicatorReport
from cluster.settings import Settings, read_secrets

CLINIC, TORONTO, MONTREAL = SITES
TEMPLATE = "template"
CONNECT_DEADLINE_SECONDS = 5
STATEMENT_DEADLINE_SECONDS = 600
READY_DEADLINE_MS = 40_000
ANSWER_DEADLINE_SECONDS = 5
RESTING_MS, RESTING_SHARE_MAX = 3_000, 0.03
OPTIONS = {
    "innodb_buffer_pool_size": "256M",
    "innodb_log_file_size": "256M",
    "max_binlog_size": "1G",
}
"""Big enough that neither side waits for a flush or a rotation; the same for every server of a rig."""


@dataclass(frozen=True, slots=True)
class Database:
    """One running server."""

    site: str
    pid: int
    socket: Path
    port: int
    user: str
    password: str = field(repr=False)

    def connect(self) -> "Connection[Any]":
        """Return a connection of the administrator, over the socket. Raises Unreachable."""
        with _translated(self.site):
            return pymysql.connect(
                unix_socket=str(self.socket), user=self.user, password=self.password, autocommit=True,
                connect_timeout=CONNECT_DEADLINE_SECONDS, read_timeout=STATEMENT_DEADLINE_SECONDS,
                write_timeout=STATEMENT_DEADLINE_SECONDS,
            )  # fmt: skip

    def run(self, *statements: str) -> Sequence[Sequence[Any]]:
        """Run statements in one connection; return the rows of the last. Raises Unreachable."""
        with closing(self.connect()) as connection, connection.cursor() as cursor, _translated(self.site):
            for statement in statements:
                cursor.execute(statement)
            rows: Sequence[Sequence[Any]] = cursor.fetchall()
            return rows

    def value(self, query: str) -> Any:
        """Return the first column of the first row."""
        return self.run(query)[0][0]

    def position(self) -> str:
        """Return everything this server has."""
        return str(self.value("SELECT @@gtid_binlog_pos"))

    def wait_applied(self, position: str, *, deadline_ms: float) -> None:
        """Wait, without polling, until a standby has applied `position`. Raises OscarHaError with its own error."""
        if self.value(f"SELECT MASTER_GTID_WAIT('{position}', {deadline_ms / 1_000})") == 0:
            return
        with closing(self.connect()) as connection, connection.cursor(pymysql.cursors.DictCursor) as cursor:
            cursor.execute("SHOW SLAVE STATUS")
            status = cursor.fetchone() or {}
        said = {key: status.get(key) for key in ("Slave_IO_State", "Last_IO_Error", "Last_SQL_Error", "Gtid_IO_Pos")}
        raise OscarHaError(f"{self.site} has not applied {position} after {deadline_ms / 1_000:.0f} s: {said}")


class Rig:
    """Starts and ends the parts that a bench asks for. Use as a context manager.

    With `secrets_of` the rig has the accounts of that folder, so that data directories can be taken over.
    """

    def __init__(
        self, directory: Path, *, options: dict[str, str] | None = None, secrets_of: Path | None = None,
        tls: bool = False,
    ) -> None:  # fmt: skip
        self.layout = Layout(directory)
        asked = tuple(Option(name, value) for name, value in (OPTIONS | (options or {})).items())
        self._request = Request(directory=directory, options=asked, tls=tls)
        self._secrets_of = secrets_of
        self._parts = {part.name: part for part in self._request.parts}
        self._programs = preflight.programs()
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        self.lineage: list[LineageEntry] = []
        self._zookeeper: KazooClient | None = None
        self._lab: Ledger
        self.settings: Settings

    def __enter__(self) -> "Rig":
        preflight.machine()
        remove.down(self.layout.directory, keep=False)
        made = remove.make_folders(self.layout.directory)
        owner = identity.identify(os.getpid()) or identity.Identity(os.getpid(), 0)
        self._lab = Ledger(lab_id=uuid.uuid4().hex, state=STARTING, clinics=1, zookeepers=1, boot=identity.boot(),
                           owner=owner, made=made, ports=preflight.choose_ports(self._request))  # fmt: skip
        try:
            self._save(self._lab)
            self._write_files()
            self._start(self._parts["zookeeper-1"])
            self._zookeeper = KazooClient(hosts=",".join(self.settings.zookeeper))
            self._zookeeper.start(timeout=READY_DEADLINE_MS / 1_000)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._zookeeper is not None:
            self._zookeeper.stop()
            self._zookeeper.close()
        remove.take_down(self.layout, self._lab, keep=False)

    # -- databases ---------------------------------------------------------------------------------------------------

    def database(self, site: str, *, data: Path | None = None) -> Database:
        """Start the server of a site on a fresh copy of `data`, or of an empty data directory."""
        self.end(node_name(site))
        shutil.rmtree(self.data_of(site), ignore_errors=True)
        shutil.copytree(self.layout.data(TEMPLATE) if data is None else data, self.data_of(site))
        return self.database_again(site)

    def database_again(self, site: str) -> Database:
        """Start the server of a site on the data it has."""
        node = self.settings.node(node_name(site))
        self.end(node.name)
        self.layout.temporary(node.name).mkdir(exist_ok=True)
        self._start(self._parts[node.name])
        accounts, secrets = self.settings.accounts, read_secrets(self.settings)
        started = Database(site, self._lab.started[node.name].pid, self.layout.socket(node.name), node.port,
                           accounts.admin_user, secrets.admin)  # fmt: skip
        started.run("SELECT 1")
        return started

    def data_of(self, site: str) -> Path:
        """Return the data directory of a site's server."""
        return self.layout.data(node_name(site))

    def source_clause(self, host: str, port: int) -> str:
        """Return what CHANGE MASTER needs to reach a source with the replication account."""
        accounts, secrets, tls = self.settings.accounts, read_secrets(self.settings), self.settings.tls
        secured = ", master_ssl=0" if tls is None else (
            f", master_ssl=1, master_ssl_ca='{tls.ca_file}', master_ssl_verify_server_cert=1"
        )  # fmt: skip
        return (f"master_host='{host}', master_port={port}, master_user='{accounts.replication_user}',"
                f" master_password='{secrets.replication}', master_use_gtid=slave_pos, master_connect_retry=1,"
                f" master_heartbeat_period=1{secured}")  # fmt: skip

    # -- replicators -------------------------------------------------------------------------------------------------

    def replicator(self, site: str) -> int:
        """Start the replicator of a site, on the archive it has; return its pid."""
        name = f"replicator-{site}"
        self._start(self._parts[name])
        return self._lab.started[name].pid

    def pid(self, name: str) -> int:
        """Return the pid of a process by its name."""
        return self._lab.started[name].pid

    def forget_archive(self, site: str) -> None:
        """Remove the archive of a replicator that does not run."""
        shutil.rmtree(self.layout.archive(site), ignore_errors=True)

    def report(self, site: str) -> ReplicatorReport:
        """Return what a replicator says of itself."""
        url = f"{self.settings.replicator(site).url}/health"
        with closing(urllib.request.urlopen(url, timeout=ANSWER_DEADLINE_SECONDS)) as answer:
            return records.decode(ReplicatorReport, answer.read(), where="health")

    def wait_durable(self, site: str, position: str, *, deadline_ms: float) -> None:
        """Wait until a replicator has archived `position`."""
        wanted = Position.parse(position)

        def missing() -> str:
            report = self.report(site)
            here = Position.parse(report.durable or "")
            return "" if here.covers(wanted) else f"replicator-{site} has {here or 'nothing'}: {report.why}"

        process.wait_until(missing, deadline_ms=deadline_ms, what=f"{position} is not archived")

    def wait_resting(self, name: str, *, deadline_ms: float) -> None:
        """Wait until a process has done what it had to do: for seconds it used next to nothing of a core."""
        pid = self.pid(name)
        looked, used = clock.now(), processor_seconds([pid])

        def missing() -> str:
            nonlocal looked, used
            now, ms = processor_seconds([pid]), clock.ms_between(looked, clock.now())
            if ms < RESTING_MS:
                return "not looked at long enough"
            share, looked, used = (now - used) * 1_000 / ms, clock.now(), now
            return "" if share <= RESTING_SHARE_MAX else f"it uses {share:.0%} of a core"

        process.wait_until(missing, deadline_ms=deadline_ms, what=f"{name} does not come to rest")

    def wait_acknowledging(self, site: str) -> None:
        """Wait until a replicator acknowledges commits."""

        def missing() -> str:
            report = self.report(site)
            return "" if report.acknowledging else f"replicator-{site}: {report.why}"

        process.wait_until(missing, deadline_ms=READY_DEADLINE_MS, what="nobody acknowledges")

    # -- what the controller would write -----------------------------------------------------------------------------

    def begin_epoch(self, primary: Database, *, file: str, position: str, ackers: tuple[str, ...] = ()) -> None:
        """Name a primary, whose part in the history begins with `file`, and who acknowledges."""
        node = self.settings.node(node_name(primary.site))
        entry = LineageEntry(epoch=len(self.lineage) + 1, server_id=node.server_id, file=file, position=position)
        self.lineage.append(entry)
        self.name_ackers(*ackers)
        self._put("epoch", EpochRecord(
            epoch=entry.epoch, primary=node.name, server_id=node.server_id, file=file, position=position,
            since=clock.utc_now(), proof="a bench", lineage=tuple(self.lineage),
        ))  # fmt: skip

    def forget_epochs(self) -> None:
        """Be a cluster that never had a primary."""
        assert self._zookeeper is not None, "__enter__ made it"
        self.lineage.clear()
        for path in ("epoch", "durability"):
            with suppress(NoNodeError):
                self._zookeeper.delete(f"{self.settings.root}/{path}")

    def name_ackers(self, *ackers: str) -> None:
        """Record who acknowledges in the present epoch."""
        mode = Durability.SYNC if ackers else Durability.DEGRADED
        self._put("durability", DurabilityRecord(
            epoch=len(self.lineage), mode=mode, ackers=ackers, since=clock.utc_now()
        ))  # fmt: skip

    # -- below -------------------------------------------------------------------------------------------------------

    def end(self, *names: str) -> None:
        """End processes by their names, those that run."""
        running = [self._lab.started[name] for name in names if name in self._lab.started]
        process.end([one.identity for one in running])
        self._save(self._lab.only(set(self._lab.started) - {one.name for one in running}))

    def _start(self, part: Part) -> None:
        command = render.command(part, self.layout, self._programs, self._lab.ports)
        started = process.spawn(part.name, command, self.layout, self._lab.lab_id)
        self._save(self._lab.with_started(started))
        health.await_parts([part], self.settings, self._lab, self.layout, _Silent())

    def _write_files(self) -> None:
        for folder in FOLDERS:
            (self.layout.directory / folder).mkdir(mode=0o700)
        zookeeper = self._parts["zookeeper-1"]
        self.layout.data(zookeeper.name).mkdir()
        for name in SECRETS:
            write_private(self.layout.secret(name), self._secret(name) + "\n")
        if self._request.tls:
            write_certificates(self.layout)
        self.layout.settings.write_text(render.toml(settings_of(self._request, self._lab.ports)), encoding="utf-8")
        self.settings = cluster_settings.load(self.layout.settings)
        self.layout.config("zookeeper-1.cfg").write_text(
            render.zookeeper(self.layout, zookeeper, self._lab.ports, 1), encoding="utf-8"
        )
        # Not born fenced: nobody here would open it.
        init_file = self.layout.config("nothing.sql")
        init_file.write_text("SET GLOBAL event_scheduler = OFF\n", encoding="utf-8")
        for node in self.settings.nodes:
            required = dialect_of(self.settings).server_options(node, self.settings)
            text = render.option_file(self.layout, node, required, self._request.options, init_file, self._user)
            self.layout.config(f"{node.name}.cnf").write_text(text, encoding="utf-8")
        statements = database.account_statements(self.settings)
        seed.make(self._request, self._programs, self._lab.lab_id, statements, self._user, os.environ)

    def _secret(self, name: str) -> str:
        if self._secrets_of is not None:
            return (self._secrets_of / name).read_text(encoding="utf-8").strip()
        return random_secrets.token_urlsafe(SECRET_BYTES)

    def _put(self, path: str, record: object) -> None:
        assert self._zookeeper is not None, "__enter__ made it"
        full = f"{self.settings.root}/{path}"
        try:
            self._zookeeper.set(full, records.encode(record))
        except NoNodeError:
            self._zookeeper.create(full, records.encode(record), makepath=True)

    def _save(self, lab: Ledger) -> None:
        self._lab = lab
        ledger.write(self.layout, lab)


@contextmanager
def _translated(site: str) -> Iterator[None]:
    """Turn what the driver raises into an error of ours."""
    try:
        yield
    except pymysql.Error as error:
        raise Unreachable(f"the database of {site}: {error}") from error


class _Silent:
    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        """Nobody watches."""
