"""What is wrong with a server that is there: from observations with their ages to healthy, degraded or failed. Pure.

Only what another server would not have as well is a failure. A write that waits for an acknowledgement or for a person's lock
is none, nor is a server with too much to do: it is degraded, and a person is told. Nothing counts after one look.
"""

from dataclasses import dataclass

from cluster.clock import Nanos, ms_between
from cluster.dialect import Load, Wait
from cluster.records import Condition, Health
from cluster.rules import HealthRules

LOOKS_MIN = 3
"""We may have been frozen ourselves: then one look comes long after the one before."""
MIB = 2**20
MS_PER_SECOND = 1000
PERCENT = 100


@dataclass(frozen=True, slots=True)
class Lasting:
    """Something that was so at every look since."""

    since: Nanos
    looks: int
    why: str


def lasting(before: Lasting | None, why: str | None, now: Nanos) -> Lasting | None:
    """Return it with one look more; `why` None or empty: it is not so now."""
    if not why:
        return None
    return Lasting(now, 1, why) if before is None else Lasting(before.since, before.looks + 1, why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look. None: not so, or not known."""

    opened: bool = False
    """It is to take writes."""
    read_only: Lasting | None = None
    refused: Lasting | None = None
    """Our write was refused because the server can write nothing."""
    not_written: str = ""
    """Our write failed for another reason."""
    pending: Lasting | None = None
    """Our write has not ended. `since`: when it began."""
    wait: Wait | None = None
    moved: Nanos | None = None
    """When anything at all was last seen to be written."""
    disk_pending: Lasting | None = None
    """A write of ours to the disk, past the database, has not ended."""
    disk_failed: Lasting | None = None
    disk_known: bool = False
    """Such a write has ended well before."""
    disk_full: Lasting | None = None
    disk_free: int | None = None
    probe_ms: float | None = None
    load: Load | None = None


def judge(seen: Seen, now: Nanos, rules: HealthRules) -> Health:
    """Return the condition of the server with all reasons, the worst first."""
    failures = [one for one in (*_disk(seen, now, rules), *(_writes(seen, now, rules) if seen.opened else ())) if one]
    concerns = [one for one in _concerns(seen, now, rules) if one]
    if failures:
        return Health(condition=Condition.FAILED, reasons=(*failures, *concerns))
    return Health(condition=Condition.DEGRADED if concerns else Condition.HEALTHY, reasons=tuple(concerns))


def _lasts(one: Lasting | None, now: Nanos, ms: float) -> bool:
    return one is not None and one.looks >= LOOKS_MIN and ms_between(one.since, now) >= ms


def _disk(seen: Seen, now: Nanos, rules: HealthRules) -> tuple[str | None, ...]:
    """A standby with such a disk is no candidate either."""
    hung = _lasts(seen.disk_pending, now, rules.storage_hung_ms)
    return (
        f"its disk hangs: a write has not ended for {_seconds(rules.storage_hung_ms)}" if hung else None,
        seen.disk_failed.why if seen.disk_failed and _lasts(seen.disk_failed, now, rules.write_refused_ms) else None,
        seen.disk_full.why if seen.disk_full and _lasts(seen.disk_full, now, rules.write_refused_ms) else None,
    )


def _writes(seen: Seen, now: Nanos, rules: HealthRules) -> tuple[str | None, ...]:
    shut = seen.read_only if _lasts(seen.read_only, now, rules.write_refused_ms) else None
    refused = seen.refused if _lasts(seen.refused, now, rules.write_refused_ms) else None
    return (shut.why if shut else None, refused.why if refused else None, _never_ends(seen, now, rules))


def _never_ends(seen: Seen, now: Nanos, rules: HealthRules) -> str | None:
    """A write that waits for nothing that is named, while nothing else is written: its disk, or the server itself, is stuck."""
    if seen.pending is None or seen.wait is not Wait.OTHER or _moves(seen, now, rules):
        return None
    # Where a write past the database ends well it is not the disk: more patience, a large commit may be on its way.
    patience = rules.silent_busy_ms if seen.disk_known and seen.disk_pending is None else rules.storage_hung_ms
    return f"a write has not ended for {_seconds(patience)}" if _lasts(seen.pending, now, patience) else None


def _moves(seen: Seen, now: Nanos, rules: HealthRules) -> bool:
    return seen.moved is not None and ms_between(seen.moved, now) < rules.storage_hung_ms


def _concerns(seen: Seen, now: Nanos, rules: HealthRules) -> tuple[str | None, ...]:
    full = f"less than {rules.disk_warning_bytes // MIB:,} MiB free on its disk"
    low = seen.disk_free is not None and seen.disk_free < rules.disk_warning_bytes
    late = seen.probe_ms is not None and seen.probe_ms >= rules.late_ms
    return (
        full if low else None,
        "its disk is slow" if _lasts(seen.disk_pending, now, rules.late_ms) else None,
        _told_wait(seen, now, rules) if seen.opened else None,
        f"its heartbeat is not written: {seen.not_written}" if seen.opened and seen.not_written else None,
        "overloaded: it answers late" if late else None,
        _told_connections(seen.load, rules),
    )


def _told_wait(seen: Seen, now: Nanos, rules: HealthRules) -> str | None:
    if not _lasts(seen.pending, now, rules.late_ms) or seen.wait is None:
        return None
    match seen.wait:
        case Wait.ACKNOWLEDGEMENT:
            return "commits wait for an acknowledgement"
        case Wait.LOCK:
            return "writes wait for a lock that some session holds (SHOW PROCESSLIST on it; a backup with a read lock?)"
        case Wait.OTHER:
            return "overloaded: writes end late" if _moves(seen, now, rules) else "writes end late"


def _told_connections(load: Load | None, rules: HealthRules) -> str | None:
    if load is None or load.connections * PERCENT < load.connections_max * rules.connections_warning_percent:
        return None
    return f"its {load.connections_max} connections are used up, most of them by {load.account}"


def _seconds(ms: float) -> str:
    return f"{ms / MS_PER_SECOND:g} s"
