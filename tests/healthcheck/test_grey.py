"""What is wrong with a server that answers, as a table: healthy by default, one line a situation."""

import os
import select
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from cluster import clock
from cluster.clock import NANOS_PER_MS, Nanos
from cluster.dialect import Load, Wait
from cluster.mariadb_load import load_of
from cluster.records import Condition
from cluster.rules import HealthRules
from healthcheck.grey import LOOKS_MIN, Lasting, Seen, judge, lasting
from healthcheck.server import Server, _are_held

NOW = Nanos(10_000_000 * NANOS_PER_MS)
RULES = HealthRules()
HEALTHY, DEGRADED, FAILED = Condition.HEALTHY, Condition.DEGRADED, Condition.FAILED
GIB = 2**30


def ms_ago(ms: float) -> Nanos:
    return Nanos(NOW - int(ms * NANOS_PER_MS))


def since(ms: float, why: str = "so", looks: int = LOOKS_MIN) -> Lasting:
    return Lasting(ms_ago(ms), looks, why)


def seen(**changes: Any) -> Seen:
    """A primary that writes."""
    return replace(Seen(opened=True, moved=ms_ago(200), disk_known=True, disk_free=100 * GIB), **changes)


def a_load(used: int) -> Load:
    return Load(connections=used, connections_max=151, account="oscar@10.0.0.7", account_connections=used, wait=None)


STILL = {"moved": ms_ago(40_000)}
CASES = {
    "all is well": (seen(), HEALTHY),
    "its disk hangs": (seen(disk_pending=since(10_000)), FAILED),
    "its disk hangs, and it is a standby": (seen(opened=False, disk_pending=since(10_000)), FAILED),
    "its disk is slow": (seen(disk_pending=since(3_000)), DEGRADED),
    "we were frozen, and the write has ended long ago": (seen(disk_pending=since(60_000, looks=2)), HEALTHY),
    "a write waits for an acknowledgement for an hour": (
        seen(pending=since(3_600_000), wait=Wait.ACKNOWLEDGEMENT, **STILL),
        DEGRADED,
    ),
    "a write waits for somebody's lock for an hour": (
        seen(pending=since(3_600_000), wait=Wait.LOCK, **STILL),
        DEGRADED,
    ),
    "a write waits for nothing, the disk is fine: patience": (
        seen(pending=since(20_000), wait=Wait.OTHER, **STILL),
        DEGRADED,
    ),
    "a write waits for nothing, the disk is fine, for long": (
        seen(pending=since(30_000), wait=Wait.OTHER, **STILL),
        FAILED,
    ),
    "a write waits for nothing, nothing is known of the disk": (
        seen(pending=since(10_000), wait=Wait.OTHER, disk_known=False, **STILL),
        FAILED,
    ),
    "a write waits for nothing, but others are written": (seen(pending=since(60_000), wait=Wait.OTHER), DEGRADED),
    "nobody knows what a write waits for": (seen(pending=since(60_000), wait=None, **STILL), HEALTHY),
    "writes are refused since just now": (seen(refused=since(4_000)), HEALTHY),
    "writes are refused": (seen(refused=since(5_000)), FAILED),
    "writes are refused, it is no primary any more": (seen(opened=False, refused=since(5_000)), HEALTHY),
    "somebody made it read-only": (seen(read_only=since(5_000)), FAILED),
    "somebody made it read-only for a moment": (seen(read_only=since(1_000)), HEALTHY),
    "its file system is read-only": (seen(disk_failed=since(5_000)), FAILED),
    "its disk is full": (seen(disk_full=since(5_000), disk_free=0), FAILED),
    "its disk fills": (seen(disk_free=GIB - 1), DEGRADED),
    "somebody dropped our table": (seen(not_written="Table 'oscar_ha.heartbeat' doesn't exist"), DEGRADED),
    "connections are used up": (seen(load=a_load(151)), DEGRADED),
    "connections are not used up": (seen(load=a_load(100)), HEALTHY),
    "it answers late": (seen(probe_ms=1_500.0), DEGRADED),
}


