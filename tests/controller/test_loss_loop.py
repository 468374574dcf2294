"""Primary and acknowledging site are lost together: controllers against a real ZooKeeper and a simulated cluster."""

import asyncio
from typing import Any

import pytest

from cluster.errors import BadInput, Conflict, OscarHaError, Refused
from cluster.records import Database
from controller.model import PlanRecord
from controller.seen import SeenRecord
from tests.controller.trial import Trial, a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
BEHIND = "0-1-95"
LAG_MS = 60_000.0
TOO_LITTLE: list[tuple[object, type[OscarHaError], str]] = [
    (True, BadInput, "must name how much"),
    ({"transactions": 4, "seconds": "unknown"}, Refused, "transactions unknown > 4"),
    ({"transactions": "unknown", "seconds": 1}, Refused, "> 1"),
    (None, Conflict, "toronto"),
]


def plan_of(trial: Trial) -> PlanRecord | None:
    leader = trial.leader()
    return None if leader is None else leader.loop.world.mirror.get(PlanRecord, "plan")


def waits(trial: Trial) -> bool:
    plan = plan_of(trial)
    return plan is not None and "toronto" in (plan.waiting or "")


def is_noted(trial: Trial) -> bool:
    """Whether it is written down that Montreal is behind Toronto."""
    leader = trial.leader()
    seen = leader.loop.world.mirror.get(SeenRecord, "seen") if leader is not None else None
    return seen is not None and [seen.sites[site].position for site in ("toronto", "montreal")] == ["0-1-100", BEHIND]


async def lose_primary_and_acker(trial: Trial) -> None:
    """Montreal lacks five transactions that Toronto had; then the primary dies, and the whole of Toronto."""
    cluster = trial.cluster
    behind = cluster.nodes["db-montreal"], cluster.replicators["montreal"]
    behind[0].position, behind[0].lag_ms, behind[1].durable = BEHIND, LAG_MS, BEHIND
    await asyncio.gather(*(part.publish() for part in (*cluster.replicators.values(), behind[0])))
    await until(lambda: is_noted(trial), "what everybody has is written down")
    await asyncio.gather(
        cluster.nodes["db-clinic"].see(Database.DOWN),
        *(cluster.vanish(part) for part in (cluster.nodes["db-toronto"], cluster.replicators["toronto"],
                                            cluster.replicators["clinic"])),
    )  # fmt: skip
    await until(lambda: waits(trial), "the failover holds and says for whom it waits")


async def test_a_loss_is_accepted_by_a_word_that_names_it_and_by_nothing_else(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """A controller that saw nothing of before tells what was lost as well: it was written down."""
    async with a_trial(zookeeper, zookeeper_root) as trial:
        await lose_primary_and_acker(trial)
        for one in list(trial.controllers):
            await one.kill()
        await trial.start_controller(0)
        await until(lambda: waits(trial), "the new controller waits as well")
        url = trial.cluster.settings.controllers[0].url

        async def failover(**body: Any) -> Any:
            return await trial.client.post(f"{url}/v1/failover", body, deadline_ms=30_000)

        answer = await failover(dry_run=True)
        assert (answer["works"], answer["joins"], answer["loss"]["at_least"]) == (False, True, 5), answer
        assert "last heard of at 20" in answer["loss"]["why"]
        before, plan = list(trial.cluster.history.effects), plan_of(trial)
        for accepts, error, said in TOO_LITTLE:
            with pytest.raises(error, match=said):
                await failover(allow_data_loss=accepts)
        assert [one for one in trial.cluster.history.effects[len(before) :] if one[1] != "seal"] == []
        assert plan is not None
        assert plan.accepts is None

        done = await failover(allow_data_loss=answer["allow_data_loss"], why="the insurer agreed")
        assert (done["outcome"], done["to"], done["automatic"]) == ("done", "db-montreal", False), done
        assert trial.cluster.writers() == ["db-montreal"]
        for name in ("last", "2", done["id"]):
            told = await trial.client.get(f"{url}/v1/history/{name}", deadline_ms=5_000)
            assert (told["id"], told["loss"]["at_least"]) == (done["id"], 5)
        assert any("the insurer agreed" in line for line in told["story"])
        metrics = trial.controllers[-1].loop.metrics.text().decode()
        assert "oscar_ha_failovers_with_loss_total" in metrics
        with pytest.raises(BadInput, match="no finished plan"):
            await trial.client.get(f"{url}/v1/history/nothing", deadline_ms=5_000)
