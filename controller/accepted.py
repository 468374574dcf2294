"""What a failover would lose, and how much of that an operator has accepted. Pure.

Two figures, because one of them is often not known: transactions, and seconds of the clinics' work. The seconds are a
bound: nothing that was acknowledged outside of them is lost. Unknown is None, and whoever accepts it says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import BadInput

UNKNOWN = "unknown"
TRANSACTIONS_MAX = 10**15
SECONDS_MAX = 10**9
EXAMPLE = "transactions=unknown,seconds=12"
JITTER_SECONDS = 0.25
"""So much two measurements of one bound differ at most by the age of the reports."""
HINT = f"the dry run prints the value to give, such as {EXAMPLE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What acknowledged writes a failover to `target` would un-say."""

    target: str | None
    """What the new primary will have; the rest is about what lies beyond it."""
    transactions: int | None
    """At most so many, heartbeats of oscar-ha among them; None: nobody knows how many."""
    at_least: int
    """So many somebody is known to have had who is gone."""
    seconds: float | None
    """They were all acknowledged within so many seconds; None: not known."""
    why: str
    """Who is gone, or why nothing is lost."""

    @property
    def is_nothing(self) -> bool:
        """Return whether it is proven that nothing is lost."""
        return self.transactions == 0

    @property
    def text(self) -> str:
        """Return it as people read it."""
        if self.is_nothing:
            return f"nothing: {self.why}"
        known = (
            f"at most {self.transactions}" if self.transactions is not None else f"{UNKNOWN}, at least {self.at_least}"
        )
        within = UNKNOWN if self.seconds is None else f"at most {math.ceil(self.seconds)}"
        return f"transactions: {known}; seconds: {within}; {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The loss that an operator accepts, in his own word."""

    transactions: int | None
    """None: however many, he said `unknown`."""
    seconds: int | None

    @property
    def text(self) -> str:
        """Return it as it is typed."""
        many = UNKNOWN if self.transactions is None else self.transactions
        return f"transactions={many},seconds={UNKNOWN if self.seconds is None else self.seconds}"

    def as_fields(self) -> dict[str, int | str]:
        """Return it as `POST /v1/failover` takes it."""
        return {
            "transactions": UNKNOWN if self.transactions is None else self.transactions,
            "seconds": UNKNOWN if self.seconds is None else self.seconds,
        }


def needed(loss: Loss) -> Accepted:
    """Return what is to be accepted for `loss`: whole seconds, and enough of them when the same is measured once more."""
    seconds = None if loss.seconds is None else math.ceil(loss.seconds + JITTER_SECONDS)
    return Accepted(transactions=loss.transactions, seconds=seconds)


def excess(loss: Loss, accepted: Accepted) -> str | None:
    """Return in what the loss exceeds what is accepted, None when it does not."""
    if loss.target is None:
        return f"no archive that answers tells what would be left: {loss.why}"
    found = [
        f"{name} {UNKNOWN if least is None else least} > {most}"
        for name, least, most in (
            ("transactions", loss.transactions, accepted.transactions),
            ("seconds", None if loss.seconds is None else math.ceil(loss.seconds), accepted.seconds),
        )
        if most is not None and (least is None or least > most)
    ]
    if not found:
        return None
    return f"more would be lost than the accepted {accepted.text} ({', '.join(found)}): {loss.text}"


def parse(value: object) -> Accepted | None:
    """Return what a request accepts: None or false for nothing. Raises BadInput for all that names no bound."""
    if value is None or value is False:
        return None
    if not isinstance(value, Mapping):
        raise BadInput(f"allow_data_loss is {value!r}: it must name how much is accepted", hint=HINT)
    if set(value) != {"transactions", "seconds"}:
        raise BadInput(
            f"allow_data_loss has the fields {sorted(map(str, value))}, not transactions and seconds", hint=HINT
        )
    return Accepted(
        transactions=_number("transactions", value["transactions"], TRANSACTIONS_MAX),
        seconds=_number("seconds", value["seconds"], SECONDS_MAX),
    )


def parse_text(text: str) -> dict[str, int | str]:
    """Return what was typed, `transactions=N,seconds=S`, as fields of a request. Raises BadInput."""
    fields: dict[str, int | str] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        digits = value.isascii() and value.isdigit() and len(value) <= len(str(TRANSACTIONS_MAX))
        fields[name] = int(value) if digits else value
    parse(fields)
    return fields


def _number(name: str, value: object, most: int) -> int | None:
    if value == UNKNOWN:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BadInput(f"allow_data_loss: {name} is {value!r}", hint=f"a whole number from 0 to {most}, or {UNKNOWN!r}")
    return value
