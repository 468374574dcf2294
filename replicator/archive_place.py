"""How a command is told which archive it looks into, and where its tables go."""

import sys
from pathlib import Path

import typer
from rich.console import Console

from cluster import settings
from cluster.errors import BadInput
from replicator.keys import NO_KEYS, Keys, keys_of, read_keys

PIPE_COLUMNS = 200
ARCHIVE = typer.Option(None, "--archive", help="The archive's folder.")
SETTINGS = typer.Option(None, "--settings", help="The cluster's TOML file.", envvar="OSCAR_HA_SETTINGS")
SITE = typer.Option("", "--site", help="With --settings: the site whose replicator keeps the archive.")
KEY_FILE = typer.Option(None, "--key-file", help="The keys of an encrypted archive.")
JSON = typer.Option(False, "--json", help="Machine-readable.")


def place(archive: Path | None, settings_file: Path | None, site: str, key_file: Path | None) -> tuple[Path, Keys]:
    """Return the folder and the keys that the options name. Raises BadInput."""
    given = NO_KEYS if key_file is None else read_keys(key_file, "--key-file")
    if archive is not None:
        return archive, given
    if settings_file is None or not site:
        raise BadInput("which archive?", hint="give --archive DIR, or --settings FILE and --site SITE")
    cluster = settings.load(settings_file)
    return cluster.replicator(site).archive, given if key_file is not None else keys_of(cluster)


def output() -> Console:
    """Return where tables go; into a pipe they are as wide as they need."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
