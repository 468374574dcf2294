"""`oscar-ha verify`: tables for people, `--json` for scripts, and exit codes to trust."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Lines

from cluster import clock, settings
from cluster.errors import BadInput, FencedOut, OscarHaError, Refused, Unreachable
from cluster.http import Client
from cluster.settings import Secrets, Settings
from controller import orders
from controller.compare.findings import Report, TableFound, Verdict
from controller.compare.moment import Moments
from controller.compare.repair import Repair
from controller.compare.walk import Progress as Walked
from controller.compare.walk import Walk, Wanted

CALL_DEADLINE_MS = 5_000
EXIT: Mapping[Verdict, int] = {Verdict.EQUAL: 0, Verdict.DIFFERENT: 1, Verdict.UNDECIDED: 3}
SETTINGS_VARIABLE = "OSCAR_HA_SETTINGS"
TABLE_NAMES_KEPT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the controllers say of the cluster."""

    epoch: int
    primary: str
    standbys: tuple[str, ...]
    left_out: tuple[str, ...]
    """Nodes that cannot be compared now, each a sentence."""
    by_order: tuple[str, ...] = ()
    """Nodes that are delayed or held by order, each a sentence: they have the data of another moment."""


NodesOption = typer.Option([], "--node", help="Compare only this standby; may be repeated.")
DatabasesOption = typer.Option([], "--database", help="Compare only this database; may be repeated.")
TablesOption = typer.Option([], "--table", help="Compare only this table, as DATABASE.TABLE; may be repeated.")
LoadOption = typer.Option(50, "--load", min=1, max=100, help="Percent of the time in which the nodes are read.")
PieceOption = typer.Option(200, "--piece-ms", min=10, max=5_000, help="How long one statement should take.")
SnapshotOption = typer.Option(
    60, "--snapshot-seconds", min=1, max=3_600, help="A snapshot is held no longer: it keeps old row versions alive."
)
StatementOption = typer.Option(10, "--statement-seconds", min=1, max=3_600, help="The limit of one statement.")
RowsOption = typer.Option(20, "--rows", min=0, max=10_000, help="Differing rows to name in each table.")
ColumnsOption = typer.Option(
    False, "--show-columns", help="Name the columns that differ; what is in them is never shown."
)
RepairOption = typer.Option(
    None, "--repair", help="table: replace what differs on the one --node by what the primary has."
)
YesOption = typer.Option(False, "--yes", "-y", help="Do not ask before repairing.")
JsonOption = typer.Option(None, "--json", help="Write the report as JSON to a file, or - to show it.")
SettingsOption = typer.Option(
    None, "--settings", envvar=SETTINGS_VARIABLE, help="The cluster's settings; in the lab: build/lab/cluster.toml."
)


def verify(
    nodes: list[str] = NodesOption,
    databases: list[str] = DatabasesOption,
    tables: list[str] = TablesOption,
    load: int = LoadOption,
    piece_ms: int = PieceOption,
    snapshot_seconds: int = SnapshotOption,
    statement_seconds: int = StatementOption,
    rows_named: int = RowsOption,
    show_columns: bool = ColumnsOption,
    repair: str | None = RepairOption,
    yes: bool = YesOption,
    json_file: str | None = JsonOption,
    settings_file: Path | None = SettingsOption,
) -> None:
    """Prove that all nodes hold the same data: every byte of every table, at one position, while the clinics work;
    and that their views, triggers, routines, events and databases are defined alike.

    The primary is only read, in short statements with pauses between; a standby stands still for an instant. Only names
    of tables and keys of rows are shown, never what is in them.

    Ends with 0 when all is equal, 1 when something differs, 2 for a mistake in the command, and 3 when something could
    not be decided; then it says what.
    """
    if settings_file is None:
        raise BadInput("no settings file", hint=f"give --settings FILE, or set {SETTINGS_VARIABLE}")
    _check(tables, nodes, repair)
    loaded = settings.load(settings_file)
    wanted = Wanted(databases=frozenset(databases), tables=frozenset(tables), piece_ms=piece_ms, load_percent=load,
                    rows_named=rows_named, columns=show_columns)  # fmt: skip
    run = Run(loaded, settings.read_secrets(loaded), wanted, tuple(loaded.node(name).name for name in nodes),
              snapshot_seconds, statement_seconds, quiet=json_file == "-")  # fmt: skip
    report = asyncio.run(_interruptible(run, repair is not None, yes))
    if json_file is not None:
        _write_json(report, json_file)
    if json_file != "-":
        show(report)
    raise typer.Exit(EXIT[report.verdict])


def _check(tables: Sequence[str], nodes: Sequence[str], repair: str | None) -> None:
    for table in tables:
        if "." not in table.strip("."):
            raise BadInput(f"--table {table!r} names no database", hint="give DATABASE.TABLE, for example oscar.log")
    if repair == "node":
        raise BadInput("--repair node is done by another command", hint="oscar-ha reinitialize NODE")
    if repair not in (None, "table"):
        raise BadInput(f"--repair {repair!r} is not known", hint="--repair table, with one --node")
    if repair is not None and len(nodes) != 1:
        raise BadInput("--repair wants to know which standby", hint="give one --node")


