"""Nothing is thrown away (invariant 7): what only an old primary has is on disk, whole, before anything may replace it."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from cluster.position import Gtid, Position
from healthcheck import rescue_folder
from healthcheck.rescue_folder import LINES, RAW, RECORD, Rescue
from healthcheck.rescue_lines import Line, uncoded
from tests.healthcheck.site import DatabaseNode, Site, eventually
from tests.servers import disk

pytestmark = pytest.mark.servers
MADE = ["CREATE TABLE oscar.note (id INT PRIMARY KEY, text LONGTEXT CHARACTER SET utf8mb4)"]


RESCUE_SECONDS = 90.0
SMALL_DISK_BYTES = 66 * 2**20
"""Enough for the reserve and a small rescue, not for four MiB of ballast."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    with disk.small_disk(tmp_path / "disk", SMALL_DISK_BYTES) as place:
        yield place


def fork(site: Site, *statements: str) -> str:
    """Let node one write what the cluster never gets: epoch 2 of node two begins before it. Return where it begins."""
    site.start()
    site.make_primary()
    site.make_acker()
    site.one.run(*MADE)
    before = str(site.one.value("SELECT @@gtid_binlog_pos"))
    if statements:
        site.one.run("USE oscar", "SET NAMES utf8mb4", *statements)
    replace_primary(site, before)
    return before


def replace_primary(site: Site, before: str) -> None:
    site.watchdog_one.done("fence", epoch=1)
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": before})


def rescued(site: Site, state: str = "complete") -> tuple[Path, Rescue]:
    """Wait for the rescue; return its folder and its record."""

    def there() -> dict[str, Any] | None:
        found: dict[str, Any] = site.watchdog_one.health()["rescue"]
        return found if found and found["state"] == state else None

    try:
        report = eventually(there, seconds=RESCUE_SECONDS)
    except AssertionError:
        raise AssertionError(f"never {state}: {site.watchdog_one.health()}\n{site.watchdog_one.log_tail()}") from None
    folder = Path(report["path"])
    return folder, rescue_folder.recall(folder)


def rows_of(folder: Path, table: str = "oscar.") -> list[Line]:
    return [one for one in rescue_folder.lines_of(folder) if one.table.startswith(table)]


def extra_gtids(server: DatabaseNode, before: str) -> set[str]:
    """Return what the server itself lists in its binlog behind a position."""
    start, found = Position.parse(before).sequence(0), set()
    for name, *_ in server.run("SHOW BINARY LOGS"):
        for row in server.run(f"SHOW BINLOG EVENTS IN '{name}'"):
            if row[2] == "Gtid":
                gtid = Gtid.parse(str(row[5]).split("GTID ")[1].split()[0])
                found |= {str(gtid)} if gtid.sequence > start else set()
    return found


