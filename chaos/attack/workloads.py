"""What clinics do besides OSCAR's own work, because it can be judged sharply: lists, a bank, and an upgrade of the schema.

Each worker has one connection through its clinic's HAProxy, repeats nothing, and notes what it was told: OK, FAILED when
the database certainly refused, UNKNOWN otherwise. Transfers move money and never make any; ALTERs may be repeated.
"""

import random
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing, suppress
from typing import Any

import pymysql

from chaos.attack.verdicts import Append, Read, Total
from chaos.history import Outcome
from chaos.lab_file import Clinic
from chaos.traffic import AnyConnection, connect, describe, outcome_of
from cluster import clock
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Unreachable

VALUES_OF_A_LIST = 50
ACCOUNTS, OPENING_BALANCE = 10, 1_000
TOTAL = ACCOUNTS * OPENING_BALANCE
LISTS_A_SECOND, TRANSFERS_A_SECOND, ALTERS_A_SECOND = 10.0, 6.0, 0.5
TOTAL_EVERY = 4
RECONNECT_PAUSE_S = 0.05
STOP_DEADLINE_MS = 30_000.0
PREPARE_DEADLINE_MS = 30_000.0
PREPARE_PAUSE_S = 0.2
TABLES = (
    "CREATE TABLE IF NOT EXISTS attackList (list VARCHAR(60) NOT NULL, value INT NOT NULL, PRIMARY KEY (list, value)) "
    "ENGINE=InnoDB",
    "CREATE TABLE IF NOT EXISTS attackAccount (id INT NOT NULL PRIMARY KEY, balance INT NOT NULL) ENGINE=InnoDB",
    f"INSERT IGNORE INTO attackAccount VALUES {', '.join(f'({one}, {OPENING_BALANCE})' for one in range(ACCOUNTS))}",
)
UPGRADE = (
    "ALTER TABLE demographic ADD COLUMN IF NOT EXISTS attack_alias VARCHAR(40) NOT NULL DEFAULT ''",
    "ALTER TABLE appointment ADD KEY IF NOT EXISTS attack_status (status, appointment_date)",
    "ALTER TABLE Prescription ADD COLUMN IF NOT EXISTS attack_refill INT DEFAULT NULL, ALGORITHM=COPY",
    "ALTER TABLE demographic MODIFY attack_alias VARCHAR(300) NOT NULL DEFAULT ''",
    "ALTER TABLE appointment DROP KEY IF EXISTS attack_status",
    "ALTER TABLE Prescription DROP COLUMN IF EXISTS attack_refill",
    "ALTER TABLE demographic DROP COLUMN IF EXISTS attack_alias",
)
"""What an upgrade of OSCAR does to its tables, again and again, while clinics write to them."""


class Lists:
    """Who appends where now; shared by the workers, so that each reads the others' lists too."""

    def __init__(self) -> None:
        self._newest: dict[str, str] = {}
        self._lock = threading.Lock()

    def name(self, clinic: str, value: int) -> str:
        """Return the list that a value of a clinic belongs to: a list stays short, and one read is all of it."""
        name = f"{clinic}/{value // VALUES_OF_A_LIST}"
        with self._lock:
            self._newest[clinic] = name
        return name

    def newest(self) -> list[str]:
        with self._lock:
            return sorted(self._newest.values())


