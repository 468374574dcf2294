"""What Prometheus reads of a controller. Prefix `oscar_ha_`, base units, counters end in `_total`."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.decide import warnings
from controller.model import HistoryRecord, HookRun, View
from controller.plan import NameAckers, NameIsolation, NoteRejoin, Reseed, Restart, ReturnToSync, SettleAckers
from controller.readiness import readiness

SECONDS_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


class Metrics(Collector):
    """Counts finished plans; everything else is read from the view at the moment of the scrape."""

    def __init__(self, cluster: str, view: Callable[[], View], leading: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._view = view
        self._leading = leading
        self.registry = CollectorRegistry()
        self._plans = Counter(
            "oscar_ha_plans_total", "Finished plans.", ["cluster", "kind", "outcome", "proof"], registry=self.registry
        )
        self._seconds = Histogram(
            "oscar_ha_plan_seconds", "From seeing the fault to the verified write.", ["cluster", "kind"],
            buckets=SECONDS_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._lost_plans = Counter(
            "oscar_ha_failovers_with_loss_total", "Failovers by which an operator accepted a loss, and one was not ruled out.",
            ["cluster", "known"], registry=self.registry,
        )  # fmt: skip
        self._lost = Counter(
            "oscar_ha_lost_transactions_total", "Transactions that failovers lost at most; of unknown losses what is known.",
            ["cluster"], registry=self.registry,
        )  # fmt: skip
        self._lost_seconds = Counter(
            "oscar_ha_lost_seconds_total", "Seconds within which what failovers lost was acknowledged, at most.",
            ["cluster"], registry=self.registry,
        )  # fmt: skip
        self._acker_changes = Counter(
            "oscar_ha_acker_changes_total", "Changes of who acknowledges, made by this controller.",
            ["cluster", "change"], registry=self.registry,
        )  # fmt: skip
        self._rejoins = Counter(
            "oscar_ha_rejoins_total", "What was done by itself to nodes that came back, by this controller.",
            ["cluster", "node", "rung", "outcome"], registry=self.registry,
        )  # fmt: skip
        self._hooks = Counter(
            "oscar_ha_hooks_total", "Runs of hooks by this controller.", ["cluster", "hook", "event", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def count(self, done: HistoryRecord) -> None:
        """Count one finished plan."""
        self._plans.labels(self._cluster, done.kind.value, done.outcome.split(":")[0], done.proof or "none").inc()
        self._seconds.labels(self._cluster, done.kind.value).observe(done.total_ms / 1000)
        if done.loss is not None and not done.loss.is_nothing:
            known = "exactly" if done.loss.transactions is not None else "in part"
            self._lost_plans.labels(self._cluster, known).inc()
            self._lost.labels(self._cluster).inc(done.loss.transactions or done.loss.at_least)
            self._lost_seconds.labels(self._cluster).inc(done.loss.seconds or 0.0)

    def count_hook(self, done: HookRun) -> None:
        """Count one run of a hook that has ended."""
        self._hooks.labels(self._cluster, done.name, done.event, (done.outcome or "").split(":")[0]).inc()

    def count_repair(
        self, repair: NameAckers | SettleAckers | ReturnToSync | NameIsolation | Reseed | Restart | NoteRejoin
    ) -> None:
        """Count one change of the durability record, or one thing done to a node that came back."""
        match repair:
            case NameAckers(durability=durability):
                change = "named" if durability.ackers else "degraded"
                self._acker_changes.labels(self._cluster, change).inc()
            case ReturnToSync():
                self._acker_changes.labels(self._cluster, "in sync").inc()
            case SettleAckers():
                self._acker_changes.labels(self._cluster, "settled").inc()
            case NameIsolation():
                return  # it is no change of who acknowledges
            case Reseed(node=node, event=event) | Restart(node=node, event=event):
                self._rejoins.labels(self._cluster, node, event.rung, "begun").inc()
            case NoteRejoin(node=node, event=event):
                outcome = (event.outcome or "unknown").split(":")[0]
                self._rejoins.labels(self._cluster, node, event.rung, outcome).inc()

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges of this moment."""
        view = self._view()
        codes = sorted({reason.code.value for reason in readiness(view)})
        ready = GaugeMetricFamily(
            "oscar_ha_failover_ready",
            "1 if a failover would work now; else 0 for each reason, by its code.",
            labels=["cluster", "reason"],
        )
        for code in codes or ("",):
            ready.add_metric([self._cluster, code], 0.0 if codes else 1.0)
        yield ready
        yield self._one("oscar_ha_controller_leading", "1 on the controller that leads.", float(self._leading()))
        yield self._one("oscar_ha_epoch", "The newest epoch.", float(view.epoch.epoch if view.epoch else 0))
        yield self._one("oscar_ha_warnings", "What a person should mend by day.", float(len(warnings(view))))
        yield self._one(
            "oscar_ha_automatic_failovers_recent",
            "Automatic failovers of late that nobody has forgiven.",
            float(view.automatic),
        )
        degraded = view.alone is not None
        yield self._one("oscar_ha_durability_degraded", "1 while commits may be on no other disk.", float(degraded))
        yield self._one("oscar_ha_paused", "1 while automatic action is paused.", float(view.paused))
        maintenance = GaugeMetricFamily(
            "oscar_ha_maintenance", "1 while somebody works on the node.", labels=["cluster", "node"]
        )
        for node in view.nodes:
            maintenance.add_metric([self._cluster, node.name], float(node.maintenance is not None))
        yield maintenance
        yield self._ackers(view)

    def _ackers(self, view: View) -> Metric:
        """Return every site with whether it is named to acknowledge, does, or its older word is still needed."""
        family = GaugeMetricFamily(
            "oscar_ha_acker",
            "1 if the site is named to acknowledge, acknowledges, or acknowledged by a record that is not settled.",
            labels=["cluster", "site", "state", "acks"],
        )
        record = view.durability
        for one in view.replicators:
            named = record is not None and one.site in record.ackers
            states = {
                "named": named,
                "acknowledging": named and one.report is not None and one.report.acknowledging,
                "former": record is not None and any(one.site in group for group in record.former),
            }
            for state, holds in states.items():
                acks = record.acks.value if record else ""
                family.add_metric([self._cluster, one.site, state, acks], float(holds))
        return family

    def _one(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["cluster"])
        family.add_metric([self._cluster], value)
        return family

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self.registry)
