"""The primary and the site that acknowledges are lost together: nothing is promoted until an operator says how much he accepts.

All of it is real. Montreal's replicator is away for a moment before, so that something is lost that a clinic was told OK.
"""

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chaos import checks
from chaos.history import Write, lost
from chaos.lab import build, control, remove
from chaos.lab.layout import Layout, Request
from chaos.lab_remote import RemoteLab, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock
from cluster.clock import Nanos
from cluster.position import Position
from tests.lab.running import COMMAND
from tests.lab.test_acks_all import Quiet

pytestmark = pytest.mark.servers

READY_MS, HOLD_MS, WRITE_MS = 90_000.0, 60_000.0, 45_000.0
COMMAND_SECONDS = 110
TRAFFIC_SECONDS_MAX = 300.0
WRITES_BEFORE, LOST_MIN = 100, 50
ALL_OF_TORONTO = ("db-toronto", "watchdog-toronto", "replicator-toronto", "controller-toronto")


def oscar_ha(lab: RemoteLab, *arguments: str) -> tuple[int, str]:
    """Run the command as an operator would; return its exit code and what it said."""
    done = subprocess.run(
        [COMMAND, *arguments, "--settings", str(Layout(lab.directory).settings)],
        capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def failover(lab: RemoteLab, accepts: str) -> tuple[int, str]:
    return oscar_ha(lab, "failover", "--yes", "--allow-data-loss", accepts, "--why", "a test of the insurer's word")


def told_of_toronto(lab: RemoteLab) -> Position:
    """Return what the controllers know that Toronto has."""
    (durable,) = (one["durable"] for one in lab.cluster()["replicators"] if one["site"] == "toronto")
    return Position.parse(durable)


def lose_primary_and_acker(lab: RemoteLab) -> Nanos:
    """Kill both in one moment, with what Montreal has not got; return that moment."""
    control.kill(lab.directory, "replicator-montreal")
    behind = told_of_toronto(lab)
    wait_until(
        lambda: "" if behind.distance(told_of_toronto(lab)) > LOST_MIN else "few", deadline_ms=WRITE_MS, what="loss"
    )
    control.kill(lab.directory, "db-clinic", "replicator-clinic", *ALL_OF_TORONTO)
    killed_at = clock.now()
    control.start(lab.directory, "replicator-montreal")
    return killed_at


def silent(lab: RemoteLab) -> set[str]:
    """Return the sites of which the controllers have no replicator's record: it outlives a dead one by a session's ttl."""
    return {one["site"] for one in lab.cluster()["replicators"] if one["absent_ms"] is not None}


def what_it_waits_for(lab: RemoteLab) -> str:
    plan = lab.cluster()["plan"]
    return str(plan["waiting"] or "") if plan else ""


def accept(lab: RemoteLab) -> dict[str, Any]:
    """Too little is refused and nothing changes; what the dry run prints goes. Return the plan as the history tells it."""
    code, told = oscar_ha(lab, "failover", "--dry-run", "--json")
    answer = json.loads(told)
    assert (code, answer["works"], answer["joins"]) == (1, False, True), told
    assert answer["loss"]["at_least"] > 0, told
    word = answer["allow_data_loss"]
    code, told = failover(lab, f"transactions={word['transactions']},seconds={word['seconds'] - 2}")
    assert (code, lab.primary()) == (1, ("db-clinic", 1)), told
    assert f"--allow-data-loss transactions=unknown,seconds={word['seconds']}" in told
    assert "toronto" in what_it_waits_for(lab)

    code, told = failover(lab, f"transactions={word['transactions']},seconds={word['seconds']}")
    assert (code, lab.primary()) == (1, ("db-montreal", 2)), told
    assert "unverified" in told, "nobody is left who could acknowledge: commits wait until a replicator is back"
    code, told = oscar_ha(lab, "explain", "last", "--json")
    assert code == 0, told
    record: dict[str, Any] = json.loads(told)
    return record


def require_told(record: dict[str, Any], missing: tuple[Write, ...], killed_at: Nanos) -> None:
    """What was lost lies within what the history tells: no earlier than its seconds, and as many as were known at least."""
    loss = record["loss"]
    earliest = min(write.acknowledged_at or 0 for write in missing)

    assert record["automatic"] is False
    assert clock.ms_between(Nanos(earliest), killed_at) <= loss["seconds"] * 1000.0, (loss, earliest)
    assert loss["transactions"] is None
    assert record["accepts"]["seconds"] >= loss["seconds"]
    assert "toronto, which acknowledged, is gone" in "\n".join(record["story"])
    assert "a test of the insurer's word" in "\n".join(record["story"])


def test_a_loss_that_cannot_be_ruled_out_waits_for_a_word_that_bounds_it(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    build.up(Request(directory=directory), Quiet())
    try:
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(tmp_path / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            lab.wait_ready(deadline_ms=READY_MS)
            wait_until(lambda: "" if len(traffic.history) > WRITES_BEFORE else "few", deadline_ms=WRITE_MS, what="load")
            killed_at = lose_primary_and_acker(lab)
            wait_until(lambda: "" if "toronto" in what_it_waits_for(lab) else str(lab.cluster()["plan"]),
                       deadline_ms=HOLD_MS, what="the failover holds, and says for whom")  # fmt: skip
            wait_until(lambda: "" if silent(lab) == {"clinic", "toronto"} else str(silent(lab)), deadline_ms=HOLD_MS,
                       what="it is known who is gone")  # fmt: skip
            record = accept(lab)
            control.start(directory, "replicator-clinic")
            wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
            traffic.stop()
            missing = lost(traffic.history, checks.found_through(lab.file.clinics[0]))
        assert missing, "the test lost nothing, so it proves nothing"
        require_told(record, missing, killed_at)
    except BaseException:
        keep_logs(directory, Path("build") / "test-logs")
        raise
    finally:
        remove.down(directory, keep=False)
