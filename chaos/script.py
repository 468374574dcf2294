"""How a program behind `script/` runs: options by Typer, our errors in words, an interruption that still cleans up."""

import signal
from collections.abc import Callable

import typer

from cluster.command import complain
from cluster.errors import OscarHaError

INTERRUPTED_EXIT_CODE = 130


def run(command: Callable[..., None]) -> int:
    """Run `command` with the arguments of this process and return its exit code; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(command)
    try:
        app(standalone_mode=True)
    except OscarHaError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE
    return 0


def interrupt(*_: object) -> None:
    """Handle a signal as Ctrl-C: what was started is taken down on the way out."""
    raise KeyboardInterrupt
