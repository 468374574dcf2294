"""Looks at real databases when a run is over: what is there, and whether all servers hold the same.

Tables are compared with CHECKSUM TABLE while all servers stand at one and the same position, before and after. The
watchdog's heartbeat moves the primary every second, so tables are compared a few at a time; a table counts as different
only when it still is after everything else was compared.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeAlias

import pymysql

from chaos.history import (
    Finding,
    Found,
    Verdict,
    Write,
    differing,
    equal_checksums,
    no_acknowledged_write_lost,
    nothing_applied_twice,
    one_writer_per_epoch,
)
from chaos.lab_file import Clinic, LabFile, Node
from chaos.traffic import AnyConnection, connect, describe, found_in, open_connection
from chaos.traffic_script import NON_TRANSACTIONAL
from cluster import clock
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Unreachable
from cluster.position import Position

SYSTEM_SCHEMAS = ("mysql", "information_schema", "performance_schema", "sys")
TABLES_AT_ONCE = 40
SECOND_LOOKS_MAX = 3
PAUSE_S = 0.05
READ_TIMEOUT_S = 30
Checksums = dict[str, dict[str, int | None]]
"""Node -> table -> checksum; None when the server could not say."""


LOST, LOST_MYISAM, TWICE = "no acknowledged write lost", "none lost in MyISAM tables", "nothing applied twice"
ONE_WRITER, EQUAL = "one writer in each epoch", "all databases equal"


def judge(
    history: Sequence[Write], lab: LabFile, *, deadline_ms: float, left_out: Collection[str] = ()
) -> dict[str, Finding]:
    """Return the verdict on every promise, once the clinics have stopped writing.

    `left_out` names nodes that are known not to be part of the cluster: fenced, because they are ahead of it.
    """
    verdicts = {ONE_WRITER: one_writer_per_epoch(history)}
    try:
        found = found_through(lab.clinics[0])
        verdicts[LOST] = no_acknowledged_write_lost(history, found)
        verdicts[LOST_MYISAM] = no_acknowledged_write_lost(history, found, tables=NON_TRANSACTIONAL)
        verdicts[TWICE] = nothing_applied_twice(history, found)
    except Unreachable as error:
        verdicts[LOST] = Finding(verdict=Verdict.BROKEN, why=error.message)
    verdicts[EQUAL] = databases_equal(
        [node for node in lab.nodes if node.name not in left_out], deadline_ms=deadline_ms
    )
    return verdicts


def databases_equal(nodes: Sequence[Node], *, deadline_ms: float) -> Finding:
    """Compare every table of every schema that is not the server's own. Waits until the servers are level."""
    deadline = clock.after(clock.now(), deadline_ms)
    try:
        with _connected(nodes) as servers:
            _wait_until_level(servers, deadline)
            return equal_checksums(_compare(servers, deadline))
    except (DeadlinePassed, Unreachable) as error:
        return Finding(verdict=Verdict.BROKEN, why=error.message)
    except (pymysql.Error, OSError) as error:
        return Finding(verdict=Verdict.BROKEN, why=f"the databases could not be compared: {describe(error)}")


def found_through(clinic: Clinic) -> Found:
    """Return what the primary holds, read as the clinic reads it. Raises Unreachable."""
    try:
        connection, _ = connect(clinic)
        with closing(connection):
            return found_in(connection)
    except (pymysql.Error, OSError) as error:
        raise Unreachable(
            f"clinic {clinic.name} cannot read at {clinic.host}:{clinic.port}: {describe(error)}"
        ) from error


def write_is_refused(node: Node, clinic: Clinic, *, read_timeout_s: int) -> tuple[bool, str]:
    """Try to write to a node directly with the clinic's account; return whether that was refused, and how."""
    try:
        connection = open_connection(
            host=node.host, port=node.port, user=clinic.user, password=clinic.password, database=clinic.database,
            read_timeout=read_timeout_s,
        )  # fmt: skip
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("INSERT INTO log (action, ha_token) VALUES ('intruder', 'none')")
    except (pymysql.Error, OSError) as error:
        return True, describe(error)
    return False, f"{node.name} took a write"


