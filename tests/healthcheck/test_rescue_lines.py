"""Rescued rows as JSON: what goes in comes out, and what cannot be told is told to be so. No server."""

from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.binlog.decoding import Value
from cluster.errors import BadInput
from cluster.lineage import is_foreign
from cluster.position import Gtid
from healthcheck.rescue_api import is_here, ranges_of
from healthcheck.rescue_lines import Json, Line, coded, decode, encode, uncoded
from healthcheck.rescuing import Mark, append_marks, marks_in
from tests.healthcheck.test_lineage import HISTORY

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WHOLE = st.integers(-(2**63), 2**64 - 1)
VALUES = st.one_of(
    st.none(), WHOLE, st.floats(allow_nan=False, allow_infinity=False), TEXT, st.binary(),
    st.decimals(allow_nan=False, allow_infinity=False, places=30, min_value=-(10**30), max_value=10**30),
)  # fmt: skip
JSON_ROWS = st.none() | st.dictionaries(TEXT, VALUES.map(coded))


@given(VALUES)
def test_a_value_is_exact_and_of_its_type(value: Value) -> None:
    there_and_back = uncoded(coded(value))
    if isinstance(value, Decimal):
        assert isinstance(there_and_back, str)
        assert Decimal(there_and_back) == value
        assert "E" not in there_and_back, "as the database writes it"
    else:
        assert (there_and_back, type(there_and_back)) == (value, type(value))


@given(JSON_ROWS, JSON_ROWS, TEXT, WHOLE.map(abs))
def test_a_line_is_one_line_and_comes_back_as_it_was(
    before: dict[str, Json] | None, after: dict[str, Json] | None, table: str, number: int
) -> None:
    line = Line(number=number, gtid="0-1-2", time="t", kind="update", table=table, before=before, after=after)
    data = encode(line)
    back = decode(data)

    assert data.count(b"\n") == 1
    assert back == line
    for ours, theirs in ((before, back.before), (after, back.after)):
        assert {name: type(value) for name, value in (ours or {}).items()} == {
            name: type(value) for name, value in (theirs or {}).items()
        }


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"number": "x"}', b'{"number":1,"gtid":"g","time":"t","kind":'])
def test_a_torn_or_foreign_line_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match="a line of a rescue"):
        decode(data)


@pytest.mark.parametrize("value", [{}, {"base64": "%"}, {"hex": "00"}])
def test_what_is_no_value_is_refused(value: Json) -> None:
    with pytest.raises(BadInput, match="no value of a rescue"):
        uncoded(value)


@given(st.sets(st.integers(1, 60)))
def test_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    ranges = ranges_of(numbers)

    assert {number for first, last in ranges for number in range(first, last + 1)} == numbers
    assert all(one[1] + 1 < other[0] for one, other in pairwise(ranges)), "as few as possible"


@pytest.mark.parametrize(
    ("gtid", "foreign"),
    [("0-1-100", False), ("0-1-101", True), ("0-2-101", False), ("0-2-151", True), ("0-1-151", False), ("5-2-1", True)],
)
def test_a_transaction_is_foreign_when_its_server_did_not_own_its_number(gtid: str, foreign: bool) -> None:
    assert is_foreign(Gtid.parse(gtid), HISTORY) is foreign


@pytest.mark.parametrize(
    ("remote", "ours", "here"),
    [("127.0.0.1", "127.0.0.1", True), ("::1", "::1", True), ("10.0.0.5", "10.0.0.5", True), ("10.0.0.6", "10.0.0.5", False), ("", "", False)],
)  # fmt: skip
def test_charts_leave_the_machine_only_by_a_setting(remote: str, ours: str, here: bool) -> None:
    assert is_here(remote, ours) is here


def test_a_mark_that_a_crash_has_torn_hides_no_other(tmp_path: Path) -> None:
    append_marks(tmp_path, [Mark(number=1, outcome="applied", at="")])
    with (tmp_path / "replayed.jsonl").open("ab") as file:
        file.write(b'{"number": 2, "outc')
    append_marks(tmp_path, [Mark(number=3, outcome="present", at="")])

    assert [one.number for one in marks_in(tmp_path / "replayed.jsonl")] == [1, 3]
