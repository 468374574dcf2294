"""A copy of the cluster's records, kept current by ZooKeeper's watches; only what changed is read again.

Every part renews its record once a second, and most of that is a position that moved. Such a record is read, and waits
for the next tick of the loop; whatever else has changed wakes the loop at once.

It also measures absence: for how long a node or a replicator has had no record, on our own clock, and only while we
ourselves were connected. Our own isolation must not look like somebody's death (TRAPS.md 32).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from cluster import clock
from cluster.clock import Nanos
from cluster.coordination import Coordination
from cluster.errors import BadInput, Unreachable
from cluster.log import Repeated
from cluster.orders import Order
from cluster.records import Database, DurabilityRecord, EpochRecord, NodeReport, ReplicatorReport, Suspension
from cluster.settings import Node, Replicator, Settings
from controller.model import (
    MS_PER_HOUR,
    MS_PER_MINUTE,
    AutomaticRecord,
    DegradedRecord,
    NodeFacts,
    PlanRecord,
    Policy,
    RejoinRecord,
    ReplicatorFacts,
    VerifyRecord,
    View,
)
from controller.seen import SeenRecord, Sighting, sighting

FULL_REFRESH_MS = 30_000
"""All is marked stale this often, should a watch ever be lost. One session's requests and watches come in order, so none
is; and for hundreds of clusters reading what has not changed would be most of what there is to do."""
MS_PER_SECOND = 1000
Record = TypeVar("Record")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Since when a replicator's host has refused us, and since when nothing has answered. None: it has not."""

    refused_since: Nanos | None = None
    silent_since: Nanos | None = None


