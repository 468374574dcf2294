"""How plans go on: the happy order, what makes them wait, how they fail, and that no view breaks an invariant."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from cluster.errors import Bug
from cluster.records import Acks, Database, LineageEntry, Role
from controller import plan as steps
from controller.advance import (
    CATCH_UP_MS,
    SWITCHOVER_SEAL_MS,
    Outcome,
    failed,
    may_stay_unwritten,
    next_step,
    outcome_of,
    progress,
    waiting,
)
from controller.choose import rank
from controller.invariants import check_step
from controller.model import ORDER, Kind, NodeFacts, PlanRecord, Promoted, Proof, Stage, View
from controller.plan import GiveUp, Step, Wait
from tests.controller.builders import (
    ANYTHING,
    CLINIC,
    HEAD,
    MONTREAL,
    SINCE,
    SITES,
    TORONTO,
    a_durability,
    a_node,
    a_plan,
    a_replicator,
    a_view,
    an_epoch,
    sealed,
)  # fmt: skip

DEAD = a_node("clinic", database=Database.DOWN)
SERVER_IDS = {CLINIC: 1, TORONTO: 2, MONTREAL: 3}


def sequence(position: str | None) -> int:
    return int(position.rsplit("-", 1)[1]) if position else 0


def answered(view: View, step: Step, positions: dict[str, str | None], target: str | None = None) -> Outcome:
    """What a cluster that does as it is told answers to `step`."""
    match step:
        case steps.Fence():
            node = view.node(step.node)
            down = node is None or node.report is None or node.report.database is Database.DOWN
            return Outcome(
                ms=1, took_ms=1, how="process dead" if down else "read_only", position=None if down else HEAD
            )
        case steps.Seal():
            return Outcome(ms=1, took_ms=1, sealed=sealed(**{site: positions.get(site) for site in step.sites}))
        case steps.Promote():
            node = view.node(step.node)
            position = node.report.position if node and node.report else HEAD
            best = max((p for p in (target, position) if p is not None), key=sequence)
            return Outcome(
                ms=1, took_ms=1, promoted=Promoted(server_id=SERVER_IDS[step.node], file="binlog.000002", position=best)
            )
        case _:
            return Outcome(ms=1, took_ms=1)


def opened(view: View, step: Step) -> View:
    return replace(view, epoch=step.record, durability=step.durability) if isinstance(step, steps.Open) else view


def run(
    view: View, plan: PlanRecord, positions: dict[str, str | None], silent: tuple[str, ...] = ()
) -> tuple[list[Step], PlanRecord, View]:
    """Do steps until the plan ends or waits; every step is checked against the invariants first."""
    done: list[Step] = []
    for _ in range(40):
        step = next_step(view, plan, SINCE)
        if isinstance(step, Wait):
            return done, replace(plan, waiting=step.why), view
        if isinstance(step, GiveUp):
            plan = failed(plan, step.why)
            continue
        check_step(view, plan, step)
        done.append(step)
        if isinstance(step, steps.Record):
            return done, plan, view
        before = plan.stage
        outcome = answered(view, step, positions, plan.target)
        outcome = replace(outcome, sealed=tuple(one for one in outcome.sealed if one.site not in silent))
        plan = progress(view, plan, step, outcome)
        view = opened(view, step)
        if plan.stage is before:
            return done, plan, view
    raise AssertionError(f"the plan does not end: {plan}")


EQUAL: dict[str, str | None] = {"clinic": HEAD, "toronto": HEAD, "montreal": HEAD}


def test_a_failover_goes_through_its_stages_in_order() -> None:
    done, plan, view = run(a_view(clinic=DEAD), a_plan(), EQUAL)

    assert [type(step).__name__ for step in done] == [
        "Seal", "Fence", "Choose", "Level", "Apply", "Promote", "Open", "Admit", "Repoint", "Verify", "Record",
    ]  # fmt: skip
    assert view.epoch is not None
    assert (view.epoch.epoch, view.epoch.primary) == (2, TORONTO)
    assert [entry.epoch for entry in view.epoch.lineage] == [1, 2]
    assert view.durability is not None
    assert view.durability.ackers == ("clinic",)
    assert plan.proof == Proof.PROCESS_DEAD.value
    assert outcome_of(plan) == "done"


def test_a_switchover_fences_politely_before_it_seals_up_to_there() -> None:
    done, plan, view = run(a_view(), a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=MONTREAL), EQUAL)

    fence = next(step for step in done if isinstance(step, steps.Fence))
    seal = next(step for step in done if isinstance(step, steps.Seal))
    assert fence.polite
    assert seal.until == HEAD
    assert done.index(fence) < done.index(seal)
    assert view.epoch is not None
    assert view.epoch.primary == MONTREAL
    assert plan.proof == Proof.WATCHDOG.value


def test_the_candidate_is_levelled_from_the_most_advanced_archive() -> None:
    done, _, _ = run(a_view(clinic=DEAD), a_plan(), {"clinic": "0-1-101", "toronto": HEAD, "montreal": HEAD})

    level = next(step for step in done if isinstance(step, steps.Level))
    assert (level.site, level.source, level.until) == ("toronto", "clinic", "0-1-101")


def test_a_silent_acker_holds_the_failover_while_its_lease_may_hold() -> None:
    view = a_view(clinic=DEAD, replicator_toronto=a_replicator("toronto", absent_ms=10.0))

    step = next_step(view, a_plan(), SINCE)

    assert isinstance(step, Wait)
    assert "toronto" in step.why


def test_losing_primary_and_acker_at_once_stops_the_automatic_failover() -> None:
    view = a_view(clinic=DEAD, replicator_toronto=a_replicator("toronto", absent_ms=9_000.0))

    done, plan, _ = run(view, a_plan(), {"montreal": HEAD})

    assert not any(isinstance(step, steps.Open | steps.Promote) for step in done)
    assert plan.waiting is not None
    assert "toronto" in plan.waiting


def acknowledged_by_all(**changes: Any) -> View:
    return a_view(clinic=DEAD, durability=a_durability(ackers=("toronto", "montreal"), acks=Acks.ALL), **changes)


@pytest.mark.parametrize(("lost", "left"), [("toronto", "montreal"), ("montreal", "toronto")])
@pytest.mark.parametrize("absent_ms", [10.0, 9_000.0])
def test_under_all_one_surviving_acker_is_proof_enough(lost: str, left: str, absent_ms: float) -> None:
    """Primary and a site with its acker at once: the other one has everything, its lease need not be waited for."""
    gone = {lost: a_node(lost, absent_ms=absent_ms), f"replicator_{lost}": a_replicator(lost, absent_ms=absent_ms)}

    _, plan, view = run(acknowledged_by_all(**gone), a_plan(), {left: HEAD, "clinic": "0-1-90"})

    assert outcome_of(plan) == "done"
    assert view.epoch is not None
    assert (view.epoch.primary, view.epoch.position) == (f"db-{left}", HEAD)


def test_under_all_the_report_of_a_dead_acker_that_outlives_it_changes_nothing() -> None:
    _, plan, view = run(acknowledged_by_all(), a_plan(), EQUAL, silent=("toronto",))

    assert outcome_of(plan) == "done"
    assert view.durability is not None
    assert view.durability.ackers == ("clinic",)


def test_under_all_losing_every_acker_stops_the_automatic_failover() -> None:
    gone = {f"replicator_{site}": a_replicator(site, absent_ms=9_000.0) for site in ("toronto", "montreal")}

    done, plan, _ = run(acknowledged_by_all(**gone), a_plan(), {"clinic": HEAD})

    assert not any(isinstance(step, steps.Open | steps.Promote) for step in done)
    assert "toronto and montreal" in (plan.waiting or "")


def test_a_former_acker_that_is_lost_stops_the_automatic_failover_until_it_is_settled() -> None:
    view = a_view(
        clinic=DEAD, toronto=a_node("toronto", absent_ms=9_000.0),
        replicator_toronto=a_replicator("toronto", absent_ms=9_000.0),
        durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=1),
    )  # fmt: skip
    settled = replace(view, durability=a_durability(ackers=("montreal",), floor=HEAD, serial=2))

    _, waits, _ = run(view, a_plan(), {"montreal": HEAD})
    _, ended, after = run(settled, a_plan(), {"montreal": HEAD})

    assert "toronto" in (waits.waiting or "")
    assert outcome_of(ended) == "done"
    assert after.durability is not None
    assert (after.durability.former, after.durability.serial) == ((), 3)


def test_under_all_an_epoch_begins_with_every_site_that_answered() -> None:
    view = acknowledged_by_all()
    view = replace(view, policy=replace(view.policy, acks=Acks.ALL))

    _, _, both = run(view, a_plan(), EQUAL)
    _, _, one = run(view, a_plan(), EQUAL, silent=("clinic",))

    assert both.durability is not None
    assert one.durability is not None
    assert (both.durability.acks, both.durability.ackers) == (Acks.ALL, ("clinic", "montreal"))
    assert one.durability.ackers == ("montreal",)


def test_allow_data_loss_is_an_operators_word_that_goes_on() -> None:
    view = a_view(
        clinic=DEAD, toronto=a_node("toronto", absent_ms=9_000.0),
        replicator_toronto=a_replicator("toronto", absent_ms=9_000.0),
    )  # fmt: skip

    _, _, after = run(view, a_plan(accepts=ANYTHING), {"montreal": HEAD})

    assert after.epoch is not None
    assert after.epoch.primary == MONTREAL


def test_an_archive_below_the_floor_is_not_promoted() -> None:
    """The acker was replaced at 0-1-100; what the former one acknowledged lies below that, and must be there."""
    view = a_view(clinic=DEAD, durability=a_durability(ackers=("montreal",), floor=HEAD))

    done, plan, _ = run(view, a_plan(), {"montreal": "0-1-90"})

    assert not any(isinstance(step, steps.Open) for step in done)
    assert plan.waiting is not None


def a_dead_tail(montreal: str, acker: str = "clinic") -> View:
    """Epoch 2 is open on toronto, which died; montreal's archive still ends with ten transactions of no epoch."""
    lineage = (*an_epoch().lineage, LineageEntry(epoch=2, server_id=2, file="binlog.000001", position=HEAD))
    return a_view(
        epoch=an_epoch(epoch=2, primary=TORONTO, server_id=2, position=HEAD, lineage=lineage),
        durability=a_durability(epoch=2, ackers=(acker,), floor=HEAD),
        clinic=a_node("clinic", role=Role.STANDBY, position="0-2-105", epoch=2, lease_epoch=None, replicating=True),
        toronto=a_node("toronto", role=Role.FENCED, database=Database.DOWN, position=None, epoch=2),
        montreal=a_node("montreal", position=montreal, epoch=2),
    )


