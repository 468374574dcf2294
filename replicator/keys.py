"""The keys of the archive: named 256-bit secrets in one file, the newest first. New files use the newest.

A key itself never encrypts: every run of frames gets a key of its own, derived with a random salt (decision 0020).
"""

import base64
import binascii
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cluster import clock, durable
from cluster.errors import BadInput
from cluster.settings import Settings, read_secret_lines

KEY_BYTES = 32
KEYS_MAX = 1000
FINGERPRINT_BYTES = 8
KEY_ID_BYTES_MAX = 24
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}", re.ASCII)
HEADING = "# Keys of the oscar-ha archive: the first encrypts new files, the others still read. Keep a copy elsewhere."


@dataclass(frozen=True, slots=True)
class Key:
    """One secret. `repr` shows its name only."""

    name: str
    secret: bytes = field(repr=False)

    def derived(self, salt: bytes, purpose: bytes) -> bytes:
        """Return a key for one purpose (RFC 5869)."""
        return HKDF(SHA256(), KEY_BYTES, salt, b"oscar-ha archive " + purpose).derive(self.secret)

    @property
    def fingerprint(self) -> bytes:
        """Return what tells this secret from another of the same name, and nothing else of it."""
        return self.derived(b"", b"fingerprint")[:FINGERPRINT_BYTES]


@dataclass(frozen=True, slots=True)
class Keys:
    """A key ring; empty when nothing is encrypted."""

    ring: tuple[Key, ...] = ()

    @property
    def newest(self) -> Key | None:
        """Return the key for new files, None when they are not encrypted."""
        return self.ring[0] if self.ring else None

    def named(self, name: str, fingerprint: bytes, *, where: str) -> Key:
        """Return the key a file was written with. Raises BadInput."""
        key = next((key for key in self.ring if key.name == name), None)
        if key is None:
            raise BadInput(f"{where} is encrypted with key {name!r}, which we have not",
                           hint="put its line back into archive.key_file, or name that file with --key-file")  # fmt: skip
        if key.fingerprint != fingerprint:
            raise BadInput(f"{where} was encrypted with another key of the name {name!r}",
                           hint="find the key file this archive was written with")  # fmt: skip
        return key


NO_KEYS = Keys()


def keys_of(settings: Settings) -> Keys:
    """Return the key ring that the settings name, empty when they name none. Raises BadInput."""
    return NO_KEYS if settings.archive.key_file is None else read_keys(settings.archive.key_file)


def read_keys(path: Path, setting: str = "archive.key_file") -> Keys:
    """Read a key file. Raises BadInput naming the line, never what stands there."""
    ring = list[Key]()
    for number, line in enumerate(read_secret_lines(path, setting), 1):
        if text := line.split("#", 1)[0].strip():
            ring.append(_key(text, where=f"{setting}: {path} line {number}"))
    if not 1 <= len(ring) <= KEYS_MAX:
        raise BadInput(f"{setting}: {path} holds {len(ring)} keys", hint=f"make one: oscar-ha archive new-key {path}")
    if len({key.name for key in ring}) != len(ring):
        raise BadInput(f"{setting}: {path} names a key twice", hint="give every key a name of its own")
    return Keys(tuple(ring))


def _key(text: str, *, where: str) -> Key:
    name, colon, encoded = text.partition(":")
    if not colon or _KEY_ID.fullmatch(name) is None:
        raise BadInput(
            f"{where}: not of the form KEYID:SECRET", hint="KEYID: up to 24 letters, digits, '.', '_' or '-'"
        )
    secret = _decoded(encoded.strip())
    if secret is None or len(secret) != KEY_BYTES:
        held = "neither base64 nor hex" if secret is None else f"{len(secret)} bytes"
        raise BadInput(f"{where}: key {name!r} is {held}, not {KEY_BYTES} bytes",
                       hint="64 hex digits, or 44 characters of base64")  # fmt: skip
    return Key(name, secret)


def _decoded(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None


def add_key(path: Path) -> tuple[Key, int]:
    """Make a key file, or put a new key first in one; return the key and how many there are then. Raises BadInput."""
    try:
        older = read_keys(path, "FILE").ring if path.exists() else ()
        key = Key(_new_name(key.name for key in older), secrets.token_bytes(KEY_BYTES))
        lines = [HEADING, *(f"{one.name}:{base64.b64encode(one.secret).decode()}" for one in (key, *older))]
        durable.replace_file(path, "\n".join(lines).encode() + b"\n", mode=0o600)
    except OSError as error:
        raise BadInput(f"FILE: {path}: {error.strerror}", hint="give a path we may write to") from error
    return key, len(older) + 1


def _new_name(taken: Iterable[str]) -> str:
    names, day = set(taken), clock.utc_now()[:10]
    numbered = (f"{day}.{number}" for number in range(2, KEYS_MAX + 2))
    return next(name for name in (day, *numbered) if name not in names)
