"""An archive that lost a file: whoever reads on is told, never led over the hole as if nothing had been there."""

from contextlib import closing
from pathlib import Path

import pytest

from cluster.binlog.events import fake_rotate
from cluster.position import Position
from cluster.records import LineageEntry
from replicator import lookup
from replicator.archive import Archive, EpochWriter
from replicator.frames import Damaged
from replicator.verifying import verify
from tests.replicator.binlog import Binlog
from tests.replicator.serving import Reader, serving
from tests.replicator.test_archive import FIRST
from tests.replicator.test_receiving import a_reader, give

FILES = ("binlog.000003", "binlog.000004", "binlog.000005")
ENDS = ("0-1-4", "0-1-6", "0-1-8")


def logs() -> list[Binlog]:
    made = []
    for begin, end, following in zip(("0-1-3", *ENDS), ENDS, (*FILES[1:], None), strict=False):
        log = Binlog(begin)
        for number in range(Position.parse(begin).sequence(0), Position.parse(end).sequence(0)):
            log.transaction(f"0-1-{number + 1}")
        if following is not None:
            log.rotate(following)
        made.append(log)
    return made


def filled(directory: Path) -> Archive:
    """Return an archive of three files, received as from a stream."""
    archive = Archive.open(directory)
    writer = EpochWriter(archive.begin(FIRST))
    reader = a_reader(FIRST.file, writer.open().offset, FIRST.position)
    for number, log in enumerate(logs()):
        if number:
            give(reader, fake_rotate(FILES[number], 4, server_id=1))
        for event in log.events:
            give(reader, event)
    writer.write(reader.take())
    writer.close()
    return archive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of an epoch of three files, closed."""
    filled(tmp_path / "archive").close()
    return tmp_path / "archive" / "epochs" / "0000000001-1"


def test_a_reader_is_never_led_over_a_missing_file(folder: Path) -> None:
    """A standby would lack what was in it, for ever and unseen: strict GTID mode allows gaps."""
    (folder / FILES[1]).unlink()
    with serving(folder.parents[1]) as server, Reader(server.port) as reader:
        packets = list(reader.dump(FILES[0]).packets())

    assert packets[-1][0] == 0xFF
    assert b"it is missing" in packets[-1]
    assert logs()[0].events[-1] in b"".join(packets)
    assert not any(logs()[2].events[2] in packet for packet in packets)


def test_an_archive_says_behind_which_file_one_is_missing(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    with closing(Archive.open(folder.parents[1])) as archive:
        one = archive.epochs[1]
        before = one.segments[0]

        assert [(lost.file, lost.damage) for lost in one.segments if lost.damage] == [(FILES[1], "it is missing")]
        assert (str(before.position), str(one.position)) == (ENDS[0], ENDS[2])
        with pytest.raises(Damaged, match="missing"):
            lookup.locate(archive, Position.parse("0-1-5"))


def test_an_epoch_that_does_not_follow_the_one_before_is_not_read_on_into(folder: Path) -> None:
    text = (folder / "epoch.json").read_text()
    (folder / "epoch.json").write_text(text.replace('"end": null', f'"end": "{ENDS[2]}"'))
    with closing(Archive.open(folder.parents[1])) as archive:
        one = archive.begin(LineageEntry(epoch=3, server_id=2, file="binlog.000001", position="0-1-9"))
        (one.directory / one.start.file).write_bytes(Binlog("0-1-9", server_id=2).data)
    with serving(folder.parents[1]) as server, Reader(server.port) as reader:
        packets = list(reader.dump(FILES[0], slave_connect_state="0-1-3").packets())

    assert b"not what follows the end of epoch 1" in packets[-1]


def test_files_whose_epoch_record_was_lost_are_found_again(folder: Path) -> None:
    """Otherwise the archive would seem empty, and a seal would say so to a failover."""
    (folder / "epoch.json").unlink()
    findings = verify(Archive.look(folder.parents[1])).findings
    with closing(Archive.open(folder.parents[1])) as archive:
        one = archive.begin(FIRST)

        assert [(found.file, found.why) for found in findings] == [
            ("0000000001-1", "it holds binlog files and no epoch.json that holds")
        ]
        assert str(one.position) == ENDS[2]
        assert EpochWriter(one).open().file == FILES[2]
        assert verify(archive).findings == ()
