"""Archives on file systems of their own, small enough to be filled. Only where the machine lets us mount one (root).

They are in memory, and gone with a reboot. Everything that is mounted below a lab's folder is the lab's: `lab down` unmounts
it, whoever mounted it and however that one ended.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from cluster.errors import Refused

COMMAND_DEADLINE_SECONDS = 10
MOUNTS = Path("/proc/self/mountinfo")
BALLAST = ".ballast"
"""What fills a disk; its name is no binlog file's, so that nobody takes it for one."""


def mount(place: Path, size_bytes: int) -> None:
    """Make `place` a file system of so many bytes. Raises Refused where that is not allowed."""
    place.mkdir(mode=0o700)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(place))


def unmount_below(directory: Path) -> tuple[str, ...]:
    """Unmount everything below a folder, the innermost first, and return what. Raises Refused."""
    try:
        text = MOUNTS.read_text(encoding="utf-8")
    except OSError:
        return ()
    found = mounted_below(text, directory)
    for place in found:
        _run("umount", "--lazy", place)
    return found


def mounted_below(text: str, directory: Path) -> tuple[str, ...]:
    """Return what a `mountinfo` (proc(5)) names below a folder, the innermost first. Pure."""
    places = [line.split(" ")[4] for line in text.splitlines() if line.count(" ") > 4]
    spelt = [place.encode().decode("unicode_escape") if "\\" in place else place for place in places]
    return tuple(sorted((place for place in spelt if Path(place).is_relative_to(directory)), key=len, reverse=True))


def is_own(place: Path) -> bool:
    """Return whether a folder is a file system of its own."""
    return os.path.ismount(place)


def fill(place: Path) -> None:
    """Leave no free byte. Raises Refused for a folder that is no file system of its own: the machine's is never filled."""
    if not is_own(place):
        raise Refused(f"{place} has no disk of its own")
    left = os.statvfs(place)
    descriptor = os.open(place / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # somebody writes meanwhile: then it is full all the same
            os.posix_fallocate(descriptor, 0, max(1, left.f_bavail * left.f_frsize))
    finally:
        os.close(descriptor)


def empty(place: Path) -> None:
    """Take away what `fill` put there. Safe to repeat."""
    (place / BALLAST).unlink(missing_ok=True)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_DEADLINE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise Refused(f"{command[0]}: {' '.join(done.stderr.split())}", hint="small disks need root")
