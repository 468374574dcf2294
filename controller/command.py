"""`oscar-ha controller run`: one controller process, of one cluster or of many."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import typer

from cluster import log, settings
from cluster.errors import BadInput
from cluster.settings import Secrets, Settings
from controller import overview
from controller.clusters import Clusters
from controller.serving import controller

LOOKUP_THREADS = 128
app = typer.Typer(no_args_is_help=True, help="The controller: observes, decides, executes, records.")


@app.callback()
def _group() -> None:
    """Keeps `run` a sub-command while it is the only one."""


@app.command()
def run(
    places: list[Path] = typer.Option(
        ...,
        "--settings",
        help="The cluster's settings file (TOML), again for each other cluster, or a folder of *.toml.",
    ),
    name: str = typer.Option(..., "--name", help="Which of the settings' controllers this is, in each of them."),
    listen: str | None = typer.Option(
        None, "--listen", help="HOST:PORT of the overview of many clusters: /v1/clusters, and the /metrics of all."
    ),
) -> None:
    """Run one controller until SIGTERM. Start one in every site; one of them leads.

    With one file it ends with 2 when that is wrong. With several files or a folder it serves every cluster by itself:
    what is wrong with one is logged and shown by --listen, tried again when its file changes and every 30 s, and stops
    no other. Files that come into the folder are served, what is changed is begun anew, what goes is left.
    """
    log.set_up(f"controller {name}")
    if len(places) == 1 and not places[0].is_dir() and listen is None:
        loaded = settings.load(places[0])
        own = loaded.controller(name)
        asyncio.run(_run(loaded, settings.read_secrets(loaded), own))
    else:
        asyncio.run(_run_many(Clusters(places, name), None if listen is None else address_of(listen)))


def address_of(text: str) -> tuple[str, int]:
    """Return host and port. Raises BadInput."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise BadInput(f"--listen {text!r}", hint="HOST:PORT, for example 127.0.0.1:8700")
    return host.strip("[]"), int(port)


async def _run(loaded: Settings, secret: Secrets, own: settings.Controller) -> None:
    async with controller(loaded, secret, own) as loop:
        _at_the_end(loop.stop)
        await loop.run()


async def _run_many(clusters: Clusters, listen: tuple[str, int] | None) -> None:
    _at_the_end(clusters.stop)
    # Names are looked up in threads that all share: some that hang must leave enough for the others.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOKUP_THREADS))
    async with AsyncExitStack() as stack:
        if listen is not None:
            await stack.enter_async_context(overview.served(clusters, *listen))
        await clusters.run()


def _at_the_end(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
