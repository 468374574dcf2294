"""Helpers of the server tests: the real command, and proof that nothing is left."""

import json
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.lab.preflight import programs
from cluster import clock
from cluster.errors import BadInput

COMMAND = str(Path(sysconfig.get_path("scripts")) / "oscar-ha")
RUN_DEADLINE_SECONDS = 120
EVENT_DEADLINE_MS = 30_000
POLL_SECONDS = 0.02


def missing() -> str:
    """Return what is not installed, empty when all is there."""
    try:
        programs()
    except BadInput as error:
        return error.message
    return ""


def lab(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run `oscar-ha lab ...` to its end."""
    return subprocess.run(
        [COMMAND, "lab", *arguments, "--dir", str(directory)],
        capture_output=True, text=True, check=False, timeout=RUN_DEADLINE_SECONDS,
    )  # fmt: skip


def begin_up(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `oscar-ha lab up` as a terminal would, and do not wait for it.

    A shell starts what it puts into the background with SIGINT ignored, and the test runner may be such a one.
    """
    return subprocess.Popen(
        ["env", "--default-signal=INT,HUP,TERM", COMMAND, "lab", "up", *arguments, "--dir", str(directory)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def await_true(condition: Callable[[], bool], what: str, poll_seconds: float = POLL_SECONDS) -> None:
    """Poll until it holds; the test fails at the deadline."""
    deadline = clock.after(clock.now(), EVENT_DEADLINE_MS)
    while not condition():
        assert clock.seconds_left(deadline) > 0.0, f"not within {EVENT_DEADLINE_MS} ms: {what}"
        time.sleep(poll_seconds)


def document(directory: Path) -> dict[str, Any]:
    """Return lab.json, an empty object while there is none."""
    try:
        found: dict[str, Any] = json.loads((directory / "lab.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def await_started(directory: Path, name: str) -> None:
    """Wait until lab.json lists a process."""
    await_true(lambda: name in document(directory).get("processes", {}), f"{name} in lab.json")


def processes_in(directory: Path) -> list[str]:
    """Return the command lines of all processes that name the folder, work in it, or write into it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = (entry / "cwd").readlink()
        except OSError:
            continue
        if str(directory) in line or place.is_relative_to(directory):
            found.append(line)
    return found
