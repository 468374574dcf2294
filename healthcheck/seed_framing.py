"""The frames in which one node gives its data to another. Bytes in, frames out, or `NEED_DATA`; no IO.

A stream that simply ends is never a complete copy (TRAPS.md 43): the last frame is a trailer that carries how the
producer ended, how many bytes it sent and their SHA-256. A length is checked before it is believed.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from cluster.errors import MalformedStream

MAGIC = b"OSCAR-HA-SEED-1\n"
TOKEN_BYTES = 32
HELLO_BYTES = len(MAGIC) + TOKEN_BYTES
HEADER = struct.Struct("<cI")
PAYLOAD_BYTES_MAX = 1 << 20
CONTROL_BYTES_MAX = 16_384
SHA256_CHARACTERS = 64


class Need(Enum):
    """What a framer lacks."""

    DATA = "data"


class Kind(Enum):
    """What a frame is."""

    START = b"S"
    """Once and first: how much about is to come."""
    DATA = b"D"
    ALIVE = b"A"
    """Nothing to send at this moment; the producer lives."""
    TRAILER = b"T"
    """Once and last."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """How the producer ended."""

    exit_status: int
    bytes: int
    sha256: str
    said: str
    """Its last words, when it failed."""


class Framer:
    """Cuts a byte stream into frames. Holds at most one frame and what `feed` just brought."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer += data

    def next_frame(self) -> Frame | Literal[Need.DATA]:
        """Return the next frame. Raises MalformedStream for what cannot be one."""
        if len(self._buffer) < HEADER.size:
            return Need.DATA
        letter, length = HEADER.unpack_from(self._buffer)
        try:
            kind = Kind(letter)
        except ValueError:
            raise MalformedStream(f"a frame of kind {letter!r}", hint="is the same version at both ends?") from None
        limit = PAYLOAD_BYTES_MAX if kind is Kind.DATA else CONTROL_BYTES_MAX
        if length > limit:
            raise MalformedStream(f"a frame {kind.name} of {length} bytes, more than {limit}")
        if len(self._buffer) < HEADER.size + length:
            return Need.DATA
        payload = bytes(memoryview(self._buffer)[HEADER.size : HEADER.size + length])
        del self._buffer[: HEADER.size + length]
        return Frame(kind, payload)


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a frame as bytes."""
    return HEADER.pack(kind.value, len(payload)) + payload


def hello(token: bytes) -> bytes:
    """Return what the receiver says first."""
    return MAGIC + token


def start(bytes_total: int) -> bytes:
    """Return the first frame."""
    return frame(Kind.START, json.dumps({"bytes_total": bytes_total}).encode())


def trailer(ended: Trailer) -> bytes:
    """Return the last frame."""
    fields = {"exit_status": ended.exit_status, "bytes": ended.bytes, "sha256": ended.sha256}
    return frame(Kind.TRAILER, json.dumps({**fields, "said": ended.said[: CONTROL_BYTES_MAX // 8]}).encode())


def read_start(payload: bytes) -> int:
    """Return how many bytes about are to come. Raises MalformedStream."""
    return _number(_object(payload), "bytes_total")


def read_trailer(payload: bytes) -> Trailer:
    """Return the trailer. Raises MalformedStream."""
    found = _object(payload)
    sha256, said = found.get("sha256"), found.get("said")
    if not isinstance(sha256, str) or len(sha256) != SHA256_CHARACTERS or not isinstance(said, str):
        raise MalformedStream("the trailer has no checksum")
    status = found.get("exit_status")
    if not isinstance(status, int) or isinstance(status, bool):
        raise MalformedStream("the trailer has no exit status")
    return Trailer(exit_status=status, bytes=_number(found, "bytes"), sha256=sha256, said=said)


def _object(payload: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MalformedStream("a frame is not a JSON object")
    return found


def _number(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedStream(f"{name} is not a number")
    return value
