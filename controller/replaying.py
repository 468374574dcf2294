"""Whether a rescued row may be applied: from what it was, what it became, and what is there now. Pure.

Nothing is overwritten unless somebody says so: a row that is neither as it was nor as it became was changed by somebody
since, and only a person knows which of the two is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

Cell = str | bytes | float | None
"""A value as the database says it, compared letter by letter; a FLOAT or DOUBLE as the number."""
Cells = Mapping[str, Cell]


class Verdict(Enum):
    """What is to be done with a row."""

    APPLY = "apply"
    PRESENT = "present"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict, and for a conflict the reason."""

    verdict: Verdict
    why: str = ""


APPLY, PRESENT = Judged(Verdict.APPLY), Judged(Verdict.PRESENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A rescued row and what the cluster has in its place."""

    before: Cells | None
    """None: it was inserted."""
    after: Cells | None
    """None: it was deleted."""
    at_before: Cells | None
    """The row that has the key it had before; None: there is none."""
    at_after: Cells | None
    """The row that has the key it got; the same one where the key did not change."""


def judge(one: Situation) -> Judged:
    """Return what is to be done."""
    if one.before is None:
        assert one.after is not None, "a row was before, or is after"
        return _insert(one.after, one.at_after)
    if one.after is None:
        return _delete(one.before, one.at_before)
    return _update(one.before, one.after, one)


def _insert(after: Cells, there: Cells | None) -> Judged:
    if there is None:
        return APPLY
    return (
        PRESENT if equal(after, there) else Judged(Verdict.CONFLICT, f"there is another row: {differing(after, there)}")
    )


def _delete(before: Cells, there: Cells | None) -> Judged:
    if there is None:
        return PRESENT
    return (
        APPLY if equal(before, there) else Judged(Verdict.CONFLICT, f"it was changed since: {differing(before, there)}")
    )


def _update(before: Cells, after: Cells, one: Situation) -> Judged:
    moved = one.at_after is not one.at_before
    if one.at_after is not None and equal(after, one.at_after) and (not moved or one.at_before is None):
        return PRESENT
    if one.at_before is None:
        return Judged(Verdict.CONFLICT, "it is gone")
    if not equal(before, one.at_before):
        return Judged(Verdict.CONFLICT, f"it was changed since: {differing(before, one.at_before)}")
    if moved and one.at_after is not None:
        return Judged(Verdict.CONFLICT, "another row has the key that it got")
    return APPLY


def equal(rescued: Cells, there: Cells) -> bool:
    """Return whether a row is the rescued one, as far as that tells its columns."""
    return all(name in there and there[name] == cell for name, cell in rescued.items())


def differing(rescued: Cells, there: Cells) -> str:
    """Return the names of the columns that differ; their values are patients' data."""
    return ", ".join(name for name, cell in rescued.items() if name not in there or there[name] != cell)
