"""What of an archive may go, as a decision: a table of situations, and properties over made-up archives."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.position import Position
from cluster.records import Database, LineageEntry, NodeReport, ReplicatorReport, Role, SeedPhase, SeedReport
from cluster.settings import ArchiveRules
from replicator.retention import (
    FILES_KEPT_MIN,
    SECONDS_PER_DAY,
    Fate,
    Floor,
    HeldFile,
    Judgement,
    floor_of_node,
    floors_of,
    now_of,
    what_may_go,
)

MIB = 2**20
NOW = 100 * SECONDS_PER_DAY
LINEAGE = (
    LineageEntry(epoch=1, server_id=1, file="binlog.000002", position=""),
    LineageEntry(epoch=2, server_id=2, file="binlog.000002", position="0-1-30"),
)


def a_file(number: int, *, age_days: float = 0.0, **different: object) -> HeldFile:
    """Return the file that ends at transaction `10 * number`."""
    one = HeldFile(identity=f"e/binlog.{number:06d}", stored_bytes=MIB, newest=int(NOW - age_days * SECONDS_PER_DAY),
                   end=Position.parse(f"0-1-{10 * number}"), closed=True)  # fmt: skip
    return replace(one, **different)  # type: ignore[arg-type]  # the tests name its fields


def files(*ages_days: float) -> list[HeldFile]:
    """Return files of these ages, and the one that grows."""
    return [*(a_file(number, age_days=age) for number, age in enumerate(ages_days, 1)),
            a_file(len(ages_days) + 1, closed=False)]  # fmt: skip


def at(sequence: int | None, who: str = "node b") -> Floor:
    return Floor(who=who, position=None if sequence is None else Position.parse(f"0-1-{sequence}"), why="of a test")


def judged(
    held: list[HeldFile], *floors: Floor, now: int | None = NOW, keep_days: int = 10, max_bytes: int | None = None
) -> Judgement:
    return what_may_go(held, floors, ArchiveRules(keep_days=keep_days, max_bytes=max_bytes), now)


OLD = (40, 30, 20, 5)
SITUATIONS = {
    "old files go": (judged(files(*OLD)), 3),
    "a young archive stays": (judged(files(5, 4, 3, 2)), 0),
    "nothing is too old while nobody knows what time it is": (judged(files(*OLD), now=None), 0),
    "who has it all keeps nothing": (judged(files(*OLD), at(50)), 3),
    "a standby keeps the file it reads": (judged(files(*OLD), at(15)), 1),
    "a standby at the end of a file does not need it": (judged(files(*OLD), at(20)), 2),
    "the furthest behind counts": (judged(files(*OLD), at(20), at(9, "node c")), 0),
    "an unknown position keeps everything": (judged(files(*OLD), at(50), at(None)), 0),
    "a standby with nothing keeps everything": (judged(files(*OLD), replace(at(1), position=Position())), 0),
    "another domain keeps what it has not": (judged(files(*OLD), replace(at(1), position=Position.parse("1-1-99"))), 0),
    "too much goes, oldest first": (judged(files(4, 3, 2, 1), max_bytes=3 * MIB), 2),
    "the newest two stay, however large": (judged(files(4, 3, 2, 1), max_bytes=MIB), 3),
    "a floor is stronger than the size": (judged(files(4, 3, 2, 1), at(15), max_bytes=3 * MIB), 1),
    "a file of unknown age goes only by size": (judged([a_file(1, newest=None), *files(9, 9, 9)]), 0),
    "and by size it does": (judged([a_file(1, newest=None), *files(9, 9, 9)], max_bytes=4 * MIB), 1),
    "a gap that may be filled keeps what is behind it": (
        judged([a_file(1, age_days=50), a_file(2, age_days=49, settled=False), *files(9, 9, 9)]), 1),
    "a clock that ran ahead keeps its files": (judged([a_file(1, age_days=-900), *files(*OLD)]), 0),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_goes(situation: str) -> None:
    judgement, count = SITUATIONS[situation]

    assert len(judgement.going) == count, [(one.fate, one.why) for one in judgement.verdicts]


def test_what_is_held_back_is_said_with_who_and_how_much() -> None:
    judgement = judged(files(4, 3, 2, 1), at(15), at(50, "node c"), max_bytes=2 * MIB)

    assert judgement.held_by == ("node b",)
    assert judgement.over_bytes == 2 * MIB
    assert "2 files of 2097152 bytes are kept beyond their time" in judgement.held_back
    assert "node b needs it" in judgement.held_back
    assert judged(files(4, 3, 2, 1), max_bytes=MIB).held_back == ""


ARCHIVES = some.lists(some.tuples(some.floats(0, 60), some.integers(1, 9)), min_size=1, max_size=8)
FLOORS = some.lists(some.one_of(some.none(), some.integers(0, 100)), max_size=4)


@given(ARCHIVES, FLOORS, some.one_of(some.none(), some.integers(1, 40)))
def test_only_the_front_goes_never_what_is_needed_and_a_second_look_finds_nothing(
    made: list[tuple[float, int]], floors: list[int | None], max_mib: int | None
) -> None:
    held = [a_file(number, age_days=age, stored_bytes=size * MIB) for number, (age, size) in enumerate(made, 1)]
    held[-1] = replace(held[-1], closed=False)
    standing = [at(one) for one in floors]
    limit = None if max_mib is None else max_mib * MIB
    judgement = judged(held, *standing, max_bytes=limit)
    going = list(judgement.going)
    rest = held[len(going) :]

    assert going == held[: len(going)]
    assert len(rest) >= min(len(held), FILES_KEPT_MIN)
    for floor in standing:
        assert not going or (floor.position is not None and all(floor.position.covers(one.end) for one in going))
    again = judged(rest, *standing, max_bytes=limit)
    assert not again.going
    assert (again.held_back, again.over_bytes) == (judgement.held_back, judgement.over_bytes)
    if judgement.over_bytes and len(rest) > FILES_KEPT_MIN:
        assert judgement.held_by


@given(ARCHIVES, FLOORS, some.one_of(some.none(), some.integers(0, 100)))
def test_one_more_who_needs_something_never_makes_more_go(
    made: list[tuple[float, int]], floors: list[int | None], more: int | None
) -> None:
    held = [a_file(number, age_days=age) for number, (age, _) in enumerate(made, 1)]
    standing = [at(one) for one in floors]

    assert len(judged(held, *standing, at(more)).going) <= len(judged(held, *standing).going)


def test_age_is_judged_by_the_earlier_of_two_clocks() -> None:
    """TRAPS.md 38: a clock of ours that jumps ahead must not empty the archive."""
    assert now_of(10**10, [None, 500, 400]) == 500
    assert now_of(450, [500, 400]) == 450
    assert now_of(450, [None]) is None


def a_node(position: str | None, **different: object) -> NodeReport:
    one = NodeReport(
        node="b", site="toronto", server_id=2, role=Role.STANDBY, database=Database.UP, epoch=2, sealed_epoch=0,
        read_only=True, position=position, lag_ms=1.0, lease_epoch=None, resumable=False, generation="g",
        server_version=None, replicating=True, why="", url="",
    )  # fmt: skip
    return replace(one, **different)  # type: ignore[arg-type]  # the tests name its fields


def seeding(phase: SeedPhase) -> SeedReport:
    return SeedReport(id="s", donor="a", phase=phase, began="")


NODES = {
    "a standby": (a_node("0-2-40"), "0-2-40"),
    "a fenced node that is behind": (a_node("0-1-30", role=Role.FENCED), "0-1-30"),
    "a joining node": (a_node("0-1-7", role=Role.JOINING), "0-1-7"),
    "an absent member": (None, None),
    "a database that does not answer": (a_node(None, database=Database.DOWN), None),
    "one that is being seeded": (a_node("0-2-40", seeding=seeding(SeedPhase.COPYING)), None),
    "one that was seeded and catches up": (a_node("0-2-31", seeding=seeding(SeedPhase.CATCHING_UP)), "0-2-31"),
    "one with a history of its own": (a_node("0-1-35", role=Role.FENCED), None),
}


@pytest.mark.parametrize("kind", NODES)
def test_what_a_node_needs_is_known_only_when_it_says_so_itself(kind: str) -> None:
    report, position = NODES[kind]
    floor = floor_of_node("b", report, LINEAGE)

    assert floor.position == (None if position is None else Position.parse(position))
    assert floor.why


def a_replicator(durable: str | None, *, whole: bool = True) -> ReplicatorReport:
    return ReplicatorReport(
        site="montreal", epoch=2, sealed_epoch=1, connected=True, acknowledging=False, received=durable, durable=durable,
        acknowledged=None, orphans=0, server_version=None, why="", host="", port=1, url="", whole=whole,
    )  # fmt: skip


def test_every_member_has_a_floor_and_a_replicator_that_lacks_something_keeps_everything() -> None:
    damaged = replace(a_replicator("0-1-9"), damaged_files=1)
    others = {
        "a": a_replicator("0-1-9"),
        "e": damaged,
        "b": a_replicator("0-1-9", whole=False),
        "c": a_replicator(None),
        "d": None,
    }
    floors = floors_of({"b": a_node("0-2-40"), "c": None}, others, LINEAGE)

    assert [(one.who, None if one.position is None else str(one.position)) for one in floors] == [
        ("node b", "0-2-40"), ("node c", None), ("replicator a", "0-1-9"), ("replicator e", None), ("replicator b", None),
        ("replicator c", None), ("replicator d", None),
    ]  # fmt: skip


def test_a_file_that_goes_is_older_than_one_that_stays_and_says_why() -> None:
    judgement = judged(files(*OLD), at(15))

    assert [one.fate for one in judgement.verdicts] == [Fate.GOES, Fate.HELD, Fate.HELD, Fate.STAYS, Fate.STAYS]
    assert all(one.why for one in judgement.verdicts)
