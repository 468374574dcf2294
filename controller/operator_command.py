"""What an operator types: status, switchover, failover, history, explain. Tables for people, `--json` for scripts."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import records, settings
from cluster.errors import BadInput, Unreachable
from cluster.http import Client
from cluster.records import Suspension
from controller import accepted

CALL_DEADLINE_MS = 5_000
CHANGE_DEADLINE_MS = 100_000
SETTINGS_VARIABLE = "OSCAR_HA_SETTINGS"
EXIT_NOT_READY = 3
Answer = TypeVar("Answer")

SettingsOption = typer.Option(
    None,
    "--settings",
    envvar=SETTINGS_VARIABLE,
    help="The cluster's settings file; in the lab: build/lab/cluster.toml.",
)
JsonOption = typer.Option(False, "--json", help="Print the answer as JSON.")
YesOption = typer.Option(False, "--yes", "-y", help="Do not ask.")
DryRunOption = typer.Option(
    False,
    "--dry-run",
    help="Show who would be named and why, what would be lost, the steps and how long they take; do nothing.",
)
WhyOption = typer.Option(None, "--why", help="Kept in the history and the audit log.")
ROLE_COLOURS: Mapping[str, str] = {"primary": "bold green", "standby": "green", "joining": "yellow", "fenced": "yellow"}


def status(settings_file: Path | None = SettingsOption, as_json: bool = JsonOption) -> None:
    """Show the cluster: who is the primary, who is current, would a failover work. Ends with 3 when it would not."""
    answer = ask(settings_file, lambda client, url: client.get(f"{url}/v1/cluster", deadline_ms=CALL_DEADLINE_MS))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print_status(answer)
        _print_mass_changes(answer)
        _print_rescues(answer)
    if not answer["ready"]:
        raise typer.Exit(EXIT_NOT_READY)


def switchover(
    to: str | None = typer.Option(None, "--to", help="The node to become primary; the best one if not given."),
    dry_run: bool = DryRunOption,
    yes: bool = YesOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Change the primary as planned work: no write lost, a gap well below a second."""
    _change("switchover", settings_file, as_json, dry_run, yes, {"to": to, "why": why})


def failover(
    to: str | None = typer.Option(None, "--to", help="The node to become primary; the best one if not given."),
    allow_data_loss: str | None = typer.Option(
        None,
        "--allow-data-loss",
        metavar="transactions=N,seconds=S",
        help="Promote though acknowledged transactions may be missing, but no more than this; --dry-run prints the value to"
        " give. Either may be 'unknown': then however many.",
    ),
    primary_is_off: bool = typer.Option(
        False,
        "--primary-is-off",
        help="Nothing of the old primary runs any more: you have seen it, or cut its power. Needed where nobody can ask"
        " it and no lease proves it (durability is degraded). If it does run, two servers take writes.",
    ),
    dry_run: bool = DryRunOption,
    yes: bool = YesOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Replace the primary now, by your word. The cluster does this by itself when the primary fails.

    A failover that waits because nothing proves what was acknowledged goes on by --allow-data-loss. If more would be lost
    than you accept it refuses before anybody is promoted.
    """
    accepts = accepted.parse_text(allow_data_loss) if allow_data_loss is not None else None
    words = {"allow_data_loss": accepts, "primary_is_off": primary_is_off}
    _change("failover", settings_file, as_json, dry_run, yes, {"to": to, "why": why, **words})


def explain(
    plan: str = typer.Argument("last", help="The id of a finished plan, the number of its epoch, or 'last'."),
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Tell the story of a failover or a switchover: who asked, proof of fence, ranking, what was lost, what took how long."""
    path = f"/v1/history/{path_of(plan)}"
    found = ask(settings_file, lambda client, url: client.get(f"{url}{path}", deadline_ms=CALL_DEADLINE_MS))
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(found["story"]))


