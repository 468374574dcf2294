"""MariaDB 10.11 behind the dialect's Protocols: all SQL that controls a server is here, and nothing decides here.

Measured on 10.11.19; the reasons are in docs/decisions/0010 to 0013. Statements that change accounts are never logged:
which accounts are locked is a fact of one server.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.connections import Connection
from pymysql.converters import escape_string

from cluster import clock
from cluster.connection import QuickConnection
from cluster.dialect import ClientSession, Doing, Load, Probe, Promoted, Replication
from cluster.errors import BadInput, CannotWrite, OscarHaError, Refused, Unreachable
from cluster.mariadb_load import load_of
from cluster.position import Position
from cluster.settings import Node, Replicator, Secrets, Settings

SEMI_SYNC_FOREVER_MS = 2**64 - 1
"""A commit waits for its acknowledgement for ever: the database never degrades by itself (TRAPS.md 5)."""
PACKET_MAX = "1G"
RELAY_LOG_BYTES_MAX = "4G"
"""What a standby may receive and not apply; then its receiver waits. The archive beside it has everything (decision 0055)."""
EXTRA_CONNECTIONS = 16
SUPER, READ_ONLY_ADMIN = 1 << 15, 1 << 33
"""Bits of `access` in mysql.global_priv: either one lets an account write to a read-only server, or make it writable."""
LOGIN_REFUSED = {1045, 1698, 4151}
NO_SUCH_SESSION = 1094
GONE = {1053, 1317, 1927, 2002, 2003, 2006, 2013, 2014, 2055}
"""Server shuts down, query interrupted, connection killed; then the client library's own."""
CANNOT_WRITE = {1021, 1026, 1030, 1036, 1114, 1290, 1598}
"""Disk full, error writing file, error of the engine, table read-only or full, --read-only, no binary log possible."""
MS_PER_SECOND = 1000
CONNECT_SECONDS_MIN = 0.05
POLL_SECONDS = 0.01

_ABLE = f"""(Host, User) IN (WITH RECURSIVE able (Host, User) AS (
 SELECT Host, User FROM mysql.global_priv WHERE CAST(JSON_VALUE(Priv, '$.access') AS UNSIGNED) & {SUPER | READ_ONLY_ADMIN}
 UNION SELECT m.Host, m.User FROM mysql.roles_mapping AS m JOIN able ON able.User = m.Role AND able.Host = ''
) SELECT Host, User FROM able)"""
_OPEN_ACCOUNT = "NOT JSON_VALUE(Priv, '$.is_role') <=> 1 AND NOT JSON_VALUE(Priv, '$.account_locked') <=> 1"
_UNLOCK = """UPDATE mysql.global_priv
 SET Priv = JSON_REMOVE(JSON_SET(Priv, '$.account_locked', false), '$.oscar_ha_locked')
 WHERE JSON_VALUE(Priv, '$.oscar_ha_locked') <=> 1"""

SCHEMA = (
    "CREATE DATABASE IF NOT EXISTS oscar_ha",
    """CREATE TABLE IF NOT EXISTS oscar_ha.epoch (
 epoch BIGINT UNSIGNED PRIMARY KEY, primary_node VARCHAR(63) NOT NULL, since DATETIME(3) NOT NULL) ENGINE=InnoDB""",
    """CREATE TABLE IF NOT EXISTS oscar_ha.heartbeat (
 id TINYINT UNSIGNED PRIMARY KEY, epoch BIGINT UNSIGNED NOT NULL, written_at DATETIME(3) NOT NULL) ENGINE=InnoDB""",
    """CREATE TABLE IF NOT EXISTS oscar_ha.verify (
 clinic VARCHAR(63) PRIMARY KEY, epoch BIGINT UNSIGNED NOT NULL, token VARCHAR(64) NOT NULL,
 written_at DATETIME(3) NOT NULL) ENGINE=InnoDB""",
)
REPLAYED = """CREATE TABLE IF NOT EXISTS oscar_ha.replayed (
 rescue VARCHAR(120) CHARACTER SET ascii NOT NULL, number BIGINT UNSIGNED NOT NULL, done_at DATETIME(3) NOT NULL,
 PRIMARY KEY (rescue, number)) ENGINE=InnoDB"""
