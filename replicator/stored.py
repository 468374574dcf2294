"""Reading and writing one file of the archive, in whatever form it lies on disk. Offsets are the primary's, always.

    plain       the primary's bytes; `mariadb-binlog` reads the file itself
    framed      frames as they were appended, encrypted (decision 0020)
    packed      compressed frames, encrypted when there is a key, and an index of them (replicator/packing.py)

The first bytes of a file say which it is. A file changes its form by a rename: who has the old one open goes on.
"""

import errno
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from zlib import crc32

from cluster import durable
from cluster.binlog.framing import KIB, MAGIC, MIB
from replicator import frames
from replicator.frames import FRAME_BYTES_MAX, FRAME_HEAD_BYTES, RUN_BYTES, RUN_MAGIC, Damaged, FrameHead, Run
from replicator.keys import NO_KEYS, Keys

BLOCK_BYTES = 256 * KIB
"""So much of a plain file is proved at once."""
WINDOW_BYTES = 512 * KIB
MAP_EVERY_BYTES = 64 * KIB
COPY_BYTES = MIB
DISK_ERRORS = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
"""What a system says when a disk no longer gives back what was written to it."""


class Form(StrEnum):
    """How a file lies on disk."""

    PLAIN = "plain"
    FRAMED = "framed"
    PACKED = "packed"


def form_of(path: Path) -> Form:
    """Return how a file lies on disk, from its ends. Raises OSError."""
    with path.open("rb") as file:
        if not frames.is_framed(file.read(len(RUN_MAGIC))):
            return Form.PLAIN
        file.seek(max(0, os.fstat(file.fileno()).st_size - frames.TRAILER_BYTES))
        return Form.FRAMED if frames.trailer_of(file.read(frames.TRAILER_BYTES)) is None else Form.PACKED


class Reader(Protocol):
    """An open file. For one task at a time."""

    form: Form
    proven: bool
    """Whether all the last `read` returned was proved to be what was written."""

    def read(self, offset: int, count: int) -> bytes | memoryview:
        """Return the bytes at an offset: `count`, or as many as there are before the end or a damage. Raises Damaged."""
        ...

    def close(self) -> None:
        """Let the file go."""
        ...


class Readable(Protocol):
    """What can be opened for reading: a segment, or a file by its path."""

    @property
    def name(self) -> str:
        """Return the file's name."""
        ...

    @property
    def identity(self) -> str:
        """Return what messages call it: the folder of its epoch and server, and its name."""
        ...

    def open(self) -> Reader:
        """Open it."""
        ...


class Sums:
    """CRC32 of every whole block of a plain file; grows with it."""

    def __init__(self, whole: Iterable[int] = ()) -> None:
        self.whole = array("I", whole)
        self._part = self._part_bytes = 0

    def add(self, data: bytes | memoryview) -> None:
        """Take the bytes that follow."""
        view = memoryview(data)
        while len(view):
            piece = view[: BLOCK_BYTES - self._part_bytes]
            self._part, self._part_bytes = crc32(piece, self._part), self._part_bytes + len(piece)
            if self._part_bytes == BLOCK_BYTES:
                self.end()
            view = view[len(piece) :]

    def end(self) -> None:
        """Let the last block be as short as it is: the file is closed."""
        if self._part_bytes:
            self.whole.append(self._part)
        self._part = self._part_bytes = 0


class FrameMap:
    """Where the frames of a file are: about every MAP_EVERY_BYTES one. One thread adds, others look."""

    def __init__(self) -> None:
        self._offsets, self._places, self._runs = array("Q"), array("Q"), array("Q")

    def add(self, offset: int, place: int, run: int) -> None:
        """Note that the frame of the primary's `offset` is at `place`, in the run whose header is at `run`."""
        if self._offsets and offset - self._offsets[-1] < MAP_EVERY_BYTES:
            return
        self._runs.append(run)
        self._places.append(place)
        self._offsets.append(offset)

    def before(self, offset: int) -> tuple[int, int, int]:
        """Return offset, place and run of the last noted frame that begins at or before `offset`."""
        number = bisect_right(self._offsets, offset) - 1
        return (0, RUN_BYTES, 0) if number < 0 else (self._offsets[number], self._places[number], self._runs[number])

    def until(self, offset: int) -> "FrameMap":
        """Return a map of what is before `offset`."""
        kept = FrameMap()
        for number in range(bisect_left(self._offsets, offset)):
            kept.add(self._offsets[number], self._places[number], self._runs[number])
        return kept


