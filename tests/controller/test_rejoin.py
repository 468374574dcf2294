"""The rungs of a node that came back: a table, and what holds over every combination of facts."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from cluster.lineage import History
from cluster.records import Database, RescueReport, RescueState, RestartReport, Role, SeedPhase, SeedReport
from controller.rejoin import Facts, Rung, ladder

HERE = "0-1-105"


def a_rescue(state: RescueState, position: str = HERE) -> RescueReport:
    return RescueReport(id="2-one-20261124T110530Z", state=state, position=position)


def a_seeding(phase: SeedPhase) -> SeedReport:
    return SeedReport(id="s", donor="two", phase=phase, began="", why="no room")


SAFE = a_rescue(RescueState.COMPLETE)
AHEAD = Facts(
    role=Role.FENCED, database=Database.UP, is_primary=False, current=True, resumable=False, position=HERE,
    history=History.DIVERGED, rescue=None, seeding=None, restart=None, stuck="", crashed=False, left_ms=0.0, can_restart="",
    can_seed="", spent="", automatic=True, maintenance=False, paused=False, plan_runs=False, primary_up=True,
)  # fmt: skip
RESCUED = replace(AHEAD, rescue=SAFE)
CRASHED = replace(AHEAD, database=Database.DOWN, crashed=True, position=None, history=None)
STUCK = replace(AHEAD, role=Role.JOINING, stuck="Duplicate entry '7'", history=History.EQUAL_OR_BEHIND)


@pytest.mark.parametrize(
    ("facts", "rung"),
    [
        pytest.param(replace(AHEAD, history=History.EQUAL_OR_BEHIND), Rung.FOLLOW, id="behind or equal: it follows"),
        pytest.param(AHEAD, Rung.RESCUE, id="ahead: first its transactions are rescued"),
        pytest.param(replace(AHEAD, history=History.AHEAD), Rung.RESCUE, id="beyond the head is ahead too"),
        pytest.param(replace(AHEAD, rescue=a_rescue(RescueState.RUNNING)), Rung.RESCUE, id="a rescue that runs"),
        pytest.param(replace(AHEAD, rescue=a_rescue(RescueState.FAILED)), Rung.RESCUE, id="one that failed is tried again"),
        pytest.param(replace(AHEAD, rescue=a_rescue(RescueState.COMPLETE, "0-1-90")), Rung.RESCUE, id="a rescue of something else"),
        pytest.param(replace(AHEAD, rescue=a_rescue(RescueState.INCOMPLETE)), Rung.HOLD, id="incomplete: a person"),
        pytest.param(RESCUED, Rung.RESEED, id="rescued: it is built anew"),
        pytest.param(replace(RESCUED, automatic=False), Rung.HOLD, id="rescued, a person is to be asked"),
        pytest.param(replace(RESCUED, can_seed="nobody can give"), Rung.HOLD, id="rescued, nobody gives"),
        pytest.param(replace(RESCUED, spent="too soon"), Rung.HOLD, id="rescued, but it was tried just now"),
        pytest.param(replace(RESCUED, seeding=a_seeding(SeedPhase.COPYING)), Rung.HOLD, id="it is being seeded"),
        pytest.param(replace(RESCUED, seeding=a_seeding(SeedPhase.FAILED)), Rung.RESEED, id="a seeding that failed is tried again"),
        pytest.param(replace(RESCUED, seeding=a_seeding(SeedPhase.DONE)), Rung.RESEED, id="an old seeding does not matter"),
        pytest.param(replace(RESCUED, role=None), Rung.HOLD, id="silence is not death"),
        pytest.param(replace(RESCUED, database=Database.HUNG), Rung.HOLD, id="hung: nobody knows what it has"),
        pytest.param(replace(RESCUED, position=None, history=None), Rung.HOLD, id="its position is not known"),
        pytest.param(replace(RESCUED, plan_runs=True), Rung.HOLD, id="repairs yield to a failover"),
        pytest.param(replace(RESCUED, primary_up=False), Rung.HOLD, id="while the primary is not well no copy is replaced"),
        pytest.param(replace(RESCUED, paused=True), Rung.HOLD, id="paused"),
        pytest.param(replace(RESCUED, maintenance=True), Rung.HOLD, id="somebody works on it"),
        pytest.param(replace(RESCUED, is_primary=True), Rung.HOLD, id="the primary is left alone"),
        pytest.param(replace(AHEAD, resumable=True), Rung.HOLD, id="it opens again by itself"),
        pytest.param(replace(RESCUED, current=False), Rung.HOLD, id="it judges by an epoch that is over"),
        pytest.param(CRASHED, Rung.RESTART, id="crashed, and nobody starts it"),
        pytest.param(replace(CRASHED, left_ms=1.0), Rung.HOLD, id="crashed: who starts servers comes first"),
        pytest.param(replace(CRASHED, crashed=False), Rung.HOLD, id="stopped in order: somebody means it"),
        pytest.param(replace(CRASHED, restart=RestartReport(id="r", runs=True)), Rung.HOLD, id="it is being started"),
        pytest.param(replace(CRASHED, can_restart="its settings"), Rung.HOLD, id="nobody knows how to start it"),
        pytest.param(replace(CRASHED, spent="too often"), Rung.HOLD, id="starting it failed too often"),
        pytest.param(replace(CRASHED, automatic=False), Rung.HOLD, id="a person starts it"),
        pytest.param(replace(CRASHED, is_primary=True), Rung.HOLD, id="a crashed primary is for a failover"),
        pytest.param(STUCK, Rung.RESEED, id="a torn row stands in its way"),
        pytest.param(replace(STUCK, role=Role.STANDBY), Rung.RESEED, id="a standby's too"),
        pytest.param(replace(STUCK, stuck=""), Rung.HOLD, id="it joins: leave it alone"),
        pytest.param(replace(STUCK, history=History.DIVERGED), Rung.HOLD, id="it follows with a history of its own"),
        pytest.param(replace(STUCK, can_seed="it is held"), Rung.HOLD, id="stuck, and nobody gives"),
    ],
)  # fmt: skip
def test_a_node_that_came_back_climbs_the_ladder(facts: Facts, rung: Rung) -> None:
    step = ladder(facts)

    assert step.rung is rung
    assert step.why


def test_nothing_is_thrown_away_whatever_the_facts() -> None:
    """Invariant 7: data is replaced only when all of exactly that is safely on disk, and nothing speaks against it."""
    rescues = [None, *(a_rescue(state, position) for state in RescueState for position in (HERE, "0-1-1"))]
    seedings = [None, *(a_seeding(phase) for phase in (SeedPhase.COPYING, SeedPhase.FAILED))]
    flags = ("", "is_primary", "current", "resumable", "automatic", "paused", "plan_runs", "primary_up", "crashed")
    against: tuple[dict[str, Any], ...] = ({}, {"can_seed": "no"}, {"spent": "no"}, {"stuck": STUCK.stuck})
    seen = set[Rung]()
    for role, database, history, rescue, seeding, flag, more in itertools.product(
        (None, *Role), Database, (None, *History), rescues, seedings, flags, against
    ):
        turned: dict[str, Any] = {flag: not getattr(RESCUED, flag)} if flag else {}
        facts = replace(
            AHEAD, role=role, database=database, history=history, rescue=rescue, seeding=seeding, **turned, **more
        )
        step = ladder(facts)
        seen.add(step.rung)
        if step.rung is Rung.RESEED and facts.role in (Role.STANDBY, Role.JOINING):
            assert replace(facts, role=STUCK.role, rescue=STUCK.rescue, seeding=None, crashed=False) == STUCK
        elif step.rung is Rung.RESEED:
            assert replace(facts, history=RESCUED.history, seeding=None, crashed=False, stuck="") == RESCUED
        if step.rung is Rung.RESTART:
            assert (database, facts.crashed, flag, facts.spent) == (Database.DOWN, True, "crashed", "")
            assert role is not Role.PRIMARY
        if step.rung is Rung.FOLLOW:
            assert history is History.EQUAL_OR_BEHIND
    assert seen == set(Rung)
