"""The whole product, as real processes under clinic traffic: what breaks, who takes over, and that nothing is lost.

One lab for all, because a cluster that survives one fault must survive the next one too; every test leaves it ready.
"""

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
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
from cluster.clock import Nanos
from cluster.errors import Refused
from tests.lab import running

pytestmark = pytest.mark.servers

READY_MS, PLAN_MS, WRITE_MS, REJOIN_MS, CHECK_MS = 90_000.0, 45_000.0, 45_000.0, 60_000.0, 60_000.0
TRAFFIC_SECONDS_MAX = 600.0
SETTLE_MS = 20_000.0
DETECTED_MS = {"killed": 1_500.0, "frozen": 5_000.0}
"""By the probe interval (250 ms) or `call_deadline_ms` (2 s), with room for a busy machine."""
TAKEOVER_MS = 1_000.0
ZOOKEEPER = "zookeeper-1"
UNNOTICED_MS = 2_000.0
"""What a busy machine may take for a commit; a fence by the lease would take until ZooKeeper is back."""
RETURN_OUTAGE_MS = 40_000.0
"""ZooKeeper starts, the old sessions end, one leads, the grants end, and then it is a failover as any other."""
CRASH_OUTAGE_MS, FROZEN_OUTAGE_MS = 5_000.0, 15_000.0
"""Far above what `script/bench failover` measures: a test is not a benchmark, and this machine is shared."""


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


