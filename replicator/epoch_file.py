"""`epoch.json`: which epoch a folder of the archive is of. Made anew from the folder and its files when it does not hold.

What proves it then: the folder's name says epoch and server; the list of GTIDs that the first file begins with, and the
next epoch's beginning, say where it begins and ends. ZooKeeper's lineage has the last word (`Archive.begin`), because
the first files may have been removed.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from cluster import durable, records
from cluster.errors import BadInput, MalformedStream
from cluster.position import Position
from replicator import segments
from replicator.stored import StoredFile

EPOCH_FILE = "epoch.json"
_FOLDER = re.compile(r"([0-9]{10})-([0-9]{1,10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStart:
    """What `epoch.json` holds."""

    epoch: int
    server_id: int
    file: str
    position: str
    end: str | None = None
    """The position the next epoch begins at; None while this one is the newest we know."""
    rebuilt: bool = False
    """Made from the files, because what had been written was lost; not compared with the lineage yet."""


def save(directory: Path, start: EpochStart) -> None:
    """Write it, durably."""
    fields = {name: value for name, value in asdict(start).items() if name != "rebuilt" or value}
    durable.replace_file(directory / EPOCH_FILE, json.dumps(fields, indent=1).encode() + b"\n")


def read(directory: Path) -> EpochStart | None:
    """Return what a folder's file says; None when it is missing, or is not what was written."""
    try:
        found = records.decode(EpochStart, (directory / EPOCH_FILE).read_bytes(), where=str(directory / EPOCH_FILE))
        Position.parse(found.position)
        Position.parse(found.end or "")
    except (OSError, BadInput):
        return None
    return found if named(found) == directory.name else None


def named(start: EpochStart) -> str:
    """Return the name of an epoch's folder."""
    return f"{start.epoch:010d}-{start.server_id}"


def rebuilt(directory: Path, files: Sequence[StoredFile]) -> EpochStart | None:
    """Return what the folder and its files prove; None when that is not enough.

    Then the lineage makes it anew (`Archive.begin`), and the files are found again.
    """
    name = _FOLDER.fullmatch(directory.name)
    if name is None or not files:
        return None
    position = _begin_of(files[0])
    if position is None:
        return None
    return EpochStart(
        epoch=int(name[1]), server_id=int(name[2]), file=files[0].name, position=str(position), rebuilt=True
    )


def _begin_of(file: StoredFile) -> Position | None:
    known = segments.described(file)
    if known is not None:
        return known.start
    try:
        return segments.head_of(file, until=segments.HEAD_BYTES_MAX)[1]
    except MalformedStream:
        return None


def with_ends(starts: Sequence[EpochStart]) -> list[EpochStart]:
    """Return epochs in order, those that were rebuilt with their ends: where the next one begins."""
    ordered = sorted(starts, key=lambda one: one.epoch)
    ends = {one.epoch: after.position for one, after in pairwise(ordered)
            if after.epoch == one.epoch + 1}  # fmt: skip
    return [replace(one, end=ends.get(one.epoch)) if one.rebuilt else one for one in ordered]
