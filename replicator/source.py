"""The connection to a source: a primary database, or another replicator. Set-up by PyMySQL, then raw packets.

Nothing of a binlog is asked for before the source has proved that it is the one we mean, and that its history agrees
with what is archived here: `BINLOG_GTID_POS(file, offset)` must be the position we have there.
"""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import pymysql

from cluster import clock, tls
from cluster.binlog.events import FIRST_OFFSET, NO_CHECKSUMS
from cluster.clock import NANOS_PER_MS
from cluster.errors import BadInput, Diverged, MalformedStream, OscarHaError, Refused, Unreachable
from cluster.position import Position
from cluster.settings import Settings, Timing, Tls
from replicator.archive import Resume
from replicator.driver import SetupConnection, code_of
from replicator.link import Link
from replicator.receiving import U32_MASK
from replicator.remedy import NotThere, error_for

SLAVE_CAPABILITY_GTID = 4
DUMP_NON_BLOCK = 0x01
DUMP_ANNOTATE = 0x02
COM_REGISTER_SLAVE, COM_BINLOG_DUMP = 0x15, 0x12
EPOCH_VARIABLE, CLUSTER_VARIABLE = "@oscar_ha_epoch", "@oscar_ha_cluster"
ERROR_CHARACTERS_MAX = 300
_DUMP = Struct("<BIHI")
_REGISTER = Struct("<BI")
_LENGTH = Struct("<I")


class NotTrusted(Refused):
    """The source's certificate is not of our authority, has expired, or names another host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a stream comes from."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    our_server_id: int
    tls: Tls | None = None
    """Then nothing is sent, and nothing believed, without TLS and the certificate of `host`."""
    expected_server_id: int | None = None
    """The identity a primary must have; None for another replicator."""
    cluster: str | None = None
    """Our cluster, by which another replicator refuses us when it is of another one."""


def known_server_ids(settings: Settings) -> frozenset[int]:
    """Return every server id that connects for the cluster."""
    named = {node.server_id for node in settings.nodes} | {one.server_id for one in settings.replicators}
    return frozenset(named | {mending_server_id(settings, one.site) for one in settings.replicators})


def mending_server_id(settings: Settings, site: str) -> int:
    """Return the id a replicator fetches single files with, while its own id is in use (TRAPS.md 10)."""
    named = {node.server_id for node in settings.nodes} | {one.server_id for one in settings.replicators}
    sites = sorted(one.site for one in settings.replicators)
    free = (number for number in range(U32_MASK, 0, -1) if number not in named)
    return next(number for at, number in enumerate(free) if at == sites.index(site))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of the source."""

    resume: Resume
    semi_sync: bool = False
    epoch: int | None = None
    """Set when the source is a replicator: the epoch to read."""
    permitted: Callable[[], bool] = lambda: True
    """Asked at the last moment before the dump: connecting at an offset is itself an acknowledgement (TRAPS.md 5)."""
    until_end: bool = False
    """End the stream at the end of what the source has."""

    @property
    def asked_offset(self) -> int:
        """Return the offset to name: a dump command has no room for one above 4 GiB, then all of the file comes."""
        return self.resume.offset if self.resume.offset <= U32_MASK else FIRST_OFFSET


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that was asked for."""

    socket: Link
    server_version: str


@contextmanager
def opened(target: Target, wanted: Wanted, timing: Timing) -> Iterator[Opened]:
    """Connect, check, and ask for the binlog. Raises Unreachable to try again, other errors for a person."""
    connection = _connect(target, timing)
    try:
        with translated():
            version = _prepare(connection, target, wanted, timing)
            _ask(connection, target, wanted)
        yield Opened(Link(connection.wire), version)
    finally:
        with suppress(Exception):
            connection.give_up()


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the driver, TLS and the operating system raise into errors of ours."""
    try:
        yield
    except OscarHaError:
        raise
    except Exception as error:  # noqa: BLE001 - the driver meets bytes it did not expect, and no bug of ours is below
        raise _ours(error) from None


def _ours(error: Exception) -> OscarHaError:
    # The driver hides what happened while it connected behind an error of its own.
    match getattr(error, "original_exception", error):
        case pymysql.err.MySQLError() as said:
            return error_for(*code_of(said))
        case ssl.SSLCertVerificationError() as refused:
            return NotTrusted(f"the source's certificate is not believed: {refused.verify_message}",
                              hint="is it the right host, with a certificate of the authority in tls.ca_file?")  # fmt: skip
        case ssl.SSLError() as failed:
            return Unreachable(f"no TLS with the source: {failed.reason or failed}")
        case OSError() | EOFError() as lost:
            return Unreachable(f"the source: {lost or type(lost).__name__}")
        case strange:
            return MalformedStream(f"the source answers what no database does: {strange!r}"[:ERROR_CHARACTERS_MAX])


def _connect(target: Target, timing: Timing) -> SetupConnection:
    deadline = clock.after(clock.now(), timing.call_deadline_ms)
    context = None if target.tls is None else tls.client_context(target.tls)
    # Our own socket, because the driver leaves its socket open when the connection is refused.
    with translated():
        raw = socket.create_connection((target.host, target.port), timeout=timing.call_deadline_ms / 1000)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with translated():
            return SetupConnection(raw, deadline=deadline, host=target.host, user=target.user,
                                   password=target.password, context=context)  # fmt: skip
    except OscarHaError:
        raw.close()
        raise