Servers: TypeAlias = "Mapping[str, AnyConnection]"


@contextmanager
def _connected(nodes: Sequence[Node]) -> Iterator[Servers]:
    with ExitStack() as stack:
        servers: dict[str, AnyConnection] = {}
        for node in nodes:
            try:
                connection = open_connection(
                    host=node.host, port=node.admin_port or node.port, user=node.admin_user, password=node.admin_password,
                    read_timeout=READ_TIMEOUT_S,
                )  # fmt: skip
            except (pymysql.Error, OSError) as error:
                raise Unreachable(f"{node.name} does not answer: {describe(error)}") from error
            servers[node.name] = stack.enter_context(closing(connection))
        yield servers


def _compare(servers: Servers, deadline: Nanos) -> Checksums:
    """Return the checksums; whatever differs is looked at again, for the difference may have been a moment's."""
    lists = _on_all(servers, _tables)
    tables = sorted(set().union(*lists.values()))
    checksums: Checksums = {name: {} for name in servers}
    for first in range(0, len(tables), TABLES_AT_ONCE):
        _look(servers, lists, tables[first : first + TABLES_AT_ONCE], checksums, deadline)
    for _ in range(SECOND_LOOKS_MAX):
        again = differing(checksums)
        if not again:
            break
        for table in again:
            _look(servers, lists, [table], checksums, deadline)
    return checksums


def _look(
    servers: Servers, lists: Mapping[str, set[str]], tables: Sequence[str], into: Checksums, deadline: Nanos
) -> None:
    """Checksum a few tables on all servers, again and again until their positions stood still meanwhile."""
    while True:
        before = _wait_until_level(servers, deadline)
        found = _on_all(
            servers,
            lambda connection, name: _checksums(connection, [table for table in tables if table in lists[name]]),
        )
        if set(_positions(servers).values()) == {before}:
            for name, values in found.items():
                into[name].update(values)
            return
        _require_time(deadline, f"the servers did not stand still for {tables[0]} and what follows it")


def _wait_until_level(servers: Servers, deadline: Nanos) -> Position:
    pause = threading.Event()
    while True:
        positions = _positions(servers)
        if len(set(positions.values())) == 1:
            return next(iter(positions.values()))
        told = ", ".join(f"{name} {position}" for name, position in positions.items())
        _require_time(deadline, f"the databases did not become level: {told}")
        pause.wait(PAUSE_S)


def _positions(servers: Servers) -> dict[str, Position]:
    return _on_all(servers, lambda connection, _: Position.parse(_rows(connection, "SELECT @@gtid_current_pos")[0][0]))


def _tables(connection: AnyConnection, _: str) -> set[str]:
    places = ", ".join(["%s"] * len(SYSTEM_SCHEMAS))
    query = (
        "SELECT CONCAT('`', REPLACE(table_schema, '`', '``'), '`.`', REPLACE(table_name, '`', '``'), '`') "
        f"FROM information_schema.tables WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ({places})"
    )
    return {str(row[0]) for row in _rows(connection, query, SYSTEM_SCHEMAS)}


def _checksums(connection: AnyConnection, tables: Sequence[str]) -> dict[str, int | None]:
    """Return table -> checksum; the server answers in the order in which it was asked."""
    if not tables:
        return {}
    rows = _rows(connection, f"CHECKSUM TABLE {', '.join(tables)}")
    return {table: None if row[1] is None else int(row[1]) for table, row in zip(tables, rows, strict=True)}


def _on_all(servers: Servers, work: Any) -> dict[str, Any]:
    """Run `work(connection, name)` on every server at the same time."""
    with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
        futures = {name: pool.submit(work, connection, name) for name, connection in servers.items()}
        return {name: future.result() for name, future in futures.items()}


def _rows(connection: AnyConnection, query: str, arguments: Sequence[object] = ()) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(query, tuple(arguments) or None)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows


def _require_time(deadline: Nanos, what: str) -> None:
    if clock.now() >= deadline:
        raise DeadlinePassed(what)
