"""The folder of one rescue: written whole beside its name, read back, proven, and only then given its name.

A folder that has its name is complete, or says what it lacks (`state`). A draft is nothing: who finds one begins anew.
Charts lie in it in clear: only its owner may read it.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from cluster import durable, records
from cluster.binlog.events import Kind, gtid_of
from cluster.binlog.framing import MAGIC, MIB
from cluster.binlog.reading import events_of
from cluster.errors import BadInput, OscarHaError, Refused
from cluster.position import Gtid
from cluster.records import RescueState
from healthcheck import rescue_lines
from healthcheck.rescue_lines import OWN_TABLES, ROW_KINDS, Line

FORMAT = 1
DRAFT = ".new-"
README, LINES, RECORD, MARKS = "README.txt", "transactions.jsonl", "rescue.json", "replayed.jsonl"
RAW = "raw-"
MODE_FOLDER, MODE_FILE = 0o700, 0o600
FREE_BYTES_MIN = 64 * MIB
"""So much room is left to the server, whose disk it may be."""
LOOK_EVERY_BYTES = 8 * MIB
READ_BYTES = MIB
FOLDERS_MAX = 1_000
"""So many rescues of a node are listed, the newest."""
TABLES_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file of a rescue."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What is in it."""

    transactions: int = 0
    rows: int = 0
    own_rows: int = 0
    """Rows of our own database, as heartbeats: nobody's work, and never applied. Not counted in `rows`."""
    statements: int = 0
    """DDL too."""
    not_told: int = 0
    """Lines whose values are only in the raw events, and transactions that must not simply be applied."""
    tables: dict[str, int] = field(default_factory=dict)
    """Rows of each table, the first thousand tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """What `rescue.json` says."""

    id: str
    cluster: str
    node: str
    server_id: int
    epoch: int
    """The cluster's when it was made: its history has none of this."""
    made: str
    state: RescueState
    why: str
    """What it lacks; empty when it is complete."""
    position: str
    """Everything the node had."""
    parts: str
    """The position before the first of them: the last that node and cluster have in common."""
    first: str
    last: str
    counts: Counts
    files: dict[str, Stored]
    format: int = FORMAT


class Tally:
    """Counts transactions, and remembers all of them in their order as one number: to compare what was told with what is there."""

    def __init__(self) -> None:
        self.count, self.first, self.last = 0, "", ""
        self._sum = hashlib.sha256()

    def add(self, gtid: str) -> None:
        """Count a transaction; the same one again, right after itself, is counted once."""
        if gtid != self.last:
            self.count, self.first, self.last = self.count + 1, self.first or gtid, gtid
            self._sum.update(gtid.encode() + b"\n")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and self._sum.digest() == other._sum.digest()

    __hash__ = None  # type: ignore[assignment]  # it changes


class _Growing:
    """A file that grows by whole transactions: what a torn one has added is cut again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._sum, self._sum_kept = hashlib.sha256(), hashlib.sha256()
        self._file: IO[bytes] = open(path, "xb", opener=lambda name, flags: os.open(name, flags, MODE_FILE))  # noqa: SIM115 - closed by `close`
        self._kept = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sum.update(data)
        self.size += len(data)

    def keep(self) -> None:
        self._kept, self._sum_kept = self.size, self._sum.copy()

    def cut(self) -> None:
        self._file.flush()
        self._file.truncate(self._kept)
        self._file.seek(self._kept)
        self.size, self._sum = self._kept, self._sum_kept.copy()

    @property
    def stored(self) -> Stored:
        """Return what should be on the disk."""
        return Stored(bytes=self.size, sha256=self._sum.hexdigest())

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):  # what cannot be flushed is removed anyhow
            self._file.close()


class Draft:
    """A rescue while it is written. Every method raises OSError when the disk does not take it."""

    def __init__(self, place: Path, name: str, *, free_bytes_min: int = FREE_BYTES_MIN) -> None:
        self.name = name
        self.tally = Tally()
        self._free_bytes_min, self._looked = free_bytes_min, 0
        self._place, self._folder = place, place / f"{DRAFT}{name}"
        make_place(place)
        durable.make_directory(self._folder)
        self._require_room()
        self._lines, self._raw = _Growing(self._folder / LINES), dict[str, _Growing]()
        self._current: _Growing | None = None
        self._rows = self._own_rows = self._statements = self._not_told = self._numbers = 0
        self._tables: dict[str, int] = {}
        self._pending: Counter[tuple[str, str, bool]] = Counter()

    def file(self, name: str, description: bytes) -> None:
        """Go on with events of another binlog file, which needs its own description to be read by."""
        self._current = self._raw[name] = _Growing(self._folder / f"{RAW}{name}")
        self._current.write(MAGIC + description)
        self._current.keep()

    def event(self, event: memoryview) -> None:
        """Keep an event as it is."""
        assert self._current is not None, "a file comes first"
        self._current.write(event)
        self._looked += len(event)
        if self._looked >= LOOK_EVERY_BYTES:
            self._require_room()

    def line(self, line: Line) -> None:
        """Keep a line of the open transaction."""
        data = rescue_lines.encode(line)
        self._lines.write(data)
        self._looked += len(data)
        self._pending[line.kind, line.table, bool(line.why)] += 1

    def whole(self, gtid: Gtid) -> None:
        """The transaction is whole: count it, and keep what was written of it."""
        self.tally.add(str(gtid))
        for (kind, table, not_told), count in self._pending.items():
            self._numbers += count
            self._not_told += count if not_told else 0
            if kind in ROW_KINDS and table.startswith(OWN_TABLES):
                self._own_rows += count
            elif kind in ROW_KINDS:
                self._rows += count
                if table in self._tables or len(self._tables) < TABLES_MAX:
                    self._tables[table] = self._tables.get(table, 0) + count
            elif kind in ("ddl", "statement"):
                self._statements += count
        self._pending.clear()
        for file in (self._lines, self._current):
            if file is not None:
                file.keep()

    def torn(self) -> int:
        """The file ended in the midst of a transaction, which so was never one; return the number of the last line kept."""
        self._pending.clear()
        for file in (self._lines, self._current):
            if file is not None:
                file.cut()
        return self._numbers

    def described(self, rescue: Rescue) -> Rescue:
        """Return what its record will say, but for the files."""
        counts = Counts(transactions=self.tally.count, rows=self._rows, own_rows=self._own_rows, statements=self._statements,
                        not_told=self._not_told, tables=self._tables)  # fmt: skip
        return replace(rescue, id=self.name, first=self.tally.first, last=self.tally.last, counts=counts)

    def finish(self, rescue: Rescue, readme: str) -> Rescue:
        """Make it durable, read it back, prove it, give it its name; return what its record says. Raises OscarHaError."""
        text = _Growing(self._folder / README)
        text.write(readme.encode())
        files = (text, self._lines, *self._raw.values())
        for file in files:
            file.close()
        told = replace(self.described(rescue), files={file.path.name: file.stored for file in files})
        prove(self._folder, told, self.tally)
        data = json.dumps(asdict(told), indent=1).encode()
        durable.replace_file(self._folder / RECORD, data, mode=MODE_FILE)
        durable.rename(self._folder, self._place / self.name)
        return told

    def discard(self) -> None:
        """Remove it."""
        for file in (self._lines, *self._raw.values()):
            file.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _require_room(self) -> None:
        self._looked, free = 0, durable.free_bytes(self._folder)
        if free < self._free_bytes_min:
            raise Refused(f"{self._place}: {free // MIB} MiB are free, {self._free_bytes_min // MIB} are left to the server",
                          hint="free disk space, or set rescue_directory of the node elsewhere")  # fmt: skip


def make_place(place: Path) -> None:
    """Make the folder of all rescues, and those above it, for its owner alone."""
    for folder in (place.parent, place):
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            durable.make_directory(folder)


def stored(path: Path) -> Stored:
    """Return size and checksum of a file, read from the disk."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            found.update(data)
            size += len(data)
    return Stored(bytes=size, sha256=found.hexdigest())


