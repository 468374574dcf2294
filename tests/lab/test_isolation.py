"""`failover.on_isolation = "hold"`: the clinic's line is cut and its LAN is kept. It writes on, nobody is promoted, nothing is lost.

And a primary that is really dead is replaced by an operator's word. The same cut with `promote`: test_isolation_promote.py.
"""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from chaos import checks
from chaos.history import all_kept, outage_ms
from chaos.lab import control, identity, ledger
from chaos.lab.identity import Life
from chaos.lab.layout import Layout
from chaos.lab_remote import wait_until
from cluster import clock, settings
from cluster.clock import Nanos
from cluster.http import Client
from tests.lab.test_accepted_loss import oscar_ha
from tests.lab.test_partitions import (
    CHECK_MS,
    PARTITION_OUTAGE_MS,
    PLAN_MS,
    READY_MS,
    WRITE_MS,
    Apart,
    a_lab,
)

pytestmark = pytest.mark.servers
HOLDS: dict[str, Any] = {
    "failover": {"on_isolation": "hold"}, "durability": {"policy": "available", "degrade_after_seconds": 3},
}  # fmt: skip
AT_HOME = "clinic-1"
"""The clinic on the LAN of the primary."""
HOME = "clinic"
GAP_MS = 30_000.0
"""Its writes wait for degrade_after_seconds, and for a lease to end; far above what is measured."""
MODE_MS = 60_000.0


class Holding(Apart):
    """A lab whose primary is to hold."""

    def outside(self, path: str) -> dict[str, Any]:
        """Ask a controller that is not in the clinic's building."""
        ones = [one for one in settings.load(Layout(self.directory).settings).controllers if one.site != HOME]

        async def ask() -> dict[str, Any]:
            async with Client(self.lab.file.token) as client:
                return dict(await client.get(f"{ones[0].url}{path}", deadline_ms=2_000.0))

        return asyncio.run(ask())

    def codes(self) -> set[str]:
        return {one["code"] for one in self.outside("/v1/readiness")["reasons"]}

    def wait_code(self, code: str) -> None:
        wait_until(lambda: "" if code in self.codes() else str(self.codes()), deadline_ms=MODE_MS, what=code)

    def wait_mode(self, mode: str) -> None:
        def other() -> str:
            record = self.outside("/v1/cluster")["durability"]
            return "" if record["mode"] == mode else str(record)

        wait_until(other, deadline_ms=MODE_MS, what=f"not {mode}")

    def wait_home_writes(self, after: Nanos) -> None:
        (writer,) = [one for one in self.traffic.writers if one.clinic.name == AT_HOME]
        wait_until(lambda: "" if writer.has_written(after) else "no write", deadline_ms=WRITE_MS, what=AT_HOME)


def shut_down(holding: Holding, node: str) -> None:
    """End a database server in order: a crash may take back the last moment of what it told alone (0089).

    Its threads that stream to sites behind the cut may hold it up until `net_write_timeout` is over.
    """
    one = ledger.require(Layout(holding.directory)).started[node]
    identity.send(one.identity, signal.SIGTERM)
    wait_until(lambda: "" if one.life is Life.ENDED else "it runs", deadline_ms=READY_MS, what=f"{node} does not end")


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Holding]:
    with a_lab(tmp_path_factory.mktemp("holding") / "lab", request, Holding, HOLDS) as lab:
        yield lab


@pytest.mark.timeout(400)
def test_a_clinic_whose_line_is_cut_writes_on_and_nobody_is_promoted(holding: Holding) -> None:
    holding.ready()
    before = holding.now()
    with holding.lab.cut(HOME, keep_lan=True):
        cut_at = clock.now()
        holding.wait_code("primary_cut_off")
        holding.wait_mode("degraded")
        holding.wait_home_writes(clock.now())
        holding.beyond_every_lease()
        held_on = clock.now()
        holding.wait_home_writes(held_on)
        gap_ms = outage_ms(holding.traffic.history, AT_HOME, start=cut_at, end=clock.now())
        epoch, plan = holding.outside("/v1/cluster")["epoch"], holding.outside("/v1/cluster")["plan"]
    healed_at = clock.now()
    holding.wait_mode("sync")
    in_sync_ms = clock.ms_between(healed_at, clock.now())
    holding.ready()
    print(f"\nhold: the clinic wrote nothing for {gap_ms} ms, in sync {in_sync_ms:.0f} ms after the line was back")
    code, told = oscar_ha(holding.lab, "history")

    assert (epoch["primary"], epoch["epoch"], plan) == (before.node, before.epoch, None)
    assert holding.lab.primary() == (before.node, before.epoch)
    assert gap_ms is not None
    assert gap_ms < GAP_MS
    assert code == 0, told
    assert holding.lab.cluster()["nodes"][0]["alone"] is None


