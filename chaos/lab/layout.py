"""What a person asked for, and where everything of the lab lies and listens. Pure.

All files of a lab are in one folder; nothing is written outside it. Ports are chosen below the range from which the
kernel takes ports for outgoing connections, so that a killed process finds its port free when it comes back.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from chaos.lab.names import CLINICS_MAX, SITES, ZOOKEEPERS, Kind, Part, clinic_name, node_name, parts
from cluster.errors import BadInput
from cluster.records import Acks
from cluster.settings import PROFILES

HOST = "127.0.0.1"
DATABASE = "oscar"
ARCHIVE_KEYS = "archive-keys"
OSCAR_USER = "oscar"
LEDGER = "lab.json"
FOLDERS = ("config", "data", "log", "run", "secrets", "tls")
FAULTS = "faults.json"
ENTRIES = (*FOLDERS, "cluster.toml", LEDGER, f"{LEDGER}.new", FAULTS, f"{FAULTS}.new")
"""Everything that a lab puts into its folder. Nothing else is ever removed."""
SOCKET_PATH_BYTES_MAX = 107
"""A Unix socket's address holds no more (unix(7))."""
PORT_MIN, PORT_MAX = 1024, 65_535
SERVER_ID_REPLICATOR = 100
"""A replicator's server id is this plus its site's."""
AUTOMATIC_MAX = 10_000
DISTANCE_MAX = 20.0
EVERYWHERE: Mapping[str, str] = {}
"""The addresses of a lab that is all on loopback: no place has one of its own."""
_PLAIN_PATH = re.compile(r"^[A-Za-z0-9/._,:+@%=~-]+$")
_OPTION_NAME = re.compile(r"^[a-z][a-z0-9_]*$")

IDENTITY_OPTIONS = frozenset(
    ("server_id", "datadir", "port", "extra_port", "socket", "pid_file", "bind_address", "log_error", "user", "init_file",
     "tmpdir")
)  # fmt: skip
"""The lab gives these to each server itself."""


_OFF = frozenset(("0", "off", "false", "no", ""))


@dataclass(frozen=True, slots=True)
class Option:
    """One option of mariadbd; `value` None is a bare switch."""

    name: str
    value: str | None


class Wires(StrEnum):
    """What is between the processes of a lab."""

    LOOPBACK = "loopback"
    """Everything is one host, at no distance, and nothing can be cut."""
    NAMESPACES = "namespaces"
    """Every site and every clinic is a host of its own, as far away as in life, and can be cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asked of `lab up`."""

    directory: Path
    clinics: int = 1
    zookeepers: int = 1
    load: tuple[Path, ...] = ()
    options: tuple[Option, ...] = ()
    base_port: int | None = None
    tls: bool = True
    """Whether the replication links use it."""
    encrypt_archive: bool = False
    acks: Acks = Acks.ONE
    policies: Mapping[str, Any] = field(default_factory=dict)
    """More settings of the cluster, as its file has them."""
    wires: Wires = Wires.LOOPBACK
    distance: float = 1.0
    """What the usual round trips between the places are multiplied with; 0 is none."""
    owner: int | None = None
    """With this process the lab ends; only one with namespaces notices."""
    profile: str = "default"
    """Of the deadlines, as in the settings."""
    archive_disk_bytes: int | None = None
    """Each archive gets a disk of this size, in memory, where the machine lets us mount one; else it is told."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts(self.clinics, self.zookeepers)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of a lab lie."""

    directory: Path

    @property
    def ledger(self) -> Path:
        return self.directory / LEDGER

    @property
    def settings(self) -> Path:
        return self.directory / "cluster.toml"

    def data(self, name: str) -> Path:
        return self.directory / "data" / name

    def archive(self, site: str) -> Path:
        return self.data(f"archive-{site}")

    def temporary(self, name: str) -> Path:
        """Return the server's own `tmpdir`: one that starts removes the temporary tables in its own (decision 0060)."""
        return self.data(f"tmp-{name}")

    def log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def config(self, file: str) -> Path:
        return self.directory / "config" / file

    def secret(self, name: str) -> Path:
        return self.directory / "secrets" / name

    def certificate(self, name: str) -> Path:
        return self.directory / "tls" / f"{name}.pem"

    def run(self, file: str) -> Path:
        return self.directory / "run" / file

    def socket(self, node: str) -> Path:
        return self.directory / "run" / f"{node}.sock"

    def pid_file(self, node: str) -> Path:
        return self.directory / "run" / f"{node}.pid"


