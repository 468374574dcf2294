"""What an operator has ordered of a standby: to stay behind, or to stop before a transaction. It counts until taken back.

`orders/<node>` in ZooKeeper is written by the leading controller and obeyed by the node's watchdog. Pure.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from cluster.errors import BadInput
from cluster.position import Gtid, Position

DELAY_SECONDS_MAX = 30 * 86_400
SECONDS: dict[str, int] = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
"""The seconds of a unit, the largest first."""
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h|d)?", re.ASCII)


def _is_position(text: str) -> str:
    try:
        Position.parse(text)
    except BadInput as error:
        raise ValueError(error.message) from error
    return text


def _is_gtid(text: str) -> str:
    try:
        Gtid.parse(text)
    except BadInput as error:
        raise ValueError(error.message) from error
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Where a standby is to stand still."""

    before: Annotated[str, AfterValidator(_is_gtid)] | None
    """The first transaction that is not applied; None: it stands where it was when it was told."""
    position: Annotated[str, AfterValidator(_is_position)] | None
    """Everything up to here is applied, and nothing more. None only together with `before`."""

    def __post_init__(self) -> None:
        if (self.before is None) != (self.position is None):
            raise ValueError("before and position go together")

    @property
    def text(self) -> str:
        """Return it as a person says it."""
        return "held where it stands" if self.before is None else f"held before {self.before}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted of a standby. While the node is the primary it means nothing, and counts again afterwards."""

    serial: Annotated[int, Field(ge=1)]
    """Grows by one with every order. The watchdog reports the serial that it obeys."""
    since: str
    why: str = ""
    delay_seconds: Annotated[int, Field(ge=0, le=DELAY_SECONDS_MAX)] = 0
    """What the primary committed is applied so much later, by the clock of the primary."""
    hold: Hold | None = None

    @property
    def in_force(self) -> bool:
        """Return whether anything is wanted."""
        return self.delay_seconds > 0 or self.hold is not None

    @property
    def text(self) -> str:
        """Return it as a person says it; empty when nothing is wanted."""
        if self.hold is not None:
            return f"{self.hold.text} as ordered"
        return f"delayed {duration(self.delay_seconds)} as ordered" if self.delay_seconds else ""


class Obeying(StrEnum):
    """How far a watchdog is with its order."""

    UNKNOWN = "unknown"
    """The order has not been read, or not yet compared with what the server does: nothing is started meanwhile."""
    FREE = "free"
    DELAYED = "delayed"
    LIFTED = "lifted"
    """A failover needs the node: it applies everything at once."""
    MOVING = "moving"
    """It runs forward to where it is to stop."""
    HELD = "held"
    LATE = "late"
    """It stands still, but had applied what it was to stop before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obedience:
    """What a watchdog says of the order that it obeys."""

    state: Obeying
    serial: int | None = None
    """Of the order; None: there is none, or it is not known."""
    delay_seconds: int = 0
    before: str | None = None


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `4 h`, `3 h 58 min`, `45 s`."""
    left, parts = round(seconds), list[str]()
    for unit, size in SECONDS.items():
        count, rest = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
            left = rest
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def delay_of(text: str) -> int:
    """Return seconds from what a person types: `4` and `1.5` are hours, `30m`, `90s`, `2d` say their unit. Raises BadInput."""
    return seconds_of(text, "a delay", hint="oscar-ha delay NODE --off ends a delay")


def seconds_of(text: str, what: str, *, hint: str = "") -> int:
    """Return seconds as `delay_of` does. `what` it is stands in the error."""
    match = _DELAY.fullmatch(text.strip().lower())
    if match is None:
        raise BadInput(f"{what} of {text!r}", hint="hours, as 4 or 0.5; or with a unit, as 30m, 90s, 2d")
    unit = {"m": "min", None: "h"}.get(match[2], match[2])
    seconds = round(float(match[1]) * SECONDS[unit])
    if not 1 <= seconds <= DELAY_SECONDS_MAX:
        raise BadInput(f"{what} of {text!r} is not between 1 s and {duration(DELAY_SECONDS_MAX)}", hint=hint)
    return seconds
