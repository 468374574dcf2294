"""A dry run is the plan itself, carried on in thought; and what is finished is told as a story."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from cluster.errors import Conflict, Refused
from cluster.records import Database, Role
from cluster.settings import Timing
from controller.accepted import Accepted, Loss
from controller.dry_run import dry_run
from controller.estimate import Part, dominated_by
from controller.metrics import Metrics
from controller.model import ORDER, HistoryRecord, Kind, PlanRecord, Proof, Stage, StepDone, View
from controller.operator_command import dry_run_lines
from controller.rehearse import loses_primary
from controller.requested import Wanted
from controller.story import story
from tests.controller.builders import CLINIC, HEAD, SINCE, TORONTO, a_node, a_plan, a_replicator, a_view, sealed

DEAD = a_node("clinic", database=Database.DOWN, role=Role.FENCED, position=None)
LOSS = Loss(target=HEAD, transactions=None, at_least=8, seconds=2.5, why="toronto, which acknowledged, is gone")


def asked(view: View, kind: Kind = Kind.FAILOVER, **more: Any) -> dict[str, Any]:
    wanted = Wanted(kind=kind, to=more.pop("to", None), why="test")
    defaults: dict[str, Any] = {"running": None, "past": (), "timing": Timing()}
    return dry_run(view, wanted, **(defaults | more))


def finished(**changes: Any) -> HistoryRecord:
    steps = (
        StepDone(name="detected", ms=0.0, took_ms=0.0, detail="db-clinic lost"),
        *(StepDone(name=stage.value, ms=10.0, took_ms=took, detail="")
          for stage, took in zip(ORDER[Kind.FAILOVER][:-1], range(1, 11), strict=True)),
    )  # fmt: skip
    record = HistoryRecord(
        id="0000000002-x-failover-ab", kind=Kind.FAILOVER, why="db-clinic lost", epoch=2, old=CLINIC, new=TORONTO,
        proof=Proof.LEASE_ENDED.value, outcome="done", started=SINCE, ended=SINCE, total_ms=55.0, steps=steps,
        automatic=True, ranking=("db-toronto: able", "db-clinic: its watchdog does not report"),
    )  # fmt: skip
    return replace(record, **changes)


@pytest.mark.parametrize("kind", [Kind.FAILOVER, Kind.SWITCHOVER])
def test_a_dry_run_goes_through_every_stage_of_the_plan(kind: Kind) -> None:
    answer = asked(a_view() if kind is Kind.SWITCHOVER else a_view(clinic=DEAD), kind)

    assert (answer["works"], answer["new"], answer["epoch"]) == (True, TORONTO, 2)
    assert [part["name"] for part in answer["steps"]] == [
        stage.value for stage in ORDER[kind] if stage is not Stage.RECORD
    ]
    assert answer["proof"] == (Proof.WATCHDOG if kind is Kind.SWITCHOVER else Proof.PROCESS_DEAD).value


def test_the_time_is_the_median_of_what_was_and_else_the_deadline_and_it_says_which() -> None:
    """A stage that only a switchover has gone through is better than a deadline that nothing has ever met."""
    past = [finished(), finished(), finished(kind=Kind.SWITCHOVER), finished(outcome="rolled back: x")]

    known = {part["name"]: part for part in asked(a_view(clinic=DEAD), past=past)["steps"]}
    never = {part["name"]: part for part in asked(a_view(clinic=DEAD))["steps"]}
    other = {part["name"]: part for part in asked(a_view(clinic=DEAD), past=past[2:])["steps"]}

    assert (known["sealed"]["ms"], known["sealed"]["basis"]) == (1.0, "median of 2 failovers")
    assert other["sealed"]["basis"] == "median of 1 switchover"
    assert (never["applied"]["ms"], never["applied"]["basis"]) == (15_000.0, "never done yet: at most its deadline")


def test_what_is_waited_for_and_what_is_to_be_applied_is_part_of_the_time_and_said() -> None:
    silent = a_view(clinic=a_node("clinic", absent_ms=0.0), toronto=a_node("toronto", lag_ms=4_000.0))

    answer = asked(silent, past=[finished()])

    waits = next(part for part in answer["steps"] if part["name"] == "wait before fenced")
    assert (waits["ms"], waits["basis"]) == (1_000.0, "the lease of db-clinic may still hold")
    assert answer["dominated_by"] == "applying: 4000 ms (db-toronto is 4.0 s behind)"
    assert answer["estimated_ms"] == 1_000.0 + 4_000.0 + sum(range(1, 11))


def test_a_dry_run_of_a_switchover_waits_in_thought_for_a_candidate_that_catches_up() -> None:
    view = a_view(clinic=a_node("clinic", position="0-1-5000"), toronto=a_node("toronto", lag_ms=4_000.0))

    answer = asked(view, Kind.SWITCHOVER)

    assert (answer["works"], answer["new"]) == (True, TORONTO)
    waits = next(part for part in answer["steps"] if part["name"] == "wait before chosen")
    assert waits["basis"] == "db-toronto catches up first: it is 4900 transactions behind"
    assert any(part["name"] == "applying" and part["ms"] == 4_000.0 for part in answer["steps"])


def test_nothing_takes_longest_where_nothing_is_done() -> None:
    assert dominated_by(()) == ""
    assert dominated_by((Part(name="a", ms=1.0, basis="b"),)) == "a: 1 ms (b)"


def test_a_failover_that_would_wait_says_so_and_what_for() -> None:
    gone = {f"replicator_{site}": a_replicator(site, absent_ms=9_000.0) for site in ("clinic", "toronto")}
    answer = asked(a_view(clinic=DEAD, **gone))

    assert (answer["works"], answer["new"]) == (False, None)
    assert "toronto cannot be reached" in answer["holds"]
    assert answer["allow_data_loss"]["transactions"] == "unknown"
    assert "would NOT work now" in dry_run_lines(answer)[0]
    assert any("--allow-data-loss transactions=unknown,seconds=" in line for line in dry_run_lines(answer))


def test_a_dry_run_of_what_would_be_refused_is_refused() -> None:
    with pytest.raises(Refused, match="primary already"):
        asked(a_view(), Kind.SWITCHOVER, to=CLINIC)
    with pytest.raises(Conflict, match="one plan at a time"):
        asked(a_view(), Kind.SWITCHOVER, running=a_plan(stage=Stage.APPLY))


@pytest.mark.parametrize("running", [False, True], ids=["its host refuses", "it has not answered the seals"])
def test_a_report_that_outlives_its_replicator_proves_nothing(running: bool) -> None:
    """For the time of a session the dead acker still looks alive, and with it everything complete."""
    dead = a_replicator("toronto") if running else replace(a_replicator("toronto"), refused_ms=200.0, stale_ms=100.0)
    plan = (
        a_plan(automatic=True, waiting="toronto cannot be reached", sealed=sealed(montreal=HEAD)) if running else None
    )
    view = a_view(clinic=DEAD, replicator_toronto=dead)

    answer = asked(view, running=plan)

    assert not answer["works"]
    assert "toronto cannot be reached" in answer["holds"]


def test_a_switchover_that_would_be_rolled_back_does_not_work() -> None:
    deaf = a_view(replicator_toronto=a_replicator("toronto", connected=False, acknowledging=False, why="no CRC32"))

    answer = asked(deaf, Kind.SWITCHOVER)

    assert not answer["works"]
    assert "no CRC32" in answer["holds"]


def test_losing_the_primarys_site_is_rehearsed_without_touching_the_view() -> None:
    view = a_view()
    found = loses_primary(view)

    assert found is not None
    assert (found.holds, found.plan.candidate, found.plan.proof) == (None, TORONTO, Proof.LEASE_ENDED.value)
    assert found.plan.loss is not None
    assert found.plan.loss.is_nothing
    assert view == a_view()


# -- stories ---------------------------------------------------------------------------------------------------------


def test_the_story_tells_who_asked_the_proof_the_ranking_the_loss_and_the_times() -> None:
    text = "\n".join(story(finished()))

    assert "db-clinic -> db-toronto, epoch 2, in 55 ms" in text
    assert "nobody, it happened by itself" in text
    assert "proof of fence: lease ended (it was silent until its lease had certainly ended" in text
    assert "  db-clinic: its watchdog does not report" in text
    assert "        10 ms  sealed (took 1 ms)" in text


def test_the_story_of_an_accepted_loss_tells_what_was_accepted_and_what_was_lost() -> None:
    accepted = StepDone(
        name="loss accepted", ms=60_000.0, took_ms=0.0, detail="transactions=unknown,seconds=3; why: agreed"
    )
    record = finished(
        automatic=False, accepts=Accepted(transactions=None, seconds=3), loss=LOSS, steps=(*finished().steps, accepted)
    )
    text = "\n".join(story(record))

    assert "asked for by: an operator; it had begun before, and waited for proof" in text
    assert "lost: transactions: unknown, at least 8; seconds: at most 3; toronto, which acknowledged, is gone" in text
    assert "accepted before: transactions=unknown,seconds=3" in text
    assert "why: agreed" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outcome": "rolled back: slow", "new": CLINIC}, "the old primary went on"),
        ({"kind": Kind.BOOTSTRAP, "old": None}, "the first epoch"),
        ({"kind": Kind.SWITCHOVER}, "the old primary was closed first"),
        ({"loss": replace(LOSS, transactions=0, why="toronto has sealed")}, "nothing: toronto has sealed"),
        ({}, "not judged"),
    ],
)
def test_every_story_says_what_was_lost(changes: dict[str, Any], said: str) -> None:
    assert said in "\n".join(story(finished(**changes)))


def test_a_loss_is_counted_and_none_is_not() -> None:
    metrics = Metrics("c", a_view, lambda: True)
    metrics.count(finished(loss=replace(LOSS, transactions=0)))
    assert b"oscar_ha_failovers_with_loss_total{" not in metrics.text()

    metrics.count(finished(loss=LOSS))
    text = metrics.text().decode()
    assert 'oscar_ha_failovers_with_loss_total{cluster="c",known="in part"} 1.0' in text
    assert 'oscar_ha_lost_transactions_total{cluster="c"} 8.0' in text
    assert 'oscar_ha_lost_seconds_total{cluster="c"} 2.5' in text
    assert 'oscar_ha_plans_total{cluster="c",kind="failover",outcome="done",proof="lease ended"} 2.0' in text


def test_a_record_of_an_older_controller_is_read_as_one_that_accepts_nothing() -> None:
    from cluster.records import decode

    old = {**asdict(a_plan()), "allow_data_loss": True}
    for field in ("accepts", "loss", "ranking", "old_position"):
        del old[field]

    assert decode(PlanRecord, old, where="test").accepts is None
