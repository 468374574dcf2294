"""One stream out of the archive: large reads, packets, back-pressure; then the live tail, with heartbeats when idle.

What is sent is decided by `boundary` alone: durable bytes of whole groups. A stream that has sent what was cut off
later ends with an error: its reader has transactions that no primary kept.
"""

import asyncio
from contextlib import closing
from zlib import crc32

from cluster import clock
from cluster.binlog import events
from cluster.binlog.events import FIRST_OFFSET
from cluster.binlog.framing import (
    CRC_RESIDUE,
    EVENT_BYTES_MAX,
    EVENT_BYTES_MIN,
    EVENT_SIZE,
    HEADER_BYTES,
    KIB,
    checked_event,
    whole_events,
)
from cluster.clock import Nanos
from cluster.errors import Diverged, MalformedStream, Refused
from replicator import lookup, segments, wire
from replicator.archive import Archive, EpochArchive, gone
from replicator.frames import Damaged
from replicator.lookup import Place
from replicator.metrics import Metrics
from replicator.segments import Segment
from replicator.stored import Reader

READ_BYTES = 256 * KIB


class Ended(Exception):
    """Everything there is was sent, and the reader did not ask to wait for more."""


class News:
    """Tells every waiting stream that the archive changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        """Return the event that the next change sets; take it before you look."""
        return self._event

    def tell(self) -> None:
        """Wake all who wait."""
        told, self._event = self._event, asyncio.Event()
        told.set()


class Stream:
    """Sends to one reader, from one place on."""

    def __init__(
        self, archive: Archive, packets: wire.EventPackets, writer: asyncio.StreamWriter, news: News, metrics: Metrics,
        *, server_id: int, heartbeat_seconds: float, epoch: int | None, until_end: bool,
        checksum_first: bool = True,
    ) -> None:  # fmt: skip
        self.epoch = epoch
        self._archive, self._packets, self._writer, self._news, self._metrics = archive, packets, writer, news, metrics
        self._server_id, self._heartbeat_seconds, self._until_end = server_id, heartbeat_seconds, until_end
        self._checksum = checksum_first
        """Whether the reader expects checksums before it has seen the first format description, which says so."""
        self._stop: Place | None = None
        self._silent_until: Nanos = clock.now()
        """When the reader must hear from us, whatever else happens until then."""

    async def follow_place(self, place: Place, stop: Place | None = None) -> None:
        """Send everything behind `place`, through all epochs, for ever or up to `stop`. Raises when it cannot go on."""
        self._packets.skip(place.skipped, place.position)
        self._stop = stop
        await self._begin(place.segment, place.offset)
        one, segment, offset = place.one, place.segment, place.offset
        while True:
            await self._stop_at(one, segment, offset)
            offset = await self._file(one, segment, offset)
            await self._stop_at(one, segment, offset)
            one, segment, offset = await self._next(one, segment, offset)

    async def follow_file(self, file: str, offset: int) -> None:
        """Send the files of one epoch from an offset on. Raises Ended, or Diverged when the offset is not here."""
        one = self._archive.epochs.get(self.epoch or 0)
        if one is None:
            raise Refused(f"epoch {self.epoch} is not in this archive")
        resume = one.resume()
        if (file, offset) == (resume.file, resume.offset) and one.segment(file) is None:
            await self._rotate(file, offset)
            raise Ended
        segment = one.segment(file)
        if segment is None or await asyncio.to_thread(lookup.position_at, one, file, offset) is None:
            raise Diverged(f"{file}:{offset} is not a boundary of epoch {one.epoch} in this archive")
        while True:
            await self._begin(segment, offset)
            await self._file(one, segment, offset)
            follower = one.follower(segment)
            if follower is None:
                raise Ended
            segment, offset = follower, FIRST_OFFSET

    # -- below ------------------------------------------------------------------------------------------------------

    async def _begin(self, segment: Segment, offset: int) -> None:
        """Say which file and offset come; in the midst of a file its description must come first."""
        await self._rotate(segment.file, offset)
        if offset > FIRST_OFFSET:
            description = bytes(segments.head_of(segment, until=segment.size)[0])
            again = events.described_again(description, server_id=self._server_id)
            await self._write(self._packets.event(again))

    async def _rotate(self, file: str, offset: int) -> None:
        rotate = events.fake_rotate(file, offset, server_id=self._server_id, checksum=self._checksum)
        self._checksum = True
        await self._write(self._packets.event(rotate))

    def _stop_in(self, one: EpochArchive, segment: Segment) -> int | None:
        """Return the offset in this file at which all is sent that was asked for, None when it is in no other or none."""
        stop = self._stop
        if stop is None or (stop.one.epoch, stop.segment.file) != (one.epoch, segment.file):
            return None
        return stop.offset

    async def _stop_at(self, one: EpochArchive, segment: Segment, offset: int) -> None:
        """At the place to stop at say so and raise Ended."""
        stop = self._stop_in(one, segment)
        if self._stop is None or stop is None or offset < stop:
            return
        if offset > stop:
            raise Diverged(f"{segment.file} was cut while it was sent", hint="start the replica again")
        await self._write(self._packets.event(events.until_reached(self._stop.position, server_id=self._server_id)))
        raise Ended

    async def _file(self, one: EpochArchive, segment: Segment, offset: int) -> int:
        """Send one file from `offset` to its end, or to where to stop, and return that.

        Raises Ended at the end of the newest, when nobody waits.
        """
        stop = self._stop_in(one, segment)
        while True:
            # First which bytes, then whether it is closed, then how far it goes: another order could miss a change.
            generation = segment.generation
            with closing(_opened(segment)) as reader:
                while segment.generation == generation:
                    news = self._news.next
                    closed = segment.closed
                    limit = segment.size if closed and self.epoch is not None else segment.boundary
                    if stop is not None and offset <= stop <= limit:
                        limit, closed = stop, True
                    if limit < offset:
                        raise Diverged(f"{segment.file} was cut at {limit}: what was sent behind it is an orphan")
                    if limit > offset:
                        offset = await self._send(segment, reader, offset, limit)
                    elif closed:
                        require_whole(segment, offset)
                        return offset
                    elif self._until_end:
                        raise Ended
                    else:
                        await self._wait(news, segment.file, offset)

    async def _send(self, segment: Segment, reader: Reader, offset: int, limit: int) -> int:
        """Send a piece; return the offset behind it. Nothing that is not what was received is sent."""
        data = bytes(reader.read(offset, min(READ_BYTES, limit - offset)))
        if HEADER_BYTES <= len(data) < (size := EVENT_SIZE.unpack_from(data)[0]) <= limit - offset:
            data = bytes(reader.read(offset, size))
        if not reader.proven:
            require_checksums(data, segment, offset)
        packets, done = self._packets.events(data)
        if done == 0:
            raise Damaged(segment.identity, offset, "no whole event begins here")
        await self._write(packets)
        if offset + done < segment.boundary:
            # Let others have their turn: `drain` returns at once while the reader keeps up.
            await asyncio.sleep(0)
        return offset + done

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        self._silent_until = clock.after(clock.now(), self._heartbeat_seconds * 1000)
        self._metrics.sent_bytes.inc(len(data))
        await self._writer.drain()

    async def _wait(self, news: asyncio.Event, file: str, offset: int) -> None:
        """Wait for news; say that we live when nothing was sent for the heartbeat period: not all news is for the reader."""
        try:
            async with asyncio.timeout(clock.seconds_left(self._silent_until)):
                await news.wait()
        except TimeoutError:
            beat = events.heartbeat(file, offset, server_id=self._server_id)
            await self._write(self._packets.event(beat))

    async def _next(self, one: EpochArchive, segment: Segment, offset: int) -> tuple[EpochArchive, Segment, int]:
        """Return what comes after a closed file that was sent; wait for it, and for a gap before it to be filled."""
        while True:
            news = self._news.next
            if segment.boundary > offset:
                return one, segment, offset
            follower = one.follower(segment)
            if follower is None and one.complete:
                later = next((other for number, other in self._archive.epochs.items() if number > one.epoch), None)
                if later is not None and one is not self._archive.epochs.get(one.epoch) and later.begin != one.end:
                    raise gone(segment)
                if later is not None and later.complete and not later.segments:
                    # An epoch in which nothing was written, not even its first file.
                    one, segment, offset = later, Segment(later.directory / later.start.file, later.begin), FIRST_OFFSET
                    continue
                if later is not None and later.segments:
                    later.require_after(one)
                    one, follower = later, later.segments[0]
            if follower is not None and follower.boundary > FIRST_OFFSET:
                await self._begin(follower, FIRST_OFFSET)
                return one, follower, FIRST_OFFSET
            if self._until_end:
                raise Ended
            await self._wait(news, segment.file, offset)


def require_whole(segment: Segment, offset: int) -> None:
    """Raise Damaged at the end of what is left of a damaged file: nobody is led past what is missing behind it."""
    if segment.damage is not None:
        raise Damaged(segment.identity, offset, segment.damage)


def _opened(segment: Segment) -> Reader:
    try:
        return segment.open()
    except FileNotFoundError:
        raise gone(segment) from None


def require_checksums(data: bytes, segment: Segment, offset: int) -> None:
    """Raise Damaged unless every whole event in `data`, which stands at `offset`, has the checksum it was sent with."""
    if _sound(data):
        return
    at, view = 0, memoryview(data)
    try:
        for at, header in whole_events(view):
            checked_event(view[at : at + header.size])
    except MalformedStream as error:
        raise Damaged(segment.identity, offset + at, error.message) from error


def _sound(data: bytes) -> bool:
    """Return whether nothing is wrong with any whole event in `data`: quickly, and without saying what is."""
    at, end = 0, len(data)
    while end - at >= HEADER_BYTES:
        size: int = EVENT_SIZE.unpack_from(data, at)[0]
        if size > end - at:
            return size <= EVENT_BYTES_MAX  # its end is not here yet
        if size < EVENT_BYTES_MIN or crc32(data[at : at + size]) != CRC_RESIDUE:
            return False
        at += size
    return True
