"""`oscar-ha archive find`: which transactions touched a table, or a row of it. Reads only; the replicator may be running."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cluster import clock, settings
from cluster.binlog.decoding import Decoder, Definition, Image, Row, definitions_of
from cluster.binlog.framing import HEADER, MIB
from cluster.errors import BadInput, Refused
from cluster.mariadb import MariaDb
from cluster.position import Gtid
from replicator import indexes, segments
from replicator.archive import Archive, EpochArchive
from replicator.archive_place import ARCHIVE, JSON, KEY_FILE, SETTINGS, SITE, output, place
from replicator.find import (
    KEYS_SHOWN_MAX,
    NULL,
    FileFacts,
    Search,
    Touched,
    Transaction,
    Wanted,
    beginning,
    shown,
    worth_reading,
)
from replicator.stored import StoredFile

KINDS = frozenset({"insert", "update", "delete", "ddl"})
TOLD_EVERY_BYTES = 2**20
CONNECT_DEADLINE_MS = 5_000
EXIT_NOTHING_FOUND = 1
FIRST_OR_LAST = "as 0-1-123"


@dataclass(frozen=True, slots=True)
class _Part:
    """A file, and the part of it that is to be read."""

    facts: FileFacts
    file: StoredFile
    size: int


def find(
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE,
    table: str | None = typer.Option(None, "--table", help="`table` or `database.table`; letter by letter."),
    key: list[str] = typer.Option([], "--key", help="The row with this primary key; once for each of its columns."),
    where: list[str] = typer.Option([], "--where", help="COLUMN=VALUE, before or after the change; NULL is no value."),
    since: str | None = typer.Option(None, "--from", help="ISO time, as 2026-11-24T10:00 (here) or ...T15:00Z."),
    until: str | None = typer.Option(None, "--to", help="ISO time; that second is part of it."),
    first: str | None = typer.Option(None, "--from-gtid", help=f"Begin with this transaction, {FIRST_OR_LAST}."),
    last: str | None = typer.Option(None, "--to-gtid", help=f"End with this transaction, {FIRST_OR_LAST}."),
    kind: list[str] = typer.Option([], "--kind", help="insert, update, delete or ddl; may be repeated."),
    limit: int = typer.Option(0, "--limit", min=0, help="End after so many transactions; 0: all."),
    show: bool = typer.Option(False, "--show", help="Show statements and rows. They are patients' data."),
    columns_from: str | None = typer.Option(None, "--columns-from", help="With --settings: a node to ask for the names of columns."),
    as_json: bool = JSON,
) -> None:  # fmt: skip
    """Answer which transactions touched a table, or a row of it, and when.

    Each comes with the position before it: what to stop a standby at, or to restore to, to be without it. Columns have names
    when the primary runs with binlog_row_metadata=FULL, else @1, @2 and so on; --columns-from asks a running node.
    Ends with 0 when something was found, 1 when nothing was, 2 when the question is wrong.
    """
    wanted = wanted_of(table, key, where, (since, until), (first, last), kind)
    directory, keys = place(archive, settings_file, site, key_file)
    search = Search(wanted, Decoder(_definitions(settings_file, columns_from, table)), show=show)
    parts, whole = _parts(Archive.look(directory, keys), wanted)
    told = _Told(as_json, show)
    if not as_json:
        told.question(wanted, parts, whole)
    with _progress(sum(part.size for part in parts)) as bar:
        for one in _limited(_searched(search, parts, bar), limit):
            told.transaction(one)
    _require_usable(search, wanted)
    told.end(search)
    if not told.transactions:
        raise typer.Exit(EXIT_NOTHING_FOUND)


def wanted_of(
    table: str | None, key: Sequence[str], where: Sequence[str], times: tuple[str | None, str | None],
    gtids: tuple[str | None, str | None], kinds: Sequence[str],
) -> Wanted:  # fmt: skip
    """Return what is asked for. Raises BadInput."""
    if (key or where) and table is None:
        raise BadInput("--key and --where are about one table", hint="give --table")
    unknown = sorted(set(kinds) - KINDS)
    if unknown:
        raise BadInput(f"--kind {unknown[0]!r}", hint=f"one of: {', '.join(sorted(KINDS))}")
    pairs = tuple(_pair(one) for one in where)
    since, until = (None if text is None else seconds_of(text) for text in times)
    if since is not None and until is not None and until < since:
        raise BadInput(f"--to {times[1]} is before --from {times[0]}", hint="turn them round")
    first, last = (None if text is None else Gtid.parse(text) for text in gtids)
    return Wanted(table=table, key=tuple(key), where=pairs, kinds=frozenset(kinds), since=since, until=until,
                  first=first, last=last)  # fmt: skip


def seconds_of(text: str) -> int:
    """Return ISO 8601 text as Unix seconds; without a zone it is this machine's. Raises BadInput."""
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{text!r} is not a time: {error}", hint="as 2026-11-24T10:00, or 2026-11-24T15:00Z") from None


