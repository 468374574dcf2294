"""What the storm and the attack both ask of a running cluster: whether it is whole, who plays which part, what has ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chaos.attack.catalogue import Parts
from chaos.history import outage_ms
from chaos.lab import ledger, process
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from chaos.lab.names import Part
from chaos.traffic import Traffic
from cluster import clock
from cluster.clock import Nanos


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that nobody ended for us to know, and what it said last."""

    part: Part
    said: str


def not_whole(state: Mapping[str, Any]) -> str:
    """Return what a cluster lacks for a failover to work and every archive and standby to be in use."""
    if not state.get("ready"):
        return ", ".join(map(str, state.get("reasons", []))) or "not ready"
    if state.get("plan"):
        return f"a {state['plan'].get('kind')} runs"
    for node in state["nodes"]:
        if node.get("role") != "primary" and not (node.get("role") == "standby" and node.get("replicating")):
            return f"{node['node']} is {node.get('role')}: {node.get('why')}"
    for one in state["replicators"]:
        if not one.get("connected") or "is missing" in str(one.get("why")) or one.get("damaged_files"):
            return f"the replicator of {one['site']}: {one.get('why')}"
    return ""


def not_whole_by_all(states: Sequence[Mapping[str, Any]]) -> str:
    """Return what is missing by the word of any controller: one that was frozen tells for a moment of before."""
    epochs = {str((state.get("epoch") or {}).get("epoch")) for state in states}
    if len(epochs) != 1:
        return f"the controllers tell of epochs {', '.join(sorted(epochs))}"
    return next(filter(None, map(not_whole, states)), "")


def playing(state: Mapping[str, Any], before: Parts) -> Parts:
    """Return who plays which part by what a controller said; what it does not know is as it was before."""
    sites = {str(one["node"]): str(one["site"]) for one in state.get("nodes", [])}
    epoch, durability = state.get("epoch") or {}, state.get("durability") or {}
    leader = str(state.get("leader") or "").removeprefix("controller-")
    return replace(
        before,
        primary=sites.get(str(epoch.get("primary")), before.primary),
        ackers=tuple(map(str, durability.get("ackers") or before.ackers)),
        leader=leader if leader in sites.values() else before.leader,
    )


def ended(directory: Path, counts: Callable[[Part], bool] = lambda _: True) -> tuple[Ended, ...]:
    """Return every process of the lab that has ended, of those that count."""
    layout = Layout(directory)
    lab = ledger.require(layout)
    dead = [part for part in lab.parts if counts(part) and part.name in lab.started]
    return tuple(
        Ended(part, process.last_error(layout.log(part.name), lab.started[part.name].log_offset))
        for part in dead
        if lab.started[part.name].life is Life.ENDED
    )


WRITES_LOOKED_BACK = 300


def marks(traffic: Traffic) -> list[int]:
    """Return where each clinic's history is now, less what a pause may have begun with."""
    return [max(0, len(writer.history) - WRITES_LOOKED_BACK) for writer in traffic.writers]


def longest_pause_ms(traffic: Traffic, since: Sequence[int], start: Nanos) -> float | None:
    """Return the longest pause of a clinic that overlaps the time from `start` to now; None when none is known."""
    end = clock.now()
    gaps = [
        outage_ms(writer.history[mark:], writer.clinic.name, start=start, end=end)
        for writer, mark in zip(traffic.writers, since, strict=True)
    ]
    return max((gap for gap in gaps if gap is not None), default=None)
