"""ZooKeeper, with a hard deadline on every call and one lease per process.

kazoo queues calls while the connection is suspended and reports a lost session only after reconnecting (TRAPS.md 28,
29). So: no call is sent unless connected, every call has a deadline, a member that is silent for that long is left for the
next one (kazoo takes our own questions for its pings), and the lease is judged on our own clock: it runs
from the moment a *write* was sent whose reply came back. A read proves nothing, a member cut off from the quorum
still answers reads. It lasts no longer than the session that ZooKeeper granted, whatever was asked for.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
import tenacity
from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
)
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.serialization import Connect
from kazoo.protocol.states import WatchedEvent

from cluster import clock, records
from cluster.clock import Nanos
from cluster.errors import BadInput, Conflict, OscarHaError, Unreachable
from cluster.settings import Timing
from cluster.zookeeper import Session

Record = TypeVar("Record")
START_PAUSE_SECONDS = 0.05
RACES_MAX = 5
"""How often a znode may come and go between two looks at it."""
ROUNDING_MS = 1
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Versioned:
    """Raw bytes of a znode and the version a compare-and-set must name."""

    data: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Create:
    """Part of a transaction: make a znode that must not exist."""

    path: str
    record: object


@dataclass(frozen=True, slots=True)
class Replace:
    """Part of a transaction: set a znode that must have this version."""

    path: str
    record: object
    version: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Part of a transaction: delete a znode that must have this version."""

    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Exists:
    """Part of a transaction: this znode must exist (a leader's own election node)."""

    path: str


Operation = Create | Replace | Delete | Exists


