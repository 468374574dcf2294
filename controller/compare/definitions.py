"""What a database holds besides rows: its character set, views, triggers, routines and events, each by a hash. Pure.

A promoted standby serves with its own definitions: one that lacks a trigger is not the same data for long. Left out of a
hash is only what differs by right: when something was made, when it last ran, and on which server an event runs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.compare.findings import TableFound, Verdict

HOW_TO_LOOK = {
    "database": "SHOW CREATE DATABASE", "view": "SHOW CREATE VIEW", "trigger": "SHOW CREATE TRIGGER",
    "procedure": "SHOW CREATE PROCEDURE", "function": "SHOW CREATE FUNCTION", "event": "SHOW CREATE EVENT",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Definition:
    """The name of one thing. `table`: the one that a trigger belongs to."""

    kind: str
    schema: str
    name: str = ""
    table: str = ""

    @property
    def shown(self) -> str:
        return f"{self.kind} {self.schema}.{self.name}" if self.name else f"{self.kind} {self.schema}"


Definitions = Mapping[Definition, str]
"""Each with its hash, on one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where the server keeps one kind, and which of its columns are the definition."""

    kind: str
    table: str
    schema: str
    name: str
    of_table: str
    parts: tuple[str, ...]

    def query(self, left_out: int) -> str:
        """Return SQL for (kind, schema, name, table, hash) of all that are not the server's own."""
        # A length before each part: no two definitions share a text.
        text = ", ".join(f"IFNULL(CONCAT(LENGTH({part}), ':', {part}), 'N')" for part in self.parts)
        places = ", ".join(["%s"] * left_out)
        return (f"SELECT {self.kind}, {self.schema}, {self.name}, {self.of_table}, MD5(CONCAT_WS(',', {text}))"
                f" FROM {self.table} WHERE {self.schema} NOT IN ({places})")  # fmt: skip


SOURCES = (
    _Source(kind="'database'", table="information_schema.SCHEMATA", schema="SCHEMA_NAME", name="''", of_table="''",
            parts=("DEFAULT_CHARACTER_SET_NAME", "DEFAULT_COLLATION_NAME")),
    _Source(kind="'view'", table="information_schema.VIEWS", schema="TABLE_SCHEMA", name="TABLE_NAME", of_table="''",
            parts=("VIEW_DEFINITION", "CHECK_OPTION", "DEFINER", "SECURITY_TYPE", "ALGORITHM", "CHARACTER_SET_CLIENT",
                   "COLLATION_CONNECTION")),
    _Source(kind="'trigger'", table="information_schema.TRIGGERS", schema="TRIGGER_SCHEMA", name="TRIGGER_NAME",
            of_table="EVENT_OBJECT_TABLE",
            parts=("EVENT_OBJECT_TABLE", "EVENT_MANIPULATION", "ACTION_TIMING", "ACTION_ORDER", "ACTION_STATEMENT",
                   "SQL_MODE", "DEFINER", "CHARACTER_SET_CLIENT", "COLLATION_CONNECTION", "DATABASE_COLLATION")),
    _Source(kind="LOWER(type)", table="mysql.proc", schema="db", name="name", of_table="''",
            parts=("param_list", "returns", "body", "sql_data_access", "is_deterministic", "security_type", "definer",
                   "sql_mode", "comment", "character_set_client", "collation_connection", "db_collation", "aggregate")),
    # Where an event runs is not compared: the standby of an event that is enabled has it switched off for standbys.
    _Source(kind="'event'", table="mysql.event", schema="db", name="name", of_table="''",
            parts=("body", "definer", "execute_at", "interval_value", "interval_field", "starts", "ends",
                   "on_completion", "IF(status = 'DISABLED', 'off', 'on')", "sql_mode", "comment", "time_zone",
                   "character_set_client", "collation_connection", "db_collation")),
)  # fmt: skip


def differing(nodes: Mapping[str, Definitions]) -> dict[Definition, frozenset[str]]:
    """Return what is not on every node as it is on the primary, which is under '', and on which nodes."""
    ours = nodes[""]
    found: dict[Definition, frozenset[str]] = {}
    for one in frozenset().union(*nodes.values()):
        unlike = frozenset(name for name, theirs in nodes.items() if theirs.get(one) != ours.get(one))
        if unlike:
            found[one] = unlike
    return found


def seen_again(before: Mapping[Definition, frozenset[str]], now: Mapping[Definition, frozenset[str]]) -> dict[
    Definition, frozenset[str]
]:  # fmt: skip
    """Return what differed in both looks, on the nodes on which it did."""
    both = {one: nodes & now[one] for one, nodes in before.items() if one in now}
    return {one: nodes for one, nodes in both.items() if nodes}


def told(found: Mapping[Definition, Iterable[str]], nodes: Mapping[str, Definitions]) -> list[TableFound]:
    """Return one finding for each that differs: who lacks it, or has another."""
    return [_told(one, sorted(found[one]), nodes) for one in sorted(found)]


def _told(one: Definition, unlike: list[str], nodes: Mapping[str, Definitions]) -> TableFound:
    names = ", ".join(unlike)
    if one not in nodes[""]:
        why = f"the primary has no such {one.kind}, {names} has"
    elif all(one not in nodes.get(name, {}) for name in unlike):
        why = f"{names} has no such {one.kind}"
    else:
        why = f"it is another one on {names}: compare {HOW_TO_LOOK.get(one.kind, 'SHOW CREATE')}"
    return TableFound(table=one.shown, engine="", verdict=Verdict.DIFFERENT, nodes=tuple(unlike), why=why)
