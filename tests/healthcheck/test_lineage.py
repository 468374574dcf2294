"""Whether a position belongs to the history: a table, and properties over every small history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.lineage import History, judge_history
from cluster.position import Gtid, Position
from cluster.records import LineageEntry

SERVERS = (1, 2, 3)


def an_entry(epoch: int, server: int, position: str) -> LineageEntry:
    return LineageEntry(epoch=epoch, server_id=server, file="binlog.000002", position=position)


# Server 1 wrote 1 to 100, server 2 wrote 101 to 150, server 1 writes since then.
HISTORY = (an_entry(1, 1, ""), an_entry(2, 2, "0-1-100"), an_entry(3, 1, "0-2-150"))


@pytest.mark.parametrize(
    ("position", "head", "expected"),
    [
        pytest.param("", "0-1-160", History.EQUAL_OR_BEHIND, id="an empty server is behind"),
        pytest.param("0-1-100", "0-1-160", History.EQUAL_OR_BEHIND, id="where epoch 1 ended"),
        pytest.param("0-1-160", "0-1-160", History.EQUAL_OR_BEHIND, id="equal"),
        pytest.param("0-1-160", None, History.EQUAL_OR_BEHIND, id="the head is not known"),
        pytest.param("0-1-161", "0-1-160", History.AHEAD, id="more than the primary has"),
        pytest.param("0-1-101", "0-1-160", History.DIVERGED, id="server 1 wrote on when server 2 was primary"),
        pytest.param("0-2-100", "0-1-160", History.DIVERGED, id="same number, another server"),
        pytest.param("0-2-151", "0-1-160", History.DIVERGED, id="server 2 wrote on when server 1 was primary"),
        pytest.param("0-3-120", "0-1-160", History.DIVERGED, id="a server that never was primary"),
        pytest.param("0-1-90,1-3-5", "0-1-160", History.DIVERGED, id="a foreign domain in an epoch of another server"),
        pytest.param("0-1-90,1-1-5", "0-1-160,1-1-9", History.EQUAL_OR_BEHIND, id="two domains"),
    ],
)
def test_a_position_is_judged_by_who_owned_its_number(position: str, head: str | None, expected: History) -> None:
    head_position = Position.parse(head) if head is not None else None

    assert judge_history(Position.parse(position), HISTORY, head_position) is expected


def test_what_is_older_than_the_lineage_is_not_called_diverged() -> None:
    """A lineage may be cut at its old end, and a database may be older than its cluster."""
    assert judge_history(Position.parse("0-9-40"), HISTORY[1:], None) is History.EQUAL_OR_BEHIND
    assert judge_history(Position.parse("0-9-100"), HISTORY[1:], None) is History.DIVERGED


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Gtid], list[LineageEntry]]:
    """Every transaction of a history in order, and its lineage."""
    transactions: list[Gtid] = []
    lineage = []
    for epoch, (server, length) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from(SERVERS), st.integers(0, 4)), min_size=1, max_size=6)), start=1
    ):
        here = str(Position.of(transactions[-1:]))
        lineage.append(an_entry(epoch, server, here))
        transactions += [Gtid(0, server, len(transactions) + 1 + more) for more in range(length)]
    return transactions, lineage


@given(histories())
def test_every_beginning_of_a_history_belongs_to_it(case: tuple[list[Gtid], list[LineageEntry]]) -> None:
    transactions, lineage = case
    head = Position.of(transactions[-1:])
    for count in range(len(transactions) + 1):
        position = Position.of(transactions[:count][-1:])
        assert judge_history(position, lineage, head) is History.EQUAL_OR_BEHIND


@given(histories(), st.sampled_from(SERVERS), st.integers(1, 30))
def test_a_transaction_that_is_not_in_the_history_never_passes(
    case: tuple[list[Gtid], list[LineageEntry]], server: int, sequence: int
) -> None:
    transactions, lineage = case
    gtid = Gtid(0, server, sequence)
    verdict = judge_history(Position.of([gtid]), lineage, Position.of(transactions[-1:]))

    assert (verdict is History.EQUAL_OR_BEHIND) is (gtid in transactions)
