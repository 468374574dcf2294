"""What a standby's watchdog does about its order: from the facts to one action. Pure.

What stands still is never started while the order is not known, and nothing beyond a hold is ever applied.
"""

from dataclasses import dataclass
from enum import Enum

from cluster.dialect import Replication
from cluster.orders import Obeying, Order
from cluster.position import Position

CAUGHT_UP_SLACK_SECONDS = 2
"""The server counts in whole seconds."""


class Act(Enum):
    """What is to be done with replication."""

    LEAVE = "leave it as it is"
    FOLLOW = "replicate, with the delay that is ordered"
    HOLD = "stop, or run forward to the hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything that decides it."""

    known: bool
    order: Order | None
    lifted: bool
    """A failover needs the node: no delay now."""
    replication: Replication
    applied: Position
    running_to: str | None
    """The position that this server process was told to run to and stop at."""


def judge(one: Standing) -> tuple[Obeying, Act]:
    """Return how far the order is obeyed, and what to do about it."""
    replication = one.replication
    if not one.known:
        return Obeying.UNKNOWN, Act.LEAVE
    if one.order is not None and one.order.hold is not None:
        return _hold(one, one.order.hold.position)
    ordered = delay_seconds(one.order, lifted=False)
    wanted = 0 if one.lifted else ordered
    state = Obeying.FREE if not ordered else Obeying.LIFTED if one.lifted else Obeying.DELAYED
    right = replication.running and replication.delay_seconds == wanted and not replication.until
    return state, Act.LEAVE if right else Act.FOLLOW


def _hold(one: Standing, position: str | None) -> tuple[Obeying, Act]:
    replication = one.replication
    stop = Act.HOLD if replication.receiving or replication.applying else Act.LEAVE
    if position is None:
        return Obeying.HELD, stop
    wanted = Position.parse(position)
    if one.applied.covers(wanted):
        return Obeying.HELD if wanted.covers(one.applied) else Obeying.LATE, stop
    # The receiver ends as soon as it has everything up to the hold; the applier may need long for that.
    moving = replication.applying and (replication.receiving or not replication.error)
    right = moving and replication.until and replication.delay_seconds == 0 and one.running_to == position
    return Obeying.MOVING, Act.LEAVE if right else Act.HOLD


def delay_seconds(order: Order | None, *, lifted: bool) -> int:
    """Return the delay that counts now."""
    return 0 if order is None or lifted else order.delay_seconds


def caught_up(state: Obeying, replication: Replication, order: Order | None) -> bool:
    """Return whether a joining node is where it should be: at the primary, at its hold, or so far behind as ordered."""
    if state in (Obeying.HELD, Obeying.LATE):
        return True
    behind = replication.behind_seconds
    if state not in (Obeying.FREE, Obeying.DELAYED, Obeying.LIFTED) or behind is None:
        return False
    return behind == 0 or (
        state is Obeying.DELAYED and behind <= delay_seconds(order, lifted=False) + CAUGHT_UP_SLACK_SECONDS
    )
