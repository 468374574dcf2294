"""The names of what a lab runs, and what a person may call them.

One process is called by its name (`db-clinic`), a whole host or site by a group (`host:db-clinic`, `site:toronto`).
HAProxy belongs to its clinic and Prometheus to the onlooker: no site takes them down. A single ZooKeeper stands
outside the three sites too, because a site must be able to fail without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cluster.errors import BadInput

SITES = ("clinic", "toronto", "montreal")
"""In order of server id. The first holds the primary at the beginning."""
CLINICS_MAX = 20
ZOOKEEPERS = (1, 3)


class Kind(StrEnum):
    """What a process is."""

    ZOOKEEPER = "zookeeper"
    DATABASE = "database"
    WATCHDOG = "watchdog"
    REPLICATOR = "replicator"
    CONTROLLER = "controller"
    HAPROXY = "haproxy"
    PROMETHEUS = "prometheus"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the lab. `site` and `node` are empty for what belongs to none."""

    name: str
    kind: Kind
    site: str = ""
    node: str = ""
    number: int = 0
    """Of a ZooKeeper or a clinic, from 1."""


def node_name(site: str) -> str:
    """Return the name of the database server of a site."""
    return f"db-{site}"


def clinic_name(number: int) -> str:
    """Return the name of a clinic."""
    return f"clinic-{number}"


def parts(clinics: int, zookeepers: int) -> tuple[Part, ...]:
    """Return all processes of a lab, in the order in which they are started."""
    found = [
        Part(f"zookeeper-{number}", Kind.ZOOKEEPER, site=SITES[number - 1] if zookeepers > 1 else "", number=number)
        for number in range(1, zookeepers + 1)
    ]
    found += [Part(node_name(site), Kind.DATABASE, site=site, node=node_name(site)) for site in SITES]
    found += [Part(f"watchdog-{site}", Kind.WATCHDOG, site=site, node=node_name(site)) for site in SITES]
    found += [Part(f"replicator-{site}", Kind.REPLICATOR, site=site) for site in SITES]
    found += [Part(f"controller-{site}", Kind.CONTROLLER, site=site) for site in SITES]
    found += [Part(f"haproxy-{clinic_name(number)}", Kind.HAPROXY, number=number) for number in range(1, clinics + 1)]
    return (*found, Part("prometheus", Kind.PROMETHEUS))


def select(what: str, known: Sequence[Part]) -> tuple[Part, ...]:
    """Return the processes that WHAT means. Raises BadInput listing every name there is."""
    group, colon, name = what.partition(":")
    if not colon:
        chosen = tuple(part for part in known if part.name == what)
    elif group == "site":
        chosen = tuple(part for part in known if part.site and part.site == name)
    elif group == "host":
        chosen = tuple(part for part in known if part.node and part.node == name)
    else:
        chosen = ()
    if not chosen:
        raise BadInput(f"the lab has no {what!r}", hint=f"one of: {', '.join(choices(known))}")
    return chosen


def choices(known: Sequence[Part]) -> tuple[str, ...]:
    """Return every WHAT that `select` takes."""
    nodes = dict.fromkeys(part.node for part in known if part.node)
    sites = dict.fromkeys(part.site for part in known if part.site)
    names = (part.name for part in known)
    return (*names, *(f"host:{node}" for node in nodes), *(f"site:{site}" for site in sites))
