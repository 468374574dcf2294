"""`oscar-ha archive`: look into an archive, and keep its keys. The replicator may be running."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from cluster.errors import BadInput
from replicator import find_command, listing, stored
from replicator.archive import Archive
from replicator.archive_place import ARCHIVE, JSON, KEY_FILE, SETTINGS, SITE, output, place
from replicator.keys import add_key
from replicator.listing import AsideFacts, FileFacts
from replicator.stored import StoredFile

HELP = """Look into an archive: the binlog of every primary there was, to the last acknowledged transaction.

Say which archive: [bold]--archive DIR[/], and [bold]--key-file FILE[/] when it is encrypted; or [bold]--settings FILE --site SITE[/], which
finds both. Everything but [bold]hold[/], [bold]release[/] and [bold]new-key[/] only reads, also while the replicator runs.

[bold]archive ls[/]                              epochs and files
[bold]archive cat FILE | mariadb-binlog -[/]     what stands in one of them
"""
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
app.command("find")(find_command.find)


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
    if len(places) != 1:
        raise BadInput(f"{len(places)} files of {directory} are called {file!r}",
                       hint="see `oscar-ha archive ls`, and give --epoch")  # fmt: skip
    with closing(places[0].open()) as reader:
        offset = 0
        while data := reader.read(offset, stored.COPY_BYTES):
            sys.stdout.buffer.write(data)
            offset += len(data)


@app.command("new-key")
def make_key(file: Path = typer.Argument(help="The key file: made, mode 0600, or given a new first key.")) -> None:
    """Make a key file, or rotate: a new key for everything written from now on; the older ones still read.

    Name the file as `key_file` in the settings' [archive] section, copy it to every site, and restart the replicators
    one after the other. Keep a copy away from these machines: without its key an archive is nothing.
    """
    key, count = add_key(file)
    typer.echo(f"{file}: key {key.name} is for new files, {count} in all")
