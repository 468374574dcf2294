"""A wire of a given length: passes bytes on, each way so many milliseconds later, in order and at full rate.

In user space, as a process of its own, because a kernel without `netem` has no other way, and because it needs no rights:
`python -m chaos.delay --to PORT --one-way-ms N` prints the port it listens on. Making a connection is not delayed.
"""

import socket
import sys
import threading
import time
from collections import deque
from typing import Annotated

import typer

from cluster import clock
from cluster.clock import NANOS_PER_SECOND, Nanos

HOST = "127.0.0.1"
READ_BYTES = 64 * 1024
ON_THE_WAY_MAX = 4_096
"""Reads that may be on the wire at once: then the sender waits."""
CONNECT_SECONDS = 5.0


class Direction:
    """One way of one connection: one thread takes, one gives, each piece at its own instant."""

    def __init__(self, source: socket.socket, target: socket.socket, one_way_ms: float) -> None:
        self._source, self._target, self._one_way_ms = source, target, one_way_ms
        self._way: deque[tuple[Nanos, bytes]] = deque()
        self._changed = threading.Condition()

    def start(self) -> None:
        for work in (self._take, self._give):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                data = self._source.recv(READ_BYTES)
            except OSError:
                data = b""
            with self._changed:
                self._changed.wait_for(lambda: len(self._way) < ON_THE_WAY_MAX)
                self._way.append((clock.after(clock.now(), self._one_way_ms), data))
                self._changed.notify_all()
            if not data:
                return

    def _give(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._way))
                due, data = self._way.popleft()
                self._changed.notify_all()
            time.sleep(max(0, due - clock.now()) / NANOS_PER_SECOND)
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)
            except OSError:
                self._source.close()
                return


def serve(
    to: Annotated[int, typer.Option(min=1, max=65_535, help="The port that the wire leads to.")],
    one_way_ms: Annotated[float, typer.Option(min=0, max=10_000, help="How long the way is, each way.")],
) -> None:
    """Listen on a free port, print it, and pass on until killed."""
    sys.setswitchinterval(0.0002)
    with socket.create_server((HOST, 0)) as server:
        typer.echo(server.getsockname()[1])
        sys.stdout.flush()
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((HOST, to), timeout=CONNECT_SECONDS)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Direction(near, far, one_way_ms).start()
            Direction(far, near, one_way_ms).start()


if __name__ == "__main__":
    typer.run(serve)
