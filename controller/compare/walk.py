"""The walk through all tables: piece by piece, each about as long as asked for, with pauses, and what differs named."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cluster import clock
from cluster.errors import OscarHaError
from controller.compare import definitions
from controller.compare.definitions import Definition, Definitions
from controller.compare.findings import (
    Digest,
    How,
    Row,
    RowFound,
    TableFound,
    Verdict,
    lacking,
    next_rows,
    rows_differing,
)
from controller.compare.moment import ROWS_NAMED_MAX, Moments
from controller.compare.server import TableChanged, TooLong
from controller.compare.table import Piece, Table

ROWS_FIRST, ROWS_LEAST, ROWS_MOST = 1_000, 50, 50_000
LOOKS_MAX = 4
"""How often something that differs without a snapshot, or a definition, is looked at before it is believed."""
LOOK_PAUSE_SECONDS = 0.1
RANGES_MAX = 20
COMPARED_TYPES = frozenset({"BASE TABLE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of a comparison."""

    databases: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    piece_ms: float = 200.0
    load_percent: int = 50
    """The share of the time in which the nodes are read; the rest is pause."""
    rows_named: int = 20
    columns: bool = False
    """Name the columns that differ, never their content."""

    def includes(self, schema: str, name: str) -> bool:
        """Return whether a table is asked for."""
        if self.tables:
            return f"{schema}.{name}" in self.tables
        return not self.databases or schema in self.databases

    def covers(self, one: Definition) -> bool:
        """Return whether something that is no table is asked for: with tables only their triggers are."""
        if self.tables:
            return bool(one.table) and f"{one.schema}.{one.table}" in self.tables
        return not self.databases or one.schema in self.databases


@dataclass(slots=True)
class Progress:
    """How far a walk is; `changed` is called whenever it moves."""

    changed: Callable[["Progress"], None] = lambda _: None
    table: str = ""
    tables_done: int = 0
    tables_total: int = 0
    rows: int = 0
    rows_estimated: int = 0


@dataclass(slots=True)
class _Walked:
    rows: int = 0
    pieces: int = 0
    ranges: list[str] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    examples: list[RowFound] = field(default_factory=list)
    why: str = ""

    def verdict(self) -> Verdict:
        if self.ranges:
            return Verdict.DIFFERENT
        return Verdict.UNDECIDED if self.why else Verdict.EQUAL


