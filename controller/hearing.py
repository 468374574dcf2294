"""Asks the acknowledging replicators and the watchdogs directly, while we lead.

A replicator's record outlives it by a session's ttl: what is heard here makes a change of the acker come sooner. A watchdog that
reports to ZooKeeper and does not answer us could not be told to fence: that is told. Neither is ever a proof.
"""

import asyncio
from collections.abc import Callable

from cluster import clock, records
from cluster.errors import OscarHaError, Unreachable
from cluster.http import Client, is_refusal
from cluster.records import DurabilityRecord, ReplicatorReport
from cluster.settings import Node, Settings
from controller.leadership import Leadership
from controller.mirror import Heard, Mirror

ASK_DEADLINE_MS = 500


class Hearing:
    """Asks everybody named every probe interval; `run` it beside the loop."""

    def __init__(
        self, settings: Settings, mirror: Mirror, leadership: Leadership, client: Client, pause_ms: Callable[[], float]
    ) -> None:
        """`pause_ms` is how long to wait at least: who serves many clusters does not ask each as often."""
        self._pause_ms = pause_ms
        self._settings, self._mirror, self._leadership, self._client = settings, mirror, leadership, client

    async def run(self) -> None:
        """Ask for ever."""
        await asyncio.gather(self._ask_replicators(), self._ask_watchdogs())

    async def _ask_watchdogs(self) -> None:
        while True:
            if self._leadership.valid():
                await asyncio.gather(*(self._ask_watchdog(node) for node in self._settings.nodes))
            else:
                self._mirror.deaf_since.clear()
            await asyncio.sleep(self._settings.timing.renew_interval_ms / 1000)

    async def _ask_watchdog(self, node: Node) -> None:
        asked = clock.now()
        try:
            await self._client.get(f"{node.watchdog_url}/health", deadline_ms=self._settings.timing.call_deadline_ms)
        except Unreachable:
            self._mirror.deaf_since.setdefault(node.name, asked)
            return
        except OscarHaError:
            pass  # it answers, if not what we understand
        self._mirror.deaf_since.pop(node.name, None)

    async def _ask_replicators(self) -> None:
        while True:
            record = self._mirror.get(DurabilityRecord, "durability")
            sites = record.ackers if record is not None and self._leadership.valid() else ()
            for site in set(self._mirror.heard) - set(sites):
                del self._mirror.heard[site]
            await asyncio.gather(*(self._ask(site) for site in sites))
            await asyncio.sleep(max(self._settings.timing.probe_interval_ms, self._pause_ms()) / 1000)

    async def _ask(self, site: str) -> None:
        asked, before = clock.now(), self._mirror.heard.get(site, Heard())
        try:
            report = await self._answer(f"{self._settings.replicator(site).url}/health")
        except Unreachable as error:
            heard = Heard(
                refused_since=(before.refused_since or asked) if is_refusal(error) else None,
                silent_since=before.silent_since or asked,
            )
            self._hear(site, before, heard)
        except OscarHaError:
            self._hear(site, before, Heard())  # it answers, if not what we understand
        else:
            self._hear(site, before, Heard())
            self._mirror.see(report)

    async def _answer(self, url: str) -> ReplicatorReport:
        try:
            answer = await self._client.get(url, deadline_ms=ASK_DEADLINE_MS)
        except Unreachable as error:
            if is_refusal(error):
                raise
            # A connection that was kept open may be found closed: only a new one tells whether anybody listens.
            answer = await self._client.get(url, deadline_ms=ASK_DEADLINE_MS)
        return records.decode(ReplicatorReport, answer, where=url)

    def _hear(self, site: str, before: Heard, heard: Heard) -> None:
        self._mirror.heard[site] = heard
        if (heard.refused_since is None) != (before.refused_since is None):
            self._mirror.changed.set()
