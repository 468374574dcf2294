"""`oscar-ha delay`, `hold` and `release`: what a standby is ordered, and waiting until its watchdog obeys."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from cluster import clock, records
from cluster.errors import BadInput, OscarHaError, Unreachable
from cluster.orders import Obedience, Obeying, Order, delay_of, duration
from cluster.position import Gtid
from controller import orders
from controller.operator_command import CALL_DEADLINE_MS, JsonOption, SettingsOption, WhyOption, ask, path_of
from replicator.find_command import seconds_of

ORDER_DEADLINE_MS = 70_000
"""The archive may have to be searched for the place."""
LOOK_SECONDS = 0.25
A_TIME = re.compile(r"\d[T:]", re.IGNORECASE)
A_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
"""It would be a GTID of the domain 2026 too: nobody means that."""
STILL_SECONDS_MAX = 120.0
"""When nothing at all changes for this long the command gives up; the order stays."""
DONE: Mapping[str, frozenset[Obeying]] = {
    "delay": frozenset({Obeying.FREE, Obeying.DELAYED, Obeying.HELD, Obeying.LATE, Obeying.MOVING}),
    "hold": frozenset({Obeying.HELD, Obeying.LATE}),
    "release": frozenset({Obeying.FREE, Obeying.DELAYED}),
}
ForceOption = typer.Option(False, "--force", help="Also if it is the only standby that is current.")
DryRunOption = typer.Option(False, "--dry-run", help="Show what would be ordered, or why not; do nothing.")
WaitOption = typer.Option(True, "--wait/--no-wait", help="Stay until its watchdog has done it; or only order it.")
NodeArgument = typer.Argument(..., help="The standby.")


@dataclass(frozen=True, slots=True)
class Options:
    """What all three have."""

    settings_file: Path | None
    dry_run: bool
    wait: bool
    as_json: bool


def delay(
    node: str = NodeArgument,
    hours: str | None = typer.Option(None, "--hours", help="How far behind: 4, 0.5; or with a unit: 30m, 90s, 2d."),
    off: bool = typer.Option(False, "--off", help="No delay any more: it catches up."),
    force: bool = ForceOption,
    dry_run: bool = DryRunOption,
    wait: bool = WaitOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Let a standby stay some hours behind the primary: time to notice that somebody deleted everything.

    Its site's archive has the data at once, and acknowledges as before; only the database applies it later. A failover
    takes a delayed standby only when there is no other, and lets it catch up first. The order counts until --off.

    Ends with 0 when its watchdog obeys, 1 when it was refused or is not done, 2 for a wrong argument or setting.
    """
    if (hours is None) == (not off):
        raise BadInput("say either how long, or --off", hint="oscar-ha delay NODE --hours 4")
    seconds = 0 if hours is None else delay_of(hours)
    body = {"seconds": seconds, "force": force, "why": why}
    _give("delay", node, body, Options(settings_file, dry_run, wait, as_json))


