"""Starting, signalling and ending the lab's processes.

Every process has a session of its own, so a Ctrl-C meant for `lab up` never reaches it, and writes to its own log.
"""

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from chaos.lab import identity
from chaos.lab.identity import MARK, Identity, Life
from chaos.lab.layout import Layout
from chaos.lab.ledger import Started
from cluster import clock
from cluster.errors import DeadlinePassed, OscarHaError

POLL_SECONDS = 0.03
TERM_DEADLINE_MS = 8_000
KILL_DEADLINE_MS = 5_000
LOG_BYTES_MAX = 20_000_000
LOG_KEPT_BYTES = 1_000_000
LOG_READ_BYTES = 1_000_000
_ERROR_WORDS = ("[ERROR]", "[ALERT]", "ERROR ", "FATAL", "oscar-ha:", "Error:", "Exception:")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def environment(lab_id: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of this lab: little is inherited, so that every machine runs the same."""
    kept = {name: inherited[name] for name in _KEPT_ENVIRONMENT if name in inherited}
    search = [kept.get("PATH", os.defpath), "/usr/sbin", "/sbin", sysconfig.get_path("scripts")]
    # One thread is enough for a small Prometheus; Python writes its log lines at once.
    return {
        **kept,
        "PATH": ":".join(search),
        "LANG": "C.UTF-8",
        "GOMAXPROCS": "1",
        "PYTHONUNBUFFERED": "1",
        MARK: lab_id,
    }


def spawn(name: str, command: Sequence[str], layout: Layout, lab_id: str) -> Started:
    """Start one process. Raises OscarHaError when the program cannot be run."""
    log = layout.log(name)
    trim(log)
    with log.open("ab") as output:
        offset = output.tell()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=layout.directory / "run",
                env=environment(lab_id, os.environ),
                start_new_session=True,
            )
        except OSError as error:
            raise OscarHaError(f"{name}: {command[0]} cannot be run: {error.strerror}") from error
    found = identity.identify(child.pid)
    assert found is not None, "a child that is not waited for keeps its pid"
    _CHILDREN[child.pid] = child
    return Started(name=name, pid=found.pid, started=found.started, command=tuple(command), log_offset=offset)


_CHILDREN: dict[int, "subprocess.Popen[bytes]"] = {}
"""Our own children of this run; asked now and then, so that none stays a zombie."""


def end(found: Iterable[Identity]) -> None:
    """End processes: thaw, ask, wait, then kill. Raises DeadlinePassed if one survives even that."""
    alive = tuple(found)
    for number in (signal.SIGTERM, signal.SIGCONT):
        for one in alive:
            identity.send(one, number)
    if not _wait_ended(alive, TERM_DEADLINE_MS):
        kill(alive)


def kill(found: Iterable[Identity]) -> None:
    """Kill processes and wait until they are gone. Raises DeadlinePassed."""
    alive = tuple(found)
    for one in alive:
        identity.send(one, signal.SIGKILL)
    if not _wait_ended(alive, KILL_DEADLINE_MS):
        left = [str(one.pid) for one in alive if identity.life(one) is not Life.ENDED]
        raise DeadlinePassed(
            f"pid {', '.join(left)} survived SIGKILL for {KILL_DEADLINE_MS} ms", hint="the kernel holds it: see dmesg"
        )


def wait_until(missing: Callable[[], str], *, deadline_ms: float, what: str, hint: str = "") -> None:
    """Poll until `missing` returns nothing. Raises DeadlinePassed with what is still missing."""
    deadline = clock.after(clock.now(), deadline_ms)
    while reason := missing():
        if clock.seconds_left(deadline) == 0.0:
            raise DeadlinePassed(f"{what}: {reason} (waited {deadline_ms / 1000:.0f} s)", hint=hint)
        time.sleep(POLL_SECONDS)


def trim(log: Path) -> None:
    """Cut a log that grew over its limit to its newest part. Whoever appends to it goes on undisturbed."""
    if not log.exists() or log.stat().st_size <= LOG_BYTES_MAX:
        return
    with log.open("r+b") as file:
        file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
        newest = file.read()
        file.seek(0)
        file.truncate()
        file.write(newest[newest.find(b"\n") + 1 :])


def last_error(log: Path, offset: int = 0) -> str:
    """Return the line after `offset` in a log that says best why its process ended, empty when it says nothing."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            text = file.read(LOG_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return choose_error(text)


def choose_error(text: str) -> str:
    """Return the first line that names an error, because servers say the cause first; else the last line there is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bad = [line for line in lines if any(word in line for word in _ERROR_WORDS)]
    return bad[0] if bad else lines[-1] if lines else ""


def _wait_ended(found: Sequence[Identity], deadline_ms: float) -> bool:
    deadline = clock.after(clock.now(), deadline_ms)
    while any(identity.life(one) is not Life.ENDED for one in found):
        if clock.seconds_left(deadline) == 0.0:
            return False
        time.sleep(POLL_SECONDS)
    for child in _CHILDREN.values():
        child.poll()
    return True
