"""What `oscar-ha status` says of the alarms that replicators report."""

from dataclasses import asdict
from typing import Any

from cluster import records
from cluster.records import MassChange, ReplicatorReport
from controller.operator_command import mass_changes

ALARM = MassChange(table="oscar.demographic", kind="delete", rows=20_000, estimated=False, first="0-1-123",
                   before="0-1-122", since="2026-11-24T03:00:00Z")  # fmt: skip


def a_report(site: str, *alarms: MassChange) -> ReplicatorReport:
    return ReplicatorReport(
        site=site, epoch=1, sealed_epoch=0, connected=True, acknowledging=False, received=None, durable=None,
        acknowledged=None, orphans=0, server_version=None, why="", host="h", port=1, url="u", mass_changes=alarms,
    )  # fmt: skip


def test_an_alarm_that_two_replicators_see_is_said_once() -> None:
    sentences = mass_changes([asdict(a_report(site, ALARM)) for site in ("toronto", "montreal")] + [{"site": "clinic"}])

    assert sentences == [
        "oscar.demographic: delete of 20,000 rows since 2026-11-24T03:00:00Z, first transaction 0-1-123;"
        " the position before it is 0-1-122; to keep a standby without it: oscar-ha hold NODE --before 0-1-123"
    ]


def test_an_alarm_names_the_standby_that_is_delayed() -> None:
    nodes: list[dict[str, Any]] = [{"node": "a", "ordered": None}, {"node": "b", "ordered": {"delay_seconds": 60}}]

    assert mass_changes([asdict(a_report("toronto", ALARM))], nodes)[0].endswith("oscar-ha hold b --before 0-1-123")


def test_alarms_pass_through_zookeeper_and_an_older_report_has_none() -> None:
    report = a_report("toronto", ALARM)
    older = {name: value for name, value in asdict(report).items() if name != "mass_changes"}

    assert records.decode(ReplicatorReport, records.encode(report), where="a test") == report
    assert records.decode(ReplicatorReport, older, where="a test").mass_changes == ()
