"""What is broken on purpose is written down before, and undone by whoever comes after: thawed, started, restored."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.lab import faults, identity, ledger, process
from chaos.lab.faults import Byte, Undo, Verb
from chaos.lab.identity import Life
from chaos.lab.layout import FAULTS, FOLDERS, Layout
from chaos.lab.ledger import UP, Ledger, Started
from cluster.errors import BadInput
from tests.lab.running import lab

NAME = "prometheus"
COMMAND = ("sleep", "60")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A lab on loopback of which one process lives: a sleep in the part of one that nobody waits for."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    child = subprocess.Popen(COMMAND, start_new_session=True)
    found = identity.identify(child.pid)
    own = identity.identify(os.getpid())
    assert found is not None
    assert own is not None
    started = Started(name=NAME, pid=found.pid, started=found.started, command=COMMAND, log_offset=0)
    ledger.write(Layout(tmp_path), Ledger(lab_id="noted", state=UP, clinics=1, zookeepers=1, boot=identity.boot(),
                                          owner=own, started={NAME: started}))  # fmt: skip
    yield tmp_path
    for one in (found, *identity.marked("noted")):
        identity.send(one, signal.SIGCONT)
        identity.send(one, signal.SIGKILL)
    child.wait()


def life(directory: Path) -> Life:
    return ledger.require(Layout(directory)).started[NAME].life


def send(directory: Path, number: signal.Signals) -> None:
    identity.send(ledger.require(Layout(directory)).started[NAME].identity, number)


def test_nothing_is_noted_and_nothing_to_heal_in_a_new_lab(directory: Path) -> None:
    assert faults.noted(directory) == ()
    assert faults.heal(directory) == ()


def test_what_is_noted_is_there_for_the_next_process_and_forgotten_once_undone(directory: Path) -> None:
    one, other = Undo(verb=Verb.THAW, what=NAME), Undo(verb=Verb.START, what=NAME)
    faults.note(directory, one)
    faults.note(directory, other)

    assert faults.noted(directory) == (one, other)
    faults.undo(directory, one)
    assert faults.noted(directory) == (other,)
    faults.undo(directory, other)
    assert not (directory / FAULTS).exists()


def test_a_frozen_process_goes_on(directory: Path) -> None:
    faults.note(directory, Undo(verb=Verb.THAW, what=NAME))
    send(directory, signal.SIGSTOP)

    assert faults.heal(directory) == (f"thaw {NAME}",)
    assert life(directory) is Life.RUNNING


def test_a_killed_process_is_started_and_one_that_has_ended_needs_no_thaw(directory: Path) -> None:
    """Both at once: it was frozen, and killed while it was."""
    faults.note(directory, Undo(verb=Verb.THAW, what=NAME), Undo(verb=Verb.START, what=NAME))
    process.kill([ledger.require(Layout(directory)).started[NAME].identity])

    assert faults.heal(directory) == (f"start {NAME}", f"thaw {NAME}")
    assert life(directory) is Life.RUNNING


def test_what_somebody_froze_needs_no_start(directory: Path) -> None:
    faults.note(directory, Undo(verb=Verb.START, what=NAME))
    send(directory, signal.SIGSTOP)

    assert faults.heal(directory) == (f"start {NAME}",)


def test_the_command_heals_what_a_killed_attack_left(directory: Path) -> None:
    faults.note(directory, Undo(verb=Verb.THAW, what=NAME))
    send(directory, signal.SIGSTOP)
    done = lab("heal", directory=directory)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"undone: thaw {NAME}\n"
    assert life(directory) is Life.RUNNING


def test_one_that_cannot_be_undone_keeps_no_other_from_it_and_stays_written_down(directory: Path) -> None:
    lost = Undo(verb=Verb.START, what="nobody")
    faults.note(directory, Undo(verb=Verb.THAW, what=NAME), lost)
    send(directory, signal.SIGSTOP)

    with pytest.raises(BadInput, match="nobody"):
        faults.heal(directory)
    assert faults.noted(directory) == (lost,)
    assert life(directory) is Life.RUNNING


@pytest.mark.parametrize(("now", "after"), [(b"abXd", b"abcd"), (b"abYd", b"abYd"), (b"a", b"a")])
def test_a_byte_is_restored_only_where_the_false_one_still_is(tmp_path: Path, now: bytes, after: bytes) -> None:
    """An archive that mended itself is left alone."""
    file = tmp_path / "binlog.000001"
    file.write_bytes(now)
    byte = Byte(path=str(file), offset=2, was=ord("c"), became=ord("X"))

    assert faults.put_back(byte) is (now != after)
    assert file.read_bytes() == after
    assert not faults.put_back(Byte(path=str(tmp_path / "gone"), offset=2, was=1, became=2))


def test_a_note_that_is_none_is_refused_by_its_name(directory: Path) -> None:
    (directory / FAULTS).write_text("{")

    with pytest.raises(BadInput, match=FAULTS):
        faults.noted(directory)


def test_no_more_is_broken_than_can_be_healed(directory: Path) -> None:
    with pytest.raises(BadInput, match="more than"):
        faults.note(directory, *[Undo(verb=Verb.THAW, what=NAME)] * (faults.FAULTS_MAX + 1))
