"""What is in an archive, as facts for people and scripts. Reads only; the replicator may be running."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import BadInput, MalformedStream
from cluster.position import Position
from replicator import holds, retaining, segments
from replicator.archive import Archive, EpochArchive
from replicator.stored import Form, StoredFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One file. What is not known, for want of a key or an index, is None."""

    epoch: int
    server_id: int
    file: str
    form: str
    stored_bytes: int
    """On disk."""
    bytes: int | None
    """Of the primary's file, as far as it is here."""
    position: str | None
    """The position it begins after."""
    ends: str | None
    """The position it ends at; None while it grows."""
    first_time: int | None
    last_time: int | None
    indexed: bool
    keys: tuple[str, ...]
    ended: str | None
    """Where its epoch ended."""
    why: str | None
    """Why something is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsideFacts:
    """A file that was set aside: an orphan, or a damaged one."""

    file: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """A whole archive."""

    sealed_epoch: int
    epochs: int
    files: int
    not_known: int
    """Files of which something is not known."""
    indexed: int
    encrypted: int
    compressed: int
    bytes: int
    """Of the primaries' files."""
    stored_bytes: int
    """On disk."""
    begins_after: str | None
    ends: str | None
    """None while the newest file grows."""
    first_time: int | None
    last_time: int | None
    """Of the files that have an index."""
    orphans: int
    damaged: int
    free_bytes: int
    holds: int
    held_back: str | None
    """What a limit wants and does not get, as of the replicator's latest round."""
    over_bytes: int | None


def facts_of(one: EpochArchive, file: StoredFile) -> FileFacts:
    """Return what is known of a file without reading it all."""
    segment, form, size, begins, keys, why = None, "unknown", None, None, frozenset[str](), None
    try:
        form, keys, size = _form_of(file)
        segment = segments.indexed(file)
        begins = segment.start if segment is not None else segments.head_of(file, until=segments.HEAD_BYTES_MAX)[1]
    except (BadInput, MalformedStream) as error:
        why = str(error)
    return FileFacts(
        epoch=one.epoch, server_id=one.start.server_id, file=file.name, form=form, stored_bytes=file.path.stat().st_size,
        bytes=size if segment is None else segment.size, position=_text(begins),
        ends=None if segment is None else str(segment.position),
        first_time=None if segment is None else segment.first_time or None,
        last_time=None if segment is None else segment.time or None,
        indexed=segment is not None, keys=tuple(sorted(keys)), ended=one.start.end, why=why,
    )  # fmt: skip


def _form_of(file: StoredFile) -> tuple[str, frozenset[str], int]:
    survey = file.survey()
    words = (["compressed"] if survey.form is Form.PACKED else []) + (["encrypted"] if survey.key_ids else [])
    return ", ".join(words) or survey.form.value, survey.key_ids, survey.size


def _text(position: Position | None) -> str | None:
    return None if position is None else str(position)


def files_of(archive: Archive) -> list[FileFacts]:
    """Return the facts of all files, oldest first."""
    found = list[FileFacts]()
    for one in archive.epochs.values():
        for file in one.files():
            with suppress(FileNotFoundError):  # it was removed meanwhile
                found.append(facts_of(one, file))
    return found


def info_of(archive: Archive) -> ArchiveFacts:
    """Return the facts of a whole archive."""
    files = files_of(archive)
    state, held = retaining.load(archive.directory), holds.read(archive.directory)
    known = [one for one in files if one.why is None]
    epochs = list(archive.epochs.values())
    ends = known[-1].ends or known[-1].ended if known else None
    return ArchiveFacts(
        sealed_epoch=archive.sealed_epoch, epochs=len(epochs), files=len(files),
        not_known=len(files) - len(known), indexed=sum(one.indexed for one in files),
        encrypted=sum(bool(one.keys) for one in files), compressed=sum("compressed" in one.form for one in files),
        bytes=sum(one.bytes or 0 for one in files),
        stored_bytes=sum(one.stored_bytes for one in files),
        begins_after=known[0].position if known else None, ends=ends,
        first_time=min((one.first_time for one in known if one.first_time is not None), default=None),
        last_time=max((one.last_time for one in known if one.last_time is not None), default=None),
        orphans=len(aside(archive.directory, "orphans")), damaged=len(aside(archive.directory, "damaged")),
        free_bytes=archive.free_bytes,
        holds=len(held.standing) + len(held.unreadable),
        held_back=None if state is None else state.held_back or None,
        over_bytes=None if state is None else state.over_bytes,
    )  # fmt: skip


def aside(directory: Path, folder: str) -> list[AsideFacts]:
    """Return what lies in `orphans` or `damaged`."""
    found = sorted((directory / folder).glob("[!.]*"))
    return [AsideFacts(file=path.name, bytes=path.stat().st_size) for path in found]
