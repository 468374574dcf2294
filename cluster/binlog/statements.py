"""What the text of a Query event does, and to which tables: enough to find it and to be alarmed. Pure, no SQL parser.

Only the beginning of a statement is read. What is not understood is `OTHER`, never a guess.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

HEAD_CHARACTERS_MAX = 4_096
"""So much of a statement is looked at: the names of what it changes stand at its beginning."""


class Does(StrEnum):
    """What a statement does."""

    TRANSACTION = "transaction"
    CHANGE = "change"
    """INSERT, UPDATE and so on: in a stream of rows nobody should write these as text (TRAPS.md 19)."""
    CREATE = "create"
    ALTER = "alter"
    DROP = "drop"
    TRUNCATE = "truncate"
    OTHER = "other"


LOSES_ROWS = frozenset({Does.DROP, Does.TRUNCATE})


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, and the tables it names as `database.table`; `database.*` is all of a database."""

    does: Does
    tables: tuple[str, ...] = ()
    temporary: bool = False
    """It is about temporary tables only."""
    empty_after: bool = False
    """The tables are there and empty afterwards, for certain."""


_COMMENT = re.compile(r"/\*(?![!M]).*?\*/|--[ \t][^\n]*\n|#[^\n]*\n|/\*M?!\d*|\*/", re.DOTALL)
"""Comments, and the frame of a comment that the server executes; what stands in that frame counts."""
_NAME = r"(?:`(?:[^`]|``)+`|\"(?:[^\"]|\"\")+\"|[^\s`\".,;()=]+)"
_TABLE = rf"({_NAME})(?:\s*\.\s*({_NAME}))?"
_TABLES = re.compile(rf"{_TABLE}(?:\s*,\s*{_NAME}(?:\s*\.\s*{_NAME})?)*")
_ONE_TABLE = re.compile(_TABLE)
_TRANSACTION = re.compile(r"(?:BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|XA|START\s+TRANSACTION)\b", re.IGNORECASE)
_FORMS: tuple[tuple[Does, re.Pattern[str]], ...] = tuple(
    (does, re.compile(pattern, re.IGNORECASE))
    for does, pattern in (
        (Does.TRUNCATE, r"(?P<empty>TRUNCATE)\s+(?:TABLE\s+)?"),
        (Does.DROP, r"DROP\s+(?P<temporary>TEMPORARY\s+)?TABLES?\s+(?:IF\s+EXISTS\s+)?"),
        (Does.DROP, r"CREATE\s+(?P<empty>OR\s+REPLACE)\s+(?P<temporary>TEMPORARY\s+)?TABLE\s+"),
        (Does.CREATE, r"CREATE\s+(?P<temporary>TEMPORARY\s+)?TABLE\s+IF\s+NOT\s+EXISTS\s+"),
        (Does.CREATE, r"CREATE\s+(?P<temporary>TEMPORARY\s+)?(?P<empty>TABLE)\s+"),
        (Does.ALTER, r"ALTER\s+(?:ONLINE\s+)?(?:IGNORE\s+)?TABLE\s+(?:IF\s+EXISTS\s+)?"),
        (Does.ALTER, r"RENAME\s+TABLES?\s+(?:IF\s+EXISTS\s+)?"),
        (Does.ALTER, r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:UNIQUE\s+|FULLTEXT\s+|SPATIAL\s+)?INDEX\s.*?\sON\s+"),
        (Does.ALTER, r"DROP\s+INDEX\s.*?\sON\s+"),
        (Does.CHANGE, r"(?:INSERT|REPLACE)\s+(?:(?:LOW_PRIORITY|DELAYED|HIGH_PRIORITY|IGNORE)\s+)*(?:INTO\s+)?"),
        (Does.CHANGE, r"UPDATE\s+(?:(?:LOW_PRIORITY|IGNORE)\s+)*"),
        (Does.CHANGE, r"DELETE\s+(?:(?:LOW_PRIORITY|QUICK|IGNORE)\s+)*(?:\S+\s+)?FROM\s+"),
        (Does.CHANGE, r"LOAD\s+(?:DATA|XML)\b.*?\sINTO\s+TABLE\s+"),
    )
)  # fmt: skip
_DROP_DATABASE = re.compile(r"DROP\s+(?:DATABASE|SCHEMA)\s+(?:IF\s+EXISTS\s+)?", re.IGNORECASE)
_DROP_PARTITION = re.compile(r"\b(?:DROP|TRUNCATE)\s+PARTITION\b", re.IGNORECASE)


def statement_of(text: str, database: str) -> Statement:
    """Return what `text` does when `database` is the default one."""
    head = _COMMENT.sub(" ", text[:HEAD_CHARACTERS_MAX]).strip()
    if head[:4].upper() == "SET ":
        inner = re.match(r"SET\s+STATEMENT\b.*?\bFOR\s+", head, re.IGNORECASE | re.DOTALL)
        head = head[inner.end() :] if inner else head
    if _TRANSACTION.match(head):
        return Statement(Does.TRANSACTION)
    dropped = _DROP_DATABASE.match(head)
    if dropped:
        named = _ONE_TABLE.match(head, dropped.end())
        return Statement(Does.DROP, (f"{_bare(named[1])}.*",) if named else ())
    return _of_tables(head, database)


def _of_tables(head: str, database: str) -> Statement:
    for does, form in _FORMS:
        found = form.match(head)
        if not found:
            continue
        listed = _TABLES.match(head, found.end())
        names = tuple(_named(one, database) for one in _ONE_TABLE.finditer(listed[0])) if listed else ()
        # A partition that is dropped or emptied loses its rows.
        if does is Does.ALTER and _DROP_PARTITION.search(head, found.end()):
            does = Does.TRUNCATE
        if does not in (Does.DROP, Does.TRUNCATE, Does.CHANGE):
            names = names[:1]
        temporary, empty = (found.groupdict().get(name) is not None for name in ("temporary", "empty"))
        return Statement(does, names, temporary=temporary, empty_after=empty and not temporary and bool(names))
    return Statement(Does.OTHER)


def _named(one: re.Match[str], database: str) -> str:
    return f"{database}.{_bare(one[1])}" if one[2] is None else f"{_bare(one[1])}.{_bare(one[2])}"


def _bare(name: str) -> str:
    if name[0] in '`"' and name[-1] == name[0]:
        return name[1:-1].replace(name[0] * 2, name[0])
    return name
