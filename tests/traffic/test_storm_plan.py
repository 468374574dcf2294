"""The plan of a storm: a seed is a storm, every kind of moment comes, and no delay is longer than said."""

import pytest

from chaos.storm_plan import DOWN_MS_MAX, PAUSE_MS_MAX, RESUME_MS_MAX, SEAL_MS_MAX, Moment, Victim, plan


@pytest.mark.parametrize("kills", [1, 2, 7, 200])
def test_a_storm_kills_exactly_as_often_as_asked(kills: int) -> None:
    assert sum(len(burst.blows) for burst in plan(kills, seed=3)) == kills


def test_the_same_seed_is_the_same_storm_and_another_is_another() -> None:
    assert plan(50, seed=1) == plan(50, seed=1)
    assert plan(50, seed=1) != plan(50, seed=2)


def test_a_short_storm_has_every_kind_of_moment() -> None:
    assert {burst.moment for burst in plan(8, seed=1)} == set(Moment)


def test_a_long_storm_hits_every_part_often() -> None:
    hits = [blow.victim for burst in plan(200, seed=1) for blow in burst.blows]

    assert all(hits.count(victim) >= 20 for victim in Victim)


def test_two_blows_at_once_hit_two_parts_without_a_wait() -> None:
    for burst in plan(300, seed=5):
        if burst.moment is Moment.TOGETHER:
            first, second = burst.blows
            assert first.victim is not second.victim
            assert second.wait_ms == 0.0


def test_every_delay_is_bounded_and_some_are_very_short() -> None:
    bursts = plan(400, seed=9)
    waits = [blow.wait_ms for burst in bursts for blow in burst.blows]

    assert max(burst.pause_ms for burst in bursts) <= PAUSE_MS_MAX
    assert max(blow.down_ms for burst in bursts for blow in burst.blows) <= DOWN_MS_MAX
    assert max(waits) <= max(SEAL_MS_MAX, RESUME_MS_MAX)
    assert any(0.0 < wait < 60.0 for wait in waits)
