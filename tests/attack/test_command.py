"""`script/chaos` itself: what it says of bad input, before anything is started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.attack import command
from chaos.attack.catalogue import Kind
from cluster.errors import BadInput

DEADLINE_SECONDS = 60


def chaos(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "chaos.attack.command", *arguments], cwd=directory, capture_output=True, text=True,
        check=False, timeout=DEADLINE_SECONDS,
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
