"""A table of one standby made the primary's again: the pieces that differ are replaced while the standby stands still.

Each piece is read from the primary and written to the standby at one and the same position, in one transaction that is
in no binary log. Its locks are taken while nothing is applied, so whoever comes next finds the piece as it must be.
The primary is only read.
"""

import asyncio
from collections.abc import Sequence
from contextlib import closing

from cluster.errors import Conflict, DeadlinePassed, Refused
from cluster.position import Position
from cluster.settings import Secrets, Settings
from controller.compare.moment import Moments
from controller.compare.server import NOW, Server
from controller.compare.table import Piece, Table

PIECE_ROWS = 2_000
ATTEMPTS_MAX = 5
PAUSE_SECONDS = 0.1
INSERT_BYTES_MAX = 4 * 1024 * 1024
INSERT_ROWS_MAX = 200
WRITER_SECONDS = 30
Values = tuple[bytes | None, ...]


class Repair:
    """Repairs tables of one standby."""

    def __init__(self, moments: Moments, settings: Settings, secrets: Secrets, node: str) -> None:
        self.moments, self.node = moments, node
        self._settings, self._secrets = settings, secrets
        self.rows_replaced = 0

    async def table(self, schema: str, name: str) -> int:
        """Make a table of the node equal to the primary's; return how many pieces were replaced."""
        await self.moments.let_go()
        table = await asyncio.to_thread(self.moments.outside.describe, schema, name)
        if self.node not in self.moments.standbys:
            raise Refused(f"{self.node} cannot be repaired: {self.moments.lost.get(self.node, 'it is no standby')}")
        if await asyncio.to_thread(self.moments.outside.has_triggers, table):
            raise Refused(f"{table.shown} has triggers: they would run on the standby",
                          hint=f"seed the node anew: oscar-ha reinitialize {self.node}")  # fmt: skip
        replaced, after = 0, None
        while True:
            upto = None
            if table.key is not None:
                upto = await asyncio.to_thread(self.moments.outside.bound, table, after, PIECE_ROWS)
            replaced += await self._piece(table, Piece(after, upto))
            if upto is None:
                return replaced
            after = upto

    async def _piece(self, table: Table, piece: Piece) -> int:
        """Replace a piece if it differs; return 1 if it was."""
        if table.transactional:
            await self.moments.keep_fresh()
        digests = await self.moments.digests(table, piece)
        if digests.get(self.node) == digests[""]:
            return 0
        await self.moments.let_go()
        for attempt in range(ATTEMPTS_MAX - 1):
            try:
                await self._replace(table, piece)
            except (Conflict, DeadlinePassed):
                await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
            else:
                return 1
        await self._replace(table, piece)
        return 1

    async def _replace(self, table: Table, piece: Piece) -> None:
        async with self.moments.standstill(only=self.node) as halted:
            if not halted:
                raise Refused(f"{self.node} cannot stand still: {self.moments.lost.get(self.node)}")
            rows, file, offset = await asyncio.to_thread(_read, self.moments, table, piece)
            position = await asyncio.to_thread(self.moments.outside.position_at, file, offset)
            await self.moments.bring_to(halted[0], file, offset, position)
            await asyncio.to_thread(self._write, table, piece, rows, position)
            await self.moments.go_on(halted[0])
        self.rows_replaced += len(rows)

    def _write(self, table: Table, piece: Piece, rows: Sequence[Values], position: str) -> None:
        """Replace a piece on the standby. Nothing is written unless it stands at `position` with all locks taken."""
        node = self._settings.node(self.node)
        with closing(Server(node, self._settings, self._secrets, statement_seconds=WRITER_SECONDS)) as server:
            server.rows("SET SESSION sql_log_bin = 0, foreign_key_checks = 0, unique_checks = 1,"
                        " sql_mode = 'NO_AUTO_VALUE_ON_ZERO'")  # fmt: skip
            if table.transactional:
                server.rows("START TRANSACTION")
            else:
                server.rows(f"LOCK TABLES {table.quoted} WRITE")
            try:
                if table.transactional:
                    server.rows(f"DELETE {table.source(piece, forced=False)}")
                if server.applied() != Position.parse(position):
                    raise Conflict(f"{self.node} moved on while its rows were replaced")
                if not table.transactional:
                    server.rows(f"DELETE {table.source(piece, forced=False)}")
                for batch in batches(rows):
                    values = [table.stored_value(column, value) for row in batch
                              for column, value in zip(table.written, row, strict=True)]  # fmt: skip
                    server.rows(table.insert(len(batch)), *values)
                server.rows("COMMIT")
            finally:
                if not table.transactional:
                    server.rows("UNLOCK TABLES")


def _read(moments: Moments, table: Table, piece: Piece) -> tuple[list[Values], str, int]:
    """Return the primary's rows of a piece and the place in its binary log at which they are so."""
    server = moments.inside
    if table.transactional:
        file, offset = server.snapshot()
        rows = [tuple(row) for row in server.rows(table.values(piece))]
        server.let_go()
        return rows, file, offset
    found = moments.outside.rows(f"SELECT STRAIGHT_JOIN now.file, now.place, one.* FROM {NOW}"
                                 f" LEFT JOIN (SELECT 1 AS there, every.* FROM ({table.values(piece)}) AS every) AS one ON TRUE")  # fmt: skip
    return [tuple(row[3:]) for row in found if row[2] is not None], str(found[0][0]), int(found[0][1])


def batches(rows: Sequence[Values]) -> list[list[Values]]:
    """Cut rows into statements of bounded size."""
    found: list[list[Values]] = []
    size = 0
    for row in rows:
        here = sum(len(value or b"") for value in row)
        if not found or len(found[-1]) >= INSERT_ROWS_MAX or size + here > INSERT_BYTES_MAX:
            found.append([])
            size = 0
        found[-1].append(row)
        size += here
    return found
