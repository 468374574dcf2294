"""The process that is a lab's network: it holds the namespaces open, makes the ways long, and sees to it that nothing stays.

Whatever ends it ends the lab's network with it. It takes the lab down by itself when its owner ends (a test, a bench),
and ends when the lab is no more. Run by `lab up`, never by a person.
"""

import json
import os
import random
import select
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from chaos.lab import identity, ledger, namespaces, network, remove, topology
from chaos.lab.layout import Layout
from chaos.lab.network import Network
from chaos.lab.topology import BLOCKS, JITTER_MS, ROUTER, SLOW_ONE_WAY_MS, Topology
from chaos.lab.wire import Wire
from cluster import clock
from cluster.errors import OscarHaError, Refused

NAME = "network"
READY = "network.json"
DEVICE_PREFIX = "oha"
LOOK_MS = 1_000.0
"""How often it is looked whether the lab is still there."""
PRIORITY = -15
"""A late packet is a longer way."""
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


def make(lab_id: str, clinics: int, distance: float) -> tuple[Network, Wire, socket.socket]:
    """Make namespaces, lines and rules. Raises Refused where that is not allowed; nothing is left then."""
    place, claim = _choose_block(clinics)
    holds = {name: namespaces.make() for name in (ROUTER, *place.places)}
    home = namespaces.current()
    device = f"{DEVICE_PREFIX}{lab_id[:8]}"
    files = {name: namespaces.path(os.getpid(), file) for name, file in holds.items()}
    for name in holds:
        with namespaces.inside(holds[name]), suppress(FileNotFoundError):
            NO_IPV6.write_text("1\n", encoding="ascii")
    plugs = topology.plug_in(place, device, namespaces.path(os.getpid(), home), files)
    namespaces.ip(plugs, within=files[ROUTER])
    for name in place.places:
        namespaces.ip(topology.plug_in_place(place, name), within=files[name])
    namespaces.ip(topology.plug_in_onlooker(place, device))
    with namespaces.inside(holds[ROUTER]):
        FORWARDING.write_text("1\n", encoding="ascii")
        wire = Wire([*(delay * distance for delay in place.delays()), SLOW_ONE_WAY_MS], JITTER_MS * distance)
    own = identity.identify(os.getpid())
    assert own is not None, "we are"
    made = Network(holder=own, block=place.block, clinics=clinics, distance=distance, namespaces=holds)
    network.apply(made, {})
    return made, wire, claim


def _choose_block(clinics: int) -> tuple[Topology, socket.socket]:
    """Return addresses that nobody has here, and the claim on them, which ends with this process. Raises Refused."""
    routes = namespaces.run(("ip", "-4", "route", "show", "table", "all"), "")
    for block in random.sample(BLOCKS, len(BLOCKS)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0oscar-ha-lab-{block}")
        except OSError:
            claim.close()
            continue
        if f"{block}." not in routes:
            return Topology(block, clinics), claim
        claim.close()
    raise Refused("every block of addresses for tests is in use")


class Holder:
    """Answers until the lab or its owner is no more."""

    def __init__(self, directory: Path, lab_id: str, owner: int | None, wire: Wire) -> None:
        self._layout, self._lab_id, self._wire = Layout(directory), lab_id, wire
        self._owner = os.pidfd_open(owner) if owner is not None else None

    def run(self) -> None:
        """Return when there is nothing left to hold."""
        readable: list[Wire | int] = [self._wire] if self._owner is None else [self._wire, self._owner]
        look = clock.now()
        while True:
            due = self._wire.pass_on()
            if clock.now() >= look:
                if not self._is_there():
                    return
                look = clock.after(clock.now(), LOOK_MS)
            seconds = clock.seconds_left(look if due is None else min(due, look))
            ready, _, _ = select.select(readable, [], [], seconds)
            if self._owner in ready:
                remove.down(self._layout.directory, keep=False)
                return

    def _is_there(self) -> bool:
        """Return whether lab.json still tells of this lab."""
        try:
            found = ledger.read(self._layout)
        except OscarHaError:
            return True
        return found is not None and found.lab_id == self._lab_id


def hold(
    directory: Annotated[Path, typer.Option(help="The lab's folder.")],
    lab_id: Annotated[str, typer.Option(help="The lab's own name.")],
    clinics: Annotated[int, typer.Option(min=1)],
    distance: Annotated[float, typer.Option(min=0, help="What the usual round trips are multiplied with.")],
    owner: Annotated[int | None, typer.Option(help="With this process the lab ends.")] = None,
) -> None:
    """Make the network, say so in run/network.json, and hold it."""
    try:
        made, wire, claim = make(lab_id, clinics, distance)
    except (OscarHaError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    new = Layout(directory).run(f"{READY}.new")
    new.write_text(json.dumps(network.document(made)), encoding="utf-8")
    new.replace(Layout(directory).run(READY))
    with claim:
        Holder(directory, lab_id, owner, wire).run()


if __name__ == "__main__":
    typer.run(hold)