class PlainReader:
    """The primary's bytes as they are; proved block by block where the sums are known."""

    form = Form.PLAIN

    def __init__(self, handle: int, name: str, sums: Sums | None) -> None:
        self._handle, self._name, self._sums = handle, name, sums
        self._number, self._block = -1, b""
        self.proven = False

    def read(self, offset: int, count: int) -> bytes | memoryview:
        self.proven = True
        return _gathered(self._piece, offset, count, self._name)

    def close(self) -> None:
        os.close(self._handle)

    def _piece(self, offset: int, count: int) -> bytes | memoryview:
        number, within = divmod(offset, BLOCK_BYTES)
        if self._sums is None or number >= len(self._sums.whole):
            self.proven = False
            return os.pread(self._handle, count, offset)
        if number != self._number:
            block = os.pread(self._handle, BLOCK_BYTES, number * BLOCK_BYTES)
            if crc32(block) != self._sums.whole[number]:
                raise Damaged(self._name, number * BLOCK_BYTES, "the bytes on disk are not those that were written")
            self._number, self._block = number, block
        return (
            self._block
            if within == 0 and count >= len(self._block)
            else memoryview(self._block)[within : within + count]
        )


class FramedReader:
    """Frames one after the other from wherever it is asked; one frame is held."""

    def __init__(self, handle: int, keys: Keys, identity: str, known: FrameMap | None) -> None:
        self._handle, self._keys, self._identity = handle, keys, identity
        self.proven = True
        self._window, self._window_at = memoryview(b""), 0
        self._runs: dict[int, Run] = {}
        self._held, self._held_at = memoryview(b""), 0
        self._plain, self._place, self._run_at = 0, 0, 0
        packed = self._index()
        self.form = Form.FRAMED if packed is None else Form.PACKED
        self._own = known is None and packed is None
        self._map: FrameMap = packed or known or FrameMap()

    def read(self, offset: int, count: int) -> bytes | memoryview:
        return _gathered(self._piece, offset, count, self._identity)

    def close(self) -> None:
        os.close(self._handle)

    def heads(self) -> Iterator[tuple[FrameHead, int, int]]:
        """Yield every whole frame from the beginning, its place and its run's: headers only, nothing is decrypted."""
        self._plain, self._place, self._run_at = 0, 0, 0
        while (head := self._next()) is not None:
            yield head, self._place, self._run_at
            self._pass(head)

    @property
    def runs(self) -> int:
        """Return how many runs were met."""
        return max((run.number for run in self._runs.values()), default=-1) + 1

    @property
    def key_ids(self) -> set[str]:
        """Return the names of the keys of the runs that were met."""
        return {run.key for run in self._runs.values() if run.key is not None}

    # -- below ------------------------------------------------------------------------------------------------------

    def _piece(self, offset: int, count: int) -> memoryview:
        if not self._held_at <= offset < self._held_at + len(self._held) and not self._load(offset):
            return memoryview(b"")
        return self._held[offset - self._held_at :][:count]

    def _load(self, offset: int) -> bool:
        """Hold the frame of an offset; return whether there is one."""
        if offset != self._plain:
            self._plain, self._place, self._run_at = self._map.before(offset)
        while (head := self._next()) is not None:
            if offset < head.offset + head.plain:
                whole = self._bytes(self._place, FRAME_HEAD_BYTES + head.stored)
                assert whole is not None, "_next() saw it"
                data = frames.content(self._run(self._run_at), head, whole, where=self._identity)
                self._held, self._held_at = memoryview(data), head.offset
                self._pass(head)
                return True
            self._pass(head)
        return False

    def _pass(self, head: FrameHead) -> None:
        if self._own:
            self._map.add(head.offset, self._place, self._run_at)
        self._plain, self._place = head.offset + head.plain, self._place + FRAME_HEAD_BYTES + head.stored

    def _next(self) -> FrameHead | None:
        """Return the head of the frame we stand at, passing the header of a run; None at the end, also a torn one."""
        start = self._bytes(self._place, len(RUN_MAGIC))
        if start is not None and start == RUN_MAGIC:
            if self._bytes(self._place, RUN_BYTES) is None:
                return None
            run = self._run(self._place)
            if run.offset != self._plain:
                raise Damaged(self._identity, self._plain, f"a run that begins at {run.offset}")
            self._run_at, self._place = self._place, self._place + RUN_BYTES
        data = self._bytes(self._place, FRAME_HEAD_BYTES)
        if data is None:
            return None
        head = frames.head_at(data, where=self._identity, offset=self._plain)
        if head.marker == frames.INDEX:
            return None
        if head.offset != self._plain:
            raise Damaged(self._identity, self._plain, f"a frame of offset {head.offset}")
        return None if self._bytes(self._place, FRAME_HEAD_BYTES + head.stored) is None else head

    def _run(self, place: int) -> Run:
        if place not in self._runs:
            header = os.pread(self._handle, RUN_BYTES, place)
            self._runs[place] = frames.run_of(header, self._keys, self._identity, at=self._plain)
        return self._runs[place]

    def _bytes(self, place: int, count: int) -> memoryview | None:
        """Return bytes of the file on disk, None when there are not so many."""
        begin = place - self._window_at
        if begin < 0 or begin + count > len(self._window):
            self._window = memoryview(os.pread(self._handle, max(count, WINDOW_BYTES), place))
            self._window_at, begin = place, 0
        return self._window[begin : begin + count] if begin + count <= len(self._window) else None

    def _index(self) -> FrameMap | None:
        """Return the map of a packed file; None when it is none, or when its index does not hold: then it is walked."""
        size = os.fstat(self._handle).st_size
        at = frames.trailer_of(os.pread(self._handle, frames.TRAILER_BYTES, max(0, size - frames.TRAILER_BYTES)))
        if at is None or not RUN_BYTES <= at <= size - frames.TRAILER_BYTES - FRAME_HEAD_BYTES:
            return None
        data = memoryview(os.pread(self._handle, size - frames.TRAILER_BYTES - at, at))
        head = frames.head_at(data, where=self._identity, offset=0)
        found = FrameMap()
        for offset, place in frames.entries_of(frames.content(self._run(0), head, data, where=self._identity)):
            found.add(offset, place, 0)
        return found


