"""Framing: cut at every byte, with another packet behind; no length is believed."""

import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cluster.binlog import framing
from cluster.binlog.framing import (
    NEED_DATA,
    PART_BYTES_MAX,
    PacketFramer,
    an_event,
    checked_event,
    packet,
    whole_events,
)
from cluster.errors import MalformedStream
from cluster.position import Position
from replicator import packets
from replicator.frames import Damaged
from replicator.segments import Segment
from replicator.streaming import require_checksums
from replicator.wire import EventPackets

EVENT = an_event(16, b"\1\2\3\4\5\6\7\0", server_id=7, end_position=99)


def packets_in(framer: PacketFramer) -> list[bytes]:
    found = []
    while (one := framer.next_packet()) is not NEED_DATA:
        found.append(bytes(one))
    return found


def test_a_packet_cut_at_every_byte_is_whole_only_at_its_end() -> None:
    data = packet(b"\0" + EVENT, 3)
    for cut in range(len(data)):
        framer = PacketFramer()
        framer.feed(data[:cut])
        assert framer.next_packet() is NEED_DATA
        framer.feed(data[cut:] + packet(b"behind", 4))
        assert packets_in(framer) == [b"\0" + EVENT, b"behind"]


@given(payloads=some.lists(some.binary(max_size=300), max_size=30), piece=some.integers(1, 97))
def test_what_is_packed_is_framed_again_however_it_arrives(payloads: list[bytes], piece: int) -> None:
    data = b"".join(packet(payload, number) for number, payload in enumerate(payloads))
    framer, found = PacketFramer(), list[bytes]()
    for begin in range(0, len(data), piece):
        framer.feed(data[begin : begin + piece])
        found += packets_in(framer)

    assert found == payloads
    assert framer.pending_bytes == 0


