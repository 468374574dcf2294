"""What an old primary has at its binlog's end after a crash (TRAPS.md 25)."""

import time

import pytest

from tests.replicator.house import House, until
from tests.replicator.test_acknowledging import BLOCKED_SECONDS, Writer, primary_of

pytestmark = pytest.mark.servers


def test_a_commit_that_nobody_acknowledged_is_cut_when_the_old_primary_returns(house: House) -> None:
    """It is in its binlog at the crash, and in no archive: with `init_rpl_role=SLAVE` it is gone at the start."""
    primary = primary_of(house, "toronto", init_rpl_role="SLAVE")
    house.replicator("toronto")
    house.await_health("toronto", lambda report: report.acknowledging, what="acknowledging")
    primary.run("INSERT INTO d.t VALUES (-1, 'acknowledged')", "INSERT INTO d.t VALUES (-2, 'acknowledged too')")
    promised = house.position("clinic")
    house.replicators["toronto"].kill()
    writer = Writer(primary)
    writer.start()
    until(lambda: house.position("clinic") != promised, what="the commit is in the binlog")
    time.sleep(BLOCKED_SECONDS)
    primary.kill()
    primary.start()

    assert writer.acknowledged == []
    assert primary.run("SELECT a FROM d.t WHERE a > 0") == ()
    assert house.position("clinic") == promised
