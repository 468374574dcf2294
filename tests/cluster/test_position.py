"""GTID positions: text, order and distance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import BadInput
from cluster.position import U32_MAX, U64_MAX, Gtid, Position

gtids = st.builds(Gtid, st.integers(0, U32_MAX), st.integers(0, U32_MAX), st.integers(0, U64_MAX))
few_domains = st.builds(Gtid, st.integers(0, 3), st.integers(1, 3), st.integers(1, 50))
positions = st.builds(Position.of, st.lists(gtids, max_size=6))
near_positions = st.builds(Position.of, st.lists(few_domains, max_size=6))


@given(gtids)
def test_a_gtid_is_read_back_as_it_was_written(gtid: Gtid) -> None:
    assert Gtid.parse(str(gtid)) == gtid


@given(positions)
def test_a_position_is_read_back_as_it_was_written(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert hash(Position.parse(str(position))) == hash(position)


@given(st.text(max_size=40))
def test_any_text_is_a_position_or_bad_input(text: str) -> None:
    try:
        position = Position.parse(text)
    except BadInput:
        return
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    ["0", "0-1", "0-1-", "-1-2", "0-1-2-3", "0-1-2,", ",0-1-2", "0-1-2,,1-1-1", "a-b-c", "0-1- 2", "0-1--2", "0_1_2",
     "4294967296-1-1", "0-4294967296-1", "0-1-18446744073709551616", "0-1-\u0663"],
)  # fmt: skip
def test_what_is_not_a_position_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        Position.parse(text)


def test_a_domain_named_twice_is_bad_input() -> None:
    with pytest.raises(BadInput, match="names a domain twice"):
        Position.parse("0-1-100,0-2-7")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_position_is_a_fact(text: str) -> None:
    assert Position.parse(text) == Position()
    assert str(Position()) == ""


def test_spaces_around_a_gtid_do_not_matter() -> None:
    assert Position.parse(" 0-1-100 , 1-2-5 ") == Position.parse("1-2-5,0-1-100")


@given(near_positions)
def test_every_position_covers_itself_and_nothing(position: Position) -> None:
    assert position.covers(position)
    assert position.covers(Position())
    assert position.distance(position) == 0


@given(near_positions, near_positions)
def test_covering_is_having_nothing_to_fetch(ours: Position, theirs: Position) -> None:
    assert ours.covers(theirs) == (ours.distance(theirs) == 0)


@given(near_positions, near_positions, near_positions)
def test_covering_is_transitive(first: Position, second: Position, third: Position) -> None:
    if first.covers(second) and second.covers(third):
        assert first.covers(third)


@given(st.lists(few_domains, max_size=8))
def test_the_position_after_transactions_covers_each_of_them(transactions: list[Gtid]) -> None:
    position = Position.of(transactions)

    assert all(position.sequence(gtid.domain) >= gtid.sequence for gtid in transactions)
    assert set(position.last.values()) <= set(transactions)


@given(near_positions, few_domains)
def test_a_transaction_moves_its_own_domain_only(position: Position, gtid: Gtid) -> None:
    moved = position.with_gtid(gtid)

    assert moved.last[gtid.domain] == gtid
    assert {domain: last for domain, last in moved.last.items() if domain != gtid.domain} == {
        domain: last for domain, last in position.last.items() if domain != gtid.domain
    }


def test_two_domains_are_counted_apart() -> None:
    ours, theirs = Position.parse("0-1-100,1-1-5"), Position.parse("0-1-90,1-1-9,2-1-3")

    assert not ours.covers(theirs)
    assert ours.distance(theirs) == 4 + 3
