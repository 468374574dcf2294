"""The demo: a clinic survives the death of its database, told while it happens.

Everything shown is real and measured; the summary claims only what the checks found. Whatever happens, the lab is
taken down. Run it with `script/demo`.
"""

import json
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status

from chaos import checks
from chaos.demo_view import Stage, close_up, cluster_table, timeline, verdict_table
from chaos.history import Finding, Outcome, Verdict, Write, all_kept, lost, outage_ms, outcomes, writers_per_epoch
from chaos.lab import build, remove
from chaos.lab.layout import Request
from chaos.lab_remote import Fault, Rejoin, RemoteLab, wait_writing
from chaos.run_folder import alone, keep_logs
from chaos.script import INTERRUPTED_EXIT_CODE, interrupt
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from cluster.clock import Nanos
from cluster.command import complain
from cluster.errors import OscarHaError

BUILD = Path("build")
CLINICS = 2
HOME = "db-clinic"
TRAFFIC_SECONDS_MAX = 240.0
WARM_UP_SECONDS, LOOK_SECONDS = 6.0, 4.0
PREPARE_DEADLINE_MS = 30_000.0
READY_DEADLINE_MS = 60_000.0
PLAN_DEADLINE_MS = 45_000.0
WRITE_DEADLINE_MS = 30_000.0
REJOIN_DEADLINE_MS = 60_000.0
CHECK_DEADLINE_MS = 30_000.0
WRITES_AGAIN, FAILED_OVER, SWITCHED = (
    "every clinic writes again",
    "a standby took over",
    "the way back was planned work",
)
PLAIN_WIDTH = 120


@dataclass(slots=True)
class Facts:
    """What the demo has measured so far; what is None was not reached."""

    history: list[Write] = field(default_factory=list)
    outage_ms: dict[str, float | None] = field(default_factory=dict)
    switchover_gap_ms: dict[str, float | None] = field(default_factory=dict)
    lost: int | None = None
    rejoin: Rejoin | None = None
    failover: dict[str, Any] | None = None
    switchover: dict[str, Any] | None = None
    verdicts: dict[str, Finding] = field(default_factory=dict)
    failure: str | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.failure is None and all_kept(self.verdicts.values())


