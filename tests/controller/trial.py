"""Controllers in the test's own loop, a simulated cluster, and a client: a trial that begins with a primary and two standbys."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from cluster import clock
from cluster.http import Client
from cluster.records import Role
from cluster.rules import Hook
from cluster.settings import FailoverRules, Secrets
from controller.loop import Loop
from controller.serving import controller
from tests.controller.simulated import TOKEN, SimulatedCluster, simulated_settings
from tests.servers.zookeeper import ZooKeeperServer

WAIT_MS = 20_000
POLL_SECONDS = 0.02
SECRETS = Secrets(admin="", replication="", verify="", token=TOKEN)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = clock.after(clock.now(), WAIT_MS)
    while not condition():
        assert clock.seconds_left(deadline) > 0, f"not within {WAIT_MS} ms: {what}"
        await asyncio.sleep(POLL_SECONDS)


class Running:
    """One controller of the test."""

    def __init__(self, name: str, stack: AsyncExitStack, loop: Loop, task: "asyncio.Task[None]") -> None:
        self.name, self.loop = name, loop
        self._stack, self._task = stack, task
        self.alive = True

    @property
    def leads(self) -> bool:
        return self.alive and self.loop.world.leadership.valid()

    async def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.alive = False
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stack.aclose()


class Trial:
    """A simulated cluster with controllers and a client."""

    def __init__(self, cluster: SimulatedCluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.controllers: list[Running] = []

    async def start_controller(self, number: int) -> Running:
        own = self.cluster.settings.controllers[number]
        stack = AsyncExitStack()
        loop = await stack.enter_async_context(controller(self.cluster.settings, SECRETS, own))
        running = Running(own.name, stack, loop, asyncio.create_task(loop.run()))
        self.controllers.append(running)
        return running

    def leader(self) -> Running | None:
        return next((one for one in self.controllers if one.leads), None)

    def plan_ended(self) -> bool:
        """Whether somebody leads and no plan is running."""
        leader = self.leader()
        return leader is not None and leader.loop.world.mirror.version("plan") is None

    async def settled(self, primary: str, epoch: int) -> None:
        def well() -> bool:
            node = self.cluster.nodes[primary]
            return node.role is Role.PRIMARY and node.lease_epoch == epoch

        await until(well, f"{primary} in epoch {epoch}; {self.cluster.history.effects[-8:]}")

    def all_see_two_standbys(self) -> bool:
        views = [one.loop.world.mirror.view() for one in self.controllers]
        return all(sum(bool(n.report and n.report.role is Role.STANDBY) for n in view.nodes) == 2 for view in views)

    async def history(self) -> list[dict[str, Any]]:
        url = self.cluster.settings.controllers[0].url
        found: list[dict[str, Any]] = await self.client.get(f"{url}/v1/history", deadline_ms=5_000)
        return found

    async def rejoins(self) -> list[dict[str, Any]]:
        """Return what was done by itself, as a living controller tells it, newest first."""
        found: list[dict[str, Any]] = await self.client.get(f"{self._url()}/v1/rejoins", deadline_ms=5_000)
        return found

    async def rung(self, node: str) -> str:
        """Return the rung of a node and why, as a living controller tells it."""
        answer = await self.client.get(f"{self._url()}/v1/cluster", deadline_ms=5_000)
        (step,) = (one["rejoin"] for one in answer["nodes"] if one["node"] == node)
        return f"{step['rung']}: {step['why']}" if step else ""

    def _url(self) -> str:
        alive = {one.name for one in self.controllers if one.alive}
        return next(one.url for one in self.cluster.settings.controllers if one.name in alive)


@asynccontextmanager
async def a_trial(
    zookeeper: ZooKeeperServer, root: str, controllers: int = 2, automatic_max: int = 5, hooks: tuple[Hook, ...] = (),
    **settings_of: Any,
) -> AsyncIterator[Trial]:  # fmt: skip
    rules: dict[str, Any] = {"failover": FailoverRules(automatic_max=automatic_max), "hooks": hooks}
    settings = replace(simulated_settings(root, zookeeper), **rules | settings_of)
    async with Client(TOKEN) as client, SimulatedCluster(settings) as cluster:
        trial = Trial(cluster, client)
        try:
            for number in range(controllers):
                await trial.start_controller(number)
            await trial.settled("db-clinic", 1)
            cluster.write_up_to("0-1-100")
            standbys = [cluster.nodes[name] for name in ("db-toronto", "db-montreal")]
            await until(lambda: all(node.role is Role.STANDBY for node in standbys), "two standbys")
            await asyncio.gather(*(node.publish() for node in standbys))
            await until(trial.all_see_two_standbys, "all controllers see two standbys")
            yield trial
        finally:
            for one in trial.controllers:
                if one.alive:
                    await one.kill()
