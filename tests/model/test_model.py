"""The protocol, every way it can go in small scopes; and for every guard the story of what happens without it."""

import pytest

from tests.model.checker import Explored, explore
from tests.model.mutations import HELD, MUTATIONS, OUTAGE, Mutation
from tests.model.rules import Rules
from tests.model.scopes import alone, healthy, holding, second_epoch

LARGE_STATES_MIN = 100_000


BACK = (*OUTAGE, "a client commits", "toronto has 0-1-1", "toronto acknowledges", "ZooKeeper is back",
        "db-clinic: its record has been gone", "replicator montreal: it reaches")  # fmt: skip
"""A commit was acknowledged while ZooKeeper was gone; now it is back for Montreal, and not yet for the other two."""


_TORONTO_ALONE = ("a client commits", "toronto has 0-1-1 durably", "toronto acknowledges 0-1-1")
_TORONTO_GONE = ("replicator toronto is cut off", "replicator toronto: its lease ends",
                 "replicator toronto: its record has been gone")  # fmt: skip


def require_kept(name: str, found: Explored) -> None:
    print(f"\nmodel, {name}: {found}")
    assert not found.story, found
    assert found.well


def test_one_fault_without_a_write_keeps_every_promise() -> None:
    require_kept("one fault", explore(healthy(writes=0), Rules()))


def test_a_switchover_and_a_failover_by_an_operator_keep_every_promise() -> None:
    require_kept("operators", explore(healthy(writes=0, faults=0, switchovers=1, failovers=1), Rules()))


def test_when_nobody_can_acknowledge_it_is_in_sync_again_by_itself() -> None:
    require_kept("nobody can acknowledge", explore(alone(faults=0), Rules()))


def test_whatever_an_operator_accepts_to_lose_two_writers_are_impossible() -> None:
    """Promises 1, 3, 4 and 5 as ever; of 2 what is left once the loss is told."""
    require_kept("a loss is accepted", explore(healthy(writes=0, faults=0, losses=1), Rules()))


def test_a_primary_that_holds_while_it_is_cut_off_keeps_every_promise() -> None:
    require_kept("a primary holds, one fault", explore(holding(writes=0), Rules()))
    require_kept(
        "operators, while it may hold", explore(holding(writes=0, faults=0, switchovers=1, failovers=1), Rules())
    )
    require_kept("it was told alone", explore(holding(), Rules(), begins=HELD))


def explore_holding() -> int:
    """Explore what may happen to a primary that holds; return how many states that are."""
    scopes = {
        "a primary holds, a commit, one fault": holding(),
        "the settings do not say hold any more, one fault": holding(writes=0, wanted=False),
    }
    states = 0
    for name, start in scopes.items():
        found = explore(start, Rules())
        require_kept(name, found)
        states += found.states
    return states


def explore_losses() -> int:
    """Explore what may happen when the acker is gone with what it alone acknowledged; return how many states that are."""
    gone = (*_TORONTO_ALONE, *_TORONTO_GONE)
    scopes = {
        "a loss is accepted, of a commit that toronto alone had": (healthy(faults=1, losses=1), gone),
        "the server crashes besides": (healthy(faults=2, losses=1), (*gone, "the server of db-clinic crashes")),
        "a loss is accepted, one fault": (healthy(writes=0, faults=1, losses=1), ()),
    }
    states = 0
    for name, (start, begins) in scopes.items():
        found = explore(start, Rules(), begins=begins)
        require_kept(name, found)
        states += found.states
    return states


def explore_outages() -> int:
    """Explore what may happen while ZooKeeper is gone, and once it is back; return how many states that are."""
    gone = explore(healthy(writes=0, faults=0, outages=1), Rules())
    require_kept("ZooKeeper is gone and comes back", gone)
    back = explore(healthy(faults=0, outages=1), Rules(), begins=BACK)
    require_kept("ZooKeeper is back after a commit", back)
    return gone.states + back.states


@pytest.mark.model
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_states_keep_every_promise() -> None:
    scopes = {
        "a commit, one fault": healthy(),
        "a switchover, one fault": healthy(writes=0, switchovers=1),
        "after a failover, a commit, one fault": second_epoch(writes=1, faults=1),
    }
    states = explore_outages() + explore_losses() + explore_holding()
    for name, start in scopes.items():
        found = explore(start, Rules())
        require_kept(name, found)
        states += found.states

    assert states >= LARGE_STATES_MIN


@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_without_this_guard_a_promise_is_broken(mutation: Mutation) -> None:
    found = explore(mutation.start, mutation.rules, begins=mutation.begins, states_max=50_000)
    print(found)

    assert found.story, "nothing broke without the guard"
    assert found.story[-1].startswith(f"BROKEN {mutation.expect}"), found