class Demo:
    """One telling of the story."""

    def __init__(self, stage: Stage, directory: Path, journal: Journal) -> None:
        self.facts = Facts()
        self._stage = stage
        self._lab = RemoteLab(directory)
        self._journal = journal
        self._traffic: Traffic | None = None

    def run(self) -> None:
        """Tell the whole story. Raises what goes wrong."""
        self._build()
        with self._open_clinics() as traffic:
            self._traffic = traffic
            self._show_cluster()
            fault = self._kill_primary(traffic)
            self._start_again(fault)
            self._switch_back(traffic)
            traffic.stop()
            self._stage.quiet()
        self._judge()

    # -- chapters ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._stage.chapter("Three sites start: the clinic, Toronto, Montreal")
        with _Reporter(self._stage) as reporter:
            build.up(Request(directory=self._lab.directory, clinics=CLINICS), reporter, keep=True)
        processes = len(self._lab.file.processes)
        self._stage.say(f"[green]✓[/] {processes} real processes on this machine, nothing simulated")

    def _open_clinics(self) -> Traffic:
        self._stage.chapter("Two clinics open for the day")
        lab = self._lab.file
        prepare(lab.clinics[0], deadline_ms=PREPARE_DEADLINE_MS)
        traffic = Traffic(lab.clinics, self._journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.nodes)
        names = " and ".join(clinic.name for clinic in lab.clinics)
        self._stage.say(f"{names} register patients, write notes, prescribe and bill, each through its own HAProxy.")
        self._stage.say("Every write carries a number of its own, and we remember which ones the database said OK to.")
        return traffic

    def _show_cluster(self) -> None:
        assert self._traffic is not None
        self._stage.watch(self._traffic, self._lab.cluster)
        wait_writing(self._traffic, after=clock.now(), deadline_ms=WRITE_DEADLINE_MS)
        _pause(WARM_UP_SECONDS)
        self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
        self._stage.show(cluster_table(self._lab.cluster()))

    def _kill_primary(self, traffic: Traffic) -> Fault:
        node, _ = self._lab.primary()
        self._stage.chapter(f"kill -9: the database server of {node} dies in the middle of the day")
        fault = self._lab.crash_primary()
        self._stage.say(f"[bold red]✗[/] mariadbd of {node} is dead. Nobody touches anything now.")
        wait_writing(traffic, after=fault.end, deadline_ms=WRITE_DEADLINE_MS)
        record = self._lab.wait_plan(fault.epoch, deadline_ms=PLAN_DEADLINE_MS)
        self.facts.failover = record
        self._stage.say(
            f"[bold green]✓[/] [bold]{escape(str(record['to']))}[/] has taken over; both clinics write again."
        )
        self._stage.show(timeline(record, self._stage.console.width))
        _pause(LOOK_SECONDS)
        self.facts.outage_ms = self._gaps(traffic, fault.start, clock.now())
        self._show_gap("Without an answer", traffic, fault.start, self.facts.outage_ms)
        return fault

    def _start_again(self, fault: Fault) -> None:
        self._stage.chapter(f"The dead server comes back: {fault.node} is started again")
        self._stage.say("It is born fenced: it accepts no write until the cluster has given it a role.")
        rejoin = self._lab.come_back(fault.node, deadline_ms=REJOIN_DEADLINE_MS)
        self.facts.rejoin = rejoin
        if rejoin.anew:
            self._stage.say(
                f"The kill hit a MyISAM table, so it was built anew from another node: {escape(rejoin.anew)}"
            )
        if rejoin.rejoined:
            self._stage.say(f"[bold green]✓[/] {fault.node} follows as a standby after {rejoin.ms / 1000:.1f} s.")
        else:
            self._stage.say(f"[bold yellow]![/] {fault.node} did not rejoin: {escape(rejoin.why)}")

    def _switch_back(self, traffic: Traffic) -> None:
        self._stage.chapter(f"Back home, as planned work: POST /v1/switchover to {HOME}")
        self._lab.wait_ready(deadline_ms=READY_DEADLINE_MS)
        start = clock.now()
        try:
            record = self._lab.switchover(HOME)
        except OscarHaError as error:
            self.facts.verdicts[SWITCHED] = Finding(verdict=Verdict.BROKEN, why=error.message)
            self._stage.say(f"[bold red]✗[/] the switchover was refused: {escape(str(error))}")
            record = {}
        if record:
            self._tell_switchover(record)
        wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_DEADLINE_MS)
        _pause(LOOK_SECONDS)
        if record:
            self.facts.switchover_gap_ms = self._gaps(traffic, start, clock.now())
            self._show_gap("Longest pause at a clinic", traffic, start, self.facts.switchover_gap_ms)

    def _tell_switchover(self, record: dict[str, Any]) -> None:
        self.facts.switchover = record
        done = record.get("to") == HOME and record.get("outcome") == "done"
        self.facts.verdicts[SWITCHED] = Finding(
            verdict=Verdict.KEPT if done else Verdict.BROKEN, why=f"{record.get('outcome')}: primary {record.get('to')}"
        )
        self._stage.show(timeline(record, self._stage.console.width))

    def _judge(self) -> None:
        assert self._traffic is not None
        self._stage.chapter("The clinics close; every promise is checked")
        history, lab = self._traffic.history, self._lab.file
        verdicts = checks.judge(history, lab, deadline_ms=CHECK_DEADLINE_MS)
        with suppress(OscarHaError):
            self.facts.lost = len(lost(history, checks.found_through(lab.clinics[0])))
        known = [gap for gap in self.facts.outage_ms.values() if gap is not None]
        taken = self.facts.failover is not None and len(known) == CLINICS
        verdicts[FAILED_OVER] = Finding(
            verdict=Verdict.KEPT if taken else Verdict.PROVED_NOTHING,
            why=f"by itself; the longest silence at a clinic was {max(known):.0f} ms"
            if known
            else "no failover was seen",
        )
        self.facts.verdicts = verdicts | self.facts.verdicts | {WRITES_AGAIN: self._writes_again(history)}
        self._stage.show(verdict_table(self.facts.verdicts))

    # -- below -------------------------------------------------------------------------------------------------------

    def _writes_again(self, history: list[Write]) -> Finding:
        """Judge that every clinic wrote after the last change of primary."""
        assert self._traffic is not None
        newest = max((write.epoch or 0 for write in history if write.acknowledged), default=0)
        writing = {write.clinic for write in history if write.acknowledged and write.epoch == newest}
        silent = [writer.clinic.name for writer in self._traffic.writers if writer.clinic.name not in writing]
        if silent or not newest:
            return Finding(
                verdict=Verdict.BROKEN, why=f"nothing acknowledged in the newest epoch at {', '.join(silent)}"
            )
        return Finding(verdict=Verdict.KEPT, why=f"all {len(writing)} wrote in epoch {newest}, the newest")

    def _gaps(self, traffic: Traffic, start: Nanos, end: Nanos) -> dict[str, float | None]:
        history = traffic.history
        names = [writer.clinic.name for writer in traffic.writers]
        return {name: outage_ms(history, name, start=start, end=end) for name in names}

    def _show_gap(self, what: str, traffic: Traffic, start: Nanos, gaps: Mapping[str, float | None]) -> None:
        told = ", ".join(f"{name} [bold]{_ms(gap)}[/]" for name, gap in gaps.items())
        self._stage.say(f"{what}: {told}")
        known = max((gap for gap in gaps.values() if gap is not None), default=0.0)
        self._stage.show(close_up(traffic.history, list(gaps), start, known))

    def collect(self) -> None:
        """Keep what the clinics recorded, also when the story ended early."""
        if self._traffic is not None:
            self.facts.history = self._traffic.history


