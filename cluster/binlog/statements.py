"""What the text of a Query event does, and to which tables: enough to find it and to be alarmed. Pure, no SQL parser.

Only as much of a statement is read as tells that (`sql_words`). What is not understood is `OTHER`, never a guess; what
could not be read to where it matters is `UNREAD`. Grammar: MariaDB's `sql_yacc.yy`.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.binlog.rows import Query
from cluster.binlog.sql_words import END, Sort, Unreadable, Words


class Does(StrEnum):
    """What a statement does."""

    TRANSACTION = "transaction"
    CHANGE = "change"
    """INSERT, UPDATE and so on: in a stream of rows nobody should write these as text (TRAPS.md 19)."""
    CREATE = "create"
    ALTER = "alter"
    """Of a table, so that no row and no column is gone afterwards, or so that nobody can tell: MODIFY, CHANGE."""
    DROP = "drop"
    TRUNCATE = "truncate"
    """All rows, or those of a partition, or what is told of earlier ones."""
    RENAME = "rename"
    """Rows are afterwards where nobody looks for them."""
    EXCHANGE = "exchange"
    """A partition and a table change places, or become each other."""
    DROP_COLUMN = "drop_column"
    REWRITE = "rewrite"
    """Every row is written anew, and what does not fit is lost."""
    UNREAD = "unread"
    OTHER = "other"


LOSES_ROWS = frozenset({Does.DROP, Does.TRUNCATE, Does.RENAME, Does.EXCHANGE, Does.DROP_COLUMN, Does.REWRITE})
"""No row event tells what these take."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, and the tables it is about as `database.table`; `database.*` is all of a database."""

    does: Does
    tables: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """The new names of `tables`, or those that got rows without a row event: what was known of these does not hold."""
    temporary: bool = False
    """It is about temporary tables only."""
    empty_after: bool = False
    """The tables are there and empty afterwards, or not there, for certain."""


