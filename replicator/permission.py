"""When a replicator may acknowledge. The acknowledgement is the fence: this is the rule that makes it one."""

from dataclasses import dataclass

from cluster.clock import Nanos
from cluster.records import DurabilityRecord


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


def may_acknowledge(standing: Standing, now: Nanos) -> bool:
    """Return whether an acknowledgement sent at `now` keeps every promise of the cluster."""
    return why_not(standing, now) is None


def why_not(standing: Standing, now: Nanos) -> str | None:
    """Return the first reason against acknowledging, None when there is none."""
    reason = why_not_named(standing)
    if reason is not None:
        return reason
    if standing.lease_until is None or now >= standing.lease_until:
        return "our ZooKeeper lease is not valid"
    return None


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
