"""`script/bench catchup`: how fast a replicator takes in and gives out the binlog of a recorded load.

`pull`: an empty archive is filled from the primary, synced to disk as always. `level`: an empty archive is filled from
another replicator. `serve`: a reader that throws everything away reads the whole archive. A replicator's work is done
by one core at a time, so MB per second of the clock are MB per second and core; the processor time it used is stated
for each MB. About ten seconds a run, after the recording.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.bench_figures import Goal, Measured
from chaos.bench_recording import BINLOG, Recorded, recorded
from chaos.bench_rig import CLINIC, MONTREAL, TORONTO, Database, Rig
from chaos.drain import Reader, Served
from chaos.processor_time import processor_seconds
from cluster import clock
from cluster.errors import OscarHaError
from cluster.position import Position
from cluster.settings import read_secrets
from replicator.archive import Archive
from replicator.intake import fetch
from replicator.metrics import Metrics
from replicator.source import Target

PULL, LEVEL, SERVE = "pull", "level", "serve"
DEADLINE_MS = 120_000
READER_SERVER_ID = 900
GOALS = (
    Goal(figure="catchup_mb_per_s", statistic="median", at_least=100),
    Goal(figure="catchup_pull_mb_per_s", statistic="median", at_least=100),
    Goal(figure="catchup_level_mb_per_s", statistic="median", at_least=100),
    Goal(figure="catchup_bytes_missing", statistic="max", at_most=0, safety=True),
)
FIGURES = {SERVE: "catchup", PULL: "catchup_pull", LEVEL: "catchup_level"}
UNITS = {
    **{f"{name}_mb_per_s": "MB of binlog/s" for name in FIGURES.values()},
    **{f"{name}_cpu_ms_per_mb": "ms of the replicator's processor time for each MB" for name in FIGURES.values()},
    "catchup_bytes_missing": "bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One time that the whole load went through a replicator."""

    what: str
    megabytes: float
    seconds: float
    cpu_seconds: float
    missing_bytes: int


def run(folder: Path, runs: int, say: Callable[[str], None]) -> Measured:
    """Measure."""
    load, measured = recorded(folder.parent / "recording", say), Measured.of(UNITS)
    with Rig(folder / "rig", secrets_of=load.secrets) as rig:
        primary = rig.database(CLINIC, data=load.primary)
        for number in range(1, runs + 1):
            try:
                pid = rig.replicator(TORONTO)
                for trial in (_pull(rig, primary, load, pid), _serve(rig, load, pid), _level(rig, load)):
                    _note(measured, number, trial, say)
            except OscarHaError as error:
                measured.problems.append(f"run {number}: {error}")
                break
            rig.end(f"replicator-{TORONTO}")
            rig.forget_archive(TORONTO)
            rig.forget_epochs()
    return measured


def _note(measured: Measured, number: int, trial: Moved, say: Callable[[str], None]) -> None:
    measured.records.append({"run": number, **asdict(trial)})
    name = FIGURES[trial.what]
    speed, cost = trial.megabytes / trial.seconds, trial.cpu_seconds * 1_000 / trial.megabytes
    measured.values[f"{name}_mb_per_s"].append(speed)
    measured.values[f"{name}_cpu_ms_per_mb"].append(cost)
    measured.values["catchup_bytes_missing"].append(trial.missing_bytes)
    say(f"run {number} {trial.what:<6} {speed:6.0f} MB/s  {cost:5.2f} ms of processor for each MB")


def _pull(rig: Rig, primary: Database, load: Recorded, pid: int) -> Moved:
    """Time from the word who is primary, which the replicator has waited for, to the last byte on its disk."""
    used, began = processor_seconds([pid]), clock.now()
    rig.begin_epoch(primary, file=load.what.file, position=load.what.begin)
    rig.wait_durable(TORONTO, load.what.end, deadline_ms=DEADLINE_MS)
    seconds, used = clock.ms_between(began, clock.now()) / 1_000, processor_seconds([pid]) - used
    folder = next((rig.layout.archive(TORONTO) / "epochs").iterdir())
    return _moved(PULL, load, seconds, used, _binlog_bytes(folder))


def _serve(rig: Rig, load: Recorded, pid: int) -> Moved:
    us = rig.settings.replicator(TORONTO)
    served = Served(host=us.host, port=us.port, user=rig.settings.accounts.replication_user,
                    password=read_secrets(rig.settings).replication)  # fmt: skip
    reader = Reader(served, load.what.begin, server_id=READER_SERVER_ID)
    used, began = processor_seconds([pid]), clock.now()
    reader.start()
    received = reader.join()
    seconds = clock.ms_between(began, clock.now()) / 1_000
    # Each event comes with five bytes more than it has, so this finds only what is really missing.
    return _moved(SERVE, load, seconds, processor_seconds([pid]) - used, received)


def _level(rig: Rig, load: Recorded) -> Moved:
    """Fetch into an empty archive as a replicator that levels itself does, here in this process."""
    us, accounts = rig.settings.replicator(TORONTO), rig.settings.accounts
    target = Target(host=us.host, port=us.port, user=accounts.replication_user,
                    password=read_secrets(rig.settings).replication, our_server_id=READER_SERVER_ID)  # fmt: skip
    folder = rig.layout.archive(MONTREAL)
    archive = Archive.open(folder)
    try:
        one = archive.begin(rig.lineage[-1])
        deadline = clock.after(clock.now(), DEADLINE_MS)
        used, began = processor_seconds([os.getpid()]), clock.now()
        end = Position.parse(load.what.end)
        fetch(one, target, rig.settings.timing, Metrics(MONTREAL), enough=lambda: one.position.covers(end),
              deadline=deadline, stop=threading.Event())  # fmt: skip
        seconds, used = clock.ms_between(began, clock.now()) / 1_000, processor_seconds([os.getpid()]) - used
        return _moved(LEVEL, load, seconds, used, _binlog_bytes(one.directory))
    finally:
        archive.close()
        rig.forget_archive(MONTREAL)


def _moved(what: str, load: Recorded, seconds: float, used: float, arrived_bytes: int) -> Moved:
    return Moved(what=what, megabytes=load.megabytes, seconds=round(seconds, 3), cpu_seconds=round(used, 3),
                 missing_bytes=max(0, load.what.binlog_bytes - arrived_bytes))  # fmt: skip


def _binlog_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(BINLOG))
