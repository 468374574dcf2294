"""A ZooKeeper session in the event loop: no thread, one connection, as many users as like (decision 0084).

For who talks for many clusters. It offers what `cluster/coordination.py` uses of kazoo, under kazoo's names and with its
errors and its serializers, but answers with futures of the loop. Nothing is queued while there is no connection, a
reply that nobody waits for any more is dropped, and a watch whose connection ends is fired: look again.
"""

import asyncio
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

import structlog
from kazoo.exceptions import EXCEPTIONS, ConnectionLoss, KazooException, NodeExistsError, NoNodeError
from kazoo.protocol import serialization as wire
from kazoo.protocol.states import EventType, KazooState
from kazoo.security import OPEN_ACL_UNSAFE

from cluster import clock
from cluster.clock import Nanos

FRAME_BYTES_MAX = 16 * 2**20
"""A list of very many names may be longer than the largest record."""
PENDING_MAX = 100_000
"""Requests without a reply: every one has a caller with a deadline, so this many mean that something is wrong."""
PING_SHARE, SILENCE_SHARE = 1 / 3, 2 / 3
"""Of the session's time: how often it is kept alive, and after how much silence another member is asked."""
CONNECT_SECONDS_MAX = 2.0
RETRY_SECONDS, RETRY_SECONDS_MAX = 0.1, 1.0
CLOSE_SECONDS = 1.0
WATCH_XID, PING_XID = -1, -2
CREATED, DELETED, CHANGED, CHILD = 1, 2, 3, 4
EPHEMERAL, SEQUENCE = 1, 2
PASSWORD_BYTES = 16
LENGTH, HEADER, REQUEST = struct.Struct("!i"), struct.Struct("!iqi"), struct.Struct("!iii")
Future = asyncio.Future[Any]
Watcher = Callable[[Any], None]
log = structlog.get_logger()


