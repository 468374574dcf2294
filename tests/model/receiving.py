"""What watchdogs and replicators do with an order, as healthcheck/watchdog.py and replicator/service.py do it.

Each takes a world and returns the next one, or raises from the error tree with nothing done.
"""

from dataclasses import replace

from cluster.errors import Conflict, DeadlinePassed, FencedOut, Refused, Unreachable
from cluster.lineage import History
from cluster.position import Position
from cluster.records import Role
from controller.model import Promoted, Sealed
from controller.plan import Seal
from healthcheck.roles import Signal, advance, allows
from replicator.follow import past_epochs
from tests.model.rules import Rules
from tests.model.seeing import sites_of
from tests.model.state import NODES, Node, Replicator, World, is_prefix, length, position


def with_node(world: World, number: int, node: Node) -> World:
    """Return the world with another node."""
    if (
        not world.may_hold and node.memory.watched_epoch
    ):  # it decides nothing then, and would make equal states different
        node = replace(node, memory=replace(node.memory, watched_epoch=0))
    return replace(world, nodes=(*world.nodes[:number], node, *world.nodes[number + 1 :]))


def with_replicator(world: World, number: int, one: Replicator) -> World:
    """Return the world with another replicator."""
    return replace(world, replicators=(*world.replicators[:number], one, *world.replicators[number + 1 :]))


def broken(world: World, promise: str) -> World:
    """Return the world in which a promise was broken; the first one stays."""
    return world if world.broken else replace(world, broken=promise)


# -- watchdogs -------------------------------------------------------------------------------------------------------


def reachable(world: World, name: str) -> tuple[int, Node]:
    """Return a node whose watchdog answers. Raises Unreachable."""
    number = NODES.index(name)
    node = world.nodes[number]
    if not node.watched:
        raise Unreachable(f"the watchdog of {name} does not answer")
    return number, node


def closed(node: Node) -> Node:
    """Return the node after its watchdog has closed the database; unacknowledged commits stay in its log."""
    return replace(node, open=False, role=advance(node.role, Signal.FENCE), durability=None, grants=frozenset())


def fence(world: World, rules: Rules, name: str, epoch: int) -> World:
    """Close for good as far as `epoch` and older go."""
    number, node = reachable(world, name)
    rules.refuse_older(node, epoch)
    if epoch < node.epoch:
        world = broken(world, f"4: {name} is fenced by an order of epoch {epoch}, it knows epoch {node.epoch}")
    memory = node.memory.sealed(epoch)
    return with_node(world, number, replace(closed(node), memory=memory, commanded=max(node.commanded, epoch)))


def promote(world: World, name: str, epoch: int) -> tuple[World, Promoted]:
    """Make the database ready to be opened for `epoch`; the same answer for the same epoch."""
    number, node = reachable(world, name)
    record, memory = world.epochs[node.epoch - 1], node.memory
    if epoch <= memory.sealed_epoch or epoch < record.epoch or (epoch == record.epoch and record.primary != name):
        raise FencedOut(f"epoch {epoch} is over")
    if memory.generation != str(node.generation) or memory.promoted_epoch != epoch:
        if node.role is Role.PRIMARY:
            raise Refused("it is the primary", hint="fence it first")
        if not node.up or not allows(node.role, Signal.PROMOTE):
            raise Unreachable("the database is down")
        fresh = memory.for_generation(str(node.generation)).promoted(epoch, "", position(node.log))
        node = replace(node, memory=fresh, role=advance(node.role, Signal.PROMOTE), waits=True)
    promoted = Promoted(server_id=number + 1, file="", position=node.memory.promoted_position)
    return with_node(world, number, node), promoted


def admit(world: World, rules: Rules, name: str, epoch: int) -> World:
    """Open the database as the primary of `epoch`, if ZooKeeper says so now."""
    number, node = reachable(world, name)
    record = world.newest
    if not world.reaches(node):
        raise Unreachable("ZooKeeper is not connected")
    if record.epoch < epoch:
        raise Conflict(f"epoch {epoch} is not recorded yet")
    if record.epoch != epoch or record.primary != name or epoch <= node.memory.sealed_epoch:
        raise FencedOut(f"epoch {record.epoch} names {record.primary}")
    return with_node(world, number, opened(world, rules, number))


def opened(world: World, rules: Rules, number: int) -> Node:
    """Return the node after its watchdog opened it by the newest record. Raises Refused when it may not."""
    node, record = world.nodes[number], world.newest
    node = replace(node, epoch=record.epoch, commanded=max(node.commanded, record.epoch), isolation=record.on_isolation,
                   revision=record.revision)  # fmt: skip
    if node.role is Role.PRIMARY and node.memory.opened_epoch == record.epoch:
        return node
    refusal = rules.why_not_open(NODES[number], str(node.generation), record, node.memory)
    if refusal is not None or not node.up or not allows(node.role, Signal.OPEN):
        raise Refused(str(refusal), hint="promote it first")
    memory = replace(node.memory, opened_epoch=record.epoch)
    if world.plan is not None and world.plan.epoch > record.epoch and rules.looks_for_a_newer_plan:
        return replace(node, memory=memory)  # refused after its lease was taken
    waits = node.waits or bool(rules.commits_wait(world.durability, record.epoch))
    return replace(node, memory=memory, open=True, role=advance(node.role, Signal.OPEN), counted=True, waits=waits,
                   durability=world.durability)  # fmt: skip


