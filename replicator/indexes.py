"""The index of a closed file, beside it on disk: what it holds, and where its groups are. Rebuilt when it does not hold.

Two lines of JSON, the head and the marks, and a line that proves them: a SHA-256, keyed when the archive is encrypted.
"""

import hashlib
import hmac
import json
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import durable, records
from cluster.binlog.events import Mark
from cluster.errors import BadInput
from cluster.position import Position
from replicator.stored import StoredFile

VERSION = 1
INDEX_FILE_BYTES_MAX = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What is known of a closed file. The sizes are those of the primary's bytes, whatever lies on disk."""

    version: int
    size: int
    sha256: str
    start: str
    position: str
    next_file: str | None
    first_time: int | None
    last_time: int | None
    """Commit times of the first and of the latest group; None when there is none."""
    sums: str
    """CRC32 of every 256 KiB, as hex."""
    stored_size: int | None = None
    """Bytes on disk; None in an index that an older version wrote."""
    packed_size: int | None = None
    """Bytes on disk of its packed form, which may have taken its place; 0: that was not worth it; None: not tried."""


def path_of(file: StoredFile) -> Path:
    """Return where the index of a file is."""
    return file.path.with_name(f"{file.path.name}.index")


def save(file: StoredFile, index: Index, marks: Sequence[Mark]) -> None:
    """Write the index of a file, durably."""
    lines = (json.dumps(asdict(index)), json.dumps([(mark.offset, str(mark.position), mark.time) for mark in marks]))
    text = "\n".join(lines)
    newest = file.keys.newest
    name = None if newest is None else newest.name
    fingerprint = "" if newest is None else newest.fingerprint.hex()
    proof = {"key": name, "fingerprint": fingerprint, "proof": _proof(text, file, name, fingerprint)}
    durable.replace_file(path_of(file), f"{text}\n{json.dumps(proof)}\n".encode(), mode=0o600)


def head(file: StoredFile) -> Index | None:
    """Return the index of a file without its marks, None when there is none that holds."""
    read = _read(file)
    return None if read is None else read[0]


def marks(file: StoredFile) -> list[Mark] | None:
    """Return the marks of a file's index, None when there is none that holds."""
    read = _read(file)
    if read is None:
        return None
    return [Mark(offset, Position.parse(position), time) for offset, position, time in json.loads(read[1])]


def present(file: StoredFile) -> bool:
    """Return whether a file has an index, whatever is in it."""
    return path_of(file).exists()


def remove(file: StoredFile) -> None:
    """Forget the index of a file, durably: the file is about to change."""
    if path_of(file).exists():
        durable.remove(path_of(file))


def sums_of(index: Index) -> "array[int]":
    """Return the block sums an index holds."""
    sums = array("I")
    sums.frombytes(bytes.fromhex(index.sums))
    return sums


def sums_text(sums: "array[int]") -> str:
    """Return block sums as an index holds them."""
    return sums.tobytes().hex()


def mark_before(known: Sequence[Mark], time: int) -> Mark | None:
    """Return the last mark before which nothing was committed at `time` or later; None: begin at the file's start."""
    number = bisect_left(known, time, key=lambda mark: mark.time)
    return known[number - 1] if number else None


def _read(file: StoredFile) -> tuple[Index, str] | None:
    path = path_of(file)
    try:
        if path.stat().st_size > INDEX_FILE_BYTES_MAX:
            return None
        first, second, third, _ = path.read_text(encoding="ascii").split("\n")
        stated = json.loads(third)
        proof = _proof(f"{first}\n{second}", file, stated["key"], stated["fingerprint"])
        if not hmac.compare_digest(proof, stated["proof"]):
            return None
        index = records.decode(Index, first, where=str(path))
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return None
    return (index, second) if index.version == VERSION else None


def _proof(text: str, file: StoredFile, key: str | None, fingerprint: str) -> str:
    """Return what proves a text: anybody can make it when there is no key."""
    named = f"{file.identity}\n{text}".encode()
    if key is None:
        return hashlib.sha256(named).hexdigest()
    secret = file.keys.named(key, bytes.fromhex(fingerprint), where=str(path_of(file)))
    return hmac.digest(secret.derived(b"", b"index"), named, "sha256").hex()
