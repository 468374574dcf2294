"""From packets to what is archived and acknowledged; what is artificial steers and is never archived."""

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.binlog import events
from cluster.binlog.events import Kind
from cluster.binlog.framing import MAGIC, NEED_DATA, PacketFramer, an_event, packet
from cluster.errors import Diverged, MalformedStream, OscarHaError, Unauthorized, Unreachable
from cluster.position import Position
from replicator.receiving import Chunk, Reply, StreamReader
from replicator.remedy import NotThere, SameServerId, error_for
from tests.replicator.binlog import Binlog

FILE = "binlog.000003"


def a_reader(file: str = FILE, offset: int = 4, position: str = "", *, semi_sync: bool = False) -> StreamReader:
    reader = StreamReader(file, offset, Position.parse(position), semi_sync=semi_sync)
    lead = b"\0\xef\0" if semi_sync else b"\0"
    reader.accept(memoryview(lead + events.fake_rotate(file, offset, server_id=1)))
    return reader


def give(reader: StreamReader, *given: bytes, lead: bytes = b"\0") -> None:
    for event in given:
        reader.accept(memoryview(lead + event))


def bytes_of(chunk: Chunk) -> bytes:
    return b"".join(chunk.parts)


def test_what_is_archived_is_the_file() -> None:
    log = Binlog("0-1-3")
    log.ddl("0-1-4")
    log.transaction("0-1-5", rows=3)
    reader = a_reader(position="0-1-3")
    give(reader, *log.events)
    (chunk,) = reader.take().chunks

    assert MAGIC + bytes_of(chunk) == log.data
    assert (chunk.boundary, str(chunk.position), chunk.offset) == (len(log.data), "0-1-5", 4)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_boundary_is_only_where_a_group_ends(cut: int) -> None:
    log = Binlog()
    log.ddl("0-1-1", "CREATE TABLE t (a INT)")
    log.gtid("0-1-2")
    log.query("INSERT INTO m VALUES (1)")
    log.query("COMMIT")
    log.note()
    log.transaction("0-1-3", rows=2)
    reader = a_reader()
    give(reader, *log.events[:cut])
    (chunk,) = reader.take().chunks
    reached = [known for known in log.boundaries if known[0] <= 4 + chunk.size]

    assert (chunk.boundary, str(chunk.position)) == (reached[-1] if reached else (0, ""))


def test_artificial_events_are_never_archived() -> None:
    """TRAPS.md 2."""
    log = Binlog()
    log.transaction("0-1-1")
    reader = a_reader()
    give(reader, *log.events, events.heartbeat(FILE, len(log.data), server_id=1),
         an_event(Kind.GTID_LIST, bytes(4), server_id=1, flags=0x20))  # fmt: skip
    (chunk,) = reader.take().chunks

    assert MAGIC + bytes_of(chunk) == log.data


def test_a_rotation_begins_the_next_file() -> None:
    first, second = Binlog(), Binlog("0-1-1")
    first.transaction("0-1-1")
    first.rotate("binlog.000004")
    second.transaction("0-1-2")
    reader = a_reader()
    give(reader, *first.events, events.fake_rotate("binlog.000004", 4, server_id=1), *second.events)
    chunks = reader.take().chunks

    assert [(chunk.file, MAGIC + bytes_of(chunk), chunk.next_file) for chunk in chunks] == [
        (FILE, first.data, "binlog.000004"),
        ("binlog.000004", second.data, None),
    ]
    assert [str(chunk.position) for chunk in chunks] == ["0-1-1", "0-1-2"]


def test_a_file_that_does_not_begin_where_we_ended_is_refused() -> None:
    """Bytes would be missing between, or it is another history."""
    with pytest.raises(Diverged):
        give(a_reader(position="0-1-7"), *Binlog("0-1-9").events)


def test_the_newest_event_that_asks_for_a_reply_is_acknowledged() -> None:
    """TRAPS.md 4: the flag is on the last event of a group; the reply is its end and its file."""
    log = Binlog()
    log.transaction("0-1-1")
    first = len(log.data)
    log.transaction("0-1-2")
    second = len(log.data)
    log.transaction("0-1-3")
    reader = a_reader(semi_sync=True)
    end = 4
    for event in log.events:
        end += len(event)
        give(reader, event, lead=b"\0\xef\1" if end in (first, second) else b"\0\xef\0")
    batch = reader.take()

    assert batch.reply is not None
    assert (batch.reply.file, batch.reply.offset, str(batch.reply.position)) == (FILE, second, "0-1-2")
    assert reader.take().reply is None


