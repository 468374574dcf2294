"""Who a pid is. A pid alone is never believed: the kernel gives it to somebody else after the process has ended.

A process is its pid *and* its start time (proc(5), field 22 of `stat`). Signals go through a pidfd that is opened
first and identified afterwards, so that nobody else can be hit in between. Every process of a lab also carries the
lab's mark in its environment: what a killed `lab up` could not write down is found by it.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MARK = "OSCAR_HA_LAB"
"""The environment variable that names the lab a process belongs to."""
PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)


BOOT_ID = PROC / "sys/kernel/random/boot_id"
NEVER = -1
"""A start time that no process has."""


class Life(StrEnum):
    """What the kernel says of a process that we started."""

    RUNNING = "running"
    FROZEN = "frozen"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever: its pid and its start time in clock ticks since boot."""

    pid: int
    started: int


def parse_stat(text: str) -> tuple[str, int]:
    """Return state letter and start time of a `/proc/PID/stat`. The name in it may hold spaces and parentheses."""
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def boot() -> str:
    """Return the name of this boot of the machine: start times are counted from it."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def identify(pid: int) -> Identity | None:
    """Return who `pid` is now, None when nobody."""
    found = _stat(pid)
    return None if found is None else Identity(pid, found[1])


def life(identity: Identity) -> Life:
    """Return what became of the process. A zombie has ended; a pid that now is somebody else's has too.

    While other threads of a zombie still die the kernel keeps its sockets open: then it has not ended yet.
    """
    found = _stat(identity.pid)
    if found is None or found[1] != identity.started:
        return Life.ENDED
    if found[0] in "ZX":
        return Life.RUNNING if _has_threads(identity.pid) else Life.ENDED
    return Life.FROZEN if found[0] in "Tt" else Life.RUNNING


def _has_threads(pid: int) -> bool:
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def send(identity: Identity, number: signal.Signals) -> bool:
    """Send a signal to this very process. Return False when it has ended."""
    with _opened(identity) as descriptor:
        if descriptor is None:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
            return True
    return False


def marked(lab_id: str) -> tuple[Identity, ...]:
    """Return every living process that carries the lab's mark, ourselves not counted."""
    needle = f"{MARK}={lab_id}".encode()
    found: list[Identity] = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        identity = identify(int(entry.name))
        if identity is not None and needle in _environment(entry).split(b"\0") and life(identity) is not Life.ENDED:
            found.append(identity)
    return tuple(found)


@contextmanager
def _opened(identity: Identity) -> Iterator[int | None]:
    """Yield a pidfd of this very process, None when it has ended."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor if life(identity) is not Life.ENDED else None
    finally:
        os.close(descriptor)


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except _GONE:
        return None


def _environment(entry: Path) -> bytes:
    try:
        return (entry / "environ").read_bytes()
    except OSError:  # it ended, or it is somebody else's: then it is not ours
        return b""
