"""Every guard, taken away one at a time: the rules without it, and the start from which the checker finds the harm."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.clock import Nanos
from controller import plan as steps
from controller.advance import next_step
from controller.model import Kind, PlanRecord, Stage, View
from controller.plan import GiveUp, Step, Wait
from healthcheck.judge import Memory
from replicator import permission
from replicator.permission import Standing
from tests.model.rules import Rules
from tests.model.scopes import healthy, second_epoch
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


def _without_floor(view: View) -> View:
    return replace(view, durability=view.durability and replace(view.durability, floor=""))


def _without_former(view: View) -> View:
    return replace(view, durability=view.durability and replace(view.durability, former=()))


def _nobody_to_ask(view: View) -> View:
    """The plan does not know who was named: any sealed archive will do."""
    record = view.durability
    everybody = tuple(one.site for one in view.replicators)
    return replace(view, durability=record and replace(record, ackers=(), former=(everybody,)))


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


LATER = Nanos(NOW + 1)
MUTATIONS: Mapping[str, Mutation] = {
    "a silent holder's lease has ended only after the margin": Mutation(
        Rules(margin_ms=0.0), "3", healthy(writes=0, failovers=1)),
    "a holder's own clock ends its lease": Mutation(
        Rules(lease_valid=lambda _: True), "3", healthy(writes=0)),
    "whoever comes back closes before it renews a lease that ended": Mutation(
        Rules(closes_before_renewing=False), "3", healthy(writes=0)),
    "what closed because its lease ended opens by itself only while no plan runs": Mutation(
        Rules(resumes_while_a_plan_runs=True, looks_for_a_newer_plan=False), "3", healthy(writes=0)),
    "what was named and not opened yet is not opened while a later plan runs": Mutation(
        Rules(looks_for_a_newer_plan=False), "3", healthy(writes=0, faults=1, switchovers=1), (
            "an operator asks", *("controller 1",) * 7, "db-toronto is cut off", "controller 1", "controller 1",
            "db-toronto: its lease ends", "db-toronto: its record has been gone", *("controller 1",) * 4)),
    "proof of fence before a promotion": Mutation(
        Rules(next_step=_without_proof), "3", healthy(writes=0, faults=0, failovers=1)),
    "a seal is a promise": Mutation(
        Rules(seal=lambda one, _: one.sealed), "1", healthy()),
    "who has sealed an epoch does not acknowledge it": Mutation(
        _permitted(sealed_epoch=0), "1", healthy()),
    "only who is named acknowledges": Mutation(
        Rules(may_acknowledge=_whoever_is_there), "2", healthy(faults=2), (*_has_it("montreal"), *_ends("montreal"))),
    "only who holds a lease acknowledges": Mutation(
        _permitted(lease_until=LATER), "2", healthy(faults=2), (
            *_ends("toronto"), "montreal is named", "montreal reads", "former ackers are settled", *_has_it("toronto"))),
    "only by a durability record of the epoch that is pulled": Mutation(
        Rules(may_acknowledge=_by_any_record), "1", healthy(faults=2), (
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
}  # fmt: skip