def summary(facts: Facts) -> dict[str, Any]:
    """Return what `build/demo.json` says. Pure."""
    counts = outcomes(facts.history)
    equal = facts.verdicts.get(checks.EQUAL)
    return {
        "passed": facts.passed,
        "failure": facts.failure,
        "outage_ms": _longest(facts.outage_ms),
        "outage_ms_by_clinic": facts.outage_ms,
        "acknowledged": counts[Outcome.OK],
        "refused": counts[Outcome.FAILED],
        "unknown": counts[Outcome.UNKNOWN],
        "lost": facts.lost,
        "writers_per_epoch": {str(epoch): list(ids) for epoch, ids in writers_per_epoch(facts.history).items()},
        "rejoined": facts.rejoin.rejoined if facts.rejoin else None,
        "checksums_equal": equal.kept if equal else None,
        "switchover_gap_ms": _longest(facts.switchover_gap_ms),
        "switchover_gap_ms_by_clinic": facts.switchover_gap_ms,
        "verdicts": {
            claim: {"verdict": finding.verdict.value, "why": finding.why} for claim, finding in facts.verdicts.items()
        },
        "failover": facts.failover,
        "switchover": facts.switchover,
        "seconds": round(facts.seconds, 1),
    }


def main() -> int:
    """Run the demo and return the exit code: 0 only if every claim was kept."""
    signal.signal(signal.SIGTERM, interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    try:
        with alone(BUILD, "demo"):
            return _tell(console)
    except OscarHaError as error:
        complain(error)
        return error.exit_code


def _tell(console: Console) -> int:
    started = clock.now()
    directory = (BUILD / "demo-lab").absolute()
    journal_path = BUILD / "demo-journal.jsonl"
    journal_path.unlink(missing_ok=True)
    remove.down(directory, keep=False)
    journal = Journal(journal_path)
    code = 1
    with Stage(console) as stage:
        demo = Demo(stage, directory, journal)
        try:
            demo.run()
            code = 0 if demo.facts.passed else 1
        except KeyboardInterrupt:
            demo.facts.failure, code = "interrupted", INTERRUPTED_EXIT_CODE
        except OscarHaError as error:
            demo.facts.failure, code = str(error), error.exit_code
        finally:
            _ignore_signals()
            stage.quiet()
            demo.collect()
            journal.close()
            if code != 0:
                keep_logs(directory, BUILD / "demo-logs")
            stage.say("[dim]taking the lab down …[/]")
            remove.down(directory, keep=False)
    demo.facts.seconds = clock.ms_between(started, clock.now()) / 1_000
    _conclude(console, demo.facts)
    return code


def _conclude(console: Console, facts: Facts) -> None:
    path = BUILD / "demo.json"
    told = summary(facts)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    lines = [
        f"outage seen by the clinics     [bold]{_ms(told['outage_ms'])}[/]",
        f"pause of the planned change    [bold]{_ms(told['switchover_gap_ms'])}[/]",
        f"writes acknowledged, lost      [bold]{told['acknowledged']}[/], [bold]{told['lost']}[/]",
        f"who wrote in each epoch        [bold]{_writers(told['writers_per_epoch'])}[/]",
        f"the dead server is back        [bold]{_yes(told['rejoined'])}[/]",
        f"all databases equal            [bold]{_yes(told['checksums_equal'])}[/]",
        f"the whole demo took            [bold]{facts.seconds:.0f} s[/], figures in {path}",
    ]
    broken = [claim for claim, finding in facts.verdicts.items() if not finding.kept]
    if facts.failure:
        lines.append(f"[bold red]it ended early: {escape(facts.failure)}[/]")
    lines += [f"[bold red]not kept: {claim} ({escape(facts.verdicts[claim].why)})[/]" for claim in broken]
    if not facts.passed:
        lines.append(
            f"the logs of the lab are kept in {BUILD / 'demo-logs'}, the journal in {BUILD / 'demo-journal.jsonl'}"
        )
    title = "[bold green]No write was lost, nobody had to get up[/]" if facts.passed else "[bold red]The demo failed[/]"
    console.print()
    console.print(Panel("\n".join(lines), title=title, expand=False, border_style="green" if facts.passed else "red"))


class _Reporter:
    """Tells how far `lab up` is: one line for what is done, a spinner for what is waited for."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._status: Status = stage.console.status("starting")

    def __enter__(self) -> "_Reporter":
        if self._stage.console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def working(self, what: str) -> None:
        self._status.update(escape(what))

    def done(self, what: str, detail: str = "") -> None:
        self._stage.say(f"[green]✓[/] {escape(what)} [dim]{escape(detail)}[/]")


def _ignore_signals() -> None:
    """Nothing stops the taking down any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _pause(seconds: float) -> None:
    """Let a person look, and let the clinics write."""
    threading.Event().wait(seconds)


def _longest(gaps: Mapping[str, float | None]) -> float | None:
    """Return the longest gap; None when there is none, or when one of them is not known."""
    known = [gap for gap in gaps.values() if gap is not None]
    return round(max(known), 1) if known and len(known) == len(gaps) else None


def _ms(gap: float | None) -> str:
    return "not known" if gap is None else f"{gap:.0f} ms"


def _yes(answer: bool | None) -> str:
    return {True: "yes", False: "no", None: "not reached"}[answer]


def _writers(writers: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{epoch}: server {' and '.join(map(str, ids))}" for epoch, ids in writers.items()) or "nobody"


if __name__ == "__main__":
    sys.exit(main())
