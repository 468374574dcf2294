"""Settings that say when a server that is up is no good all the same. Frozen, typed; part of `cluster/settings.py`.

A grey failure is never judged by one look: what is instantaneous must hold for a time *and* for several looks.
"""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

_STRICT = ConfigDict(extra="forbid", frozen=True)
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]


@checked(config=_STRICT, kw_only=True)
class HealthRules:
    """When a server that answers is degraded (somebody should look) or failed (another one would do better)."""

    failover: bool = True
    """Whether a failed primary that still answers is replaced by itself; else that is told and nothing is done."""
    storage_hung_ms: Milliseconds = 10_000
    """A write to the disk that has not ended by then never will: a healthy disk's longest stalls (a controller that resets, a
    snapshot) stay below, and clinics have been waiting for all of it."""
    write_refused_ms: Milliseconds = 5_000
    """For so long writes must be impossible at once (disk full, file system or server read-only) before it counts: an
    administrator who frees space, or toggles a variable, is faster."""
    silent_busy_ms: Milliseconds = 30_000
    """A server that answers nothing but uses the processor is overloaded, not hung, until then: a failover would throw all
    its clients on another server at once, and it would be overloaded next. While it writes it is never hung."""
    late_ms: Milliseconds = 1_000
    """Probes or writes that take longer are told as a warning."""
    disk_warning_bytes: Bytes = 2**30
    """Less free space is told as a warning: a busy clinic writes less than that of binary log in a day."""
    disk_full_bytes: Bytes = 32 * 2**20
    """With less free space the server has failed before it says so: InnoDB stops in the middle of a rollback for which it
    finds no room, and a binary log that finds none makes every commit wait for a person."""
    connections_warning_percent: Annotated[int, Field(ge=1, le=100)] = 90
    """Clinics are refused at 100; another server would be full as soon."""
