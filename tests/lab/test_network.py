"""The network of a lab without its servers: who reaches whom under each cut, how late, and that nothing of it stays."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chaos.lab import connecting, cutting, identity, ledger, namespaces, process
from chaos.lab.cuts import Only
from chaos.lab.identity import Identity, Life
from chaos.lab.layout import FOLDERS, Layout, Request, Wires, port_names
from chaos.lab.ledger import STARTING, Ledger
from chaos.lab.network import Network
from cluster.errors import BadInput
from tests.conftest import require
from tests.lab.running import await_true

pytestmark = pytest.mark.servers

LISTEN = """
import socket, sys, threading
for port in sys.argv[2:]:
    server = socket.create_server((sys.argv[1], int(port)))
    threading.Thread(target=lambda one=server: [one.accept()[0].close() for _ in iter(int, 1)]).start()
print("ready", flush=True)
"""
CONNECT = """
import socket, sys, time
for address in sys.argv[1:]:
    host, _, port = address.partition(":")
    begun = time.monotonic()
    try:
        socket.create_connection((host, int(port)), 0.4).close()
        print((time.monotonic() - begun) * 1000)
    except TimeoutError:
        print("silence")
"""
DEADLINE_SECONDS = 20


@dataclass
class Wired:
    """A network, with somebody who listens at every place."""

    directory: Path
    network: Network
    ports: dict[str, int]
    owner: "subprocess.Popen[bytes]"

    def round_trips(self, here: str, *targets: tuple[str, str]) -> list[str]:
        """Return how long a connection took from a place to each (place, port name), or `silence`."""
        addresses = [f"{self.network.hosts[place]}:{self.ports[name]}" for place, name in targets]
        command = (*self.network.enter(here), sys.executable, "-c", CONNECT, *addresses)
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True)
        return done.stdout.split()

    def reaches(self, here: str, there: str, name: str = "db-clinic") -> bool:
        (found,) = self.round_trips(here, (there, name))
        return found != "silence"


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    directory = tmp_path_factory.mktemp("network") / "lab"
    for folder in FOLDERS:
        (directory / folder).mkdir(parents=True)
    layout, lab_id = Layout(directory), os.urandom(16).hex()
    owner = subprocess.Popen(("sleep", "600"))
    request = Request(directory=directory, clinics=2, zookeepers=3, wires=Wires.NAMESPACES, owner=owner.pid)
    ports = {name: 20_000 + number for number, name in enumerate(port_names(request))}
    lab = Ledger(lab_id=lab_id, state=STARTING, clinics=2, zookeepers=3, boot=identity.boot(), ports=ports,
                 owner=Identity(owner.pid, 0))  # fmt: skip
    ledger.write(layout, lab)
    network, why = connecting.connect(request, layout, lab_id)
    if network is None:
        owner.kill()
        require(f"network namespaces ({why})")
    assert network is not None
    ledger.write(layout, replace(lab, network=network))
    listeners = [_listen(network, place, ports) for place in network.topology.places]
    try:
        yield Wired(directory, network, ports, owner)
    finally:
        for one in listeners:
            one.kill()
            one.communicate()
        owner.kill()
        owner.wait()
        process.kill([network.holder])


def _listen(network: Network, place: str, ports: dict[str, int]) -> "subprocess.Popen[str]":
    names = ("db-clinic", "db-toronto", "replicator-toronto", "zookeeper-1", "db-clinic/watchdog")
    command = (
        *network.enter(place),
        sys.executable,
        "-c",
        LISTEN,
        network.hosts[place],
        *(str(ports[name]) for name in names),
    )
    found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "ready\n"
    return found


@pytest.fixture(autouse=True)
def healed(wired: Wired) -> Iterator[None]:
    yield
    if (wired.directory / "lab.json").exists():
        cutting.heal(wired.directory)


def test_the_places_are_as_far_apart_as_in_life(wired: Wired) -> None:
    found = wired.round_trips("clinic", *(3 * [("toronto", "db-clinic"), ("montreal", "db-clinic")]))
    lan = wired.round_trips("clinic-1", *(3 * [("clinic", "db-clinic")]))

    assert 8.0 <= min(map(float, found[0::2])) < 25.0, found
    assert 15.0 <= min(map(float, found[1::2])) < 40.0, found
    assert min(map(float, lan)) < 5.0, lan


def test_a_cut_site_is_alone_and_the_machine_itself_still_sees_it(wired: Wired) -> None:
    with cutting.while_cut(wired.directory, "clinic"):
        assert not wired.reaches("clinic", "toronto")
        assert not wired.reaches("toronto", "clinic")
        assert not wired.reaches("clinic-1", "clinic")
        assert wired.reaches("clinic-1", "toronto")
        assert wired.reaches("toronto", "montreal")
        outside = (sys.executable, "-c", CONNECT, f"{wired.network.hosts['clinic']}:{wired.ports['db-clinic']}")
        assert "silence" not in subprocess.run(outside, capture_output=True, text=True, check=True).stdout
    assert wired.reaches("clinic", "toronto")


def test_a_cut_line_leaves_the_clinic_its_lan(wired: Wired) -> None:
    with cutting.while_cut(wired.directory, "clinic", keep_lan=True):
        assert wired.reaches("clinic-1", "clinic")
        assert wired.reaches("clinic", "clinic-1")
        assert not wired.reaches("clinic-1", "toronto")
        assert not wired.reaches("toronto", "clinic")
        assert wired.reaches("clinic-2", "toronto")


def test_one_kind_of_traffic_is_cut_and_the_others_pass(wired: Wired) -> None:
    names = ("db-toronto", "replicator-toronto", "zookeeper-1", "db-clinic/watchdog")
    with cutting.while_cut(wired.directory, "clinic:toronto", only=Only.REPLICATION):
        replication = wired.round_trips("clinic", *(("toronto", name) for name in names))
        assert wired.reaches("clinic-1", "toronto", "db-toronto"), "a clinic is no site"
        assert wired.reaches("clinic", "montreal", "db-toronto")
    with cutting.while_cut(wired.directory, "clinic", only=Only.ZOOKEEPER):
        zookeeper = wired.round_trips("clinic", *(("toronto", name) for name in names))

    assert [one == "silence" for one in replication] == [True, True, False, False]
    assert [one == "silence" for one in zookeeper] == [False, False, True, False]


def test_what_is_cut_one_way_still_arrives_the_other_way(wired: Wired) -> None:
    """Nothing that needs an answer gets one, but the packets are there."""
    count = ("iptables", "--list", "FORWARD", "--numeric", "--verbose", "--exact")
    with cutting.while_cut(wired.directory, "all:clinic", one_way=True):
        assert not wired.reaches("clinic", "toronto")
        assert not wired.reaches("toronto", "clinic")
        said = namespaces.run(count, "", within=wired.network.path("router"))
    towards, away = f"{wired.network.hosts['toronto']} ", f"{wired.network.hosts['clinic']} "
    lost = [line for line in said.splitlines() if "DROP" in line]

    assert all(line.rstrip().endswith(away.rstrip()) for line in lost), lost
    assert any(towards in line and int(line.split()[0]) > 0 for line in lost), "its answers were sent, and lost"


def test_cuts_add_up_and_are_healed_by_their_own_words(wired: Wired) -> None:
    cutting.cut(wired.directory, "clinic", loss_percent=20)
    cutting.cut(wired.directory, "toronto:montreal")
    assert [one.text for one in cutting.cut(wired.directory, "toronto:montreal")] == ["clinic", "toronto:montreal"]
    with pytest.raises(BadInput, match="montreal is not cut"):
        cutting.heal(wired.directory, "montreal")
    assert [one.text for one in cutting.heal(wired.directory, "clinic")] == ["toronto:montreal"]
    assert not wired.reaches("toronto", "montreal")
    assert cutting.heal(wired.directory) == ()
    assert wired.reaches("toronto", "montreal")


def test_when_its_owner_dies_the_lab_ends_and_nothing_of_its_network_stays(wired: Wired) -> None:
    """Last, because it is the end of this lab: nobody called `lab down`."""
    route = f"{wired.network.block}.0/24"
    assert route in namespaces.run(("ip", "route"), "")
    wired.owner.kill()
    wired.owner.wait()

    await_true(lambda: identity.life(wired.network.holder) is Life.ENDED, "the network ends")
    await_true(lambda: route not in namespaces.run(("ip", "route"), ""), "its route is gone")
    assert not (wired.directory / "lab.json").exists()


def test_a_lab_on_loopback_says_that_it_cannot_be_cut(tmp_path: Path) -> None:
    lab = Ledger(lab_id="x", state=STARTING, clinics=1, zookeepers=1, boot=identity.boot(), owner=Identity(1, 0))
    ledger.write(Layout(tmp_path), lab)

    with pytest.raises(BadInput, match="loopback") as raised:
        cutting.cut(tmp_path, "clinic")
    assert "--network namespaces" in raised.value.hint
