"""Many clusters in one process: a controller for each settings file, each alone with its trouble (decision 0085).

A file that is broken, a secret that is missing, an address that another cluster has: that cluster waits, is named in
the log and in the overview, and is tried again when its file changes or after a while. All others go on.
"""

import asyncio
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import structlog

from cluster import settings
from cluster.coordination import in_order
from cluster.errors import BadInput, OscarHaError
from cluster.log import Repeated
from cluster.settings import Secrets, Settings
from cluster.zookeeper import Session
from controller.apart import apart
from controller.loop import Loop
from controller.serving import Pace, a_session, controller, session_ttl_ms

SCAN_SECONDS = 5.0
"""How often files are looked at."""
RETRY_SECONDS = 30.0
"""A cluster that cannot be served is tried again after so long, though its file is as before."""
READ_DEADLINE_SECONDS = 10.0
STOP_DEADLINE_SECONDS = 5.0
STAGGER_SECONDS = 0.05
"""Clusters begin one after the other: hundreds at once would miss each other's deadlines."""
CLUSTERS_MAX = 2_000
RENEW_SECONDS = 0.7
"""Twice within the lease of a controller."""
ASK_MS = 5
"""So often somebody's acker is asked: with two hundred clusters each one once a second."""
log = structlog.get_logger()


class State(StrEnum):
    """What of a settings file comes."""

    STARTING = "starting"
    SERVED = "served"
    REFUSED = "refused"
    """Its file, its secrets or its addresses cannot be used, or its ZooKeeper does not answer."""
    FAILED = "failed"
    """It ended by an error that nobody foresaw; it is begun anew."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A settings file as it was read, with its secrets."""

    settings: Settings
    secret: Secrets


@dataclass(slots=True, eq=False)
class Served:
    """One settings file, and what of it is served."""

    path: Path
    mark: tuple[int, ...]
    state: State = State.STARTING
    why: str = ""
    """What is wrong; of a cluster that is served: with its newer file."""
    loaded: Loaded | None = None
    loop: Loop | None = None
    task: "asyncio.Task[None] | None" = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    url: str | None = None

    @property
    def cluster(self) -> str:
        """Return the cluster's name, that of its file while it is not known."""
        return self.loaded.settings.name if self.loaded is not None else self.path.stem


