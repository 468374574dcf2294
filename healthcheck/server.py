"""The server process beside us: found by its pid file, held by a pidfd, so that no other process is ever taken for it.

A pid file left behind by a crash may name somebody else's process by now. So a process counts only if its name is a
server's *and* it owns the socket that listens on the node's port.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import OscarHaError
from cluster.settings import Node

SERVER_NAMES = {"mariadbd", "mysqld"}
LISTENING = "0A"
ENDED_STATES = {"Z", "X"}
BUSY_WITHIN_MS, BUSY_PART = 1_000.0, 0.2
MS_PER_SECOND = 1000
SIGKILL_PENDING = 1 << (signal.SIGKILL - 1)
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(slots=True)
class Server:
    """One run of the server process."""

    pid: int
    pidfd: int
    generation: str
    seen: Nanos

    def kill(self) -> None:
        """Send SIGKILL. The pidfd makes sure that it is this process, and tells when it is gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def close(self) -> None:
        """Let the pidfd go."""
        os.close(self.pidfd)

    def is_held(self) -> bool:
        """Return whether it was killed and only the kernel still holds threads of it, as on a hung disk.

        Such a thread ends before it executes one more instruction of the server: it answers nobody and commits nothing.
        A zombie is not held: it has ended, and its pidfd says so.
        """
        try:
            threads = [path.read_text(encoding="utf-8") for path in Path(f"/proc/{self.pid}/task").glob("*/status")]
        except OSError:
            return False  # it changes just now: look again
        return _are_held(threads)

    def processor_ticks(self) -> int | None:
        """Return how much processor time it has used, None when it is gone."""
        try:
            fields = _fields(self.pid)
        except OSError:
            return None
        return int(fields[11]) + int(fields[12])


class Processor:
    """Whether a server uses the processor: a frozen one does not, an overloaded one does."""

    def __init__(self) -> None:
        self._looks: list[tuple[Nanos, int]] = []

    def look(self, server: Server) -> None:
        """Note how much it has used by now."""
        ticks, now = server.processor_ticks(), clock.now()
        if ticks is not None:
            recent = [one for one in self._looks if clock.ms_between(one[0], now) <= BUSY_WITHIN_MS]
            self._looks = [*recent, (now, ticks)]

    @property
    def busy(self) -> bool:
        """Return whether it used a good part of one core within the last second or so."""
        if len(self._looks) < 2:
            return False
        (began, before), (ended, after) = self._looks[0], self._looks[-1]
        spent_ms = (after - before) * MS_PER_SECOND / os.sysconf("SC_CLK_TCK")
        return spent_ms >= BUSY_PART * clock.ms_between(began, ended) > 0


def find(node: Node) -> Server | None:
    """Return the node's server process, None when none runs or it does not listen yet.

    Raises OscarHaError when there is one that we may not watch or kill: then no fence would be certain.
    """
    pid = _pid_of(node.pid_file)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        if _name(pid) in SERVER_NAMES and not _is_zombie(pid) and _listens(pid, node.port):
            signal.pidfd_send_signal(pidfd, 0)
            return Server(pid, pidfd, f"{pid}-{_start_ticks(pid)}-{_boot_id()}", clock.now())
    except PermissionError as error:
        os.close(pidfd)
        raise OscarHaError(
            f"process {pid} of {node.pid_file} may not be watched or ended by us",
            hint="run the watchdog as root or as the user of the database server",
        ) from error
    except OSError:
        pass  # it ended while we looked
    os.close(pidfd)
    return None


def _pid_of(pid_file: Path) -> int | None:
    try:
        text = pid_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()


def _is_zombie(pid: int) -> bool:
    """A server that ended and that nobody has waited for: in a container perhaps for ever. Its files are hidden then."""
    return _fields(pid)[0] in ENDED_STATES


def _are_held(statuses: list[str]) -> bool:
    """Return whether, of the threads that have not ended, every one sleeps in the kernel with its death decided."""
    lasting = [fields for fields in map(_status, statuses) if _state(fields) not in ENDED_STATES]
    return bool(lasting) and all(_state(one) == "D" and _pending(one) & SIGKILL_PENDING for one in lasting)


def _status(text: str) -> dict[str, str]:
    """Return the fields of proc(5) status."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _state(fields: dict[str, str]) -> str:
    return fields.get("State", "").strip()[:1]


def _pending(fields: dict[str, str]) -> int:
    return int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)


def _start_ticks(pid: int) -> str:
    return _fields(pid)[19]


def _fields(pid: int) -> list[str]:
    """Return the fields of proc(5) stat from the third on; the name before them may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]


def _listens(pid: int, port: int) -> bool:
    listening = set(_listening_inodes(pid, port))
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(OSError):
                found = _SOCKET.fullmatch(os.readlink(entry.path))
                if found and found[1] in listening:
                    return True
    return False


def _listening_inodes(pid: int, port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), Path(f"/proc/{pid}/net/{table}").open(encoding="ascii") as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
