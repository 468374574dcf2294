"""`script/bench failover`: what a clinic's writer sees when the primary crashes, freezes, or is changed as planned.

Each trial has traffic of its own, and ends with the checks over all that this lab ever acknowledged. An old primary
that stays fenced is said so, and the next trial gets a fresh lab.
"""

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos import checks
from chaos.bench_figures import Goal
from chaos.history import Verdict, Write, acknowledged_by, late_acknowledgements, lost, outage_ms, writers_per_epoch
from chaos.lab import build, remove
from chaos.lab.layout import Request
from chaos.lab_remote import Fault, RemoteLab, wait_writing
from chaos.processor_time import processor_seconds
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from cluster.errors import DeadlinePassed, OscarHaError

CLINICS = 2
WARM_UP_SECONDS = 1.5
PHASE_SECONDS = 1.0
"""A fault comes at any moment of the second in which heartbeats and renewals happen."""
SETTLE_SECONDS = 2.0
IDLE_SETTLE_SECONDS, IDLE_SECONDS = 5.0, 30.0
TRIAL_SECONDS_MAX = 240.0
PREPARE_DEADLINE_MS = 30_000.0
READY_DEADLINE_MS = 60_000.0
WRITE_DEADLINE_MS = 60_000.0
PLAN_DEADLINE_MS = 60_000.0
REJOIN_DEADLINE_MS = 45_000.0
CHECK_DEADLINE_MS = 30_000.0
DIRECT_WRITE_TIMEOUT_S = 5
ERRORS_IN_A_ROW_MAX = 3
OURS = ("watchdog-", "replicator-", "controller-")

GOALS = (
    Goal(figure="outage_ms_crash", statistic="median", at_most=1_500),
    Goal(figure="outage_ms_crash", statistic="max", at_most=3_000),
    Goal(figure="outage_ms_frozen", statistic="median", at_most=10_000),
    Goal(figure="switchover_gap_ms", statistic="median", at_most=1_000),
    Goal(figure="lost_acknowledged", statistic="max", at_most=0, safety=True),
    Goal(figure="double_writers", statistic="max", at_most=0, safety=True),
    Goal(figure="idle_cpu_percent", statistic="median", at_most=25),
)
UNITS = {
    "outage_ms_crash": "ms", "outage_ms_frozen": "ms", "switchover_gap_ms": "ms", "lost_acknowledged": "writes",
    "double_writers": "epochs and late acknowledgements", "idle_cpu_percent": "% of one core",
}  # fmt: skip
Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Trial:
    """One fault and what came of it."""

    run: int
    kind: str
    ms: float | None = None
    ms_by_clinic: dict[str, float | None] = field(default_factory=dict)
    old: str = ""
    new: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    rejoined: bool | None = None
    why: str = ""
    lost: int | None = None
    double_writers: int | None = None
    acknowledged: int = 0
    acknowledged_after_thaw: int | None = None
    direct_writes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Measured:
    """All trials, the measurements by figure, and what did not run as it must."""

    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in UNITS})
    trials: list[Trial] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    labs: int = 0

    def records(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.trials]