def test_offsets_are_counted_here_and_may_pass_four_gigabytes() -> None:
    begin = 2**32 - 30
    reader = a_reader(offset=begin, position="0-1-1")
    event = an_event(Kind.BINLOG_CHECKPOINT, b"x" * 40, server_id=1, end_position=begin + 63)
    give(reader, event)
    (chunk,) = reader.take().chunks

    assert chunk.boundary == begin + 63 > 2**32
    with pytest.raises(MalformedStream):
        give(reader, an_event(Kind.STOP, b"", server_id=1, end_position=5))


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (an_event(99, b"", server_id=1), MalformedStream),
        (an_event(Kind.INCIDENT, bytes(3), server_id=1), Diverged),
        (an_event(Kind.TABLE_MAP, bytes(30), server_id=1), MalformedStream),
        (an_event(Kind.GTID, b"", server_id=1), MalformedStream),
    ],
    ids=["an unknown type", "an incident", "rows outside of a transaction", "a GTID cut off"],
)
def test_what_must_not_be_passed_over_stops_the_stream(event: bytes, error: type[Exception]) -> None:
    """TRAPS.md 9: an unknown event, or one that says that the primary lost something."""
    reader = a_reader()
    give(reader, *Binlog().events)

    with pytest.raises(error):
        give(reader, event)


def test_an_unknown_event_that_may_be_ignored_is_archived() -> None:
    reader = a_reader()
    give(reader, *Binlog().events, an_event(99, b"", server_id=1, flags=0x80))

    assert bytes_of(reader.take().chunks[0])[-23:] == an_event(99, b"", server_id=1, flags=0x80)


@pytest.mark.parametrize("name", ["../../etc/000001", "binlog", "a/b.000001", "x" * 300 + ".000001", "\udcff.000001"])
def test_a_name_that_is_no_binlog_file_is_refused(name: str) -> None:
    body = Struct("<Q").pack(4) + name.encode(errors="surrogateescape")
    with pytest.raises(MalformedStream):
        give(a_reader(), an_event(Kind.ROTATE, body, server_id=1, flags=0x20))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(1045, Unauthorized), (1236, NotThere), (4052, SameServerId), (2013, Unreachable), (1040, Unreachable)],
)
def test_what_the_source_says_tells_who_must_act(code: int, kind: type[Exception]) -> None:
    assert type(error_for(code, "text")) is kind


def test_a_crash_in_the_midst_of_a_group_is_forgotten_at_the_next_file() -> None:
    first, second = Binlog(), Binlog("0-1-1")
    first.transaction("0-1-1")
    whole = len(first.data)
    first.gtid("0-1-2")
    first.add(Kind.TABLE_MAP, bytes(30))
    second.transaction("0-1-2")
    reader = a_reader()
    give(reader, *first.events, events.fake_rotate("binlog.000004", 4, server_id=1), *second.events)
    one, other = reader.take().chunks

    assert (one.boundary, str(one.position), one.size + 4) == (whole, "0-1-1", len(first.data))
    assert str(other.position) == "0-1-2"


def a_stream(*, semi_sync: bool) -> bytes:
    """Two files with all there is: transactions large and small, DDL, statements, what is artificial, replies asked for."""
    first, second = Binlog("0-1-3"), Binlog("0-1-7,1-1-1")
    first.transaction("0-1-4", rows=3)
    first.ddl("0-1-5")
    first.gtid("0-1-6")
    first.query("INSERT INTO m VALUES (1)")
    first.query("COMMIT")
    first.transaction("1-1-1", rows=300, row_bytes=1_000)
    first.transaction("0-1-7")
    first.rotate("binlog.000004")
    second.transaction("0-1-8", rows=2)
    second.transaction("0-1-9", rows=0)
    given = [*first.events, events.fake_rotate("binlog.000004", 4, server_id=1), *second.events[:4],
             events.heartbeat("binlog.000004", 99, server_id=1), *second.events[4:]]  # fmt: skip
    asked = b"\0\xef\1" if semi_sync else b"\0"
    lead = b"\0\xef\0" if semi_sync else b"\0"
    return b"".join(packet((asked if number % 7 == 6 else lead) + event, number) for number, event in enumerate(given))


