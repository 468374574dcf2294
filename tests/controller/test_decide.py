"""The failover policy as a table: one line a situation."""

from dataclasses import replace

import pytest

from cluster.records import Condition, Database, Health, Role
from controller.decide import Decision, Hold, Mend, Start, decide, warnings
from controller.model import Kind, View
from controller.plan import Follow, NameAckers
from controller.readiness import readiness
from tests.controller.builders import CLINIC, SINCE, TORONTO, a_node, a_replicator, a_view

ALONE = {f"replicator_{site}": a_replicator(site, absent_ms=9_000.0) for site in ("clinic", "toronto", "montreal")}
DEAF = {f"replicator_{site}": a_replicator(site, connected=False) for site in ("clinic", "toronto", "montreal")}
SICK = Health(condition=Condition.FAILED, reasons=("its disk is full",))
SITUATIONS: dict[str, tuple[View, str]] = {
    "all is well: nothing to do": (a_view(), "mend"),
    "the process is gone: failover": (a_view(clinic=a_node("clinic", database=Database.DOWN)), "failover"),
    "the server hangs: failover": (a_view(clinic=a_node("clinic", database=Database.HUNG)), "failover"),
    "not probed yet: unknown": (a_view(clinic=a_node("clinic", database=Database.UNKNOWN)), "hold"),
    "silence is not death": (a_view(clinic=a_node("clinic", absent_ms=0.0), **DEAF), "hold"),
    "silent, lease not over: hold": (a_view(clinic=a_node("clinic", absent_ms=999.0), **DEAF), "hold"),
    "lease over, nobody hears it: failover": (a_view(clinic=a_node("clinic", absent_ms=1_000.0), **DEAF), "failover"),
    "lease over, a stream lives: hold": (a_view(clinic=a_node("clinic", absent_ms=1_000.0)), "hold"),
    "lease over, ZooKeeper is just back and nobody else is: hold": (
        a_view(clinic=a_node("clinic", absent_ms=4_999.0), **ALONE),
        "hold",
    ),
    "lease over, nobody came back: failover": (a_view(clinic=a_node("clinic", absent_ms=5_000.0), **ALONE), "failover"),
    "watchdog does not return: failover": (a_view(clinic=a_node("clinic", absent_ms=5_000.0)), "failover"),
    "the fifth within the hour waits for an operator": (
        a_view(clinic=a_node("clinic", database=Database.DOWN), automatic=5),
        "hold",
    ),
    "the fourth within the hour: failover": (
        a_view(clinic=a_node("clinic", database=Database.DOWN), automatic=4),
        "failover",
    ),
    "too many failovers, and all is well: mended as ever": (
        a_view(montreal=a_node("montreal", role=Role.FENCED), automatic=9),
        "mend Follow",
    ),
    "paused: hold": (a_view(clinic=a_node("clinic", database=Database.DOWN), paused=True), "hold"),
    "restarted behind our back: failover": (
        a_view(clinic=a_node("clinic", role=Role.FENCED, lease_epoch=None, why="the server was restarted")),
        "failover",
    ),
    "lease lapsed, it resumes by itself: hold": (
        a_view(clinic=a_node("clinic", role=Role.FENCED, lease_epoch=None, resumable=True)),
        "hold",
    ),
    "it answers but has failed, another would do better: failover": (
        a_view(clinic=a_node("clinic", health=SICK)),
        "failover",
    ),
    "it answers but has failed, and so have all others: mended as ever": (
        a_view(
            clinic=a_node("clinic", health=SICK),
            toronto=a_node("toronto", health=SICK),
            montreal=a_node("montreal", health=SICK),
        ),
        "mend",
    ),
    "it has failed, of the others nothing is known": (
        a_view(
            clinic=a_node("clinic", health=SICK),
            toronto=a_node("toronto", health=None),
            montreal=a_node("montreal", health=None),
        ),
        "mend",
    ),
    "it has failed, no failover by itself is wanted": (
        a_view(clinic=a_node("clinic", health=SICK), policy=replace(a_view().policy, health_failover=False)),
        "mend",
    ),
    "overloaded: never a failover": (
        a_view(clinic=a_node("clinic", health=Health(condition=Condition.DEGRADED, reasons=("overloaded",)))),
        "mend",
    ),
    "cut off from the acker alone: another acker, no failover": (
        a_view(
            replicator_toronto=replace(a_replicator("toronto", connected=False, acknowledging=False), idle_ms=2_500.0),
            durability_age_ms=60_000.0,
        ),
        "mend NameAckers",
    ),
    "a fenced node that is behind follows": (a_view(montreal=a_node("montreal", role=Role.FENCED)), "mend Follow"),
    "a node that is ahead stays fenced": (
        a_view(montreal=a_node("montreal", role=Role.FENCED, position="0-1-101")),
        "mend",
    ),
    "a node with another history stays fenced": (
        a_view(montreal=a_node("montreal", role=Role.FENCED, position="0-3-7")),
        "mend",
    ),
    "a dead standby is left alone": (a_view(montreal=a_node("montreal", database=Database.DOWN)), "mend"),
    "a silent acker is replaced at once: its word stays needed": (
        a_view(replicator_toronto=a_replicator("toronto", absent_ms=900.0)),
        "mend NameAckers",
    ),
    "a dead acker is replaced": (
        a_view(replicator_toronto=a_replicator("toronto", absent_ms=1_000.0)),
        "mend NameAckers",
    ),
    "nobody else can acknowledge: the record stays": (
        a_view(
            replicator_toronto=a_replicator("toronto", absent_ms=1_000.0),
            replicator_montreal=a_replicator("montreal", absent_ms=1_000.0),
        ),
        "mend",
    ),
    "no epoch yet: the first primary is opened": (a_view(epoch=None), "bootstrap"),
    "no epoch, first database down: hold": (
        a_view(epoch=None, clinic=a_node("clinic", database=Database.DOWN)),
        "hold",
    ),
    "no epoch, another node has more: hold": (
        a_view(epoch=None, toronto=a_node("toronto", position="0-1-101")),
        "hold",
    ),
}


