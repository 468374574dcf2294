"""Where in the archive a replica goes on: from its GTID position to an epoch, a file and an offset, or a clear no.

A replica whose position is not in the archive is refused with the reason, never started somewhere near.
"""

from dataclasses import dataclass

from cluster.binlog.events import FIRST_OFFSET, GroupTracker, Kind, Mark, gtid_of
from cluster.errors import Diverged, Refused
from cluster.position import Gtid, Position
from replicator import indexes, segments
from replicator.archive import Archive, EpochArchive
from replicator.frames import Damaged
from replicator.segments import Segment


class NotYet(Refused):
    """The replica is ahead of the archive, which may still grow."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group boundary of the archive."""

    one: EpochArchive
    segment: Segment
    offset: int
    position: Position
    skipped: Position | None
    """Groups that this position covers are left out; None: everything is sent."""


def locate(archive: Archive, wanted: Position) -> Place:
    """Return where a replica that has `wanted` goes on. Raises NotYet, Refused (too old) or Diverged."""
    chain = [(one, segment) for one in archive.epochs.values() for segment in list(one.segments)
             if segment.boundary > FIRST_OFFSET]  # fmt: skip
    if not chain:
        raise NotYet("the archive is empty")
    oldest = chain[0][1].start
    if not wanted.covers(oldest):
        raise Refused(f"the archive begins after {oldest}, the replica has {wanted or 'nothing'}: what it needs next was"
                      " removed, or was never here",
                      hint="build it anew: `oscar-ha reinitialize NODE`, or let it follow another replicator")  # fmt: skip
    _require_same(oldest, wanted)
    one, segment = next(pair for pair in reversed(chain) if wanted.covers(pair[1].start))
    offset, position = _within(segment, wanted)
    end = one.position if segment is one.segments[-1] else segment.position
    if not end.covers(wanted) and position == end:
        one.follower(segment)  # what it asks for may be in a file that is missing
        raise _beyond(one, end, wanted)
    return Place(one, segment, offset, position, None if position == wanted else wanted)


def place_of(archive: Archive, file: str, offset: int) -> Place:
    """Return the place that a tool names by file and offset; where epochs have files of one name, in the newest.

    Without a name it is the beginning of the archive. Raises Refused.
    """
    named = [(one, segment) for one in archive.epochs.values() for segment in list(one.segments)
             if segment.boundary > FIRST_OFFSET and file in ("", segment.file)]  # fmt: skip
    if not named:
        raise Refused(f"{file or 'anything'} is not in this archive", hint="oscar-ha archive ls shows what is")
    one, segment = named[-1] if file else named[0]
    position = position_at(one, segment.file, max(offset, FIRST_OFFSET))
    if position is None:
        raise Refused(f"{segment.file}:{offset} is not a boundary of epoch {one.epoch} in this archive",
                      hint="begin at the file's first event, 4, or where a transaction ends")  # fmt: skip
    return Place(one, segment, max(offset, FIRST_OFFSET), position, None)


def _beyond(one: EpochArchive, end: Position, wanted: Position) -> Refused:
    if one.end is not None and not one.complete:
        return Refused(f"the archive of epoch {one.epoch} ends at {end}, the replica has {wanted}: it lies in a gap",
                       hint="let another replicator fill the gap, or clone the replica anew")  # fmt: skip
    return NotYet(f"the archive ends at {end or 'nothing'}, the replica has {wanted}")


def _within(segment: Segment, wanted: Position) -> tuple[int, Position]:
    """Return the boundary before the first group of `segment` that `wanted` lacks, and the position there."""
    limit = segment.boundary
    index = index_of(segment)
    marks = [mark for mark in index if mark[0] <= limit and wanted.covers(mark[1])]
    offset, position = marks[-1][:2] if marks else (FIRST_OFFSET, segment.start)
    tracker = GroupTracker(position)
    _require_same(position, wanted)
    for header, at, event in segments.events_of(segment, begin=offset, until=limit):
        if header.kind == Kind.GTID:
            sequence, domain, _ = gtid_of(event)
            gtid = Gtid(domain, header.server_id, sequence)
            if sequence > wanted.sequence(domain):
                return at, tracker.position
            _require_same(Position({domain: gtid}), wanted)
        if tracker.follow(header, event):
            offset = at + header.size
    if tracker.in_group:
        raise Damaged(segment.identity, offset, "a transaction has no end")
    return offset, tracker.position


def index_of(segment: Segment) -> list[Mark]:
    """Return a segment's marks: from memory, from its index on disk, or by reading the file, without checksums."""
    if segment.index is None and segment.indexed:
        segment.index = indexes.marks(segment.stored)
    if segment.index is None:
        segment.index = segments.marks_of(segment)
    return segment.index


def position_at(one: EpochArchive, file: str, offset: int) -> Position | None:
    """Return the position at an offset of a file, None when that is no group boundary we have."""
    segment = one.segment(file)
    if segment is None or not FIRST_OFFSET <= offset <= segment.boundary:
        return None
    if offset == segment.boundary and not segment.closed:
        return segment.position
    marks = [mark for mark in index_of(segment) if mark[0] <= offset]
    begin, position = marks[-1][:2] if marks else (FIRST_OFFSET, segment.start)
    tracker = GroupTracker(position)
    if begin == offset:
        return position
    for event in segments.walk(segment, tracker, begin=begin, until=segment.boundary):
        if event.end == offset:
            return tracker.position if event.boundary else None
    return None


def _require_same(ours: Position, wanted: Position) -> None:
    """Raise when both name the same number of a domain, and not the same transaction."""
    for domain, gtid in wanted.last.items():
        known = ours.last.get(domain)
        if known is not None and known.sequence == gtid.sequence and known.server != gtid.server:
            raise Diverged(f"the replica has {gtid}, the archive has {known}",
                           hint="the replica went its own way: rescue what it has, then clone it anew")  # fmt: skip