def _gathered(
    piece: Callable[[int, int], bytes | memoryview], offset: int, count: int, name: str
) -> bytes | memoryview:
    """Return the pieces at an offset as one. What is before a damage is returned, the damage is raised by the next call."""
    parts = list[bytes | memoryview]()
    try:
        while count > 0 and (data := piece(offset, count)):
            parts.append(data)
            offset, count = offset + len(data), count - len(data)
    except Damaged:
        if not parts:
            raise
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        if not parts:
            raise Damaged(name, offset, f"the disk cannot read it: {error.strerror}") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the archive and what opens it. Drafts have the identity of the file they become."""

    path: Path
    keys: Keys = field(default=NO_KEYS, repr=False)
    becomes: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def identity(self) -> str:
        """Return what its frames are bound to: the folder of its epoch and server, and its name."""
        path = self.becomes or self.path
        return f"{path.parent.name}/{path.name}"

    @property
    def framed(self) -> bool:
        """Return whether it is a container of frames."""
        with self.path.open("rb") as file:
            return frames.is_framed(file.read(len(RUN_MAGIC)))

    def draft(self, purpose: str) -> "StoredFile":
        """Return the file to write what shall replace this one."""
        return StoredFile(self.path.with_name(f".{self.path.name}.{purpose}"), self.keys, self.path)

    def open(self, *, sums: Sums | None = None, known: FrameMap | None = None) -> Reader:
        """Open it for reading, in whatever form it is. Raises OSError, Damaged, or BadInput for a key we have not."""
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(handle, len(RUN_MAGIC), 0)
            if frames.is_framed(head):
                return FramedReader(handle, self.keys, self.identity, known)
            if not MAGIC.startswith(head[: len(MAGIC)]):
                raise Damaged(self.identity, 0, "it begins as no file of an archive does")
            return PlainReader(handle, self.identity, sums)
        except BaseException:
            os.close(handle)
            raise

    def survey(self) -> "Survey":
        """Look where everything is, and where it ends; nothing is decrypted."""
        with closing(self.open()) as reader:
            if isinstance(reader, FramedReader):
                return _survey(reader)
        size = self.path.stat().st_size
        return Survey(Form.PLAIN, size, size)


@dataclass(frozen=True, slots=True)
class Survey:
    """Where everything of a file is."""

    form: Form
    size: int
    """Of the primary's bytes that are whole."""
    end: int
    """Where they end on disk."""
    map: FrameMap | None = None
    edges: "array[int] | None" = None
    """The offsets at which a frame ends, in order. None: it can be cut anywhere, or this is not known."""
    runs: int = 0
    key_ids: frozenset[str] = frozenset()
    damage: str | None = None
    """Why it is not whole, though it is not torn."""

    def ends_frame(self, offset: int) -> bool:
        """Return whether the file can be cut at an offset."""
        if self.edges is None:
            return True
        at = bisect_left(self.edges, offset)
        return at < len(self.edges) and self.edges[at] == offset


