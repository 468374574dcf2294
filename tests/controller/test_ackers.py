"""Who acknowledges: a table of situations, and a model in which no order of events forgets what was acknowledged."""

import random
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest

from cluster.errors import Bug
from cluster.records import Acks, DurabilityRecord
from controller.ackers import HOLD_MS, acker_repair, ackers_of_epoch
from controller.choose import incomplete, reachable_target
from controller.decide import warnings
from controller.invariants import check_repair
from controller.model import PlanRecord, ReplicatorFacts, View
from controller.plan import NameAckers, ReturnToSync, SettleAckers
from controller.readiness import Code, readiness
from tests.controller.builders import (
    CLINIC,
    SINCE,
    TORONTO,
    a_durability,
    a_node,
    a_plan,
    a_replicator,
    a_view,
    an_epoch,
    sealed,
)  # fmt: skip

BOTH = ("toronto", "montreal")


def facts(
    site: str, *, absent_ms: float | None = None, ms: dict[str, float] | None = None, **report: Any
) -> ReplicatorFacts:
    return replace(a_replicator(site, absent_ms=absent_ms, **report), **(ms or {}))  # type: ignore[arg-type]


REFUSED = facts("toronto", ms={"refused_ms": 30.0, "silent_ms": 30.0, "stale_ms": 700.0})
RENEWED = facts("toronto", ms={"refused_ms": 2_000.0, "silent_ms": 2_000.0, "stale_ms": 400.0})
FROZEN = facts("toronto", ms={"silent_ms": 2_000.0, "stale_ms": 2_600.0})
BRIEFLY_SILENT = facts("toronto", ms={"silent_ms": 1_900.0, "stale_ms": 2_600.0})
SLOW_ZOOKEEPER = facts("toronto", ms={"stale_ms": 5_000.0})
DISK_FULL = facts("toronto", ms={"idle_ms": 2_000.0}, acknowledging=False, connected=False, why="less than 64 MiB free")
GONE = facts("toronto", absent_ms=0.0)
OLD = HOLD_MS + 1.0


def one(toronto: ReplicatorFacts, *, age_ms: float = OLD, **changes: Any) -> View:
    return a_view(replicator_toronto=toronto, durability_age_ms=age_ms, **changes)


def under_all(*ackers: str, degrade_ms: float | None = None, age_ms: float = OLD, **changes: Any) -> View:
    durability = a_durability(ackers=ackers, acks=Acks.ALL)
    hears = {f"replicator_{site}": facts(site, hears=tuple(other for other in BOTH if other != site)) for site in BOTH}
    view = a_view(durability=durability, durability_age_ms=age_ms, **{**hears, **changes})
    return replace(view, policy=replace(view.policy, acks=Acks.ALL, acks_all_degrade_after_ms=degrade_ms))


def settings_say(acks: Acks, view: View) -> View:
    return replace(view, policy=replace(view.policy, acks=acks))


