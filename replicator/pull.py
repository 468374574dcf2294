"""The thread that pulls one epoch from its primary: receive, make durable, and only then acknowledge.

It has a thread of its own so that nothing else of this process stands between a commit and its acknowledgement.
What it may do is told by a `Standing`, which others replace at any time; it is judged immediately before the effect.
"""

import select
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import structlog
import tenacity

from cluster import clock
from cluster.binlog.events import LostEvents
from cluster.clock import NANOS_PER_MS, Nanos
from cluster.errors import Diverged, OscarHaError, Refused, Unreachable
from cluster.position import Position
from cluster.settings import Timing
from replicator.archive import DiskFull, EpochArchive, EpochWriter
from replicator.intake import Intake, Wake
from replicator.metrics import Metrics
from replicator.pace import Pace
from replicator.permission import Heard, Standing, all_have, lacking, may_acknowledge, why_not, why_not_named
from replicator.receiving import Reply
from replicator.remedy import Remedy, SameServerId, named, remedy_of
from replicator.source import Opened, Target, Wanted, acknowledgement, opened

RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS = 0.05, 1.0
RETRY_SLOW_SECONDS = 5.0
"""Between attempts when a person must mend something first."""
ROOM_LOOK_SECONDS = 0.25
"""So often a full disk is looked at: commits wait for it."""
LIVELY_AFTER_MS = 1_000
DRAIN_DEADLINE_MS = 50
PENDING_MAX = 1_024
"""Beyond this the oldest are forgotten: a newer one acknowledges them too."""
JOIN_DEADLINE_SECONDS = 10.0
STOPPED = "stopped"
"""What a thread says that ended because it was asked to."""
log = structlog.get_logger()


