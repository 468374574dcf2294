"""The traps of the wire against a real MariaDB, each by its number in TRAPS.md.

Elsewhere: 4 to 6 in test_receiving, test_acknowledging and healthcheck's test_fence, 9 in test_receiving, 10 in
test_replicator, 11 in test_remedy, 13 in test_replicator (40 MiB rows) and test_serving (a reader that stalls).
"""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.binlog import events
from cluster.binlog.events import Kind
from cluster.binlog.framing import MIB, an_event, whole_events
from cluster.errors import BadInput, Diverged, Refused, Unreachable
from cluster.position import Position
from cluster.settings import Timing
from replicator.archive import Resume
from replicator.receiving import StreamReader
from replicator.source import Target, Wanted, opened, require_fit
from tests.replicator.binlog import Binlog
from tests.replicator.house import House, until
from tests.replicator.test_acknowledging import SEMI_SYNC, Writer, primary_of
from tests.replicator.test_receiving import give
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER

GOOD = {"server_id": "1", "log_bin": "ON", "binlog_format": "ROW", "gtid_strict_mode": "ON", "binlog_checksum": "CRC32",
        "encrypt_binlog": "OFF"}  # fmt: skip
TARGET = Target(host="127.0.0.1", port=1, user="u", password="p", our_server_id=9, expected_server_id=1)
MEMORY_KIB_MAX = 150 * 1024
STREAM_FILE = "binlog.000002"


def archived(house: House, file: str = STREAM_FILE) -> bytes:
    return (house.archive("toronto") / "epochs" / "0000000001-1" / file).read_bytes()


def kinds_in(data: bytes) -> list[int]:
    return [header.kind for _, header in whole_events(memoryview(data)[4:])]


@pytest.mark.servers
def test_gtids_annotations_and_compressed_rows_are_the_primarys_own_and_nothing_artificial_is_there(
    house: House,
) -> None:
    """TRAPS 1, 2 and 8: capability 4 and the annotate flag; a resume in the midst of a file; table ids anew each file."""
    primary = house.database("clinic", log_bin_compress="ON", log_bin_compress_min_len=32)
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)",
                "INSERT INTO d.t VALUES (1, REPEAT('x', 5000))")  # fmt: skip
    house.await_durable("toronto", house.position("clinic"))
    process.kill()
    house.replicator("toronto")
    primary.run("UPDATE d.t SET b = REPEAT('y', 9000)", "DELETE FROM d.t")
    primary.restart()
    primary.run("INSERT INTO d.t VALUES (2, 'after a restart')")
    house.await_durable("toronto", house.position("clinic"))
    kinds = kinds_in(archived(house))

    assert archived(house) == (primary.datadir / STREAM_FILE).read_bytes()
    assert {Kind.GTID, Kind.ANNOTATE_ROWS, Kind.QUERY_COMPRESSED, Kind.WRITE_ROWS_COMPRESSED_V1} <= set(kinds)
    assert Kind.HEARTBEAT not in kinds
    assert archived(house, "binlog.000003")[30:] == (primary.datadir / "binlog.000003").read_bytes()[30:]


def reading_again(log: Binlog, archived_at: str, dropped: int) -> StreamReader:
    """Return a reader that has been given the beginning of a file, which it has already."""
    position = Position.parse(archived_at)
    reader = StreamReader("binlog.000003", 4, position, semi_sync=False, dropped_until=dropped)
    give(reader, events.fake_rotate("binlog.000003", 4, server_id=1), *log.events)
    return reader


