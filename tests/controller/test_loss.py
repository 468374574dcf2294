"""A loss is named before it is accepted, bounded, and never more than was accepted; who asks for none loses none."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from cluster.errors import BadInput, Bug, Conflict, Refused
from cluster.records import Database, Role
from cluster.settings import Timing
from controller import plan as steps
from controller.accepted import Accepted, Loss, excess, needed, parse, parse_text
from controller.advance import ACCEPTING_STAGES, SEAL_PATIENCE_MS, Outcome, accepting, next_step, outcome_of, progress
from controller.dry_run import dry_run
from controller.invariants import check_step
from controller.loss import REPORT_LATE_MS, expected_loss
from controller.model import Kind, PlanRecord, Proof, Stage, View
from controller.plan import GiveUp, Wait
from controller.requested import Wanted, requested_plan
from controller.seen import Sighting
from tests.controller.builders import (
    ANYTHING,
    CLINIC,
    HEAD,
    MONTREAL,
    SINCE,
    SITES,
    a_durability,
    a_node,
    a_plan,
    a_replicator,
    a_view,
    sealed,
)
from tests.controller.test_advance import DURABLE, NODE_STATES, REPLICATOR_STATES, run, sequence

LAST = Sighting(position="0-1-108", at="2026-01-01T00:00:09.000Z", version="10.11.19-MariaDB")
DOWN_MS = 4_000.0


def disaster(**changes: Any) -> View:
    """The primary died four seconds ago, and Toronto, which acknowledged; Montreal was three seconds behind."""
    gone = replace(a_replicator("toronto", absent_ms=5_000.0), last=LAST)
    dead = a_node("clinic", database=Database.DOWN, role=Role.FENCED, position=None, lease_epoch=None)
    view = a_view(
        clinic=replace(dead, down_ms=DOWN_MS),
        replicator_clinic=a_replicator("clinic", absent_ms=5_000.0),
        toronto=a_node("toronto", absent_ms=5_000.0), replicator_toronto=gone,
        montreal=replace(a_node("montreal", lag_ms=5_700.0, lag_age_ms=500.0), stale_ms=200.0),
        replicator_montreal=replace(a_replicator("montreal"), present_ms=9e9),
    )  # fmt: skip
    return replace(view, **changes)


def waiting() -> PlanRecord:
    """An automatic failover that has sealed whom it reached, and waits."""
    plan = a_plan(automatic=True, proof=Proof.PROCESS_DEAD.value, sealed=sealed(montreal=HEAD))
    assert isinstance(next_step(disaster(), replace(plan, stage=Stage.CHOOSE), SINCE), Wait)
    return plan


def rehearsed(view: View, running: PlanRecord | None = None, accepts: Accepted | None = None) -> dict[str, Any]:
    wanted = Wanted(kind=Kind.FAILOVER, to=None, why="test", accepts=accepts)
    return dry_run(view, wanted, running=running, past=(), timing=Timing())


# -- what would be lost ----------------------------------------------------------------------------------------------


def test_a_loss_names_who_is_gone_what_he_had_and_a_bound_in_seconds() -> None:
    loss = expected_loss(disaster(), waiting())

    assert (loss.transactions, loss.at_least, loss.seconds) == (None, 8, 2.7)
    assert "toronto, which acknowledged, is gone (last heard of at 2026-01-01T00:00:09.000Z, at 0-1-108)" in loss.why
    assert needed(loss).text == "transactions=unknown,seconds=3"


def test_where_all_is_proven_nothing_is_lost_and_why_is_said() -> None:
    view = a_view(clinic=a_node("clinic", database=Database.DOWN))

    loss = expected_loss(view, a_plan(sealed=sealed(toronto=HEAD, montreal=HEAD)))

    assert loss.is_nothing
    assert "toronto at 0-1-100" in loss.why


def test_a_closed_primary_bounds_the_transactions() -> None:
    """Nothing was acknowledged beyond where it stands."""
    for stood, lost in (("0-1-105", 5), (HEAD, 0)):
        loss = expected_loss(disaster(), replace(waiting(), old_position=stood))
        assert (loss.transactions, loss.is_nothing) == (lost, lost == 0)


def test_a_restarted_server_bounds_nothing() -> None:
    """A restart cuts the tail, acknowledged transactions included (decision 0010)."""
    fence = steps.Fence(node=CLINIC, epoch=1, polite=False)
    closed = Outcome(ms=1, took_ms=1, how="read_only", position=HEAD)
    plan = a_plan(stage=Stage.FENCE)

    assert progress(a_view(), plan, fence, closed).old_position == HEAD
    assert progress(a_view(clinic=a_node("clinic", generation="2")), plan, fence, closed).old_position is None
    before = a_view(clinic=a_node("clinic", role=Role.FENCED, lease_epoch=None))
    assert progress(before, plan, fence, closed).old_position is None, "it was restarted before the plan began"
    assert progress(before, replace(plan, old_position=HEAD), fence, closed).old_position == HEAD, "it is fenced again"


def test_a_controller_that_has_just_begun_bounds_too_much_never_too_little() -> None:
    """Ages count from when it began to look; what others wrote down before names at least who is gone, and what he had."""
    view = disaster()
    view = replace(view, nodes=tuple(replace(node, down_ms=0.0) for node in view.nodes),
                   replicators=tuple(replace(one, absent_ms=one.absent_ms and 0.0, present_ms=0.0)
                                     for one in view.replicators))  # fmt: skip
    loss = expected_loss(view, waiting())

    assert loss.at_least == 8
    assert loss.seconds == 6.7


def a_minute_ago(montreal_ms: float, seen_ms: float) -> View:
    """Primary and acker fell silent a minute ago; Montreal's newest heartbeat is so old, and it was seen for so long."""
    view = disaster()
    last = replace(a_node("montreal", lag_ms=montreal_ms - REPORT_LATE_MS), stale_ms=0.0)
    silent = [replace(one, absent_ms=one.absent_ms and 60_000.0) for one in view.replicators[:2]]
    return replace(view, nodes=(a_node("clinic", absent_ms=60_000.0), view.nodes[1], last),
                   replicators=(*silent, replace(view.replicators[2], present_ms=seen_ms)))  # fmt: skip


