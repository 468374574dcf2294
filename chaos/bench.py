"""`script/bench NAME`: measures, says what was measured against which goal, and writes it as JSON.

The benches of the replicator (apply, commit, catchup, lag, memory) compare ours with the database's own in one run;
`acks` compares the acknowledgement policies over links of some length; `large` drives a binlog file of more than 4 GiB.
The exit code is 0 only if everything ran and the safety goals hold; `--strict` makes the goals of speed count too.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos import (
    bench_acks,
    bench_apply,
    bench_catchup,
    bench_commit,
    bench_failover,
    bench_figures,
    bench_lag,
    bench_large,
    bench_memory,
    bench_scale,
    bench_switchover,
    script,
)
from chaos.bench_figures import Goal, Measured
from chaos.run_folder import alone
from cluster import clock
from cluster.errors import BadInput

FOLDER = Path("build/bench")
RUNS_MAX = 200
COMMAND_DEADLINE_SECONDS = 10
PLAIN_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Result:
    """What a bench hands over: measurements by figure with their units, its goals, its records, its problems."""

    values: Mapping[str, list[float]]
    units: Mapping[str, str]
    goals: tuple[Goal, ...]
    records: list[dict[str, Any]]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Bench:
    """Something that can be measured; `runs` is how often when nobody says so."""

    runs: int
    run: Callable[[int, int, Callable[[str], None]], Result]
    profiles: Mapping[str, Callable[[int, int, Callable[[str], None]], Result]] = field(default_factory=dict)
    """How it runs with other deadlines than the default ones, for those that can."""


def failover(profile: str) -> Callable[[int, int, Callable[[str], None]], Result]:
    """Return what measures outages."""

    def measure(runs: int, seed: int, say: Callable[[str], None]) -> Result:
        folder = (FOLDER / "failover").absolute()
        with alone(folder, "bench"):
            found = bench_failover.measure(folder, say, seed, profile=profile, runs=runs, root=os.geteuid() == 0)
        return Result(
            found.values, bench_failover.UNITS, bench_failover.goals(profile), found.records(), found.problems
        )

    return measure


def switchover(profile: str) -> Callable[[int, int, Callable[[str], None]], Result]:
    """Return what measures planned changes."""

    def measure(runs: int, seed: int, say: Callable[[str], None]) -> Result:
        folder = (FOLDER / "switchover").absolute()
        with alone(folder, "bench"), bench_switchover.SwitchoverBench(folder, say, seed, profile=profile) as bench:
            found = bench.run(runs)
        return Result(found.values, bench_switchover.UNITS, bench_switchover.GOALS, found.records(), found.problems)

    return measure


def replication(
    name: str, run: Callable[[Path, int, Callable[[str], None]], Measured], units: Mapping[str, str],
    goals: tuple[Goal, ...], *, runs: int,
) -> Bench:  # fmt: skip
    """Return the bench of a module that measures the replicator."""

    def measure(runs: int, _: int, say: Callable[[str], None]) -> Result:
        folder = FOLDER.absolute()
        # One at a time of all of them: two would measure each other.
        with alone(folder, "replicator-bench"):
            measured = run(folder / name, runs, say)
        return Result(measured.values, units, goals, measured.records, measured.problems)

    return Bench(runs, measure)


def scale(clusters: int) -> Bench:
    """Return the bench of many clusters on one controller."""
    run = partial(bench_scale.run, clusters=clusters)
    return replication(SCALE, run, bench_scale.UNITS, bench_scale.GOALS, runs=100)


SCALE = "scale"
BENCHES: Mapping[str, Bench] = {
    "failover": Bench(10, failover("default"), {"fast": failover("fast")}),
    "switchover": Bench(20, switchover("default"), {"fast": switchover("fast")}),
    "acks": replication("acks", bench_acks.run, bench_acks.UNITS, bench_acks.GOALS, runs=5),
    "apply": replication("apply", bench_apply.run, bench_apply.UNITS, bench_apply.GOALS, runs=5),
    "commit": replication("commit", bench_commit.run, bench_commit.UNITS, bench_commit.GOALS, runs=5),
    "commit-tls": replication(
        "commit-tls", partial(bench_commit.run, tls=True), bench_commit.UNITS, bench_commit.GOALS, runs=5
    ),
    "catchup": replication("catchup", bench_catchup.run, bench_catchup.UNITS, bench_catchup.GOALS, runs=5),
    "lag": replication("lag", bench_lag.run, bench_lag.UNITS, bench_lag.GOALS, runs=5),
    "large": replication("large", bench_large.run, bench_large.UNITS, bench_large.GOALS, runs=1),
    "memory": replication("memory", bench_memory.run, bench_memory.UNITS, bench_memory.GOALS, runs=1),
    SCALE: scale(bench_scale.CLUSTERS),
}
DEFAULT_RUNS = ", ".join(f"{name} {one.runs}" for name, one in BENCHES.items())


def bench(
    name: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(BENCHES)}.")],
    runs: Annotated[int | None, typer.Option(help=f"How often, 1 to {RUNS_MAX}; {DEFAULT_RUNS}.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the moments of the faults.")] = 1,
    profile: Annotated[
        str, typer.Option(help="The deadlines of the lab: default or fast (failover, switchover).")
    ] = "default",
    strict: Annotated[bool, typer.Option("--strict", help="Goals of speed count for the exit code too.")] = False,
    clusters: Annotated[
        int, typer.Option(help="Of scale: how many clusters.", min=10, max=bench_scale.CLUSTERS_MAX)
    ] = bench_scale.CLUSTERS,
) -> None:
    """Measure one thing and compare it with its goals."""
    if name not in BENCHES:
        raise BadInput(f"there is no bench {name!r}", hint=f"one of: {', '.join(BENCHES)}")
    chosen = BENCHES[name]
    if name == SCALE:
        chosen = scale(clusters)
    run = {"default": chosen.run, **chosen.profiles}.get(profile)
    if run is None:
        raise BadInput(
            f"bench {name} has no profile {profile!r}", hint=f"one of: default, {', '.join(chosen.profiles)}"
        )
    runs = chosen.runs if runs is None else runs
    if not 1 <= runs <= RUNS_MAX:
        raise BadInput(f"--runs {runs}", hint=f"choose from 1 to {RUNS_MAX}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    started = clock.now()
    result = run(runs, seed, lambda line: console.print(escape(line), soft_wrap=True))
    told = document(name, runs, result, clock.ms_between(started, clock.now()) / 1_000, profile)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    console.print(figure_table(told))
    for problem in result.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)
    if not passed(told, result, strict=strict):
        raise typer.Exit(1)


def document(name: str, runs: int, result: Result, seconds: float, profile: str = "default") -> dict[str, Any]:
    """Return the bench file."""
    figures = {figure: bench_figures.figure(values, result.units[figure]) for figure, values in result.values.items()}
    return {
        "name": name,
        "commit": commit(),
        "machine": machine(),
        "runs": runs,
        "profile": profile,
        "figures": figures,
        "goals": bench_figures.judge(result.goals, figures),
        "problems": result.problems,
        "seconds": round(seconds, 1),
        "records": result.records,
    }


def passed(told: Mapping[str, Any], result: Result, *, strict: bool) -> bool:
    """Return whether everything ran and the goals that count were met."""
    count = [goal for goal in result.goals if strict or goal.safety]
    return not result.problems and all(told["goals"][goal.name]["met"] for goal in count)


def figure_table(told: Mapping[str, Any]) -> Table:
    """Return the figures and their goals for a person."""
    table = Table(box=SIMPLE_HEAD, title=f"bench {told['name']}, {told['runs']} runs", title_justify="left")
    for heading in ("figure", "median", "min", "max", "p99", "n", "unit", "goals"):
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("figure", "unit", "goals") else "right"
        )
    for name, figure in told["figures"].items():
        numbers = ["-" if figure[key] is None else f"{figure[key]:g}" for key in ("median", "min", "max", "p99", "n")]
        goals = [_goal(goal, bounds) for goal, bounds in told["goals"].items() if goal in (name, f"{name}_max")]
        table.add_row(name, *numbers, figure["unit"], ", ".join(goals))
    return table


def commit() -> str:
    """Return the commit that is measured, marked when files differ from it; empty outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=COMMAND_DEADLINE_SECONDS, check=False,
        )  # fmt: skip
    except OSError:
        return ""
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _goal(name: str, bounds: Mapping[str, Any]) -> str:
    what = "max " if name.endswith("_max") else ""
    bound = f"≤ {bounds['at_most']:g}" if "at_most" in bounds else f"≥ {bounds['at_least']:g}"
    return f"{what}{bound} {'[green]met[/]' if bounds['met'] else '[bold red]missed[/]'}"


if __name__ == "__main__":
    sys.exit(script.run(bench))
