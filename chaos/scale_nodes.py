"""Clusters simulated at the interface of watchdogs and replicators: real HTTP, records in a real ZooKeeper, no database.

Hundreds in one process, cheaply: one session makes all records, and one listener answers at the same port of many
loopback addresses. Each part renews its record once a second, with another position each time, as busy clinics make it.
"""

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import clock, records, settings
from cluster.clock import Nanos
from cluster.records import Database, NodeReport, ReplicatorReport, Role
from cluster.settings import Settings
from cluster.zookeeper import Session

TTL_MS = 10_000
START_DEADLINE_MS = 20_000
TURN_SECONDS = 0.01
SERIAL = 2**40
"""Whoever asks which durability record is known hears: the newest."""
SLOW_SECONDS = 1.5
SETTLE_DEADLINE_MS = 120_000
POLL_SECONDS = 0.05
READY = "ready"
VERSION = "10.11.19-MariaDB"
Answer = dict[str, Any]


@dataclass(slots=True)
class Node:
    """A watchdog and its database."""

    name: str
    site: str
    server_id: int
    url: str
    role: Role = Role.FENCED
    database: Database = Database.UP
    epoch: int = 0
    sealed: int = 0
    lease_epoch: int | None = None
    stands_at: str | None = None
    """Where a server that failed stood; None: where the cluster is."""


@dataclass(slots=True)
class Simulated:
    """One cluster. `asked` says when it was first asked to seal or fence since it was last forgotten."""

    settings: Settings
    nodes: dict[str, Node] = field(default_factory=dict)
    writes: int = 0
    writer: int = 1
    """The server id of whoever wrote last."""
    sealed: int = 0
    asked: Nanos | None = None
    hangs: bool = False
    slow: bool = False
    garbage: bool = False
    publish: Callable[["Simulated", str], object] = lambda _, __: None

    def __post_init__(self) -> None:
        for one in self.settings.nodes:
            self.nodes[one.name] = Node(one.name, one.site, one.server_id, one.watchdog_url)

    @property
    def primary(self) -> Node | None:
        return next((node for node in self.nodes.values() if node.role is Role.PRIMARY), None)

    @property
    def settled(self) -> bool:
        """Whether it has a primary, and standbys besides."""
        roles = [node.role for node in self.nodes.values()]
        return roles.count(Role.PRIMARY) == 1 and roles.count(Role.STANDBY) == len(roles) - 1

    @property
    def paths(self) -> list[str]:
        return [f"nodes/{name}" for name in self.nodes] + [
            f"replicators/{one.site}" for one in self.settings.replicators
        ]

    @property
    def position(self) -> str:
        return f"0-{self.writer}-{100 + self.writes}"

    def record(self, path: str) -> bytes:
        """Return what is at a path now."""
        if self.garbage:
            return b"\xff{" * 2_000 + str(self.writes).encode()
        kind, _, name = path.partition("/")
        return records.encode(self._node(self.nodes[name]) if kind == "nodes" else self._replicator(name))

    def _node(self, node: Node) -> NodeReport:
        return NodeReport(
            node=node.name, site=node.site, server_id=node.server_id, role=node.role, database=node.database,
            epoch=node.epoch, sealed_epoch=node.sealed, read_only=node.role is not Role.PRIMARY, position=node.stands_at or self.position,
            lag_ms=0.0, lease_epoch=node.lease_epoch, resumable=False, generation="1", server_version=VERSION,
            replicating=node.role is Role.STANDBY, why="simulated", url=node.url, position_age_ms=0.0, serial=SERIAL,
        )  # fmt: skip

    def _replicator(self, site: str) -> ReplicatorReport:
        us = self.settings.replicator(site)
        return ReplicatorReport(
            site=site, epoch=1, sealed_epoch=self.sealed, connected=True, acknowledging=True, received=self.position,
            durable=self.position, acknowledged=self.position, orphans=0, server_version=VERSION, why="simulated",
            host=us.host, port=us.port, url=us.url, serial=SERIAL,
        )  # fmt: skip

    def write(self) -> None:
        """Clinics write, if anybody takes it."""
        if (primary := self.primary) is not None:
            self.writes, self.writer = self.writes + 1, primary.server_id

    def fail(self) -> Node:
        """The server process of the primary is gone."""
        node = self.primary
        assert node is not None, "it has one"
        node.role, node.database, node.lease_epoch, self.asked = Role.FENCED, Database.DOWN, None, None
        node.stands_at = self.position
        return node

    def call(self, path: str, verb: str, body: Answer) -> Answer:
        """Do what a controller asks for, and return the answer."""
        kind, _, name = path.partition("/")
        if verb == "health":
            return json.loads(self.record(path)) if not self.garbage else {}
        epoch = int(body.get("epoch", 0))
        if self.asked is None and verb in ("seal", "fence"):
            self.asked = clock.now()
        if kind == "replicators":
            self.sealed = max(self.sealed, epoch) if verb == "seal" else self.sealed
            return {"sealed": self.sealed, "durable": self.position}
        answer = self._order(self.nodes[name], verb, epoch)
        self.publish(self, path)
        return answer

    def _order(self, node: Node, verb: str, epoch: int) -> Answer:
        node.epoch = max(node.epoch, epoch)
        match verb:
            case "fence":
                node.sealed, node.lease_epoch, node.role = epoch, None, Role.FENCED
                dead = node.database is Database.DOWN
                how = "process dead" if dead else "read_only"
                return {"fenced": True, "position": None if dead else self.position, "how": how}
            case "follow":
                node.role, node.stands_at = Role.STANDBY, None
                return {"role": node.role}
            case "drain":
                return {"applied": self.position}
            case "promote":
                node.role = Role.FENCED
                return {"server_id": node.server_id, "file": f"binlog.{epoch:06d}", "position": self.position}
            case "open":
                node.role, node.lease_epoch = Role.PRIMARY, epoch
                for one in self.nodes.values():  # each watches the record
                    one.epoch = max(one.epoch, epoch)
                return {"role": node.role}
            case _:
                return {}


