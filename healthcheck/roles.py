"""The life of a node as one table; nothing beside it changes a role. Pure."""

from collections.abc import Mapping
from enum import StrEnum

from cluster.errors import Bug
from cluster.records import Role


class Signal(StrEnum):
    """What can happen to a node."""

    OPEN = "open"
    """It was promoted, the record of its epoch names it and it holds the lease."""
    FENCE = "fence"
    """A command, a newer epoch or the end of the lease closes it."""
    PROMOTE = "promote"
    """It stops following, to be opened next."""
    FOLLOW = "follow"
    CAUGHT_UP = "caught up"
    LOST_SOURCE = "lost source"
    """It has no source any more."""
    NEW_SERVER = "new server"
    """The server process ended, or another one began: it was born fenced."""
    REJECT = "reject"
    """The server lacks what a node of the cluster must have."""
    SEED = "seed"
    """Its data is being replaced by a copy of another node's."""
    SEED_ENDED = "seed ended"


ROLES: Mapping[tuple[Role, Signal], Role] = {
    (Role.FENCED, Signal.OPEN): Role.PRIMARY,
    (Role.FENCED, Signal.FOLLOW): Role.JOINING,
    (Role.FENCED, Signal.PROMOTE): Role.FENCED,  # still closed until it is opened
    (Role.FENCED, Signal.FENCE): Role.FENCED,  # fencing twice is safe, so a retry is safe
    (Role.FENCED, Signal.REJECT): Role.FAILED,
    (Role.JOINING, Signal.CAUGHT_UP): Role.STANDBY,
    (Role.JOINING, Signal.PROMOTE): Role.FENCED,
    (Role.JOINING, Signal.FOLLOW): Role.JOINING,
    (Role.JOINING, Signal.FENCE): Role.JOINING,  # it is closed already, and may go on following
    (Role.JOINING, Signal.LOST_SOURCE): Role.FENCED,
    (Role.STANDBY, Signal.PROMOTE): Role.FENCED,
    (Role.STANDBY, Signal.FOLLOW): Role.STANDBY,
    (Role.STANDBY, Signal.FENCE): Role.STANDBY,
    (Role.STANDBY, Signal.LOST_SOURCE): Role.FENCED,
    (Role.PRIMARY, Signal.FENCE): Role.FENCED,
    (Role.FENCED, Signal.SEED): Role.JOINING,
    (Role.STANDBY, Signal.SEED): Role.JOINING,
    (Role.JOINING, Signal.SEED): Role.JOINING,
    (Role.FAILED, Signal.SEED): Role.JOINING,
    (Role.JOINING, Signal.SEED_ENDED): Role.FENCED,  # the new data must prove itself like any other
    (Role.FENCED, Signal.SEED_ENDED): Role.FENCED,
    (Role.FAILED, Signal.FENCE): Role.FAILED,
    (Role.FAILED, Signal.REJECT): Role.FAILED,
} | {(role, Signal.NEW_SERVER): Role.FENCED for role in Role}


def allows(role: Role, signal: Signal) -> bool:
    """Return whether `signal` is an edge of `role`."""
    return (role, signal) in ROLES


def advance(role: Role, signal: Signal) -> Role:
    """Return the role after `signal`. Raises Bug for what the table does not allow."""
    if not allows(role, signal):
        raise Bug(f"a node that is {role.value} cannot {signal.value}")
    return ROLES[role, signal]
