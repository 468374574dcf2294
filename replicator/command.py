"""`oscar-ha replicator run`: one process, ended by SIGTERM."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog
import typer

from cluster import clock, http, log, settings
from cluster.coordination import Coordination
from cluster.errors import OscarHaError
from cluster.settings import Secrets, Settings
from replicator import api, memory, owner
from replicator.archive import Archive
from replicator.door import Account
from replicator.keys import keys_of
from replicator.metrics import Metrics
from replicator.owner import Owner
from replicator.serve import Server
from replicator.service import Service
from replicator.source import known_server_ids

START_DEADLINE_MS = 5_000
STOP_DEADLINE_SECONDS = 1.5
SWITCH_INTERVAL_SECONDS = 0.0005
"""How long the event loop may keep the pulling thread waiting for the interpreter: a part of every commit."""
events = structlog.get_logger()
app = typer.Typer(help="The replicator of a site.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """The replicator of a site."""


@app.command()
def run(
    settings_file: Path = typer.Option(..., "--settings", help="The cluster's TOML file."),
    site: str = typer.Option(..., "--site", help="The site this replicator serves."),
) -> None:
    """Pull the primary's binlog, archive it, acknowledge it if named, and serve it to the standby of this site."""
    cluster = settings.load(settings_file)
    cluster.replicator(site)
    secrets = settings.read_secrets(cluster)
    log.set_up(f"replicator-{site}")
    memory.hold_little()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    directory, us = cluster.replicator(site).archive, Owner(cluster=cluster.name, site=site)
    owner.require(directory, us)
    archive = Archive.open(directory, keys_of(cluster), cluster.archive.reserve_bytes)
    try:
        owner.note(directory, us)
        asyncio.run(_main(cluster, site, secrets, archive))
    except BaseExceptionGroup as group:
        ours = group.subgroup(OscarHaError)
        if ours is None:
            raise
        raise _first(ours) from None
    finally:
        archive.close()


async def _main(cluster: Settings, site: str, secrets: Secrets, archive: Archive) -> None:
    us, accounts, metrics = cluster.replicator(site), cluster.accounts, Metrics(site)
    known = known_server_ids(cluster)
    server = Server(archive, server_id=us.server_id, account=Account(accounts.replication_user, secrets.replication),
                    metrics=metrics, files=cluster.tls, known=known, cluster=cluster.name)  # fmt: skip
    coordination = Coordination(cluster.zookeeper, cluster.root, cluster.timing, nearest=us.host)
    service = Service(cluster, site, secrets, archive, coordination, metrics, server.news)
    server.suspect = service.mender.suspect
    service.readers_told = lambda: server.twins.told(clock.now())
    runner = await http.serve(
        api.application(service, secrets.token), us.host, us.http_port, what="replicator.http_port"
    )
    try:
        await server.start(us.host, us.port)
        await coordination.start(deadline_ms=START_DEADLINE_MS)
        events.info(
            "started",
            site=site,
            archive=str(us.archive),
            sealed_epoch=archive.sealed_epoch,
            encrypted=archive.keys.newest is not None,
            pid=os.getpid(),
        )
        await _until_stopped(service)
    finally:
        await server.stop()
        await _stop(coordination, f"replicators/{site}")
        await runner.cleanup()


async def _until_stopped(service: Service) -> None:
    """Run the service until SIGTERM or SIGINT, or until it fails."""
    loop, work = asyncio.get_running_loop(), asyncio.ensure_future(service.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        events.info("stopped")


async def _stop(coordination: Coordination, path: str) -> None:
    try:
        async with asyncio.timeout(STOP_DEADLINE_SECONDS):
            if coordination.connected:
                await coordination.withdraw(path)
            await coordination.stop()
    except (OscarHaError, TimeoutError):
        pass  # the session ends by itself after its ttl


def _first(group: BaseExceptionGroup[OscarHaError]) -> OscarHaError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OscarHaError), "the subgroup holds only those"
    return error
