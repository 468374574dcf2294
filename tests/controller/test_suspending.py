"""A pause and a node's maintenance: what does not happen meanwhile, what still does, and how they end."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import BadInput, Conflict, Refused
from cluster.records import Condition, Database, Health, Role, Suspension
from controller.ackers import acker_repair
from controller.choose import rank
from controller.decide import Mend, Start, decide, warnings
from controller.model import NodeFacts, View
from controller.readiness import readiness, sentences
from controller.rejoin import Rung
from controller.rejoining import rungs
from controller.suspending import requested, require_maintainable
from tests.controller.builders import CLINIC, MONTREAL, SINCE, TORONTO, a_node, a_plan, a_view, an_epoch
from tests.controller.trial import a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

WORK = Suspension(why="new disks", since=SINCE, who="anna@host", until="2026-01-01T02:00:00Z", left_seconds=7200.0)


def worked_on(site: str, **changes: Any) -> NodeFacts:
    return replace(a_node(site, **changes), maintenance=WORK)


def test_a_node_in_maintenance_is_no_candidate_and_the_reason_names_the_command() -> None:
    ranking = rank(a_view(toronto=worked_on("toronto")), a_plan())

    assert ranking[0].node == MONTREAL
    (toronto,) = [one for one in ranking if one.node == TORONTO]
    assert f"oscar-ha maintenance {TORONTO} off" in toronto.against[0]


@pytest.mark.parametrize(
    "node",
    [
        worked_on("montreal", absent_ms=60_000.0),
        worked_on("montreal", role=Role.FENCED),
        worked_on("montreal", database=Database.DOWN),
        worked_on("montreal", lag_ms=9e6, replicating=False),
        worked_on("montreal", health=Health(condition=Condition.FAILED, reasons=("its disk is full",))),
    ],
    ids=("absent", "fenced", "down", "behind", "failed"),
)
def test_what_is_wrong_with_a_node_in_maintenance_is_no_news_and_nothing_is_done_to_it(node: NodeFacts) -> None:
    view = a_view(montreal=node)
    decision = decide(view, SINCE)

    assert warnings(view) == ()
    assert readiness(view) == ()
    assert isinstance(decision, Mend)
    assert decision.repairs == ()
    assert acker_repair(view, an_epoch(), SINCE) is None
    assert rungs(view, plan_runs=False)[MONTREAL].rung is Rung.HOLD


def test_a_failed_primary_is_not_replaced_by_a_node_in_maintenance() -> None:
    sick = a_node("clinic", health=Health(condition=Condition.FAILED, reasons=("its disk hangs",)))
    both = a_view(clinic=sick, toronto=worked_on("toronto"), montreal=worked_on("montreal"))

    assert isinstance(decide(a_view(clinic=sick, toronto=worked_on("toronto")), SINCE), Start)
    assert isinstance(decide(both, SINCE), Mend)
    assert any("is in maintenance" in reason for reason in sentences(readiness(both)))


REFUSED: dict[str, tuple[View, str, str]] = {
    "the primary": (a_view(), CLINIC, f"oscar-ha switchover --to {TORONTO}, then oscar-ha maintenance {CLINIC} on"),
    "the only current standby": (a_view(montreal=a_node("montreal", absent_ms=1.0)), TORONTO, "--force"),
    "the only other one is worked on too": (a_view(montreal=worked_on("montreal")), TORONTO, "--force"),
}


@pytest.mark.parametrize(("view", "node", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_maintenance_is_refused_with_what_to_do_first(view: View, node: str, hint: str) -> None:
    with pytest.raises(Refused) as refusal:
        require_maintainable(view, None, node, force=False)

    assert hint in refusal.value.hint


def test_maintenance_is_allowed_otherwise() -> None:
    require_maintainable(a_view(), None, TORONTO, force=False)
    require_maintainable(a_view(toronto=worked_on("toronto")), None, TORONTO, force=False)
    require_maintainable(a_view(montreal=a_node("montreal", absent_ms=1.0)), None, TORONTO, force=True)
    with pytest.raises(Conflict):
        require_maintainable(a_view(), a_plan(candidate=TORONTO), TORONTO, force=True)
    with pytest.raises(BadInput):
        require_maintainable(a_view(), None, "nobody", force=False)


def test_readiness_says_who_paused_why_and_until_when() -> None:
    (reason,) = sentences(readiness(a_view(paused=True, pause=WORK)))

    assert all(text in reason for text in ("anna@host", "new disks", "2026-01-01T02:00:00Z"))


@pytest.mark.parametrize("seconds", [0, -1, "2h", 1.5, True, 10**9])
def test_a_time_that_is_none_is_refused(seconds: object) -> None:
    with pytest.raises(BadInput, match="for_seconds"):
        requested({"for_seconds": seconds}, why="", peer=None)


@pytest.mark.servers
async def test_a_pause_and_a_maintenance_end_by_themselves(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    """Also under another leader: how long is left is in the record."""
    async with a_trial(zookeeper, zookeeper_root) as trial:
        url = trial.cluster.settings.controllers[1].url
        body = {"for_seconds": 3, "why": "a test", "who": "anna"}
        await trial.client.post(f"{url}/v1/pause", body, deadline_ms=5_000)
        await trial.client.post(f"{url}/v1/nodes/db-toronto/maintenance", body, deadline_ms=5_000)
        told = await trial.client.get(f"{url}/v1/cluster", deadline_ms=5_000)
        await until(lambda: all(one.loop.world.mirror.view().paused for one in trial.controllers), "paused")
        leader = trial.leader()
        assert leader is not None
        await leader.kill()
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)

        assert told["pause"]["who"] == "anna"
        await trial.settled("db-toronto", 2)  # it is the first in the order of sites, once both are over


@pytest.mark.servers
async def test_a_failover_takes_who_is_not_in_maintenance(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial:
        url = trial.cluster.settings.controllers[0].url
        body = {"why": "new disks"}
        await trial.client.post(f"{url}/v1/nodes/db-toronto/maintenance", body, deadline_ms=5_000)
        with pytest.raises(Refused):
            await trial.client.post(f"{url}/v1/nodes/db-montreal/maintenance", body, deadline_ms=5_000)
        with pytest.raises(Refused):
            await trial.client.post(f"{url}/v1/nodes/db-clinic/maintenance", body, deadline_ms=5_000)
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-montreal", 2)
        await until(trial.plan_ended, "the plan ends")
        await trial.client.delete(f"{url}/v1/nodes/db-toronto/maintenance", deadline_ms=5_000)
        await asyncio.sleep(0)
        answer = await trial.client.get(f"{url}/v1/cluster", deadline_ms=5_000)
        assert next(one for one in answer["nodes"] if one["node"] == "db-toronto")["role"] == "standby"


@pytest.mark.servers
async def test_a_failed_primary_that_answers_is_fenced_and_replaced(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """The plan is the same as for one that is gone; its watchdog is the proof."""
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial:
        clinic = trial.cluster.nodes["db-clinic"]
        clinic.health = Health(condition=Condition.FAILED, reasons=("its disk is full",))
        await clinic.publish()
        await trial.settled("db-toronto", 2)
        await until(trial.plan_ended, "the plan ends")

        (last, *_) = await trial.history()
        assert "its disk is full" in last["why"]
        assert ("db-clinic", "fence", 1) in trial.cluster.history.effects


@pytest.mark.servers
async def test_a_primary_that_hears_nobody_and_reports_is_not_replaced_but_not_ready(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial:
        await trial.cluster.nodes["db-clinic"].deafen()
        (one,) = trial.controllers
        await until(
            lambda: any("does not answer" in reason.why for reason in readiness(one.loop.world.mirror.view())), "told"
        )

        assert trial.cluster.history.opened() == [("db-clinic", 1)]
