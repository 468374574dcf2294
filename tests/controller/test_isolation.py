"""A primary that holds while it is cut off: no lease proves anything, and what it may have told alone is not lost by itself
(decision 0090)."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import BadInput, Bug, Refused
from cluster.records import Alone, Database, Durability, Isolation, Role
from cluster.settings import FailoverRules, check
from controller import plan as steps
from controller.ackers import acker_repair, repair_while_lost
from controller.advance import Outcome, next_step, progress
from controller.decide import Hold, Mend, Start, decide
from controller.invariants import check_repair, check_step
from controller.isolation import isolation_repair
from controller.loop import Request, requested_plan
from controller.loss import expected_loss
from controller.model import Kind, NodeFacts, Promoted, Proof, Stage, View
from controller.plan import NameIsolation, Wait
from controller.readiness import Code, readiness, sentences
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
    an_epoch,
    sealed,
)

ALONE = Alone(epoch=1, serial=3, since="12:00", position="0-1-90")
SERIAL = {"serial": 3}
VOUCHES: dict[str, Any] = {"vouches": 1, "revision": 1}
DOWN: dict[str, Any] = {"database": Database.DOWN, "role": Role.FENCED, "lease_epoch": None}
CLOSED: dict[str, Any] = {"role": Role.FENCED, "lease_epoch": None, "read_only": True}
SILENT = a_node("clinic", absent_ms=9e9)


def holding(
    *, isolation: Isolation = Isolation.HOLD, durability: dict[str, Any] | None = None, holds: bool = True, hears: bool = False,
    **changes: Any,
) -> View:  # fmt: skip
    """A cluster whose primary may hold; the replicators hear from it only if that is said."""
    clinic: NodeFacts = changes.pop("clinic", a_node("clinic", **VOUCHES))
    streams = {f"replicator_{site}": a_replicator(site, connected=hears) for site in ("clinic", "toronto", "montreal")}
    view = a_view(epoch=an_epoch(on_isolation=isolation, revision=1), durability=a_durability(**SERIAL | (durability or {})),
                  clinic=clinic, **streams | changes)  # fmt: skip
    return replace(view, policy=replace(view.policy, holds=holds, degrade_after_ms=30_000.0))


LOST: dict[str, tuple[View, str]] = {
    "its watchdog says that the server is dead, and vouches: as ever": (holding(clinic=a_node("clinic", **VOUCHES | DOWN)), ""),
    "it is silent: its lease proves nothing": (holding(clinic=SILENT), "no proof of fence"),
    "it is silent, and a loss is allowed: still no proof": (
        replace(holding(clinic=SILENT), policy=replace(holding().policy, loses_while_degraded=True)), "no proof of fence"),
    "it is silent, and must not hold any more, but may not know that": (
        holding(clinic=SILENT, isolation=Isolation.HOLD_ENDS, holds=False), "no proof of fence"),
    "it is silent, and has said that it holds no more: as ever": (
        holding(clinic=SILENT, isolation=Isolation.PROMOTE, holds=False), ""),
    "it is silent, and the settings say hold, but it has never read that": (
        holding(clinic=SILENT, isolation=Isolation.PROMOTE), ""),
    "its server died after it had answered alone: only it knows what it told": (
        holding(clinic=a_node("clinic", alone=ALONE, **DOWN)), "answered its clients alone since 12:00"),
    "its server died, and its watchdog knows of nothing": (
        holding(clinic=a_node("clinic", **DOWN)), "does not know whether it has held alone"),
    "it answered alone, and its server is up and closed: what it has can be fetched": (
        holding(clinic=a_node("clinic", alone=ALONE, **CLOSED)), ""),
    "it answered alone in an epoch before": (
        holding(clinic=a_node("clinic", alone=replace(ALONE, epoch=0), **VOUCHES | DOWN)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_a_lost_primary_is_replaced_by_itself_only_on_proof_and_if_nothing_is_lost(name: str) -> None:
    view, expected = LOST[name]
    decision = decide(view, SINCE)

    assert isinstance(decision, Hold if expected else Start), decision
    assert expected in decision.why


def test_the_ended_lease_of_a_primary_that_holds_proves_nothing_to_a_plan_either() -> None:
    view = holding(clinic=SILENT)
    plan = a_plan(accepts=ANYTHING, stage=Stage.FENCE, sealed=sealed(toronto=HEAD))
    by_lease = replace(plan, stage=Stage.PROMOTE, proof=Proof.LEASE_ENDED.value, candidate=TORONTO, target=HEAD)

    assert isinstance(next_step(view, plan, SINCE), Wait)
    with pytest.raises(Bug, match="no proof of fence"):
        check_step(view, by_lease, steps.Promote(node=TORONTO, epoch=2))
    assert isinstance(next_step(view, replace(plan, primary_is_off=True), SINCE), steps.AcceptWord)


def test_who_fenced_it_vouches_and_may_vanish_afterwards() -> None:
    """The host may burn down right after the fence: what its watchdog said then is kept in the plan."""
    dying = holding(clinic=a_node("clinic", **VOUCHES | DOWN))
    plan = a_plan(stage=Stage.FENCE, sealed=sealed(toronto=HEAD, montreal=HEAD))
    fence = next_step(dying, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    outcome = Outcome(ms=1, took_ms=1, how="process dead")
    vouched = progress(dying, plan, fence, replace(outcome, vouched=True))
    silent = progress(dying, plan, fence, outcome)
    gone = holding(clinic=SILENT)

    assert isinstance(next_step(gone, vouched, SINCE), steps.Choose)
    assert expected_loss(gone, vouched).is_nothing
    assert isinstance(next_step(gone, silent, SINCE), Wait)


def test_it_is_fenced_before_anybody_seals_and_what_it_told_alone_is_fetched_then() -> None:
    """Its report may be of before it was cut off and went alone: who has sealed by that could fetch nothing more."""
    view, plan = holding(), a_plan()
    fence = next_step(view, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    plan = progress(view, plan, fence, Outcome(ms=1, took_ms=1, how="read_only", position="0-1-120", vouched=False))
    seal = next_step(view, plan, SINCE)
    assert isinstance(seal, steps.Seal)
    assert seal.until == "0-1-120"
    short = progress(view, plan, seal, Outcome(ms=1, took_ms=1, sealed=sealed(toronto=HEAD, montreal=HEAD)))
    whole = progress(view, plan, seal, Outcome(ms=1, took_ms=1, sealed=sealed(toronto="0-1-120")))

    assert short.stage is Stage.SEAL
    assert "0-1-120" in str(short.waiting)
    assert isinstance(next_step(view, whole, SINCE), steps.Choose)


def test_what_a_dead_server_told_alone_is_waited_for_before_anybody_seals() -> None:
    view, plan = holding(clinic=a_node("clinic", **VOUCHES | DOWN)), a_plan()
    fence = next_step(view, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    plan = progress(view, plan, fence, Outcome(ms=1, took_ms=1, how="process dead", vouched=False))
    closed = holding(clinic=a_node("clinic", **CLOSED | {"position": "0-1-120"}))
    seal = next_step(closed, plan, SINCE)

    assert isinstance(next_step(view, plan, SINCE), Wait)
    assert isinstance(seal, steps.Seal)
    assert seal.until == "0-1-120"


def test_who_is_fenced_and_vouches_is_not_asked_again() -> None:
    view, plan = holding(clinic=a_node("clinic", **VOUCHES | DOWN)), a_plan()
    fence = next_step(view, plan, SINCE)
    assert isinstance(fence, steps.Fence)
    plan = progress(view, plan, fence, Outcome(ms=1, took_ms=1, how="process dead", vouched=True))
    gone = holding(clinic=SILENT)
    seal = next_step(gone, plan, SINCE)
    assert isinstance(seal, steps.Seal)
    plan = progress(gone, plan, seal, Outcome(ms=1, took_ms=1, sealed=sealed(toronto=HEAD, montreal=HEAD)))

    assert (plan.stage, plan.proof) == (Stage.CHOOSE, Proof.PROCESS_DEAD.value)
    assert isinstance(next_step(gone, plan, SINCE), steps.Choose)


async def test_an_operators_two_words_are_needed_where_it_may_have_told_alone() -> None:
    view = holding(clinic=SILENT)

    def ask(**words: Any) -> object:
        return requested_plan(view, Request(kind=Kind.FAILOVER, to=None, why="", **words))

    with pytest.raises(Refused, match="no proof of fence"):
        ask(accepts=ANYTHING)
    with pytest.raises(Refused, match="alone"):
        ask(primary_is_off=True)
    assert ask(primary_is_off=True, accepts=ANYTHING)


# -- what is recorded --------------------------------------------------------------------------------------------------


RECORDED: dict[str, tuple[View, str]] = {
    "it is silent, and nobody hears from it": (holding(clinic=SILENT), "cut off or dead"),
    "somebody hears from it: it is acknowledged there": (holding(clinic=SILENT, hears=True), ""),
    "its lease may still hold": (holding(clinic=a_node("clinic", absent_ms=1.0)), ""),
    "it does not hold": (holding(clinic=SILENT, isolation=Isolation.PROMOTE), ""),
    "it may not know that it must not hold": (holding(clinic=SILENT, isolation=Isolation.HOLD_ENDS), "cut off or dead"),
    "it is recorded already": (
        holding(clinic=SILENT, durability={"mode": Durability.DEGRADED, "ackers": ()}), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_that_it_may_be_alone_is_recorded_while_it_is_away(name: str) -> None:
    view, expected = RECORDED[name]
    assert view.epoch is not None
    repair = repair_while_lost(view, view.epoch, SINCE)
    decision = decide(view, SINCE)

    assert (repair is None) is (expected == "")
    if repair is not None:
        check_repair(view, repair)
        record = repair.durability
        assert expected in record.why
        assert (record.mode, record.ackers, record.former, record.serial) == (
            Durability.DEGRADED,
            (),
            (("toronto",),),
            4,
        )
        assert isinstance(decision, Hold)
        assert decision.repairs == (repair,)


def test_a_primary_that_comes_back_and_was_alone_is_recorded_from_when_it_began() -> None:
    view = holding(clinic=a_node("clinic", alone=ALONE, revision=1), hears=True)
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)

    assert repair is not None
    check_repair(view, repair)
    assert (repair.durability.mode, repair.durability.since, repair.durability.serial) == (
        Durability.DEGRADED,
        "12:00",
        4,
    )
    assert "0-1-90" in repair.durability.why


@pytest.mark.parametrize(("serial", "again"), [(3, True), (4, False)])
def test_an_older_record_does_not_tell_of_it(serial: int, again: bool) -> None:
    """It knew that record when it went alone: what was recorded before cannot be about it, and may turn to sync any moment."""
    degraded = {"mode": Durability.DEGRADED, "ackers": ("toronto",), "serial": serial}
    view = holding(clinic=a_node("clinic", alone=ALONE, waits_by=serial), durability=degraded, hears=True)
    view = replace(view, replicators=tuple(replace(one, report=one.report and replace(one.report, serial=serial))
                                           for one in view.replicators))  # fmt: skip
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)

    assert isinstance(repair, steps.NameAckers) is again
    if repair is not None and again:
        assert repair.durability.serial == serial + 1
        assert repair.durability.ackers == ()


# -- the record of the epoch -------------------------------------------------------------------------------------------


H, E, P = Isolation.HOLD, Isolation.HOLD_ENDS, Isolation.PROMOTE
CHANGES: dict[str, tuple[View, Isolation]] = {
    "hold, as the settings say": (holding(isolation=H), H),
    "promote, as the settings say": (holding(isolation=P, holds=False), P),
    "promote, and the settings say hold": (holding(isolation=P), H),
    "hold, and the settings say promote: it must read that first": (holding(isolation=H, holds=False), E),
    "it has not read yet that it must not hold": (
        holding(isolation=E, holds=False, clinic=a_node("clinic", vouches=1, revision=0)), E),
    "its watchdog is too old to say": (holding(isolation=E, holds=False, clinic=a_node("clinic", vouches=1)), E),
    "it has read it, and told nothing alone": (holding(isolation=E, holds=False), P),
    "it has read it, and what it told alone is not recorded": (
        holding(isolation=E, holds=False, clinic=a_node("clinic", revision=1, alone=ALONE)), E),
    "hold again before it has read it": (holding(isolation=E), H),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_record_follows_the_settings_and_the_stricter_rule_counts_until_it_is_read(name: str) -> None:
    view, expected = CHANGES[name]
    assert view.epoch is not None
    repair = isolation_repair(view, view.epoch)
    if repair is not None:
        check_repair(view, repair)
        assert repair.record.revision == view.epoch.revision + 1
        assert isinstance(decision := decide(view, SINCE), Mend)
        assert repair in decision.repairs

    assert (repair.record if repair is not None else view.epoch).on_isolation is expected


@pytest.mark.parametrize(
    ("view", "change", "rule"),
    [
        (holding(isolation=H), {"on_isolation": P}, "may still hold"),
        (holding(isolation=E, clinic=a_node("clinic", revision=0)), {"on_isolation": P}, "may still hold"),
        (holding(isolation=E, clinic=SILENT), {"on_isolation": P}, "may still hold"),
        (holding(isolation=P), {"on_isolation": H, "primary": TORONTO}, "record"),
        (holding(isolation=P), {"on_isolation": H, "revision": 3}, "record"),
    ],
)
def test_a_change_out_of_turn_is_a_bug(view: View, change: dict[str, Any], rule: str) -> None:
    assert view.epoch is not None
    new = replace(view.epoch, **{"revision": 2, **change})

    with pytest.raises(Bug, match=rule):
        check_repair(view, NameIsolation(node=CLINIC, record=new))


def test_a_new_epoch_begins_with_what_the_settings_say() -> None:
    promoted = Promoted(server_id=2, file="f", position=HEAD)
    plan = a_plan(stage=Stage.OPEN, candidate=TORONTO, target=HEAD, promoted=promoted, proof=Proof.WATCHDOG.value)
    for holds, expected in ((True, H), (False, P)):
        step = next_step(holding(holds=holds), plan, SINCE)
        assert isinstance(step, steps.Open)
        assert (step.record.on_isolation, step.record.revision) == (expected, 2)


# -- what people hear --------------------------------------------------------------------------------------------------


def test_a_healthy_cluster_that_holds_is_ready_though_a_lost_site_would_wait() -> None:
    """That it waits for a person then is what the settings ask for: an alert that never ends is heard by nobody."""
    assert readiness(holding(hears=True)) == ()


def test_a_primary_that_is_cut_off_has_a_reason_of_its_own_with_what_to_do() -> None:
    (found,) = [one for one in readiness(holding(clinic=SILENT)) if one.code is Code.PRIMARY_CUT_OFF]

    assert "it holds" in found.why
    assert "--primary-is-off" in found.mend
    assert not [one for one in readiness(holding(clinic=SILENT)) if one.code is Code.PRIMARY_NOT_UP]


def test_what_it_told_alone_is_counted_while_no_record_says_so() -> None:
    view = holding(clinic=a_node("clinic", alone=ALONE, position="0-1-142"), hears=True)

    assert "alone since 12:00, from 0-1-90 on: 42 transactions would be lost" in " ".join(sentences(readiness(view)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"failover": {"on_isolation": "hold"}}, "durability.policy is 'strict'"),
        ({"failover": {"on_isolation": "hold-ends"}}, "on_isolation"),
        ({"failover": {"on_isolation": "sometimes"}}, "on_isolation"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        check({**raw(), **settings})


def test_promote_is_the_default_and_hold_is_allowed_with_available() -> None:
    assert not FailoverRules().holds
    assert check({**raw(), "failover": {"on_isolation": "hold"}, "durability": {"policy": "available"}}).failover.holds
