"""`START SLAVE UNTIL master_gtid_pos` against the archive: exactly so far; and where "before" a transaction or a time is."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.binlog.events import LIST_UNTIL_REACHED, Kind, position_of_list
from cluster.binlog.framing import CRC_BYTES, HEADER, HEADER_BYTES
from cluster.errors import BadInput, Refused
from cluster.position import Gtid, Position
from replicator.archive import Archive
from replicator.before import asked, before_gtid
from tests.replicator.binlog import Binlog
from tests.replicator.house import TOKEN, House, until
from tests.replicator.serving import Reader, a_log, an_archive, serving
from tests.servers.mariadb import MariaDBServer

TRANSACTIONS = 6
SECONDS_AHEAD, ENOUGH = 3600, 100


def two_epochs(directory: Path) -> tuple[Path, Binlog, Binlog]:
    """Return an archive of two epochs of one file each."""
    first, second = a_log(3), Binlog("0-1-3", server_id=2)
    for number in range(4, TRANSACTIONS + 1):
        second.transaction(f"0-2-{number}")
    folder = an_archive(directory, first.data, second.data)
    for epoch, begin, end in ((1, "", '"0-1-3"'), (2, "0-1-3", "null")):
        (folder / "epochs" / f"{epoch:010d}-1" / "epoch.json").write_text(
            f'{{"epoch": {epoch}, "server_id": {epoch}, "file": "binlog.000001", "position": "{begin}", "end": {end}}}')  # fmt: skip
    return folder, first, second


def gtid_at(number: int) -> str:
    return "" if number == 0 else f"0-{1 if number <= 3 else 2}-{number}"


def test_a_replica_that_is_to_stop_is_sent_exactly_so_much_and_told(tmp_path: Path) -> None:
    """From every place to every place, also none before the first and over the end of an epoch."""
    folder, *logs = two_epochs(tmp_path / "a")
    transactions = [event for log in logs for event in log.events if HEADER.unpack_from(event)[1] == Kind.XID]
    with serving(folder) as server:
        for begin in range(TRANSACTIONS + 1):
            for stop in range(TRANSACTIONS + 1):
                with Reader(server.port, server_id=5) as reader:
                    reader.dump(slave_connect_state=gtid_at(begin), slave_until_gtid=gtid_at(stop))
                    *payloads, last, end = reader.packets()
                sent = [payload[1:] for payload in payloads if payload[1:] in transactions]
                told = memoryview(last)[1:]

                assert sent == transactions[begin:stop], (begin, stop)
                assert HEADER.unpack_from(told)[1] == Kind.GTID_LIST
                assert int.from_bytes(told[HEADER_BYTES : HEADER_BYTES + 4], "little") & LIST_UNTIL_REACHED
                assert position_of_list(told) == Position.parse(gtid_at(max(begin, stop)))
                assert end[0] == 0xFE
        with Reader(server.port, server_id=5) as reader:
            (refusal,) = reader.dump(slave_connect_state="", slave_until_gtid="0-2-9").packets()

    assert b"0-2-9" in refusal
    assert CRC_BYTES == 4


def test_before_a_transaction_is_where_everything_but_it_is(tmp_path: Path) -> None:
    folder, *_ = two_epochs(tmp_path / "a")
    archive = Archive.open(folder)
    try:
        for number in range(1, TRANSACTIONS + 1):
            found = before_gtid(archive, Gtid.parse(gtid_at(number)))
            assert (str(found.position), found.epoch) == (gtid_at(number - 1), 1 if number <= 3 else 2)
        refusals: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
            "not yet": (lambda: before_gtid(archive, Gtid(0, 2, 7)), Refused, "ends at 0-2-6"),
            "another history": (lambda: before_gtid(archive, Gtid(0, 9, 5)), Refused, "has 0-2-5 in its place"),
            "no time and no transaction": (lambda: asked(archive, None, None), BadInput, "either"),
            "no GTID": (lambda: asked(archive, "0-1", None), BadInput, "domain-server-sequence"),
            "no time": (lambda: asked(archive, None, "-5"), BadInput, "whole seconds"),
            "a time that has not come": (lambda: asked(archive, None, "9999999999"), Refused, "later"),
        }
        for name, (question, kind, words) in refusals.items():
            with pytest.raises(kind, match=words) as caught:
                question()
            assert getattr(caught.value, "hint", ""), name
    finally:
        archive.close()


def ask(house: House, query: str, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{house.ports['toronto'][1]}/v1/before?{query}"
    asking = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asking, timeout=10) as one:
            return one.status, json.loads(one.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.servers
@pytest.mark.parametrize("threads", [0, 4])
def test_a_real_standby_stops_exactly_before_a_transaction_while_others_write(house: House, threads: int) -> None:
    """By GTID, and by a time of the primary's clock; what was received beyond it is not applied either."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto", rpl_semi_sync_slave_enabled="ON", slave_parallel_threads=threads)
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT AUTO_INCREMENT PRIMARY KEY, b TEXT)")
    with loaded(primary):
        # In one session each, so that the position it leaves is that of its last transaction.
        (gtid,) = primary.run("DELETE FROM d.t", "SELECT @@last_gtid")[0]
        later = f"SET timestamp = UNIX_TIMESTAMP() + {SECONDS_AHEAD}"
        (late,) = primary.run(later, "INSERT INTO d.t (b) VALUES ('late')", "SELECT @@last_gtid")[0]
        until(lambda: primary.value("SELECT COUNT(*) FROM d.t") > ENOUGH, what="it is written further")
        house.await_durable("toronto", house.position("clinic"))
        status, found = ask(house, f"gtid={gtid}")
        assert (status, found["gtid"]) == (200, gtid)
        house.follow("toronto", position=house.lineage[0].position, until=found["position"])
        until(lambda: house.slave_status("toronto")["Slave_SQL_Running"] == "No", what="it stops")

        assert house.slave_status("toronto")["Slave_IO_Running"] == "No"
    assert standby.value("SELECT @@gtid_slave_pos") == found["position"]
    assert standby.value("SELECT COUNT(*) FROM d.t") > ENOUGH
    seconds = int(primary.value("SELECT UNIX_TIMESTAMP()")) + SECONDS_AHEAD // 2
    assert ask(house, f"time={seconds}")[1]["gtid"] == late
    assert ask(house, "gtid=0-1-99999999")[0] == 409
    assert ask(house, f"gtid={gtid}", token="wrong")[0] == 401
    standby.run("START SLAVE")
    house.await_applied("toronto", house.position("clinic"))
    assert standby.value("SELECT COUNT(*) FROM d.t") == primary.value("SELECT COUNT(*) FROM d.t")


@contextmanager
def loaded(primary: MariaDBServer) -> Iterator[None]:
    """Two sessions write all the time, and have written."""
    stopping = threading.Event()

    def load() -> None:
        with primary.connect() as connection, connection.cursor() as cursor:
            while not stopping.is_set():
                cursor.execute("INSERT INTO d.t (b) VALUES (REPEAT('x', 500))")

    writers = [threading.Thread(target=load) for _ in range(2)]
    try:
        for writer in writers:
            writer.start()
        until(lambda: primary.value("SELECT COUNT(*) FROM d.t") > ENOUGH, what="it is written")
        yield
    finally:
        stopping.set()
        for writer in writers:
            writer.join()
