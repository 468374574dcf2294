"""Hooks: what is due, what a run may do, and that none of them holds a failover up."""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import clock
from cluster.clock import NANOS_PER_MS, Nanos
from cluster.records import Database
from cluster.rules import Hook, HookEvent, Must, hook_contradictions
from controller import hook_process
from controller.hooks import (
    DONE,
    Edge,
    due_before,
    ended,
    environment,
    expected_after,
    facts_of,
    look,
    refusal,
)
from controller.model import HookRun, Kind, Stage, StepDone
from tests.controller.builders import TORONTO, a_plan
from tests.controller.trial import a_trial, until
from tests.servers.zookeeper import ZooKeeperServer

SHELL = "/bin/sh"
FIRST_LINE = (StepDone(name="requested", ms=0.0, took_ms=0.0, detail=""),)
EVENT = HookEvent.AFTER_FAILOVER
RUN_MS_MAX = 5_000.0
HELD_UP_MS_MAX = 1_000.0 + 3_000.0
"""The hook's timeout, and what a busy machine takes to end a process."""


def a_hook(script: str = "true", **changes: Any) -> Hook:
    hook = Hook(name="tell", on=(EVENT,), command=(SHELL, "-c", script, "hook"), timeout_seconds=2.0)
    return replace(hook, **changes)


BEFORE = a_hook(on=(HookEvent.BEFORE_SWITCHOVER, HookEvent.BEFORE_FAILOVER))
BEGUN = a_plan(kind=Kind.SWITCHOVER, stage=Stage.CHOOSE, steps=FIRST_LINE)


def test_a_hook_is_due_before_the_first_step_and_only_until_it_has_ended() -> None:
    ran = (HookRun(event="before_switchover", name="tell", outcome=DONE),)

    assert due_before([BEFORE], BEGUN) == (BEFORE,)
    assert due_before([BEFORE], replace(BEGUN, hooks=ran)) == ()
    assert due_before([BEFORE], replace(BEGUN, stage=Stage.FENCE)) == ()
    assert due_before([BEFORE], a_plan(steps=FIRST_LINE)) == (BEFORE,)
    assert due_before([BEFORE], a_plan(kind=Kind.BOOTSTRAP, stage=Stage.PROMOTE)) == ()
    assert due_before([a_hook()], BEGUN) == ()


def test_a_switchover_that_became_a_failover_asks_nobody_again() -> None:
    assert due_before([BEFORE], a_plan(steps=FIRST_LINE * 4)) == ()


def test_only_what_must_succeed_stops_a_switchover() -> None:
    failed = (HookRun(event="before_switchover", name="tell", outcome="failed: it ended with 3"),)

    assert refusal([BEFORE], failed) is None
    assert refusal([replace(BEFORE, must=Must.MUST_SUCCEED)], failed) == "hook tell failed: it ended with 3"


def test_what_a_next_leader_has_to_run_is_written_with_the_end_of_the_plan() -> None:
    waiting = expected_after([a_hook(), BEFORE], a_plan())
    (ran,) = ended(waiting, [HookRun(event=EVENT.value, name="tell", outcome=DONE, took_ms=3.0)])

    assert [(one.name, one.outcome) for one in waiting] == [("tell", None)]
    assert ran.outcome == DONE


WRONG = {
    "must_succeed stops no failover": (a_hook(must=Must.MUST_SUCCEED), "only a hook of before_switchover"),
    "clinics wait for a hook before a failover": (
        a_hook(on=(HookEvent.BEFORE_FAILOVER,), timeout_seconds=6.0),
        "at most 5 s",
    ),
    "an operator waits for one before a switchover": (
        a_hook(on=(HookEvent.BEFORE_SWITCHOVER,), timeout_seconds=61.0),
        "at most 60 s",
    ),
    "no program is looked for": (a_hook(command=("mail", "me")), "must begin with /"),
}