@pytest.mark.parametrize("montreal", ["0-1-99", "0-1-110"])
def test_a_dead_tail_of_an_older_epoch_is_never_the_target(montreal: str) -> None:
    """0-1-110 has the higher number and nothing that was acknowledged: 0-2-101 to 105 would be lost."""
    plan = a_plan(epoch=3, old=TORONTO)

    _, ended, view = run(
        a_dead_tail(montreal), plan, {"clinic": "0-2-105", "toronto": "0-2-105", "montreal": "0-1-110"}
    )

    assert ended.target == "0-2-105"
    assert view.epoch is not None
    assert (view.epoch.epoch, view.epoch.primary, view.epoch.position) == (3, CLINIC, "0-2-105")


def test_an_acker_with_a_dead_tail_must_cut_it_first() -> None:
    view = a_dead_tail("0-1-99", acker="montreal")

    done, plan, _ = run(view, a_plan(epoch=3, old=TORONTO), {"clinic": "0-2-105", "montreal": "0-1-110"})

    assert not any(isinstance(step, steps.Promote) for step in done)
    assert "dead epoch" in (plan.waiting or "")


def test_promoting_to_a_dead_tail_is_a_bug() -> None:
    plan = a_plan(
        epoch=3, old=TORONTO, candidate=MONTREAL, proof="x", target="0-1-110", sealed=sealed(clinic="0-2-105")
    )

    with pytest.raises(Bug, match="history"):
        check_step(a_dead_tail("0-1-110"), plan, steps.Promote(node=MONTREAL, epoch=3))


