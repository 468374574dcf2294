"""`failover.on_isolation = "promote"`, the default: the clinic's line is cut, its LAN kept. Its primary closes, another is promoted."""

from pathlib import Path

import pytest

from chaos import checks
from chaos.history import acknowledged_by, all_kept
from chaos.lab.layout import Layout
from chaos.lab_remote import wait_until
from cluster import clock, settings
from cluster.settings import Settings
from tests.lab.test_isolation import AT_HOME, HOME, Holding
from tests.lab.test_partitions import CHECK_MS, PLAN_MS, WRITE_MS, a_lab

pytestmark = pytest.mark.servers


@pytest.mark.timeout(400)
def test_a_primary_whose_line_is_cut_closes_for_its_own_lan_too_and_another_one_is_promoted(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with a_lab(tmp_path / "lab", request, Holding, {}) as apart:
        apart.ready()
        before = apart.now()
        with apart.lab.cut(HOME, keep_lan=True):
            wait_elsewhere(apart)
            record = apart.lab.wait_plan(before.epoch, deadline_ms=PLAN_MS)
            refused, how = checks.write_is_refused(
                apart.lab.file.node(before.node), apart.lab.file.clinics[0], read_timeout_s=5
            )
            closed_at = clock.now()
        apart.whole()
        told_there = acknowledged_by(apart.traffic.history, server_id(apart, before.node), after=closed_at)
        apart.traffic.stop()
        findings = checks.judge(apart.traffic.history, apart.lab.file, deadline_ms=CHECK_MS)

    assert (record["from"], record["automatic"]) == (before.node, True), record
    assert "lease ended" in str(record["proof"])
    assert refused, how
    assert not told_there
    assert all_kept(findings.values()), findings


def wait_elsewhere(apart: Holding) -> None:
    """Return when the clinic that is not in the building writes, which it can only to another primary."""
    (writer,) = [one for one in apart.traffic.writers if one.clinic.name != AT_HOME]
    after = clock.now()
    wait_until(lambda: "" if writer.has_written(after) else "no write", deadline_ms=WRITE_MS, what=writer.clinic.name)


def server_id(apart: Holding, node: str) -> int:
    found: Settings = settings.load(Layout(apart.directory).settings)
    return found.node(node).server_id
