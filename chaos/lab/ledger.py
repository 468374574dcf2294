"""`lab.json`: what the lab is and what was started, written before and after every start.

It is the only memory between two commands. It holds passwords, so only its owner can read it; it is replaced as a
whole, so a reader never sees half of it. An exclusive lock on the folder keeps two commands apart, and goes away by
itself with the process that holds it.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos.lab import identity
from chaos.lab import network as lab_network
from chaos.lab.identity import NEVER, Identity, Life
from chaos.lab.layout import EVERYWHERE, Layout
from chaos.lab.names import Part, parts
from chaos.lab.network import Network
from cluster import records
from cluster.errors import BadInput, Refused

VERSION = 1
STARTING, UP = "starting", "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One process that was started: who it is, and how to start it again."""

    name: str
    pid: int
    started: int
    """In clock ticks since boot: with the pid this is one process for ever."""
    command: tuple[str, ...]
    log_offset: int
    """Where its own lines begin in its log."""

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.started)

    @property
    def life(self) -> Life:
        return identity.life(self.identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What `lab.json` says. `public` is the part that others read; the rest is the lab's own."""

    lab_id: str
    state: str
    clinics: int
    zookeepers: int
    boot: str
    """Which boot of the machine the start times are counted from."""
    owner: Identity
    """The `lab up` that made it."""
    made: tuple[str, ...] = ()
    """Folders that `lab up` made and `lab down` removes again when they are empty, the innermost last."""
    ports: Mapping[str, int] = field(default_factory=dict)
    started: Mapping[str, Started] = field(default_factory=dict)
    public: Mapping[str, Any] = field(default_factory=dict)
    network: Network | None = None
    """None when everything is on loopback."""

    @property
    def hosts(self) -> Mapping[str, str]:
        """Return the address of every place; nothing when all are on loopback."""
        return EVERYWHERE if self.network is None else self.network.hosts

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts(self.clinics, self.zookeepers)

    @property
    def alive(self) -> tuple[Started, ...]:
        """Return what still exists, frozen or not."""
        return tuple(one for one in self.started.values() if one.life is not Life.ENDED)

    def only(self, names: Iterable[str]) -> "Ledger":
        """Return the ledger with these processes alone."""
        return replace(self, started={name: self.started[name] for name in names})

    def with_started(self, *news: Started) -> "Ledger":
        """Return the ledger with these processes in it, replacing earlier ones of the same name."""
        return replace(self, started={**self.started, **{one.name: one for one in news}})


def document(ledger: Ledger) -> dict[str, Any]:
    """Return the JSON object of a ledger: the stable interface first."""
    pids = {name: one.pid for name, one in ledger.started.items()}
    public = dict(ledger.public)
    if "nodes" in public:
        public["nodes"] = [node | {"pid": pids.get(node["name"])} for node in public["nodes"]]
    own = {
        "version": VERSION,
        "id": ledger.lab_id,
        "state": ledger.state,
        "parts": {"clinics": ledger.clinics, "zookeepers": ledger.zookeepers},
        "boot": ledger.boot,
        "owner": asdict(ledger.owner),
        "made": list(ledger.made),
        "ports": dict(ledger.ports),
        "started": {name: asdict(one) for name, one in ledger.started.items()},
        "network": None if ledger.network is None else lab_network.document(ledger.network),
    }
    return {**public, "processes": pids, "lab": own}


def write(layout: Layout, ledger: Ledger) -> None:
    """Replace `lab.json` as a whole, readable by its owner only."""
    new = layout.ledger.with_name(f"{layout.ledger.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document(ledger), file, indent=2)
        file.write("\n")
    new.replace(layout.ledger)


def read(layout: Layout) -> Ledger | None:
    """Return the ledger, None when there is no lab. Raises BadInput when the file is not ours or damaged."""
    try:
        raw = json.loads(layout.ledger.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(layout, str(error)) from error
    try:
        found = parse(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(layout, repr(error)) from error
    return found if found.boot == identity.boot() else after_reboot(found)


def after_reboot(ledger: Ledger) -> Ledger:
    """Return a ledger of an earlier boot: all its processes have ended, whatever the pids and times say now."""
    ended = {name: replace(one, started=NEVER) for name, one in ledger.started.items()}
    return replace(ledger, started=ended, owner=replace(ledger.owner, started=NEVER))


def parse(raw: Mapping[str, Any]) -> Ledger:
    """Return the ledger in a `lab.json` object. Raises KeyError or TypeError when it is not one."""
    own = raw["lab"]
    if own["version"] != VERSION:
        raise KeyError(f"version {own['version']}, not {VERSION}")
    return Ledger(
        lab_id=str(own["id"]),
        state=str(own["state"]),
        clinics=int(own["parts"]["clinics"]),
        zookeepers=int(own["parts"]["zookeepers"]),
        boot=str(own["boot"]),
        owner=Identity(**own["owner"]),
        made=tuple(own["made"]),
        ports={str(name): int(port) for name, port in own["ports"].items()},
        started={name: Started(**{**one, "command": tuple(one["command"])}) for name, one in own["started"].items()},
        network=lab_network.parse(own.get("network")),
        public={key: value for key, value in raw.items() if key not in ("processes", "lab")},
    )


def require(layout: Layout) -> Ledger:
    """Return the ledger of a lab. Raises BadInput when there is none."""
    found = read(layout)
    if found is None:
        raise _no_lab(layout.directory)
    return found


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder for one command. Raises Busy at once when another command holds it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _no_lab(directory) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"another lab command is at work in {directory}", hint="wait for it, or end it with: oscar-ha lab down"
            ) from error
        yield
    finally:
        os.close(descriptor)


class Busy(Refused):
    """Another lab command holds the folder."""

    exit_code = 2


def _no_lab(directory: Path) -> BadInput:
    return BadInput(
        f"there is no lab in {directory}", hint="start one with: oscar-ha lab up, or name its folder with --dir"
    )


def _damaged(layout: Layout, why: str) -> BadInput:
    return BadInput(
        f"{layout.ledger} is not a lab's: {records.shorten(why)}",
        hint="end its processes if there are any, remove the folder, or choose another with --dir",
    )
