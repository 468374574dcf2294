"""Building a standby from a running server: what the two watchdogs do. Decided once by a person, never part of a plan.

A failover never waits for it: a donor that is fenced, drained or promoted kills its backup first (TRAPS.md 35). A copy
that fails leaves the node as it was. Nobody but this file changes a node's data directory.
"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import structlog

from cluster import clock, mariadb_backup
from cluster.errors import (
    BadInput,
    Conflict,
    DeadlinePassed,
    Diverged,
    FencedOut,
    OscarHaError,
    Refused,
    Unreachable,
)
from cluster.http import Client
from cluster.records import Database, Role, SeedPhase, SeedReport
from cluster.settings import Node, Secrets
from healthcheck import giving, seed_link
from healthcheck.giving import ANSWER_SECONDS_MAX, Giving, missing_programs
from healthcheck.seed_giving import new_token
from healthcheck.seed_orders import Line, TakeOrder, last_words
from healthcheck.seed_places import Places, SeedMemory, interrupted
from healthcheck.seed_worker import SeedWorker

SILENCE_MS = 15_000.0
"""A donor says something every second."""
START_SECONDS_MAX = 300.0
START_ATTEMPTS = 3
START_PAUSE_SECONDS = 1.0
FOLLOW_SECONDS_MAX = 120.0
FOLLOW_PAUSE_SECONDS = 1.0
LOOK_SECONDS = 0.1
AGAIN = "run 'oscar-ha reinitialize' again"
log = structlog.get_logger()


class Host(giving.Host, Protocol):
    """What the watchdog lends."""

    @property
    def running(self) -> bool:
        """Return whether there is a server process."""
        ...

    def promised(self) -> str | None:
        """Return why this server is the cluster's, so that its data is nobody's to replace; None when it is not."""
        ...

    def own_history(self) -> str | None:
        """Return what this node has that the cluster has not; None when there is nothing. Raises Unreachable."""
        ...

    def rescued(self) -> bool:
        """Return whether all of that is rescued (healthcheck/rescuing.py)."""
        ...

    async def require_no_plan(self) -> None:
        """Raise Conflict while a failover or switchover runs, Unreachable when nobody can know."""
        ...

    def seeding_begins(self, why: str) -> None: ...
    def seeding_ended(self, why: str) -> None: ...
    def tell_changes(self) -> None: ...
    async def stop_server(self) -> None: ...
    async def follow(self, epoch: int) -> Role: ...


class Seeding:
    """The copy that this node takes, and the one it gives."""

    def __init__(self, host: Host, secrets: Secrets) -> None:
        self._host = host
        self._secrets = secrets
        self._memory: SeedMemory | None = None
        self._beginning = asyncio.Lock()
        self._taking: asyncio.Task[None] | None = None
        self._worker: SeedWorker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: subprocess.Popen[bytes] | None = None
        self._rate: tuple[clock.Nanos, int] | None = None
        self.giving = Giving(host, secrets, lambda: self.replacing or self._beginning.locked())

    @property
    def report(self) -> SeedReport | None:
        """Return the seeding that runs, or the last one."""
        return self._memory.report if self._memory else None

    @property
    def replacing(self) -> bool:
        """Return whether the node's data is being replaced: nobody may use its server."""
        return self.report is not None and self.report.phase.replaces

    def why(self) -> str | None:
        """Return what a person wants to know of a node that is being seeded."""
        report = self.report
        if report is None or not self.replacing:
            return None
        share = f" {report.percent:.0f} %" if report.phase is SeedPhase.COPYING and report.percent is not None else ""
        return f"seeded from {report.donor}: {report.phase.value}{share}"

    async def run(self) -> None:
        """Go on or give up what the watchdog before us had begun. Ends by itself."""
        places = self._places()
        if places is None:
            return
        memory = await asyncio.to_thread(places.recall)
        if memory is None:
            return
        self._memory = memory
        given_up = interrupted(memory)
        if given_up is not None:
            self._host.seeding_begins(given_up.report.why)
            self._begin_task(lambda: self._give_up(places, given_up.report.why))
        elif not memory.report.phase.over:
            self._begin_task(lambda: self._finish(places))

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, epoch: int, donor: str, seeding: str, *, force: bool, keep: bool) -> SeedReport:
        """Begin to replace this node's data by a copy of the donor's. Raises before anything is touched."""
        if self._beginning.locked():
            raise Conflict("a seeding of this node is just beginning", hint="wait for it")
        async with self._beginning:
            return await self._begin(epoch, donor, seeding, force=force, keep=keep)

    async def _begin(self, epoch: int, donor: str, seeding: str, *, force: bool, keep: bool) -> SeedReport:
        await self._host.require_no_plan()
        places = self._require_takeable(epoch)
        own, known = self._own_history()
        if own is not None and not force and self._host.rescued():
            own = None
        if own is not None and not force:
            raise Diverged(
                own, hint="wait for its rescue: oscar-ha status; --force seeds it all the same, and keeps its data"
            )
        source = self._host.settings.node(donor)
        seed_link.require_private(source.host, self._host.settings.tls)
        await asyncio.to_thread(self._require_room_for, places)
        token = new_token()
        port = await self._ask(source, epoch, token)
        self._require_takeable(epoch)  # asking took a while: a failover may have chosen this node meanwhile
        report = SeedReport(id=seeding, donor=donor, phase=SeedPhase.CONNECTING, began=clock.utc_now())
        keep = keep or own is not None or not known
        self._memory, self._rate = SeedMemory(report=report, ran=self._host.running, keep=keep), None
        log.info("seed.begins", donor=donor, id=seeding, keep=keep)
        self._host.seeding_begins(f"seeded from {donor}")
        self._begin_task(lambda: self._replace(places, source, port, token))
        return report

    def _require_takeable(self, epoch: int) -> Places:
        host, node = self._host, self._host.node
        if epoch < host.seen_epoch:
            raise FencedOut(f"epoch {epoch} is older than {host.seen_epoch}")
        if self._taking is not None and not self._taking.done():
            raise Conflict(f"{node.name} is busy with a seeding: {self._doing()}", hint="wait for it: oscar-ha status")
        if (promised := host.promised()) is not None:
            raise Refused(f"{node.name} {promised}", hint="switch over first, or wait for the end of the plan")
        if self.giving.alive:
            raise Refused(f"{node.name} gives its own data to another node", hint="wait until that is over")
        missing = node.missing_to_receive()
        places = self._places()
        if missing or places is None:
            raise BadInput(
                f"the settings of node {node.name!r} lack {', '.join(missing)}", hint="add them, restart the watchdog"
            )
        return places

    def _doing(self) -> str:
        if self.report is not None and self.report.phase is SeedPhase.FAILED:
            return "the last one failed, and its server is being started again"
        return self.why() or "catching up"

    def _own_history(self) -> tuple[str | None, bool]:
        """Return what this node has of its own, and whether that is known at all."""
        try:
            return self._host.own_history(), True
        except Unreachable:
            return None, False

    def _require_room_for(self, places: Places) -> None:
        """Raise BadInput naming everything that would stop the copy later."""
        node = self._host.node
        assert node.option_file is not None, "it was looked at before"
        problems = places.problems()
        problems += mariadb_backup.problems(mariadb_backup.read_options(node.option_file), places.data)
        problems += missing_programs()
        if problems:
            raise BadInput(f"node {node.name!r} cannot be seeded: {'; '.join(problems)}", hint="mend that first")
        places.clear()

    async def _ask(self, source: Node, epoch: int, token: str) -> int:
        """Let the donor's watchdog begin to give; return where."""
        async with Client(self._secrets.token) as client:
            body = {"epoch": epoch, "receiver": self._host.node.name, "token": token}
            answer = await client.post(
                f"{source.watchdog_url}/v1/give", body, deadline_ms=2 * ANSWER_SECONDS_MAX * seed_link.MS_PER_SECOND
            )
        port = answer.get("port") if isinstance(answer, dict) else None
        if not isinstance(port, int):
            raise Unreachable(f"the watchdog of {source.name} told no port")
        return port

    async def _replace(self, places: Places, source: Node, port: int, token: str) -> None:
        """Copy, prove, and put the copy in the place of the data directory."""
        memory = self._require_memory()
        await asyncio.to_thread(places.remember, memory)
        await self._host.stop_server()
        order = self._take_order(places, source, port, token)
        self._worker = await SeedWorker.start(order)
        try:
            async for line in self._worker.lines():
                await self._heard(places, line)
        finally:
            await self._worker.ended()
        if self._host.running:  # somebody started it again meanwhile
            await self._host.stop_server()
        await self._enter(places, SeedPhase.STARTING)
        await self._finish(places)

    async def _finish(self, places: Places) -> None:
        """What comes once the copy is proven; a watchdog that died in it goes on from here."""
        memory = self._require_memory()
        if memory.report.phase is SeedPhase.STARTING:
            self._host.seeding_begins(f"seeded from {memory.report.donor}")
            kept = await asyncio.to_thread(self._swap, places, memory.report.id)
            self._change(kept=kept)
            await self.start_server(places)
            await self._enter(places, SeedPhase.CATCHING_UP)
            self._host.seeding_ended(f"seeded from {memory.report.donor} at {self._require_memory().report.position}")
        await self._catch_up()
        memory = self._require_memory()
        await asyncio.to_thread(lambda: places.tidy(memory.report.id, keep=memory.keep))
        if not memory.keep:
            self._change(kept=None)
        await self._enter(places, SeedPhase.DONE)
        log.info("seed.ended", donor=memory.report.donor, position=memory.report.position, kept=memory.report.kept)

    def _swap(self, places: Places, seeding: str) -> str | None:
        if places.fresh.exists() and places.in_use():
            raise Refused(f"a server that we do not know uses {places.data}", hint="stop it, then seed again")
        return places.swap(seeding)

    async def _catch_up(self) -> None:
        """Follow the replicator of our site until we are a standby. A long way is no failure, no way is one."""
        host, deadline = self._host, clock.after(clock.now(), FOLLOW_SECONDS_MAX * seed_link.MS_PER_SECOND)
        trouble = "nobody told it to follow"
        while host.role not in (Role.STANDBY, Role.PRIMARY):
            if host.role is Role.JOINING:
                deadline = clock.after(clock.now(), FOLLOW_SECONDS_MAX * seed_link.MS_PER_SECOND)
            elif clock.seconds_left(deadline) == 0.0:
                raise DeadlinePassed(
                    f"the copy is in place, but it does not follow: {trouble}", hint="see why in status"
                )
            elif host.database is Database.UP:
                try:
                    await host.follow(host.seen_epoch)
                except Diverged:
                    raise
                except OscarHaError as error:
                    trouble = str(error)
                    await asyncio.sleep(FOLLOW_PAUSE_SECONDS)
            await asyncio.sleep(LOOK_SECONDS)

    async def _heard(self, places: Places, line: Line) -> None:
        if line.position is not None:
            self._change(position=line.position)
        if line.bytes_total is not None:
            self._change(bytes_total=line.bytes_total)
        if line.phase is not None and line.phase is not self._require_memory().report.phase:
            await self._enter(places, line.phase)
            self._rate = (clock.now(), 0)
        if line.bytes is not None:
            self._change(bytes=line.bytes, bytes_per_second=self._bytes_per_second(line.bytes))

    def _bytes_per_second(self, count: int) -> float | None:
        since_ms = clock.ms_between(self._rate[0], clock.now()) if self._rate else 0.0
        return round(count / since_ms * seed_link.MS_PER_SECOND, 1) if since_ms > 0 else None

    async def _give_up(self, places: Places, why: str) -> None:
        """Leave the node as it was: the old data directory is where it always was, the half-made copy is removed."""
        log.warning("seed.failed", why=why)
        swapped = self._require_memory().report.phase in (SeedPhase.STARTING, SeedPhase.CATCHING_UP)
        self._change(why=why)
        if not swapped:
            with suppress(OSError):
                await asyncio.to_thread(places.clear)
        self._host.seeding_ended(f"seeding failed: {why}")
        try:
            await self._enter(places, SeedPhase.FAILED)
        except OscarHaError as error:  # the disk may still be full: what cannot be remembered is over all the same
            log.warning("seed.not_remembered", error=str(error))
            self._change(phase=SeedPhase.FAILED)
            self._host.tell_changes()
        try:
            if not swapped and self._require_memory().ran and not self._host.running:
                await self.start_server(places)
        except (OscarHaError, OSError) as error:
            log.warning("seed.not_as_it_was", error=str(error))

    # -- the server ---------------------------------------------------------------------------------------------------

    async def start_server(self, places: Places) -> None:
        """Start the server with the node's own command and wait until the watchdog has dealt with it."""
        for attempt in range(1, START_ATTEMPTS + 1):
            if self._host.database is Database.UP:
                return
            status = await self._try_to_start(places)
            if status is None:
                return
            if attempt < START_ATTEMPTS:
                await asyncio.sleep(START_PAUSE_SECONDS)
        said = last_words(places.start_log)
        raise OscarHaError(f"start_command ended with {status}: {said}", hint="mend start_command, or start it by hand")

    async def _try_to_start(self, places: Places) -> int | None:
        """Return None when the server is up, else the status that its command ended with. Raises DeadlinePassed."""
        deadline = clock.after(clock.now(), START_SECONDS_MAX * seed_link.MS_PER_SECOND)
        with places.start_log.open("wb") as output:
            # Not asyncio's: that would kill the server when the watchdog ends.
            self._server = await asyncio.to_thread(_spawn, self._host.node.start_command, output)
        while self._host.database is not Database.UP:
            if self._server.poll():
                return self._server.returncode
            if clock.seconds_left(deadline) == 0.0:
                raise DeadlinePassed(f"the server is not up within {START_SECONDS_MAX:.0f} s", hint="look at its log")
            await asyncio.sleep(LOOK_SECONDS)
        return None

    # -- below --------------------------------------------------------------------------------------------------------

    def _begin_task(self, work: Callable[[], Awaitable[None]]) -> None:
        self._taking = self._keep_task(self._guarded(work))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        places = self._places()
        assert places is not None, "nothing is begun without"
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the node must not stay half-seeded and silent
            text = str(error) if isinstance(error, OscarHaError) else f"{type(error).__name__}: {error}"
            await self._give_up(places, text if AGAIN in text else f"{text}; then {AGAIN}")

    def _keep_task(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _places(self) -> Places | None:
        directory = self._host.node.data_directory
        return None if directory is None else Places(directory)

    def _take_order(self, places: Places, source: Node, port: int, token: str) -> TakeOrder:
        assert self._host.node.option_file is not None, "it was looked at before"
        return TakeOrder(
            host=source.host, port=port, token=token, tls=self._host.settings.tls, option_file=self._host.node.option_file,
            data_directory=places.data, fresh=places.fresh, user=self._host.settings.accounts.admin_user,
            password=self._secrets.admin, deadline_ms=SILENCE_MS,
        )  # fmt: skip

    def _require_memory(self) -> SeedMemory:
        assert self._memory is not None, "a seeding has begun"
        return self._memory

    def _change(self, **changes: object) -> None:
        self._memory = self._require_memory().reported(**changes)

    async def _enter(self, places: Places, phase: SeedPhase) -> None:
        """Write the phase down, then let everybody know."""
        memory = self._require_memory().reported(phase=phase)
        await asyncio.to_thread(places.remember, memory)
        self._memory = memory
        self._host.tell_changes()


def _spawn(command: tuple[str, ...], output: Any) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    except OSError as error:
        raise BadInput(
            f"start_command {command[0]!r} cannot be run: {error.strerror}", hint="mend start_command"
        ) from error
