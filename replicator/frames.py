"""The container of an archive file that is not plain: runs of frames, each frame proved before it is believed.

    file   := run+ [index frame, trailer]        run := run header, frame*
    frame  := marker, stored size, plain size, plain offset, sequence; payload; proof

Offsets are those of the primary's file. A run is what one writer appended without a break: it has a random salt and so
a key of its own, and its frames count up from 0, which is the nonce: no nonce ever repeats under a key (decision 0020).
The proof is the tag of AES-256-GCM, or a CRC32 when there is no key. Bytes in, bytes out; no IO.
"""

import secrets
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, Protocol
from zlib import crc32

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.binlog.framing import KIB, MAGIC
from cluster.errors import MalformedStream
from replicator.keys import FINGERPRINT_BYTES, KEY_ID_BYTES_MAX, Key, Keys

FRAME_BYTES_MAX = 512 * KIB
"""Of the primary's bytes in one frame: what a reader that wants one byte has to decrypt."""
PACKED_FRAME_BYTES = 256 * KIB
INDEX_BYTES_MAX = 64 * KIB * KIB
RUN_MAGIC = b"\xf0OSCARH1"
RAW, COMPRESSED, INDEX = b"\xf0raw", b"\xf0zst", b"\xf0idx"
TRAILER_MAGIC = b"\xf0endOSH1"
RUN = Struct(f"<8sB3xIQ{KEY_ID_BYTES_MAX}s{FINGERPRINT_BYTES}s32sI")
FRAME = Struct("<4sIIQI")
TRAILER = Struct("<QI8s")
RUN_BYTES, FRAME_HEAD_BYTES, TRAILER_BYTES = RUN.size, FRAME.size, TRAILER.size
ENTRY = Struct("<QQ")
ZSTD_LEVEL = 3
_CRC = Struct("<I")
_SALT_BYTES = 32
_CLEAR, _ENCRYPTED = 0, 1


class Damaged(MalformedStream):
    """What lies on disk is not what was written: nothing of it was believed."""

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(f"{file} is damaged at offset {offset}: {why}", hint="fetch it again from another replicator")
        self.file, self.offset = file, offset


class Proof(Protocol):
    """What makes a payload provable, and proves it."""

    overhead: int

    def protect(self, sequence: int, head: bytes, payload: bytes, /) -> bytes:
        """Return the payload as it is stored."""
        ...

    def proved(self, sequence: int, head: bytes, stored: memoryview, /) -> bytes | memoryview | None:
        """Return the payload, None when it is not what was stored under this head."""
        ...


class Authenticated:
    """AES-256-GCM; the head is authenticated with the payload."""

    overhead = 16

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def protect(self, sequence: int, head: bytes, payload: bytes, /) -> bytes:
        return self._cipher.encrypt(sequence.to_bytes(12, "little"), payload, head)

    def proved(self, sequence: int, head: bytes, stored: memoryview, /) -> bytes | memoryview | None:
        try:
            return self._cipher.decrypt(sequence.to_bytes(12, "little"), stored, head)
        except InvalidTag:
            return None


class Summed:
    """A CRC32 over head and payload: against decay, not against people."""

    overhead = _CRC.size

    def protect(self, _sequence: int, head: bytes, payload: bytes, /) -> bytes:
        return payload + _CRC.pack(crc32(payload, crc32(head)))

    def proved(self, _sequence: int, head: bytes, stored: memoryview, /) -> bytes | memoryview | None:
        payload = stored[: -self.overhead]
        return payload if crc32(payload, crc32(head)) == _CRC.unpack(stored[-self.overhead :])[0] else None


