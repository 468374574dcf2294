"""The verdicts. Healthy by default, one line a situation; the properties hold for every history."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos import history
from chaos.history import Finding, Found, Outcome, Verdict, Write

MS = 1_000_000
KEPT, BROKEN, NOTHING = Verdict.KEPT, Verdict.BROKEN, Verdict.PROVED_NOTHING


def a_write(sequence: int = 1, *, at_ms: float | None = None, clinic: str = "north", **fields: object) -> Write:
    """An acknowledged insert of server 1 in epoch 1, unless said otherwise."""
    at = int((sequence if at_ms is None else at_ms) * MS)
    write = Write(
        clinic=clinic, sequence=sequence, token=f"{clinic}/{sequence}", kind="note", table="chartNote", invoked_at=at,
        acknowledged_at=at, outcome=Outcome.OK, server_id=1, epoch=1,
    )  # fmt: skip
    return replace(write, **fields)  # type: ignore[arg-type]


def unanswered(write: Write, outcome: Outcome = Outcome.UNKNOWN) -> Write:
    return replace(write, outcome=outcome, acknowledged_at=None)


def holding(*tokens: str, **touched: int) -> Found:
    return Found(tokens={token: tokens.count(token) for token in tokens}, touched=touched)


LOST = {
    "nothing written proves nothing": ([], holding("north/1"), NOTHING),
    "nothing acknowledged proves nothing": ([unanswered(a_write())], holding(), NOTHING),
    "acknowledged and there": ([a_write()], holding("north/1"), KEPT),
    "acknowledged and gone": ([a_write(1), a_write(2)], holding("north/1"), BROKEN),
    "unknown and gone is right": ([a_write(1), unanswered(a_write(2))], holding("north/1"), KEPT),
    "unknown and there is right": ([a_write(1), unanswered(a_write(2))], holding("north/1", "north/2"), KEPT),
    "refused and gone is right": ([a_write(1), unanswered(a_write(2), Outcome.FAILED)], holding("north/1"), KEPT),
    "a change that is there": ([a_write(7, changes="row")], holding("row", row=7), KEPT),
    "a change under a later one": ([a_write(7, changes="row")], holding("row", row=9), KEPT),
    "a change that was undone": ([a_write(7, changes="row")], holding("row", row=6), BROKEN),
    "a change whose row is gone": ([a_write(7, changes="row")], holding(), BROKEN),
}


@pytest.mark.parametrize(("writes", "found", "verdict"), LOST.values(), ids=LOST.keys())
def test_no_acknowledged_write_lost(writes: list[Write], found: Found, verdict: Verdict) -> None:
    assert history.no_acknowledged_write_lost(writes, found).verdict is verdict


def test_a_table_is_judged_alone() -> None:
    writes = [a_write(1), a_write(2, table="labInbox")]
    found = holding("north/1")

    assert history.no_acknowledged_write_lost(writes, found, tables={"labInbox"}).verdict is BROKEN
    assert history.no_acknowledged_write_lost(writes, found, tables={"chartNote"}).verdict is KEPT
    assert history.no_acknowledged_write_lost(writes, found, tables={"other"}).verdict is NOTHING


TWICE = {
    "nothing there proves nothing": ([a_write()], holding("other"), NOTHING),
    "once": ([a_write()], holding("north/1"), KEPT),
    "twice": ([a_write()], holding("north/1", "north/1"), BROKEN),
    "an unknown write may not be there twice either": ([unanswered(a_write())], holding("north/1", "north/1"), BROKEN),
    "somebody else's row does not count": ([a_write()], holding("north/1", "x", "x"), KEPT),
}


@pytest.mark.parametrize(("writes", "found", "verdict"), TWICE.values(), ids=TWICE.keys())
def test_nothing_applied_twice(writes: list[Write], found: Found, verdict: Verdict) -> None:
    assert history.nothing_applied_twice(writes, found).verdict is verdict


NEW: dict[str, Any] = {"server_id": 2, "epoch": 2}
WRITERS = {
    "nothing acknowledged proves nothing": ([unanswered(a_write())], NOTHING),
    "one server, one epoch": ([a_write(1), a_write(2)], KEPT),
    "a new server in a new epoch": ([a_write(1), a_write(2, **NEW)], KEPT),
    "two servers in one epoch": ([a_write(1), a_write(2, server_id=2)], BROKEN),
    "the old epoch after the new one": ([a_write(1), a_write(2, **NEW), a_write(3)], BROKEN),
    "the old epoch after the new one, at another clinic": ([a_write(2, **NEW), a_write(3, clinic="south")], BROKEN),
    "the same server opened again in a new epoch": ([a_write(1), a_write(2, epoch=2), a_write(3)], KEPT),
    "an unanswered write of the old epoch is nothing": ([a_write(2, **NEW), unanswered(a_write(3))], KEPT),
    "no epoch known proves nothing": ([a_write(1, epoch=None)], NOTHING),
    "one epoch unknown proves nothing": ([a_write(1), a_write(2, epoch=None)], NOTHING),
    "two writers are broken, whatever else is unknown": ([a_write(1), a_write(2, server_id=2), a_write(3, epoch=None)], BROKEN),
}  # fmt: skip


@pytest.mark.parametrize(("writes", "verdict"), WRITERS.values(), ids=WRITERS.keys())
def test_one_writer_per_epoch(writes: list[Write], verdict: Verdict) -> None:
    assert history.one_writer_per_epoch(writes).verdict is verdict


def test_writers_are_listed_by_epoch_with_the_unknown_last() -> None:
    writes = [a_write(4, epoch=None), a_write(3, **NEW), a_write(1), a_write(2)]

    assert list(history.writers_per_epoch(writes).items()) == [(1, (1,)), (2, (2,)), (None, (1,))]


def at(*times_ms: float, clinic: str = "north") -> list[Write]:
    return [a_write(number, at_ms=time, clinic=clinic) for number, time in enumerate(times_ms, start=1)]


OUTAGES = {
    "the gap that spans the fault": (at(0, 10, 110, 120), 50, 60, 100.0),
    "not a longer one that was over before": (at(0, 500, 510, 530, 540), 520, 525, 20.0),
    "not a longer one that began later": (at(0, 10, 30, 40, 900), 20, 35, 20.0),
    "the longest when service stumbled twice": (at(0, 10, 110, 310, 320), 50, 200, 200.0),
    "never back: not known": (at(0, 10), 50, 60, None),
    "nothing before: not known": (at(100, 110), 50, 105, None),
    "nothing at all: not known": ([], 50, 60, None),
    "another clinic's writes do not help": (at(0, 200) + at(*range(0, 200, 10), clinic="south"), 50, 60, 200.0),
}


@pytest.mark.parametrize(("writes", "start", "end", "outage"), OUTAGES.values(), ids=OUTAGES.keys())
def test_the_outage_of_a_clinic(writes: list[Write], start: float, end: float, outage: float | None) -> None:
    assert history.outage_ms(writes, "north", start=int(start * MS), end=int(end * MS)) == outage


def test_every_clinic_must_write_again() -> None:
    writes = at(1, 10) + at(1, clinic="south")

    assert history.writes_again(writes, ["north"], after=5 * MS).verdict is KEPT
    assert history.writes_again(writes, ["north", "south"], after=5 * MS).verdict is BROKEN
    assert history.writes_again(writes, [], after=0).verdict is NOTHING


def test_what_an_old_primary_acknowledged_after_an_instant_is_found() -> None:
    writes = [a_write(1), a_write(2, server_id=2), a_write(3), unanswered(a_write(4))]

    assert [write.sequence for write in history.acknowledged_by(writes, 1, after=2 * MS)] == [3]


CHECKSUMS = {
    "one server alone proves nothing": ({"a": {"t": 1}}, NOTHING),
    "no table proves nothing": ({"a": {}, "b": {}}, NOTHING),
    "equal": ({"a": {"t": 1, "u": 2}, "b": {"u": 2, "t": 1}}, KEPT),
    "different": ({"a": {"t": 1}, "b": {"t": 2}}, BROKEN),
    "missing on one": ({"a": {"t": 1, "u": 2}, "b": {"t": 1}}, BROKEN),
    "unknown everywhere is not equal": ({"a": {"t": None}, "b": {"t": None}}, BROKEN),
}


@pytest.mark.parametrize(("checksums", "verdict"), CHECKSUMS.values(), ids=CHECKSUMS.keys())
def test_equal_checksums(checksums: dict[str, dict[str, int | None]], verdict: Verdict) -> None:
    assert history.equal_checksums(checksums).verdict is verdict


def test_a_run_that_proved_nothing_is_not_a_pass() -> None:
    kept, nothing = Finding(verdict=KEPT, why=""), Finding(verdict=NOTHING, why="")

    assert history.all_kept([kept, kept])
    assert not history.all_kept([kept, nothing])
    assert not history.all_kept([])


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert history.named([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"


histories = st.lists(
    st.builds(
        lambda sequence, gap, server, outcome: (sequence, gap, server, outcome),
        st.integers(1, 10**6), st.integers(0, 5_000), st.integers(1, 3), st.sampled_from(Outcome),
    ),
    max_size=40, unique_by=lambda item: item[0],
).map(
    lambda items: [
        a_write(sequence, at_ms=gap, server_id=server) if outcome is Outcome.OK
        else unanswered(a_write(sequence, at_ms=gap, server_id=server), outcome)
        for sequence, gap, server, outcome in items
    ]
)  # fmt: skip


@given(histories)
def test_a_database_that_holds_every_token_lost_nothing(writes: list[Write]) -> None:
    found = holding(*(write.token for write in writes))

    assert history.lost(writes, found) == ()
    assert history.nothing_applied_twice(writes, found).verdict is not BROKEN


@given(histories, st.randoms(use_true_random=False))
def test_exactly_the_acknowledged_tokens_that_are_not_there_are_lost(writes: list[Write], chance: object) -> None:
    kept = [write.token for write in writes if chance.random() < 0.5]  # type: ignore[attr-defined]
    missing = {write.token for write in history.lost(writes, holding(*kept))}

    assert missing == {write.token for write in writes if write.outcome is Outcome.OK} - set(kept)


@given(histories)
def test_an_epoch_has_two_writers_exactly_when_two_servers_acknowledged(writes: list[Write]) -> None:
    servers = {write.server_id for write in writes if write.acknowledged}
    expected = {0: NOTHING, 1: KEPT}.get(len(servers), BROKEN)

    assert history.one_writer_per_epoch(writes).verdict is expected


@given(histories, st.integers(0, 5_000), st.integers(0, 5_000))
def test_an_outage_is_a_gap_between_two_acknowledgements(writes: Sequence[Write], one: int, two: int) -> None:
    start, end = sorted((one * MS, two * MS))
    outage = history.outage_ms(writes, "north", start=start, end=end)
    times = [write.acknowledged_at for write in history.in_order(writes)]

    assert outage is None or outage * MS in {later - earlier for earlier in times for later in times}  # type: ignore[operator]
