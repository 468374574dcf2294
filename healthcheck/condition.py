"""Keeps the condition of one server: gathers what was seen, asks grey.py what it means, says so when that changes."""

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from cluster import clock
from cluster.dialect import Load, Wait
from cluster.records import Condition, Database, Health, Role
from cluster.settings import Node, Settings
from healthcheck import grey
from healthcheck.grey import Lasting, Seen, lasting
from healthcheck.heartbeat import Heartbeat
from healthcheck.prober import Prober
from healthcheck.seeding import Seeding
from healthcheck.storage import Storage

LOOK_MS = 1_000
MIB = 2**20
log = structlog.get_logger()


class Host(Protocol):
    """What the watchdog lends."""

    node: Node
    settings: Settings
    role: Role
    prober: Prober
    heartbeat: Heartbeat
    seeding: Seeding

    def tell_changes(self) -> None: ...


class Keeper:
    """The condition of one server."""

    def __init__(self, host: Host) -> None:
        self._host, self._rules = host, host.settings.health
        self.storage = Storage()
        self.health: Health | None = None
        self._lasting: dict[str, Lasting | None] = {}
        self._position: str | None = None
        self._moved: clock.Nanos | None = None
        self._generation = ""

    async def run(self) -> None:
        """Look for ever."""
        interval_ms = min(LOOK_MS, self._host.settings.timing.renew_interval_ms)
        while True:
            self.look()
            await asyncio.sleep(interval_ms / 1000)

    def look(self) -> None:
        """Look once."""
        prober = self._host.prober
        if prober.generation != self._generation:
            self._generation, self._lasting, self._position, self._moved = prober.generation, {}, None, None
            self.storage.forget()
        if (
            prober.server is not None and not self._host.seeding.replacing
        ):  # a folder that is replaced is no place to write
            self.storage.look(self._places())
        if prober.server is None or prober.database() is Database.UNKNOWN:
            health = None  # nobody knows anything of it, or it is down: that says enough
        else:
            health = grey.judge(self._seen(), clock.now(), self._rules)
        before, self.health = self.health, health
        if health != before:
            level = log.info if health is None or health.condition is Condition.HEALTHY else log.warning
            if health is not None and (before is not None or health.reasons):
                level("health.changed", condition=health.condition.value, reasons=health.reasons)
            self._host.tell_changes()

    @property
    def disk_free(self) -> int | None:
        return self.storage.space.free

    def _places(self) -> tuple[Path, ...]:
        return self._host.prober.places or tuple(filter(None, (self._host.node.data_directory,)))

    def _seen(self) -> Seen:
        prober, beat, now = self._host.prober, self._host.heartbeat, clock.now()
        opened, space = self._host.role is Role.PRIMARY, self.storage.space
        self._note_moves(now)
        load = prober.slow.load if prober.slow is not None and opened else None
        shut = opened and prober.probe is not None and prober.probe.read_only
        full = space.free is not None and space.free < self._rules.disk_full_bytes
        pending = self._last("pending", "it waits" if opened and beat.since is not None else None, beat.since)
        return Seen(
            opened=opened,
            read_only=self._last("read_only", "somebody made it read-only: no clinic can write" if shut else None),
            refused=self._last("refused", f"it takes no writes: {beat.refused}" if beat.refused else None),
            not_written=beat.failed,
            pending=pending,
            wait=_wait(load, self._answers(), pending),
            moved=self._moved,
            disk_pending=self._last("disk", "it waits" if self.storage.pending else None, self.storage.pending),
            disk_failed=self._last("broken", BROKEN_READ_ONLY if space.read_only else self.storage.broken),
            disk_known=self.storage.known,
            disk_full=self._last(
                "full", f"less than {self._rules.disk_full_bytes // MIB:,} MiB free" if full else None
            ),
            disk_free=space.free,
            probe_ms=prober.asking_ms(),
            load=load,
        )

    def _last(self, key: str, why: str | None, since: clock.Nanos | None = None) -> Lasting | None:
        """Note whether something is so at this look. One that began at another `since` is another one."""
        now, before = clock.now(), self._lasting.get(key)
        if before is not None and since is not None and before.since != since:
            before = None
        found = lasting(before, why, now if since is None or before is not None else since)
        self._lasting[key] = found
        return found

    def _note_moves(self, now: clock.Nanos) -> None:
        """Whatever was written counts: a heartbeat, somebody's transaction, bytes of a binary log."""
        prober, beat = self._host.prober, self._host.heartbeat
        position = prober.probe.position if prober.probe is not None else None
        if position != self._position:
            self._position, self._moved = position, now
        instants = [one for one in (self._moved, beat.written, self.storage.grew) if one is not None]
        self._moved = max(instants, default=None)
        worked = [one for one in (beat.written, self.storage.grew) if one is not None]
        prober.worked = max(worked, default=None)

    def _answers(self) -> bool:
        """Return whether the database answers at all, so that what it says of a wait is of now."""
        age_ms = self._host.prober.age_ms()
        return age_ms is not None and age_ms < self._rules.late_ms * 2


BROKEN_READ_ONLY = "its file system is read-only"


def _wait(load: Load | None, fresh: bool, pending: Lasting | None) -> Wait | None:
    """What the write waits for; while the server cannot be asked nothing is known of it."""
    return load.wait if load is not None and fresh and pending is not None else None
