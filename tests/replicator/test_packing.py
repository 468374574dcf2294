"""Compressed files of an archive: they read as before at every offset, whatever crashes on the way."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cluster.position import Position
from cluster.settings import ArchiveRules
from replicator import indexes, lookup, packing, segments, stored
from replicator.archive import Archive
from replicator.keys import NO_KEYS, Keys, add_key, read_keys
from replicator.metrics import Metrics
from replicator.packing import Due, Packer, Share
from replicator.segments import Segment
from replicator.stored import Form
from replicator.verifying import verify
from tests.replicator.binlog import Binlog
from tests.replicator.test_archive import FIRST, RING, fill
from tests.replicator.test_archive_command import run
from tests.replicator.test_verifying import NEXT_FILE, kept

RULES = ArchiveRules(compress_after_minutes=0)
ROW_BYTES = 700


def a_log(*, random: bool = False) -> Binlog:
    """Return a file of several frames, closed."""
    log = Binlog("0-1-3")
    for number in range(4, 1_000):
        log.transaction(f"0-1-{number}", row_bytes=ROW_BYTES)
    if random:
        log = Binlog("0-1-3")
        log.gtid("0-1-4")
        for _ in range(20):
            log.add(23, os.urandom(30_000))
        log.add(16, bytes(8))
        log.note()
    log.rotate(NEXT_FILE)
    return log


def made(directory: Path, keys: Keys, log: Binlog) -> Archive:
    """Return an archive of one ended epoch whose only file is closed and has its index."""
    archive = Archive.open(directory, keys)
    fill(archive, FIRST, log)
    archive.end(1, log.position)
    kept(archive)
    return archive


@pytest.fixture(params=["plain", "encrypted"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    with closing(made(tmp_path / "archive", RING if request.param == "encrypted" else NO_KEYS, a_log())) as one:
        yield one


def packed(archive: Archive) -> int:
    return Packer(archive, RULES, Metrics("toronto")).tick()


def only(archive: Archive) -> Segment:
    (segment,) = archive.epochs[1].segments
    return segment


def read(segment: Segment, offset: int, count: int) -> bytes:
    with closing(segment.open()) as reader:
        return bytes(reader.read(offset, count))


def test_a_packed_file_reads_as_before_wherever_one_begins(archive: Archive) -> None:
    whole, segment = a_log().data, only(archive)
    before = segment.path.stat().st_size
    with closing(segment.open()) as old:
        assert packed(archive) == 1
        assert bytes(old.read(300_000, 5_000)) == whole[300_000:305_000]

    assert (packed(archive), stored.form_of(segment.path)) == (0, Form.PACKED)
    assert segment.path.stat().st_size < before / 5
    for offset in (*range(0, len(whole), 40_009), len(whole) - 1):
        assert read(segment, offset, 70_000) == whole[offset : offset + 70_000]
    assert not verify(Archive.look(archive.directory, archive.keys)).findings
    assert str(lookup.locate(archive, Position.parse("0-1-600")).position) == "0-1-600"


def test_a_start_believes_the_index_of_a_packed_file_and_without_it_reads_the_file(archive: Archive) -> None:
    packed(archive)
    archive.close()
    for remove in (False, True):
        if remove:
            indexes.remove(only(archive).stored)
        with closing(Archive.open(archive.directory, archive.keys)) as again:
            segment = only(again)
            assert segment.indexed is not remove
            assert str(segment.position) == "0-1-999"
            assert read(segment, 0, segment.size) == a_log().data
            assert again.epochs[1].complete
            assert kept(again) == remove


@pytest.mark.parametrize("crash", ["while it is written", "before the rename"])
def test_a_crash_at_any_step_leaves_the_file_and_its_index(archive: Archive, crash: str) -> None:
    segment = only(archive)
    index = indexes.head(segment.stored)
    assert index is not None
    draft = segment.stored.draft("packed")
    packing.written(segment, draft, index, Share(threading.Event(), 1.0))
    if crash == "while it is written":
        os.truncate(draft.path, 999)
    else:
        # The index is saved; the rename fails because the draft is not there: as far as the disk goes, a crash between.
        draft.path.rename(draft.path.with_name(".moved"))
        with pytest.raises(FileNotFoundError):
            packing.installed(Due(segment, segment.generation, index), draft, 12_345)
    archive.close()
    with closing(Archive.open(archive.directory, archive.keys)) as again:
        assert only(again).indexed
        assert read(only(again), 0, only(again).size) == a_log().data
        assert not list(only(again).path.parent.glob(".*"))
        assert packed(again) == 1
        assert not verify(Archive.look(archive.directory, archive.keys)).findings


def test_what_gains_too_little_stays_and_is_not_tried_again(tmp_path: Path) -> None:
    with closing(made(tmp_path / "archive", NO_KEYS, a_log(random=True))) as archive:
        assert packed(archive) == 0
        index = indexes.head(only(archive).stored)
        assert index is not None
        assert (index.packed_size, stored.form_of(only(archive).path)) == (0, Form.PLAIN)
        assert only(archive).sums is not None


def test_a_file_that_is_not_what_its_index_says_is_left_as_it_is(archive: Archive) -> None:
    path = only(archive).path
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)

    assert packed(archive) == 0
    assert path.read_bytes() == whole
    assert not list(path.parent.glob(".*"))


def test_a_file_that_changed_or_was_removed_meanwhile_is_not_replaced(archive: Archive) -> None:
    segment = only(archive)
    index = indexes.head(segment.stored)
    assert index is not None
    due, draft = Due(segment, segment.generation, index), segment.stored.draft("packed")
    size = packing.written(segment, draft, index, Share(threading.Event(), 1.0))
    with segments.replacing(segment):
        pass

    assert not packing.installed(due, draft, size)
    assert kept(archive) == 1
    segment.removed = True
    assert not packing.installed(Due(segment, segment.generation, index), draft, size)


def test_a_young_file_and_one_that_grows_are_not_packed(archive: Archive) -> None:
    young = Packer(archive, ArchiveRules(compress_after_minutes=10), Metrics("toronto"))
    only(archive).time = 10**12
    assert young.tick() == 0
    only(archive).time = 0
    only(archive).closed = False
    assert packed(archive) == 0


def test_an_end_that_is_cut_later_makes_a_file_that_can_grow(archive: Archive) -> None:
    packed(archive)
    archive.end(1, Position.parse("0-1-500"))

    assert str(only(archive).position) == "0-1-500"
    assert read(only(archive), 0, 10**9) == a_log().data[: only(archive).boundary]
    assert stored.form_of(only(archive).path) is not Form.PACKED


def test_ls_info_and_cat_show_what_a_packed_file_is(tmp_path: Path) -> None:
    key_file, directory = tmp_path / "keys", tmp_path / "archive"
    add_key(key_file)
    with closing(made(directory, read_keys(key_file), a_log())) as archive:
        packed(archive)
    where = ("--archive", str(directory), "--key-file", str(key_file))
    (listed,) = json.loads(run("ls", "--json", *where).stdout)["files"]
    info = json.loads(run("info", "--json", *where).stdout)

    assert listed["form"] == "compressed, encrypted"
    assert listed["stored_bytes"] * 5 < listed["bytes"] == len(a_log().data)
    assert (info["compressed"], info["encrypted"]) == (1, 1)
    assert run("cat", FIRST.file, *where).stdout == a_log().data
