"""Every kind of fault that `script/chaos` knows: what it may hit, for how long, and what it needs. Pure.

A fault is a value. Who plays which part is only known when it begins, so it names the part ("the acker's replicator");
`resolve` turns that into the names of the lab.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from chaos.lab.names import SITES, node_name

LASTS_MS_MAX = 20_000.0
"""No fault lasts longer: what the cluster does by itself is judged after it."""
TWO_MAX = 2
"""So many faults at once, at most."""
LOSS_PERCENT = 20.0


class Kind(StrEnum):
    """What happens."""

    KILL = "kill -9"
    RESTARTS = "restart storm"
    POWER = "power cut of a site"
    FREEZE = "freeze"
    FREEZE_HOST = "freeze of a host"
    FREEZE_SITE = "freeze of a site"
    CUT_SITE = "site cut off"
    CUT_LINE = "line of a building cut"
    CUT_PAIR = "pair cut"
    CUT_ONE_WAY = "one direction cut"
    CUT_REPLICATION = "replication cut"
    CUT_ZOOKEEPER = "ZooKeeper cut"
    LOSS = "packet loss"
    SLOW = "slow network"
    ZOOKEEPER_MEMBER = "ZooKeeper member dies"
    ZOOKEEPER_ALL = "ZooKeeper outage"
    ARCHIVE_BYTE = "corrupted archive byte"
    DISK_FULL = "disk of an archive full"
    SWITCHOVER = "switchover asked for"


class Part(StrEnum):
    """Which process of a site."""

    DATABASE = "database"
    WATCHDOG = "watchdog"
    REPLICATOR = "replicator"
    CONTROLLER = "controller"
    HAPROXY = "HAProxy"
    ALL = "site"


class Where(StrEnum):
    """Whose, by the part it plays when the fault begins."""

    PRIMARY = "primary"
    ACKER = "acker"
    OTHER = "third site"
    """Neither the primary's nor the acker's."""
    LEADER = "leading controller"
    CLINIC = "clinic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a round."""

    kind: Kind
    part: Part
    where: Where
    begins_ms: float
    """After the beginning of its round."""
    lasts_ms: float
    """Then it is healed, whatever happened."""
    which: int = 0
    """Chooses among several."""
    times: int = 1
    """How often the same again, within `lasts_ms`."""

    @property
    def ends_ms(self) -> float:
        return self.begins_ms + self.lasts_ms

    @property
    def text(self) -> str:
        """Return it in a few words."""
        return f"{self.kind.value} ({self.where.value}'s {self.part.value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a kind may be."""

    parts: tuple[Part, ...] = (Part.ALL,)
    wheres: tuple[Where, ...] = (Where.PRIMARY, Where.ACKER, Where.OTHER)
    lasts_ms: tuple[float, float] = (0.0, 0.0)
    """From, to."""
    times: tuple[int, int] = (1, 1)
    needs_network: bool = False
    """Only in a lab whose sites are hosts of their own."""
    needs_disks: bool = False
    """Only where archives have disks of their own."""


