"""What Prometheus reads: base units, prefix `oscar_ha_replicator_`, counters end with `_total`."""

import math
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cluster.binlog.rows import Change
from cluster.position import Position
from replicator.pruning import Sizes
from replicator.remedy import Remedy

TABLES_LABELLED_MAX = 64
"""So many tables have series of their own, those that change first; all others are `other`."""

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
        self._of_the_archive()
        self._archive_gauges()
        self.events = self._counter("events", "events archived")
        self.received_bytes = self._counter("bytes", "bytes received from the primary and other replicators")
        self.sent_bytes = self._counter("sent_bytes", "bytes sent to standbys and other replicators")
        self.acknowledgements = self._counter("acknowledgements", "acknowledgements sent")
        self.changes_backlog = self._gauge("changes_backlog_bytes", "archived, but changes of rows not counted yet")
        self.changes_skipped = self._counter("changes_skipped_bytes", "archived, changes of rows never counted")
        self._changed = Counter("oscar_ha_replicator_changed_rows", "rows changed, as seen in the stream",
                                ["site", "table", "kind"], registry=self.registry)  # fmt: skip
        self._unsafe = Counter("oscar_ha_replicator_unsafe_events", "events that a stream of rows should not hold",
                               ["site", "kind"], registry=self.registry)  # fmt: skip
        self._mass_change = Gauge("oscar_ha_replicator_mass_change", "1 while more rows change than the alarm allows",
                                  ["site", "table", "kind"], registry=self.registry)  # fmt: skip
        self._labelled: set[str] = set()
        self._standing: set[tuple[str, str]] = set()
        self._ends = Counter("oscar_ha_replicator_streams_ended", "streams that ended, by what that calls for",
                             ["site", "remedy"], registry=self.registry)  # fmt: skip
        self._remedy = Gauge("oscar_ha_replicator_stream_remedy", "1 for what the pulling waits for, while it does",
                             ["site", "remedy"], registry=self.registry)  # fmt: skip
        self.waits_for(None)
        self.certificate_expires = self._gauge(
            "certificate_expires_timestamp_seconds", "when our TLS certificate ends, Unix time; 0 without TLS"
        )
        self.sync_seconds: Histogram = Histogram(
            "oscar_ha_replicator_write_and_fdatasync_seconds", "time to make a batch durable",
            ["site"], registry=self.registry, buckets=SYNC_BUCKETS,
        ).labels(site)  # fmt: skip

    def _of_the_archive(self) -> None:
        self.disk_free_bytes = self._gauge("disk_free_bytes", "room left where the archive is")
        self.disk_reserve_reached = self._gauge("disk_reserve_reached", "1 while nothing is received for want of room")
        self.damaged_files = self._gauge("damaged_files", "closed files that are not what was written")
        self.mended_files = self._counter("mended_files", "damaged files replaced by whole ones from another source")
        self.scrubbed_bytes = self._counter(
            "scrubbed_bytes", "of closed files, read again to see whether they still hold"
        )
        self.scrub_finished = self._gauge(
            "scrub_finished_timestamp_seconds", "when all closed files had been read again, Unix time; 0: never yet"
        )
        self.gaps = self._gauge("gaps", "ended epochs that are not complete here")

    def _archive_gauges(self) -> None:
        self._files = self._gauge("archive_files", "files in the archive")
        self._stored_bytes = Gauge("oscar_ha_replicator_archive_stored_bytes", "what the archive's files take on disk",
                                   ["site", "form"], registry=self.registry)  # fmt: skip
        self.packed_bytes = self._counter("packed_bytes", "of the primaries' files that were compressed here")
        self._raw_bytes = self._gauge("archive_raw_bytes", "what the archive's files were on their primaries")
        self._oldest_time = self._gauge(
            "archive_oldest_timestamp_seconds", "first commit in the archive, Unix time; 0 while it is not known"
        )
        self._oldest_sequence = Gauge("oscar_ha_replicator_archive_oldest_sequence", "the archive begins behind this GTID",
                                      ["site", "domain"], registry=self.registry)  # fmt: skip
        self._floor_behind = Gauge("oscar_ha_replicator_archive_floor_transactions",
                                   "transactions the archive has beyond what this member or hold needs kept; NaN: not known",
                                   ["site", "who"], registry=self.registry)  # fmt: skip
        self._floor_keeps = Gauge("oscar_ha_replicator_archive_floor_keeps", "1 while this keeps files beyond a limit",
                                  ["site", "who"], registry=self.registry)  # fmt: skip
        self._over_bytes = self._gauge("archive_over_bytes", "more than archive.max_bytes allows, because it is needed")
        self._expired_holds = self._gauge("archive_expired_holds", "holds whose time is over; they keep nothing")

    def retention(
        self, sizes: Sizes, floors: Sequence[tuple[str, Position | None, bool]], at: Position | None, *,
        over_bytes: int, expired: int,
    ) -> None:  # fmt: skip
        """Take what a round of retention showed: who needs what, and whether that keeps anything beyond a limit."""
        self._files.set(sizes.files)
        for form, stored_bytes in sizes.stored_bytes.items():
            self._stored_bytes.labels(self._site, form).set(stored_bytes)
        self._raw_bytes.set(sizes.raw_bytes)
        self._over_bytes.set(over_bytes)
        self._expired_holds.set(expired)
        self._floor_behind.clear()
        self._floor_keeps.clear()
        for who, position, keeps in floors:
            behind = math.nan if position is None or at is None else position.distance(at)
            self._floor_behind.labels(self._site, who).set(behind)
            self._floor_keeps.labels(self._site, who).set(keeps)

    def oldest(self, position: Position | None, time: int) -> None:
        """Say where the archive begins, and when that was."""
        self._oldest_time.set(time)
        self._oldest_sequence.clear()
        for gtid in () if position is None else position.last.values():
            self._oldest_sequence.labels(self._site, str(gtid.domain)).set(gtid.sequence)

    def stream_ended(self, remedy: Remedy) -> None:
        """Count the end of a stream, and say what is waited for."""
        self._ends.labels(self._site, remedy.value).inc()
        self.waits_for(remedy)

    def waits_for(self, remedy: Remedy | None) -> None:
        """Say what the pulling waits for; None while it streams."""
        for one in Remedy:
            self._remedy.labels(self._site, one.value).set(one is remedy)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def changed_rows(self, rows: Mapping[tuple[str, Change], int], unsafe: Mapping[str, int]) -> None:
        """Add rows by table and kind, and what should not be there by kind."""
        for (table, kind), count in rows.items():
            self._changed.labels(self._site, self._label(table), kind).inc(count)
        for sort, count in unsafe.items():
            self._unsafe.labels(self._site, sort).inc(count)

    def mass_changes(self, standing: Iterable[tuple[str, str]]) -> None:
        """Take the alarms that stand, as table and kind."""
        now = set(standing)
        for table, kind in self._standing - now:
            self._mass_change.remove(self._site, table, kind)
        for table, kind in now:
            self._mass_change.labels(self._site, table, kind).set(1)
        self._standing = now

    def _label(self, table: str) -> str:
        if len(self._labelled) < TABLES_LABELLED_MAX:
            self._labelled.add(table)
        return table if table in self._labelled else "other"

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"oscar_ha_replicator_{name}", help_text, ["site"], registry=self.registry).labels(self._site)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(f"oscar_ha_replicator_{name}", help_text, ["site"], registry=self.registry).labels(self._site)
