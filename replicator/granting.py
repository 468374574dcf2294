"""What a replicator may promise a primary that sees no ZooKeeper, and what it may acknowledge meanwhile (decision 0078).

A *grant* promises: until it ends I tell nobody that I have sealed your epoch. It is given only by who sees no ZooKeeper
either, has not sealed the epoch, and acts on the same durability record. A *confirmation* is what the primary says in the
next request: I have the grants of all, and so much is left of them; until then, and no longer, we acknowledge without a lease.

Requests may come late, even long after their sender died. So a confirmation counts from the mark in it, which we made
ourselves, not from when it arrived. That we ever promised is on disk first: after a crash we do not know for how long.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from cluster import clock, durable
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Refused
from cluster.lease import given_until, is_overdue, lasts_ms
from cluster.records import Grant, GrantRequest, Mark
from cluster.settings import Timing
from replicator.permission import Confirmed, Standing

GRANTED_FILE = "granted"
MS_PER_SECOND, ROUNDING_MS = 1000, 1
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Given:
    """What was given: until when our promise binds us, and what it permits, if anything."""

    promised_until: Nanos
    confirmed: Confirmed | None


def why_not_grant(standing: Standing, asked: GrantRequest, now: Nanos, timing: Timing) -> str | None:
    """Return why a grant must be refused, None when it may be given. `standing` is of the epoch asked for."""
    if asked.epoch != standing.epoch or standing.primary_site is None:
        return f"epoch {asked.epoch} is not the newest known here"
    if asked.epoch <= standing.sealed_epoch:
        return f"epoch {asked.epoch} is sealed"
    if not is_overdue(standing.lease_until, now, timing):
        return "ZooKeeper is seen here"
    durability = standing.durability
    known = None if durability is None or durability.epoch != asked.epoch else durability.serial
    if known != asked.serial:
        return f"the durability record known here is {known}, not {asked.serial}"
    return None


def confirmed_by(asked: GrantRequest, run: str, now: Nanos, timing: Timing) -> Confirmed | None:
    """Return what a request permits by the mark in it: nothing, if that is of another run, or too old."""
    mark = asked.mark
    if mark is None or mark.run != run or mark.at > now:
        return None
    until = clock.after(Nanos(mark.at), min(asked.left_ms, lasts_ms(timing)))
    return Confirmed(epoch=asked.epoch, serial=asked.serial, until=until) if until > now else None


class Grants:
    """What we have granted. All methods are of one loop."""

    def __init__(self, site: str, directory: Path, timing: Timing) -> None:
        self._site, self._file, self._timing = site, directory / GRANTED_FILE, timing
        self._run = secrets.token_hex(8)
        self._marked, self._writing = self._file.exists(), asyncio.Lock()
        began = clock.now()
        self._given = Given(given_until(began, timing) if self._marked else began, None)

    @property
    def confirmed(self) -> Confirmed | None:
        """Return what may be acknowledged without a lease, until when."""
        return self._given.confirmed

    @property
    def promised(self) -> bool:
        """Return whether somebody may still rely on a grant of ours."""
        return clock.now() < self._given.promised_until

    async def give(self, asked: GrantRequest, standing: Callable[[], Standing]) -> Grant:
        """Promise, and confirm. Raises Refused. `standing` is asked anew after what may block."""
        async with self._writing:
            if not self._marked:
                self._require(standing(), asked)
                await asyncio.to_thread(durable.replace_file, self._file, b"")
                self._marked = True
            self._require(standing(), asked)
            now = clock.now()
            self._given = Given(given_until(now, self._timing), confirmed_by(asked, self._run, now, self._timing))
        return Grant(site=self._site, epoch=asked.epoch, serial=asked.serial, mark=Mark(run=self._run, at=now))

    def _require(self, standing: Standing, asked: GrantRequest) -> None:
        reason = why_not_grant(standing, asked, clock.now(), self._timing)
        if reason is not None:
            raise Refused(reason)

    async def ended(self, deadline: Nanos) -> None:
        """Wait until nobody relies on a grant of ours any more. Raises DeadlinePassed, with what is left of it."""
        left_ms = clock.ms_between(clock.now(), self._given.promised_until)
        if left_ms <= 0.0:
            return
        if left_ms > clock.ms_between(clock.now(), deadline):
            await asyncio.sleep(clock.seconds_left(deadline))
            raise DeadlinePassed(
                f"a grant of ours is relied on for up to {left_ms:.0f} ms more: the seal is not told yet"
            )
        await asyncio.sleep((left_ms + ROUNDING_MS) / MS_PER_SECOND)  # who has sealed promises nothing more

    async def tidy(self) -> None:
        """Forget on disk what has ended. Raises OSError."""
        if not self._marked or self.promised:
            return
        async with self._writing:
            if self._marked and not self.promised:
                await asyncio.to_thread(durable.remove, self._file)
                self._marked = False
