"""One table as SQL: what identifies a row, what is compared of it, and the pieces it is walked in. Pure.

A row is compared by the MD5 of a text that no two different rows share: every column stands in it, exactly, NULL told
from '', boundaries unambiguous, and nothing depends on character sets, time zone or sql_mode (decision 0040).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import Bug

NUMBERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "year"})
TIMES = frozenset({"date", "datetime", "timestamp", "time"})
FLOATS = frozenset({"float", "double"})
BY_NUMBER = frozenset({"enum", "set", "bit"})
TEXTS = frozenset({"char", "varchar"})
BYTES = frozenset({"binary", "varbinary"})
LONG = frozenset({"tinytext", "text", "mediumtext", "longtext", "tinyblob", "blob", "mediumblob", "longblob",
                  "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon",
                  "geometrycollection"})  # fmt: skip
"""Hashed by themselves, so that a row's text stays far below max_allowed_packet, above which it would be NULL."""
KEYS = NUMBERS | TIMES | TEXTS | BYTES
"""Kinds whose order in an index is the order of their comparison with a literal."""
NUMBER, TIME = re.compile(rb"-?[0-9]{1,65}(\.[0-9]{1,38})?"), re.compile(rb"-?[0-9:. -]{1,40}")
ALL_ROWS = 2**64 - 1
"""A LIMIT makes the server work the inner query out first, so that every hash is computed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. `generated` ones cannot be written, and of those only `virtual` ones are not stored."""

    name: str
    kind: str
    charset: str | None = None
    nullable: bool = True
    generated: bool = False
    virtual: bool = False

    @property
    def quoted(self) -> str:
        return quoted(self.name)

    @property
    def exact(self) -> str:
        """Return SQL for all there is in the column: text for numbers and times, else the stored bytes."""
        if self.kind in FLOATS:
            return f"CAST({self.quoted} AS DOUBLE)"  # a FLOAT shows six digits of its own
        if self.kind in BY_NUMBER:
            return f"{self.quoted} + 0"
        if self.kind in NUMBERS | TIMES:
            return self.quoted
        return f"CAST({self.quoted} AS BINARY)"

    @property
    def token(self) -> str:
        """Return SQL for the column's part of a row's text, never NULL and never to be mistaken for two columns."""
        if self.kind in NUMBERS | TIMES | FLOATS | BY_NUMBER:
            text = self.exact
        elif self.kind in LONG:
            text = f"MD5({self.quoted})"
        else:
            text = f"CONCAT(LENGTH({self.exact}), ':', {self.exact})"
        return f"IFNULL({text}, 'N')" if self.nullable else text

    def literal(self, value: bytes) -> str:
        """Return a literal that compares with this column as the column's own values do."""
        if self.kind in BYTES:
            return f"x'{value.hex()}'"
        if self.kind in TEXTS:
            return f"_{identifier(self.charset or 'binary')} x'{value.hex()}'"
        if self.kind not in KEYS or (NUMBER if self.kind in NUMBERS else TIME).fullmatch(value) is None:
            raise Bug(f"a key column {self.name} of kind {self.kind} holds what no literal was made for")
        text = value.decode("ascii")
        return text if self.kind in NUMBERS else f"'{text}'"

    def shown(self, value: bytes | None) -> str:
        """Return a key's value for people."""
        if value is None:
            return "NULL"
        return f"0x{value.hex()}" if self.kind in BYTES else value.decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The index a table is walked along. `unique`: its columns name one row, and none of them is NULL."""

    name: str
    columns: tuple[Column, ...]
    unique: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows after one key and up to another; None: from the beginning, to the end."""

    after: tuple[bytes, ...] | None = None
    upto: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of the primary."""

    schema: str
    name: str
    engine: str
    columns: tuple[Column, ...]
    key: Key | None
    transactional: bool
    rows_estimated: int = 0

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def row_hash(self) -> str:
        """Return SQL for a row's MD5."""
        return f"MD5(CONCAT_WS(',', '', {', '.join(one.token for one in self.stored)}))"

    @property
    def stored(self) -> tuple[Column, ...]:
        """Return the columns that hold something."""
        return tuple(one for one in self.columns if not one.virtual)

    @property
    def written(self) -> tuple[Column, ...]:
        """Return the columns that hold something of their own: the server works out the others when these are."""
        return tuple(one for one in self.columns if not one.generated)

    def source(self, piece: Piece, *, forced: bool = True) -> str:
        """Return FROM and WHERE of a piece; `forced` along the key, which a DELETE does not take."""
        index = f" FORCE INDEX ({quoted(self.key.name)})" if self.key and forced else ""
        conditions = []
        if self.key is not None and piece.after is not None:
            conditions.append(_beyond(self.key.columns, piece.after, ">", ">"))
        if self.key is not None and piece.upto is not None:
            conditions.append(_beyond(self.key.columns, piece.upto, "<", "<="))
        return f"FROM {self.quoted}{index}" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")

    def bound(self, after: tuple[bytes, ...] | None, rows: int) -> str:
        """Return SQL for the key that ends a piece of about `rows` rows; it finds none when fewer are left."""
        if self.key is None:
            raise Bug(f"{self.shown} has no key to walk along")
        order = ", ".join(one.quoted for one in self.key.columns)
        return f"SELECT {self.keys} {self.source(Piece(after))} ORDER BY {order} LIMIT 1 OFFSET {max(0, rows - 1)}"

    @property
    def keys(self) -> str:
        """Return SQL for the key's columns, as bytes."""
        return ", ".join(f"CAST({one.exact} AS BINARY)" for one in (self.key.columns if self.key else ()))

    def digest(self, piece: Piece) -> str:
        """Return SQL for one row: how many rows, how many hashes, and the sums of both halves of the hashes.

        Sums do not depend on the order, and a row that is there twice counts twice.
        """
        return (
            "SELECT COUNT(*) AS row_count, COUNT(h) AS hash_count,"
            " SUM(CAST(CONV(LEFT(h, 16), 16, 10) AS UNSIGNED)) AS left_sum,"
            " SUM(CAST(CONV(RIGHT(h, 16), 16, 10) AS UNSIGNED)) AS right_sum"
            f" FROM (SELECT {self.row_hash} AS h {self.source(piece)} LIMIT {ALL_ROWS}) AS hashes"
        )

    def named_hashes(self, piece: Piece, limit: int) -> str:
        """Return SQL for the hash of every row with its key's columns, for a look at what differs."""
        names = [f"CAST({one.exact} AS BINARY) AS k{number}" for number, one in enumerate(self.name_columns)]
        return f"SELECT {', '.join([f'{self.row_hash} AS h', *names])} {self.source(piece)} LIMIT {limit}"

    def column_hashes(self, row: tuple[bytes, ...]) -> str:
        """Return SQL for one row: a hash of every stored column, for the names of those that differ."""
        parts = ", ".join(f"MD5({one.token})" for one in self.stored)
        named = " AND ".join(
            f"{one.quoted} = {one.literal(value)}" for one, value in zip(self.name_columns, row, strict=True)
        )
        return f"SELECT {parts} FROM {self.quoted} WHERE {named} LIMIT 1"

    def values(self, piece: Piece) -> str:
        """Return SQL for the exact content of every column that is written."""
        parts = ", ".join(f"CAST({one.exact} AS BINARY) AS c{number}" for number, one in enumerate(self.written))
        return f"SELECT {parts} {self.source(piece)}"

    @property
    def name_columns(self) -> tuple[Column, ...]:
        """Return what names a row to people: the key's columns where they name one row, else nothing."""
        return self.key.columns if self.key is not None and self.key.unique else ()

    def insert(self, rows: int) -> str:
        """Return SQL that puts `rows` rows back, with a place for every value."""
        names = ", ".join(one.quoted for one in self.written)
        row = f"({', '.join(['%s'] * len(self.written))})"
        return f"INSERT INTO {self.quoted} ({names}) VALUES {', '.join([row] * rows)}"

    def stored_value(self, column: Column, value: bytes | None) -> bytes | str | int | None:
        """Return a value as `insert` takes it: by number or as text where the server reads one, else the bytes."""
        if value is None or column.kind not in NUMBERS | TIMES | FLOATS | BY_NUMBER:
            return value
        return int(value) if column.kind in BY_NUMBER else value.decode("ascii")

    def shown_piece(self, piece: Piece) -> str:
        """Return a piece for people: keys only."""
        if self.key is None:
            return "the whole table"
        after, upto = (self.shown_key(one) if one else None for one in (piece.after, piece.upto))
        return (
            f"{after or 'the beginning'} < ({', '.join(one.name for one in self.key.columns)}) <= {upto or 'the end'}"
        )

    def shown_key(self, row: tuple[bytes | None, ...]) -> str:
        """Return one key for people."""
        columns = self.key.columns if self.key else ()
        return "(" + ", ".join(one.shown(value) for one, value in zip(columns, row, strict=False)) + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPart:
    """One line of information_schema.STATISTICS."""

    index: str
    unique: bool
    column: str
    whole: bool
    """Not only the first bytes of the column."""
    kind: str


