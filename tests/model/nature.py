"""What happens by itself: clients commit, logs travel, watchdogs look, leases end, and things break.

Faults cost one of `World.faults`; what heals, or only goes on, is free.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from cluster.clock import Nanos
from cluster.errors import OscarHaError
from cluster.records import Alone, GrantRequest, Role
from healthcheck.granted import Held, request_of, why_not_ask
from healthcheck.roles import Signal, advance
from replicator.granting import confirmed_by
from replicator.permission import Confirmed, Standing
from tests.model import leading
from tests.model.leading import Move
from tests.model.receiving import applied, broken, closed, opened, records_read, with_node, with_replicator
from tests.model.rules import Rules
from tests.model.seeing import (
    MARK,
    NOW,
    TIMING,
    acker_standing,
    granted_until,
    has_right,
    holds,
    primary_number,
    pulled_epoch,
    sites_asked,
    sites_of,
)
from tests.model.state import NODES, Lease, Node, Replicator, World, is_prefix, position

Holder = TypeVar("Holder", Node, Replicator)


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


def answers(world: World, _: Rules) -> Iterator[Move]:
    """A database whose commits wait for nobody answers OK to all of them, whatever its watchdog thinks."""
    for number, node in enumerate(world.nodes):
        epoch = node.memory.opened_epoch or 0
        if not node.up or not node.open or node.waits or is_prefix(node.log, world.told):
            continue
        after = replace(world, told=node.log)
        if any(later.primary != NODES[number] for later in world.epochs[epoch:]):
            after = broken(after, f"1: a commit of epoch {epoch} is answered OK, the newest is {world.newest.epoch}")
        elif not node.alone and not world.durability.is_degraded and not is_prefix(node.log, world.acked):
            after = broken(after, f"2: {position(node.log)} is answered OK, and nobody is recorded to wait no more")
        yield f"{NODES[number]} answers OK up to {position(node.log)} by itself", after


def obeys(world: World, rules: Rules) -> Iterator[Move]:
    """A watchdog lets commits wait or not, as the durability record says that it has read (healthcheck/waiting.py)."""
    for number, node in enumerate(world.nodes):
        if not node.watched or not node.up or node.role is not Role.PRIMARY or node.durability is None:
            continue
        if node.alone and rules.is_covered(node.memory.alone, node.durability):
            known = replace(node, memory=replace(node.memory, alone=None), alone_told=False)
            yield f"{NODES[number]} knows that it is recorded that it answers alone", with_node(world, number, known)
            continue
        waits = not node.alone and bool(rules.commits_wait(node.durability, node.memory.opened_epoch))
        may = (rules.lease_valid(node) and node.counted) or (node.alone and has_right(world, number, rules))
        if waits != node.waits and (waits or may):
            how = "again" if waits else "no more"
            yield f"the commits of {NODES[number]} wait {how}", with_node(world, number, replace(node, waits=waits))


def goes_alone(world: World, rules: Rules) -> Iterator[Move]:
    """A primary that holds has waited long enough: it remembers that, and lets its commits go."""
    for number, node in enumerate(world.nodes):
        epoch, record = node.memory.opened_epoch, node.durability
        if not node.watched or not node.open or not node.waits or node.alone or epoch is None or record is None:
            continue
        by_lease = rules.lease_valid(node) and node.counted
        if by_lease or granted_until(world, number, rules) is not None or not holds(world, number, rules):
            continue
        if not rules.commits_wait(record, epoch):
            continue
        alone = Alone(epoch=epoch, serial=record.serial, since="", position="")
        memory = node.memory if rules.answers_unremembered else replace(node.memory, alone=alone)
        gone = replace(node, memory=memory, waits=False, alone_told=node.lease is Lease.HELD)
        yield f"{NODES[number]} holds, nobody acknowledges: it goes on alone", with_node(world, number, gone)


def applies(world: World, _: Rules) -> Iterator[Move]:
    """A standby applies what its site's archive has."""
    for number, node in enumerate(world.nodes):
        if node.up and node.role is Role.STANDBY and (log := applied(world, number)) != node.log:
            yield f"{NODES[number]} applies up to {position(log)}", with_node(world, number, replace(node, log=log))


def replicators_read(world: World, _: Rules) -> Iterator[Move]:
    """A replicator reads the records of epoch and durability."""
    for number, one in enumerate(world.replicators):
        if not one.up or not world.reaches(one) or (read := records_read(world, number)) == one:
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
        if not node.watched or not world.reaches(node):
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
    node = replace(node, epoch=record.epoch, commanded=max(node.commanded, record.epoch), isolation=record.on_isolation,
                   revision=record.revision)  # fmt: skip
    if node.memory.opened_epoch is not None and rules.must_fence(NODES[number], record, node.memory) is not None:
        node = replace(node, memory=node.memory.sealed(record.epoch - 1))
        return closed(node) if node.role is Role.PRIMARY else node
    return node


