"""The one command, `oscar-ha`. Each package brings its own sub-commands; only the one that is called is loaded.

Entry points of group `oscar_ha.commands` are Typer applications (`oscar-ha lab up`), those of `oscar_ha.verbs` are
plain functions (`oscar-ha status`).
"""

import gc
import sys
from importlib.metadata import entry_points, version

import typer
from rich.console import Console
from rich.markup import escape

from cluster.errors import BadInput, OscarHaError, Refused

COMMANDS, VERBS = "oscar_ha.commands", "oscar_ha.verbs"
HELP = """Automatic failover for the OSCAR medical record.

No acknowledged write is lost, two servers never both accept writes, nobody has to be awake.

Try it: [bold]oscar-ha lab up[/], then [bold]oscar-ha lab status[/].
"""


def loaded(wanted: str | None) -> typer.Typer:
    """Return `application(wanted)`; what it has loaded is out of the garbage collector's sight.

    Loading makes hundreds of thousands of objects, none of them garbage: to look through them is a sixth of the start
    of a process, and later, each time, a pause of all its threads.
    """
    gc.disable()
    try:
        return application(wanted)
    finally:
        gc.freeze()
        gc.enable()


def application(wanted: str | None) -> typer.Typer:
    """Return the command with only the `wanted` sub-command loaded, or with all when there is no such one."""
    app = typer.Typer(
        name="oscar-ha",
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    groups, verbs = entry_points(group=COMMANDS), entry_points(group=VERBS)
    known = {point.name for point in groups} | {point.name for point in verbs}
    for point in groups:
        if wanted not in known or point.name == wanted:
            app.add_typer(point.load(), name=point.name)
    for point in verbs:
        if wanted not in known or point.name == wanted:
            app.command(point.name)(point.load())
    return app


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"oscar-ha {version('oscar-ha')}")
        raise typer.Exit


def _root(
    show_version: bool = typer.Option(
        False, "--version", help="Show the version and end.", callback=_say_version, is_eager=True
    ),
) -> None:
    pass


def main() -> None:
    """Run the command; an error of ours is a few words on standard error and its exit code, never a traceback."""
    try:
        loaded(sys.argv[1] if len(sys.argv) > 1 else None)()
    except OscarHaError as error:
        complain(error)
        sys.exit(error.exit_code)


def complain(error: OscarHaError) -> None:
    """Say on standard error what is wrong and what to do. Who refused is of no interest then, only why."""
    console = Console(stderr=True, highlight=False)
    text = error.said if isinstance(error, BadInput | Refused) else error.message
    console.print(f"[bold red]oscar-ha:[/] {escape(text)}", soft_wrap=True)
    if error.hint:
        console.print(f"  [bold]what to do:[/] {escape(error.hint)}", soft_wrap=True)
