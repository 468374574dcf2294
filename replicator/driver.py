"""PyMySQL, as far as a peer that cannot be trusted allows: bounded in bytes and time, TLS or nothing.

The driver trusts its server: it reads as much as that says, waits for every single byte anew, and raises whatever
comes of bytes it did not expect. Here every answer of the set-up together has one deadline and one size, and not a
byte more than asked is taken from the socket, because what follows is the stream.
"""

import socket
import ssl

import pymysql

from cluster import clock
from cluster.clock import Nanos
from cluster.connection import StrictConnection
from cluster.errors import MalformedStream, Unreachable

SECONDS_MIN = 0.001
SETUP_BYTES_MAX = 1024 * 1024
"""Everything a source may answer before the stream begins."""


class SetupConnection(StrictConnection):
    """A connection for the set-up of one stream."""

    def __init__(self, raw: socket.socket, *, deadline: Nanos, host: str, user: str, password: str,
                 context: ssl.SSLContext | None) -> None:  # fmt: skip
        self._deadline = deadline
        self._taken = 0
        seconds = max(SECONDS_MIN, clock.seconds_left(deadline))
        # Without a context the driver would take TLS where it is offered, and believe any certificate.
        super().__init__(
            host=host,
            user=user,
            password=password,
            defer_connect=True,
            autocommit=None,
            read_timeout=seconds,
            write_timeout=seconds,
            ssl=context,
            ssl_disabled=context is None,
        )
        self.connect(raw)

    @property
    def wire(self) -> socket.socket:
        """Return the socket, TLS or plain, at the byte after the last answer."""
        raw: socket.socket = self._sock  # type: ignore[attr-defined]  # pymysql keeps its socket to itself
        return raw

    def command(self, data: bytes) -> None:
        """Send a command that the driver does not know, framed already, and take its answer."""
        self.send(data)
        self._next_seq_id = 1
        self._read_packet()  # type: ignore[no-untyped-call]  # pymysql is not fully typed

    def send(self, data: bytes) -> None:
        """Send within the deadline."""
        self._limit()
        self.wire.sendall(data)

    def give_up(self) -> None:
        """Close the socket without a farewell."""
        self._force_close()  # type: ignore[attr-defined]  # pymysql has no public way that sends nothing

    # -- what the driver calls --------------------------------------------------------------------------------------

    def _read_bytes(self, num_bytes: int) -> bytes:
        """Return exactly so many bytes. Raises MalformedStream for too many, Unreachable when they do not come."""
        self._taken += num_bytes
        if self._taken > SETUP_BYTES_MAX:
            raise MalformedStream(f"the source answers more than {SETUP_BYTES_MAX} bytes before its stream begins")
        data, filled = bytearray(num_bytes), 0
        view = memoryview(data)
        while filled < num_bytes:
            self._limit()
            count = self.wire.recv_into(view[filled:])
            if count == 0:
                raise Unreachable("the source closed the connection")
            filled += count
        return bytes(data)

    def _limit(self) -> None:
        left = clock.seconds_left(self._deadline)
        if left == 0.0:
            raise Unreachable("the source did not answer in time")
        self.wire.settimeout(left)


def code_of(error: pymysql.err.MySQLError) -> tuple[int, str]:
    """Return number and text of what the driver raised; 0 when it has no number."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    return code, str(error.args[-1] if error.args else error)
