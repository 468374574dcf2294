"""Starting the process that is a lab's network, or learning why there can be none."""

import json
import os
import sys

from chaos.lab import holder, identity, network, process
from chaos.lab.identity import Life
from chaos.lab.layout import Layout, Request
from chaos.lab.network import Network
from cluster.errors import DeadlinePassed, OscarHaError

DEADLINE_MS = 15_000


def connect(request: Request, layout: Layout, lab_id: str) -> tuple[Network | None, str]:
    """Return the lab's network; None and the reason where this machine allows no namespaces."""
    if os.geteuid() != 0:
        return None, "it needs root"
    command = [sys.executable, "-m", holder.__name__, "--directory", str(layout.directory), "--lab-id", lab_id,
               "--clinics", str(request.clinics), "--distance", str(request.distance)]  # fmt: skip
    if request.owner is not None:
        command += ["--owner", str(request.owner)]
    started = process.spawn(holder.NAME, command, layout, lab_id)
    ready = layout.run(holder.READY)

    def missing() -> str:
        return "" if ready.exists() or started.life is Life.ENDED else "it makes namespaces"

    try:
        process.wait_until(missing, deadline_ms=DEADLINE_MS, what="the network is not there")
    except DeadlinePassed as error:
        process.kill([started.identity])
        return None, error.message
    if not ready.exists():
        return None, process.last_error(layout.log(holder.NAME)).removeprefix("Error: ") or "it said nothing"
    found = network.parse(json.loads(ready.read_text(encoding="utf-8")))
    if found is None or identity.life(found.holder) is Life.ENDED:
        raise OscarHaError("the lab's network ended as soon as it was there")
    return found, ""