def test_what_a_replicator_says_later_counts() -> None:
    """It had a dead tail and has cut it."""
    view, plan = a_dead_tail("0-1-99"), a_plan(epoch=3, old=TORONTO, sealed=sealed(montreal="0-1-110"))
    again = steps.Seal(sites=("clinic", "montreal"), epoch=2, until=None)

    after = progress(view, plan, again, Outcome(ms=1, took_ms=1, sealed=sealed(clinic="0-2-105", montreal=HEAD)))

    assert {one.site: one.durable for one in after.sealed} == {"clinic": "0-2-105", "montreal": HEAD}


def test_an_empty_history_has_a_target_too() -> None:
    nothing: dict[str, str | None] = {"clinic": "", "toronto": "", "montreal": ""}
    view = a_view(clinic=DEAD, toronto=a_node("toronto", position=""), montreal=a_node("montreal", position=""))

    _, _, after = run(view, a_plan(), nothing)

    assert after.epoch is not None
    assert after.epoch.primary == TORONTO


def test_the_new_acker_is_one_that_answered_in_this_plan() -> None:
    """The report of a replicator that died outlives it by a session's ttl: commits would wait for a dead one."""
    _, _, view = run(a_view(clinic=DEAD), a_plan(), {"toronto": HEAD, "montreal": HEAD}, silent=("clinic",))

    assert view.durability is not None
    assert view.durability.ackers == ("montreal",)


