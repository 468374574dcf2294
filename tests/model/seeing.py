"""From a state of the model to the facts that production code judges."""

from dataclasses import replace
from functools import cache

from cluster.clock import Nanos
from cluster.lease import held_until
from cluster.records import Database, DurabilityRecord, EpochRecord, Isolation, Mark, NodeReport, ReplicatorReport, Role
from cluster.settings import Timing
from controller.ackers import HOLD_MS
from controller.model import NodeFacts, Policy, ReplicatorFacts, View
from healthcheck.granted import Held, sites_to_ask
from healthcheck.judge import Standing as NodeStanding
from replicator.follow import epoch_to_pull
from replicator.permission import Standing
from tests.model.rules import Rules
from tests.model.state import NODES, SITES, Lease, Node, Replicator, World, length, position

LONG_MS = 1e6
"""Longer than every deadline."""
NOW = Nanos(1_000)
TIMING = Timing()
MARK = Mark(run="a", at=NOW)


def absent_ms(lease: Lease) -> float | None:
    """Return for how long a controller has seen no record."""
    return None if lease.recorded else LONG_MS if lease is Lease.ENDED else 0.0


@cache
def node_facts(number: int, node: Node, generation: str, serial: int | None) -> NodeFacts:
    """Return what a controller knows of a node. A dead watchdog's last report stands while its session does."""
    told = node.memory if node.alone_told else replace(node.memory, alone=None)
    report = NodeReport(
        node=NODES[number], site=SITES[number], server_id=number + 1, role=node.role,
        database=Database.UP if node.up else Database.DOWN, epoch=node.commanded, sealed_epoch=node.memory.sealed_epoch,
        read_only=not node.open, position=position(node.log), lag_ms=1.0,
        lease_epoch=node.memory.opened_epoch if node.role is Role.PRIMARY else None, resumable=node.resumable,
        generation=generation, server_version="10.11.19", replicating=node.role is Role.STANDBY, why="", url="",
        serial=serial, waits_by=serial if node.open and node.waits and not node.alone else None,
        revision=node.revision if node.role is Role.PRIMARY else None, alone=told.alone, vouches=told.vouches,
    )  # fmt: skip
    seen = report if node.lease.recorded else None
    return NodeFacts(name=NODES[number], site=SITES[number], server_id=number + 1, report=seen,
                     absent_ms=absent_ms(node.lease))  # fmt: skip


@cache
def replicator_facts(site: str, one: Replicator, newest: EpochRecord, source_up: bool) -> ReplicatorFacts:
    """Return what a controller knows of a replicator. Whoever does not renew its record is suspected at once."""
    epoch, _ = epoch_to_pull(newest if one.epoch == newest.epoch else None, one.sealed)
    pulls = one.up and source_up and epoch is not None
    named = one.durability is not None and site in one.durability.ackers
    report = ReplicatorReport(
        site=site, epoch=one.epoch, sealed_epoch=one.sealed, connected=pulls, acknowledging=pulls and named,
        received=position(one.log), durable=position(one.log), acknowledged=None, orphans=0, server_version=None, why="",
        host="h", port=1, url="", serial=None if one.durability is None else one.durability.serial,
    )  # fmt: skip
    quiet = None if one.lease is Lease.HELD else LONG_MS
    return ReplicatorFacts(
        site=site, host="h", port=1, report=report if one.lease.recorded else None, absent_ms=absent_ms(one.lease),
        stale_ms=quiet or 0.0, silent_ms=quiet, refused_ms=None if one.up else 1.0,
    )  # fmt: skip


def sites_of(world: World) -> tuple[str, ...]:
    """Return the sites that have a replicator: the ones away from the clinic first."""
    return ("toronto", "montreal", "clinic")[: len(world.replicators)]


def primary_number(record: EpochRecord) -> int:
    """Return the index of the node that a record names."""
    return NODES.index(record.primary)


