"""The forms a file can have on disk: the same bytes at the same offsets, torn and damaged everywhere."""

import os
import random
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cluster.binlog.framing import MAGIC
from cluster.errors import BadInput
from replicator import stored
from replicator.frames import FRAME_BYTES_MAX, Damaged
from replicator.keys import NO_KEYS, Key, Keys
from replicator.stored import BLOCK_BYTES, Form, FramedReader, StoredFile

OLD, NEW = Key("old", bytes(range(32))), Key("new", bytes(32))
RING = Keys((NEW, OLD))
KEYS = {"plain": NO_KEYS, "encrypted": RING}
Written = list[bytes]


@pytest.fixture(params=sorted(KEYS))
def file(request: pytest.FixtureRequest, tmp_path: Path) -> StoredFile:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    return StoredFile(folder / "binlog.000001", KEYS[request.param])


def write(file: StoredFile, batches: Written) -> None:
    """Write a file of batches, each ending at an edge."""
    size = len(MAGIC)
    with closing(stored.begin(file)) as made:
        for batch in batches:
            size += len(batch)
            made.append(batch, (size,))
            made.sync()


def whole(file: StoredFile) -> bytes:
    with closing(file.open()) as reader:
        return bytes(reader.read(0, 2**30))


def random_bytes(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


BATCHES = [random_bytes(count, count) for count in (100, 1, 70_000, 2 * FRAME_BYTES_MAX + 17, 300)]
CONTENT = MAGIC + b"".join(BATCHES)


def test_what_was_written_is_read_at_every_offset(file: StoredFile) -> None:
    write(file, BATCHES)

    assert whole(file) == CONTENT
    with closing(file.open()) as reader:
        for offset in (0, 3, 4, 104, 105, 5000, 70_105, FRAME_BYTES_MAX, len(CONTENT) - 301, 7, len(CONTENT) - 1):
            for count in (1, 4096, FRAME_BYTES_MAX + 3):
                assert reader.read(offset, count) == CONTENT[offset : offset + count]
        assert reader.read(len(CONTENT), 10) == b""


def test_nothing_of_the_primary_is_on_disk_in_clear(tmp_path: Path) -> None:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    file = StoredFile(folder / "binlog.000001", RING)
    write(file, [b"Jane Doe, born 1970-01-01" * 50])

    assert b"Jane" not in file.path.read_bytes()
    assert MAGIC not in file.path.read_bytes()


def test_a_file_grows_after_it_was_opened_anew_and_a_reader_that_has_it_open_sees_it(file: StoredFile) -> None:
    write(file, BATCHES[:2])
    size = len(MAGIC) + 101
    with closing(file.open()) as reader:
        assert reader.read(0, size) == CONTENT[:size]
        for batch in BATCHES[2:4]:
            with closing(stored.grow(file, size, None)) as grown:
                grown.append(batch, (size + len(batch),))
            size += len(batch)
        assert reader.read(size - 5, 100) == CONTENT[size - 5 : size]
    assert whole(file) == CONTENT[:size]


def test_a_file_is_cut_at_an_edge_and_anywhere_else(file: StoredFile) -> None:
    write(file, BATCHES)
    for size in (len(CONTENT) - 300, 70_105 + 5, 105, 50):
        stored.cut(file, size)
        assert whole(file) == CONTENT[:size]
        with closing(stored.grow(file, size, None)) as grown:
            grown.append(b"other", (size + 5,))
        assert whole(file) == CONTENT[:size] + b"other"


def test_no_nonce_is_used_twice_though_the_file_was_cut_and_grew_again(tmp_path: Path) -> None:
    """After a cut other bytes come to the same place: under the same key and nonce both would be laid open."""
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    file = StoredFile(folder / "binlog.000001", RING)
    write(file, BATCHES[:1])
    seen = set[bytes]()
    for _ in range(3):
        with closing(stored.grow(file, 104, None)) as grown:
            grown.append(b"\0" * 64, (168,))
        seen.add(file.path.read_bytes()[-80:-16])
        stored.cut(file, 104)

    assert len(seen) == 3


def test_after_an_error_the_file_is_as_before_and_a_new_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    file = StoredFile(folder / "binlog.000001", RING)
    real = os.write
    calls = iter([lambda handle, data: real(handle, data[: len(data) // 2]), failing])
    with closing(stored.begin(file)) as made:
        made.append(b"first", (9,))
        before = file.path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda handle, data: next(calls)(handle, data))
            with pytest.raises(OSError, match="No space"):
                made.append(b"second", (15,))
        assert file.path.read_bytes() == before
        made.append(b"third", (14,))
    with closing(file.open()) as reader:
        assert isinstance(reader, FramedReader)
        assert reader.read(0, 100) == MAGIC + b"firstthird"
        assert reader.runs == 2


def failing(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_frames_do_not_open_in_another_place(tmp_path: Path) -> None:
    """Moved to another file, another epoch, or changed in order within their file."""
    for folder in ("0000000001-1", "0000000002-1"):
        (tmp_path / folder).mkdir()
    file = StoredFile(tmp_path / "0000000001-1" / "binlog.000001", RING)
    write(file, BATCHES[:1])
    data = file.path.read_bytes()
    for name in ("0000000001-1/binlog.000002", "0000000002-1/binlog.000001"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Damaged):
            whole(StoredFile(tmp_path / name, RING))


def test_an_unknown_key_and_a_wrong_key_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    write(StoredFile(folder / "binlog.000001", Keys((OLD,))), BATCHES[:1])

    with pytest.raises(BadInput, match="key 'old', which we have not"):
        whole(StoredFile(folder / "binlog.000001", Keys((NEW,))))
    with pytest.raises(BadInput, match="another key of the name 'old'"):
        whole(StoredFile(folder / "binlog.000001", Keys((Key("old", b"x" * 32),))))
    assert whole(StoredFile(folder / "binlog.000001", RING)) == MAGIC + BATCHES[0]


def test_after_a_rotation_of_keys_a_file_has_runs_of_both(tmp_path: Path) -> None:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    write(StoredFile(folder / "binlog.000001", Keys((OLD,))), BATCHES[:1])
    file = StoredFile(folder / "binlog.000001", RING)
    with closing(stored.grow(file, 104, None)) as grown:
        grown.append(BATCHES[1], (105,))

    assert whole(file) == CONTENT[:105]
    assert file.survey().key_ids == {"old", "new"}


@settings(max_examples=60)
@given(
    batches=some.lists(some.binary(min_size=1, max_size=3000), min_size=1, max_size=6, unique=True),
    at=some.integers(0, 2**30),
    flip=some.one_of(some.none(), some.integers(1, 255)),
)
def test_cut_or_flipped_anywhere_only_whole_true_bytes_are_read(batches: Written, at: int, flip: int | None) -> None:
    content = MAGIC + b"".join(batches)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "0000000001-1"
        folder.mkdir()
        file = StoredFile(folder / "binlog.000001", RING)
        write(file, batches)
        data = bytearray(file.path.read_bytes())
        at %= len(data)
        if flip is None:
            del data[at:]
        else:
            data[at] ^= flip
        file.path.write_bytes(data)
        read = readable(file)
        before = [edge for edge in edges_on_disk(batches) if edge[1] <= at]

        assert content.startswith(read)
        assert len(read) >= (before[-1][0] if before else 0)


def readable(file: StoredFile) -> bytes:
    """Return what can be read from the beginning until there is no more, or it is damaged."""
    read = b""
    try:
        with closing(file.open()) as reader:
            while data := reader.read(len(read), 100):
                read += bytes(data)
    except Damaged:
        pass
    return read


def edges_on_disk(batches: Written) -> list[tuple[int, int]]:
    """Return (plain offset, offset on disk) of the end of every frame of `write`."""
    plain, disk, found = len(MAGIC), 92 + 40 + len(MAGIC), list[tuple[int, int]]()
    found.append((plain, disk))
    for batch in batches:
        plain, disk = plain + len(batch), disk + 40 + len(batch)
        found.append((plain, disk))
    return found


def test_a_plain_file_that_changed_on_disk_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "0000000001-1"
    folder.mkdir()
    file = StoredFile(folder / "binlog.000001")
    with closing(stored.begin(file)) as made:
        made.append(random_bytes(3 * BLOCK_BYTES), ())
        sums = made.sums
    assert sums is not None
    with closing(file.open(sums=sums)) as reader:
        assert (len(reader.read(0, 3 * BLOCK_BYTES)), reader.proven, reader.form) == (3 * BLOCK_BYTES, True, Form.PLAIN)
        reader.read(3 * BLOCK_BYTES - 1, 5)
        assert not reader.proven
    data = bytearray(file.path.read_bytes())
    data[BLOCK_BYTES + 5] ^= 1
    file.path.write_bytes(data)

    with closing(file.open(sums=sums)) as reader:
        assert reader.read(0, 100) == bytes(data[:100])
        with pytest.raises(Damaged, match=f"offset {BLOCK_BYTES}"):
            reader.read(2 * BLOCK_BYTES - 1, 1)