SITUATIONS: dict[str, tuple[View, str]] = {
    "all is well": (a_view(), ""),
    "its process is gone: another at once": (one(REFUSED), "one montreal, former toronto"),
    "its process is gone, though it was named just now": (one(REFUSED, age_ms=0.0), "one montreal, former toronto"),
    "refused, and it renews its record: it lives": (one(RENEWED), ""),
    "frozen: silent to us and to ZooKeeper": (one(FROZEN), "one montreal, former toronto"),
    "silent for a moment": (one(BRIEFLY_SILENT), ""),
    "its record ages, it answers us: ZooKeeper is slow": (one(SLOW_ZOOKEEPER), ""),
    "its disk is full": (one(DISK_FULL), "one montreal, former toronto"),
    "its disk is full, named a moment ago: it does not ping-pong": (one(DISK_FULL, age_ms=HOLD_MS - 1), ""),
    "it has only just been named": (one(facts("toronto", ms={"idle_ms": 60_000.0}, acknowledging=False), age_ms=900.0), ""),
    "its record is gone": (one(GONE), "one montreal, former toronto"),
    "nobody else hears the primary": (one(GONE, replicator_montreal=facts("montreal", connected=False)), ""),
    "the other lacks the end of an epoch": (one(GONE, replicator_montreal=facts("montreal", whole=False)), ""),
    "the other has sealed": (one(GONE, replicator_montreal=facts("montreal", sealed_epoch=1)), ""),
    "the nearer one is back: who acknowledges goes on": (
        a_view(durability=a_durability(ackers=("montreal",)), durability_age_ms=1e9), ""),
    "former lives and acts on the new record: settled": (
        a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
               replicator_toronto=facts("toronto", serial=3, acknowledging=False),
               replicator_montreal=facts("montreal", acknowledging=True)), "settled"),
    "former is settled only once the primary names no older record": (
        a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
               clinic=a_node("clinic", serial=2), replicator_toronto=facts("toronto", absent_ms=1_000.0)), ""),
    "former lives and has not said so": (
        a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
               replicator_toronto=facts("toronto", serial=2)), ""),
    "former is dead and its lease may hold": (
        a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
               replicator_toronto=facts("toronto", absent_ms=999.0)), ""),
    "former is dead and its lease has ended": (
        a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
               replicator_toronto=facts("toronto", absent_ms=1_000.0)), "settled"),
    "one becomes all": (settings_say(Acks.ALL, a_view()), "all toronto montreal, former toronto"),
    "one becomes all, a site is away: without it": (
        settings_say(Acks.ALL, a_view(replicator_montreal=facts("montreal", absent_ms=1.0))), "all toronto, former"),
    "all becomes one: who is sound and nearest": (
        settings_say(Acks.ONE, under_all(*BOTH)), "one toronto, former"),
    "all becomes one, the nearest is gone": (
        settings_say(Acks.ONE, under_all(*BOTH, replicator_toronto=GONE)), "one montreal, former"),
    "all: one is lost: commits wait": (under_all(*BOTH, replicator_toronto=GONE), ""),
    "all: one is lost, waiting has an end": (
        under_all(*BOTH, degrade_ms=2_000, replicator_toronto=facts("toronto", absent_ms=2_000.0)), "all montreal, former"),
    "all: one is lost, not long enough": (
        under_all(*BOTH, degrade_ms=2_000, replicator_toronto=facts("toronto", absent_ms=1_999.0)), ""),
    "all: it is back and level": (under_all("montreal"), "all toronto montreal, former montreal"),
    "all: it is back, just after it was left out": (under_all("montreal", age_ms=HOLD_MS - 1), ""),
    "all: it is back and far behind": (
        under_all("montreal", replicator_montreal=facts("montreal", durable="0-1-9000", hears=("toronto",))), ""),
    "all: it is back, they do not hear each other": (
        under_all("montreal", replicator_montreal=facts("montreal", hears=())), ""),
    "all of one, it is lost and the other is there: no fewer": (
        under_all("montreal", replicator_montreal=facts("montreal", absent_ms=0.0)), "all toronto, former montreal"),
    "all: they only wait for each other: strict": (
        under_all(*BOTH, replicator_toronto=facts("toronto", ms={"idle_ms": 9e9}, acknowledging=False, waits_for=BOTH[1:]),
                  replicator_montreal=facts("montreal", ms={"idle_ms": 9e9}, acknowledging=False, waits_for=BOTH[:1])), ""),
    "all: they only wait for each other, waiting has an end": (
        under_all(*BOTH, degrade_ms=3_000,
                  replicator_toronto=facts("toronto", ms={"idle_ms": 9e9}, acknowledging=False, waits_for=BOTH[1:]),
                  replicator_montreal=facts("montreal", ms={"idle_ms": 9e9}, acknowledging=False, waits_for=BOTH[:1])),
        "all toronto, former"),
}  # fmt: skip


def told(repair: NameAckers | SettleAckers | ReturnToSync | None) -> str:
    if repair is None:
        return ""
    if isinstance(repair, SettleAckers):
        return "settled"
    record = repair.durability
    former = " ".join(" or ".join(group) for group in record.former)
    return f"{record.acks.value} {' '.join(record.ackers)}, former {former}".rstrip()


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_has_its_ackers(name: str) -> None:
    view, expected = SITUATIONS[name]
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)
    if repair is not None:
        check_repair(view, repair)

    assert told(repair) == expected