def view_of(world: World, rules: Rules) -> View:
    """Return what the leading controller sees."""
    source_up = world.nodes[primary_number(world.newest)].up
    return rules.see(
        View(
            policy=Policy(sites=SITES, initial_primary=NODES[0], lease_margin_ms=rules.margin_ms, watchdog_grace_ms=5_000.0,
                          automatic_max=1_000, degrade_after_ms=0.0 if world.available else None, holds=world.holds),
            nodes=tuple(
                node_facts(number, node, rules.generation(node), _known_serial(world, node))
                for number, node in enumerate(world.nodes)
            ),
            replicators=tuple(
                replicator_facts(site, one, world.newest, source_up)
                for site, one in zip(sites_of(world), world.replicators, strict=True)
            ),
            epoch=world.newest,
            durability=world.durability,
            durability_age_ms=HOLD_MS + 1.0,
        )
    )  # fmt: skip


def _known_serial(world: World, node: Node) -> int | None:
    """Return the durability record that a primary knows; the newest, where that decides nothing."""
    known = node.durability if world.thorough else world.durability
    return None if known is None else known.serial


def pulled_epoch(world: World, one: Replicator) -> int | None:
    """Return the epoch that a replicator pulls."""
    return epoch_to_pull(world.epochs[one.epoch - 1], one.sealed)[0] if one.up and one.epoch else None


def acker_standing(world: World, number: int, rules: Rules, epoch: int) -> Standing:
    """Return what a replicator's permission to acknowledge depends on."""
    one = world.replicators[number]
    primary = world.epochs[epoch - 1].primary
    durability: DurabilityRecord | None = one.durability
    held = held_until(NOW, TIMING) if one.lease is Lease.HELD else Nanos(NOW + 1)
    return Standing(
        site=sites_of(world)[number], epoch=epoch, primary_site=SITES[NODES.index(primary)], durability=durability,
        sealed_epoch=one.sealed, whole=len(one.log) >= length(world.epochs[epoch - 1].position),
        lease_until=held if rules.lease_valid(one) else NOW, counted=one.counted, confirmed=one.confirmed,
    )  # fmt: skip


def sites_asked(world: World, number: int) -> tuple[str, ...]:
    """Return whose grants a node needs, by the record that it knows."""
    record = world.nodes[number].durability
    outside = (site for site in sites_of(world) if site != SITES[number])
    return () if record is None else sites_to_ask(outside, record)


def granted_until(world: World, number: int, rules: Rules) -> Nanos | None:
    """Return until when a node may write by the grants that it has, None when one is missing."""
    held = {site: Held(asked=NOW, mark=MARK) for site in world.nodes[number].grants}
    until: Nanos | None = rules.granted_until(held, sites_asked(world, number), TIMING)
    return until


def has_right(world: World, number: int, rules: Rules) -> bool:
    """Return whether a watchdog may keep open what it opened (`Right.valid`)."""
    node = world.nodes[number]
    if rules.lease_valid(node) and (node.counted or rules.counts_at_once):
        return True
    return granted_until(world, number, rules) is not None or holds(world, number, rules)


def holds(world: World, number: int, rules: Rules) -> bool:
    """Return whether a watchdog may keep open what it opened with neither lease nor grants."""
    node = world.nodes[number]
    if node.role is not Role.PRIMARY or node.isolation is Isolation.PROMOTE:
        return False
    known = replace(world.epochs[node.epoch - 1], on_isolation=node.isolation, revision=node.revision)
    return bool(rules.may_hold(known, node.memory, node.revision))


def serves_clinics(world: World, number: int, rules: Rules) -> bool:
    """Return whether a node's watchdog answers `/primary` with 200."""
    node = world.nodes[number]
    standing = NodeStanding(
        node=NODES[number], role=node.role, database=Database.UP if node.up else Database.DOWN,
        read_only=not node.open, lease_valid=has_right(world, number, rules), record=world.epochs[node.epoch - 1],
        memory=node.memory,
    )  # fmt: skip
    return node.watched and rules.why_not_primary(standing) is None
