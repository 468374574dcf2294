"""The verdicts of an attack: kept, broken, and proved nothing; the properties hold for every history of a right server."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.attack import verdicts
from chaos.attack.verdicts import Append, Read, Record, Recovery, Total
from chaos.history import Finding, Outcome, Verdict
from tests.traffic.test_history import a_write, unanswered

KEPT, BROKEN, NOTHING = Verdict.KEPT, Verdict.BROKEN, Verdict.PROVED_NOTHING
MS = 1_000_000
LIST = "list"


def added(value: int, at: int = 0, answered: int | None = 1, register: str = LIST) -> Append:
    """Acknowledged one instant after it was sent, unless said otherwise; `answered` None is an unknown outcome."""
    outcome = Outcome.UNKNOWN if answered is None else Outcome.OK
    return Append(register=register, value=value, invoked_at=at, outcome=outcome,
                  answered_at=None if answered is None else at + answered)  # fmt: skip


def read(*values: int, at: int = 10, register: str = LIST) -> Read:
    return Read(clinic="north", register=register, invoked_at=at, answered_at=at + 1, values=frozenset(values))


# -- nothing lost ----------------------------------------------------------------------------------------------------

LOST = {
    "nothing appended proves nothing": ([], {LIST: {1}}, NOTHING),
    "nothing acknowledged proves nothing": ([added(1, answered=None)], {}, NOTHING),
    "there": ([added(1), added(2)], {LIST: {1, 2}}, KEPT),
    "gone": ([added(1), added(2)], {LIST: {1}}, BROKEN),
    "its list is gone": ([added(1)], {}, BROKEN),
    "in another list": ([added(1)], {"other": {1}}, BROKEN),
    "unknown and gone is right": ([added(1), added(2, answered=None)], {LIST: {1}}, KEPT),
    "unknown and there is right": ([added(1), added(2, answered=None)], {LIST: {1, 2}}, KEPT),
}


@pytest.mark.parametrize(("appends", "final", "verdict"), LOST.values(), ids=LOST.keys())
def test_no_append_lost(appends: list[Append], final: dict[str, set[int]], verdict: Verdict) -> None:
    assert verdicts.no_append_lost(appends, final).verdict is verdict


# -- reads -----------------------------------------------------------------------------------------------------------

VISIBLE = {
    "no read proves nothing": ([added(1)], [], NOTHING),
    "a read before anything was acknowledged proves nothing": ([added(1, at=20)], [read(at=10)], NOTHING),
    "a read of another list proves nothing": ([added(1)], [read(register="other")], NOTHING),
    "seen": ([added(1)], [read(1)], KEPT),
    "not seen": ([added(1)], [read()], BROKEN),
    "not seen by a later one": ([added(1)], [read(1), read(at=20)], BROKEN),
    "acknowledged while the read was on its way: both are right": ([added(1), added(2, at=9, answered=5)], [read(1)], KEPT),
    "unknown, seen or not": ([added(1), added(2, answered=None)], [read(1), read(1, 2)], KEPT),
    "more than is known of": ([added(1)], [read(1, 7)], KEPT),
}  # fmt: skip


@pytest.mark.parametrize(("appends", "reads", "verdict"), VISIBLE.values(), ids=VISIBLE.keys())
def test_what_was_acknowledged_is_visible(appends: list[Append], reads: list[Read], verdict: Verdict) -> None:
    assert verdicts.acknowledged_is_visible(appends, reads).verdict is verdict


STAYS = {
    "no read proves nothing": ([], {LIST: {1}}, NOTHING),
    "an empty read proves nothing": ([read()], {}, NOTHING),
    "it stays": ([read(1)], {LIST: {1, 2}}, KEPT),
    "it is gone": ([read(1, 2)], {LIST: {1}}, BROKEN),
}


@pytest.mark.parametrize(("reads", "final", "verdict"), STAYS.values(), ids=STAYS.keys())
def test_what_was_read_stays(reads: list[Read], final: dict[str, set[int]], verdict: Verdict) -> None:
    """Also what nobody had acknowledged: a clinic acted on what it saw."""
    assert verdicts.what_was_read_stays(reads, final).verdict is verdict


# -- a right server, and one that is wrong in one place --------------------------------------------------------------


@st.composite
def right_histories(draw: st.DrawFn) -> tuple[list[Append], list[Read], dict[str, set[int]]]:
    """One list of a server that does one thing after the other, each somewhere between its sending and its answer.

    Answers may be lost; what was done then may be known to nobody, and is there.
    """
    appends, reads, held, instant = [], [], set[int](), 0
    for value in range(draw(st.integers(0, 30))):
        instant += draw(st.integers(2, 50))
        early, late = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        if draw(st.booleans()):
            reads.append(Read(clinic="north", register=LIST, invoked_at=instant - early, answered_at=instant + late,
                              values=frozenset(held)))  # fmt: skip
            continue
        outcome = draw(st.sampled_from(Outcome))
        answered = instant + late if outcome is Outcome.OK else None
        appends.append(
            Append(register=LIST, value=value, invoked_at=instant - early, answered_at=answered, outcome=outcome)
        )
        if outcome is Outcome.OK or (outcome is Outcome.UNKNOWN and draw(st.booleans())):
            held.add(value)
    return draw(st.permutations(appends)), draw(st.permutations(reads)), {LIST: held}


def all_of(appends: Sequence[Append], reads: Sequence[Read], final: dict[str, set[int]]) -> list[Finding]:
    return [
        verdicts.no_append_lost(appends, final),
        verdicts.acknowledged_is_visible(appends, reads),
        verdicts.what_was_read_stays(reads, final),
    ]


@given(right_histories())
def test_a_right_server_is_never_called_broken(history: tuple[list[Append], list[Read], dict[str, set[int]]]) -> None:
    assert not [finding.why for finding in all_of(*history) if finding.verdict is BROKEN]


@given(right_histories(), st.data())
def test_one_acknowledged_value_less_at_the_end_is_called_broken(
    history: tuple[list[Append], list[Read], dict[str, set[int]]], data: st.DataObject
) -> None:
    appends, _, final = history
    promised = [one.value for one in appends if one.acknowledged]
    if not promised:
        assert verdicts.no_append_lost(appends, final).verdict is NOTHING
        return
    gone = data.draw(st.sampled_from(promised))

    assert verdicts.no_append_lost(appends, {LIST: final[LIST] - {gone}}).verdict is BROKEN


@given(right_histories(), st.data())
def test_one_acknowledged_value_less_in_a_later_read_is_called_broken(
    history: tuple[list[Append], list[Read], dict[str, set[int]]], data: st.DataObject
) -> None:
    appends, reads, final = history
    promised = [one for one in appends if one.answered_at is not None]
    if not promised:
        return
    gone = data.draw(st.sampled_from(promised))
    stale = read(*(final[LIST] - {gone.value}), at=(gone.answered_at or 0) + 1)

    assert verdicts.acknowledged_is_visible(appends, data.draw(st.permutations([*reads, stale]))).verdict is BROKEN


# -- one epoch at a time ---------------------------------------------------------------------------------------------

OLD = a_write(1, at_ms=10)
NEWER = a_write(2, at_ms=20, server_id=2, epoch=2)
EPOCHS = {
    "nothing acknowledged proves nothing": ([unanswered(a_write())], NOTHING),
    "no epoch known proves nothing": ([a_write(epoch=None)], NOTHING),
    "one unplaced proves nothing": ([OLD, a_write(3, epoch=None)], NOTHING),
    "one unplaced of many says so, and that is all": ([OLD, *(a_write(one, at_ms=11) for one in range(4, 150)), a_write(3, epoch=None)], KEPT),
    "one after the other": ([OLD, NEWER], KEPT),
    "two servers in one epoch": ([OLD, replace(NEWER, epoch=1)], BROKEN),
    "sent after the newer one's first answer": ([OLD, NEWER, a_write(3, at_ms=30)], BROKEN),
    "an old answer that came late": ([NEWER, a_write(3, acknowledged_at=30 * MS, invoked_at=15 * MS)], KEPT),
    "the same server opened again under a newer number": ([a_write(1, at_ms=10, epoch=2), a_write(2, at_ms=20)], KEPT),
    "unanswered writes of the old one are nothing": ([NEWER, unanswered(a_write(3, at_ms=30))], KEPT),
}  # fmt: skip


@pytest.mark.parametrize(("writes", "verdict"), EPOCHS.values(), ids=EPOCHS.keys())
def test_one_epoch_at_a_time(writes: list[object], verdict: Verdict) -> None:
    assert verdicts.one_epoch_at_a_time(writes).verdict is verdict  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), min_size=1, max_size=30), st.data())
def test_epochs_that_follow_each_other_are_kept_in_any_order_and_with_late_answers(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    writes, instant = [], 0
    for number, (gap, late) in enumerate(steps):
        instant += gap + 1
        epoch = 1 + number // 7
        writes.append(
            a_write(number, invoked_at=instant, acknowledged_at=instant + late, epoch=epoch, server_id=epoch % 3)
        )
    assert verdicts.one_epoch_at_a_time(data.draw(st.permutations(writes))).verdict is KEPT
    begun = min((write.acknowledged_at or 0 for write in writes if write.epoch == 2), default=None)
    if begun is None:
        return
    ghost = a_write(99, invoked_at=begun + 1, acknowledged_at=begun + 2, epoch=1, server_id=1)

    assert verdicts.one_epoch_at_a_time(data.draw(st.permutations([*writes, ghost]))).verdict is BROKEN


# -- totals ----------------------------------------------------------------------------------------------------------


def total(amount: int) -> Total:
    return Total(clinic="north", invoked_at=1, amount=amount)


TOTALS = {
    "no transfer proves nothing": ([total(100)], 0, NOTHING),
    "no read proves nothing": ([], 5, NOTHING),
    "constant": ([total(100), total(100)], 5, KEPT),
    "some was lost": ([total(100), total(99)], 5, BROKEN),
    "some was made, though nobody was told": ([total(101)], 0, BROKEN),
}


@pytest.mark.parametrize(("totals", "transfers", "verdict"), TOTALS.values(), ids=TOTALS.keys())
def test_totals_constant(totals: list[Total], transfers: int, verdict: Verdict) -> None:
    assert verdicts.totals_constant(totals, 100, transfers=transfers).verdict is verdict


# -- what the history says -------------------------------------------------------------------------------------------

NODES = {1: "db-clinic", 2: "db-toronto"}
TOLD = Record(epoch=2, kind="failover", new="db-toronto", proof="lease ended", outcome="done")
HISTORIES = {
    "no second epoch proves nothing": ([OLD], [], NOTHING),
    "told": ([OLD, NEWER], [TOLD], KEPT),
    "an epoch that nobody wrote in may be told too": ([OLD, NEWER], [TOLD, replace(TOLD, epoch=3)], KEPT),
    "not told": ([OLD, NEWER], [], BROKEN),
    "another node": ([OLD, NEWER], [replace(TOLD, new="db-montreal")], BROKEN),
    "without a proof": ([OLD, NEWER], [replace(TOLD, proof=None)], BROKEN),
    "told twice": ([OLD, NEWER], [TOLD, TOLD], BROKEN),
    "rolled back, and then done under the same number": (
        [OLD, NEWER],
        [replace(TOLD, new="db-clinic", proof=None, outcome="rolled back: x"), TOLD],
        KEPT,
    ),
    "rolled back to the old primary in an epoch of its own": (
        [OLD, a_write(2, at_ms=20, epoch=2)],
        [replace(TOLD, new="db-clinic", proof=None, outcome="rolled back: x")],
        KEPT,
    ),
    "by a server that nobody knows": ([OLD, replace(NEWER, server_id=9)], [TOLD], BROKEN),
}


@pytest.mark.parametrize(("writes", "records", "verdict"), HISTORIES.values(), ids=HISTORIES.keys())
def test_the_history_tells_what_happened(writes: list[object], records: list[Record], verdict: Verdict) -> None:
    assert verdicts.history_tells(writes, records, NODES).verdict is verdict  # type: ignore[arg-type]


# -- recovery --------------------------------------------------------------------------------------------------------

ROUNDS = {
    "no fault proves nothing": ([], NOTHING),
    "in time": ([Recovery(what="kill", writing_ms=10.0, whole_ms=100.0)], KEPT),
    "clinics too late": ([Recovery(what="kill", writing_ms=51.0, whole_ms=100.0)], BROKEN),
    "whole too late": ([Recovery(what="kill", writing_ms=10.0, whole_ms=101.0)], BROKEN),
    "never writing": ([Recovery(what="kill", writing_ms=None, whole_ms=None)], BROKEN),
    "one of many never whole": (
        [Recovery(what="kill", writing_ms=1.0, whole_ms=1.0), Recovery(what="cut", writing_ms=1.0, whole_ms=None)],
        BROKEN,
    ),
}


@pytest.mark.parametrize(("rounds", "verdict"), ROUNDS.values(), ids=ROUNDS.keys())
def test_it_recovers_by_itself(rounds: list[Recovery], verdict: Verdict) -> None:
    assert verdicts.recovers_by_itself(rounds, writing_ms_max=50.0, whole_ms_max=100.0).verdict is verdict
