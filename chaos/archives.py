"""Whether the archives of all sites hold what the primaries wrote: byte by byte, against the binlog files and each other.

A binlog file that its server cut at a crash is shorter than its copy, one that the server went on with is longer: what
both have must be the same. One flag in the first event says whether the file was closed; it alone may differ.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from chaos.history import Finding, Verdict, named
from cluster.binlog.events import FILE_NAME
from cluster.binlog.framing import MIB
from replicator.archive import Archive
from replicator.keys import NO_KEYS, Keys
from replicator.stored import StoredFile

IN_USE_FLAG = slice(21, 23)
"""Where the first event's flags are: the server clears "in use" when it closes the file, and only there."""
PIECE_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What names a file in an archive."""

    epoch: int
    server_id: int
    file: str


Bytes: TypeAlias = Path | StoredFile
"""The primary's bytes: as they are, or in whatever form an archive keeps them."""
Files = Mapping[Key, Bytes]


def files_of(archive: Path, keys: Keys = NO_KEYS) -> Files:
    """Return the files of an archive; nobody may be writing to it any more."""
    return {
        Key(one.epoch, one.start.server_id, path.name): StoredFile(path, keys)
        for one in Archive.look(archive, keys).epochs.values()
        for path in one.directory.iterdir()
        if FILE_NAME.fullmatch(path.name)
    }


def equal_to_binlogs(archives: Mapping[str, Files], binlogs: Mapping[int, Sequence[Path]]) -> Finding:
    """Judge that every archived file is the file of its server; `binlogs` is server id -> folders of its lives."""
    different, compared = [], 0
    for site, files in sorted(archives.items()):
        for key, path in sorted(files.items()):
            written = [place / key.file for place in binlogs.get(key.server_id, ()) if (place / key.file).exists()]
            compared += 1
            if not any(same_beginning(path, one) for one in written):
                different.append(f"{site}: {_told(key)}{'' if written else ', which no server has'}")
    return _finding(different, compared, f"{compared} archived files are what their primaries wrote")


def equal_to_each_other(archives: Mapping[str, Files]) -> Finding:
    """Judge that what two sites have of one file is the same."""
    different, compared = [], 0
    sites = sorted(archives)
    for first, second in ((one, other) for at, one in enumerate(sites) for other in sites[at + 1 :]):
        for key in sorted(archives[first].keys() & archives[second].keys()):
            compared += 1
            if not same_beginning(archives[first][key], archives[second][key]):
                different.append(f"{first} and {second}: {_told(key)}")
    return _finding(different, compared, f"{len(sites)} archives agree in {compared} comparisons of a file")


def same_beginning(one: Bytes, other: Bytes) -> bool:
    """Return whether what both files have is the same, and is more than a file's first bytes."""
    length = min(_size_of(one), _size_of(other))
    if length <= IN_USE_FLAG.stop:
        return False
    return all(left == right for left, right in zip(_pieces(one, length), _pieces(other, length), strict=True))


def _size_of(one: Bytes) -> int:
    return one.stat().st_size if isinstance(one, Path) else one.survey().size


def _pieces(one: Bytes, length: int) -> Iterator[bytes]:
    if isinstance(one, StoredFile):
        with closing(one.open()) as reader:
            for offset in range(0, length, PIECE_BYTES):
                data = bytearray(reader.read(offset, min(PIECE_BYTES, length - offset)))
                if offset == 0:
                    data[IN_USE_FLAG] = bytes(2)
                yield bytes(data)
        return
    with one.open("rb") as file:
        first = bytearray(file.read(min(length, PIECE_BYTES)))
        first[IN_USE_FLAG] = bytes(2)
        yield bytes(first)
        left = length - len(first)
        while left > 0:
            piece = file.read(min(left, PIECE_BYTES))
            left -= len(piece)
            yield piece


def _told(key: Key) -> str:
    return f"epoch {key.epoch}, {key.file} of server {key.server_id}"


def _finding(different: Iterable[str], compared: int, well: str) -> Finding:
    wrong = list(different)
    if wrong:
        return Finding(verdict=Verdict.BROKEN, why=f"{len(wrong)} of {compared} differ: {named(wrong)}")
    if not compared:
        return Finding(verdict=Verdict.PROVED_NOTHING, why="there was nothing to compare")
    return Finding(verdict=Verdict.KEPT, why=well)
