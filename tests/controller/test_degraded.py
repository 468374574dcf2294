"""When nobody can acknowledge: the record comes first, nothing is lost by itself, and it is in sync again by itself (0089)."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import BadInput, Bug, Refused
from cluster.records import Acks, Database, Durability, DurabilityPolicy, Role
from cluster.settings import DurabilityRules, check
from controller import plan as steps
from controller.ackers import acker_repair
from controller.advance import Outcome, next_step, progress
from controller.decide import Hold, Start, decide
from controller.invariants import check_repair, check_step
from controller.loop import Request, requested_plan
from controller.model import DegradedInterval, DegradedRecord, Kind, Proof, Stage, View
from controller.plan import NameAckers, ReturnToSync, SettleAckers, Wait
from controller.readiness import readiness, sentences
from tests.cluster.test_settings import raw
from tests.controller.builders import (
    ANYTHING,
    CLINIC,
    HEAD,
    SINCE,
    TORONTO,
    a_durability,
    a_node,
    a_plan,
    a_replicator,
    a_view,
    sealed,
)
from tests.controller.test_ackers import facts

PATIENCE_MS = 30_000.0
TOO_LONG, NOT_YET = PATIENCE_MS, PATIENCE_MS - 1
ALONE = {"mode": Durability.DEGRADED, "ackers": (), "former": (("toronto",),), "serial": 4}
CATCHING_UP = ALONE | {"ackers": ("toronto",), "former": (), "serial": 5}


def available(*, durability: dict[str, Any] | None = None, loses: bool = False, **changes: Any) -> View:
    view = a_view(durability=a_durability(**(durability or {})), **changes)
    policy = replace(view.policy, degrade_after_ms=PATIENCE_MS, loses_while_degraded=loses)
    return replace(view, policy=policy)


def both(absent_ms: float) -> dict[str, Any]:
    return {f"replicator_{site}": facts(site, absent_ms=absent_ms) for site in ("toronto", "montreal")}


def told(repair: NameAckers | SettleAckers | ReturnToSync | None) -> str:
    if repair is None or isinstance(repair, SettleAckers):
        return "" if repair is None else "settled"
    record = repair.durability
    return f"{record.mode.value} {' '.join(record.ackers)}, former {record.former}"


BACK = facts("toronto", serial=5, acknowledging=True)
SITUATIONS: dict[str, tuple[View, str]] = {
    "strict: commits wait for ever": (a_view(**both(9e9)), ""),
    "available: not long enough": (available(**both(NOT_YET)), ""),
    "available: long enough": (available(**both(TOO_LONG)), "degraded , former (('toronto',),)"),
    "one is there and could: it is named instead": (
        available(replicator_toronto=facts("toronto", absent_ms=TOO_LONG)), "sync montreal, former (('toronto',),)"),
    "the named one lives and its disk is full, nobody else is there": (
        available(replicator_toronto=facts("toronto", ms={"idle_ms": TOO_LONG}, acknowledging=False, connected=False),
                  replicator_montreal=facts("montreal", absent_ms=9e9), durability_age_ms=9e9), "degraded , former (('toronto',),)"),
    "the record of nobody is what it was": (available(durability=ALONE, **both(9e9)), ""),
    "one is back and near: it is named, and commits will wait again": (
        available(durability=ALONE, replicator_montreal=facts("montreal", absent_ms=9e9)), "degraded toronto, former ()"),
    "another one is back: the older word is still needed": (
        available(durability=ALONE, replicator_toronto=facts("toronto", absent_ms=9e9)),
        "degraded montreal, former (('toronto',),)"),
    "one is back and far behind: it is not waited for": (
        available(durability=ALONE, clinic=a_node("clinic", position="0-1-5000"), **both(9e9)
                  | {"replicator_toronto": facts("toronto", durable="0-1-100")}), ""),
    "it is named, and commits do not wait yet": (
        available(durability=CATCHING_UP, replicator_toronto=BACK, clinic=a_node("clinic", waits_by=None)), ""),
    "it is named, and commits wait by an older record": (
        available(durability=CATCHING_UP, replicator_toronto=BACK, clinic=a_node("clinic", waits_by=4)), ""),
    "it is named, commits wait, it does not acknowledge yet": (
        available(durability=CATCHING_UP, clinic=a_node("clinic", waits_by=5),
                  replicator_toronto=facts("toronto", serial=5, acknowledging=False)), ""),
    "it is named, commits wait, it acknowledges": (
        available(durability=CATCHING_UP, replicator_toronto=BACK, clinic=a_node("clinic", waits_by=5)), "sync toronto, former ()"),
    "it is lost again while it catches up: commits wait for it so long": (
        available(durability=CATCHING_UP, **both(NOT_YET)), ""),
    "it is lost again while it catches up, for too long": (
        available(durability=CATCHING_UP, **both(TOO_LONG)), "degraded , former (('toronto',),)"),
    "it is lost again while it catches up, another one is there": (
        available(durability=CATCHING_UP, replicator_toronto=facts("toronto", absent_ms=1.0)),
        "degraded montreal, former (('toronto',),)"),
    "the settings say strict again: it returns all the same": (
        a_view(durability=a_durability(**CATCHING_UP), replicator_toronto=BACK, clinic=a_node("clinic", waits_by=5)),
        "sync toronto, former ()"),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_has_its_record(name: str) -> None:
    view, expected = SITUATIONS[name]
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)
    if repair is not None:
        check_repair(view, repair)

    assert told(repair) == expected


def test_since_when_it_is_degraded_survives_who_is_named_meanwhile() -> None:
    view = available(durability=ALONE)
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, "later")

    assert repair is not None
    assert repair.durability.since == SINCE


def test_all_return_by_one_and_are_taken_in_afterwards() -> None:
    view = available(durability=ALONE | {"acks": Acks.ALL, "former": (("toronto", "montreal"),)})
    view = replace(view, policy=replace(view.policy, acks=Acks.ALL))
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)

    assert repair is not None
    assert repair.durability.ackers == ("toronto",)


@pytest.mark.parametrize(
    ("record", "step", "rule"),
    [
        ({}, lambda new: NameAckers(node=CLINIC, durability=new), "strict"),
        (ALONE, lambda new: NameAckers(node=CLINIC, durability=replace(new, mode=Durability.SYNC, ackers=("toronto",))), "shown"),
        (CATCHING_UP, lambda new: ReturnToSync(node=CLINIC, durability=replace(new, mode=Durability.SYNC)), "before commits wait"),
        (CATCHING_UP, lambda new: ReturnToSync(node=CLINIC, durability=replace(new, mode=Durability.SYNC, ackers=("montreal",))), "names"),
    ],
)  # fmt: skip
def test_a_record_out_of_turn_is_a_bug(record: dict[str, Any], step: Any, rule: str) -> None:
    view = a_view(durability=a_durability(**record))
    assert view.durability is not None
    new = replace(view.durability, serial=view.durability.serial + 1)
    new = replace(new, mode=Durability.DEGRADED, ackers=(), former=(("toronto",),)) if not record else new

    with pytest.raises(Bug, match=rule):
        check_repair(view, step(new))


# -- a primary lost while durability is degraded ----------------------------------------------------------------------

CLOSED: dict[str, Any] = {"role": Role.FENCED, "lease_epoch": None, "read_only": True}
LOST: dict[str, tuple[View, str]] = {
    "its server is down: it alone knows what it wrote": (
        available(durability=ALONE, clinic=a_node("clinic", database=Database.DOWN)), "what was written since"),
    "its server is down, the settings let that go": (
        available(durability=ALONE, loses=True, clinic=a_node("clinic", database=Database.DOWN)), ""),
    "its watchdog is silent: its lease proves nothing": (
        available(durability=ALONE, clinic=a_node("clinic", absent_ms=9e9)), "no proof of fence"),
    "its watchdog is silent, and a loss is allowed: still no proof": (
        available(durability=ALONE, loses=True, clinic=a_node("clinic", absent_ms=9e9)), "no proof of fence"),
    "its server is back and closed: what it has can be fetched": (
        available(durability=ALONE, clinic=a_node("clinic", **CLOSED)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_a_lost_primary_is_replaced_by_itself_only_if_nothing_is_lost(name: str) -> None:
    view, expected = LOST[name]
    view = replace(view, replicators=tuple(replace(one, report=one.report and replace(one.report, connected=False))
                                           for one in view.replicators))  # fmt: skip
    decision = decide(view, SINCE)

    assert isinstance(decision, Hold if expected else Start)
    assert expected in decision.why


def test_the_archives_are_sealed_once_they_have_all_that_the_closed_primary_has() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", **CLOSED))
    plan = a_plan()
    step = next_step(view, plan, SINCE)

    assert isinstance(step, steps.Seal)
    assert step.until == HEAD

    plan = progress(view, plan, step, Outcome(ms=1, took_ms=1, sealed=sealed(toronto=HEAD)))
    fence = next_step(view, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    plan = progress(view, plan, fence, Outcome(ms=1, took_ms=1, how="read_only", position=HEAD))
    assert isinstance(next_step(view, plan, SINCE), steps.Choose)


def test_nobody_is_sealed_before_the_written_to_primary_is_up_and_closed() -> None:
    """Who has sealed fetches nothing more: what the primary wrote alone could never be reached again."""
    view = available(durability=ALONE, clinic=a_node("clinic", database=Database.DOWN))

    assert isinstance(next_step(view, a_plan(), SINCE), Wait)


def test_a_server_that_died_under_the_fence_is_asked_again() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", **CLOSED))
    plan = a_plan(stage=Stage.FENCE, sealed=sealed(toronto=HEAD))
    fence = next_step(view, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    plan = progress(view, plan, fence, Outcome(ms=1, took_ms=1, how="process dead"))

    assert plan.stage is Stage.FENCE


def test_what_the_fenced_primary_wrote_last_is_not_lost_by_a_promotion() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", **CLOSED))
    short = a_plan(stage=Stage.PROMOTE, candidate=TORONTO, proof=Proof.WATCHDOG.value, target="0-1-99",
                   sealed=sealed(toronto="0-1-99"))  # fmt: skip
    promote = steps.Promote(node=TORONTO, epoch=2)

    with pytest.raises(Bug, match="degraded"):
        check_step(view, short, promote)
    with pytest.raises(Bug, match="fenced primary"):
        check_step(view, replace(short, fenced_position=HEAD), promote)


def test_an_ended_lease_is_no_proof_of_fence_while_no_commit_waits() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", absent_ms=9e9))
    plan = a_plan(accepts=ANYTHING, stage=Stage.FENCE, sealed=sealed(toronto=HEAD))
    by_lease = replace(plan, stage=Stage.PROMOTE, proof=Proof.LEASE_ENDED.value, candidate=TORONTO, target=HEAD)

    assert isinstance(next_step(view, plan, SINCE), Wait)
    with pytest.raises(Bug, match="no proof of fence"):
        check_step(view, by_lease, steps.Promote(node=TORONTO, epoch=2))


def test_an_operators_word_that_it_is_off_is_a_proof_and_is_recorded() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", absent_ms=9e9))
    plan = a_plan(accepts=ANYTHING, primary_is_off=True, stage=Stage.FENCE, sealed=sealed(toronto=HEAD))
    step = next_step(view, plan, SINCE)
    assert isinstance(step, steps.AcceptWord)
    plan = progress(view, plan, step, Outcome(ms=1, took_ms=1))

    assert plan.proof == "an operator said that the old primary is off"
    with pytest.raises(Bug, match="nobody has said"):
        check_step(view, replace(plan, primary_is_off=False, target=HEAD), steps.Promote(node=TORONTO, epoch=2))


def test_the_word_does_not_shorten_the_lease() -> None:
    view = available(durability=ALONE, clinic=a_node("clinic", absent_ms=10.0))
    plan = a_plan(accepts=ANYTHING, primary_is_off=True, stage=Stage.FENCE, sealed=sealed(toronto=HEAD))

    assert isinstance(next_step(view, plan, SINCE), Wait)


async def test_an_operator_hears_which_word_is_missing_before_anything_is_touched() -> None:
    silent = available(durability=ALONE, clinic=a_node("clinic", absent_ms=9e9))
    lively = available(durability=ALONE)

    def ask(view: View, **words: Any) -> object:
        return requested_plan(view, Request(kind=Kind.FAILOVER, to=None, why="", **words))

    with pytest.raises(Refused, match="silent"):
        ask(silent, accepts=ANYTHING)
    with pytest.raises(Refused, match="alone"):
        ask(silent, primary_is_off=True)
    with pytest.raises(Refused, match="alone"):
        ask(lively)
    assert ask(silent, accepts=ANYTHING, primary_is_off=True)
    assert requested_plan(lively, Request(kind=Kind.SWITCHOVER, to=None, why=""))


# -- what people hear --------------------------------------------------------------------------------------------------


def test_readiness_says_since_when_and_how_much_would_be_lost() -> None:
    view = available(durability=ALONE | {"why": "toronto: it does not report"}, clinic=a_node("clinic", position="0-1-142"),
                     replicator_montreal=a_replicator("montreal", durable="0-1-90"))  # fmt: skip

    assert tuple(sentences(readiness(view))) == (
        f"durability is degraded since {SINCE}: 42 transactions would be lost with db-clinic (toronto: it does not report)",
    )
    assert "everything written since" in " ".join(sentences(readiness(available(durability=ALONE, **both(9e9)))))


def test_every_degraded_time_is_kept_with_its_end() -> None:
    begun = DegradedRecord().begun(DegradedInterval(epoch=1, primary=CLINIC, began="a", why="w"))
    over = begun.over("b", "in sync again")

    assert [(one.ended, one.outcome) for one in over.intervals] == [("b", "in sync again")]
    assert over.over("c", "other") == over


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"durability": {"degrade_after_seconds": 5}}, "never be used"),
        ({"durability": {"failover_while_degraded": "lose"}}, "nothing is degraded"),
        ({"durability": {"policy": "available"}, "acks": "all"}, "acks_all_degrade_after_ms"),
        ({"durability": {"policy": "available", "degrade_after_seconds": 1}}, "call_deadline_ms"),
        ({"durability": {"policy": "sometimes"}}, "durability.policy"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        check({**raw(), **settings})


def test_strict_is_the_default_and_available_has_one() -> None:
    assert DurabilityRules().degrade_after_ms is None
    assert DurabilityRules(policy=DurabilityPolicy.AVAILABLE).degrade_after_ms == PATIENCE_MS
