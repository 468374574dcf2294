"""The archive on disk: torn tails, cuts, places; files made by hand."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cluster.binlog.framing import GIB
from cluster.errors import BadInput, Bug, Diverged, Refused
from cluster.position import Position
from cluster.records import LineageEntry
from replicator import lookup
from replicator.archive import Archive, EpochWriter
from replicator.follow import past_epochs
from replicator.keys import NO_KEYS, Key, Keys
from replicator.lookup import NotYet
from replicator.receiving import Reply, StreamReader
from replicator.stored import StoredFile
from replicator.wire import EventPackets
from tests.replicator.binlog import Binlog
from tests.replicator.test_receiving import a_reader, give

FIRST = LineageEntry(epoch=1, server_id=1, file="binlog.000003", position="0-1-3")
SECOND = LineageEntry(epoch=2, server_id=2, file="binlog.000002", position="0-1-5")


def first_log() -> Binlog:
    log = Binlog("0-1-3")
    log.ddl("0-1-4")
    log.transaction("0-1-5", rows=4)
    log.transaction("0-1-6")
    return log


def second_log() -> Binlog:
    log = Binlog("0-1-5", server_id=2)
    log.transaction("0-2-6")
    log.transaction("0-2-8")
    return log


def fill(archive: Archive, entry: LineageEntry, log: Binlog, *, events: int | None = None) -> None:
    """Append a file as the stream would."""
    writer = EpochWriter(archive.begin(entry))
    resume = writer.open()
    reader: StreamReader = a_reader(resume.file, resume.offset, str(resume.position))
    given, offset = log.events[:events], 4
    for event in given:
        if offset >= resume.offset:
            give(reader, event)
        offset += len(event)
    writer.write(reader.take())
    writer.close()


_OPENED: list[Archive] = []
RING = Keys((Key("new", bytes(32)), Key("old", bytes(range(32)))))


def opened(directory: Path, keys: Keys) -> Archive:
    """Open an archive that the end of the test closes."""
    _OPENED.append(Archive.open(directory, keys))
    return _OPENED[-1]


@pytest.fixture(params=["plain", "encrypted"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    yield opened(tmp_path / "archive", RING if request.param == "encrypted" else NO_KEYS)
    while _OPENED:
        _OPENED.pop().close()


def reopened(archive: Archive) -> Archive:
    """Return what a new process would find."""
    archive.close()
    return opened(archive.directory, archive.keys)


def path_of(archive: Archive, epoch: int = 1) -> Path:
    return archive.epochs[epoch].segments[-1].path


def content(archive: Archive, path: Path) -> bytes:
    """Return the primary's bytes of a file of the archive."""
    with closing(StoredFile(path, archive.keys).open()) as reader:
        return bytes(reader.read(0, GIB))


def test_two_replicators_cannot_share_an_archive(archive: Archive) -> None:
    with pytest.raises(BadInput, match="in use by another"):
        Archive.open(archive.directory)


def test_a_seal_is_kept_and_never_goes_back(archive: Archive) -> None:
    archive.seal(4)
    archive.seal(2)

    assert (archive.sealed_epoch, reopened(archive).sealed_epoch) == (4, 4)


def test_what_does_not_come_where_the_file_ends_is_not_appended(archive: Archive) -> None:
    """TRAPS.md 15: appended only at exactly the expected size."""
    log = first_log()
    writer = EpochWriter(archive.begin(FIRST))
    with closing(writer):
        resume = writer.open()
        reader = a_reader(resume.file, resume.offset, str(resume.position))
        for event in log.events:
            give(reader, event)
        batch = reader.take()
        writer.write(batch)
        (chunk,) = batch.chunks
        with pytest.raises(Bug, match="bytes for"):
            writer.write(replace(batch, chunks=(replace(chunk, offset=chunk.offset + 1),)))

    assert content(archive, path_of(archive)) == log.data


def test_what_is_not_archived_is_never_acknowledged(archive: Archive) -> None:
    log = first_log()
    writer = EpochWriter(archive.begin(FIRST))
    with closing(writer):
        end = Reply(FIRST.file, len(log.data), Position.parse("0-1-6"))
        with pytest.raises(Bug, match="ends at nothing"):
            writer.require_archived(end)
        reader = a_reader(FIRST.file, 4, FIRST.position)
        writer.open()
        give(reader, *log.events)
        writer.write(reader.take())
        writer.require_archived(end)
        writer.require_archived(replace(end, file="binlog.000002", offset=GIB))
        for beyond in (replace(end, offset=end.offset + 1), replace(end, file="binlog.000004", offset=4)):
            with pytest.raises(Bug, match="would be acknowledged"):
                writer.require_archived(beyond)


