"""What clinics and their tools really run reads from us unmodified: standbys in every mode, mariadb-binlog, CDC."""

import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent

from tests.replicator.house import House, until
from tests.servers.mariadb import REPLICATION_PASSWORD, REPLICATION_USER, MariaDBServer

pytestmark = pytest.mark.servers
MODES = ("none", "minimal", "conservative", "optimistic", "aggressive")


def load(primary: MariaDBServer, begin: int, count: int = 60) -> None:
    """Write groups that a parallel standby may apply at once: two tables, three sessions."""

    def write(shift: int) -> None:
        connection = primary.connect()
        with connection.cursor() as cursor:
            for number in range(begin + shift, begin + count, 3):
                cursor.execute("INSERT INTO d.t VALUES (%s, REPEAT('x', 200))", (number,))
                cursor.execute("UPDATE d.t SET b = CONCAT(b, 'u') WHERE a = %s", (number - 3,))
        connection.close()

    threads = [threading.Thread(target=write, args=(shift,)) for shift in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_standbys_in_every_parallel_mode_end_with_the_same_rows(house: House) -> None:
    """`slave_parallel_threads` 0 and 4, each mode, one pair of servers; rotations between."""
    primary = house.database("clinic")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    standby = house.database("toronto")
    house.follow("toronto", position="")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    modes = [("optimistic", 0), *((mode, 4) for mode in MODES)]
    for number, (mode, threads) in enumerate(modes):
        standby.run("STOP SLAVE", f"SET GLOBAL slave_parallel_threads = {threads}",
                    f"SET GLOBAL slave_parallel_mode = {mode}", "START SLAVE")  # fmt: skip
        load(primary, 100 * number)
        primary.run("FLUSH BINARY LOGS")
        house.await_applied("toronto", house.position("clinic"))

        assert standby.value("CHECKSUM TABLE d.t") == primary.value("CHECKSUM TABLE d.t"), (mode, threads)


class Tool:
    """A `mariadb-binlog` that reads from a replicator, and what it has written."""

    def __init__(self, house: House, output: Path, *arguments: str) -> None:
        self.output = output
        self._log = output.open("wb")
        self.process = subprocess.Popen(
            ["mariadb-binlog", "--no-defaults", "--read-from-remote-server", "--host=127.0.0.1",
             f"--port={house.ports['toronto'][0]}", f"--user={REPLICATION_USER}", f"--password={REPLICATION_PASSWORD}",
             *arguments], stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> "Tool":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        self._log.close()


def cdc(house: House, position: str, count: int, found: list[int], server_id: int) -> None:
    """Read rows as a CDC tool does: the stream from the replicator, the schema from the standby."""

    def account(port: int) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": port, "user": REPLICATION_USER, "password": REPLICATION_PASSWORD}

    reader = BinLogStreamReader(
        account(house.ports["toronto"][0]), server_id, ctl_connection_settings=account(house.servers["toronto"].port),
        is_mariadb=True, auto_position=position, blocking=True, only_events=[WriteRowsEvent], slave_heartbeat=1,
    )  # fmt: skip
    for event in reader:
        found += [next(iter(row["values"].values())) for row in event.rows]
        if len(found) >= count:
            break
    reader.close()


@pytest.mark.filterwarnings("ignore:'db' is deprecated")  # the CDC library's own call
def test_ten_standbys_and_tools_read_at_once(house: House) -> None:
    """Two standbys, `mariadb-binlog` with text and raw files, and CDC readers, all live, none with an own protocol."""
    primary = house.database("clinic", binlog_row_metadata="FULL")
    house.begin_epoch("clinic")
    house.replicator("toronto")
    for site in ("toronto", "montreal"):
        # A CDC tool looks tables up in the standby, with an account that may.
        house.database(site).run("SET SESSION sql_log_bin = 0", f"GRANT SELECT ON *.* TO {REPLICATION_USER}@'%'")
        house.follow(site, position="", source="toronto")
    primary.run("CREATE DATABASE d", "CREATE TABLE d.t (a INT PRIMARY KEY, b LONGTEXT)")
    house.await_applied("toronto", house.position("clinic"))
    found = [list[int]() for _ in range(4)]
    readers = [threading.Thread(target=cdc, args=(house, house.position("clinic"), 120, one, 500 + number), daemon=True)
               for number, one in enumerate(found)]  # fmt: skip
    raw = house.directory / "raw-"
    with ExitStack() as stack:
        texts = [stack.enter_context(Tool(house, house.directory / f"text-{number}", "--stop-never", "-v", "--base64-output=decode-rows",
                                          f"--stop-never-slave-server-id={600 + number}", "binlog.000002"))
                 for number in range(3)]  # fmt: skip
        stack.enter_context(Tool(house, house.directory / "raw.log", "--stop-never", "--raw", f"--result-file={raw}",
                                 "--stop-never-slave-server-id=610", "binlog.000002"))  # fmt: skip
        for reader in readers:
            reader.start()
        load(primary, 0)
        primary.run("FLUSH BINARY LOGS")
        load(primary, 100)
        for reader in readers:
            reader.join(8)
        for site in ("toronto", "montreal"):
            house.await_applied(site, house.position("clinic"))
        for text in texts:
            until(lambda: text.output.read_bytes().count(b"### INSERT INTO `d`.`t`") == 120, what="all rows as text")  # noqa: B023 - at once

    assert [sorted(one) for one in found] == [[*range(60), *range(100, 160)]] * 4
    assert Path(f"{raw}binlog.000002").read_bytes() == (primary.datadir / "binlog.000002").read_bytes()
    assert len({house.servers[site].value("CHECKSUM TABLE d.t") for site in house.servers}) == 1