def _survey(reader: "FramedReader") -> Survey:
    found, edges, size, end, damage = FrameMap(), array("Q"), 0, 0, None
    try:
        for head, place, run in reader.heads():
            found.add(head.offset, place, run)
            size, end = head.offset + head.plain, place + FRAME_HEAD_BYTES + head.stored
            edges.append(size)
    except Damaged as error:
        damage = error.message  # what is before counts
    # A packed file is rewritten when it is cut, so any place will do.
    cut_at = edges if reader.form is Form.FRAMED else None
    return Survey(reader.form, size, end, found, cut_at, reader.runs, frozenset(reader.key_ids), damage)


class Appender(Protocol):
    """A file that grows. What fails leaves it as it was before."""

    @property
    def sums(self) -> Sums | None:
        """Return the sums of its blocks, as far as they are known."""
        ...

    @property
    def map(self) -> FrameMap | None:
        """Return where its frames are, None when it has none."""
        ...

    def append(self, data: bytes, edges: Iterable[int], /) -> None:
        """Add bytes; a cut must be possible at `edges`. Raises OSError."""
        ...

    def sync(self) -> None:
        """Make everything durable. Raises OSError."""
        ...

    def until(self, size: int) -> Survey | None:
        """Return what the file is when it is cut at the last edge, `size`; None when that is not known."""
        ...

    def close(self) -> None:
        """Let the file go."""
        ...


class PlainAppender:
    """Adds the primary's bytes as they are."""

    map = None

    def __init__(self, handle: int, size: int, sums: Sums | None) -> None:
        self._handle, self._size, self.sums = handle, size, sums

    def append(self, data: bytes, _edges: Iterable[int], /) -> None:
        durable.append(self._handle, data, self._size)
        self._size += len(data)
        if self.sums is not None:
            self.sums.add(data)

    def sync(self) -> None:
        os.fdatasync(self._handle)

    def until(self, size: int) -> Survey | None:
        return Survey(Form.PLAIN, size, size)

    def close(self) -> None:
        os.close(self._handle)


class FramedAppender:
    """Adds frames: a run of its own, which begins with the first of them."""

    sums = None

    def __init__(self, handle: int, file: StoredFile, at: Survey | None = None) -> None:
        self._handle, self._key, self._identity = handle, file.keys.newest, file.identity
        self._end, self._size, self._runs = (0, 0, 0) if at is None else (at.end, at.size, at.runs)
        self.map = FrameMap() if at is None or at.map is None else at.map
        self._run: Run | None = None
        self._run_at = self._sequence = 0
        self._edge = self._size, self._end

    def append(self, data: bytes, edges: Iterable[int], /) -> None:
        begun, parts, end = self._run, list[bytes](), self._end
        run, run_at, sequence = begun, self._run_at, self._sequence
        if run is None:
            header, run = frames.new_run(self._key, self._identity, self._runs, self._size)
            parts, run_at, sequence, end = [header], end, 0, end + len(header)
        noted, edge, wanted = list[tuple[int, int, int]](), self._edge, set(edges)
        for offset, piece in _pieces(data, self._size, sorted(wanted)):
            made = frames.frame(run, sequence, offset, piece)
            noted.append((offset, end, run_at))
            parts.append(made)
            end, sequence = end + len(made), sequence + 1
            edge = (offset + len(piece), end) if offset + len(piece) in wanted else edge
        # A nonce that may have reached the disk is used up: after an error nothing is added to this run.
        self._run = None
        durable.append(self._handle, b"".join(parts), self._end)
        self._runs += begun is None
        self._run, self._run_at, self._sequence = run, run_at, sequence
        self._edge, self._end, self._size = edge, end, self._size + len(data)
        for place in noted:
            self.map.add(*place)

    def sync(self) -> None:
        os.fdatasync(self._handle)

    def until(self, size: int) -> Survey | None:
        if self._edge[0] != size:
            return None
        return Survey(Form.FRAMED, size, self._edge[1], self.map.until(size), None, self._runs)

    def close(self) -> None:
        os.close(self._handle)


