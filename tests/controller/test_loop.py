"""Controllers against a real ZooKeeper and a simulated cluster: elections, plans, failures at every step."""

import asyncio
from collections.abc import Callable

import pytest

from cluster import clock
from cluster.errors import Conflict, OscarHaError, Refused, Unauthorized
from cluster.http import Client
from cluster.records import Database
from controller.advance import Outcome
from controller.decide import Hold
from controller.loop import Request
from controller.model import ORDER, Kind, Stage
from controller.plan import Step
from controller.world import After
from tests.controller.trial import a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers


async def test_the_first_epoch_is_opened_once_and_standbys_follow(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        assert trial.cluster.history.opened() == [("db-clinic", 1)]
        assert trial.cluster.writers() == ["db-clinic"]


async def test_a_dead_primary_is_replaced_with_no_human_action(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-toronto", 2)
        await until(trial.plan_ended, "the end")

        record = (await trial.history())[0]
        effects = trial.cluster.history.effects
        assert record["proof"] == "watchdog confirmed: the server process is dead and will be born fenced"
        assert [step["name"] for step in record["steps"]][:2] == ["detected", "sealed"]
        sealed = max(index for index, (_, what, epoch) in enumerate(effects) if (what, epoch) == ("seal", 1))
        assert sealed < effects.index(("db-toronto", "promote", 2))


async def test_a_site_that_seals_without_a_position_stops_no_failover(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """Montreal acknowledged nothing: what its archive has lost is no reason to leave the clinics without a primary."""
    async with a_trial(zookeeper, zookeeper_root) as trial:
        trial.cluster.replicators["montreal"].unsure = True
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)

        await trial.settled("db-toronto", 2)


async def test_a_vanished_primary_is_replaced_after_its_lease_ended(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        for one in trial.cluster.replicators.values():
            one.connected = False
        gone_at = clock.now()
        await trial.cluster.vanish(trial.cluster.nodes["db-clinic"])
        await trial.settled("db-toronto", 2)

        assert clock.ms_between(gone_at, clock.now()) >= trial.cluster.settings.timing.lease_margin_ms


async def test_a_switchover_by_http_moves_the_primary_and_back(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        for number, to in enumerate(("db-montreal", "db-clinic")):
            follower = trial.cluster.settings.controllers[number].url  # one of the two does not lead: it passes it on
            done = await trial.client.post(f"{follower}/v1/switchover", {"to": to}, deadline_ms=20_000)
            assert done["outcome"] == "done", done
            await trial.settled(to, number + 2)
            await until(trial.all_see_two_standbys, "two standbys")


async def test_a_dry_run_changes_nothing(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        before = list(trial.cluster.history.effects)
        url = trial.cluster.settings.controllers[0].url
        answer = await trial.client.post(f"{url}/v1/switchover", {"dry_run": True}, deadline_ms=5_000)

        assert answer["new"] == "db-toronto"
        assert trial.cluster.history.effects == before


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ({"to": "db-clinic"}, Refused, "primary already"),
        ({"to": "nowhere"}, Refused, "no node 'nowhere'"),
        ({"too": "db-toronto"}, OscarHaError, "unknown field too"),
        ({"to": 7}, OscarHaError, "to is 7"),
        ({"dry_run": "yes"}, OscarHaError, "dry_run is 'yes'"),
    ],
)
async def test_a_bad_request_is_refused_before_anything_is_touched(
    zookeeper: ZooKeeperServer, zookeeper_root: str, body: dict[str, object], error: type[OscarHaError], said: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial:
        before = list(trial.cluster.history.effects)
        url = trial.cluster.settings.controllers[0].url
        with pytest.raises(error, match=said):
            await trial.client.post(f"{url}/v1/switchover", body, deadline_ms=5_000)

        assert trial.cluster.history.effects == before


async def test_nothing_changes_without_the_token(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial, Client("wrong") as stranger:
        url = trial.cluster.settings.controllers[0].url
        with pytest.raises(Unauthorized):
            await stranger.post(f"{url}/v1/switchover", {}, deadline_ms=5_000)

        assert (await stranger.get(f"{url}/v1/cluster", deadline_ms=5_000))["ready"] in (True, False)


async def test_a_switchover_whose_fence_is_refused_leaves_the_old_primary_as_it_was(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """It went on as a failover, and closed a primary that was well."""
    async with a_trial(zookeeper, zookeeper_root) as trial:
        trial.cluster.nodes["db-clinic"].failing.add("fence")
        url = trial.cluster.settings.controllers[0].url
        done = await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)

        assert done["outcome"].startswith("rolled back: fenced")
        await trial.settled("db-clinic", 1)
        assert trial.cluster.writers() == ["db-clinic"]
        assert not [effect for effect in trial.cluster.history.effects if effect[1] == "seal"]


async def test_a_switchover_closes_nothing_before_its_candidate_has_applied_what_the_primary_has(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """On a slow disk a standby is as far behind as its last report is old, and clinics would wait for that."""
    async with a_trial(zookeeper, zookeeper_root) as trial:
        trial.cluster.nodes["db-toronto"].position = "0-1-90"
        url = trial.cluster.settings.controllers[0].url
        await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)

        done = [(who, what) for who, what, epoch in trial.cluster.history.effects if what in ("drain", "fence")]
        assert done[:2] == [("db-toronto", "drain"), ("db-clinic", "fence")]


@pytest.mark.parametrize("how", ["refused", "late"])
async def test_a_candidate_that_does_not_apply_leaves_the_primary_open(
    zookeeper: ZooKeeperServer, zookeeper_root: str, how: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        toronto = trial.cluster.nodes["db-toronto"]
        toronto.lags = how == "late"
        toronto.failing |= {"drain"} if how == "refused" else set()
        url = trial.cluster.settings.controllers[0].url
        done = await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)

        assert done["outcome"].startswith("rolled back: fenced")
        await trial.settled("db-clinic", 1)
        assert not [what for _, what, _ in trial.cluster.history.effects if what in ("fence", "seal")]


async def test_a_failed_switchover_leaves_the_old_primary_writable(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        trial.cluster.nodes["db-toronto"].failing.add("promote")
        url = trial.cluster.settings.controllers[0].url
        done = await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)

        assert done["outcome"].startswith("rolled back")
        await trial.settled("db-clinic", 2)
        assert trial.cluster.writers() == ["db-clinic"]


async def test_a_candidate_that_fails_is_followed_by_the_next(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        trial.cluster.nodes["db-toronto"].failing.add("promote")
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)

        await trial.settled("db-montreal", 2)


async def test_one_plan_at_a_time(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1) as trial:
        url = trial.cluster.settings.controllers[0].url
        calls = [
            trial.client.post(f"{url}/v1/switchover", {"to": to}, deadline_ms=20_000)
            for to in ("db-toronto", "db-montreal")
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert sum(isinstance(one, Conflict | Refused) for one in results) == 1, results
        assert len(trial.cluster.writers()) == 1


async def test_while_paused_nothing_happens_by_itself(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        url = trial.cluster.settings.controllers[0].url
        await trial.client.post(f"{url}/v1/pause", {"why": "a test"}, deadline_ms=5_000)
        await until(lambda: all(one.loop.world.mirror.view().paused for one in trial.controllers), "paused")
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await asyncio.sleep(1.0)  # nothing is to happen: there is no event to wait for
        assert trial.cluster.history.opened() == [("db-clinic", 1)]

        await trial.client.delete(f"{url}/v1/pause", deadline_ms=5_000)
        await trial.settled("db-toronto", 2)


async def test_what_fails_again_and_again_waits_for_an_operator(
    zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """The one that did not lead has counted too."""
    async with a_trial(zookeeper, zookeeper_root, automatic_max=1) as trial:
        nodes, leader = trial.cluster.nodes, trial.leader()
        assert leader is not None
        await nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-toronto", 2)
        await until(trial.plan_ended, "the plan ends")
        await until(lambda: all(one.loop.world.mirror.view().automatic == 1 for one in trial.controllers), "both count")
        await leader.kill()
        await until(lambda: trial.leader() is not None, "the other one leads")
        (heir,) = [one for one in trial.controllers if one.alive]

        await nodes["db-toronto"].see(Database.DOWN)
        await until(lambda: isinstance(heir.loop.decision, Hold) and "operator" in heir.loop.decision.why, "it waits")
        assert trial.cluster.writers() == []
        url = next(one.url for one in trial.cluster.settings.controllers if one.name == heir.name)
        answer = await trial.client.get(f"{url}/v1/readiness", deadline_ms=5_000)
        assert "too_many_failovers" in [reason["code"] for reason in answer["reasons"]], answer

        await trial.client.delete(f"{url}/v1/pause", deadline_ms=5_000)
        await trial.settled("db-montreal", 3)


async def test_an_operators_failover_is_not_counted(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root, controllers=1, automatic_max=1) as trial:
        url = trial.cluster.settings.controllers[0].url
        done = await trial.client.post(f"{url}/v1/failover", {"to": "db-toronto"}, deadline_ms=30_000)
        assert (done["outcome"], done["automatic"]) == ("done", False), done
        await trial.cluster.nodes["db-toronto"].see(Database.DOWN)
        await until(lambda: len(trial.cluster.writers()) == 1, "the cluster fails over by itself")
        await until(trial.plan_ended, "the plan ends")
        (last, *_) = await trial.history()
        assert (last["automatic"], last["from"]) == (True, "db-toronto"), last


async def test_the_next_controller_leads_when_the_leader_dies(zookeeper: ZooKeeperServer, zookeeper_root: str) -> None:
    async with a_trial(zookeeper, zookeeper_root) as trial:
        leader = trial.leader()
        assert leader is not None
        await leader.kill()
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)

        await trial.settled("db-toronto", 2)
        assert trial.cluster.writers() == ["db-toronto"]


@pytest.mark.parametrize("kind", [Kind.FAILOVER, Kind.SWITCHOVER])
@pytest.mark.parametrize("cut", ORDER[Kind.FAILOVER][:-1])
async def test_a_controller_killed_at_any_step_is_succeeded(
    zookeeper: ZooKeeperServer, zookeeper_root: str, cut: Stage, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader dies right after the effect of a step and before it could write so; the next one does it again.

    And with it all that a switchover has not written since its fence.
    """
    async with a_trial(zookeeper, zookeeper_root) as trial:
        first = trial.leader()
        assert first is not None
        reached, apply = asyncio.Event(), first.loop.world.apply

        async def die_after(step: Step, since_ms: Callable[[], float], after: After) -> Outcome:
            outcome = await apply(step, since_ms, after)
            if type(step).__name__.upper() == cut.name:
                reached.set()
                await asyncio.Event().wait()
            return outcome

        monkeypatch.setattr(first.loop.world, "apply", die_after)
        if kind is Kind.FAILOVER:
            await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        else:
            first.loop.submit(Request(kind=kind, to="db-toronto", why="a test"))
        await asyncio.wait_for(reached.wait(), 10)
        await first.kill()

        await trial.settled("db-toronto", 2)
        second = trial.leader()
        await until(trial.plan_ended, "the end")
        assert second is not first
        assert trial.cluster.writers() == ["db-toronto"]
        assert len([one for one in trial.cluster.history.opened() if one[1] == 2]) in (1, 2)
