"""`script/bench apply`: how fast a standby applies a recorded load, natively from its primary and from our archive.

Both read the same binlog with the same settings from the same data directory, one after the other in each run and in
changing order. The standby does not wait for its disk (`sync_binlog=0`, `innodb_flush_log_at_trx_commit=2`): what the
two ways cost would be hidden behind it. The archive is there before: the replicator is started on it, and has done all
that follows a start. With the time of the clock goes the processor time of everything that runs, which other work on the
machine disturbs less. About a minute and a half a run.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bench_figures import Goal, Measured
from chaos.bench_recording import DATABASE, TABLES, Recorded, checksums, recorded
from chaos.bench_rig import CLINIC, TORONTO, Database, Rig
from chaos.lab.layout import HOST
from chaos.processor_time import processor_seconds
from cluster import clock
from cluster.errors import OscarHaError

PARALLEL = {"single": 0, "parallel4": 4}
"""`slave_parallel_threads` by the name of its figure."""
NATIVE, OURS = "native", "ours"
APPLY_DEADLINE_MS = 300_000.0
ARCHIVE_DEADLINE_MS = 120_000.0
SETTLE_DEADLINE_MS = 900_000.0
RELAXED = ("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
GOALS = (
    *(Goal(figure=f"apply_ratio_{name}", statistic="median", at_least=1.0) for name in PARALLEL),
    Goal(figure="apply_tables_different", statistic="max", at_most=0, safety=True),
)
UNITS = {
    **{f"apply_ratio_{name}": "ours / native, transactions per second" for name in PARALLEL},
    **{f"apply_{way}_per_s_{name}": "transactions/s" for name in PARALLEL for way in (NATIVE, OURS)},
    **{
        f"apply_cpu_ratio_{name}": "native / ours, processor time of standby, primary and replicator"
        for name in PARALLEL
    },
    **{f"apply_{way}_serve_cpu_s": "s of processor time of primary and replicator" for way in (NATIVE, OURS)},
    "apply_tables_different": "tables",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One time that a standby applied the load."""

    run: int
    way: str
    threads: int
    seconds: float
    standby_cpu_seconds: float
    serve_cpu_seconds: float
    """Of primary and replicator together, whichever serves: the other one rests."""
    transactions: int
    different: list[str]

    @property
    def cpu_seconds(self) -> float:
        return self.standby_cpu_seconds + self.serve_cpu_seconds

    @property
    def per_second(self) -> float:
        return self.transactions / self.seconds


def run(folder: Path, runs: int, say: Callable[[str], None]) -> Measured:
    """Measure."""
    load, measured = recorded(folder.parent / "recording", say), Measured.of(UNITS)
    with Rig(folder / "rig", secrets_of=load.secrets) as rig:
        primary = rig.database(CLINIC, data=load.primary)
        rig.begin_epoch(primary, file=load.what.file, position=load.what.begin)
        rig.replicator(TORONTO)
        rig.wait_durable(TORONTO, load.what.end, deadline_ms=ARCHIVE_DEADLINE_MS)
        _settle(rig)
        for number in range(1, runs + 1):
            for name, threads in PARALLEL.items():
                _compare(rig, primary, load, measured, number, name, threads, say)
    return measured


def _settle(rig: Rig) -> None:
    """Have nothing of the filling of the archive go on beside what is measured, natively or ours."""
    rig.end(f"replicator-{TORONTO}")
    rig.replicator(TORONTO)
    rig.wait_resting(f"replicator-{TORONTO}", deadline_ms=SETTLE_DEADLINE_MS)


def _compare(
    rig: Rig, primary: Database, load: Recorded, measured: Measured, number: int, name: str, threads: int,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure one pair; who goes first changes from run to run."""
    trials: dict[str, Applied] = {}
    for way in (NATIVE, OURS) if number % 2 else (OURS, NATIVE):
        try:
            trial = _apply(rig, primary, load, number, way, threads)
        except OscarHaError as error:
            measured.problems.append(f"run {number}, {name}, {way}: {error}")
            return
        measured.records.append(asdict(trial))
        trials[way] = trial
        measured.values[f"apply_{way}_per_s_{name}"].append(trial.per_second)
        measured.values[f"apply_{way}_serve_cpu_s"].append(trial.serve_cpu_seconds)
        measured.values["apply_tables_different"].append(len(trial.different))
        measured.problems += [f"run {number}, {name}, {way}: {table} differs" for table in trial.different]
    native, ours = trials[NATIVE], trials[OURS]
    ratio, cpu_ratio = ours.per_second / native.per_second, native.cpu_seconds / ours.cpu_seconds
    measured.values[f"apply_ratio_{name}"].append(ratio)
    measured.values[f"apply_cpu_ratio_{name}"].append(cpu_ratio)
    say(f"run {number} {name:<10} native {native.per_second:6.0f}/s {native.cpu_seconds:5.1f} s of processor"
        f"  ours {ours.per_second:6.0f}/s {ours.cpu_seconds:5.1f} s  ratio {ratio:.3f}, of processor time {cpu_ratio:.3f}")  # fmt: skip


def _apply(rig: Rig, primary: Database, load: Recorded, number: int, way: str, threads: int) -> Applied:
    port = primary.port if way == NATIVE else rig.settings.replicator(TORONTO).port
    standby = rig.database(TORONTO, data=load.before)
    warm = [f"SELECT SUM(k), SUM(LENGTH(c)) FROM {DATABASE}.sbtest{table}" for table in range(1, TABLES + 1)]
    standby.run(
        *RELAXED, *warm, f"SET GLOBAL slave_parallel_threads = {threads}",
        f"SET GLOBAL gtid_slave_pos = '{load.what.begin}'", f"CHANGE MASTER TO {rig.source_clause(HOST, port)}",
    )  # fmt: skip
    serving = (primary.pid, rig.pid(f"replicator-{TORONTO}"))
    used, served, began = processor_seconds([standby.pid]), processor_seconds(serving), clock.now()
    standby.run("START SLAVE")
    standby.wait_applied(load.what.end, deadline_ms=APPLY_DEADLINE_MS)
    seconds = clock.ms_between(began, clock.now()) / 1_000
    used, served = processor_seconds([standby.pid]) - used, processor_seconds(serving) - served
    found = checksums(standby)
    rig.end(f"db-{TORONTO}")
    return Applied(
        run=number, way=way, threads=threads, seconds=round(seconds, 3),
        standby_cpu_seconds=round(used, 2), serve_cpu_seconds=round(served, 2), transactions=load.what.transactions,
        different=[table for table, sum_of in load.what.checksums.items() if found.get(table) != sum_of],
    )  # fmt: skip
