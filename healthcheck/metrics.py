"""What Prometheus reads: taken from the watchdog's memory when it asks, so that idling costs nothing."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.orders import Obeying
from cluster.position import Position
from cluster.records import Condition, Database, NodeReport, Role

PREFIX = "oscar_ha_watchdog"
MS_PER_SECOND = 1000
PROBE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 3.0)
Look = Callable[[], tuple[NodeReport, float]]
"""Returns the report of now and the seconds left of the lease."""


class Metrics:
    """The registry of one watchdog."""

    def __init__(self, look: Look) -> None:
        self.registry = CollectorRegistry()
        self.fences = Counter(f"{PREFIX}_fences", "Fences by how they were reached.", ("how",), registry=self.registry)
        self.probes = Histogram(
            f"{PREFIX}_probe_seconds", "Time a probe took.", buckets=PROBE_BUCKETS, registry=self.registry
        )
        self.registry.register(_Report(look))


class _Report(Collector):
    def __init__(self, look: Look) -> None:
        self._look = look

    def describe(self) -> list[Metric]:
        """Say nothing before the first collection: there may be no report yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        report, lease_seconds = self._look()
        role = GaugeMetricFamily(f"{PREFIX}_role", "1 for the role of this node.", labels=("node", "role"))
        for one in Role:
            role.add_metric((report.node, one.value), float(report.role is one))
        yield role
        yield _health(report)
        plain: tuple[tuple[str, str, float | None], ...] = (
            ("database_up", "1 if the database answers.", float(report.database is Database.UP)),
            ("read_only", "1 if the database is read-only.", _number(report.read_only)),
            ("replicating", "1 if both replication threads run.", _number(report.replicating)),
            (
                "lag_seconds",
                "How far behind it is beyond what is ordered; absent while it is held.",
                _lag_seconds(report),
            ),
            ("behind_seconds", "Age of the newest heartbeat row.", _seconds(report.lag_ms)),
            ("ordered_delay_seconds", "The delay that an operator ordered.", _delay_seconds(report)),
            ("held", "1 while it is ordered to stand still.", _number(_is_held(report))),
            ("lease_seconds", "What is left of the lease, 0 without one.", lease_seconds),
            ("without_zookeeper", "1 while it writes by the grants of replicators.", float(bool(report.granted_by))),
            ("holding", "1 while it serves though it is cut off.", float(report.holds)),
            (
                "alone",
                "1 while it answers commits that nobody else has, and no record says so.",
                float(report.alone is not None),
            ),
            ("disk_free_bytes", "Free space where the database writes.", _whole(report.disk_free_bytes)),
            ("epoch", "The newest epoch this watchdog has seen.", float(report.epoch)),
            ("sealed_epoch", "Nothing of this epoch or older is opened again.", float(report.sealed_epoch)),
            ("position_sequence", "Sum of the sequence numbers of the position.", _sequence(report.position)),
        )
        for name, text, value in plain:
            if value is not None:  # unknown is absent, never 0
                gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("node",))
                gauge.add_metric((report.node,), value)
                yield gauge


def _health(report: NodeReport) -> Metric:
    health = GaugeMetricFamily(f"{PREFIX}_health", "1 for the condition of the database.", labels=("node", "condition"))
    for condition in Condition:
        if report.health is not None:
            health.add_metric((report.node, condition.value), float(report.health.condition is condition))
    return health


def _is_held(report: NodeReport) -> bool | None:
    if report.order is None or report.order.state is Obeying.UNKNOWN:
        return None
    return report.order.state in (Obeying.MOVING, Obeying.HELD, Obeying.LATE)


def _delay_seconds(report: NodeReport) -> float | None:
    return None if _is_held(report) is None or report.order is None else float(report.order.delay_seconds)


def _lag_seconds(report: NodeReport) -> float | None:
    behind = _seconds(report.lag_ms)
    return None if behind is None or _is_held(report) else max(0.0, behind - (_delay_seconds(report) or 0.0))


def _number(value: bool | None) -> float | None:
    return None if value is None else float(value)


def _whole(value: int | None) -> float | None:
    return None if value is None else float(value)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / MS_PER_SECOND


def _sequence(position: str | None) -> float | None:
    return None if position is None else float(sum(gtid.sequence for gtid in Position.parse(position).last.values()))
