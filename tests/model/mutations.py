"""Every guard, taken away one at a time: the rules without it, and the start from which the checker finds the harm."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.clock import Nanos
from cluster.records import Alone, Durability, DurabilityRecord, GrantRequest, Isolation
from cluster.settings import Timing
from controller import plan as steps
from controller.advance import Outcome, next_step, progress
from controller.model import Kind, PlanRecord, Stage, View
from controller.plan import GiveUp, Step, Wait
from healthcheck.granted import granted_until
from healthcheck.judge import Memory
from replicator import granting, permission
from replicator.permission import Standing
from tests.model.rules import Rules
from tests.model.scopes import alone, healthy, held, holding, second_epoch
from tests.model.seeing import NOW
from tests.model.state import Request, World


@dataclass(frozen=True, slots=True)
class Mutation:
    """The rules without one guard. `expect` is the number of the invariant that then breaks."""

    rules: Rules
    expect: str
    start: World
    begins: tuple[str, ...] = ()
    """How the story begins; from there everything is tried."""


def _permitted(**lies: Any) -> Rules:
    """Acknowledge as production would if the facts were `lies`."""

    def may(standing: Standing, now: Nanos) -> bool:
        return permission.may_acknowledge(replace(standing, **lies), now)

    return Rules(may_acknowledge=may)


def _whoever_is_there(standing: Standing, now: Nanos) -> bool:
    record = standing.durability
    named = record and replace(record, ackers=(standing.site,))
    return permission.may_acknowledge(replace(standing, durability=named), now)


def _by_any_record(standing: Standing, now: Nanos) -> bool:
    record = standing.durability
    known = record and replace(record, epoch=standing.epoch)
    return permission.may_acknowledge(replace(standing, durability=known), now)


def _without_proof(view: View, plan: PlanRecord, now_text: str) -> Step | Wait | GiveUp:
    if plan.stage is Stage.FENCE and plan.kind is Kind.FAILOVER:
        return steps.AcceptLeaseEnd(node=plan.old or "", epoch=plan.epoch - 1)
    return next_step(view, plan, now_text)


def _accepted_without_proof(view: View, plan: PlanRecord, now_text: str) -> Step | Wait | GiveUp:
    """A loss that is accepted is taken for a proof of fence."""
    return _without_proof(view, plan, now_text) if plan.accepts is not None else next_step(view, plan, now_text)


def _loss_untold(view: View, plan: PlanRecord, now_text: str) -> Step | Wait | GiveUp:
    """Whatever is lost, it is said that nothing is."""
    step = next_step(view, plan, now_text)
    if not isinstance(step, steps.Choose) or step.loss is None:
        return step
    return replace(step, loss=replace(step.loss, transactions=0))


def _without_floor(view: View) -> View:
    return replace(view, durability=view.durability and replace(view.durability, floor=""))


def _without_former(view: View) -> View:
    return replace(view, durability=view.durability and replace(view.durability, former=()))


def _nobody_to_ask(view: View) -> View:
    """The plan does not know who was named: any sealed archive will do."""
    record = view.durability
    everybody = tuple(one.site for one in view.replicators)
    return replace(view, durability=record and replace(record, ackers=(), former=(everybody,)))


def _knows_every_record(view: View) -> View:
    """The primary is believed to know the newest durability record."""
    nodes = tuple(replace(one, report=one.report and replace(one.report, serial=10**6)) for one in view.nodes)
    return replace(view, nodes=nodes)


def _grants(**lies: Any) -> Rules:
    """Grant as production would if the facts were `lies`."""

    def why_not(standing: Standing, asked: GrantRequest, now: Nanos, timing: Timing) -> str | None:
        return granting.why_not_grant(replace(standing, **lies), asked, now, timing)

    return Rules(why_not_grant=why_not)


def _by_any_serial(standing: Standing, asked: GrantRequest, now: Nanos, timing: Timing) -> str | None:
    record = standing.durability
    known = record and replace(record, serial=asked.serial)
    return granting.why_not_grant(replace(standing, durability=known), asked, now, timing)


def _confirmed_by_any_serial(standing: Standing, now: Nanos) -> bool:
    word, record = standing.confirmed, standing.durability
    known = replace(word, serial=record.serial) if word is not None and record is not None else None
    return permission.may_acknowledge(replace(standing, confirmed=known), now)


def _one_is_enough(held: Any, sites: Iterable[str], timing: Timing) -> Nanos | None:
    return granted_until(held, [site for site in sites if site in held], timing)


def _waits_for_nobody(_: DurabilityRecord | None, __: int | None) -> bool:
    """The watchdog sees by itself that nobody acknowledges, and does not wait for the record."""
    return False


def _waits_only_in_sync(record: DurabilityRecord | None, _: int | None) -> bool:
    return record is None or not record.is_degraded


def _known_to_wait(view: View) -> View:
    """A controller that believes that commits wait as soon as somebody is named."""
    nodes = tuple(replace(one, report=one.report and replace(one.report, waits_by=10**6)) for one in view.nodes)
    return replace(view, nodes=nodes)


def _loses(view: View) -> View:
    return replace(view, policy=replace(view.policy, loses_while_degraded=True))


def _sees_no_degradation(view: View) -> View:
    record = view.durability
    return replace(view, durability=record and replace(record, mode=Durability.SYNC))


def _takes_a_lease_for_a_proof(view: View) -> View:
    """A controller that does not care that the primary holds while it is cut off."""
    forgetful = replace(view.policy, holds=False)
    return replace(view, policy=forgetful, epoch=view.epoch and replace(view.epoch, on_isolation=Isolation.PROMOTE))


def _believed_to_have_waited(view: View) -> View:
    """A controller that believes that nothing was told alone which is not recorded."""
    epoch = view.epoch.epoch if view.epoch else 0
    nodes = tuple(
        replace(one, report=one.report and replace(one.report, alone=None, vouches=epoch)) for one in view.nodes
    )
    return replace(view, nodes=nodes)


def _whatever_is_fenced_vouches(view: View, plan: PlanRecord, step: Step, outcome: Outcome) -> PlanRecord:
    return progress(view, plan, step, replace(outcome, vouched=True))


def _believed_to_have_let_go(view: View) -> View:
    """A controller that believes that the primary knows by now that it must not hold."""
    nodes = tuple(replace(one, report=one.report and replace(one.report, revision=10**6)) for one in view.nodes)
    return replace(view, nodes=nodes)


def _covered_by_any_record(_: Alone, record: DurabilityRecord | None) -> bool:
    return record is not None and record.is_degraded


def _any_transaction(_: World, __: Request) -> bool:
    return True


def _open_for_whom_it_names(node: str, _: str, record: Any, __: Memory) -> str | None:
    return None if record.primary == node else "another"


def _has_it(site: str) -> tuple[str, ...]:
    """A commit that one site alone has, and acknowledges."""
    return ("a client commits", f"{site} has 0-1-1 durably", f"{site} acknowledges 0-1-1")


def _ends(who: str) -> tuple[str, ...]:
    """Somebody is cut off from ZooKeeper for long."""
    name = who if who.startswith("db-") else f"replicator {who}"
    return (f"{name} is cut off", f"{name}: its lease ends", f"{name}: its record has been gone")


OUTAGE = ("ZooKeeper is gone", "db-clinic has the grants", "db-clinic has the grants", "db-clinic: its lease ends")
"""From there db-clinic writes by grants, and Toronto acknowledges without a lease."""
NAMED = ("montreal is named", "montreal reads")
LEFT_OUT = (*_ends("toronto"), *NAMED, "db-clinic looks", "former ackers are settled")
"""Toronto acts on an older record than all others, and no failover asks for its word any more."""
SILENT = (
    "nobody is confirmed",
    "the grants end",
    "db-clinic fences",
    "no grant binds",
    "db-clinic: its record has been",
)
"""Then nothing is heard of db-clinic any more."""
LATER = Nanos(NOW + 1)
DEGRADED = ("durability is degraded", "db-clinic looks", "the commits of db-clinic wait no more")
ALONE = (*DEGRADED, "a client commits", "db-clinic answers OK")
"""A client was told OK of a commit that is on db-clinic alone."""
HELD = (
    "db-clinic is cut off",
    "db-clinic: its lease ends",
    "db-clinic holds",
    "a client commits",
    "db-clinic answers OK",
)
"""A client of a primary that is cut off was told OK of a commit that is on no other disk."""
OLDER = (*DEGRADED, "replicator toronto starts", "toronto reads", "durability is degraded, toronto is named", "toronto reads",
         "db-clinic looks", "the commits of db-clinic wait again", "toronto has caught up", "db-clinic is cut off",
         "db-clinic: its lease ends")  # fmt: skip
"""The primary knows the degraded record alone; that all was in sync again was recorded, and it has not read that."""
MUTATIONS: Mapping[str, Mutation] = {
    "a silent holder's lease has ended only after the margin": Mutation(
        Rules(margin_ms=0.0), "3", healthy(writes=0, failovers=1)),
    "a holder's own clock ends its lease": Mutation(
        Rules(lease_valid=lambda _: True), "3", healthy(writes=0)),
    "a lease whose record was away counts only after a look for a later plan": Mutation(
        Rules(counts_at_once=True), "3", healthy(writes=0)),
    "what closed because its lease ended opens by itself only while no plan runs": Mutation(
        Rules(resumes_while_a_plan_runs=True, looks_for_a_newer_plan=False), "3", healthy(writes=0)),
    "what was named and not opened yet is not opened while a later plan runs": Mutation(
        Rules(looks_for_a_newer_plan=False), "3", healthy(writes=0, faults=1, switchovers=1), (
            "an operator asks", *("controller 1",) * 7, "db-toronto is cut off", "controller 1", "controller 1",
            "db-toronto: its lease ends", "db-toronto: its record has been gone", *("controller 1",) * 4)),
    "proof of fence before a promotion": Mutation(
        Rules(next_step=_without_proof), "3", healthy(writes=0, faults=0, failovers=1)),
    "whose record was gone reads anew who acknowledges, before it does": Mutation(
        Rules(trusts_what_it_read_before=True), "2", healthy(faults=3), (
            *LEFT_OUT, "replicator toronto: it reaches", *_has_it("toronto"), "replicator toronto crashes",
            "replicator toronto: its lease ends", "replicator toronto: its record has been gone",
            "the server of db-clinic crashes")),
    "who comes back while a plan runs acknowledges only after it": Mutation(
        Rules(trusts_what_it_read_before=True), "1", healthy(losses=1), (
            "a client commits", "toronto has 0-1-1 durably", *_ends("toronto"))),
    "a loss that is accepted is no proof of fence": Mutation(
        Rules(next_step=_accepted_without_proof), "3", healthy(writes=0, faults=0, losses=1)),
    "what is lost is told": Mutation(
        Rules(next_step=_loss_untold), "2", healthy(faults=2, losses=1), (*_has_it("toronto"), *_ends("toronto"))),
    "a seal is a promise": Mutation(
        Rules(seal=lambda one, _: one.sealed), "1", healthy()),
    "who has sealed an epoch does not acknowledge it": Mutation(
        _permitted(sealed_epoch=0), "1", healthy()),
    "only who is named acknowledges": Mutation(
        Rules(may_acknowledge=_whoever_is_there), "2", healthy(faults=2), (*_has_it("montreal"), *_ends("montreal"))),
    "only who holds a lease acknowledges": Mutation(
        _permitted(lease_until=LATER), "2", healthy(faults=2), (
            *LEFT_OUT, *_has_it("toronto"))),
    "only by a durability record of the epoch that is pulled": Mutation(
        # Without a seal only who was away gets here in the model, so the guard for that (0088) is away as well.
        Rules(may_acknowledge=_by_any_record, trusts_what_it_read_before=True), "1", healthy(faults=2), (
            *_ends("montreal"), "the watchdog of db-clinic crashes", *_ends("db-clinic")[1:])),
    "one of each group that was named must tell its archive": Mutation(
        Rules(see=_nobody_to_ask), "2", healthy(faults=2), (*_has_it("toronto"), *_ends("toronto"))),
    "who was named before is asked too": Mutation(
        Rules(see=_without_former), "2", healthy(faults=2), (*_has_it("toronto"), *_ends("toronto"))),
    "the archives must reach the floor": Mutation(
        Rules(see=_without_floor), "2", second_epoch(faults=2), _ends("toronto")),
    "an epoch is opened by a compare-and-set of the plan, by the leader": Mutation(
        Rules(committed=_any_transaction), "4", healthy(writes=0, failovers=1)),
    "a watchdog refuses an order of an older epoch": Mutation(
        Rules(refuse_older=lambda *_: None), "4", healthy(writes=0, switchovers=1)),
    "a rollback opens only the server process that was fenced": Mutation(
        Rules(generation=lambda _: "1"), "2", healthy(faults=2, switchovers=1), (
            *_has_it("toronto"), "an operator asks", "controller 1: choose", "controller 1: fence db-clinic")),
    "a watchdog opens only what is not sealed, and was made ready for this epoch in this run": Mutation(
        Rules(why_not_open=_open_for_whom_it_names, looks_for_a_newer_plan=False), "3", healthy(writes=0, faults=1, failovers=1), ()),
    "a seal is told only when no grant is relied on": Mutation(
        Rules(seals_while_granted=True), "3", healthy(writes=0, faults=0, outages=1), OUTAGE),
    "a primary needs the grants of all": Mutation(
        Rules(granted_until=_one_is_enough), "3", healthy(writes=0, faults=0, outages=1)),
    "who has sealed an epoch grants nothing": Mutation(
        _grants(sealed_epoch=0), "3", healthy(writes=0, faults=0, outages=1), OUTAGE),
    "a replicator that restarts knows that it granted": Mutation(
        Rules(forgets_its_promise=True), "3", healthy(writes=0, outages=1), (
            *OUTAGE, "replicator toronto crashes", "ZooKeeper is back", "replicator toronto starts",
            "db-clinic: its record has been gone")),
    "who acts on another durability record grants nothing": Mutation(
        Rules(why_not_grant=_by_any_serial, may_acknowledge=_confirmed_by_any_serial), "2", healthy(outages=1),
        (*LEFT_OUT, "montreal reads", "db-clinic looks", *OUTAGE, *_has_it("toronto"), "ZooKeeper is back", *SILENT)),
    "who was named is settled only once the primary knows": Mutation(
        Rules(see=_knows_every_record, check_repair=lambda *_: None), "2", healthy(outages=1), (
            *_ends("toronto"), "montreal is named", "former ackers are settled", *OUTAGE, *_has_it("toronto"),
            "ZooKeeper is back", *SILENT)),
    "nobody is settled while somebody is confirmed": Mutation(
        Rules(settles_while_confirmed=True), "2", healthy(outages=1), (
            *OUTAGE, "ZooKeeper is back", "db-clinic: it reaches", "replicator montreal: it reaches",
            "replicator toronto: its record has been gone", *LEFT_OUT[3:], *_has_it("toronto"), "the server of db-clinic crashes")),
    "a confirmation counts from the mark in it": Mutation(
        Rules(believes_late_requests=True), "2", healthy(faults=2), (
            *LEFT_OUT, "late, toronto hears", *_has_it("toronto"), "the server of db-clinic crashes")),
    "commits stop waiting only by a record": Mutation(
        Rules(commits_wait=_waits_for_nobody), "2", alone(faults=0)),
    "sync is recorded only once commits wait": Mutation(
        Rules(see=_known_to_wait, check_repair=lambda *_: None), "2", alone(faults=0), DEGRADED),
    "commits wait as soon as somebody is named": Mutation(
        Rules(commits_wait=_waits_only_in_sync, see=_known_to_wait), "2", alone(faults=0), DEGRADED),
    "sync is recorded only once who is named has all that was written": Mutation(
        Rules(returns_before_all_is_there=True), "2", alone(), ALONE),
    "while durability is degraded no failover loses anything by itself": Mutation(
        Rules(see=_loses), "2", alone(), ALONE),
    "while durability is degraded an ended lease is no proof of fence": Mutation(
        Rules(see=_sees_no_degradation), "1", alone(), (
            *DEGRADED, "replicator toronto starts", "toronto reads", "the watchdog of db-clinic crashes",
            "db-clinic: its lease ends", "db-clinic: its record has been gone", *("controller 1",) * 8)),
    "where a primary holds the end of its lease is no proof of fence": Mutation(
        Rules(see=_takes_a_lease_for_a_proof), "3", holding(writes=0)),
    "a primary that holds remembers before it answers alone": Mutation(
        Rules(answers_unremembered=True), "2", holding()),
    "what was answered alone is not lost by itself": Mutation(
        Rules(see=_believed_to_have_waited, progress=_whatever_is_fenced_vouches), "2", holding(faults=2),
        (*HELD, "the server of db-clinic crashes")),
    "a primary holds no more only once it has said so": Mutation(
        Rules(see=_believed_to_have_let_go, check_repair=lambda *_: None), "3", holding(writes=0, wanted=False)),
    "only a record after it tells of what was answered alone": Mutation(
        Rules(is_covered=_covered_by_any_record), "2", held(alone()), OLDER),
}  # fmt: skip
