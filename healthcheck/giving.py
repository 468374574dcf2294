"""Giving a copy of this node's data to another node: whoever needs the server or its locks ends it, and so do we.

A copy is a repair, so everything else comes first. It ends before a fence, a promotion and a catch-up; when the writes of a
primary's clients have waited for its locks for too long; when the database does not answer; and when its receiver asks anew.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from cluster import clock, mariadb_backup
from cluster.clock import Nanos
from cluster.dialect import Session
from cluster.errors import BadInput, FencedOut, OscarHaError, Refused, Unreachable
from cluster.records import Database, Role
from cluster.settings import Node, Secrets, Settings
from healthcheck import seed_link
from healthcheck.seed_orders import GiveOrder
from healthcheck.seed_worker import SeedWorker, search_path
from healthcheck.worker import Worker

SILENCE_MS = 60_000.0
"""A receiver may wait for its disk."""
ANSWER_SECONDS_MAX = 10.0
LOOK_SECONDS = 1.0
SILENT_DATABASE_SECONDS_MAX = 10.0
log = structlog.get_logger()


class Host(Protocol):
    """What the watchdog lends."""

    node: Node
    settings: Settings
    role: Role

    @property
    def seen_epoch(self) -> int: ...
    @property
    def database(self) -> Database: ...
    def connect(self, deadline_ms: float) -> Session: ...


@dataclass(frozen=True, slots=True)
class Cost:
    """Since when a copy has cost without a break what it may cost only for a while. None: it does not now."""

    silent_since: Nanos | None = None
    """The database of the donor does not answer: a copy of it may never end."""
    waiting_since: Nanos | None = None
    """Somebody's write on the primary waits for the locks of the backup."""

    def seen(self, now: Nanos, *, silent: bool, waiting: bool | None) -> "Cost":
        """Return this after one more look; `waiting` None: nobody could tell."""
        silent_since = (now if self.silent_since is None else self.silent_since) if silent else None
        if waiting is None:
            return replace(self, silent_since=silent_since)
        return Cost(silent_since, (now if self.waiting_since is None else self.waiting_since) if waiting else None)


def why_end(cost: Cost, now: Nanos, writes_wait_seconds_max: float) -> str | None:
    """Return why the copy must end now, None when it may go on. Pure."""
    if _lasts(cost.silent_since, now, SILENT_DATABASE_SECONDS_MAX):
        return f"its own database does not answer for {SILENT_DATABASE_SECONDS_MAX:.0f} s"
    if _lasts(cost.waiting_since, now, writes_wait_seconds_max):
        return (f"writes of the clinics have waited for it for {writes_wait_seconds_max:.0f} s: let a standby give, or see"
                " seeding.writes_wait_seconds_max")  # fmt: skip
    return None


