"""The only place that reads a clock.

Deadlines and leases use `CLOCK_BOOTTIME`, which also counts while the machine sleeps: a lease judged by
`CLOCK_MONOTONIC` would still look valid after a suspend (clock_gettime(2), TRAPS.md 44). Wall time is for people only.
"""

import time
from datetime import UTC, datetime
from typing import NewType

Nanos = NewType("Nanos", int)
NANOS_PER_MS = 1_000_000
NANOS_PER_SECOND = 1_000_000_000


def now() -> Nanos:
    """Return nanoseconds since boot, suspended time included. Never goes back."""
    return Nanos(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def after(start: Nanos, ms: float) -> Nanos:
    """Return the instant `ms` milliseconds after `start`."""
    return Nanos(start + int(ms * NANOS_PER_MS))


def ms_between(start: Nanos, end: Nanos) -> float:
    """Return the milliseconds from `start` to `end`; negative when `end` came first."""
    return (end - start) / NANOS_PER_MS


def seconds_left(deadline: Nanos) -> float:
    """Return the seconds until `deadline`, 0.0 when it has passed."""
    return max(0.0, (deadline - now()) / NANOS_PER_SECOND)


def utc_now() -> str:
    """Return wall time for display and records: ISO 8601, UTC, milliseconds. Never compare it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_stamp() -> str:
    """Return wall time as it may stand in the name of a file: `20261124T110530Z`. Never compare it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def utc_seconds() -> int:
    """Return wall time as Unix seconds, for a protocol that asks for it. Never compare it."""
    return int(datetime.now(UTC).timestamp())


def utc_text(seconds: float) -> str:
    """Return Unix seconds as ISO 8601 text, UTC, for display."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def local_text(seconds: float) -> str:
    """Return Unix seconds as text in this machine's time zone, with its name, for display."""
    local = datetime.fromtimestamp(seconds, UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"
