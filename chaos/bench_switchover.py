"""`script/bench switchover`: what clinics see of a planned change of the primary while they write 500 times a second.

The gap is the longest pause between two acknowledgements of one clinic; the wait is what one statement or one connection
waited at most for its answer or its error.
"""

from collections.abc import Mapping
from pathlib import Path

from chaos.bench_figures import Goal
from chaos.bench_trials import Act, Say, Trial, TrialBench
from chaos.lab_remote import Fault
from chaos.traffic import Traffic
from cluster import clock
from cluster.errors import OscarHaError

CLINICS = 10
WRITES_PER_SECOND = 500.0
GOALS = (
    Goal(figure="switchover_gap_ms", statistic="median", at_most=200),
    Goal(figure="switchover_gap_ms", statistic="max", at_most=1_000),
    Goal(figure="switchover_wait_ms", statistic="max", at_most=2_000),
    Goal(figure="lost_acknowledged", statistic="max", at_most=0, safety=True),
    Goal(figure="double_writers", statistic="max", at_most=0, safety=True),
)
UNITS = {
    "switchover_gap_ms": "ms", "switchover_wait_ms": "ms", "transactions_per_second": "1/s",
    "lost_acknowledged": "writes", "double_writers": "epochs and late acknowledgements",
}  # fmt: skip


class SwitchoverBench(TrialBench):
    """Planned changes, one after the other on the same lab."""

    clinics = CLINICS
    writes_per_second = WRITES_PER_SECOND / CLINICS

    def __init__(self, folder: Path, say: Say, seed: int, *, profile: str) -> None:
        super().__init__(folder, say, seed, profile=profile, figures=UNITS)

    def acts(self) -> Mapping[str, Act]:
        return {"switchover": self._switch}

    def figures(self, trial: Trial) -> Mapping[str, float | None]:
        return {
            "switchover_gap_ms": trial.ms,
            "switchover_wait_ms": trial.longest_wait_ms,
            "transactions_per_second": trial.per_second,
        }

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
