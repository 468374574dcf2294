"""What everybody said last, kept beyond his silence and beyond the controllers that heard it.

A record in ZooKeeper goes with the session of who wrote it: when primary and acknowledging site are lost together, what
they had is what an operator must know. The leading controller writes it down now and then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.records import NodeReport, ReplicatorReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What somebody said last, however long ago."""

    position: str | None
    """A node's; what is durable in a replicator's archive."""
    at: str
    """When, by the clock of the controller that read it: for people."""
    version: str | None = None
    """A node's server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRecord:
    """What the leading controller saw last of everybody: nodes by name, replicators by site."""

    nodes: Mapping[str, Sighting] = field(default_factory=dict)
    sites: Mapping[str, Sighting] = field(default_factory=dict)


def sighting(report: object, known: Sighting | None, at: str) -> Sighting | None:
    """Return what is known after a report was read; who tells no position now is still known to have had one."""
    match report:
        case NodeReport(position=position, server_version=version):
            pass
        case ReplicatorReport(durable=position):
            version = None
        case _:
            return known
    if position is None and known is not None:
        position, at = known.position, known.at
    return Sighting(position=position, at=at, version=version or (known.version if known else None))
