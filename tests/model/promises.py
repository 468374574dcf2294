"""What must hold in every state: invariants 1 to 5 of DESIGN.md section 6, as far as one state shows them."""

from cluster.records import Role
from tests.model.rules import Rules
from tests.model.seeing import NOW, acker_standing, primary_number, pulled_epoch, serves_clinics, sites_of
from tests.model.state import NODES, World, is_prefix, position


def broken_in(world: World, rules: Rules) -> str | None:
    """Return the promise that a state breaks, None when it keeps all."""
    if world.broken:
        return world.broken
    serving = [NODES[number] for number in range(len(NODES)) if serves_clinics(world, number, rules)]
    if len(serving) > 1:
        return f"1: {' and '.join(serving)} both answer /primary"
    primary = world.nodes[primary_number(world.newest)]
    if primary.open and primary.memory.opened_epoch == world.newest.epoch and not is_prefix(world.acked, primary.log):
        return f"2: the primary is open at {position(primary.log)}, {position(world.acked)} was acknowledged"
    kept = [*(one.log for one in world.replicators), primary.log]
    if not any(is_prefix(world.acked, log) for log in kept):
        return f"2: {position(world.acked)} was acknowledged and is nowhere any more"
    return None


def is_well(world: World, rules: Rules) -> bool:
    """Return whether the newest primary serves the clinics, its acker may acknowledge, and no plan runs."""
    number = primary_number(world.newest)
    if (
        world.durability.is_degraded
        or world.plan is not None
        or world.nodes[number].role is not Role.PRIMARY
        or not serves_clinics(world, number, rules)
    ):
        return False
    return any(
        pulled_epoch(world, one) == world.newest.epoch
        and rules.may_acknowledge(acker_standing(world, at, rules, world.newest.epoch), NOW)
        for at, one in enumerate(world.replicators)
        if sites_of(world)[at] in world.durability.ackers
    )
