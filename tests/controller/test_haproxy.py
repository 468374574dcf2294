"""Repointing a real HAProxy: sessions of the old primary end at once, and checks overrule a controller that is wrong."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from chaos.lab import render
from cluster import clock
from cluster.errors import Refused, Unreachable
from cluster.settings import Clinic
from controller import haproxy
from tests.conftest import require
from tests.servers.process import ServerProcess, free_port

pytestmark = pytest.mark.servers

DEADLINE_MS = 10_000
HOLD_MS = 1_000
CONFIGURATION = """
global
    stats socket ipv4@127.0.0.1:{runtime} level admin
    lua-load {hold}
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 1s
    timeout check 500ms
frontend clinic
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 2s
    tcp-request content lua.wait_for_primary oscar
    default_backend oscar
backend oscar
    option httpchk GET /primary
    default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
    server db-clinic 127.0.0.1:{clinic} port {clinic_check}
    server db-toronto 127.0.0.1:{toronto} port {toronto_check}
"""


class Node:
    """A database that says its name, and its watchdog."""

    def __init__(self, name: str, *, primary: bool) -> None:
        self.name, self.primary = name, primary
        self.port, self.check_port = free_port(), free_port()

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{self.name}\n".encode())
        await reader.read()
        writer.close()

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.primary else 503)


@asynccontextmanager
async def a_clinic(directory: Path) -> AsyncIterator[tuple[Clinic, Node, Node]]:
    require("" if shutil.which("haproxy") else "haproxy")
    old, new = Node("db-clinic", primary=True), Node("db-toronto", primary=False)
    clinic = Clinic(name="clinic-1", port=free_port(), runtime_port=free_port())
    file, hold = directory / "haproxy.cfg", directory / "hold.lua"
    hold.write_text(render.hold())
    file.write_text(
        CONFIGURATION.format(
            runtime=clinic.runtime_port, port=clinic.port, clinic=old.port, clinic_check=old.check_port,
            toronto=new.port, toronto_check=new.check_port, hold=hold,
        )
    )  # fmt: skip
    process, runners, servers = ServerProcess("haproxy", directory / "haproxy.log"), [], []
    try:
        for node in (old, new):
            servers.append(await asyncio.start_server(node.greet, "127.0.0.1", node.port))
            app = web.Application()
            app.add_routes([web.get("/primary", node.answer)])
            runners.append(web.AppRunner(app))
            await runners[-1].setup()
            await web.TCPSite(runners[-1], "127.0.0.1", node.check_port).start()
        process.launch(["haproxy", "-db", "-f", str(file)])
        yield clinic, old, new
    finally:
        process.kill()
        for runner in runners:
            await runner.cleanup()
        for server in servers:
            server.close()


async def connected_to(clinic: Clinic, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection through HAProxy that leads to `name`, once there is one."""
    deadline = clock.after(clock.now(), DEADLINE_MS)
    while True:
        try:
            reader, writer = await asyncio.open_connection(clinic.host, clinic.port)
            if (await reader.readline()).decode().strip() == name:
                return reader, writer
            writer.close()
        except OSError:
            pass
        assert clock.seconds_left(deadline) > 0, f"no connection leads to {name}"
        await asyncio.sleep(0.02)


async def test_repointing_ends_the_old_sessions_and_leads_to_the_new_primary(tmp_path: Path) -> None:
    async with a_clinic(tmp_path) as (clinic, old, new):
        reader, writer = await connected_to(clinic, "db-clinic")
        old.primary, new.primary = False, True
        await haproxy.repoint(clinic, "db-toronto", ["db-clinic"], deadline_ms=1_000)

        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        _, writer = await connected_to(clinic, "db-toronto")
        writer.close()