@dataclass
class Whole:
    """The lab and its traffic."""

    directory: Path
    lab: RemoteLab
    traffic: Traffic

    def survived(self, fault: Fault, limit_ms: float) -> dict[str, object]:
        """Wait until every clinic writes again; return the record of the plan that made it so."""
        wait_writing(self.traffic, after=fault.end, deadline_ms=WRITE_MS)
        record = self.lab.wait_plan(fault.epoch, deadline_ms=PLAN_MS)
        wait_until(lambda: self._unknown_gaps(fault), deadline_ms=WRITE_MS, what="gaps that are not known yet")
        gaps = self._gaps(fault)
        assert max(gap for gap in gaps.values() if gap is not None) <= limit_ms, (gaps, record)
        return record

    def _gaps(self, fault: Fault) -> dict[str, float | None]:
        history, names = self.traffic.history, [writer.clinic.name for writer in self.traffic.writers]
        return {name: outage_ms(history, name, start=fault.start, end=clock.now()) for name in names}

    def _unknown_gaps(self, fault: Fault) -> str:
        """A clinic hands a write over once it knows the epoch of its connection."""
        return ", ".join(name for name, gap in self._gaps(fault).items() if gap is None)

    def ready(self) -> None:
        self.lab.wait_ready(deadline_ms=READY_MS)
        wait_until(self._not_standing_by, deadline_ms=REJOIN_MS, what="not every other node is a standby")
        self.goes_on()

    def _not_standing_by(self) -> str:
        nodes = self.lab.cluster()["nodes"]
        return ", ".join(f"{one['node']} is {one.get('role')}: {one.get('why')}" for one in nodes
                         if one.get("role") not in ("primary", "standby"))  # fmt: skip

    def first_acknowledged(self, *, after: Nanos) -> Nanos:
        """Return when the first commit was acknowledged after an instant."""
        instants = [Nanos(one.acknowledged_at) for one in self.traffic.history
                    if one.acknowledged and one.acknowledged_at is not None and one.acknowledged_at > after]  # fmt: skip
        return min(instants)

    def acker(self) -> tuple[str, int]:
        """Return the one site that acknowledges, and the serial of the record that says so."""
        durability = self.lab.cluster()["durability"]
        (named,) = durability["ackers"]
        return str(named), int(durability["serial"])

    def follows_again(self, node: str) -> None:
        """A killed node is a standby again; one that its kill left unable to follow is built anew (decision 0061)."""
        rejoin = self.lab.come_back(node, deadline_ms=REJOIN_MS)
        assert rejoin.rejoined, rejoin.why

    def goes_on(self) -> None:
        wait_writing(self.traffic, after=clock.now(), deadline_ms=WRITE_MS)

    def watchdog(self, node: str, path: str) -> str:
        """Return what a node's watchdog answers."""
        url = settings.load(Layout(self.directory).settings).node(node).watchdog_url
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError as error:
            return str(error)

    def awaits_grants(self, node: str) -> None:
        """Wait until a primary has the grants of both other sites."""

        def missing() -> str:
            told = json.loads(self.watchdog(node, "/health"))
            return "" if len(told["granted_by"]) == 2 else str(told["why"])

        wait_until(missing, deadline_ms=WRITE_MS, what="no grants")

    def writes_beyond_the_lease(self, begun: Nanos) -> None:
        """Return once every clinic has written at a time at which no lease from before `begun` can hold."""
        timing = settings.load(Layout(self.directory).settings).timing
        ended = clock.after(begun, timing.session_ttl_ms + timing.lease_margin_ms)
        wait_writing(self.traffic, after=ended, deadline_ms=WRITE_MS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Whole]:
    failed_before = request.session.testsfailed
    directory = tmp_path_factory.mktemp("whole") / "lab"
    build.up(Request(directory=directory, clinics=2), Quiet())
    try:
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(directory.parent / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            yield Whole(directory, lab, traffic)
    finally:
        if request.session.testsfailed > failed_before:
            keep_logs(directory, Path("build") / "test-logs")
        remove.down(directory, keep=False)


def test_clinics_write_on_while_zookeeper_is_gone_for_longer_than_a_lease(whole: Whole) -> None:
    """Frozen and then killed: nobody fails over, no clinic notices. The next test is that a failover works again."""
    whole.ready()
    before, begun = whole.lab.primary(), clock.now()
    control.freeze(whole.directory, ZOOKEEPER)
    whole.awaits_grants(before[0])
    whole.writes_beyond_the_lease(begun)
    told = whole.watchdog(before[0], "/health")
    serving = whole.watchdog(before[0], "/primary")
    status = whole.lab.cluster()
    control.kill(whole.directory, ZOOKEEPER)
    whole.goes_on()
    control.start(whole.directory, ZOOKEEPER)
    whole.ready()
    gaps = whole._gaps(Fault(*before, start=begun, end=begun))

    assert "ZooKeeper is gone" in json.loads(told)["why"]
    assert serving.startswith("yes")
    assert "by the direct word of montreal, toronto" in " ".join(status["reasons"]), status["reasons"]
    assert whole.lab.primary() == before
    assert max(gap for gap in gaps.values() if gap is not None) <= UNNOTICED_MS, gaps


def test_a_primary_that_dies_while_zookeeper_is_gone_is_replaced_when_it_is_back(whole: Whole) -> None:
    whole.ready()
    (node, epoch), begun = whole.lab.primary(), clock.now()
    control.kill(whole.directory, ZOOKEEPER)
    whole.awaits_grants(node)
    whole.writes_beyond_the_lease(begun)
    start = clock.now()
    control.kill(whole.directory, node)
    fault = Fault(node, epoch, start, clock.now())
    control.start(whole.directory, ZOOKEEPER)
    record = whole.survived(fault, RETURN_OUTAGE_MS)
    assert record["outcome"] == "done", record

    whole.follows_again(node)


def test_a_crashed_primary_is_replaced_and_returns_as_a_standby(whole: Whole) -> None:
    whole.ready()
    fault = whole.lab.crash_primary()
    record = whole.survived(fault, CRASH_OUTAGE_MS)
    assert record["outcome"] == "done", record
    assert "process is dead" in str(record["proof"])

    whole.follows_again(fault.node)


def test_a_switchover_brings_it_to_where_it_is_wanted(whole: Whole) -> None:
    """Wherever the tests before have left it."""
    whole.ready()
    primary, _ = whole.lab.primary()
    record = whole.lab.switchover("db-toronto" if primary == "db-clinic" else "db-clinic")

    assert record["outcome"] == "done", record
    whole.goes_on()


def test_a_switchover_to_the_primary_is_refused_and_nothing_stops(whole: Whole) -> None:
    whole.ready()
    primary, epoch = whole.lab.primary()
    with pytest.raises(Refused, match="primary already"):
        whole.lab.switchover(primary)

    whole.goes_on()
    assert whole.lab.primary() == (primary, epoch)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_an_acker_that_fails_is_replaced_and_commits_pause_less_than_a_second_beyond_that(
    whole: Whole, how: str
) -> None:
    """And it is settled, with the failed one dead or back: then a failover needs its word no more."""
    whole.ready()
    acker, serial = whole.acker()
    begun, act = clock.now(), control.kill if how == "killed" else control.freeze
    act(whole.directory, f"replicator-{acker}")
    wait_until(
        lambda: "" if whole.acker()[1] > serial else f"{acker} is named still", deadline_ms=WRITE_MS, what="acker"
    )
    named_at = clock.now()
    whole.goes_on()
    first = whole.first_acknowledged(after=named_at)
    durability = whole.lab.cluster()["durability"]
    back = control.start if how == "killed" else control.thaw
    back(whole.directory, f"replicator-{acker}")
    wait_until(
        lambda: str(whole.lab.cluster()["durability"]["former"] or ""), deadline_ms=SETTLE_MS, what="not settled"
    )

    print(
        f"{how}: named after {clock.ms_between(begun, named_at):.0f} ms, {clock.ms_between(named_at, first):.0f} ms more"
    )
    assert acker not in durability["ackers"]
    assert acker in durability["why"]
    assert clock.ms_between(begun, named_at) <= DETECTED_MS[how]
    assert clock.ms_between(named_at, first) <= TAKEOVER_MS
    whole.ready()


def test_a_killed_standby_catches_up(whole: Whole) -> None:
    whole.ready()
    primary, _ = whole.lab.primary()
    standby = next(node.name for node in whole.lab.file.nodes if node.name != primary)
    control.kill(whole.directory, standby)
    whole.goes_on()

    whole.follows_again(standby)


def test_a_killed_watchdog_that_returns_keeps_the_primary(whole: Whole) -> None:
    """Its clinics are cut off for a moment, but no epoch is needed."""
    whole.ready()
    primary, epoch = whole.lab.primary()
    watchdog = primary.replace("db-", "watchdog-")
    control.kill(whole.directory, watchdog)
    control.start(whole.directory, watchdog)
    whole.goes_on()

    assert whole.lab.primary() == (primary, epoch)


def test_a_leader_killed_together_with_the_primary_is_succeeded(whole: Whole) -> None:
    whole.ready()
    leader = whole.lab.cluster()["leader"]
    control.kill(whole.directory, leader)
    fault = whole.lab.crash_primary()
    whole.survived(fault, FROZEN_OUTAGE_MS)
    control.start(whole.directory, leader)

    whole.follows_again(fault.node)


def test_a_destroyed_standby_is_built_anew_from_the_other_one_while_the_clinics_write(whole: Whole) -> None:
    """The donor's database dies in the middle of the first attempt; the next one works."""
    whole.ready()
    primary, _ = whole.lab.primary()
    lost, donor = (node for node in ("db-montreal", "db-toronto", "db-clinic") if node != primary)
    control.kill(whole.directory, lost)
    shutil.rmtree(Layout(whole.directory).data(lost))
    begun = reinitialize(whole, lost, "--no-wait", "--json")
    assert json.loads(begun.stdout)["donor"] == donor, (begun.stdout, begun.stderr)
    control.kill(whole.directory, donor)
    wait_until(lambda: _seeding_runs(whole, lost), deadline_ms=REJOIN_MS, what="the first attempt is not over")
    control.start(whole.directory, donor)
    if _seeding(whole, lost)["phase"] != "done":
        again = reinitialize(whole, lost, "--json")
        assert again.returncode == 0, (again.stdout, again.stderr)
    whole.follows_again(donor)
    whole.ready()


def reinitialize(whole: Whole, node: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    settings = str(Layout(whole.directory).settings)
    return subprocess.run(
        [running.COMMAND, "reinitialize", node, "--yes", "--settings", settings, *arguments],
        capture_output=True, text=True, check=False, timeout=REJOIN_MS / 1000,
    )  # fmt: skip


def _seeding(whole: Whole, node: str) -> dict[str, Any]:
    (found,) = (one for one in whole.lab.cluster()["nodes"] if one["node"] == node)
    return dict(found.get("seeding") or {"phase": "unknown"})


def _seeding_runs(whole: Whole, node: str) -> str:
    phase = str(_seeding(whole, node)["phase"])
    return "" if phase in ("done", "failed") else phase


def test_a_frozen_host_that_comes_back_ahead_is_a_standby_again_by_itself(whole: Whole) -> None:
    """A commit reaches the old primary behind everybody's back, is acknowledged by nobody, rescued, and replaced."""
    whole.ready()
    fault = whole.lab.freeze_primary_host()
    whole.survived(fault, FROZEN_OUTAGE_MS)
    thawed_at = clock.now()
    with a_write_that_nobody_acknowledges(whole, fault.node) as written:
        control.thaw(whole.directory, fault.node)
        wait_until(written, deadline_ms=WRITE_MS, what="the old primary has not written it")
        whole.lab.thaw_host(fault.node)
        wait_until(lambda: rejoined(whole, fault), deadline_ms=2 * REJOIN_MS, what="it is not built anew by itself")
    whole.follows_again(fault.node)
    whole.ready()

    late = [one for one in whole.traffic.history if one.acknowledged and one.epoch == fault.epoch and
            one.acknowledged_at is not None and one.acknowledged_at > thawed_at]  # fmt: skip
    assert late == []
    (report,) = (one for one in whole.lab.cluster()["nodes"] if one["node"] == fault.node)
    assert report["seeding"]["kept"] is None, "the rescue is all that is kept"
    lines = (Path(report["rescue"]["path"]) / "transactions.jsonl").read_text()
    assert UNHEARD in lines
    said = whole.lab.rejoins()[0]
    assert (said["rung"], said["outcome"], said["attempt"]) == ("reseed", "done", 1), said


UNHEARD = "nobody acknowledged this"


@contextmanager
def a_write_that_nobody_acknowledges(whole: Whole, node: str) -> Iterator[Callable[[], str]]:
    """Send a commit to a frozen server, past HAProxy; give what tells, once it runs again, why it is not written yet."""
    clinic, here = whole.lab.file.clinics[0], whole.lab.file.node(node)
    user, password, outcome = clinic.user, clinic.password, list[str]()

    def write() -> None:
        try:
            with closing(
                pymysql.connect(
                    host=here.host,
                    port=here.port,
                    user=user,
                    password=password,
                    database=clinic.database,
                    read_timeout=TRAFFIC_SECONDS_MAX,
                )
            ) as connection:
                connection.cursor().execute(
                    "INSERT INTO chartNote (demographic_no, note, ha_token) VALUES (0, %s, 'unheard')", (UNHEARD,)
                )
                connection.commit()
                outcome.append("acknowledged")
        except pymysql.Error as error:
            outcome.append(str(error))

    def missing() -> str:
        with closing(
            pymysql.connect(unix_socket=here.socket, user=here.admin_user, password=here.admin_password)
        ) as admin:
            cursor = admin.cursor()
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_wait_sessions'")
            return "" if int((cursor.fetchone() or ("", 0))[1]) else f"nobody waits; {outcome}"

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield missing
    finally:
        thread.join(TRAFFIC_SECONDS_MAX)
    assert outcome != ["acknowledged"]


def rejoined(whole: Whole, fault: Fault) -> str:
    """Return what is missing until the old primary was built anew; the ladder says it itself."""
    events = [
        one
        for one in whole.lab.rejoins()
        if one["node"] == fault.node and one["epoch"] > fault.epoch and one["attempt"]
    ]
    (report,) = (one for one in whole.lab.cluster()["nodes"] if one["node"] == fault.node)
    return (
        ""
        if events and events[0]["outcome"] == "done"
        else f"{report.get('rejoin')}, {report.get('why')}, {events[:1]}"
    )


def test_nothing_acknowledged_was_lost_and_no_epoch_had_two_writers(whole: Whole) -> None:
    wait_writing(whole.traffic, after=clock.now(), deadline_ms=WRITE_MS)
    whole.traffic.stop()
    findings = checks.judge(whole.traffic.history, whole.lab.file, deadline_ms=CHECK_MS)

    assert all_kept(findings.values()), findings
