"""What a comparison found, as values: no data of a patient, only names of tables and keys of rows. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Row = tuple[bytes | None, ...]
"""A row's hash, then what names it."""


class Verdict(StrEnum):
    """What is known of a table, or of everything."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


class How(StrEnum):
    """How a table was brought to one position."""

    SNAPSHOT = "snapshot"
    """Inside snapshots of all nodes at one position."""
    STANDSTILL = "standstill"
    """Its engine has no snapshot: each piece was read in one statement, the standbys standing still at its position."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A piece of a table in one line. `hashes` below `rows` means that a row was too large to be hashed."""

    rows: int
    hashes: int
    left: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFound:
    """One row that differs, by its key; `columns` only when they were asked for."""

    node: str
    what: str
    key: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFound:
    """One table. `nodes` are those that differ from the primary."""

    table: str
    engine: str
    verdict: Verdict
    how: How = How.SNAPSHOT
    rows: int = 0
    pieces: int = 0
    nodes: tuple[str, ...] = ()
    why: str = ""
    ranges: tuple[str, ...] = ()
    examples: tuple[RowFound, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole comparison."""

    cluster: str
    epoch: int
    primary: str
    nodes: tuple[str, ...]
    started: str
    seconds: float
    halted_ms_max: float
    """The longest that a standby stood still."""
    moments: int
    """How often all nodes were brought to one position."""
    tables: tuple[TableFound, ...]
    undecided: tuple[str, ...] = ()
    """What could not be compared at all, each a sentence."""
    by_order: tuple[str, ...] = ()
    """Standbys that stay behind or stand still by order, each a sentence: nothing is wrong with them."""

    @property
    def verdict(self) -> Verdict:
        verdicts = {one.verdict for one in self.tables}
        if Verdict.DIFFERENT in verdicts:
            return Verdict.DIFFERENT
        return Verdict.UNDECIDED if self.undecided or Verdict.UNDECIDED in verdicts else Verdict.EQUAL

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.tables)

    def having(self, verdict: Verdict) -> tuple[TableFound, ...]:
        """Return the tables with this verdict."""
        return tuple(one for one in self.tables if one.verdict is verdict)


def rows_differing(primary: Sequence[Row], standby: Sequence[Row]) -> list[tuple[str, Row]]:
    """Return what differs between two readings of one piece: ('missing' | 'extra' | 'changed', row without its hash).

    Rows that nothing names are told by their hash, as often as they are there too seldom or too often.
    """
    if any(len(row) > 1 for row in (*primary, *standby)):
        return _by_key({row[1:]: row[0] for row in primary}, {row[1:]: row[0] for row in standby})
    here, there = Counter(row[0] for row in primary), Counter(row[0] for row in standby)
    missing = [("missing", (one,)) for one in sorted((here - there).elements(), key=bytes_of)]
    return [*missing, *(("extra", (one,)) for one in sorted((there - here).elements(), key=bytes_of))]


def _by_key(primary: Mapping[Row, bytes | None], standby: Mapping[Row, bytes | None]) -> list[tuple[str, Row]]:
    found: list[tuple[str, Row]] = []
    for key, value in primary.items():
        if key not in standby:
            found.append(("missing", key))
        elif standby[key] != value:
            found.append(("changed", key))
    return [*found, *(("extra", key) for key in standby if key not in primary)]


def bytes_of(value: bytes | None) -> bytes:
    """Return bytes that can be sorted."""
    return value or b""


def next_rows(rows: int, took_ms: float, target_ms: float, *, least: int, most: int) -> int:
    """Return how many rows the next piece should have so that it takes about `target_ms`; it at most doubles."""
    wanted = rows * target_ms / max(took_ms, 1.0)
    return int(max(least, min(most, rows * 2, wanted)))


def lacking(lists: Mapping[str, frozenset[str]], primary: str) -> list[TableFound]:
    """Return the tables that not every node has."""
    found = []
    for table in sorted(frozenset().union(*lists.values())):
        without = tuple(name for name, tables in lists.items() if table not in tables)
        if primary in without:
            having = tuple(name for name in lists if name not in without)
            found.append(TableFound(table=table, engine="", verdict=Verdict.DIFFERENT, nodes=having,
                                    why=f"the primary has no such table, {', '.join(having)} has"))  # fmt: skip
        elif without:
            found.append(TableFound(table=table, engine="", verdict=Verdict.DIFFERENT, nodes=without,
                                    why=f"{', '.join(without)} has no such table"))  # fmt: skip
    return found
