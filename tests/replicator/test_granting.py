"""What a replicator grants to a primary that sees no ZooKeeper, and what it may acknowledge by that (decision 0078)."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import clock
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Refused
from cluster.lease import given_until, held_until
from cluster.records import Durability, DurabilityRecord, GrantRequest, Mark
from cluster.settings import Timing
from replicator.granting import GRANTED_FILE, Grants, confirmed_by, why_not_grant
from replicator.permission import Confirmed, Standing, may_acknowledge, why_not

TIMING = Timing(session_ttl_ms=300, lease_margin_ms=100, renew_interval_ms=50)
LONG = Timing(session_ttl_ms=600_000)
"""Nothing ends while a test runs, however busy the machine is."""
NOW = Nanos(10**12)
NAMED = DurabilityRecord(epoch=3, mode=Durability.SYNC, ackers=("toronto",), since="", serial=7)
CUT = Standing(
    site="toronto", epoch=3, primary_site="clinic", durability=NAMED, sealed_epoch=2, whole=True, lease_until=NOW,
)  # fmt: skip
ASKED = GrantRequest(epoch=3, serial=7)
CONFIRMED = Confirmed(epoch=3, serial=7, until=Nanos(NOW + 1))


def test_who_sees_no_zookeeper_grants_whether_it_is_named_or_not() -> None:
    other = replace(CUT, durability=replace(NAMED, ackers=("montreal",)))

    assert why_not_grant(CUT, ASKED, NOW, TIMING) is None
    assert why_not_grant(other, ASKED, NOW, TIMING) is None


@pytest.mark.parametrize(
    ("standing", "asked", "reason"),
    [
        pytest.param(CUT, replace(ASKED, epoch=2), "not the newest", id="an older epoch"),
        pytest.param(replace(CUT, primary_site=None), ASKED, "not the newest", id="an epoch nobody has read of"),
        pytest.param(replace(CUT, sealed_epoch=3), ASKED, "sealed", id="sealed"),
        pytest.param(replace(CUT, lease_until=held_until(NOW, TIMING)), ASKED, "ZooKeeper is seen", id="it sees ZooKeeper"),
        pytest.param(CUT, replace(ASKED, serial=6), "is 7, not 6", id="the primary knows an older record"),
        pytest.param(CUT, replace(ASKED, serial=8), "is 7, not 8", id="it knows an older record itself"),
        pytest.param(replace(CUT, durability=None), ASKED, "is None", id="no record is known"),
        pytest.param(replace(CUT, durability=replace(NAMED, epoch=2)), ASKED, "is None", id="a record of another epoch"),
    ],
)  # fmt: skip
def test_every_condition_alone_refuses_the_grant(standing: Standing, asked: GrantRequest, reason: str) -> None:
    assert reason in str(why_not_grant(standing, asked, NOW, TIMING))


def test_who_is_confirmed_acknowledges_without_a_lease_until_that_ends() -> None:
    standing = replace(CUT, confirmed=CONFIRMED)

    assert why_not(CUT, NOW) == "our ZooKeeper lease is not valid"
    assert may_acknowledge(standing, NOW)
    assert not may_acknowledge(standing, CONFIRMED.until)


@pytest.mark.parametrize(
    "standing",
    {
        "another epoch": replace(CUT, confirmed=replace(CONFIRMED, epoch=2)),
        "another record": replace(CUT, confirmed=replace(CONFIRMED, serial=6)),
        "sealed meanwhile": replace(CUT, confirmed=CONFIRMED, sealed_epoch=3),
        "another is named": replace(CUT, confirmed=CONFIRMED, durability=replace(NAMED, ackers=("montreal",))),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_confirmation_lifts_no_other_condition(standing: tuple[str, Standing]) -> None:
    assert not may_acknowledge(standing[1], NOW)


def test_a_confirmation_counts_from_its_mark_and_no_longer_than_the_primary_says() -> None:
    marked = Mark(run="ours", at=NOW - 50_000_000)
    asked = replace(ASKED, mark=marked, left_ms=120.0)
    word = confirmed_by(asked, "ours", NOW, TIMING)

    assert word == Confirmed(epoch=3, serial=7, until=clock.after(Nanos(marked.at), 120.0))
    assert confirmed_by(asked, "ours", clock.after(NOW, 70.0), TIMING) is None, "a request that came late"
    assert confirmed_by(asked, "another run", NOW, TIMING) is None
    assert confirmed_by(replace(asked, mark=None), "ours", NOW, TIMING) is None
    assert confirmed_by(replace(asked, left_ms=0.0), "ours", NOW, TIMING) is None
    assert confirmed_by(replace(asked, mark=replace(marked, at=NOW + 1)), "ours", NOW, TIMING) is None
    longest = confirmed_by(replace(asked, left_ms=1e12), "ours", NOW, TIMING)
    assert longest is not None
    assert longest.until == held_until(Nanos(marked.at), TIMING)


def test_a_grant_ends_for_its_holder_before_it_ends_for_its_giver() -> None:
    """Even when it was answered in the very instant in which it was asked for."""
    assert held_until(NOW, TIMING) < given_until(NOW, TIMING)


def cut() -> Standing:
    return replace(CUT, lease_until=None)


async def test_a_seal_is_not_told_while_a_grant_is_relied_on(tmp_path: Path) -> None:
    grants = Grants("toronto", tmp_path, LONG)
    await grants.ended(clock.now())
    await grants.give(ASKED, cut)

    with pytest.raises(DeadlinePassed, match="not told yet"):
        await grants.ended(clock.after(clock.now(), 20.0))


async def test_a_seal_is_told_when_the_last_grant_has_ended(tmp_path: Path) -> None:
    grants = Grants("toronto", tmp_path, TIMING)
    given = await grants.give(ASKED, cut)
    await grants.ended(clock.after(clock.now(), 60_000.0))

    assert clock.now() >= given_until(Nanos(given.mark.at), TIMING)
    assert not grants.promised


async def test_who_sealed_while_the_grant_was_made_durable_refuses_it(tmp_path: Path) -> None:
    standings = iter((cut(), replace(cut(), sealed_epoch=3)))
    grants = Grants("toronto", tmp_path, TIMING)

    with pytest.raises(Refused, match="sealed"):
        await grants.give(ASKED, lambda: next(standings))
    assert not grants.promised


async def test_a_replicator_that_restarts_waits_for_the_grants_that_it_may_have_given(tmp_path: Path) -> None:
    await Grants("toronto", tmp_path, TIMING).give(ASKED, cut)
    began = clock.now()
    again = Grants("toronto", tmp_path, TIMING)
    assert again.promised
    await again.ended(clock.after(began, 60_000.0))
    await again.tidy()

    assert clock.now() >= given_until(began, TIMING)
    assert not (tmp_path / GRANTED_FILE).exists()
    assert not Grants("toronto", tmp_path, TIMING).promised


async def test_what_is_relied_on_is_not_forgotten_on_disk(tmp_path: Path) -> None:
    grants = Grants("toronto", tmp_path, LONG)
    await asyncio.gather(grants.give(ASKED, cut), grants.tidy(), grants.give(ASKED, cut))
    await grants.tidy()

    assert (tmp_path / GRANTED_FILE).exists()
