"""A serving port and its archive inside the test: an event loop in a thread of its own, files made by hand."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Any, Self

import pymysql

from cluster.binlog.events import FLAG_ARTIFICIAL
from cluster.binlog.framing import HEADER, NEED_DATA, PacketFramer, packet
from cluster.position import Position
from cluster.settings import Timing, Tls
from replicator import wire
from replicator.admission import Limits
from replicator.archive import Archive, Resume
from replicator.door import Account
from replicator.metrics import Metrics
from replicator.serve import Server
from replicator.source import DUMP_ANNOTATE, Target, Wanted, opened
from tests.replicator.binlog import Binlog
from tests.servers.process import free_port

ACCOUNT = Account("reader", "reader-secret")
TIMING = Timing(call_deadline_ms=2_000, stream_deadline_ms=1_000, heartbeat_interval_ms=200)
FILE = "binlog.000001"
OUR_SERVER_ID = 9


def a_log(transactions: int = 5, *, row_bytes: int = 50) -> Binlog:
    """Return a binlog of so many transactions of one row."""
    log = Binlog()
    for number in range(1, transactions + 1):
        log.transaction(f"0-1-{number}", row_bytes=row_bytes)
    return log


def an_archive(directory: Path, *logs: bytes) -> Path:
    """Write an archive of one epoch each; return its folder."""
    begin = ""
    for epoch, data in enumerate(logs, 1):
        folder = directory / "epochs" / f"{epoch:010d}-1"
        folder.mkdir(parents=True)
        (folder / FILE).write_bytes(data)
        (folder / "epoch.json").write_text(json.dumps(
            {"epoch": epoch, "server_id": 1, "file": FILE, "position": begin, "end": None}))  # fmt: skip
    return directory


class Serving:
    """The running server; `port` is where it listens."""

    def __init__(self, server: Server, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.port, self._loop = server, port, loop
        self.failures: list[dict[str, Any]] = []
        """What nobody has caught."""
        loop.set_exception_handler(lambda _, context: self.failures.append(context))

    def ask(self, question: Callable[[], Any]) -> Any:
        """Return what a question answers in the server's own thread."""

        async def asked() -> Any:
            return question()

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(10)

    def target(self, *, tls: Tls | None = None, host: str = "127.0.0.1") -> Target:
        """Return the server as a source."""
        return Target(host=host, port=self.port, user=ACCOUNT.user, password=ACCOUNT.password,
                      our_server_id=OUR_SERVER_ID, tls=tls)  # fmt: skip


@contextmanager
def serving(directory: Path, *, limits: Limits | None = None, files: Tls | None = None,
            known: frozenset[int] = frozenset(), cluster: str | None = None) -> Iterator[Serving]:  # fmt: skip
    """Serve the archive in `directory`."""
    archive, loop, port = Archive.open(directory), asyncio.new_event_loop(), free_port()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def made() -> Server:
        server = Server(archive, server_id=101, account=ACCOUNT, metrics=Metrics("test"), files=files, known=known,
                        limits=limits, cluster=cluster)  # fmt: skip
        await server.start("127.0.0.1", port)
        return server

    try:
        server: Server = run(made())
        try:
            yield Serving(server, port, loop)
        finally:
            run(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        archive.close()


@contextmanager
def read_from(serving: Serving, **more: Any) -> Iterator[Any]:
    """Open a stream of the first epoch from its beginning, as another replicator does."""
    wanted = Wanted(resume=Resume(FILE, 4, Position()), epoch=1)
    with opened(serving.target(**more), wanted, TIMING) as stream:
        yield stream


class Reader:
    """A client that attaches as a tool does; what comes is taken only when asked for."""

    def __init__(self, port: int, *, server_id: int = 0, receive_buffer_bytes: int | None = None,
                 account: Account = ACCOUNT) -> None:  # fmt: skip
        raw = socket.socket()
        if receive_buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        raw.settimeout(10)
        raw.connect(("127.0.0.1", port))
        self._server_id = server_id
        self.connection = pymysql.connect(user=account.user, password=account.password, host="127.0.0.1",
                                          defer_connect=True, ssl_disabled=True, autocommit=None)  # fmt: skip
        self.connection.connect(raw)
        self.raw = raw
        self._framer = PacketFramer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def query(self, text: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall()

    def dump(self, file: str = "", offset: int = 4, *, flags: int = DUMP_ANNOTATE, **variables: str) -> Self:
        """Ask for the stream, after setting variables."""
        for name, value in variables.items():
            self.query(f"SET @{name} = '{value}'")
        payload = Struct("<BIHI").pack(wire.COM_BINLOG_DUMP, offset, flags, self._server_id) + file.encode()
        self.raw.sendall(packet(payload, 0))
        return self

    def packets(self) -> Iterator[bytes]:
        """Yield the payload of each packet until the stream ends."""
        while True:
            while (one := self._framer.next_packet()) is not NEED_DATA:
                yield bytes(one)
            count = self.raw.recv_into(self._framer.space())
            if count == 0:
                return
            self._framer.filled(count)

    def events(self, end: bytes) -> list[bytes]:
        """Return the events that are not artificial, until `end` has come, or the stream has ended."""
        found = list[bytes]()
        for payload in self.packets():
            if payload[0] == 0xFF:
                raise AssertionError(payload[3:].decode())
            if payload[0] == 0xFE:
                return found
            event = payload[1:]
            if not HEADER.unpack_from(event)[5] & FLAG_ARTIFICIAL and HEADER.unpack_from(event)[4]:
                found.append(event)
            if event == end:
                return found
        raise AssertionError("the stream broke off")