def parse_option(text: str) -> Option:
    """Return `K=V` or `K` as an option, `-` and `_` being the same. Raises BadInput."""
    name, equals, value = text.partition("=")
    name = name.strip().lstrip("-").lower().replace("-", "_")
    if not _OPTION_NAME.match(name) or any(ord(letter) < 32 for letter in value):
        raise BadInput(f"--mysqld-option {text!r} is not an option", hint="write it like innodb_page_size=32K")
    if name in IDENTITY_OPTIONS:
        consequence = ": three servers with one id disconnect each other for ever" if name == "server_id" else ""
        raise BadInput(
            f"--mysqld-option {name}: the lab gives each of its three servers its own{consequence}",
            hint="leave it out",
        )
    option = Option(name, value if equals else None)
    reason = _contradicts(option)
    if reason:
        raise BadInput(f"--mysqld-option {text}: {reason}", hint="leave it out; nothing was started")
    return option


def _contradicts(option: Option) -> str:
    """Return why the product cannot work with this option, empty when it may. The running server is asked as well."""
    value = (option.value or "").strip().strip("\"'").lower()
    off = option.value is not None and value in _OFF
    match option.name:
        case "binlog_format" if value != "row":
            return "only ROW events repeat exactly what the primary did"
        case "skip_log_bin" | "disable_log_bin":
            return "without its binlog there is nothing to replicate or to restore from"
        case "log_bin" if off:
            return "without its binlog there is nothing to replicate or to restore from"
        case "gtid_strict_mode" if off:
            return "two histories under one position would go unnoticed"
        case "skip_gtid_strict_mode" | "disable_gtid_strict_mode":
            return "two histories under one position would go unnoticed"
        case "log_slave_updates" if off:
            return "a promoted standby would have no history for the others to follow"
        case "skip_log_slave_updates" | "disable_log_slave_updates":
            return "a promoted standby would have no history for the others to follow"
        case _:
            return ""


def check(request: Request) -> None:
    """Raise BadInput naming everything that is wrong with the numbers and paths of a request."""
    longest = Layout(request.directory).socket(max((node_name(site) for site in SITES), key=len))
    count = len(port_names(request))
    base = request.base_port
    rules = (
        (1 <= request.clinics <= CLINICS_MAX, f"--clinics {request.clinics}: choose from 1 to {CLINICS_MAX}"),
        (request.zookeepers in ZOOKEEPERS, f"--zookeepers {request.zookeepers}: choose 1 or 3 (two tolerate no loss)"),
        (request.wires is Wires.LOOPBACK or request.zookeepers > 1,
         f"--zookeepers {request.zookeepers} with --network {request.wires.value}: choose 3, one in each site"),
        (0 <= request.distance <= DISTANCE_MAX, f"--distance {request.distance:g}: choose from 0 to {DISTANCE_MAX:g}"),
        (base is None or PORT_MIN <= base <= PORT_MAX - count,
         f"--base-port {base}: choose from {PORT_MIN} to {PORT_MAX - count}, this lab needs {count} ports"),
        (_PLAIN_PATH.match(str(request.directory)) is not None,
         f"--dir {str(request.directory)!r}: choose a path of plain letters, digits and ._-/ without spaces"),
        (len(str(longest).encode()) <= SOCKET_PATH_BYTES_MAX,
         f"--dir {request.directory}: {longest} is longer than the {SOCKET_PATH_BYTES_MAX} bytes of a socket's path"),
        (request.profile in PROFILES, f"--profile {request.profile}: choose one of {', '.join(PROFILES)}"),
        *((path.is_file(), f"--load {path}: there is no such file") for path in request.load),
    )  # fmt: skip
    problems = [sentence for holds, sentence in rules if not holds]
    if problems:
        raise BadInput("; ".join(problems), hint="mend the named options; nothing was started")