def prove(folder: Path, told: Rescue, tally: Tally) -> None:
    """Raise OscarHaError unless every file is what was written, and both raw events and lines hold exactly the
    transactions of `tally`, in their order."""
    for name, wanted in told.files.items():
        if stored(folder / name) != wanted:
            raise OscarHaError(
                f"{folder / name} is not what was written", hint="the disk may be failing; it is tried again"
            )
    lines, raw, rows = Tally(), Tally(), 0
    for line in lines_of(folder):
        lines.add(line.gtid)
        rows += line.kind in ROW_KINDS
    for name in (one for one in told.files if one.startswith(RAW)):
        for header, _, event in events_of(folder / name, until=told.files[name].bytes):
            if header.kind == Kind.GTID:
                sequence, domain, _ = gtid_of(event)
                raw.add(f"{domain}-{header.server_id}-{sequence}")
    for what, found in ((LINES, lines), ("the raw events", raw)):
        if found != tally:
            raise OscarHaError(f"{folder}: {what} hold {found.count} transactions, {tally.count} were read",
                               hint="the disk may be failing; it is tried again")  # fmt: skip
    if rows != told.counts.rows + told.counts.own_rows:
        raise OscarHaError(f"{folder}: {rows} rows were read back, {told.counts.rows + told.counts.own_rows} written")


def lines_of(folder: Path) -> Iterator[Line]:
    """Yield the lines of a rescue. Raises BadInput for one that is none."""
    with (folder / LINES).open("rb") as file:
        for data in file:
            yield rescue_lines.decode(data)


def append(path: Path, data: bytes, *, bytes_max: int) -> None:
    """Add to a file all or nothing, durably. Raises OSError, Refused when it would grow too large."""
    fresh = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE_FILE)
    try:
        size = os.fstat(handle).st_size
        if size + len(data) > bytes_max:
            raise Refused(f"{path} would grow beyond {bytes_max // MIB} MiB", hint="replay less at once")
        durable.append(handle, data, size)
        os.fsync(handle)
    finally:
        os.close(handle)
    if fresh:
        durable.sync_directory(path.parent)


def recall(folder: Path) -> Rescue:
    """Return what a folder is. Raises BadInput."""
    try:
        data = (folder / RECORD).read_bytes()
    except OSError as error:
        raise BadInput(f"{folder} is no rescue: {error.strerror}", hint="see: oscar-ha rescue ls") from error
    return records.decode(Rescue, data, where=str(folder / RECORD))


def rescues_in(place: Path) -> list[Rescue]:
    """Return the rescues of a place, oldest first; what cannot be read is left out."""
    found = list[Rescue]()
    for folder in sorted(place.glob("[!.]*"), key=lambda path: path.name.rsplit("-", 1)[-1])[-FOLDERS_MAX:]:
        with suppress(BadInput):
            found.append(recall(folder))
    return found
