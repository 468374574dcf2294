"""`oscar-ha reinitialize`: build a standby anew from a running server, and watch it until it is one."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cluster import clock, records
from cluster.errors import OscarHaError, Unreachable
from cluster.records import SeedPhase, SeedReport
from controller.operator_command import CALL_DEADLINE_MS, JsonOption, SettingsOption, WhyOption, YesOption, ask, path_of

BEGIN_DEADLINE_MS = 60_000
LOOK_SECONDS = 0.5
STILL_SECONDS_MAX = 600.0
"""When nothing at all changes for this long the command gives up; the seeding itself goes on if it can."""


def reinitialize(
    node: str = typer.Argument(..., help="The node to build anew; its own data is replaced."),
    donor: str | None = typer.Option(
        None, "--from", help="The node that gives its data; the best one if not given: a standby before the primary."
    ),
    force: bool = typer.Option(
        False, "--force", help="Also if it is the only standby, or has transactions of its own. Those are kept aside."
    ),
    keep: bool = typer.Option(False, "--keep-old", help="Keep the old data directory beside the new one in any case."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show who would give, and why not the others; do nothing."),
    wait: bool = typer.Option(True, "--wait/--no-wait", help="Stay until it is a standby; or only begin."),
    yes: bool = YesOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Build a standby anew from a running server, while the clinics go on writing.

    A copy is streamed from a standby (or, without one, from the primary), proven by a server that starts on it, and only
    then put in the place of the node's data directory. If anything fails the node stays as it was: run it again.

    Ends with 0 when the node is a standby, with 1 when it failed or was refused, with 2 for a wrong argument or setting.
    """
    body = {"from": donor, "force": force, "keep": keep, "why": why}
    asked = {name: value for name, value in body.items() if value is not None}
    would = _post(settings_file, node, {**asked, "dry_run": True})
    if dry_run:
        _print_json(would) if as_json else _print_plan(would)
        return
    if not yes:
        _print_plan(would)
        typer.confirm(f"Replace the data of {node} now?", abort=True)
    begun = _post(settings_file, node, {**asked, "dry_run": False})
    report = records.decode(SeedReport, begun["seeding"], where="the answer")
    if wait:
        report = _watch(settings_file, node, report, quiet=as_json)
    _print_end(node, begun, report, as_json=as_json)


def _post(settings_file: Path | None, node: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = ask(
        settings_file,
        lambda client, url: client.post(
            f"{url}/v1/nodes/{path_of(node)}/reinitialize", body, deadline_ms=BEGIN_DEADLINE_MS
        ),
    )
    return answer


def _watch(settings_file: Path | None, node: str, begun: SeedReport, *, quiet: bool) -> SeedReport:
    """Show how far it is until it is over. Raises Unreachable when nothing changes for too long."""
    report, seen, still_since = begun, "", clock.now()
    with _shown(quiet) as progress:
        task = progress.add_task(begun.phase.value, total=None)
        while not report.phase.over:
            time.sleep(LOOK_SECONDS)
            behind: object = None
            with suppress(Unreachable):  # a failover may be under way: the seeding goes on without a controller
                report, behind = _look(settings_file, node, report)
            _show(progress, task, report, behind)
            if (now_seen := f"{report} {behind}") != seen:
                seen, still_since = now_seen, clock.now()
            elif clock.ms_between(still_since, clock.now()) > STILL_SECONDS_MAX * 1000:
                raise Unreachable(f"nothing changes for {STILL_SECONDS_MAX:.0f} s", hint="look at: oscar-ha status")
    return report


def _look(settings_file: Path | None, node: str, report: SeedReport) -> tuple[SeedReport, object]:
    """Return what the node says of this seeding now, and how far it is behind the primary."""
    answer = ask(settings_file, lambda client, url: client.get(f"{url}/v1/cluster", deadline_ms=CALL_DEADLINE_MS))
    found = next(one for one in answer["nodes"] if one["node"] == node)
    told = found.get("seeding")
    if not told or told["id"] != report.id:  # its watchdog is away, or has not reported since
        return report, found["behind"]
    return records.decode(SeedReport, told, where=f"the report of {node}"), found["behind"]


def _shown(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True, highlight=False), disable=quiet)


def _show(progress: Progress, task: TaskID, report: SeedReport, behind: object) -> None:
    text = report.phase.value
    if report.phase is SeedPhase.CATCHING_UP and behind is not None:
        text = f"{text}, {behind} behind"
    total = report.bytes_total if report.phase is SeedPhase.COPYING else report.bytes or None
    progress.update(task, description=text, completed=report.bytes, total=total)


def _print_end(node: str, begun: Mapping[str, Any], report: SeedReport, *, as_json: bool) -> None:
    """Say how it ended, or that it has begun. Raises OscarHaError when it failed."""
    kept = f"; its old data is in {report.kept}" if report.kept else ""
    if as_json:
        _print_json({**begun, "seeding": asdict(report)})
    elif report.phase is SeedPhase.DONE:
        typer.echo(f"{node} is a standby again: {report.bytes:,} bytes from {report.donor} at {report.position}{kept}")
    elif not report.phase.over:
        typer.echo(f"{node} is being seeded from {report.donor}; see how far it is with: oscar-ha status")
    if report.phase is SeedPhase.FAILED:
        raise OscarHaError(f"{node} was not seeded: {report.why}", hint="mend that, then run this again")


def _print_plan(would: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"would copy [bold]{would['donor']}[/] to [bold]{would['node']}[/] (epoch {would['epoch']})")
    for one in would["donors"]:
        able = f"able, {one['role']}, {one['behind'] if one['behind'] is not None else 'unknown'} transactions behind"
        console.print(f"  {one['node']}: {escape(', '.join(one['against']) or able)}")
    for warning in would["warnings"]:
        console.print(f"  [yellow]mind[/]: {escape(warning)}", soft_wrap=True)


def _print_json(answer: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(answer, indent=2))
