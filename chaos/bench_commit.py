"""`script/bench commit`: how long a commit takes, with each of three ways to have it elsewhere.

`async`: a native standby, nobody is waited for. `native_synced`: a native semi-sync standby with `sync_relay_log=1`,
so that its acknowledgement means on disk. `ours`: a replicator that acknowledges what is on disk, and the standby behind
it. In all three the primary syncs its own binlog and the same standby applies. Each run measures all ways, the order
changing. About ten seconds a run.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from chaos.bench_figures import Goal, Measured, percentile
from chaos.bench_rig import CLINIC, READY_DEADLINE_MS, TORONTO, Database, Rig
from chaos.lab import process
from chaos.lab.layout import HOST
from chaos.raw_client import RawClient, command, latencies_us
from cluster import clock
from cluster.errors import OscarHaError

ASYNC, NATIVE_SYNCED, OURS = "async", "native_synced", "ours"
WAYS = (ASYNC, NATIVE_SYNCED, OURS)
COMMITS = {1: 2_000, 16: 4_000}
"""How many commits are timed, by the number of clients."""
WARM_UP_COMMITS = 300
TRIAL_DEADLINE_MS = 120_000.0
CLIENT_DEADLINE_SECONDS = 30.0
APPLY_DEADLINE_MS = 60_000.0
INSERT = "INSERT INTO bench.commits (payload) VALUES (REPEAT('x', 100))"
TABLE = "CREATE TABLE bench.commits (id BIGINT AUTO_INCREMENT PRIMARY KEY, payload VARCHAR(200) NOT NULL)"


def _suffix(clients: int) -> str:
    return "" if clients == 1 else f"_{clients}"


GOALS = (
    *(Goal(figure=f"commit_ratio_{NATIVE_SYNCED}{_suffix(clients)}", statistic="median", at_most=0.7) for clients in COMMITS),
    *(Goal(figure=f"commit_ratio_{ASYNC}{_suffix(clients)}", statistic="median", at_most=1.4) for clients in COMMITS),
    Goal(figure="commits_unacknowledged", statistic="max", at_most=0, safety=True),
)  # fmt: skip
UNITS = {
    **{f"commit_ratio_{way}{_suffix(clients)}": f"ours / {way}, median latency, {clients} client(s)"
       for clients in COMMITS for way in (NATIVE_SYNCED, ASYNC)},
    **{f"commit_us_{way}{_suffix(clients)}": "us" for clients in COMMITS for way in WAYS},
    **{f"commit_p99_us_{way}{_suffix(clients)}": "us" for clients in COMMITS for way in WAYS},
    "commits_unacknowledged": "commits",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The commits of one way and one number of clients in one run."""

    run: int
    way: str
    clients: int
    commits: int
    median_us: float
    p99_us: float
    unacknowledged: int
    """Commits that returned although nobody had acknowledged them; none are asked for with `async`."""


def run(folder: Path, runs: int, say: Callable[[str], None], *, tls: bool = False) -> Measured:
    """Measure; with `tls` every replication link of every way uses it, and verifies."""
    measured = Measured.of(UNITS)
    with Rig(folder / "rig", tls=tls) as rig:
        bench = CommitBench(rig)
        for number in range(1, runs + 1):
            shift = number % len(WAYS)
            try:
                trials = [trial for way in WAYS[shift:] + WAYS[:shift] for trial in bench.time(way, number)]
            except OscarHaError as error:
                measured.problems.append(f"run {number}: {error}")
                return measured
            measured.records += [asdict(trial) for trial in trials]
            _note(measured, trials)
            for line in _lines(number, trials):
                say(line)
    return measured