def test_a_frozen_primary_is_replaced_after_its_lease_ended() -> None:
    _, plan, view = run(a_view(clinic=a_node("clinic", absent_ms=7_000.0)), a_plan(), EQUAL)

    assert plan.proof == Proof.LEASE_ENDED.value
    assert view.epoch is not None
    assert view.epoch.primary == TORONTO


@pytest.mark.parametrize("loss", [False, True])
def test_an_ended_lease_is_no_proof_until_a_replicator_outside_has_sealed(loss: bool) -> None:
    """The primary may be writing by the replicators' grants: whatever an operator allows to be lost, not a second writer."""
    view = a_view(clinic=a_node("clinic", absent_ms=7_000.0))
    done, plan, _ = run(view, a_plan(accepts=ANYTHING if loss else None), EQUAL, silent=("toronto", "montreal"))

    assert not any(isinstance(step, steps.AcceptLeaseEnd | steps.Promote) for step in done)
    assert plan.proof is None


def test_a_promotion_by_an_ended_lease_that_nobody_outside_sealed_is_a_bug() -> None:
    view = a_view(clinic=a_node("clinic", absent_ms=7_000.0))
    plan = a_plan(proof=Proof.LEASE_ENDED.value, target=HEAD, accepts=ANYTHING, sealed=sealed(clinic=HEAD))

    with pytest.raises(Bug, match="may grant"):
        check_step(view, plan, steps.Promote(node=TORONTO, epoch=2))
    check_step(view, replace(plan, sealed=sealed(toronto=HEAD)), steps.Promote(node=TORONTO, epoch=2))


def test_a_primary_whose_lease_may_hold_is_not_replaced() -> None:
    done, plan, _ = run(a_view(clinic=a_node("clinic", absent_ms=10.0)), a_plan(), EQUAL)

    assert not any(isinstance(step, steps.Open) for step in done)
    assert "lease" in (plan.waiting or "")


@pytest.mark.parametrize("stage", [Stage.FENCE, Stage.SEAL, Stage.LEVEL, Stage.APPLY, Stage.PROMOTE, Stage.OPEN])
def test_a_failed_switchover_leaves_the_old_primary_writable(stage: Stage) -> None:
    plan = a_plan(kind=Kind.SWITCHOVER, stage=stage, candidate=TORONTO, target=HEAD, proof=Proof.WATCHDOG.value)

    after = failed(plan, "the candidate broke")
    _, ended, view = run(a_view(clinic=CLOSED), after, {})

    assert view.epoch is not None
    assert (view.epoch.epoch, view.epoch.primary) == (2, CLINIC)
    assert outcome_of(ended).startswith("rolled back")


CLOSED = a_node("clinic", role=Role.FENCED, lease_epoch=None)
BEFORE_RETURN = ORDER[Kind.SWITCHOVER][: ORDER[Kind.SWITCHOVER].index(Stage.OPEN) + 1]


@pytest.mark.parametrize("cut", range(4))
@pytest.mark.parametrize("stage", BEFORE_RETURN)
def test_a_switchover_that_fails_at_any_step_is_rolled_back_by_whoever_is_left(stage: Stage, cut: int) -> None:
    """It comes to `stage` by its own steps, fails there, and a controller dies after each step of the rollback."""
    from cluster.records import decode, encode

    view, plan = a_view(), a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE)
    while plan.stage is not stage:
        step = next_step(view, plan, SINCE)
        assert not isinstance(step, Wait | GiveUp | steps.Record)
        plan = progress(view, plan, step, answered(view, step, EQUAL, plan.target))
        if isinstance(step, steps.Fence):
            view = a_view(clinic=CLOSED)
    plan = failed(plan, "it broke")
    for _ in range(cut):
        step = next_step(view, plan, SINCE)
        if isinstance(step, steps.Record):
            break
        assert not isinstance(step, Wait | GiveUp)
        plan = progress(view, plan, step, answered(view, step, EQUAL, plan.target))
        view = opened(view, step)
        plan = decode(PlanRecord, encode(plan), where="test")

    _, ended, after = run(view, plan, EQUAL)

    touched = stage not in (Stage.CHOOSE, Stage.FENCE)
    assert after.epoch is not None
    assert (after.epoch.epoch, after.epoch.primary) == (2 if touched else 1, CLINIC)
    assert outcome_of(ended) == "rolled back: it broke"


