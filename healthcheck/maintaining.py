"""Whether somebody works on this node: a record of ZooKeeper, kept while ZooKeeper is away.

Then a stopped replication is not started again. What keeps the cluster safe goes on: a server that becomes writable without an
epoch is closed as ever.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from cluster.coordination import Coordination
from cluster.errors import BadInput, OscarHaError
from cluster.records import Suspension

REREAD_SECONDS = 5.0
log = structlog.get_logger()


class Maintaining:
    """The maintenance of one node, None while there is none."""

    def __init__(self, node: str, coordination: Coordination, changed: Callable[[], None]) -> None:
        self._path, self._coordination, self._changed = f"maintenance/{node}", coordination, changed
        self.record: Suspension | None = None
        self._news, self._watched = asyncio.Event(), False

    async def run(self) -> None:
        """Keep the record current: by watch, after every reconnect, and now and then for certainty."""
        self._coordination.listen(lambda _: self._on_news())
        while True:
            self._news.clear()
            with suppress(OscarHaError):
                await self._read()
            with suppress(TimeoutError):
                async with asyncio.timeout(REREAD_SECONDS):
                    await self._news.wait()

    async def _read(self) -> None:
        # One watch at a time: kazoo keeps every one it is given until it fires.
        watch, self._watched = None if self._watched else self._on_news, True
        try:
            found = await self._coordination.read(Suspension, self._path, watch)
        except BadInput:
            raise
        except OscarHaError:
            self._watched = False
            raise
        record = None if found is None else found[0]
        if (record is None) != (self.record is None):
            log.info("maintenance.changed", on=record is not None, why=record.why if record else "")
            self._changed()
        self.record = record

    def _on_news(self) -> None:
        self._watched = False
        self._news.set()