class Worker:
    """One connection and a rhythm. `step` does one thing; what PyMySQL raises there ends the connection."""

    def __init__(self, clinic: Clinic, per_second: float, seed: str) -> None:
        self.clinic = clinic
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.server_id: int | None = None
        self.last_answer: Nanos | None = None
        self.error = ""
        """The last one."""
        self._random = random.Random(seed)
        self._period = Nanos(int(clock.NANOS_PER_SECOND / per_second))
        self._connection: AnyConnection | None = None

    def step(self, connection: AnyConnection) -> None:
        raise NotImplementedError

    def run(self, stop: threading.Event) -> None:
        due = clock.now()
        while not stop.wait(clock.seconds_left(due)):
            due = Nanos(max(due + self._period, clock.now() - self._period))
            try:
                if self._connection is None:
                    self._connection, peer = connect(self.clinic)
                    self.server_id = peer.server_id
                self.step(self._connection)
                self.last_answer = clock.now()
            except (pymysql.Error, OSError) as error:
                self.error = describe(error)
                self.close()
                stop.wait(RECONNECT_PAUSE_S)
        self.close()

    def tell(self, act: Callable[[], object]) -> tuple[Outcome, Nanos | None]:
        """Do one write; return how it ended and when it was acknowledged. An unknown end ends the connection."""
        try:
            act()
        except (pymysql.Error, OSError) as error:
            outcome, self.error = outcome_of(error), describe(error)
            self.outcomes[outcome] += 1
            self.close()
            return outcome, None
        self.outcomes[Outcome.OK] += 1
        return Outcome.OK, clock.now()

    def close(self) -> None:
        if self._connection is not None:
            with suppress(pymysql.Error, OSError):
                self._connection.close()
        self._connection = None


class ListWorker(Worker):
    """Appends values that are unique, and reads whole lists, its own and the others'."""

    def __init__(self, clinic: Clinic, lists: Lists, seed: int) -> None:
        super().__init__(clinic, LISTS_A_SECOND, f"lists/{seed}/{clinic.name}")
        self.appends: list[Append] = []
        self.reads: list[Read] = []
        self._lists, self._value = lists, 0

    def step(self, connection: AnyConnection) -> None:
        names = self._lists.newest()
        if names and self._random.random() < 0.5:
            self._read(connection, self._random.choice(names))
        else:
            self._append(connection)

    def _append(self, connection: AnyConnection) -> None:
        value, self._value = self._value, self._value + 1
        name, invoked_at = self._lists.name(self.clinic.name, value), clock.now()
        outcome, at = self.tell(lambda: _rows(connection, "INSERT INTO attackList VALUES (%s, %s)", (name, value)))
        self.appends.append(Append(register=name, value=value, invoked_at=invoked_at, answered_at=at, outcome=outcome))

    def _read(self, connection: AnyConnection, name: str) -> None:
        invoked_at = clock.now()
        rows = _rows(connection, "SELECT value FROM attackList WHERE list = %s", (name,))
        self.reads.append(Read(
            clinic=self.clinic.name, register=name, invoked_at=invoked_at, answered_at=clock.now(),
            values=frozenset(int(row[0]) for row in rows), server_id=self.server_id,
        ))  # fmt: skip


class BankWorker(Worker):
    """Moves money between accounts, in transactions of two changes, and reads the total."""

    def __init__(self, clinic: Clinic, seed: int) -> None:
        super().__init__(clinic, TRANSFERS_A_SECOND, f"bank/{seed}/{clinic.name}")
        self.totals: list[Total] = []

    def step(self, connection: AnyConnection) -> None:
        if self._random.randrange(TOTAL_EVERY) == 0:
            self._read(connection)
            return
        giver, taker = self._random.sample(range(ACCOUNTS), k=2)
        self.tell(lambda: self._transfer(connection, giver, taker, self._random.randint(1, 20)))

    def _transfer(self, connection: AnyConnection, giver: int, taker: int, amount: int) -> None:
        changes = sorted(
            [(giver, -amount), (taker, amount)]
        )  # always in this order: two transfers never wait in a ring
        _rows(connection, "START TRANSACTION")
        for account, change in changes:
            _rows(connection, "UPDATE attackAccount SET balance = balance + %s WHERE id = %s", (change, account))
        _rows(connection, "COMMIT")

    def _read(self, connection: AnyConnection) -> None:
        invoked_at = clock.now()
        ((amount,),) = _rows(connection, "SELECT COALESCE(SUM(balance), 0) FROM attackAccount")
        self.totals.append(
            Total(clinic=self.clinic.name, invoked_at=invoked_at, amount=int(amount), server_id=self.server_id)
        )


