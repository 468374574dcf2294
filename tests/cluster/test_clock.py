"""The one clock."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from cluster import clock
from cluster.clock import Nanos

instants = st.integers(0, 2**62).map(Nanos)


def test_time_counts_while_the_machine_sleeps() -> None:
    """`CLOCK_MONOTONIC` would stand still, and a lease would outlive a suspend (TRAPS.md 44)."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = clock.now()

    assert before <= now <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@given(instants, st.integers(-(10**9), 10**9))
def test_after_and_between_are_inverse(start: Nanos, ms: int) -> None:
    assert clock.ms_between(start, clock.after(start, ms)) == ms


def test_a_deadline_that_has_passed_leaves_nothing() -> None:
    assert clock.seconds_left(clock.after(clock.now(), -1)) == 0.0
    assert 9.0 < clock.seconds_left(clock.after(clock.now(), 10_000)) <= 10.0


def test_wall_time_is_utc_with_milliseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", clock.utc_now())
