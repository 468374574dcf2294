"""A halt: applying stands still for a moment so that this standby can be compared at a known position.

It is kept in memory only and ends by itself: a caller that dies, or a watchdog that restarts, leaves nothing stopped.
Whatever a plan wants of the node ends it first.
"""

import secrets
from dataclasses import dataclass, field

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import Refused

HALT_MS_MAX = 60_000


@dataclass(frozen=True, slots=True)
class Halt:
    """One standstill; who knows its name may move it on and end it."""

    until: Nanos
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def for_ms(cls, ms: float) -> "Halt":
        """Return a new halt that ends by itself."""
        return cls(clock.after(clock.now(), min(ms, HALT_MS_MAX)))

    @property
    def over(self) -> bool:
        """Return whether its time has passed."""
        return clock.now() >= self.until

    @property
    def seconds_left(self) -> float:
        """Return how long it still lasts."""
        return clock.seconds_left(self.until)


def require(current: Halt | None, name: str) -> Halt:
    """Return the halt called `name` if it still holds. Raises Refused: then something was applied meanwhile."""
    if current is None or current.name != name or current.over:
        raise Refused("the halt has ended: applying goes on", hint="halt it again")
    return current
