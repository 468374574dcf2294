"""An applier that stands before a row that is there already: said only when no start of it brings it further."""

from cluster import clock
from cluster.clock import Nanos
from cluster.dialect import Replication
from healthcheck.stuck import STUCK_MS, look, told

START = Nanos(10**9)
RUNS = Replication(
    host="h", port=1, receiving=True, applying=True, complete=True, error="", behind_seconds=0.0
)  # fmt: skip
ENDED = Replication(
    host="h", port=1, receiving=True, applying=False, complete=True, error="", behind_seconds=None, stuck="Duplicate entry"
)  # fmt: skip
LATE = clock.after(START, STUCK_MS)


def test_it_is_said_when_the_applier_has_stood_there_for_long_though_it_was_started_in_between() -> None:
    found = look(None, ENDED, "0-1-7", START)
    for replication in (RUNS, ENDED, RUNS):
        found = look(found, replication, "0-1-7", LATE)

    assert told(found, START) == ""
    assert told(found, LATE) == "Duplicate entry"


def test_what_has_passed_is_not_stuck_and_counts_anew_elsewhere() -> None:
    found = look(look(None, ENDED, "0-1-7", START), RUNS, "0-1-8", LATE)
    assert found is None

    again = look(look(None, ENDED, "0-1-7", START), ENDED, "0-1-8", LATE)
    assert told(again, LATE) == ""


def test_an_applier_that_runs_or_has_no_source_is_not_stuck() -> None:
    assert look(None, RUNS, "0-1-7", START) is None
    assert look(look(None, ENDED, "0-1-7", START), None, "0-1-7", LATE) is None