def history(
    limit: int = typer.Option(10, "--limit", min=1, max=500, help="How many, newest first."),
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Show finished failovers and switchovers with their timelines, and what was done to nodes that came back."""
    found = ask(
        settings_file, lambda client, url: client.get(f"{url}/v1/history?limit={limit}", deadline_ms=CALL_DEADLINE_MS)
    )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for record in found:
        _print_plan(record)
    events = ask(settings_file, lambda client, url: client.get(f"{url}/v1/rejoins", deadline_ms=CALL_DEADLINE_MS))
    console = Console(highlight=False)
    for event in events[:limit]:
        console.print(escape(rejoined(event)), soft_wrap=True)
    intervals = ask(settings_file, lambda client, url: client.get(f"{url}/v1/degraded", deadline_ms=CALL_DEADLINE_MS))
    for interval in intervals[:limit]:
        console.print(escape(degraded(interval)), soft_wrap=True)


def degraded(interval: Mapping[str, Any]) -> str:
    """Return a time in which no commit waited for another site, as a line of the history."""
    ended = f"to {interval['ended']}, {interval['outcome']}" if interval["ended"] else "and it lasts"
    return (f"degraded on {interval['primary']}  epoch {interval['epoch']}  from {interval['began']} {ended}"
            f"  why: {interval['why']}")  # fmt: skip


def path_of(node: str) -> str:
    """Return a node's name as it stands in a path: whatever was typed, it names a node or none, never another path."""
    return quote(node, safe="", errors="surrogateescape")


def _change(
    verb: str, settings_file: Path | None, as_json: bool, dry_run: bool, yes: bool, fields: Mapping[str, Any]
) -> None:
    body = {name: value for name, value in fields.items() if value is not None} | {"dry_run": dry_run}
    if not dry_run and not yes:
        loss = body.get("allow_data_loss")
        accepting = f", accepting the loss of {accepted.parse(loss).text}" if loss else ""  # type: ignore[union-attr]  # it is a loss
        typer.confirm(f"Start a {verb} now{accepting}?", abort=True)
    answer = ask(
        settings_file, lambda client, url: client.post(f"{url}/v1/{verb}", body, deadline_ms=CHANGE_DEADLINE_MS)
    )
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    elif dry_run:
        _print_dry_run(answer)
    else:
        _print_plan(answer)
    good = answer["works"] if dry_run else answer["outcome"] == "done"
    if not good:
        raise typer.Exit(1)


def ask(settings_file: Path | None, call: Callable[[Client, str], Awaitable[Answer]]) -> Answer:
    """Ask the controllers in turn until one answers. Raises Unreachable naming all that did not."""
    if settings_file is None:
        raise BadInput("no settings file", hint=f"give --settings FILE, or set {SETTINGS_VARIABLE}")
    loaded = settings.load(settings_file)
    token = settings.read_secret(loaded.token_file, "token_file")

    async def first_answer() -> Answer:
        failures = []
        async with Client(token) as client:
            for one in loaded.controllers:
                try:
                    return await call(client, one.url)
                except Unreachable as error:
                    failures.append(error.message)
        blind = [failure for failure in failures if "ZooKeeper" in failure]
        if blind:
            raise Unreachable(
                f"ZooKeeper is not connected ({len(blind)} of {len(loaded.controllers)} controllers say so)",
                hint="start ZooKeeper; until it is back the primary closes itself, and nothing else happens by itself",
            )
        raise Unreachable("no controller answers: " + "; ".join(failures), hint="is the cluster running?")

    return asyncio.run(first_answer())


def _print_status(answer: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    epoch = answer["epoch"]
    if answer["ready"]:
        console.print("[bold green]ready[/]: a failover would work now")
    for reason in answer["reasons"]:
        console.print(f"[bold red]not ready[/]: {escape(reason)}", soft_wrap=True)
    for mend in dict.fromkeys(reason["mend"] for reason in answer.get("readiness", ())):
        console.print(f"  what to do: {escape(mend)}", soft_wrap=True)
    for warning in answer["warnings"]:
        console.print(f"[yellow]to mend[/]: {escape(warning)}", soft_wrap=True)
    if epoch:
        holds = "; cut off, it holds" if epoch.get("on_isolation") == "hold" else ""
        console.print(f"primary [bold]{epoch['primary']}[/], epoch {epoch['epoch']} since {epoch['since']}{holds}")
        _print_ackers(console, answer["durability"] or {})
    console.print(f"leading controller: {answer['leader'] or 'none'}{', paused' if answer['paused'] else ''}")
    if answer["pause"]:
        console.print(f"[yellow]paused[/] {escape(suspended(answer['pause']))}", soft_wrap=True)
    for node in answer["nodes"]:
        if node.get("maintenance"):
            console.print(
                f"[yellow]in maintenance[/]: {node['node']} {escape(suspended(node['maintenance']))}", soft_wrap=True
            )
    console.print(_verified(answer.get("verify")))
    if answer["plan"]:
        plan = answer["plan"]
        console.print(f"[yellow]running: {plan['kind']}, next: {plan['stage']}[/] {escape(plan['waiting'] or '')}")
        if plan["trouble"] and plan["trouble"] != plan["waiting"]:
            console.print(f"  [yellow]what failed last[/]: {escape(plan['trouble'])}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("node", "site", "role", "database", "position", "behind", "why"):
        table.add_column(column, overflow="fold")
    for node in answer["nodes"]:
        role = str(node.get("role", "silent"))
        table.add_row(
            node["node"], node["site"], f"[{ROLE_COLOURS.get(role, 'red')}]{role}[/]", str(node.get("database", "?")),
            _shown(node.get("position")), _shown(node["behind"]), escape(str(node.get("why", ""))),
        )  # fmt: skip
    console.print(table)


def suspended(record: Mapping[str, Any]) -> str:
    """Return why, by whom and until when something is suspended, as a person says it."""
    return records.decode(Suspension, record, where="the answer").text


def mass_changes(replicators: Iterable[Mapping[str, Any]], nodes: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """Return a sentence for each alarm of the replicators, and what to type to keep a standby without it.

    Several may see the same.
    """
    delayed = [str(node["node"]) for node in nodes if (node.get("ordered") or {}).get("delay_seconds")]
    seen: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for replicator in replicators:
        for one in replicator.get("mass_changes") or ():
            seen.setdefault((one["table"], one["kind"], one["first"]), one)
    return [
        f"{one['table']}: {_amount(one)} since {one['since']}, first transaction {one['first']};"
        f" the position before it is {one['before'] or 'empty'};"
        f" to keep a standby without it: oscar-ha hold {delayed[0] if delayed else 'NODE'} --before {one['first']}"
        for one in seen.values()
    ]


def _amount(one: Mapping[str, Any]) -> str:
    if one["rows"] is None:
        return str(one["kind"]).replace("_", " ")
    return f"{one['kind']} of {'about ' if one['estimated'] else ''}{one['rows']:,} rows"


def _print_mass_changes(answer: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    for sentence in mass_changes(answer["replicators"], answer["nodes"]):
        console.print(f"[bold red]mass change[/]: {escape(sentence)}", soft_wrap=True)


def rejoins(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each node that is closed: which rung it stands on, and why."""
    return [
        f"{node['node']}: {_RUNGS.get(step['rung'], step['rung'])}: {step['why']}"
        for node in nodes
        if (step := node.get("rejoin")) and (_is_closed(node) or node.get("stuck") or _seeding_runs(node))
    ]


_RUNGS: Mapping[str, str] = {
    "follow": "is told to follow",
    "rescue": "what only it has is rescued first",
    "restart": "its server is started by its watchdog",
    "reseed": "is built anew by itself",
    "hold": "waits",
}


def _is_closed(node: Mapping[str, Any]) -> bool:
    return node.get("role") in ("fenced", "failed")


def _seeding_runs(node: Mapping[str, Any]) -> bool:
    return (node.get("seeding") or {"phase": "done"})["phase"] not in ("done", "failed")


def rejoined(event: Mapping[str, Any]) -> str:
    """Return one thing that was done by itself to a node that came back, as a line of the history."""
    source = f" from {event['donor']}" if event["donor"] else ""
    attempt = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
    return (f"rejoin {event['node']}: {event['rung']}{source}  epoch {event['epoch']}  {event['outcome'] or 'runs'}{attempt}"
            f"  {event['began']}  why: {event['why']}")  # fmt: skip


def rescues(nodes: Iterable[Mapping[str, Any]], primary: str | None) -> list[str]:
    """Return a sentence for each node that had what the cluster has not, and what to type next."""
    return [
        text for node in nodes if node.get("rescue") and (text := _rescue(node, node["rescue"], primary or "PRIMARY"))
    ]


def _rescue(node: Mapping[str, Any], rescue: Mapping[str, Any], primary: str) -> str:
    name, state = node["node"], rescue["state"]
    if state == "running":
        return f"{name}: what only it has is being rescued; nothing may replace it before"
    if state == "failed":
        return f"{name}: what only it has is NOT rescued: {rescue['why']}; it is tried again, keep its data"
    amount = f"{rescue['transactions']:,} transactions with {rescue['rows']:,} rows that the cluster has not"
    if state == "incomplete":
        return (f"{name}: only a part of it is rescued, {amount}: {rescue['why']}; keep its data;"
                f" look at it: oscar-ha rescue show {rescue['id']}")  # fmt: skip
    left = max(0, rescue["rows"] - rescue["replayed"])
    waits = node.get("role") in ("fenced", "failed")
    if not left and not waits:
        return ""
    steps = [f"oscar-ha rescue show {rescue['id']}", f"oscar-ha rescue replay {rescue['id']} --to {primary} --dry-run"]
    by_hand = waits and (node.get("rejoin") or {}).get("rung") == "hold"
    steps = (steps if left else []) + ([f"oscar-ha reinitialize {name}"] if by_hand else [])
    done = f" ({rescue['replayed']:,} of them are in it by now)" if rescue["replayed"] else ""
    then = f"; next: {', then '.join(steps)}" if steps else ""
    return f"{name} had {amount}{done}; they are safe in {rescue['path']}{then}"


def _print_rescues(answer: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    for sentence in rejoins(answer["nodes"]):
        console.print(f"[bold yellow]rejoin[/]: {escape(sentence)}", soft_wrap=True)
    for sentence in rescues(answer["nodes"], (answer["epoch"] or {}).get("primary")):
        console.print(f"[bold yellow]rescue[/]: {escape(sentence)}", soft_wrap=True)


def _print_ackers(console: Console, durability: Mapping[str, Any]) -> None:
    """Say who acknowledges, since when and why, and whose older word is still needed."""
    ackers = list(durability.get("ackers", ()))
    if durability.get("mode") == "degraded":
        catching_up = f"; {' and '.join(ackers)} is catching up" if ackers else ""
        console.print(
            f"[bold red]degraded[/] since {durability['since']}: no commit waits for another site"
            f"{escape(catching_up)} ({escape(str(durability.get('why')))})",
            soft_wrap=True,
        )
        return
    what = " and ".join(ackers) or "nobody"
    if len(ackers) > 1:
        what += " together"
    console.print(
        f"acknowledged by [bold]{escape(what)}[/] (acks = {durability.get('acks', 'one')}) since {durability.get('since')}"
        f"{': ' if durability.get('why') else ''}{escape(str(durability.get('why') or ''))}",
        soft_wrap=True,
    )
    for group in durability.get("former", ()):
        console.print(f"  [yellow]not settled[/]: a failover still needs the word of {escape(' or '.join(group))}")


def _verified(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "never verified: 'oscar-ha verify' compares all nodes"
    colour = "green" if record["result"] == "equal" else "red"
    found = f", different: {escape(', '.join(record['different']))}" if record["different"] else ""
    return f"last verified {record['ended']}: [{colour}]{record['result']}[/], {record['tables']} tables{found}"


def _print_plan(record: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    colour = "green" if record["outcome"] == "done" else "red"
    console.print(
        f"[bold]{record['kind']}[/] {record['from'] or ''} -> {record['to']}  epoch {record['epoch']}"
        f"  [{colour}]{escape(record['outcome'])}[/]  {record['started']}  {record['total_ms']:.0f} ms"
    )
    console.print(f"  why: {escape(record['why'])}   proof of fence: {record['proof'] or 'none'}")
    if (record.get("loss") or {"transactions": 0})["transactions"] != 0:
        console.print(
            f"  [bold red]accepted loss[/]: 'oscar-ha explain {record['id']}' tells of how much", soft_wrap=True
        )
    if record.get("trouble"):
        console.print(f"  [yellow]on the way this failed[/]: {escape(record['trouble'])}", soft_wrap=True)
    for step in record["steps"]:
        console.print(f"  {step['ms']:8.0f} ms  {step['name']:<13} {escape(step['detail'])}", soft_wrap=True)


def _print_dry_run(answer: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    for line in dry_run_lines(answer):
        console.print(escape(line), soft_wrap=True)


def dry_run_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return a dry run as people read it."""
    if answer["works"]:
        lines = [f"would name {answer['new']} instead of {answer['old']}, epoch {answer['epoch']};"
                 f" proof of fence: {answer['proof']}"]  # fmt: skip
    else:
        joins = " (it runs already, and waits)" if answer["joins"] else ""
        lines = [f"would NOT work now: the {answer['kind']} would wait{joins}: {answer['holds']}"]
    for one in answer["ranking"]:
        behind = f"{_shown(one['behind'])} transactions behind"
        lines.append(f"  {one['node']}: {', '.join(one['against'] or ['able', behind, *one['notes']])}")
    if answer["loss"] is not None:
        lines.append(f"would lose {answer['loss']['text']}")
    if answer["allow_data_loss"] is not None:
        fields = ",".join(f"{name}={value}" for name, value in answer["allow_data_loss"].items())
        lines.append(f"to accept exactly that: oscar-ha failover --allow-data-loss {fields} --why '...'")
    lines.append(f"about {answer['estimated_ms']:.0f} ms, longest {answer['dominated_by']}")
    lines += [f"  {part['ms']:8.0f} ms  {part['name']} ({part['basis']})" for part in answer["steps"]]
    return lines


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)
