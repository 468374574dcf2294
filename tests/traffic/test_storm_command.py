"""`script/storm` itself: a short storm over the whole product, and what it says of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.lab.running import missing

ROOT = Path(__file__).resolve().parents[2]
KILLS, SEED = 7, 16
DEADLINE_SECONDS = 110


def storm(*arguments: str, directory: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "chaos.storm_command", *arguments], cwd=directory, capture_output=True, text=True,
        check=False, timeout=DEADLINE_SECONDS,
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), [(("--kills", "0"), "--kills 0"), (("--kills", "many"), "--kills")])
def test_a_storm_that_cannot_be_is_refused_with_what_to_choose(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = storm(*arguments, directory=tmp_path)

    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.servers
def test_a_short_storm_loses_nothing_and_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The long one is `script/storm`: the same, two hundred times."""
    require(missing())
    folder = tmp_path_factory.mktemp("storm")  # short: below it lie sockets, whose paths the kernel bounds
    file = folder / "storm.json"
    done = storm("--kills", str(KILLS), "--seed", str(SEED), "--json", str(file), directory=folder)
    told = json.loads(file.read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    assert set(told["verdicts"].values()) == {"kept"}
    assert sum(told["kills"].values()) >= KILLS - 1, "a watchdog may have been faster once"
    assert told["kills"].keys() == {"primary", "standby", "replicator"}
    assert not (folder / "build" / "storm" / "lab").exists()