TRANSACTION = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA", "START"})
CHANGE = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "SELECT", "WITH", "VALUES", "DO", "CALL"})
"""A stored function that changes rows is written as the SELECT or DO that calls it."""
_CHANGE_OPTIONS = ("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "QUICK", "IGNORE", "INTO", "HISTORY")
_ENGINES = frozenset({"INNODB", "ARIA", "MYISAM"})
"""They keep rows over a restart: BLACKHOLE and MEMORY do not."""
_WIDE_CHARSETS = frozenset({"UTF8", "UTF8MB3", "UTF8MB4"})
"""Every character that a clinic can have typed is in these."""
_NO_COLUMN = ("PRIMARY", "INDEX", "KEY", "FOREIGN", "CONSTRAINT", "CHECK")
"""Behind DROP."""
_NO_OPTIONS = frozenset({
    "ADD", "ALGORITHM", "ALTER", "ANALYZE", "CHANGE", "CHECK", "COALESCE", "CONVERT", "DISABLE", "DISCARD", "DROP",
    "ENABLE", "EXCHANGE", "FORCE", "IMPORT", "LOCK", "MODIFY", "OPTIMIZE", "ORDER", "PARTITION", "REBUILD", "REMOVE",
    "RENAME", "REORGANIZE", "REPAIR", "TRUNCATE",
})  # fmt: skip
"""With these an item of an ALTER TABLE begins that holds no options of the table."""


def statement_of(query: Query) -> Statement:
    """Return what a statement does."""
    words = Words(query)
    try:
        _unwrap(words)
        first = words.take().key
        if first in TRANSACTION:
            return Statement(Does.TRANSACTION)
        if first in CHANGE:
            return Statement(Does.CHANGE, _changed(first, words, query.database))
        reader = {"TRUNCATE": _truncate, "DROP": _drop, "CREATE": _create, "ALTER": _alter, "RENAME": _rename}.get(
            first
        )
        return reader(words, query.database) if reader else Statement(Does.OTHER)
    except Unreadable:
        return Statement(Does.UNREAD)


def _unwrap(words: Words) -> None:
    """Go to the statement proper."""
    while words.accept("("):
        pass
    if words.accept("SET", "STATEMENT"):
        while not words.accept("FOR") and words.take() is not END:
            pass
    elif words.peek().key == "ANALYZE" and (words.accept("ANALYZE", "FORMAT", "=") or words.peek(1).key in CHANGE):
        words.take()


def _changed(first: str, words: Words, database: str) -> tuple[str, ...]:
    """Return the tables that are changed by text, when they can be told."""
    try:
        until = {"DELETE": "FROM", "LOAD": "TABLE"}.get(first)
        while until and not words.accept(until) and words.take() is not END:
            pass
        if first in ("SELECT", "WITH", "VALUES", "DO", "CALL"):
            return ()
        while words.accept_any(*_CHANGE_OPTIONS):
            pass
        return _tables(words, database)
    except Unreadable:
        return ()  # that it changes something is known


def _truncate(words: Words, database: str) -> Statement:
    words.accept("TABLE")
    table = _table(words, database)
    return Statement(Does.TRUNCATE) if table is None else Statement(Does.TRUNCATE, (table,), empty_after=True)


def _drop(words: Words, database: str) -> Statement:
    temporary = words.accept("TEMPORARY")
    if words.accept_any("TABLE", "TABLES"):
        words.accept("IF", "EXISTS")
        tables = _tables(words, database)
        return Statement(Does.DROP, tables, temporary=temporary, empty_after=bool(tables) and not temporary)
    if words.accept_any("DATABASE", "SCHEMA"):
        return _database(words)
    return _index(words, database) if words.accept("INDEX") else Statement(Does.OTHER)


def _create(words: Words, database: str) -> Statement:
    replaces = words.accept("OR", "REPLACE")
    temporary = words.accept("TEMPORARY")
    if words.accept("TABLE"):
        perhaps = words.accept("IF", "NOT", "EXISTS")
        tables = _tables(words, database)[:1]
        empty = bool(tables) and not temporary and not perhaps
        return Statement(Does.DROP if replaces else Does.CREATE, tables, temporary=temporary, empty_after=empty)
    if replaces and words.accept_any("DATABASE", "SCHEMA"):
        return _database(words)
    words.accept_any("UNIQUE", "FULLTEXT", "SPATIAL")
    return _index(words, database) if words.accept("INDEX") else Statement(Does.OTHER)


def _database(words: Words) -> Statement:
    words.accept("IF", "EXISTS")
    name = _name(words)
    return Statement(Does.DROP, () if name is None else (f"{name}.*",))


def _index(words: Words, database: str) -> Statement:
    while not words.accept("ON") and words.take() is not END:
        pass
    return Statement(Does.ALTER, _tables(words, database)[:1])


def _rename(words: Words, database: str) -> Statement:
    if not words.accept_any("TABLE", "TABLES"):
        return Statement(Does.OTHER)
    words.accept("IF", "EXISTS")
    tables, others = list[str](), list[str]()
    while (table := _table(words, database)) is not None:
        _wait(words)
        new = _table(words, database) if words.accept("TO") else None
        if new is None:
            break
        tables.append(table)
        others.append(new)
        if not words.accept(","):
            break
    return Statement(Does.RENAME, tuple(tables), tuple(others))


def _alter(words: Words, database: str) -> Statement:
    does = Does.ALTER
    while words.peek().key in ("ONLINE", "IGNORE"):
        # IGNORE: rows that a new unique key has twice are deleted.
        does = Does.REWRITE if words.take().key == "IGNORE" else does
    if not words.accept("TABLE"):
        return Statement(Does.OTHER)
    words.accept("IF", "EXISTS")
    table = _table(words, database)
    if table is None:
        return Statement(Does.OTHER)
    found = Statement(does, (table,))
    try:
        _wait(words)
        while words.peek() is not END:
            item = _item(words, database, found)
            found = item if found.does is Does.ALTER else replace(found, others=item.others)
            _pass_item(words)
    except Unreadable:
        return found if found.does is not Does.ALTER else replace(found, does=Does.UNREAD)
    return found


def _item(words: Words, database: str, found: Statement) -> Statement:
    """Return what an ALTER TABLE does with its next item too."""
    first = words.peek().key
    if first not in _NO_OPTIONS:
        return replace(found, does=Does.REWRITE) if _engine_loses_rows(words) else found
    words.take()
    match first:
        case "DROP":
            return replace(found, does=_dropped(words))
        case "TRUNCATE" | "DISCARD":  # PARTITION, TABLESPACE
            return replace(found, does=Does.TRUNCATE)
        case "IMPORT":
            return replace(found, others=found.tables)
        case "RENAME" if words.peek().key not in ("COLUMN", "INDEX", "KEY"):
            words.accept_any("TO", "AS", "=")
            new = _table(words, database)
            return found if new is None else replace(found, does=Does.RENAME, others=(new,))
        case "CONVERT" if words.accept("TO"):
            return found if _charset_is_wide(words) else replace(found, does=Does.REWRITE)
        case "EXCHANGE" | "CONVERT":  # PARTITION p WITH TABLE t; PARTITION p TO TABLE t; TABLE t TO PARTITION p
            while not words.accept("TABLE") and words.take() is not END:
                pass
            other = _table(words, database)
            return replace(found, does=Does.EXCHANGE, tables=found.tables if other is None else (*found.tables, other))
        case _:
            return found


def _dropped(words: Words) -> Does:
    if words.accept("PARTITION") or words.accept("SYSTEM", "VERSIONING"):
        return Does.TRUNCATE
    keeps = words.peek().key in _NO_COLUMN or words.accept("PERIOD", "FOR")
    return Does.ALTER if keeps else Does.DROP_COLUMN


def _charset_is_wide(words: Words) -> bool:
    if not words.accept("CHARSET"):
        words.accept_any("CHARACTER", "CHAR")
        words.accept("SET")
    words.accept("=")
    return words.take().text.upper() in _WIDE_CHARSETS


def _engine_loses_rows(words: Words) -> bool:
    """Read options of a table, and return whether they make it one that does not keep its rows."""
    loses, depth = False, 0
    while (word := words.peek()) is not END and (depth or word.key != ","):
        words.take()
        depth += {"(": 1, ")": -1}.get(word.key, 0)
        if word.key == "ENGINE":
            words.accept("=")
            loses |= words.take().text.upper() not in _ENGINES
    return loses


def _pass_item(words: Words) -> None:
    """Go to the next item of an ALTER TABLE."""
    depth = 0
    while (word := words.take()) is not END and (depth or word.key != ","):
        depth += {"(": 1, ")": -1}.get(word.key, 0)


def _wait(words: Words) -> None:
    """Pass over how long the statement waits for a lock."""
    if not words.accept("NOWAIT") and words.accept("WAIT"):
        words.take()


def _tables(words: Words, database: str) -> tuple[str, ...]:
    """Return the tables that are listed next."""
    found = list[str]()
    while (table := _table(words, database)) is not None:
        found.append(table)
        if not words.accept(","):
            break
    return tuple(found)


def _table(words: Words, database: str) -> str | None:
    words.accept(".")  # so the default database may be written
    first = _name(words)
    if first is None or not words.accept("."):
        return None if first is None else f"{database}.{first}"
    second = _name(words)
    return None if second is None else f"{first}.{second}"


def _name(words: Words) -> str | None:
    return words.take().text if words.peek().sort in (Sort.PLAIN, Sort.NAME) else None
