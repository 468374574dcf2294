"""Who is chosen: complete, allowed, not older, where the settings prefer it; and the reasons of all are told."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.records import Database
from controller.choose import Candidate, rank
from controller.model import Kind, NodeFacts, View
from controller.readiness import Code, readiness
from controller.seen import Sighting
from tests.controller.builders import CLINIC, HEAD, MONTREAL, SINCE, TORONTO, a_node, a_plan, a_view, sealed

OLD, SAME, NEW = "10.11.6-MariaDB", "10.11.19-MariaDB", "11.4.2-MariaDB"
DEAD = a_node("clinic", database=Database.DOWN)
ALL = sealed(clinic=HEAD, toronto=HEAD, montreal=HEAD)


def ranked(view: View, **plan: Any) -> dict[str, Candidate]:
    return {one.node: one for one in rank(view, a_plan(sealed=ALL, **plan))}


def on(toronto: str, montreal: str, clinic: NodeFacts = DEAD) -> View:
    return a_view(
        clinic=clinic,
        toronto=a_node("toronto", server_version=toronto),
        montreal=a_node("montreal", server_version=montreal),
    )


@pytest.mark.parametrize(
    ("toronto", "montreal", "first"),
    [(SAME, SAME, TORONTO), (OLD, SAME, MONTREAL), (OLD, NEW, MONTREAL), (NEW, SAME, TORONTO), (OLD, OLD, TORONTO)],
    ids=["by site", "not the older", "a newer before an older", "newer is no merit", "older, when all are"],
)
def test_an_older_server_comes_after_all_others_and_before_nobody_at_all(
    toronto: str, montreal: str, first: str
) -> None:
    found = ranked(on(toronto, montreal))

    assert next(iter(found)) == first
    assert all(one.able for name, one in found.items() if name != CLINIC)
    assert ("older than the primary's" in " ".join(found[TORONTO].notes)) is (toronto == OLD)


def test_a_server_that_was_asked_for_comes_first_though_it_is_older() -> None:
    assert next(iter(ranked(on(SAME, OLD), requested=MONTREAL))) == MONTREAL


def test_the_version_of_a_primary_that_is_gone_is_the_one_it_had() -> None:
    """A host that vanished says nothing any more; that must not make an older standby as good as the others."""
    last = Sighting(position=HEAD, at=SINCE, version=SAME)
    gone = replace(a_node("clinic", absent_ms=9_000.0), last=last)

    assert next(iter(ranked(on(OLD, SAME, gone)))) == MONTREAL
    assert next(iter(ranked(on(OLD, SAME, replace(gone, last=None))))) == TORONTO


def test_no_switchover_goes_to_an_older_server() -> None:
    """Planned work has the time to upgrade it first."""
    found = ranked(on(OLD, SAME, a_node("clinic")), kind=Kind.SWITCHOVER, requested=TORONTO)

    assert not found[TORONTO].able


def kept_back(view: View, name: str) -> View:
    nodes = tuple(replace(node, no_promotion=True) if node.name == name else node for node in view.nodes)
    return replace(view, nodes=nodes)


@pytest.mark.parametrize("kind", [Kind.FAILOVER, Kind.SWITCHOVER])
def test_a_node_with_no_promotion_is_promoted_only_where_it_is_named(kind: Kind) -> None:
    view = kept_back(on(SAME, SAME), TORONTO)

    assert "no_promotion" in " ".join(ranked(view, kind=kind)[TORONTO].against)
    assert next(iter(ranked(view, kind=kind))) == MONTREAL
    assert next(iter(ranked(view, kind=kind, requested=TORONTO))) == TORONTO


def test_who_is_not_promoted_by_itself_makes_no_cluster_ready() -> None:
    view = kept_back(a_view(montreal=a_node("montreal", absent_ms=9_000.0)), TORONTO)

    assert [reason.code for reason in readiness(view)] == [Code.NO_CURRENT_STANDBY]


def test_a_failover_that_would_wait_is_found_though_everything_looks_well() -> None:
    """Both standbys are current, and the data of both is being replaced: only carrying a failover on shows it."""
    diverged = {site: a_node(site, position="0-3-7") for site in ("toronto", "montreal")}
    (reason,) = readiness(a_view(**diverged))

    assert reason.code is Code.WOULD_WAIT
    assert "no node can be promoted" in reason.why


def test_the_order_of_the_sites_decides_between_equals_and_is_told() -> None:
    view = on(SAME, SAME)
    swapped = replace(view, policy=replace(view.policy, sites=("clinic", "montreal", "toronto")))

    assert (next(iter(ranked(view))), next(iter(ranked(swapped)))) == (TORONTO, MONTREAL)
    assert ranked(view)[MONTREAL].notes == ("site montreal is number 3 of the settings",)
