"""`oscar-ha watchdog run`: what is wrong at the start is said once, with the mend, and ends the command with code 2."""

import asyncio
import signal
from pathlib import Path

import structlog
import typer

from cluster import http, log, settings
from cluster.coordination import Coordination
from cluster.dialect import Dialect, dialect_of
from cluster.errors import BadInput, OscarHaError, Unreachable
from cluster.records import Role
from cluster.settings import Node, Secrets, Settings
from healthcheck import api, server
from healthcheck.memory import MemoryFile
from healthcheck.watchdog import Watchdog

START_DEADLINE_MS = 5_000.0
app = typer.Typer(
    help="The watchdog beside one database: probes, publishes, opens and fences it.", no_args_is_help=True
)
events = structlog.get_logger()


@app.callback()
def _group() -> None:
    pass


@app.command()
def run(
    settings_file: Path = typer.Option(..., "--settings", help="The cluster's TOML file."),
    node: str = typer.Option(..., "--node", help="Which node this watchdog stands beside."),
) -> None:
    """Run until told to stop."""
    loaded = settings.load(settings_file)
    ours = loaded.node(node)
    secrets = settings.read_secrets(loaded)
    log.set_up(f"watchdog {node}")
    try:
        asyncio.run(_run(loaded, ours, secrets))
    except BaseExceptionGroup as group:
        known, _ = group.split(OscarHaError)
        if known is None:
            raise
        raise known.exceptions[0] from None


def memory_path(node: Node) -> Path:
    """Return where a node's watchdog remembers its seal."""
    return node.pid_file.parent / f"{node.name}.watchdog.json"


async def _run(loaded: Settings, node: Node, secrets: Secrets) -> None:
    dialect = dialect_of(loaded)
    await asyncio.to_thread(_check_server, dialect, node, loaded, secrets)
    coordination = Coordination(loaded.zookeeper, loaded.root, loaded.timing, nearest=node.host)
    watchdog = Watchdog(node, loaded, secrets, dialect, coordination, MemoryFile(memory_path(node)))
    runner = await http.serve(
        api.application(watchdog, secrets.token), node.host, node.watchdog_port, what=f"watchdog {node.name}"
    )
    try:
        try:
            await coordination.start(deadline_ms=START_DEADLINE_MS)
        except OscarHaError:
            await watchdog.close_unwatched()
            raise
        try:
            await _until_told(watchdog)
        finally:
            if watchdog.role is not Role.PRIMARY:
                # A primary's record is left to its ttl: a watchdog that comes back in time takes it over unnoticed.
                await coordination.stop()
    finally:
        await runner.cleanup()


def _check_server(dialect: Dialect, node: Node, loaded: Settings, secrets: Secrets) -> None:
    """Raise BadInput for a server that this watchdog could never open. One that is down or hung is no mistake."""
    if not node.pid_file.parent.is_dir():
        raise BadInput(f"pid_file {node.pid_file}: there is no such folder", hint="mend pid_file of the node")
    found = server.find(node)
    if found is None:
        return
    found.close()
    try:
        with dialect.connect(node, loaded, secrets, deadline_ms=loaded.timing.call_deadline_ms) as session:
            problems = session.requirements(node)
    except Unreachable:
        return
    if problems:
        raise BadInput(
            f"the database of node {node.name!r}: {'; '.join(problems)}", hint="mend its options and restart it"
        )


async def _until_told(watchdog: Watchdog) -> None:
    loop = asyncio.get_running_loop()
    running = loop.create_task(watchdog.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    events.info("watchdog.started", node=watchdog.node.name, url=watchdog.node.watchdog_url)
    try:
        await running
    except asyncio.CancelledError:
        events.info("watchdog.stopped", role=watchdog.role.value)
    finally:
        watchdog.prober.close()
