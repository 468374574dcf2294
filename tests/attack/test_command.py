"""`script/chaos` itself: what it says of bad input, before anything is started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.attack import command
from chaos.attack.catalogue import Kind
from cluster.errors import BadInput
from tests.conftest import require
from tests.lab.running import missing, processes_in

DEADLINE_SECONDS, SHORT_SECONDS = 60, 240
SEED, MINUTES = 3, 0.4


def chaos(*arguments: str, directory: Path, seconds: int = DEADLINE_SECONDS) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "chaos.attack.command", *arguments], cwd=directory, capture_output=True, text=True,
        check=False, timeout=seconds,
    )  # fmt: skip


BAD = {
    "no time": (("--minutes", "0"), "--minutes"),
    "a kind that there is not": (("--faults", "earthquake"), "kill-9"),
    "nothing that loopback can do": (("--faults", "packet-loss", "--network", "loopback"), "possible"),
    "a file that there is not": (("--repeat-from", "nowhere.json"), "nowhere.json"),
}


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_with_what_to_choose(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = chaos(*arguments, directory=tmp_path)

    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_can_be_typed_without_quotes(kind: Kind) -> None:
    typed = command._plain(kind.value)

    assert " " not in typed
    assert command.wanted(typed) == (kind,)
    assert command.wanted(f"{kind.value.upper()}, ") == (kind,)


def test_without_a_word_all_kinds_are_meant() -> None:
    assert command.wanted("") == tuple(Kind)


A_FAULT = {"kind": "kill -9", "part": "database", "where": "primary", "begins_ms": 0, "lasts_ms": 10}
FILES = {
    "no JSON": "{",
    "another file": "{}",
    "no rounds": json.dumps({"seed": 1, "rounds": []}),
    "a round that is none": json.dumps({"seed": 1, "rounds": [{"plan": {"pause_ms": 0}}]}),
    "a fault for ever": json.dumps(
        {"seed": 1, "rounds": [{"plan": {"pause_ms": 0, "faults": [{**A_FAULT, "lasts_ms": 1e12}]}}]}
    ),
    "three at once": json.dumps({"seed": 1, "rounds": [{"plan": {"pause_ms": 0, "faults": [A_FAULT] * 3}}]}),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_run_is_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "7.json"
    file.write_text(text)

    with pytest.raises(BadInput, match=r"7\.json"):
        command.repeated(file)


@pytest.mark.servers
@pytest.mark.timeout(SHORT_SECONDS + 30)  # one lab from its beginning to its end, and rounds that wait for a recovery
def test_a_short_attack_keeps_every_promise_and_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The long ones are `script/chaos`. What cannot be proved in so short a time may be left open, nothing may break."""
    require(missing())
    folder = tmp_path_factory.mktemp("chaos")  # short: below it lie sockets, whose paths the kernel bounds
    done = chaos("--seed", str(SEED), "--minutes", str(MINUTES), directory=folder, seconds=SHORT_SECONDS)
    told = json.loads((folder / "build" / "chaos" / f"{SEED}.json").read_text())

    assert set(told["verdicts"].values()) <= {"kept", "proved nothing"}, done.stdout + done.stderr
    assert told["problems"] == []
    assert told["faults"] >= 1
    assert told["verdicts"]["no acknowledged write lost"] == "kept"
    assert told["verdicts"]["recovers by itself"] == "kept"
    assert "<svg" in (folder / "build" / "chaos" / f"{SEED}.html").read_text()
    assert not (folder / "build" / "chaos" / "lab").exists()
    assert not processes_in(folder)
