"""What of an archive may go: from its front only, what is too old or too much, and never what anybody still needs. Pure.

A floor is a position that somebody has reached: what lies behind it is still to be read. One whose position is not
known needs everything. Where a limit and a floor contradict each other the floor wins, and `held_back` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cluster.lineage import History, judge_history
from cluster.position import Position
from cluster.records import LineageEntry, NodeReport, ReplicatorReport
from cluster.settings import ArchiveRules

FILES_KEPT_MIN = 2
"""The newest files stay whatever the limits say: the one that grows, and the one before it."""
SECONDS_PER_DAY = 86_400
HOLDERS_NAMED_MAX = 5


class Fate(StrEnum):
    """What becomes of a file."""

    GOES = "goes"
    STAYS = "stays"
    HELD = "held"
    """A limit says that it goes, and something that is stronger keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFile:
    """A file of the archive, as far as the decision needs it."""

    identity: str
    """As `epoch-server/file`."""
    stored_bytes: int
    """On disk, with its index."""
    newest: int | None
    """The latest commit in it as the primary's clock said, Unix seconds; None while that is not known."""
    end: Position
    """The position behind it: who has reached that needs nothing of it."""
    closed: bool
    settled: bool = True
    """Its epoch lacks no end that somebody may still have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What somebody has reached, and so what it still needs."""

    who: str
    position: Position | None
    """None: not known, so it may need everything."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one file, and why."""

    file: HeldFile
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What becomes of all files, oldest first."""

    verdicts: tuple[Verdict, ...]
    held_by: tuple[str, ...]
    """Whose floors keep what a limit says may go."""
    over_bytes: int
    """By how much the archive is larger than `max_bytes` when all has gone that may."""

    @property
    def going(self) -> tuple[HeldFile, ...]:
        """Return the files that go, oldest first."""
        return tuple(one.file for one in self.verdicts if one.fate is Fate.GOES)

    @property
    def held_back(self) -> str:
        """Return what a limit wants and does not get, as one sentence; empty when it gets everything."""
        held = [one for one in self.verdicts if one.fate is Fate.HELD]
        if not held:
            return ""
        size = sum(one.file.stored_bytes for one in held)
        much = f", {self.over_bytes} bytes more than max_bytes allows" if self.over_bytes else ""
        return f"{len(held)} files of {size} bytes are kept beyond their time{much}: {held[0].why}"


def what_may_go(files: Sequence[HeldFile], floors: Sequence[Floor], rules: ArchiveRules, now: int | None) -> Judgement:
    """Judge the files of an archive, oldest first. `now` are Unix seconds; None: nothing is too old.

    What goes is a front part of `files`, so that nothing is ever missing between two files that stay.
    """
    left = sum(one.stored_bytes for one in files)
    verdicts, holders, front = list[Verdict](), dict[str, None](), True
    for number, one in enumerate(files):
        wanted, newest = _limit(one, left, rules, now), len(files) - number <= FILES_KEPT_MIN
        who = [floor for floor in floors if not _spares(floor, one)]
        kept = _always_kept(one, newest=newest) or _needed(who)
        if not wanted or newest:
            verdict = Verdict(file=one, fate=Fate.STAYS, why=kept or _young(one, now))
        elif kept or not front:
            verdict = Verdict(
                file=one, fate=Fate.HELD, why=kept or "an older file stays: nothing may be missing between"
            )
            holders |= dict.fromkeys(floor.who for floor in who)
        else:
            verdict = Verdict(file=one, fate=Fate.GOES, why=wanted)
        verdicts.append(verdict)
        front = front and verdict.fate is Fate.GOES
        # What a limit wants is counted as gone: those behind it are judged as if it had its way.
        left -= one.stored_bytes if wanted else 0
    staying = sum(one.file.stored_bytes for one in verdicts if one.fate is not Fate.GOES)
    over = 0 if rules.max_bytes is None else max(0, staying - rules.max_bytes)
    return Judgement(verdicts=tuple(verdicts), held_by=tuple(holders), over_bytes=over)


def _limit(one: HeldFile, left: int, rules: ArchiveRules, now: int | None) -> str:
    """Return which limit says that a file goes; empty when none does."""
    if now is not None and one.newest is not None and now - one.newest > rules.keep_days * SECONDS_PER_DAY:
        return f"nothing in it is younger than {rules.keep_days} days"
    if rules.max_bytes is not None and left > rules.max_bytes:
        return f"the archive has more than {rules.max_bytes} bytes"
    return ""


def _spares(floor: Floor, one: HeldFile) -> bool:
    return floor.position is not None and floor.position.covers(one.end)


def _always_kept(one: HeldFile, *, newest: bool) -> str:
    if not one.closed:
        return "it grows"
    if newest:
        return f"the newest {FILES_KEPT_MIN} files always stay"
    return "" if one.settled else "its epoch's end is missing here, and may still come"


def _needed(floors: Sequence[Floor]) -> str:
    named = [f"{one.who} needs it: {one.why}" for one in floors[:HOLDERS_NAMED_MAX]]
    return "; ".join(named + ([f"and {len(floors) - len(named)} more"] if len(floors) > len(named) else []))


def _young(one: HeldFile, now: int | None) -> str:
    if one.newest is None or now is None:
        return "it is not known yet how old it is"
    return "the clock it was written by is ahead of ours" if one.newest > now else "no limit is reached"


def now_of(wall: int, newest: Sequence[int | None]) -> int | None:
    """Return the time by which age is judged: the earlier of our clock and the newest commit that is archived.

    So a clock of ours that jumps removes nothing, and an archive that nothing is added to does not shrink.
    """
    known = [one for one in newest if one is not None]
    return min(wall, max(known)) if known else None


def floor_of_node(name: str, report: NodeReport | None, lineage: Sequence[LineageEntry]) -> Floor:
    """Return what a database still needs, whatever its role. One that is not heard of may come back from anywhere."""
    who = f"node {name}"
    if report is None:
        return Floor(who=who, position=None, why="its watchdog does not report, so nobody knows where it stands")
    if report.seeding is not None and report.seeding.phase.replaces:
        return Floor(who=who, position=None, why="it is being seeded, and will follow from where the copy stands")
    if report.position is None:
        return Floor(who=who, position=None, why=f"its database is {report.database}, so nobody knows where it stands")
    position = Position.parse(report.position)
    if judge_history(position, lineage, None) is History.DIVERGED:
        return Floor(who=who, position=None, why=f"it is at {position}, which is not in the history: it may be rewound")
    return Floor(who=who, position=position, why=f"it is a {report.role} at {position or 'nothing'}")


def floor_of_replicator(site: str, report: ReplicatorReport | None) -> Floor:
    """Return what another replicator may still fetch from this one."""
    who = f"replicator {site}"
    if report is None:
        return Floor(who=who, position=None, why="it does not report, so nobody knows what it has")
    if report.durable is None:
        return Floor(who=who, position=None, why="it has nothing yet")
    if not report.whole:
        return Floor(who=who, position=None, why="it lacks the end of an earlier epoch")
    if report.damaged_files > len(report.damaged) or not all(one.nobody for one in report.damaged):
        return Floor(who=who, position=None, why="files of its archive are damaged, and may be fetched from here")
    return Floor(who=who, position=Position.parse(report.durable), why=f"it has everything up to {report.durable}")


def floors_of(
    nodes: Mapping[str, NodeReport | None], replicators: Mapping[str, ReplicatorReport | None],
    lineage: Sequence[LineageEntry],
) -> tuple[Floor, ...]:  # fmt: skip
    """Return the floors of every member of the cluster, whether it was heard of or not."""
    return (
        *(floor_of_node(name, report, lineage) for name, report in nodes.items()),
        *(floor_of_replicator(site, report) for site, report in replicators.items()),
    )
