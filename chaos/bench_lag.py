"""`script/bench lag`: how far a standby is behind at a steady 500 transactions a second.

One client commits on the primary at fixed times. Another session waits on the standby for each of those transactions in
turn with `MASTER_GTID_WAIT`, which the applying thread itself wakes: no trigger, no polling. The lag of a transaction
is from the instant its commit was sent to the instant that session was told: the commit, its acknowledgement and the
telling are in it, so what is said is never too good. Ours is as in production: the replicator of the standby's site
acknowledges. About half a minute a run.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from chaos.bench_commit import ASYNC, INSERT, OURS, CommitBench
from chaos.bench_figures import Goal, Measured, percentile
from chaos.bench_rig import Rig
from chaos.raw_client import RawClient, command
from cluster import clock
from cluster.clock import NANOS_PER_SECOND, Nanos
from cluster.errors import DeadlinePassed, OscarHaError

NATIVE = "native"
WAYS = {OURS: OURS, NATIVE: ASYNC}
"""How the standby is attached, by the word in the figure: natively nobody waits for it, which is its best."""
PER_SECOND, SECONDS = 500, 10
WAIT_SECONDS = 10
"""So long one transaction is waited for on the standby."""
CLIENT_DEADLINE_SECONDS = 30.0
SLOW_PERCENT_MAX = 5.0
"""When the writer was late more often than this, the rate was not what the figure says."""
GOALS = (
    Goal(figure="lag_ms", statistic="median", at_most=5),
    Goal(figure="lag_p99_ms", statistic="median", at_most=50),
    Goal(figure="lag_never_applied", statistic="max", at_most=0, safety=True),
)
UNITS = {"lag_ms": "ms, every transaction of ours", "lag_p99_ms": "ms, 99th percentile of a run", "lag_native_ms": "ms",
         "lag_native_p99_ms": "ms", "lag_never_applied": "transactions", "lag_rate_per_s": "transactions/s"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One stretch of steady commits."""

    run: int
    way: str
    transactions: int
    per_second: float
    median_ms: float
    p99_ms: float
    max_ms: float


def run(folder: Path, runs: int, say: Callable[[str], None]) -> Measured:
    """Measure."""
    measured = Measured.of(UNITS)
    with Rig(folder / "rig") as rig:
        bench = CommitBench(rig)
        for number in range(1, runs + 1):
            for name in WAYS if number % 2 else reversed(WAYS):
                bench.attach(WAYS[name])
                try:
                    lags, per_second = _follow(bench)
                except OscarHaError as error:
                    measured.problems.append(f"run {number}, {name}: {error}")
                    return measured
                bench.detach()
                _note(measured, number, name, lags, per_second, say)
    return measured


def _note(
    measured: Measured, number: int, name: str, lags: list[float], per_second: float, say: Callable[[str], None]
) -> None:  # fmt: skip
    trial = Followed(run=number, way=name, transactions=len(lags), per_second=round(per_second, 1),
                     median_ms=round(median(lags), 2), p99_ms=round(percentile(lags, 99), 2),
                     max_ms=round(max(lags), 2))  # fmt: skip
    measured.records.append(asdict(trial))
    measured.values["lag_rate_per_s"].append(per_second)
    measured.values["lag_never_applied"].append(PER_SECOND * SECONDS - len(lags))
    if name == OURS:
        measured.values["lag_ms"] += lags
        measured.values["lag_p99_ms"].append(trial.p99_ms)
    else:
        measured.values["lag_native_ms"] += lags
        measured.values["lag_native_p99_ms"].append(trial.p99_ms)
    if per_second < PER_SECOND * (1 - SLOW_PERCENT_MAX / 100):
        measured.problems.append(f"run {number}, {name}: only {per_second:.0f} transactions a second could be written")
    say(f"run {number} {name:<7} p50 {trial.median_ms:6.2f} ms  p99 {trial.p99_ms:6.2f} ms  max {trial.max_ms:7.2f} ms"
        f"  at {per_second:.0f}/s")  # fmt: skip


def _follow(bench: CommitBench) -> tuple[list[float], float]:
    """Commit steadily; return the lag of each transaction in ms, and the rate that was reached."""
    count = PER_SECOND * SECONDS
    prefix, _, last = bench.primary.position().rpartition("-")
    sent: list[Nanos] = []
    with (
        closing(RawClient(bench.standby.connect(), deadline_seconds=CLIENT_DEADLINE_SECONDS)) as watching,
        closing(RawClient(bench.primary.connect(), deadline_seconds=CLIENT_DEADLINE_SECONDS)) as writing,
    ):
        failures: list[OscarHaError] = []
        writer = threading.Thread(target=_write, args=(writing, count, sent, failures), daemon=True)
        writer.start()
        told: list[Nanos] = []
        for number in range(1, count + 1):
            asked = clock.now()
            watching.ask(command(f"DO MASTER_GTID_WAIT('{prefix}-{int(last) + number}', {WAIT_SECONDS})"))
            told.append(clock.now())
            if clock.ms_between(asked, told[-1]) >= WAIT_SECONDS * 1_000:
                raise DeadlinePassed(
                    f"transaction {number} was not applied within {WAIT_SECONDS} s", hint=str(failures)
                )
        writer.join(CLIENT_DEADLINE_SECONDS)
    if failures:
        raise failures[0]
    seconds = clock.ms_between(sent[0], sent[-1]) / 1_000
    return [clock.ms_between(begun, seen) for begun, seen in zip(sent, told, strict=True)], (count - 1) / seconds


def _write(client: RawClient, count: int, sent: list[Nanos], failures: list[OscarHaError]) -> None:
    """Commit `count` times at fixed instants; one that comes late does not make the next ones late."""
    asked, begin = command(INSERT), clock.now()
    try:
        for number in range(count):
            due = Nanos(begin + number * NANOS_PER_SECOND // PER_SECOND)
            time.sleep(clock.seconds_left(due))
            sent.append(clock.now())
            client.ask(asked)
    except OscarHaError as error:
        failures.append(error)
