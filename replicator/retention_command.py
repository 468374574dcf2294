"""`oscar-ha archive hold`, `holds`, `release` and `prune`: what is kept, for whom, and what goes."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster import clock, settings
from cluster.binlog.events import FILE_NAME
from cluster.errors import BadInput, Refused
from cluster.http import Client
from cluster.position import Position
from replicator import holds, segments
from replicator.archive import Archive
from replicator.archive_place import ARCHIVE, JSON, KEY_FILE, SETTINGS, SITE, output, place
from replicator.find_command import seconds_of
from replicator.holds import Hold, kept_text

PRUNE_DEADLINE_MS = 60_000
COLOURS: Mapping[str, str] = {"goes": "yellow", "held": "bold red"}


def hold(
    name: str = typer.Argument(help="What releases it later, such as the name of a backup."),
    begin: str = typer.Option(..., "--from", help="Keep everything after this position (0-1-123), or from this file on."),
    until: str | None = typer.Option(None, "--until", help="Let it end by itself, as 2026-12-24T10:00."),
    why: str = typer.Option("", "--why", help="Shown with it."),
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE,
    epoch: int = typer.Option(0, "--epoch", help="With a file: its epoch; needed when two have a file of that name."),
) -> None:  # fmt: skip
    """Keep an archive from a place on, until it is released: nothing after it is removed, whatever the limits say.

    A hold of that name is moved. Exit code 1 when the archive begins after that place: then it is not promised.
    """
    directory, keys = place(archive, settings_file, site, key_file)
    ends = None if until is None else seconds_of(until)
    if ends is not None and ends <= clock.utc_seconds():
        raise BadInput(f"--until {until} has passed", hint="give a time that is to come")
    with holds.locked(directory):
        found = Archive.look(directory, keys)
        position = _position(found, begin, epoch)
        _require_here(found, position)
        made = Hold(name=name, position=str(position), since=clock.utc_now(), until=ends, why=why)
        holds.write(directory, made)
    typer.echo(f"{name}: {kept_text(str(position))} is kept "
               + ("until it is released" if ends is None else f"until {clock.utc_text(ends)}"))  # fmt: skip


def _position(archive: Archive, begin: str, epoch: int) -> Position:
    if FILE_NAME.fullmatch(begin) is None:
        return Position.parse(begin)
    files = [
        one for own in archive.epochs.values() if epoch in (0, own.epoch) for one in own.files() if one.name == begin
    ]
    if not files:
        raise BadInput(f"{archive.directory} has no file {begin!r}", hint="see `oscar-ha archive ls`")
    if len(files) != 1:
        raise BadInput(f"{len(files)} files of {archive.directory} are called {begin!r}",
                       hint="see `oscar-ha archive ls`, and give --epoch")  # fmt: skip
    start = segments.head_of(files[0], until=segments.HEAD_BYTES_MAX)[1]
    if start is None:
        raise Refused(f"{begin} does not say yet where it begins", hint="give a position")
    return start


def _require_here(archive: Archive, position: Position) -> None:
    """Refuse to promise what is not here."""
    oldest = next((file for one in archive.epochs.values() for file in one.files()), None)
    begins = None if oldest is None else segments.head_of(oldest, until=segments.HEAD_BYTES_MAX)[1]
    if begins is None or not position.covers(begins):
        raise Refused(f"the archive begins after {'nothing' if begins is None else begins}, so it cannot keep what is behind"
                      f" {position or 'nothing'}", hint="take a later place, or another site's archive")  # fmt: skip


def list_holds(
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE, as_json: bool = JSON
) -> None:
    """List what is held, since when, until when and why."""
    directory, _ = place(archive, settings_file, site, None)
    found, now = holds.read(directory), clock.utc_seconds()
    if as_json:
        standing = [
            {"name": one.name, "position": one.position, "since": one.since, "why": one.why, "expired": one.expired(now),
             "until": None if one.until is None else clock.utc_text(one.until)}
            for one in found.standing
        ]  # fmt: skip
        unreadable = [{"name": name, "why": why} for name, why in found.unreadable]
        typer.echo(json.dumps({"holds": standing, "unreadable": unreadable}, indent=1))
        return
    table = Table(title=f"what is held in {escape(str(directory))}")
    for column in ("name", "keeps", "since", "until", "why"):
        table.add_column(column)
    if not found.standing and not found.unreadable:
        output().print("nothing is held; oscar-ha archive hold NAME --from GTID keeps everything after that transaction",
                       soft_wrap=True)  # fmt: skip
        return
    for one in found.standing:
        until = (
            "it is released"
            if one.until is None
            else clock.utc_text(one.until) + (" (over)" if one.expired(now) else "")
        )
        table.add_row(one.name, kept_text(one.position), one.since, until, escape(one.why))
    for name, why in found.unreadable:
        table.add_row(f"[bold red]{escape(name)}[/]", "everything", "", "", escape(why))
    output().print(table)


def release(
    name: str = typer.Argument(help="As `holds` names it."),
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
) -> None:  # fmt: skip
    """Keep nothing for this hold any more; what only it kept goes with the next round."""
    directory, _ = place(archive, settings_file, site, None)
    with holds.locked(directory):
        holds.remove(directory, name)
    typer.echo(f"{name}: released")


def prune(
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would go, and why everything else stays."),
    now: bool = typer.Option(False, "--now", help="Remove what may go, instead of waiting for the next round."),
    settings_file: Path | None = SETTINGS, site: str = SITE, as_json: bool = JSON,
) -> None:  # fmt: skip
    """Ask the running replicator what of its archive may go; it alone knows who needs what. It does so by itself, too."""
    if dry_run == now:
        raise BadInput("say which: --dry-run or --now", hint="--dry-run removes nothing")
    if settings_file is None or not site:
        raise BadInput("which replicator?", hint="give --settings FILE and --site SITE")
    answer = asyncio.run(_asked(settings_file, site, remove=now))
    if as_json:
        typer.echo(json.dumps(answer, indent=1))
        return
    _print(answer, removed=now)


async def _asked(settings_file: Path, site: str, *, remove: bool) -> dict[str, Any]:
    cluster = settings.load(settings_file)
    url = cluster.replicator(site).url
    async with Client(settings.read_secrets(cluster).token) as client:
        answer: dict[str, Any] = (
            await client.post(f"{url}/v1/prune", {}, deadline_ms=PRUNE_DEADLINE_MS)
            if remove
            else await client.get(f"{url}/v1/retention", deadline_ms=PRUNE_DEADLINE_MS)
        )
    return answer


def _print(answer: Mapping[str, Any], *, removed: bool) -> None:
    console, table = output(), Table(title="what went, and what stays" if removed else "what would go, and what stays")
    for column in ("file", "on disk", "newest commit", "", "why"):
        table.add_column(column, justify="right" if column == "on disk" else "left")
    for one in answer["files"]:
        newest = "-" if one["newest"] is None else clock.utc_text(one["newest"])
        colour = COLOURS.get(one["fate"])
        fate = one["fate"] if colour is None else f"[{colour}]{one['fate']}[/]"
        table.add_row(escape(one["file"]), f"{one['stored_bytes']:,}", newest, fate, escape(one["why"]))
    console.print(table)
    floors = Table(title="who needs what")
    for column in ("who", "has", "why"):
        floors.add_column(column)
    for one in answer["floors"]:
        who = escape(one["who"])
        position = "not known" if one["position"] is None else one["position"] or "nothing"
        floors.add_row(f"[bold red]{who}[/]" if one["keeps"] else who, position, escape(one["why"]))
    console.print(floors)
    if answer["expired_holds"]:
        console.print(f"[yellow]holds whose time is over:[/] {escape(', '.join(answer['expired_holds']))}")
    if answer["held_back"]:
        console.print(f"[bold red]held back:[/] {escape(answer['held_back'])}", soft_wrap=True)
