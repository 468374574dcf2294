"""What a cut loses, in words and as the router's rules; where everything is; and how the kernel's questions are read."""

import struct
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, strategies

from chaos.lab import network, render
from chaos.lab.cuts import ALL, Cut, Only, lost_ways, parse, rules
from chaos.lab.identity import Identity
from chaos.lab.layout import Layout, Request, Wires, check, kinds, port_names, settings_of
from chaos.lab.names import SITES, Kind
from chaos.lab.network import Network
from chaos.lab.topology import ROUTER, Topology, one_way_ms, place_of, plug_in
from chaos.lab.wire import ATTRIBUTE_PACKET, PACKET, decode, encode
from cluster import settings
from cluster.errors import BadInput

TOPOLOGY = Topology("198.18.7", clinics=2)
PLACES = TOPOLOGY.places
REQUEST = Request(directory=Path("/tmp/lab"), clinics=2, zookeepers=3, wires=Wires.NAMESPACES)
PORTS = {name: 20_000 + number for number, name in enumerate(port_names(REQUEST))}
NETWORK = Network(
    holder=Identity(1, 2), block="198.18.7", clinics=2, distance=1.0, namespaces={ROUTER: 5, "toronto": 6}
)


def test_a_site_that_is_cut_off_reaches_nobody_and_nobody_reaches_it() -> None:
    others = set(PLACES) - {"clinic"}

    lost = set(lost_ways(Cut(here="clinic"), TOPOLOGY))

    assert lost == {("clinic", other) for other in others} | {(other, "clinic") for other in others}


def test_a_line_that_is_cut_leaves_the_lan_and_takes_the_clinic_on_it() -> None:
    lost = set(lost_ways(Cut(here="clinic", keep_lan=True), TOPOLOGY))

    assert ("clinic-1", "clinic") not in lost
    assert {("clinic-1", "toronto"), ("clinic-1", "clinic-2"), ("clinic-2", "clinic"), ("clinic", "toronto")} <= lost
    assert not {("toronto", "montreal"), ("clinic-2", "toronto")} & lost


def test_one_way_loses_what_goes_from_the_first_to_the_second() -> None:
    assert lost_ways(Cut(here="toronto", there="clinic", one_way=True), TOPOLOGY) == (("toronto", "clinic"),)
    towards = lost_ways(Cut(here=ALL, there="clinic", one_way=True), TOPOLOGY)
    assert towards == tuple((other, "clinic") for other in PLACES if other != "clinic")


@pytest.mark.parametrize("only", list(Only))
def test_a_part_of_the_traffic_is_lost_between_sites_and_never_at_a_clinic(only: Only) -> None:
    cut = Cut(here="clinic", only=only)

    assert all(here in SITES and there in SITES for here, there in lost_ways(cut, TOPOLOGY))
    lines = [line for line in rules(TOPOLOGY, [cut], PORTS, 1.0).splitlines() if "DROP" in line]
    assert len(lines) == 4
    ports = {int(port) for port in lines[0].split("--ports ")[1].split()[0].split(",")}
    named = {"replication": ("db-toronto", "replicator-montreal"), "zookeeper": ("zookeeper-2/quorum", "zookeeper-1")}
    assert all(PORTS[name] in ports for name in named[only.value])
    assert PORTS["db-clinic/watchdog"] not in ports
    assert len(ports) <= 15, "the kernel's multiport takes no more"


def test_some_percent_are_lost_by_chance() -> None:
    text = rules(TOPOLOGY, [Cut(here="clinic", there="toronto", loss_percent=20)], PORTS, 1.0)

    assert text.count("-m statistic --mode random --probability 0.2000 -j DROP") == 2


def test_a_slow_way_loses_nothing_and_its_length_comes_before_the_usual_one() -> None:
    """The first queue that a packet comes to is the only one."""
    lines = rules(TOPOLOGY, [Cut(here="clinic", there="toronto", slow=True)], PORTS, 1.0).splitlines()
    slow = f"--queue-num {len(TOPOLOGY.delays())}"
    way = f"-s {TOPOLOGY.host('clinic')} -d {TOPOLOGY.host('toronto')} "
    of_the_way = [line for line in lines if way in line]

    assert [slow in line for line in of_the_way] == [True, False]
    assert sum(slow in line for line in lines) == 2
    assert not any("DROP" in line for line in lines)
    assert slow in rules(TOPOLOGY, [Cut(here="clinic", slow=True)], PORTS, 0.0), "also where there are no other lengths"


def test_slow_and_lossy_are_two_cuts() -> None:
    with pytest.raises(BadInput, match="--slow"):
        parse("clinic", PLACES, slow=True, loss_percent=20.0)


