"""A small cluster for the replicator's tests: databases, ZooKeeper records, replicator processes; no controller.

The tests play the controller: they write the epoch and durability records themselves.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError

from cluster import clock, records
from cluster.binlog.framing import GIB
from cluster.certificates import Issued, issue, make_authority
from cluster.position import Position
from cluster.records import Acks, Durability, DurabilityRecord, EpochRecord, LineageEntry, ReplicatorReport
from cluster.settings import Tls
from replicator.keys import NO_KEYS, Keys, add_key, read_keys
from replicator.stored import StoredFile
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer
from tests.servers.process import ServerProcess, free_port

TOKEN = "token-of-the-tests"
DEADLINE_MS = 30_000
POLL_SECONDS = 0.01
SITES = ("clinic", "toronto", "montreal")


def until(condition: Callable[[], Any], *, what: str, deadline_ms: float = DEADLINE_MS) -> Any:
    """Return the first true value of `condition`; fail at the deadline."""
    deadline = clock.after(clock.now(), deadline_ms)
    while not (value := condition()):
        if clock.seconds_left(deadline) == 0.0:
            raise AssertionError(f"not within {deadline_ms} ms: {what}")
        time.sleep(POLL_SECONDS)
    return value


def free_ports(count: int) -> list[int]:
    """Return different loopback ports."""
    ports = set[int]()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


class House:
    """One database and one replicator a site, named after their sites; each is started when a test wants it."""

    def __init__(self, directory: Path, zookeeper: str, root: str, template: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.template, self.root = directory, template, root
        self.zookeeper = zookeeper
        self.servers: dict[str, MariaDBServer] = {}
        self.replicators: dict[str, ServerProcess] = {}
        free = iter(free_ports(4 * len(SITES) + 1))
        self.ports = {site: (next(free), next(free)) for site in SITES}
        self.node_ports = {site: next(free) for site in SITES}
        self.other_ports = list(free)
        self.hidden_ports: dict[str, int] = {}
        """Where a database really listens when a test has put something between it and the rest."""
        self.lineage: list[LineageEntry] = []
        self.serial = 0
        self.client = KazooClient(hosts=zookeeper)
        self.client.start()
        self.tls: Tls | None = None
        self.authority = make_authority("test")
        self.settings = directory / "cluster.toml"
        self._write_settings()

    def close(self) -> None:
        for process in self.replicators.values():
            process.kill()
        for server in self.servers.values():
            server.kill()
        self.client.stop()
        self.client.close()

    def use_tls(self) -> None:
        """From now on every replication link is TLS, with certificates of `authority`."""
        ca_file = self.directory / "authority.pem"
        ca_file.write_bytes(self.authority.certificate_pem)
        self.tls = replace(self.issue("server"), ca_file=ca_file)
        self.settings.write_text(
            self.settings.read_text() + "[tls]\n"
            + "".join(f'{name} = "{path}"\n' for name, path in asdict(self.tls).items())
        )  # fmt: skip

    def issue(self, name: str, *, authority: Issued | None = None, host: str = "127.0.0.1", days: float = 30.0) -> Tls:
        """Write a certificate and its key; return their paths."""
        files = Tls(ca_file=self.directory / "authority.pem", certificate_file=self.directory / f"{name}.pem",
                    private_key_file=self.directory / f"{name}-key.pem")  # fmt: skip
        issue(authority or self.authority, (host,), days=days).write(files.certificate_file, files.private_key_file)
        return files

    # -- databases --------------------------------------------------------------------------------------------------

    def database(self, site: str, **options: object) -> MariaDBServer:
        """Start the database of a site; one in `hidden_ports` listens there, and not where the settings say."""
        if self.tls is not None:
            options = {"ssl-ca": self.tls.ca_file, "ssl-cert": self.tls.certificate_file,
                       "ssl-key": self.tls.private_key_file} | options  # fmt: skip
        server = MariaDBServer(self.directory / f"db-{site}", SITES.index(site) + 1, template=self.template, **options)
        server.port = self.hidden_ports.get(site, self.node_ports[site])
        self.servers[site] = server
        server.start()
        return server

    def follow(
        self, site: str, *, position: str | None = None, source: str | None = None, port: int | None = None,
        until: str | None = None,
    ) -> None:  # fmt: skip
        """Make a standby replicate from the replicator of its site, or of another; with `port` through that one; to `until`."""
        statements = ["STOP SLAVE"]
        if position is not None:
            statements.append(f"SET GLOBAL gtid_slave_pos='{position}'")
        statements += [
            f"CHANGE MASTER TO master_host='127.0.0.1', master_port={port or self.ports[source or site][0]},"
            f" master_user='{REPLICATION_USER}', master_password='{REPLICATION_PASSWORD}',"
            " master_use_gtid=slave_pos, master_connect_retry=1, master_heartbeat_period=1"
            + (
                ""
                if self.tls is None
                else f", master_ssl=1, master_ssl_ca='{self.tls.ca_file}', master_ssl_verify_server_cert=1"
            ),
            "START SLAVE" if until is None else f"START SLAVE UNTIL master_gtid_pos='{until}'",
        ]
        self.servers[site].run(*statements)

    def slave_status(self, site: str) -> dict[str, Any]:
        connection = self.servers[site].connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW SLAVE STATUS")
                row = cursor.fetchone()
                return dict(zip([column[0] for column in cursor.description], row or (), strict=False))
        finally:
            connection.close()

    def position(self, site: str) -> str:
        return str(self.servers[site].value("SELECT @@gtid_binlog_pos"))

    def await_applied(self, site: str, position: str, deadline_ms: float = DEADLINE_MS) -> None:
        wanted = Position.parse(position)

        def applied() -> bool:
            return Position.parse(str(self.servers[site].value("SELECT @@gtid_slave_pos"))).covers(wanted)

        try:
            until(applied, what=f"{site} applied {position}", deadline_ms=deadline_ms)
        except AssertionError:
            status = self.slave_status(site)
            told = {key: status.get(key) for key in ("Slave_IO_Running", "Slave_SQL_Running", "Last_IO_Error",
                                                     "Last_SQL_Error", "Gtid_IO_Pos")}  # fmt: skip
            raise AssertionError(f"{site} did not apply {position}: {told}") from None

    # -- replicators ------------------------------------------------------------------------------------------------

    def replicator(self, site: str, *, wait: bool = True) -> ServerProcess:
        """Start the replicator of a site and wait until it answers, unless told not to."""
        process = self.replicators.setdefault(site, ServerProcess(f"replicator {site}", self.directory / f"{site}.log"))
        process.launch([str(Path(sys.executable).parent / "oscar-ha"), "replicator", "run",
                        "--settings", str(self.settings), "--site", site])  # fmt: skip
        if wait:
            process.wait_until(lambda: self.health(site) is not None, deadline_ms=DEADLINE_MS, what="answering")
        return process

    def archive(self, site: str) -> Path:
        return self.directory / f"archive-{site}"

    def health(self, site: str) -> ReplicatorReport | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[site][1]}/health", timeout=5) as answer:
                return records.decode(ReplicatorReport, answer.read(), where="health")
        except OSError:
            return None

    def await_health(self, site: str, condition: Callable[[ReplicatorReport], Any], *, what: str) -> ReplicatorReport:
        def satisfied() -> ReplicatorReport | None:
            report = self.health(site)
            return report if report is not None and condition(report) else None

        try:
            report = until(satisfied, what=f"{site}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.health(site)}\n{self.replicators[site].log_tail()}") from None
        assert isinstance(report, ReplicatorReport)
        return report

    def await_durable(self, site: str, position: str) -> ReplicatorReport:
        wanted = Position.parse(position)
        return self.await_health(
            site, lambda report: report.durable is not None and Position.parse(report.durable).covers(wanted),
            what=f"durable {position}",
        )  # fmt: skip

    def post(self, site: str, path: str, **body: object) -> tuple[int, dict[str, Any]]:
        """Return status and answer of a call with the token."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[site][1]}{path}", data=json.dumps(body).encode(), method="POST",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    # -- what the controller would write ----------------------------------------------------------------------------

    def begin_epoch(self, site: str, *, ackers: tuple[str, ...] = (), acks: Acks = Acks.ONE) -> EpochRecord:
        """Name the database of `site` primary of the next epoch, from its present binlog file on."""
        server = self.servers[site]
        server.run("FLUSH BINARY LOGS")
        file = str(server.run("SHOW MASTER STATUS")[0][0])
        entry = LineageEntry(epoch=len(self.lineage) + 1, server_id=server.server_id, file=file,
                             position=str(server.value("SELECT @@gtid_binlog_pos")))  # fmt: skip
        self.lineage.append(entry)
        record = EpochRecord(
            epoch=entry.epoch, primary=site, server_id=server.server_id, file=file, position=entry.position,
            since=clock.utc_now(), proof="a test", lineage=tuple(self.lineage),
        )  # fmt: skip
        if ackers:
            self.name_ackers(*ackers, epoch=entry.epoch, acks=acks)
        self.put("epoch", record)
        return record

    def name_ackers(self, *ackers: str, epoch: int, acks: Acks = Acks.ONE) -> int:
        """Write who acknowledges; return the serial of the record."""
        self.serial += 1
        record = DurabilityRecord(epoch=epoch, mode=Durability.SYNC, ackers=ackers, acks=acks, since=clock.utc_now(),
                                  serial=self.serial)  # fmt: skip
        self.put("durability", record)
        return self.serial

    def put(self, path: str, record: object) -> None:
        full = f"{self.root}/{path}"
        try:
            self.client.set(full, records.encode(record))
        except NoNodeError:
            self.client.create(full, records.encode(record), makepath=True)

    def archive_rules(self, **rules: object) -> None:
        """Add the section of the archive to the settings; before a replicator is started."""
        lines = ["[archive]", *(f"{name} = {json.dumps(value)}" for name, value in rules.items())]
        self.settings.write_text(self.settings.read_text() + "\n".join(lines) + "\n")

    def encrypt(self) -> Keys:
        """Have every archive encrypted from its first byte; return the keys."""
        path = self.directory / "archive.keys"
        add_key(path)
        self.archive_rules(key_file=str(path))
        return read_keys(path)

    def archived(self, site: str, file: str, *, epoch: int = 1, keys: Keys = NO_KEYS) -> bytes:
        """Return the primary's bytes of a file in the archive of a site."""
        (folder,) = (self.archive(site) / "epochs").glob(f"{epoch:010d}-*")
        with closing(StoredFile(folder / file, keys).open()) as reader:
            return bytes(reader.read(0, GIB))

    def _write_settings(self) -> None:
        for name, secret in (("token", TOKEN), ("admin", "x"), ("repl", REPLICATION_PASSWORD), ("verify", "x")):
            path = self.directory / f"{name}.secret"
            path.write_text(secret + "\n")
            path.chmod(0o600)
        lines = [
            'name = "test"', f'zookeeper = ["{self.zookeeper}"]', 'initial_primary = "clinic"',
            f"sites = {json.dumps(SITES)}", f'token_file = "{self.directory}/token.secret"',
            "[accounts]", f'admin_password_file = "{self.directory}/admin.secret"',
            f'replication_user = "{REPLICATION_USER}"', f'replication_password_file = "{self.directory}/repl.secret"',
            f'verify_password_file = "{self.directory}/verify.secret"',
            "[timing]", "session_ttl_ms = 4000", "lease_margin_ms = 500", "renew_interval_ms = 500",
            "call_deadline_ms = 2000", "stream_deadline_ms = 2000", "heartbeat_interval_ms = 500",
        ]  # fmt: skip
        for number, site in enumerate(SITES, 1):
            lines += ["[[nodes]]", f'name = "{site}"', f'site = "{site}"', f"server_id = {number}",
                      f"port = {self.node_ports[site]}", f"watchdog_port = {self.other_ports[number]}",
                      f'pid_file = "{self.directory}/db-{site}/server.pid"']  # fmt: skip
            lines += ["[[replicators]]", f'site = "{site}"', f"server_id = {100 + number}",
                      f"port = {self.ports[site][0]}", f"http_port = {self.ports[site][1]}",
                      f'archive = "{self.archive(site)}"']  # fmt: skip
        lines += ["[[controllers]]", 'name = "one"', 'site = "clinic"', f"port = {self.other_ports[0]}"]
        root_name = self.root.rsplit("/", 1)[1]
        lines[0] = f'name = "{root_name}"'
        self.settings.write_text("\n".join(lines) + "\n")