class Giving:
    """The copy that this node gives; never more than one."""

    def __init__(self, host: Host, secrets: Secrets, taking: Callable[[], bool]) -> None:
        self._host = host
        self._secrets = secrets
        self._taking = taking
        self._beginning = asyncio.Lock()
        self._worker: SeedWorker | None = None
        self._receiver = ""
        self._stops = 0
        self._asker = Worker("giving")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """Return whether a copy is being given."""
        return self._worker is not None and self._worker.alive

    async def give(self, epoch: int, receiver: str, token: str) -> int:
        """Begin to give this node's data to the receiver; return the port to come to. Raises FencedOut, Refused."""
        self._host.settings.node(receiver)
        async with self._beginning:
            self._require_able(epoch, receiver)
            if self._worker is not None and self._worker.alive:
                self.stop("its receiver asks anew")
                await self._worker.ended()  # the port is free again
            stops, order = self._stops, self._order(token)
            self._worker, self._receiver = await SeedWorker.start(order), receiver
            port = await self._port(self._worker)
            if stops != self._stops:
                self._worker.kill()
                raise Refused(f"{self._host.node.name} was needed otherwise just now", hint="try again")
            self._keep_task(self._supervise(self._worker, receiver))
            return port

    def stop(self, why: str) -> None:
        """End the backup of this server and the locks it holds, at once; also one that is just beginning."""
        self._stops += 1
        if self._worker is not None and self._worker.alive:
            log.warning("seed.giving_stopped", why=why)
            self._worker.kill()

    def _require_able(self, epoch: int, receiver: str) -> None:
        host, node = self._host, self._host.node
        if epoch < host.seen_epoch:
            raise FencedOut(f"epoch {epoch} is older than {host.seen_epoch}")
        if self._taking():
            # Two nodes told at once to take each other's data would both stop.
            raise Refused(f"{node.name} is being seeded itself, or about to be", hint="wait, or take another donor")
        if host.role not in (Role.PRIMARY, Role.STANDBY) or host.database is not Database.UP:
            raise Refused(f"{node.name} is {host.role.value}, its database is {host.database.value}: it cannot give")
        if self.alive and self._receiver != receiver:
            raise Refused(f"{node.name} gives its data to {self._receiver} now", hint="wait, or take another donor")
        missing = node.missing_to_give()
        if missing:
            raise BadInput(f"the settings of node {node.name!r} lack {', '.join(missing)}", hint="add them")
        problems = missing_programs()
        seed_link.require_private(node.host, self._host.settings.tls)
        if problems:
            raise BadInput(f"node {node.name!r} cannot give: {'; '.join(problems)}", hint="install them")

    def _order(self, token: str) -> GiveOrder:
        node, settings = self._host.node, self._host.settings
        assert node.socket is not None, "it was looked at before"
        assert node.data_directory is not None, "it was looked at before"
        return GiveOrder(
            host=node.host, port=node.seed_port or 0, token=token, tls=settings.tls, socket=node.socket,
            data_directory=node.data_directory, user=settings.accounts.admin_user, password=self._secrets.admin,
            megabytes_per_second_max=settings.seeding.megabytes_per_second_max, deadline_ms=SILENCE_MS,
        )  # fmt: skip

    async def _port(self, worker: SeedWorker) -> int:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                line = await worker.line()
        except TimeoutError as error:
            worker.kill()
            raise Unreachable("the process that gives does not begin") from error
        if line.port is None:
            worker.kill()
            raise Unreachable("the process that gives told no port")
        return line.port

    async def _supervise(self, worker: SeedWorker, receiver: str) -> None:
        self._keep_task(self._watch(worker))
        try:
            async for line in worker.lines():
                if line.done:
                    log.info("seed.given", receiver=receiver, bytes=line.bytes)
        except OscarHaError as error:
            log.warning("seed.not_given", receiver=receiver, error=str(error))
        finally:
            await worker.ended()

    async def _watch(self, worker: SeedWorker) -> None:
        """End the copy once it costs more than it may."""
        limit, cost = self._host.settings.seeding.writes_wait_seconds_max, Cost()
        while worker.alive:
            await asyncio.sleep(LOOK_SECONDS)
            silent = self._host.database is not Database.UP
            waiting = None if silent else await self._writes_wait()
            cost = cost.seen(clock.now(), silent=silent, waiting=waiting)
            why = why_end(cost, clock.now(), limit)
            if why is not None and worker.alive and worker is self._worker:
                self.stop(why)

    async def _writes_wait(self) -> bool | None:
        """Return whether a client's write waits for the backup; a standby has none."""
        if self._host.role is not Role.PRIMARY:
            return False

        def ask() -> bool:
            with self._host.connect(self._host.settings.timing.call_deadline_ms) as session:
                return session.waits_for_backup()

        with suppress(OscarHaError):
            return await self._asker.run(ask)
        return None

    def _keep_task(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def missing_programs() -> list[str]:
    """Return which programs of a copy are not installed, as at most one sentence."""
    found = [shutil.which(name, path=search_path()) for name in mariadb_backup.PROGRAMS]
    missing = mariadb_backup.missing_programs(found)
    return [missing] if missing else []


def _lasts(since: Nanos | None, now: Nanos, seconds_max: float) -> bool:
    return since is not None and clock.ms_between(since, now) >= seconds_max * seed_link.MS_PER_SECOND
