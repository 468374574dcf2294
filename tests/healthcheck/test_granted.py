"""Whose grants a primary needs when ZooKeeper is gone, and for how long they let it go on (decision 0078)."""

from dataclasses import replace

import pytest

from cluster import clock
from cluster.clock import Nanos
from cluster.lease import held_until, is_overdue
from cluster.records import Acks, Durability, DurabilityRecord, EpochRecord, Mark
from cluster.settings import Timing
from healthcheck.granted import Held, granted_until, request_of, sites_to_ask, why_not_ask

TIMING = Timing()
NOW = Nanos(10**12)
OUTSIDE = ("toronto", "montreal")
RECORD = EpochRecord(epoch=3, primary="one", server_id=1, file="b.1", position="", since="", proof="", lineage=())
DURABILITY = DurabilityRecord(epoch=3, mode=Durability.SYNC, ackers=("toronto",), since="", serial=7)
MARK = Mark(run="a", at=5)


def held(asked: int) -> Held:
    return Held(asked=Nanos(asked), mark=MARK)


def test_every_site_outside_is_asked_and_every_one_whose_word_a_failover_needs() -> None:
    record = replace(DURABILITY, former=(("ottawa",),))
    together = replace(DURABILITY, acks=Acks.ALL, ackers=("toronto", "montreal"))

    assert sites_to_ask(OUTSIDE, DURABILITY) == OUTSIDE
    assert sites_to_ask(OUTSIDE, record) == ("toronto", "montreal", "ottawa")
    assert sites_to_ask(OUTSIDE, together) == OUTSIDE


def test_grants_last_as_long_as_the_first_of_them() -> None:
    both = {"toronto": held(NOW), "montreal": held(NOW + 9)}

    assert granted_until(both, OUTSIDE, TIMING) == held_until(NOW, TIMING)


@pytest.mark.parametrize("has", [(), ("toronto",), ("montreal",), ("clinic", "toronto")])
def test_what_is_missing_is_not_granted(has: tuple[str, ...]) -> None:
    assert granted_until({site: held(NOW) for site in has}, OUTSIDE, TIMING) is None


def test_who_needs_nobodys_grant_has_none() -> None:
    """A cluster without a replicator outside the primary's site: nobody could forbid it."""
    assert granted_until({}, (), TIMING) is None


@pytest.mark.parametrize(
    ("record", "durability", "opened", "reason"),
    [
        pytest.param(RECORD, DURABILITY, 3, None, id="ours, and known"),
        pytest.param(None, DURABILITY, 3, "not ours", id="no epoch is known"),
        pytest.param(RECORD, DURABILITY, None, "not ours", id="not opened"),
        pytest.param(RECORD, DURABILITY, 2, "not ours", id="opened for an older one"),
        pytest.param(RECORD, None, 3, "not known who", id="who acknowledges is not known"),
        pytest.param(RECORD, replace(DURABILITY, epoch=2), 3, "not known who", id="only who did in another epoch"),
    ],
)
def test_grants_are_asked_for_only_by_who_knows_what_it_asks(
    record: EpochRecord | None, durability: DurabilityRecord | None, opened: int | None, reason: str | None
) -> None:
    found = why_not_ask(record, durability, opened)

    assert found is None if reason is None else reason in str(found)


def test_a_site_is_told_its_mark_and_how_much_is_left_of_all() -> None:
    first = request_of(3, 7, None, None, NOW)
    later = request_of(3, 7, held(NOW), clock.after(NOW, 250.0), NOW)
    late = request_of(3, 7, held(NOW), NOW, clock.after(NOW, 1.0))

    assert (first.mark, first.left_ms) == (None, 0.0)
    assert (later.mark, later.left_ms) == (MARK, 250.0)
    assert late.left_ms == 0.0


def test_zookeeper_counts_as_silent_when_half_of_the_lease_is_over() -> None:
    until = held_until(NOW, TIMING)

    assert not is_overdue(until, clock.after(NOW, 1_624.0), TIMING)
    assert is_overdue(until, clock.after(NOW, 1_625.0), TIMING)
    assert is_overdue(None, NOW, TIMING)