def test_commits_that_nobody_acknowledged_are_rescued_when_another_is_primary(site: Site) -> None:
    """A frozen primary: its commits wait, node two takes over without them, the fence kills the sessions."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.one.run("INSERT INTO oscar.chart VALUES (1)")
    eventually(lambda: site.two.value("SELECT COUNT(*) FROM oscar.chart") == 1)
    site.watchdog_two.kill()  # it would start again what we stop
    site.two.run("STOP SLAVE IO_THREAD")
    before = str(site.two.value("SELECT @@gtid_binlog_pos"))
    writer = threading.Thread(target=write_and_be_killed, args=(site.one, "INSERT INTO chart VALUES (2)"))
    writer.start()
    eventually(lambda: str(site.one.value("SELECT @@gtid_binlog_pos")) != before)  # it is written, and waits
    replace_primary(site, before)
    writer.join(30)
    folder, record = rescued(site)

    assert [(one.kind, one.key, one.before, one.after) for one in rows_of(folder)] == [
        ("insert", {"id": 2}, None, {"id": 2})
    ]
    assert (record.counts.rows, record.parts, record.epoch, record.node) == (1, before, 2, "one")
    assert {one.gtid for one in rescue_folder.lines_of(folder)} == extra_gtids(site.one, before)


def write_and_be_killed(server: DatabaseNode, statement: str) -> None:
    client = server.client()
    with pytest.raises(pymysql.Error), client.cursor() as cursor:
        cursor.execute(statement)
    client._force_close()  # type: ignore[attr-defined]  # the session was killed


def test_the_files_are_for_their_owner_and_a_person_and_mariadb_binlog_can_read_them(site: Site) -> None:
    before = fork(
        site, "INSERT INTO oscar.note VALUES (1, 'Ωmega 😀')", "FLUSH BINARY LOGS", "UPDATE oscar.note SET text = 'b'"
    )
    folder, record = rescued(site)

    assert folder == site.directory / "one" / "rescue" / site.settings.name / record.id
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        [*record.files, RECORD], 0o600
    )
    shown = "".join(
        subprocess.run(["mariadb-binlog", "--verbose", "--base64-output=decode-rows", str(path)], check=True,
                       capture_output=True, text=True, timeout=30).stdout
        for path in sorted(folder.glob(f"{RAW}*"))
    )  # fmt: skip
    for gtid in extra_gtids(site.one, before):
        assert f"GTID {gtid}" in shown
    assert "### UPDATE `oscar`.`note`" in shown
    assert [one.after for one in rows_of(folder)] == [{"id": 1, "text": "Ωmega 😀"}, {"id": 1, "text": "b"}]


def test_what_is_no_row_of_a_committed_transaction_is_kept_and_named(site: Site) -> None:
    """Statements, DDL, and XA that was prepared and never decided."""
    before = fork(
        site,
        "CREATE TABLE oscar.new_form (a INT, b INT)", "INSERT INTO oscar.new_form VALUES (1, 2)", "DROP TABLE oscar.new_form",
        "SET SESSION binlog_format = STATEMENT", "UPDATE oscar.chart SET id = 8 WHERE id = 9", "SET SESSION binlog_format = ROW",
        "XA START 'clinic'", "INSERT INTO oscar.chart VALUES (77)", "XA END 'clinic'", "XA PREPARE 'clinic'",
    )  # fmt: skip
    folder, record = rescued(site)
    lines = list(rescue_folder.lines_of(folder))

    assert record.why == ""
    assert {one.gtid for one in lines} == extra_gtids(site.one, before)
    statements = {(one.kind, one.statement.split("(")[0].strip()) for one in lines if one.statement}
    assert {
        ("ddl", "CREATE TABLE oscar.new_form"),
        ("statement", "UPDATE oscar.chart SET id = 8 WHERE id = 9"),
    } <= statements
    assert any(one.kind == "ddl" and "DROP TABLE" in one.statement for one in lines)
    assert [one.after for one in lines if one.table == "oscar.new_form" and one.kind == "insert"] == [{"a": 1, "b": 2}]
    prepared = [one for one in lines if one.prepared]
    assert [one.after for one in prepared if one.table == "oscar.chart"] == [{"id": 77}]
    assert any(one.kind == "xa" and one.why for one in prepared)
    assert record.counts.statements >= 3


def test_a_row_of_ten_megabytes_and_bytes_that_are_no_text_are_exact(site: Site) -> None:
    fork(site, "INSERT INTO oscar.note VALUES (1, REPEAT('Ωx', 3500000))",
         "CREATE TABLE oscar.scan (id BIGINT UNSIGNED PRIMARY KEY, image LONGBLOB)",
         "INSERT INTO oscar.scan VALUES (18446744073709551615, UNHEX(REPEAT('00ff', 1000)))")  # fmt: skip
    folder, _ = rescued(site)
    note, scan = (one for one in rows_of(folder) if one.kind == "insert")

    assert note.after == {"id": 1, "text": "Ωx" * 3_500_000}
    assert scan.after is not None
    assert (scan.after["id"], uncoded(scan.after["image"])) == (2**64 - 1, b"\0\xff" * 1000)


def test_a_watchdog_that_is_killed_in_the_midst_begins_anew_and_calls_nothing_half_whole(site: Site) -> None:
    before = fork_of_many_rows(site)
    place = site.directory / "one" / "rescue" / site.settings.name
    for size in (1, 1_000_000):
        wait_for_draft(place, size)
        site.watchdog_one.kill()
        assert not [path for path in place.iterdir() if not path.name.startswith(".")], "half, and called whole"
        site.watchdog_one.start()
    folder, record = rescued(site)

    assert {one.gtid for one in rescue_folder.lines_of(folder)} == extra_gtids(site.one, before)
    assert record.counts.rows == MANY_ROWS
    assert [path.name for path in place.iterdir()] == [record.id]


def test_a_full_disk_is_told_and_with_room_the_rescue_is_whole(site: Site, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4 * 2**20))
    rest = site.directory / "one" / "rescue"
    rest.symlink_to(small_disk)
    fork(site, "INSERT INTO oscar.note VALUES (1, 'a')")
    rescued_report = eventually(
        lambda: (report := site.watchdog_one.health()["rescue"]) and report["state"] == "failed" and report
    )
    assert "MiB are free" in rescued_report["why"]
    assert site.watchdog_one.tell("reinitialize", epoch=2, donor="two", id="seed-1")[0] == 409
    ballast.unlink()
    site.watchdog_one.kill()
    site.watchdog_one.start()

    assert rescued(site)[1].counts.rows == 1


def test_a_binlog_that_no_longer_has_all_of_it_is_called_incomplete(site: Site) -> None:
    """Somebody purged. What is there is kept; the node's data must stay until a person has looked."""
    site.start()
    site.make_primary()
    site.make_acker()
    site.one.run(*MADE)
    before = str(site.one.value("SELECT @@gtid_binlog_pos"))
    site.one.run(
        "INSERT INTO oscar.note VALUES (1, 'gone')", "FLUSH BINARY LOGS", "INSERT INTO oscar.note VALUES (2, 'there')"
    )
    last = site.one.run("SHOW BINARY LOGS")[-1][0]
    site.one.run(f"PURGE BINARY LOGS TO '{last}'")
    replace_primary(site, before)
    folder, record = rescued(site, "incomplete")

    assert "removed the files" in record.why
    assert [one.after for one in rows_of(folder)] == [{"id": 2, "text": "there"}]
    assert "INCOMPLETE" in (folder / "README.txt").read_text()
    status, answer = site.watchdog_one.tell("reinitialize", epoch=2, donor="two", id="seed-1")
    assert (status, "ahead" in str(answer)) == (409, True)


MANY_ROWS = 40_000


def wait_for_draft(place: Path, size: int) -> None:
    """Wait until so many bytes of a rescue are written."""
    eventually(lambda: any(path.stat().st_size >= size for path in place.glob(f".new-*/{LINES}")),
               what="nothing is being rescued")  # fmt: skip


def fork_of_many_rows(site: Site) -> str:
    return fork(site, "CREATE TABLE oscar.many (id INT PRIMARY KEY, text CHAR(40))",
                f"INSERT INTO oscar.many SELECT seq, 'x' FROM seq_1_to_{MANY_ROWS}")  # fmt: skip