class Walk:
    """Compares tables in moments of one position."""

    def __init__(self, moments: Moments, wanted: Wanted, progress: Progress) -> None:
        self.moments, self.wanted, self.progress = moments, wanted, progress
        self._rows = ROWS_FIRST

    async def everything(self) -> tuple[TableFound, ...]:
        """Compare every table that is asked for."""
        lists, others = await self._lists()
        found = lacking(lists, "")
        found = [replace(one, nodes=tuple(name for name in one.nodes if name)) for one in found]
        lack = {one.table for one in found}
        common = [name for name in await self._named() if f"{name[0]}.{name[1]}" not in lack]
        self.progress.tables_total = len(common)
        for schema, name in common:
            self.progress.table = f"{schema}.{name}"
            self.progress.changed(self.progress)
            found.append(await self.table(schema, name))
            self.progress.tables_done += 1
            self.progress.changed(self.progress)
        return (*found, *others, *await self._others())

    async def _named(self) -> list[tuple[str, str]]:
        tables = await asyncio.to_thread(self.moments.outside.tables)
        return sorted(one for one, kind in tables.items() if self.wanted.includes(*one) and kind in COMPARED_TYPES)

    async def _lists(self) -> tuple[dict[str, frozenset[str]], list[TableFound]]:
        """Return node -> tables, once all nodes agree or do not after several looks; and what cannot be compared."""
        lists: dict[str, frozenset[str]] = {}
        for look in range(LOOKS_MAX):
            found = await self.moments.ask(lambda server: server.tables())
            lists = {
                node: frozenset(f"{one[0]}.{one[1]}" for one in tables if self.wanted.includes(*one))
                for node, tables in found.items()
            }
            others = [f"{one[0]}.{one[1]}" for one, kind in found[""].items()
                      if self.wanted.includes(*one) and kind not in COMPARED_TYPES]  # fmt: skip
            if len(set(lists.values())) == 1:
                break
            await asyncio.sleep(LOOK_PAUSE_SECONDS * 2**look)
        undecided = [TableFound(table=one, engine="", verdict=Verdict.UNDECIDED,
                                why="it is a sequence or keeps old versions: not compared") for one in sorted(others)]  # fmt: skip
        return lists, undecided

    async def _others(self) -> list[TableFound]:
        """Return what is defined otherwise besides the tables. A change on its way gets the time to arrive."""
        nodes: dict[str, Definitions] = {}
        found: dict[Definition, frozenset[str]] | None = None
        for look in range(LOOKS_MAX):
            nodes = {node: self._wanted(all_of_it) for node, all_of_it in (
                await self.moments.ask(lambda server: server.definitions())).items()}  # fmt: skip
            now = definitions.differing(nodes)
            found = now if found is None else definitions.seen_again(found, now)
            if not found:
                break
            await asyncio.sleep(LOOK_PAUSE_SECONDS * 2**look)
        return definitions.told(found or {}, nodes)

    def _wanted(self, found: Definitions) -> Definitions:
        """Return what belongs to what is asked for: of one table only its triggers."""
        return {one: text for one, text in found.items() if self.wanted.covers(one)}

    # -- one table --------------------------------------------------------------------------------------------------

    async def table(self, schema: str, name: str) -> TableFound:
        """Compare one table; begin anew when it is changed meanwhile."""
        last: OscarHaError | None = None
        for look in range(LOOKS_MAX):
            try:
                differing = await self._definitions(schema, name)
                if differing is not None:
                    return differing
                table = await asyncio.to_thread(self.moments.outside.describe, schema, name)
                return await self._walk(table)
            except TableChanged as error:
                last = error
                await asyncio.sleep(LOOK_PAUSE_SECONDS * 2**look)
                await self.moments.renew()
        return TableFound(table=f"{schema}.{name}", engine="", verdict=Verdict.UNDECIDED, why=str(last))

    async def _definitions(self, schema: str, name: str) -> TableFound | None:
        """Return how the definitions differ, None when they do not. A change on its way gets the time to arrive."""
        nodes: tuple[str, ...] = ()
        for look in range(LOOKS_MAX):
            found = await self.moments.ask(lambda server: server.definition(schema, name))
            nodes = tuple(node for node, text in found.items() if text != found[""])
            if not nodes:
                return None
            await asyncio.sleep(LOOK_PAUSE_SECONDS * 2**look)
        why = f"its definition differs on {', '.join(nodes)}: compare SHOW CREATE TABLE"
        return TableFound(table=f"{schema}.{name}", engine="", verdict=Verdict.DIFFERENT, nodes=nodes, why=why,
                          ranges=("the definition",))  # fmt: skip

    async def _walk(self, table: Table) -> TableFound:
        walked, after = _Walked(), None
        self.progress.rows_estimated += table.rows_estimated
        rows_before = self.progress.rows
        try:
            while True:
                piece = await self._next_piece(table, after)
                rows = await self._compare(table, piece, walked)
                self.progress.rows += rows
                self.progress.changed(self.progress)
                if piece.upto is None:
                    break
                after = piece.upto
        except TableChanged:
            self.progress.rows = rows_before
            raise
        except TooLong:
            walked.why = "it has no key to cut it by, and is too large for one statement: give --statement-seconds"
        how = How.SNAPSHOT if table.transactional else How.STANDSTILL
        return TableFound(
            table=table.shown, engine=table.engine, verdict=walked.verdict(), how=how, rows=walked.rows,
            pieces=walked.pieces, nodes=tuple(sorted(walked.nodes)), why=walked.why, ranges=tuple(walked.ranges),
            examples=tuple(walked.examples),
        )  # fmt: skip

    async def _next_piece(self, table: Table, after: tuple[bytes, ...] | None) -> Piece:
        if table.transactional:
            await self.moments.keep_fresh()
        if table.key is None:
            return Piece()
        server = self.moments.inside if table.transactional else self.moments.outside
        while True:
            try:
                return Piece(after, await asyncio.to_thread(server.bound, table, after, self._rows))
            except TooLong:
                if self._rows == ROWS_LEAST:
                    raise
                self._rows = max(ROWS_LEAST, self._rows // 10)

    async def _compare(self, table: Table, piece: Piece, walked: _Walked) -> int:
        """Compare one piece; return how many rows it has."""
        started = clock.now()
        ours, differing = await self._differing(table, piece)
        walked.rows += ours.rows
        walked.pieces += 1
        if ours.hashes != ours.rows:
            walked.why = f"a row in {table.shown_piece(piece)} is larger than max_allowed_packet: it cannot be hashed"
        if differing:
            await self._name(table, piece, differing, walked)
        took_ms = clock.ms_between(started, clock.now())
        if table.key is not None and piece.upto is not None:
            # A standstill costs the same for one row as for a thousand: smaller pieces would only make more of them.
            self._rows = next_rows(
                self._rows, self.moments.read_ms, self.wanted.piece_ms, least=ROWS_LEAST, most=ROWS_MOST
            )
        await asyncio.sleep(took_ms / 1000 * (100 - self.wanted.load_percent) / self.wanted.load_percent)
        return ours.rows

    async def _differing(self, table: Table, piece: Piece) -> tuple[Digest, list[str]]:
        """Return the primary's digest, and who differs. Without a snapshot only what differs every time counts."""
        nodes: list[str] = []
        for look in range(1 if table.transactional else LOOKS_MAX):
            if look:
                await asyncio.sleep(LOOK_PAUSE_SECONDS * 2**look)
            found = await self.moments.digests(table, piece)
            ours = found.pop("")
            nodes = [node for node, digest in found.items() if digest != ours]
            if not nodes:
                break
        return ours, nodes

    # -- naming what differs ----------------------------------------------------------------------------------------

    async def _name(self, table: Table, piece: Piece, nodes: Sequence[str], walked: _Walked) -> None:
        """Look at the rows of a piece that differs: within the snapshot they are still those that were compared."""
        walked.nodes.update(nodes)
        if len(walked.ranges) < RANGES_MAX:
            walked.ranges.append(table.shown_piece(piece))
        rows = await self.moments.hashes(table, piece)
        ours = rows.pop("")
        if len(ours) >= ROWS_NAMED_MAX:
            walked.why = f"only the first {ROWS_NAMED_MAX} rows of a piece are looked at one by one"
        for node in nodes:
            for what, row in rows_differing(ours, rows.get(node, [])):
                if len(walked.examples) >= self.wanted.rows_named:
                    walked.why = walked.why or f"only the first {self.wanted.rows_named} rows are named"
                    return
                columns = await self._columns(table, node, row) if what == "changed" and self.wanted.columns else ()
                walked.examples.append(RowFound(node=node, what=what, key=_shown(table, row), columns=columns))

    async def _columns(self, table: Table, node: str, row: Row) -> tuple[str, ...]:
        """Return the names of the columns that differ in one row."""
        key = tuple(value or b"" for value in row)
        inside = table.transactional
        ours = self.moments.inside if inside else self.moments.outside
        standby = self.moments.standbys[node]
        theirs = standby.inside if inside else standby.outside
        both = await asyncio.gather(*(asyncio.to_thread(one.column_hashes, table, key) for one in (ours, theirs)))
        names = [column.name for column in table.stored]
        return tuple(name for name, one, other in zip(names, *both, strict=False) if one != other)


def _shown(table: Table, row: Row) -> str:
    if table.name_columns:
        return table.shown_key(row)
    return f"a row with the hash {(row[0] or b'').decode('ascii')}"
