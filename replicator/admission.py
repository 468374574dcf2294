"""Who may stay when too many come. Values in, values out.

Three rooms, each with its own bound: those who have not proved yet who they are, those who only ask, those who read a
stream. Who fills one takes nothing from another, and from those we know nobody takes the place of a stream.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from cluster.clock import Nanos

NO_SERVER = 0
"""The server id of tools that are no server; any number of them may read."""


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
