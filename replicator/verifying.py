"""Proving an archive: every event's checksum, every index, and that nothing is missing from file to file and epoch to epoch.

Reads only; the replicator may be running. What a growing file holds behind its last whole event is not judged.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

from cluster.binlog.events import FILE_NAME, FIRST_OFFSET, GroupTracker, Kind, file_number
from cluster.binlog.framing import MIB
from cluster.errors import MalformedStream
from cluster.position import Position
from replicator import epoch_file, indexes, segments, stored
from replicator.archive import Archive, EpochArchive
from replicator.epoch_file import EPOCH_FILE
from replicator.segments import Walked
from replicator.stored import StoredFile

TELL_EVERY_BYTES = MIB
Told = Callable[[int], None]
"""Is told how many bytes more were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    file: str
    """As `epoch-server/file`, or the folder of the epoch alone."""
    offset: int | None
    """Of the primary's file."""
    why: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProof:
    """What reading a whole file showed."""

    file: StoredFile
    start: Position | None
    position: Position | None
    next_file: str | None
    bytes: int
    indexed: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What reading a whole archive showed."""

    files: int
    bytes: int
    indexed: int
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Walk:
    """What is gathered on the way through a file."""

    tracker: GroupTracker
    marks: dict[int, Position]
    end: int = FIRST_OFFSET
    rotate: Walked | None = None
    met: int = 0
    wrong_mark: int | None = None


def verify(archive: Archive, told: Told = lambda _: None) -> Verdict:
    """Read everything. Raises BadInput for a key that we have not."""
    proofs, findings = list[FileProof](), list[Finding]()
    for one in archive.epochs.values():
        files = one.files()
        newest = one.end is None
        own = list[FileProof]()
        for file in files:
            try:
                own.append(prove(file, grows=newest and file is files[-1], told=told))
            except FileNotFoundError:
                # Retention removes from the front while we read: what was there was proved, and is no part of it now.
                own.clear()
        for proof in own:
            findings += proof.findings
        if own or one.directory.is_dir():
            findings += between_files(one, own)
        proofs += own
    findings += [*between_epochs(list(archive.epochs.values())), *nameless(archive)]
    return Verdict(files=len(proofs), bytes=sum(one.bytes for one in proofs),
                   indexed=sum(one.indexed for one in proofs), findings=tuple(findings))  # fmt: skip


def prove(file: StoredFile, *, grows: bool, told: Told = lambda _: None) -> FileProof:
    """Read a file from its first byte to its last, and compare it with its index."""
    index, size, start, position, next_file = None, 0, None, None, None
    findings, had_index = list[Finding](), indexes.present(file)  # the replicator may write one while we read
    try:
        survey = file.survey()
        size, index = survey.size, indexes.head(file)
        start = segments.head_of(file, until=size)[1]
        if start is None and not grows:
            findings.append(_damage(file, 0, "it holds no list of GTIDs", grows=grows))
        if start is not None:
            walk, known = _Walk(GroupTracker(start), _marks(file)), index if not grows else None
            findings += _walked(file, walk, size, grows=grows, told=told)
            position = walk.tracker.position
            next_file = None if walk.rotate is None else segments.next_file_of(file, walk.rotate)
            if known is not None and not findings:
                findings += _compared(file, walk, known, size)
        if survey.damage is not None and not findings:
            findings.append(_damage(file, size, survey.damage, grows=grows))
    except MalformedStream as error:
        findings.append(_damage(file, size, error.message, grows=grows))
    if index is None and had_index and indexes.present(file):
        findings.append(Finding(file=file.identity, offset=None, why="its index is damaged",
                                mend=f"remove {file.name}.index: the replicator makes it anew when it starts"))  # fmt: skip
    return FileProof(file=file, start=start, position=position, next_file=next_file, bytes=size,
                     indexed=index is not None, findings=tuple(findings))  # fmt: skip


def size_on_disk(file: StoredFile) -> int:
    """Return a file's size, 0 when it was removed meanwhile."""
    try:
        return file.path.stat().st_size
    except FileNotFoundError:
        return 0


def _walked(file: StoredFile, walk: _Walk, size: int, *, grows: bool, told: Told) -> list[Finding]:
    """Check every event; return the finding that ends it, if any."""
    said = 0
    try:
        for event in segments.walk(file, walk.tracker, until=size, check=True):
            walk.end = event.end
            if walk.end - said >= TELL_EVERY_BYTES:
                told(walk.end - said)
                said = walk.end
            walk.rotate = event if event.header.kind == Kind.ROTATE else walk.rotate
            wanted = walk.marks.get(event.end)
            if wanted is not None:
                walk.met += 1
                if not event.boundary or wanted != walk.tracker.position:
                    walk.wrong_mark = event.end
        told(walk.end - said)
    except MalformedStream as error:
        return [_damage(file, walk.end, error.message, grows=grows)]
    if walk.end < size and not grows:
        return [_damage(file, walk.end, "it ends in the midst of an event", grows=grows)]
    return []


