"""When a replicator may acknowledge. The acknowledgement is the fence: this is the rule that makes it one.

Under `acks: all` it also needs the word of every other named site that the very transaction is durable there: a word of
this epoch, of somebody who has not sealed it, heard lately. What is not known, or was heard too long ago, is not durable.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.clock import Nanos
from cluster.position import Position
from cluster.records import Acks, DurabilityRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """The primary's word that it has the grants of all replicators: while it counts, no lease is needed (decision 0078)."""

    epoch: int
    serial: int
    """The durability record that all of them act on."""
    until: Nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything the permission depends on. Unknown is None and permits nothing."""

    site: str
    epoch: int
    """The epoch being pulled."""
    primary_site: str | None
    durability: DurabilityRecord | None
    sealed_epoch: int
    whole: bool
    """Nothing of the epochs before is missing here, or nobody has it any more."""
    lease_until: Nanos | None
    """The instant our ZooKeeper lease ends on our own clock."""
    counted: bool = True
    """The records were read, and no plan of a later epoch found, since our own record was made: before that others may have
    been named, and a failover may have gone on without our word (decision 0088)."""
    confirmed: Confirmed | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """Return the sites whose word an acknowledgement of ours needs."""
        record = self.durability
        if record is None or record.acks is not Acks.ALL:
            return ()
        return tuple(site for site in record.ackers if site != self.site)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What another acker said of an epoch, and until when it counts unless it is said again."""

    epoch: int
    durable: Position
    until: Nanos


def lacking(standing: Standing, heard: Mapping[str, Heard], now: Nanos) -> tuple[str, ...]:
    """Return the sites whose word we need and do not have at `now`."""
    return tuple(site for site in standing.others if _word(standing, heard, site, now) is None)


def all_have(standing: Standing, heard: Mapping[str, Heard], position: Position, now: Nanos) -> bool:
    """Return whether every other site that must have `position` durably has said that it has."""
    words = [_word(standing, heard, site, now) for site in standing.others]
    return all(word is not None and word.durable.covers(position) for word in words)


def _word(standing: Standing, heard: Mapping[str, Heard], site: str, now: Nanos) -> Heard | None:
    word = heard.get(site)
    if word is None or word.epoch != standing.epoch or now >= word.until:
        return None
    return word


def may_acknowledge(standing: Standing, now: Nanos) -> bool:
    """Return whether an acknowledgement sent at `now` keeps every promise of the cluster."""
    return why_not(standing, now) is None


def why_not(standing: Standing, now: Nanos) -> str | None:
    """Return the first reason against acknowledging, None when there is none."""
    reason = why_not_named(standing)
    if reason is not None:
        return reason
    if _is_confirmed(standing, now):
        return None
    if standing.lease_until is None or now >= standing.lease_until:
        return "our ZooKeeper lease is not valid"
    return None if standing.counted else "our ZooKeeper lease is new: a plan runs, or the records are still being read"


def _is_confirmed(standing: Standing, now: Nanos) -> bool:
    """Return whether the primary's direct word stands in for our lease: of this epoch, by the record that we act on."""
    word, durability = standing.confirmed, standing.durability
    if word is None or durability is None or now >= word.until:
        return False
    return (word.epoch, word.serial) == (standing.epoch, durability.serial)


def why_not_named(standing: Standing) -> str | None:
    """Return why we are not an acker at all, whatever our lease; None when we are."""
    durability = standing.durability
    if standing.epoch <= standing.sealed_epoch:
        return f"epoch {standing.epoch} is sealed"
    if durability is None or durability.epoch != standing.epoch:
        return f"no durability record of epoch {standing.epoch}"
    if standing.site not in durability.ackers:
        return f"{standing.site} is not named in the durability record"
    if standing.primary_site is None or standing.primary_site == standing.site:
        return "an acknowledgement from the primary's own site would promise nothing"
    if not standing.whole:
        return "the end of an earlier epoch is still missing here"
    return None
