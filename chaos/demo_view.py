"""How the demo looks: words and tables above, and below them a live picture of the clinics while it lasts.

Where the output is no terminal the same words and tables come as plain lines, with a line about the clinics now and
then. What is drawn is computed by pure functions of the history.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from chaos.history import Finding, Verdict, Write
from chaos.traffic import Traffic
from cluster import clock
from cluster.clock import NANOS_PER_MS, NANOS_PER_SECOND, Nanos
from cluster.errors import OscarHaError

BARS = "▁▂▃▄▅▆▇█"
GAP = "·"
TICKER_BUCKETS, TICKER_BUCKET_MS = 56, 250.0
CLOSE_UP_BUCKETS, CLOSE_UP_BEFORE = 60, 12
CLOSE_UP_MIN_BUCKET_MS = 75.0
REFRESH_PER_SECOND = 6
PLAIN_LINE_SECONDS = 3.0
STATE_POLL_SECONDS = 0.5
JOIN_SECONDS = 5.0
TIMELINE_WIDTH = 34
WIDE = 100
"""Columns of a terminal that has room for the bars of a timeline."""
ROLE_STYLES: Mapping[str, str] = {
    "primary": "bold green", "standby": "cyan", "joining": "yellow", "fenced": "yellow", "failed": "bold red",
}  # fmt: skip
DOES: Mapping[str, str] = {
    "primary": "takes every write of the clinics",
    "standby": "follows, a moment behind",
    "joining": "catches up",
    "fenced": "accepts no write",
}
VERDICT_STYLES: Mapping[Verdict, str] = {
    Verdict.KEPT: "[bold green]kept[/]",
    Verdict.BROKEN: "[bold red]broken[/]",
    Verdict.PROVED_NOTHING: "[bold yellow]proved nothing[/]",
}


@dataclass(slots=True)
class Shown:
    """What the live picture draws; replaced piece by piece while the demo goes on."""

    traffic: Traffic | None = None
    state: dict[str, Any] = field(default_factory=dict)


class Stage:
    """Where the demo is told. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown = Shown()
        self._ask: Callable[[], dict[str, Any]] | None = None
        self._end = threading.Event()
        self._live: Live | None = None
        self._threads: list[threading.Thread] = []

    def __exit__(self, *_: object) -> None:
        self.quiet()

    def __enter__(self) -> "Stage":
        return self

    def chapter(self, title: str) -> None:
        """Begin a new part of the story."""
        self.console.print()
        self.console.print(Rule(f"[bold]{title}[/]", align="left", style="blue"))

    def say(self, text: str) -> None:
        """Tell one line; rich's markup is understood."""
        self.console.print(f"  {text}", soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Show a table or a panel."""
        self.console.print(Padding(what, (0, 0, 0, 2)))

    def watch(self, traffic: Traffic, ask: Callable[[], dict[str, Any]]) -> None:
        """Show the clinics and the databases from now on; `ask` returns the state of the cluster."""
        self.shown.traffic = traffic
        self._ask = ask
        self._end.clear()
        self._spawn(self._poll)
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=lambda: picture(self.shown, clock.now()), console=self.console,
                refresh_per_second=REFRESH_PER_SECOND, transient=True,
            )  # fmt: skip
            self._live.start()
        else:
            self._spawn(self._plain_lines)

    def quiet(self) -> None:
        """End the live picture. Safe to repeat."""
        self._end.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        self._threads.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"demo-{target.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _poll(self) -> None:
        while self._ask is not None and not self._end.wait(STATE_POLL_SECONDS):
            try:
                self.shown.state = self._ask()
            except OscarHaError:
                continue  # the picture keeps what was last known; the story itself notices what is wrong

    def _plain_lines(self) -> None:
        while not self._end.wait(PLAIN_LINE_SECONDS):
            self.say(plain_line(self.shown, clock.now()))


def picture(shown: Shown, now: Nanos) -> RenderableType:
    """Return the live picture: the writes of every clinic, and the databases below."""
    clinics = Table(box=None, show_header=False, padding=(0, 1))
    for writer in shown.traffic.writers if shown.traffic else ():
        counts = acknowledged_per_bucket(writer.history, now, TICKER_BUCKETS, TICKER_BUCKET_MS)
        rate = sum(counts[-4:]) / (4 * TICKER_BUCKET_MS / 1_000)
        style = "bold red" if not counts[-1] and not counts[-2] else "green"
        clinics.add_row(
            f"[bold]{escape(writer.clinic.name)}[/]", sparkline(counts, writer.writes_per_second, TICKER_BUCKET_MS),
            f"[{style}]{rate:3.0f} writes/s[/]", f"→ {escape(_served_by(shown.state, writer.newest))}",
        )  # fmt: skip
    body = Group(clinics, Text(), databases_line(shown.state))
    return Padding(
        Panel(body, title="[bold]now[/]", title_align="left", box=ROUNDED, border_style="dim", expand=False), (1, 2)
    )


def plain_line(shown: Shown, now: Nanos) -> str:
    """Return the picture in one line."""
    parts = []
    for writer in shown.traffic.writers if shown.traffic else ():
        counts = acknowledged_per_bucket(writer.history, now, 4, TICKER_BUCKET_MS)
        parts.append(f"{escape(writer.clinic.name)} {sum(counts) / (4 * TICKER_BUCKET_MS / 1_000):.0f} writes/s")
    parts += [f"{node.get('node')} {_role_of(node)}" for node in shown.state.get("nodes", [])]
    return "… " + ", ".join(parts)


def databases_line(state: Mapping[str, Any]) -> Text:
    """Return the databases side by side with their roles."""
    line = Text(" ")
    for node in state.get("nodes", []):
        role = _role_of(node)
        line.append("● ", style=ROLE_STYLES.get(role, "bold red"))
        line.append(f"{node.get('node')} ", style="bold")
        line.append(f"{role}    ", style=ROLE_STYLES.get(role, "bold red"))
    return line


def cluster_table(state: Mapping[str, Any]) -> Table:
    """Return the cluster as a table: every database, its site, its role and what it has."""
    epoch = state.get("epoch") or {}
    ackers = (state.get("durability") or {}).get("ackers", [])
    table = Table(
        box=SIMPLE_HEAD, title=f"epoch {epoch.get('epoch')}, primary {epoch.get('primary')}", title_justify="left"
    )
    for heading in ("database", "site", "role", "what it does"):
        table.add_column(heading)
    for node in state.get("nodes", []):
        role, site = _role_of(node), str(node.get("site"))
        does = "its site has every write on disk before a clinic hears OK" if site in ackers else DOES.get(role, "")
        table.add_row(str(node.get("node")), site, f"[{ROLE_STYLES.get(role, 'bold red')}]{role}[/]", does)
    return table


def timeline(record: Mapping[str, Any], width: int = WIDE) -> Table:
    """Return the steps of a finished plan, each with its instant and, where there is room, a bar in the whole."""
    steps = record.get("steps", [])
    end = max((float(step["ms"]) for step in steps), default=0.0) or 1.0
    table = Table(
        box=SIMPLE_HEAD, title=f"{record.get('kind')}: {escape(str(record.get('why')))}", title_justify="left"
    )
    table.add_column("after", justify="right")
    table.add_column("step", style="bold")
    table.add_column("took", justify="right")
    if width >= WIDE:
        table.add_column("", width=TIMELINE_WIDTH)
    table.add_column("what", style="dim", overflow="fold")
    for step in steps:
        done, took = float(step["ms"]), float(step["took_ms"])
        bars = [bar(done - took, done, end, TIMELINE_WIDTH)] if width >= WIDE else []
        detail = escape(str(step.get("detail", "")))
        table.add_row(f"{done:.0f} ms", str(step["name"]), f"{took:.0f} ms", *bars, detail)
    return table


def close_up(writes: Sequence[Write], clinics: Iterable[str], fault: int, gap_ms: float) -> Table:
    """Return what each clinic saw around a fault: a bucket a column, the gap in red."""
    bucket_ms = max(CLOSE_UP_MIN_BUCKET_MS, gap_ms * 2 / (CLOSE_UP_BUCKETS - CLOSE_UP_BEFORE))
    end = Nanos(fault + int((CLOSE_UP_BUCKETS - CLOSE_UP_BEFORE) * bucket_ms * NANOS_PER_MS))
    table = Table(box=None, show_header=False, padding=(0, 1))
    for clinic in clinics:
        counts = acknowledged_per_bucket(
            [write for write in writes if write.clinic == clinic], end, CLOSE_UP_BUCKETS, bucket_ms
        )
        table.add_row(f"[bold]{escape(clinic)}[/]", sparkline(counts, _usual(counts) / bucket_ms * 1_000, bucket_ms))
    table.add_row(
        "", f"[dim]{'':>{CLOSE_UP_BEFORE}}▲ the fault; one column is {bucket_ms:.0f} ms, red means no answer[/]"
    )
    return table


def verdict_table(verdicts: Mapping[str, Finding]) -> Table:
    """Return the claims and what became of each."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("claim", "verdict", "because"):
        table.add_column(heading, overflow="fold")
    for claim, finding in verdicts.items():
        table.add_row(claim, VERDICT_STYLES[finding.verdict], escape(finding.why))
    return table


def acknowledged_per_bucket(writes: Sequence[Write], end: int, buckets: int, bucket_ms: float) -> list[int]:
    """Return how many writes were acknowledged in each of the last `buckets` before `end`. Writes come in order."""
    width = max(1, int(bucket_ms * NANOS_PER_MS))
    counts = [0] * buckets
    for write in reversed(writes):
        if write.acknowledged_at is None or write.acknowledged_at >= end:
            continue
        ago = (end - 1 - write.acknowledged_at) // width
        if ago >= buckets:
            break
        counts[buckets - 1 - ago] += 1
    return counts


def sparkline(counts: Sequence[int], full_per_second: float, bucket_ms: float) -> Text:
    """Return the counts as bars; a bucket without a write is a red gap, buckets before the first write are blank."""
    full = max(1.0, full_per_second * bucket_ms * NANOS_PER_MS / NANOS_PER_SECOND)
    first = next((index for index, count in enumerate(counts) if count), len(counts))
    line = Text(" " * first)
    for count in counts[first:]:
        if count:
            line.append(BARS[min(len(BARS) - 1, int(count / full * len(BARS)))], style="green")
        else:
            line.append(GAP, style="bold red")
    return line


def bar(start: float, end: float, total: float, width: int) -> str:
    """Return a bar from `start` to `end` on a scale of `total`; at least one column is marked."""
    left = max(0, min(width - 1, int(start / total * width)))
    length = max(1, min(width - left, round((end - start) / total * width)))
    return " " * left + "━" * length


def _role_of(node: Mapping[str, Any]) -> str:
    if not node.get("reporting", True):
        return "silent"
    if node.get("database") in ("down", "hung"):
        return str(node["database"])
    return str(node.get("role") or "unknown")


def _usual(counts: Sequence[int]) -> float:
    return median([count for count in counts if count] or [1])


def _served_by(state: Mapping[str, Any], newest: Write | None) -> str:
    if newest is None:
        return "nobody yet"
    names = {node.get("server_id"): str(node.get("node")) for node in state.get("nodes", [])}
    return names.get(newest.server_id, f"server {newest.server_id}")
