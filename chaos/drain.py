"""A reader of an archive that throws away what it reads: it attaches as a standby does, and only counts.

So that what is measured is the replicator, it looks at nothing but the size of what comes and at its end.
"""

import threading
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import pymysql
from pymysql.connections import Connection

from cluster.errors import OscarHaError, Unreachable
from replicator.source import DUMP_ANNOTATE, DUMP_NON_BLOCK, SLAVE_CAPABILITY_GTID

COM_BINLOG_DUMP = 0x12
READ_BYTES = 1024 * 1024
END_BYTES = 9
"""The packet that ends a stream: four bytes of head, then EOF, warnings and status."""
PACKET_EOF = 0xFE
DEADLINE_SECONDS = 60
JOIN_DEADLINE_SECONDS = 600
_DUMP = Struct("<BIHI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where a replicator serves, and who may read."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)


class Reader:
    """Reads everything behind a position to the end of what there is, in a thread of its own."""

    def __init__(self, served: Served, position: str, *, server_id: int, until_end: bool = True) -> None:
        self.bytes = 0
        self.failure: OscarHaError | None = None
        self._served, self._position, self._server_id = served, position, server_id
        self._flags = DUMP_ANNOTATE | (DUMP_NON_BLOCK if until_end else 0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> int:
        """Wait for the end; return how many bytes came. Raises Unreachable when the stream broke."""
        self._thread.join(JOIN_DEADLINE_SECONDS)
        if self.failure is not None:
            raise self.failure
        if self._thread.is_alive():
            raise Unreachable("a reader does not come to its end")
        return self.bytes

    def _run(self) -> None:
        try:
            self._read()
        except (OSError, pymysql.Error, EOFError) as error:
            self.failure = Unreachable(f"a reader's stream broke: {error}")

    def _read(self) -> None:
        served = self._served
        connection: Connection[Any] = pymysql.connect(
            host=served.host, port=served.port, user=served.user, password=served.password, autocommit=None,
            read_timeout=DEADLINE_SECONDS, write_timeout=DEADLINE_SECONDS,
        )  # fmt: skip
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SET @mariadb_slave_capability = {SLAVE_CAPABILITY_GTID}")
                cursor.execute(f"SET @slave_connect_state = '{self._position}'")
            raw = connection._sock  # type: ignore[attr-defined]  # pymysql keeps its socket to itself
            payload = _DUMP.pack(COM_BINLOG_DUMP, 4, self._flags, self._server_id)
            raw.sendall(len(payload).to_bytes(3, "little") + b"\0" + payload)
            self._drain(raw)
        finally:
            connection._force_close()  # type: ignore[attr-defined]  # pymysql: closes without a farewell

    def _drain(self, raw: Any) -> None:
        room, tail = bytearray(READ_BYTES), b""
        while (count := raw.recv_into(room)) > 0:
            self.bytes += count
            tail = (tail + bytes(room[max(0, count - END_BYTES) : count]))[-END_BYTES:]
            if count < READ_BYTES and tail[:3] == b"\x05\0\0" and tail[4] == PACKET_EOF:
                return
        raise EOFError("the other side closed the stream before its end")
