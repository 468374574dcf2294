"""A healthy cluster of three by default; a test says only what differs."""

from dataclasses import replace
from typing import Any

from cluster.records import (
    Database,
    Durability,
    DurabilityRecord,
    EpochRecord,
    Health,
    LineageEntry,
    NodeReport,
    ReplicatorReport,
    Role,
)
from controller.accepted import Accepted
from controller.model import Kind, NodeFacts, PlanRecord, Policy, ReplicatorFacts, Sealed, Stage, View

CLINIC, TORONTO, MONTREAL = "db-clinic", "db-toronto", "db-montreal"
SITES = ("clinic", "toronto", "montreal")
HEAD = "0-1-100"
SINCE = "2026-01-01T00:00:00.000Z"
ANYTHING = Accepted(transactions=None, seconds=None)
"""Whatever is lost is accepted."""
SERIAL_MAX = 1_000
"""Of the durability records in these tests: a watchdog that reports it knows every one of them."""


def a_report(site: str, **changes: Any) -> NodeReport:
    primary = site == "clinic"
    report = NodeReport(
        node=f"db-{site}", site=site, server_id=SITES.index(site) + 1,
        role=Role.PRIMARY if primary else Role.STANDBY, database=Database.UP, epoch=1, sealed_epoch=0,
        read_only=not primary, position=HEAD, lag_ms=None if primary else 5.0, lag_age_ms=None if primary else 0.0, lease_epoch=1 if primary else None,
        resumable=False, generation="1", server_version="10.11.19-MariaDB", replicating=None if primary else True,
        why="", url="http://127.0.0.1:1", serial=SERIAL_MAX, health=Health(),
    )  # fmt: skip
    return replace(report, **changes)


def a_node(site: str, *, absent_ms: float | None = None, **changes: Any) -> NodeFacts:
    report = None if absent_ms is not None else a_report(site, **changes)
    server_id = SITES.index(site) + 1
    return NodeFacts(name=f"db-{site}", site=site, server_id=server_id, report=report, absent_ms=absent_ms)


def a_replicator(site: str, *, absent_ms: float | None = None, **changes: Any) -> ReplicatorFacts:
    report = ReplicatorReport(
        site=site, epoch=1, sealed_epoch=0, connected=True, acknowledging=site == "toronto", received=HEAD, durable=HEAD,
        acknowledged=HEAD, orphans=0, server_version=None, why="", host="127.0.0.1", port=1, url="http://127.0.0.1:2",
    )  # fmt: skip
    found = None if absent_ms is not None else replace(report, **changes)
    return ReplicatorFacts(site=site, host="127.0.0.1", port=1, report=found, absent_ms=absent_ms)


def an_epoch(**changes: Any) -> EpochRecord:
    first = LineageEntry(epoch=1, server_id=1, file="binlog.000001", position="")
    record = EpochRecord(
        epoch=1, primary=CLINIC, server_id=1, file="binlog.000001", position="", since=SINCE, proof="", lineage=(first,)
    )
    return replace(record, **changes)


def a_durability(**changes: Any) -> DurabilityRecord:
    record = DurabilityRecord(epoch=1, mode=Durability.SYNC, ackers=("toronto",), since=SINCE, floor="")
    return replace(record, **changes)


def a_view(**changes: Any) -> View:
    """A healthy cluster. `clinic`, `toronto`, `montreal` replace a node, `replicator_<site>` a replicator."""
    nodes = tuple(changes.pop(site, a_node(site)) for site in SITES)
    replicators = tuple(changes.pop(f"replicator_{site}", a_replicator(site)) for site in SITES)
    view = View(
        policy=Policy(sites=SITES, initial_primary=CLINIC, lease_margin_ms=1_000, watchdog_grace_ms=5_000),
        nodes=nodes,
        replicators=replicators,
        epoch=an_epoch(),
        durability=a_durability(),
    )
    return replace(view, **changes)


def a_plan(**changes: Any) -> PlanRecord:
    plan = PlanRecord(
        id="2", kind=Kind.FAILOVER, epoch=2, stage=Stage.SEAL, why="test", started=SINCE, old=CLINIC, old_generation="1"
    )
    return replace(plan, **changes)


def sealed(**positions: str | None) -> tuple[Sealed, ...]:
    return tuple(Sealed(site=site, durable=position, how="sealed") for site, position in positions.items())
