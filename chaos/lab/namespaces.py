"""Network namespaces of this process: made, held by an open file, and entered.

They have no names and no mounts: a namespace is there as long as a process is in it or holds it open, so nothing of a
lab's network outlives the lab's processes, however they end (decision 0097).
"""

import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import Refused

NEW_NETWORK = 0x4000_0000
OWN = Path("/proc/self/ns/net")
COMMAND_DEADLINE_SECONDS = 10
_libc = ctypes.CDLL(None, use_errno=True)


def current() -> int:
    """Return an open file of the namespace that we are in."""
    return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


def make() -> int:
    """Return an open file of a new namespace; we stay where we are. Raises Refused where that is not allowed."""
    home = current()
    try:
        _call("unshare", NEW_NETWORK)
        try:
            return current()
        finally:
            _call("setns", home, NEW_NETWORK)
    finally:
        os.close(home)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Be in another namespace for a while. Sockets made there stay there."""
    home = current()
    try:
        _call("setns", namespace, NEW_NETWORK)
        try:
            yield
        finally:
            _call("setns", home, NEW_NETWORK)
    finally:
        os.close(home)


def path(pid: int, namespace: int) -> str:
    """Return the path by which others find a namespace that process `pid` holds open."""
    return f"/proc/{pid}/fd/{namespace}"


def enter(place: str) -> tuple[str, ...]:
    """Return what goes before a command that shall run in the namespace at `path`; the process stays the same one."""
    return ("nsenter", f"--net={place}", "--")


def run(command: Sequence[str], text: str, *, within: str | None = None) -> str:
    """Run one of the network's tools on `text` and return what it says. Raises Refused with its own words."""
    whole = (*(enter(within) if within is not None else ()), *command)
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(whole, input=text, capture_output=True, text=True, check=False, env=environment,
                              timeout=COMMAND_DEADLINE_SECONDS)  # fmt: skip
    except FileNotFoundError as error:
        raise Refused(
            f"{error.filename} is not installed", hint="apt-get install iproute2 iptables util-linux"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{command[0]} did not end within {COMMAND_DEADLINE_SECONDS} s") from error
    if done.returncode != 0:
        raise Refused(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def ip(lines: Iterable[str], *, within: str | None = None) -> None:
    """Run lines of `ip -batch`. Raises Refused at the first that fails."""
    run(("ip", "-batch", "-"), "".join(f"{line}\n" for line in lines), within=within)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise Refused(f"{name}: {reason}", hint="network namespaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN")
