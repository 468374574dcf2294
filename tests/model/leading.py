"""The two controllers: whoever leads ticks as controller/loop.py does, and may die at every boundary of a step.

A leader that was deposed only finishes the one request that it had sent.
"""

from collections.abc import Iterator
from dataclasses import replace

from cluster.errors import Bug, OscarHaError, Refused
from controller import plan as steps
from controller.accepted import Accepted
from controller.advance import SEAL_PATIENCE_MS, Outcome, accepting
from controller.choose import rank
from controller.decide import Decision, Hold, Mend, Start
from controller.loop import new_plan
from controller.model import Kind, PlanRecord, Stage, View
from controller.plan import Follow, GiveUp, NameAckers, NameIsolation, ReturnToSync, SettleAckers, Step, Wait
from tests.model import receiving
from tests.model.rules import Rules
from tests.model.seeing import has_right, sites_of, view_of
from tests.model.state import NODES, Log, Request, World, is_prefix, length, position

ANYTHING = Accepted(transactions=None, seconds=None)
Move = tuple[str, World]


def tick(world: World, rules: Rules) -> Iterator[Move]:
    """Yield what may come of one tick of the leading controller."""
    if world.gone:
        return
    view = view_of(world, rules)
    try:
        yield from _decide(world, view, rules) if world.plan is None else _go_on(world, view, world.plan, rules)
    except Bug:
        return  # invariants.py refused: nothing was done


def request(world: World, rules: Rules) -> Iterator[Move]:
    """Yield the plans that an operator may ask for."""
    if world.plan is not None or world.gone:
        return
    view = view_of(world, rules)
    left = {Kind.SWITCHOVER: world.switchovers, Kind.FAILOVER: world.failovers}
    for kind in (kind for kind, many in left.items() if many):
        plan = plain(new_plan(view, kind, "asked for", old=world.newest.primary))
        if kind is Kind.SWITCHOVER and not any(one.able for one in rank(view, plan)):
            continue  # refused, with the reasons
        yield f"an operator asks for a {kind.value}", replace(
            world, plan=plan, switchovers=left[Kind.SWITCHOVER] - (kind is Kind.SWITCHOVER),
            failovers=left[Kind.FAILOVER] - (kind is Kind.FAILOVER),
        )  # fmt: skip


def accepts(world: World, _: Rules) -> Iterator[Move]:
    """An operator accepts whatever a failover loses, of one that waits or of a new one."""
    if not world.losses or world.gone:
        return
    old = world.newest.primary
    plan = world.plan or PlanRecord(id="", kind=Kind.FAILOVER, epoch=world.newest.epoch + 1, stage=Stage.SEAL, why="",
                                    started="", old=old, old_generation=str(world.nodes[NODES.index(old)].generation))  # fmt: skip
    try:
        joined = plain(accepting(plan, ANYTHING, None, "", 0.0))
    except Refused:
        return
    yield "an operator accepts whatever is lost", replace(world, plan=joined, written=None, losses=world.losses - 1)


def arrivals(world: World, rules: Rules) -> Iterator[Move]:
    """Yield what a request does that was on its way, perhaps for long."""
    for one in world.requests:
        left = replace(world, requests=tuple(other for other in world.requests if other != one))
        try:
            after = _done(left, rules, one)[0]
        except OscarHaError:
            after = left
        yield f"late, the request of controller {one.leader} arrives: {told(one.step)}", after


def plain(plan: PlanRecord) -> PlanRecord:
    """Return a plan without what only people read: it would make equal states different."""
    loss = None if plan.accepts is None or plan.loss is None else replace(plan.loss, why="", seconds=None, at_least=0)
    return replace(plan, id="", started="", why="", steps=(), waiting=None, trouble=None, stalled_ms=None, ranking=(),
                   loss=loss, old_position=plan.old_position if plan.accepts is not None else None,
                   rolled_back=plan.rolled_back and "a step failed")  # fmt: skip


# -- no plan ---------------------------------------------------------------------------------------------------------


def _decide(world: World, view: View, rules: Rules) -> Iterator[Move]:
    decision: Decision = rules.decide(view, "")
    match decision:
        case Start(kind=kind, old=old, why=why):
            plan = plain(new_plan(view, kind, why, old=old, automatic=True))
            yield (
                f"controller {world.leader} begins a {kind.value} to epoch {plan.epoch}: {why}",
                replace(world, plan=plan),
            )
        case Mend(repairs=repairs) | Hold(repairs=repairs):
            for repair in repairs:
                rules.check_repair(view, repair)
                yield from _repair(world, rules, repair)


