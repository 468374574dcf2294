"""Faults done to a lab of sleeping processes: whatever is done, and however it is cut short, all of it runs again after it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.attack.catalogue import Fault, Kind, Lab, Part, Parts, Where
from chaos.attack.inject import Injected, Injector
from chaos.attack.plan import Round, Turn, plan, timeline
from chaos.lab import faults, identity, ledger, process
from chaos.lab.identity import Life
from chaos.lab.layout import FOLDERS, Layout
from chaos.lab.ledger import UP, Ledger, Started
from chaos.lab.names import parts
from chaos.lab_remote import RemoteLab

LAB_ID = "attacked"
COMMAND = ("sleep", "300")
PARTS = Parts(primary="clinic", ackers=("toronto",), leader="montreal", clinics=("clinic-1", "clinic-2"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    """A lab on loopback whose every process sleeps."""
    layout = Layout(tmp_path)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    own = identity.identify(os.getpid())
    assert own is not None
    found = Ledger(lab_id=LAB_ID, state=UP, clinics=2, zookeepers=3, boot=identity.boot(), owner=own)
    for part in parts(2, 3):
        child: Started = process.spawn(part.name, COMMAND, layout, LAB_ID)
        found = found.with_started(child)
    ledger.write(layout, found)
    yield tmp_path
    process.kill(identity.marked(LAB_ID))


def lives(lab: Path) -> dict[str, Life]:
    return {name: one.life for name, one in ledger.require(Layout(lab)).started.items()}


def not_running(lab: Path) -> dict[str, Life]:
    return {name: life for name, life in lives(lab).items() if life is not Life.RUNNING}


def do(injector: Injector, one: Round, moments_max: int = 100) -> dict[int, Injected]:
    """Do the moments of a round one after the other, without their waits."""
    done: dict[int, Injected] = {}
    for moment in timeline(one)[:moments_max]:
        match moment.turn:
            case Turn.BEGIN:
                done[moment.fault] = injector.begin(one.faults[moment.fault], PARTS)
            case Turn.AGAIN:
                injector.again(done[moment.fault])
            case Turn.END:
                injector.end(done[moment.fault])
    return done


def a_fault(kind: Kind, part: Part = Part.ALL, where: Where = Where.PRIMARY) -> Fault:
    return Fault(kind=kind, part=part, where=where, begins_ms=0.0, lasts_ms=100.0)


def a_round(*faults: Fault) -> Round:
    return Round(pause_ms=0.0, faults=faults)


@pytest.mark.parametrize(
    ("fault", "hit", "life"),
    [
        (a_fault(Kind.KILL, Part.DATABASE), {"db-clinic"}, Life.ENDED),
        (a_fault(Kind.FREEZE, Part.WATCHDOG, Where.ACKER), {"watchdog-toronto"}, Life.FROZEN),
        (a_fault(Kind.FREEZE_HOST), {"db-clinic", "watchdog-clinic"}, Life.FROZEN),
        (a_fault(Kind.ZOOKEEPER_ALL), {"zookeeper-1", "zookeeper-2", "zookeeper-3"}, Life.ENDED),
        (
            a_fault(Kind.POWER, where=Where.OTHER),
            {"db-montreal", "watchdog-montreal", "replicator-montreal", "controller-montreal", "zookeeper-3"},
            Life.ENDED,
        ),
    ],
)
def test_a_fault_hits_what_it_says_and_nothing_else_and_its_end_undoes_it(
    lab: Path, fault: Fault, hit: set[str], life: Life
) -> None:
    injector = Injector(RemoteLab(lab))
    one = injector.begin(fault, PARTS)

    assert one.happened, one.did_not
    assert not_running(lab) == dict.fromkeys(hit, life)
    injector.end(one)
    assert not_running(lab) == {}
    assert faults.noted(lab) == ()


@pytest.mark.parametrize("seed", range(3))
def test_after_every_round_everything_runs_and_nothing_is_noted(lab: Path, seed: int) -> None:
    """Also where one fault kills what the other has frozen."""
    injector = Injector(RemoteLab(lab))
    for one in plan(seed, 0.5, tuple(Kind), Lab(clinics=2)):
        do(injector, one)
        assert not_running(lab) == {}, one
        assert faults.noted(lab) == (), one


@pytest.mark.parametrize("seed", range(3))
def test_an_attack_that_is_cut_short_anywhere_is_healed_by_whoever_comes_after(lab: Path, seed: int) -> None:
    for moments, one in enumerate(plan(seed, 0.5, tuple(Kind), Lab(clinics=2))):
        do(Injector(RemoteLab(lab)), one, moments_max=1 + moments % 3)
        Injector(RemoteLab(lab)).heal_all()
        assert not_running(lab) == {}, one
        assert faults.noted(lab) == (), one


KILLED = """
import os, signal, sys
from pathlib import Path
from chaos.attack.inject import Injector
from chaos.lab_remote import RemoteLab
from tests.attack.test_inject import PARTS, a_fault
from chaos.attack.catalogue import Kind, Where
injector = Injector(RemoteLab(Path(sys.argv[1])))
injector.begin(a_fault(Kind.FREEZE_SITE), PARTS)
injector.begin(a_fault(Kind.POWER, where=Where.OTHER), PARTS)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_attack_left_frozen_and_dead_is_healed_by_the_next(lab: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(lab)], check=False, timeout=60)

    assert done.returncode == -signal.SIGKILL
    assert len(not_running(lab)) == 10
    Injector(RemoteLab(lab)).heal_all()
    assert not_running(lab) == {}


def test_two_faults_on_one_process_are_both_undone(lab: Path) -> None:
    injector = Injector(RemoteLab(lab))
    done = do(injector, a_round(a_fault(Kind.FREEZE_SITE), a_fault(Kind.KILL, Part.DATABASE)))

    assert [one.happened for one in done.values()] == [True, True]
    assert not_running(lab) == {}


IMPOSSIBLE = {
    "a cut on loopback": (a_fault(Kind.CUT_SITE), "loopback"),
    "no archive to damage": (a_fault(Kind.ARCHIVE_BYTE), ""),
    "no disk of its own": (a_fault(Kind.DISK_FULL), "disk"),
}


@pytest.mark.parametrize(("fault", "why"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_is_not_possible_is_told_and_breaks_nothing(lab: Path, fault: Fault, why: str) -> None:
    injector = Injector(RemoteLab(lab))
    one = injector.begin(fault, PARTS)
    injector.end(one)

    assert not one.happened
    assert why in one.did_not
    assert "did not happen" in one.text
    assert not_running(lab) == {}


def test_what_has_ended_cannot_be_frozen_and_that_is_told(lab: Path) -> None:
    injector = Injector(RemoteLab(lab))
    process.kill([ledger.require(Layout(lab)).started["db-clinic"].identity])
    one = injector.begin(a_fault(Kind.FREEZE, Part.DATABASE), PARTS)

    assert "has ended" in one.did_not


def test_a_switchover_that_nobody_answers_is_told_as_refused(lab: Path) -> None:
    injector = Injector(RemoteLab(lab))
    one = injector.begin(a_fault(Kind.SWITCHOVER, Part.DATABASE, Where.ACKER), PARTS)
    assert one.asking is not None
    one.asking.join(30)

    assert one.told.startswith("refused")
    assert injector.answered(one) == ""