class Clusters:
    """Serves what is in `places`, files and folders of `*.toml`, as the controller `name` of each."""

    def __init__(self, places: Sequence[Path], name: str, scan_seconds: float = SCAN_SECONDS) -> None:
        self.served: dict[Path, Served] = {}
        self._places, self._name, self._scan_seconds = tuple(places), name, scan_seconds
        self._sessions: dict[tuple[frozenset[str], int], Session] = {}
        self._claims: dict[str, Path] = {}
        self._stopping = asyncio.Event()
        self._said = Repeated()
        self._pace = Pace(RENEW_SECONDS, lambda: ASK_MS * len(self.served))
        self._ends: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stopped. Raises BadInput when at the start there is none of the places."""
        async with self._stack:
            first = True
            while not self._stopping.is_set():
                found = await self._look(must=first)
                if found is not None:
                    self._follow(found)
                first = False
                await _wait(self._stopping, self._scan_seconds)
            await asyncio.gather(*(self._end(one) for one in tuple(self.served.values())), *self._ends)

    # -- files --------------------------------------------------------------------------------------------------------

    async def _look(self, *, must: bool) -> "dict[Path, tuple[int, ...]] | None":
        """Return the settings files that there are; None when that cannot be told now: then all stays as it is."""
        try:
            found = await self._in_time(lambda: settings_files(self._places), "looking for settings files")
        except OscarHaError as error:
            if must:
                raise
            if self._said.is_news("look", str(error)):
                log.error("clusters.not_looked", error=str(error))
            return None
        self._said.is_over("look")
        return found

    @staticmethod
    async def _in_time(work: "Callable[[], dict[Path, tuple[int, ...]]]", what: str) -> "dict[Path, tuple[int, ...]]":
        try:
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                return await apart(work, what)
        except TimeoutError as error:
            raise BadInput(
                f"{what} takes longer than {READ_DEADLINE_SECONDS:g} s", hint="is the storage there?"
            ) from error

    def _follow(self, found: "dict[Path, tuple[int, ...]]") -> None:
        for path in [path for path in self.served if path not in found]:
            one = self.served.pop(path)
            log.info("cluster.removed", file=str(path), cluster=one.cluster)
            self._ending(one)
        fresh = 0
        for path, mark in found.items():
            known = self.served.get(path)
            if known is None:
                one = self.served[path] = Served(path, mark)
                one.task = asyncio.create_task(self._serve(one, fresh * STAGGER_SECONDS), name=f"cluster {path.stem}")
                fresh += 1
            elif known.mark != mark:
                known.mark = mark
                known.changed.set()

    def _ending(self, one: Served) -> None:
        task = asyncio.create_task(self._end(one))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _end(self, one: Served) -> None:
        if one.task is not None:
            one.task.cancel()
            await asyncio.gather(one.task, return_exceptions=True)

    # -- one cluster --------------------------------------------------------------------------------------------------

    async def _serve(self, one: Served, pause: float) -> None:
        """Serve one file for ever, whatever happens to it."""
        await asyncio.sleep(pause)
        structlog.contextvars.bind_contextvars(cluster=one.path.stem)
        loaded = await self._read(one)
        while True:
            structlog.contextvars.bind_contextvars(cluster=loaded.settings.name)
            running = asyncio.create_task(self._control(one, loaded))
            try:
                loaded = await self._read_another(one, loaded)
                log.info("cluster.settings_changed", file=str(one.path))
            finally:
                await self._halt(one, running)

    async def _read(self, one: Served) -> Loaded:
        """Return what the file says, once it can be read."""
        while True:
            one.changed.clear()
            reading = apart(partial(read, one.path), f"settings {one.path.stem}")
            await asyncio.wait({reading}, timeout=READ_DEADLINE_SECONDS)
            if not reading.done():
                self._trouble(one, f"reading {one.path} and its secrets hangs: is the storage there?")
            try:
                loaded = await reading  # a second thread would hang beside the first
            except OscarHaError as error:
                self._trouble(one, str(error))
            except Exception as error:  # whatever a file does to us is its own cluster's trouble only
                log.exception("cluster.not_read", file=str(one.path))
                self._trouble(one, repr(error))
            else:
                return loaded
            await _wait(one.changed, RETRY_SECONDS)

    async def _read_another(self, one: Served, known: Loaded) -> Loaded:
        """Return what the file says once that is something else; what is broken meanwhile changes nothing."""
        while True:
            await one.changed.wait()
            loaded = await self._read(one)
            if loaded != known:
                return loaded
            if one.state is State.SERVED:
                self._well(one)

    async def _control(self, one: Served, loaded: Loaded) -> None:
        """Run the cluster's controller; when it ends by an error, again after a while."""
        while True:
            claimed: list[str] = []
            try:
                one.loaded = loaded
                claimed = self._claim(one.path, loaded.settings)
                session = await self._session(loaded.settings)
                own = loaded.settings.controller(self._name)
                one.url = own.url
                async with controller(loaded.settings, loaded.secret, own, session, self._pace) as loop:
                    one.loop = loop
                    self._well(one)
                    await loop.run()
                    if loop.stopped:
                        return
            except OscarHaError as error:
                self._trouble(one, str(error), State.REFUSED)
            except Exception as error:
                log.exception("cluster.failed", file=str(one.path))
                self._trouble(one, repr(error), State.FAILED)
            finally:
                one.loop = None
                for claim in claimed:
                    del self._claims[claim]
            await asyncio.sleep(RETRY_SECONDS)

    async def _halt(self, one: Served, running: "asyncio.Task[None]") -> None:
        """End a controller after what it just does; one that takes too long is cut off, as by a crash."""
        if one.loop is not None:
            one.loop.stop()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running}, timeout=STOP_DEADLINE_SECONDS)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def _session(self, loaded: Settings) -> Session:
        """Return the session with the cluster's ZooKeeper, one for all clusters that have it."""
        key = (frozenset(loaded.zookeeper), session_ttl_ms(loaded))
        if key not in self._sessions:
            members = in_order(loaded.zookeeper, loaded.controller(self._name).host)
            self._sessions[key] = await self._stack.enter_async_context(a_session(members, key[1]))
        return self._sessions[key]

    def _claim(self, path: Path, loaded: Settings) -> list[str]:
        """Take the cluster's name and address. Raises BadInput naming the other file that has one of them."""
        own = loaded.controller(self._name)
        wanted = {
            f"the cluster {loaded.name} at {', '.join(sorted(loaded.zookeeper))}": "give every cluster its own 'name'",
            f"the address {own.host}:{own.port}": "give the controller of every cluster its own port",
        }
        for claim, hint in wanted.items():
            if claim in self._claims:
                raise BadInput(f"{path} and {self._claims[claim]} both name {claim}", hint=hint)
        self._claims |= dict.fromkeys(wanted, path)
        return list(wanted)

    def _trouble(self, one: Served, why: str, state: State = State.REFUSED) -> None:
        if one.loop is None:
            one.state = state
        one.why = why
        if self._said.is_news(str(one.path), why):
            log.error("cluster.refused", file=str(one.path), error=why, served=one.loop is not None)

    def _well(self, one: Served) -> None:
        one.state, one.why = State.SERVED, ""
        self._said.is_over(str(one.path))


def settings_files(places: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """Return the settings files of some places, with what changes when they do. Raises BadInput."""
    found: dict[Path, tuple[int, ...]] = {}
    for place in places:
        try:
            paths = sorted(place.glob("*.toml")) if stat.S_ISDIR(place.stat().st_mode) else [place]
        except OSError as error:
            raise BadInput(
                f"--settings {place}: {error.strerror}", hint="a settings file, or a folder of them"
            ) from error
        for path in paths:
            with suppress(FileNotFoundError):  # it went away just now
                known = path.stat()
                found[path] = (known.st_mtime_ns, known.st_size, known.st_ino)
    if len(found) > CLUSTERS_MAX:
        raise BadInput(f"{len(found)} settings files", hint=f"one process serves at most {CLUSTERS_MAX}")
    return found


def read(path: Path) -> Loaded:
    """Return a settings file and its secrets. Raises BadInput."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise BadInput(f"settings {path} cannot be read: {error.strerror}") from error
    if not is_file:
        raise BadInput(f"settings {path} is no regular file", hint="give the cluster's TOML file")
    loaded = settings.load(path)
    return Loaded(loaded, settings.read_secrets(loaded))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
