"""Asking each part whether it works. An answer is empty when all is well, else what is missing in a few words."""

import asyncio
import json
import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

import pymysql

from chaos.lab.layout import DATABASE, HOST, OSCAR_USER
from chaos.lab.names import Kind, Part
from cluster.connection import QuickConnection
from cluster.errors import OscarHaError, Unreachable
from cluster.http import Client
from cluster.settings import Settings

CALL_DEADLINE_MS = 1_500
SQL_DEADLINE_SECONDS = 3
ZOOKEEPER_ANSWER_BYTES_MAX = 65_536


def listens(host: str, port: int) -> bool:
    """Return whether somebody accepts connections there."""
    with suppress(OSError), closing(socket.create_connection((host, port), CALL_DEADLINE_MS / 1000)):
        return True
    return False


def zookeeper_mode(host: str, port: int) -> str:
    """Return `standalone`, `leader` or `follower`; empty when it does not serve."""
    try:
        with closing(socket.create_connection((host, port), CALL_DEADLINE_MS / 1000)) as connection:
            connection.sendall(b"srvr")
            text = b"".join(iter(lambda: connection.recv(ZOOKEEPER_ANSWER_BYTES_MAX), b"")).decode(errors="replace")
    except OSError:
        return ""
    return next((line.removeprefix("Mode: ") for line in text.splitlines() if line.startswith("Mode: ")), "")


def get(url: str) -> Any:
    """Return the JSON answer of a process of ours. Raises OscarHaError."""

    async def call() -> Any:
        async with Client(token="") as client:
            return await client.get(url, deadline_ms=CALL_DEADLINE_MS)

    return asyncio.run(call())


def answers(url: str) -> str:
    """Return empty when the URL answers 200, else why not."""
    try:
        with closing(urllib.request.urlopen(url, timeout=CALL_DEADLINE_MS / 1000)):
            return ""
    except (OSError, ValueError, urllib.error.URLError) as error:
        return str(error)


def cluster(settings: Settings) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what the first controller that answers says of the cluster, and which did not answer."""
    silent: list[str] = []
    for controller in settings.controllers:
        try:
            found = get(f"{controller.url}/v1/cluster")
        except OscarHaError as error:
            silent.append(f"{controller.name}: {error.message}")
            continue
        if isinstance(found, dict):
            return found, silent
        silent.append(f"{controller.name}: {json.dumps(found)[:80]}")
    return None, silent


def endpoint(host: str, port: int, password: str) -> "pymysql.connections.Connection[Any]":
    """Connect as OSCAR does. Raises Unreachable."""
    if not listens(host, port):
        raise Unreachable(f"{host}:{port} does not answer")
    try:
        return QuickConnection(
            host=host, port=port, user=OSCAR_USER, password=password, database=DATABASE, autocommit=True,
            connect_timeout=SQL_DEADLINE_SECONDS, read_timeout=SQL_DEADLINE_SECONDS, write_timeout=SQL_DEADLINE_SECONDS,
        )  # fmt: skip
    except (pymysql.Error, OSError) as error:
        raise Unreachable(f"{host}:{port}: {_reason(error)}") from error


def write_check(host: str, port: int, password: str) -> str:
    """Write through a clinic's endpoint as OSCAR, and leave nothing. Return empty, or why it does not work."""
    try:
        with closing(endpoint(host, port, password)) as connection, connection.cursor() as cursor:
            # A table of its own for one moment: it is committed, replicated and acknowledged like any write. It is new and
            # never holds a row, or the mass-change alarm would rightly tell of its end.
            name = f"oscar_ha_lab_check_{secrets.token_hex(4)}"
            cursor.execute(f"CREATE TABLE {name} (written INT PRIMARY KEY) ENGINE=InnoDB")
            cursor.execute(f"DROP TABLE {name}")
    except (Unreachable, pymysql.Error, OSError) as error:
        return _reason(error)
    return ""


def part_missing(part: Part, settings: Settings, ports: Mapping[str, int]) -> str:
    """Return empty when the process serves, else what is missing."""
    port = ports.get(part.name, 0)
    match part.kind:
        case Kind.ZOOKEEPER:
            host = settings.zookeeper[part.number - 1].rpartition(":")[0]
            return "" if zookeeper_mode(host, port) else "does not serve yet"
        case Kind.DATABASE:
            return "" if listens(settings.node(part.node).host, port) else "does not accept connections yet"
        case Kind.WATCHDOG:
            return answers(f"{settings.node(part.node).watchdog_url}/health")
        case Kind.REPLICATOR:
            return answers(f"{settings.replicator(part.site).url}/health")
        case Kind.CONTROLLER:
            return answers(f"{settings.controller(part.name).url}/v1/cluster")
        case Kind.HAPROXY:
            clinic = settings.clinics[part.number - 1]
            return "" if listens(clinic.host, clinic.runtime_port) else "does not accept connections yet"
        case Kind.PROMETHEUS:
            return answers(f"http://{HOST}:{port}/-/ready")


def unhealthy(state: Mapping[str, Any] | None) -> str:
    """Return what the cluster still lacks after its first start, empty when it is whole. Pure."""
    if state is None:
        return "no controller answers"
    if not state.get("epoch"):
        return "no primary has been named"
    primary = str(state["epoch"].get("primary"))
    wrong = [
        f"{node['node']} is {node.get('role') or 'silent'}"
        for node in state.get("nodes", [])
        if node.get("role") != ("primary" if node["node"] == primary else "standby")
    ]
    wrong += [
        f"{node['node']} does not replicate yet"
        for node in state.get("nodes", [])
        if node.get("role") == "standby" and node.get("replicating") is not True
    ]
    acknowledging = {str(one["site"]) for one in state.get("replicators", []) if one.get("acknowledging")}
    wanted = (state.get("durability") or {}).get("ackers", [])
    if not wanted:
        wrong.append("no site is named to acknowledge")
    wrong += [f"replicator-{site} does not acknowledge yet" for site in wanted if site not in acknowledging]
    return ", ".join(wrong or ([] if state.get("ready", True) else map(str, state.get("reasons", []))))


def _reason(error: Exception) -> str:
    return str(error.args[-1]) if error.args else type(error).__name__
