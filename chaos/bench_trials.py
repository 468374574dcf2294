"""Trials on a running lab: clinics write, one thing happens, and everything that was ever acknowledged is judged.

Each trial has traffic of its own, and ends with the checks over all that this lab ever acknowledged. An old primary
that stays fenced is said so, and the next trial gets a fresh lab.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from chaos import checks
from chaos.history import Verdict, Write, late_acknowledgements, lost, outage_ms, writers_per_epoch
from chaos.lab import build, remove
from chaos.lab.layout import Request, Wires
from chaos.lab_remote import Fault, RemoteLab, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from cluster.errors import DeadlinePassed, OscarHaError

WARM_UP_SECONDS = 1.5
PHASE_SECONDS = 1.0
"""A fault comes at any moment of the second in which heartbeats and renewals happen."""
SETTLE_SECONDS = 2.0
TRIAL_SECONDS_MAX = 240.0
PREPARE_DEADLINE_MS = 30_000.0
READY_DEADLINE_MS = 60_000.0
WRITE_DEADLINE_MS = 60_000.0
PLAN_DEADLINE_MS = 60_000.0
REJOIN_DEADLINE_MS = 90_000.0
CHECK_DEADLINE_MS = 30_000.0
ERRORS_IN_A_ROW_MAX = 3
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
    longest_wait_ms: float | None = None
    """What one statement or connection of a clinic waited for its answer or its error, at most."""
    per_second: float | None = None
    """Acknowledged writes a second, outage included."""
    rejoined: bool | None = None
    why: str = ""
    lost: int | None = None
    double_writers: int | None = None
    acknowledged: int = 0
    acknowledged_after_return: int | None = None
    direct_writes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Measured:
    """All trials, the measurements by figure, and what did not run as it must."""

    values: dict[str, list[float]]
    trials: list[Trial] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    labs: int = 0

    def add(self, more: "Measured") -> None:
        """Take over what another bench has measured for the same figures."""
        for name, values in more.values.items():
            self.values[name] += values
        self.trials += more.trials
        self.problems += more.problems
        self.labs += more.labs

    def records(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.trials]


Act = Callable[[Trial, Traffic], None]


class TrialBench:
    """Brings labs up as they are needed, and takes the last one down. Use as a context manager.

    Whoever derives from it says what may happen (`acts`) and in which figures that is told (`figures`).
    """

    clinics = 2
    writes_per_second = 40.0
    """Of each clinic."""
    wires, zookeepers = Wires.LOOPBACK, 1

    def __init__(self, folder: Path, say: Say, seed: int, *, profile: str, figures: Iterable[str]) -> None:
        self.measured = Measured({name: [] for name in figures})
        self._folder = folder
        self._lab = RemoteLab(folder / "lab")
        self._say = say
        self._random = random.Random(seed)
        self._profile = profile
        self._is_up = False
        self._ever_acknowledged: list[Write] = []
        """Of this lab: also what an earlier trial was promised must outlive a later fault."""

    def acts(self) -> Mapping[str, Act]:
        """Return what happens in a run, by the name of its kind."""
        raise NotImplementedError

    def figures(self, trial: Trial) -> Mapping[str, float | None]:
        """Return what a trial measured beyond lost writes and double writers."""
        raise NotImplementedError

    def before(self) -> None:
        """Measure what is measured once, on the first lab."""

    def __enter__(self) -> Self:
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
        self.before()
        for number in range(1, runs + 1):
            for kind, act in self.acts().items():
                trial = Trial(run=number, kind=kind)
                self.measured.trials.append(trial)
                errors = 0 if self._try(trial, act) else errors + 1
                if errors >= ERRORS_IN_A_ROW_MAX:
                    self.measured.problems.append(f"ended after {errors} errors in a row")
                    return self.measured
        return self.measured

    # -- parts of a trial --------------------------------------------------------------------------------------------

    def _try(self, trial: Trial, act: Act) -> bool:
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

    def _with_traffic(self, trial: Trial, act: Act) -> None:
        lab = self._lab.file
        journal = Journal(self._folder / f"journal-{trial.run}-{trial.kind}.jsonl")
        started = clock.now()
        deadline = clock.after(started, TRIAL_SECONDS_MAX * 1_000)
        traffic = Traffic(lab.clinics, journal, seconds=TRIAL_SECONDS_MAX, seed=trial.run, nodes=lab.nodes,
                          writes_per_second=self.writes_per_second)  # fmt: skip
        try:
            with traffic:
                wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_DEADLINE_MS)
                self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
                pause(WARM_UP_SECONDS + self._random.random() * PHASE_SECONDS)
                act(trial, traffic)
                traffic.stop()
        finally:
            journal.close()
            promised = [write for write in traffic.history if write.acknowledged]
            self._ever_acknowledged += promised
            trial.acknowledged = len(promised)
            trial.per_second = round(len(promised) * 1_000 / clock.ms_between(started, clock.now()), 1)
        if clock.now() >= deadline:
            raise DeadlinePassed(f"the trial took more than {TRIAL_SECONDS_MAX:.0f} s")
        self._judge(trial)

    def _await_successor(self, trial: Trial, traffic: Traffic, fault: Fault) -> None:
        wait_writing(traffic, after=fault.end, deadline_ms=WRITE_DEADLINE_MS)
        record = self._lab.wait_plan(fault.epoch, deadline_ms=PLAN_DEADLINE_MS)
        pause(SETTLE_SECONDS)
        trial.old, trial.new, trial.steps = fault.node, str(record.get("to")), list(record.get("steps", []))
        history, end = traffic.history, clock.now()
        for writer in traffic.writers:
            name = writer.clinic.name
            trial.ms_by_clinic[name] = outage_ms(history, name, start=fault.start, end=end)
        known = [ms for ms in trial.ms_by_clinic.values() if ms is not None]
        if len(known) < len(traffic.writers):
            raise OscarHaError("the length of an outage is not known: a clinic wrote nothing before or after it")
        trial.ms = max(known)
        trial.longest_wait_ms = max(writer.longest_wait_ms for writer in traffic.writers)

    def _await_rejoin(self, trial: Trial, node: str) -> None:
        rejoin = self._lab.wait_rejoin(node, deadline_ms=REJOIN_DEADLINE_MS)
        trial.rejoined, trial.why = rejoin.rejoined, rejoin.why

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
        told = {**self.figures(trial), "lost_acknowledged": trial.lost, "double_writers": trial.double_writers}
        for name, value in told.items():
            if value is not None:
                self.measured.values[name].append(value)
        self.measured.problems += [f"run {trial.run}, {trial.kind}: {problem}" for problem in trial.problems]
        took = "not measured" if trial.ms is None else f"{trial.ms:.0f} ms"
        back = {True: "rejoined", False: f"did not rejoin ({trial.why})", None: ""}[trial.rejoined]
        wrong = f"  PROBLEM: {'; '.join(trial.problems)}" if trial.problems else ""
        self._say(
            f"run {trial.run:>2} {trial.kind:<12} {took:>12}  lost {trial.lost}  {trial.old} → {trial.new}  {back}{wrong}"
        )

    # -- labs --------------------------------------------------------------------------------------------------------

    def _fresh_lab(self) -> None:
        remove.down(self._lab.directory, keep=False)
        self._ever_acknowledged = []
        self._say("a fresh lab …")
        request = Request(directory=self._lab.directory, clinics=self.clinics, profile=self._profile,
                          wires=self.wires, zookeepers=self.zookeepers, owner=os.getpid())  # fmt: skip
        build.up(request, _Silent(), keep=True)
        prepare(self._lab.file.clinics[0], deadline_ms=PREPARE_DEADLINE_MS)
        self._is_up = True
        self.measured.labs += 1


class _Silent:
    def working(self, what: str) -> None:
        """Nobody watches."""

    def done(self, what: str, detail: str = "") -> None:
        """Nobody watches."""


def pause(seconds: float) -> None:
    """Let the cluster be."""
    threading.Event().wait(seconds)