async def test_checks_overrule_a_controller_that_is_wrong(tmp_path: Path) -> None:
    """A repointing to a node whose watchdog refuses /primary lasts one check, and never more."""
    async with a_clinic(tmp_path) as (clinic, _, _):
        _, writer = await connected_to(clinic, "db-clinic")
        writer.close()
        await haproxy.repoint(clinic, "db-toronto", ["db-clinic"], deadline_ms=1_000)

        _, writer = await connected_to(clinic, "db-clinic")
        writer.close()


async def checked(clinic: Clinic, name: str) -> None:
    """Wait until HAProxy knows that a node is not the primary: before its first check it believes everybody up."""
    deadline = clock.after(clock.now(), DEADLINE_MS)
    while True:
        with suppress(Unreachable):
            lines = (await haproxy.command(clinic, "show servers state oscar", deadline_ms=1_000)).splitlines()
            if any(line.split()[3] == name and line.split()[5] == "0" for line in lines if name in line):
                return
        assert clock.seconds_left(deadline) > 0, f"{name} is taken for the primary"
        await asyncio.sleep(0.02)


async def asking(clinic: Clinic) -> tuple[str, float]:
    """Return who answers a new connection, nobody if it was refused, and after how many milliseconds."""
    began = clock.now()
    try:
        reader, writer = await asyncio.open_connection(clinic.host, clinic.port)
        said = (await asyncio.wait_for(reader.readline(), DEADLINE_MS / 1_000)).decode().strip()
        writer.close()
    except ConnectionError:
        said = ""
    return said, clock.ms_between(began, clock.now())


async def test_before_a_fence_nobody_new_is_sent_to_the_primary_and_who_is_there_stays(tmp_path: Path) -> None:
    """Clinics come again the moment a fence has ended their sessions: they would log in to a closed server."""
    async with a_clinic(tmp_path) as (clinic, old, new):
        await checked(clinic, "db-toronto")
        reader, writer = await connected_to(clinic, "db-clinic")
        old.primary = False  # from its first moment a fence says so
        await haproxy.announce_closing(clinic, "db-clinic", deadline_ms=1_000)
        waits = asyncio.create_task(asking(clinic))
        await asyncio.wait({waits}, timeout=0.05)
        assert not waits.done(), "a new connection does not wait for the new primary"

        new.primary = True
        await haproxy.repoint(clinic, "db-toronto", ["db-clinic"], deadline_ms=1_000)
        assert (await waits)[0] == "db-toronto"
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()


async def test_a_fence_that_was_announced_and_does_not_come_is_forgotten(tmp_path: Path) -> None:
    async with a_clinic(tmp_path) as (clinic, _, _):
        await checked(clinic, "db-toronto")
        await haproxy.announce_closing(clinic, "db-clinic", deadline_ms=1_000)

        said, took_ms = await asking(clinic)
        assert said == "db-clinic"
        assert took_ms < HOLD_MS


async def test_a_connection_does_not_wait_for_ever_for_a_primary(tmp_path: Path) -> None:
    async with a_clinic(tmp_path) as (clinic, old, _):
        _, writer = await connected_to(clinic, "db-clinic")
        writer.close()
        old.primary = False
        await checked(clinic, "db-clinic")
        await checked(clinic, "db-toronto")

        said, took_ms = await asking(clinic)
        assert said == ""
        assert HOLD_MS * 0.8 < took_ms < 2_000


async def test_a_backend_without_the_node_is_refused_by_name(tmp_path: Path) -> None:
    async with a_clinic(tmp_path) as (clinic, _, _):
        _, writer = await connected_to(clinic, "db-clinic")
        writer.close()
        with pytest.raises(Refused, match="clinic-1"):
            await haproxy.repoint(clinic, "db-nowhere", [], deadline_ms=1_000)


async def test_a_silent_haproxy_is_unreachable_within_the_deadline() -> None:
    clinic = Clinic(name="clinic-1", port=free_port(), runtime_port=free_port())
    with pytest.raises(Unreachable, match="clinic-1"):
        await haproxy.repoint(clinic, "db-toronto", [], deadline_ms=500)
