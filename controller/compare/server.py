"""One node's database as a comparison reads it: one session, every statement bounded, nothing ever written.

Calls block: run them in threads. The session's own settings decide nothing that is compared (decision 0040); on the
primary the server itself is told that this session only reads.
"""

import ssl
from collections.abc import Sequence
from typing import Any

import pymysql
from pymysql.connections import Connection

from cluster import tls
from cluster.connection import StrictConnection
from cluster.errors import BadInput, OscarHaError, Refused, Unreachable
from cluster.position import Position
from cluster.settings import Node, Secrets, Settings
from controller.compare.definitions import SOURCES, Definition
from controller.compare.findings import Digest, Row
from controller.compare.table import Column, IndexPart, Piece, Table, choose_key, definition

CONNECT_SECONDS = 5
ANSWER_GRACE_SECONDS = 5
LOCK_WAIT_SECONDS = 5
SYSTEM_SCHEMAS = ("mysql", "information_schema", "performance_schema", "sys")
TRANSACTIONAL = frozenset({"InnoDB"})
TOO_LONG, DEFINITION_CHANGED = 1969, 1412
NO_SUCH_TABLE = frozenset({1146, 1049, 1054, 1176})
"""Also a column or an index that is gone: the table was changed since it was looked at."""
LOGIN_REFUSED = frozenset({1045, 1698, 4151})
SESSION = (
    "SET SESSION time_zone = '+00:00', sql_mode = '', tx_isolation = 'REPEATABLE-READ',"
    " max_statement_time = {seconds}, lock_wait_timeout = {lock}, group_concat_max_len = 1048576"
)
NOW = (
    "(SELECT MAX(IF(VARIABLE_NAME = 'BINLOG_SNAPSHOT_FILE', VARIABLE_VALUE, NULL)) AS file,"
    " MAX(IF(VARIABLE_NAME = 'BINLOG_SNAPSHOT_POSITION', VARIABLE_VALUE, NULL)) AS place"
    " FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME LIKE 'BINLOG_SNAPSHOT_%') AS now"
)
"""Where the binary log ends while the statement holds its tables: nothing writes to them meanwhile."""


class TableChanged(OscarHaError):
    """The table is not what it was when it was looked at: look again."""

    retryable = True


class TooLong(OscarHaError):
    """A statement reached its time limit: ask for less."""