OURS = (Part.DATABASE, Part.WATCHDOG, Part.REPLICATOR, Part.CONTROLLER)
SERVERS = (Where.PRIMARY, Where.ACKER, Where.OTHER, Where.LEADER)
CATALOGUE: Mapping[Kind, Entry] = {
    Kind.KILL: Entry(parts=(*OURS, Part.HAPROXY), wheres=SERVERS, lasts_ms=(0.0, 5_000.0)),
    Kind.RESTARTS: Entry(parts=OURS, lasts_ms=(2_000.0, 6_000.0), times=(3, 6)),
    Kind.POWER: Entry(lasts_ms=(500.0, 12_000.0)),
    Kind.FREEZE: Entry(parts=(*OURS, Part.HAPROXY), wheres=SERVERS, lasts_ms=(200.0, 12_000.0)),
    Kind.FREEZE_HOST: Entry(lasts_ms=(200.0, 15_000.0)),
    Kind.FREEZE_SITE: Entry(lasts_ms=(200.0, 15_000.0)),
    Kind.CUT_SITE: Entry(lasts_ms=(300.0, 18_000.0), needs_network=True),
    Kind.CUT_LINE: Entry(lasts_ms=(300.0, 18_000.0), needs_network=True),
    Kind.CUT_PAIR: Entry(lasts_ms=(300.0, 15_000.0), needs_network=True),
    Kind.CUT_ONE_WAY: Entry(lasts_ms=(300.0, 15_000.0), needs_network=True),
    Kind.CUT_REPLICATION: Entry(lasts_ms=(300.0, 15_000.0), needs_network=True),
    Kind.CUT_ZOOKEEPER: Entry(lasts_ms=(300.0, 15_000.0), needs_network=True),
    Kind.LOSS: Entry(lasts_ms=(3_000.0, 12_000.0), needs_network=True),
    Kind.SLOW: Entry(lasts_ms=(3_000.0, 12_000.0), needs_network=True),
    Kind.ZOOKEEPER_MEMBER: Entry(lasts_ms=(500.0, 10_000.0)),
    Kind.ZOOKEEPER_ALL: Entry(lasts_ms=(1_000.0, 12_000.0)),
    Kind.ARCHIVE_BYTE: Entry(),
    Kind.DISK_FULL: Entry(lasts_ms=(1_000.0, 12_000.0), needs_disks=True),
    Kind.SWITCHOVER: Entry(parts=(Part.DATABASE,), wheres=(Where.ACKER, Where.OTHER)),
}
"""The whole of it. A new kind needs a line here and one in `resolve`; the plan, the report and the tests follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What a plan must know of the lab."""

    clinics: int = 2
    has_network: bool = False
    """Sites are hosts of their own and can be cut off."""
    has_disks: bool = False
    """Archives have disks of their own and can be filled."""

    def able(self, kind: Kind) -> bool:
        """Return whether this kind is possible there."""
        entry = CATALOGUE[kind]
        return (self.has_network or not entry.needs_network) and (self.has_disks or not entry.needs_disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Who plays which part now, by the names of sites; who is not known is where the lab began."""

    primary: str = SITES[0]
    ackers: tuple[str, ...] = SITES[1:2]
    leader: str = SITES[0]
    clinics: tuple[str, ...] = ("clinic-1",)

    def site(self, where: Where, which: int) -> str:
        """Return the site of a part. With two ackers (or none) the third site is any that is not the primary's."""
        ackers = [site for site in SITES if site in self.ackers and site != self.primary]
        others = [site for site in SITES if site != self.primary]
        match where:
            case Where.PRIMARY | Where.CLINIC:
                return self.primary
            case Where.ACKER:
                found = ackers or others
            case Where.OTHER:
                found = [site for site in others if site not in ackers] or others
            case Where.LEADER:
                return self.leader
        return found[which % len(found)]


class Act(StrEnum):
    """How it is done to the lab."""

    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"
    FLIP = "flip"
    FILL = "fill"
    ASK = "ask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a fault comes to in this lab: an act, and the names that `lab kill`, `freeze` or `cut` takes."""

    act: Act
    names: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    """Of a cut."""

    @property
    def text(self) -> str:
        return " and ".join(self.names)


def resolve(fault: Fault, parts: Parts) -> Hit:
    """Return what the fault hits, now that it is known who plays which part."""
    site = parts.site(fault.where, fault.which)
    match fault.kind:
        case Kind.KILL | Kind.RESTARTS:
            return Hit(act=Act.KILL, names=(_process(fault, site, parts),))
        case Kind.FREEZE:
            return Hit(act=Act.FREEZE, names=(_process(fault, site, parts),))
        case Kind.POWER:
            return Hit(act=Act.KILL, names=(f"site:{site}",))
        case Kind.FREEZE_HOST:
            return Hit(act=Act.FREEZE, names=(f"host:{node_name(site)}",))
        case Kind.FREEZE_SITE:
            return Hit(act=Act.FREEZE, names=(f"site:{site}",))
        case Kind.ZOOKEEPER_MEMBER:
            return Hit(act=Act.KILL, names=(_member(site),))
        case Kind.ZOOKEEPER_ALL:
            return Hit(act=Act.KILL, names=tuple(_member(site) for site in SITES))
        case Kind.ARCHIVE_BYTE:
            return Hit(act=Act.FLIP, names=(site,))
        case Kind.DISK_FULL:
            return Hit(act=Act.FILL, names=(site,))
        case Kind.SWITCHOVER:
            return Hit(act=Act.ASK, names=(node_name(site),))
        case _:
            return _cut(fault, site, parts)


def _cut(fault: Fault, site: str, parts: Parts) -> Hit:
    others = [name for name in SITES if name != site]
    other = parts.primary if site != parts.primary else others[fault.which % len(others)]
    match fault.kind:
        case Kind.CUT_PAIR:
            return Hit(act=Act.CUT, names=(f"{site}:{other}",))
        case Kind.CUT_ONE_WAY:
            way = f"{site}:all" if fault.which % 2 else f"all:{site}"
            return Hit(act=Act.CUT, names=(way,), options={"one_way": True})
        case Kind.CUT_REPLICATION:
            return Hit(act=Act.CUT, names=(f"{site}:{other}",), options={"only": "replication"})
        case Kind.CUT_ZOOKEEPER:
            return Hit(act=Act.CUT, names=(site,), options={"only": "zookeeper"})
        case Kind.CUT_LINE:
            return Hit(act=Act.CUT, names=(site,), options={"keep_lan": True})
        case Kind.LOSS:
            return Hit(act=Act.CUT, names=(site,), options={"loss_percent": LOSS_PERCENT})
        case Kind.SLOW:
            return Hit(act=Act.CUT, names=(site,), options={"slow": True})
        case _:
            return Hit(act=Act.CUT, names=(site,))


def _process(fault: Fault, site: str, parts: Parts) -> str:
    match fault.part:
        case Part.DATABASE | Part.ALL:
            return node_name(site)
        case Part.HAPROXY:
            return f"haproxy-{parts.clinics[fault.which % len(parts.clinics)]}"
        case Part.WATCHDOG | Part.REPLICATOR | Part.CONTROLLER:
            return f"{fault.part.value}-{site}"


def _member(site: str) -> str:
    return f"zookeeper-{SITES.index(site) + 1}"