def resumes(world: World, rules: Rules) -> Iterator[Move]:
    """A watchdog that closed only because its lease ended opens again, if no plan runs and the record is the same."""
    for number, node in enumerate(world.nodes):
        if not node.watched or not node.resumable or not world.reaches(node):
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
        if node.watched and node.role is Role.PRIMARY and not has_right(world, number, rules):
            yield f"{NODES[number]} fences itself: its lease ended", with_node(world, number, closed(node))


# -- without ZooKeeper -----------------------------------------------------------------------------------------------


def counts(world: World, rules: Rules) -> Iterator[Move]:
    """A primary whose lease came back looks whether anything else happened; one that has it reads who acknowledges."""
    for number, node in enumerate(world.nodes):
        if not node.watched or node.role is not Role.PRIMARY or not world.reaches(node):
            continue
        known = _epoch_read(world, rules, number)
        if known.role is not Role.PRIMARY:
            continue
        if world.plan is not None and world.plan.epoch > known.epoch:
            by_lease = rules.lease_valid(node) and node.counted
            if not by_lease and holds(world, number, rules):
                yield f"{NODES[number]} lets go: a plan for a later epoch runs", with_node(world, number, closed(known))
            continue
        known = replace(known, counted=True)
        if world.thorough and known.durability != world.durability:
            known = replace(known, durability=world.durability, grants=frozenset())
        if known != node:
            yield f"{NODES[number]} looks: its lease counts, it knows who acknowledges", with_node(world, number, known)


def asks(world: World, rules: Rules) -> Iterator[Move]:
    """A primary that sees no ZooKeeper asks every replicator for a grant, and tells it whether it has those of all."""
    for number, node in enumerate(world.nodes):
        sees = node.lease is Lease.HELD and node.counted
        if not node.watched or node.role is not Role.PRIMARY or sees:
            continue
        record, durability, epoch = world.epochs[node.epoch - 1], node.durability, node.memory.opened_epoch
        if durability is None or epoch is None or why_not_ask(record, durability, epoch) is not None:
            continue
        until, after, said = granted_until(world, number, rules), world, list[str]()
        for site in sites_asked(world, number):
            held = Held(asked=NOW, mark=MARK) if site in node.grants else None
            one = _granted(world, rules, site, request_of(epoch, durability.serial, held, until, NOW))
            if one is not None:
                after = with_replicator(after, sites_of(world).index(site), one)
                said.append(f"{site}, confirmed by record {durability.serial}" if one.confirmed else site)
        grants = node.grants | {one.split(",")[0] for one in said}
        if (after := with_node(after, number, replace(node, grants=grants))) != world:
            yield f"{NODES[number]} has the grants of {' and '.join(said)}", after


def _granted(world: World, rules: Rules, site: str, asked: GrantRequest) -> Replicator | None:
    """Return a replicator after it has granted what was asked, None when it refuses."""
    at = sites_of(world).index(site)
    one = world.replicators[at]
    if not one.up or one.epoch != asked.epoch:
        return None
    if rules.why_not_grant(acker_standing(world, at, rules, asked.epoch), asked, NOW, TIMING) is not None:
        return None
    return replace(one, promised=True, confirmed=confirmed_by(asked, MARK.run, NOW, TIMING))


def grants_end(world: World, _: Rules) -> Iterator[Move]:
    """Time passes: first nobody is confirmed any more, then no grant is relied on, then no promise binds."""
    ones = world.replicators
    if any(one.confirmed for one in ones):
        yield (
            "nobody is confirmed any more",
            replace(world, replicators=tuple(replace(one, confirmed=None) for one in ones)),
        )
    elif any(node.grants for node in world.nodes):
        nodes = tuple(replace(node, grants=frozenset()) for node in world.nodes)
        yield "the grants end", replace(world, nodes=nodes)
    elif any(one.promised for one in ones):
        yield "no grant binds anybody", replace(world, replicators=tuple(replace(one, promised=False) for one in ones))


def late_requests(world: World, rules: Rules) -> Iterator[Move]:
    """What a primary said long ago arrives. It confirms nothing: the mark in it is old (`confirmed_by`)."""
    if not rules.believes_late_requests:
        return
    for number, one in enumerate(world.replicators):
        record = one.durability
        if (
            one.up
            and one.confirmed is None
            and record is not None
            and one.sealed < record.epoch
            and not one.lease.valid
        ):
            word = Confirmed(epoch=record.epoch, serial=record.serial, until=Nanos(NOW + 1))
            yield (
                f"late, {sites_of(world)[number]} hears that it is confirmed",
                with_replicator(world, number, replace(one, confirmed=word)),
            )


# -- leases ----------------------------------------------------------------------------------------------------------

ENDS: dict[Lease, tuple[tuple[Lease, str], ...]] = {
    Lease.CUT: ((Lease.LAPSED, "its lease ends by its own clock"), (Lease.LATE, "its record goes, its clock is slow")),
    Lease.LAPSED: ((Lease.ENDED, "its record has been gone for the margin"),),
    Lease.LATE: ((Lease.ENDED, "its record has been gone for the margin"),),
}