@pytest.mark.parametrize("extra", [-1, 0, 1, PART_BYTES_MAX])
def test_a_split_packet_is_joined(extra: int) -> None:
    payload = bytes(range(256)) * ((PART_BYTES_MAX + extra) // 256 + 1)
    payload = payload[: PART_BYTES_MAX + extra]
    data = packet(payload, 0) + packet(b"behind", 9)
    framer = PacketFramer()
    framer.feed(data[:-20])
    framer.feed(data[-20:])

    assert packets_in(framer) == [payload, b"behind"]


def test_a_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    small, split = PacketFramer(packet_bytes_max=100), PacketFramer(packet_bytes_max=PART_BYTES_MAX + 10)
    small.feed((101).to_bytes(3, "little") + b"\0")
    split.feed(packet(bytes(PART_BYTES_MAX), 0)[:-4] + (11).to_bytes(3, "little") + b"\1")

    for framer in (small, split):
        with pytest.raises(MalformedStream):
            framer.next_packet()


@given(at=some.integers(0, len(EVENT) - 1), mask=some.integers(1, 255))
def test_no_damaged_event_is_believed(at: int, mask: int) -> None:
    damaged = bytearray(EVENT)
    damaged[at] ^= mask

    with pytest.raises(MalformedStream):
        checked_event(memoryview(damaged))


@given(data=some.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_wait(data: bytes) -> None:
    framer = PacketFramer(packet_bytes_max=1000)
    framer.feed(data)
    with suppress(MalformedStream):
        for one in packets_in(framer):
            checked_event(memoryview(one))
    with suppress(MalformedStream):
        assert all(offset < len(data) for offset, _ in whole_events(memoryview(data)))


def test_an_event_of_ours_has_a_right_checksum() -> None:
    (checksum,) = Struct("<I").unpack(EVENT[-4:])

    assert zlib.crc32(EVENT[:-4]) == checksum
    assert checked_event(memoryview(EVENT)) == framing.EventHeader(0, 16, 7, len(EVENT), 99, 0)


@pytest.mark.parametrize("semi_sync", [False, True])
@given(sizes=some.lists(some.integers(0, 400), min_size=1, max_size=40), cut=some.integers(0, 500))
def test_events_become_packets_however_many_come_together(semi_sync: bool, sizes: list[int], cut: int) -> None:
    events = [an_event(16, bytes(size), server_id=1) for size in sizes]
    data = b"".join(events)
    held = data[: max(0, len(data) - cut)]
    whole = [number for number in range(len(events)) if sum(map(len, events[: number + 1])) <= len(held)]
    sent, done = EventPackets(250, semi_sync=semi_sync).events(held)
    framer = PacketFramer()
    framer.feed(sent)
    lead = b"\0\xef\0" if semi_sync else b"\0"

    assert packets_in(framer) == [lead + events[number] for number in whole]
    assert done == sum(len(events[number]) for number in whole)


@given(
    sizes=some.lists(some.integers(0, 400), max_size=9), cut=some.integers(0, 60), sequence=some.integers(0, 255),
    lead=some.sampled_from([b"\0", b"\0\xef\0"]), at=some.integers(0, 2_000), damage=some.binary(max_size=6),
)  # fmt: skip
def test_what_is_compiled_frames_as_python_does(
    sizes: list[int], cut: int, sequence: int, lead: bytes, at: int, damage: bytes
) -> None:
    data = b"".join(an_event(16, bytes(size), server_id=1) for size in sizes)
    data = data[:at] + damage + data[at + len(damage) :]
    data = data[: max(0, len(data) - cut)]

    assert packets.framed(data, lead, sequence) == packets.framed_in_python(data, lead, sequence)


@pytest.mark.parametrize("size", [PART_BYTES_MAX - 2, PART_BYTES_MAX - 1, PART_BYTES_MAX, 2**31, 2**32 - 1])
def test_what_fills_more_than_a_packet_is_left_to_who_can_split_it(size: int) -> None:
    event = EVENT[:9] + size.to_bytes(4, "little") + bytes(PART_BYTES_MAX)
    whole = size + 1 < PART_BYTES_MAX

    for framed in (packets.framed, packets.framed_in_python):
        assert framed(event, b"\0", 0)[1:] == ((size, 1) if whole else (0, 0))


def test_the_loop_that_serving_costs_is_compiled_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here: script/setup installs one")

    assert packets.COMPILED, "run script/setup: replicator/_packets.c was not compiled"


def test_packets_are_numbered_on_from_call_to_call() -> None:
    stream, numbers = EventPackets(250), list[int]()
    for together in (3, 300, 1, 7):
        sent, _ = stream.events(EVENT * together)
        numbers += sent[3 :: len(EVENT) + 5]

    assert numbers == [(250 + count) % 256 for count in range(311)]
    assert stream.event(EVENT)[3] == (250 + 311) % 256


def test_an_event_that_fills_several_packets_is_split_between_small_ones() -> None:
    events = [EVENT, an_event(30, bytes(PART_BYTES_MAX + 5), server_id=1), EVENT]
    data, stream, found, framer = b"".join(events), EventPackets(0), list[bytes](), PacketFramer()
    while data:
        sent, done = stream.events(data)
        data = data[done:]
        framer.feed(sent)
        found += packets_in(framer)

    assert found == [b"\0" + event for event in events]


@pytest.mark.parametrize("size", [0, 22, 2**31])
def test_no_event_of_an_impossible_size_is_sent(size: int) -> None:
    damaged = EVENT[:9] + size.to_bytes(4, "little") + EVENT[13:]

    assert EventPackets(0).events(EVENT + damaged)[1] == len(EVENT)
    with pytest.raises(MalformedStream):
        EventPackets(0).events(damaged)


@given(
    sizes=some.lists(some.integers(0, 90), min_size=1, max_size=9), cut=some.integers(0, 60),
    at=some.integers(0, 1_000), change=some.integers(0, 255),
)  # fmt: skip
def test_what_is_sent_without_a_proof_is_judged_event_by_event(
    sizes: list[int], cut: int, at: int, change: int
) -> None:
    """The quick look says what a look at each event with everything in it says, and where."""
    whole = b"".join(an_event(16, bytes(size), server_id=1) for size in sizes)
    data = bytearray(whole[: max(1, len(whole) - cut)])
    data[at % len(data)] ^= change
    found = None
    try:
        require_checksums(bytes(data), Segment(Path("1/binlog.000001"), Position()), 400)
    except Damaged as error:
        found = error.offset - 400

    assert found == wrong_at(memoryview(data))


def wrong_at(data: memoryview) -> int | None:
    at = 0
    try:
        for offset, header in whole_events(data):
            at = offset
            checked_event(data[at : at + header.size])
    except MalformedStream:
        return at
    return None
