"""What counts as the same archived file, and what is told when it is not."""

from contextlib import closing
from pathlib import Path

import pytest

from chaos.archives import Key as FileKey
from chaos.archives import equal_to_binlogs, equal_to_each_other, same_beginning
from chaos.history import Verdict
from cluster.binlog.framing import MAGIC
from replicator import stored
from replicator.keys import Key, Keys
from replicator.stored import StoredFile

FIRST = FileKey(1, 1, "binlog.000002")
WHOLE = bytes(range(256)) * 40


def a_file(path: Path, data: bytes = WHOLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_a_file_that_its_server_cut_or_went_on_with_is_the_same(tmp_path: Path) -> None:
    ours = a_file(tmp_path / "ours")

    assert same_beginning(ours, a_file(tmp_path / "cut", WHOLE[:500]))
    assert same_beginning(ours, a_file(tmp_path / "longer", WHOLE + b"more"))
    assert same_beginning(ours, a_file(tmp_path / "in-use", changed(WHOLE, 21)))


@pytest.mark.parametrize("at", [0, 20, 23, 300, len(WHOLE) - 1])
def test_one_other_byte_is_another_file(tmp_path: Path, at: int) -> None:
    assert not same_beginning(a_file(tmp_path / "ours"), a_file(tmp_path / "theirs", changed(WHOLE, at)))


def test_an_encrypted_file_is_compared_by_what_was_written_into_it(tmp_path: Path) -> None:
    keys, data = Keys((Key("one", bytes(32)),)), MAGIC + WHOLE
    ours = StoredFile(tmp_path / "1" / FIRST.file, keys)
    ours.path.parent.mkdir()
    with closing(stored.begin(ours)) as appender:
        appender.append(WHOLE, ())

    assert same_beginning(ours, a_file(tmp_path / "theirs", data + b"more"))
    assert not same_beginning(ours, a_file(tmp_path / "other", changed(data, 300)))


def test_a_file_that_holds_nothing_is_no_proof(tmp_path: Path) -> None:
    assert not same_beginning(a_file(tmp_path / "ours"), a_file(tmp_path / "empty", WHOLE[:4]))


def test_a_server_that_was_made_anew_may_have_written_the_file_in_an_earlier_life(tmp_path: Path) -> None:
    ours = a_file(tmp_path / "toronto" / FIRST.file)
    a_file(tmp_path / "now" / FIRST.file, b"another file of the same name, long enough to be looked at")
    a_file(tmp_path / "before" / FIRST.file)
    found = equal_to_binlogs({"toronto": {FIRST: ours}}, {1: [tmp_path / "now", tmp_path / "before"]})

    assert found.verdict is Verdict.KEPT


def test_a_file_that_differs_or_that_nobody_wrote_is_named(tmp_path: Path) -> None:
    ours = a_file(tmp_path / "toronto" / FIRST.file)
    a_file(tmp_path / "db" / FIRST.file, changed(WHOLE, 99))
    differs = equal_to_binlogs({"toronto": {FIRST: ours}}, {1: [tmp_path / "db"]})
    nobodys = equal_to_binlogs({"toronto": {FIRST: ours}}, {2: [tmp_path / "db"]})

    assert (differs.verdict, nobodys.verdict) == (Verdict.BROKEN, Verdict.BROKEN)
    assert differs.why == "1 of 1 differ: toronto: epoch 1, binlog.000002 of server 1"
    assert nobodys.why.endswith(", which no server has")


def test_archives_that_differ_are_named_and_none_is_no_proof(tmp_path: Path) -> None:
    one, other = a_file(tmp_path / "one"), a_file(tmp_path / "other", changed(WHOLE, 700))
    found = equal_to_each_other({"clinic": {FIRST: one}, "toronto": {FIRST: other}})

    assert found.verdict is Verdict.BROKEN
    assert "clinic and toronto: epoch 1" in found.why
    assert equal_to_each_other({"clinic": {}, "toronto": {}}).verdict is Verdict.PROVED_NOTHING
