"""From a server's own binlog to a rescue: which transactions the cluster has not, and whether these are all of them.

They are complete when the files that hold them are an unbroken chain: it begins before histories part, every file begins
where the one before it ends, and the last ends with what the server says it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.binlog.decoding import Decoder, Definition, definitions_of
from cluster.binlog.events import GroupTracker, Kind, gtid_of, require_known
from cluster.binlog.framing import EventHeader
from cluster.binlog.reading import events_of, head_of
from cluster.dialect import Session
from cluster.errors import Diverged, MalformedStream
from cluster.lineage import is_foreign
from cluster.position import Gtid, Position
from cluster.records import LineageEntry
from healthcheck.rescue_folder import Draft
from healthcheck.rescue_lines import Teller

Columns = Callable[[str], Mapping[str, Definition]]
"""Asks a server what the tables of that name consist of, by `database.table`."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A binlog file as the server lists it."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """What is read."""

    files: Sequence[LogFile]
    """Oldest first."""
    position: Position
    """Everything the server had when it was asked, before it listed the files."""
    lineage: Sequence[LineageEntry]

    def foreign(self, position: Position) -> dict[int, Gtid]:
        """Return the last transactions of a position that are not the cluster's, by domain."""
        return {domain: gtid for domain, gtid in position.last.items() if is_foreign(gtid, self.lineage)}


class Definitions(Mapping[str, Definition]):
    """Asks the server what a table consists of, once for each table, when the binlog does not say it."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._known: dict[str, Definition | None] = {}

    def __getitem__(self, name: str) -> Definition:
        if name not in self._known:
            self._known[name] = self._columns(name.split(".", 1)[1]).get(name)
        found = self._known[name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def source_of(session: Session, lineage: Sequence[LineageEntry]) -> Source:
    """Ask a server what it has and in which files."""
    position = Position.parse(session.probe().position)
    files = [LogFile(Path(path), size) for path, size in session.binary_logs()]
    return Source(files, position, lineage)


def columns_of(session: Session) -> Columns:
    """Return what asks this session."""
    return lambda table: definitions_of(*session.columns(table))


def chain_of(source: Source) -> tuple[list[LogFile], str]:
    """Return the newest files, as many as may hold what is foreign; and why they do not hold all of it."""
    chosen = list[LogFile]()
    for file in reversed(source.files):
        try:
            start = head_of(file.path, until=file.size)
        except (MalformedStream, OSError) as error:
            return chosen, _said(error)
        chosen.insert(0, file)
        if not source.foreign(start):
            return chosen, ""
    return chosen, "the server has removed the files where its history parts from the cluster's"


class Reader:
    """Reads what is foreign into a draft."""

    def __init__(self, source: Source, draft: Draft, columns: Columns) -> None:
        self.parts: Position | None = None
        """The position before the first of them."""
        self._source, self._draft = source, draft
        self._teller = Teller(Decoder(Definitions(columns)))
        self._tracker = GroupTracker(Position())
        self._description, self._announced = b"", ""
        self._open: Gtid | None = None

    def read(self) -> str:
        """Read all files; return why that is not everything, empty when it is. Raises OSError when the disk is full."""
        files, why = chain_of(self._source)
        end: Position | None = None
        for file in files:
            try:
                start = head_of(file.path, until=file.size)
                if end is not None and end != start:
                    return f"{file.path.name} begins at {start or 'nothing'}, the file before it ends at {end or 'nothing'}"
                end = self._file(file, start)
            except (MalformedStream, Diverged, FileNotFoundError, PermissionError) as error:
                self._torn()
                return _said(error)
        return why or self._missing(end or Position())

    def _missing(self, end: Position) -> str:
        missing = [str(gtid) for domain, gtid in self._source.foreign(self._source.position).items()
                   if end.last.get(domain) is None or end.sequence(domain) < gtid.sequence]  # fmt: skip
        return f"the server says it has {', '.join(missing)}, its binlog ends at {end}" if missing else ""

    def _file(self, file: LogFile, start: Position) -> Position:
        self._tracker = tracker = GroupTracker(start)
        self._announced = ""
        for header, _, event in events_of(file.path, until=file.size):
            require_known(header)
            if header.kind == Kind.FORMAT_DESCRIPTION:
                self._description = bytes(event)
            before = tracker.position if header.kind == Kind.GTID else None
            boundary = tracker.follow(header, event)
            if before is not None:
                self._begin(file, before, header, event)
            elif self._open is not None:
                self._event(header, event)
                if boundary:
                    self._end()
        self._torn()
        return tracker.position

    def _begin(self, file: LogFile, before: Position, header: EventHeader, event: memoryview) -> None:
        sequence, domain, _ = gtid_of(event)
        gtid = Gtid(domain, header.server_id, sequence)
        if not is_foreign(gtid, self._source.lineage):
            return
        if self._announced != file.path.name:
            self._announced = file.path.name
            self._draft.file(file.path.name, self._description)
        self.parts = self.parts or before
        self._open = gtid
        self._draft.event(event)
        self._teller.begin(gtid, header, event)

    def _event(self, header: EventHeader, event: memoryview) -> None:
        self._draft.event(event)
        for line in self._teller.event(header, event):
            self._draft.line(line)

    def _end(self) -> None:
        assert self._open is not None, "a transaction that was begun"
        for line in self._teller.end():
            self._draft.line(line)
        self._draft.whole(self._open)
        self._open = None

    def _torn(self) -> None:
        if self._open is not None:
            self._teller.number = self._draft.torn()
            self._open = None


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