async def _interruptible(run: "Run", repairing: bool, yes: bool) -> Report:
    """SIGTERM ends us as SIGINT does: standbys that stand still are let go first."""
    task = asyncio.ensure_future(run.all(repairing, yes))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


class Run:
    """One run of the command."""

    def __init__(self, loaded: Settings, secrets: Secrets, wanted: Wanted, nodes: tuple[str, ...],
                 snapshot_seconds: float, statement_seconds: int, *, quiet: bool) -> None:  # fmt: skip
        self.settings, self.secrets, self.wanted, self.nodes = loaded, secrets, wanted, nodes
        self._snapshot_seconds, self._statement_seconds = snapshot_seconds, statement_seconds
        self._quiet = quiet

    async def all(self, repairing: bool, yes: bool) -> Report:
        """Compare, repair if asked to and agreed, keep a record of the result."""
        async with Client(self.secrets.token) as client:
            controller, cluster = await self._cluster(client)
            async with Moments(
                self.settings, self.secrets, client, epoch=cluster.epoch, statement_seconds=self._statement_seconds,
                snapshot_seconds=self._snapshot_seconds,
            ) as moments:  # fmt: skip
                await moments.connect(cluster.primary, cluster.standbys)
                report = await self._compare(moments, cluster)
                whole = not self.wanted.tables and not self.wanted.databases and not self.nodes
                if repairing and report.verdict is Verdict.DIFFERENT:
                    report = await self._repair(moments, cluster, report, yes)
            if whole or report.verdict is Verdict.DIFFERENT:  # of a part only bad news is news of the whole
                await self._keep(client, controller, report)
            return report

    async def _cluster(self, client: Client) -> tuple[str, Cluster]:
        failures = []
        for one in self.settings.controllers:
            try:
                answer = await client.get(f"{one.url}/v1/cluster", deadline_ms=CALL_DEADLINE_MS)
                return one.url, chosen(answer, self.nodes)
            except Unreachable as error:
                failures.append(error.message)
        raise Unreachable("no controller answers: " + "; ".join(failures), hint="is the cluster running?")

    async def _compare(self, moments: Moments, cluster: Cluster) -> Report:
        started, began = clock.utc_now(), clock.now()
        undecided = list(cluster.left_out)
        tables: tuple[TableFound, ...] = ()
        try:
            await moments.renew()
            with Bar(self._quiet) as bar:
                tables = await Walk(moments, self.wanted, Walked(changed=bar.show)).everything()
            await moments.let_go()
        except FencedOut as error:
            undecided.append(f"the cluster has another primary now: {error.message}; run it again")
        except Unreachable as error:  # a standby that is away is only left out
            undecided.append(f"the primary was lost before the end: {error.message}; run it again")
        undecided += [f"{name} could not be compared to the end: {why}" for name, why in sorted(moments.lost.items())]
        undecided += _not_found(self.wanted, tables)
        if not moments.standbys:
            undecided.append("there was no standby to compare with")
        return Report(
            cluster=self.settings.name, epoch=cluster.epoch, primary=cluster.primary, nodes=tuple(moments.standbys),
            started=started, seconds=round(clock.ms_between(began, clock.now()) / 1000, 1),
            halted_ms_max=round(moments.halted_ms_max, 1), moments=moments.taken, tables=tables,
            undecided=tuple(undecided), by_order=cluster.by_order,
        )  # fmt: skip

    async def _repair(self, moments: Moments, cluster: Cluster, report: Report, yes: bool) -> Report:
        (node,) = self.nodes
        mine = [one for one in report.having(Verdict.DIFFERENT) if node in one.nodes]
        able = [one for one in mine if one.engine]
        console = Console(stderr=True, highlight=False)
        for one in able:
            console.print(
                f"would replace on {node} what differs in {escape(one.table)}: {escape('; '.join(one.ranges))}"
            )
        for one in mine:
            if not one.engine:
                console.print(f"cannot repair {escape(one.table)}: {escape(one.why)}; see 'oscar-ha reinitialize'")
        if not able or not (
            yes or typer.confirm(f"Write to {len(able)} tables of {node}, in no binary log?", err=True)
        ):
            return report
        repair = Repair(moments, self.settings, self.secrets, node)
        for one in able:
            pieces = await repair.table(*one.table.split(".", 1))
            console.print(f"{escape(one.table)}: {pieces} pieces of {node} replaced")
        self.wanted = replace(self.wanted, tables=frozenset(one.table for one in able))
        again = {one.table: one for one in (await self._compare(moments, cluster)).tables}
        return replace(report, tables=tuple(again.get(one.table, one) for one in report.tables))

    async def _keep(self, client: Client, controller: str, report: Report) -> None:
        names = [one.table for one in report.having(Verdict.DIFFERENT)][:TABLE_NAMES_KEPT]
        body = {
            "result": report.verdict.value, "epoch": report.epoch, "primary": report.primary,
            "nodes": list(report.nodes), "tables": len(report.tables), "rows": report.rows, "different": names,
            "undecided": len(report.undecided) + len(report.having(Verdict.UNDECIDED)), "seconds": report.seconds,
        }  # fmt: skip
        try:
            await client.post(f"{controller}/v1/verify", body, deadline_ms=CALL_DEADLINE_MS)
        except OscarHaError as error:
            Console(stderr=True).print(f"the result is not kept: {escape(error.message)}")