def test_a_file_above_four_gigabytes_is_read_again_from_its_beginning_and_its_old_part_dropped() -> None:
    """TRAPS 3: positions wrap at 32 bits, and a dump cannot name such an offset; we count ourselves."""
    filler, log = an_event(Kind.WRITE_ROWS_V1, bytes(64 * MIB), server_id=1), Binlog("0-1-0")
    log.gtid("0-1-1")
    end = an_event(Kind.XID, bytes(8), server_id=1)
    dropped = len(log.data) + 64 * len(filler) + len(end)
    wanted = Wanted(resume=Resume("binlog.000003", dropped, Position.parse("0-1-1")))
    reader, packet = reading_again(log, "0-1-1", dropped), memoryview(b"\0" + filler)
    for _ in range(64):
        reader.accept(packet)
    new = an_event(Kind.BINLOG_CHECKPOINT, b"x" * 40, server_id=1, end_position=(dropped + 63) & 0xFFFFFFFF)
    give(reader, end, new)
    (chunk,) = reader.take().chunks

    assert dropped > 2**32
    assert wanted.asked_offset == 4
    assert (chunk.offset, chunk.boundary, b"".join(chunk.parts)) == (dropped, dropped + 63, new)


def test_what_is_read_again_must_end_where_the_archive_does() -> None:
    """Behind 4 GiB BINLOG_GTID_POS() answers NULL: the events themselves say whether the histories are one."""
    log = Binlog("0-1-0")
    log.transaction("0-1-1")
    reading_again(log, "0-1-1", len(log.data))
    with pytest.raises(Diverged, match="histories"):
        reading_again(log, "0-1-2", len(log.data))
    with pytest.raises(Diverged, match="histories"):
        reading_again(log, "0-1-1", len(log.data) - 1)


def test_what_comes_again_ends_with_its_file() -> None:
    """The next file is new from its first byte: to drop it would acknowledge what is nowhere."""
    log, following = Binlog("0-1-0"), Binlog("0-1-1")
    log.transaction("0-1-1")
    following.transaction("0-1-2")
    reader = reading_again(log, "0-1-1", len(log.data))
    give(reader, events.fake_rotate("binlog.000004", 4, server_id=1), *following.events)
    (chunk,) = reader.take().chunks

    assert (chunk.file, chunk.offset, str(chunk.position)) == ("binlog.000004", 4, "0-1-2")


def test_a_heartbeat_behind_4_gib_says_where_it_is() -> None:
    """A replica that hears of less than it has stops its receiver, so the header's 32 bits must not be cut."""
    near, far = 0xFFFFFFFF, 0x1_0000_0000
    assert events.heartbeat(STREAM_FILE, near, server_id=1)[13:-4] == b"\xff" * 4 + b"\x20\0" + STREAM_FILE.encode()
    assert events.heartbeat(STREAM_FILE, far, server_id=1)[13:-4] == (
        bytes(4) + b"\x20\0" + far.to_bytes(8, "little") + STREAM_FILE.encode()
    )


@pytest.mark.servers
def test_connecting_at_an_offset_is_an_acknowledgement_so_it_is_asked_for_at_the_last_moment(house: House) -> None:
    """TRAPS 5: a commit that waits is released by a connection alone; without permission there is no dump."""
    primary = primary_of(house, "nobody")
    before = str(primary.run("SHOW MASTER STATUS")[0][0]), int(primary.run("SHOW MASTER STATUS")[0][1])
    position = Position.parse(house.position("clinic"))
    writer = Writer(primary)
    writer.start()
    until(lambda: primary.run("SHOW MASTER STATUS")[0][1] > before[1], what="a commit waits")
    file, offset = str(primary.run("SHOW MASTER STATUS")[0][0]), int(primary.run("SHOW MASTER STATUS")[0][1])
    target = Target(host="127.0.0.1", port=primary.port, user=REPLICATION_USER, password=REPLICATION_PASSWORD,
                    our_server_id=99, expected_server_id=1)  # fmt: skip
    wanted = Wanted(resume=Resume(*before, position), semi_sync=True, permitted=lambda: False)
    with pytest.raises(Unreachable, match="changed while we connected"), opened(target, wanted, Timing()):
        pass
    time.sleep(0.3)
    assert writer.acknowledged == []
    after = Position.parse(str(primary.value(f"SELECT BINLOG_GTID_POS('{file}', {offset})")))
    with opened(target, Wanted(resume=Resume(file, offset, after), semi_sync=True), Timing()):
        until(lambda: writer.acknowledged, what="the connection alone has released it")
    writer.stopped.set()
    assert SEMI_SYNC["rpl_semi_sync_master_wait_point"] == "AFTER_SYNC"


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("server_id", "2", Refused, "the epoch's primary has 1"),
        ("binlog_storage_engine", "innodb", BadInput, "no semi-synchronous replication"),
        ("binlog_format", "MIXED", BadInput, "binlog_format=MIXED instead of ROW"),
        ("gtid_strict_mode", "OFF", BadInput, "gtid_strict_mode=OFF instead of ON"),
        ("binlog_checksum", "NONE", BadInput, "binlog_checksum=NONE instead of CRC32"),
        ("encrypt_binlog", "ON", BadInput, "encrypt_binlog=ON instead of OFF"),
        ("log_bin", "OFF", BadInput, "log_bin=OFF instead of ON"),
    ],
)
def test_a_primary_that_cannot_be_archived_is_refused_by_name(
    name: str, value: str, error: type[Exception], words: str
) -> None:
    """TRAPS 7, 10 and 12: defaults that must not be, another server in its place, offsets that encryption would shift."""
    require_fit(GOOD, TARGET)

    with pytest.raises(error, match=words):
        require_fit(GOOD | {name: value}, TARGET)