def _prepare(connection: SetupConnection, target: Target, wanted: Wanted, timing: Timing) -> str:
    with connection.cursor() as cursor:
        if wanted.epoch is None:
            require_fit(_variables(cursor), target)
        else:
            if target.cluster is not None:
                cursor.execute(f"SET {CLUSTER_VARIABLE} = '{target.cluster}'")
            cursor.execute(f"SET {EPOCH_VARIABLE} = {wanted.epoch:d}")
        _require_same_history(cursor, wanted.resume)
        heartbeat_nanos = timing.heartbeat_interval_ms * NANOS_PER_MS
        statements = [
            "SET @master_binlog_checksum = @@global.binlog_checksum",
            f"SET @mariadb_slave_capability = {SLAVE_CAPABILITY_GTID}",
            f"SET @master_heartbeat_period = {heartbeat_nanos}",
        ]
        if wanted.semi_sync:
            statements.append("SET @rpl_semi_sync_slave = 1")
        for statement in statements:
            cursor.execute(statement)
    return str(connection.get_server_info())  # type: ignore[no-untyped-call]  # pymysql is not fully typed


def _variables(cursor: Any) -> dict[str, str]:
    cursor.execute(
        "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_id', 'binlog_format', 'binlog_checksum', 'log_bin',"
        " 'gtid_strict_mode', 'binlog_storage_engine', 'encrypt_binlog')"
    )
    return {str(name).lower(): str(value) for name, value in cursor.fetchall()}


def require_fit(variables: dict[str, str], target: Target) -> None:
    """Raise unless a database is the one we mean and writes a binlog that can be archived."""
    identity = variables.get("server_id", "")
    if identity != str(target.expected_server_id):
        raise Refused(f"the database at {target.host}:{target.port} has server_id {identity},"
                      f" the epoch's primary has {target.expected_server_id}",
                      hint="the settings name the wrong address, or another server took its place")  # fmt: skip
    if variables.get("binlog_storage_engine"):
        raise BadInput("the primary keeps its binlog in InnoDB, which has no semi-synchronous replication",
                       hint="unset binlog_storage_engine")  # fmt: skip
    required = {"log_bin": "ON", "binlog_format": "ROW", "gtid_strict_mode": "ON", "binlog_checksum": "CRC32",
                "encrypt_binlog": "OFF"}  # fmt: skip
    wrong = [f"{name}={variables.get(name)} instead of {value}" for name, value in required.items()
             if variables.get(name, value).upper() != value]  # fmt: skip
    if wrong:
        unarchivable = variables.get("binlog_checksum", "CRC32").upper() != "CRC32"
        hint = NO_CHECKSUMS if unarchivable else "mend its configuration and restart it"
        raise BadInput(f"the primary has {', '.join(wrong)}", hint=hint)


def _require_same_history(cursor: Any, resume: Resume) -> None:
    if resume.offset == FIRST_OFFSET:
        return  # the file's own Gtid_list says it
    if resume.offset > U32_MASK:
        return  # the function has no room for it; the file comes again from its beginning, and says it on the way
    cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (resume.file, resume.offset))
    (stated,) = cursor.fetchone()
    if stated is None:
        raise NotThere(f"the source has no {resume.file}:{resume.offset}",
                       hint="its binlog was cut, purged or reset; another replicator may have the rest")  # fmt: skip
    if Position.parse(str(stated)) != resume.position:
        raise Diverged(f"at {resume.file}:{resume.offset} the source is at {stated or 'nothing'},"
                       f" our archive at {resume.position or 'nothing'}",
                       hint="the two histories are not one; nothing is rewound by itself")  # fmt: skip


def _ask(connection: SetupConnection, target: Target, wanted: Wanted) -> None:
    # Server id, then empty host, user, password; port, rank and master id are zero.
    connection.command(_command(_REGISTER.pack(COM_REGISTER_SLAVE, target.our_server_id) + bytes(3 + 2 + 4 + 4)))
    if not wanted.permitted():
        raise Unreachable("what we may do changed while we connected")
    flags = DUMP_ANNOTATE | (DUMP_NON_BLOCK if wanted.until_end else 0)
    dump = _DUMP.pack(COM_BINLOG_DUMP, wanted.asked_offset, flags, target.our_server_id)
    connection.send(_command(dump + wanted.resume.file.encode()))


def _command(payload: bytes) -> bytes:
    if len(payload) > U32_MASK >> 8:
        raise MalformedStream(f"a command of {len(payload)} bytes")
    return _LENGTH.pack(len(payload))[:3] + b"\0" + payload


def acknowledgement(file: str, offset: int) -> bytes:
    """Return the packet that acknowledges everything up to `offset` of `file`."""
    payload = b"\xef" + offset.to_bytes(8, "little") + file.encode()
    return _LENGTH.pack(len(payload))[:3] + b"\0" + payload
