"""`oscar-ha archive`: look into an archive, and keep its keys. The replicator may be running."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cluster.errors import BadInput
from replicator import find_command, listing, retaining, retention_command, stored, verifying
from replicator.archive import Archive
from replicator.archive_place import ARCHIVE, JSON, KEY_FILE, SETTINGS, SITE, output, place
from replicator.keys import add_key
from replicator.listing import AsideFacts, FileFacts
from replicator.stored import StoredFile

HELP = """Look into an archive: the binlog of every primary there was, to the last acknowledged transaction.

Say which archive: [bold]--archive DIR[/], and [bold]--key-file FILE[/] when it is encrypted; or [bold]--settings FILE --site SITE[/], which
finds both. All of them may be used while the replicator runs, and most only read.

[bold]archive ls[/]                              epochs and files
[bold]archive cat FILE | mariadb-binlog -[/]     what stands in one of them
[bold]archive info[/]                            how much there is, from when to when
[bold]archive verify[/]                          whether every byte is what the primary wrote, and nothing is missing between
[bold]archive prune --dry-run[/]                 what is too old or too much, and who still needs it
[bold]archive hold NAME --from GTID[/]           keep everything from a place on, for a backup; then [bold]holds[/], [bold]release[/]
"""
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
app.command("find")(find_command.find)
app.command("prune")(retention_command.prune)
app.command("hold")(retention_command.hold)
app.command("holds")(retention_command.list_holds)
app.command("release")(retention_command.release)


@app.command("ls")
def list_files(
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE, as_json: bool = JSON,
) -> None:  # fmt: skip
    """List the epochs and files, and what was set aside.

    `bytes` are the primary's, `on disk` is what they take here. A file without times grows, or has no index yet.
    """
    directory, keys = place(archive, settings_file, site, key_file)
    found = Archive.look(directory, keys)
    files, orphans, damaged = (
        listing.files_of(found),
        *(listing.aside(directory, one) for one in ("orphans", "damaged")),
    )
    if as_json:
        whole = {"sealed_epoch": found.sealed_epoch, "files": [asdict(one) for one in files],
                 "orphans": [asdict(one) for one in orphans], "damaged": [asdict(one) for one in damaged]}  # fmt: skip
        typer.echo(json.dumps(whole, indent=1))
        return
    console = output()
    console.print(_table(f"{directory}, sealed up to epoch {found.sealed_epoch}", files, orphans, damaged))
    for why in sorted({one.why for one in files if one.why is not None}):
        console.print(f"[yellow]not all is known:[/] {escape(why)}", soft_wrap=True)
    state = retaining.load(directory)
    if state is not None and state.held_back:
        console.print(f"[bold red]held back[/] (as of {state.at}): {escape(state.held_back)}", soft_wrap=True)


def _table(
    title: str, files: Sequence[FileFacts], orphans: Sequence[AsideFacts], damaged: Sequence[AsideFacts]
) -> Table:
    table = Table(title=escape(title))
    for column in ("epoch", "server", "file", "bytes", "on disk", "form", "begins after", "from", "to"):
        right = column in ("epoch", "server", "bytes", "on disk")
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "file")
    for one in files:
        table.add_row(str(one.epoch), str(one.server_id), one.file, _number(one.bytes), _number(one.stored_bytes),
                      one.form, one.position or "-", moment(one.first_time), moment(one.last_time))  # fmt: skip
    for what, found in (("orphan", orphans), ("damaged", damaged)):
        for aside in found:
            table.add_row(what, "", aside.file, "", _number(aside.bytes), "", "", "", "")
    return table


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def moment(seconds: int | None) -> str:
    """Return a time of the primary's clock for people."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@app.command("cat")
def write_file(
    file: str = typer.Argument(help="A file, as `ls` names it."),
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE,
    epoch: int = typer.Option(0, "--epoch", help="Its epoch; needed when two have a file of that name."),
) -> None:  # fmt: skip
    """Write a file's bytes to standard output, in clear, for `mariadb-binlog -`."""
    directory, keys = place(archive, settings_file, site, key_file)
    found = Archive.look(directory, keys)
    places = [
        one for own in found.epochs.values() for one in own.files() if one.name == file and epoch in (0, own.epoch)
    ]
    places += [StoredFile(path, keys) for path in (directory / "orphans").glob("[!.]*") if path.name == file]
    if not places:
        raise BadInput(f"{directory} has no file {file!r}", hint="see `oscar-ha archive ls`")
    if len(places) != 1:
        raise BadInput(f"{len(places)} files of {directory} are called {file!r}",
                       hint="see `oscar-ha archive ls`, and give --epoch")  # fmt: skip
    with closing(places[0].open()) as reader:
        offset = 0
        while data := reader.read(offset, stored.COPY_BYTES):
            sys.stdout.buffer.write(data)
            offset += len(data)


@app.command("info")
def show_info(
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE, as_json: bool = JSON,
) -> None:  # fmt: skip
    """Say how much an archive holds, from which position and when, to which.

    `not known` counts the files whose key is missing here. Without times nothing in it is closed and indexed yet.
    """
    directory, keys = place(archive, settings_file, site, key_file)
    facts = listing.info_of(Archive.look(directory, keys))
    if as_json:
        typer.echo(json.dumps(asdict(facts), indent=1))
        return
    output().print(escape(str(directory)), soft_wrap=True)
    table = Table(show_header=False)
    for name, value in asdict(facts).items():
        shown = moment(value) if name.endswith("_time") else f"{value:,}" if isinstance(value, int) else value
        table.add_row(name.replace("_", " "), "-" if shown is None else escape(shown))
    output().print(table)


@app.command("verify")
def check(
    archive: Path | None = ARCHIVE, settings_file: Path | None = SETTINGS, site: str = SITE,
    key_file: Path | None = KEY_FILE, as_json: bool = JSON,
) -> None:  # fmt: skip
    """Read the whole archive and prove it: every event's checksum, every closed file's SHA-256 and index, every
    transaction's number from file to file and epoch to epoch.

    Exit code 0 when everything holds, 1 when something does not: then it names file, offset and mend. It reads every
    byte: give it a quiet hour.
    """
    directory, keys = place(archive, settings_file, site, key_file)
    found = Archive.look(directory, keys)
    total = sum(verifying.size_on_disk(file) for one in found.epochs.values() for file in one.files())
    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=total)
        verdict = verifying.verify(found, lambda more: progress.advance(task, more))
    if as_json:
        typer.echo(json.dumps({"ok": not verdict.findings, **asdict(verdict)}, indent=1))
    else:
        for one in verdict.findings:
            at = "" if one.offset is None else f" at offset {one.offset:,}"
            typer.echo(f"{one.file}{at}: {one.why}\n    mend: {one.mend}")
        typer.echo(f"{verdict.files} files, {verdict.bytes:,} bytes, {verdict.indexed} with an index: "
                   f"{len(verdict.findings) or 'nothing'} wrong")  # fmt: skip
    if verdict.findings:
        raise typer.Exit(1)


@app.command("new-key")
def make_key(file: Path = typer.Argument(help="The key file: made, mode 0600, or given a new first key.")) -> None:
    """Make a key file, or rotate: a new key for everything written from now on; the older ones still read.

    Name the file as `key_file` in the settings' section `archive`, copy it to every site, and restart the replicators
    one after the other. Keep a copy away from these machines: without its key an archive is nothing.
    """
    key, count = add_key(file)
    typer.echo(f"{file}: key {key.name} is for new files, {count} in all")