class Puller:
    """Pulls `one` from `target` until stopped. The fields without underscore may be read from any thread."""

    def __init__(
        self, one: EpochArchive, target: Target, timing: Timing, standing: Standing, metrics: Metrics,
        pace: Pace, *, lacked: str | None = None,
    ) -> None:  # fmt: skip
        """`lacked`: what the last stream from here ended with, when that does not go away by itself."""
        self.one, self.target = one, target
        self.connected = self.semi_sync = False
        self.acknowledged: Position | None = None
        self.server_version: str | None = None
        self.why = lacked or "connecting"
        self._doubted = lacked is not None
        """The next stream may end at once as the last one did: it counts as connected when it has lasted a while."""
        self.diverged: Diverged | None = None
        """The source does not have what we need next, others may; it is cleared when a stream lasts."""
        self.failed: OscarHaError | None = None
        """What ended the thread though nobody stopped it."""
        self._timing, self._metrics, self._pace = timing, metrics, pace
        self._standing = standing
        self._writer = EpochWriter(one)
        self._heard: Mapping[str, Heard] = {}
        self._pending: deque[Reply] = deque(maxlen=PENDING_MAX)
        """Acknowledgements that the primary waits for, oldest first; only the newest that is due is sent."""
        self._wake = Wake()
        self._stop = threading.Event()
        self._gate = threading.Lock()
        self._quiet = threading.Event()
        self._quiet.set()
        self._thread = threading.Thread(target=self._run, name=f"pull-epoch-{one.epoch}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stand(self, standing: Standing) -> None:
        """Replace what we may do."""
        self._standing = standing
        self._wake.ring()

    def hear(self, heard: Mapping[str, Heard]) -> None:
        """Replace what the other ackers have said."""
        self._heard = heard
        self._wake.ring()

    @property
    def acknowledging(self) -> bool:
        """Return whether a commit would be acknowledged now, once everybody else who must has it."""
        return self.connected and self.semi_sync and may_acknowledge(self._standing, clock.now()) and not self.waits_for

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Return whose word is missing."""
        return lacking(self._standing, self._heard, clock.now())

    def request_stop(self) -> None:
        """End: what the socket holds is still archived, nothing more is acknowledged."""
        with self._gate:
            self._stop.set()
        self._wake.ring()

    def wait_quiet(self, seconds: float) -> bool:
        """Return whether, `seconds` after a stop at the latest, no stream is open any more."""
        return self._quiet.wait(seconds)

    def join(self) -> None:
        """Wait until the thread has ended, after a stop. Raises Unreachable when it does not."""
        self._thread.join(JOIN_DEADLINE_SECONDS)
        if self._thread.is_alive():
            raise Unreachable("the pulling thread does not end")

    def close(self) -> None:
        """Give back what it held; nobody may use it any more."""
        self._wake.close()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retrying = tenacity.Retrying(
            sleep=self._pause,
            wait=self._seconds_to_wait,
            retry=tenacity.retry_if_exception(_worth_another_try),
            stop=tenacity.stop_when_event_set(self._stop),
        )
        while not self._stop.is_set():
            try:
                retrying(self._stream)
            except tenacity.RetryError:
                break
            except SameServerId as error:
                self.failed = error
                break
            except Exception as error:  # a bug of ours must be seen, not end the thread in silence
                self.failed = Refused(f"the pulling thread failed: {error!r}")
                log.exception("pull.failed", epoch=self.one.epoch)
                break
        self._end_stream(STOPPED if self.failed is None else str(self.failed))

    def _pause(self, seconds: float) -> None:
        """Wait between attempts; only a stop ends it early. Every report of ours rings `_wake`, failures' too."""
        self._stop.wait(seconds)

    def _seconds_to_wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        remedy = remedy_of(error) if error is not None else Remedy.TRANSIENT
        why = str(error) if error is None else named(error)
        if self.why != why:
            log.warning("pull.ended", epoch=self.one.epoch, error=str(error), remedy=remedy.value)
        self.diverged = error if isinstance(error, Diverged) and not isinstance(error, LostEvents) else None
        self._doubted = self._doubted or (remedy is not Remedy.TRANSIENT and not isinstance(error, DiskFull))
        self._metrics.stream_ended(remedy)
        self._end_stream(why)
        if isinstance(error, DiskFull):
            return ROOM_LOOK_SECONDS
        if remedy is not Remedy.TRANSIENT:
            return RETRY_SLOW_SECONDS
        return float(min(RETRY_MAX_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(state.attempt_number - 1, 10)))

    def _end_stream(self, why: str) -> None:
        self.why, self.connected, self.semi_sync = why, False, False
        self._pending.clear()
        self._writer.close()
        self._quiet.set()
        self._pace.ring()

    def _stream(self) -> None:
        """Connect and follow one stream. Returns to connect anew at once, raises to wait first."""
        resume = self._writer.open()
        semi_sync = self._may(resume.position)
        wanted = Wanted(resume=resume, semi_sync=semi_sync, permitted=lambda: self._enter(semi_sync, resume.position))
        began = clock.now()
        try:
            with opened(self.target, wanted, self._timing) as stream:
                self.semi_sync, self.server_version = semi_sync, stream.server_version
                self._metrics.waits_for(None)
                self.acknowledged = resume.position if semi_sync else self.acknowledged
                log.info("pull.connected", epoch=self.one.epoch, file=resume.file, offset=resume.offset,
                         semi_sync=semi_sync)  # fmt: skip
                if not self._doubted:
                    self._believe()
                self._follow(stream, Intake(self._writer, wanted, self._metrics))
            self._end_stream("connecting anew")
        except OscarHaError as error:
            if not error.retryable or clock.ms_between(began, clock.now()) < LIVELY_AFTER_MS:
                raise
            log.warning("pull.ended", epoch=self.one.epoch, error=str(error))
            self._end_stream(str(error))

    def _believe(self) -> None:
        """Say that we are connected."""
        self.connected, self._doubted = True, False
        self.why, self.diverged = "streaming", None
        self._pace.ring()

    def _may(self, position: Position) -> bool:
        """Return whether `position` may be acknowledged at this very moment."""
        now, standing = clock.now(), self._standing
        return may_acknowledge(standing, now) and all_have(standing, self._heard, position, now)

    def _enter(self, semi_sync: bool, position: Position) -> bool:
        """The last look before the dump is asked for: it acknowledges everything up to its own position (TRAPS.md 5)."""
        with self._gate:
            if self._stop.is_set() or (semi_sync and not self._may(position)):
                return False
            self._quiet.clear()
            return True

    def _follow(self, stream: Opened, intake: Intake) -> None:
        poller, began = select.poll(), clock.now()
        poller.register(stream.socket, select.POLLIN)
        poller.register(self._wake.handle, select.POLLIN)
        while True:
            silent_ms = (clock.now() - intake.heard) // NANOS_PER_MS
            ready = poller.poll(max(0, self._timing.stream_deadline_ms - silent_ms))
            if not ready:
                raise Unreachable(f"the primary is silent for {self._timing.stream_deadline_ms} ms")
            handles = [handle for handle, _ in ready]
            if self._wake.handle in handles:
                self._wake.clear()
                if self._stop.is_set():
                    self._drain(stream, intake)
                    return
                if self._mode_changed():
                    return
                self._acknowledge(stream)
            if handles != [self._wake.handle]:
                self._receive(stream, intake)
                if self._doubted and clock.ms_between(began, clock.now()) >= LIVELY_AFTER_MS:
                    self._believe()
                if clock.ms_between(intake.heard, clock.now()) >= self._timing.stream_deadline_ms:
                    raise Unreachable("the primary sends nothing whole")

    def _receive(self, stream: Opened, intake: Intake) -> None:
        intake.receive(stream.socket, partial(self._answer, stream))
        if intake.reader.ended:
            raise Unreachable("the primary ended the stream")
        self._pace.ring()

    def _answer(self, stream: Opened, reply: Reply) -> None:
        self._pending.append(reply)
        if self._standing.others:
            self._pace.hurry()  # they wait for our word as we do for theirs
        self._acknowledge(stream)

    def _acknowledge(self, stream: Opened) -> None:
        """Send the newest acknowledgement that is due, if we may at this very moment."""
        due: Reply | None = None
        while self._pending and not self._stop.is_set() and self._may(self._pending[0].position):
            due = self._pending.popleft()
        if due is None:
            return
        try:
            stream.socket.sendall(acknowledgement(due.file, due.offset))
        except OSError as error:
            raise Unreachable(f"the acknowledgement could not be sent: {error}") from None
        self.acknowledged = due.position
        self._metrics.acknowledgements.inc()

    def _mode_changed(self) -> bool:
        """Connect anew when we became an acker, or are none any more. A lease that ended may come back: wait."""
        if self.semi_sync:
            return why_not_named(self._standing) is not None
        return self._may(self.one.position)

    def _drain(self, stream: Opened, intake: Intake) -> None:
        """Archive what the socket still holds: a primary that died may have sent more than we have read."""
        deadline: Nanos = clock.after(clock.now(), DRAIN_DEADLINE_MS)
        poller = select.poll()
        poller.register(stream.socket, select.POLLIN)
        with suppress(OscarHaError):  # its end is what we read for
            while poller.poll(0) and clock.now() < deadline:
                intake.receive(stream.socket)

    def reason(self) -> str:
        """Return in words what it does, and why it does not acknowledge."""
        if not self.connected:
            return self.why
        reason, missing = why_not(self._standing, clock.now()), self.waits_for
        if reason is None and missing:
            return f"waiting for the word of {' and '.join(missing)}"
        return (
            "acknowledging" if reason is None and self.semi_sync else f"archiving only: {reason or 'connecting anew'}"
        )


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, OscarHaError | OSError) and not isinstance(error, SameServerId)