def _repair(world: World, rules: Rules, repair: steps.Repair) -> Iterator[Move]:
    match repair:
        case Follow(node=node, epoch=epoch):
            try:
                yield f"{node} is told to follow", receiving.follow(world, rules, node, epoch)
            except OscarHaError:
                return
        case NameAckers(durability=record):
            names = f"{' and '.join(record.ackers) or 'nobody'} is named to acknowledge, former {record.former}"
            names = f"durability is degraded, {names}" if record.is_degraded else names
            yield names, replace(world, durability=replace(record, why="", since=""))
        case SettleAckers(node=node, durability=record):
            log = world.nodes[NODES.index(node)].log
            named = [one for site, one in zip(sites_of(world), world.replicators, strict=True) if site in record.ackers]
            confirmed = any(one.confirmed for one in world.replicators) and not rules.settles_while_confirmed
            if all(is_prefix(log, one.log) and one.up for one in named) and not confirmed:
                floor = replace(record, floor=position(log), why="", since="")
                yield f"former ackers are settled, the floor is {position(log)}", replace(world, durability=floor)
        case ReturnToSync(node=node, durability=record):
            primary = world.nodes[NODES.index(node)]
            named = [one for site, one in zip(sites_of(world), world.replicators, strict=True) if site in record.ackers]
            there = (
                all(is_prefix(primary.log, one.log) and one.up for one in named) or rules.returns_before_all_is_there
            )
            if there and primary.watched:
                back = replace(record, floor=position(primary.log), why="", since="")
                yield (f"{' and '.join(record.ackers)} has caught up, the floor is {back.floor}: in sync again",
                       replace(world, durability=back, acked=max(world.acked, world.told, key=len), told=()))  # fmt: skip
        case steps.Reseed() | steps.Restart() | steps.NoteRejoin():
            return  # seedings are not modelled
        case NameIsolation(record=record):
            after = replace(world, epochs=(*world.epochs[:-1], record))
            yield f"it is recorded what the primary does when it is cut off: {record.on_isolation.value}", after


# -- a plan ----------------------------------------------------------------------------------------------------------


def _go_on(world: World, view: View, plan: PlanRecord, rules: Rules) -> Iterator[Move]:
    step = rules.next_step(view, plan, "")
    who = f"controller {world.leader}"
    match step:
        case Wait():
            return
        case GiveUp(why=why):
            yield f"{who}: {plan.stage.name} gives up: {why}", _kept(world, rules.failed(plan, why))
            return
        case steps.Record():
            yield f"{who} records the end of the plan", replace(world, plan=None, written=None)
            return
        case _:
            pass
    rules.check_step(view, plan, step)
    sent = Request(world.leader, step, plan, world.record or plan, _after_open(view, plan, step, rules))
    failed = world.record or plan if isinstance(step, steps.Open) else rules.failed(plan, "no answer")
    try:
        after, outcome = _done(world, rules, sent)
    except OscarHaError as error:
        yield f"{who}: {told(step)} fails: {error}", _kept(world, rules.failed(plan, "refused"))
    else:
        kept = (
            after
            if isinstance(step, steps.Open)
            else _gone_on(after, plan, rules.progress(view, plan, step, outcome), rules)
        )
        yield f"{who}: {told(step)}", kept
        if world.faults and not isinstance(step, steps.Choose | steps.AcceptLeaseEnd | steps.Open):
            lost = replace(after, faults=world.faults - 1)
            yield f"{who}: {told(step)}; it dies before it has written that", lost.succeeded()
            yield f"{who}: {told(step)}; the answer is lost", _kept(lost, failed)
    if world.faults and not world.requests and not isinstance(step, steps.Choose | steps.AcceptLeaseEnd):
        late = replace(world, requests=(sent,), faults=world.faults - 1)
        yield f"{who}: {told(step)} is sent and delayed; it dies, another leads", late.succeeded()
        yield f"{who}: {told(step)} is sent and delayed; it waits no longer", _kept(late, failed)


def _gone_on(world: World, before: PlanRecord, plan: PlanRecord, rules: Rules) -> World:
    """Go on with a plan that follows from a step; ZooKeeper may be told later."""
    if not rules.may_stay_unwritten(before, plan):
        return _kept(world, plan)
    record = world.record
    return replace(_kept(world, plan), written=record)


def _kept(world: World, plan: PlanRecord) -> World:
    """Write a plan."""
    plan = plain(plan)
    while plan.stage in (Stage.REPOINT, Stage.VERIFY):
        plan = replace(plan, stage=Stage.VERIFY if plan.stage is Stage.REPOINT else Stage.RECORD)
    return replace(world, plan=plan, written=None)


def _after_open(view: View, plan: PlanRecord, step: Step, rules: Rules) -> PlanRecord | None:
    if not isinstance(step, steps.Open):
        return None
    after: PlanRecord = rules.progress(view, plan, step, Outcome(ms=0.0, took_ms=0.0))
    return plain(after)


