"""Controllers killed at every effect of a rejoin: before it is noted, ordered, its end noted, and the node told to follow.

Rescue has no step of a controller: the watchdog beside the node does it by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.records import Database, Role
from tests.controller.simulated import SimulatedNode
from tests.controller.test_rejoin_loop import HEAD, OLD, OTHER, an_old_primary_ahead, orders, rung
from tests.controller.trial import Running, Trial, a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
NOTE, ORDER, NOTE_END, FOLLOW = range(4)
"""What a leader does on either rung that replaces or starts a server, in this order."""
Call = Callable[..., Awaitable[Any]]


class Mortal:
    """Has the leader stop in the moment before an effect on a rejoining node; whoever waits for that can kill it."""

    def __init__(self, running: Running, node: str, cut: int) -> None:
        self.running = running
        self._node = node
        self.reached = asyncio.Event()
        self._left = cut
        world = running.loop.world
        for name in ("_note_rejoin", "_watchdog"):
            setattr(world, name, self._counted(getattr(world, name)))

    def _counted(self, call: Call) -> Call:
        async def counted(node: str, *args: Any) -> Any:
            if node != self._node:
                return await call(node, *args)
            if self._left == 0:
                self.reached.set()
                await asyncio.Event().wait()
            self._left -= 1
            return await call(node, *args)

        return counted


async def killed(trial: Trial, mortal: Mortal) -> None:
    await asyncio.wait_for(mortal.reached.wait(), 15)
    await mortal.running.kill()
    await until(lambda: trial.leader() not in (None, mortal.running), "another leads")


def mortal(trial: Trial, node: str, cut: int) -> Mortal:
    leader = trial.leader()
    assert leader is not None
    return Mortal(leader, node, cut)


async def seeded(old: SimulatedNode) -> None:
    await until(lambda: old.seeding is not None, "it is built anew")
    await old.end_seeding(HEAD)


@pytest.mark.parametrize("cut", [NOTE, ORDER, NOTE_END, FOLLOW], ids=["note", "order", "end", "follow"])
async def test_a_controller_killed_at_any_step_of_a_reseed_leaves_one_seeding(
    zookeeper: ZooKeeperServer, zookeeper_root: str, cut: int
) -> None:
    async with an_old_primary_ahead(zookeeper, zookeeper_root) as (trial, old):
        dying = mortal(trial, OLD, cut)
        await old.is_rescued()
        if cut > ORDER:
            await seeded(old)
        await killed(trial, dying)
        if cut == ORDER:  # noted, and perhaps ordered: nobody begins a second one before that is known
            await rung(trial, "is not known yet")
            assert orders(trial) == 0
            return
        if cut == NOTE:
            await seeded(old)
        await until(lambda: old.role is Role.STANDBY, "it follows")

        assert orders(trial) == 1


@pytest.mark.parametrize("cut", [NOTE, ORDER, NOTE_END, FOLLOW], ids=["note", "order", "end", "follow"])
async def test_a_controller_killed_at_any_step_of_a_restart_is_succeeded(
    zookeeper: ZooKeeperServer, zookeeper_root: str, cut: int
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        dying, standby = mortal(trial, OTHER, cut), trial.cluster.nodes[OTHER]
        standby.crashed = True
        await standby.see(Database.DOWN)
        if cut > ORDER:
            await until(lambda: standby.restart is not None, "it is started")
            await standby.end_restart()
        await killed(trial, dying)
        if cut == NOTE:
            await until(lambda: standby.restart is not None, "it is started by the next one")
            await standby.end_restart()
        if cut == ORDER:  # whoever starts it, one that was noted does not stand in the way
            await standby.see(Database.UP)
            standby.crashed = False
            await standby.publish()
        await until(lambda: standby.role is Role.STANDBY, "it follows")

        starts = sum(1 for who, what, _ in trial.cluster.history.effects if (who, what) == (OTHER, "restart"))
        assert starts <= 1
