"""What a watchdog does about an order, as a table; what an order may be, and how a person says it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster import records
from cluster.dialect import Replication
from cluster.errors import BadInput
from cluster.orders import DELAY_SECONDS_MAX, Hold, Obeying, Order, delay_of, duration
from cluster.position import Position
from healthcheck.obey import Act, Standing, caught_up, judge

RUNNING: dict[str, Any] = {"receiving": True, "applying": True}
STOPPED: dict[str, Any] = {"receiving": False, "applying": False}
UNTIL: dict[str, Any] = {"until": True}
HOUR = 3600


def replication(**changes: Any) -> Replication:
    facts: dict[str, Any] = {"host": "h", "port": 1, "complete": True, "error": "", "behind_seconds": 0.0} | RUNNING
    return Replication(**(facts | changes))


def standing(order: Order | None, applied: str = "0-1-50", **changes: Any) -> Standing:
    own = {name: changes.pop(name) for name in ("known", "lifted", "running_to") if name in changes}
    facts: dict[str, Any] = {"known": True, "lifted": False, "running_to": None} | own
    return Standing(order=order, applied=Position.parse(applied), replication=replication(**changes), **facts)


def held(position: str | None = "0-1-60") -> Order:
    before = None if position is None else "0-1-61"
    return Order(serial=1, since="", delay_seconds=HOUR, hold=Hold(before=before, position=position))


DELAYED = Order(serial=1, since="", delay_seconds=HOUR)
MOVING: dict[str, Any] = {**UNTIL, "running_to": "0-1-60"}
SITUATIONS: dict[str, tuple[Standing, Obeying, Act]] = {
    "nothing ordered, it runs": (standing(None), Obeying.FREE, Act.LEAVE),
    "nothing ordered, it stopped": (standing(None, **STOPPED), Obeying.FREE, Act.FOLLOW),
    "not known: what stands still is not started": (standing(None, known=False, **STOPPED), Obeying.UNKNOWN, Act.LEAVE),
    "not known: what runs is left alone": (standing(None, known=False), Obeying.UNKNOWN, Act.LEAVE),
    "a delay is set": (standing(DELAYED), Obeying.DELAYED, Act.FOLLOW),
    "a delay is kept": (standing(DELAYED, delay_seconds=HOUR), Obeying.DELAYED, Act.LEAVE),
    "another delay is set": (standing(DELAYED, delay_seconds=5), Obeying.DELAYED, Act.FOLLOW),
    "a delay is ended": (standing(None, delay_seconds=HOUR), Obeying.FREE, Act.FOLLOW),
    "a failover lifts it": (standing(DELAYED, lifted=True, delay_seconds=HOUR), Obeying.LIFTED, Act.FOLLOW),
    "and it stays lifted": (standing(DELAYED, lifted=True), Obeying.LIFTED, Act.LEAVE),
    "a hold begins": (standing(held(), delay_seconds=HOUR), Obeying.MOVING, Act.HOLD),
    "it runs to the hold": (standing(held(), **MOVING), Obeying.MOVING, Act.LEAVE),
    "the receiver is ready before": (standing(held(), receiving=False, **MOVING), Obeying.MOVING, Act.LEAVE),
    "the receiver failed": (standing(held(), receiving=False, error="gone", **MOVING), Obeying.MOVING, Act.HOLD),
    "it runs to another hold": (standing(held(), until=True, running_to="0-1-70"), Obeying.MOVING, Act.HOLD),
    "nobody remembers where it runs to": (standing(held(), until=True), Obeying.MOVING, Act.HOLD),
    "it runs without an end": (standing(held(), running_to="0-1-60"), Obeying.MOVING, Act.HOLD),
    "it runs to the hold, delayed": (standing(held(), delay_seconds=HOUR, **MOVING), Obeying.MOVING, Act.HOLD),
    "it was killed on the way": (standing(held(), **STOPPED), Obeying.MOVING, Act.HOLD),
    "it stands at the hold": (standing(held(), "0-1-60", **STOPPED), Obeying.HELD, Act.LEAVE),
    "it runs at the hold": (standing(held(), "0-1-60"), Obeying.HELD, Act.HOLD),
    "it is beyond the hold": (standing(held(), "0-1-61"), Obeying.LATE, Act.HOLD),
    "beyond, it is not started": (standing(held(), "0-1-61", **STOPPED), Obeying.LATE, Act.LEAVE),
    "another domain is beyond": (standing(held(), "0-1-60,7-1-1", **STOPPED), Obeying.LATE, Act.LEAVE),
    "held where it stands": (standing(held(None), **STOPPED), Obeying.HELD, Act.LEAVE),
    "to be held where it runs": (standing(held(None)), Obeying.HELD, Act.HOLD),
    "a failover does not move what is held": (standing(held(None), lifted=True, **STOPPED), Obeying.HELD, Act.LEAVE),
    "released": (standing(DELAYED, "0-1-60", **STOPPED, **UNTIL), Obeying.DELAYED, Act.FOLLOW),
    "released on the way": (standing(None, **MOVING), Obeying.FREE, Act.FOLLOW),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_order_has_its_act(name: str) -> None:
    one, state, act = SITUATIONS[name]

    assert judge(one) == (state, act)


def test_a_joining_node_has_caught_up_when_it_is_where_it_should_be() -> None:
    assert caught_up(Obeying.FREE, replication(behind_seconds=0.0), None)
    assert not caught_up(Obeying.FREE, replication(behind_seconds=1.0), None)
    assert caught_up(Obeying.DELAYED, replication(behind_seconds=HOUR + 1.0), DELAYED)
    assert not caught_up(Obeying.DELAYED, replication(behind_seconds=HOUR + 60.0), DELAYED)
    assert caught_up(Obeying.HELD, replication(behind_seconds=None), held())
    assert not caught_up(Obeying.MOVING, replication(behind_seconds=0.0), held())
    assert not caught_up(Obeying.UNKNOWN, replication(behind_seconds=0.0), None)


def test_an_order_is_checked_on_the_way_in() -> None:
    for order in (DELAYED, held(), held(None), Order(serial=9, since="x")):
        assert records.decode(Order, records.encode(order), where="here") == order
    good = json.loads(records.encode(held()))
    wrong: tuple[dict[str, Any], ...] = (
        {"serial": 0}, {"delay_seconds": -1}, {"delay_seconds": DELAY_SECONDS_MAX + 1}, {"hold": {"before": "0-1", "position": ""}},
        {"hold": {"before": "0-1-2", "position": "x"}}, {"hold": {"before": None, "position": "0-1-1"}}, {"hold": {}},
        {"hold": {"before": "0-1-2", "position": None}},
    )  # fmt: skip
    for change in wrong:
        with pytest.raises(BadInput, match="here"):
            records.decode(Order, good | change, where="here")


@pytest.mark.parametrize(
    ("text", "seconds"), [("4", 14_400), ("0.5", 1_800), ("30m", 1_800), ("90s", 90), ("2 d", 172_800), ("1.5H", 5_400), ("10 min", 600)]
)  # fmt: skip
def test_a_delay_is_hours_unless_it_says_its_unit(text: str, seconds: int) -> None:
    assert delay_of(text) == seconds


@pytest.mark.parametrize("text", ["", "4 weeks", "-1", "0", "1e3", "31d", "nan", "٤", "0.0001"])
def test_what_is_no_delay_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        delay_of(text)

    assert caught.value.hint


@given(some.integers(min_value=1, max_value=DELAY_SECONDS_MAX))
def test_what_is_shown_is_right_to_its_second_unit(seconds: int) -> None:
    parts = duration(seconds).split(" ")
    size = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
    shown = sum(int(number) * size[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))

    assert 0 <= seconds - shown < size[parts[-1]] or len(parts) == 2
    assert seconds - shown < 3_600


def test_durations_read_as_people_say_them() -> None:
    assert [duration(one) for one in (0, 45, 14_400, 14_280, 90_061, 61)] == [
        "0 s", "45 s", "4 h", "3 h 58 min", "1 d 1 h", "1 min 1 s"]  # fmt: skip
