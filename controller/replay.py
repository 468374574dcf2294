"""Applying rescued rows to the primary, in the transactions that they were; a second run does nothing twice.

Every row is compared first (controller/replaying.py). What was done is remembered in the same transaction, in
`oscar_ha.replayed`, and then in the rescue: a run that dies anywhere may be repeated.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from cluster import clock
from cluster.errors import Refused
from controller.replay_target import SAVEPOINT, RowRefused, Target, TargetTable
from controller.replaying import Cells, Judged, Situation, Verdict, equal, judge
from controller.rescue_source import Ranges, RescueSource
from healthcheck.rescue_lines import OWN_TABLES, ROW_KINDS, Json, Line
from healthcheck.rescuing import Mark
from replicator.find import same

TOLD_MAX = 1_000
"""So many conflicts are told one by one; all are counted."""
TRIED_ROWS_MAX = 100_000
"""A dry run remembers what rows would be; more than so many are too many at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which rows are meant; what is empty does not matter."""

    table: str = ""
    key: tuple[str, ...] = ()
    gtid: str = ""

    def fits(self, line: Line) -> bool:
        """Return whether a line is meant. Rows of our own database never are: heartbeats are nobody's work."""
        if line.table.startswith(OWN_TABLES) or (self.gtid and line.gtid != self.gtid):
            return False
        if self.table and self.table not in (line.table, line.table.split(".", 1)[-1]):
            return False
        return not self.key or (line.key is not None and _is_key(list(line.key.values()), self.key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A row that was left alone, or overwritten."""

    number: int
    gtid: str
    kind: str
    table: str
    key: dict[str, Json] | None
    why: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What a replay did, or would do."""

    rescue: str
    to: str
    dry_run: bool
    applied: int = 0
    present: int = 0
    """They were as rescued already."""
    done_before: int = 0
    """An earlier run has done them."""
    overwritten: int = 0
    conflicts: int = 0
    left: int = 0
    """Statements and rows that are not to be applied by a program."""
    told: list[Told] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.conflicts and not self.left

    def tell(self, line: Line, why: str) -> None:
        """Tell of a line, if that are not too many."""
        if len(self.told) < TOLD_MAX:
            self.told.append(
                Told(number=line.number, gtid=line.gtid, kind=line.kind, table=line.table, key=line.key, why=why)
            )

    def as_record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "clean": self.clean}


def undecided(lines: Iterable[Line]) -> dict[str, str]:
    """Return why whole transactions are not to be applied, by GTID: they were rolled back, or never decided."""
    found = dict[str, str]()
    for line in lines:
        if line.prepared:
            found[line.gtid] = "an XA transaction that was prepared, and never decided: --gtid applies it all the same"
        elif line.kind == "rollback":
            found[line.gtid] = "it was rolled back in part: --gtid applies it all the same"
    return found


class Replay:
    """One run."""

    def __init__(self, source: RescueSource, target: Target, report: Report, *, overwrite: bool) -> None:
        self._source, self._target, self._rescue = source, target, report.rescue
        self._report, self._overwrite = report, overwrite
        self._tried: dict[tuple[str, tuple[Any, ...]], Cells | None] = {}
        """What a dry run would have made of rows."""

    def run(self, chosen: Chosen, held_back: dict[str, str]) -> Report:
        """Apply what is chosen, transaction by transaction. Raises OscarHaError; what is done stays done."""
        if not self._report.dry_run:
            self._target.prepare()
        done = _Done(self._source.done(self._rescue))
        for gtid, group in groupby(
            (one for one in self._source.lines(self._rescue) if chosen.fits(one)), key=lambda one: one.gtid
        ):
            why = "" if chosen.gtid else held_back.get(gtid, "")
            self._transaction(self._wanted(group, done), why)
        return self._report

    def _wanted(self, lines: Iterable[Line], done: "_Done") -> Iterator[Line]:
        for line in lines:
            if line.number in done:
                self._report.done_before += 1
            elif line.kind != "empty":
                yield line

    def _transaction(self, lines: Iterator[Line], why: str) -> None:
        marks = list[Mark]()
        if not self._report.dry_run:
            self._target.begin()
        for line in lines:
            if outcome := self._line(line, why):
                marks.append(Mark(number=line.number, outcome=outcome, at=clock.utc_now()))
        if self._report.dry_run:
            return
        self._target.commit()
        if marks:
            self._source.mark(self._rescue, marks)

    def _line(self, line: Line, why: str) -> str:
        """Apply a line if it may be; return what became of it."""
        report = self._report
        why = (
            why
            or line.why
            or ("" if line.kind in ROW_KINDS else f"a {line.kind} is not applied by a program: {line.statement[:200]}")
        )
        if why:
            report.left += 1
            report.tell(line, why)
            return ""
        if not report.dry_run and self._target.is_marked(self._rescue, line.number):
            report.done_before += 1
            return "applied"
        try:
            return self._row(line)
        except RowRefused as error:
            report.conflicts += 1
            report.tell(line, str(error))
            return "conflict"

    def _row(self, line: Line) -> str:
        table = self._target.table(line.table)
        before, after = (None if row is None else table.cells(row) for row in (line.before, line.after))
        if table.key and any(name not in row for row in (before, after) if row is not None for name in table.key):
            raise RowRefused(f"the primary key of {table.name} is not in the rescued row")
        situation = self._situation(table, before, after)
        judged = judge(situation)
        if judged.verdict is Verdict.CONFLICT and not self._overwrite:
            self._report.conflicts += 1
            self._report.tell(line, judged.why)
            return "conflict"
        if judged.verdict is Verdict.PRESENT:
            self._report.present += 1
            self._mark(line)
            return "present"
        self._write(table, situation)
        self._mark(line)
        return self._counted(line, judged)

    def _counted(self, line: Line, judged: Judged) -> str:
        if judged.verdict is Verdict.APPLY:
            self._report.applied += 1
            return "applied"
        self._report.overwritten += 1
        self._report.tell(line, f"overwritten: {judged.why}")
        return "overwritten"

    def _situation(self, table: TargetTable, before: Cells | None, after: Cells | None) -> Situation:
        at_before = None if before is None else self._found(table, before)
        moved = before is None or (after is not None and _place(table, before) != _place(table, after))
        at_after = at_before if not moved or after is None else self._found(table, after)
        return Situation(before=before, after=after, at_before=at_before, at_after=at_after)

    def _found(self, table: TargetTable, cells: Cells) -> Cells | None:
        place = (table.name, _place(table, cells))
        if place in self._tried:
            return self._tried[place]
        return self._target.fetch(table, cells, lock=not self._report.dry_run)

    def _write(self, table: TargetTable, one: Situation) -> None:
        """Make the row what it became; the database proves that it is. Raises RowRefused, and nothing is changed."""
        if self._report.dry_run:
            self._try(table, one)
            return
        self._target.run(f"SAVEPOINT {SAVEPOINT}")
        try:
            there = one.at_after if one.at_before is None else one.at_before
            if one.after is None:
                if there is not None:
                    self._target.delete(table, there)
                return
            if there is None:
                self._target.insert(table, one.after)
            else:
                self._target.update(table, there, one.after)
            found = self._target.fetch(table, one.after, lock=True)
            if found is None or not equal(one.after, found):
                raise RowRefused("the database would not hold it as it was")
        except RowRefused:
            with suppress(RowRefused):
                self._target.run(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            raise

    def _try(self, table: TargetTable, one: Situation) -> None:
        if len(self._tried) >= TRIED_ROWS_MAX:
            raise Refused(f"more than {TRIED_ROWS_MAX} rows for one dry run", hint="narrow it with --table or --gtid")
        if one.before is not None:
            self._tried[table.name, _place(table, one.before)] = None
        if one.after is not None:
            self._tried[table.name, _place(table, one.after)] = {**(one.at_before or one.at_after or {}), **one.after}

    def _mark(self, line: Line) -> None:
        if not self._report.dry_run:
            self._target.mark(self._rescue, line.number)


class _Done:
    """Numbers of lines that need nothing more. Lines come in order, so one look at the next range is enough."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._at = list(ranges), 0

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int), "a number of a line"
        while self._at < len(self._ranges) and self._ranges[self._at][1] < number:
            self._at += 1
        return self._at < len(self._ranges) and self._ranges[self._at][0] <= number


def _place(table: TargetTable, cells: Cells) -> tuple[Any, ...]:
    return (
        tuple(cells.get(name) for name in table.key)
        if table.key
        else tuple(sorted(cells.items(), key=lambda one: one[0]))
    )


def _is_key(values: Sequence[Json], wanted: Sequence[str]) -> bool:
    return len(values) == len(wanted) and all(
        same(value if not isinstance(value, dict) else None, text) for value, text in zip(values, wanted, strict=True)
    )
