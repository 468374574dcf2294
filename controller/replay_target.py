"""One table of the primary as a replay sees it: rows fetched to be compared letter by letter, and written back exactly.

An ordinary client's connection, in UTC and without strictness: what was stored before must be storable again, and every
row that was written is read back and compared. What a table would do by itself (triggers) must not happen twice.
"""

import ipaddress
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.converters import encoders

from cluster import tls
from cluster.errors import BadInput, Refused, Unreachable
from cluster.mariadb import REPLAYED
from cluster.settings import Node, Secrets, Settings
from controller.replaying import Cell, Cells
from healthcheck.rescue_lines import Json, uncoded
from healthcheck.seed_link import is_loopback

CALL_SECONDS = 30
SAVEPOINT = "oscar_ha_row"
SQL_MODE = "NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION"
FLOATS, BIT = frozenset({"float", "double"}), "bit"
REFUSES_ROW = frozenset({1048, 1062, 1216, 1217, 1264, 1292, 1366, 1406, 1451, 1452, 3819, 4025})
_AS_TEXT = {"uuid": lambda raw: str(uuid.UUID(bytes=raw)), "inet6": lambda raw: str(ipaddress.IPv6Address(raw)),
          "inet4": lambda raw: str(ipaddress.IPv4Address(raw))}  # fmt: skip