@pytest.mark.parametrize("begun", [0, 4, 200, 270])
def test_a_kill_while_the_next_file_begins_leaves_the_one_before_as_it_was(archive: Archive, begun: int) -> None:
    """Its position was taken for that of its beginning, and the source's was then "another history", for ever."""
    log = first_log()
    log.rotate("binlog.000004")
    fill(archive, FIRST, log)
    torn = Binlog("0-1-6").data[:begun]
    (path_of(archive).parent / "binlog.000004").write_bytes(torn)
    archive = reopened(archive)
    resume = archive.epochs[1].resume()

    assert (resume.file, resume.offset, str(resume.position)) == ("binlog.000004", 4, "0-1-6")
    fill(archive, FIRST, Binlog("0-1-6"))
    assert [one.file for one in archive.epochs[1].segments] == ["binlog.000003", "binlog.000004"]
    assert str(reopened(archive).position) == "0-1-6"


def test_a_file_cut_at_every_byte_is_resumed_at_its_last_whole_group(tmp_path: Path) -> None:
    archive, log = Archive.open(tmp_path / "archive"), first_log()
    fill(archive, FIRST, log)
    path = path_of(archive)
    for size in range(len(log.data), -1, -7):
        path.write_bytes(log.data[:size])
        archive.close()
        archive = Archive.open(archive.directory)
        resume = archive.epochs[1].resume()
        whole = [known for known in [(4, "0-1-3"), *log.boundaries] if known[0] <= size]
        offset, position = whole[-1] if whole else (4, "0-1-3")

        assert (resume.offset, str(resume.position)) == (offset, position)
        if offset > 4:
            assert path.stat().st_size == offset
        fill(archive, FIRST, log)
        assert path.read_bytes() == log.data
    archive.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=some.integers(0, 2**20),
    flip=some.one_of(some.none(), some.integers(1, 255)),
    keys=some.sampled_from([NO_KEYS, RING]),
)
def test_a_file_cut_or_flipped_anywhere_keeps_what_is_before_and_is_filled_again(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int | None, keys: Keys
) -> None:
    """Nothing damaged is ever believed, whichever byte it is, and the next stream brings the rest."""
    log = first_log()
    with closing(Archive.open(tmp_path_factory.mktemp("archive"), keys)) as archive:
        ends = fill_by_groups(archive, FIRST, log)
        path, directory = path_of(archive), archive.directory
    data = bytearray(path.read_bytes())
    at %= len(data)
    if flip is None:
        del data[at:]
    else:
        data[at] ^= flip
    path.write_bytes(data)
    with closing(Archive.open(directory, keys)) as archive:
        resume = archive.epochs[1].resume()
        kept = [boundary for boundary, end in zip(log.boundaries, ends, strict=True) if end <= at]

        assert (resume.offset, str(resume.position)) == (kept[-1] if kept else (4, "0-1-3"))
        fill(archive, FIRST, log)
        assert content(archive, path) == log.data
        assert all(path.read_bytes() == data for path in (directory / "damaged").iterdir())


def fill_by_groups(archive: Archive, entry: LineageEntry, log: Binlog) -> list[int]:
    """Append a file, every group received alone; return the size on disk after each."""
    writer, ends = EpochWriter(archive.begin(entry)), list[int]()
    resume = writer.open()
    reader = a_reader(resume.file, resume.offset, str(resume.position))
    edges, offset = {end for end, _ in log.boundaries}, 4
    for event in log.events:
        give(reader, event)
        offset += len(event)
        if offset in edges:
            writer.write(reader.take())
            ends.append((archive.epochs[entry.epoch].directory / entry.file).stat().st_size)
    writer.close()
    return ends


def test_an_epoch_that_ended_earlier_is_cut_and_its_tail_set_aside(archive: Archive) -> None:
    log = first_log()
    fill(archive, FIRST, log)
    archive.end(1, Position.parse("0-1-5"))
    archive = reopened(archive)
    (orphan,) = (archive.directory / "orphans").iterdir()
    boundary = {position: offset for offset, position in log.boundaries}["0-1-5"]

    assert content(archive, path_of(archive)) == log.data[:boundary]
    assert content(archive, orphan) == b"\xfebin" + log.events[0] + log.data[boundary:]
    assert archive.epochs[1].complete
    assert archive.orphans == 1


def test_a_group_that_is_not_whole_is_cut_when_the_epoch_ends_and_is_no_orphan(archive: Archive) -> None:
    log = first_log()
    fill(archive, FIRST, log, events=7)
    archive.end(1, Position.parse("0-1-5"))

    assert (archive.orphans, archive.epochs[1].complete) == (0, False)
    assert len(content(archive, path_of(archive))) == archive.epochs[1].segments[-1].boundary