def choose_key(columns: Sequence[Column], parts: Sequence[IndexPart]) -> Key | None:
    """Return the index to walk along: one that names every row if there is one, else any that cuts the table."""
    by_name = {one.name: one for one in columns}
    found: list[Key] = []
    for index in dict.fromkeys(part.index for part in parts if part.kind == "BTREE"):
        of_index = [part for part in parts if part.index == index]
        usable = [part for part in of_index if _is_usable(by_name.get(part.column), part)]
        prefix = usable if usable == of_index else of_index[: _leading(of_index, usable)]
        if prefix:
            key_columns = tuple(by_name[part.column] for part in prefix)
            found.append(Key(name=index, columns=key_columns, unique=of_index[0].unique and prefix == of_index))
    ranked = sorted(found, key=lambda key: (not key.unique, key.name != "PRIMARY", -len(key.columns)))
    return ranked[0] if ranked else None


def _is_usable(column: Column | None, part: IndexPart) -> bool:
    return column is not None and part.whole and not column.nullable and column.kind in KEYS


def _leading(of_index: Sequence[IndexPart], usable: Sequence[IndexPart]) -> int:
    return next((number for number, part in enumerate(of_index) if part not in usable), len(of_index))


def _beyond(columns: Sequence[Column], values: Sequence[bytes], strictly: str, last: str) -> str:
    """Return `(a, b) > (x, y)` spelled out, so that the server walks the index for it."""
    choices = []
    for number, column in enumerate(columns):
        equal = [f"{one.quoted} = {one.literal(value)}" for one, value in zip(columns[:number], values, strict=False)]
        sign = last if number == len(columns) - 1 else strictly
        choices.append(" AND ".join([*equal, f"{column.quoted} {sign} {column.literal(values[number])}"]))
    return "(" + " OR ".join(f"({one})" for one in choices) + ")"


def quoted(name: str) -> str:
    """Return a name as SQL."""
    return f"`{name.replace('`', '``')}`"


def identifier(name: str) -> str:
    """Return a character set's name. Raises Bug for what is none."""
    if re.fullmatch(r"[a-z0-9_]{1,32}", name) is None:
        raise Bug(f"{name!r} is not the name of a character set")
    return name


def definition(text: str) -> str:
    """Return a table's definition without its next AUTO_INCREMENT value, which differs by right."""
    head, bracket, options = text.rpartition("\n)")
    return head + bracket + re.sub(r" AUTO_INCREMENT=\d+", "", options)