def leases(world: World, rules: Rules) -> Iterator[Move]:
    """Time passes for those who are cut off; whoever lives may reach ZooKeeper again."""
    for number, node in enumerate(world.nodes):
        closes_first = node.role is Role.PRIMARY and not rules.lease_valid(node) and not world.thorough
        for lease, story in _next(world, node, node.watched and not closes_first):
            counted = node.counted and (lease is not Lease.HELD or node.lease.recorded or node.role is not Role.PRIMARY)
            told = node.alone if lease is Lease.HELD else node.alone_told
            after = replace(node, lease=lease, counted=counted, alone_told=told)
            yield f"{NODES[number]}: {story}", with_node(world, number, after)
    for number, one in enumerate(world.replicators):
        for lease, story in _next(world, one, one.up):
            anew = lease is Lease.HELD and not one.lease.recorded and not rules.trusts_what_it_read_before
            yield (
                f"replicator {sites_of(world)[number]}: {story}",
                with_replicator(world, number, replace(one, lease=lease, counted=one.counted and not anew)),
            )


def _next(world: World, holder: Node | Replicator, alive: bool) -> tuple[tuple[Lease, str], ...]:
    if world.gone:  # nobody removes a record
        return tuple(end for end in ENDS.get(holder.lease, ()) if end[0] is Lease.LAPSED)
    back = ((Lease.HELD, "it reaches ZooKeeper again"),) if alive and holder.lease is not Lease.HELD else ()
    return (*ENDS.get(holder.lease, ()), *back)


# -- faults ----------------------------------------------------------------------------------------------------------


def faults(world: World, rules: Rules) -> Iterator[Move]:
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
            dead = replace(node, up=False, open=False, waits=True, role=advance(node.role, Signal.NEW_SERVER), durability=None,
                           grants=frozenset())  # fmt: skip
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
            dead_one = replace(one, up=False, lease=lease, epoch=0, durability=None, confirmed=None,
                               promised=one.promised and not rules.forgets_its_promise)  # fmt: skip
            yield f"replicator {site} crashes", with_replicator(left, number, dead_one)
    yield f"controller {world.leader} dies, another leads", left.succeeded()


def restarts(world: World, rules: Rules) -> Iterator[Move]:
    """What crashed is started again: a server born fenced, without the tail that its crash may have cut (decision 0010)."""
    for number, node in enumerate(world.nodes):
        if not node.up:
            for log in _after_crash(node.log, number + 1, world):
                born = replace(node, up=True, log=log, generation=node.generation + 1)
                yield (
                    f"the server of {NODES[number]} starts, fenced, at {position(log) or 'nothing'}",
                    _without_what_is_gone(with_node(world, number, born)),
                )
        if not node.watched and not world.gone:
            yield f"the watchdog of {NODES[number]} starts", with_node(world, number, _met(world, rules, number))
    for number, one in enumerate(world.replicators):
        if not one.up and not world.gone:
            started = replace(one, up=True, lease=Lease.HELD, counted=rules.trusts_what_it_read_before)
            yield f"replicator {sites_of(world)[number]} starts", with_replicator(world, number, started)


def _without_what_is_gone(world: World) -> World:
    """A crash may take back what was answered while durability was degraded: that it may is what `degraded` means."""
    logs = [*(node.log for node in world.nodes), *(one.log for one in world.replicators)]
    kept = max((world.told[:many] for many in range(len(world.told) + 1)
                if any(is_prefix(world.told[:many], log) for log in logs)), key=len)  # fmt: skip
    return replace(world, told=kept)


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
                   commanded=world.newest.epoch, role=Role.FENCED, durability=None, grants=frozenset())  # fmt: skip
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


def outages(world: World, _: Rules) -> Iterator[Move]:
    """ZooKeeper is gone for everybody, and comes back. Who only follows returns at once."""
    if world.gone:
        yield "ZooKeeper is back", replace(world, gone=False)
        return
    if world.outages:
        nodes = tuple(_cut(node, Lease.CUT) if node.role is Role.PRIMARY else node for node in world.nodes)
        # What they do until their leases have ended they do before it is gone as well.
        replicators = tuple(_cut(one, Lease.LAPSED) for one in world.replicators)
        yield (
            "ZooKeeper is gone",
            replace(world, gone=True, outages=world.outages - 1, nodes=nodes, replicators=replicators),
        )


def _cut(holder: Holder, lease: Lease) -> Holder:
    return replace(holder, lease=lease) if holder.lease is Lease.HELD else holder


ACTIONS = (
    leading.tick,
    leading.request,
    leading.accepts,
    leading.arrivals,
    commits,
    receives,
    acknowledges,
    answers,
    obeys,
    goes_alone,
    applies,
    replicators_read,
    watchdogs_read,
    resumes,
    closes,
    counts,
    asks,
    grants_end,
    late_requests,
    leases,
    restarts,
    faults,
    outages,
)
"""Everything that can happen, as a table."""
