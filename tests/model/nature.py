"""What happens by itself: clients commit, logs travel, watchdogs look, leases end, and things break.

Faults cost one of `World.faults`; what heals, or only goes on, is free.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from cluster.errors import OscarHaError
from cluster.records import Role
from healthcheck.roles import Signal, advance
from replicator.permission import Standing
from tests.model import leading
from tests.model.leading import Move
from tests.model.receiving import applied, broken, closed, opened, records_read, with_node, with_replicator
from tests.model.rules import Rules
from tests.model.seeing import NOW, acker_standing, primary_number, pulled_epoch, sites_of
from tests.model.state import NODES, Lease, Node, Replicator, World, is_prefix, position


def commits(world: World, _: Rules) -> Iterator[Move]:
    """A client commits on an open database; it waits for its acknowledgement."""
    for number, node in enumerate(world.nodes):
        if world.writes and node.open:
            log = (*node.log, (node.memory.opened_epoch or 0) * 10 + number + 1)
            after = with_node(world, number, replace(node, log=log))
            yield (
                f"a client commits {position(log)} on {NODES[number]}, it waits",
                replace(after, writes=world.writes - 1),
            )


def receives(world: World, _: Rules) -> Iterator[Move]:
    """A replicator has one more transaction durably."""
    for number, one in enumerate(world.replicators):
        epoch = pulled_epoch(world, one)
        if epoch is None:
            continue
        node = world.nodes[primary_number(world.epochs[epoch - 1])]
        if node.up and len(one.log) < len(node.log) and is_prefix(one.log, node.log):
            log = node.log[: len(one.log) + 1]
            yield (
                f"{sites_of(world)[number]} has {position(log)} durably",
                with_replicator(world, number, replace(one, log=log)),
            )


def acknowledges(world: World, rules: Rules) -> Iterator[Move]:
    """A replicator acknowledges the end of its archive: from this moment on its client may have been told."""
    for number, one in enumerate(world.replicators):
        epoch = pulled_epoch(world, one) or one.epoch
        if not one.up or not epoch or is_prefix(one.log, world.acked):
            continue
        node = world.nodes[primary_number(world.epochs[epoch - 1])]
        standing: Standing = acker_standing(world, number, rules, epoch)
        if not node.up or not is_prefix(one.log, node.log) or not rules.may_acknowledge(standing, NOW):
            continue
        after = replace(world, acked=one.log)
        if any(later.primary != world.epochs[epoch - 1].primary for later in world.epochs[epoch:]):
            after = broken(after, f"1: a commit of epoch {epoch} is acknowledged, the newest is {world.newest.epoch}")
        if not is_prefix(world.acked, one.log):
            after = broken(after, f"2: {position(one.log)} is acknowledged without {position(world.acked)} before it")
        yield f"{sites_of(world)[number]} acknowledges {position(one.log)}: its client is told OK", after


def applies(world: World, _: Rules) -> Iterator[Move]:
    """A standby applies what its site's archive has."""
    for number, node in enumerate(world.nodes):
        if node.up and node.role is Role.STANDBY and (log := applied(world, number)) != node.log:
            yield f"{NODES[number]} applies up to {position(log)}", with_node(world, number, replace(node, log=log))


def replicators_read(world: World, _: Rules) -> Iterator[Move]:
    """A replicator reads the records of epoch and durability."""
    for number, one in enumerate(world.replicators):
        if not one.up or one.lease is not Lease.HELD or (read := records_read(world, number)) == one:
            continue
        if 0 < one.epoch < read.epoch and one.durability != read.durability:
            half = replace(one, durability=read.durability)
            yield (
                f"{sites_of(world)[number]} reads epoch {one.epoch}, then the durability record of the next",
                with_replicator(world, number, half),
            )
        yield f"{sites_of(world)[number]} reads the records of epoch {read.epoch}", with_replicator(world, number, read)


