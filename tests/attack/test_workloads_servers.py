"""Lists, bank and upgrade against one real MariaDB that is killed: kept; and a server that is made to lie: broken."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import traffic
from chaos.attack import verdicts, workloads
from chaos.attack.workloads import TOTAL, Workloads
from chaos.history import Finding, Outcome, Verdict
from chaos.lab_file import Clinic
from cluster import clock
from cluster.errors import Unreachable
from tests.servers.mariadb import MariaDBServer
from tests.traffic.test_traffic_servers import DATABASE, PASSWORD, USER, clinics_of

pytestmark = pytest.mark.servers

DEADLINE_MS = 20_000


@pytest.fixture
def server(tmp_path: Path, mariadb_template: Path) -> Iterator[MariaDBServer]:
    with MariaDBServer(tmp_path / "server", 7, template=mariadb_template) as running:
        running.run(f"CREATE DATABASE {DATABASE} DEFAULT CHARACTER SET utf8mb3",
                    f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'", f"GRANT ALL ON {DATABASE}.* TO {USER}@'%'")  # fmt: skip
        yield running


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline, pause = clock.after(clock.now(), DEADLINE_MS), threading.Event()
    while not ready():
        assert clock.now() < deadline, f"not {what} within {DEADLINE_MS} ms"
        pause.wait(0.02)


def judged(run: Workloads, clinic: Clinic) -> dict[str, Finding]:
    final = workloads.final_lists(clinic)
    totals = [*run.totals, workloads.final_total(clinic)]
    return {
        "lost": verdicts.no_append_lost(run.appends, final),
        "visible": verdicts.acknowledged_is_visible(run.appends, run.reads),
        "stays": verdicts.what_was_read_stays(run.reads, final),
        "totals": verdicts.totals_constant(totals, TOTAL, transfers=run.transfers),
    }


def busy(run: Workloads, since: int) -> bool:
    """Return whether every worker had an answer since then, lists and bank several acknowledged writes."""
    writers = [*run.lists, *run.bank]
    answered = all((one.last_answer or 0) > since for one in run.workers)
    return answered and all(one.outcomes[Outcome.OK] >= 3 for one in writers) and bool(run.reads) and bool(run.totals)


def test_what_a_server_keeps_through_a_kill_is_kept_and_what_it_forgets_is_broken(server: MariaDBServer) -> None:
    clinics = clinics_of(server)
    traffic.prepare(clinics[0], deadline_ms=DEADLINE_MS)
    workloads.prepare(clinics[0])
    with Workloads(clinics, seed=1) as run:
        wait_until(lambda: busy(run, 0), "at work")
        server.kill()
        server.start()
        restarted = clock.now()
        wait_until(lambda: busy(run, restarted), "at work again")
        run.stop()

    assert {finding.verdict for finding in judged(run, clinics[0]).values()} == {Verdict.KEPT}
    promised = {one.value for one in run.appends if one.register == "north/0" and one.acknowledged}
    shown = max(value for one in run.reads if one.register == "north/0" for value in one.values & promised)
    server.run(f"DELETE FROM {DATABASE}.attackList WHERE list = 'north/0' AND value = {shown}",
               f"UPDATE {DATABASE}.attackAccount SET balance = balance + 1 WHERE id = 0")  # fmt: skip
    broken = {name for name, finding in judged(run, clinics[0]).items() if finding.verdict is Verdict.BROKEN}
    assert broken == {"lost", "stays", "totals"}


def test_the_upgrade_can_be_repeated_at_every_step(server: MariaDBServer) -> None:
    """A lost answer says nothing: the step may have been done."""
    clinic = clinics_of(server)[0]
    traffic.prepare(clinic, deadline_ms=DEADLINE_MS)
    for statement in workloads.UPGRADE:
        server.run(f"USE {DATABASE}", statement, statement)


def test_nobody_at_the_other_end_is_said(server: MariaDBServer) -> None:
    server.stop()

    with pytest.raises(Unreachable, match="north"):
        workloads.final_total(clinics_of(server)[0])
