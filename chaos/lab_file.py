"""What a running lab says of itself: `lab.json`, read-only. Fields that we do not use are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import records
from cluster.errors import BadInput

LAB_FILE = "lab.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """Where one clinic's OSCAR connects, and as whom."""

    name: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One database server and the URL of its watchdog."""

    name: str
    site: str
    host: str
    port: int
    admin_user: str
    admin_password: str = field(repr=False)
    watchdog_url: str
    admin_port: int | None = None
    """Answers its administrators even when all ordinary connections are used up."""
    socket: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """One controller."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabFile:
    """Every endpoint of a lab."""

    clinics: tuple[Clinic, ...]
    nodes: tuple[Node, ...]
    controllers: tuple[Controller, ...]
    token: str = field(repr=False)
    processes: Mapping[str, int]

    def node(self, name: str) -> Node:
        """Return the node called `name`. Raises BadInput."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise BadInput(f"the lab has no node {name!r}", hint=f"one of: {', '.join(node.name for node in self.nodes)}")


def load(directory: Path) -> LabFile:
    """Read the endpoints of the lab in `directory`. Raises BadInput."""
    path = directory / LAB_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="start a lab: oscar-ha lab up --dir DIR") from error
    return records.decode(LabFile, text, where=str(path))