def chosen(answer: Mapping[str, Any], only: tuple[str, ...]) -> Cluster:
    """Return who is compared with whom. Raises Refused when there is no primary, BadInput when it is asked for."""
    epoch = answer["epoch"]
    if epoch is None:
        raise Refused("no epoch is open yet: there is no primary", hint="see 'oscar-ha status'")
    if epoch["primary"] in only:
        raise BadInput(f"{epoch['primary']} is the primary: the others are compared with it", hint="give a standby")
    standbys, left_out, by_order = [], [], list[str]()
    for node in answer["nodes"]:
        name = node["node"]
        if name == epoch["primary"] or (only and name not in only):
            continue
        if (ordered := orders.in_force(node)) is not None:
            by_order.append(f"{name} is not compared: it is {ordered}")
        elif node.get("role") == "standby" and node.get("replicating"):
            standbys.append(name)
        else:
            left_out.append(
                f"{name} is not compared: it is {node.get('role', 'silent')}, {node.get('why', 'no report')}"
            )
    return Cluster(epoch=int(epoch["epoch"]), primary=str(epoch["primary"]), standbys=tuple(standbys),
                   left_out=tuple(left_out + by_order if only else left_out), by_order=() if only else tuple(by_order))  # fmt: skip


def _not_found(wanted: Wanted, tables: Sequence[TableFound]) -> list[str]:
    found = {one.table for one in tables}
    schemas = {one.table.split(".", 1)[0] for one in tables}
    return [
        *(f"there is no table {name}" for name in sorted(wanted.tables - found)),
        *(f"there is no table in a database {name}" for name in sorted(wanted.databases - schemas)),
    ]


class Bar:
    """Progress on a terminal; silent elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tables"),
            TextColumn("{task.fields[rows]:>12,} rows {task.fields[rate]:>9,}/s"), TimeRemainingColumn(),
            console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=None, rows=0, rate=0)
        self._began = clock.now()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, walked: Walked) -> None:
        """Show how far it is."""
        seconds = max(0.001, clock.ms_between(self._began, clock.now()) / 1000)
        self._progress.update(
            self._task, description=walked.table[-40:], total=walked.tables_total, completed=walked.tables_done,
            rows=walked.rows, rate=int(walked.rows / seconds),
        )  # fmt: skip


def _write_json(report: Report, where: str) -> None:
    text = json.dumps({**asdict(report), "verdict": report.verdict.value, "rows": report.rows}, indent=1)
    if where == "-":
        typer.echo(text)
        return
    try:
        Path(where).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--json {where}: {error.strerror}", hint="give a file that can be written") from error


def show(report: Report) -> None:
    """Print a report for people."""
    console = Console(highlight=False, soft_wrap=True)
    names = ", ".join(report.nodes) or "nobody"
    colour = {Verdict.EQUAL: "green", Verdict.DIFFERENT: "red", Verdict.UNDECIDED: "yellow"}[report.verdict]
    console.print(f"[bold {colour}]{report.verdict.value}[/]: {report.primary} and {names}, epoch {report.epoch},"
                  f" {len(report.tables)} tables, {report.rows:,} rows in {report.seconds} s;"
                  f" a standby stood still for at most {report.halted_ms_max:.0f} ms")  # fmt: skip
    for why in report.undecided:
        console.print(f"[yellow]not decided[/]: {escape(why)}")
    for why in report.by_order:
        console.print(f"[dim]left out[/]: {escape(why)}")
    standing = sum(one.how == "standstill" and one.verdict is Verdict.EQUAL for one in report.tables)
    if standing:
        console.print(f"{standing} tables have no snapshot (their engine is not transactional):"
                      " each piece was compared while the standbys stood still")  # fmt: skip
    lines = Lines(box=None, pad_edge=False)
    for column in ("table", "result", "on", "where"):
        lines.add_column(column, overflow="fold")
    others = [one for one in report.tables if one.verdict is not Verdict.EQUAL]
    for one in others:
        where = "; ".join(part for part in ("; ".join(one.ranges), one.why) if part)
        lines.add_row(escape(one.table), one.verdict.value, ", ".join(one.nodes), escape(where))
        for row in one.examples:
            columns = f" in {', '.join(row.columns)}" if row.columns else ""
            lines.add_row("", row.what, row.node, escape(row.key + columns))
    if others:
        console.print(lines)
    if report.verdict is Verdict.DIFFERENT:
        console.print(
            "what to do: oscar-ha verify --table TABLE --node NODE --repair table, or oscar-ha reinitialize NODE"
        )
