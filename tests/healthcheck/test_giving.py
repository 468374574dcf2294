"""What a copy may cost its donor, and for how long: one line a situation, each a look a second."""

import pytest

from cluster import clock
from cluster.clock import Nanos
from healthcheck.giving import SILENT_DATABASE_SECONDS_MAX, Cost, why_end

BEGAN = Nanos(1_000_000_000)
LIMIT_SECONDS = 5.0
OK, SILENT, WAITING, NOBODY_TELLS = (False, False), (True, None), (False, True), (False, None)
Look = tuple[bool, bool | None]


def ended_after(looks: list[Look]) -> tuple[int, str] | None:
    """Return at which look the copy ends and why; None: it goes on."""
    cost = Cost()
    for second, (silent, waiting) in enumerate(looks):
        now = clock.after(BEGAN, second * 1000.0)
        cost = cost.seen(now, silent=silent, waiting=waiting)
        if (why := why_end(cost, now, LIMIT_SECONDS)) is not None:
            return second, why
    return None


GOES_ON: dict[str, list[Look]] = {
    "all is well": [OK] * 60,
    "a lock that is short": [OK, WAITING, WAITING, WAITING, OK] * 9,
    "a database that is busy for a moment": [*[SILENT] * 9, OK] * 3,
    "what nobody can tell is no wait": [NOBODY_TELLS] * 60,
    "silence is not both": [*[SILENT] * 5, *[WAITING] * 5, OK],
}


@pytest.mark.parametrize("name", GOES_ON)
def test_a_copy_goes_on(name: str) -> None:
    assert ended_after(GOES_ON[name]) is None


def test_a_copy_ends_when_writes_wait_too_long() -> None:
    ended = ended_after([OK, OK, *[WAITING] * 60])

    assert ended is not None
    assert ended[0] == 2 + LIMIT_SECONDS
    assert "writes of the clinics" in ended[1]


def test_a_wait_that_nobody_could_ask_about_meanwhile_goes_on_counting() -> None:
    """A server whose commits wait may not answer at once either."""
    ended = ended_after([WAITING, NOBODY_TELLS, NOBODY_TELLS, WAITING, NOBODY_TELLS, WAITING])

    assert ended is not None
    assert ended[0] == LIMIT_SECONDS


def test_a_copy_of_a_database_that_does_not_answer_ends() -> None:
    ended = ended_after([OK, *[SILENT] * 60])

    assert ended is not None
    assert ended[0] == 1 + SILENT_DATABASE_SECONDS_MAX