def test_a_switchover_whose_fence_arrived_without_an_answer_opens_the_old_primary_again() -> None:
    plan = failed(a_plan(kind=Kind.SWITCHOVER, stage=Stage.FENCE, candidate=TORONTO, target=HEAD), "no answer")

    done, ended, after = run(a_view(clinic=CLOSED), plan, EQUAL)

    assert after.epoch is not None
    assert (after.epoch.epoch, after.epoch.primary) == (2, CLINIC)
    assert any(isinstance(step, steps.Admit) and step.node == CLINIC for step in done)
    assert outcome_of(ended) == "rolled back: no answer"


@pytest.mark.parametrize("durable", ["0-1-99", None])
def test_a_switchover_whose_archives_fall_short_is_rolled_back_in_time(durable: str | None) -> None:
    """It used to wait for ever, with the primary closed: only its start was refused."""
    view = a_view()
    plan = a_plan(
        kind=Kind.SWITCHOVER, stage=Stage.SEAL, candidate=TORONTO, proof=Proof.WATCHDOG.value, fenced_position=HEAD
    )
    answers = sealed(toronto=durable, montreal="0-1-99")

    seal = next_step(view, plan, SINCE)
    assert isinstance(seal, steps.Seal)
    waits = progress(view, plan, seal, Outcome(ms=2_500.0, took_ms=2_000.0, sealed=answers))
    assert (waits.stage, waits.rolled_back, waits.stalled_ms) == (Stage.SEAL, None, 500.0)
    still = progress(view, waits, seal, Outcome(ms=500.0 + SWITCHOVER_SEAL_MS - 1, took_ms=100.0, sealed=answers))
    assert (still.stage, still.rolled_back) == (Stage.SEAL, None)
    over = progress(view, still, seal, Outcome(ms=500.0 + SWITCHOVER_SEAL_MS, took_ms=100.0, sealed=answers))
    _, ended, after = run(view, over, {})

    assert after.epoch is not None
    assert (after.epoch.epoch, after.epoch.primary) == (2, CLINIC)
    assert outcome_of(ended).startswith("rolled back: sealed")


def test_a_switchover_whose_acker_falls_silent_is_rolled_back_at_once() -> None:
    view = a_view(replicator_toronto=a_replicator("toronto", absent_ms=10.0))
    plan = a_plan(
        kind=Kind.SWITCHOVER, stage=Stage.SEAL, candidate=TORONTO, proof=Proof.WATCHDOG.value, fenced_position=HEAD
    )

    done, ended, after = run(view, plan, {})

    assert [type(step).__name__ for step in done][:2] == ["Promote", "Open"]
    assert after.epoch is not None
    assert (after.epoch.primary, outcome_of(ended).split(":")[0]) == (CLINIC, "rolled back")


def test_a_failover_waits_for_what_was_acknowledged_however_long_it_takes() -> None:
    view = a_view(clinic=DEAD)
    plan = a_plan(stalled_ms=0.0)

    seal = next_step(view, plan, SINCE)
    assert isinstance(seal, steps.Seal)
    after = progress(view, plan, seal, Outcome(ms=3_600_000.0, took_ms=1.0, sealed=sealed(montreal=HEAD)))

    assert (after.stage, after.kind, after.rolled_back) == (Stage.SEAL, Kind.FAILOVER, None)


def test_a_rollback_onto_a_restarted_server_becomes_a_failover() -> None:
    """Its crash recovery may have cut what it had acknowledged: only the archives know (decision 0010)."""
    plan = a_plan(kind=Kind.SWITCHOVER, stage=Stage.LEVEL, candidate=TORONTO, target=HEAD, proof=Proof.WATCHDOG.value)
    restarted = a_node("clinic", role=Role.FENCED, generation="2", position="0-1-99", lease_epoch=None)

    _, ended, view = run(a_view(clinic=restarted), failed(plan, "it hangs"), EQUAL)

    assert ended.kind is Kind.FAILOVER
    assert view.epoch is not None
    assert (view.epoch.primary, view.epoch.position) == (TORONTO, HEAD)


