"""A cluster simulated at the interface of watchdogs and replicators: real HTTP, real ZooKeeper, no database.

Each part does what the real one promises, with a position that is a number. Faults are methods.
"""

import asyncio
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from cluster import http
from cluster.coordination import Coordination
from cluster.errors import DeadlinePassed, FencedOut, Refused
from cluster.records import (
    Database,
    EpochRecord,
    Health,
    NodeReport,
    ReplicatorReport,
    RescueReport,
    RescueState,
    RestartReport,
    Role,
    SeedPhase,
    SeedReport,
)
from cluster.settings import Settings, check
from tests.controller.builders import SERIAL_MAX
from tests.servers.process import free_port
from tests.servers.zookeeper import ZooKeeperServer

TOKEN = "simulated"
SITES = ("clinic", "toronto", "montreal")
TIMING = {"session_ttl_ms": 3000, "lease_margin_ms": 400, "renew_interval_ms": 300, "call_deadline_ms": 1000,
          "watchdog_grace_ms": 1500, "fence_deadline_ms": 1000, "step_deadline_ms": 2000}  # fmt: skip
LAG_SECONDS = 0.1
RENEW_SECONDS = 0.3


def simulated_settings(root: str, server: ZooKeeperServer, controllers: int = 2) -> Settings:
    """Return settings whose every address is free."""
    nothing = Path("/nonexistent")
    return check(
        {
            "name": root.rsplit("/", 1)[1],
            "zookeeper": [server.address],
            "initial_primary": "db-clinic",
            "sites": SITES,
            "token_file": nothing,
            "accounts": {f"{one}_password_file": nothing for one in ("admin", "replication", "verify")},
            "timing": TIMING,
            "rejoin": {"restart_after_seconds": 1},
            "nodes": [
                {"name": f"db-{site}", "site": site, "server_id": number, "port": free_port(),
                 "watchdog_port": free_port(), "pid_file": nothing, "data_directory": nothing / site / "data",
                 "option_file": nothing, "socket": nothing, "start_command": ["false"]}
                for number, site in enumerate(SITES, 1)
            ],
            "replicators": [
                {"site": site, "server_id": 100 + number, "port": free_port(), "http_port": free_port(), "archive": nothing}
                for number, site in enumerate(SITES, 1)
            ],
            "controllers": [
                {"name": f"controller-{number}", "site": SITES[number], "port": free_port()} for number in range(controllers)
            ],
        }
    )  # fmt: skip


@dataclass
class History:
    """Every effect, in order: what a test asserts on."""

    effects: list[tuple[str, str, int]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, who: str, what: str, epoch: int) -> None:
        self.effects.append((who, what, epoch))
        self.changed.set()

    def opened(self) -> list[tuple[str, int]]:
        return [(who, epoch) for who, what, epoch in self.effects if what == "open"]


