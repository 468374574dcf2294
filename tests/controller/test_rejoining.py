"""Which node is built anew by itself, from whom, when and how often: a view with a primary in Toronto and the old one ahead."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import Bug
from cluster.orders import Hold, Order
from cluster.records import Database, RescueReport, RescueState, RestartReport, Role, SeedPhase, SeedReport
from controller.decide import may_follow
from controller.invariants import check_repair
from controller.model import MS_PER_HOUR, NodeFacts, RejoinEvent, RejoinRecord, View
from controller.plan import NoteRejoin, Reseed, Restart
from controller.rejoin import Rung
from controller.rejoining import BACKOFF_MS, BEGUN_MS, NEVER_BEGAN, backoff_ms, failures, repairs, rungs
from tests.controller.builders import CLINIC, MONTREAL, SINCE, TORONTO, a_node, a_view, an_epoch

AHEAD = "0-1-105"
HEAD = "0-2-120"
RESCUED = RescueReport(id="2-r", state=RescueState.COMPLETE, position=AHEAD)
OLD: dict[str, Any] = {
    "role": Role.FENCED, "epoch": 2, "position": AHEAD, "lease_epoch": None, "read_only": True, "rescue": RESCUED,
}  # fmt: skip
PRIMARY: dict[str, Any] = {
    "role": Role.PRIMARY, "epoch": 2, "position": HEAD, "lease_epoch": 2, "lag_ms": None, "replicating": None,
}  # fmt: skip
STANDBY: dict[str, Any] = {"epoch": 2, "position": HEAD}
HELD = Order(serial=1, since=SINCE, hold=Hold(before="0-1-50", position="0-1-49"))
NEW_ID = "20260101T000000-abc123"
RUNS = SeedReport(id="s", donor=MONTREAL, phase=SeedPhase.COPYING, began=SINCE)


def seen(old: dict[str, Any] | None = None, montreal: dict[str, Any] | None = None, **changes: Any) -> View:
    """db-toronto is the primary of epoch 2, which began at 0-1-100; db-clinic has five transactions more than that."""
    entry = replace(an_epoch().lineage[0], epoch=2, server_id=2, position="0-1-100")
    epoch = an_epoch(epoch=2, primary=TORONTO, server_id=2, position="0-1-100", lineage=(*an_epoch().lineage, entry))
    durability = replace(a_view().durability, epoch=2, ackers=("montreal",))  # type: ignore[type-var]  # there is one
    nodes = (
        a_node("clinic", **{**OLD, **(old or {})}),
        a_node("toronto", **PRIMARY),
        a_node("montreal", **{**STANDBY, **(montreal or {})}),
    )
    return replace(a_view(epoch=epoch, durability=durability, nodes=nodes), **changes)


def of(view: View, name: str = CLINIC) -> NodeFacts:
    node = view.node(name)
    assert node is not None
    return node


def noted(view: View, *events: RejoinEvent, age_ms: float, name: str = CLINIC) -> View:
    """Something was done before, and the record of it has been as it is for `age_ms`."""
    nodes = (replace(node, rejoin=RejoinRecord(events=events), rejoin_age_ms=age_ms) if node.name == name else node
             for node in view.nodes)  # fmt: skip
    return replace(view, nodes=tuple(nodes))


def an_attempt(number: int = 1, outcome: str | None = "failed: no room", **changes: Any) -> RejoinEvent:
    event = RejoinEvent(id=f"attempt-{number}", rung="reseed", why="", epoch=2, began=SINCE, attempt=number,
                        donor=MONTREAL, outcome=outcome)  # fmt: skip
    return replace(event, **changes)


def due(view: View) -> tuple[Reseed | Restart | NoteRejoin, ...]:
    return repairs(view, SINCE, NEW_ID)


def test_the_old_primary_that_is_ahead_is_built_anew_from_the_standby_once_all_it_has_is_rescued() -> None:
    (repair,) = due(seen())

    assert isinstance(repair, Reseed)
    assert (repair.node, repair.donor, repair.epoch) == (CLINIC, MONTREAL, 2)
    assert (repair.event.id, repair.event.attempt, repair.event.rung) == (NEW_ID, 1, "reseed")
    assert "rescued" in repair.event.why


WAITS: dict[str, tuple[View, str]] = {
    "not rescued yet": (seen({"rescue": None}), "has what the cluster has not"),
    "the rescue is of less than it has": (seen({"position": "0-1-106"}), "has what the cluster has not"),
    "it is being seeded": (seen({"seeding": RUNS}), "being seeded"),
    "another node is being seeded": (seen(montreal={"role": Role.JOINING, "seeding": RUNS}), "one at a time"),
    "another node's seeding has just been ordered": (
        noted(seen(montreal={"role": Role.FENCED}), an_attempt(outcome=None), age_ms=BEGUN_MS / 2, name=MONTREAL), "one at a time"),
    "its own seeding was ordered, and nobody has answered yet": (
        noted(seen(), an_attempt(outcome=None), age_ms=BEGUN_MS / 2), "not known yet"),
    "the last attempt has just failed": (noted(seen(), an_attempt(), age_ms=BACKOFF_MS - 1), "the next one comes in"),
    "it was tried too often": (noted(seen(), an_attempt(3), age_ms=2 * MS_PER_HOUR), "a person must look"),
    "its settings do not say how": (
        replace(seen(), nodes=tuple(replace(node, missing_to_receive=("start_command",)) for node in seen().nodes)), "lack start_command"),
    "the standby cannot give yet, and the primary shall not": (
        seen(montreal={"replicating": False}), "a standby is to give"),
    "nobody knows what it has": (seen({"position": None}), "position is not known"),
    "an operator holds it before a transaction": (
        replace(seen(), nodes=(replace(of(seen()), order=HELD), *seen().nodes[1:])), "as ordered"),
    "the primary is silent": (
        replace(seen(), nodes=(of(seen()), a_node("toronto", absent_ms=1.0), of(seen(), MONTREAL))), "failover comes first"),
    "paused": (seen(paused=True), "paused"),
    "automatic is off": (
        replace(seen(), policy=replace(seen().policy, rejoin_automatic=False)), "'oscar-ha reinitialize'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_it_waits_and_says_for_what(name: str) -> None:
    view, reason = WAITS[name]
    step = rungs(view, plan_runs=False)[CLINIC]

    assert step.rung in (Rung.HOLD, Rung.RESCUE)
    assert reason in step.why
    assert not due(view)


CRASHED: dict[str, Any] = {"database": Database.DOWN, "position": None, "crashed": True, "rescue": None}
RESTART_AFTER_MS = seen().policy.restart_after_ms


def down(old: dict[str, Any], *, for_ms: float = RESTART_AFTER_MS) -> View:
    view = seen(old)
    return replace(view, nodes=(replace(of(view), down_ms=for_ms), *view.nodes[1:]))


def test_a_crashed_server_that_nobody_starts_is_started_and_not_built_anew() -> None:
    (repair,) = due(down(CRASHED))

    assert isinstance(repair, Restart)
    assert (repair.node, repair.event.rung, repair.event.attempt) == (CLINIC, "restart", 1)
    check_repair(down(CRASHED), repair)
    assert not due(down(CRASHED, for_ms=RESTART_AFTER_MS - 1))
    assert not due(down({**CRASHED, "crashed": False})), "somebody stopped it"


def test_a_server_that_somebody_stopped_is_never_started() -> None:
    (repair,) = due(down(CRASHED))
    for view in (down({**CRASHED, "crashed": False}), seen(), seen(epoch=an_epoch(epoch=2, primary=CLINIC))):
        with pytest.raises(Bug, match="invariant 8"):
            check_repair(view, repair)


def test_a_standby_that_meets_a_torn_row_again_is_built_anew_and_loses_nothing_of_its_own() -> None:
    torn = {
        "role": Role.JOINING,
        "position": "0-1-90",
        "stuck": "Duplicate entry '7'",
        "rescue": None,
        "lag_ms": 60_000.0,
    }
    (repair,) = due(seen(torn))

    assert isinstance(repair, Reseed)
    assert "Duplicate entry" in repair.event.why
    check_repair(seen(torn), repair)


def test_while_a_plan_runs_nobody_stands_on_a_rung() -> None:
    assert {step.rung for step in rungs(seen(), plan_runs=True).values()} == {Rung.HOLD}


def test_the_primary_gives_only_when_nobody_could_take_over_from_it_anyway() -> None:
    (repair,) = due(seen(montreal={"role": Role.JOINING, "lag_ms": None, "replicating": False}))

    assert isinstance(repair, Reseed)
    assert repair.donor == TORONTO


def test_of_two_that_are_ahead_one_is_built_anew() -> None:
    """Both at once would leave the primary alone to give, and alone."""
    view = seen(montreal={**OLD, "position": "0-3-105", "rescue": replace(RESCUED, position="0-3-105")})
    (repair,) = due(view)

    assert isinstance(repair, Reseed)
    assert (repair.node, repair.donor) == (CLINIC, TORONTO)


@pytest.mark.parametrize(
    ("age_ms", "attempt"),
    [
        pytest.param(BACKOFF_MS, 2, id="after its pause it is the second attempt"),
        pytest.param(24 * MS_PER_HOUR, 1, id="a day later it counts as the first"),
    ],
)
def test_attempts_are_counted_while_they_are_near(age_ms: float, attempt: int) -> None:
    (repair,) = due(noted(seen(), an_attempt(), age_ms=age_ms))

    assert repair.event.attempt == attempt


def test_one_that_was_built_anew_and_comes_back_ahead_again_and_again_needs_a_person() -> None:
    """What succeeds is an attempt too: a node that diverges three times within a day has a cause."""
    done = noted(seen(), an_attempt(3, "done"), age_ms=MS_PER_HOUR)

    assert "a person must look" in rungs(done, plan_runs=False)[CLINIC].why
    assert not due(done)
    (again,) = due(noted(seen(), *RejoinRecord(events=(an_attempt(3, "done"),)).forgiven().events, age_ms=MS_PER_HOUR))
    assert again.event.attempt == 1


def test_after_a_success_nothing_is_waited_for() -> None:
    events = (an_attempt(1), an_attempt(2, "done"))

    assert failures(of(noted(seen(), *events, age_ms=0.0))) == 0
    assert failures(of(noted(seen(), *events, an_attempt(3), age_ms=0.0))) == 1
    (repair,) = due(noted(seen(), *events, age_ms=0.0))
    assert repair.event.attempt == 3


def test_pauses_grow_and_are_bounded() -> None:
    pauses = [backoff_ms(number) for number in range(1_000)]

    assert pauses[:4] == [0.0, BACKOFF_MS, 2 * BACKOFF_MS, 4 * BACKOFF_MS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MS_PER_HOUR


ENDS: dict[str, tuple[View, str | None]] = {
    "it is a standby": (
        seen({"role": Role.STANDBY, "seeding": replace(RUNS, id="attempt-1", phase=SeedPhase.DONE)}), "done"),
    "it failed": (
        seen({"seeding": replace(RUNS, id="attempt-1", phase=SeedPhase.FAILED, why="no room")}), "failed: no room"),
    "it runs": (seen({"seeding": replace(RUNS, id="attempt-1")}), None),
    "it never began": (seen(), NEVER_BEGAN),
    "the server is up": (seen({"restart": RestartReport(id="attempt-1", runs=False)}), "done"),
    "the server does not start": (seen({"restart": RestartReport(id="attempt-1", runs=False, why="it said so")}), "failed: it said so"),
    "it is being started": (seen({"restart": RestartReport(id="attempt-1", runs=True)}), None),
    "another seeding ended": (seen({"seeding": replace(RUNS, phase=SeedPhase.DONE)}), NEVER_BEGAN),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_how_an_attempt_ended_is_noted_by_whoever_leads(name: str) -> None:
    view, outcome = ENDS[name]
    found = due(noted(view, an_attempt(outcome=None), age_ms=BEGUN_MS))
    assert [one.event.outcome for one in found if isinstance(one, NoteRejoin)] == ([outcome] if outcome else [])
    assert not [one for one in found if not isinstance(one, NoteRejoin)], "first it is noted"


def test_what_is_noted_is_bounded_and_the_newest() -> None:
    record = RejoinRecord()
    for number in range(1, 100):
        record = record.with_event(an_attempt(number, outcome=None)).with_event(an_attempt(number, "done"))

    assert [one.attempt for one in record.events] == list(range(80, 100))
    assert {one.outcome for one in record.events} == {"done"}


def every_view() -> Iterator[View]:
    """Combinations of what the old primary and the standby may be."""
    for role in Role:
        for database in Database:
            for position in (None, "0-1-90", AHEAD):
                for rescue in (None, RESCUED):
                    for other in ({}, {"role": Role.FENCED}, {"seeding": RUNS, "role": Role.JOINING}):
                        for epoch in (1, 2):
                            old = {
                                "role": role,
                                "database": database,
                                "position": position,
                                "rescue": rescue,
                                "epoch": epoch,
                            }
                            yield seen(old, other)


def test_every_repair_of_every_view_keeps_the_rules_and_the_rung_follow_is_what_decide_does() -> None:
    repaired = 0
    for view in every_view():
        assert view.epoch is not None
        for repair in due(view):
            check_repair(view, repair)
            repaired += 1
        for name, step in rungs(view, plan_runs=False).items():
            assert (step.rung is Rung.FOLLOW) == may_follow(view, view.epoch, of(view, name))
    assert repaired


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(seen({"rescue": None}), id="not rescued"),
        pytest.param(seen({"position": None}), id="nobody knows what it has"),
        pytest.param(seen(montreal={"position": "0-1-1"}, epoch=an_epoch(epoch=2, primary=CLINIC)), id="the primary"),
        pytest.param(replace(seen(), nodes=(of(seen()), a_node("toronto", database=Database.DOWN), of(seen(), MONTREAL))),
                     id="while the primary is down"),
        pytest.param(seen(epoch=an_epoch(epoch=3, primary=TORONTO)), id="of an epoch that is over"),
    ],
)  # fmt: skip
def test_a_seeding_that_would_break_a_rule_is_never_begun(view: View) -> None:
    (repair,) = due(seen())
    with pytest.raises(Bug, match="invariant"):
        check_repair(view, repair)
