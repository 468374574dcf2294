"""Who may stay when too many come: tables of the pure rules."""

import pytest

from cluster.clock import Nanos
from replicator.admission import Guest, Limits, no_stream_for, to_leave


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
