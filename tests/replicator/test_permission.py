"""Who may acknowledge: every condition alone takes the permission away."""

from dataclasses import replace

import pytest

from cluster.clock import Nanos
from cluster.position import Position
from cluster.records import Acks, Durability, DurabilityRecord
from replicator.permission import Confirmed, Heard, Standing, all_have, lacking, may_acknowledge

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
        "the lease is new, nothing was read since": replace(MAY, counted=False),
        "an earlier epoch is not whole": replace(MAY, whole=False),
    }.items(),
    ids=lambda item: item[0],
)
def test_nobody_else_may(standing: tuple[str, Standing]) -> None:
    assert not may_acknowledge(standing[1], Nanos(99))


def test_without_zookeeper_the_primarys_word_counts_for_who_has_just_begun_too() -> None:
    word = Confirmed(epoch=3, serial=NAMED.serial, until=Nanos(100))

    assert may_acknowledge(replace(MAY, lease_until=None, counted=False, confirmed=word), Nanos(99))


TOGETHER = replace(MAY, durability=replace(NAMED, ackers=("toronto", "montreal"), acks=Acks.ALL))
HERE = Position.parse("0-1-100")
SAID = Heard(epoch=3, durable=HERE, until=Nanos(100))


def test_alone_nobodys_word_is_needed() -> None:
    assert all_have(MAY, {}, HERE, Nanos(99))
    assert lacking(MAY, {}, Nanos(99)) == ()
    assert all_have(replace(MAY, durability=replace(NAMED, acks=Acks.ALL)), {}, HERE, Nanos(99))


def test_together_the_others_must_have_said_that_they_have_it() -> None:
    assert all_have(TOGETHER, {"montreal": SAID}, HERE, Nanos(99))
    assert lacking(TOGETHER, {"montreal": SAID}, Nanos(99)) == ()


@pytest.mark.parametrize(
    "heard",
    {
        "nothing was heard": {},
        "somebody else said it": {"clinic": SAID},
        "it was too long ago": {"montreal": replace(SAID, until=Nanos(99))},
        "it was said of an older epoch": {"montreal": replace(SAID, epoch=2)},
        "it was said of a newer epoch": {"montreal": replace(SAID, epoch=4)},
    }.items(),
    ids=lambda item: item[0],
)
def test_a_word_that_does_not_count_is_missing(heard: tuple[str, dict[str, Heard]]) -> None:
    assert not all_have(TOGETHER, heard[1], HERE, Nanos(99))
    assert lacking(TOGETHER, heard[1], Nanos(99)) == ("montreal",)


def test_a_word_covers_what_it_says_and_nothing_more() -> None:
    heard = {"montreal": replace(SAID, durable=Position.parse("0-1-99"))}

    assert all_have(TOGETHER, heard, Position.parse("0-1-99"), Nanos(99))
    assert not all_have(TOGETHER, heard, HERE, Nanos(99))
    assert lacking(TOGETHER, heard, Nanos(99)) == ()