"""Which rows of a rescue are in the cluster; made by the first replay."""


class MariaDb:
    """The dialect itself: no connection, no state."""

    def server_options(self, node: Node, settings: Settings) -> Mapping[str, str]:
        """Return the options every mariadbd of the cluster must have. Storage options stay the clinic's own."""
        options = {
            "server_id": str(node.server_id),
            "port": str(node.port),
            "pid_file": str(node.pid_file),
            "log_bin": "binlog",
            "log_bin_index": "binlog.index",
            "relay_log": "relay",
            "relay_log_recovery": "ON",
            "relay_log_space_limit": RELAY_LOG_BYTES_MAX,
            "log_slave_updates": "ON",
            "binlog_format": "ROW",
            "binlog_row_image": "FULL",
            "binlog_row_metadata": "FULL",  # archived rows name their columns (decision 0046)
            "binlog_checksum": "CRC32",
            "gtid_strict_mode": "ON",
            "sync_binlog": "1",
            "innodb_flush_log_at_trx_commit": "1",
            "max_allowed_packet": PACKET_MAX,
            "slave_max_allowed_packet": PACKET_MAX,
            "slave_net_timeout": str(-(-settings.timing.stream_deadline_ms // MS_PER_SECOND)),
            "skip_slave_start": "ON",
            # Without it a replica silently skips transactions that carry its own server id: those of its time as the
            # primary that were cut at its crash. Strict GTID mode and a semi-sync source make it take them.
            "rpl_semi_sync_slave_enabled": "ON",
            "rpl_semi_sync_master_enabled": "OFF",
            "rpl_semi_sync_master_wait_point": "AFTER_SYNC",
            "rpl_semi_sync_master_wait_no_slave": "ON",
            "rpl_semi_sync_master_timeout": str(SEMI_SYNC_FOREVER_MS),
            "init_rpl_role": "SLAVE",
            "read_only": "ON",
            "event_scheduler": "OFF",
        }
        if node.admin_port is not None:
            options |= {"extra_port": str(node.admin_port), "extra_max_connections": str(EXTRA_CONNECTIONS)}
        return options | _tls_options(settings)

    def account_statements(self, settings: Settings, secrets: Secrets) -> tuple[str, ...]:
        """Return the SQL that makes our accounts; run it in one session, as its first line keeps it out of the binlog."""
        accounts = settings.accounts
        hosts = sorted({"localhost", "127.0.0.1", "::1", *(node.host for node in settings.nodes)})
        statements = ["SET SESSION sql_log_bin = 0"]
        for host in hosts:
            statements += _account(
                accounts.admin_user, host, secrets.admin, "ALL PRIVILEGES ON *.*", suffix=" WITH GRANT OPTION"
            )
        statements += _account(
            accounts.replication_user, "%", secrets.replication, "REPLICATION SLAVE, BINLOG MONITOR ON *.*",
            require="" if settings.tls is None else " REQUIRE SSL",
        )  # fmt: skip
        statements += _account(
            accounts.verify_user, "%", secrets.verify, "SELECT, INSERT, UPDATE, DELETE ON oscar_ha.*"
        )
        return tuple(statements)

    def born_fenced_init_file(self, settings: Settings) -> str:
        """Return the init file: one statement a line; it runs before the server accepts its first connection."""
        lines = (
            "SET GLOBAL read_only = 1",
            "SET GLOBAL event_scheduler = OFF",
            "SET SESSION sql_log_bin = 0",
            _lock(settings.accounts.admin_user),
            "FLUSH PRIVILEGES",
        )
        return "".join(f"{' '.join(line.split())};\n" for line in lines)

    def connect(self, node: Node, settings: Settings, secrets: Secrets, *, deadline_ms: float) -> "MariaDbSession":
        """Return a session on the admin port, else on the port."""
        ports = [port for port in (node.admin_port, node.port) if port is not None]
        deadline = clock.after(clock.now(), deadline_ms)
        for port in ports:
            try:
                return MariaDbSession(_connect(node, port, settings, secrets, deadline_ms), settings, secrets)
            except Unreachable:
                if port == ports[-1] or clock.now() >= deadline:
                    raise
        raise Unreachable(f"node {node.name!r} has no port")  # not reached: a node always has one


class MariaDbSession:
    """One administrator's connection; see `cluster.dialect.Session` for what each method promises."""

    def __init__(self, connection: "Connection[Any]", settings: Settings, secrets: Secrets) -> None:
        self._connection = connection
        self._settings = settings
        self._secrets = secrets
        self.number = int(connection.thread_id())  # type: ignore[no-untyped-call]  # the stubs lack it
        self.server_version = str(connection.get_server_info()).removeprefix("5.5.5-")  # type: ignore[no-untyped-call]  # the stubs lack it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket without a farewell: the server may be frozen."""
        self._connection._force_close()  # type: ignore[attr-defined]  # close() would send a packet first

    def limit(self, deadline_ms: float) -> None:
        seconds = _seconds(deadline_ms)
        self._connection._read_timeout = seconds  # type: ignore[attr-defined]  # taken anew at every read; there is no setter
        self._connection._write_timeout = seconds  # type: ignore[attr-defined]  # likewise

    # -- facts ------------------------------------------------------------------------------------------------------

    def probe(self) -> Probe:
        read_only, written, applied = self._row(
            "SELECT @@global.read_only, @@global.gtid_binlog_pos, @@global.gtid_slave_pos"
        )
        return Probe(read_only=bool(read_only), position=_held(str(written or ""), str(applied or "")))

    def requirements(self, node: Node) -> list[str]:
        names = [*(one.name for one in _REQUIRED), "server_id", "init_file", "binlog_storage_engine"]
        public = self._row(f"SELECT COUNT(*) FROM mysql.global_priv WHERE User = 'PUBLIC' AND {_ABLE}")[0]
        return [
            *problems(self._variables(names), node.server_id),
            *_PUBLIC[: int(public)],
        ]

    def _slave_status(self) -> dict[str, Any] | None:
        with self._cursor() as cursor:
            self._run(cursor, "SHOW SLAVE STATUS")
            row = cursor.fetchone()
            columns = [column[0] for column in cursor.description or ()]
        return None if row is None else dict(zip(columns, row, strict=True))

    def replication(self) -> Replication | None:
        status = self._slave_status()
        if status is None:
            return None
        behind = status["Seconds_Behind_Master"]
        (complete,) = self._row(
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'RPL_SEMI_SYNC_SLAVE_STATUS'"
        )
        if status["Slave_IO_Running"] == "Yes" and complete != "ON":
            # A receiver that reaches its stop between the two questions would look like one without semi-sync.
            status = self._slave_status() or status
        return Replication(
            host=str(status["Master_Host"]),
            port=int(status["Master_Port"]),
            receiving=status["Slave_IO_Running"] == "Yes",
            applying=status["Slave_SQL_Running"] == "Yes",
            complete=complete == "ON",
            error=str(status["Last_SQL_Error"] or status["Last_IO_Error"] or ""),
            stuck=str(status["Last_SQL_Error"]) if int(status["Last_SQL_Errno"]) in _MET_IN_THE_DATA else "",
            behind_seconds=None if behind is None else float(behind),
            delay_seconds=int(status["SQL_Delay"] or 0),
            until=status["Until_Condition"] == "Gtid",
            ca_file=str(status["Master_SSL_CA_File"]) if status["Master_SSL_Verify_Server_Cert"] == "Yes" else "",
        )

    def unmet(self, *, waits: bool = True) -> tuple[str, ...]:
        return tuple(one.told(is_now) for one, is_now in self._unmet(waits))

    def meet_requirements(self, *, waits: bool = True) -> None:
        for one, _ in self._unmet(waits):
            if one.name not in _WAITS_FOR_COMMITS or not self._commits_wait():
                self._do(f"SET GLOBAL {one.name} = {one.value}")

    def _unmet(self, waits: bool) -> list[tuple["_Requirement", str]]:
        rules = [one for one in (*_REQUIRED_WHEN_OPEN, *_REQUIRED) if waits or one.name != _WAITING]
        return _broken(rules, self._variables([one.name for one in rules]))

    def _commits_wait(self) -> bool:
        (count,) = self._row(
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS"
            " WHERE VARIABLE_NAME = 'RPL_SEMI_SYNC_MASTER_WAIT_SESSIONS'"
        )
        return int(count) > 0

    def _variables(self, names: Sequence[str]) -> dict[str, str]:
        rows = self._rows(
            "SELECT VARIABLE_NAME, VARIABLE_VALUE FROM information_schema.GLOBAL_VARIABLES"
            f" WHERE VARIABLE_NAME IN ({', '.join(repr(name.upper()) for name in names)})"
        )
        return {str(name).lower(): str(value) for name, value in rows}

    def places(self) -> tuple[Path, ...]:
        data, binlog = self._row("SELECT @@global.datadir, @@global.log_bin_basename")
        return tuple(dict.fromkeys((Path(str(data)), *([Path(str(binlog)).parent] if binlog else []))))

    def load(self, writer: int | None) -> Load:
        # information_schema.PROCESSLIST makes a temporary table on the disk, which may be full or hung.
        (most,) = self._row("SELECT @@global.max_connections")
        rows = self._rows("SHOW PROCESSLIST")
        return load_of(rows, int(most), self._settings.accounts.admin_user, writer)

    def semi_sync_on(self) -> bool:
        return bool(self._row("SELECT @@global.rpl_semi_sync_master_enabled")[0])

    def columns(self, table: str) -> tuple[list[tuple[str, str, str, str | None, str]], list[tuple[str, str, str]]]:
        """Return what tables of that name consist of: (database, table, column, character set, type), and their keys."""
        columns = self._rows(
            "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, CHARACTER_SET_NAME, COLUMN_TYPE FROM information_schema.COLUMNS"
            " WHERE TABLE_NAME = %s ORDER BY TABLE_SCHEMA, ORDINAL_POSITION", table,
        )  # fmt: skip
        keys = self._rows(
            "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS"
            " WHERE TABLE_NAME = %s AND INDEX_NAME = 'PRIMARY' ORDER BY TABLE_SCHEMA, SEQ_IN_INDEX", table,
        )  # fmt: skip
        return (
            [
                (str(one[0]), str(one[1]), str(one[2]), None if one[3] is None else str(one[3]), str(one[4]))
                for one in columns
            ],
            [(str(one[0]), str(one[1]), str(one[2])) for one in keys],
        )

    def binary_logs(self) -> list[tuple[str, int]]:
        (base,) = self._row("SELECT @@global.log_bin_basename")
        folder = str(base).rpartition("/")[0]
        return [(f"{folder}/{row[0]}", int(row[1])) for row in self._rows("SHOW BINARY LOGS")]

    # -- closing ----------------------------------------------------------------------------------------------------

    def lock_accounts(self) -> int:
        self._do("SET SESSION sql_log_bin = 0")
        locked = self._do(_lock(self._settings.accounts.admin_user))
        if locked:
            self._do("FLUSH PRIVILEGES")
        return locked

    def bypassing_accounts(self) -> tuple[str, ...]:
        rows = self._rows(
            f"SELECT User, Host FROM mysql.global_priv WHERE {_bypassing(self._settings.accounts.admin_user)}"
        )
        return tuple(f"{user}@{host}" for user, host in rows)

    def close_writes(self) -> None:
        self._do("SET GLOBAL event_scheduler = OFF")
        self._do("SET GLOBAL read_only = 1")

    def closing_waits(self) -> bool:
        (count,) = self._row(
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST"
            " WHERE STATE LIKE 'Waiting for backup lock%' AND INFO LIKE 'SET GLOBAL read_only%'"
        )
        return bool(count)

    def waits_for_backup(self) -> bool:
        (count,) = self._row(
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for backup lock%'"
            " AND INFO NOT LIKE 'BACKUP STAGE%' AND INFO NOT LIKE 'SET GLOBAL read_only%'"
        )
        return bool(count)

    def client_sessions(self, keep: frozenset[int]) -> tuple[ClientSession, ...]:
        rows = self._rows(
            "SELECT ID, USER, COMMAND, IFNULL(STATE, '') FROM information_schema.PROCESSLIST"
            " WHERE USER NOT IN ('system user', 'event_scheduler', %s)"
            " AND COMMAND NOT IN ('Daemon', 'Binlog Dump') AND COMMAND NOT LIKE 'Slave%%'",
            self._settings.accounts.replication_user,
        )
        return tuple(
            ClientSession(number=int(number), user=str(user), doing=_doing(command, state))
            for number, user, command, state in rows
            if number not in keep and number != self.number
        )

    def kill(self, number: int) -> None:
        try:
            self._do(f"KILL CONNECTION {number:d}")
        except Refused as error:
            if not isinstance(error.__cause__, pymysql.MySQLError) or error.__cause__.args[0] != NO_SUCH_SESSION:
                raise

    def shut_down(self) -> None:
        self._do("SHUTDOWN")

    def commits_stop_waiting(self) -> None:
        self._do(_STOP_WAITING)

    def commits_wait_again(self) -> bool:
        self.meet_requirements()
        # One that we gave up on may still be under way, and would switch it off after us.
        (late,) = self._row("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO = %s", _STOP_WAITING)
        return not late and self.semi_sync_on()

    # -- following and opening --------------------------------------------------------------------------------------

    def follow(self, source: Replicator, *, delay_seconds: int = 0) -> None:
        self._point_to(source, delay_seconds)
        # A receiver whose source does not speak semi-sync drops transactions of its own server id and moves its
        # position past them. So the applier starts only once the receiver has shown that it does not.
        self._do("START SLAVE IO_THREAD")
        if self._receives():
            self._do("START SLAVE SQL_THREAD")

    def hold(self, source: Replicator, position: str | None) -> str:
        self._do("STOP SLAVE")
        here = self._applied()
        if position is None or Position.parse(here).covers(Position.parse(position)):
            return here
        self._point_to(source, 0)
        # UNTIL master_gtid_pos wants both threads stopped (error 1254), so the source is looked at before.
        self._do("START SLAVE IO_THREAD")
        complete = self._receives()
        self._do("STOP SLAVE")
        if complete:
            self._do("START SLAVE UNTIL master_gtid_pos = %s", position)
        return self._applied()

    def _point_to(self, source: Replicator, delay_seconds: int) -> None:
        """Set source and delay. An end that was set for the threads is forgotten only by CHANGE MASTER."""
        state = self.replication()
        ca_file = "" if self._settings.tls is None else str(self._settings.tls.ca_file)
        if state is None or (state.host, state.port, state.ca_file) != (source.host, source.port, ca_file):
            self._take_source(source, delay_seconds)
        elif state.delay_seconds != delay_seconds or state.until:
            self._do("STOP SLAVE")
            self._do("CHANGE MASTER TO MASTER_DELAY = %s", delay_seconds)

    def _take_source(self, source: Replicator, delay_seconds: int) -> None:
        self._do("STOP SLAVE")
        # Relay logs that a crash has damaged stop a replica for ever; the archive makes them expendable (TRAPS.md 20).
        self._do("RESET SLAVE ALL")
        written, applied = self._row("SELECT @@global.gtid_binlog_pos, @@global.gtid_slave_pos")
        held = _held(str(written or ""), str(applied or ""))
        if held != (applied or ""):
            self._do("SET GLOBAL gtid_slave_pos = %s", held)
        files = self._settings.tls
        secured = 0 if files is None else 1
        self._do(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
            " MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = %s, MASTER_SSL = %s,"
            " MASTER_SSL_CA = %s, MASTER_SSL_VERIFY_SERVER_CERT = %s, MASTER_DELAY = %s",
            source.host, source.port, self._settings.accounts.replication_user, self._secrets.replication,
            self._settings.timing.heartbeat_interval_ms / MS_PER_SECOND, secured,
            "" if files is None else str(files.ca_file), secured, delay_seconds,
        )  # fmt: skip

    def _receives(self) -> bool:
        """Wait a little for the receiver. False: it still tries; then a later `follow` starts the applier."""
        deadline = clock.after(clock.now(), self._settings.timing.call_deadline_ms / 2)
        while clock.seconds_left(deadline) > 0:
            state = self.replication()
            if state is not None and state.receiving and state.complete:
                return True
            if state is not None and state.receiving:
                self._do("STOP SLAVE")
                raise Refused(
                    f"{state.host}:{state.port} does not speak semi-sync: transactions of this server's own id would be skipped",
                    hint="replicate from a replicator of oscar-ha, with rpl_semi_sync_slave_enabled=ON",
                )
            time.sleep(POLL_SECONDS)
        return False

    def stop_following(self) -> None:
        self._do("STOP SLAVE")

    def stop_applying(self) -> str:
        # Stopping the receiver as well would throw its relay logs away (TRAPS.md 20).
        self._do("STOP SLAVE SQL_THREAD")
        return self._applied()

    def apply_until(self, file: str, offset: int, position: str, *, wait_seconds: float) -> str:
        # UNTIL master_gtid_pos wants both threads stopped; a place of the primary's binlog does not (decision 0041).
        wanted = Position.parse(position)
        here = self._applied()
        if Position.parse(here).covers(wanted):
            return here
        self._do("START SLAVE SQL_THREAD UNTIL MASTER_LOG_FILE = %s, MASTER_LOG_POS = %s", file, offset)
        deadline = clock.after(clock.now(), wait_seconds * MS_PER_SECOND)
        while clock.seconds_left(deadline) > 0:
            here = self._applied()
            if Position.parse(here).covers(wanted):
                return self.stop_applying()  # it would stop by itself only at the next event
            state = self.replication()
            if state is None or (state.error and not state.applying):
                raise Refused(f"it cannot apply: {state.error if state else 'it has no source'}")
            time.sleep(POLL_SECONDS / 4)
        return here

    def apply_on(self) -> None:
        self._do("STOP SLAVE SQL_THREAD")  # one that runs up to a place would end there
        self._do("START SLAVE SQL_THREAD")

    def _applied(self) -> str:
        return str(self._row("SELECT @@global.gtid_slave_pos")[0] or "")

    def applied(self, position: str, *, wait_seconds: float) -> bool:
        if not position:
            return True
        (result,) = self._row("SELECT MASTER_GTID_WAIT(%s, %s)", position, round(wait_seconds, 3))
        return bool(result == 0)

    def applying(self) -> str:
        # A table without a key is searched row by row, for minutes (TRAPS.md 21). The statement itself is patient data.
        states = self._rows(
            "SELECT STATE FROM information_schema.PROCESSLIST WHERE COMMAND IN ('Slave_SQL', 'Slave_worker')"
            " AND LOCATE('rows_log_event', STATE) > 0 LIMIT 1"
        )
        if not states:
            return ""
        tables = [
            f"{row[0]}.{row[1]}" for row in self._rows("SHOW OPEN TABLES WHERE In_use > 0 AND `Database` <> 'mysql'")
        ]
        return f"{states[0][0]} of {', '.join(sorted(tables)) or 'a table'}"

    def promote(self) -> Promoted:
        self._do("STOP SLAVE")
        self._do("RESET SLAVE ALL")
        self._do("FLUSH BINARY LOGS")
        self.meet_requirements()
        file = str(self._row("SHOW MASTER STATUS")[0])
        server_id, position = self._row("SELECT @@global.server_id, @@global.gtid_binlog_pos")
        return Promoted(server_id=int(server_id), file=file, position=str(position or ""))

    def unlock_accounts(self) -> int:
        self._do("SET SESSION sql_log_bin = 0")
        unlocked = self._do(_UNLOCK)
        if unlocked:
            self._do("FLUSH PRIVILEGES")
        return unlocked

    def open_writes(self, *, events: bool) -> None:
        self._do("SET GLOBAL read_only = 0")
        if events:
            self._do("SET GLOBAL event_scheduler = ON")

    # -- our schema -------------------------------------------------------------------------------------------------

    def make_schema(self) -> None:
        (tables,) = self._row("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'oscar_ha'")
        if int(tables) >= len(SCHEMA) - 1:
            return
        self._do("SET SESSION sql_log_bin = 1")
        for statement in SCHEMA:
            self._do(statement)

    def write_epoch(self, epoch: int, primary: str) -> None:
        self._do("INSERT IGNORE INTO oscar_ha.epoch VALUES (%s, %s, UTC_TIMESTAMP(3))", epoch, primary)

    def write_heartbeat(self, epoch: int) -> None:
        self._do("REPLACE INTO oscar_ha.heartbeat VALUES (1, %s, UTC_TIMESTAMP(3))", epoch)

    def heartbeat_age_ms(self) -> float | None:
        try:
            row = self._rows(
                "SELECT TIMESTAMPDIFF(MICROSECOND, written_at, UTC_TIMESTAMP(3)) / 1000 FROM oscar_ha.heartbeat"
            )
        except Refused:  # no such table yet: the first primary has not opened
            return None
        return max(0.0, float(row[0][0])) if row else None

    # -- below ------------------------------------------------------------------------------------------------------

    def _cursor(self) -> Any:
        return self._connection.cursor()

    def _run(self, cursor: Any, statement: str, *values: object) -> int:
        try:
            return int(cursor.execute(statement, values or None))
        except (pymysql.MySQLError, OSError) as error:
            raise _translated(error) from error

    def _do(self, statement: str, *values: object) -> int:
        with self._cursor() as cursor:
            return self._run(cursor, statement, *values)

    def _rows(self, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with self._cursor() as cursor:
            self._run(cursor, query, *values)
            return tuple(cursor.fetchall())

    def _row(self, query: str, *values: object) -> tuple[Any, ...]:
        rows = self._rows(query, *values)
        if not rows:
            raise Refused(f"the database answered {query.split()[0]} with nothing", hint="is its binary log on?")
        return rows[0]


_PUBLIC = ["everybody may write to a read-only server: REVOKE READ ONLY ADMIN, SUPER ON *.* FROM PUBLIC"]


@dataclass(frozen=True, slots=True)
class _Requirement:
    """A value that a variable must have, and what it would cost if it had not."""

    name: str
    value: str
    consequence: str

    def told(self, is_now: str) -> str:
        return f"{self.name} is {is_now}: {self.consequence}; set {self.name}={self.value}"


_WAITING = "rpl_semi_sync_master_enabled"
_STOP_WAITING = f"SET GLOBAL {_WAITING} = OFF"
_REQUIRED = (
    _Requirement("log_bin", "ON", "without a binary log nothing can be replicated"),
    _Requirement("log_slave_updates", "ON", "a standby could not be followed after a failover"),
    _Requirement("binlog_format", "ROW", "statements may do something else on a standby"),
    _Requirement("binlog_row_image", "FULL", "rows could not be rescued or rewound"),
    _Requirement("gtid_strict_mode", "ON", "two histories could mix unseen"),
    _Requirement("sync_binlog", "1", "a power cut could lose what a replicator has"),
    _Requirement("innodb_flush_log_at_trx_commit", "1", "a power cut could lose what was committed"),
    _Requirement("slave_run_triggers_for_rbr", "NO", "a trigger would run twice on a standby"),
    _Requirement("rpl_semi_sync_slave_enabled", "ON", "a returned primary would skip its own transactions unseen"),
    _Requirement("rpl_semi_sync_master_wait_point", "AFTER_SYNC", "others could read what is later lost"),
    _Requirement("binlog_checksum", "CRC32", "no replicator archives what is written"),
)
_REQUIRED_WHEN_OPEN = (
    _Requirement(
        "rpl_semi_sync_master_timeout", str(SEMI_SYNC_FOREVER_MS), "commits do not wait for ever to be acknowledged"
    ),
    _Requirement("rpl_semi_sync_master_wait_no_slave", "ON", "with no replicator there, commits are not acknowledged"),
    _Requirement(_WAITING, "ON", "commits are not acknowledged"),
)
"""What `promote` sets; a server that starts has the last one off."""
_MET_IN_THE_DATA = frozenset({1032, 1062})
"""Can't find record, Duplicate entry: the copy is not what the primary's was at this place (decision 0061)."""
_WAITS_FOR_COMMITS = frozenset({"binlog_checksum"})
"""It begins a new binlog file, which would wait behind commits that nobody acknowledges, one more session each time."""


def _broken(rules: Sequence[_Requirement], variables: Mapping[str, str]) -> list[tuple[_Requirement, str]]:
    """Return the rules that are broken, each with the value that breaks it."""
    found = [(one, variables.get(one.name, "missing")) for one in rules]
    return [(one, value) for one, value in found if value != one.value]


def problems(variables: Mapping[str, str], server_id: int) -> list[str]:
    """Return what is wrong with a server's variables, each a sentence with the mend."""
    if variables.get("binlog_storage_engine"):
        return ["binlog_storage_engine is set: such a binary log has no semi-sync; remove the option"]
    found = [one.told(value) for one, value in _broken(_REQUIRED, variables)]
    if not variables.get("init_file"):
        found.append(
            "init_file is empty: a server that has just started could be written to before its watchdog closes it;"
            " set init_file to the file with the statements of born_fenced_init_file"
        )
    if variables.get("server_id") != str(server_id):
        found.append(
            f"server_id is {variables.get('server_id')}, the settings say {server_id}:"
            f" is this the right server? set server_id={server_id}"
        )
    return found


def _connect(node: Node, port: int, settings: Settings, secrets: Secrets, deadline_ms: float) -> "Connection[Any]":
    seconds = _seconds(deadline_ms)
    try:
        return QuickConnection(
            host=node.host,
            port=port,
            user=settings.accounts.admin_user,
            password=secrets.admin,
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=seconds,
            read_timeout=seconds,
            write_timeout=seconds,
            program_name="oscar-ha",
        )
    except (pymysql.MySQLError, OSError) as error:
        if isinstance(error, pymysql.MySQLError) and error.args and error.args[0] in LOGIN_REFUSED:
            raise BadInput(
                f"{node.host}:{port} refuses the account {settings.accounts.admin_user!r} of oscar-ha",
                hint=f"mend {settings.accounts.admin_password_file}, or make the account anew",
            ) from error
        raise Unreachable(f"{node.host}:{port}: {_reason(error)}") from error


def _seconds(deadline_ms: float) -> float:
    return max(CONNECT_SECONDS_MIN, deadline_ms / MS_PER_SECOND)


def _translated(error: Exception) -> OscarHaError:
    """Return our error for what pymysql raised; the message carries no statement, so no secret."""
    number = error.args[0] if error.args else 0
    if number in GONE or not isinstance(number, int) or number == 0:
        return Unreachable(f"the database does not answer: {_reason(error)}")
    if number in CANNOT_WRITE:
        return CannotWrite(f"the database cannot write: {_reason(error)}")
    return Refused(f"the database refused: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error) or type(error).__name__


def _account(user: str, host: str, password: str, rights: str, *, suffix: str = "", require: str = "") -> list[str]:
    name = f"'{escape_string(user)}'@'{escape_string(host)}'"
    return [
        f"CREATE OR REPLACE USER {name} IDENTIFIED BY '{escape_string(password)}'{require}",
        f"GRANT {rights} TO {name}{suffix}",
    ]


def _bypassing(admin_user: str) -> str:
    return f"{_OPEN_ACCOUNT} AND User NOT IN ('{escape_string(admin_user)}', 'mariadb.sys') AND {_ABLE}"


def _lock(admin_user: str) -> str:
    return (
        "UPDATE mysql.global_priv SET Priv = JSON_SET(Priv, '$.account_locked', true, '$.oscar_ha_locked', true)"
        f" WHERE {_bypassing(admin_user)}"
    )


def _tls_options(settings: Settings) -> dict[str, str]:
    files = settings.tls
    if files is None:
        return {}
    return {
        "ssl_ca": str(files.ca_file),
        "ssl_cert": str(files.certificate_file),
        "ssl_key": str(files.private_key_file),
    }


def _doing(command: str, state: str) -> Doing:
    if command == "Killed" or state == "Killed":
        return Doing.KILLED
    if state.startswith("Waiting for semi-sync ACK"):
        return Doing.WAITING
    return Doing.IDLE if command == "Sleep" else Doing.BUSY


def _held(written: str, applied: str) -> str:
    """Return everything a server has: its binlog, or what a restored backup says it had before that."""
    one, other = Position.parse(written), Position.parse(applied)
    return str(Position.of([*other.last.values(), *one.last.values()]))
