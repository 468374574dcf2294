"""Who may stay when too many come. Values in, values out.

Three rooms, each with its own bound: those who have not proved yet who they are, those who only ask, those who read a
stream. Who fills one takes nothing from another, and from those we know nobody takes the place of a stream.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from cluster import clock
from cluster.clock import Nanos

NO_SERVER = 0
"""The server id of tools that are no server; any number of them may read."""

TWINS_AFTER, TWINS_WITHIN_MS = 4, 60_000
"""So many living streams of one server id that a newer one ended, within that time, are two servers with one id."""
TWINS_MAX = 256
"""Server ids that are remembered; beyond this the oldest is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many of each, and how long each may take."""

    handshakes: int = 32
    asking: int = 32
    streams_of_strangers: int = 48
    """Streams of readers that the settings do not name; our standbys and replicators have one each beside these."""
    handshake_ms: int = 5_000
    command_ms: int = 60_000
    stalled_ms: int = 30_000
    """A reader that takes nothing for so long is cut off; it comes again when it can."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A connection that has not begun a stream: where it comes from, and when it was last heard."""

    address: str
    heard: Nanos


def to_leave(guests: Mapping[int, Guest], room: int) -> int | None:
    """Return the connection to end so that `room` holds all, None when it does.

    Of the address that has most here the one that was silent longest: who comes alone is never put out by who floods.
    """
    if len(guests) <= room:
        return None
    shares = Counter(guest.address for guest in guests.values())
    most = max(shares.values())
    crowd = [number for number, guest in guests.items() if shares[guest.address] == most]
    return min(crowd, key=lambda number: (guests[number].heard, number))


def no_stream_for(server_id: int, reading: Sequence[int], known: Set[int], limits: Limits) -> str | None:
    """Return why a stream cannot begin beside those of the ids in `reading`, None when it can."""
    if server_id in known or (server_id != NO_SERVER and server_id in reading):
        return None  # one for each: its older stream ends
    strangers = sum(1 for one in reading if one not in known)
    if strangers < limits.streams_of_strangers:
        return None
    return f"{strangers} streams of readers that the settings do not name are open, as many as may be"


class Twins:
    """Whose living stream was ended by a newer one of the same server id, lately.

    A replica that lost its connection comes anew, and its older stream is dead. Two with one id both live: each ends
    the other's and comes back at once, for ever (TRAPS.md 10).
    """

    def __init__(self) -> None:
        self._ended: dict[int, deque[Nanos]] = {}
        self._addresses: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._ended)

    def note(self, server_id: int, addresses: tuple[str, str], now: Nanos) -> None:
        """Note that a living stream of the first address was ended by one of the second."""
        self._ended.setdefault(server_id, deque(maxlen=TWINS_AFTER)).append(now)
        self._addresses[server_id] = addresses
        if len(self._ended) > TWINS_MAX:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._addresses[oldest]

    def known(self, server_id: int, now: Nanos) -> bool:
        """Return whether two living servers use an id."""
        ended = self._ended.get(server_id)
        return ended is not None and len(ended) == TWINS_AFTER and clock.ms_between(ended[0], now) < TWINS_WITHIN_MS

    def told(self, now: Nanos) -> list[str]:
        """Return who they are, one sentence each."""
        known = [number for number in self._ended if self.known(number, now)]
        return [f"two servers use server_id {number}, from {' and '.join(sorted(self._addresses[number]))}, and end each"
                " other's stream: give one of them another" for number in known]  # fmt: skip
