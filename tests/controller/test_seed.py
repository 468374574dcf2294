"""Who may be seeded and from whom: a healthy cluster of three by default, one line a situation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import BadInput, OscarHaError, Refused
from cluster.records import Database, RescueReport, RescueState, Role, SeedPhase, SeedReport
from controller import seeding
from controller.choose import rank
from controller.decide import warnings
from controller.loop import new_plan
from controller.model import Kind, View
from controller.seed import SeedPlan, plan_seeding
from tests.controller.builders import CLINIC, MONTREAL, SINCE, TORONTO, a_node, a_view

RESCUED = RescueReport(id="2-db-montreal-20261124T110530Z", state=RescueState.COMPLETE, position="0-3-101")
SEEDING = SeedReport(id="seed-1", donor=TORONTO, phase=SeedPhase.COPYING, began=SINCE, bytes=50, bytes_total=200)


def with_nodes(clinic: dict[str, Any], toronto: dict[str, Any], montreal: dict[str, Any]) -> View:
    sites = {"clinic": clinic, "toronto": toronto, "montreal": montreal}
    return replace(a_view(), nodes=tuple(a_node(site, **changes) for site, changes in sites.items()))


def seeded(view: View, node: str = MONTREAL, *, donor: str | None = None, force: bool = False) -> SeedPlan:
    return plan_seeding(view, node, requested=donor, force=force)


DOWN: dict[str, Any] = {"database": Database.DOWN, "role": Role.FENCED, "position": None, "lag_ms": None}
SITUATIONS: dict[str, tuple[View, dict[str, Any], str]] = {
    "a healthy standby gives, not the primary": (with_nodes({}, {}, DOWN), {}, TORONTO),
    "the primary gives when it is asked for": (with_nodes({}, {}, DOWN), {"donor": CLINIC}, CLINIC),
    "the primary gives when the standby lags": (with_nodes({}, {"lag_ms": 11_000.0}, DOWN), {}, CLINIC),
    "an unknown lag is no small lag": (with_nodes({}, {"lag_ms": None}, DOWN), {}, CLINIC),
    "a standby that does not replicate does not give": (with_nodes({}, {"replicating": False}, DOWN), {}, CLINIC),
    "a standby that is down does not give": (with_nodes({}, DOWN, DOWN), {}, CLINIC),
    "a silent node does not give": (with_nodes({}, {"absent_ms": 99_999.0}, DOWN), {}, CLINIC),
    "one that is seeded itself does not give": (with_nodes({}, {"seeding": SEEDING}, DOWN), {}, CLINIC),
    "a stray history does not give": (with_nodes({}, {"position": "0-9-90"}, DOWN), {}, CLINIC),
    "a healthy standby may be seeded while there is another": (with_nodes({}, {}, {}), {}, TORONTO),
    "the only standby is seeded by force": (with_nodes({}, DOWN, {}), {"force": True}, CLINIC),
    "a node ahead is seeded by force": (with_nodes({}, {}, {"position": "0-3-101"}), {"force": True}, TORONTO),
    "what a node ahead has is rescued": (
        with_nodes({}, {}, {"position": "0-3-101", "rescue": RESCUED}), {}, TORONTO),
    "the primary's report is older than the standby's": (with_nodes({}, {}, {"position": "0-1-150"}), {}, TORONTO),
    "a seeding that ended hinders nothing": (
        with_nodes({}, {}, {**DOWN, "seeding": replace(SEEDING, phase=SeedPhase.FAILED)}), {}, TORONTO),
    "a newer server cannot give to an older one": (
        with_nodes({}, {"server_version": "11.4.2-MariaDB"}, {}), {}, CLINIC),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_who_gives(name: str) -> None:
    view, arguments, donor = SITUATIONS[name]

    assert seeded(view, **arguments).donor == donor


REFUSALS: dict[str, tuple[Callable[[], SeedPlan], type[OscarHaError], str]] = {
    "an unknown node": (lambda: seeded(a_view(), "db-x"), BadInput, "no node 'db-x'"),
    "an unknown donor": (lambda: seeded(a_view(), donor="db-x"), BadInput, "cannot be the donor"),
    "itself as its donor": (lambda: seeded(a_view(), donor=MONTREAL), BadInput, "cannot be the donor"),
    "the primary": (lambda: seeded(a_view(), CLINIC), Refused, "is the primary"),
    "the primary, by force too": (lambda: seeded(a_view(), CLINIC, force=True), Refused, "is the primary"),
    "the only standby": (lambda: seeded(with_nodes({}, DOWN, {})), Refused, "only standby that could take over"),
    "a node ahead": (lambda: seeded(with_nodes({}, {}, {"position": "0-3-101"})), Refused, "has not .0-3-101."),
    "a node ahead of its rescue": (
        lambda: seeded(with_nodes({}, {}, {"position": "0-3-102", "rescue": RESCUED})), Refused, "not rescued yet"),
    "a node ahead whose rescue lacks something": (
        lambda: seeded(with_nodes({}, {}, {"position": "0-3-101", "rescue": replace(RESCUED, state=RescueState.INCOMPLETE)})),
        Refused, "not rescued yet"),
    "a silent node": (lambda: seeded(with_nodes({}, {}, {"absent_ms": 1.0})), Refused, "does not report"),
    "twice at once": (lambda: seeded(with_nodes({}, {}, {"seeding": SEEDING})), Refused, "seeded already"),
    "a donor that lags": (
        lambda: seeded(with_nodes({}, {"lag_ms": 11_000.0}, DOWN), donor=TORONTO), Refused, "11 s behind"),
    "nobody to give": (lambda: seeded(with_nodes(DOWN, DOWN, DOWN)), Refused, "nobody can give"),
    "before the first epoch": (lambda: seeded(replace(a_view(), epoch=None)), Refused, "no epoch"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_and_why(name: str) -> None:
    attempt, kind, reason = REFUSALS[name]
    with pytest.raises(kind, match=reason) as caught:
        attempt()

    assert caught.value.hint


def test_what_force_costs_is_said_all_the_same() -> None:
    plan = seeded(with_nodes({}, DOWN, {}), force=True)

    assert "failover would not work" in plan.warnings[0]
    assert "commits wait" in plan.warnings[1]


def test_a_dry_run_says_why_not_the_others() -> None:
    answer = seeding.describe(seeded(with_nodes({}, {"lag_ms": None}, DOWN)))

    assert [one["node"] for one in answer["donors"]] == [CLINIC, TORONTO]
    assert answer["donors"][1]["against"] == ("it is an unknown time behind",)


def test_a_node_whose_data_is_being_replaced_is_never_promoted() -> None:
    """Even if somebody starts a server there meanwhile."""
    view = with_nodes({}, {}, {"role": Role.JOINING, "seeding": SEEDING})
    ranking = rank(view, new_plan(view, Kind.FAILOVER, "a test", old=CLINIC))
    (one,) = (candidate for candidate in ranking if candidate.node == MONTREAL)

    assert not one.able
    assert "being replaced" in one.against[0]


def test_a_seeding_that_failed_is_to_be_mended_until_the_node_is_a_standby() -> None:
    failed = replace(SEEDING, phase=SeedPhase.FAILED, why="the disk is full")
    fenced = {**DOWN, "database": Database.UP, "position": "0-1-100", "seeding": failed}

    assert any("the disk is full" in text for text in warnings(with_nodes({}, {}, fenced)))
    assert not warnings(with_nodes({}, {}, {"seeding": failed}))


def test_a_share_is_told_only_when_it_is_known() -> None:
    assert SEEDING.percent == 25.0
    assert replace(SEEDING, bytes_total=None).percent is None
    assert replace(SEEDING, bytes=500).percent == 99.9


def test_the_name_of_a_seeding_can_be_part_of_a_files_name() -> None:
    name = seeding.new_id("2026-11-24T04:13:12.264Z")

    assert name.startswith("20261124T041312-")
    assert name.replace("-", "").isalnum()
