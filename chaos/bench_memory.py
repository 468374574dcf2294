"""`script/bench memory`: what a replicator holds in memory while one transaction of 2 GB passes, and while ten read.

The transaction is one INSERT of many rows; the replicator archives it as it comes. Then ten readers take all of it
again at once. Looked at every 50 ms: `VmRSS` of /proc/PID/status. About four minutes a run and 12 GB of disk, all given back.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bench_figures import Goal, Measured
from chaos.bench_rig import CLINIC, TORONTO, Rig
from chaos.drain import Reader, Served
from chaos.processor_time import resident_mb
from cluster.errors import BadInput, OscarHaError
from cluster.settings import read_secrets

TRANSACTION_BYTES = 2_000_000_000
ROW_BYTES = 1_000
ROWS = TRANSACTION_BYTES // ROW_BYTES
READERS = 10
READER_SERVER_ID = 900
LOOK_SECONDS = 0.05
SETTLE_SECONDS = 2.0
DEADLINE_MS = 600_000.0
DISK_BYTES_NEEDED = 14_000_000_000
IDLE, TRANSACTION, READING = "idle", "transaction", "readers"
PHASES = (IDLE, TRANSACTION, READING)
OPTIONS = {"innodb_log_file_size": "1G", "innodb_doublewrite": "OFF"}
"""The primary is only here to write the transaction soon."""
GOALS = (
    Goal(figure="replicator_rss_mb", statistic="max", at_most=150),
    Goal(figure="replicator_rss_growth_mb", statistic="max", at_most=40),
    Goal(figure="memory_bytes_missing", statistic="max", at_most=0, safety=True),
)
UNITS = {
    "replicator_rss_mb": "MB, the most of each phase",
    "replicator_rss_growth_mb": "MB more than idle",
    **{f"replicator_rss_mb_{phase}": "MB, the most" for phase in PHASES},
    "memory_bytes_missing": "bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One run."""

    run: int
    binlog_bytes: int
    most_mb: dict[str, float]
    read_bytes: list[int]


class Watch:
    """Looks at the memory of a process again and again; notes the most of each phase."""

    def __init__(self, pid: int) -> None:
        self.most: dict[str, float] = {}
        self.phase = IDLE
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(DEADLINE_MS / 1_000)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.most[self.phase] = max(self.most.get(self.phase, 0.0), resident_mb(self._pid))


def run(folder: Path, runs: int, say: Callable[[str], None]) -> Measured:
    """Measure."""
    measured = Measured.of(UNITS)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < DISK_BYTES_NEEDED:
        raise BadInput(f"less than {DISK_BYTES_NEEDED // 10**9} GB free in {folder}", hint="make room")
    for number in range(1, runs + 1):
        # A rig for each run: it gives the disk back.
        with Rig(folder / "rig", options=OPTIONS) as rig:
            try:
                trial = _watch(rig, number)
            except OscarHaError as error:
                measured.problems.append(f"run {number}: {error}")
                return measured
        measured.records.append(asdict(trial))
        _note(measured, trial)
        most = "  ".join(f"{phase} {trial.most_mb[phase]:.0f} MB" for phase in PHASES)
        say(f"run {number}: a transaction of {trial.binlog_bytes / 1e9:.2f} GB, {READERS} readers: {most}")
    return measured


def _note(measured: Measured, trial: Watched) -> None:
    most = trial.most_mb
    for phase in PHASES:
        measured.values["replicator_rss_mb"].append(most[phase])
        measured.values[f"replicator_rss_mb_{phase}"].append(most[phase])
    measured.values["replicator_rss_growth_mb"].append(max(most.values()) - most[IDLE])
    missing = sum(max(0, trial.binlog_bytes - count) for count in trial.read_bytes)
    measured.values["memory_bytes_missing"].append(missing)


def _watch(rig: Rig, number: int) -> Watched:
    primary = rig.database(CLINIC)
    primary.run("SET GLOBAL innodb_flush_log_at_trx_commit = 0", "SET GLOBAL sync_binlog = 0", "FLUSH BINARY LOGS")
    file, us = str(primary.run("SHOW MASTER STATUS")[0][0]), rig.settings.replicator(TORONTO)
    rig.begin_epoch(primary, file=file, position="")
    pid = rig.replicator(TORONTO)
    primary.run("CREATE DATABASE bench", "CREATE TABLE bench.big (id INT PRIMARY KEY, payload TEXT NOT NULL)")
    begin = primary.position()
    rig.wait_durable(TORONTO, begin, deadline_ms=DEADLINE_MS)
    served = Served(host=us.host, port=us.port, user=rig.settings.accounts.replication_user,
                    password=read_secrets(rig.settings).replication)  # fmt: skip
    with Watch(pid) as watch:
        threading.Event().wait(SETTLE_SECONDS)
        watch.phase = TRANSACTION
        primary.run("USE bench", f"INSERT INTO big SELECT seq, REPEAT('x', {ROW_BYTES}) FROM seq_1_to_{ROWS}")
        end = primary.position()
        rig.wait_durable(TORONTO, end, deadline_ms=DEADLINE_MS)
        watch.phase = READING
        readers = [Reader(served, begin, server_id=READER_SERVER_ID + one) for one in range(READERS)]
        for reader in readers:
            reader.start()
        read = [reader.join() for reader in readers]
    size = (rig.data_of(CLINIC) / file).stat().st_size
    rounded = {phase: round(most, 1) for phase, most in watch.most.items()}
    return Watched(run=number, binlog_bytes=size, most_mb=rounded, read_bytes=read)
