"""Serving: who may attach, from where, how many, and what one of them can do to the others: nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from cluster.binlog.events import Kind
from replicator.admission import Limits
from replicator.source import DUMP_NON_BLOCK
from tests.replicator.binlog import Binlog
from tests.replicator.house import until
from tests.replicator.serving import FILE, Reader, Serving, a_log, an_archive, read_from, serving

BUFFERED_BYTES_MAX = 1024 * 1024
KNOWN = 3


def test_a_tool_begins_at_a_file_and_an_offset(tmp_path: Path) -> None:
    """Without GTID, as `mariadb-binlog` and other tools do; in the midst of a file the description comes first."""
    log = a_log(5)
    third = log.boundaries[3][0]
    with serving(an_archive(tmp_path / "a", log.data)) as server:
        with Reader(server.port) as whole:
            assert b"".join(whole.dump(FILE).events(log.events[-1])) == log.data[4:]
        with Reader(server.port) as rest:
            assert b"".join(rest.dump(FILE, third).events(log.events[-1])) == log.data[third:]
        with Reader(server.port) as once:
            found = once.dump(FILE, flags=DUMP_NON_BLOCK, master_binlog_checksum="NONE").packets()
            assert len(next(found)) == 1 + 19 + 8 + len(FILE), "no checksum before the description that says so"
            assert [payload[0] for payload in found][-1] == 0xFE


def test_a_file_name_of_several_epochs_means_the_newest_and_no_name_the_oldest(tmp_path: Path) -> None:
    first, second = a_log(3), Binlog("0-1-3", server_id=1)
    second.transaction("0-1-4")
    folder = an_archive(tmp_path / "a", first.data, second.data)
    for epoch, begin in ((1, ""), (2, "0-1-3")):
        end = '"0-1-3"' if epoch == 1 else "null"
        (folder / "epochs" / f"{epoch:010d}-1" / "epoch.json").write_text(
            f'{{"epoch": {epoch}, "server_id": 1, "file": "{FILE}", "position": "{begin}", "end": {end}}}')  # fmt: skip
    with serving(folder) as server:
        with Reader(server.port) as newest:
            assert newest.dump(FILE).events(second.events[-1]) == second.events
        with Reader(server.port) as oldest:
            assert oldest.dump().events(second.events[-1]) == first.events + second.events


@pytest.mark.parametrize(("file", "offset"), [("binlog.000009", 4), (FILE, 77), (FILE, 2**31)])
def test_a_place_that_is_no_boundary_is_refused_by_name(tmp_path: Path, file: str, offset: int) -> None:
    with serving(an_archive(tmp_path / "a", a_log().data)) as server, Reader(server.port) as reader:
        (refusal,) = reader.dump(file, offset).packets()

    assert int.from_bytes(refusal[1:3], "little") == 1236
    assert file.encode() in refusal


def test_what_a_tool_asks_before_is_answered(tmp_path: Path) -> None:
    log = a_log()
    with serving(an_archive(tmp_path / "a", log.data)) as server, Reader(server.port) as reader:
        assert reader.query("SHOW MASTER STATUS")[0][:2] == (FILE, str(len(log.data)))
        assert reader.query("SHOW GLOBAL VARIABLES LIKE 'BINLOG_CHECKSUM'") == (("BINLOG_CHECKSUM", "CRC32"),)
        assert "MariaDB" in reader.query("SELECT VERSION()")[0][0]


def test_connections_that_prove_nothing_keep_nobody_out(tmp_path: Path) -> None:
    log = a_log()
    with serving(an_archive(tmp_path / "a", log.data)) as server, ExitStack() as stack:
        for _ in range(3 * Limits().handshakes):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        for _ in range(3):
            with Reader(server.port) as reader:
                assert reader.dump(FILE).events(log.events[-1]) == log.events
        until(
            lambda: server.ask(lambda: len(server.server._tasks)) <= Limits().handshakes + 1,
            what="the others are ended",
        )


def test_clients_that_only_ask_have_a_bound_and_take_no_stream(tmp_path: Path) -> None:
    limits = Limits(asking=4, streams_of_strangers=2)
    with (
        serving(an_archive(tmp_path / "a", a_log().data), limits=limits, known=frozenset({KNOWN})) as server,
        ExitStack() as stack,
    ):
        for _ in range(10):
            stack.enter_context(Reader(server.port)).query("SELECT VERSION()")
        asking = server.ask(lambda: len(server.server._asking))
        first = [stack.enter_context(Reader(server.port, server_id=number)).dump(FILE) for number in (7, 8)]
        for reader in first:
            next(reader.packets())
        third = stack.enter_context(Reader(server.port, server_id=9)).dump(FILE)
        known = stack.enter_context(Reader(server.port, server_id=KNOWN)).dump(FILE)

        assert asking <= limits.asking
        assert int.from_bytes(next(third.packets())[1:3], "little") == 1040, "a replica comes again after this number"
        assert next(known.packets())[0] == 0


def test_a_newer_stream_of_a_server_ends_its_older_one_but_tools_without_an_id_are_many(tmp_path: Path) -> None:
    with serving(an_archive(tmp_path / "a", a_log().data)) as server, ExitStack() as stack:
        tools = [stack.enter_context(Reader(server.port)).dump(FILE) for _ in range(3)]
        older = stack.enter_context(Reader(server.port, server_id=5)).dump(FILE)
        for reader in (*tools, older):
            next(reader.packets())
        newer = stack.enter_context(Reader(server.port, server_id=5)).dump(FILE)
        next(newer.packets())

        last = list(older.packets())[-1]
        assert int.from_bytes(last[1:3], "little") == 4052, "as a database says it"
        assert b"server_id 5, from 127.0.0.1," in last
        assert server.ask(lambda: len(server.server.streams)) == 4


def test_a_reader_hears_that_we_live_though_there_is_news_that_is_not_for_it(tmp_path: Path) -> None:
    """An idle primary's own heartbeats are such news, twice a second: standbys connected anew at every slave_net_timeout."""
    with serving(an_archive(tmp_path / "a", a_log().data)) as server, Reader(server.port) as reader:
        reader.dump(FILE, master_heartbeat_period="200000000")
        with ringing(server):
            beats = list(islice((one for one in reader.packets() if one[5] == Kind.HEARTBEAT), 3))

    assert len(beats) == 3


