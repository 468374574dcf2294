"""Where the places of a lab are and how far apart: one address each, one router between them. Pure.

A place is a host that fails as one: the servers of a site, or a clinic's HAProxy. The first clinic is in the building of
the first site, on its LAN; every other one is somewhere else. The onlooker, who is the machine itself, is at no distance
from anybody and is never cut off: it is the tests and the commands, not a part of the cluster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chaos.lab.names import SITES, Kind, Part, clinic_name

ROUND_TRIP_MS: Mapping[frozenset[str], float] = {
    frozenset(("clinic", "toronto")): 8.0,
    frozenset(("clinic", "montreal")): 15.0,
    frozenset(("toronto", "montreal")): 8.0,
}
"""Between two sites."""
ELSEWHERE_MS: Mapping[str, float] = {"clinic": 8.0, "toronto": 8.0, "montreal": 15.0}
"""From a clinic in another town to each site."""
SLOW_ONE_WAY_MS = 75.0
"""What a way that was made slow takes, whatever it usually takes: 150 ms there and back."""
JITTER_MS = 0.5
"""A packet may be this much later, each way."""
ROUTER, ONLOOKER, DEVICE = "router", "onlooker", "eth0"
BLOCKS = tuple(f"198.{second}.{third}" for second in (18, 19) for third in range(256))
"""Addresses set aside for tests of networks (RFC 2544), which nobody routes; one block of 256 is one lab's."""
PREFIX = 30


def building(place: str) -> str:
    """Return the site on whose LAN a place is; a clinic elsewhere has a LAN of its own."""
    return SITES[0] if place == clinic_name(1) else place


def place_of(part: Part) -> str:
    """Return where a process runs; empty for the onlooker's own, and for a single ZooKeeper, which no site takes down."""
    return clinic_name(part.number) if part.kind is Kind.HAPROXY else part.site


def one_way_ms(here: str, there: str) -> float:
    """Return how long a packet is on its way from one place to another."""
    one, other = building(here), building(there)
    if one == other:
        return 0.0
    between = ROUND_TRIP_MS.get(frozenset((one, other)))
    if between is None:
        site = one if one in SITES else other
        between = ELSEWHERE_MS.get(site, max(ELSEWHERE_MS.values()))
    return between / 2


@dataclass(frozen=True, slots=True)
class Topology:
    """The addresses of one lab: place number N has the N-th four of the block, its router's end before its own."""

    block: str
    clinics: int

    @property
    def places(self) -> tuple[str, ...]:
        return (*SITES, *(clinic_name(number) for number in range(1, self.clinics + 1)))

    def host(self, place: str) -> str:
        """Return the address of a place, or the onlooker's."""
        return f"{self.block}.{self._base(place) + 2}"

    def router(self, place: str) -> str:
        """Return the router's address on the line to a place."""
        return f"{self.block}.{self._base(place) + 1}"

    def _base(self, place: str) -> int:
        return 4 * (ONLOOKER, *self.places).index(place)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield every (from, to)."""
        return ((here, there) for here in self.places for there in self.places if here != there)

    def delays(self) -> tuple[float, ...]:
        """Return every length of a way that there is, in milliseconds; the number of one is the number of its queue."""
        return tuple(sorted({one_way_ms(*pair) for pair in self.pairs()} - {0.0}))


def plug_in(topology: Topology, host_device: str, home: str, files: Mapping[str, str]) -> tuple[str, ...]:
    """Return what `ip -batch` does in the router's namespace; `files` are the others' namespaces, `home` the machine's.

    Packets are made in the size of a wire's: one that the kernel sends as 64 KiB would be lost as 64 KiB.
    """
    lines = ["link set dev lo up"]
    for place, device, peer, namespace in (
        (ONLOOKER, ONLOOKER, host_device, home),
        *((place, place, DEVICE, files[place]) for place in topology.places),
    ):
        lines += [
            f"link add name {device} gso_max_segs 1 type veth peer name {peer} gso_max_segs 1 netns {namespace}",
            f"address add {topology.router(place)}/{PREFIX} dev {device}",
            f"link set dev {device} up",
        ]
    return tuple(lines)


def plug_in_place(topology: Topology, place: str) -> tuple[str, ...]:
    """Return what `ip -batch` does in a place's namespace: all it knows is its router."""
    return (
        "link set dev lo up",
        f"address add {topology.host(place)}/{PREFIX} dev {DEVICE}",
        f"link set dev {DEVICE} up",
        f"route add default via {topology.router(place)}",
    )


def plug_in_onlooker(topology: Topology, host_device: str) -> tuple[str, ...]:
    """Return what `ip -batch` does on the machine itself: one device, and a route to this lab and nowhere else."""
    return (
        f"address add {topology.host(ONLOOKER)}/{PREFIX} dev {host_device}",
        f"link set dev {host_device} up",
        f"route add {topology.block}.0/24 via {topology.router(ONLOOKER)}",
    )