class Mirror:
    """Records by path. `refresh` before use; `changed` is set whenever there is news."""

    def __init__(self, coordination: Coordination, settings: Settings) -> None:
        self.coordination = coordination
        self.settings = settings
        self.changed, self._refreshing = asyncio.Event(), asyncio.Lock()
        self._kinds: Mapping[str, type] = {
            "epoch": EpochRecord,
            "durability": DurabilityRecord,
            "plan": PlanRecord,
            "pause": Suspension,
            "verify": VerifyRecord,
            "automatic": AutomaticRecord,
            "degraded": DegradedRecord,
            "seen": SeenRecord,
            **{f"nodes/{node.name}": NodeReport for node in settings.nodes},
            **{f"orders/{node.name}": Order for node in settings.nodes},
            **{f"maintenance/{node.name}": Suspension for node in settings.nodes},
            **{f"rejoin/{node.name}": RejoinRecord for node in settings.nodes},
            **{f"replicators/{one.site}": ReplicatorReport for one in settings.replicators},
        }
        self._records: dict[str, tuple[object, int]] = {}
        self._stale = set(self._kinds)
        self._watched: set[str] = set()
        self._trouble = Repeated()
        self._readings: set[asyncio.Task[None]] = set()
        self._absent_since: dict[str, Nanos] = {}
        self._renewed_at: dict[str, Nanos] = {}
        self._idle_since: dict[str, Nanos] = {}
        self._down_since: dict[str, Nanos] = {}
        self._present_since: dict[str, Nanos] = {}
        self._sighted: dict[str, Sighting] = {}
        self._automatic_seen: dict[int, Nanos] = {}
        self._automatic_known: int | None = None
        self.heard: dict[str, Heard] = {}
        """What `controller/hearing.py` learnt by asking replicators directly."""
        self.deaf_since: dict[str, Nanos] = {}
        """Since when a node's watchdog does not answer it, by the node's name."""
        self._full_at = clock.now()
        coordination.listen(self._on_connection)

    async def refresh(self) -> None:
        """Read again what is stale. Raises Unreachable when ZooKeeper does not answer.

        One at a time: what somebody else is just reading is not known yet, and no longer stale.
        """
        async with self._refreshing:
            self.changed.clear()
            if clock.ms_between(self._full_at, clock.now()) >= FULL_REFRESH_MS:
                self._full_at = clock.now()
                self._stale = set(self._kinds)
            paths = sorted(self._stale)
            await asyncio.gather(*(self._read(path) for path in paths))

    def doubt(self, paths: Iterable[str]) -> None:
        """Read these records again at the next refresh: somebody, perhaps we ourselves, may have changed them."""
        self._stale.update(path for path in paths if path in self._kinds)

    def get(self, kind: type[Record], path: str) -> Record | None:
        """Return the record at `path` as of the last refresh."""
        found = self._records.get(path)
        return found[0] if found and isinstance(found[0], kind) else None

    def version(self, path: str) -> int | None:
        """Return the version that a compare-and-set of `path` must name; None when there is no record."""
        found = self._records.get(path)
        return found[1] if found else None

    def view(self) -> View:
        """Return the cluster as of the last refresh; absence is counted up to now."""
        now, timing = clock.now(), self.settings.timing
        return View(
            policy=Policy(
                sites=self.settings.sites,
                initial_primary=self.settings.initial_primary,
                lease_margin_ms=timing.lease_margin_ms,
                watchdog_grace_ms=timing.watchdog_grace_ms,
                acks=self.settings.acks,
                acks_all_degrade_after_ms=self.settings.acks_all_degrade_after_ms,
                degrade_after_ms=self.settings.durability.degrade_after_ms,
                holds=self.settings.failover.holds,
                loses_while_degraded=self.settings.durability.failover_while_degraded == "lose",
                automatic_max=self.settings.failover.automatic_max,
                automatic_within_ms=self.settings.failover.within_minutes * MS_PER_MINUTE,
                rejoin_automatic=self.settings.rejoin.automatic,
                rejoin_attempts_max=self.settings.rejoin.attempts_max,
                rejoin_within_ms=self.settings.rejoin.within_hours * MS_PER_HOUR,
                restart_after_ms=self.settings.rejoin.restart_after_seconds * MS_PER_SECOND,
                health_failover=self.settings.health.failover,
                session_ttl_ms=timing.session_ttl_ms,
                acker_deadline_ms=timing.call_deadline_ms,
            ),
            nodes=tuple(self._node(node, now) for node in self.settings.nodes),
            replicators=tuple(self._replicator(one, now) for one in self.settings.replicators),
            clinics=tuple(clinic.name for clinic in self.settings.clinics),
            epoch=self.get(EpochRecord, "epoch"),
            durability=self.get(DurabilityRecord, "durability"),
            durability_age_ms=self._since_ms(self._renewed_at, "durability", now) or 0.0,
            paused="pause" in self._records,
            pause=self.get(Suspension, "pause"),
            sighted=self.coordination.connected,
            automatic=self._automatic(now),
        )

    def _node(self, node: Node, now: Nanos) -> NodeFacts:
        rejoin = f"rejoin/{node.name}"
        return NodeFacts(
            name=node.name, site=node.site, server_id=node.server_id,
            report=self.get(NodeReport, f"nodes/{node.name}"),
            absent_ms=self._since_ms(self._absent_since, f"nodes/{node.name}", now),
            order=self.get(Order, f"orders/{node.name}"),
            maintenance=self.get(Suspension, f"maintenance/{node.name}"),
            rejoin=self.get(RejoinRecord, rejoin),
            rejoin_age_ms=self._since_ms(self._renewed_at, rejoin, now) or 0.0,
            deaf_ms=self._since_ms(self.deaf_since, node.name, now),
            down_ms=self._since_ms(self._down_since, f"nodes/{node.name}", now) or 0.0,
            missing_to_receive=node.missing_to_receive(),
            missing_to_give=node.missing_to_give(),
            no_promotion=node.no_promotion,
            stale_ms=self._since_ms(self._renewed_at, f"nodes/{node.name}", now),
            last=self._last(f"nodes/{node.name}"),
        )  # fmt: skip

    def _automatic(self, now: Nanos) -> int:
        """Return how many automatic failovers of late count. Those from before this controller began do not."""
        record = self.get(AutomaticRecord, "automatic") or AutomaticRecord()
        within_ms = self.settings.failover.within_minutes * MS_PER_MINUTE
        self._automatic_seen = {
            number: seen for number, seen in self._automatic_seen.items() if clock.ms_between(seen, now) < within_ms
        }
        return sum(number > record.forgiven for number in self._automatic_seen)

    def _see_automatic(self, failovers: int) -> None:
        known = failovers if self._automatic_known is None else self._automatic_known
        self._automatic_seen |= dict.fromkeys(range(known + 1, failovers + 1), clock.now())
        self._automatic_known = failovers

    def _replicator(self, one: Replicator, now: Nanos) -> ReplicatorFacts:
        path, heard = f"replicators/{one.site}", self.heard.get(one.site, Heard())
        return ReplicatorFacts(
            site=one.site, host=one.host, port=one.port,
            report=self.get(ReplicatorReport, path),
            absent_ms=self._since_ms(self._absent_since, path, now),
            stale_ms=self._since_ms(self._renewed_at, path, now),
            idle_ms=self._since_ms(self._idle_since, path, now),
            refused_ms=None if heard.refused_since is None else clock.ms_between(heard.refused_since, now),
            silent_ms=None if heard.silent_since is None else clock.ms_between(heard.silent_since, now),
            present_ms=self._since_ms(self._present_since, path, now),
            last=self._last(path),
        )  # fmt: skip

    def _last(self, path: str) -> Sighting | None:
        """Return what somebody said last: to us, or to the controller that wrote it down."""
        if path in self._sighted:
            return self._sighted[path]
        record = self.get(SeenRecord, "seen") or SeenRecord()
        kind, name = path.split("/", 1)
        return (record.nodes if kind == "nodes" else record.sites).get(name)

    def seen(self) -> SeenRecord:
        """Return what everybody said last, to be written down."""
        nodes = {node.name: self._last(f"nodes/{node.name}") for node in self.settings.nodes}
        sites = {one.site: self._last(f"replicators/{one.site}") for one in self.settings.replicators}
        return SeenRecord(
            nodes={name: last for name, last in nodes.items() if last is not None},
            sites={site: last for site, last in sites.items() if last is not None},
        )

    @staticmethod
    def _since_ms(instants: Mapping[str, Nanos], path: str, now: Nanos) -> float | None:
        since = instants.get(path)
        return clock.ms_between(since, now) if since is not None else None

    def see(self, report: ReplicatorReport) -> None:
        """Note whether a replicator acknowledges, however we came to know it."""
        path = f"replicators/{report.site}"
        if report.acknowledging:
            self._idle_since.pop(path, None)
        else:
            self._idle_since.setdefault(path, clock.now())

    async def _read(self, path: str) -> None:
        self._stale.discard(path)
        watch = None if path in self._watched else self._watch(path)
        if watch is not None:
            self._watched.add(path)
        try:
            found: tuple[object, int] | None = await self.coordination.read(self._kinds[path], path, watch)
        except BadInput as error:
            if self._trouble.is_news(path, str(error)):
                log.error("record.refused", path=path, error=str(error))
            return
        except BaseException:
            self._watched.discard(path)
            self._stale.add(path)
            raise
        if found is None:
            self._records.pop(path, None)
            self._renewed_at.pop(path, None)
            self._idle_since.pop(path, None)
            self._down_since.pop(path, None)
            self._present_since.pop(path, None)
            self._absent_since.setdefault(path, clock.now())
            if self._kinds[path] is AutomaticRecord:
                self._see_automatic(0)
            return
        self._found(path, found)

    def _found(self, path: str, found: tuple[object, int]) -> None:
        if path not in self._renewed_at or self.version(path) != found[1]:
            self._renewed_at[path] = clock.now()
        self._records[path] = found
        self._absent_since.pop(path, None)
        self._present_since.setdefault(path, clock.now())
        last = sighting(found[0], self._sighted.get(path), clock.utc_now())
        if last is not None:
            self._sighted[path] = last
        if isinstance(found[0], ReplicatorReport):
            self.see(found[0])
        if isinstance(found[0], NodeReport) and found[0].database is Database.DOWN:
            self._down_since.setdefault(path, clock.now())
        else:
            self._down_since.pop(path, None)
        if isinstance(found[0], AutomaticRecord):
            self._see_automatic(found[0].failovers)

    def _watch(self, path: str) -> Callable[[], None]:
        def fired() -> None:
            self._watched.discard(path)
            self._stale.add(path)
            if not self.coordination.connected or "plan" in self._records:
                self.changed.set()  # a plan that waits looks at everything
                return
            reading = asyncio.get_running_loop().create_task(self._look(path))
            self._readings.add(reading)
            reading.add_done_callback(self._readings.discard)

        return fired

    async def _look(self, path: str) -> None:
        """Read what has changed, unless a tick was faster; wake the loop if it is news."""
        async with self._refreshing:
            if path not in self._stale:
                return
            before = self._records.get(path)
            try:
                await self._read(path)
            except Unreachable:
                self.changed.set()
                return
        if is_news(before, self._records.get(path)):
            self.changed.set()

    def _on_connection(self, connected: bool) -> None:
        """While we are cut off we see nothing: absence is counted anew from the moment we see again."""
        self._absent_since.clear()
        self._present_since.clear()
        self._renewed_at.clear()
        self._watched.clear()
        self._stale = set(self._kinds)
        if connected:
            self.changed.set()


def is_news(before: tuple[object, int] | None, after: tuple[object, int] | None) -> bool:
    """Return whether more has changed than a position, and how old it is."""
    match before, after:
        case (NodeReport() as old, _), (NodeReport() as new, _):
            return old != replace(new, position=old.position, lag_ms=old.lag_ms, position_age_ms=old.position_age_ms)
        case (ReplicatorReport() as old, _), (ReplicatorReport() as new, _):
            return old != replace(new, received=old.received, durable=old.durable, acknowledged=old.acknowledged)
        case _:
            return True
