"""What the facts mean, as tables: healthy by default, one line a situation."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.clock import NANOS_PER_MS, Nanos
from cluster.records import Alone, Database, EpochRecord, Isolation, Role
from cluster.rules import HealthRules
from cluster.settings import Timing
from healthcheck.judge import (
    Memory,
    Sighting,
    Standing,
    judge_database,
    may_hold,
    must_fence,
    why_not_open,
    why_not_primary,
    why_not_standby,
)

NOW = Nanos(1_000_000 * NANOS_PER_MS)
TIMING = Timing(probe_deadline_ms=3000)


def ms_ago(ms: int) -> Nanos:
    return Nanos(NOW - ms * NANOS_PER_MS)


def a_sighting(**changes: Any) -> Sighting:
    healthy = Sighting(
        looked=True, alive=True, newborn=False, seen_since=ms_ago(60_000), answered=ms_ago(200), refused=False
    )
    return replace(healthy, **changes)


@pytest.mark.parametrize(
    ("sighting", "expected"),
    [
        pytest.param(a_sighting(), Database.UP, id="it answered just now"),
        pytest.param(
            a_sighting(looked=False, alive=False), Database.UNKNOWN, id="nobody has looked yet: unknown is not down"
        ),
        pytest.param(a_sighting(alive=False), Database.DOWN, id="no process"),
        pytest.param(a_sighting(newborn=True, answered=None), Database.DOWN, id="it starts: it serves nobody"),
        pytest.param(a_sighting(refused=True, answered=ms_ago(2999)), Database.UP, id="silent, within the deadline"),
        pytest.param(a_sighting(refused=True, answered=ms_ago(3000)), Database.HUNG, id="silent for the deadline"),
        pytest.param(a_sighting(answered=ms_ago(3000)), Database.UP, id="we were frozen: nobody asked it"),
        pytest.param(a_sighting(answered=None, seen_since=ms_ago(100)), Database.UNKNOWN, id="we came just now"),
        pytest.param(
            a_sighting(refused=True, answered=ms_ago(9_000), worked=ms_ago(1_000)),
            Database.UP,
            id="silent, but it writes",
        ),
        pytest.param(
            a_sighting(refused=True, answered=ms_ago(9_000), busy=True), Database.UP, id="silent and busy: overloaded"
        ),
        pytest.param(
            a_sighting(refused=True, answered=ms_ago(30_000), busy=True), Database.HUNG, id="busy for ever is hung too"
        ),
        pytest.param(
            a_sighting(refused=True, answered=None), Database.HUNG, id="it was there before us and never answers"
        ),
    ],
)
def test_the_state_of_a_database(sighting: Sighting, expected: Database) -> None:
    assert judge_database(sighting, NOW, TIMING, HealthRules()) is expected


def a_record(epoch: int = 5, primary: str = "one", **changes: Any) -> EpochRecord:
    record = EpochRecord(
        epoch=epoch,
        primary=primary,
        server_id=1,
        file="binlog.000002",
        position="0-1-9",
        since="",
        proof="",
        lineage=(),
    )
    return replace(record, **changes)


def a_memory(**changes: Any) -> Memory:
    return replace(Memory(generation="run", sealed_epoch=4, opened_epoch=5, promoted_epoch=5), **changes)


def a_standing(**changes: Any) -> Standing:
    healthy = Standing(
        node="one", role=Role.PRIMARY, database=Database.UP, read_only=False, lease_valid=True, record=a_record(), memory=a_memory()
    )  # fmt: skip
    return replace(healthy, **changes)


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        pytest.param(a_standing(), None, id="a primary with everything"),
        pytest.param(a_standing(role=Role.FENCED), "role is fenced", id="fenced"),
        pytest.param(a_standing(lease_valid=False), "the lease ended", id="without a lease"),
        pytest.param(a_standing(record=None), "the epoch is not ours", id="epoch unknown"),
        pytest.param(a_standing(record=a_record(primary="two")), "the epoch is not ours", id="another node is named"),
        pytest.param(
            a_standing(record=a_record(epoch=6)), "the epoch is not ours", id="named, but not opened for this epoch"
        ),
        pytest.param(a_standing(memory=a_memory(sealed_epoch=5)), "epoch 5 is sealed", id="sealed"),
        pytest.param(a_standing(database=Database.HUNG), "the database is hung", id="hung"),
        pytest.param(a_standing(database=Database.UNKNOWN), "the database is unknown", id="unknown is not up"),
        pytest.param(a_standing(read_only=True), "the database is read-only", id="read-only"),
        pytest.param(a_standing(read_only=None), "the database is read-only", id="not known to be writable"),
    ],
)
def test_the_right_to_be_primary(standing: Standing, expected: str | None) -> None:
    assert why_not_primary(standing) == expected


@pytest.mark.parametrize(
    ("generation", "record", "memory", "expected"),
    [
        pytest.param("run", a_record(), a_memory(), None, id="it was open in this epoch"),
        pytest.param("run", a_record(), a_memory(opened_epoch=None), None, id="it was promoted for this epoch"),
        pytest.param("run", None, a_memory(), "no epoch is known", id="no record"),
        pytest.param("run", a_record(primary="two"), a_memory(), "epoch 5 names two", id="another is named"),
        pytest.param("run", a_record(), a_memory(sealed_epoch=5), "epoch 5 is sealed", id="sealed is sealed"),
        pytest.param("new", a_record(), a_memory(), "was not promoted", id="another server process"),
        pytest.param("run", a_record(epoch=6), a_memory(), "was not promoted", id="open in an older epoch"),
    ],
)
def test_the_right_to_open(generation: str, record: EpochRecord | None, memory: Memory, expected: str | None) -> None:
    found = why_not_open("one", generation, record, memory)

    assert found == expected or (expected is not None and expected in str(found))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(a_record(), None, id="our epoch"),
        pytest.param(None, None, id="a record that vanished names nobody else"),
        pytest.param(a_record(6, "two"), "epoch 6 names two", id="a newer epoch names another"),
        pytest.param(a_record(6), "epoch 6 began", id="a newer epoch names us, but we opened for an older"),
    ],
)
def test_a_newer_epoch_closes_a_primary(record: EpochRecord | None, expected: str | None) -> None:
    assert must_fence("one", record, a_memory()) == expected


@pytest.mark.parametrize(
    ("role", "replicating", "lag_ms", "yes"),
    [
        (Role.STANDBY, True, 10.0, True),
        (Role.STANDBY, True, 1000.0, True),
        (Role.STANDBY, True, 1001.0, False),
        (Role.STANDBY, True, None, False),
        (Role.STANDBY, False, 10.0, False),
        (Role.STANDBY, None, 10.0, False),
        (Role.JOINING, True, 10.0, False),
        (Role.PRIMARY, True, 10.0, False),
    ],
)
def test_a_standby_says_yes_only_when_it_is_known_to_be_current(
    role: Role, replicating: bool | None, lag_ms: float | None, yes: bool
) -> None:
    assert (why_not_standby(role, Database.UP, replicating, lag_ms, 1000.0) is None) is yes


def test_a_seal_outlives_the_server_process_and_nothing_else_does() -> None:
    memory = a_memory(sealed_epoch=3).for_generation("another run")

    assert memory == Memory(generation="another run", sealed_epoch=3, watched_epoch=5)


def test_a_seal_never_goes_back_and_ends_what_was_open() -> None:
    assert a_memory().sealed(2) == a_memory(watched_epoch=5)
    assert a_memory().sealed(5) == a_memory(sealed_epoch=5, opened_epoch=None, watched_epoch=5)


ALONE = Alone(epoch=5, serial=3, since="then", position="0-1-1")
HOLD, ENDS = Isolation.HOLD, Isolation.HOLD_ENDS


@pytest.mark.parametrize(
    ("memory", "vouches"),
    [
        (Memory(), None),
        (Memory(sealed_epoch=5), None),
        (a_memory(), 5),
        (a_memory().sealed(5).for_generation("another run"), 5),
        (a_memory(alone=ALONE), None),
        (a_memory(alone=ALONE).for_generation("another run").sealed(7), None),
        (a_memory(alone=ALONE).promoted(6, "f", "0-1-2"), 6),
        (a_memory(opened_epoch=None, watched_epoch=0), None),
    ],
)
def test_who_remembers_an_epoch_vouches_for_it_unless_it_was_alone(memory: Memory, vouches: int | None) -> None:
    """A memory that was lost, with the host's /run perhaps, vouches for nothing: nobody knows what was told."""
    assert memory.vouches == vouches


@pytest.mark.parametrize(
    ("record", "memory", "certain", "holds"),
    [
        (a_record(on_isolation=HOLD, revision=2), a_memory(), 2, True),
        (a_record(on_isolation=HOLD, revision=2), a_memory(), None, False),
        (a_record(on_isolation=HOLD, revision=2), a_memory(), 1, False),
        (a_record(on_isolation=ENDS, revision=3), a_memory(), 3, False),
        (a_record(), a_memory(), 3, False),
        (None, a_memory(), 3, False),
        (a_record(on_isolation=HOLD), a_memory(sealed_epoch=5), 3, False),
        (a_record(on_isolation=HOLD), a_memory(opened_epoch=4), 3, False),
    ],
)
def test_it_holds_only_by_a_record_of_its_epoch_that_is_certainly_not_of_the_past(
    record: EpochRecord | None, memory: Memory, certain: int | None, holds: bool
) -> None:
    assert may_hold(record, memory, certain) is holds