class UpgradeWorker(Worker):
    """Goes through the steps of an upgrade, round and round. A step whose answer was lost is done again."""

    def __init__(self, clinic: Clinic) -> None:
        super().__init__(clinic, ALTERS_A_SECOND, "")
        self._next = 0

    def step(self, connection: AnyConnection) -> None:
        outcome, _ = self.tell(lambda: _rows(connection, UPGRADE[self._next]))
        if outcome is Outcome.OK:
            self._next = (self._next + 1) % len(UPGRADE)


class Workloads:
    """All of them at once, beside the OSCAR traffic. Use as a context manager: leaving it stops them."""

    def __init__(self, clinics: Sequence[Clinic], seed: int) -> None:
        lists = Lists()
        self.lists = [ListWorker(clinic, lists, seed) for clinic in clinics]
        self.bank = [BankWorker(clinic, seed) for clinic in clinics]
        self.upgrade = UpgradeWorker(clinics[-1])
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Workloads":
        for worker in self.workers:
            thread = threading.Thread(target=worker.run, args=(self._stop,), daemon=True, name=type(worker).__name__)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(DeadlinePassed):
            self.stop()

    @property
    def workers(self) -> tuple[Worker, ...]:
        return (*self.lists, *self.bank, self.upgrade)

    def stop(self) -> None:
        """Stop every worker after what it is at. Raises DeadlinePassed when one does not end."""
        self._stop.set()
        limit = clock.after(clock.now(), STOP_DEADLINE_MS)
        for thread in self._threads:
            thread.join(clock.seconds_left(limit))
        running = [thread.name for thread in self._threads if thread.is_alive()]
        if running:
            raise DeadlinePassed(f"{', '.join(running)} did not end within {STOP_DEADLINE_MS:.0f} ms")

    @property
    def appends(self) -> list[Append]:
        return [one for worker in self.lists for one in tuple(worker.appends)]

    @property
    def reads(self) -> list[Read]:
        return [one for worker in self.lists for one in tuple(worker.reads)]

    @property
    def totals(self) -> list[Total]:
        return [one for worker in self.bank for one in tuple(worker.totals)]

    @property
    def transfers(self) -> int:
        """Return how many were acknowledged."""
        return sum(worker.outcomes[Outcome.OK] for worker in self.bank)


def prepare(clinic: Clinic) -> None:
    """Make the tables and open the accounts through the clinic's endpoint. Raises Unreachable at the deadline."""
    deadline, pause = clock.after(clock.now(), PREPARE_DEADLINE_MS), threading.Event()
    while True:
        try:
            connection, _ = connect(clinic)
            with closing(connection):
                for statement in TABLES:
                    _rows(connection, statement)
            return
        except (pymysql.Error, OSError) as error:
            if clock.now() >= deadline:
                raise Unreachable(f"clinic {clinic.name}: no tables could be made: {describe(error)}") from error
        pause.wait(PREPARE_PAUSE_S)


def final_lists(clinic: Clinic) -> Mapping[str, Set[int]]:
    """Return every list as it is at the end, read as a clinic reads. Raises Unreachable."""
    found: dict[str, set[int]] = {}
    for name, value in _read_all(clinic, "SELECT list, value FROM attackList"):
        found.setdefault(str(name), set()).add(int(value))
    return found


def final_total(clinic: Clinic) -> Total:
    """Return what all accounts hold at the end. Raises Unreachable."""
    ((amount,),) = _read_all(clinic, "SELECT COALESCE(SUM(balance), 0) FROM attackAccount")
    return Total(clinic=clinic.name, invoked_at=clock.now(), amount=int(amount))


def _read_all(clinic: Clinic, query: str) -> Sequence[Sequence[Any]]:
    try:
        connection, _ = connect(clinic)
        with closing(connection):
            return _rows(connection, query)
    except (pymysql.Error, OSError) as error:
        raise Unreachable(f"clinic {clinic.name} cannot read: {describe(error)}") from error


def _rows(connection: AnyConnection, query: str, arguments: tuple[object, ...] = ()) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments or None)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows
