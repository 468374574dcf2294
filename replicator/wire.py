"""The primary's side of the client-server protocol, as far as replicas use it. No IO: bytes in, values out, and back.

Source: MariaDB Knowledge Base, "Connection", "Result Set Packets" and "Replication Protocol".
"""

import hmac
import re
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from struct import Struct
from typing import NamedTuple

from cluster.binlog.events import GroupTracker, Kind, gtid_of
from cluster.binlog.framing import (
    PART_BYTES_MAX,
    EventHeader,
    packet,
    whole_events,
)
from cluster.errors import MalformedStream
from cluster.position import Position
from replicator.packets import framed

NATIVE = b"mysql_native_password"
SERVER_VERSION = b"5.5.5-10.11.0-MariaDB-oscar-ha"
"""Replicas take the major version of their source from this text; `5.5.5-` is how MariaDB says it is none of MySQL's."""
SALT_BYTES = 20
CLIENT_CONNECT_WITH_DB, CLIENT_SSL, CLIENT_PLUGIN_AUTH, CLIENT_LENENC_AUTH = 0x8, 0x800, 0x80000, 0x200000
CAPABILITIES = (
    0x1 | 0x2 | 0x4 | CLIENT_CONNECT_WITH_DB | 0x200 | 0x2000 | 0x8000 | CLIENT_PLUGIN_AUTH | 0x10000 | 0x20000
)
STATUS_AUTOCOMMIT = 2
UTF8_GENERAL = 33
COM_QUIT, COM_INIT_DB, COM_QUERY, COM_PING, COM_BINLOG_DUMP, COM_REGISTER_SLAVE = 0x01, 0x02, 0x03, 0x0E, 0x12, 0x15
ER_ACCESS_DENIED, ER_TOO_MANY, ER_PARSE, ER_UNKNOWN_COMMAND, ER_BINLOG = 1045, 1040, 1064, 1047, 1236
ER_NO_TLS = 3159
"""What a database answers where TLS is required."""
ER_UNKNOWN, ER_SAME_SERVER_ID = 1105, 4052
LEAD, LEAD_SEMI_SYNC = b"\0", b"\0\xef\0"
"""What stands before each event: OK; with semi-synchronous replication the mark, and that no reply is asked for."""
_GREETING = Struct("<H")
_RESPONSE = Struct("<IIB23x")
_DUMP = Struct("<IHI")
_SHORT = Struct("<H")
_SET = re.compile(r"\s*SET\s+@(\w+)\s*=\s*(.*?)\s*;?\s*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Login:
    """What a client answers to the greeting."""

    user: str
    proof: bytes
    plugin: bytes


class Dump(NamedTuple):
    """A COM_BINLOG_DUMP."""

    offset: int
    flags: int
    server_id: int
    file: str


def salt() -> bytes:
    """Return a challenge without bytes that would end or quote it."""
    return bytes(secrets.choice(range(0x30, 0x7B)) for _ in range(SALT_BYTES))


def greeting(challenge: bytes, connection_id: int, *, tls: bool = False) -> bytes:
    """Return the payload of the first packet."""
    capabilities = CAPABILITIES | (CLIENT_SSL if tls else 0)
    return (
        b"\x0a" + SERVER_VERSION + b"\0" + connection_id.to_bytes(4, "little") + challenge[:8] + b"\0"
        + _GREETING.pack(capabilities & 0xFFFF) + bytes((UTF8_GENERAL,)) + _GREETING.pack(STATUS_AUTOCOMMIT)
        + _GREETING.pack(capabilities >> 16) + bytes((SALT_BYTES + 1,)) + bytes(10) + challenge[8:] + b"\0" + NATIVE + b"\0"
    )  # fmt: skip


def asks_for_tls(payload: bytes) -> bool:
    """Return whether a client's first packet is only its wish to go on in TLS."""
    return len(payload) == _RESPONSE.size and bool(_RESPONSE.unpack(payload)[0] & CLIENT_SSL)


def login_of(payload: bytes) -> Login:
    """Return what a handshake response says. Raises MalformedStream."""
    try:
        capabilities, _, _ = _RESPONSE.unpack_from(payload)
        user, rest = payload[_RESPONSE.size :].split(b"\0", 1)
        length = rest[0]
        if length > 250:
            raise MalformedStream("a handshake with an overlong proof")
        proof, rest = rest[1 : 1 + length], rest[1 + length :]
        if capabilities & CLIENT_CONNECT_WITH_DB:
            rest = rest.split(b"\0", 1)[1]
        plugin = rest.split(b"\0", 1)[0] if capabilities & CLIENT_PLUGIN_AUTH else NATIVE
        return Login(user.decode(errors="replace"), proof, plugin)
    except (ValueError, IndexError, struct.error) as error:
        raise MalformedStream("a handshake response that is cut off") from error


def switch_to_native(challenge: bytes) -> bytes:
    """Return the payload that asks for the proof again, made with mysql_native_password."""
    return b"\xfe" + NATIVE + b"\0" + challenge + b"\0"


def native_proof(password: str, challenge: bytes) -> bytes:
    """Return the proof of `password` for `challenge`."""
    stage_one = sha1(password.encode()).digest()
    mask = sha1(challenge + sha1(stage_one).digest()).digest()
    return bytes(left ^ right for left, right in zip(stage_one, mask, strict=True))


def proves(login_user: str, proof: bytes, *, user: str, password: str, challenge: bytes) -> bool:
    """Return whether user and proof are right; takes the same time whichever is wrong."""
    right_user = hmac.compare_digest(login_user.encode(), user.encode())
    right_proof = hmac.compare_digest(proof, native_proof(password, challenge))
    return right_user and right_proof


def ok() -> bytes:
    """Return the payload that says: done."""
    return b"\0\0\0" + _SHORT.pack(STATUS_AUTOCOMMIT) + b"\0\0"


def end() -> bytes:
    """Return an EOF payload: the end of columns, of rows, of a stream."""
    return b"\xfe\0\0" + _SHORT.pack(STATUS_AUTOCOMMIT)


def error(code: int, message: str, *, state: str = "HY000") -> bytes:
    """Return an error payload."""
    return b"\xff" + _SHORT.pack(code) + b"#" + state.encode() + message.encode()[:500]


def rows(columns: Sequence[str], values: Sequence[Sequence[str | None]]) -> list[bytes]:
    """Return the payloads of a result set of texts."""
    answer = [bytes((len(columns),))]
    answer.extend(_column(name) for name in columns)
    answer.append(end())
    answer.extend(b"".join(b"\xfb" if value is None else _text(value) for value in row) for row in values)
    answer.append(end())
    return answer


def _column(name: str) -> bytes:
    described = _SHORT.pack(UTF8_GENERAL) + (1024).to_bytes(4, "little") + b"\xfd" + _SHORT.pack(0) + bytes(3)
    return _text("def") + _text("") * 3 + _text(name) + _text("") + b"\x0c" + described


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > 250:
        return b"\xfc" + _SHORT.pack(len(data)) + data
    return bytes((len(data),)) + data


def assignment(query: str) -> tuple[str, str] | None:
    """Return name and value of `SET @name = value`, quotes removed; None for any other query."""
    match = _SET.fullmatch(query)
    return None if match is None else (match.group(1).lower(), match.group(2).strip("'\""))


def dump_of(payload: bytes) -> Dump:
    """Return what a COM_BINLOG_DUMP asks for. Raises MalformedStream."""
    if len(payload) < 1 + _DUMP.size:
        raise MalformedStream("a dump command that is cut off")
    offset, flags, server_id = _DUMP.unpack_from(payload, 1)
    return Dump(offset, flags, server_id, payload[1 + _DUMP.size :].rstrip(b"\0").decode(errors="replace"))


class EventPackets:
    """Puts events into packets of a stream; keeps the sequence number, and leaves out groups a replica has."""

    def __init__(self, sequence: int, *, semi_sync: bool = False) -> None:
        self._sequence = sequence
        self._lead = LEAD_SEMI_SYNC if semi_sync else LEAD
        self._skipped: Position | None = None
        self._tracker: GroupTracker | None = None
        self._skipping = False

    def skip(self, skipped: Position | None, position: Position) -> None:
        """Leave out the groups that `skipped` covers, beginning at `position`, until all are passed."""
        self._skipped = skipped
        self._tracker = None if skipped is None else GroupTracker(position)

    def payload(self, payload: bytes) -> bytes:
        """Return any payload as the next packet or packets."""
        data = packet(payload, self._sequence)
        self._sequence = (self._sequence + 1 + len(payload) // PART_BYTES_MAX) & 0xFF
        return data

    def event(self, event: bytes) -> bytes:
        """Return one event as the next packet."""
        return self.payload(self._lead + event)

    def events(self, data: bytes) -> tuple[bytes, int]:
        """Return the whole events at the beginning of `data` as packets, and how many bytes of `data` they are.

        Raises MalformedStream.
        """
        if self._skipped is not None:
            return self._one_by_one(data)
        packets, done, count = framed(data, self._lead, self._sequence)
        if count == 0:
            return self._one_by_one(data)
        self._sequence = (self._sequence + count) & 0xFF
        return packets, done

    def _one_by_one(self, whole: bytes) -> tuple[bytes, int]:
        """The same, for what must be looked at: events that may be left out, and those that fill several packets."""
        parts, done, data = list[bytes](), 0, memoryview(whole)
        for offset, header in whole_events(data):
            done = offset + header.size
            if self._skipped is None or not self._leave_out(data[offset:done], header):
                parts.append(self.event(bytes(data[offset:done])))
        return b"".join(parts), done

    def _leave_out(self, event: memoryview, header: EventHeader) -> bool:
        assert self._tracker is not None, "skip() made it"
        assert self._skipped is not None, "skip() set it"
        inside = self._tracker.in_group
        if header.kind == Kind.GTID:
            sequence, domain, _ = gtid_of(event)
            self._skipping = sequence <= self._skipped.sequence(domain)
        boundary = self._tracker.follow(header, event)
        left_out = self._skipping and (inside or header.kind == Kind.GTID)
        if boundary and inside and self._tracker.position.covers(self._skipped):
            self._skipped = None
        return left_out
