"""How many HTTP connections a process of ours holds, and who leaves when one too many comes (decision 0063).

A port that anybody may connect to must not cost us our file handles: without them a replicator cannot open its archive,
and a watchdog can neither reach its database nor answer HAProxy. Whoever floods is put out, never who works.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from cluster import clock
from cluster.clock import Nanos

CONNECTIONS_MAX = 200
"""Far more than a cluster's own processes, HAProxies and Prometheus keep open, far fewer than file handles there are."""


class Worth(IntEnum):
    """What would be lost with a connection, the least first."""

    SILENT = 0
    """It has never asked for anything, or not to the end."""
    IDLE = 1
    """It was answered, and may come again: whoever calls again opens another."""
    ASKING = 2
    """It is being answered."""
    TRUSTED = 3
    """It is being answered, and carries our token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One connection: where it comes from, what it is worth, and when that last changed."""

    address: str
    worth: Worth
    since: Nanos


def to_leave(guests: Mapping[int, Guest], newest: int, room: int) -> int | None:
    """Return the connection to end so that `room` holds all, None when it does.

    Of the least worth, from the address that has most, the one that is so longest. The newest stays, for it has had no
    time to ask, unless all others are trusted.
    """
    if len(guests) <= room:
        return None
    others = {number: guest for number, guest in guests.items() if number != newest and guest.worth < Worth.TRUSTED}
    if not others:
        return newest
    shares = Counter(guest.address for guest in guests.values())
    return min(others, key=lambda number: (others[number].worth, -shares[others[number].address], others[number].since))


class Guests:
    """The connections of one server. `protocol` makes what serves one of them."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], room: int = CONNECTIONS_MAX) -> None:
        self._protocol, self._room = protocol, room
        self._guests: dict[int, Guest] = {}
        self._transports: dict[int, asyncio.BaseTransport] = {}

    def __call__(self) -> asyncio.Protocol:
        """Return what serves one more connection, counted."""
        return _Counted(self._protocol(), self)

    @contextmanager
    def asking(self, served_by: object, *, trusted: bool) -> Iterator[None]:
        """A request of a connection is being answered."""
        number = id(served_by)
        self._become(number, Worth.TRUSTED if trusted else Worth.ASKING)
        try:
            yield
        finally:
            self._become(number, Worth.IDLE)

    def came(self, served_by: object, transport: asyncio.BaseTransport) -> None:
        """A connection was made: end the one that must make room for it."""
        number = id(served_by)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self._guests[number] = Guest(address=address, worth=Worth.SILENT, since=clock.now())
        self._transports[number] = transport
        leaves = to_leave(self._guests, number, self._room)
        if leaves is not None:
            transport = self._transports[leaves]
            self._forget(leaves)
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    def went(self, served_by: object) -> None:
        """A connection has ended."""
        self._forget(id(served_by))

    def _become(self, number: int, worth: Worth) -> None:
        if number in self._guests:
            self._guests[number] = Guest(address=self._guests[number].address, worth=worth, since=clock.now())

    def _forget(self, number: int) -> None:
        self._guests.pop(number, None)
        self._transports.pop(number, None)


class _Counted(asyncio.Protocol):
    """Hands everything on to what serves the connection; says when it comes and goes."""

    def __init__(self, inner: asyncio.Protocol, guests: Guests) -> None:
        self._inner, self._guests = inner, guests

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)
        self._guests.came(self._inner, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._guests.went(self._inner)
        self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
