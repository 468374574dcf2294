"""A client that costs next to nothing, for measuring single statements: bytes made once, one send, one receive.

PyMySQL connects and logs in, then its socket is used directly. Only statements that are answered by OK are asked.
"""

import select
import socket
from collections.abc import Sequence
from struct import Struct
from typing import Any

from pymysql.connections import Connection

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Refused, Unreachable

COM_QUERY = 0x03
ANSWER_BYTES = 4_096
PACKET_OK = 0x00
HEAD_BYTES = 4
MS_PER_SECOND = 1_000
_LENGTH = Struct("<I")


def command(statement: str) -> bytes:
    """Return the packet that asks for `statement`."""
    payload = bytes((COM_QUERY,)) + statement.encode()
    return _LENGTH.pack(len(payload))[:3] + b"\0" + payload


class RawClient:
    """One session."""

    def __init__(self, connection: "Connection[Any]", *, deadline_seconds: float) -> None:
        self._connection = connection  # kept: its end would close the socket
        self.socket: socket.socket = connection._sock  # type: ignore[attr-defined]  # pymysql keeps its socket to itself
        self.socket.settimeout(deadline_seconds)

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def ask(self, asked: bytes) -> None:
        """Run a statement to its end. Raises Unreachable or Refused."""
        self.send(asked)
        self.answer()

    def send(self, asked: bytes) -> None:
        """Send a statement; its `answer` is to be taken before the next."""
        try:
            self.socket.sendall(asked)
        except OSError as error:
            raise Unreachable(f"the statement could not be sent: {error}") from None

    def answer(self) -> None:
        """Take the OK of the statement that was sent."""
        try:
            data = self.socket.recv(ANSWER_BYTES)
        except OSError as error:
            raise Unreachable(f"no answer: {error}") from None
        if len(data) <= HEAD_BYTES or len(data) != HEAD_BYTES + int.from_bytes(data[:3], "little"):
            raise Unreachable("an answer that is not whole")
        if data[HEAD_BYTES] != PACKET_OK:
            raise Refused(f"the answer is not OK: {data[HEAD_BYTES + 3 :].decode(errors='replace')}")


def latencies_us(clients: Sequence[RawClient], asked: bytes, count: int, *, deadline: Nanos) -> list[float]:
    """Let every client run the statement again and again, `count` times together; return how long each one took.

    One thread drives all clients, so a client waits a little for the others to be served: for all ways alike.
    """
    poller, by_handle = select.epoll(), {client.socket.fileno(): client for client in clients}
    sent, took, left = dict[int, Nanos](), list[float](), count
    try:
        for handle, client in by_handle.items():
            poller.register(handle, select.EPOLLIN)
            sent[handle] = clock.now()
            client.send(asked)
            left -= 1
        while sent:
            for handle, _ in poller.poll(clock.seconds_left(deadline)) or _late(len(took), count):
                by_handle[handle].answer()
                took.append((clock.now() - sent.pop(handle)) / MS_PER_SECOND)
                if left > 0:
                    left -= 1
                    sent[handle] = clock.now()
                    by_handle[handle].send(asked)
    finally:
        poller.close()
    return took


def _late(done: int, count: int) -> list[tuple[int, int]]:
    raise DeadlinePassed(f"only {done} of {count} statements were answered in time")
