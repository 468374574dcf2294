"""`oscar-ha rescue ls | show | replay`: what only an old primary had, for a person to judge and to bring back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.markup import escape
from rich.table import Table

from cluster import settings
from cluster.errors import BadInput, Unreachable
from cluster.records import RescueState
from cluster.settings import Settings
from controller.operator_command import CALL_DEADLINE_MS, JsonOption, SettingsOption, YesOption, ask
from controller.replay import Chosen, Replay, Report, undecided
from controller.replay_target import Target
from controller.rescue_source import FolderSource, RescueSource, WatchdogSource
from healthcheck.rescue_folder import Rescue
from healthcheck.rescue_lines import BASE64, Json, Line
from healthcheck.rescuing import ID

EXIT_CONFLICTS = 3
VALUE_CHARACTERS_MAX = 200
TOLD_SHOWN_MAX = 50
ROWS_SHOWN_DEFAULT = 1_000
app = typer.Typer(
    no_args_is_help=True, help="What an old primary had and the cluster has not: list it, look at it, apply it."
)
DirectoryOption = typer.Option(
    None, "--directory", help="Read this folder instead of asking watchdogs: on the node's host."
)
IdArgument = typer.Argument(..., metavar="ID", help="As 'oscar-ha rescue ls' shows it.")
TableOption = typer.Option(None, "--table", help="`table` or `database.table`; letter by letter.")
KeyOption = typer.Option([], "--key", help="The row with this primary key; once for each of its columns.")
ToOption = typer.Option(
    ..., "--to", help="The cluster's primary: said, so that nobody writes where he does not mean to."
)
GtidOption = typer.Option(None, "--gtid", help="Only this transaction, as 0-1-123.")


@app.command("ls")
def list_all(
    settings_file: Path | None = SettingsOption, directory: Path | None = DirectoryOption, as_json: bool = JsonOption
) -> None:
    """List the rescues of all nodes. Ends with 1 when a node could not be asked."""
    found, silent = list[Rescue](), list[str]()
    for name, source in _sources(settings_file, directory).items():
        try:
            found += source.listed()
        except Unreachable as error:
            silent.append(f"{name}: {error.message}")
    if as_json:
        typer.echo(json.dumps({"rescues": [asdict(one) for one in found], "silent": silent}, indent=2))
    else:
        _print_list(found)
    for one in silent:
        typer.echo(f"not asked: {one}", err=True)
    if silent:
        raise typer.Exit(1)


@app.command()
def show(
    rescue: str = IdArgument,
    table: str | None = TableOption,
    key: list[str] = KeyOption,
    gtid: str | None = GtidOption,
    limit: int = typer.Option(ROWS_SHOWN_DEFAULT, "--limit", min=0, help="End after so many rows; 0: all."),
    settings_file: Path | None = SettingsOption,
    directory: Path | None = DirectoryOption,
    as_json: bool = JsonOption,
) -> None:
    """Show rows before and after. They are patients' charts. With --json one line for each."""
    source, chosen = (
        _source(rescue, settings_file, directory),
        Chosen(table=table or "", key=tuple(key), gtid=gtid or ""),
    )
    console = Console(highlight=False, highlighter=NullHighlighter())
    shown = 0
    for line in source.lines(rescue):
        if not chosen.fits(line):
            continue
        if limit and shown == limit:
            typer.echo(f"... and more: --limit 0 shows all (this is the end after {limit})", err=True)
            break
        shown += 1
        if as_json:
            typer.echo(json.dumps(asdict(line), ensure_ascii=False))
        else:
            _print_line(console, line)
    if not shown and not as_json:
        typer.echo("nothing of that is in it")


@app.command()
def replay(
    rescue: str = IdArgument,
    to: str = ToOption,
    table: str | None = TableOption,
    key: list[str] = KeyOption,
    gtid: str | None = GtidOption,
    dry_run: bool = typer.Option(False, "--dry-run", help="Compare, and say what would be done; change nothing."),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Also rows that somebody has changed since: that is lost."
    ),
    yes: bool = YesOption,
    settings_file: Path | None = SettingsOption,
    directory: Path | None = DirectoryOption,
    as_json: bool = JsonOption,
) -> None:
    """Apply rescued rows to the primary, each compared first with what is there.

    A row that is as it was before is changed; one that is as it became already is passed over; any other is a conflict, told
    and left alone. To run it again is safe. Statements, undecided transactions and tables with triggers are left to a person.
    Ends with 0 when everything is in the cluster, 3 when something was left alone, 2 for a wrong argument.
    """
    loaded = _settings(settings_file)
    source, chosen = (
        _source(rescue, settings_file, directory),
        Chosen(table=table or "", key=tuple(key), gtid=gtid or ""),
    )
    _require_primary(settings_file, to)
    held_back, meant = _surveyed(source, rescue, chosen)
    if not dry_run and not yes:
        typer.confirm(f"Apply up to {meant:,} rows to {to}{', overwriting' if overwrite else ''}?", abort=True)
    report = Report(rescue=rescue, to=to, dry_run=dry_run)
    secrets = settings.read_secrets(loaded)
    try:
        with Target.connect(loaded.node(to), loaded, secrets) as target:
            Replay(source, target, report, overwrite=overwrite).run(chosen, held_back)
    finally:  # also of a run that broke off: what it did is done
        _print_report(report, as_json=as_json)
    if not report.clean:
        raise typer.Exit(EXIT_CONFLICTS)


# -- where from -----------------------------------------------------------------------------------------------------------


