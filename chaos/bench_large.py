"""`script/bench large`: one binlog file of more than 4 GiB, from a real primary through a replicator to a real standby.

A transaction larger than `max_binlog_size` makes its file as large as itself, and the file ends after the group of commits
that it is in. So the large one waits for others (`binlog_commit_wait_count`), which stand behind it, where positions no longer
fit into 32 bits: each waits for an acknowledgement there (8 bytes in a semi-synchronous reply). Then the archive loses its
tail, and the replicator goes on behind 4 GiB (a dump command has no room for that: the file is read again from its
beginning); a standby stops between two of the small ones and is served from there. In the end archive and standby are
compared with the primary. About 35 GB of disk and some minutes; all is given back.
"""

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bench_figures import Goal, Measured
from chaos.bench_rig import CLINIC, TORONTO, Database, Rig
from cluster import clock
from cluster.binlog.framing import GIB, MIB
from cluster.errors import BadInput, OscarHaError
from cluster.position import Position

ROW_BYTES = MIB
ROWS = 4_200
"""In one transaction: with a little more than the rows themselves, above 4 GiB."""
COMMITS = 20
"""Behind it in the same file."""
TORN_BYTES = 100
COMMIT_BEGUN_SECONDS = 2.0
WAIT_USEC = 120_000_000
DEADLINE_MS = 900_000.0
DISK_BYTES_NEEDED = 40_000_000_000
U32_MAX = 2**32 - 1
READ_BYTES = 4 * MIB
IN_USE_AT, IN_USE_BYTES = 21, 2
"""Flags of the first event: a server marks a file that it has open, and its stream does not say so."""
OPTIONS = {"innodb_log_file_size": "1G", "innodb_doublewrite": "OFF", "max_allowed_packet": "1G", "sync_binlog": "0"}
GOALS = (
    Goal(figure="large_bytes_different", statistic="max", at_most=0, safety=True),
    Goal(figure="large_rows_different", statistic="max", at_most=0, safety=True),
    Goal(figure="large_acknowledged", statistic="median", at_least=COMMITS, safety=True),
    Goal(figure="large_end_gib", statistic="median", at_least=4, safety=True),
)
UNITS = {
    "large_end_gib": "GiB, where the last of them ends",
    "large_archived_seconds": "s, from the begin of the transaction until it is durable elsewhere",
    "large_acknowledged": "commits behind 4 GiB that were acknowledged",
    "large_resumed_seconds": "s, from the start of a replicator whose archive ends behind 4 GiB until it is whole again",
    "large_applied_seconds": "s, for a standby from nothing",
    "large_bytes_different": "bytes of the archive that are not the primary's",
    "large_rows_different": "tables of the standby that are not the primary's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run."""

    end_bytes: int
    archived_seconds: float
    acknowledged: int
    resumed_seconds: float
    applied_seconds: float
    bytes_different: int
    rows_different: int


def run(folder: Path, runs: int, say: Callable[[str], None]) -> Measured:
    """Drive it, and measure on the way."""
    measured = Measured.of(UNITS)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, runs + 1):
        if shutil.disk_usage(folder).free < DISK_BYTES_NEEDED:
            raise BadInput(f"less than {DISK_BYTES_NEEDED // 10**9} GB free in {folder}", hint="make room")
        with Rig(folder / "rig", options=OPTIONS) as rig:
            try:
                trial = _trial(rig, say)
            except OscarHaError as error:
                measured.problems.append(f"run {number}: {error}")
                return measured
        measured.records.append(asdict(trial))
        _note(measured, trial)
    return measured


def _note(measured: Measured, trial: Trial) -> None:
    values = measured.values
    values["large_end_gib"].append(trial.end_bytes / GIB)
    values["large_archived_seconds"].append(trial.archived_seconds)
    values["large_acknowledged"].append(trial.acknowledged)
    values["large_resumed_seconds"].append(trial.resumed_seconds)
    values["large_applied_seconds"].append(trial.applied_seconds)
    values["large_bytes_different"].append(trial.bytes_different)
    values["large_rows_different"].append(trial.rows_different)


def _trial(rig: Rig, say: Callable[[str], None]) -> Trial:
    primary, file = _begun(rig)
    began = clock.now()
    acknowledged = _one_group(primary)
    rig.wait_durable(TORONTO, primary.position(), deadline_ms=DEADLINE_MS)
    archived = _seconds_since(began)
    written = rig.data_of(CLINIC) / file
    archive = next(rig.layout.archive(TORONTO).glob(f"epochs/*/{file}"))
    say(f"{written.stat().st_size / GIB:.3f} GiB in {file}, {acknowledged} commits behind it: {archived:.1f} s")
    resumed = _torn(rig, primary, archive)
    say(f"an archive that ended behind 4 GiB is whole after {resumed:.1f} s")
    applied, standby = _standby(rig, primary)
    say(f"a standby that stopped behind 4 GiB has everything after {applied:.1f} s")
    primary.run("INSERT INTO bench.small VALUES (1000000, 'after all that')")
    standby.wait_applied(primary.position(), deadline_ms=DEADLINE_MS)
    return Trial(
        end_bytes=written.stat().st_size, archived_seconds=round(archived, 2), acknowledged=acknowledged,
        resumed_seconds=round(resumed, 2), applied_seconds=round(applied, 2), bytes_different=different(written, archive),
        rows_different=sum(_sum(primary, table) != _sum(standby, table) for table in ("big", "small")),
    )  # fmt: skip