def test_silence_counts_from_the_end_of_the_leases() -> None:
    assert expected_loss(a_minute_ago(62_000.0, 9e9), waiting()).seconds == 62 - (60 - 1)


def test_who_was_not_seen_all_the_time_may_have_granted_that_the_primary_goes_on() -> None:
    """Without ZooKeeper a primary writes by the grants of all (decision 0078)."""
    assert expected_loss(a_minute_ago(62_000.0, 30_000.0), waiting()).seconds == 62 - (30 - 2 * 6 - 1)


def test_clocks_that_contradict_what_is_known_bound_nothing() -> None:
    """Toronto had eight more, and by the clocks there was no time for them."""
    assert expected_loss(a_minute_ago(1_000.0, 9e9), waiting()).seconds is None


def test_a_heartbeat_that_was_read_nobody_knows_when_bounds_nothing() -> None:
    """A watchdog repeats what it last read: a server that answers no more is told with its old lag for ever."""
    view = disaster()
    old = replace(view.nodes[2], report=replace(a_node("montreal").report, lag_age_ms=None))  # type: ignore[type-var]  # there is one

    assert expected_loss(replace(view, nodes=(*view.nodes[:2], old)), waiting()).seconds is None


# -- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepts", "enough"),
    [
        ("transactions=unknown,seconds=3", True), ("transactions=unknown,seconds=unknown", True),
        ("transactions=unknown,seconds=2", False), ("transactions=1000000,seconds=3", False),
    ],
)  # fmt: skip
def test_less_than_what_is_lost_is_not_enough(accepts: str, enough: bool) -> None:
    accepted = parse(parse_text(accepts))
    assert accepted is not None

    assert (excess(expected_loss(disaster(), waiting()), accepted) is None) is enough


