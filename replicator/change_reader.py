"""The thread that reads what was archived, counts its changes and raises the alarm. Never between a commit and its answer.

It reads the files again, behind their boundary, instead of being told by the pulling thread: so an acknowledgement
waits for nothing of it. Both share one interpreter, so it works in pieces of half a millisecond and then rests: at most
a twentieth of one core, whatever comes. What comes faster is read later, rows estimated; what is too far behind is
passed over and said so, because what happens now matters more. Every site's replicator counts for itself.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from cluster import clock
from cluster.binlog.events import FIRST_OFFSET
from cluster.binlog.framing import GIB, MIB
from cluster.errors import OscarHaError
from cluster.position import Position
from cluster.records import MassChange
from cluster.settings import Alarm
from replicator.archive import Archive, EpochArchive
from replicator.changes import WINDOW_SECONDS, Changes, Raised
from replicator.metrics import Metrics
from replicator.segments import Segment, events_of

POLL_SECONDS = 0.5
"""So often it looks whether anything new is archived."""
WORK_MS, REST_SECONDS = 0.5, 0.0095
MEASURE_EVERY_MS = 250
EXACT_BACKLOG_BYTES = 32 * MIB
"""Rows are walked while no more than this is waiting, and estimated beyond."""
BACKLOG_BYTES_MAX = GIB
LOOK_BACK_BYTES = 16 * MIB
"""So much is read again after a start, so that an alarm does not end with its process."""
REPORTED_MAX = 8
JOIN_DEADLINE_SECONDS = 5.0
log = structlog.get_logger()


@dataclass(slots=True)
class _Place:
    """Where to go on reading."""

    one: EpochArchive
    segment: Segment
    offset: int


class ChangeReader:
    """Reads from near the archive's end on, until stopped. `standing` may be read from any thread."""

    def __init__(
        self,
        archive: Archive,
        limits: Alarm,
        metrics: Metrics,
        changed: Callable[[], None],
        *,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self.standing: tuple[MassChange, ...] = ()
        self._archive, self._metrics, self._changed = archive, metrics, changed
        self._backlog_bytes_max = backlog_bytes_max
        self._changes = Changes(limits)
        self._told: dict[tuple[str, str], Raised] = {}
        self._place: _Place | None = None
        self._exact = True
        self._trouble = ""
        self._slice_end = self._measure_at = clock.now()
        self._wall_seconds = clock.utc_seconds()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that. Safe to call when it never began."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_DEADLINE_SECONDS)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
                self._trouble = ""
            except FileNotFoundError:
                pass  # it is being stored otherwise, or was removed: the next look finds what there is
            except (OscarHaError, OSError) as error:
                self._place = None
                if self._trouble != str(error):
                    self._trouble = str(error)
                    log.warning("changes.failed", error=str(error))
            except Exception:  # a bug of ours must be seen; it is no reason to receive nothing
                log.exception("changes.failed")
                self._place = None
            self._tell()
            self._stop.wait(POLL_SECONDS)

    def _read(self) -> None:
        """Read everything that is archived."""
        self._wall_seconds = clock.utc_seconds()
        while not self._stop.is_set() and (place := self._next()) is not None:
            self._place = place
            until = place.segment.boundary
            for header, offset, event in events_of(place.segment, begin=place.offset, until=until):
                now = clock.now()
                self._changes.follow(header, event, now=now, wall_seconds=self._wall_seconds, exact=self._exact)
                place.offset = offset + header.size
                if now >= self._slice_end and self._rested():
                    return
            if place.offset < until:
                place.offset = until  # the file was cut behind our back; what is there now comes with the next look

    def _rested(self) -> bool:
        """Rest, and return whether to end."""
        stop = self._stop.wait(REST_SECONDS)
        self._slice_end, self._wall_seconds = clock.after(clock.now(), WORK_MS), clock.utc_seconds()
        if self._slice_end < self._measure_at:
            return stop
        return self._measured() > self._backlog_bytes_max or stop

    def _measured(self) -> int:
        self._measure_at = clock.after(clock.now(), MEASURE_EVERY_MS)
        backlog = 0 if self._place is None else sum(_waiting(self._archive, self._place))
        self._exact = backlog <= EXACT_BACKLOG_BYTES
        self._metrics.changes_backlog.set(backlog)
        return backlog

    def _next(self) -> _Place | None:
        """Return where to read on, None when all is read."""
        place = self._place
        if place is None or not any(one is place.segment for one in place.one.segments):
            return self._begun(self._near_end())
        backlog = self._measured()
        if backlog > self._backlog_bytes_max and (ahead := self._near_end()) is not None:
            skipped = backlog - sum(_waiting(self._archive, ahead[0]))
            if skipped > 0:  # not so within one transaction as large as that: it is read to its end
                self._metrics.changes_skipped.inc(skipped)
                log.warning("changes.skipped", bytes=skipped, why="more is received than can be counted")
                return self._begun(ahead)
        place.offset = min(place.offset, max(place.segment.boundary, FIRST_OFFSET))
        if place.offset < place.segment.boundary:
            return place
        following = _following(self._archive, place)
        if following is not None:
            self._changes.restart(following.segment.start)
        return following

    def _begun(self, found: tuple[_Place, Position] | None) -> _Place | None:
        """Begin to count anew at this place."""
        if found is None:
            return None
        place, position = found
        self._changes.restart(position)
        return place

    def _near_end(self) -> tuple[_Place, Position] | None:
        """Return a boundary a little before the end, and the position there; None when nothing is behind it."""
        found = [one for one in self._archive.epochs.values() if one.segments]
        if not found:
            return None
        segment = found[-1].segments[-1]
        marks = [mark for mark in segment.index or () if mark[0] <= segment.boundary - LOOK_BACK_BYTES]
        offset, position = marks[-1][:2] if marks else (FIRST_OFFSET, segment.start)
        return (_Place(found[-1], segment, offset), position) if segment.boundary > offset else None

    # -- what is said -----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        changes = self._changes
        self._metrics.changed_rows(*changes.take())
        standing = {(one.table, one.kind): one for one in changes.alarms(clock.now())}
        for key, one in standing.items():
            before = self._told.get(key)
            if before is None or (one.rows or 0) >= 2 * (before.rows or one.rows or 1):
                log.warning("mass_change", window_seconds=WINDOW_SECONDS, **_fields(one))
                self._told[key] = one
        for key in self._told.keys() - standing.keys():
            log.info("mass_change.ended", **_fields(self._told.pop(key)))
        reported = tuple(_reported(one) for one in list(standing.values())[:REPORTED_MAX])
        if reported != self.standing:
            self.standing = reported
            self._metrics.mass_changes(set(standing))
            self._changed()


def _following(archive: Archive, place: _Place) -> _Place | None:
    """Return the beginning of the file after this one, in this epoch or a later one, once there is something in it."""
    segment, one = place.one.follower(place.segment), place.one
    if segment is None:
        later = [other for other in archive.epochs.values() if other.epoch > one.epoch and other.segments]
        if not later:
            return None
        one, segment = later[0], later[0].segments[0]
    return _Place(one, segment, FIRST_OFFSET) if segment.boundary > FIRST_OFFSET else None


def _waiting(archive: Archive, place: _Place) -> list[int]:
    """Return the bytes of every file that are not read yet."""
    here = list(place.one.segments)
    at = next((number for number, one in enumerate(here) if one is place.segment), len(here))
    later = [*here[at + 1 :]]
    for other in archive.epochs.values():
        later += list(other.segments) if other.epoch > place.one.epoch else []
    return [max(0, place.segment.boundary - place.offset), *(one.boundary for one in later)]


def _reported(one: Raised) -> MassChange:
    return MassChange(table=one.table, kind=one.kind, rows=one.rows, estimated=one.estimated, first=str(one.first),
                      before=str(one.before), since=clock.utc_text(one.since))  # fmt: skip


def _fields(one: Raised) -> dict[str, object]:
    return {"table": one.table, "kind": one.kind, "rows": one.rows, "estimated": one.estimated,
            "first": str(one.first), "before": str(one.before), "since": clock.utc_text(one.since),
            "what_to_do": f"to keep a standby without it: oscar-ha hold NODE --before {one.first}"}  # fmt: skip
