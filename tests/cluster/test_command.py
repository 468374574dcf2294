"""The one command, as a person types it: words and an exit code, never a traceback."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cluster import command
from cluster.errors import BadInput, Refused, Unreachable, from_record
from tests.typed import typed

OSCAR_HA = Path(sys.executable).parent / "oscar-ha"
DEADLINE_SECONDS = 30


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `oscar-ha` in a place without settings."""
    return subprocess.run(
        [str(OSCAR_HA), *arguments], capture_output=True, text=True, timeout=DEADLINE_SECONDS, cwd="/",
        env={"PATH": "/usr/bin", "COLUMNS": "200"}, check=False,
    )  # fmt: skip


def test_every_command_that_is_announced_exists() -> None:
    for group in (command.COMMANDS, command.VERBS):
        points = [point for point in entry_points(group=group) if point.dist and point.dist.name == "oscar-ha"]
        assert points, "reinstall: script/setup"
        assert all(callable(point.load()) for point in points)


def test_the_version_is_said() -> None:
    done = run("--version")

    assert done.returncode == 0
    assert done.stdout.startswith("oscar-ha 0.")


def test_help_names_every_command() -> None:
    done = run("--help")

    assert done.returncode == 0
    assert all(name in done.stdout for name in ("lab", "status", "switchover", "failover", "pause", "history"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["status", "--nonsense"], "No such option: --nonsense"),
        (["status"], "no settings file"),
        (["status", "--settings", "/nowhere.toml"], "settings /nowhere.toml cannot be read"),
        (["history", "--limit", "many"], "--limit"),
        (["lab", "status", "--dir", "/nowhere"], "there is no lab in /nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("OSCAR_HA_SETTINGS", raising=False)
    monkeypatch.chdir("/")
    done = typed(*arguments)

    assert done.returncode == 2
    assert said in done.stderr.decode()


def test_the_process_ends_with_the_code_and_shows_no_traceback() -> None:
    done = run("status", "--settings", "/nowhere.toml")

    assert done.returncode == 2
    assert "settings /nowhere.toml cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_says_what_to_do_and_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    command.complain(BadInput("[bold]x[/] is wrong", hint="write [y]"))

    said = capsys.readouterr().err
    assert "oscar-ha: [bold]x[/] is wrong" in said
    assert "what to do: write [y]" in said


def test_a_refusal_is_shown_without_the_addresses_it_came_through(capsys: pytest.CaptureFixture[str]) -> None:
    command.complain(from_record(Refused("db-montreal is too late").as_record(), where="http://127.0.0.1:1"))
    command.complain(Unreachable("POST http://127.0.0.1:1: timed out"))

    said = capsys.readouterr().err
    assert "oscar-ha: db-montreal is too late\n" in said
    assert "http://127.0.0.1:1: timed out" in said