@pytest.mark.parametrize(
    "value",
    [True, "all", {}, {"transactions": 1}, {"transactions": -1, "seconds": 1}, {"transactions": True, "seconds": 1},
     {"transactions": 1.5, "seconds": 1}, {"transactions": None, "seconds": 1}, {"transactions": 1, "seconds": 1, "x": 1}],
)  # fmt: skip
def test_a_word_without_a_bound_accepts_nothing(value: object) -> None:
    with pytest.raises(BadInput, match="allow_data_loss"):
        parse(value)


@pytest.mark.parametrize("text", ["", "yes", "transactions=1", "transactions=٣,seconds=1", "transactions=1,seconds=-1"])
def test_what_is_typed_names_both(text: str) -> None:
    with pytest.raises(BadInput, match="allow_data_loss"):
        parse_text(text)


def test_an_unknown_end_is_never_accepted() -> None:
    nowhere = Loss(target=None, transactions=None, at_least=0, seconds=None, why="no sealed archive tells its position")

    assert excess(nowhere, ANYTHING) is not None


# -- the plan --------------------------------------------------------------------------------------------------------


def test_a_failover_that_waits_goes_on_by_an_operators_word_and_is_his_from_then_on() -> None:
    wanted = Wanted(
        kind=Kind.FAILOVER, to=None, why="the insurer agreed", accepts=Accepted(transactions=None, seconds=3)
    )
    plan = requested_plan(disaster(), wanted, running=waiting())

    _, ended, view = run(disaster(), plan, {"montreal": HEAD})

    assert outcome_of(ended) == "done"
    assert view.epoch is not None
    assert (view.epoch.primary, ended.automatic) == (MONTREAL, False)
    assert ended.loss is not None
    assert (ended.loss.at_least, ended.loss.seconds) == (8, 2.7)
    assert ended.steps[0].name == "loss accepted"


def test_too_small_a_bound_is_refused_before_anything_is_touched() -> None:
    """The dry run prints exactly the value to give; that one goes."""
    answer = rehearsed(disaster(), running=waiting())
    assert (answer["works"], answer["allow_data_loss"]) == (False, {"transactions": "unknown", "seconds": 3})

    for running in (waiting(), None):
        with pytest.raises(Refused, match="seconds 3 > 2") as refused:
            requested_plan(disaster(), Wanted(kind=Kind.FAILOVER, to=None, why="", accepts=Accepted(transactions=None, seconds=2)),
                           running=running)  # fmt: skip
        assert "--allow-data-loss transactions=unknown,seconds=3" in str(refused.value)
    good = rehearsed(disaster(), running=waiting(), accepts=parse(answer["allow_data_loss"]))
    assert (good["works"], good["new"]) == (True, MONTREAL)


def test_what_turns_out_larger_than_accepted_promotes_nobody_and_the_plan_waits_on() -> None:
    """Toronto's last word was read only after the operator's: now it is known to have had more, and for longer."""
    plan = replace(waiting(), automatic=False, accepts=Accepted(transactions=None, seconds=2))

    done, ended, _ = run(disaster(), plan, {"montreal": HEAD})

    assert not any(isinstance(step, steps.Choose | steps.Promote | steps.Open) for step in done)
    assert (ended.accepts, ended.stage) == (None, Stage.SEAL)
    assert "seconds 3 > 2" in " ".join(line.detail for line in ended.steps if line.name == "loss refused")


def test_who_comes_back_meanwhile_is_waited_for_and_nothing_is_lost() -> None:
    """An accepted loss is not a wished one: whoever reports seals first, for a while."""
    view = disaster(replicators=(a_replicator("clinic"), a_replicator("toronto"), a_replicator("montreal")))
    plan = replace(waiting(), automatic=False, accepts=ANYTHING, sealed=())
    seal = steps.Seal(sites=("toronto", "montreal"), epoch=1, until=None)

    first = progress(view, plan, seal, Outcome(ms=100, took_ms=50, sealed=sealed(toronto=HEAD)))
    late = progress(view, first, seal, Outcome(ms=60 + SEAL_PATIENCE_MS, took_ms=50, sealed=sealed(toronto=HEAD)))
    _, ended, _ = run(view, plan, {"clinic": HEAD, "toronto": "0-1-108", "montreal": HEAD})

    assert "clinic and montreal" in (first.waiting or "")
    assert late.stage is Stage.FENCE
    assert ended.loss is not None
    assert (ended.loss.is_nothing, ended.target) == (True, "0-1-108")