class Part:
    """A process with an HTTP interface and an ephemeral record."""

    def __init__(self, cluster: Settings, history: History, host: str, port: int, path: str) -> None:
        self.settings, self.history, self.path = cluster, history, path
        self.coordination = Coordination(cluster.zookeeper, cluster.root, cluster.timing)
        self._address = (host, port)
        self._renewal: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self.failing: set[str] = set()
        """Verbs that are refused until taken out."""

    def routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    def report(self) -> object:
        raise NotImplementedError

    async def start(self) -> None:
        await self.coordination.start(deadline_ms=10_000)
        app = http.application(TOKEN)
        app.add_routes([*self.routes(), web.get("/health", self._health)])
        self._runner = await http.serve(app, *self._address, what=self.path)
        await self.publish()
        self._renewal = asyncio.create_task(self._renew())

    async def stop(self) -> None:
        """Vanish: no HTTP, no session."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        await self.coordination.stop()

    async def fall_silent(self) -> None:
        """Close the HTTP interface; the record stays."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def publish(self) -> None:
        await self.coordination.publish(self.path, self.report())

    async def deafen(self) -> None:
        """Answer nobody any more, and report as ever: packets go out, and none come in."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            found = await self.coordination.read(EpochRecord, "epoch")
            if found is not None:
                self.see_epoch(found[0])
            await self.publish()

    def see_epoch(self, record: EpochRecord) -> None:
        """A real one watches the record."""

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response(asdict(self.report()))  # type: ignore[call-overload]

    def refuse_if_failing(self, verb: str) -> None:
        if verb in self.failing:
            raise Refused(f"{self.path} is told to fail at {verb}")


class SimulatedNode(Part):
    """A watchdog with its database."""

    def __init__(self, cluster: Settings, history: History, name: str) -> None:
        self.node = cluster.node(name)
        super().__init__(cluster, history, self.node.host, self.node.watchdog_port, f"nodes/{name}")
        self.role, self.database, self.position = Role.FENCED, Database.UP, ""
        self.epoch, self.sealed = 0, 0
        self.lease_epoch: int | None = None
        self.rescue: RescueReport | None = None
        self.seeding: SeedReport | None = None
        self.restart: RestartReport | None = None
        self.crashed, self.health = False, Health()
        self.lag_ms, self.lags = 0.0, False
        """`lags`: it applies nothing in time, whatever it reports."""
        self.reads_revisions, self.revision, self.vouches = True, 0, False
        self.seeds = asyncio.Event()
        """Not set: an order to seed is answered only later."""
        self.seeds.set()

    def report(self) -> NodeReport:
        return NodeReport(
            node=self.node.name, site=self.node.site, server_id=self.node.server_id, role=self.role,
            database=self.database, epoch=self.epoch, sealed_epoch=self.sealed, read_only=self.role is not Role.PRIMARY,
            position=self.position, lag_ms=self.lag_ms, lag_age_ms=0.0, lease_epoch=self.lease_epoch, resumable=False, generation="1",
            server_version="10.11.19-MariaDB", replicating=self.role is Role.STANDBY, why="simulated",
            url=self.node.watchdog_url, position_age_ms=0.0, rescue=self.rescue, seeding=self.seeding, serial=SERIAL_MAX,
            crashed=self.crashed, restart=self.restart, health=self.health, revision=self.revision,
            vouches=self.epoch if self.vouches else None,
        )  # fmt: skip

    def see_epoch(self, record: EpochRecord) -> None:
        self.epoch = max(self.epoch, record.epoch)
        self.revision = record.revision if self.reads_revisions else self.revision
        if record.primary != self.node.name and self.role is Role.PRIMARY:
            self.role, self.lease_epoch = Role.FENCED, None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(f"/v1/{verb}", self.command)
            for verb in ("fence", "follow", "drain", "promote", "open", "reinitialize", "restart")
        ]

    async def command(self, request: web.Request) -> web.Response:
        verb, body = request.path.rsplit("/", 1)[1], await http.body_of(request)
        self.refuse_if_failing(verb)
        epoch = int(body["epoch"])
        if epoch < self.epoch:
            raise FencedOut(f"epoch {epoch} is older than {self.epoch}")
        self.history.note(self.node.name, verb, epoch)
        answer = getattr(self, f"_{verb}")(epoch, body)
        answer = await answer if asyncio.iscoroutine(answer) else answer
        await self.publish()
        return web.json_response(answer)

    def _fence(self, epoch: int, _: dict[str, object]) -> dict[str, object]:
        self.sealed, self.epoch = max(self.sealed, epoch), max(self.epoch, epoch)
        self.role, self.lease_epoch = Role.FENCED, None
        dead = self.database is Database.DOWN
        return {
            "fenced": True,
            "position": None if dead else self.position,
            "how": "process dead" if dead else "read_only",
            "vouches": epoch if self.vouches else None,
        }

    def _follow(self, epoch: int, _: dict[str, object]) -> dict[str, object]:
        self.role, self.epoch = Role.STANDBY, max(self.epoch, epoch)
        return {"role": self.role}

    async def _drain(self, _: int, body: dict[str, object]) -> dict[str, object]:
        if self.lags:
            await asyncio.sleep(LAG_SECONDS)
            raise DeadlinePassed(f"{body['position']} is not applied")
        self.position = str(body["position"])
        return {"applied": self.position}

    def _promote(self, epoch: int, _: dict[str, object]) -> dict[str, object]:
        if self.role is Role.PRIMARY:
            raise Refused(f"it is the primary of epoch {self.lease_epoch}")
        self.role = Role.FENCED
        return {"server_id": self.node.server_id, "file": f"binlog.{epoch:06d}", "position": self.position}

    async def _open(self, epoch: int, _: dict[str, object]) -> dict[str, object]:
        found = await self.coordination.read(EpochRecord, "epoch")
        if found is None or (found[0].epoch, found[0].primary) != (epoch, self.node.name):
            raise FencedOut(f"{self.node.name} is not the primary of epoch {epoch}")
        self.role, self.epoch, self.lease_epoch = Role.PRIMARY, epoch, epoch
        return {"role": self.role}

    async def _reinitialize(self, _: int, body: dict[str, object]) -> dict[str, object]:
        await self.seeds.wait()
        self.role = Role.JOINING
        self.seeding = SeedReport(id=str(body["id"]), donor=str(body["donor"]), phase=SeedPhase.COPYING, began="")
        return asdict(self.seeding)

    def _restart(self, _: int, body: dict[str, object]) -> dict[str, object]:
        self.restart = RestartReport(id=str(body["id"]), runs=True)
        return asdict(self.restart)

    async def end_restart(self, why: str = "") -> None:
        """The server is up, or with `why` it is not."""
        assert self.restart is not None, "one runs"
        self.restart = replace(self.restart, runs=False, why=why)
        self.crashed, self.database = bool(why), Database.DOWN if why else Database.UP
        await self.publish()

    async def end_seeding(self, position: str, why: str = "") -> None:
        """The copy is in place, or with `why` it failed and everything is as it was."""
        assert self.seeding is not None, "one runs"
        self.seeding = replace(self.seeding, phase=SeedPhase.FAILED if why else SeedPhase.DONE, why=why)
        self.role, self.position = Role.FENCED, position
        await self.publish()

    async def come_back(self, position: str) -> None:
        """The server is up again, and has what only it has."""
        self.database, self.role, self.position = Database.UP, Role.FENCED, position
        await self.publish()

    async def is_rescued(self) -> None:
        """All that only it has is on disk elsewhere."""
        self.rescue = RescueReport(id="2-r", state=RescueState.COMPLETE, position=self.position, transactions=5, rows=5)
        await self.publish()

    async def see(self, database: Database) -> None:
        """The database changed under the watchdog."""
        self.database = database
        if database is Database.DOWN:
            self.role, self.lease_epoch = Role.FENCED, None
        await self.publish()


class SimulatedReplicator(Part):
    """A replicator whose archive is a position."""

    def __init__(self, cluster: Settings, history: History, site: str) -> None:
        self.own = cluster.replicator(site)
        super().__init__(cluster, history, self.own.host, self.own.http_port, f"replicators/{site}")
        self.durable, self.sealed, self.connected = "", 0, True
        self.unsure = False
        """Its archive is behind what it once was: it seals, and tells no position (decision 0059)."""

    def report(self) -> ReplicatorReport:
        return ReplicatorReport(
            site=self.own.site, epoch=1, sealed_epoch=self.sealed, connected=self.connected, acknowledging=True,
            received=self.durable, durable=self.durable, acknowledged=self.durable, orphans=0, server_version=None,
            why="simulated", host=self.own.host, port=self.own.port, url=self.own.url,
        )  # fmt: skip

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/seal", self.seal), web.post("/v1/level", self.level)]

    async def seal(self, request: web.Request) -> web.Response:
        body = await http.body_of(request)
        self.refuse_if_failing("seal")
        self.sealed = max(self.sealed, int(body["epoch"]))
        self.durable = body["until"] or self.durable
        self.history.note(self.own.site, "seal", int(body["epoch"]))
        return web.json_response({"sealed": self.sealed, "durable": None if self.unsure else self.durable})

    async def level(self, request: web.Request) -> web.Response:
        body = await http.body_of(request)
        self.refuse_if_failing("level")
        self.durable = body["until"]
        self.history.note(self.own.site, "level", int(body["epoch"]))
        return web.json_response({"durable": self.durable})


class SimulatedCluster:
    """Three nodes and three replicators. Use as an async context manager."""

    def __init__(self, cluster: Settings) -> None:
        self.settings = cluster
        self.history = History()
        self.nodes = {f"db-{site}": SimulatedNode(cluster, self.history, f"db-{site}") for site in SITES}
        self.replicators = {site: SimulatedReplicator(cluster, self.history, site) for site in SITES}
        self.gone: set[Part] = set()

    @property
    def parts(self) -> list[Part]:
        return [*self.nodes.values(), *self.replicators.values()]

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(part.start() for part in self.parts))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(part.stop() for part in self.parts if part not in self.gone))

    async def vanish(self, part: Part) -> None:
        self.gone.add(part)
        await part.stop()

    def write_up_to(self, position: str) -> None:
        """All have it."""
        for node in self.nodes.values():
            node.position = position
        for one in self.replicators.values():
            one.durable = position

    def writers(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.role is Role.PRIMARY]