def follow(world: World, rules: Rules, name: str, epoch: int) -> World:
    """Replicate from the replicator of the own site."""
    number, node = reachable(world, name)
    if epoch < node.commanded:
        raise FencedOut(f"epoch {epoch} is older than {node.commanded}")
    if node.epoch < epoch and world.reaches(node):
        node = replace(node, epoch=world.newest.epoch, commanded=max(node.commanded, world.newest.epoch))
    record = world.epochs[node.epoch - 1]
    names_us = record.primary == name
    if node.role is Role.PRIMARY or (node.resumable and names_us):
        raise Refused("it is the primary", hint="fence it first")
    if not node.up or not allows(node.role, Signal.FOLLOW):
        raise Unreachable("the database is down")
    if node.role is Role.STANDBY:
        return world
    if rules.judge_history(Position.parse(position(node.log)), record.lineage, None) is not History.EQUAL_OR_BEHIND:
        raise Refused("it is ahead", hint="rescue, then rewind")
    memory = node.memory.for_generation("").for_generation(str(node.generation))
    # `joining` and `standby` differ in lag alone, which the model does not know.
    return with_node(world, number, replace(node, memory=memory, role=Role.STANDBY, waits=True))


def drain(world: World, rules: Rules, name: str, epoch: int, until: str) -> World:
    """Follow, if it does not, and apply what the site's archive has, which must reach `until`."""
    if world.nodes[NODES.index(name)].role is not Role.STANDBY:
        world = follow(world, rules, name, epoch)
    number, node = reachable(world, name)
    if epoch < node.memory.sealed_epoch or epoch < node.epoch:
        raise FencedOut(f"epoch {epoch} is over")
    if not node.up:
        raise Unreachable("the database is down")
    here = applied(world, number)
    if len(here) < length(until):
        raise DeadlinePassed(f"{until} is not applied")
    return with_node(world, number, replace(node, log=here))


def applied(world: World, number: int) -> tuple[int, ...]:
    """Return what a standby's log is once it has applied what its site's replicator serves."""
    node = world.nodes[number]
    for site, one in zip(sites_of(world), world.replicators, strict=True):
        if NODES[number] == f"db-{site}" and one.up and is_prefix(node.log, one.log):
            return one.log
    return node.log


# -- replicators -----------------------------------------------------------------------------------------------------


def records_read(world: World, number: int) -> Replicator:
    """Return a replicator after it has read both records: ended epochs are sealed, and their dead tails cut."""
    one = world.replicators[number]
    record = world.newest
    free = world.plan is None or world.plan.epoch <= record.epoch
    return replace(
        one, epoch=record.epoch, counted=one.counted or free, durability=world.durability, sealed=max(one.sealed, record.epoch - 1),
        log=without_dead_tails(one.log, world, record.epoch),
    )  # fmt: skip


def without_dead_tails(log: tuple[int, ...], world: World, epoch: int) -> tuple[int, ...]:
    """Return an archive without what lies beyond the end of an ended epoch, as far as the record of `epoch` tells."""
    for past in past_epochs(world.epochs[epoch - 1].lineage, (1,)):
        end = past.end.sequence(0)
        log = tuple(
            one for number, one in enumerate(log, 1) if number <= end or one // 10 > past.entry.epoch
        )  # fmt: skip
    return log


def seal(world: World, rules: Rules, step: Seal) -> tuple[World, tuple[Sealed, ...]]:
    """Seal everybody who answers; who does not reach `until` promises nothing."""
    told: list[Sealed] = []
    for number, site in enumerate(sites_of(world)):
        one = world.replicators[number]
        if site not in step.sites or not one.up:
            continue
        if one.epoch < step.epoch:
            if not world.reaches(one):
                continue
            one = records_read(world, number)
        until = step.until
        if step.epoch > one.sealed and until is not None and len(one.log) < length(until):
            continue
        one = replace(one, sealed=rules.seal(one, step.epoch))
        world = with_replicator(world, number, one)
        if one.promised and not rules.seals_while_granted:
            continue  # sealed, and told when the grant has ended
        told.append(Sealed(site=site, durable=position(one.log), how="sealed"))
    return world, tuple(told)


def level(world: World, site: str, source: str, until: str) -> World:
    """Have one archive fetch from another."""
    sites = sites_of(world)
    to, giver = world.replicators[sites.index(site)], world.replicators[sites.index(source)]
    if not to.up or not giver.up:
        raise Unreachable("a replicator does not answer")
    if not is_prefix(to.log, giver.log) or len(giver.log) < length(until):
        raise Refused("it has not got it", hint="level with the most advanced")
    return with_replicator(world, sites.index(site), replace(to, log=giver.log[: max(len(to.log), length(until))]))
