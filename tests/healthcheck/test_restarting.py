"""A crashed server that cannot cut its own tail (decision 0010, the third line) comes up ahead, and nothing of it is lost."""

import json
import shutil
import subprocess
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pymysql
import pytest

from cluster import settings
from cluster.dialect import dialect_of
from healthcheck.crash import crashed
from tests.conftest import require
from tests.healthcheck.site import Site, eventually

pytestmark = pytest.mark.servers


def test_a_server_that_refuses_to_cut_its_tail_is_started_with_it_and_rescued(site: Site) -> None:
    """A waiting commit, and a MyISAM row behind it: no start of the server itself gets past that, however often."""
    require("" if shutil.which("mariadbd") else "mariadbd (package mariadb-server)")
    site.start()
    site.make_primary()
    site.make_acker()
    before = str(site.one.value("SELECT @@gtid_binlog_pos"))
    site.watchdog_one.kill()  # its heartbeat would take the place behind the waiting commit, and let nothing else in
    site.silence_acker()
    writers = [threading.Thread(target=_write, args=(site, table)) for table in ("chart", "log")]
    for writer, table in zip(writers, ("chart", "log"), strict=True):
        writer.start()
        eventually(partial(_is_in_the_binlog, site, table), what=f"{table} is never written")
    assert not crashed(site.one.datadir / "nothing")
    site.one.kill()
    for writer in writers:
        writer.join()
    site.record_epoch(2, "two", {"server_id": 2, "file": "binlog.000002", "position": before})
    site.watchdog_one.start()
    report = site.watchdog_one.wait_for(database="down", crashed=True, epoch=2)
    assert _refuses(site), "the server gets past its tail by itself: nothing is tested here"

    assert site.watchdog_one.tell("restart", epoch=1, id="old")[0] == 409
    begun = site.watchdog_one.done("restart", epoch=2, id="attempt-1")
    assert begun == {"id": "attempt-1", "runs": True, "why": ""}, report
    up = site.watchdog_one.wait_for(database="up", role="fenced", restart={"id": "attempt-1", "runs": False, "why": ""})
    assert up["crashed"] is False
    assert "ahead" in up["why"]
    rescue = eventually(lambda: (one := site.watchdog_one.health()["rescue"]) and one["state"] == "complete" and one,
                        seconds=90, what="never rescued")  # fmt: skip
    lines = [json.loads(line) for line in (Path(rescue["path"]) / "transactions.jsonl").read_text().splitlines()]
    assert {"oscar.chart", "oscar.log"} <= {line["table"] for line in lines}


def test_a_server_that_was_stopped_in_order_is_not_started(site: Site) -> None:
    site.start()
    site.watchdog_one.wait_for(database="up")
    assert crashed(site.one.datadir), "it runs: its binlog is in use"
    site.one.run("SHUTDOWN")
    site.watchdog_one.wait_for(database="down", crashed=False)
    eventually(lambda: not crashed(site.one.datadir), what="it is in use still")

    status, answer = site.watchdog_one.tell("restart", epoch=1, id="attempt-1")
    assert status != 200
    assert "stopped in order" in answer["error"]["message"]


def test_a_row_that_is_there_already_is_told_as_what_no_waiting_mends(site: Site) -> None:
    """As a kill leaves it in MyISAM (decision 0061). A source that is away is not that."""
    site.start(standby=True)
    site.make_primary()
    site.make_standby()
    site.make_acker()
    site.two.run("SET SESSION sql_log_bin = 0", "INSERT INTO oscar.log VALUES (7)")
    site.one.run("INSERT INTO oscar.log VALUES (7)")
    secrets = settings.read_secrets(site.settings)

    def stuck() -> str:
        node = site.settings.node("two")
        with dialect_of(site.settings).connect(node, site.settings, secrets, deadline_ms=10_000) as session:
            replication = session.replication()
            return replication.stuck if replication is not None else ""

    assert "Duplicate entry" in eventually(stuck, what="it is never stuck")


def _write(site: Site, table: str) -> None:
    with suppress(pymysql.Error), site.one.client() as client, client.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (1)")


def _is_in_the_binlog(site: Site, table: str) -> bool:
    """Return whether the newest file holds rows of a table: its name stands before them."""
    newest = site.one.datadir / (site.one.datadir / "binlog.index").read_text().split()[-1]
    return f"oscar\0{chr(len(table))}{table}\0".encode() in newest.read_bytes()


def _refuses(site: Site) -> bool:
    """Return whether the server's own start ends, as the node's start_command would."""
    command = site.settings.node("one").start_command[2:]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
    return done.returncode != 0 and "Cannot truncate the binary log" in (site.one.directory / "started.log").read_text()
