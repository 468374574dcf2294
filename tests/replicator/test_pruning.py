"""Removing from an archive's front: a crash at every step, readers that are in the midst of it, and holds."""

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.binlog.events import fake_rotate
from cluster.errors import BadInput, Refused
from cluster.position import Position
from cluster.records import LineageEntry
from replicator import holds, lookup, pruning, segments
from replicator.archive import REMOVED, Archive, EpochWriter, Gone
from replicator.holds import Hold
from replicator.keys import NO_KEYS, Keys
from replicator.verifying import verify
from tests.replicator.binlog import Binlog
from tests.replicator.test_archive import FIRST, RING
from tests.replicator.test_archive_command import run
from tests.replicator.test_receiving import a_reader, give
from tests.replicator.test_verifying import kept

SECOND = LineageEntry(epoch=2, server_id=2, file="binlog.000007", position="0-1-11")


def append(archive: Archive, entry: LineageEntry, first: int, files: int) -> None:
    """Append files of two transactions each, the first of them having the number `first`."""
    writer, number = EpochWriter(archive.begin(entry)), first
    reader = a_reader(entry.file, writer.open().offset, entry.position)
    position, name = entry.position, int(entry.file[-6:])
    for at in range(files):
        log = Binlog(position, server_id=entry.server_id)
        for _ in range(2):
            position = f"0-{entry.server_id}-{number}"
            log.transaction(position, rows=2)
            number += 1
        if at < files - 1:
            name += 1
            log.rotate(f"binlog.{name:06d}")
        for event in log.events:
            give(reader, event)
        if at < files - 1:
            give(reader, fake_rotate(f"binlog.{name:06d}", 4, server_id=entry.server_id))
    writer.write(reader.take())
    writer.close()


def made(directory: Path, keys: Keys = NO_KEYS) -> Archive:
    """Return an archive of two epochs: files 3 to 6 hold 4 to 11, then files 7 to 9 hold 12 to 17."""
    archive = Archive.open(directory, keys)
    append(archive, FIRST, 4, 4)
    archive.end(1, Position.parse(SECOND.position))
    append(archive, SECOND, 12, 3)
    kept(archive)
    return archive