class RowRefused(Exception):
    """The database does not take a row: a key that another row has, a parent that is not there."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the primary's table."""

    name: str
    type: str
    text: bool
    computed: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table of the primary."""

    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]

    @property
    def quoted(self) -> str:
        database, table = self.name.split(".", 1)
        return f"{_name(database)}.{_name(table)}"

    def cells(self, row: Mapping[str, Json]) -> dict[str, Cell]:
        """Return a rescued row as the database would say it, without what it computes itself. Raises RowRefused."""
        missing = [name for name in row if name not in self.columns]
        if missing:
            raise RowRefused(f"{self.name} has no column {', '.join(missing)}")
        return {
            name: self._cell(self.columns[name], value)
            for name, value in row.items()
            if not self.columns[name].computed
        }

    def _cell(self, column: Column, value: Json) -> Cell:
        plain = uncoded(value)
        if isinstance(plain, bytes) and column.type in _AS_TEXT:
            return _AS_TEXT[column.type](plain)
        if plain is None or isinstance(plain, str | bytes):
            return plain
        return float(plain) if column.type in FLOATS else str(plain)

    def said(self, column: Column, value: Any) -> Cell:
        """Return what the database says of a value, in the form of `cells`."""
        if value is None:
            return None
        if column.type in FLOATS:
            return float(value)
        return str(int.from_bytes(value, "big")) if column.type == BIT else value

    def as_condition(self, cells: Cells) -> tuple[str, list[Any]]:
        """Return the condition for the row of a key; without a key for a row with all these values."""
        if self.key:
            return " AND ".join(f"{_name(name)} = %s" for name in self.key), [
                self.written(name, cells.get(name)) for name in self.key
            ]
        parts = []
        for name in cells:
            column = self.columns[name]
            text = (
                f"CONVERT({_name(name)} USING utf8mb4) COLLATE utf8mb4_nopad_bin" if column.text else _fetched(column)
            )
            parts.append(f"{text} <=> %s")
        return " AND ".join(parts), [self.written(name, cell) for name, cell in cells.items()]

    def written(self, name: str, cell: Cell) -> Any:
        """Return a cell as it goes into a statement."""
        return int(cell) if self.columns[name].type == BIT and isinstance(cell, str) else cell


class Target:
    """The primary. Use as a context manager."""

    def __init__(self, connection: "Connection[Any]") -> None:
        self._connection = connection
        self._tables: dict[str, TargetTable] = {}

    @classmethod
    def connect(cls, node: Node, settings: Settings, secrets: Secrets) -> "Target":
        """Connect. Raises BadInput where charts would go over the network in clear, Unreachable."""
        if settings.tls is None and not settings.rescue.over_network_in_clear and not is_loopback(node.host):
            raise BadInput(f"{node.host}: charts would go over the network in clear",
                           hint="give the cluster certificates in [tls], or set rescue.over_network_in_clear")  # fmt: skip
        try:
            connection = pymysql.connect(
                host=node.host, port=node.port, user=settings.accounts.admin_user, password=secrets.admin, charset="utf8mb4",
                autocommit=True, connect_timeout=CALL_SECONDS, read_timeout=CALL_SECONDS, write_timeout=CALL_SECONDS,
                conv=encoders,  # type: ignore[arg-type]  # the stubs know of decoders only
                ssl=tls.client_context(settings.tls) if settings.tls else None,
            )  # fmt: skip
        except (pymysql.MySQLError, OSError) as error:
            raise Unreachable(f"{node.name} at {node.host}:{node.port}: {error}") from error
        target = cls(connection)
        target.run("SET SESSION time_zone = '+00:00', sql_mode = %s", SQL_MODE)
        return target

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection._force_close()  # type: ignore[attr-defined]  # a transaction that is open is rolled back

    def run(self, statement: str, *values: Any) -> int:
        """Run a statement; return how many rows it changed. Raises RowRefused, Unreachable."""
        return self._do(statement, values)[1]

    def rows(self, query: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._do(query, values)[0]

    def _do(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[tuple[Any, ...]], int]:
        try:
            with self._connection.cursor() as cursor:
                changed = cursor.execute(statement, values or None)
                return cursor.fetchall(), changed
        except pymysql.MySQLError as error:
            number = error.args[0] if error.args else 0
            said = str(error.args[1]) if len(error.args) > 1 else type(error).__name__
            if number in REFUSES_ROW:
                raise RowRefused(f"the database refuses it: error {number}") from error
            raise Unreachable(
                f"the primary: {number}: {said}", hint="run it again: what is done is not done twice"
            ) from error

    # -- transactions ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the table that remembers what was replayed, if it is missing. Raises Refused on a server that is closed."""
        self.require_open()
        self.run(REPLAYED)

    def begin(self) -> None:
        """Begin a transaction, if the server is still open."""
        self.run("START TRANSACTION")
        self.require_open()

    def require_open(self) -> None:
        """Raise Refused unless clients may write here: our account could, where they may not."""
        if str(self.rows("SELECT @@global.read_only")[0][0]) != "0":
            raise Refused("the server is read-only: it is no longer the primary", hint="see: oscar-ha status")

    def commit(self) -> None:
        self.run("COMMIT")

    def rollback(self) -> None:
        self.run("ROLLBACK")

    def mark(self, rescue: str, number: int) -> None:
        """Remember, in the transaction itself, that a line is done."""
        self.run("INSERT IGNORE INTO oscar_ha.replayed VALUES (%s, %s, UTC_TIMESTAMP(3))", rescue, number)

    def is_marked(self, rescue: str, number: int) -> bool:
        """Return whether a line was done, also by somebody who died before he could write it down."""
        return bool(self.rows("SELECT 1 FROM oscar_ha.replayed WHERE rescue = %s AND number = %s", rescue, number))

    # -- tables and rows --------------------------------------------------------------------------------------------------

    def table(self, name: str) -> TargetTable:
        """Return a table. Raises RowRefused when nothing may be applied to it."""
        if name not in self._tables:
            self._tables[name] = self._asked(name)
        return self._tables[name]

    def _asked(self, name: str) -> TargetTable:
        database, table = name.split(".", 1)
        where = "WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
        columns = self.rows("SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_SET_NAME, IS_GENERATED FROM information_schema.COLUMNS"
                            f" {where} ORDER BY ORDINAL_POSITION", database, table)  # fmt: skip
        if not columns:
            raise RowRefused(f"the primary has no table {name}")
        triggers = self.rows("SELECT TRIGGER_NAME FROM information_schema.TRIGGERS"
                             " WHERE EVENT_OBJECT_SCHEMA = %s AND EVENT_OBJECT_TABLE = %s", database, table)  # fmt: skip
        if triggers:
            raise RowRefused(f"{name} has triggers: what they did is rescued as rows, and would happen twice")
        key = self.rows(f"SELECT COLUMN_NAME FROM information_schema.STATISTICS {where} AND INDEX_NAME = 'PRIMARY'"
                        " ORDER BY SEQ_IN_INDEX", database, table)  # fmt: skip
        known = {
            str(one[0]): Column(str(one[0]), str(one[1]).lower(), one[2] is not None, one[3] == "ALWAYS")
            for one in columns
        }
        return TargetTable(name, known, tuple(str(one[0]) for one in key))

    def fetch(self, table: TargetTable, cells: Cells, *, lock: bool) -> Cells | None:
        """Return the row with the key of `cells`; of a table without a key one with just these values; or None."""
        names = [name for name, column in table.columns.items() if not column.computed]
        condition, values = table.as_condition(cells)
        expressions = ", ".join(_fetched(table.columns[name]) for name in names)
        rows = self.rows(f"SELECT {expressions} FROM {table.quoted} WHERE {condition} LIMIT 1"
                         f"{' FOR UPDATE' if lock else ''}", *values)  # fmt: skip
        if not rows:
            return None
        return {name: table.said(table.columns[name], value) for name, value in zip(names, rows[0], strict=True)}

    def insert(self, table: TargetTable, cells: Cells) -> None:
        """Insert a row."""
        names, marks = ", ".join(_name(name) for name in cells), ", ".join(["%s"] * len(cells))
        self.run(f"INSERT INTO {table.quoted} ({names}) VALUES ({marks})", *_values(table, cells))

    def update(self, table: TargetTable, there: Cells, cells: Cells) -> None:
        """Make the row that is there into another one."""
        condition, values = table.as_condition(there)
        changes = ", ".join(f"{_name(name)} = %s" for name in cells)
        self.run(f"UPDATE {table.quoted} SET {changes} WHERE {condition} LIMIT 1", *_values(table, cells), *values)

    def delete(self, table: TargetTable, there: Cells) -> None:
        """Delete the row that is there."""
        condition, values = table.as_condition(there)
        self.run(f"DELETE FROM {table.quoted} WHERE {condition} LIMIT 1", *values)


def _values(table: TargetTable, cells: Cells) -> list[Any]:
    return [table.written(name, cell) for name, cell in cells.items()]


def _fetched(column: Column) -> str:
    """A FLOAT is shown with six digits: as a DOUBLE it is told exactly."""
    return f"CAST({_name(column.name)} AS DOUBLE)" if column.type == "float" else _name(column.name)


def _name(name: str) -> str:
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"
