"""`script/bench failover`: what a clinic's writer sees when the primary crashes or freezes.

The faults: `crash`, kill -9 of the primary's server; `crash-leader`, that and the leading controller in the same moment;
`frozen`, SIGSTOP of all processes of the primary's site, the controller and the replicator there among them; `partition`, that
site cut off from everybody, which needs a lab whose sites are hosts of their own, and root.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from chaos import checks
from chaos.bench_figures import Goal
from chaos.bench_trials import (
    READY_DEADLINE_MS,
    REJOIN_DEADLINE_MS,
    SETTLE_SECONDS,
    Act,
    Measured,
    Say,
    Trial,
    TrialBench,
    pause,
)
from chaos.history import acknowledged_by
from chaos.lab.layout import Wires
from chaos.lab_remote import Fault
from chaos.processor_time import processor_seconds
from chaos.traffic import Traffic
from cluster import clock

IDLE_SETTLE_SECONDS, IDLE_SECONDS = 5.0, 30.0
DIRECT_WRITE_TIMEOUT_S = 5
OURS = ("watchdog-", "replicator-", "controller-")
FIGURES = {"crash": "outage_ms_crash", "crash-leader": "outage_ms_crash_leader", "frozen": "outage_ms_frozen",
           "partition": "outage_ms_partition"}  # fmt: skip
UNITS = {
    **dict.fromkeys(FIGURES.values(), "ms"),
    "lost_acknowledged": "writes",
    "double_writers": "epochs and late acknowledgements",
    "idle_cpu_percent": "% of one core",
}
SILENT_MS_MAX: Mapping[str, tuple[int, int]] = {"default": (6_000, 9_000), "fast": (3_500, 5_000)}
"""Median and worst by the profile of the deadlines."""


def goals(profile: str) -> tuple[Goal, ...]:
    """Return what is wanted of a cluster with these deadlines."""
    silent_median, silent_max = SILENT_MS_MAX[profile]
    return (
        Goal(figure="outage_ms_crash", statistic="median", at_most=600),
        Goal(figure="outage_ms_crash", statistic="max", at_most=1_500),
        Goal(figure="outage_ms_crash_leader", statistic="median", at_most=3_600),
        Goal(figure="outage_ms_crash_leader", statistic="max", at_most=4_500),
        Goal(figure="outage_ms_frozen", statistic="median", at_most=silent_median),
        Goal(figure="outage_ms_frozen", statistic="max", at_most=silent_max),
        Goal(figure="outage_ms_partition", statistic="median", at_most=silent_median),
        Goal(figure="outage_ms_partition", statistic="max", at_most=silent_max),
        Goal(figure="lost_acknowledged", statistic="max", at_most=0, safety=True),
        Goal(figure="double_writers", statistic="max", at_most=0, safety=True),
        Goal(figure="idle_cpu_percent", statistic="median", at_most=25),
    )


class FailoverBench(TrialBench):
    """The faults in turn, again and again on the same lab while it stays whole."""

    def __init__(self, folder: Path, say: Say, seed: int, *, profile: str) -> None:
        super().__init__(folder, say, seed, profile=profile, figures=UNITS)

    def acts(self) -> Mapping[str, Act]:
        return {"crash": self._crash, "crash-leader": self._crash_with_leader, "frozen": self._freeze}

    def figures(self, trial: Trial) -> Mapping[str, float | None]:
        return {FIGURES[trial.kind]: trial.ms}

    def before(self) -> None:
        """Measure what our own processes use while no clinic writes."""
        self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
        pause(IDLE_SETTLE_SECONDS)
        pids = [pid for name, pid in self._lab.file.processes.items() if name.startswith(OURS)]
        before, start = processor_seconds(pids), clock.now()
        pause(IDLE_SECONDS)
        used, elapsed_ms = processor_seconds(pids) - before, clock.ms_between(start, clock.now())
        percent = used / (elapsed_ms / 1_000) * 100
        self.measured.values["idle_cpu_percent"].append(percent)
        self._say(f"idle: {len(pids)} processes of ours use {percent:.1f} % of one core")

    # -- what happens ------------------------------------------------------------------------------------------------

    def _crash(self, trial: Trial, traffic: Traffic) -> None:
        fault = self._lab.crash_primary()
        self._await_successor(trial, traffic, fault)
        self._come_back(trial, fault.node)

    def _crash_with_leader(self, trial: Trial, traffic: Traffic) -> None:
        leader = self._lab.leader()
        fault = self._lab.crash_primary(leader)
        self._await_successor(trial, traffic, fault)
        self._lab.start(leader)
        self._come_back(trial, fault.node)

    def _freeze(self, trial: Trial, traffic: Traffic) -> None:
        fault = self._lab.freeze_primary_site()
        self._silent(trial, traffic, fault, lambda: self._lab.thaw_site(fault.node))

    def _silent(self, trial: Trial, traffic: Traffic, fault: Fault, bring_back: Callable[[], None]) -> None:
        """Await the successor of a primary that is not dead, bring the old one back, and have it acknowledge nothing."""
        try:
            self._await_successor(trial, traffic, fault)
        finally:
            back_at = clock.now()
            bring_back()
        self._provoke(trial, fault.node)
        pause(SETTLE_SECONDS)
        self._provoke(trial, fault.node)
        self._await_rejoin(trial, fault.node)
        late = acknowledged_by(traffic.history, self._server_id(fault.node), after=back_at)
        trial.acknowledged_after_return = len(late)
        if late:
            trial.problems.append(f"{fault.node} acknowledged {len(late)} writes after it was back")

    def _come_back(self, trial: Trial, node: str) -> None:
        rejoin = self._lab.come_back(node, deadline_ms=REJOIN_DEADLINE_MS)
        trial.rejoined, trial.why = rejoin.rejoined, rejoin.why

    def _provoke(self, trial: Trial, node: str) -> None:
        """Write to the old primary behind HAProxy's back: it must not say OK."""
        lab = self._lab.file
        refused, how = checks.write_is_refused(lab.node(node), lab.clinics[0], read_timeout_s=DIRECT_WRITE_TIMEOUT_S)
        trial.direct_writes.append(how)
        if not refused:
            trial.problems.append(f"{node} took a direct write after it was replaced")

    def _server_id(self, node: str) -> int:
        return next(int(one["server_id"]) for one in self._lab.cluster()["nodes"] if one.get("node") == node)