@pytest.mark.parametrize(("hook", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_hook_is_refused_with_the_consequence(hook: Hook, told: str) -> None:
    (problem,) = hook_contradictions([hook])

    assert told in problem


def test_two_hooks_of_one_name_are_refused() -> None:
    assert hook_contradictions([a_hook(), a_hook()]) == ["hook name 'tell' is used 2 times: a key must name one"]


def test_a_hook_gets_nothing_of_our_environment() -> None:
    told = environment("oscar", a_hook(), EVENT, "7-plan", facts_of(a_plan(candidate=TORONTO)))

    assert told["OSCAR_HA_KEY"] == "7-plan/after_failover/tell"
    assert (told["OSCAR_HA_NEW"], told["OSCAR_HA_EPOCH"], told["OSCAR_HA_AUTOMATIC"]) == (TORONTO, "2", "0")
    assert "OSCAR_HA_OUTCOME" not in told
    assert {name for name in told if not name.startswith("OSCAR_HA_")} == {"PATH", "LANG"}


def test_what_comes_and_goes_at_once_is_told_to_nobody() -> None:
    edge, fired = look(Edge(), True, Nanos(0), 5_000.0)
    assert (edge, fired) == (Edge(True), False), "what was so before we looked is no news"
    edge, fired = look(edge, False, Nanos(0), 5_000.0)
    edge, fired = look(edge, True, Nanos(4_000 * NANOS_PER_MS), 5_000.0)
    assert (edge, fired) == (Edge(True), False)
    edge, _ = look(edge, False, Nanos(5_000 * NANOS_PER_MS), 5_000.0)
    assert look(edge, False, Nanos(10_000 * NANOS_PER_MS), 5_000.0) == (Edge(False), True)


async def ran(script: str, **changes: Any) -> HookRun:
    began = clock.now()
    done = await hook_process.run(
        a_hook(script, **changes), EVENT, {"PATH": os.environ["PATH"], "OSCAR_HA_OLD": "db-clinic"}
    )

    assert clock.ms_between(began, clock.now()) < RUN_MS_MAX
    return done


async def test_a_run_tells_how_it_ended_and_what_it_printed() -> None:
    well, bad = await ran("echo $OSCAR_HA_OLD; echo trouble >&2"), await ran("exit 3")

    assert (well.outcome, well.output) == (DONE, "db-clinic\ntrouble\n")
    assert (bad.outcome, bad.output) == ("failed: it ended with 3", "")
    assert (await ran("", command=("/nonexistent/hook",))).outcome.startswith("failed: it cannot be started")  # type: ignore[union-attr]


async def test_of_much_output_the_end_is_kept() -> None:
    done = await ran("head -c 3000000 /dev/zero | tr '\\0' x; echo end")

    assert done.outcome == DONE
    assert done.output.endswith("xend\n")
    assert len(done.output) == hook_process.OUTPUT_BYTES_MAX


async def test_a_hung_hook_is_killed_with_all_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    done = await ran(f"sleep 300 & echo $! > {child}; wait", timeout_seconds=0.5)

    assert done.outcome == "failed: killed after 0.5 s"
    await until(lambda: not is_alive(int(child.read_text())), "the child is gone")


async def test_a_child_that_keeps_the_output_open_keeps_nobody_waiting(tmp_path: Path) -> None:
    child = tmp_path / "child"
    done = await ran(f"sleep 300 & echo $! > {child}; echo done")

    assert (done.outcome, done.output) == (DONE, "done\n")
    with suppress(ProcessLookupError):
        os.kill(int(child.read_text()), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def noting(file: Path, event: HookEvent, *, more: str = "", **changes: Any) -> Hook:
    """A hook that writes a line when it runs."""
    script = f"echo $OSCAR_HA_EVENT $OSCAR_HA_KEY $OSCAR_HA_NEW >> {file}; {more}"
    return a_hook(script, name=f"note-{event.value.replace('_', '-')}", on=(event,), **changes)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.servers
async def test_hooks_run_around_a_failover_and_a_hung_one_holds_it_up_no_longer_than_its_timeout(
    zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    both = (
        noting(file, HookEvent.BEFORE_FAILOVER, more="sleep 300", timeout_seconds=1.0),
        noting(file, HookEvent.AFTER_FAILOVER),
    )
    async with a_trial(zookeeper, zookeeper_root, controllers=1, hooks=both) as trial:
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-toronto", 2)
        await until(lambda: len(lines(file)) == 2, "both hooks run")
        await until(trial.plan_ended, "the plan ends")
        (last, *_) = await trial.history()

        assert [line.split()[0] for line in lines(file)] == ["before_failover", "after_failover"]
        assert lines(file)[1].endswith(f"{last['id']}/after_failover/note-after-failover db-toronto")
        assert last["hooks"][0]["outcome"] == "failed: killed after 1 s"
        sealed = next(step for step in last["steps"] if step["name"] == "sealed")
        assert sealed["ms"] - sealed["took_ms"] < HELD_UP_MS_MAX


@pytest.mark.servers
async def test_a_next_leader_runs_what_has_not_ended_and_nothing_else(
    zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    before, after, go_on = tmp_path / "before", tmp_path / "after", tmp_path / "go-on"
    both = (
        noting(before, HookEvent.BEFORE_SWITCHOVER),
        noting(after, HookEvent.AFTER_SWITCHOVER, more=f"test -e {go_on} || sleep 300", timeout_seconds=60.0),
    )
    async with a_trial(zookeeper, zookeeper_root, hooks=both) as trial:
        leader = trial.leader()
        assert leader is not None
        url = next(one.url for one in trial.cluster.settings.controllers if one.name == leader.name)
        await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)
        await until(lambda: len(lines(after)) == 1, "the hook runs")
        go_on.touch()
        await leader.kill()
        await until(lambda: len(lines(after)) == 2, "the next leader runs it")

        async def noted() -> bool:
            newest = await trial.client.get(f"{trial._url()}/v1/history", deadline_ms=5_000)
            return all(one["outcome"] == DONE for one in newest[0]["hooks"])

        deadline = clock.after(clock.now(), 10_000)
        while not await noted():
            assert clock.seconds_left(deadline) > 0
            await asyncio.sleep(0.05)
        assert len(lines(before)) == 1, "what has ended is not run again"
        assert len(set(lines(after))) == 1, "the same key"


@pytest.mark.servers
async def test_a_hook_that_must_succeed_stops_a_switchover_before_anything_is_touched(
    zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    hook = noting(tmp_path / "n", HookEvent.BEFORE_SWITCHOVER, more="echo no; exit 1", must=Must.MUST_SUCCEED)
    async with a_trial(zookeeper, zookeeper_root, controllers=1, hooks=(hook,)) as trial:
        url = trial.cluster.settings.controllers[0].url
        done = await trial.client.post(f"{url}/v1/switchover", {"to": "db-toronto"}, deadline_ms=30_000)

        assert done["outcome"] == "rolled back: hook note-before-switchover failed: it ended with 1"
        assert done["hooks"][0]["output"] == "no\n"
        assert trial.cluster.history.opened() == [("db-clinic", 1)]
        assert not [effect for effect in trial.cluster.history.effects if effect[1] == "fence"]


@pytest.mark.servers
async def test_a_primary_that_fails_while_a_switchover_waits_for_its_hook_is_replaced_at_once(
    zookeeper: ZooKeeperServer, zookeeper_root: str, tmp_path: Path
) -> None:
    file = tmp_path / "n"
    hook = noting(file, HookEvent.BEFORE_SWITCHOVER, more="sleep 300", timeout_seconds=60.0)
    async with a_trial(zookeeper, zookeeper_root, controllers=1, hooks=(hook,)) as trial:
        url = trial.cluster.settings.controllers[0].url
        asked = asyncio.create_task(
            trial.client.post(f"{url}/v1/switchover", {"to": "db-montreal"}, deadline_ms=30_000)
        )
        await until(lambda: len(lines(file)) == 1, "the hook runs")
        await trial.cluster.nodes["db-clinic"].see(Database.DOWN)
        await trial.settled("db-toronto", 2)

        assert (await asked)["outcome"].startswith("rolled back: the primary failed while hooks ran")