# -- watchdogs -------------------------------------------------------------------------------------------------------


def watchdogs_read(world: World, rules: Rules) -> Iterator[Move]:
    """A watchdog reads the record of the epoch: it closes, opens for the first time, or only knows."""
    record = world.newest
    for number, node in enumerate(world.nodes):
        if not node.watched or node.lease is not Lease.HELD:
            continue
        known = _epoch_read(world, rules, number)
        first = known.memory.promoted_epoch == record.epoch != known.memory.opened_epoch
        if first and known.role is Role.FENCED:
            with suppress(OscarHaError):
                known = opened(with_node(world, number, known), rules, number)
        if known != node:
            did = "opens" if known.open and not node.open else "closes" if node.open and not known.open else "knows"
            yield (
                f"the watchdog of {NODES[number]} reads the record of epoch {record.epoch}: it {did}",
                with_node(world, number, known),
            )


def _epoch_read(world: World, rules: Rules, number: int) -> Node:
    node, record = world.nodes[number], world.newest
    node = replace(node, epoch=record.epoch, commanded=max(node.commanded, record.epoch))
    if node.memory.opened_epoch is not None and rules.must_fence(NODES[number], record, node.memory) is not None:
        node = replace(node, memory=node.memory.sealed(record.epoch - 1))
        return closed(node) if node.role is Role.PRIMARY else node
    return node


def resumes(world: World, rules: Rules) -> Iterator[Move]:
    """A watchdog that closed only because its lease ended opens again, if no plan runs and the record is the same."""
    for number, node in enumerate(world.nodes):
        if not node.watched or not node.resumable or node.lease is not Lease.HELD:
            continue
        known = _epoch_read(world, rules, number)
        free = world.plan is None or rules.resumes_while_a_plan_runs
        if not free or not known.resumable or world.newest.epoch != known.memory.opened_epoch:
            continue
        try:
            yield (
                f"{NODES[number]} opens again: its lease is back",
                with_node(world, number, opened(with_node(world, number, known), rules, number)),
            )
        except OscarHaError:
            continue


def closes(world: World, rules: Rules) -> Iterator[Move]:
    """A watchdog closes its primary when the lease has ended by its own clock."""
    for number, node in enumerate(world.nodes):
        if node.watched and node.role is Role.PRIMARY and not rules.lease_valid(node):
            yield f"{NODES[number]} fences itself: its lease ended", with_node(world, number, closed(node))


# -- leases ----------------------------------------------------------------------------------------------------------

ENDS: dict[Lease, tuple[tuple[Lease, str], ...]] = {
    Lease.CUT: ((Lease.LAPSED, "its lease ends by its own clock"), (Lease.LATE, "its record goes, its clock is slow")),
    Lease.LAPSED: ((Lease.ENDED, "its record has been gone for the margin"),),
    Lease.LATE: ((Lease.ENDED, "its record has been gone for the margin"),),
}


def leases(world: World, rules: Rules) -> Iterator[Move]:
    """Time passes for those who are cut off; whoever lives may reach ZooKeeper again."""
    for number, node in enumerate(world.nodes):
        overdue = node.role is Role.PRIMARY and not rules.lease_valid(node) and rules.closes_before_renewing
        for lease, story in _next(node, node.watched and not overdue):
            yield f"{NODES[number]}: {story}", with_node(world, number, replace(node, lease=lease))
    for number, one in enumerate(world.replicators):
        for lease, story in _next(one, one.up):
            yield (
                f"replicator {sites_of(world)[number]}: {story}",
                with_replicator(world, number, replace(one, lease=lease)),
            )


def _next(holder: Node | Replicator, alive: bool) -> tuple[tuple[Lease, str], ...]:
    back = ((Lease.HELD, "it reaches ZooKeeper again"),) if alive and holder.lease is not Lease.HELD else ()
    return (*ENDS.get(holder.lease, ()), *back)


# -- faults ----------------------------------------------------------------------------------------------------------