def test_a_loss_is_accepted_only_before_somebody_is_chosen_and_only_of_a_failover() -> None:
    for stage in set(Stage) - set(ACCEPTING_STAGES):
        with pytest.raises(Refused):
            accepting(a_plan(stage=stage), ANYTHING, None, "", 0.0)
    with pytest.raises(Conflict, match="one plan at a time"):
        requested_plan(disaster(), Wanted(kind=Kind.FAILOVER, to=None, why=""), running=waiting())
    with pytest.raises(Refused):
        accepting(a_plan(kind=Kind.SWITCHOVER, stage=Stage.FENCE), ANYTHING, None, "", 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"automatic": True}, {"loss": None}, {"accepts": Accepted(transactions=5, seconds=5)}, {"target": "0-1-90"}],
    ids=["nobody accepted it: it is automatic", "it was not judged", "it is more", "it is another one"],
)
def test_promoting_with_a_loss_that_nobody_accepted_is_a_bug(wrong: dict[str, Any]) -> None:
    plan = replace(waiting(), automatic=False, accepts=ANYTHING, target=HEAD, candidate=MONTREAL, stage=Stage.PROMOTE)
    plan = replace(plan, loss=expected_loss(disaster(), plan))
    step = steps.Promote(node=MONTREAL, epoch=2)

    check_step(disaster(), plan, step)
    with pytest.raises(Bug, match="invariant 2"):
        check_step(disaster(), replace(plan, **wrong), step)


def every_view_with_losses() -> list[tuple[View, dict[str, str | None]]]:
    found = []
    for clinic, montreal in product(NODE_STATES, repeat=2):
        nodes = (a_node("clinic", **NODE_STATES[clinic]), a_node("toronto", absent_ms=9_000.0),
                 a_node("montreal", **NODE_STATES[montreal]))  # fmt: skip
        for states in product(REPLICATOR_STATES, repeat=3):
            replicators = {f"replicator_{site}": a_replicator(site, **REPLICATOR_STATES[state])
                           for site, state in zip(SITES, states, strict=True)}  # fmt: skip
            view = replace(a_view(**replicators), nodes=nodes, durability=a_durability(floor="0-1-90"))
            found += [(view, {"clinic": "0-1-90", "toronto": HEAD, "montreal": at}) for at in DURABLE]
    return found


def test_whatever_is_lost_two_writers_stay_impossible_and_the_loss_is_told() -> None:
    """Over every small cluster whose acker is lost, or not: proof of fence as ever, and no loss that is not in the record."""
    opened = 0
    for view, positions in every_view_with_losses():
        _, plan, after = run(view, a_plan(accepts=ANYTHING), positions)
        if after.epoch is None or after.epoch.epoch == 1:
            continue
        opened += 1
        assert plan.proof is not None
        old = view.node(CLINIC)
        assert old is not None
        if plan.proof == Proof.LEASE_ENDED.value:
            assert view.lease_ended(old.absent_ms)
            assert any(one.site != "clinic" for one in plan.sealed)
        assert plan.loss is not None
        heard = view.replicator("toronto")
        assert heard is not None
        if sequence(after.epoch.position) < sequence(HEAD) and heard.report is None:
            assert not plan.loss.is_nothing or plan.old_position is not None
            assert heard.absent_ms is not None
            assert view.lease_ended(heard.absent_ms)

    assert opened > 300


def test_by_itself_no_failover_ever_loses_anything() -> None:
    for view, positions in every_view_with_losses():
        _, plan, after = run(view, a_plan(automatic=True), positions)
        assert after.epoch is None or after.epoch.epoch == 1 or (plan.loss is not None and plan.loss.is_nothing)


def test_a_plan_that_gives_up_the_choice_says_by_how_much() -> None:
    step = next_step(
        disaster(), replace(waiting(), stage=Stage.CHOOSE, accepts=Accepted(transactions=None, seconds=0)), SINCE
    )

    assert isinstance(step, GiveUp)
    assert "transactions: unknown, at least 8; seconds: at most 3" in step.why
