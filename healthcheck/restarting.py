"""Starting the server that crashed and that nobody has started: asked for by the controller, which sees who else is well.

systemd comes first. A server that was stopped in order is never started: somebody means it to be down.
"""

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from cluster.errors import BadInput, Conflict, FencedOut, OscarHaError, Refused
from cluster.records import RestartReport, Role
from cluster.settings import Node, Secrets, Settings
from healthcheck import crash
from healthcheck.seed_places import Places
from healthcheck.seeding import Seeding
from healthcheck.worker import Worker

LOOK_SECONDS = 2.0
log = structlog.get_logger()


class Host(Protocol):
    """What the watchdog lends."""

    node: Node
    settings: Settings
    role: Role
    seeding: Seeding

    @property
    def seen_epoch(self) -> int: ...
    @property
    def running(self) -> bool:
        """Return whether there is a server process."""
        ...

    async def require_no_plan(self) -> None: ...
    def tell_changes(self) -> None: ...


class Restarting:
    """The starts of one node's server by its watchdog."""

    def __init__(self, host: Host, secrets: Secrets) -> None:
        self._host, self._secrets = host, secrets
        self._worker = Worker("recover")
        self._task: asyncio.Task[None] | None = None
        self.crashed = False
        """The server is down, and did not end in order."""
        self.report: RestartReport | None = None

    async def run(self) -> None:
        """Look how the server ended, while it is down. Never ends by itself."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Tell whether the server that is down has crashed."""
        data = self._host.node.data_directory
        down = data is not None and not self._host.running and not self._busy and not self._host.seeding.replacing
        found = await self._worker.run(crash.crashed, data) if down else False
        if found != self.crashed:
            self.crashed = found
            self._host.tell_changes()

    async def begin(self, epoch: int, name: str) -> RestartReport:
        """Begin to start the server. Raises before anything is touched."""
        await self._host.require_no_plan()
        await self.look()
        places = self._require_startable(epoch)
        if places.in_use():
            raise Conflict(f"a server uses {places.data} already", hint="it is starting; wait")
        report = self.report = RestartReport(id=name, runs=True)
        log.warning("restart.begins", id=name)
        self._task = asyncio.get_running_loop().create_task(self._start(places, name))
        self._host.tell_changes()
        return report

    @property
    def _busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def _require_startable(self, epoch: int) -> Places:
        host, node = self._host, self._host.node
        if epoch < host.seen_epoch:
            raise FencedOut(f"epoch {epoch} is older than {host.seen_epoch}")
        if self._busy:
            raise Conflict(f"the server of {node.name} is being started already", hint="wait for it")
        if host.role is Role.PRIMARY or host.running:
            raise Refused(f"{node.name} is {host.role.value}, and its server runs", hint="see 'oscar-ha status'")
        if host.seeding.replacing:
            raise Conflict(f"{node.name} is {host.seeding.why()}", hint="wait for it")
        missing = node.missing_to_receive()
        if missing or node.data_directory is None:
            raise BadInput(f"the settings of node {node.name!r} lack {', '.join(missing)}", hint="add them")
        if not self.crashed:
            raise Refused(f"the server of {node.name} was stopped in order: somebody means it to be down")
        return Places(node.data_directory)

    async def _start(self, places: Places, name: str) -> None:
        why = ""
        try:
            await self._start_or_recover(places)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is told, and tried again by the controller's word
            why = str(error) if isinstance(error, OscarHaError) else f"{type(error).__name__}: {error}"
        log.warning("restart.ended", id=name, why=why)
        self.report = RestartReport(id=name, runs=False, why=why)
        self._host.tell_changes()

    async def _start_or_recover(self, places: Places) -> None:
        try:
            await self._host.seeding.start_server(places)
        except OscarHaError as error:
            if self._host.running:
                raise
            log.warning("restart.refused", why=str(error))
            await self._recover(places.data)
            await self._host.seeding.start_server(places)

    async def _recover(self, data: Path) -> None:
        option_file, user = self._host.node.option_file, self._host.settings.accounts.admin_user
        assert option_file is not None, "it was looked at before"
        await self._worker.run(crash.recover, option_file, data, user, self._secrets.admin)
