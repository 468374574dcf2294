"""Clinics at work: one writer for each, through its own HAProxy, as OSCAR connects.

A writer has one connection with autocommit, repeats nothing and keeps its connection until that breaks. What it was
told is recorded: OK when the database said so, FAILED when it certainly refused, UNKNOWN otherwise.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, TypeAlias

import pymysql
import structlog
from pymysql.connections import Connection

from chaos.history import Found, Outcome, Write
from chaos.lab_file import Clinic, Node
from chaos.traffic_journal import Journal
from chaos.traffic_script import CHANGEABLE, TABLES, Script, Statement
from cluster import clock
from cluster.clock import Nanos
from cluster.connection import QuickConnection
from cluster.errors import BadInput, DeadlinePassed, Unreachable

WRITES_PER_SECOND = 40.0
WRITES_PER_SECOND_MAX = 2_000.0
SECONDS_MAX = 3_600.0
CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 10
RECONNECT_PAUSE_S = 0.02
RECONNECT_SECONDS_MAX = 180.0
"""A clinic that gets no connection for this long gives up; the run is then a failure, not an endless wait."""
STOP_DEADLINE_MS = (CONNECT_TIMEOUT_S + 2 * READ_TIMEOUT_S) * 1_000.0
PREPARE_PAUSE_S = 0.2
EPOCH_QUESTIONS_MAX = 200
"""How often the epoch of one connection is asked for. A new primary writes it down a moment after it opens."""

# The server answered with one of these: it did nothing, and never will. Everything else may have been done.
REFUSALS = frozenset({
    1040,  # too many connections
    1044, 1045, 1142, 1698,  # access denied
    1054, 1064, 1146,  # column, syntax, table: a mistake of ours
    1062,  # duplicate key: two clinics made the same MAX(id)+1
    1205, 1213,  # lock wait timeout, deadlock
    1226,  # user has too many connections
    1290, 1836,  # read-only server
    4151,  # account is locked
})  # fmt: skip
NO_SUCH_TABLE = frozenset({1044, 1049, 1142, 1146})

log = structlog.get_logger()
AnyConnection: TypeAlias = "Connection[Any]"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who answers on this connection. `epoch` is None while the database does not tell it."""

    server_id: int | None
    epoch: int | None


