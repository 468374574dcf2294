"""What Prometheus reads: base units, prefix `oscar_ha_replicator_`, counters end with `_total`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SYNC_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class Metrics:
    """One registry for one process, so that tests may have several."""

    def __init__(self, site: str) -> None:
        self.registry = CollectorRegistry()
        self._site = site
        self.connected = self._gauge("connected", "1 while the stream from the primary is alive")
        self.acknowledging = self._gauge("acknowledging", "1 while acknowledgements are sent")
        self.epoch = self._gauge("epoch", "the epoch being pulled")
        self.sealed_epoch = self._gauge("sealed_epoch", "nothing of this epoch or older is acknowledged again")
        self.standbys = self._gauge("standbys_attached", "replicas that read from this archive")
        self.orphans = self._gauge("orphans", "tails set aside because no later primary had them")
        self.gaps = self._gauge("gaps", "ended epochs that are not complete here")
        self.events = self._counter("events", "events archived")
        self.received_bytes = self._counter("bytes", "bytes received from the primary and other replicators")
        self.sent_bytes = self._counter("sent_bytes", "bytes sent to standbys and other replicators")
        self.acknowledgements = self._counter("acknowledgements", "acknowledgements sent")
        self.sync_seconds: Histogram = Histogram(
            "oscar_ha_replicator_write_and_fdatasync_seconds", "time to make a batch durable",
            ["site"], registry=self.registry, buckets=SYNC_BUCKETS,
        ).labels(site)  # fmt: skip

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"oscar_ha_replicator_{name}", help_text, ["site"], registry=self.registry).labels(self._site)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(f"oscar_ha_replicator_{name}", help_text, ["site"], registry=self.registry).labels(self._site)
