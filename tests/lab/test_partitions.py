"""Sites that are cut off while clinics write: who takes over, who must not, and that nothing is lost (TRAPS.md 28, 32).

One lab in network namespaces for all, as far apart as in life; every test heals what it cut and leaves the lab whole.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chaos import checks
from chaos.history import acknowledged_by, all_kept, outage_ms
from chaos.lab import build, ledger, remove
from chaos.lab.cuts import Only
from chaos.lab.layout import Layout, Request, Wires
from chaos.lab_remote import Fault, RemoteLab, wait_until, wait_writing
from chaos.run_folder import keep_logs
from chaos.traffic import Traffic, prepare
from chaos.traffic_journal import Journal
from chaos.whole import not_whole_by_all
from cluster import clock, settings
from cluster.errors import Unreachable
from tests.conftest import require
from tests.lab.running import missing

pytestmark = pytest.mark.servers

READY_MS, WRITE_MS, PLAN_MS, REJOIN_MS, CHECK_MS = 90_000.0, 45_000.0, 45_000.0, 200_000.0, 60_000.0
TRAFFIC_SECONDS_MAX = 600.0
PARTITION_OUTAGE_MS = 20_000.0
"""Far above what is measured: a test is not a benchmark, and this machine is shared."""


class Quiet:
    """A reporter that says nothing."""

    def working(self, what: str) -> None: ...
    def done(self, what: str, detail: str = "") -> None: ...


@dataclass
class Apart:
    """The lab and its traffic: one clinic on the LAN of the first site, one elsewhere."""

    directory: Path
    lab: RemoteLab
    traffic: Traffic

    def ready(self) -> None:
        self.lab.wait_ready(deadline_ms=READY_MS)
        self.goes_on()

    def whole(self) -> None:
        """Return when every other node is a standby again, be it built anew, and at a second attempt."""
        wait_until(self._not_standing_by, deadline_ms=REJOIN_MS, what="not every other node is a standby", pause_s=0.25)
        self.ready()

    def _not_standing_by(self) -> str:
        """By the word of every controller: one that was cut off tells for a moment of before."""
        try:
            return not_whole_by_all(self.lab.clusters())
        except Unreachable as error:
            return error.message

    def goes_on(self) -> None:
        wait_writing(self.traffic, after=clock.now(), deadline_ms=WRITE_MS)

    def beyond_every_lease(self) -> None:
        """Return when no lease from before this moment can hold, nor the patience of who waits for its end."""
        timing = settings.load(Layout(self.directory).settings).timing
        threading.Event().wait((timing.session_ttl_ms + timing.lease_margin_ms) / 1_000)

    def gaps(self, since: Fault) -> dict[str, float | None]:
        """Return for how long each clinic wrote nothing since then."""
        names = [writer.clinic.name for writer in self.traffic.writers]
        return {name: outage_ms(self.traffic.history, name, start=since.start, end=clock.now()) for name in names}

    def now(self) -> Fault:
        """Return the primary and the epoch of this moment."""
        begun = clock.now()
        return Fault(*self.lab.primary(), start=begun, end=begun)

    def acker(self) -> str:
        (named,) = self.lab.cluster()["durability"]["ackers"]
        return str(named)


Kind = TypeVar("Kind", bound=Apart)


@contextmanager
def a_lab(
    directory: Path, request: pytest.FixtureRequest, kind: type[Kind], policies: dict[str, Any]
) -> Iterator[Kind]:
    """Yield a lab in network namespaces under traffic: one clinic on the LAN of the first site, one elsewhere."""
    require(missing())
    failed_before = request.session.testsfailed
    asked = Request(
        directory=directory, clinics=2, zookeepers=3, wires=Wires.NAMESPACES, owner=os.getpid(), policies=policies
    )
    build.up(asked, Quiet())
    try:
        if ledger.require(Layout(directory)).network is None:
            pytest.skip("network namespaces are not allowed here")
        lab = RemoteLab(directory)
        prepare(lab.file.clinics[0], deadline_ms=30_000.0)
        with (
            closing(Journal(directory.parent / "journal.jsonl")) as journal,
            Traffic(lab.file.clinics, journal, seconds=TRAFFIC_SECONDS_MAX, nodes=lab.file.nodes) as traffic,
        ):
            yield kind(directory, lab, traffic)
    finally:
        if request.session.testsfailed > failed_before:
            keep_logs(directory, Path("build") / "test-logs")
        remove.down(directory, keep=False)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Apart]:
    with a_lab(tmp_path_factory.mktemp("apart") / "lab", request, Apart, {}) as lab:
        yield lab


def test_an_acker_without_zookeeper_is_replaced_by_another_and_nobody_fails_over(apart: Apart) -> None:
    """Its member is in a minority of one; it acknowledges nothing more when its lease ends (TRAPS.md 44)."""
    apart.ready()
    before, acker = apart.now(), apart.acker()
    with apart.lab.cut(acker, only=Only.ZOOKEEPER):
        wait_until(lambda: "" if apart.acker() != acker else f"{acker} is named", deadline_ms=WRITE_MS, what="acker")
        apart.beyond_every_lease()
        apart.goes_on()
    apart.ready()

    assert apart.lab.primary() == (before.node, before.epoch)


def test_a_replication_line_that_is_cut_costs_another_acker_and_no_failover(apart: Apart) -> None:
    apart.ready()
    before, acker = apart.now(), apart.acker()
    with apart.lab.cut(f"clinic:{acker}", only=Only.REPLICATION):
        wait_until(lambda: "" if apart.acker() != acker else f"{acker} is named", deadline_ms=WRITE_MS, what="acker")
        apart.beyond_every_lease()
        apart.goes_on()
    apart.ready()

    assert apart.lab.primary() == (before.node, before.epoch)


def test_a_primary_whose_site_is_cut_off_fences_itself_and_is_replaced(apart: Apart) -> None:
    """TRAPS.md 28: who is cut off hears of no lost session; its own clock ends its lease."""
    apart.ready()
    fault = apart.lab.cut_off_primary()
    try:
        wait_writing(apart.traffic, after=fault.end, deadline_ms=WRITE_MS)
        record = apart.lab.wait_plan(fault.epoch, deadline_ms=PLAN_MS)
        node = apart.lab.file.node(fault.node)
        refused, how = checks.write_is_refused(node, apart.lab.file.clinics[0], read_timeout_s=5)
        switched_at = clock.now()
        gaps = apart.gaps(fault)
    finally:
        apart.lab.heal()
    apart.ready()

    assert record["from"] == fault.node, record
    assert "lease ended" in str(record["proof"])
    assert refused, how
    assert max(gap for gap in gaps.values() if gap is not None) < PARTITION_OUTAGE_MS, (gaps, record)
    server_id = settings.load(Layout(apart.directory).settings).node(fault.node).server_id
    assert not acknowledged_by(apart.traffic.history, server_id, after=switched_at)


def test_a_primary_that_hears_nobody_is_replaced_though_its_words_arrive(
    apart: Apart,
) -> None:
    """One-way towards it: TCP sends nothing new without acknowledgements, so it is as good as gone, and knows it."""
    apart.ready()
    before = apart.now()
    site = apart.lab.file.node(before.node).site
    with apart.lab.cut(f"all:{site}", one_way=True):
        wait_writing(apart.traffic, after=clock.now(), deadline_ms=WRITE_MS)
        record = apart.lab.wait_plan(before.epoch, deadline_ms=PLAN_MS)
    apart.goes_on()

    assert record["from"] == before.node, record


@pytest.mark.timeout(300)  # two nodes are built anew, one after the other, on a machine that may be busy
def test_after_all_of_it_every_node_is_a_standby_again_and_nothing_is_lost(apart: Apart) -> None:
    """What each of the two old primaries had written last nobody had acknowledged: rescued, and both built anew."""
    apart.whole()
    apart.traffic.stop()
    findings = checks.judge(apart.traffic.history, apart.lab.file, deadline_ms=CHECK_MS)

    assert all_kept(findings.values()), findings