@pytest.mark.parametrize(
    "view",
    [
        a_view(toronto=a_node("toronto", absent_ms=1.0)),
        # Fenced, the primary would wait for ever for what it wrote last to be sealed.
        a_view(replicator_toronto=a_replicator("toronto", connected=False, acknowledging=False, why="no CRC32")),
    ],
    ids=["its node is gone", "the primary is not archived"],
)
def test_a_switchover_refused_at_the_choice_touches_nothing(view: View) -> None:
    done, plan, after = run(view, a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=TORONTO), EQUAL)

    assert [type(step).__name__ for step in done] == ["Record"]
    assert after.epoch == view.epoch
    assert outcome_of(plan).startswith("rolled back")


FAR = a_node("clinic", position="0-1-5000")
APPLYING = "db-toronto catches up first: it is 4900 transactions behind"


def test_a_switchover_lets_its_candidate_catch_up_before_it_closes_the_primary() -> None:
    plan = a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=TORONTO)

    assert next_step(a_view(clinic=FAR), plan, SINCE) == Wait(why=APPLYING)
    near = a_view(clinic=FAR, toronto=a_node("toronto", position="0-1-4500"))
    assert isinstance(next_step(near, plan, SINCE), steps.Choose)


def test_a_candidate_that_applies_one_long_transaction_is_waited_for_too() -> None:
    view = a_view(toronto=a_node("toronto", lag_ms=90_000.0))

    found = next_step(view, a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=TORONTO), SINCE)

    assert found == Wait(why="db-toronto catches up first: it is 90 s behind")


def test_a_candidate_that_does_not_catch_up_is_given_up_in_time_and_nothing_was_touched() -> None:
    plan = a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=TORONTO)

    waits = waiting(plan, APPLYING, 700.0)
    assert (waits.stage, waits.waiting, waits.rolled_back) == (Stage.CHOOSE, APPLYING, None)
    still = waiting(waits, "4800 behind", 700.0 + CATCH_UP_MS - 1)
    assert (still.stage, still.rolled_back) == (Stage.CHOOSE, None)
    over = waiting(still, "4700 behind", 700.0 + CATCH_UP_MS)

    assert isinstance(next_step(a_view(clinic=FAR), over, SINCE), steps.Record)
    assert outcome_of(over) == "rolled back: 4700 behind"


@pytest.mark.parametrize("clinic", [DEAD, a_node("clinic", absent_ms=9_000.0)], ids=["it is dead", "it is silent"])
def test_nobody_waits_for_a_candidate_once_the_primary_is_gone(clinic: NodeFacts) -> None:
    view = a_view(clinic=clinic, toronto=a_node("toronto", position="0-1-9", lag_ms=90_000.0))

    found = next_step(view, a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, requested=TORONTO), SINCE)

    assert not isinstance(found, Wait)


def test_a_failover_chooses_who_is_behind_at_once() -> None:
    """Nobody can write meanwhile: the sooner it applies what its archive has, the better."""
    view = a_view(clinic=DEAD, toronto=a_node("toronto", position="0-1-9", lag_ms=90_000.0))

    found = next_step(view, a_plan(stage=Stage.CHOOSE, sealed=sealed(toronto="0-1-5000"), target="0-1-5000"), SINCE)

    assert isinstance(found, steps.Choose)


def test_a_rollback_onto_a_dead_primary_becomes_a_failover() -> None:
    plan = failed(
        a_plan(kind=Kind.SWITCHOVER, stage=Stage.LEVEL, candidate=TORONTO, proof=Proof.WATCHDOG.value), "slow"
    )

    again = failed(plan, "the old primary died")

    assert (again.kind, again.stage, again.candidate) == (Kind.FAILOVER, Stage.SEAL, None)


def test_a_failed_candidate_is_followed_by_the_next() -> None:
    plan = a_plan(
        stage=Stage.APPLY, candidate=TORONTO, target=HEAD, proof=Proof.PROCESS_DEAD.value, sealed=sealed(toronto=HEAD)
    )

    _, _, view = run(a_view(clinic=DEAD), failed(plan, "it hangs"), EQUAL)

    assert view.epoch is not None
    assert view.epoch.primary == MONTREAL


