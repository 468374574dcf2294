"""The journal gives back what was written, and refuses what is none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos import traffic_journal
from chaos.history import Outcome, Write
from chaos.traffic_journal import Journal
from cluster.errors import BadInput

numbers = st.none() | st.integers(0, 2**32 - 1)
texts = st.text('a7/ é"\\\n\u2028\x00', max_size=30)


@st.composite
def any_write(draw: st.DrawFn) -> Write:
    outcome = draw(st.sampled_from(Outcome))
    return Write(
        clinic=draw(texts), sequence=draw(st.integers(1, 10**9)), token=draw(texts), kind=draw(texts), table=draw(texts),
        invoked_at=draw(st.integers(0, 2**62)), outcome=outcome, server_id=draw(numbers), epoch=draw(numbers),
        acknowledged_at=draw(st.integers(0, 2**62)) if outcome is Outcome.OK else None,
        changes=draw(st.none() | texts), error=draw(texts),
    )  # fmt: skip


@given(st.lists(any_write(), max_size=5))
def test_a_journal_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, writes: list[Write]) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    journal = Journal(path)
    for write in writes:
        journal.append(write)
    journal.close()

    assert traffic_journal.read(path) == writes


@given(any_write(), st.integers(1, 40))
def test_a_torn_last_line_is_left_out(tmp_path_factory: pytest.TempPathFactory, write: Write, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    journal = Journal(path)
    journal.append(write)
    journal.append(write)
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])

    assert traffic_journal.read(path) == [write]


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"clinic": 3}', "no json"])
def test_a_line_that_is_no_write_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(line + "\n")

    with pytest.raises(BadInput, match=r"j\.jsonl:1"):
        traffic_journal.read(path)


def test_an_acknowledgement_without_its_instant_is_refused() -> None:
    line = '{"clinic":"a","sequence":1,"token":"t","kind":"k","table":"t","invoked_at":1,"acknowledged_at":null,"outcome":"OK"}'

    with pytest.raises(BadInput, match="contradicts"):
        traffic_journal.parse(line, where="line 1")


def test_a_journal_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        Journal(tmp_path)
