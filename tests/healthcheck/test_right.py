"""A primary without ZooKeeper, on the watchdog's own clock: grants keep it open, and only a lease that counts does after that."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from aiohttp import web
from kazoo.client import KazooClient

from cluster import http, records
from cluster.records import Durability, DurabilityRecord, GrantRequest
from replicator.granting import Grants
from replicator.permission import Standing
from tests.healthcheck.site import SECRETS, Site, eventually
from tests.servers.proxy import Proxy
from tests.servers.zookeeper import ZooKeeperServer

pytestmark = pytest.mark.servers
RECORD = DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("toronto",), since="", serial=1)
CUT = Standing(site="toronto", epoch=1, primary_site="clinic", durability=RECORD, sealed_epoch=0, whole=True,
               lease_until=None)  # fmt: skip


class Toronto:
    """Grants as the replicator of the other site does, by a standing that the test sets."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.standing, self.asked = CUT, list[GrantRequest]()
        self._own = site.settings.replicator("toronto")
        self._grants = Grants("toronto", directory, site.settings.timing)

    async def grant(self, request: web.Request) -> web.Response:
        asked = records.decode(GrantRequest, await http.body_of(request), where="a grant")
        given = await self._grants.give(asked, lambda: self.standing)
        self.asked.append(asked)
        return web.json_response(asdict(given))

    async def serve(self, ready: threading.Event, ended: asyncio.Event) -> None:
        app = http.application(SECRETS["token"])
        app.router.add_post("/v1/grant", self.grant)
        runner = await http.serve(app, self._own.host, self._own.http_port, what="toronto")
        ready.set()
        await ended.wait()
        await runner.cleanup()


@contextmanager
def toronto_of(site: Site, directory: Path) -> Iterator[Toronto]:
    """Serve grants in a thread of its own."""
    toronto, ready, ended, loop = Toronto(site, directory), threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(toronto.serve(ready, ended)), daemon=True)
    thread.start()
    assert ready.wait(10.0)
    try:
        yield toronto
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10.0)
        loop.close()


@pytest.fixture
def cut_off(tmp_path: Path, zookeeper: ZooKeeperServer, oscar_template: Path) -> Iterator[tuple[Site, Proxy]]:
    """A site whose watchdog reaches ZooKeeper through a proxy; the test itself reaches it always."""
    with Proxy(zookeeper.port) as proxy:
        site = Site(tmp_path, f"127.0.0.1:{proxy.port}", "by-grants", oscar_template)
        site.zookeeper = KazooClient(hosts=zookeeper.address, timeout=10)
        try:
            yield site, proxy
        finally:
            site.close()


def test_grants_keep_a_primary_open_and_a_lease_that_came_back_counts_only_while_no_later_plan_runs(
    cut_off: tuple[Site, Proxy], tmp_path: Path
) -> None:
    """Whoever made the plan may have taken the end of the lease for a proof."""
    (site, proxy), watchdog = cut_off, cut_off[0].watchdog_one
    site.start()
    site.zookeeper.create(site.path("durability"), records.encode(RECORD), makepath=True)
    site.make_primary()
    site.zookeeper.create(site.path("plan"), json.dumps({"epoch": 2}).encode())
    with toronto_of(site, tmp_path) as toronto:
        proxy.__exit__(None, None, None)
        eventually(lambda: not site.zookeeper.exists(site.path("nodes/one")), what="its record does not go")
        by_grants = watchdog.wait_for(role="primary", granted_by=["toronto"])
        served = watchdog.ask("/primary")[0], site.one.value("SELECT @@read_only")
        metrics = watchdog.ask("/metrics")[1]
        with Proxy(proxy.target, port=proxy.port):
            eventually(lambda: site.zookeeper.exists(site.path("nodes/one")), what="its record is made anew")
            back = watchdog.wait_for(granted_by=["toronto"], role="primary")
            toronto.standing = replace(CUT, sealed_epoch=1)
            watchdog.wait_for(role="fenced", read_only=True, resumable=True)
            site.zookeeper.delete(site.path("plan"))
            watchdog.wait_for(role="primary", granted_by=[])

    assert served == (200, 0)
    assert 'oscar_ha_watchdog_without_zookeeper{node="one"} 1.0' in metrics
    assert (by_grants["serial"], by_grants["position_age_ms"], back["position_age_ms"]) == (1, None, None)
    assert toronto.asked[0].left_ms == 0.0, "the first request cannot say that it has all grants"
    assert toronto.asked[-1].left_ms > 0.0
    assert toronto.asked[-1].mark is not None