def faults(world: World, _: Rules) -> Iterator[Move]:
    """One thing breaks."""
    if not world.faults:
        return
    left = replace(world, faults=world.faults - 1)
    for number, node in enumerate(world.nodes):
        name = NODES[number]
        if node.lease is Lease.HELD and node.watched:
            yield f"{name} is cut off from ZooKeeper", with_node(left, number, replace(node, lease=Lease.CUT))
            yield (
                f"the watchdog of {name} crashes",
                with_node(left, number, replace(node, lease=Lease.CUT, watched=False)),
            )
        if node.up:
            dead = replace(node, up=False, open=False, role=advance(node.role, Signal.NEW_SERVER))
            yield f"the server of {name} crashes", with_node(left, number, dead)
    for number, one in enumerate(world.replicators):
        site = sites_of(world)[number]
        if one.lease is Lease.HELD:
            yield (
                f"replicator {site} is cut off from ZooKeeper",
                with_replicator(left, number, replace(one, lease=Lease.CUT)),
            )
        if one.up:
            lease = Lease.CUT if one.lease is Lease.HELD else one.lease
            dead_one = replace(one, up=False, lease=lease, epoch=0, durability=None)
            yield f"replicator {site} crashes", with_replicator(left, number, dead_one)
    yield f"controller {world.leader} dies, another leads", replace(left, leader=world.leader + 1)


def restarts(world: World, rules: Rules) -> Iterator[Move]:
    """What crashed is started again: a server born fenced, without the tail that its crash may have cut (decision 0010)."""
    for number, node in enumerate(world.nodes):
        if not node.up:
            for log in _after_crash(node.log, number + 1, world):
                born = replace(node, up=True, log=log, generation=node.generation + 1)
                yield (
                    f"the server of {NODES[number]} starts, fenced, at {position(log) or 'nothing'}",
                    with_node(world, number, born),
                )
        if not node.watched:
            yield f"the watchdog of {NODES[number]} starts", with_node(world, number, _met(world, rules, number))
    for number, one in enumerate(world.replicators):
        if not one.up:
            started = replace(one, up=True, lease=Lease.HELD)
            yield f"replicator {sites_of(world)[number]} starts", with_replicator(world, number, started)


def _after_crash(log: tuple[int, ...], server_id: int, world: World) -> Iterator[tuple[int, ...]]:
    """Yield what a crash may leave: the unacknowledged end is cut or not, and the last acknowledged commit with it."""
    tail = 0
    while tail < len(log) and log[-1 - tail] % 10 == server_id and log[-1 - tail] == log[-1]:
        tail += 1
    unacked = 0
    while unacked < tail and not is_prefix(log[: len(log) - unacked], world.acked):
        unacked += 1
    for cut in range(min(tail, unacked + 1) + 1):
        yield log[: len(log) - cut]


def _met(world: World, rules: Rules, number: int) -> Node:
    """Return the node after its watchdog has restarted and looked at the server (`Watchdog._meet`)."""
    follows = world.nodes[number].role is Role.STANDBY
    node = replace(world.nodes[number], watched=True, lease=Lease.HELD, epoch=world.newest.epoch,
                   commanded=world.newest.epoch, role=Role.FENCED)  # fmt: skip
    if not node.up:
        return node
    if follows and not node.open:
        return replace(node, role=Role.STANDBY)
    seen = with_node(world, number, node)
    for _, after in resumes(seen, rules) if node.open else ():
        if after.nodes[number].open:
            return after.nodes[number]
    known = _epoch_read(seen, rules, number)
    return closed(known)


ACTIONS = (
    leading.tick,
    leading.request,
    leading.arrivals,
    commits,
    receives,
    acknowledges,
    applies,
    replicators_read,
    watchdogs_read,
    resumes,
    closes,
    leases,
    restarts,
    faults,
)
"""Everything that can happen, as a table."""