def test_a_change_says_why() -> None:
    view = one(DISK_FULL)
    assert view.epoch is not None
    repair = acker_repair(view, view.epoch, SINCE)

    assert repair is not None
    assert repair.durability.why == "toronto: less than 64 MiB free"
    assert repair.durability.serial == 1


def test_a_flapping_acker_is_left_and_not_returned_to() -> None:
    """Down and up again twenty times: one change, and then the other one stays."""
    view, changes = one(REFUSED), 0
    for _ in range(20):
        for toronto in (REFUSED, facts("toronto", serial=1), GONE, facts("toronto", serial=1)):
            view = replace(view, replicators=(view.replicators[0], toronto, view.replicators[2]), durability_age_ms=OLD)
            assert view.epoch is not None
            repair = acker_repair(view, view.epoch, SINCE)
            if isinstance(repair, NameAckers):
                changes += 1
            if repair is not None:
                view = replace(view, durability=repair.durability)

    assert changes == 1
    assert view.durability is not None
    assert (view.durability.ackers, view.durability.former) == (("montreal",), ())


def test_a_record_that_would_forget_an_older_word_is_a_bug() -> None:
    view = a_view()
    assert view.durability is not None
    forgetting = replace(view.durability, ackers=("montreal",), serial=1)

    with pytest.raises(Bug, match="would not be asked"):
        check_repair(view, NameAckers(node=CLINIC, durability=forgetting))
    with pytest.raises(Bug, match="own site"):
        check_repair(view, NameAckers(node=CLINIC, durability=replace(forgetting, ackers=("clinic",))))
    with pytest.raises(Bug, match="not the one after"):
        check_repair(view, NameAckers(node=CLINIC, durability=replace(forgetting, serial=2)))


def test_settling_what_may_still_acknowledge_is_a_bug() -> None:
    view = a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3))
    assert view.durability is not None

    with pytest.raises(Bug, match="may still acknowledge"):
        check_repair(view, SettleAckers(node=CLINIC, durability=replace(view.durability, former=(), serial=4)))


def test_settling_what_the_primary_could_still_confirm_is_a_bug() -> None:
    view = a_view(durability=a_durability(ackers=("montreal",), former=(("toronto",),), serial=3),
                  clinic=a_node("clinic", serial=None), replicator_toronto=facts("toronto", absent_ms=1_000.0))  # fmt: skip
    assert view.durability is not None

    with pytest.raises(Bug, match="by a grant"):
        check_repair(view, SettleAckers(node=CLINIC, durability=replace(view.durability, former=(), serial=4)))


def test_the_first_epoch_under_all_names_every_site_that_reports() -> None:
    view = settings_say(Acks.ALL, a_view(replicator_montreal=facts("montreal", absent_ms=1.0)))

    assert ackers_of_epoch(view, CLINIC) == ("toronto",)
    assert ackers_of_epoch(settings_say(Acks.ALL, a_view()), CLINIC) == BOTH


def test_when_nobody_reports_the_site_that_has_just_failed_is_named_last() -> None:
    """Commits wait for who is named: it used to be the nearest, the old primary's own, which was cut off."""
    silent = a_view(
        replicator_clinic=facts("clinic", absent_ms=1.0), replicator_montreal=facts("montreal", absent_ms=1.0)
    )

    assert ackers_of_epoch(silent, TORONTO) == ("montreal",)


def test_an_acker_that_lacks_an_earlier_epochs_end_is_not_named_if_another_does_not() -> None:
    view = a_view(replicator_toronto=facts("toronto", whole=False))

    assert ackers_of_epoch(view, CLINIC, answered=BOTH) == ("montreal",)


def test_what_is_not_settled_is_a_reason_against_a_failover_while_its_site_is_silent() -> None:
    record = a_durability(ackers=("montreal",), former=(("toronto",),), serial=3)
    acking = facts("montreal", acknowledging=True)
    silent = a_view(durability=record, replicator_toronto=facts("toronto", absent_ms=1.0), replicator_montreal=acking)

    (reason,) = (one for one in readiness(silent) if "toronto acknowledged before" in one.why)
    assert reason.code is Code.ACKERS_NOT_SETTLED


