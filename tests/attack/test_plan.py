"""The catalogue and the plan: a seed is an attack, every kind comes, and every bound holds for every seed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.attack.catalogue import CATALOGUE, TWO_MAX, Act, Fault, Kind, Lab, Part, Parts, Where, resolve
from chaos.attack.plan import Moment, Round, Turn, plan, possible, problems, timeline
from chaos.lab import cuts
from chaos.lab.cuts import Only
from chaos.lab.names import parts as lab_parts
from chaos.lab.names import select
from chaos.lab.topology import Topology
from cluster.errors import BadInput

APART = Lab(clinics=2, has_network=True, has_disks=True)
PARTS = Parts(primary="toronto", ackers=("montreal",), leader="clinic", clinics=("clinic-1", "clinic-2"))
SITE = st.sampled_from(("clinic", "toronto", "montreal"))


def rounds(seed: int = 1, minutes: float = 10.0, lab: Lab = APART) -> tuple[Round, ...]:
    return plan(seed, minutes, tuple(Kind), lab)


def test_the_same_seed_is_the_same_attack_and_another_is_another() -> None:
    assert rounds(1) == rounds(1)
    assert rounds(1) != rounds(2)


def test_a_longer_attack_begins_as_the_shorter_one() -> None:
    """What a short run found is found by a long one of that seed too."""
    assert rounds(3, 10.0)[: len(rounds(3, 1.0))] == rounds(3, 1.0)


def test_every_kind_comes_once_before_one_comes_twice() -> None:
    firsts = [one.faults[0].kind for one in rounds(5)[: len(Kind)]]

    assert sorted(firsts) == sorted(Kind)


def test_every_kind_has_its_line_in_the_catalogue() -> None:
    assert set(CATALOGUE) == set(Kind)


def test_on_loopback_nothing_is_planned_that_needs_a_network() -> None:
    kinds = {fault.kind for one in rounds(1, 50.0, Lab()) for fault in one.faults}

    assert kinds == set(possible(Lab()))
    assert Kind.CUT_SITE not in kinds


@given(
    seed=st.integers(),
    minutes=st.floats(0.01, 5.0),
    network=st.booleans(),
    kinds=st.sets(st.sampled_from(Kind), min_size=1),
)
def test_every_round_of_every_seed_is_within_its_bounds(
    seed: int, minutes: float, network: bool, kinds: set[Kind]
) -> None:
    lab = Lab(has_network=network)
    if not kinds & set(possible(lab)):
        with pytest.raises(BadInput, match="none of these faults"):
            plan(seed, minutes, tuple(kinds), lab)
        return
    for one in plan(seed, minutes, tuple(kinds), lab):
        assert not problems(one)
        assert len(one.faults) <= TWO_MAX
        for fault in one.faults:
            entry = CATALOGUE[fault.kind]
            assert fault.kind in kinds
            assert entry.lasts_ms[0] <= fault.lasts_ms <= entry.lasts_ms[1]
            assert fault.part in entry.parts


@pytest.mark.parametrize("minutes", [0.0, -1.0, 51.0, float("nan")])
def test_an_attack_without_an_end_is_refused(minutes: float) -> None:
    with pytest.raises(BadInput, match="--minutes"):
        rounds(minutes=minutes)


A_FAULT = Fault(kind=Kind.KILL, part=Part.DATABASE, where=Where.PRIMARY, begins_ms=0.0, lasts_ms=100.0)
BEYOND = {
    "no fault": (),
    "three at once": (A_FAULT,) * 3,
    "for ever": (replace(A_FAULT, lasts_ms=1e9),),
    "too late": (replace(A_FAULT, begins_ms=1e9),),
    "a hundred times": (replace(A_FAULT, times=100),),
    "a negative choice": (replace(A_FAULT, which=-1),),
}


@pytest.mark.parametrize("faults", BEYOND.values(), ids=BEYOND.keys())
def test_a_round_from_a_file_is_judged_by_the_same_bounds(faults: tuple[Fault, ...]) -> None:
    assert problems(Round(pause_ms=0.0, faults=faults))


def hit(kind: Kind, where: Where = Where.PRIMARY, part: Part = Part.ALL, which: int = 0) -> tuple[Act, tuple[str, ...]]:
    fault = Fault(kind=kind, part=part, where=where, begins_ms=0.0, lasts_ms=0.0, which=which)
    found = resolve(fault, PARTS)
    return found.act, found.names


HITS = {
    "the primary's server": (hit(Kind.KILL, part=Part.DATABASE), (Act.KILL, ("db-toronto",))),
    "the acker's replicator": (
        hit(Kind.KILL, Where.ACKER, Part.REPLICATOR),
        (Act.KILL, ("replicator-montreal",)),
    ),
    "the third site's watchdog": (hit(Kind.FREEZE, Where.OTHER, Part.WATCHDOG), (Act.FREEZE, ("watchdog-clinic",))),
    "the controller that leads": (hit(Kind.KILL, Where.LEADER, Part.CONTROLLER), (Act.KILL, ("controller-clinic",))),
    "one of the clinics": (
        hit(Kind.FREEZE, Where.CLINIC, Part.HAPROXY, 1),
        (Act.FREEZE, ("haproxy-clinic-2",)),
    ),
    "a whole site": (hit(Kind.POWER, Where.ACKER), (Act.KILL, ("site:montreal",))),
    "a host": (hit(Kind.FREEZE_HOST), (Act.FREEZE, ("host:db-toronto",))),
    "all members": (hit(Kind.ZOOKEEPER_ALL), (Act.KILL, ("zookeeper-1", "zookeeper-2", "zookeeper-3"))),
    "a pair of which one is the primary": (hit(Kind.CUT_PAIR, Where.ACKER), (Act.CUT, ("montreal:toronto",))),
    "one direction towards it": (hit(Kind.CUT_ONE_WAY), (Act.CUT, ("all:toronto",))),
    "the other direction": (hit(Kind.CUT_ONE_WAY, which=1), (Act.CUT, ("toronto:all",))),
    "a change of primary": (hit(Kind.SWITCHOVER, Where.OTHER, Part.DATABASE), (Act.ASK, ("db-clinic",))),
}


@pytest.mark.parametrize(("found", "wanted"), HITS.values(), ids=HITS.keys())
def test_a_part_is_resolved_to_who_plays_it_now(found: object, wanted: object) -> None:
    assert found == wanted


@given(
    seed=st.integers(0, 10_000), primary=SITE, ackers=st.lists(SITE, max_size=2).map(tuple), leader=SITE,
)  # fmt: skip
def test_whatever_is_planned_the_lab_knows_its_names(
    seed: int, primary: str, ackers: tuple[str, ...], leader: str
) -> None:
    """Also when the acker is not known, or is the primary's own site, as in the moment after a failover."""
    parts = Parts(primary=primary, ackers=ackers, leader=leader, clinics=("clinic-1", "clinic-2"))
    for one in plan(seed, 1.0, tuple(Kind), APART):
        for fault in one.faults:
            found = resolve(fault, parts)
            if found.act is Act.CUT:
                options = {key: Only(str(value)) if key == "only" else value for key, value in found.options.items()}
                cuts.parse(found.names[0], Topology("198.18.0", 2).places, **options)  # type: ignore[arg-type]
            elif found.act in (Act.KILL, Act.FREEZE):
                assert all(select(name, lab_parts(2, 3)) for name in found.names)
            if fault.where in (Where.ACKER, Where.OTHER) and fault.kind is not Kind.ARCHIVE_BYTE:
                assert parts.site(fault.where, fault.which) != primary


def test_a_round_is_done_in_the_order_of_its_moments() -> None:
    storm = replace(A_FAULT, kind=Kind.RESTARTS, times=3, lasts_ms=300.0)
    second = replace(A_FAULT, begins_ms=150.0, lasts_ms=0.0)

    assert timeline(Round(pause_ms=0.0, faults=(storm, second))) == (
        Moment(0.0, 0, Turn.BEGIN), Moment(100.0, 0, Turn.AGAIN), Moment(150.0, 1, Turn.BEGIN), Moment(150.0, 1, Turn.END),
        Moment(200.0, 0, Turn.AGAIN), Moment(300.0, 0, Turn.END),
    )  # fmt: skip


@given(st.integers())
def test_everything_that_begins_ends_and_never_before_it_began(seed: int) -> None:
    for one in rounds(seed, 1.0):
        moments = timeline(one)
        for number in range(len(one.faults)):
            turns = [moment.turn for moment in moments if moment.fault == number]
            assert turns[0] is Turn.BEGIN
            assert turns[-1] is Turn.END
            assert turns.count(Turn.AGAIN) == one.faults[number].times - 1
