"""`oscar-ha archive`: look into an archive. Reads only; the replicator may be running."""

import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.errors import BadInput
from replicator.archive import Archive, EpochArchive
from replicator.events import FILE_NAME, file_number
from replicator.framing import MIB
from replicator.segments import head_of

app = typer.Typer(help="Look into an archive.", no_args_is_help=True)
ARCHIVE = typer.Option(..., "--archive", help="The archive's folder, as in the settings.")


@app.command("ls")
def list_files(
    archive: Path = ARCHIVE, as_json: bool = typer.Option(False, "--json", help="Machine-readable.")
) -> None:
    """List the epochs and files, and what was set aside."""
    found = Archive.look(archive)
    listed = [_described(one, path) for one in found.epochs.values() for path in _files(one)]
    orphans = sorted(path for path in (archive / "orphans").glob("[!.]*"))
    if as_json:
        typer.echo(json.dumps({"sealed_epoch": found.sealed_epoch, "files": listed,
                               "orphans": [{"file": path.name, "bytes": path.stat().st_size} for path in orphans]},
                              indent=1))  # fmt: skip
        return
    table = Table(title=f"{archive}, sealed up to epoch {found.sealed_epoch}")
    for column in ("epoch", "server", "file", "bytes", "begins after"):
        table.add_column(column, justify="right" if column in ("epoch", "server", "bytes") else "left")
    for row in listed:
        table.add_row(
            str(row["epoch"]), str(row["server_id"]), row["file"], f"{row['bytes']:,}", row["position"] or "-"
        )
    for path in orphans:
        table.add_row("orphan", "", path.name, f"{path.stat().st_size:,}", "")
    Console().print(table)


@app.command("cat")
def write_file(
    file: str = typer.Argument(help="A file, as `ls` names it."),
    archive: Path = ARCHIVE,
    epoch: int = typer.Option(0, "--epoch", help="Its epoch; needed when two have a file of that name."),
) -> None:
    """Write a file's bytes to standard output, for `mariadb-binlog -`."""
    places = [path for one in Archive.look(archive).epochs.values() for path in _files(one)
              if path.name == file and epoch in (0, one.epoch)]  # fmt: skip
    places += [path for path in (archive / "orphans").glob("[!.]*") if path.name == file]
    if len(places) != 1:
        raise BadInput(f"{len(places)} files of {archive} are called {file!r}",
                       hint="see `oscar-ha archive ls`, and give --epoch")  # fmt: skip
    with places[0].open("rb") as source:
        while data := source.read(MIB):
            sys.stdout.buffer.write(data)


def _files(one: EpochArchive) -> list[Path]:
    found = (path for path in one.directory.iterdir() if FILE_NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: file_number(path.name))


def _described(one: EpochArchive, path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    position = head_of(path, until=size)[1]
    return {
        "epoch": one.epoch,
        "server_id": one.start.server_id,
        "file": path.name,
        "bytes": size,
        "position": None if position is None else str(position),
        "ended": one.start.end,
    }