def test_all_that_is_not_all_is_said() -> None:
    assert "leaves out toronto" in " ".join(warnings(under_all("montreal")))


# -- the model -------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A primary that writes numbers, two sites that receive and acknowledge as the record they have read says."""

    view: View
    head: int = 0
    acknowledged: int = 0
    durable: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOTH, 0))
    read: dict[str, DurabilityRecord] = field(default_factory=dict)
    ill: set[str] = field(default_factory=set)

    @property
    def record(self) -> DurabilityRecord:
        assert self.view.durability is not None
        return self.view.durability

    def act(self, action: str, site: str) -> None:
        match action:
            case "write":
                self.head += 1
            case "receive":
                self.durable[site] = min(self.head, self.durable[site] + 1)
            case "acknowledge":
                self.acknowledge(site)
            case "read":
                self.read[site] = self.record
            case "decide":
                self.decide()
            case "ill":
                self.ill.add(site)
            case "well":
                self.ill.discard(site)
            case _:
                self.view = settings_say(Acks(action), self.view)

    def acknowledge(self, site: str) -> None:
        record = self.read[site]
        if site not in record.ackers:
            return
        having = record.ackers if record.acks is Acks.ALL else (site,)
        self.acknowledged = max(self.acknowledged, min(self.durable[one] for one in having))

    def decide(self) -> None:
        replicators = tuple(self._facts(site) for site in ("clinic", *BOTH))
        view = replace(self.view, replicators=replicators, durability_age_ms=OLD)
        repair = acker_repair(view, an_epoch(), SINCE)
        if repair is None:
            return
        check_repair(view, repair)
        record = repair.durability
        if isinstance(repair, SettleAckers):
            if min(self.durable[site] for site in record.ackers) < self.head:
                return
            record = replace(record, floor=position(self.head))
        self.view = replace(view, durability=record)

    def _facts(self, site: str) -> ReplicatorFacts:
        if site == "clinic":
            return facts("clinic")
        ms = {"refused_ms": 1.0, "stale_ms": 1.0} if site in self.ill else {}
        hears = tuple(other for other in BOTH if other != site)
        return facts(site, ms=ms, serial=self.read[site].serial, durable=position(self.durable[site]), hears=hears)

    def require_nothing_lost(self) -> None:
        """Whoever survives: if the rule lets a failover go on, it has all that was acknowledged."""
        for count in range(len(BOTH) + 1):
            for left in combinations(BOTH, count):
                plan: PlanRecord = a_plan(sealed=sealed(**{site: position(self.durable[site]) for site in left}))
                if incomplete(self.view, plan) is None:
                    target = reachable_target(self.view, plan)
                    assert target is not None
                    assert target.sequence(0) >= self.acknowledged, (left, self)


def position(number: int) -> str:
    return f"0-1-{number}" if number else ""


ACTIONS = ("write", "receive", "receive", "acknowledge", "acknowledge", "read", "read", "decide", "decide", "ill", "well",
           "one", "all")  # fmt: skip
WALKS, STEPS = 75, 60


@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_events_lets_a_failover_forget_an_acknowledgement(seed: int) -> None:
    """Random walks rather than shrinking examples: it takes a dozen events in the right order to lose something."""
    chance = random.Random(seed)
    for _ in range(WALKS):
        acks, ackers = chance.choice([(Acks.ONE, ("toronto",)), (Acks.ONE, ("montreal",)), (Acks.ALL, BOTH)])
        record = a_durability(acks=acks, ackers=ackers)
        view = a_view(durability=record)
        view = replace(view, policy=replace(view.policy, acks=acks, acks_all_degrade_after_ms=1.0))
        model = Model(view, read=dict.fromkeys(BOTH, record))
        for _ in range(STEPS):
            model.act(chance.choice(ACTIONS), chance.choice(BOTH))
            model.require_nothing_lost()
