"""By what right a primary writes: its lease, or, when ZooKeeper is gone, the grants of all replicators (decision 0078).

Where the epoch's record says that it holds while it is cut off, it goes on without either (decision 0090).

A lease counts only once we have looked, after our record was made, whether a plan for a later epoch runs: while there was
no record the end of the lease may have been somebody's proof of fence. Grants keep what is open; they open nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Protocol

import structlog

from cluster import clock, records
from cluster.clock import Nanos
from cluster.coordination import Coordination
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.http import Client
from cluster.lease import given_until, is_overdue
from cluster.log import Repeated
from cluster.records import DurabilityRecord, EpochRecord, Grant
from cluster.settings import Settings
from healthcheck.granted import Held, granted_until, request_of, sites_to_ask, why_not_ask
from healthcheck.judge import Memory

PATH = "/v1/grant"
MS_PER_SECOND = 1000
log = structlog.get_logger()


class Lender(Protocol):
    """What is needed of the watchdog."""

    @property
    def memory(self) -> Memory:
        """What was promised about this run of the server, and the one before."""

    @property
    def record(self) -> EpochRecord | None:
        """The newest epoch's record that was read."""

    @property
    def writes_epoch(self) -> int | None:
        """The epoch that we are the primary of, None when we are not."""

    @property
    def may_hold(self) -> bool:
        """Whether the record says that we go on while we are cut off."""

    async def read_epoch(self) -> None:
        """Read the record again and obey it. Raises Unreachable."""

    async def require_no_newer_plan(self, epoch: int) -> None:
        """Raise Refused while a plan for a later epoch runs."""

    def tell_changes(self) -> None:
        """Publish what changed."""