class Server:
    """One session; `close` it."""

    def __init__(self, node: Node, settings: Settings, secrets: Secrets, *, statement_seconds: int) -> None:
        self.node = node
        self._connection = _connect(node, settings, secrets, statement_seconds + ANSWER_GRACE_SECONDS)
        self.rows(SESSION.format(seconds=int(statement_seconds), lock=LOCK_WAIT_SECONDS))

    def close(self) -> None:
        """Close the socket without a farewell: the server may be frozen."""
        self._connection._force_close()  # type: ignore[attr-defined]  # close() would send a packet first

    # -- moments ----------------------------------------------------------------------------------------------------

    def read_only(self) -> None:
        """Have the server refuse whatever this session would write."""
        self.rows("SET SESSION TRANSACTION READ ONLY")

    def snapshot(self) -> tuple[str, int]:
        """Let go of the old snapshot, take one of this moment; return the place in the binary log it stands at."""
        self.rows("ROLLBACK")
        self.rows("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        found = {str(name).lower(): value for name, value in self.rows("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'")}
        return str(found["binlog_snapshot_file"]), int(found["binlog_snapshot_position"])

    def let_go(self) -> None:
        """Let go of the snapshot, so that old row versions can be purged."""
        self.rows("ROLLBACK")

    def applied(self) -> Position:
        """Return what a standby has applied."""
        return Position.parse(str(self.rows("SELECT @@global.gtid_slave_pos")[0][0] or ""))

    def position_at(self, file: str, offset: int) -> str:
        """Return the position at a place of this server's binary log."""
        (value,) = self.rows("SELECT BINLOG_GTID_POS(%s, %s)", file, offset)[0]
        if value is None:
            raise Unreachable(f"{self.node.name} cannot say which position {file}:{offset} is")
        return str(value)

    def keeps_waiting(self) -> bool:
        """Return whether somebody who changes a table waits for a reader, perhaps for us."""
        query = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'Waiting for table metadata lock'"
        return bool(self.rows(query)[0][0])

    # -- tables -----------------------------------------------------------------------------------------------------

    def tables(self) -> dict[tuple[str, str], str]:
        """Return every table that is not the server's own, and its type."""
        places = ", ".join(["%s"] * len(SYSTEM_SCHEMAS))
        found = self.rows(
            "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES"
            f" WHERE TABLE_TYPE <> 'VIEW' AND TABLE_SCHEMA NOT IN ({places})",
            *SYSTEM_SCHEMAS,
        )
        return {(str(schema), str(name)): str(kind) for schema, name, kind in found}

    def definition(self, schema: str, name: str) -> str:
        """Return how a table is made, without its next AUTO_INCREMENT value."""
        quoted = f"`{schema.replace('`', '``')}`.`{name.replace('`', '``')}`"
        return definition(str(self.rows(f"SHOW CREATE TABLE {quoted}")[0][1]))

    def definitions(self) -> dict[Definition, str]:
        """Return the hash of everything that is defined besides tables and is not the server's own."""
        return {
            Definition(kind=str(kind), schema=str(schema), name=str(name), table=str(table)): str(hashed)
            for source in SOURCES
            for kind, schema, name, table, hashed in self.rows(source.query(len(SYSTEM_SCHEMAS)), *SYSTEM_SCHEMAS)
        }

    def describe(self, schema: str, name: str) -> Table:
        """Return a table as it is now."""
        columns = [
            Column(name=str(column), kind=str(kind).lower(), charset=charset, nullable=nullable == "YES",
                   generated="GENERATED" in str(extra).upper(), virtual="VIRTUAL" in str(extra).upper())
            for column, kind, charset, nullable, extra in self.rows(
                "SELECT COLUMN_NAME, DATA_TYPE, CHARACTER_SET_NAME, IS_NULLABLE, EXTRA FROM information_schema.COLUMNS"
                " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION", schema, name)
        ]  # fmt: skip
        parts = [
            IndexPart(index=str(index), unique=not loose, column=str(column), whole=part is None, kind=str(kind))
            for index, loose, column, part, kind in self.rows(
                "SELECT INDEX_NAME, NON_UNIQUE, COLUMN_NAME, SUB_PART, INDEX_TYPE FROM information_schema.STATISTICS"
                " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY INDEX_NAME, SEQ_IN_INDEX", schema, name)
        ]  # fmt: skip
        kept = self.rows("SELECT ENGINE, IFNULL(TABLE_ROWS, 0) FROM information_schema.TABLES"
                         " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", schema, name)  # fmt: skip
        if not columns or not kept:
            raise TableChanged(f"{schema}.{name} is gone")
        return Table(schema=schema, name=name, engine=str(kept[0][0]), columns=tuple(columns),
                     key=choose_key(columns, parts), transactional=str(kept[0][0]) in TRANSACTIONAL,
                     rows_estimated=int(kept[0][1]))  # fmt: skip

    def has_triggers(self, table: Table) -> bool:
        """Return whether writing to the table does something else as well."""
        query = ("SELECT COUNT(*) FROM information_schema.TRIGGERS"
                 " WHERE EVENT_OBJECT_SCHEMA = %s AND EVENT_OBJECT_TABLE = %s")  # fmt: skip
        return bool(self.rows(query, table.schema, table.name)[0][0])

    # -- rows -------------------------------------------------------------------------------------------------------

    def bound(self, table: Table, after: tuple[bytes, ...] | None, rows: int) -> tuple[bytes, ...] | None:
        """Return the key that ends a piece of about `rows` rows, None when the rest is smaller."""
        found = self.rows(table.bound(after, rows))
        return tuple(found[0]) if found else None

    def digest(self, table: Table, piece: Piece) -> Digest:
        """Return a piece in one line."""
        return _digest(self.rows(table.digest(piece))[0])

    def digest_now(self, table: Table, piece: Piece) -> tuple[Digest, str, int]:
        """Return a piece in one line, and the place in the binary log at which it was so."""
        found = self.rows(
            f"SELECT STRAIGHT_JOIN now.file, now.place, one.* FROM {NOW}, ({table.digest(piece)}) AS one"
        )[0]
        return _digest(found[2:]), str(found[0]), int(found[1])

    def hashes(self, table: Table, piece: Piece, limit: int) -> list[Row]:
        """Return the hash of every row of a piece, and what names the row."""
        return [_row(row) for row in self.rows(table.named_hashes(piece, limit))]

    def hashes_now(self, table: Table, piece: Piece, limit: int) -> tuple[list[Row], str, int]:
        """Return `hashes`, and the place in the binary log at which they were so."""
        found = self.rows(f"SELECT STRAIGHT_JOIN now.file, now.place, one.* FROM {NOW}"
                          f" LEFT JOIN ({table.named_hashes(piece, limit)}) AS one ON TRUE")  # fmt: skip
        return [_row(row[2:]) for row in found if row[2] is not None], str(found[0][0]), int(found[0][1])

    def column_hashes(self, table: Table, row: tuple[bytes, ...]) -> tuple[Any, ...]:
        """Return a hash of every column of one row, nothing when it is not there."""
        found = self.rows(table.column_hashes(row))
        return tuple(found[0]) if found else ()

    def rows(self, query: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(query, values or None)
                return tuple(cursor.fetchall())
        except (pymysql.MySQLError, OSError) as error:
            raise self.translated(error) from error

    def translated(self, error: Exception) -> OscarHaError:
        """Return our error for what pymysql raised; it carries no statement and no data."""
        number = error.args[0] if error.args else 0
        if number == TOO_LONG:
            return TooLong(f"{self.node.name}: a statement took longer than it may")
        if number == DEFINITION_CHANGED or number in NO_SUCH_TABLE:
            return TableChanged(f"{self.node.name}: a table was changed meanwhile")
        if isinstance(error, pymysql.MySQLError) and isinstance(number, int) and 1000 <= number < 2000:
            return Refused(f"{self.node.name} refused a statement: error {number}")
        return Unreachable(f"{self.node.name} does not answer: {type(error).__name__} {number}")


def _digest(row: Sequence[Any]) -> Digest:
    return Digest(int(row[0]), int(row[1]), int(row[2] or 0), int(row[3] or 0))


def _row(row: Sequence[Any]) -> Row:
    return tuple(value.encode("ascii") if isinstance(value, str) else value for value in row)


def _connect(node: Node, settings: Settings, secrets: Secrets, seconds: float) -> "Connection[Any]":
    """Connect as oscar-ha's administrator: on the admin port if there is one, else on the port; in TLS if that is set.

    A repair carries rows of patients from node to node, and who is believed is told how to log in.
    """
    where = f"{node.name} at {node.host}:{node.admin_port or node.port}"
    context = None if settings.tls is None else tls.client_context(settings.tls)
    try:
        return StrictConnection(
            host=node.host, port=node.admin_port or node.port, user=settings.accounts.admin_user,
            password=secrets.admin, autocommit=True, charset="utf8mb4", connect_timeout=CONNECT_SECONDS,
            read_timeout=seconds, write_timeout=seconds, program_name="oscar-ha verify", ssl=context,
        )  # fmt: skip
    except (pymysql.MySQLError, OSError) as error:
        if isinstance(error, pymysql.MySQLError) and error.args and error.args[0] in LOGIN_REFUSED:
            raise BadInput(
                f"{where} refuses the account {settings.accounts.admin_user!r}",
                hint=f"mend {settings.accounts.admin_password_file}, or run this where it is right",
            ) from error
        if isinstance(cause := getattr(error, "original_exception", error), ssl.SSLError):
            raise Unreachable(f"{where} is not believed: {cause.reason or cause}",
                              hint="see that its certificate is of our authority, in time, and names that host") from error  # fmt: skip
        raise Unreachable(f"{where} does not answer: {type(error).__name__}") from error