class Nodes:
    """Publishes and answers for some clusters. Use as an async context manager."""

    def __init__(self, clusters: Sequence[Simulated]) -> None:
        self.clusters = tuple(clusters)
        self.session = Session(clusters[0].settings.zookeeper, TTL_MS)
        self._doors: dict[tuple[str, int], tuple[Simulated, str]] = {}
        self._servers: list[asyncio.Server] = []
        self._beating: asyncio.Task[None] | None = None
        for cluster in self.clusters:
            cluster.publish = self.publish
            for node in cluster.settings.nodes:
                self._doors[node.host, node.watchdog_port] = (cluster, f"nodes/{node.name}")
            for one in cluster.settings.replicators:
                self._doors[one.host, one.http_port] = (cluster, f"replicators/{one.site}")

    async def __aenter__(self) -> "Nodes":
        await self.session.start(deadline_ms=START_DEADLINE_MS)
        loop = asyncio.get_running_loop()
        for port, doors in itertools.groupby(sorted(self._doors, key=lambda door: door[1]), key=lambda door: door[1]):
            hosts = [host for host, _ in doors]
            self._servers.append(await loop.create_server(lambda: Door(self._doors), hosts, port, reuse_address=True))
        for cluster in self.clusters:
            for path in cluster.paths:
                full = f"{cluster.settings.root}/{path}"
                await self.session.create_async(full, cluster.record(path), ephemeral=True, makepath=True)
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        for server in self._servers:
            server.close()
        await self.session.stop()

    def publish(self, cluster: Simulated, path: str) -> "asyncio.Future[Any]":
        """Write a record as it is now; the future ends when that is done."""
        return self.session.set_async(f"{cluster.settings.root}/{path}", cluster.record(path))

    async def settle(self) -> None:
        """Return when every cluster has a primary and standbys. Raises TimeoutError."""
        async with asyncio.timeout(SETTLE_DEADLINE_MS / 1000):
            while not all(cluster.settled for cluster in self.clusters):  # noqa: ASYNC110 - controllers settle it
                await asyncio.sleep(POLL_SECONDS)

    async def _beat(self) -> None:
        """Renew every record once in the cluster's interval, spread over it."""
        begun, beaten = clock.now(), [0] * len(self.clusters)
        while True:
            for number, cluster in enumerate(self.clusters):
                interval_ms, paths = cluster.settings.timing.renew_interval_ms, cluster.paths
                phase = number / len(self.clusters)
                due = int((clock.ms_between(begun, clock.now()) / interval_ms + phase) * len(paths))
                for turn in range(max(beaten[number], due - len(paths)), due):
                    cluster.write()
                    self.publish(cluster, paths[turn % len(paths)])
                beaten[number] = due
            await asyncio.sleep(TURN_SECONDS)


class Door(asyncio.Protocol):
    """Answers HTTP requests of one connection, one after the other."""

    def __init__(self, doors: dict[tuple[str, int], tuple[Simulated, str]]) -> None:
        self._doors, self._data = doors, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "it is TCP"
        self._transport = transport
        self._cluster, self._path = self._doors[transport.get_extra_info("sockname")[:2]]

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (request := self._next()) is not None:
            if self._cluster.hangs:
                continue
            loop = asyncio.get_running_loop()
            loop.call_later(SLOW_SECONDS if self._cluster.slow else 0, self._answer, *request)

    def _next(self) -> tuple[str, Answer] | None:
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return None
        lines = head.split(b"\r\n")
        lengths = [int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        if len(rest) < length:
            return None
        self._data = rest[length:]
        return lines[0].split()[1].decode().rpartition("/")[2], json.loads(rest[:length] or b"{}")

    def _answer(self, verb: str, body: Answer) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        text = json.dumps(self._cluster.call(self._path, verb, body)).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self._transport.write(head.encode() + text)


def break_some(nodes: Nodes, clusters: Iterable[Simulated]) -> None:
    """Let these hang, be slow, or write garbage, each with its primary down: their controllers try again and again."""
    for number, cluster in enumerate(clusters):
        if cluster.primary is not None:
            cluster.fail()
        cluster.hangs, cluster.slow, cluster.garbage = number % 3 == 0, number % 3 == 1, number % 3 == 2
        for path in cluster.paths:
            nodes.publish(cluster, path)


async def simulate(paths: Sequence[Path], broken: int) -> None:
    """Simulate the clusters of some settings files until SIGTERM; at SIGUSR1 the first `broken` of them break."""
    clusters = [Simulated(settings.load(path)) for path in paths]
    ending, loop = asyncio.Event(), asyncio.get_running_loop()
    async with Nodes(clusters) as nodes:
        loop.add_signal_handler(signal.SIGTERM, ending.set)
        loop.add_signal_handler(signal.SIGUSR1, break_some, nodes, clusters[:broken])
        await nodes.settle()
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        await ending.wait()


if __name__ == "__main__":
    asyncio.run(simulate([Path(one) for one in sys.argv[2:]], int(sys.argv[1])))
