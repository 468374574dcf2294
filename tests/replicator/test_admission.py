"""Who may stay when too many come: tables of the pure rules."""

import pytest

from cluster.clock import NANOS_PER_MS, Nanos
from replicator.admission import TWINS_AFTER, TWINS_WITHIN_MS, Guest, Limits, Twins, no_stream_for, to_leave


def guests(*addresses: str) -> dict[int, Guest]:
    """Return guests in the order of their coming."""
    return {number: Guest(address, Nanos(number)) for number, address in enumerate(addresses)}


@pytest.mark.parametrize(
    ("present", "room", "leaves"),
    [
        (guests(), 0, None),
        (guests("a", "b"), 2, None),
        (guests("a", "a", "b"), 2, 0),
        (guests("b", "a", "a"), 2, 1),
        (guests("flood", "flood", "flood", "standby"), 3, 0),
        (guests("a", "b", "c"), 2, 0),
        ({1: Guest("a", Nanos(9)), 2: Guest("a", Nanos(3))}, 1, 2),
    ],
    ids=["nobody", "there is room", "the crowd's oldest leaves", "who came first alone stays", "a flood ends itself",
         "all alike: the oldest", "silent longest, not first"],
)  # fmt: skip
def test_who_floods_makes_room(present: dict[int, Guest], room: int, leaves: int | None) -> None:
    assert to_leave(present, room) == leaves


LIMITS = Limits(streams_of_strangers=2)


@pytest.mark.parametrize(
    ("server_id", "reading", "taken"),
    [(7, [], True), (7, [8], True), (7, [8, 9], False), (8, [8, 9], True), (1, [8, 9], True), (0, [0, 0], False),
     (7, [1, 2, 8], True)],
)  # fmt: skip
def test_readers_that_the_settings_name_always_have_their_stream(
    server_id: int, reading: list[int], taken: bool
) -> None:
    why = no_stream_for(server_id, reading, frozenset({1, 2}), LIMITS)

    assert (why is None) is taken


def at(ms: float) -> Nanos:
    return Nanos(int(ms * NANOS_PER_MS))


def test_two_that_end_each_others_stream_again_and_again_are_named() -> None:
    """Each comes back at once, and so on for ever (TRAPS.md 10): nobody would see why both are slow."""
    twins, end = Twins(), 1_000 * TWINS_AFTER
    for number in range(TWINS_AFTER):
        assert not twins.known(2, at(1_000 * number))
        twins.note(2, ("10.0.0.7", "10.0.0.9"), at(1_000 * number))
    (said,) = twins.told(at(end))

    assert twins.known(2, at(end))
    assert not twins.known(3, at(end))
    assert "server_id 2, from 10.0.0.7 and 10.0.0.9" in said
    assert twins.told(at(end + TWINS_WITHIN_MS)) == [], "it ends when they do"


def test_a_replica_that_now_and_then_comes_anew_is_no_pair_of_twins() -> None:
    twins, apart = Twins(), TWINS_WITHIN_MS / (TWINS_AFTER - 1)
    for number in range(10 * TWINS_AFTER):
        twins.note(2, ("10.0.0.7", "10.0.0.7"), at(apart * number))
        assert not twins.known(2, at(apart * number))


def test_whoever_takes_many_ids_fills_no_memory() -> None:
    twins = Twins()
    for number in range(100_000):
        twins.note(number, ("a", "b"), at(0))

    assert len(twins) < 1_000