@pytest.mark.parametrize(("one", "expected"), CASES.values(), ids=CASES.keys())
def test_the_condition_of_a_server(one: Seen, expected: Condition) -> None:
    found = judge(one, NOW, RULES)

    assert found.condition is expected
    assert bool(found.reasons) is (expected is not HEALTHY)


def test_nothing_fails_after_one_look() -> None:
    once = Lasting(ms_ago(3_600_000), 1, "so")
    all_at_once = seen(disk_pending=once, refused=once, read_only=once, disk_failed=once, disk_full=once, pending=once,
                       wait=Wait.OTHER, **STILL)  # fmt: skip

    assert judge(all_at_once, NOW, RULES).condition is not FAILED


def test_what_was_not_so_once_begins_anew() -> None:
    first = lasting(None, "full", ms_ago(9_000))
    again = lasting(lasting(first, None, ms_ago(8_000)), "full", ms_ago(1_000))

    assert again == Lasting(ms_ago(1_000), 1, "full")


def a_row(number: int, user: str, state: str, host: str = "10.0.0.7:4711") -> tuple[Any, ...]:
    return (number, user, host, "oscar", "Query", 3, state, None)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([a_row(7, "oscar_ha", "Commit")], Wait.OTHER, id="nothing that is named"),
        pytest.param(
            [a_row(7, "oscar_ha", "Commit"), a_row(8, "oscar", "Waiting for semi-sync ACK from slave")],
            Wait.ACKNOWLEDGEMENT,
            id="it stands behind the leader of another group",
        ),
        pytest.param([a_row(7, "oscar_ha", "Waiting for backup lock")], Wait.LOCK, id="FLUSH TABLES WITH READ LOCK"),
        pytest.param([a_row(8, "oscar", "")], None, id="it is gone"),
    ],
)
def test_what_a_write_waits_for(rows: list[tuple[Any, ...]], expected: Wait | None) -> None:
    assert load_of(rows, 151, "oscar_ha", 7).wait is expected


def test_who_has_most_of_the_connections_is_named_and_we_are_not_counted() -> None:
    rows = [a_row(number, "oscar", "") for number in range(3)] + [a_row(9, "report", "", "10.0.0.8:1")]
    rows += [a_row(10, "oscar_ha", ""), (11, "system user", "", None, "Slave_IO", 1, "", None)]

    found = load_of(rows, 4, "oscar_ha", None)

    assert (found.connections, found.connections_max) == (4, 4)
    assert (found.account, found.account_connections) == ("oscar@10.0.0.7", 3)


IN_DISK_SLEEP = "State:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"
KILLED_IN_DISK_SLEEP = "State:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"
KILLED_AND_RUNNING = "State:\tR (running)\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000100\n"
ZOMBIE = "State:\tZ (zombie)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"


@pytest.mark.parametrize(
    ("threads", "held"),
    [
        pytest.param([KILLED_IN_DISK_SLEEP], True, id="a hung disk has it"),
        pytest.param([ZOMBIE, KILLED_IN_DISK_SLEEP], True, id="a hung disk has its last thread"),
        pytest.param([KILLED_IN_DISK_SLEEP, KILLED_AND_RUNNING], False, id="one thread runs"),
        pytest.param([IN_DISK_SLEEP], False, id="nobody killed it"),
        pytest.param([ZOMBIE], False, id="it has ended"),
        pytest.param([""], False, id="nothing is known of it"),
        pytest.param([], False, id="it is gone"),
    ],
)
def test_only_threads_that_end_before_they_run_again_count_as_held(threads: list[str], held: bool) -> None:
    assert _are_held(threads) is held


def test_a_killed_process_that_nobody_waited_for_has_ended_and_is_not_held() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        server = Server(child.pid, os.pidfd_open(child.pid), "g", clock.now())
        server.kill()
        ended, _, _ = select.select([server.pidfd], [], [], 5)  # it is a zombie now
        held = server.is_held()
        server.close()

    assert ended
    assert not held