class Writer:
    """One clinic. `run` blocks until told to stop or the deadline; everything else may be read from other threads."""

    def __init__(
        self, clinic: Clinic, script: Script, journal: Journal, writes_per_second: float, names: Mapping[int, str]
    ) -> None:
        self.clinic = clinic
        self.history: list[Write] = []
        self.newest: Write | None = None
        """The last write that was acknowledged."""
        self.refused_connections = 0
        self.peer: Peer | None = None
        self.gave_up = ""
        self.longest_wait_ms = 0.0
        """What one statement or one connection waited for its answer or its error, at most."""
        self._script = script
        self._journal = journal
        self._names = names
        self._unplaced: list[Write] = []
        """Writes of this connection whose epoch is not known yet."""
        self._questions = 0
        self.writes_per_second = writes_per_second
        self._period = Nanos(int(clock.NANOS_PER_SECOND / writes_per_second))
        self._connection: AnyConnection | None = None

    def run(self, stop: threading.Event, deadline: Nanos) -> None:
        """Write at the wanted rate; after an outage go on at that rate, without making up for what was missed."""
        due = clock.now()
        while not stop.wait(clock.seconds_left(min(due, deadline))) and clock.now() < deadline:
            if self._connection is None and not self._reconnect(stop, deadline):
                break
            self._write(self._script.next())
            due = Nanos(max(due + self._period, clock.now() - self._period))
        self._disconnect()

    def has_written(self, after: Nanos) -> bool:
        """Return whether a write that was sent after the instant `after` was acknowledged."""
        return self.newest is not None and self.newest.invoked_at > after

    def _reconnect(self, stop: threading.Event, deadline: Nanos) -> bool:
        give_up = Nanos(min(deadline, clock.after(clock.now(), RECONNECT_SECONDS_MAX * 1_000)))
        while not stop.is_set():
            begun = clock.now()
            try:
                self._connection, self.peer = connect(self.clinic, self._names)
                self._questions = 1
                return True
            except (pymysql.Error, OSError) as error:
                self.refused_connections += 1
                if clock.now() >= give_up:
                    self.gave_up = "" if give_up == deadline else describe(error)
                    return False
            finally:
                self._waited_since(begun)
            stop.wait(RECONNECT_PAUSE_S)
        return False

    def _write(self, statement: Statement) -> None:
        assert self._connection is not None, "reconnect first"
        invoked_at, error = clock.now(), ""
        outcome, acknowledged_at = Outcome.OK, None
        try:
            number = _send(self._connection, statement)
            acknowledged_at = clock.now()
            self._script.acknowledged(statement, number)
        except _NotSent as failure:
            outcome, error = Outcome.FAILED, str(failure)
        except (pymysql.Error, OSError) as failure:
            outcome, error = outcome_of(failure), describe(failure)
        self._waited_since(invoked_at)
        self._record(statement, invoked_at, acknowledged_at, outcome, error)
        if outcome is Outcome.UNKNOWN or self._connection is None or not self._connection.open:
            self._disconnect()

    def _waited_since(self, begun: Nanos) -> None:
        self.longest_wait_ms = max(self.longest_wait_ms, clock.ms_between(begun, clock.now()))

    def _record(
        self, statement: Statement, invoked_at: Nanos, acknowledged_at: Nanos | None, outcome: Outcome, error: str
    ) -> None:
        peer = self.peer or Peer(None, None)
        write = Write(
            clinic=self.clinic.name, sequence=statement.sequence, token=statement.token, kind=statement.kind,
            table=statement.table, invoked_at=invoked_at, acknowledged_at=acknowledged_at, outcome=outcome,
            server_id=peer.server_id, epoch=peer.epoch, changes=statement.changes, error=error,
        )  # fmt: skip
        self._unplaced.append(write)
        if write.acknowledged:
            self.newest = write
        if peer.epoch is None and write.acknowledged:
            self._ask_for_epoch()
        if self.peer != peer or peer.epoch is not None or self._questions >= EPOCH_QUESTIONS_MAX:
            self._place()

    def _ask_for_epoch(self) -> None:
        """Ask again: the epoch is a fact of the whole connection, because a fence ends every connection."""
        if self._connection is None or self._questions >= EPOCH_QUESTIONS_MAX:
            return
        self._questions += 1
        try:
            self.peer = ask_peer(self._connection, self._names)
        except (pymysql.Error, OSError):
            self._disconnect()

    def _place(self) -> None:
        """Hand over what was recorded, now that nothing more will be known of it."""
        epoch = self.peer.epoch if self.peer else None
        for write in self._unplaced:
            placed = replace(write, epoch=epoch)
            self.history.append(placed)
            self._journal.append(placed)
        self._unplaced.clear()

    def _disconnect(self) -> None:
        self._place()
        if self._connection is not None:
            _close(self._connection)
        self._connection = None


