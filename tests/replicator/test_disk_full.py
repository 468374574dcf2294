"""A disk that is full, or nearly: nothing is believed to be written that is not, and it goes on when there is room."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cluster.binlog.framing import MIB
from replicator.archive import Archive, DiskFull, EpochWriter
from replicator.keys import NO_KEYS, Keys
from tests.replicator.binlog import Binlog
from tests.replicator.test_archive import FIRST, RING, content, fill, first_log
from tests.replicator.test_receiving import a_reader, give
from tests.servers import disk

SMALL_DISK_BYTES = 2 * MIB
ANY_ROOM = -(2**30)
"""Less than no reserve: the margin above it is larger than such a small disk."""


def test_at_the_reserve_nothing_is_received_and_with_room_it_goes_on(tmp_path: Path) -> None:
    with closing(Archive.open(tmp_path / "archive")) as archive:
        one = archive.begin(FIRST)
        one.reserve_bytes = 2**60
        with pytest.raises(DiskFull, match="the reserve is"):
            fill(archive, FIRST, first_log())
        assert one.segments == []
        one.reserve_bytes = 0
        fill(archive, FIRST, first_log())
        assert content(archive, one.segments[0].path) == first_log().data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB."""
    with disk.small_disk(tmp_path / "disk", SMALL_DISK_BYTES) as place:
        yield place


@pytest.mark.parametrize("keys", [NO_KEYS, RING], ids=["plain", "encrypted"])
def test_a_disk_that_fills_in_the_midst_of_a_write_loses_and_corrupts_nothing(small_disk: Path, keys: Keys) -> None:
    log = Binlog("0-1-3")
    for number in range(4, 24):
        log.transaction(f"0-1-{number}", rows=2, row_bytes=30_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(MIB + 300_000))
    with closing(Archive.open(small_disk / "archive", keys, reserve_bytes=0)) as archive:
        one = archive.begin(FIRST)
        one.reserve_bytes = ANY_ROOM
        with pytest.raises(DiskFull, match="is full"):
            write_group_by_group(archive, log)
        kept = one.segments[0]
        assert log.data.startswith(content(archive, kept.path)[: kept.boundary])
        assert (kept.boundary, str(kept.position)) in log.boundaries[1:-1]
        ballast.unlink()
        fill(archive, FIRST, log)
        assert content(archive, kept.path) == log.data


def write_group_by_group(archive: Archive, log: Binlog) -> None:
    writer = EpochWriter(archive.epochs[1])
    resume = writer.open()
    reader, edges, offset = (
        a_reader(resume.file, resume.offset, str(resume.position)),
        {end for end, _ in log.boundaries},
        4,
    )
    with closing(writer):
        for event in log.events:
            give(reader, event)
            offset += len(event)
            if offset in edges:
                writer.write(reader.take())
