"""How long a right lasts, of those that hold it and of those that wait for its end. Pure; time is an argument.

A *lease* is ZooKeeper's word, a *grant* a replicator's (decision 0078). Both are judged in the same way: a holder counts
from the moment it *asked*, less the margin; who gave it counts from the moment it answered. So a holder's right has ended
before anybody believes that it has.
"""

from cluster.clock import Nanos, after
from cluster.settings import Timing


def lasts_ms(timing: Timing) -> float:
    """Return for how long a holder relies on what it was given, from the moment it asked."""
    return float(timing.session_ttl_ms - timing.lease_margin_ms)


def held_until(asked: Nanos, timing: Timing) -> Nanos:
    """Return when what was asked for at `asked`, and given, has ended for its holder."""
    return after(asked, lasts_ms(timing))


def given_until(answered: Nanos, timing: Timing) -> Nanos:
    """Return when what was given at `answered` has certainly ended for its holder, as its giver judges."""
    return after(answered, timing.session_ttl_ms)


def is_overdue(lease_until: Nanos | None, now: Nanos, timing: Timing) -> bool:
    """Return whether ZooKeeper has been silent towards us for so long that half of our lease is over, or all of it.

    Several renewals have failed by then, and the other half is left to ask somebody else.
    """
    return lease_until is None or now >= after(lease_until, -lasts_ms(timing) / 2)
