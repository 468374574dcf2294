"""Whatever happens to `lab up`: nothing is left behind, and a person is told what to mend."""

import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import require
from tests.lab.running import await_started, begin_up, document, lab, missing, processes_in

pytestmark = pytest.mark.servers
REFUSED, INTERRUPTED = 2, 130


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that does not exist, in a folder that does not exist either."""
    require(missing())
    return tmp_path / "build" / "lab"


def nothing_left(place: Path) -> bool:
    return not processes_in(place) and not place.parent.exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("binlog_form=MIXED", "binlog_format is MIXED"),
        ("nonsense=1", "unknown variable 'nonsense=1'"),
        ("innodb_page_size=5K", "Invalid page size"),
        ("max_connections=1\\", "max_connections"),
    ],
    ids=["the running server says no", "no such option", "bad value", "not a number"],
)
def test_an_option_that_a_server_refuses_is_named_and_nothing_is_left(place: Path, option: str, said: str) -> None:
    done = lab("up", "--mysqld-option", option, directory=place)

    assert done.returncode == REFUSED, done.stderr
    assert said in done.stderr
    assert "what to do:" in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_left(place)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clinics", "21"),
        ("--zookeepers", "2"),
        ("--load", "/nowhere/nothing.sql"),
        ("--mysqld-option", "skip-log-bin"),
        ("--mysqld-option", "gtid_strict_mode=OFF"),
        ("--mysqld-option", "server_id=7"),
    ],
    ids=" ".join,
)
def test_bad_input_starts_nothing(place: Path, arguments: tuple[str, ...]) -> None:
    done = lab("up", *arguments, directory=place)

    assert done.returncode == REFUSED, done.stderr
    assert done.stderr.count("oscar-ha:") == 1
    assert "what to do:" in done.stderr
    assert nothing_left(place)


def test_a_forced_port_in_use_is_refused(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = lab("up", "--base-port", str(taken.getsockname()[1]), directory=place)

    assert done.returncode == REFUSED
    assert "port in use" in done.stderr
    assert nothing_left(place)


def test_a_folder_with_somebody_elses_data_is_left_alone(place: Path) -> None:
    (place / "data").mkdir(parents=True)
    (place / "data" / "precious").touch()

    done = lab("up", directory=place)

    assert done.returncode == REFUSED
    assert "not a lab's" in done.stderr
    assert (place / "data" / "precious").exists()


@pytest.mark.parametrize("moment", ["zookeeper-1", "db-montreal"])
def test_down_finishes_what_a_killed_up_began(place: Path, moment: str) -> None:
    starting = begin_up(place)
    await_started(place, moment)
    starting.kill()
    starting.communicate()
    assert processes_in(place)

    done = lab("down", directory=place)

    assert done.returncode == 0, done.stderr
    assert nothing_left(place)


def test_down_finds_what_a_killed_up_could_not_write_down(place: Path) -> None:
    starting = begin_up(place)
    await_started(place, "db-clinic")
    starting.kill()
    starting.communicate()
    text = (place / "lab.json").read_text()
    pid = document(place)["processes"]["db-clinic"]
    (place / "lab.json").write_text(text.replace(f'"pid": {pid}', f'"pid": {2**22}'))

    lab("down", directory=place)

    assert nothing_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_takes_everything_down_again(place: Path, number: signal.Signals) -> None:
    starting = begin_up(place)
    await_started(place, "db-clinic")

    starting.send_signal(number)
    _, said = starting.communicate(timeout=60)

    assert starting.returncode == INTERRUPTED, said
    assert "Traceback" not in said
    assert nothing_left(place)


def test_a_second_up_in_the_same_folder_is_refused_and_down_ends_the_first(place: Path) -> None:
    starting = begin_up(place)
    await_started(place, "zookeeper-1")

    second = lab("up", directory=place)
    ended = lab("down", directory=place)
    starting.communicate(timeout=60)

    assert second.returncode == REFUSED
    assert second.stderr.count("oscar-ha:") == 1
    assert ended.returncode == 0, ended.stderr
    assert nothing_left(place)


def test_down_twice_or_without_a_lab_is_fine_and_leaves_strange_files_alone(place: Path) -> None:
    assert lab("down", directory=place).returncode == 0
    place.mkdir(parents=True)
    (place / "notes.txt").touch()

    assert lab("down", directory=place).returncode == 0

    assert (place / "notes.txt").exists()
    shutil.rmtree(place)