class Right:
    """The right of one watchdog. `valid` may be asked from any thread."""

    def __init__(self, settings: Settings, site: str, token: str, coordination: Coordination, lender: Lender) -> None:
        self._settings, self._timing, self._site = settings, settings.timing, site
        self._coordination, self._lender, self._client = coordination, lender, Client(token)
        self.durability: DurabilityRecord | None = None
        self._watched = False
        self._counted: Nanos | None = None
        self._held: dict[str, Held] = {}
        self._held_for: tuple[int, int] | None = None
        began = clock.now()
        # Who ran before us may have confirmed for so long: what is acknowledged by that is not known to us.
        self._confirmed_until = given_until(began, self._timing) if lender.memory.opened_epoch is not None else began
        self._refusals = Repeated()
        self._by_grants = self._by_hold = False
        self._plan_runs = False
        """A later epoch is about to be opened: who holds has to let go."""
        coordination.listen(lambda _: self._on_connection())

    # -- judging ------------------------------------------------------------------------------------------------------

    def by_lease(self, at: Nanos) -> bool:
        """Return whether we hold a lease that counts."""
        since = self._coordination.record_since
        return since is not None and since == self._counted and self._coordination.lease_valid(at)

    def by_grants(self, at: Nanos) -> bool:
        """Return whether all replicators have granted that we go on."""
        until = self._granted_until()
        return until is not None and at < until

    def by_hold(self, at: Nanos) -> bool:
        """Return whether we go on though nobody confirms us: it is recorded, and nothing newer was heard of."""
        if self.by_lease(at) or self.by_grants(at):
            return False
        return self._lender.may_hold and not self._plan_runs

    def valid(self, at: Nanos) -> bool:
        """Return whether what we opened may be open at `at`."""
        return self.by_lease(at) or self.by_grants(at) or self.by_hold(at)

    @property
    def must_let_go(self) -> bool:
        """Return whether we would hold, and a later epoch is about to be opened."""
        return self._lender.may_hold and self._plan_runs

    def granted_by(self, at: Nanos) -> tuple[str, ...]:
        """Return by whose grants we write; nobody's while there is a lease."""
        return () if self.by_lease(at) or not self.by_grants(at) else tuple(sorted(self._held))

    def is_settled(self, at: Nanos) -> bool:
        """Return whether nobody acknowledges by our direct word any more: then a position bounds what was."""
        return at >= clock.after(self._confirmed_until, self._timing.lease_margin_ms)

    @property
    def serial(self) -> int | None:
        """The durability record that we would name."""
        return None if self.durability is None else self.durability.serial

    def _granted_until(self) -> Nanos | None:
        durability = self.durability
        if durability is None or self._held_for != (durability.epoch, durability.serial):
            return None
        return granted_until(self._held, self._sites(durability), self._timing)

    def _sites(self, durability: DurabilityRecord) -> tuple[str, ...]:
        outside = (one.site for one in self._settings.replicators if one.site != self._site)
        return sites_to_ask(outside, durability)

    # -- the lease ----------------------------------------------------------------------------------------------------

    async def count(self, epoch: int) -> None:
        """Let our lease count, if nothing else has happened. Raises Refused while a plan for a later epoch runs."""
        since = self._coordination.record_since
        try:
            await self._lender.require_no_newer_plan(epoch)
        except Refused:
            self._plan_runs = True
            raise
        self._plan_runs = False
        await self.read_durability()
        if since == self._coordination.record_since:
            self._counted = since

    async def read_durability(self) -> None:
        """Read who acknowledges. Asked only after a write of this process: so it is not older than what was settled."""
        # One watch at a time: kazoo keeps every one it is given until it fires.
        watch, self._watched = None if self._watched else self._on_connection, True
        try:
            found = await self._coordination.read(DurabilityRecord, "durability", watch)
        except BadInput as error:
            log.error("durability.refused", error=str(error))
            return
        except OscarHaError:
            self._watched = False
            raise
        known = self.durability
        if found is None or (known and (found[0].epoch, found[0].serial) < (known.epoch, known.serial)):
            return
        self.durability = found[0]
        self._lender.tell_changes()

    def _on_connection(self) -> None:
        self._watched = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask for grants while there is no lease, and let one that came back count. Never returns by itself."""
        async with self._client, asyncio.TaskGroup() as group:
            group.create_task(self._every(self._ask_all))
            group.create_task(self._every(self._keep_counted))

    async def _every(self, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            await call()
            await asyncio.sleep(self._timing.probe_interval_ms / MS_PER_SECOND)

    async def _keep_counted(self) -> None:
        """Let a lease that came back count, and know at once who acknowledges."""
        epoch, now = self._lender.writes_epoch, clock.now()
        if epoch is None or not self._coordination.lease_valid(now):
            return
        try:
            if not self.by_lease(now):
                await self._lender.read_epoch()
                if self._lender.writes_epoch == epoch:
                    await self.count(epoch)
                    log.info("lease.counts", epoch=epoch)
                    self._refusals.is_over("lease")
            elif not self._watched:
                await self.read_durability()
        except OscarHaError as error:
            if self._refusals.is_news("lease", str(error)):
                log.info("lease.not_looked_at", why=str(error))

    async def _ask_all(self) -> None:
        now, epoch = clock.now(), self._lender.writes_epoch
        self._tell_edge(now, epoch)
        until = self._coordination.lease_until if self.by_lease(now) else None
        if epoch is None:
            self._held = {}
        if epoch is None or not is_overdue(until, now, self._timing):
            return
        durability = self.durability
        why_not = why_not_ask(self._lender.record, durability, epoch)
        if durability is None or why_not is not None:
            self._tell_refusal("us", str(why_not))
            return
        if self._held_for != (epoch, durability.serial):
            self._held, self._held_for = {}, (epoch, durability.serial)
        await asyncio.gather(*(self._ask(site, epoch, durability.serial) for site in self._sites(durability)))

    async def _ask(self, site: str, epoch: int, serial: int) -> None:
        asked, until = clock.now(), self._granted_until()
        request = request_of(epoch, serial, self._held.get(site), until, asked)
        if until is not None and request.left_ms:
            self._confirmed_until = max(self._confirmed_until, until)
        try:
            url = f"{self._settings.replicator(site).url}{PATH}"
            answer = await self._client.post(url, asdict(request), deadline_ms=self._timing.renew_interval_ms)
            grant = records.decode(Grant, answer, where=url)
            if (grant.site, grant.epoch, grant.serial) != (site, epoch, serial):
                raise Refused(f"{site} grants for {grant.site}, epoch {grant.epoch}, record {grant.serial}")
        except OscarHaError as error:
            self._tell_refusal(site, str(error))
            return
        if self._held_for == (epoch, serial):
            self._held = {**self._held, site: Held(asked=asked, mark=grant.mark)}
            self._refusals.is_over(site)

    # -- saying it once -----------------------------------------------------------------------------------------------

    def _tell_refusal(self, who: str, why: str) -> None:
        if self._refusals.is_news(who, why):
            log.warning("grant.refused", by=who, why=why)

    def _tell_edge(self, now: Nanos, epoch: int | None) -> None:
        holds = epoch is not None and self.by_hold(now)
        if holds != self._by_hold:
            self._by_hold = holds
            log.warning("holding.begins" if holds else "holding.ends", epoch=epoch, by_lease=self.by_lease(now))
            self._lender.tell_changes()
        sites = self.granted_by(now) if epoch is not None else ()
        if bool(sites) != self._by_grants:
            self._by_grants = bool(sites)
            if sites:
                log.warning("grants.relied_on", epoch=epoch, sites=sites, why="ZooKeeper is gone")
            else:
                log.info("grants.not_relied_on", by_lease=self.by_lease(now))
            self._lender.tell_changes()