def _pieces(data: bytes, offset: int, edges: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the frames' content: none is too large, and one ends at every edge."""
    begin, end = offset, offset + len(data)
    for edge in (*(edge for edge in edges if offset < edge < end), end):
        while begin < edge:
            until = min(edge, begin + FRAME_BYTES_MAX)
            yield begin, data[begin - offset : until - offset]
            begin = until


def begin(file: StoredFile) -> Appender:
    """Make a new file, with the magic bytes of a binlog in it. Raises OSError; then there is no file."""
    made = _made(file)
    try:
        made.append(MAGIC, ())
        durable.sync_directory(file.path.parent)
    except OSError:
        made.close()
        durable.remove(file.path)
        raise
    return made


def _made(file: StoredFile) -> Appender:
    handle = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return PlainAppender(handle, 0, Sums()) if file.keys.newest is None else FramedAppender(handle, file)


def grow(file: StoredFile, size: int, sums: Sums | None, known: Survey | None = None) -> Appender:
    """Open a file of `size` of the primary's bytes to add more; what stands behind them is cut. Raises OSError, Damaged."""
    if known is not None and known.size == size and known.form is not Form.PACKED:
        durable.truncate(file.path, known.end)
    else:
        known = cut(file, size)
    handle = os.open(file.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    if known.form is Form.PLAIN:
        return PlainAppender(handle, size, sums_until(file, sums, size))
    return FramedAppender(handle, file, known)


def sums_until(file: StoredFile, sums: Sums | None, size: int) -> Sums | None:
    """Return the sums of the first `size` bytes of a plain file, None when those before are not known."""
    whole = size // BLOCK_BYTES
    if sums is None or len(sums.whole) < whole:
        return None
    kept = Sums(sums.whole[:whole])
    with file.path.open("rb") as source:
        source.seek(whole * BLOCK_BYTES)
        kept.add(source.read(size - whole * BLOCK_BYTES))
    return kept


def cut(file: StoredFile, size: int) -> Survey:
    """Cut a file behind its first `size` bytes, durably, so that it can grow; return what it is then.

    Raises OSError, Damaged.
    """
    if not file.framed:
        durable.truncate(file.path, size)
        return file.survey()
    end = _end_of(file, size)
    if end is None:
        rewrite(file, size)
    else:
        durable.truncate(file.path, end)
    return file.survey()


def _end_of(file: StoredFile, size: int) -> int | None:
    """Return where on disk a frame ends with the primary's first `size` bytes; None when none does."""
    with closing(file.open()) as reader:
        if reader.form is Form.FRAMED and isinstance(reader, FramedReader):
            for head, place, _ in reader.heads():
                if head.offset + head.plain >= size:
                    return place + FRAME_HEAD_BYTES + head.stored if head.offset + head.plain == size else None
    return None


def rewrite(file: StoredFile, size: int) -> None:
    """Replace a file by one that can grow, of its first `size` bytes. Raises OSError, Damaged."""
    copy_tail(file, 0, size, file, b"")


def copy_tail(source: Readable, offset: int, end: int, target: StoredFile, head: bytes) -> None:
    """Write `head` and then the bytes of `source` from `offset` to `end` to `target`, durably; safe to repeat."""
    draft = target.draft("new")
    draft.path.unlink(missing_ok=True)
    with closing(source.open()) as reader, closing(_made(draft)) as made:
        made.append(head, ())
        for piece in pieces(reader, offset, end, name=source.identity):
            made.append(bytes(piece), ())
        made.sync()
    durable.rename(draft.path, target.path)


def pieces(reader: Reader, begin: int, end: int, *, name: str, count: int = COPY_BYTES) -> Iterator[bytes | memoryview]:
    """Yield all bytes between two offsets. Raises Damaged when they are not all there."""
    while begin < end:
        data = reader.read(begin, min(count, end - begin))
        if not data:
            raise Damaged(name, begin, f"it ends before {end}")
        yield data
        begin += len(data)
