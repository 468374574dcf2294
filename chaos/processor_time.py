"""What processes use: `utime` and `stime` of `/proc/PID/stat`, `VmRSS` of `/proc/PID/status` (proc(5))."""

import os
from collections.abc import Iterable
from pathlib import Path

from cluster.errors import OscarHaError

UTIME, STIME = 11, 12
"""Where they stand after the name, which ends with the last parenthesis."""


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the seconds that all of them have used until now. Raises OscarHaError when one has ended."""
    ticks = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise OscarHaError(f"process {pid} has ended while it was measured") from error
        ticks += ticks_of(text)
    return ticks / os.sysconf("SC_CLK_TCK")


def ticks_of(stat: str) -> int:
    """Return the clock ticks in the text of a `/proc/PID/stat`."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[UTIME]) + int(fields[STIME])


def resident_mb(pid: int) -> float:
    """Return how much memory a process holds now. Raises OscarHaError when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    except (OSError, StopIteration) as error:
        raise OscarHaError(f"process {pid} has ended while it was measured") from error
    return int(line.split()[1]) * 1024 / 1_000_000
