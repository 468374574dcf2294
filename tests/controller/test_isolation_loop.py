"""What leading controllers record, and do, where a primary holds while it is cut off (0090): real controllers and ZooKeeper."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.records import Database, Durability, DurabilityPolicy, EpochRecord, Isolation
from cluster.settings import DurabilityRules, FailoverRules
from controller.model import DegradedRecord
from tests.controller.trial import Trial, a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
HOLDS: dict[str, Any] = {
    "failover": FailoverRules(on_isolation=Isolation.HOLD),
    "durability": DurabilityRules(policy=DurabilityPolicy.AVAILABLE),
}


def record_of(trial: Trial) -> EpochRecord | None:
    leader = trial.leader()
    return None if leader is None else leader.loop.world.mirror.get(EpochRecord, "epoch")


def is_recorded(trial: Trial, isolation: Isolation) -> bool:
    record = record_of(trial)
    return record is not None and record.on_isolation is isolation


async def restart_with(trial: Trial, on_isolation: Isolation) -> None:
    """Change the settings of all controllers, as a person does: one file, and a restart of each."""
    for one in [one for one in trial.controllers if one.alive]:
        await one.kill()
    cluster = trial.cluster
    cluster.settings = replace(cluster.settings, failover=FailoverRules(on_isolation=on_isolation))  # type: ignore[arg-type]  # one of the two
    await trial.start_controller(0)


async def test_a_silent_primary_that_holds_is_recorded_and_nobody_is_promoted_until_its_watchdog_speaks(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root, **HOLDS) as trial:
        cluster, node = trial.cluster, trial.cluster.nodes["db-clinic"]
        node.vouches = True
        assert is_recorded(trial, Isolation.HOLD), record_of(trial)
        for one in cluster.replicators.values():
            one.connected = False
            await one.publish()
        await cluster.vanish(node)

        def degraded() -> bool:
            leader = trial.leader()
            view = leader.loop.world.mirror.view() if leader is not None else None
            return view is not None and view.durability is not None and view.durability.mode is Durability.DEGRADED

        await until(degraded, "it is recorded that it may be answering alone")
        leader = trial.leader()
        assert leader is not None
        known = leader.loop.world.mirror.get(DegradedRecord, "degraded")
        assert known is not None
        assert "holds while it is cut off" in known.intervals[-1].why
        assert "no proof of fence" in str(leader.loop.decision)
        assert trial.plan_ended()
        metrics = leader.loop.metrics.text().decode()
        assert 'reason="primary_cut_off"} 0.0' in metrics
        assert cluster.writers() == ["db-clinic"], "as far as anybody knows"


async def test_a_dead_server_of_a_primary_that_holds_is_replaced_at_once_if_its_watchdog_vouches(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root, **HOLDS) as trial:
        trial.cluster.nodes["db-clinic"].vouches = True
        await trial.cluster.nodes["db-clinic"].publish()
        trial.cluster.history.effects.clear()
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-toronto", 2)
        verbs = [verb for _, verb, _ in trial.cluster.history.effects]
        assert verbs.index("fence") < verbs.index("seal"), "who is cut off meanwhile goes on alone"
        assert verbs.count("fence") == 1


async def test_the_settings_change_the_record_and_promote_counts_once_the_primary_has_read_it(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root, **HOLDS | {"failover": FailoverRules()}) as trial:
        node = trial.cluster.nodes["db-clinic"]
        assert is_recorded(trial, Isolation.PROMOTE)
        await restart_with(trial, Isolation.HOLD)
        await until(lambda: is_recorded(trial, Isolation.HOLD), "hold")
        await until(lambda: node.revision == 2, "the primary reads it")
        node.reads_revisions = False
        await restart_with(trial, Isolation.PROMOTE)
        await until(lambda: is_recorded(trial, Isolation.HOLD_ENDS), "hold ends")
        await node.publish()
        assert is_recorded(trial, Isolation.HOLD_ENDS), "it has not read that"
        node.reads_revisions = True
        await until(lambda: is_recorded(trial, Isolation.PROMOTE), "promote")
        record = record_of(trial)

        assert record is not None
        assert (record.epoch, record.primary, record.revision) == (1, "db-clinic", 4)
