"""One process that a test owns: started, stopped, killed, frozen and thawed by its pid, never by name.

The kernel kills it when the test runner dies, however it dies (`setpriv --pdeathsig`), so a broken run leaves
nothing behind.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster import clock

POLL_INTERVAL_S = 0.02
STOP_DEADLINE_MS = 10_000
LOG_TAIL_BYTES = 4_000
PORT_LOWEST, PORT_HIGHEST = 10_000, 19_999
PORT_ATTEMPTS_MAX = 10_000
_CHANCE = random.SystemRandom()  # hypothesis seeds the common one: two workers would draw the same ports
_ports_given: set[int] = set()


class ServerFailed(Exception):
    """A server of a test did not do what it should; the message carries the end of its log."""


class ServerProcess:
    """A process and its log file."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the pid of the running process. Raises ServerFailed when there is none."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether the process was started and has not ended; a frozen one is alive."""
        return self._process is not None and self._process.poll() is None

    def launch(
        self, arguments: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process; its output goes to the log. Raises ServerFailed when it already runs."""
        if self.alive:
            raise ServerFailed(f"{self.name} already runs as {self.pid}")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=None if environment is None else {**os.environ, **environment},
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], *, deadline_ms: float, what: str) -> None:
        """Poll until `ready`. Raises ServerFailed at the deadline, or when the process ends before."""
        deadline = clock.after(clock.now(), deadline_ms)
        while not ready():
            if not self.alive:
                raise ServerFailed(f"{self.name} ended before {what}:\n{self.log_tail()}")
            if clock.seconds_left(deadline) == 0.0:
                raise ServerFailed(f"{self.name}: not {what} within {deadline_ms:.0f} ms:\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL_S)

    def stop(self) -> None:
        """End the process politely, then by force; it is gone when this returns."""
        if self._process is None or not self.alive:
            return
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        try:
            self._process.wait(STOP_DEADLINE_MS / 1000)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once, as a crash does; it is gone when this returns."""
        if self._process is not None and self.alive:
            self.send(signal.SIGKILL)
            self._process.wait(STOP_DEADLINE_MS / 1000)

    def freeze(self) -> None:
        """Stop the process where it stands: its connections stay open and nothing answers, from now on."""
        self.send(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        self.wait_until(lambda: all(_is_stopped(one) for one in tasks.iterdir()), deadline_ms=STOP_DEADLINE_MS,
                        what="frozen in all its threads")  # fmt: skip

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Send a signal. Raises ServerFailed when the process has ended."""
        if not self.alive:
            raise ServerFailed(f"{self.name} does not run:\n{self.log_tail()}")
        os.kill(self.pid, number)

    def log_tail(self) -> str:
        """Return the end of the log, for a message."""
        if not self.log_path.exists():
            return "(no log)"
        return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def free_port() -> int:
    """Return a loopback port that nobody listens on now, never the same one twice.

    It is below the range that the kernel gives to outgoing connections, so a server that a test restarts finds its
    port free again.
    """
    for _ in range(PORT_ATTEMPTS_MAX):
        port = _CHANCE.randrange(PORT_LOWEST, PORT_HIGHEST + 1)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _ports_given.add(port)
                return port
    raise ServerFailed(f"no free port between {PORT_LOWEST} and {PORT_HIGHEST}")


def _is_stopped(task: Path) -> bool:
    """Return whether a thread stands still; one that has ended does."""
    try:
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] in "TtZX"
    except (OSError, IndexError):
        return True