class FailoverBench:
    """Brings labs up as they are needed, and takes the last one down. Use as a context manager."""

    def __init__(self, folder: Path, say: Say, seed: int) -> None:
        self.measured = Measured()
        self._folder = folder
        self._lab = RemoteLab(folder / "lab")
        self._say = say
        self._random = random.Random(seed)
        self._is_up = False
        self._ever_acknowledged: list[Write] = []
        """Of this lab: also what an earlier trial was promised must outlive a later fault."""

    def __enter__(self) -> "FailoverBench":
        for journal in self._folder.glob("journal-*.jsonl"):
            journal.unlink()
        for logs in self._folder.glob("logs-*"):
            shutil.rmtree(logs, ignore_errors=True)
        remove.down(self._lab.directory, keep=False)
        return self

    def __exit__(self, *_: object) -> None:
        remove.down(self._lab.directory, keep=False)

    def run(self, runs: int) -> Measured:
        """Measure. A trial that goes wrong is a problem in the record, and the next one gets a fresh lab."""
        errors = 0
        self._fresh_lab()
        self._measure_idle()
        for number in range(1, runs + 1):
            for kind, act in (("crash", self._crash), ("frozen", self._freeze), ("switchover", self._switch)):
                trial = Trial(run=number, kind=kind)
                self.measured.trials.append(trial)
                errors = 0 if self._try(trial, act) else errors + 1
                if errors >= ERRORS_IN_A_ROW_MAX:
                    self.measured.problems.append(f"ended after {errors} errors in a row")
                    return self.measured
        return self.measured

    # -- trials ------------------------------------------------------------------------------------------------------

    def _try(self, trial: Trial, act: Callable[[Trial, Traffic], None]) -> bool:
        """Run one trial, judge it and note its figures. Return whether it ran to its end."""
        try:
            if not self._is_up:
                self._fresh_lab()
            self._with_traffic(trial, act)
        except OscarHaError as error:
            trial.problems.append(str(error))
        self._note(trial)
        if trial.problems or trial.rejoined is False:
            keep_logs(self._lab.directory, self._folder / f"logs-{trial.run}-{trial.kind}")
            self._is_up = False
        return not trial.problems

    def _with_traffic(self, trial: Trial, act: Callable[[Trial, Traffic], None]) -> None:
        lab = self._lab.file
        journal = Journal(self._folder / f"journal-{trial.run}-{trial.kind}.jsonl")
        deadline = clock.after(clock.now(), TRIAL_SECONDS_MAX * 1_000)
        traffic = Traffic(lab.clinics, journal, seconds=TRIAL_SECONDS_MAX, seed=trial.run, nodes=lab.nodes)
        try:
            with traffic:
                wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_DEADLINE_MS)
                self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
                _pause(WARM_UP_SECONDS + self._random.random() * PHASE_SECONDS)
                act(trial, traffic)
                traffic.stop()
        finally:
            journal.close()
            self._ever_acknowledged += [write for write in traffic.history if write.acknowledged]
            trial.acknowledged = sum(1 for write in traffic.history if write.acknowledged)
        if clock.now() >= deadline:
            raise DeadlinePassed(f"the trial took more than {TRIAL_SECONDS_MAX:.0f} s")
        self._judge(trial)

    def _crash(self, trial: Trial, traffic: Traffic) -> None:
        fault = self._lab.crash_primary()
        self._await_successor(trial, traffic, fault)
        rejoin = self._lab.come_back(fault.node, deadline_ms=REJOIN_DEADLINE_MS)
        trial.rejoined, trial.why = rejoin.rejoined, rejoin.why

    def _freeze(self, trial: Trial, traffic: Traffic) -> None:
        fault = self._lab.freeze_primary_host()
        try:
            self._await_successor(trial, traffic, fault)
        finally:
            thawed_at = clock.now()
            self._lab.thaw_host(fault.node)
        self._provoke(trial, fault.node)
        _pause(SETTLE_SECONDS)
        self._provoke(trial, fault.node)
        self._await_rejoin(trial, fault.node)
        late = acknowledged_by(traffic.history, self._server_id(fault.node), after=thawed_at)
        trial.acknowledged_after_thaw = len(late)
        if late:
            trial.problems.append(f"{fault.node} acknowledged {len(late)} writes after it was thawed")

    def _switch(self, trial: Trial, traffic: Traffic) -> None:
        node, epoch = self._lab.primary()
        standbys = [one["node"] for one in self._lab.cluster()["nodes"] if one.get("role") == "standby"]
        if not standbys:
            raise OscarHaError("there is no standby to switch to")
        start = clock.now()
        record = self._lab.switchover(self._random.choice(sorted(standbys)))
        fault = Fault(node=node, epoch=epoch, start=start, end=clock.now())
        if record.get("outcome") != "done":
            trial.problems.append(f"the switchover ended as {record.get('outcome')}")
        self._await_successor(trial, traffic, fault)
        self._await_rejoin(trial, node)

    # -- parts of a trial --------------------------------------------------------------------------------------------

    def _await_successor(self, trial: Trial, traffic: Traffic, fault: Fault) -> None:
        wait_writing(traffic, after=fault.end, deadline_ms=WRITE_DEADLINE_MS)
        record = self._lab.wait_plan(fault.epoch, deadline_ms=PLAN_DEADLINE_MS)
        _pause(SETTLE_SECONDS)
        trial.old, trial.new, trial.steps = fault.node, str(record.get("to")), list(record.get("steps", []))
        history, end = traffic.history, clock.now()
        for writer in traffic.writers:
            name = writer.clinic.name
            trial.ms_by_clinic[name] = outage_ms(history, name, start=fault.start, end=end)
        known = [ms for ms in trial.ms_by_clinic.values() if ms is not None]
        if len(known) < len(traffic.writers):
            raise OscarHaError("the length of an outage is not known: a clinic wrote nothing before or after it")
        trial.ms = max(known)

    def _await_rejoin(self, trial: Trial, node: str) -> None:
        rejoin = self._lab.wait_rejoin(node, deadline_ms=REJOIN_DEADLINE_MS)
        trial.rejoined, trial.why = rejoin.rejoined, rejoin.why

    def _provoke(self, trial: Trial, node: str) -> None:
        """Write to the old primary behind HAProxy's back: it must not say OK."""
        lab = self._lab.file
        refused, how = checks.write_is_refused(lab.node(node), lab.clinics[0], read_timeout_s=DIRECT_WRITE_TIMEOUT_S)
        trial.direct_writes.append(how)
        if not refused:
            trial.problems.append(f"{node} took a direct write after it was replaced")

    def _judge(self, trial: Trial) -> None:
        history, lab = self._ever_acknowledged, self._lab.file
        left_out = {trial.old} if trial.rejoined is False else set()
        verdicts = checks.judge(history, lab, deadline_ms=CHECK_DEADLINE_MS, left_out=left_out)
        trial.problems += [f"{claim}: {one.why}" for claim, one in verdicts.items() if one.verdict is Verdict.BROKEN]
        trial.lost = len(lost(history, checks.found_through(lab.clinics[0])))
        doubled = [epoch for epoch, ids in writers_per_epoch(history).items() if epoch is not None and len(ids) > 1]
        trial.double_writers = len(doubled) + len(late_acknowledgements(history))

    def _note(self, trial: Trial) -> None:
        """Put the trial's measurements under their figures and tell a person."""
        figure = {"crash": "outage_ms_crash", "frozen": "outage_ms_frozen", "switchover": "switchover_gap_ms"}[
            trial.kind
        ]
        for name, value in (
            (figure, trial.ms),
            ("lost_acknowledged", trial.lost),
            ("double_writers", trial.double_writers),
        ):
            if value is not None:
                self.measured.values[name].append(value)
        self.measured.problems += [f"run {trial.run}, {trial.kind}: {problem}" for problem in trial.problems]
        took = "not measured" if trial.ms is None else f"{trial.ms:.0f} ms"
        back = {True: "rejoined", False: f"did not rejoin ({trial.why})", None: ""}[trial.rejoined]
        wrong = f"  PROBLEM: {'; '.join(trial.problems)}" if trial.problems else ""
        self._say(
            f"run {trial.run:>2} {trial.kind:<10} {took:>12}  lost {trial.lost}  {trial.old} → {trial.new}  {back}{wrong}"
        )

    # -- labs --------------------------------------------------------------------------------------------------------

    def _fresh_lab(self) -> None:
        remove.down(self._lab.directory, keep=False)
        self._ever_acknowledged = []
        self._say("a fresh lab …")
        build.up(Request(directory=self._lab.directory, clinics=CLINICS), _Silent(), keep=True)
        prepare(self._lab.file.clinics[0], deadline_ms=PREPARE_DEADLINE_MS)
        self._is_up = True
        self.measured.labs += 1

    def _measure_idle(self) -> None:
        """Measure what our own processes use while no clinic writes."""
        self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
        _pause(IDLE_SETTLE_SECONDS)
        pids = [pid for name, pid in self._lab.file.processes.items() if name.startswith(OURS)]
        before, start = processor_seconds(pids), clock.now()
        _pause(IDLE_SECONDS)
        used, elapsed_ms = processor_seconds(pids) - before, clock.ms_between(start, clock.now())
        percent = used / (elapsed_ms / 1_000) * 100
        self.measured.values["idle_cpu_percent"].append(percent)
        self._say(f"idle: {len(pids)} processes of ours use {percent:.1f} % of one core")

    def _server_id(self, node: str) -> int:
        return next(int(one["server_id"]) for one in self._lab.cluster()["nodes"] if one.get("node") == node)


class _Silent:
    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        """Nobody watches."""


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
