"""kill, freeze, thaw and start, on the processes that a killed `lab up` left running: nothing else is needed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.lab import control, ledger
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from cluster.errors import BadInput, OscarHaError, Refused
from tests.conftest import require
from tests.lab.running import await_started, await_true, begin_up, document, lab, missing, processes_in

pytestmark = pytest.mark.servers
VICTIM = "db-toronto"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    require(missing())
    directory = tmp_path_factory.mktemp("control") / "lab"
    starting = begin_up(directory)
    try:
        await_started(directory, "db-montreal")
    finally:
        starting.kill()
        starting.communicate()
    await_true(lambda: all(listening(directory, name) for name in ("db-clinic", VICTIM)), "databases answer")
    yield directory
    lab("down", directory=directory)
    assert not processes_in(directory)


def life(directory: Path, name: str = VICTIM) -> Life:
    return ledger.require(Layout(directory)).started[name].life


def listening(directory: Path, name: str) -> bool:
    return (directory / "run" / f"{name}.sock").exists()


def test_what_was_killed_starts_again_with_the_very_same_command_line(place: Path) -> None:
    before = ledger.require(Layout(place)).started[VICTIM]

    killed = control.kill(place, VICTIM)
    again = control.kill(place, VICTIM)
    started = control.start(place, VICTIM)
    once_more = control.start(place, VICTIM)

    after = ledger.require(Layout(place)).started[VICTIM]
    assert [done.what for done in (*killed, *again, *started, *once_more)] == [
        "killed", "had ended already", "started", "ran already",
    ]  # fmt: skip
    assert after.command == before.command
    assert after.identity != before.identity
    assert document(place)["processes"][VICTIM] == after.pid
    assert next(node["pid"] for node in document(place)["nodes"] if node["name"] == VICTIM) == after.pid


def test_a_frozen_process_is_thawed_and_not_started(place: Path) -> None:
    control.freeze(place, VICTIM)

    assert life(place) is Life.FROZEN
    with pytest.raises(Refused, match="lab thaw db-toronto"):
        control.start(place, VICTIM)
    control.thaw(place, VICTIM)
    assert life(place) is Life.RUNNING


def test_what_has_ended_is_not_frozen(place: Path) -> None:
    control.kill(place, "db-montreal")

    with pytest.raises(Refused, match="lab start db-montreal"):
        control.freeze(place, "db-montreal")


def test_a_process_that_does_not_start_says_why(place: Path) -> None:
    control.kill(place, "db-clinic")
    options = place / "config" / "db-clinic.cnf"
    good = options.read_text()
    options.write_text(good + "nonsense=1\n")

    with pytest.raises(OscarHaError, match="unknown variable 'nonsense=1'"):
        control.start(place, "db-clinic")
    options.write_text(good)

    assert control.start(place, "db-clinic")[0].what == "started"


def test_a_wrong_name_lists_the_right_ones(place: Path) -> None:
    with pytest.raises(BadInput, match="zookeeper-1"):
        control.kill(place, "db-ottawa")


def test_status_says_who_does_not_answer(place: Path) -> None:
    done = lab("status", directory=place)

    assert done.returncode == 0, done.stderr
    assert "no controller answers" in done.stdout
    assert "zookeeper-1 up" in done.stdout


def test_a_lab_that_runs_is_not_replaced(place: Path) -> None:
    done = lab("up", directory=place)

    assert done.returncode == 2
    assert "runs in" in done.stderr
    assert "lab down" in done.stderr
    assert life(place) is Life.RUNNING
