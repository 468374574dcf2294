"""Settings that say when a server that is up is no good all the same, and what is run when something happens.

Frozen, typed; part of `cluster/settings.py`.
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
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


class HookEvent(StrEnum):
    """When a command of the clinic's own is run."""

    BEFORE_FAILOVER = "before_failover"
    AFTER_FAILOVER = "after_failover"
    BEFORE_SWITCHOVER = "before_switchover"
    AFTER_SWITCHOVER = "after_switchover"
    READINESS_LOST = "readiness_lost"
    READINESS_REGAINED = "readiness_regained"
    DEGRADED = "degraded"
    """There is something that a person should mend."""
    RECOVERED = "recovered"


class Must(StrEnum):
    """What its failure means."""

    BEST_EFFORT = "best_effort"
    MUST_SUCCEED = "must_succeed"


SECONDS_BEFORE_FAILOVER_MAX, SECONDS_BEFORE_SWITCHOVER_MAX = 5.0, 60.0


@checked(config=_STRICT, kw_only=True)
class Hook:
    """A command of the clinic's own, run by the leading controller. Never by a shell."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    on: tuple[HookEvent, ...] = Field(min_length=1, max_length=8)
    command: tuple[str, ...] = Field(min_length=1, max_length=100)
    """The program, with its whole path, and its arguments."""
    timeout_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 5.0
    """Then its whole process group is killed."""
    must: Must = Must.BEST_EFFORT


def hook_contradictions(hooks: Sequence[Hook]) -> list[str]:
    """Return what is wrong with the hooks, one sentence each, naming the consequence."""
    found = [f"hook name {name!r} is used {times} times: a key must name one"
             for name, times in Counter(hook.name for hook in hooks).items() if times > 1]  # fmt: skip
    for hook in hooks:
        rules = (
            (hook.command[0].startswith("/"), f"command {hook.command[0]!r} must begin with /: no path is searched"),
            (hook.must is Must.BEST_EFFORT or set(hook.on) == {HookEvent.BEFORE_SWITCHOVER},
             "only a hook of before_switchover alone may be must_succeed: elsewhere it would hold a failover up, or come too late"),
            (HookEvent.BEFORE_FAILOVER not in hook.on or hook.timeout_seconds <= SECONDS_BEFORE_FAILOVER_MAX,
             f"timeout_seconds may be at most {SECONDS_BEFORE_FAILOVER_MAX:g} s before a failover: clinics wait for it"),
            (HookEvent.BEFORE_SWITCHOVER not in hook.on or hook.timeout_seconds <= SECONDS_BEFORE_SWITCHOVER_MAX,
             f"timeout_seconds may be at most {SECONDS_BEFORE_SWITCHOVER_MAX:g} s before a switchover: its caller waits for it"),
        )  # fmt: skip
        found += [f"hook {hook.name!r}: {sentence}" for holds, sentence in rules if not holds]
    return found
