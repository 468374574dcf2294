"""A source that lies: it greets, answers the set-up, and sends what it was told to, at the step it was told to."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.binlog.framing import packet
from replicator import wire

ANSWER_SECONDS = 5.0


class Liar:
    """Lies at step `step`: 0 instead of the greeting, then one for each packet of the client; late is the stream."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.step, self.lie, self.holds = 0, b"", False

    def run(self) -> None:
        """Serve one connection after another until the listener is shut."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, EOFError):
                connection.settimeout(ANSWER_SECONDS)
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        step, answer = 0, packet(wire.greeting(b"0" * 20, 1), 0)
        while True:
            if step == self.step:
                connection.sendall(self.lie)
                break
            connection.sendall(answer)
            sequence, payload = self._packet(connection)
            step += 1
            if payload[:1] == bytes((wire.COM_BINLOG_DUMP,)):
                connection.sendall(self.lie)
                break
            answer = packet(wire.ok(), sequence + 1)
        if not self.holds:
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    def _packet(self, connection: socket.socket) -> tuple[int, bytes]:
        head = self._exactly(connection, 4)
        return head[3], self._exactly(connection, int.from_bytes(head[:3], "little"))

    def _exactly(self, connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data


@contextmanager
def lying() -> Iterator[Liar]:
    """Run a liar."""
    liar = Liar()
    thread = threading.Thread(target=liar.run, daemon=True)
    thread.start()
    try:
        yield liar
    finally:
        with contextlib.suppress(OSError):
            liar.listener.shutdown(socket.SHUT_RDWR)
        liar.listener.close()
        thread.join(ANSWER_SECONDS + 1)