def test_an_epoch_once_open_is_never_rolled_back() -> None:
    plan = a_plan(kind=Kind.SWITCHOVER, stage=Stage.VERIFY, candidate=TORONTO)

    after = failed(plan, "a clinic is unreachable")

    assert after.stage is Stage.RECORD
    assert outcome_of(after) == "unverified: a clinic is unreachable"


def test_a_node_that_is_ahead_is_not_a_candidate() -> None:
    view = a_view(clinic=DEAD, toronto=a_node("toronto", position="0-1-101"))

    ranking = rank(view, a_plan(sealed=sealed(toronto=HEAD, montreal=HEAD)))

    assert ranking[0].node == MONTREAL
    assert any("ahead" in reason for one in ranking if one.node == TORONTO for reason in one.against)


def test_an_older_server_is_not_a_candidate() -> None:
    view = a_view(toronto=a_node("toronto", server_version="10.6.1-MariaDB"))

    ranking = rank(view, a_plan(kind=Kind.SWITCHOVER))

    assert ranking[0].node == MONTREAL


@pytest.mark.parametrize("kind", [Kind.FAILOVER, Kind.SWITCHOVER])
@pytest.mark.parametrize("cut", range(len(ORDER[Kind.FAILOVER])))
def test_a_plan_cut_anywhere_is_finished_by_the_next_controller(kind: Kind, cut: int) -> None:
    """The successor knows the record and the view only: a round trip through the record changes nothing."""
    from cluster.records import decode, encode

    view = a_view(clinic=DEAD) if kind is Kind.FAILOVER else a_view()
    plan = written = a_plan(kind=kind, stage=ORDER[kind][0])
    for _ in range(cut):
        step = next_step(view, plan, SINCE)
        assert not isinstance(step, Wait | GiveUp)
        if isinstance(step, steps.Record):
            break
        answered(view, step, EQUAL)  # done, but its controller died before it could write so: it is done again
        before, plan = plan, progress(view, plan, step, answered(view, step, EQUAL))
        view = touched(opened(view, step), step)
        written = written if may_stay_unwritten(before, plan) else plan
    written = decode(PlanRecord, encode(written), where="test")

    _, ended, after = run(view, written, EQUAL)

    assert after.epoch is not None
    assert (after.epoch.epoch, after.epoch.primary) == (2, TORONTO)
    assert outcome_of(ended) == "done"


def touched(view: View, step: Step) -> View:
    """What everybody sees once the old primary is closed, and the candidate follows nobody any more."""
    if not isinstance(step, steps.Fence | steps.Promote):
        return view
    now = a_node(step.node.removeprefix("db-"), role=Role.FENCED, lease_epoch=None, replicating=False)
    old = view.node(step.node)
    if old is None or old.report is None or old.report.database is Database.DOWN:
        return view
    return replace(view, nodes=tuple(now if node.name == step.node else node for node in view.nodes))


def test_from_the_fence_of_a_switchover_to_its_opening_nothing_waits_for_a_disk_of_zookeeper() -> None:
    """What is not written is what a successor asks for again; whatever fails, waits or is rolled back is written."""
    view, plan, written = a_view(), a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE), []
    while not isinstance(step := next_step(view, plan, SINCE), steps.Record):
        assert not isinstance(step, Wait | GiveUp)
        before, plan = plan, progress(view, plan, step, answered(view, step, EQUAL, plan.target))
        view = opened(view, step)
        if not may_stay_unwritten(before, plan):
            written.append(before.stage)

    assert written == [Stage.CHOOSE, Stage.OPEN, Stage.REPOINT, Stage.VERIFY]
    assert not may_stay_unwritten(plan_at(Stage.SEAL), replace(plan_at(Stage.SEAL), waiting="an archive is short"))
    assert not may_stay_unwritten(plan_at(Stage.APPLY), failed(plan_at(Stage.APPLY), "it broke"))
    assert not may_stay_unwritten(
        plan_at(Stage.PROMOTE, rolled_back="it broke"), plan_at(Stage.OPEN, rolled_back="it broke")
    )


@pytest.mark.parametrize("stage", ORDER[Kind.FAILOVER][: ORDER[Kind.FAILOVER].index(Stage.OPEN)])
def test_a_failover_writes_every_step_before_its_epoch(stage: Stage) -> None:
    """Its fence may rest on a lease that ended once, and its seals on sites that are gone since."""
    order = ORDER[Kind.FAILOVER]
    before = a_plan(kind=Kind.FAILOVER, stage=stage)

    assert not may_stay_unwritten(before, replace(before, stage=order[order.index(stage) + 1]))


