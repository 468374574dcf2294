"""Holds: positions that somebody has asked to keep the archive from, such as a backup. One small file each, in `holds/`.

They are written by commands beside a running replicator, so both take the same lock: what a hold was promised is not
removed between the promise and its file. A file that cannot be read may hold anything, so it holds everything.
"""

import fcntl
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import clock, durable, records
from cluster.errors import BadInput, DeadlinePassed
from cluster.position import Position
from replicator.retention import Floor

FOLDER, LOCK_FILE = "holds", "lock"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
HOLD_BYTES_MAX = 64 * 1024
HOLDS_MAX = 1_000
LOCK_DEADLINE_MS = 10_000
LOCK_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What `holds/NAME.json` holds."""

    name: str
    position: str
    """Everything behind it is kept."""
    since: str
    until: int | None = None
    """Unix seconds; None: until it is released."""
    why: str = ""

    def expired(self, now: int | None) -> bool:
        """Return whether its time is over."""
        return self.until is not None and now is not None and now > self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """All holds of an archive."""

    standing: tuple[Hold, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    """Name, and what is wrong with it."""

    def floors(self, now: int | None) -> tuple[Floor, ...]:
        """Return what the holds keep; an expired one keeps nothing."""
        known = [
            Floor(who=f"hold {one.name}", position=Position.parse(one.position), why=_why(one))
            for one in self.standing
            if not one.expired(now)
        ]
        return (*known, *(Floor(who=f"hold {name}", position=None, why=why) for name, why in self.unreadable))


def _why(one: Hold) -> str:
    until = "until it is released" if one.until is None else f"until {clock.utc_text(one.until)}"
    return f"it keeps {kept_text(one.position)} {until}"


def kept_text(position: str) -> str:
    """Return what a hold with that position keeps; after the empty one comes all there ever was."""
    return f"everything after {position}" if position else "everything"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep holds from changing, and files from being removed, meanwhile. Raises DeadlinePassed, BadInput."""
    deadline = clock.after(clock.now(), LOCK_DEADLINE_MS)
    try:
        durable.make_directory(directory / FOLDER)
        lock = (directory / FOLDER / LOCK_FILE).open("ab")
    except OSError as error:
        raise BadInput(f"archive {directory}: {error.strerror}", hint="run this as the replicator's user") from error
    with lock:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if clock.seconds_left(deadline) == 0.0:
                raise DeadlinePassed(f"{directory}: somebody has held the lock of its holds for {LOCK_DEADLINE_MS} ms")
            time.sleep(LOCK_LOOK_SECONDS)
        yield


def read(directory: Path) -> Holds:
    """Return the holds of an archive, in order of their names."""
    standing, unreadable = list[Hold](), list[tuple[str, str]]()
    for path in sorted((directory / FOLDER).glob("[!.]*.json")):
        try:
            standing.append(_read(path))
        except FileNotFoundError:
            continue
        except (BadInput, OSError, ValueError) as error:
            unreadable.append((path.stem, f"{path} cannot be read, so it may hold everything: {error}"))
    return Holds(standing=tuple(standing), unreadable=tuple(unreadable))


def _read(path: Path) -> Hold:
    if path.stat().st_size > HOLD_BYTES_MAX:
        raise BadInput(f"more than {HOLD_BYTES_MAX} bytes")
    hold = records.decode(Hold, path.read_bytes(), where=str(path))
    Position.parse(hold.position)
    if hold.name != path.stem:
        raise BadInput(f"it is of {hold.name!r}")
    return hold


def write(directory: Path, hold: Hold) -> None:
    """Write a hold durably, in the place of one of its name. Whoever calls has the lock. Raises BadInput."""
    if len(list((directory / FOLDER).glob("[!.]*.json"))) >= HOLDS_MAX:
        raise BadInput(f"there are {HOLDS_MAX} holds already", hint="release those that are not needed")
    durable.replace_file(_path(directory, hold.name), json.dumps(asdict(hold)).encode() + b"\n", mode=0o600)


def remove(directory: Path, name: str) -> None:
    """Remove a hold, durably. Whoever calls has the lock. Raises BadInput when there is none."""
    path = _path(directory, name)
    if not path.exists():
        raise BadInput(f"there is no hold {name!r} in {directory}", hint="see `oscar-ha archive holds`")
    durable.remove(path)


def _path(directory: Path, name: str) -> Path:
    if NAME.fullmatch(name) is None:
        raise BadInput(
            f"{name!r} cannot be the name of a hold", hint="small letters, digits, '.', '_' and '-', 63 at most"
        )
    return directory / FOLDER / f"{name}.json"
