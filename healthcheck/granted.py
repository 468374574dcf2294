"""By whose grants a primary writes when ZooKeeper is gone, and for how long. Pure (decision 0078).

All replicators outside its own site must grant, so that a seal of any of them forbids it; and all for the same epoch and the
same durability record, so that nobody acknowledges by an older one. What is missing is not granted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.clock import Nanos, ms_between
from cluster.lease import held_until
from cluster.records import DurabilityRecord, EpochRecord, GrantRequest, Mark
from cluster.settings import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A grant that we got: when we asked for it, and its giver's mark."""

    asked: Nanos
    mark: Mark


def sites_to_ask(outside: Iterable[str], durability: DurabilityRecord) -> tuple[str, ...]:
    """Return whose grants are needed: every site outside the primary's, and every one whose word a failover needs."""
    named = (site for group in durability.groups for site in group)
    return tuple(dict.fromkeys((*outside, *named)))


def why_not_ask(
    record: EpochRecord | None, durability: DurabilityRecord | None, opened_epoch: int | None
) -> str | None:
    """Return why no grant can be asked for, None when it can: epoch and durability record must be known, and ours."""
    if record is None or opened_epoch is None or record.epoch != opened_epoch:
        return "the epoch is not ours"
    if durability is None or durability.epoch != record.epoch:
        return f"it is not known who acknowledges in epoch {record.epoch}"
    return None


def granted_until(held: Mapping[str, Held], sites: Iterable[str], timing: Timing) -> Nanos | None:
    """Return until when we may write by these grants: as long as the first of them lasts. None: one is missing."""
    asked = [held[site].asked if site in held else None for site in sites]
    known = [one for one in asked if one is not None]
    return held_until(min(known), timing) if known and len(known) == len(asked) else None


def request_of(epoch: int, serial: int, held: Held | None, until: Nanos | None, now: Nanos) -> GrantRequest:
    """Return what to say at `now` to one site: its own mark, and what is left of all grants."""
    left_ms = 0.0 if until is None else max(0.0, ms_between(now, until))
    return GrantRequest(epoch=epoch, serial=serial, mark=None if held is None else held.mark, left_ms=left_ms)