class PartitionBench(FailoverBench):
    """The site of the primary alone in the world, on a lab whose sites are hosts of their own."""

    wires, zookeepers = Wires.NAMESPACES, 3

    def acts(self) -> Mapping[str, Act]:
        return {"partition": self._cut_off}

    def before(self) -> None:
        """What our processes use at rest is measured on the lab without ways between its sites."""

    def _cut_off(self, trial: Trial, traffic: Traffic) -> None:
        fault = self._lab.cut_off_primary()
        self._silent(trial, traffic, fault, self._lab.heal)


def benches(folder: Path, *, root: bool) -> dict[Path, type[FailoverBench]]:
    """Return what measures the outages, by its folder: a site can be cut off only where network namespaces may be made."""
    return {folder: FailoverBench, folder.with_name("partition"): PartitionBench} if root else {folder: FailoverBench}


def measure(folder: Path, say: Say, seed: int, *, profile: str, runs: int, root: bool) -> Measured:
    """Measure every outage `runs` times, each kind of network on a lab of its own."""
    found = Measured({name: [] for name in UNITS})
    for own, kind in benches(folder, root=root).items():
        own.mkdir(parents=True, exist_ok=True)
        with kind(own, say, seed, profile=profile) as bench:
            found.add(bench.run(runs))
    if not root:
        say("a site cut off from everybody is not measured: that needs root, for network namespaces")
    return found