@contextmanager
def ringing(server: Serving) -> Iterator[None]:
    """Tell news more often than the heartbeat period."""
    ended = threading.Event()

    def ring() -> None:
        while not ended.wait(0.02):
            server.ask(server.server.news.tell)

    bell = threading.Thread(target=ring)
    bell.start()
    try:
        yield
    finally:
        ended.set()
        bell.join()


def test_a_reader_that_takes_nothing_holds_little_disturbs_nobody_and_is_cut_off(tmp_path: Path) -> None:
    """Back-pressure (TRAPS.md 13): its share of memory is bounded, and ten others read everything meanwhile."""
    log, read = a_log(80, row_bytes=100_000), list[int]()
    with (
        serving(an_archive(tmp_path / "a", log.data), limits=Limits(stalled_ms=2_000)) as server,
        Reader(server.port, receive_buffer_bytes=4096) as stalled,
    ):
        stalled.dump(FILE)
        held = until(lambda: server.ask(lambda: buffered(server.server._clients)), what="it holds something")
        threads = [threading.Thread(target=lambda: read.append(read_all(server.port, log))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        until(lambda: server.ask(lambda: len(server.server.streams)) == 0, what="the stalled reader is cut off")

    assert read == [len(log.data) - 4] * 10
    assert 0 < held < BUFFERED_BYTES_MAX


def read_all(port: int, log: Binlog) -> int:
    with Reader(port) as reader:
        return sum(map(len, reader.dump(FILE).events(log.events[-1])))


def buffered(clients: object) -> int:
    assert isinstance(clients, dict)
    return sum(client.writer.transport.get_write_buffer_size() for client in clients.values())


def test_another_replicator_reads_while_others_do(tmp_path: Path) -> None:
    with serving(an_archive(tmp_path / "a", a_log().data)) as server, read_from(server) as one:
        assert "10.11" in one.server_version
