"""What may be ordered of a standby, and what an order means to every decision: one line a situation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.command import application
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.orders import Hold, Obedience, Obeying, Order
from cluster.records import Database, Role
from controller.advance import next_step
from controller.choose import rank
from controller.compare.command import chosen
from controller.decide import is_current, warnings
from controller.loop import Request, best, new_plan, requested_plan
from controller.model import Kind, NodeFacts, Stage, View
from controller.operator_command import path_of
from controller.orders import OTHERWISE, Place, Plan, plan_delay, plan_hold, plan_release
from controller.plan import Choose, Wait
from controller.readiness import readiness, sentences
from controller.seed import plan_seeding
from tests.controller.builders import CLINIC, MONTREAL, SINCE, TORONTO, a_node, a_plan, a_view, sealed

HOUR = 3_600
PLACE = Place(gtid="0-1-91", position="0-1-90", seconds=1_764_000_000)
DELAYED = Order(serial=1, since=SINCE, delay_seconds=4 * HOUR)
HELD = replace(DELAYED, hold=Hold(before="0-1-91", position="0-1-90"))
DOWN: dict[str, Any] = {"database": Database.DOWN, "role": Role.FENCED, "position": None, "lag_ms": None}


def ordered(site: str, given: Order | None, **changes: Any) -> NodeFacts:
    return replace(a_node(site, **changes), order=given)


def behind(given: Order = DELAYED, **changes: Any) -> View:
    """Toronto is current, Montreal has an order and is at 80."""
    facts: dict[str, Any] = {"position": "0-1-80", "lag_ms": 4 * HOUR * 1000.0} | changes
    return a_view(montreal=ordered("montreal", given, **facts))


def hold(view: View, node: str = MONTREAL, place: Place | None = PLACE, *, force: bool = False) -> Plan:
    return plan_hold(view, node, place, force=force, since=SINCE, why="a test")


def delay(view: View, node: str = MONTREAL, seconds: int = HOUR, *, force: bool = False) -> Plan:
    return plan_delay(view, node, seconds, force=force, since=SINCE, why="a test")


def test_an_order_keeps_what_it_does_not_change() -> None:
    assert hold(behind()).order == Order(serial=2, since=SINCE, why="a test", delay_seconds=4 * HOUR, hold=HELD.hold)
    assert plan_release(behind(HELD), MONTREAL, since=SINCE, why="").order == replace(DELAYED, serial=2)
    assert delay(behind(HELD)).order.hold == HELD.hold
    assert hold(behind(), place=None).order.hold == Hold(before=None, position=None)
    assert delay(a_view(), seconds=0).order == Order(serial=1, since=SINCE, why="a test")


ALONE = a_view(toronto=a_node("toronto", **DOWN))
REFUSALS: dict[str, tuple[Callable[[], Plan], type[OscarHaError], str, str]] = {
    "an unknown node": (lambda: hold(behind(), "db-x"), BadInput, "no node 'db-x'", "one of"),
    "the primary": (lambda: delay(a_view(), CLINIC), Refused, "is the primary", "standby"),
    "a silent node": (
        lambda: delay(a_view(montreal=a_node("montreal", absent_ms=1.0))), Refused, "does not report", "start it"),
    "before the first epoch": (lambda: delay(replace(a_view(), epoch=None)), Refused, "no epoch", "wait"),
    "the only current standby": (lambda: delay(ALONE), Refused, "only standby that is current", "--force"),
    "too late, another is still before it": (
        lambda: hold(behind(), TORONTO, force=True), Refused, "stands at 0-1-100, 9 transactions after it",
        "oscar-ha hold db-montreal --before 0-1-91"),
    "too late for all": (lambda: hold(a_view()), Refused, "has applied 0-1-91 already", OTHERWISE),
    "a history of its own": (lambda: hold(behind(position="0-9-80")), Refused, "another history", "reinitialize"),
    "an unknown position": (lambda: hold(behind(position=None)), Refused, "not known", "status"),
    "a release of what is not held": (
        lambda: plan_release(behind(), MONTREAL, since=SINCE, why=""), Refused, "not held", "status"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_why_and_the_mend(name: str) -> None:
    attempt, kind, reason, mend = REFUSALS[name]
    with pytest.raises(kind, match=reason) as caught:
        attempt()

    assert mend in caught.value.hint


def test_force_orders_it_all_the_same_and_says_what_it_costs() -> None:
    assert "only standby" in delay(ALONE, force=True).warnings[0]
    assert "stays held before 0-1-91" in delay(behind(HELD)).warnings[0]


def able(view: View, kind: Kind, **changes: Any) -> list[str]:
    return [one.node for one in rank(view, replace(new_plan(view, kind, "", old=CLINIC), **changes)) if one.able]


def test_a_delayed_standby_is_promoted_only_when_nobody_else_can_be() -> None:
    """Even one that is nearer to the primary by the order of sites."""
    delayed = a_view(toronto=ordered("toronto", DELAYED, position="0-1-80"))
    lost = replace(delayed, nodes=(a_node("clinic", **DOWN), *delayed.nodes[1:]))
    alone = replace(lost, nodes=(*lost.nodes[:2], a_node("montreal", **DOWN)))

    assert able(lost, Kind.FAILOVER) == [MONTREAL, TORONTO]
    assert able(alone, Kind.FAILOVER) == [TORONTO]
    assert able(lost, Kind.FAILOVER, requested=TORONTO)[0] == TORONTO, "an operator's word"
    assert able(lost, Kind.FAILOVER, excluded=(MONTREAL,)) == [TORONTO, MONTREAL], "the other one failed"


def test_the_plan_of_a_failover_to_a_delayed_standby_waits_until_it_has_everything() -> None:
    view = a_view(clinic=a_node("clinic", **DOWN), toronto=a_node("toronto", **DOWN),
                  montreal=ordered("montreal", DELAYED, position="0-1-80"))  # fmt: skip
    plan = a_plan(stage=Stage.CHOOSE, sealed=sealed(toronto="0-1-100"), target="0-1-100")
    step = next_step(view, plan, SINCE)
    assert isinstance(step, Choose)
    assert (step.node, step.target) == (MONTREAL, "0-1-100")


def test_a_held_standby_is_never_promoted_by_itself() -> None:
    """Whatever else is lost: a person must release it, and is told how."""
    view = a_view(
        clinic=a_node("clinic", **DOWN), toronto=a_node("toronto", **DOWN), montreal=ordered("montreal", HELD)
    )
    step = next_step(view, a_plan(stage=Stage.CHOOSE, sealed=sealed(toronto="0-1-100"), target="0-1-100"), SINCE)
    assert isinstance(step, Wait)
    assert "held before 0-1-91 as ordered: oscar-ha release db-montreal" in step.why


@pytest.mark.parametrize(
    ("order", "mend"), [(DELAYED, "oscar-ha delay db-montreal --off"), (HELD, "oscar-ha release db-montreal")]
)
def test_a_switchover_to_one_is_refused_with_the_mend(order: Order, mend: str) -> None:
    view = behind(order)
    plan = new_plan(view, Kind.SWITCHOVER, "", old=CLINIC, requested=MONTREAL)
    with pytest.raises(Refused, match=mend):
        best(rank(view, plan), plan)
    with pytest.raises(Refused, match=mend):
        requested_plan(view, Request(kind=Kind.SWITCHOVER, to=MONTREAL, why="", done=None))  # type: ignore[arg-type]  # nobody waits


def obeying(state: Obeying) -> dict[str, Any]:
    return {"order": Obedience(state=state, serial=1, delay_seconds=4 * HOUR, before="0-1-91")}


def test_an_ordered_delay_is_no_lag_and_an_ordered_stop_no_fault() -> None:
    for view in (behind(), behind(HELD, **obeying(Obeying.HELD), lag_ms=None)):
        assert warnings(view) == ()
        assert readiness(view) == ()
    assert warnings(behind(lag_ms=5 * HOUR * 1000.0)) == ("db-montreal is 5 h behind, 4 h are ordered: ",)
    assert "had applied it" in warnings(behind(HELD, **obeying(Obeying.LATE)))[0]


def test_a_cluster_whose_only_standby_stays_behind_is_not_ready_and_says_why() -> None:
    view = replace(behind(), nodes=(*behind().nodes[:1], a_node("toronto", **DOWN), *behind().nodes[2:]))

    assert not is_current(view.nodes[2])
    assert sentences(readiness(view)) == ["no standby is current: db-montreal is delayed 4 h as ordered"]


def test_who_stays_behind_gives_no_copy_and_what_is_held_is_not_replaced_unasked() -> None:
    view = a_view(toronto=ordered("toronto", DELAYED), montreal=ordered("montreal", HELD))
    plan = plan_seeding(view, MONTREAL, requested=None, force=True)

    assert (plan.donor, plan.donors[1].against) == (CLINIC, ("it is delayed 4 h as ordered",))
    with pytest.raises(Refused, match="held before 0-1-91 as ordered: what it holds would be replaced"):
        plan_seeding(view, MONTREAL, requested=None, force=False)


def test_verify_leaves_out_who_has_the_data_of_another_moment() -> None:
    """Without being undecided for ever; asked for by name, it is undecided."""
    nodes = [
        {"node": CLINIC, "role": "primary"}, {"node": TORONTO, "role": "standby", "replicating": True},
        {"node": MONTREAL, "role": "standby", "replicating": True, "ordered_text": DELAYED.text},
    ]  # fmt: skip
    answer = {"epoch": {"epoch": 1, "primary": CLINIC}, "nodes": nodes}
    sentence = "db-montreal is not compared: it is delayed 4 h as ordered"

    everything, asked = chosen(answer, ()), chosen(answer, (MONTREAL,))
    assert (everything.standbys, everything.left_out, everything.by_order) == ((TORONTO,), (), (sentence,))
    assert (asked.standbys, asked.left_out) == ((), (sentence,))


WRONG: dict[str, tuple[list[str], str]] = {
    "no time": (["delay", "n"], "--off"),
    "a time and none": (["delay", "n", "--hours", "4", "--off"], "--off"),
    "no number": (["delay", "n", "--hours", "soon"], "'soon'"),
    "before nothing": (["hold", "n"], "--now"),
    "before and now": (["hold", "n", "--before", "0-1-2", "--now"], "--now"),
    "a day is no GTID": (["hold", "n", "--before", "2026-11-24"], "is a day"),
    "no GTID": (["hold", "n", "--before", "yesterday"], "neither a transaction nor a time"),
    "no such time": (["hold", "n", "--before", "2026-13-01T00:00"], "not a time"),
    "no settings": (["release", "n"], "no settings file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_command_is_named_before_anybody_is_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSCAR_HA_SETTINGS", raising=False)
    arguments, words = WRONG[name]
    done = CliRunner().invoke(application(arguments[0]), arguments)

    assert isinstance(done.exception, BadInput)
    assert words in str(done.exception)


def test_what_is_typed_as_a_node_names_no_other_path_and_no_other_node() -> None:
    """`db-clinic` and a byte that is no text was `db-clinic`: a typing error replaced its data."""
    assert path_of("db-clinic\udcff") == "db-clinic%FF"
    assert path_of("x/../db-clinic/hold?a=b#c") == "x%2F..%2Fdb-clinic%2Fhold%3Fa%3Db%23c"


def test_help_teaches() -> None:
    for verb, words in (
        ("delay", "deleted everything"),
        ("hold", "--before"),
        ("release", "dump what you need before"),
    ):
        text = CliRunner().invoke(application(verb), [verb, "--help"], env={"COLUMNS": "200"}).stdout
        assert words in " ".join(text.split())
