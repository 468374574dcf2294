"""What is cut: which packets between which places are lost, and the router's rules that make it so. Pure.

A cut loses in silence: nobody is told, connections stay open, and what was on its way is lost too. Several cuts hold at
once; the router's rules are always made anew from all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from chaos.lab.names import SITES, node_name
from chaos.lab.topology import Topology, building, one_way_ms
from cluster.errors import BadInput

ALL = "all"
WHOLE = 100.0
"""Percent of the packets that are lost when nothing is said."""


class Only(StrEnum):
    """What of the traffic between sites is lost; what is left out goes on."""

    REPLICATION = "replication"
    """Binlog streams and acknowledgements: the ports of databases and replicators, not the clinics' connections."""
    ZOOKEEPER = "zookeeper"
    """Sessions with a member elsewhere, and the members among themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut. `one_way` loses only what goes from `here` to `there`."""

    here: str
    there: str = ALL
    one_way: bool = False
    only: Only | None = None
    keep_lan: bool = False
    """The line of the building is cut, not the servers in it: the clinic on their LAN still reaches them."""
    loss_percent: float = WHOLE
    slow: bool = False
    """Nothing is lost, and everything is late."""

    @property
    def text(self) -> str:
        """Return it as a person says it to `lab heal`."""
        return self.here if self.there == ALL else f"{self.here}:{self.there}"

    @property
    def sentence(self) -> str:
        """Return it in words."""
        loses = "loses" if self.loss_percent == WHOLE else f"loses {self.loss_percent:g} % of"
        loses = "is slow for" if self.slow else loses
        what = "everything" if self.only is None else f"{self.only.value} alone"
        way = f"{self.here} → {self.there}" if self.one_way else f"{self.here} ↔ {self.there}"
        return f"{way} {loses} {what}" + (", the LAN is kept" if self.keep_lan else "")


def parse(
    what: str, places: Iterable[str], *, one_way: bool = False, only: Only | None = None, keep_lan: bool = False,
    loss_percent: float = WHOLE, slow: bool = False,
) -> Cut:  # fmt: skip
    """Return the cut that a person means. Raises BadInput naming every place there is."""
    here, colon, there = what.partition(":")
    there = there if colon else ALL
    known = tuple(places)
    wrong = [name for name in (here, there) if name not in (*known, ALL)]
    if wrong or here == there:
        raise BadInput(
            f"{what!r} is no SITE or FROM:TO of this lab", hint=f"one or two of: {', '.join(known)}; or {ALL} for one"
        )
    if keep_lan and ALL not in (here, there):
        raise BadInput(
            f"--keep-lan with {what}: there is no LAN between two", hint=f"cut {here} from all, or leave it out"
        )
    if not 0 < loss_percent <= WHOLE:
        raise BadInput(f"--loss {loss_percent:g}", hint="choose more than 0 and at most 100 percent")
    if slow and loss_percent < WHOLE:
        raise BadInput("--slow with --loss", hint="cut twice: once slow, once with a loss")
    return Cut(
        here=here, there=there, one_way=one_way, only=only, keep_lan=keep_lan, loss_percent=loss_percent, slow=slow
    )


def lost_ways(cut: Cut, topology: Topology) -> tuple[tuple[str, str], ...]:
    """Return every (from, to) on which this cut loses."""
    here, there = _side(cut, cut.here, topology), _side(cut, cut.there, topology)
    here, there = here or _others(there, topology), there or _others(here, topology)
    ways = [(one, other) for one in here for other in there]
    if not cut.one_way:
        ways += [(other, one) for one, other in ways]
    kept = SITES if cut.only is not None else topology.places
    return tuple((one, other) for one, other in ways if one in kept and other in kept)


def rules(topology: Topology, cuts: Iterable[Cut], ports: Mapping[str, int], distance: float) -> str:
    """Return what `iptables-restore` reads in the router: delays first, so that a cut takes what is on its way too.

    `distance` multiplies the delays; with 0 there are none.
    """
    lines, cuts = ["*mangle"], tuple(cuts)
    queues = {delay: number for number, delay in enumerate(topology.delays())}
    for cut in (one for one in cuts if one.slow):
        # Before the usual length, because the first queue that a packet comes to is the only one.
        ways = (f"{_way(topology, *way)}{_what(cut, ports)}" for way in lost_ways(cut, topology))
        lines += [f"-A FORWARD {way} -j NFQUEUE --queue-num {len(queues)}" for way in ways]
    for here, there in topology.pairs() if distance > 0 else ():
        delay = one_way_ms(here, there)
        if delay > 0:
            lines.append(f"-A FORWARD {_way(topology, here, there)} -j NFQUEUE --queue-num {queues[delay]}")
    lines += ["COMMIT", "*filter"]
    for cut in (one for one in cuts if not one.slow):
        what = _what(cut, ports)
        lines += [f"-A FORWARD {_way(topology, *way)}{what} -j DROP" for way in lost_ways(cut, topology)]
    return "\n".join((*lines, "COMMIT", ""))


def _side(cut: Cut, name: str, topology: Topology) -> tuple[str, ...]:
    """Return the places on one side of a cut; none for `all`, which is whoever is not on the other."""
    if name == ALL:
        return ()
    if not cut.keep_lan:
        return (name,)
    return tuple(place for place in topology.places if building(place) == building(name))


def _others(side: tuple[str, ...], topology: Topology) -> tuple[str, ...]:
    return tuple(place for place in topology.places if place not in side)


def _way(topology: Topology, here: str, there: str) -> str:
    return f"-s {topology.host(here)} -d {topology.host(there)}"


def _what(cut: Cut, ports: Mapping[str, int]) -> str:
    found = ""
    if cut.only is not None:
        found += f" -p tcp -m multiport --ports {','.join(str(port) for port in sorted(_ports(cut.only, ports)))}"
    if cut.loss_percent < WHOLE:
        found += f" -m statistic --mode random --probability {cut.loss_percent / WHOLE:.4f}"
    return found


def _ports(only: Only, ports: Mapping[str, int]) -> Iterator[int]:
    match only:
        case Only.REPLICATION:
            for site in SITES:
                yield ports[node_name(site)]
                yield ports[f"replicator-{site}"]
        case Only.ZOOKEEPER:
            yield from (port for name, port in ports.items() if name.startswith("zookeeper-"))
