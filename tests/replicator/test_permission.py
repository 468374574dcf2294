"""Who may acknowledge: every condition alone takes the permission away."""

from dataclasses import replace

import pytest

from cluster.clock import Nanos
from cluster.records import Durability, DurabilityRecord
from replicator.permission import Standing, may_acknowledge

NAMED = DurabilityRecord(epoch=3, mode=Durability.SYNC, ackers=("toronto",), since="")
MAY = Standing(
    site="toronto", epoch=3, primary_site="clinic", durability=NAMED, sealed_epoch=2, whole=True,
    lease_until=Nanos(100),
)  # fmt: skip


def test_the_named_acker_with_a_lease_may() -> None:
    assert may_acknowledge(MAY, Nanos(99))


@pytest.mark.parametrize(
    "standing",
    {
        "sealed": replace(MAY, sealed_epoch=3),
        "sealed later": replace(MAY, sealed_epoch=4),
        "no record": replace(MAY, durability=None),
        "the record is of an older epoch": replace(MAY, durability=replace(NAMED, epoch=2)),
        "the record is of a newer epoch": replace(MAY, durability=replace(NAMED, epoch=4)),
        "another is named": replace(MAY, durability=replace(NAMED, ackers=("montreal",))),
        "nobody is named": replace(MAY, durability=replace(NAMED, ackers=())),
        "the primary is in our own site": replace(MAY, primary_site="toronto"),
        "the primary's site is unknown": replace(MAY, primary_site=None),
        "no lease yet": replace(MAY, lease_until=None),
        "the lease has ended": replace(MAY, lease_until=Nanos(99)),
        "an earlier epoch is not whole": replace(MAY, whole=False),
    }.items(),
    ids=lambda item: item[0],
)
def test_nobody_else_may(standing: tuple[str, Standing]) -> None:
    assert not may_acknowledge(standing[1], Nanos(99))