def _done(world: World, rules: Rules, sent: Request) -> tuple[World, Outcome]:
    """Do one step at its receiver. Raises from the error tree."""
    outcome = Outcome(ms=0.0, took_ms=0.0)
    match sent.step:
        case steps.Fence(node=node, epoch=epoch):
            _, before = receiving.reachable(world, node)
            world = receiving.fence(world, rules, node, epoch)
            at = position(before.log) if before.up else None
            vouched = world.nodes[NODES.index(node)].memory.vouches == epoch
            return world, replace(
                outcome, how="read_only" if before.up else "process dead", position=at, vouched=vouched
            )
        case steps.Seal() as step:
            world, sealed = receiving.seal(world, rules, step)
            took_ms = 0.0 if sent.plan.accepts is None else SEAL_PATIENCE_MS  # who does not answer is not waited for
            return world, replace(outcome, sealed=sealed, took_ms=took_ms)
        case steps.Level(site=site, source=source, until=until) if site != source:
            return receiving.level(world, site, source, until), outcome
        case steps.Apply(node=node, epoch=epoch, until=until):
            return receiving.drain(world, rules, node, epoch, until), outcome
        case steps.Promote(node=node, epoch=epoch):
            world, promoted = receiving.promote(world, node, epoch)
            return world, replace(outcome, promoted=promoted)
        case steps.Open() as step:
            return _open(world, rules, sent, step), outcome
        case steps.Admit(node=node, epoch=epoch):
            return receiving.admit(world, rules, node, epoch), outcome
        case _:
            return world, outcome


def _open(world: World, rules: Rules, sent: Request, step: steps.Open) -> World:
    """Name the new primary, and look whether all that must hold then does."""
    if world.gone or not rules.committed(world, sent):
        raise Refused("somebody else was first")
    if step.record.epoch != world.newest.epoch + 1:
        world = receiving.broken(world, f"4: epoch {step.record.epoch} was opened after epoch {world.newest.epoch}")
    number = NODES.index(step.record.primary)
    log = world.nodes[number].log[: length(step.record.position)]
    if not is_prefix(world.acked, log) and _is_told(sent.plan, world.acked, log):
        world = replace(world, acked=tuple(one for one, other in zip(world.acked, log, strict=False) if one == other))
    if not is_prefix(world.acked, log):
        lost = f"{position(world.acked)} was acknowledged, {step.record.primary} of epoch {step.record.epoch} has {position(log) or 'nothing'}"
        world = receiving.broken(world, f"2: {lost}")
    if not is_prefix(world.told, log) and sent.plan.accepts is None:
        lost = f"{position(world.told)} was answered OK, {step.record.primary} of epoch {step.record.epoch} has {position(log) or 'nothing'}"
        world = receiving.broken(world, f"2: {lost}, and no operator has allowed it")
    for other, node in enumerate(world.nodes):
        if other != number and node.open and has_right(world, other, rules):
            world = receiving.broken(world, f"3: epoch {step.record.epoch} was opened while {NODES[other]} is open")
    record = replace(step.record, since="", proof="", revision=step.record.revision if world.may_hold else 0)
    durability = replace(step.durability, since="", why="")
    return replace(world, epochs=(*world.epochs, record), durability=durability, plan=sent.after, written=None, told=())


def _is_told(plan: PlanRecord, acked: Log, log: Log) -> bool:
    """Return whether a loss is one that the plan tells and an operator has accepted: then it is no broken promise."""
    loss, kept = plan.loss, sum(one == other for one, other in zip(acked, log, strict=False))
    if plan.accepts is None or plan.automatic or loss is None:
        return False
    return loss.transactions is None or len(acked) - kept <= loss.transactions


def told(step: Step) -> str:
    """Return a step in the words of the design."""
    match step:
        case steps.Seal(sites=sites, epoch=epoch, until=until):
            return f"seal epoch {epoch} at {', '.join(sites) or 'nobody'}{f' once {until} is there' if until else ''}"
        case steps.Level(site=site, source=source, until=until):
            return f"level {site} from {source} to {until or 'the beginning'}"
        case steps.Apply(node=node, until=until):
            return f"{node} applies up to {until or 'the beginning'}"
        case steps.Open(record=record, durability=durability):
            return f"open epoch {record.epoch}: {record.primary} from {record.position or 'the beginning'}, acknowledged by {', '.join(durability.ackers)}"
        case steps.Choose(node=node, target=target):
            return f"choose {node}, which must reach {target or 'the beginning'}"
        case steps.AcceptLeaseEnd(node=node):
            return f"the lease of {node} has ended, that is the proof"
        case steps.Fence(node=node, epoch=epoch):
            return f"fence {node}: nothing of epoch {epoch} is opened there again"
        case _:
            return f"{type(step).__name__.lower()} {getattr(step, 'node', '')} for epoch {step.epoch}"
