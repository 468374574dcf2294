"""`lab status`: what lives, who is the primary, and whether a failover would work, on one screen.

`gather` asks, `table` and `headline` only show. Who does not answer is said, never left out.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from chaos.lab import ledger, probe
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from chaos.lab.names import SITES, Kind, node_name
from chaos.lab.network import Network
from cluster import settings

COLOURS: Mapping[str, str] = {
    "primary": "bold green", "standby": "green", "joining": "yellow", "fenced": "yellow", "failed": "bold red",
    "running": "green", "frozen": "cyan", "ended": "bold red",
}  # fmt: skip
SHOWN: Mapping[str, str] = {"running": "up"}
"""The usual state is the shortest word, so that the others stand out."""
MS_PER_SECOND = 1000


def gather(directory: Path) -> dict[str, Any]:
    """Return all that is known of a lab, as `lab status --json` prints it. Raises BadInput when there is none."""
    layout = Layout(directory)
    lab = ledger.require(layout)
    lives = {name: one.life for name, one in lab.started.items()}
    state, silent = None, ["the lab has not written its settings"]
    if layout.settings.exists():
        state, silent = probe.cluster(settings.load(layout.settings))
    if state is not None:
        state.pop("controllers", None)
    return {
        "directory": str(directory),
        "state": lab.state,
        "ready": bool(state and state.get("ready")),
        "reasons": list((state or {}).get("reasons", [])) or ([] if state else ["no controller answers"]),
        "silent": silent,
        "processes": {
            part.name: {
                "kind": part.kind.value,
                "site": part.site or None,
                "pid": lab.started[part.name].pid if part.name in lab.started else None,
                "life": lives.get(part.name, Life.ENDED).value,
            }
            for part in lab.parts
        },
        "network": None if lab.network is None else _network(lab.network),
        "cluster": state,
    }


def _network(found: Network) -> dict[str, Any]:
    return {
        "life": found.life.value,
        "hosts": found.hosts,
        "namespaces": {place: found.path(place) for place in found.namespaces},
        "distance": found.distance,
        "cuts": [{**asdict(one), "sentence": one.sentence} for one in found.cuts],
    }


def network_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what is cut, in rich markup; nothing for a lab on loopback."""
    network = found["network"]
    if network is None:
        return []
    if network["life"] == Life.ENDED.value:
        return ["[bold red]the network has ended[/]: nobody reaches anybody; oscar-ha lab down, then up again"]
    return [f"[bold red]cut[/]: {escape(one['sentence'])}" for one in network["cuts"]]


def headline(found: Mapping[str, Any]) -> list[str]:
    """Return the lines above the table, in rich markup: the one thing to know, then why not if not."""
    state = found["cluster"]
    if state is None:
        return ["[bold red]no controller answers[/]", *(f"  {escape(line)}" for line in found["silent"])]
    epoch = state.get("epoch") or {}
    durability = state.get("durability") or {}
    ackers = " and ".join(durability.get("ackers", [])) or "nobody"
    lines = [
        f"primary [bold green]{epoch.get('primary', 'none')}[/], epoch {epoch.get('epoch', 'none')}, "
        f"every commit is acknowledged by [bold]{ackers}[/] ({durability.get('mode', 'unknown')})"
    ]
    if state.get("paused"):
        lines.append("[bold yellow]paused[/]: nothing happens by itself")
    plan = state.get("plan")
    if plan:
        lines.append(
            f"[bold yellow]{plan.get('kind', 'plan')} is running[/]: {plan.get('old')} -> {plan.get('candidate') or 'nobody yet'}"
        )
    if found["ready"]:
        lines.append("[bold green]ready[/]: a failover would work now")
    lines += [f"[bold red]not ready[/]: {escape(reason)}" for reason in found["reasons"]]
    lines += [f"[yellow]to mend[/]: {escape(warning)}" for warning in state.get("warnings", [])]
    return lines + [f"[yellow]silent[/]: {escape(line)}" for line in found["silent"]]


def table(found: Mapping[str, Any]) -> Table:
    """Return one row a site."""
    view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    with_zookeeper = any(_zookeeper(found, site) for site in SITES)
    titles = ("site", "database", "role", "behind", "watchdog", "replicator", "controller")
    for title in (*titles, *(("zookeeper",) if with_zookeeper else ())):
        view.add_column(title, no_wrap=True)
    state = found["cluster"] or {}
    nodes = {node["node"]: node for node in state.get("nodes", [])}
    replicators = {one["site"]: one for one in state.get("replicators", [])}
    for site in SITES:
        node = nodes.get(node_name(site), {})
        role = str(node.get("role") or "unknown")
        leads = " [bold]leads[/]" if state.get("leader") == f"controller-{site}" else ""
        cells = [
            site,
            _life(found, node_name(site)),
            f"[{COLOURS.get(role, 'red')}]{role}[/]",
            _lag(node),
            _life(found, f"watchdog-{site}"),
            _replicator(found, site, replicators.get(site, {})),
            _life(found, f"controller-{site}") + leads,
        ]
        view.add_row(*cells, *((_zookeeper(found, site),) if with_zookeeper else ()))
    return view


def others(found: Mapping[str, Any]) -> str:
    """Return a line with everything that belongs to no site."""
    names = [name for name, one in found["processes"].items() if one["site"] is None]
    return "  ".join(f"{name} {_life(found, name)}" for name in names)


def _life(found: Mapping[str, Any], name: str) -> str:
    life = str(found["processes"].get(name, {}).get("life", "none"))
    return f"[{COLOURS.get(life, 'red')}]{SHOWN.get(life, life)}[/]"


def _zookeeper(found: Mapping[str, Any], site: str) -> str:
    names = [
        name for name, one in found["processes"].items() if one["kind"] == Kind.ZOOKEEPER.value and one["site"] == site
    ]
    return _life(found, names[0]) if names else ""


def _lag(node: Mapping[str, Any]) -> str:
    lag = node.get("lag_ms")
    if node.get("role") != "standby":
        return ""
    if ordered := node.get("ordered_text"):
        return str(ordered)
    return "unknown" if lag is None else f"{lag / MS_PER_SECOND:.1f} s"


def _replicator(found: Mapping[str, Any], site: str, report: Mapping[str, Any]) -> str:
    text = _life(found, f"replicator-{site}")
    if report.get("acknowledging"):
        return f"{text} [bold]acks[/]"
    return f"{text} [yellow]waits[/]" if report.get("connected") is False else text
