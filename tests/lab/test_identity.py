"""A pid is believed only together with its start time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies

from chaos.lab import identity, process
from chaos.lab.identity import MARK, Identity, Life

WAIT = "import time; time.sleep(60)"


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    running = subprocess.Popen([sys.executable, "-c", WAIT], env={**os.environ, MARK: "lab-of-test-identity"})
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@given(strategies.text(strategies.characters(blacklist_categories=["Cs"]), max_size=15), strategies.integers(0, 2**60))
def test_a_process_name_cannot_disguise_its_start_time(name: str, started: int) -> None:
    middle = " ".join(str(number) for number in range(18))

    assert identity.parse_stat(f"42 ({name}) S {middle} {started} 7 8\n") == ("S", started)


def test_a_frozen_process_is_frozen_and_a_dead_one_has_ended(child: "subprocess.Popen[bytes]") -> None:
    who = identity.identify(child.pid)
    assert who is not None
    assert identity.life(who) is Life.RUNNING

    identity.send(who, signal.SIGSTOP)
    process.wait_until(lambda: "" if identity.life(who) is Life.FROZEN else "running", deadline_ms=3000, what="freeze")
    process.kill([who])

    assert identity.life(who) is Life.ENDED
    assert not identity.send(who, signal.SIGTERM)


def test_a_recycled_pid_is_never_hit(child: "subprocess.Popen[bytes]") -> None:
    now = identity.identify(child.pid)
    assert now is not None
    before = Identity(now.pid, now.started - 1)

    assert identity.life(before) is Life.ENDED
    assert not identity.send(before, signal.SIGKILL)
    assert child.poll() is None


def test_a_process_is_found_by_the_mark_of_its_lab_alone(child: "subprocess.Popen[bytes]") -> None:
    found = {one.pid for one in identity.marked("lab-of-test-identity")}

    assert child.pid in found
    assert not identity.marked("lab-of-test-identit")


def test_a_process_that_ignores_to_be_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_DEADLINE_MS", 200)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        who = identity.identify(running.pid)
        assert who is not None

        process.end([who])

        assert identity.life(who) is Life.ENDED


def test_a_frozen_process_is_ended_politely(child: "subprocess.Popen[bytes]") -> None:
    who = identity.identify(child.pid)
    assert who is not None
    identity.send(who, signal.SIGSTOP)

    process.end([who])

    assert child.wait(5) == -signal.SIGTERM
