"""A TCP proxy between two servers of a test: it passes everything on, and damages one byte of it when it is told to."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.servers.process import free_port

PIECE_BYTES = 65_536
JOIN_SECONDS = 5.0
HOST = "127.0.0.1"


class Proxy:
    """Listens on `port` and passes on to `target`. Use as a context manager."""

    def __init__(self, target: int, *, port: int | None = None) -> None:
        self.target, self.port = target, port or free_port()
        self.connections = 0
        self._damage: Callable[[bytearray], bool] | None = None
        self._damaging = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server((HOST, self.port))

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def damage(self, *, after: int, flip: int) -> None:
        """Change the byte that passes to a client after `after` more bytes, once."""
        left = after

        def change(piece: bytearray) -> bool:
            nonlocal left
            if left < len(piece):
                piece[left] ^= flip
                return True
            left -= len(piece)
            return False

        self.damage_by(change)

    def damage_by(self, change: Callable[[bytearray], bool]) -> None:
        """Give `change` every piece that passes to a client, until it says that it has done its harm."""
        with self._damaging:
            self._damage = change

    @property
    def damaged(self) -> bool:
        """Return whether the harm is done."""
        return self._damage is None

    def _begin(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a method of ours
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket()
            self._sockets += [client, server]
            try:
                server.connect((HOST, self.target))
            except OSError:
                client.close()
                continue
            self.connections += 1
            self._begin(self._pass_on, client, server, False)
            self._begin(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, to_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                sink.sendall(self._touched(bytearray(data)) if to_client else data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _touched(self, data: bytearray) -> bytearray:
        with self._damaging:
            if self._damage is not None and self._damage(data):
                self._damage = None
        return data
