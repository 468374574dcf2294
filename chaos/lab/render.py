"""What the lab writes and runs: configuration files and command lines. Pure: same request in, same text out.

No secret is ever part of a command line: other users of the machine can read it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from chaos.lab.layout import EVERYWHERE, HOST, Layout, Option
from chaos.lab.names import SITES, Kind, Part
from cluster.errors import Bug
from cluster.settings import Clinic, Node, Settings

BINLOG_EXPIRES_SECONDS = 86_400
ZOOKEEPER_HEAP_MB = 192
PROMETHEUS_KEEPS = ("2h", "256MB")
HOLD = "hold.lua"
ZOOKEEPER_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
ZOOKEEPER_JARS = (Path("/usr/share/java/zookeeper.jar"), Path("/usr/share/java/slf4j-simple.jar"))
"""Debian's zkEnv.sh names the first, whose manifest names all the others; the second makes messages visible."""

LAB_OPTIONS: Mapping[str, str | None] = {
    "bind_address": HOST,
    "skip_name_resolve": "ON",
    "max_connections": "250",
    "performance_schema": "OFF",
    "innodb_buffer_pool_size": "64M",
    "innodb_log_file_size": "32M",
    "innodb_buffer_pool_dump_at_shutdown": "OFF",
    "innodb_buffer_pool_load_at_startup": "OFF",
    "aria_pagecache_buffer_size": "16M",
    "aria_log_file_size": "16M",
    "key_buffer_size": "8M",
    "max_binlog_size": "64M",
    "binlog_expire_logs_seconds": str(BINLOG_EXPIRES_SECONDS),
    # OSCAR's flavour: see "Loading the real schema" in what we know of OSCAR.
    "sql_mode": "",
    "innodb_strict_mode": "OFF",
    "lower_case_table_names": "0",
    "default_storage_engine": "InnoDB",
    "character_set_server": "utf8mb3",  # what OSCAR calls utf8; that name means another set under another old_mode
    "collation_server": "utf8mb3_general_ci",
    "local_infile": "ON",
}
"""Lab-sized, and as a clinic runs its OSCAR. A person's --mysqld-option comes after these."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs a lab runs, as found on this machine."""

    mariadbd: str
    install_db: str
    client: str
    java: str
    haproxy: str
    prometheus: str
    oscar_ha: str


def toml(raw: Mapping[str, Any]) -> str:
    """Return settings as TOML: plain values first, then tables, then lists of tables."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in raw.items() if not _is_table(value)]
    for key, value in raw.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_toml_value(part)}" for name, part in value.items())]
        elif _is_table(value):
            for item in value:
                lines += ["", f"[[{key}]]", *(f"{name} = {_toml_value(part)}" for name, part in item.items())]
    return "\n".join(lines) + "\n"


def option_file(
    layout: Layout, node: Node, required: Mapping[str, str | None], asked: Iterable[Option], init_file: Path, user: str
) -> str:
    """Return a server's option file. A later line wins: lab, product, the person, and who this server is."""
    identity: dict[str, str | None] = {
        "user": user,
        "datadir": str(layout.data(node.name)),
        "server_id": str(node.server_id),
        "port": str(node.port),
        "socket": str(layout.socket(node.name)),
        "pid_file": str(node.pid_file),
        "init_file": str(init_file),
        "tmpdir": str(layout.temporary(node.name)),
        "bind_address": node.host,
    }
    if node.admin_port is not None:
        identity["extra_port"] = str(node.admin_port)
    lines = ["# Written by `oscar-ha lab up`. A later line wins.", "[mariadbd]", *_options(LAB_OPTIONS.items())]
    lines += ["# What oscar-ha needs", *_options(required.items())]
    lines += ["# --mysqld-option", *_options((option.name, option.value) for option in asked)]
    lines += ["# This server", *_options(identity.items())]
    return "\n".join(lines) + "\n"


def hold() -> str:
    """Return the script by which every HAProxy lets a connection wait for a primary."""
    return _template(HOLD).template