def port_names(request: Request) -> tuple[str, ...]:
    """Return the name of every port of a lab, in the order in which --base-port numbers them."""
    names: list[str] = []
    for number in range(1, request.clinics + 1):
        names += [clinic_name(number), f"{clinic_name(number)}/runtime"]
    for site in SITES:
        node = node_name(site)
        names += [node, f"{node}/admin", f"{node}/watchdog"]
        names += [f"replicator-{site}", f"replicator-{site}/http", f"controller-{site}"]
    for number in range(1, request.zookeepers + 1):
        names += [f"zookeeper-{number}", f"zookeeper-{number}/quorum", f"zookeeper-{number}/election"]
    return (*names, "prometheus")


def settings_of(request: Request, ports: Mapping[str, int], hosts: Mapping[str, str] = EVERYWHERE) -> dict[str, Any]:
    """Return the cluster's settings as they are written to TOML; `hosts` are the addresses of the places."""
    layout = Layout(request.directory)
    files = {"ca_file": "authority", "certificate_file": "server", "private_key_file": "server-key"}
    return {
        "name": "lab",
        "zookeeper": [
            f"{hosts.get(part.site, HOST)}:{ports[part.name]}" for part in kinds(request.parts, Kind.ZOOKEEPER)
        ],
        "initial_primary": node_name(SITES[0]),
        "acks": request.acks.value,
        "profile": request.profile,
        # A lab is there to fail over; that too many wait for an operator has a test of its own.
        "failover": {"automatic_max": AUTOMATIC_MAX},
        "rejoin": {"attempts_max": AUTOMATIC_MAX},
        **request.policies,
        "sites": list(SITES),
        "token_file": str(layout.secret("token")),
        "accounts": {
            "admin_password_file": str(layout.secret("admin")),
            "replication_password_file": str(layout.secret("replication")),
            "verify_password_file": str(layout.secret("verify")),
        },
        **({"tls": {key: str(layout.certificate(name)) for key, name in files.items()}} if request.tls else {}),
        "archive": _archive(request, layout),
        "nodes": [_node(layout, ports, number, site) | _host(hosts, site) for number, site in enumerate(SITES, 1)],
        "replicators": [
            _replicator(layout, ports, number, site) | _host(hosts, site) for number, site in enumerate(SITES, 1)
        ],
        "controllers": [
            {"name": f"controller-{site}", "site": site, "port": ports[f"controller-{site}"], **_host(hosts, site)}
            for site in SITES
        ],
        "clinics": [
            {"name": name, "port": ports[name], "runtime_port": ports[f"{name}/runtime"], **_host(hosts, name)}
            for name in (clinic_name(number) for number in range(1, request.clinics + 1))
        ],
    }


def kinds(found: Sequence[Part], kind: Kind) -> tuple[Part, ...]:
    """Return the parts of one kind."""
    return tuple(part for part in found if part.kind is kind)


def _archive(request: Request, layout: Layout) -> dict[str, Any]:
    keys = {"key_file": str(layout.secret(ARCHIVE_KEYS))} if request.encrypt_archive else {}
    return {**request.policies.get("archive", {}), **keys}


def _host(hosts: Mapping[str, str], place: str) -> dict[str, str]:
    """Return the setting that names where something is; on loopback that needs no word."""
    return {"host": hosts[place]} if place in hosts else {}


def _node(layout: Layout, ports: Mapping[str, int], number: int, site: str) -> dict[str, Any]:
    name = node_name(site)
    return {
        "name": name,
        "site": site,
        "server_id": number,
        "port": ports[name],
        "admin_port": ports[f"{name}/admin"],
        "pid_file": str(layout.pid_file(name)),
        "watchdog_port": ports[f"{name}/watchdog"],
        "data_directory": str(layout.data(name)),
        "socket": str(layout.socket(name)),
        "option_file": str(layout.config(f"{name}.cnf")),
        # So that the lab knows the new process as its own.
        "start_command": ["oscar-ha", "lab", "start", name, "--dir", str(layout.directory)],
    }


def _replicator(layout: Layout, ports: Mapping[str, int], number: int, site: str) -> dict[str, Any]:
    return {
        "site": site,
        "server_id": SERVER_ID_REPLICATOR + number,
        "port": ports[f"replicator-{site}"],
        "http_port": ports[f"replicator-{site}/http"],
        "archive": str(layout.archive(site)),
    }