def _settings(settings_file: Path | None) -> Settings:
    if settings_file is None:
        raise BadInput("no settings file", hint="give --settings FILE, or set OSCAR_HA_SETTINGS")
    return settings.load(settings_file)


def _sources(settings_file: Path | None, directory: Path | None) -> Mapping[str, RescueSource]:
    if directory is not None:
        return {str(directory): FolderSource(directory)}
    loaded = _settings(settings_file)
    token = settings.read_secret(loaded.token_file, "token_file")
    return {node.name: WatchdogSource(node, token) for node in loaded.nodes}


def _source(rescue: str, settings_file: Path | None, directory: Path | None) -> RescueSource:
    """Return where a rescue is. Raises BadInput for what cannot be the name of one."""
    if ID.fullmatch(rescue) is None:
        raise BadInput(f"{rescue[:100]!r} is not the name of a rescue", hint="see: oscar-ha rescue ls")
    node = rescue.split("-", 1)[1].rsplit("-", 1)[0]
    sources = _sources(settings_file, directory)
    if directory is not None:
        return sources[str(directory)]
    if node not in sources:
        raise BadInput(f"{rescue!r}: there is no node {node!r}", hint="see: oscar-ha rescue ls")
    return sources[node]


def _require_primary(settings_file: Path | None, to: str) -> None:
    answer = ask(settings_file, lambda client, url: client.get(f"{url}/v1/cluster", deadline_ms=CALL_DEADLINE_MS))
    primary = (answer["epoch"] or {}).get("primary")
    if primary != to:
        raise BadInput(
            f"--to {to}: the primary is {primary or 'nobody'}",
            hint=f"--to {primary}" if primary else "see: oscar-ha status",
        )


def _surveyed(source: RescueSource, rescue: str, chosen: Chosen) -> tuple[dict[str, str], int]:
    """Return which transactions are held back, and how many rows are meant. Raises BadInput when none is."""
    meant = 0

    def counted() -> Iterator[Line]:
        nonlocal meant
        for line in source.lines(rescue):
            meant += chosen.fits(line)
            yield line

    held_back = undecided(counted())
    if not meant:
        raise BadInput(
            f"nothing of {rescue} is chosen", hint="see: oscar-ha rescue show; tables and keys count letter by letter"
        )
    return held_back, meant


# -- what is said -----------------------------------------------------------------------------------------------------------


def _print_list(found: list[Rescue]) -> None:
    if not found:
        typer.echo("no rescues: no node ever had what the cluster has not")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("rescue", "node", "made", "state", "transactions", "rows", "tables", "why"):
        table.add_column(column, overflow="fold")
    for one in found:
        colour = "green" if one.state is RescueState.COMPLETE else "red"
        tables = sorted(one.counts.tables, key=lambda name: -one.counts.tables[name])
        table.add_row(one.id, one.node, one.made, f"[{colour}]{one.state.value}[/]", f"{one.counts.transactions:,}",
                      f"{one.counts.rows:,}", escape(", ".join(tables[:3]) + ", ..." * (len(tables) > 3)), escape(one.why))  # fmt: skip
    Console(highlight=False).print(table)


def _print_line(console: Console, line: Line) -> None:
    key = ", ".join(_shown(value) for value in (line.key or {}).values())
    head = f"[bold]{line.kind}[/] {escape(line.table)} {escape(key)}".rstrip()
    console.print(f"{head}  [dim]{line.gtid} {line.time} #{line.number}[/]", soft_wrap=True)
    if line.statement:
        console.print(f"    {escape(_cut(line.statement))}", soft_wrap=True)
    for name, before, after in _changes(line):
        arrow = (
            f"{escape(before)} [bold]->[/] {escape(after)}" if line.before and line.after else escape(before or after)
        )
        console.print(f"    {escape(name)}: {arrow}", soft_wrap=True)
    if line.why:
        console.print(f"    [yellow]{escape(line.why)}[/]", soft_wrap=True)
    if line.prepared:
        console.print("    [yellow]of an XA transaction that was prepared, and never decided[/]")


def _changes(line: Line) -> Iterator[tuple[str, str, str]]:
    """Yield the columns that a person wants to see: of an update those that changed."""
    before, after = line.before or {}, line.after or {}
    for name in {**before, **after}:
        if not (line.before and line.after) or before.get(name) != after.get(name):
            yield name, _shown(before[name]) if name in before else "", _shown(after[name]) if name in after else ""


def _shown(value: Json) -> str:
    if value is None:
        return "NULL"
    return _cut(f"base64:{value[BASE64]}" if isinstance(value, dict) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}... ({len(text):,} characters)"


def _print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_record(), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    would = "would be " if report.dry_run else ""
    console.print(f"{report.applied:,} {would}applied, {report.present:,} were there already, {report.done_before:,} done by an earlier run,"
                  f" {report.overwritten:,} {would}overwritten, {report.conflicts:,} conflicts, {report.left:,} left to a person",
                  soft_wrap=True)  # fmt: skip
    for one in report.told[:TOLD_SHOWN_MAX]:
        key = ", ".join(_shown(value) for value in (one.key or {}).values())
        console.print(
            f"  [yellow]{one.kind} {escape(one.table)} {escape(key)}[/] ({one.gtid}): {escape(one.why)}", soft_wrap=True
        )
    more = report.conflicts + report.left + report.overwritten - TOLD_SHOWN_MAX
    if more > 0:
        console.print(f"  ... and {more:,} more: --json tells up to 1,000")
