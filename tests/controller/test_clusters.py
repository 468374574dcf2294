"""One process for many clusters: whatever is wrong with one, the others are served in normal time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from cluster import clock
from cluster.errors import BadInput
from cluster.records import Database, Role
from cluster.settings import Settings
from controller import overview
from controller.clusters import Clusters, Served, State, settings_files
from controller.command import address_of
from tests.controller.simulated import TOKEN, SimulatedCluster, simulated_settings
from tests.controller.trial import until
from tests.servers.process import free_port
from tests.servers.zookeeper import ZooKeeperServer

NORMAL_MS = 2_000
"""From the record that says the database is down to the first seal or fence; some 30 ms on a machine that is not busy."""
NAME = "controller-0"


def toml(value: object) -> str:
    """Return a value as TOML in one line."""
    if is_dataclass(value) and not isinstance(value, type):
        return toml({one.name: getattr(value, one.name) for one in fields(value)})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items() if one is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    return json.dumps(value) if isinstance(value, bool | int | float | str) else json.dumps(str(value))


def write(folder: Path, settings: Settings, **changed: Any) -> Path:
    """Write a settings file and its secrets; return its path."""
    secret = folder / "secrets" / "one"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text(TOKEN, encoding="utf-8")
    secret.chmod(0o600)
    accounts = replace(
        settings.accounts, admin_password_file=secret, replication_password_file=secret, verify_password_file=secret
    )
    settings = replace(settings, token_file=secret, accounts=accounts, **changed)
    path = folder / f"{settings.name}.toml"
    lines = [
        f"{one.name} = {toml(value)}" for one in fields(settings) if (value := getattr(settings, one.name)) is not None
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def some(tmp_path: Path, name: str, server: ZooKeeperServer | None = None) -> Settings:
    """Return the settings of a cluster; without a server, of one whose ZooKeeper is not there."""
    where = server or ZooKeeperServer(tmp_path / "nowhere")
    return simulated_settings(f"/oscar-ha/{name}", where, controllers=1)


@asynccontextmanager
async def serving(*places: Path) -> AsyncIterator[Clusters]:
    clusters = Clusters(places, NAME, scan_seconds=0.1)
    task = asyncio.create_task(clusters.run())
    try:
        yield clusters
    finally:
        clusters.stop()
        await asyncio.wait_for(task, 20)


def one_of(clusters: Clusters, path: Path) -> Served:
    return clusters.served[path]


def by_name(clusters: Clusters, name: str) -> Served:
    return next(one for one in clusters.served.values() if one.cluster == name)


# -- files, without a server --------------------------------------------------------------------------------------------


async def test_a_file_that_is_broken_names_itself_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    async with serving(tmp_path) as clusters:
        await until(lambda: broken in clusters.served and clusters.served[broken].state is State.REFUSED, "refused")
        assert str(broken) in one_of(clusters, broken).why
        assert "not TOML" in one_of(clusters, broken).why

        broken.write_text("name = 'x'", encoding="utf-8")
        await until(lambda: "sites" in one_of(clusters, broken).why, "read again")


async def test_a_secret_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, some(tmp_path, "one"))
    (tmp_path / "secrets" / "one").unlink()
    async with serving(path, tmp_path) as clusters:
        await until(lambda: path in clusters.served and clusters.served[path].state is State.REFUSED, "refused")

        assert "accounts.admin_password_file" in one_of(clusters, path).why


async def test_two_clusters_with_one_address_are_told_with_both_files(tmp_path: Path) -> None:
    first = some(tmp_path, "first")
    paths = write(tmp_path, first), write(tmp_path, replace(some(tmp_path, "second"), controllers=first.controllers))
    async with serving(tmp_path) as clusters:
        await until(lambda: any("both name" in one.why for one in clusters.served.values()), "the error")
        (why,) = [one.why for one in clusters.served.values() if "both name" in one.why]

        assert all(str(path) in why for path in paths)
        assert f"the address 127.0.0.1:{first.controllers[0].port}" in why


async def test_a_place_that_is_not_there_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        await Clusters([tmp_path / "none"], NAME).run()


def test_only_toml_files_of_a_folder_are_settings(tmp_path: Path) -> None:
    (tmp_path / "a.toml").touch()
    (tmp_path / "a.toml.old").touch()

    assert list(settings_files([tmp_path])) == [tmp_path / "a.toml"]


@pytest.mark.parametrize("text", ["8700", ":8700", "localhost:", "localhost:0", "localhost:99999"])
def test_an_address_without_host_or_port_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--listen"):
        address_of(text)


# -- fairness -----------------------------------------------------------------------------------------------------------


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept, and never answer."""
    await reader.read(-1)
    writer.close()


