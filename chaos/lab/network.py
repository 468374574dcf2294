"""The network of a running lab as `lab.json` remembers it, and putting cuts into effect."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from chaos.lab import cuts, identity, namespaces
from chaos.lab.cuts import Cut, Only
from chaos.lab.identity import Identity, Life
from chaos.lab.topology import ROUTER, Topology
from cluster.errors import Refused

RESTORE = ("iptables-restore", "--wait", "5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Namespaces, and the one process that holds them open and makes the ways long."""

    holder: Identity
    block: str
    clinics: int
    distance: float
    """What the usual round trips are multiplied with."""
    namespaces: Mapping[str, int]
    """The holder's open files, by place; the router's too."""
    cuts: tuple[Cut, ...] = ()

    @property
    def topology(self) -> Topology:
        return Topology(self.block, self.clinics)

    @property
    def hosts(self) -> dict[str, str]:
        """Return the address of every place."""
        return {place: self.topology.host(place) for place in self.topology.places}

    @property
    def life(self) -> Life:
        return identity.life(self.holder)

    def path(self, place: str) -> str:
        """Return where the namespace of a place is found."""
        return namespaces.path(self.holder.pid, self.namespaces[place])

    def enter(self, place: str) -> tuple[str, ...]:
        """Return what goes before a command to run it in a place; nothing for what is the onlooker's."""
        return namespaces.enter(self.path(place)) if place else ()

    def with_cuts(self, *found: Cut) -> "Network":
        return replace(self, cuts=found)


def apply(network: Network, ports: Mapping[str, int]) -> None:
    """Make the router's rules anew from the cuts, all in one step. Raises Refused, and then nothing has changed."""
    if network.life is Life.ENDED:
        raise Refused(
            "the lab's network has ended with the process that held it", hint="oscar-ha lab down, then up again"
        )
    text = cuts.rules(network.topology, network.cuts, ports, network.distance)
    namespaces.run(RESTORE, text, within=network.path(ROUTER))


def document(network: Network) -> dict[str, Any]:
    """Return the JSON object of a network."""
    return asdict(network)


def parse(raw: Mapping[str, Any] | None) -> Network | None:
    """Return the network in a JSON object. Raises KeyError or TypeError when it is none."""
    if raw is None:
        return None
    found = [Cut(**{**one, "only": Only(one["only"]) if one["only"] else None}) for one in raw["cuts"]]
    return Network(**{**raw, "holder": Identity(**raw["holder"]), "cuts": tuple(found)})