def _compared(file: StoredFile, walk: _Walk, index: indexes.Index, size: int) -> list[Finding]:
    """Compare a file with its index."""
    if size != index.size:
        return [
            _damage(file, min(size, index.size), f"it holds {size} bytes, its index says {index.size}", grows=False)
        ]
    if _digest(file, size) != index.sha256:
        return [_damage(file, 0, "its SHA-256 is not the one in its index", grows=False)]
    if index.position != str(walk.tracker.position) or walk.wrong_mark is not None or walk.met != len(walk.marks):
        return [Finding(file=file.identity, offset=walk.wrong_mark, why="its index does not describe it",
                        mend=f"remove {file.name}.index and restart the replicator: it makes it anew")]  # fmt: skip
    return []


def _digest(file: StoredFile, size: int) -> str:
    digest = hashlib.sha256()
    with closing(file.open()) as reader:
        for piece in stored.pieces(reader, 0, size, name=file.identity):
            digest.update(piece)
    return digest.hexdigest()


def _marks(file: StoredFile) -> dict[int, Position]:
    return {mark.offset: mark.position for mark in indexes.marks(file) or ()}


def between_files(one: EpochArchive, proofs: list[FileProof]) -> list[Finding]:
    """Return where a file of an epoch does not begin where the one before ends, and a missing end."""
    found = list[Finding]()
    if proofs and proofs[0].file.name == one.start.file and proofs[0].start not in (None, one.begin):
        found.append(_gap(proofs[0], f"the epoch begins after {one.start.position}, the file after {proofs[0].start}"))
    for before, after in pairwise(proofs):
        follows = before.next_file in (None, after.file.name) and (
            before.next_file is not None or file_number(after.file.name) == file_number(before.file.name) + 1
        )
        if not follows:
            found.append(_gap(after, f"{before.next_file or 'a file'} is missing behind {before.file.name}"))
        elif None not in (before.position, after.start) and before.position != after.start:
            found.append(_gap(after, f"it begins after {after.start}, the file before ends at {before.position}"))
    last = proofs[-1].position if proofs else one.begin
    if one.end is not None and last is not None and last != one.end:
        found.append(Finding(file=one.directory.name, offset=None, why=f"the epoch ended at {one.end}, here is {last}",
                             mend="run the replicator: it fetches the end from the others while one has it"))  # fmt: skip
    return found


def between_epochs(epochs: list[EpochArchive]) -> list[Finding]:
    """Return where an epoch does not begin where the one before ended."""
    return [
        Finding(file=after.directory.name, offset=None,
                why=f"it begins after {after.begin}, epoch {before.epoch} ended at {before.end}",
                mend="compare both epoch.json with those of another replicator")
        for before, after in pairwise(epochs)
        if after.epoch == before.epoch + 1 and before.end != after.begin
    ]  # fmt: skip


def nameless(archive: Archive) -> list[Finding]:
    """Return the folders that hold files and not the record of whose they are: nobody reads or serves them."""
    return [
        Finding(file=folder.name, offset=None, why=f"it holds binlog files and no {EPOCH_FILE} that holds",
                mend="restart the replicator: it makes it anew from the files and the lineage in ZooKeeper")
        for folder in sorted((archive.directory / "epochs").iterdir())
        if folder.is_dir() and epoch_file.read(folder) is None and any(map(FILE_NAME.fullmatch, os.listdir(folder)))
    ]  # fmt: skip


def _damage(file: StoredFile, offset: int, why: str, *, grows: bool) -> Finding:
    mend = "restart the replicator: it sets the damaged end aside and fetches it again" if grows else _again(file.name)
    return Finding(file=file.identity, offset=offset, why=why, mend=mend)


def _gap(proof: FileProof, why: str) -> Finding:
    return Finding(file=proof.file.identity, offset=0, why=why, mend=_copy("the files around here"))


def _again(name: str) -> str:
    return (f"a running replicator finds it and fetches it again by itself; if `oscar-ha status` says that nobody has"
            f" {name}: put a whole one from a backup there")  # fmt: skip


def _copy(what: str) -> str:
    return (
        f"stop this replicator, copy {what} from the same folder of another replicator whose archive verifies, start it"
    )