def test_ways_are_as_long_as_in_life_and_a_cut_takes_what_is_on_its_way() -> None:
    text = rules(TOPOLOGY, [Cut(here="clinic")], PORTS, 1.0)

    assert (one_way_ms("clinic", "toronto"), one_way_ms("clinic-1", "montreal")) == (4.0, 7.5)
    assert one_way_ms("clinic-1", "clinic") == 0.0
    assert one_way_ms("clinic-2", "clinic") > 0.0
    assert "-s 198.18.7.6 -d 198.18.7.10 -j NFQUEUE --queue-num 0" in text
    assert text.index("NFQUEUE") < text.index("DROP")
    assert "NFQUEUE" not in rules(TOPOLOGY, [], PORTS, 0.0)


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("ottawa", {}), ("", {}), ("clinic:clinic", {}), ("all", {}), ("clinic:", {}), ("a:b:c", {}),
        ("clinic:toronto", {"keep_lan": True}), ("clinic", {"loss_percent": 0}), ("clinic", {"loss_percent": 101}),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_what_can(what: str, options: dict[str, float]) -> None:
    with pytest.raises(BadInput) as raised:
        parse(what, PLACES, **options)  # type: ignore[arg-type]  # the table holds both kinds

    assert raised.value.hint


@given(
    strategies.sampled_from(("clinic", "all:clinic", "clinic:all", "toronto:montreal", "clinic-2:clinic")),
    strategies.booleans(), strategies.sampled_from((None, *Only)), strategies.floats(0.01, 100),
)  # fmt: skip
def test_what_is_cut_is_remembered(what: str, one_way: bool, only: Only | None, loss: float) -> None:
    cut = parse(what, PLACES, one_way=one_way, only=only, loss_percent=loss)
    known = NETWORK.with_cuts(cut, Cut(here="clinic", keep_lan=True))

    assert network.parse(network.document(known)) == known
    assert parse(cut.text, PLACES).text == cut.text
    assert cut.sentence


def test_every_process_is_at_home_and_finds_the_others() -> None:
    check(REQUEST)
    raw = settings_of(REQUEST, PORTS, NETWORK.hosts)
    loaded = settings.check(tomllib.loads(render.toml(raw)))
    member = kinds(REQUEST.parts, Kind.ZOOKEEPER)[1]
    text = render.zookeeper(Layout(REQUEST.directory), member, PORTS, 3, NETWORK.hosts)

    assert [node.host for node in loaded.nodes] == ["198.18.7.6", "198.18.7.10", "198.18.7.14"]
    assert {one.site: one.host for one in loaded.replicators} == {site: TOPOLOGY.host(site) for site in SITES}
    assert [clinic.host for clinic in loaded.clinics] == [TOPOLOGY.host("clinic-1"), TOPOLOGY.host("clinic-2")]
    assert loaded.zookeeper[1] == f"198.18.7.10:{PORTS['zookeeper-2']}"
    assert "clientPortAddress=198.18.7.10" in text
    assert "server.3=198.18.7.14:" in text
    assert {place_of(part) for part in REQUEST.parts} == {*PLACES, ""}, "Prometheus is the onlooker's"
    assert NETWORK.enter("toronto") == ("nsenter", "--net=/proc/1/fd/6", "--")


def test_a_single_zookeeper_cannot_be_at_three_sites() -> None:
    with pytest.raises(BadInput, match="choose 3, one in each site"):
        check(Request(directory=Path("/tmp/lab"), wires=Wires.NAMESPACES))


def test_twenty_clinics_have_addresses_of_their_own_in_one_block() -> None:
    found = Topology("198.18.7", clinics=20)
    addresses = [end for place in found.places for end in (found.host(place), found.router(place))]

    assert len(set(addresses)) == 2 * 23
    assert max(int(address.rsplit(".", 1)[1]) for address in addresses) < 255
    names = plug_in(found, "oha12345678", "home", dict.fromkeys(found.places, "file"))
    assert all(len(line.split()[3]) < 16 for line in names if line.startswith("link add")), (
        "a device's name has 15 letters"
    )


@given(strategies.binary(max_size=200))
def test_whatever_the_kernel_says_is_read_to_its_end(data: bytes) -> None:
    assert all(0 <= queue < 65_536 and number < 2**32 for queue, number in decode(data))


@given(strategies.lists(strategies.tuples(strategies.integers(0, 65_535), strategies.integers(0, 2**32 - 1))))
def test_every_question_is_read(asked: list[tuple[int, int]]) -> None:
    data = b"".join(
        encode(PACKET, queue, ATTRIBUTE_PACKET, struct.pack(">IHBx", number, 8, 2)) for queue, number in asked
    )

    assert list(decode(data)) == asked
