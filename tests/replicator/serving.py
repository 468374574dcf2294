"""A serving port and its archive inside the test: an event loop in a thread of its own, files made by hand."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.position import Position
from cluster.settings import Timing, Tls
from replicator.admission import Limits
from replicator.archive import Archive, Resume
from replicator.door import Account
from replicator.metrics import Metrics
from replicator.serve import Server
from replicator.source import Target, Wanted, opened
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
            known: frozenset[int] = frozenset()) -> Iterator[Serving]:  # fmt: skip
    """Serve the archive in `directory`."""
    archive, loop, port = Archive.open(directory), asyncio.new_event_loop(), free_port()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def made() -> Server:
        server = Server(archive, server_id=101, account=ACCOUNT, metrics=Metrics("test"), files=files, known=known,
                        limits=limits)  # fmt: skip
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
