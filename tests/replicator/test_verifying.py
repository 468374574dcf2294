"""The index of a closed file, and proving an archive: files made by hand, damaged at will."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from cluster.binlog.events import fake_rotate
from cluster.position import Position
from replicator import indexes, lookup
from replicator.archive import Archive, EpochWriter
from replicator.keeping import Keeper, lacks_index, write_index
from replicator.keys import NO_KEYS, Key, Keys, add_key, read_keys
from replicator.verifying import verify
from tests.replicator.binlog import Binlog
from tests.replicator.test_archive import FIRST, SECOND, first_log
from tests.replicator.test_archive_command import run
from tests.replicator.test_receiving import a_reader, give

RING = Keys((Key("new", bytes(32)),))
NEXT_FILE = "binlog.000004"


def two_files() -> tuple[Binlog, Binlog]:
    first = first_log()
    first.rotate(NEXT_FILE)
    second = Binlog("0-1-6")
    second.transaction("0-1-7", rows=3)
    return first, second


def fill_two(archive: Archive) -> tuple[Binlog, Binlog]:
    """Append two files of one epoch as the stream would."""
    first, second = two_files()
    writer = EpochWriter(archive.begin(FIRST))
    reader = a_reader(FIRST.file, writer.open().offset, FIRST.position)
    for event in (*first.events, fake_rotate(NEXT_FILE, 4, server_id=1), *second.events):
        give(reader, event)
    writer.write(reader.take())
    writer.close()
    return first, second


@pytest.fixture(params=["plain", "encrypted"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    with closing(Archive.open(tmp_path / "archive", RING if request.param == "encrypted" else NO_KEYS)) as one:
        fill_two(one)
        yield one


def kept(archive: Archive) -> int:
    return Keeper(archive, Event()).tick()


def found(archive: Archive) -> list[str]:
    return [
        f"{one.file}@{one.offset}: {one.why}" for one in verify(Archive.look(archive.directory, archive.keys)).findings
    ]


def test_a_closed_file_gets_its_index_and_a_growing_one_does_not(archive: Archive) -> None:
    closed, grows = archive.epochs[1].segments

    assert (kept(archive), kept(archive)) == (1, 0)
    index = indexes.head(closed.stored)
    assert index is not None
    assert (index.size, index.position, index.next_file) == (closed.boundary, "0-1-6", NEXT_FILE)
    assert not indexes.present(grows.stored)
    assert found(archive) == []


def test_a_start_believes_the_index_and_reads_no_closed_file(archive: Archive) -> None:
    kept(archive)
    archive.close()
    with closing(Archive.open(archive.directory, archive.keys)) as again:
        segment = again.epochs[1].segments[0]

        assert segment.indexed
        assert str(segment.position) == "0-1-6"
        assert lookup.locate(again, Position.parse("0-1-5")).segment is segment


def test_what_the_stream_told_is_not_read_again_for_the_index(archive: Archive) -> None:
    segment = archive.epochs[1].segments[0]
    segment.first_time, segment.time = 1_000, 2_000  # events made by hand have no times; real ones are never scanned

    kept(archive)
    index = indexes.head(segment.stored)
    assert index is not None
    assert (index.first_time, index.last_time) == (1_000, 2_000)
    assert indexes.marks(segment.stored) == segment.index


@pytest.mark.parametrize("harm", ["missing", "damaged", "of other bytes"])
def test_an_index_that_does_not_hold_is_made_anew(archive: Archive, harm: str) -> None:
    kept(archive)
    path = archive.epochs[1].segments[0].path
    index = path.with_name(f"{path.name}.index")
    good = index.read_bytes()
    if harm == "missing":
        index.unlink()
    else:
        index.write_bytes(good[:-9] if harm == "damaged" else good.replace(b'"size": ', b'"size": 1'))
    archive.close()
    with closing(Archive.open(archive.directory, archive.keys)) as again:
        assert lacks_index(again.epochs[1].segments[0])
        assert kept(again) == 1
        assert json.loads(index.read_bytes().split(b"\n")[0]) == json.loads(good.split(b"\n")[0])


def test_a_file_that_changes_while_it_is_summed_gets_no_index(archive: Archive) -> None:
    segment = archive.epochs[1].segments[0]

    def cut_meanwhile() -> bool:
        segment.forget()
        return False

    assert not write_index(segment, cut_meanwhile)
    assert not indexes.present(segment.stored)


def test_a_file_that_is_cut_or_grows_loses_its_index(archive: Archive) -> None:
    kept(archive)
    archive.end(1, Position.parse("0-1-5"))

    (left,) = archive.epochs[1].segments
    assert not indexes.present(left.stored)
    assert kept(archive) == 1
    assert found(archive) == []


def test_a_changed_byte_is_found_wherever_it_is(archive: Archive) -> None:
    kept(archive)
    path = archive.epochs[1].segments[0].path
    whole = path.read_bytes()
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

        assert any(path.name in one for one in found(archive)), at
    path.write_bytes(whole)
    assert found(archive) == []


def test_a_damaged_closed_file_gets_no_index_and_is_reported_once(archive: Archive) -> None:
    segment = archive.epochs[1].segments[0]
    segment.index, segment.sums = None, None
    whole = segment.path.read_bytes()
    segment.path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
    keeper = Keeper(archive, Event())

    assert (keeper.tick(), keeper.tick()) == (0, 0)
    assert segment.damage is not None
    assert not indexes.present(segment.stored)


def test_a_missing_file_is_found(archive: Archive) -> None:
    path = archive.epochs[1].segments[1].path
    path.rename(path.with_name("binlog.000005"))

    assert any(f"{NEXT_FILE} is missing behind {FIRST.file}" in one for one in found(archive))


def test_a_missing_end_is_found_but_the_oldest_files_may_be_gone(archive: Archive) -> None:
    archive.epochs[1].segments[0].path.unlink()
    assert found(archive) == []
    archive.end(1, Position.parse("0-1-9"))
    assert ["the epoch ended at 0-1-9" in one for one in found(archive)] == [True]


def test_an_epoch_that_does_not_begin_where_the_last_one_ended_is_found(archive: Archive) -> None:
    archive.end(1, Position.parse("0-1-7"))
    archive.begin(SECOND)

    assert [one.split(":")[0] for one in found(archive)] == ["0000000002-2@None"]


def test_verify_and_info_tell_people_and_scripts(tmp_path: Path) -> None:
    key_file, directory = tmp_path / "keys", tmp_path / "archive"
    add_key(key_file)
    with closing(Archive.open(directory, read_keys(key_file))) as archive:
        fill_two(archive)
        kept(archive)
        path = archive.epochs[1].segments[0].path
    where = ("--archive", str(directory), "--key-file", str(key_file))
    good, info = run("verify", "--json", *where), json.loads(run("info", "--json", *where).stdout)
    path.write_bytes(path.read_bytes()[:-60] + bytes(60))
    bad, bad_text = run("verify", "--json", *where), run("verify", *where)

    assert (good.returncode, json.loads(good.stdout)["ok"], json.loads(good.stdout)["indexed"]) == (0, True, 1)
    assert (info["files"], info["indexed"], info["encrypted"], info["begins_after"]) == (2, 1, 2, "0-1-3")
    assert bad.returncode == bad_text.returncode == 1
    (finding,) = json.loads(bad.stdout)["findings"]
    assert finding["file"].endswith(path.name)
    assert finding["offset"] is not None
    assert b"mend: a running replicator finds it and fetches it again by itself" in bad_text.stdout
    assert run("verify", "--archive", str(directory)).returncode == 2
    assert b"begins after" in run("info", *where).stdout
