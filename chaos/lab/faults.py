"""What is broken in a running lab on purpose, and how each of it is undone: written down *before* it is broken.

So whoever broke it may be killed at any moment: `lab heal`, or the next `script/chaos`, finds the note and heals. To heal is
safe to repeat, and one thing that cannot be healed keeps no other from it.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from chaos.lab import control, cutting, disks, ledger
from chaos.lab.cuts import Cut
from chaos.lab.layout import FAULTS as FILE
from chaos.lab.layout import Layout
from chaos.lab.ledger import Busy
from cluster import clock, records
from cluster.clock import Nanos
from cluster.errors import BadInput, OscarHaError, Refused

FAULTS_MAX = 50
BUSY_DEADLINE_MS = 30_000
"""A watchdog that starts its server holds the lab meanwhile: whoever breaks or heals waits for it."""
POLL_SECONDS = 0.02


class Verb(StrEnum):
    """How something is undone."""

    START = "start"
    THAW = "thaw"
    MEND = "mend"
    RESTORE = "restore"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Byte:
    """One byte of a file: what it was, and what was made of it."""

    path: str
    offset: int
    was: int
    became: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """One thing to undo: processes by name, a cut, a byte, or a full disk by its folder."""

    verb: Verb
    what: str
    cut: Cut | None = None
    byte: Byte | None = None

    @property
    def text(self) -> str:
        return f"{self.verb.value} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    faults: tuple[Undo, ...] = ()


def noted(directory: Path) -> tuple[Undo, ...]:
    """Return what is broken now. Raises BadInput for a file that is none of ours."""
    try:
        text = (directory / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BadInput(f"{directory / FILE} cannot be read: {error.strerror}") from error
    return records.decode(_Noted, text, where=str(directory / FILE)).faults


def note(directory: Path, *more: Undo) -> None:
    """Write down what is going to be broken. Raises BadInput when too much is broken already."""
    found = (*noted(directory), *more)
    if len(found) > FAULTS_MAX:
        raise BadInput(f"more than {FAULTS_MAX} faults at once", hint="heal some: oscar-ha lab heal")
    _write(directory, found)


def undo(directory: Path, one: Undo) -> None:
    """Undo it, and then forget it. Raises OscarHaError when it cannot be undone; then it stays written down."""
    match one.verb:
        case Verb.START:
            patiently(lambda: _start(directory, one.what))
        case Verb.THAW:
            patiently(lambda: control.thaw(directory, one.what, living=True))
        case Verb.MEND:
            assert one.cut is not None, "made with the cut"
            cutting.mend(directory, one.cut)
        case Verb.RESTORE:
            assert one.byte is not None, "made with the byte"
            put_back(one.byte)
        case Verb.EMPTY:
            disks.empty(Path(one.what))
    left = list(noted(directory))
    if one in left:
        left.remove(one)
    _write(directory, left)


def heal(directory: Path) -> tuple[str, ...]:
    """Undo everything that is written down, the last first, and return what. Raises the first error at the end."""
    done, failures = [], []
    for one in reversed(noted(directory)):
        try:
            undo(directory, one)
            done.append(one.text)
        except OscarHaError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return tuple(done)


def put_back(byte: Byte) -> bool:
    """Restore a byte if the file still has the false one: who mended it or made it anew is left alone."""
    try:
        with Path(byte.path).open("r+b") as file:
            file.seek(byte.offset)
            if file.read(1) != bytes([byte.became]):
                return False
            file.seek(byte.offset)
            file.write(bytes([byte.was]))
    except FileNotFoundError:
        return False
    return True


def patiently(act: Callable[[], object]) -> None:
    """Do what needs the lab to itself, waiting while another command holds it. Raises Busy at the deadline."""
    deadline: Nanos = clock.after(clock.now(), BUSY_DEADLINE_MS)
    while True:
        try:
            act()
            return
        except Busy:
            if clock.now() >= deadline:
                raise
        time.sleep(POLL_SECONDS)


def _start(directory: Path, what: str) -> None:
    """Start what has ended, without waiting; what somebody else has frozen meanwhile runs."""
    try:
        control.start(directory, what, wait=False)
    except Busy:
        raise
    except Refused:
        return


def _write(directory: Path, found: Sequence[Undo]) -> None:
    ledger.require(Layout(directory))
    path = directory / FILE
    if not found:
        path.unlink(missing_ok=True)
        return
    new = path.with_name(f"{FILE}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(_Noted(faults=tuple(found))), file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
