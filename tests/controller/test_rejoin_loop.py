"""The ladder at work: real controllers and ZooKeeper, simulated nodes. Whoever dies in between, one seeding comes of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.records import Database, Role
from tests.controller.simulated import SimulatedNode
from tests.controller.trial import Trial, a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers

OLD, NEW, OTHER = "db-clinic", "db-toronto", "db-montreal"
AHEAD, HEAD = "0-1-105", "0-1-100"


@asynccontextmanager
async def an_old_primary_ahead(zookeeper: ZooKeeperServer, root: str) -> AsyncIterator[tuple[Trial, SimulatedNode]]:
    """db-clinic froze with five transactions that nobody had; db-toronto is the primary; then db-clinic is back."""
    async with a_trial(zookeeper, root) as trial:
        old = trial.cluster.nodes[OLD]
        await old.see(Database.DOWN)
        await trial.settled(NEW, 2)
        await until(trial.plan_ended, "the end of the failover")
        await old.come_back(AHEAD)
        yield trial, old


def orders(trial: Trial) -> int:
    return sum(1 for who, what, _ in trial.cluster.history.effects if (who, what) == (OLD, "reinitialize"))


async def rung(trial: Trial, wanted: str) -> None:
    found = ""
    for _ in range(400):
        found = await trial.rung(OLD)
        if wanted in found:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {wanted!r}, it is {found!r}")


async def noted(trial: Trial, outcome: str) -> dict[str, object]:
    """Wait until the newest event of the old primary says so."""
    events: list[dict[str, object]] = []
    for _ in range(400):
        events = [one for one in await trial.rejoins() if one["node"] == OLD and one["attempt"]]
        if events and outcome in str(events[0]["outcome"]):
            return events[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"never {outcome!r}: {events}")


async def test_a_node_that_is_ahead_becomes_a_standby_by_itself_and_not_before_its_rescue(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        await rung(trial, "rescue: it has what the cluster has not")
        assert orders(trial) == 0
        await old.is_rescued()
        await until(lambda: orders(trial) == 1, "it is built anew")
        await rung(trial, f"hold: it is being seeded from {OTHER}")
        await old.end_seeding(HEAD)
        await until(lambda: old.role is Role.STANDBY, "it follows")

        event = await noted(trial, "done")
        assert (event["attempt"], event["donor"], event["epoch"]) == (1, OTHER, 2)
        assert orders(trial) == 1


async def test_a_seeding_that_failed_is_not_begun_again_at_once(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        await old.is_rescued()
        await until(lambda: old.seeding is not None, "it begins")
        await old.end_seeding(AHEAD, why="no room")
        await noted(trial, "failed: no room")
        await rung(trial, "the next one comes in")

        assert orders(trial) == 1


async def test_what_the_watchdog_refuses_is_noted_with_its_reason(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        old.failing.add("reinitialize")
        await old.is_rescued()

        assert "told to fail" in str((await noted(trial, "failed"))["outcome"])


@pytest.mark.parametrize("begins", [True, False], ids=["the order arrives", "the order is lost"])
async def test_a_controller_that_dies_after_it_ordered_leaves_one_seeding(
    zookeeper: ZooKeeperServer, zookeeper_root: str, begins: bool
) -> None:
    """It is written before it is ordered: the next one waits for the end of it, and begins none of its own meanwhile."""
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        first = trial.leader()
        assert first is not None
        old.seeds.clear()
        await old.is_rescued()
        await until(lambda: orders(trial) == 1, "it is ordered, and not answered")
        await first.kill()
        await until(lambda: trial.leader() not in (None, first), "another leads")
        if not begins:
            await rung(trial, "is not known yet")
            assert orders(trial) == 1
            return
        old.seeds.set()
        await until(lambda: old.seeding is not None, "it begins")
        await old.publish()
        await rung(trial, "it is being seeded")
        await old.end_seeding(HEAD)
        await noted(trial, "done")

        assert orders(trial) == 1


async def test_a_failover_does_not_wait_for_a_seeding_that_nobody_answers(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        old.seeds.clear()
        await old.is_rescued()
        await until(lambda: orders(trial) == 1, "it is ordered, and not answered")
        await trial.cluster.nodes[NEW].see(Database.DOWN)

        await trial.settled(OTHER, 3)
        old.seeds.set()


async def test_a_crashed_standby_that_nobody_starts_is_started_and_follows(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        standby = trial.cluster.nodes[OTHER]
        standby.crashed = True
        await standby.see(Database.DOWN)
        await until(lambda: standby.restart is not None, "it is started")
        await standby.end_restart()
        await until(lambda: standby.role is Role.STANDBY, "it follows")
        event = (await trial.rejoins())[0]

        assert (event["node"], event["rung"], event["attempt"]) == (OTHER, "restart", 1)


async def test_resume_lets_attempts_count_anew(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        await old.is_rescued()
        await until(lambda: old.seeding is not None, "it begins")
        await old.end_seeding(AHEAD, why="no room")
        await noted(trial, "failed: no room")
        await trial.client.delete(f"{trial.cluster.settings.controllers[0].url}/v1/pause", deadline_ms=5_000)

        await until(lambda: orders(trial) == 2, "it is tried again at once")
