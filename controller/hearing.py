"""Asks the acknowledging replicators directly, while we lead: their records outlive them by a session's ttl.

What is heard here only makes a change of the acker come sooner. It is never a proof (`controller/ackers.py`).
"""

import asyncio

from cluster import clock, records
from cluster.errors import OscarHaError, Unreachable
from cluster.http import Client, is_refusal
from cluster.records import DurabilityRecord, ReplicatorReport
from cluster.settings import Settings
from controller.leadership import Leadership
from controller.mirror import Heard, Mirror

ASK_DEADLINE_MS = 500


class Hearing:
    """Asks everybody named every probe interval; `run` it beside the loop."""

    def __init__(self, settings: Settings, mirror: Mirror, leadership: Leadership, client: Client) -> None:
        self._settings, self._mirror, self._leadership, self._client = settings, mirror, leadership, client

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            record = self._mirror.get(DurabilityRecord, "durability")
            sites = record.ackers if record is not None and self._leadership.valid() else ()
            for site in set(self._mirror.heard) - set(sites):
                del self._mirror.heard[site]
            await asyncio.gather(*(self._ask(site) for site in sites))
            await asyncio.sleep(self._settings.timing.probe_interval_ms / 1000)

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
