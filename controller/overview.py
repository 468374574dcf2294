"""The overview of a process that serves many clusters: one list of them, and the metrics of all in one page."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster import clock, http
from controller.clusters import Clusters, Served, State
from controller.readiness import findings, sentences

DELAY_EVERY_SECONDS = 0.1


@dataclass(slots=True)
class Delay:
    """How late the event loop was at most since somebody asked: what one cluster costs all others."""

    worst_ms: float = 0.0

    async def watch(self) -> None:
        """Measure for ever."""
        while True:
            due = clock.after(clock.now(), DELAY_EVERY_SECONDS * 1000)
            await asyncio.sleep(DELAY_EVERY_SECONDS)
            self.worst_ms = max(self.worst_ms, clock.ms_between(due, clock.now()))

    def take(self) -> float:
        """Return the worst since the last time, and begin anew."""
        worst, self.worst_ms = self.worst_ms, 0.0
        return worst


@asynccontextmanager
async def served(clusters: Clusters, host: str, port: int) -> AsyncIterator[None]:
    """Answer at an address until the end: nothing here changes anything. Raises BadInput when the port is in use."""
    overview = Overview(clusters)
    watching = asyncio.create_task(overview.delay.watch())
    runner = await http.serve(overview.app, host, port, what="the overview (--listen)")
    try:
        yield
    finally:
        watching.cancel()
        await runner.cleanup()


class Overview:
    """Handlers of the overview."""

    def __init__(self, clusters: Clusters) -> None:
        self.delay = Delay()
        self.app = http.application(secrets.token_hex())  # nobody knows it: there is nothing to change
        self.app.add_routes([web.get("/v1/clusters", self.list), web.get("/metrics", self.metrics)])
        self._clusters = clusters
        self._process = ProcessCollector(registry=None)

    async def list(self, _: web.Request) -> web.Response:
        """Every settings file: what of it is served, and if not why."""
        return web.json_response([told(one) for one in self._clusters.served.values()])

    async def metrics(self, _: web.Request) -> web.Response:
        """What Prometheus reads of all clusters, and of the files that none is served of."""
        families: dict[str, Metric] = {}
        for one in tuple(self._clusters.served.values()):
            if one.loop is not None:
                merge(families, one.loop.metrics.registry.collect())
            await asyncio.sleep(0)  # another cluster may be failing over
        merge(families, (*self._files(), self._delay(), *self._process.collect()))
        registry = CollectorRegistry()
        registry.register(_Fixed(tuple(families.values())))
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, content_type="text/plain")

    def _files(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "oscar_ha_controller_cluster", "1 for the state of each settings file of this process.",
            labels=["cluster", "file", "state"],
        )  # fmt: skip
        newer = GaugeMetricFamily(
            "oscar_ha_controller_settings_refused", "1 if the settings file as it is now cannot be used.",
            labels=["cluster", "file"],
        )  # fmt: skip
        for one in self._clusters.served.values():
            for state in State:
                family.add_metric([one.cluster, str(one.path), state.value], float(one.state is state))
            newer.add_metric([one.cluster, str(one.path)], float(bool(one.why)))
        return family, newer

    def _delay(self) -> Metric:
        family = GaugeMetricFamily(
            "oscar_ha_controller_delay_seconds", "How late this process was at most since the last scrape.", labels=[]
        )
        family.add_metric([], self.delay.take() / 1000)
        return family


class _Fixed(Collector):
    """What was collected already."""

    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge(families: dict[str, Metric], more: Iterable[Metric]) -> None:
    """Add samples to the family of their name: one family is told once, whoever has samples of it."""
    for one in more:
        known = families.get(one.name)
        if known is None:
            families[one.name] = one
        else:
            known.samples.extend(one.samples)


def told(one: Served) -> dict[str, Any]:
    """Return a cluster as `GET /v1/clusters` tells it."""
    loop = one.loop
    reasons = sentences(findings(loop.world.mirror.view())) if loop is not None else [one.why or "it is not served"]
    return {
        "file": str(one.path), "cluster": one.cluster, "state": one.state.value, "why": one.why,
        "url": one.url,
        "leading": loop is not None and loop.world.leadership.valid(),
        "ready": loop is not None and not reasons, "reasons": reasons,
    }  # fmt: skip
