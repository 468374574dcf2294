"""What ackers tell each other under `acks: all`: how far the binlog of an epoch is durable with them.

A word is one line of JSON on an HTTP answer that does not end, written whenever something became durable (what happens
meanwhile goes into the next line) and as a heartbeat. It counts until the silence is as long as that of a dead stream; when
the connection ends it is forgotten at once. Who has sealed the epoch, or lacks the end of an earlier one, gives no word.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import structlog

from cluster import clock, records
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.http import Client
from cluster.position import Position
from cluster.records import Word
from cluster.settings import Replicator, Settings
from replicator.permission import Heard
from replicator.streaming import News

PATH = "/v1/words"
LISTENERS_MAX = 16
RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS = 0.05, 1.0
log = structlog.get_logger()


class Teller:
    """Says our word to whoever listens."""

    def __init__(self, settings: Settings, news: News, word: Callable[[], Word]) -> None:
        self._timing, self._news, self._word = settings.timing, news, word
        self._listeners = 0

    def require_room(self) -> None:
        """Raise Refused when too many listen already."""
        if self._listeners >= LISTENERS_MAX:
            raise Refused(f"{LISTENERS_MAX} others listen already", hint="end some of them")

    async def tell(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write our word whenever it changes, and every heartbeat, until the other side goes away."""
        self._listeners += 1
        try:
            while True:
                news, word = self._news.next, self._word()
                async with asyncio.timeout(self._timing.stream_deadline_ms / 1000):
                    await write(records.encode(word) + b"\n")
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.heartbeat_interval_ms / 1000):
                        while self._word() == word:
                            await news.wait()
                            news = self._news.next
        finally:
            self._listeners -= 1


class Listener:
    """Keeps one connection to every site of whom a word is wanted. `heard` is replaced whole: any thread may read it."""

    def __init__(self, settings: Settings, token: str, changed: Callable[[], None]) -> None:
        self._settings, self._timing, self._changed = settings, settings.timing, changed
        self._client = Client(token)
        self._wanted: frozenset[str] = frozenset()
        self._look = asyncio.Event()
        self.heard: Mapping[str, Heard] = {}

    def want(self, sites: frozenset[str]) -> None:
        """Listen to these sites and to nobody else."""
        if sites != self._wanted:
            self._wanted = sites
            self._look.set()

    async def run(self) -> None:
        """Listen until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        async with self._client:
            try:
                while True:
                    for site in self._wanted - tasks.keys():
                        tasks[site] = asyncio.create_task(self._listen(self._settings.replicator(site)))
                    for site in tasks.keys() - self._wanted:
                        await _ended(tasks.pop(site))
                    await self._look.wait()
                    self._look.clear()
            finally:
                for task in tasks.values():
                    await _ended(task)

    async def _listen(self, peer: Replicator) -> None:
        """Connect again and again, sooner after a connection that brought something."""
        pause, said = RETRY_FIRST_SECONDS, ""
        while True:
            try:
                async for line in self._client.lines(f"{peer.url}{PATH}", call_deadline_ms=self._timing.call_deadline_ms,
                                                     silence_deadline_ms=self._timing.stream_deadline_ms):  # fmt: skip
                    self._hear(peer.site, line)
                    pause, said = RETRY_FIRST_SECONDS, ""
            except OscarHaError as error:
                if str(error) != said:
                    log.warning("words.ended", site=peer.site, error=str(error))
                said = str(error)
            finally:
                self._forget(peer.site)
            await asyncio.sleep(pause)
            pause = min(RETRY_MAX_SECONDS, pause * 2)

    def _hear(self, site: str, line: bytes) -> None:
        word = records.decode(Word, line, where=f"the word of {site}")
        if word.site != site:
            raise BadInput(f"the word of {site} is one of {word.site!r}", hint="mend the addresses in the settings")
        if word.durable is None or word.epoch <= word.sealed_epoch:
            self._forget(site)
            return
        until = clock.after(clock.now(), self._timing.stream_deadline_ms)
        heard = Heard(epoch=word.epoch, durable=Position.parse(word.durable), until=until)
        self.heard = {**self.heard, site: heard}
        self._changed()

    def _forget(self, site: str) -> None:
        if site in self.heard:
            self.heard = {other: heard for other, heard in self.heard.items() if other != site}
            self._changed()


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
