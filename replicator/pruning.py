"""Removing what may go: files from the front of an archive, one after the other, each durably before the next.

A crash at any step leaves an archive that lacks some of its oldest files and nothing else. An epoch of which nothing
stays leaves by one rename, because a folder without its files would be a gap. Readers that have a file open read on.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster import durable
from cluster.binlog.events import FIRST_OFFSET
from replicator import indexes, stored
from replicator.archive import REMOVED, Archive, EpochArchive
from replicator.retention import HeldFile
from replicator.segments import Segment
from replicator.stored import Form


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the files of an archive take on disk, and what their primaries' files took."""

    files: int
    stored_bytes: Mapping[str, int]
    """By form: plain, framed, packed."""
    raw_bytes: int


def held_files(archive: Archive, lost: Collection[int] = frozenset()) -> list[HeldFile]:
    """Return the files of an archive in order, as the decision needs them; `lost` are epochs whose end nobody has."""
    found = list[HeldFile]()
    for one in list(archive.epochs.values()):
        settled = one.end is None or one.complete or one.epoch in lost
        found += [
            HeldFile(identity=segment.identity, stored_bytes=stored_bytes(segment), newest=segment.time or None,
                     end=segment.position, closed=segment.closed, settled=settled)
            for segment in list(one.segments)
        ]  # fmt: skip
    return found


def sizes(archive: Archive) -> Sizes:
    """Return how large an archive is."""
    here = [segment for one in list(archive.epochs.values()) for segment in list(one.segments)]
    by_form = dict.fromkeys((form.value for form in Form), 0)
    for one in here:
        with suppress(FileNotFoundError):
            by_form[stored.form_of(one.path)] += stored_bytes(one)
    return Sizes(len(here), by_form, sum(one.size for one in here))


def stored_bytes(segment: Segment) -> int:
    """Return what a segment takes on disk, with its index."""
    return _size(segment.path) + _size(indexes.path_of(segment.stored))


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def removing(archive: Archive, going: Sequence[HeldFile], lost: Collection[int] = frozenset()) -> Iterator[str]:
    """Remove files from the front of an archive; yields what was done after each durable step. Raises OSError.

    Whoever calls has the lock of the holds, and judged under it. A file that is not at the front any more ends it.
    """
    left = [one.identity for one in going]
    for one in list(archive.epochs.values()):
        own = [segment.identity for segment in list(one.segments)]
        if own == left[: len(own)] and _may_leave(archive, one, lost):
            yield from _leaving(archive, one)
            left = left[len(own) :]
            continue
        while left and one.segments and one.segments[0].identity == left[0] and len(own) > 1:
            yield from _removing(one, one.segments[0])
            left, own = left[1:], own[1:]
        return


def _may_leave(archive: Archive, one: EpochArchive, lost: Collection[int]) -> bool:
    """Return whether an epoch whose files all go may go as a whole: not the newest, and nothing of it may still come."""
    later = [other for other in archive.epochs.values() if other.epoch > one.epoch]
    held = any(segment.boundary > FIRST_OFFSET for other in later for segment in list(other.segments))
    return held and (one.complete or (one.end is not None and one.epoch in lost))


def _removing(one: EpochArchive, segment: Segment) -> Iterator[str]:
    with segment.lock:
        segment.removed = True
        del one.segments[0]  # from now on no new reader finds it
        # Without its index a file is read when it is needed; an index without its file would lie there for ever.
        indexes.remove(segment.stored)
    yield f"index of {segment.identity}"
    durable.remove(segment.path)
    yield segment.identity


def _leaving(archive: Archive, one: EpochArchive) -> Iterator[str]:
    for segment in list(one.segments):
        with segment.lock:
            segment.removed = True
    archive.forget(one)
    removed = archive.directory / REMOVED
    durable.empty(removed)
    durable.move(one.directory, removed / one.directory.name)
    yield f"folder of {one.directory.name}"
    durable.empty(removed)
    yield one.directory.name
