"""The watchdog's memory on disk."""

from pathlib import Path

import pytest

from cluster.errors import BadInput, OscarHaError
from healthcheck.judge import Memory
from healthcheck.memory import MemoryFile

MEMORY = Memory(generation="7-1-a", sealed_epoch=4, opened_epoch=5, promoted_epoch=5, promoted_file="binlog.000002")


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    MemoryFile(tmp_path / "memory.json").write(MEMORY)

    assert MemoryFile(tmp_path / "memory.json").read() == MEMORY


def test_without_a_file_nothing_is_remembered(tmp_path: Path) -> None:
    assert MemoryFile(tmp_path / "memory.json").read() == Memory()


def test_a_write_that_dies_half_way_leaves_the_old_memory(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path / "memory.json")
    file.write(MEMORY)
    (tmp_path / "memory.json.new").write_text('{"sealed')

    assert file.read() == MEMORY


def test_a_damaged_memory_is_refused_and_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text('{"sealed_epoch": "many"}')

    with pytest.raises(BadInput, match="sealed_epoch"):
        MemoryFile(tmp_path / "memory.json").read()


def test_a_write_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(OscarHaError, match="cannot be written"):
        MemoryFile(tmp_path / "missing" / "memory.json").write(MEMORY)