def _pair(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise BadInput(f"--where {text!r}", hint="as --where last_name=Tremblay")
    return column, value


def _definitions(settings_file: Path | None, node: str | None, table: str | None) -> dict[str, Definition]:
    if node is None:
        return {}
    if settings_file is None or table is None:
        raise BadInput("--columns-from needs --settings and --table", hint="the node's address stands in the settings")
    cluster = settings.load(settings_file)
    secrets = settings.read_secrets(cluster)
    with MariaDb().connect(cluster.node(node), cluster, secrets, deadline_ms=CONNECT_DEADLINE_MS) as session:
        return definitions_of(*session.columns(table.rsplit(".", 1)[-1]))


# -- the files ----------------------------------------------------------------------------------------------------------


def _parts(archive: Archive, wanted: Wanted) -> tuple[list[_Part], int]:
    """Return what of the archive is to be read, oldest first, and the size of all of it."""
    files = [(one, file) for one in archive.epochs.values() for file in one.files()]
    parts = list[_Part]()
    for one, file in files:
        with suppress(FileNotFoundError):  # it was removed meanwhile
            parts.append(_part(one, file))
    worth = worth_reading([part.facts for part in parts], wanted)
    whole = sum(part.size for part in parts)
    chosen = [part for part, wanted_here in zip(parts, worth, strict=True) if wanted_here]
    return [_with_marks(part) for part in chosen], whole


def _part(one: EpochArchive, file: StoredFile) -> _Part:
    segment = segments.indexed(file)
    if segment is not None:
        facts = FileFacts(epoch=one.epoch, name=file.name, start=segment.start, created=segment.first_time or None,
                          latest=segment.time or None)  # fmt: skip
        return _Part(facts, file, segment.size)
    description, start = segments.head_of(file, until=segments.HEAD_BYTES_MAX)
    created = HEADER.unpack_from(description)[0] or None if description else None
    return _Part(FileFacts(epoch=one.epoch, name=file.name, start=start, created=created), file, file.survey().size)


def _with_marks(part: _Part) -> _Part:
    marks = indexes.marks(part.file) or () if part.facts.latest is not None else ()
    facts = FileFacts(epoch=part.facts.epoch, name=part.facts.name, start=part.facts.start, created=part.facts.created,
                      latest=part.facts.latest, marks=marks)  # fmt: skip
    return _Part(facts, part.file, part.size)


def _searched(search: Search, parts: Iterable[_Part], bar: "_Bar") -> Iterator[Transaction]:
    for part in parts:
        begin, position = beginning(part.facts, search.wanted)
        bar.at(part.facts.name, begin)
        events = segments.events_of(part.file, begin=begin, until=part.size)
        try:
            with closing(search.file(part.facts, position, bar.watched(events))) as found:
                yield from found
        except FileNotFoundError:
            raise Refused(
                f"{part.facts.name} was removed while we searched", hint="search again: it was too old"
            ) from None
        bar.file_ended(part.size)


def _limited(found: Iterator[Transaction], limit: int) -> Iterator[Transaction]:
    for number, one in enumerate(found, 1):
        yield one
        if number == limit:
            return


class _Bar:
    """A progress bar over the bytes of the archive."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._task = progress, progress.add_task("", total=total)
        self._done = self._told = 0

    def at(self, name: str, offset: int) -> None:
        """Say which file is read, from where on."""
        self._told = offset
        self._progress.update(self._task, description=name, completed=self._done + offset)

    def watched(self, events: Iterable[Any]) -> Iterator[Any]:
        """Pass events on, telling about every megabyte."""
        for one in events:
            if one[1] - self._told >= TOLD_EVERY_BYTES:
                self._told = one[1]
                self._progress.update(self._task, completed=self._done + self._told)
            yield one

    def file_ended(self, size: int) -> None:
        """Count a whole file."""
        self._done += size
        self._progress.update(self._task, completed=self._done)


@contextmanager
def _progress(total: int) -> Iterator[_Bar]:
    """Show a bar on standard error while somebody looks at it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:  # fmt: skip
        yield _Bar(progress, total)


# -- what is said -------------------------------------------------------------------------------------------------------


class _Told:
    """Says what is found, as it is found."""

    def __init__(self, as_json: bool, show: bool) -> None:
        self._as_json, self._show = as_json, show
        self._console = output()
        self._console.highlighter = NullHighlighter()
        self.transactions = 0
        self._rows: Counter[tuple[str, str]] = Counter()

    def question(self, wanted: Wanted, parts: Sequence[_Part], whole: int) -> None:
        """Say what is read, and how times were understood."""
        asked = (("from", wanted.since), ("to", wanted.until))
        times = [f"{word} {_moment(seconds)}" for word, seconds in asked if seconds is not None]
        size = sum(part.size for part in parts)
        self._console.print(f"reading {len(parts)} files, {size / MIB:,.0f} of {whole / MIB:,.0f} MiB; times are those"
                            f" of the primary's clock{'; ' * bool(times)}{', '.join(times)}", soft_wrap=True)  # fmt: skip

    def transaction(self, one: Transaction) -> None:
        """Say what one transaction did."""
        self.transactions += 1
        for touched in one.touched.values():
            self._rows[touched.table, touched.kind] += touched.rows or 0
        if self._as_json:
            typer.echo(json.dumps(record_of(one, show=self._show)))
            return
        self._console.print(f"[bold]{one.gtid}[/]  {_moment(one.timestamp)}  epoch {one.epoch}, {one.file}:{one.offset}",
                            soft_wrap=True)  # fmt: skip
        for touched in one.touched.values():
            self._console.print(f"    {escape(_sentence(touched))}", soft_wrap=True)
        for statement in one.statements:
            self._console.print(f"    [dim]{escape(statement)}[/]", soft_wrap=True)
        for touched in one.touched.values():
            for image in touched.images:
                self._console.print(f"      {escape(_image_text(image))}", soft_wrap=True)
        self._console.print(f"    before it: {one.before or 'nothing (the empty position)'}", soft_wrap=True)

    def end(self, search: Search) -> None:
        """Say how much it was, and what could not be done."""
        for note in _notes(search):
            typer.echo(f"note: {note}", err=True)
        if self._as_json:
            totals = [{"table": table, "kind": kind, "rows": rows} for (table, kind), rows in self._rows.items()]
            typer.echo(json.dumps({"transactions": self.transactions, "totals": totals}))
            return
        rows = "; ".join(f"{table}: {kind} {count:,} rows" for (table, kind), count in self._rows.items() if count)
        self._console.print(f"{self.transactions} transactions{'; ' * bool(rows)}{escape(rows)}", soft_wrap=True)
        if self.transactions:
            self._console.print("To be without one of them, and all that came later: oscar-ha hold NODE --before, with the"
                                " number that its line begins with; a restore ends at the position before it.",
                                soft_wrap=True)  # fmt: skip


def record_of(one: Transaction, *, show: bool) -> dict[str, Any]:
    """Return a transaction for `--json`."""
    found: dict[str, Any] = {
        "gtid": str(one.gtid), "before": str(one.before), "epoch": one.epoch, "file": one.file, "offset": one.offset,
        "time": clock.utc_text(one.timestamp), "local_time": clock.local_text(one.timestamp),
        "touched": [{"table": touched.table, "kind": touched.kind, "rows": touched.rows, "keys": touched.keys}
                    for touched in one.touched.values()],
    }  # fmt: skip
    if show:
        found["statements"] = one.statements
        found["rows"] = [
            {"table": touched.table, "before": _shown_row(image.before), "after": _shown_row(image.after)}
            for touched in one.touched.values() for image in touched.images
        ]  # fmt: skip
    return found


def _shown_row(row: Row | None) -> dict[str, str | None] | None:
    return None if row is None else {name: None if value is None else shown(value) for name, value in row.items()}


def _sentence(touched: Touched) -> str:
    if touched.rows is None:
        return f"{touched.kind} {touched.table}"
    more = ", ..." if touched.rows > KEYS_SHOWN_MAX else ""
    keys = f", keys {'; '.join(touched.keys)}{more}" if touched.keys else ""
    return f"{touched.kind} {touched.table}: {touched.rows:,} rows{keys}"


def _image_text(image: Image) -> str:
    before, after = (None if row is None else _shown_row(row) for row in (image.before, image.after))
    if before is not None and after is not None:
        changed = [f"{name}: {_text(before[name])} -> {_text(after[name])}" for name in before
                   if name in after and before[name] != after[name]]  # fmt: skip
        return ", ".join(changed) or "nothing changed"
    return ", ".join(f"{name}: {_text(value)}" for name, value in (before or after or {}).items())


def _text(value: str | None) -> str:
    return NULL if value is None else value


def _moment(seconds: int) -> str:
    return f"{clock.utc_text(seconds)} ({clock.local_text(seconds)})"


def _require_usable(search: Search, wanted: Wanted) -> None:
    """Raise BadInput when no table had what was asked for: nothing found would be a lie."""
    if search.usable or not search.without:
        return
    names = ", ".join(sorted(search.without))
    what = "no primary key of that many columns is known" if wanted.key else "there is no such column"
    raise BadInput(f"{names}: {what}", hint="name columns as @1, @2 with --where, or give --columns-from NODE;"
                   " with binlog_row_metadata=FULL the primary names them in its binlog")  # fmt: skip


def _notes(search: Search) -> list[str]:
    notes = []
    if search.unnamed:
        notes.append(f"{', '.join(sorted(search.unnamed))}: the binlog names no columns;"
                     " set binlog_row_metadata=FULL on the primary, or give --columns-from NODE")  # fmt: skip
    if search.without:
        notes.append(f"{', '.join(sorted(search.without))} had, for a part of the time, not the key or columns asked for:"
                     " that part was not searched")  # fmt: skip
    if not search.met and search.wanted.table is not None:
        near = sorted(name for name in search.passed if name.lower().endswith(search.wanted.table.lower()))
        if near:
            notes.append(f"nothing of {search.wanted.table}; there is {', '.join(near)}: names count letter by letter")
    return notes