def read(data: bytes, pieces: list[int], *, semi_sync: bool, quickly: bool) -> tuple[list[object], str]:
    """Return what a reader makes of a stream that comes in pieces, and how it ends."""
    reader, framer, found = a_reader(position="0-1-3", semi_sync=semi_sync), PacketFramer(), list[object]()
    try:
        for begin, end in zip([0, *pieces], [*pieces, len(data)], strict=True):
            framer.feed(data[begin:end])
            while True:
                if quickly:
                    reader.accept_transactions(framer)
                if (one := framer.next_packet()) is NEED_DATA:
                    break
                reader.accept(one)
            batch = reader.take()
            found += [(batch.reply, *((chunk.file, chunk.offset, chunk.size, chunk.events, chunk.boundary, chunk.position,
                                       chunk.start, chunk.marks, chunk.first_time, chunk.time, chunk.next_file,
                                       bytes_of(chunk))
                                      for chunk in batch.chunks))]  # fmt: skip
    except OscarHaError as error:
        return found, str(error)
    return found, "whole"


@pytest.mark.parametrize("semi_sync", [False, True])
@given(cuts=some.lists(some.integers(0, 10**6), max_size=12))
def test_the_quick_way_takes_the_same_as_the_thorough_one(semi_sync: bool, cuts: list[int]) -> None:
    data = a_stream(semi_sync=semi_sync)
    pieces = sorted(cut % len(data) for cut in cuts)

    assert read(data, pieces, semi_sync=semi_sync, quickly=True) == read(
        data, pieces, semi_sync=semi_sync, quickly=False
    )
    assert read(data, pieces, semi_sync=semi_sync, quickly=True)[1] == "whole"


@pytest.mark.parametrize("semi_sync", [False, True])
@given(at=some.integers(0, 10**6), mask=some.integers(1, 255))
def test_the_quick_way_believes_no_damage_either(semi_sync: bool, at: int, mask: int) -> None:
    damaged = bytearray(a_stream(semi_sync=semi_sync))
    damaged[at % len(damaged)] ^= mask

    quick = read(bytes(damaged), [], semi_sync=semi_sync, quickly=True)
    assert quick == read(bytes(damaged), [], semi_sync=semi_sync, quickly=False)


def test_a_commit_alone_is_taken_in_one_loop_from_its_first_event_to_the_one_that_asks() -> None:
    """With one client every batch is such a commit: two of its events took as long as all else (decision 0066)."""
    log = Binlog("0-1-3")
    reader, framer, begun = a_reader(position="0-1-3", semi_sync=True), PacketFramer(), len(log.events)
    give(reader, *log.events, lead=b"\0\xef\0")
    reader.take()
    log.transaction("0-1-4")
    *quiet, last = log.events[begun:]
    framer.feed(b"".join(packet(b"\0\xef\0" + event, 1) for event in quiet) + packet(b"\0\xef\1" + last, 1))
    reader.accept_transactions(framer)
    (chunk,), reply = (batch := reader.take()).chunks, batch.reply

    assert framer.next_packet() is NEED_DATA
    assert (bytes_of(chunk), chunk.boundary, str(chunk.position)) == (b"".join((*quiet, last)), len(log.data), "0-1-4")
    assert reply == Reply(FILE, len(log.data), Position.parse("0-1-4"))


def test_what_is_no_transaction_leaves_no_empty_batch() -> None:
    """An empty one would be synced, for nothing."""
    reader, framer = a_reader(position="0-1-3", semi_sync=True), PacketFramer()
    give(reader, *Binlog("0-1-3").events, lead=b"\0\xef\0")
    reader.take()
    framer.feed(packet(b"\0\xef\0" + events.heartbeat(FILE, 99, server_id=1), 1))
    reader.accept_transactions(framer)

    assert framer.next_packet() is not NEED_DATA
    assert reader.take().chunks == ()


def test_a_stream_cut_at_every_byte_is_read_the_same() -> None:
    data = a_stream(semi_sync=True)
    whole = read(data[:3_000], [], semi_sync=True, quickly=False)[0]
    for cut in range(3_000):
        found, said = read(data[:3_000], [cut], semi_sync=True, quickly=True)

        assert said == "whole"
        assert joined(found) == joined(whole)


def joined(batches: list[object]) -> bytes:
    """Return the archived bytes of batches."""
    return b"".join(chunk[-1] for batch in batches for chunk in batch[1:])  # type: ignore[index]  # made by `read`