class Coordination:
    """One ZooKeeper session. All methods are coroutines of the loop that called `start`.

    With `session` it is that of many clusters: who made it starts and stops it. The lease is each cluster's own.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        root: str,
        timing: Timing,
        session: Session | None = None,
        *,
        nearest: str | None = None,
    ) -> None:
        """`nearest` is our own host: a member there is asked before all others (decision 0098)."""
        self.root = root
        self.timing = timing
        self.client: Any = session or _kazoo(in_order(hosts, nearest), timing, self._on_session)
        self._shared = session
        self.hosts = tuple(hosts)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease_until: Nanos | None = None
        self._record_since: Nanos | None = None
        self._granted_by_kazoo_ms = 0
        self._heard = clock.now()
        self._publishing = asyncio.Lock()
        self._versions: dict[str, _Owned] = {}
        self._listeners: list[Callable[[bool], None]] = []

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, *, deadline_ms: float) -> None:
        """Connect. Raises BadInput when no member answers before the deadline, or when sessions end too early there;
        Unreachable when connections are made and break again until then.
        """
        deadline = clock.after(clock.now(), deadline_ms)
        self._loop = asyncio.get_running_loop()
        self.client.add_listener(self._on_state)
        try:
            if self._shared is not None:
                await self._shared.start(deadline_ms=deadline_ms)
            else:
                await asyncio.to_thread(self.client.start, deadline_ms / 1000)
        except (KazooTimeoutError, TimeoutError) as error:
            self.client.remove_listener(self._on_state)
            raise BadInput(
                f"no ZooKeeper answers at {', '.join(self.hosts)} within {deadline_ms:.0f} ms",
                hint="start ZooKeeper, or mend 'zookeeper' in the settings",
            ) from error
        try:
            self._require_long_sessions()
            await self._first_answer(deadline)
        except OscarHaError:
            await self.stop()
            raise

    async def _first_answer(self, deadline: Nanos) -> None:
        """Make our root. A member of an ensemble that has just begun may drop who came first."""
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unreachable),
            stop=tenacity.stop_after_delay(clock.seconds_left(deadline)),
            wait=tenacity.wait_fixed(START_PAUSE_SECONDS),
            reraise=True,
        ):
            with attempt:
                await self.ensure("")

    async def stop(self) -> None:
        """Close the session at once: ephemeral records go away now, not after the ttl. One that is shared lives on:
        then ours are deleted, if ZooKeeper answers.
        """
        if self._shared is not None:
            self.client.remove_listener(self._on_state)
            for path, owned in tuple(self._versions.items()):
                if owned.session == self.session_id:
                    await self.give_up(path)
            return
        await asyncio.to_thread(self.client.stop)
        await asyncio.to_thread(self.client.close)

    @property
    def connected(self) -> bool:
        return bool(self.client.state == KazooState.CONNECTED)

    def listen(self, callback: Callable[[bool], None]) -> None:
        """Call `callback(connected)` in the loop whenever the connection comes or goes."""
        self._listeners.append(callback)

    def lease_valid(self, at: Nanos) -> bool:
        """Return whether our session certainly still lives at `at`, with the margin kept."""
        return self._lease_until is not None and at < self._lease_until

    @property
    def lease_until(self) -> Nanos | None:
        """The instant our lease ends unless it is renewed; None before the first renewal."""
        return self._lease_until

    @property
    def record_since(self) -> Nanos | None:
        """The instant our record was last made: before that others may have seen none. None: it never was."""
        return self._record_since

    # -- reads ------------------------------------------------------------------------------------------------------

    async def get(self, path: str, watch: Callable[[], None] | None = None) -> Versioned | None:
        """Return a znode, None when there is none. `watch` is called once in the loop at the next change."""
        found = await self._look(self.client.get_async, self.path(path), watch)
        return None if found is None else Versioned(found[0], found[1].version)

    async def read(
        self, kind: type[Record], path: str, watch: Callable[[], None] | None = None
    ) -> tuple[Record, int] | None:
        """Return a decoded record and its version, None when there is none. Raises BadInput for a bad record."""
        found = await self.get(path, watch)
        if found is None:
            return None
        return records.decode(kind, found.data, where=f"ZooKeeper {self.path(path)}"), found.version

    async def children(self, path: str, watch: Callable[[], None] | None = None) -> tuple[str, ...]:
        """Return the names below `path`, sorted; none when it does not exist."""
        return tuple(sorted(await self._look(self.client.get_children_async, self.path(path), watch) or ()))

    async def _look(self, call: Callable[..., Any], full: str, watch: Callable[[], None] | None) -> Any:
        """Read, None when there is no such znode; then the watch waits for it to appear."""
        watcher = self._watcher(watch)
        for _ in range(RACES_MAX):
            try:
                return await self._call(call, full, watch=watcher)
            except NoNodeError:
                if watcher is None or await self._call(self.client.exists_async, full, watch=watcher) is None:
                    return None
        raise Unreachable(f"{full} comes and goes")

    # -- writes -----------------------------------------------------------------------------------------------------

    async def ensure(self, path: str) -> None:
        """Make `path` and its parents if they do not exist."""
        await self._call(self.client.ensure_path_async, self.path(path))

    async def create(self, path: str, record: object, *, sequence: bool = False, ephemeral: bool = False) -> str:
        """Make a znode, persistent if not said otherwise, and return its path. Raises Conflict when it exists."""
        made = await self._write(
            self.client.create_async,
            self.path(path),
            records.encode(record),
            makepath=True,
            sequence=sequence,
            ephemeral=ephemeral,
        )
        return str(made)

    async def replace(self, path: str, record: object, version: int) -> None:
        """Set a znode that must have `version`, which is never optional (TRAPS.md 30). Raises Conflict."""
        try:
            await self._write(self.client.set_async, self.path(path), records.encode(record), version=version)
        except NoNodeError as error:
            raise _lost_race(self.path(path), error) from error

    async def delete(self, path: str, version: int = -1) -> None:
        """Delete a znode if it exists. Raises Conflict when a version is given and differs."""
        with suppress(NoNodeError):
            await self._write(self.client.delete_async, self.path(path), version=version)

    async def transact(self, operations: Sequence[Operation]) -> None:
        """Do all operations or none. Raises Conflict naming the first that did not hold."""
        request = self.client.transaction()
        for operation in operations:
            match operation:
                case Create(path, record):
                    request.create(self.path(path), records.encode(record))
                case Replace(path, record, version):
                    request.set_data(self.path(path), records.encode(record), version)
                case Delete(path, version):
                    request.delete(self.path(path), version)
                case Exists(path):
                    request.check(path if path.startswith("/") else self.path(path), -1)
        sent = clock.now()
        results = await self._call(request.commit_async)
        for operation, result in zip(operations, results, strict=True):
            if isinstance(result, Exception) and not isinstance(result, RolledBackError | RuntimeInconsistency):
                raise Conflict(
                    f"{operation.path}: {type(result).__name__}",
                    hint="somebody else was first: observe again",
                )
        self._renewed(sent)

    async def publish(self, path: str, record: object) -> None:
        """Write our ephemeral record: this renews the lease. Makes it anew after a lost session.

        Raises Conflict when another process has taken our name over; then this process must end.
        """
        data = records.encode(record)
        async with self._publishing:
            sent = clock.now()
            known = self._versions.get(path)
            if known is None or known.session != self.session_id:
                await self._take(path, data)
            else:
                await self._set_own(path, data, known)
            self._renewed(sent)

    async def withdraw(self, path: str) -> None:
        """Delete our ephemeral record, if it is ours."""
        known = self._versions.pop(path, None)
        if known is not None and known.session == self.session_id:
            await self.delete(path)

    async def give_up(self, path: str) -> None:
        """Delete what is ephemeral and ours, now, or as soon as ZooKeeper answers a session that lives on."""
        self._versions.pop(path, None)
        try:
            await self.delete(path)
        except Unreachable:
            if self._shared is not None:
                self._shared.owe(self.path(path))

    async def _take(self, path: str, data: bytes) -> None:
        """Make our record, replacing one that an earlier run of ours left behind."""
        full = self.path(path)
        await self.ensure(path.rpartition("/")[0])
        stat = await self._call(self.client.exists_async, full)
        request = self.client.transaction()
        if stat is not None:
            request.delete(full, stat.version)
        request.create(full, data, ephemeral=True)
        results = await self._call(request.commit_async)
        if any(isinstance(result, Exception) for result in results):
            raise Unreachable(f"{full} changed while it was taken over")
        self._versions[path], self._record_since = _Owned(self.session_id, 0), clock.now()

    async def _set_own(self, path: str, data: bytes, known: "_Owned") -> None:
        full = self.path(path)
        try:
            stat = await self._call(self.client.set_async, full, data, version=known.version)
        except NoNodeError:
            await self._take(path, data)
            return
        except BadVersionError:
            # A write whose reply we did not wait for may have been done after all: then the record is still ours.
            stat = await self._call(self.client.exists_async, full)
            _require_own(stat, known, full)
            try:
                stat = await self._call(self.client.set_async, full, data, version=stat.version)
            except (BadVersionError, NoNodeError) as error:
                raise Unreachable(f"{full} changed while it was written") from error
        # A record made anew by somebody else begins at version 0 again: an equal version does not make it ours.
        _require_own(stat, known, full)
        self._versions[path] = _Owned(known.session, stat.version)

    # -- below ------------------------------------------------------------------------------------------------------

    def path(self, path: str) -> str:
        """Return the full path of a path below the cluster's root."""
        return f"{self.root}/{path}" if path else self.root

    @property
    def session_id(self) -> int:
        """Return which session this is, 0 before the first."""
        identity = self.client.client_id
        return int(identity[0]) if identity else 0

    @property
    def _granted_ms(self) -> int:
        return self._shared.granted_ms if self._shared is not None else self._granted_by_kazoo_ms

    def _renewed(self, sent: Nanos) -> None:
        """Renew the lease, unless a record of ours went away with a lost session and is not yet made anew."""
        session = self.session_id
        if all(owned.session == session for owned in self._versions.values()):
            ttl_ms = min(self.timing.session_ttl_ms, self._granted_ms)
            self._lease_until = clock.after(sent, ttl_ms - self.timing.lease_margin_ms)

    def _require_long_sessions(self) -> None:
        if self._granted_ms < self.timing.session_ttl_ms - ROUNDING_MS:
            raise BadInput(
                f"ZooKeeper at {', '.join(self.hosts)} ends sessions after {self._granted_ms} ms, "
                f"timing.session_ttl_ms is {self.timing.session_ttl_ms}",
                hint="raise maxSessionTimeout or tickTime in zoo.cfg, or lower session_ttl_ms",
            )
        if self._granted_ms > self.timing.session_ttl_ms + ROUNDING_MS:
            log.warning("sessions.longer_than_asked", asked_ms=self.timing.session_ttl_ms, granted_ms=self._granted_ms,
                        hint="a host that hangs is noticed so much later: lower tickTime in zoo.cfg")  # fmt: skip

    async def _write(self, call: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await self._call(call, path, *args, **kwargs)
        except (BadVersionError, NodeExistsError) as error:
            raise _lost_race(path, error) from error

    async def _call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one kazoo `*_async` call with the hard deadline; what comes later is dropped."""
        if self._loop is None or not self.connected:
            raise Unreachable("ZooKeeper is not connected")
        sent = clock.now()
        answer = call(*args, **kwargs)
        future = answer if isinstance(answer, asyncio.Future) else _in_loop(self._loop, answer)
        future.add_done_callback(self._hear)
        # A third of the cost of `asyncio.timeout`, and hundreds of clusters make thousands of calls a second.
        late = self._loop.call_later(self.timing.call_deadline_ms / 1000, _end_late, future)
        try:
            return await future
        except _Late as error:
            if self._shared is None and self._heard < sent:
                _hang_up(self.client)
            raise Unreachable(f"ZooKeeper did not answer within {self.timing.call_deadline_ms} ms") from error
        except (NoNodeError, BadVersionError, NodeExistsError):
            raise
        except (KazooException, KazooTimeoutError) as error:
            raise Unreachable(f"ZooKeeper: {type(error).__name__} {error}") from error
        finally:
            late.cancel()

    def _hear(self, future: "asyncio.Future[Any]") -> None:
        """An answer came, be it an error; one that we gave up waiting for is none."""
        if not future.cancelled() and not isinstance(future.exception(), _Late):
            self._heard = clock.now()

    def _watcher(self, watch: Callable[[], None] | None) -> Callable[[WatchedEvent], None] | None:
        if watch is None:
            return None
        if self._shared is not None:
            return lambda _: watch()

        def fired(_: WatchedEvent) -> None:
            if self._loop is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(watch)

        return fired

    def _on_session(self, granted_ms: int) -> None:
        """Runs in kazoo's thread."""
        self._granted_by_kazoo_ms = granted_ms

    def _on_state(self, state: str) -> None:
        """Runs in kazoo's thread unless the session is shared: hand the news to the loop and never block here."""
        if self._loop is not None:
            for callback in self._listeners:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(callback, state == KazooState.CONNECTED)


@dataclass(frozen=True, slots=True)
class _Owned:
    session: int
    version: int


def in_order(hosts: Sequence[str], nearest: str | None) -> list[str]:
    """Return the members in the order in which they are asked: one on our own host first, the others by chance.

    kazoo goes on with the next when it loses one, so that nobody returns at once to a member that is cut off.
    """
    others = random.sample(hosts, len(hosts))
    return sorted(others, key=lambda host: host.rpartition(":")[0] != nearest)


def _hang_up(client: KazooClient) -> None:
    """End the connection with this member; the session goes on with the next. kazoo 2.11 has no other way to say so."""
    connection = client._connection._socket
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _lost_race(path: str, error: Exception) -> Conflict:
    return Conflict(f"{path}: {type(error).__name__}", hint="somebody else was first: observe again")


def _require_own(stat: Any, known: _Owned, full: str) -> None:
    if stat is None or stat.ephemeralOwner != known.session:
        raise Conflict(f"{full} was taken over by another process of the same name", hint="end one of the two")


def _kazoo(hosts: Sequence[str], timing: Timing, granted: Callable[[int], None]) -> KazooClient:
    client = KazooClient(
        hosts=",".join(hosts),
        randomize_hosts=False,
        timeout=timing.session_ttl_ms / 1000,
        connection_retry={"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 1.0},
        command_retry={"max_tries": 0},
    )
    _observe_sessions(client, granted)
    return client


def _in_loop(loop: asyncio.AbstractEventLoop, answer: Any) -> "asyncio.Future[Any]":
    """Return a future of the loop for what kazoo's threads bring."""
    future = loop.create_future()

    def done(result: Any) -> None:
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(_settle, future, result)

    answer.rawlink(done)
    return future


def _observe_sessions(client: KazooClient, granted: Callable[[int], None]) -> None:
    """Call `granted` with the milliseconds that a server gives a session; kazoo 2.11 has no other way to know."""
    connection = client._connection
    invoke = connection._invoke

    def observing(timeout: float, request: Any, xid: int | None = None) -> Any:
        answer = invoke(timeout, request, xid)
        if isinstance(request, Connect):
            granted(answer[0].time_out)
        return answer

    connection._invoke = observing


class _Late(Exception):
    """The deadline passed before the answer came."""


def _end_late(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(_Late())


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if future.done():
        return
    try:
        future.set_result(result.get(block=False))
    except Exception as error:  # noqa: BLE001 - whatever kazoo raised is what the caller awaits
        future.set_exception(error)