class Session:
    """One session with one of the members. Made and used in one event loop."""

    def __init__(self, hosts: Sequence[str], ttl_ms: int) -> None:
        self.hosts, self._ttl_ms = tuple(hosts), ttl_ms
        self.state: str = KazooState.LOST
        self.client_id: tuple[int, bytes] | None = None
        self.granted_ms = 0
        self._last_zxid = 0
        self._owed: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []
        self._link: _Link | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._connected, self._closing = asyncio.Event(), False

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, *, deadline_ms: float) -> None:
        """Connect, and stay connected until `stop`. Raises TimeoutError when no member answers before the deadline."""
        self._keeping = self._keeping or asyncio.create_task(self._keep(), name="zookeeper")
        async with asyncio.timeout(deadline_ms / 1000):
            await self._connected.wait()

    async def stop(self) -> None:
        """Close the session at once if anybody answers: what is ephemeral goes away now, not after the ttl."""
        self._closing = True
        if self._link is not None and self.state == KazooState.CONNECTED:
            link = self._link
            link.request(wire.CloseInstance)
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await link.lost.wait()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._link is not None:
            self._link.abort()
        self._become(KazooState.LOST)

    def add_listener(self, listener: Callable[[str], None]) -> None:
        """Call `listener(state)` whenever the connection comes or goes, or another session has begun."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[str], None]) -> None:
        """Call it no more."""
        with suppress(ValueError):
            self._listeners.remove(listener)

    def owe(self, path: str) -> None:
        """Delete a znode of this session as soon as that can be asked for; with the session it goes away anyway."""
        self._owed.add(path)

    @property
    def peer(self) -> tuple[str, int]:
        """Return the address of the member that we are connected to."""
        assert self._link is not None, "it has been connected"
        return self._link.peer

    # -- calls, as kazoo names them ---------------------------------------------------------------------------------

    def get_async(self, path: str, watch: Watcher | None = None) -> Future:
        return self._request(wire.GetData(path, watch))

    def exists_async(self, path: str, watch: Watcher | None = None) -> Future:
        return self._request(wire.Exists(path, watch))

    def get_children_async(self, path: str, watch: Watcher | None = None) -> Future:
        return self._request(wire.GetChildren(path, watch))

    def set_async(self, path: str, value: bytes, version: int = -1) -> Future:
        return self._request(wire.SetData(path, value, version))

    def delete_async(self, path: str, version: int = -1) -> Future:
        return self._request(wire.Delete(path, version))

    def create_async(
        self, path: str, value: bytes, *, ephemeral: bool = False, sequence: bool = False, makepath: bool = False
    ) -> Future:
        request = _create(path, value, ephemeral=ephemeral, sequence=sequence)
        return _future_of(self._create(request)) if makepath else self._request(request)

    def ensure_path_async(self, path: str) -> Future:
        return _future_of(self._ensure(path))

    def transaction(self) -> "Transaction":
        return Transaction(self._request)

    # -- below ------------------------------------------------------------------------------------------------------

    async def _create(self, request: wire.Create) -> Any:
        try:
            return await self._request(request)
        except NoNodeError:
            await self._ensure(request.path.rpartition("/")[0])
            return await self._request(request)

    async def _ensure(self, path: str) -> bool:
        if await self._request(wire.Exists(path, None)) is not None:
            return True
        parent = path.rpartition("/")[0]
        if parent:
            await self._ensure(parent)
        with suppress(NodeExistsError):
            await self._request(_create(path, b""))
        return True

    def _request(self, request: Any) -> Future:
        if self._link is None or self.state != KazooState.CONNECTED:
            return _failed(ConnectionLoss())
        return self._link.request(request)

    async def _keep(self) -> None:
        """Connect to one member after the other, for ever."""
        pause = RETRY_SECONDS
        for address in cycle(self.hosts):
            try:
                link = await self._connect(address)
            except (OSError, TimeoutError, EOFError, struct.error):
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)
                continue
            if link is None:
                continue  # the session had ended: a new one is asked for at once
            pause = RETRY_SECONDS
            try:
                await self._attend(link)
            finally:
                link.abort()
            self._become(KazooState.SUSPENDED)
            if self._closing:
                return
            await asyncio.sleep(pause)  # who took the session over, or drops whoever comes, is not fought with

    async def _connect(self, address: str) -> "_Link | None":
        """Take up the session at a member, None when it has ended there. Raises OSError, TimeoutError, EOFError."""
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(min(CONNECT_SECONDS_MAX, self._ttl_ms / 1000)):
            make = asyncio.get_running_loop().create_connection(_Link, host.strip("[]"), int(port))
            _, link = await make
            try:
                known, password = self.client_id or (0, b"\0" * PASSWORD_BYTES)
                answer = await link.greet(wire.Connect(0, self._last_zxid, self._ttl_ms, known, password, False))
            except BaseException:
                link.abort()
                raise
        if answer.time_out <= 0:
            link.abort()
            self.client_id, self._last_zxid = None, 0
            self._owed.clear()
            self._become(KazooState.LOST)
            return None
        self.client_id, self.granted_ms = (answer.session_id, answer.passwd), answer.time_out
        self._link = link
        self._become(KazooState.CONNECTED)
        while self._owed:
            self.delete_async(self._owed.pop())
        return link

    async def _attend(self, link: "_Link") -> None:
        """Keep the session alive until the connection ends, or is silent for too long."""
        while not link.lost.is_set():
            try:
                async with asyncio.timeout(self.granted_ms * PING_SHARE / 1000):
                    await link.lost.wait()
            except TimeoutError:
                if clock.ms_between(link.heard_at, clock.now()) > self.granted_ms * SILENCE_SHARE:
                    log.warning("zookeeper.silent", address=link.peer)
                    break
                link.ping()
        self._last_zxid = max(self._last_zxid, link.last_zxid)

    def _become(self, state: str) -> None:
        if state == self.state:
            return
        self.state = state
        if state == KazooState.CONNECTED:
            self._connected.set()
        else:
            self._connected.clear()
        for listener in tuple(self._listeners):
            listener(state)


class Transaction:
    """All of it or nothing. One operation is one call, then `commit_async`."""

    def __init__(self, send: Callable[[Any], Future]) -> None:
        self._send = send
        self._operations: list[Any] = []

    def create(self, path: str, value: bytes, *, ephemeral: bool = False) -> None:
        self._operations.append(_create(path, value, ephemeral=ephemeral))

    def set_data(self, path: str, value: bytes, version: int) -> None:
        self._operations.append(wire.SetData(path, value, version))

    def delete(self, path: str, version: int = -1) -> None:
        self._operations.append(wire.Delete(path, version))

    def check(self, path: str, version: int) -> None:
        self._operations.append(wire.CheckVersion(path, version))

    def commit_async(self) -> Future:
        return self._send(wire.Transaction(self._operations))


class _Link(asyncio.Protocol):
    """One connection: frames out, frames in, replies in the order of the requests."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.heard_at: Nanos = clock.now()
        self.last_zxid = 0
        self.peer: tuple[str, int] = ("", 0)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._greeting: Future = self._loop.create_future()
        self._pending: deque[tuple[int, Any, Future]] = deque()
        self._in, self._out = bytearray(), list[bytes]()
        self._xid = 0
        self._watchers: defaultdict[tuple[str, bool], list[Watcher]] = defaultdict(list)
        """By path, and whether it is about children."""

    async def greet(self, request: wire.Connect) -> Any:
        """Send the first request and return the first answer. Raises EOFError when there is none."""
        self._write(bytes(request.serialize()))
        return await self._greeting

    def request(self, request: Any) -> Future:
        """Send a request; the future brings its answer, or kazoo's error."""
        if len(self._pending) >= PENDING_MAX or self.lost.is_set():
            return _failed(ConnectionLoss())
        self._xid = self._xid % 0x7FFFFFFF + 1
        future = self._loop.create_future()
        self._pending.append((self._xid, request, future))
        self._write(LENGTH.pack(self._xid) + LENGTH.pack(request.type) + request.serialize())
        return future

    def ping(self) -> None:
        """Keep the session alive."""
        self._write(LENGTH.pack(PING_XID) + LENGTH.pack(wire.Ping.type))

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "it is TCP"
        self._transport, self.peer = transport, tuple(transport.get_extra_info("peername")[:2])

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        self.heard_at = clock.now()
        self._in += data
        try:
            offset = self._take_frames()
        except (struct.error, ValueError, KeyError, IndexError) as error:
            log.error("zookeeper.not_understood", address=self.peer, error=repr(error))
            self.abort()
            return
        del self._in[:offset]

    # -- below ------------------------------------------------------------------------------------------------------

    def _take_frames(self) -> int:
        """Handle every whole frame; return how many bytes that were. Raises ValueError for what cannot be one."""
        offset, size = 0, len(self._in)
        while size - offset >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._in, offset)
            if not 0 <= length <= FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes")
            if size - offset < LENGTH.size + length:
                break
            offset += LENGTH.size
            self._handle(bytes(self._in[offset : offset + length]))
            offset += length
        return offset

    def _handle(self, frame: bytes) -> None:
        if not self._greeting.done():
            self._greeting.set_result(wire.Connect.deserialize(frame, 0)[0])
            return
        xid, zxid, code = HEADER.unpack_from(frame)
        if xid == WATCH_XID:
            self._fire(wire.Watch.deserialize(frame, HEADER.size)[0])
        elif xid != PING_XID:
            self._answer(xid, zxid, code, frame)

    def _answer(self, xid: int, zxid: int, code: int, frame: bytes) -> None:
        expected, request, future = self._pending.popleft()
        if xid != expected:
            raise ValueError(f"the answer to {xid}, not to {expected}")
        self.last_zxid = max(self.last_zxid, zxid)
        absent = code == NoNodeError.code and request.type == wire.Exists.type
        if code and not absent:
            if not future.done():
                future.set_exception(EXCEPTIONS[code]())
                future.exception()  # whether somebody still waits for it is not our business
            return
        if watcher := getattr(request, "watcher", None):
            self._watchers[request.path, request.type == wire.GetChildren.type].append(watcher)
        if not future.done():
            known = hasattr(request, "deserialize") and not absent
            future.set_result(request.deserialize(frame, HEADER.size) if known else None)

    def _fire(self, event: wire.Watch) -> None:
        kinds = {CHILD: (True,), DELETED: (False, True)}.get(event.type, (False,))
        for children in kinds:
            for watcher in self._watchers.pop((event.path, children), ()):
                watcher(event)

    def _write(self, body: bytes) -> None:
        """Send with what else is sent in this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (LENGTH.pack(len(body)), body)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _end(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        if not self._greeting.done():
            self._greeting.set_exception(EOFError("the connection ended"))
            self._greeting.exception()
        while self._pending:
            _, _, future = self._pending.popleft()
            if not future.done():
                future.set_exception(ConnectionLoss())
                future.exception()
        watchers, self._watchers = self._watchers, defaultdict(list)
        for watcher in (one for each in watchers.values() for one in each):
            watcher(wire.Watch(EventType.NONE, None, ""))


def _create(path: str, value: bytes, *, ephemeral: bool = False, sequence: bool = False) -> wire.Create:
    return wire.Create(path, value, OPEN_ACL_UNSAFE, EPHEMERAL * ephemeral + SEQUENCE * sequence)


def _future_of(work: Coroutine[Any, Any, Any]) -> Future:
    """Return a plain future, which whoever gives up may end, of what takes several requests."""
    future, task = asyncio.get_running_loop().create_future(), asyncio.ensure_future(work)
    future.add_done_callback(lambda _: task.cancel())

    def hand_on(done: "asyncio.Task[Any]") -> None:
        error = None if done.cancelled() else done.exception()
        if future.done() or done.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())

    task.add_done_callback(hand_on)
    return future


def _failed(error: KazooException) -> Future:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    future.exception()
    return future
