"""`durability.policy = "available"`: both other cities fail, the clinic writes on, and all of it survives the next failover."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chaos import checks
from chaos.history import all_kept
from chaos.lab import build, control, remove
from chaos.lab.layout import Request
from chaos.lab_remote import RemoteLab, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from tests.lab.test_acks_all import Quiet

pytestmark = pytest.mark.servers

READY_MS, MODE_MS, PLAN_MS, WRITE_MS, CHECK_MS = 90_000.0, 60_000.0, 45_000.0, 45_000.0, 60_000.0
TRAFFIC_SECONDS_MAX = 300.0
AWAY = ("replicator-toronto", "replicator-montreal")
AVAILABLE: dict[str, Any] = {"durability": {"policy": "available", "degrade_after_seconds": 2}}


def mode(lab: RemoteLab) -> str:
    return str(lab.cluster()["durability"]["mode"])


def wait_mode(lab: RemoteLab, wanted: str) -> None:
    wait_until(
        lambda: "" if mode(lab) == wanted else str(lab.cluster()["durability"]), deadline_ms=MODE_MS, what=wanted
    )


def lose_both_and_get_them_back(lab: RemoteLab, traffic: Traffic) -> None:
    for name in AWAY:
        control.kill(lab.directory, name)
    wait_mode(lab, "degraded")
    wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
    (reason,) = [one for one in lab.cluster()["reasons"] if "degraded since" in one]
    assert "would be lost with db-clinic" in reason
    for name in AWAY:
        control.start(lab.directory, name)
    wait_mode(lab, "sync")
    wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
    assert lab.primary() == ("db-clinic", 1), "nobody was replaced meanwhile"


@pytest.mark.timeout(400)
def test_clinics_write_on_while_nobody_can_acknowledge_and_it_is_in_sync_again_by_itself(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    build.up(Request(directory=directory, policies=AVAILABLE), Quiet())
    try:
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(tmp_path / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            lab.wait_ready(deadline_ms=READY_MS)
            wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
            lose_both_and_get_them_back(lab, traffic)
            control.kill(directory, "db-clinic")
            lab.wait_plan(1, deadline_ms=PLAN_MS)
            wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
            rejoin = lab.come_back("db-clinic", deadline_ms=READY_MS)
            assert rejoin.rejoined, rejoin
            traffic.stop()
            findings = checks.judge(traffic.history, lab.file, deadline_ms=CHECK_MS)
        assert all_kept(findings.values()), findings
    except BaseException:
        keep_logs(directory, Path("build") / "test-logs")
        raise
    finally:
        remove.down(directory, keep=False)
