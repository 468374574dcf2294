"""From a socket to the disk: everything received together is one write and one fdatasync. Used by pull and level."""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

from cluster import clock
from cluster.binlog.framing import KIB, MIB, NEED_DATA, PacketFramer
from cluster.clock import Nanos
from cluster.errors import DeadlinePassed, Unreachable
from cluster.settings import Timing
from replicator.archive import EpochArchive, EpochWriter
from replicator.link import Link
from replicator.metrics import Metrics
from replicator.receiving import Reply, StreamReader
from replicator.source import Target, Wanted, opened

BATCH_BYTES_MAX = 4 * MIB
PROGRESS_BYTES_MIN = 16 * KIB
"""Of a packet that is not whole yet: so much of it is a sign of life. Heartbeats are less within a stream's deadline."""
STOP_LOOK_MS = 250
"""So often a fetch looks whether it should stop."""


class Wake:
    """Wakes a thread that polls; any thread may ring."""

    def __init__(self) -> None:
        self.handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """Make the next poll return at once. Nothing after `close`: the number may be somebody else's file by then."""
        with self._closing:
            if not self._closed:
                os.eventfd_write(self.handle, 1)

    def clear(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.handle)

    def wait(self, seconds: float) -> None:
        """Return when rung, or after `seconds`."""
        poller = select.poll()
        poller.register(self.handle, select.POLLIN)
        poller.poll(seconds * 1000)
        self.clear()

    def close(self) -> None:
        """Give the handle back. Safe to repeat."""
        with self._closing:
            if not self._closed:
                self._closed = True
                os.close(self.handle)


class Intake:
    """One stream from its first packet to its end."""

    def __init__(self, writer: EpochWriter, wanted: Wanted, metrics: Metrics) -> None:
        resume = wanted.resume
        again = resume.offset if wanted.asked_offset != resume.offset else 0
        self._framer = PacketFramer()
        self._writer = writer
        self._metrics = metrics
        self.reader = StreamReader(
            resume.file, wanted.asked_offset, resume.position, semi_sync=wanted.semi_sync, dropped_until=again
        )
        self.heard = clock.now()
        """When the source last brought something whole. A length damaged on the way promises what never comes, and
        heartbeats would trickle into it for ever."""
        self._unfinished_bytes = 0
        self._received_bytes = self._events = self._sync_nanos = 0
        """Not counted yet."""

    def receive(self, raw: Link, answer: Callable[[Reply], None] = lambda _: None) -> None:
        """Read what has come, make it durable, and then `answer` with the acknowledgement that is asked for.

        Whatever need not stand before the answer is done behind it. Raises Unreachable at the end of the stream; what
        came before it is durable then.
        """
        try:
            reply = self._receive(raw)
            if reply is not None:
                answer(reply)
        finally:
            self._count()

    def _receive(self, raw: Link) -> Reply | None:
        reader, framer, progress = self.reader, self._framer, False
        try:
            while True:
                try:
                    count = raw.recv_into(framer.space())
                except BlockingIOError:
                    break
                if count == 0:
                    raise Unreachable("the source closed the stream")
                framer.filled(count)
                self._received_bytes += count
                self._unfinished_bytes += count
                if self._take_packets():
                    self._unfinished_bytes, progress = 0, True
                progress = progress or self._unfinished_bytes >= PROGRESS_BYTES_MIN
                if reader.reply_wanted or reader.ended or reader.batch_bytes >= BATCH_BYTES_MAX:
                    break
                reader.keep()
        except OSError as error:
            raise Unreachable(f"the source: {error}") from None
        finally:
            reply = self._store()
        if progress:
            self._unfinished_bytes, self.heard = 0, clock.now()
        return reply

    def _take_packets(self) -> bool:
        """Hand on every packet that is whole; return whether there was one."""
        reader, framer = self.reader, self._framer
        before = framer.pending_bytes
        reader.accept_transactions(framer)
        while (packet := framer.next_packet()) is not NEED_DATA:
            reader.accept(packet)
            reader.accept_transactions(framer)
        return framer.pending_bytes < before

    def _store(self) -> Reply | None:
        batch = self.reader.take()
        if batch.chunks:
            began = clock.now()
            self._writer.write(batch)
            self._sync_nanos = clock.now() - began
            self._events = sum([chunk.events for chunk in batch.chunks])
        if batch.reply is not None:
            self._writer.require_archived(batch.reply)
        return batch.reply

    def _count(self) -> None:
        """Add what was received, and what was made durable of it, to what Prometheus reads."""
        self._metrics.received_bytes.inc(self._received_bytes)
        if self._events:
            self._metrics.sync_seconds.observe(self._sync_nanos / clock.NANOS_PER_SECOND)
            self._metrics.events.inc(self._events)
        self._received_bytes = self._events = self._sync_nanos = 0


def fetch(
    one: EpochArchive,
    target: Target,
    timing: Timing,
    metrics: Metrics,
    *,
    enough: Callable[[], bool] = lambda: False,
    deadline: Nanos,
    stop: threading.Event,
    from_replicator: bool = True,
) -> None:
    """Append what a source has of an epoch, until that is `enough` or its end; nobody else may be writing to it.

    Raises Unreachable, DeadlinePassed, or what the other one says.
    """
    writer = EpochWriter(one)
    try:
        wanted = Wanted(resume=writer.open(), epoch=one.epoch if from_replicator else None, until_end=True)
        with opened(target, wanted, timing) as stream:
            intake = Intake(writer, wanted, metrics)
            poller = select.poll()
            poller.register(stream.socket, select.POLLIN)
            while not intake.reader.ended and not enough():
                left = clock.seconds_left(deadline)
                if left == 0.0 or stop.is_set():
                    raise DeadlinePassed(f"epoch {one.epoch} is here up to {one.position or 'nothing'} only")
                if poller.poll(min(left * 1000, STOP_LOOK_MS)):
                    intake.receive(stream.socket)
                if clock.ms_between(intake.heard, clock.now()) >= timing.stream_deadline_ms:
                    raise Unreachable(f"{target.host}:{target.port} is silent")
    finally:
        writer.close()