def hold(
    node: str = NodeArgument,
    before: str | None = typer.Option(
        None,
        "--before",
        help="The first transaction that is NOT applied, as 0-1-123; or a time, as 2026-11-24T10:00 (here).",
    ),
    now: bool = typer.Option(False, "--now", help="Stop where it is."),
    force: bool = ForceOption,
    dry_run: bool = DryRunOption,
    wait: bool = WaitOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Let a standby stop just before a transaction, and stand there: the answer to "somebody deleted everything".

    Everything before it is applied, at once even if the standby is delayed; it and all that came later are not. With a time
    it is the first transaction of that second or later, by the primary's clock. The standby can be read and dumped, and
    takes part in nothing until 'oscar-ha release'. 'oscar-ha status' and 'oscar-ha archive find' name the transaction.

    Ends with 0 when it stands there, 1 when it was refused or is too late, 2 for a wrong argument or setting.
    """
    if (before is None) == (not now):
        raise BadInput("say either --before what, or --now", hint="oscar-ha hold NODE --before 0-1-123")
    body: dict[str, Any] = {"now": True} if before is None else _point(before)
    _give("hold", node, {**body, "force": force, "why": why}, Options(settings_file, dry_run, wait, as_json))


def release(
    node: str = NodeArgument,
    dry_run: bool = DryRunOption,
    wait: bool = WaitOption,
    why: str | None = WhyOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Let a standby that is held go on. A delay that was ordered counts again.

    What it was kept from is applied then: dump what you need before. Ends with 0 when it replicates again.
    """
    _give("release", node, {"why": why}, Options(settings_file, dry_run, wait, as_json))


# -- below ------------------------------------------------------------------------------------------------------------


def _point(text: str) -> dict[str, Any]:
    """Return what is asked for: a time has a T or a colon behind a digit, a transaction has neither."""
    if A_TIME.search(text):
        return {"time": seconds_of(text)}
    if A_DAY.fullmatch(text.strip()):
        raise BadInput(f"--before {text} is a day", hint=f"say when: {text.strip()}T00:00")
    try:
        return {"before": str(Gtid.parse(text))}
    except BadInput:
        raise BadInput(f"--before {text!r} is neither a transaction nor a time",
                       hint="as 0-1-123, or as 2026-11-24T10:00 (here) or 2026-11-24T15:00Z") from None  # fmt: skip


def _give(verb: str, node: str, body: Mapping[str, Any], options: Options) -> None:
    asked = {name: value for name, value in body.items() if value is not None} | {"dry_run": options.dry_run}
    answer: dict[str, Any] = ask(
        options.settings_file,
        lambda client, url: client.post(f"{url}/v1/nodes/{path_of(node)}/{verb}", asked, deadline_ms=ORDER_DEADLINE_MS),
    )
    order = records.decode(Order, answer["order"], where="the answer")
    if not options.as_json:
        _say_order(node, answer, order)
    told: Obedience | None = None
    if options.wait and not options.dry_run:
        told = _obeyed(verb, node, order, options)
    if options.as_json:
        typer.echo(json.dumps({**answer, "obeys": None if told is None else asdict(told)}, indent=2))
    elif told is not None:
        _say_done(node, order, told)
    if told is not None and told.state is Obeying.LATE:
        raise OscarHaError(f"{node} had applied {told.before} already when it was told: it stands still behind it",
                           hint=f"oscar-ha release {node}, and hold another standby; or restore to a point in time")  # fmt: skip


def _obeyed(verb: str, node: str, order: Order, options: Options) -> Obedience:
    """Wait until the watchdog has done it. Raises Unreachable when nothing changes for too long."""
    done = DONE["hold"] if verb != "delay" and order.hold is not None else DONE[verb]
    seen, still_since, said = "", clock.now(), False
    while True:
        found: dict[str, Any] = {}
        with suppress(Unreachable):  # a failover may be under way: the order is written, its watchdog obeys
            found = _look(options.settings_file, node)
        told = records.decode(Obedience, found["order"], where=f"the report of {node}") if found.get("order") else None
        state = orders.obeyed(told, order)
        if told is not None and state in done:
            return told
        if state is Obeying.MOVING and not said and not options.as_json:
            said = True
            typer.echo(f"{node} runs forward, it is at {found.get('position')}", err=True)
        if (now_seen := f"{state} {found.get('position')}") != seen:
            seen, still_since = now_seen, clock.now()
        elif clock.ms_between(still_since, clock.now()) > STILL_SECONDS_MAX * 1000:
            raise Unreachable(f"it is ordered, but {node} does not do it: {found.get('why') or 'its watchdog is silent'}",
                              hint="mend that: the order stands, and is obeyed then")  # fmt: skip
        time.sleep(LOOK_SECONDS)


def _look(settings_file: Path | None, node: str) -> dict[str, Any]:
    answer = ask(settings_file, lambda client, url: client.get(f"{url}/v1/cluster", deadline_ms=CALL_DEADLINE_MS))
    return dict(next(one for one in answer["nodes"] if one["node"] == node))


def _say_order(node: str, answer: Mapping[str, Any], order: Order) -> None:
    console = Console(highlight=False, soft_wrap=True)
    would = "would be" if answer["dry_run"] else "is"
    console.print(f"[bold]{escape(node)}[/] {would} {escape(order.text or 'free: nothing is ordered any more')}")
    if answer["place"]:
        seconds = answer["place"]["seconds"]
        console.print(f"  the first transaction that is not applied: {answer['place']['gtid']},"
                      f" {clock.utc_text(seconds)} ({clock.local_text(seconds)}); everything before it is")  # fmt: skip
    for warning in answer["warnings"]:
        console.print(f"  [yellow]mind[/]: {escape(warning)}")


def _say_done(node: str, order: Order, told: Obedience) -> None:
    if told.state is Obeying.HELD:
        where = "where it was" if told.before is None else f"just before {told.before}"
        typer.echo(f"{node} stands still {where}; read and dump there, then: oscar-ha release {node}")
    elif told.state is Obeying.DELAYED:
        typer.echo(f"{node} replicates {duration(order.delay_seconds)} behind from now on")
    elif told.state is Obeying.FREE:
        typer.echo(f"{node} replicates at once")