@asynccontextmanager
async def hanging(cluster: SimulatedCluster) -> AsyncIterator[None]:
    """Replace the HTTP of all watchdogs and replicators of a cluster by one that hangs; their records stay."""
    for part in cluster.parts:
        await part.fall_silent()
    addresses = [(one.host, one.watchdog_port) for one in cluster.settings.nodes]
    addresses += [(one.host, one.http_port) for one in cluster.settings.replicators]
    servers = [await asyncio.start_server(hangs, *address) for address in addresses]
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def settled(cluster: SimulatedCluster) -> None:
    await until(lambda: cluster.nodes["db-clinic"].lease_epoch == 1, "the first primary")
    cluster.write_up_to("0-1-100")
    standbys = [cluster.nodes[name] for name in ("db-toronto", "db-montreal")]
    await until(lambda: all(node.role is Role.STANDBY for node in standbys), "two standbys")
    await asyncio.gather(*(part.publish() for part in cluster.parts))


def has_begun(cluster: SimulatedCluster) -> bool:
    return any(what in ("seal", "fence") for _, what, _ in cluster.history.effects)


@pytest.mark.servers
async def test_clusters_that_hang_or_are_broken_delay_no_other(
    tmp_path: Path, zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """One's watchdogs accept and never answer while its primary is down, one's records are garbage, one's file is broken,
    one's ZooKeeper is not there; the last one fails over in normal time."""
    name = zookeeper_root.rsplit("/", 1)[1][:20].strip("-")
    hung, garbled, well = (SimulatedCluster(some(tmp_path, f"{name}-{what}", zookeeper)) for what in ("a", "b", "c"))
    for cluster in (hung, garbled, well):
        write(tmp_path, cluster.settings)
    write(tmp_path, some(tmp_path, "no-zookeeper"))
    (tmp_path / "broken.toml").write_text("?", encoding="utf-8")
    async with AsyncExitStack() as stack:
        for cluster in (hung, garbled, well):
            await stack.enter_async_context(cluster)
        clusters = await stack.enter_async_context(serving(tmp_path))
        await asyncio.gather(*(settled(cluster) for cluster in (hung, garbled, well)))
        await stack.enter_async_context(hanging(hung))
        await hung.nodes["db-clinic"].see(Database.DOWN)
        await garble(garbled)
        await asyncio.sleep(0)
        assert not has_begun(well)
        down = clock.now()
        await well.nodes["db-clinic"].see(Database.DOWN)
        await until(lambda: has_begun(well), "the failover begins")
        began_ms = clock.ms_between(down, clock.now())
        await until(lambda: well.nodes["db-toronto"].lease_epoch == 2, "it has ended")

        assert began_ms < NORMAL_MS
        states = {one.cluster: one.state for one in clusters.served.values()}
        assert [states[one.settings.name] for one in (hung, garbled, well)] == [State.SERVED] * 3
        assert states["broken"] is State.REFUSED
        await until(lambda: "no ZooKeeper answers" in by_name(clusters, "no-zookeeper").why, "it is refused")


async def garble(cluster: SimulatedCluster) -> None:
    """Make what everybody reads unreadable."""
    coordination = cluster.replicators["clinic"].coordination
    for path in ("pause", "plan", "verify", "automatic", "orders/db-clinic", "rejoin/db-toronto", "history/0"):
        await coordination.ensure(path)
        await asyncio.to_thread(coordination.client.set, coordination.path(path), b"\xff{" * 100_000)


@pytest.mark.servers
async def test_a_folder_is_followed_and_the_overview_tells_of_it(
    tmp_path: Path, zookeeper: ZooKeeperServer, zookeeper_root: str
) -> None:
    """A file that comes is served, one that changes is begun anew, one that goes leaves its election to others."""
    name, port = zookeeper_root.rsplit("/", 1)[1][:20].strip("-"), free_port()
    first, second = (some(tmp_path, f"{name}-{what}", zookeeper) for what in ("a", "b"))
    path = write(tmp_path, first)
    async with serving(tmp_path) as clusters, overview.served(clusters, "127.0.0.1", port), ClientSession() as client:
        await until(lambda: [one.state for one in clusters.served.values()] == [State.SERVED], "the first is served")
        late = write(tmp_path, second)
        await until(lambda: [one.state for one in clusters.served.values()] == [State.SERVED] * 2, "both are")
        before = one_of(clusters, path).loop
        write(tmp_path, first, acks="all")
        await until(lambda: one_of(clusters, path).loop not in (before, None), "begun anew")
        await until(lambda: all(leads(one) for one in clusters.served.values()), "both lead")
        async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
            text = await answer.text()
        assert text.count("# TYPE oscar_ha_controller_leading gauge") == 1
        assert f'oscar_ha_controller_leading{{cluster="{second.name}"}} 1.0' in text
        late.unlink()
        await until(lambda: late not in clusters.served, "the second is left")
        async with client.get(f"http://127.0.0.1:{port}/v1/clusters") as answer:
            assert [one["cluster"] for one in await answer.json()] == [first.name]
        await until_nobody_stands(one_of(clusters, path), second)


def leads(one: Served) -> bool:
    return one.loop is not None and one.loop.world.leadership.valid()


async def until_nobody_stands(other: Served, gone: Settings) -> None:
    """The session lives on: what was the other cluster's in it must be gone all the same."""
    assert other.loop is not None
    session = other.loop.world.coordination.client
    deadline = clock.after(clock.now(), 5_000)
    while await session.get_children_async(f"{gone.root}/election"):
        assert clock.seconds_left(deadline) > 0, "its election node stays"
        await asyncio.sleep(0.02)