class Traffic:
    """All clinics at once. Use as a context manager: leaving it stops the writers, whatever happened."""

    def __init__(
        self,
        clinics: Sequence[Clinic],
        journal: Journal,
        *,
        seconds: float,
        writes_per_second: float = WRITES_PER_SECOND,
        seed: int = 1,
        nodes: Sequence[Node] = (),
    ) -> None:
        _check(seconds, writes_per_second, clinics)
        run = f"{clock.now() // clock.NANOS_PER_MS:x}"
        names = {node.port: node.name for node in nodes}
        self.writers = [
            Writer(clinic, Script(clinic.name, run, seed), journal, writes_per_second, names) for clinic in clinics
        ]
        self._seconds = seconds
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Traffic":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(STOP_DEADLINE_MS / 1_000)

    def start(self) -> None:
        """Begin writing; the run ends by itself after its seconds."""
        deadline = clock.after(clock.now(), self._seconds * 1_000)
        for writer in self.writers:
            thread = threading.Thread(
                target=writer.run, args=(self._stop, deadline), name=f"clinic-{writer.clinic.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def wait(self) -> None:
        """Wait until the run has ended by itself. Raises DeadlinePassed if a writer does not end."""
        limit = clock.after(clock.now(), self._seconds * 1_000 + STOP_DEADLINE_MS)
        for thread in self._threads:
            thread.join(clock.seconds_left(limit))
        self._require_ended()

    def stop(self) -> None:
        """Stop every writer after the write it is in. Raises DeadlinePassed if one does not end."""
        self._stop.set()
        limit = clock.after(clock.now(), STOP_DEADLINE_MS)
        for thread in self._threads:
            thread.join(clock.seconds_left(limit))
        self._require_ended()

    @property
    def history(self) -> list[Write]:
        """Return what was recorded until now, clinic by clinic."""
        return [write for writer in self.writers for write in tuple(writer.history)]

    def _require_ended(self) -> None:
        running = [thread.name for thread in self._threads if thread.is_alive()]
        if running:
            raise DeadlinePassed(f"{', '.join(running)} did not end within {STOP_DEADLINE_MS:.0f} ms")


def prepare(clinic: Clinic, *, deadline_ms: float) -> None:
    """Make the OSCAR-shaped tables through the clinic's endpoint, waiting until that leads to a primary."""
    statements = schema()
    deadline = clock.after(clock.now(), deadline_ms)
    pause = threading.Event()
    while True:
        try:
            connection, _ = connect(clinic)
            try:
                for statement in statements:
                    _execute(connection, statement, ())
            finally:
                _close(connection)
            return
        except (pymysql.Error, OSError) as error:
            if clock.now() >= deadline:
                raise Unreachable(
                    f"clinic {clinic.name}: no tables could be made at {clinic.host}:{clinic.port}: {describe(error)}",
                    hint="see with 'oscar-ha status' whether there is a primary",
                ) from error
        pause.wait(PREPARE_PAUSE_S)


def schema() -> tuple[str, ...]:
    """Return the statements of `oscar_shaped.sql`; it has no semicolon but at the end of a statement."""
    text = files("chaos").joinpath("oscar_shaped.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return tuple(part.strip() for part in "\n".join(lines).split(";") if part.strip())


def connect(clinic: Clinic, names: Mapping[int, str] | None = None) -> tuple[AnyConnection, Peer]:
    """Connect as OSCAR does, and ask who answers. Raises what PyMySQL raises; leaves no socket open then."""
    connection = open_connection(
        host=clinic.host, port=clinic.port, user=clinic.user, password=clinic.password, database=clinic.database
    )
    try:
        return connection, ask_peer(connection, names or {})
    except BaseException:
        _close(connection)
        raise


def ask_peer(connection: AnyConnection, names: Mapping[int, str]) -> Peer:
    """Ask a database who it is and in which epoch. Raises what PyMySQL raises.

    The newest row of `oscar_ha.epoch` tells the epoch only if it names this very node: a server that was opened a
    moment ago still has the row of the epoch before. `names` is port -> node; a port that is not in it is believed.
    """
    server_id, port = _execute(connection, "SELECT @@server_id, @@port", ())[0]
    try:
        rows = _execute(connection, "SELECT epoch, primary_node FROM oscar_ha.epoch ORDER BY epoch DESC LIMIT 1", ())
    except pymysql.Error as error:
        if error.args and error.args[0] in NO_SUCH_TABLE:
            return Peer(int(server_id), None)
        raise
    if not rows or rows[0][1] != names.get(int(port), rows[0][1]):
        return Peer(int(server_id), None)
    return Peer(int(server_id), int(rows[0][0]))


def open_connection(
    *, host: str, port: int, user: str, password: str, database: str | None = None, read_timeout: int = READ_TIMEOUT_S
) -> AnyConnection:
    """Return an autocommit connection with OSCAR's settings and a deadline on everything."""
    connection: AnyConnection = QuickConnection(
        host=host, port=port, user=user, password=password, database=database, charset="utf8mb3", autocommit=True,
        sql_mode="", connect_timeout=CONNECT_TIMEOUT_S, read_timeout=read_timeout, write_timeout=read_timeout,
        defer_connect=True,
    )  # fmt: skip
    try:
        connection.connect()
    except BaseException:
        # PyMySQL leaves the socket open when the server refuses.
        _close(connection)
        raise
    return connection


def found_in(connection: AnyConnection) -> Found:
    """Return every token that the database holds, and the last change of each row that was changed."""
    tokens: dict[str, int] = {}
    touched: dict[str, int] = {}
    for table in TABLES:
        for token, count in _execute(connection, f"SELECT ha_token, COUNT(*) FROM {table} GROUP BY ha_token", ()):
            tokens[str(token)] = tokens.get(str(token), 0) + int(count)
    for table in CHANGEABLE:
        for token, last in _execute(connection, f"SELECT ha_token, ha_touched FROM {table} WHERE ha_touched > 0", ()):
            touched[str(token)] = int(last)
    return Found(tokens=tokens, touched=touched)


def outcome_of(error: Exception) -> Outcome:
    """Return FAILED only for an error that says that nothing was done."""
    refused = isinstance(error, pymysql.err.MySQLError) and bool(error.args) and error.args[0] in REFUSALS
    return Outcome.FAILED if refused else Outcome.UNKNOWN


def describe(error: Exception) -> str:
    """Return an error in one short line, without statement and values."""
    if isinstance(error, pymysql.err.MySQLError) and error.args:
        return " ".join(str(part) for part in error.args[:2])[:160]
    return f"{type(error).__name__}: {error}"[:160]


class _NotSent(Exception):
    """The write itself was never sent, or it met no row: nothing was done."""


def _send(connection: AnyConnection, statement: Statement) -> int:
    """Run one write and return the number the database gave its row."""
    arguments = statement.arguments
    if statement.number_query is not None:
        try:
            arguments = (_number(connection, *statement.number_query), *arguments)
        except (pymysql.Error, OSError) as error:
            raise _NotSent(describe(error)) from error
    with connection.cursor() as cursor:
        rows = cursor.execute(statement.sql, arguments)
        if rows != 1:
            raise _NotSent(f"{rows} rows instead of 1")
        return int(cursor.lastrowid or 0)


def _number(connection: AnyConnection, query: str, arguments: tuple[object, ...] = ()) -> int | None:
    rows = _execute(connection, query, arguments)
    return int(rows[0][0]) if rows and rows[0][0] is not None else None


def _execute(connection: AnyConnection, query: str, arguments: tuple[object, ...]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments or None)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows


def _close(connection: AnyConnection) -> None:
    with suppress(pymysql.Error, OSError):
        connection.close()
    force: Callable[[], None] = connection._force_close  # type: ignore[attr-defined]  # PyMySQL closes nothing otherwise
    force()


def _check(seconds: float, writes_per_second: float, clinics: Sequence[Clinic]) -> None:
    if not 0 < seconds <= SECONDS_MAX:
        raise BadInput(f"seconds is {seconds:g}", hint=f"give more than 0 and at most {SECONDS_MAX:g}")
    if not 0 < writes_per_second <= WRITES_PER_SECOND_MAX:
        raise BadInput(f"rate is {writes_per_second:g}", hint=f"give more than 0 and at most {WRITES_PER_SECOND_MAX:g}")
    if not clinics:
        raise BadInput("the lab has no clinics", hint="start it with --clinics 1 or more")