def _begun(rig: Rig) -> tuple[Database, str]:
    primary = rig.database(CLINIC)
    primary.run("SET GLOBAL innodb_flush_log_at_trx_commit = 0", "FLUSH BINARY LOGS")
    file = str(primary.run("SHOW MASTER STATUS")[0][0])
    rig.begin_epoch(primary, file=file, position="", ackers=(TORONTO,))
    rig.replicator(TORONTO)
    primary.run("SET GLOBAL rpl_semi_sync_master_timeout = 18446744073709551615",
                "SET GLOBAL rpl_semi_sync_master_enabled = ON")  # fmt: skip
    rig.wait_acknowledging(TORONTO)
    primary.run("CREATE DATABASE bench", "CREATE TABLE bench.big (id INT PRIMARY KEY, payload LONGTEXT NOT NULL)",
                "CREATE TABLE bench.small (id INT PRIMARY KEY, payload TEXT NOT NULL)")  # fmt: skip
    return primary, file


def _one_group(primary: Database) -> int:
    """Commit the large transaction and, in the same group, the small ones behind it; return how many of these returned."""
    with closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("USE bench")
        cursor.execute("BEGIN")
        cursor.execute(
            f"INSERT INTO bench.big SELECT seq, REPEAT(CHAR(65 + seq % 26), {ROW_BYTES}) FROM seq_1_to_{ROWS}"
        )
        primary.run(f"SET GLOBAL binlog_commit_wait_usec = {WAIT_USEC}",
                    f"SET GLOBAL binlog_commit_wait_count = {COMMITS + 1}")  # fmt: skip
        with ThreadPoolExecutor(COMMITS + 1) as pool:
            large = pool.submit(connection.commit)
            threading.Event().wait(COMMIT_BEGUN_SECONDS)  # it is the first of its group
            small = [
                pool.submit(primary.run, f"INSERT INTO bench.small VALUES ({number}, 'behind 4 GiB')")
                for number in range(COMMITS)
            ]
            large.result(DEADLINE_MS / 1_000)
            returned = sum(one.exception(DEADLINE_MS / 1_000) is None for one in small)
    primary.run("SET GLOBAL binlog_commit_wait_count = 0")
    return returned


def _standby(rig: Rig, primary: Database) -> tuple[float, Database]:
    """Start a standby from nothing, stop it behind the large transaction, and let it go on from there."""
    us, standby = rig.settings.replicator(TORONTO), rig.database(TORONTO)
    end = Position.parse(primary.position())
    (last,) = end.last.values()
    between = f"{last.domain}-{last.server}-{last.sequence - COMMITS // 2}"
    standby.run("SET GLOBAL innodb_flush_log_at_trx_commit = 0", "SET GLOBAL gtid_slave_pos = ''",
                f"CHANGE MASTER TO {rig.source_clause(us.host, us.port)}")  # fmt: skip
    began = clock.now()
    standby.run(f"START SLAVE UNTIL master_gtid_pos = '{between}'")
    standby.wait_applied(between, deadline_ms=DEADLINE_MS)
    standby.run("STOP SLAVE")
    if str(standby.value("SELECT @@gtid_slave_pos")) != between:
        raise OscarHaError(f"the standby did not stop at {between}, behind 4 GiB")
    standby.run("START SLAVE")
    standby.wait_applied(str(end), deadline_ms=DEADLINE_MS)
    return _seconds_since(began), standby


def _torn(rig: Rig, primary: Database, archive: Path) -> float:
    """Let the archive lose its tail, as a crash would, back to behind 4 GiB; return how long it takes to have it again."""
    name = f"replicator-{TORONTO}"
    os.kill(rig.pid(name), signal.SIGKILL)
    rig.end(name)
    for path in archive.parent.iterdir():
        if path.name not in (archive.name, "epoch.json"):
            path.unlink()
    os.truncate(archive, archive.stat().st_size - TORN_BYTES)
    if archive.stat().st_size <= U32_MAX:
        raise OscarHaError("the archive does not end behind 4 GiB", hint="raise ROWS")
    began = clock.now()
    rig.replicator(TORONTO)
    rig.wait_durable(TORONTO, primary.position(), deadline_ms=DEADLINE_MS)
    return _seconds_since(began)


def _sum(server: Database, table: str) -> object:
    return server.run(f"CHECKSUM TABLE bench.{table} EXTENDED")[0][1]


def _seconds_since(began: clock.Nanos) -> float:
    return clock.ms_between(began, clock.now()) / 1_000


def different(one: Path, other: Path) -> int:
    """Return 0 when two closed files hold the same bytes but for the mark of use, otherwise the larger size."""
    digests = []
    for path in (one, other):
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(IN_USE_AT))
            file.seek(IN_USE_BYTES, os.SEEK_CUR)
            while data := file.read(READ_BYTES):
                digest.update(data)
        digests.append(digest.digest())
    return 0 if digests[0] == digests[1] else max(one.stat().st_size, other.stat().st_size)
