"""What a clinic does all day, as statements. Pure: the same seed and the same answers give the same statements.

Every statement is one autocommitted write with its own token; every second one is the audit line of the one before it,
as OSCAR writes its `log`. A row is changed only when the database acknowledged that it made it.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

REMEMBERED_MAX = 500
"""How many of its newest patients and appointments a clinic goes back to."""
LONG_NOTE_EVERY = 25
LONG_NOTE_PARAGRAPHS = 120
NON_TRANSACTIONAL = frozenset({"labInbox"})
CHANGEABLE = frozenset({"demographic", "appointment"})
TABLES = (
    "demographic", "appointment", "chartNote", "chartNoteIssue", "Prescription", "billingClaim", "labInbox", "log",
)  # fmt: skip

LAST_NAMES = ("Tremblay", "Nguyen", "Singh", "O'Brien", "Côté", "MacDonald", "Müller", "Li", "Kowalski", "Desrosiers")
FIRST_NAMES = ("Zoé", "Amir", "Grace", "Noël", "Priya", "Jean-Luc", "Aiyana", "Oleg", "Fatima", "Sam")
DRUGS = ("ramipril 5 mg", "metformin 500 mg", "amoxicillin 250 mg", "salbutamol 100 mcg", "levothyroxine 50 mcg")
SERVICE_CODES = ("A001A", "A003A", "A007A", "G010A", "K005A")
ISSUES = ("250", "401", "493", "311", "V70")
LABS = ("HbA1c 6.8 %", "K 4.1 mmol/L", "TSH 2.2 mIU/L", "Hb 131 g/L", "INR 2.4")
PROVIDERS = ("999998", "100123", "100456")
SENTENCE = "Patient seen, vitals stable; plan discussed, à revoir dans trois mois. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One write. `number_query` is run first and its value is the first argument: OSCAR's MAX(id)+1."""

    sequence: int
    token: str
    kind: str
    table: str
    sql: str
    arguments: tuple[object, ...]
    changes: str | None = None
    number_query: tuple[str, tuple[object, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row that the database acknowledged: the write that made it, and its number."""

    token: str
    number: int


class Script:
    """The statements of one clinic, one after the other."""

    def __init__(self, clinic: str, run: str, seed: int) -> None:
        self.clinic = clinic
        self._run = run
        self._random = random.Random(f"{seed}/{clinic}")
        self._sequence = 0
        self._audited: Statement | None = None
        self._patients: deque[Row] = deque(maxlen=REMEMBERED_MAX)
        self._appointments: deque[Row] = deque(maxlen=REMEMBERED_MAX)
        self._notes: deque[Row] = deque(maxlen=REMEMBERED_MAX)

    def next(self) -> Statement:
        """Return the next statement: an action, then its audit line."""
        self._sequence += 1
        if self._audited is not None:
            action, self._audited = self._audited, None
            return self._audit(action)
        statement = self._choose()()
        self._audited = statement
        return statement

    def acknowledged(self, statement: Statement, number: int) -> None:
        """Take note that the database has the row of `statement`; `number` is the one it gave it."""
        if statement.changes is not None:
            return
        memory = {"demographic": self._patients, "appointment": self._appointments, "chartNote": self._notes}
        if statement.table in memory:
            memory[statement.table].append(Row(statement.token, number))

    def _choose(self) -> Callable[[], Statement]:
        if not self._patients:
            return self._register
        able: list[tuple[Callable[[], Statement], int]] = [
            (self._register, 10), (self._book, 24), (self._note, 20), (self._prescribe, 14), (self._bill, 12),
            (self._receive_lab, 3), (self._move, 5),
        ]  # fmt: skip
        if self._appointments:
            able.append((self._reschedule, 8))
        if self._notes:
            able.append((self._mark_issue, 6))
        actions, weights = zip(*able, strict=True)
        chosen: Callable[[], Statement] = self._random.choices(actions, weights)[0]
        return chosen

    def _register(self) -> Statement:
        return self._insert(
            "register", "demographic", "last_name, first_name, hin, sex, date_of_birth, phone",
            self._random.choice(LAST_NAMES), self._random.choice(FIRST_NAMES),
            str(self._random.randrange(10**9, 10**10)), self._random.choice("FMXU"), self._a_date(1930, 2025),
            f"416-555-{self._random.randrange(10_000):04d}",
        )  # fmt: skip

    def _book(self) -> Statement:
        return self._insert(
            "book", "appointment", "demographic_no, provider_no, appointment_date, start_time, reason",
            self._patient().number, self._random.choice(PROVIDERS), self._a_date(2026, 2027),
            f"{self._random.randrange(8, 18):02d}:{self._random.choice((0, 15, 30, 45)):02d}:00", "follow-up",
        )  # fmt: skip

    def _note(self) -> Statement:
        paragraphs = LONG_NOTE_PARAGRAPHS if self._random.randrange(LONG_NOTE_EVERY) == 0 else 2
        return self._insert(
            "note", "chartNote", "demographic_no, uuid, note, signed",
            self._patient().number, f"{self._random.getrandbits(128):032x}", SENTENCE * paragraphs,
            self._random.randrange(2),
        )  # fmt: skip

    def _prescribe(self) -> Statement:
        return self._insert(
            "prescribe", "Prescription", "demographic_no, drug, dosage, quantity, rx_date, special",
            self._patient().number, self._random.choice(DRUGS), self._random.choice((0.5, 1.0, 2.0)), "30",
            self._a_date(2026, 2026), self._random.randbytes(24),
        )  # fmt: skip

    def _bill(self) -> Statement:
        columns = "id, clinic, demographic_no, service_code, fee, billing_date"
        token = self._token()
        arguments = (self.clinic, self._patient().number, self._random.choice(SERVICE_CODES),
                     f"{self._random.randrange(1_000, 20_000) / 100:.2f}", self._a_date(2026, 2026), token)  # fmt: skip
        return Statement(
            sequence=self._sequence, token=token, kind="bill", table="billingClaim",
            sql=f"INSERT INTO billingClaim ({columns}, ha_token) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            arguments=arguments,
            number_query=("SELECT COALESCE(MAX(id), 0) + 1 FROM billingClaim WHERE clinic = %s", (self.clinic,)),
        )  # fmt: skip

    def _receive_lab(self) -> Statement:
        return self._insert("lab", "labInbox", "demographic_no, lab, result",
                            self._patient().number, "LifeLab", self._random.choice(LABS))  # fmt: skip

    def _mark_issue(self) -> Statement:
        return self._insert("issue", "chartNoteIssue", "note_id, issue_code",
                            self._random.choice(self._notes).number, self._random.choice(ISSUES))  # fmt: skip

    def _move(self) -> Statement:
        return self._change("move", "demographic", "demographic_no", self._patient(),
                            "phone = %s", f"905-555-{self._random.randrange(10_000):04d}")  # fmt: skip

    def _reschedule(self) -> Statement:
        return self._change("reschedule", "appointment", "appointment_no", self._random.choice(self._appointments),
                            "status = %s", self._random.choice(("t", "H", "P", "C", "N")))  # fmt: skip

    def _audit(self, action: Statement) -> Statement:
        return self._insert("audit", "log", "dateTime, provider_no, action, content, contentId, ip",
                            "0000-00-00 00:00:00", self._random.choice(PROVIDERS), action.kind, action.table,
                            action.token, "127.0.0.1")  # fmt: skip

    def _insert(self, kind: str, table: str, columns: str, *values: object) -> Statement:
        token = self._token()
        places = ", ".join(["%s"] * (len(values) + 1))
        return Statement(
            sequence=self._sequence, token=token, kind=kind, table=table,
            sql=f"INSERT INTO {table} ({columns}, ha_token) VALUES ({places})", arguments=(*values, token),
        )  # fmt: skip

    def _change(self, kind: str, table: str, key: str, row: Row, assignment: str, value: object) -> Statement:
        return Statement(
            sequence=self._sequence, token=self._token(), kind=kind, table=table,
            sql=f"UPDATE {table} SET {assignment}, ha_touched = %s WHERE {key} = %s AND ha_token = %s",
            arguments=(value, self._sequence, row.number, row.token), changes=row.token,
        )  # fmt: skip

    def _token(self) -> str:
        return f"{self.clinic}/{self._run}/{self._sequence:07d}"

    def _patient(self) -> Row:
        return self._random.choice(self._patients)

    def _a_date(self, first_year: int, last_year: int) -> str:
        year = self._random.randint(first_year, last_year)
        return f"{year}-{self._random.randint(1, 12):02d}-{self._random.randint(1, 28):02d}"