@pytest.mark.parametrize(
    ("wanted", "place"),
    {
        "the beginning": ("0-1-3", (1, "0-1-3")),
        "in the first epoch": ("0-1-4", (1, "0-1-4")),
        "at the change of epochs": ("0-1-5", (2, "0-1-5")),
        "in the second epoch": ("0-2-6", (2, "0-2-6")),
        "at the end": ("0-2-8", (2, "0-2-8")),
    }.values(),
)
def test_a_replica_goes_on_behind_what_it_has(archive: Archive, wanted: str, place: tuple[int, str]) -> None:
    two_epochs(archive)
    for one in (archive, archive := reopened(archive)):
        found = lookup.locate(one, Position.parse(wanted))
        assert (found.one.epoch, str(found.position), found.skipped) == (*place, None)


@pytest.mark.parametrize(
    ("wanted", "error"),
    {
        "too old": ("0-1-2", Refused),
        "nothing": ("", Refused),
        "another at the beginning": ("0-9-3", Diverged),
        "another in the midst": ("0-9-4", Diverged),
        "the orphan": ("0-1-6", Diverged),
        "another at the end": ("0-1-8", Diverged),
        "ahead": ("0-2-9", NotYet),
        "a domain we never had": ("0-2-8,7-1-1", NotYet),
    }.values(),
)
def test_a_replica_that_is_not_in_the_archive_is_refused(archive: Archive, wanted: str, error: type[Exception]) -> None:
    two_epochs(archive)

    with pytest.raises(error):
        lookup.locate(archive, Position.parse(wanted))


def two_epochs(archive: Archive) -> None:
    fill(archive, FIRST, first_log())
    archive.end(1, Position.parse(SECOND.position))
    fill(archive, SECOND, second_log())


def test_a_position_in_a_gap_is_refused(archive: Archive) -> None:
    fill(archive, FIRST, first_log(), events=4)
    archive.end(1, Position.parse("0-1-5"))

    with pytest.raises(Refused, match="gap"):
        lookup.locate(archive, Position.parse("0-1-5"))


def test_domains_that_stand_at_different_places_are_filtered(archive: Archive) -> None:
    """The replica has 1-1-1 already, which stands behind 0-1-5 that it lacks: nothing twice, nothing left out."""
    log = Binlog("0-1-3")
    for gtid in ("0-1-4", "0-1-5", "1-1-1", "0-1-6", "1-1-2"):
        log.transaction(gtid)
    fill(archive, FIRST, log)
    found = lookup.locate(archive, Position.parse("0-1-4,1-1-1"))
    packets = EventPackets(0)
    packets.skip(found.skipped, found.position)
    sent, _ = packets.events(log.data[found.offset :])
    expected = EventPackets(0)
    kept = [log.data[begin:end] for begin, end in groups(log) if end > found.offset]
    del kept[1]

    assert str(found.position) == "0-1-4"
    assert sent == b"".join(expected.events(group)[0] for group in kept)


def groups(log: Binlog) -> list[tuple[int, int]]:
    ends = [offset for offset, _ in log.boundaries]
    return list(pairwise(ends))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    rows=some.lists(some.tuples(some.integers(1, 5), some.integers(10, 90_000)), min_size=1, max_size=12),
    at=some.data(),
)
def test_every_boundary_is_found_with_and_without_an_index(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], at: some.DataObject
) -> None:
    log = Binlog("0-1-3")
    for number, (count, size) in enumerate(rows, 4):
        log.transaction(f"0-1-{number}", rows=count, row_bytes=size)
    with closing(Archive.open(tmp_path_factory.mktemp("archive"))) as archive:
        check_a_boundary(archive, log, *at.draw(some.sampled_from(log.boundaries)))


def check_a_boundary(archive: Archive, log: Binlog, offset: int, position: str) -> None:
    fill(archive, FIRST, log)
    for _ in range(2):
        found = lookup.locate(archive, Position.parse(position))
        assert (found.offset, str(found.position)) == (offset, position)
        one = archive.epochs[1]
        assert lookup.position_at(one, FIRST.file, offset) == Position.parse(position)
        assert lookup.position_at(one, FIRST.file, offset + 1) is None
        one.segments[0].index = None


def test_ended_epochs_are_wanted_from_the_first_that_is_here() -> None:
    third = LineageEntry(epoch=3, server_id=1, file="binlog.000009", position="0-2-8")
    lineage = (FIRST, SECOND, third)

    assert past_epochs(lineage, ()) == ()
    assert [(past.entry.epoch, str(past.end)) for past in past_epochs(lineage, (1,))] == [(1, "0-1-5"), (2, "0-2-8")]
    assert [past.entry.epoch for past in past_epochs(lineage, (2, 3))] == [2]


def test_an_older_seal_that_ends_later_takes_no_newer_one_back(tmp_path: Path) -> None:
    """Following the epochs seals the past one at the moment a controller seals the present one."""
    epochs = range(1, 9)
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        with closing(Archive.open(directory)) as archive, ThreadPoolExecutor(len(epochs)) as pool:
            list(pool.map(archive.seal, reversed(epochs)))
            assert archive.sealed_epoch == max(epochs)
        with closing(Archive.open(directory)) as archive:
            assert archive.sealed_epoch == max(epochs)
