"""From a socket to the disk and back: what stands before an answer, and what does not."""

import socket
from pathlib import Path

from cluster.binlog import events
from cluster.binlog.framing import packet
from cluster.records import LineageEntry
from replicator.archive import Archive, EpochWriter
from replicator.intake import Intake
from replicator.link import Link
from replicator.metrics import Metrics
from replicator.receiving import Reply
from replicator.source import Wanted
from tests.replicator.binlog import Binlog

FIRST = LineageEntry(epoch=1, server_id=1, file="binlog.000003", position="0-1-3")
QUIET, ASKING = b"\0\xef\0", b"\0\xef\1"


def test_a_commit_is_answered_when_it_is_on_disk_and_counted_behind_that(tmp_path: Path) -> None:
    """The client waits for the disk, and for nothing that Prometheus reads."""
    log, metrics, seen = Binlog("0-1-3"), Metrics("toronto"), list[tuple[int, str, float]]()
    log.transaction("0-1-4")
    given = [events.fake_rotate(FIRST.file, 4, server_id=1), *log.events]
    leads = [QUIET] * (len(given) - 1) + [ASKING]
    archive = Archive.open(tmp_path / "archive")
    one = archive.begin(FIRST)
    writer = EpochWriter(one)

    def counted() -> float:
        return metrics.registry.get_sample_value("oscar_ha_replicator_events_total", {"site": "toronto"}) or 0.0

    def answer(reply: Reply) -> None:
        stored = one.segments[-1].path.read_bytes()
        seen.append((reply.offset, str(one.position), counted()))
        assert stored == log.data

    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"".join(packet(lead + event, 1) for lead, event in zip(leads, given, strict=True)))
        Intake(writer, Wanted(resume=writer.open(), semi_sync=True), metrics).receive(Link(here), answer)
    writer.close()
    archive.close()

    assert seen == [(len(log.data), "0-1-4", 0.0)]
    assert counted() == len(log.events)