def told(decision: Decision) -> str:
    match decision:
        case Hold():
            return "hold"
        case Start(kind=kind):
            return kind.value
        case Mend(repairs=repairs):
            return " ".join(["mend", *(type(repair).__name__ for repair in repairs)])


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_has_its_decision(name: str) -> None:
    view, expected = SITUATIONS[name]

    assert told(decide(view, SINCE)) == expected


def test_a_failover_names_the_lost_primary_and_why() -> None:
    decision = decide(a_view(clinic=a_node("clinic", database=Database.DOWN)), SINCE)

    assert isinstance(decision, Start)
    assert (decision.kind, decision.old) == (Kind.FAILOVER, CLINIC)
    assert "process is gone" in decision.why


def test_the_new_acker_is_outside_the_primarys_site() -> None:
    decision = decide(a_view(replicator_toronto=a_replicator("toronto", absent_ms=2_000.0)), SINCE)

    assert isinstance(decision, Mend)
    assert [repair.durability.ackers for repair in decision.repairs if isinstance(repair, NameAckers)] == [
        ("montreal",)
    ]


def test_a_paused_cluster_repairs_nothing() -> None:
    assert told(decide(a_view(montreal=a_node("montreal", role=Role.FENCED), paused=True), SINCE)) == "hold"


def test_what_is_degraded_is_told_and_hides_no_failover() -> None:
    crowded = Health(
        condition=Condition.DEGRADED, reasons=("its 151 connections are used up, most of them by oscar@a",)
    )
    view = a_view(clinic=a_node("clinic", health=crowded))

    assert readiness(view) == ()
    assert warnings(view) == ("db-clinic: its 151 connections are used up, most of them by oscar@a",)


def test_a_watchdog_that_reports_and_does_not_answer_is_told_and_nobody_is_failed_over() -> None:
    """A partition of one direction: it is well, but could not be fenced or promoted by our word."""
    clinic, toronto = (replace(a_node(site), deaf_ms=5_000.0) for site in ("clinic", "toronto"))
    just_now = replace(a_node("clinic"), deaf_ms=4_000.0)
    view = a_view(clinic=clinic, toronto=toronto)
    (reason,), (warning,) = readiness(view), warnings(view)

    assert told(decide(view, SINCE)) == "mend"
    assert "db-clinic reports to ZooKeeper, but does not answer" in reason.why
    assert warning.endswith("it could not be promoted")
    assert readiness(a_view(clinic=just_now)) == ()


def test_following_is_asked_in_the_current_epoch() -> None:
    decision = decide(a_view(toronto=a_node("toronto", role=Role.FENCED)), SINCE)

    assert isinstance(decision, Mend)
    assert decision.repairs == (Follow(node=TORONTO, epoch=1),)


def test_a_healthy_cluster_has_nothing_to_mend() -> None:
    assert warnings(a_view()) == ()


def test_what_falls_behind_quietly_is_said() -> None:
    """The cluster is ready with one standby; that the other one is not must not wait for the next failover."""
    view = a_view(
        montreal=a_node("montreal", role=Role.FENCED, why="ahead: it has transactions"),
        replicator_montreal=a_replicator("montreal", absent_ms=5_000.0),
    )

    assert readiness(view) == ()
    assert len(warnings(view)) == 2
