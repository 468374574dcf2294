"""`oscar-ha pause`, `resume` and `maintenance`: what does not happen by itself for a while, by a person's word."""

import getpass
import json
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from cluster.errors import BadInput
from cluster.orders import seconds_of
from controller.operator_command import CALL_DEADLINE_MS, JsonOption, SettingsOption, WhyOption, ask, path_of, suspended

ForOption = typer.Option(None, "--for", help="For how long: 2h, 30m, 90s, 2d; until it is taken back if not given.")


class Switch(StrEnum):
    """Whether somebody works on it."""

    ON = "on"
    OFF = "off"


def pause(
    why: str | None = WhyOption,
    lasts: str | None = ForOption,
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Stop all automatic action, for maintenance. A failure during a pause waits for its end, or for 'oscar-ha resume'.

    What keeps the cluster safe goes on: a primary that loses its lease closes itself. Given again it replaces what was said.
    """
    body = _body(why, lasts)
    answer: dict[str, Any] = ask(
        settings_file, lambda client, url: client.post(f"{url}/v1/pause", body, deadline_ms=CALL_DEADLINE_MS)
    )
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        typer.echo(
            f"paused {suspended(answer['pause'])}\nnothing happens by itself until then, or until 'oscar-ha resume'"
        )


def resume(settings_file: Path | None = SettingsOption) -> None:
    """Allow automatic action again: after 'oscar-ha pause', or after too many automatic failovers."""
    ask(settings_file, lambda client, url: client.delete(f"{url}/v1/pause", deadline_ms=CALL_DEADLINE_MS))
    typer.echo("resumed")


def maintenance(
    node: str = typer.Argument(..., help="The node somebody works on; never the primary."),
    switch: Switch = typer.Argument(..., help="Whether somebody does."),
    lasts: str | None = ForOption,
    why: str | None = WhyOption,
    force: bool = typer.Option(False, "--force", help="Also if it is the only standby that is current."),
    settings_file: Path | None = SettingsOption,
    as_json: bool = JsonOption,
) -> None:
    """Say that somebody works on a node, or no longer.

    Meanwhile it is no candidate, its server and its replication are not started and its data not replaced by itself, and nothing
    that is wrong with it is a warning. What keeps the cluster safe goes on: it is never writable. The primary is first switched
    away from. Ends with 1 when that is refused, 2 for a wrong argument.
    """
    url_of = f"/v1/nodes/{path_of(node)}/maintenance"
    if switch is Switch.OFF:
        if lasts is not None or force:
            raise BadInput("--for and --force go with 'on'", hint=f"oscar-ha maintenance {node} off")
        answer: dict[str, Any] = ask(
            settings_file, lambda client, url: client.delete(f"{url}{url_of}", deadline_ms=CALL_DEADLINE_MS)
        )
        said = f"{node} is a node like the others again"
    else:
        body = {**_body(why, lasts), "force": force}
        answer = ask(
            settings_file, lambda client, url: client.post(f"{url}{url_of}", body, deadline_ms=CALL_DEADLINE_MS)
        )
        said = f"{node} is in maintenance {suspended(answer['maintenance'])}"
    typer.echo(json.dumps(answer, indent=2) if as_json else said)


def _body(why: str | None, lasts: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"who": f"{_user()}@{socket.gethostname()}"}
    if why is not None:
        body["why"] = why
    if lasts is not None:
        body["for_seconds"] = seconds_of(lasts, "a time")
    return body


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # nobody has this number here, as in a container
        return "somebody"