@pytest.fixture(params=["plain", "encrypted"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    with closing(made(tmp_path / "archive", RING if request.param == "encrypted" else NO_KEYS)) as one:
        yield one


def names(archive: Archive) -> list[str]:
    return [segment.file[-2:] for one in archive.epochs.values() for segment in one.segments]


def remove(archive: Archive, count: int) -> list[str]:
    return list(pruning.removing(archive, pruning.held_files(archive)[:count]))


@pytest.mark.parametrize(
    ("count", "left"),
    [(0, ["03", "04", "05", "06", "07", "08", "09"]), (2, ["05", "06", "07", "08", "09"]), (4, ["07", "08", "09"]),
     (5, ["08", "09"])],
)  # fmt: skip
def test_files_go_from_the_front_and_an_emptied_epoch_with_them(archive: Archive, count: int, left: list[str]) -> None:
    remove(archive, count)

    assert names(archive) == left
    with closing(Archive.look(archive.directory, archive.keys)) as look:
        assert not verify(look).findings
    archive.close()
    with closing(Archive.open(archive.directory, archive.keys)) as again:
        assert names(again) == left
        assert not [one for one in again.epochs.values() if one.end is not None and not one.complete]
        assert str(again.position) == "0-2-17"
        assert not list((archive.directory / REMOVED).iterdir())


def test_a_crash_at_any_step_leaves_an_archive_that_verifies_and_goes_on(tmp_path: Path) -> None:
    """As after `kill -9`: what is on disk then is opened by a process that knows nothing."""
    steps, crashed = 99, 0
    while crashed < steps:
        directory = tmp_path / str(crashed)
        archive = made(directory)
        going = pruning.removing(archive, pruning.held_files(archive)[:5])
        done = [step for _, step in zip(range(crashed), going, strict=False)]
        steps = crashed + 1 if len(done) < crashed else steps
        archive.close()
        with closing(Archive.open(directory)) as again:
            kept(again)
            assert not verify(Archive.look(directory)).findings, crashed
            assert not [one for one in again.epochs.values() if one.end is not None and not one.complete], crashed
            oldest = next(segment for one in again.epochs.values() for segment in one.segments)
            assert lookup.locate(again, oldest.start).segment is oldest
            kept_names = names(again)
            remove(again, len(kept_names) - 2)
            assert names(again) == ["08", "09"], crashed
            assert str(EpochWriter(again.epochs[2]).open().position) == "0-2-17"
        crashed += 1
    assert crashed == 6  # four steps, none, and one too many


def test_nothing_goes_but_the_front_and_never_the_last_of_the_newest_epoch(archive: Archive) -> None:
    everything = pruning.held_files(archive)

    assert list(pruning.removing(archive, everything[1:3])) == []
    list(pruning.removing(archive, everything))
    assert names(archive) == ["09"]


def test_an_epoch_whose_end_may_still_come_stays(tmp_path: Path) -> None:
    with closing(made(tmp_path / "archive")) as archive:
        archive.epochs[1].start = replace(archive.epochs[1].start, end="0-1-12")
        files = pruning.held_files(archive)
        list(pruning.removing(archive, files[:5]))

        assert [one.settled for one in files] == [False] * 4 + [True] * 3
        assert names(archive) == ["06", "07", "08", "09"]
        list(pruning.removing(archive, pruning.held_files(archive)[:2], lost={1}))
        assert names(archive) == ["08", "09"]


def test_a_reader_of_a_removed_file_goes_on_to_the_next_or_is_told(archive: Archive) -> None:
    first, second, third, _ = archive.epochs[1].segments
    one = archive.epochs[1]
    with closing(first.open()) as reader:
        remove(archive, 1)
        assert len(reader.read(0, first.size)) == first.size
    assert one.follower(first) is second
    remove(archive, 1)
    assert one.follower(second) is third
    with pytest.raises(Gone, match="not in this archive any more"):
        one.follower(first)
    with pytest.raises(Refused, match="was removed"), segments.replacing(first):
        pass


def test_a_replica_older_than_the_archive_is_told_what_mends_it(archive: Archive) -> None:
    remove(archive, 4)

    with pytest.raises(Refused, match=r"begins after 0-1-11, the replica has 0-1-5: .*`oscar-ha reinitialize NODE`"):
        lookup.locate(archive, Position.parse("0-1-5"))
    assert lookup.locate(archive, Position.parse("0-1-11")).segment.file == "binlog.000007"


def test_an_encrypted_file_of_another_size_than_its_index_says_is_not_believed(archive: Archive) -> None:
    segment = archive.epochs[1].segments[0]
    with segment.path.open("ab") as file:
        file.write(b"x")

    assert segments.indexed(segment.stored) is None


# -- holds ------------------------------------------------------------------------------------------------------------


def test_a_hold_is_written_checked_listed_and_released(tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    made(directory).close()
    where = ("--archive", str(directory))
    assert run("hold", "nightly", "--from", "binlog.000004", *where).returncode == 0
    assert (
        run("hold", "weekly", "--from", "0-1-9", "--until", "2999-01-01T00:00Z", "--why", "a test", *where).returncode
        == 0
    )
    listed = json.loads(run("holds", "--json", *where).stdout)["holds"]

    assert [(one["name"], one["position"], one["expired"]) for one in listed] == [
        ("nightly", "0-1-5", False), ("weekly", "0-1-9", False),
    ]  # fmt: skip
    assert b"a test" in run("holds", *where).stdout
    assert json.loads(run("info", "--json", *where).stdout)["holds"] == 2
    for wrong in (("x", "--from", "0-1-2"), ("x", "--from", "nonsense"), ("../x", "--from", "0-1-9"),
                  ("x", "--from", "binlog.000099"), ("x", "--from", "0-1-9", "--until", "2001-01-01T00:00Z")):  # fmt: skip
        assert run("hold", *wrong, *where).returncode in (1, 2), wrong
    assert run("release", "nightly", *where).returncode == 0
    assert run("release", "nightly", *where).returncode == 2
    assert run("prune", "--dry-run", "--now").returncode == 2


def test_an_expired_hold_keeps_nothing_and_a_damaged_one_everything(tmp_path: Path) -> None:
    hold = Hold(name="a", position="0-1-9", since="", until=1_000)
    with holds.locked(tmp_path):
        holds.write(tmp_path, hold)
        holds.write(tmp_path, replace(hold, name="b", until=None))
    assert [one.who for one in holds.read(tmp_path).floors(1_001)] == ["hold b"]
    assert [one.who for one in holds.read(tmp_path).floors(None)] == ["hold a", "hold b"]
    (tmp_path / "holds" / "a.json").write_text("{")
    (unknown,) = [one for one in holds.read(tmp_path).floors(1_001) if one.position is None]

    assert unknown.who == "hold a"
    with holds.locked(tmp_path), suppress(BadInput):
        holds.remove(tmp_path, "a")
    assert not holds.read(tmp_path).unreadable