class FrameHead(NamedTuple):
    """What stands before a payload. `stored` counts payload and proof."""

    marker: bytes
    stored: int
    plain: int
    offset: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its header describes it."""

    number: int
    offset: int
    """The plain offset its first frame begins at."""
    key: str | None
    proof: Proof


def is_framed(head: bytes) -> bool:
    """Return whether a file that begins so is a container, also when its header is torn."""
    return RUN_MAGIC.startswith(head[: len(RUN_MAGIC)]) and not MAGIC.startswith(head[: len(MAGIC)])


def new_run(key: Key | None, identity: str, number: int, offset: int) -> tuple[bytes, Run]:
    """Return the header of a new run, and the run."""
    salt = secrets.token_bytes(_SALT_BYTES)
    name, fingerprint = ("", b"") if key is None else (key.name, key.fingerprint)
    fields = (RUN_MAGIC, _CLEAR if key is None else _ENCRYPTED, number, offset, name.encode(), fingerprint, salt)
    head = RUN.pack(*fields, 0)[: -_CRC.size]
    return head + _CRC.pack(crc32(head)), Run(
        number, offset, None if key is None else name, _proof(key, salt, head, identity)
    )


def run_of(header: bytes, keys: Keys, identity: str, *, at: int) -> Run:
    """Return the run a header begins. Raises Damaged, or BadInput when its key is not ours."""
    if len(header) < RUN_BYTES or crc32(header[: -_CRC.size]) != _CRC.unpack(header[-_CRC.size :])[0]:
        raise Damaged(identity, at, "the header of a run is wrong")
    magic, kind, number, offset, name, fingerprint, salt, _ = RUN.unpack(header)
    if magic != RUN_MAGIC or kind not in (_CLEAR, _ENCRYPTED):
        raise Damaged(identity, at, f"a run of unknown kind {kind}")
    key = None
    if kind == _ENCRYPTED:
        key = keys.named(name.rstrip(b"\0").decode("ascii", errors="replace"), fingerprint, where=identity)
    return Run(number, offset, None if key is None else key.name, _proof(key, salt, header[: -_CRC.size], identity))


def _proof(key: Key | None, salt: bytes, head: bytes, identity: str) -> Proof:
    """The derived key is bound to the header and to the file: frames moved elsewhere do not open."""
    return Summed() if key is None else Authenticated(key.derived(salt, head + b" of " + identity.encode()))


def frame(
    run: Run, sequence: int, offset: int, data: bytes, *, compressor: zstandard.ZstdCompressor | None = None
) -> bytes:
    """Return a frame of the primary's bytes at `offset`."""
    payload, marker = data, RAW
    if compressor is not None and len(packed := compressor.compress(data)) < len(data):
        payload, marker = packed, COMPRESSED
    return _framed(
        run, sequence, FrameHead(marker, len(payload) + run.proof.overhead, len(data), offset, sequence), payload
    )


def index_frame(run: Run, sequence: int, size: int, entries: list[tuple[int, int]], at: int) -> bytes:
    """Return the last frame of a closed file, which tells where every other one is, and the trailer that tells where it is."""
    payload = b"".join(ENTRY.pack(*entry) for entry in entries)
    head = FrameHead(INDEX, len(payload) + run.proof.overhead, 0, size, sequence)
    return _framed(run, sequence, head, payload) + TRAILER.pack(at, crc32(TRAILER.pack(at, 0, b"")), TRAILER_MAGIC)


def _framed(run: Run, sequence: int, described: FrameHead, payload: bytes) -> bytes:
    head = FRAME.pack(*described)
    return head + run.proof.protect(sequence, head, payload)


def head_at(data: memoryview, *, where: str, offset: int) -> FrameHead:
    """Return the head of the frame that `data` begins with, bounded. Raises Damaged."""
    head = FrameHead._make(FRAME.unpack_from(data))
    if head.marker not in (RAW, COMPRESSED, INDEX):
        raise Damaged(where, offset, "no frame begins here")
    limit = INDEX_BYTES_MAX if head.marker == INDEX else FRAME_BYTES_MAX + 1 * KIB
    if head.stored > limit or head.plain > FRAME_BYTES_MAX:
        raise Damaged(where, offset, f"a frame of {head.stored} bytes")
    return head


def content(run: Run, head: FrameHead, data: memoryview, *, where: str) -> bytes | memoryview:
    """Return the primary's bytes of the whole frame in `data`. Raises Damaged."""
    payload = run.proof.proved(head.sequence, bytes(data[:FRAME_HEAD_BYTES]), data[FRAME_HEAD_BYTES:])
    if payload is None:
        raise Damaged(where, head.offset, "the bytes on disk are not those that were written")
    if head.marker == COMPRESSED:
        payload = _decompressed(payload, head, where=where)
    if head.marker != INDEX and len(payload) != head.plain:
        raise Damaged(where, head.offset, f"{len(payload)} bytes instead of {head.plain}")
    return payload


def _decompressed(payload: bytes | memoryview, head: FrameHead, *, where: str) -> bytes:
    try:
        # The size is in the payload itself, and is believed only when it is the one in the head, which is bounded.
        if zstandard.frame_content_size(payload) == head.plain:
            return zstandard.ZstdDecompressor().decompress(payload)
        why = "a payload of another size"
    except zstandard.ZstdError as error:
        why = str(error)
    raise Damaged(where, head.offset, why)


def entries_of(payload: bytes | memoryview) -> list[tuple[int, int]]:
    """Return (plain offset, offset on disk) of every frame, as an index frame lists them."""
    return [(plain, stored) for plain, stored in ENTRY.iter_unpack(payload)]


def trailer_of(data: bytes) -> int | None:
    """Return where the index frame is, None when a file does not end with a trailer."""
    if len(data) != TRAILER_BYTES:
        return None
    at, check, magic = TRAILER.unpack(data)
    return int(at) if magic == TRAILER_MAGIC and check == crc32(TRAILER.pack(at, 0, b"")) else None
