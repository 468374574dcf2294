"""`acks = all`: the primary and a whole data centre die in the same instant, and nothing that was acknowledged is lost.

The strictest of the promises, so the whole of it is real: three ZooKeeper members, one of which dies with its site.
"""

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from chaos import checks
from chaos.history import all_kept, outage_ms
from chaos.lab import build, control, remove
from chaos.lab.layout import Layout, Request
from chaos.lab_remote import Fault, RemoteLab, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from cluster import clock, settings
from cluster.records import Acks

pytestmark = pytest.mark.servers

READY_MS, PLAN_MS, WRITE_MS, FULL_MS, CHECK_MS = 90_000.0, 45_000.0, 45_000.0, 60_000.0, 60_000.0
TRAFFIC_SECONDS_MAX = 300.0
WRITES_BEFORE = 100
ESTABLISHED = "01"
UNNOTICED_MS = 2_000.0
"""What a busy machine may take for a commit: a fence by the lease would take until the watchdog has ZooKeeper again."""


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


def ackers(lab: RemoteLab) -> tuple[str, ...]:
    durability = lab.cluster()["durability"]
    assert durability["acks"] == "all"
    return tuple(durability["ackers"])


def lost_at_once(lab: RemoteLab, site: str) -> Fault:
    """SIGKILL everything in a site together with the primary's database, with nothing in between."""
    primary, epoch = lab.primary()
    processes = lab.file.processes
    doomed = [
        processes[primary],
        *(processes[f"{part}-{site}"] for part in ("db", "watchdog", "replicator", "controller")),
    ]
    doomed.append(processes["zookeeper-2"])
    start = clock.now()
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return Fault(node=primary, epoch=epoch, start=start, end=clock.now())


def member_of(lab: RemoteLab, process: str) -> str:
    """Return the ZooKeeper member that a process is connected to."""
    members = settings.load(Layout(lab.directory).settings).zookeeper
    numbers = {int(address.rsplit(":", 1)[1]): number for number, address in enumerate(members, 1)}
    held = {os.readlink(one) for one in Path(f"/proc/{lab.file.processes[process]}/fd").iterdir()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        port = int(columns[2].rsplit(":", 1)[1], 16)
        if port in numbers and f"socket:[{columns[9]}]" in held and columns[3] == ESTABLISHED:
            return f"zookeeper-{numbers[port]}"
    raise AssertionError(f"{process} is connected to no ZooKeeper")


def lose_one_member(lab: RemoteLab, traffic: Traffic) -> float:
    """Kill the member that the primary's watchdog speaks to, for longer than a lease; return the longest gap (ms)."""
    wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
    primary, epoch = lab.primary()
    member, begun = member_of(lab, primary.replace("db-", "watchdog-")), clock.now()
    timing = settings.load(Layout(lab.directory).settings).timing
    control.kill(lab.directory, member)
    ended = clock.after(begun, timing.session_ttl_ms)
    wait_writing(traffic, after=ended, deadline_ms=WRITE_MS)
    gap = outage_ms(traffic.history, lab.file.clinics[0].name, start=begun, end=ended)
    control.start(lab.directory, member)
    assert lab.primary() == (primary, epoch)
    assert gap is not None
    return gap


def tell(lab: RemoteLab, traffic: Traffic) -> dict[str, object]:
    """Lose the primary and Toronto, and return the record of the failover."""
    wait_until(lambda: "" if len(traffic.history) > WRITES_BEFORE else "few writes", deadline_ms=WRITE_MS, what="load")
    assert ackers(lab) == ("toronto", "montreal")
    fault = lost_at_once(lab, "toronto")
    wait_writing(traffic, after=fault.end, deadline_ms=WRITE_MS)
    record = lab.wait_plan(fault.epoch, deadline_ms=PLAN_MS)
    assert lab.primary()[0] == "db-montreal"
    assert ackers(lab) == ("clinic",), "a site that is away cannot be waited for: the record names who is there"
    return record


def test_primary_and_a_data_centre_lost_at_once_lose_nothing(tmp_path: Path) -> None:
    """And when the site is back the full set acknowledges again by itself. One dead ZooKeeper member is not noticed before."""
    directory = tmp_path / "lab"
    build.up(Request(directory=directory, zookeepers=3, acks=Acks.ALL), Quiet())
    try:
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(tmp_path / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            lab.wait_ready(deadline_ms=READY_MS)
            gap_ms = lose_one_member(lab, traffic)
            record = tell(lab, traffic)
            for what in ("zookeeper-2", "watchdog-toronto", "replicator-toronto", "controller-toronto"):
                control.start(directory, what)
            for node in ("db-toronto", "db-clinic"):
                rejoin = lab.come_back(node, deadline_ms=READY_MS)
                assert rejoin.rejoined, (node, rejoin)
            wait_until(lambda: "" if ackers(lab) == ("clinic", "toronto") else str(lab.cluster()["durability"]),
                       deadline_ms=FULL_MS, what="the full set")  # fmt: skip
            lab.wait_ready(deadline_ms=READY_MS)
            wait_writing(traffic, after=clock.now(), deadline_ms=WRITE_MS)
            traffic.stop()
            findings = checks.judge(traffic.history, lab.file, deadline_ms=CHECK_MS)
        assert gap_ms <= UNNOTICED_MS, gap_ms
        assert record["outcome"] == "done", record
        assert all_kept(findings.values()), findings
    except BaseException:
        keep_logs(directory, Path("build") / "test-logs")
        raise
    finally:
        remove.down(directory, keep=False)
