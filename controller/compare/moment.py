"""All nodes at one position, for an instant: the standbys stand still, stop exactly where the primary was, and go on.

The primary is never locked and never waits. A standby stands still only through its watchdog, which ends that by itself
when we die, and at once when a plan needs the node: then the moment is lost and taken again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import Conflict, DeadlinePassed, FencedOut, OscarHaError, Refused, Unreachable
from cluster.http import Client
from cluster.position import Position
from cluster.settings import Secrets, Settings
from controller.compare.findings import Digest, Row
from controller.compare.server import Server
from controller.compare.table import Piece, Table

HALT_MS = 10_000
"""A standby stands still no longer than this, whatever becomes of us."""
ATTEMPTS_MAX = 4
PAUSE_SECONDS = 0.1
"""Before a moment is taken again; it doubles."""
ROWS_NAMED_MAX = 200_000
"""Rows of one piece that are looked at one by one."""
Result = TypeVar("Result")


@dataclass(slots=True)
class Standby:
    """One standby in the comparison: a session in the common snapshot, and one outside of it."""

    name: str
    url: str
    inside: Server
    outside: Server


@dataclass(slots=True)
class Halted:
    """A standby that stands still."""

    standby: Standby
    halt: str
    since: Nanos


class Moments:
    """Brings all nodes to one position, again and again. Use as an async context manager."""

    def __init__(self, settings: Settings, secrets: Secrets, client: Client, *, epoch: int, statement_seconds: int,
                 snapshot_seconds: float) -> None:  # fmt: skip
        self.settings, self._secrets, self._client = settings, secrets, client
        self.epoch = epoch
        self._statement_seconds, self._snapshot_seconds = statement_seconds, snapshot_seconds
        self.standbys: dict[str, Standby] = {}
        self.lost: dict[str, str] = {}
        """Standbys that could not be compared to the end, and why."""
        self.position = ""
        self.taken = 0
        self.halted_ms_max = 0.0
        self.read_ms = 0.0
        """How long the last piece was read on the primary, without what it takes to have the standbys stand still."""
        self.last_lost = ""
        """Why the last moment that was lost was lost."""
        self._taken_at: Nanos | None = None
        self._stack = AsyncExitStack()
        self.inside: Server
        self.outside: Server

    async def __aenter__(self) -> "Moments":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def connect(self, primary: str, standbys: tuple[str, ...]) -> None:
        """Open the sessions. A standby that does not answer is lost; without the primary nothing can be compared."""
        self.inside, self.outside = await self._server(primary), await self._server(primary)
        for one in (self.inside, self.outside):
            await asyncio.to_thread(one.read_only)
        for name in standbys:
            try:
                self.standbys[name] = Standby(
                    name, self.settings.node(name).watchdog_url, await self._server(name), await self._server(name)
                )
            except Unreachable as error:
                self.lost[name] = error.message

    async def _server(self, name: str) -> Server:
        node = self.settings.node(name)
        server = await asyncio.to_thread(
            Server, node, self.settings, self._secrets, statement_seconds=self._statement_seconds
        )
        self._stack.callback(server.close)
        return server

    # -- snapshots --------------------------------------------------------------------------------------------------

    async def keep_fresh(self) -> None:
        """See to it that all nodes are in one snapshot that is not too old and keeps nobody waiting."""
        if self._taken_at is not None and clock.ms_between(self._taken_at, clock.now()) < self._snapshot_seconds * 1000:
            servers = [self.inside, *(one.inside for one in self.standbys.values())]
            if not any(await asyncio.gather(*(asyncio.to_thread(one.keeps_waiting) for one in servers))):
                return
        await self.renew()

    async def renew(self) -> None:
        """Take a new snapshot on all nodes at one position."""
        self._taken_at = None
        await self._again(self._take)
        self._taken_at = clock.now()

    async def let_go(self) -> None:
        """Hold no snapshot any more."""
        self._taken_at = None
        for one in (self.inside, *(standby.inside for standby in self.standbys.values())):
            await asyncio.to_thread(one.let_go)

    async def _take(self) -> None:
        async with self.standstill() as halted:
            file, offset = await asyncio.to_thread(self.inside.snapshot)
            position = await asyncio.to_thread(self.outside.position_at, file, offset)
            await self._on_each(halted, lambda one: self._snapshot_at(one, file, offset, position))
        self.position = position
        self.taken += 1

    async def _snapshot_at(self, one: Halted, file: str, offset: int, position: str) -> None:
        await self.bring_to(one, file, offset, position)
        await asyncio.to_thread(one.standby.inside.snapshot)
        await self._require_at(one, position)
        await self.go_on(one)

    # -- standing still ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def standstill(self, only: str | None = None) -> AsyncIterator[list[Halted]]:
        """Have the standbys stand still; at the end, whatever happened, those that still do go on."""
        halted: list[Halted] = []
        try:
            standbys = [one for name, one in self.standbys.items() if only in (None, name)]
            results = await asyncio.gather(*(self._halt(one) for one in standbys), return_exceptions=True)
            halted += [one for one in results if isinstance(one, Halted)]
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            yield halted
        finally:
            for one in list(halted):
                if one.halt:
                    await asyncio.shield(self._release(one))

    async def _halt(self, standby: Standby) -> Halted | None:
        body = {"epoch": self.epoch, "for_ms": HALT_MS}
        since = clock.now()
        try:
            answer = await self._post(standby, "halt", body)
        except FencedOut:
            raise
        except (Refused, Unreachable) as error:
            self._lose(standby.name, error)
            return None
        return Halted(standby, str(answer.get("halt")), since)

    async def bring_to(self, one: Halted, file: str, offset: int, position: str) -> None:
        """Have a standby that stands still apply exactly up to a place of the primary's binary log."""
        body = {"halt": one.halt, "file": file, "offset": offset, "position": position}
        answer = await self._post(one.standby, "halt-at", body)
        applied = str(answer.get("applied"))
        if Position.parse(applied) != Position.parse(position):
            raise Conflict(f"{one.standby.name} stands at {applied or 'nothing'}, not at {position}")

    async def _require_at(self, one: Halted, position: str) -> None:
        applied = await asyncio.to_thread(one.standby.outside.applied)
        if applied != Position.parse(position):
            raise Conflict(f"{one.standby.name} moved on to {applied} while it was read")

    async def go_on(self, one: Halted) -> None:
        """Let a standby apply again. Raises when it did so before: then what was read is not of one position."""
        halt, one.halt = one.halt, ""
        self.halted_ms_max = max(self.halted_ms_max, clock.ms_between(one.since, clock.now()))
        try:
            await self._post(one.standby, "continue", {"halt": halt})
        except Refused as error:
            raise Conflict(error.message) from error

    async def _release(self, one: Halted) -> None:
        with suppress(OscarHaError):  # its watchdog ends it by itself
            await self.go_on(one)

    async def _post(self, standby: Standby, verb: str, body: Mapping[str, object]) -> dict[str, object]:
        answer = await self._client.post(f"{standby.url}/v1/{verb}", body, deadline_ms=HALT_MS + 2_000)
        if not isinstance(answer, dict):
            raise Unreachable(f"{standby.url}: the answer is not an object")
        return answer

    async def _on_each(self, halted: list[Halted], call: Callable[[Halted], Awaitable[None]]) -> None:
        """Do something for every standby; one that does not answer is lost, the others are not."""

        async def one(which: Halted) -> None:
            try:
                await call(which)
            except FencedOut:
                raise
            except (Unreachable, Refused) as error:
                self._lose(which.standby.name, error)

        for result in await asyncio.gather(*(one(which) for which in halted), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _lose(self, name: str, error: OscarHaError) -> None:
        self.lost[name] = error.message
        self.standbys.pop(name, None)

    async def _again(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Try a moment a few times: what came between it and us may be over."""
        pause = PAUSE_SECONDS
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return await call()
            except (Conflict, DeadlinePassed) as error:
                self.last_lost = error.message
            await asyncio.sleep(pause)
            pause *= 2
        return await call()

    # -- reading ----------------------------------------------------------------------------------------------------

    async def digests(self, table: Table, piece: Piece) -> dict[str, Digest]:
        """Return a piece of a table on every node at one position; the primary's under ''."""
        if not table.transactional:
            return await self._again(lambda: self._standing_digests(table, piece))
        began = clock.now()
        found = await self.ask(lambda server: server.digest(table, piece), inside=True)
        self.read_ms = clock.ms_between(began, clock.now())
        return found

    async def hashes(self, table: Table, piece: Piece) -> dict[str, list[Row]]:
        """Return every row of a piece on every node at one position; the primary's under ''."""
        if not table.transactional:
            return await self._again(lambda: self._standing_hashes(table, piece))
        return await self.ask(lambda server: server.hashes(table, piece, ROWS_NAMED_MAX), inside=True)

    async def ask(self, call: Callable[[Server], Result], *, inside: bool = False) -> dict[str, Result]:
        """Ask all nodes at the same time, inside the common snapshot or outside of it; the primary's is under ''."""
        asked = {"": self.inside if inside else self.outside}
        asked |= {name: one.inside if inside else one.outside for name, one in self.standbys.items()}
        results = await asyncio.gather(
            *(asyncio.to_thread(call, server) for server in asked.values()), return_exceptions=True
        )
        found: dict[str, Result] = {}
        for name, result in zip(asked, results, strict=True):
            if not isinstance(result, BaseException):
                found[name] = result
            elif name and isinstance(result, Unreachable | Refused):
                self._lose(name, result)
            else:
                raise result
        return found

    async def _standing_digests(self, table: Table, piece: Piece) -> dict[str, Digest]:
        async with self.standstill() as halted:
            began = clock.now()
            ours, file, offset = await asyncio.to_thread(self.outside.digest_now, table, piece)
            self.read_ms = clock.ms_between(began, clock.now())
            return {"": ours, **await self._standing(halted, file, offset, lambda one: one.digest(table, piece))}

    async def _standing_hashes(self, table: Table, piece: Piece) -> dict[str, list[Row]]:
        async with self.standstill() as halted:
            ours, file, offset = await asyncio.to_thread(self.outside.hashes_now, table, piece, ROWS_NAMED_MAX)
            theirs = await self._standing(halted, file, offset, lambda one: one.hashes(table, piece, ROWS_NAMED_MAX))
            return {"": ours, **theirs}

    async def _standing(
        self, halted: list[Halted], file: str, offset: int, read: Callable[[Server], Result]
    ) -> dict[str, Result]:
        position = await asyncio.to_thread(self.outside.position_at, file, offset)
        found: dict[str, Result] = {}

        async def one(which: Halted) -> None:
            await self.bring_to(which, file, offset, position)
            result = await asyncio.to_thread(read, which.standby.outside)
            await self._require_at(which, position)
            await self.go_on(which)
            found[which.standby.name] = result

        await self._on_each(halted, one)
        self.taken += 1
        return found