@pytest.mark.servers
def test_checksums_that_are_switched_off_stop_the_stream_with_the_mend(house: House) -> None:
    """TRAPS 8: it rotates, and the new file carries none."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    primary.run("CREATE DATABASE d")
    house.await_durable("toronto", house.position("clinic"))
    primary.run("SET GLOBAL binlog_checksum = NONE")
    report = house.await_health("toronto", lambda report: "needs a person" in report.why, what="it stops")

    assert "CRC32" in report.why


@pytest.mark.servers
def test_a_transaction_larger_than_our_memory_passes_and_so_does_a_stalled_replicator(house: House) -> None:
    """TRAPS 13: to disk as it comes; the primary cuts who takes nothing for net_write_timeout, and we come again."""
    primary = house.database("clinic", net_write_timeout=1, max_binlog_cache_size="4G")
    house.begin_epoch("clinic")
    process = house.replicator("toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT) ENGINE=InnoDB")
    house.await_durable("toronto", house.position("clinic"))
    process.freeze()
    primary.run(
        "BEGIN", *[f"INSERT INTO d.t VALUES ({number}, REPEAT('x', 4000000))" for number in range(50)], "COMMIT"
    )
    time.sleep(2.5)
    process.thaw()
    house.await_durable("toronto", house.position("clinic"))
    peak = next(
        line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    )

    assert archived(house)[30:] == (primary.datadir / STREAM_FILE).read_bytes()[30:], "but for the mark of an open file"
    assert int(peak.split()[1]) < MEMORY_KIB_MAX


class Proxy:
    """Passes bytes on until it stops, as a firewall that forgets a connection: both sides stay open and hear nothing."""

    def __init__(self, port: int) -> None:
        self.forwards, self._target = True, port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])

    def run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while True:
                for one in select.select([client, server], [], [], 0.1)[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    if self.forwards:
                        (server if one is client else client).sendall(data)


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        with suppress(OSError):
            proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join(5)


@pytest.mark.servers
def test_a_connection_that_both_sides_believe_in_and_nothing_passes_is_found_by_its_silence(house: House) -> None:
    """TRAPS 14: the heartbeat's period is shorter than the deadline, and both are set."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    with proxied(primary.port) as proxy:
        house.settings.write_text(house.settings.read_text().replace(f"port = {primary.port}", f"port = {proxy.port}"))
        house.replicator("toronto")
        house.await_health("toronto", lambda report: report.connected, what="connected")
        proxy.forwards = False
        report = house.await_health("toronto", lambda report: not report.connected, what="found")
        proxy.forwards = True
        primary.run("CREATE DATABASE d")
        house.await_durable("toronto", house.position("clinic"))

    assert "silent" in report.why or "in time" in report.why
