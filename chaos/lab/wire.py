"""The length of the ways between the places: the kernel asks about every packet, and is answered that much later.

Netfilter's queue (nfnetlink_queue), because it is in kernels that have no `netem` (decision 0097). Only the number of a packet comes here,
never its bytes. One way is one queue and keeps its order; when nobody listens any more its packets are lost.
"""

import errno
import random
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

from cluster import clock
from cluster.clock import Nanos

NETLINK_NETFILTER, NO_BUFFER_ERRORS, SOL_NETLINK = 12, 5, 270
SUBSYSTEM = 3
PACKET, VERDICT_BATCH, CONFIG = (SUBSYSTEM << 8 | number for number in (0, 3, 2))
REQUEST = 1
CONFIG_COMMAND, CONFIG_COPY, CONFIG_LENGTH = 1, 2, 3
BIND, COPY_NOTHING, ACCEPT = 1, 1, 1
ATTRIBUTE_PACKET, ATTRIBUTE_VERDICT = 1, 2
ON_THE_WAY_MAX = 50_000
"""Packets of one way; the kernel loses what comes beyond."""
BUFFER_BYTES = 8 * 1024 * 1024
READ_BYTES = 64 * 1024
_HEADER, _FAMILY, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct(">BBH"), struct.Struct("=HH")


def encode(kind: int, queue: int, attribute: int, payload: bytes) -> bytes:
    """Return one request to the kernel."""
    body = _FAMILY.pack(0, 0, queue) + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), attribute) + payload
    body += bytes(-len(body) % 4)
    return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST, 0, 0) + body


def decode(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (queue, packet number) of every packet that the kernel asks about; everything else is passed over."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        if kind == PACKET and length >= _HEADER.size + _FAMILY.size:
            number = _packet_number(data[offset + _HEADER.size + _FAMILY.size : offset + length])
            if number is not None:
                yield _FAMILY.unpack_from(data, offset + _HEADER.size)[2], number
        offset += length + -length % 4


def _packet_number(attributes: bytes) -> int | None:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if length < _ATTRIBUTE.size:
            return None
        if kind == ATTRIBUTE_PACKET and length >= _ATTRIBUTE.size + 4 and offset + length <= len(attributes):
            return int(struct.unpack_from(">I", attributes, offset + _ATTRIBUTE.size)[0])
        offset += length + -length % 4
    return None


class Wire:
    """All ways of a lab. `fileno` is readable when packets have come; `pass_on` after that, and when the next is due."""

    def __init__(self, delays_ms: Sequence[float], jitter_ms: float) -> None:
        """Begin to answer. Must be called in the router's namespace, where it stays. Raises OSError."""
        self._delays_ms, self._jitter_ms = tuple(delays_ms), jitter_ms
        self._waiting: list[deque[tuple[Nanos, int]]] = [deque() for _ in delays_ms]
        self._random = random.Random()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.setsockopt(SOL_NETLINK, NO_BUFFER_ERRORS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        for queue in range(len(delays_ms)):
            self._say(CONFIG, queue, CONFIG_COMMAND, struct.pack(">BBH", BIND, 0, 0))
            self._say(CONFIG, queue, CONFIG_COPY, struct.pack(">IB", 0, COPY_NOTHING))
            self._say(CONFIG, queue, CONFIG_LENGTH, struct.pack(">I", ON_THE_WAY_MAX))

    def fileno(self) -> int:
        return self._socket.fileno()

    def pass_on(self) -> Nanos | None:
        """Take what has come, let go on what is due, and return when the next packet is; None when there is none."""
        self._take()
        now = clock.now()
        for queue, waiting in enumerate(self._waiting):
            last = None
            while waiting and waiting[0][0] <= now:
                last = waiting.popleft()[1]
            if last is not None:
                self._say(VERDICT_BATCH, queue, ATTRIBUTE_VERDICT, struct.pack(">II", ACCEPT, last))
        return min((waiting[0][0] for waiting in self._waiting if waiting), default=None)

    def _take(self) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    data = self._socket.recv(READ_BYTES)
                except OSError as error:
                    if error.errno == errno.ENOBUFS:
                        continue
                    raise
                for queue, number in decode(data):
                    self._add(queue, number)

    def _add(self, queue: int, number: int) -> None:
        """Nobody overtakes on one way: TCP would take it for a loss."""
        if queue >= len(self._waiting):
            return
        waiting = self._waiting[queue]
        due = clock.after(clock.now(), self._delays_ms[queue] + self._random.random() * self._jitter_ms)
        waiting.append((max(due, waiting[-1][0]) if waiting else due, number))

    def _say(self, kind: int, queue: int, attribute: int, payload: bytes) -> None:
        self._socket.send(encode(kind, queue, attribute, payload))
