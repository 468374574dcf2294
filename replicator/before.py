"""Which transaction is the first not to be applied, and where that is: by its GTID, or by a time of the primary's clock.

The answer is a place of the archive and the position there: whoever stops at it has everything before and nothing of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster import clock
from cluster.binlog.events import FIRST_OFFSET, GroupTracker, Kind, Mark, gtid_of
from cluster.errors import BadInput, Refused
from cluster.position import Gtid, Position
from replicator import indexes, segments
from replicator.archive import Archive, EpochArchive
from replicator.lookup import index_of
from replicator.segments import Segment

TIME_DIGITS_MAX = 10
FIND = "oscar-ha archive find tells which transactions there are"


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A transaction, and the position that has everything before it."""

    gtid: Gtid
    position: Position
    seconds: int
    """When it was, as the primary's clock said: seconds since 1970."""
    epoch: int
    file: str
    offset: int


def before_gtid(archive: Archive, wanted: Gtid) -> Before:
    """Return the place before a transaction. Raises Refused when it is not in this archive."""
    chain = _chain(archive)
    oldest = chain[0][1].start
    if wanted.sequence <= oldest.sequence(wanted.domain):
        raise Refused(f"{wanted} is older than this archive, which begins after {oldest}", hint=FIND)
    for one, segment in reversed(chain):
        if segment.start.sequence(wanted.domain) < wanted.sequence:
            marks = [mark for mark in index_of(segment) if mark.position.sequence(wanted.domain) < wanted.sequence]
            for found in _groups(one, segment, marks[-1] if marks else None):
                if found.gtid.domain == wanted.domain and found.gtid.sequence >= wanted.sequence:
                    if found.gtid != wanted:
                        raise Refused(f"there is no {wanted}: the archive has {found.gtid} in its place", hint=FIND)
                    return found
            break
    end = chain[-1][1].position
    raise Refused(f"{wanted} is not in this archive, which ends at {end or 'nothing'}", hint=FIND)


def before_time(archive: Archive, seconds: int) -> Before:
    """Return the place before the first transaction that was committed at this second or later. Raises Refused.

    Clocks are set back now and then: it is the first one in the order of the archive, so nothing later is before it.
    """
    for one, segment in _chain(archive):
        if segment.closed and 0 < segment.time < seconds:
            continue
        mark = indexes.mark_before([mark for mark in index_of(segment) if mark.offset <= segment.boundary], seconds)
        for found in _groups(one, segment, mark):
            if found.seconds >= seconds:
                return found
    raise Refused(f"nothing was committed at {clock.utc_text(seconds)} or later, as far as this archive goes",
                  hint="give an earlier time, or hold it now")  # fmt: skip


def _chain(archive: Archive) -> list[tuple[EpochArchive, Segment]]:
    chain = [(one, segment) for one in archive.epochs.values() for segment in one.segments
             if segment.boundary > FIRST_OFFSET]  # fmt: skip
    if not chain:
        raise Refused("the archive is empty", hint="is the replicator connected to the primary?")
    return chain


def _groups(one: EpochArchive, segment: Segment, mark: Mark | None) -> Iterator[Before]:
    """Yield every transaction of a file from a boundary on, each with the position before it."""
    begin, position = (FIRST_OFFSET, segment.start) if mark is None else (mark.offset, mark.position)
    tracker = GroupTracker(position)
    for header, offset, event in segments.events_of(segment, begin=begin, until=segment.boundary):
        if header.kind == Kind.GTID:
            sequence, domain, _ = gtid_of(event)
            yield Before(gtid=Gtid(domain, header.server_id, sequence), position=tracker.position,
                         seconds=header.timestamp, epoch=one.epoch, file=segment.file, offset=offset)  # fmt: skip
        tracker.follow(header, event)


def asked(archive: Archive, gtid: str | None, time: str | None) -> Before:
    """Return what an HTTP question asks for. Raises BadInput, Refused."""
    if (gtid is None) == (time is None):
        raise BadInput("ask for either a transaction or a time", hint="?gtid=0-1-123 or ?time=SECONDS_SINCE_1970")
    if gtid is not None:
        return before_gtid(archive, Gtid.parse(gtid))
    if time is None or not time.isdecimal() or len(time) > TIME_DIGITS_MAX:
        raise BadInput(f"time is {time!r}", hint="give whole seconds since 1970")
    return before_time(archive, int(time))