def plan_at(stage: Stage, **changes: Any) -> PlanRecord:
    return a_plan(kind=Kind.SWITCHOVER, stage=stage, candidate=TORONTO, old=CLINIC, **changes)


NODE_STATES: dict[str, dict[str, Any]] = {
    "up": {},
    "down": {"database": Database.DOWN},
    "hung": {"database": Database.HUNG},
    "fenced": {"role": Role.FENCED, "lease_epoch": None, "replicating": False},
    "behind": {"position": "0-1-90"},
    "ahead": {"position": "0-1-110"},
    "silent": {"absent_ms": 10.0},
    "gone": {"absent_ms": 9_000.0},
}
REPLICATOR_STATES: dict[str, dict[str, Any]] = {"up": {}, "silent": {"absent_ms": 10.0}, "gone": {"absent_ms": 9_000.0}}
DURABLE: tuple[str | None, ...] = ("0-1-90", HEAD)
HEALTHY = a_view()


def every_small_view(montreal: str) -> Iterator[tuple[View, dict[str, str | None]]]:
    """All clusters of three nodes, one of them in this state and two in eight, three replicators in three, two archive
    positions, two ackers."""
    nodes = {(site, name): a_node(site, **NODE_STATES[name]) for site in SITES for name in NODE_STATES}
    replicators = {(site, name): a_replicator(site, **REPLICATOR_STATES[name]) for site in SITES
                   for name in REPLICATOR_STATES}  # fmt: skip
    durabilities = [a_durability(ackers=(acker,)) for acker in ("toronto", "montreal")]
    for clinic, toronto in product(NODE_STATES, repeat=2):
        three = (nodes["clinic", clinic], nodes["toronto", toronto], nodes["montreal", montreal])
        for r_toronto, r_montreal in product(REPLICATOR_STATES, repeat=2):
            healthy = replace(
                HEALTHY, nodes=three,
                replicators=(HEALTHY.replicators[0], replicators["toronto", r_toronto], replicators["montreal", r_montreal]),
            )  # fmt: skip
            for durability, at_toronto, at_montreal in product(durabilities, DURABLE, DURABLE):
                view = replace(healthy, durability=durability)
                yield view, {"clinic": "0-1-90", "toronto": at_toronto, "montreal": at_montreal}


@pytest.mark.parametrize("montreal", NODE_STATES)
@pytest.mark.parametrize("kind", [Kind.FAILOVER, Kind.SWITCHOVER])
def test_no_small_cluster_breaks_an_invariant(kind: Kind, montreal: str) -> None:
    """Every plan over every small view: each step passes `check_step`, and what opens has all that was acknowledged."""
    opened_plans = 0
    for view, positions in every_small_view(montreal):
        _, plan, after = run(view, a_plan(kind=kind, stage=ORDER[kind][0]), positions)
        if after.epoch is None or after.epoch.epoch == 1:
            continue
        opened_plans += 1
        acker = view.durability.ackers[0] if view.durability else ""
        assert plan.proof is not None
        if plan.rolled_back is None:
            assert max(map(sequence, positions.values())) >= sequence(positions[acker])
            assert sequence(after.epoch.position) >= sequence(positions[acker])
            assert view.replicator(acker).report is not None  # type: ignore[union-attr]

    assert opened_plans > 100


def test_an_invariant_that_does_not_hold_stops_the_step() -> None:
    view = a_view(clinic=DEAD)

    with pytest.raises(Bug, match="proof of fence"):
        check_step(
            view, a_plan(stage=Stage.PROMOTE, candidate=TORONTO, target=HEAD), steps.Promote(node=TORONTO, epoch=2)
        )


def test_promoting_into_an_epoch_that_is_not_newer_is_a_bug() -> None:
    view = a_view(epoch=an_epoch(epoch=2))

    with pytest.raises(Bug, match="not newer"):
        check_step(view, a_plan(proof="x"), steps.Promote(node=TORONTO, epoch=2))


def test_a_standby_that_reported_after_the_primary_is_not_ahead_of_it() -> None:
    """Reports are up to a second old: only an archive that was sealed shows where the history ends."""
    view = a_view(toronto=a_node("toronto", position="0-1-109"))
    ranking = rank(view, a_plan(kind=Kind.SWITCHOVER))

    assert [one.node for one in ranking if one.able] == [TORONTO, MONTREAL]