class CommitBench:
    """A primary and a standby that is attached to it in one way after the other."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.primary = rig.database(CLINIC)
        self.primary.run("FLUSH BINARY LOGS")
        rig.begin_epoch(self.primary, file=str(self.primary.run("SHOW MASTER STATUS")[0][0]), position="")
        self.primary.run("CREATE DATABASE bench", TABLE)
        self.standby = rig.database(TORONTO)

    def time(self, way: str, number: int) -> list[Timed]:
        """Attach the standby in a way, and time commits."""
        self.attach(way)
        try:
            return [self._timed(way, number, clients) for clients in COMMITS]
        finally:
            self.detach()

    def attach(self, way: str) -> None:
        """Attach the standby; return when it follows, and when a commit would be acknowledged."""
        port = self.primary.port
        self.primary.run(f"SET GLOBAL rpl_semi_sync_master_enabled = {'OFF' if way == ASYNC else 'ON'}")
        if way == OURS:
            self._rig.name_ackers(TORONTO)
            self._rig.replicator(TORONTO)
            self._rig.wait_acknowledging(TORONTO)
            port = self._rig.settings.replicator(TORONTO).port
        self.standby.run(
            f"SET GLOBAL sync_relay_log = {1 if way == NATIVE_SYNCED else 10_000}",
            f"CHANGE MASTER TO {self._rig.source_clause(HOST, port)}", "START SLAVE",
        )  # fmt: skip
        if way != ASYNC:
            process.wait_until(
                lambda: _no_acker(self.primary), deadline_ms=READY_DEADLINE_MS, what="nobody acknowledges"
            )
        self._wait_applied()

    def detach(self) -> None:
        """Let nobody be attached, and no commit wait."""
        self._wait_applied()
        self.primary.run("SET GLOBAL rpl_semi_sync_master_enabled = OFF")
        self.standby.run("STOP SLAVE")
        self._rig.end(f"replicator-{TORONTO}")
        self._rig.name_ackers()

    def _wait_applied(self) -> None:
        self.standby.wait_applied(self.primary.position(), deadline_ms=APPLY_DEADLINE_MS)

    def _timed(self, way: str, number: int, clients: int) -> Timed:
        asked, deadline = command(INSERT), clock.after(clock.now(), TRIAL_DEADLINE_MS)
        with ExitStack() as stack:
            sessions = [
                RawClient(self.primary.connect(), deadline_seconds=CLIENT_DEADLINE_SECONDS) for _ in range(clients)
            ]
            for session in sessions:
                stack.callback(session.close)
            latencies_us(sessions, asked, WARM_UP_COMMITS, deadline=deadline)
            before = _not_acknowledged(self.primary)
            took = latencies_us(sessions, asked, COMMITS[clients], deadline=deadline)
        return Timed(
            run=number, way=way, clients=clients, commits=len(took), median_us=round(median(took), 1),
            p99_us=round(percentile(took, 99), 1),
            unacknowledged=0 if way == ASYNC else _not_acknowledged(self.primary) - before,
        )  # fmt: skip


def _note(measured: Measured, trials: list[Timed]) -> None:
    for clients in COMMITS:
        by_way = {trial.way: trial for trial in trials if trial.clients == clients}
        for way, trial in by_way.items():
            measured.values[f"commit_us_{way}{_suffix(clients)}"].append(trial.median_us)
            measured.values[f"commit_p99_us_{way}{_suffix(clients)}"].append(trial.p99_us)
            measured.values["commits_unacknowledged"].append(trial.unacknowledged)
        for way in (NATIVE_SYNCED, ASYNC):
            ratio = by_way[OURS].median_us / by_way[way].median_us
            measured.values[f"commit_ratio_{way}{_suffix(clients)}"].append(ratio)


def _lines(number: int, trials: list[Timed]) -> list[str]:
    lines = []
    for clients in COMMITS:
        by_way = {trial.way: trial for trial in trials if trial.clients == clients}
        said = "  ".join(f"{way} {by_way[way].median_us:5.0f} us (p99 {by_way[way].p99_us:5.0f})" for way in WAYS)
        lines.append(f"run {number} {clients:>2} client(s): {said}")
    return lines


def _no_acker(primary: Database) -> str:
    found = primary.run("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'")
    return "" if int(found[0][1]) > 0 else "no semi-sync client is attached"


def _not_acknowledged(primary: Database) -> int:
    return int(primary.run("SHOW STATUS LIKE 'Rpl_semi_sync_master_no_tx'")[0][1])