@pytest.mark.timeout(400)
def test_a_primary_that_is_really_dead_is_replaced_by_an_operators_word(holding: Holding) -> None:
    """Its server and its watchdog die at once, as a host does: by itself nothing happens, whatever the lease says."""
    holding.ready()
    before = holding.now()
    control.kill(holding.directory, f"watchdog-{HOME}", before.node)
    holding.wait_code("primary_cut_off")
    holding.beyond_every_lease()
    assert holding.lab.primary() == (before.node, before.epoch), "nobody is promoted without a word"
    code, told = oscar_ha(holding.lab, "failover", "--yes", "--allow-data-loss", "transactions=unknown,seconds=unknown")
    assert code != 0, told
    assert "--primary-is-off" in told
    words = ("--primary-is-off", "--allow-data-loss", "transactions=unknown,seconds=unknown", "--why", "it burnt down")
    code, told = oscar_ha(holding.lab, "failover", "--yes", *words)
    assert holding.lab.primary()[1] == before.epoch + 1, told
    holding.goes_on()
    code, told = oscar_ha(holding.lab, "explain", "last")

    assert "an operator said that nothing of it ran any more" in told, (code, told)


@pytest.mark.timeout(400)
def test_a_crash_of_its_server_alone_is_still_failed_over_by_itself(holding: Holding) -> None:
    """The watchdog lives, sees it dead and vouches that nothing was told alone: no person is needed."""
    for name in ("db-clinic", f"watchdog-{HOME}"):
        control.start(holding.directory, name)
    holding.whole()
    crash = holding.lab.crash_primary()
    record = holding.lab.wait_plan(crash.epoch, deadline_ms=PLAN_MS)
    holding.goes_on()
    gap_ms = max(gap or 0.0 for gap in holding.gaps(crash).values())
    print(f"\nhold: a crashed server was replaced by itself, no clinic waited longer than {gap_ms:.0f} ms")
    rejoin = holding.lab.come_back(crash.node, deadline_ms=READY_MS)

    assert record["automatic"], record
    assert "process is dead" in record["proof"], record
    assert gap_ms < PARTITION_OUTAGE_MS
    assert rejoin.rejoined, rejoin


@pytest.mark.timeout(400)
def test_what_it_told_alone_is_fetched_from_a_server_that_was_restarted_meanwhile(holding: Holding) -> None:
    """It stays closed, for an operator may have promoted another one; heard again it is replaced, and nothing of it is lost."""
    holding.whole()
    if holding.lab.primary()[0] != "db-clinic":
        holding.lab.switchover("db-clinic")
        holding.whole()
    before = holding.now()
    with holding.lab.cut(HOME, keep_lan=True):
        holding.wait_mode("degraded")
        holding.wait_home_writes(clock.now())
        shut_down(holding, before.node)
        control.start(holding.directory, before.node)
    record = holding.lab.wait_plan(before.epoch, deadline_ms=PLAN_MS)
    holding.goes_on()

    assert (record["from"], record["automatic"], record["loss"]["transactions"]) == (before.node, True, 0), record


@pytest.mark.timeout(400)
def test_after_all_of_it_every_node_is_a_standby_again_and_nothing_acknowledged_is_lost(holding: Holding) -> None:
    holding.whole()
    holding.traffic.stop()
    findings = checks.judge(holding.traffic.history, holding.lab.file, deadline_ms=CHECK_MS)

    assert all_kept(findings.values()), findings