def haproxy(layout: Layout, clinic: Clinic, nodes: Sequence[Node]) -> str:
    """Return the HAProxy configuration of one clinic."""
    servers = (f"    server {node.name} {node.host}:{node.port} port {node.watchdog_port}" for node in nodes)
    return _template("haproxy.cfg").substitute(
        host=clinic.host,
        port=clinic.port,
        runtime_port=clinic.runtime_port,
        clinic=clinic.name,
        backend=clinic.backend,
        hold=str(layout.config(HOLD)),
        servers="\n".join(servers),
    )


def zookeeper(
    layout: Layout, part: Part, ports: Mapping[str, int], count: int, hosts: Mapping[str, str] = EVERYWHERE
) -> str:
    """Return the configuration of one ZooKeeper; a single one knows of no others."""
    members = (
        f"server.{number}={hosts.get(SITES[number - 1], HOST)}:{ports[f'zookeeper-{number}/quorum']}:{ports[f'zookeeper-{number}/election']}"
        for number in range(1, count + 1)
    )
    return _template("zoo.cfg").substitute(
        data=layout.data(part.name),
        host=hosts.get(part.site, HOST),
        port=ports[part.name],
        members="\n".join(members) if count > 1 else "",
    )


def prometheus(settings: Settings) -> str:
    """Return the scrape configuration: everything of ours that has /metrics."""
    jobs = {
        "watchdog": {node.name: f"{node.host}:{node.watchdog_port}" for node in settings.nodes},
        "replicator": {one.site: f"{one.host}:{one.http_port}" for one in settings.replicators},
        "controller": {one.name: f"{one.host}:{one.port}" for one in settings.controllers},
    }
    lines: list[str] = []
    for job, targets in jobs.items():
        lines += [f"  - job_name: {job}", "    static_configs:"]
        for name, address in targets.items():
            lines += [f'      - targets: ["{address}"]', f"        labels: {{part: {name}}}"]
    return _template("prometheus.yml").substitute(jobs="\n".join(lines))


def command(part: Part, layout: Layout, programs: Programs, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Return the command line of one process."""
    ours = ("--settings", str(layout.settings))
    match part.kind:
        case Kind.ZOOKEEPER:
            return _zookeeper_command(part, layout, programs)
        case Kind.DATABASE:
            return (programs.mariadbd, f"--defaults-file={layout.config(f'{part.name}.cnf')}")
        case Kind.WATCHDOG:
            return (programs.oscar_ha, "watchdog", "run", *ours, "--node", part.node)
        case Kind.REPLICATOR:
            return (programs.oscar_ha, "replicator", "run", *ours, "--site", part.site)
        case Kind.CONTROLLER:
            return (programs.oscar_ha, "controller", "run", *ours, "--name", part.name)
        case Kind.HAPROXY:
            return (programs.haproxy, "-db", "-f", str(layout.config(f"{part.name}.cfg")))
        case Kind.PROMETHEUS:
            return _prometheus_command(part, layout, programs, ports)


def _zookeeper_command(part: Part, layout: Layout, programs: Programs) -> tuple[str, ...]:
    return (
        programs.java,
        f"-Xmx{ZOOKEEPER_HEAP_MB}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dzookeeper.jmx.log4j.disable=true",
        "-cp",
        ":".join(str(jar) for jar in ZOOKEEPER_JARS),
        ZOOKEEPER_MAIN,
        str(layout.config(f"{part.name}.cfg")),
    )


def _prometheus_command(part: Part, layout: Layout, programs: Programs, ports: Mapping[str, int]) -> tuple[str, ...]:
    age, size = PROMETHEUS_KEEPS
    return (
        programs.prometheus,
        f"--config.file={layout.config('prometheus.yml')}",
        f"--storage.tsdb.path={layout.data(part.name)}",
        f"--storage.tsdb.retention.time={age}",
        f"--storage.tsdb.retention.size={size}",
        f"--web.listen-address={HOST}:{ports[part.name]}",
        "--log.level=warn",
    )


def _options(pairs: Iterable[tuple[str, str | None]]) -> list[str]:
    return [name if value is None else f"{name}={value}" for name, value in pairs]


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return format(value, "f")
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return f"[{', '.join(_toml_value(part) for part in value)}]"
        case _:
            raise Bug(f"no TOML for {value!r}")


def _template(name: str) -> Template:
    return Template((files("chaos") / "templates" / name).read_text(encoding="utf-8"))
